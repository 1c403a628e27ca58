"Mixes, controls and pairs are what they say: sizes, disjointness, optimality, and sums that must agree, on data of many shapes."
from dataclasses import replace
from itertools import combinations, permutations

import numpy as np
import pandas as pd
import pytest

from datacentric_w2s import mixing
from datacentric_w2s.core import KINDS, Partition, Pseudolabels
from datacentric_w2s.detection import detect, detect_like, detect_overlap
from datacentric_w2s.mixing import (SHARES, accuracy_by_test_kind, choose_l2, control_size, equal_size_controls, matched_pairs, mix_rows, mix_sizes,
                                    mixing_cell, mixing_curve, mixing_summary, paired_differences, pooled, reference_lines, student_accuracy, student_hits, threshold_map)
from datacentric_w2s.probes import corrected_se, evaluate, pseudolabel
from datacentric_w2s.theory import Mixture, full_table, mixture_problem


def partition(counts, rng, conf=None):
    "A partition with given numbers of easy, hard and overlap rows in random order"
    kind = rng.permutation(np.repeat(KINDS, counts))
    return Partition(kind, rng.random(len(kind)) if conf is None else conf, np.where(kind == "hard", np.nan, .5), .5, .5)


@pytest.fixture(scope="module")
def problem(): return mixture_problem(Mixture.published(np.random.default_rng(0), sigma2=3.), (70, 90, 80), seed=0)


@pytest.fixture(scope="module")
def acc(problem): return evaluate(problem)


@pytest.fixture(scope="module")
def part(problem, acc): return detect(problem, acc.pseudolabels)


@pytest.fixture
def fitted(monkeypatch):
    "Records the rows and labels of every student"
    seen, plain = [], mixing.student_hits
    def spy(problem, pseudolabels, rows, *, labels="soft", **options):
        seen.append((np.asarray(rows), labels))
        return plain(problem, pseudolabels, rows, labels=labels, **options)
    monkeypatch.setattr(mixing, "student_hits", spy)
    return seen


# Sizes of a mix


@pytest.mark.parametrize("share", [*SHARES, .05, 1 / 3, .999])
def test_our_mixes_lose_no_row(share):
    for n in range(3, 300):
        m, k = mix_sizes(n, share)
        assert m + k == n and abs(m - n * share) <= .5 and min(m, k) >= 0


@pytest.mark.parametrize("noisy", np.arange(0, 1.05, .1), ids="{:.1f}".format)
def test_published_mixes_round_both_parts_down(noisy):
    p = round(float(noisy), 1)
    for n in range(3, 300):
        sizes = mix_sizes(n, min(noisy, 1.), "published")
        assert sizes == (int(n * p), int(n * (1 - p)))
        assert sum(sizes) in ((n,) if p in (0, 1) else (n - 1, n))


def test_published_mixes_do_lose_rows(): assert mix_sizes(10, .9, "published") == (9, 0) and mix_sizes(103, .1, "published") == (10, 92)


@pytest.mark.parametrize("protocol", ["ours", "published"])
@pytest.mark.parametrize("counts", [(5, 10, 8), (40, 3, 100), (0, 60, 41)])
def test_a_mix_has_its_share_and_no_row_twice(counts, protocol):
    rng = np.random.default_rng(1)
    p = partition(counts, rng)
    n = min(counts[2], counts[0] + counts[1])
    for share in SHARES:
        rows = mix_rows(p, share, rng, protocol=protocol)
        m, k = mix_sizes(n, share, protocol)
        assert len(set(rows.tolist())) == len(rows) == m + k and (p.kind[rows] == "overlap").sum() == m


@pytest.mark.parametrize("counts", [(5, 5, 0), (0, 0, 9), (1, 1, 30), (50, 50, 2)])
def test_too_few_rows_of_a_side_are_an_error(counts):
    with pytest.raises(ValueError, match="a mix needs 3 rows"): mix_rows(partition(counts, np.random.default_rng(0)), .5, np.random.default_rng(0))


def test_unknown_protocol_and_share():
    with pytest.raises(ValueError, match="wanted 'ours' or 'published'"): mix_sizes(10, .5, "publshed")
    for share in (-.1, 1.1, np.nan):
        with pytest.raises(ValueError, match="wanted a number in"): mix_sizes(10, share)


def test_draws_differ_and_a_seed_gives_its_rows_again(problem, acc, part, fitted):
    options = dict(shares=(0, .5), draws=3)
    curve = mixing_curve(problem, part, acc.pseudolabels, seeds=[4, 5], **options)
    rows = [tuple(sorted(r)) for r, _ in fitted]
    assert len(set(rows)) == len(rows) == 12 and curve[["share", "seed", "draw"]].drop_duplicates().shape == (12, 3)
    again = mixing_curve(problem, part, acc.pseudolabels, seeds=[5], **options)
    pd.testing.assert_frame_equal(again, curve[curve.seed == 5].reset_index(drop=True))


