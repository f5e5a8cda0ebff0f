"""8-bit codes and their products: against the mathematics in float64, PyTorch and bitsandbytes."""

import math
import re
from functools import partial
from types import SimpleNamespace

import bitsandbytes as bnb
import helpers
import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from tiny_llama import tiny_llama

from llama_int8.evaluation.perplexity import token_nll
from llama_int8.lessons.n06 import exercises as shown
from llama_int8.lessons.n06 import measurements
from llama_int8.lessons.n06.grids import shifted, turn, turned
from llama_int8.lessons.n06.measurements import (
    FEW_BITS,
    Scheme,
    at_bits,
    blame_for_clip,
    clip_schemes,
    input_of,
    losses,
    on_turned_weights,
    record_turned,
    rounded_weights,
    window_nll,
    zeros_at_entrances,
)
from llama_int8.models import MODELS
from llama_int8.quantization import matmul
from llama_int8.quantization.linear_layers import linear_layers
from llama_int8.quantization.matmul import LARGEST_INNER, in_exact_pieces, int8_matmul
from llama_int8.quantization.quantize import (
    absmax_quantize,
    dequantize,
    quantized_matmul,
    signal_to_noise,
    zeropoint_quantize,
)

INF, NAN = float("inf"), float("nan")
INNER_OF_THE_MODELS = max(K for m in MODELS.values() for _, K in m.config.linear_shapes().values())
PROPERTY = settings(max_examples=150, deadline=None)
EITHER = pytest.mark.parametrize("quantize", [absmax_quantize, zeropoint_quantize])
FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
ORDINARY = {
    "normal": lambda x: x,
    "with an outlier": lambda x: x * torch.where(x == x.max(), 60, 1),
    "positive": lambda x: x.abs() + 1,
    "negative": lambda x: -x.abs() - 1,
    "powers of two": lambda x: x.sign() * 2.0 ** (2 * x).round(),
    "some zeros": lambda x: x.relu(),
}
LAYOUTS = {
    "contiguous": lambda x: x,
    "transposed": lambda x: x.transpose(0, -1).contiguous().transpose(0, -1),
    "strided": lambda x: torch.stack([x, x + 1], -1)[..., 0],
}


normal = partial(helpers.normal, dtype=torch.float64)


def some_codes(*shape, seed=0):
    return torch.randint(-128, 128, shape, generator=torch.Generator().manual_seed(seed)).char()


def same(ours, theirs):
    torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=0)


def exact_product(a, b):
    return (a.double() @ b.double().T).int()


def extreme(x, dtype):
    huge = {torch.float16: 6e4, torch.float64: 1e308}.get(dtype, 3e38)
    return {
        "zeros": x * 0,
        "huge": huge * x.sign() * (x.abs() > 0.3),
        "huge and small": torch.where(x > 1, huge, x),
        "subnormal": (20 * x).round() * torch.finfo(dtype).smallest_normal / 64,
    }


@st.composite
def cases(draw, dtypes=FLOATS, kinds=(*ORDINARY, "zeros", "huge", "huge and small", "subnormal")):
    """Values of 1 to 4 dimensions, contiguous or not, and how many bits and what blocks they get."""
    shape = draw(st.lists(st.integers(1, 6), min_size=1, max_size=4))
    dtype, kind = draw(st.sampled_from(dtypes)), draw(st.sampled_from(kinds))
    x = normal(*shape, seed=draw(st.integers(0, 10**6)))
    x = ORDINARY[kind](x) if kind in ORDINARY else extreme(x, dtype)[kind]
    x = LAYOUTS[draw(st.sampled_from(sorted(LAYOUTS)))](x.to(dtype))
    known = ["tensor", "row", "group"] + ["column"] * (len(shape) > 1)
    options = {"bits": draw(st.integers(2, 8)), "granularity": draw(st.sampled_from(known))}
    if options["granularity"] == "group":
        sizes = [n for n in range(1, shape[-1] + 1) if shape[-1] % n == 0]
        options["group_size"] = draw(st.sampled_from(sizes))
    return x, options


def blocks(x, granularity="tensor", group_size=None, bits=None):
    """Each block as a row of float64 numbers."""
    if granularity == "column":
        return x.double().reshape(-1, x.shape[-1]).T
    size = {"tensor": x.numel(), "row": x.shape[-1], "group": group_size}[granularity]
    return x.double().reshape(-1, size)


