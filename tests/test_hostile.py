"Hostile and odd input: a right result or the documented error with a message that helps; no pickle is loaded, nothing is written outside, no model's code runs, nothing oversized is read."
import gzip
import hashlib
import io
import json
import os
import pickle
import random
import re
import shutil
import subprocess
import sys
import tracemalloc
import warnings
import zipfile
from decimal import Decimal
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import HealthCheck, given, settings, strategies as st

from datacentric_w2s import artifacts as art, data
from datacentric_w2s.activations import activations, language_model
from datacentric_w2s.data import Question, choice_formatter, load_splits, load_texts, register_dataset, text_formatter, unlabelled
from datacentric_w2s.results import Cell, read_cell, write_cell
from datacentric_w2s.session import Plan, Session
from datacentric_w2s.sharing import read_shared

HERE = Path(__file__).parent
NAN = float("nan")


@pytest.fixture(autouse=True)
def registry(monkeypatch): monkeypatch.setattr(data, "REGISTRY", dict(data.REGISTRY))  # what a test registers is gone after it


def fuzz():
    "The fuzzer as a module, without coverage"
    import importlib.util
    if "w2s_fuzz" not in sys.modules:
        spec = importlib.util.spec_from_file_location("w2s_fuzz", HERE / "fuzz.py")
        sys.modules["w2s_fuzz"] = module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
    return sys.modules["w2s_fuzz"]


def offline(monkeypatch):
    "No hub; the constant is read anew at each call, and back afterwards"
    import huggingface_hub.constants
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)


def quietly(f, *args, **kwargs):
    "Result and warnings"
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        return f(*args, **kwargs), [str(w.message) for w in said]


def frame(label=(0, 1), **columns): return pd.DataFrame({k: pd.Series(list(v), dtype=object) for k, v in (dict(txt=["one", "two"], label=label) | columns).items()})


LABELS = [  # the value beside a 0, in a data frame or JSON -> what it becomes; None: refused
    (1, 1), (1., 1), (True, 1), (np.int8(1), 1), (np.uint64(1), 1), (np.float32(1), 1), (np.bool_(True), 1), (1.0000001, None), (np.nextafter(1, 2), None), (2, None), (-1, None), ("1", None), ("True", None),
    ("yes", None), ("", None), (None, None), (NAN, None), (pd.NA, None), (pd.NaT, None), (float("inf"), None), (1 + 0j, None), ([1], None), ({"a": 1}, None), (b"1", None), (10**400, None), (pd.Timestamp(1), None),
    (Decimal(1), 1), (Decimal("1.0"), 1), (Decimal("1.1"), None), (Decimal("NaN"), None), (Decimal("sNaN"), None)]


@pytest.mark.parametrize("value, becomes", LABELS, ids=[f"{type(v).__name__}-{str(v)[:12]}" for v, _ in LABELS])
def test_what_a_label_becomes(value, becomes):
    df = frame((0, value))
    if becomes is None:
        advice = r"drop the 1 rows without a label \(the first: row 1\)$" if data._missing(value) else "say what they mean, such as labels="
        with pytest.raises(ValueError, match=f"label must be 0 or 1, got .*; {advice}"): load_texts(df)
    else: assert dict(zip(*(getattr(load_texts(df), k).tolist() for k in ("txt", "y")))) == {"one": 0, "two": becomes}


CSV_LABELS = [("0", "1", (0, 1)), ("0.0", "1.0", (0, 1)), ("False", "True", (0, 1)), ("false", "TRUE", (0, 1)), ("1e0", "0", (1, 0)), ("0", "1.0000001", None), ("0", "", None), ("0", "NA", None), ("0", "True", None), ("no", "yes", None), ("0", "nan", None)]


@pytest.mark.parametrize("a, b, become", CSV_LABELS, ids=lambda v: str(v))
@pytest.mark.parametrize("kind", ["csv", "tsv"])
def test_what_a_label_of_a_csv_file_becomes(tmp_path, kind, a, b, become):
    "There all is text: a column of numbers, or of truth values, is read as such; a column that mixes them is not."
    sep = "," if kind == "csv" else "\t"
    (path := tmp_path / f"x.{kind}").write_text(f"txt{sep}label\none{sep}{a}\ntwo{sep}{b}\n")
    if become is None:
        with pytest.raises(ValueError, match="label must be 0 or 1, got"): load_texts(path)
    else: assert dict(zip(*(getattr(load_texts(path), k).tolist() for k in ("txt", "y")))) == dict(one=become[0], two=become[1])


def test_labels_say_what_values_mean():
    words = frame(("bad", "good"))
    assert sorted(load_texts(words, labels=dict(good=1, bad=0)).y) == [0, 1] and sorted(load_texts(words, labels=dict(good=True, bad=np.int64(0))).y) == [0, 1]
    assert load_texts(frame((True, False)), labels={1: 0, 0: 1}).y.sum() == 1
    for labels in ({}, dict(good=1), dict(good=2, bad=0), dict(good="1", bad=0), {0: 0, 1: 1}):
        with pytest.raises(ValueError, match="label must be 0 or 1"): load_texts(words, labels=labels)
    with pytest.raises(ValueError, match="label must be 0 or 1"): load_texts(frame(([1], "bad")), labels=dict(bad=0))


def test_labels_in_decimals_of_a_parquet_file(tmp_path):
    import pyarrow as pa
    import pyarrow.parquet as pq
    pq.write_table(pa.table(dict(txt=["one", "two"], label=pa.array([0, 1], pa.decimal128(5, 0)))), tmp_path / "x.parquet")
    texts = load_texts(tmp_path / "x.parquet")
    assert dict(zip(texts.txt, texts.y)) == dict(one=0, two=1)
    assert [text_formatter("{t}")(dict(t="a", label=Decimal(v))) for v in (1, 0, -1)] == [Question("a", correct=1), Question("a"), None]


def test_the_advice_on_labels_can_be_followed():
    "It names a value that stands there, and of rows without a label it says which to drop."
    df = frame((None, "good", "bad", NAN), txt="abcd")
    with pytest.raises(ValueError, match=r"in 4 of 4 rows; say what they mean, such as labels=\{'good': 1, ...: 0\}; drop the 2 rows without a label \(the first: row 0\)$"): load_texts(df)
    with pytest.raises(ValueError, match=r"got \[None, nan\] in 2 of 4 rows; drop the 2 rows without a label \(the first: row 0\)$"): load_texts(df, labels=dict(good=1, bad=0))
    assert sorted(load_texts(df.dropna(), labels=dict(good=1, bad=0)).y) == [0, 1]


