"""Our own LLaMA: each part and the whole against PyTorch, Hugging Face and the mathematics."""

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import normal, random_tokens, refused, same
from hypothesis import given, settings
from hypothesis import strategies as st
from test_notebook_definitions import definitions
from tiny_llama import tiny_config, tiny_llama
from torch.nn import functional as F
from transformers import DynamicCache
from transformers.models.llama import modeling_llama as hugging_face

from llama_int8.data import evaluation_text
from llama_int8.lessons.n04 import exercises as shown
from llama_int8.lessons.n04 import measurements
from llama_int8.models import DEFAULT_MODEL, MODELS, load_model, load_tokenizer, model_folder
from llama_int8.models.cost import count_parameters
from llama_int8.transformer.attention import (
    MultiHeadAttention,
    causal_mask,
    scaled_dot_product_attention,
)
from llama_int8.transformer.checkpoints import read_checkpoint, to_halves, to_pairs
from llama_int8.transformer.config import LlamaConfig
from llama_int8.transformer.generation import KVCache, generate
from llama_int8.transformer.llama import (
    GroupedQueryAttention,
    Llama,
    LlamaBlock,
    RMSNorm,
    SwiGLU,
    rope_frequencies,
    rope_rotation,
    rotate,
    single_query_attention,
)

TINY = LlamaConfig.from_hugging_face(tiny_config().to_dict())
LLAMA3 = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}
LINEAR = {"rope_type": "linear", "factor": 4.0}
ROPES = {"default": None, "linear": LINEAR, "llama3": LLAMA3}
EACH_DTYPE = pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
EPSILON = {torch.float32: 1e-5, torch.bfloat16: 1.6e-2, torch.float16: 2e-3}


def same_to_the_largest(ours, theirs, tolerance=1e-4):
    assert ours.shape == theirs.shape
    assert (ours - theirs).abs().max() <= tolerance * theirs.abs().max().clamp(min=1e-6)


def hugging_face_config(config):
    return tiny_config(**config.to_hugging_face())


@torch.no_grad()
def scrambled(module, seed=0):
    """The module with random numbers everywhere: fresh norms are ones and fresh biases zeros."""
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in module.named_parameters():
        parameter.normal_("norm" in name, 0.3, generator=generator)
    return module


def random_llama(seed=0, **changes):
    """Hugging Face's tiny model, in evaluation mode, without a part that does nothing."""
    return scrambled(tiny_llama(**changes), seed)


def twin(theirs):
    """Our model with the weights of Hugging Face's."""
    ours = Llama(LlamaConfig.from_hugging_face(theirs.config.to_dict()))
    ours.load_state_dict(theirs.state_dict())  # strict: the names are the same
    return ours.eval()


# --- RMSNorm ----------------------------------------------------------------------------------


@EACH_DTYPE
@pytest.mark.parametrize("shape", [(1,), (7,), (1, 1), (3, 5), (2, 1, 9), (2, 3, 4, 33)])
def test_rms_norm_is_pytorchs_and_hugging_faces(shape, dtype):
    norm = scrambled(RMSNorm(shape[-1], 1e-3)).to(dtype)
    theirs = hugging_face.LlamaRMSNorm(shape[-1], 1e-3).to(dtype)
    theirs.load_state_dict(norm.state_dict())
    x = 3 * normal(*shape).to(dtype)
    assert norm(x).dtype == dtype
    assert torch.equal(norm(x), theirs(x))
    same(norm(x), F.rms_norm(x, shape[-1:], norm.weight, 1e-3), EPSILON[dtype])


@EACH_DTYPE
def test_rms_norm_keeps_zeros_and_takes_values_whose_squares_overflow_fp16(dtype):
    norm = RMSNorm(6).to(dtype)
    assert torch.equal(norm(torch.zeros(2, 6, dtype=dtype)), torch.zeros(2, 6, dtype=dtype))
    huge = torch.tensor([1e4, -1e4, 1e4, 1e4, -1e4, 1e4], dtype=dtype)
    same(norm(huge), huge.sign(), EPSILON[dtype])


def test_nan_stays_in_its_row():
    x = normal(2, 3, 8)
    spoiled = x.clone()
    spoiled[1, 2, 5] = math.nan
    normed, whole = RMSNorm(8)(spoiled), RMSNorm(8)(x)
    assert normed[1, 2].isnan().all()
    assert torch.equal(normed.isnan().any(-1).nonzero(), torch.tensor([[1, 2]]))
    assert torch.equal(normed[0], whole[0]) and torch.equal(normed[1, :2], whole[1, :2])


@settings(max_examples=50, deadline=None)
@given(
    scale=st.floats(1e-4, 1e4) | st.floats(-1e4, -1e-4),
    width=st.integers(1, 40),
    seed=st.integers(0, 99),
)
def test_rms_norm_does_not_see_the_scale_but_for_its_sign(scale, width, seed):
    norm, x = scrambled(RMSNorm(width, eps=0.0)), normal(3, width, seed=seed)
    same(norm(scale * x), math.copysign(1, scale) * norm(x))


