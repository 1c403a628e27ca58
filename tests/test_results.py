"The runner: what is finished stays, what is wrong is computed anew, and an error loses its own cell."
import json
import os
import signal
from dataclasses import replace
from functools import partial

import numpy as np
import pandas as pd
import pytest

from datacentric_w2s.core import preset
from datacentric_w2s.matching import difference_table
from datacentric_w2s.mixing import mixing_summary
from datacentric_w2s.probes import corrected_se
from datacentric_w2s.results import Cell, cell_function, collect, grid, read_cell, run_cells, settings, summarise, write_cell, write_full_table
from datacentric_w2s.theory import full_table


def measure(cell): return pd.DataFrame(dict(value=np.random.default_rng([cell.seed, len(cell.dataset)]).normal(size=3), n=[1, 2, 3], kind=["easy", "NA", ""]))
def log(cell, to): (to / cell.stem).write_text("ran"); return measure(cell)  # leaves a trace of every call
def fail_at_1(cell): return measure(cell) if cell.seed != 1 else pd.DataFrame(dict(value=[1 / 0]))
def die_at_1(cell): return measure(cell) if cell.seed != 1 else os.kill(os.getpid(), signal.SIGKILL)
def solve(cell): return pd.DataFrame(dict(x=np.linalg.solve(np.random.default_rng(cell.seed).normal(size=(400, 400)) * (cell.seed != 1), np.eye(400, 9)).ravel()))


def run(cells, folder, measure=measure, **options): return run_cells(cells, folder, measure, progress=False, **options)


@pytest.fixture
def cells(): return grid("a,bb", 3, "toy")


@pytest.fixture
def calls(tmp_path):
    (to := tmp_path / "calls").mkdir()
    def called():
        names = sorted(p.name for p in to.iterdir())
        for p in to.iterdir(): p.unlink()
        return names
    return partial(log, to=to), called


def test_a_finished_cell_is_not_run_again(cells, tmp_path, calls):
    measure, called = calls
    assert list(run(cells[:4], tmp_path, measure).status) == ["computed"] * 4 and len(called()) == 4
    before = {p: p.stat().st_mtime_ns for p in tmp_path.rglob("*.csv")}
    assert list(run(cells, tmp_path, measure).status) == ["kept"] * 4 + ["computed"] * 2
    assert called() == ["bb-1", "bb-2"] and all(p.stat().st_mtime_ns == t for p, t in before.items())


def truncate(path): path.write_bytes(path.read_bytes()[:-4])
def cut_head(path): path.write_bytes(path.read_bytes().split(b"\n", 1)[1])
def empty(path): path.write_bytes(b"")
def garbage(path): path.write_bytes(b"\xff\xfe\x00" * 50)
def change_a_digit(path): path.write_bytes(path.read_bytes().replace(b",2,", b",7,", 1))
def head_of_another_shape(path): path.write_bytes(b"# [1, 2]\n" + path.read_bytes().split(b"\n", 1)[1])
def foreign(path): path.write_bytes(path.with_name("bb-2.csv").read_bytes())


def older_version(path):
    head, body = path.read_bytes().split(b"\n", 1)
    path.write_bytes(f"# {json.dumps(json.loads(head[2:]) | dict(version='v0'))}\n".encode() + body)


@pytest.mark.parametrize("damage", [truncate, cut_head, empty, garbage, change_a_digit, head_of_another_shape, foreign, older_version], ids=lambda f: f.__name__)
def test_a_wrong_file_is_set_aside_and_computed_anew(damage, cells, tmp_path, calls):
    measure, called = calls
    run(cells, tmp_path, measure, version="v1")
    called()
    path, right = cells[1].path(tmp_path), cells[1].path(tmp_path).read_bytes()
    damage(path)
    wrong = path.read_bytes()
    assert wrong != right
    with pytest.warns(UserWarning, match="a-1.csv.*set aside as a-1.csv.aside1"): done = run(cells, tmp_path, measure, version="v1")
    assert called() == ["a-1"] and list(done.status).count("computed") == 1
    assert path.read_bytes() == right and path.with_name("a-1.csv.aside1").read_bytes() == wrong
    damage(path)
    with pytest.warns(UserWarning, match="aside2"): run(cells, tmp_path, measure, version="v1")
    assert len(collect(tmp_path, "toy")) == 3 * len(cells)


def test_collect_leaves_a_damaged_file_out_and_says_so(cells, tmp_path):
    run(cells, tmp_path)
    truncate(cells[0].path(tmp_path))
    with pytest.warns(UserWarning, match="a-0.csv: damaged.*left out"): assert len(collect(tmp_path, "toy")) == 15
    run([cells[1]], tmp_path / "other", version="v2")
    os.replace(cells[1].path(tmp_path / "other"), cells[1].path(tmp_path))
    with pytest.warns(UserWarning, match="cells of 2 versions"): collect(tmp_path, "toy")


