"Several processes ask for the same thing at once: one computes, the others wait or share, and no lock outlives its owner."
import hashlib
import multiprocessing
import json
import os
import pickle
import signal
import subprocess
import sys
import time
import traceback
from contextlib import nullcontext
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from test_activations import CONFIGS, save, some_texts
from test_artifacts import make_wheel, toy
from test_session import GOODS, buy, plan_of

from datacentric_w2s import activations as A
from datacentric_w2s import artifacts, cluster, commands, files, results, session
from datacentric_w2s.results import grid, run_cells
from datacentric_w2s.session import Session

needs_fork = pytest.mark.skipif(not hasattr(os, "fork"), reason="this system can't fork; what is tested holds for any, but by other locks")
pytestmark = [needs_fork, pytest.mark.xdist_group("concurrency")]  # one crowd for all
PATIENCE = 120  # seconds, for a machine that is busy with other things


# --- many processes at once: forked from one that has imported everything and done nothing
class Crowd:
    "A process that waits for orders, and forks a process for each of them"

    def __init__(self):
        context = multiprocessing.get_context("spawn")
        self.ours, theirs = context.Pipe()
        self.process = context.Process(target=_serve, args=(theirs,), daemon=True)
        self.process.start()

    def __call__(self, f, *orders):
        "What f(*order) gives in a process of its own for each order, all started together; (False, what it said) for an error, and (None, the signal) for a death"
        self.ours.send((f, orders))
        if not self.ours.poll(2 * PATIENCE): raise TimeoutError("the crowd gave no answer")
        return self.ours.recv()

    def end(self):
        self.ours.close()
        self.process.join(PATIENCE)


def _serve(orders):
    "Import what is imported late, and then do as told"
    import safetensors.numpy  # noqa: F401
    import torch.distributed.tensor  # noqa: F401
    import transformers.models.auto.modeling_auto  # noqa: F401
    from transformers import AutoConfig, AutoModel, AutoTokenizer, LlamaModel, PreTrainedTokenizerFast  # noqa: F401
    while True:
        try: f, orders_of = orders.recv()
        except EOFError: return
        gate, gun = os.pipe()
        ready = [_fork(f, args, gate, gun) for args in orders_of]
        os.close(gun), os.close(gate)
        orders.send([_answer(pid, out) for pid, out in ready])


def _fork(f, args, gate, gun):
    out, into = os.pipe()
    if pid := os.fork():
        os.close(into)
        return pid, out
    os.close(gun), os.close(out)
    os.read(gate, 1)  # until all are there
    signal.alarm(PATIENCE)  # whatever hangs, dies
    try: said = True, f(*args)
    except BaseException as e: said = False, "".join(traceback.format_exception_only(e)).strip()
    with os.fdopen(into, "wb") as pipe: pickle.dump(said, pipe)
    os._exit(0)


def _answer(pid, out):
    status = os.waitpid(pid, 0)[1]
    os.set_blocking(out, False)  # a fork of a child may still hold the other end
    try: said = os.read(out, 1 << 16)
    except BlockingIOError: said = b""
    os.close(out)
    return pickle.loads(said) if said else (None, os.WTERMSIG(status))


@pytest.fixture(scope="module")
def crowd():
    c = Crowd()
    yield c
    c.end()


