"""Theory, section D: the bounds on source selection hold, are not vacuous, and fail where they should."""
import numpy as np
import pytest
from hypothesis import given, settings, strategies as st
from scipy.optimize import minimize_scalar
from scipy.stats import binom

from datacentric_w2s.regret import (POLICIES, Arms, _kl, abandonment, bandit, batch_ucb_index, d_star, explore_batches, explore_bound,
                                    explore_then_commit_index, kl_pull_bound, kl_ucb_index, mean_rewards, paper_bonus_bound, pool_bound, pulls, ucb_bound)

SETTINGS = (((.1, .9), 100, 50), ((.2, .3, .4, .5, .6), 100, 50), ((.4, .5), 10, 200), ((.05, .1, .15), 20, 500))
BOUNDS = dict(batch_ucb=ucb_bound, reference_ucb=paper_bonus_bound, kl_ucb=kl_pull_bound)
shares = st.floats(0, 1)
inner = st.floats(.02, .98)
counts = st.tuples(st.integers(1, 60), st.integers(1, 40), st.integers(0, 10**6))  # pulls, batch, seed of the flags


def arms_of(pulls_n, batch, seed, horizon=500):
    rows = pulls_n * batch
    flagged = np.random.default_rng(seed).integers(0, rows + 1, 3)
    return Arms(np.full(3, pulls_n), np.full(3, rows), flagged.astype(float), batch, horizon)


# --- the bounds hold: delta is .05, so theory.md asks for 95% of runs (Hoeffding and the union bound leave far more room)
@pytest.mark.parametrize("setting", SETTINGS, ids=str)
@pytest.mark.parametrize("policy", BOUNDS)
def test_pull_and_regret_bounds_hold(policy, setting):
    rho, n, T = setting
    at = np.unique(np.geomspace(1, T, 12).astype(int))
    df, bound = bandit(policy, rho, n, T, 300, seed=3, at=at), BOUNDS[policy](rho, n, T, t=at)
    assert (pulls(df).to_numpy() <= bound.pulls).all(1).mean() >= .95
    regret = df.pivot(index="run", columns="round", values="regret").to_numpy()
    assert (regret <= bound.regret + 1e-12).all(1).mean() >= .95


def test_standard_bonus_bound_holds():
    rho, n, T = (.1, .9), 5, 3000
    bound, df = ucb_bound(rho, n, T, bonus="standard"), bandit("ucb", rho, n, T, 100, seed=4, at=[T])
    assert (pulls(df).to_numpy() <= bound.pulls).all() and (df.regret <= bound.regret[-1]).all()
    assert bound.regret[-1] < .4 and bound.failure < 1e-9  # random buying loses .4


# --- and are not vacuous: below what random buying loses, and within a small factor of what happens
def test_bounds_are_not_vacuous():
    assert ucb_bound((.1, .9), 100, 50).pulls[0] == 1  # the one pull that must be made
    for policy, bound in BOUNDS.items():
        b = bound((.2, .4, .6), 100, 2000, t=2000)
        measured = bandit(policy, (.2, .4, .6), 100, 2000, 50, seed=5, at=[2000]).regret.mean()
        assert measured <= b.regret[-1] < min(.05, 6 * measured)  # .2 is lost by random; six: the largest ratio seen is 4


