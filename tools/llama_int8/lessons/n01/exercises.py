"""The exercises of lesson 01: references, cases, hints and known mistakes."""

import math

from llama_int8.course.exercises import check, exercise, hint, solution

__all__ = ["check", "hint", "solution"]


@exercise(
    "01.attention_row",
    points=1,
    cases=[([1.0, 2.0, 3.0], 4), ([0.0, 0.0], 64), ([-5.0, 30.0, 28.0, 2.0], 9), ([7.0], 2)],
    hints=[
        "First divide every dot product by the square root of d_k.",
        (
            "Then weight i is exp(score i) over the sum of all exp(score). Taking the largest "
            "score off first changes nothing and keeps exp() small."
        ),
    ],
)
def attention_row(dots: list[float], d_k: int) -> list[float]:
    """softmax(dots / sqrt(d_k))."""
    import math

    scores = [dot / math.sqrt(d_k) for dot in dots]
    largest = max(scores)  # taken off, so that no exponential overflows
    powers = [math.exp(score - largest) for score in scores]
    return [power / sum(powers) for power in powers]


attention_row.mistake(
    "the scaling by the square root of d_k is missing", lambda d, n: attention_row(d, 1)
)
attention_row.mistake(
    "divide by the square root of d_k, not by d_k", lambda d, n: attention_row(d, n * n)
)
attention_row.mistake(
    "those are the scaled scores; the softmax is missing",
    lambda d, n: [x / math.sqrt(n) for x in d],
)
attention_row.mistake(
    "positive, but their sum is not 1: divide by it",
    lambda d, n: [math.exp(x / math.sqrt(n)) for x in d],
)
attention_row.mistake(
    "divide by the square root of d_k; this multiplies by it", lambda d, n: attention_row(d, 1 / n)
)
attention_row.mistake(
    "scale the scores, before the softmax: the weights must still sum to 1",
    lambda d, n: [w / math.sqrt(n) for w in attention_row(d, 1)],
)


@exercise(
    "01.additive_mask",
    points=1,
    cases=[(1,), (2,), (5,)],
    hints=[
        "Row t is a query, column s a key. It may look where s <= t.",
        (
            "What is added must leave an allowed score as it is, and make exp() of a forbidden "
            "one 0: that is 0.0 and -math.inf."
        ),
    ],
)
def additive_mask(length: int) -> list[list[float]]:
    """0 at and left of the diagonal, minus infinity right of it."""
    forbidden = float("-inf")
    return [[0.0 if s <= t else forbidden for s in range(length)] for t in range(length)]


additive_mask.mistake(
    "zeros and ones are a multiplicative mask; added to the scores, they forbid nothing",
    lambda n: [[1.0 if s <= t else 0.0 for s in range(n)] for t in range(n)],
)
additive_mask.mistake(
    "that is turned round: each token would see its future and not its past",
    lambda n: [[0.0 if s >= t else -math.inf for s in range(n)] for t in range(n)],
)
additive_mask.mistake(
    "a token may look at itself; here the first one could look nowhere",
    lambda n: [[0.0 if s < t else -math.inf for s in range(n)] for t in range(n)],
)
additive_mask.mistake(
    "off by one: each token sees the next one, which it should predict",
    lambda n: [[0.0 if s <= t + 1 else -math.inf for s in range(n)] for t in range(n)],
)
additive_mask.mistake(
    "-1e9 overflows FP16; -math.inf does in every format what is meant",
    lambda n: [[0.0 if s <= t else -1e9 for s in range(n)] for t in range(n)],
)
additive_mask.mistake(
    "0 times infinity is nan: choose between 0.0 and -math.inf, do not multiply",
    lambda n: [[math.nan if s <= t else -math.inf for s in range(n)] for t in range(n)],
)


@exercise(
    "01.find_the_bug",
    points=2,
    cases=[([[0.0, 1.0], [2.0, -1.0]],), ([[1.0, 9.0, 2.0], [0.5, 0.1, 4.0], [3.0, 2.0, 1.0]],)],
    hints=[
        "What do the rows of the result sum to? What should they?",
        (
            "Forbid before the softmax: put minus infinity into the upper triangle of the "
            "scores, then take the softmax."
        ),
    ],
)
def causal_weights(scores: list[list[float]]) -> list[list[float]]:
    """Row t is the softmax of its first t + 1 scores, then zeros."""
    import torch

    masked = torch.tensor(scores, dtype=torch.float64)
    future = torch.ones_like(masked, dtype=torch.bool).triu(1)
    return masked.masked_fill(future, float("-inf")).softmax(-1).tolist()


causal_weights.mistake(
    "still the bug: the softmax has divided by a sum that holds the future",
    lambda scores: [
        [w if s <= t else 0.0 for s, w in enumerate(attention_row(row, 1))]
        for t, row in enumerate(scores)
    ],
)
causal_weights.mistake(
    "a score of 0 forbids nothing: exp(0) is 1. Use minus infinity",
    lambda scores: [
        attention_row([x if s <= t else 0.0 for s, x in enumerate(row)], 1)
        for t, row in enumerate(scores)
    ],
)


@causal_weights.mistake(
    "each row must sum to 1: the softmax runs along a row, dim=-1, not down a column"
)
def _down_the_columns(scores: list[list[float]]) -> list[list[float]]:
    columns = []
    for s, column in enumerate(zip(*scores, strict=True)):
        columns.append(attention_row([x if s <= t else -math.inf for t, x in enumerate(column)], 1))
    return [list(row) for row in zip(*columns, strict=True)]


causal_weights.mistake(
    "that is turned round: each token would see its future and not its past",
    lambda scores: [
        attention_row([x if s >= t else -math.inf for s, x in enumerate(row)], 1)
        for t, row in enumerate(scores)
    ],
)


@exercise(
    "01.padding_mask",
    points=1,
    cases=[([7, 4], 7), ([1, 3, 2], 3), ([2], 5)],
    hints=["Place p of a row is text if p is smaller than the row's length."],
)
def padding_rows(lengths: list[int], longest: int) -> list[list[bool]]:
    """True for the first `length` places of each row."""
    return [[place < length for place in range(longest)] for length in lengths]


padding_rows.mistake(
    "turned round: True is for text here (the masks of PyTorch's modules are the other way)",
    lambda lengths, n: [[p >= length for p in range(n)] for length in lengths],
)
padding_rows.mistake(
    "off by one: places are counted from 0, so the last text place is length - 1",
    lambda lengths, n: [[p <= length for p in range(n)] for length in lengths],
)
padding_rows.mistake(
    "that is padding on the left; here it stands after the text",
    lambda lengths, n: [[p >= n - length for p in range(n)] for length in lengths],
)