def scale_shape(shape, granularity, group_size=None, bits=None):
    *rows, columns = shape
    if granularity == "group":
        return (*rows, columns // group_size, 1)
    ones = (1,) * len(rows)
    return {"tensor": (*ones, 1), "row": (*rows, 1), "column": (*ones, columns)}[granularity]


def restored_blocks(quantized, options):
    """(code - zero point) * scale in float64."""
    distance = blocks(quantized.codes, **options) - quantized.zero_point.reshape(-1, 1)
    return distance * quantized.scale.double().reshape(-1, 1)


def check(quantized, dtype, values, step, options):
    """Formats and shapes; and each value (a row a block) restored to half a step and rounding."""
    codes, scale, zero_point = quantized.codes, quantized.scale, quantized.zero_point
    assert codes.dtype == torch.int8 and zero_point.dtype == torch.int32
    assert scale.dtype == torch.promote_types(dtype, torch.float32)
    assert scale.shape == zero_point.shape == scale_shape(codes.shape, **options)
    rounding, levels = torch.finfo(scale.dtype).eps, 2 ** options["bits"]
    underflow = 2 * torch.finfo(scale.dtype).smallest_normal * rounding  # of the scale
    allowed = 4 * rounding * step + underflow
    assert ((scale.reshape(-1, 1) - step).abs() <= allowed).all()
    restored = restored_blocks(quantized, options)
    assert ((restored - values).abs() <= step / 2 + levels * allowed).all()
    ours = dequantize(quantized)
    assert ours.dtype == scale.dtype and ours.shape == codes.shape
    assert torch.equal(blocks(ours, **options), restored.to(scale.dtype).double())


# --- a value and its code ---------------------------------------------------------------------


@PROPERTY
@given(cases(), st.sampled_from([None, None, 1e-3, 0.3, 1.0, 2.0**4]))
def test_absmax_is_off_by_half_a_step_and_a_clipped_value_lands_on_the_clip(case, clip):
    x, options = case
    top, values = 2 ** (options["bits"] - 1) - 1, blocks(x, **options)
    cut = values if clip is None else values.clamp(-clip, clip)
    quantized = absmax_quantize(x, clip=clip, **options)
    check(quantized, x.dtype, cut, cut.abs().amax(1, keepdim=True) / top, options)
    assert quantized.codes.int().abs().max() <= top and not quantized.zero_point.any()
    beyond = values.abs() >= (clip or INF)
    assert (blocks(quantized.codes, **options) == values.sign() * top)[beyond].all()
    same(restored_blocks(quantized, options)[beyond], cut[beyond])


@PROPERTY
@given(cases())
def test_zero_point_is_off_by_half_a_step_and_keeps_zeros(case):
    x, options = case
    half, values = 2 ** (options["bits"] - 1), blocks(x, **options)
    low, high = (f(values, 1, keepdim=True) for f in (torch.amin, torch.amax))
    quantized = zeropoint_quantize(x, **options)
    step = high.clamp(min=0) / (2 * half - 1) - low.clamp(max=0) / (2 * half - 1)
    check(quantized, x.dtype, values, step, options)
    for codes in (quantized.codes.int(), quantized.zero_point):
        assert -half <= codes.min() and codes.max() < half
    assert (dequantize(quantized)[x == 0] == 0).all()


def test_integers_of_the_full_range_are_their_own_codes_and_ties_go_to_even():
    for bits, top in enumerate([1, 3, 7, 15, 31, 63, 127], 2):
        for quantize, low in ((absmax_quantize, -top), (zeropoint_quantize, -top - 1)):
            quantized = quantize(torch.arange(low, top + 1.0), bits)
            assert quantized.codes.tolist() == list(range(low, top + 1))
            assert quantized.scale == 1 and quantized.zero_point == 0
    ties = torch.tensor([-127, 128, 0.5, 1.5, 2.5, -0.5, -1.5])
    assert absmax_quantize(ties, clip=127).codes.tolist() == [-127, 127, 0, 2, 2, 0, -2]
    assert zeropoint_quantize(ties).codes.tolist() == [-128, 127, -1, 1, 1, -1, -3]


@EITHER
def test_a_row_of_zeros_stays_zeros_beside_others(quantize):
    quantized = quantize(torch.tensor([[0.0, 0.0], [-1.0, 3.0]]), granularity="row")
    assert quantized.scale[0] == 0 and (quantized.codes[0] == quantized.zero_point[0]).all()
    assert (dequantize(quantized)[0] == 0).all() and dequantize(quantized)[1].all()


@pytest.mark.parametrize("value", [2.5, -2.5])
@pytest.mark.parametrize("shape", [(3, 4), (1,), ()])
def test_equal_values_stay_what_they_are(value, shape):
    x = torch.full(shape, value)
    absmax, zeropoint = absmax_quantize(x), zeropoint_quantize(x)
    assert (absmax.codes == math.copysign(127, value)).all() and absmax.codes.shape == shape
    assert (zeropoint.codes == (127 if value > 0 else -128)).all()
    for quantized in (absmax, zeropoint):
        same(dequantize(quantized), x)


# --- what a change of the values does to the codes --------------------------------------------


@EITHER
@PROPERTY
@given(case=cases(FLOATS[2:], tuple(ORDINARY)), k=st.integers(-60, 60))
def test_a_power_of_two_scales_the_scale_alone(quantize, case, k):
    x, options = case
    one, other = quantize(x, **options), quantize(x * 2.0**k, **options)
    assert torch.equal(one.codes, other.codes) and torch.equal(one.zero_point, other.zero_point)
    assert torch.equal(one.scale * 2.0**k, other.scale)


@PROPERTY
@given(cases())
def test_absmax_codes_change_sign_with_the_values(case):
    x, options = case
    one, other = absmax_quantize(x, **options), absmax_quantize(-x, **options)
    assert torch.equal(one.codes, -other.codes) and torch.equal(one.scale, other.scale)


@EITHER
@PROPERTY
@given(case=cases(), data=st.data())
def test_codes_move_with_their_values(quantize, case, data):
    x, options = case
    assume(options["granularity"] != "group")
    dim = data.draw(st.integers(0, x.dim() - 1))
    order = torch.tensor(data.draw(st.permutations(range(x.shape[dim]))))
    one, other = quantize(x, **options), quantize(x.index_select(dim, order), **options)
    assert torch.equal(one.codes.index_select(dim, order), other.codes)
    moved = one.scale.expand(x.shape).index_select(dim, order)
    assert torch.equal(moved, other.scale.expand(x.shape))


@EITHER
@PROPERTY
@given(case=cases(kinds=tuple(ORDINARY)))
def test_what_was_restored_gets_the_same_codes_again(quantize, case):
    x, options = case
    first = quantize(x, **options)
    if quantize is zeropoint_quantize:  # ties at both ends may leave an end of the range unused
        zero = first.zero_point.reshape(-1, 1)
        used = torch.cat([blocks(first.codes, **options), zero], 1)[first.scale.flatten() > 0]
        assume((used.amax(1) - used.amin(1) == 2 ** options["bits"] - 1).all())
    again = quantize(dequantize(first), **options)
    assert torch.equal(first.codes, again.codes)
    same(first.scale, again.scale)


@EITHER
@PROPERTY
@given(case=cases())
def test_every_granularity_is_that_of_a_tensor_on_each_block(quantize, case):
    x, options = case
    codes = blocks(quantize(x, **options).codes, **options)
    for block, expected in zip(blocks(x, **options), codes, strict=True):
        assert torch.equal(quantize(block.to(x.dtype), options["bits"]).codes, expected.char())
    row, whole = quantize(x, 8, "row"), quantize(x, 8, "group", x.shape[-1])
    assert torch.equal(row.codes, whole.codes) and torch.equal(row.scale, whole.scale.squeeze(-2))


# --- against PyTorch and bitsandbytes ---------------------------------------------------------


@pytest.mark.parametrize("shift", [0.0, 2.0, -7.0])
def test_zero_point_restores_what_pytorch_restores(shift):
    x = normal(200, 40, dtype=torch.float32) + shift
    ours = zeropoint_quantize(x)
    scale, zero_point = ours.scale.item(), ours.zero_point.item()
    tie = ((x.double() / scale) % 1 - 0.5).abs() < 1e-4
    theirs = torch.fake_quantize_per_tensor_affine(x, scale, zero_point, -128, 127)
    same(dequantize(ours)[~tie], theirs[~tie])


@PROPERTY
@given(cases(FLOATS[:1], ("normal", "with an outlier", "huge", "powers of two")))
def test_absmax_codes_of_rows_are_those_of_bitsandbytes(case):
    x = blocks(case[0], "row").half()
    theirs, absmax, _ = bnb.functional.int8_vectorwise_quant(x)
    ours = absmax_quantize(x, granularity="row")
    same(ours.scale[:, 0] * 127, absmax)
    shares = x.double() / absmax.double().clamp(min=1e-9)[:, None]
    tie = ((127 * shares) % 1 - 0.5).abs() < 1e-4
    assert torch.equal(ours.codes[~tie], theirs[~tie])
    assert ((ours.codes.int() - theirs).abs() <= 1).all()


# --- products ---------------------------------------------------------------------------------


@pytest.mark.parametrize("bits", range(2, 9))
@pytest.mark.parametrize("of_a", ["row", "tensor"])
@pytest.mark.parametrize("of_b", ["row", "tensor"])
@pytest.mark.parametrize("left", [absmax_quantize, zeropoint_quantize])
@pytest.mark.parametrize("right", [absmax_quantize, zeropoint_quantize])
def test_a_product_of_codes_is_the_product_of_the_restored(left, right, of_a, of_b, bits):
    for M, K, N in [(1, 1, 1), (2, 1, 3), (5, 37, 1), (1, 1500, 7)]:
        a = left(normal(M, K, dtype=torch.float32) + 0.8, bits, of_a)
        b = right(normal(N, K, seed=1, dtype=torch.float32) - 1.3, bits, of_b)
        x, y = ((f.codes.double() - f.zero_point) * f.scale.double() for f in (a, b))
        product = quantized_matmul(a, b)
        assert product.dtype == torch.float32 and product.shape == (M, N)
        assert ((product - x @ y.T).abs() <= 1e-6 * (x.abs() @ y.abs().T)).all()


def test_each_zero_point_needs_its_term():
    a = zeropoint_quantize(normal(4, 50) + 0.8, granularity="row")
    b = zeropoint_quantize(normal(3, 50, seed=1) - 1.3, granularity="row")
    p, q, x, y = a.zero_point, b.zero_point.T, a.codes.double(), b.codes.double()
    terms = [-q * x.sum(1, keepdim=True), -p * y.sum(1), 50 * p * q]
    product, exact = quantized_matmul(a, b) / (a.scale * b.scale.T), x @ y.T + sum(terms)
    same(product, exact)
    for term in terms:
        assert ((exact - term - product).abs() > 1e-3 * exact.abs()).all()


@PROPERTY
@given(*[st.integers(1, 40)] * 3, *[st.sampled_from(sorted(LAYOUTS))] * 2, st.integers(0, 10**6))
def test_int8_products_are_exact(M, K, N, layout_a, layout_b, seed):
    a = LAYOUTS[layout_a](some_codes(M, K, seed=seed))
    b = LAYOUTS[layout_b](some_codes(N, K, seed=seed + 1))
    for product in (int8_matmul(a, b), in_exact_pieces(a, b)):
        assert product.dtype == torch.int32 and torch.equal(product, exact_product(a, b))


@pytest.mark.parametrize("K", [1, 2, 1023, 1024, 1025, INNER_OF_THE_MODELS, LARGEST_INNER])
@pytest.mark.parametrize("M", [1, 3, 33])
def test_int32_accumulation_is_exact_whatever_the_codes(M, K):
    assert INNER_OF_THE_MODELS == 28_672 and LARGEST_INNER == 131_071
    extremes = torch.tensor([-128, 127], dtype=torch.int8)[:, None].expand(2, K)
    b = torch.cat([some_codes(2, K, seed=1), extremes])
    for a in (some_codes(M, K), *(row.repeat(M, 1) for row in extremes)):
        exact = exact_product(a, b)
        for columns in (slice(None), slice(2, 3)):  # N = 4 and N = 1
            assert torch.equal(int8_matmul(a, b[columns]), exact[:, columns])
        assert torch.equal(in_exact_pieces(a, b), exact)


def test_every_pair_of_codes_has_its_product():
    every = torch.arange(-128, 128, dtype=torch.int8)[:, None]
    for product in (int8_matmul(every, every), in_exact_pieces(every, every)):
        assert torch.equal(product, every.int() * every.int().T)


def test_without_int8_instructions_the_product_goes_through_pieces(monkeypatch):
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "AVX2")
    monkeypatch.setattr(torch.cpu, "_is_vnni_supported", lambda: False)
    monkeypatch.delattr(torch, "_int_mm")
    a, b = some_codes(5, 2000), some_codes(3, 2000, seed=1)
    assert torch.equal(int8_matmul(a, b), exact_product(a, b))


