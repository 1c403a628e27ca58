"Natural sources against plain definitions: what is drawn, what a score may see, what it says, and how rankings are judged."
from dataclasses import asdict, replace

import numpy as np
import pandas as pd
import pytest
from scipy.stats import spearmanr
from scipy.stats import t as student_t

from datacentric_w2s import natural
from datacentric_w2s.core import Labelled, Splits, Texts
from datacentric_w2s.detection import detect_overlap, rules_of
from datacentric_w2s.natural import *
from datacentric_w2s.probes import evaluate, new_probe
from datacentric_w2s.theory import MIXTURE, Mixture, full_table

D = 6
SHIFTS = {"near": (1, 1, (40, 40, 40)), "turned easy": (-.5, 1, (40, 40, 40)), "turned hard": (1, -.8, (20, 40, 60)), "far": (0, 0, (60, 40, 20))}
NAMES = [k for k, v in SOURCE_SCORES.items() if callable(v)]


@pytest.fixture(scope="module")
def market(): return shifted_market(Mixture(.6 * np.ones(D), .6 * np.ones(D), 1., tau2=.1), SHIFTS, (60, 60, 60), seed=3)


def features(text, d): return np.random.default_rng(sum(text.encode()) + 1000 * d).normal(size=d)


@pytest.fixture
def shelf(monkeypatch):
    "Three small data sets behind `natural._texts`, and features made of the texts instead of language models"
    def texts(name, n): return Texts(name, np.array([f"{name} {i // 2} {'yes' if i % 2 else 'no'}" for i in range(n)], object), np.arange(n) % 2, np.arange(n) // 2)
    sets = dict(home=texts("home", 200), away=texts("away", 120), tiny=texts("tiny", 10))
    monkeypatch.setattr(natural, "_texts", lambda name, preset, rows: sets[name][:rows])
    monkeypatch.setattr(natural, "activations", lambda t, model, layer=None, **_: np.array([features(s, 4 if layer == 0 else 5) for s in t.txt], np.float32))
    return sets


def home_problem(sets):
    "The data set 'home' in four splits, and its problem with the same made-up features"
    parts = [sets["home"][a:b] for a, b in ((0, 60), (60, 140), (140, 160), (160, 200))]
    preset = replace(MIXTURE, strong_layer=1)
    weak, w2s, val, test = (natural.both_views(p, preset) for p in parts)
    return Splits(*parts), natural.Problem(Labelled(weak.x_weak, weak.y), w2s, val, test, preset)


def test_whole_questions_are_drawn():
    group = np.repeat(np.arange(30), np.random.default_rng(0).integers(1, 5, 30))
    rows = draw_questions(group, 40, np.random.default_rng(1))
    assert len(set(rows)) == 40
    torn = [g for g in set(group[rows]) if (group[rows] == g).sum() < (group == g).sum()]
    assert len(torn) <= 1
    assert not np.array_equal(rows, draw_questions(group, 40, np.random.default_rng(2)))


def test_own_rows_come_first_and_texts_of_the_target_are_not_offered(shelf):
    splits, problem = home_problem(shelf)
    shelf["away"] = Texts("away", np.r_[shelf["home"].txt[:30], shelf["away"].txt[:70]], shelf["away"].y[:100], shelf["away"].group[:100])
    got = natural_sources(splits, problem, ["away", "home"], 70, seed=1)
    assert list(got) == ["home", "away"] and [len(v) for v in got.values()] == [70, 70]
    strong = {tuple(np.float32(features(t, 5))) for t in shelf["away"].txt[30:]}
    assert {tuple(x) for x in got["away"].x_strong} == strong
    with pytest.raises(ValueError, match="away has 70 rows that are not the target's, wanted 80"): natural_sources(splits, problem, ["away"], 600)


def test_sources_are_never_larger_than_the_targets_w2s_split(shelf):
    splits, problem = home_problem(shelf)
    got = natural_sources(splits, problem, ["away"], 600, seed=1)
    assert {len(v) for v in got.values()} == {len(problem.w2s)}
    with pytest.raises(ValueError, match="tiny has 10"): natural_sources(splits, problem, ["tiny"], 600)


def test_a_sources_rows_hang_on_seed_and_name_alone(shelf):
    splits, problem = home_problem(shelf)
    a, b, c = (natural_sources(splits, problem, names, 30, seed=seed) for names, seed in ((["away"], 1), (["home", "away"], 1), (["away"], 2)))
    assert np.array_equal(a["away"].x_strong, b["away"].x_strong) and not np.array_equal(a["away"].x_strong, c["away"].x_strong)


def test_cell_holds_one_row_a_source(shelf):
    splits, problem = home_problem(shelf)
    df = natural_cell(problem, splits, 0, names=["away"], n=60)
    assert list(df.source) == ["home", "away"] and list(df.own) == [True, False] and (df.n == 60).all()
    assert set(SOURCE_SCORES) <= set(df) and (df.n_test == 40).all() and not any("yes" in str(v) for v in df.to_numpy().ravel())


@pytest.mark.parametrize("part", ["sources", "w2s", "val", "test"])
def test_no_score_sees_a_gold_label_or_the_test_split(market, part):
    rng = np.random.default_rng(0)
    def other(v): return replace(v, y=1 - v.y, **({"x_weak": rng.normal(size=v.x_weak.shape), "x_strong": rng.normal(size=v.x_strong.shape)} if part == "test" else {}))
    changed = replace(market, sources={k: other(v) for k, v in market.sources.items()}) if part == "sources" else replace(market, problem=replace(market.problem, **{part: other(getattr(market.problem, part))}))
    pd.testing.assert_frame_equal(source_scores(changed), source_scores(market))
    if part in ("sources", "test"): assert not outcomes(changed).equals(outcomes(market))


def test_halves_are_disjoint_by_question(market):
    weak = replace(market.weak, group=np.arange(len(market.weak)) // 3)
    (_, a), (_, b) = replace(market, weak=weak).halves
    assert sorted(np.r_[a, b]) == list(range(len(weak))) and not set(weak.group[a]) & set(weak.group[b])
    assert abs(len(a) - len(b)) <= 3


def test_densities_by_hand(market):
    x, p = (np.concatenate(v) for v in ([v.x_strong for v in market.sources.values()], [market.teacher.predict_proba(v.x_weak)[:, 1] for v in market.sources.values()]))
    rules = asdict(rules_of("preset", MIXTURE))
    pooled = detect_overlap(natural.Pseudolabels(p), x, **rules)
    own = detect_overlap(natural.Pseudolabels(market.teacher.predict_proba(market.problem.w2s.x_weak)[:, 1]), market.problem.w2s.x_strong, **rules)
    hard = market.problem.w2s.x_strong[own.kind == "hard"]
    cos = np.abs((x / np.linalg.norm(x, axis=1)[:, None]) @ (hard / np.linalg.norm(hard, axis=1)[:, None]).T).max(1)
    like = (np.abs(2 * p - 1) >= own.t_hard) & (cos >= own.t_overlap)
    ends = np.cumsum([0, *map(len, market.sources.values())])
    for name, a, b in zip(market.sources, ends, ends[1:]):
        assert density(market, name) == pytest.approx((pooled.kind[a:b] == "overlap").mean())
        assert density_target(market, name) == pytest.approx(like[a:b].mean())
        assert density_within(market, name) == pytest.approx(detect_overlap(natural.Pseudolabels(p[a:b]), x[a:b], **rules).density)
    assert density(market, "near") != density_target(market, "near")


def test_teachers_scores_by_hand(market):
    v, (a, b) = market.sources["near"], [teacher.predict_proba(market.sources["near"].x_weak)[:, 1] for teacher, _ in market.halves]
    assert agreement(market, "near") == pytest.approx(np.mean((a > .5) == (b > .5)))
    assert halves(market, "near") == pytest.approx(np.corrcoef(a, b)[0, 1])
    p = market.teacher.predict_proba(v.x_weak)[:, 1]
    assert confidence(market, "near") == pytest.approx(np.abs(2 * p - 1).mean())
    assert balance(market, "near") == pytest.approx(1 - abs(2 * (p > .5).mean() - 1))


def test_holdout_by_hand(market):
    hits, against_gold, against_teacher = [], [], []
    for teacher, rows in market.halves:
        held = market.weak[rows]
        student = new_probe(MIXTURE).fit(market.sources["near"].x_strong, teacher.predict_proba(market.sources["near"].x_weak)[:, 1])
        p = student.predict_proba(held.x_strong)[:, 1]
        hits.append(np.mean((p > .5) == held.y))
        against_gold.append(np.corrcoef(p, held.y)[0, 1])
        against_teacher.append(np.corrcoef(p, teacher.predict_proba(held.x_weak)[:, 1])[0, 1])
    assert holdout(market, "near") == pytest.approx(np.mean(hits))
    assert holdout_r(market, "near") == pytest.approx(np.mean(against_gold))
    assert transfer(market, "near") == pytest.approx(np.mean(against_teacher))


def test_held_out_labels_are_those_the_half_teacher_has_not_seen(market):
    "Shuffled weak labels leave nothing to hold out, though each teacher fits its own"
    rng, got = np.random.default_rng(0), []
    for _ in range(12):
        y = rng.permutation(market.weak.y)
        got.append(holdout_r(replace(market, weak=replace(market.weak, y=y), problem=replace(market.problem, weak=Labelled(market.weak.x_weak, y))), "near"))
    assert abs(np.mean(got)) < 3 * np.std(got) / 12**.5 + .02


def test_turned_patterns_show_in_the_held_out_scores():
    "Means over mixtures: a turned pattern of either kind lowers the outcome and `holdout_r`; density doesn't see it"
    got = []
    for seed in range(6):
        m = shifted_market(Mixture.published(np.random.default_rng(seed)), {"same": (1, 1, (100, 100, 100)), "easy": (-.5, 1, (100, 100, 100)), "hard": (1, -.5, (100, 100, 100))}, (200,) * 3, seed=seed)
        got.append(outcomes(m).merge(source_scores(m, dict(holdout_r=holdout_r)), on="source").set_index("source")[["student", "holdout_r"]])
    mean = sum(got) / len(got)
    assert (mean.loc["same"] > mean.loc["easy"] + .02).all() and (mean.loc["same"] > mean.loc["hard"] + .02).all()


def test_learnable_predicts_no_row_from_its_own_question(market):
    v = market.sources["near"]
    group = np.arange(len(v)) // 2
    p = market.labels["near"].p.copy()
    before = natural._cross_fitted(market, v.x_strong, p, group)
    p[[10, 11]] = 1 - p[[10, 11]]
    after = natural._cross_fitted(market, v.x_strong, p, group)
    assert np.array_equal(before[[10, 11]], after[[10, 11]]) and not np.allclose(before, after)


def test_near_is_one_half_for_rows_like_the_targets_and_less_for_others():
    d, rng = 5, np.random.default_rng(0)
    mixture = Mixture(.5 * np.ones(d), .5 * np.ones(d), 1.)
    m = shifted_market(mixture, {"many": (1, 1, (400, 400, 400)), "few": (1, 1, (40, 40, 40))}, (100, 100, 100), seed=0)
    assert near_strong(m, "many") == pytest.approx(.5, abs=.04) and near_strong(m, "few") == pytest.approx(.5, abs=.06)
    far = replace(m.sources["few"], x_strong=m.sources["few"].x_strong + 3, x_weak=m.sources["few"].x_weak + 3)
    m = replace(m, sources=m.sources | {"far": far})
    assert near_strong(m, "far") < .2 and near_weak(m, "far") < .3 and mean_distance(m, "far") < mean_distance(m, "few") and coverage(m, "far") < coverage(m, "few")
    assert weighted_density(m, "far") <= density_target(m, "far")


def test_moved_has_the_other_mean_and_spread():
    rng = np.random.default_rng(0)
    home, away = rng.normal(2, 3, (50, 4)), rng.normal(-1, .5, (70, 4))
    home[:, 3] = 7
    got = moved(home, home, away)
    np.testing.assert_allclose(got.mean(0), away.mean(0))
    np.testing.assert_allclose(got.std(0)[:3], away.std(0)[:3])
    assert np.isfinite(got).all()


def test_products_and_refusals(market):
    got = source_scores(market, dict(transfer=transfer, own_student=own_student, both=("transfer", "own_student")))
    np.testing.assert_allclose(got.both, got.transfer.clip(lower=0) * got.own_student.clip(lower=0))
    with pytest.raises(ValueError, match="transfer stands not before it"): source_scores(market, dict(both=("transfer",)))
    with pytest.raises(ValueError, match="mine: no finite number for far"): source_scores(market, dict(mine=lambda m, name: np.nan if name == "far" else 1.))
    mine = source_scores(market, dict(rows=lambda m, name: len(m.sources[name])))
    assert list(mine.rows) == [120] * 4


@pytest.mark.parametrize("s, m, cos, d", [(1.2, 4., .6, 7), (.5, 9., -.3, 20), (2., .5, .9, 3)])
def test_shifted_accuracy_against_simulation(s, m, cos, d):
    rng, n = np.random.default_rng(1), 100_000
    target, source = np.eye(d)[0], cos * np.eye(d)[0] + np.sqrt(1 - cos**2) * np.eye(d)[1]
    hit = np.sum((s * target + rng.normal(size=(n, d))) * (m * source + rng.normal(size=(n, d))), 1) > 0
    assert shifted_accuracy(s, m, cos, d) == pytest.approx(hit.mean(), abs=4 * .5 / n**.5)


def cells(seeds=6, sources=7, targets=3, noise=.3):
    "Made-up cells: a score that follows the truth, one that is noise, and own rows that are best"
    rng, out = np.random.default_rng(0), []
    for k in range(targets):
        truth = np.r_[2, rng.normal(size=sources - 1)]
        for seed in range(seeds):
            out.append(pd.DataFrame(dict(dataset=f"t{k}", seed=seed, source=[f"s{i}" for i in range(sources)], own=np.arange(sources) == 0, student=truth + noise * rng.normal(size=sources),
                                         good=truth + .2 * rng.normal(size=sources), noise=rng.normal(size=sources), own_first=(np.arange(sources) == 0) * 1.)))
    return pd.concat(out, ignore_index=True)


@pytest.mark.parametrize("foreign", [False, True])
def test_rank_table_by_hand(foreign):
    df = cells()
    table = rank_table(df, ["good", "noise", "own_first"], foreign=foreign).set_index(["dataset", "how"])
    for name, d in (df[~df.own] if foreign else df).groupby("dataset"):
        y, s = (d.groupby("source")[c].mean() for c in ("student", "noise"))
        r = table.loc[name, "noise"]
        assert r.rho == pytest.approx(spearmanr(s, y).statistic) and r.top == s.idxmax() and r.regret == pytest.approx(y.max() - y[s.idxmax()])
        one = [g.set_index("source").noise for _, g in d.groupby("seed")]
        assert r.rho_one == pytest.approx(np.mean([spearmanr(v[y.index], y).statistic for v in one]))
        assert r.regret_one == pytest.approx(np.mean([y.max() - y[v.idxmax()] for v in one]))
        tied = table.loc[name, "own_first"]
        assert tied.rho == 0 and tied.regret == pytest.approx(y.max() - y.mean()) if foreign else tied.regret == pytest.approx(y.max() - y["s0"])


def test_interval_over_targets_by_hand():
    table = rank_table(cells(targets=5), ["noise"])
    r, v = over_targets(table, level=.9).iloc[0], table.rho
    half = student_t.ppf(.95, 4) * v.std(ddof=1) / 5**.5
    assert (r["mean"], r.low, r.high, r.targets) == pytest.approx((v.mean(), v.mean() - half, v.mean() + half, 5))


def test_reliability_knows_noise_from_truth():
    clear, noisy = (reliability(cells(noise=n, sources=30), foreign=True).full.mean() for n in (.1, 30.))
    assert clear > .95 and abs(noisy) < .5
    df = reliability(cells(noise=.5, seeds=6))
    np.testing.assert_allclose(df.full, 2 * df.half / (1 + df.half))


def test_power_of_the_null_is_its_level_and_rises():
    assert rank_power(0, 8, 5, .8, runs=4_000)[0] == pytest.approx(.025, abs=.01)
    powers = [rank_power(c, 8, 5, .8, runs=500)[0] for c in (.2, .5, .8)]
    assert powers == sorted(powers) and detectable(8, 5, .8, runs=500) > detectable(8, 10, .8, runs=500)
    assert np.isnan(detectable(4, 2, .1, runs=200))


def test_same_draw_correlates_with_its_own_outcome():
    df = cells(targets=1, noise=2.)
    df["student"] += df.noise  # only the same draw's outcome carries this
    r = rank_table(df, ["noise"]).iloc[0]
    by = [spearmanr(g.noise, g.student).statistic for _, g in df.groupby("seed")]
    assert r.rho_same == pytest.approx(np.mean(by))


def test_targets_at_chance_are_not_usable():
    rng = np.random.default_rng(0)
    df = pd.concat([pd.DataFrame(dict(dataset=name, seed=range(10), own=True, n=600, gold=level + .01 * rng.normal(size=10), n_test=300, n_w2s=900, n_weak=600)) for name, level in (("good", .6), ("chance", .505))])
    df = pd.concat([df, df.assign(own=False, gold=.9)])  # other sources don't count
    table = usable(df).set_index("dataset")
    assert table.kept.to_dict() == dict(good=True, chance=False)
    v = df[df.own & (df.dataset == "good")].gold
    half = student_t.ppf(.975, 9) * np.sqrt((.1 + 300 / 900) * v.var(ddof=1))
    assert (table.low["good"], table.high["good"]) == pytest.approx((v.mean() - half, v.mean() + half))


def test_fixed_list_never_uses_the_targets_own_outcomes():
    df = cells(targets=3)
    before = fixed_list(df, ("t0", "t1"))
    changed = df.assign(student=np.where(df.dataset == "t0", -df.student, df.student))
    after = fixed_list(changed, ("t0", "t1"))
    assert before[df.dataset == "t0"].equals(after[df.dataset == "t0"]) and not before[df.dataset == "t1"].equals(after[df.dataset == "t1"])


def test_purchases_stay_within_the_sources(market):
    index = lambda arms, rng: np.array([3., 2., 1., 0.])
    got = buy(market, lambda *_: .5, index, batch=25, rounds=12, seed=4)
    assert [len(v) for v in got.values()] == [100, 100, 100, 0] and all(len(set(v)) == len(v) for v in got.values())
    assert [len(v) for v in buy(market, lambda *_: .5, index, batch=60, rounds=99).values()] == [120] * 4
    assert [len(v) for v in buy(market, lambda *_: .5, index, batch=121).values()] == [0] * 4
    with pytest.raises(ValueError, match="got -1 for near"): buy(market, lambda *_: -1, index)


def test_a_policy_sees_the_latest_reward_of_all_rows_bought(market):
    seen = []
    def index(arms, rng): seen.append((arms.pulls.copy(), arms.mean.copy())); return np.where(arms.pulls == 0, np.inf, arms.mean)
    buy(market, lambda m, name, rows: len(rows) / 120, index, batch=30, rounds=6)
    assert seen[-1][0].sum() == 5
    for pulls, mean in seen: np.testing.assert_allclose(mean, pulls * 30 / 120)


def test_rewards_of_all_rows_are_the_scores(market):
    every = np.arange(120)
    for name in market.sources:
        assert density_reward(market, name, every) == density(market, name)
        assert holdout_reward(market, name, every) == pytest.approx(holdout(market, name))
    assert holdout_reward(market, "near", every[:24]) != holdout(market, "near")


def test_pooled_problem_serves_the_selection_chapter(market):
    from datacentric_w2s.selection import run_selection
    problem, labels, sources = pooled_problem(market)
    for s, (name, v) in zip(sources, market.sources.items()):
        assert s.name == name and np.array_equal(problem.w2s.x_strong[s.rows], v.x_strong) and np.array_equal(labels.p[s.rows], market.labels[name].p)
    df = run_selection(problem, labels, sources, "batch_ucb", rounds=6, batch=20)
    assert len(df) == 6 and df.rows.iloc[-1] == 120


def test_questions_of_different_sources_stay_apart_when_pooled(market):
    m = replace(market, sources={k: replace(v, group=np.arange(120) // 2) for k, v in market.sources.items()})
    assert len(np.unique(pooled_problem(m)[0].w2s.group)) == 60 * 4


def test_bandit_cell_spends_one_budget(shelf):
    splits, problem = home_problem(shelf)
    df = bandit_cell(problem, splits, 0, names=["away"], n=60)
    assert len(df) == 6 and df.own.between(0, 1).all() and df[df.policy == "own rows"].own.item() == 1 and df.accuracy.between(0, 1).all()


def test_the_kept_tables_are_whole():
    df, played = full_table("natural"), full_table("natural_bandit")
    targets = {*EXPLORATORY, *CONFIRMATION}
    assert set(df.dataset) == set(played.dataset) == targets and not set(EXPLORATORY) & set(CONFIRMATION)
    size = df.groupby(["dataset", "seed"])
    assert len(size) == 90 and (size.size() == len(SOURCES)).all() and (size.own.sum() == 1).all() and set(SOURCE_SCORES) <= set(df)
    assert (df[df.own].source == df[df.own].dataset.str.split("@").str[0]).all() and df.notna().all().all()
    assert (played.groupby(["dataset", "seed"]).size() == 6).all()


def test_the_kept_verdict():
    "What the chapter says of the confirmation, from the kept table and scipy alone"
    df = full_table("natural")
    d = df[df.dataset.isin(CONFIRMATION) & ~df.own].groupby(["dataset", "source"])[["student", "holdout", "transfer", "density"]].mean()
    rho = pd.DataFrame({k: [spearmanr(g[k], g.student).statistic for _, g in d.groupby(level=0)] for k in ("holdout", "transfer", "density")})
    half = student_t.ppf(.9875, 5) * rho.std(ddof=1) / 6**.5
    assert (rho.mean() - half > 0).to_dict() == dict(holdout=True, transfer=False, density=False)


def test_held_out_rows_are_those_of_the_other_half(market):
    by_row = held_out(market.weak, list(market.sources.values()), market.fit, market.seed)
    for k, name in enumerate(market.sources):
        first, second = (by_row[k][by_row.row.isin(rows)].mean() for _, rows in market.halves)
        assert (first + second) / 2 == pytest.approx(holdout(market, name))
    assert by_row.row.is_unique and len(by_row) == len(market.weak)


def test_the_repetition():
    "What the chapter says of thirty other draws, from the kept table and scipy alone"
    df = full_table("natural_again")
    assert set(df.dataset) == set(CONFIRMATION) and sorted(df.seed.unique()) == list(range(10, 40)) and len(df) == 6 * 30 * 11
    d = df[~df.own].groupby(["dataset", "source"])[["student", "holdout", "density"]].mean()
    rho = pd.DataFrame({k: [spearmanr(g[k], g.student).statistic for _, g in d.groupby(level=0)] for k in ("holdout", "density")}, index=sorted(CONFIRMATION))
    half = student_t.ppf(.9875, 5) * rho.std(ddof=1) / 6**.5
    assert (rho.mean() - half < 0).all() and rho.holdout.mean() > .5 > rho.density.mean()
    assert (rho.holdout > .9).sum() == 2


def test_one_draw_again_is_the_study_s(shelf):
    splits, problem = home_problem(shelf)
    a, b = (cell(problem, splits, 0, names=["away"], n=60) for cell in (again_cell, natural_cell))
    for how in ("student", "holdout", "density"): np.testing.assert_allclose(a[how], b[how])
    assert a[["student_a", "student_b", "holdout_a"]].stack().between(0, 1).all()