def test_a_mix_of_one_class_has_a_reason_instead_of_a_number(problem, acc, part):
    one = replace(problem, w2s=replace(problem.w2s, y=(np.arange(len(problem.w2s)) == part.rows("hard")[0]).astype(int)))
    curve = mixing_curve(one, part, acc.pseudolabels, shares=(1,), seeds=[0], labels="gold", n=3)  # no overlap row is of class 1
    assert np.isnan(curve.accuracy[0]) and curve.note[0] == "labels of one class"
    assert mixing_curve(problem, part, acc.pseudolabels, shares=(1,), seeds=[0]).note[0] == ""


# Reference lines


def test_the_random_line_learns_weak_labels(problem, acc, fitted):
    lines = reference_lines(problem, acc, 50, draws=4).set_index("line")
    assert len(lines) == 4 and lines.accuracy[["weak", "student of all rows", "strong"]].tolist() == [acc.weak, acc.w2s, acc.strong]
    assert [labels for _, labels in fitted] == ["soft"] * 4 and {len(set(r.tolist())) for r, _ in fitted} == {50}
    assert lines.accuracy["random rows, equal size"] == pytest.approx(np.mean([student_accuracy(problem, acc.pseudolabels, r) for r, _ in fitted[:4]]))
    for n in (2, len(problem.w2s) + 1):
        with pytest.raises(ValueError, match="the w2s rows"): reference_lines(problem, acc, n)


# Pairs


def best_pairs(apart, caliper):
    "By trying everything: the largest number of pairs within the caliper and, of those, the smallest sum"
    n, m = apart.shape
    for size in range(min(n, m), 0, -1):
        sums = [sum(apart[i, j] for i, j in zip(left, right)) for left in combinations(range(n), size) for right in permutations(range(m), size)
                if all(apart[i, j] <= caliper for i, j in zip(left, right))]
        if sums: return size, min(sums)
    return 0, 0.


@pytest.mark.parametrize("seed", range(40))
def test_pairs_are_the_best_there_are(seed):
    rng = np.random.default_rng(seed)
    part, caliper = partition(rng.integers(0, [6, 3, 6]), rng), float(rng.choice([.03, .1, .2, 2.]))
    p = rng.random(len(part))
    labels, right = Pseudolabels(.5 + p / 2 if seed % 4 < 2 else p), rng.integers(0, 2, len(part)) if seed % 2 else None
    pairs = matched_pairs(part, labels, caliper=caliper, right=right)
    stratum = labels.label + 2 * (0 if right is None else right)
    found = np.array([best_pairs(np.abs(labels.conf[o][:, None] - labels.conf[e]), caliper) for v in range(4)
                      for o, e in [[rows[stratum[rows] == v] for rows in (part.rows("overlap"), part.rows("easy"))]]])
    assert pairs.shape == (found[:, 0].sum(), 2) and np.abs(np.diff(labels.conf[pairs])).sum() == pytest.approx(found[:, 1].sum())


@pytest.mark.parametrize("seed", range(5))
def test_pairs_keep_to_label_caliper_and_right(seed):
    rng = np.random.default_rng(seed)
    part, labels, right = partition((80, 20, 60), rng), Pseudolabels(rng.random(160)), rng.integers(0, 2, 160)
    pairs = matched_pairs(part, labels, caliper=.03, right=right)
    assert len(pairs) > 20 and set(part.kind[pairs[:, 0]]) == {"overlap"} and set(part.kind[pairs[:, 1]]) == {"easy"}
    assert len(np.unique(pairs)) == pairs.size and (np.abs(np.diff(labels.conf[pairs])) <= .03).all()
    assert (labels.label[pairs[:, 0]] == labels.label[pairs[:, 1]]).all() and (right[pairs[:, 0]] == right[pairs[:, 1]]).all()


@pytest.mark.parametrize("counts", [(5, 5, 0), (0, 5, 5), (0, 4, 0), (0, 0, 0)])
def test_no_pairs_is_an_empty_array(counts):
    part = partition(counts, np.random.default_rng(0))
    assert matched_pairs(part, Pseudolabels(np.full(len(part), .7))).shape == (0, 2)
    with pytest.raises(ValueError, match="row-aligned"): matched_pairs(part, Pseudolabels(np.full(3, .7)))


# Controls


