"""Activations: equal to the plain model for each architecture, and a cache that survives what happens to caches. Tiny random models; no network."""
import json
import os
import subprocess
import sys
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers as tf
from safetensors.numpy import load_file
from tokenizers import Tokenizer, models, pre_tokenizers

from datacentric_w2s import activations as A
from datacentric_w2s.activations import activations, language_model, make_problem
from datacentric_w2s.core import Splits, Texts

SMALL = dict(vocab_size=40, hidden_size=32, intermediate_size=64, num_hidden_layers=4, num_attention_heads=4, max_position_embeddings=64)
CONFIGS = dict(
    llama=lambda: tf.LlamaConfig(**SMALL, num_key_value_heads=2),
    qwen2=lambda: tf.Qwen2Config(**SMALL, num_key_value_heads=2),
    gpt_neox=lambda: tf.GPTNeoXConfig(**SMALL),
    gpt2=lambda: tf.GPT2Config(vocab_size=40, n_embd=32, n_layer=4, n_head=4, n_positions=64),
    bert=lambda: tf.BertConfig(**SMALL),
    distilbert=lambda: tf.DistilBertConfig(vocab_size=40, dim=32, hidden_dim=64, n_layers=4, n_heads=4, max_position_embeddings=64),
)


def save(folder, config, padding_side="right"):
    tok = Tokenizer(models.WordLevel({w: i for i, w in enumerate(["[PAD]", "[UNK]", *(f"w{i}" for i in range(38))])}, unk_token="[UNK]"))
    tok.pre_tokenizer = pre_tokenizers.Whitespace()
    tf.PreTrainedTokenizerFast(tokenizer_object=tok, pad_token="[PAD]", unk_token="[UNK]", padding_side=padding_side).save_pretrained(folder)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        tf.AutoModel.from_config(config).save_pretrained(folder)
    return folder


def some_texts(n, seed=0):
    rng = np.random.default_rng(seed)
    return [" ".join(f"w{j}" for j in rng.integers(0, 38, rng.integers(1, 20))) + f" w{i % 38} w{i // 38}" for i in range(n)]


@pytest.fixture(scope="module", params=sorted({*CONFIGS} - {"qwen2"}))  # AutoTokenizer gives a Qwen2 folder Qwen2's own tokenizer, which can't be this toy
def folder(request, tmp_path_factory): return save(tmp_path_factory.mktemp(request.param), CONFIGS[request.param]())


@pytest.fixture(scope="module")
def llama(tmp_path_factory): return save(tmp_path_factory.mktemp("llama"), CONFIGS["llama"]())


def plain(folder, texts, layer, pooling):
    "One text at a time, all layers"
    tok, model = tf.AutoTokenizer.from_pretrained(folder), tf.AutoModel.from_pretrained(folder).eval()
    out = []
    with torch.inference_mode():
        for t in texts:
            h = model(torch.tensor([tok(t)["input_ids"]]), output_hidden_states=True).hidden_states[layer][0]
            out.append((h[-1] if pooling == "last" else h.mean(0)).numpy())
    return np.stack(out)


def gap(a, b): return (np.linalg.norm(a - b, axis=1) / np.linalg.norm(b, axis=1)).max()


@pytest.mark.parametrize("layer", [0, 1, 2, 4])
@pytest.mark.parametrize("pooling", ["last", "mean"])
def test_equals_the_plain_model(folder, layer, pooling):
    texts = some_texts(40)
    assert gap(activations(texts, folder, layer=layer, pooling=pooling, cache=False, progress=False), plain(folder, texts, layer, pooling)) < 1e-5


@pytest.mark.parametrize("layer", range(5))
@pytest.mark.parametrize("kind", CONFIGS)
def test_a_cut_model_gives_the_hidden_state(kind, layer):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = tf.AutoModel.from_config(CONFIGS[kind]()).eval()
    batch = dict(input_ids=torch.arange(2, 20).reshape(2, 9), attention_mask=torch.tensor([[1] * 9, [1] * 5 + [0] * 4]))
    with torch.inference_mode():
        want = model(**batch, output_hidden_states=True).hidden_states[layer]
        got = A._cut(model, 4, layer)(**batch)
    real = batch["attention_mask"].bool()
    assert torch.allclose(got[real], want[real], rtol=1e-5, atol=1e-6)


