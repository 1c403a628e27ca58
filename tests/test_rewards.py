"What a bought batch pays: each rule against a plain recomputation, the running similarities, the warm-up's independence, Proposition R.1."
from dataclasses import fields, replace

import numpy as np
import pytest
from hypothesis import given, settings, strategies as st

from datacentric_w2s import rewards
from datacentric_w2s.core import Pseudolabels
from datacentric_w2s.detection import PROTOCOLS, Rules, change_point, detect_overlap, overlap_score
from datacentric_w2s.regret import Arms, batch_ucb_index, ucb_index
from datacentric_w2s.rewards import REWARDS, BatchDetector, Judge, Ledger, Reward, _fold, _running, judge_of, measured_rates, reward_of
from datacentric_w2s.theory import Mixture, sample

NAMES = ("max_abs_cosine", "max_dot", "mean_square", "quantile")


def rows_of(seed, n=300, d=12, dtype=np.float64):
    "Pseudolabels and features in which some rows are like the unsure ones"
    rng = np.random.default_rng(seed)
    kind = rng.integers(0, 3, n)
    x = rng.normal(size=(n, d)) * .5
    x[kind > 0, :3] += rng.normal(size=((kind > 0).sum(), 3)) * 2
    return Pseudolabels(np.clip(np.where(kind == 1, .5, .92) + rng.normal(size=n) * .05, 0, 1)), x.astype(dtype)


def batches(seed, n, sizes=(1, 30)):
    "Row numbers in random order, cut into batches of random sizes"
    rng, order, out = np.random.default_rng([seed, 1]), np.random.default_rng([seed, 2]).permutation(n), []
    while len(order):
        m = int(rng.integers(*sizes))
        out.append(order[:m])
        order = order[m:]
    return out


# --- the three rules that judge a batch once: a plain loop, written before the ledger was
class Plain:
    def __init__(self, conf, x, thresholds, how, center, jump):
        self.conf, self.x, self.thresholds, self.how, self.center, self.jump = conf, x, thresholds, how, center, jump
        self.bought, self.hard, self.scores = np.empty(0, int), np.empty(0, int), np.empty(0)

    def cut(self, batch, seen, pooled):
        for s, name in ((seen, "pooled"),) if pooled else ((batch, "batch"), (seen, "pooled")):
            if len(s) >= 2 and np.ptp(s) > 0: return np.sort(s)[change_point(s, jump=self.jump if len(s) > self.jump else 1)], name
        return np.inf, "none"

    def flag(self, rows):
        self.bought = np.concatenate([self.bought, rows])
        t_hard, from_conf = self.cut(self.conf[rows], self.conf[self.bought], self.thresholds == "pooled")
        hard = (self.conf[rows] < t_hard) & (from_conf != "none")
        self.hard = np.concatenate([self.hard, rows[hard]])
        if hard.all() or len(self.hard) == 0: return np.zeros(len(rows), bool), f"{from_conf}/none"
        score = overlap_score(self.x[rows[~hard]], self.x[self.hard], self.how, self.center)
        self.scores = np.concatenate([self.scores, score])
        t_overlap, from_score = self.cut(score, self.scores, self.thresholds != "batch")
        return np.isin(rows, rows[~hard][score >= t_overlap]), f"{from_conf}/{from_score}"


@pytest.mark.parametrize("jump, center, how", [(1, False, "max_abs_cosine"), (1, True, "max_abs_cosine"), (5, False, "max_dot"), (1, False, "quantile"), (1, False, "mean_square")])
@pytest.mark.parametrize("rule", ("batch", "published", "pooled"))
def test_batch_rules_equal_a_plain_loop(rule, how, center, jump):
    found = set()
    for seed in range(3):
        labels, x = rows_of(seed, dtype=(np.float64, np.float32)[seed % 2])
        conf = np.round(labels.conf, 1)  # ties, and batches of one confidence
        plain, detector = Plain(conf, x, rule, how, center, jump), BatchDetector(conf, x, thresholds=rule, how=how, center=center, jump=jump)
        for rows in batches(seed, len(conf)):
            (a, why), (b, says) = plain.flag(rows), detector.flag(rows)
            np.testing.assert_array_equal(a, b)
            assert why == says
            found.add(why)
    assert len(found) >= (1 if rule == "pooled" else 3)  # the ways out of batches that can't be split were taken


