"""A LLaMA for a CPU: merged projections, a cache of fixed length, and one call for a decode step.

Shapes: B sequences of equal length, T new tokens, S all tokens, H heads, H_kv key-value heads,
D head dimension, C width, F inner width, V vocabulary, L layers.
"""

import ctypes
from collections.abc import Collection
from typing import Any, Self

import torch
from torch import Tensor, nn
from torch.nn.functional import rms_norm, silu

from llama_int8.quantization.cpu import kernels
from llama_int8.quantization.cpu.baselines import KernelBf16Linear
from llama_int8.quantization.cpu.cache import KeyValueCache
from llama_int8.quantization.cpu.linear import Int8FastLinear
from llama_int8.quantization.cpu.pages import LargePages
from llama_int8.transformer.attention import causal_mask
from llama_int8.transformer.config import LlamaConfig
from llama_int8.transformer.generation import Choice, extend, greedy
from llama_int8.transformer.llama import (
    rope_frequencies,
    rope_rotation,
    rotate,
    single_query_attention,
)
from llama_int8.transformer.prompt import check_tokens

QUERIES = 64  # that attend together


class FastBlock(nn.Module):
    """One layer: two norms and four products, q, k and v in one and gate and up in another."""

    def __init__(self, block: nn.Module) -> None:
        super().__init__()
        attention, mlp = block.self_attn, block.mlp
        self.input_norm = block.input_layernorm.weight.detach().float()
        self.post_attention_norm = block.post_attention_layernorm.weight.detach().float()
        merged = type(attention.q_proj).merged
        self.qkv_proj = merged([attention.q_proj, attention.k_proj, attention.v_proj])
        self.o_proj = attention.o_proj
        self.gate_up_proj = merged([mlp.gate_proj, mlp.up_proj])
        self.down_proj = mlp.down_proj

    def lend_to(self, block: nn.Module) -> None:
        """Let the layers that were merged read the memory of the merged ones, where they can."""
        attention, mlp = block.self_attn, block.mlp
        if isinstance(self.qkv_proj, Int8FastLinear):
            self.qkv_proj.lend_to([attention.q_proj, attention.k_proj, attention.v_proj])
            self.gate_up_proj.lend_to([mlp.gate_proj, mlp.up_proj])


