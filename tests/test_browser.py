"""The built site in a real browser: every page in both widths and both themes, and the checks themselves on made-up pages.

Needs Chromium with its driver, npm and selenium: `apt-get install chromium chromium-driver npm`, then `pytest -n 0 tests/test_browser.py`.
Without them the tests are skipped; DATACENTRIC_W2S_BROWSER=required makes that a failure. DATACENTRIC_W2S_SITE names a built site to look at
(else it is built, from a copy), DATACENTRIC_W2S_SCREENSHOTS a folder for pictures of each page.
"""
import os
import shutil
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pandas as pd
import pytest

ROOT = Path(__file__).parent.parent
KATEX = ("katex@0.16.11", "8c5494c5f7d8e8bf73ff3fe64d4bd09a340e4878b7eec9bbd9ef8d8f3e24193f")  # the version that smalldocs names in its pages
AXE = ("axe-core@4.14.1", "e6b0ce02b84d892e2e33e403485e7f3d6c29e2be6df65daf44d89ba564139745")
PRESSED = ("index.html", "start.html", "core.html", "glossary.html", "reference/core.html")  # one of each sort, on which Tab is pressed from end to end; the others are looked at
CHECKS = ("console", "math", "pictures", "wide", "contrast", "tabs", "rules")
GOOD = """<!doctype html><html lang="en"><head><title>made up</title><style>:focus { outline: 2px solid }</style></head>
<body><main><h1>A page</h1><p>Some words, <a href="/favicon.ico">a link</a>, $5 and $6.</p>HERE</main></body></html>"""
BAD = dict(  # one fault each: the check that must see it
    error=("console", "<script>throw new Error('made up')</script>"),
    elsewhere=("console", "<script src='https://example.com/x.js'></script>"),
    formula=("math", "<span class='math inline'>\\(a\\)</span>"),
    dollars=("math", "<p>The sum is $x_1 + y$.</p>"),
    markdown=("math", "<p>[a link](02_detection.ipynb)</p>"),
    picture=("pictures", "<img alt='a curve' src='/no.png'>"),
    no_alt=("pictures", "<img src='data:image/gif;base64,R0lGODlhAQABAAAAACwAAAAAAQABAAA='>"),
    table=("wide", "<table><tr><td style='min-width: 900px; border: 1px solid'>wide</td></tr></table>"),
    cut=("wide", "<div style='overflow-x: clip'><div style='width: 900px'>cut off</div></div>"),
    grey=("contrast", "<p style='color: #999'>grey words</p>"),
    faded=("contrast", "<div style='opacity: .4'><p>words</p></div>"),
    mouse_only=("tabs", "<span onclick='1'>press me</span>"),
    no_ring=("tabs", "<button style='outline: none'>press me</button>"),
    out_of_order=("tabs", "<button tabindex='-1'>press me</button>"),
    off_screen=("tabs", "<a href='/x' style='position: fixed; left: -900px'>there</a>"),
    nameless=("rules", "<button style='width: 2em; height: 2em'></button>"))
HOSTILE = ["<script>document.title = 'stolen'</script>", "<img src=x onerror=\"document.title = 'stolen'\">", '"quotes" and \'single\'', "a & b </td></table>", "plain words"]
pytestmark = pytest.mark.xdist_group("browser")  # one browser, one process


def missing(reason):
    "Skip, or fail where the browser is required."
    (pytest.fail if os.environ.get("DATACENTRIC_W2S_BROWSER") == "required" else pytest.skip)(f"the site is not looked at: {reason}")


@pytest.fixture(scope="session")
def made(tmp_path_factory):
    "The folder of the built site, and what .ci/site.py found wrong. Built from a copy, since other tests use the checkout meanwhile."
    if given := os.environ.get("DATACENTRIC_W2S_SITE"): return Path(given).resolve(), ""
    listed = subprocess.run(["git", "ls-files", "-co", "--exclude-standard"], cwd=ROOT, capture_output=True, text=True)
    if listed.returncode or not find_spec("smalldocs"): missing("it is built from a git checkout, with smalldocs")
    copy = tmp_path_factory.mktemp("site")
    for name in filter(lambda n: (ROOT / n).is_file(), listed.stdout.splitlines()):
        (copy / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, copy / name)
    env = {k: v for k, v in os.environ.items() if k != "IN_TEST"}
    built = subprocess.run([sys.executable, ".ci/site.py"], cwd=copy, env=env, capture_output=True, text=True)
    assert (copy / "_docs/index.html").is_file(), built.stdout[-2000:] + built.stderr[-2000:]
    return copy / "_docs", built.returncode and built.stdout[-5000:] + built.stderr[-5000:]


