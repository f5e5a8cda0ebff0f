"""A model that computes as if the operands of its linear layers had been rounded to int8.

Both operands are quantized and restored, then multiplied in the model's own format. In FP32 that
equals the integer product to rounding, and it lets every scheme, also one that no kernel knows, be
tried on the same model with the same tokens.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn.functional import linear as linear_map
from torch.nn.functional import pad

from llama_int8.quantization.cpu.layout import GROUP
from llama_int8.quantization.quantize import absmax_quantize, dequantize, zeropoint_quantize

Blocks = Literal["tensor", "row", "group"]  # group: GROUP neighbours of a row


@dataclass(frozen=True)
class Scheme:
    """Which operands are rounded, in which blocks, and what stays in high precision."""

    weights: Blocks | None = None
    activations: Blocks | None = None
    zero_point: bool = False
    threshold: float = 0.0  # columns of activations with such a magnitude stay; 0: none
    own_values: bool = False  # not whole columns: each row keeps its own outliers only
    random_columns: bool = False  # instead of these columns, as many others, drawn at random
    decomposed: tuple[str, ...] | None = None  # layers whose columns stay: "down_proj"; None: all
    original_weights: bool = False  # columns that stay meet the weights as they were (the paper)
    token: int | None = None  # the activations at this position of each window stay
    smoothing: float | None = None  # SmoothQuant's alpha

    def __post_init__(self) -> None:
        if not 0 <= self.threshold < float("inf"):
            raise ValueError(f"threshold is {self.threshold}; it must be 0 (none stays) or more")


@dataclass
class Kept:
    """How many activation values entered the linear layers, and how many stayed as they were."""

    values: int = 0
    kept: int = 0

    @property
    def share(self) -> float:
        """Kept values over all; where whole columns are kept, the share of columns."""
        return self.kept / max(self.values, 1)


def smoothing_factors(weight: Tensor, absmax: Tensor, alpha: float) -> Tensor:
    """s_j = max|X_j|^alpha / max|W_j|^(1 - alpha) for input channel j, (C,).

    Activations are divided by s, weights multiplied: outliers move into the weights (SmoothQuant,
    Xiao et al., arXiv:2211.10438, equation 4). `weight`: (M, C); `absmax`: of the inputs, (C,).
    """
    small = 1e-5  # as in the authors' code: a channel that is never used
    of_weights = weight.abs().amax(0).clamp(min=small)
    return (absmax.clamp(min=small) ** alpha / of_weights ** (1 - alpha)).clamp(min=small)


class _Rounding:
    """What the hooks of all layers share: the count, and the last input, since q, k and v get one."""

    def __init__(self, seed: int) -> None:
        self.count = Kept()
        self.generator = torch.Generator().manual_seed(seed)
        self.input = self.rounded = self.stays = None

    def round_input(
        self, scheme: Scheme, factors: Tensor | None, _module: nn.Module, inputs: tuple[Tensor, ...]
    ) -> tuple[Tensor]:
        """Hook before a layer: its input, divided by the smoothing `factors` and rounded."""
        x = inputs[0] if factors is None else inputs[0] / factors
        if self.input is not x:
            self.input = x
            self.rounded, self.stays = _rounded_input(x, scheme, self.generator)
        self.count.values += x.numel()
        self.count.kept += 0 if self.stays is None else int(self.stays.sum())
        return (self.rounded,)

    def add_lost(self, lost: Tensor, _module: nn.Module, _inputs: Any, y: Tensor) -> Tensor:
        """Hook after a layer: `lost`, what rounding took from its weights, for the columns that stay."""
        if self.stays is None:
            return y
        columns = self.stays.flatten(0, -2).all(0).nonzero().flatten()
        return y + linear_map(self.input[..., columns], lost[:, columns])


@contextmanager
def simulated(
    linears: Mapping[str, nn.Linear],
    scheme: Scheme,
    absmax: Mapping[str, Tensor] | None = None,
    seed: int = 0,
) -> Iterator[Kept]:
    """Within the block, `linears` compute with operands rounded as `scheme` says; yields the count.

    `absmax`: of each layer's input channels, (C,), for smoothing. Outliers are treated as in
    bitsandbytes: their columns stay as they are and meet the rounded weights, unless the scheme says
    otherwise. The weights are put back at the end of the block, even after an error. Raises
    ValueError for smoothing without absmax.
    """
    if scheme.smoothing is not None and absmax is None:
        raise ValueError("smoothing needs the absmax of every layer's input channels")
    rounding, hooks = _Rounding(seed), []
    originals = {name: linear.weight.data for name, linear in linears.items()}
    try:
        for name, linear in linears.items():
            factors, weight = None, linear.weight.data
            if scheme.smoothing is not None:
                factors = smoothing_factors(weight, absmax[name], scheme.smoothing)
                weight = weight * factors
            linear.weight.data = _restored(weight, scheme.weights, scheme.zero_point)
            if scheme.activations is None and scheme.smoothing is None:
                continue
            chosen = scheme.decomposed is None or name.rpartition(".")[2] in scheme.decomposed
            own = scheme if chosen else replace(scheme, threshold=0.0)
            before = partial(rounding.round_input, own, factors)
            hooks.append(linear.register_forward_pre_hook(before))
            if scheme.original_weights:
                after = partial(rounding.add_lost, weight - linear.weight.data)
                hooks.append(linear.register_forward_hook(after))
        yield rounding.count
    finally:
        for registered in hooks:
            registered.remove()
        for name, linear in linears.items():
            linear.weight.data = originals[name]


def _restored(values: Tensor, blocks: Blocks | None, zero_point: bool) -> Tensor:
    if blocks is None:
        return values
    quantize = zeropoint_quantize if zero_point else absmax_quantize
    if blocks == "group":  # cut from a matrix's rows, the last one filled up with zeros
        flat = pad(values.flatten(0, -2), (0, -values.shape[-1] % GROUP))
        restored = dequantize(quantize(flat, granularity=blocks, group_size=GROUP))
        restored = restored[:, : values.shape[-1]]
    else:
        restored = dequantize(quantize(values, granularity=blocks))
    return restored.reshape(values.shape).to(values.dtype)


def _rounded_input(
    x: Tensor, scheme: Scheme, generator: torch.Generator
) -> tuple[Tensor, Tensor | None]:
    """Round (B, T, C), except for what the scheme protects; returns a mask of that, too, or None."""
    if not scheme.threshold and scheme.token is None:
        return _restored(x, scheme.activations, scheme.zero_point), None
    hidden = torch.zeros_like(x, dtype=torch.bool)  # left out of the scale
    if scheme.threshold:
        hidden = x.abs() >= scheme.threshold
    columns = hidden.flatten(0, -2).any(0)  # (C,)
    if scheme.random_columns:
        order = torch.randperm(columns.numel(), generator=generator).to(x.device)
        order = order[~columns[order]]  # fewer than wanted only if most columns hold outliers
        columns = torch.zeros_like(columns).scatter(0, order[: int(columns.sum())], True)
        hidden = columns.expand_as(x)
    stays = hidden if scheme.own_values else columns.expand_as(x)
    if scheme.token is not None:
        place = torch.zeros_like(x, dtype=torch.bool)
        place[..., scheme.token, :] = True
        hidden, stays = hidden | place, stays | place
    restored = _restored(x.masked_fill(hidden, 0), scheme.activations, scheme.zero_point)
    return torch.where(stays, x, restored), stays
