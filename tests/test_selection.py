"Selection against an independent plain loop, and the published runs by name."
import tracemalloc

import numpy as np
import pandas as pd
import pytest
import ruptures
from sklearn.linear_model import LogisticRegression

from datacentric_w2s.core import Partition, Source
from datacentric_w2s.detection import Rules
from datacentric_w2s.mixing import student_accuracy
from datacentric_w2s.probes import evaluate
from datacentric_w2s.selection import PUBLISHED_RUNS, _Student, make_sources, published_run, regrets, run_selection
from datacentric_w2s.theory import Mixture, mixture_problem


def binseg(s):
    "The published code's threshold: the score right of ruptures' break, on its grid of five"
    s = np.sort(np.asarray(s, float))
    return s[ruptures.Binseg(model="l2").fit(s.reshape(-1, 1)).predict(n_bkps=1)[0]]


def plain_selection(problem, labels, sources, policy, kind, T, seed, fit=True, coins=()):
    "The published selection script in plain words: one row a round of source, rows, reward, density, both students' predictions; `coins` are the sources that a random policy asked"
    conf, x, y = 2 * np.abs(labels.p - .5), problem.w2s.x_strong, labels.p
    order = np.random.default_rng([seed, 0])
    queues = [list(order.permutation(s.rows)) for s in sources]
    batch = min(len(q) for q in queues) // T
    total, count = np.zeros(len(sources)), np.zeros(len(sources))
    bought, flagged, hard, scores, out = [], [], [], [], []
    for t in range(T):
        if policy == "oracle": s = int(np.argmax([np.mean(kind[a.rows] == "overlap") for a in sources]))
        elif policy == "random": s = [a.name for a in sources].index(coins[t])
        elif (count == 0).any(): s = int(np.argmax(count == 0))
        else: s = int(np.argmax(total / count + np.sqrt(2 * np.log(T)) / count))
        rows, queues[s] = queues[s][:batch], queues[s][batch:]
        cut = binseg(conf[rows])
        easy_or_overlap = [r for r in rows if not conf[r] < cut]
        hard += [r for r in rows if conf[r] < cut]
        new = [v.max() for v in x[easy_or_overlap] @ x[hard].T]
        scores += new
        line = binseg(scores)
        found = [r for r, v in zip(easy_or_overlap, new) if v >= line]
        bought, flagged = bought + rows, flagged + found
        total[s], count[s] = total[s] + len(found) / len(rows), count[s] + 1
        out.append((t + 1, sources[s].name, len(bought), len(found) / len(rows), np.mean(kind[bought] == "overlap"), *(student(problem, x, y, r) if fit or t == T - 1 else np.nan for r in (bought, flagged))))
    return pd.DataFrame(out, columns=["round", "source", "rows", "reward", "density", "accuracy", "accuracy_overlap_only"])


def student(problem, x, p, rows):
    "scikit-learn's logistic regression on soft labels; nan without two labels"
    if len(rows) == 0: return np.nan
    n, l2 = len(rows), problem.preset.l2
    scale = x[rows].std(0) if problem.preset.standardize else np.ones(x.shape[1])
    z = lambda v: (v - x[rows].mean(0) * problem.preset.standardize) / np.where(scale > 0, scale, 1)
    fit = LogisticRegression(C=1 / (2 * n * l2), tol=1e-10, max_iter=20_000).fit(np.vstack([z(x[rows])] * 2), np.repeat([1, 0], n), sample_weight=np.concatenate([p[rows], 1 - p[rows]]))
    return np.mean(fit.predict(z(problem.test.x_strong)) == problem.test.y)


def made(size):
    p = mixture_problem(Mixture.published(np.random.default_rng(3)), (size,) * 3, seed=3)
    labels = evaluate(p, l2=1e-3).pseudolabels
    truth = Partition(p.w2s.kind, labels.conf, np.where(p.w2s.kind == "hard", np.nan, 0.), 0, 0, "true kinds")
    return p, labels, truth, make_sources(truth, (.1, .9), seed=3)


@pytest.fixture(scope="module")
def case(): return made(500)


@pytest.fixture(scope="module")
def large(): return made(1000)  # batches that the published grid of five can split


