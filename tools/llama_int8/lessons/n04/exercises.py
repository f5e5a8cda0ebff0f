"""The exercises of lesson 04: references, cases, hints and known mistakes."""

import math

from llama_int8.course.exercises import check, exercise, hint, solution

__all__ = ["check", "hint", "solution"]


@exercise(
    "04.rms_norm",
    points=1,
    cases=[
        ([3.0, 4.0], [1.0, 1.0], 0.0),
        ([1.0, 2.0, 3.0, 6.0], [1.0, 0.5, 2.0, -1.0], 1e-5),
        ([0.001, -0.002], [1.0, 2.0], 0.1),
    ],
    hints=[
        "First the mean of the squares, then eps under the root with it.",
        "weight[i] * x[i] / (mean_square + eps) ** 0.5",
    ],
)
def rms_norm(x: list[float], weight: list[float], eps: float) -> list[float]:
    """x over the root of its mean square, times the weights."""
    mean_square = sum(value * value for value in x) / len(x)
    return [w * value / (mean_square + eps) ** 0.5 for w, value in zip(weight, x, strict=True)]


rms_norm.mistake(
    "that takes the mean off first, which is what LayerNorm does and RMSNorm saves",
    lambda x, w, eps: rms_norm([v - sum(x) / len(x) for v in x], w, eps),
)
rms_norm.mistake(
    "divide the sum of squares by their number: the *mean* square",
    lambda x, w, eps: [
        b * v / (sum(u * u for u in x) + eps) ** 0.5 for b, v in zip(w, x, strict=True)
    ],
)
rms_norm.mistake(
    "the learned weights are missing", lambda x, w, eps: rms_norm(x, [1.0] * len(x), eps)
)
rms_norm.mistake(
    "nearly: eps stands under the root, beside the mean square",
    lambda x, w, eps: [
        b * v / ((sum(u * u for u in x) / len(x)) ** 0.5 + eps) for b, v in zip(w, x, strict=True)
    ],
)
rms_norm.mistake(
    "the root is missing: x is divided by the *root* of its mean square",
    lambda x, w, eps: [
        b * v / (sum(u * u for u in x) / len(x) + eps) for b, v in zip(w, x, strict=True)
    ],
)


@exercise(
    "04.rotate",
    points=2,
    cases=[
        ([1.0, 0.0, 0.0, 1.0], [math.pi / 2, 0.1]),
        ([0.3, -1.2, 0.7, 2.0, 0.1, -0.4], [0.5, 1.5, -2.0]),
        ([2.0, 1.0], [0.25]),
    ],
    hints=[
        "With half = len(angles), pair i is x[i] and x[i + half].",
        (
            "new x[i] = x[i] cos a - x[i + half] sin a; new x[i + half] = x[i + half] cos a + "
            "x[i] sin a, both from the old values."
        ),
    ],
)
def rotated(x: list[float], angles: list[float]) -> list[float]:
    """Each pair (x[i], x[i + half]) turned by angles[i]."""
    import math

    half = len(angles)
    first = [x[i] * math.cos(a) - x[i + half] * math.sin(a) for i, a in enumerate(angles)]
    second = [x[i + half] * math.cos(a) + x[i] * math.sin(a) for i, a in enumerate(angles)]
    return first + second


@rotated.mistake(
    "those are neighbouring pairs, x[2i] and x[2i + 1]: Meta's order. Hugging "
    "Face's weights are stored for halves, x[i] and x[i + half]"
)
def _turned_neighbours(x: list[float], angles: list[float]) -> list[float]:
    out = list(x)
    for i, a in enumerate(angles):
        first, second = x[2 * i], x[2 * i + 1]
        out[2 * i] = first * math.cos(a) - second * math.sin(a)
        out[2 * i + 1] = second * math.cos(a) + first * math.sin(a)
    return out


rotated.mistake(
    "turned the other way: the sign of the sine", lambda x, angles: rotated(x, [-a for a in angles])
)


@rotated.mistake("x[i + half] needs the old x[i], which is overwritten: both from the old values")
def _turned_in_place(x: list[float], angles: list[float]) -> list[float]:
    out, half = list(x), len(angles)
    for i, a in enumerate(angles):
        out[i] = out[i] * math.cos(a) - out[i + half] * math.sin(a)
        out[i + half] = out[i + half] * math.cos(a) + out[i] * math.sin(a)
    return out


rotated.mistake(
    "the angles are in radians already",
    lambda x, angles: rotated(x, [math.radians(a) for a in angles]),
)


@exercise(
    "04.shared_heads",
    points=1,
    cases=[(9, 3), (32, 8), (4, 4), (6, 1)],
    hints=[
        "With 9 query heads and 3 key-value heads, heads 0, 1 and 2 share number 0.",
        "Head h belongs to h // (query_heads // key_value_heads).",
    ],
)
def shared_heads(query_heads: int, key_value_heads: int) -> list[int]:
    """Neighbouring query heads share a key-value head."""
    group = query_heads // key_value_heads
    return [head // group for head in range(query_heads)]


shared_heads.mistake(
    "the famous one: `repeat` for `repeat_interleave`. Neighbours share a head; "
    "the shapes fit either way, and the text becomes nonsense",
    lambda h, kv: [head % kv for head in range(h)],
)
shared_heads.mistake(
    "the size of a group is query_heads // key_value_heads, not key_value_heads",
    lambda h, kv: [head // kv for head in range(h)],
)


@exercise(
    "04.inner_width",
    points=1,
    cases=[(4096, 256), (576, 256), (5120, 256), (100, 7)],
    hints=[
        "Two thirds of 4 x width, cut to an integer, and then up to the next multiple.",
        "Rounding n up to a multiple of m: (n + m - 1) // m * m.",
    ],
)
def inner_width(width: int, multiple_of: int) -> int:
    """Two thirds of 4 x width, rounded up to a multiple."""
    inner = 2 * (4 * width) // 3
    return (inner + multiple_of - 1) // multiple_of * multiple_of


inner_width.mistake(
    "that is the original's width; SwiGLU takes two thirds of it", lambda w, m: 4 * w
)
inner_width.mistake("and now up to the next multiple of `multiple_of`", lambda w, m: 8 * w // 3)
inner_width.mistake(
    "rounded down; LLaMA rounds up, so that nothing is lost", lambda w, m: 8 * w // 3 // m * m
)
inner_width.mistake(
    "LLaMA rounds up, not to the nearest multiple", lambda w, m: round(8 * w // 3 / m) * m
)
inner_width.mistake(
    "nearly: a width that is a multiple already stays as it is",
    lambda w, m: (8 * w // 3 // m + 1) * m,
)


@exercise(
    "04.metas_rows",
    points=1,
    cases=[(2,), (8,), (64,)],
    hints=[
        "Pair i is rows 2i and 2i + 1 in Meta's order, rows i and i + head_dim / 2 here.",
        "So the first half of the result is 0, 2, 4, ..., the second half 1, 3, 5, ...",
    ],
)
def metas_rows(head_dim: int) -> list[int]:
    """Even rows first, then the odd ones."""
    return [*range(0, head_dim, 2), *range(1, head_dim, 2)]


metas_rows.mistake(
    "that is the way back: from halves to neighbours",
    lambda d: [row for i in range(d // 2) for row in (i, i + d // 2)],
)
metas_rows.mistake("then nothing would change", lambda d: list(range(d)))
metas_rows.mistake(
    "the even rows come first, then the odd ones", lambda d: [*range(1, d, 2), *range(0, d, 2)]
)
