"""int8-fast: its codes and products against float64, its three versions against each other."""

import copy
import ctypes
import itertools
import math
import os
import platform
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import normal, refused
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch import nn

from llama_int8.lessons.n10 import exercises, vectorwise
from llama_int8.lessons.n10.vectorwise import VectorwiseLinear
from llama_int8.models import MODELS
from llama_int8.processor import Processor
from llama_int8.quantization.cpu import kernels, packing
from llama_int8.quantization.cpu.baselines import (
    KernelBf16Linear,
    KernelWeightOnlyLinear,
    WeightOnlyLinear,
)
from llama_int8.quantization.cpu.layout import (
    GROUP,
    ROWS,
    packed_bytes,
    packed_shape,
    scale_bytes,
    scale_shape,
)
from llama_int8.quantization.cpu.linear import Int8FastLinear, fast_linear, replace_layers
from llama_int8.quantization.cpu.packing import (
    TINY,
    lost_bits,
    pack,
    pack_pairs,
    pack_rows,
    quantize_activations,
    quantize_in_planes,
    quantize_weight,
    unpack,
    unpack_pairs,
    unpack_rows,
)
from llama_int8.quantization.quantize import absmax_quantize
from llama_int8.quantization.simulate import Scheme, simulated

INF, NAN = math.inf, math.nan
DTYPES = [torch.float32, torch.bfloat16, torch.float16]
EACH_DTYPE = pytest.mark.parametrize("dtype", DTYPES)
EITHER_PLANES = pytest.mark.parametrize("planes", [1, 2])
CPU_FEATURES = kernels.cpu_features
NAMES = {"vnni": "AVX-512 VNNI", "avxvnni": "AVX-VNNI", "avx2": "AVX2", "pytorch": "PyTorch"}
COMPILED = tuple(NAMES)[:-1]
# Largest rounding of a number, and of one among the subnormals.
UNIT = {torch.float32: 2**-24, torch.bfloat16: 2**-8, torch.float16: 2**-11}
LEAST = {torch.float32: 2**-149, torch.bfloat16: 2**-133, torch.float16: 2**-24}
FP32_MAX = torch.finfo(torch.float32).max
OF_TINY = float(np.float32(TINY))
AROUND_TINY = [
    float(np.nextafter(np.float32(TINY), np.float32(0))),
    OF_TINY,
    float(np.nextafter(np.float32(TINY), np.float32(1))),
]
BITS = {torch.float32: torch.int32, torch.bfloat16: torch.int16, torch.float16: torch.int16}


def available(version):
    """Skip the test where this machine cannot run or compile the version."""
    try:
        with kernels.using(version):
            return version
    except RuntimeError as error:
        pytest.skip(str(error))


@pytest.fixture(params=COMPILED)
def compiled(request):
    """A version of the kernel."""
    return available(request.param)


@pytest.fixture(params=[*COMPILED, kernels.PYTORCH])
def version(request):
    """A version of the product: of the kernel, or plain PyTorch."""
    return available(request.param)


def some_linear(inputs=70, outputs=33, bias=True, seed=0):
    torch.manual_seed(seed)
    return nn.Linear(inputs, outputs, bias)


def some_layer(*shape, planes=1, **options):
    return Int8FastLinear.from_linear(some_linear(*shape, **options), planes)


def product(version, layer, x):
    with kernels.using(version):
        return layer(x)


def same_bits(ours, theirs):
    """Equal dtype, shape and bits; NaN at the same places, whatever its own bits."""
    assert ours.dtype == theirs.dtype and ours.shape == theirs.shape
    assert torch.equal(ours.isnan(), theirs.isnan())
    bits = (y.masked_fill(y.isnan(), 0).view(BITS[y.dtype]) for y in (ours, theirs))
    assert torch.equal(*bits)


def by_definition(values):
    """Codes and scale of each row of float64 numbers, in the steps and the roundings of FP32."""
    absmax = np.abs(values).max(-1)
    real = np.where(absmax < np.float32(TINY), np.inf, absmax)
    steps = (127 / real).astype(np.float32).astype(float)  # 0 for what counts as zeros
    codes = np.rint((values * steps[..., None]).astype(np.float32))  # half to even
    scale = np.where(np.isinf(real), 0, absmax / 127).astype(np.float32)
    return codes, scale


def planes_by_definition(values, planes):
    """Codes and scale of each plane: of the second, those of what FP32 has left of the first."""
    found = [by_definition(values)]
    if planes == 2:
        codes, scale = found[0]
        restored = (codes * scale[..., None]).astype(np.float32)
        found.append(by_definition((values - restored).astype(np.float32).astype(float)))
    return found


def weights_by_definition(weight):
    """Codes (M, G, GROUP) and scales (M, G) of a matrix: absmax / 127 of a group, as bf16 holds it."""
    groups = in_groups(weight)
    absmax = np.abs(groups).max(-1)
    scale = np.where(absmax < np.float32(TINY), 0, absmax.astype(np.float32) / np.float32(127))
    scale = torch.tensor(scale, dtype=torch.float32).bfloat16().double().numpy()
    steps = (1 / np.where(scale > 0, scale, np.inf)).astype(np.float32).astype(float)
    codes = np.rint((groups * steps[..., None]).astype(np.float32)).clip(-127, 127)
    return codes, scale


def in_groups(x):
    """(N, K) -> float64 (N, G, GROUP), filled up with zeros."""
    x = x.double().numpy()
    return np.pad(x, ((0, 0), (0, -x.shape[1] % GROUP))).reshape(len(x), -1, GROUP)


def exact(linear, x, planes):
    """The float64 product of the dequantized operands, and how far FP32 sums may lie from it."""
    codes, scale = weights_by_definition(linear.weight.detach())
    W, terms, size = codes * scale[..., None], 0, 0  # (M, G, GROUP)
    for codes, scale in planes_by_definition(in_groups(x), planes):
        A = codes * scale[..., None].astype(float)  # (N, G, GROUP)
        own = np.einsum("ngi,mgi->nmg", A, W)
        terms, size = terms + own, size + np.abs(own).sum(-1)
        size = size + 2**-24 * np.einsum("ngi,mgi->nm", np.abs(A), np.abs(W))  # float64's own
    bias = torch.zeros(()) if linear.bias is None else linear.bias.detach().double()
    y, groups = torch.tensor(terms.sum(-1)) + bias, terms.shape[-1]
    steps = (groups + 5) * torch.tensor(size) + 2 * bias.abs()
    tiny = LEAST[torch.float32] * (1 + planes * groups * GROUP * 127**2)  # scales that leave FP32
    bound = UNIT[x.dtype] * y.abs() + 2**-24 * steps + LEAST[x.dtype] + tiny
    return y, 1.01 * bound