@pytest.mark.parametrize("policy", ["oracle", "reference_ucb"])
def test_a_run_is_the_plain_loop(case, policy):
    p, labels, truth, sources = case
    ours = run_selection(p, labels, sources, policy, truth=truth, rounds=12, seed=3, detector="published selection")
    plain = plain_selection(p, labels, sources, policy, truth.kind, 12, 3)
    pd.testing.assert_frame_equal(ours[plain.columns.tolist()[:5]], plain.iloc[:, :5])
    for c in ("accuracy", "accuracy_overlap_only"): np.testing.assert_allclose(ours[c], plain[c], atol=2.5 / len(p.test))  # rows at the boundary


@pytest.mark.parametrize("reward", ["published", "recount", "warmup"])
@pytest.mark.parametrize("standardize", [True, False])
def test_growing_students_are_those_of_a_fit_from_zero(case, reward, standardize):
    p, labels, truth, sources = case
    df = run_selection(p, labels, sources, "batch_ucb", truth=truth, rounds=9, reward=reward, seed=5, standardize=standardize)
    order = np.random.default_rng([5, 0])
    queues, bought = {s.name: order.permutation(s.rows) for s in sources}, np.empty(0, int)
    for r in df.itertuples():
        rows, queues[r.source] = np.split(queues[r.source], [df.rows[0]])
        bought = np.append(bought, rows)
        assert r.accuracy == pytest.approx(student_accuracy(p, labels, bought, standardize=standardize), abs=1.5 / len(p.test))  # a row at the boundary
        assert r.density == pytest.approx((truth.kind[bought] == "overlap").mean())


@pytest.mark.parametrize("name", PUBLISHED_RUNS)
def test_each_published_run_is_the_plain_loop(large, name):
    p, labels, truth, _ = large
    run = PUBLISHED_RUNS[name]
    sources = make_sources(truth, (.1, .9), 4, rebalanced=run.rebalanced)
    for policy, ours in published_run(p, labels, truth, name, seed=4, every=run.rounds).groupby("policy"):
        ours = ours.reset_index(drop=True)
        plain = plain_selection(p, labels, sources, policy, truth.kind, run.rounds, 4, fit=False, coins=ours.source)
        pd.testing.assert_frame_equal(ours[plain.columns.tolist()[:5]], plain.iloc[:, :5])
        for c in ("accuracy", "accuracy_overlap_only"): np.testing.assert_allclose(ours[c], plain[c], atol=2.5 / len(p.test))


@pytest.mark.parametrize("name", PUBLISHED_RUNS)
def test_published_runs_are_what_they_are_called(case, name):
    p, labels, truth, _ = case
    run = PUBLISHED_RUNS[name]
    df = published_run(p, labels, truth, name, seed=1, every=run.rounds)
    assert list(dict.fromkeys(df.policy)) == ["oracle", "reference_ucb", "random"] and set(df.groupby("policy").size()) == {run.rounds}
    by_hand = run_selection(p, labels, make_sources(truth, (.1, .9), 1, rebalanced=name == "rebalanced"), "reference_ucb", truth=truth, rounds=run.rounds, seed=1,
                            detector=Rules("max_dot", jump=5, min_size=2), every=run.rounds)
    pd.testing.assert_frame_equal(df[df.policy == "reference_ucb"].drop(columns=["policy", "seed"]).reset_index(drop=True), by_hand)


def test_a_price_turns_the_choice_and_a_stopping_rule_ends_the_run(case):
    p, labels, truth, sources = case
    play = lambda **o: run_selection(p, labels, sources, "oracle", truth=truth, rounds=10, every=10, **o)
    assert set(play().source) == {sources[1].name} and set(play(costs=(1, 50)).source) == {sources[0].name}
    stopped = play(stop=lambda arms: 1 if arms.pulls.sum() == 4 else None)
    assert len(stopped) == 4 and not np.isnan(stopped.accuracy.iloc[-1])


def test_unequal_sources_run_dry_and_the_others_go_on(case):
    p, labels, truth, sources = case
    few = [Source("few", sources[1].rows[:37]), sources[0]]
    df = run_selection(p, labels, few, "oracle", truth=truth, rounds=8, batch=20, every=8)
    assert df.rows.tolist() == [20, 37, *range(57, 158, 20)] and df.source.tolist() == ["few"] * 2 + [sources[0].name] * 6


