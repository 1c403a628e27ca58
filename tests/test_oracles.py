"""The library against independent oracles: ruptures, scikit-learn, brute force, and data whose truth is known."""
import numpy as np
import pandas as pd
import pytest
import ruptures
from functools import partial
from hypothesis import given, settings, strategies as st
from sklearn.linear_model import LogisticRegression

from datacentric_w2s.core import Partition
from datacentric_w2s.detection import change_point, detect_overlap, detection_quality, overlap_score
from datacentric_w2s.mixing import mix_rows, student_accuracy
from datacentric_w2s.probes import LinearProbe, evaluate
from datacentric_w2s.regret import POLICIES, Arms, batch_ucb_index, kl_ucb_index, reference_ucb_index, ucb_index
from datacentric_w2s.rewards import BatchDetector
from datacentric_w2s.selection import make_sources, run_selection
from datacentric_w2s.theory import Mixture, mixture_problem

floats = st.lists(st.floats(-10, 10, width=32), min_size=8, max_size=120)
ties = st.lists(st.integers(0, 4).map(float), min_size=8, max_size=60)


def ruptures_split(s, jump, min_size):
    "The published code's break: ruptures' binary segmentation of the sorted scores"
    return ruptures.Binseg(model="l2", jump=jump, min_size=min_size).fit(np.sort(s).reshape(-1, 1)).predict(n_bkps=1)[0]


def split_cost(s, k):
    s = np.sort(s)
    return ((s[:k] - s[:k].mean())**2).sum() + ((s[k:] - s[k:].mean())**2).sum()


@pytest.mark.parametrize("jump, min_size", [(1, 1), (1, 2), (5, 2)])
@given(s=floats | ties)
@settings(max_examples=120, deadline=None)
def test_change_point_is_ruptures(s, jump, min_size):
    s = np.array(s)
    if np.ptp(s) == 0: return
    ours, theirs = change_point(s, jump=jump, min_size=min_size), ruptures_split(s, jump, min_size)
    # the same index, or, where rounding decides between equal costs, the same cost
    assert ours == theirs or np.isclose(split_cost(s, ours), split_cost(s, theirs), rtol=1e-9, atol=1e-9)


def test_change_point_ties_go_to_the_largest_index_as_in_ruptures():
    for s in ([0, 0, 1, 1, 2, 2], [0, 1, 2, 3], [1, 1, 2, 2, 3, 3, 4, 4]):
        assert change_point(s) == ruptures_split(np.array(s, float), 1, 1)


def test_change_point_is_the_least_cost():
    rng = np.random.default_rng(0)
    for n in (2, 5, 33, 400):
        s = rng.gamma(2, size=n)
        assert change_point(s) == 1 + np.argmin([split_cost(s, k) for k in range(1, n)])


@pytest.mark.parametrize("n, d", [(200, 10), (40, 90), (60, 60)])
@pytest.mark.parametrize("l2", [1e-3, .1])
def test_probe_is_scikit_learn(n, d, l2):
    rng = np.random.default_rng(n + d)
    x, y = rng.normal(size=(n, d)) * np.geomspace(1, 30, d), rng.uniform(size=n)
    ours = LinearProbe(l2).fit(x, y)
    theirs = LogisticRegression(C=1 / (2 * n * l2), tol=1e-10, max_iter=20_000, solver="newton-cg").fit(
        np.vstack([x, x]), np.repeat([1, 0], n), sample_weight=np.concatenate([y, 1 - y]))
    assert ours.kkt_ <= 1e-6
    np.testing.assert_allclose(ours.predict_proba(x), theirs.predict_proba(x), atol=2e-5)


def test_probe_on_standardised_features_is_scale_free():
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(80, 5)), rng.uniform(size=80)
    x2 = x * [1, 10, 100, .1, 1e-3] + [5, -3, 1e3, 0, 1]
    a, b = (LinearProbe(.1, True).fit(v, y).predict_proba(v) for v in (x, x2))
    np.testing.assert_allclose(a, b, atol=1e-6)


@given(n=st.integers(2, 60), m=st.integers(1, 40), d=st.integers(1, 9), seed=st.integers(0, 999))
@settings(max_examples=60, deadline=None)
def test_overlap_score_is_its_definition(n, m, d, seed):
    rng = np.random.default_rng(seed)
    x, h = rng.normal(size=(n, d)), rng.normal(size=(m, d))
    g = x @ h.T
    unit = np.linalg.norm(x, axis=1)[:, None] * np.linalg.norm(h, axis=1)
    np.testing.assert_allclose(overlap_score(x, h), np.abs(g / unit).max(1))
    np.testing.assert_allclose(overlap_score(x, h, "mean_square"), (g**2).mean(1))
    np.testing.assert_allclose(overlap_score(x, h, "quantile"), np.quantile(np.abs(g), .75, axis=1))


