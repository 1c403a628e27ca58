"Ranking sources of texts: the right one is found, nothing is read that isn't bought, and an interrupted call goes on."
from functools import partial

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings, strategies as st

from datacentric_w2s.core import Pseudolabels, Texts
from datacentric_w2s.data import unlabelled
from datacentric_w2s.detection import Rules
from datacentric_w2s.probes import evaluate
from datacentric_w2s.ranking import allocate, rank_sources, text_teacher, try_sources
from datacentric_w2s.theory import Mixture, mixture_problem


class Case:
    "Rows of a mixture as texts: a teacher and a view that look them up and note what was read"

    def __init__(self, seed=0):
        p = mixture_problem(Mixture.published(np.random.default_rng(seed)), (500, 500, 500), seed=seed)
        self.labels, self.x, self.kind, self.read = evaluate(p, l2=1e-3).pseudolabels.p, p.w2s.x_strong, p.w2s.kind, []
        self.at = lambda texts: np.array([int(t.split()[1]) for t in texts])

    def teacher(self, texts):
        self.read += list(texts)
        return Pseudolabels(self.labels[self.at(texts)])

    def view(self, texts): return self.x[self.at(texts)]

    def files(self, densities, size=250, seed=0):
        rng = np.random.default_rng(seed)
        o, r = (list(rng.permutation(np.flatnonzero((self.kind == "overlap") == v))) for v in (True, False))
        take = lambda pool, m: [f"row {pool.pop()}" for _ in range(m)]
        return {f"{d:g}": take(o, round(size * d)) + take(r, size - round(size * d)) for d in densities}


@pytest.fixture(scope="module")
def case(): return Case()


rank = partial(rank_sources, detector=Rules("quantile"), progress=False)


@pytest.mark.parametrize("seed", range(3))
def test_the_densest_source_comes_first_and_gets_the_most_rows(seed):
    c = Case(seed)
    r = rank(c.files((.1, .3, .8)), c.teacher, c.view, 300, seed=seed)
    assert r.table.source[0] == "0.8" and r.table.bought.iloc[0] == r.table.bought.max() and r.table.bought.sum() == len(r.rows) == 300
    assert ((r.table.low <= r.table.share) & (r.table.share <= r.table.high)).all()


def test_only_bought_rows_are_read_and_each_once(case):
    case.read.clear()
    files = case.files((.2, .6))
    r = rank(files, case.teacher, case.view, 160)
    assert len(case.read) == len(set(case.read)) == 160
    assert {files[s][i] for s, i in zip(r.rows.source, r.rows.row)} == set(case.read)


def test_rows_keep_their_place_in_the_file(case):
    files = case.files((.2, .6))
    longer = {"0.2": files["0.2"][:9] + files["0.2"], "0.6": files["0.2"][:50] + files["0.6"]}  # repeats, and texts of the other source
    df = rank(longer, case.teacher, case.view, 200, shared="drop").rows
    bought = [longer[s][i] for s, i in zip(df.source, df.row)]
    assert len(set(bought)) == 200 and df.row[df.source == "0.6"].min() >= 50
    np.testing.assert_array_equal(df.p, case.labels[[int(t.split()[1]) for t in bought]])


def test_rows_carry_what_the_models_said(case):
    files = case.files((.2, .6))
    df = rank(files, case.teacher, case.view, 160).rows
    at = np.array([int(files[s][i].split()[1]) for s, i in zip(df.source, df.row)])
    np.testing.assert_array_equal(df.p, case.labels[at])
    np.testing.assert_allclose(df.confidence, np.abs(2 * case.labels[at] - 1))
    assert set(df.kind) <= {"easy", "hard", "overlap"} and (df.score.isna() == (df.kind == "hard")).all()


@pytest.mark.parametrize("stop_at", [1, 3, 6])
def test_an_interrupted_call_goes_on_as_if_nothing_had_happened(case, tmp_path, stop_at):
    files, calls = case.files((.2, .6)), []

    def tired(texts):
        calls.append(1)
        if len(calls) == stop_at: raise KeyboardInterrupt
        return case.teacher(texts)

    with pytest.raises(KeyboardInterrupt): rank(files, tired, case.view, 160, path=tmp_path / "s")
    again, whole = rank(files, case.teacher, case.view, 160, path=tmp_path / "s"), rank(files, case.teacher, case.view, 160)
    pd.testing.assert_frame_equal(again.table, whole.table)
    pd.testing.assert_frame_equal(again.rows, whole.rows)


