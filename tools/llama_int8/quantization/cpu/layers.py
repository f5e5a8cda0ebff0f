"""A linear layer of `int8-fast`, and its way into a model."""

from collections.abc import Callable, Sequence
from typing import Self

import torch
from torch import Tensor, nn

from llama_int8.quantization.cpu import blocks, kernels
from llama_int8.quantization.cpu.layout import packed_shape
from llama_int8.quantization.layers import linear_layers


class Int8FastLinear(nn.Module):
    """A linear layer with int8 weights per row and int8 activations per 64, for inference on a CPU.

    `weight`: packed codes, uint8 (M / 32, K / 4, 32, 4), see `blocks.pack`. `scale`: FP32 (M,).
    `bias`: FP32 (M,) or None. The product is the kernel's or plain PyTorch's, bit for bit the same.
    """

    def __init__(
        self, weight: Tensor, scale: Tensor, bias: Tensor | None, in_features: int
    ) -> None:
        """Raises ValueError for packed codes of another shape than scale and inputs say."""
        super().__init__()
        self.in_features, self.out_features = in_features, len(scale)
        wanted = packed_shape(self.out_features, in_features)
        if tuple(weight.shape) != wanted or weight.dtype != torch.uint8:
            raise ValueError(
                f"the codes are {weight.dtype} of shape {tuple(weight.shape)}; {len(scale)} outputs "
                f"and {in_features} inputs need uint8 {wanted}"
            )
        self.register_buffer("weight", weight.contiguous())
        self.register_buffer("scale", scale)
        self.register_buffer("bias", bias)

    @classmethod
    def from_linear(cls, linear: nn.Linear) -> Self:
        """Quantize a linear layer. Raises TypeError for what is none, ValueError for NaN."""
        if not isinstance(linear, nn.Linear):
            raise TypeError(f"{type(linear).__name__} is no nn.Linear")
        if linear.weight.device.type not in ("cpu", "meta"):
            raise ValueError(f"the layer is on {linear.weight.device}; int8-fast is for a CPU")
        bias = None if linear.bias is None else linear.bias.detach().float()
        if linear.weight.is_meta:
            return cls.empty(*linear.weight.shape, bias is not None)
        codes, scale = blocks.quantize_weight(linear.weight.detach())
        return cls(blocks.pack(codes), scale, bias, linear.in_features)

    @classmethod
    def empty(cls, outputs: int, inputs: int, bias: bool = False) -> Self:
        """A layer on the meta device: shapes that wait for a file's tensors."""
        with torch.device("meta"):
            packed = torch.empty(packed_shape(outputs, inputs), dtype=torch.uint8)
            return cls(packed, torch.empty(outputs), torch.empty(outputs) if bias else None, inputs)

    @classmethod
    def merged(cls, layers: Sequence["Int8FastLinear"]) -> Self:
        """One layer with all their outputs, one after another: their inputs are quantized once."""
        inputs = {layer.in_features for layer in layers}
        if len(inputs) != 1:
            raise ValueError(f"layers with {sorted(inputs)} inputs do not share their input")
        biases = [layer.bias for layer in layers]
        if any(b is not None for b in biases):
            biases = [
                torch.zeros(layer.out_features) if layer.bias is None else layer.bias
                for layer in layers
            ]
        codes = torch.cat([layer.codes() for layer in layers])
        scale = torch.cat([layer.scale for layer in layers])
        bias = None if biases[0] is None else torch.cat(biases)
        return cls(blocks.pack(codes), scale, bias, inputs.pop())

    def codes(self) -> Tensor:
        """The int8 codes, (M, K)."""
        return blocks.unpack(self.weight, self.out_features, self.in_features)

    def dequantized(self) -> Tensor:
        """scale x code, FP32 (M, K)."""
        return self.codes().float() * self.scale[:, None]

    @torch.no_grad()
    def forward(self, x: Tensor) -> Tensor:
        """(..., K) -> (..., M) in x's dtype. A token with NaN or infinity gets NaN.

        Raises TypeError for another dtype than FP32, FP16 and bf16, ValueError for another last
        dimension.
        """
        if x.dtype not in (torch.float32, torch.float16, torch.bfloat16):
            raise TypeError(f"the input is {x.dtype}; wanted is FP32, FP16 or bf16")
        if x.dim() == 0 or x.shape[-1] != self.in_features:
            raise ValueError(
                f"the input has shape {tuple(x.shape)}; wanted is (..., {self.in_features})"
            )
        rows = x.reshape(-1, self.in_features)  # (..., K) -> (N, K)
        library = kernels.chosen().library
        own = (self.weight, self.scale, self.bias)
        if library is None:
            y = blocks.plain_linear(rows, *own)
        else:
            y = kernels.compiled_linear(library, rows, *own)
        return y.view(*x.shape[:-1], self.out_features)

    def extra_repr(self) -> str:
        return f"{self.in_features}, {self.out_features}, bias={self.bias is not None}"

    def _apply(self, fn, recurse: bool = True):
        scale, bias = self.scale, self.bias  # `.to(dtype)` would round them
        super()._apply(fn, recurse)
        device = self.weight.device
        self.scale, self.bias = scale.to(device), None if bias is None else bias.to(device)
        return self


def replace_linears(
    model: nn.Module,
    skip: Sequence[str] = (),
    make: Callable[[nn.Linear], nn.Module] = Int8FastLinear.from_linear,
) -> nn.Module:
    """Put what `make` makes in the place of every linear layer but those in `skip`, `lm_head` too.

    Works layer by layer. Returns the model; an embedding that shared its table with the output layer
    keeps it in its own format. Raises ValueError where there is nothing to replace.
    """
    linears = linear_layers(model, skip)
    for name, linear in linears.items():
        if not name:
            raise ValueError("the model is a linear layer itself; use Int8FastLinear.from_linear")
        parent, _, child = name.rpartition(".")
        setattr(model.get_submodule(parent), child, make(linear).train(linear.training))
    return model
