"""The exercises of lesson 01: references, cases, hints and known mistakes."""

import math

import torch

from llama_int8.course.exercises import check, exercise, hint, solution

__all__ = ["check", "hint", "solution"]

_GENERATOR = torch.Generator().manual_seed(1)


def _normal(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=_GENERATOR)


_PAST = torch.ones(5, 5).tril().bool()
_SOME = torch.tensor([[True, False, True], [False, True, True]])


@exercise(
    "01.attention",
    points=2,
    cases=[
        (_normal(2, 9), _normal(3, 9), _normal(3, 9)),
        (_normal(2, 9), _normal(3, 9), _normal(3, 4), _SOME),
        (_normal(2, 3, 5, 8), _normal(2, 3, 5, 8), _normal(2, 3, 5, 8), _PAST),
    ],
    hints=[
        "scores = q @ k.transpose(-2, -1), divided by the square root of q.shape[-1].",
        'With a mask: scores = scores.masked_fill(~mask, float("-inf")). Then softmax, then @ v.',
        "The softmax runs over the keys, the last dimension: scores.softmax(dim=-1).",
    ],
)
def attention(q, k, v, mask=None):
    """softmax(q k^T / sqrt(D)) v; `mask` is True where a query may look."""
    scores = q @ k.transpose(-2, -1) / q.shape[-1] ** 0.5  # (..., T, D) -> (..., T, S)
    if mask is not None:
        scores = scores.masked_fill(~mask, float("-inf"))
    return scores.softmax(dim=-1) @ v  # (..., T, S) @ (..., S, D) -> (..., T, D)


def _scores(q, k, mask=None):
    scores = q @ k.transpose(-2, -1) / q.shape[-1] ** 0.5
    return scores if mask is None else scores.masked_fill(~mask, -math.inf)


attention.mistake(
    "the mask does nothing here: set its False places to minus infinity before the softmax",
    lambda q, k, v, mask=None: attention(q, k, v),
)
attention.mistake(
    "the scaling by the square root of D is missing",
    lambda q, k, v, mask=None: attention(q * q.shape[-1] ** 0.5, k, v, mask),
)
attention.mistake(
    "divide by the square root of D, not by D",
    lambda q, k, v, mask=None: attention(q / q.shape[-1] ** 0.5, k, v, mask),
)
attention.mistake(
    "the softmax must run over the keys, dim=-1, so that each row of weights sums to 1",
    lambda q, k, v, mask=None: _scores(q, k, mask).softmax(dim=-2).nan_to_num() @ v,
)
attention.mistake(
    "turned round: mask is True where a query MAY look, so fill where it is False (~mask)",
    lambda q, k, v, mask=None: attention(q, k, v, None if mask is None else ~mask),
)
attention.mistake(
    "those are the weights; the output is weights @ v",
    lambda q, k, v, mask=None: _scores(q, k, mask).softmax(dim=-1),
)
attention.mistake(
    "a score of 0 forbids nothing, since exp(0) is 1: fill with minus infinity",
    lambda q, k, v, mask=None: (
        (_scores(q, k) if mask is None else _scores(q, k).masked_fill(~mask, 0.0)).softmax(dim=-1)
        @ v
    ),
)
attention.mistake(
    "masked after the softmax: the weights no longer sum to 1. Mask the scores instead",
    lambda q, k, v, mask=None: (_scores(q, k).softmax(-1) * (1 if mask is None else mask)) @ v,
)


@exercise(
    "01.causal_mask",
    points=1,
    cases=[(1,), (2,), (5,)],
    hints=[
        "Row t is a query, column s a key. It may look where s <= t.",
        "torch.ones(length, length) has a method that keeps the lower triangle: .tril(); "
        "then .bool().",
    ],
)
def causal_mask(length):
    """True where a token may look: at itself and to the left, (length, length)."""
    return torch.ones(length, length, dtype=torch.bool).tril()


causal_mask.mistake(
    "turned round: each token would see its future and not its past", lambda n: causal_mask(n).T
)
causal_mask.mistake(
    "a token may look at itself; here the first one could look nowhere",
    lambda n: causal_mask(n).tril(-1),
)
causal_mask.mistake(
    "off by one: each token sees the next one, which it should predict",
    lambda n: torch.ones(n, n).tril(1).bool(),
)
causal_mask.mistake(
    "that is what is hidden; the mask is True where a token MAY look", lambda n: ~causal_mask(n)
)
causal_mask.mistake(
    "that is the form which is added to the scores; here True stands for 'may look'",
    lambda n: torch.zeros(n, n).masked_fill(~causal_mask(n), -math.inf),
)


@exercise(
    "01.find_the_bug",
    points=1,
    cases=[
        (torch.tensor([[0.0, 1.0], [2.0, -1.0]]),),
        (torch.tensor([[1.0, 9.0, 2.0], [0.5, 0.1, 4.0], [3.0, 2.0, 1.0]]),),
        (_normal(2, 4, 4),),
    ],
    hints=[
        "What do the rows of the result sum to? What should they?",
        "Forbid before the softmax: fill the upper triangle of the scores with minus infinity.",
    ],
)
def causal_weights(scores):
    """Row t is the softmax of its first t + 1 scores, then zeros."""
    future = torch.ones(scores.shape[-2:], dtype=torch.bool).triu(1)
    return scores.masked_fill(future, float("-inf")).softmax(-1)


