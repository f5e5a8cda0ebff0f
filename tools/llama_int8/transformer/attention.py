"""Attention and the blocks of the original Transformer (Vaswani et al., 2017, arXiv:1706.03762).

Shapes: B batch, H heads, T queries, S keys, D head dimension, C width. A boolean mask says True
where a query may look, as in `torch.nn.functional.scaled_dot_product_attention`.
"""

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn


def causal_mask(length: int, past: int = 0, device: torch.device | str | None = None) -> Tensor:
    """True where a token may look: at itself and to the left, (length, past + length).

    `past`: tokens that came before the `length` new ones, in sight of all of them.
    Raises ValueError for a negative number.
    """
    _check_count("length", length)
    _check_count("past", past)
    return torch.ones(length, past + length, dtype=torch.bool, device=device).tril(past)


def padding_mask(lengths: Tensor, longest: int) -> Tensor:
    """True where a key is text and no padding, (B, 1, 1, longest): for every head and query.

    `lengths`: tokens in each row, (B,), with the padding after them.
    """
    return torch.arange(longest, device=lengths.device) < lengths[:, None, None, None]


def attention_weights(q: Tensor, k: Tensor, mask: Tensor | None = None) -> Tensor:
    """softmax(q k^T / sqrt(D)), (..., T, D) and (..., S, D) -> (..., T, S); rows sum to 1.

    `mask`: boolean (True: may look), or of q's dtype, which is added to the scores; it must
    broadcast to (..., T, S). A row that may look nowhere gets zeros: the softmax of nothing but
    minus infinity is 0 / 0. The softmax is computed in at least FP32. Equation 1 of the paper.
    Raises ValueError for shapes that do not fit, TypeError for a mask of another dtype.
    """
    _check_attention(q, k, mask)
    scores = (q / math.sqrt(q.shape[-1])) @ k.transpose(-2, -1)  # (..., T, D) -> (..., T, S)
    precise = torch.promote_types(scores.dtype, torch.float32)
    if mask is None:
        return scores.softmax(-1, dtype=precise).to(scores.dtype)
    scores = scores.masked_fill(~mask, -math.inf) if mask.dtype == torch.bool else scores + mask
    nowhere = (scores == -math.inf).all(-1, keepdim=True)  # (..., T, 1)
    weights = scores.masked_fill(nowhere, 0.0).softmax(-1, dtype=precise)
    return weights.masked_fill(nowhere, 0.0).to(scores.dtype)


def scaled_dot_product_attention(
    q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None
) -> Tensor:
    """Each query's mean of the values, weighted by `attention_weights`, (..., T, V).

    q (..., T, D), k (..., S, D), v (..., S, V); errors as in `attention_weights`.
    """
    _check_values(k, v)
    return attention_weights(q, k, mask) @ v  # (..., T, S) @ (..., S, V) -> (..., T, V)


