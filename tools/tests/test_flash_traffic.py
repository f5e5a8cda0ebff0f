"""What FlashAttention moves and computes: the loops' own counts, shapes alone, the papers' claims."""

import dataclasses
import math

import pytest
import torch
from helpers import normal
from hypothesis import given, settings
from hypothesis import strategies as st
from test_flash import CAUSAL, EITHER, call, problems, visible
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

from llama_int8.transformer.flash import (
    Traffic,
    block_sizes,
    blocks,
    flash_attention_1,
    flash_attention_2,
    flash_backward,
    flash_traffic,
    standard_attention,
    standard_traffic,
)

VERSIONS = {1: flash_attention_1, 2: flash_attention_2}
VERSION = pytest.mark.parametrize("version", VERSIONS, ids=["v1", "v2"])


def counted(attend, problem):
    traffic = Traffic()
    call(attend, *problem, traffic=traffic)
    return traffic


def visible_tiles(q, k, causal, block_q, block_k):
    """(rows, columns) of every tile in which the mask leaves anything, read off the mask itself."""
    mask = visible(q, k, causal)
    pairs = [(r, c) for r in blocks(q.shape[2], block_q) for c in blocks(k.shape[2], block_k)]
    return [(r, c) for r, c in pairs if mask[r, c].any()]


def size(part):
    return part.stop - part.start


class Operations(TorchDispatchMode):
    """Elements that came out of exponentials, and out of products and quotients of two tensors."""

    def __init__(self, width):
        super().__init__()
        self.width, self.exp, self.mul, self.div = width, 0, 0, 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        name = function.overloadpacket.__name__
        tensors = len(args) > 1 and all(isinstance(x, torch.Tensor) for x in args[:2])
        if name == "exp":
            self.exp += result.numel()
        elif name in ("mul", "div") and tensors and result.shape[-1] == self.width:
            setattr(self, name, getattr(self, name) + result.numel())
        return result


# --- the loops' counts ------------------------------------------------------------------------


@VERSION
@settings(max_examples=100, deadline=None)
@given(problem=problems())
def test_shapes_alone_predict_what_the_loops_count(version, problem):
    q, k, *_ = problem
    heads = q.shape[0] * q.shape[1]
    predicted = flash_traffic(
        q.shape[2], k.shape[2], q.shape[3], *problem[4:], problem[3], version, heads
    )
    assert counted(VERSIONS[version], problem) == predicted


@settings(max_examples=50, deadline=None)
@given(problem=problems())
def test_shapes_alone_predict_what_standard_attention_moves(problem):
    q, k, *_ = problem
    heads = q.shape[0] * q.shape[1]
    predicted = standard_traffic(q.shape[2], k.shape[2], q.shape[3], heads)
    assert counted(standard_attention, problem) == predicted


@EITHER
@settings(max_examples=100, deadline=None)
@given(problem=problems())
def test_tiles_that_the_mask_empties_are_skipped_and_no_others(attend, problem):
    q, k, _, *settings_ = problem
    traffic, tiles = Traffic(), []
    attend(*problem, traffic=traffic, watch=tiles.append)
    expected = visible_tiles(q, k, *settings_)
    found = [(tile.rows, tile.columns) for tile in tiles]
    assert sorted(map(str, found)) == sorted(map(str, expected))
    every = math.ceil(q.shape[2] / settings_[1]) * math.ceil(k.shape[2] / settings_[2])
    assert (traffic.visited, traffic.skipped) == (len(expected), every - len(expected))


@VERSION
@settings(max_examples=50, deadline=None)
@given(problem=problems())
def test_traffic_is_what_the_papers_algorithms_read_and_write(version, problem):
    q, k, _, causal, block_q, block_k = problem
    T, S, D, heads = q.shape[2], k.shape[2], q.shape[3], q.shape[0] * q.shape[1]
    tiles = visible_tiles(q, k, causal, block_q, block_k)
    if version == 1:  # lines 2, 6, 8, 12 and 13
        loads = 2 * S * D + sum(size(r) * (D + D + 1 + 1) for r, _ in tiles)
        stores = T * (D + 1 + 1) + sum(size(r) * (D + 1 + 1) for r, _ in tiles)
    else:  # lines 4, 7, 14 and 15
        loads = T * D + sum(2 * size(c) * D for _, c in tiles)
        stores = T * D + T
    traffic = counted(VERSIONS[version], problem)
    assert (traffic.loads, traffic.stores) == (heads * loads, heads * stores)
    assert traffic.moved == traffic.loads + traffic.stores


