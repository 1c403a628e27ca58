"""A child process that is killed at a chosen place (before a file operation, in the middle of a write, at a time), and what the next one makes of what it left. Used by test_crash.py.

A `Zygote` has imported what is needed and forks for each trial. An audit hook in the child counts what it does to files below its folder. A `Trial` runs a function undisturbed, then kills it at each of these places."""
import gc
import os
import pickle
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from collections import Counter
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path

PATHS = {"open": 1, "os.rename": 2, "os.remove": 1, "os.mkdir": 1, "os.rmdir": 1, "os.truncate": 1, "os.link": 2, "os.symlink": 2, "os.chmod": 1, "os.utime": 1}  # events that change files, and how many paths they begin with (os.replace raises os.rename)
WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND


@dataclass(frozen=True)
class Fault:
    "Where a child is killed; by default nowhere."
    before: int = None      # its file operation of this number, from 1; one more than there are = after the last
    limit: int = None       # bytes: at that operation it is not killed, but from then on no file may grow longer; the kernel kills at that very byte (without `before`: from the start)
    time: float = None      # seconds
    group: bool = True      # at that time, its own children as well
    worker: bool = False    # not the child itself counts its operations, but each of its own children; the first that comes so far is killed


@dataclass
class Ended:
    "How a child ended."
    code: int            # 0 = it came through; -9 = killed, -25 (SIGXFSZ) = killed in the middle of a write
    seconds: float
    text: str = ""       # what it printed
    operations: list = field(default_factory=list)  # (event, path, bytes that were written to the file that it opened), where it came through
    value: object = None  # what the function returned
    outlived: bool = False  # a child of its own was still there a minute later


# --- in the child
class Hook:
    "An audit hook: counts what is done to files in a folder, and kills where the fault says"

    def __init__(self, folder, fault):
        self.folder, self.fault, self.owner, self.seen, self.opened = os.path.realpath(folder) + os.sep, fault, os.getpid(), [], {}
        self.once = self.folder.rstrip(os.sep) + ".killed"
        if fault.limit is not None and fault.before is None: limit_files(fault.limit)

    def __call__(self, event, args):
        if event not in PATHS or event == "open" and not (args[2] or 0) & WRITES: return
        paths = [os.fsdecode(p) if isinstance(p, (str, bytes, os.PathLike)) else "" for p in args[:PATHS[event]]]
        inside = [os.path.abspath(p) for p in paths if (os.path.realpath(os.path.dirname(p)) + os.sep + os.path.basename(p) + os.sep).startswith(self.folder)]
        if inside or event in ("os.remove", "os.rmdir") and args[-1] != -1: self.operation(event, inside or paths, event == "open" and args[2] & (os.O_CREAT | os.O_TRUNC))  # with dir_fd, as shutil.rmtree does: a bare name

    def operation(self, event, paths=("",), new=False):
        if self.fault.worker and os.getpid() == self.owner: return
        self.measure(paths[0])
        self.seen.append([event, paths[0].removeprefix(self.folder), None])
        if new: self.opened[paths[0]] = len(self.seen) - 1
        if len(self.seen) == self.fault.before and self.first(): os.kill(os.getpid(), signal.SIGKILL) if self.fault.limit is None else limit_files(self.fault.limit)

    def measure(self, path):
        "Note how long the files have become that are about to go from here, or all at the end"
        for p in [p for p in self.opened if not path or p == path or p.startswith(path + os.sep)]:
            if os.path.isfile(p): self.seen[self.opened.pop(p)][2] = os.path.getsize(p)

    def first(self):
        "Whether no other worker was killed before"
        if not self.fault.worker: return True
        try: os.close(os.open(self.once, os.O_CREAT | os.O_EXCL))
        except FileExistsError: return False
        return True

    def end(self):
        self.operation("end")
        if self.fault.limit is not None: limit_files(-1)
        return self.seen


def limit_files(n):
    "No file may grow beyond `n` bytes, on pain of death; -1 = any"
    import resource
    signal.signal(signal.SIGXFSZ, signal.SIG_DFL)
    resource.setrlimit(resource.RLIMIT_CORE, (1, resource.getrlimit(resource.RLIMIT_CORE)[1])) if resource.getrlimit(resource.RLIMIT_CORE)[1] else None  # no dump, not even to a program
    resource.setrlimit(resource.RLIMIT_FSIZE, (n, resource.getrlimit(resource.RLIMIT_FSIZE)[1]))


