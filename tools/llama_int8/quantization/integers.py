"""Schemes of `simulate.Scheme` computed with exact integer products, faster than simulated.

Weights and activations are int8 codes with one scale per tensor or per row, with or without a zero
point. What a scheme keeps in high precision is added in floating point. The result is that of
`simulate.simulated` but for FP32's rounding, and windows can be computed side by side in threads.
"""

import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn

from llama_int8.quantization.matmul import int8_matmul
from llama_int8.quantization.simulate import Kept, Scheme, smoothing_factors

Forward = Callable[[Tensor], Tensor]


def fits(scheme: Scheme) -> bool:
    """Whether a scheme has int8 operands on both sides, by tensor or row: what is computed here."""
    return {scheme.weights, scheme.activations} <= {"tensor", "row"}


@dataclass(frozen=True)
class _Weights:
    """A weight matrix (M, K) on a grid moved by `shift` steps: (codes + moved) times the step."""

    codes: Tensor
    step: Tensor  # (M,) or (1,)
    moved: Tensor  # (1,), with zero points by row (M,): the shift less the zero point
    sums: Tensor  # (M,): of codes + moved

    def columns(self, chosen: Tensor | slice) -> Tensor:
        return (self.codes[:, chosen] + self.moved[:, None]) * self.step[:, None]


@dataclass(frozen=True)
class _Input:
    """Codes of (N, K) activations, and what stays in high precision."""

    codes: Tensor
    step: Tensor  # (N, 1) or (1, 1)
    zero_point: Tensor | None  # as `step`: the code of 0
    columns: Tensor  # where something is kept
    kept: Tensor  # (N, k): these columns, zeros where a value is not kept
    count: int

    @cached_property
    def sums(self) -> Tensor:
        """Of each row's codes, (N, 1): once for q, k and v, and only where a grid is moved."""
        return self.codes.sum(1, keepdim=True, dtype=torch.int32).float()


def _absmax_steps(sizes: Tensor, blocks: str) -> Tensor:
    """One step per row or for all, (N, 1) or (1, 1), from magnitudes (N, K)."""
    largest = sizes.amax(1) if blocks == "row" else sizes.max()[None]
    return largest.clamp(min=1e-30)[:, None] / 127


def _zero_point_steps(values: Tensor, blocks: str) -> tuple[Tensor, Tensor]:
    """Step and code of 0 for 256 codes from the least value to the largest, shaped as above."""
    dims = (1,) if blocks == "row" else (0, 1)
    low = values.amin(dims, keepdim=True).clamp(max=0)
    high = values.amax(dims, keepdim=True).clamp(min=0)
    step = ((high - low) / 255).clamp(min=1e-30)
    return step, -128 - (low / step).round()


def _quantized_weight(weight: Tensor, scheme: Scheme, shift: float) -> _Weights:
    if scheme.zero_point:
        step, zero_point = _zero_point_steps(weight, scheme.weights)
    else:
        step = _absmax_steps(weight.abs(), scheme.weights)
        zero_point = step.new_zeros(1, 1)
    # In place: a large matrix that is only passed on costs more than the arithmetic.
    values = (weight / step).sub_(shift).round_().add_(zero_point).clamp_(-128, 127)
    codes = values.to(torch.int8)
    moved = (shift - zero_point)[:, 0]
    sums = codes.sum(1, dtype=torch.int32) + weight.shape[1] * moved
    return _Weights(codes, step[:, 0], moved, sums)