class FastLlama(nn.Module):
    """A LLaMA that has read `position` tokens of each of `batch` sequences into its cache."""

    def __init__(
        self, model: nn.Module, context: int | None = None, batch: int = 1, cache: str = "bf16"
    ) -> None:
        """From Hugging Face's model in "int8-fast", or any with the same names and such layers.

        `context`: tokens that the cache has room for; None for 1,024 or the model's own limit. The
        layers that need no merging are shared with `model`. `cache`: keys and values are kept in
        "bf16", or in "int8" with a scale for each: half the bytes. Raises TypeError for a model with
        layers that the kernel cannot read.
        """
        super().__init__()
        for name, layer in model.named_modules():
            known = isinstance(layer, (Int8FastLinear, KernelBf16Linear))
            if name.endswith(("_proj", "lm_head")) and not known:
                raise TypeError(
                    f"{name} is {type(layer).__name__}: load the model with precision 'int8-fast', "
                    "or call replace_layers first"
                )
        self.config = _config(model)
        self.embedding = model.model.embed_tokens.weight.detach().to(torch.bfloat16)
        self.layers = nn.ModuleList([FastBlock(block) for block in model.model.layers])
        self.norm = model.model.norm.weight.detach().float()
        self.lm_head = model.lm_head
        self._move_to_large_pages()
        for fast, block in zip(self.layers, model.model.layers, strict=True):
            fast.lend_to(block)
        if context is None:
            context = min(1024, self.config.max_position_embeddings)
        self.cache_format = cache
        self.reserve(context, batch)

    def _move_to_large_pages(self) -> None:
        """Weights and scales, in the order in which a step reads them; one tensor is held twice."""
        layers = [layer for block in self.layers for layer in block.children()]
        layers.append(self.lm_head)
        names = [
            (layer, name)
            for layer in layers
            for name in ("weight", "scale")
            if getattr(layer, name, None) is not None
        ]
        pages = LargePages([getattr(*one).nbytes for one in names])
        for layer, name in names:
            setattr(layer, name, pages.copy(getattr(layer, name)))

    def reserve(self, context: int, batch: int = 1, compiled: bool = True) -> Self:
        """Make room for `batch` sequences of `context` tokens, and forget what was read.

        `compiled`: steps will go through the compiled kernel, where there is one, so keys lie in the
        order that it reads; else as PyTorch's operations read them.
        """
        config = self.config
        if not 1 <= context <= config.max_position_embeddings or batch < 1:
            raise ValueError(
                f"context is {context} and batch {batch}; expected 1 to "
                f"{config.max_position_embeddings} tokens and at least one sequence"
            )
        self.context, self.batch, self.position = context, batch, 0
        library = kernels.chosen().library if compiled else None
        block = library.keys_in_a_block() if library is not None else 1
        self.compiled = compiled
        self.cache = KeyValueCache(config, batch, context, block, self.cache_format)
        rotation = rope_rotation(torch.arange(context), rope_frequencies(config), torch.float32)
        self.cos, self.sin = (part.contiguous() for part in rotation)  # (S, D / 2)
        self._described: tuple[Any, Any] | None = None
        return self

    @torch.inference_mode()
    def forward(self, tokens: Tensor, logits_to_keep: int = 1) -> Tensor:
        """Read T tokens of each sequence, (B, T) -> logits (B, T, V) of the last ones, in bf16.

        `logits_to_keep`: how many of them, 0 for all. In PyTorch's operations, except the products.
        """
        check_tokens(self, tokens, dimensions=2)
        length, start = tokens.shape[1], self.position
        end = start + length
        x = self.embedding[tokens]  # (B, T) -> (B, T, C)
        rotation = (self.cos[start:end].bfloat16(), self.sin[start:end].bfloat16())
        for layer, block in enumerate(self.layers):
            mixed = self._attend(block.qkv_proj(self._normed(x, block.input_norm)), layer, rotation)
            x = x + block.o_proj(mixed)
            normed = self._normed(x, block.post_attention_norm)
            gate, up = block.gate_up_proj(normed).chunk(2, dim=-1)  # two (B, T, F)
            x = x + block.down_proj(silu(gate) * up)
        self.position = end
        return self.lm_head(self._normed(x[:, -logits_to_keep:], self.norm))

    @torch.inference_mode()
    def step(self, tokens: Tensor) -> Tensor:
        """Read one token of each sequence, (B,) -> logits of the next, (B, V).

        One call of the compiled kernel, in FP32 between the products; without a kernel, or where
        the room was reserved for PyTorch's operations, `forward`.
        """
        library = kernels.chosen().library
        if library is None or self.cache.block != library.keys_in_a_block():
            return self.forward(tokens[:, None])[:, -1].float()
        check_tokens(self, tokens, dimensions=1)
        tokens = tokens.long().contiguous()
        logits = torch.empty(self.batch, self.config.vocab_size)
        if self._described is None:
            self._described = self._describe()
        model, _ = self._described
        threads = torch.get_num_threads()
        library.llama_step(model, tokens.data_ptr(), self.position, logits.data_ptr(), threads)
        self.position += 1
        return logits

    def grow(self, context: int) -> Self:
        """Make room for `context` tokens, or for twice as many as now, and keep what was read."""
        if context <= self.context:
            return self
        before, position = self.cache, self.position
        most = self.config.max_position_embeddings
        self.reserve(max(context, min(2 * self.context, most)), self.batch, self.compiled)
        self.cache.take_over(before)
        self.position = position
        return self

    def make_room(self, context: int, batch: int, compiled: bool = True) -> None:
        """Forget what was read, and reserve more room, or another kind, where that is needed."""
        if (self.batch, self.compiled) != (batch, compiled) or self.context < context:
            self.reserve(context, batch, compiled)
        self.position = 0

    def generate(
        self,
        prompt: Tensor,
        new_tokens: int,
        compiled: bool = True,
        choose: Choice = greedy,
        end: Collection[int] = (),
    ) -> Tensor:
        """At most `new_tokens` tokens after each row of the prompt: (B, T) -> (B, new).

        `choose`: from logits (B, V) and the tokens so far. A row ends with a token of `end`, which is
        repeated until the longest row has ended. The cache is made to fit.
        """
        if new_tokens < 1:
            raise ValueError(f"new_tokens is {new_tokens}; at least 1 is needed")
        self.make_room(prompt.shape[1] + new_tokens, len(prompt), compiled)

        def next_logits(tokens: Tensor) -> Tensor:
            if self.position == 0:
                return self.forward(tokens)[:, -1]
            last = tokens[:, -1]
            return self.step(last) if compiled else self.forward(last[:, None])[:, -1]

        return extend(prompt, new_tokens, next_logits, choose, end)[:, prompt.shape[1] :]

    def _attend(
        self,
        qkv: Tensor,
        layer: int,
        rotation: tuple[Tensor, Tensor],
    ) -> Tensor:
        """(B, T, (H + 2 H_kv) D) -> (B, T, H D), by way of the layer's cache."""
        config = self.config
        heads = qkv.unflatten(-1, (-1, config.head_dim)).transpose(1, 2)  # (B, H + 2 H_kv, T, D)
        sizes = (config.num_attention_heads, *(config.num_key_value_heads,) * 2)
        q, k, v = heads.split(sizes, dim=1)
        self.cache.write(layer, self.position, rotate(k, *rotation), v)
        keys, values = self.cache.read(layer, self.position + qkv.shape[1])
        mixed = causal_attention(rotate(q, *rotation), keys, values)
        return mixed.transpose(1, 2).flatten(2)  # (B, H, T, D) -> (B, T, H D)

    def _normed(self, x: Tensor, weight: Tensor) -> Tensor:
        return rms_norm(x, x.shape[-1:], weight.to(x.dtype), self.config.rms_norm_eps)

    def _apply(self, fn: Any, recurse: bool = True) -> Self:
        self._described = None  # tensors may move
        return super()._apply(fn, recurse)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_described": None}  # a copy has tensors of its own

    def _describe(self) -> tuple[kernels.ModelStruct, Any]:
        """The kernel's view of the model: pointers into its tensors; and what they need to stay alive.

        Another model made from the same layers moves those that both share to pages of its own.
        """
        config = self.config
        elsewhere = [b.device for b in self.buffers() if b.device.type != "cpu"]
        if elsewhere:
            raise ValueError(f"a layer is on {elsewhere[0]}; int8-fast computes on a CPU")
        layers = (kernels.LayerStruct * len(self.layers))(
            *(
                kernels.LayerStruct(
                    block.input_norm.data_ptr(),
                    block.qkv_proj.struct(),
                    block.o_proj.struct(),
                    block.post_attention_norm.data_ptr(),
                    block.gate_up_proj.struct(),
                    block.down_proj.struct(),
                )
                for block in self.layers
            )
        )
        model = kernels.ModelStruct(
            embedding=self.embedding.data_ptr(),
            layers=layers,
            norm=self.norm.data_ptr(),
            head=self.lm_head.struct(),
            cos=self.cos.data_ptr(),
            sin=self.sin.data_ptr(),
            keys=self.cache.keys.data_ptr(),
            values=self.cache.values.data_ptr(),
            key_scale=self.cache.key_scale.data_ptr() or None,  # of no scales: null
            value_scale=self.cache.value_scale.data_ptr() or None,
            layer_count=config.num_hidden_layers,
            width=config.hidden_size,
            inner=config.intermediate_size,
            heads=config.num_attention_heads,
            kv_heads=config.num_key_value_heads,
            head_dim=config.head_dim,
            context=self.context,
            batch=self.batch,
            eps=config.rms_norm_eps,
        )
        return model, (ctypes.cast(layers, ctypes.c_void_p), list(self.buffers()))


