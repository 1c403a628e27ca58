"A full disk, a place that can only be read, no rights, long paths, a clock that jumps: clear errors, and nothing half written is taken for whole."
import errno
import hashlib
import io
import json
import os
import re
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import tty  # noqa: F401
from functools import partial
from pathlib import Path

import datasets  # noqa: F401
import numpy as np
import pandas as pd
import pytest
import test_concurrency
import tqdm
from test_activations import CONFIGS, save, some_texts
from test_artifacts import make_wheel, toy
from test_concurrency import crowd, hashed, litter  # noqa: F401
from test_session import buy, plan_of
from test_sharing import make, write_shared

from datacentric_w2s import activations as A
from datacentric_w2s import artifacts, cluster, commands, data, files, performance, results
from datacentric_w2s.results import grid, run_cells
from datacentric_w2s.session import Session

pytestmark = [test_concurrency.needs_fork, pytest.mark.xdist_group("environment")]
TEXTS = some_texts(9)
"".encode("cp437")  # what is imported late may lie where another user can't read
HELP = re.compile("make room|choose|make it first|DATACENTRIC_W2S_CACHE|the disk failed")


# --- what is written, each in a folder of its own; each gives what can be compared
def fetch(folder):
    os.environ["DATACENTRIC_W2S_CACHE"] = str(folder / "cache")
    wheel = folder / "toy_data-1.0-py3-none-any.whl"
    artifacts._download = lambda a, tmp: wheel  # a wheel that was fetched
    return hashed(artifacts.artifact(toy(wheel)))


def rewrite(folder):
    fetch(folder)
    artifacts.ARTIFACTS["toy"] = toy(folder / "toy_data-1.0-py3-none-any.whl")

    def written(source, to):
        for name in ("config.json", "model.safetensors"): (to / name).write_bytes(b"w" * 50_000)
        (to / "manifest.json").write_text(json.dumps({p.name: files.sha256(p) for p in sorted(to.iterdir())}))
    A._write_folder = written
    return hashed(A._rewritten("toy", check=True))


def see(folder, texts=TEXTS, **options):
    A.TEXTS_A_SHARD = 4
    x = A.activations(texts, folder / "model", layer=2, progress=False, **dict(cache=folder / "cache") | options)
    return hashlib.sha256(np.ascontiguousarray(x).tobytes()).hexdigest()


def see_into_a_file(folder): return see(folder, TEXTS * 50, cache=False, out=folder / "x.npy")


def measure(cell): return pd.DataFrame(dict(value=np.random.default_rng(cell.seed).normal(size=40)))


def sweep(folder, seeds=3):
    df = run_cells(grid("a", seeds, "toy"), folder / "results", measure, progress=False)
    if (df.status == "failed").any(): raise RuntimeError(df.error.dropna().iloc[0])
    return len(df)


def tell(folder):
    path = folder / "session"
    s = Session.restore(path) if os.path.exists(path) else Session(plan_of(horizon=3), path)
    while query := s.ask(): buy(s, query)
    return s.log.to_csv()


def give(suffix, folder):
    commands._save(pd.DataFrame(dict(x=np.arange(2000), kind=["easy", "hard"] * 1000)), folder / f"kinds{suffix}")
    return hashed(folder)[f"kinds{suffix}"]


def share(folder):
    write_shared(make(1, 300), folder / "rows.parquet")
    return hashed(folder)["rows.parquet"]


def detect(folder):
    rng = np.random.default_rng(0)
    found = cluster.detect_ranges(rng.random(300), rng.normal(size=(300, 4)), rows=100, folder=folder)
    return found.counts.to_dict(), hashlib.sha256(np.array(found.score)).hexdigest()


JOBS = {"an artifact": fetch, "a rewritten model": rewrite, "activations": see, "activations into a file": see_into_a_file, "a sweep": sweep, "a session": tell,
        "a CSV file": partial(give, ".csv"), "a parquet file": partial(give, ".parquet"), "shared rows": share, "columns of a cluster": detect}
