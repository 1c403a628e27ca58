"How the chapters read: the answer comes first, its figures come from the chapter, figures say what to see, and colours can be told apart."
import html
import json
import re
from pathlib import Path

import numpy as np
import pytest
import yaml

from datacentric_w2s.core import KIND_COLOURS, PALETTE

NBS = Path(__file__).parent.parent / "nbs"
CHAPTERS = sorted(p for p in NBS.glob("0*.ipynb"))
each_chapter = pytest.mark.parametrize("path", CHAPTERS, ids=lambda p: p.stem)
SENTENCES, WORDS, LONGEST = 3, 120, 50  # of an answer: sentences, words, words of one sentence


def cells(path, kind): return [c for c in json.loads(path.read_text(encoding="utf-8"))["cells"] if c["cell_type"] == kind]
def source(cell): return "".join(cell["source"])


def opening(path):
    "The first paragraph after title and subtitle, in two: what stands in bold, and the rest"
    second = json.loads(path.read_text(encoding="utf-8"))["cells"][1]  # before parameters and imports
    first = source(second).split("\n\n")[0] if second["cell_type"] == "markdown" else ""
    bold = re.match(r"\*\*(.+?)\*\*\s*(.*)", first, re.S)
    return bold.groups() if bold else ("", first)


def plain(text): return re.sub(r"\[([^\]]+)\]\([^)]*\)", r"\1", re.sub(r"`[^`]*`", "code", text))  # a link is its text, code is a word


def sentences(text): return [s for s in re.split(r"(?<=[.?!])[\")\]*]*\s+(?=[A-Z*\"(`])", re.sub(r"\b(s\.[ed]|e\.g|i\.e)\.", r"\1", plain(text)).strip()) if s]


@pytest.mark.parametrize("text, number", [
    ("Yes.", 1), ("One (s.e. .01). Two `a.b. C` here. Three?", 3), ("It is .5. And [a link. Really](x.html) ends.", 3), ("37 % of 1,000 rows, s.d. .04 On it goes", 1),
])
def test_sentences_are_counted(text, number): assert len(sentences(text)) == number


@each_chapter
def test_the_answer_comes_first(path):
    question, answer = opening(path)
    assert question.endswith("?"), "the first paragraph after the title: **Question?** and the answer"
    assert answer and not sentences(answer)[-1].endswith("?"), "an answer, not another question"
    assert len(sentences(answer)) <= SENTENCES, [s[:60] for s in sentences(answer)]
    words = [len(s.split()) for s in sentences(answer)]
    assert sum(words) <= WORDS and max(words) <= LONGEST, f"sentences of {words} words: what is the answer?"


NUMBER = re.compile(r"(?<![\w.#])(\d{1,3}(?:,\d{3})+|\d*\.\d+|\d+)(?:e[+-]?\d+)?(\s?%)?(?![\w])")


def numbers(text): return [(float(n.replace(",", "")), len(n.partition(".")[2]), bool(p)) for n, p in NUMBER.findall(text)]


def said_in_cells(path):
    "All numbers in the chapter's code and saved outputs, as an array of sizes without signs"
    code = cells(path, "code")
    outputs = [o for c in code for o in c["outputs"]]
    data = [(k, "".join(t)) for o in outputs for k, t in o.get("data", {}).items() if k.startswith("text/")] + [("", "".join(o["text"])) for o in outputs if "text" in o]
    text = "\n".join([source(c) for c in code] + [html.unescape(re.sub(r"<[^>]+>", " ", t)) if k == "text/html" else t for k, t in data])
    return np.array(sorted({float(n.replace(",", "")) for n in re.findall(r"\d{1,3}(?:,\d{3})+|\d*\.?\d+(?:e[+-]?\d+)?", text)}))


def unfounded(text, known):
    "The numbers of a text that no known number gives when it is rounded as they are; a percentage may be a share there"
    def close(value, digits, k): return (np.abs(known * k - value) <= .5 * 10.**-digits + 1e-9).any()
    return [v for v, digits, percent in numbers(text) if not (v == int(v) and v <= 12 and not digits) and not (close(v, digits, 1) or percent and close(v, digits, 100))]


