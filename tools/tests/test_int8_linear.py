"""LLM.int8() from scratch: equal to bitsandbytes stage by stage, and to its definition in FP64."""

import copy
import inspect
import logging
import math
from dataclasses import dataclass

import bitsandbytes as bnb
import pytest
import torch
from helpers import normal, refused, twin_of
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_llama import tiny_llama
from torch import Tensor, nn

from llama_int8.data import evaluation_text
from llama_int8.lessons.n07 import exercises as shown
from llama_int8.models import load_model, load_tokenizer
from llama_int8.quantization.linear_layers import linear_layers, watching
from llama_int8.quantization.llm_int8 import Int8Linear, replace_linears, vectorwise_quantize
from llama_int8.quantization.precisions import THRESHOLD

logging.getLogger("bitsandbytes").setLevel(logging.ERROR)  # else a line for each product

DTYPES = [torch.float32, torch.bfloat16, torch.float16]
EACH_DTYPE = pytest.mark.parametrize("dtype", DTYPES)
UNIT = {torch.float32: 2**-24, torch.bfloat16: 2**-8, torch.float16: 2**-11}  # largest rounding
TINY = {torch.float32: 0.0, torch.bfloat16: 0.0, torch.float16: 2**-25}  # and among subnormals
CONSTANT = 1.81e-5  # bitsandbytes multiplies by 6.200124e-05 on the CPU, not by 1 / 127^2


@pytest.mark.parametrize(
    "made_by", [Int8Linear, Int8Linear.from_linear, replace_linears, load_model]
)
def test_the_lessons_threshold_is_the_one_that_is_measured(made_by):
    """The lesson writes it as a number, for it builds these definitions without the package."""
    assert inspect.signature(made_by).parameters["threshold"].default == THRESHOLD


def some_linear(inputs=12, outputs=7, bias=True, seed=0):
    torch.manual_seed(seed)
    return nn.Linear(inputs, outputs, bias)


def some_input(*shape, seed=1):
    """Numbers of which some columns hold outliers at a threshold of 6."""
    x = 2 * normal(*shape, seed=seed)
    x[..., ::5] *= 4
    return x


def bitsandbytes_layer(linear, threshold):
    shape = linear.in_features, linear.out_features, linear.bias is not None
    layer = bnb.nn.Linear8bitLt(*shape, has_fp16_weights=False, threshold=threshold)
    layer.load_state_dict(linear.state_dict())
    return layer.to("cpu").eval()  # in training mode the CPU takes another path


def same_weights(ours, theirs):
    assert ours.weight.dtype == torch.int8 and ours.SCB.dtype == torch.float32
    assert torch.equal(ours.weight, theirs.weight.CB)
    assert torch.equal(ours.SCB, theirs.weight.SCB)


def same_activations(x, threshold):
    codes, absmax, columns = bnb.functional.int8_vectorwise_quant(x.half().clone(), threshold)
    ours = vectorwise_quantize(x, threshold)
    assert [t.dtype for t in ours] == [torch.int8, torch.float32, torch.int64]
    assert torch.equal(ours[0], codes) and torch.equal(ours[1], absmax)
    assert ours[2].tolist() == ([] if columns is None else columns.tolist())
    return ours


@dataclass
class Definition:
    """The product by its definition in FP64, and how far from it rounding alone can lead."""

    exact: Tensor  # (N, M)
    ours: Tensor  # largest difference of our output: FP32 sums, rounded once
    theirs: Tensor  # of bitsandbytes': another constant, each step and the weights in x's dtype

    @classmethod
    def of(cls, layer: Int8Linear, x: Tensor) -> "Definition":
        codes, absmax, columns = vectorwise_quantize(x, layer.threshold)
        W = layer.weight.double() * layer.SCB.double()[:, None] / 127
        int8 = codes.double() @ layer.weight.double().T  # integers, exact
        int8 *= absmax.double()[:, None] * layer.SCB.double() / 127**2
        A = x.double()[:, columns]
        outliers, size = A @ W[:, columns].T, A.abs() @ W[:, columns].abs().T
        bias = torch.zeros(()) if layer.bias is None else layer.bias.double()
        exact = int8 + outliers + bias
        unit, tiny, fp32 = UNIT[x.dtype], TINY[x.dtype], 2**-24
        steps = 8 * int8.abs() + (columns.numel() + 8) * size + 4 * bias.abs()
        ours = 1.01 * (unit * exact.abs() + fp32 * steps) + tiny
        unfused = (int8 + bias).abs() + size + bias.abs()
        theirs = ours + CONSTANT * int8.abs() + 1.01 * unit * unfused
        return cls(exact, ours, theirs + tiny * (2 + A.abs().sum(1, keepdim=True)))