each_job = pytest.mark.parametrize("job", JOBS)


@pytest.fixture(scope="module")
def model(tmp_path_factory): return save(tmp_path_factory.mktemp("model"), CONFIGS["llama"]())


@pytest.fixture
def fresh(model, tmp_path):
    "A new folder with what a job needs"
    def make(name):
        (folder := tmp_path / name).mkdir()
        make_wheel(folder)
        (folder / "model").symlink_to(model)
        return folder
    return make


# --- faults
def limited(job, folder, size):
    "No file may be larger than this: the system ends a write in its middle"
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))
    return JOBS[job](folder)


CHANGES = {"os.mkdir", "os.rename", "os.remove", "os.rmdir", "os.truncate", "os.link"}


def broken(job, folder, at, number):
    "The file operation with this number fails, as on a disk that is full; without a number, count them"
    done = []

    def watch(event, args):
        if event == "open": changes = isinstance(args[2], int) and args[2] & (os.O_WRONLY | os.O_RDWR | os.O_CREAT)
        else: changes = event in CHANGES
        if not changes or not str(args[0]).startswith(str(folder)): return
        done.append(f"{event} {args[0]}")
        if len(done) - 1 == at: raise OSError(number, os.strerror(number), str(args[0]))
    sys.addaudithook(watch)
    result = JOBS[job](folder)
    return len(done) if at is None else result


def clear(said): return HELP.search(said) and ".lock'" not in said.split("[Errno")[-1].split(":")[0]


def judged(crowd, job, folder, want, answer):
    "What is wrong after a fault: the error, or what the next run makes of what was left"
    bad = [] if answer == (True, want) or answer[0] is False and clear(answer[1]) else [(job, folder.name, "the error", answer)]
    (again,) = crowd(run, (job, folder))
    if again != (True, want): bad.append((job, folder.name, "the next run", again))
    return bad + [(job, folder.name, "left", name) for name in litter(folder) if not name.endswith(".lock")]  # one whose removal failed is empty, and the next to need it takes it over


def run(job, folder): return JOBS[job](folder)


@each_job
def test_a_disk_without_room_in_the_middle_of_a_write(crowd, fresh, effort, tally, job):
    (_, want), = crowd(run, (job, whole := fresh("whole")))
    largest = max(p.stat().st_size for p in whole.rglob("*") if p.is_file() and p.suffix != ".whl")
    sizes = sorted({0, 1, largest - 1, *np.linspace(1, largest, int(2 * effort) + 2, dtype=int)[1:-1].tolist()})
    folders = [fresh(str(s)) for s in sizes]
    answers = crowd(limited, *[(job, f, s) for f, s in zip(folders, sizes)])
    bad = [b for f, a in zip(folders, answers) for b in judged(crowd, job, f, want, a)]
    tally("environment", f"{job}: no file may grow past a size", len(sizes), bad + ["no limit was felt"] * all(a[0] for a in answers))


@each_job
def test_a_disk_that_fails_at_one_operation(crowd, fresh, effort, tally, job):
    (_, want), (_, n) = crowd(broken, (job, fresh("whole"), -1, 0), (job, fresh("count"), None, 0))
    at = sorted(set(np.linspace(0, n - 1, int(min(n, 5 * effort)), dtype=int).tolist()))
    folders = [fresh(str(k)) for k in at]
    kinds = [errno.ENOSPC, errno.EACCES, errno.EROFS, errno.EIO, errno.EDQUOT]
    answers = crowd(broken, *[(job, f, k, kinds[i % 5]) for i, (f, k) in enumerate(zip(folders, at))])
    tally("environment", f"{job}: a file operation fails", len(at), [b for f, a in zip(folders, answers) for b in judged(crowd, job, f, want, a)])


def careless(folder): (folder / "kinds.csv").write_text("x" * 10_000)


