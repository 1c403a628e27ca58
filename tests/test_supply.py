"""Where all that runs comes from: files by hash, requirements between bounds, and a wheel and an sdist that hold what they should and run on their own.

The lower bounds were installed together once (Python 3.11, each direct requirement at its lowest, what these bring at its newest), and the tests of
files, data and activations, and in part of sharing, were run there. That is how it was found that numpy 1.26 no longer will do: pyarrow, which datasets brings, wants 2.
"""
import ast
import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import zipfile
from configparser import ConfigParser
from dataclasses import replace
from email import message_from_bytes
from importlib import metadata
from pathlib import Path
from types import SimpleNamespace

import nbformat
import papermill
import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

import test_browser
from datacentric_w2s import activations, artifacts
from datacentric_w2s.data import REGISTRY
from test_notebooks import LOCAL_PATH
from test_papermill import BUILT, check_results

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "datacentric_w2s"
INI = ConfigParser(delimiters=["="], interpolation=None)
INI.read(ROOT / "settings.ini", encoding="utf-8")
REQUIRED = {k: [Requirement(r) for r in v.split()] for k, v in INI["DEFAULT"].items() if k.endswith("requirements")}
EACH = [pytest.param(r, id=f"{k.removesuffix('requirements')}{r.name}") for k, rs in REQUIRED.items() for r in rs]
NO_UPPER = dict(  # the requirements without an upper bound, and why
    pip="it is the user's own and dated by years; a bound would make it replace itself",
    setuptools="builds alone need it, and these take the newest anyway, in an environment of their own")
BROUGHT = dict(pyarrow="datasets", huggingface_hub="datasets", sklearn="scikit-learn")  # imported by a name that is no requirement's; what brings it
OPTIONAL = {"umap", "ray"}  # asked for where they are used, with a message that says how to get them
DOORS = {  # what fetches from a network, and the modules that may call it
    "from_pretrained": {"activations", "performance"}, "cached_file": {"activations"}, "load_dataset": {"data"}, "HfApi": {"sharing"},
    **dict.fromkeys(("urlopen", "urlretrieve", "hf_hub_download", "snapshot_download", "fetch_openml", "load_state_dict_from_url", "hub"), set())}
HOST = re.compile(r"https?://(localhost|\d+\.\d+\.\d+|[\w.-]*(pypi|pythonhosted)\.)")


def parsed(path): return ast.parse(path.read_text(encoding="utf-8"))


# Artifacts

def bare(a):
    "What an artifact's pin lacks"
    return [what for what, ok in dict(sha256=re.fullmatch("[0-9a-f]{64}", a.sha256), version=re.fullmatch(r"\d+(\.\d+)*", a.version), size=a.size > 0,
                                      name=re.fullmatch(r"[a-z0-9]+(-[a-z0-9]+)*", a.wheel), members=a.members, licence=a.licence).items() if not ok]


def test_every_artifact_is_pinned(tally):
    known = artifacts.ARTIFACTS
    tally("supply chain", "artifacts: a full sha256, one version, a size, a licence", len(known), [(n, bare(a)) for n, a in known.items() if bare(a)])
    assert len({a.pin for a in known.values()}) == len({a.sha256 for a in known.values()}), "one wheel has one hash"


@pytest.mark.parametrize("change", [dict(sha256="b9a0018dff09"), dict(version=">=1"), dict(version="1.*"), dict(size=0), dict(licence="")], ids=repr)
def test_a_pin_that_is_none_is_seen(change):
    assert bare(replace(artifacts.ARTIFACTS["sciq"], **change)) == list(change)


def test_pip_is_held_to_the_hash(monkeypatch, tmp_path, tally):
    "What pip is asked, for every wheel: this one file, no dependency, nothing to build."
    asked, wheels = [], {a.pin: a for a in artifacts.ARTIFACTS.values()}

    def popen(cmd, **options):
        asked.append((cmd, Path(cmd[cmd.index("-r") + 1]).read_text()))
        raise KeyboardInterrupt  # before anything is fetched
    monkeypatch.setattr(artifacts.subprocess, "Popen", popen)
    for n, a in enumerate(wheels.values()):
        (tmp_path / str(n)).mkdir()
        with pytest.raises(KeyboardInterrupt): artifacts._download(a, tmp_path / str(n))
    options = {"--require-hashes", "--no-deps", "--only-binary=:all:", "--no-input"}
    wrong = [cmd for (cmd, file), a in zip(asked, wheels.values()) if options - {*cmd} or cmd[:4] != [sys.executable, "-m", "pip", "download"]
             or file != f"{a.pin} --hash=sha256:{a.sha256}\n"]
    tally("supply chain", "pip asked for a wheel: by hash, alone, nothing to build", len(asked), wrong)
    assert len(asked) == len(wheels)