@pytest.mark.parametrize("rules", [*PROTOCOLS.values(), Rules(center=True), Rules("quantile", boundary="<=")])
@pytest.mark.parametrize("rule", REWARDS[:5])
def test_bought_at_once_equals_detection(rule, rules):
    labels, x = rows_of(5)
    led = Ledger(Reward(rule, rules, warmup=1 if rule == "warmup" else None), 1).add(0, labels, x)
    part = detect_overlap(labels, x, how=rules.how, center=rules.center, jump=rules.jump, min_size=rules.min_size, boundary=rules.boundary)
    assert led.kind.tolist() == part.kind.tolist()
    np.testing.assert_allclose(led.score, part.score, rtol=1e-10)


# --- recount: what one would find by detecting anew in everything bought so far
@pytest.mark.parametrize("dtype", (np.float64, np.float32))
@pytest.mark.parametrize("rules", [*map(Rules, NAMES), Rules(center=True), Rules(lambda x, x_hard: (x @ x_hard.T).max(1)), Rules("max_dot", jump=5, min_size=2, boundary="<=")], ids=lambda r: str(r) if isinstance(r.how, str) else "a function")
def test_recount_equals_detecting_anew(rules, dtype):
    gone = 0
    for seed in range(4):
        x, conf = rows_of(seed, dtype=dtype)[1], np.random.default_rng(seed).uniform(size=300)
        labels, order = Pseudolabels((1 + conf) / 2), np.argsort(-conf + np.random.default_rng([seed, 3]).normal(size=300))  # surer rows come first: the threshold falls
        led, bought = Ledger(Reward("recount", rules), 2), np.empty(0, int)
        for t, rows in enumerate(np.split(order, [40, 60, 90, 110, 160, 200, 220, 260])):
            before, led, bought = led.hard, led.add(t % 2, labels[rows], x[rows]), np.append(bought, rows)
            gone += (before & ~led.hard[:len(before)]).sum()
            part = detect_overlap(labels[bought], x[bought], how=rules.how, center=rules.center, jump=rules.jump, min_size=rules.min_size, boundary=rules.boundary)
            assert led.kind.tolist() == part.kind.tolist()
            np.testing.assert_allclose(led.score, part.score, rtol=1e-10 if dtype == np.float64 else 1e-4, atol=1e-5)
    assert gone > 5, "no reference ever left: the test would not see a maximum that must be looked for again"


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 10**6), st.sampled_from(("max_abs_cosine", "max_dot", "mean_square")))
def test_running_scores_equal_plain_ones(seed, how):
    rng = np.random.default_rng(seed)
    x, hard, best, at = np.round(rng.normal(size=(40, 3)), 1), np.empty(0, bool), np.empty(0), np.empty(0, int)  # rounded: ties
    for n in np.unique(rng.integers(1, 41, 6)):
        now = np.append(hard, np.zeros(n - len(hard), bool)) ^ (rng.uniform(size=n) < .3)
        best, at = _running(x[:n], now, hard, best, at, how)
        g = x[:n] @ x[:n][now].T
        if now.any() and not now.all():
            want = {"max_abs_cosine": np.abs(g).max(1), "max_dot": g.max(1), "mean_square": (g**2).sum(1)}[how]
            np.testing.assert_allclose(best[~now], want[~now], atol=1e-9)
        assert np.isnan(best[now]).all() and (at[now] == -1).all()
        hard = now