def test_the_harness_sees_a_writer_without_care(crowd, fresh):
    "A file that is written under its own name is cut short by the limit"
    JOBS["careless"] = careless
    try: (answer,) = crowd(limited_careless, (folder := fresh("a"), 1000))
    finally: del JOBS["careless"]
    assert not answer[0] and not clear(answer[1]) and (folder / "kinds.csv").stat().st_size == 1000


def limited_careless(folder, size):
    JOBS["careless"] = careless
    return limited("careless", folder, size)


# --- a map of a file on a full disk
@pytest.mark.parametrize("job", ["activations into a file", "columns of a cluster"])
def test_the_room_of_a_map_is_taken_before_it_is_written_to(crowd, fresh, job):
    "Else a disk that is full kills the process by a signal"
    (_, want), (_, (said, rows)) = crowd(run_without_room, (job, fresh("a"), False), (job, folder := fresh("b"), True))
    assert "No space left on device" in said and "make room" in said and rows == 0 and [p for p in folder.iterdir() if p.suffix == ".npy"] == []
    assert crowd(run, (job, folder)) == [(True, want)] and litter(folder) == []


def run_without_room(job, folder, full):
    if not full: return JOBS[job](folder)
    rows, put = [], A._Sheet.put

    def no_room(fd, start, size):
        assert size == os.fstat(fd).st_size > 1000
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    os.posix_fallocate = no_room
    A._Sheet.put = lambda self, *a: (put(self, *a), rows.append(1))
    try: JOBS[job](folder)
    except OSError as e: return str(e), len(rows)


@pytest.fixture
def disk(tmp_path):
    "A small disk of its own, where the system lets us have one"
    (at := tmp_path / "disk").mkdir()
    if os.geteuid() or subprocess.run(["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", at], capture_output=True).returncode: pytest.skip("mounting needs rights; the tests above do without")
    yield at
    subprocess.run(["umount", at], check=True)


def on(job, folder, room):
    if not room: A.room = cluster.room = lambda path: None
    return JOBS[job](folder)


def fill(path, leave):
    with open(path, "wb", buffering=0) as f:
        try:
            while f.write(b"0" * 4096): pass
        except OSError: pass
    os.truncate(path, max(os.stat(path).st_size - leave, 0))


def test_a_disk_that_is_really_full(crowd, fresh, disk, model):
    "Without the library's care the process dies of SIGBUS"
    (disk / "model").symlink_to(model)
    (_, want), = crowd(run, ("activations into a file", fresh("a")))
    fill(disk / "filler", 8192)
    (careless,) = crowd(on, ("activations into a file", disk, False))
    for p in disk.glob(".*.tmp"): p.unlink()
    (careful,) = crowd(on, ("activations into a file", disk, True))
    assert careless == (None, signal.SIGBUS) and careful[0] is False and clear(careful[1]) and [p.name for p in disk.glob("*.npy")] == []
    (disk / "filler").unlink()
    assert crowd(run, ("activations into a file", disk)) == [(True, want)]


@each_job
def test_jobs_on_a_small_disk(crowd, fresh, disk, model, job):
    (_, want), = crowd(run, (job, fresh("whole")))
    make_wheel(disk)
    (disk / "model").symlink_to(model)
    fill(disk / "filler", 4096)
    (answer,) = crowd(run, (job, disk))
    (disk / "filler").unlink()
    assert judged(crowd, job, disk, want, answer) == []


# --- who may only read
@pytest.fixture
def place(model):
    "A folder that other users can reach"
    folder = Path(tempfile.mkdtemp())
    os.chmod(folder, 0o755)
    yield folder
    for p in [folder, *folder.rglob("*")]:
        if p.is_dir() and not p.is_symlink(): os.chmod(p, 0o755)
    shutil.rmtree(folder)


def only_read(folder):
    for p in [*folder.rglob("*"), folder]:
        if not p.is_symlink(): os.chmod(p, 0o555 if p.is_dir() else 0o444)


