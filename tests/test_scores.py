"The scores of rows against plain definitions, the effect of leaving rows out against fitting again, and no label in its own score."
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from scipy.stats import spearmanr
from scipy.stats import t as student_t
from sklearn.linear_model import Ridge
from sklearn.metrics import roc_auc_score

from datacentric_w2s import scores
from datacentric_w2s.core import Pseudolabels
from datacentric_w2s.detection import detect, overlap_score
from datacentric_w2s.mixing import student_accuracy
from datacentric_w2s.probes import corrected_se, evaluate, new_probe, topological_filter
from datacentric_w2s.scores import *
from datacentric_w2s.theory import MIXTURE, Mixture, mixture_problem


def make(seed=0, n=60, standardize=False, d=6):
    "A small mixture whose rows come in pairs, as questions with two answers"
    p = mixture_problem(Mixture(.6 * np.ones(d), .6 * np.ones(d), 1., tau2=.1), (n, n, n), seed=seed, preset=replace(MIXTURE, standardize=standardize))
    group = np.random.default_rng(seed).permutation(len(p.w2s)) // 2
    return replace(p, w2s=replace(p.w2s, group=group))


@pytest.fixture(scope="module")
def case():
    p = make()
    labels = evaluate(p).pseudolabels
    return p, labels, detect(p, labels)


def neighbours(x, k):
    "Plain: all distances, the row itself left out"
    d = np.sqrt(((x[:, None] - x) ** 2).sum(-1))
    np.fill_diagonal(d, np.inf)
    near = np.argsort(d, 1)[:, :k]
    return np.take_along_axis(d, near, 1), near


def test_cut_statistic_by_hand(case):
    p, labels, _ = case
    x, y = p.w2s.x_strong, labels.label
    distance, near = neighbours(x, 7)
    share = {c: np.mean(y == c) for c in (0, 1)}
    for i, got in enumerate(cut_statistic(x, y, 7)):
        w = 1 / (1 + distance[i])
        cut = sum(w[j] for j in range(7) if y[near[i, j]] != y[i])
        pi = share[y[i]]
        assert got == pytest.approx(-(cut - (1 - pi) * w.sum()) / np.sqrt(pi * (1 - pi) * (w**2).sum()))


def test_mixed_and_topological_by_hand(case):
    p, labels, part = case
    x, hard = p.w2s.x_strong, part.kind == "hard"
    near = neighbours(x, 9)[1]
    share = np.array([hard[j].mean() for j in near])
    np.testing.assert_allclose(mixed_neighbours(x, hard, 9), share * (1 - share))
    got, kept = topological_score(x, labels.p, 9), topological_filter(x, labels.p, k=9)
    np.testing.assert_allclose(got, 2 * kept + 1 - np.abs(labels.p - np.array([labels.p[j].mean() for j in near])))
    assert (got > 1).sum() == kept.sum() and kept.any()


def plain_projection(x_weak, x_strong, y, group, l2, folds, seed):
    "Nested cross-fitting, word by word, with scikit-learn's ridge"
    fold, score = group_folds(group, folds, seed), np.empty(len(y))
    fit = lambda x, t: Ridge(alpha=8 * l2 * len(x)).fit(x, t)  # free bias; sum of squares, so the penalty grows with the rows
    for a in range(folds):
        residual = np.full(len(y), np.nan)
        for b in set(range(folds)) - {a}:
            seen = (fold != a) & (fold != b)
            residual[fold == b] = y[fold == b] - fit(x_weak[seen], y[seen]).predict(x_weak[fold == b])
        score[fold == a] = np.abs(fit(x_strong[fold != a], residual[fold != a]).predict(x_strong[fold == a]))
    return score


@pytest.mark.parametrize("l2, folds", [(.1, 5), (.01, 3)])
def test_projection_by_hand(case, l2, folds):
    p, labels, _ = case
    v = p.w2s
    np.testing.assert_allclose(projection_score(v.x_weak, v.x_strong, labels.p, v.group, l2=l2, folds=folds, seed=4),
                               plain_projection(v.x_weak, v.x_strong, labels.p, v.group, l2, folds, 4), atol=1e-8)


