"Ask and tell: a session goes on exactly where it was left, refuses what isn't right, and keeps its state through every error."
import io
import json
import os
import re
import signal
import subprocess
import sys
import time
import zipfile
from dataclasses import replace

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest

from datacentric_w2s import session as module
from datacentric_w2s.core import Pseudolabels
from datacentric_w2s.detection import Rules, detect_overlap
from datacentric_w2s.regret import POLICIES, Arms
from datacentric_w2s.rewards import REWARDS, Ledger, Reward, judge_of, measured_rates
from datacentric_w2s.session import Plan, Session, _unpack, plot_session


def goods(seed=0, n=200, d=8):
    "Pseudolabels and features of two sources, the second with more rows that are sure and like the unsure ones"
    out = {}
    for k, (name, share) in enumerate((("a", .2), ("b", .6))):
        rng = np.random.default_rng([seed, k])
        kind = rng.choice(3, n, p=(share, (1 - share) / 2, (1 - share) / 2))  # overlap, easy, hard
        x = rng.normal(size=(n, d)) * .5
        x[kind != 1, :3] += rng.normal(size=((kind != 1).sum(), 3)) * 2
        out[name] = Pseudolabels(np.clip(np.where(kind == 2, .5, .92) + rng.normal(size=n) * .05, 0, 1)), x.astype(np.float32)
    return out


GOODS = goods()


@pytest.fixture(autouse=True)
def no_waiting_for_the_disk(monkeypatch): monkeypatch.setattr(os, "fsync", lambda fd: None)


def buy(session, query, goods=GOODS):
    "Tell the next rows of the source that was asked"
    first = int((session.ledger.source == session.plan.sources.index(query.source)).sum())
    labels, x = goods[query.source]
    at = slice(first, first + query.rows)
    return session.tell(query.source, labels[at], x[at], ids=[f"{query.source}{i}" for i in range(first, first + query.rows)])


def to_the_end(session):
    while query := session.ask(): buy(session, query)
    return session


def same(a, b):
    "Two sessions know the same, to the last bit"
    pd.testing.assert_frame_equal(a.log, b.log, check_exact=True)
    pd.testing.assert_frame_equal(a.rows, b.rows, check_exact=True)
    pd.testing.assert_frame_equal(a.estimates(), b.estimates(), check_exact=True)
    np.testing.assert_array_equal(a.ledger.x, b.ledger.x)
    assert a.ledger.x.dtype == b.ledger.x.dtype and a.ask() == b.ask() and a.stopped == b.stopped


def greedy(arms, rng): return np.where(arms.pulls == 0, np.inf, arms.mean + rng.normal(size=2) * .01)
def largest(x, x_hard): return (x @ x_hard.T).max(1)
def never(arms): return None


def plan_of(policy="thompson", rule="published", **more):
    reward = Reward(rule, Rules("mean_square" if rule == "recount" else "max_abs_cosine"), warmup=3 if rule == "warmup" else None, rates=(.9, .1) if rule == "calibrated" else None)
    return Plan(["a", "b"], policy, reward, **dict(batch=12, horizon=9, sizes=[200, None], seed=4) | more)


# --- left between any two steps, and restored
@pytest.mark.parametrize("rule", REWARDS)
@pytest.mark.parametrize("policy", [*POLICIES, "oracle"])
def test_restored_before_every_step_it_is_the_undisturbed_one(policy, rule, tmp_path):
    plan = plan_of(policy, rule, densities=[.2, .6])
    calm = to_the_end(Session(plan))
    Session(plan, path := tmp_path / "s")
    while query := Session.restore(path).ask(): buy(Session.restore(path), query)
    same(calm, Session.restore(path))


@pytest.mark.parametrize("policy", ("thompson", "random"))
@pytest.mark.parametrize("after", ("ask", "tell"))
def test_left_after_any_one_step(policy, after, tmp_path):
    plan = plan_of(policy)
    calm = to_the_end(Session(plan))
    for k in range(plan.horizon):
        session = Session(plan, path := tmp_path / f"{after}{k}")
        for _ in range(k): buy(session, session.ask())
        asked = session.ask() if after == "ask" else None
        del session
        session = Session.restore(path)
        assert asked is None or session.ask() == asked
        same(calm, to_the_end(session))


