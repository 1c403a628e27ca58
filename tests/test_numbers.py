"Numbers: overflow is caught, ties have stated results, a seed decides all that is drawn, and nothing global is read or changed."
import ast
import importlib
import inspect
import locale
import os
import pkgutil
import random
import signal
import subprocess
import sys
import tempfile
import warnings
from contextlib import ExitStack
from dataclasses import fields, is_dataclass, replace
from functools import lru_cache
from pathlib import Path
from unittest.mock import patch

import matplotlib
import numpy as np
import pandas as pd
import pytest
import torch
from threadpoolctl import threadpool_info

import datacentric_w2s
from datacentric_w2s import activations as activations_module
from datacentric_w2s import cluster, data, detection, matching, mixing, natural, performance, probes, ranking, regret, results, rewards, scores, selection, sharing, stopping, sweeps, theory
from datacentric_w2s.activations import activations
from datacentric_w2s.core import KINDS, Labelled, Partition, Problem, Pseudolabels, Splits, Texts, Views
from datacentric_w2s.detection import change_point, detect, detect_like, detect_overlap, overlap_score
from datacentric_w2s.probes import KNNProbe, LinearProbe, TopologicalProbe, evaluate, pseudolabel
from datacentric_w2s.session import Plan, Session

# ---------------------------------------------------------------- small cases

D = 6
MIX = theory.Mixture(.6 * np.ones(D), .6 * np.ones(D), 1., tau2=.1)