@pytest.mark.parametrize("none", [None, np.nan, float("nan"), np.float32("nan"), pd.NA, pd.NaT], ids=lambda v: type(v).__name__ + str(v))
def test_a_missing_label_means_something_where_labels_say_so(none):
    "Whatever stands for it in the data and in `labels`"
    for label in ((1, None), (1., NAN)):
        for df in (frame(label), pd.DataFrame(dict(txt=["one", "two"], label=label))):
            texts = load_texts(df, labels={none: 0, 1: 1})
            assert dict(zip(texts.txt, texts.y)) == dict(one=1, two=0)
    assert text_formatter("{t}", labels={none: 0, 1: 1})(dict(t="a", label=NAN)) == Question("a")


def test_labels_that_are_no_dict():
    for labels in (lambda v: int(v == "good"), [0, 1], 1):
        with pytest.raises(ValueError, match="labels: got the .*, wanted a dict of a label to 0 or 1"): load_texts(frame(("bad", "good")), labels=labels)
        with pytest.raises(ValueError, match="labels: got the .*, wanted a dict"): text_formatter("{t}", labels=labels)


def test_what_labels_name_is_no_missing_label():
    fmt = text_formatter("{t}", labels={"": 0, "x": 1, -1: 1})
    assert [fmt(dict(t="a", label=v)) for v in ("", "x", -1, None)] == [Question("a"), Question("a", correct=1), Question("a", correct=1), None]


@pytest.mark.parametrize("value, said", [(b"a", "the bytes b'a'"), (["a"], "the list"), (1.5, "the float 1.5"), (True, "the bool True"), ({}, "the dict"), ("a\ud800", r"holds \\ud800, half a character \(a lone surrogate, which UTF-8 can't write\)")])
def test_a_text_that_is_none_is_named(value, said):
    with pytest.raises(ValueError, match=f"txt of row 1 (is|holds)? ?{said}" if "holds" not in said else f"txt of row 1 {said}"): load_texts(frame(txt=["one", value]))
    with pytest.raises(ValueError): unlabelled(["one", value])
    with pytest.raises(ValueError): load_texts(frame(question=["q", "r"], answer=["one", value]).drop(columns="txt"))


def test_a_missing_answer_is_no_answer_that_reads_nan():
    df = pd.DataFrame(dict(question=["Ice?", "Ice?", "Fire?", "Rain?"], answer=["cold", None, "hot", "dry"], label=[1, 0, 1, 0]))
    texts, said = quietly(load_texts, df, balance=False)
    assert not any("nan" in t or "None" in t for t in texts.txt) and len(texts) == 3 and any("1 of 4 rows dropped" in s for s in said)


def test_numbers_are_answers_as_they_are_written(tmp_path):
    (path := tmp_path / "sums.csv").write_text("question,answer,label\n1+1?,002,0\n1+1?,2,1\n")
    assert set(load_texts(path).txt) == {"Q: 1+1? A: 002", "Q: 1+1? A: 2"}
    assert set(load_texts([dict(question="1+1?", answer=2, label=1), dict(question="1+1?", answer=3, label=0)]).txt) == {"Q: 1+1? A: 2", "Q: 1+1? A: 3"}


def test_a_missing_group_is_an_error_and_no_group_of_its_own():
    for none in (None, NAN, pd.NA, ""):
        with pytest.raises(ValueError, match=r"group is missing in 1 of 2 rows \(first: row 1\); give each row one"): load_texts(frame(group=["a", none]))
    with pytest.raises(ValueError, match="group of row 1 holds"): load_texts(frame(group=["a", "\udfff"]))
    assert len(set(load_texts(frame(group=[[1], {"a": 2}])).group)) == 2


def test_any_row_that_is_left_out_is_told():
    n = 1000
    df = pd.DataFrame(dict(txt=[f"t{i}" for i in range(n)] + ["t1"], label=[i % 2 for i in range(n)] + [1]))
    assert any("1 of 1,001 rows dropped, because their text appears twice" in s for s in quietly(load_texts, df)[1])
    df = pd.DataFrame(dict(txt=[f"t{i}" for i in range(n)], label=[i % 2 for i in range(n - 1)] + [0]))
    assert any("998 of 1,000 rows kept, so that both labels have equally many" in s for s in quietly(load_texts, df)[1])


def test_any_registered_row_that_is_left_out_is_told():
    rows = [dict(t=f"t{i}", label=int(i < 700)) for i in range(1000)] + [dict(t="t1", label=1)]
    rows += [dict(t=None, label=1), dict(t=NAN, label=0), dict(t="u", label=None), dict(t=" ", label=0)]
    register_dataset("x", rows, text_formatter("{t}"), check=False, overwrite=True)
    texts, said = quietly(load_texts, "x")
    assert len(texts) == 600 and not {"None", "nan"} & set(texts.txt)
    assert [s for s in said if "x: " in s] == ["x: 4 of 1,005 rows dropped, as the formatter gives no text for them (a label or a field is missing)", "x: 1 of 1,001 rows dropped, because their text appears twice",
                                               "x: 600 of 1,000 rows kept, so that both labels have equally many; balance=False keeps all"]
    register_dataset("x", [dict(t=f"t{i}", label=i % 2) for i in range(1000)], text_formatter("{t}"), check=False, overwrite=True)
    assert not quietly(load_texts, "x")[1]


@pytest.mark.parametrize("none", [None, NAN, pd.NA, pd.NaT])
def test_formatters_leave_out_a_row_that_lacks_what_they_read(none):
    row = dict(a="one", b="two", group="g", label=1)
    fmts = text_formatter("{a} {b}", group="group"), choice_formatter("{a}", ("b", "label"), 0, group="group")
    for fmt in fmts:
        assert fmt(row) is not None and fmt(row | dict(a="")) is not None
        assert [fmt(row | {k: none}) for k in ("a", "b", "group", "label")] == [None] * 4
    assert choice_formatter("{a}", "b", 0)(dict(a="one", b=["x", none])) is None
    with pytest.raises(KeyError): fmts[0](dict(label=1))


