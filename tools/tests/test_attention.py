"""Attention and the 2017 blocks, attention inside a model, and dates: each against a reference."""

import math
import random
import re
from datetime import date, timedelta

import numpy as np
import pytest
import torch
from helpers import normal, same
from hypothesis import given, settings
from hypothesis import strategies as st
from test_notebook_definitions import definitions
from tiny_llama import tiny_llama
from torch import nn
from torch.nn import functional as F
from transformers import DynamicCache, StaticCache

from llama_int8.course.exercises import judge
from llama_int8.course.heads import (
    attend_with,
    attention_maps,
    queries_and_keys,
    weight_on_first,
    weight_on_previous,
)
from llama_int8.course.torch_twins import torch_twin
from llama_int8.lessons.n01 import exercises as shown
from llama_int8.lessons.n01 import measurements as measured_01
from llama_int8.lessons.n02 import dates, mystery
from llama_int8.lessons.n02 import exercises as shown_02
from llama_int8.measure.statistics import Spread
from llama_int8.models import load_model
from llama_int8.transformer.attention import (
    DecoderBlock,
    EncoderBlock,
    EncoderDecoder,
    FeedForward,
    MultiHeadAttention,
    Residual,
    attention_weights,
    causal_mask,
    layer_norm,
    padding_mask,
    scaled_dot_product_attention,
    sinusoidal_positions,
)

INF, NAN = float("inf"), float("nan")
EITHER_NORM = pytest.mark.parametrize("norm_first", [True, False], ids=["pre-norm", "post-norm"])
ODD_SHAPES = pytest.mark.parametrize(
    ("B", "T", "S", "width", "heads"),
    [(1, 1, 1, 1, 1), (1, 5, 3, 6, 3), (3, 1, 4, 8, 2), (2, 7, 1, 5, 1), (2, 4, 9, 10, 5)],
)


def additive(mask, dtype=torch.float32):
    return torch.zeros(mask.shape, dtype=dtype).masked_fill(~mask, -INF)


def shaken(module):
    """The module with every weight random: none is left at 0 or 1."""
    torch.manual_seed(1)
    with torch.no_grad():
        for weight in module.parameters():
            weight.add_(0.3 * torch.randn_like(weight))
    return module.eval()


def weights_by_hand(q, k, mask=None):
    """Equation 1 in float64, one number at a time."""
    q, k = q.double().numpy(), k.double().numpy()
    T, S, D = q.shape[-2], k.shape[-2], q.shape[-1]
    added = np.zeros((T, S))
    if mask is not None:
        added = (additive(mask) if mask.dtype == torch.bool else mask).double().numpy()
    added = np.broadcast_to(added, (*q.shape[:-2], T, S))
    weights = np.zeros((*q.shape[:-2], T, S))
    for *batch, t in np.ndindex(*q.shape[:-1]):
        at = tuple(batch)
        scores = [
            sum(q[at][t, d] * k[at][s, d] for d in range(D)) / math.sqrt(D) + added[at][t, s]
            for s in range(S)
        ]
        top = max(scores)
        if top > -INF:
            powers = [math.exp(score - top) for score in scores]
            weights[at][t] = [power / sum(powers) for power in powers]
    return torch.from_numpy(weights)


def attention_by_hand(q, k, v, mask=None):
    return weights_by_hand(q, k, mask) @ v.double()


@st.composite
def attention_inputs(draw, dtypes=(torch.float32,)):
    """q, k, v of odd shapes, and a mask: boolean, added to the scores, or none."""
    batch = draw(st.lists(st.integers(1, 3), max_size=2))
    T, S, D, V = (draw(st.integers(1, 7)) for _ in range(4))
    dtype, seed = draw(st.sampled_from(dtypes)), draw(st.integers(0, 10**6))
    q, k, v = (
        normal(*batch, *shape, seed=seed + n).to(dtype)
        for n, shape in enumerate([(T, D), (S, D), (S, V)])
    )
    shape = draw(st.sampled_from([(*batch, T, S), (T, S), (1, S), (T, 1), (S,)]))
    visible = normal(*shape, seed=seed + 3) > draw(st.sampled_from([-INF, -1.0, 0.0, 1.0]))
    bias = normal(*shape, seed=seed + 4).to(dtype)
    masks = [None, visible, additive(visible, dtype), bias, bias + additive(visible, dtype)]
    return q, k, v, draw(st.sampled_from(masks))


def pytorchs_attention(q, k, v, mask=None):
    if mask is not None:
        mask = mask.expand(*q.shape[:-1], k.shape[-2])
    return F.scaled_dot_product_attention(q, k, v, mask)


# --- attention: against PyTorch and by hand ---------------------------------------------------


@settings(max_examples=200, deadline=None)
@given(attention_inputs())
def test_attention_is_pytorchs(inputs):
    q, k, _, mask = inputs
    same(scaled_dot_product_attention(*inputs), pytorchs_attention(*inputs))
    identity = torch.eye(k.shape[-2]).expand(*k.shape[:-1], -1).contiguous()
    same(attention_weights(q, k, mask), pytorchs_attention(q, k, identity, mask))


@settings(max_examples=100, deadline=None)
@given(attention_inputs(dtypes=[torch.float64]))
def test_attention_in_float64_is_the_formula_by_hand(inputs):
    q, k, v, mask = inputs
    same(attention_weights(q, k, mask), weights_by_hand(q, k, mask), 1e-12)
    same(scaled_dot_product_attention(q, k, v, mask), attention_by_hand(q, k, v, mask), 1e-12)


@settings(max_examples=100, deadline=None)
@given(attention_inputs(dtypes=[torch.bfloat16, torch.float16]))
def test_attention_in_16_bits_is_off_by_the_rounding_alone(inputs):
    q, k, v, mask = inputs
    half_step = torch.finfo(q.dtype).eps / 2
    products = q.double().abs() @ k.double().abs().transpose(-2, -1) / math.sqrt(q.shape[-1])
    added = 0.0 if mask is None or mask.dtype == torch.bool else mask.double()
    size = torch.where(torch.isfinite(products + added), products + abs(added), 0.0)
    score_error = 4 * half_step * size.amax(-1, keepdim=True)  # scaling, product, sum, mask
    exact = weights_by_hand(q, k, mask)
    weight_error = exact * torch.expm1(2 * score_error) + half_step
    weights = attention_weights(q, k, mask)
    assert weights.dtype == q.dtype
    assert ((weights.double() - exact).abs() <= weight_error).all()
    out = scaled_dot_product_attention(q, k, v, mask)
    out_error = (weight_error + half_step) @ v.double().abs() * 1.1 + half_step
    assert out.dtype == q.dtype
    assert ((out.double() - exact @ v.double()).abs() <= out_error).all()


@settings(max_examples=100, deadline=None)
@given(attention_inputs())
def test_a_querys_weights_sum_to_one_or_are_all_zero_where_it_may_look_nowhere(inputs):
    q, k, _, mask = inputs
    weights = attention_weights(q, k, mask)
    if mask is None:
        mask = torch.ones(k.shape[-2], dtype=torch.bool)
    visible = (mask if mask.dtype == torch.bool else mask > -INF).expand(weights.shape)
    same(weights.sum(-1), visible.any(-1).float(), 1e-6)
    assert (weights >= 0).all() and (weights[~visible] == 0).all()


def test_a_key_dimension_of_4_halves_the_scores():
    q, k = torch.tensor([[2.0, 0, 0, 0]]), torch.tensor([[math.log(3), 0, 0, 0], [0.0, 0, 0, 0]])
    same(attention_weights(q, k), torch.tensor([[0.75, 0.25]]), 1e-6)