@pytest.mark.parametrize("seed", range(3))
def test_folds_tear_no_group_and_are_even(seed):
    group = np.random.default_rng(seed).permutation(np.repeat(np.arange(23), 3))
    fold = group_folds(group, 5, seed)
    assert all(len(set(fold[group == g])) == 1 for g in range(23))
    counts = [len(set(group[fold == a])) for a in range(5)]
    assert max(counts) - min(counts) <= 1 and min(counts) > 0
    assert any(not np.array_equal(fold, group_folds(group, 5, s)) for s in range(seed + 1, seed + 5))
    with pytest.raises(ValueError, match="wanted 3 to 23"): group_folds(group, 24)


def test_no_label_enters_the_score_of_its_question(case):
    p, labels, _ = case
    v, y = p.w2s, labels.p
    before = projection_score(v.x_weak, v.x_strong, y, v.group)
    for g in (0, 11, 50):
        mine, changed = v.group == g, y.copy()
        changed[mine] = 1 - changed[mine]
        after = projection_score(v.x_weak, v.x_strong, changed, v.group)
        fold = group_folds(v.group)
        np.testing.assert_allclose(after[fold == fold[mine][0]], before[fold == fold[mine][0]], atol=1e-10)
        assert np.abs(after - before).max() > 1e-5


def test_overlap_scores_are_the_detectors(case):
    p, labels, part = case
    hard, x = part.kind == "hard", p.w2s.x_strong
    for how in ("max_abs_cosine", "max_dot", "mean_square", "quantile"):
        s = row_scores(p, labels, how)
        assert np.isneginf(s[hard]).all()
        np.testing.assert_allclose(s[~hard], overlap_score(x[~hard], x[hard], how))
    other = row_scores(p, labels, "non_hard", seed=3)
    assert np.isneginf(other[hard]).all() and len(set(other[~hard])) == (~hard).sum()


def test_confidence_and_random(case):
    p, labels, _ = case
    np.testing.assert_array_equal(row_scores(p, labels, "confidence"), labels.conf)
    a, b, c = (row_scores(p, labels, "random", seed=s) for s in (1, 1, 2))
    assert np.array_equal(a, b) and not np.array_equal(a, c) and len(set(a)) == len(a)


NEIGHBOURS = ("cut_statistic", "mixed_neighbours", "topological", "projection")


@pytest.mark.parametrize("how", [h for h in SCORES if h not in ("random", "non_hard")])
def test_scores_follow_the_rows(case, how):
    p, labels, part = case
    shuffle = np.random.default_rng(1).permutation(len(labels))
    moved = row_scores(replace(p, w2s=p.w2s[shuffle]), labels[shuffle], how, partition=part[shuffle])
    np.testing.assert_allclose(moved, row_scores(p, labels, how, partition=part)[shuffle], atol=1e-9)


@pytest.mark.parametrize("how", NEIGHBOURS)
def test_units_do_not_matter_where_the_preset_standardises(how):
    p = make(standardize=True)
    labels = evaluate(p).pseudolabels
    part, units = detect(p, labels), np.random.default_rng(0).uniform(.1, 10, p.w2s.x_strong.shape[1])
    other = replace(p, w2s=replace(p.w2s, x_strong=p.w2s.x_strong * units + 3, x_weak=p.w2s.x_weak * 7 - 1))
    np.testing.assert_allclose(row_scores(other, labels, how, partition=part), row_scores(p, labels, how, partition=part), atol=1e-8)


@pytest.mark.parametrize("how", NEIGHBOURS)
def test_rotations_do_not_matter(case, how):
    p, labels, part = case
    turn = np.linalg.qr(np.random.default_rng(0).normal(size=(p.w2s.x_strong.shape[1],) * 2))[0]
    other = replace(p, w2s=replace(p.w2s, x_strong=p.w2s.x_strong @ turn))
    np.testing.assert_allclose(row_scores(other, labels, how, partition=part), row_scores(p, labels, how, partition=part), atol=1e-8)


def test_a_function_is_a_score(case):
    p, labels, part = case
    seen = []

    def mine(problem, pseudolabels, partition):
        seen.append((problem is p, pseudolabels is labels, partition.density == part.density))
        return pseudolabels.p + problem.w2s.y
    np.testing.assert_array_equal(row_scores(p, labels, mine), labels.p + p.w2s.y)
    assert seen == [(True, True, True)]
    assert "mine" in compare_scores(p, labels, scores=(mine,), draws=1).how.tolist()


