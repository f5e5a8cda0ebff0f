"""Hugging Face's and Meta's checkpoints and Meta's tokenizers: one model, however it is stored."""

import base64
import json
import math
import os
import random
import sys
import tempfile
from dataclasses import replace
from pathlib import Path

import pytest
import sentencepiece
import tiktoken
import torch
from helpers import normal, random_tokens, refused, same
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from test_llama import LINEAR, LLAMA3, TINY, random_llama
from test_notebook_definitions import definitions
from transformers import LlamaForCausalLM

from llama_int8.errors import ModelFilesError
from llama_int8.transformer.checkpoints import (
    META_BLOCK,
    META_TOP,
    check_tensors,
    read_checkpoint,
    to_halves,
    to_pairs,
    write_meta,
)
from llama_int8.transformer.config import LlamaConfig
from llama_int8.transformer.llama import Llama, rope_frequencies, rope_rotation, rotate
from llama_int8.transformer.tokenizer import (
    LLAMA3_PATTERN,
    LLAMA3_SPECIAL,
    load_meta_tokenizer,
)

META_ROPE = {**LLAMA3, "factor": 16.0, "original_max_position_embeddings": 8192}
TIED = pytest.mark.parametrize("tied", [False, True], ids=["untied", "tied"])
TOKENS = random_tokens(2, 11)


def meta_llama(tied=False, **changes):
    """Hugging Face's tiny model in shapes that Meta's format can say."""
    shapes = {"hidden_size": 48, "intermediate_size": 36, "num_key_value_heads": 6, "head_dim": 8}
    return random_llama(tie_word_embeddings=tied, **{**shapes, **changes})


def save_meta(theirs, folder, shards=1):
    """Write Hugging Face's model in Meta's format."""
    config = LlamaConfig.from_hugging_face(theirs.config.to_dict())
    write_meta(config, theirs.state_dict(), folder, shards)
    return folder


def read_params(folder):
    return json.loads((folder / "params.json").read_text())


def change_params(folder, drop=(), **changes):
    params = {k: v for k, v in read_params(folder).items() if k not in drop}
    (folder / "params.json").write_text(json.dumps({**params, **changes}))


def change_tensors(path, change):
    """Save a .pth file anew after `change(its dictionary)`."""
    tensors = {name: tensor.clone() for name, tensor in torch.load(path).items()}
    change(tensors)
    torch.save(tensors, path)


@torch.inference_mode()
def assert_same_model(folder, theirs, tolerance=1e-5):
    """The folder's model gives the logits of Hugging Face's."""
    ours = Llama.from_pretrained(folder)
    same(ours(TOKENS), theirs(TOKENS).logits, tolerance)
    return ours


# --- pairs and halves -------------------------------------------------------------------------

SHAPES = {
    "heads": st.integers(1, 6),
    "pairs": st.integers(1, 9),
    "columns": st.integers(1, 5),
}