class MultiHeadAttention(nn.Module):
    """Attentions side by side, each on its own small projections of the whole vector (3.2.2)."""

    def __init__(self, width: int, heads: int) -> None:
        """Raises ValueError where `heads` does not divide `width`."""
        super().__init__()
        _check_heads(width, heads)
        self.heads = heads
        self.q_proj = nn.Linear(width, width)
        self.k_proj = nn.Linear(width, width)
        self.v_proj = nn.Linear(width, width)
        self.o_proj = nn.Linear(width, width)

    def forward(
        self, x: Tensor, source: Tensor | None = None, mask: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """The new states (B, T, C) and the weights (B, H, T, S).

        `source` (B, S, C) gives keys and values; None takes `x` itself, which is self-attention.
        Errors for the mask as in `attention_weights`.
        """
        source = x if source is None else source
        q = self._split(self.q_proj(x))
        k = self._split(self.k_proj(source))
        v = self._split(self.v_proj(source))
        weights = attention_weights(q, k, mask)  # (B, H, T, S)
        mixed = (weights @ v).transpose(1, 2).flatten(2)  # (B, H, T, D) -> (B, T, C)
        return self.o_proj(mixed), weights

    def _split(self, x: Tensor) -> Tensor:
        return x.unflatten(-1, (self.heads, -1)).transpose(1, 2)  # (B, T, C) -> (B, H, T, D)


def sinusoidal_positions(length: int, width: int, base: float = 10_000.0) -> Tensor:
    """sin and cos of the position at frequencies base^(-2i / width), (length, width), section 3.5.

    Even columns hold sines, odd ones cosines. Raises ValueError for an odd width.
    """
    _check_even("width", width)
    positions = torch.arange(length, dtype=torch.float64)[:, None]
    frequencies = base ** (-torch.arange(0, width, 2, dtype=torch.float64) / width)
    angles = positions * frequencies  # (length, width / 2)
    return torch.stack([angles.sin(), angles.cos()], dim=-1).flatten(1).float()


def layer_norm(x: Tensor, weight: Tensor, bias: Tensor, eps: float = 1e-5) -> Tensor:
    """Each vector of (..., C) with mean 0 and variance 1, scaled and shifted (arXiv:1607.06450)."""
    centred = x - x.mean(-1, keepdim=True)
    variance = centred.square().mean(-1, keepdim=True)  # of all C values: no division by C - 1
    return centred / (variance + eps).sqrt() * weight + bias


class FeedForward(nn.Module):
    """relu(x W1 + b1) W2 + b2 at every position by itself (section 3.3)."""

    def __init__(self, width: int, inner: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(width, inner)
        self.fc2 = nn.Linear(inner, width)

    def forward(self, x: Tensor) -> Tensor:
        """(B, T, C) -> (B, T, C)."""
        return self.fc2(self.fc1(x).relu())


class Residual(nn.Module):
    """x + sublayer(norm(x)); with `norm_first` false norm(x + sublayer(x)), as in 2017."""

    def __init__(self, width: int, norm_first: bool = True) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.norm_first = norm_first

    def forward(self, x: Tensor, sublayer: Callable[[Tensor], Tensor]) -> Tensor:
        """(B, T, C) -> (B, T, C)."""
        if self.norm_first:
            return x + sublayer(self.norm(x))
        return self.norm(x + sublayer(x))


class EncoderBlock(nn.Module):
    """Self-attention, then the feed-forward network, each with a residual connection."""

    def __init__(self, width: int, heads: int, inner: int, norm_first: bool = True) -> None:
        super().__init__()
        self.attention = MultiHeadAttention(width, heads)
        self.feed_forward = FeedForward(width, inner)
        self.residuals = nn.ModuleList([Residual(width, norm_first) for _ in range(2)])

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """(B, T, C) -> (B, T, C)."""
        x = self.residuals[0](x, lambda h: self.attention(h, mask=mask)[0])
        return self.residuals[1](x, self.feed_forward)


class DecoderBlock(nn.Module):
    """Causal self-attention, cross-attention to the encoder's states, feed-forward network."""

    def __init__(self, width: int, heads: int, inner: int, norm_first: bool = True) -> None:
        super().__init__()
        self.self_attention = MultiHeadAttention(width, heads)
        self.cross_attention = MultiHeadAttention(width, heads)
        self.feed_forward = FeedForward(width, inner)
        self.residuals = nn.ModuleList([Residual(width, norm_first) for _ in range(3)])

    def forward(self, x: Tensor, source: Tensor, source_mask: Tensor | None = None) -> Tensor:
        """x (B, T, C), the encoder's `source` (B, S, C) -> (B, T, C)."""
        past_only = causal_mask(x.shape[1], device=x.device)
        x = self.residuals[0](x, lambda h: self.self_attention(h, mask=past_only)[0])
        x = self.residuals[1](x, lambda h: self.cross_attention(h, source, source_mask)[0])
        return self.residuals[2](x, self.feed_forward)


class EncoderDecoder(nn.Module):
    """The whole Transformer, with pre-norm blocks; token 0 is padding."""

    def __init__(self, vocabulary: int, width: int, heads: int, inner: int, layers: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(vocabulary, width)
        self.encoder = nn.ModuleList([EncoderBlock(width, heads, inner) for _ in range(layers)])
        self.decoder = nn.ModuleList([DecoderBlock(width, heads, inner) for _ in range(layers)])
        self.encoder_norm, self.decoder_norm = nn.LayerNorm(width), nn.LayerNorm(width)
        self.lm_head = nn.Linear(width, vocabulary)

    def embed(self, tokens: Tensor) -> Tensor:
        """(B, T) -> (B, T, C): each token's vector plus its position's."""
        x = self.embedding(tokens)
        return x + sinusoidal_positions(*x.shape[1:]).to(x)

    def encode(self, source: Tensor) -> tuple[Tensor, Tensor]:
        """Tokens (B, S) -> states (B, S, C) and the mask (B, 1, 1, S) that hides padding."""
        mask = (source != 0)[:, None, None]
        x = self.embed(source)
        for block in self.encoder:
            x = block(x, mask)
        return self.encoder_norm(x), mask

    def decode(self, target: Tensor, states: Tensor, source_mask: Tensor) -> Tensor:
        """Tokens (B, T) and the encoder's output -> logits of each next token, (B, T, V)."""
        x = self.embed(target)
        for block in self.decoder:
            x = block(x, states, source_mask)
        return self.lm_head(self.decoder_norm(x))

    def forward(self, source: Tensor, target: Tensor) -> Tensor:
        """(B, S) and (B, T) -> logits (B, T, V)."""
        return self.decode(target, *self.encode(source))


def _check_count(name: str, value: int) -> None:
    if value < 0:
        raise ValueError(f"{name} is {value}; it must be 0 or more")


def _check_even(name: str, value: int) -> None:
    if value < 2 or value % 2:
        raise ValueError(f"{name} is {value}; sines and cosines come in pairs: it must be even")


def _check_heads(width: int, heads: int) -> None:
    if heads < 1 or width < 1 or width % heads:
        raise ValueError(f"{heads} heads do not divide a width of {width} into equal slices")


def _check_attention(q: Tensor, k: Tensor, mask: Tensor | None) -> None:
    shapes = f"q has shape {tuple(q.shape)}, k {tuple(k.shape)}"
    if min(q.dim(), k.dim()) < 2 or q.shape[-1] != k.shape[-1] or q.shape[-1] == 0:
        raise ValueError(f"{shapes}; expected (..., T, D) and (..., S, D) with the same D")
    try:
        batch = torch.broadcast_shapes(q.shape[:-2], k.shape[:-2])
    except RuntimeError:
        raise ValueError(f"{shapes}; the dimensions before the last two do not fit") from None
    if mask is None:
        return
    if mask.dtype not in (torch.bool, q.dtype):
        raise TypeError(
            f"mask has dtype {mask.dtype}; expected torch.bool (True: may look), or {q.dtype} "
            "(added to the scores: 0 or minus infinity)"
        )
    scores = (*batch, q.shape[-2], k.shape[-2])
    try:
        fits = torch.broadcast_shapes(mask.shape, scores) == scores
    except RuntimeError:
        fits = False
    if not fits:
        raise ValueError(f"mask has shape {tuple(mask.shape)}; it must broadcast to {scores}")


def _check_values(k: Tensor, v: Tensor) -> None:
    if v.dim() < 2 or k.dim() < 2 or k.shape[-2] != v.shape[-2]:
        raise ValueError(
            f"k has shape {tuple(k.shape)}, v {tuple(v.shape)}; each key needs one value: "
            "(..., S, D) and (..., S, V)"
        )
