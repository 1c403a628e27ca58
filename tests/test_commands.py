"The three commands as a shell meets them: usage, exit codes, what goes to which stream, JSON; and that their options are the functions' own."
import inspect
import json
import os
import runpy
import signal
import subprocess
import sys
import warnings
from configparser import ConfigParser
from functools import wraps
from importlib import import_module
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import setuptools
from fastcore.docments import docments

from datacentric_w2s import commands, ranking
from datacentric_w2s.activations import make_problem
from datacentric_w2s.artifacts import ArtifactError
from datacentric_w2s.core import Splits, Texts
from datacentric_w2s.data import datasets, load_splits, load_texts
from datacentric_w2s.detection import detect, detect_overlap
from datacentric_w2s.probes import evaluate
from datacentric_w2s.ranking import rank_sources, text_teacher, try_sources
from datacentric_w2s.theory import Mixture, mixture_problem

ROOT = Path(__file__).parent.parent
RUN = dict(datasets=commands.w2s_datasets, detect=commands.w2s_detect, select=commands.w2s_select)
PARSERS = {k: commands._common(getattr(commands, f"_{k}_parser")()) for k in RUN}
each_command = pytest.mark.parametrize("name", RUN)
SELECT = ["a.csv", "b.csv", "--labelled", "own.csv"]


@pytest.fixture
def run(capsys):
    "Run a command in this process: exit code, stdout, stderr"
    def call(name, *words):
        try: code = RUN[name]([str(w) for w in words])
        except SystemExit as e: code = e.code
        return code, *capsys.readouterr()
    return call


@pytest.fixture
def fake(monkeypatch):
    "Put another function in the place of one, whose parameters and comments the options still show"
    def put(name, function, module=commands): monkeypatch.setattr(module, name, wraps(getattr(module, name))(function))
    return put


def raising(error):
    def fail(*_, **__): raise error
    return fail


def shell(name, *words, before="", **options):
    "Start a command as a process of its own, after some lines of Python; Ctrl-C reaches it also where a shell in the background has these tests ignore it"
    code = f"import signal, sys\nsignal.signal(signal.SIGINT, signal.default_int_handler)\nfrom datacentric_w2s import commands\n{before}\nsys.exit(commands.w2s_{name}())"
    return subprocess.Popen([sys.executable, "-c", code, *map(str, words)], stderr=subprocess.PIPE, text=True, cwd=ROOT, **options)


def strict(text):
    "JSON as its standard has it"
    def no(word): raise ValueError(f"{word} is no JSON")
    return json.loads(text, parse_constant=no)


def one_line(err, name): return len(err.splitlines()) == 1 and err.startswith(f"w2s-{name}: error: ")


def write(folder, name, labels, **columns):
    "A CSV file of labelled texts"
    pd.DataFrame(dict(txt=[f"text {i}" for i in range(len(labels))], label=labels) | columns).to_csv(folder / name, index=False)
    return folder / name


# options


@each_command
def test_every_option_says_what_it_is_and_what_it_takes(name):
    for a in PARSERS[name]._actions:
        assert a.help and len(a.help) > 8, a.dest
        if a.nargs != 0: assert a.choices or callable(a.type) and a.metavar, a.dest
    assert "Exit codes: 0 fine; 1 " in PARSERS[name].epilog and PARSERS[name].description


@pytest.mark.parametrize("name, function, options", [
    ("detect", load_splits, "preset sizes seed answers max_rows columns labels balance"), ("detect", make_problem, "weak strong device progress"), ("detect", detect_overlap, "t_hard t_overlap"),
    ("select", rank_sources, "budget batch policy reward detector costs fpr stop delta weak student preset column shared seed path progress"), ("select", try_sources, "rows student weak preset shared seed"),
    ("select", load_texts, "columns labels preset")])
def test_options_are_parameters(name, function, options):
    known, actions = inspect.signature(function).parameters, {a.dest: a for a in PARSERS[name]._actions}
    for o in options.split():
        assert actions[o].default == known[o].default, o
        if o not in ("balance", "progress", "path"): assert f"--{o.replace('_', '-')}" in actions[o].option_strings
    got = PARSERS[name].parse_args(["x"] if name == "detect" else SELECT)
    assert set(options.split()) <= set(commands._picked(got, function))


