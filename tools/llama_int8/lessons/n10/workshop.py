"""C++ from a notebook's cell: the learner's loops are compiled, and called with tensors.

The learner writes what stands inside a function; the frame around it is here. It begins with the
part of kernel.cpp that knows the processor's vectors, so `Ints`, `dot4` and `load_ints` are the
kernel's own. Where nothing can be compiled, PyTorch computes the same numbers.
"""

import ctypes
import functools
import re
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.resources import files
from pathlib import Path

import torch
from torch import Tensor

from llama_int8.quantization.cpu import kernels
from llama_int8.quantization.cpu.layout import GROUP, ROWS
from llama_int8.quantization.cpu.packing import unpack, unpack_rows
from llama_int8.quantization.matmul import int8_matmul

SCALAR = "-fno-tree-vectorize -fno-tree-slp-vectorize"  # one number after another, as written
# gcc decides early which arrays can live in registers: only if the loops over them are written out
# by then. Otherwise a tile's sums go to memory and back at each instruction, at half the speed.
OVER_A_TILE = re.compile(r"for \(int \w+ = 0; \w+ < (?:TOKENS|VECTORS);")
WRITE_OUT = '_Pragma("GCC unroll 16") '
LOOP = r"""
#include <cstdint>
extern "C" void product(const int8_t* x_codes, const WEIGHT* w_codes, int32_t* y, int T, int M, int K) {
#line 1 "your lines"
%s
}
"""
TILE = r"""
static inline Ints four_codes(const int8_t* p) {
    int32_t four;
    std::memcpy(&four, p, 4);
    return ints(four);
}
static inline void store(int32_t* p, Ints v) { std::memcpy(p, &v, sizeof v); }
static inline void store(float* p, Floats v) { store_floats(p, v); }

template <int TOKENS>
static void tile(const int8_t* x_codes, const int32_t* start, const float* a, const uint8_t* w_codes,
                 const uint16_t* s, RESULT* y, int M, int K) {
    constexpr int VECTORS = 32 / LANES;
    const int G = K / 32;
    (void)a, (void)s, (void)G;
#line 1 "your lines"
%s
}

extern "C" void product(const int8_t* x_codes, const float* a, const uint8_t* w_codes,
                        const uint16_t* s, RESULT* y, int T, int M, int K, int tokens) {
    const int G = K / 32, starts = s ? G : 1, each = K / starts;
    std::vector<int32_t> start(T * starts);
    for (int i = 0; i < T * starts; i++) {
        int sum = 0;
        for (int k = 0; k < each; k++) sum += x_codes[i * each + k];
        start[i] = -OFFSET * sum;
    }
    for (int b = 0; b < M / 32; b++)
        for (int t = 0; t < T;) {
            const bool whole = tokens > 1 && T - t >= MOST;
            (whole ? tile<MOST> : tile<1>)(
                x_codes + t * K, start.data() + t * starts, a + t * G, w_codes + int64_t(b) * 32 * K,
                s + int64_t(b) * 32 * G, y + int64_t(t) * M + b * 32, M, K);
            t += whole ? MOST : 1;
        }
}
"""
_compilers_vectors = False
TYPES = {torch.int8: "int8_t", torch.uint8: "uint8_t"}


