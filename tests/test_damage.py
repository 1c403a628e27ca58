"Damage to everything that is stored: it is noticed and the result is right, or it is refused, or it changes nothing. Never another result, another error, or no end."
import hashlib
import json
import os
import warnings
import zipfile
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from damage import Record, broken, clear, contents_of, odd_things, put, restored, verdict
from safetensors.numpy import load_file, save
from test_results import measure
from test_session import buy, plan_of
from test_sharing import check_same, make

from datacentric_w2s import activations as A
from datacentric_w2s import artifacts as art
from datacentric_w2s import session as S
from datacentric_w2s.cluster import detect_ranges
from datacentric_w2s.detection import Rules
from datacentric_w2s.results import collect, grid, run_cells
from datacentric_w2s.rewards import REWARDS, Reward
from datacentric_w2s.session import Session
from datacentric_w2s.sharing import read_shared, write_shared


@pytest.fixture(autouse=True)
def safe(monkeypatch, tmp_path):
    "Nothing waits for the disk, and nothing outside the test's folder is replaced, whatever a link says"
    move = os.replace

    def inside(a, b, **k):
        assert os.path.realpath(os.path.dirname(b)).startswith(os.path.realpath(tmp_path)), f"{b} would be replaced"
        return move(a, b, **k)
    monkeypatch.setattr(os, "replace", inside)
    monkeypatch.setattr(os, "fsync", lambda fd: None)


def try_all(record, path, restore, act, right, names, errors=(), damages=(), must=False, what=""):
    "Damage a file in each way, and enter what the call makes of it; a damage is a content, or a function that does it"
    for name, damage in damages:
        restore()
        if callable(damage):
            clear(path)
            damage()
        else: put(path, damage)
        record.add(f"{what}{path.name}: {name}", verdict(act, right, names, errors), must)


def changes(path, good, **options): return ((k, v) for k, v in broken(good, **options) if v != good)


# --- activations: shards and their store
WIDTH = 5
TEXTS = [f"a text, the {i}th" for i in range(24)]


def value(text): return np.frombuffer(hashlib.sha256(text.encode()).digest()[:4 * WIDTH], np.uint8)[:WIDTH].astype(np.float32) / 7


def compute(texts, keys, rows):
    "Stands for a model: shards of 8 texts"
    for i in range(0, len(texts), 8): yield A.Shard(rows[i:i + 8], keys[i:i + 8], texts[i:i + 8], 0), np.stack([value(t) for t in texts[i:i + 8]])


def read_store(store, texts=TEXTS):
    sheet = A._Sheet(len(texts))
    A._through(store, texts, A._keys(texts), list(range(len(texts))), sheet, compute)
    return sheet.x


def right_rows(x, texts=TEXTS): return x.dtype == np.float32 and np.array_equal(x, np.stack([value(t) for t in texts]))


@pytest.fixture
def store(tmp_path):
    "A store of three shards, the files in it, and a function that puts them back"
    s = A.Store(tmp_path / "cache" / "toy-2-last-float32-0", dict(format=1, model="toy", layer=2), WIDTH)
    assert right_rows(read_store(s))
    files = contents_of(s.folder)
    return s, files, lambda: restored(s.folder, files)


def shard_of(store): return sorted(store.folder.glob("*.safetensors"))[1]


def test_activation_shards(store, effort, tally):
    s, files, restore = store
    path, record = shard_of(s), Record()
    run = dict(restore=restore, act=lambda: read_store(s), right=right_rows, names=[path.name])
    try_all(record, path, damages=changes(path, files[path.name], effort=effort, cuts=150, flips=800), **run)
    try_all(record, path, damages=odd_things(path), must=True, **run)
    assert record.count("noticed") > .9 * len(record.seen)
    tally("damage", "activation shards: cut, flipped, zeroed, swapped, lost, or no file", len(record.seen), record.failed)


def shard(store, keys, x, **more):
    "A shard with right checksums, whatever is in it"
    about = dict(store=store.key, keys_sha256=A._checksum(keys), x_sha256=A._checksum(x)) | more
    return save(dict(keys=np.ascontiguousarray(keys), x=np.ascontiguousarray(x)), metadata={k: v for k, v in about.items() if v is not None})


def wrong_shards(store, keys, x):
    "Shards whose checksums are right, and whose content is not"
    nan, inf, low = (x.copy() for _ in range(3))
    nan[3, 1], inf[0, 0], low[-1, -1] = np.nan, np.inf, -np.inf
    for k, v in dict(float16=x.astype(np.float16), float64=x.astype(np.float64), int32=x.astype(np.int32), bits=x.view(np.int32), bool=x > 1, uint8=x.astype(np.uint8)).items(): yield f"x as {k}", shard(store, keys, v)
    for k, v in dict(narrow=x[:, :-1], wide=np.hstack([x, x[:, :1]]), short=x[:-1], long=np.vstack([x, x[:1]]), turned=x.T, flat=x.ravel(), deep=x[..., None], empty=x[:0]).items(): yield f"x {k}", shard(store, keys, v)
    for k, v in dict(NaN=nan, infinite=inf, least=low).items(): yield f"x {k}", shard(store, keys, v)
    twice = keys.copy()
    twice[5] = twice[2]
    for k, v in dict(signed=keys.view(np.int8), words=keys.view(np.uint16), short=keys[:, :-1], flat=keys.ravel(), fewer=keys[:-1], none=keys[:0], twice=twice).items(): yield f"keys {k}", shard(store, v, x)
    swapped = keys[[1, 0, *range(2, len(keys))]]
    yield "keys of two rows swapped", shard(store, swapped, x, keys_sha256=A._checksum(keys))
    yield "two rows swapped", shard(store, keys, x[[1, 0, *range(2, len(x))]], x_sha256=A._checksum(x))
    yield "no checksum", shard(store, keys, x, x_sha256=None)
    yield "no keys", save(dict(x=x), metadata=dict(store=store.key, x_sha256=A._checksum(x)))
    yield "no x", save(dict(keys=keys), metadata=dict(store=store.key, keys_sha256=A._checksum(keys)))
    yield "no notes", save(dict(keys=keys, x=x))
    for k, recipe in dict(format=0, layer=3, model="another").items(): yield f"of a store with {k} = {recipe!r}", shard(A.Store(store.folder, store.recipe | {k: recipe}, WIDTH), keys, x)


