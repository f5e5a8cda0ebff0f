"""Which code multiplies: the C++ kernel for this processor's instructions, or plain PyTorch.

The kernel is compiled once, at first use, by the machine's own compiler (a few seconds), and kept
in the course's cache. Where there is no compiler or no such CPU, PyTorch does the same sums.
"""

import contextlib
import ctypes
import functools
import hashlib
import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from importlib.resources import as_file, files
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from llama_int8.files import build_once, cache_folder
from llama_int8.processor import processor

CHOICE = "LLAMA_INT8_KERNEL"
PYTORCH = "pytorch"
X86, ARM = ("x86_64", "amd64"), ("aarch64", "arm64")


@dataclass(frozen=True)
class Version:
    """One version of the kernel: where it runs, by Linux's names of features, and how it is compiled."""

    machines: Sequence[str]
    features: Sequence[str]
    flags: str


VERSIONS = {  # the fastest first
    "vnni": Version(
        X86,
        ("avx512f", "avx512bw", "avx512vl", "avx512dq", "avx512_vnni"),
        "-mavx512f -mavx512bw -mavx512vl -mavx512dq -mavx512vnni -mavx2 -mfma",
    ),
    "avxvnni": Version(X86, ("avx2", "fma", "avx_vnni"), "-mavx2 -mfma -mavxvnni"),
    "avx2": Version(X86, ("avx2", "fma"), "-mavx2 -mfma"),
    "neon": Version(ARM, ("asimd", "asimddp"), "-march=armv8.2-a+dotprod"),
}
FLAGS = "-std=c++17 -O3 -ffp-contract=off -fno-math-errno -shared -fPIC"
OPENMP = "-fopenmp"
# Apple's clang knows OpenMP without its library: the one that PyTorch has loaded serves.
OPENMP_ON_MACOS = "-Xclang -fopenmp -undefined dynamic_lookup"
NO_COMPILER = {
    "darwin": "`xcode-select --install` brings one",
    "win32": "the Windows Subsystem for Linux (WSL) has one",
}
_Pointer = ctypes.c_void_p
_Int = ctypes.c_int64


class LinearStruct(ctypes.Structure):
    """`Linear` in kernel.cpp."""

    _fields_ = (
        ("weights", _Pointer),
        ("scale", _Pointer),
        ("bias", _Pointer),
        ("outputs", _Int),
        ("inputs", _Int),
        ("planes", _Int),
    )


class LayerStruct(ctypes.Structure):
    """`Layer` in kernel.cpp."""

    _fields_ = (
        ("input_norm", _Pointer),
        ("qkv", LinearStruct),
        ("o", LinearStruct),
        ("post_attention_norm", _Pointer),
        ("gate_up", LinearStruct),
        ("down", LinearStruct),
    )


class ModelStruct(ctypes.Structure):
    """`Model` in kernel.cpp."""

    _fields_ = (
        ("embedding", _Pointer),
        ("layers", ctypes.POINTER(LayerStruct)),
        ("norm", _Pointer),
        ("head", LinearStruct),
        ("cos", _Pointer),
        ("sin", _Pointer),
        ("keys", _Pointer),
        ("values", _Pointer),
        ("key_scale", _Pointer),
        ("value_scale", _Pointer),
        *((name, _Int) for name in "layer_count width inner heads kv_heads head_dim".split()),
        ("context", _Int),
        ("batch", _Int),
        ("eps", ctypes.c_float),
    )


@dataclass(frozen=True)
class Choice:
    """The code that runs, and why it is not a faster one ("" if there is none faster)."""

    name: str
    library: ctypes.CDLL | None
    reason: str = ""
    version: str = PYTORCH  # or one of VERSIONS


def cpu_features() -> frozenset[str]:
    """The CPU's features, by Linux's names ("avx2", "avx512_vnni"), as far as they are known."""
    there = processor().has
    if sys.platform != "linux" and "avx2" in there and "fma" not in processor().features:
        there |= {"fma"}  # Windows is not asked for it; every processor of Intel and AMD has both
    return there


def chosen() -> Choice:
    """The code that runs now: the fastest one here, or what $LLAMA_INT8_KERNEL names.

    Raises ValueError for an unknown name there, RuntimeError for a version that this machine
    cannot run or compile.
    """
    wanted = os.environ.get(CHOICE, "auto")
    if wanted not in ("auto", PYTORCH, *VERSIONS):
        raise ValueError(
            f"{CHOICE} is {wanted!r}; known are auto, {', '.join(VERSIONS)}, {PYTORCH}"
        )
    return _choose(wanted)