def test_no_other_door(tally):
    "Nothing is fetched anywhere else."
    calls = [(p.stem, getattr(n.func, "attr", getattr(n.func, "id", ""))) for p in PACKAGE.glob("*.py") for n in ast.walk(parsed(p)) if isinstance(n, ast.Call)]
    tally("supply chain", "calls in the package that could fetch: only in the modules known for it", sum(f in DOORS for _, f in calls), [(m, f) for m, f in calls if m not in DOORS.get(f, {m})])


def test_another_door_is_seen(): assert all(m not in DOORS[f] for m, f in (("data", "urlopen"), ("core", "from_pretrained"), ("sharing", "load_dataset")))


# Requirements

def unbounded(r):
    "Which bounds a requirement lacks"
    kinds = {s.operator for s in r.specifier}
    if "==" in kinds: return []
    return [b for b, ops in (("lower", {">=", "~="}), ("upper", {"<", "<=", "~="})) if not kinds & ops and not (b == "upper" and r.name in NO_UPPER)]


def test_every_requirement_is_bounded(tally):
    rows = [r for rs in REQUIRED.values() for r in rs]
    tally("supply chain", "requirements: bounded below and above, or with a reason", len(rows), [(str(r), unbounded(r)) for r in rows if unbounded(r)])
    assert not NO_UPPER.keys() - {r.name for r in rows} and not [r for r in rows if r.name in NO_UPPER and "<" in str(r)], "a reason that is no longer needed"


@pytest.mark.parametrize("bad, lacks", [("numpy", ["lower", "upper"]), ("numpy>=2", ["upper"]), ("numpy<3", ["lower"]), ("numpy!=2.1", ["lower", "upper"]), ("pip", ["lower"])])
def test_an_open_requirement_is_seen(bad, lacks): assert unbounded(Requirement(bad)) == lacks


@pytest.mark.parametrize("r", EACH)
def test_what_is_installed_is_within(r):
    try: version = metadata.version(r.name)
    except metadata.PackageNotFoundError: pytest.skip(f"{r.name} is not installed") if r.name in ("mlflow", "atheris") else pytest.fail(f"{r.name} is not installed")
    assert r.specifier.contains(Version(version).public, prereleases=True)


def test_the_same_everywhere():
    "A requirement that stands in two lists has the same bounds, and the workflow's torch is the one of settings.ini."
    seen = {}
    for r in (r for rs in REQUIRED.values() for r in rs): assert seen.setdefault(r.name, r.specifier) == r.specifier
    cap = max(str(s) for s in seen["torch"] if s.operator == "<")
    assert all(f"'torch{cap}'" in l for p in (ROOT / ".github").rglob("*.yml") for l in p.read_text().splitlines() if "pip install 'torch" in l)


def test_what_is_imported_is_required():
    own = {canonicalize_name(r.name) for r in REQUIRED["requirements"]}
    found = {}
    for p in PACKAGE.glob("*.py"):
        for n in ast.walk(parsed(p)):
            names = [a.name for a in n.names] if isinstance(n, ast.Import) else [n.module] if isinstance(n, ast.ImportFrom) and not n.level else []
            found |= {m.split(".")[0]: p.stem for m in names}
    assert not {m: p for m, p in found.items() if m not in sys.stdlib_module_names | OPTIONAL | {PACKAGE.name} and canonicalize_name(BROUGHT.get(m, m)) not in own}


# What comes from elsewhere: npm and the hub

@pytest.mark.parametrize("spec, sha256", [test_browser.KATEX, test_browser.AXE], ids=lambda v: v[:12])
def test_npm_packages_are_pinned(spec, sha256): assert re.fullmatch(r"[a-z-]+@\d+\.\d+\.\d+", spec) and re.fullmatch("[0-9a-f]{64}", sha256)


