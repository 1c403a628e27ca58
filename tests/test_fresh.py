"The outputs that the chapters have saved are those of their code: `.ci/execute.py` writes down which code made them, and here it is compared."
import importlib.util
import json
import shutil
import subprocess
import sys
from copy import deepcopy
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
NOTEBOOKS = sorted((ROOT / "nbs").glob("*.ipynb"))
spec = importlib.util.spec_from_file_location("fresh", ROOT / ".ci" / "fresh.py")
spec.loader.exec_module(fresh := importlib.util.module_from_spec(spec))


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.stem)
def test_outputs_are_fresh(path):
    why = fresh.why_stale(json.loads(path.read_text(encoding="utf-8")))
    assert not why, f"{path.name}: {'; '.join(why)}. Run `python .ci/execute.py nbs/{path.name} && nbdev_clean`, or `--stale` in place of the name for all such chapters"


def cell(source, kind="code", tags=(), outputs=()):
    return dict(cell_type=kind, source=source, metadata=dict(tags=list(tags))) | (dict(outputs=list(outputs)) if kind == "code" else {})


@pytest.fixture
def package(tmp_path):
    "A small package: `top` imports `base`, and nobody imports `other`"
    folder = tmp_path / "datacentric_w2s"
    (folder / "tables").mkdir(parents=True)
    (folder / "base.py").write_text('"Base."\nfrom .theory import full_table\n\n\ndef half(x):\n    "Half of it."\n    return x / 2  # exactly\n')
    (folder / "top.py").write_text("def quarter(x):\n    from .base import half\n    return half(half(x))\n")
    (folder / "theory.py").write_text("def full_table(name): return name\n")
    (folder / "other.py").write_text("n = 1\n")
    (folder / "tables" / "kept.csv").write_text("a,b\n1,2\n")
    return folder


@pytest.fixture
def notebook(package):
    "A notebook that was just executed"
    shown = dict(output_type="execute_result", execution_count=None, metadata={}, data={"text/plain": ["2.0\n", "<object at 0x7f00>"]})
    nb = dict(metadata={}, cells=[cell("# A title", "markdown"), cell("#| default_exp mine"), cell("from datacentric_w2s.top import quarter\nfrom datacentric_w2s.theory import full_table"),
                                  cell("#| export\ndef twice(x):\n    'Two of it.'\n    return 2 * x  # twice"), cell("full_table('kept')\ntwice(quarter(4))", outputs=[shown])])
    nb["metadata"]["fresh"] = fresh.record(nb, package)
    return nb


def replaced(nb, k, old, new):
    nb = deepcopy(nb)
    assert old in nb["cells"][k]["source"]
    nb["cells"][k]["source"] = nb["cells"][k]["source"].replace(old, new)
    return nb


def test_what_changes_no_output_is_fresh(notebook, package):
    assert fresh.why_stale(notebook, package) == []
    prose, comment, directive, docstring, layout = (replaced(notebook, *change) for change in (
        (0, "A title", "Another"), (3, "  # twice", "  # or x + x"), (3, "#| export", "#| exporti"), (3, "'Two of it.'", '"""Twice as much."""'), (3, "2 * x", "(2 *\n        x)")))
    for nb in (prose, comment, directive, docstring, layout): assert fresh.why_stale(nb, package) == []
    notebook["cells"].insert(1, cell("## More prose", "markdown"))
    notebook["cells"].insert(1, cell("# a comment alone"))
    assert fresh.why_stale(notebook, package) == []


def test_a_change_of_code_is_stale(notebook, package):
    number, name = replaced(notebook, 4, "quarter(4)", "quarter(8)"), replaced(notebook, 3, "2 * x", "2 * x + 0")
    order, tagged, longer = (deepcopy(notebook) for _ in range(3))
    order["cells"][2:4] = order["cells"][3:1:-1]
    tagged["cells"][4]["metadata"]["tags"] = ["skip-execution"]
    longer["cells"].append(cell("1", outputs=[]))
    for nb in (number, name, order, tagged): assert fresh.why_stale(nb, package) == ["its code has changed since its outputs were made"]
    assert fresh.why_stale(longer, package) == fresh.why_stale(number, package)


def test_a_string_that_is_shown_counts():
    two = [fresh.own_code(dict(cells=[cell(s)])) for s in ("'shown'", "'shown, too'")]
    assert two[0] != two[1]
    assert fresh.own_code(dict(cells=[cell("%timeit 1")])) != fresh.own_code(dict(cells=[cell("%timeit 2")]))


@pytest.mark.parametrize("file, old, new, stale", [
    ("top.py", "half(half(x))", "half(x)", True), ("base.py", "x / 2", "x / 3", True),  # imported, and imported by what is imported
    ("base.py", "# exactly", "# so", False), ("base.py", '"Base."', '"The base."', False), ("base.py", '"Half of it."', '"A half."', False),
    ("other.py", "1", "2", False), ("tables/kept.csv", "1,2", "1,3", True),
])
def test_files_of_the_package(notebook, package, file, old, new, stale):
    text = (package / file).read_text()
    assert old in text
    (package / file).write_text(text.replace(old, new))
    assert fresh.why_stale(notebook, package) == [f"datacentric_w2s/{file}, which it uses, has changed since its outputs were made"] * stale


def test_outputs_edited_by_hand_are_seen(notebook, package):
    shown = notebook["cells"][4]["outputs"][0]["data"]
    shown["text/plain"] = "2.0\n<object>"  # as nbdev_clean and Jupyter write it
    assert fresh.why_stale(notebook, package) == []
    shown["text/plain"] = "2.1\n<object>"
    assert fresh.why_stale(notebook, package) == ["its outputs are not those that its last execution gave"]
    del notebook["metadata"]["fresh"]
    assert fresh.why_stale(notebook, package) == ["it is not written down which code made its outputs"]


def test_newer_syntax_trees_mean_the_same():
    "What only newer Pythons note in a tree, and empty lists, don't count"
    node = fresh.ast.parse("def f(x): return x").body[0]
    node.type_params = []
    assert fresh.meaning(node) == fresh.meaning(fresh.ast.parse("def f(x):\n    'Doc.'\n    return (x)").body[0])


def test_an_executed_notebook_is_fresh_and_stays_so_when_cleaned(tmp_path):
    (tmp_path / "nbs").mkdir()
    shutil.copy(ROOT / "settings.ini", tmp_path)
    path = tmp_path / "nbs" / "small.ipynb"
    code = [cell("import sys\nprint('log', file=sys.stderr)\nprint('kept')"), cell("print('a text')", tags=["shows-texts"]), cell("object()")]
    for k, c in enumerate(code): c.update(execution_count=None, id=f"c{k}")
    path.write_text(json.dumps(dict(cells=code, metadata=dict(kernelspec=dict(name="python3", language="python", display_name="python3")), nbformat=4, nbformat_minor=5)))
    run = lambda *command: subprocess.run(command, cwd=tmp_path, check=True, capture_output=True, text=True).stdout
    assert "[1/1] small.ipynb" in run(sys.executable, ROOT / ".ci" / "execute.py", path)
    run(Path(sys.executable).parent / "nbdev_clean", "--fname", path)
    nb = json.loads(path.read_text())
    assert [["".join(o.get("text", "")) for o in c["outputs"]] for c in nb["cells"]][:2] == [["kept\n"], []]
    assert set(nb["metadata"]) == {"kernelspec", "fresh"} and fresh.why_stale(nb) == []
    nb["cells"][0]["outputs"][0]["text"] = ["better\n"]
    assert fresh.why_stale(nb) == ["its outputs are not those that its last execution gave"]