@pytest.mark.parametrize("label", ["label", "good"])
def test_words_of_a_file_stay_words_also_with_a_formatter(tmp_path, label):
    "But for the column of the label"
    (path := tmp_path / "x.csv").write_text(f"t,n,{label}\n000,1e3,1.0\n007,True,0.0\n")
    register_dataset("x", path, text_formatter("{t} {n}", label), check=False, overwrite=True)
    texts = load_texts("x")
    assert dict(zip(texts.txt, texts.y)) == {"000 1e3": 1, "007 True": 0}
    register_dataset("x", path, choice_formatter("{t}", ("n", "t"), label), check=False, overwrite=True)
    assert set(load_texts("x").txt) == {"000 1e3", "000 000", "007 True", "007 007"}
    register_dataset("x", path, lambda r: Question(r["t"], correct=int(float(r[label]))), check=False, overwrite=True)
    assert set(load_texts("x").txt) == {"000", "007"}


@pytest.mark.parametrize("rows", [0, 1, -1, 1.5, True, "x"])
def test_rows_that_are_no_number_of_rows(rows):
    with pytest.raises(ValueError, match="rows: got .*wanted a whole number of at least 2"): load_texts(frame(), rows=rows)


@pytest.mark.parametrize("what", [5, None, b"x.csv", object(), [5, {}], [[1, 2], {}], {"txt": 1}, "", "a\0.csv", "~nobody/x.csv", "x" * 300 + ".csv", [], pd.DataFrame()], ids=lambda v: type(v).__name__ + str(v)[:8])
def test_what_is_no_data(what):
    for read in (load_texts, load_splits, unlabelled):
        if read is unlabelled and isinstance(what, list) and what: continue
        with pytest.raises((ValueError, OSError)): read(what)


def test_columns_that_are_ambiguous():
    twice = pd.DataFrame([["a", "b", 0], ["c", "d", 1]], columns=["txt", "txt", "label"])
    with pytest.raises(ValueError, match="column txt appears twice"): load_texts(twice)
    with pytest.raises(ValueError, match="column txt appears twice"): unlabelled(twice)
    with pytest.raises(ValueError, match="column review appears twice"): load_texts(twice.set_axis(["review", "review", "label"], axis=1), columns=dict(txt="review"))
    df = frame(review=["three", "four"])
    assert set(load_texts(df, columns=dict(txt="review")).txt) == {"three", "four"}
    assert set(load_texts(df.rename(columns=dict(txt="label", label="txt")), columns=dict(txt="label", label="txt")).txt) == {"one", "two"}


@pytest.mark.parametrize("head, row", [("txt,label,,", "{},{},,"), ("txt,label,x,x", "{},{},1,2"), ("x,txt,x,label", "1,{},2,{}")])
def test_a_column_that_nobody_reads_may_appear_twice(tmp_path, head, row):
    (path := tmp_path / "x.csv").write_text("\n".join([head, row.format("A", 1), row.format("B", 0)]) + "\n")
    spare = pd.read_csv(path, header=None, skiprows=1).set_axis(head.split(","), axis=1)
    for given_ in (path, spare):
        texts = load_texts(given_)
        assert dict(zip(texts.txt, texts.y)) == dict(A=1, B=0) and unlabelled(given_).tolist() == ["A", "B"]


def test_columns_of_other_libraries_are_lists_of_texts():
    import pyarrow as pa

    class Series:
        def __init__(self, values): self.values = values
        def to_pandas(self): return pd.Series(self.values)
    for column in (pa.array, lambda v: pa.chunked_array([v[:1], v[1:]]), Series, pd.Series):
        assert unlabelled(column(["one", "two"])).tolist() == ["one", "two"]
        with pytest.raises(ValueError, match="1 of 2 texts are empty or no strings"): unlabelled(column(["one", None]))
        with pytest.raises(ValueError, match="column question, answer, label is missing"): load_texts(column(["one", "two"]))


FILES = [  # name, content, texts or what is said
    ("bom.csv", b"\xef\xbb\xbftxt,label\na,1\nb,0\n", "ab"), ("bom.json", b'\xef\xbb\xbf[{"txt":"a","label":1},{"txt":"b","label":0}]', "ab"), ("crlf.csv", b"txt,label\r\na,1\r\nb,0\r\n", "ab"), ("cr.csv", b"txt,label\ra,1\rb,0\r", "ab"),
    ("na.csv", b"txt,label\nNA,1\nnull,0\nNaN,1\nNone,0\n", ["NA", "null", "NaN", "None"]), ("numbers.csv", b"txt,label\n007,1\n1e3,0\n", ["007", "1e3"]), ("truth.csv", b"txt,label\nTrue,1\nFALSE,0\n", ["True", "FALSE"]),
    ("nul.csv", b"txt,label\na\0b,1\n\"c\0\",0\n", ["a\0b", "c\0"]), ("lines.csv", b'txt,label\n"a\r\nb",1\n"c\nd",0\n', ["a\r\nb", "c\nd"]), ("dates.json", b'[{"txt":"2020-01-01","label":1},{"txt":"12","label":0}]', ["2020-01-01", "12"]),
    ("breaks.jsonl", '{"txt":"a\u2028\x85b","label":1}\r\n\n{"txt":"c","label":0}'.encode(), ["a\u2028\x85b", "c"]), ("columns.json", b'{"txt":{"0":"a","1":"b"},"label":{"0":0,"1":1}}', "ab"), ("lists.json", b'{"txt":["a","b"],"label":[0,1]}', "ab"),
    ("latin.csv", b"txt,label\na,0\ncaf\xe9,1\n", r"latin.csv: can't be read as csv: byte 0xe9 in line 3 \(byte 17 of the file\) is no UTF-8; save the file as UTF-8"), ("latin.jsonl", b'{"txt":"caf\xe9"}', "byte 0xe9 in line 1"),
    ("utf16.csv", "txt,label\na,1\n".encode("utf-16"), "byte 0xff in line 1"), ("cut.csv", b"txt,label\na,1\nb\xc3", "its last character is cut off in line 3"),
    ("shifted.csv", b"txt,label\na,1,3\nb,0,4\n", "Expected 2 fields in line 2, saw 3"), ("ragged.csv", b"txt,label\na,1\nb,0,4\n", "Expected 2 fields in line 3, saw 3"), ("short.csv", b"txt,label\na,1\nb\n", "label must be 0 or 1"),
    ("open.csv", b'txt,label\na,1\n"b,0\n', "EOF inside string"), ("twice.csv", b"txt,txt,label\na,b,1\nc,d,0\n", "column txt appears twice"), ("none.csv", b"\n\n", "No columns"), ("head.csv", b"txt,label\n", "no rows"),
    ("half.json", b'[{"txt":"\\ud800","label":1},{"txt":"b","label":0}]', r"txt of row 0 holds \\ud800, half a character"), ("words.json", b'[{"txt":"a","label":"1"},{"txt":"b","label":"0"}]', r"label must be 0 or 1, got \['1', '0'\]"),
    ("scalar.json", b"5", "wanted a list of rows"), ("null.json", b"null", "wanted a list of rows"), ("mixed.json", b'[{"txt":"a"},5]', "wanted a list of rows"), ("deep.json", b"[" * 200_000, "recursion"), ("key.json", b'[{"txt":"a","txt":"b"}]', "a key appears twice"),
    ("uneven.json", b'{"txt":{"0":"a","1":"b"},"label":{"0":0,"2":1}}', "different rows"), ("empty.json", b"[]", "no rows"), ("two.jsonl", b'{"txt":"a"}{"txt":"b"}', "line 1: Extra data"), ("cut.jsonl", b'{"txt":"a"}\n{"txt":', "line 2: "),
    ("digits.json", b'[{"txt":"a","label":' + b"1" * 5000 + b"}]", "digits"), ("no.csv.gz", b"abc", "Not a gzipped file"), ("cut.csv.gz", gzip.compress(b"txt,label\n" * 999)[:-9], "ended before the end-of-stream"), ("bad.csv.gz", gzip.compress(b"a" * 99)[:14] + b"\xff" * 20, "can't be read"),
    ("no.parquet", b"PAR1" * 9, "can't be read as parquet"), ("x.parquet.gz", gzip.compress(b"PAR1"), "can't be read as parquet")]