def test_regrets_are_plain_differences(case):
    p, labels, truth, sources = case
    df = pd.concat([run_selection(p, labels, sources, q, truth=truth, rounds=4, seed=s).assign(policy=q, seed=s) for q in ("oracle", "random") for s in (0, 1)], ignore_index=True)
    lost = regrets(df).set_index(["policy", "seed", "round"])
    flat = df.set_index(["policy", "seed", "round"])
    for key in ((s, t) for s in (0, 1) for t in (1, 4)):
        assert lost.density_regret[("random", *key)] == pytest.approx(flat.density[("oracle", *key)] - flat.density[("random", *key)])
        assert lost.accuracy_regret[("random", *key)] == pytest.approx(flat.accuracy[("oracle", *key)] - flat.accuracy[("random", *key)])


@pytest.mark.parametrize("change, message", [
    (lambda s: s[:1], "allow_one=True"), (lambda s: [s[0], Source("x", s[0].rows[:5])], "share 5 rows"), (lambda s: [s[0], Source("x", np.empty(0, int))], r"\['x'\] hold no rows"),
    (lambda s: [s[0], Source("x", np.array([10**6]))], "sources name row 1000000"), (lambda s: [s[0], Source(s[0].name, s[1].rows)], "named twice")])
def test_odd_sources_are_refused(case, change, message):
    p, labels, truth, sources = case
    with pytest.raises(ValueError, match=message): run_selection(p, labels, change(sources), "random", rounds=2, batch=2)


def test_a_row_that_is_bought_twice_counts_twice(case):
    p, labels = case[:2]
    one = case[3][0].rows[:60]
    twice = [Source("a", one), Source("b", one[:30])]
    runs = [run_selection(p, labels, twice, "round_robin", rounds=9, batch=10, every=k, shared=True) for k in (1, 9)]
    bought = np.concatenate([one, one[:30]])
    assert runs[0].rows.iloc[-1] == 90
    np.testing.assert_allclose([r.accuracy.iloc[-1] for r in runs], student(p, p.w2s.x_strong, labels.p, bought), atol=1.5 / len(p.test))


def test_rows_and_labels_that_do_not_fit_are_refused(case):
    p, labels, truth, sources = case
    for options, message in ((dict(truth=truth.kind[:-3]), "truth: got shape"), (dict(pseudolabels=labels[:-5]), "pseudolabels for 1500 rows"), (dict(every=0), "every: got 0")):
        given = dict(pseudolabels=labels, truth=truth, every=1) | options
        with pytest.raises(ValueError, match=message): run_selection(p, sources=sources, policy="random", rounds=5, **given)


def test_sources_may_share_rows_if_asked(case):
    p, labels, truth, sources = case
    df = run_selection(p, labels, [sources[0], Source("again", sources[0].rows)], "round_robin", rounds=4, batch=50, shared=True)
    assert df.rows.iloc[-1] == 200


def test_a_partition_of_one_sort_makes_no_sources(case):
    _, _, truth, _ = case
    with pytest.raises(ValueError, match="no overlap to divide"): make_sources(truth[truth.rows("easy")])


def test_a_student_whose_rows_change_begins_again(case):
    p, labels, _, _ = case
    s, rng = _Student(p, labels.p, None, None), np.random.default_rng(0)
    rows = rng.permutation(len(labels))
    for now in (rows[:0], rows[:60], rows[:90], rows[30:140], rows[30:140], rows[35:100], np.concatenate([rows[35:100], rows[:20]])):
        got, want = s.accuracy(now), student_accuracy(p, labels, now)
        assert got == pytest.approx(want, abs=1.5 / len(p.test), nan_ok=True)


def test_memory_does_not_grow_with_the_rounds(case):
    problem, labels, sources = case[0], case[1], case[-1]
    peaks = []
    for rounds in (4, 4, 40):  # the first run warms up what is imported late
        tracemalloc.start()
        run_selection(problem, labels, sources, "random", rounds=rounds, batch=200 // rounds, every=rounds)
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[2] < 1.5 * peaks[1], peaks
