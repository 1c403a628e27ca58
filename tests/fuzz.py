"""Fuzz what reads a file or the command line: `python tests/fuzz.py TARGET --seconds 30`, or `--runs N`; TARGET is a name of `TARGETS`, or all.

With atheris (the extra `fuzz`) inputs are sought that reach new lines; without it, seeds are changed at random. A finding is an error that is not documented; its input is kept in
--keep. Formats with a checksum are sealed anew after each change, or nothing behind the checksum would ever be reached."""
import argparse
import hashlib
import io
import json
import os
import random
import shutil
import struct
import sys
import tempfile
import time
import traceback
import warnings
import zipfile
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from functools import wraps
from pathlib import Path

os.environ |= dict(OMP_NUM_THREADS="1", TOKENIZERS_PARALLELISM="false", HF_HUB_OFFLINE="1")
try: import atheris
except ImportError: atheris = None


@contextmanager
def instrumented(on=True):
    if atheris is None or not on: yield
    else:
        with atheris.instrument_imports(include=["datacentric_w2s", "gguf", "zipfile"]): yield


with instrumented(__name__ == "__main__"):
    from datacentric_w2s import activations, artifacts, commands, data, results, session, sharing

import numpy as np  # noqa: E402
import pandas as pd  # noqa: E402

from datacentric_w2s.core import Labelled, Partition, Problem, Pseudolabels, Views  # noqa: E402

TARGETS = {}  # name -> the class of a target
WORDS = [b'"', b",", b"\n", b"\r\n", b"\0", b"\xff", b"\xef\xbb\xbf", b"\\ud800", b"NaN", b"1e999", b"-1", b"null", b"true", b"[]", b"{}", b"[[", b"999999999999999999999", b"../", b"/", b"txt", b"label", b"group", b"0", b"1"]
FINE = (ValueError, OSError, artifacts.ArtifactError, zipfile.BadZipFile)  # what is documented, and for the inner function of the wheels what `artifact` makes an ArtifactError of


def target(*names):
    def add(cls):
        for n in names: TARGETS[n] = cls
        return cls
    return add


class Target:
    "Something that is fed with bytes in a folder of its own"
    fine = FINE

    def __init__(self, name, folder): self.name, self.folder = name, Path(folder)

    def put(self, content, name=None):
        path = self.folder / (name or f"input.{self.name}")
        path.write_bytes(content)
        return path


def reviews(n=24): return pd.DataFrame(dict(txt=[f"review {i} is {'good' if i % 2 else 'bad'}" for i in range(n)], label=[i % 2 for i in range(n)], group=[f"g{i // 2}" for i in range(n)]))


def as_bytes(write):
    write(out := io.BytesIO())
    return out.getvalue()


@target("csv", "tsv", "json", "jsonl", "parquet", "csv.gz", "jsonl.gz")
class Files(Target):
    "Files of the user, with and without labels"

    def seeds(self):
        import gzip
        df = reviews(12)
        kind = self.name.removesuffix(".gz")
        made = [as_bytes(lambda f: self.write(d, kind, f)) for d in (df, df[["txt", "label"]], df.rename(columns=dict(txt="question")).assign(answer="yes"), df.assign(txt=[1.5, None] * 6, label=["1", None] * 6), df[:0])]
        return [gzip.compress(m, mtime=0) for m in made] if self.name.endswith(".gz") else made

    def write(self, df, kind, f):
        if kind == "parquet": df.to_parquet(f)
        else: f.write((df.to_csv(index=False, sep="\t" if kind == "tsv" else ",") if kind in ("csv", "tsv") else df.to_json(orient="records", lines=kind == "jsonl")).encode())

    def run(self, content):
        path = self.put(content)
        for read in (data.load_texts, data.unlabelled):
            try: texts = read(path)
            except self.fine: continue
            txt = texts if read is data.unlabelled else texts.txt
            assert all(isinstance(t, str) and t.strip() for t in txt) and "".join(txt).encode() and (read is data.unlabelled or set(texts.y) <= {0, 1}), txt