@pytest.fixture(scope="session")
def site(made): return made[0]


@pytest.fixture(scope="session")
def tools():
    "The programs' paths, looked for before anything is built."
    found = [next(filter(None, map(shutil.which, names)), None) for names in (("chromium", "chromium-browser", "google-chrome"), ("chromedriver",), ("npm",))]
    lacking = [n for n, p in zip(("chromium", "chromedriver", "npm"), found) if not p] + ([] if find_spec("selenium") else ["selenium"])
    if lacking: missing(f"there is no {', no '.join(lacking)}")
    return found[:2]


@pytest.fixture(scope="session")
def reader(tools, site, tmp_path_factory, request):
    import browser
    npm = Path(request.config.cache.mkdir("npm"))
    try: axe, _ = [browser.npm_package(*p, npm) for p in (AXE, KATEX)]
    except RuntimeError as e: missing(str(e))
    server = browser.serve(site, npm)
    server.made |= {f"/made/{name}.html": GOOD.replace("HERE", fault).encode() for name, (_, fault) in (BAD | dict(good=("", ""))).items()}
    chrome = browser.chromium(*tools, tmp_path_factory.mktemp("profile"))
    yield browser.Reader(chrome, server, (axe / "axe.min.js").read_text(encoding="utf-8"))
    chrome.quit()
    server.shutdown()


@pytest.fixture(scope="session")
def pages(site): return sorted(p.relative_to(site).as_posix() for p in site.rglob("*.html"))


@pytest.fixture(scope="session")
def wrong(reader, pages):
    "What is wrong, check by check, over all pages."
    folder = os.environ.get("DATACENTRIC_W2S_SCREENSHOTS")
    if folder: Path(folder).mkdir(parents=True, exist_ok=True)
    found = {p: reader.walk(reader.base + p, folder and Path(folder), press=p in PRESSED) for p in pages}
    return {check: [f"{p}: {what}" for p in pages for what in found[p][check]] for check in CHECKS}


def test_it_is_built_without_a_problem(made): assert not made[1], made[1]


def test_every_notebook_has_its_page(pages): assert len(pages) >= len(list((ROOT / "nbs").glob("*.ipynb"))) and set(PRESSED) <= set(pages)


@pytest.mark.parametrize("check", CHECKS)
def test_all_pages(check, wrong): assert not wrong[check], f"{len(wrong[check])} found:\n" + "\n".join(wrong[check][:40])


def test_a_good_page_passes(reader): assert not {k: v for k, v in reader.walk("/made/good.html").items() if v}


@pytest.mark.parametrize("fault", BAD)
def test_each_check_catches(fault, reader):
    found = reader.walk(f"/made/{fault}.html")
    assert found[BAD[fault][0]], f"{found} lacks it"


@pytest.mark.parametrize("fault", ["no_ring", "out_of_order"])
def test_the_quick_look_catches(fault, reader):
    assert reader.walk(f"/made/{fault}.html", press=False)["tabs"]
    assert not reader.walk("/made/good.html", press=False)["tabs"]


def test_contrast_agrees_with_axe(reader):
    "Both on the same pages: the one that is quick on a page with 60,000 elements, and the one that others use."
    for page, n in (("good", 0), ("grey", 1), ("faded", 1)):
        reader.open(f"/made/{page}.html").js(reader.axe)
        axe = reader.js("return axe.run(document, {runOnly: ['color-contrast'], preload: false}).then(r => r.violations.flatMap(v => v.nodes).length)")
        assert len(reader.js("return contrasts()")) == axe == n


def test_search_leads_to_a_function(reader):
    reader.open(reader.base + "index.html").js("document.querySelector('input[type=search]').focus()")
    reader.press("detect_overlap")
    first = reader.wait("return document.querySelector('.search-result')?.getAttribute('href')")
    assert "detection.html#detect_overlap" in first
    reader.press(reader.keys.ENTER)
    assert reader.wait("return location.pathname.endsWith('/detection.html') && document.getElementById('detect_overlap') && document.getElementById('detect_overlap').textContent")


def test_the_sidebar_opens_and_leads_on_by_keyboard(reader):
    reader.open(reader.base + "index.html", 375).js("document.querySelector('.quarto-btn-toggle').focus()")
    open_ = "return document.querySelector('#quarto-sidebar').classList.contains('show')"
    reader.press(reader.keys.ENTER)
    assert reader.wait(open_)
    reader.press(reader.keys.TAB)
    reader.wait("return document.activeElement.closest('#quarto-sidebar')")
    reader.js("[...document.querySelectorAll('#quarto-sidebar a[href]')].find(a => a.getAttribute('href').endsWith('theory.html')).focus()")
    reader.press(reader.keys.ENTER)
    assert reader.wait("return location.pathname.endsWith('theory.html')")


