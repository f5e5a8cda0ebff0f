"""The kernel's version for ARM, compiled for it and run in QEMU: its bits and its attention."""

import platform
import shutil
import subprocess
from importlib.resources import files
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import normal
from test_fast_llama import attention_case, attention_over, one_layer
from test_int8_fast import same_bits, some_layer

from llama_int8.quantization.cpu import kernels
from llama_int8.quantization.cpu.baselines import KernelBf16Linear, KernelWeightOnlyLinear
from llama_int8.quantization.cpu.cache import KeyValueCache

COMPILER, EMULATOR = "aarch64-linux-gnu-g++", "qemu-aarch64"
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        platform.machine() != "x86_64" or not all(map(shutil.which, (COMPILER, EMULATOR))),
        reason="needs Debian's g++-aarch64-linux-gnu and qemu-user, on x86",
    ),
]


@pytest.fixture(scope="module")
def on_arm(tmp_path_factory):
    """Run a function of the kernel on ARM: (its name, six sizes, arrays) -> FP32 numbers."""
    folder = tmp_path_factory.mktemp("arm")
    program = folder / "kernel_driver"
    flags = [
        f for f in f"{kernels.FLAGS} {kernels.OPENMP}".split() if f not in ("-shared", "-fPIC")
    ]
    version = kernels.VERSIONS["neon"].flags.split()
    kernel = files(kernels.__package__)
    driver = Path(__file__).with_name("kernel_driver.cpp")
    command = [COMPILER, *flags, *version, f"-I{kernel}", "-static", "-o", program, driver]
    subprocess.run(command, check=True)

    def run(function, sizes, *arrays):
        sizes = [*sizes, 0, 0, 0, 0, 0, 0][:6]
        given = [np.array(sizes, dtype=np.int64), *arrays]
        (folder / "in").write_bytes(b"".join(np.ascontiguousarray(a).tobytes() for a in given))
        subprocess.run(
            [EMULATOR, "-cpu", "max", program, function, folder / "in", folder / "out"], check=True
        )
        return torch.from_numpy(np.fromfile(folder / "out", dtype=np.float32))

    return run


def bits(tensor):
    """A tensor's memory as bytes, as it lies."""
    return tensor.contiguous().view(torch.uint8).numpy()


def linear(on_arm, layer, x, scale, planes):
    sizes = (len(x), layer.out_features, layer.in_features, planes, layer.weight.nbytes)
    scales = 0 if scale is None else scale.numel()
    arrays = [x.numpy(), bits(layer.weight), *([] if scale is None else [bits(scale)])]
    return on_arm("linear", (*sizes, scales), *arrays).view(len(x), -1)


@pytest.mark.parametrize("planes", [1, 2])
@pytest.mark.parametrize("tokens", [1, 2, 3, 5, 8])
@pytest.mark.parametrize("shape", [(32, 32), (70, 33), (100, 257), (576, 192)])
def test_products_have_the_same_bits_as_pytorchs(on_arm, shape, tokens, planes):
    inputs, outputs = shape
    layer = some_layer(inputs, outputs, planes=planes, bias=False)
    x = normal(tokens, inputs)
    x[0, :3] = torch.tensor([1e30, -1e-38, 0.0])
    x[-1, -1] = torch.nan if tokens > 1 else 300.0
    with kernels.using(kernels.PYTORCH):
        wanted = layer(x)
    same_bits(linear(on_arm, layer, x, layer.scale, planes), wanted)


@pytest.mark.parametrize("tokens", [1, 2, 5])
def test_the_control_in_bf16_is_the_product(on_arm, tokens):
    dense = torch.nn.Linear(100, 70, bias=False).bfloat16()
    layer, x = KernelBf16Linear.from_linear(dense), normal(tokens, 100)
    wanted = x.double() @ dense.weight.double().T
    found = linear(on_arm, layer, x, None, 0)
    assert (found - wanted).abs().max() < 2e-6 * wanted.abs().max() + 1e-6


@pytest.mark.parametrize("tokens", [1, 2, 5, 8])
def test_the_control_with_int8_weights_is_the_product(on_arm, tokens):
    dense = torch.nn.Linear(100, 70, bias=False)
    layer, x = KernelWeightOnlyLinear.from_linear(dense), normal(tokens, 100)
    wanted = x.double() @ layer.dequantized().double().T
    found = linear(on_arm, layer, x, layer.scale, -1)
    assert (found - wanted).abs().max() < 2e-6 * wanted.abs().max() + 1e-6


@pytest.mark.parametrize("dim", [2, 8, 18, 64, 80, 128])
@pytest.mark.parametrize(("heads", "shared"), [(3, 3), (9, 3), (8, 2), (5, 1), (7, 1)])
def test_decode_attention_is_the_formula_in_float64(on_arm, heads, shared, dim):
    for length in (1, 15, 16, 65, 300):
        keys, values, qkv, wanted = attention_case(heads, shared, dim, length, 1)
        cache = KeyValueCache(one_layer(heads, shared, dim, length), 1, length, 16)
        cache.write(0, 0, keys, values)
        sizes = (heads, shared, dim, length, cache.keys.shape[3])
        found = on_arm("attention", sizes, qkv.numpy(), bits(cache.keys), bits(cache.values))
        error = (found.view(1, heads, dim) - wanted).abs().max()
        assert error <= 2e-6 * wanted.abs().max()


@pytest.mark.parametrize("dim", [2, 8, 18, 64, 80, 128])
@pytest.mark.parametrize(("heads", "shared"), [(3, 3), (9, 3), (8, 2), (5, 1), (7, 1)])
def test_attention_over_an_int8_cache_is_so_too(on_arm, heads, shared, dim):
    for length in (1, 15, 16, 65, 300):
        keys, values, qkv, _ = attention_case(heads, shared, dim, length, 1)
        cache = KeyValueCache(one_layer(heads, shared, dim, length), 1, length, 16, "int8")
        cache.write(0, 0, keys, values)
        sizes = (heads, shared, dim, length, cache.keys.shape[3], 1)
        parts = [bits(part) for part in cache.tensors]
        found = on_arm("attention", sizes, qkv.numpy(), *parts)
        new = qkv.unflatten(1, (-1, dim))[:, heads:].unflatten(1, (2, shared))
        cache.write(0, length - 1, *new.transpose(0, 1).unsqueeze(3))
        wanted = attention_over(cache, qkv, heads, dim, length)
        error = (found.view(1, heads, dim) - wanted).abs().max()
        assert error <= 2e-6 * wanted.abs().max()