@pytest.mark.parametrize("name, content, wanted", FILES, ids=[n for n, _, _ in FILES])
def test_odd_files(tmp_path, name, content, wanted):
    (path := tmp_path / name).write_bytes(content)
    if isinstance(wanted, str) and len(wanted) > 2:
        with pytest.raises(ValueError, match=wanted): load_texts(path)
    else:
        texts, said = quietly(load_texts, path)
        assert sorted(texts.txt) == sorted(wanted) and not said


odd_text = st.text(st.one_of(st.characters(exclude_categories=()), st.sampled_from("\0\n\r\t,\"' \u200f\u202e\u0301\ufeff\u2028\x85\\")), max_size=8) | st.sampled_from(["NA", "nan", "null", "None", "1", "007", "1.50", "True", "-", "=1+1", "\u0301\u0301", "\u202e\u05d0"])
odd_label = st.sampled_from([0, 1, 0, 1, 0, 1, True, False, 1., 0., "1", "0", None, NAN, 2, 1.0000001, np.int8(1), [1]])
ODD = settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])


def expected(rows):
    "What has to come out of (text, label) rows, said without the library: the pairs that are kept, how many are not, or None for an error"
    if any(isinstance(l, (str, list, type(None))) or not (l == 0 or l == 1) for _, l in rows) or any(any("\ud800" <= c <= "\udfff" for c in t) for t, _ in rows): return None
    clean = [(t.strip(), int(l)) for t, l in rows if t.strip()]
    seen, kept = {}, []
    for t, l in clean: seen.setdefault(t, []).append(l)
    kept = [(t, ls[0]) for t, ls in seen.items() if len({*ls}) == 1]
    return kept if len({l for _, l in kept}) == 2 else None


@ODD
@given(st.lists(st.tuples(odd_text, st.one_of(st.sampled_from([0, 1, 0, 1, True, 1.]), odd_label)), min_size=1, max_size=8))
def test_any_rows_are_read_right_or_refused(rows):
    want = expected(rows)
    for given_ in ([dict(txt=t, label=l) for t, l in rows], pd.DataFrame(dict(txt=pd.Series([t for t, _ in rows], dtype=object), label=pd.Series([l for _, l in rows], dtype=object)))):
        try: texts, said = quietly(load_texts, given_, balance=False)
        except ValueError:
            assert want is None
            continue
        assert want is not None and sorted(zip(texts.txt, texts.y)) == sorted(want)
        assert bool(said) == (len(texts) < len(rows)), "rows were dropped without a warning, or a warning without reason"


def written_as(kind, rows):
    "A file's content, written without the library and without pandas"
    import csv
    if kind in ("csv", "tsv"):
        csv.writer(out := io.StringIO(newline=""), delimiter="," if kind == "csv" else "\t", quoting=csv.QUOTE_ALL, lineterminator="\n").writerows([("txt", "label"), *rows])
        return out.getvalue().encode()
    if kind == "parquet":
        import pyarrow as pa
        import pyarrow.parquet as pq
        pq.write_table(pa.table(dict(txt=[t for t, _ in rows], label=[l for _, l in rows])), out := io.BytesIO())
        return out.getvalue()
    lines = [json.dumps(dict(txt=t, label=l), ensure_ascii=i % 2 == 0) for i, (t, l) in enumerate(rows)]
    return ("\n".join(lines) if kind == "jsonl" else f"[{','.join(lines)}]").encode()


@pytest.mark.parametrize("kind", ["csv", "tsv", "json", "jsonl", "parquet"])
@settings(parent=ODD, max_examples=60)
@given(rows=st.lists(st.tuples(odd_text.filter(lambda t: t.strip() and not any("\ud800" <= c <= "\udfff" for c in t)), st.integers(0, 1)), min_size=2, max_size=6), packed=st.booleans())
def test_any_text_comes_back_from_a_file_as_it_was_written(tmp_path, kind, rows, packed):
    content = written_as(kind, rows)
    packed = packed and kind != "parquet"
    (path := tmp_path / (f"x.{kind}" + ".gz" * packed)).write_bytes(gzip.compress(content, 1) if packed else content)
    assert unlabelled(path, "txt").tolist() == [t for t, _ in rows]
    want = expected(rows)
    try: texts, said = quietly(load_texts, path, balance=False)
    except ValueError as e: assert want is None and "both 0 and 1 are needed" in str(e)
    else: assert sorted(zip(texts.txt, texts.y)) == sorted(want) and bool(said) == (len(texts) < len(rows))


