"""Costs and stopping: the intervals hold by exact counting, the theorems in every run in which their event holds, and bad input is named."""
from functools import partial

import numpy as np
import pytest
from hypothesis import given, settings, strategies as st
from scipy.integrate import quad
from scipy.stats import beta, binom

from datacentric_w2s.regret import POLICIES, Arms, _kl, batch_ucb_index, d_star, kl_pull_bound, kl_ucb_index, mean_rewards, round_robin_index, ucb_bound
from datacentric_w2s.stopping import (HOW, _apart, _enough, _excess, _pool_interval, _worst_level, best_known, by_batch, cost_bound, intervals, per_cost,
                                      race_index, spend, stop_bound, ucb_stop_bound, until_known)

seeds = st.integers(0, 10**9)
hows = st.sampled_from(HOW)


def one_source(k, m, n, K=2):
    "`Arms` of K equal sources with k flags in m rows, batches of n"
    return Arms(np.full(K, -(-m // n)), np.full(K, m), np.full(K, float(k)), n, 100)


# --- Lemma D.8a, by exact counting: carry the law of the flags from row to row and take out what has left the interval
def ever_missed(r, rows, n, how, delta, size=None):
    "Exact probability that the interval of one of K = 2 sources, looked at after each batch, ever misses its share"
    alive, out = np.ones(1), 0.
    for m in range(1, rows + 1):
        if size is None: p = np.full(m, r)
        else: p = np.clip((round(r * size) - np.arange(m)) / (size - m + 1), 0, 1)
        alive = np.append(alive * (1 - p), 0) + np.append(0, alive * p)
        if m % n: continue
        k = np.arange(m + 1.)
        arms = Arms(np.full((m + 1, 2), m // n), np.full((m + 1, 2), m), np.tile(k[:, None], 2), n, 100)
        low, high = (a[:, 0] for a in intervals(arms, delta, how, size))
        gone = (r < low - 1e-9) | (r > high + 1e-9)
        out, alive = out + alive[gone].sum(), np.where(gone, 0, alive)
    assert out + alive.sum() == pytest.approx(1)
    return out


@pytest.mark.parametrize("how", HOW)
@pytest.mark.parametrize("r", [.01, .1, .5, .8])
@pytest.mark.parametrize("n", [1, 7])
def test_chance_to_miss_is_at_most_delta_over_K(how, r, n):
    for delta in (.05, .6): assert ever_missed(r, 210, n, how, delta) <= delta / 2


@pytest.mark.parametrize("size, flagged", [(60, 6), (60, 30), (120, 2), (10, 5)])
def test_chance_to_miss_a_pool_is_at_most_delta_over_K(size, flagged):
    for delta in (.05, .6): assert ever_missed(flagged / size, size, 1, "kl", delta, size) <= delta / 2


def test_counting_can_fail_and_the_bound_is_not_far():
    assert ever_missed(.2, 210, 1, "kl", .6) > .6 / 2 / 5  # within a factor of five of what is allowed
    k, m = np.arange(211.), 210.
    one_time = abs(k / m - .2) > np.sqrt(np.log(2 / .3) / (2 * m))  # Hoeffding for one time, at each time: breaks its level
    assert binom.pmf(k, 210, .2)[one_time].sum() < .3
    alive, out = np.ones(1), 0.
    for m in range(1, 2001):
        alive = np.append(alive * .5, 0) + np.append(0, alive * .5)
        gone = abs(np.arange(m + 1) / m - .5) > np.sqrt(np.log(2 / .3) / (2 * m))
        out, alive = out + alive[gone].sum(), np.where(gone, 0, alive)
    assert out > .5


# --- the closed forms behind it
@pytest.mark.parametrize("k, m", [(0, 1), (1, 1), (3, 10), (0, 20), (40, 50), (2.5, 7)])
def test_excess_is_the_mixture(k, m):
    p = k / m
    likelihood = lambda t: t**k * (1 - t)**(m - k) if 0 < t < 1 else 0
    average = quad(lambda u: likelihood(np.sin(u)**2) * 2 / np.pi, 0, np.pi / 2)[0]  # theta = sin^2 u is Beta(1/2, 1/2)
    top = (p**k if k else 1) * ((1 - p)**(m - k) if k < m else 1)
    assert _excess(np.array(k), np.array(m)) == pytest.approx(np.log(top / average), abs=1e-6)
    assert beta(.5, .5).cdf(.5) == pytest.approx(.5)


@pytest.mark.parametrize("m", [1, 2, 5, 33, 400])
def test_excess_is_largest_at_the_edges(m):
    e = _excess(np.linspace(0, m, 4 * m + 1), np.full(4 * m + 1, float(m)))  # also between whole numbers, for shares of batches
    assert e.argmax() in (0, 4 * m) and e[0] == pytest.approx(e[-1]) and e.max() <= .5 * np.log(np.pi * (m + .5)) + 1e-12
    assert _worst_level(1., m, 3, .1, "kl") * m == pytest.approx(np.log(30) + e.max())


@pytest.mark.parametrize("how", HOW)
@pytest.mark.parametrize("n, K, delta", [(1, 2, .99), (1, 5, .05), (50, 2, .5)])
def test_levels_fall(how, n, K, delta):
    N = np.arange(1., 3000)
    assert (np.diff(_worst_level(N, n, K, delta, how)) < 0).all()


@given(k=st.integers(0, 60), more=st.integers(0, 60), n=st.integers(1, 20), how=hows, delta=st.floats(.001, .999))
@settings(max_examples=150, deadline=None)
def test_intervals_contain_the_mean_and_lie_within_the_worst_level(k, more, n, how, delta):
    m = k + more
    if m == 0: return
    arms = one_source(k, m, n)
    low, high = (a[0] for a in intervals(arms, delta, how))
    assert 0 <= low <= k / m <= high <= 1
    if m % n == 0:
        for q in (low, high):
            d = _kl(k / m, q) if how == "kl" else 2 * (k / m - q)**2
            assert d <= _worst_level(m / n, n, 2, delta, how) + 1e-6
    narrower = intervals(arms, min(2 * delta, .9999), how)
    assert narrower[0][0] >= low - 1e-12 and narrower[1][0] <= high + 1e-12


def one_order(k, m, M, R):
    "Probability that the first k of m rows are flagged and the others are not, drawn one by one from M rows with R flags"
    p = 1.
    for i in range(m): p *= ((R - i) if i < k else (M - R - (i - k))) / (M - i)
    return p


def coin_of_unknown_bias(k, m):
    "The same for a coin whose bias has the prior Beta(1/2, 1/2): after a heads in b throws the next has probability (a + 1/2) / (b + 1)"
    p = 1.
    for i in range(m): p *= ((i if i < k else i - k) + .5) / (i + 1)
    return p


@given(k=st.integers(0, 30), more=st.integers(0, 30), rest=st.integers(0, 50), odds=st.floats(1.1, 3000))
@settings(max_examples=150, deadline=None)
def test_pool_interval_is_the_set_that_a_search_finds(k, more, rest, odds):
    m, M = k + more, k + more + rest
    if M == 0: return
    kept = [R for R in range(k, M - more + 1) if coin_of_unknown_bias(k, m) <= odds * one_order(k, m, M, R) * (1 + 1e-9)]
    low, high = _pool_interval(np.array([k]), np.array([m]), np.array([M]), np.log(odds))
    assert (low[0], high[0]) == (min(kept) / M, max(kept) / M) and len(kept) == max(kept) - min(kept) + 1


def test_pools_close_and_large_pools_are_endless():
    arms = Arms(np.array([4, 4]), np.array([80, 80]), np.array([10., 31.]), 20, 50)
    for end in intervals(arms, size=80): np.testing.assert_allclose(end, [10 / 80, 31 / 80])
    np.testing.assert_allclose(intervals(arms, size=3 * 10**6), intervals(arms), atol=1e-5)
    wide, narrow = (np.subtract(*intervals(arms, size=s)[::-1]) for s in (1000, 100))
    assert (narrow < wide).all()


def test_tied_flags_are_counted_by_batches():
    arms = Arms(np.array([[5., 5.]]), np.array([[100., 100.]]), np.array([[50., 20.]]), 20, 50)
    b = by_batch(arms)
    assert b.batch == 1 and (b.rows == 5).all() and b.flagged.tolist() == [[2.5, 1.]]
    for how in HOW: assert (np.subtract(*intervals(b, how=how)) < np.subtract(*intervals(arms, how=how))).all()  # wider: low minus high


# --- the rule
@given(seed=seeds, how=hows, epsilon=st.sampled_from([0., .05, .3]), costs=st.booleans())
@settings(max_examples=60, deadline=None)
def test_rule_is_its_definition_one_run_at_a_time(seed, how, epsilon, costs):
    rng = np.random.default_rng(seed)
    K, n = rng.integers(2, 5), rng.integers(1, 30)
    N = rng.integers(0, 60, (7, K))
    arms = Arms(N, n * N, rng.binomial(n * N, rng.uniform(0, 1, K)).astype(float), n, 500)
    c = rng.uniform(.5, 3, K) if costs else np.ones(K)
    named = best_known(arms, .2, epsilon=epsilon, how=how, costs=c if costs else None)
    for i in range(7):
        low, high = (e[i] / c for e in intervals(arms, .2, how))
        fits = [s for s in range(K) if all(low[s] + epsilon >= high[j] for j in range(K) if j != s)]
        assert (named[i] in fits) if fits else named[i] == -1


def test_rule_knows_the_last_row_of_a_pool_and_a_tie_needs_a_tolerance():
    last = lambda k: best_known(Arms(np.array([5, 5]), np.array([100, 100]), np.array([k, 40.]), 20, 50), size=100)
    assert (last(41.), last(39.)) == (0, 1) and last(40.) in (0, 1)  # all is seen: equal sources are both best
    tie = Arms(np.full(2, 10**4), np.full(2, 10**6), np.full(2, 3e5), 100, 10**5)
    assert best_known(tie) == -1 and best_known(tie, epsilon=.01) in (0, 1)
    assert isinstance(int(best_known(tie)), int) and np.shape(best_known(tie)) == ()


# --- Theorem D.8 in plain loops: whenever the event holds, each statement does
def play(index, r, n, T, rule, seed, level, how):
    "One run: batches until the rule speaks (or None), what it says, pulls, and whether all intervals held"
    rng, K = np.random.default_rng(seed), len(r)
    N, F, held = np.zeros(K, int), np.zeros(K), True
    for t in range(1, T + 1):
        s = int(np.argmax(index(Arms(N[None], n * N[None], F[None], n, T), rng)[0]))
        N[s], F[s] = N[s] + 1, F[s] + rng.binomial(n, r[s])
        arms = Arms(N, n * N, F, n, T)
        low, high = intervals(arms, level, how)
        held &= bool(((low <= r + 1e-9) & (r <= high + 1e-9)).all())
        if (said := rule(arms)) >= 0: return t, int(said), N, held
    return None, -1, N, held


def random_case(seed):
    "Sources, batch, kind of interval, delta and tolerance"
    rng = np.random.default_rng(seed)
    r = rng.uniform(0, rng.choice([.3, 1]), rng.integers(2, 5))
    if rng.uniform() < .15: r[rng.integers(len(r))] = rng.integers(2)
    return r, int(rng.choice([1, 3, 10, 30])), str(rng.choice(HOW)), float(rng.choice([.05, .5, .95])), float(rng.choice([0, .05, .2]))


@given(seed=seeds)
@settings(max_examples=100, deadline=None)
def test_stopping_theorem_holds_on_its_event(seed):
    r, n, how, delta, epsilon = random_case(seed)
    bound = stop_bound(r, n, delta=delta, epsilon=epsilon, how=how)
    rule = lambda a: best_known(a, delta, epsilon=epsilon, how=how)
    for index, most, each in ((round_robin_index, bound.round_robin, bound.pulls.max()), (partial(race_index, delta=delta, how=how), bound.race, bound.pulls)):
        if most > 400: continue
        t, said, N, held = play(index, r, n, int(most), rule, seed, delta, how)
        if held: assert t is not None and t <= most and (N <= each).all() and r[said] >= r.max() - epsilon - 1e-12


@given(seed=seeds, bonus=st.sampled_from(["standard", "batch"]))
@settings(max_examples=100, deadline=None)
def test_ucb_stopping_theorem_holds_on_its_event(seed, bonus):
    r, n, how, delta, _ = random_case(seed)
    T = 400
    most = ucb_stop_bound(r, n, T, delta=delta, how=how, bonus=bonus)
    if most.sum() > T: return
    index = POLICIES["ucb"] if bonus == "standard" else partial(batch_ucb_index, delta=delta)
    t, said, N, held = play(index, r, n, T, lambda a: best_known(a, delta, how=how), seed, delta, how)
    if held: assert t is not None and (N <= most).all() and said == r.argmax()


def test_wide_gaps_make_the_ucb_theorem_speak():
    assert ucb_stop_bound((.1, .9), 100, 50).sum() == 4 and ucb_stop_bound((.2, .3, .4, .5, .6), 100, 500).sum() < 500
    assert np.isinf(ucb_stop_bound((.1, .9), 100, 50, bonus="batch")).all()  # its radius is no wider than the rule's
    wide = ucb_stop_bound((.4, .5), 100, 10**6)  # a huge bonus is round robin: all G near a quarter of the gap
    np.testing.assert_allclose(wide, _lambda(100, 10**6) / (2 * 100 * (.1 / 4)**2), rtol=.25)


def _lambda(n, T): return _worst_level(float(T), n, 2, .05, "kl") * n * T


@given(p=st.floats(0, 1), gap=st.floats(0, 1), epsilon=st.sampled_from([0., .03, .2]))
@settings(max_examples=80, deadline=None)
def test_distance_of_two_sources_is_the_minimum(p, gap, epsilon):
    q = p + gap * (1 - p)
    z = np.linspace(max(p - epsilon, 0), min(q, 1 - epsilon), 4001)
    grid = np.maximum(d_star(z, np.full_like(z, q)), d_star(np.full_like(z, p), np.minimum(z + epsilon, 1))).min()
    g = float(_apart(np.array([p]), np.array([q]), epsilon, "kl")[0])
    assert g <= grid + 1e-9 and g >= grid - 2e-3 * max(1, grid) and g >= (q - p + epsilon)**2 / 8 - 1e-9


@pytest.mark.parametrize("how", HOW)
@pytest.mark.parametrize("g", [.5, .05, .002])
def test_enough_is_the_first(how, g):
    N = np.arange(1., 20_000)
    assert _enough(g, 7, 3, .1, how) == N[_worst_level(N, 7, 3, .1, how) < g][0]


def test_simulated_errors_and_stops_and_that_they_can_fail():
    r, n = (.2, .35), 10
    for index, most in ((round_robin_index, (b := stop_bound(r, n)).round_robin), (race_index, b.race)):
        df = until_known(index, r, n, int(most), 300, seed=1)
        assert df.stopped.notna().mean() >= .95 and df.wrong.mean() <= .05
        assert most / 8 < df.stopped.mean() < most / 2  # the bound is neither broken nor idle
    careless = until_known(round_robin_index, (.3, .32), 5, 400, 300, delta=.999, how="normal", seed=1)
    assert careless.wrong.mean() <= .999
    loud = until_known(round_robin_index, (.3, .32), 5, 400, 300, delta=.05, epsilon=.6, seed=1)  # a huge tolerance names at once
    assert loud.stopped.max() <= 20 and not loud.wrong.any() and (loud.named == 0).mean() > .2


def test_race_saves_where_sources_are_many():
    rho, n = (.1, .2, .3, .4, .5, .6), 50
    race, even = (until_known(i, rho, n, 2000, 60, seed=2).stopped.mean() for i in (race_index, round_robin_index))
    assert race < .6 * even and stop_bound(rho, n).race < .6 * stop_bound(rho, n).round_robin


def test_race_asks_leader_or_challenger():
    rng = np.random.default_rng(0)
    N = rng.integers(1, 40, (50, 4))
    arms = Arms(N, 10 * N, rng.binomial(10 * N, .4).astype(float), 10, 100)
    asked = race_index(arms).argmax(1)
    _, high = intervals(arms)
    for i, s in enumerate(asked):
        a = arms.mean[i].argmax()
        u = max((j for j in range(4) if j != a), key=lambda j: high[i, j])
        assert s in (a, u) and N[i, s] == min(N[i, a], N[i, u])


def test_known_pools_stop_at_the_latest_when_all_is_seen():
    df = until_known(POLICIES["thompson"], (.3, .35, .1), 10, 24, 40, pools=8, seed=3)
    assert df.stopped.notna().all() and not df.wrong.any() and (df.filter(like="pulls") <= 8).all(axis=None)
    assert until_known(POLICIES["random"], (.3, .35, .1), 10, 24, 40, pools=8, pools_known=False, seed=3).stopped.isna().mean() > .5
    assert until_known(race_index, (.2, .6), 10, 50, 5, seed=4).equals(until_known(race_index, (.2, .6), 10, 50, 5, seed=4))


def test_confident_and_wrong_in_density():
    biased = [(.9, .1), (1, .2)]
    df = until_known(race_index, (.5, .4), 500, 500, 40, detector=biased, seed=0)
    assert (df.named == 1).all() and not df.wrong.any()
    r = mean_rewards((.5, .4), biased)
    assert .5 - .4 <= (0 + .1) / .8 and r[1] > r[0]  # the corollary of D.0


# --- Theorem D.7
@given(seed=seeds, kl=st.booleans(), errs=st.booleans())
@settings(max_examples=100, deadline=None)
def test_cost_theorem_holds_on_its_event(seed, kl, errs):
    rng = np.random.default_rng(seed)
    K, n, delta, detector = rng.integers(1, 5), int(rng.choice([1, 5, 40])), float(rng.choice([.05, .5])), (.9, .15) if errs else (1, 0)
    rho, costs = rng.uniform(0, 1, K), np.exp(rng.uniform(-1, 2, K)) if rng.uniform() < .5 else rng.integers(1, 6, K).astype(float)
    budget = n * costs.min() * rng.uniform(1, 200)
    bound, r = cost_bound(rho, costs, n, budget, delta=delta, detector=detector, kl=kl), mean_rewards(rho, detector)
    index = per_cost(partial(kl_ucb_index if kl else batch_ucb_index, delta=delta), costs, detector[1])
    N, F, left, held, L = np.zeros(K, int), np.zeros(K), budget, True, np.log(2 * K * bound.T / delta)
    while (can := n * costs <= left + 1e-9).any():
        s = int(np.argmax(np.where(can, index(Arms(N, n * N, F, n, bound.T)), -np.inf)))
        N[s], F[s], left = N[s] + 1, F[s] + rng.binomial(n, r[s]), left - n * costs[s]
        p = F[s] / (n * N[s])
        held &= bool(n * N[s] * (_kl(p, r[s]) if kl else 2 * (p - r[s])**2) <= L + 1e-9)
    lost = (rho / costs).max() * budget - n * (N @ rho)
    if held: assert (N <= bound.pulls).all() and lost <= bound.gap + 1e-6 and lost <= bound.worst + 1e-6


def test_cost_bound_is_D1_for_equal_costs():
    for rho in ((.1, .9), (.05, .1, .15), (.4, .5)):
        a, b = cost_bound(rho, np.full(len(rho), 2.), 20, 2 * 20 * 500), ucb_bound(rho, 20, 500)
        assert a.T == 500 and (a.pulls[:-1] == b.pulls[:-1]).all()
        assert a.gap == pytest.approx(20 * rho[-1] + 20 * 500 * b.gap[-1])  # in rows, and the last batch
        noisy, c = cost_bound(rho, np.ones(len(rho)), 20, 20 * 500, detector=(.9, .15), kl=True), kl_pull_bound(rho, 20, 500, detector=(.9, .15))
        assert (noisy.pulls[:-1] == c.pulls[:-1]).all() and cost_bound(rho, np.ones(len(rho)), 20, 20 * 500, detector=(.9, .15)).pulls[0] >= noisy.pulls[0]


def test_bound_can_fail_and_is_not_idle():
    rho, costs, n, budget = (.1, .4, .6), (1, 2, 6), 20, 10_000
    bound = cost_bound(rho, costs, n, budget, kl=True)
    lost = {name: spend(index, rho, costs, n, budget, 50, seed=1).lost for name, index in
            (("kl", per_cost(kl_ucb_index, costs)), ("blind", kl_ucb_index), ("even", round_robin_index))}
    assert (lost["kl"] <= bound.lost).all() and lost["kl"].mean() > bound.lost / 6
    assert lost["blind"].min() > 2 * bound.lost and lost["even"].min() > 2 * bound.lost


def test_money_is_spent_and_never_more():
    df = spend(per_cost(POLICIES["thompson"], (1.5, .7)), (.3, .2), (1.5, .7), 3, 100, 30, seed=2)
    spent = 3 * (df[["pulls_0", "pulls_1"]].to_numpy() @ [1.5, .7])
    np.testing.assert_allclose(df.spent, spent)
    assert (df.spent <= 100).all() and (100 - df.spent < 3 * .7).all()
    np.testing.assert_allclose(df.overlap, 3 * (df[["pulls_0", "pulls_1"]].to_numpy() @ [.3, .2]))
    np.testing.assert_allclose(df.lost + df.overlap, max(.3 / 1.5, .2 / .7) * 100)


def test_false_flags_mislead_unless_subtracted():
    rho, costs, rates = (.05, .4), (1., 5.), (.9, .1)
    raw, right = (spend(per_cost(batch_ucb_index, costs, f), rho, costs, 50, 60_000, 20, rates, seed=1).lost.mean() for f in (0, .1))
    assert right < raw / 2


@given(factor=st.floats(.1, 50), seed=seeds)
@settings(max_examples=30, deadline=None)
def test_the_unit_of_money_does_not_matter(factor, seed):
    rng = np.random.default_rng(seed)
    arms = Arms(np.array([4, 5, 2]), np.array([80, 100, 40]), rng.integers(0, 41, 3).astype(float), 20, 50)
    costs = rng.uniform(1, 4, 3)
    for index in (batch_ucb_index, kl_ucb_index, POLICIES["ucb"]):
        np.testing.assert_allclose(per_cost(index, factor * costs)(arms) * factor, per_cost(index, costs)(arms))
    assert best_known(arms, costs=costs) == best_known(arms, costs=factor * costs)


@pytest.mark.parametrize("name", [*POLICIES])
def test_each_policy_takes_costs_and_plays_until_known(name):
    costs = (1., 2.)
    first = spend(per_cost(POLICIES[name], costs), (.2, .3), costs, 5, 40, 4, seed=0)
    assert (first[["pulls_0", "pulls_1"]] >= 1).all(axis=None) or name == "random"
    assert until_known(POLICIES[name], (.1, .9), 50, 60, 4, seed=0).named.isin([1, -1]).all()


# --- bad input
few = Arms(np.array([2, 2]), np.array([20, 20]), np.array([5., 6.]), 10, 50)
one = Arms(np.array([2]), np.array([20]), np.array([5.]), 10, 50)
none = Arms(np.zeros(0), np.zeros(0), np.zeros(0), 10, 50)


@pytest.mark.parametrize("call, message", [
    (lambda: best_known(one), "got 1 source, wanted at least 2"), (lambda: best_known(none), "wanted \\(..., K\\)"), (lambda: intervals(none), "wanted \\(..., K\\)"),
    (lambda: best_known(few, 0), "delta: got 0"), (lambda: best_known(few, 1), "delta: got 1"), (lambda: best_known(few, np.nan), "delta: got nan"),
    (lambda: best_known(few, epsilon=-1), "epsilon: got -1"), (lambda: best_known(few, epsilon=np.nan), "epsilon: got nan"),
    (lambda: best_known(few, how="lil"), "wanted one of kl, normal, union"), (lambda: best_known(few, costs=(1, 2, 3)), "got shape \\(3,\\), wanted \\(2,\\)"),
    (lambda: best_known(few, costs=(1, -2)), "wanted a positive number"), (lambda: best_known(few, costs=(1, 2), fpr=1), "fpr: got 1"),
    (lambda: best_known(few, size=19), "no fewer than were drawn"), (lambda: best_known(few, size=(30, 20.5)), "whole numbers"),
    (lambda: best_known(few, size=(30, 30, 30)), "size: got shape"), (lambda: best_known(few, size=30, how="normal"), "wanted 'kl'"),
    (lambda: intervals(Arms(np.array([1, 1]), np.array([5, 5]), np.array([6., 1]), 5, 9)), "more flags than rows"),
    (lambda: per_cost(kl_ucb_index, ()), "wanted \\(K,\\)"), (lambda: per_cost(kl_ucb_index, (1, np.inf)), "wanted a positive number"),
    (lambda: per_cost(kl_ucb_index, (1, np.nan)), "wanted a positive number"), (lambda: per_cost(kl_ucb_index, (0, 1)), "leave out a source that is free"),
    (lambda: per_cost(kl_ucb_index, (1, 2, 3))(few), "one cost a source"), (lambda: per_cost(kl_ucb_index, (1, 2), -.1)(few), "fpr: got -0.1"),
    (lambda: spend(kl_ucb_index, (.2, .3), (1, 2, 3), 5, 100), "one cost a source"), (lambda: spend(kl_ucb_index, (.2, .3), (1, 2), 5, 4.9), "price of the cheapest batch"),
    (lambda: spend(kl_ucb_index, (.2, .3), (1, 2), 0, 100), "n: got 0"), (lambda: spend(kl_ucb_index, (.2, 1.3), (1, 2), 5, 100), "wanted shares within"),
    (lambda: cost_bound((.2, .3), (1, 2), 5, np.nan), "budget: got nan"), (lambda: cost_bound((.2, .3), (1, 2), 5, 100, delta=2), "delta: got 2"),
    (lambda: cost_bound((.2, .3), (1, 2), 5, 100, detector=[(1, 0), (.9, .1)]), "must share the rates"), (lambda: cost_bound((.2, .3), (1, 0), 5, 100), "wanted a positive number"),
    (lambda: stop_bound((.3,), 5), "got 1 source"), (lambda: stop_bound((.3, 1.1), 5), "wanted shares within"), (lambda: stop_bound((.3, .4), 0), "n: got 0"),
    (lambda: stop_bound((.3, .4), 5, delta=0), "delta: got 0"), (lambda: stop_bound((.3, .4), 5, how="?"), "wanted one of"), (lambda: stop_bound((.3, .4), 5, epsilon=-1), "epsilon: got -1"),
    (lambda: ucb_stop_bound((.3, .4), 5, 0), "T: got 0"), (lambda: ucb_stop_bound((.3, .4), 5, 9, bonus="?"), "bonus: got"),
    (lambda: until_known(round_robin_index, (.3, .4), 5, 0), "T: got 0"), (lambda: until_known(round_robin_index, (.3,), 5, 9), "got 1 source"),
    (lambda: until_known(round_robin_index, (.3, .4), 5, 9, pools=4), "T = 9 in all"), (lambda: until_known(round_robin_index, (.3, .4), 5, 9, delta=0), "delta: got 0"),
    (lambda: until_known(round_robin_index, (.3, .4), 5, 4, pools=(4, 0)), "at least 1 a source")])
def test_bad_input_is_named(call, message):
    with pytest.raises(ValueError, match=message): call()


def test_nothing_drawn_is_nothing_known():
    empty = Arms(np.zeros(3), np.zeros(3), np.zeros(3), 10, 50)
    for how in HOW:
        low, high = intervals(empty, how=how)
        assert (low == 0).all() and (high == 1).all() and best_known(empty, how=how) == -1
    assert best_known(empty, size=50) == -1 and np.isinf(race_index(empty)).all()
