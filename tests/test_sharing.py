"What is shared comes back bit by bit, damage is noticed, and nothing leaves that wasn't asked for."
import base64
import io
import json
import sys
import threading
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, HTTPServer

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings, strategies as st

from datacentric_w2s.core import Partition, Pseudolabels, preset
from datacentric_w2s.detection import detect
from datacentric_w2s.probes import evaluate
from datacentric_w2s.results import grid, run_cells
from datacentric_w2s.selection import make_sources, run_selection
from datacentric_w2s.sharing import Provenance, _columns, card, from_dataset, mlflow_log, provenance, push_to_hub, read_shared, share, Shared, to_dataset, trackio_log, write_shared
from datacentric_w2s.theory import Mixture, mixture_problem

ODD = [0., -0., 5e-324, 1 / 3, np.finfo(float).max, .1 + .2]
ABOUT = Provenance("made up", "MIT", preset(), "a" * 64, "b" * 64, 3, "0.1.0")


def make(seed, n, d=3, dtype="float32", groups="int", have=("y", "pseudolabels", "partition", "x_strong", "txt")):
    "Rows with odd numbers"
    rng = np.random.default_rng(seed)
    kind = rng.choice(["easy", "hard", "overlap"], n)
    x = rng.normal(size=(n, d)).astype(dtype)
    with np.errstate(over="ignore"): x[rng.random((n, d)) < .5] = np.array(rng.choice([0., -0., 6e-8, 1 / 3, 65504.])).astype(dtype)
    group = dict(int=rng.integers(0, 9, n), str=rng.choice(["q", "ü|\n", ""], n), object=rng.choice(["q", "longer"], n).astype(object))[groups]
    score = np.where(kind == "hard", np.nan, rng.choice(ODD, n))
    parts = dict(y=rng.integers(0, 2, n), pseudolabels=Pseudolabels(rng.choice([0., 5e-324, 1 / 3, 1.], n), "teacher"), x_weak=x[:, ::-1], x_strong=x, txt=np.array([f"text {i}\n\0é" for i in range(n)], object),
                 partition=Partition(kind, rng.random(n), score, rng.choice(ODD), rng.choice([np.inf, np.nan, .1]), "hard: < 0.1 | é"))
    return Shared(ABOUT, rng.permutation(n), group, np.where(rng.random(n) < .5, "w2s", "val"), **{k: parts[k] for k in have})


def check_same(a, b):
    assert a.about == b.about and list(_columns(a)) == list(_columns(b))
    for k, v in _columns(a).items():
        w = _columns(b)[k]
        assert v.shape == w.shape and (v.tolist() == w.tolist() if v.dtype.kind in "OU" else v.dtype == w.dtype and v.tobytes() == w.tobytes()), k
    for k in ("group", "ids"): assert getattr(a, k).dtype == getattr(b, k).dtype
    if a.partition: np.testing.assert_array_equal([a.partition.t_hard, a.partition.t_overlap], [b.partition.t_hard, b.partition.t_overlap])
    if a.partition: assert a.partition.rule == b.partition.rule
    if a.pseudolabels: assert a.pseudolabels.source == b.pseudolabels.source


columns = st.lists(st.sampled_from(["y", "pseudolabels", "partition", "x_weak", "x_strong", "txt"]), unique=True)
rows = st.builds(make, st.integers(0, 999), st.integers(1, 40), st.integers(1, 5), st.sampled_from(["float16", "float32", "float64"]), st.sampled_from(["int", "str", "object"]), columns)


@given(rows, st.integers(1, 50))
@settings(max_examples=80, deadline=None)
def test_a_file_gives_back_the_same_bits(s, block):
    write_shared(s, file := io.BytesIO(), block=block)
    check_same(s, read_shared(io.BytesIO(file.getvalue())))


@given(rows)
@settings(max_examples=30, deadline=None)
def test_a_dataset_gives_back_the_same_bits(s): check_same(s, from_dataset(to_dataset(s)))


@given(st.data())
@settings(max_examples=150, deadline=None)
def test_no_changed_bit_is_read_as_if_it_were_right(data):
    s = make(0, 30)
    write_shared(s, file := io.BytesIO())
    whole = bytearray(file.getvalue())
    whole[data.draw(st.integers(0, len(whole) - 1))] ^= 1 << data.draw(st.integers(0, 7))
    try: back = read_shared(io.BytesIO(bytes(whole)))
    except ValueError: return
    check_same(s, back)  # a bit that nothing hangs on, such as one of the statistics