@st.composite
def cases(draw):
    """A layer, tokens of any format with zeros, outliers and tiny groups; and how many planes."""
    N, K, M = draw(st.integers(1, 20)), draw(st.integers(1, 200)), draw(st.integers(1, 70))
    dtype, seed = draw(st.sampled_from(DTYPES)), draw(st.integers(0, 999))
    linear = some_linear(K, M, draw(st.booleans()), seed)
    linear.weight.data *= draw(st.sampled_from([1e-42, 1e-30, 1e-3, 1.0, 30.0]))
    if draw(st.booleans()):
        linear.weight.data[draw(st.integers(0, M - 1))] = 0
    sizes = [1e-7, 1e-4, 1, 20] if dtype == torch.float16 else [1e-42, 1e-30, 1e-10, 1, 20, 1e30]
    x = normal(N, K, seed=seed + 1) * draw(st.sampled_from(sizes))
    for _ in range(draw(st.integers(0, 3))):
        place = draw(st.integers(0, N - 1)), draw(st.integers(0, K - 1))
        x[place] = draw(st.sampled_from([80.0, -600.0, 1e-3, 0.0, *AROUND_TINY]))
    if draw(st.booleans()):
        x[draw(st.integers(0, N - 1))] = 0
    linear = linear.to(draw(st.sampled_from([dtype, torch.float32])))
    return linear, x.to(dtype), draw(st.sampled_from([1, 2]))


PROPERTY = settings(max_examples=120, deadline=None)
# Shapes at the edges: 1 of everything; one below, at and above a group and a block of rows.
EDGES = [1, 2, ROWS - 1, ROWS, ROWS + 1, GROUP - 1, GROUP, GROUP + 1, 2 * GROUP + 3]


# --- codes ------------------------------------------------------------------------------------


def test_activations_by_hand():
    x = torch.zeros(1, GROUP + 2)
    x[0, :4] = torch.tensor([254.0, 1, 3, -5])  # steps of 2: 0.5, 1.5, -2.5 go to the even
    x[0, GROUP + 1] = -1e-6
    codes, scale = quantize_activations(x)
    assert codes.dtype == torch.int8 and codes.shape == (1, 2, GROUP)
    assert codes[0, 0, :5].tolist() == [127, 0, 2, -2, 0]
    assert codes[0, 1, :3].tolist() == [0, -127, 0]  # what the other group holds does not count
    assert scale.tolist() == [[2.0, torch.tensor(1e-6).div(127).item()]]


def test_weights_by_hand():
    codes, scale = quantize_weight(torch.tensor([[254.0, 1, 3, -5], [0, 0, 0, 0], [-1, 0, 0, 0.6]]))
    assert codes.tolist() == [[127, 0, 2, -2], [0, 0, 0, 0], [-127, 0, 0, 76]]
    assert scale.dtype == torch.bfloat16
    assert scale.tolist() == [[2.0], [0.0], [torch.tensor(1.0).div(127).bfloat16().item()]]
    row = torch.zeros(1, GROUP + 2)
    row[0, GROUP - 1 :] = torch.tensor([-1, 0.6, 127.4])  # 0.6 shares the scale of 127.4, 1 in bf16
    codes, scale = quantize_weight(row)
    assert codes[0, GROUP - 2 :].tolist() == [0, -127, 1, 127] and scale[0, 1] == 1


def test_a_second_plane_by_hand():
    x = torch.zeros(1, GROUP)
    x[0, :3] = torch.tensor([127.0, 0.25, 3.125])
    (first, one), (second, other) = quantize_in_planes(x, 2)
    assert first[0, 0, :3].tolist() == [127, 0, 3] and one.item() == 1
    assert second[0, 0, :3].tolist() == [0, 127, 64]  # 63.5 goes to the even
    assert other.item() == torch.tensor(0.25).div(127).item()
    assert len(quantize_in_planes(x, 1)) == 1


@PROPERTY
@given(cases())
def test_every_code_and_scale_is_that_of_the_definition(case):
    linear, x, planes = case
    weight = linear.weight.detach()
    codes, scale = quantize_weight(weight)
    assert codes.dtype == torch.int8 and codes.shape == weight.shape
    theirs = weights_by_definition(weight)
    assert np.array_equal(in_groups(codes), theirs[0])
    assert np.array_equal(scale.double().numpy(), theirs[1])
    assert half_a_step(*theirs, in_groups(weight))
    values, restored = in_groups(x), 0
    found, wanted = quantize_in_planes(x, planes), planes_by_definition(values, planes)
    for (codes, scale), own in zip(found, wanted, strict=True):
        assert codes.dtype == torch.int8 and np.array_equal(codes.numpy(), own[0])
        assert scale.dtype == torch.float32 and np.array_equal(scale.numpy(), own[1])
        left = values - restored
        rounding = 2**-23 * np.abs(values).max(-1) if planes == 2 else 0  # of what is left
        assert half_a_step(*own, left, rounding)
        restored = restored + own[0] * own[1][..., None].astype(float)
    assert torch.equal(found[0][0], quantize_activations(x)[0])
    assert torch.equal(found[0][1], quantize_activations(x)[1])


def half_a_step(codes, scale, values, rounding=0):
    """No value is farther from its code than half a step, or than what counts as zero."""
    step = scale.astype(float)
    lost = np.abs(codes * step[..., None] - values).max(-1)
    return (lost <= np.maximum(0.50002 * step, TINY) + rounding).all()


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 5), st.integers(1, 3), st.integers(0, 999), st.sampled_from(DTYPES))
def test_scales_are_those_of_absmax_quantization_and_codes_too_but_for_ties(n, groups, seed, dtype):
    x = normal(n, groups * GROUP, seed=seed).to(dtype)
    theirs = absmax_quantize(x, granularity="group", group_size=GROUP)
    ours = quantize_activations(x)
    assert torch.equal(ours[1].flatten(), theirs.scale.flatten())
    assert torch.equal(quantize_weight(x)[1].flatten(), theirs.scale.flatten().bfloat16())
    codes = theirs.codes.view(ours[0].shape)
    share = x.double().view(codes.shape) / theirs.scale.double().view(*codes.shape[:-1], 1)
    tie = (share.abs() % 1 - 0.5).abs() < 1e-4
    assert torch.equal(ours[0][~tie], codes[~tie])


@pytest.mark.parametrize("value", AROUND_TINY)
def test_what_lies_below_tiny_counts_as_zero_and_what_reaches_it_does_not(value):
    counts = value >= OF_TINY
    x = torch.tensor([[value, 0.0]])
    for codes, scale in (quantize_activations(x), quantize_weight(x)):
        assert (codes.flatten()[0].item(), scale.item() > 0) == (127 * counts, counts)


@pytest.mark.parametrize("value", [NAN, INF, -INF])
@EACH_DTYPE
def test_a_group_that_is_not_finite_has_codes_0_and_the_scale_nan(value, dtype):
    x = normal(2, 3 * GROUP).to(dtype)
    whole = quantize_activations(x)
    x[1, GROUP + 5] = value
    codes, scale = quantize_activations(x)
    assert codes[1, 1].count_nonzero() == 0
    assert scale.isnan().nonzero().tolist() == [[1, 1]]
    others = torch.tensor([[True, True, True], [True, False, True]])
    assert torch.equal(codes[others], whole[0][others])
    assert torch.equal(scale[others], whole[1][others])


@pytest.mark.parametrize("dtype", DTYPES)
def test_weights_of_many_rows_are_quantized_as_each_row_alone(dtype):
    weight = normal(9000, 3).to(dtype)  # more than two of the slices in which they are taken
    codes, scale = quantize_weight(weight)
    theirs = weights_by_definition(weight)
    assert np.array_equal(in_groups(codes), theirs[0])
    assert np.array_equal(scale.double().numpy(), theirs[1])


@pytest.mark.parametrize("value", [NAN, INF, -INF])
def test_weights_that_are_not_finite_are_refused_with_their_row(value):
    weight = normal(5, 4)
    weight[3, 1] = value
    with refused(ValueError, "row 3", "NaN or infinity"):
        quantize_weight(weight)


