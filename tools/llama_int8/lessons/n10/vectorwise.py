"""int8 in fifteen lines of PyTorch, W8A8: fast, and at a price in quality (lesson 10)."""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from llama_int8.quantization.matmul import int8_matmul

TINY = 1e-30  # a row below it counts as zeros: 0 / 0 has no code


class VectorwiseLinear(nn.Module):
    """int8 weights with a scale per row, int8 activations with a scale per token.

    Vector-wise quantization (Dettmers et al., arXiv:2208.07339, section 3.1) without decomposition.
    `product(x, codes, scale)`: (N, K) -> (N, M), where it is not `w8a8`: a learner's own.
    """

    def __init__(
        self, linear: nn.Linear, product: Callable[[Tensor, Tensor, Tensor], Tensor] | None = None
    ) -> None:
        super().__init__()
        weight = linear.weight.detach().float()
        self.scale = weight.abs().amax(1).clamp(min=TINY) / 127  # (M,)
        self.codes = (weight / self.scale[:, None]).round().to(torch.int8)  # (M, K)
        self.bias = None if linear.bias is None else linear.bias.detach().float()  # (M,)
        self.product = product or w8a8

    def forward(self, x: Tensor) -> Tensor:
        """(..., K) -> (..., M) in x's dtype."""
        y = self.product(x.flatten(0, -2).float(), self.codes, self.scale)  # (N, M)
        if self.bias is not None:
            y = y + self.bias
        return y.to(x.dtype).unflatten(0, x.shape[:-1])


def w8a8(x: Tensor, codes: Tensor, scale: Tensor) -> Tensor:
    """Rows x (N, K) times weights in int8, codes (M, K) with a scale per row (M,): (N, M)."""
    step = x.abs().amax(1, keepdim=True).clamp(min=TINY) / 127  # (N, 1)
    quantized = (x / step).round().to(torch.int8)
    return int8_matmul(quantized, codes) * (step * scale)