def test_an_error_loses_its_own_cell(cells, tmp_path):
    with pytest.warns(UserWarning, match="2 of 6 cells failed: a-1 toy .ZeroDivisionError"): done = run(cells, tmp_path, fail_at_1)
    assert list(done.status) == ["computed", "failed", "computed"] * 2 and len(list(tmp_path.rglob("*.csv"))) == 4
    assert "1 / 0" in cells[1].path(tmp_path).with_suffix(".error").read_text()
    assert list(run(cells, tmp_path).status) == ["kept", "computed", "kept"] * 2 and not list(tmp_path.rglob("*.error"))


@pytest.mark.parametrize("value, message", [(3, "TypeError.*wanted a DataFrame"), (pd.DataFrame(dict(seed=[7])), "'seed' differs")], ids=["no table", "another seed"])
def test_a_wrong_answer_is_an_error_of_its_cell(value, message, cells, tmp_path):
    with pytest.warns(UserWarning, match=message): assert set(run(cells[:1], tmp_path, lambda cell: value).status) == {"failed"}


def test_an_interrupt_keeps_what_is_finished(cells, tmp_path):
    def interrupted(cell):
        if cell == cells[2]: raise KeyboardInterrupt
        return measure(cell)
    with pytest.raises(KeyboardInterrupt): run(cells, tmp_path, interrupted)
    assert sorted(p.name for p in tmp_path.rglob("*") if p.is_file()) == ["a-0.csv", "a-1.csv"]
    assert list(run(cells, tmp_path).status) == ["kept"] * 2 + ["computed"] * 4


def interrupt_at_2(cell):
    if cell.seed == 2: raise KeyboardInterrupt
    return measure(cell)


def test_an_interrupt_ends_a_parallel_run_too(cells, tmp_path):
    with pytest.raises(KeyboardInterrupt): run(cells, tmp_path, interrupt_at_2, jobs=2)
    left = {p.name for p in tmp_path.rglob("*") if p.is_file()}
    assert left >= {"a-0.csv", "a-1.csv"} and "a-2.csv" not in left and all(n.endswith(".csv") for n in left)


def test_a_killed_write_leaves_no_half_file(cells, tmp_path, monkeypatch):
    def killed(*_): raise KeyboardInterrupt
    monkeypatch.setattr(os, "replace", killed)
    with pytest.raises(KeyboardInterrupt): run(cells, tmp_path)
    assert not [p for p in tmp_path.rglob("*") if p.is_file()]


def test_in_parallel_the_same_files_and_failures(cells, tmp_path):
    for jobs in (1, 2):
        with pytest.warns(UserWarning, match="2 of 6 cells failed: a-1 toy .LinAlgError"): done = run(cells, tmp_path / str(jobs), solve, jobs=jobs)
        assert list(done.status) == ["computed", "failed", "computed"] * 2 and "LinAlgError" in cells[1].path(tmp_path / str(jobs)).with_suffix(".error").read_text()
    for c in cells:
        if c.seed != 1: assert c.path(tmp_path / "1").read_bytes() == c.path(tmp_path / "2").read_bytes()


def test_a_process_that_dies_loses_its_own_cell(cells, tmp_path):
    with pytest.warns(UserWarning, match="2 of 6 cells failed: a-1 toy .the process died"): done = run(cells, tmp_path, die_at_1, jobs=2)
    assert list(done.status) == ["computed", "failed", "computed"] * 2
    assert "process died" in cells[1].path(tmp_path).with_suffix(".error").read_text()


def test_a_function_that_others_cannot_import(cells, tmp_path):
    with pytest.raises(ValueError, match="can't import .*lambda"): run(cells, tmp_path, lambda cell: measure(cell), jobs=2)


@pytest.mark.parametrize("name", ["data/my set.csv", "/data/my set.csv", "../x.csv", "a\\b.csv", "ä ö.csv", "CON.csv", "x" * 400, "a,b", "."])
def test_any_name_is_a_safe_file_name(name, tmp_path):
    run([Cell(name, 0, "toy")], tmp_path)
    (path,) = [p for p in tmp_path.rglob("*") if p.is_file()]
    assert path.parent == tmp_path / "toy" and path.suffix == ".csv" and len(path.name) < 100 and path.name.isascii() and not path.name.startswith(".")
    assert set(collect(tmp_path, "toy").dataset) == {name}


def test_different_data_sets_have_different_files():
    names = ["a/b", "a_b", "a b", "A_b", "A/B", "a-1", "a", "a@5", "a@50"]
    assert len({Cell(n, s, "toy").stem.lower() for n in names for s in (0, 1, 11)}) == 3 * len(names)


def test_collect_is_sorted_and_keeps_types(cells, tmp_path):
    cells += grid("a", [10], "toy")
    run(cells[::-1], tmp_path)
    df = collect(tmp_path, "toy")
    assert list(df.columns) == ["dataset", "seed", "value", "n", "kind"] and (df.n.dtype, df.seed.dtype, df.value.dtype) == (int, int, float)
    assert df[["dataset", "seed"]].apply(tuple, axis=1).is_monotonic_increasing
    for c in cells: assert list(df[(df.dataset == c.dataset) & (df.seed == c.seed)].value) == list(measure(c).value)  # to the last digit
    assert list(df.kind[:2]) == ["easy", "NA"] and pd.isna(df.kind[2])


