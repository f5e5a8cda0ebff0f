"""A LLaMA whose decode step is one CUDA graph: fixed shapes, a preallocated cache, no launches.

Shapes: B sequences of equal length, T new tokens, S tokens of the cache, H heads, H_kv key-value
heads, D head dimension, C width, F inner width, V vocabulary, L layers.
"""

import copy
import weakref
from collections.abc import Callable, Collection
from functools import cache, partial
from typing import Any, Self

import torch
from torch import Tensor, nn
from torch.nn.functional import rms_norm, scaled_dot_product_attention, silu

from llama_int8.quantization.gpu.linear import GpuInt8Linear
from llama_int8.transformer.attention import causal_mask
from llama_int8.transformer.config import LlamaConfig
from llama_int8.transformer.generation import Choice, extend, greedy
from llama_int8.transformer.llama import rope_frequencies, rope_rotation, rotate
from llama_int8.transformer.prompt import check_tokens

BUCKET = 128  # tokens: a step reads the cache up to the next multiple, and has a graph for each


@cache
def side_stream(device: torch.device) -> Any:
    """One stream for all captures: cuBLAS keeps a workspace for each stream that it has seen."""
    return torch.cuda.Stream(device)


# --- the graph: lesson 10 shows it ---
def captured(run: Callable[[], Tensor], device: torch.device, pool: Any = None) -> Callable:
    """`run` as one CUDA graph: recorded once, then started by a single call. Elsewhere `run` itself.

    `run` must find its inputs in the same tensors each time, and wait for nothing.
    """
    if device.type != "cuda":
        return run
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.device(device):
        side = side_stream(device)
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):  # compiles kernels, and lets the libraries take memory
            for _ in range(3):
                run()
        torch.cuda.current_stream().wait_stream(side)
        with torch.cuda.graph(graph, pool=pool, stream=side):
            out = run()

    def replay() -> Tensor:
        graph.replay()
        return out

    return replay


# --- end ---


class GraphBlock(nn.Module):
    """One layer: two norms and four products, q, k and v in one and gate and up in another."""

    def __init__(self, block: nn.Module) -> None:
        super().__init__()
        attention, mlp = block.self_attn, block.mlp
        self.input_norm = block.input_layernorm.weight.detach()
        self.post_attention_norm = block.post_attention_layernorm.weight.detach()
        self.qkv_proj = merged([attention.q_proj, attention.k_proj, attention.v_proj])
        self.o_proj = attention.o_proj
        self.gate_up_proj = merged([mlp.gate_proj, mlp.up_proj])
        self.down_proj = mlp.down_proj