def child(f, args, folder, fault, text, back):
    "Run a function under a fault, and leave"
    os.setsid()
    os.dup2(os.open(os.devnull, os.O_RDWR), 0)
    for fd in (1, 2): os.dup2(text.fileno() if fault == Fault() else 0, fd)
    sys.addaudithook(hook := Hook(folder, fault))
    code = 1
    try:
        value = f(*args)
        pickle.dump((hook.end(), value), back)
        back.flush()
        code = 0
    except BaseException: traceback.print_exc()
    finally:
        sys.stdout.flush(), sys.stderr.flush()
        os._exit(code)


# --- in the zygote
def trial(f, args, folder, fault, patience=120):
    "Fork a child, kill it in time, and say how it ended"
    with tempfile.TemporaryFile() as text, tempfile.TemporaryFile() as back:
        alive, theirs = os.pipe()
        start = time.perf_counter()
        if (pid := os.fork()) == 0:
            os.close(alive)
            child(f, args, folder, fault, text, back)
        os.close(theirs)
        code = waited(pid, patience if fault.time is None else fault.time)
        if code is None:
            if fault.group: killed(pid)
            os.kill(pid, signal.SIGKILL)
            code = waited(pid, 60)
        seconds, outlived = time.perf_counter() - start, not gone(alive, 60)
        killed(pid)
        os.close(alive)
        text.seek(0), back.seek(0)
        seen, value = pickle.load(back) if code == 0 else ([], None)
        return Ended(code, seconds, text.read().decode(errors="replace"), seen, value, outlived)


def waited(pid, seconds):
    "The exit code of a child, or None where it is still there at the end of that time"
    deadline = time.perf_counter() + seconds
    while True:
        done, status = os.waitpid(pid, os.WNOHANG)
        if done: return os.waitstatus_to_exitcode(status)
        if time.perf_counter() >= deadline: return None
        time.sleep(.0005)


def gone(alive, seconds):
    "Whether all that hold the other end of a pipe are gone within that time"
    import select
    return bool(select.select([alive], [], [], seconds)[0])


def killed(group):
    try: os.killpg(group, signal.SIGKILL)
    except (ProcessLookupError, PermissionError): pass


def serve(*modules):
    "The zygote's loop: a task comes in, how it ended goes out"
    os.fsync = lambda fd: None  # SIGKILL loses nothing that was written; only a power cut would
    sink = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    for m in modules: import_module(m)
    gc.freeze(), gc.disable()  # else a collection in a child copies every page
    while True:
        try: do, *task = pickle.load(sys.stdin.buffer)
        except EOFError: return
        pickle.dump(do(*task), sink)
        sink.flush()


# --- in the tests
class Zygote:
    "A process that has imported some modules, and forks a child for each trial: milliseconds in place of an import's seconds."

    def __init__(self, *modules):
        code = f"import sys; sys.path[:0] = {[str(Path(__file__).parent), *sys.path]!r}; import faults; faults.serve(*{modules!r})"
        self.process = subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE)

    def ask(self, *task):
        pickle.dump(task, self.process.stdin)
        self.process.stdin.flush()
        return pickle.load(self.process.stdout)

    def warm(self, f, *args): return self.ask(f, *args)  # in the zygote itself, so that no child has to

    def run(self, f, *args, folder, fault=Fault()) -> Ended: return self.ask(trial, f, args, str(folder), fault)

    def close(self):
        self.process.stdin.close()
        self.process.wait(60), self.process.stdout.close()


def note(log, unit):
    "Say that a unit of work is computed: an empty file, so that no limit of bytes is met"
    Path(log).mkdir(exist_ok=True)
    os.close(os.open(Path(log) / f"{unit} {time.time_ns()} {os.getpid()}", os.O_CREAT | os.O_EXCL))


def noted(log): return Counter(p.name.split(" ")[0] for p in Path(log).iterdir()) if Path(log).exists() else Counter()


def nothing(folder): return None