@pytest.mark.parametrize(("M", "K", "N"), [(1, 1, 1), (16, 8, 8), (17, 9, 15), (40, 100, 64)])
def test_cuda_gets_the_shapes_it_wants(monkeypatch, M, K, N):
    def int_mm_of_cuda(a, b):
        assert a.shape[0] > 16 and a.shape[1] % 8 == 0 and b.shape[1] % 8 == 0
        return exact_product(a, b.T)

    monkeypatch.setattr(torch, "_int_mm", int_mm_of_cuda)
    a, b = some_codes(M, K), some_codes(N, K, seed=1)
    assert torch.equal(matmul._on_cuda(a, b), exact_product(a, b))


# --- signal to noise --------------------------------------------------------------------------


@PROPERTY
@given(cases(FLOATS[:3], ("normal", "huge and small")), st.sampled_from([1e-3, 5.0]))
def test_signal_to_noise_is_the_ratio_of_mean_squares_in_decibels(case, size):
    x, exact = case[0], case[0].double().numpy()
    restored = exact * (1 + size * normal(*x.shape, seed=3).numpy())
    expected = 10 * np.log10(np.mean(exact**2) / np.mean((exact - restored) ** 2))
    assert signal_to_noise(x, torch.from_numpy(restored)) == pytest.approx(expected, abs=1e-9)
    assert signal_to_noise(x, x) == INF
    assert signal_to_noise(x, x * 0) == pytest.approx(0)


