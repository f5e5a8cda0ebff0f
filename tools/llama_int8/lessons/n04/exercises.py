"""The exercises of lesson 04: references, cases, hints and known mistakes."""

import math

from llama_int8.course.exercises import Exercise, check, hint, register, solution

__all__ = ["EXERCISES", "check", "hint", "solution"]


def rms_norm(x: list[float], weight: list[float], eps: float) -> list[float]:
    """x over the root of its mean square, times the weights."""
    mean_square = sum(value * value for value in x) / len(x)
    return [w * value / (mean_square + eps) ** 0.5 for w, value in zip(weight, x, strict=True)]


def rotated(x: list[float], angles: list[float]) -> list[float]:
    """Each pair (x[i], x[i + half]) turned by angles[i]."""
    import math

    half = len(angles)
    first = [x[i] * math.cos(a) - x[i + half] * math.sin(a) for i, a in enumerate(angles)]
    second = [x[i + half] * math.cos(a) + x[i] * math.sin(a) for i, a in enumerate(angles)]
    return first + second


def shared_heads(query_heads: int, key_value_heads: int) -> list[int]:
    """Neighbouring query heads share a key-value head."""
    group = query_heads // key_value_heads
    return [head // group for head in range(query_heads)]


def metas_rows(head_dim: int) -> list[int]:
    """Even rows first, then the odd ones."""
    return [*range(0, head_dim, 2), *range(1, head_dim, 2)]


def inner_width(width: int, multiple_of: int) -> int:
    """Two thirds of 4 x width, rounded up to a multiple."""
    inner = 2 * (4 * width) // 3
    return (inner + multiple_of - 1) // multiple_of * multiple_of


def _turned_in_place(x: list[float], angles: list[float]) -> list[float]:
    out, half = list(x), len(angles)
    for i, a in enumerate(angles):
        out[i] = out[i] * math.cos(a) - out[i + half] * math.sin(a)
        out[i + half] = out[i + half] * math.cos(a) + out[i] * math.sin(a)
    return out


def _turned_neighbours(x: list[float], angles: list[float]) -> list[float]:
    out = list(x)
    for i, a in enumerate(angles):
        first, second = x[2 * i], x[2 * i + 1]
        out[2 * i] = first * math.cos(a) - second * math.sin(a)
        out[2 * i + 1] = second * math.cos(a) + first * math.sin(a)
    return out


EXERCISES = register(
    Exercise(
        "04.rms_norm",
        1,
        rms_norm,
        (
            ([3.0, 4.0], [1.0, 1.0], 0.0),
            ([1.0, 2.0, 3.0, 6.0], [1.0, 0.5, 2.0, -1.0], 1e-5),
            ([0.001, -0.002], [1.0, 2.0], 0.1),
        ),
        (
            "First the mean of the squares, then eps under the root with it.",
            "weight[i] * x[i] / (mean_square + eps) ** 0.5",
        ),
        (
            (
                lambda x, w, eps: rms_norm([v - sum(x) / len(x) for v in x], w, eps),
                "that takes the mean off first, which is what LayerNorm does and RMSNorm saves",
            ),
            (
                lambda x, w, eps: [
                    b * v / (sum(u * u for u in x) + eps) ** 0.5 for b, v in zip(w, x, strict=True)
                ],
                "divide the sum of squares by their number: the *mean* square",
            ),
            (
                lambda x, w, eps: rms_norm(x, [1.0] * len(x), eps),
                "the learned weights are missing",
            ),
            (
                lambda x, w, eps: [
                    b * v / ((sum(u * u for u in x) / len(x)) ** 0.5 + eps)
                    for b, v in zip(w, x, strict=True)
                ],
                "nearly: eps stands under the root, beside the mean square",
            ),
            (
                lambda x, w, eps: [
                    b * v / (sum(u * u for u in x) / len(x) + eps)
                    for b, v in zip(w, x, strict=True)
                ],
                "the root is missing: x is divided by the *root* of its mean square",
            ),
        ),
    ),
    Exercise(
        "04.rotate",
        2,
        rotated,
        (
            ([1.0, 0.0, 0.0, 1.0], [math.pi / 2, 0.1]),
            ([0.3, -1.2, 0.7, 2.0, 0.1, -0.4], [0.5, 1.5, -2.0]),
            ([2.0, 1.0], [0.25]),
        ),
        (
            "With half = len(angles), pair i is x[i] and x[i + half].",
            "new x[i] = x[i] cos a - x[i + half] sin a; new x[i + half] = x[i + half] cos a + "
            "x[i] sin a, both from the old values.",
        ),
        (
            (
                _turned_neighbours,
                "those are neighbouring pairs, x[2i] and x[2i + 1]: Meta's order. Hugging "
                "Face's weights are stored for halves, x[i] and x[i + half]",
            ),
            (
                lambda x, angles: rotated(x, [-a for a in angles]),
                "turned the other way: the sign of the sine",
            ),
            (
                _turned_in_place,
                "x[i + half] needs the old x[i], which is overwritten: both from the old values",
            ),
            (
                lambda x, angles: rotated(x, [math.radians(a) for a in angles]),
                "the angles are in radians already",
            ),
        ),
    ),
    Exercise(
        "04.shared_heads",
        1,
        shared_heads,
        ((9, 3), (32, 8), (4, 4), (6, 1)),
        (
            "With 9 query heads and 3 key-value heads, heads 0, 1 and 2 share number 0.",
            "Head h belongs to h // (query_heads // key_value_heads).",
        ),
        (
            (
                lambda h, kv: [head % kv for head in range(h)],
                "the famous one: `repeat` for `repeat_interleave`. Neighbours share a head; "
                "the shapes fit either way, and the text becomes nonsense",
            ),
            (
                lambda h, kv: [head // kv for head in range(h)],
                "the size of a group is query_heads // key_value_heads, not key_value_heads",
            ),
        ),
    ),
    Exercise(
        "04.inner_width",
        1,
        inner_width,
        ((4096, 256), (576, 256), (5120, 256), (100, 7)),
        (
            "Two thirds of 4 x width, cut to an integer, and then up to the next multiple.",
            "Rounding n up to a multiple of m: (n + m - 1) // m * m.",
        ),
        (
            (lambda w, m: 4 * w, "that is the original's width; SwiGLU takes two thirds of it"),
            (lambda w, m: 8 * w // 3, "and now up to the next multiple of `multiple_of`"),
            (
                lambda w, m: 8 * w // 3 // m * m,
                "rounded down; LLaMA rounds up, so that nothing is lost",
            ),
            (
                lambda w, m: round(8 * w // 3 / m) * m,
                "LLaMA rounds up, not to the nearest multiple",
            ),
            (
                lambda w, m: (8 * w // 3 // m + 1) * m,
                "nearly: a width that is a multiple already stays as it is",
            ),
        ),
    ),
    Exercise(
        "04.metas_rows",
        1,
        metas_rows,
        ((2,), (8,), (64,)),
        (
            "Pair i is rows 2i and 2i + 1 in Meta's order, rows i and i + head_dim / 2 here.",
            "So the first half of the result is 0, 2, 4, ..., the second half 1, 3, 5, ...",
        ),
        (
            (
                lambda d: [row for i in range(d // 2) for row in (i, i + d // 2)],
                "that is the way back: from halves to neighbours",
            ),
            (lambda d: list(range(d)), "then nothing would change"),
            (
                lambda d: [*range(1, d, 2), *range(0, d, 2)],
                "the even rows come first, then the odd ones",
            ),
        ),
    ),
)