CONTROLS = ["overlap", "easy", "hard", "top confidence", "random non-hard", "random", "random, gold labels", "overlap, matched", "easy, matched", "overlap, equally right", "easy, equally right"]


def test_controls_are_of_one_size_and_what_they_say(problem, acc, part, fitted):
    flip = np.random.default_rng(0).random(len(problem.w2s)) < .3  # a teacher that is wrong everywhere, so that its being right must be matched
    problem = replace(problem, w2s=replace(problem.w2s, y=np.where(flip, 1 - problem.w2s.y, problem.w2s.y)))
    df = equal_size_controls(problem, part, acc.pseudolabels, seeds=[0, 1], draws=2)
    assert df.control.tolist() == CONTROLS * 4 and df.n.nunique() == 1 and df.n[0] >= 20 and (df.note == "").all()
    right, surest = acc.pseudolabels.label == problem.w2s.y, np.sort(part.conf)[-df.n[0]]
    for (rows, labels), r in zip(fitted, df.itertuples()):
        assert len(set(rows.tolist())) == len(rows) == r.n and labels == ("gold" if "gold" in r.control else "soft")
        kinds = {"random non-hard": {"easy", "overlap"}}.get(r.control, {r.control.split(",")[0]} if r.control.split(",")[0] in KINDS else set(KINDS))
        assert set(part.kind[rows]) <= kinds and (r.control != "top confidence" or part.conf[rows].min() >= surest)
        assert r.right == pytest.approx(1 if "gold" in r.control else right[rows].mean())
    by = df.set_index(["seed", "draw", "control"]).right.unstack()
    assert np.allclose(by["overlap, equally right"], by["easy, equally right"]) and not np.allclose(by["overlap, matched"], by["easy, matched"]) and by["random"].nunique() > 1


@pytest.mark.parametrize("counts, n, left_out", [((4, 100, 90), 90, {"easy", "easy, matched", "overlap, matched"}), ((30, 100, 60), None, set()), ((60, 5, 50), None, {"hard"})])
def test_a_kind_of_a_few_rows_is_left_out_and_says_so(problem, acc, counts, n, left_out):
    rng = np.random.default_rng(0)
    kind = rng.permutation(np.repeat(KINDS, counts))
    few, small = Partition(kind, acc.pseudolabels.conf[:len(kind)], np.where(kind == "hard", np.nan, 0.), 0, 0), replace(problem, w2s=problem.w2s[:len(kind)])
    df = equal_size_controls(small, few, acc.pseudolabels[:len(kind)], seeds=[0]).set_index("control")
    missing = {c for c in df.index[df.n == 0] if "equally" not in c}
    assert missing == left_out and set(df.note[df.n == 0]) <= {"fewer rows than the others"} and df.n[df.n > 0].nunique() == 1
    assert df.accuracy.isna().equals(df.n == 0) and (n is None or df.n["overlap"] == n)
    assert paired_differences(df.reset_index(), .3).set_index("difference").splits.eq(0).sum() == sum(f"overlap - {c}" in {f"overlap - {k}" for k in KINDS} for c in left_out) + sum(df.n[["easy, matched", "easy, equally right"]] == 0)


def test_size_of_the_controls():
    part = partition((30, 100, 50), np.random.default_rng(0))
    assert [control_size(part), control_size(part, [25, 40]), control_size(part, [3]), control_size(part, n=50), control_size(part, [7], least=5)] == [30, 25, 30, 50, 7]
    assert control_size(partition((100, 100, 8), np.random.default_rng(0)), [6]) == 8
    with pytest.raises(ValueError, match="wanted 3 to 50"): control_size(part, n=51)
    for few in (0, 2):
        with pytest.raises(ValueError, match=f"{few} overlap rows, 3 are needed"): control_size(partition((100, 100, few), np.random.default_rng(0)))


def test_differences_are_paired_by_seed():
    rng = np.random.default_rng(0)
    df = pd.DataFrame([(c, s, d, 10 * s + rng.random()) for c in ("easy", "overlap", "easy, matched", "overlap, matched") for s in range(6) for d in range(2)], columns=["control", "seed", "draw", "accuracy"])
    out = paired_differences(df.sample(frac=1, random_state=0), 1 / 3).set_index("difference")
    assert set(out.index) == {"overlap - easy", "overlap, matched - easy, matched"}
    d = [df[(df.control == "overlap") & (df.seed == s)].accuracy.mean() - df[(df.control == "easy") & (df.seed == s)].accuracy.mean() for s in range(6)]
    assert out.loc["overlap - easy"].tolist() == pytest.approx([np.mean(d), corrected_se(d, 1 / 3), 6])
    with pytest.raises(ValueError, match="wanted one of"): paired_differences(df, 0, of="hard")


