"Every notebook with parameters runs from top to bottom on other ones than its own, as the `papermill` command runs it."
import json
from pathlib import Path

import papermill
import pytest

NBS = Path(__file__).parent.parent / "nbs"
CHAPTERS = sorted(p.stem for p in NBS.glob("*.ipynb") if any("parameters" in c["metadata"].get("tags", []) for c in json.loads(p.read_text())["cells"]))
RUNS = [  # notebook, parameters: small budgets, since the saved outputs come from the full ones
    ("00d_probes", dict(bench_dataset="openbookqa", bench_rows=200, bench_fits=1, bench_repeats=1, grow_rows=200, grow_fits=4)),
    ("01_theory", dict(runs=20)),
    ("01a_rates", dict(runs=20, seed=1)),
    ("01b_regret", dict(runs=20, seed=1)),
    ("01c_stopping", dict(runs=20, seed=2)),
    ("02_detection", dict(dataset="openbookqa", redraws=2, draws=2, plants=1)),
    ("02a_mixing", dict(dataset="openbookqa", seeds=1, draws=1)),
    ("02a_mixing", dict(dataset="sst2", seeds=2, draws=1, protocol="published")),
    ("02b_matching", dict(dataset="openbookqa", seeds=2, draws=2, subsets=8)),
    ("02c_scores", dict(dataset="openbookqa", seeds=1, mixtures=1)),
    ("02d_sweeps", dict(dataset="openbookqa", seeds=2)),
    ("02e_rewards", dict(dataset="openbookqa", seeds=2, draws=1, mixtures=3, runs=4)),
    ("02f_session", dict(seed=1, rounds=12)),
    ("02g_natural", dict(targets="sst2", sources="sciq,openbookqa", seeds=1, n=200, mixtures=1)),
    ("02h_ranking", dict(seed=1, budget=200)),
    ("03_selection", dict(dataset="sciq", seeds=1, rounds=5, mixtures=2, bench_rounds=3)),
    ("03_selection", dict(dataset="openbookqa", seeds=1, rounds=5, mixtures=2, bench_rounds=3, others="", tool_rows=0)),
    ("06_performance", dict(texts=16, repeats=1, rows=400, features=32, rounds=4, sizes=2, memory=False, threads=1)),
    ("06a_cluster", dict(scores=50_000, rows=2_000, texts=16, draws=2, seed=1)),
    ("07_results", dict(datasets="sst2", seeds=2)),
    ("08_commands", dict(dataset="openbookqa", sizes="200,300,60,100", seed=1)),
    ("08a_sharing", dict(dataset="openbookqa", seed=1)),
]
BUILT = [r for r in RUNS if r[0] == "03_selection"]  # the main job: run in test_supply.py, by the wheel and by the sdist, outside the checkout


@pytest.mark.parametrize("chapter", CHAPTERS)
def test_every_parameter_says_what_it_is(chapter):
    parameters = papermill.inspect_notebook(str(NBS / f"{chapter}.ipynb"))
    assert parameters
    for name, p in parameters.items(): assert p["inferred_type_name"] != "None" and p["help"], f"{name}: write `{name}: type = value  # what it is`"


def test_every_chapter_is_run(): assert {c for c, _ in RUNS} == set(CHAPTERS) and len(BUILT) == 2


def check_results(folder): assert {p.suffix for p in folder.rglob("*") if p.is_file()} >= {".csv", ".png"}


@pytest.mark.parametrize("chapter, parameters", [pytest.param(*r, marks=[pytest.mark.xdist_group("ray")] * (r[0] == "06a_cluster")) for r in RUNS if r not in BUILT], ids=lambda v: v if isinstance(v, str) else "-".join(map(str, v.values())) or "small")
def test_chapter_runs(chapter, parameters, tmp_path):
    known = papermill.inspect_notebook(str(NBS / f"{chapter}.ipynb"))
    assert not parameters.keys() - known.keys(), "papermill would inject them, and the chapter would not read them"
    extra = dict(results_dir=str(tmp_path / "results")) if "results_dir" in known else {}
    papermill.execute_notebook(str(NBS / f"{chapter}.ipynb"), str(tmp_path / "out.ipynb"), parameters | extra, cwd=str(tmp_path), progress_bar=False)
    if extra: check_results(tmp_path / "results")