def test_formatters_refuse_what_they_would_have_to_guess():
    for bad in (dict(prompt=5), dict(prompt="a", candidates="abc"), dict(prompt="a", candidates=("b", 5)), dict(prompt="a\ud800"), dict(prompt="a", correct=1.5), dict(prompt="a", correct="1"), dict(prompt="a", correct=NAN), dict(prompt="a", correct=[1])):
        with pytest.raises(ValueError): Question(**bad)
    fmt = text_formatter("{t}")
    assert [fmt(dict(t="a", label=v)) for v in (None, -1, NAN, pd.NA)] == [None] * 4
    for label in (1.0000001, "1", [1], np.array([1, 0])):
        with pytest.raises(ValueError, match="say what it means"): fmt(dict(t="a", label=label))
    fmt = choice_formatter("{t}", ("a", "b"))
    for label in (1.5, float("inf"), "x"):
        with pytest.raises(ValueError): fmt(dict(t="t", a="1", b="2", label=label))
    with pytest.raises(ValueError, match="half a character"): register_dataset("x", [dict(t="\ud800", label=1)] * 9, text_formatter("{t}"))


# sizes

@pytest.fixture
def small(monkeypatch): monkeypatch.setattr(data, "LARGEST", 1 << 20)


@pytest.mark.parametrize("suffix", ["csv", "json", "jsonl", "parquet", "tsv", "csv.gz"])
def test_a_terabyte_is_refused_before_it_is_read(tmp_path, suffix):
    (path := tmp_path / f"x.{suffix}").touch()
    os.truncate(path, 2**40)
    for read in (load_texts, load_splits, unlabelled):
        with pytest.raises(ValueError, match=r"x.*: has 1,099,511,627,776 bytes.*wanted at most 2,147,483,648; is it the right file\? If it is, hand on a `datasets.Dataset`, or raise"): read(path)


def test_a_packed_bomb_is_refused_before_it_is_unpacked(tmp_path, small):
    with gzip.open(tmp_path / "x.csv.gz", "wb") as f:
        f.write(b"txt,label\n")
        for _ in range(64): f.write(b"a,1\n" * (1 << 18))
    tracemalloc.start()
    with pytest.raises(ValueError, match="when unpacked, wanted at most 1,048,576"): load_texts(tmp_path / "x.csv.gz")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 16 << 20  # of 64 MiB


def test_a_parquet_bomb_is_refused_a_block_at_a_time(tmp_path, small):
    import pyarrow as pa
    import pyarrow.parquet as pq
    part = pa.table(dict(txt=["x" * 9999] * 500, label=[0, 1] * 250))
    with pq.ParquetWriter(path := tmp_path / "x.parquet", part.schema) as out:
        for _ in range(40): out.write_table(part)
    assert path.stat().st_size < 1 << 17  # of 200 MB
    with pytest.raises(ValueError, match="wanted at most 1,048,576"): load_texts(path)


@pytest.mark.parametrize("read, name", [(read_cell, "x.csv"), (Session.restore, "x"), (read_shared, "x.parquet")])
def test_files_of_ours_of_a_terabyte_are_refused(tmp_path, read, name):
    (path := tmp_path / name).touch()
    os.truncate(path, 2**40)
    with pytest.raises(ValueError): read(path)


# archives

def wheel_of(*members):
    "A zip file of (name or ZipInfo, content)"
    with warnings.catch_warnings(), zipfile.ZipFile(out := io.BytesIO(), "w") as z:
        warnings.simplefilter("ignore")  # of names that stand there twice
        for name, content in members: z.writestr(name, content, zipfile.ZIP_DEFLATED)
    return out.getvalue()


def link(name):
    info = zipfile.ZipInfo(name)
    info.external_attr = 0o120777 << 16
    return info


GOOD = ("toy/rows/a.txt", "a")
WHEELS = dict(
    parent=[("toy/rows/../../../evil", "x")], absolute=[("/evil", "x")], backslash=[("toy/rows/..\\..\\evil", "x")], drive=[("toy/rows/C:evil", "x")], link=[(link("toy/rows/l"), "/etc/passwd")], long=[("toy/rows/" + "x" * 300, "x")],
    twice=[("toy/rows/b", "1"), ("toy/rows/b", "2")], case=[("toy/rows/b", "1"), ("toy/rows/B", "2")], folder=[("toy/rows/b", "1"), ("toy/rows/b/c", "2")], bomb=[("toy/rows/big", b"\0" * (1 << 21))])


@pytest.mark.parametrize("kind", WHEELS)
def test_a_hostile_wheel_is_refused_whole(tmp_path, monkeypatch, kind):
    monkeypatch.setattr(art, "LARGEST", 1 << 20)
    (tmp_path / "w").write_bytes(wheel_of(GOOD, *WHEELS[kind]))
    with pytest.raises(zipfile.BadZipFile): art._extract(tmp_path / "w", ["toy/rows/", "/"], tmp_path / "cache/to")
    assert sorted(p.name for p in tmp_path.rglob("*")) == ["w"]


def names_that_leave(safe, n):
    "Of names made of dangerous pieces, those that pass as safe and lead out of the folder, as the system says"
    rng, pieces = random.Random(0), ["..", ".", "a", "", "/", "\\", "C:", "\0", "~", "a" * 250, "é", " ", "..\\", "con", "\u2215", "folderX"]
    names = ["/".join(rng.choice(pieces) for _ in range(rng.randrange(1, 6))) for _ in range(n)]
    return [name for name in names if safe(name) and not f"{os.path.realpath(f'/base/folder/{name}')}/".startswith("/base/folder/")]


def test_names_of_members_stay_inside_or_are_refused(tally): tally("hostile input", "names of archive members", 4000, names_that_leave(art._safe, 4000))


def test_a_folder_that_begins_like_ours_is_outside(): assert "../folderX" in names_that_leave(lambda name: name.startswith("../folderX"), 4000)


def test_a_member_that_lies_about_its_size_or_content_is_refused(tmp_path):
    content = bytearray(wheel_of(("toy/rows/a.txt", "a" * 5000)))
    at = content.rindex(b"PK\1\2") + 24  # the size in the directory
    content[at:at + 4] = (10).to_bytes(4, "little")
    (tmp_path / "w").write_bytes(content)
    with pytest.raises(zipfile.BadZipFile): art._extract(tmp_path / "w", ["toy/rows/"], tmp_path / "to")