@pytest.mark.parametrize("name, function, option", [("detect", load_splits, "seed"), ("detect", detect_overlap, "t_overlap"), ("select", rank_sources, "fpr"), ("select", try_sources, "rows")])
def test_help_is_the_functions_own_comment(name, function, option):
    says = {a.dest: a.help for a in PARSERS[name]._actions}[option]
    assert says.startswith(docments(function)[option].replace("None", "left out"))
    default = inspect.signature(function).parameters[option].default
    assert (f"(default: {default})" in says) == (default is not None)


def test_comments_with_a_percent_sign_can_be_shown():
    def f(share=.5): "The comment below has a percent sign"
    parser = commands.ArgumentParser("f")
    with pytest.MonkeyPatch.context() as m:
        m.setattr(commands, "_says", lambda *_: "share of 100 % of all")
        commands._options(parser, f, share=commands._NUMBER)
    assert "share of 100 % of all (default: 0.5)" in parser.format_help()


# usage


@pytest.mark.parametrize("name, words, says", [
    ("datasets", ["--sauce"], "unrecognized arguments: --sauce"), ("datasets", ["--source", "shelf"], "invalid choice: 'shelf'"), ("datasets", ["--format", "xml"], "invalid choice: 'xml'"),
    ("detect", [], "required: DATA"), ("detect", ["sciq", "--seed", "one"], "invalid int value: 'one'"), ("detect", ["sciq", "--sizes", "1,2,x,4"], "wanted four numbers such as"),
    ("detect", ["sciq", "--labels", "good"], "wanted pairs such as good=1,bad=0"), ("detect", ["sciq", "--labels", "good=x"], "wanted pairs"), ("detect", ["sciq", "--columns", "review"], "wanted pairs such as txt=review"),
    ("detect", ["sciq", "--preset", "mine"], "invalid choice: 'mine'"), ("detect", ["sciq", "--out", "kinds.txt"], "wanted a file that ends in .csv"), ("detect", ["sciq", "--out", "no/such/kinds.csv"], "in a folder that exists"),
    ("detect", ["sciq", "--t-hard", "much"], "invalid float value"), ("select", ["a.csv", "b.csv"], "required: --labelled"), ("select", ["--labelled", "own.csv"], "required: [NAME=]FILE"),
    ("select", [*SELECT, "--reward", "calibrated"], "invalid choice"), ("select", [*SELECT, "--policy", "oracle"], "invalid choice"), ("select", [*SELECT, "--costs", "a=cheap"], "wanted pairs such as forum=1"),
    ("select", [*SELECT, "--out", __file__], "wanted a folder")])
def test_wrong_usage_leaves_with_2(run, name, words, says):
    code, out, err = run(name, *words)
    assert (code, out) == (2, "") and err.startswith(f"usage: w2s-{name}") and says in err.splitlines()[-1]


@each_command
def test_help_and_version(run, name):
    code, out, err = run(name, "--help")
    assert (code, err) == (0, "") and f"usage: w2s-{name}" in out and "--format {table,json}" in out and "130" in out
    code, out, err = run(name, "--version")
    assert (code, out.split()[0], err) == (0, f"w2s-{name}", "") and out.split()[1][0].isdigit()


@each_command
def test_help_loads_nothing_slow(name):
    before = "import atexit\natexit.register(lambda: print('loaded', *sorted({'torch', 'transformers', 'datasets', 'sklearn', 'scipy.stats', 'matplotlib'} & set(sys.modules)), file=sys.stderr))"
    for word in ("--help", "--no-such-option"):
        process = shell(name, word, before=before, stdout=subprocess.PIPE)
        assert process.communicate()[1].splitlines()[-1] == "loaded"
        assert process.returncode == (0 if word == "--help" else 2)


# errors