def note(log, line):
    "Append a line in one step"
    fd = os.open(log, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    os.write(fd, f"{line}\n".encode())
    os.close(fd)


def noted(log): return log.read_text().splitlines() if log.exists() else []


def until(true):
    "Wait for something that other processes do"
    end = time.monotonic() + PATIENCE
    while not true():
        if time.monotonic() > end: raise TimeoutError("it did not come about")
        time.sleep(.005)


def hashed(folder): return {str(p.relative_to(folder)): hashlib.sha256(p.read_bytes()).hexdigest() for p in sorted(Path(folder).rglob("*")) if p.is_file()}


def litter(folder): return [p.name for p in Path(folder).rglob("*") if p.name.endswith((".tmp", ".lock")) or p.name.startswith(".")]


def die_beside(others):
    "SIGKILL this process, once the others are on their way"
    until(lambda: len(noted(others)) >= 2)  # itself, and one of them
    time.sleep(.3)  # they reach the lock
    os.kill(os.getpid(), signal.SIGKILL)


def wrong(answers, want, victims=0):
    "What is wrong with the answers of a crowd, of which the first `victims` were killed"
    return [a for a in answers[:victims] if a != (None, signal.SIGKILL)] + [a for a in answers[victims:] if a != (True, want)]


# --- the lock itself
def count_up(folder, times, lock):
    held = files.held if lock else lambda *_: nullcontext()
    for _ in range(times):
        with held(folder / "n", "the number"):
            n = int((folder / "n").read_text() or 0)
            time.sleep(.0005)
            (folder / "n").write_text(str(n + 1))


@pytest.mark.parametrize("lock", [True, False])
def test_the_lock_lets_one_in_at_a_time(crowd, tmp_path, effort, tally, lock):
    "Its file is removed each time, under the eyes of those that wait for it. Without it the harness sees numbers lost."
    (tmp_path / "n").write_text("")
    times = max(15, int(15 * effort))
    assert crowd(count_up, *[(tmp_path, times, lock)] * 5) == [(True, None)] * 5
    n = int((tmp_path / "n").read_text())
    if not lock: assert n < 5 * times
    else: tally("concurrency", "a lock taken by 5 processes in turn", 5 * times, [n] * (n != 5 * times) + litter(tmp_path))


def try_it(path):
    with files.held(path, "x", wait=False) as mine: return mine


def hold_and_fork(path, marks):
    with files.held(path, "x"):
        if not os.fork():
            signal.alarm(PATIENCE)
            until(lambda: (marks.parent / "over").exists())
            os._exit(0)
        note(marks, "held")
        die_beside(marks)


def take(path, marks):
    until(lambda: noted(marks))
    before = try_it(path)
    note(marks, "on the way")
    with files.held(path, "x") as mine: return before, mine


def test_a_lock_falls_with_its_owner_though_a_fork_of_it_lives_on(crowd, tmp_path):
    "Forks share open files, and with them a lock of the system"
    answers = crowd(hold_and_fork_or_take, (True, tmp_path / "x", tmp_path / "marks"), (False, tmp_path / "x", tmp_path / "marks"))
    (tmp_path / "over").touch()
    assert answers == [(None, signal.SIGKILL), (True, (False, True))]


def hold_and_fork_or_take(first, *args): return (hold_and_fork if first else take)(*args)


def test_a_long_name_has_a_lock_too(tmp_path):
    for name in ("x" * 255, "ü" * 127, "\udcff" * 250):
        with files.held(tmp_path / name, "x") as mine: assert mine and [len(os.fsencode(p.name)) <= 255 for p in tmp_path.iterdir()] == [True]
        assert not list(tmp_path.iterdir())


# --- an artifact
def fetch(wheel, log, dies=False, others=None):
    os.environ["DATACENTRIC_W2S_CACHE"] = str(log.parent / "cache")
    extract, a = artifacts._extract, toy(wheel)

    def extracted(wheel, members, to):
        note(log, "extracted")
        if dies:
            extract(wheel, ["toy_data/rows/a.txt"], to)
            note(others, "begun"), die_beside(others)
        return extract(wheel, members, to)
    artifacts._extract = extracted
    if others and not dies:
        until(lambda: noted(others))
        note(others, "on the way")
    return hashed(artifacts.artifact(a))


def by_hand(folder):
    "A cache with a wheel that was put there; the wheel, and what is in it"
    wheel = make_wheel(folder / "cache/wheels")
    return wheel, {f"{k}.txt": hashlib.sha256(v).hexdigest() for k, v in (("a", b"ice is cold"), ("b", b"fire is hot"))}


def test_an_artifact_is_extracted_once(crowd, tmp_path, effort, tally):
    bad, rounds = [], int(8 * effort)
    for r in range(rounds):
        wheel, want = by_hand(tmp_path / str(r))
        bad += wrong(crowd(fetch, *[(wheel, tmp_path / f"{r}/log")] * 4), want)
        bad += [said] if (said := noted(tmp_path / f"{r}/log")) != ["extracted"] else []
        bad += litter(tmp_path / str(r))
    tally("concurrency", "an artifact asked for by 4 processes", 4 * rounds, bad)


def test_an_artifact_after_its_owner_was_killed(crowd, tmp_path, effort, tally):
    bad, rounds = [], int(2 * effort)
    for r in range(rounds):
        wheel, want = by_hand(tmp_path / str(r))
        order = (wheel, tmp_path / f"{r}/log")
        bad += wrong(crowd(fetch, (*order, True, tmp_path / f"{r}/others"), *[(*order, False, tmp_path / f"{r}/others")] * 2), want, 1)
        bad += [said] if len(said := noted(tmp_path / f"{r}/log")) != 2 else []
        bad += litter(tmp_path / str(r))
    tally("concurrency", "an artifact: SIGKILL of the process that extracts it, two wait", rounds, bad)


# --- activations
@pytest.fixture(scope="module")
def llama(tmp_path_factory): return save(tmp_path_factory.mktemp("llama"), CONFIGS["llama"]())


def see(model, texts, cache, log, out=None, dies=False, others=None):
    A.TEXTS_A_SHARD = 4
    run, first = A._run, []

    def counted(ids, *args, **options):
        if dies and first: note(others, "begun"), die_beside(others)
        first.append(1)
        for t in ids: note(log, t.tolist())
        return run(ids, *args, **options)
    A._run = counted
    if others and not dies:
        until(lambda: noted(others))
        note(others, "on the way")
    x = A.activations(texts, model, layer=2, cache=cache, out=out, progress=False)
    return x.shape, hashlib.sha256(np.ascontiguousarray(x).tobytes()).hexdigest()


def test_activations_are_computed_once(crowd, llama, tmp_path, effort, tally):
    "Each process gets the same rows, in memory or in one file that all of them write"
    bad, rounds, texts = [], int(3 * effort), some_texts(14)
    (_, want), = crowd(see, (llama, texts, tmp_path / "alone", tmp_path / "log"))
    for r in range(rounds):
        out = tmp_path / f"{r}.npy" if r % 2 else None
        bad += wrong(crowd(see, *[(llama, texts, tmp_path / str(r), tmp_path / f"log{r}", out)] * 3), want)
        if sorted(noted(tmp_path / f"log{r}")) != sorted(noted(tmp_path / "log")): bad.append(noted(tmp_path / f"log{r}"))
        if hashed_rows(tmp_path / str(r)) != hashed_rows(tmp_path / "alone"): bad.append("other shards")
        bad += litter(tmp_path)
    tally("concurrency", "activations asked for by 3 processes", 3 * rounds, bad)


def hashed_rows(folder):
    from safetensors.numpy import load_file
    return {p.name: {k: v.tobytes() for k, v in load_file(p).items()} for p in folder.glob("*/*.safetensors")}


def test_texts_that_only_some_ask_for(crowd, llama, tmp_path, tally):
    "Sets that overlap: each text is computed once, whoever asks for it"
    texts = some_texts(24)
    parts = [texts[:16], texts[8:][::-1], texts[4:20]]
    answers = crowd(see, *[(llama, part, tmp_path / "cache", tmp_path / "log") for part in parts])
    bad = [a for a in answers if not a[0]] + ["some twice, or not at all"] * (len(noted(tmp_path / "log")) != 24 or len(set(noted(tmp_path / "log"))) != 24)
    again = crowd(see, *[(llama, part, tmp_path / "cache", tmp_path / "log2") for part in parts])
    tally("concurrency", "activations of overlapping texts asked for by 3 processes", len(texts), bad + [a for a, b in zip(answers, again) if a != b] + noted(tmp_path / "log2"))


def test_activations_after_their_owner_was_killed(crowd, llama, tmp_path, effort, tally):
    "The shard that was written is not computed again"
    bad, rounds, texts = [], int(2 * effort), some_texts(12)
    (_, want), = crowd(see, (llama, texts, tmp_path / "alone", tmp_path / "log"))
    for r in range(rounds):
        order, others = (llama, texts, tmp_path / str(r), tmp_path / f"log{r}", None), tmp_path / f"others{r}"
        bad += wrong(crowd(see, (*order, True, others), *[(*order, False, others)] * 2), want, 1)
        if sorted(noted(tmp_path / f"log{r}")) != sorted(noted(tmp_path / "log")): bad.append(noted(tmp_path / f"log{r}"))
        if hashed_rows(tmp_path / str(r)) != hashed_rows(tmp_path / "alone"): bad.append("other shards")
        bad += litter(tmp_path)
    tally("concurrency", "activations: SIGKILL of the process that computes, two wait", rounds, bad)


def rewrite(wheel, log, dies=False, others=None):
    os.environ["DATACENTRIC_W2S_CACHE"] = str(log.parent / "cache")
    artifacts.ARTIFACTS["toy"] = toy(wheel, members=("toy_data/rows/a.txt",))

    def written(file, folder):
        note(log, "rewritten")
        for name in ("config.json", "model.safetensors"): (folder / name).write_text(file.read_text() * 1000)
        if dies: note(others, "begun"), die_beside(others)
        (folder / "manifest.json").write_text(json.dumps({p.name: files.sha256(p) for p in sorted(folder.iterdir())}))
    A._write_folder = written
    if others and not dies:
        until(lambda: noted(others))
        note(others, "on the way")
    return hashed(A._rewritten("toy", check=True))


def test_a_model_is_rewritten_once(crowd, tmp_path, effort, tally):
    bad, rounds = [], int(4 * effort)
    for r in range(2 * rounds):
        wheel, _ = by_hand(tmp_path / str(r))
        order, others, dies = (wheel, tmp_path / f"{r}/log"), tmp_path / f"{r}/others", r % 2
        answers = crowd(rewrite, (*order, True, others), *[(*order, False, others)] * 2) if dies else crowd(rewrite, *[order] * 3)
        bad += wrong(answers, answers[-1][1], dies) + [answers] * ("manifest.json" not in answers[-1][1])
        bad += [said] if len(said := noted(tmp_path / f"{r}/log")) != 1 + dies else []
        bad += litter(tmp_path / str(r))
    tally("concurrency", "a rewritten model asked for by 3 processes, half the time with a SIGKILL of the first", 2 * rounds, bad)


# --- a sweep
def measure(cell, log, mates=1, dies=None, others=None):
    "Leaves a line for each call; with mates, the first call of a process waits until as many are at work"
    note(log, f"{os.getpid()} {cell.stem} {cell.experiment}")
    if (cell.stem, cell.experiment) == dies: note(others, "begun"), die_beside(others)
    until(lambda: len({line.split()[0] for line in noted(log)}) >= mates)
    return pd.DataFrame(dict(value=np.random.default_rng([cell.seed, len(cell.dataset)]).normal(size=3), n=[1, 2, 3]))


def sweep(folder, log, mates=1, dies=None, others=None, lock=True):
    if not lock: results.held = lambda *_: nullcontext(True)
    if others and not dies:
        until(lambda: noted(others))
        note(others, "on the way")
    df = run_cells(grid("a,bb", 3, "toy,other"), folder, results.partial(measure, log=log, mates=mates, dies=dies, others=others), progress=False)
    return sorted(set(df.status) - {"computed", "kept"}), len(df), int((df.status == "computed").sum())


def whole(answer): return answer[0] is True and answer[1][:2] == ([], 12)


def cells_of(log): return sorted(line.split(" ", 1)[1] for line in noted(log))


@pytest.mark.parametrize("lock", [True, False])
def test_a_sweep_is_shared(crowd, tmp_path, effort, tally, lock):
    "Three processes have to be at work at the same time, or this test runs out of patience. Without the lock the harness sees cells that were computed twice."
    bad, rounds = [], int(4 * effort)
    crowd(sweep, (tmp_path / "alone", tmp_path / "log"))
    for r in range(rounds if lock else 1):
        answers = crowd(sweep, *[(tmp_path / str(r), tmp_path / f"log{r}", 3, None, None, lock)] * 3)
        bad += [a for a in answers if not whole(a)] + ["not every process took part"] * (not all(whole(a) and a[1][2] for a in answers))
        if cells_of(tmp_path / f"log{r}") != cells_of(tmp_path / "log"): bad.append(cells_of(tmp_path / f"log{r}"))
        if hashed(tmp_path / str(r)) != hashed(tmp_path / "alone"): bad.append("other files")
        bad += litter(tmp_path)
    if lock: tally("concurrency", "a sweep of 12 cells run by 3 processes in one folder", 12 * rounds, bad)
    else: assert any(len(b) > 12 for b in bad)


def test_a_sweep_after_an_owner_was_killed(crowd, tmp_path, effort, tally):
    "Its cell, and no other, is computed again"
    bad, rounds = [], int(2 * effort)
    crowd(sweep, (tmp_path / "alone", tmp_path / "log"))
    for r in range(rounds):
        order, others, dies = (tmp_path / str(r), tmp_path / f"log{r}", 1), tmp_path / f"others{r}", ("a-1", "other")
        answers = crowd(sweep, (*order, dies, others), *[(*order, None, others)] * 2)
        bad += [a for a in answers if a[0] is not None and not whole(a)] + [answers[0]] * (answers[0] != (None, signal.SIGKILL))
        if cells_of(tmp_path / f"log{r}") != sorted([*cells_of(tmp_path / "log"), " ".join(dies)]): bad.append(cells_of(tmp_path / f"log{r}"))
        if hashed(tmp_path / str(r)) != hashed(tmp_path / "alone"): bad.append("other files")
        bad += litter(tmp_path)
    tally("concurrency", "a sweep: SIGKILL of a process in a cell, two go on", rounds, bad)


LIGHT = """
import os, sys
import pandas as pd
from functools import partial
from pathlib import Path
from datacentric_w2s.results import grid, run_cells
import light

def measure(cell, log):
    fd = os.open(log, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    os.write(fd, f"{os.getpid()} {cell.stem} {cell.experiment}\\n".encode())
    os.close(fd)
    return pd.DataFrame(dict(value=[cell.seed]))

def run(folder, log, jobs):
    df = run_cells(grid("a,bb", 3, "toy,other"), folder, partial(light.measure, log=log), progress=False, jobs=int(jobs))
    assert len(df) == 12 and set(df.status) <= {"computed", "kept"}
"""


def test_a_sweep_with_workers_is_shared(tmp_path):
    "One with two workers of its own beside one without: the same files, each cell once"
    (tmp_path / "light.py").write_text(LIGHT)
    env = os.environ | dict(PYTHONPATH=os.pathsep.join([str(tmp_path), *sys.path]))
    begin = lambda folder, log, jobs: subprocess.Popen([sys.executable, "-c", "import sys, light; light.run(*sys.argv[1:])", tmp_path / folder, tmp_path / log, str(jobs)], env=env)
    for run in [begin("both", "log", 2), begin("both", "log", 1), begin("alone", "log2", 1)]: assert run.wait(3 * PATIENCE) == 0
    assert cells_of(tmp_path / "log") == cells_of(tmp_path / "log2") and len(cells_of(tmp_path / "log")) == 12 and hashed(tmp_path / "both") == hashed(tmp_path / "alone")


def test_a_damaged_cell_is_set_aside_once(crowd, tmp_path, effort, tally):
    "Two that both see the damage: the new file of the one must not be set aside by the other"
    bad, rounds = [], int(4 * effort)
    crowd(sweep, (tmp_path / "alone", tmp_path / "log"))
    for r in range(rounds):
        crowd(sweep, (tmp_path / str(r), tmp_path / "log"))
        (tmp_path / str(r) / "toy/a-0.csv").write_bytes(b"# {}\n")
        answers = crowd(sweep, *[(tmp_path / str(r), tmp_path / f"log{r}")] * 3)
        bad += [a for a in answers if not whole(a)] + litter(tmp_path)
        if cells_of(tmp_path / f"log{r}") != ["a-0 toy"]: bad.append(cells_of(tmp_path / f"log{r}"))
        found = hashed(tmp_path / str(r))
        if found.pop("toy/a-0.csv.aside1", None) is None or found != hashed(tmp_path / "alone"): bad.append(sorted(found))
    tally("concurrency", "a damaged cell found by 3 processes", rounds, bad)


# --- detection by ranges
def logged(f, tasks, log):
    "A map that leaves a line for each scoring task, and gives others time to come in between"
    for t in tasks:
        if getattr(f, "func", None) is cluster._largest: note(log, f"{f.keywords['job'].t:.6f} {t}"), time.sleep(.003)
        yield f(t)


def detect(folder, log, teacher, lock=True):
    if not lock: cluster.held = lambda *_: nullcontext()
    p, x = np.random.default_rng(teacher).beta(.5, .5, 400), np.random.default_rng(9).normal(size=(400, 5))
    folder.mkdir(exist_ok=True)
    found = cluster.detect_ranges(p, x, rows=50, group=4, folder=folder, map=cluster.partial(logged, log=log)).partition()
    return hashlib.sha256(b"".join(a.tobytes() for a in (found.kind, found.conf, found.score))).hexdigest()


@pytest.mark.parametrize("lock", [True, False])
def test_ranges_in_one_folder(crowd, tmp_path, effort, tally, lock):
    "Two processes for each of two teachers. Without the lock the harness sees that scores are computed twice, or that one teacher's confidences are taken for the other's."
    bad, rounds = [], int(3 * effort)
    want = [crowd(detect, (tmp_path / "alone", tmp_path / "log", teacher))[0] for teacher in (1, 2)]
    assert all(done for done, _ in want) and want[0] != want[1]
    for r in range(rounds if lock else 1):
        answers = crowd(detect, *[(tmp_path / str(r), tmp_path / f"log{r}", teacher, lock) for teacher in (1, 2)] * 2)
        bad += [a for a, w in zip(answers, want * 2) if a != w]
        if sorted(noted(tmp_path / f"log{r}")) != sorted(noted(tmp_path / "log")): bad.append("scores computed twice")
        bad += litter(tmp_path)
    if lock: tally("concurrency", "ranges of rows scored by 4 processes in one folder, for two teachers", 4 * rounds, bad)
    else: assert bad


# --- one file, many writers and readers
def write_often(path, k, times):
    for _ in range(times): commands._save(pd.DataFrame(dict(who=[k] * 2000)), path)


def read_often(path, over):
    n = 0
    while not over.exists() or n < 5:
        df = pd.read_csv(path)
        assert len(df) == 2000 and df.who.nunique() == 1, f"{len(df)} rows of {df.who.unique()}"
        n += 1


def write_or_read(who, *args): return (read_often if who == "reader" else write_and_end)(*args)


def write_and_end(path, k, times, over):
    write_often(path, k, times)
    if k == 0: over.touch()


def test_a_reader_sees_a_whole_table(crowd, tmp_path, effort, tally):
    path, times, over = tmp_path / "kinds.csv", int(15 * effort), tmp_path / "over"
    write_often(path, 9, 1)
    answers = crowd(write_or_read, *[("writer", path, k, times, over) for k in range(3)], ("reader", path, over))
    tally("concurrency", "one --out file written by 3 processes and read by a fourth", 3 * times, wrong(answers, None) + litter(tmp_path))


# --- a session
def begin(path):
    Session(plan_of(), path)
    return "begun"


def tell_once(path):
    s = Session.restore(path)
    query = s.ask()
    buy(s, query)
    return len(s.log)


def slow_tell(path, mark):
    "Pauses where it has looked at the file, and has not written yet"
    written = session.written

    def slow(p):
        mark.touch()
        time.sleep(.5)
        return written(p)
    s = Session.restore(path)
    session.written = slow
    s.tell("a", GOODS["a"][0][:12], GOODS["a"][1][:12], ids=range(12))
    return "told"


def quick_tell(path, mark):
    s = Session.restore(path)
    until(mark.exists)
    s.tell("b", GOODS["b"][0][:12], GOODS["b"][1][:12], ids=range(12))
    return "told"


def one_of(first, *args): return (slow_tell if first else quick_tell)(*args)


def test_no_batch_is_lost_between_the_look_and_the_write(crowd, tmp_path):
    begin(path := tmp_path / "s")
    answers = crowd(one_of, (True, path, tmp_path / "mark"), (False, path, tmp_path / "mark"))
    assert answers[0] == (True, "told") and answers[1][0] is False and "was written by another session since" in answers[1][1]
    assert Session.restore(path).log.source.tolist() == ["a"] and litter(tmp_path) == []


def test_sessions_on_one_file(crowd, tmp_path, effort, tally):
    "As many batches are in the file as processes were told that theirs is; one of those that begin at once begins it"
    bad, rounds = [], int(4 * effort)
    for r in range(rounds):
        answers = crowd(begin, *[(tmp_path / str(r),)] * 3)
        if [a[0] for a in answers].count(True) != 1 or any("exists; go on" not in a[1] and "another session" not in a[1] for a in answers if not a[0]): bad.append(answers)
        told = 0
        for _ in range(2):
            answers = crowd(tell_once, *[(tmp_path / str(r),)] * 3)
            told += sum(a[0] is True for a in answers)
            bad += [a for a in answers if a[0] is None or not a[0] and "was written by another session since" not in a[1]]
        if len(Session.restore(tmp_path / str(r)).log) != told or told < 2: bad.append((told, Session.restore(tmp_path / str(r)).log))
        bad += litter(tmp_path)
    tally("concurrency", "a session begun and told by 3 processes at once", 9 * rounds, bad)


def die_telling(path, others):
    s, query = Session.restore(path), None
    query = s.ask()

    def half(content):
        note(others, "begun"), die_beside(others)
    session._pack, pack = lambda *a: pack(*a), session._pack
    session.written = lambda p: half(p)
    buy(s, query)


def tell_after(path, others):
    s = Session.restore(path)
    until(lambda: noted(others))
    note(others, "on the way")
    buy(s, s.ask())
    return len(s.log)


def dying_or_after(first, *args): return (die_telling if first else tell_after)(*args)


def test_a_session_after_its_writer_was_killed(crowd, tmp_path):
    begin(path := tmp_path / "s")
    Session.restore(path).ask()
    answers = crowd(dying_or_after, (True, path, tmp_path / "others"), *[(False, path, tmp_path / "others")] * 2)
    assert answers[0] == (None, signal.SIGKILL) and sorted(str(a) for a in answers[1:])[1] == "(True, 1)" and "another session" in str(answers[1:])
    assert len(Session.restore(path).log) == 1 and litter(tmp_path) == []