def test_the_wheel_harness_catches_a_check_that_sleeps(tmp_path, monkeypatch):
    monkeypatch.setattr(art, "_safe", lambda name: True)
    with pytest.raises(AssertionError): fuzz().TARGETS["wheel"]("wheel", tmp_path).run(wheel_of(("toy/rows/../../../evil", "x")))


# models

@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    with pytest.MonkeyPatch.context() as m:
        offline(m)
        yield fuzz().tiny(tmp_path_factory.mktemp("models") / "tiny")


def variant(tiny, folder, **config):
    shutil.copytree(tiny, folder)
    said = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(said | config))
    return folder


def look(model, texts=("rain sun", "sun"), **k): return activations(list(texts), model, cache=False, progress=False, device="cpu", **k)


class Canary:
    "An object whose pickle, once read, makes a file"

    def __init__(self, path): self.path = str(path)

    def __reduce__(self): return open, (self.path, "w")


def pickled(file, canary):
    if file.suffix == ".npy": np.save(file, np.array([Canary(canary)], object), allow_pickle=True)
    elif file.suffix in (".bin", ".pt"):
        import torch
        torch.save({"weight": Canary(canary)}, file)
    else: file.write_bytes(pickle.dumps(Canary(canary)))


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.pt", "model.ckpt", "weights.npy", "model.joblib", "model.pkl"])
def test_a_pickle_among_a_models_files_is_never_read(tiny, tmp_path, name):
    "Alone it is refused with the way out, and beside safetensors nobody looks at it. The canary sings where it is read."
    pickled(tmp_path / name, canary := tmp_path / "sang")
    pickle.load(io.BytesIO(pickle.dumps(Canary(canary)))).close()
    assert canary.exists()
    canary.unlink()
    beside, alone = (variant(tiny, tmp_path / k) for k in ("beside", "alone"))
    before = language_model(beside).identity
    for folder in (beside, alone): shutil.copy(tmp_path / name, folder)
    (alone / "model.safetensors").unlink()
    assert (look(beside) == look(tiny)).all() and language_model(beside).identity == before
    with pytest.raises(ValueError, match=rf"weights are in {name}, and not in a .safetensors file. A pickle can run code.*save_pretrained\(new_folder\)"): look(alone)
    assert not canary.exists()


def test_safetensors_are_asked_for_also_of_the_hub(tiny, tmp_path):
    "Where the check of folders is passed by, transformers itself is told to take no pickle."
    lm = language_model(tiny)
    folder = variant(tiny, tmp_path / "late")
    pickled(folder / "pytorch_model.bin", tmp_path / "sang")
    (folder / "model.safetensors").unlink()
    from dataclasses import replace
    with pytest.raises(ValueError, match="its weights must be there as .safetensors"): look(replace(lm, source=str(folder)))
    assert not (tmp_path / "sang").exists()


CODE = "open({!r}, 'w').close()\nclass X: pass\nclass XConfig: pass\n"
AUTO = dict(AutoConfig="code_x.XConfig", AutoModel="code_x.X", AutoTokenizer=["code_x.X", "code_x.X"], AutoProcessor="code_x.X")


@pytest.mark.parametrize("where", ["config.json", "own type", "tokenizer_config.json", "preprocessor_config.json"])
def test_the_code_of_a_model_never_runs(tiny, tmp_path, where):
    "A known model is read by transformers' own code, whatever its files ask for; an unknown one is refused."
    folder = variant(tiny, tmp_path / "m", **dict(auto_map=AUTO) if where in ("config.json", "own type") else {}, **dict(model_type="x_own") if where == "own type" else {})
    (folder / "code_x.py").write_text(CODE.format(str(tmp_path / "sang")))
    if where.endswith("r_config.json"):
        path = folder / where
        path.write_text(json.dumps((json.loads(path.read_text()) if path.exists() else {}) | dict(auto_map=AUTO, tokenizer_class="X", processor_class="X")))
    try: assert (look(folder) == look(tiny)).all()
    except ValueError as e: assert "can't be loaded" in str(e)
    else: assert where != "own type"
    assert not (tmp_path / "sang").exists()


def test_a_folder_with_a_loading_script_is_no_data(tmp_path, monkeypatch):
    (tmp_path / "own").mkdir()
    (tmp_path / "own/own.py").write_text(CODE.format(str(tmp_path / "sang")))
    monkeypatch.chdir(tmp_path)
    for name in ("own", tmp_path / "own", tmp_path / "own/own.py", "own/own.py"):
        with pytest.raises((ValueError, OSError)): load_texts(name)
    assert not (tmp_path / "sang").exists()


def spoiled(folder, how):
    from safetensors.numpy import load_file, save_file
    w = load_file(path := folder / "model.safetensors")
    some = next(k for k in sorted(w) if "mlp" in k)
    if how == "missing": w.pop(some)
    elif how == "shape": w[some] = w[some][:1]
    else: w[some] = w[some] * np.nan
    save_file(w, path, metadata={"format": "pt"})


@pytest.mark.parametrize("how, said", [("missing", "weights are missing, such as layers.0.mlp.*drawn by chance"), ("shape", "of the shapes that its config.json says"), ("nan", "NaN or infinite")])
def test_weights_that_are_not_there_are_never_drawn_by_chance(tiny, tmp_path, how, said):
    spoiled(folder := variant(tiny, tmp_path / "m"), how)
    with pytest.raises(ValueError, match=said): look(folder)


def test_a_tokenizer_of_another_model_is_named(tiny, tmp_path):
    path = variant(tiny, tmp_path / "m") / "tokenizer.json"
    path.write_text(path.read_text().replace('"sun": 3', '"sun": 77').replace('"sun":3', '"sun":77'))
    with pytest.raises(ValueError, match=r"its tokenizer gives row 0 a token that the model doesn't have \(4 are known\)"): look(path.parent)


@pytest.mark.parametrize("name", ["config.json", "tokenizer.json", "tokenizer_config.json", "model.safetensors"])
def test_a_model_file_of_a_terabyte_is_refused(tiny, tmp_path, name):
    os.truncate(variant(tiny, tmp_path / "m") / name, 2**40)
    with pytest.raises(ValueError): look(tmp_path / "m")