def test_damaged_and_foreign_files_are_refused(tmp_path):
    write_shared(make(0, 30), path := tmp_path / "rows.parquet")
    whole = path.read_bytes()
    for n in (0, 3, 100, len(whole) - 1):
        path.write_bytes(whole[:n])
        with pytest.raises(ValueError, match="rows.parquet: no parquet file, or a damaged one"): read_shared(path)
    pd.DataFrame(dict(a=[1])).to_parquet(path)
    with pytest.raises(ValueError, match="of another tool"): read_shared(path)
    with pytest.raises(ValueError, match="no notes"): from_dataset(type(to_dataset(make(0, 3))).from_dict(dict(a=[1])))
    with pytest.raises(FileNotFoundError): read_shared(tmp_path / "nothing.parquet")
    with pytest.raises(ValueError, match="no rows"): write_shared(replace(make(0, 1, have=()), ids=np.zeros(0, int), group=np.zeros(0, int), split=np.zeros(0, str)), path)
    with pytest.raises(ValueError, match="mixes types"): write_shared(replace(make(0, 2, have=()), group=np.array([1, "a"], object)), path)


def test_a_write_that_fails_leaves_the_old_file(tmp_path):
    write_shared(old := make(0, 30), path := tmp_path / "rows.parquet")
    with pytest.raises(ValueError, match="mixes types"): write_shared(replace(make(0, 2, have=()), group=np.array([1, "a"], object)), path, block=1)
    check_same(old, read_shared(path))
    assert list(tmp_path.iterdir()) == [path]  # and nothing of the new one


def test_activations_mapped_from_disk_are_written_a_block_at_a_time(tmp_path):
    x = np.lib.format.open_memmap(tmp_path / "x.npy", "w+", "float32", (40_000, 256))
    x[:] = np.random.default_rng(0).standard_normal((1, 256), "float32") + np.arange(40_000, dtype="float32")[:, None]
    x.flush()
    import pyarrow as pa
    s = replace(make(0, 40_000, have=()), x_strong=np.load(tmp_path / "x.npy", mmap_mode="r"))
    before = pa.total_allocated_bytes()
    write_shared(s, tmp_path / "rows.parquet", block=1000)
    assert pa.default_memory_pool().max_memory() - before < x.nbytes and pa.total_allocated_bytes() - before < 2**20
    check_same(s, read_shared(tmp_path / "rows.parquet"))


@pytest.fixture
def hub():
    "The hub's own client talks to a small server on this machine"
    calls, private = [], [True]
    class Handler(BaseHTTPRequestHandler):
        def log_message(self, *a): pass
        def answer(self):
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            home = f"http://127.0.0.1:{server.server_port}/datasets/me/kinds"
            calls.append((self.path, self.headers.get("Authorization"), body))
            if self.path.endswith("/create"): out = dict(url=home, id="me/kinds")
            elif "/preupload/" in self.path: out = dict(files=[dict(path=f["path"], uploadMode="regular", shouldIgnore=False) for f in json.loads(body)["files"]])
            elif "/commit/" in self.path: out = dict(commitUrl=f"{home}/commit/1", commitOid="1", pullRequestUrl=None)
            else: out = dict(_id="1", id="me/kinds", private=private[0], sha="1", siblings=[], tags=[])
            data = json.dumps(out).encode()
            self.send_response(200); self.send_header("Content-Type", "application/json"); self.send_header("Content-Length", str(len(data))); self.end_headers()
            self.wfile.write(data)
        do_GET = do_POST = answer
    server = HTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}", calls, private
    server.shutdown()


def uploaded(calls):
    "The files of the commit"
    lines = [json.loads(line) for path, _, body in calls if "/commit/" in path for line in body.splitlines()]
    return {l["value"]["path"]: base64.b64decode(l["value"]["content"]) for l in lines if l["key"] == "file"}


@pytest.mark.parametrize("texts", [False, True])
def test_the_hubs_own_client_uploads_rows_and_card(hub, texts, capsys, tmp_path):
    from huggingface_hub import HfApi
    url, calls, _ = hub
    s = make(0, 30)
    assert push_to_hub(s, "me/kinds", texts=texts, api=HfApi(url, token="hf_secret")).endswith("/commit/1")
    create = next(json.loads(body) for path, _, body in calls if path.endswith("/create"))
    assert create["type"] == "dataset" and (create.get("private") is True or create.get("visibility") == "private")
    files = uploaded(calls)
    check_same(s if texts else replace(s, txt=None), read_shared(io.BytesIO(files["rows.parquet"])))
    assert "txt" in pd.read_parquet(io.BytesIO(files["rows.parquet"])) if texts else b"text 7" not in b"".join(files.values())
    assert "license: mit" in files["README.md"].decode() and ("are not in it" in files["README.md"].decode()) != texts
    assert {a for _, a, _ in calls} == {"Bearer hf_secret"} and not any(b"hf_secret" in body for _, _, body in calls)
    assert "hf_secret" not in "".join(capsys.readouterr())


def test_a_public_repository_is_not_taken_for_a_private_one(hub):
    from huggingface_hub import HfApi
    url, calls, private = hub
    private[0] = False
    with pytest.raises(ValueError, match="me/kinds is public"): push_to_hub(make(0, 3), "me/kinds", api=HfApi(url, token="hf_secret"))
    assert not uploaded(calls)
    push_to_hub(make(0, 3), "me/kinds", private=False, api=HfApi(url, token="hf_secret"))
    assert set(uploaded(calls)) == {"rows.parquet", "README.md"}


