"The structure that the chapters promise: one order, clean files, outputs fit to publish, a package that equals its notebooks."
import ast
import filecmp
import importlib
import inspect
import json
import os
import re
import shutil
import subprocess
import symtable
import sys
from pathlib import Path

import pytest
import yaml
from fastcore.docments import docments

ROOT = Path(__file__).parent.parent
NOTEBOOKS = sorted((ROOT / "nbs").glob("*.ipynb"))
MODULES = sorted(p for p in (ROOT / "datacentric_w2s").glob("*.py") if not p.name.startswith("_"))
SLOW = ("torch", "transformers", "datasets", "sklearn", "scipy.stats", "matplotlib")  # each takes longer to import than the rest of a module
COMMANDS = (
    "python3 -m venv .venv && . .venv/bin/activate && pip install -e . && papermill nbs/03_selection.ipynb out.ipynb -p dataset sciq",
    "python3 -m venv .venv && . .venv/bin/activate && pip install -e '.[dev]' && nbdev_test && pytest",
)
LOCAL_PATH = re.compile(r"(?<![\w.])/(home|root|tmp|work|Users|var|private)/\w")
INDEX_HOST = re.compile(r"pypi\.org|pythonhosted\.org|/simple\b|Looking in indexes|https?://(localhost|\d+\.\d+\.\d+)")
FORBIDDEN = {
    r"except Exception|except:": "name the errors that you mean",
    r"np\.random\.seed\(": "pass a seed or a Generator",
    r"(?s)\A(?!.*(fork_rng|Generator\(\)\.)).*manual_seed\(": "pass a Generator, or fork the random state",
    r"['\"]cuda['\"]": "devices are chosen in activations alone",
    r"sys\.path": "the package is installed",
    r"^\s*from \S+ import \*": "name what you import",
}
each_notebook = pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.stem)
each_module = pytest.mark.parametrize("path", MODULES, ids=lambda p: p.stem)


def notebook(path): return json.loads(path.read_text(encoding="utf-8"))
def cells(path, kind="code"): return [c for c in notebook(path)["cells"] if c["cell_type"] == kind]
def source(cell): return "".join(cell["source"])
def code_lines(cell): return [l for l in source(cell).splitlines() if l.strip() and not l.lstrip().startswith("#|")]
def parsed(cell): return ast.parse(re.sub(r"^[%!].*$", "", source(cell), flags=re.M))
def tagged(path): return [c for c in cells(path) if "parameters" in c["metadata"].get("tags", [])]


def module_of(path):
    "The module that a notebook exports to, or None"
    return next((m[1] for c in cells(path) if (m := re.search(r"^#\|\s*default_exp\s+(\w+)", source(c), re.M))), None)


def output_text(path):
    "All text of a notebook's saved outputs, without the pictures"
    outputs = [o for c in cells(path) for o in c["outputs"]]
    data = [v for o in outputs for k, v in o.get("data", {}).items() if k not in ("image/png", "image/jpeg")]
    return "\n".join("".join(v) if isinstance(v, list) else str(v) for v in data + [o["text"] for o in outputs if "text" in o])


def run_in_copy(folder, *command):
    "Run an nbdev command on a copy of the notebooks, and return the copy"
    shutil.copytree(ROOT / "nbs", folder / "nbs", ignore=shutil.ignore_patterns(".*"))
    shutil.copy(ROOT / "settings.ini", folder)
    env = {k: v for k, v in os.environ.items() if k != "IN_TEST"}  # in which nbdev would export nothing
    subprocess.run([Path(sys.executable).parent / command[0], *command[1:]], cwd=folder, env=env, check=True)
    return folder


@pytest.fixture(scope="session")
def exported(tmp_path_factory): return run_in_copy(tmp_path_factory.mktemp("exported"), "nbdev_export") / "datacentric_w2s"


@pytest.fixture(scope="session")
def cleaned(tmp_path_factory): return run_in_copy(tmp_path_factory.mktemp("cleaned"), "nbdev_clean") / "nbs"