@pytest.mark.parametrize("score, message", [
    (lambda *a: np.full(180, np.nan), "180 of 180 scores are NaN"),
    (lambda *a: np.r_[np.inf, np.arange(179.)], "1 of 180 scores are NaN or .inf .first: row 0."),
    (lambda *a: np.zeros(180), "nothing to rank"),
    (lambda *a: np.arange(179), r"wanted \(180,\)"),
    ("entropy", "got 'entropy', wanted one of max_abs_cosine"),
])
def test_bad_scores_are_named(case, score, message):
    p, labels, _ = case
    with pytest.raises(ValueError, match=message): row_scores(p, labels, score)


def test_bad_input_is_named(case):
    p, labels, part = case
    with pytest.raises(ValueError, match="179 pseudolabels for 180"): row_scores(p, labels[np.arange(179)], "confidence")
    with pytest.raises(ValueError, match="got 180 neighbours for 180 rows, wanted 1 to 179"): row_scores(p, labels, "cut_statistic", k=180)
    flat = Pseudolabels(np.full(180, .3))
    with pytest.raises(ValueError, match="nothing to rank"): row_scores(p, flat, "confidence")
    with pytest.raises(ValueError, match="no edge to cut"): row_scores(p, flat, "cut_statistic")
    with pytest.raises(ValueError, match="nothing to split"): row_scores(p, flat, "max_dot")
    with pytest.raises(ValueError, match="wanted 2 to 90"): bin_accuracies(p, labels, labels.conf, 91)
    with pytest.raises(ValueError, match="wanted 'test' or 'val'"): leave_out_effect(p, labels, on="weak")
    with pytest.raises(ValueError, match="gives every row the score 0"): leave_out_effect(p, Pseudolabels(np.full(180, .5)))
    with pytest.raises(ValueError, match="0 positive and 3 other"): score_auc([1, 2, 3], [0, 0, 0])


def refitted(p, labels, rows, scale_free, on="test"):
    "Rise of the loss without some rows, written out"
    seen, kept = getattr(p, on), np.setdiff1d(np.arange(len(labels)), rows)
    def loss(r):
        u = new_probe(p.preset).fit(p.w2s.x_strong[r], labels.p[r]).decision_function(seen.x_strong)
        u = u / np.sqrt((u**2).mean()) if scale_free else u
        return -np.mean(seen.y * np.log(1 / (1 + np.exp(-u))) + (1 - seen.y) * np.log(1 / (1 + np.exp(u))))
    return loss(kept) - loss(np.arange(len(labels)))


@pytest.mark.parametrize("scale_free", [False, True])
@pytest.mark.parametrize("on", ["test", "val"])
def test_effect_of_a_row_is_that_of_fitting_again(scale_free, on):
    p = make(1, n=40, d=15)
    p = replace(p, preset=replace(p.preset, l2=.02))
    labels = evaluate(p).pseudolabels
    effect, rows = leave_out_effect(p, labels, scale_free=scale_free, on=on), range(0, 120, 4)
    exact = np.array([refitted(p, labels, [i], scale_free, on) for i in rows])
    np.testing.assert_allclose(leave_out_exact(p, labels, [8], scale_free=scale_free, on=on), exact[2], atol=1e-12)
    assert np.corrcoef(effect[rows], exact)[0, 1] > .999
    assert np.abs(effect[rows] - exact).sum() < .08 * np.abs(exact).sum()  # .01 to .04 over seeds; without the leverage .16 and more
    assert np.mean(np.sign(effect[rows]) == np.sign(exact)) > .96


@pytest.mark.parametrize("scale_free", [False, True])
def test_effect_with_standardised_features_is_that_on_standardised_features(scale_free):
    p = make(1, n=80, standardize=True)
    mean, sd, labels = p.w2s.x_strong.mean(0), p.w2s.x_strong.std(0), evaluate(p).pseudolabels
    scaled = lambda v: replace(v, x_strong=(v.x_strong - mean) / sd)
    plain = replace(p, w2s=scaled(p.w2s), val=scaled(p.val), test=scaled(p.test), preset=replace(p.preset, standardize=False))
    effect = leave_out_effect(p, labels, scale_free=scale_free)
    np.testing.assert_allclose(effect, leave_out_effect(plain, labels, scale_free=scale_free), atol=1e-8)