@pytest.mark.parametrize("labels, says", [([1] * 40, "all with the labels [1]; both 0 and 1 are needed"), ([0, 1, 2, 1], "label must be 0 or 1, got [2]"), (["good", "bad"] * 9, "label must be 0 or 1"),
                                          ([0, 1], "splits"), ([], "no rows")])
@pytest.mark.parametrize("name", ["detect", "select"])
def test_unusable_files_are_told_in_one_line(run, fake, tmp_path, name, labels, says):
    fake("text_view", lambda *_: None)  # no model is needed to find out
    own = write(tmp_path, "own.csv", labels)
    others = [write(tmp_path, f"{k}.csv", [0] * 5, txt=[f"{k} {i}" for i in range(5)]) for k in "ab"]
    if says == "splits" and name == "select": says = "2 questions for 5 folds"
    code, out, err = run(name, *([own] if name == "detect" else [*others, "--labelled", own]))
    assert (code, out) == (1, "") and one_line(err, name) and says.replace("splits", "") in err


@pytest.mark.parametrize("content, says", [(None, "no such file"), (b"", "the file is empty"), (b"txt,label\n\"open", "can't be read as csv"), (b"txt,mark\na,1\n", "column label is missing"), (b"\xff\xfe\x00", "can't be read as csv")])
def test_files_that_cannot_be_read_are_told_in_one_line(run, tmp_path, content, says):
    if content is not None: (tmp_path / "own.csv").write_bytes(content)
    code, out, err = run("detect", tmp_path / "own.csv")
    assert (code, out) == (1, "") and one_line(err, "detect") and says in err
    a = write(tmp_path, "a.csv", [0] * 5)
    if content is None or b"mark" not in content:  # a source needs no labels
        code, out, err = run("select", f"x={a}", tmp_path / "own.csv", "--labelled", a)
        assert (code, out) == (1, "") and one_line(err, "select") and says in err


def test_other_mistakes_are_told_in_one_line(run, tmp_path):
    a, b = (write(tmp_path, f"{k}.csv", [0, 1] * 5) for k in "ab")
    for words, says in (([a, "--labelled", a], "got a, wanted at least two"), ([a, a, "--labelled", a], "got a, a, wanted"), ([a, b, b, "--labelled", a], "got a, b, b, wanted"), ([a, b, "--labelled", "scq"], "did you mean sciq"), ([a, b, "--column", "words", "--labelled", a], "column words is missing")):
        code, out, err = run("select", *words)
        assert (code, out) == (1, "") and one_line(err, "select") and says in err, err
    code, out, err = run("detect", "scq")
    assert (code, out) == (1, "") and "did you mean sciq" in err


@pytest.mark.parametrize("error", [ValueError("a\nb"), ConnectionError("no hub"), FileNotFoundError("gone"), PermissionError(13, "denied"), ArtifactError("no wheel\nby hand: pip")])
def test_promised_errors_are_caught(run, fake, error):
    fake("load_splits", raising(error))
    code, out, err = run("detect", "sciq")
    assert (code, out) == (1, "") and err == f"w2s-detect: error: {' '.join(str(error).split())}\n"


@pytest.mark.parametrize("error", [KeyError("k"), TypeError("t"), ZeroDivisionError(), RuntimeError("r"), AssertionError()])
def test_our_own_faults_are_not_swallowed(run, fake, error):
    fake("load_splits", raising(error))
    with pytest.raises(type(error)): run("detect", "sciq")


# streams


def test_only_the_answer_is_on_stdout(run, fake):
    def chatty():
        print("loading")
        warnings.warn("old\nfile")
        return datasets()
    fake("datasets", chatty)
    shown = warnings.showwarning
    code, out, err = run("datasets", "--format", "json")
    assert code == 0 and len(strict(out)) == len(datasets())
    assert err == "loading\nw2s-datasets: warning: old file\n" and warnings.showwarning is shown


def test_nothing_is_on_stdout_where_there_is_no_answer(run, fake):
    def half(*_, **__):
        print("half way")
        raise ValueError("no")
    fake("load_splits", half)
    assert run("detect", "sciq") == (1, "", "half way\nw2s-detect: error: no\n")


