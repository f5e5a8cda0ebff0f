"""LLaMA (Touvron et al., 2023, arXiv:2302.13971), its parts named as in Hugging Face's checkpoints.

Shapes: B batch, T new tokens, S all tokens, H heads, H_kv key-value heads, D head dimension,
C width, F inner width of the feed-forward network, V vocabulary.
"""

import math
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention, silu

from llama_int8.transformer.attention import causal_mask
from llama_int8.transformer.checkpoints import check_tensors, read_checkpoint
from llama_int8.transformer.config import LlamaConfig


class RMSNorm(nn.Module):
    """x / sqrt(mean(x^2) + eps) * weight over the last dimension (arXiv:1910.07467, equation 4)."""

    def __init__(self, width: int, eps: float = 1e-5) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        """(..., C) -> (..., C); in FP32 inside, because squares overflow FP16 from 256 on."""
        precise = x.float()
        mean_square = precise.square().mean(-1, keepdim=True)  # (..., 1)
        return self.weight * (precise * (mean_square + self.eps).rsqrt()).to(x.dtype)


class SwiGLU(nn.Module):
    """down(silu(gate(x)) * up(x)) at every position by itself (Shazeer, arXiv:2002.05202, eq. 6)."""

    def __init__(self, width: int, inner: int, bias: bool = False) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(width, inner, bias)
        self.up_proj = nn.Linear(width, inner, bias)
        self.down_proj = nn.Linear(inner, width, bias)

    def forward(self, x: Tensor) -> Tensor:
        """(..., C) -> (..., C), over (..., F)."""
        return self.down_proj(silu(self.gate_proj(x)) * self.up_proj(x))


def rope_frequencies(config: LlamaConfig) -> Tensor:
    """Angle by which each pair of dimensions turns from one position to the next, (D / 2,), FP32.

    theta^(-2i / D) for pair i (Su et al., arXiv:2104.09864, section 3.2.2). Scaling "linear"
    divides all of them by a factor (Chen et al., arXiv:2306.15595); "llama3" divides the slow ones,
    leaves the fast ones, and blends in between (Llama 3.1). Raises ValueError for another kind.
    """
    _check_config(config)
    exponents = torch.arange(0, config.head_dim, 2, dtype=torch.float32, device="cpu")
    frequencies = 1.0 / config.rope_theta ** (exponents / config.head_dim)
    scaling = config.rope_scaling or {"rope_type": "default"}
    if scaling["rope_type"] == "linear":
        return frequencies / scaling["factor"]
    if scaling["rope_type"] == "llama3":
        low, high = scaling["low_freq_factor"], scaling["high_freq_factor"]
        turns = scaling["original_max_position_embeddings"] * frequencies / (2 * math.pi)
        keep = ((turns - low) / (high - low)).clamp(0, 1)  # 1: many turns within the old context
        return frequencies * (keep + (1 - keep) / scaling["factor"])
    return frequencies


def rope_rotation(
    positions: Tensor, frequencies: Tensor, dtype: torch.dtype
) -> tuple[Tensor, Tensor]:
    """cos and sin of position x frequency, two tensors (T, D / 2), computed in FP32."""
    angles = positions[:, None].float() * frequencies.to(positions.device)  # (T, D / 2)
    return angles.cos().to(dtype), angles.sin().to(dtype)


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Turn each pair (x_i, x_{i + D/2}) of (B, H, T, D) by its position's angle (equation 34)."""
    first, second = x.chunk(2, dim=-1)  # two halves (B, H, T, D / 2)
    return torch.cat([first * cos - second * sin, second * cos + first * sin], dim=-1)


def single_query_attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """One new token's attention to all keys: (B, H, 1, D) with (B, H_kv, S, D) -> (B, H, 1, D).

    The heads that share keys are the rows of one product, so that the keys are read once. On a CPU
    in bf16 that is several times faster than `enable_gqa`, and the numbers are the same.
    """
    rows = q.unflatten(1, (k.shape[1], -1)).squeeze(3)  # (B, H_kv, H / H_kv, D)
    mixed = scaled_dot_product_attention(rows, k, v, None, is_causal=False, enable_gqa=False)
    return mixed.flatten(1, 2).unsqueeze(2)


class GroupedQueryAttention(nn.Module):
    """Causal self-attention; H / H_kv query heads share a key-value head (arXiv:2305.13245)."""

    def __init__(self, config: LlamaConfig, layer: int) -> None:
        super().__init__()
        width, bias = config.hidden_size, config.attention_bias
        queries = config.num_attention_heads * config.head_dim
        keys = config.num_key_value_heads * config.head_dim
        self.layer, self.head_dim = layer, config.head_dim
        self.q_proj = nn.Linear(width, queries, bias)
        self.k_proj = nn.Linear(width, keys, bias)
        self.v_proj = nn.Linear(width, keys, bias)
        self.o_proj = nn.Linear(queries, width, bias)

    def forward(
        self, x: Tensor, rotation: tuple[Tensor, Tensor], mask: Tensor | None, cache: Any = None
    ) -> Tensor:
        """(B, T, C) -> (B, T, C). A `mask` of None: all T tokens are new, or there is just one."""
        q = rotate(self._split(self.q_proj(x)), *rotation)  # (B, H, T, D)
        k = rotate(self._split(self.k_proj(x)), *rotation)  # (B, H_kv, T, D)
        v = self._split(self.v_proj(x))
        if cache is not None:
            k, v = cache.update(k, v, self.layer)  # (B, H_kv, S, D)
        if mask is None and x.shape[1] == 1:
            mixed = single_query_attention(q, k, v)
        else:
            mixed = scaled_dot_product_attention(
                q, k, v, mask, is_causal=mask is None, enable_gqa=True
            )
        return self.o_proj(mixed.transpose(1, 2).flatten(2))  # (B, H, T, D) -> (B, T, C)

    def _split(self, x: Tensor) -> Tensor:
        return x.unflatten(-1, (-1, self.head_dim)).transpose(1, 2)  # (B, T, H D) -> (B, H, T, D)


