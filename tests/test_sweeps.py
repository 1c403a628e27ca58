"A sweep chooses on val only, and its students are those of a plain fit."
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

from datacentric_w2s.core import Splits, Texts
from datacentric_w2s.probes import LinearProbe, corrected_se, new_probe, pseudolabel
from datacentric_w2s.sweeps import CHOICES, choices, choose, one_change, penalty_sweep, sweep_cell, with_strong_view
from datacentric_w2s.theory import Mixture, mixture_problem


@pytest.fixture(scope="module")
def problem():
    p = mixture_problem(Mixture.published(np.random.default_rng(3)), (60, 60, 60), seed=3)
    return replace(p, preset=replace(p.preset, jump=1))


def cell(problem, seed=0):
    p = problem.preset
    return sweep_cell(problem, None, seed, layers=[p.strong_layer], poolings=[p.strong_pooling])  # the view that is there: needs no texts


def test_warm_starts_change_nothing(problem):
    teacher = new_probe(problem.preset).fit(problem.weak.x, problem.weak.y)
    labels = pseudolabel(teacher, problem.w2s.x_weak)
    swept = penalty_sweep(problem, teacher, l2s=(.01, 1., .1))
    assert list(swept.l2) == [1., .1, .01] * 2 and list(swept.standardize) == [False] * 3 + [True] * 3
    for r in swept.itertuples():
        student = LinearProbe(r.l2, r.standardize).fit(problem.w2s.x_strong, labels.p)
        for what, said, truth in ((r.val, student.predict(problem.val.x_strong), problem.val.y), (r.test, student.predict(problem.test.x_strong), problem.test.y),
                                  (r.agreement, student.predict(problem.val.x_strong), teacher.predict(problem.val.x_weak))):
            assert what == np.mean(said == truth)


@pytest.mark.parametrize("shuffle", range(5))
def test_choices_do_not_see_test(problem, shuffle):
    rng = np.random.default_rng(shuffle)
    blind = replace(problem, test=replace(problem.test, y=rng.permutation(problem.test.y), x_strong=rng.permutation(problem.test.x_strong)))
    a, b = (choices(cell(p)).query("chosen_by != 'oracle'")[["chosen_by", "l2", "standardize", "val", "agreement"]] for p in (problem, blind))
    pd.testing.assert_frame_equal(a, b)


@pytest.mark.parametrize("by", ["val", "agreement"])
def test_each_choice_looks_at_its_own_column(by):
    rng = np.random.default_rng(0)
    df = pd.DataFrame(dict(layer=range(40), pooling="last", l2=.1, standardize=True, density=.1, weak=.5, preset=False, **{c: rng.permutation(40) / 40 for c in ("val", "agreement", "test")}))
    assert choose(df, by).layer == df[by].idxmax() and df[by].idxmax() not in {df[c].idxmax() for c in {"val", "agreement", "test"} - {by}}
    for other in {"val", "agreement", "test"} - {by}: assert choose(df.assign(**{other: rng.random(40)}), by).layer == df[by].idxmax()


def test_ties_go_to_the_preset_then_to_the_larger_penalty():
    df = pd.DataFrame(dict(l2=[.1, 1., .01, 1.], val=.5, preset=[False, False, True, False]), index=range(4))
    assert choose(df, "val").name == 2 and choose(df.assign(preset=False), "val").name == 1


def test_a_cell_holds_the_preset_once_and_knows_it(problem):
    df = cell(problem)
    assert df.preset.sum() == 1 and df[df.preset].l2.item() == problem.preset.l2 and df[df.preset].standardize.item() == problem.preset.standardize
    assert list(choices(df).chosen_by) == list(CHOICES)
    odd = replace(problem, preset=replace(problem.preset, l2=.03))
    assert cell(odd).preset.sum() == 1 and len(cell(odd)) == len(df) + 2


def test_another_layer_changes_the_strong_view_only(problem, monkeypatch):
    texts = Texts("toy", np.array([f"text {i}" for i in range(2000)], object), np.arange(2000) % 2, np.arange(2000))
    sizes = np.cumsum([0, 10, len(problem.w2s), len(problem.val), len(problem.test)])
    splits = Splits(*(texts[a:b] for a, b in zip(sizes, sizes[1:])))
    asked = []
    def seen(txt, model, *, layer, pooling, **_):
        asked.append((layer, pooling, len(txt)))
        return np.array([[int(t.split()[1]), int(t.split()[1]) % 7 - layer] for t in txt], np.float32)
    monkeypatch.setattr("datacentric_w2s.activations.activations", seen)
    df = sweep_cell(problem, splits, 0, layers=(problem.preset.strong_layer, 7), poolings=("last", "mean"))
    rows = sizes[-1] - 10
    assert asked == [(0, "mean", rows), (7, "last", rows), (7, "mean", rows)] and df.preset.sum() == 1
    pd.testing.assert_frame_equal(df[(df.layer == 0) & (df.pooling == "last")].reset_index(drop=True), cell(problem))
    assert df.weak.nunique() == 1
    seen_at_7 = with_strong_view(problem, splits, 7, "last")
    for k, first in zip(("w2s", "val", "test"), sizes[1:]): assert list(getattr(seen_at_7, k).x_strong[:, 0]) == list(first + np.arange(len(getattr(problem, k))))


def test_one_change_is_paired_with_its_own_split():
    rng = np.random.default_rng(0)
    rows = [("a", s, l, "last", .1, t, rng.random(), l == 20 and t) for s in range(4) for l in (5, 20) for t in (False, True)]
    df = pd.DataFrame(rows, columns=["dataset", "seed", "layer", "pooling", "l2", "standardize", "test", "preset"]).assign(density=.1, n_weak=6, n_w2s=9, n_test=3)
    made = one_change(df).set_index("value")
    got = made.difference
    at = lambda l, t: df[(df.layer == l) & (df.standardize == t)].test.to_numpy()
    assert got.to_dict() == pytest.approx({"5": (at(5, True) - at(20, True)).mean(), "False": (at(20, False) - at(20, True)).mean()})
    assert made.se["5"] == pytest.approx(corrected_se(at(5, True) - at(20, True), 1 / 3))
    with pytest.raises(ValueError, match="preset is not among"): one_change(df[~((df.seed == 1) & df.preset)])
