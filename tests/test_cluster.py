"Past one machine: the sketch's change point equal to a full sort, detection by ranges equal to detection in one piece, and Ray with processes that are killed."
import os
import pickle
import signal
import subprocess
import sys
import tracemalloc
from collections import Counter
from dataclasses import dataclass, replace
from fractions import Fraction
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from datacentric_w2s import activations as A
from datacentric_w2s import cluster as C
from datacentric_w2s.cluster import Costs, RayExecutor, RayMap, detect_ranges, estimate, gain_bounds, label_ranges, local_ray, range_change_point, read_range, sketch
from datacentric_w2s.core import Pseudolabels
from datacentric_w2s.detection import change_point, detect_overlap, overlap_score
from datacentric_w2s.probes import LinearProbe, pseudolabel


# The change point

def exact_gains(s):
    "{k: G(k)} of sorted numbers, in fractions"
    s = [Fraction(float(v)) for v in np.sort(s)]
    n, mean, c, out = len(s), sum(s) / len(s), Fraction(0), {}
    for k, v in enumerate(s[:-1], 1):
        c += v - mean
        out[k] = c * c * n / (k * (n - k))
    return out


def allowed(n, min_size, jump): return [k for k in range(0, n, jump) if k >= max(min_size, 1) and n - k >= max(min_size, 1)]


numbers = st.one_of(st.integers(-3, 3).map(float), st.floats(-1, 1, width=16), st.integers(-20, 20).map(lambda e: 2.**e), st.integers(0, 100).map(lambda v: .99 + v * 1e-5))


@settings(max_examples=250, deadline=None)
@example([.99] * 2 + [.99001] * 4, 3, 1, 1, 2, 1)  # one split, inside equal numbers, whose distance from the mean has few digits
@given(st.lists(numbers, min_size=2, max_size=60), st.sampled_from([1, 1, 2, 3]), st.sampled_from([1, 1, 2, 5]), st.integers(1, 9), st.sampled_from([2, 3, 16, 4096]), st.sampled_from([1, 5, 1000]))
def test_change_point_is_the_exact_one(s, min_size, jump, rows, bins, few):
    s, ks, options = np.array(s), allowed(len(s), min_size, jump), dict(min_size=min_size, jump=jump)
    find = lambda: range_change_point(s, rows=rows, bins=bins, few=few, **options)
    if not ks or s.min() == s.max():
        for f in (find, lambda: change_point(s, **options)):
            with pytest.raises(ValueError, match="nothing to split|no split"): f()
        return
    got, gains = find(), exact_gains(s)
    best = max(gains[k] for k in ks)
    assert got.k in ks and got.value == np.sort(s)[got.k] and got.n == len(s)
    assert gains[got.k] >= best * (1 - Fraction(1, 10**11))
    near = [k for k in ks if best * (1 - Fraction(1, 10**10)) <= gains[k] < best * (1 - Fraction(1, 10**14))]
    if not near: assert got.k == max(k for k in ks if gains[k] >= best * (1 - Fraction(1, 10**14))) == change_point(s, **options)