def test_ctrl_c_leaves_with_130(run, fake):
    fake("load_splits", raising(KeyboardInterrupt))
    assert run("detect", "sciq") == (130, "", "w2s-detect: interrupted\n")


@pytest.mark.skipif(os.name == "nt", reason="signals and pipes as POSIX has them")
def test_a_real_ctrl_c():
    process = shell("detect", "sciq", before="import time\nfrom functools import wraps\n@wraps(commands.load_splits)\ndef wait(**_): print('ready', flush=True), time.sleep(60)\ncommands.load_splits = wait", stdout=subprocess.PIPE)
    assert process.stderr.readline() == "ready\n"
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=30)
    assert (process.returncode, out, err) == (130, "", "w2s-detect: interrupted\n")


@pytest.mark.skipif(os.name == "nt", reason="signals and pipes as POSIX has them")
@pytest.mark.parametrize("unbuffered", ["", "1"])
@pytest.mark.parametrize("words", [["--format", "json"], ["--help"]])
def test_a_reader_that_has_gone_away_is_no_error(words, unbuffered):
    reader, writer = os.pipe()
    os.close(reader)  # before a word is written, as `head` may do
    process = shell("datasets", *words, stdout=writer, env=os.environ | dict(PYTHONUNBUFFERED=unbuffered))
    os.close(writer)
    assert (process.communicate()[1], process.returncode) == ("", 0)


# answers


def test_datasets(run):
    code, out, err = run("datasets", "--format", "json")
    rows, table = strict(out), datasets()
    assert (code, err) == (0, "") and list(rows[0]) == list(table) and [r["name"] for r in rows] == table.name.tolist()
    assert all(type(r["rows"]) is int for r in rows if r["source"] == "embedded") and {r["rows"] for r in rows if r["source"] == "hub"} == {None}
    code, out, err = run("datasets", "--source", "hub")
    assert len(out.splitlines()) == 1 + (table.source == "hub").sum() and "<NA>" not in out and "nan" not in out


@pytest.mark.parametrize("value, plain", [(np.nan, None), (-np.inf, None), (np.float32(.5), .5), (np.int64(3), 3), (np.bool_(True), True), (pd.NA, None), (None, None), ("NaN", "NaN"), (True, True),
                                          (dict(a=[np.nan, (1, np.nan)]), dict(a=[None, [1, None]])), (pd.DataFrame(dict(x=[1., np.nan], n=pd.array([1, None], "Int64"), s=["a", None])), [dict(x=1., n=1, s="a"), dict(x=None, n=None, s=None)])])
def test_json_is_json(value, plain):
    got = strict(commands._shown(dict(v=value), "json"))["v"]
    assert got == plain and type(got) is type(plain)


def test_no_number_without_json_gets_through(monkeypatch):
    monkeypatch.setattr(commands, "_plain", lambda value: value)
    with pytest.raises(ValueError, match="JSON compliant"): commands._shown(dict(v=np.nan), "json")


def test_sizes_are_rows_or_shares():
    got = [commands._sizes(t) for t in ("300,450,100,150", ".3,.45,.1,.15")]
    assert got == [(300, 450, 100, 150), (.3, .45, .1, .15)] and type(got[0][0]) is int


@pytest.mark.parametrize("text, read", [("good=1,bad=0", dict(good=1, bad=0)), ("1=0,2=1", {"1": 0, "2": 1, 1: 0, 2: 1}), ("-1=0,1=1", {"-1": 0, "1": 1, -1: 0, 1: 1}), ("a=b=1", None)])
def test_labels(text, read):
    if read is None: pytest.raises(commands.ArgumentTypeError, commands._labels, text)
    else: assert commands._labels(text) == read