def test_effect_of_a_group_is_about_the_sum():
    p = make(2, n=80, d=15)
    labels = evaluate(p).pseudolabels
    effect, groups = leave_out_effect(p, labels), np.random.default_rng(0).permutation(240)[:200].reshape(20, 10)
    assert np.corrcoef(effect[groups].sum(1), [refitted(p, labels, g, True) for g in groups])[0, 1] > .97


def test_effect_with_more_features_than_rows():
    p = make(3, n=12, d=30)
    labels = evaluate(p).pseudolabels
    effect = leave_out_effect(p, labels, scale_free=False)
    assert np.corrcoef(effect, [refitted(p, labels, [i], False) for i in range(36)])[0, 1] > .98


def test_wrong_labels_hurt():
    p = make(4, n=150)
    labels = evaluate(p).pseudolabels
    effect, right = leave_out_effect(p, labels), label_right(p, labels) == 1
    assert effect[right].mean() > 0 > effect[~right].mean()


def test_loss_free_of_scale():
    u, y = np.random.default_rng(0).normal(size=50), np.arange(50) % 2
    (loss, g), (larger, _) = scores._test_loss(u, y, True), scores._test_loss(3 * u, y, True)
    assert loss == pytest.approx(larger) and abs(g @ u) < 1e-12
    assert scores._test_loss(u, y, False)[0] != pytest.approx(scores._test_loss(3 * u, y, False)[0])
    for scale_free in (True, False):
        g, step = scores._test_loss(u, y, scale_free)[1], 1e-6 * np.eye(50)
        by_hand = [(scores._test_loss(u + s, y, scale_free)[0] - scores._test_loss(u - s, y, scale_free)[0]) / 2e-6 for s in step]
        np.testing.assert_allclose(g, by_hand, atol=1e-8)


def test_rank_correlation_is_spearmans():
    rng = np.random.default_rng(0)
    a, b, c = rng.integers(0, 9, (3, 200)).astype(float)
    a[:20] = -np.inf
    r = lambda x, y: spearmanr(x, y).statistic
    assert rank_correlation(a, b) == pytest.approx(r(a, b))
    ab, ac, bc = r(a, b), r(a, c), r(b, c)
    assert rank_correlation(a, b, given=c) == pytest.approx((ab - ac * bc) / np.sqrt((1 - ac**2) * (1 - bc**2)))
    side = np.arange(200) < 50
    assert rank_correlation(a, b, within=side) == pytest.approx(.25 * r(a[side], b[side]) + .75 * r(a[~side], b[~side]))
    assert np.isnan(rank_correlation(a, np.ones(200))) and np.isnan(rank_correlation(a, b, given=b))


def test_auc_is_scikit_learns():
    rng = np.random.default_rng(0)
    s, y = rng.integers(0, 9, 300).astype(float), rng.random(300) < .3
    assert score_auc(s, y) == pytest.approx(roc_auc_score(y, s))
    assert score_auc(np.where(s == 0, -np.inf, s), y) == pytest.approx(score_auc(s, y))


def test_bins_are_students_of_equal_size(case):
    p, labels, _ = case
    df, order = bin_accuracies(p, labels, labels.conf, 4), np.argsort(labels.conf)
    for b, rows in enumerate(np.array_split(order, 4)):
        assert df.accuracy[b] == student_accuracy(p, labels, rows) and df.n[b] == 45
        assert df.right[b] == (labels.label == p.w2s.y)[rows].mean() and df.conf[b] == pytest.approx(labels.conf[rows].mean())
    assert bin_accuracies(p, labels, labels.conf, 2, on="val").accuracy[1] == student_accuracy(p, labels, order[90:], on="val")


def test_ties_are_ordered_by_the_seed_and_not_by_the_row():
    s = np.repeat([0., -np.inf], 50)
    a, b = scores._order(s, 0), scores._order(s, 1)
    assert (a[:50] >= 50).all() and not np.array_equal(a, b) and not np.array_equal(np.sort(a[:50]), a[:50])