def test_unfounded_numbers_are_seen():
    known = np.array([.1234, 1234, .37])
    assert unfounded("about .12, 0.123, 1,234 rows and 37 % of 3", known) == []
    assert unfounded("about .13, 1,235 rows and 38 % of 30", known) == [.13, 1235, 38, 30]


@each_chapter
def test_figures_of_the_answer_come_from_the_chapter(path):
    "A number that has changed since is seen here, if chance doesn't put another one of its size into the chapter"
    answer = re.sub(r"\$[^$]*\$|`[^`]*`|\(#[^)]*\)|\([^)\s]*\.ipynb[^)]*\)|\b(H100|A100)\b|Llama-\S+|l2", " ", opening(path)[1])
    assert not unfounded(answer, said_in_cells(path)), "not in a cell of this chapter: write what its outputs say"


def options(cell): return yaml.safe_load("\n".join(l[2:].strip() for l in source(cell).splitlines() if l.startswith("#|"))) or {}


@pytest.mark.parametrize("path", sorted(NBS.glob("*.ipynb")), ids=lambda p: p.stem)
def test_figures_say_what_to_see(path):
    for cell in cells(path, "code"):
        if not any("image/png" in o.get("data", {}) for o in cell["outputs"]): continue
        said = options(cell)
        assert isinstance(said, dict) and said.get("fig-alt") and said.get("fig-cap"), f"fig-alt says what is drawn, fig-cap what to see (quoted, if it has a colon): {source(cell)[:80]!r}"
        assert said["fig-cap"].rstrip().endswith(".") and said["fig-cap"] != said["fig-alt"]
        assert not re.search(r"[$`]|\*\*", said["fig-cap"]), "the site without Quarto shows captions as plain text"


# Colours, as they are seen. Dichromats after Machado, Oliveira and Fernandes (2009, severity 1); grey keeps the luminance.
SEEN = dict(
    all_cones=np.eye(3),
    no_red_cones=np.array([[.152286, 1.052583, -.204868], [.114503, .786281, .099216], [-.003882, -.048116, 1.051998]]),
    no_green_cones=np.array([[.367322, .860646, -.227968], [.280085, .672501, .047413], [-.011820, .042940, .968881]]),
    grey=np.tile([.2126, .7152, .0722], (3, 1)),
)
XYZ = np.array([[.4124564, .3575761, .1804375], [.2126729, .7151522, .0721750], [.0193339, .1191920, .9503041]])


def lab(colour, how):
    "CIELAB of a #rrggbb colour seen in one of four ways"
    c = np.array([int(colour[i:i + 2], 16) for i in (1, 3, 5)]) / 255
    light = np.where(c <= .04045, c / 12.92, ((c + .055) / 1.055)**2.4)
    t = XYZ @ np.clip(SEEN[how] @ light, 0, 1) / XYZ.sum(1)
    f = np.where(t > 216 / 24389, np.cbrt(t), (24389 / 27 * t + 16) / 116)
    return np.array([116 * f[1] - 16, 500 * (f[0] - f[1]), 200 * (f[1] - f[2])])


def closest(colours, how):
    "The smallest distance between two of the colours; 2 is just seen side by side"
    seen = np.array([lab(c, how) for c in colours])
    return min(np.linalg.norm(a - b) for k, a in enumerate(seen) for b in seen[:k])


def test_colour_distances_are_right():
    assert np.allclose(lab("#ffffff", "all_cones"), [100, 0, 0], atol=.1) and np.allclose(lab("#000000", "all_cones"), 0)
    assert closest(("#ff0000", "#00a000"), "all_cones") > 100 and closest(("#d55e00", "#8f8f00"), "no_green_cones") < closest(("#d55e00", "#8f8f00"), "all_cones") / 2
    assert closest(("#ff0000", "#767676"), "grey") < 8 < closest(("#ff0000", "#767676"), "all_cones")


@pytest.mark.parametrize("how", ["all_cones", "no_red_cones", "no_green_cones"])
def test_lines_can_be_told_apart(how): assert closest(PALETTE, how) > 15


@pytest.mark.parametrize("how", SEEN)
def test_kinds_can_be_told_apart_in_print_too(how): assert closest(KIND_COLOURS.values(), how) > 15