# --- the stated figures of theory.md, to their last digit; and J turns rewards into density
def test_stated_bounds():
    b, three = ucb_bound((.1, .9), 100, 50), ((.05, .1, .15), 20, 500)
    assert b.regret[-1] == pytest.approx(.016) and b.worst[-1] == pytest.approx(.203, abs=5e-4)
    assert ucb_bound((.2, .3, .4, .5, .6), 100, 50).worst[-1] == pytest.approx(.371, abs=5e-4)
    for bound, stated in ((ucb_bound, [111, 441]), (kl_pull_bound, [37, 191]), (paper_bonus_bound, [114, 500])):
        assert bound(*three).pulls[:2].tolist() == stated
    p = paper_bonus_bound((.1, .9), 100, 50)
    assert (p.pulls[0], round(p.gamma, 3), round(p.gap[-1], 3)) == (5, .004, .08)
    assert paper_bonus_bound((.1, .9), 1, 50).worst[-1] > p.worst[-1] + .3  # gamma of one row a round
    noisy = ucb_bound((.2, .4, .6), 50, 100, detector=(.77, .22), t=100)
    assert noisy.density[0] == pytest.approx(noisy.regret[0] / .55) and noisy.gap[0] / .55 == pytest.approx(.096, abs=5e-4)


# --- a policy that is not optimistic does break D.1: the bound can fail
def test_other_policies_break_the_bound():
    rho, n, T = (.1, .9), 100, 50
    for policy in ("random", "reference_ucb", "ucb"):
        assert (pulls(bandit(policy, rho, n, T, 20, seed=6, at=[T]))[0] > ucb_bound(rho, n, T).pulls[0]).all()


# --- D.3: theory.md asks for three times; .050 and .0075 are measured. Of 500 runs about 60 are left, so the 95% quantile is safely among them
def test_published_bonus_gambles_and_batch_index_does_not():
    end = {p: bandit(p, (.5, .45), 1, 10_000, 500, seed=0, at=[10_000], fixed=(False, True)) for p in ("reference_ucb", "batch_ucb")}
    assert end["reference_ucb"].regret.quantile(.95) > 3 * end["batch_ucb"].regret.quantile(.95)
    few, law = (end["reference_ucb"].pulls_0 < 100).mean(), abandonment(.5, .45, 10_000)
    assert abs(few - law.few) <= 4 * np.sqrt(law.few * (1 - law.few) / 500)  # exact law; 4 standard errors
    assert (end["batch_ucb"].pulls_0 > 5000).all()
    assert law.floor < law.regret <= end["reference_ucb"].regret.mean() + 4 * end["reference_ucb"].regret.sem()


@pytest.mark.parametrize("p, c, n, T", [(.5, .45, 1, 1000), (.6, .4, 1, 300), (.3, .2, 2, 500), (.5, .4, 3, 1000)])
def test_exact_law_of_few_pulls_is_the_simulation(p, c, n, T):
    df, law = bandit("reference_ucb", (p, c), n, T, 3000, seed=7, at=[T], fixed=(False, True)), abandonment(p, c, T, n, share=.1)
    few = (df.pulls_0 < T / 10).mean()
    assert abs(few - law.few) <= 4 * np.sqrt(max(law.few, 1e-3) / 3000)


def played_by_hand(first, c, T):
    "Pulls of A in T rounds of the published bonus, if A's draws are `first`; A has won when they are used up"
    B, N, ones, M = np.sqrt(2 * np.log(T)), 1, first[0], 1  # A first, then B
    for _ in range(T - 2):
        if ones / N + B / N < c + B / M: M += 1
        elif N == len(first): return N + 1
        else: N, ones = N + 1, ones + first[N]
    return N


@pytest.mark.parametrize("p, c, T, share", [(.5, .45, 30, .25), (.6, .3, 20, .5), (.4, .3, 40, .3), (.5, .37, 100, .1)])
def test_few_pulls_by_enumeration(p, c, T, share):
    few = int(np.ceil(share * T - 1e-9))
    paths = [np.array([(i >> j) & 1 for j in range(few - 1)]) for i in range(2**(few - 1))]
    chance = sum(p**x.sum() * (1 - p)**(few - 1 - x.sum()) for x in paths if played_by_hand(x, c, T) < few)
    assert abandonment(p, c, T, share=share).few == pytest.approx(chance, abs=1e-12) and 0 < chance < 1