def loop(body: str, codes: Tensor, weights: Tensor) -> Tensor:
    """Integer products by the learner's loops, (T, K) and (M, K) -> int32 (T, M).

    In C++ they are `x_codes` and `w_codes`, and the sums are `y`. `weights`: int8 (M, K), or packed,
    uint8 (M / 32, K / 4, 32, 4). One number after another, except within `compilers_vectors`.
    Gives `...` for a body that still has a line of three dots.
    """
    if _is_blank(body):
        return ...
    inputs = codes.shape[1]
    y = torch.empty(len(codes), weights.numel() // inputs, dtype=torch.int32)
    source = LOOP.replace("WEIGHT", TYPES[weights.dtype]) % body
    library = _library(source, "" if _compilers_vectors else SCALAR)
    if library is None:
        return _integers(codes, weights)
    library.product(*_pointers(codes, weights, y), *y.shape, inputs)
    return y


def tile(
    body: str,
    codes: Tensor,
    packed: Tensor,
    scales: tuple[Tensor, Tensor] | None = None,
    tokens: int = 1,
) -> Tensor:
    """Products tile by tile: the learner's lines compute one tile, the frame goes through all.

    codes int8 (T, K), packed uint8 (M / 32, K / 4, 32, 4); in C++ `x_codes` and `w_codes`. `scales`:
    of codes FP32 (T, K / 32) and of weights bf16 (M / 32, K / 32, 32); without them the result is
    int32 (T, M). `tokens`: in a tile, 1, or more: then as many as the processor's registers hold,
    where there are so many.
    """
    if _is_blank(body):
        return ...
    inputs, outputs = codes.shape[1], len(packed) * ROWS
    y = torch.empty(len(codes), outputs, dtype=torch.float32 if scales else torch.int32)
    of_codes, of_weights = scales or (None, None)
    source = tile_source(body, scales is not None)
    library = _library(source, "")
    if library is None:
        return _scaled(codes, packed, *scales) if scales else _integers(codes, packed)
    pointers = _pointers(codes, of_codes, packed, of_weights, y)
    library.product(*pointers, *y.shape, inputs, tokens)
    return y


def tile_source(body: str, scaled: bool) -> str:
    """What is compiled for `tile`: the kernel's vectors, the frame, and the learner's lines in it."""
    body = OVER_A_TILE.sub(lambda loop: WRITE_OUT + loop.group(), body)
    return _frame() + TILE.replace("RESULT", "float" if scaled else "int32_t") % body


@contextmanager
def compilers_vectors() -> Iterator[None]:
    """Within the block the compiler may turn the loops of `loop` into vectors by itself."""
    global _compilers_vectors
    before, _compilers_vectors = _compilers_vectors, True
    try:
        yield
    finally:
        _compilers_vectors = before


def unavailable() -> str:
    """Why no C++ can be compiled here; "" where it can."""
    choice = kernels.chosen()
    return choice.reason if choice.library is None else ""


def _is_blank(body: str) -> bool:
    return re.search(r"^\s*\.\.\.", body, re.MULTILINE) is not None


@functools.cache
def _frame() -> str:
    """kernel.cpp up to its tile: numbers, and the vectors of this processor."""
    source = (files("llama_int8.quantization.cpu") / "kernel.cpp").read_text(encoding="utf-8")
    return source.partition("// Pairs of neighbours")[0]


@functools.cache
def _library(source: str, flags: str) -> ctypes.CDLL | None:
    """Compiled once for each text; None where PyTorch has to do. Raises ValueError for wrong C++."""
    if unavailable():
        return None
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "cell.cpp"
        path.write_text(source, encoding="utf-8")
        return kernels.build(path, f"{flags} -w")


def _pointers(*tensors: Tensor | None) -> list[ctypes.c_void_p]:
    for tensor in tensors:
        if tensor is not None and not tensor.is_contiguous():
            raise ValueError("a tensor is not contiguous; pass it through .contiguous()")
    return [ctypes.c_void_p(None if t is None else t.data_ptr()) for t in tensors]


def _integers(codes: Tensor, weights: Tensor) -> Tensor:
    """The exact integer product in PyTorch."""
    inputs = codes.shape[1]
    if weights.dim() == 4:
        weights = unpack(weights, weights.numel() // inputs, inputs)
    return int8_matmul(codes, weights).to(torch.int32)


def _scaled(codes: Tensor, packed: Tensor, of_codes: Tensor, of_weights: Tensor) -> Tensor:
    """Scales for each group, in PyTorch: one product per group."""
    inputs, outputs = codes.shape[1], len(packed) * ROWS
    weights = unpack(packed, outputs, inputs).float().unflatten(1, (-1, GROUP))  # (M, G, 32)
    weights = weights * unpack_rows(of_weights, outputs).float()[..., None]
    x = codes.float().unflatten(1, (-1, GROUP)) * of_codes[..., None]
    return x.flatten(1) @ weights.flatten(1).T
