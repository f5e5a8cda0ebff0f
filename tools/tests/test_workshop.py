"""The C++ of lesson 10's cells: compiled with what is here, refused with a reason, or PyTorch's."""

import re
import subprocess

import pytest
import torch

from llama_int8.lessons.n10 import exercises, workshop
from llama_int8.quantization.cpu import kernels
from llama_int8.quantization.cpu.packing import pack, pack_rows, plain_linear, quantize_activations

SHAPES = [(1, 32, 32), (7, 96, 64), (19, 32, 160)]  # tokens, outputs, inputs
VERSIONS = [kernels.PYTORCH, *kernels.VERSIONS]


def operands(tokens, outputs, inputs):
    generator = torch.Generator().manual_seed(tokens * outputs)
    codes, weights = (
        torch.randint(-127, 128, (rows, inputs), generator=generator, dtype=torch.int8)
        for rows in (tokens, outputs)
    )
    return codes, weights


@pytest.fixture(params=VERSIONS)
def version(request):
    """Each version that this machine can run, and PyTorch."""
    workshop._library.cache_clear()
    try:
        with kernels.using(request.param):
            yield request.param
    except RuntimeError as error:
        pytest.skip(str(error))
    finally:
        workshop._library.cache_clear()


@pytest.mark.parametrize("shape", SHAPES)
def test_every_step_gives_the_sums_of_exact_integers(version, shape):
    codes, weights = operands(*shape)
    exact = codes.long() @ weights.long().T
    assert torch.equal(exercises.scalar_product(codes, weights).long(), exact)
    for tokens in (1, len(codes)):
        assert torch.equal(exercises.tile_product(codes, pack(weights), tokens).long(), exact)
    with workshop.compilers_vectors():
        assert torch.equal(exercises.scalar_product(codes, weights).long(), exact)


@pytest.mark.parametrize("shape", SHAPES)
def test_the_last_step_is_the_packages_product(version, shape):
    _, weights = operands(*shape)
    scales = pack_rows(torch.rand(len(weights), weights.shape[1] // 32).bfloat16())
    x = torch.randn(shape[0], shape[2])
    codes, a = quantize_activations(x)
    y = exercises.grouped_product(codes.flatten(1), a, pack(weights), scales, len(x))
    wanted = plain_linear(x, pack(weights), scales, None, len(weights))
    torch.testing.assert_close(y, wanted, rtol=1e-4, atol=1e-3)
    if version != kernels.PYTORCH:
        assert torch.equal(y, wanted)  # the same operations in the same order


@pytest.mark.skipif(bool(kernels.refusal("vnni")), reason="needs AVX-512 VNNI")
def test_the_sums_of_a_tile_stay_in_registers(monkeypatch, tmp_path):
    """They went to memory and back at each instruction, so that step 4 looked slower than step 5."""
    sources = []
    monkeypatch.setattr(workshop, "_library", lambda source, _: sources.append(source))
    codes, weights = operands(8, 32, 64)
    scales = torch.rand(8, 2), pack_rows(torch.rand(32, 2).bfloat16())
    exercises.tile_product(codes, pack(weights), 8)
    exercises.grouped_product(codes, scales[0], pack(weights), scales[1], 8)
    for k, source in enumerate(sources):
        path = tmp_path / f"{k}.cpp"
        path.write_text(source)
        flags = f"{kernels.FLAGS} {kernels.VERSIONS['vnni'].flags} -w -S -o -".split()
        command = [kernels._compiler(), *flags, str(path)]
        made = subprocess.run(command, capture_output=True, text=True, check=True).stdout
        dots = [m.start() for m in re.finditer("vpdpbusd", made)]
        tile = made[dots[0] : dots[15]]  # one step of the tile of eight tokens
        assert len(dots) >= 18 and not re.search(r"vmov\w+\s+%zmm\d+, -?\d*\(%rsp", tile)


def test_the_shown_packing_is_the_packages():
    _, weights = operands(1, 96, 64)
    assert torch.equal(exercises.pack_weights(weights), pack(weights))


def test_three_dots_are_a_blank_and_nothing_is_compiled(monkeypatch):
    monkeypatch.setattr(workshop, "_library", lambda *_: pytest.fail("compiled"))
    codes, weights = operands(1, 32, 32)
    assert workshop.loop("for (;;)\n    ...  // your line", codes, weights) is ...
    assert workshop.tile("...", codes, pack(weights)) is ...


@pytest.mark.skipif(kernels.chosen().library is None, reason="nothing is compiled here")
def test_wrong_cpp_is_an_error_with_the_compilers_first_complaint():
    codes, weights = operands(1, 32, 32)
    with pytest.raises(ValueError, match=r"your lines:.*error"):
        workshop.loop("y[0] = sum;", codes, weights)


def test_where_nothing_is_compiled_the_lesson_says_so():
    from llama_int8.lessons.n10 import measurements

    with kernels.using(kernels.PYTORCH):
        assert workshop.unavailable()
        assert "PyTorch computes the same numbers" in measurements.multiplies()


def test_weights_behind_the_multiplier_take_int8_and_only_twice():
    multiply = exercises.Multiplier(torch.ones(3, 4, dtype=torch.int8))
    with pytest.raises(TypeError, match="takes int8"):
        multiply(torch.ones(2, 4))
    codes = torch.ones(2, 4, dtype=torch.int8)
    assert multiply(codes).tolist() == multiply(codes).tolist() == [[4.0] * 3] * 2
    with pytest.raises(RuntimeError, match="third"):
        multiply(codes)