# Kinds of test rows


@pytest.mark.parametrize("true_kinds", [True, False])
def test_kinds_add_up_to_the_whole(problem, acc, part, true_kinds):
    df = accuracy_by_test_kind(problem, part, acc, kind=problem.test.kind if true_kinds else None, seed=2, draws=2)
    found = problem.test.kind if true_kinds else detect_like(problem, part, pseudolabel(acc.probes[0], problem.test.x_weak), problem.test.x_strong).kind
    assert df[df.model == "weak"].n.tolist() == [(found == k).sum() for k in KINDS]
    total = df.assign(hits=df.n * df.accuracy).groupby("model")[["hits", "n"]].sum()
    assert (total.n == len(problem.test)).all()
    mean = total.hits / total.n
    assert mean[["weak", "student of all rows", "strong"]].tolist() == pytest.approx([acc.weak, acc.w2s, acc.strong])
    controls = equal_size_controls(problem, part, acc.pseudolabels, seeds=[2], draws=2).groupby("control").accuracy.mean()
    assert mean[CONTROLS].tolist() == pytest.approx(controls[CONTROLS].tolist())
    assert (df.assign(ones=df.n * df.label_1).groupby("model").ones.sum() / len(problem.test)).tolist() == pytest.approx([problem.test.y.mean()] * len(mean))
    with pytest.raises(ValueError, match="the test rows"): accuracy_by_test_kind(problem, part, acc, kind=problem.test.kind[1:])


@pytest.mark.parametrize("seed", range(3))
def test_where_kinds_are_true_the_gain_is_on_hard_rows(seed):
    p = mixture_problem(Mixture(.3 * np.ones(20), .3 * np.ones(20), 1.), (300, 300, 300), seed=seed)
    a = evaluate(p)
    truth = Partition(p.w2s.kind, a.pseudolabels.conf, np.where(p.w2s.kind == "hard", np.nan, 0.), 0, 0)
    hard = accuracy_by_test_kind(p, truth, a, kind=p.test.kind).query("kind == 'hard'").set_index("model").accuracy
    assert hard["overlap"] > hard[["weak", "easy", "hard", "easy, matched", "easy, equally right"]].max() + .15


# Thresholds and penalties


def test_the_map_shows_the_detector_at_its_thresholds(problem, acc):
    df = threshold_map(problem, acc.pseudolabels, (.3, .5), (.25, .7))
    for r in df.itertuples():
        t = np.quantile(acc.pseudolabels.conf, r.hard_quantile)
        free = detect_overlap(acc.pseudolabels, problem.w2s.x_strong, t_hard=t)
        at = detect_overlap(acc.pseudolabels, problem.w2s.x_strong, t_hard=t, t_overlap=np.quantile(free.score[free.kind != "hard"], r.overlap_quantile))
        assert (r.density, r.n) == (at.density, at.counts["overlap"]) and r.pairs == len(matched_pairs(at, acc.pseudolabels))
    assert df.density.is_unique and df[["minus_random", "minus_easy"]].notna().all(axis=None)
    pd.testing.assert_frame_equal(df, threshold_map(problem, acc.pseudolabels, (.3, .5), (.25, .7)))


def test_the_map_names_no_difference_of_too_few_rows(problem, acc):
    df = threshold_map(problem, acc.pseudolabels, (.5,), (.999,))
    assert df.n[0] < 3 and df[["minus_random", "minus_easy"]].isna().all(axis=None) and df.density[0] > 0


def test_penalties_are_chosen_without_test_rows(problem, acc, part):
    mixes = [part.rows("overlap"), np.arange(100)]
    chosen = choose_l2(problem, acc.pseudolabels, mixes, l2s=(1e-3, .1, 10.))
    other = replace(problem, test=replace(problem.test, y=1 - problem.test.y, x_strong=problem.test.x_strong[::-1]))
    pd.testing.assert_frame_equal(chosen, choose_l2(other, acc.pseudolabels, mixes, l2s=(1e-3, .1, 10.)))
    best = chosen.iloc[0]
    plain = [np.mean([student_hits(problem, acc.pseudolabels, r, l2=r_.l2, standardize=r_.standardize, on="val").mean() for r in mixes]) for r_ in chosen.itertuples()]
    assert plain == pytest.approx(chosen.accuracy.tolist()) and best.accuracy == max(plain) and len(chosen) == 6
    with pytest.raises(ValueError, match="none of 1 mixes has a student"): choose_l2(problem, acc.pseudolabels, [np.empty(0, int)])


# Cells and their summary