def test_blocks_do_not_change_the_fold():
    x = np.random.default_rng(0).normal(size=(50, 4))
    for how in ("max_dot", "mean_square"):
        for a, b in zip(_fold(x, np.arange(30), np.arange(30, 50), how), _fold(x, np.arange(30), np.arange(30, 50), how, entries=45)): np.testing.assert_allclose(a, b)


def test_a_round_costs_new_rows_and_new_references(monkeypatch):
    done = []
    def counted(x, rows, refs, how, **more):
        done.append(len(rows) * len(refs))
        return _fold(x, rows, refs, how, **more)
    monkeypatch.setattr(rewards, "_fold", counted)
    rng, led, plain = np.random.default_rng(0), Ledger(Reward("recount"), 1), 0
    conf = np.tile([.1, .12, .9, .91, .92], 8)  # the same split in every round: no reference ever leaves
    for t in range(1, 21):
        done.clear()
        led = led.add(0, conf, rng.normal(size=(40, 6)))
        assert sum(done) == 24 * 16 * t + 24 * (t - 1) * 16  # new rows x all references, old rows x new references
        plain += 24 * t * 16 * t
    assert sum(24 * 16 * (2 * t - 1) for t in range(1, 21)) < plain / 6


@pytest.mark.parametrize("rule, kept", [("batch", "references"), ("published", "references"), ("pooled", "references"), ("recount", "all"), ("warmup", "references of the warm-up")])
def test_memory_grows_with_rows_bought(rule, kept):
    labels, x = rows_of(1)
    led, m = Ledger(Reward(rule), 2), 30
    for t in range(10): led = led.add(t % 2, labels[m * t:m * (t + 1)], x[m * t:m * (t + 1)])
    want = {"references": led.hard.sum(), "all": 300, "references of the warm-up": led.hard[:4 * m].sum()}[kept]
    assert len(led.x) == want
    others = [getattr(led, f.name) for f in fields(led) if isinstance(getattr(led, f.name), np.ndarray) and f.name not in ("x", "rates")]
    assert all(a.ndim == 1 and len(a) <= 300 for a in others)


# --- a warm-up: the judge hangs on its rows alone, and judges each later row alone
def test_flags_after_a_warmup_hang_on_nothing_else():
    labels, x = rows_of(2)
    warm = Ledger(Reward("warmup", warmup=2), 2).add(0, labels[:40], x[:40]).add(1, labels[40:80], x[40:80])
    assert not warm.warming and (warm.flag >= 0).all()
    order = np.random.default_rng(0).permutation(np.arange(80, 300))
    one, two = warm.add(0, labels[80:300], x[80:300]), warm
    for rows in np.array_split(order, 17): two = two.add(1, labels[rows], x[rows])
    np.testing.assert_array_equal(one.flag[order], two.flag[80:])
    np.testing.assert_array_equal(one.flag[:80], two.flag[:80])
    np.testing.assert_array_equal(one.hard[80:], labels.conf[80:300] < warm.judge.t_hard)
    assert one.hard[80:].any() and not one.hard[80:].all()


def test_a_warmup_that_cannot_be_split_goes_on():
    led = Ledger(Reward("warmup", warmup=2), 2)
    for t in range(4):
        led = led.add(t % 2, np.full(6, .3), np.random.default_rng(t).normal(size=(6, 3)))
        assert led.warming and np.isnan(led.paid()) and led.arms(6, 9).flagged.tolist() == [0, 0]
    led = led.add(0, [.9, .95, .92], np.random.default_rng(9).normal(size=(3, 3)))
    assert not led.warming and led.hard.sum() == 24 and (led.flag >= 0).all() and led.judge.t_hard == .9


