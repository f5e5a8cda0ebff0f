"""Keys and values of the tokens that a LLaMA has read, in bf16, in the order that the kernel reads.

Shapes: L layers, B sequences, H_kv key-value heads, S tokens, D head dimension.
"""

from typing import Self

import torch
from torch import Tensor

from llama_int8.transformer.config import LlamaConfig


class KeyValueCache:
    """Values lie token by token, (L, B, H_kv, S, D); keys in blocks of `block` tokens.

    Within a block, two dimensions of every key follow each other, (L, B, H_kv, S / block, D / 2,
    block, 2): the compiled kernel loads them for several keys at once. With `block` 1 keys lie as
    values do, which suits PyTorch's operations.
    """

    def __init__(self, config: LlamaConfig, batch: int, context: int, block: int) -> None:
        self.block = block
        shape = (config.num_hidden_layers, batch, config.num_key_value_heads)
        dim, blocks = config.head_dim, -(-context // block)
        self.keys = torch.zeros(*shape, blocks, dim // 2, block, 2, dtype=torch.bfloat16)
        if block == 1:
            self._by_token = self.keys.view(*shape, context, dim)
        self.values = torch.zeros(*shape, context, dim, dtype=torch.bfloat16)

    def write(self, layer: int, start: int, keys: Tensor, values: Tensor) -> None:
        """Keep one layer's `keys` and `values`, each (B, H_kv, T, D), from token `start` on."""
        end = start + keys.shape[2]
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
        for ours, theirs in ((self.keys, other.keys), (self.values, other.values)):
            ours[:, :, :, : theirs.shape[3]] = theirs

    def read(self, layer: int, end: int) -> tuple[Tensor, Tensor]:
        """One layer's keys and values of the first `end` tokens, each (B, H_kv, `end`, D)."""
        values = self.values[layer, :, :, :end]
        if self.block == 1:
            return self._by_token[layer, :, :, :end], values
        blocks = self.keys[layer, :, :, : -(-end // self.block)].transpose(3, 4)
        return blocks.flatten(4).flatten(2, 3)[:, :, :end], values
