"""FlashAttention gives what attention gives: outputs, log-sums, gradients, and each step's state."""

import importlib.util
import inspect
import math
import re

import numpy as np
import pytest
import torch
from helpers import normal, same
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_llama import tiny_config
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from llama_int8 import models
from llama_int8.lessons.n09 import backends, measurements
from llama_int8.lessons.n09 import exercises as lesson
from llama_int8.lessons.n09.figures import state_after
from llama_int8.transformer import attention as taught
from llama_int8.transformer.attention import causal_mask
from llama_int8.transformer.config import LlamaConfig
from llama_int8.transformer.flash import (
    Tile,
    blocks,
    flash_attention,
    flash_attention_1,
    flash_attention_2,
    flash_backward,
    online_softmax,
    online_step,
    standard_attention,
)

INF, NAN = float("inf"), float("nan")
ALL = {"standard": standard_attention, "v1": flash_attention_1, "v2": flash_attention_2}
EVERY = pytest.mark.parametrize("attend", ALL.values(), ids=ALL)
EITHER = pytest.mark.parametrize("attend", [flash_attention_1, flash_attention_2], ids=["v1", "v2"])
CAUSAL = pytest.mark.parametrize("causal", [False, True], ids=["all keys", "causal"])


@st.composite
def problems(draw, dtypes=(torch.float32,), longest=13):
    """q, k, v with grouped heads and lengths of their own, whether causal, and two block sizes."""
    B, kv_heads, group, D = (draw(st.integers(1, n)) for n in (2, 3, 3, 6))
    causal, S = draw(st.booleans()), draw(st.integers(1, longest))
    T = draw(st.integers(1, S if causal else longest))
    dtype, seed = draw(st.sampled_from(dtypes)), draw(st.integers(0, 10**6))
    q = normal(B, kv_heads * group, T, D, seed=seed).to(dtype)
    k, v = (normal(B, kv_heads, S, D, seed=seed + n).to(dtype) for n in (1, 2))
    block_q, block_k = (draw(st.integers(1, longest + 2)) for _ in range(2))
    return q, k, v, causal, block_q, block_k


def call(attend, q, k, v, causal, block_q, block_k, **more):
    sizes = {} if attend is standard_attention else {"block_q": block_q, "block_k": block_k}
    return attend(q, k, v, causal, **sizes, **more)


def visible(q, k, causal):
    T, S = q.shape[2], k.shape[2]
    return causal_mask(T, S - T) if causal else torch.ones(T, S, dtype=torch.bool)


def pytorchs_attention(q, k, v, causal):
    return F.scaled_dot_product_attention(q, k, v, visible(q, k, causal), enable_gqa=True)


