"""The exercises of lesson 09: references, cases, hints and known mistakes."""

import math

from llama_int8.course.exercises import check, exercise, hint, solution

__all__ = ["check", "hint", "solution"]


@exercise(
    "09.standard_moved",
    points=1,
    cases=[(128, 64), (1000, 64), (7, 3), (4096, 128)],
    hints=[
        "q, k, v come in and the output goes out: four times T x D elements.",
        "Scores are stored and loaded for the softmax, weights stored and loaded for the product.",
    ],
)
def standard_moved(length: int, head_dim: int) -> int:
    """Elements that standard attention moves for one head: 4 T D + 4 T^2."""
    return 4 * length * head_dim + 4 * length**2


standard_moved.mistake(
    "the T x T scores go to slow memory, too, and come back", lambda t, d: 4 * t * d
)
standard_moved.mistake(
    "scores *and* weights are stored and loaded", lambda t, d: 4 * t * d + 2 * t**2
)
standard_moved.mistake("each of T x T matrices is stored and loaded", lambda t, d: 4 * t * d + t**2)
standard_moved.mistake("elements were asked for, not bytes", lambda t, d: 8 * t * d + 8 * t**2)


@exercise(
    "09.merge",
    points=2,
    cases=[
        (1.0, 2.0, 3.0, 4.0),
        (5.0, 1.0, -2.0, 3.0),
        (0.0, 1.0, 0.0, 2.5),
        (800.0, 1.0, 801.0, 2.0),
    ],
    hints=[
        "The new maximum is the larger one.",
        "A sum taken under maximum m1 is multiplied by exp(m1 - m) to count under m.",
    ],
)
def merge(m1: float, l1: float, m2: float, l2: float) -> tuple[float, float]:
    """Maximum and sum of exp(score - maximum) of two parts of a row, as of the whole row."""
    import math

    m = max(m1, m2)
    return m, l1 * math.exp(m1 - m) + l2 * math.exp(m2 - m)


merge.mistake("sums under different maxima cannot be added", lambda a, x, b, y: (max(a, b), x + y))
merge.mistake(
    "the smaller maximum's terms shrink: exp(m1 - m), not exp(m - m1)",
    lambda a, x, b, y: (
        max(a, b),
        x * math.exp(min(50.0, max(a, b) - a)) + y * math.exp(min(50.0, max(a, b) - b)),
    ),
)


@merge.mistake(
    "right on paper, but exp(800) overflows: take exp() only of differences from the new maximum"
)
def _without_a_maximum(m1: float, l1: float, m2: float, l2: float) -> tuple[float, float]:
    largest = max(m1, m2)  # NumPy's exp() gives inf beyond 709, and inf / inf is nan
    return merge(m1, l1, m2, l2) if largest < 709 else (largest, math.nan)


@exercise(
    "09.sees",
    points=1,
    cases=[(0, 0, 4, 4), (0, 1, 4, 4), (0, 9, 1, 10), (1, 5, 3, 8), (0, 6, 3, 8), (2, 7, 3, 8)],
    hints=[
        "The last query sees the last key, whatever the lengths.",
        "Query t stands at position t + S - T of the keys.",
    ],
)
def sees(query: int, key: int, queries: int, keys: int) -> bool:
    """Whether a query sees a key under a causal mask that ends at the last key."""
    return key <= query + keys - queries


sees.mistake("that mask begins at the first key; a cache needs the last", lambda t, s, q, k: s <= t)
sees.mistake("a query sees its own key, too", lambda t, s, q, k: s < t + k - q)


@exercise(
    "09.tiles_visited",
    points=2,
    cases=[(8, 2), (9, 2), (64, 64), (100, 16), (5, 1)],
    hints=[
        "Of the tiles in a row of tiles, those beyond the diagonal are skipped.",
        "With n = ceil(T / block) rows of tiles it is 1 + 2 + ... + n.",
    ],
)
def tiles_visited(length: int, block: int) -> int:
    """Tiles of block x block that a causal mask leaves something of, for T queries and T keys."""
    rows = -(-length // block)
    return rows * (rows + 1) // 2


tiles_visited.mistake("tiles above the diagonal are skipped", lambda t, b: math.ceil(t / b) ** 2)
tiles_visited.mistake(
    "tiles on the diagonal are needed in part: they are visited",
    lambda t, b: math.ceil(t / b) * (math.ceil(t / b) - 1) // 2,
)
tiles_visited.mistake(
    "the last block may be shorter, but it is there", lambda t, b: (t // b) * (t // b + 1) // 2
)
tiles_visited.mistake(
    "tiles on the diagonal are visited whole, so it is more than half of the square",
    lambda t, b: math.ceil(t / b) ** 2 / 2,
)


@exercise(
    "09.crossing_length",
    points=2,
    cases=[(106e6, 30, 576), (6.5e9, 32, 4096), (1e9, 16, 2048)],
    hints=[
        "Weights: 2 operations each and token, 2 N T. Attention: 4 x width for each pair and layer.",
        "Under the mask there are about T^2 / 2 pairs: 2 L width T^2. Set both equal.",
    ],
)
def crossing_length(weights: float, layers: int, width: int) -> float:
    """Prompt length at which attention under the mask needs as many operations as the weights."""
    return weights / (layers * width)


crossing_length.mistake(
    "the mask hides half of the pairs", lambda n, layers, w: n / (2 * layers * w)
)
crossing_length.mistake("every layer attends", lambda n, layers, w: n / w)