def test_policies_do_draw_random_numbers():
    "The tests above could not fail for policies that never change their mind"
    for policy in ("thompson", "random"):
        logs = {tuple(to_the_end(Session(plan_of(policy, seed=s, batch=3))).log.source) for s in range(8)}
        assert len(logs) > 2


CHILD = """
import sys, time
sys.path.insert(0, {tests!r})
from test_session import *
s = Session(plan_of("thompson", horizon=400, batch=1, sizes=None), {path!r})
big = goods(n=400)
while q := s.ask():
    buy(s, q, big)
"""


def test_killed_at_any_moment(tmp_path):
    path, plan, big = tmp_path / "s", plan_of("thompson", horizon=400, batch=1, sizes=None), goods(n=400)
    child = subprocess.Popen([sys.executable, "-c", CHILD.format(tests=os.path.dirname(__file__), path=str(path))])
    try:
        deadline = time.time() + 60
        while not (path.exists() and len(Session.restore(path).log) >= 5):
            assert child.poll() is None and time.time() < deadline
            time.sleep(.01)
        assert child.poll() is None, "it came to its end before it could be killed"
    finally: child.send_signal(signal.SIGKILL), child.wait()
    left = Session.restore(path)
    n = len(left.log)
    assert 5 <= n < 400
    calm = Session(plan)
    for _ in range(n + 5): buy(calm, calm.ask(), big)
    while len(left.log) < n + 5: buy(left, left.ask(), big)
    same(calm, left)


@pytest.mark.parametrize("fails", ("os.replace", "os.fsync"))
def test_a_write_that_fails_changes_nothing(fails, tmp_path, monkeypatch):
    session = Session(plan_of(), path := tmp_path / "s")
    for _ in range(3): buy(session, session.ask())
    query, before, log = session.ask(), path.read_bytes(), session.log
    def full(*_): raise OSError("no space left on the device")
    with monkeypatch.context() as m:
        m.setattr(os, fails.split(".")[1], full)
        with pytest.raises(OSError, match="no space"): buy(session, query)
    assert path.read_bytes() == before and [p.name for p in tmp_path.iterdir()] == ["s"]
    pd.testing.assert_frame_equal(session.log, log)
    same(to_the_end(Session(plan_of())), to_the_end(session))


# --- a file that isn't right
def test_all_arrays_together_are_bounded(monkeypatch):
    np.savez_compressed(buffer := io.BytesIO(), a=np.zeros(2000), b=np.zeros(2000))
    monkeypatch.setattr(module, "_LARGEST", 20_000)  # each array has fewer bytes, and the file far fewer
    with zipfile.ZipFile(buffer) as z, pytest.raises(ValueError, match="its arrays have 32,.* bytes, wanted at most 20,000"): module._fits(z)


def test_damage_is_seen(tmp_path):
    to_the_end(Session(plan_of(), path := tmp_path / "s"))
    good, rng, head = path.read_bytes(), np.random.default_rng(0), path.read_bytes().index(b"\n")
    for at in [*range(head + 1), *rng.integers(head, len(good), 200)]:
        broken = bytearray(good)
        broken[at] ^= 1 << int(rng.integers(8))
        path.write_bytes(broken)
        with pytest.raises(ValueError, match="is damaged|is no session file|has format"): Session.restore(path)
    for n in [0, 1, head, head + 1, *rng.integers(0, len(good), 50)]:
        path.write_bytes(good[:n])
        with pytest.raises(ValueError, match="is damaged|is no session file"): Session.restore(path)
    path.write_bytes(good + b"x")
    with pytest.raises(ValueError, match="is damaged"): Session.restore(path)
    path.write_bytes(good)
    same(Session.restore(path), to_the_end(Session(plan_of())))


def test_foreign_files_and_versions(tmp_path):
    path = tmp_path / "s"
    np.savez(path.with_suffix(".npz"), a=1)
    for content in (path.with_suffix(".npz").read_bytes(), b"", b"{}", b"\x80\x04K\x01."):
        path.write_bytes(content)
        with pytest.raises(ValueError, match="is no session file"): Session.restore(path)
    path.unlink()
    Session(plan_of(), path)
    path.write_bytes(path.read_bytes().replace(b"session 1 ", b"session 2 ", 1))
    with pytest.raises(ValueError, match="has format 2, this version reads 1"): Session.restore(path)
    with pytest.raises(FileNotFoundError): Session.restore(tmp_path / "none")