def test_table_of_scores_by_hand(case):
    p, labels, part = case
    df = compare_scores(p, labels, scores=("quantile", label_right), share=.2, draws=2, bins=3, seed=5).set_index("how")
    s, right, rng = row_scores(p, labels, "quantile"), labels.label == p.w2s.y, np.random.default_rng([5, 2])
    at_random = np.mean([student_accuracy(p, labels, rng.choice(180, 36, replace=False)) for _ in range(2)])
    top, row = np.argsort(s)[-36:], df.loc["quantile"]
    assert row["top - random"] == pytest.approx(student_accuracy(p, labels, top) - at_random)
    assert row["top right"] == pytest.approx(right[top].mean() - right.mean())
    free, plain = leave_out_effect(p, labels), leave_out_effect(p, labels, scale_free=False)
    assert row["effect"] == pytest.approx(spearmanr(s, free).statistic) and row["plain effect"] == pytest.approx(spearmanr(s, plain).statistic)
    clear = part.kind != "hard"
    assert row["effect not hard"] == pytest.approx(spearmanr(s[clear], free[clear]).statistic)
    assert row["effect in class"] == rank_correlation(s, free, within=right) and row["effect given conf"] == rank_correlation(s, free, given=labels.conf)
    along = bin_accuracies(p, labels, s, 3, seed=5)
    assert row["bins"] == pytest.approx(spearmanr(along.bin, along.accuracy).statistic)
    assert np.isnan(df.loc["label_right", "effect in class"]) and df.loc["label_right", "top right"] == pytest.approx(1 - right.mean())


def test_references_see_what_they_say(case):
    p, labels, _ = case
    blind = replace(p, test=replace(p.test, y=1 - p.test.y))
    np.testing.assert_array_equal(val_effect(blind, labels), val_effect(p, labels))
    assert not np.allclose(val_effect(replace(p, val=replace(p.val, y=1 - p.val.y)), labels), val_effect(p, labels))
    np.testing.assert_allclose(gold_projection(p, labels), projection_score(p.w2s.x_weak, p.w2s.x_strong, p.w2s.y, p.w2s.group, l2=.1))


@pytest.mark.parametrize("how", SCORES)
def test_scores_see_no_gold_labels(case, how):
    p, labels, _ = case
    flip = lambda v: replace(v, y=1 - v.y)
    blind = replace(p, w2s=flip(p.w2s), val=flip(p.val), test=flip(p.test))
    np.testing.assert_array_equal(row_scores(blind, labels, how), row_scores(p, labels, how))


def test_cell_is_tidy():
    p = make(5)
    df = scores_cell(p, None, 2)
    assert df.columns.tolist() == ["how", "quantity", "value", "n_weak", "n_w2s", "n_test"] and set(df.n_test) == {180} and set(df.n_w2s) == {180}
    assert not df.duplicated(["how", "quantity"]).any() and len(df) == 3 + len(SCORES + REFERENCES) * len(QUANTITIES)
    pd.testing.assert_frame_equal(df, scores_cell(p, None, 2))
    acc = evaluate(p)
    assert df[df.quantity == "accuracy"].value.tolist() == [acc.weak, acc.w2s, acc.strong]


def test_means_and_intervals():
    cell = lambda name, seed, v: dict(how="x", quantity="effect", value=v, n_weak=60, n_w2s=90, n_test=30, dataset=name, seed=seed)
    means = score_means(pd.DataFrame([cell("a", 0, .1), cell("a", 1, .3), cell("b", 0, .6), cell("b", 1, .6)]))
    np.testing.assert_allclose(means["mean"], [.2, .6])
    np.testing.assert_allclose(means.se, [corrected_se([.1, .3], 1 / 3), 0], atol=1e-12)
    row = over_data_sets(means).iloc[0]
    assert row["mean"] == pytest.approx(.4) and row.sets == 2 and row.clear == 1
    assert row.high - row["mean"] == pytest.approx(student_t.ppf(.975, 1) * .2)  # s.d. .2828 / sqrt 2; the seeds' own noise is smaller
    close = means.assign(mean=[.4, .4])
    assert over_data_sets(close).iloc[0].high - .4 == pytest.approx(student_t.ppf(.975, 1) * means.se[0] / 2)