def same_output(ours, theirs, x):
    y = ours(x)
    expected = Definition.of(ours, x)
    assert y.dtype == x.dtype and y.shape == expected.exact.shape
    assert ((y.double() - expected.exact).abs() <= expected.ours).all()
    assert ((y.double() - theirs(x).double()).abs() <= expected.ours + expected.theirs).all()


@st.composite
def cases(draw):
    """A layer, inputs of any format with outliers and rows of zeros among them, and a threshold."""
    # From 2 inputs on: for one, `torch._int_mm`, and with it bitsandbytes, is wrong on the CPU.
    N, K, M = draw(st.integers(1, 9)), draw(st.integers(2, 70)), draw(st.integers(1, 17))
    dtype, seed = draw(st.sampled_from(DTYPES)), draw(st.integers(0, 999))
    threshold = draw(st.sampled_from([0.0, 0.5, 3.0, 6.0, 20.0]))
    linear = some_linear(K, M, draw(st.booleans()), seed)
    linear.weight.data *= draw(st.sampled_from([1e-3, 0.3, 3.0]))
    x = draw(st.sampled_from([1e-4, 0.1, 1.0, 3.0, 20.0])) * normal(N, K, seed=seed + 1)
    largest = 1e5 if threshold and dtype != torch.float16 else 100.0  # what FP16 cannot hold, too
    for _ in range(draw(st.integers(0, 3))):
        place = draw(st.integers(0, N - 1)), draw(st.integers(0, K - 1))
        x[place] = draw(st.sampled_from([6.0, -6.0, 5.9995, 20.0, 80.0, largest, -largest]))
    if draw(st.booleans()):
        x[draw(st.integers(0, N - 1))] = 0
    if draw(st.booleans()):
        linear.weight.data[draw(st.integers(0, M - 1))] = 0
    return linear.to(draw(st.sampled_from([dtype, torch.float32]))), x.to(dtype), threshold


# --- equal to bitsandbytes and to the definition ---------------------------------------------


@settings(max_examples=300, deadline=None)
@given(cases())
def test_every_stage_is_bitsandbytes_and_the_output_is_the_definitions(case):
    linear, x, threshold = case
    ours, theirs = Int8Linear.from_linear(linear, threshold), bitsandbytes_layer(linear, threshold)
    same_weights(ours, theirs)
    same_activations(x, threshold)
    same_output(ours, theirs, x)


def test_in_fp32_the_distance_to_bitsandbytes_is_its_constant():
    linear, x = some_linear(64, 32, bias=False), normal(16, 64)
    ours, theirs = Int8Linear.from_linear(linear, 0.0), bitsandbytes_layer(linear, 0.0)
    torch.testing.assert_close(theirs(x), ours(x) * (6.200124e-05 * 127**2), rtol=1e-6, atol=0)
    torch.testing.assert_close(ours(x).double(), Definition.of(ours, x).exact, rtol=1e-6, atol=0)


def test_codes_by_hand():
    codes, absmax, columns = vectorwise_quantize(torch.tensor([[1.0, -2, 7, 0], [0, 0, 5, 0]]), 6.0)
    assert codes.tolist() == [[64, -127, 0, 0], [0, 0, 0, 0]]  # 63.5 goes to the even neighbour
    assert absmax.tolist() == [2.0, 5.0]  # 5 stands in an outlier column, but is none itself
    assert columns.tolist() == [2]


@pytest.mark.slow  # needs the package index, once
@pytest.mark.parametrize("threshold", [0.0, 6.0])
def test_every_layer_of_the_real_model_is_bitsandbytes_on_its_real_activations(threshold):
    model = load_model("smollm2-135m", "fp32", "cpu")
    ids = load_tokenizer("smollm2-135m")(evaluation_text())["input_ids"][:64]
    linears, seen, outliers = linear_layers(model), [], 0

    def compare(name, x):
        nonlocal outliers
        ours = Int8Linear.from_linear(linears[name], threshold)
        theirs = bitsandbytes_layer(linears[name], threshold)
        same_weights(ours, theirs)
        outliers += same_activations(x[0], threshold)[2].numel()
        same_output(ours, theirs, x[0])
        seen.append(name)

    with watching(linears, compare), torch.inference_mode():
        model(torch.tensor([ids]))
    assert len(seen) == len(set(seen)) == 210
    assert (outliers > 500) == (threshold > 0)