def test_epsilon_tells_small_vectors_from_directions():
    x = torch.full((4,), 1e-3)
    same(RMSNorm(4, 1e-6)(x), torch.full((4,), 0.5**0.5))


# --- SwiGLU -----------------------------------------------------------------------------------


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("shape", [(1, 1), (5,), (2, 3), (2, 1, 4)])
def test_swiglu_is_hugging_faces(bias, shape):
    theirs = scrambled(hugging_face.LlamaMLP(tiny_config(mlp_bias=bias)))
    ours = SwiGLU(24, 40, bias)
    ours.load_state_dict(theirs.state_dict())
    x = normal(*shape, 24)
    same(ours(x), theirs(x))


# --- rotary positions -------------------------------------------------------------------------


def rope_config(head_dim=8, theta=10_000.0, scaling=None, **changes):
    changes |= {"head_dim": head_dim, "rope_theta": theta, "rope_scaling": scaling}
    return replace(TINY, **changes)


@st.composite
def scalings(draw):
    """Rotary scaling of each kind, with any numbers that make sense."""
    kind = draw(st.sampled_from(list(ROPES)))
    if kind == "default":
        return draw(st.sampled_from([None, {"rope_type": "default"}]))
    factor = draw(st.floats(0.5, 64))
    if kind == "linear":
        return {"rope_type": "linear", "factor": factor}
    low = draw(st.floats(0.25, 4))
    return {
        "rope_type": "llama3",
        "factor": factor,
        "low_freq_factor": low,
        "high_freq_factor": low + draw(st.floats(0.1, 8)),
        "original_max_position_embeddings": draw(st.integers(8, 10_000)),
    }