def reading(job, folder, *more):
    "As a user without rights there; every try to change something is an error"
    if not os.geteuid(): os.setgid(65534), os.setuid(65534)
    tries = []
    sys.addaudithook(lambda event, args: tries.append((event, str(args[0]))) if event in CHANGES or event == "open" and isinstance(args[2], int) and args[2] & (os.O_WRONLY | os.O_RDWR | os.O_CREAT) else None)
    return (READS | JOBS)[job](folder, *more), [t for t in tries if t[1].startswith(str(folder))]


def load(folder):
    "Splits of an artifact, and of the kind that is an arrow file"
    os.environ["DATACENTRIC_W2S_CACHE"] = str(folder / "cache")
    wheel = folder / "wheels/toy_data-1.0-py3-none-any.whl"
    artifacts.ARTIFACTS["toy"] = toy(wheel, members=("toy_data/rows/", "toy_data/arrow/"))
    artifacts._download = lambda a, tmp: wheel
    rows = [data._arrow_of(artifacts.artifact("toy"))] if hasattr(data, "_arrow_of") else [data._hf().Dataset.from_file(str(artifacts.artifact("toy") / "arrow/data-00000-of-00001.arrow"))]
    data.REGISTRY["embedded", "toy"] = data.DataSource("toy", "embedded", lambda: rows[0], data.text_formatter("{sentence}"))
    return [t.txt.tolist() for _, t in data.load_splits("toy", sizes=(20, 20, 10, 10)).items()]


READS = {"splits": load, "more texts": lambda folder: see(folder, [*TEXTS, "w1 w1 w1"]), "more cells": partial(sweep, seeds=4)}
READABLE = ["an artifact", "a rewritten model", "activations", "a sweep", "a session", "splits"]


def prepared(folder, model, tmp_path):
    "What jobs need, where other users can read it"
    make_wheel(folder)
    shutil.copytree(model, folder / "model")
    data._hf().Dataset.from_dict(dict(sentence=[f"text {i}" for i in range(200)], label=[i % 2 for i in range(200)])).save_to_disk(tmp_path / "arrow")
    make_wheel(folder / "wheels", extra=[("toy_data/arrow/data-00000-of-00001.arrow", next((tmp_path / "arrow").glob("*.arrow")).read_bytes())])
    return folder


def others_can_read(path): return all(p.stat().st_mode & 0o001 for p in Path(path).resolve().parents)


as_another_user = pytest.mark.skipif(hasattr(os, "geteuid") and not os.geteuid() and not all(others_can_read(m.__file__) for m in (files, np)),
                                     reason="the tests are root's, and what they import lies where no other user can read it")


@as_another_user
def test_what_is_complete_needs_no_right_to_write(crowd, place, model, tmp_path, tally):
    "Nor is anything tried that would need one"
    bad = []
    prepared(place, model, tmp_path)
    for job in READABLE:
        (_, want), = crowd(run_any, (job, place))
        only_read(place)
        before = hashed(place)
        (answer,) = crowd(reading, (job, place))
        if answer != (True, (want, [])) or hashed(place) != before: bad.append((job, answer, want))
        writable(place)
    tally("environment", "complete, and can only be read", len(READABLE), bad)


def run_any(job, folder): return (READS | JOBS)[job](folder)


def writable(folder):
    os.chmod(folder, 0o755)
    for p in folder.rglob("*"):
        if not p.is_symlink(): os.chmod(p, 0o755 if p.is_dir() else 0o644)


INCOMPLETE = [*[j for j in JOBS], "more texts", "more cells"]


@as_another_user
def test_what_is_not_complete_says_what_to_do(crowd, place, model, tmp_path, tally):
    "No rights in a folder that is empty, and in one that holds a part"
    bad = []
    prepared(place, model, tmp_path)
    for job in INCOMPLETE:
        if job in READS: crowd(run_any, (dict(zip(READS, ["", "activations", "a sweep"]))[job], place))
        only_read(place)
        (answer,) = crowd(reading, (job, place))
        if answer[0] is not False or not clear(answer[1]) or "right" not in answer[1] and "Permission" not in answer[1]: bad.append((job, answer))
        writable(place)
    tally("environment", "incomplete, and no right to write", len(INCOMPLETE), bad)


