"The plain procedures and ours give the same; and the tools that measure them measure what they say. No test here looks at a time."
import sys

import numpy as np
import pandas as pd
import pytest
import torch
import transformers as tf
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import expit
from test_activations import CONFIGS, alike, save

from datacentric_w2s import performance as P
from datacentric_w2s.activations import Look, language_model
from datacentric_w2s.core import Labelled, Problem, Pseudolabels, Views, preset
from datacentric_w2s.detection import change_point, detect_overlap, overlap_score
from datacentric_w2s.probes import LinearProbe
from datacentric_w2s.selection import make_sources, run_selection


@pytest.fixture(scope="module")
def llama(tmp_path_factory): return save(tmp_path_factory.mktemp("llama"), CONFIGS["llama"](max_position_embeddings=128))


def test_the_ways_to_activations_agree_and_are_counted(llama):
    look = Look(language_model(llama), 2, "last", "float32", "cpu")
    shards = look.plan(alike(24))
    model = lambda: tf.AutoModel.from_pretrained(llama).eval()
    df = P.activation_race(look, model, shards, P.Ceiling("float32", "cpu", 1e9, 1e9), plain=4, repeats=1, compile=False)
    assert df.index.tolist() == ["one at a time, all layers", "batches, to the layer", "and shared beginnings"] and (df.difference < 1e-5).all()
    ids = [t for s in shards for t in s.ids]
    block = 2 * 32 * 32 + 2 * 32 * 16 + 3 * 32 * 64
    assert P.active_weights(model(), 2) == 2 * block
    assert df.operations.tolist()[1:] == pytest.approx([2 * 2 * block * sum(map(len, ids)) / 24, 2 * 2 * block * sum(map(look.tokens, shards)) / 24])
    assert sum(map(look.tokens, shards)) < sum(map(len, ids)) and np.allclose(df.percent, 100 * df.texts_a_second * df.operations / 1e9)


def test_a_ceiling_measured_again_is_no_lower():
    top = P.Ceiling("float32", "cpu", 1e18, 1.)
    assert P.again(top) is top and P.again(P.Ceiling("float32", "cpu", 1., 1.)).gemm > 1e6


def test_the_large_shape_is_the_same_twice_and_leaves_the_random_state_alone():
    before = torch.get_rng_state()
    lm, model = P.shaped_like_8b("cpu", dtype="float32", sizes=dict(vocab_size=50, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2))
    a, b = (torch.cat([p.flatten() for p in model().parameters()]) for _ in range(2))
    assert torch.equal(a, b) and torch.equal(torch.get_rng_state(), before) and (lm.n_layers, lm.width, lm.shares) == (2, 32, True)


def test_the_large_shape_puts_back_the_random_state_of_every_card(monkeypatch):
    cards, back = {0: "state of card 0", 1: "state of card 1"}, {}
    monkeypatch.setattr(torch.cuda, "device_count", lambda: len(cards))
    monkeypatch.setattr(torch.cuda, "get_rng_state", cards.get)
    monkeypatch.setattr(torch.cuda, "set_rng_state", lambda state, card: back.update({card: state}))
    P.shaped_like_8b("cpu", sizes=dict(vocab_size=5, hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=1, num_key_value_heads=1))[1]()
    assert back == cards


@given(st.integers(1, 40), st.integers(1, 30), st.integers(1, 9), st.integers(0, 99))
def test_scores_agree(n, m, d, seed):
    rng = np.random.default_rng(seed)
    a, b = rng.normal(size=(n, d)), rng.normal(size=(m, d))
    np.testing.assert_allclose(overlap_score(a, b), P.plain_scores(a, b), rtol=0, atol=1e-14)  # cosines: what is near 0 has fewer digits


@given(st.lists(st.integers(-3, 9), min_size=2, max_size=60).filter(lambda s: min(s) < max(s)))
def test_change_points_agree_with_ties(s): assert change_point(s) == P.plain_change_point(np.array(s, float))


