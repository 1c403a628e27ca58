"What the pages beside the chapters promise: examples that run, names that exist, tables that are true, commands that are there."
import importlib.util
import inspect
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from configparser import ConfigParser
from pathlib import Path

import pytest
import yaml

import test_notebooks
from datacentric_w2s.artifacts import artifacts
from datacentric_w2s.data import REGISTRY, datasets

ROOT = Path(__file__).parent.parent
CONTRIBUTING, GLOSSARY, REFERENCES = (ROOT / p for p in ("CONTRIBUTING.md", "nbs/glossary.qmd", "nbs/references.qmd"))
BIN = Path(sys.executable).parent
WORKFLOWS = sorted((ROOT / ".github" / "workflows").glob("*.yml"))
FORMS = sorted(p for p in (ROOT / ".github" / "ISSUE_TEMPLATE").glob("*.yml") if p.stem != "config")


def read(path): return path.read_text(encoding="utf-8")


def blocks(title):
    "The python blocks below a heading of CONTRIBUTING.md"
    section = re.search(rf"^## {title}\n(.*?)(?=^## |\Z)", read(CONTRIBUTING), re.M | re.S)[1]
    return re.findall(r"^```python\n(.*?)^```", section, re.M | re.S)


def ran(*titles):
    "What the blocks below these headings define, run in order"
    names = {}
    for title in titles: exec(compile("\n".join(blocks(title)), title, "exec"), names)
    return names