def test_gguf_files_that_lie(tmp_path, monkeypatch):
    for content, said in ((b"", "is no GGUF"), (b"PK\3\4" * 9, "is no GGUF"), (b"GGUF" + b"\xff" * 20, "has GGUF version"), (b"GGUF\3\0\0\0" + b"\xff" * 16, "which don't fit into it")):
        (path := tmp_path / "m.gguf").write_bytes(content)
        with pytest.raises(ValueError, match=said): language_model(path)
    path.write_bytes(b"GGUF\3\0\0\0" + bytes(16))
    os.truncate(path, 2**40)
    monkeypatch.setattr(hashlib, "file_digest", lambda *_: pytest.fail("a terabyte was read"))
    with pytest.raises(ValueError): language_model(path)


@pytest.mark.parametrize("model", [5, None, b"x", "", "a\0b", "~nobody/model", "x" * 300, "../..", "a/b/c", "~nobody/m.gguf"])
def test_what_is_no_model(model, monkeypatch):
    offline(monkeypatch)
    with pytest.raises(ValueError): language_model(model)


ODD_TEXTS = ["rain\0sun", "\0", "\u202erain\u202c", "\u05d0\u05d1 rain", "e\u0301\u0301\u0301", "\ufeffrain", "rain\r\nsun", "\U0001f327", "rain " * 200_000, "r" * (1 << 20), "\u200b"]


def test_odd_texts_have_activations_of_their_own_and_the_same_from_the_cache(tiny, tmp_path):
    x, _ = quietly(activations, ODD_TEXTS, tiny, cache=tmp_path, progress=False, device="cpu")
    again, _ = quietly(activations, ODD_TEXTS[::-1], tiny, cache=tmp_path, progress=False, device="cpu")
    assert x.shape == (len(ODD_TEXTS), 8) and np.isfinite(x).all() and (again[::-1] == x).all()
    for i, t in enumerate(ODD_TEXTS): assert np.allclose(quietly(look, tiny, [t])[0], x[i], atol=1e-5)


@pytest.mark.parametrize("texts, said", [(["rain", "a\ud800"], r"row 1 .*holds a lone surrogate"), (["rain", None], "row 1 is None"), (["rain", b"x"], "row 1 is b'x'"), (["rain", 5], "row 1 is 5"), ([], "got none"), ("rain", "got one string"), (["rain", ""], "row 1 .*has no tokens")])
def test_texts_that_no_model_reads_are_named(tiny, texts, said):
    with pytest.raises(ValueError, match=said): look(tiny, texts) if isinstance(texts, list) else activations(texts, tiny, cache=False)


# no pickle, anywhere

GUARD = '''
import pickle, sys
seen = []
def hook(event, args):
    if event == "pickle.find_class": seen.append(args)
def forbidden(*a, **k): raise SystemExit("a pickle was loaded")
sys.addaudithook(hook)
import torch, transformers, datasets, pandas, numpy, pyarrow.parquet, sklearn, joblib
from datacentric_w2s import activations, artifacts, data, results, session, sharing
from datacentric_w2s.data import load_splits, load_texts, unlabelled
from datacentric_w2s.activations import make_problem
seen.clear()
class Forbidden(pickle.Unpickler):  # a class, since modules that are imported late inherit from it
    __init__ = forbidden
pickle.load = pickle.loads = forbidden
pickle.Unpickler = pickle._Unpickler = Forbidden
torch.load = joblib.load = forbidden
import importlib, pathlib
folder = pathlib.Path(sys.argv[1])
for p in sorted(folder.glob("file.*")): load_texts(p), unlabelled(p, "txt")
for model in (folder / "tiny", folder / "m.gguf"):
    texts = ["a b", "ab", "rain sun"]
    a = activations.activations(texts, model, cache=folder / "cache", progress=False, device="cpu")
    assert (a == activations.activations(texts, model, cache=folder / "cache", progress=False, device="cpu")).all()
    activations.activations(texts, model, cache=folder / "cache", out=folder / "out.npy", progress=False, device="cpu")
results.read_cell(folder / "cell.csv")
session.Session.restore(folder / "session").ask()
sharing.read_shared(folder / "shared.parquet")
load_texts("copa", rows=20), load_texts("openbookqa", rows=20)
print("seen", seen)
'''


def test_no_pickle_is_loaded_while_all_kinds_of_files_are_read(tiny, tmp_path):
    "With an audit hook on the finding of classes, and every door to pickle shut."
    f = fuzz()
    shutil.copytree(tiny, tmp_path / "tiny")
    for name, seed in (("gguf", "m.gguf"), ("session", "session"), ("shared", "shared.parquet"), ("cell", "cell.csv")):
        (at := tmp_path / "seeds" / name).mkdir(parents=True)
        seeds = f.TARGETS[name](name, at).seeds()
        if name == "session":
            t = f.TARGETS[name](name, at)
            t.put = lambda content, _: (tmp_path / "session").write_bytes(content) and tmp_path / "session"
            t.run(seeds[1])
        else: (tmp_path / seed).write_bytes(seeds[0][1:] if name == "shared" else seeds[0])
    for kind in ("csv", "tsv", "json", "jsonl", "parquet", "csv.gz"): (tmp_path / f"file.{kind}").write_bytes(f.TARGETS[kind](kind, tmp_path).seeds()[0])
    hostile_parquet(tmp_path / "file.own.parquet", tmp_path / "sang")
    run = subprocess.run([sys.executable, "-c", GUARD, str(tmp_path)], capture_output=True, text=True, env=os.environ | dict(HF_HUB_OFFLINE="1"), timeout=300)
    assert run.returncode == 0 and "seen []" in run.stdout, run.stdout + run.stderr[-3000:]
    assert not (tmp_path / "sang").exists()


def hostile_parquet(path, canary):
    "Text columns of an extension type whose definition is a pickle, as old versions of arrow read them"
    import pyarrow as pa
    import pyarrow.parquet as pq
    about = {b"ARROW:extension:name": b"arrow.py_extension_type", b"ARROW:extension:metadata": pickle.dumps(Canary(canary), 0)}
    schema = pa.schema([pa.field("txt", pa.string(), metadata=about), pa.field("label", pa.int64(), metadata=about)])
    pq.write_table(pa.table([["one", "two"], [0, 1]], schema=schema), path)