def causal_attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Queries of the last T of S positions: (B, H, T, D) with (B, H_kv, S, D) -> (B, H, T, D).

    QUERIES of them at a time, so that no keys are multiplied which the mask would hide anyway; scores
    and softmax in FP32. On a CPU faster than PyTorch's fused attention, which serves a single query.
    """
    (new, dim), (shared, length) = q.shape[2:], k.shape[1:3]
    if new == 1:
        return single_query_attention(q, k, v)
    q = (q.float() / dim**0.5).unflatten(1, (shared, -1))  # (B, H_kv, H / H_kv, T, D)
    keys = k.float().transpose(2, 3)  # (B, H_kv, D, S)
    parts = []
    for first in range(0, new, QUERIES):
        part = q[:, :, :, first : first + QUERIES]
        count = part.shape[3]
        seen = length - new + first + count  # the last of these queries sees so many keys
        scores = part.flatten(2, 3) @ keys[..., :seen]  # (B, H_kv, H / H_kv x count, seen)
        scores = scores.unflatten(2, (-1, count))
        scores[..., -count:].masked_fill_(~causal_mask(count), -torch.inf)
        weights = scores.softmax(-1).to(v.dtype).flatten(2, 3)
        parts.append((weights @ v[:, :, :seen]).unflatten(2, (-1, count)))
    return torch.cat(parts, 3).flatten(1, 2)  # (B, H_kv, H / H_kv, T, D) -> (B, H, T, D)


def _config(model: nn.Module) -> LlamaConfig:
    config = model.config
    return (
        config
        if isinstance(config, LlamaConfig)
        else LlamaConfig.from_hugging_face(config.to_dict())
    )