@pytest.mark.parametrize("p, c, n, T", [(.5, .45, 1, 400), (.5, .4, 3, 300), (.3, .25, 2, 300)])
def test_ruin_by_plain_counting(p, c, n, T):
    B, alive, out = np.sqrt(2 * np.log(T)), np.ones(1), 0
    for N in range(1, T + 1):
        alive = np.convolve(alive, binom.pmf(np.arange(n + 1), n, p))
        lost = c * N - np.arange(n * N + 1) / n >= B - 1e-12
        out, alive = out + alive[lost].sum(), np.where(lost, 0, alive)
    assert abandonment(p, c, T, n).left == pytest.approx(out, abs=1e-12)


@given(p=st.floats(.15, .95), share=st.floats(.2, .9), n=st.integers(1, 4), T=st.integers(50, 2000))
@settings(max_examples=40, deadline=None)
def test_ruin_lies_between_its_bounds(p, share, n, T):
    law = abandonment(p, share * p, T, n)
    assert law.zeros <= law.upper + 1e-12 and law.lower <= law.upper and law.left <= law.upper + 1e-9
    assert law.theta >= 8 * n * (p - share * p) - 1e-9 and 0 <= law.floor <= law.regret + 1e-12 or law.N0 > T
    if T > 1000 and p * (1 - share) > .1: assert law.left >= law.lower - 1e-6  # by then ruin has happened or will not


def test_larger_batches_make_ruin_rare():
    left = [abandonment(.5, .45, 10_000, n).left for n in (1, 2, 5, 10)]
    assert left[0] > .1 and left[-1] < 1e-6 and all(a > b for a, b in zip(left, left[1:]))


# --- D.4
@given(counts)
@settings(max_examples=200, deadline=None)
def test_kl_index_is_below_the_batch_index_and_on_the_boundary(c):
    arms = arms_of(*c)
    kl, hoeffding = kl_ucb_index(arms), batch_ucb_index(arms)
    assert (kl <= hoeffding + 1e-12).all() and (kl >= arms.mean).all() and (kl <= 1).all()
    level, at = np.log(2 * 3 * 500 / .05), kl < 1 - 1e-9
    np.testing.assert_allclose((arms.rows * _kl(arms.mean, kl))[at], level, rtol=1e-6)


@given(p=shares, q=shares)
@settings(max_examples=200, deadline=None)
def test_d_star_is_at_least_half_the_squared_gap(p, q):
    d = float(d_star(p, q))
    assert not np.isnan(d) and d >= (p - q)**2 / 2 - 1e-12 and d == float(d_star(q, p))


def test_d_star_at_the_edges():
    np.testing.assert_allclose(d_star([0, .6, .3], [.3, 1, .3]), [-np.log(.7), -np.log(.6), 0], atol=1e-12)
    assert d_star(0, 1) == np.inf and d_star(0, 0) == d_star(1, 1) == 0


def test_thompson_draws_have_the_posterior_mean():
    many = Arms(np.full((20_000, 2), 5), np.full((20_000, 2), 100), np.tile([50., 10.], (20_000, 1)), 20, 50)
    draws = POLICIES["thompson"](many, np.random.default_rng(0)).mean(0)
    np.testing.assert_allclose(draws, [51 / 102, 11 / 102], atol=2e-3)  # 5 standard errors of 20,000 draws


@given(p=inner, q=inner)
@settings(max_examples=60, deadline=None)
def test_d_star_is_the_minimum(p, q):
    if abs(p - q) < 1e-3: return
    farther = lambda x: max(float(_kl(x, p)), float(_kl(x, q)))
    found = minimize_scalar(farther, bounds=sorted((p, q)), method="bounded", options=dict(xatol=1e-10))
    assert float(d_star(p, q)) == pytest.approx(found.fun, rel=1e-3, abs=1e-9)