@target("cell")
class Cells(Target):
    "Cells of results, whose checksum fits"

    def seeds(self):
        cell = results.Cell("sciq", 0, "mixing")
        df = pd.DataFrame(dict(n=[1, 2], share=[.5, None], how=["a", None], ok=[True, False], when=pd.to_datetime(["2020-01-01", None])))
        return [results.write_cell(cell, d, self.folder).read_bytes() for d in (df, df[:0], df[["n"]], pd.DataFrame())]

    def run(self, content):
        head, _, body = content.partition(b"\n")
        try: head = b"# " + json.dumps(json.loads(head.removeprefix(b"# ")) | dict(sha256=hashlib.sha256(body).hexdigest())).encode()
        except (ValueError, TypeError, RecursionError): pass
        results.read_cell(self.put(head + b"\n" + body, "sciq-0.csv"))


@target("session")
class Sessions(Target):
    "Sessions, whose checksum fits"

    def seeds(self):
        rng = np.random.default_rng(0)
        out = []
        for policy in ("batch_ucb", "kl_ucb"):
            path = self.folder / policy
            s = session.Session(session.Plan(("a", "b"), policy, batch=8, horizon=6), path)
            out.append(path.read_bytes())
            for _ in range(4):
                q = s.ask()
                s.tell(q.source, rng.random(q.rows), rng.normal(size=(q.rows, 3)))
            out.append(path.read_bytes())
        return [o.partition(b"\n")[2] for o in out]

    def run(self, content):
        head = f"{session._FORMAT} {session._VERSION} {hashlib.sha256(content).hexdigest()}\n"
        with redirect_stderr(io.StringIO()): session.Session.restore(self.put(head.encode() + content, "s")).ask()


def problem(n=24, d=3):
    rng = np.random.default_rng(0)
    views = {k: Views(rng.normal(size=(n, d)), rng.normal(size=(n, d)), np.arange(n) % 2, np.arange(n)) for k in ("w2s", "val", "test")}
    from datacentric_w2s.core import preset
    return Problem(Labelled(rng.normal(size=(n, d)), np.arange(n) % 2), **views, preset=preset("embedded"))


@target("shared")
class SharedFiles(Target):
    "Shared parquet files: the first byte says whether the rest is the file, or notes whose hash fits"

    def seeds(self):
        p = problem()
        about = sharing.provenance("sciq", p, models=("0" * 8, "1" * 8))
        part = Partition(np.repeat(["easy", "hard", "overlap"], 8), np.linspace(0, 1, 24), np.where(np.repeat([0, 1, 0], 8), np.nan, .5), .3, .4, "by hand")
        s = sharing.share(p, about, Pseudolabels(np.linspace(0, 1, 24), "by hand"), part, features=("strong",))
        sharing.write_shared(s, path := self.folder / "seed.parquet")
        return [b"\0" + path.read_bytes(), b"\1" + json.loads(sharing._notes(s))[0].encode()]

    def run(self, content):
        path = self.put(content[1:], "rows.parquet")
        if content[:1] == b"\1":
            import pyarrow.parquet as pq
            table, text = pq.read_table(self.folder / "seed.parquet"), content[1:].decode("utf-8", "replace")
            notes = {sharing._KEY: json.dumps([text, hashlib.sha256(text.encode()).hexdigest()]).encode(), sharing._SUM: b"0" * 64}
            pq.write_table(table.replace_schema_metadata(notes), path)
        sharing.read_shared(path)


@target("manifest")
class Manifests(Target):
    "Manifests of artifacts"
    a = artifacts.Artifact("toy", "toy", "1", "0" * 64, ("toy/rows/",), 10, "CC0-1.0")

    def seeds(self):
        (self.folder / "toy/rows").mkdir(parents=True, exist_ok=True)
        (self.folder / "toy/rows/a.txt").write_text("a")
        return [json.dumps(dict(files={"toy/rows/a.txt": (1, hashlib.sha256(b"a").hexdigest())})).encode(), b"{}", b'{"files": {"toy/rows/../../x": [1e999, ""]}}']

    def run(self, content):
        self.put(content, "manifest.json")
        assert isinstance(artifacts._faults(self.folder, self.a), list)