@pytest.mark.parametrize("old, new", [(b'": ', b'":'), (b'"seed": 0, ', b'"seed": 0, "seed": 0, '), (b"toy", b"\\u0074oy")])
def test_a_head_that_says_the_same_in_other_bytes_is_damaged(old, new, tmp_path):
    path = write_cell(Cell("a", 0, "toy"), pd.DataFrame(dict(n=[1])), tmp_path)
    path.write_bytes(path.read_bytes().replace(old, new, 1))
    with pytest.raises(ValueError, match="damaged"): read_cell(path)


@pytest.mark.parametrize("df", [pd.DataFrame(), pd.DataFrame(dict(x=[])), pd.DataFrame(dict(x=[np.nan])), pd.DataFrame(dict(x=["1", "02"]))], ids=["no columns", "no rows", "nan", "digits as text"])
def test_small_tables_come_back(df, tmp_path): pd.testing.assert_frame_equal(read_cell(write_cell(Cell("a", 0, "toy"), df, tmp_path))[0], df, check_index_type=False, check_column_type=False)


@pytest.mark.parametrize("dtype", ["int8", "UInt16", "Float32", "complex128", "period[M]", "datetime64[ns]", "timedelta64[ns]", "category", "string", "int64[pyarrow]", "double[pyarrow]", "float16"])
def test_any_type_of_column_is_finished_for_good(dtype, tmp_path):
    "Else its cell would be set aside and computed anew each time"
    values = dict(period=["2020-01"], datetime=["2020-01-02"], timedelta=["3 days"]).get(dtype.split("[")[0].removesuffix("64"), ["1"])
    df = pd.DataFrame(dict(x=pd.Series(values).astype(complex if dtype == "complex128" else float if "loat" in dtype or "ouble" in dtype else object).astype(dtype)))
    back = read_cell(write_cell(Cell("a", 0, "toy"), df, tmp_path))[0]
    assert str(back.x.dtype) == str(df.x.dtype) and back.x.astype(str).tolist() == df.x.astype(str).tolist()


def test_full_table_is_what_theory_reads(tmp_path):
    path = write_full_table(pd.DataFrame(dict(dataset=["sciq"], value=[1 / 3])), "toy", tmp_path)
    assert path.read_text() == "dataset,value\nsciq,0.33333\n"
    with pytest.raises(ValueError, match="wanted one like"): write_full_table(pd.DataFrame(), "../toy", tmp_path)


def test_your_own_file_that_has_changed_is_measured_again(tmp_path):
    path = tmp_path / "mine.csv"
    path.write_text("txt,label\na,0\n")
    cells = [Cell(str(path), 0, "toy"), Cell(f"{path}@100", 0, "toy")]
    for expected in ("computed", "kept"): assert set(run(cells, tmp_path / "out").status) == {expected}
    path.write_text("txt,label\nb,0\n")
    with pytest.warns(UserWarning, match="another recipe, with content"): assert set(run(cells, tmp_path / "out").status) == {"computed"}
    path.unlink()
    with pytest.warns(UserWarning, match="another recipe, with content"): run(cells, tmp_path / "out")


def test_unknown_experiments_and_seeds():
    with pytest.raises(ValueError, match="wanted one of accuracies"): cell_function("luck")
    for seed in (-1, 1.5, "0", True):
        with pytest.raises(ValueError, match="whole number from 0"): Cell("sciq", seed, "toy")
    assert settings() != settings("paper") and settings() != settings(replace(preset(), l2=.2))


def test_the_gain_has_one_error_in_all_chapters():
    "Student minus teacher hangs on the teacher, whichever chapter's table it is taken from"
    here = summarise(full_table("accuracies")).set_index("dataset")
    mixed = mixing_summary(full_table("mixing")).set_index(["measure", "dataset"]).loc["student - teacher"]
    reference = full_table("matching").query("design == 'reference'").pivot_table(index=["dataset", "seed", "n_weak", "n_w2s", "n_test"], columns="quantity", values="value")
    matched = difference_table((reference["w2s"] - reference["weak"]).rename("value").reset_index(), ["dataset"], what="teacher").set_index("dataset")
    for other in (mixed, matched):
        np.testing.assert_allclose(other["mean"], here.gain[other.index], atol=1e-4)  # the tables keep four and five digits
        np.testing.assert_allclose(other.se, here.gain_se[other.index], atol=1e-4)


def test_each_quantity_has_the_ratio_of_its_learners():
    rng = np.random.default_rng(0)
    df = pd.DataFrame({c: rng.uniform(.5, .7, 6) for c in ("weak", "student", "strong", "length", "overlap_preset")}).assign(
        dataset="a", n_weak=400, n_w2s=1200, n_test=300, gain=lambda d: d.student - d.weak, gap=lambda d: d.strong - d.weak)
    row = summarise(df).iloc[0]
    for column, ratio in dict(weak=300 / 400, student=300 / 1200, strong=300 / 1200, gain=300 / 400, gap=300 / 400).items():
        assert row[f"{column}_se"] == pytest.approx(corrected_se(df[column], ratio)), column
    assert row.density_se == pytest.approx(corrected_se(df.overlap_preset, 1200 / 400))