def test_fewer_blocks_are_computed(folder):
    counts = []
    model = tf.AutoModel.from_pretrained(folder).eval()
    for b in model.get_submodule(A._blocks(model, 4)): b.register_forward_hook(lambda *a: counts.append(1))
    run = A._cut(model, 4, 2)
    with torch.inference_mode(): run(input_ids=torch.tensor([[2, 3, 4]]), attention_mask=torch.ones(1, 3, dtype=torch.long))
    assert len(counts) == 2


def test_a_model_without_a_list_of_blocks(llama, monkeypatch):
    monkeypatch.setattr(A, "_blocks", lambda model, n: None)
    texts = some_texts(5)
    assert gap(activations(texts, llama, layer=2, pooling="last", cache=False, progress=False), plain(llama, texts, 2, "last")) < 1e-5


@pytest.mark.parametrize("kind", ["llama", "gpt2", "bert"])
def test_padding_side_of_the_tokenizer_does_not_matter(kind, tmp_path):
    texts = some_texts(20)
    left, right = (activations(texts, save(tmp_path / s, CONFIGS[kind](), s), layer=3, cache=False, progress=False) for s in ("left", "right"))
    assert np.array_equal(left, right)


@pytest.mark.parametrize("pooling", ["last", "mean"])
def test_pooling_ignores_pads_on_either_side(pooling):
    h, n = torch.randn(3, 6, 4, generator=torch.Generator().manual_seed(0)), [6, 3, 1]
    for side in ("left", "right"):
        mask, want = torch.zeros(3, 6, dtype=torch.long), []
        for r, m in enumerate(n):
            real = slice(0, m) if side == "right" else slice(6 - m, 6)
            mask[r, real] = 1
            want.append(h[r, real][-1] if pooling == "last" else h[r, real].mean(0))
        assert torch.allclose(A._pool(h, mask, pooling), torch.stack(want), atol=1e-6)


def test_batch_composition_does_not_matter(llama, monkeypatch):
    texts = some_texts(60)
    one = activations(texts, llama, layer=3, cache=False, progress=False)
    monkeypatch.setattr(A, "_batches", lambda lengths, budget: [[i] for i in range(len(lengths))])
    assert gap(activations(texts[::-1], llama, layer=3, cache=False, progress=False)[::-1], one) < 1e-5


def test_bfloat16_is_close_and_comes_back_as_float32(folder):
    texts = some_texts(30)
    full, half = (activations(texts, folder, layer=2, dtype=d, cache=False, progress=False) for d in ("float32", torch.bfloat16))
    assert half.dtype == np.float32 and 1e-5 < gap(half, full) < .04


def test_no_global_state_is_changed(llama):
    from transformers.utils import logging
    state = lambda: (torch.get_num_threads(), torch.get_default_dtype(), torch.is_grad_enabled(), torch.get_rng_state().sum().item(),
                     logging.get_verbosity(), logging.is_progress_bar_enabled(), np.random.get_state()[1].sum())
    before = state()
    activations(some_texts(3), llama, cache=False, progress=False)
    assert state() == before


def test_same_texts_in_another_order_load_no_model(llama, tmp_path, monkeypatch):
    texts = some_texts(50)
    x = activations(texts, llama, cache=tmp_path, progress=False)
    monkeypatch.setattr(A, "_load", lambda *a: pytest.fail("a model was loaded"))
    monkeypatch.setattr(A, "_tokenise", lambda *a: pytest.fail("texts were tokenised"))
    assert np.array_equal(activations(texts[::-2], llama, cache=tmp_path, progress=False), x[::-2])
    assert np.array_equal(activations([texts[0]] * 3, llama, layer=4, cache=tmp_path), x[[0, 0, 0]])  # -1 and 4 are one layer


def stop_after(n, error, monkeypatch):
    "Let the model run for `n` shards, then raise"
    run, calls = A._run, []
    def stopping(*a, **k):
        calls.append(len(a[0]))
        if len(calls) > n: raise error
        return run(*a, **k)
    monkeypatch.setattr(A, "_run", stopping)
    return calls