@given(rho=st.lists(shares, min_size=2, max_size=5), n=st.integers(1, 200), T=st.integers(2, 500), delta=st.floats(.001, .5))
@settings(max_examples=100, deadline=None)
def test_bounds_shrink_with_the_batch_and_grow_with_confidence(rho, n, T, delta):
    for bound in BOUNDS.values():
        b, larger, surer = bound(rho, n, T, delta=delta), bound(rho, n + 7, T, delta=delta), bound(rho, n, T, delta=delta / 2)
        assert (larger.pulls <= b.pulls).all() and (larger.worst <= b.worst + 1e-12).all() and (larger.gap <= b.gap + 1e-12).all()
        assert (surer.pulls >= b.pulls).all() and (surer.regret >= b.regret - 1e-12).all()
        assert np.isfinite([*b.worst, *b.gap, *b.density]).all() and (b.pulls <= T).all()
    assert (kl_pull_bound(rho, n, T).pulls <= ucb_bound(rho, n, T).pulls).all()


# --- Lemma D.0: two sources' rates differ by at most xi
@given(rho=st.lists(shares, min_size=2, max_size=5), low=st.lists(st.floats(0, .4), min_size=5, max_size=5),
       high=st.lists(st.floats(.5, 1), min_size=5, max_size=5))
@settings(max_examples=200, deadline=None)
def test_density_lost_is_bounded_by_reward_lost_and_bias(rho, low, high):
    rho, rates = np.array(rho), np.array([high, low]).T[:len(rho)]
    r, xi, J = mean_rewards(rho, rates), np.ptp(rates, axis=0).max(), (rates[:, 0] - rates[:, 1])
    assert (rho.max() - rho <= (r.max() - r + xi) / J + 1e-9).all()


def test_bias_term_is_reached():
    r = mean_rewards((.5, .375), [(.9, .1), (1, .2)])
    assert r[0] == pytest.approx(r[1]) and .5 - .375 == pytest.approx(.1 / .8)


# --- D.5: theory.md says never; delta is .05 and 300 runs are played
@pytest.mark.parametrize("rho, caps, n, T", [((.1, .3, .5, .7), 15, 50, 40), ((.1, .3, .5, .7), 15, 50, 60), ((.2, .8), (30, 6), 10, 30),
                                             ((.4, .5, .6), (3, 50, 7), 5, 55)])
def test_pool_bound_is_never_broken(rho, caps, n, T):
    bound, df = pool_bound(rho, caps, n, T), bandit("batch_ucb", rho, n, T, 300, pools=caps, seed=8)
    total, seen = (df.pivot(index="run", columns="round", values=v).to_numpy() * bound.t for v in ("regret", "realised"))
    assert (total <= bound.regret + 1e-9).all() and (seen <= bound.regret + bound.slack).all() and (total <= bound.most + 1e-9).all()
    assert (bandit("oracle", rho, n, T, 3, pools=caps).regret.abs() < 1e-9).all()


def test_pool_gap_bound_is_not_vacuous_and_can_fail():
    bound = pool_bound((.1, .3, .5, .7), 15, 50, 40)
    assert bound.gap[-1] < bound.most[-1] / 3 and bound.worst[-1] > bound.most[-1]  # (a) says nothing here
    total = bandit("random", (.1, .3, .5, .7), 50, 40, 50, pools=15, seed=9, at=[40]).regret * 40
    assert (total > bound.gap[-1]).mean() > .9


@given(rho=st.lists(shares, min_size=2, max_size=4), n=st.integers(1, 60), T=st.integers(1, 60))
@settings(max_examples=60, deadline=None)
def test_pool_bound_of_endless_pools_is_the_gap_bound(rho, n, T):
    b = pool_bound(rho, T, n, T)
    if len(set(rho)) == len(rho): np.testing.assert_allclose(b.gap / b.t, ucb_bound(rho, n, T).gap, atol=1e-9)
    assert np.isfinite(b.gap).all() and (b.best >= 0).all() and (b.most >= -1e-9).all()