def unreadable(job, folder):
    if not os.geteuid(): os.setgid(65534), os.setuid(65534)
    return JOBS[job](folder)


def test_a_cache_that_can_not_be_entered(crowd, place, model, tmp_path, tally):
    prepared(place, model, tmp_path)
    writable(place)
    (place / "cache").mkdir()
    os.chmod(place / "cache", 0)
    answers = crowd(unreadable, *[(job, place) for job in ("an artifact", "a rewritten model", "activations")])
    os.chmod(place / "cache", 0o755)
    tally("environment", "a cache that can't be entered", 3, [a for a in answers if a[0] is not False or not clear(a[1])])


# --- a file where a folder should be
@pytest.mark.parametrize("where", ["cache", "results"])
def test_a_file_where_a_folder_should_be(crowd, fresh, where):
    (folder := fresh("a")).joinpath(where).write_text("")
    jobs = dict(cache=["an artifact", "a rewritten model", "activations"], results=["a sweep"])[where]
    for answer in crowd(run, *[(job, folder) for job in jobs]): assert answer[0] is False and clear(answer[1]), answer
    assert (folder / where).read_text() == ""


# --- long paths
def deep(folder, size):
    "A folder whose path has about so many bytes"
    while len(os.fsencode(folder)) < size: folder = folder / ("d" * max(1, min(200, size - len(os.fsencode(folder)) - 1)))
    return folder


@pytest.mark.parametrize("size", [3000, 3900, 4040, 4094])
def test_a_path_at_the_limit_of_the_system(crowd, fresh, tally, size):
    "It works, or says that the name is too long; and leaves nothing half"
    bad, base = [], fresh("base")
    for job in ("an artifact", "activations", "a sweep", "a session", "a CSV file"):
        (_, want), = crowd(run, (job, fresh(job)))
        (answer,) = crowd(run_deep, (job, base, size))
        if answer != (True, want) and not (answer[0] is False and "too long" in answer[1] and clear(answer[1])) or size == 3000 and not answer[0]: bad.append((job, size, str(answer)[:300], str(answer)[-300:]))
    tally("environment", f"paths of {size} bytes", 5, bad + litter(base))


def run_deep(job, folder, size):
    at = deep(folder / job.replace(" ", "-"), size)
    os.makedirs(at)
    os.link(folder / "toy_data-1.0-py3-none-any.whl", folder / f"{job}.whl")
    fetching = {"an artifact": lambda: fetch_to(folder, at), "activations": lambda: see(folder, cache=at / "cache")}
    return fetching.get(job, lambda: JOBS[job](at))()


def fetch_to(folder, at):
    os.environ["DATACENTRIC_W2S_CACHE"] = str(at)
    artifacts._download = lambda a, tmp: folder / "toy_data-1.0-py3-none-any.whl"
    return hashed(artifacts.artifact(toy(folder / "toy_data-1.0-py3-none-any.whl")))


@pytest.mark.parametrize("name", ["x" * 255, "ü" * 127, "\udcff" * 255], ids=["255 letters", "254 bytes", "no text"])
def test_names_of_255_bytes(tmp_path, model, name):
    s = Session(plan_of(horizon=3), tmp_path / name)
    while query := s.ask(): buy(s, query)
    assert len(Session.restore(tmp_path / name).log) == 3
    commands._save(pd.DataFrame(dict(x=[1])), tmp_path / (name[:120] + ".csv"))
    if not name.startswith("\udcff"):
        shutil.copytree(model, tmp_path / "m" / name)
        assert A.activations(["w1"], tmp_path / "m" / name, layer=1, cache=tmp_path / "cache", progress=False).shape == (1, 32)
    assert litter(tmp_path) == []


LONG = "x" * 5000