@settings(max_examples=150, deadline=None)
@given(
    head_dim=st.integers(1, 80).map(lambda half: 2 * half),
    theta=st.floats(2, 1e7),
    scaling=scalings(),
)
def test_frequencies_are_hugging_faces(head_dim, theta, scaling):
    config = rope_config(head_dim, theta, scaling, max_position_embeddings=20_000)
    theirs = hugging_face.LlamaRotaryEmbedding(hugging_face_config(config))
    ours = rope_frequencies(config)
    assert ours.dtype == torch.float32 and ours.shape == (head_dim // 2,)
    rtol = 2e-5
    if scaling and scaling["rope_type"] == "llama3":  # a difference of wavelengths near the edge
        high, low = scaling["high_freq_factor"], scaling["low_freq_factor"]
        rtol += 1e-6 * max(1.0, scaling["factor"]) * high / (high - low)
    torch.testing.assert_close(ours, theirs.inv_freq, rtol=rtol, atol=0)


def test_frequencies_fall_from_1_by_powers_of_theta():
    same(rope_frequencies(rope_config(6, 1000.0)), torch.tensor([1, 0.1, 0.01]), 1e-6)


@settings(max_examples=50, deadline=None)
@given(factor=st.floats(1, 64), theta=st.floats(1e4, 1e7))
def test_llama3_leaves_the_fastest_divides_the_slowest_and_lies_between(factor, theta):
    plain = rope_frequencies(rope_config(64, theta))
    scaling = {**LLAMA3, "factor": factor, "original_max_position_embeddings": 8192}
    scaled = rope_frequencies(rope_config(64, theta, scaling))
    wavelength = 2 * math.pi / plain
    fast, slow = wavelength < 8192 / 4, wavelength > 8192
    assert fast.any() and slow.any()
    same(scaled[fast], plain[fast], 1e-6)
    torch.testing.assert_close(scaled[slow], plain[slow] / factor, rtol=1e-6, atol=0)
    assert (scaled <= plain * (1 + 1e-6)).all()
    assert (scaled >= plain / factor * (1 - 1e-6)).all()


def test_linear_divides_all_frequencies():
    plain, scaled = rope_frequencies(rope_config()), rope_frequencies(rope_config(scaling=LINEAR))
    assert torch.equal(scaled, plain / 4)


@pytest.mark.parametrize("head_dim", [1, 7])
def test_heads_without_pairs_are_refused(head_dim):
    with refused(ValueError, f"head_dim is {head_dim};", "even"):
        rope_frequencies(rope_config(head_dim))


@pytest.mark.parametrize("theta", [0.0, -1.0, math.nan, math.inf])
def test_a_theta_that_is_not_positive_and_finite_is_refused(theta):
    with refused(ValueError, f"rope_theta is {theta};", "positive and finite"):
        rope_frequencies(rope_config(theta=theta))


@pytest.mark.parametrize("kind", ["yarn", "dynamic", None, ""])
def test_an_unknown_kind_of_scaling_is_refused(kind):
    with refused(ValueError, f"rope_type is {kind!r};", "default, linear, llama3"):
        rope_frequencies(rope_config(scaling={"rope_type": kind, "factor": 2.0}))


@pytest.mark.parametrize(
    ("kind", "name"),
    [(kind, name) for kind in ("linear", "llama3") for name in ROPES[kind] if name != "rope_type"],
)
@pytest.mark.parametrize("bad", [None, 0, -1.0, math.nan, math.inf, "8"])
def test_a_missing_or_senseless_setting_is_named(kind, name, bad):
    scaling = {**ROPES[kind], name: bad}
    if bad is None:
        del scaling[name]
    with refused(ValueError, f"{name} of rope_type '{kind}' is {bad};"):
        rope_frequencies(rope_config(scaling=scaling))


@pytest.mark.parametrize("low", [4.0, 5.0])
def test_a_low_factor_that_is_not_below_the_high_one_is_refused(low):
    with refused(ValueError, f"low_freq_factor is {low}", "high_freq_factor 4.0"):
        rope_frequencies(rope_config(scaling={**LLAMA3, "low_freq_factor": low}))


@EACH_DTYPE
@pytest.mark.parametrize("first", [0, 5, 100_000])
def test_cos_and_sin_are_hugging_faces_in_every_precision(dtype, first):
    config = rope_config(16, scaling=LLAMA3)
    theirs = hugging_face.LlamaRotaryEmbedding(hugging_face_config(config))
    positions = torch.arange(first, first + 7)
    expected = theirs(torch.zeros(1, dtype=dtype), positions[None])
    for ours, table in zip(
        rope_rotation(positions, rope_frequencies(config), dtype), expected, strict=True
    ):
        assert ours.dtype == dtype
        same(ours, table[0, :, :8], max(1e-5, 2e-7 * first) if dtype == torch.float32 else 0.02)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_rotating_is_hugging_faces(dtype):
    cos, sin = rope_rotation(torch.arange(9), rope_frequencies(rope_config(10)), dtype)
    q, k = normal(2, 4, 9, 10, dtype=dtype), normal(2, 2, 9, 10, seed=1, dtype=dtype)
    twice = [torch.cat([table, table], -1)[None] for table in (cos, sin)]
    for ours, theirs in zip((q, k), hugging_face.apply_rotary_pos_emb(q, k, *twice), strict=True):
        same(rotate(ours, cos, sin), theirs, 1e-6)


def turned(x, *positions, theta=10_000.0):
    """x (T, D) in FP64, each vector rotated to its position."""
    exponents = torch.arange(0, x.shape[-1], 2, dtype=torch.float64) / x.shape[-1]
    angles = torch.tensor(positions, dtype=torch.float64)[:, None] * theta**-exponents
    return rotate(x[None, None], angles.cos(), angles.sin())[0, 0]


POSITION = st.integers(0, 100_000)
HALF = st.integers(1, 40)


def test_position_0_is_the_identity():
    x = normal(1, 8, dtype=torch.float64)
    assert torch.equal(turned(x, 0), x)


@settings(max_examples=60, deadline=None)
@given(position=POSITION, half=HALF, seed=st.integers(0, 99))
def test_rotating_keeps_every_pairs_norm(position, half, seed):
    x = normal(1, 2 * half, seed=seed, dtype=torch.float64)
    before, after = (t.view(2, half).norm(dim=0) for t in (x, turned(x, position)))
    same(after, before, 1e-12)


@settings(max_examples=60, deadline=None)
@given(first=POSITION, second=POSITION, half=HALF)
def test_two_rotations_are_one_by_the_sum(first, second, half):
    x = normal(1, 2 * half, dtype=torch.float64)
    same(turned(turned(x, first), second), turned(x, first + second), 1e-9)


@settings(max_examples=100, deadline=None)
@given(query=POSITION, key=POSITION, shift=POSITION, half=HALF, seed=st.integers(0, 99))
def test_a_score_depends_on_the_distance_alone(query, key, shift, half, seed):
    pair = normal(2, 2 * half, seed=seed, dtype=torch.float64)
    q, k = turned(pair, query, key)
    moved_q, moved_k = turned(pair, query + shift, key + shift)
    assert abs(q @ k - moved_q @ moved_k) <= 1e-9 * pair[0].norm() * pair[1].norm()


# --- attention --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("heads", "shared", "head_dim", "length"),
    [(1, 1, 2, 1), (6, 2, 8, 5), (6, 1, 4, 7), (6, 3, 10, 2), (4, 4, 6, 6)],
)
def test_grouped_queries_are_attention_with_repeated_keys_and_values(
    heads, shared, head_dim, length
):
    shapes = {"num_attention_heads": heads, "num_key_value_heads": shared, "head_dim": head_dim}
    config = replace(TINY, **shapes)
    layer, x = scrambled(GroupedQueryAttention(config, 0)), normal(2, length, 24)
    rotation = rope_rotation(torch.arange(length), rope_frequencies(config), x.dtype)

    def states(projection, groups):
        split = projection(x).view(2, length, -1, head_dim).transpose(1, 2)
        return split.repeat_interleave(groups, 1)  # (B, H, T, D)

    q = rotate(states(layer.q_proj, 1), *rotation)
    k = rotate(states(layer.k_proj, heads // shared), *rotation)
    v = states(layer.v_proj, heads // shared)
    mixed = scaled_dot_product_attention(q, k, v, causal_mask(length))
    expected = layer.o_proj(mixed.transpose(1, 2).reshape(2, length, heads * head_dim))
    same(layer(x, rotation, None), expected)
    same(layer(x, rotation, causal_mask(length)), expected)


@EACH_DTYPE
@pytest.mark.parametrize(("heads", "shared"), [(6, 2), (3, 3), (4, 1)])
@pytest.mark.parametrize("length", [1, 2, 33, 300])
def test_a_single_query_of_grouped_heads_is_the_formula(heads, shared, length, dtype):
    q, k, v = normal(2, heads, 1, 16), *(normal(2, shared, length, 16) for _ in range(2))
    q, k, v = (x.to(dtype) for x in (q, k, v))
    repeated = [x.double().repeat_interleave(heads // shared, 1) for x in (k, v)]
    wanted = scaled_dot_product_attention(q.double(), *repeated)
    found = single_query_attention(q, k, v)
    assert found.shape == (2, heads, 1, 16) and found.dtype == dtype
    assert (found - wanted).abs().max() <= EPSILON[dtype] * wanted.abs().max()


def test_unrotated_with_a_key_for_each_query_it_is_plain_multi_head_attention():
    config = replace(TINY, num_key_value_heads=6, head_dim=4, attention_bias=True)
    ours, plain = scrambled(GroupedQueryAttention(config, 0)), MultiHeadAttention(24, 6)
    plain.load_state_dict(ours.state_dict())
    x, upright = normal(2, 5, 24), (torch.ones(5, 2), torch.zeros(5, 2))
    same(ours(x, upright, None), plain(x, mask=causal_mask(5))[0])


def test_a_block_of_zero_output_weights_passes_its_input_on():
    block, x = scrambled(LlamaBlock(TINY, 0)), normal(2, 3, 24)
    for layer in (block.self_attn.o_proj, block.mlp.down_proj):
        torch.nn.init.zeros_(layer.weight)
    rotation = rope_rotation(torch.arange(3), rope_frequencies(TINY), x.dtype)
    assert torch.equal(block(x, rotation, None), x)


# --- the whole model --------------------------------------------------------------------------


@st.composite
def models(draw):
    """A random model of Hugging Face's and some tokens for it."""
    shared = draw(st.integers(1, 3))
    heads = shared * draw(st.integers(1, 3))
    vocabulary = draw(st.sampled_from([1, 2, 31]))
    rope = {"rope_theta": draw(st.floats(10, 1e6)), "rope_type": "default"}
    theirs = random_llama(
        draw(st.integers(0, 99)),
        vocab_size=vocabulary,
        hidden_size=heads * draw(st.integers(1, 5)),
        intermediate_size=draw(st.integers(1, 20)),
        num_hidden_layers=draw(st.integers(1, 3)),
        num_attention_heads=heads,
        num_key_value_heads=shared,
        head_dim=2 * draw(st.integers(1, 5)),
        rms_norm_eps=draw(st.sampled_from([1e-6, 1e-5, 1e-2])),
        tie_word_embeddings=draw(st.booleans()),
        attention_bias=draw(st.booleans()),
        mlp_bias=draw(st.booleans()),
        rope_parameters={**rope, **(draw(scalings()) or {})},
    )
    batch, length = draw(st.integers(1, 3)), draw(st.integers(1, 13))
    return theirs, random_tokens(batch, length, vocabulary=vocabulary)


def in_pieces(model, tokens, cache, cuts):
    """Logits of all tokens, computed piece by piece."""
    pieces = torch.tensor_split(tokens, cuts, dim=1)
    return torch.cat([model(piece, cache) for piece in pieces], dim=1)


@settings(max_examples=120, deadline=None)
@given(model=models(), data=st.data())
@torch.inference_mode()
def test_logits_are_hugging_faces_at_once_in_pieces_and_the_last_alone(model, data):
    theirs, tokens = model
    ours, expected, length = twin(theirs), theirs(tokens).logits, tokens.shape[1]
    same(ours(tokens), expected, 1e-4)
    keep = data.draw(st.integers(0, length))
    same(ours(tokens, logits_to_keep=keep), expected[:, -keep:], 1e-4)
    cuts = sorted(cut for cut in data.draw(st.sets(st.integers(1, 12))) if cut < length)
    for cache in (KVCache(), DynamicCache()):
        same(in_pieces(ours, tokens, cache, cuts), expected, 1e-4)
        assert cache.get_seq_length() == length


def test_our_cache_and_hugging_faces_hold_the_same_keys_and_values():
    theirs, tokens = random_llama(), random_tokens(2, 7)
    ours, filled, reference = twin(theirs), KVCache(), DynamicCache()
    with torch.inference_mode():
        ours(tokens, filled)
        theirs(tokens, past_key_values=reference, use_cache=True)
    for number, layer in enumerate(reference.layers):
        same(filled.keys[number], layer.keys)
        same(filled.values[number], layer.values)


def loss_gradients(model, tokens):
    """d loss / d parameter of the next-token loss, by name."""
    out = model(tokens)
    logits = getattr(out, "logits", out)[:, :-1]
    F.cross_entropy(logits.flatten(0, 1), tokens[:, 1:].flatten()).backward()
    return {name: parameter.grad for name, parameter in model.named_parameters()}


@pytest.mark.parametrize("tied", [False, True], ids=["untied", "tied"])
@pytest.mark.parametrize("rope", ROPES)
def test_gradients_are_hugging_faces(tied, rope):
    parameters = {"rope_type": "default", "rope_theta": 100.0, **(ROPES[rope] or {})}
    options = {"attention_bias": True, "mlp_bias": True, "rope_parameters": parameters}
    theirs = random_llama(tie_word_embeddings=tied, **options)
    tokens = random_tokens(3, 9)
    ours, reference = loss_gradients(twin(theirs), tokens), loss_gradients(theirs, tokens)
    assert ours.keys() == reference.keys()
    largest = max(gradient.abs().max() for gradient in reference.values())
    for name, gradient in reference.items():
        if name.endswith("k_proj.bias"):  # the softmax does not see it, but for the rotation
            torch.testing.assert_close(ours[name], gradient, rtol=1e-3, atol=1e-5 * largest.item())
        else:
            same_to_the_largest(ours[name], gradient)


@pytest.mark.parametrize("tied", [False, True], ids=["untied", "tied"])
def test_in_bf16_it_is_as_near_to_hugging_face_as_bf16_allows(tied):
    theirs, tokens = random_llama(tie_word_embeddings=tied), random_tokens(2, 33)
    with torch.inference_mode():
        exact, ours = theirs(tokens).logits, twin(theirs).bfloat16()(tokens)
        rounded = theirs.bfloat16()(tokens).logits
    assert ours.dtype == torch.bfloat16
    same_to_the_largest(ours.float(), exact, 0.08)
    our_error, their_error = ((t.float() - exact).abs().mean() for t in (ours, rounded))
    assert our_error < 1.1 * their_error


def test_a_future_token_cannot_change_a_past_logit():
    model, tokens = twin(random_llama()), random_tokens(1, 12)
    changed = tokens.clone()
    changed[0, 7] = (tokens[0, 7] + 1) % 97
    with torch.inference_mode():
        before, after = model(tokens), model(changed)
    same(after[:, :7], before[:, :7], 1e-6)
    assert ((after - before).abs().amax(-1)[0, 7:] > 1e-4).all()


def test_rows_of_a_batch_do_not_see_each_other():
    model, tokens = twin(random_llama()), random_tokens(3, 9)
    with torch.inference_mode():
        together = model(tokens)
        for row in range(3):
            same(together[row : row + 1], model(tokens[row : row + 1]))


def test_generate_gives_hugging_faces_tokens():
    theirs, prompt = random_llama(eos_token_id=None, bos_token_id=None), random_tokens(2, 5)
    expected = theirs.generate(prompt, max_new_tokens=20, do_sample=False, pad_token_id=0)
    for use_cache in (True, False):
        assert torch.equal(generate(twin(theirs), prompt, 20, use_cache=use_cache), expected)


def test_a_fresh_model_has_small_random_matrices_and_norms_of_one():
    model = Llama(replace(TINY, hidden_size=96))
    for name, parameter in model.named_parameters():
        if "norm" in name:
            assert (parameter == 1).all()
        else:
            assert parameter.std().item() == pytest.approx(0.02, rel=0.1)


# --- dtypes, ties, sizes ----------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_another_dtype_does_not_round_the_frequencies(dtype):
    model = Llama(rope_config(scaling=LLAMA3))
    before = model.frequencies.clone()
    model.to(dtype)
    assert model.frequencies.dtype == torch.float32
    assert torch.equal(model.frequencies, before)
    assert "frequencies" not in model.state_dict()


def test_on_the_meta_device_the_frequencies_are_still_numbers():
    with torch.device("meta"):
        model = Llama(TINY)
    assert torch.equal(model.frequencies, rope_frequencies(TINY))
    assert all(parameter.is_meta for parameter in model.parameters())


def is_tied(model):
    return model.lm_head.weight is model.model["embed_tokens"].weight


@pytest.mark.parametrize("tied", [False, True], ids=["untied", "tied"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_shared_table_is_one_tensor_however_the_model_came_to_be(tied, dtype, tmp_path):
    theirs = random_llama(tie_word_embeddings=tied)
    theirs.save_pretrained(tmp_path)
    loaded = Llama.from_pretrained(tmp_path, dtype)
    for model in (twin(theirs), loaded, twin(theirs).to(dtype), loaded.to(torch.float64)):
        assert is_tied(model) == tied
    assert len(list(loaded.parameters())) == len(list(theirs.parameters()))


@pytest.mark.parametrize("tied", [False, True], ids=["untied", "tied"])
@EACH_DTYPE
def test_from_pretrained_gives_the_dtype_that_was_asked_for_ready_for_use(tied, dtype, tmp_path):
    theirs = random_llama(tie_word_embeddings=tied)
    theirs.save_pretrained(tmp_path)
    model = Llama.from_pretrained(str(tmp_path), dtype)
    assert {parameter.dtype for parameter in model.parameters()} == {dtype}
    assert not model.training and all(p.requires_grad for p in model.parameters())
    for name, parameter in theirs.state_dict().items():
        assert torch.equal(model.state_dict()[name], parameter.to(dtype))


def parameters_of(config):
    with torch.device("meta"):
        return sum(parameter.numel() for parameter in Llama(config).parameters())


@pytest.mark.parametrize("name", MODELS)
def test_registered_models_have_the_predicted_number_of_parameters(name):
    assert parameters_of(MODELS[name].config) == count_parameters(MODELS[name].config)


@pytest.mark.parametrize("tied", [False, True], ids=["untied", "tied"])
@pytest.mark.parametrize(("attention", "mlp"), [(True, False), (False, True), (True, True)])
def test_biases_and_ties_are_in_the_predicted_number_of_parameters(attention, mlp, tied):
    options = {"attention_bias": attention, "mlp_bias": mlp, "tie_word_embeddings": tied}
    config = replace(TINY, **options)
    assert parameters_of(config) == count_parameters(config)


# --- bad input --------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def tiny():
    return Llama(TINY)


@pytest.mark.parametrize("shape", [(), (3,), (1, 0), (0, 3), (1, 2, 3)])
def test_tokens_that_are_not_rows_of_ids_are_refused(tiny, shape):
    with refused(ValueError, f"got {shape}", "(B, T)"):
        tiny(torch.zeros(shape, dtype=torch.long))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.bool, torch.uint8])
def test_tokens_that_are_not_integers_are_refused(tiny, dtype):
    with refused(TypeError, f"dtype {dtype};", "int64"):
        tiny(torch.ones(1, 2, dtype=dtype))


@pytest.mark.parametrize("token", [-1, 97, 5000])
def test_a_token_outside_the_vocabulary_is_refused(tiny, token):
    with refused(ValueError, str(token)):
        tiny(torch.tensor([[3, token]]))


def test_what_exceeds_the_context_is_refused_and_what_fills_it_is_not(tiny):
    assert tiny(random_tokens(1, 64)).shape == (1, 64, 97)
    with refused(ValueError, "65 tokens", "context of 64", "shorten"):
        tiny(random_tokens(1, 65))


def test_tokens_in_the_cache_count_towards_the_context(tiny):
    cache = KVCache()
    tiny(random_tokens(1, 62), cache)
    with refused(ValueError, "65 tokens", "context of 64"):
        tiny(random_tokens(1, 3), cache)
    assert cache.length == 62  # a refusal leaves it as it was
    assert tiny(random_tokens(1, 2), cache).shape == (1, 2, 97)


@pytest.mark.parametrize(("heads", "shared"), [(6, 4), (2, 6)])
def test_heads_that_cannot_share_keys_evenly_are_refused(heads, shared):
    config = replace(TINY, num_attention_heads=heads, num_key_value_heads=shared)
    with refused(ValueError, f"{heads} query heads", f"{shared} key-value heads"):
        Llama(config)


@pytest.mark.parametrize("size", [0, -1])
@pytest.mark.parametrize(
    "name",
    """vocab_size hidden_size intermediate_size num_hidden_layers num_attention_heads
    num_key_value_heads head_dim max_position_embeddings""".split(),
)
def test_sizes_below_1_are_refused(name, size):
    with refused(ValueError, f"{name} is {size};", "above 0"):
        Llama(replace(TINY, **{name: size}))


def test_a_rotary_kind_that_is_unknown_is_refused_when_the_model_is_made():
    with refused(ValueError, "rope_type is 'yarn'"):
        Llama(rope_config(scaling={"rope_type": "yarn", "factor": 2.0}))


# --- the embedded model -----------------------------------------------------------------------


@pytest.fixture(scope="module")
def real():
    """Hugging Face's model, and ours from the same folder."""
    theirs = load_model(DEFAULT_MODEL, "fp32", "cpu")
    theirs.generation_config.eos_token_id = None
    return theirs, Llama.from_pretrained(model_folder(DEFAULT_MODEL))


@pytest.fixture(scope="module")
def text():
    """The evaluation text's first 512 tokens, (1, 512)."""
    ids = load_tokenizer(DEFAULT_MODEL)(evaluation_text())["input_ids"]
    return torch.tensor([ids[:512]])


@pytest.mark.slow  # needs the package index, once
def test_the_real_models_logits_are_hugging_faces_over_512_tokens(real, text):
    theirs, ours = real
    assert is_tied(ours)
    with torch.inference_mode():
        expected = theirs(text).logits
        same(ours(text), expected, 1e-4)
        same(in_pieces(ours, text, KVCache(), [300, 301, 400]), expected, 1e-4)


@pytest.mark.slow  # needs the package index, once; 200 tokens
def test_the_real_model_continues_as_hugging_faces_for_100_tokens(real, text):
    theirs, ours = real
    prompt = text[:, :24]
    expected = theirs.generate(prompt, max_new_tokens=100, do_sample=False, pad_token_id=0)
    assert torch.equal(generate(ours, prompt, 100), expected)
    assert torch.equal(generate(ours, prompt, 100, use_cache=False), expected)


# --- what lesson 04 shows as solutions, and what the package holds ------------------------------


@pytest.fixture(scope="module")
def lesson():
    """The classes of lesson 04's notebook, around the solutions that it shows."""
    names = {
        "torch": torch,
        "nn": torch.nn,
        "math": math,
        "causal_mask": causal_mask,
        "scaled_dot_product_attention": F.scaled_dot_product_attention,
        "read_checkpoint": read_checkpoint,
        "Path": Path,
    }
    names |= {
        name: getattr(shown, name)
        for name in ("rms_norm", "rotate", "share_heads", "swiglu", "llama_block")
    }
    for name, source in definitions("04_llama_from_scratch").items():
        if name not in names:
            exec(source, names)
    return names


@pytest.mark.parametrize("shape", [(1,), (7,), (1, 1), (3, 5), (2, 1, 9), (2, 3, 4, 33)])
def test_the_norm_and_the_rotation_shown_are_the_packages(shape):
    norm = scrambled(RMSNorm(shape[-1], 1e-3))
    x = normal(*shape)
    same(shown.rms_norm(x, norm.weight, 1e-3), norm(x))
    x, angles = normal(*shape[:-1], 5, 2 * shape[-1]), normal(5, shape[-1], seed=1)
    assert torch.equal(
        shown.rotate(x, angles.cos(), angles.sin()), rotate(x, angles.cos(), angles.sin())
    )


@pytest.mark.parametrize("heads", [1, 2, 5])
@pytest.mark.parametrize("shape", [(2,), (4,), (2, 3), (64, 7)])
def test_the_order_of_rows_shown_is_the_packages_for_weights(heads, shape):
    weight = normal(heads * shape[0], *shape[1:])
    table = weight.reshape(len(weight), -1)
    assert torch.equal(shown.to_halves(table, heads), to_halves(table, heads))
    assert torch.equal(shown.to_halves(to_pairs(table, heads), heads), table)


@pytest.mark.parametrize("changes", [
    {}, {"num_key_value_heads": 1}, {"num_key_value_heads": 6}, {"tie_word_embeddings": True},
    {"attention_bias": True, "mlp_bias": True}, {"num_hidden_layers": 1},
])  # fmt: skip
def test_the_llama_of_lesson_04_is_the_packages(lesson, changes):
    packages = twin(random_llama(**changes))
    theirs = lesson["Llama"](packages.config)
    theirs.load_state_dict(packages.state_dict())
    for shape in ((1, 1), (2, 7), (3, 12)):
        tokens = random_tokens(*shape)
        with torch.inference_mode():
            same_to_the_largest(theirs(tokens), packages(tokens))
            same_to_the_largest(
                theirs(tokens, logits_to_keep=1), packages(tokens, logits_to_keep=1)
            )
            ours_cache, packages_cache = KVCache(), KVCache()
            for part in tokens.split([1, shape[1] - 1], 1) if shape[1] > 1 else [tokens]:
                same_to_the_largest(
                    theirs(part, past_key_values=ours_cache),
                    packages(part, past_key_values=packages_cache),
                )


@pytest.mark.parametrize("tied", [False, True])
def test_lesson_04_loads_the_checkpoint_that_the_package_loads(lesson, tmp_path, tied):
    theirs = random_llama(tie_word_embeddings=tied)
    theirs.save_pretrained(tmp_path)
    tokens = random_tokens(2, 5)
    with torch.inference_mode():
        ours = lesson["load_llama"](tmp_path)(tokens)
        same_to_the_largest(ours, Llama.from_pretrained(tmp_path)(tokens))


@pytest.mark.parametrize("heads", [1, 3])
def test_both_rules_for_the_order_of_rows_see_a_clear_trace(heads):
    length = normal(heads, 16, 1, 1).exp()
    rows = length * F.normalize(normal(heads, 16, 2, 8, seed=1), dim=-1)
    weight = rows.flatten(0, 2)  # Meta's order
    for rule in (shown.in_halves, measurements.pairs_alike):
        assert not rule(weight, heads)
        assert rule(to_halves(weight, heads), heads)
    packages = Llama(TINY)
    assert measurements.recognized_orders(packages, lambda *_: True) == (6, 12)


def test_a_reordered_copy_leaves_the_model_as_it_was_and_shares_all_else():
    model = Llama(TINY)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    copied = measurements.reordered(model, ["k_proj"], to_pairs)
    for name, parameter in model.named_parameters():
        assert torch.equal(parameter, before[name])
        other = copied.get_parameter(name)
        if name.endswith("k_proj.weight"):
            assert torch.equal(other, to_pairs(parameter, TINY.num_key_value_heads))
            assert not torch.equal(other, parameter)
        else:
            assert other is parameter


@torch.inference_mode()
@pytest.mark.parametrize(
    ("width", "refused"),
    [
        (48, "its slice in one of two files transposed"),  # 48 x 48, cut into 48 x 24
        (24, "`wo` of one layer transposed"),  # 24 x 48, cut into 24 x 24
    ],
)
def test_each_mistake_changes_the_logits_and_is_refused_only_by_its_shape(width, refused):
    model = twin(random_llama(hidden_size=width))
    tokens = random_tokens(1, 9)
    right, before = model(tokens), [p.clone() for p in model.parameters()]
    converted = measurements.mistakes(model)
    assert [name for name, broken in converted.items() if broken is None] == [refused]
    assert converted.pop("none") is model
    for broken in converted.values():
        if broken is not None:
            assert (broken(tokens) - right).abs().max() > 1e-2 * right.abs().max()
    assert all(torch.equal(*pair) for pair in zip(before, model.parameters(), strict=True))


@torch.inference_mode()
def test_the_llama_of_lesson_04_scales_as_llama_31_beyond_the_original_context(lesson):
    theirs, config, tokens = measurements.small_llama3()
    beyond = theirs(tokens).logits[:, config.rope_scaling["original_max_position_embeddings"] :]
    assert beyond.shape[1] > 0
    allowed = lesson["tolerance"](beyond, config.num_hidden_layers)
    for scaling, equal in ((config.rope_scaling, True), (None, False)):
        ours = lesson["Llama"](replace(config, rope_scaling=scaling))
        ours.load_state_dict(theirs.state_dict())
        gap = (ours(tokens)[:, -beyond.shape[1] :] - beyond).abs().max()
        assert (gap < allowed) == equal


@pytest.mark.parametrize(
    ("same", "less", "control", "verdict"),
    [
        ((1.4, 1.6), (0.98, 1.05), (0.95, 1.01), "fails here"),
        ((1.4, 1.6), (0.85, 1.05), (0.95, 1.01), "undecided here"),
        ((1.4, 1.6), (0.98, 1.05), (0.85, 1.01), "undecided here"),
        ((1.4, 1.6), (0.70, 0.85), (0.95, 1.01), "holds only if"),
        ((0.7, 0.8), (0.50, 0.60), (0.95, 1.01), "holds"),
        ((math.nan, math.nan), (math.nan, math.nan), (math.nan, math.nan), "undecided here"),
    ],
)
def test_a_saving_is_judged_by_its_intervals(same, less, control, verdict):
    timed = ((sum(ends) / 2, *ends) for ends in (same, less, control))
    assert measurements.saving_verdict(*timed) == verdict


def test_the_interval_of_a_median_covers_it_as_often_as_it_says():
    draws = np.random.default_rng(0).lognormal(size=(400, 15))
    intervals = [measurements.median_interval(row)[1:] for row in draws]
    assert 0.94 < np.mean([low <= 1 <= high for low, high in intervals]) < 1  # median exp(0)
    assert np.isnan(measurements.median_interval(draws[0, :3])[1:]).all()


def test_the_parts_of_a_model_are_all_its_parameters_but_the_norms():
    for name in ("smollm2-135m", "llama-2-7b-chat"):
        config = MODELS[name].config
        norms = (2 * config.num_hidden_layers + 1) * config.hidden_size
        parts = measurements.parameters_by_part(config)
        assert sum(parts.values()) + norms == count_parameters(config)
        biased = replace(config, attention_bias=True, mlp_bias=True)
        more = count_parameters(biased) / count_parameters(config) - 1
        assert measurements.bias_share(config) == pytest.approx(more)