def _quantized_input(x: Tensor, scheme: Scheme, threshold: float, order: Tensor) -> _Input:
    """`order`: the layer's columns in random order, for a scheme that keeps random ones.

    Few passes over all values: comparisons of whole matrices would take most of the time.
    """
    sizes = x.abs()
    columns = torch.zeros(0, dtype=torch.long, device=x.device)
    outliers = None
    if threshold:
        held = sizes.amax(0) >= threshold
        columns = held.nonzero().flatten()
        if scheme.random_columns:
            columns = order[~held[order]][: columns.numel()]
            sizes[:, columns] = 0
        elif columns.numel():
            outliers = sizes[:, columns] >= threshold
            sizes[:, columns] = sizes[:, columns].masked_fill(outliers, 0)
    if scheme.token is not None:
        sizes[scheme.token] = 0
    zero_point = None
    if scheme.zero_point:
        inliers = sizes.copysign_(x)
        step, zero_point = _zero_point_steps(inliers, scheme.activations)
    else:
        step = _absmax_steps(sizes, scheme.activations)
    codes = torch.div(x, step, out=sizes).round_()
    kept = x[:, columns]
    count = x.shape[0] * columns.numel()
    if scheme.own_values and outliers is not None:
        kept = kept * outliers
        codes[:, columns] = codes[:, columns].masked_fill(outliers, 0)
        count = int(outliers.sum())
    else:
        codes[:, columns] = 0
    if scheme.token is not None:
        codes[scheme.token] = 0
        count += x.shape[1] - columns.numel()
    if zero_point is not None:
        codes += zero_point
        codes.clamp_(-128, 127)
    return _Input(codes.to(torch.int8), step, zero_point, columns, kept, count)


@contextmanager
def in_integers(
    linears: Mapping[str, nn.Linear],
    scheme: Scheme,
    absmax: Mapping[str, Tensor] | None = None,
    shift: float = 0.0,
    known: dict[tuple, Any] | None = None,
) -> Iterator[Kept]:
    """Within the block, `linears` compute as `scheme` says, in integers; yields the count of kept.

    One window (1, T, C) per call. `absmax`: of each layer's input channels, for smoothing. `shift`:
    by how much of a step the weights' grid is moved: other rounding errors of the same size. `known`:
    quantized weights of these layers, kept from one scheme to the next. Raises ValueError for a
    scheme that is not computed here, and for smoothing without absmax.
    """
    if not fits(scheme):
        raise ValueError(f"{scheme} is not computed in integers; use simulate.simulated")
    if scheme.smoothing is not None and absmax is None:
        raise ValueError("smoothing needs the absmax of every layer's input channels")
    known = {} if known is None else known
    latest = threading.local()  # q, k and v get one input, and so do gate and up
    counts: list[tuple[int, int]] = []
    total = Kept()

    def forward_of(number: int, name: str, linear: nn.Linear) -> Forward:
        weight, factors = linear.weight.data, None
        if scheme.smoothing is not None:
            factors = smoothing_factors(weight, absmax[name], scheme.smoothing)
            weight = weight * factors
        key = (name, scheme.weights, scheme.zero_point, scheme.smoothing, shift)
        if key not in known:
            known[key] = _quantized_weight(weight, scheme, shift)
        quantized = known[key]
        moved = bool(quantized.moved.any())
        chosen = scheme.decomposed is None or name.rpartition(".")[2] in scheme.decomposed
        threshold = scheme.threshold if chosen else 0.0
        generator = torch.Generator().manual_seed(number)
        order = torch.randperm(weight.shape[1], generator=generator).to(weight.device)

        def forward(x: Tensor) -> Tensor:
            rows = x[0] if factors is None else x[0] / factors
            if factors is not None or getattr(latest, "x", None) is not x:
                latest.x = x
                latest.input = _quantized_input(rows, scheme, threshold, order)
            entered = latest.input
            counts.append((rows.numel(), entered.count))
            y = int8_matmul(entered.codes, quantized.codes).float()
            if moved:
                y += entered.sums * quantized.moved
            if entered.zero_point is not None:
                y -= entered.zero_point * quantized.sums
            y.mul_(entered.step).mul_(quantized.step)
            if entered.columns.numel():
                if scheme.original_weights:
                    columns = weight[:, entered.columns]
                else:
                    columns = quantized.columns(entered.columns)
                y += entered.kept @ columns.T
            if scheme.token is not None:
                y[scheme.token] = quantized.columns(slice(None)) @ rows[scheme.token]
            return (y if linear.bias is None else y + linear.bias)[None]

        return forward

    try:
        for number, (name, linear) in enumerate(linears.items()):
            linear.forward = forward_of(number, name, linear)
        yield total
    finally:
        for linear in linears.values():
            linear.__dict__.pop("forward", None)
        total.values = sum(values for values, _ in counts)
        total.kept = sum(kept for _, kept in counts)
