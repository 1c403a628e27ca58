"What the site promises, without building it: every page within reach, a reference of every public name, an example for every public name."
import ast
import importlib.util
import json
import re
from collections import Counter
from configparser import ConfigParser
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parent.parent
NBS = ROOT / "nbs"
SITE = yaml.safe_load((ROOT / "_quarto.yml").read_text(encoding="utf-8"))["website"]
PAGES = sorted(p.name for p in NBS.glob("*") if p.suffix in (".ipynb", ".qmd", ".md") and p.name[0] not in "._")
TOP = ["start.ipynb", "own_data.ipynb", "reference/index.qmd", "06_performance.ipynb", "cost.ipynb", "promises.ipynb", "glossary.qmd", "references.qmd", "contributing.qmd"]


def links(entries):
    "Addresses in a navbar or a sidebar, in order"
    return [h for e in entries for h in [*([e["href"]] if "href" in e else []), *links(e.get("contents", [])), *links(e.get("menu", []))]]


def sidebar(name): return next(b for b in SITE["sidebar"] if b["id"] == name)


@pytest.fixture(scope="module")
def reference():
    "The generator, loaded from .ci"
    spec = importlib.util.spec_from_file_location("reference", ROOT / ".ci" / "reference.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def written(reference): return reference.pages()


def test_each_page_stands_in_a_sidebar_once(written):
    shown = links([e for bar in SITE["sidebar"] for e in bar["contents"]])
    assert Counter(shown) == Counter(PAGES + [f"reference/{name}" for name in written])


def test_navbar_leads_to_the_top_level_pages(): assert [h for h in links(SITE["navbar"]["left"]) if ":" not in h] == TOP


def test_sidebar_entries_have_human_titles():
    def entries(contents): return [x for e in contents for x in (entries(e["contents"]) if "contents" in e else [e])]
    for e in entries(sidebar("guide")["contents"]):
        assert re.match(r"[A-Z]", e["text"]) and len(e["text"]) <= 32, f"{e}: a title that fits one or two lines"


def test_reference_follows_the_chapters(reference):
    "A module a page, in the order of its chapters, in the second sidebar"
    assert links(sidebar("reference")["contents"]) == ["reference/index.qmd", *(f"reference/{c.module}.qmd" for c in reference.chapters() if c.module)]


def test_every_public_name_has_an_entry(reference, written):
    for c in filter(lambda c: c.module, reference.chapters()):
        names = reference.module(c.module).object.__all__
        assert re.findall(r"^## (\w+) \{#(\w+)\}$", written[f"{c.module}.qmd"], re.M) == [(n, n) for n in names]


def test_every_public_name_has_an_example(reference): assert reference.without_example() == [], "use the name in a shown cell of its chapter"


def test_reference_sees_what_is_missing(reference, tmp_path):
    "A name that only exported or hidden cells use counts as one without an example"
    def notebook(*sources): return json.dumps(dict(cells=[dict(cell_type="code", source=s) for s in sources]))
    for shown, found in (("#| hide\nf(1)", False), ("#| export\ng = f(1)", False), ("from m import f", False), ("x = 'f'", False), ("y = f(1)", True), ("package.f(2)", True)):
        path = tmp_path / "00_m.ipynb"
        path.write_text(notebook("#| default_exp m", "#| export\ndef f(x): return x", shown), encoding="utf-8")
        chapter = reference.read_chapter(path)
        assert any("f" in names for c in chapter.cells if c.shown for _, names in reference.statements(c.source)) == found, shown


@pytest.mark.parametrize("markdown, anchor", [("## A change point", "a-change-point"), ("### `run_cells`: once", "run_cells-once"), ("## The limit $d^*$", "the-limit-d"),
                                              ("## [Rules](x.ipynb) and 2 *more*", "rules-and-2-more"), ("### Proposition B.8 {#prop-b8}", "prop-b8")])
def test_anchors_are_pandocs(reference, tmp_path, markdown, anchor):
    path = tmp_path / "00_m.ipynb"
    path.write_text(json.dumps(dict(cells=[dict(cell_type="markdown", source=s) for s in ("# m", markdown, "text")])), encoding="utf-8")
    assert reference.read_chapter(path).cells[-1].anchor == anchor


@pytest.mark.parametrize("text, wanted", [("(n,) labels in [0, 1]", r"(n,) labels in \[0, 1\]"), ("|cos| <= 1", r"\|cos\| \<= 1"), ("`a | b`", "<code>a &#124; b</code>"),
                                          ("as `evaluate`", "as [`evaluate`](probes.qmd#evaluate)"), ("as `_hidden`", "as `_hidden`"), ("sciq@2000", "sciq@2000"), ("@2000", r"\@2000")])
def test_comments_become_markdown_of_both_builders(reference, text, wanted): assert reference.escaped(text) == wanted


def test_docstrings_are_taken_apart(reference):
    said, raised, labels = reference.split_docstring("Bound of the KL index. Theorem D.4. Raises ValueError for T < 1.")
    assert (said, raised, labels) == ("Bound of the KL index.", "ValueError for T < 1.", ["Theorem D.4"])
    assert reference.split_docstring("Divide rows. Paper, detection algorithm. Raises X.")[2] == ["Paper, detection algorithm"]


@pytest.mark.parametrize("name", ["start.ipynb", "index.ipynb"])
def test_colab_opens_the_start(name):
    "The badge's address is made of settings.ini's names"
    ini = ConfigParser(delimiters=["="])
    ini.read(ROOT / "settings.ini", encoding="utf-8")
    cfg = ini["DEFAULT"]
    cells = json.loads((NBS / name).read_text(encoding="utf-8"))["cells"]
    text = "\n".join("".join(c["source"]) for c in cells)
    assert f"https://colab.research.google.com/github/{cfg['user']}/{cfg['repo']}/blob/{cfg['branch']}/nbs/start.ipynb" in text
    if name == "index.ipynb": return
    code = ["".join(c["source"]) for c in cells if c["cell_type"] == "code"]
    install = next(i for i, s in enumerate(code) if "google.colab" in s)
    assert f"git+{cfg['git_url']}" in code[install] and isinstance(ast.parse(code[install]).body[0], ast.If), "installs in Colab only"
    assert not any("datacentric_w2s" in s for s in code[:install]), "the package is imported after that cell"


def test_start_tells_the_null_results():
    "What the numbers don't say stands where a newcomer reads, not only in the chapters"
    text = "\n".join("".join(c["source"]) for c in json.loads((NBS / "start.ipynb").read_text(encoding="utf-8"))["cells"] if c["cell_type"] == "markdown")
    for words in ("Detected overlap is not what makes it", "no proof against the idea", "does not rank other data sets", "at chance"): assert words in text
