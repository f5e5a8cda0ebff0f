"""The format of `int8-fast`, and its product in plain PyTorch.

Both operands: int8 codes with one scale for every GROUP inputs, of a token in FP32, of a row of
weights in bf16, so that an outlier coarsens 31 neighbours and not the whole row. Shapes: N tokens,
M outputs, K inputs, G = K / GROUP groups (rounded up).
"""

import torch
from torch import Tensor
from torch.nn.functional import pad

from llama_int8.quantization.cpu.layout import GROUP, ROWS

TINY = 1e-30  # a group below it counts as zeros: 127 / absmax would soon be infinite
_LARGEST = torch.tensor(127.0)  # a tensor: `127 / x` is `x.reciprocal() * 127`, rounded twice
_SLICE_BYTES = 2**25  # weights that the plain path restores at a time, in FP32


def in_groups(values: Tensor, group: int = GROUP) -> Tensor:
    """(..., K) -> (..., G, `group`) in FP32, zeros at the end of the last group."""
    return pad(values.float(), (0, -values.shape[-1] % group)).unflatten(-1, (-1, group))


def quantize_weight(weight: Tensor, group: int = GROUP) -> tuple[Tensor, Tensor]:
    """Codes of a matrix, (M, K) -> int8 (M, K), and scales bf16 (M, G): weight = scale x code.

    Absmax of each `group` of a row; the codes are those for the scale as bf16 holds it. Raises
    TypeError unless given a matrix in floating point, ValueError for an empty matrix, NaN and
    infinity.
    """
    if weight.dim() != 2 or not weight.is_floating_point():
        raise TypeError(
            f"the weights are {weight.dtype} of shape {tuple(weight.shape)}; expected a matrix "
            "(outputs, inputs) in floating point"
        )
    if weight.numel() == 0:
        raise ValueError(f"weights of shape {tuple(weight.shape)} hold nothing to quantize")
    codes, scales = [], []
    for first in range(0, len(weight), 4096):  # a large output layer once in FP32 would be GBs
        groups = in_groups(weight[first : first + 4096], group)  # (m, G, group)
        absmax = groups.abs().amax(-1)
        if not absmax.isfinite().all():
            row = first + int((~absmax.isfinite()).any(1).nonzero()[0])
            raise ValueError(f"row {row} of the weights holds NaN or infinity, which have no codes")
        scale = torch.where(absmax < TINY, 0.0, absmax / 127).bfloat16()
        steps = torch.where(scale > 0, 1 / scale.float(), 0.0)
        rounded = (groups * steps[..., None]).round().clamp(-127, 127).to(torch.int8)
        codes.append(rounded.flatten(1)[:, : weight.shape[1]])
        scales.append(scale)
    return torch.cat(codes), torch.cat(scales)


def quantize_activations(x: Tensor) -> tuple[Tensor, Tensor]:
    """(N, K) -> codes, int8 (N, G, GROUP), zeros at the end of the last group, and scales (N, G).

    A group with NaN or infinity gets codes 0 and the scale NaN, so that its token's outputs are NaN.
    """
    return quantize_groups(in_groups(x))


def quantize_in_planes(x: Tensor, planes: int) -> list[tuple[Tensor, Tensor]]:
    """Codes and scales as above; with 2 planes those of what rounding left as well, in int8 again."""
    groups = in_groups(x)
    found = [quantize_groups(groups)]
    if planes == 2:
        codes, scale = found[0]
        found.append(quantize_groups(groups - scale[..., None] * codes))
    return found


def quantize_groups(groups: Tensor) -> tuple[Tensor, Tensor]:
    """(..., G, n) in FP32 -> int8 codes, and a scale for every n numbers, (..., G)."""
    absmax = groups.abs().amax(-1)  # (N, G)
    finite = absmax.isfinite()
    steps = torch.where(finite & (absmax >= TINY), _LARGEST / absmax, 0.0)
    scale = torch.where(absmax < TINY, 0.0, absmax / 127).masked_fill(~finite, torch.nan)
    codes = (groups * steps[..., None]).nan_to_num(0.0).round().to(torch.int8)
    return codes, scale