def test_another_npm_package_is_refused(tmp_path, monkeypatch):
    browser = pytest.importorskip("browser", reason="selenium is not installed")
    (tmp_path / "package").mkdir()
    (tmp_path / "package/a.js").write_text("1")
    with tarfile.open(tmp_path / "a.tgz", "w:gz") as tar: tar.add(tmp_path / "package", "package")
    (tmp_path / "npm").write_text(f"#!/bin/sh\ncp '{tmp_path}/a.tgz' fetched.tgz\necho fetched.tgz\n")
    (tmp_path / "npm").chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    right = hashlib.sha256((tmp_path / "a.tgz").read_bytes()).hexdigest()
    (tmp_path / "kept").mkdir()
    with pytest.raises(RuntimeError, match="wanted 0000"): browser.npm_package("a@1.0.0", "0" * 64, tmp_path / "kept")
    assert not (tmp_path / "kept/a@1.0.0").exists()
    assert (browser.npm_package("a@1.0.0", right, tmp_path / "kept") / "a.js").read_text() == "1"


def test_data_sets_of_the_hub_say_that_no_commit_is_pinned():
    "None could be tried where this was written, so none is pinned; where one is, this test and the sentence change."
    hub = [s for (source, _), s in REGISTRY.items() if source == "hub"]
    assert hub and {s.load.args[3] for s in hub} == {None, "refs/convert/parquet"}
    assert "No commit is pinned" in (ROOT / "nbs/00b_data.ipynb").read_text(encoding="utf-8")


def test_a_model_of_the_hub_is_read_at_one_commit(monkeypatch):
    "The commit is looked up once; what is loaded afterwards, small files too, is of that commit and no other."
    import transformers.utils
    asked = []
    text = SimpleNamespace(num_hidden_layers=2, hidden_size=4, model_type="llama", sliding_window=None)
    config = SimpleNamespace(_commit_hash="c" * 40, is_encoder_decoder=False, get_text_config=lambda: text)
    monkeypatch.setattr(activations, "_config", lambda *a: config)
    monkeypatch.setattr(transformers.utils, "cached_file", lambda source, name, revision=None, **options: asked.append((name, revision)))
    lm = activations.language_model("some/model")
    assert lm.identity == f"some/model@{'c' * 40}" and lm.options == dict(trust_remote_code=False, revision="c" * 40)
    assert len(asked) >= 2 and {r for _, r in asked} == {"c" * 40}
    config._commit_hash = None
    with pytest.raises(ValueError, match="the hub gave no commit"): activations.language_model("some/model")


# The wheel and the sdist

built_once = pytest.mark.xdist_group("built")  # built and installed once


def tracked():
    "The names of the files that belong to the project"
    listed = subprocess.run(["git", "ls-files", "-co", "--exclude-standard"], cwd=ROOT, capture_output=True, text=True)
    if listed.returncode: pytest.skip("what belongs to the package is asked of git: no git checkout here")
    return [n for n in listed.stdout.splitlines() if (ROOT / n).is_file()]


def build(names, folder, **environment):
    "Wheel and sdist of a copy of these files: name -> path"
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, folder / name)
    code = "from setuptools import build_meta as b; b.build_sdist('dist'); b.build_wheel('dist')"
    done = subprocess.run([sys.executable, "-c", code], cwd=folder, env=alone(**environment), capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    return {("wheel" if p.suffix == ".whl" else "sdist"): p for p in (folder / "dist").iterdir()}


def alone(**more): return {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "PYTHONHOME", "IN_TEST", "JUPYTER_PATH")} | more


def contents(path):
    "What an archive holds: name (an sdist's without its top folder) -> bytes"
    if path.suffix == ".whl":
        with zipfile.ZipFile(path) as z: return {n: z.read(n) for n in z.namelist()}
    with tarfile.open(path) as tar: return {m.name.split("/", 1)[1]: tar.extractfile(m).read() for m in tar if m.isfile()}


@pytest.fixture(scope="session")
def built(tmp_path_factory): return build(tracked(), tmp_path_factory.mktemp("source"), SOURCE_DATE_EPOCH="1000000000")


def python_of(home): return home / ("Scripts" if os.name == "nt" else "bin") / "python"