def tool(name, *arguments, cwd, **environment):
    "Run a command of this environment; its output"
    env = {k: v for k, v in os.environ.items() if k not in ("IN_TEST", "PYTHONPATH")} | environment
    done = subprocess.run([BIN / name, *arguments], cwd=cwd, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


def from_file(path):
    "A python file as a module"
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


page = from_file(ROOT / ".ci" / "contributing.py")


def test_every_block_is_run():
    with_blocks = [t for t in re.findall(r"^## (.+)$", read(CONTRIBUTING), re.M) if blocks(t)]
    assert with_blocks == ["Add a data set", "Add a detector", "Add a policy", "Add a chapter"]


def test_add_a_data_set(monkeypatch):
    monkeypatch.setattr("datacentric_w2s.data.REGISTRY", before := dict(REGISTRY))
    names = ran("Add a data set")
    assert ("registered", "sums") in before and not names["leaks"].flagged.any()
    assert sum(len(t) for _, t in names["splits"].items()) == 2 * 400


def test_add_a_detector_and_a_policy():
    names = ran("Add a detector", "Add a policy")
    assert names["partition"].rule.count("nearest_ten") == 1
    quality, run = names["quality"].set_index("kind"), names["run"]
    assert quality.precision["overlap"] > 1.5 / 3, "no better than guessing: not an example to follow"
    assert run["round"].tolist() == list(range(1, 11)) and run.source.nunique() == 2 and run.source[:2].nunique() == 2
    greedy = names["greedy"]
    assert len(inspect.signature(greedy).parameters) == 2


def test_add_a_chapter(tmp_path, monkeypatch):
    "It keeps every rule that tests/test_notebooks.py has for one notebook, and its code is exported, executed and tested"
    (tmp_path / "nbs").mkdir()
    shutil.copy(ROOT / "settings.ini", tmp_path)
    monkeypatch.chdir(tmp_path)
    ran("Add a chapter")
    (path,) = (tmp_path / "nbs").glob("*.ipynb")
    tool("nbdev_export", cwd=tmp_path)
    tool("python", ROOT / ".ci" / "execute.py", path, cwd=tmp_path, JUPYTER_PLATFORM_DIRS="1")
    tool("nbdev_clean", cwd=tmp_path)
    (tmp_path / "datacentric_w2s" / "core.py").touch()  # so that it is a package of more than one module, as here
    tool("nbdev_test", "--path", path, "--n_workers", "0", cwd=tmp_path)
    code = from_file(tmp_path / "datacentric_w2s" / "parity.py")
    assert code.is_even(4) and code.__all__ == ["is_even"] and code.__doc__ == "Which numbers are even?"
    monkeypatch.setattr(test_notebooks, "ROOT", tmp_path)
    monkeypatch.setattr(test_notebooks, "NOTEBOOKS", [*test_notebooks.NOTEBOOKS, path])
    of_one = [f for n, f in vars(test_notebooks).items() if n.startswith("test_") and list(inspect.signature(f).parameters) == ["path"]]
    rules = [f for f in of_one if any(m.args[1] is test_notebooks.each_notebook.args[1] for m in f.pytestmark)]
    assert len(rules) >= 8
    for rule in rules: rule(path)
    assert "True" in test_notebooks.output_text(path)


def test_a_chapter_that_breaks_a_rule_is_told(tmp_path):
    "The rules that the example keeps can fail"
    cells = [dict(cell_type="code", metadata={}, outputs=[], source="import numpy\nx = 1")]
    path = tmp_path / "bad.ipynb"
    path.write_text(json.dumps(dict(cells=cells, metadata=dict(kernelspec=dict(name="ir", language="R")))))
    for rule in (test_notebooks.test_import_cells_hold_imports_only, test_notebooks.test_kernel_is_python3, test_notebooks.test_outputs_are_fit_to_publish):
        with pytest.raises(AssertionError): rule(path)


def test_the_map_is_that_of_the_code():
    text = read(CONTRIBUTING)
    assert page.with_map(text) == text, "run python .ci/contributing.py"
    modules = [m for _, m, _ in page.chapters()]
    assert sorted(modules) == sorted(p.stem for p in (ROOT / "datacentric_w2s").glob("*.py") if not p.name.startswith("_"))
    assert all(modules.index(i) < k for k, m in enumerate(modules) for i in page.imports(m)), "a module imports a later one"


def test_the_page_on_the_site_is_contributing(): assert read(ROOT / "nbs" / "contributing.qmd") == page.page(read(CONTRIBUTING)), "run python .ci/contributing.py"


def commands(text):
    "Programs that a line of shell calls, without what only sets the scene"
    for part in re.split(r"&&|;|\|", text):
        words = [w for w in shlex.split(part, comments=True) if not re.match(r"\w+=", w)]
        if words and words[0] not in (".", "cd", "export"): yield words


def test_one_line_commands_exist():
    table = re.search(r"^## In one line each\n(.*?)^## ", read(CONTRIBUTING), re.M | re.S)[1]
    lines = re.findall(r"^\| .+? \| `(.+?)` \|$", table, re.M)
    assert len(lines) >= 15
    for words in (w for line in lines for w in commands(line)):
        assert (BIN / words[0]).exists() or (ROOT / words[0]).exists() or words[0] == "python3", f"no command {words[0]}"
        named = [w for w in words if re.match(r"(nbs|tests|\.ci)/", w)]
        assert not [w for w in named if not (ROOT / w).exists()]


def test_links_in_the_repositorys_own_pages_hold():
    for name in ("CONTRIBUTING.md", "CHANGELOG.md"):
        targets = [t.split("#")[0] for t in re.findall(r"\]\(([^)]+)\)", read(ROOT / name)) if not re.match(r"https?:", t)]
        assert not [t for t in targets if t and not (ROOT / t).exists()]


def test_hooks_in_a_fresh_clone(tmp_path, monkeypatch):
    "nbdev_install_hooks needs no Quarto, leaves the clone clean, and cleans what JupyterLab saves"
    clone, home = tmp_path / "clone", tmp_path / "home"
    home.mkdir()
    git = ["git", "-c", "safe.directory=*"]
    if subprocess.run([*git, "-C", ROOT, "rev-parse", "--verify", "HEAD"], capture_output=True).returncode: pytest.skip("not a git checkout")
    subprocess.run([*git, "clone", "-q", "--depth", "1", ROOT.resolve().as_uri(), clone], check=True)
    tool("nbdev_install_hooks", cwd=clone, HOME=str(home), PATH=f"{BIN}:/usr/bin:/bin")
    assert subprocess.run([*git, "status", "--porcelain"], cwd=clone, capture_output=True, text=True, check=True).stdout == ""
    driver = subprocess.run([*git, "config", "merge.nbdev-merge.driver"], cwd=clone, capture_output=True, text=True, env=os.environ | {"HOME": str(home)}).stdout
    assert driver.startswith("nbdev_merge") and "nbdev_clean_jupyter" in read(home / ".jupyter" / "jupyter_server_config.py")
    cell = dict(cell_type="code", execution_count=7, metadata={}, outputs=[], source="1", id="a")
    model = dict(type="notebook", content=dict(nbformat=4, nbformat_minor=5, metadata={}, cells=[cell]))
    hook = {"c": type("c", (), {"ContentsManager": type("m", (), {})})}
    exec(read(home / ".jupyter" / "jupyter_server_config.py"), hook)
    monkeypatch.chdir(clone)
    hook["c"].ContentsManager.pre_save_hook(model=model, path="nbs/00_core.ipynb", contents_manager=None)
    assert cell["execution_count"] is None


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda p: p.stem)
def test_workflows_call_what_readme_and_gate_call(path):
    flow = yaml.safe_load(read(path))
    assert flow["name"] == path.stem and True in flow and flow["jobs"], "YAML reads the key `on` as True"
    steps = [s for job in flow["jobs"].values() for s in job["steps"]]
    assert all(re.fullmatch(r"[\w-]+/[\w./-]+@v\d+", s["uses"]) for s in steps if "uses" in s), "pin actions by their major version"
    known = read(ROOT / "README.md") + read(ROOT / ".ci" / "run") + read(CONTRIBUTING)
    scene = {"apt-get", "git"}
    for words in (w for s in steps for line in s.get("run", "").splitlines() for w in commands(line)):
        said = words[1] if words[0] == "python" else words[0]
        assert words[0] in scene or said in known, f"{' '.join(words)}: neither README.md nor .ci/run nor CONTRIBUTING.md has it"
        assert words[0] != "python" or (ROOT / said).exists()
    assert all(need in flow["jobs"] for job in flow["jobs"].values() for need in [job.get("needs")] if need)
    assert "can't be run where it was written" in read(path)