# --- outliers ---------------------------------------------------------------------------------


@pytest.mark.parametrize("value", [6.0, -6.0, 5.9995])
def test_the_threshold_is_inclusive_and_met_in_fp16(value):
    x = torch.tensor([[1.0, value, 2.0]])
    assert vectorwise_quantize(x, 6.0)[2].tolist() == [1]
    assert vectorwise_quantize(x.sign() * 5.995, 6.0)[2].tolist() == []


@settings(max_examples=50, deadline=None)
@given(st.floats(0.01, 20), st.floats(0.01, 20), st.integers(0, 99))
def test_a_lower_threshold_never_keeps_fewer_columns(one, other, seed):
    x = some_input(4, 20, seed=seed)
    more, fewer = (set(vectorwise_quantize(x, t)[2].tolist()) for t in sorted([one, other]))
    assert more >= fewer


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_value_beyond_fp16_keeps_its_own_format_as_an_outlier_and_else_is_refused(dtype):
    x = normal(3, 12).to(dtype)
    x[1, 4] = -1e6
    layer = Int8Linear.from_linear(some_linear(), 6.0)
    expected = Definition.of(layer, x)
    assert layer(x).isfinite().all()
    assert ((layer(x).double() - expected.exact).abs() <= expected.ours).all()
    with refused(ValueError, f"{x[1, 4].abs():,.0f}", "FP16", "65,504", "threshold"):
        Int8Linear.from_linear(some_linear(), 0.0)(x)


def test_a_rows_output_can_depend_on_its_neighbours_but_not_without_a_threshold():
    calm, wild = normal(1, 12), normal(1, 12, seed=1)
    wild[0, 3] = 50
    for threshold, changes in ((6.0, True), (0.0, False)):
        layer = Int8Linear.from_linear(some_linear(), threshold)
        alone, beside = layer(calm)[0], layer(torch.cat([calm, wild]))[0]
        assert torch.equal(alone, beside) != changes


@settings(max_examples=50, deadline=None)
@given(st.integers(0, 999), st.sampled_from(DTYPES))
def test_without_a_threshold_a_rows_output_is_the_same_in_every_batch(seed, dtype):
    x = some_input(5, 12, seed=seed).to(dtype)
    layer = Int8Linear.from_linear(some_linear(seed=seed), 0.0)
    assert torch.equal(layer(x), torch.cat([layer(row[None]) for row in x]))


# --- inputs -----------------------------------------------------------------------------------


@EACH_DTYPE
@pytest.mark.parametrize("shape", [(), (1,), (5,), (2, 3), (2, 1, 3)])
@pytest.mark.parametrize("threshold", [0.0, 6.0])
def test_any_batch_shape_keeps_dtype_and_input_and_has_no_gradient(shape, dtype, threshold):
    layer, x = Int8Linear.from_linear(some_linear(), threshold), some_input(*shape, 12).to(dtype)
    before, y = x.clone(), layer(x.requires_grad_())
    assert y.shape == (*shape, 7) and y.dtype == dtype and not y.requires_grad
    assert torch.equal(x, before)
    assert torch.equal(y.reshape(-1, 7), layer(x.reshape(-1, 12)))


def test_what_lies_in_memory_in_another_order_gives_the_same():
    layer, x = Int8Linear.from_linear(some_linear()), some_input(4, 5, 12)
    turned = x.permute(2, 0, 1).contiguous().permute(1, 2, 0)
    assert not turned.is_contiguous()
    assert torch.equal(layer(turned), layer(x))
    assert torch.equal(layer(x[:, ::2]), layer(x[:, ::2].contiguous()))


@pytest.mark.parametrize("threshold", [0.0, 6.0])
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_values_that_are_not_finite_are_refused_and_named(value, threshold):
    x = normal(2, 12)
    x[1, 3] = value
    with refused(ValueError, f"a value is {value}", "finite"):
        Int8Linear.from_linear(some_linear(), threshold)(x)


@pytest.mark.parametrize("dtype", [torch.int8, torch.int64, torch.bool])
def test_inputs_that_are_no_floating_point_numbers_are_refused(dtype):
    with refused(TypeError, str(dtype), "floating-point"):
        Int8Linear.from_linear(some_linear())(torch.ones(2, 12, dtype=dtype))


@pytest.mark.parametrize("shape", [(), (11,), (12, 7), (2, 24), (0, 12), (2, 0, 12)])
def test_inputs_of_another_width_and_empty_batches_are_refused(shape):
    with refused(ValueError, f"shape {shape}", "(..., 12)"):
        Int8Linear.from_linear(some_linear())(torch.ones(shape))