def test_sections_fold_by_keyboard(reader):
    reader.open(reader.base + "index.html").js("window.head = document.querySelector('#quarto-sidebar a[data-bs-toggle]'); head.focus()")
    before = reader.js("return head.getAttribute('aria-expanded')")
    reader.press(reader.keys.ENTER)
    assert reader.wait("return head.getAttribute('aria-expanded') !== arguments[0]", before)


def test_the_first_tab_skips_to_the_text(reader):
    reader.open(reader.base + "index.html").press(reader.keys.TAB)
    assert reader.js("return document.activeElement.className") == "skip-link"
    reader.press(reader.keys.ENTER)
    assert reader.wait("return document.activeElement.matches('main')")


def test_the_chosen_theme_is_kept(reader):
    dark = "return document.documentElement.classList.contains('quarto-dark')"
    reader.open(reader.base + "index.html").js("document.querySelector('.quarto-color-scheme-toggle').focus()")
    reader.press(reader.keys.ENTER)
    reader.wait(dark)
    reader.open(reader.base + "core.html")
    reader.wait(dark)
    reader.js("localStorage.clear()")


def table(reader): return reader.js("return [...document.querySelectorAll('.kinds-page tbody tr')].filter(r => !r.hidden).map(r => [...r.cells].map(c => c.textContent.trim()))")


def type_in(reader, words): reader.js("const i = document.querySelector('.kinds-page').parentElement.querySelector('input'); i.value = ''; i.dispatchEvent(new Event('input')); i.focus()") or reader.press(words)


def column_is_sorted(rows, i, falling):
    "Numbers as numbers, words as words, and cells without a score last in both directions."
    values = [r[i].strip() for r in rows]
    full = [v for v in values if v]
    key = (lambda v: float(v)) if all(v.replace(".", "", 1).replace("-", "", 1).isdigit() for v in full) else str.lower
    return values[:len(full)] == full and [key(v) for v in full] == sorted(map(key, full), reverse=falling)


def check_kinds_page(reader, kinds):
    "Each column sorts both ways by keyboard; words filter by kind; the count says so."
    rows, heads = table(reader), reader.js("return [...document.querySelectorAll('.kinds-page th')].map(h => h.textContent)")
    for i, head in enumerate(heads):
        if head == "text": continue
        reader.js("document.querySelectorAll('.kinds-page th button')[arguments[0]].focus()", i)
        for way in ("ascending", "descending"):
            reader.press(reader.keys.ENTER)
            assert reader.js("return document.querySelectorAll('.kinds-page th')[arguments[0]].getAttribute('aria-sort')", i) == way
            assert column_is_sorted(table(reader), i, way == "descending"), f"{head}, {way}"
            assert sorted(table(reader)) == sorted(rows)
    for kind in kinds:
        type_in(reader, kind)
        assert sorted(table(reader)) == sorted(r for r in rows if kind in r)
        assert reader.js("return document.querySelector('output').textContent").startswith(f"{sum(kind in r for r in rows)} of {len(rows)}")


def test_the_table_of_detected_points_on_the_site(reader):
    reader.open(reader.base + "detection.html")
    assert len(table(reader)) == 100
    check_kinds_page(reader, ("hard", "overlap", "easy"))


def test_the_table_of_detected_points_with_hostile_texts(reader, tmp_path):
    from datacentric_w2s.detection import kind_page
    df = pd.DataFrame(dict(row=[30, 4, 101, 7, 9], kind=["hard", "overlap", "easy", "hard", "overlap"], confidence=[.1, .9, .8, .05, .7], score=[float("nan"), .5, .25, float("nan"), .75]))
    kind_page(df, HOSTILE, tmp_path / "kinds.html")
    reader.server.made["/made/kinds.html"] = (tmp_path / "kinds.html").read_bytes()
    found = reader.walk("/made/kinds.html")
    assert not {k: v for k, v in found.items() if v}, found
    reader.open("/made/kinds.html")
    assert [r[-1] for r in table(reader)] == HOSTILE and reader.browser.title == "Rows by kind"
    assert reader.js("return document.querySelectorAll('.kinds-page img, .kinds-page script').length") == 0
    check_kinds_page(reader, ("hard", "overlap", "easy"))
    for words, n in (("plain", 1), ("quotes single", 1), ("<script>", 1), ("</td>", 1), ("nowhere", 0), ("hard quotes", 0), ("overlap plain", 1)):
        type_in(reader, words)
        assert len(table(reader)) == n, words