def test_shards_with_right_checksums_and_wrong_content(store, tally):
    s, files, restore = store
    path, record = shard_of(s), Record()
    held = load_file(path)
    assert shard(s, **held)
    run = dict(restore=restore, act=lambda: read_store(s), right=right_rows, names=[path.name])
    try_all(record, path, damages=wrong_shards(s, held["keys"], held["x"]), must=True, **run)
    try_all(record, path, damages=[("more tensors", save(held | dict(more=np.arange(9)), metadata=dict(store=s.key, **{f"{k}_sha256": A._checksum(v) for k, v in held.items()})))], **run)
    tally("damage", "activation shards: another dtype, shape, order, store or format, with right checksums", len(record.seen), record.failed)


def test_shards_that_change_places(store, tmp_path, tally):
    s, files, restore = store
    other = A.Store(tmp_path / "cache" / "other", s.recipe | dict(layer=3), WIDTH)
    read_store(other)
    record, (a, b, c) = Record(), sorted(s.folder.glob("*.safetensors"))

    def swap(p, q):
        held = p.read_bytes(), q.read_bytes()
        put(p, held[1]), put(q, held[0])
    moves = dict(swapped=lambda: swap(a, c), swapped_with_another_stores=lambda: swap(a, other.folder / a.name), copied=lambda: put(s.folder / "copy.safetensors", a.read_bytes()),
                 all_of_another_store=lambda: [put(p, (other.folder / p.name).read_bytes()) for p in (a, b, c)], all_lost=lambda: [p.unlink() for p in (a, b, c)],
                 everything_of_another_store=lambda: restored(s.folder, contents_of(other.folder)), a_link_to_its_neighbour=lambda: (b.unlink(), b.symlink_to(a)),
                 no_store=lambda: [clear(p) for p in s.folder.iterdir()], strangers=lambda: [put(s.folder / n, b"x") for n in ("x", "x.npy", ".x", "x.safetensors.bak")])
    for name, move in moves.items():
        restore()
        move()
        record.add(name, verdict(lambda: read_store(s), right_rows, [a.name, b.name, "copy.safetensors", "manifest.json"]))
        record.add(f"{name}, the other store", verdict(lambda: read_store(other), right_rows, [a.name]))
        record.add(f"{name}, read again", verdict(lambda: read_store(s), right_rows, []))
    tally("damage", "activation shards: swapped within a store and between stores, copied, lost", len(record.seen), record.failed)


@pytest.mark.parametrize("taken", ["a file", "a folder", "a full folder"])
def test_a_damaged_shard_is_set_aside_whatever_lies_there(store, taken):
    s, files, restore = store
    path = shard_of(s)
    for name, damage in [("content", lambda: put(path, b"x")), *odd_things(path)]:
        restore()
        aside = path.with_suffix(".unusable")
        if taken == "a file": put(aside, b"before")
        else: aside.mkdir()
        if taken == "a full folder": put(aside / "x", b"before")
        clear(path)
        damage()
        assert verdict(lambda: read_store(s), right_rows, [path.name]) == "noticed", name
        assert len(list(s.folder.glob("*.unusable*"))) == 1  # no more than one is kept of each
        assert load_file(path).keys() == {"keys", "x"}


def test_the_manifest_of_a_store(store, effort, tally):
    s, files, restore = store
    path, record, more = s.folder / "manifest.json", Record(), [*TEXTS, "one more"]
    good = json.loads(files["manifest.json"])
    right = lambda x: right_rows(x, more) and {k: json.loads(path.read_text())[k] for k in ("key", "recipe")} == {k: good[k] for k in ("key", "recipe")}
    run = dict(restore=restore, act=lambda: read_store(s, more), right=right, names=["manifest.json"])
    try_all(record, path, damages=changes(path, files["manifest.json"], effort=effort, cuts=30, flips=150), **run)
    foreign = [good | dict(key="0" * 64), good | dict(recipe=good["recipe"] | dict(format=0)), A.Store(s.folder, good["recipe"] | dict(layer=9), WIDTH).__dict__ | dict(folder=""), {}, [], None, 1, "x", [good], {k: [] for k in good}]
    try_all(record, path, damages=[(f"foreign {i}", json.dumps(v).encode()) for i, v in enumerate(foreign)], must=True, **run)
    try_all(record, path, damages=odd_things(path), must=True, **run)
    tally("damage", "activation store: its manifest damaged, foreign, or no file", len(record.seen), record.failed)


def test_an_error_of_the_output_sets_no_shard_aside(store):
    "A full disk where the rows go to says nothing of the shards that they come from"
    s, files, _ = store

    class Full(A._Sheet):
        def put(self, rows, x): raise OSError(28, "No space left on device", "x.npy")
    with pytest.raises(OSError, match="No space left"): A._through(s, TEXTS, A._keys(TEXTS), list(range(len(TEXTS))), Full(len(TEXTS)), compute)
    assert contents_of(s.folder) == files and not list(s.folder.glob("*.unusable"))