def test_a_judge_from_elsewhere_takes_the_place_of_a_warmup():
    labels, x = rows_of(3)
    part = detect_overlap(labels[:150], x[:150], how="quantile")
    led = Ledger(Reward("warmup", Rules("quantile")), 2).fix(judge_of(part, x[:150], Rules("quantile")))
    assert not led.warming
    led = led.add(0, labels[150:], x[150:])
    hard = labels.conf[150:] < part.t_hard
    score = overlap_score(x[150:], x[:150][part.kind == "hard"], "quantile")
    assert led.flag.tolist() == (~hard & (score >= part.t_overlap)).astype(int).tolist()
    with pytest.raises(ValueError, match="detector"): Ledger(Reward("warmup"), 2).fix(led.judge)


# --- Proposition R.1
shares = st.lists(st.integers(1, 39), min_size=2, max_size=5)


def calibrated(flagged, rates, m=40):
    "A ledger with so many flagged rows of m in one batch a source, without a detector"
    led = Ledger(Reward("calibrated", rates=rates), len(flagged))
    flag = np.concatenate([np.repeat([1, 0], [k, m - k]) for k in flagged]).astype(np.int8)
    return replace(led, batches=np.arange(len(flagged)), sizes=np.full(len(flagged), m), flag=flag, limits=np.zeros(2), rates=np.broadcast_to(np.array(rates, float), (len(flagged), 2)))


@settings(max_examples=80, deadline=None)
@given(shares)
def test_equal_rates_change_no_choice(flagged):
    rates = (.99, .01)  # nothing is clipped: 1 to 39 of 40 flagged lie inside
    arms, raw = calibrated(flagged, rates).arms(40, 50), Arms(np.ones(len(flagged)), np.full(len(flagged), 40.), np.array(flagged, float), 40, 50)
    np.testing.assert_array_equal(np.argsort(arms.mean, kind="stable"), np.argsort(raw.mean, kind="stable"))
    np.testing.assert_allclose(batch_ucb_index(arms), (batch_ucb_index(raw) - .01) / .98, rtol=1e-9)
    np.testing.assert_allclose(ucb_index(arms), (ucb_index(raw, scale=.98) - .01) / .98, rtol=1e-9)  # which explores less


def test_unequal_rates_can_turn_the_order():
    arms = calibrated((12, 16), ((.9, .05), (.9, .3))).arms(40, 50)
    np.testing.assert_allclose(arms.mean, [(.3 - .05) / .85, (.4 - .3) / .6])
    np.testing.assert_allclose(arms.rows, [40 * .85**2, 40 * .6**2])
    led = calibrated((12, 1), ((.9, .05), (.9, .3)))
    assert led.paid(0) == pytest.approx(.25 / .85) and led.paid(1) < 0 and led.arms(40, 50).mean[1] == 0  # clipped in the arms, not in the pay


def test_interval_of_the_corrected_density_holds():
    rng, tpr, fpr, rho, T, misses = np.random.default_rng(0), .7, .2, .4, 1, 0
    for _ in range(400):
        k = rng.binomial(40, fpr + (tpr - fpr) * rho, 2)
        arms = calibrated(k, (tpr, fpr)).arms(40, T)
        misses += (np.abs(arms.mean - rho) > np.sqrt(np.log(2 * 2 * T / .2) / (2 * arms.rows))).any()  # delta = .2
    assert misses / 400 < .2
    radius = np.sqrt(np.log(20) / 80)  # and with all rows counted as one each it would not
    wrong = sum(np.abs((rng.binomial(40, .4, 2) / 40 - fpr) / (tpr - fpr) - rho).max() > radius for _ in range(400))
    assert wrong / 400 > .05


def test_measured_rates_are_those_of_the_judge():
    labels, x = rows_of(4)
    part = detect_overlap(labels, x)
    truth, source = np.random.default_rng(0).uniform(size=300) < .4, np.arange(300) % 2
    flag = judge_of(part, x).flag(labels.conf, x)
    pairs = measured_rates(labels.conf, x, truth, source)(judge_of(part, x))
    for s in (0, 1): assert pairs[s].tolist() == [flag[truth & (source == s)].mean(), flag[~truth & (source == s)].mean()]
    assert measured_rates(labels.conf, x, truth)(judge_of(part, x)).shape == (2,)