@lru_cache
def case():
    "A small problem whose rows come in pairs, its accuracies and its partition"
    p = theory.mixture_problem(MIX, (60, 60, 60), seed=0)
    p = replace(p, w2s=replace(p.w2s, group=np.arange(180) // 2), test=replace(p.test, group=np.arange(180) // 2))
    acc = evaluate(p)
    return p, acc, detect(p, acc.pseudolabels)


def toy_texts(name, n): return Texts(name, np.array([f"{name} {i // 2} {'yes' if i % 2 else 'no'}" for i in range(n)], object), np.arange(n) % 2, np.arange(n) // 2)


def noisy_texts():
    rng = np.random.default_rng(5)
    return replace(toy_texts("a", 60), txt=np.array([" ".join(f"w{j}" for j in rng.integers(0, 9, rng.integers(2, 9))) for _ in range(60)], object))


def toy_view(texts, d=5): return np.array([np.random.default_rng([sum(t.encode()), d]).normal(size=d) for t in texts], np.float32)


def toy_activations(texts, model, layer=None, **_): return toy_view(getattr(texts, "txt", texts), 4 if layer == 0 else 5)


@lru_cache
def toy_splits(): return Splits(*(toy_texts("home", 280)[a:b] for a, b in ((0, 100), (100, 200), (200, 220), (220, 280))))


@lru_cache
def toy_problem():
    "Four splits of toy texts, with features made of the texts"
    with toy_models(): v = [natural.both_views(t, replace(theory.MIXTURE, strong_layer=1)) for _, t in toy_splits().items()]
    return Problem(Labelled(v[0].x_weak, v[0].y), *v[1:], replace(theory.MIXTURE, strong_layer=1))


def toy_models():
    "No language model and no data set is needed: made-up ones stand in their places"
    stack = ExitStack()
    stack.enter_context(patch.multiple(natural, activations=toy_activations, _texts=lambda name, preset, rows: toy_texts(name, 120)))
    stack.enter_context(patch.object(activations_module, "activations", toy_activations))
    return stack


def arms(): return regret.Arms(np.array([3., 0, 5]), np.array([30., 0, 50]), np.array([12., 0, 9]), 10, 40)


def files(): return {k: list(toy_texts(k, 60).txt) for k in ("a", "b", "c")}


def say(texts): return Pseudolabels(np.random.default_rng(len(texts[0])).permutation(np.linspace(.02, .98, len(texts))))


def own_frame(): return pd.DataFrame(dict(txt=toy_texts("own", 80).txt, label=np.arange(80) % 2))


def cells(): return pd.DataFrame([dict(dataset=d, seed=s, source=f"s{k}", own=k == 0, student=.5 + .1 * np.sin(7 * k + s + len(d))) for d in ("x", "yy") for s in range(4) for k in range(5)])


def written_table(seed):
    with tempfile.TemporaryDirectory() as d: return theory.write_table(d, "t", cells().head(3), runs=2, seed=seed), Path(d, "t.csv").read_text()


def played(seed, policy="thompson", reward="recount"):
    "All that a session says"
    p, acc, _ = case()
    session = Session(Plan(["a", "b"], policy, reward, 12, 8, seed=seed))
    while q := session.ask():
        rows = np.arange(len(session.ids), len(session.ids) + q.rows)
        session.tell(q.source, acc.pseudolabels[rows], p.w2s.x_strong[rows])
    return session.log, session.rows, session.estimates(), session.table()


W = lambda: (case()[0], case()[2], case()[1].pseudolabels)  # problem, partition, pseudolabels
PL = lambda: (case()[0], case()[1].pseudolabels)
SOURCES = lambda: selection.make_sources(case()[2], (.2, .8), 0)
TINY = dict(names=("away", "there"), n=60, rows=100, progress=False)
COSTS = lambda: np.array([1., 2.])

# every public function with a parameter of chance: name -> a small call with a seed; a new one that is missing here fails a test
SEEDED = {
    "cluster.detect_ranges": lambda s: cluster.detect_ranges(PL()[1].p, PL()[0].w2s.x_strong, references=.5, seed=s, rows=50),
    "data.split_texts": lambda s: [t for _, t in data.split_texts(toy_texts("a", 80), (.3, .3, .2, .2), s).items()],
    "data.load_splits": lambda s: [t for _, t in data.load_splits(own_frame(), sizes=(.3, .3, .2, .2), seed=s).items()],
    "data.leak_check": lambda s: data.leak_check(noisy_texts(), s, rows=40),
    "detection.detection_cell": lambda s: detection.detection_cell(case()[0], seed=s),
    "detection.strong_map": lambda s: detection.strong_map(case()[0].w2s.x_strong, seed=s),
    "matching.composed_subsets": lambda s: matching.composed_subsets(*W()[1:], subsets=5, seed=s),
    "matching.composition_regression": lambda s: matching.composition_regression(*W(), subsets=8, seed=s),
    "matching.stratified_difference": lambda s: matching.stratified_difference(*W(), strata=2, draws=2, seed=s),
    "matching.matching_cell": lambda s: matching.matching_cell(case()[0], None, s, subsets=8),
    "matching.draw_patterns": lambda s: matching.draw_patterns(case()[0].w2s, np.random.default_rng(s), effect_easy=1., effect_hard=1., components=3),
    "matching.plant": lambda s: matching.plant(case()[0].w2s, matching.Patterns(np.ones(D), np.ones(2 * D), np.ones(2 * D)), (1, 1, 1), np.random.default_rng(s)),
    "matching.planted_problem": lambda s: matching.planted_problem(case()[0], s, effect_easy=1., effect_hard=1.),
    "matching.resplit": lambda s: matching.resplit(case()[0].w2s, replace(theory.MIXTURE, sizes=(.3, .3, .2, .2)), s),
    "matching.planted_study": lambda s: matching.planted_study(case()[0].w2s, replace(theory.MIXTURE, sizes=(.3, .4, .1, .2)), s, effect_easy=1., effect_hard=1., shares=(1, 1, 1), redraws=2, subsets=0),
    "mixing.mix_rows": lambda s: mixing.mix_rows(case()[2], .5, np.random.default_rng(s)),
    "mixing.mixing_curve": lambda s: mixing.mixing_curve(*W(), shares=(0, .5), seeds=[s]),
    "mixing.reference_lines": lambda s: mixing.reference_lines(*case()[:2], 20, seed=s),
    "mixing.equal_size_controls": lambda s: mixing.equal_size_controls(*W(), seeds=[s]),
    "mixing.accuracy_by_test_kind": lambda s: mixing.accuracy_by_test_kind(case()[0], case()[2], case()[1], seed=s),
    "mixing.mixing_cell": lambda s: mixing.mixing_cell(case()[0], None, s, draws=1),
    "mixing.threshold_map": lambda s: mixing.threshold_map(*PL(), (.4,), (.4, .6), seed=s),
    "natural.draw_questions": lambda s: natural.draw_questions(np.arange(40) // 2, 9, np.random.default_rng(s)),
    "natural.natural_sources": lambda s: natural.natural_sources(toy_splits(), toy_problem(), seed=s, **TINY),
    "natural.Market": lambda s: natural.natural_market(toy_splits(), toy_problem(), seed=s, **TINY),
    "natural.natural_market": lambda s: natural.natural_market(toy_splits(), toy_problem(), seed=s, **TINY).halves[0][1],
    "natural.rotated": lambda s: natural.rotated(np.arange(1., 6), .3, np.random.default_rng(s)),
    "natural.shifted_market": lambda s: natural.shifted_market(MIX, dict(a=(1, .5, (20, 20, 20)), b=(0, 1, (20, 20, 20))), (30, 30, 30), s),
    "natural.held_out": lambda s: natural.held_out(toy_problem().w2s, [toy_problem().test], lambda x, y: LinearProbe(.1).fit(x, y), s),
    "natural.natural_cell": lambda s: natural.natural_cell(toy_problem(), toy_splits(), s, **TINY),
    "natural.reliability": lambda s: natural.reliability(cells(), halvings=5, seed=s),
    "natural.rank_power": lambda s: natural.rank_power(.5, 6, 4, .8, runs=50, seed=s),
    "natural.detectable": lambda s: natural.detectable(6, 4, .8, runs=50, seed=s),
    "natural.again_cell": lambda s: natural.again_cell(toy_problem(), toy_splits(), s, **TINY),
    "natural.buy": lambda s: natural.buy(natural.natural_market(toy_splits(), toy_problem(), **TINY), natural.density_reward, regret.thompson_index, batch=5, rounds=6, seed=s),
    "natural.bandit_cell": lambda s: natural.bandit_cell(toy_problem(), toy_splits(), s, **TINY),
    "performance.plain_selection": lambda s: performance.plain_selection(*PL(), SOURCES(), ["source 0 (share 0.2)"] * 2, l2=1., standardize=False, seed=s),
    "ranking.text_teacher": lambda s: ranking.text_teacher(toy_texts("a", 80), toy_view, seed=s),
    "ranking.rank_sources": lambda s: vars(ranking.rank_sources(files(), say, toy_view, 80, batch=5, policy="thompson", seed=s, progress=False)),
    "ranking.try_sources": lambda s: ranking.try_sources(files(), toy_texts("a", 80), toy_view, 30, weak=toy_view, seed=s),
    **{f"regret.{n}_index": lambda s, n=n: getattr(regret, f"{n}_index")(arms(), np.random.default_rng(s))
       for n in ("ucb", "reference_ucb", "batch_ucb", "kl_ucb", "thompson", "random", "round_robin", "explore_then_commit")},
    "regret.bandit": lambda s: regret.bandit("thompson", [.1, .3], 5, 20, 3, seed=s),
    "results.Cell": lambda s: results.Cell("sciq", s, "accuracies"),
    "results.grid": lambda s: results.grid("sciq", [s], "accuracies"),
    "results.accuracies_cell": lambda s: results.accuracies_cell(toy_problem(), toy_splits(), s),
    "scores.group_folds": lambda s: scores.group_folds(np.arange(40) // 2, 5, s),
    "scores.projection_score": lambda s: scores.projection_score(case()[0].w2s.x_weak, case()[0].w2s.x_strong, PL()[1].p, case()[0].w2s.group, seed=s),
    "scores.row_scores": lambda s: [scores.row_scores(*PL(), how, partition=case()[2], seed=s) for how in scores.SCORES],
    "scores.bin_accuracies": lambda s: scores.bin_accuracies(*PL(), np.arange(180) // 60, 3, seed=s),
    "scores.compare_scores": lambda s: scores.compare_scores(*PL(), scores=("confidence", "random"), bins=3, draws=2, seed=s),
    "scores.scores_cell": lambda s: scores.scores_cell(case()[0], None, s),
    "selection.make_sources": lambda s: selection.make_sources(case()[2], seed=s),
    "selection.run_selection": lambda s: [selection.run_selection(*PL(), SOURCES(), p, truth=case()[2], rounds=4, seed=s, reward=r) for p, r in (("thompson", "recount"), ("random", "published"))],
    "selection.published_run": lambda s: selection.published_run(*PL(), case()[2], "overlap only", seed=s, every=10),
    "session.Plan": played,
    "sharing.Provenance": lambda s: sharing.Provenance("sciq", "unknown", theory.MIXTURE, "w", "s", s, "0"),
    "sharing.provenance": lambda s: sharing.provenance("sciq", case()[0], seed=s, models=("w", "s")),
    "stopping.spend": lambda s: stopping.spend(regret.thompson_index, [.1, .3], COSTS(), 5, 100, 3, seed=s),
    "stopping.race_index": lambda s: stopping.race_index(arms(), np.random.default_rng(s)),
    "stopping.until_known": lambda s: stopping.until_known(regret.thompson_index, [.1, .8], 5, 30, 3, seed=s),
    "sweeps.sweep_cell": lambda s: sweeps.sweep_cell(toy_problem(), toy_splits(), s, layers=(0,), poolings=("last",)),
    "theory.write_table": written_table,
    "theory.sample": lambda s: theory.sample(MIX, (10, 10, 10), np.random.default_rng(s)),
    "theory.Mixture.published": lambda s: theory.Mixture.published(np.random.default_rng(s)),
    "theory.mixture_problem": lambda s: theory.mixture_problem(MIX, (20, 20, 20), seed=s),
    "theory.published_experiment": lambda s: theory.published_experiment((10,), runs=2, seed=s),
}

# the main ones of those that draw nothing
PLAIN = {
    "change_point": lambda s: change_point(case()[2].conf),
    "range_change_point": lambda s: cluster.range_change_point(case()[2].conf, rows=50),
    "detect": lambda s: [detect(*PL(), p) for p in ("preset", "published", "published selection")],
    "detect_like": lambda s: detect_like(*W(), case()[0].w2s.x_strong),
    "overlap_score": lambda s: [overlap_score(*np.split(case()[0].w2s.x_strong, 2), how, center=c) for how in detection._SCORES for c in (False, True)],
    "overlap_score on torch": lambda s: overlap_score(*np.split(case()[0].w2s.x_strong, 2), device="cpu"),
    "evaluate": lambda s: evaluate(case()[0]),
    "probes": lambda s: [pseudolabel(p.fit(case()[0].w2s.x_strong, case()[0].w2s.y), case()[0].test.x_strong) for p in (LinearProbe(standardize=True), KNNProbe(5), TopologicalProbe(5))],
    "partial_fit": lambda s: LinearProbe(.1, True).partial_fit(PL()[0].w2s.x_strong[:90], PL()[0].w2s.y[:90]).partial_fit(PL()[0].w2s.x_strong[90:], PL()[0].w2s.y[90:]).coef_,
    "kind_table": lambda s: detection.kind_table(case()[2], PL()[1], case()[0].w2s.y),
    "neighbour_purity": lambda s: detection.neighbour_purity(case()[0].w2s.x_strong, case()[2].kind),
    "leave_out_effect": lambda s: scores.leave_out_effect(*PL()),
    "choose_l2": lambda s: mixing.choose_l2(*PL(), [np.arange(60)]),
    "matched_pairs": lambda s: mixing.matched_pairs(*W()[1:]),
    "session": lambda s: [played(0, p, r) for p, r in (("kl_ucb", "published"), ("batch_ucb", "warmup"))],
    "plots": lambda s: plotted(),
}


def plotted():
    "Figures are made and closed; nothing of them is compared"
    import matplotlib.pyplot as plt
    fig, ax = plt.subplots(1, 4)
    detection.plot_change_point(case()[2].conf, ax[0]), detection.plot_split(case()[2].conf, .5, ("hard", "rest"), "confidence", ax[1])
    mixing.plot_mixing(mixing.mixing_curve(*W(), shares=(0, .5), seeds=[0, 1]), ax[2]), detection.plot_map(detection.strong_map(case()[0].w2s.x_strong), case()[2].kind, ax[3])
    plt.close(fig)


CALLS = SEEDED | PLAIN


@lru_cache
def large():
    "Rows enough for BLAS to divide them among threads"
    rng = np.random.default_rng(0)
    x = (rng.normal(size=(1600, 320)) * np.geomspace(3, .1, 320) + .5).astype(np.float32)
    return x, (x[:, 0] + rng.normal(size=1600) > .5).astype(float), Pseudolabels(1 / (1 + np.exp(-x[:, 1] - rng.normal(size=1600))))


LARGE = {
    "scores of many rows": lambda s: {how: overlap_score(large()[0][:1000], large()[0][1000:], how) for how in detection._SCORES},
    "kinds of many rows": lambda s: {how: detect_overlap(large()[2], large()[0], how=how) for how in detection._SCORES},
    "a probe of many rows": lambda s: {k: pseudolabel(LinearProbe(.1, k).fit(*large()[:2]), large()[0]).p for k in (True, False)},
    "a probe on all threads": lambda s: pseudolabel(LinearProbe(.1).fit(np.tile(large()[0], (1, 5)), large()[1]), np.tile(large()[0], (1, 5))).p,
    "neighbours of many rows": lambda s: scores.cut_statistic(large()[0], large()[1]),
    "projection of many rows": lambda s: scores.projection_score(large()[0][:, :50], large()[0], large()[1], np.arange(1600)),
}


# ---------------------------------------------------------------- what a result holds, and what the process holds

def leaves(v, name=""):
    "All that a result holds, as pairs of a name and an array"
    if isinstance(v, pd.DataFrame): v = {str(c): v[c] for c in v.columns}
    elif isinstance(v, (natural.Market, ranking.TextTeacher, LinearProbe, KNNProbe)): v = {k: w for k, w in vars(v).items() if not k.startswith("_")}
    elif is_dataclass(v): v = {f.name: getattr(v, f.name) for f in fields(v)}
    if isinstance(v, dict): yield from (leaf for k, w in v.items() for leaf in leaves(w, f"{name}/{k}"))
    elif isinstance(v, (list, tuple)) and not all(isinstance(w, (int, float, str)) for w in v): yield from (leaf for k, w in enumerate(v) for leaf in leaves(w, f"{name}/{k}"))
    elif v is not None and not callable(v) and type(v).__module__.split(".")[0] != "sklearn": yield name, plain_array(v)


def plain_array(v):
    "Numbers as they are, anything else as text"
    a = v.to_numpy() if hasattr(v, "to_numpy") else np.asarray(v)
    return a if a.dtype.kind in "biufU" else a.astype(str)


def held(name, seed=0):
    with toy_models(): return {f"{name}|{k}": a for k, a in leaves(CALLS[name](seed))}


def same(a, b): return a.dtype == b.dtype and a.shape == b.shape and a.tobytes() == b.tobytes()


def elsewhere(tmp_path, how, seed=0, **env):
    "All results from another process: in another order, with other global seeds, another hash seed, other threads"
    path = tmp_path / f"{how}.npz"
    subprocess.run([sys.executable, __file__, path, how, str(seed)], check=True, timeout=900, env=os.environ | {"PYTHONHASHSEED": "11"} | env, cwd=tmp_path)
    with np.load(path) as f: return {k: f[k] for k in f.files}


def main(path, how, seed):
    random.seed(7), np.random.seed(7), torch.manual_seed(7)
    extra = {}
    if how == "other threads":
        CALLS.update(LARGE)
        extra["threads of BLAS"] = min(i["num_threads"] for i in threadpool_info() if i["user_api"] == "blas")
    np.savez(path, **extra, **{k: v for name in reversed(CALLS) for k, v in held(name, int(seed)).items()})


def world():
    "The global state that a library might change"
    from pandas._config import config
    from transformers.utils import logging
    return dict(numpy=str([*map(str, np.random.get_state(legacy=False).values())]) + str(np.random.get_state()[1].tolist()), random=random.getstate(), torch=torch.random.get_rng_state().tolist(),
                warnings=list(warnings.filters), errors=np.geterr(), prints=np.get_printoptions(), pandas={k: pd.get_option(k) for k in config._registered_options if k not in config._deprecated_options},
                matplotlib={k: str(v) for k, v in matplotlib.rcParams.items()}, backend=matplotlib.get_backend(), dtype=torch.get_default_dtype(), threads=torch.get_num_threads(),
                blas=[(i["filepath"], i["num_threads"]) for i in threadpool_info()], grad=torch.is_grad_enabled(), inference=torch.is_inference_mode_enabled(), precision=torch.get_float32_matmul_precision(),
                deterministic=torch.are_deterministic_algorithms_enabled(), env=dict(os.environ), folder=os.getcwd(), locale=locale.setlocale(locale.LC_ALL), path=list(sys.path),
                signals={s: signal.getsignal(s) for s in signal.valid_signals()}, hook=sys.excepthook, recursion=sys.getrecursionlimit(),
                verbosity=logging.get_verbosity(), bars=logging.is_progress_bar_enabled())


def changed(before, after): return [k for k in before if before[k] != after[k]]



# ---------------------------------------------------------------- a seed decides all that is drawn

CHANCE = {"seed", "seeds", "rng", "random_state"}


def takes_chance(f):
    try: return bool(CHANCE & set(inspect.signature(f).parameters))
    except (TypeError, ValueError): return False  # an object without a signature


def of_chance(module):
    "Public functions, classes and methods of a module with a parameter of chance"
    for name in getattr(module, "__all__", []):
        thing = getattr(module, name)
        if callable(thing) and takes_chance(thing): yield name
        if inspect.isclass(thing): yield from (f"{name}.{k}" for k in vars(thing) if not k.startswith("_") and callable(getattr(thing, k)) and takes_chance(getattr(thing, k)))


def test_every_public_function_with_a_seed_is_called_here():
    modules = [importlib.import_module(f"datacentric_w2s.{m.name}") for m in pkgutil.iter_modules(datacentric_w2s.__path__) if not m.name.startswith("_")]
    found = {f"{m.__name__.split('.')[1]}.{name}" for m in modules for name in of_chance(m)}
    assert found == set(SEEDED), f"without a call: {sorted(found - set(SEEDED))}; called, but not there: {sorted(set(SEEDED) - found)}"


def test_the_same_seed_gives_the_same_bit_by_bit_in_any_order_and_process(tmp_path, effort, tally):
    tried, failed = 0, []
    for seed in range(max(1, round(effort))):
        here = {k: v for name in CALLS for k, v in held(name, seed).items()}
        there = elsewhere(tmp_path, "another order", seed)
        failed += [(seed, k) for k in here.keys() | there.keys() if k not in here or k not in there or not same(here[k], there[k])]
        tried += len(here)
    tally("numbers", "same seed, in another process, order and global seed: arrays and columns, bit by bit", tried, failed)


def test_another_seed_gives_something_else():
    "Else the comparison above would be of constants"
    alike = [name for name in SEEDED if all(same(a, b) for a, b in zip(held(name, 0).values(), held(name, 1).values()))]
    assert set(alike) == {"detection.strong_map", "regret.ucb_index", "regret.reference_ucb_index", "regret.batch_ucb_index", "regret.kl_ucb_index", "regret.round_robin_index",
                          "regret.explore_then_commit_index", "stopping.race_index", "sweeps.sweep_cell", "results.accuracies_cell"}  # these say that they draw nothing


TOLERANCE = 1e-5  # of float32 sums; relative to 1 or to the number


def apart(a, b):
    "Largest difference, relative to 1 or to the number; infinite where something else differs"
    if a.dtype.kind != "f" or a.shape != b.shape: return 0. if same(a, b) else np.inf
    if not np.array_equal(np.isfinite(a), np.isfinite(b)): return np.inf
    ok = np.isfinite(a)
    return float((np.abs(a[ok] - b[ok]) / np.maximum(np.abs(a[ok]), 1)).max(initial=0.))


def excused(here, k, other):
    "Whether kinds differ only where a score or a confidence is within the tolerance of its threshold"
    stem = k.removesuffix("/kind")
    t_hard, t_overlap, conf, score = (here[f"{stem}/{v}"] for v in ("t_hard", "t_overlap", "conf", "score"))
    near = (np.abs(conf - t_hard) <= TOLERANCE) | (np.abs(score - t_overlap) <= TOLERANCE * max(1, abs(t_overlap)))
    return near[here[k] != other].all()


def test_two_threads_give_the_same_within_the_tolerance(tmp_path, tally):
    with patch.dict(CALLS, LARGE): here = {k: v for name in CALLS for k, v in held(name).items()}
    two = elsewhere(tmp_path, "other threads", OMP_NUM_THREADS="2", OPENBLAS_NUM_THREADS="2", MKL_NUM_THREADS="2")
    if two.pop("threads of BLAS") != 2: pytest.skip("BLAS takes no second thread here, as on one core")
    failed = [(k, apart(a, two[k])) for k, a in here.items() if apart(a, two[k]) > TOLERANCE and not (k.endswith("/kind") and excused(here, k, two[k])) and not k.endswith("/rule")]
    moved = max((apart(a, two[k]), k) for k, a in here.items() if np.isfinite(apart(a, two[k])))
    print(f"largest difference on two threads: {moved[0]:.1e} ({moved[1]}); {sum(not same(a, two[k]) for k, a in here.items())} of {len(here)} differ at all")
    tally("numbers", "one and two threads: arrays and columns within 1e-5", len(here), failed)


@pytest.fixture(scope="module")
def llama(tmp_path_factory):
    from test_activations import CONFIGS, save
    return save(tmp_path_factory.mktemp("llama"), CONFIGS["llama"]())


def test_activations_on_two_threads(llama):
    from test_activations import some_texts
    before, out = torch.get_num_threads(), []
    for n in (1, 2):
        torch.set_num_threads(n)
        try: out.append(activations(some_texts(40), llama, layer=3, cache=False, progress=False))
        finally: torch.set_num_threads(before)
    assert apart(*out) < TOLERANCE


# ---------------------------------------------------------------- nothing global is read or changed

@pytest.fixture
def global_seeds():
    "Global seeds of this test alone"
    kept = np.random.get_state(), random.getstate(), torch.random.get_rng_state()
    np.random.seed(3), random.seed(3), torch.manual_seed(3)
    yield
    np.random.set_state(kept[0]), random.setstate(kept[1]), torch.random.set_rng_state(kept[2])


def test_no_global_state_is_read_or_changed(global_seeds, llama, tally):
    "That none is read, the comparison with another process says, whose global seeds are others"
    from test_activations import some_texts
    for name in CALLS: held(name)  # whatever a first call imports is imported
    more = {"activations": lambda: activations(some_texts(6), llama, layer=2, cache=False, progress=False)}
    more["activations"]()
    failed, tried = [], 0
    for name in [*CALLS, *more]:
        before = world()
        more[name]() if name in more else held(name)
        failed += [(name, k) for k in changed(before, world())]
        tried += len(before)
    tally("numbers", "global state (seeds, filters, options, threads, environment, ...) after each public call", tried, failed)


MEDDLERS = dict(numpy=lambda: np.random.random(), random=lambda: random.random(), torch=lambda: torch.rand(1), warnings=lambda: warnings.simplefilter("ignore"), errors=lambda: np.seterr(over="ignore"),
                prints=lambda: np.set_printoptions(precision=3), pandas=lambda: pd.set_option("display.max_rows", 7), matplotlib=lambda: matplotlib.rcParams.update({"lines.linewidth": 7}),
                dtype=lambda: torch.set_default_dtype(torch.float64), grad=lambda: torch.set_grad_enabled(False), env=lambda: os.environ.update(MEDDLED="1"), folder=lambda: os.chdir("/"),
                signals=lambda: signal.signal(signal.SIGTERM, signal.SIG_IGN), path=lambda: sys.path.append("/meddled"), threads=lambda: torch.set_num_threads(torch.get_num_threads() + 1))


@pytest.mark.parametrize("key", MEDDLERS)
def test_the_comparison_sees_a_meddler(global_seeds, key):
    before, precision = world(), np.get_printoptions()
    with warnings.catch_warnings(), np.errstate(), pd.option_context("display.max_rows", 60), matplotlib.rc_context():
        before = before | dict(pandas=world()["pandas"])
        try:
            MEDDLERS[key]()
            assert key in changed(before, world())
        finally:
            np.set_printoptions(**precision), torch.set_default_dtype(torch.float32), torch.set_grad_enabled(True), os.environ.pop("MEDDLED", None), os.chdir(before["folder"])
            torch.set_num_threads(before["threads"]), signal.signal(signal.SIGTERM, before["signals"][signal.SIGTERM])
            if "/meddled" in sys.path: sys.path.remove("/meddled")


GLOBAL = ("np.seterr", "np.set_printoptions", "pd.set_option", "torch.manual_seed", "torch.seed", "torch.rand", "torch.randn", "torch.randint", "torch.randperm", "torch.set_default_dtype",
          "torch.set_default_device", "torch.set_grad_enabled", "torch.use_deterministic_algorithms", "os.chdir", "os.putenv", "locale.setlocale", "warnings.simplefilter", "warnings.filterwarnings", "matplotlib.use", "plt.style.use")
LOCALLY = ("fork_rng", "catch_warnings")  # inside a `with` of these a change ends with it


def global_uses(code):
    "Where code draws from, or sets, what the whole process shares: (line, what)"
    def look(node, inside):
        if isinstance(node, ast.With): inside = inside or any(k in ast.unparse(i.context_expr) for i in node.items for k in LOCALLY)
        if isinstance(node, (ast.Import, ast.ImportFrom)):
            if {"random"} & {*(a.name for a in node.names if isinstance(node, ast.Import)), getattr(node, "module", None)} or getattr(node, "module", None) == "numpy.random": yield node.lineno, ast.unparse(node)
        if isinstance(node, ast.Attribute):
            if ast.unparse(node.value) in ("np.random", "numpy.random") and node.attr not in ("default_rng", "Generator") or node.attr == "rcParams": yield node.lineno, ast.unparse(node)
        if isinstance(node, ast.Call) and ast.unparse(node.func) in GLOBAL and not inside and not any(k.arg == "generator" for k in node.keywords): yield node.lineno, ast.unparse(node.func)
        for child in ast.iter_child_nodes(node): yield from look(child, inside)
    return list(look(ast.parse(code), False))


def test_no_code_draws_from_or_sets_what_the_process_shares(tally):
    paths = sorted(Path(datacentric_w2s.__path__[0]).glob("*.py"))
    tally("numbers", "modules without a draw from, or a change of, global state in their code", len(paths), [(p.name, *use) for p in paths for use in global_uses(p.read_text(encoding="utf-8"))])


@pytest.mark.parametrize("code", ["np.random.seed(0)", "x = np.random.normal(size=3)", "import random", "from random import choice", "from numpy.random import rand", "torch.manual_seed(0)", "torch.randn(3)",
                                  "np.seterr(all='ignore')", "warnings.simplefilter('ignore')", "plt.rcParams['a'] = 1", "def f():\n    os.chdir('/')", "pd.set_option('a', 1)"])
def test_the_reading_of_code_sees_each(code):
    assert global_uses(code)
    assert not global_uses("rng = np.random.default_rng(0)\nwith torch.random.fork_rng(): torch.manual_seed(0)\ntorch.randn(3, generator=g)\nwith warnings.catch_warnings(): warnings.simplefilter('ignore')")


# ---------------------------------------------------------------- overflow, and what is no number

def scaled(folder, to, by, dtype=None):
    "The toy model with its embeddings times a number, perhaps kept in half precision"
    from transformers import AutoModel, AutoTokenizer
    model = AutoModel.from_pretrained(folder)
    with torch.no_grad(): model.embed_tokens.weight *= by
    (model if dtype is None else model.to(dtype)).save_pretrained(to)
    AutoTokenizer.from_pretrained(folder).save_pretrained(to)
    return to


@pytest.mark.parametrize("by, kept, dtype", [(1e39, None, "float32"), (1e39, None, "bfloat16"), (1e7, torch.float16, "float32"), (1e7, torch.float16, "bfloat16")])
@pytest.mark.parametrize("pooling", ["last", "mean"])
def test_activations_that_overflow_are_refused_and_not_cached(llama, tmp_path, by, kept, dtype, pooling):
    "float16 ends at 65,504, the other two at 3.4e38; a checkpoint in float16 may hold infinities already"
    from test_activations import some_texts
    bad = scaled(llama, tmp_path / "bad", by, kept)
    with pytest.raises(ValueError, match=rf"bad: 4 of 4 activations at layer 2 in {dtype} are NaN or infinite .*they were not cached\. " + ("Try dtype='float32'" if dtype == "bfloat16" else "Check the model's weights")):
        activations(some_texts(4), bad, layer=2, dtype=dtype, pooling=pooling, cache=tmp_path / "cache", progress=False)
    assert not list((tmp_path / "cache").glob("*/*.safetensors"))


@pytest.mark.parametrize("dtype, gap", [("float32", 1e-5), ("bfloat16", .02)])
def test_activations_beyond_float16_are_right(llama, tmp_path, dtype, gap):
    "The first layer's residual stream grows with the embeddings: 1e7 times as large, it is their direction"
    from test_activations import some_texts
    x = activations(some_texts(9), scaled(llama, tmp_path / "far", 1e7), layer=1, dtype=dtype, cache=False, progress=False)
    e = activations(some_texts(9), llama, layer=0, cache=False, progress=False)
    unit = lambda a: a / np.linalg.norm(a.astype(float), axis=1, keepdims=True)
    assert np.abs(x).max() > 65_504 and np.abs(unit(x) - unit(e)).max() < gap


def test_float16_is_not_offered(llama):
    with pytest.raises(ValueError, match="dtype: got 'float16', wanted one of float32, bfloat16"): activations(["w1"], llama, dtype="float16", cache=False)


RNG = np.random.default_rng(0)
X, Y, P = RNG.normal(size=(60, 8)), np.arange(60) % 2, Pseudolabels(RNG.permutation(np.linspace(.01, .99, 60)))
KIND = np.array(KINDS)[RNG.integers(0, 3, 60)]
JUDGE = lambda x=None, **k: rewards.Judge(.3, .5, (X[:9] if x is None else x[:9]).astype(np.float32), **k)


def told(x, reward="recount"):
    session = Session(Plan(["a", "b"], reward=reward, batch=30))
    return [session.tell(s, P.conf[r], x[r]).kind for s, r in (("a", slice(0, 30)), ("b", slice(30, 60)))]


def ranked(x):
    at = lambda texts: np.array([int(t.split()[1]) for t in texts])
    return ranking.rank_sources({s: [f"{s} {i}" for i in range(k, 60, 2)] for k, s in enumerate("ab")}, lambda t: P[at(t)], lambda t: x[at(t)], 60, batch=10, reward="recount", progress=False).rows


# every public edge that takes features: name -> a function of 60 rows of them
EDGES = {
    "LinearProbe.fit": lambda x: LinearProbe(.1).fit(x, Y).coef_, "LinearProbe.fit, standardised": lambda x: LinearProbe(.1, True).fit(x, Y).coef_,
    "LinearProbe.partial_fit": lambda x: LinearProbe(.1).partial_fit(x, Y).coef_,
    "LinearProbe.predict": lambda x: LinearProbe(.1).fit(X, Y).predict(x), "LinearProbe.predict_proba": lambda x: LinearProbe(.1).fit(X, Y).predict_proba(x), "LinearProbe.score": lambda x: LinearProbe(.1).fit(X, Y).score(x, Y),
    "pseudolabel": lambda x: pseudolabel(LinearProbe(.1).fit(X, Y), x).p,
    "KNNProbe.fit": lambda x: KNNProbe(5).fit(x, Y).predict_proba(X), "KNNProbe.predict": lambda x: KNNProbe(5).fit(X, Y).predict(x), "TopologicalProbe.fit": lambda x: TopologicalProbe(5).fit(x, Y).kept_,
    "topological_filter": lambda x: probes.topological_filter(x, Y, k=5),
    **{f"overlap_score {how}": lambda x, how=how: overlap_score(x, X[:9].astype(np.float32), how) for how in (*detection._SCORES, lambda a, b: (a @ b.T).max(1))},
    **{f"overlap_score {how}, hard rows": lambda x, how=how: overlap_score(X[:9].astype(np.float32), x, how) for how in (*detection._SCORES, lambda a, b: (a @ b.T).max(1))},
    "overlap_score, centred": lambda x: overlap_score(x, X[:9].astype(np.float32), center=True),
    **{f"detect_overlap {how}": lambda x, how=how: detect_overlap(P, x, how=how).score for how in detection._SCORES}, "detect_overlap, centred": lambda x: detect_overlap(P, x, center=True).score,
    "strong_map": lambda x: detection.strong_map(x).to_numpy(), "neighbour_purity": lambda x: detection.neighbour_purity(x, KIND).purity.to_numpy(),
    "detect_ranges": lambda x: cluster.detect_ranges(P, x, rows=70).score,
    "cut_statistic": lambda x: scores.cut_statistic(x, Y, 5), "mixed_neighbours": lambda x: scores.mixed_neighbours(x, Y, 5), "topological_score": lambda x: scores.topological_score(x, P.p, 5),
    "projection_score, weak": lambda x: scores.projection_score(x, X, P.p, np.arange(60)), "projection_score, strong": lambda x: scores.projection_score(X, x, P.p, np.arange(60)),
    "Labelled": lambda x: Labelled(x, Y).x, "Views, weak": lambda x: Views(x, X, Y, np.arange(60)).x_weak, "Views, strong": lambda x: Views(X, x, Y, np.arange(60)).x_strong,
    "Judge.score": lambda x: JUDGE().score(P.conf, x), "Judge.flag": lambda x: JUDGE().flag(P.conf, x), "measured_rates": lambda x: rewards.measured_rates(P.conf, x, Y == 1)(JUDGE()),
    "Ledger.add": lambda x: rewards.Ledger(rewards.Reward("pooled"), 1).add(0, P, x).kind, "BatchDetector.flag": lambda x: rewards.BatchDetector(P.conf, x).flag(np.arange(60))[0],
    **{f"Session.tell {r}": lambda x, r=r: told(x, r)[0] for r in ("recount", "published")},
}
BY_BATCH = {"rank_sources": ranked, "Session.tell of later rows": lambda x: told(x)}  # they name the place in the batch


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_what_is_no_number_is_refused_and_its_row_named(value, effort, tally):
    "From row 2 on, as 1 is also the number of such rows"
    failed, tried, rng = [], 0, np.random.default_rng(0)
    for name, f in (EDGES | BY_BATCH).items():
        for row in 2 + rng.permutation(28)[:max(2, round(2 * effort))] + 30 * (name in BY_BATCH):
            x = X.astype(np.float32)
            x[row, row % 8], tried = value, tried + 1
            try: f(x)
            except ValueError as e:
                words = str(e).replace("[", " ").replace("]", " ").replace(")", " ").replace(";", " ").split()
                wanted = "row" if name in BY_BATCH else str(row)
                if wanted not in words: failed.append((name, row, str(e)))
            else: failed.append((name, row, "taken"))
    tally("numbers", f"{value} in one row of features, at a public edge: refused, and the row named", tried, failed)


def test_half_precision_is_read_and_compared_in_float32_or_more():
    "Squared lengths of these rows overflow in float16; all results are those of the same values in float32"
    half = (X * 1e4).clip(-6e4, 6e4).astype(np.float16)
    assert np.isinf((half[0] * half[0]).sum(dtype=np.float16))
    for name, f in EDGES.items():
        if "Views" in name or name == "Labelled": continue  # they keep the array as it is
        a, b = f(half), f(half.astype(np.float32))
        assert np.allclose(np.asarray(a), np.asarray(b), rtol=1e-6, atol=1e-6, equal_nan=True) if np.asarray(a).dtype.kind == "f" else np.array_equal(a, b), name
    centred = JUDGE(detector=detection.Rules(center=True), mean=X.mean(0) * 1e4)
    for x in (half, (X * 1e4).astype(np.int64)): assert same(centred.score(np.ones(60), x), centred.score(np.ones(60), x.astype(np.float32)).astype(float)) or np.allclose(centred.score(np.ones(60), x), centred.score(np.ones(60), x.astype(float)), atol=1e-6)


# ---------------------------------------------------------------- huge and tiny numbers

@pytest.mark.parametrize("dtype, scales", [(np.float32, (1e30, 1e-30, 1e37, 1e-37)), (np.float64, (1e30, 1e-30, 1e200, 1e-200, 1e300, 1e-300))])
@pytest.mark.parametrize("device", [None, "cpu"])
def test_cosines_do_not_hang_on_the_units(dtype, scales, device):
    x, h = X.astype(dtype), X[:9].astype(dtype) + 1
    plain = overlap_score(x, h, device=device)
    for s in map(dtype, scales):
        assert np.allclose(overlap_score(x * s, h, device=device), plain, atol=2e-6), s
        assert np.allclose(overlap_score(x, h * s, device=device), plain, atol=2e-6), s
        mixed = np.where(np.arange(60)[:, None] % 3 == 0, x * s, x)  # beside rows of length 1
        assert np.allclose(overlap_score(mixed, h, device=device), plain, atol=2e-6), s


def test_denormal_features_have_a_cosine_as_far_as_their_digits_reach():
    x = (X * 1e-42).astype(np.float32)
    want = (x.astype(float) @ X.T) / np.linalg.norm(x.astype(float), axis=1)[:, None] / np.linalg.norm(X, axis=1)
    assert np.abs(x).max() < np.finfo(np.float32).tiny and np.allclose(overlap_score(x, X), np.abs(want).max(1), atol=1e-6)


def test_zero_rows_stay_zero_beside_tiny_ones():
    x = X.astype(np.float32) * np.float32(1e-30)
    x[::2] = 0
    s = overlap_score(x, X[:5].astype(np.float32))
    assert (s[::2] == 0).all() and (s[1::2] > 0).all() and (overlap_score(X.astype(np.float32), np.zeros((2, 8), np.float32)) == 0).all()


@pytest.mark.parametrize("how", ["max_dot", "mean_square"])
def test_products_that_leave_the_range_are_refused(how):
    with np.errstate(over="ignore", invalid="ignore"), pytest.raises(ValueError, match="60 of 60 scores leave the range of float32: scale the features, or give them in float64"):
        overlap_score((X * 1e30).astype(np.float32), (X * 1e30).astype(np.float32), how)


@pytest.mark.parametrize("scale", [1e300, 1e200, 1e30, 1e-30, 1e-200, 1e-300])
def test_the_change_point_does_not_hang_on_the_units(scale):
    s = np.r_[X[:, 0], 4 + X[:, 1]]
    assert change_point(s * scale) == change_point(s) and change_point(-s * scale, jump=5, min_size=2) == change_point(-s, jump=5, min_size=2)
    if 1e-100 < scale < 1e100: assert cluster.range_change_point(s * scale).k == change_point(s)
    else:
        with pytest.raises(ValueError, match="scale them"): cluster.range_change_point(s * scale)


@pytest.mark.parametrize("n, d", [(60, 8), (200, 90), (60, 90)])
@pytest.mark.parametrize("scale", [1e100, 1e30, 1e5, 1e-3, 1e-9])
def test_a_standardised_probe_does_not_hang_on_the_units_of_any_column(n, d, scale):
    rng = np.random.default_rng(n)
    x = rng.normal(size=(n, d)) + .3
    y = (x[:, 0] + rng.normal(size=n) > 0).astype(float)
    plain = LinearProbe(.1, True).fit(x, y).predict_proba(x)
    for columns in (slice(None), slice(0, 1), slice(1, None, 2)):  # all, one, every other
        z = x.copy()
        z[:, columns] *= scale
        assert np.allclose(LinearProbe(.1, True).fit(z, y).predict_proba(z), plain, atol=1e-6), columns
        assert np.allclose(LinearProbe(.1, True).partial_fit(z[:40], y[:40]).partial_fit(z[40:], y[40:]).predict_proba(z), plain, atol=1e-5), columns


def test_dead_units_count_as_constant():
    "MiniLM has two of about 1e-32, and one of 1e-9 that lives; all published figures of this project leave the two out."
    rng = np.random.default_rng(0)
    x, dead = rng.normal(size=(80, 5)), 1e-32 * rng.normal(size=(80, 2))
    y = (x[:, 0] + rng.normal(size=80) > 0).astype(float)
    plain, more = LinearProbe(.1, True).fit(x, y), LinearProbe(.1, True).fit(np.c_[x, dead], y)
    assert np.allclose(more.coef_, [*plain.coef_, 0, 0], atol=1e-9) and np.allclose(more.predict_proba(np.c_[x, dead]), plain.predict_proba(x), atol=1e-9)


def test_features_that_no_probe_can_square_are_refused():
    for standardize in (True, False):
        with pytest.raises(ValueError, match="features of up to .*e.200 can't be squared"): LinearProbe(.1, standardize).fit(X * 1e200, Y)
    with pytest.raises(ValueError, match="can't be fitted with l2=0.1; scale them, or say standardize=True"): LinearProbe(.1).fit(np.tile(X, 12) * 1e30, np.arange(60) % 2)


@pytest.mark.parametrize("scale", [1e20, 1e30, 1e40, 1e80, 1e120, 1e149])
@pytest.mark.parametrize("n, d", [(400, 6), (60, 90)])
def test_a_probe_is_finite_or_refused(n, d, scale):
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(n, d)), rng.permutation(np.arange(n) % 2)
    for l2 in (1e-3, 1.):
        for learn in (lambda p: p.fit(x * scale, y), lambda p: p.partial_fit(x[:40] * scale, y[:40]).partial_fit(x[40:] * scale, y[40:])):
            with warnings.catch_warnings(), np.errstate(all="ignore"):
                warnings.simplefilter("ignore")
                try: probe = learn(LinearProbe(l2))
                except ValueError as e: assert f"can't be fitted with l2={l2}; scale them, or say standardize=True" in str(e)
                else: assert np.isfinite(probe.coef_).all() and np.isfinite(probe.predict_proba(x * scale)).all()


def test_a_standardised_probe_is_not_told_to_standardise():
    rows = probes._Rows(X, Y.astype(float), True)
    with patch.object(probes, "_newton", side_effect=probes.LinAlgError("no")), pytest.raises(ValueError, match="can't be fitted with l2=1.0; scale them$"): probes._minimise(rows, 1.)


# ---------------------------------------------------------------- ties, duplicates, constants

@pytest.mark.parametrize("n", [1, 2, 3, 50])
@pytest.mark.parametrize("value", [0., .5, 1 / 3, 1e-300, -7.1])
def test_equal_scores_have_no_change_point(n, value):
    for f in (change_point, cluster.range_change_point):
        with pytest.raises(ValueError, match=f"all {n} scores are .*there is nothing to split: give a threshold"): f(np.full(n, value))
    with pytest.raises(ValueError, match="there is nothing to split"): detect_overlap(Pseudolabels(np.full(n, .7)), X[:1].repeat(n, 0))


def test_ties_in_the_squared_error_go_to_the_later_split():
    for s, k in (([0, 0, 1, 1, 2, 2], 4), ([0, 1, 2], 2), ([0, 1], 1), ([0, 0, 0, 1], 3)):
        assert change_point(s) == change_point(s[::-1]) == cluster.range_change_point(np.array(s, float)).k == k


def test_rows_at_a_threshold_stand_on_one_side():
    conf, x = np.array([.1, .1, .5, .5, .5, .9, .9]), np.eye(7) + np.eye(7)[[0, 1, 3, 2, 0, 0, 1]]
    labels = Pseudolabels(.5 + conf / 2)
    below, upto = (detect_overlap(labels, x, t_hard=.5, t_overlap=.5, boundary=b).kind == "hard" for b in ("<", "<="))
    assert below.tolist() == [True] * 2 + [False] * 5 and upto.tolist() == [True] * 5 + [False] * 2
    part = detect_overlap(labels, x, t_hard=.5)
    assert part.kind.tolist() == ["hard"] * 2 + ["easy"] * 2 + ["overlap"] * 3 and len(set(part.score[4:])) == 1


@pytest.mark.parametrize("how", detection._SCORES)
@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_equal_rows_have_one_score_and_kind_whatever_the_blocks(how, dtype, effort, tally):
    failed, tried = [], 0
    for seed in range(max(1, round(2 * effort))):
        rng = np.random.default_rng(seed)
        n, d = int(rng.integers(40, 200)), int(rng.integers(1, 70))
        x = rng.normal(size=(n, d)).astype(dtype)[np.r_[:n, rng.integers(0, n, 2 * n)]]  # each row about three times
        order = rng.permutation(3 * n)
        x, first = x[order], np.unique(x[order], axis=0, return_inverse=True)[1].ravel()
        agree = lambda v: all(len(set(g)) == 1 for _, g in pd.Series(v).groupby(first))
        for entries in (None, 9 * d, 100 * d):
            s = detection._score(x, np.arange(3 * n), x[:n // 2], np.arange(n // 2), how, entries=entries)
            tried, failed = tried + 1, failed + [(seed, entries, "scores")] * (not agree(s))
        weak = x.astype(np.float32) @ rng.normal(size=(d, 3)).astype(np.float32)
        conf = pseudolabel(LinearProbe(.1).fit(weak[:60], rng.permutation(np.arange(60) % 2)), np.round(weak, 2))
        same_weak = np.unique(np.round(weak, 2), axis=0, return_inverse=True)[1].ravel()
        tried, failed = tried + 1, failed + [(seed, "probabilities")] * (not all(len(set(g)) == 1 for _, g in pd.Series(conf.p).groupby(same_weak)))
        labels = Pseudolabels(np.linspace(0, 1, n * 3)[first])  # equal rows, equal confidence
        tried, failed = tried + 1, failed + [(seed, "kinds")] * (not agree(detect_overlap(labels, x, how=how).kind))
    tally("numbers", f"equal rows have one score, probability and kind: {how}, {np.dtype(dtype).name}", tried, failed)


def test_a_row_has_one_probability_wherever_it_stands():
    x = X.astype(np.float32)
    probe = LinearProbe(.1).fit(x, Y)
    p = probe.decision_function(x)
    assert all(same(probe.decision_function(x[a:b]), p[a:b]) for a in range(0, 9) for b in range(a + 1, 60, 7)) and same(probe.decision_function(x[::-1]), p[::-1].copy())


def test_a_row_has_one_probability_however_the_columns_lie():
    "A data frame's lie one after the other in memory"
    x = np.random.default_rng(1).normal(size=(300, 70))
    probe = LinearProbe(.1).fit(x, np.arange(300) % 2)
    for kind in (np.float64, np.float32):
        z = x.astype(kind)
        for other in (np.asfortranarray(z), np.repeat(z, 2, 1)[:, ::2], pd.DataFrame(z)):
            assert same(probe.predict_proba(other), probe.predict_proba(z)) and same(probe.predict_proba(other[::-1]), probe.predict_proba(z)[::-1])
    framed = LinearProbe(.1).fit(pd.DataFrame(x), np.arange(300) % 2)
    assert same(framed.predict_proba(pd.DataFrame(x[7:9])), framed.predict_proba(pd.DataFrame(x))[7:9])


def test_all_rows_that_are_no_numbers_are_counted():
    "Also where they lie in other blocks, or repeat each other"
    x = np.random.default_rng(0).normal(size=(40_000, 256)).astype(np.float32)
    x[20_000, 3] = x[5, 0] = np.nan
    x[35_000] = x[5]
    says = r"3 of 40000 rows hold NaN or infinite values \(first rows: \[5, 20000, 35000\]\)"
    for call in (lambda: overlap_score(x, X[:3].repeat(32, 1)), lambda: overlap_score(X[:3].repeat(32, 1), x), lambda: detect_overlap(Pseudolabels(np.linspace(.5, 1, 40_000)), x)):
        with pytest.raises(ValueError, match=says): call()
    with pytest.raises(ValueError, match=r"x_strong\[20000:40000\]: 2 of 20000 rows hold NaN or infinite values \(first rows: \[0, 15000\]\)"):
        cluster.detect_ranges(Pseudolabels(np.linspace(.5, 1, 40_000)), np.r_[X[:1].repeat(32, 1).repeat(20_000, 0).astype(np.float32), x[20_000:]], rows=20_000)


def test_a_text_that_stands_in_two_splits_is_refused():
    a, b, c, d = (toy_texts("a", 80)[i:i + 20] for i in (0, 20, 40, 60))
    with pytest.raises(ValueError, match="1 texts stand in more than one split"): Splits(a, replace(b, txt=np.r_[a.txt[:1], b.txt[1:]]), c, d)


@pytest.mark.parametrize("how", detection._SCORES)
def test_kinds_follow_the_rows(how, effort, tally):
    "Up to rows within rounding of a threshold: products of blocks hang on a row's place"
    failed, tried = [], 0
    for seed in range(max(1, round(3 * effort))):
        rng = np.random.default_rng(seed)
        x, labels, order = rng.normal(size=(300, 20)).astype(np.float32), Pseudolabels(rng.random(300)), rng.permutation(300)
        a, b = detect_overlap(labels, x, how=how), detect_overlap(labels[order], x[order], how=how)
        far = ~(np.abs(a.score - a.t_overlap) < 1e-5 * max(1, a.t_overlap))[order]
        tried, failed = tried + 1, failed + [seed] * (not np.array_equal(a.kind[order][far], b.kind[far]) or abs(a.t_overlap - b.t_overlap) > 1e-5 * max(1, a.t_overlap))
    tally("numbers", f"permuted rows have permuted kinds: {how}", tried, failed)


def test_constant_columns_and_zero_rows_teach_a_standardised_probe_nothing():
    for c in (0., 1., .1, 1e30, 1e-30):
        more = np.column_stack([X, np.full(60, c)])
        a, b = LinearProbe(.1, True).fit(X, Y), LinearProbe(.1, True).fit(more, Y)
        assert abs(b.coef_[-1] * max(c, 1)) < 1e-6 and np.allclose(a.predict_proba(X), b.predict_proba(more), atol=1e-6), c
    zero = LinearProbe(.1).fit(np.zeros((60, 3)), np.arange(60) % 3 == 0)
    assert np.allclose(zero.coef_, 0) and np.allclose(zero.predict_proba(X[:, :3])[:, 1], 1 / 3, atol=1e-5)
    assert np.allclose(LinearProbe(.1, True).fit(np.ones((60, 3)), np.arange(60) % 3 == 0).predict_proba(np.ones((2, 3)))[:, 1], 1 / 3, atol=1e-5)


def test_a_constant_column_changes_a_cosine_unless_it_is_centred():
    more = np.column_stack([X, np.full(60, 3.)])
    assert np.allclose(overlap_score(X, X[:9] + .5, center=True), overlap_score(more, np.column_stack([X[:9] + .5, np.full(9, 3.)]), center=True), atol=1e-12)
    assert not np.allclose(overlap_score(X, X[:9] + .5), overlap_score(more, np.column_stack([X[:9] + .5, np.full(9, 3.)])), atol=1e-3)
    assert np.allclose(overlap_score(X, X[:9] + .5), overlap_score(np.column_stack([X, np.zeros(60)]), np.column_stack([X[:9] + .5, np.zeros(9)])), atol=1e-12)


def test_neighbours_at_one_distance_are_taken_in_a_fixed_way():
    "Which of them, scikit-learn says; the same call says the same, and a row's own label counts only where it is read again"
    x = np.repeat(X[:6], 10, 0)
    probe = KNNProbe(5).fit(x, Y)
    assert same(probe.predict_proba(x), KNNProbe(5).fit(x, Y).predict_proba(x))
    assert all(len(np.unique(g)) == 1 for g in probe.predict_proba(x)[:, 1].reshape(6, 10)) and same(scores.cut_statistic(x, Y, 5), scores.cut_statistic(x, Y, 5))


def test_one_class_is_refused_or_named():
    for y in (np.zeros(60), np.ones(60)):
        for probe in (LinearProbe(), KNNProbe(5), TopologicalProbe(5)):
            with pytest.raises(ValueError, match="60 labels of one class"): probe.fit(X, y)
    assert np.isnan(mixing.student_accuracy(case()[0], Pseudolabels(np.ones(180)), np.arange(20))) and np.isnan(matching.auc(X[:, 0], np.ones(60)))
    with pytest.raises(ValueError, match="a probe needs both classes"): Problem(Labelled(X, np.zeros(60)), *[Views(X, X, Y, np.arange(60))] * 3, theory.MIXTURE)
    with pytest.raises(ValueError, match="all 60 labels are 1"): scores.cut_statistic(X, np.ones(60, int), 5)


def test_of_equal_indices_the_first_source_is_asked():
    equal = regret.Arms(np.full(3, 4.), np.full(3, 40.), np.full(3, 12.), 10, 40)
    for name in ("reference_ucb", "ucb", "batch_ucb", "kl_ucb", "explore_then_commit"):
        assert np.ptp(regret.POLICIES[name](equal, None)) == 0, name
    for policy in ("ucb", "kl_ucb", lambda arms, rng: np.zeros(3)):
        session = Session(Plan(["c", "b", "a"], policy, "recount", allow_one=True))
        assert session.ask().source == "c"
    plays = regret.bandit("ucb", [.3, .3, .3], 5, 3, 2, fixed=[True] * 3)
    assert plays.filter(regex="pulls_").iloc[-1].tolist() == [1, 1, 1] and plays.source[:3].tolist() == [0, 1, 2]


def test_equal_scores_are_refused_and_ties_drawn_by_the_seed():
    p, labels = PL()
    with pytest.raises(ValueError, match="all 180 scores are 1.0; there is nothing to rank"): scores.bin_accuracies(p, labels, np.ones(180))
    tied = np.repeat([0., 1.], 90)
    assert same(scores._order(tied, 4), scores._order(tied, 4)) and not same(scores._order(tied, 4), scores._order(tied, 5)) and set(scores._order(tied, 4)[:90]) == set(range(90))


def test_nan_is_no_threshold():
    for k in ("t_hard", "t_overlap"):
        with pytest.raises(ValueError, match="got nan, wanted a number, or None for the change point"): detect_overlap(P, X, **{k: np.nan})


def test_one_two_and_three_rows():
    assert overlap_score(X[:1], X[:1]).shape == (1,) and np.isclose(overlap_score(X[:1], X[:1])[0], 1) and np.isclose(overlap_score(X[:1], X[:1], center=True)[0], 0)
    for n, says in ((1, "all 1 confidences"), (2, "all 1 scores")):
        with pytest.raises(ValueError, match=says): detect_overlap(Pseudolabels(np.array([.5, .9])[:n]), X[:n])
    assert detect_overlap(Pseudolabels(np.array([.5, .9, .99])), np.eye(3) + np.eye(3)[[0, 0, 1]]).counts.to_dict() == dict(easy=1, hard=1, overlap=1)
    for n in (1, 2, 3):
        probe = LinearProbe(.1, True).fit(X[:n], np.array([.3, .6, .8])[:n])
        assert np.isfinite(probe.predict_proba(X)).all() and (n > 1 or np.allclose(probe.predict_proba(X)[:, 1], .3, atol=1e-5))
        with pytest.raises(ValueError, match="choose a smaller k"): KNNProbe(4).fit(X[:n], np.array([.3, .6, .8])[:n])


# ---------------------------------------------------------------- bfloat16

def test_bfloat16_moves_rows_by_about_a_hundredth(llama, tally):
    "The embedded models' own figures stand in the chapter on activations"
    from test_activations import some_texts
    full, half = (activations(some_texts(60), llama, layer=3, dtype=d, cache=False, progress=False).astype(float) for d in ("float32", "bfloat16"))
    moved = np.linalg.norm(full - half, axis=1) / np.linalg.norm(full, axis=1)
    tally("numbers", "rows in bfloat16 within 3 % of those in float32 (a toy model)", 60, [(i, v) for i, v in enumerate(moved) if not 1e-4 < v < .03])


if __name__ == "__main__":
    main(*sys.argv[1:])
    sys.exit()
