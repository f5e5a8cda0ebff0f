"""int8 in fifteen lines of PyTorch: fast, and at a price in quality (notebook 10)."""

import torch
from torch import Tensor, nn

from llama_int8.quantization.matmul import int8_matmul


class VectorwiseLinear(nn.Module):
    """int8 weights with a scale for each row, int8 activations with a scale for each token.

    Vector-wise quantization (Dettmers et al., arXiv:2208.07339, section 3.1) without decomposition.
    """

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        weight = linear.weight.detach().float()
        self.scale = weight.abs().amax(1) / 127  # (M,)
        self.codes = (weight / self.scale[:, None]).round().to(torch.int8)  # (M, K)
        self.bias = None if linear.bias is None else linear.bias.detach().float()  # (M,)

    def forward(self, x: Tensor) -> Tensor:
        """(..., K) -> (..., M) in x's dtype."""
        rows = x.flatten(0, -2).float()  # (N, K)
        scale = rows.abs().amax(1, keepdim=True) / 127  # (N, 1)
        codes = (rows / scale).round().to(torch.int8)
        y = int8_matmul(codes, self.codes) * (scale * self.scale)  # (N, M)
        if self.bias is not None:
            y += self.bias
        return y.to(x.dtype).unflatten(0, x.shape[:-1])