def test_file_holds_no_objects(tmp_path):
    to_the_end(Session(plan_of(rule="warmup"), path := tmp_path / "s"))
    recipe, arrays = _unpack(path.read_bytes(), path)  # np.load without pickle
    assert {a.dtype.kind for a in arrays.values()} <= set("ifb")
    assert set(recipe) == {"plan", "asked", "log", "closed", "ids", "found", "numpy"} and json.loads(json.dumps(recipe)) is not None


def test_another_numpy_is_told(tmp_path, monkeypatch):
    Session(plan_of(), path := tmp_path / "s")
    monkeypatch.setattr(module.np, "__version__", "99.0")
    with pytest.warns(UserWarning, match="numpy 99.0|this is 99.0"): Session.restore(path)


def test_two_sessions_on_one_file(tmp_path):
    one = Session(plan_of(), path := tmp_path / "s")
    two = Session.restore(path)
    buy(one, query := one.ask())
    with pytest.raises(RuntimeError, match="written by another session"): buy(two, query)
    assert len(two.log) == 0 and len(Session.restore(path).log) == 1
    with pytest.raises(FileExistsError, match="restore"): Session(plan_of(), path)


# --- functions are given again
def test_functions_are_given_again(tmp_path):
    plan = replace(plan_of(greedy), reward=Reward("recount", Rules(largest)), stop=never)
    calm, session = to_the_end(Session(plan)), Session(plan, path := tmp_path / "s")
    given = dict(policy=greedy, how=largest, stop=never)
    for name in given:
        with pytest.raises(ValueError, match=re.escape(f"Session.restore(path, {name}={given[name].__name__})")): Session.restore(path, **{k: v for k, v in given.items() if k != name})
        with pytest.raises(ValueError, match=f"{name}: got the function 'same'"): Session.restore(path, **given | {name: same})
    for _ in range(4): buy(session, session.ask())
    same(calm, to_the_end(Session.restore(path, **given)))
    Session(plan_of(), other := tmp_path / "named")
    with pytest.raises(ValueError, match="made with 'thompson'"): Session.restore(other, policy=greedy)
    with pytest.raises(ValueError, match="made with None"): Session.restore(other, stop=never)


def test_measured_rates_are_asked_for_until_they_are_known(tmp_path):
    labels, x = GOODS["a"]
    rates = measured_rates(labels.conf[100:], x[100:], np.arange(100) % 2 == 0)
    def own(judge): return np.sort(rates(judge))[::-1] + [.05, 0]  # so that TPR > FPR
    plan = replace(plan_of(), reward=Reward("calibrated", warmup=3, rates=own))
    calm, session = to_the_end(Session(plan)), Session(plan, path := tmp_path / "s")
    buy(session, session.ask())
    with pytest.raises(ValueError, match="rates=own"): Session.restore(path)
    session = Session.restore(path, rates=own)
    while session.ledger.warming: buy(session, session.ask())
    for _ in range(2):
        session = Session.restore(path)  # the rates are numbers now
        buy(session, session.ask())
    with pytest.raises(ValueError, match="made with 'own'"): Session.restore(path, rates=same)
    same(calm, to_the_end(Session.restore(path, rates=own)))


# --- errors leave everything as it was, in memory and on disk
LABELS, X = (v[150:154] for v in GOODS["a"])
BAD = [("c", LABELS, X, None, "wanted one of a, b"), ("a", [], X[:0], None, "no rows"), ("a", LABELS.conf + 1, X, None, "outside"), ("a", [np.nan] * 4, X, None, "outside"),
       ("a", LABELS, X * np.nan, None, "NaN"), ("a", LABELS, X * np.inf, None, "infinite"), ("a", LABELS[:3], X, None, "row-aligned"), ("a", .5, X, None, "wanted"),
       ("a", LABELS, X[:, :3], [1, 2, 3, 4], "3 features"), ("a", LABELS, X, None, "names of your own"), ("a", LABELS, X, [1, 2, 3], "3 for 4"), ("a", LABELS, X, ["a0", 1, 2, 3], "'a0'"),
       ("a", LABELS, X, [1, 2, 2, 3], "twice"), ("a", LABELS, X, [1, 2, None, 3], "None"), ("a", GOODS["b"][0], GOODS["b"][1], range(1000, 1200), "holds .* more")]