@dataclass
class Trial:
    "A job that is killed again and again. `run(folder, log)` does it, or goes on with it, and returns what must be the same each time."
    zygote: Zygote
    home: Path
    run: object
    before: object = nothing       # what lies in the folder at first: a function of it
    content: object = Path.read_bytes  # what is compared of a file
    finished: object = nothing     # the units of work that are on the disk under their final names: a function of the folder
    whole: object = None           # what is wrong with what a killed child left: a function of the folder and of the trees before and after; None = a file of a final name has neither content
    disturbed: object = None       # what is run and killed, where it isn't `run`
    done: int = 0

    def __post_init__(self):
        folder, log = self.place()
        self.old = self.tree(folder)
        self.calm = self.zygote.run(self.run, folder, log, folder=folder)
        assert self.calm.code == 0 and not self.calm.outlived, self.calm.text
        self.new, self.units = self.tree(folder), noted(log)
        if self.disturbed:
            folder, log = self.place()
            self.first = self.zygote.run(self.disturbed, folder, log, folder=folder)
            assert self.first.code == 0, self.first.text
        else: self.first = self.calm

    def place(self):
        "A new folder and its log"
        self.done += 1
        folder = self.home / str(self.done)
        folder.mkdir(parents=True)
        self.before(folder)
        return folder, folder.with_suffix(".log")

    def tree(self, folder):
        "What is compared of a folder; a killed process may leave the empty file of a lock that it held"
        return {str(p.relative_to(folder)): None if p.is_dir() else self.content(p) for p in sorted(folder.rglob("*")) if p.suffix != ".lock" or p.is_dir() or p.stat().st_size}

    def torn(self, folder):
        "Files under their final names whose content is neither the old nor the new one"
        if self.whole: return self.whole(folder, self.old, self.new)
        return [f"{k} is half written" for k, v in self.tree(folder).items() if k in self.new and v not in (self.new[k], self.old.get(k, self.new[k]))]

    def after(self, fault):
        "What is wrong after a fault: a list of sentences. None where the child came through."
        folder, log = self.place()
        ended = self.zygote.run(self.disturbed or self.run, folder, log, folder=folder, fault=fault)
        if ended.code not in (0, -signal.SIGKILL, -signal.SIGXFSZ): return [f"it ended with {ended.code}: {ended.text}"]
        wrong = self.torn(folder) + ["a child of its own outlived it"] * ended.outlived
        kept = Counter(self.finished(folder) or ())
        again = self.zygote.run(self.run, folder, log.with_suffix(".again"), folder=folder)
        if again.code: return [*wrong, f"the next run ended with {again.code}: {again.text[-1500:]}"]
        wrong += self.differences(folder, again) + [f"{k} was computed {n} times, wanted {n - m}" for k, n in noted(log.with_suffix(".again")).items() if (m := n - (self.units - kept)[k])]
        if not wrong: shutil.rmtree(folder)
        return None if ended.code == 0 and not wrong and not fault.worker else wrong

    def differences(self, folder, again):
        now = self.tree(folder)
        return ([f"{k} is left over" for k in now.keys() - self.new] + [f"{k} is missing" for k in self.new.keys() - now] + [f"{k} differs" for k, v in now.items() if k in self.new and v != self.new[k]]
                + ["what it returned differs"] * (again.value != self.calm.value))

    def tried(self, faults):
        "How many of these faults killed it, and where something was wrong afterwards"
        n, failed = 0, []
        for fault in faults:
            if (wrong := self.after(fault)) is None: continue
            n += 1
            if wrong: failed.append((fault, self.at(fault), wrong))
        return n, failed

    def at(self, fault): return self.first.operations[fault.before - 1] if fault.before and not fault.worker and fault.before <= len(self.first.operations) else None

    # where to kill
    def each(self):
        "Before every file operation, and after the last"
        return [Fault(before=k + 1) for k in range(len(self.first.operations))]

    def middles(self, effort, each=1):
        "In the middle of every write: at random bytes of it, and where there are several also before the first byte and the last"
        rng = random.Random(0)
        for k, (event, _, size) in enumerate(self.first.operations):
            if event != "open" or not size: continue
            at = {rng.randrange(size) for _ in range(max(1, round(each * effort)))}
            yield from (Fault(before=k + 1, limit=n) for n in sorted(at if len(at) == 1 else at | {0, size - 1}))

    def sizes(self, effort, each=20):
        "No file grows beyond so many bytes, which also reaches what is written without Python's knowing"
        rng, top = random.Random(1), max(len(v) if isinstance(v, bytes) else 1000 for v in self.new.values() if v is not None)
        return [Fault(limit=n) for n in sorted({0, 1, top - 1, *(int(top ** rng.random()) for _ in range(round(each * effort)))})]

    def times(self, effort, each=30, **options):
        "At random times"
        rng = random.Random(2)
        return [Fault(time=self.first.seconds * rng.random(), **options) for _ in range(round(each * effort))]