@pytest.mark.parametrize("labels, words", [([0, 1], []), ([1, 2], ["--labels", "1=0,2=1"]), ([-1, 1], ["--labels=-1=0,1=1"]), (["no", "yes"], ["--labels", "no=0,yes=1"]), ([False, True], []), ([1., 2.], ["--labels", "1=0,2=1"])])
@pytest.mark.parametrize("suffix", [".csv", ".jsonl", ".parquet"])
def test_labels_of_every_sort_reach_the_data(fake, run, tmp_path, labels, words, suffix):
    seen = []
    def stop(splits, **_): raise ValueError(f"seen {seen.append(splits)}")
    fake("make_problem", stop)
    df, file = pd.DataFrame(dict(txt=[f"text {i}" for i in range(60)], label=labels * 30)), tmp_path / f"own{suffix}"
    commands._save(df, file)
    code, _, err = run("detect", file, *words)
    assert code == 1 and "seen None" in err, err
    for _, t in seen[0].items(): assert [int(s.split()[1]) % 2 for s in t.txt] == t.y.tolist()


@pytest.fixture(scope="module")
def mixture():
    "A problem whose texts are the numbers of its rows, and the splits of these"
    problem = mixture_problem(Mixture.published(np.random.default_rng(0)), (300, 400, 200), seed=0)
    views = dict(weak=problem.weak, w2s=problem.w2s, val=problem.val, test=problem.test)
    return problem, Splits(**{k: Texts("mix", np.array([f"{k} {i}" for i in range(len(v))], object), v.y, [f"{k} {i}" for i in range(len(v))]) for k, v in views.items()})


@pytest.fixture
def on_mixture(fake, mixture):
    fake("load_splits", lambda name, **_: mixture[1])
    fake("make_problem", lambda splits, **_: mixture[0])
    return mixture[0]


def test_detect_says_what_the_functions_say(run, on_mixture):
    code, out, err = run("detect", "mix", "--format", "json", "--quiet")
    got, acc = strict(out), evaluate(on_mixture)
    part = detect(on_mixture, acc.pseudolabels)
    assert (code, err) == (0, "")
    assert [(r["model"], r["accuracy"], r["se"], r["test_rows"]) for r in got["accuracies"]] == [(m, getattr(acc, m), s, acc.n) for m, s in zip(("weak", "w2s", "strong"), acc.se)]
    assert [got[k] for k in ("density", "t_hard", "t_overlap", "rule")] == [part.density, part.t_hard, part.t_overlap, part.rule]
    assert got["pgr"] == (acc.pgr if np.isfinite(acc.pgr) else None) and {r["kind"]: r["rows"] for r in got["kinds"]} == part.counts.to_dict()


@pytest.mark.parametrize("words, options", [(["--detector", "published"], dict(jump=5, min_size=2, boundary="<=")), (["--detector", "published selection"], dict(how="max_dot", jump=5, min_size=2)), (["--how", "quantile"], dict(how="quantile")),
                                            (["--t-hard", ".5"], dict(t_hard=.5)), (["--t-hard", ".5", "--t-overlap", "0"], dict(t_hard=.5, t_overlap=0)), (["--detector", "published", "--how", "max_dot"], dict(how="max_dot", jump=5, min_size=2, boundary="<="))])
def test_detectors_options_arrive(run, on_mixture, words, options):
    part = detect_overlap(evaluate(on_mixture).pseudolabels, on_mixture.w2s.x_strong, **options)
    got = strict(run("detect", "mix", "--format", "json", *words)[1])
    assert [got[k] for k in ("t_hard", "t_overlap", "rule", "density")] == [part.t_hard, part.t_overlap, part.rule, part.density]


def test_a_write_that_fails_leaves_the_old_file_alone(tmp_path, monkeypatch):
    (path := tmp_path / "rows.csv").write_text("old")

    def half(df, path):
        path.write_text("half of")
        raise OSError("no space left")
    monkeypatch.setitem(commands._WRITERS, ".csv", half)
    with pytest.raises(OSError, match="no space"): commands._save(pd.DataFrame(), path)
    assert [(p.name, p.read_text()) for p in tmp_path.iterdir()] == [("rows.csv", "old")]