# --- the module -------------------------------------------------------------------------------


@pytest.mark.parametrize("threshold", [-1e-9, -6.0, math.nan, math.inf, -math.inf])
def test_a_threshold_that_cannot_be_is_refused_everywhere(threshold):
    whole = Int8Linear.from_linear(some_linear())
    for make in (
        lambda: Int8Linear(whole.weight, whole.SCB, threshold=threshold),
        lambda: Int8Linear.from_linear(some_linear(), threshold),
        lambda: replace_linears(nn.Sequential(some_linear()), threshold),
    ):
        with refused(ValueError, f"threshold is {threshold}"):
            make()


@pytest.mark.parametrize("value", [65520.0, -1e6, math.inf, math.nan])
def test_weights_that_fp16_cannot_hold_are_named_with_their_layer(value):
    model = nn.Sequential(some_linear(), nn.Sequential(some_linear(7, 3)))
    model[1][0].weight.data[2, 1] = value
    with refused(ValueError, "1.0: a weight is", f"{value}", "FP16"):
        replace_linears(model)
    with refused(ValueError, f"a weight is {value}"):
        Int8Linear.from_linear(model[1][0])


def test_what_is_no_linear_layer_of_floating_point_weights_is_refused():
    for other in (nn.Embedding(4, 4), nn.Conv1d(3, 3, 1), Int8Linear.from_linear(some_linear())):
        with refused(TypeError, type(other).__name__, "nn.Linear"):
            Int8Linear.from_linear(other)
    with refused(TypeError, "torch.int8", "already"):
        Int8Linear.from_linear(bitsandbytes_layer(some_linear(), 6.0))


@pytest.mark.parametrize("cast", [nn.Module.half, nn.Module.bfloat16, nn.Module.double])
def test_casting_the_module_leaves_codes_and_scales_as_they_are(cast):
    layer = Int8Linear.from_linear(some_linear())
    codes, SCB = layer.weight.clone(), layer.SCB.clone()
    other = cast(nn.Sequential(layer))[0].to(torch.float16)
    assert other.SCB.dtype == torch.float32 and torch.equal(other.SCB, SCB)
    assert other.weight.dtype == torch.int8 and torch.equal(other.weight, codes)
    assert other.bias.dtype == torch.float16


@pytest.mark.parametrize("bias", [True, False])
def test_state_dict_and_deepcopy_carry_all_that_the_output_needs(bias, tmp_path):
    linear, x = some_linear(bias=bias), some_input(3, 12)
    layer = Int8Linear.from_linear(linear, 3.0)
    assert set(layer.state_dict()) == {"weight", "SCB"} | ({"bias"} if bias else set())
    torch.save(layer.state_dict(), tmp_path / "state")
    other = Int8Linear.from_linear(some_linear(bias=bias, seed=9), 3.0)
    assert not torch.equal(other(x), layer(x))
    other.load_state_dict(torch.load(tmp_path / "state"))
    twin = copy.deepcopy(layer)
    assert torch.equal(other(x), layer(x)) and torch.equal(twin(x), layer(x))
    twin.SCB.zero_()
    linear.weight.data.zero_()
    if bias:
        linear.bias.data.zero_()
    assert torch.equal(other(x), layer(x))  # neither a copy nor the origin is tied to it
    assert repr(layer) == f"Int8Linear(12, 7, bias={bias}, threshold=3.0)"


# --- whole models -----------------------------------------------------------------------------

TOKENS = torch.arange(40).reshape(2, 20) * 7 % 97


def logits(model):
    with torch.inference_mode():
        y = model(TOKENS)
    return y if isinstance(y, Tensor) else y.logits


@pytest.mark.parametrize("threshold", [0.0, 2.0, 6.0])
def test_replaced_models_agree_hugging_faces_our_own_and_bitsandbytes(threshold):
    theirs = tiny_llama(initializer_range=0.3, attention_bias=True)
    ours, foreign, before = twin_of(theirs), copy.deepcopy(theirs), logits(theirs)
    for name, linear in linear_layers(foreign).items():
        foreign.set_submodule(name, bitsandbytes_layer(linear, threshold))
    assert replace_linears(theirs, threshold) is theirs
    after = logits(theirs)
    torch.testing.assert_close(logits(replace_linears(ours, threshold)), after, rtol=0, atol=5e-4)
    # A code at an edge flips now and then: far less than what quantization itself changes.
    assert (logits(foreign) - after).abs().mean() < 0.3 * (after - before).abs().mean()