def test_what_is_no_matrix_of_floating_point_numbers_is_refused():
    with refused(TypeError, "torch.int8", "(2, 3)"):
        quantize_weight(torch.ones(2, 3, dtype=torch.int8))
    with refused(TypeError, "torch.float32", "(3,)"):
        quantize_weight(torch.ones(3))
    for shape in ((0, 3), (3, 0)):
        with refused(ValueError, str(shape)):
            quantize_weight(torch.ones(shape))


def test_lost_bits_are_the_logarithm_of_how_much_smaller_a_group_is_than_its_row():
    x = torch.zeros(2, 2 * GROUP + 5)
    x[0, 3], x[0, GROUP], x[0, -1] = -8.0, 1.0, 0.25
    x[1, GROUP + 1] = 5.0
    assert lost_bits(x).tolist() == [[0, 3, 5], [0, 0, 0]]
    assert lost_bits(x.bfloat16()).tolist() == [[0, 3, 5], [0, 0, 0]]


# --- the layout -------------------------------------------------------------------------------


@settings(max_examples=80, deadline=None)
@given(st.integers(1, 100), st.integers(1, 200), st.integers(0, 999))
def test_unpacking_gives_back_what_was_packed(outputs, inputs, seed):
    generator = torch.Generator().manual_seed(seed)
    codes = torch.randint(-127, 128, (outputs, inputs), generator=generator).char()
    packed = pack(codes)
    assert packed.dtype == torch.uint8 and packed.is_contiguous()
    assert packed.shape == packed_shape(outputs, inputs)
    assert packed.numel() == packed_bytes(outputs, inputs)
    assert torch.equal(unpack(packed, outputs, inputs), codes)
    assert packed.long().sum() - 128 * packed.numel() == codes.long().sum()  # filled up with zeros
    scale = torch.rand(outputs, -(-inputs // GROUP), generator=generator).bfloat16()
    packed = pack_rows(scale)
    assert packed.dtype == torch.bfloat16 and packed.is_contiguous()
    assert packed.shape == scale_shape(outputs, inputs)
    assert 2 * packed.numel() == scale_bytes(outputs, inputs)
    assert torch.equal(unpack_rows(packed, outputs), scale)
    assert packed.count_nonzero() == scale.count_nonzero()


def test_the_byte_of_each_weight_and_the_scale_of_each_group_lie_where_the_kernel_reads_them():
    M, K = 2 * ROWS + 3, GROUP + 9
    codes = torch.randint(-127, 128, (M, K), generator=torch.Generator().manual_seed(0)).char()
    scale = normal(M, 2).bfloat16()
    flat, scales, padded = pack(codes).flatten(), pack_rows(scale).flatten(), 2 * GROUP
    for m, k in [
        (0, 0),
        (0, 1),
        (1, 0),
        (31, 5),
        (32, 4),
        (66, GROUP + 8),
        (40, GROUP - 1),
        (65, GROUP),
    ]:
        place = (m // 32 * (padded // 4) + k // 4) * 128 + m % 32 * 4 + k % 4
        assert flat[place].item() == codes[m, k].item() + 128
        assert scales[(m // 32 * 2 + k // GROUP) * 32 + m % 32] == scale[m, k // GROUP]


@pytest.mark.parametrize("name", sorted(MODELS))
def test_every_layer_of_every_registered_model_has_a_layout_and_needs_little_to_fill_it_up(name):
    config = MODELS[name].config
    head = (config.vocab_size, config.hidden_size)
    for outputs, inputs in [*config.linear_shapes().values(), head]:
        layer = Int8FastLinear.empty((outputs, inputs))
        assert layer.weight.is_meta and (layer.out_features, layer.in_features) == (outputs, inputs)
        assert layer.weight.numel() == packed_bytes(outputs, inputs)
        assert layer.weight.numel() == outputs * inputs  # these widths fit exactly
        assert 16 * scale_bytes(outputs, inputs) == packed_bytes(outputs, inputs)  # 16 of 256 bits


# --- products ---------------------------------------------------------------------------------


def largest_tie():
    """The codes that make the largest sum of a pair of products: 127 x 127 twice."""
    linear = some_linear(GROUP, ROWS, False)
    linear.weight.data = torch.ones(ROWS, GROUP)
    linear.weight.data[::2] = -1
    return linear, torch.stack([torch.ones(GROUP), -torch.ones(GROUP)]), 1


@pytest.mark.parametrize("name", [*COMPILED, kernels.PYTORCH])
@PROPERTY
@given(case=cases())
@example(case=largest_tie())
def test_the_output_is_the_float_product_of_the_dequantized_operands(name, case):
    linear, x, planes = case
    y = product(available(name), Int8FastLinear.from_linear(linear, planes), x)
    wanted, bound = exact(linear, x, planes)
    fits = wanted.abs() + bound <= torch.finfo(x.dtype).max
    assert y.dtype == x.dtype and y.shape == wanted.shape
    assert ((y.double() - wanted).abs() <= bound)[fits].all()


@pytest.mark.parametrize("name", COMPILED)
@PROPERTY
@given(case=cases())
@example(case=largest_tie())
def test_compiled_and_plain_products_have_the_same_bits(name, case):
    linear, x, planes = case
    layer = Int8FastLinear.from_linear(linear, planes)
    same_bits(product(available(name), layer, x), product(kernels.PYTORCH, layer, x))


@EACH_DTYPE
@pytest.mark.parametrize("bias", [True, False])
def test_they_do_at_every_edge_of_the_shapes(compiled, dtype, bias):
    for K, M in itertools.product(EDGES, EDGES):
        for planes in (1, 2):
            layer, x = some_layer(K, M, bias=bias, planes=planes), normal(3, K, seed=M).to(dtype)
            same_bits(product(compiled, layer, x), product(kernels.PYTORCH, layer, x))


@EACH_DTYPE
@EITHER_PLANES
def test_they_do_for_every_number_of_tokens(compiled, dtype, planes):
    layer, x = some_layer(130, 45, planes=planes), normal(20, 130).to(dtype)
    for N in range(21):  # tiles of 8, 4, 2 and 1 in all their sequences
        same_bits(product(compiled, layer, x[:N]), product(kernels.PYTORCH, layer, x[:N]))


@EACH_DTYPE
@pytest.mark.parametrize(
    "value", [1e30, 0.99 * FP32_MAX, FP32_MAX, 65504.0, 1e-45, 1e-38, *AROUND_TINY, NAN, INF, -INF]
)
@EITHER_PLANES
def test_they_do_for_values_at_the_ends_of_the_format(compiled, dtype, planes, value):
    layer, x = some_layer(130, 45, bias=False, planes=planes), normal(5, 130).to(dtype)
    x[1, 3], x[2], x[3] = value, value, 0.0
    x[4] = torch.where(normal(130) > 0, value, -value).to(dtype)
    same_bits(product(compiled, layer, x), product(kernels.PYTORCH, layer, x))


@EACH_DTYPE
@EITHER_PLANES
def test_they_do_where_weights_are_zeros_or_at_the_ends_of_fp32(compiled, dtype, planes):
    linear, x = some_linear(130, 45), normal(5, 130).to(dtype)
    linear.weight.data[0] = 0
    linear.weight.data[1:4] *= torch.tensor([1e-45, 1e-31, 1e30])[:, None]
    linear.weight.data[4, 0], linear.weight.data[5, 0] = FP32_MAX, OF_TINY
    linear.bias.data[6] = FP32_MAX
    layer = Int8FastLinear.from_linear(linear, planes)
    same_bits(product(compiled, layer, x), product(kernels.PYTORCH, layer, x))


def test_they_do_for_every_way_a_bf16_can_be_rounded(compiled):
    # An input of zeros leaves the bias, and with it every kind of FP32 that is to be rounded.
    linear = some_linear(1, 600)
    upper = torch.arange(100, dtype=torch.int32)[:, None] * 0x6D7 % 0x7F80 << 16  # even and odd
    lower = torch.tensor([0, 1, 0x7FFF, 0x8000, 0x8001, 0xFFFF], dtype=torch.int32)
    linear.bias.data = (upper | lower).flatten().view(torch.float32)
    linear.bias.data[::7] *= -1
    linear.bias.data[-1] = FP32_MAX  # goes to infinity
    layer, x = Int8FastLinear.from_linear(linear), torch.zeros(1, 1, dtype=torch.bfloat16)
    y = product(compiled, layer, x)
    assert torch.equal(y[0], linear.bias.data.bfloat16())
    same_bits(y, product(kernels.PYTORCH, layer, x))


def test_a_bf16_layer_rounds_once_from_fp32(version):
    layer, x = some_layer(200, 40), normal(9, 200).bfloat16()
    same_bits(product(version, layer, x), product(version, layer, x.float()).bfloat16())


def test_an_fp16_layer_rounds_once_from_fp32(version):
    layer, x = some_layer(200, 40), normal(9, 200).half()
    same_bits(product(version, layer, x), product(version, layer, x.float()).half())


@EACH_DTYPE
@EITHER_PLANES
@pytest.mark.parametrize("value", [NAN, INF, -INF])
def test_a_token_that_is_not_finite_gets_nan_and_the_others_do_not_notice(
    version, dtype, planes, value
):
    linear, x = some_linear(130, 45), normal(11, 130).to(dtype)
    linear.weight.data[7] = 0
    layer = Int8FastLinear.from_linear(linear, planes)
    clean = product(version, layer, x)
    for token in (0, 5, 10):
        spoilt = x.clone()
        spoilt[token, 129] = value
        y = product(version, layer, spoilt)
        others = torch.arange(11) != token
        assert y[token].isnan().all()
        same_bits(y[others], clean[others])


@EACH_DTYPE
@EITHER_PLANES
def test_a_tokens_output_does_not_depend_on_the_others(version, dtype, planes):
    layer, x = some_layer(130, 45, planes=planes), normal(15, 130).to(dtype)
    x[3] *= 500
    together = product(version, layer, x)
    alone = torch.cat([product(version, layer, row[None]) for row in x])
    order = torch.randperm(15, generator=torch.Generator().manual_seed(0))
    same_bits(together, alone)
    same_bits(product(version, layer, x[order]), together[order])


@EACH_DTYPE
@EITHER_PLANES
@pytest.mark.parametrize("tokens", [1, 13])
def test_any_number_of_threads_gives_the_same_bits(version, threads, dtype, planes, tokens):
    layer, x = some_layer(200, 330, planes=planes), normal(tokens, 200).to(dtype)
    threads(1)
    single = product(version, layer, x)
    for count in (2, 3, 5):
        threads(count)
        same_bits(product(version, layer, x), single)


@EACH_DTYPE
@pytest.mark.parametrize("shape", [(), (1,), (5,), (2, 3), (2, 1, 3), (0,), (2, 0), (0, 3)])
def test_any_batch_shape_keeps_dtype_and_input_and_has_no_gradient(version, dtype, shape):
    layer, x = some_layer(), normal(*shape, 70).to(dtype)
    before, y = x.clone(), product(version, layer, x.requires_grad_())
    assert y.shape == (*shape, 33) and y.dtype == dtype and not y.requires_grad
    assert torch.equal(x, before)
    same_bits(y.reshape(-1, 33), product(version, layer, x.detach().reshape(-1, 70)))


def test_what_lies_in_memory_in_another_order_gives_the_same(version):
    layer, x = some_layer(), normal(4, 6, 70)
    y = product(version, layer, x)
    turned = x.permute(2, 0, 1).contiguous().permute(1, 2, 0)
    wide = torch.stack([x, -x], -1)[..., 0]
    for other in (turned, wide, torch.cat([x, x], -1)[..., :70]):
        assert not other.is_contiguous()
        same_bits(product(version, layer, other), y)
    same_bits(product(version, layer, x[:, ::2]), y[:, ::2])
    repeated = x[:1, :1].expand(2, 3, 70)
    same_bits(product(version, layer, repeated), y[:1, :1].expand(2, 3, 33))


def test_weights_that_the_plain_path_restores_in_slices_give_the_same(monkeypatch):
    layer, x = some_layer(130, 200), normal(5, 130)
    whole = product(kernels.PYTORCH, layer, x)
    for size in (1, 4 * ROWS * 192, 2 * 4 * ROWS * 192):  # one block of rows, one, two
        monkeypatch.setattr(packing, "_SLICE_BYTES", size)
        same_bits(product(kernels.PYTORCH, layer, x), whole)


def test_an_outlier_coarsens_its_63_neighbours_and_no_others(version):
    linear = some_linear(2 * GROUP, 40, bias=False)
    x = normal(1, 2 * GROUP)
    x[0, 0] = 1000
    half = nn.Linear(GROUP, 40, bias=False)
    half.weight.data = linear.weight.data[:, GROUP:]
    calm = x.clone()
    calm[0, :GROUP] = 0
    y = product(version, Int8FastLinear.from_linear(linear), calm)
    error = (y - calm @ linear.weight.T).norm() / (calm @ linear.weight.T).norm()
    assert error < 0.02  # as if the outlier were not there: with its scale all would be zeros
    assert (product(version, Int8FastLinear.from_linear(linear), x) - y).abs().max() > 1


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_simulated_groups_are_what_the_kernel_computes(version, dtype):
    linear = some_linear(2 * GROUP, 40)
    x = normal(2, 3, 2 * GROUP)
    y = product(version, Int8FastLinear.from_linear(linear), x)
    twin = copy.deepcopy(linear).to(dtype)
    twin.weight.data = Int8FastLinear.from_linear(linear).dequantized().to(dtype)
    with simulated({"twin": twin}, Scheme(None, "group")), torch.no_grad():
        theirs = twin(x.to(dtype))
    torch.testing.assert_close(y, theirs.float(), rtol=1e-5, atol=1e-5)
    with simulated({"twin": twin}, Scheme("row", "row")), torch.no_grad():
        assert (twin(x.to(dtype)) - theirs).abs().max() > 1e-4  # groups are something else


# --- the layer --------------------------------------------------------------------------------


def test_a_layer_restores_its_codes_times_its_scales():
    linear = some_linear(70, 33)
    layer = Int8FastLinear.from_linear(linear)
    codes, scale = quantize_weight(linear.weight.detach())
    assert torch.equal(layer.codes(), codes)
    assert torch.equal(unpack_rows(layer.scale, 33), scale)
    steps = scale.float().repeat_interleave(GROUP, 1)[:, :70]
    assert torch.equal(layer.dequantized(), codes.float() * steps)
    assert torch.equal(layer.bias, linear.bias)
    assert repr(layer) == "Int8FastLinear(70, 33, bias=True, planes=1)"


@settings(max_examples=40, deadline=None)
@given(
    st.lists(st.tuples(st.integers(1, 40), st.booleans()), min_size=1, max_size=4),
    st.integers(1, 100),
    st.sampled_from(DTYPES),
    st.sampled_from([1, 2]),
)
def test_merged_layers_give_the_outputs_of_the_separate_ones(parts, inputs, dtype, planes):
    layers = [some_layer(inputs, M, bias=bias, seed=M, planes=planes) for M, bias in parts]
    merged, x = Int8FastLinear.merged(layers), normal(3, inputs).to(dtype)
    assert (merged.bias is None) == (not any(bias for _, bias in parts))
    for name in ("auto", kernels.PYTORCH):
        apart = torch.cat([product(name, layer, x) for layer in layers], -1)
        same_bits(product(name, merged, x), apart)


def test_layers_with_other_inputs_or_planes_cannot_be_merged():
    with refused(ValueError, "in_features", "[64, 70]"):
        Int8FastLinear.merged([some_layer(70, 3), some_layer(64, 3)])
    with refused(ValueError, "planes", "[1, 2]"):
        Int8FastLinear.merged([some_layer(70, 3), some_layer(70, 3, planes=2)])


@pytest.mark.parametrize(
    "cast",
    [nn.Module.half, nn.Module.bfloat16, nn.Module.double, lambda m: m.to("cpu", torch.bfloat16)],
)
@pytest.mark.parametrize("bias", [True, False])
def test_casting_the_module_leaves_scale_bias_and_codes_as_they_are(cast, bias):
    layer, x = some_layer(bias=bias), normal(3, 70)
    before, y = copy.deepcopy(layer), layer(x)
    other = cast(nn.Sequential(layer))[0]
    assert other.scale.dtype == torch.bfloat16 and other.weight.dtype == torch.uint8
    assert (other.bias is not None) == bias and (not bias or other.bias.dtype == torch.float32)
    assert other.state_dict().keys() == before.state_dict().keys()
    assert all(torch.equal(t, before.state_dict()[k]) for k, t in other.state_dict().items())
    same_bits(other(x), y)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_16_bit_layer_gives_a_bias_in_fp32(dtype):
    layer = Int8FastLinear.from_linear(some_linear().to(dtype))
    assert layer.scale.dtype == torch.bfloat16 and layer.bias.dtype == torch.float32


def test_a_layer_does_not_share_memory_with_its_origin():
    linear, x = some_linear(), normal(3, 70).bfloat16()
    layer = Int8FastLinear.from_linear(linear.bfloat16())
    y = layer(x)
    linear.weight.data.zero_(), linear.bias.data.zero_()
    same_bits(layer(x), y)


@pytest.mark.parametrize("bias", [True, False])
def test_state_dict_and_deepcopy_carry_all_that_the_output_needs(bias, tmp_path):
    layer, x = some_layer(bias=bias), normal(3, 70)
    assert set(layer.state_dict()) == {"weight", "scale"} | ({"bias"} if bias else set())
    torch.save(layer.state_dict(), tmp_path / "state")
    other, empty = some_layer(bias=bias, seed=9), Int8FastLinear.empty((33, 70), bias)
    assert not torch.equal(other(x), layer(x))
    other.load_state_dict(torch.load(tmp_path / "state"))
    empty.load_state_dict(torch.load(tmp_path / "state"), assign=True)
    for twin in (other, empty, copy.deepcopy(layer)):
        same_bits(twin(x), layer(x))


def test_a_layer_on_the_meta_device_has_the_shapes_of_the_real_one():
    for bias in (True, False):
        real = some_layer(bias=bias)
        meta = Int8FastLinear.from_linear(some_linear(bias=bias).to("meta"))
        assert {k: (t.shape, t.dtype) for k, t in meta.state_dict().items()} == {
            k: (t.shape, t.dtype) for k, t in real.state_dict().items()
        }
        assert all(tensor.is_meta for tensor in meta.state_dict().values())


def test_what_is_no_linear_layer_is_refused():
    for other in (nn.Embedding(4, 4), nn.Conv1d(3, 3, 1), some_layer()):
        with refused(TypeError, type(other).__name__, "nn.Linear"):
            Int8FastLinear.from_linear(other)
    linear = some_linear()
    linear.weight = nn.Parameter(torch.ones(33, 70, dtype=torch.int8), requires_grad=False)
    with refused(TypeError, "torch.int8"):
        Int8FastLinear.from_linear(linear)


def test_codes_of_another_shape_than_the_scales_and_inputs_say_are_refused():
    layer = some_layer()
    with refused(ValueError, "(2, 24, 32, 4)", "(2, 40, 32, 4)", "130 inputs"):
        Int8FastLinear(layer.weight, layer.scale, None, (33, 130))
    with refused(ValueError, "scale", "(1, 3, 32)", "(2, 3, 32)"):
        Int8FastLinear(layer.weight, layer.scale[:1], None, (33, 70))
    with refused(ValueError, "torch.int8", "uint8"):
        Int8FastLinear(layer.weight.char(), layer.scale, None, (33, 70))
    with refused(ValueError, "torch.float32", "bfloat16"):
        Int8FastLinear(layer.weight, layer.scale.float(), None, (33, 70))


@EACH_DTYPE
@pytest.mark.parametrize("tokens", [0, 1, 2, 3, 5, 9])
def test_two_planes_keep_what_rounding_left(version, tokens, dtype):
    """The same bits on every path, and an error far below one plane's."""
    linear, x = some_linear(3 * GROUP + 7, 50), normal(tokens, 3 * GROUP + 7).to(dtype)
    one, two = (Int8FastLinear.from_linear(linear, planes=planes) for planes in (1, 2))
    y = product(version, two, x)
    same_bits(y, product(kernels.PYTORCH, two, x))
    if tokens and dtype == torch.float32:
        exact_weights = x.double() @ two.dequantized().double().T + linear.bias.double()
        error, more = ((p - exact_weights).norm() for p in (y, product(version, one, x)))
        assert error < more / 50
    spoiled = normal(3, 3 * GROUP + 7)
    spoiled[1, 5] = NAN
    assert product(version, two, spoiled).isnan().any(1).tolist() == [False, True, False]


@pytest.mark.parametrize("dtype", [torch.float64, torch.int8, torch.int64, torch.bool])
def test_inputs_of_another_dtype_are_refused(version, dtype):
    with refused(TypeError, str(dtype)):
        product(version, some_layer(), torch.ones(2, 70, dtype=dtype))


@pytest.mark.parametrize("shape", [(), (69,), (2, 71), (70, 2), (2, 128)])
def test_inputs_of_another_width_are_refused(version, shape):
    with refused(ValueError, str(shape), "(..., 70)"):
        product(version, some_layer(), torch.ones(shape))


class Model(nn.Module):
    """An output layer that shares the embedding's table, as in many a LLaMA."""

    def __init__(self):
        super().__init__()
        self.embed_tokens = nn.Embedding(9, 8)
        self.inner = nn.Sequential(nn.Linear(8, 8), nn.SiLU(), nn.Linear(8, 8, False))
        self.lm_head = nn.Linear(8, 9, bias=False)
        self.lm_head.weight = self.embed_tokens.weight

    def forward(self, tokens):
        return self.lm_head(self.inner(self.embed_tokens(tokens)))


def test_replacing_takes_the_output_layer_too_and_leaves_the_embedding():
    model = Model()
    table, before = model.embed_tokens.weight, model.embed_tokens.weight.clone()
    origin = copy.deepcopy(model)
    assert replace_layers(model) is model
    kinds = [type(m) for m in (model.inner[0], model.inner[2], model.lm_head)]
    assert kinds == [Int8FastLinear] * 3
    assert model.embed_tokens.weight is table and torch.equal(table, before)
    assert torch.equal(model.lm_head.codes(), quantize_weight(before)[0])
    tokens = torch.arange(9)
    torch.testing.assert_close(model(tokens), origin(tokens), rtol=0.1, atol=0.02)


def test_replacing_leaves_what_is_skipped_and_makes_what_is_asked_for():
    model = replace_layers(Model(), skip=["lm_head"])
    assert type(model.lm_head) is nn.Linear and type(model.inner[0]) is Int8FastLinear
    assert (
        type(replace_layers(Model(), make=lambda _, x: VectorwiseLinear(x)).lm_head)
        is VectorwiseLinear
    )


@pytest.mark.parametrize("training", [True, False])
def test_replacing_leaves_the_model_in_its_mode(training):
    model = replace_layers(Model().train(training))
    assert {module.training for module in model.modules()} == {training}


def test_two_planes_are_for_the_output_layer_alone():
    names = ["lm_head", "model.lm_head", "q_proj", "model.layers.0.mlp.down_proj"]
    assert [fast_linear(name, some_linear()).planes for name in names] == [2, 2, 1, 1]


def test_replacing_where_there_is_nothing_to_replace_is_refused():
    with refused(ValueError, "Int8FastLinear.from_linear"):
        replace_layers(some_linear())
    with refused(ValueError, "no linear layer"):
        replace_layers(nn.Sequential(nn.SiLU()))


# --- which code runs --------------------------------------------------------------------------


@pytest.fixture
def fresh(monkeypatch):
    """Nothing chosen yet and nothing asked for, before and after."""
    monkeypatch.delenv(kernels.CHOICE, raising=False)
    kernels._choose.cache_clear()
    yield monkeypatch
    kernels._choose.cache_clear()


@pytest.fixture
def able(fresh):
    """A machine that looks able to run every version, whatever it is."""
    every = frozenset(itertools.chain(*(v.features for v in kernels.VERSIONS.values())))
    fresh.setattr(platform, "machine", lambda: "x86_64")
    fresh.setattr(kernels, "cpu_features", lambda: every)
    return fresh


def falls_back(*words):
    """PyTorch runs and the reason has these words; a version asked for by name says so, too."""
    choice = kernels.chosen()
    assert choice.name == "PyTorch" and choice.library is None
    assert all(word in choice.reason for word in (*words, *COMPILED)), choice.reason
    layer, x = some_layer(), normal(3, 70)
    same_bits(layer(x), product(kernels.PYTORCH, layer, x))
    for name in COMPILED:
        with refused(RuntimeError, repr(name), *words), kernels.using(name):
            raise AssertionError


def test_a_name_in_the_environment_decides(fresh, version):
    fresh.setenv(kernels.CHOICE, version)
    choice = kernels.chosen()
    assert choice.name == NAMES[version] and (choice.library is None) == (version == "pytorch")
    assert (kernels.CHOICE in choice.reason) == (version == "pytorch")


def test_without_a_name_the_fastest_runs_and_the_reason_says_why_no_faster_one(fresh):
    choice = kernels.chosen()
    fresh.setenv(kernels.CHOICE, "auto")
    assert kernels.chosen() is choice
    for name, label in NAMES.items():
        if choice.name == label:
            break
        assert f"{name}: " in choice.reason
    assert (choice.reason == "") == (choice.name == "AVX-512 VNNI")


def test_an_unknown_name_lists_the_known_ones(fresh):
    fresh.setenv(kernels.CHOICE, "sse2")
    for call in (kernels.chosen, lambda: some_layer()(normal(2, 70))):
        with refused(ValueError, "'sse2'", "auto", "vnni", "avx2", "pytorch"):
            call()


def test_using_restores_what_was_asked_for_before(fresh):
    with kernels.using("pytorch"):
        with pytest.raises(ValueError), kernels.using("sse2"):
            pass
        assert os.environ[kernels.CHOICE] == "pytorch"
    assert kernels.CHOICE not in os.environ
    with pytest.raises(KeyError), kernels.using("pytorch"):
        raise KeyError
    assert kernels.CHOICE not in os.environ


def test_without_a_compiler_pytorch_runs(able):
    able.setattr(shutil, "which", lambda _: None)
    falls_back("no C++ compiler", "g++")


def test_on_a_processor_of_another_kind_pytorch_runs_and_names_it(fresh):
    fresh.setattr(platform, "machine", lambda: "riscv64")
    choice = kernels.chosen()
    assert choice.name == "PyTorch" and "riscv64" in choice.reason
    for name in (*COMPILED, "neon"):
        with refused(RuntimeError, repr(name), "riscv64"), kernels.using(name):
            raise AssertionError


@pytest.mark.skipif(platform.machine() != "x86_64", reason="names what another processor lacks")
def test_the_version_for_arm_is_refused_on_x86_and_tried_on_arm(fresh):
    with refused(RuntimeError, "'neon'", "not an ARM", "x86_64"), kernels.using("neon"):
        raise AssertionError
    fresh.setattr(platform, "machine", lambda: "arm64")
    fresh.setattr(kernels, "cpu_features", lambda: frozenset({"asimd"}))
    kernels._choose.cache_clear()
    choice = kernels.chosen()
    assert choice.name == "PyTorch" and choice.reason == "neon: the CPU lacks asimddp"


def test_a_cpu_without_avx2_runs_pytorch(able):
    able.setattr(kernels, "cpu_features", lambda: frozenset({"sse4_2"}))
    falls_back("the CPU lacks avx")


def test_what_the_system_does_not_tell_is_not_called_lacking(able):
    able.setattr(sys, "platform", "win32")
    able.setattr(platform, "system", lambda: "Windows")
    unknown = Processor("", None, None, {}, {"avx512f": False, "avx2": True})
    able.setattr(kernels, "processor", lambda: unknown)
    assert CPU_FEATURES() == {"avx2", "fma"}
    able.setattr(kernels, "cpu_features", lambda: frozenset({"avx2"}))
    reasons = dict(part.split(": ") for part in kernels.chosen().reason.split("; "))
    assert reasons == {
        "vnni": "the CPU lacks avx512f",
        "avxvnni": "Windows does not tell whether the CPU has fma",
        "avx2": "Windows does not tell whether the CPU has fma",
    }


def test_a_cpu_without_vnni_runs_avx2(fresh):
    available("avx2")
    features = kernels.cpu_features() - {"avx512_vnni", "avx_vnni"}
    fresh.setattr(kernels, "cpu_features", lambda: features)
    kernels._choose.cache_clear()
    choice = kernels.chosen()
    assert choice.name == "AVX2" and choice.reason.startswith("vnni: the CPU lacks avx512")
    with refused(RuntimeError, "'vnni'", "lacks avx512"), kernels.using("vnni"):
        pass


def compiler(folder, body):
    """A program `g++` in `folder` that answers --version and else runs `body`."""
    path = folder / "g++"
    path.write_text(f'#!/bin/sh\n[ "$1" = --version ] && exec echo "g++ 1"\n{body}\n')
    path.chmod(0o755)
    return path


needs_shell = pytest.mark.skipif(os.name != "posix", reason="the compiler here is a shell script")


@needs_shell
def test_a_compiler_that_fails_is_quoted_and_pytorch_runs(able, tmp_path):
    path = compiler(tmp_path, 'echo "note: x" >&2; echo "k.cpp:1: error: no omp.h" >&2; exit 1')
    able.setattr(shutil, "which", lambda _: str(path))
    able.setenv("LLAMA_INT8_CACHE", str(tmp_path / "cache"))
    falls_back("g++ could not compile it (k.cpp:1: error: no omp.h)")
    assert not list((tmp_path / "cache" / "kernels").iterdir())  # no half of a library is left


@needs_shell
def test_a_library_that_cannot_be_loaded_is_named_and_pytorch_runs(able, tmp_path):
    path = compiler(tmp_path, 'while [ "$1" != -o ]; do shift; done; echo nonsense > "$2"')
    able.setattr(shutil, "which", lambda _: str(path))
    able.setenv("LLAMA_INT8_CACHE", str(tmp_path / "cache"))
    falls_back("g++ could not compile it", "kernel.so")


@needs_shell
def test_a_kernel_is_compiled_once_and_found_again(fresh, tmp_path, compiled):
    with kernels.using(compiled) as choice:
        ready = Path(choice.library._name)
    log = tmp_path / "log"
    body = f'echo "$@" >> {log}; while [ "$1" != -o ]; do shift; done; cp {ready} "$2"'
    path = compiler(tmp_path, body)
    fresh.setattr(shutil, "which", lambda _: str(path))
    fresh.setenv("LLAMA_INT8_CACHE", str(tmp_path / "cache"))
    for _ in range(3):
        kernels._choose.cache_clear()
        with kernels.using(compiled) as choice:
            assert tmp_path in Path(choice.library._name).parents
    (call,) = log.read_text().splitlines()
    assert "-ffp-contract=off" in call and "kernel.cpp" in call
    compiler(tmp_path, f"# another version\n{body}".replace("g++ 1", "g++ 2"))
    path.write_text(path.read_text().replace("g++ 1", "g++ 2"))
    kernels._choose.cache_clear()
    with kernels.using(compiled):
        assert len(log.read_text().splitlines()) == 2  # another compiler, another library


@pytest.mark.parametrize(
    ("struct", "change"),
    [
        ("LinearStruct", lambda fields: [*fields, ("planes_too", ctypes.c_int64)]),
        ("LayerStruct", lambda fields: fields[:-1]),
        ("ModelStruct", lambda fields: [*fields[:4], fields[5], fields[4], *fields[6:]]),
        ("ModelStruct", lambda fields: [*fields[:7], ("layer_count", ctypes.c_int32), *fields[8:]]),
    ],
    ids=["one more", "one less", "cos and sin exchanged", "a narrower number"],
)
def test_a_struct_unlike_the_one_in_the_kernel_is_refused(fresh, compiled, struct, change):
    fields = change(list(getattr(kernels, struct)._fields_))
    changed = type(struct, (ctypes.Structure,), {"_fields_": tuple(fields)})
    fresh.setattr(kernels, struct, changed)
    kernels._choose.cache_clear()
    with refused(TypeError, struct, "kernel.cpp", "make the two equal"), kernels.using(compiled):
        pass


@pytest.mark.slow  # compiles
def test_a_kernel_compiled_anew_gives_the_same_bits(fresh, tmp_path, compiled):
    fresh.setenv("LLAMA_INT8_CACHE", str(tmp_path))
    kernels._choose.cache_clear()
    layer, x = some_layer(), normal(9, 70)
    same_bits(product(compiled, layer, x), product(kernels.PYTORCH, layer, x))
    assert len(list((tmp_path / "kernels").glob("*/kernel.so"))) == 1


# --- the usual ways ---------------------------------------------------------------------------


@EACH_DTYPE
@pytest.mark.parametrize("shape", [(1,), (5,), (2, 3), (2, 0, 3)])
def test_vectorwise_is_the_float_product_of_its_dequantized_operands(dtype, shape):
    linear, x = some_linear(70, 33, bias=False), normal(*shape, 70).to(dtype)
    y = VectorwiseLinear(linear)(x)
    codes, scale = by_definition(linear.weight.detach().double().numpy())
    W = torch.tensor(codes * scale[:, None].astype(float))
    rows = x.reshape(-1, 70).double()
    step = rows.abs().amax(1, keepdim=True) / 127
    wanted = ((rows / step).round() * step) @ W.T
    assert y.dtype == dtype and y.shape == (*shape, 33)
    torch.testing.assert_close(
        y.reshape(-1, 33).double(), wanted, rtol=1.01 * UNIT[dtype], atol=1e-5
    )


def test_vectorwise_tokens_and_rows_of_zeros_give_zeros():
    linear, x = some_linear(70, 33, bias=False), normal(4, 70)
    linear.weight.data[5], x[2] = 0, 0
    y = VectorwiseLinear(linear)(x)
    assert y.isfinite().all() and y[2].count_nonzero() == 0 and y[:, 5].count_nonzero() == 0


@pytest.mark.parametrize("tokens", [1, 16, 17, 40])  # either side of where the way changes
@pytest.mark.parametrize("outputs", [32, 33, 7])
def test_weight_only_is_the_float_product_of_the_input_with_its_dequantized_weights(
    tokens, outputs
):
    linear, x = some_linear(96, outputs, bias=False), normal(tokens, 96).bfloat16()
    layer = WeightOnlyLinear.from_linear(linear)
    by_row = absmax_quantize(linear.weight.detach(), granularity="row")
    W = by_row.codes.double() * by_row.scale.bfloat16().double()
    y, wanted = layer(x), x.double() @ W.T
    size = x.double().abs() @ W.abs().T
    assert y.dtype == torch.bfloat16 and y.shape == (tokens, outputs)
    bound = 2**-8 * wanted.abs() + (2**-8 if tokens > 16 else 2**-20) * size  # weights in bf16
    assert ((y.double() - wanted).abs() <= 1.01 * bound).all()
    assert torch.equal(layer(x.view(tokens, 1, 96)), y.view(tokens, 1, outputs))


@pytest.mark.parametrize("tokens", [1, 16, 17])
@pytest.mark.parametrize("inputs", [96, 70])  # 70: no multiple of what PyTorch's kernel reads
def test_weight_only_takes_any_number_of_inputs_and_adds_the_bias(tokens, inputs):
    linear, x = some_linear(inputs, 33), normal(tokens, inputs).bfloat16()
    linear.bias.data *= 50  # to lose it would show
    by_row = absmax_quantize(linear.weight.detach(), granularity="row")
    W = by_row.codes.double() * by_row.scale.bfloat16().double()
    wanted = x.double() @ W.T + linear.bias.double()
    y = WeightOnlyLinear.from_linear(linear)(x).double()
    bound = 2**-7 * (x.double().abs() @ W.abs().T + linear.bias.double().abs())
    assert ((y - wanted).abs() <= bound).all()


@pytest.mark.parametrize("shape", [(1, 8, 4), (7, 33, 5), (3, 1, 1)])
def test_what_lesson_10_shows_as_w8a8_is_the_packages(shape):
    tokens, inputs, outputs = shape
    x = torch.randn(tokens, inputs)
    x[0] = 0.0
    codes = torch.randint(-127, 128, (outputs, inputs), dtype=torch.int8)
    scale = torch.rand(outputs)
    assert torch.equal(exercises.w8a8(x, codes, scale), vectorwise.w8a8(x, codes, scale))


def test_a_layer_calls_the_product_that_it_is_given():
    linear, calls = torch.nn.Linear(8, 4), []

    def own(x, codes, scale):
        calls.append(x.shape)
        return vectorwise.w8a8(x, codes, scale)

    x = torch.randn(2, 3, 8)
    assert torch.equal(VectorwiseLinear(linear, own)(x), VectorwiseLinear(linear)(x))
    assert calls == [(6, 8)]


def test_vectorwise_adds_the_bias():
    linear, x = some_linear(70, 33), normal(5, 70)
    with_bias = VectorwiseLinear(linear)(x)
    linear.bias, bias = None, linear.bias.detach()
    torch.testing.assert_close(with_bias, VectorwiseLinear(linear)(x) + bias)


def is_float_product(y, x, W, bias):
    """Whether y is x W^T + bias up to the rounding of FP32 sums and of y's own format. W: (M, K)."""
    wanted = x.double() @ W.T + bias.double()
    sums = W.shape[1] * 2**-23 * (x.double().abs() @ W.abs().T + 1)
    assert y.dtype == x.dtype and y.shape == wanted.shape
    assert ((y.double() - wanted).abs() <= UNIT[x.dtype] * wanted.abs() + sums).all()


@EACH_DTYPE
@pytest.mark.parametrize("tokens", [0, 1, 2, 3, 7, 13, 40])
@pytest.mark.parametrize("shape", [(1, 1), (70, 33), (64, 32), (200, 77)])
def test_the_16_bit_layer_is_the_float_product_of_its_rounded_weights(
    version, dtype, tokens, shape
):
    linear, x = some_linear(*shape), normal(tokens, shape[0]).to(dtype)
    W = linear.weight.detach().bfloat16().double()
    layer = KernelBf16Linear.from_linear(linear)
    assert torch.equal(layer.rows().double(), W)
    with kernels.using(version):
        y = layer(x)
        rounded = x.bfloat16().to(dtype) if kernels.multiplies_bf16() else x
    is_float_product(y, rounded, W, linear.bias)


def test_16_bit_weights_are_read_two_neighbouring_inputs_of_32_outputs_at_a_time():
    weight = torch.arange(33.0 * 70).view(33, 70).bfloat16()
    packed = pack_pairs(weight)
    assert packed.shape == (2, 48, 32, 2) and packed.is_contiguous()
    assert torch.equal(unpack_pairs(packed, 33, 70), weight)
    for output, feature in ((0, 0), (31, 1), (32, 69), (7, 68)):
        found = packed[output // 32, feature // 2, output % 32, feature % 2]
        assert found == weight[output, feature]
    assert packed[0, 35:].count_nonzero() == packed[1, :, 1:].count_nonzero() == 0


def test_bf16_has_an_instruction_where_the_processor_says_so():
    for version in kernels.VERSIONS:
        if not kernels.refusal(version):
            with kernels.using(version):
                there = version == "vnni" and "avx512_bf16" in kernels.cpu_features()
                assert kernels.multiplies_bf16() == there
    with kernels.using(kernels.PYTORCH):
        assert not kernels.multiplies_bf16()


def test_a_16_bit_layer_keeps_huge_values_and_a_tokens_nan_to_the_token(version):
    x = normal(5, 70)
    x[1], x[2, 3] = 1e30, math.nan
    with kernels.using(version):
        y = KernelBf16Linear.from_linear(some_linear())(x)
    assert y[2].isnan().all() and y[[0, 1, 3, 4]].isfinite().all() and y[1].abs().max() > 1e29


def test_merged_16_bit_layers_give_the_outputs_of_each_one_after_another(version):
    layers = [some_linear(70, outputs, seed=outputs) for outputs in (33, 7, 32)]
    parts, x = [KernelBf16Linear.from_linear(one) for one in layers], normal(3, 70)
    with kernels.using(version):
        whole = KernelBf16Linear.merged(parts)(x)
        each = torch.cat([part(x) for part in parts], 1)
    torch.testing.assert_close(whole, each, rtol=1e-6, atol=1e-6)
    with refused(ValueError, "bias"):
        KernelBf16Linear.merged(
            [parts[0], KernelBf16Linear.from_linear(some_linear(70, 5, bias=False))]
        )


@EACH_DTYPE
@pytest.mark.parametrize("tokens", [0, 1, 2, 3, 7, 13, 40])
@pytest.mark.parametrize("shape", [(1, 1), (70, 33), (64, 32), (200, 77)])
def test_the_weights_only_layer_is_the_float_product_of_its_codes(version, dtype, tokens, shape):
    linear, x = some_linear(*shape), normal(tokens, shape[0]).to(dtype)
    layer = KernelWeightOnlyLinear.from_linear(linear)
    assert torch.equal(layer.codes(), Int8FastLinear.from_linear(linear).codes())
    W = layer.dequantized().double()
    with kernels.using(version):
        y = layer(x)
    is_float_product(y, x, W, linear.bias)


def test_a_weights_only_layer_keeps_huge_values_and_a_tokens_nan_to_the_token(version):
    x = normal(5, 70)
    x[1], x[2, 3] = 1e30, math.nan
    with kernels.using(version):
        y = KernelWeightOnlyLinear.from_linear(some_linear())(x)
    assert y[2].isnan().all() and y[[0, 1, 3, 4]].isfinite().all() and y[1].abs().max() > 1e29


def test_merged_weights_only_layers_give_the_outputs_of_each_and_lend_it_their_memory(version):
    layers = [some_linear(70, outputs, seed=outputs) for outputs in (64, 32)]
    parts, x = [KernelWeightOnlyLinear.from_linear(one) for one in layers], normal(3, 70)
    whole = KernelWeightOnlyLinear.merged(parts)
    assert type(whole) is KernelWeightOnlyLinear
    assert parts[0].weight.data_ptr() == whole.weight.data_ptr()
    with kernels.using(version):
        torch.testing.assert_close(whole(x), torch.cat([part(x) for part in parts], 1))


@pytest.mark.parametrize("device", ["meta"])
def test_tensors_that_are_not_on_a_cpu_are_refused(device):
    layer = Int8FastLinear.from_linear(some_linear())
    with refused(ValueError, "input is on meta"):
        layer(normal(2, 70).to(device))
    with refused(ValueError, "layer on meta"):
        layer.to(device)(normal(2, 70))


# --- the ceiling ------------------------------------------------------------------------------


@pytest.mark.parametrize("streams", kernels.STREAMS)
@pytest.mark.parametrize("lines", [0, 1, 5, 8, 1000, 4099])
def test_reading_memory_reads_all_of_it_once(compiled, threads, lines, streams):
    data = torch.randint(-(2**63), 2**63 - 1, (lines * 8,))
    with np.errstate(over="ignore"):
        expected = int(data.numpy().view(np.uint64).sum(dtype=np.uint64))
    for count in (1, 2, 3):
        threads(count)
        with kernels.using(compiled):
            library = kernels.chosen().library
        assert kernels.sum_memory(library, data, streams) == expected


def test_memory_that_is_not_whole_lines_is_refused():
    for data in (torch.ones(9, dtype=torch.int64), torch.ones(17, dtype=torch.int64)[1:]):
        with refused(ValueError, f"{data.nbytes} bytes", "whole cache lines"):
            kernels.sum_memory(None, data, 1)