def test_test_workflow_holds_the_readmes_command_word_for_word():
    runs = [line.strip() for job in yaml.safe_load(read(WORKFLOWS[-1]))["jobs"].values() for s in job["steps"] for line in s.get("run", "").splitlines()]
    assert WORKFLOWS[-1].stem == "test"
    asked = [line.strip() for line in read(ROOT / "README.md").splitlines() if line.startswith("python3 -m venv") and "pytest" in line]
    assert len(asked) == 1 and asked[0] in runs and ".ci/run" in runs
    gate = read(ROOT / ".ci" / "run")
    for check in ("nbdev_export", "nbdev_clean"): assert check in runs and check in gate
    assert "python .ci/site.py" in runs and "DATACENTRIC_W2S_BROWSER=required" in gate, "in the gate the tests build the site, and may not skip that: test_browser.py"


@pytest.mark.parametrize("path", FORMS, ids=lambda p: p.stem)
def test_forms_are_such(path):
    form = yaml.safe_load(read(path))
    assert {"name", "description", "body"} <= form.keys()
    asked = [f for f in form["body"] if f["type"] != "markdown"]
    assert len({f["id"] for f in asked}) == len(asked) >= 4
    for f in asked:
        assert f["type"] in ("textarea", "input", "dropdown", "checkboxes")
        assert f["attributes"]["label"].strip() and all(isinstance(o, (str, dict)) for o in f["attributes"].get("options", [])), "quote yes and no"


def test_changelog_names_the_version_to_come():
    text, ini = read(ROOT / "CHANGELOG.md"), ConfigParser(delimiters=["="])
    ini.read(ROOT / "settings.ini")
    assert re.findall(r"^## \[(.+?)\]", text, re.M)[0] == "Unreleased"
    assert re.search(rf"\b{re.escape(ini['DEFAULT']['version'])}\b", text)
    chapters = [p.stem for p in test_notebooks.NOTEBOOKS if test_notebooks.module_of(p)]
    assert not [c for c in chapters if f"`{c}`" not in text], "a chapter that the changelog lacks"


