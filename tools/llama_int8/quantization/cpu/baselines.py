"""The baselines of `int8-fast`: weight-only int8, and its own kernel in 16 bit."""

from collections.abc import Sequence
from typing import Self

import torch
from torch import Tensor, nn
from torch.nn.functional import linear as linear_map

from llama_int8.quantization.cpu import kernels, packing
from llama_int8.quantization.cpu.linear import Int8FastLinear
from llama_int8.quantization.quantize import absmax_quantize


class WeightOnlyLinear(nn.Module):
    """int8 weights with a scale for each row, activations in bf16.

    Few tokens go through PyTorch's kernel, which restores weights in its registers; for many the
    weights are restored once and multiplied in bf16. The same is done where the number of inputs
    is not a multiple of 16: the kernel would read beyond the end.
    """

    FEW = 16  # tokens

    def __init__(self, codes: Tensor, scale: Tensor, bias: Tensor | None = None) -> None:
        super().__init__()
        self.codes, self.scale = codes, scale.bfloat16()
        self.bias = None if bias is None else bias.bfloat16()

    @classmethod
    def from_linear(cls, linear: nn.Linear) -> Self:
        """Quantize a linear layer's weights; its bias stays."""
        quantized = absmax_quantize(linear.weight.detach().float(), granularity="row")
        bias = None if linear.bias is None else linear.bias.detach()
        return cls(quantized.codes, quantized.scale.flatten(), bias)

    @torch.no_grad()
    def forward(self, x: Tensor) -> Tensor:
        """bf16 (..., K) -> bf16 (..., M)."""
        rows = x.flatten(0, -2)
        if len(rows) <= self.FEW and rows.shape[1] % 16 == 0:
            y = torch._weight_int8pack_mm(rows, self.codes, self.scale)
            y = y if self.bias is None else y + self.bias
        else:
            y = linear_map(rows, self.codes.bfloat16() * self.scale[:, None], self.bias)
        return y.unflatten(0, x.shape[:-1])


class KernelBf16Linear(nn.Module):
    """A control: weights in bf16 in the kernel's order, sums in FP32.

    Activations are bf16 where the processor multiplies pairs of bf16 in one instruction
    (`kernels.multiplies_bf16`), else FP32. In `FastLlama` everything but the products is then as it
    is in `int8-fast`: the ratio of both is what int8 gives, and what is left is what one compiled
    call gives.
    """

    def __init__(self, weight: Tensor, bias: Tensor | None, shape: tuple[int, int]) -> None:
        """`weight`: as `packing.pack_pairs` has it; `shape`: outputs and inputs."""
        super().__init__()
        self.out_features, self.in_features = shape
        self.register_buffer("weight", weight)
        self.register_buffer("bias", bias)

    @classmethod
    def from_linear(cls, linear: nn.Linear) -> Self:
        """A linear layer with its weights rounded to bf16 and put in order."""
        bias = None if linear.bias is None else linear.bias.detach().float()
        return cls._from_rows(linear.weight.detach().bfloat16(), bias)

    @classmethod
    def merged(cls, layers: Sequence["KernelBf16Linear"]) -> Self:
        """One layer with all their outputs, one after another."""
        biases = [layer.bias for layer in layers if layer.bias is not None]
        if len(biases) not in (0, len(layers)):
            raise ValueError("layers with and without a bias cannot be merged")
        rows = torch.cat([layer.rows() for layer in layers])
        return cls._from_rows(rows, torch.cat(biases) if biases else None)

    @classmethod
    def _from_rows(cls, rows: Tensor, bias: Tensor | None) -> Self:
        return cls(packing.pack_pairs(rows), bias, (rows.shape[0], rows.shape[1]))

    def rows(self) -> Tensor:
        """The weights as a layer has them, bf16 (M, K)."""
        return packing.unpack_pairs(self.weight, self.out_features, self.in_features)

    def struct(self) -> kernels.LinearStruct:
        """The layer for the kernel; its tensors must live as long as the struct."""
        return kernels.linear_struct(self, None, planes=0)

    @torch.no_grad()
    def forward(self, x: Tensor) -> Tensor:
        """(..., K) -> (..., M) in x's dtype; without a kernel in FP32 by PyTorch, slowly."""
        library = kernels.chosen().library
        rows = x.reshape(-1, self.in_features)
        if library is None:
            y = linear_map(rows.float(), self.rows().float(), self.bias).to(x.dtype)
        else:
            y = kernels.compiled_linear(library, rows, self.struct())
        return y.view(*x.shape[:-1], self.out_features)


class KernelWeightOnlyLinear(Int8FastLinear):
    """A control: the codes and scales of `int8-fast`, activations and sums in FP32 (W8A16's work).

    It reads the same bytes as `int8-fast`: what is left between the two is the integer instruction.
    """

    def struct(self) -> kernels.LinearStruct:
        """The layer for the kernel; its tensors must live as long as the struct."""
        return kernels.linear_struct(self, self.scale, planes=-1)

    @torch.no_grad()
    def forward(self, x: Tensor) -> Tensor:
        """(..., K) -> (..., M) in x's dtype; without a kernel by PyTorch, slowly."""
        library = kernels.chosen().library
        rows = x.reshape(-1, self.in_features)
        if library is None:
            y = linear_map(rows.float(), self.dequantized(), self.bias).to(x.dtype)
        else:
            y = kernels.compiled_linear(library, rows, self.struct())
        return y.view(*x.shape[:-1], self.out_features)