@pytest.mark.parametrize("seed", range(20))
def test_change_points_agree(seed):
    s = np.random.default_rng(seed).normal(size=200)**3
    assert change_point(s) == P.plain_change_point(s)


@pytest.mark.parametrize("n, d", [(40, 12), (20, 30)])
@pytest.mark.parametrize("l2", [1e-3, .1])
def test_probes_agree_by_their_certificates(n, d, l2):
    rng = np.random.default_rng(n)
    x, y = rng.normal(size=(n, d)), rng.uniform(size=n)
    ours = LinearProbe(l2).fit(x, y)
    w, b, value, norm, _ = P.plain_probe(x, y, l2, tol=1e-8)
    assert norm <= 1e-8 and np.linalg.norm(w - ours.coef_) <= (ours.kkt_ + norm) / (2 * l2) and abs(b - ours.intercept_) < 1e-3
    u = ours.decision_function(x)
    assert value == pytest.approx(np.mean(np.logaddexp(0, u) - y * u) + l2 * ours.coef_ @ ours.coef_, rel=1e-9)
    assert P.plain_probe(x, y, l2, enough=value * 1.01, tol=0)[2] <= value * 1.01 and P.plain_probe(x, y, l2, tol=0, evaluations=5)[4] == 5


@pytest.mark.parametrize("l2, standardize", [(1e-3, False), (.1, True)])
def test_a_whole_run_agrees(l2, standardize):
    rng = np.random.default_rng(1)
    x = rng.normal(size=(700, 10))
    p = expit(x @ rng.normal(size=10) + rng.normal(size=700))
    views = Views(x, x, (p > .5).astype(int), np.arange(700))
    problem, labels = Problem(Labelled(x[:50], views.y[:50]), views[:500], views[500:], views[500:], preset("embedded")), Pseudolabels(p[:500])
    truth = detect_overlap(labels, x[:500])
    sources = make_sources(truth, (.1, .9), 0)
    ours = run_selection(problem, labels, sources, "batch_ucb", truth=truth, rounds=6, l2=l2, standardize=standardize, seed=2)
    plain = P.plain_selection(problem, labels, sources, ours.source.tolist(), l2=l2, standardize=standardize, seed=2)
    np.testing.assert_allclose(ours.reward, plain.reward, atol=1e-12)
    for c in ("accuracy", "accuracy_overlap_only"): np.testing.assert_allclose(ours[c], plain[c], atol=1.5 / 200)


def test_a_race_runs_all_in_turns():
    calls = []
    times, out = P.race([("a", lambda: calls.append("a")), ("b", lambda: calls.append("b") or 7)], 2)
    assert calls == ["a", "b"] * 3 and out == [None, 7] and times.path.tolist() == ["a", "b"] * 2 and (times.seconds >= 0).all()
    table = P.side_by_side(pd.DataFrame(dict(path=list("aabb"), seconds=[4., 8, 1, 2])))
    assert table.times_faster.tolist() == [1, 4]


def test_exponents():
    assert P.exponent([10, 20, 40], [7, 28, 112]) == pytest.approx(2)
    with pytest.raises(ValueError, match="at least two different"): P.exponent([3, 3], [1, 2])


def test_a_ceiling_is_finite_and_bounded_by_its_size():
    c = P.ceiling("float64", size=256, seconds=.02)
    assert (c.dtype, c.device) == ("float64", "cpu") and 1e7 < c.gemm < 1e14 and 1e7 < c.copy < 1e13


@pytest.mark.skipif(sys.platform != "linux", reason="the mark of the highest memory is Linux's")
def test_peak_memory_is_that_of_the_arrays():
    got = P.peak_memory((np.ones, 10_000_000), (np.ones, 1), (np.ones, 20_000_000))
    assert np.allclose(got, [80e6, 0, 160e6], atol=8e6)