def entries():
    "Heading, anchor and text of each entry of the glossary"
    return re.findall(r"^### (.+?) \{#([\w-]+)\}\n(.*?)(?=^##|\Z)", read(GLOSSARY), re.M | re.S)


def test_glossary_entries_have_anchor_meaning_and_chapter():
    assert len(entries()) == len(re.findall(r"^### ", read(GLOSSARY), re.M)) >= 45
    assert len({a for _, a, _ in entries()}) == len(entries())
    lacking = [a for _, a, t in entries() if not re.search(r"\]\(\d\d\w?_\w+\.ipynb\)", t) or len(t.split()) < 8]
    assert not lacking


def test_glossary_names_exist():
    names = [n for _, _, t in entries() for n in re.findall(r"`(\w+\.[\w.]+)`", t)]
    assert len(names) >= 60
    def found(name):
        module, *path = name.split(".")
        at = importlib.import_module(f"datacentric_w2s.{module}")
        for k, part in enumerate(path):
            if part in getattr(at, "__dataclass_fields__", {}): return k == len(path) - 1  # a field without a default is no attribute of its class
            if not hasattr(at, part): return False
            at = getattr(at, part)
        return True
    assert not [n for n in names if not found(n)]


def test_glossary_links_to_the_chapters_that_write_its_names():
    home = {m: stem for stem, m, _ in page.chapters()}
    for _, anchor, text in entries():
        linked = {m for m in re.findall(r"\((\d\w+)\.ipynb\)", text)}
        for name in re.findall(r"`(\w+)\.[\w.]+`", text): assert home[name] in linked, f"{anchor}: {name} is written in {home[name]}"


def test_references_are_cited_where_they_say():
    lines = re.findall(r"^- \*\*(.+?) \((\d{4})\)\.\*\* \*.+?\.?\* .+", read(REFERENCES), re.M)
    assert len(lines) == len(re.findall(r"^- ", read(REFERENCES), re.M)) >= 25
    for line in re.findall(r"^- .+", read(REFERENCES), re.M):
        surname = re.match(r"- \*\*([\w-]+)", line)[1]
        for stem in re.findall(r"\((\w+)\.ipynb\)", line): assert surname in read(ROOT / "nbs" / f"{stem}.ipynb"), f"{stem} does not cite {surname}"


def test_what_chapters_cite_is_in_the_references():
    text, missing = read(REFERENCES), set()
    for path in test_notebooks.NOTEBOOKS:
        prose = "\n".join(test_notebooks.source(c) for c in test_notebooks.notebook(path)["cells"])
        for names, year in re.findall(r"((?:[A-Z][\w-]+(?:,| and| and others)? ){1,4})\(?,? ?((?:19|20)\d\d)\b[;,).]", prose):
            surname = names.removeprefix("After ").split()[0].strip(",")
            if surname not in text: missing.add((path.stem, names.strip(), year))
    assert not missing


def test_licences_are_those_of_the_package():
    rows = re.search(r"^## Data sets\n(.*)", read(REFERENCES), re.M | re.S)[1]
    said = {n: licence for names, licence in re.findall(r"^\| (`.+?`) \| (.+?) \| [A-Z]", rows, re.M) for n in re.findall(r"`(.+?)`", names)}
    table = datasets()
    embedded = table[table.source == "embedded"].set_index("name").licence.to_dict()
    assert said == embedded
    models = dict(re.findall(r"^\| `(.+?)` \| wheel `.+?` \| (.+?) \|", read(REFERENCES), re.M))
    known = artifacts().set_index("name").licence
    assert models == {m: known[m] for m in models} and len(models) == 2


def test_citation_is_that_of_the_file():
    cff, text = yaml.safe_load(read(ROOT / "CITATION.cff")), read(REFERENCES)
    paper = cff["preferred-citation"]
    for value in (cff["title"], cff["version"], cff["license"], cff["repository-code"], paper["title"], paper["collection-title"], paper["url"],
                  " and ".join(f"{a['family-names']}, {a['given-names']}" for a in paper["authors"])): assert f"{{{value}}}" in text, value