def pack(codes: Tensor) -> Tensor:
    """int8 (M, K) -> uint8 (M / ROWS, K / 4, ROWS, 4), code + 128, filled up with codes 0.

    The order in which the kernel reads: 4 neighbouring inputs of 32 outputs, then the next 4 inputs.
    """
    full = pad(codes, (0, -codes.shape[1] % GROUP, 0, -codes.shape[0] % ROWS))
    blocks = (full ^ -128).view(torch.uint8)  # code + 128: the sign bit turned over
    return blocks.view(len(full) // ROWS, ROWS, -1, 4).transpose(1, 2).contiguous()


def unpack(packed: Tensor, outputs: int, inputs: int) -> Tensor:
    """The inverse of `pack`: uint8 (M / ROWS, K / 4, ROWS, 4) -> int8 (M, K)."""
    full = packed.transpose(1, 2).reshape(len(packed) * ROWS, -1)
    return (full.view(torch.int8) ^ -128)[:outputs, :inputs]


def pack_rows(scale: Tensor) -> Tensor:
    """bf16 (M, G) -> bf16 (M / ROWS, G, ROWS), filled up with zeros: the order of `pack`."""
    full = pad(scale, (0, 0, 0, -scale.shape[0] % ROWS))
    return full.view(-1, ROWS, scale.shape[1]).transpose(1, 2).contiguous()


def unpack_rows(packed: Tensor, outputs: int) -> Tensor:
    """The inverse of `pack_rows`: bf16 (M / ROWS, G, ROWS) -> bf16 (M, G)."""
    return packed.transpose(1, 2).reshape(len(packed) * ROWS, -1)[:outputs]


def pack_pairs(weight: Tensor) -> Tensor:
    """bf16 (M, K) -> bf16 (M / ROWS, K / 2, ROWS, 2), filled up with zeros.

    The order in which the kernel reads weights in 16 bit: 2 neighbouring inputs of 32 outputs.
    """
    full = pad(weight, (0, -weight.shape[1] % GROUP, 0, -weight.shape[0] % ROWS))
    return full.view(len(full) // ROWS, ROWS, -1, 2).transpose(1, 2).contiguous()


def unpack_pairs(packed: Tensor, outputs: int, inputs: int) -> Tensor:
    """The inverse of `pack_pairs`: bf16 (M / ROWS, K / 2, ROWS, 2) -> bf16 (M, K)."""
    return packed.transpose(1, 2).reshape(len(packed) * ROWS, -1)[:outputs, :inputs]


def plain_linear(
    x: Tensor, packed: Tensor, scale: Tensor, bias: Tensor | None, outputs: int, planes: int = 1
) -> Tensor:
    """The product in plain PyTorch, (N, K) -> (N, M) in x's dtype, bit for bit the kernel's.

    The codes of one group are multiplied in FP32, which holds every sum of 32 products exactly;
    the groups are scaled and added in the kernel's order. It runs everywhere, slowly.
    """
    quantized = quantize_in_planes(x, planes)
    y = torch.empty(len(x), outputs, dtype=x.dtype)
    blocks = max(1, _SLICE_BYTES // (4 * ROWS * packed.shape[1] * 4))
    for first in range(0, len(packed), blocks):
        part = packed[first : first + blocks]
        rows = slice(first * ROWS, min(outputs, (first + blocks) * ROWS))
        count = rows.stop - rows.start
        # G x (m, GROUP)
        weights = unpack(part, count, 4 * part.shape[1]).float().split(GROUP, dim=1)
        of_weights = unpack_rows(scale[first : first + blocks], count).float()  # (m, G)
        sums = [
            _scaled_sums(codes, of_tokens, weights, of_weights) for codes, of_tokens in quantized
        ]
        total = sums[0] if planes == 1 else sums[0] + sums[1]
        if bias is not None:
            total = total + bias[rows]
        y[:, rows] = total.to(x.dtype)
    return y


def _scaled_sums(
    codes: Tensor, of_tokens: Tensor, weights: tuple[Tensor, ...], of_weights: Tensor
) -> Tensor:
    total = torch.zeros(len(codes), len(of_weights))
    for g, group in enumerate(weights):
        scale = of_tokens[:, g, None] * of_weights[:, g]  # (N, m)
        total += (codes[:, g].float() @ group.T) * scale
    return total


def lost_bits(x: Tensor) -> Tensor:
    """Bits that each group of a token loses to the token's one scale, (N, K) -> (N, G).

    log2 of the largest magnitude in the row over the largest in the group: a group that is 8 times
    smaller than its row uses an eighth of the codes. Groups of zeros lose nothing.
    """
    groups = in_groups(x).abs().amax(-1)
    lost = (groups.amax(-1, keepdim=True) / groups).log2()
    return lost.masked_fill(groups == 0, 0.0)