@pytest.mark.parametrize("number", [24, 13, 12])
def test_what_the_process_lacks_is_no_damage(store, monkeypatch, number):
    "Too many open files, no right to read, no memory: told as it is, and the shards stay"
    s, files, _ = store

    def refuse(path): raise OSError(number, os.strerror(number), str(path))
    monkeypatch.setattr(A, "plain_file", refuse)
    with pytest.raises(OSError, match=os.strerror(number)): read_store(s)
    assert contents_of(s.folder) == files


def test_rows_in_a_file_are_made_anew(store, tmp_path, effort, tally, monkeypatch):
    "A file given with `out` has no checksum, and is nowhere read: the same call makes it anew"
    s, _, _ = store
    path, record = tmp_path / "x.npy", Record()
    monkeypatch.setattr(A, "language_model", lambda m: m)
    monkeypatch.setattr(A, "_store", lambda root, look: s)
    lm = A.LanguageModel("toy", "", None, None, "toy", 2, WIDTH, None, "last")
    act = lambda: A.activations(TEXTS, lm, layer=2, pooling="last", out=path, progress=False)
    act()
    good = path.read_bytes()
    run = dict(restore=lambda: clear(path), act=act, right=lambda x: right_rows(np.array(x)) and path.read_bytes() == good, names=["x.npy", "zero", tmp_path.name], errors=OSError)
    try_all(record, path, damages=changes(path, good, effort=effort, cuts=10, flips=10), **run)
    try_all(record, path, damages=odd_things(path), **run)
    tally("damage", "activations in a file of one's own: made anew, or refused where no file can be put", len(record.seen), record.failed)


# --- artifacts
def make_wheel(path, name="toy"):
    path.parent.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(path, "w") as z:
        for member, content in dict(a="ice is cold\n" * 40, b="fire is hot\n" * 30).items(): z.writestr(zipfile.ZipInfo(f"{name}_data/rows/{member}.txt"), f"{name} {content}")
        z.writestr(zipfile.ZipInfo(f"{name}_data/other/c.txt"), f"{name} water is wet")
    return path