def test_a_cell_is_reproduced_by_its_seed(problem):
    cell = mixing_cell(problem, None, 3)
    np.random.seed(0)
    pd.testing.assert_frame_equal(cell, mixing_cell(problem, None, 3))
    other = mixing_cell(problem, None, 4)
    assert not cell.equals(other) and cell[["quantity", "level"]].equals(other[["quantity", "level"]]) and not cell.duplicated(["quantity", "level"]).any()
    for quantity in ("mix", "control"): assert not cell[cell.quantity == quantity].equals(other[cell.quantity == quantity])
    same = cell.quantity == "accuracy"
    pd.testing.assert_frame_equal(cell[same], other[same])


@pytest.mark.parametrize("protocol", ["ours", "published"])
def test_a_cell_holds_what_the_functions_say(problem, acc, protocol):
    cell = mixing_cell(problem, None, 3, draws=2, protocol=protocol).set_index(["quantity", "level"])
    part = detect(problem, acc.pseudolabels, "preset" if protocol == "ours" else protocol)
    rough = lambda v: pytest.approx(v, abs=6e-5)
    assert cell.value["w2s rows", "share"] == rough(part.density) and cell.value["accuracy"].tolist() == rough([acc.weak, acc.w2s, acc.strong])
    curve = mixing_curve(problem, part, acc.pseudolabels, seeds=[3], draws=2, protocol=protocol).groupby("share")
    assert cell.value["mix"].tolist() == rough(curve.accuracy.mean().tolist()) and cell.n["mix"].tolist() == curve.n.first().tolist()
    controls = equal_size_controls(problem, part, acc.pseudolabels, seeds=[3], draws=2).groupby("control", sort=False)
    assert cell.value["control"].tolist() == rough(controls.accuracy.mean().tolist()) and cell.right["control"].tolist() == rough(controls.right.mean().tolist())
    weights = cell.loc[("test rows", "share"), list(KINDS)].astype(float)
    assert (cell.loc["control", list(KINDS)] @ weights).tolist() == pytest.approx(cell.value["control"].tolist(), abs=3e-4)
    assert cell[["n_weak", "n_w2s", "n_test"]].iloc[0].tolist() == [len(problem.weak), len(problem.w2s), len(problem.test)]


def test_summary_is_a_plain_paired_difference(problem):
    cells = pd.concat([mixing_cell(problem, None, s, draws=1).assign(dataset=d, seed=s) for d, s in (("a", 0), ("a", 1), ("a", 2), ("b", 0))])
    out = mixing_summary(cells).set_index(["dataset", "measure"])
    of = lambda level, column="value": cells[(cells.dataset == "a") & (cells.quantity == "control") & (cells.level == level)].sort_values("seed")[column].to_numpy()
    d = of("overlap") - of("top confidence")
    assert out.loc[("a", "overlap - top confidence")].tolist() == pytest.approx([d.mean(), corrected_se(d, len(problem.test) / len(problem.w2s)), 3, len(problem.test)])
    at = lambda quantity, level, column="value": cells[(cells.dataset == "a") & (cells.quantity == quantity) & (cells.level == level)].sort_values("seed")[column].to_numpy()
    gain, right = at("accuracy", "student of all rows") - at("accuracy", "weak"), of("overlap, matched", "right") - of("easy, matched", "right")
    assert out.se["a", "student - teacher"] == pytest.approx(corrected_se(gain, len(problem.test) / len(problem.weak)))  # it hangs on the teacher
    assert out.se["a", "matched overlap - easy, share of right labels"] == pytest.approx(corrected_se(right, len(problem.w2s) / len(problem.weak)))  # said of w2s rows
    assert out["mean"]["a", "hard test rows: overlap - random"] == pytest.approx((of("overlap", "hard") - of("random", "hard")).mean())
    assert out.se["b"].isna().all() and set(pooled(out.reset_index()).sets) == {1}


def test_pooling_weighs_by_test_rows():
    s = pd.DataFrame(dict(measure="m", mean=[.1, .4, 9.], se=[.02, .01, np.nan], n_test=[300, 100, 50]))
    assert pooled(s).iloc[0, 1:].tolist() == pytest.approx([.175, np.hypot(300 * .02, 100 * .01) / 400, 2])


def test_the_table_that_comes_with_the_package_can_be_read(problem):
    table = full_table("mixing")
    assert set(table.columns) == {"dataset", "seed", *mixing_cell(problem, None, 0, draws=1).columns} and not table.duplicated(["dataset", "seed", "quantity", "level"]).any()
    assert mixing_summary(table)["mean"].notna().groupby(mixing_summary(table).dataset).any().all()