def separated(shuffle=False, seed=0):
    "Detection quality on a well separated mixture; shuffled: strong features in random order"
    p = mixture_problem(Mixture(np.ones(20), np.ones(20), 1.), (200, 300, 100), seed=seed)
    x = p.w2s.x_strong[np.random.default_rng(seed).permutation(600)] if shuffle else p.w2s.x_strong
    return detection_quality(detect_overlap(evaluate(p).pseudolabels, x), p.w2s.kind).set_index("kind")


def test_detection_recovers_a_separated_mixture_and_fails_on_a_shuffled_one():
    assert separated().loc[:, ["precision", "recall"]].to_numpy().min() > .95
    assert separated(shuffle=True).loc["overlap", "precision"] < .5


@pytest.mark.parametrize("n_overlap, gains", [(300, True), (0, False)])
def test_student_beats_its_teacher_with_overlap_and_not_without(n_overlap, gains):
    gain = []
    for seed in range(4):
        p = mixture_problem(Mixture(.3 * np.ones(20), .3 * np.ones(20), 1.), (300, 300, n_overlap), seed=seed)
        acc = evaluate(p)
        gain.append(acc.w2s - acc.weak)
    assert (np.mean(gain) > .08) == gains and (gains or np.mean(gain) < .03)


@given(overlap=st.integers(3, 30), rest=st.integers(3, 30), share=st.floats(0, 1))
@settings(max_examples=60, deadline=None)
def test_mixes_hold_exactly_n_rows(overlap, rest, share):
    kind = np.repeat(["overlap", "easy"], [overlap, rest])
    rows = mix_rows(Partition(kind, np.ones(len(kind)), np.zeros(len(kind)), 0, 0), share, np.random.default_rng(0))
    n = min(overlap, rest)
    assert len(rows) == len(set(rows)) == n and (kind[rows] == "overlap").sum() == round(n * share)


def known_arms(densities=(.1, .6), seed=1):
    p = mixture_problem(Mixture(np.ones(20), np.ones(20), 1.), (400, 400, 400), seed=seed)
    labels = evaluate(p).pseudolabels
    truth = Partition(p.w2s.kind, labels.conf, np.where(p.w2s.kind == "hard", np.nan, 0), 0, 0, "true kinds")
    return p, labels, truth, make_sources(truth, densities, rebalanced=True)


def test_no_bonus_is_greedy_and_one_arm_is_no_choice():
    p, labels, truth, arms = known_arms()
    play = partial(run_selection, p, labels, truth=truth, rounds=8, every=8)
    greedy = lambda a, rng: np.where(a.pulls == 0, np.inf, a.mean)
    for index in (ucb_index, reference_ucb_index):
        pd.testing.assert_frame_equal(play(arms, greedy), play(arms, partial(index, scale=0.)))
    alone = [play(arms[:1], name, allow_one=True) for name in ("oracle", *POLICIES)]
    for df in alone[1:]: pd.testing.assert_frame_equal(df, alone[0])


def test_same_seed_same_frame():
    p, labels, truth, arms = known_arms()
    for policy in ("random", "thompson", "kl_ucb"):
        a, b = (run_selection(p, labels, arms, policy, truth=truth, rounds=6, seed=5, every=3) for _ in range(2))
        pd.testing.assert_frame_equal(a, b)


def test_oracle_buys_the_densest_and_policies_that_use_batches_beat_random():
    p, labels, truth, arms = known_arms()
    density = {name: np.mean([run_selection(p, labels, arms, name, truth=truth, rounds=15, seed=s, every=15).density.iloc[-1] for s in range(3)])
               for name in ("oracle", "random", "batch_ucb", "thompson")}
    assert density["oracle"] == pytest.approx(.6, abs=.02)
    assert min(density["batch_ucb"], density["thompson"]) > density["random"] + .1


def test_rows_are_bought_once_and_only_from_their_source():
    p, labels, truth, arms = known_arms()
    df = run_selection(p, labels, arms, "random", truth=truth, rounds=10, batch=200, every=10)
    assert len(df) == sum(-(-len(a) // 200) for a in arms) and df.rows.iloc[-1] == sum(map(len, arms))


def test_batch_detector_on_the_whole_pool_is_the_detector():
    p, labels, _, _ = known_arms()
    part = detect_overlap(labels, p.w2s.x_strong)
    flags, _ = BatchDetector(labels.conf, p.w2s.x_strong).flag(np.arange(len(part)))
    assert (flags == (part.kind == "overlap")).all()


def test_index_limits():
    arms = Arms(np.array([1000, 2]), np.array([20_000, 40]), np.array([4000., 8.]), 20, 1002)
    for index in (ucb_index, reference_ucb_index, batch_ucb_index, kl_ucb_index):
        value = index(arms)
        assert value[1] > value[0] >= .2, index
    assert (kl_ucb_index(arms) <= batch_ucb_index(arms)).all()


def test_student_of_gold_labels_is_the_ceiling():
    p, labels, _, _ = known_arms()
    acc = evaluate(p)
    assert student_accuracy(p, labels, np.arange(len(p.w2s)), labels="gold") == acc.strong
    assert student_accuracy(p, labels, np.arange(len(p.w2s))) == acc.w2s