@pytest.mark.parametrize("suffix, read", [(".csv", pd.read_csv), (".jsonl", lambda p: pd.read_json(p, lines=True)), (".parquet", pd.read_parquet)])
def test_rows_are_written(run, on_mixture, tmp_path, suffix, read):
    file, acc = tmp_path / f"kinds{suffix}", evaluate(on_mixture)
    assert run("detect", "mix", "--out", file)[0] == 0
    rows, part = read(file), detect(on_mixture, acc.pseudolabels)
    assert list(rows) == ["row", "question", "kind", "confidence", "score", "pseudolabel", "gold", "txt"] and [p.name for p in tmp_path.iterdir()] == [file.name]
    assert rows.kind.tolist() == part.kind.tolist() and rows.txt.tolist() == [f"w2s {i}" for i in range(len(part))] and rows.pseudolabel.tolist() == acc.pseudolabels.label.tolist()
    assert np.allclose(rows.score, part.score, equal_nan=True) and rows.score.isna().any()


@pytest.mark.parametrize("weak, y, says", [(.52, [0, 1], ["not above chance (0.500)"]), (.85, [0, 1], []), (.85, [0, 0, 0, 1], []), (.8, [0, 0, 0, 1], ["not above chance (0.750)"])])
def test_a_teacher_at_chance_is_told(weak, y, says):
    acc = commands.evaluate.__annotations__["return"](weak, .9, .99, 100, se=(.03, .03, .01), se_gap=.03)
    told = commands._beware(acc, np.array(y))
    assert len(told) == len(says) and all(s in t for s, t in zip(says, told))
    blind = commands.evaluate.__annotations__["return"](.85, .8, .86, 100, se=(.03, .03, .01), se_gap=.03)
    assert ["PGR is undefined" in t for t in commands._beware(blind, np.array([0, 1]))] == [True]


@pytest.fixture
def market(fake, mixture, tmp_path):
    "Files of mixture rows, and models that look a row's features up by its name"
    w2s, test = mixture[0].w2s, mixture[0].test
    x = dict(weak={f"w2s {i}": v for i, v in enumerate(w2s.x_weak)} | {f"test {i}": v for i, v in enumerate(test.x_weak)},
             strong={f"w2s {i}": v for i, v in enumerate(w2s.x_strong)} | {f"test {i}": v for i, v in enumerate(test.x_strong)})
    view = lambda model=None, role="strong", preset="embedded": lambda texts: np.array([x[role][t] for t in texts])
    for module in (commands, ranking): fake("text_view", view, module)
    for name, rows in (("a", range(200)), ("b", range(200, 400))): pd.DataFrame(dict(text=[f"w2s {i}" for i in rows])).to_csv(tmp_path / f"{name}.csv", index=False)
    pd.DataFrame(dict(review=[f"test {i}" for i in range(len(test))], good=np.where(test.y == 1, "yes", "no"))).to_csv(tmp_path / "own.csv", index=False)
    own = Texts("own", np.array([f"test {i}" for i in range(len(test))], object), test.y, np.arange(len(test)))
    return tmp_path, view, own


MINE = ["--columns", "txt=review,label=good", "--labels", "yes=1,no=0", "--quiet"]


def test_select_says_what_the_functions_say(run, market):
    folder, view, _ = market
    words = [folder / "a.csv", f"other={folder / 'b.csv'}", "--labelled", folder / "own.csv", *MINE, "--budget", 120, "--batch", 10, "--rows", 90, "--seed", 3]
    code, out, err = run("select", *words, "--format", "json", "--out", folder / "out")
    got = strict(out)
    with pytest.warns(UserWarning, match="rows kept, so that both labels"): own = load_texts(folder / "own.csv", columns=dict(txt="review", label="good"), labels=dict(yes=1, no=0))
    sources = dict(a=folder / "a.csv", other=folder / "b.csv")
    teacher = text_teacher(own, view(role="weak"))
    answer = rank_sources(sources, teacher, view(), budget=120, batch=10, seed=3, progress=False)
    both = try_sources(sources, own, view(), rows=90, weak=view(role="weak"), seed=3)
    assert code == 0 and len(err.splitlines()) == 1 and err.startswith("w2s-select: warning: own: ") and "rows kept" in err
    assert got["sources"] == strict(json.dumps(commands._plain(answer.table))) and got["known_best"] == answer.best and got["remarks"] == list(answer.remarks)
    assert got["tried"] == commands._plain(both) and got["teacher"] == [dict(accuracy=teacher.accuracy, se=teacher.se, labelled=teacher.n, at_chance=teacher.at_chance)]
    assert sorted(p.name for p in (folder / "out").iterdir()) == ["rows.csv", "table.csv", "tried.csv"]
    rows = pd.read_csv(folder / "out" / "rows.csv")
    files = dict(a=pd.read_csv(folder / "a.csv").text, other=pd.read_csv(folder / "b.csv").text)
    labels = teacher([files[s][r] for s, r in zip(rows.source, rows.row)])
    assert len(rows) == 120 and np.allclose(rows.p, labels.p) and not rows.duplicated(["source", "row"]).any()