@EITHER
@settings(max_examples=50, deadline=None)
@given(problem=problems())
def test_counted_operations_are_those_that_pytorch_ran(attend, problem):
    q = problem[0]
    width = q.shape[-1]
    traffic = Traffic()
    with FlopCounterMode(display=False) as flops, Operations(width) as ran:
        attend(*problem, traffic=traffic)
    assert traffic.matmul_flops == flops.get_total_flops()
    assert traffic.exponentials == ran.exp
    if width > 1:  # otherwise the sums, one wide, would count among the outputs
        assert (traffic.rescales, traffic.divisions) == (ran.mul, ran.div)


@settings(max_examples=30, deadline=None)
@given(problem=problems())
def test_standard_attention_counts_its_products(problem):
    traffic = Traffic()
    with FlopCounterMode(display=False) as flops:
        call(standard_attention, *problem, traffic=traffic)
    assert traffic.matmul_flops == flops.get_total_flops()


@settings(max_examples=50, deadline=None)
@given(problem=problems())
def test_the_backward_pass_has_five_products_for_the_forward_passs_two(problem):
    q, k, v, causal, block_q, block_k = problem
    T, S, D, heads = q.shape[2], k.shape[2], q.shape[3], q.shape[0] * q.shape[1]
    forward, backward = Traffic(), Traffic()
    o, lse = flash_attention_2(*problem, traffic=forward)
    with FlopCounterMode(display=False) as flops:
        flash_backward(o, q, k, v, o, lse, *problem[3:], traffic=backward)
    assert 2 * backward.matmul_flops == 5 * forward.matmul_flops == 2 * flops.get_total_flops()
    assert (backward.visited, backward.skipped) == (forward.visited, forward.skipped)
    tiles = visible_tiles(q, k, causal, block_q, block_k)
    assert backward.exponentials == heads * sum(size(r) * size(c) for r, c in tiles)
    rows = sum(size(r) for r, _ in tiles)
    assert backward.loads == heads * (2 * T * D + 2 * S * D + rows * (3 * D + 2))
    assert backward.stores == heads * (T + T * D + rows * D + 2 * S * D)


def test_counts_by_hand_for_two_blocks_by_two():
    q, k, v = (normal(1, 1, 4, 3, seed=n) for n in range(3))
    first, second = (counted(attend, (q, k, v, True, 2, 2)) for attend in VERSIONS.values())
    # Three visited tiles of 2 x 2, one skipped. Version 1: k, v once (24); q, o, m, l thrice (48).
    assert first == Traffic(24 + 48, 20 + 30, 3, 1, 3 * 48, 3 * 8, 36, 18)
    # Version 2: q once (12), k and v thrice (36); o and the log-sums once.
    assert second == Traffic(12 + 36, 12 + 4, 3, 1, 3 * 48, 3 * 6, 18, 12)


@EITHER
def test_counts_add_up_over_calls_and_start_at_nothing(attend):
    q, k, v = (normal(1, 2, 5, 3, seed=n) for n in range(3))
    once, twice = Traffic(), Traffic()
    attend(q, k, v, traffic=once)
    attend(q, k, v, traffic=twice)
    attend(q, k, v, traffic=twice)
    doubled = {name: 2 * count for name, count in dataclasses.asdict(once).items()}
    assert dataclasses.asdict(twice) == doubled and once.moved > 0 and twice.moved == 2 * once.moved


# --- the papers' claims -----------------------------------------------------------------------


@VERSION
@CAUSAL
@settings(max_examples=50, deadline=None)
@given(lengths=st.tuples(*[st.integers(1, 60)] * 2), sizes=st.tuples(*[st.integers(1, 70)] * 2))
def test_both_versions_do_the_same_products_and_version_2_less_besides(
    version, causal, lengths, sizes
):
    T, S = sorted(lengths)
    one, two = (flash_traffic(T, S, 8, *sizes, causal, n) for n in (1, 2))
    assert one.matmul_flops == two.matmul_flops
    assert one.rescales == 2 * two.rescales  # version 1 rescales the tile's output, too
    assert one.exponentials - two.exponentials == two.rescales // 8  # one more factor per row
    assert one.divisions == two.rescales and two.divisions == T * 8 <= one.divisions
    assert two.stores < one.stores