class GraphLlama(nn.Module):
    """A LLaMA that has read `position` tokens of each of `batch` sequences into its cache."""

    def __init__(self, model: nn.Module, context: int | None = None, batch: int = 1) -> None:
        """From a LLaMA with Hugging Face's names, with layers of `int8-fast` for a GPU or of PyTorch.

        In 16 bit it is the control of int8: everything but the format of the weights is the same.
        `context`: tokens that the cache has room for; None for 1,024 or the model's own limit. The
        weights are shared with `model`. Raises TypeError for other layers.
        """
        super().__init__()
        for name, layer in model.named_modules():
            if name.endswith(("_proj", "lm_head")) and type(layer) not in (
                nn.Linear,
                GpuInt8Linear,
            ):
                raise TypeError(
                    f"{name} is {type(layer).__name__}; GraphLlama takes models in 16 bit, and in "
                    "int8-fast loaded for a GPU"
                )
        known = isinstance(model.config, LlamaConfig)
        self.config = (
            model.config if known else LlamaConfig.from_hugging_face(model.config.to_dict())
        )
        self.embedding = model.model.embed_tokens.weight.detach()
        self.layers = nn.ModuleList([GraphBlock(block) for block in model.model.layers])
        self.norm = model.model.norm.weight.detach()
        self.lm_head = model.lm_head
        self._owner: Callable[[], Any] = _nobody
        self._fused = False
        if context is None:
            context = min(1024, self.config.max_position_embeddings)
        self.reserve(context, batch)

    def reserve(self, context: int, batch: int = 1) -> Self:
        """Make room for `batch` sequences of `context` tokens or more, and forget what was read.

        Graphs know tensors by their addresses, so those of the old cache go with it.
        """
        config, device = self.config, self.embedding.device
        most = config.max_position_embeddings
        if not 1 <= context <= most or batch < 1:
            raise ValueError(
                f"context is {context} and batch {batch}; expected 1 to {most} tokens and at least "
                "one sequence"
            )
        room = -(-context // BUCKET) * BUCKET
        # The old cache is freed before the new one is made; if that finds no room, there is none.
        self.keys = self.values = None
        self.batch, self.context, self.position = batch, 0, 0
        self._steps: dict[int, Callable[[], Tensor]] = {}  # by how much of the cache they read
        self._pool = torch.cuda.graph_pool_handle() if device.type == "cuda" else None
        shape = (config.num_hidden_layers, batch, config.num_key_value_heads)
        dtype = self.embedding.dtype
        with torch.inference_mode(False):
            self.keys, self.values = torch.zeros(
                2, *shape, room, config.head_dim, dtype=dtype, device=device
            )
            positions = torch.arange(room, device=device)
            cos, sin = rope_rotation(positions, rope_frequencies(config), torch.float32)
            self.positions, self.cos, self.sin = positions, cos.to(dtype), sin.to(dtype)
            self.tokens = torch.zeros(batch, dtype=torch.long, device=device)
            self.place = torch.zeros(1, dtype=torch.long, device=device)
        self.context = min(room, most)
        return self

    @property
    def device(self) -> torch.device:
        """The device that holds everything."""
        return self.embedding.device

    @torch.inference_mode()
    def forward(self, tokens: Tensor, logits_to_keep: int = 1) -> Tensor:
        """Read T tokens of each sequence, (B, T) -> logits (B, T, V) of the last ones.

        `logits_to_keep`: how many of them, 0 for all. The way for prompts, without a graph.
        """
        check_tokens(self, tokens, dimensions=2)
        length, start = tokens.shape[1], self.position
        end = start + length
        rotation = (self.cos[start:end], self.sin[start:end])
        mask = causal_mask(length, start, tokens.device) if start else None
        x = self.embedding[tokens]  # (B, T) -> (B, T, C)
        for layer, block in enumerate(self.layers):
            q, k, v = self._heads(block.qkv_proj(self._normed(x, block.input_norm)), rotation)
            self.keys[layer, :, :, start:end] = k
            self.values[layer, :, :, start:end] = v
            k, v = (kept[layer, :, :, :end] for kept in (self.keys, self.values))
            # Every query head gets keys of its own: a T4's fast attention takes no grouped heads.
            if (shared := q.shape[1] // k.shape[1]) > 1:
                k, v = (part.repeat_interleave(shared, 1) for part in (k, v))
            mixed = scaled_dot_product_attention(q, k, v, mask, is_causal=mask is None)
            x = x + block.o_proj(mixed.transpose(1, 2).flatten(2))  # (B, H, T, D) -> (B, T, H D)
            x = self._feed_forward(x, block)
        self.position = end
        return self.lm_head(self._normed(x[:, -logits_to_keep:], self.norm))

    @torch.inference_mode()
    def step(self, tokens: Tensor) -> Tensor:
        """Read one token of each sequence, (B,) -> logits of the next, (B, V), in FP32.

        On a GPU one captured graph, on a CPU the same operations one by one. Nothing here waits for
        the card, so a loop that chooses tokens on the card runs ahead of it.
        """
        check_tokens(self, tokens, dimensions=1)
        self.tokens.copy_(tokens)
        self.place.fill_(self.position)
        seen = (self.position // BUCKET + 1) * BUCKET
        if seen not in self._steps:
            step = torch.compile(self._step, dynamic=False) if self._fused else self._step
            run = partial(step, seen)
            self._steps[seen] = captured(run, self.device, self._pool)
        logits = self._steps[seen]()
        self.position += 1
        return logits.to(torch.float32, copy=True)  # the graph writes to the same place again

    def _step(self, seen: int) -> Tensor:
        """One token of each sequence by fixed tensors: `tokens`, `place`, `seen` keys -> (B, V)."""
        config = self.config
        x = self.embedding[self.tokens]  # (B, C)
        rotation = (self.cos[self.place], self.sin[self.place])  # (1, D / 2)
        hidden = (self.positions[:seen] > self.place)[None, None, None]  # (1, 1, 1, S)
        mask = torch.zeros(hidden.shape, dtype=x.dtype, device=x.device)
        mask = mask.masked_fill(hidden, -torch.inf)
        for layer, block in enumerate(self.layers):
            qkv = block.qkv_proj(self._normed(x, block.input_norm))
            q, k, v = self._heads(qkv[:, None], rotation)
            self.keys[layer].index_copy_(2, self.place, k)  # k: (B, H_kv, 1, D)
            self.values[layer].index_copy_(2, self.place, v)
            rows = q.unflatten(1, (config.num_key_value_heads, -1)).squeeze(
                3
            )  # (B, H_kv, H/H_kv, D)
            k, v = self.keys[layer, :, :, :seen], self.values[layer, :, :, :seen]
            # The query heads that share keys are rows of one product: the keys are read once.
            mixed = scaled_dot_product_attention(rows, k, v, mask)
            x = x + block.o_proj(mixed.flatten(1))  # (B, H_kv, H / H_kv, D) -> (B, H D)
            x = self._feed_forward(x, block)
        return self.lm_head(self._normed(x, self.norm))

    def generate(
        self,
        prompt: Tensor,
        new_tokens: int,
        choose: Choice = greedy,
        end: Collection[int] = (),
    ) -> Tensor:
        """At most `new_tokens` tokens after each row of the prompt: (B, T) -> (B, new).

        `choose`: from logits (B, V) and the tokens so far. A row ends with a token of `end`, which is
        repeated until the longest row has ended. The cache is made to fit.
        """
        if new_tokens < 1:
            raise ValueError(f"new_tokens is {new_tokens}; at least 1 is needed")
        self.make_room(prompt.shape[1] + new_tokens, len(prompt))

        def next_logits(tokens: Tensor) -> Tensor:
            if self.position == 0:
                return self.forward(tokens)[:, -1].float()
            return self.step(tokens[:, -1])

        return extend(prompt, new_tokens, next_logits, choose, end)[:, prompt.shape[1] :]

    def make_room(self, context: int, batch: int) -> None:
        """Forget what was read, and reserve more room where that is needed."""
        if self.batch != batch or self.context < context:
            self.reserve(context, batch)
        self.position = 0

    def grow(self, context: int) -> Self:
        """Make room for `context` tokens, or for twice as many as now, and keep what was read."""
        if context <= self.context:
            return self
        keys, values, position = self.keys, self.values, self.position
        most = self.config.max_position_embeddings
        self.reserve(max(context, min(2 * self.context, most)), self.batch)
        self.keys[:, :, :, :position] = keys[:, :, :, :position]
        self.values[:, :, :, :position] = values[:, :, :, :position]
        self.position = position
        return self

    def reader_for(self, owner: object) -> Self:
        """This model and its graphs, for `owner` only; while another owner lives, a second one."""
        reader = self
        if self._owner() is not None:
            reader = copy.copy(self)
            reader.reserve(1)
        reader._owner = weakref.ref(owner)
        reader.position = 0
        return reader

    def compiled(self) -> Self:
        """The same model with a cache of its own, whose step `torch.compile` fuses before the graph.

        The weights are shared. The compiler works at the first step, for a minute in a large model.
        """
        reader = copy.copy(self)
        reader._fused, reader._owner = True, _nobody
        return reader.reserve(1)

    def _heads(self, qkv: Tensor, rotation: tuple[Tensor, Tensor]) -> tuple[Tensor, ...]:
        """(B, T, (H + 2 H_kv) D) -> queries (B, H, T, D), keys and values (B, H_kv, T, D), turned."""
        heads = qkv.unflatten(-1, (-1, self.config.head_dim)).transpose(1, 2)
        count, shared = self.config.num_attention_heads, self.config.num_key_value_heads
        turned = rotate(heads[:, : count + shared], *rotation)
        return turned[:, :count], turned[:, count:], heads[:, count + shared :]

    def _feed_forward(self, x: Tensor, block: GraphBlock) -> Tensor:
        normed = self._normed(x, block.post_attention_norm)
        gate, up = block.gate_up_proj(normed).chunk(2, dim=-1)  # two (..., F)
        return x + block.down_proj(silu(gate) * up)

    def _normed(self, x: Tensor, weight: Tensor) -> Tensor:
        return rms_norm(x, x.shape[-1:], weight, self.config.rms_norm_eps)

    def _apply(self, fn: Any, recurse: bool = True) -> Self:
        raise TypeError("a captured step knows its tensors' places; move the model, then make this")


def merged(layers: list[nn.Module]) -> nn.Module:
    """One layer with the outputs of all; they become views of it, so that nothing is held twice."""
    if isinstance(layers[0], GpuInt8Linear):
        return GpuInt8Linear.merged(layers)
    biases = [layer.bias for layer in layers if layer.bias is not None]
    if len(biases) not in (0, len(layers)):
        raise ValueError("layers with and without a bias cannot be merged")
    rows = [layer.out_features for layer in layers]
    with torch.device("meta"):
        whole = nn.Linear(layers[0].in_features, sum(rows), bias=bool(biases))
    whole.weight = nn.Parameter(torch.cat([layer.weight.detach() for layer in layers]))
    if biases:
        whole.bias = nn.Parameter(torch.cat([bias.detach() for bias in biases]))
    for layer, part in zip(layers, whole.weight.detach().split(rows), strict=True):
        layer.weight = nn.Parameter(part)
    return whole


def _nobody() -> None:
    return None