@pytest.mark.parametrize("by, keys", [("overlap", {"known_best", "teacher", "sources", "remarks"}), ("trying", {"tried", "remarks"}), ("both", {"known_best", "teacher", "sources", "tried", "remarks"})])
def test_by(run, market, by, keys):
    folder = market[0]
    words = [folder / "a.csv", folder / "b.csv", "--labelled", folder / "own.csv", *MINE, "--budget", 60, "--batch", 5, "--rows", 60, "--by", by]
    assert set(strict(run("select", *words, "--format", "json")[1])) == keys
    code, out, _ = run("select", *words)
    assert code == 0 and all(f"\n{k}\n" in out for k in keys & {"teacher", "sources", "tried"}) and "nan" not in out.lower()


@pytest.mark.parametrize("words, says", [(["--budget", "20"], "the warm-up alone takes"), (["--costs", "a=1"], "got prices for ['a']"), (["--delta", "2"], "wanted a probability"), (["--seed", "-1"], "seed"), (["--batch", "0"], "batch: got 0")])
def test_selects_refusals(run, market, words, says):
    folder = market[0]
    code, out, err = run("select", folder / "a.csv", folder / "b.csv", "--labelled", folder / "own.csv", *MINE, "--by", "overlap", *words)
    assert (code, out) == (1, "") and says in err.splitlines()[-1] and err.splitlines()[-1].startswith("w2s-select: error: ")


def test_select_goes_on_from_its_session(run, market):
    folder = market[0]
    words = [folder / "a.csv", folder / "b.csv", "--labelled", folder / "own.csv", *MINE, "--by", "overlap", "--batch", 10, "--format", "json"]
    once = strict(run("select", *words, "--budget", 120)[1])
    strict(run("select", *words, "--budget", 80, "--path", folder / "session")[1])
    assert strict(run("select", *words, "--budget", 120, "--path", folder / "session")[1]) == once


def test_progress_is_on_stderr_unless_quiet(run, market):
    folder = market[0]
    words = [folder / "a.csv", folder / "b.csv", "--labelled", folder / "own.csv", *MINE[:-1], "--by", "overlap", "--budget", 60, "--batch", 10]
    code, out, err = run("select", *words)
    assert code == 0 and "60/60" in err and "60/60" not in out
    assert "60/60" not in run("select", *words, "--quiet")[2]


# packaging


def test_the_commands_are_registered(monkeypatch):
    said = {}
    monkeypatch.setattr(setuptools, "setup", lambda **k: said.update(k))
    runpy.run_path(str(ROOT / "setup.py"))
    scripts = dict(s.split("=") for s in said["entry_points"]["console_scripts"])
    assert list(scripts) == ["w2s-datasets", "w2s-detect", "w2s-select"]
    for name, place in scripts.items():
        module, function = place.split(":")
        assert getattr(import_module(module), function) is RUN[name.removeprefix("w2s-")]
    ini = ConfigParser(delimiters=["="])
    ini.read(ROOT / "settings.ini", encoding="utf-8")
    assert ini["DEFAULT"]["console_scripts"].split() == said["entry_points"]["console_scripts"]