def test_package_equals_notebooks(exported):
    names = lambda folder: sorted(p.name for p in folder.glob("*.py"))
    assert names(exported) == names(ROOT / "datacentric_w2s")
    _, differ, missing = filecmp.cmpfiles(exported, ROOT / "datacentric_w2s", names(exported), shallow=False)
    assert not differ + missing, "run nbdev_export"


@each_notebook
def test_notebook_is_clean(path, cleaned): assert path.read_bytes() == (cleaned / path.name).read_bytes(), "run nbdev_clean"


def test_sidebar_is_the_reading_order():
    "Chapters stand in name order, each once; that all other pages are within reach is in test_site.py"
    def pages(contents): return [p for c in contents for p in (pages(c["contents"]) if "contents" in c else [c["href"]])]
    bars = yaml.safe_load((ROOT / "_quarto.yml").read_text(encoding="utf-8"))["website"]["sidebar"]
    shown = [p for bar in bars for p in pages(bar["contents"])]
    assert [p for p in shown if p[0].isdigit()] == [p.name for p in NOTEBOOKS if p.stem[0].isdigit()]
    assert shown[0] == "index.ipynb"


@each_notebook
def test_outputs_are_fit_to_publish(path):
    text = output_text(path)
    for what in (LOCAL_PATH, INDEX_HOST, re.compile("Traceback")):
        assert not (m := what.search(text)), f"a saved output holds {text[max(0, m.start() - 40):m.end() + 40]!r}"
    assert not [o["ename"] for c in cells(path) for o in c["outputs"] if o["output_type"] == "error"]
    assert any(c["outputs"] for c in cells(path)) or not cells(path), "no saved output: execute the notebook"


@each_notebook
def test_no_texts_of_data_sets_are_kept(path):
    assert not [source(c)[:80] for c in cells(path) if "shows-texts" in c["metadata"].get("tags", []) and c["outputs"]], "execute with .ci/execute.py"


@each_notebook
def test_figures_have_alt_texts(path):
    drawn = [c for c in cells(path) if any("image/png" in o.get("data", {}) for o in c["outputs"])]
    assert not [source(c)[:80] for c in drawn if not re.search(r"^#\|\s*fig-alt:\s*\S", source(c), re.M)]


@each_notebook
def test_kernel_is_python3(path):
    spec = notebook(path)["metadata"]["kernelspec"]
    assert (spec["name"], spec["language"]) == ("python3", "python")


@each_notebook
def test_imports_only_earlier_chapters(path):
    home = {module_of(p): p.stem for p in NOTEBOOKS if module_of(p)}
    nodes = [n for c in cells(path) for n in ast.walk(parsed(c))]
    names = [n.module or "" for n in nodes if isinstance(n, ast.ImportFrom)] + [a.name for n in nodes if isinstance(n, ast.Import) for a in n.names]
    used = {n.split(".")[1] for n in names if n.startswith("datacentric_w2s.")}
    assert used <= home.keys(), f"no notebook exports {used - home.keys()}"
    assert not {m for m in used if home[m] >= path.stem}, "imports a later chapter, or itself"
    assert "datacentric_w2s" not in names, "import from a module of the package"


@each_notebook
def test_import_cells_hold_imports_only(path):
    is_import = lambda node: isinstance(node, (ast.Import, ast.ImportFrom))
    mixed = [source(c)[:80] for c in cells(path) if 0 < sum(map(is_import, parsed(c).body)) < len(parsed(c).body)]
    assert not mixed, "nbdev runs such cells again when it makes the site"


@each_notebook
def test_code_keeps_the_rules(path):
    for cell in cells(path):
        assert len(code_lines(cell)) <= 30, f"{len(code_lines(cell))} lines: {source(cell)[:80]!r}"
        for pattern, advice in FORBIDDEN.items():
            if "cuda" in pattern and module_of(path) == "activations": continue
            assert not (m := re.search(pattern, source(cell), re.M)), f"{m[0]!r}: {advice}"