def test_batch_dimensions_of_queries_keys_and_values_broadcast():
    q, k, v = normal(2, 1, 3, 4), normal(1, 5, 6, 4, seed=1), normal(6, 2, seed=2)
    full = (q.expand(2, 5, 3, 4), k.expand(2, 5, 6, 4), v.expand(2, 5, 6, 2))
    mask = causal_mask(3, past=3)
    same(scaled_dot_product_attention(q, k, v, mask), pytorchs_attention(*full, mask))


def test_zero_scores_give_every_visible_key_the_same_weight():
    zeros = torch.zeros(2, 4, 3)
    assert torch.equal(attention_weights(zeros, zeros), torch.full((2, 4, 4), 0.25))
    among_past = torch.tensor([[1, 0, 0, 0], [1 / 2] * 2 + [0] * 2, [1 / 3] * 3 + [0], [1 / 4] * 4])
    same(attention_weights(zeros[0], zeros[0], causal_mask(4)), among_past, 1e-7)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("form", [None, "boolean", "added"])
def test_huge_values_stay_finite_and_the_matching_key_gets_all_the_weight(dtype, form):
    q = 1e4 * torch.eye(6, dtype=dtype)
    mask = {None: None, "boolean": causal_mask(6), "added": additive(causal_mask(6), dtype)}[form]
    assert torch.equal(attention_weights(q, q, mask), torch.eye(6, dtype=dtype))
    q, k, v = (1e4 * normal(3, 6, 5, seed=n).to(dtype) for n in range(3))
    q.requires_grad_()
    out = scaled_dot_product_attention(q, k, v, mask)
    out.sum().backward()
    assert torch.isfinite(out).all() and torch.isfinite(q.grad).all()
    assert out.abs().max() <= v.abs().max()


def test_a_nan_query_spoils_its_own_row_only():
    q, k, v = normal(4, 3), normal(5, 3, seed=1), normal(5, 2, seed=2)
    before = scaled_dot_product_attention(q, k, v)
    q[2, 1] = NAN
    after = scaled_dot_product_attention(q, k, v)
    assert after[2].isnan().all()
    assert torch.equal(after[[0, 1, 3]], before[[0, 1, 3]])


def test_a_nan_key_spoils_the_rows_that_see_it_and_no_others():
    q, k, v = normal(2, 5, 3), normal(2, 5, 3, seed=1), normal(2, 5, 4, seed=2)
    before = scaled_dot_product_attention(q, k, v, causal_mask(5))
    k[0, 3] = NAN
    after = scaled_dot_product_attention(q, k, v, causal_mask(5))
    assert after[0, 3:].isnan().all()
    assert torch.equal(after[0, :3], before[0, :3]) and torch.equal(after[1], before[1])


def test_a_nan_value_spoils_its_own_column_and_batch_row_only():
    q, k, v = normal(2, 5, 3), normal(2, 5, 3, seed=1), normal(2, 5, 4, seed=2)
    before = scaled_dot_product_attention(q, k, v)
    v[0, 3, 1] = NAN
    after = scaled_dot_product_attention(q, k, v)
    assert after[0, :, 1].isnan().all()
    assert torch.equal(after[..., [0, 2, 3]], before[..., [0, 2, 3]])
    assert torch.equal(after[1], before[1])


@pytest.mark.parametrize("form", ["boolean", "added"])
def test_a_query_that_may_look_nowhere_gets_zeros_and_finite_gradients(form):
    visible = torch.tensor([[True, False, True], [False, False, False]])
    mask = visible if form == "boolean" else additive(visible)
    q, k, v = (normal(2, n, 3, seed=n).requires_grad_() for n in (2, 3, 3))
    out = scaled_dot_product_attention(q, k, v, mask)
    assert (out[:, 1] == 0).all() and (attention_weights(q, k, mask)[:, 1] == 0).all()
    same(out[:, :1], pytorchs_attention(q[:, :1], k, v, mask[:1]))
    out.square().sum().backward()
    assert all(torch.isfinite(x.grad).all() for x in (q, k, v))
    assert (q.grad[:, 1] == 0).all() and (q.grad[:, 0] != 0).all()
    everywhere = scaled_dot_product_attention(q, k, v, mask[1:].expand(2, 3))
    assert (everywhere == 0).all()


@pytest.mark.parametrize("mask", [None, torch.ones(3, 0).bool(), torch.zeros(3, 0)])
def test_no_keys_at_all_give_zeros(mask):
    q, k, v = normal(2, 3, 4), normal(2, 0, 4), normal(2, 0, 5)
    assert attention_weights(q, k, mask).shape == (2, 3, 0)
    assert torch.equal(scaled_dot_product_attention(q, k, v, mask), torch.zeros(2, 3, 5))
    assert scaled_dot_product_attention(k, q, q).shape == (2, 0, 4)


def test_gradients_are_those_of_finite_differences():
    q, k, v = (normal(2, n, 3, seed=n, dtype=torch.float64).requires_grad_() for n in (3, 5, 5))
    mask = causal_mask(3, past=2)
    assert torch.autograd.gradcheck(lambda *x: scaled_dot_product_attention(*x, mask), (q, k, v))


def test_inputs_are_left_as_they_were():
    q, k, v, mask = normal(3, 2), normal(4, 2), normal(4, 2), additive(causal_mask(3, past=1))
    copies = [x.clone() for x in (q, k, v, mask)]
    scaled_dot_product_attention(q, k, v, mask)
    assert all(map(torch.equal, (q, k, v, mask), copies))


# --- masks ------------------------------------------------------------------------------------


@pytest.mark.parametrize(("length", "past"), [(1, 0), (4, 0), (3, 2), (1, 5), (0, 0), (0, 3)])
def test_a_token_sees_itself_and_what_came_before(length, past):
    mask = causal_mask(length, past)
    assert mask.dtype == torch.bool and mask.shape == (length, past + length)
    for t, s in np.ndindex(length, past + length):
        assert mask[t, s] == (s <= past + t)


def test_masks_are_made_on_the_device_asked_for():
    assert causal_mask(2, 1, device="meta").device.type == "meta"
    assert causal_mask(2, device=torch.device("cpu")).device.type == "cpu"
    block = DecoderBlock(4, 2, 8).to("meta")
    assert block(torch.ones(1, 3, 4, device="meta"), torch.ones(1, 2, 4, device="meta")).is_meta


def test_a_step_with_past_is_the_end_of_the_whole_pass():
    q, k, v = normal(2, 7, 3), normal(2, 7, 3, seed=1), normal(2, 7, 3, seed=2)
    whole = scaled_dot_product_attention(q, k, v, causal_mask(7))
    step = scaled_dot_product_attention(q[:, 5:], k, v, causal_mask(2, past=5))
    same(step, whole[:, 5:], 1e-6)


@pytest.mark.parametrize("lengths", [[3, 0, 5, 1], [5], [0], []])
def test_a_padding_mask_shows_each_rows_first_tokens(lengths):
    mask = padding_mask(torch.tensor(lengths, dtype=torch.long), 5)
    assert mask.dtype == torch.bool and mask.shape == (len(lengths), 1, 1, 5)
    assert mask[:, 0, 0].tolist() == [[place < n for place in range(5)] for n in lengths]