@pytest.mark.parametrize("rule", REWARDS)
def test_bad_batches_leave_the_session_as_it_was(rule, tmp_path):
    session, calm = Session(plan_of(rule=rule), path := tmp_path / "s"), Session(plan_of(rule=rule))
    for _ in range(5): buy(session, session.ask()), buy(calm, calm.ask())
    session.ask()
    before = path.read_bytes()
    for *batch, message in BAD:
        with pytest.raises(ValueError, match=message): session.tell(*batch)
        assert path.read_bytes() == before
    same(to_the_end(calm), to_the_end(session))


@pytest.mark.parametrize("answer, message", [([1.], "wanted 2 numbers"), (1., "wanted 2 numbers"), (np.ones((1, 2)), "wanted 2 numbers"), (["1", "2"], "wanted 2 numbers"), (None, "wanted 2 numbers"),
                                             ([1j, 0], "wanted 2 numbers"), ([[1], [1, 2]], "wanted 2 numbers"), ([np.nan, np.nan], "NaN"), ([np.nan, 1], "NaN"), ([-np.inf, -np.inf], "refuses")])
def test_a_policy_that_returns_nonsense(answer, message, tmp_path):
    mad = []
    def moody(arms, rng): return answer if mad else rng.uniform(size=2)
    session, calm = Session(plan_of(moody), path := tmp_path / "s"), Session(plan_of("random"))
    for _ in range(4): buy(session, session.ask()), buy(calm, calm.ask())
    before = path.read_bytes()
    mad.append(1)
    for _ in range(3):
        with pytest.raises(ValueError, match=message): session.ask()
    assert path.read_bytes() == before
    mad.clear()
    same(to_the_end(calm), to_the_end(session))


def test_a_policy_that_fails_is_not_hushed_up():
    def broken(arms, rng): raise ZeroDivisionError("mine")
    session = Session(plan_of(broken))
    with pytest.raises(ZeroDivisionError, match="mine"): session.ask()
    assert session.log.empty


def test_a_policy_cannot_reach_into_the_session():
    def greedy_hands(arms, rng):
        arms.flagged[:], arms.rows[:] = 99, 99
        return rng.uniform(size=2)
    same(to_the_end(Session(plan_of("random"))), to_the_end(Session(plan_of(greedy_hands))))


# --- a plain loop over the same batches
@pytest.mark.parametrize("rule", ("batch", "published", "pooled", "recount"))
@pytest.mark.parametrize("policy", ("ucb", "batch_ucb", "kl_ucb", "reference_ucb"))
def test_a_session_is_the_plain_loop(policy, rule):
    session = to_the_end(Session(plan := plan_of(policy, rule, sizes=[60, 200])))
    led, left = Ledger(plan.reward, 2), {k: list(range(n)) for k, n in (("a", 60), ("b", 200))}
    for t in range(plan.horizon):
        flags = [(led.flag[led.source == s] == 1).sum() for s in (0, 1)]
        arms = Arms(np.bincount(led.batches, minlength=2), np.bincount(led.source, minlength=2), np.array(flags, float), 12, 9)
        value = np.where([len(left[k]) > 0 for k in "ab"], POLICIES[policy](arms, None), -np.inf)
        name = "ab"[int(np.argmax(value))]
        rows, left[name] = left[name][:12], left[name][12:]
        led = led.add("ab".index(name), GOODS[name][0][rows], GOODS[name][1][rows])
        assert session.log.source[t] == name and session.log.rows[t] == len(rows)
    np.testing.assert_array_equal(led.flag, session.ledger.flag)


