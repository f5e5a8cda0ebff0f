"""Keys and values of the tokens that a LLaMA has read, in the order that the kernel reads.

Shapes: L layers, B sequences, H_kv key-value heads, S tokens, D head dimension.
"""

import math
from typing import Self

import torch
from torch import Tensor

from llama_int8.quantization.cpu.packing import quantize_groups
from llama_int8.quantization.cpu.pages import LargePages
from llama_int8.transformer.config import LlamaConfig

FORMATS = ("bf16", "int8")


class KeyValueCache:
    """Values lie token by token, (L, B, H_kv, S, D); keys in blocks of `block` tokens.

    Within a block, two dimensions of every key follow each other, (L, B, H_kv, S / block, D / 2,
    block, 2): the compiled kernel loads them for several keys at once. With `block` 1 keys lie as
    values do, which suits PyTorch's operations. In the format "int8" keys and values are codes, with
    an FP32 scale for every key and every value, (L, B, H_kv, S filled up to blocks).
    """

    def __init__(
        self, config: LlamaConfig, batch: int, context: int, block: int, format_: str = "bf16"
    ) -> None:
        if format_ not in FORMATS:
            raise ValueError(f"the cache is {format_!r}; it can be {' or '.join(FORMATS)}")
        self.block, self.format = block, format_
        shape = (config.num_hidden_layers, batch, config.num_key_value_heads)
        dim, blocks = config.head_dim, -(-context // block)
        dtype = torch.int8 if format_ == "int8" else torch.bfloat16
        of_keys = (*shape, blocks, dim // 2, block, 2)
        of_values = (*shape, context, dim)
        pages = LargePages([math.prod(one) * dtype.itemsize for one in (of_keys, of_values)])
        self.keys, self.values = pages.zeros(of_keys, dtype), pages.zeros(of_values, dtype)
        if block == 1:
            self._by_token = self.keys.view(*shape, context, dim)
        scaled = (*shape, blocks * block if format_ == "int8" else 0)
        self.key_scale, self.value_scale = torch.zeros(scaled), torch.zeros(scaled)

    @property
    def tensors(self) -> tuple[Tensor, ...]:
        """All of the cache; the fourth dimension goes along the text."""
        return self.keys, self.values, self.key_scale, self.value_scale

    @property
    def nbytes(self) -> int:
        """Bytes of keys, values and scales."""
        return sum(tensor.nbytes for tensor in self.tensors)

    def write(self, layer: int, start: int, keys: Tensor, values: Tensor) -> None:
        """Keep one layer's `keys` and `values`, each (B, H_kv, T, D), from token `start` on."""
        end = start + keys.shape[2]
        if self.format == "int8":
            keys, self.key_scale[layer, :, :, start:end] = quantize_groups(keys.float())
            values, self.value_scale[layer, :, :, start:end] = quantize_groups(values.float())
        self.values[layer, :, :, start:end] = values
        if self.block == 1:
            self._by_token[layer, :, :, start:end] = keys
            return
        token = torch.arange(start, end)
        pairs = keys.unflatten(-1, (-1, 2)).permute(2, 0, 1, 3, 4)  # (T, B, H_kv, D / 2, 2)
        places = (slice(None), slice(None), token // self.block, slice(None), token % self.block)
        self.keys[layer][places] = pairs.to(self.keys.dtype)

    def take_over(self, other: Self) -> None:
        """Keep what `other` holds, a cache with no more room and otherwise like this one."""
        for ours, theirs in zip(self.tensors, other.tensors, strict=True):
            ours[:, :, :, : theirs.shape[3]] = theirs

    def read(self, layer: int, end: int) -> tuple[Tensor, Tensor]:
        """One layer's keys and values of the first `end` tokens, each (B, H_kv, `end`, D), in bf16."""
        values = self.values[layer, :, :, :end]
        if self.block == 1:
            keys = self._by_token[layer, :, :, :end]
        else:
            blocks = self.keys[layer, :, :, : -(-end // self.block)].transpose(3, 4)
            keys = blocks.flatten(4).flatten(2, 3)[:, :, :end]
        if self.format == "bf16":
            return keys, values
        scales = (self.key_scale[layer, :, :, :end], self.value_scale[layer, :, :, :end])
        keys, values = (
            (codes * scale[..., None]).bfloat16()
            for codes, scale in zip((keys, values), scales, strict=True)
        )
        return keys, values