# --- D.6: nothing but the commitment is random
@pytest.mark.parametrize("p, q, m", [(.1, .2, 30), (.4, .5, 100), (0., .1, 20), (.3, .9, 5), (.48, .5, 400), (.7, 1., 3)])
def test_chance_of_a_wrong_commitment_is_below_its_bound(p, q, m):
    k = np.arange(m + 1)
    wrong = (binom.pmf(k, m, p) * binom.cdf(k, m, q)).sum()  # the worse mean is at least the better one
    assert wrong <= np.exp(-m * (q - p)**2)


@pytest.mark.parametrize("setting", SETTINGS, ids=str)
@pytest.mark.parametrize("explore", [None, 1, 7])
def test_explore_bound_holds(setting, explore):
    rho, n, T = setting
    policy = lambda arms, rng: explore_then_commit_index(arms, explore=explore)
    at = np.unique(np.geomspace(1, T, 12).astype(int))
    df, bound = bandit(policy, rho, n, T, 400, seed=3, at=at), explore_bound(rho, n, T, explore=explore, t=at)
    assert (pulls(df).to_numpy() <= bound.pulls).all(1).mean() >= .95
    assert (df.pivot(index="run", columns="round", values="regret").to_numpy() <= bound.regret + 1e-12).all(1).mean() >= .95
    m, gaps, K = explore or explore_batches(len(rho), n, T), max(rho) - np.array(rho), len(rho)
    last = df[df["round"] == T].regret
    assert last.mean() <= (gaps * (m + (T - K * m) * np.exp(-n * m * gaps**2))).sum() / T + 4 * last.sem() + 1e-12


def test_explore_then_commit_is_what_it_says():
    df = bandit("explore_then_commit", (.3, .4, .45), 4, 100, 60, seed=2)
    m = explore_batches(3, 4, 100)
    for _, run in df.groupby("run"):
        explored = run.iloc[3 * m - 1]
        assert run.source.iloc[:3 * m].tolist() == [0, 1, 2] * m  # in turn
        assert (run.source.iloc[3 * m:] == np.argmax([explored[f"mean_{s}"] for s in range(3)])).all()  # and then for ever
    dry = bandit("explore_then_commit", (.1, .9, .5), 20, 24, 20, pools=(8, 8, 8), seed=2)
    order = [s for s, _ in sorted(dry[dry.run == 0].groupby("source")["round"].max().items(), key=lambda e: e[1])]
    assert order == [1, 2, 0]  # the committed pool runs dry, then the next best is emptied


