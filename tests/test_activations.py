"""Activations: equal to the plain model for each architecture, and a cache that survives what happens to caches. Tiny random models; no network."""
import json
import multiprocessing
import os
import signal
import subprocess
import sys
import threading
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers as tf
from hypothesis import given
from hypothesis import strategies as st
from safetensors.numpy import load_file
from tokenizers import Tokenizer, models, pre_tokenizers

from datacentric_w2s import activations as A
from datacentric_w2s.activations import activations, language_model, make_problem
from datacentric_w2s.core import Splits, Texts

SMALL = dict(vocab_size=40, hidden_size=32, intermediate_size=64, num_hidden_layers=4, num_attention_heads=4, max_position_embeddings=64)
CONFIGS = dict(
    llama=lambda **k: tf.LlamaConfig(**SMALL | k, num_key_value_heads=2),
    qwen2=lambda **k: tf.Qwen2Config(**SMALL | k, num_key_value_heads=2),
    gpt_neox=lambda **k: tf.GPTNeoXConfig(**SMALL | k),
    gpt2=lambda **k: tf.GPT2Config(vocab_size=40, n_embd=32, n_layer=4, n_head=4, n_positions=64, **k),
    bert=lambda **k: tf.BertConfig(**SMALL | k),
    distilbert=lambda **k: tf.DistilBertConfig(vocab_size=40, dim=32, hidden_dim=64, n_layers=4, n_heads=4, max_position_embeddings=64, **k),
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


SHARING = ["llama", "qwen2", "gpt2", "gpt_neox"]
WILD = dict(initializer_range=.3)  # attention that is far from even, so that what a token may look at, and its place, matter


@pytest.fixture(scope="module")
def wild(tmp_path_factory): return {k: save(tmp_path_factory.mktemp(k), CONFIGS[k](**WILD)) for k in [*SHARING, "bert"]}


def family(rng, n, shared):
    "Token ids of `n` texts that begin alike; what follows differs from its first token on"
    start, first = rng.integers(2, 40, shared), rng.permutation(np.arange(2, 40))[:n]
    return [np.array([*start, f, *rng.integers(2, 40, rng.integers(0, 9))]) for f in first]


def families(kind):
    "Token ids, and the sizes of their packs"
    rng = np.random.default_rng(3)
    if kind == "pairs": return [t for _ in range(6) for t in family(rng, 2, 12)], [2] * 6
    if kind == "fives": return [t for _ in range(2) for t in family(rng, 5, 12)], [5] * 2
    if kind == "empty rest": return [*(f := family(rng, 3, 12)), f[0][:12], *(g := family(rng, 1, 10)), g[0][:10]], [2, 4]
    if kind == "the same tokens": return [*(f := family(rng, 2, 9)), f[0].copy(), *[np.arange(2, 14)] * 2], [2, 3]
    if kind == "unequal beginnings": return [np.array([*range(2, 18), 5]), np.array([*range(2, 16), 7, 8]), np.array([*range(2, 12), 33])], [3]
    return [*family(rng, 1, 20), *family(rng, 2, 9), *family(rng, 5, 14), *family(rng, 1, 3), *family(rng, 3, 30)], [1, 1, 2, 3, 5]  # "mixed", of which one batch has pads


def alone(folder, ids, layer, dtype="float32"):
    "The last token's hidden state of one text at a time, from the whole model"
    model = tf.AutoModel.from_pretrained(folder, dtype=getattr(torch, dtype)).eval()
    with torch.inference_mode(): return np.stack([model(torch.tensor(t)[None], output_hidden_states=True).hidden_states[layer][0, -1].float().numpy() for t in ids])


def together(folder, ids, layer, dtype="float32", pooling="last", share=True):
    return A._run(ids, 0, A._ready(A._pretrained(language_model(folder), dtype), language_model(folder).n_layers, layer, torch.device("cpu")), pooling, torch.device("cpu"), share)


@pytest.mark.parametrize("layer", [0, 1, 2, 4])
@pytest.mark.parametrize("packs", ["pairs", "fives", "empty rest", "the same tokens", "unequal beginnings", "mixed"])
@pytest.mark.parametrize("kind", SHARING)
def test_texts_in_a_pack_have_the_values_that_they_have_alone(wild, kind, packs, layer):
    ids, sizes = families(packs)
    assert sorted(map(len, A._packs(ids, True))) == sizes and language_model(wild[kind]).shares
    assert gap(together(wild[kind], ids, layer), alone(wild[kind], ids, layer)) < 1e-5


@pytest.mark.parametrize("kind", SHARING)
def test_packs_in_bfloat16(wild, kind):
    ids, _ = families("mixed")
    assert gap(together(wild[kind], ids, 2, "bfloat16"), alone(wild[kind], ids, 2, "bfloat16")) < 2e-2


@pytest.mark.parametrize("kind", SHARING)
def test_a_text_in_a_pack_does_not_see_its_neighbours(wild, kind):
    rng = np.random.default_rng(0)
    ids = [np.array([*range(2, 14), f, *rng.integers(2, 40, 4)]) for f in (3, 9, 20, 31)]
    before = together(wild[kind], ids, 4)
    for k in range(4):
        other = [t.copy() for t in ids]
        other[k][-4:] = (other[k][-4:] + 7) % 38 + 2  # the order of the pack stays
        after = together(wild[kind], other, 4)
        assert np.array_equal(np.delete(after, k, 0), np.delete(before, k, 0)) and gap(after[[k]], before[[k]]) > 1e-2


def test_the_shared_part_of_a_pack_and_the_number_of_packs_a_batch_are_bounded(wild, monkeypatch):
    rows = []
    packed = A._packed
    monkeypatch.setattr(A, "_packed", lambda packs, pad: (rows.append([sum(len(p[0]) for p in row) for row in packs]), packed(packs, pad))[1])
    monkeypatch.setattr(A, "TOKENS_A_BATCH", 60)
    rng = np.random.default_rng(1)
    ids = [*family(rng, 14, 12), *family(rng, 9, 30), *family(rng, 2, 5)]
    start = ids[14][:30]
    ids += [np.array([*start[:k], 39, 3]) for k in (16, 20, 25)] + [np.array([*start, 39]), np.array([*start, 39, 39])]  # what share less make the whole pack repeat more
    assert gap(together(wild["llama"], ids, 2), alone(wild["llama"], ids, 2)) < 1e-5
    assert sum(map(sum, rows)) < sum(map(len, ids)) and max(len(r) * max(r) for r in rows) <= 60


def test_one_pack_in_any_order_of_its_texts():
    a, b, c = np.array([4, 2, 7]), np.array([4]), np.array([4, 2, 8, 9])
    tokens, place, part, ends = A._pack([a, b, c])
    assert (tokens.tolist(), place.tolist(), part.tolist(), ends) == ([4, 2, 7, 2, 8, 9], [0, 1, 2, 1, 2, 3], [0, 1, 1, 3, 3, 3], [2, 0, 5])
    seen = A._packed([[A._pack([a, b, c])], [A._pack([a, c[:3]])]], 0)[2]
    assert seen.shape == (2, 1, 6, 6) and seen.any(-1).all()  # no token looks at nothing, which some kernels answer with NaN
    assert seen[1, 0, :5, 5:].sum() == 0


@given(st.lists(st.integers(1, 90), min_size=1, max_size=60), st.integers(1, 300), st.integers(1, 64))
def test_trains_hold_each_pack_once_and_stay_within_the_budget(sizes, budget, least):
    batches = A._trains(sizes, budget, least)
    assert sorted(i for rows in batches for row in rows for i in row) == list(range(len(sizes)))
    for rows in batches:
        long = [sum(sizes[i] for i in row) for row in rows]
        assert max(long) <= max(least, max(sizes[i] for row in rows for i in row)) and (len(rows) * max(long) <= budget or len(rows) == 1)


def test_trains_leave_few_pads():
    sizes = np.random.default_rng(0).integers(10, 60, 300)
    for budget in (512, 8192):
        pads = [len(rows) * max(sum(sizes[i] for i in row) for row in rows) for rows in A._trains(sizes, budget)]
        assert sum(pads) < 1.08 * sizes.sum()  # in rows of one pack, by length, 1.04 and 1.37


def test_packs_in_one_row_do_not_see_each_other(wild):
    rng = np.random.default_rng(0)
    ids = [rng.integers(2, 40, n) for n in (9, 14, 20, 7, 11)]
    assert [len(rows) for rows in A._trains([len(t) for t in ids], 512)] == [1]
    for kind in SHARING: assert gap(together(wild[kind], ids, 3), alone(wild[kind], ids, 3)) < 1e-5


def no_packs(monkeypatch): monkeypatch.setattr(A, "_packed", lambda *a: pytest.fail("texts were packed"))


def test_an_encoder_does_not_share(wild, monkeypatch):
    no_packs(monkeypatch)
    texts = alike(6)
    assert not language_model(wild["bert"]).shares
    assert gap(activations(texts, wild["bert"], layer=2, pooling="last", cache=False, progress=False), plain(wild["bert"], texts, 2, "last")) < 1e-5


def test_a_sliding_window_does_not_share(tmp_path):
    for config, shares in ((dict(use_sliding_window=True, sliding_window=4, max_window_layers=0), False), (dict(use_sliding_window=False, sliding_window=4), True)):
        folder = save(tmp_path / str(shares), CONFIGS["qwen2"](**WILD, **config))
        ids, lm = families("mixed")[0], language_model(folder)
        assert lm.shares is shares
        assert gap(together(folder, ids, 4, share=lm.shares), alone(folder, ids, 4)) < 1e-5


def test_the_mean_is_not_shared(wild, monkeypatch):
    no_packs(monkeypatch)
    texts = alike(6)
    assert gap(activations(texts, wild["llama"], layer=2, pooling="mean", cache=False, progress=False), plain(wild["llama"], texts, 2, "mean")) < 1e-5


def alike(n, each=2, seed=0):
    "`n` texts, `each` of which begin alike"
    rng = np.random.default_rng(seed)
    starts = [" ".join(f"w{j}" for j in rng.integers(0, 38, rng.integers(9, 20))) for _ in range(-(-n // each))]
    return [f"{starts[i // each]} w{i % each} " + " ".join(f"w{j}" for j in rng.integers(0, 38, rng.integers(0, 9))) for i in range(n)]


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
def test_a_changed_set_of_texts_agrees(wild, tmp_path, kind):
    texts, rng = alike(60, each=4), np.random.default_rng(1)
    get = lambda texts, cache: activations(texts, wild[kind], layer=3, pooling="last", cache=cache, progress=False)
    whole = get(texts, tmp_path / "whole")
    assert gap(whole, plain(wild[kind], texts, 3, "last")) < 1e-5
    for k, some in enumerate((rng.permutation(60), rng.permutation(60)[:30], np.arange(1, 60, 4), np.arange(60)[::-3])):
        assert gap(get([texts[i] for i in some], False), whole[some]) < 1e-5
        assert gap(get([texts[i] for i in some], tmp_path / str(k)), whole[some]) < 1e-5
        assert gap(get(texts, tmp_path / str(k)), whole) < 1e-5  # the rest of each pack comes later
    again = rng.permutation(60)
    assert np.array_equal(get([texts[i] for i in again], tmp_path / "again"), whole[again])
    assert cached(tmp_path / "again") == cached(tmp_path / "whole")


@pytest.mark.parametrize("each, tokens", [(2, 512), (5, 512), (25, 60)], ids=["pairs", "fives", "one beginning in many packs"])
@pytest.mark.parametrize("shards", [1, 2, 3])
def test_an_interrupted_run_with_packs_resumes_and_is_identical(wild, tmp_path, monkeypatch, each, tokens, shards):
    monkeypatch.setattr(A, "TEXTS_A_SHARD", 6)
    monkeypatch.setattr(A, "TOKENS_A_BATCH", tokens)
    texts = alike(50, each)
    get = lambda name: activations(texts, wild["llama"], layer=2, pooling="last", cache=tmp_path / name, progress=False)
    want = get("undisturbed")
    with monkeypatch.context() as m:
        stop_after(shards, KeyboardInterrupt(), m)
        with pytest.raises(KeyboardInterrupt): get("a")
    assert len(cached(tmp_path / "a")) == shards
    with monkeypatch.context() as m:
        calls = stop_after(99, None, m)
        assert np.array_equal(get("a"), want)
    assert len(calls) == len(cached(tmp_path / "undisturbed")) - shards
    assert cached(tmp_path / "a") == cached(tmp_path / "undisturbed")


def test_what_is_left_of_any_set_of_texts_makes_the_same_shards(monkeypatch):
    monkeypatch.setattr(A, "TEXTS_A_SHARD", 6)
    monkeypatch.setattr(A, "TOKENS_A_BATCH", 60)  # so that texts that begin alike fill several packs
    for seed in range(60):
        rng = np.random.default_rng(seed)
        ids = [*family(rng, 25, 12), *family(rng, 3, 9), *family(rng, 1, 9)]
        keys = np.frombuffer(rng.bytes(32 * len(ids)), np.uint8).reshape(-1, 32)
        shards = A._shards(ids, keys, True)
        assert sorted(i for s in shards for i in s) == list(range(len(ids)))
        for k in range(1, len(shards)):
            left = sorted(i for s in shards[k:] for i in s)
            assert [[left[i] for i in s] for s in A._shards([ids[i] for i in left], keys[left], True)] == shards[k:]


def cached(folder): return {p.name: tensors(p) for p in folder.glob("*/*.safetensors")}


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
    monkeypatch.setattr(A, "_pretrained", lambda *a: pytest.fail("a model was loaded"))
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
    assert cached(tmp_path / "a") == cached(tmp_path / "undisturbed") and len(cached(tmp_path / "a")) == 4


def test_interrupted_while_writing_leaves_no_file(llama, tmp_path, monkeypatch):
    def half_written(path, *a, **k): raise KeyboardInterrupt
    with monkeypatch.context() as m:
        m.setattr(A.os, "replace", lambda a, b: half_written(b) if str(b).endswith(".safetensors") else os.rename(a, b))
        with pytest.raises(KeyboardInterrupt): activations(some_texts(3), llama, cache=tmp_path, progress=False)
    assert sorted(p.name for p in tmp_path.glob("*/*")) == ["manifest.json"]
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
    look = A.Look(language_model(llama), 2, "last", "float32", "cpu")
    other = [dict(layer=3), dict(pooling="mean"), dict(dtype="bfloat16"), dict(lm=A.replace(look.lm, identity="other")), dict(lm=A.replace(look.lm, max_length=32))]
    stores = [A._store(tmp_path, A.replace(look, **o)) for o in ({}, *other)]
    assert len({s.key for s in stores}) == len({s.folder for s in stores}) == 6
    assert all(A._store(tmp_path, A.replace(look, **o)) == stores[0] for o in (dict(device="cuda"), dict(compile=True), dict(threads=1)))


CHILD = """
import json, sys, time
from pathlib import Path
import numpy as np
from datacentric_w2s import activations as A
texts = sys.argv[3:]
def compute(texts, keys, rows):
    print("computes", flush=True); sys.stdin.readline()
    yield A.Shard(rows, keys, texts, 0), np.full((len(texts), 32), 7, np.float32)
A._through(A.Store(Path(sys.argv[1]), json.loads(sys.argv[2])), texts, A._keys(texts), list(range(len(texts))), A._Sheet(len(texts)), compute)
"""


def test_a_process_waits_for_another_that_computes_the_same_texts(llama, tmp_path, monkeypatch):
    "The other one, which loads no model, gives sevens: who reads them has computed nothing itself"
    activations(["w1"], llama, layer=2, pooling="last", cache=tmp_path, progress=False)
    store, texts = A._store(tmp_path, A.Look(language_model(llama), 2, "last", "float32", "cpu")), some_texts(5)
    env = os.environ | {"PYTHONPATH": str(Path(A.__file__).parents[1])}
    with subprocess.Popen([sys.executable, "-c", CHILD, str(store.folder), json.dumps(store.recipe), *texts],
                          stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=env) as child:
        assert child.stdout.readline() == "computes\n"
        threading.Timer(.5, lambda: print(file=child.stdin, flush=True)).start()
        x = activations(texts, llama, layer=2, pooling="last", cache=tmp_path, progress=False)
    assert (x == 7).all() and child.returncode == 0


def backwards(shards, look, tick):
    "An executor that is done with the last shard first"
    model = look.load()
    for s in reversed(shards): yield s, model(s, tick)


def test_an_executor_of_ones_own_may_be_done_in_any_order(llama, tmp_path, monkeypatch):
    monkeypatch.setattr(A, "TEXTS_A_SHARD", 6)
    texts = some_texts(20)
    get = lambda **k: activations(texts, llama, layer=2, progress=False, **k)
    want = get(cache=tmp_path / "a")
    assert np.array_equal(get(cache=tmp_path / "b", executor=backwards), want) and np.array_equal(get(cache=False, executor=backwards), want)
    assert cached(tmp_path / "a") == cached(tmp_path / "b") and len(cached(tmp_path / "a")) == 4
    with pytest.raises(ValueError, match="either several devices or an executor"): get(executor=backwards, device=["cpu", "cpu"])


@pytest.mark.parametrize("cache", [False, "cache"])
def test_rows_in_a_file_are_those_in_memory(llama, tmp_path, monkeypatch, cache):
    monkeypatch.setattr(A, "TEXTS_A_SHARD", 6)
    texts = some_texts(20)
    texts = [*texts, *texts[::-3], texts[4]]
    get = lambda texts=texts, **k: activations(texts, llama, layer=2, cache=cache and tmp_path / cache, progress=False, **k)
    x = get(out=tmp_path / "x.npy")
    assert isinstance(x, np.memmap) and not x.flags.writeable and np.array_equal(x, get())
    before = (tmp_path / "x.npy").read_bytes()
    stop_after(0, KeyboardInterrupt(), monkeypatch)
    with pytest.raises(KeyboardInterrupt): get([*texts, "w1 w1 w1 w1"], out=tmp_path / "x.npy")
    assert (tmp_path / "x.npy").read_bytes() == before and not list(tmp_path.glob(".*.tmp"))  # what was there is kept until all is there
    for bad in (tmp_path / "x.bin", tmp_path / "no folder" / "x.npy"):
        with pytest.raises(ValueError, match="wanted a .npy file in a folder that exists"): get(out=bad)


def test_blocks_are_compiled_on_request(llama, monkeypatch):
    seen = []
    monkeypatch.setattr(torch.nn.Module, "compile", lambda self, **k: seen.append((type(self).__name__, k)))  # the compiler itself takes a minute
    get = lambda **k: activations(some_texts(5), llama, layer=2, cache=False, progress=False, **k)
    plain = get()
    assert not seen
    assert np.array_equal(get(compile=True), plain) and seen == [("LlamaDecoderLayer", dict(dynamic=True))] * 2  # those that are left, up to the layer


def test_one_process_a_device(llama, tmp_path, monkeypatch):
    monkeypatch.setattr(A, "TEXTS_A_SHARD", 5)
    texts, seen = some_texts(23), []
    want = activations(texts, llama, layer=2, cache=tmp_path / "a", progress=False)
    monkeypatch.setattr(A, "_write_shard", lambda *a, write=A._write_shard: (seen.append(1), write(*a)))
    got = activations(texts, llama, layer=2, cache=tmp_path / "b", progress=False, device=["cpu", "cpu"])
    assert gap(got, want) < 1e-5 and len(seen) == len(cached(tmp_path / "b")) == 5
    assert {k: v["keys"] for k, v in cached(tmp_path / "a").items()} == {k: v["keys"] for k, v in cached(tmp_path / "b").items()}


def test_a_process_that_dies_is_named_and_its_neighbours_shards_are_kept(llama, tmp_path, monkeypatch):
    monkeypatch.setattr(A, "TEXTS_A_SHARD", 5)
    texts, killed = some_texts(40), []

    def write_and_kill(*a, write=A._write_shard):
        write(*a)
        if len(cached(tmp_path)) == 2 and not killed:
            killed.append(multiprocessing.active_children()[0].pid)
            os.kill(killed[0], signal.SIGKILL)

    monkeypatch.setattr(A, "_write_shard", write_and_kill)
    with pytest.raises(RuntimeError, match="device cpu: its process died .* the same call goes on from there"): activations(texts, llama, layer=2, cache=tmp_path, progress=False, device=["cpu"])
    done = len(cached(tmp_path))
    assert 2 <= done < 8
    calls = stop_after(99, None, monkeypatch)
    x = activations(texts, llama, layer=2, cache=tmp_path, progress=False)
    assert len(calls) == 8 - done and gap(x, activations(texts, llama, layer=2, cache=False, progress=False)) < 1e-5


def test_without_a_cache_nothing_is_written(llama, tmp_path, monkeypatch):
    monkeypatch.setattr(A, "cache_dir", lambda: tmp_path / "cache")
    monkeypatch.chdir(tmp_path)
    x = activations(some_texts(4), llama, cache=False, progress=False)
    assert not list(tmp_path.iterdir())
    assert np.array_equal(activations(some_texts(4), llama, progress=False), x) and list((tmp_path / "cache" / "activations").glob("*/*.safetensors"))


@pytest.mark.parametrize("kind", ["llama", "gpt2", "bert"])
def test_a_text_that_is_too_long_is_cut_aloud(wild, kind):
    words = [f"w{i % 38}" for i in range(90)]
    with pytest.warns(UserWarning, match="1 of 2 texts are longer than its 64 tokens and were cut"):
        x = activations([" ".join(words), "w1"], wild[kind], layer=2, cache=False, progress=False)
    assert gap(x, activations([" ".join(words[:64]), "w1"], wild[kind], layer=2, cache=False, progress=False)) < 1e-5


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
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
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
    calls, ready = [], A._ready
    monkeypatch.setattr(A, "_ready", lambda model, n, layer, *a: (calls.append(layer), ready(model, n, layer, *a))[1])
    p = make_problem(splits, weak=llama, strong=llama, weak_layer=1, strong_layer=.5, strong_pooling="mean", cache=tmp_path, progress=False)
    assert calls == [1, 2]
    assert np.array_equal(p.test.x_weak, activations(texts[18:], llama, layer=1, cache=tmp_path))
    assert np.array_equal(p.test.x_strong, activations(texts[18:], llama, layer=2, pooling="mean", cache=tmp_path))
    assert p.w2s.group.tolist() == splits.w2s.group.tolist() and p.w2s.ids.tolist() == list(range(8))
    assert (p.preset.weak_layer, p.preset.strong_pooling, p.preset.weak_pooling) == (1, "mean", "last")