@pytest.fixture(scope="session")
def installed(built, tmp_path_factory):
    "A function: wheel or sdist -> a new environment in which it is installed; this one's packages are seen there, the editable install isn't."
    homes = {}

    def install(kind):
        if kind in homes: return homes[kind]
        homes[kind] = home = tmp_path_factory.mktemp(f"from_{kind}")
        subprocess.run([sys.executable, "-m", "venv", "--without-pip", home], check=True)
        paths = subprocess.run([python_of(home), "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"], capture_output=True, text=True, check=True, env=alone()).stdout.strip()
        outer = dict.fromkeys((sysconfig.get_path("purelib"), sysconfig.get_path("platlib")))
        (Path(paths) / "outer.pth").write_text("\n".join(outer) + "\n")  # a path alone: the .pth files over there are not read
        command = [sys.executable, "-m", "pip", "--python", python_of(home), "install", "-q", "--no-deps", "--no-index", "--no-build-isolation", "--ignore-installed", built[kind]]
        done = subprocess.run(command, cwd=home, env=alone(), capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr
        return home
    return install


def inside(home, *command, cwd, **environment):
    "Run a program of the environment `home`; its output"
    done = subprocess.run([python_of(home).parent / command[0], *command[1:]], cwd=cwd, env=alone(**environment), capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    return done.stdout


def of_package(names): return {n for n in names if re.fullmatch(r"datacentric_w2s/(\w+\.py|tables/\w+\.csv)", n)}


@built_once
def test_the_wheel_holds_the_package_and_nothing_else(built):
    made = {n for n in contents(built["wheel"]) if ".dist-info/" in n}
    assert {n.split(".dist-info/")[1] for n in made} == {"METADATA", "WHEEL", "RECORD", "entry_points.txt", "top_level.txt", "licenses/LICENSE"}
    assert contents(built["wheel"]).keys() - made == of_package(tracked())


@built_once
def test_the_sdist_holds_the_package_its_notebooks_and_their_licence(built):
    names = contents(built["sdist"]).keys()
    made = {n for n in names if n in ("PKG-INFO", "setup.cfg") or n.startswith("datacentric_w2s.egg-info/")}
    told = {"settings.ini", "setup.py", "MANIFEST.in", "README.md", "LICENSE", "CITATION.cff", "CHANGELOG.md"}
    assert names - made == of_package(tracked()) | told | {n for n in tracked() if re.fullmatch(r"nbs/\w+\.ipynb", n)}


@built_once
@pytest.mark.parametrize("kind", ["wheel", "sdist"])
def test_every_file_is_the_projects_own(kind, built, tally):
    "Byte by byte, and no path of this machine in any of them, those that the build made among them."
    files = contents(built[kind])
    here = [str(p).encode() for p in (ROOT, built[kind].parent, Path.home(), Path(sys.prefix)) if len(p.parts) > 2]
    own = set(tracked())
    wrong = [n for n, data in files.items() if n in own and (ROOT / n).read_bytes() != data]
    wrong += [n for n, data in files.items() if any(p in data for p in here) or not n.endswith(".ipynb") and (LOCAL_PATH.search(t := data.decode()) or HOST.search(t))]
    tally("supply chain", f"files of the {kind}: the project's own to the byte, without a machine's paths", len(files), wrong)


@built_once
def test_metadata_says_what_settings_say(built):
    said = message_from_bytes(next(v for n, v in contents(built["wheel"]).items() if n.endswith(".dist-info/METADATA")))
    plainly = lambda words: str(Requirement(words)).translate(str.maketrans("", "", "()"))  # a marker of two conditions stands in parentheses there
    asked = {plainly(r) for r in said.get_all("Requires-Dist")}
    want = [f"{r}" if k == "requirements" else f"{r}{' and' if r.marker else ';'} extra == '{k.removesuffix('_requirements')}'" for k, rs in REQUIRED.items() for r in rs]
    assert asked == {plainly(w) for w in want} and said["License"] == "Apache-2.0" and said["Requires-Python"] == f">={INI['DEFAULT']['min_python']}"
    assert set(said.get_all("Provides-Extra")) == {k.removesuffix("_requirements") for k in REQUIRED} - {"requirements"}


@built_once
def test_built_again_elsewhere_they_are_the_same(built, tmp_path):
    "In another folder, beside the leavings of a working copy: caches, an earlier build with a module that is gone, an executed notebook."
    left = ["build/lib/datacentric_w2s/gone.py", "datacentric_w2s/__pycache__/core.cpython-311.pyc", "nbs/.ipynb_checkpoints/03_selection-checkpoint.ipynb",
            "nbs/out.ipynb", "out.ipynb", "datacentric_w2s/tables/.rows.csv-1.part", "results/rows.csv", "tests/__pycache__/a.pyc", ".venv/lib/a.py"]
    for name in left:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("left")
    again = build(tracked(), tmp_path, SOURCE_DATE_EPOCH="1000000000")
    assert again["wheel"].read_bytes() == built["wheel"].read_bytes()
    assert contents(again["sdist"]) == contents(built["sdist"])


@built_once
def test_the_sdist_builds_the_same_wheel(built, tmp_path):
    with tarfile.open(built["sdist"]) as tar: tar.extractall(tmp_path, filter="data")
    top, = tmp_path.iterdir()
    again = build([], top, SOURCE_DATE_EPOCH="1000000000")
    assert again["wheel"].read_bytes() == built["wheel"].read_bytes()


SHOW = """
import importlib, pathlib, pkgutil, sys
import datacentric_w2s
home = pathlib.Path(datacentric_w2s.__file__).parent
assert home.is_relative_to(sys.prefix), home
names = [m.name for m in pkgutil.iter_modules([str(home)]) if not m.name.startswith('_')]
for n in names: assert pathlib.Path(importlib.import_module(f'datacentric_w2s.{n}').__file__).parent == home
print(len(names), len(list(home.glob('tables/*.csv'))))
"""


@built_once
@pytest.mark.parametrize("kind", ["wheel", "sdist"])
def test_all_modules_and_tables_are_there(kind, installed, tmp_path):
    own = of_package(tracked())
    n_modules = sum(n.count("/") == 1 and not n.startswith("datacentric_w2s/_") for n in own)
    assert inside(installed(kind), "python", "-c", SHOW, cwd=tmp_path).split() == [str(n_modules), str(sum("/tables/" in n for n in own))]


@built_once
@pytest.mark.parametrize("kind", ["wheel", "sdist"])
def test_the_commands_are_there(kind, installed, tmp_path):
    shown = inside(installed(kind), "w2s-datasets", "--format", "json", cwd=tmp_path)
    assert {name for _, name in REGISTRY} <= set(re.findall(r'"name": "([^"]+)"', shown)) and json.loads(shown)
    for name in ("w2s-detect", "w2s-select"): assert name in inside(installed(kind), name, "--help", cwd=tmp_path)


@built_once
@pytest.mark.parametrize("kind, run", zip(("wheel", "sdist"), BUILT), ids=("wheel", "sdist"))
def test_the_main_job(kind, run, installed, built, tmp_path):
    "The notebook of the sdist, copied to a folder of its own and run by papermill of the environment, as somebody does who has no checkout."
    chapter, parameters = run
    nb = nbformat.reads(contents(built["sdist"])[f"nbs/{chapter}.ipynb"], as_version=4)
    nb.cells.append(nbformat.v4.new_code_cell("import datacentric_w2s, sys\nprint(datacentric_w2s.__file__, sys.prefix, sep='\\n')"))
    nbformat.write(nb, tmp_path / "in.ipynb")
    assert not parameters.keys() - papermill.inspect_notebook(str(tmp_path / "in.ipynb")).keys()
    given = [w for k, v in (parameters | dict(results_dir=str(tmp_path / "results"))).items() for w in ("-r" if isinstance(v, str) else "-p", k, str(v))]
    inside(installed(kind), "python", "-m", "papermill", "--no-progress-bar", "in.ipynb", "out.ipynb", *given, cwd=tmp_path, JUPYTER_DATA_DIR=str(tmp_path / "jupyter"))
    file, prefix = nbformat.read(tmp_path / "out.ipynb", as_version=4).cells[-1].outputs[0].text.splitlines()
    assert Path(prefix) == installed(kind) and Path(file).is_relative_to(prefix)
    check_results(tmp_path / "results")


# The order in the gate

def test_long_tests_come_first_where_processes_share_them():
    import conftest
    def item(file, group=None, *fixtures): return SimpleNamespace(path=Path(file), fixturenames=fixtures, iter_markers=lambda name: [pytest.mark.xdist_group(group).mark] * (group is not None))
    given = [item("test_a.py"), item("test_a.py", None, "tally"), item("test_papermill.py"), item("test_papermill.py", "ray"), item("test_supply.py", "built"), item("test_browser.py", "browser"), item("test_z.py")]
    for config, order in ((SimpleNamespace(), range(7)), (SimpleNamespace(workerinput={}), (5, 4, 3, 2, 1, 0, 6))):
        items = given[:]
        conftest.pytest_collection_modifyitems(config, items)
        assert items == [given[k] for k in order]