@pytest.mark.parametrize("make", [tiny_llama, lambda: twin_of(tiny_llama())])
@pytest.mark.parametrize(
    ("skip", "left"),
    [
        (("lm_head",), 0),
        ("lm_head", 0),
        ((), -1),  # the output layer, too
        (("lm_head", "down_proj"), 3),
        (("model.layers.0",), 7 - 1),
        (("lm_head", "model.layers.0.mlp.up_proj"), 1),
        (("lm_head", "mlp", "layers.1"), 3 * 3 + 4),
    ],
)
def test_skip_names_whole_parts_of_a_path(make, skip, left):
    model = replace_linears(make(), 3.0, skip)
    kinds = [type(module) for module in model.modules()]
    assert kinds.count(nn.Linear) == left + 1
    assert kinds.count(Int8Linear) == 3 * 7 - left
    assert {m.threshold for m in model.modules() if isinstance(m, Int8Linear)} == {3.0}


@pytest.mark.parametrize("skip", [("down",), ("lm_head", "layers.7"), "q_pro", ("proj",)])
def test_a_name_that_no_module_has_is_refused(skip):
    wanted = skip if isinstance(skip, str) else skip[-1]
    with refused(ValueError, repr(wanted), "whole part"):
        replace_linears(tiny_llama(), skip=skip)


def test_a_model_with_nothing_to_replace_is_refused():
    for model in (nn.Sequential(nn.ReLU()), nn.ModuleDict({"lm_head": some_linear()})):
        with refused(ValueError, type(model).__name__, "no linear layer"):
            replace_linears(model)


def test_a_replaced_layer_keeps_the_mode_of_its_model():
    for training in (True, False):
        model = replace_linears(nn.Sequential(some_linear()).train(training))
        assert model[0].training == training


@settings(max_examples=50, deadline=None)
@given(st.integers(1, 9), st.integers(1, 17), st.integers(0, 999), st.sampled_from([0.0, 3.0]))
def test_a_layer_of_one_input_is_its_definition(N, M, seed, threshold):
    layer = Int8Linear.from_linear(some_linear(1, M, seed=seed), threshold)
    x = some_input(N, 1, seed=seed)
    expected = Definition.of(layer, x)
    assert ((layer(x).double() - expected.exact).abs() <= expected.ours).all()


def test_a_layer_that_is_the_model_is_refused_and_a_refusal_replaces_nothing():
    with pytest.raises(ValueError, match="from_linear"):
        replace_linears(nn.Linear(4, 3))
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    model[1].weight.data[0, 0] = 1e6
    with pytest.raises(ValueError, match="1: a weight is 1000000"):
        replace_linears(model)
    assert type(model[0]) is nn.Linear


def test_float64_is_refused():
    with pytest.raises(TypeError, match="float64"):
        Int8Linear.from_linear(nn.Linear(4, 3))(torch.zeros(1, 4, dtype=torch.float64))


# --- what the lesson shows as solutions, and what the package holds ---------------------------


@pytest.mark.parametrize(("N", "K", "M"), [(1, 1, 1), (1, 7, 3), (5, 33, 2), (16, 64, 40)])
@pytest.mark.parametrize("threshold", [2.0, 6.0, float("inf")])
def test_the_steps_shown_are_the_packages(N, K, M, threshold):
    x = (normal(N, K, seed=1) * 4).half().float()
    x[N // 2] = 0
    linear = some_linear(K, M, bias=False)
    package = Int8Linear.from_linear(linear, 0.0 if threshold == float("inf") else threshold)
    codes, absmax, columns = vectorwise_quantize(x, package.threshold)
    assert torch.equal(shown.row_codes(x, threshold), codes)
    assert torch.equal(shown.inlier_absmax(x, threshold), absmax)
    assert torch.equal(shown.outlier_columns(x, threshold), columns)
    y = shown.llm_int8(x, package.weight, package.SCB, threshold)
    torch.testing.assert_close(y, package(x), rtol=1e-5, atol=1e-5)


def test_in_a_call_of_one_row_own_outliers_are_llm_int8():
    x, linear = normal(1, 24) * 6, some_linear(24, 5, bias=False)
    package = Int8Linear.from_linear(linear)
    own = shown.own_outliers(x, package.weight, package.SCB, 6.0)
    torch.testing.assert_close(own, shown.llm_int8(x, package.weight, package.SCB, 6.0))