def test_warmup_asks_in_turn_or_as_the_policy_says():
    turn = Session(plan_of("oracle", "warmup", densities=[.2, .6]))
    assert [buy(turn, turn.ask()).source for _ in range(4)] == ["a", "b", "a", "b"] and turn.log.asked_rows.tolist() == [12] * 4
    assert turn.log.flagged.isna().tolist() == [True, True, False, False]  # the third batch ends it
    free = Session(replace(plan_of("oracle", densities=[.2, .6]), reward=Reward("warmup", warmup=3, order="policy")))
    assert [buy(free, free.ask()).source for _ in range(4)] == ["b"] * 4


def test_a_judge_of_ones_own(tmp_path):
    labels, x = GOODS["a"]
    judge = judge_of(detect_overlap(labels[100:], x[100:]), x[100:])
    plan = plan_of("thompson", "warmup")
    session = Session(plan, path := tmp_path / "s", judge=judge)
    told = buy(session, session.ask())
    assert told.found_by == "fixed" and told.flags.tolist() == judge.flag(*[getattr(GOODS[told.source][0], "conf")[:12], GOODS[told.source][1][:12]]).tolist()
    same(to_the_end(Session(plan, judge=judge)), to_the_end(Session.restore(path)))
    with pytest.raises(ValueError, match="no judge"): Session(plan_of(rule="batch"), judge=judge)


# --- what came is not what was asked for
def test_log_keeps_what_was_asked_and_what_came():
    session = Session(plan_of("oracle", densities=[.2, .6]))
    labels, x = GOODS["a"]
    assert session.ask().source == "b"
    session.tell("a", labels[:7], x[:7], ids=range(7))
    session.tell("a", labels[7:9], x[7:9], ids=[7, 8])
    assert session.log[["source", "rows", "asked", "asked_rows"]].values.tolist() == [["a", 7, "b", 12], ["a", 2, "", 0]]
    assert session.arms.rows.tolist() == [9, 0] and session.rows.id.tolist() == list(range(9))


def test_sources_run_dry_and_are_closed(tmp_path):
    session = Session(plan_of("random", sizes=[30, None], horizon=50, batch=12), path := tmp_path / "s")
    n = 0
    while query := session.ask():
        assert query.rows <= 12 and query.index["ab".index(query.source)] > -np.inf
        buy(session, query)
        if (session.log.source == "b").sum() == 4 and "b" not in session._state.closed:
            session.close("b")
            session = Session.restore(path)
    assert session.log[session.log.source == "a"].rows.tolist() == [12, 12, 6] and session.stopped == "all sources are dry"
    assert session.table().left.tolist() == [0, 0]
    with pytest.raises(ValueError, match="is dry"): session.tell("b", LABELS, X, ids=[1, 2, 3, 4])
    with pytest.raises(ValueError, match="wanted one of"): session.close("c")


def test_closing_the_source_that_was_asked_asks_anew():
    session = Session(plan_of("oracle", densities=[.2, .6]))
    assert session.ask().source == "b"
    session.close("b")
    assert session.ask().source == "a" and session.ask().index[1] == -np.inf


def test_repeats_are_named_or_allowed():
    labels, x = GOODS["a"]
    strict, free = Session(plan_of()), Session(plan_of(repeats=True))
    for s in (strict, free): s.tell("a", labels[:4], x[:4], ids=[1, 2, 3, "x"])
    with pytest.raises(ValueError, match=r"2 rows were told before.*\[3, 'x'\]"): strict.tell("b", labels[:3], x[:3], ids=[3, "x", 9])
    assert len(free.tell("b", labels[:3], x[:3], ids=[3, "x", 9]).ids) == 3
    numbered = Session(plan_of())
    for k in range(2): numbered.tell("a", labels[4 * k:4 * k + 4], x[4 * k:4 * k + 4])
    assert numbered.rows.id.tolist() == list(range(8))


# --- prices, horizon, stopping rule
def test_costs_divide_the_index():
    for costs, source in (((1, 1), "b"), ((1, 2.9), "b"), ((1, 3.1), "a"), ((.1, .1), "b")):
        s = Session(plan_of("oracle", densities=[.2, .6], costs=costs))
        assert s.ask().source == source
        np.testing.assert_allclose(s.ask().index, np.array([.2, .6]) / costs)
    buy(s, s.ask())
    assert s.log.cost[0] == pytest.approx(1.2) and s.table().cost.sum() == pytest.approx(1.2)
    negative = Session(plan_of(lambda arms, rng: [-1., 1.], costs=(1, 2)))
    with pytest.raises(ValueError, match="must not be negative"): negative.ask()
    assert Session(plan_of(lambda arms, rng: [-1., 1.])).ask().source == "b"