@settings(max_examples=60, deadline=None)
@given(**SHAPES)
def test_to_halves_is_hugging_faces_permutation_and_to_pairs_undoes_it(heads, pairs, columns):
    rows = 2 * heads * pairs
    weight = torch.arange(rows * columns).view(rows, columns)
    permuted = weight.view(heads, rows // heads // 2, 2, columns).transpose(1, 2)
    assert torch.equal(to_halves(weight, heads), permuted.reshape(rows, columns))
    assert torch.equal(to_pairs(to_halves(weight, heads), heads), weight)
    assert torch.equal(to_halves(to_pairs(weight, heads), heads), weight)


def meta_scores(x, weights, heads, frequencies):
    """Meta's scores: neighbouring pairs are complex numbers, turned by a complex factor."""
    angles = torch.outer(torch.arange(len(x)), frequencies)  # (T, D / 2)
    turn = torch.polar(torch.ones_like(angles), angles)[:, None]
    q, k = (  # (T, H, D)
        torch.view_as_real(
            torch.view_as_complex((x @ weight.T).view(len(x), heads, -1, 2)) * turn
        ).flatten(2)
        for weight in weights
    )
    return torch.einsum("thd,shd->hts", q, k)


@settings(max_examples=30, deadline=None)
@given(**SHAPES, length=st.integers(1, 9))
def test_meta_order_under_metas_rotation_scores_as_our_order_under_ours(
    heads, pairs, columns, length
):
    weights = normal(2, 2 * heads * pairs, columns)
    x = normal(length, columns, seed=1)
    shapes = {"head_dim": 2 * pairs, "num_attention_heads": heads, "num_key_value_heads": heads}
    frequencies = rope_frequencies(replace(TINY, **shapes))
    rotation = rope_rotation(torch.arange(length), frequencies, x.dtype)
    q, k = (
        rotate(
            (x @ to_halves(weight, heads).T).view(1, length, heads, -1).mT.mT.transpose(1, 2),
            *rotation,
        )
        for weight in weights
    )
    same((q @ k.mT)[0], meta_scores(x, weights, heads, frequencies), 1e-4)


# --- Hugging Face's folder --------------------------------------------------------------------


@TIED
@pytest.mark.parametrize("shard", ["5GB", "20KB"], ids=["one file", "shards"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_hugging_face_folder_gives_hugging_faces_logits_in_fp32(tied, shard, dtype, tmp_path):
    random_llama(tie_word_embeddings=tied).to(dtype).save_pretrained(tmp_path, max_shard_size=shard)
    assert (len(list(tmp_path.glob("*.safetensors"))) > 1) == (shard == "20KB")
    theirs = LlamaForCausalLM.from_pretrained(tmp_path, dtype=torch.float32).eval()
    ours = assert_same_model(tmp_path, theirs)
    assert ours.lm_head.weight.dtype == torch.float32


def test_biases_rotary_scaling_and_epsilon_come_from_the_folder(tmp_path):
    theirs = random_llama(
        attention_bias=True,
        mlp_bias=True,
        rms_norm_eps=1e-2,
        rope_parameters={**LLAMA3, "rope_theta": 50.0},
    )
    theirs.save_pretrained(tmp_path)
    assert_same_model(tmp_path, theirs)


def test_computed_frequencies_in_a_file_are_passed_over(saved, theirs):
    extra = {"model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(4)}
    path = saved / "model.safetensors"
    save_file(load_file(path) | extra, path, metadata={"format": "pt"})
    assert_same_model(saved, theirs)


def test_a_tied_models_second_table_in_the_file_does_no_harm(tmp_path):
    theirs = random_llama(tie_word_embeddings=True)
    theirs.save_pretrained(tmp_path)
    path = tmp_path / "model.safetensors"
    tensors = load_file(path)
    tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"].clone()
    save_file(tensors, path, metadata={"format": "pt"})
    assert_same_model(tmp_path, theirs)


def test_a_byte_order_mark_changes_nothing(both_formats):
    before = Llama.from_pretrained(both_formats)(TOKENS)
    (path,) = (p for p in both_formats.glob("*.json") if p.name in ("config.json", "params.json"))
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())
    assert torch.equal(Llama.from_pretrained(both_formats)(TOKENS), before)


def test_the_older_name_of_rotary_scaling_goes_first_as_in_hugging_face(saved, theirs):
    old = {"type": "linear", "factor": 4.0}
    change_config(rope_scaling=old, rope_parameters={"rope_type": "default", "rope_theta": 1e4})(
        saved
    )
    assert_same_model(saved, LlamaForCausalLM.from_pretrained(saved).eval())


def test_config_json_goes_before_params_json(saved, theirs):
    (saved / "params.json").write_text("{}")
    assert_same_model(saved, theirs)


# --- Meta's format ----------------------------------------------------------------------------


@TIED
@pytest.mark.parametrize("shards", [1, 2, 3])
@pytest.mark.parametrize("rope", [None, META_ROPE], ids=["plain", "scaled"])
def test_metas_format_and_back_is_the_same_model(tied, shards, rope, tmp_path):
    parameters = {"rope_type": "default", **(rope or {}), "rope_theta": 300.0}
    theirs = meta_llama(tied, rope_parameters=parameters, rms_norm_eps=1e-3, vocab_size=101)
    assert len(list(save_meta(theirs, tmp_path, shards).glob("consolidated.*.pth"))) == shards
    ours = assert_same_model(tmp_path, theirs)
    written = LlamaConfig.from_hugging_face(theirs.config.to_dict())
    assert ours.config == replace(
        written, max_position_embeddings=ours.config.max_position_embeddings
    )
    assert ours.state_dict().keys() == theirs.state_dict().keys()
    for name, tensor in theirs.state_dict().items():
        assert torch.equal(ours.state_dict()[name], tensor), name


@pytest.mark.parametrize(
    ("heads", "shared", "shards"), [(6, 1, 1), (6, 2, 2), (6, 3, 3), (6, 6, 3), (8, 2, 2)]
)
def test_shared_keys_survive_the_shards(heads, shared, shards, tmp_path):
    shapes = {"num_attention_heads": heads, "num_key_value_heads": shared}
    theirs = meta_llama(hidden_size=8 * heads, **shapes)
    assert_same_model(save_meta(theirs, tmp_path, shards), theirs)


def test_the_files_hold_metas_names_and_order(tmp_path):
    theirs = meta_llama()
    held = torch.load(save_meta(theirs, tmp_path) / "consolidated.00.pth")
    assert held.keys() == {
        "tok_embeddings.weight",
        "norm.weight",
        "output.weight",
        *(
            f"layers.{number}.{part}.weight"
            for number in range(3)
            for part in (
                *(f"attention.{name}" for name in ("wq", "wk", "wv", "wo")),
                *(f"feed_forward.{name}" for name in ("w1", "w2", "w3")),
                "attention_norm",
                "ffn_norm",
            )
        ),
    }
    block = theirs.model.layers[1]
    for ours, layer in {
        "attention.wv": block.self_attn.v_proj,
        "feed_forward.w1": block.mlp.gate_proj,
        "feed_forward.w2": block.mlp.down_proj,
        "feed_forward.w3": block.mlp.up_proj,
        "attention_norm": block.input_layernorm,
        "ffn_norm": block.post_attention_layernorm,
    }.items():
        assert torch.equal(held[f"layers.1.{ours}.weight"], layer.weight)
    assert torch.equal(
        held["layers.1.attention.wk.weight"], to_pairs(block.self_attn.k_proj.weight, 6)
    )


# How Meta's model-parallel layers slice: wq, wk, wv, w1, w3 and the output by rows (each GPU some
# of the outputs), wo and w2 by columns (each some of the inputs).
COLUMN_SLICED = ("attention.wo", "feed_forward.w2")


@pytest.mark.parametrize("embedding_axis", [0, 1], ids=["Llama 3, rows", "LLaMA 1 and 2, columns"])
@pytest.mark.parametrize("shards", [2, 3])
def test_slices_made_by_hand_are_joined(embedding_axis, shards, tmp_path):
    theirs = meta_llama(vocab_size=102)
    path = save_meta(theirs, tmp_path) / "consolidated.00.pth"
    whole = torch.load(path)
    for number in range(shards):
        piece = {}
        for name, tensor in whole.items():
            axis = int(any(part in name for part in COLUMN_SLICED))
            axis = embedding_axis if "tok_embeddings" in name else axis
            sliced = tensor if "norm" in name else tensor.chunk(shards, axis)[number]
            piece[name] = sliced.clone()
        torch.save(piece, tmp_path / f"consolidated.{number:02d}.pth")
    with torch.inference_mode():
        ours = Llama.from_pretrained(tmp_path)
        same(ours(TOKENS), theirs(TOKENS).logits)


METAS_KINDS = {  # embedding's axis of the cut, params.json beside the sizes
    "LLaMA 1": (1, {"norm_eps": 1e-6}),
    "Llama 2": (1, {"norm_eps": 1e-5, "n_kv_heads": 4, "vocab_size": -1}),
    "Llama 3.1": (
        0,
        {
            "norm_eps": 1e-5,
            "n_kv_heads": 4,
            "rope_theta": 500_000.0,
            "use_scaled_rope": True,
            "rope_scaling_factor": 8.0,
        },
    ),
}


def metas_slices(count, embedding_axis, params):
    """Random slices of a model in Meta's names, each drawn in its own shape: nobody cuts a matrix."""
    width, inner, vocabulary = params["dim"], 24, 96
    keys = width // params["n_heads"] * params.get("n_kv_heads", params["n_heads"])
    by_rows, by_columns = (
        (lambda out, ins: (out // count, ins)),
        (lambda out, ins: (out, ins // count)),
    )
    shapes = {
        "tok_embeddings": (by_rows, by_columns)[embedding_axis](vocabulary, width),
        "output": by_rows(vocabulary, width),
    }
    for layer in range(params["n_layers"]):
        shapes |= {
            f"layers.{layer}.attention.wq": by_rows(width, width),
            f"layers.{layer}.attention.wk": by_rows(keys, width),
            f"layers.{layer}.attention.wv": by_rows(keys, width),
            f"layers.{layer}.attention.wo": by_columns(width, width),
            f"layers.{layer}.feed_forward.w1": by_rows(inner, width),
            f"layers.{layer}.feed_forward.w2": by_columns(width, inner),
            f"layers.{layer}.feed_forward.w3": by_rows(inner, width),
        }
    draws = torch.Generator().manual_seed(count)
    slices = [
        {f"{n}.weight": 0.3 * torch.randn(*shape, generator=draws) for n, shape in shapes.items()}
        for _ in range(count)
    ]
    norms = [f"layers.{n}.{part}" for n in range(params["n_layers"]) for part in METAS_NORMS]
    for name in ("norm", *norms):  # the same in every file
        weight = 1 + 0.3 * torch.randn(width, generator=draws)
        for piece in slices:
            piece[f"{name}.weight"] = weight.clone()
    return slices


METAS_NORMS = ("attention_norm", "ffn_norm")


def metas_frequencies(params):
    """As Meta publishes them: by wavelength, one pair at a time (Llama 3.1's apply_scaling)."""
    head_dim = params["dim"] // params["n_heads"]
    frequencies = []
    for pair in range(head_dim // 2):
        frequency = params.get("rope_theta", 10_000.0) ** (-2 * pair / head_dim)
        wavelength = 2 * math.pi / frequency
        if params.get("use_scaled_rope") and wavelength > 8192 / 4:
            slowed = frequency / params["rope_scaling_factor"]
            smooth = max((8192 / wavelength - 1) / (4 - 1), 0)
            frequency = (1 - smooth) * slowed + smooth * frequency
        frequencies.append(frequency)
    return torch.tensor(frequencies)


def metas_logits(params, slices, embedding_axis, tokens):
    """Meta's published computation, after llama/model.py: each GPU works on its own slices.

    Its heads and inner columns are its own; what wo and w2 give is added up over the GPUs.
    """
    length, head_dim = tokens.shape[1], params["dim"] // params["n_heads"]
    angles = torch.outer(torch.arange(length), metas_frequencies(params))
    turn = torch.polar(torch.ones_like(angles), angles)[:, None]  # (T, 1, D / 2)
    future = torch.full((length, length), -math.inf).triu(1)

    def norm(x, name):
        weight = slices[0][f"{name}.weight"]
        return x / (x.square().mean(-1, keepdim=True) + params["norm_eps"]).sqrt() * weight

    def heads_of(x, weight):
        return (x @ weight.T).unflatten(-1, (-1, head_dim))  # (B, T, heads here, D)

    def turned(x):
        pairs = torch.view_as_complex(x.unflatten(-1, (-1, 2)))
        return torch.view_as_real(pairs * turn).flatten(-2)

    def attend(x, piece, layer):
        wq, wk, wv, wo = (piece[f"layers.{layer}.attention.w{n}.weight"] for n in "qkvo")
        q, k, v = turned(heads_of(x, wq)), turned(heads_of(x, wk)), heads_of(x, wv)
        mixed = []
        for head in range(q.shape[2]):
            shared = head * k.shape[2] // q.shape[2]
            scores = q[:, :, head] @ k[:, :, shared].mT / math.sqrt(head_dim)
            mixed.append((scores + future).softmax(-1) @ v[:, :, shared])
        return torch.cat(mixed, -1) @ wo.T

    def feed_forward(x, piece, layer):
        w1, w2, w3 = (piece[f"layers.{layer}.feed_forward.w{n}.weight"] for n in "123")
        gate = x @ w1.T
        return (gate * gate.sigmoid() * (x @ w3.T)) @ w2.T

    tables = [piece["tok_embeddings.weight"] for piece in slices]
    if embedding_axis == 1:  # each GPU has some columns of every token's vector
        h = torch.cat([table[tokens] for table in tables], -1)
    else:  # each GPU has some tokens
        here = len(tables[0])
        h = torch.stack([torch.stack([tables[t // here][t % here] for t in row]) for row in tokens])
    for layer in range(params["n_layers"]):
        x = norm(h, f"layers.{layer}.attention_norm")
        h = h + sum(attend(x, piece, layer) for piece in slices)
        x = norm(h, f"layers.{layer}.ffn_norm")
        h = h + sum(feed_forward(x, piece, layer) for piece in slices)
    h = norm(h, "norm")
    return torch.cat([h @ piece["output.weight"].T for piece in slices], -1)


@pytest.mark.parametrize("kind", METAS_KINDS)
@pytest.mark.parametrize("count", [1, 2, 4])
def test_a_folder_in_metas_layout_gives_what_metas_published_formulas_give(kind, count, tmp_path):
    axis, more = METAS_KINDS[kind]
    params = {"dim": 64, "n_heads": 8, "n_layers": 2, "multiple_of": 8, **more}
    slices = metas_slices(count, axis, params)
    (tmp_path / "params.json").write_text(json.dumps(params))
    for number, piece in enumerate(slices):
        torch.save(piece, tmp_path / f"consolidated.{number:02d}.pth")
    tokens = TOKENS % 96
    with torch.inference_mode():
        same(
            Llama.from_pretrained(tmp_path)(tokens),
            metas_logits(params, slices, axis, tokens),
            1e-4,
        )


@pytest.mark.parametrize("count", [1, 2, 4])
def test_the_slices_joined_in_lesson_04_are_the_packages(count, tmp_path):
    names = {"torch": torch}
    exec(definitions("04_llama_from_scratch")["join"], names)
    axis, more = METAS_KINDS["Llama 2"]
    params = {"dim": 64, "n_heads": 8, "n_layers": 2, **more}
    slices = metas_slices(count, axis, params)
    (tmp_path / "params.json").write_text(json.dumps(params))
    for number, piece in enumerate(slices):
        torch.save(piece, tmp_path / f"consolidated.{number:02d}.pth")
    _, tensors = read_checkpoint(tmp_path)
    for part, name in META_BLOCK.items():
        metas_name = f"layers.1.{part}.weight"
        joined = names["join"](metas_name, [piece[metas_name] for piece in slices])
        if name in ("self_attn.q_proj", "self_attn.k_proj"):
            joined = to_halves(joined, len(joined) // 8)
        assert torch.equal(joined, tensors[f"model.layers.1.{name}.weight"]), name
    for metas_name, name in META_TOP.items():
        joined = names["join"](metas_name, [piece[metas_name] for piece in slices])
        assert torch.equal(joined, tensors[name]), name


def test_writing_slices_as_meta_does(tmp_path):
    save_meta(meta_llama(vocab_size=102), tmp_path, 3)
    for number in range(3):
        shapes = {
            name.removeprefix("layers.0."): tuple(tensor.shape)
            for name, tensor in torch.load(tmp_path / f"consolidated.{number:02d}.pth").items()
        }
        assert shapes["attention.wq.weight"] == shapes["attention.wv.weight"] == (16, 48)
        assert shapes["attention.wo.weight"] == (48, 16)
        assert shapes["feed_forward.w1.weight"] == shapes["feed_forward.w3.weight"] == (12, 48)
        assert shapes["feed_forward.w2.weight"] == (48, 12)
        assert shapes["tok_embeddings.weight"] == (102, 16)
        assert shapes["output.weight"] == (34, 48)
        assert shapes["attention_norm.weight"] == shapes["norm.weight"] == (48,)


def test_shards_are_no_larger_than_their_slices(tmp_path):
    theirs = meta_llama(vocab_size=3000)
    whole = (save_meta(theirs, tmp_path / "one") / "consolidated.00.pth").stat().st_size
    parts = save_meta(theirs, tmp_path / "three", 3).glob("consolidated.*.pth")
    assert sum(part.stat().st_size for part in parts) < 1.1 * whole


def test_a_model_trained_after_loading_leaves_its_files_alone(both_formats):
    files = {path: path.read_bytes() for path in both_formats.iterdir()}
    model = Llama.from_pretrained(both_formats)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(1.0)
    assert files == {path: path.read_bytes() for path in both_formats.iterdir()}


@pytest.mark.parametrize("name", ["rope.freqs", "layers.0.attention.inner_attention.rope.freqs"])
def test_stored_frequencies_are_passed_over(name, meta, meta_theirs):
    change_tensors(meta / "consolidated.00.pth", lambda held: held.update({name: torch.ones(4)}))
    assert_same_model(meta, meta_theirs)


@pytest.mark.parametrize("name", ["n_kv_heads", "rope_theta"])
def test_what_llama_1_left_out_of_params_has_its_value(name, meta, meta_theirs):
    change_params(meta, drop=[name])  # as many keys as queries, theta 10,000
    ours = assert_same_model(meta, meta_theirs)
    assert (ours.config.num_key_value_heads, ours.config.rope_theta) == (6, 10_000.0)


def test_a_vocabulary_of_minus_1_and_no_key_value_heads_are_metas_defaults(meta, meta_theirs):
    change_params(meta, vocab_size=-1, n_kv_heads=None)
    assert assert_same_model(meta, meta_theirs).config.vocab_size == 97


def test_params_may_lie_under_model(meta, meta_theirs):
    (meta / "params.json").write_text(json.dumps({"model": read_params(meta)}))
    assert_same_model(meta, meta_theirs)


def rope_of(folder, dim, **params):
    """The rotary scaling read from params.json; a single matrix row stands for the rest."""
    table = {"tok_embeddings.weight": torch.zeros(3, dim)}
    torch.save(
        table | {"layers.0.feed_forward.w1.weight": torch.zeros(5, dim)},
        folder / "consolidated.00.pth",
    )
    content = {"dim": dim, "n_heads": 32, "n_layers": 1, "norm_eps": 1e-5, **params}
    (folder / "params.json").write_text(json.dumps(content))
    return read_checkpoint(folder)[0].rope_scaling


@pytest.mark.parametrize(
    ("dim", "given", "factor"),
    [
        (2048, {}, 32.0),
        (3072, {}, 32.0),
        (4096, {}, 8.0),
        (8192, {}, 8.0),
        (2048, {"rope_scaling_factor": 16.0}, 16.0),
        (4096, {"rope_scaling_factor": 32}, 32),
    ],
)
def test_the_scaling_factor_is_the_files_or_that_of_the_width(dim, given, factor, tmp_path):
    expected = {**META_ROPE, "factor": factor}
    assert rope_of(tmp_path, dim, use_scaled_rope=True, **given) == expected


def test_the_high_factor_may_be_the_files_own(tmp_path):
    expected = {**META_ROPE, "factor": 32.0, "high_freq_factor": 8.0}
    assert rope_of(tmp_path, 64, use_scaled_rope=True, rope_high_freq_factor=8.0) == expected


@pytest.mark.parametrize("params", [{}, {"use_scaled_rope": False}, {"rope_scaling_factor": 8.0}])
def test_without_the_switch_nothing_is_scaled(params, tmp_path):
    assert rope_of(tmp_path, 64, **params) is None


@pytest.mark.parametrize(
    ("params", "context"),
    [
        ({}, 4096),
        ({"rope_theta": 500_000.0}, 8192),
        ({"rope_theta": 500_000.0, "use_scaled_rope": True}, 131_072),
        ({"rope_theta": 1_000_000}, 16_384),  # CodeLlama
    ],
)
def test_the_context_is_that_of_the_version(params, context, tmp_path):
    rope_of(tmp_path, 64, **params)
    assert read_checkpoint(tmp_path)[0].max_position_embeddings == context


@settings(max_examples=200, deadline=None)
@given(heads=st.integers(1, 8), half=st.integers(1, 64), inner=st.integers(1, 30_000))
def test_the_written_multiplier_gives_the_inner_size_by_metas_rule(heads, half, inner):
    params = meta_params(heads * 2 * half, heads, inner)
    hidden = int(2 * (4 * params["dim"]) / 3)
    hidden = int(params["ffn_dim_multiplier"] * hidden)
    multiple = params["multiple_of"]
    assert multiple * ((hidden + multiple - 1) // multiple) == inner


def meta_params(width, heads, inner):
    """What write_meta says of these shapes."""
    config = LlamaConfig(
        vocab_size=2,
        hidden_size=width,
        intermediate_size=inner,
        num_hidden_layers=1,
        num_attention_heads=heads,
        num_key_value_heads=heads,
        head_dim=width // heads,
        max_position_embeddings=64,
    )
    with tempfile.TemporaryDirectory() as folder:
        write_meta(config, {}, Path(folder))
        return read_params(Path(folder))


@TIED
def test_a_context_aside_writing_what_was_read_gives_the_same_files(tied, tmp_path):
    first, second = save_meta(meta_llama(tied), tmp_path / "first", 2), tmp_path / "second"
    write_meta(*read_checkpoint(first), second, 2)
    assert read_params(first) == read_params(second)
    for path in first.glob("*.pth"):
        before, after = torch.load(path), torch.load(second / path.name)
        assert before.keys() == after.keys()
        assert all(torch.equal(before[name], after[name]) for name in before)


def test_the_dtype_of_the_file_is_kept_until_another_is_asked_for(tmp_path):
    save_meta(meta_llama().bfloat16(), tmp_path)
    assert {t.dtype for t in read_checkpoint(tmp_path)[1].values()} == {torch.bfloat16}
    model = Llama.from_pretrained(tmp_path, torch.float16)
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float16}


# --- what Meta's format cannot say ------------------------------------------------------------

META = replace(TINY, hidden_size=48, num_key_value_heads=6)


@pytest.mark.parametrize(
    ("changes", "shards", "words"),
    [
        ({"hidden_size": 40}, 1, ["6 heads of 8", "width of 40"]),
        ({"rope_scaling": LINEAR}, 1, ["'linear'", "only Llama 3.1's"]),
        ({"rope_scaling": LLAMA3}, 1, ["'original_max_position_embeddings': 32"]),
        ({}, 4, ["4 shards", "6 key-value heads", "40 inner columns"]),
        ({"intermediate_size": 35}, 2, ["2 shards", "35 inner columns"]),
        ({"num_key_value_heads": 2}, 3, ["3 shards", "2 key-value heads"]),
    ],
)
def test_shapes_that_metas_format_cannot_say_are_refused(changes, shards, words, tmp_path):
    with refused(ValueError, *words):
        write_meta(replace(META, **changes), {}, tmp_path / "new", shards)
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize("biases", ["attention_bias", "mlp_bias"])
def test_biases_are_refused(biases, tmp_path):
    with refused(ValueError, "no biases"):
        save_meta(meta_llama(**{biases: True}), tmp_path)


@pytest.mark.parametrize("shards", [0, -1])
def test_fewer_than_one_shard_is_refused(shards, tmp_path):
    with refused(ValueError, f"{shards} shards"):
        save_meta(meta_llama(), tmp_path, shards)


# --- faults: a ModelFilesError that names the file --------------------------------------------


@pytest.fixture(scope="module")
def theirs():
    return random_llama()


@pytest.fixture
def saved(theirs, tmp_path):
    """A sound folder in Hugging Face's format, for a test to damage."""
    theirs.save_pretrained(tmp_path)
    return tmp_path


@pytest.fixture(scope="module")
def meta_theirs():
    return meta_llama()


@pytest.fixture
def meta(meta_theirs, tmp_path):
    """A sound folder in Meta's format, for a test to damage."""
    return save_meta(meta_theirs, tmp_path)


@pytest.fixture(params=["saved", "meta"])
def both_formats(request):
    return request.getfixturevalue(request.param)


def change_safetensors(**tensors):
    """Damage: replace or add tensors of model.safetensors, drop those that are None."""

    def damage(folder):
        path = folder / "model.safetensors"
        changed = load_file(path) | {name.replace("__", "."): t for name, t in tensors.items()}
        kept = {name: tensor for name, tensor in changed.items() if tensor is not None}
        save_file(kept, path, metadata={"format": "pt"})

    return damage


def change_pth(name, tensor, number=0):
    """Damage: replace, add or (None) drop a tensor of one .pth file."""

    def change(held):
        held.pop(name, None)
        if tensor is not None:
            held[name] = tensor

    return lambda folder: change_tensors(folder / f"consolidated.{number:02d}.pth", change)


def change_config(**changes):
    def damage(folder):
        path = folder / "config.json"
        content = json.loads(path.read_text()) | changes
        path.write_text(json.dumps({k: v for k, v in content.items() if v is not None}))

    return damage


def write(name, content):
    return lambda folder: (folder / name).write_bytes(content)


def drop(name):
    return lambda folder: (folder / name).unlink()


def cut(name, keep):
    """Damage: keep this share of a file."""

    def damage(folder):
        content = (folder / name).read_bytes()
        (folder / name).write_bytes(content[: int(keep * len(content))])

    return damage


def lose_a_shard(folder):
    random_llama().save_pretrained(folder, max_shard_size="20KB")
    (folder / "model.safetensors").unlink(missing_ok=True)
    next(folder.glob("model-00002-of-*")).unlink()


WEIGHTS = "model.safetensors"
FETCH = "etch the model again"
HUGGING_FACE_FAULTS = [
    (change_safetensors(model__norm__weight=None), ["1 missing (model.norm.weight)", FETCH]),
    (change_safetensors(lm_head__weight=None), ["1 missing (lm_head.weight)", FETCH]),
    (change_safetensors(lm_head__bias=torch.ones(97)), ["1 unknown", "(lm_head.bias)", FETCH]),
    (
        change_safetensors(model__norm__weight=torch.ones(23)),
        ["1 of another shape (model.norm.weight (23,) instead of (24,))", FETCH],
    ),
    (change_config(num_hidden_layers=2), ["9 unknown to the model (model.layers.2", FETCH]),
    (change_config(num_hidden_layers=4), ["9 missing (model.layers.3", FETCH]),
    (cut(WEIGHTS, 0.9), [WEIGHTS, "cut off or damaged", FETCH]),
    (cut(WEIGHTS, 0), [WEIGHTS, "(0 bytes)", FETCH]),
    (drop(WEIGHTS), [WEIGHTS, "is missing", "run it again"]),
    (lose_a_shard, ["model-00002-of-", "is missing", "run it again"]),
    (change_config(hidden_act="gelu"), ["config.json", "hidden_act is 'gelu'", "'silu'"]),
    (change_config(model_type="gpt2"), ["config.json", "model_type is 'gpt2'", "'llama'"]),
    (change_config(hidden_size=None), ["config.json", "no 'hidden_size'"]),
    (change_config(num_attention_heads=0, head_dim=None), ["config.json", "cannot be used"]),
    (write("config.json", b'{"model_type": "lla'), ["config.json", "damaged", FETCH]),
    (write("config.json", b"[]"), ["config.json", "no JSON object", FETCH]),
    (drop("config.json"), ["neither config.json", "nor params.json"]),
    (change_config(hidden_size="24"), ["hidden_size"]),
    (
        change_config(rope_parameters={"rope_type": "yarn", "rope_theta": 1e4}),
        ["rope_type is 'yarn'"],
    ),
    (change_config(num_key_value_heads=4), ["4 key-value heads"]),
]
META_FAULTS = [
    (change_pth("norm.weight", None), ["1 missing (model.norm.weight)", FETCH]),
    (change_pth("layers.9.ffn_norm.weight", torch.ones(48)), ["1 unknown", "layers.9", FETCH]),
    (change_pth("norm.weight", torch.ones(47)), ["model.norm.weight (47,) instead of (48,)"]),
    (change_pth("layers.0.attention.wz.weight", torch.ones(1)), ["layers.0.attention.wz.weight"]),
    (change_pth("vision.weight", torch.ones(1)), ["'vision.weight'"]),
    (change_pth("layers.x.ffn_norm.weight", torch.ones(1)), ["'layers.x.ffn_norm.weight'"]),
    (change_pth("tok_embeddings.weight", None), ["no 'model.embed_tokens.weight'"]),
    *(
        (cut("consolidated.00.pth", keep), ["consolidated.00.pth", "cut off or damaged", "etch it"])
        for keep in (0, 0.01, 0.5, 0.99)
    ),
    (drop("consolidated.00.pth"), ["params.json", "no consolidated.*.pth"]),
    (drop("params.json"), ["neither config.json", "nor params.json"]),
    (write("params.json", b'{"dim": 4'), ["params.json", "damaged", FETCH]),
    (write("params.json", b"\xff\xfe\x00"), ["params.json", "damaged", FETCH]),
    (write("params.json", b"[1]"), ["params.json", "no JSON object", FETCH]),
    *(
        (lambda folder, name=name: change_params(folder, drop=[name]), [f"no '{name}'"])
        for name in ("dim", "n_layers", "n_heads", "norm_eps")
    ),
    (lambda folder: change_params(folder, dim="48"), ["params.json", "cannot be used"]),
    (lambda folder: change_params(folder, n_heads=0), ["params.json", "cannot be used"]),
    (lambda folder: change_params(folder, n_layers=2), ["9 unknown to the model (model.layers.2"]),
    (lambda folder: change_params(folder, n_layers="3"), ["num_hidden_layers is '3'"]),
    (lambda folder: change_params(folder, n_heads=5), ["5 query heads cannot share 6"]),
    (lambda folder: change_params(folder, drop=["dim"], model="x"), ["no 'dim'"]),
    (change_pth("layers.0.attention.wq.weight", torch.ones(47, 48)), ["q_proj"]),
    *(
        (
            lambda folder, change=change: change_params(folder, **change),
            ["quantized already", "16-bit"],
        )
        for change in (
            {"quantization_args": {"group_size": 256}},
            {"model": {"quantization_args": {"scheme": "int4_weight_int8_dynamic_activation"}}},
        )
    ),
    *(
        (change_pth(f"layers.0.attention.wq.{end}", tensor), ["quantized already", word])
        for end, tensor, word in (
            ("weight", torch.ones(48, 48, dtype=torch.int8), "wq.weight is torch.int8"),
            ("weight", torch.ones(48, 48).to(torch.float8_e4m3fn), "float8"),
            ("scales", torch.ones(48, 1), "wq.scales"),
        )
    ),
]


def first_words(value):
    """A fault's name in the list of tests: the first words that its message must have."""
    return value[0] if isinstance(value, list) else "fault"


@pytest.mark.parametrize(("damage", "words"), HUGGING_FACE_FAULTS, ids=first_words)
def test_a_fault_in_a_hugging_face_folder_is_named(damage, words, saved):
    damage(saved)
    with refused(ModelFilesError, str(saved), *words):
        Llama.from_pretrained(saved)


@pytest.mark.parametrize(("damage", "words"), META_FAULTS, ids=first_words)
def test_a_fault_in_a_meta_folder_is_named(damage, words, meta):
    damage(meta)
    with refused(ModelFilesError, str(meta), *words):
        Llama.from_pretrained(meta)


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (change_pth("norm.weight", None, 1), ["consolidated.01.pth", "lacks norm.weight"]),
        (change_pth("rope.freqs", torch.ones(4), 1), ["consolidated.01.pth", "lacks rope.freqs"]),
        (drop("consolidated.01.pth"), ["of another shape", FETCH]),
        (change_pth("layers.0.attention.wq.weight", torch.ones(24, 47), 1), ["wq"]),
    ],
)
def test_shards_that_do_not_belong_together_are_named(damage, words, meta_theirs, tmp_path):
    damage(save_meta(meta_theirs, tmp_path, 2))
    with refused(ModelFilesError, str(tmp_path), *words):
        Llama.from_pretrained(tmp_path)


@pytest.mark.parametrize("content", [[torch.ones(2)], {"a": 1}, {"a": [torch.ones(1)]}, 3])
def test_a_pickle_of_something_else_is_refused(content, meta):
    torch.save(content, meta / "consolidated.00.pth")
    with refused(ModelFilesError, "consolidated.00.pth", "no dictionary of tensors"):
        Llama.from_pretrained(meta)


def test_a_folder_that_is_not_there_is_named(tmp_path):
    with refused(ModelFilesError, str(tmp_path / "away"), "neither config.json"):
        Llama.from_pretrained(tmp_path / "away")


def test_all_kinds_of_misfit_are_counted_in_one_message():
    a, b = torch.ones(1), torch.ones(2)
    wanted, found = {"x": a, "y": a, "z": a, "w": a}, {"x": b, "y": a, "q": a, "p": a, "o": a}
    with refused(ModelFilesError, "2 missing (w), 3 unknown to the model (o), 1 of another shape"):
        check_tensors("here", wanted, found)
    check_tensors("here", wanted, dict(wanted))


class Evil:
    """Makes a file when it is unpickled."""

    def __init__(self, marker):
        self.marker = marker

    def __reduce__(self):
        return os.mkdir, (str(self.marker),)


@pytest.mark.parametrize("inside", [lambda evil: evil, lambda evil: {"norm.weight": evil}])
@pytest.mark.parametrize("new_format", [True, False], ids=["zip", "legacy"])
def test_a_pickle_that_wants_to_run_code_is_refused_and_does_not_run_it(inside, new_format, meta):
    path, marker = meta / "consolidated.00.pth", meta / "the code ran"
    torch.save(inside(Evil(marker)), path, _use_new_zipfile_serialization=new_format)
    with refused(ModelFilesError, str(path)):
        Llama.from_pretrained(meta)
    assert not marker.exists()
    torch.load(path, weights_only=False)  # it would have run
    assert marker.exists()


def test_the_reason_is_given_why_a_pickle_with_code_was_not_read(meta):
    torch.save(Evil(meta / "marker"), meta / "consolidated.00.pth")
    with refused(ModelFilesError, "more than tensors", "can run code"):
        Llama.from_pretrained(meta)


def test_nobody_is_told_how_to_run_the_pickles_code_after_all(meta):
    path = meta / "consolidated.00.pth"
    torch.save(Evil(meta / "marker"), path)
    with pytest.raises(ModelFilesError) as caught:
        Llama.from_pretrained(meta)
    assert "False" not in str(caught.value)


def test_pickles_beside_a_hugging_face_config_are_not_opened(saved):
    (saved / WEIGHTS).unlink()
    torch.save(Evil(saved / "marker"), saved / "pytorch_model.bin")
    with refused(ModelFilesError, "safetensors only"):
        Llama.from_pretrained(saved)
    assert not (saved / "marker").exists()


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
def test_whatever_byte_is_wrong_in_a_pickle_it_loads_or_is_called_damaged(tmp_path):
    (tmp_path / "params.json").write_text("{}")
    path, dice = tmp_path / "consolidated.00.pth", random.Random(0)
    torch.save({"norm.weight": torch.ones(3), "output.weight": torch.ones(2, 3)}, path)
    sound = path.read_bytes()
    for _ in range(500):
        damaged = bytearray(sound)
        damaged[dice.randrange(400)] = dice.randrange(256)
        path.write_bytes(damaged)
        with pytest.raises(ModelFilesError):  # at the latest for what params.json lacks
            read_checkpoint(tmp_path)


# --- tokenizers -------------------------------------------------------------------------------

CORPUS = ["The quick brown fox jumps over the lazy dog.", "Der Zug fährt nicht.", "1 29 345 678 0"]
SENTENCES = [
    "",
    " ",
    "The lazy fox",
    "  two  spaces ",
    "in 1945 and 2026",
    "日本 🙂 ﬁ",
    "a\n\tb",
    "<s> </s> <unk> <|begin_of_text|> <|eot_id|>",
]
MERGES = [b"34", b"12", b"123", b"th", b"the", b" the", b"in", b"ing", b"\n\n", b"\xc3\xa9"]
RANKS = {**{bytes([i]): i for i in range(256)}, **{m: 256 + i for i, m in enumerate(MERGES)}}
META_SPECIAL = {  # of Llama 3.1's tokenizer, less the 128,000 ranks before them
    0: "<|begin_of_text|>",
    1: "<|end_of_text|>",
    4: "<|finetune_right_pad_id|>",
    6: "<|start_header_id|>",
    7: "<|end_header_id|>",
    8: "<|eom_id|>",
    9: "<|eot_id|>",
    10: "<|python_tag|>",
}
META_PATTERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}|"
    r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


def write_ranks(folder, ranks):
    """A tokenizer.model of Llama 3's kind: a line of base64 and the rank for each token."""
    lines = [b"%s %d\n" % (base64.b64encode(token), rank) for token, rank in ranks.items()]
    (folder / "tokenizer.model").write_bytes(b"".join(lines))
    return folder


@pytest.fixture(scope="module", autouse=True)
def tiktokens_own_cache(tmp_path_factory):
    """tiktoken copies every file it reads; keep the copies of these tests apart."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TIKTOKEN_CACHE_DIR", str(tmp_path_factory.mktemp("tiktoken")))
        yield


@pytest.fixture(scope="module")
def llama2_folder(tmp_path_factory):
    """A tiny SentencePiece model, trained as LLaMA's was."""
    folder = tmp_path_factory.mktemp("sentencepiece")
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(CORPUS * 20),
        model_prefix=str(folder / "tokenizer"),
        model_type="bpe",
        vocab_size=340,
        byte_fallback=True,
        split_digits=True,
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        unk_id=0,
        bos_id=1,
        eos_id=2,
        minloglevel=2,
    )
    return folder


@pytest.fixture(scope="module")
def llama2(llama2_folder):
    return load_meta_tokenizer(llama2_folder)


@pytest.fixture(scope="module")
def llama3(tmp_path_factory):
    return load_meta_tokenizer(write_ranks(tmp_path_factory.mktemp("ranks"), RANKS))


@pytest.fixture(scope="module")
def reference3():
    """tiktoken's encoding of these ranks with Meta's pattern."""
    return tiktoken.Encoding("meta", pat_str=META_PATTERN, mergeable_ranks=RANKS, special_tokens={})


@pytest.mark.parametrize("text", SENTENCES)
def test_llama_2_ids_are_sentencepieces(text, llama2, llama2_folder):
    path = str(llama2_folder / "tokenizer.model")
    expected = sentencepiece.SentencePieceProcessor(model_file=path).encode(text)
    assert llama2.encode(text) == [1, *expected]
    assert llama2.encode(text, bos=False, eos=True) == [*expected, 2]
    assert llama2.decode(expected) == text
    assert not {1, 2} & set(expected)  # "<s>" in a text starts nothing


def test_llama_2_knows_its_size_and_its_start_and_end(llama2):
    assert (llama2.vocab_size, llama2.bos_id, llama2.eos_id) == (340, 1, 2)
    assert llama2.decode((1, *llama2.encode("the fox", bos=False), 2)) == "the fox"


def test_llama_2_takes_digits_one_by_one_and_unknown_letters_byte_by_byte(llama2):
    pieces = [llama2.model.id_to_piece(i) for i in llama2.encode("1945é", bos=False)]
    assert pieces == ["▁", "1", "9", "4", "5", "<0xC3>", "<0xA9>"]


@pytest.mark.parametrize("text", [*SENTENCES, "it's THE'RE", "x  \n\n y", "1234567", "the  thing"])
def test_llama_3_ids_are_tiktokens(text, llama3, reference3):
    expected = reference3.encode_ordinary(text)
    assert llama3.encode(text) == [len(RANKS), *expected]
    assert llama3.encode(text, bos=False, eos=True) == [*expected, len(RANKS) + 1]
    assert all(i < len(RANKS) for i in expected)  # names of special tokens are ordinary text
    assert llama3.decode(expected) == text


@pytest.mark.parametrize(
    ("text", "pieces"),
    [
        ("the thing", [b"the", b" ", b"th", b"ing"]),
        ("in the", [b"in", b" the"]),
        ("1234", [b"123", b"4"]),  # not 12, 34: digits go in groups of three
        ("12345", [b"123", b"4", b"5"]),
        ("é\n\n", [b"\xc3\xa9", b"\n\n"]),
    ],
)
def test_llama_3_merges_by_rank_within_words(text, pieces, llama3):
    assert llama3.encode(text, bos=False) == [RANKS[piece] for piece in pieces]


def test_llama_3_has_256_special_tokens_after_the_ranks(llama3):
    assert llama3.vocab_size == len(RANKS) + 256
    assert (llama3.bos_id, llama3.eos_id) == (len(RANKS), len(RANKS) + 1)
    for place, name in META_SPECIAL.items():
        assert llama3.decode([len(RANKS) + place]) == name
    names = {llama3.decode([len(RANKS) + place]) for place in range(256)}
    assert len(names) == 256
    assert META_SPECIAL == LLAMA3_SPECIAL and META_PATTERN == LLAMA3_PATTERN


@settings(max_examples=200, deadline=None)
@given(text=st.text(max_size=40))
def test_llama_3_gives_every_text_back(llama3, text):
    assert llama3.decode(llama3.encode(text, bos=False)) == text


@settings(max_examples=200, deadline=None)
@given(text=st.text(st.characters(exclude_categories=["Cs"], exclude_characters="▁"), max_size=40))
def test_llama_2_gives_every_text_back(llama2, text):
    assert llama2.decode(llama2.encode(text)) == text


def test_a_missing_tokenizer_is_named(tmp_path):
    with refused(ModelFilesError, str(tmp_path / "tokenizer.model"), "is missing"):
        load_meta_tokenizer(tmp_path)


def lines_of(ranks, end=None):
    return lambda folder: write_ranks(folder, dict(list(ranks.items())[:end]))


@pytest.mark.parametrize(
    "damage",
    [
        write("tokenizer.model", b""),
        write("tokenizer.model", b"\x0anothing of the kind"),
        write("tokenizer.model", bytes(range(256)) * 9),
        write("tokenizer.model", b"AA== 0\nnot-base64 1\n"),
        write("tokenizer.model", b"AA== 0\nAQ== one\n"),
        write("tokenizer.model", b"AA== 0\nAQ== 1\nAg"),
        lines_of({**RANKS, b"qu": 999}),
        lines_of({**RANKS, b"qu": 265}),
        lines_of(RANKS, 97),
    ],
)
def test_a_damaged_tokenizer_is_named(damage, tmp_path):
    damage(tmp_path)
    with refused(ModelFilesError, str(tmp_path / "tokenizer.model"), "fetch it again"):
        load_meta_tokenizer(tmp_path)


@pytest.mark.parametrize("keep", [0.1, 0.5, 0.99])
def test_a_sentencepiece_model_that_was_cut_off_is_named(keep, llama2_folder, tmp_path):
    write("tokenizer.model", (llama2_folder / "tokenizer.model").read_bytes())(tmp_path)
    cut("tokenizer.model", keep)(tmp_path)
    with refused(ModelFilesError, str(tmp_path / "tokenizer.model"), "fetch it again"):
        load_meta_tokenizer(tmp_path)


def test_a_tokenizer_that_was_fetched_again_is_read_again(tmp_path):
    write_ranks(tmp_path, {**RANKS, b"qu": 999})
    with pytest.raises(ModelFilesError):
        load_meta_tokenizer(tmp_path)
    assert load_meta_tokenizer(write_ranks(tmp_path, RANKS)).vocab_size == len(RANKS) + 256


@pytest.mark.parametrize("package", ["sentencepiece", "tiktoken"])
def test_without_its_package_a_tokenizer_says_what_to_install(
    package, llama2_folder, tmp_path, monkeypatch
):
    monkeypatch.setitem(sys.modules, package, None)
    folder = llama2_folder if package == "sentencepiece" else write_ranks(tmp_path, RANKS)
    with refused(ImportError, str(folder), f"pip install {package}"):
        load_meta_tokenizer(folder)