def causal_models():
    """Functions of states (2, 6, 8) or tokens (2, 6) that must not look ahead, by name."""
    source = normal(2, 3, 8, seed=9)
    attention = shaken(MultiHeadAttention(8, 2))
    model = shaken(EncoderDecoder(11, 8, 2, 12, 2))
    states, mask = model.encode(torch.tensor([[3, 1, 4], [1, 5, 0]]))
    found = {
        "attention": lambda x: scaled_dot_product_attention(x, x, x, causal_mask(6)),
        "added mask": lambda x: scaled_dot_product_attention(x, x, x, additive(causal_mask(6))),
        "heads": lambda x: attention(x, mask=causal_mask(6))[0],
        "decode": lambda tokens: model.decode(tokens, states, mask),
    }
    for first in (True, False):
        block = shaken(DecoderBlock(8, 2, 12, norm_first=first))
        name = "pre-norm decoder" if first else "post-norm decoder"
        found[name] = lambda x, block=block: block(x, source)
    return found


@pytest.mark.parametrize("name", causal_models())
@pytest.mark.parametrize("changed", [1, 3, 5])
def test_a_future_token_cannot_change_a_past_output(name, changed):
    model, tokens = causal_models()[name], torch.tensor([[1, 2, 3, 4, 5, 6], [6, 5, 4, 3, 2, 1]])
    x = tokens if name == "decode" else normal(2, 6, 8)
    other = x.clone()
    other[:, changed:] = 11 - other[:, changed:]
    before, after = model(x), model(other)
    assert torch.equal(before[:, :changed], after[:, :changed])
    assert (before[:, changed:] != after[:, changed:]).flatten(2).any(-1).all()


@pytest.mark.parametrize("name", sorted(set(causal_models()) - {"decode"}))
def test_no_gradient_flows_from_an_output_to_a_later_input(name):
    x = normal(2, 6, 8).requires_grad_()
    out = causal_models()[name](x)
    for t in range(6):
        (grad,) = torch.autograd.grad(out[:, t].square().sum(), x, retain_graph=True)
        assert (grad[:, t + 1 :] == 0).all()
        assert (grad[:, : t + 1] != 0).flatten(2).any(-1).all()


def test_without_the_mask_a_future_token_changes_the_past():
    x, heads, block = normal(1, 5, 8), MultiHeadAttention(8, 2), EncoderBlock(8, 2, 12)
    other = torch.cat([x[:, :4], -x[:, 4:]], dim=1)
    for model in (lambda x: scaled_dot_product_attention(x, x, x), lambda x: heads(x)[0], block):
        assert (model(x)[:, :4] != model(other)[:, :4]).any(-1).all()


@pytest.mark.parametrize("name", ["attention", "heads", "pre-norm", "post-norm"])
def test_a_padded_row_is_the_row_alone(name):
    lengths, x = [2, 5, 1], normal(3, 5, 8)
    heads = shaken(MultiHeadAttention(8, 4))
    model = {
        "attention": lambda x, mask: scaled_dot_product_attention(
            x[:, None], x[:, None], x[:, None], mask
        )[:, 0],
        "heads": lambda x, mask: heads(x, mask=mask)[0],
        "pre-norm": shaken(EncoderBlock(8, 4, 12)),
        "post-norm": shaken(EncoderBlock(8, 4, 12, norm_first=False)),
    }[name]
    padded = model(x, padding_mask(torch.tensor(lengths), 5))
    for row, n in enumerate(lengths):
        same(padded[row, :n], model(x[row : row + 1, :n], None)[0], 1e-6)


def test_a_padded_source_row_is_the_row_alone_for_the_decoder():
    block, x, source = shaken(DecoderBlock(8, 2, 12)), normal(3, 4, 8), normal(3, 5, 8, seed=1)
    out = block(x, source, padding_mask(torch.tensor([4, 5, 1]), 5))
    for row, n in enumerate([4, 5, 1]):
        same(out[row], block(x[row : row + 1], source[row : row + 1, :n])[0], 1e-6)


def test_a_padded_row_is_the_row_alone_through_the_whole_transformer():
    model = shaken(EncoderDecoder(11, 8, 2, 12, 3))
    source = torch.tensor([[3, 1, 4, 0, 0], [1, 5, 9, 2, 6], [5, 0, 0, 0, 0]])
    target = torch.tensor([[1, 7, 2, 0], [1, 8, 3, 2], [1, 2, 0, 0]])
    logits = model(source, target)
    for row, (s, t) in enumerate([(3, 3), (5, 4), (1, 2)]):
        alone = model(source[row : row + 1, :s], target[row : row + 1, :t])
        same(logits[row, :t], alone[0], 1e-6 * logits.abs().max().item())


def test_a_source_of_nothing_but_padding_gives_finite_logits():
    model = shaken(EncoderDecoder(11, 8, 2, 12, 2))
    logits = model(torch.tensor([[0, 0, 0], [3, 1, 4]]), torch.tensor([[1, 2], [1, 2]]))
    logits.sum().backward()
    assert torch.isfinite(logits).all()
    assert all(torch.isfinite(weight.grad).all() for weight in model.parameters())


# --- blocks: against PyTorch's own ------------------------------------------------------------


@ODD_SHAPES
def test_self_and_cross_attention_are_pytorchs(B, T, S, width, heads):
    ours = shaken(MultiHeadAttention(width, heads))
    twin, x, source = torch_twin(ours), normal(B, T, width), normal(B, S, width, seed=1)
    assert isinstance(twin, nn.MultiheadAttention)
    for keys in (x, source):
        out, weights = ours(x, None if keys is x else keys)
        expected, expected_weights = twin(x, keys, keys, average_attn_weights=False)
        same(out, expected)
        same(weights, expected_weights)
        assert weights.shape == (B, heads, T, keys.shape[1])


@pytest.mark.parametrize("form", ["boolean", "added"])
def test_masked_attention_is_pytorchs(form):
    ours, x, lengths = shaken(MultiHeadAttention(6, 3)), normal(3, 5, 6), torch.tensor([5, 1, 3])
    mask = causal_mask(5) & padding_mask(lengths, 5)
    padded = torch.arange(5) >= lengths[:, None]
    out, weights = ours(x, mask=mask if form == "boolean" else additive(mask))
    expected, expected_weights = torch_twin(ours)(
        x,
        x,
        x,
        key_padding_mask=padded,
        attn_mask=~causal_mask(5),  # PyTorch's module says True where a query may not look
        average_attn_weights=False,
    )
    same(out, expected)
    same(weights, expected_weights)


@EITHER_NORM
@ODD_SHAPES
def test_an_encoder_block_is_pytorchs(B, T, S, width, heads, norm_first):
    ours, x = shaken(EncoderBlock(width, heads, 2 * width + 1, norm_first)), normal(B, T, width)
    twin = torch_twin(ours)
    assert isinstance(twin, nn.TransformerEncoderLayer) and twin.norm_first == norm_first
    same(ours(x), twin(x))
    lengths = torch.arange(B) % T + 1
    real = padding_mask(lengths, T)
    expected = twin(x, src_key_padding_mask=~real[:, 0, 0])
    same(ours(x, real)[real[:, 0, 0]], expected[real[:, 0, 0]])


@EITHER_NORM
@ODD_SHAPES
def test_a_decoder_block_is_pytorchs(B, T, S, width, heads, norm_first):
    ours = shaken(DecoderBlock(width, heads, 2 * width + 1, norm_first))
    twin, x, source = torch_twin(ours), normal(B, T, width), normal(B, S, width, seed=1)
    assert isinstance(twin, nn.TransformerDecoderLayer) and twin.norm_first == norm_first
    ahead = nn.Transformer.generate_square_subsequent_mask(T)
    same(ours(x, source), twin(x, source, tgt_mask=ahead))
    real = padding_mask(torch.arange(B) % S + 1, S)
    expected = twin(x, source, tgt_mask=ahead, memory_key_padding_mask=~real[:, 0, 0])
    same(ours(x, source, real), expected)


