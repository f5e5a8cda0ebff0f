"""Where the time goes: each operation has one kind, and every product is found."""

import time

import pytest
import torch
from tiny_llama import in_int8, tiny_llama

from llama_int8.measure.profiler import KINDS, kind_of, medians, profile

PRODUCTS, INT8, QUANTIZING, SCALING, OUTLIERS, ATTENTION, REST, BETWEEN = KINDS
AROUND = (QUANTIZING, SCALING, OUTLIERS)
LINEAR_LAYERS = 3 * 7


@pytest.mark.parametrize(
    ("names", "kind"),
    [
        (["aten::mm", "aten::linear"], PRODUCTS),
        (["aten::addmm", "aten::linear"], PRODUCTS),
        (["aten::bmm", "aten::matmul"], PRODUCTS),
        (["aten::_int_mm", "bitsandbytes::int8_linear_matmul", "MatMul8bitLt"], INT8),
        (["aten::_int_mm"], INT8),
        (["bitsandbytes::int8_linear_matmul", "bitsandbytes::int8_scaled_mm"], INT8),
        (["bitsandbytes::int8_vectorwise_quant", "MatMul8bitLt"], QUANTIZING),
        (["aten::mul", "bitsandbytes::int8_mm_dequant", "bitsandbytes::int8_scaled_mm"], SCALING),
        # The scaling is its own kind inside the product with outlier columns, too.
        (["bitsandbytes::int8_mm_dequant", "bitsandbytes::int8_mixed_scaled_mm"], SCALING),
        (["aten::mul", "bitsandbytes::int8_vectorwise_dequant"], OUTLIERS),
        # The product of the outlier columns, in 16 bit.
        (["aten::addmm", "bitsandbytes::int8_mixed_scaled_mm", "MatMul8bitLt"], OUTLIERS),
        (["aten::to", "MatMul8bitLt"], QUANTIZING),
        (["aten::_scaled_dot_product_flash_attention_for_cpu"], ATTENTION),
        (["aten::bmm", "aten::scaled_dot_product_attention"], ATTENTION),
        (["aten::silu"], REST),
        (["aten::linear"], REST),  # it only calls the product
        (["cudaLaunchKernel", "aten::mm", "aten::linear"], REST),
    ],
)
def test_an_operation_has_the_kind_of_what_it_is_part_of(names, kind):
    assert kind_of(names) == kind


def test_a_product_that_a_backend_does_in_fp32_is_still_the_int8_product():
    # bitsandbytes without AVX-512: int8_linear_matmul multiplies copies in FP32.
    callers = ["bitsandbytes::int8_linear_matmul", "bitsandbytes::int8_scaled_mm", "MatMul8bitLt"]
    assert kind_of(["aten::mm", "aten::matmul", *callers]) == INT8


def profiled(model):
    def run():
        with torch.inference_mode():
            model(torch.arange(12)[None], use_cache=False)

    run()
    return profile(run), profile(run)


@pytest.fixture(scope="module")
def bf16():
    return profiled(tiny_llama().bfloat16())


@pytest.fixture(scope="module")
def int8():
    return profiled(in_int8(tiny_llama()))


def test_in_16_bit_every_linear_layer_is_a_product_and_nothing_is_in_int8(bf16):
    found = bf16[0]
    assert set(found) == set(KINDS)
    assert found[PRODUCTS]["operations"] == LINEAR_LAYERS + 1  # and the output layer
    for kind in (INT8, *AROUND):
        assert found[kind] == {"seconds": 0, "operations": 0, "launches": 0}
    assert found[ATTENTION]["operations"] >= 3


def test_in_int8_every_linear_layer_is_one_int8_product(int8):
    found = int8[0]
    # bitsandbytes' operation, and the one of PyTorch's that it calls on a CPU.
    assert found[INT8]["operations"] >= 2 * LINEAR_LAYERS
    assert found[PRODUCTS]["operations"] == 1  # the output layer, which stays in 16 bit
    around = sum(found[kind]["operations"] for kind in AROUND)
    assert around > found[INT8]["operations"]
    for kind in (INT8, QUANTIZING, SCALING):
        assert found[kind]["seconds"] > 0


@pytest.mark.parametrize("precision", ["bf16", "int8"])
def test_the_same_pass_has_the_same_operations(precision, request):
    first, second = (
        {kind: entry["operations"] for kind, entry in found.items()}
        for found in request.getfixturevalue(precision)
    )
    assert first == second


def test_what_bitsandbytes_does_around_its_products_is_none_of_the_rest(bf16, int8):
    # All that it calls counts as its own, so the rest lacks only the linear layers' own calls.
    assert int8[0][REST]["operations"] < bf16[0][REST]["operations"]
    assert sum(int8[0][kind]["operations"] for kind in AROUND) > 20 * LINEAR_LAYERS


def test_attention_is_the_same_in_both_precisions(bf16, int8):
    assert bf16[0][ATTENTION]["operations"] == int8[0][ATTENTION]["operations"]


def test_seconds_are_those_inside_operations_each_counted_once():
    a, spent = torch.randn(700, 700), []

    def run():
        start = time.perf_counter()
        torch.matmul(a, a)  # it calls aten::mm
        spent.append(time.perf_counter() - start)
        time.sleep(0.1)  # no operation

    found = profile(run)
    assert found[PRODUCTS]["operations"] == 1
    assert found[PRODUCTS]["seconds"] > 0
    inside = sum(entry["seconds"] for kind, entry in found.items() if kind != BETWEEN)
    assert inside < 1.2 * spent[-1]
    assert found[BETWEEN]["seconds"] + inside > 0.08


def test_nothing_takes_no_time():
    found = profile(lambda: None)
    assert found.pop(BETWEEN)["seconds"] < 0.01
    assert all(not any(entry.values()) for entry in found.values())


def test_several_profiles_become_their_median_and_keep_each():
    entries = [{"seconds": s, "operations": 4, "launches": 0} for s in (3.0, 1.0, 9.0)]
    found = medians([{REST: entry} for entry in entries])
    assert found == {REST: {**entries[0], "seconds": 3.0, "each": [3.0, 1.0, 9.0]}}