class LlamaBlock(nn.Module):
    """Attention, then the feed-forward network, each on normed states and added to the residual."""

    def __init__(self, config: LlamaConfig, layer: int) -> None:
        super().__init__()
        width, eps = config.hidden_size, config.rms_norm_eps
        self.self_attn = GroupedQueryAttention(config, layer)
        self.mlp = SwiGLU(width, config.intermediate_size, config.mlp_bias)
        self.input_layernorm = RMSNorm(width, eps)
        self.post_attention_layernorm = RMSNorm(width, eps)

    def forward(
        self, x: Tensor, rotation: tuple[Tensor, Tensor], mask: Tensor | None, cache: Any = None
    ) -> Tensor:
        """(B, T, C) -> (B, T, C)."""
        x = x + self.self_attn(self.input_layernorm(x), rotation, mask, cache)
        return x + self.mlp(self.post_attention_layernorm(x))


class Llama(nn.Module):
    """The whole model: embedding, blocks, norm, output layer."""

    def __init__(self, config: LlamaConfig) -> None:
        """With random weights. Raises ValueError for shapes that do not fit together."""
        super().__init__()
        _check_config(config)
        self.config = config
        self.model = nn.ModuleDict(
            {
                "embed_tokens": nn.Embedding(config.vocab_size, config.hidden_size),
                "layers": nn.ModuleList(
                    [LlamaBlock(config, layer) for layer in range(config.num_hidden_layers)]
                ),
                "norm": RMSNorm(config.hidden_size, config.rms_norm_eps),
            }
        )
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self.frequencies = rope_frequencies(config)  # no buffer: `.to(dtype)` would round it
        for parameter in self.parameters():
            if parameter.dim() == 2:
                nn.init.normal_(parameter, std=0.02)
        self.tie_weights()

    def tie_weights(self) -> None:
        """Let the output layer use the embedding's table, where the config says so."""
        if self.config.tie_word_embeddings:
            self.lm_head.weight = self.model.embed_tokens.weight

    def forward(
        self,
        tokens: Tensor,
        past_key_values: Any = None,
        use_cache: bool = True,
        logits_to_keep: int = 0,
    ) -> Tensor:
        """Logits of each next token, (B, T) -> (B, T, V); of the last `logits_to_keep` if not 0.

        `past_key_values`: a `KVCache` (or Hugging Face's `DynamicCache`; one of fixed length does
        not fit) with the tokens so far; it is extended.
        `use_cache` is Hugging Face's switch for a cache of its own making: there is none here.
        Raises ValueError for tokens that are not (B, T), exceed the context, or (checked only
        on a CPU) are not in [0, V); TypeError for another dtype than int64 and int32.
        """
        past = 0 if past_key_values is None else past_key_values.get_seq_length()
        _check_tokens(self.config, tokens, past)
        x = self.model.embed_tokens(tokens)  # (B, T) -> (B, T, C)
        length = tokens.shape[1]
        positions = torch.arange(past, past + length, device=tokens.device)
        rotation = rope_rotation(positions, self.frequencies, x.dtype)
        mask = causal_mask(length, past, tokens.device) if past and length > 1 else None
        for block in self.model.layers:
            x = block(x, rotation, mask, past_key_values)
        return self.lm_head(self.model.norm(x[:, -logits_to_keep:]))

    @classmethod
    def from_pretrained(
        cls,
        folder: str | Path,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
    ) -> Self:
        """Load a folder in Hugging Face's or Meta's format, in evaluation mode.

        Raises ModelFilesError where a file is missing, damaged or does not fit the config.
        """
        config, tensors = read_checkpoint(Path(folder))
        with torch.device("meta"):  # shapes without memory
            model = cls(config)
        wanted = dict(model.named_parameters())  # a shared table once
        check_tensors(folder, wanted, tensors)
        state = {name: tensors[name].to(device, dtype) for name in wanted}
        model.load_state_dict(state, strict=False, assign=True)
        model.tie_weights()
        return model.eval()


def _check_config(config: LlamaConfig) -> None:
    config.check()


def _check_tokens(config: LlamaConfig, tokens: Tensor, past: int) -> None:
    if tokens.dim() != 2 or tokens.numel() == 0:
        raise ValueError(
            f"expected token ids of shape (B, T) with T >= 1, got {tuple(tokens.shape)}"
        )
    if tokens.dtype not in (torch.int32, torch.int64):
        raise TypeError(f"tokens have dtype {tokens.dtype}; token ids are int64 (or int32) numbers")
    if past + tokens.shape[1] > config.max_position_embeddings:
        raise ValueError(
            f"{past + tokens.shape[1]} tokens exceed the context of "
            f"{config.max_position_embeddings}; shorten the text"
        )
    if tokens.device.type == "cpu":  # on a GPU, looking would mean waiting
        wrong = tokens[(tokens < 0) | (tokens >= config.vocab_size)]
        if wrong.numel():
            raise ValueError(
                f"token {wrong[0].item()} is not in the vocabulary of {config.vocab_size}; is this "
                "another model's tokenizer?"
            )