# --- the findings, where they are clear: a change point misleads, and a maximum over growing references climbs
def batch_of(share, rng, hard=40, tau2=1.):
    rows = sample(Mixture(np.full(20, (1 / 3)**.5), np.full(20, (1 / 3)**.5), 5., tau2), (100 - share, hard, share), rng)
    return np.where(rows.kind == "hard", .1, .9) + rng.uniform(-.05, .05, len(rows)), rows.x_strong


def test_a_change_point_in_each_batch_prefers_the_middle_source():
    pay = {rule: np.zeros((30, 2)) for rule in ("batch", "recount", "warmup", "published")}
    for rule, out in pay.items():
        for k in range(30):
            led, rng = Ledger(Reward(rule, warmup=2 if rule == "warmup" else None), 2), np.random.default_rng(k)
            for t in range(12): led = led.add(t % 2, *batch_of((80, 95)[t % 2], rng))
            out[k] = led.arms(140, 12).mean
    gap = {rule: (v[:, 1] - v[:, 0]) for rule, v in pay.items()}
    assert gap["batch"].mean() < -4 * gap["batch"].std() / 30**.5
    assert all(gap[r].mean() > 4 * gap[r].std() / 30**.5 for r in ("recount", "warmup", "published"))


def test_published_pay_climbs_and_recounted_pay_does_not():
    climb = {}
    for rule in ("published", "pooled", "recount", "batch"):
        pay = []
        for k in range(12):
            led, rng, out = Ledger(Reward(rule), 1), np.random.default_rng(k), []
            for _ in range(8):
                led = led.add(0, *batch_of(50, rng, hard=20))
                out.append(led.paid())
            pay.append(np.mean(out[4:]) - out[0])
        climb[rule] = np.mean(pay), np.std(pay) / 12**.5
    assert all(climb[r][0] > 4 * climb[r][1] for r in ("published", "pooled"))
    assert all(abs(climb[r][0]) < .05 for r in ("recount", "batch"))


# --- what goes in
def test_a_ledger_is_never_changed():
    labels, x = rows_of(6)
    for rule in REWARDS:
        led = Ledger(Reward(rule, rates=(.9, .1) if rule == "calibrated" else None), 2)
        for t in range(3): led = led.add(t % 2, labels[40 * t:40 * t + 40], x[40 * t:40 * t + 40])
        before = {f.name: np.array(v) for f in fields(led) if isinstance(v := getattr(led, f.name), np.ndarray)}
        own_conf, own_x = labels.conf[120:160].copy(), x[120:160].copy()
        new = led.add(1, own_conf, own_x)
        flags = new.add(0, labels[160:], x[160:]).flag
        own_conf[:], own_x[:] = 0, 0  # the caller's arrays are the caller's
        assert new.add(0, labels[160:], x[160:]).flag.tolist() == flags.tolist()
        for name, value in before.items(): np.testing.assert_array_equal(getattr(led, name), value)
    own_x = x.copy()
    first = Ledger(Reward("recount", Rules("max_dot")), 1).add(0, labels, own_x)
    own_x[:] = 0
    np.testing.assert_array_equal(first.x, x)


def test_bad_options_are_refused():
    for bad in (dict(rule="best"), dict(warmup=1.5), dict(order="sideways"), dict(rule="warmup", rates=(.9, .1)), dict(detector=Rules("cosine"))):
        with pytest.raises(ValueError, match="wanted|reads none"): Reward(**bad)
    with pytest.raises(ValueError, match="shape"): Ledger(Reward("calibrated", rates=(.9, .1, .2)), 2).fix(Judge(.5, .5, np.ones((1, 2))))
    assert Reward("calibrated", rates=np.array([[.9, .1], [.8, .2]])).rates == ((.9, .1), (.8, .2))
    assert reward_of("pooled", Rules(jump=5)) == Reward("pooled", Rules(jump=5))