@pytest.mark.parametrize("error", [KeyboardInterrupt(), RuntimeError("out of memory")])
def test_an_interrupted_run_resumes_at_the_shard(llama, tmp_path, monkeypatch, error):
    monkeypatch.setattr(A, "TEXTS_A_SHARD", 10)
    texts = some_texts(35)
    want = activations(texts, llama, cache=tmp_path / "undisturbed", progress=False)
    with monkeypatch.context() as m:
        stop_after(2, error, m)
        with pytest.raises(type(error)): activations(texts, llama, cache=tmp_path / "a", progress=False)
    with monkeypatch.context() as m:
        calls = stop_after(99, error, m)
        assert np.array_equal(activations(texts, llama, cache=tmp_path / "a", progress=False), want)
    assert calls == [10, 5]
    names = lambda k: {p.name: tensors(p) for p in (tmp_path / k).glob("*/*.safetensors")}
    assert names("a") == names("undisturbed") and len(names("a")) == 4


def test_interrupted_while_writing_leaves_no_file(llama, tmp_path, monkeypatch):
    def half_written(path, *a, **k): raise KeyboardInterrupt
    with monkeypatch.context() as m:
        m.setattr(A.os, "replace", lambda a, b: half_written(b) if str(b).endswith(".safetensors") else os.rename(a, b))
        with pytest.raises(KeyboardInterrupt): activations(some_texts(3), llama, cache=tmp_path, progress=False)
    assert sorted(p.name for p in tmp_path.glob("*/*")) == [".lock", "manifest.json"]
    stale = next(tmp_path.iterdir()) / ".abc.safetensors.1.tmp"  # of a process that was killed
    stale.write_bytes(b"half")
    assert len(activations(some_texts(3), llama, cache=tmp_path, progress=False)) == 3
    assert not stale.exists()


def tensors(path): return {k: v.tobytes() for k, v in load_file(path).items()}  # (the order of the header's entries is by chance)


def flip(at): return lambda b: b[:at] + bytes([b[at] ^ 1]) + b[at + 1:]