@VERSION
@pytest.mark.parametrize("D", [64, 128])
def test_traffic_grows_as_the_paper_says(version, D):
    """Theta(N^2 d^2 / M), theorem 2, with one constant for all lengths and memories."""
    constants = []
    for memory in (16 * D, 64 * D, 4 * D * D):
        for N in (16 * D, 64 * D, 256 * D):
            sizes = block_sizes(memory, D, version)
            moved = flash_traffic(N, N, D, *sizes, version=version).moved
            constants.append(moved * memory / (N * N * D * D))
    expected = {1: 12, 2: 8}[version]  # 3 N D for each of 4 N D / M key blocks; 2 N D for each of q
    assert all(expected <= c <= 1.13 * expected for c in constants)


def test_standard_attention_moves_all_scores_four_times():
    """Theta(N d + N^2), theorem 2."""
    for N, D in ((1024, 64), (4096, 64), (4096, 128)):
        assert standard_traffic(N, N, D).moved == 4 * N * N + 4 * N * D


@VERSION
def test_flash_moves_less_where_the_memory_is_larger_than_d_squared(version):
    N, D, memory = 4096, 64, 48 * 1024  # an A100's 192 KiB in FP32
    flash = flash_traffic(N, N, D, *block_sizes(memory, D, version), version=version)
    assert 3 < standard_traffic(N, N, D).moved / flash.moved < 13
    small = flash_traffic(N, N, D, *block_sizes(D, D, version), version=version)
    assert small.moved > standard_traffic(N, N, D).moved  # N^2 d^2 / M with M = d: worse


@VERSION
def test_a_causal_mask_nearly_halves_the_work_of_a_long_text(version):
    whole, causal = (flash_traffic(8192, 8192, 64, 64, 64, mask, version) for mask in (False, True))
    assert causal.visited == 128 * 129 // 2 and causal.skipped == 128 * 127 // 2
    assert causal.matmul_flops / whole.matmul_flops == 129 / 256
    assert causal.moved / whole.moved == pytest.approx(0.5, abs=0.01)


@VERSION
@CAUSAL
def test_a_decode_step_visits_every_key_block(version, causal):
    step = flash_traffic(1, 1000, 64, 64, 64, causal, version)
    assert (step.visited, step.skipped) == (16, 0)


@settings(max_examples=200, deadline=None)
@given(D=st.integers(1, 300), times=st.floats(1, 3000))
def test_block_sizes_are_the_papers_and_nearly_fill_the_memory(D, times):
    memory = int(times * D)
    block_q, block_k = block_sizes(memory, D)
    assert 4 * D * (block_k - 1) < memory <= 4 * D * block_k
    assert block_q == min(block_k, D)
    assert block_sizes(memory, D, version=2) == (block_k, block_k)
    held = 2 * D * (block_q + block_k) + block_q * block_k  # q, o; k, v; scores
    assert held <= 1.25 * memory + 5 * D


def test_block_sizes_by_hand():
    assert block_sizes(1024, 16) == (16, 16) and block_sizes(1025, 16) == (16, 17)
    assert block_sizes(4096, 16) == (16, 64) and block_sizes(4096, 16, version=2) == (64, 64)
    assert block_sizes(16, 16) == (1, 1)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: block_sizes(63, 64), "63 elements does not hold one vector of 64"),
        (lambda: block_sizes(64, 0), "one vector of 0"),
        (lambda: block_sizes(64, 64, 3), "version is 3; there are versions 1 and 2"),
        (lambda: flash_traffic(4, 4, 2, 2, 2, version=0), "version is 0"),
        (lambda: flash_traffic(4, 4, 2, 0, 2), "block_q is 0"),
        (lambda: flash_traffic(4, 4, 2, 2, 0), "block_k is 0"),
        (lambda: flash_traffic(4, 3, 2, 2, 2, True), "4 queries and 3 keys.* first 1 would"),
        (lambda: standard_traffic(3, 0, 2), "3 queries and 0 keys"),
        (lambda: flash_traffic(0, 3, 2, 2, 2), "0 queries and 3 keys"),
    ],
)
def test_sizes_that_do_not_fit_are_refused_with_the_way_out(make, message):
    with pytest.raises(ValueError, match=message):
        make()