def test_the_package_names_no_way_to_load_a_pickle():
    "But one: the cluster's actors hand shards to one another in memory, through Ray; never from a file."
    found = {}
    for p in sorted((HERE.parent / "datacentric_w2s").glob("*.py")):
        for line in p.read_text(encoding="utf-8").splitlines():
            if re.search(r"pickle\.loads?\(|Unpickler|torch\.load|joblib\.load|allow_pickle=True|trust_remote_code=True|read_pickle|shelve|marshal|yaml\.load|\beval\(|\bexec\(", line): found.setdefault(p.stem, []).append(line.strip())
    found = {k: [l for l in v if ".eval()" not in l and not re.search(r"\w\.eval\(", l)] for k, v in found.items()}
    assert {k: len(v) for k, v in found.items() if v} == dict(cluster=1)


# fuzzing

FOUND = [  # (target, input that once broke a promise)
    ('csv.gz', b'\x1f\x8b\x08\x00'),
    ('csv.gz', b'\x1f\x8b\x08\x00\x00'),
    ('csv.gz', b'\x1f\x8b\x08\x00\x00\x00txt\x00'),
    ('gguf', b'GGUF\x03\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x10'),
    ('gguf', b'GGUF/\x00\x00\x00\x10\x00\x00\x00\x00\x00\x00\x00\x10'),
    ('gguf', b'GGUF\x03\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x10\x00\x00'),
    ('manifest', b'{"files": {"toy/rows/../.x": [1e999, ""]}}'),
    ('manifest', b'{"files": {"toy/rows/../../x": [1e999, ""]}}'),
    ('session', b'{"plan": {"sources": ["a", "b"], "policy": "kl_ucb", "reward": {"rule"z "warm'),
    ('session', b'{"plan": {"sources": ["a", "b"], "policy": "kl_ucb", "reward": {"rule": "warmup", "detector": {"how": "max_abs_cosine", "center": false, "jump": 1, "min_size": 1, "boundary": "<"}, "warmup": null, "order": "round robin", "rates": null}, "batch": 8, "horizon": 6, "sizes": null, "rows": null'),
    ('session', b'{"plan": {"sources": ["a", "b"], "policy": "batch_ucb", "reward": {"rule": "warmup", "detector": {"how": "max_abs_cosine", "center": false, "jump": 1, "min_size": 1, "boundary": "<"}, "warmup": null, "order": "round robin", "rates": null}, "batch": 8, "horizon": 6, "sizes": null, "rows": null, "costs": null, "fpr": 0.0, "divide": true, "densi'),
    ('cell', b'# {"dataset": "sciq", "seed": 0, "experiment": "mixing", "version": "", "ros": 0, "dtypes": {}, "sha256": "01ba4719c80b6fe911b091a7c05124b64eeece964e09c058ef8f9805daca546b"}\n\n'),
    ('cell', b'# {"dataset": "sciq", "seed": 0, "experime0nt": "mixing", "version": "", "ro999999999999999999999": 0, "dtypes": {}, "sha256": "01ba4719c80b6fe911b091a7c05124b64eeece964e09c058ef8f9805daca546b"}\n\n'),
    ('cell', b'# {"dataset": "sciq", "seed": 0, "experiment": "mixing", "version": "", "rows": 0, "dtypes": {"n": "int6etime64[us]"}, "sha256": "4c389992c34936f77daec5c522f262916ba1c78f3266b15b39238434bfd16c54"}\nn,share,how,ok,when\n'),
]


@pytest.mark.parametrize("name, content", FOUND, ids=[f"{i}-{n}" for i, (n, _) in enumerate(FOUND)])
def test_what_was_found_once_stays_mended(tmp_path, monkeypatch, name, content):
    offline(monkeypatch)
    t = fuzz().TARGETS[name](name, tmp_path)
    t.seeds()
    fuzz().tried(t, content)


RUNS = dict(zip(("model.safetensors", "config.json", "tokenizer.json", "tokenizer_config.json", "gguf", "command"), (15, 15, 15, 15, 20, 15)))  # the slow ones; 80 of each other


def targets(): return ["csv", "tsv", "json", "jsonl", "parquet", "csv.gz", "jsonl.gz", "cell", "session", "shared", "manifest", "wheel", *RUNS, "shard", "store"]


def test_all_targets_are_named(): assert sorted(targets()) == sorted(fuzz().TARGETS)


@pytest.mark.parametrize("name", targets())
def test_changed_inputs(name, tmp_path, tmp_path_factory, monkeypatch, tally, effort):
    "Seeds, and seeds changed by chance; the same each time."
    offline(monkeypatch)
    n, found = fuzz().without_coverage(name, tmp_path, int(RUNS.get(name, 80) * effort), 0, tmp_path_factory.mktemp("found"))
    tally("hostile input", f"{name}: seeds changed by chance", n, found)


def test_the_harness_finds_what_it_looks_for(tmp_path, tmp_path_factory, monkeypatch):
    def careless(path, recipe=None): return json.loads(Path(path).read_bytes().partition(b"\n")[0].removeprefix(b"# "))["rows"]
    monkeypatch.setattr(fuzz().results, "read_cell", careless)
    assert fuzz().without_coverage("cell", tmp_path, 60, 0, tmp_path_factory.mktemp("found"))[1]


@pytest.mark.xdist_group("fuzz")
def test_the_fuzzer_with_coverage(tmp_path, tally, effort):
    "The quick targets in the gate, each in a process of its own; --effort 10 and more takes those that run a model, too."
    pytest.importorskip("atheris")
    which, names = ("all", fuzz().TARGETS) if effort >= 10 else ("quick", fuzz().QUICK)
    run = subprocess.run([sys.executable, HERE / "fuzz.py", which, "--runs", str(int(40 * effort)), "--keep", tmp_path / "found"], capture_output=True, text=True, errors="replace", timeout=900 + 120 * effort, env=os.environ | dict(PYTHONHASHSEED="0"))
    said = run.stdout + run.stderr
    n = sum(map(int, re.findall(r"stat::number_of_executed_units:\s+(\d+)", said)))
    tally("hostile input", f"{len(names)} targets, sought with coverage (atheris)", n, re.findall(r"== \S+: ended with .*", said) and [said[-3000:]])
    assert len(re.findall(r"^Done \d+ runs", said, re.M)) == len(names) and run.returncode == 0, said[-2000:]


def test_a_try_that_breaks_in_two_ways_is_broken_once(tally, request):
    with pytest.raises(AssertionError, match="one: 2 of 2 failed"): tally("", "one", 2, ["a", "b", "c"])
    kept = request.node.user_properties.pop()[1]
    assert kept[2:4] == [2, 2]
