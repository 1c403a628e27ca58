"Detection: equal to plain loops and to the published code's change-point library, bad input refused or named, memory, the page, and the paper's path."
import json
import os
import shutil
import subprocess
import sys
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import ruptures
from hypothesis import given, settings, strategies as st
from sklearn.metrics import cohen_kappa_score

from datacentric_w2s import detection as D
from datacentric_w2s.core import KINDS, PRESETS, Labelled, Partition, Problem, Pseudolabels, Views
from datacentric_w2s.detection import (PROTOCOLS, KindPage, Rules, change_point, detect, detect_like, detect_overlap, detection_cell, kind_page, kind_stability,
                                       kind_table, kinds_table, neighbour_purity, overlap_score, plot_change_point, rules_of, strong_map)
from datacentric_w2s.probes import evaluate, pseudolabel
from datacentric_w2s.theory import Mixture, mixture_problem


@given(st.integers(0, 99), st.integers(1, 40), st.integers(1, 30), st.sampled_from([np.float16, np.float32, np.float64, np.int64]))
def test_rows_share_a_number_where_their_bytes_are_the_same(seed, n, d, dtype):
    "Also rows that differ in one column only, perhaps none of those that are looked at first"
    rng = np.random.default_rng(seed)
    x = rng.integers(0, 2, (n, d)).astype(dtype) if seed % 2 else np.repeat(rng.normal(size=(1, d)).astype(dtype), n, 0)
    x[rng.integers(n, size=n // 2), rng.integers(d, size=n // 2)] += 1
    number = D._contents(np.asfortranarray(x) if seed % 3 else x, range(n))
    assert ((number[:, None] == number) == (x[:, None] == x).all(2)).all()


# Parity: an independent plain computation

def cosine(u, v): return abs(float(u @ v)) / float(np.sqrt(u @ u) * np.sqrt(v @ v))
def dot(u, v): return float(u @ v)


def plain_break(values, jump, min_size):
    "The sorted values' break, by the published code's library at its settings"
    s = np.sort(np.asarray(values, float))
    return s[ruptures.Binseg(model="l2", jump=jump, min_size=min_size).fit(s.reshape(-1, 1)).predict(n_bkps=1)[0]]


def plain_partition(p, x, similarity, jump, min_size, boundary):
    "The published protocol, loop by loop; returns kinds and the two thresholds"
    conf = [2 * abs(v - .5) for v in p]
    t_hard = plain_break(conf, jump, min_size)
    hard = [c <= t_hard if boundary == "<=" else c < t_hard for c in conf]
    references = [x[j] for j in range(len(x)) if hard[j]]
    score = {i: max(similarity(x[i], r) for r in references) for i in range(len(x)) if not hard[i]}
    t_overlap = plain_break(list(score.values()), jump, min_size)
    return ["hard" if hard[i] else "overlap" if score[i] >= t_overlap else "easy" for i in range(len(x))], t_hard, t_overlap


PLAIN = {"published": (cosine, 5, 2, "<="), "published selection": (dot, 5, 2, "<"), "preset": (cosine, 1, 1, "<")}


def random_rows(seed, n=160, d=7):
    rng = np.random.default_rng(seed)
    return Pseudolabels(rng.beta(.6, .8, n)), rng.normal(size=(n, d)) * rng.gamma(2, size=(n, 1))


def as_problem(x, preset):
    v = Views(x[:, :1], x, np.arange(len(x)) % 2, np.arange(len(x)))
    return Problem(Labelled(x[:2, :1], [0, 1]), v, v, v, preset)


def assert_same(part, plain, x, p):
    "The same thresholds to rounding, and the same kinds but for rows within rounding of a threshold"
    kinds, t_hard, t_overlap = plain
    np.testing.assert_allclose([part.t_hard, part.t_overlap], [t_hard, t_overlap], rtol=1e-5)
    differ = part.kind != np.array(kinds)
    near = np.isclose(part.score, t_overlap, rtol=1e-6) | np.isclose(part.conf, t_hard, rtol=1e-9)
    assert not (differ & ~near).any() and differ.sum() <= 2, f"{differ.sum()} kinds differ"


@pytest.mark.parametrize("protocol", PLAIN)
@pytest.mark.parametrize("seed", range(6))
def test_partition_is_the_plain_one_on_random_rows(protocol, seed):
    labels, x = random_rows(seed)
    part = detect(as_problem(x, PRESETS["embedded"]), labels, protocol)
    assert_same(part, plain_partition(labels.p, x, *PLAIN[protocol]), x, labels.p)


@pytest.fixture(scope="module")
def real():
    from datacentric_w2s.activations import make_problem
    from datacentric_w2s.data import load_splits
    splits = load_splits("sciq", seed=3)
    problem = make_problem(splits, progress=False)
    return splits, problem, evaluate(problem)


@pytest.mark.parametrize("protocol", PLAIN)
def test_partition_is_the_plain_one_on_real_activations(protocol, real):
    _, problem, acc = real
    x = problem.w2s.x_strong.astype(np.float64)
    assert_same(detect(problem, acc.pseudolabels, protocol), plain_partition(acc.pseudolabels.p, x, *PLAIN[protocol]), x, acc.pseudolabels.p)


def test_the_protocols_differ_and_the_papers_preset_takes_the_grid_of_five():
    labels, x = random_rows(0)
    parts = {p: [detect(as_problem(x, PRESETS["embedded"]), labels, p).kind for labels, x in map(random_rows, range(4))] for p in PLAIN}
    assert len({np.stack(k).tobytes() for k in parts.values()}) == 3
    assert rules_of("preset", PRESETS["paper"]) == Rules(jump=5) and "jump 5" in detect(as_problem(x, PRESETS["paper"]), labels).rule
    assert {n: (r.how, r.jump, r.min_size, r.boundary) for n, r in PROTOCOLS.items()} == {
        "published": ("max_abs_cosine", 5, 2, "<="), "published selection": ("max_dot", 5, 2, "<")}


@pytest.mark.parametrize("center", [False, True])
@pytest.mark.parametrize("how", [*D._SCORES, lambda x, h: np.linalg.norm(x - h.mean(0), axis=1)], ids=[*D._SCORES, "function"])
@pytest.mark.parametrize("boundary", ["<", "<="])
def test_detect_like_gives_the_same_rows_the_same_kinds(how, center, boundary):
    labels, x = random_rows(1)
    problem, rules = as_problem(x, PRESETS["embedded"]), Rules(how, center, boundary=boundary)
    part = detect(problem, labels, rules)
    np.testing.assert_array_equal(detect_like(problem, part, labels, x, rules).kind, part.kind)
    some = np.arange(0, len(x), 3)
    np.testing.assert_array_equal(detect_like(problem, part, labels[some], x[some], rules).kind, part.kind[some])


# Scores: the blocks change nothing

@pytest.mark.parametrize("how", D._SCORES)
@pytest.mark.parametrize("entries", [1, 97, 10**9])
def test_blocks_change_nothing(how, entries):
    x, h = random_rows(2)[1], random_rows(3)[1][:40]
    before = x.copy(), h.copy()
    for mean in (None, x.mean(0)):
        got = D._score(x, np.arange(len(x)), h, np.arange(len(h)), how, mean, entries)
        np.testing.assert_allclose(got, D._score(x, np.arange(len(x)), h, np.arange(len(h)), how, mean), rtol=1e-10)
    assert np.array_equal(x, before[0]) and np.array_equal(h, before[1]), "the caller's arrays are left alone"


def test_float32_stays_float32_and_integers_are_taken():
    x = random_rows(2)[1].astype(np.float32)
    assert overlap_score(x, x[:9]).dtype == np.float32
    np.testing.assert_allclose(overlap_score(x, x[:9], center=True), overlap_score(x.astype(float), x[:9].astype(float), center=True), rtol=1e-5)
    np.testing.assert_allclose(overlap_score([[1, 1], [0, 2]], [[1, 0]]), [np.sqrt(.5), 0])


def whole(x, rows, hard, how, mean):
    "The definition on whole arrays, in float64"
    a, b = (x[r].astype(float) - (0 if mean is None else mean) for r in (rows, hard))
    if how == "max_abs_cosine": a, b = (v / np.maximum(np.linalg.norm(v, axis=1, keepdims=True), 1e-300) for v in (a, b))
    g = a @ b.T
    return {"max_abs_cosine": lambda: np.abs(g).max(1), "max_dot": lambda: g.max(1), "mean_square": lambda: (g**2).mean(1), "quantile": lambda: np.quantile(np.abs(g), .75, axis=1)}[how]()


@given(how=st.sampled_from([*D._SCORES]), dtype=st.sampled_from(["float16", "float32", "float64", "int64"]), n=st.integers(1, 70), m=st.integers(1, 50), d=st.integers(1, 9),
       entries=st.integers(1, 5_000), center=st.booleans(), device=st.sampled_from([None, "cpu"]), seed=st.integers(0, 999))
@settings(max_examples=300, deadline=None)
def test_any_block_size_gives_the_definition(how, dtype, n, m, d, entries, center, device, seed):
    if how == "quantile": device = None
    rng = np.random.default_rng(seed)
    x = (4 * rng.normal(size=(n + m, d))).astype(dtype)
    rows, hard = np.split(rng.permutation(n + m), [n])
    mean = x.mean(0, dtype=np.float64) if center else None
    before, got = x.copy(), D._score(x, rows, x, hard, how, mean, entries, device)
    assert got.dtype == (np.float32 if dtype in ("float16", "float32") else np.float64) and np.array_equal(x, before)
    tolerance = 1e-10 if got.dtype == np.float64 else 2e-5
    size = 1 if how == "max_abs_cosine" else (np.abs(x.astype(float)).max() + 1)**(4 if how == "mean_square" else 2) * d
    if how != "max_abs_cosine" or not center or np.linalg.norm(x - mean, axis=1).min() > .1:  # the direction of a row that is all but the mean is rounding
        np.testing.assert_allclose(got, whole(x, rows, hard, how, mean), rtol=tolerance, atol=tolerance * size)


@pytest.mark.parametrize("device", [None, "cpu"])
@pytest.mark.parametrize("how", [h for h in D._SCORES if h != "quantile"])
def test_a_block_size_changes_a_kind_only_at_a_tie(how, device, real):
    _, problem, acc = real
    x, part = problem.w2s.x_strong, detect(problem, acc.pseudolabels, Rules(how))
    rest, hard = np.flatnonzero(part.kind != "hard"), part.rows("hard")
    for entries in (2_000, 30_000, 500_000):
        score = D._score(x, rest, x, hard, how, None, entries, device)
        np.testing.assert_allclose(score, part.score[rest], rtol=5e-6)
        t = D._threshold(score, None, "scores", 1, 1)[0]
        differ = (score >= t) != (part.kind[rest] == "overlap")
        assert not (differ & ~np.isclose(part.score[rest], part.t_overlap, rtol=1e-5)).any()


def test_torch_does_the_same_and_keeps_the_process_settings(real):
    torch = pytest.importorskip("torch")
    _, problem, acc = real
    ours = detect(problem, acc.pseudolabels, "preset")
    torch.set_float32_matmul_precision("medium")
    try:
        theirs = detect(problem, acc.pseudolabels, "preset", device="cpu")
        assert torch.get_float32_matmul_precision() == "medium"
        with pytest.raises(RuntimeError): detect(problem, acc.pseudolabels, "preset", device="no such device")
        assert torch.get_float32_matmul_precision() == "medium"
    finally: torch.set_float32_matmul_precision("highest")
    np.testing.assert_allclose(theirs.score, ours.score, rtol=5e-6)
    assert np.array_equal(theirs.kind, ours.kind)
    again = detect_like(problem, ours, acc.pseudolabels, problem.w2s.x_strong, device="cpu")
    assert (again.kind != ours.kind)[ours.score != ours.t_overlap].sum() == 0, "the threshold is the score of one row, and only this one may change sides"
    for how in ("quantile", lambda x, h: x[:, 0]):
        with pytest.raises(ValueError, match="run in numpy; leave device out"): overlap_score(problem.w2s.x_strong, problem.w2s.x_strong[:9], how, device="cpu")


def test_float16_is_read_and_compared_in_float32():
    x = (1_000 * random_rows(2)[1]).clip(-60_000, 60_000).astype(np.float16)
    assert not np.isfinite((x * x).sum(1)).all(), "lengths overflow in float16"
    for how in ("max_abs_cosine", "max_dot"):
        assert np.array_equal(overlap_score(x, x[:9], how, center=True), overlap_score(x.astype(np.float32), x[:9].astype(np.float32), how, center=True))


MAPPED = """
import resource, sys, tracemalloc
import numpy as np
from datacentric_w2s.core import Pseudolabels, Views, Labelled, Problem, PRESETS
from datacentric_w2s.detection import detect, detect_like, Rules
from datacentric_w2s.probes import LinearProbe, pseudolabel
path, how, center = sys.argv[1], sys.argv[2], sys.argv[3] == "1"
x, rng = np.load(path, mmap_mode="r"), np.random.default_rng(0)
few = Views(x[:9, :2], x[:9], np.arange(9) % 2, np.arange(9))
labels, probe = Pseudolabels(np.where(np.arange(len(x)) % 100, .9, .5) + rng.uniform(0, .05, len(x))), LinearProbe().fit(x[:50], np.arange(50) % 2)
x[:5000] @ x[:200].T  # the library of products takes its own memory now
room = int(next(l.split()[1] for l in open("/proc/self/status") if l.startswith("VmData"))) * 1024
resource.setrlimit(resource.RLIMIT_DATA, (room + 80 * 2**20,) * 2)
tracemalloc.start()
problem = Problem(Labelled(x[:9, :2], np.arange(9) % 2), Views(x[:, :2], x, np.arange(len(x)) % 2, np.arange(len(x))), few, few, PRESETS["embedded"])
part = detect(problem, labels, Rules(how, center))
detect_like(problem, part, labels, x, Rules(how, center))
pseudolabel(probe, x)
print(tracemalloc.get_traced_memory()[1])
"""


@pytest.fixture(scope="module")
def mapped(tmp_path_factory):
    "200,000 rows of 256 float16 and 100,000 of 256 float32 on disk, about 100 MB each"
    paths = {}
    for dtype, n in (("float16", 200_000), ("float32", 100_000)):
        paths[dtype] = tmp_path_factory.mktemp("mapped") / "x.npy"
        x = np.lib.format.open_memmap(paths[dtype], "w+", dtype, (n, 256))
        for i in range(0, n, 10_000): x[i:i + 10_000] = np.random.default_rng(i).standard_normal((10_000, 256), np.float32)
        x.flush()
    return paths


@pytest.mark.skipif(sys.platform != "linux", reason="the limit on memory is Linux's")
@pytest.mark.parametrize("how, center, dtype", [("max_abs_cosine", 0, "float16"), ("max_dot", 1, "float32"), ("mean_square", 1, "float16")])
def test_mapped_rows_are_never_in_memory_whole(how, center, dtype, mapped):
    done = subprocess.run([sys.executable, "-c", MAPPED, str(mapped[dtype]), how, str(center)], capture_output=True, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
    assert done.returncode == 0, done.stderr[-2000:]
    assert int(done.stdout) < 64 * 2**20, f"{int(done.stdout) / 2**20:.0f} MiB"


# Bad input

def fails(message, f):
    with pytest.raises(ValueError, match=message): f()


def test_bad_input_raises():
    labels, x = random_rows(0)
    n, nan = len(x), x.copy()
    nan[5, 2] = np.nan
    fails("all 160 confidences are .*nothing to split: give a threshold", lambda: detect_overlap(Pseudolabels(np.full(n, .8)), x))
    fails("makes 0 of 160 rows hard", lambda: detect_overlap(labels, x, t_hard=0.))
    fails("makes 160 of 160 rows hard", lambda: detect_overlap(labels, x, t_hard=2.))
    fails("all 1[0-9]* scores are|all .* scores are", lambda: detect_overlap(labels, np.ones((n, 3))[:, :2] * 0 + 1))
    fails("1 of 160 rows hold NaN or infinite values", lambda: detect_overlap(labels, nan))
    fails("1 of 160 rows hold NaN or infinite values", lambda: detect_overlap(labels, np.where(np.isnan(nan), np.inf, nan), how="max_dot"))
    fails("wanted \\(n, d\\), row-aligned", lambda: detect_overlap(labels, x[:-1]))
    fails("wanted \\(n, d\\), row-aligned", lambda: detect_overlap(labels, x[:, 0]))
    fails("wanted \\(n, d\\), row-aligned", lambda: detect_overlap(labels, x[:, :0]))
    fails("wanted \\(n, d\\) and", lambda: overlap_score(x[:, :0], x[:, :0]))
    fails("boundary: got '>'", lambda: detect_overlap(labels, x, boundary=">"))
    fails("how: got 'cosine'", lambda: detect_overlap(labels, x, how="cosine"))
    fails("leave no split", lambda: detect_overlap(labels[:4], x[:4], jump=5, min_size=2))
    fails("protocol: got 'publshed'", lambda: rules_of("publshed", PRESETS["paper"]))


def test_no_overlap_rows_and_small_kinds_are_named():
    labels, x = random_rows(0)
    none = detect_overlap(labels, x, t_overlap=2.)
    assert none.counts["overlap"] == 0 and none.rule.endswith("; no overlap rows")
    table = kind_table(none, labels, np.arange(len(x)) % 2, student=np.zeros(len(x)))
    assert table.set_index("kind").loc["overlap", ["label_1", "teacher_right", "gain"]].isna().all() and table.rows.sum() == len(x)
    assert detect_overlap(labels, x, t_overlap=-1.).rule.endswith("; no easy rows")
    top = np.nanmax(none.score)
    assert detect_overlap(labels, x, t_overlap=top).rule.endswith("; only 1 overlap rows")


def test_rows_that_repeat_a_hard_row_are_overlap_and_counted():
    labels, x = random_rows(4)
    part = detect_overlap(labels, x)
    assert "repeat" not in part.rule and "zero" not in part.rule and "tied" not in part.rule
    twin, hard, x = part.rows("easy")[0], part.rows("hard")[0], x.copy()
    x[twin] = x[hard]
    again = detect_overlap(labels, x)
    assert again.kind[twin] == "overlap" and np.isclose(again.score[twin], 1) and "; 1 repeat a hard row" in again.rule


def test_duplicated_texts_share_their_kind():
    labels, x = random_rows(4)
    twice = detect_overlap(Pseudolabels(np.tile(labels.p, 2)), np.tile(x, (2, 1)))
    assert np.array_equal(twice.kind[:len(x)], twice.kind[len(x):])


def test_zero_rows_are_like_nothing():
    labels, x = random_rows(4)
    part, x = detect_overlap(labels, x), x.copy()
    zero = [part.rows("overlap")[0], part.rows("hard")[0]]
    x[zero] = 0
    again = detect_overlap(labels, x)
    assert again.score[zero[0]] == 0 and again.kind[zero[0]] == "easy" and again.kind[zero[1]] == "hard" and "; 1 zero rows, like nothing" in again.rule


def test_tied_rows_stay_together():
    rng = np.random.default_rng(0)
    p, x = np.round(rng.uniform(.5, 1, 200), 1), rng.normal(size=(200, 4))
    for boundary in ("<", "<="):
        for jump in (1, 5):
            part = detect_overlap(Pseudolabels(p), x, boundary=boundary, jump=jump)
            assert all(len(set((part.kind == "hard")[p == v])) == 1 for v in np.unique(p))
            at = part.conf == part.t_hard
            assert set(part.kind[at] == "hard") == {boundary == "<="} and f"{at.sum()} tied rows on one side" in part.rule.split(";")[0]


# Kinds over draws, tables, maps

def partition(kind):
    kind = np.asarray(kind)
    return Partition(kind, np.ones(len(kind)), np.where(kind == "hard", np.nan, 1.), .5, .5)


def test_stability_is_cohens_kappa_on_the_common_rows():
    rng = np.random.default_rng(0)
    a, b = rng.choice(KINDS, 300, p=(.2, .6, .2)), rng.choice(KINDS, 300, p=(.3, .5, .2))
    b[:120] = a[:120]
    keys = np.array([f"row {i}" for i in range(300)])
    order = rng.permutation(250)
    df = kind_stability([(keys, partition(a)), (keys[order], partition(b[order]))]).set_index("kind")
    assert (df.n == 250).all()
    assert np.isclose(df.kappa["all"], cohen_kappa_score(a[:250], b[:250]))
    for k in KINDS: assert np.isclose(df.kappa[k], cohen_kappa_score(a[:250] == k, b[:250] == k))
    with pytest.raises(ValueError, match="keys repeat"): kind_stability([(np.zeros(300), partition(a))] * 2)
    assert len(kind_stability([(keys[:9], partition(a[:9])), (keys[9:18], partition(a[9:18]))])) == 0


def test_gains_add_up_and_the_cell_is_tidy(real):
    splits, problem, acc = real
    df = detection_cell(problem, splits, seed=1)
    assert len(df) == 18 and not df.duplicated(["protocol", "split", "kind"]).any()
    for protocol, d in df[df.split == "test"].groupby("protocol"):
        assert np.isclose((d.share * d.gain).sum(), acc.w2s - acc.weak) and np.isclose((d.share * d.teacher_right).sum(), acc.weak)
        assert d.kappa.isna().all()
    assert df[df.split == "w2s"].kappa.between(-1, 1).all()
    assert detection_cell(problem, splits, seed=1).equals(df)
    assert np.allclose(df[df.split == "w2s"].groupby("protocol").share.sum(), 1)


def test_stable_kinds_have_a_high_kappa():
    p = mixture_problem(Mixture(np.ones(20), np.ones(20), 1.), (300, 300, 300), seed=0)
    df = detection_cell(p)
    assert df[(df.protocol == "preset") & (df.split == "w2s")].kappa.min() > .6


def test_purity_and_map():
    rng = np.random.default_rng(0)
    x, kind = rng.normal(size=(900, 6)) * [9, 5, 1, 1, 1, 1], rng.choice(KINDS, 900)
    flat = neighbour_purity(x, kind)
    assert np.allclose(flat.purity, flat.chance, atol=.05)
    far = neighbour_purity(x + 100 * np.eye(6)[[KINDS.index(k) for k in kind]], kind)
    assert (far.purity == 1).all()
    points = strong_map(x)
    assert points.shape == (900, 2) and "of the variance" in points.columns[0] and points.var().is_monotonic_decreasing
    with pytest.raises(ValueError, match="wanted 'pca' or 'umap'"): strong_map(x, "tsne")
    try: import umap  # noqa: F401
    except ImportError:
        with pytest.raises(ImportError, match="pip install umap-learn"): strong_map(x, "umap")


def test_the_plotted_break_is_the_change_point():
    import matplotlib.pyplot as plt
    s = np.random.default_rng(0).gamma(1, size=80)
    fig, ax = plt.subplots()
    plot_change_point(s, ax, sides=("easy", "overlap"))
    assert [len(l.get_xdata()) for l in ax.get_lines()[:2]] == [change_point(s), 80 - change_point(s)]
    thin = fig.axes[1].get_lines()[0].get_ydata()
    assert np.argmax(thin) + 1 == change_point(s) and 0 < thin.max() <= 1
    plt.close(fig)


# The page

class Tags(HTMLParser):
    "Every tag as it opens"
    def __init__(self, text):
        super().__init__()
        self.tags, self.data = [], []
        self.feed(text)

    def handle_starttag(self, tag, attrs): self.tags.append((tag, dict(attrs)))
    def handle_data(self, data): self.data.append(data)


def some_rows(n=8):
    kind = np.resize(["hard", "easy", "overlap", "easy"], n)
    part = Partition(kind, np.linspace(0, 1, n), np.where(kind == "hard", np.nan, np.linspace(2, 1, n)), .5, .5)
    v = Views(np.zeros((n, 1)), np.zeros((n, 1)), np.arange(n) % 2, np.arange(n) + 10, group=np.arange(n) // 2)
    return kinds_table(part, Pseudolabels(np.linspace(.1, .9, n)), v)


EVIL = "<script>alert('x')</script><img src=x onerror=alert(1)> & \"quotes\" </td></table>"


def test_texts_are_escaped():
    page = kind_page(some_rows(), [EVIL] * 8)
    parsed = Tags(page.html)
    assert [t for t, _ in parsed.tags].count("script") == 1 and not any(t == "img" or "onerror" in a for t, a in parsed.tags)
    assert [d.strip() for d in parsed.data].count(EVIL) == 8, "a reader sees the text itself"
    odd = kind_page(some_rows().rename(columns={"question": "<b>q</b>"})).html
    assert "<b>q" not in odd


def test_page_is_one_small_accessible_piece(tmp_path):
    df = some_rows(200)
    page = kind_page(df, path=tmp_path / "kinds.html")
    parsed = Tags(page.html)
    assert len(page.html) < 25_000 and "http" not in page.html and not any(k in a for _, a in parsed.tags for k in ("src", "href"))
    heads = [a for t, a in parsed.tags if t == "th"]
    assert len(heads) == len(df.columns) and all(a["scope"] == "col" for a in heads)
    assert sum(t == "button" for t, _ in parsed.tags) == len(heads) and any(t == "label" for t, _ in parsed.tags)
    assert page.html in (tmp_path / "kinds.html").read_text(encoding="utf-8") and "<!doctype html>" in (tmp_path / "kinds.html").read_text(encoding="utf-8")
    assert page._repr_html_() == page.html and kind_page(df).html == page.html and "200 rows" in repr(page)
    with pytest.raises(ValueError, match="got 3 texts for 200 rows"): kind_page(df, ["a"] * 3)


def test_export_of_row_ids(tmp_path):
    df = some_rows()
    df.to_csv(tmp_path / "kinds.csv", index=False)
    back = pd.read_csv(tmp_path / "kinds.csv")
    assert back.columns.tolist() == ["row", "question", "kind", "confidence", "score", "pseudolabel", "gold"]
    assert back[back.kind == "overlap"].row.tolist() == [12, 16] and back.score.isna().tolist() == (df.kind == "hard").tolist()


DOM = """
const cell = t => ({textContent: t});
const body = {rows: ROWS.map(r => ({cells: r.map(cell), hidden: false})), appendChild(r) { this.rows = this.rows.filter(o => o !== r).concat([r]); }};
const node = () => ({attr: {}, on: {}, value: "", textContent: "", addEventListener(k, f) { this.on[k] = f; },
  getAttribute(k) { return this.attr[k] ?? null; }, setAttribute(k, v) { this.attr[k] = v; }, removeAttribute(k) { delete this.attr[k]; }});
const heads = ROWS[0].map(() => { const h = node(); h.button = node(); h.querySelector = () => h.button; return h; });
const input = node(), output = node();
globalThis.document = {getElementById: id => id === "THE-ID" ? {querySelector: q => ({table: {tBodies: [body]}, input, output})[q], querySelectorAll: () => heads} : null};
const column = i => body.rows.map(r => r.cells[i].textContent);
const sort = i => { heads[i].button.on.click(); return [column(i), heads.map(h => h.attr["aria-sort"] ?? "")]; };
const search = words => { input.value = words; input.on.input(); return [body.rows.filter(r => !r.hidden).map(r => r.cells[0].textContent), output.textContent]; };
"""


@pytest.mark.skipif(not shutil.which("node"), reason="needs node")
def test_the_script_sorts_and_filters():
    df = some_rows()
    page = kind_page(df).html
    script = page.split("<script>")[1].split("</script>")[0]
    id = next(a["id"] for t, a in Tags(page).tags if "id" in a)
    rows = [["" if isinstance(v, float) and np.isnan(v) else f"{v:.3f}" if isinstance(v, float) else str(v) for v in r] for r in df.itertuples(index=False, name=None)]
    end = 'console.log(JSON.stringify([sort(4), sort(4), sort(2), sort(0), search("OVERLAP"), search("easy 1 0.1"), search("hard 1 0.1 zz"), search("")]))'
    done = subprocess.run(["node", "-"], input=DOM.replace("ROWS", json.dumps(rows)).replace("THE-ID", id) + script + end, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    up, down, kind, row, overlap, both, none, everything = json.loads(done.stdout)
    numbers = sorted(v for v in df.score if v == v)
    assert up[0] == [f"{v:.3f}" for v in numbers] + ["", ""] and up[1][4] == "ascending", "empty cells stand last"
    assert down[0] == [f"{v:.3f}" for v in numbers[::-1]] + ["", ""] and down[1] == ["", "", "", "", "descending", "", ""]
    assert kind[0] == sorted(df.kind) and kind[1][4] == "" and row[0] == [str(v) for v in range(10, 18)]
    assert overlap == [["12", "16"], "2 of 8 rows"] and none[0] == [] and everything[1] == "8 of 8 rows"
    assert set(both[0]) < {str(r) for r, k in zip(df.row, df.kind) if k == "easy"}


# The paper's path, on random weights

def test_the_papers_path_from_texts_to_partition(tmp_path):
    import torch
    import transformers as tf
    from datacentric_w2s.activations import language_model, make_problem
    from datacentric_w2s.data import load_splits
    tok = tf.AutoTokenizer.from_pretrained(language_model("SmolLM2-135M-Instruct").source)
    shape = dict(vocab_size=len(tok), hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2)
    for name, config in (("weak", tf.Qwen2Config), ("strong", tf.LlamaConfig)):
        tok.save_pretrained(tmp_path / name)
        with torch.random.fork_rng():
            torch.manual_seed(0)
            tf.AutoModel.from_config(config(**shape)).save_pretrained(tmp_path / name)
    splits = load_splits("sciq", sizes=(100, 100, 20, 40), answers="single", seed=1)
    p = make_problem(splits, str(tmp_path / "weak"), str(tmp_path / "strong"), preset="paper", cache=False, progress=False)
    assert (p.preset.l2, p.preset.standardize, p.preset.jump, p.preset.weak_pooling, p.preset.strong_layer) == (1e-3, False, 5, "last", -1)
    acc = evaluate(p)
    part = detect(p, acc.pseudolabels, "published")
    assert part.counts.sum() == 100 and "<=" in part.rule and "jump 5" in part.rule
    x = p.w2s.x_strong.astype(np.float64)
    assert_same(part, plain_partition(acc.pseudolabels.p, x, *PLAIN["published"]), x, acc.pseudolabels.p)