@pytest.mark.parametrize("bits", [6, 7, 8])
def test_rounding_is_uniform_noise_of_a_twelfth_of_a_squared_step(bits):
    x = normal(300_000, seed=bits, dtype=torch.float32)
    top, crest = 2 ** (bits - 1) - 1, (x.abs().max() / x.std()).item()
    expected = 10.79 + 20 * math.log10(top) - 20 * math.log10(crest)
    found = signal_to_noise(x, dequantize(absmax_quantize(x, bits)))
    assert found == pytest.approx(expected, abs=0.2)


# --- what is refused --------------------------------------------------------------------------

X = normal(4, 6, dtype=torch.float32)
GROUP = {"granularity": "group"}


@EITHER
@pytest.mark.parametrize(
    ("x", "options", "message"),
    [
        *((X, {"bits": b}, f"bits is {b!r};") for b in (1, 9, 0, -8, 8.0, True, "8")),
        (X, {"granularity": "rows"}, "granularity is 'rows'; known are tensor, row"),
        *((X, {**GROUP, "group_size": n}, f"group_size {n} does not") for n in (4, 12, 0, -2)),
        (X, GROUP, "granularity is 'group', group_size None"),
        (X, {"granularity": "row", "group_size": 2}, "'row', group_size 2; a group"),
        (X, {"group_size": 0}, "granularity is 'tensor', group_size 0; a group size"),
        *((X.masked_fill(X.eq(X[2, 3]), v), {}, f"value {v} at (2, 3)") for v in (NAN, INF, -INF)),
        (torch.tensor(NAN), {}, "value nan at ()"),
        (X[:, :0], {}, "values have shape (4, 0): there is nothing"),
        (X[0], {"granularity": "column"}, "shape (6,); granularity 'column' needs 2 d"),
        (X[0, 0], {"granularity": "row"}, "shape (); granularity 'row' needs 1 dim"),
        (X[0, 0], {**GROUP, "group_size": 1}, "shape (); granularity 'group' needs 1 dim"),
    ],
)
def test_values_and_blocks_that_cannot_be_are_named(quantize, x, options, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        quantize(x, **options)


@EITHER
def test_only_floating_point_tensors_have_codes(quantize):
    for x, kind in [(X.int(), "torch.int32"), (X > 0, "torch.bool"), ([1.0], "list")]:
        with pytest.raises(TypeError, match=f"values are {kind};"):
            quantize(x)


@pytest.mark.parametrize("clip", [0, 0.0, -1.5, NAN, INF])
def test_a_clip_that_cannot_be_is_named(clip):
    with pytest.raises(ValueError, match=re.escape(f"clip is {clip!r};")):
        absmax_quantize(X, clip=clip)


@pytest.mark.parametrize("x, options", [(X, ("column",)), (X, ("group", 3)), (X[0], ())])
def test_a_product_needs_one_scale_along_the_sum(x, options):
    cut, fine = absmax_quantize(x, 8, *options), absmax_quantize(X)
    wrong = f"codes {tuple(cut.codes.shape)} with scales {tuple(cut.scale.shape)}"
    for pair in ((cut, fine), (fine, cut)):
        with pytest.raises(ValueError, match=re.escape(wrong)):
            quantized_matmul(*pair)


def test_factors_that_cannot_be_multiplied_are_named():
    long = torch.full((1, 131_072), -128, dtype=torch.int8)
    with pytest.raises(ValueError, match=r"is 131072; int32 holds every sum up to 131071"):
        int8_matmul(long, long)
    codes = some_codes(2, 5)
    for a, b in [(codes, some_codes(2, 4)), (codes, codes[0]), (codes[None], codes)]:
        with pytest.raises(ValueError, match=re.escape(f"{tuple(a.shape)} and {tuple(b.shape)}")):
            int8_matmul(a, b)
    with pytest.raises(ValueError, match=re.escape("(4, 6) and (4, 5)")):
        quantized_matmul(absmax_quantize(X), absmax_quantize(X[:, :5]))
    for a, b in [(codes.int(), codes), (codes, codes.int())]:
        with pytest.raises(TypeError, match=f"{a.dtype} and {b.dtype}; both must be torch.int8"):
            int8_matmul(a, b)


def test_noise_needs_a_signal_of_the_same_shape():
    for x, y, wrong in [(X, X[0], "shapes are (4, 6) and (6,)"), (X * 0, X, "all values are zero")]:
        with pytest.raises(ValueError, match=re.escape(wrong)):
            signal_to_noise(x, y)


FORMS = {
    "contiguous": lambda n, K: some_codes(n, K, seed=n),
    "transposed": lambda n, K: some_codes(K, n, seed=n).T,
    "cut": lambda n, K: some_codes(n, K + 3, seed=n)[:, 2 : K + 2],
    "one row repeated": lambda n, K: some_codes(1, K, seed=n).expand(n, K),
    "one column repeated": lambda n, K: some_codes(n, 1, seed=n).expand(n, K),
}


@pytest.mark.parametrize("of_a", FORMS)
@pytest.mark.parametrize("of_b", FORMS)
@pytest.mark.parametrize("K", [1, 2, 9, 64])
def test_int8_products_are_exact_however_the_codes_lie_in_memory(of_a, of_b, K):
    for M in (1, 2, 17):
        for N in (1, 2, 7):
            a, b = FORMS[of_a](M, K), FORMS[of_b](N, K)
            assert torch.equal(int8_matmul(a, b), exact_product(a, b))


@pytest.mark.parametrize("size", [2.0, "2", True])
def test_a_group_size_that_is_no_whole_number_is_refused(size):
    with pytest.raises(ValueError, match="whole number"):
        absmax_quantize(torch.ones(2, 4), granularity="group", group_size=size)


def test_float8_and_a_signal_that_is_not_finite_are_refused():
    with pytest.raises(TypeError, match="float8"):
        absmax_quantize(torch.ones(4).to(torch.float8_e4m3fn))
    with pytest.raises(ValueError, match="NaN or infinity"):
        signal_to_noise(torch.tensor([1.0, float("nan")]), torch.ones(2))


# --- what lesson 06 shows as solutions, and what the package holds ------------------------------

ODD = [(1, 1), (3, 5), (7, 12), (1, 129)]


def near(ours, theirs):
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("shape", ODD)
@pytest.mark.parametrize("bits", [2, 3, 4, 8])
def test_the_grids_shown_restore_what_the_packages_restore(shape, bits):
    for values in (normal(*shape, seed=3, dtype=torch.float32), torch.zeros(shape)):
        near(shown.absmax(values, bits), dequantize(absmax_quantize(values, bits)))
        near(shown.absmax_rows(values, bits), dequantize(absmax_quantize(values, bits, "row")))
        for moved in (values, values + 9, values - 9, values.relu()):
            near(shown.affine(moved, bits), dequantize(zeropoint_quantize(moved, bits)))


@pytest.mark.parametrize("size", [1, 2, 3, 12])
@pytest.mark.parametrize("bits", [3, 8])
def test_the_groups_shown_are_the_packages(size, bits):
    values = normal(5, 12, seed=4, dtype=torch.float32)
    expected = dequantize(absmax_quantize(values, bits, "group", size))
    near(shown.absmax_groups(values, bits, size), expected)
    near(shown.four_bits(values, bits, size, torch.ones(1)), expected)


@pytest.mark.parametrize("share", [0.2, 0.55, 1.0])
def test_the_clip_shown_has_the_smallest_error_of_the_packages(share):
    values = normal(300, seed=5, dtype=torch.float32)
    shares = torch.tensor([0.1, share, 0.9])
    clips = (shares * values.abs().max()).tolist()
    restored = [dequantize(absmax_quantize(values, 4, clip=clip)) for clip in clips]
    errors = [(r - values).square().mean().item() for r in restored]
    assert shown.best_clip(values, 4, shares) == shares[int(np.argmin(errors))]


def test_the_product_shown_is_the_packages():
    a, b = zeropoint_quantize(normal(3, 17) + 1), zeropoint_quantize(normal(5, 17, seed=1))
    p, q = a.zero_point.item(), b.zero_point.item()
    ours = shown.integer_product(a.codes.long(), b.codes.long(), p, q)
    same(ours * a.scale * b.scale, quantized_matmul(a, b))


def test_the_rows_shown_are_the_packages():
    rows = absmax_quantize(normal(4, 9), granularity="row")
    near(shown.dequantize_rows(rows.codes, 127 * rows.scale.flatten()).double(), dequantize(rows))


# --- what lesson 06 measures --------------------------------------------------------------------


def test_weights_are_rounded_within_the_block_and_put_back_after_an_error():
    linear = torch.nn.Linear(6, 4)
    before = linear.weight.data.clone()
    with pytest.raises(KeyError), rounded_weights({"one": linear}, torch.round) as decibels:
        assert torch.equal(linear.weight.data, before.round())
        noise = (before.round() - before).square().mean() / before.square().mean()
        assert decibels == pytest.approx(-10 * math.log10(noise), abs=1e-4)
        raise KeyError
    assert torch.equal(linear.weight.data, before)


def test_each_layer_may_have_a_rule_of_its_own():
    linears = {"one": torch.nn.Linear(6, 4), "two": torch.nn.Linear(6, 4)}
    before = {name: linear.weight.data.clone() for name, linear in linears.items()}
    with rounded_weights(linears, {"one": torch.round, "two": torch.floor}):
        assert torch.equal(linears["one"].weight.data, before["one"].round())
        assert torch.equal(linears["two"].weight.data, before["two"].floor())


def test_the_loss_of_windows_does_not_depend_on_how_many_share_a_pass(monkeypatch):
    model, windows = tiny_llama(), torch.arange(24).reshape(3, 8)
    each = token_nll(model, windows).mean(1)
    for tokens in (1, 16, 1024):
        monkeypatch.setattr(measurements, "TOKENS_PER_PASS", tokens)
        assert window_nll(model, windows) == pytest.approx(each, abs=1e-5)


@pytest.mark.parametrize(
    ("alone", "says"), [(8, "cut alone"), (1, "with the rounding"), (4, "undecided")]
)
def test_a_clip_is_blamed_only_where_the_intervals_allow_one_answer(alone, says):
    def loss(mean):
        return SimpleNamespace(mean=mean, low=mean - 1, high=mean + 1)

    assert says in blame_for_clip(loss(alone), loss(8))


def test_half_of_the_values_are_lost_where_the_largest_is_beyond_254_medians():
    model = tiny_llama()
    for entrance in zeros_at_entrances(model, linear_layers(model), torch.arange(12)[None]):
        assert (entrance.zeros > 0.5) == (entrance.stands_out > 254)


def per_row(values, bits=8):
    return shown.absmax_rows(values, bits)


def test_w8a8_rounds_what_enters_every_layer_too_and_only_within_the_measurement():
    model, windows = tiny_llama(), torch.arange(24).reshape(3, 8)
    linears, before = linear_layers(model), model(windows).logits
    same_weights = {"none": Scheme(lambda weight: weight, 32.0)}
    same_weights["activations"] = Scheme(
        lambda weight: weight, 32.0, activations=lambda x: per_row(x, bits=3)
    )
    costs = losses(model, linears, windows, same_weights, window_nll(model, windows))
    assert costs["none"].loss.mean == 0
    assert (costs["activations"].nll != costs["none"].nll).all()
    assert torch.equal(model(windows).logits, before)


def test_a_shifted_grid_gives_other_errors_of_the_same_size():
    x = normal(64, 512)
    first, *others = (shifted(x, 4, shift) - x for shift in (0, 1 / 3, 2 / 3))
    torch.testing.assert_close(first, dequantize(absmax_quantize(x, 4, "row")) - x)
    for error in others:
        assert error.square().mean().item() == pytest.approx(first.square().mean().item(), rel=0.15)
        assert torch.corrcoef(torch.stack([first.flatten(), error.flatten()]))[0, 1] < 0.5


def test_turned_weights_lie_on_no_grid_and_turning_back_gives_the_same_layer():
    on_grid = dequantize(absmax_quantize(normal(64, 96), 4, "row"))
    assert len(on_grid[0].unique()) <= 15 < len(turn(on_grid, torch.ones(32, 1))[0].unique())
    torch.testing.assert_close(turned(on_grid, lambda same: same, seed=0), on_grid)
    assert torch.equal(per_row(on_grid, bits=4), on_grid)  # no error at all, for a grid it has met
    lost = [turned(on_grid, partial(per_row, bits=4), seed) - on_grid for seed in (0, 0, 1)]
    assert torch.equal(lost[0], lost[1]) and not torch.equal(lost[0], lost[2])
    fresh = normal(64, 96)
    usual = (per_row(fresh, bits=4) - fresh).square().mean() / fresh.square().mean()
    assert lost[0].square().mean() / on_grid.square().mean() > 0.7 * usual


@pytest.mark.parametrize("windows", [2, 6])
def test_each_draw_of_turned_weights_has_its_own_share_of_the_windows(windows):
    model, texts = tiny_llama(), torch.arange(8 * windows).reshape(windows, 8) % 60
    linears, seen = linear_layers(model), []

    def unchanged(weight, rule, seed):
        seen.append(seed)
        return weight

    schemes = {name: Scheme(partial(per_row, bits=4), 4.0) for name in FEW_BITS}
    base = window_nll(model, texts) - torch.arange(windows).numpy()
    changes = on_turned_weights(model, linears, texts, base, schemes, unchanged)
    draws = min(4, windows)
    assert set(seen) == set(range(draws))
    for change in changes.values():  # window i costs i more than `base` says
        assert change == pytest.approx([np.arange(windows)[i::draws].mean() for i in range(draws)])


@pytest.mark.parametrize(("lead", "says"), [(-1.0, "less loss"), (0.0, "undecided")])
def test_the_lead_of_groups_is_decided_by_its_interval_over_draws(lead, says):
    model, texts, results = tiny_llama(), torch.arange(24).reshape(3, 8), Recorded()
    rule = Scheme(partial(per_row, bits=4), 4.0)
    costs = losses(
        model, linear_layers(model), texts, dict.fromkeys(FEW_BITS, rule), window_nll(model, texts)
    )
    draws = {name: [1.0, 1.2, 0.9] for name in FEW_BITS}
    for name in FEW_BITS:
        if name[0] == "per-group":
            draws[name] = [1.1 + lead, 1.1 + lead, 1.0 + lead]
    table, verdict = record_turned(results, costs, draws)
    assert verdict.count(says) == 2 and len(table) == 4
    assert results.kept["turned.lead.4 bits"] == pytest.approx(lead + 1 / 30, abs=0.01)


class Recorded:
    """Keeps what is recorded."""

    def __init__(self):
        self.kept = {}

    def record(self, name, value, *_, **__):
        self.kept[name] = value


def test_the_scales_are_counted_among_the_bits():
    linears = {"one": torch.nn.Linear(64, 32), "two": torch.nn.Linear(64, 96)}
    rules = dict.fromkeys(("per-tensor", "per-channel", "per-group"), shown.absmax)
    bits = {
        name: scheme.bits_per_weight
        for (name, _), scheme in at_bits(linears, rules, [4], 32).items()
    }
    assert bits == {"per-tensor": 4, "per-channel": 4 + 16 / 64, "per-group": 4.5}


def test_the_cut_of_a_clip_rounds_nothing_and_ends_where_the_clip_does():
    linears = {"one": torch.nn.Linear(64, 32)}
    weight = linears["one"].weight.data

    def cut(x, bits, share):
        top = 2 ** (bits - 1) - 1
        scale = share * x.abs().max() / top
        return (x / scale).round().clamp(-top, top) * scale

    rounded, alone = clip_schemes(linears, cut, lambda x, bits, shares: shares[2])
    restored, clamped = rounded.weights["one"](weight), alone.weights["one"](weight)
    end = 0.3 * weight.abs().max().item()
    assert restored.abs().max().item() == pytest.approx(end)
    assert clamped.abs().max().item() == pytest.approx(end)
    assert torch.equal(clamped[weight.abs() < end], weight[weight.abs() < end])


def test_the_input_of_a_layer_is_what_the_layer_before_it_gives():
    model, ids = tiny_llama(), torch.arange(12)[None]
    block = model.model.layers[0]
    expected = block.input_layernorm(model.model.embed_tokens(ids))[0]
    torch.testing.assert_close(input_of(model, block.self_attn.q_proj, ids), expected)