def test_blocks_are_pre_norm_unless_asked_otherwise():
    model = EncoderDecoder(5, 4, 2, 8, 2)
    blocks = [EncoderBlock(4, 2, 8), DecoderBlock(4, 2, 8), *model.encoder, *model.decoder]
    assert all(torch_twin(block).norm_first for block in blocks)


def pytorchs_transformer(model, twin, source, target):
    """The logits, with the position's vector by hand and PyTorch's modules for the rest."""

    def embedded(tokens):
        positions = positions_by_hand(tokens.shape[1], model.embedding.embedding_dim)
        return F.embedding(tokens, model.embedding.weight) + positions.float()

    padding = source == 0
    states = twin(
        embedded(source),
        embedded(target),
        tgt_mask=nn.Transformer.generate_square_subsequent_mask(target.shape[1]),
        src_key_padding_mask=padding,
        memory_key_padding_mask=padding,
    )
    return F.linear(states, model.lm_head.weight, model.lm_head.bias)


@pytest.mark.parametrize(
    ("vocabulary", "width", "heads", "inner", "layers"),
    [(3, 2, 1, 1, 1), (17, 6, 3, 11, 2), (50, 16, 4, 24, 3)],
)
def test_the_encoder_decoder_is_pytorchs_transformer(vocabulary, width, heads, inner, layers):
    model = shaken(EncoderDecoder(vocabulary, width, heads, inner, layers))
    twin = torch_twin(model)
    assert isinstance(twin, nn.Transformer)
    torch.manual_seed(2)
    for B, S, T in [(1, 1, 1), (3, 7, 4), (2, 2, 9)]:
        source, target = (torch.randint(1, vocabulary, (B, n)) for n in (S, T))
        source[:, 1:][torch.arange(1, S) >= torch.arange(B)[:, None] + 1] = 0
        same(model(source, target), pytorchs_transformer(model, twin, source, target))
        full = torch.ones_like(source)
        same(model(full, target), pytorchs_transformer(model, twin, full, target))


def test_the_whole_transformer_keeps_its_dtype():
    model = shaken(EncoderDecoder(11, 8, 2, 12, 2))
    tokens = torch.tensor([[1, 2, 3, 0]]), torch.tensor([[1, 4]])
    exact = model(*tokens)
    assert model.double()(*tokens).dtype == torch.float64
    same(model(*tokens).float(), exact)
    assert model.bfloat16()(*tokens).dtype == torch.bfloat16


def test_a_bias_of_the_keys_changes_nothing():
    ours, x = MultiHeadAttention(6, 2), normal(2, 5, 6)
    before = ours(x)[0]
    nn.init.normal_(ours.k_proj.bias)
    same(ours(x)[0], before, 1e-6)


TWINNED = {
    "MultiHeadAttention": lambda: MultiHeadAttention(4, 2),
    "EncoderBlock": lambda: EncoderBlock(4, 2, 6),
    "DecoderBlock": lambda: DecoderBlock(4, 2, 6, norm_first=False),
    "EncoderDecoder": lambda: EncoderDecoder(9, 4, 2, 6, 2),
}


@pytest.mark.parametrize("kind", TWINNED)
def test_a_twin_has_copies_of_all_weights_and_follows_no_later_change(kind):
    ours = shaken(TWINNED[kind]())
    x, source, tokens = normal(2, 3, 4), normal(2, 5, 4, seed=1), torch.tensor([[1, 7, 3]])
    ahead = nn.Transformer.generate_square_subsequent_mask(3)
    compute = {
        "MultiHeadAttention": lambda m: (m(x, source) if m is ours else m(x, source, source))[0],
        "EncoderBlock": lambda m: m(x),
        "DecoderBlock": lambda m: m(x, source) if m is ours else m(x, source, tgt_mask=ahead),
        "EncoderDecoder": lambda m: (
            m(tokens, tokens) if m is ours else pytorchs_transformer(ours, m, tokens, tokens)
        ),
    }[kind]
    outside = ("embedding", "lm_head")  # nn.Transformer has neither
    no_effect = "k_proj.bias"
    for name, weight in ours.named_parameters():
        if name.startswith(outside) or name.endswith(no_effect):
            continue
        twin = torch_twin(ours)
        before = compute(twin)
        same(compute(ours), before)
        with torch.no_grad():
            weight.add_(0.5 * normal(*weight.shape, seed=5))
        assert torch.equal(compute(twin), before), name
        assert (compute(ours) - before).abs().max() > 1e-4, name
        same(compute(ours), compute(torch_twin(ours)))


@pytest.mark.parametrize("kind", TWINNED)
def test_a_twin_keeps_dtype_and_every_weight_and_does_not_train(kind):
    ours = TWINNED[kind]().double()
    twin = torch_twin(ours)
    assert {weight.dtype for weight in twin.parameters()} == {torch.float64}
    assert not any(module.training for module in twin.modules())
    outside = ("embedding", "lm_head")
    counted = [w.numel() for name, w in ours.named_parameters() if not name.startswith(outside)]
    assert sum(weight.numel() for weight in twin.parameters()) == sum(counted)


def test_a_notebooks_class_of_the_same_name_has_a_twin_too():
    class_of_its_own = type("MultiHeadAttention", (MultiHeadAttention,), {})
    ours, x = class_of_its_own(4, 2), normal(1, 3, 4)
    same(ours(x)[0], torch_twin(ours)(x, x, x)[0])


@pytest.mark.parametrize("other", [nn.Linear(2, 2), FeedForward(2, 3), Residual(2)])
def test_another_module_has_no_twin(other):
    with pytest.raises(TypeError, match=rf"no twin of {type(other).__name__};.*EncoderDecoder"):
        torch_twin(other)


# --- layer norm, feed-forward network, residual, positions ------------------------------------


@settings(max_examples=50, deadline=None)
@given(
    shape=st.lists(st.integers(1, 5), min_size=1, max_size=4),
    scale=st.sampled_from([1e-3, 1.0, 100.0]),
    eps=st.sampled_from([1e-5, 1e-2]),
)
def test_layer_norm_is_pytorchs(shape, scale, eps):
    x, weight, bias = scale * normal(*shape), normal(shape[-1], seed=1), normal(shape[-1], seed=2)
    same(layer_norm(x, weight, bias, eps), F.layer_norm(x, shape[-1:], weight, bias, eps))
    x, weight, bias = x.double() + 1e3, weight.double(), bias.double()
    same(layer_norm(x, weight, bias), F.layer_norm(x, shape[-1:], weight, bias), 1e-9)


def test_a_constant_vector_has_nothing_but_the_bias_left():
    x, bias = torch.full((2, 4), 7.0), normal(4)
    assert torch.equal(layer_norm(x, torch.ones(4), bias), bias.expand(2, 4))


def test_the_feed_forward_network_is_its_formula_at_every_position():
    ours, x = FeedForward(3, 5).double(), normal(2, 4, 3, dtype=torch.float64)
    W1, b1, W2, b2 = (w.detach().numpy() for w in ours.parameters())
    out = ours(x)
    for b, t in np.ndindex(2, 4):
        hidden = [max(0.0, sum(W1[j] * x[b, t].numpy()) + b1[j]) for j in range(5)]
        by_hand = [sum(W2[c] * hidden) + b2[c] for c in range(3)]
        np.testing.assert_allclose(out[b, t].detach().numpy(), by_hand, rtol=1e-12)