def test_no_token_no_upload(monkeypatch, hub):
    import huggingface_hub
    monkeypatch.setattr(huggingface_hub, "get_token", lambda: None)
    with pytest.raises(ValueError, match="no token; give token"): push_to_hub(make(0, 3), "me/kinds")
    assert not hub[1]


def test_the_card_names_what_it_does_not_know():
    assert "license: unknown" in card(replace(make(0, 3), about=replace(ABOUT, licence="unknown"))) and "license: other" in card(replace(make(0, 3), about=replace(ABOUT, licence="disputed")))


def test_shared_rows_of_a_problem():
    mixture = mixture_problem(Mixture(np.ones(20), np.ones(20), 1.), (40, 40, 40))
    about = provenance("mixture", mixture, models=("none", "none"))
    s = share(mixture, about, split="val", gold=False, features=["weak", "strong"])
    assert about.licence == "unknown" and s.y is None and s.txt is None and np.array_equal(s.x_weak, mixture.val.x_weak) and set(s.split) == {"val"}
    write_shared(s, file := io.BytesIO())
    check_same(s, read_shared(file))
    for bad in (dict(split="train"), dict(features=["middle"])):
        with pytest.raises(ValueError, match="wanted a split of"): share(mixture, about, **bad)


def test_a_selection_hands_on_each_row_as_it_is_made_and_is_the_same_without_a_listener():
    p = mixture_problem(Mixture(np.ones(20), np.ones(20), 1.), (80, 80, 80))
    labels = evaluate(p).pseudolabels
    kinds, seen, options = detect(p, labels), [], dict(rounds=4, seed=1)
    sources = make_sources(kinds, seed=0)
    df = run_selection(p, labels, sources, "ucb", truth=kinds, log=seen.append, **options)
    pd.testing.assert_frame_equal(pd.DataFrame(seen), df)
    pd.testing.assert_frame_equal(run_selection(p, labels, sources, "ucb", truth=kinds, **options), df)
    class Enough(ValueError): pass
    def stop(row):
        seen.append(row)
        if row["round"] == 2: raise Enough
    seen.clear()
    with pytest.raises(Enough): run_selection(p, labels, sources, "ucb", log=stop, **options)
    assert [r["round"] for r in seen] == [1, 2], "each row when it is made, not all at the end"


def measure(cell):
    if cell.seed == 1: raise ValueError("no luck")
    return pd.DataFrame(dict(value=[cell.seed / 3, np.nan], kind="easy", ok=True))


@pytest.mark.parametrize("jobs", [1, 2])
def test_the_runner_hands_on_each_row_as_cells_end(tmp_path, jobs):
    seen = []
    with pytest.warns(UserWarning, match="1 of 3 cells failed"): run_cells(grid("a", 3, "toy"), tmp_path, measure, jobs=jobs, progress=False, log=seen.append)
    assert sorted((r["seed"], r["value"]) for r in seen if r["value"] == r["value"]) == [(0, 0.), (2, 2 / 3)] and len(seen) == 4 and {r["experiment"] for r in seen} == {"toy"}
    with pytest.warns(UserWarning): run_cells(grid("a", 3, "toy"), tmp_path, measure, progress=False, log=seen.append)
    assert len(seen) == 4, "what was kept is not logged again"


class Tracker:
    def __init__(self): self.sent = []
    def log_metrics(self, metrics, step=None): self.sent.append((step, metrics))
    log = log_metrics


@pytest.mark.parametrize("adapter", [mlflow_log, trackio_log])
def test_numbers_reach_a_tracker_and_nothing_else_does(adapter):
    log = adapter("round", tracker := Tracker())
    for row in [dict(round=np.int64(1), source="a", density=np.float64(.5), accuracy=np.nan, ok=True), dict(round=2, source="b"), dict(value=np.float32(.5))]: log(row)
    assert tracker.sent == [(1, dict(density=.5, ok=1.)), (2, dict(value=.5))]


def test_trackers_are_imported_when_asked_for():
    assert not {"mlflow", "trackio"} & set(sys.modules)


def test_a_real_mlflow_keeps_the_rows(tmp_path):
    mlflow = pytest.importorskip("mlflow", reason="MLflow is not installed: it is no dependency; pip install mlflow")
    mlflow.set_tracking_uri(f"sqlite:///{tmp_path / 'runs.db'}")
    with mlflow.start_run() as run:
        log = mlflow_log()
        for k in (1, 2, 3): log(dict(round=k, source="a", density=k / 3, accuracy=np.nan))
    history = mlflow.MlflowClient().get_metric_history(run.info.run_id, "density")
    assert [(m.step, m.value) for m in history] == [(k, k / 3) for k in (1, 2, 3)]
