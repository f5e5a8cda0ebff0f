"""Weights alone in int8, in PyTorch's own operations: a usual way, to measure `int8-fast` against."""

from typing import Self

import torch
from torch import Tensor, nn
from torch.nn.functional import linear as linear_map

from llama_int8.quantization.codes import absmax_quantize


class WeightOnlyLinear(nn.Module):
    """int8 weights with a scale for each row, activations in bf16.

    Few tokens go through PyTorch's kernel, which restores weights in its registers; for many the
    weights are restored once and multiplied in bf16.
    """

    FEW = 16  # tokens

    def __init__(self, codes: Tensor, scale: Tensor) -> None:
        super().__init__()
        self.codes, self.scale = codes, scale.bfloat16()

    @classmethod
    def from_linear(cls, linear: nn.Linear) -> Self:
        """Quantize a linear layer's weights. Raises TypeError for a bias, ValueError for odd inputs."""
        if linear.bias is not None:
            raise TypeError("WeightOnlyLinear has no bias")
        if linear.in_features % 16:  # PyTorch's kernel would read beyond the end
            raise ValueError(f"{linear.in_features} inputs are no multiple of 16")
        quantized = absmax_quantize(linear.weight.detach().float(), granularity="row")
        return cls(quantized.codes, quantized.scale.flatten())

    @torch.no_grad()
    def forward(self, x: Tensor) -> Tensor:
        """bf16 (..., K) -> bf16 (..., M)."""
        rows = x.flatten(0, -2)
        if len(rows) <= self.FEW:
            y = torch._weight_int8pack_mm(rows, self.codes, self.scale)
        else:
            y = linear_map(rows, self.codes.bfloat16() * self.scale[:, None])
        return y.unflatten(0, x.shape[:-1])
