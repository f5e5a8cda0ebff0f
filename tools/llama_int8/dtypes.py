"""Number formats: what the course, PyTorch and safetensors call them, and the bytes of a value.

Imports torch only when a dtype of PyTorch is asked for, so that costs can be computed without it.
"""

from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    import torch


class Format(NamedTuple):
    """A floating-point format."""

    torch: str
    safetensors: str
    bytes: int


FORMATS = {
    "fp64": Format("float64", "F64", 8),
    "fp32": Format("float32", "F32", 4),
    "bf16": Format("bfloat16", "BF16", 2),
    "fp16": Format("float16", "F16", 2),
}
IN_FILES = {one.torch: one.safetensors for one in FORMATS.values()}


def torch_dtype(name: str) -> "torch.dtype":
    """PyTorch's dtype of a format such as "bf16"."""
    import torch

    return getattr(torch, FORMATS[name].torch)


def safetensors_name(dtype: "torch.dtype") -> str:
    """What a safetensors file calls `dtype`; PyTorch's own name where it is not floating point."""
    return IN_FILES.get(str(dtype).removeprefix("torch."), str(dtype))
