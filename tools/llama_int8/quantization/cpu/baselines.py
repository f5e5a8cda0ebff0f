"""The two usual ways to int8 on a CPU in PyTorch's own operations, to measure `int8-fast` against."""

from typing import Self

import torch
from torch import Tensor, nn
from torch.nn.functional import linear as linear_map

from llama_int8.quantization.cpu.blocks import quantize_weight
from llama_int8.quantization.products import int8_matmul


class VectorwiseLinear(nn.Module):
    """int8 weights with a scale for each row, int8 activations with a scale for each token.

    Vector-wise quantization (Dettmers et al., arXiv:2208.07339, section 3.1) without decomposition.
    """

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        weight = linear.weight.detach().float()
        self.scale = weight.abs().amax(1) / 127  # (M,)
        self.codes = (weight / self.scale[:, None]).round().to(torch.int8)  # (M, K)

    def forward(self, x: Tensor) -> Tensor:
        """(..., K) -> (..., M) in x's dtype."""
        rows = x.flatten(0, -2).float()  # (N, K)
        scale = rows.abs().amax(1, keepdim=True) / 127  # (N, 1)
        codes = (rows / scale).round().to(torch.int8)
        y = int8_matmul(codes, self.codes) * (scale * self.scale)  # (N, M)
        return y.to(x.dtype).unflatten(0, x.shape[:-1])


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
        """Quantize a linear layer's weights. Raises TypeError for one with a bias."""
        if linear.bias is not None:
            raise TypeError("WeightOnlyLinear has no bias")
        return cls(*quantize_weight(linear.weight.detach()))

    @torch.no_grad()
    def forward(self, x: Tensor) -> Tensor:
        """bf16 (..., K) -> bf16 (..., M)."""
        rows = x.flatten(0, -2)
        if len(rows) <= self.FEW:
            y = torch._weight_int8pack_mm(rows, self.codes, self.scale)
        else:
            y = linear_map(rows, self.codes.bfloat16() * self.scale[:, None])
        return y.unflatten(0, x.shape[:-1])