def exact_attention(q, k, v, causal):
    """Output and log-sum-exp in float64, head by head, from the definition."""
    group = q.shape[1] // k.shape[1]
    mask, outs, sums = visible(q, k, causal), [], []
    for head in range(q.shape[1]):
        q_h, k_h, v_h = q[:, head].double(), k[:, head // group].double(), v[:, head // group]
        scores = (q_h @ k_h.transpose(1, 2) / math.sqrt(q.shape[-1])).masked_fill(~mask, -INF)
        outs.append(scores.softmax(-1) @ v_h.double())
        sums.append(scores.logsumexp(-1))
    return torch.stack(outs, 1), torch.stack(sums, 1)


# --- online softmax ---------------------------------------------------------------------------

SCORES = st.lists(
    st.one_of(st.floats(-20, 20), st.sampled_from([-1e4, 1e4, -INF, 0.0, 88.0, -104.0, 3e38])),
    min_size=1,
    max_size=12,
)


@settings(max_examples=300, deadline=None)
@given(SCORES, st.integers(1, 14), st.sampled_from([torch.float32, torch.float64]))
def test_a_softmax_read_in_blocks_is_the_softmax(row, block, dtype):
    scores = torch.tensor([row, row[::-1]], dtype=dtype)
    tolerance = 1e-6 if dtype == torch.float32 else 1e-14
    weights, maxima, sums = online_softmax(scores, block)
    expected = scores.double().softmax(-1)
    torch.testing.assert_close(
        weights.double(), expected, rtol=tolerance, atol=tolerance, equal_nan=True
    )
    ends = [min(end, len(row)) for end in range(block, len(row) + block, block)]
    assert maxima.shape == sums.shape == (2, len(ends))
    for n, end in enumerate(ends):
        top = scores[:, :end].amax(-1)
        assert torch.equal(maxima[:, n], top)
        terms = (scores[:, :end] - top[:, None]).double().exp()
        same(sums[:, n].double(), terms.sum(-1).nan_to_num(0.0), 10 * tolerance)


def test_the_running_sum_is_corrected_when_a_larger_score_comes():
    scores = torch.tensor([0.0, 0.0, math.log(4), math.log(2), -INF])
    weights, maxima, sums = online_softmax(scores, 2)
    same(maxima, torch.tensor([0.0, math.log(4), math.log(4)]))
    same(sums, torch.tensor([2.0, 2 / 4 + 1 + 2 / 4, 2.0]))
    same(weights, torch.tensor([1 / 8, 1 / 8, 1 / 2, 1 / 4, 0.0]))


def test_a_step_returns_the_factor_for_what_was_summed_before():
    start, nothing = torch.tensor([[-INF]]), torch.tensor([[0.0]])
    top, total, factor, weights = online_step(torch.tensor([[1.0, 1.0]]), start, nothing)
    assert (top, total, factor) == (1.0, 2.0, 0.0) and weights.tolist() == [[1.0, 1.0]]
    top, total, factor, weights = online_step(torch.tensor([[1 + math.log(2)]]), top, total)
    same(
        torch.cat([top, total, factor, weights]), torch.tensor([[1 + math.log(2)], [2], [0.5], [1]])
    )


def test_blocks_of_minus_infinity_before_the_first_score_change_nothing():
    row = torch.tensor([-INF, -INF, -INF, -2.0, 3.0])
    weights, maxima, sums = online_softmax(row, 1)
    same(weights, row.softmax(-1))
    assert maxima[:3].tolist() == [-INF] * 3 and sums[:3].tolist() == [0.0] * 3


@pytest.mark.parametrize("row", [[-INF], [-INF] * 5, [1.0, INF, 2.0], [NAN, 0.0, 1.0], [0.0, NAN]])
@pytest.mark.parametrize("block", [1, 2, 9])
def test_nan_infinity_and_nothing_give_nan_as_in_pytorch_and_in_their_row_alone(row, block):
    scores = torch.stack([torch.tensor(row), torch.arange(len(row)).float()])
    weights = online_softmax(scores, block)[0]
    assert weights[0].isnan().all() and scores[0].softmax(-1).isnan().all()
    same(weights[1], scores[1].softmax(-1))


@given(st.integers(0, 40), st.integers(1, 45))
def test_blocks_cover_everything_once_in_order(length, size):
    slices = list(blocks(length, size))
    assert [n for s in slices for n in range(s.start, s.stop)] == list(range(length))
    assert all(s.stop - s.start == size for s in slices[:-1])
    assert all(0 < s.stop - s.start <= size for s in slices)


# --- forward ----------------------------------------------------------------------------------


@EVERY
@settings(max_examples=60, deadline=None)
@given(problem=problems())
def test_attention_in_tiles_is_pytorchs(attend, problem):
    out, lse = call(attend, *problem)
    assert out.dtype == lse.dtype == torch.float32
    same(out, pytorchs_attention(*problem[:4]))
    same(lse, exact_attention(*problem[:4])[1].float())


@EVERY
@settings(max_examples=60, deadline=None)
@given(problem=problems(dtypes=[torch.float64]))
def test_attention_in_tiles_in_float64_is_the_definition(attend, problem):
    out, lse = call(attend, *problem)
    expected, sums = exact_attention(*problem[:4])
    same(out, expected, 1e-12)
    same(lse, sums, 1e-12)


@EVERY
@settings(max_examples=60, deadline=None)
@given(problem=problems(dtypes=[torch.bfloat16, torch.float16]))
def test_in_16_bits_only_the_output_is_rounded(attend, problem):
    out, lse = call(attend, *problem)
    expected, sums = exact_attention(*problem[:4])
    assert out.dtype == problem[0].dtype and lse.dtype == torch.float32
    step = torch.finfo(out.dtype).eps
    torch.testing.assert_close(out.double(), expected, rtol=0.51 * step, atol=3e-6)
    same(lse, sums.float())


@EITHER
@settings(max_examples=60, deadline=None)
@given(problem=problems(dtypes=[torch.float64]), other=st.tuples(*[st.integers(1, 16)] * 2))
def test_block_sizes_do_not_change_the_result(attend, problem, other):
    same(attend(*problem), attend(*problem[:4], *other), 1e-12)


@EVERY
@CAUSAL
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_scores_of_ten_thousands_stay_finite_and_exact(attend, causal, dtype):
    # Integers whose products FP32 holds exactly, and sqrt(4): no score is rounded.
    q = (60 * normal(2, 4, 9, 4, seed=1)).round().to(dtype)
    k = (60 * normal(2, 2, 11, 4, seed=2)).round().to(dtype)
    v = normal(2, 2, 11, 4, seed=3).to(dtype)
    expected, sums = exact_attention(q, k, v, causal)
    assert sums.abs().max() > 1e4
    out, lse = call(attend, q, k, v, causal, 4, 3)
    torch.testing.assert_close(out.double(), expected, rtol=torch.finfo(dtype).eps, atol=2e-6)
    same(lse.double(), sums, 1e-6)


@EITHER
@pytest.mark.parametrize("block_k", [1, 2, 4])
def test_scores_that_overflow_to_minus_infinity_weigh_nothing(attend, block_k):
    q = torch.tensor([1e20, 1.0]).view(1, 1, 2, 1)
    v = torch.arange(1.0, 5.0).view(1, 1, 4, 1)
    for keys in ([-1e20, -1e20, 0.0, 0.0], [0.0, -1e20, -1e20, 0.0], [-1e20] * 4):
        k = torch.tensor(keys).view(1, 1, 4, 1)
        tiles = []
        out, lse = attend(q, k, v, block_k=block_k, watch=tiles.append)
        same(out, pytorchs_attention(q, k, v, False))  # 0 where every score is minus infinity
        assert not any(x.isnan().any() for x in (lse, *(tile.output for tile in tiles)))


@EVERY
@CAUSAL
def test_zero_scores_average_the_visible_values(attend, causal):
    k, v = torch.zeros(1, 1, 6, 3), torch.arange(18.0).view(1, 1, 6, 3)
    out, lse = call(attend, torch.zeros(1, 1, 4, 3), k, v, causal, 3, 2)
    counts = [3, 4, 5, 6] if causal else [6] * 4
    same(out[0, 0], torch.stack([v[0, 0, :n].mean(0) for n in counts]))
    same(lse[0, 0], torch.tensor(counts).float().log())


@EVERY
def test_one_query_and_one_key_return_the_value(attend):
    q, k, v = normal(1, 3, 1, 2), normal(1, 1, 1, 2, seed=1), normal(1, 1, 1, 2, seed=2)
    out, lse = attend(q, k, v, causal=True)
    same(out, v.expand(1, 3, 1, 2), 1e-7)
    same(lse, (q * k).sum(-1) / math.sqrt(2))


@EITHER
@pytest.mark.parametrize("new", [1, 3, 8])
def test_a_decode_step_with_a_cache_is_the_end_of_the_whole_pass(attend, new):
    q, k, v = normal(2, 4, 8, 3), normal(2, 2, 8, 3, seed=1), normal(2, 2, 8, 3, seed=2)
    whole, step = attend(q, k, v, True, 3, 2), attend(q[:, :, -new:], k, v, True, 5, 4)
    for ours, theirs in zip(step, whole, strict=True):
        same(ours, theirs[:, :, -new:], 1e-6)
    unaligned = F.scaled_dot_product_attention(
        q[:, :, -new:], k, v, is_causal=True, enable_gqa=True
    )
    assert torch.allclose(step[0], unaligned, atol=1e-5) == (new == 8)


@EITHER
@pytest.mark.parametrize("changed", [1, 4, 6])
def test_a_future_token_cannot_change_a_past_output(attend, changed):
    q, k, v = (normal(1, 2, 7, 3, seed=n) for n in range(3))
    before = attend(q, k, v, True, 3, 2)
    k[:, :, changed:], v[:, :, changed:] = 9.0, -9.0
    after = attend(q, k, v, True, 3, 2)
    for old, new in zip(before, after, strict=True):
        assert torch.equal(old[:, :, :changed], new[:, :, :changed])
        assert not torch.isclose(old[:, :, changed:], new[:, :, changed:]).any()


@EITHER
def test_nan_spoils_the_rows_that_see_it_and_no_others(attend):
    q, k, v = normal(2, 4, 6, 3), normal(2, 2, 6, 3, seed=1), normal(2, 2, 6, 3, seed=2)
    before = attend(q, k, v, True, 2, 4)
    k[0, 1, 3] = NAN
    for old, new in zip(before, attend(q, k, v, True, 2, 4), strict=True):
        assert new[0, 2:, 3:].isnan().all()
        assert torch.equal(new[0, 2:, :3], old[0, 2:, :3])
        assert torch.equal(new[0, :2], old[0, :2]) and torch.equal(new[1], old[1])
    q[1, 0, 2] = NAN
    again = attend(q, k, v, True, 2, 4)[0]
    assert again[1, 0, 2].isnan().all() and not again[1, 0, [0, 1, 3, 4, 5]].isnan().any()


@EVERY
def test_inputs_may_lie_in_any_order_and_stay_as_they_were(attend):
    q, k, v = (normal(2, 7, heads, 4, seed=n).transpose(1, 2) for n, heads in enumerate((4, 2, 2)))
    copies = [x.clone() for x in (q, k, v)]
    same(call(attend, q, k, v, True, 3, 3)[0], pytorchs_attention(*copies, True))
    assert all(map(torch.equal, (q, k, v), copies))


def test_a_query_block_of_version_2_needs_no_other_one():
    q, k, v = (normal(1, 2, 9, 4, seed=n) for n in range(3))
    out, lse = flash_attention_2(q, k, v, True, 3, 2)
    for rows in blocks(9, 3):
        own = flash_attention_2(
            q[:, :, rows], k[:, :, : rows.stop], v[:, :, : rows.stop], True, 3, 2
        )
        assert torch.equal(own[0], out[:, :, rows]) and torch.equal(own[1], lse[:, :, rows])


@EVERY
def test_results_carry_no_gradient_but_those_of_flash_attention_do(attend):
    q, k, v = (normal(1, 1, 3, 2, seed=n).requires_grad_() for n in range(3))
    assert not any(x.requires_grad for x in attend(q, k, v))
    assert flash_attention(q, k, v).requires_grad


@settings(max_examples=30, deadline=None)
@given(problem=problems())
def test_the_door_for_everyone_is_version_2(problem):
    assert torch.equal(flash_attention(*problem), flash_attention_2(*problem)[0])
    assert list(inspect.signature(flash_attention).parameters)[:4] == ["q", "k", "v", "causal"]


def test_it_agrees_with_the_attention_of_notebook_01():
    q, k, v = (normal(2, 3, n, 4, seed=n) for n in (5, 8, 8))
    expected = taught.scaled_dot_product_attention(q, k, v, causal_mask(5, past=3))
    same(flash_attention(q, k, v, causal=True), expected)
    same(flash_attention(q, k, v), taught.scaled_dot_product_attention(q, k, v))


class Largest(TorchDispatchMode):
    """The largest number of elements that any operation returned."""

    elements = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        for x in result if isinstance(result, tuple | list) else [result]:
            if isinstance(x, torch.Tensor):
                self.elements = max(self.elements, x.numel())
        return result


@EITHER
@CAUSAL
def test_no_tensor_ever_holds_all_scores(attend, causal):
    q, k, v = (normal(1, 1, 80, 2, seed=n) for n in range(3))
    with Largest() as flash:
        out, lse = attend(q, k, v, causal, 10, 8)
        flash_backward(out, q, k, v, out, lse, causal, 10, 8)
    with Largest() as standard:
        standard_attention(q, k, v, causal)
    assert flash.elements == 80 * 2 and standard.elements == 80 * 80


# --- backward ---------------------------------------------------------------------------------


def gradients(attend, q, k, v, do):
    leaves = [x.detach().clone().requires_grad_() for x in (q, k, v)]
    return torch.autograd.grad(attend(*leaves), leaves, do)


@settings(max_examples=100, deadline=None)
@given(problem=problems(dtypes=[torch.float32, torch.float64]))
def test_gradients_are_autograds(problem):
    q, k, v, causal, *_ = problem
    do = normal(*q.shape, seed=9, dtype=q.dtype)
    ours = gradients(lambda *x: flash_attention(*x, *problem[3:]), q, k, v, do)
    theirs = gradients(lambda *x: pytorchs_attention(*x, causal), q, k, v, do)
    for our, their in zip(ours, theirs, strict=True):
        same(our, their, 1e-4 if q.dtype == torch.float32 else 1e-11)
    from_1 = flash_backward(do, q, k, v, *flash_attention_1(*problem), *problem[3:])
    for our, their in zip(from_1, theirs, strict=True):
        same(our, their, 1e-4 if q.dtype == torch.float32 else 1e-11)


@CAUSAL
def test_gradients_are_those_of_finite_differences(causal):
    shapes = [(2, 4, 3, 2), (2, 2, 5, 2), (2, 2, 5, 2)]
    inputs = [
        normal(*s, seed=n, dtype=torch.float64).requires_grad_() for n, s in enumerate(shapes)
    ]
    assert torch.autograd.gradcheck(lambda *x: flash_attention(*x, causal, 2, 3), inputs)


@settings(max_examples=40, deadline=None)
@given(problem=problems(dtypes=[torch.bfloat16, torch.float16], longest=8))
def test_gradients_in_16_bits_are_off_by_the_rounding_of_the_inputs_alone(problem):
    q, k, v, causal, *_ = problem
    do = normal(*q.shape, seed=9).to(q.dtype)
    exact = [x.double() for x in (q, k, v)]
    theirs = gradients(lambda *x: pytorchs_attention(*x, causal), *exact, do.double())
    ours = gradients(lambda *x: flash_attention(*x, *problem[3:]), q, k, v, do)
    step = torch.finfo(q.dtype).eps
    # delta = do . o is as wrong as the rounded o; it enters ds = P (dP - delta), and so dq and dk.
    delta = step / 2 * (do.double().abs() * pytorchs_attention(*exact, causal).abs()).sum(-1).max()
    rows = q.shape[2] * q.shape[1]
    slack = delta * rows * max(k.double().abs().max(), q.double().abs().max()) + 1e-4
    for our, their, atol in zip(ours, theirs, (slack, slack, 1e-4), strict=True):
        assert our.dtype == q.dtype
        assert ((our.double() - their).abs() <= 0.51 * step * their.abs() + atol).all()


@CAUSAL
def test_gradients_at_scores_of_ten_thousands_are_finite_and_exact(causal):
    q = (60 * normal(1, 2, 6, 4, seed=1, dtype=torch.float64)).round()
    k = (60 * normal(1, 1, 7, 4, seed=2, dtype=torch.float64)).round()
    v, do = normal(1, 1, 7, 4, seed=3, dtype=torch.float64), torch.ones_like(q)
    ours = gradients(lambda *x: flash_attention(*x, causal, 2, 3), q, k, v, do)
    theirs = gradients(lambda *x: pytorchs_attention(*x, causal), q, k, v, do)
    for our, their in zip(ours, theirs, strict=True):
        same(our, their, 1e-9)


def test_a_sum_of_outputs_has_gradients_for_just_the_inputs_that_want_them():
    q, k, v = normal(1, 2, 4, 3), normal(1, 1, 5, 3, seed=1), normal(1, 1, 5, 3, seed=2)
    theirs = gradients(lambda *x: pytorchs_attention(*x, True), q, k, v, torch.ones_like(q))
    k.requires_grad_()
    flash_attention(q, k, v, causal=True).sum().backward()  # its gradient is an expanded 1
    same(k.grad, theirs[1], 1e-5)
    assert q.grad is None and v.grad is None


def test_second_derivatives_are_refused_not_wrong():
    q, k, v = (normal(1, 1, 3, 2, seed=n).requires_grad_() for n in range(3))
    (first,) = torch.autograd.grad(flash_attention(q, k, v).square().sum(), q, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        first.sum().backward()


# --- watching the tiles -----------------------------------------------------------------------


@EITHER
@settings(max_examples=60, deadline=None)
@given(problem=problems(dtypes=[torch.float64], longest=7))
def test_each_tile_shows_the_softmax_of_the_keys_so_far(attend, problem):
    q, k, v, causal, *_ = problem
    tiles: list[Tile] = []
    out, _ = attend(*problem, watch=tiles.append)
    group = q.shape[1] // k.shape[1]
    scores = q @ k.repeat_interleave(group, 1).transpose(2, 3) / math.sqrt(q.shape[-1])
    scores = scores.masked_fill(~visible(q, k, causal), -INF)
    for n, tile in enumerate(tiles):
        seen = scores[:, :, tile.rows, : tile.columns.stop]
        top = seen.amax(-1, keepdim=True)
        mean = seen.softmax(-1) @ v.repeat_interleave(group, 1)[:, :, : tile.columns.stop]
        same(tile.scores, scores[:, :, tile.rows, tile.columns], 1e-12)
        same(tile.maximum, top, 1e-12)
        same(tile.total, (seen - top).exp().sum(-1, keepdim=True), 1e-12)
        same(tile.output, mean, 1e-12)
        maximum, total, output = state_after(tiles[: n + 1], q.shape[2])
        same(output[:, :, tile.rows], mean, 1e-12)
        same(maximum[:, :, tile.rows], top, 1e-12)
        same(total[:, :, tile.rows], tile.total, 0)
    assert torch.equal(state_after(tiles, q.shape[2])[2], out)


def test_version_1_walks_down_the_queries_and_version_2_along_the_keys():
    q, k, v = (normal(1, 1, 4, 2, seed=n) for n in range(3))
    walks = []
    for attend in (flash_attention_1, flash_attention_2):
        tiles = []
        attend(q, k, v, True, 2, 1, watch=tiles.append)
        walks.append([(tile.rows.start, tile.columns.start) for tile in tiles])
    by_keys = [(0, 0), (2, 0), (0, 1), (2, 1), (2, 2), (2, 3)]
    assert walks == [by_keys, sorted(by_keys)]


def test_queries_that_no_tile_has_reached_hold_nothing():
    tiles = []
    flash_attention_2(
        *(normal(1, 2, 4, 3, seed=n) for n in range(3)), True, 2, 4, watch=tiles.append
    )
    maximum, total, output = state_after(tiles[:1], 4)
    assert maximum.shape == total.shape == (1, 2, 4, 1) and output.shape == (1, 2, 4, 3)
    assert (maximum[:, :, 2:] == -INF).all() and (total[:, :, 2:] == 0).all()
    assert (output[:, :, 2:] == 0).all() and (total[:, :, :2] > 0).all()
    with pytest.raises(ValueError, match=r"watch=tiles\.append"):
        state_after([], 4)


# --- errors -----------------------------------------------------------------------------------

X = torch.zeros(1, 2, 3, 4)
BAD_INPUTS = {
    "three dimensions": ((X[0], X, X), {}, ValueError, r"q has shape \(2, 3, 4\).*\(B, H, T, D\)"),
    "keys in three": ((X, X[0], X[0]), {}, ValueError, r"k \(2, 3, 4\).*expected"),
    "no queries": ((X[:, :, :0], X, X), {}, ValueError, r"\(1, 2, 0, 4\).*none of them 0"),
    "no keys": ((X, X[:, :, :0], X[:, :, :0]), {}, ValueError, "3 queries and 0 keys"),
    "no batch": ((X[:0], X[:0], X[:0]), {}, ValueError, r"\(0, 2, 3, 4\).*none of them 0"),
    "no width": ((X[..., :0],) * 3, {}, ValueError, r"\(1, 2, 3, 0\).*none of them 0"),
    "no heads": ((X, X[:, :0], X[:, :0]), {}, ValueError, "0 key-value heads do not divide 2"),
    "another width": ((X, X[..., :3], X[..., :3]), {}, ValueError, "same B and D"),
    "another batch": (
        (X, X.expand(2, -1, -1, -1), X.expand(2, -1, -1, -1)),
        {},
        ValueError,
        "same B",
    ),
    "a key without value": ((X, X, X[:, :, :2]), {}, ValueError, r"v \(1, 2, 2, 4\)"),
    "heads": (
        (X.expand(2, 2, 3, 4).reshape(1, 4, 3, 4)[:, :3], X, X),
        {},
        ValueError,
        "2 key-value heads do not divide 3 query heads",
    ),
    "fewer query heads": ((X[:, :1], X, X), {}, ValueError, "2 key-value heads do not divide 1"),
    "more queries than keys": (
        (X, X[:, :, :1], X[:, :, :1]),
        {"causal": True},
        ValueError,
        "3 queries and 1 keys.* first 2 would see nothing; pass the last 1 queries, or causal=False",
    ),
    "mixed dtypes": ((X, X.double(), X), {}, TypeError, "k torch.float64.*to"),
    "mixed values": ((X, X, X.half()), {}, TypeError, "v torch.float16"),
    "integers": ((X.long(),) * 3, {}, TypeError, "q is torch.int64"),
    "devices": ((X, X.to("meta"), X), {}, ValueError, "k on meta.*move"),
    "values elsewhere": ((X, X, X.to("meta")), {}, ValueError, "v on meta.*move"),
}
BLOCKS = [("block_q", 0), ("block_k", 0), ("block_q", -2), ("block_k", 1.5), ("block_q", 2.0)]


@pytest.mark.parametrize("case", BAD_INPUTS)
@pytest.mark.parametrize("attend", [*ALL.values(), flash_attention], ids=[*ALL, "trained"])
def test_inputs_that_do_not_fit_are_refused_with_the_way_out(attend, case):
    inputs, options, error, message = BAD_INPUTS[case]
    with pytest.raises(error, match=message):
        attend(*inputs, **options)


@pytest.mark.parametrize(("name", "size"), BLOCKS)
@pytest.mark.parametrize("attend", [flash_attention_1, flash_attention_2, flash_attention])
def test_a_block_holds_a_whole_number_of_rows(attend, name, size):
    with pytest.raises(ValueError, match=rf"{name} is {size}; .* 1 or more"):
        attend(X, X, X, **{name: size})


# --- what lesson 09 shows as solutions ---------------------------------------------------------


@settings(max_examples=60, deadline=None)
@given(problem=problems())
def test_the_learners_tiles_give_what_the_package_gives(problem):
    q, k, v, causal, block, _ = problem
    T, S, group = q.shape[2], k.shape[2], q.shape[1] // k.shape[1]
    last = torch.arange(S - T, S) if causal else torch.full((T,), S - 1)
    keys, values = (x.repeat_interleave(group, 1) for x in (k, v))
    same(lesson.tiled_attention(q, keys, values, block, last), flash_attention(q, k, v, causal))


@settings(max_examples=60, deadline=None)
@given(problem=problems(), workers=st.integers(1, 13))
def test_the_learners_split_keys_give_what_the_package_gives(problem, workers):
    q, k, v, *_ = problem
    k, v = (x.repeat_interleave(q.shape[1] // k.shape[1], 1) for x in (k, v))
    same(lesson.split_attention(q, k, v, workers), flash_attention(q, k, v))


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 9), st.integers(1, 11), st.integers(0, 99))
def test_the_learners_online_softmax_gives_what_the_package_gives(length, block, seed):
    scores = 5 * normal(3, length, seed=seed)
    same(lesson.online_softmax(scores, block), online_softmax(scores, block)[0])
    exact = torch.distributions.Categorical(logits=scores).entropy()
    same(lesson.entropy(scores, block), exact, 1e-4)


def test_merge_takes_parts_in_any_order_and_one_that_has_seen_nothing():
    q, k, v = normal(4, 3), normal(9, 3, seed=1), normal(9, 3, seed=2)
    parts = [lesson.part(q, k[rows], v[rows]) for rows in blocks(9, 4)]
    nothing = (torch.full((4, 1), -INF), torch.zeros(4, 1), torch.zeros(4, 3))
    first = lesson.merge(lesson.merge(parts[0], parts[1]), parts[2])
    second = lesson.merge(parts[2], lesson.merge(parts[1], lesson.merge(nothing, parts[0])))
    for one, other in zip(first, second, strict=True):
        same(one, other)


@pytest.mark.parametrize(
    ("reused", "said", "lead"),
    [
        (
            [3.0, 4.0],
            "For your loop moving less won here by itself: without a mask it is 3.50",
            "yes",
        ),
        ([0.5, 0.7], "For your loop moving less did not win here by itself: without a mask", "no"),
        (
            [0.9, 1.2],
            "The rounds do not show that for your loop moving less won here by itself",
            "undecided",
        ),
    ],
)
def test_moving_less_wins_by_itself_only_where_every_round_agrees(reused, said, lead):
    found = timed_loops(reused)
    sentence = measurements.sentence_on_loop(found, measurements.share_of_tiles(4096))
    assert sentence.startswith(said) and measurements.answer(found) in sentence
    assert "leaves 52% of the tiles; your loop then needs 50% [50%, 50%] of the time" in sentence
    assert "take 20% [20%, 20%] of its time" in sentence
    assert "the factor of tiles would be 5.00 [5.00, 5.00]" in sentence  # 4 / (1 - 0.2)
    assert measurements.keeps_its_lead(found) == lead


def test_the_factors_of_the_lead_multiply_to_the_lead_and_the_answer_sorts_them():
    *factors, lead = measurements.factors_of_the_lead(timed_loops([1.0, 1.0]))
    product = math.prod(factor.ratio for factor in factors)
    assert product.tolist() == pytest.approx(lead.ratio.tolist())
    assert lead.ratio.tolist() == [6.0, 6.0]
    answer = measurements.answer(timed_loops([1.0, 1.0]))
    gains = (
        "masked into a new matrix (1.50), new memory (2.00), tiles (4.00) and skipped tiles (2.00)"
    )
    assert (
        f"6.00 [6.00, 6.00] times as fast as written out. What makes it faster: {gains}." in answer
    )
    assert "What makes it slower: the softmax in separate operations (0.25)." in answer
    assert "Undecided" not in answer
    answer = measurements.answer(timed_loops([1.0, 1.0], one_tile=[0.9, 1.1]))
    unfused = "the softmax in separate operations (1.01) and tiles (1.00)"
    assert f"Undecided: {unfused}." in answer


def test_a_ratio_of_medians_stands_beside_the_median_of_ratios():
    slow, fast = np.array([1.0, 2.0, 9.0]), np.array([1.0, 4.0, 3.0])
    (row,) = measurements.factor_rows([measurements.Factor("a", "b / c", slow, fast)])
    assert row == ["a", "b / c", "0.67", "1.00 [0.50, 3.00]"]


def timed_loops(reused, one_tile=(4.0, 4.0)):
    """Seconds of two rounds: the mask costs the three steps a half more, and halves your loop's.

    `one_tile`: of your code with one tile, memory reused.
    """
    seconds = {
        measurements.WRITTEN_OUT: [2.0, 2.0],
        measurements.REUSED: reused,
        measurements.ONE_TILE: [5.0, 5.0],
        measurements.ONE_TILE_REUSED: one_tile,
        measurements.YOURS: [1.0, 1.0],
        measurements.EMPTY: [0.2, 0.2],
    }
    no_mask = {name: np.array(values) for name, values in seconds.items()}
    causal = {
        name: change * no_mask[name]
        for name, change in (
            (measurements.WRITTEN_OUT, 1.5),
            (measurements.REUSED, 1.5),
            (measurements.YOURS, 0.5),
        )
    }
    return measurements.LoopTimes(no_mask, causal, dict.fromkeys(no_mask, 7) | {"your loop": None})


def test_the_table_of_the_loop_has_a_row_for_every_way_and_says_what_is_unknown():
    rows = {name: rest for name, *rest in measurements.loop_rows(timed_loops([1.0, 1.0]))}
    assert rows["written out"] == ["2,000", "3,000", "7", "2.00 [2.00, 2.00]"]
    assert rows["your code, one tile, memory reused"] == ["4,000", "", "7", "4.00 [4.00, 4.00]"]
    assert rows["your loop"] == ["1,000", "500", "unknown", ""]


def test_one_tile_into_reused_memory_is_attention():
    q, k, v = (normal(2, 3, 9, 4, seed=n) for n in range(3))
    room = measurements.room_for_scores(q, k)
    for _ in range(2):  # what the first call left there does not matter
        own = measurements.one_tile_reusing(q, k, v, *room)
        same(own, F.scaled_dot_product_attention(q, k, v), 1e-5)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_the_learners_tiles_hide_keys_in_every_format(dtype):
    q, k, v = (normal(2, 20, 8, seed=n) for n in range(3))
    expected = F.scaled_dot_product_attention(q, k, v, is_causal=True)
    own = lesson.tiled_attention(*(x.to(dtype) for x in (q, k, v)), 6, torch.arange(20))
    assert (own.float() - expected).abs().max() < 50 * torch.finfo(dtype).eps


def test_scores_computed_stand_beside_the_time_by_block():
    found = {256: [2.0, 2.0], 2048: [5.0, 5.0]}
    sentence = measurements.sentence_on_blocks(found, 2048)
    # 36 of 64 tiles are visited in blocks of 256, 1 of 1 in one of 2,048: 64 / 36
    assert "From blocks of 256, the fastest, to 2,048, the scores computed grow by 1.78" in sentence
    assert "The time grows by 2.50." in sentence
    slower = {256: [2.0], 2048: [1.0]}
    assert "2,048 are the fastest" in measurements.sentence_on_blocks(slower, 2048)


def test_the_largest_step_of_math_is_named_with_the_size_of_its_scores():
    config = LlamaConfig.from_hugging_face(tiny_config().to_dict())
    found = {n: {"math": {"seconds": [t]}} for n, t in ((128, 1.0), (256, 4.0), (512, 40.0))}
    sentence = measurements.sentence_on_steps(found, config, "cpu")
    sizes = [config.num_attention_heads * 4 * n * n / 2**20 for n in (256, 512)]
    assert "by 4.0, 10.0. The largest step is from 256 to 512 tokens" in sentence
    assert f"grow by 4.0, from {sizes[0]:.1f} to {sizes[1]:.1f} MiB." in sentence


def test_a_byte_of_the_cache_costs_as_much_as_one_of_weights_where_the_clock_follows_the_bytes():
    config = LlamaConfig.from_hugging_face(tiny_config().to_dict())
    share = backends.predicted_share(config, 1, 64)
    slower = 2 * share / (1 + share)  # the cache's part of the time doubled
    measured = {"decode": {"math": {64: slower}, "flash": {64: share}}}
    sentence = measurements.sentence_on_decode(config, measured)
    assert "takes 2.00 times (math) and 1.00 times (flash) the time" in sentence


def test_an_operation_of_attention_costs_as_much_where_the_clock_follows_the_count():
    config = LlamaConfig.from_hugging_face(tiny_config().to_dict())
    share = backends.predicted_share(config, 64, 0)
    slower = 3 * share / (1 + 2 * share)  # attention's part of the time tripled
    measured = {"prefill": {"math": {64: slower}, "flash": {64: share}}}
    sentence = measurements.sentence_on_prefill(config, measured)
    assert "takes 3.0 times (math) and 1.0 times (flash) the time" in sentence
    assert "earlier" not in sentence  # flash goes by the formula
    measured["prefill"]["flash"][64] = slower
    assert "earlier than the formula" in measurements.sentence_on_prefill(config, measured)


@pytest.mark.parametrize("length", [1, 100, 128, 129, 4096])
def test_the_share_of_tiles_is_that_of_the_exercise(length):
    every = math.ceil(length / 128) ** 2
    assert measurements.share_of_tiles(length) == lesson.tiles_visited(length, 128) / every


def test_the_entropy_keeps_its_digits_at_scores_near_ten_thousand():
    scores = 10_000 + 3 * normal(64, 50, seed=5)
    exact = torch.distributions.Categorical(logits=scores.double()).entropy()
    for block in (1, 7, 50):
        same(lesson.entropy(scores, block), exact.float(), 1e-5)


def test_the_kernels_fair_opponent_comes_first_and_each_row_names_its_opponent():
    ratios = {"float32, no mask, memory reused": [2.0, 2.0], "float32, no mask": [3.0, 4.0]}
    rows = measurements.apart_rows({name: np.array(ratio) for name, ratio in ratios.items()})
    assert rows == [
        ["the three steps, memory reused", "float32, no mask", "2.0 [2.0, 2.0]"],
        ["math", "float32, no mask", "3.5 [3.0, 4.0]"],
    ]


def test_amdahls_law_stands_beside_the_gain():
    prefill = {512: {"math": [4.0, 4.0], "flash": [2.0, 1.0], backends.NOTHING: [0.8, 0.8]}}
    row = ["512", "80.0%", "5.0 [5.0, 5.0]", "3.0 [2.0, 4.0]"]
    assert measurements.amdahl_rows(prefill) == [row]


def test_the_measured_crossing_lies_between_two_prompts():
    config = models.config_of("llama-2-7b-chat")
    measured = {"prefill": {"math": {8: 0.5, 32: 0.7}, "flash": {8: 0.1, 32: 0.2}, "x": {8: 0.6}}}
    rows = measurements.crossings({"a": config}, "a", measured, lesson.crossing_length)
    assert [row[2] for row in rows[1:]] == ["between 8 and 32", "beyond 32", "below 8"]
    assert rows[0] == ["a", "formula", "49,408 (beyond its context of 4,096)"]


def test_versions_are_compared_at_equal_blocks():
    sizes = {f"version {n}, {b} x {b}": (b, b) for b in (32, 64) for n in (1, 2)}
    counts = measurements.counts_at(sizes, 512, 64)
    first, second = (
        measurements.non_matmul_operations(counts[f"version {n}, 64 x 64"], 64) for n in (1, 2)
    )
    assert first / second == pytest.approx(1.37, abs=0.005)
    assert "1.37 times in blocks of 64 x 64" in measurements.sentence_on_versions(counts, 64)


def test_only_the_queries_of_a_block_set_version_2s_operations_per_byte():
    sizes = {f"version 2, {q} x {k}": (q, k) for q, k in ((64, 64), (64, 256), (240, 16))}
    *_, long = measurements.intensity_rows(measurements.counts_at(sizes, 512, 64), sizes, 64)
    assert long[1:] == ["32", "64", "64", "240"]  # the first is standard attention: D / 2


# --- the Triton kernel of lesson 09, where Triton is installed ---------------------------------

needs_triton = pytest.mark.skipif(
    importlib.util.find_spec("triton") is None, reason="Triton is not installed"
)


@needs_triton
@pytest.mark.slow
def test_the_triton_kernel_interpreted_is_pytorchs_attention():
    assert "equal to PyTorch" in measurements.in_a_process("check", TRITON_INTERPRET="1")


@needs_triton
@pytest.mark.slow
def test_the_triton_kernel_compiles_for_gpus_that_are_not_here_and_a_t4_gets_no_tensor_cores():
    said = measurements.in_a_process("compile").splitlines()
    assert [line.split(":")[0] for line in said] == [
        f"compute capability {n}" for n in (7.5, 8.0, 9.0)
    ]
    products = [int(re.search(r"(\d+) tensor-core", line)[1]) for line in said]
    assert products[0] == 0 < min(products[1:])
    assert all("machine code made" in line for line in said)


def test_without_triton_the_lesson_says_so(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert "Triton is not installed" in measurements.in_a_process("check")