@contextlib.contextmanager
def using(name: str) -> Iterator[Choice]:
    """Within the block the named version runs: one of VERSIONS, or "pytorch"."""
    before = os.environ.get(CHOICE)
    os.environ[CHOICE] = name
    try:
        yield chosen()
    finally:
        os.environ.pop(CHOICE)
        if before is not None:
            os.environ[CHOICE] = before


def multiplies_bf16() -> bool:
    """Whether the kernel that runs multiplies bf16 by an instruction of its own (AVX512-BF16)."""
    library = chosen().library
    return library is not None and bool(library.has_bf16_dot())


def refusal(version: str) -> str:
    """Why one of VERSIONS cannot run here; "" where it can."""
    return _load(version)[0]


@functools.cache
def _choose(wanted: str) -> Choice:
    if wanted == PYTORCH:
        return Choice("PyTorch", None, f"{CHOICE} asks for it")
    reasons = []
    here = [v for v in VERSIONS if platform.machine().lower() in VERSIONS[v].machines]
    for version in here if wanted == "auto" else (wanted,):
        reason, library = _load(version)
        if library is not None:
            return Choice(library.kernel_name().decode(), library, "; ".join(reasons), version)
        reasons.append(f"{version}: {reason}")
    if wanted != "auto":
        raise RuntimeError(
            f"{CHOICE} is {wanted!r}, but {reasons[0]}; unset it to let it fall back"
        )
    nothing = f"there is no version for a {platform.machine()} processor"
    return Choice("PyTorch", None, "; ".join(reasons) or nothing)


def _load(version: str) -> tuple[str, ctypes.CDLL | None]:
    """("", the compiled library), or (the reason why there is none, None)."""
    wanted = VERSIONS[version]
    if platform.machine().lower() not in wanted.machines:
        kind = "an x86" if wanted.machines == X86 else "an ARM"
        return f"this is not {kind} processor but {platform.machine()}", None
    lacking = [feature for feature in wanted.features if feature not in cpu_features()]
    if lacking and sys.platform == "linux":  # which lists every feature
        return f"the CPU lacks {lacking[0]}", None
    known = [feature for feature in lacking if processor().features.get(feature) is False]
    if known:
        return f"the CPU lacks {known[0]}", None
    if lacking:
        return f"{platform.system()} does not tell whether the CPU has {lacking[0]}", None
    if (compiler := _compiler()) is None:
        advice = NO_COMPILER.get(sys.platform, "the package g++ brings one")
        return f"there is no C++ compiler (g++) on this machine; {advice}", None
    openmp = OPENMP_ON_MACOS if sys.platform == "darwin" else OPENMP
    with as_file(files(__package__) / "kernel.cpp") as source:
        return _compiled(compiler, source, f"{FLAGS} {openmp} {wanted.flags}".split(), _declared)


def build(source: Path, flags: str = "") -> ctypes.CDLL:
    """Another file of C++ as a library, compiled for the version of the kernel that runs here.

    Raises RuntimeError where PyTorch runs (the reason is that of `chosen`), ValueError with the
    compiler's first complaint.
    """
    choice, compiler = chosen(), _compiler()
    if choice.library is None or compiler is None:
        raise RuntimeError(f"no C++ is compiled here: {choice.reason}")
    options = f"{FLAGS} {VERSIONS[choice.version].flags} {flags}".split()
    reason, library = _compiled(compiler, source, options, lambda library: library)
    if library is None:
        raise ValueError(reason)
    return library


def _compiler() -> str | None:
    return next(filter(None, map(shutil.which, ("g++", "c++", "clang++"))), None)


@functools.cache
def compiler_version() -> str:
    """The first line of the version text of the machine's C++ compiler, or "none"."""
    if (compiler := _compiler()) is None:
        return "none"
    with contextlib.suppress(OSError, subprocess.SubprocessError):
        command = [compiler, "--version"]
        said = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60)
        return said.stdout.strip().partition("\n")[0] or "unknown"
    return "unknown"