def test_a_session_of_other_files_is_refused(case, tmp_path):
    files = case.files((.2, .6))
    on = partial(rank, budget=120, path=tmp_path / "s")
    on(files, case.teacher, case.view)
    with pytest.raises(ValueError, match="made with other sources"): on({"a": files["0.2"], "0.6": files["0.6"]}, case.teacher, case.view)
    with pytest.raises(ValueError, match="made with other sizes"): on({k: v[:200] for k, v in files.items()}, case.teacher, case.view)
    with pytest.raises(ValueError, match="are other texts now"): on({k: v[::-1] for k, v in files.items()}, case.teacher, case.view)
    with pytest.raises(ValueError, match="another teacher"): on(files, lambda t: Pseudolabels(1 - case.labels[case.at(t)] ** 2), case.view)
    with pytest.raises(ValueError, match="another student's view"): on(files, case.teacher, lambda t: case.view(t)[:, ::-1])
    with pytest.raises(ValueError, match="a smaller budget"): on(files, case.teacher, case.view, budget=100)
    assert len(on(files, case.teacher, case.view).rows) == 120


@pytest.mark.parametrize("reward", ["published", "recount", "warmup"])
def test_a_larger_budget_goes_on_from_the_rows_bought(case, tmp_path, reward):
    files, on = case.files((.2, .6)), partial(rank, reward=reward, path=tmp_path / "s")
    first, more = on(files, case.teacher, case.view, 130), on(files, case.teacher, case.view, 205)
    assert (len(first.rows), len(more.rows)) == (130, 205) and more.rows.groupby("round").size().tolist()[6:8] == [10, 20]
    pd.testing.assert_frame_equal(first.rows[["source", "row", "p"]], more.rows[["source", "row", "p"]].head(130))


def test_another_delta_is_another_stopping_rule(case, tmp_path):
    files, on = case.files((.2, .6)), partial(rank, budget=160, stop=True, path=tmp_path / "s")
    on(files, case.teacher, case.view)
    with pytest.raises(ValueError, match="delta=0.5"): on(files, case.teacher, case.view, delta=.5)


def test_nothing_is_said_of_rows_that_are_not_judged(case):
    files = case.files((.2, .6))
    with pytest.raises(ValueError, match="80 rows are 4 batches, and the warm-up alone takes 4"): rank(files, case.teacher, case.view, 80)
    flat = rank(files, lambda t: Pseudolabels(np.full(len(t), .7)), case.view, 120)  # one confidence: no threshold splits it
    assert flat.best is None and flat.table.share.isna().all() and (flat.table.low == 0).all() and (flat.table.high == 1).all()
    assert "Nothing is judged yet" in flat.remarks[-1] and flat.table.next.sum() == 120


def test_with_prices_the_race_is_about_the_money():
    "The best per cost is found, in fewer rows than by turns; a race by shares alone would chase the dear source"
    c, spent = Case(1), {}
    files, prices = c.files((.1, .3, .7), seed=1), {"0.1": 1, "0.3": 1, "0.7": 10}
    for policy in (None, "round_robin"):
        r = rank(files, c.teacher, c.view, 700, costs=prices, stop=True, policy=policy, seed=1)
        spent[policy] = len(r.rows)
        assert r.best == "0.3" and r.table.source[0] == "0.3"
    assert spent[None] <= spent["round_robin"] + 40


def test_false_flags_are_taken_off_before_the_price(case):
    files = case.files((.1, .6))
    plain = rank(files, case.teacher, case.view, 400, costs={"0.1": 1, "0.6": 9})
    mended = rank(files, case.teacher, case.view, 400, costs={"0.1": 1, "0.6": 9}, fpr=.1)
    assert plain.table.source[0] == "0.1" and mended.table.source[0] == "0.6"
    assert any("Prices" in r for r in plain.remarks) and not any("Prices" in r for r in mended.remarks)


def test_equal_sources_are_rarely_told_apart():
    named = 0
    for seed in range(6):
        c = Case(seed)
        files = dict(zip("ab", c.files((.4, .4001), seed=seed).values()))
        named += rank(files, c.teacher, c.view, 240, stop=True, seed=seed).best is not None
    assert named <= 1  # delta is .05


def test_a_source_of_one_kind_is_named(case):
    hard = [f"row {i}" for i in np.flatnonzero(case.kind == "hard")[:200]]
    r = rank({"hard": hard, **case.files((.6,))}, case.teacher, case.view, 160, policy="round_robin", shared="drop")
    assert r.table.source[0] == "0.6"
    assert r.table.flagged[r.table.source == "hard"].item() < r.table.flagged[r.table.source == "0.6"].item()
    flat = {"same": [f"row {i}" for i in np.flatnonzero(case.labels > .9)[:100]], **case.files((.3,))}
    assert len(rank(flat, case.teacher, case.view, 160, policy="round_robin", shared="drop").rows) == 160