@given(K=st.integers(1, 8), n=st.integers(1, 500), T=st.integers(1, 20_000), delta=st.floats(.001, .5))
@settings(max_examples=200, deadline=None)
def test_exploration_balances_its_bound(K, n, T, delta):
    m, level = explore_batches(K, n, T, delta), np.log(K / delta)
    assert 1 <= m <= max(T // K, 1)
    total = lambda m: K * m + T * np.sqrt(level / (n * m))
    assert min(T, total(m)) <= K + 3 * (K * T**2 * level / (4 * n))**(1 / 3) + 1e-9
    others = np.arange(1, max(T // K, 1) + 1)
    assert total(m) <= total(others).min() + K + 1e-9


def test_a_known_gap_makes_it_like_D1_and_round_robin_loses_the_mean_gap():
    m = int(np.ceil(np.log(2 / .05) / (10 * .1**2)))
    b = explore_bound((.4, .5), 10, 2000, explore=m)
    assert b.pulls[0] == m and b.gap[-1] == pytest.approx(m * .1 / 2000) and b.pulls[0] <= ucb_bound((.4, .5), 10, 2000).pulls[0]
    assert explore_bound((.4, .5), 10, 2000, explore=m - 1).pulls[0] == 2000 - (m - 1)
    df = bandit("round_robin", (.2, .5, .9), 7, 31, 3)
    assert (pulls(df) == [11, 10, 10]).all(axis=None) and df.regret.iloc[-1] == pytest.approx((11 * .7 + 10 * .4) / 31)


def test_policies_take_arms_of_any_shape():
    rng = np.random.default_rng(1)
    N = rng.integers(0, 9, (2, 5, 3))
    arms = Arms(N, 10 * N, rng.binomial(10 * N, .4).astype(float), 10, 100)
    for name in ("round_robin", "explore_then_commit"):
        whole = POLICIES[name](arms, rng)
        for i in np.ndindex(2, 5): np.testing.assert_array_equal(whole[i], POLICIES[name](Arms(N[i], 10 * N[i], arms.flagged[i], 10, 100), rng))


# --- the simulation itself
@pytest.mark.parametrize("policy", ["oracle", *POLICIES])
def test_frame_is_consistent(policy):
    df, rho = bandit(policy, (.2, .5, .7), 12, 25, 8, detector=(.9, .2), seed=1), np.array([.2, .5, .7])
    N = df[["pulls_0", "pulls_1", "pulls_2"]].to_numpy()
    assert (N.sum(1) == df["round"]).all() and (np.diff(N.reshape(8, 25, 3), axis=1).sum(-1) == 1).all()
    np.testing.assert_allclose(df.density_regret, .7 - N @ rho / df["round"], atol=1e-12)
    np.testing.assert_allclose(df.regret, .7 * df.density_regret, atol=1e-12)  # J = .7
    np.testing.assert_allclose(df.realised * df["round"], .69 * df["round"] - (df[["mean_0", "mean_1", "mean_2"]].to_numpy() * N).sum(1))
    if policy == "oracle": assert (df.density_regret == 0).all()


@given(caps=st.lists(st.integers(1, 8), min_size=1, max_size=4), seed=st.integers(0, 99), policy=st.sampled_from(list(POLICIES)))
@settings(max_examples=40, deadline=None)
def test_pools_are_drawn_without_replacement(caps, seed, policy):
    rho, n = np.linspace(.1, .9, len(caps)), 10
    df = bandit(policy, rho, n, sum(caps), 3, pools=caps, seed=seed, at=[sum(caps)])
    np.testing.assert_array_equal(pulls(df).to_numpy(), [caps] * 3)
    whole = np.rint(rho * n * np.array(caps)) / (n * np.array(caps))
    np.testing.assert_allclose(df[[f"mean_{s}" for s in range(len(caps))]], [whole] * 3)  # each row was seen once
    np.testing.assert_allclose(df[["regret", "realised", "density_regret"]], 0, atol=1e-12)


def test_one_source_is_no_choice_and_seeds_repeat():
    assert (bandit("kl_ucb", (.3,), 5, 20, 4).regret == 0).all()
    for bound in BOUNDS.values(): assert bound((.3,), 5, 20).regret[-1] == 0 and bound((.4, .4), 5, 20).gap[-1] == 0
    for policy in ("thompson", "random"): assert bandit(policy, (.2, .6), 5, 20, 4, seed=2).equals(bandit(policy, (.2, .6), 5, 20, 4, seed=2))


def test_rates_of_each_source_and_own_index():
    greedy = lambda arms, rng: np.where(arms.pulls == 0, np.inf, arms.mean)
    df = bandit(greedy, (.5, .4), 500, 60, 50, detector=[(.9, .1), (1, .2)], seed=0, at=[60])
    assert df.density_regret.mean() > .05 and df.density_regret.max() <= ucb_bound((.5, .4), 500, 60, detector=[(.9, .1), (1, .2)]).density[-1]


# --- bad input
@pytest.mark.parametrize("change, message", [
    (dict(rho=(.2, 1.2)), "wanted shares within"), (dict(rho=(-.1, .5)), "wanted shares within"), (dict(rho=(np.nan, .5)), "wanted shares within"),
    (dict(rho=[[.1, .2]]), "wanted \\(K,\\)"), (dict(rho=()), "wanted \\(K,\\)"), (dict(T=0), "T: got 0"), (dict(T=2.5), "T: got 2.5"), (dict(n=0), "n: got 0"), (dict(n=np.nan), "n: got nan"),
    (dict(detector=(.3, .3)), "J = TPR - FPR"), (dict(detector=(.2, .6)), "J = TPR - FPR"), (dict(detector=(1.2, 0)), "rates within"),
    (dict(detector=[(1, 0)] * 3), "detector: got shape")])
@pytest.mark.parametrize("function", [lambda **k: bandit("ucb", runs=2, **k), ucb_bound,
                                      paper_bonus_bound, kl_pull_bound, explore_bound, lambda **k: pool_bound(pools=20, **k)],
                         ids=["bandit", "ucb_bound", "paper_bonus_bound", "kl_pull_bound", "explore_bound", "pool_bound"])
def test_bad_input_is_named(function, change, message):
    with pytest.raises(ValueError, match=message): function(**dict(rho=(.2, .6), n=10, T=20) | change)


@pytest.mark.parametrize("bound", [ucb_bound, paper_bonus_bound, kl_pull_bound, explore_bound, lambda *a, **k: pool_bound(a[0], 20, *a[1:], **k)])
@pytest.mark.parametrize("delta", [0, 1, -.1, 2, np.nan])
def test_delta_is_a_probability(bound, delta):
    with pytest.raises(ValueError, match="delta: got"): bound((.2, .6), 10, 20, delta=delta)


@pytest.mark.parametrize("call, message", [
    (lambda: bandit("paper", (.2, .6), 5, 9), "wanted oracle, random, reference_ucb"), (lambda: bandit("ucb", (.2, .6), 5, 9, runs=0), "runs: got 0"),
    (lambda: bandit("ucb", (.2, .6), 5, 9, pools=4), "hold 8 batches"), (lambda: bandit("ucb", (.2, .6), 5, 9, pools=(9, 0)), "at least 1 a source"),
    (lambda: bandit("ucb", (.2, .6), 5, 9, pools=(9, 2.5)), "whole numbers"),
    (lambda: bandit("ucb", (.2, .6), 5, 9, pools=(9, 9, 9)), "pools: got shape"),
    (lambda: bandit("ucb", (.2, .6), 5, 9, at=[0]), "wanted rounds within"),
    (lambda: bandit("ucb", (.2, .6), 5, 9, fixed=(True,)), "fixed: got shape"),
    (lambda: bandit("ucb", (.2, .6), 5, 9, fixed=(True, False), pools=9), "one of the two"),
    (lambda: paper_bonus_bound((.2, .6), 5, 1), "at least 2"),
    (lambda: ucb_bound((.2, .6), 5, 9, bonus="best"), "wanted 'batch' or 'standard'"), (lambda: pool_bound((.2, .6), 4, 5, 9), "hold 8 batches"),
    (lambda: explore_bound((.2, .6), 5, 9, explore=0), "explore: got 0"), (lambda: explore_bound((.2, .6), 5, 9, explore=1.5), "explore: got 1.5"),
    (lambda: explore_then_commit_index(arms_of(3, 5, 0), explore=0), "explore: got 0"),
    (lambda: abandonment(.4, .5, 100), "0 < c < p < 1"),
    (lambda: abandonment(1., .5, 100), "0 < c < p < 1"),
    (lambda: abandonment(.5, 0, 100), "0 < c < p < 1"),
    (lambda: abandonment(.5, .4, 1), "T of at least 2"),
    (lambda: abandonment(.5, .4, 100, 0), "n: got 0"),
    (lambda: d_star(1.1, .5), "wanted shares within")])
def test_other_bad_input_is_named(call, message):
    with pytest.raises(ValueError, match=message): call()
