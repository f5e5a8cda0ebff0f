"""LLM.int8() from scratch (Dettmers et al., 2022, arXiv:2208.07339), stage by stage as bitsandbytes.

Shapes: N rows of activations (all tokens of a batch), K inputs, M outputs.
"""

from collections.abc import Mapping, Sequence
from typing import Self

import torch
from torch import Tensor, nn

from llama_int8.quantization.linear_layers import linear_layers
from llama_int8.quantization.matmul import int8_matmul


def vectorwise_quantize(A: Tensor, threshold: float = 0.0) -> tuple[Tensor, Tensor, Tensor]:
    """Codes, absmax of each row, and the outlier columns: (N, K) -> int8 (N, K), FP32 (N,), (k,).

    In FP16, as in bitsandbytes. An outlier is a value of at least `threshold`; it does not count
    for its row's absmax, and the whole column that holds it gets code 0 in every row. With
    threshold 0 there are no outliers. Raises ValueError for NaN, and for what FP16 cannot hold.
    """
    A16 = A.to(torch.float16)
    outliers = A16.abs() >= threshold if threshold > 0 else torch.zeros_like(A16, dtype=torch.bool)
    columns = outliers.any(0).nonzero().flatten()  # (k,)
    inliers = A16.masked_fill(outliers, 0)
    absmax = inliers.abs().amax(1).float()  # (N,)
    _check_rows(A, absmax)
    # Steps in a unit; a row of zeros has codes 0.
    steps = torch.where(absmax > 0, 127.0 / absmax, 0)
    codes = (inliers * steps[:, None]).round().to(torch.int8)
    codes[:, columns] = 0
    return codes, absmax, columns


class Int8Linear(nn.Module):
    """A linear layer with int8 weights and LLM.int8() products, for inference.

    `weight`: codes, int8 (M, K). `SCB`: absmax of each row of the weights, FP32 (M,). `bias`: (M,)
    or None. Names and values are those of bitsandbytes' `Linear8bitLt`.
    """

    def __init__(
        self, weight: Tensor, SCB: Tensor, bias: Tensor | None = None, threshold: float = 6.0
    ) -> None:
        super().__init__()
        _check_threshold(threshold)
        self.register_buffer("weight", weight)
        self.register_buffer("SCB", SCB)
        self.register_buffer("bias", bias)
        self.out_features, self.in_features = weight.shape
        self.threshold = threshold

    @classmethod
    def from_linear(cls, linear: nn.Linear, threshold: float = 6.0) -> Self:
        """Quantize a linear layer's weights, each row by its absmax.

        Raises TypeError unless given an `nn.Linear` in floating point, ValueError for a negative
        threshold, NaN, and weights that FP16 cannot hold.
        """
        _check_linear(linear)
        codes, SCB, _ = vectorwise_quantize(linear.weight.detach())
        bias = None if linear.bias is None else linear.bias.detach().clone()
        return cls(codes, SCB, bias, threshold).train(linear.training)

    @torch.no_grad()
    def forward(self, x: Tensor) -> Tensor:
        """(..., K) -> (..., M), in x's dtype; the sum of both parts is rounded once.

        Raises TypeError for another dtype than FP32, FP16 and bf16, ValueError for another last
        dimension, for no rows at all, and for NaN or infinity.
        """
        _check_input(x, self.in_features)
        A = x.reshape(-1, self.in_features)  # (..., K) -> (N, K)
        codes, SCA, columns = vectorwise_quantize(A, self.threshold)
        product = int8_matmul(codes, self.weight)  # (N, M), int32, exact
        y = product * (SCA[:, None] * self.SCB / 127**2)
        if columns.numel():  # what was left out, times the same int8 weights
            restored = self.weight[:, columns] * (self.SCB / 127)[:, None]  # (M, k), FP32
            y += A[:, columns].float() @ restored.T
        if self.bias is not None:
            y += self.bias
        return y.to(x.dtype).view(*x.shape[:-1], self.out_features)

    def extra_repr(self) -> str:
        bias = self.bias is not None
        return f"{self.in_features}, {self.out_features}, bias={bias}, threshold={self.threshold}"

    def _apply(self, fn, recurse: bool = True):
        SCB = self.SCB  # `.half()` and `.to(dtype)` would round it: it moves, and keeps its format
        super()._apply(fn, recurse)
        self.SCB = SCB.to(self.weight.device)
        return self


def replace_linears(
    model: nn.Module, threshold: float = 6.0, skip: Sequence[str] = ("lm_head",)
) -> nn.Module:
    """Put an `Int8Linear` in the place of every linear layer, but those in `skip`; return the model.

    `skip`: names of modules; one stays out if its path or a part of it ("lm_head", "down_proj",
    "model.layers.0") is named. Works layer by layer, so that memory holds one layer twice.
    Raises ValueError for a name that no module has, and where there is nothing to replace.
    """
    _check_threshold(threshold)
    linears = linear_layers(model, skip)
    _check_linears(linears)
    for name, linear in linears.items():
        parent, _, child = name.rpartition(".")
        setattr(model.get_submodule(parent), child, Int8Linear.from_linear(linear, threshold))
    return model


def _check_threshold(threshold: float) -> None:
    if not 0 <= threshold < float("inf"):
        raise ValueError(f"threshold is {threshold}; it must be 0 (no decomposition) or more")


def _check_linear(linear: nn.Linear, name: str = "") -> None:
    if not isinstance(linear, nn.Linear):
        raise TypeError(f"{name}expected an nn.Linear, got {type(linear).__name__}")
    if not linear.weight.is_floating_point():
        raise TypeError(f"{name}weights are already {linear.weight.dtype}; quantize a float layer")
    wrong = linear.weight.detach()[~linear.weight.detach().half().isfinite()]
    if wrong.numel():
        raise ValueError(
            f"{name}a weight is {wrong[0].item()}: LLM.int8() casts weights to FP16, which holds "
            "finite numbers up to 65,504"
        )


def _check_linears(linears: Mapping[str, nn.Linear]) -> None:
    """Check all before the first is replaced: a model is quantized as a whole or not at all."""
    for name, linear in linears.items():
        if not name:
            raise ValueError("the model is a linear layer itself; use Int8Linear.from_linear")
        _check_linear(linear, f"{name}: ")


def _check_input(x: Tensor, features: int) -> None:
    if x.dtype not in (torch.float32, torch.float16, torch.bfloat16):
        raise TypeError(
            f"the input is {x.dtype}; expected a floating-point tensor: FP32, FP16 or bf16"
        )
    if x.dim() == 0 or x.shape[-1] != features or x.numel() == 0:
        raise ValueError(f"the input has shape {tuple(x.shape)}; expected (..., {features})")


def _check_rows(A: Tensor, absmax: Tensor) -> None:
    """Name what makes a row's absmax, or an outlier, NaN or infinite."""
    wrong = A[~A.isfinite()]
    if wrong.numel():
        raise ValueError(f"a value is {wrong[0].item()}: only finite values can be quantized")
    if not absmax.isfinite().all():
        raise ValueError(
            f"a value of {A.abs().max().item():,.0f} overflows in the cast to FP16, which ends at "
            "65,504; with a threshold above 0 it would be an outlier and keep its own format"
        )