causal_weights.mistake(
    "still the bug: the softmax has divided by a sum that holds the future",
    lambda scores: scores.softmax(-1).tril(),
)
causal_weights.mistake(
    "a score of 0 forbids nothing: exp(0) is 1. Use minus infinity",
    lambda scores: scores.tril().softmax(-1),
)
causal_weights.mistake(
    "each row must sum to 1: the softmax runs along a row, dim=-1, not down a column",
    lambda scores: scores.masked_fill(~torch.ones_like(scores).tril().bool(), -math.inf).softmax(
        -2
    ),
)
causal_weights.mistake(
    "turned round: each token would see its future and not its past",
    lambda scores: scores.masked_fill(~torch.ones_like(scores).triu().bool(), -math.inf).softmax(
        -1
    ),
)


@exercise(
    "01.split_heads",
    points=2,
    cases=[(_normal(1, 2, 6), 3), (_normal(2, 5, 8), 4), (_normal(2, 3, 4), 1)],
    hints=[
        "Two steps: (B, T, C) -> (B, T, H, D) -> swap T and H.",
        "First cut the width: x.unflatten(-1, (heads, -1)) is (B, T, H, D).",
        "Then T and H change places: .transpose(1, 2).",
    ],
)
def split_heads(x, heads):
    """(B, T, C) -> (B, H, T, D): the width is cut into heads, which come before the tokens."""
    return x.unflatten(-1, (heads, -1)).transpose(1, 2)  # (B, T, H, D) -> (B, H, T, D)


split_heads.mistake(
    "the right shape and the wrong numbers: (B, T, C) must become (B, T, H, D) first, and only then "
    "T and H change places",
    lambda x, heads: x.reshape(len(x), heads, x.shape[1], -1),
)
split_heads.mistake(
    "the heads must stand before the tokens: the result is (B, H, T, D)",
    lambda x, heads: x.unflatten(-1, (heads, -1)),
)
split_heads.mistake(
    "D and H have changed places: each head is a block of neighbouring numbers",
    lambda x, heads: x.unflatten(-1, (-1, heads)).permute(0, 3, 1, 2),
)


@exercise(
    "01.padding_mask",
    points=1,
    cases=[(torch.tensor([7, 4]), 7), (torch.tensor([1, 3, 2]), 3), (torch.tensor([2]), 5)],
    hints=[
        "torch.arange(longest) < lengths[:, None] is True for text, (B, longest).",
        "Two more dimensions of size 1, for heads and queries: lengths[:, None, None, None].",
    ],
)
def padding_mask(lengths, longest):
    """True where a key is text and no padding, (B, 1, 1, longest)."""
    return torch.arange(longest) < lengths[:, None, None, None]


padding_mask.mistake(
    "turned round: True is for text here (the masks of PyTorch's modules are the other way)",
    lambda lengths, n: ~padding_mask(lengths, n),
)
padding_mask.mistake(
    "off by one: places are counted from 0, so the last text place is length - 1",
    lambda lengths, n: padding_mask(lengths + 1, n),
)
padding_mask.mistake(
    "that is padding on the left; here it stands after the text",
    lambda lengths, n: padding_mask(lengths, n).flip(-1),
)
padding_mask.mistake(
    "right, but without the dimensions for heads and queries: the shape must be (B, 1, 1, longest)",
    lambda lengths, n: padding_mask(lengths, n)[:, 0, 0],
)


@exercise(
    "01.window_mask",
    points=2,
    cases=[(6, 3, 0), (6, 3, 1), (7, 2, 2), (3, 8, 1), (5, 1, 0)],
    hints=[
        "Positions as a column and as a row: t = torch.arange(length)[:, None], s = "
        "torch.arange(length).",
        "In the window: s > t - window. One of the first: s < sinks. And never the future: s <= t.",
    ],
)
def window_mask(length, window, sinks):
    """True for the last `window` tokens, itself included, and for the first `sinks`; no future."""
    t, s = torch.arange(length)[:, None], torch.arange(length)
    return (s <= t) & ((s > t - window) | (s < sinks))


window_mask.mistake(
    "off by one: the token itself is one of the `window`",
    lambda n, window, sinks: window_mask(n, window + 1, sinks),
)
window_mask.mistake(
    "the first `sinks` tokens must stay in sight of everybody after them",
    lambda n, window, sinks: window_mask(n, window, 0),
)
window_mask.mistake(
    "a token sees its future here: s <= t must hold for the first tokens, too",
    lambda n, window, sinks: window_mask(n, window, 0) | (torch.arange(n) < sinks),
)
window_mask.mistake(
    "the future is in sight: nothing says s <= t",
    lambda n, window, sinks: window_mask(n, window, sinks) | ~causal_mask(n),
)
window_mask.mistake(
    "that is the whole past; only the window and the first tokens stay in sight",
    lambda n, window, sinks: causal_mask(n),
)