@pytest.fixture
def toys(tmp_path, monkeypatch):
    "Two made-up artifacts of two wheels in a cache of their own; there is no network"
    monkeypatch.setenv("DATACENTRIC_W2S_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(art, "_download", lambda a, tmp: (_ for _ in ()).throw(art._error(a, "there is no network")))
    out = []
    for name in ("toy", "foe"):
        wheel = make_wheel(tmp_path / "cache" / "wheels" / f"{name}_data-1.0-py3-none-any.whl", name)
        out.append(art.Artifact(name, f"{name}-data", "1.0", hashlib.sha256(wheel.read_bytes()).hexdigest(), (f"{name}_data/rows/",), 1000, "CC0-1.0"))
    return out


def files_of(folder): return {p.name: p.read_bytes() for p in sorted(folder.iterdir())}


def test_extracted_files_of_an_artifact(toys, effort, tally):
    a, foe = toys
    path, want = art.artifact(a), files_of(art.artifact(a))
    folder, foes = art._folder(a), contents_of(art._folder(foe)) or contents_of(art.artifact(foe).parents[1])
    files, record = contents_of(folder), Record()
    file, manifest = path / "a.txt", folder / "manifest.json"
    run = dict(restore=lambda: restored(folder, files), act=lambda: art.artifact(a), right=lambda p: p == path and files_of(p) == want, names=["a.txt", "b.txt", "manifest.json", "toy_data/rows/"])
    try_all(record, file, damages=changes(file, file.read_bytes(), effort=effort, cuts=60, flips=200), must=True, **run)
    tally_of = len(record.seen)
    try_all(record, manifest, damages=changes(manifest, manifest.read_bytes(), effort=effort, cuts=60, flips=250), **run)
    said = json.loads(files["manifest.json"])
    name, (size, sha) = next(iter(said["files"].items()))
    other = lambda **k: json.dumps(said | k).encode()
    wrong = dict(wheel=other(wheel="foe-data"), version=other(version="0.9"), sha256=other(sha256="0" * 64), files=other(files={}), none=other(files=None), rows=other(files=[]), foreign=foes["manifest.json"],
                 less=other(files={name: [size, sha]}), more=other(files=said["files"] | {f"{name}.more": [1, sha]}), out=other(files=said["files"] | {"toy_data/rows/../../../../x": [1, sha]}),
                 size=other(files=said["files"] | {name: [float("inf"), sha]}), text=other(files=said["files"] | {name: ["x", sha]}), flat=other(files=said["files"] | {name: sha}),
                 long=other(files=said["files"] | {"toy_data/rows/" + "x" * 300: [1, sha]}), null=other(files=said["files"] | {"toy_data/rows/\0": [1, sha]}), list=b"[]", deep=b"[" * 100_000)
    try_all(record, manifest, damages=wrong.items(), must=True, **run)
    assert tally_of < len(record.seen)
    tally("damage", "artifacts: an extracted file or the manifest damaged, foreign, or of another version", len(record.seen), record.failed)


def test_what_else_may_lie_in_an_artifacts_folder(toys, tally):
    a, foe = toys
    path, folder, record = art.artifact(a), art._folder(a), Record()
    want, files, foes = files_of(path), contents_of(folder), files_of(art.artifact(foe))
    file = path / "a.txt"
    run = dict(restore=lambda: restored(folder, files), act=lambda: art.artifact(a), right=lambda p: p == path and files_of(p) == want, names=["a.txt", "b.txt", "manifest.json", "more.txt", "more", "rows"])
    for target in (file, folder / "manifest.json"): try_all(record, target, damages=odd_things(target), must=True, **run)
    moves = dict(another_file=lambda: put(path / "more.txt", b"x"), another_folder=lambda: ((path / "more").mkdir(), put(path / "more" / "x.txt", b"x")), all_of_the_foe=lambda: [put(path / n, c) for n, c in foes.items()],
                 swapped=lambda: (put(path / "b.txt", want["a.txt"]), put(file, want["b.txt"])), a_link_to_its_neighbour=lambda: (file.unlink(), file.symlink_to(path / "b.txt")),
                 no_rows=lambda: clear(path), rows_are_a_file=lambda: (clear(path), put(path, b"x")), no_manifest=lambda: (folder / "manifest.json").unlink(),
                 everything_of_the_foe=lambda: restored(folder, contents_of(art._folder(foe))))
    for name, move in moves.items():
        restored(folder, files)
        move()
        record.add(name, verdict(run["act"], run["right"], run["names"]), must=name not in ("no_manifest",))
    restored(folder, files)
    put(path / "a.txt.copy", b"ice")
    tally("damage", "artifacts: files swapped, lost, added, of another artifact, or no files", len(record.seen), record.failed)


def test_a_damaged_wheel(toys, effort, tally):
    a, _ = toys
    path, record = art.artifact(a), Record()
    wheel, want = next((art.cache_dir() / "wheels").glob("toy*.whl")), files_of(path)
    good = wheel.read_bytes()
    clean = lambda: (clear(wheel), restored(art._folder(a), {}))
    run = dict(restore=clean, act=lambda: art.artifact(a), right=lambda p: files_of(p) == want, names=[wheel.name, "toy"], errors=art.ArtifactError)
    try_all(record, wheel, damages=changes(wheel, good, effort=effort, cuts=30, flips=60), must=True, **run)
    try_all(record, wheel, damages=odd_things(wheel), must=True, **run)
    tally("damage", "artifacts: a wheel put there by hand damaged, or no file", len(record.seen), record.failed)


# --- a rewritten model
@pytest.fixture
def model(tmp_path, monkeypatch):
    "A made-up GGUF artifact, and a stand-in for its rewriting; the folder and the files in it"
    monkeypatch.setenv("DATACENTRIC_W2S_CACHE", str(tmp_path / "cache"))
    toy = art.Artifact("toy", "toy-data", "1.0", "f" * 64, ("toy_data/toy.gguf",), 1000, "CC0-1.0")
    monkeypatch.setitem(art.ARTIFACTS, "toy", toy)
    kept = {"config.json": b'{"layers": 4, "width": 32}', "tokenizer.json": b'{"w1": 3}' * 40, "model.safetensors": os.urandom(0) + bytes(range(256)) * 20}

    def write(file, folder):
        for name, content in kept.items(): put(folder / name, content)
        (folder / "manifest.json").write_text(json.dumps({p.name: hashlib.sha256(p.read_bytes()).hexdigest() for p in sorted(folder.iterdir())}, indent=1))
    monkeypatch.setattr(A, "_write_folder", write)
    monkeypatch.setattr(A, "artifact", lambda name: tmp_path / "toy.gguf")
    folder = A._rewritten("toy")
    return folder, contents_of(folder)


def rewritten(check=True): return A._rewritten("toy", check=check)


def test_a_rewritten_model(model, effort, tally):
    folder, files = model
    record = Record()
    model = lambda folder: {k: v for k, v in contents_of(folder).items() if k != "manifest.json"}  # what is in the list is worth what it says of the files
    run = dict(restore=lambda: restored(folder, files), right=lambda p: p == folder and model(p) == {k: v for k, v in files.items() if k != "manifest.json"}, names=[folder.name])
    for name, content in files.items():
        small = name != "model.safetensors"  # the weights are looked at when they are loaded, all else whenever the model is asked for
        for check in ((False, True) if small else (True,)):
            try_all(record, folder / name, damages=changes(folder / name, content, effort=effort, cuts=20, flips=60), act=lambda: rewritten(check), must=name != "manifest.json", what=f"{check} ", **run)
            try_all(record, folder / name, damages=odd_things(folder / name), act=lambda: rewritten(check), must=True, what=f"{check} ", **run)
    said = json.loads(files["manifest.json"])
    lists = dict(empty={}, less={k: v for k, v in said.items() if k != "tokenizer.json"}, more=said | {"more.json": "0" * 64}, list=[*said], none=None, out=said | {"../x": "0" * 64}, numbers={k: 1 for k in said})
    try_all(record, folder / "manifest.json", damages=[(k, json.dumps(v).encode()) for k, v in lists.items()], act=rewritten, must=True, **run)
    moves = dict(another_file=lambda: put(folder / "adapter_config.json", b"{}"), another_folder=lambda: (folder / "more").mkdir(), nothing=lambda: [clear(folder / n) for n in files], weights_lost=lambda: clear(folder / "model.safetensors"),
                 nothing_but_an_empty_list=lambda: (restored(folder, {"manifest.json": b"{}"})), swapped=lambda: (put(folder / "config.json", files["tokenizer.json"]), put(folder / "tokenizer.json", files["config.json"])))
    for name, move in moves.items():
        restored(folder, files)
        move()
        record.add(name, verdict(rewritten, run["right"], run["names"]), must=True)
    for name, damage in [("a file", lambda: put(folder, b"x")), *odd_things(folder)]:
        restored(folder, files)
        clear(folder)
        damage()
        record.add(f"the folder: {name}", verdict(rewritten, run["right"], run["names"]), must=name not in ("nowhere", "itself"))
        clear(folder)
    tally("damage", "a rewritten model: any file or the manifest damaged, lost, added, swapped, or no file", len(record.seen), record.failed)


def test_a_models_small_files_are_right_before_anything_is_read_of_them(model):
    "Layers, width and tokens come from them, long before the weights are loaded"
    folder, files = model
    for name in ("config.json", "tokenizer.json"):
        put(folder / name, files[name].replace(b"3", b"2"))
        with pytest.warns(UserWarning, match=folder.name): assert A._locate("toy") == (str(folder), None, "f" * 64)
        assert contents_of(folder) == files


# --- results
CELLS = grid("a", 2, "toy") + grid("bb", 1, "toy")


@pytest.fixture
def results(tmp_path):
    "Four cells; their folder, the files in it, and the table of all"
    folder = tmp_path / "results"
    run_cells(CELLS, folder, measure, version="v1", progress=False)
    return folder, contents_of(folder), collect(folder, "toy")


def test_results_cells(results, effort, tally):
    folder, files, table = results
    path, record = CELLS[1].path(folder), Record()
    good = path.read_bytes()
    head, _, body = good.partition(b"\n")
    again = lambda: run_cells(CELLS, folder, measure, version="v1", progress=False)
    run = dict(restore=lambda: restored(folder, files), act=again, right=lambda df: contents_of(folder) == files and (df.status != "failed").all(), names=[path.name])
    gather = dict(restore=run["restore"], act=lambda: collect(folder, "toy"), names=[path.name])
    lacks = table[(table.dataset != "a") | (table.seed != 1)].reset_index(drop=True)
    for what, options in (("run_cells ", run), ("collect ", gather | dict(right=lambda df: df.equals(lacks)))):
        try_all(record, path, damages=changes(path, good, effort=effort, cuts=20, flips=100), must=True, what=what, **options)
        try_all(record, path, damages=((f"the head: {k}", v + b"\n" + body) for k, v in broken(head, effort, cuts=15, flips=120) if v != head), must=True, what=what, **options)
        try_all(record, path, damages=((k, v) for k, v in odd_things(path) if "collect" in what or k not in ("nowhere", "itself")), must=True, what=what, **options)
    tally("damage", "results: a cell's head or table damaged, or no file", len(record.seen), record.failed)


def head_of(content): return json.loads(content.partition(b"\n")[0][2:])


def with_head(content, **changes): return b"# " + json.dumps({k: v for k, v in (head_of(content) | changes).items() if v is not ...}).encode() + b"\n" + content.partition(b"\n")[2]


def old_format(content): return with_head(content, whole=...)


def signed(content):
    "With a right checksum, whatever is in the head"
    from datacentric_w2s.results import _whole
    about = head_of(old_format(content))
    return with_head(content, **about | dict(whole=_whole(about)))


def test_cells_whose_head_says_something_else(results, tally):
    "Where the checksum is right, too; and in files of earlier versions, whose head has none"
    folder, files, table = results
    path, record = CELLS[1].path(folder), Record()
    good = path.read_bytes()
    dtypes = head_of(good)["dtypes"]
    heads = dict(dtype=dict(dtypes=dtypes | dict(n="int31")), no_dtype=dict(dtypes=dtypes | dict(n=3)), order=dict(dtypes=dict(reversed(dtypes.items()))), less=dict(dtypes={"n": "int64"}), more=dict(dtypes=dtypes | dict(m="int64")),
                 none=dict(dtypes=None), list=dict(dtypes=[*dtypes]), gone=dict(dtypes=...), name=dict(dtypes={k.upper(): v for k, v in dtypes.items()}), wrong=dict(dtypes=dtypes | dict(kind="float64")), rows=dict(rows=2), rows_text=dict(rows="3"), no_rows=dict(rows=...),
                 dataset=dict(dataset="c"), dataset_number=dict(dataset=1), no_dataset=dict(dataset=...), seed=dict(seed=0), seed_text=dict(seed="1"), seed_bool=dict(seed=True), no_seed=dict(seed=...), experiment=dict(experiment="toe"), no_version=dict(version=...),
                 sha=dict(sha256="0" * 64), no_sha=dict(sha256=...), unknown=dict(more=1))
    lacks = table[(table.dataset != "a") | (table.seed != 1)].reset_index(drop=True)
    again = dict(restore=lambda: restored(folder, files), act=lambda: run_cells(CELLS, folder, measure, version="v1", progress=False), right=lambda df: (df.status != "failed").all() and files.keys() == contents_of(folder).keys(), names=[path.name])
    for form in (old_format, signed):
        bad = [(f"{form.__name__} {k}", form(with_head(good, **v))) for k, v in heads.items()]
        try_all(record, path, damages=bad, must=True, what="run_cells ", **again)
        try_all(record, path, damages=bad, must=True, what="collect ", **again | dict(act=lambda: collect(folder, "toy"), right=lambda df: df.equals(lacks)))
    try_all(record, path, damages=[("version", signed(with_head(good, version="v0"))), ("old version", old_format(with_head(good, version="v0")))], must=True, what="run_cells ", **again)
    restored(folder, files)
    put(path, old_format(good))  # an earlier version's file that is right is kept as it is
    record.add("an earlier format", verdict(again["act"], lambda df: (df.status == "kept").all() and path.read_bytes() == old_format(good) and collect(folder, "toy").equals(table), []))
    tally("damage", "results: heads that say something else, of this format and of the earlier one", len(record.seen), record.failed)


def test_cells_that_change_places(results, tally):
    folder, files, table = results
    record, (a, b) = Record(), [c.path(folder) for c in CELLS[:2]]
    moves = dict(swapped=lambda: (put(a, files[f"toy/{b.name}"]), put(b, files[f"toy/{a.name}"])), copied=lambda: put(a, files[f"toy/{b.name}"]), one_more=lambda: put(a.with_name("c-9.csv"), files[f"toy/{b.name}"]))
    for name, move in moves.items():
        for what, act, right in (("run_cells", lambda: run_cells(CELLS, folder, measure, version="v1", progress=False), lambda df: all((folder / k).read_bytes() == v for k, v in files.items())),
                                 ("collect", lambda: collect(folder, "toy"), lambda df: df.groupby(["dataset", "seed"]).size().eq(3).all() and df.merge(table, "left", indicator=True)._merge.eq("both").all())):
            restored(folder, files)
            move()
            record.add(f"{what}: {name}", verdict(act, right, [a.name, b.name, "c-9.csv"]))
    tally("damage", "results: cells swapped and copied", len(record.seen), record.failed)


def test_error_notes(results, effort, tally):
    "They are for people: nothing hangs on what is in them"
    folder, files, table = results
    path, record = CELLS[1].path(folder).with_suffix(".error"), Record()
    missing = {k: v for k, v in files.items() if k != f"toy/{CELLS[1].path(folder).name}"}
    run = dict(restore=lambda: restored(folder, missing), act=lambda: run_cells(CELLS, folder, measure, version="v1", progress=False), right=lambda df: contents_of(folder) == files and (df.status != "failed").all(), names=[path.name])
    try_all(record, path, damages=broken(b"Traceback (most recent call last):\n", effort, 5, 20), **run)
    try_all(record, path, damages=odd_things(path), **run)
    tally("damage", "results: notes of errors damaged, or no file", len(record.seen), record.failed)


# --- sessions
@pytest.fixture
def session(tmp_path):
    s = Session(plan_of(rule="recount", horizon=4), tmp_path / "s.session")
    while query := s.ask(): buy(s, query)
    return s


def content_of(s): return S._pack(S._recipe(s.plan, s._state), S._arrays(s._state))


def test_sessions(session, effort, tally):
    path, record = session.path, Record()
    good = path.read_bytes()
    assert content_of(session) == good
    run = dict(restore=lambda: None, act=lambda: Session.restore(path), right=lambda s: content_of(s) == good, names=[path.name], errors=(ValueError, OSError), must=True)
    try_all(record, path, damages=changes(path, good, effort=effort, cuts=100, flips=600), **run)
    try_all(record, path, damages=odd_things(path), **run)
    for name, damage in odd_things(path):  # while it is at work
        clear(path)
        put(path, good)
        live = Session.restore(path)
        clear(path)
        damage()
        record.add(f"at work: {name}", verdict(lambda: live.extend(horizon=9), lambda _: content_of(Session.restore(path)) == content_of(live), [path.name], (ValueError, OSError, RuntimeError)))
    tally("damage", "sessions: damaged, or no file", len(record.seen), record.failed)


def wrong_sessions(recipe, arrays):
    "What the checksum is right for and is no session of this version"
    for k in recipe: yield f"recipe without {k}", {a: b for a, b in recipe.items() if a != k}, arrays
    for k in ("sources", "policy", "reward", "stop"): yield f"plan without {k}", recipe | dict(plan={a: b for a, b in recipe["plan"].items() if a != k}), arrays  # the others have defaults, for files of earlier versions
    for k in arrays: yield f"no array {k}", recipe, {a: b for a, b in arrays.items() if a != k}
    for k, v in arrays.items():
        if not v.size: continue
        for dtype in (np.float16, np.float32, np.int32, np.complex64, "U3"):
            if v.dtype != dtype and not (k == "x" and dtype == np.float32): yield f"{k} as {np.dtype(dtype)}", recipe, arrays | {k: v.real.astype(dtype)}
        yield f"{k} shorter", recipe, arrays | {k: v[:-1]}
        yield f"{k} longer", recipe, arrays | {k: np.concatenate([v, v[:1]])}
        yield f"{k} deeper", recipe, arrays | {k: v[..., None]}
    yield "more arrays", recipe, arrays | dict(more=np.arange(3))
    yield "x NaN", recipe, arrays | dict(x=arrays["x"] * np.nan)
    yield "conf NaN", recipe, arrays | dict(conf=arrays["conf"] * np.nan)
    yield "conf above 1", recipe, arrays | dict(conf=arrays["conf"] + 1)
    yield "flags above 1", recipe, arrays | dict(flag=arrays["flag"] + np.int8(5))
    yield "an unknown source", recipe, arrays | dict(batches=arrays["batches"] + 5)
    yield "negative sizes", recipe, arrays | dict(sizes=-arrays["sizes"])
    for v in ([], None, 3, "x"): yield f"recipe {v!r}", v, arrays
    yield "fewer names", recipe | dict(ids=recipe["ids"][:-1]), arrays
    yield "a shorter log", recipe | dict(log=recipe["log"][:-1]), arrays
    yield "a log of another shape", recipe | dict(log=[[1]] * len(recipe["log"])), arrays
    yield "a closed source that is none", recipe | dict(closed=["z"]), arrays
    yield "a question to nobody", recipe | dict(asked=dict(round=1, source="z", rows=3, why="policy", index=[0, 0])), arrays
    yield "a question of another shape", recipe | dict(asked=dict(source="a")), arrays


def test_sessions_with_right_checksums_and_wrong_content(session, tally):
    path, record = session.path, Record()
    good = path.read_bytes()
    recipe, arrays = S._unpack(good, path)
    run = dict(restore=lambda: None, act=lambda: Session.restore(path), right=lambda s: False, names=[path.name], errors=(ValueError,), must=True)
    try_all(record, path, damages=((k, S._pack(r, a)) for k, r, a in wrong_sessions(recipe, arrays)), **run)
    first, _, rest = good.partition(b"\n")
    for version in ("0", "2", "1.0", "", "01"): record.add(f"format {version}", verdict(lambda: S._unpack(f"{S._FORMAT} {version} {hashlib.sha256(rest).hexdigest()}\n".encode() + rest, path), lambda _: False, [path.name], ValueError))
    import io
    pickled = io.BytesIO()
    np.savez(pickled, **arrays | dict(x=np.array([1, "a"], object)))
    for k, payload in dict(pickled=pickled.getvalue(), no_arrays=b"", an_array=arrays["x"].tobytes()).items():
        body = rest.partition(b"\n")[0] + b"\n" + payload
        try_all(record, path, damages=[(k, f"{S._FORMAT} {S._VERSION} {hashlib.sha256(body).hexdigest()}\n".encode() + body)], **run)
    tally("damage", "sessions: wrong types, lengths, names and formats with right checksums", len(record.seen), record.failed)


@pytest.mark.parametrize("center", [False, True])
@pytest.mark.parametrize("how", ["max_abs_cosine", "max_dot", "mean_square", "quantile", "own"])
def test_whatever_a_session_writes_it_reads(how, center, tmp_path):
    given = dict(how=lambda x, x_hard: (x @ x_hard.T).max(1)) if how == "own" else {}
    try: rules = Rules(given.get("how", how), center=center)
    except ValueError: pytest.skip(f"no such detector: {how!r} with center={center}")
    for rule in REWARDS:
        s = Session(replace(plan_of(rule=rule, horizon=3), reward=Reward(rule, rules, warmup=2 if rule == "warmup" else None, rates=(.9, .1) if rule == "calibrated" else None)), path := tmp_path / rule)
        while query := s.ask():
            buy(s, query)
            assert content_of(Session.restore(path, **given)) == path.read_bytes()


# --- shared rows
def same_rows(a, b):
    try: check_same(a, b)
    except AssertionError: return False
    return True


def test_shared_files(tmp_path, effort, tally):
    s, record = make(0, 40), Record()
    write_shared(s, path := tmp_path / "rows.parquet")
    run = dict(restore=lambda: None, act=lambda: read_shared(path), right=lambda t: same_rows(s, t), names=[path.name], errors=(ValueError, FileNotFoundError))
    try_all(record, path, damages=changes(path, path.read_bytes(), effort=effort, cuts=150, flips=1500), **run)
    try_all(record, path, damages=odd_things(path), **run)
    tally("damage", "shared rows: cut, flipped, zeroed, swapped, lost, or no file", len(record.seen), record.failed)


def retyped(table):
    "Tables whose columns have other types and the same numbers, or the same bytes"
    import pyarrow as pa
    as_list = lambda c, to: pa.FixedSizeListArray.from_arrays(pa.array(c), to)
    x = np.stack(table["x_strong"].to_pylist()).astype(np.float32)
    for k, v in dict(half=x.astype(np.float16), double=x.astype(np.float64), bits=x.view(np.int32), halves=x.view(np.float16), one=x.ravel().reshape(len(x), -1)[:, :-1]).items():
        yield f"x_strong {k}", table.set_column(table.column_names.index("x_strong"), "x_strong", as_list(np.ascontiguousarray(v).ravel(), v.shape[1]))
    for name, types in dict(id=("int32", "uint64", "float64"), label=("int32", "int8", "float64", "bool"), p=("float32",), confidence=("float32",), score=("float32",), group=("int32", "uint64", "float64")).items():
        for t in types: yield f"{name} as {t}", table.set_column(table.column_names.index(name), name, table[name].cast(pa.type_for_alias(t), safe=False))
    for name in ("id", "label", "p", "group"):
        v = table[name].to_numpy()
        yield f"{name} with the bits of another type", table.set_column(table.column_names.index(name), name, pa.array(v.view(np.int64 if v.dtype.kind == "f" else np.float64)))
    for name in table.column_names: yield f"without {name}", table.drop_columns([name])
    order = np.arange(len(table))
    order[[0, 1]] = 1, 0
    yield "two rows swapped", table.take(order)
    yield "rows lost", table.slice(1)
    yield "rows twice", pa.concat_tables([table, table.slice(0, 1)])
    yield "no rows", table.slice(0, 0)
    yield "columns in another order", table.select(table.column_names[::-1])
    yield "another column", table.append_column("more", pa.array(np.arange(len(table))))


def test_shared_files_of_other_types_orders_and_formats(tmp_path, tally):
    import pyarrow.parquet as pq
    from datacentric_w2s.sharing import _KEY, _SUM
    s, record = make(0, 40), Record()
    write_shared(s, path := tmp_path / "rows.parquet")
    table, run = pq.read_table(path), dict(restore=lambda: None, act=lambda: read_shared(path), right=lambda t: same_rows(s, t), names=[path.name], errors=(ValueError, FileNotFoundError))
    notes = table.schema.metadata
    cases = [(k, lambda t=t: pq.write_table(t.replace_schema_metadata(notes), path)) for k, t in retyped(table)]
    body = json.loads(json.loads(notes[_KEY])[0])

    def noted(**more):
        text = json.dumps(body | more)
        return lambda: pq.write_table(table.replace_schema_metadata(notes | {_KEY: json.dumps([text, hashlib.sha256(text.encode()).hexdigest()]).encode()}), path)
    for k, v in dict(format=[0, 2, None, "1"], about=[{}, None, body["about"] | dict(seed=4), body["about"] | dict(more=1), body["about"] | dict(preset={})], group=["<f8", "x", None], ids=["<i4", "x"], partition=[None, {}, 3], source=["student"]).items():
        cases += [(f"notes with {k} = {u!r}", noted(**{k: u})) for u in v]
    cases += [(f"notes {v!r}", lambda v=v: pq.write_table(table.replace_schema_metadata(notes | {_KEY: v}), path)) for v in (b"", b"[]", b"\xff\xfe", b"[" * 10_000, b"[1, 2]", b"null")]
    cases += [(f"sum {v!r}", lambda v=v: pq.write_table(table.replace_schema_metadata({_KEY: notes[_KEY]} | ({_SUM: v} if v is not None else {})), path)) for v in (b"", b"0" * 64, b"\xff", None)]
    write_shared(replace(s, about=replace(s.about, seed=9)), other := tmp_path / "other.parquet")
    theirs = pq.read_schema(other).metadata
    cases += [("another file's notes, its own sum", lambda: pq.write_table(table.replace_schema_metadata({_KEY: theirs[_KEY], _SUM: notes[_SUM]}), path))]
    try_all(record, path, damages=cases, **run)
    assert record.count("refused") > .8 * len(record.seen)
    tally("damage", "shared rows: other types, orders, notes and formats", len(record.seen), record.failed)


# --- scores of many rows, which a later run goes on with
@pytest.mark.parametrize("left", ["finished", "half"])
def test_columns_of_scores(left, tmp_path, effort, tally, monkeypatch):
    rng, record, folder = np.random.default_rng(0), Record(), tmp_path / "columns"
    p, x = rng.random(40), rng.normal(size=(40, 3)).astype(np.float32)
    folder.mkdir()
    act = lambda: detect_ranges(p, x, how="max_dot", t_hard=.3, t_overlap=.5, rows=20, group=1, folder=folder).score[:]
    want = np.array(act())
    path = next(folder.glob("score-*.npy"))
    notes = path.with_suffix(".done")
    if left == "half":  # killed before the note of the third of four tasks
        assert len(notes.read_text().split("\n\n")) == 4
        clear(path), clear(notes)
        put_note, done = type(notes).open, []

        def die(self, *a, **k):
            if self.suffix == ".done" and a and a[0] == "a":
                done.append(1)
                if len(done) > 2: raise KeyboardInterrupt
            return put_note(self, *a, **k)
        with monkeypatch.context() as m, pytest.raises(KeyboardInterrupt):
            m.setattr(type(notes), "open", die)
            act()
    files = contents_of(folder)
    run = dict(restore=lambda: restored(folder, files), act=act, right=lambda got: np.array_equal(got, want, equal_nan=True), names=[path.name, notes.name], errors=(ValueError, OSError))
    try_all(record, path, damages=changes(path, files[path.name], effort=effort, cuts=8, flips=30), **run)
    try_all(record, notes, damages=changes(notes, files[notes.name], effort=effort, cuts=8, flips=40), **run)
    for target in (path, notes): try_all(record, target, damages=odd_things(target), **run | dict(names=[*run["names"], "zero", folder.name]))
    restored(folder, files)
    put(notes, b"\n".join(line.rpartition(b" ")[0].rpartition(b" ")[0] for line in files[notes.name].splitlines()))  # as earlier versions wrote them
    record.add("notes of an earlier version", verdict(act, run["right"], run["names"]), must=True)
    tally("damage", f"scores of many rows, {left}: the column or its notes damaged, or no file", len(record.seen), record.failed)


def test_a_torn_last_note_costs_its_own_task_alone(tmp_path):
    rng, folder = np.random.default_rng(0), tmp_path / "columns"
    p, x = rng.random(40), rng.normal(size=(40, 3)).astype(np.float32)
    folder.mkdir()
    act = lambda: detect_ranges(p, x, how="max_dot", t_hard=.3, t_overlap=.5, rows=20, group=1, folder=folder).score[:]
    want, notes = np.array(act()), next(folder.glob("score-*.done"))
    notes.write_bytes(notes.read_bytes()[:-9])  # the last note is cut off; both notes of the other range stay
    with pytest.warns(UserWarning, match="1 of 2 ranges of rows"): assert np.array_equal(act(), want, equal_nan=True)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert np.array_equal(act(), want, equal_nan=True)


# --- the harness itself
def test_the_harness_sees_what_goes_wrong(tmp_path):
    "A reader without a checksum, one that says nothing, one that fails in its own way, and one that waits for ever"
    path, good = tmp_path / "n.txt", b"12345678"
    tries = {}
    readers = dict(trusting=lambda: path.read_bytes(), failing=lambda: {good: 1}[path.read_bytes()], checked=lambda: good if path.read_bytes() == good else (_ for _ in ()).throw(ValueError("n.txt: damaged")),
                   unnamed=lambda: good if path.read_bytes() == good else (_ for _ in ()).throw(ValueError("damaged")))
    for name, read in readers.items():
        record = Record()
        try_all(record, path, lambda: None, read, lambda v: v in (good, 1), ["n.txt"], ValueError, ((k, v) for k, v in broken(good) if v != good))
        tries[name] = len(record.seen), len(record.failed)
    n = tries["checked"][0]
    assert n > 60 and tries == dict(trusting=(n, n), failing=(n, n), checked=(n, 0), unnamed=(n, n))
    record = Record()
    record.add("x", "harmless", must=True)
    assert record.failed


def test_every_bit_and_byte_at_a_high_effort():
    good = bytes(range(20))
    kinds = [k for k, _ in broken(good, effort=100)]
    assert sum(k.startswith("cut") for k in kinds) == 20 and sum("flipped" in k for k in kinds) == 160 and sum("lost" in k for k in kinds) > 20
    assert [*broken(good)] == [*broken(good)]  # the same each time