def test_stopping_rule():
    def third(arms): return np.int64(1) if arms.pulls.sum() >= 3 else None
    session = to_the_end(Session(plan_of(stop=third)))
    assert len(session.log) == 3 and session.best == "b" and "'b'" in session.stopped
    warm = to_the_end(Session(replace(plan_of(stop=third), reward=Reward("warmup", warmup=5))))
    assert len(warm.log) == 5  # no verdict while nothing is judged
    assert len(to_the_end(Session(plan_of(stop=lambda arms: -1))).log) == 9  # not known yet, as `best_known` says it
    for odd in (2, -2, "b", True, 1.):
        bad = Session(plan_of(stop=lambda arms: odd))
        with pytest.raises(ValueError, match="stop: it returned"): bad.ask()
    with pytest.raises(ValueError, match="stop: got"): plan_of(stop=3)
    assert to_the_end(Session(plan_of())).stopped == "all 9 rounds are told"


@pytest.mark.parametrize("bad, message", [(dict(sources=["a", "a"]), "named twice"), (dict(sources=["a"]), "allow_one"), (dict(sources=[]), "allow_one"), (dict(sources="ab"), "list of names"),
                                          (dict(sources=["a", ""]), "list of names"), (dict(sources=["a", 3]), "list of names"), (dict(policy="best"), "wanted oracle"), (dict(policy="oracle"), "densities"),
                                          (dict(reward="best"), "wanted one of batch"), (dict(batch=0), "batch"), (dict(batch=2.5), "batch"), (dict(horizon=0), "horizon"), (dict(seed=-1), "seed"),
                                          (dict(sizes=[1]), "each of 2"), (dict(sizes=[5, 0]), "at least 1"), (dict(costs=[1, 0]), "above 0"), (dict(costs=[1, np.nan]), "above 0"), (dict(densities=[.1, 2]), "shares")], ids=str)
def test_plans_that_cannot_be_played(bad, message):
    with pytest.raises(ValueError, match=message): Plan(**dict(sources=["a", "b"]) | bad)


def test_one_source_if_one_is_meant(tmp_path):
    session = Session(Plan(["a"], "batch_ucb", "published", batch=10, horizon=4, allow_one=True), tmp_path / "s")
    to_the_end(session)
    assert session.log.source.tolist() == ["a"] * 4
    same(session, Session.restore(tmp_path / "s"))


# --- tables and the figure
def test_tables_agree_with_each_other():
    session = to_the_end(Session(plan_of("random", "recount")))
    log, rows, table, last = session.log, session.rows, session.table(), session.estimates().tail(2)
    assert len(log) == 9 and len(rows) == log.rows.sum() == table.rows.sum() and rows.flagged.sum() == table.flagged.sum()
    np.testing.assert_allclose(last.estimate, rows.groupby("source").flagged.mean().astype(float))
    radius = np.sqrt(np.log(2 * 2 * 9 / .05) / (2 * table.rows.to_numpy()))
    np.testing.assert_allclose(last.high, np.minimum(last.estimate + radius, 1))
    np.testing.assert_allclose(last.low, np.maximum(last.estimate - radius, 0))
    assert (rows.kind == np.where(rows.flagged, "overlap", rows.kind)).all() and set(rows.kind) == {"easy", "hard", "overlap"}
    assert "of 9 rounds" not in repr(session) and "all 9 rounds" in session._repr_html_()


def test_an_empty_session_has_tables():
    session = Session(plan_of())
    assert session.log.empty and session.rows.empty and session.estimates().empty and session.table().estimate.isna().all()


def test_the_figure_has_a_line_and_a_band_for_each_source():
    session = to_the_end(Session(plan_of("random", "warmup")))
    for what in (session, session.estimates()):
        fig, ax = plt.subplots()
        assert plot_session(what, ax) is ax and len(ax.lines) == len(ax.collections) == 2
        assert ax.lines[0].get_xdata()[0] == 3  # nothing is known during the warm-up
        plt.close(fig)
