"""A linear layer with int8 weights for a GPU, and its way into a model."""

from collections.abc import Sequence
from typing import Self

import torch
from torch import Tensor, nn

from llama_int8.quantization.cpu import linear as cpu_linear
from llama_int8.quantization.cpu import packing
from llama_int8.quantization.cpu.layout import GROUP
from llama_int8.quantization.gpu import FEW
from llama_int8.quantization.gpu.products import (
    PREFILLS,
    dequantize,
    plain_product,
    prefills,
)
from llama_int8.quantization.linear_layers import ScaledCodes

AT_ONCE = 8  # tokens of one launch of the kernel


class GpuInt8Linear(ScaledCodes):
    """int8 weights with a scale for every 32 inputs (or for each row), activations in 16 bit.

    `weight`: codes, int8 (M, K). `scale`: bf16 (M, G); codes and scales are those of `int8-fast` on
    a CPU. `bias`: FP32 (M,) or None. On a GPU up to 16 tokens go through the Triton kernel, on a CPU
    through its plain twin; more go the way of `prefill`, a name in `products.PREFILLS`.
    """

    def __init__(
        self,
        weight: Tensor,
        scale: Tensor,
        bias: Tensor | None = None,
        group: int | None = GROUP,
        prefill: str = "dequantize",
    ) -> None:
        """Raises ValueError for scales of another shape, and for a way that the layer cannot go."""
        super().__init__()
        self.out_features, self.in_features = weight.shape
        groups = 1 if group is None else -(-self.in_features // group)
        if tuple(scale.shape) != (self.out_features, groups):
            raise ValueError(
                f"scale has shape {tuple(scale.shape)}; {self.out_features} outputs with {groups} "
                f"groups of inputs need {(self.out_features, groups)}"
            )
        ways = prefills(tuple(weight.shape), group)
        if prefill not in ways:
            raise ValueError(
                f"prefill is {prefill!r}; a layer of shape {tuple(weight.shape)} with "
                f"{f'groups of {group}' if group else 'a scale per row'} can take {', '.join(ways)}"
            )
        self.group, self.prefill = group, prefill
        self.register_buffer("weight", weight.contiguous())
        self.register_buffer("scale", scale.contiguous())
        self.register_buffer("bias", bias)

    @classmethod
    def from_linear(
        cls, linear: nn.Linear, group: int | None = GROUP, prefill: str = "dequantize"
    ) -> Self:
        """Quantize a layer where it lies. Raises TypeError unless given one, ValueError for NaN."""
        if not isinstance(linear, nn.Linear):
            raise TypeError(f"expected an nn.Linear, got {type(linear).__name__}")
        weight = linear.weight.detach()
        codes, scale = packing.quantize_weight(weight, group or weight.shape[1])
        bias = None if linear.bias is None else linear.bias.detach().float()
        return cls(codes, scale, bias, group, prefill)

    @classmethod
    def from_cpu(cls, layer: cpu_linear.Int8FastLinear, device: torch.device | str) -> Self:
        """The same codes and scales as a layer of `int8-fast` for a CPU, in the order of a GPU."""
        scale = packing.unpack_rows(layer.scale, layer.out_features)
        bias = None if layer.bias is None else layer.bias.to(device)
        return cls(layer.codes().to(device), scale.to(device), bias)

    @classmethod
    def merged(cls, layers: Sequence["GpuInt8Linear"]) -> Self:
        """One layer with all their outputs, one after another; they become views of it."""
        first = layers[0]
        if {(layer.group, layer.prefill) for layer in layers} != {(first.group, first.prefill)}:
            raise ValueError("layers that differ in groups or prefill cannot be merged")
        biases = [layer.bias for layer in layers]
        if any(b is None for b in biases) and any(b is not None for b in biases):
            raise ValueError("layers with and without a bias cannot be merged")
        weight = torch.cat([layer.weight for layer in layers])
        scale = torch.cat([layer.scale for layer in layers])
        bias = None if first.bias is None else torch.cat(biases)
        rows = [layer.out_features for layer in layers]
        for layer, part, of_part in zip(layers, weight.split(rows), scale.split(rows), strict=True):
            layer.weight, layer.scale = part, of_part
        return cls(weight, scale, bias, first.group, first.prefill)

    def dequantized(self, dtype: torch.dtype = torch.float32) -> Tensor:
        """scale x code, (M, K)."""
        return dequantize(self.weight, self.scale, self.group, dtype)

    @torch.no_grad()
    def forward(self, x: Tensor) -> Tensor:
        """(..., K) -> (..., M) in x's dtype.

        Raises TypeError for another dtype than FP32, FP16 and bf16, ValueError for another last
        dimension and for an input on another device than the layer.
        """
        if x.dtype not in (torch.float32, torch.float16, torch.bfloat16):
            raise TypeError(f"the input is {x.dtype}; expected FP32, FP16 or bf16")
        if x.dim() == 0 or x.shape[-1] != self.in_features:
            raise ValueError(
                f"the input has shape {tuple(x.shape)}; expected (..., {self.in_features})"
            )
        if x.device != self.weight.device:
            raise ValueError(f"the input is on {x.device}, the layer on {self.weight.device}")
        rows = x.reshape(-1, self.in_features)  # (..., K) -> (N, K)
        held = (self.weight, self.scale, self.bias, self.group)
        if len(rows) > FEW:
            y = PREFILLS[self.prefill](rows, *held)
        elif rows.is_cuda:
            from llama_int8.quantization.gpu.kernels import int8_product

            parts = [int8_product(part, *held) for part in rows.split(AT_ONCE)]
            y = parts[0] if len(parts) == 1 else torch.cat(parts)
        else:
            y = plain_product(rows, *held)
        return y.view(*x.shape[:-1], self.out_features)

    def extra_repr(self) -> str:
        groups = "row" if self.group is None else f"{self.group} inputs"
        return (
            f"{self.in_features}, {self.out_features}, bias={self.bias is not None}, a scale for "
            f"each {groups}, prefill={self.prefill}"
        )


def gpu_linear(_: str, linear: nn.Linear) -> GpuInt8Linear:
    """The layer for `linear` in int8-fast on a GPU; the output layer is like all others."""
    return GpuInt8Linear.from_linear(linear)


def replace_layers(model: nn.Module, skip: Sequence[str] = ()) -> nn.Module:
    """Put a `GpuInt8Linear` in the place of every linear layer but those in `skip`, layer by layer."""
    return cpu_linear.replace_layers(model, skip, gpu_linear)


def from_cpu_layers(model: nn.Module, device: torch.device | str) -> nn.Module:
    """Move a model in `int8-fast` from a CPU to `device`: the same codes in the order of a GPU."""
    for name, layer in list(model.named_modules()):
        if isinstance(layer, cpu_linear.Int8FastLinear):
            parent, _, child = name.rpartition(".")
            setattr(model.get_submodule(parent), child, GpuInt8Linear.from_cpu(layer, device))
    return model.to(device)
