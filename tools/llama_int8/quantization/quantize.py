"""Absmax and zero-point quantization of 2 to 8 bits (arXiv:2208.07339, section 2.1).

A value becomes an integer code; codes of one block share a scale, the size of one step:
value = (code - zero_point) * scale. A block is the whole tensor, a row (all values with the same
leading indices), a column (the same last index), or a group of neighbours within a row.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from llama_int8.quantization.matmul import int8_matmul

GRANULARITIES = ("tensor", "row", "column", "group")


@dataclass(frozen=True)
class Quantized:
    """Codes in the shape of the values, and for each block its scale and its zero point."""

    codes: Tensor  # int8
    scale: Tensor  # FP32 (FP64 for FP64 values); in groups (..., groups, 1), else broadcastable
    zero_point: Tensor  # int32, shaped as `scale`: the code that stands for 0; absmax: always 0


def in_blocks(
    values: Tensor, granularity: str, group_size: int | None
) -> tuple[Tensor, tuple[int, ...]]:
    """The values in at least FP32, cut into groups if wanted; and the dimensions that share a scale."""
    _check_values(values, granularity, group_size)
    precise = values.to(torch.promote_types(values.dtype, torch.float32))
    if granularity == "group":
        return precise.unflatten(-1, (-1, group_size)), (-1,)  # (..., C) -> (..., groups, size)
    if granularity == "row":
        return precise, (-1,)
    kept = 1 if granularity == "column" else 0
    return precise, tuple(range(values.dim() - kept))


def absmax_quantize(
    values: Tensor,
    bits: int = 8,
    granularity: str = "tensor",
    group_size: int | None = None,
    clip: float | None = None,
) -> Quantized:
    """round(x / max|x| * (2^(bits-1) - 1)), symmetric about zero; -2^(bits-1) is not used.

    `granularity`: "tensor", "row", "column" or "group" (with `group_size`). `clip`: values beyond
    it are cut off, so that the others get smaller steps. A block of zeros gets zeros.
    Raises TypeError for values that are not floating-point, ValueError for empty values, NaN
    or infinity, and for impossible bits, granularity, group size or clip.
    """
    _check_bits(bits)
    _check_clip(clip)
    blocks, dims = in_blocks(values, granularity, group_size)
    top = 2 ** (bits - 1) - 1
    absmax = blocks.abs().amax(dims, keepdim=True)
    if clip is not None:
        absmax = absmax.clamp(max=clip)
    shares = blocks / torch.where(absmax > 0, absmax, 1)  # -1 to 1, but for what clip cuts off
    codes = (shares * top).round().clamp(-top, top).to(torch.int8)
    scale = absmax / top
    return Quantized(codes.reshape(values.shape), scale, torch.zeros_like(scale, dtype=torch.int32))


def zeropoint_quantize(
    values: Tensor, bits: int = 8, granularity: str = "tensor", group_size: int | None = None
) -> Quantized:
    """round(x / scale) + zero_point: all 2^bits codes between the smallest and the largest value.

    The range always takes in 0, which gets a code of its own, so that zeros stay zeros (Jacob et
    al., arXiv:1712.05877, section 2.1). Arguments and errors as in `absmax_quantize`.
    """
    _check_bits(bits)
    blocks, dims = in_blocks(values, granularity, group_size)
    lowest, highest = -(2 ** (bits - 1)), 2 ** (bits - 1) - 1
    low = blocks.amin(dims, keepdim=True).clamp(max=0)
    high = blocks.amax(dims, keepdim=True).clamp(min=0)
    scale = high / (highest - lowest) - low / (highest - lowest)
    step = torch.where(scale > 0, scale, 1)
    zero_point = lowest - (low / step).round()
    codes = ((blocks / step).round() + zero_point).clamp(lowest, highest).to(torch.int8)
    return Quantized(codes.reshape(values.shape), scale, zero_point.to(torch.int32))


def dequantize(quantized: Quantized) -> Tensor:
    """(code - zero_point) * scale, in the scale's dtype and the codes' shape."""
    codes, scale = quantized.codes, quantized.scale
    if scale.dim() > codes.dim():  # groups
        codes = codes.unflatten(-1, (scale.shape[-2], -1))
    restored = (codes - quantized.zero_point) * scale
    return restored.reshape(quantized.codes.shape)


def quantized_matmul(a: Quantized, b: Quantized) -> Tensor:
    """a times b transposed from the codes: (M, K) and (N, K) -> (M, N), in the scales' dtype.

    One scale for each row or for the tensor. The integers are exact; with them
    sum (x - p)(y - q) = sum xy - q sum x - p sum y + K p q takes the zero points p and q off
    (arXiv:1712.05877, section 2.3). Raises ValueError for blocks that cut through a row.
    """
    _check_factors(a, b)
    p, q = a.zero_point, b.zero_point.T  # (M or 1, 1), (1, N or 1)
    sums_a = a.codes.sum(-1, keepdim=True)  # (M, 1), int64
    sums_b = b.codes.sum(-1, keepdim=True).T  # (1, N)
    exact = int8_matmul(a.codes, b.codes) - q * sums_a - p * sums_b + a.codes.shape[1] * p * q
    return exact * (a.scale * b.scale.T)


def signal_to_noise(values: Tensor, restored: Tensor) -> float:
    """10 log10(mean square of the values / mean square of the error), in dB; infinite without error.

    Raises ValueError for other shapes, and for values without a signal.
    """
    _check_signal(values, restored)
    signal = values.double().square().mean()
    noise = (values.double() - restored.double()).square().mean()
    return (10 * torch.log10(signal / noise)).item()


def _check_bits(bits: int) -> None:
    if isinstance(bits, bool) or not isinstance(bits, int) or not 2 <= bits <= 8:
        raise ValueError(f"bits is {bits!r}; codes have 2 to 8 bits")


def _check_clip(clip: float | None) -> None:
    if clip is not None and (isinstance(clip, bool | str) or not 0 < clip < float("inf")):
        raise ValueError(f"clip is {clip!r}; it must be a positive number, or None")


def _check_values(values: Tensor, granularity: str, group_size: int | None) -> None:
    wanted_type = isinstance(values, Tensor) and values.is_floating_point()
    if not wanted_type or values.dtype.itemsize < 2:  # FP8 is not accepted, either
        kind = values.dtype if isinstance(values, Tensor) else type(values).__name__
        raise TypeError(
            f"values are {kind}; only a floating-point tensor of 16 bits or more can be quantized"
        )
    if values.numel() == 0:
        raise ValueError(f"values have shape {tuple(values.shape)}: there is nothing to quantize")
    if granularity not in GRANULARITIES:
        raise ValueError(f"granularity is {granularity!r}; known are {', '.join(GRANULARITIES)}")
    wanted = {"tensor": 0, "row": 1, "column": 2, "group": 1}[granularity]
    if values.dim() < wanted:
        raise ValueError(
            f"values have shape {tuple(values.shape)}; granularity {granularity!r} needs "
            f"{wanted} dimension{'s' if wanted > 1 else ''}"
        )
    if (group_size is not None) != (granularity == "group"):
        raise ValueError(
            f"granularity is {granularity!r}, group_size {group_size!r}; a group size goes only "
            "with granularity 'group'"
        )
    if group_size is not None and (isinstance(group_size, bool) or not isinstance(group_size, int)):
        raise ValueError(f"group_size is {group_size!r}; it must be a whole number")
    if group_size is not None and not (group_size >= 1 and values.shape[-1] % group_size == 0):
        raise ValueError(f"group_size {group_size} does not divide rows of {values.shape[-1]}")
    if not values.isfinite().all():
        index = tuple((~values.isfinite()).nonzero()[0].tolist())
        raise ValueError(f"value {values[index].item()} at {index}: only finite values have codes")


def _check_factors(a: Quantized, b: Quantized) -> None:
    for factor in (a, b):
        shape, blocks = tuple(factor.codes.shape), tuple(factor.scale.shape)
        if len(shape) != 2 or blocks not in ((1, 1), (shape[0], 1)):
            raise ValueError(
                f"codes {shape} with scales {blocks}: a product of integers needs matrices with one "
                "scale for each row, or one for the tensor, because a sum runs along the row"
            )


def _check_signal(values: Tensor, restored: Tensor) -> None:
    if values.shape != restored.shape:
        raise ValueError(f"shapes are {tuple(values.shape)} and {tuple(restored.shape)}")
    if not (values.isfinite().all() and restored.isfinite().all()):
        raise ValueError("the values hold NaN or infinity: they have no mean square")
    if not values.any():
        raise ValueError("all values are zero: there is no signal to compare noise with")
