"Designs that tell overlap from confidence: planted truth, null calibration, and statistics against hand computations."
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings, strategies as st
from scipy import stats

from datacentric_w2s.core import KINDS, Partition, Views, preset
from datacentric_w2s.matching import (SCORES, Difference, auc, balance, composed_subsets, composition_regression, detectable, difference, difference_table,
                                      draw_patterns, known_partition, matching_cell, pair_hits, planted_problem, planted_study, plant, pool, power, resplit,
                                      slopes, stratified_difference, weighted_mean)
from datacentric_w2s.mixing import matched_pairs
from datacentric_w2s.probes import evaluate, new_probe, pseudolabel
from datacentric_w2s.theory import Mixture, mixture_problem


def mixture(seed, n=(150, 150, 150), d=6):
    rng = np.random.default_rng(seed)
    return mixture_problem(Mixture(rng.uniform(.3, 1, d), rng.uniform(.3, 1, d), 2.), n, seed=seed)


def background(seed, n=400, pairs=True):
    "A problem with correlated features and rows tied in pairs, whose labels mean nothing"
    rng = np.random.default_rng(seed)
    mix = rng.normal(size=(12, 30))
    def views(n, first):
        x = .4 * rng.normal(size=(n, 12)) @ mix + rng.normal(size=(n, 30)) + 2
        group = first + (np.arange(n) // 2 if pairs else np.arange(n))
        return Views(x[:, :14].astype(np.float32), x.astype(np.float32), np.arange(n) % 2, np.arange(n), group=group)
    p = mixture_problem(Mixture(np.ones(14), np.ones(16)), (10, 10, 10))
    weak = views(n, 0)
    return replace(p, weak=replace(p.weak, x=weak.x_weak, y=weak.y), w2s=views(n, 10_000), val=views(n, 20_000), test=views(n, 30_000))


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("components", [None, 3])
def test_planted_rows_are_background_plus_patterns(seed, components):
    base = background(seed)
    planted = planted_problem(base, seed, effect_easy=(1., 2.), effect_hard=3., shares=(1, 2, 1), components=components)
    p, pat = planted.problem, planted.patterns
    for split in ("w2s", "val", "test"):
        new, old = getattr(p, split), getattr(base, split)
        sign, easy, hard = 2 * new.y - 1, new.kind != "hard", new.kind != "easy"
        np.testing.assert_allclose(new.x_weak - old.x_weak, np.outer(sign * easy, pat.weak_easy), atol=1e-4)
        np.testing.assert_allclose(new.x_strong - old.x_strong, np.outer(sign * easy, pat.strong_easy) + np.outer(sign * hard, pat.strong_hard), atol=1e-4)
        assert np.array_equal(new.group, old.group) and np.array_equal(new.ids, old.ids) and new.x_strong.dtype == old.x_strong.dtype
        table = pd.DataFrame(dict(g=new.group, kind=new.kind, y=new.y)).groupby("g")
        assert (table.kind.nunique() == 1).all() and (table.y.sum() == 1).all()  # one kind a pair, one answer of it right
        np.testing.assert_allclose([(new.kind == k).mean() for k in KINDS], (.25, .5, .25), atol=.01)
    moved = np.ptp(p.weak.x - base.weak.x, axis=1)
    assert (np.isclose(moved, 0, atol=1e-4)).mean() == pytest.approx(.5, abs=.01)  # hard rows of the weak split stay as they were


@pytest.mark.parametrize("components", [None, 3])
def test_patterns_are_as_long_as_the_spread_along_them(components):
    base = background(1, 4000).w2s
    lengths = []
    for seed in range(60):
        v = draw_patterns(base, np.random.default_rng(seed), effect_easy=1., effect_hard=2., components=components).strong_hard
        spread = (base.x_strong / base.x_strong.std(0)).astype(float)
        u = v / base.x_strong.std(0)
        lengths.append(np.linalg.norm(u)**2 / (4 * np.var(spread @ (u / np.linalg.norm(u)))) if components else np.linalg.norm(u) / 2)
    if components is None: np.testing.assert_allclose(lengths, 1, rtol=1e-5)
    else: assert np.all(np.array(lengths) < 1.7) and .4 < np.mean(lengths) < 1.2  # exact along one component; among several the variance is a weighted mean


def test_one_component_has_exactly_the_spread():
    base = background(2, 1000).w2s
    v = draw_patterns(base, np.random.default_rng(0), effect_easy=1., effect_hard=1.5, components=1).strong_hard
    z, u = (base.x_strong / base.x_strong.std(0)).astype(float), v / base.x_strong.std(0, dtype=float)
    assert np.linalg.norm(u) == pytest.approx(1.5 * np.std(z @ (u / np.linalg.norm(u))), rel=1e-4)


def test_rows_without_a_pattern_are_untouched_and_labels_are_fresh():
    base = background(3, pairs=False)
    p = planted_problem(base, 0, effect_easy=0, effect_hard=0).problem
    assert np.array_equal(p.test.x_strong, base.test.x_strong) and np.array_equal(p.w2s.x_weak, base.w2s.x_weak)
    assert abs(np.corrcoef(p.w2s.y, base.w2s.y)[0, 1]) < .2 and abs(p.w2s.y.mean() - .5) < .1
    for bad in (dict(effect_easy=-1, effect_hard=1), dict(effect_easy=1, effect_hard=1, shares=(0, 0, 0)), dict(effect_easy=1, effect_hard=1, shares=(1, -1, 1))):
        with pytest.raises(ValueError, match="got"): planted_problem(base, 0, **bad)


def designs(p, part, labels, seed):
    "Matched difference, slope, strata"
    return (pair_hits(p, labels, matched_pairs(part, labels)).mean(), composition_regression(p, part, labels, subsets=16, seed=seed).slope[0],
            weighted_mean(stratified_difference(p, part, labels, draws=1, seed=seed)))


def test_designs_find_a_planted_difference_and_nothing_between_exchangeable_rows():
    found, null = [], []
    for seed in range(8):
        p = planted_problem(background(seed), seed, effect_easy=1., effect_hard=3.).problem
        labels = evaluate(p).pseudolabels
        kind, rng = p.w2s.kind.copy(), np.random.default_rng(seed)
        found.append(designs(p, known_partition(kind, labels), labels, seed))
        seen = np.flatnonzero(kind != "hard")
        kind[seen] = rng.permutation(kind[seen])  # the same counts, at random
        null.append(designs(p, known_partition(kind, labels), labels, seed))
    assert (np.mean(found, 0) > .04).all()
    assert (np.abs(np.mean(null, 0)) < 4 * np.std(null, 0, ddof=1) / 8**.5 + .005).all() and (np.abs(np.mean(null, 0)) < .5 * np.mean(found, 0)).all()


def test_size_of_the_matched_test_is_nominal():
    "200 studies of 3 independent problems each, kinds at random among equal rows"
    rejected = []
    for study in range(200):
        values = []
        for k in range(3):
            rng, p = np.random.default_rng([study, k]), mixture(3 * study + k, (40, 20, 40), d=3)
            labels = pseudolabel(new_probe(p.preset).fit(p.weak.x, p.weak.y), p.w2s.x_weak)
            kind = np.where(p.w2s.kind == "hard", "hard", rng.choice(["easy", "overlap"], len(p.w2s)))
            values.append(pair_hits(p, labels, matched_pairs(known_partition(kind, labels), labels)).mean())
        rejected.append(difference(values).p < .05)
    assert .01 <= np.mean(rejected) <= .11  # binomial: .05 with a standard error of .015


def test_slopes_are_those_of_least_squares():
    rng = np.random.default_rng(0)
    x, beta = rng.normal(size=(80, 3)) @ rng.normal(size=(3, 3)), np.array([.3, -.2, .05])
    y = .5 + x @ beta + .1 * rng.normal(size=80)
    found, z = slopes(x, y, "abc"), np.column_stack([np.ones(80), x])
    b = np.linalg.solve(z.T @ z, z.T @ y)
    se = np.sqrt(np.diag(np.linalg.inv(z.T @ z)) * np.sum((y - z @ b)**2) / 76)
    np.testing.assert_allclose(found.slope, b[1:])
    np.testing.assert_allclose(found.se, se[1:])
    np.testing.assert_allclose(slopes(x, 1 + x @ beta, "abc").slope, beta)


def test_regression_tells_share_from_confidence():
    "An accuracy that hangs on confidence alone has no slope on the share, and the other way round"
    p = mixture(0)
    labels = evaluate(p).pseudolabels
    part = known_partition(p.w2s.kind, labels)
    rows = composed_subsets(part, labels, subsets=60, seed=3)
    x = np.array([((part.kind[r] == "overlap").mean(), labels.conf[r].mean()) for r in rows])
    assert abs(np.corrcoef(x.T)[0, 1]) < .5 and np.std(x[:, 1]) > .02 and np.ptp(x[:, 0]) > .9
    np.testing.assert_allclose(slopes(x, .2 * x[:, 1], "sc").slope, [0, .2], atol=1e-10)
    np.testing.assert_allclose(slopes(x, .1 * x[:, 0], "sc").slope, [.1, 0], atol=1e-10)
    assert all(np.array_equal(a, b) for a, b in zip(rows, composed_subsets(part, labels, subsets=60, seed=3)))
    with pytest.raises(ValueError, match="rows labelled"): composed_subsets(part, labels, n=2)


@settings(max_examples=40, deadline=None)
@given(st.lists(st.floats(-1, 1), min_size=2, max_size=12).filter(lambda v: np.std(v) > 1e-6), st.floats(0, 1), st.floats(.01, 2))
def test_equivalence_is_two_one_sided_tests(values, ratio, delta):
    d = difference(values, ratio)
    J, m, s = len(values), np.mean(values), np.std(values, ddof=1)
    se = s * np.sqrt(1 / J + ratio)
    lower, upper = stats.t.sf((m + delta) / se, J - 1), stats.t.cdf((m - delta) / se, J - 1)
    assert d.p_equivalent(delta) == pytest.approx(max(lower, upper), abs=1e-12)
    assert (d.p_equivalent(delta) <= .05 + 1e-12) == (d.bound <= delta * (1 + 1e-9)) or abs(d.bound - delta) < 1e-9
    t = abs(m) / se
    assert d.p == pytest.approx(2 * stats.t.sf(t, J - 1)) and d.interval()[0] <= m <= d.interval()[1]


@pytest.mark.parametrize("df", [1, 4, 19, 200])
@pytest.mark.parametrize("effect", [0., 1., 2.8, 4.])
def test_power_is_that_of_the_noncentral_t(df, effect):
    c = stats.t.ppf(.975, df)
    assert power(effect, df) == pytest.approx(stats.nct.sf(c, df, effect) + stats.nct.cdf(-c, df, effect), abs=2e-3)
    d = Difference(0, .01, df)
    assert power(detectable(d) / d.se, df) == pytest.approx(.8, abs=1e-6)


def test_degenerate_differences():
    assert difference([0, 0, 0]).p == 1 and difference([.1, .1]).p == 0 and difference([.1, .1]).p_equivalent(.2) == 0
    assert difference([.1, np.nan, .3]).df == 1
    with pytest.raises(ValueError, match="two redraws"): difference([.1, np.nan])
    with pytest.raises(ValueError, match="margin"): difference([.1, .2]).p_equivalent(0)


def test_pool_against_a_hand_computation():
    d, tau = pool([.02, -.01, .05], [.01, .02, .02])
    w = np.array([1e4, 2500, 2500])
    mu = np.array([.02, -.01, .05]) @ w / w.sum()
    q = w @ (np.array([.02, -.01, .05]) - mu)**2
    t2 = (q - 2) / (w.sum() - (w**2).sum() / w.sum())
    w = 1 / (1 / w + t2)
    assert tau == pytest.approx(t2**.5) and d.mean == pytest.approx(np.array([.02, -.01, .05]) @ w / w.sum()) and d.df == 2
    assert d.se >= (1 / w.sum())**.5 - 1e-12


def test_difference_table_is_corrected_where_splits_share_rows():
    df = pd.DataFrame(dict(k=["a"] * 4 + ["b"], value=[.1, .2, .3, .4, .5], n_weak=200, n_w2s=300, n_test=100))
    row, = difference_table(df, ["k"]).itertuples()
    assert row.k == "a" and row.redraws == 4 and row.se == pytest.approx(np.std([.1, .2, .3, .4], ddof=1) * (1 / 4 + 1 / 3)**.5)
    assert difference_table(df.drop(columns=["n_weak", "n_w2s", "n_test"]), ["k"]).se[0] == pytest.approx(np.std([.1, .2, .3, .4], ddof=1) / 2)


def test_balance_is_exact_where_partners_are_equal():
    p = mixture(1)
    labels = evaluate(p).pseudolabels
    part = known_partition(p.w2s.kind, labels)
    right = labels.label == p.w2s.y
    table = balance(p, part, labels, matched_pairs(part, labels, right=right), extra=pd.DataFrame(dict(length=np.arange(len(p.w2s)))))
    after = table[table.when == "after"].set_index("quantity")
    assert after.difference["teacher_right"] == 0 and after.difference["label_1"] == 0 and "length" in after.index and abs(after.difference["confidence"]) <= .05
    before = table[table.when == "before"].set_index("quantity")
    o, e = (right[part.rows(k)] for k in ("overlap", "easy"))
    assert before.difference["teacher_right"] == pytest.approx(o.mean() - e.mean())
    assert before.se["teacher_right"] == pytest.approx(np.sqrt(o.var() / len(o) + e.var() / len(e)), rel=.01)


def test_pairs_too_few_and_kinds_missing_give_nan_not_a_guess():
    p = mixture(2)
    labels = evaluate(p).pseudolabels
    assert np.isnan(pair_hits(p, labels, np.zeros((3, 2), int))).all()
    part = Partition(np.where(labels.conf < .1, "hard", "overlap"), labels.conf, np.where(labels.conf < .1, np.nan, 1.), .1, 0.)
    assert np.isnan(weighted_mean(stratified_difference(p, part, labels)))


def test_cell_is_tidy_and_repeats():
    p = mixture(3)
    cell = matching_cell(p, None, 1, subsets=10)
    assert list(cell.columns) == ["score", "design", "quantity", "value", "n"] and set(cell.score) == {"none", *SCORES} and len(cell) <= 60
    assert not cell.duplicated(["score", "design", "quantity"]).any()
    pd.testing.assert_frame_equal(cell, matching_cell(p, None, 1, subsets=10))


def test_auc_counts_pairs():
    rng = np.random.default_rng(0)
    s, t = rng.integers(0, 6, 50), rng.random(50) < .4
    by_hand = np.mean([(a > b) + .5 * (a == b) for a in s[t] for b in s[~t]])
    assert auc(s, t) == pytest.approx(by_hand) and np.isnan(auc(s, np.ones(50, bool)))


def test_a_study_keeps_its_truth_and_its_splits_are_disjoint():
    views = background(4).w2s
    wide = replace(preset("embedded"), l2=.1)
    a, b = (resplit(views, wide, s) for s in (0, 1))
    assert sum(map(len, (a.weak, a.w2s, a.val, a.test))) == len(views)
    assert not set(a.w2s.group) & set(a.test.group) and not set(a.val.group) & set(a.test.group) and not np.array_equal(a.test.ids, b.test.ids)
    options = dict(effect_easy=1., effect_hard=2., shares=(1, 1, 1), redraws=2, subsets=6)
    pd.testing.assert_frame_equal(planted_study(views, wide, 5, **options), planted_study(views, wide, 5, **options))
    with pytest.raises(ValueError, match="shares of the questions"): resplit(views, preset("paper"), 0)


def test_smoothed_errors_do_not_let_a_lucky_one_rule():
    lucky, _ = pool([.05, 0, 0], [1e-4, .02, .02], size=[300, 300, 300])
    assert lucky.mean == pytest.approx(.05 / 3) and pool([.05, 0, 0], [1e-4, .02, .02])[0].mean > .02
    assert pool([.10, .11], [.1, .1], size=[100, 300])[0].mean == pytest.approx(.1075)
