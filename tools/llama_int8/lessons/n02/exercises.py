"""The exercises of lesson 02: references, cases, hints and known mistakes."""

import torch

from llama_int8.course.exercises import check, exercise, hint, solution

__all__ = ["check", "hint", "solution"]

_GENERATOR = torch.Generator().manual_seed(2)


def _case(x: tuple[int, ...], source: tuple[int, ...], width: int) -> tuple[torch.Tensor, ...]:
    shapes = (x, source, *[(x[-1], width)] * 3)
    return tuple(torch.randn(*shape, generator=_GENERATOR) for shape in shapes)


@exercise(
    "02.cross_attention",
    points=2,
    cases=[_case((3, 4), (5, 4), 4), _case((2, 3, 6), (2, 7, 6), 5)],
    hints=[
        "q = x @ w_q, but k = source @ w_k and v = source @ w_v.",
        "Then as in lesson 01: softmax(q @ k.transpose(-2, -1) / sqrt(D)) @ v.",
    ],
)
def cross_attention(x, source, w_q, w_k, w_v):
    """Each token of `x` takes a mean of the values of `source`."""
    q, k, v = x @ w_q, source @ w_k, source @ w_v  # (..., T, D), (..., S, D), (..., S, D)
    scores = q @ k.transpose(-2, -1) / q.shape[-1] ** 0.5  # (..., T, S)
    return scores.softmax(dim=-1) @ v


cross_attention.mistake(
    "that is self-attention: keys and values must come from source",
    lambda x, source, w_q, w_k, w_v: cross_attention(x, x, w_q, w_k, w_v),
)
cross_attention.mistake(
    "turned round: the queries come from x, which is being written, not from source",
    lambda x, source, w_q, w_k, w_v: cross_attention(source, x, w_q, w_k, w_v),
)
cross_attention.mistake(
    "the scaling by the square root of D is missing",
    lambda x, source, w_q, w_k, w_v: cross_attention(
        x, source, w_q * w_q.shape[-1] ** 0.5, w_k, w_v
    ),
)
cross_attention.mistake(
    "the softmax must run over the keys, the last dimension",
    lambda x, source, w_q, w_k, w_v: (
        ((x @ w_q) @ (source @ w_k).transpose(-2, -1) / w_q.shape[-1] ** 0.5).softmax(-2)
        @ (source @ w_v)
    ),
)
cross_attention.mistake(
    "the values come from source, too: v = source @ w_v",
    lambda x, source, w_q, w_k, w_v: (
        ((x @ w_q) @ (source @ w_k).transpose(-2, -1) / w_q.shape[-1] ** 0.5).softmax(-1) @ source
    ),
)