def _compiled(
    compiler: str,
    source: Path,
    flags: Sequence[str],
    declare: Callable[[ctypes.CDLL], ctypes.CDLL],
) -> tuple[str, ctypes.CDLL | None]:
    version = subprocess.run([compiler, "--version"], capture_output=True, check=False).stdout
    content = [version, source.read_bytes(), " ".join(flags).encode()]
    name = hashlib.sha256(b"\0".join(content)).hexdigest()[:16]
    log = ""

    def compile_into(folder: Path) -> None:
        nonlocal log
        command = [compiler, *flags, "-o", str(folder / "kernel.so"), str(source)]
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=300)
        log = done.stderr
        if done.returncode:
            raise OSError

    try:
        folder = build_once(cache_folder() / "kernels" / name, compile_into)
        # PyTorch is loaded, and its OpenMP with it: the library finds that one, so that both work
        # with one pool of threads and not with two that wait for each other's cores.
        return "", declare(ctypes.CDLL(str(folder / "kernel.so")))
    except (OSError, subprocess.TimeoutExpired) as error:
        first = next((line for line in log.splitlines() if "error" in line), str(error))
        return f"{Path(compiler).name} could not compile it ({first.strip()})", None


def _declared(library: ctypes.CDLL) -> ctypes.CDLL:
    library.kernel_name.restype = library.struct_layout.restype = ctypes.c_char_p
    _check_structs(library.struct_layout().decode())
    for name in ("int8_linear_bf16", "int8_linear_fp32"):
        product = getattr(library, name)
        product.argtypes = (_Pointer, _Int, ctypes.POINTER(LinearStruct), _Pointer, ctypes.c_int)
        product.restype = None
    model = ctypes.POINTER(ModelStruct)
    library.keys_in_a_block.restype = _Int
    library.llama_step.argtypes = (model, _Pointer, _Int, _Pointer, ctypes.c_int)
    library.decode_attention.argtypes = (model, _Int, _Pointer, _Int, _Pointer, ctypes.c_int)
    library.llama_step.restype = library.decode_attention.restype = None
    library.sum_memory.argtypes = (_Pointer, _Int, ctypes.c_int, ctypes.c_int)
    library.sum_memory.restype = ctypes.c_uint64
    return library


def _check_structs(layout: str) -> None:
    """Raise TypeError unless the structs here are those of kernel.cpp, which would misread memory."""
    structs = (LinearStruct, LayerStruct, ModelStruct)
    for struct, expected in zip(structs, layout.splitlines(), strict=True):
        fields = [(name, getattr(struct, name)) for name, _ in struct._fields_]
        places = (f"{name} {field.offset}+{field.size}" for name, field in fields)
        here = " ".join([expected.split()[0], str(ctypes.sizeof(struct)), *places])
        if here != expected:
            raise TypeError(
                f"{struct.__name__} in kernels.py differs from kernel.cpp (size; offset+length of each "
                f"field): {here!r}, expected {expected!r}; make the two equal"
            )


def linear_struct(layer: Any, scale: Tensor | None, planes: int) -> LinearStruct:
    """A layer as the kernel sees it: pointers to its tensors, and its sizes."""
    weights, scale, bias = (
        None if tensor is None else tensor.data_ptr()
        for tensor in (layer.weight, scale, layer.bias)
    )
    return LinearStruct(weights, scale, bias, layer.out_features, layer.in_features, planes)


def compiled_linear(library: ctypes.CDLL, x: Tensor, layer: LinearStruct) -> Tensor:
    """The kernel's product, (N, K) -> (N, M) in x's dtype (FP16 by way of FP32)."""
    work = x if x.dtype in (torch.bfloat16, torch.float32) else x.float()
    work = work.contiguous()
    y = work.new_empty(len(x), layer.outputs)
    product = library.int8_linear_fp32
    if work.dtype == torch.bfloat16:
        product = library.int8_linear_bf16
    product(work.data_ptr(), len(x), layer, y.data_ptr(), torch.get_num_threads())
    return y.to(x.dtype)


STREAMS = (1, 2, 4, 8)  # in how many places `sum_memory` can have each thread read
LINE = 64  # bytes of a cache line


def sum_memory(library: ctypes.CDLL, data: Tensor, streams: int) -> int:
    """The sum of the tensor's 64-bit words, modulo 2^64, read by all threads of PyTorch.

    It only reads, so no step that reads as many bytes can be faster. Raises
    ValueError for memory that is not made of whole cache lines.
    """
    if not data.is_contiguous() or data.data_ptr() % LINE or data.nbytes % LINE:
        raise ValueError(f"{data.nbytes} bytes at {data.data_ptr():#x} are not whole cache lines")
    threads = torch.get_num_threads()
    return library.sum_memory(data.data_ptr(), data.nbytes // LINE, streams, threads)