@pytest.mark.parametrize("files, message", [
    (dict(a=["x"]), "at least two"), (["x", "y"], "wanted at least two as a dict"), (dict(a=["x"], b=["x"]), "stand in two sources"), (dict(a=["x"], b=[]), "b: no rows"),
    (dict(a=["x"], b=[" "]), "empty or no strings"), (dict(a=["x"], b="y"), "wanted a list of texts")])
def test_odd_sources_are_refused(files, message):
    with pytest.raises(ValueError, match=message): rank_sources(files, lambda t: None, lambda t: None, 100)


def test_odd_numbers_are_refused(case):
    files = case.files((.2, .6))
    for options, message in ((dict(budget=5), "the warm-up alone takes 4"), (dict(budget=5.), "budget: got 5.0"), (dict(batch=0), "batch: got 0"), (dict(delta=0), "strictly between"), (dict(fpr=1), "fpr: got 1"), (dict(costs={"0.2": 1.}), "wanted one for each"), (dict(costs={"0.2": 1., "0.6": 0.}), "prices above 0"), (dict(reward="best"), "wanted one of"),
                             (dict(shared="keep"), "refuse"), (dict(policy=lambda arms, rng: [1]), "wanted 2 numbers")):
        with pytest.raises(ValueError, match=message): rank(files, case.teacher, case.view, **dict(budget=160) | options)


@given(st.lists(st.tuples(st.floats(0, 1), st.floats(0, 1), st.integers(0, 50)), min_size=2, max_size=5), st.integers(0, 200), st.booleans())
@settings(max_examples=150, deadline=None)
def test_an_allocation_spends_the_budget_or_all_there_is(sources, budget, known):
    ends = np.sort(np.array([s[:2] for s in sources]), axis=1)
    left = np.array([s[2] for s in sources])
    take = allocate(*ends.T, ends.mean(1), left, budget, best=0 if known else None)
    assert take.sum() == min(budget, left.sum()) and (take <= left).all() and (take >= 0).all()
    if known: assert take[0] == min(budget, left[0])
    else:
        out = ends[:, 1] < ends[:, 0].max()
        assert not take[out].any() or (take[~out] == left[~out]).all()


def test_a_teacher_knows_how_good_it_is():
    rng = np.random.default_rng(0)
    y, group = rng.integers(0, 2, 400), np.repeat(np.arange(200), 2)
    x = (2 * y - 1)[:, None] + 1.5 * rng.normal(size=(400, 3))
    view = lambda texts: x[[int(t) for t in texts]]
    t = text_teacher(Texts("t", np.array([str(i) for i in range(400)], dtype=object), y, group), view)
    assert .75 < t.accuracy < .95 and 0 < t.se < .04 and not t.at_chance and t.n == 400
    assert (t(np.array(["0", "1"])).label == t.probe.predict(x[:2])).all()


def test_unlabelled_reads_what_load_texts_reads(tmp_path):
    df = pd.DataFrame(dict(text=["rain", "sun", "fog"], id=[1, 2, 3]))
    for name, write in (("a.csv", lambda p: df.to_csv(p, index=False)), ("a.jsonl", lambda p: df.to_json(p, orient="records", lines=True)), ("a.parquet", df.to_parquet), ("a.tsv", lambda p: df.to_csv(p, sep="\t", index=False))):
        write(tmp_path / name)
        assert unlabelled(tmp_path / name).tolist() == ["rain", "sun", "fog"]
    with pytest.raises(FileNotFoundError): unlabelled(tmp_path / "none.csv")


def test_the_source_that_teaches_comes_first(case):
    "A source whose labels are turned around is found out by its student, whatever its share of overlap"
    p = mixture_problem(Mixture.published(np.random.default_rng(0)), (500, 500, 500), seed=0).w2s
    weak = lambda texts: p.x_weak[case.at(texts)] * np.array([-1 if t.endswith("turned") else 1 for t in texts])[:, None]
    strong = lambda texts: p.x_strong[case.at(texts)]
    own = Texts("own", np.array([f"row {i}" for i in range(400)], dtype=object), p.y[:400], np.arange(400) // 2)
    files = {"turned": [f"row {i} turned" for i in range(400, 700)], "good": [f"row {i}" for i in range(700, 1000)]}
    df = try_sources(files, own, strong, 150, weak=weak)
    assert df.source.tolist() == ["good", "turned"] and (df.rows == 150).all() and df.accuracy[0] > .7 > .4 > df.accuracy[1]
    assert df.minus_first[0] == 0 and df.minus_first[1] == pytest.approx(df.accuracy[1] - df.accuracy[0]) and df.minus_first[1] < -5 * df.minus_first_se[1]
    pd.testing.assert_frame_equal(df, try_sources(files, own, strong, 150, weak=weak))
    with pytest.raises(ValueError, match="10 labelled questions"): try_sources(files, own[:20], strong, weak=weak)
