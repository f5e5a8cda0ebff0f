"""A linear layer of `int8-fast`, and its way into a model."""

from collections.abc import Callable, Sequence
from typing import Self

import torch
from torch import Tensor, nn

from llama_int8.quantization.cpu import kernels, packing
from llama_int8.quantization.cpu.layout import GROUP, ROWS, packed_shape, scale_shape
from llama_int8.quantization.linear_layers import ScaledCodes, linear_layers


class Int8FastLinear(ScaledCodes):
    """A linear layer with int8 weights and activations, a scale for every 32 inputs, on a CPU.

    `weight`: packed codes, uint8 (M / 32, K / 4, 32, 4), see `packing.pack`. `scale`: bf16
    (M / 32, K / 32, 32). `bias`: FP32 (M,) or None. `planes`: with 2, activations are int8 codes and,
    again in int8, what rounding them left: 15 bits for twice the products, and no more bytes.
    The product is the kernel's or plain PyTorch's, bit for bit the same.
    """

    def __init__(
        self,
        weight: Tensor,
        scale: Tensor,
        bias: Tensor | None,
        shape: tuple[int, int],
        planes: int = 1,
    ) -> None:
        """`shape`: outputs and inputs. Raises ValueError for packed tensors of another shape."""
        super().__init__()
        self.out_features, self.in_features = shape
        self.planes = planes
        wanted = {"weight": packed_shape(*shape), "scale": scale_shape(*shape)}
        for name, tensor in (("weight", weight), ("scale", scale)):
            dtype = torch.uint8 if name == "weight" else torch.bfloat16
            if tuple(tensor.shape) != wanted[name] or tensor.dtype != dtype:
                raise ValueError(
                    f"{name} is {tensor.dtype} of shape {tuple(tensor.shape)}; {shape[0]} outputs "
                    f"and {shape[1]} inputs need {dtype} {wanted[name]}"
                )
        self.register_buffer("weight", weight.contiguous())
        self.register_buffer("scale", scale.contiguous())
        self.register_buffer("bias", bias)

    @classmethod
    def from_linear(cls, linear: nn.Linear, planes: int = 1) -> Self:
        """Quantize a linear layer. Raises TypeError unless given one, ValueError for NaN."""
        if not isinstance(linear, nn.Linear):
            raise TypeError(f"expected an nn.Linear, got {type(linear).__name__}")
        if linear.weight.device.type not in ("cpu", "meta"):
            raise ValueError(f"the layer is on {linear.weight.device}; int8-fast is for a CPU")
        bias = None if linear.bias is None else linear.bias.detach().float()
        if linear.weight.is_meta:
            return cls.empty(tuple(linear.weight.shape), bias is not None, planes)
        return cls._from_codes(*packing.quantize_weight(linear.weight.detach()), bias, planes)

    @classmethod
    def empty(cls, shape: tuple[int, int], bias: bool = False, planes: int = 1) -> Self:
        """A layer on the meta device: shapes that wait for a file's tensors."""
        with torch.device("meta"):
            packed = torch.empty(packed_shape(*shape), dtype=torch.uint8)
            scale = torch.empty(scale_shape(*shape), dtype=torch.bfloat16)
            return cls(packed, scale, torch.empty(shape[0]) if bias else None, shape, planes)

    @classmethod
    def merged(cls, layers: Sequence["Int8FastLinear"]) -> Self:
        """One layer with all their outputs, one after another: their inputs are quantized once.

        Where they consist of whole blocks, they become views of it: nothing is held twice.
        """
        for name in ("in_features", "planes"):
            found = {getattr(layer, name) for layer in layers}
            if len(found) != 1:
                raise ValueError(f"layers that differ in {name}, {sorted(found)}, cannot be merged")
        biases = [layer.bias for layer in layers]
        bias = None
        if any(b is not None for b in biases):
            bias = torch.cat(
                [
                    torch.zeros(layer.out_features) if layer.bias is None else layer.bias
                    for layer in layers
                ]
            )
        codes = torch.cat([layer.codes() for layer in layers])
        scales = torch.cat([packing.unpack_rows(x.scale, x.out_features) for x in layers])
        whole = cls._from_codes(codes, scales, bias, layers[0].planes)
        whole.lend_to(layers)
        return whole

    def lend_to(self, layers: Sequence["Int8FastLinear"]) -> None:
        """Let the layers that this one was merged from read its memory, if they are whole blocks."""
        if any(layer.out_features % ROWS for layer in layers):
            return
        blocks = [layer.out_features // ROWS for layer in layers]
        parts = zip(layers, self.weight.split(blocks), self.scale.split(blocks), strict=True)
        for layer, weight, scale in parts:
            layer.weight, layer.scale = weight, scale

    @classmethod
    def _from_codes(cls, codes: Tensor, scale: Tensor, bias: Tensor | None, planes: int) -> Self:
        outputs, inputs = codes.shape
        packed, packed_scale = packing.pack(codes), packing.pack_rows(scale)
        return cls(packed, packed_scale, bias, (outputs, inputs), planes)

    def codes(self) -> Tensor:
        """The int8 codes, (M, K)."""
        return packing.unpack(self.weight, self.out_features, self.in_features)

    def dequantized(self) -> Tensor:
        """scale x code, FP32 (M, K)."""
        scale = packing.unpack_rows(self.scale, self.out_features).float()  # (M, G)
        return self.codes().float() * scale.repeat_interleave(GROUP, 1)[:, : self.in_features]

    def struct(self) -> kernels.LinearStruct:
        """The layer for the kernel; its tensors must live as long as the struct."""
        return kernels.linear_struct(self, self.scale, self.planes)

    @torch.no_grad()
    def forward(self, x: Tensor) -> Tensor:
        """(..., K) -> (..., M) in x's dtype. A token with NaN or infinity gets NaN.

        Raises TypeError for another dtype than FP32, FP16 and bf16, ValueError for another last
        dimension and for tensors that are not on a CPU.
        """
        if x.dtype not in (torch.float32, torch.float16, torch.bfloat16):
            raise TypeError(f"the input is {x.dtype}; expected FP32, FP16 or bf16")
        if x.dim() == 0 or x.shape[-1] != self.in_features:
            raise ValueError(
                f"the input has shape {tuple(x.shape)}; expected (..., {self.in_features})"
            )
        if not x.device.type == self.weight.device.type == "cpu":
            raise ValueError(
                f"the input is on {x.device}, the layer on {self.weight.device}; int8-fast computes "
                "on a CPU"
            )
        rows = x.reshape(-1, self.in_features)  # (..., K) -> (N, K)
        library = kernels.chosen().library
        if library is None:
            y = packing.plain_linear(
                rows,
                self.weight,
                self.scale,
                self.bias,
                outputs=self.out_features,
                planes=self.planes,
            )
        else:
            y = kernels.compiled_linear(library, rows, self.struct())
        return y.view(*x.shape[:-1], self.out_features)

    def extra_repr(self) -> str:
        bias = self.bias is not None
        return f"{self.in_features}, {self.out_features}, bias={bias}, planes={self.planes}"


def fast_linear(name: str, linear: nn.Linear) -> Int8FastLinear:
    """The layer for `linear` in int8-fast, by its name: two planes for the output layer.

    That layer's rounding goes straight into the probabilities. In generation it reads one token, so
    twice the products cost next to nothing beside the bytes.
    """
    return Int8FastLinear.from_linear(linear, planes=2 if name.endswith("lm_head") else 1)


def replace_layers(
    model: nn.Module,
    skip: Sequence[str] = (),
    make: Callable[[str, nn.Linear], nn.Module] = fast_linear,
) -> nn.Module:
    """Put `make(name, layer)` in the place of every linear layer but those in `skip`, `lm_head` too.

    Works layer by layer. Returns the model; an embedding that shared its
    table with the output layer keeps it in its own format. Raises ValueError where there is nothing
    to replace.
    """
    linears = linear_layers(model, skip)
    for name, linear in linears.items():
        if not name:
            raise ValueError("the model is a linear layer itself; use Int8FastLinear.from_linear")
        parent, _, child = name.rpartition(".")
        setattr(model.get_submodule(parent), child, make(name, linear).train(linear.training))
    return model