def test_the_residual_stream_is_untouched_before_the_norm_and_normal_after_it():
    x = 5 + 3 * normal(2, 4, 8)
    seen = []

    def doubled(h):
        seen.append(h)
        return 2 * h

    pre = Residual(8)(x, doubled)
    same(seen[0], F.layer_norm(x, (8,)))
    same(pre, x + 2 * F.layer_norm(x, (8,)))
    post = Residual(8, norm_first=False)(x, doubled)
    assert seen[1] is x
    same(post, F.layer_norm(3 * x, (8,)))


def positions_by_hand(length, width, base=10_000.0):
    """PE(pos, 2i) = sin(pos / base^(2i / width)), PE(pos, 2i + 1) = cos(the same)."""
    table = torch.empty(length, width, dtype=torch.float64)
    for pos, i in np.ndindex(length, width // 2):
        angle = pos / base ** (2 * i / width)
        table[pos, 2 * i], table[pos, 2 * i + 1] = math.sin(angle), math.cos(angle)
    return table


@pytest.mark.parametrize(
    ("length", "width", "base"),
    [(1, 2, 1e4), (0, 4, 1e4), (50, 6, 1e4), (33, 64, 1e4), (9, 10, 100.0), (20_000, 2, 1e4)],
)
def test_positions_are_the_papers_sines_and_cosines(length, width, base):
    ours = sinusoidal_positions(length, width, base)
    assert ours.dtype == torch.float32 and ours.shape == (length, width)
    same(ours.double(), positions_by_hand(length, width, base), 1e-7)
    if base == 1e4:
        assert torch.equal(ours, sinusoidal_positions(length, width))


def test_two_positions_have_a_dot_product_that_only_their_distance_decides():
    positions = sinusoidal_positions(40, 16).double()
    products = positions @ positions.T
    for distance in range(40):
        along = products.diagonal(distance)
        same(along, along[:1].expand(len(along)), 1e-5)
    same(products[0, 0], torch.tensor(8.0, dtype=torch.float64), 1e-6)
    assert (products[0, 1:] < products[0, 0]).all()


# --- errors name the value --------------------------------------------------------------------


@pytest.mark.parametrize(
    ("q", "k"), [((2, 3, 4), (2, 3, 5)), ((4,), (3, 4)), ((3, 4), (4,)), ((3, 0), (5, 0))]
)
def test_queries_and_keys_of_another_width_are_refused(q, k):
    message = re.escape(f"q has shape {q}, k {k}; expected (..., T, D) and (..., S, D)")
    with pytest.raises(ValueError, match=message):
        attention_weights(torch.ones(q), torch.ones(k))


def test_queries_and_keys_of_another_batch_are_refused():
    message = r"q has shape \(2, 3, 4\), k \(5, 3, 4\); the dimensions before"
    with pytest.raises(ValueError, match=message):
        attention_weights(torch.ones(2, 3, 4), torch.ones(5, 3, 4))


@pytest.mark.parametrize(
    ("k", "v"), [((2, 5, 4), (2, 6, 4)), ((5, 4), (5,)), ((5, 4), (4, 5)), ((5,), (5, 4))]
)
def test_a_value_for_each_key_is_wanted(k, v):
    with pytest.raises(ValueError, match=re.escape(f"k has shape {k}, v {v}; each key needs one")):
        scaled_dot_product_attention(torch.ones(3, 4), torch.ones(k), torch.ones(v))


@pytest.mark.parametrize(
    ("given_dtype", "dtype"),
    [
        (torch.int64, torch.float32),
        (torch.uint8, torch.float32),
        (torch.float64, torch.float32),
        (torch.float32, torch.float64),
        (torch.float32, torch.bfloat16),
    ],
)
def test_a_mask_of_another_dtype_is_refused(given_dtype, dtype):
    q, mask = torch.ones(2, 3, dtype=dtype), torch.ones(2, 2, dtype=given_dtype)
    message = rf"mask has dtype {given_dtype}; expected torch\.bool .* or {dtype} "
    for call in (attention_weights, lambda q, k, m: scaled_dot_product_attention(q, k, k, m)):
        with pytest.raises(TypeError, match=message):
            call(q, q, mask)


@pytest.mark.parametrize("shape", [(3, 4), (5, 3), (4,), (2, 3), (3, 1, 1, 1), (7, 2, 3, 5)])
@pytest.mark.parametrize("dtype", [torch.bool, torch.float32])
def test_a_mask_that_does_not_broadcast_to_the_scores_is_refused(shape, dtype):
    q, k = torch.ones(2, 3, 4), torch.ones(2, 5, 4)
    message = re.escape(f"mask has shape {shape}; it must broadcast to (2, 3, 5)")
    with pytest.raises(ValueError, match=message):
        attention_weights(q, k, torch.ones(shape, dtype=dtype))


def test_negative_counts_are_refused():
    with pytest.raises(ValueError, match="length is -1"):
        causal_mask(-1)
    with pytest.raises(ValueError, match="past is -2"):
        causal_mask(3, past=-2)


@pytest.mark.parametrize(("width", "heads"), [(6, 4), (4, 8), (4, 0), (4, -2), (0, 2), (-4, 2)])
def test_heads_that_do_not_divide_the_width_are_refused(width, heads):
    message = f"{heads} heads do not divide a width of {width} "
    builders = (
        lambda: MultiHeadAttention(width, heads),
        lambda: EncoderBlock(width, heads, 8),
        lambda: DecoderBlock(width, heads, 8),
    )
    for build in builders:
        with pytest.raises(ValueError, match=message):
            build()


@pytest.mark.parametrize("width", [1, 7, 0, -2])
def test_positions_of_an_odd_width_are_refused(width):
    with pytest.raises(ValueError, match=f"width is {width}; .* must be even"):
        sinusoidal_positions(4, width)


# --- attention inside a Hugging Face model ----------------------------------------------------

LAYERS, HEADS, GROUPS = 2, 6, 2
TOKENS = torch.tensor([[5, 80, 3, 41, 7, 19], [64, 2, 9, 31, 90, 11]])


@pytest.fixture
def tiny():
    """A random GQA model in FP32."""
    return tiny_llama(
        num_hidden_layers=LAYERS,
        num_attention_heads=HEADS,
        num_key_value_heads=GROUPS,
        initializer_range=0.3,  # weights that are far from uniform
    )


# --- what the lessons show as solutions, and what the package holds -----------------------------


@pytest.mark.parametrize(("T", "S", "D", "V"), [(5, 7, 9, 11), (1, 1, 1, 1), (3, 8, 64, 2)])
@pytest.mark.parametrize("masked", [False, True])
def test_the_attention_shown_is_the_packages_where_every_query_may_look(T, S, D, V, masked):
    q, k, v = normal(2, 3, T, D, seed=1), normal(2, 3, S, D, seed=2), normal(2, 3, S, V, seed=3)
    mask = normal(T, S, seed=4) > 0 if masked else None
    if masked:
        mask[:, 0] = True
    same(shown.attention(q, k, v, mask), scaled_dot_product_attention(q, k, v, mask))


@pytest.mark.parametrize("length", [1, 2, 9])
def test_the_masks_shown_are_the_packages(length):
    assert torch.equal(shown.causal_mask(length), causal_mask(length))
    lengths = torch.tensor([length, 1, max(1, length - 1)])
    assert torch.equal(shown.padding_mask(lengths, length), padding_mask(lengths, length))
    scores = normal(2, length, length)
    expected = scores.masked_fill(~causal_mask(length), -math.inf).softmax(-1)
    same(shown.causal_weights(scores), expected)
    assert torch.equal(shown.window_mask(length, length, 0), causal_mask(length))


@pytest.mark.parametrize(("B", "T", "heads", "D"), [(1, 1, 1, 1), (2, 5, 3, 7), (3, 2, 8, 4)])
def test_the_heads_shown_are_the_packages(B, T, heads, D):
    x = normal(B, T, heads * D)
    assert torch.equal(shown.split_heads(x, heads), MultiHeadAttention(heads * D, heads)._split(x))


def test_the_cross_attention_shown_is_pytorchs():
    x, source, *weights = (
        normal(2, 3, 6),
        normal(2, 7, 6),
        *(normal(6, 5, seed=n) for n in (1, 2, 3)),
    )
    q, k, v = x @ weights[0], source @ weights[1], source @ weights[2]
    same(shown_02.cross_attention(x, source, *weights), F.scaled_dot_product_attention(q, k, v))


@ODD_SHAPES
def test_the_encoder_block_shown_is_the_packages(B, T, S, width, heads):
    block, x = shaken(EncoderBlock(width, heads, 2 * width)), normal(B, T, width)
    norms = [residual.norm for residual in block.residuals]
    with torch.no_grad():
        shown_block = shown_02.encoder_block(
            x, lambda h: block.attention(h)[0], block.feed_forward, *norms
        )
        same(shown_block, block(x))


@ODD_SHAPES
def test_the_plain_blocks_of_lesson_02_are_the_packages(B, T, S, width, heads):
    built = {"nn": nn, "math": math, "torch": torch, "causal_mask": causal_mask}
    built |= {"encoder_block": shown_02.encoder_block}
    for name in ("weigh", "MultiHeadAttention", "FeedForward", "EncoderBlock", "DecoderBlock"):
        exec(definitions("02_the_transformer")[name], built)
    x, source = normal(B, T, width), normal(B, S, width, seed=1)
    for theirs, arguments in (
        (EncoderBlock, (x, causal_mask(T))),
        (DecoderBlock, (x, source, padding_mask(torch.full((B,), S), S))),
    ):
        theirs = shaken(theirs(width, heads, 2 * width))
        plain = built[type(theirs).__name__](width, heads, 2 * width)
        named = {
            re.sub(r"residuals\.(\d)\.norm", r"norms.\1", n): w
            for n, w in theirs.state_dict().items()
        }
        plain.load_state_dict(named)
        with torch.no_grad():
            same(plain(*arguments), theirs(*arguments))
            if isinstance(theirs, EncoderBlock):
                same(torch_twin(plain)(x), torch_twin(theirs)(x))


@pytest.mark.parametrize(("length", "prefix"), [(1, 0), (1, 1), (7, 3), (5, 5)])
def test_the_prefix_mask_shown_joins_the_masks_of_an_encoder_and_a_decoder(length, prefix):
    mask = shown_02.prefix_mask(length, prefix)
    assert mask[:prefix, :prefix].all() and not mask[:prefix, prefix:].any()
    assert mask[prefix:, :prefix].all()
    assert torch.equal(mask[prefix:, prefix:], causal_mask(length - prefix))


def test_inputs_and_targets_are_one_apart():
    iso = dates.batch(ALL_DAYS[:3], random.Random(0))[1]
    inputs, targets = shown_02.shift(iso)
    assert (inputs[:, 0] == dates.START).all() and (targets[:, -1] == dates.END).all()
    assert torch.equal(inputs[:, 1:], targets[:, :-1])


def test_the_challenge_has_a_leak_that_hides_and_an_honest_decoder_that_is_accused():
    target, wrong = mystery.targets(), {}
    for letter, (decode, sees_future) in mystery.decoders().items():
        accused = shown_02.influence(decode, target).triu(1).any().item()
        if accused != sees_future:
            wrong[letter] = accused
    assert wrong == {"C": False, "E": True}


def test_a_careful_learner_can_tell_all_six_decoders_apart():
    for decode, sees_future in (found for found in mystery.decoders().values()):
        assert careful_influence(decode, mystery.targets()).triu(1).any() == sees_future


def careful_influence(decode, target, repeats=400):
    """Two kinds of change, and means over many runs in place of one."""

    def mean(tokens):
        runs = torch.stack([decode(tokens) for _ in range(repeats)])
        return runs.mean(0), runs.std(0) / repeats**0.5

    before, spread = mean(target)
    moved = []
    for s in range(target.shape[1]):
        moves = torch.zeros(target.shape[1], dtype=torch.bool)
        for other in ((target[:, s] + 1) % before.shape[-1], 0):
            changed = target.clone()
            changed[:, s] = other
            after, noise = mean(changed)
            far = (after - before).abs() > 6 * (spread + noise) + 1e-6
            moves |= far.any(dim=2).any(dim=0)
        moved.append(moves)
    return torch.stack(moved, dim=1)


def test_careful_influence_passes_the_exercise():
    assert judge("02.influence", careful_influence).status == "correct"


class Watched:
    """Our attention, and what it was called with."""

    def __init__(self):
        self.calls = []

    def __call__(self, q, k, v, mask):
        self.calls.append((q, k, v, mask))
        return scaled_dot_product_attention(q, k, v, mask)


@torch.no_grad()
def logits(model, tokens, **options):
    return model(tokens, **options).logits


def test_our_attention_gives_the_models_own_logits(tiny):
    for tokens in (TOKENS[:1], TOKENS, TOKENS[:, :1]):
        expected, watched = logits(tiny, tokens), Watched()
        with attend_with(tiny, watched):
            same(logits(tiny, tokens), expected)
        assert torch.equal(logits(tiny, tokens), expected)
        B, T = tokens.shape
        assert len(watched.calls) == LAYERS
        for q, k, v, mask in watched.calls:
            assert q.shape == k.shape == v.shape == (B, HEADS, T, 8)
            assert mask.dtype == torch.bool
            assert torch.equal(mask.expand(B, HEADS, T, T), causal_mask(T).expand(B, HEADS, T, T))
            for shared in (k, v):  # each group of three query heads has the same keys
                heads = shared.unflatten(1, (GROUPS, -1))
                assert torch.equal(heads, heads[:, :, :1].expand_as(heads))
                assert not torch.equal(heads[:, 0], heads[:, 1])


@pytest.mark.parametrize("side", ["left", "right"])
def test_our_attention_gives_the_models_own_logits_of_padded_texts(tiny, side):
    real = torch.ones(2, 6, dtype=torch.long)
    real[1, :2] = 0
    real = real if side == "left" else real.flip(1)
    tokens = TOKENS * real
    expected, watched = logits(tiny, tokens, attention_mask=real), Watched()
    with attend_with(tiny, watched):
        ours = logits(tiny, tokens, attention_mask=real)
    same(ours[real.bool()], expected[real.bool()])
    alone = logits(tiny, tokens[1:, real[1].bool()])
    same(ours[1, real[1].bool()], alone[0])
    for *_, mask in watched.calls:
        may_look = causal_mask(6) & real[:, None, None].bool()
        may_look = may_look.expand(2, HEADS, 6, 6)
        at_text = real[:, None, :, None].bool().expand_as(may_look)
        assert mask.dtype == torch.bool
        assert torch.equal(mask.expand_as(may_look)[at_text], may_look[at_text])


@pytest.mark.parametrize("cache", ["dynamic", "static"])
def test_our_attention_gives_the_models_own_logits_with_a_cache(tiny, cache):
    whole, watched = logits(tiny, TOKENS), Watched()
    made = {
        "dynamic": lambda: DynamicCache(config=tiny.config),
        "static": lambda: StaticCache(config=tiny.config, max_cache_len=9),
    }[cache]()
    with attend_with(tiny, watched):
        steps = [logits(tiny, cut, past_key_values=made) for cut in TOKENS.split([2, 1, 3], 1)]
    same(torch.cat(steps, dim=1), whole)
    assert [call[0].shape[-2] for call in watched.calls] == [2] * LAYERS + [1] * LAYERS + [
        3
    ] * LAYERS


def test_our_attention_generates_the_models_own_text(tiny):
    real = torch.tensor([[1] * 6, [0, 0, 1, 1, 1, 1]])
    options = {"max_new_tokens": 6, "do_sample": False, "eos_token_id": None, "pad_token_id": 0}
    expected = tiny.generate(TOKENS, attention_mask=real, **options)
    with attend_with(tiny, scaled_dot_product_attention):
        assert torch.equal(tiny.generate(TOKENS, attention_mask=real, **options), expected)


def test_every_layer_computes_with_the_attention_it_is_given(tiny):
    with attend_with(tiny, lambda q, k, v, mask: torch.zeros_like(q)):
        without = logits(tiny, TOKENS)
    for layer in tiny.model.layers:
        nn.init.zeros_(layer.self_attn.o_proj.weight)
    same(without, logits(tiny, TOKENS))


@pytest.mark.parametrize("own", ["sdpa", "eager"])
def test_the_model_has_its_own_attention_back_even_after_an_error(tiny, own):
    tiny.set_attn_implementation(own)
    expected = logits(tiny, TOKENS)
    with attend_with(tiny, scaled_dot_product_attention):
        assert tiny.config._attn_implementation not in ("sdpa", "eager")
    assert tiny.config._attn_implementation == own

    def fails(q, k, v, mask):
        raise ArithmeticError("no")

    with pytest.raises(ArithmeticError), attend_with(tiny, fails):
        logits(tiny, TOKENS)
    assert tiny.config._attn_implementation == own
    assert torch.equal(logits(tiny, TOKENS), expected)


def test_one_attention_after_another_is_used(tiny):
    expected = logits(tiny, TOKENS)
    with attend_with(tiny, lambda q, k, v, mask: v):
        assert (logits(tiny, TOKENS) - expected).abs().max() > 1e-2
    with attend_with(tiny, scaled_dot_product_attention):
        same(logits(tiny, TOKENS), expected)


def test_the_outer_attention_is_back_after_an_inner_one(tiny):
    expected = logits(tiny, TOKENS)
    with attend_with(tiny, scaled_dot_product_attention):
        with attend_with(tiny, lambda q, k, v, mask: v):
            pass
        same(logits(tiny, TOKENS), expected)


@pytest.mark.slow  # needs the package index, once
def test_our_attention_gives_a_trained_models_own_logits():
    model = load_model("smollm2-135m", "fp32", "cpu")
    tokens = torch.arange(40, 2040, 80)[None]
    expected = logits(model, tokens)
    with attend_with(model, scaled_dot_product_attention):
        same(logits(model, tokens), expected, 1e-3)  # logits of 20: thirty layers of rounding
    maps = attention_maps(model, tokens)
    assert maps.shape == (30, 9, 25, 25)
    same(maps.sum(-1), torch.ones(30, 9, 25))


def test_attention_maps_are_the_weights_of_the_past_in_every_layer_and_head(tiny):
    before = logits(tiny, TOKENS)
    maps, seen = attention_maps(tiny, TOKENS[:1]), []
    assert maps.shape == (LAYERS, HEADS, 6, 6) and maps.dtype == torch.float32
    same(maps.sum(-1), torch.ones(LAYERS, HEADS, 6), 1e-6)
    assert (maps.triu(1) == 0).all() and (maps.tril() > 0).sum() == LAYERS * HEADS * 21
    assert tiny.config._attn_implementation == "sdpa"
    assert torch.equal(logits(tiny, TOKENS), before)

    def watched(q, k, v, mask):
        identity = torch.eye(6).expand(1, HEADS, 6, 6).contiguous()
        seen.append(F.scaled_dot_product_attention(q, k, identity, mask))
        return F.scaled_dot_product_attention(q, k, v, mask)

    with attend_with(tiny, watched):
        logits(tiny, TOKENS[:1])
    same(maps, torch.cat(seen))


def test_queries_and_keys_make_the_maps_of_their_layer(tiny):
    maps = attention_maps(tiny, TOKENS[:1])
    for layer in range(LAYERS):
        q, k = queries_and_keys(tiny, TOKENS[:1], layer)
        assert q.shape == k.shape == (HEADS, 6, 8)
        same(attention_weights(q, k, causal_mask(6)), maps[layer])


def test_attention_maps_of_a_16_bit_model_are_fp32(tiny):
    exact = attention_maps(tiny, TOKENS[:1])
    maps = attention_maps(tiny.bfloat16(), TOKENS[:1])
    assert maps.dtype == torch.float32 and not maps.requires_grad
    same(maps, exact, 0.1)


def test_attention_maps_give_the_model_its_attention_back_after_an_error(tiny):
    with pytest.raises(IndexError):
        attention_maps(tiny, torch.tensor([[1, 2, 97]]))
    assert tiny.config._attn_implementation == "sdpa"
    with attend_with(tiny, scaled_dot_product_attention):
        inside = tiny.config._attn_implementation
        attention_maps(tiny, TOKENS[:1])
        assert tiny.config._attn_implementation == inside


@pytest.mark.parametrize("shape", [(6,), (2, 6), (0, 6), (1, 1, 6)])
def test_attention_maps_are_of_one_text(tiny, shape):
    with pytest.raises(
        ValueError, match=re.escape(f"tokens have shape {shape}; expected one text")
    ):
        attention_maps(tiny, torch.ones(shape, dtype=torch.long))


HAND_MADE = torch.tensor(
    [[1.0, 0, 0, 0], [0.8, 0.2, 0, 0], [0.5, 0.4, 0.1, 0], [0.2, 0.1, 0.6, 0.1]]
)


def test_the_weight_on_the_first_token_is_the_mean_of_the_later_queries():
    two_heads = torch.stack([HAND_MADE, torch.eye(4)])
    same(weight_on_first(HAND_MADE), torch.tensor((0.8 + 0.5 + 0.2) / 3), 1e-6)
    same(weight_on_first(two_heads[None]), torch.tensor([[0.5, 0.0]]), 1e-6)


def test_the_weight_on_the_previous_token_leaves_out_where_it_is_the_first():
    always = torch.eye(4).roll(1, dims=1).T
    same(weight_on_previous(HAND_MADE), torch.tensor((0.4 + 0.6) / 2), 1e-6)
    same(weight_on_previous(torch.stack([HAND_MADE, always])), torch.tensor([0.5, 1.0]), 1e-6)


@pytest.mark.parametrize(
    ("plain", "start"),
    [([3, 3, 1, 1], 8), ([1, 3, 3, 1], 16), ([1, 1, 1, 1], 2), ([3, 3, 3, 3], None)],
)
def test_derivatives_are_smaller_without_the_root_from_the_last_crossing_on(plain, start):
    slope = {"q·k": plain, "q·k / √D": [2, 2, 2, 2]}
    spreads = {name: [Spread(x, x, x, 1) for x in values] for name, values in slope.items()}
    assert measured_01.smaller_without_root([2, 4, 8, 16], spreads) == start


def test_the_size_of_derivatives_is_that_of_autograds():
    scores = normal(5, 7)
    sizes = [torch.autograd.functional.jacobian(lambda x: x.softmax(-1), s).norm() for s in scores]
    same(measured_01.size_of_derivatives(scores.softmax(-1)), torch.stack(sizes))


@pytest.mark.parametrize("length", [0, 1, 2])
@pytest.mark.parametrize("measure", [weight_on_first, weight_on_previous])
def test_a_text_of_fewer_than_three_tokens_shows_no_pattern(measure, length):
    measure(torch.eye(3))
    with pytest.raises(ValueError, match=f"a text of {length} tokens shows no pattern"):
        measure(torch.ones(2, length, length))


# --- dates ------------------------------------------------------------------------------------

ORDINALS = """first second third fourth fifth sixth seventh eighth ninth tenth eleventh twelfth
thirteenth fourteenth fifteenth sixteenth seventeenth eighteenth nineteenth twentieth""".split()
ORDINALS += [f"twenty {ones}" for ones in ORDINALS[:9]] + ["thirtieth", "thirty first"]
MONTHS = """January February March April May June July August September October November
December""".lower().split()
YEARS = {
    1900: "nineteen hundred",
    1901: "nineteen oh one",
    1905: "nineteen oh five",
    1910: "nineteen ten",
    1911: "nineteen eleven",
    1912: "nineteen twelve",
    1913: "nineteen thirteen",
    1920: "nineteen twenty",
    1984: "nineteen eighty four",
    1999: "nineteen ninety nine",
    2000: "two thousand",
    2001: "two thousand and one",
    2009: "two thousand and nine",
    2010: "twenty ten",
    2011: "twenty eleven",
    2020: "twenty twenty",
    2042: "twenty forty two",
    2055: "twenty fifty five",
    2099: "twenty ninety nine",
}
ALL_DAYS = [date(1900, 1, 1) + timedelta(n) for n in range(73_049)]


def test_ordinals_are_english():
    assert [dates.ordinal(n) for n in range(1, 32)] == ORDINALS


@pytest.mark.parametrize(
    ("number", "words"),
    [
        (0, "zero"),
        (7, "seven"),
        (10, "ten"),
        (11, "eleven"),
        (12, "twelve"),
        (13, "thirteen"),
        (14, "fourteen"),
        (15, "fifteen"),
        (18, "eighteen"),
        (20, "twenty"),
        (21, "twenty one"),
        (30, "thirty"),
        (40, "forty"),
        (42, "forty two"),
        (88, "eighty eight"),
        (99, "ninety nine"),
    ],
)
def test_cardinals_are_english(number, words):
    assert dates.cardinal(number) == words


@pytest.mark.parametrize("year", YEARS)
def test_years_are_read_as_english_reads_them(year):
    assert dates.year_in_words(year) == YEARS[year]


@pytest.mark.parametrize(
    ("wording", "text"),
    [
        (0, "the twentieth of july nineteen sixty nine"),
        (1, "july the twentieth, nineteen sixty nine"),
        (2, "sunday, july twentieth nineteen sixty nine"),
        (3, "nineteen sixty nine, july twentieth"),
    ],
)
def test_the_moon_landing_in_every_wording(wording, text):
    words = dates.in_words(date(1969, 7, 20), wording)
    assert words.text == text
    cut = {part: text[start:end] for part, (start, end) in words.parts.items()}
    assert cut == {"day": "twentieth", "month": "july", "year": "nineteen sixty nine"}


def test_the_weekday_is_the_calendars():
    found = {dates.in_words(date(2000, 1, n), 2).text.split(",")[0] for n in range(1, 8)}
    assert len(found) == 7
    assert dates.in_words(date(2000, 1, 1), 2).text.startswith("saturday, ")
    assert dates.in_words(date(1900, 1, 1), 2).text.startswith("monday, ")
    assert dates.in_words(date(2099, 12, 31), 2).text.startswith("thursday, ")


@pytest.mark.parametrize("wording", range(dates.WORDINGS))
def test_two_dates_never_share_their_words_and_parts_cut_out_the_date(wording):
    texts, years = set(), {}
    for day in ALL_DAYS:
        words = dates.in_words(day, wording)
        texts.add(words.text)
        cut = {part: words.text[start:end] for part, (start, end) in words.parts.items()}
        assert cut.keys() == {"day", "month", "year"}
        assert cut["day"] == ORDINALS[day.day - 1] and cut["month"] == MONTHS[day.month - 1]
        assert years.setdefault(day.year, cut["year"]) == cut["year"]
    assert len(texts) == len(ALL_DAYS)
    assert len(set(years.values())) == 200
    assert set("".join(texts)) <= set(dates.CHARACTERS)
    assert all(years[year] == words for year, words in YEARS.items())


@pytest.mark.parametrize("wording", [-5, 4, 17])
def test_there_is_no_other_wording(wording):
    with pytest.raises(IndexError):
        dates.in_words(date(2000, 1, 1), wording)


@settings(max_examples=50, deadline=None)
@given(st.lists(st.text(dates.CHARACTERS, max_size=12), min_size=1, max_size=5).filter(any))
def test_text_survives_encoding(texts):
    numbers = dates.encode(texts)
    assert numbers.dtype == torch.int64 and numbers.shape == (len(texts), max(map(len, texts)))
    assert [dates.decode(row) for row in numbers] == texts
    for row, text in zip(numbers, texts, strict=True):
        assert (row[: len(text)] > dates.END).all() and (row[len(text) :] == dates.PAD).all()


def test_every_character_has_a_number_of_its_own_below_the_vocabulary():
    numbers = dates.encode([dates.CHARACTERS])[0].tolist()
    assert numbers == list(range(3, dates.VOCABULARY))
    assert {dates.PAD, dates.START, dates.END} == {0, 1, 2} and dates.PAD == 0


@pytest.mark.parametrize("text", ["July", "a.b", "é"])
def test_another_character_is_refused(text):
    with pytest.raises(KeyError):
        dates.encode(["fine", text])


def test_a_thousand_dates_are_held_out_and_training_has_all_others():
    train, held_out = dates.split()
    assert len(held_out) == 1000
    assert not set(train) & set(held_out)
    assert sorted(train + held_out) == ALL_DAYS
    assert len({day.year for day in held_out}) > 150 and len({day.month for day in held_out}) == 12


def test_the_split_is_always_the_same_and_leaves_other_chance_alone():
    random.seed(5)
    first, state = dates.split(), random.getstate()
    assert random.getstate() == state
    random.seed(6)
    assert dates.split() == first
    assert first[0] != sorted(first[0])


def test_a_batch_is_words_and_the_iso_form_between_start_and_end():
    days = ALL_DAYS[::700]
    words, iso = dates.batch(days, random.Random(3))
    assert iso.shape == (len(days), 12) and iso.dtype == words.dtype == torch.int64
    assert (iso[:, 0] == dates.START).all() and (iso[:, -1] == dates.END).all()
    wordings = set()
    for day, source, target in zip(days, words, iso, strict=True):
        assert dates.decode(target) == f"{day.year:04}-{day.month:02}-{day.day:02}"
        texts = [dates.in_words(day, wording).text for wording in range(dates.WORDINGS)]
        wordings.add(texts.index(dates.decode(source)))
    assert wordings == set(range(dates.WORDINGS))
    assert words.shape[1] == max(len(dates.decode(source)) for source in words)


def test_a_batch_depends_on_its_chance_alone():
    days = ALL_DAYS[:40]
    (words, _), (again, _), (other, _) = (dates.batch(days, random.Random(n)) for n in (1, 1, 2))
    assert torch.equal(words, again)
    assert words.shape != other.shape or not torch.equal(words, other)