def test_few_cells_are_hidden():
    code = [source(c) for p in NOTEBOOKS for c in cells(p)]
    assert sum(bool(re.search(r"^#\|\s*hide\b", s, re.M)) for s in code) <= .12 * len(code)


@each_notebook
def test_parameters_are_typed_and_explained(path):
    found = tagged(path)
    assert len(found) == 1 or not found and not re.match(r"0[1-9]", path.stem), "a chapter with an experiment has one cell tagged parameters"
    odd = [l for c in found for l in code_lines(c) if not re.fullmatch(r"\w+: [^=]+ = .+  # \S.*", l)]
    assert not odd, "write `name: type = value  # what it is`"


@each_notebook
def test_exported_code_uses_no_parameter(path):
    names = {n.target.id for c in tagged(path) for n in parsed(c).body if isinstance(n, ast.AnnAssign)}
    if not module_of(path): return
    file = ROOT / "datacentric_w2s" / f"{module_of(path)}.py"
    top = symtable.symtable(file.read_text(encoding="utf-8"), file.name, "exec")
    def used(table): return {s.get_name() for s in table.get_symbols() if s.is_global() and s.is_referenced()}.union(*map(used, table.get_children()))
    assert not names & (used(top) - {s.get_name() for s in top.get_symbols() if s.is_assigned() or s.is_imported()})


@each_notebook
def test_no_link_to_a_method(path):
    "nbdev makes a link of each `Class.method`, and the site has entries for functions and classes only"
    classes = [o for m in MODULES for n, o in vars(importlib.import_module(f"datacentric_w2s.{m.stem}")).items() if inspect.isclass(o) and o.__module__.startswith("datacentric_w2s")]
    methods = {f"{c.__name__}.{n}" for c in classes for n, f in vars(c).items() if inspect.isfunction(f)}
    text = "\n".join(source(c) for c in notebook(path)["cells"])
    assert not methods & set(re.findall(r"`(?:\w+\.)*?([A-Z]\w*\.\w+)`", text)), "say it without the method's name, or the link leads nowhere"


@pytest.fixture(scope="session")
def slow_imports():
    "The slow packages that each module is the first to import, all in one process: what comes with no module of the row comes with none alone"
    code = f"""
import importlib, json, sys
found, seen = {{}}, set()
for name in sys.argv[1:]:
    importlib.import_module(f"datacentric_w2s.{{name}}")
    found[name], seen = sorted(set({SLOW}) & set(sys.modules) - seen), seen | set(sys.modules)
print(json.dumps(found))"""
    return json.loads(subprocess.run([sys.executable, "-c", code, *(m.stem for m in MODULES)], cwd=ROOT, capture_output=True, text=True, check=True).stdout)


@each_module
def test_import_is_quick(path, slow_imports): assert not slow_imports[path.stem], "import it in the function that needs it"


@each_module
def test_public_names_are_documented(path):
    module = importlib.import_module(f"datacentric_w2s.{path.stem}")
    public = [getattr(module, n) for n in module.__all__]
    functions = [f for f in public if inspect.isfunction(f)]
    assert not [o.__name__ for o in [*functions, *filter(inspect.isclass, public)] if not (o.__doc__ or "").strip()], "no docstring"
    bare = [f"{f.__name__}({p})" for f in functions for p, d in docments(f, full=True).items() if not d.docment and (p != "return" or d.anno not in (None, inspect.Signature.empty))]
    assert not bare, "a parameter on its own line, with a comment that says what it is"


def test_both_commands_stand_in_readme_and_home():
    if not (ROOT / "README.md").exists(): pytest.skip("README.md is not there yet")
    home = "\n".join(source(c) for c in cells(ROOT / "nbs" / "index.ipynb", "markdown"))
    for text in ((ROOT / "README.md").read_text(encoding="utf-8"), home):
        assert [l.strip() for l in text.splitlines() if l.strip().startswith("python3 -m venv")] == list(COMMANDS)