@pytest.mark.parametrize("call, error, said", [
    (lambda: data.load_splits(LONG), ValueError, "dataset: got"), (lambda: data.load_splits(LONG + ".csv"), FileNotFoundError, "no such file"), (lambda: data.load_splits(Path(LONG + ".csv")), FileNotFoundError, "no such file"),
    (lambda: A.language_model(LONG + ".gguf"), ValueError, "no folder or file"), (lambda: A.language_model(Path(LONG)), ValueError, "no folder or file"), (lambda: A.language_model("a/" * 3000), ValueError, "no folder or file")], ids=range(6))
def test_names_of_thousands_of_characters(call, error, said, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(error, match=said) as e: call()
    assert len(str(e.value)) < 3000


def test_a_sweep_over_a_name_of_thousands_of_characters(tmp_path):
    cells = grid([LONG, LONG + "y", LONG + ".csv"], 1, "toy")
    assert set(run_cells(cells, tmp_path, measure, progress=False).status) == {"computed"} and set(run_cells(cells, tmp_path, measure, progress=False).status) == {"kept"}


def test_a_command_told_of_a_long_file(capsys):
    for words in (["sciq", "--out", f"/{LONG}/x.csv"],):
        with pytest.raises(SystemExit) as e: commands.w2s_detect(words)
        assert e.value.code == 2 and "in a folder that exists" in capsys.readouterr().err
    with pytest.raises(ValueError, match="in a folder that exists"): A._npy(f"/{LONG}/x.npy")


# --- clocks
def jumping(job, folder, stamps=None):
    "Clocks that leap by years, forth and back, and count below zero"
    now, at = time.time(), [0]

    def wall(): at[0] += 1; return now + (-1) ** at[0] * 3e8 * (at[0] % 5)
    def counter(): at[0] += 1; return -1e6 + (-1) ** at[0] * 40 * (at[0] % 5)
    time.time, time.perf_counter, results.perf_counter, tqdm.std.time = wall, counter, counter, wall
    sys.stderr = io.StringIO()  # bars are drawn
    A.tqdm = results.tqdm = partial(tqdm.tqdm, disable=False, mininterval=0, miniters=1)
    return JOBS[job](folder)


@each_job
def test_a_clock_that_jumps(crowd, fresh, tally, job):
    "While it works; and files from the future, from 1970 and from before are as good as any"
    (_, want), = crowd(run, (job, fresh("whole")))
    folder = fresh("a")
    bad = [a for a in crowd(jumping, (job, folder)) if a != (True, want)]
    for stamp in (4e9, 1., 0., -1e9):
        for p in folder.rglob("*"):
            if not p.is_symlink(): os.utime(p, (stamp, stamp))
        before = hashed(folder)
        bad += [(stamp, a) for a in crowd(jumping if stamp else run, (job, folder)) if a != (True, want)] + [(stamp, "written again")] * (hashed(folder) != before)
    tally("environment", f"{job}: clocks jump, files from the future and from 1970", 5, bad + litter(folder))


def test_a_change_is_seen_whatever_the_clock_says(crowd, tmp_path):
    "A hash is not remembered for a file whose time is that of another clock"
    assert crowd(hash_often, (tmp_path / "a",)) == [(True, [])]


def hash_often(path):
    now, bad = time.time(), []
    for k in range(40):
        time.time = lambda: now + (k % 3 - 1) * 1e9 if k % 3 < 2 else now
        path.write_text(f"{k:4}")
        if files.sha256(path) != hashlib.sha256(f"{k:4}".encode()).hexdigest(): bad.append(k)
        os.utime(path, (now + 1e9,) * 2)
        files.sha256(path)
    return bad


def test_times_are_measured_with_any_counter(monkeypatch):
    ticks = iter(np.arange(-5e5, 0, .3).tolist())
    monkeypatch.setattr(time, "perf_counter", lambda: next(ticks))
    times, out = performance.race([("a", lambda: 1), ("b", lambda: 2)], 2)
    assert out == [1, 2] and np.allclose(times.seconds, .3) and performance._fastest(lambda: 0, 1, "cpu") == pytest.approx(.3)