def zipped(members):
    with zipfile.ZipFile(out := io.BytesIO(), "w") as z:
        for name, content, *kind in members: z.writestr(zipfile.ZipInfo(name), content, *kind)
    return out.getvalue()


@target("wheel")
class Wheels(Target):
    "Wheels: whatever is in them, nothing is written outside of their folder"

    def seeds(self): return [zipped([("toy/rows/a.txt", "a"), ("toy/rows/b.txt", "b" * 99, zipfile.ZIP_DEFLATED), ("toy/x.py", "1")]), zipped([("toy/rows/../../../evil", "x")]), zipped([("toy/rows/a", "x", zipfile.ZIP_LZMA), ("toy/rows/a/b", "y", zipfile.ZIP_BZIP2)])]

    def run(self, content):
        wheel, to = self.put(content, "toy.whl"), self.folder / "to"
        shutil.rmtree(to, ignore_errors=True)
        try: artifacts._extract(wheel, ["toy/rows/"], to)
        finally: assert {p.name for p in self.folder.iterdir()} <= {"toy.whl", "to"} and not any(p.is_symlink() for p in to.rglob("*"))


def tiny(folder):
    "A model folder of two layers"
    import transformers as tf
    from safetensors.torch import save_file
    from tokenizers import Tokenizer, models, pre_tokenizers
    import torch
    tok = Tokenizer(models.WordLevel({w: i for i, w in enumerate(["[PAD]", "[UNK]", "rain", "sun"])}, unk_token="[UNK]"))
    tok.pre_tokenizer = pre_tokenizers.Whitespace()
    tf.PreTrainedTokenizerFast(tokenizer_object=tok, pad_token="[PAD]", unk_token="[UNK]").save_pretrained(folder)
    config = tf.LlamaConfig(vocab_size=4, hidden_size=8, intermediate_size=8, num_hidden_layers=2, num_attention_heads=2, max_position_embeddings=16)
    config.save_pretrained(folder)
    model = tf.AutoModel.from_config(config)
    save_file({k: torch.full_like(v, .1).contiguous() for k, v in model.state_dict().items()}, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def seen(model):
    x = activations.activations(["rain sun", "sun"], model, cache=False, progress=False, device="cpu")
    assert x.dtype == np.float32 and x.shape[0] == 2 and np.isfinite(x).all()


@target("model.safetensors", "config.json", "tokenizer.json", "tokenizer_config.json")
class Models(Target):
    "A model's folder, one file of which is changed"

    def seeds(self):
        tiny(self.folder)
        return [(self.folder / self.name).read_bytes()]

    def run(self, content):
        self.put(content, self.name)
        seen(self.folder)


@target("gguf")
class Ggufs(Target):
    "GGUF files"

    def seeds(self):
        import gguf
        w = gguf.GGUFWriter(path := self.folder / "seed", "llama")
        for say, value in ((w.add_block_count, 1), (w.add_context_length, 16), (w.add_embedding_length, 8), (w.add_feed_forward_length, 8), (w.add_head_count, 2), (w.add_head_count_kv, 2), (w.add_layer_norm_rms_eps, 1e-5),
                           (w.add_vocab_size, 4), (w.add_tokenizer_model, "gpt2"), (w.add_token_list, ["a", "b", "ab", "<e>"]), (w.add_token_merges, ["a b"]), (w.add_token_types, [1, 1, 1, 3]), (w.add_eos_token_id, 3), (w.add_bos_token_id, 3)): say(value)
        shapes = dict(token_embd=(4, 8), output_norm=(8,)) | {f"blk.0.{k}": v for k, v in dict(attn_norm=(8,), ffn_norm=(8,), attn_q=(8, 8), attn_k=(8, 8), attn_v=(8, 8), attn_output=(8, 8), ffn_gate=(8, 8), ffn_up=(8, 8), ffn_down=(8, 8)).items()}
        for k, s in shapes.items(): w.add_tensor(f"{k}.weight", np.full(s, .1, np.float32))
        for step in (w.write_header_to_file, w.write_kv_data_to_file, w.write_tensors_to_file, w.close): step()
        return [path.read_bytes(), b"GGUF" + struct.pack("<IQQ", 3, 2**60, 2**60)]

    def run(self, content): seen(self.put(content, "m.gguf"))


@target("shard")
class Shards(Target):
    "Activation shards, whose checksums fit where there is a header"

    def store(self): return activations.Store(self.folder, dict(format=1))

    def seeds(self):
        keys = np.arange(96, dtype=np.uint8).reshape(3, 32)
        activations._write_shard(self.store(), keys, np.ones((3, 4), np.float32))
        out = next(self.folder.glob("*.safetensors")).read_bytes()
        return [out, out.replace(b'"F32"', b'"F16"'), out.replace(b"[3,4]", b"[4,3]"), out.replace(b"[3,32]", b"[6,16]")]

    def sealed(self, content):
        n = int.from_bytes(content[:8], "little")
        try:
            head = json.loads(content[8:8 + n])
            part = lambda k: content[8 + n:][slice(*head[k]["data_offsets"])]
            head["__metadata__"] = dict(store=self.store().key, keys_sha256=hashlib.sha256(part("keys")).hexdigest(), x_sha256=hashlib.sha256(part("x")).hexdigest())
            text = json.dumps(head).encode()
        except (ValueError, TypeError, LookupError, OverflowError, RecursionError, AttributeError): return content
        return len(text).to_bytes(8, "little") + text + content[8 + n:]

    def run(self, content):
        for p in self.folder.glob("*"): p.unlink()
        self.put(self.sealed(content), "s.safetensors")
        sheet = activations._Sheet(3)
        found = activations._read(self.store(), np.arange(96, dtype=np.uint8).reshape(3, 32), [0, 1, 2], sheet, report=True)
        assert not found.any() or sheet.x.dtype == np.float32 and sheet.x.ndim == 2


@target("store")
class Stores(Target):
    "Manifests of stores of activations"

    def seeds(self):
        activations._prepare(s := activations.Store(self.folder, dict(format=1)))
        return [(s.folder / "manifest.json").read_bytes(), b"[]", b"null"]

    def run(self, content):
        self.put(content, "manifest.json")
        activations._prepare(activations.Store(self.folder, dict(format=1)))


@target("command")
class Commands(Target):
    "Words of the command line, with zeros between; a model is replaced by chance"

    def seeds(self):
        reviews(60).to_csv(self.folder / "r.csv", index=False)
        lines = ["0 r.csv", "0 r.csv --format json --sizes .3,.3,.2,.2 --seed 3", "0 r.csv --columns txt=txt,label=label --labels 1=0,0=1 --out o.csv", "0 r.csv --t-hard .5 --t-overlap nan --how max_dot --no-balance", "1 --source hub", "0 r.csv --detector published --max-rows 40"]
        return ["\0".join(s.split()).encode() for s in lines]

    def run(self, content):
        first, *words = content.decode("utf-8", "surrogateescape").split("\0")
        home, made = os.getcwd(), commands.make_problem
        os.chdir(self.folder)
        commands.make_problem = wraps(made)(lambda splits, **_: pretend(splits))
        try:
            with redirect_stdout(io.TextIOWrapper(io.BytesIO(), "utf-8")), redirect_stderr(io.TextIOWrapper(io.BytesIO(), "utf-8", "backslashreplace")):
                code = (commands.w2s_datasets if first == "1" else commands.w2s_detect)([w for w in words if "/" not in w])
            assert code in (0, 1), code
        except SystemExit as e: assert e.code in (0, 2), e.code
        finally:
            os.chdir(home)
            commands.make_problem = made


def pretend(splits):
    "A problem with features by chance"
    from datacentric_w2s.core import preset
    rng = np.random.default_rng(0)
    x = lambda t: rng.normal(size=(len(t), 3)) + t.y[:, None]
    views = {k: Views(x(t), x(t), t.y, np.arange(len(t)), group=t.group) for k, t in splits.items() if k != "weak"}
    return Problem(Labelled(x(splits.weak), splits.weak.y), **views, preset=preset("embedded"))


def change(content, others, rng):
    "An input with a few changes"
    b = bytearray(content)
    for _ in range(rng.choice((1, 1, 2, 4, 8))):
        at, n = rng.randrange(len(b) + 1), rng.choice((1, 2, 8, 64))
        how = rng.randrange(7)
        if how == 0 and at < len(b): b[at] ^= 1 << rng.randrange(8)
        elif how == 1: b[at:at + n] = b""
        elif how == 2: b[at:at] = rng.choice(WORDS)
        elif how == 3: b[at:at + n] = rng.randbytes(n)
        elif how == 4: b[at:] = b""
        elif how == 5: b[at:] = (other := rng.choice(others))[rng.randrange(len(other) + 1):]
        else: b[at:at + n] = rng.choice(WORDS)
    return bytes(b)


def tried(t, content):
    "Run one input; documented errors are fine"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try: t.run(content)
        except t.fine: pass


def without_coverage(name, folder, runs, seconds, keep, seed=0):
    "Seeds as they are, then changed ones: the number of runs, and findings as pairs of an error and a file"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        seeds = (t := TARGETS[name](name, folder)).seeds()
    rng, end, found, n = random.Random(f"{seed}{name}"), time.monotonic() + (seconds or 1e9), [], 0
    while n < (runs or 1e9) and time.monotonic() < end:
        content = seeds[n] if n < len(seeds) else change(rng.choice(seeds), seeds, rng)
        n += 1
        try: tried(t, content)
        except BaseException as e:  # a finding, whatever it is
            if isinstance(e, KeyboardInterrupt): raise
            path = Path(keep) / f"{name}-{hashlib.sha256(content).hexdigest()[:12]}"
            path.write_bytes(content)
            found.append((f"{path.name}: {traceback.format_exception(e)[-2].strip().splitlines()[0]} {type(e).__name__}: {str(e)[:200]}", content))
    return n, found


def with_coverage(name, folder, runs, seconds, keep, seed):
    "The same sought with atheris; it ends the process"
    corpus = Path(folder) / "corpus"
    corpus.mkdir()
    (Path(folder) / "at").mkdir()
    t = TARGETS[name](name, Path(folder) / "at")
    warnings.simplefilter("ignore")
    for i, s in enumerate(t.seeds()): (corpus / str(i)).write_bytes(s)
    words = Path(folder) / "words"
    words.write_text("".join('"' + "".join(f"\\x{c:02x}" for c in w) + '"\n' for w in WORDS))
    limits = [f"-runs={runs}"] * bool(runs) + [f"-max_total_time={seconds}"] * bool(seconds)
    atheris.Setup([sys.argv[0], *limits, f"-seed={seed + 1}", f"-dict={words}", "-timeout=60", "-rss_limit_mb=6000", "-max_len=100000", "-print_final_stats=1", f"-artifact_prefix={keep}/{name}-", str(corpus)], lambda content: tried(t, content))
    atheris.Fuzz()


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("target", choices=[*TARGETS, "all"])
    parser.add_argument("--runs", type=int, default=0)
    parser.add_argument("--seconds", type=int, default=0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--keep", type=Path, default=Path("found"), help="a folder for the inputs of findings")
    args = parser.parse_args()
    args.keep.mkdir(exist_ok=True)
    bad = 0
    for name in TARGETS if args.target == "all" else [args.target]:
        with tempfile.TemporaryDirectory() as folder:
            if atheris is None:
                n, found = without_coverage(name, folder, args.runs or (0 if args.seconds else 1000), args.seconds, args.keep, args.seed)
                print(f"{name}: {n} runs, {len(found)} findings", *(f for f, _ in found), sep="\n  ", flush=True)
                bad += len(found)
            else:
                print(f"== {name}", flush=True)
                if (child := os.fork()) == 0: with_coverage(name, folder, args.runs or (0 if args.seconds else 1000), args.seconds, args.keep, args.seed)
                if code := os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]): bad, _ = bad + 1, print(f"== {name}: ended with {code}", flush=True)
    return bad


if __name__ == "__main__": sys.exit(min(main(), 100))