DRAWS = {"normal": lambda r, n: r.normal(size=n), "Cauchy": lambda r, n: r.standard_cauchy(n), "lognormal": lambda r, n: np.exp(5 * r.normal(size=n)),
         "four values": lambda r, n: r.integers(0, 4, n) * 1., "decimals": lambda r, n: np.round(r.uniform(size=n), 2), "narrow": lambda r, n: .99 + 1e-4 * r.normal(size=n),
         "outlier": lambda r, n: np.append(r.normal(size=n - 1), 1e9), "two groups": lambda r, n: np.append(r.normal(size=n // 2), 8 + r.normal(size=n - n // 2))}


@pytest.mark.parametrize("name", DRAWS)
@pytest.mark.parametrize("options", [{}, dict(jump=5, min_size=2), dict(jump=7), dict(min_size=300)], ids=str)
def test_change_point_equals_the_full_sort(name, options):
    for seed, n in enumerate((1000, 20_000)):
        s = DRAWS[name](np.random.default_rng(seed), n)
        for few, bins in ((2**16, 4096), (100, 64)):
            got = range_change_point(s, rows=n // 7, few=few, bins=bins, **options)
            assert (got.k, got.value) == (k := change_point(s, **options), np.sort(s)[k])
            assert few > 1000 or got.looked_at <= few


def test_few_numbers_are_looked_at():
    s = np.random.default_rng(0).beta(1.2, 3, 300_000)
    got = range_change_point(s)
    assert got.passes == 3 and got.looked_at < 3000 and abs(got.k - change_point(s)) <= 1


def test_bounds_hold_inside_every_bin():
    rng = np.random.default_rng(0)
    for trial in range(60):
        s = list(DRAWS.values())[trial % len(DRAWS)](rng, 80)
        if s.min() == s.max(): continue
        b = sketch(s, np.sort(rng.choice(s, 6, replace=False)), s.mean())
        b, jump = b[b.count > 0], int(rng.integers(1, 4))
        g, G = gain_bounds(b, jump=jump), {k: float(v) for k, v in exact_gains(s).items()}
        for j in range(len(b.count)):
            inside = [G[k] for k in range(g.k[j] + 1, g.k[j + 1]) if k % jump == 0]
            assert bool(inside) == (g.sure[j] > -np.inf)
            if inside: assert g.sure[j] * (1 - 1e-9) <= max(inside) <= g.most[j] * (1 + 1e-9)
        for k, e in zip(g.k, g.edge):
            if e > -np.inf: assert np.isclose(e, G[k], rtol=1e-9, atol=1e-12 * max(G.values()))


def test_the_bound_is_reached():
    "The worst arrangement of Proposition E.1 exists, so no smaller bound is true"
    s = np.array([0, 0, 0, 1, 1, 1, 1, 2.])  # one bin holds the zeros and ones: its kink is at 3, where the change point is
    b = sketch(s, [1.5], s.mean())
    assert np.isclose(gain_bounds(b).most[0], float(exact_gains(s)[3]))


def test_sums_keep_their_digits():
    "Numbers that differ in their last places only: by fractions, since a full sort in float64 is no judge here"
    s = 1e11 + np.random.default_rng(0).integers(0, 4000, 1500) / 1024
    gains = exact_gains(s)
    for options in (dict(few=10, bins=50), {}): assert gains[range_change_point(s, rows=400, **options).k] == max(gains.values())


def test_none_infinite_and_order():
    s = np.array([.1, np.nan, .9, np.nan, .8, .2])
    assert range_change_point(s, rows=2).k == 2 and range_change_point(s, rows=2).n == 4
    backwards = lambda f, tasks: reversed([*map(f, tasks)])
    t = np.random.default_rng(0).normal(size=3000)
    assert range_change_point(t, rows=100, bins=50, few=50, map=backwards).k == change_point(t)
    for bad, says in (([1, np.inf], "1 of 2 numbers are infinite"), ([np.nan] * 3, "all 0 scores"), ([], "all 0 scores"), ([1.], "all 1 scores")):
        with pytest.raises(ValueError, match=says): range_change_point(np.array(bad))


# Detection by ranges

def blobs(n, d, seed, dtype=np.float64):
    r = np.random.default_rng(seed)
    p, x = r.beta(.5, .5, n), r.normal(size=(n, d)).astype(dtype)
    x[:, 0] += 4 * ((np.abs(2 * p - 1) < .5) | (r.random(n) < .3))
    return p, x


def assert_same(got, want, eps):
    "Equal partitions; scores up to rounding, and kinds but for rows within it of the threshold"
    tol = eps * np.nanmax(np.abs(want.score))
    assert got.rule == want.rule and got.t_hard == want.t_hard and np.array_equal(got.conf, want.conf)
    assert np.allclose(got.score, want.score, rtol=0, atol=tol, equal_nan=True) and abs(got.t_overlap - want.t_overlap) <= tol
    far = ~(np.abs(want.score - want.t_overlap) <= tol)
    assert np.array_equal(got.kind[far], want.kind[far])


@pytest.mark.parametrize("how", C.MERGEABLE)
@pytest.mark.parametrize("center", [False, True])
@pytest.mark.parametrize("options", [{}, dict(jump=5, min_size=2, boundary="<="), dict(t_hard=.4), dict(t_overlap=.7)], ids=str)
def test_detection_equals_one_piece(how, center, options, tmp_path):
    for dtype, eps in ((np.float64, 1e-12), (np.float32, 2e-6)):
        p, x = blobs(700, 6, 1, dtype)
        p[100:140] = p[50]  # ties
        p[[300, 310]], p[[5, 301, 302]] = .5, .97
        x[[5, 310]], x[[301, 302]] = 0, x[300]  # zero rows, one of them hard, and two that repeat a hard row
        want = detect_overlap(Pseudolabels(p), x, how=how, center=center, **options)
        np.save(tmp_path / "a.npy", x[:333]), np.save(tmp_path / "b.npy", x[333:])
        for rows, group in ((1000, 1), (90, 2)):
            got = detect_ranges(p, [tmp_path / "a.npy", str(tmp_path / "b.npy")], how=how, center=center, rows=rows, group=group, **options)
            assert_same(got.partition(), want, eps)
            assert np.isclose(got.density, want.density) and got.counts.equals(want.counts) and "; 3 repeat a hard row; 1 zero rows" in got.rule


def test_whole_numbers_are_equal_to_the_bit():
    r = np.random.default_rng(0)
    p, x = r.beta(.5, .5, 500), r.integers(-4, 5, (500, 7)).astype(np.float32)
    want = detect_overlap(Pseudolabels(p), x, how="max_dot")
    got = detect_ranges(p, x, how="max_dot", rows=60, group=3).partition()
    for name in ("kind", "conf", "score"): assert getattr(got, name).tobytes() == getattr(want, name).tobytes()
    assert (got.t_overlap, got.rule) == (want.t_overlap, want.rule)


def test_half_precision_is_read_as_single():
    p, x = blobs(300, 5, 0, np.float16)
    assert_same(detect_ranges(p, x, rows=70).partition(), detect_overlap(Pseudolabels(p), x.astype(np.float32)), 2e-6)


def test_products_of_torch():
    p, x = blobs(300, 5, 0, np.float32)
    for how in C.MERGEABLE: assert_same(detect_ranges(p, x, how=how, rows=70, device="cpu").partition(), detect_overlap(Pseudolabels(p), x, how=how), 2e-6)
    with pytest.raises(RuntimeError, match="nowhere"): detect_ranges(p, x, device="nowhere")


def test_features_are_never_in_memory(tmp_path):
    p, x = blobs(20_000, 512, 0, np.float32)
    np.save(tmp_path / "x.npy", x), np.save(tmp_path / "p.npy", p)
    size = x.nbytes
    del x
    tracemalloc.start()
    try:
        detect_ranges(tmp_path / "p.npy", tmp_path / "x.npy", how="max_dot", center=True, rows=1000, folder=tmp_path, t_hard=.05)
        assert tracemalloc.get_traced_memory()[1] < size / 2
    finally: tracemalloc.stop()


def test_bad_input_is_refused():
    p, x = blobs(50, 3, 0)
    for options, says in ((dict(how="quantile"), "only these merge"), (dict(how=np.dot), "only these merge"), (dict(boundary=">"), "wanted '<' or '<='"), (dict(references=0), "wanted a share"),
                          (dict(t_hard=2), "makes 50 of 50 rows hard"), (dict(t_hard=-1), "makes 0 of 50 rows hard"), (dict(rows=0), "wanted at least 1")):
        with pytest.raises(ValueError, match=says): detect_ranges(p, x, **options)
    with pytest.raises(ValueError, match="got 49 probabilities and 50 rows"): detect_ranges(p[:-1], x)
    with pytest.raises(ValueError, match=r"probabilities must lie in \[0, 1\]"): detect_ranges(p + 1, x)
    x[7] = np.nan
    for how in C.MERGEABLE:
        with pytest.raises(ValueError, match="NaN or infinite"): detect_ranges(p, x, how=how, rows=20)


class Stop(Exception): "What a driver dies of"


def stopping(after, begun):
    "A map that dies after some scoring tasks, and notes them"
    def go(f, tasks):
        scoring = getattr(f, "func", None) is C._largest
        for k, t in enumerate(tasks):
            if scoring and k == after: raise Stop
            if scoring: begun.append(t)
            yield f(t)
    return go


def test_scores_resume(tmp_path):
    p, x = blobs(400, 5, 0)
    first, second, other = [], [], []
    options = dict(rows=50, group=4, folder=tmp_path)
    with pytest.raises(Stop): detect_ranges(p, x, map=stopping(5, first), **options)
    got = detect_ranges(p, x, map=stopping(99, second), **options)
    assert len(first) == 5 and len(second) == 16 - 5 and not {repr(t) for t in first} & {repr(t) for t in second}
    assert_same(got.partition(), detect_overlap(Pseudolabels(p), x), 1e-12)
    x[3] += 1  # other features: nothing of the old scores may be used
    got = detect_ranges(p, x, map=stopping(99, other), **options)
    assert len(other) == 16
    assert_same(got.partition(), detect_overlap(Pseudolabels(p), x), 1e-12)


def test_a_task_done_twice_changes_nothing():
    p, x = blobs(300, 4, 0)
    twice = lambda f, tasks: map(f, [t for t in tasks for _ in range(2 if getattr(f, "func", None) is C._largest else 1)])
    assert_same(detect_ranges(p, x, rows=40, group=2, map=twice).partition(), detect_overlap(Pseudolabels(p), x), 1e-12)


def test_a_sample_of_references():
    p, x = blobs(600, 4, 0)
    full, part = detect_ranges(p, x, rows=100), detect_ranges(p, x, rows=100, references=.2, seed=3)
    rest = ~np.isnan(full.score)
    assert (part.score[rest] <= full.score[rest] + 1e-12).all() and (part.score[rest] < full.score[rest]).mean() > .5
    assert "references: a share 0.2 of the hard rows, seed 3" in part.rule and part.t_hard == full.t_hard
    keep = np.concatenate([np.random.default_rng([3, a]).random(100) < .2 for a in range(0, 600, 100)]) & ~rest
    assert np.allclose(part.score[rest], overlap_score(x[rest], x[keep]))


def test_labels_by_range(tmp_path):
    p, x = blobs(300, 4, 0)
    probe = LinearProbe(l2=.1, standardize=True).fit(x, (p > .5).astype(int))
    want = pseudolabel(probe, x).p
    for folder in (None, tmp_path): assert np.allclose(label_ranges(probe, x, rows=70, folder=folder), want, rtol=1e-12)
    assert np.array_equal(np.load(tmp_path / "p.npy"), label_ranges(probe, x, rows=70))


# On paper

def test_the_estimate_adds_up():
    c = Costs(tokens=10, flop_token=1e9, width=100, hard=.5, flops_model=1e12, flops_product=1e11, block=1000, disk=1e8, link=1e9, price_hour=2., price_terabyte=10.)
    df = estimate(1e6, c, workers=4).set_index("stage")
    assert np.isclose(df["worker hours"]["activations"], 1e6 * 10 * 1e9 / 1e12 / 3600) and np.isclose(df.hours["activations"] * 4, df["worker hours"]["activations"])
    assert np.isclose(df.FLOP["scores: products"], 2 * 100 * .25e12) and np.isclose(df.TB["scores: references read"], 500 * 5e5 * 400 / 1e12)
    assert np.isclose(df.dollars["activations"], df["worker hours"]["activations"] * 2) and np.isclose(df.dollars["features kept a month"], 1e6 * 400 / 1e12 * 10)
    assert df["worker hours"]["into the driver"] == df.hours["into the driver"], "one driver, however many workers"
    flop = lambda n, **o: estimate(n, c, **o).set_index("stage").FLOP["scores: products"]
    assert np.isclose(flop(3e6) / flop(1e6), 9) and np.isclose(flop(3e6, how="mean_square") / flop(1e6, how="mean_square"), 3) and np.isclose(flop(1e6, references=.1), flop(1e6) / 10)
    at = estimate(c.crossing(), c).set_index("stage")["worker hours"]
    assert np.isclose(at["activations"], at["scores: products"])


# Ray is an extra

def test_import_needs_neither_ray_nor_torch():
    code = "import sys, datacentric_w2s.cluster; heavy = {'ray', 'torch', 'transformers'} & set(sys.modules); sys.exit(f'imports {heavy}' if heavy else 0)"
    done = subprocess.run([sys.executable, "-c", code], cwd=Path(__file__).parent.parent, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_without_ray_the_error_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    for use in (lambda: [*RayMap()(len, ["a"])], lambda: [*RayExecutor()([], None, None)], lambda: local_ray().__enter__()):
        with pytest.raises(ImportError, match=r"pip install 'datacentric_w2s\[ray\]'"): use()


@pytest.fixture(scope="module")
def ray():
    pytest.importorskip("ray", reason="needs the extra [ray]")
    with local_ray(2) as ray:
        ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])  # workers can't import this file
        yield ray


def note(folder, what):
    "A line in the list of what was begun, then how often it was"
    with (folder / "begun").open("a") as f: f.write(f"{what}\n")
    return Counter((folder / "begun").read_text().split())[str(what)]


@dataclass(frozen=True)
class Deadly:
    "A function of tasks that kills its process when it begins one of them, so many times"
    f: object
    folder: Path
    name: object   # of a task, without blanks
    victim: str
    times: int = 1

    def __call__(self, task):
        if note(self.folder, name := self.name(task)) <= self.times and name == self.victim: os.kill(os.getpid(), signal.SIGKILL)
        return self.f(task)


@dataclass(frozen=True)
class Look:
    "A look that stands for a language model's"
    f: object
    threads: int | None = None

    def load(self): return self.f


@dataclass(frozen=True)
class Wrapped:
    "A language model's look, with a function put around the model"
    look: A.Look
    around: object
    threads: int | None = None

    def load(self): return self.around(replace(self.look, threads=self.threads).load())


def shard(k, m=2): return A.Shard([*range(m * k, m * k + m)], np.zeros((m, 32), np.uint8), [[k]] * m, 0)
def begun(folder): return Counter((folder / "begun").read_text().split())


@pytest.mark.xdist_group("ray")  # one Ray at a time
def test_detection_on_ray_with_a_killed_worker(ray, tmp_path):
    p, x = blobs(900, 8, 0, np.float32)
    np.save(tmp_path / "x.npy", x)
    want = detect_ranges(p, x, rows=150, group=3).partition()

    def deadly(f, tasks):
        if getattr(f, "func", None) is not C._largest: return RayMap()(f, tasks)
        return RayMap(in_flight=3)(Deadly(f, tmp_path, lambda t: repr(t).replace(" ", ""), repr(((300, 450), [(0, 150), (150, 300), (300, 450)])).replace(" ", "")), tasks)

    got = detect_ranges(p, tmp_path / "x.npy", rows=150, group=3, map=deadly, folder=tmp_path).partition()
    for name in ("kind", "conf", "score"): assert getattr(got, name).tobytes() == getattr(want, name).tobytes()
    assert got.rule == want.rule
    counts = begun(tmp_path)
    assert len(counts) == 12 and max(counts.values()) >= 2, "all tasks were begun, and the killed one again"


@pytest.mark.xdist_group("ray")  # one Ray at a time
def test_map_errors(ray, tmp_path):
    def bad(task): raise ValueError(f"task {task} is bad")
    with pytest.raises(ValueError, match="task 0 is bad"): [*RayMap(in_flight=1)(bad, range(3))]
    with pytest.raises(RuntimeError, match="process died 2 times"): [*RayMap(retries=1)(Deadly(abs, tmp_path, str, "1", times=9), range(3))]
    assert begun(tmp_path)["1"] == 2
    assert sorted(RayMap(in_flight=2)(abs, range(-5, 1))) == [0, 1, 2, 3, 4, 5]


@pytest.mark.xdist_group("ray")  # one Ray at a time
def test_a_shard_that_always_kills_is_given_up(ray, tmp_path):
    deadly = Deadly(lambda s: np.zeros((len(s), 1), np.float32), tmp_path, lambda s: str(s.rows[0]), "2", times=9)
    with pytest.raises(RuntimeError, match="shard with rows 2, 3 killed each process"): [*RayExecutor(retries=1)([shard(k) for k in range(3)], Look(deadly), lambda m: None)]
    assert begun(tmp_path)["2"] == 2


def test_an_error_of_the_model_is_handed_on_at_once():
    def some_nan(s):
        if s.rows[0] == 4: raise ValueError("row 4 is NaN")
        return np.full((len(s), 3), s.rows[0], np.float64)
    done = []
    reader = object.__new__(C._Reader)
    reader.ask, reader.tries, reader.model, reader.counter = (lambda what: 1), 2, some_nan, SimpleNamespace(done=SimpleNamespace(remote=lambda: done.append(1)))
    out = reader(dict(i=[3], shard=[pickle.dumps(shard(3))]))
    assert (out["i"], out["width"], out["said"], done) == ([3], [3], [""], [1]) and np.frombuffer(out["x"][0], np.float32).tolist() == [6] * 6
    assert reader(dict(i=[2], shard=[pickle.dumps(shard(2))]))["said"] == ["row 4 is NaN"] and done == [1]
    reader.ask = lambda what: 3
    assert reader.read(shard(0), 0)[1] == "died"
    one = SimpleNamespace(data=SimpleNamespace(from_items=lambda *a, **k: one.set, ActorPoolStrategy=None), set=SimpleNamespace(map_batches=lambda *a, **k: one.set, iter_batches=lambda **k: [out | dict(said=["row 4 is NaN"])]))
    with pytest.raises(ValueError, match="^row 4 is NaN"): next(C._results(one, [shard(k) for k in range(4)], None))


@pytest.mark.xdist_group("ray")  # one Ray at a time
def test_activations_on_ray_interrupted_and_killed(ray, tmp_path, monkeypatch):
    "Real texts and the embedded model: Ctrl-C keeps what came back, a killed actor loses nothing, and the values are those of this process to the bit"
    from datacentric_w2s.data import load_splits
    monkeypatch.setattr(A, "TEXTS_A_SHARD", 5)
    txt = load_splits("sciq", seed=0).w2s.txt[:30]
    read = partial(A.activations, [*txt, txt[0]], "SmolLM2-135M-Instruct", progress=False)
    want, cache, name, ticks = read(cache=False), tmp_path / "cache", lambda s: str(min(s.rows)), []

    def stopped(shards, look, tick):
        for k, done in enumerate(RayExecutor(1)(shards, look, tick)):
            if k == 2: raise KeyboardInterrupt
            yield done

    def deadly(shards, look, tick):
        victim = name(shards[2])
        for s, x in RayExecutor(2)(shards, Wrapped(look, lambda model: Deadly(model, tmp_path, name, victim)), tick):
            ticks.append(len(s))
            yield s, x

    with pytest.raises(KeyboardInterrupt): read(cache=cache, executor=stopped)
    kept = len([*cache.rglob("*.safetensors")])
    assert kept == 2
    got = read(cache=cache, executor=deadly)
    counts = begun(tmp_path)
    assert got.tobytes() == want.tobytes()
    assert len(counts) == len(ticks) == len([*cache.rglob("*.safetensors")]) - kept and 2 <= max(counts.values()) and sum(counts.values()) > len(counts)

    def nobody(shards, look, tick): raise AssertionError("nothing is left to compute")
    assert read(cache=cache, executor=nobody).tobytes() == want.tobytes() and read(cache=cache).tobytes() == want.tobytes()