@pytest.mark.parametrize("damage", [flip(-1), flip(-3 * 32 - 5), flip(20), lambda b: b[:len(b) // 2], lambda b: b"", lambda b: b"\xff" * 100],
                         ids=["keys", "x", "header", "truncated", "empty", "rubbish"])
def test_a_damaged_shard_is_reported_and_computed_again(llama, tmp_path, monkeypatch, damage):
    monkeypatch.setattr(A, "TEXTS_A_SHARD", 3)
    texts = some_texts(9)
    x = activations(texts, llama, cache=tmp_path, progress=False)
    shard = sorted(tmp_path.glob("*/*.safetensors"))[1]
    good = tensors(shard)
    shard.write_bytes(damage(shard.read_bytes()))
    calls = stop_after(99, None, monkeypatch)
    with pytest.warns(UserWarning, match=shard.name): assert np.array_equal(activations(texts, llama, cache=tmp_path, progress=False), x)
    assert calls == [3] and tensors(shard) == good
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert np.array_equal(activations(texts, llama, cache=tmp_path, progress=False), x)


def test_a_shard_of_another_layer_is_never_read(llama, tmp_path):
    texts = some_texts(4)
    x2, x3 = (activations(texts, llama, layer=k, cache=tmp_path, progress=False) for k in (2, 3))
    two, three = (next(tmp_path.glob(f"*-{k}-last-*/*.safetensors")) for k in (2, 3))
    three.write_bytes(two.read_bytes())
    with pytest.warns(UserWarning, match="another model, layer"): assert np.array_equal(activations(texts, llama, layer=3, cache=tmp_path, progress=False), x3)
    assert not np.array_equal(x2, x3)


@pytest.mark.parametrize("text", ["{", "[]", json.dumps(dict(key="of another", recipe={}))])
def test_a_foreign_manifest_is_reported_and_written_anew(llama, tmp_path, text):
    activations(some_texts(4), llama, cache=tmp_path, progress=False)
    manifest = next(tmp_path.glob("*/manifest.json"))
    good = manifest.read_text()
    manifest.write_text(text)
    with pytest.warns(UserWarning, match="manifest.json"): activations(some_texts(6), llama, cache=tmp_path, progress=False)
    assert manifest.read_text() == good


def test_the_key_holds_all_that_decides_the_values(llama, tmp_path):
    lm = language_model(llama)
    stores = [A._store(tmp_path, lm, 2, "last", "float32"), A._store(tmp_path, lm, 3, "last", "float32"), A._store(tmp_path, lm, 2, "mean", "float32"),
              A._store(tmp_path, lm, 2, "last", "bfloat16"), A._store(tmp_path, A.replace(lm, identity="other"), 2, "last", "float32"),
              A._store(tmp_path, A.replace(lm, max_length=32), 2, "last", "float32")]
    assert len({s.key for s in stores}) == len({s.folder for s in stores}) == 6


CHILD = """
import sys, time
from datacentric_w2s import activations as A
load = A._load
def slow(*a):
    print("loaded", flush=True); time.sleep(2)
    return load(*a)
A._load = slow
x = A.activations(sys.argv[3:], sys.argv[1], cache=sys.argv[2], progress=False)
print(x.sum())
"""


def test_two_processes_compute_once(llama, tmp_path):
    cmd = [sys.executable, "-c", CHILD, str(llama), str(tmp_path), *some_texts(5)]
    env = os.environ | {"PYTHONPATH": str(Path(A.__file__).parents[1]), "OMP_NUM_THREADS": "1"}
    both = [subprocess.Popen(cmd, stdout=subprocess.PIPE, text=True, env=env) for _ in range(2)]
    out = [p.communicate(timeout=120)[0].split() for p in both]
    assert [p.returncode for p in both] == [0, 0]
    assert sum("loaded" in o for o in out) == 1 and out[0][-1] == out[1][-1]


def test_nan_weights_raise_and_are_not_cached(llama, tmp_path):
    bad = save(tmp_path / "bad", CONFIGS["llama"]())
    model = tf.AutoModel.from_pretrained(bad)
    with torch.no_grad(): model.embed_tokens.weight[5] = float("nan")
    model.save_pretrained(bad)
    with pytest.raises(ValueError, match=r"bad: 1 of 3 activations at layer 2 in bfloat16 .*first rows: \[1\].*Try dtype='float32'"):
        activations(["w1 w2", "w3", "w4"], bad, layer=2, dtype="bfloat16", cache=tmp_path / "cache", progress=False)
    assert not list((tmp_path / "cache").glob("*/*.safetensors"))


@pytest.mark.parametrize("layer", [5, -2, 1.0, 2.5, "last", True, float("nan")])
def test_a_layer_that_does_not_exist(llama, layer):
    with pytest.raises(ValueError, match="has 4 layers"): activations(["w1"], llama, layer=layer, cache=False)


def test_an_unknown_hub_id_gives_one_clear_error(monkeypatch):
    import huggingface_hub.constants
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(ValueError, match=r"'nobody-here/no-such-model' can't be loaded.*network.*token.*all-MiniLM-L6-v2, SmolLM2-135M-Instruct"):
        activations(["w1"], "nobody-here/no-such-model")


def test_code_that_comes_with_a_model_is_not_run(tmp_path):
    folder = save(tmp_path / "own", CONFIGS["llama"]())
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | dict(model_type="own-model", auto_map=dict(AutoConfig="own.Config", AutoModel="own.Model"))))
    (folder / "own.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')")
    with pytest.raises(ValueError, match="can't be loaded"): activations(["w1"], folder, cache=False)
    assert not (tmp_path / "ran").exists()


def test_make_problem_reads_each_model_once_and_keeps_rows(llama, tmp_path, monkeypatch):
    texts = some_texts(24)
    split = lambda rows: Texts("toy", [texts[i] for i in rows], [i % 2 for i in rows], [f"q{i // 2}" for i in rows])
    splits = Splits(split(range(6)), split(range(6, 14)), split(range(14, 18)), split(range(18, 24)))
    calls, load = [], A._load
    monkeypatch.setattr(A, "_load", lambda *a: (calls.append(a[1]), load(*a))[1])
    p = make_problem(splits, weak=llama, strong=llama, weak_layer=1, strong_layer=.5, strong_pooling="mean", cache=tmp_path, progress=False)
    assert calls == [1, 2]
    assert np.array_equal(p.test.x_weak, activations(texts[18:], llama, layer=1, cache=tmp_path))
    assert np.array_equal(p.test.x_strong, activations(texts[18:], llama, layer=2, pooling="mean", cache=tmp_path))
    assert p.w2s.group.tolist() == splits.w2s.group.tolist() and p.w2s.ids.tolist() == list(range(8))
    assert (p.preset.weak_layer, p.preset.strong_pooling, p.preset.weak_pooling) == (1, "mean", "last")
