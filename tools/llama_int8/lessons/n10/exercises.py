"""The exercises of lesson 10: references, cases, hints and known mistakes."""

from llama_int8.course.exercises import check, exercise, hint, solution

__all__ = ["check", "hint", "solution"]


@exercise(
    "10.explained_by_bytes",
    points=1,
    cases=[(6.0, 2.0, 1.0), (1.2, 2.0, 1.0), (3.0, 4.0, 1.0), (2.5, 538.0, 192.0)],
    hints=[
        "If reading bytes were all the work, half the bytes would take half the time.",
        "allowed = bytes_before / bytes_after; what is left multiplies it to the ratio.",
    ],
)
def explained_by_bytes(
    ratio: float, bytes_before: float, bytes_after: float
) -> tuple[float, float]:
    """A speed-up as (factor that fewer bytes can give, factor that is left)."""
    allowed = bytes_before / bytes_after
    return allowed, ratio / allowed


explained_by_bytes.mistake(
    "that is a difference; factors multiply", lambda r, b, a: (b / a, r - b / a)
)
explained_by_bytes.mistake(
    "that is bytes after over bytes before", lambda r, b, a: (a / b, r * b / a)
)
explained_by_bytes.mistake(
    "the second factor is what is left, not the whole ratio", lambda r, b, a: (b / a, r)
)


@exercise(
    "10.group_codes",
    points=2,
    cases=[
        ([1.0, -2.0, 127.0, 4.0], 2),
        ([0.0, 0.0, 3.0, -1.5], 2),
        ([5.0, 1.0, -0.5], 2),
        ([0.5, -0.25, 60.0, 1.0, 2.0, -4.0], 3),
    ],
    hints=[
        "Go through the values in steps of `size`; a last group may be shorter.",
        "scale = max(|v|) / 127, code = round(v / scale); a group of zeros has codes 0.",
    ],
)
def group_codes(values: list[float], size: int) -> list[int]:
    """Codes of all values, with a scale for each group of `size`; zeros have codes 0."""
    codes = []
    for first in range(0, len(values), size):
        group = values[first : first + size]
        scale = max(abs(v) for v in group) / 127
        codes += [round(v / scale) if scale else 0 for v in group]
    return codes


@group_codes.mistake("all groups have one scale here; each needs its own")
def _one_scale(values: list[float], size: int) -> list[int]:
    scale = max(abs(v) for v in values) / 127
    return [round(v / scale) for v in values]


@group_codes.mistake("codes are rounded to the nearest, not cut off")
def _cut_off(values: list[float], size: int) -> list[int]:
    groups = [values[first : first + size] for first in range(0, len(values), size)]
    tops = [max(abs(v) for v in group) / 127 or 1.0 for group in groups]
    return [int(v / top) for group, top in zip(groups, tops, strict=True) for v in group]


@group_codes.mistake("a group of zeros has scale 0, and 0 / 0 is nan; its codes are 0")
def _nan_for_zeros(values: list[float], size: int) -> list[float]:
    codes = []
    for first in range(0, len(values), size):
        group = values[first : first + size]
        codes += group_codes(group, size) if any(group) else [float("nan")] * len(group)
    return codes


@exercise(
    "10.unsigned_product",
    points=1,
    cases=[([1, -2, 3], [4, 5, -6]), ([-127, 127], [127, 127]), ([5, 7], [3, 1])],
    hints=["Each product has 128 times its code too much.", "Subtract 128 * sum(codes)."],
)
def unsigned_product(weights: list[int], codes: list[int]) -> int:
    """Sum of products from weights that were stored with 128 added, as bytes without a sign."""
    total = sum((w + 128) * c for w, c in zip(weights, codes, strict=True))
    return total - 128 * sum(codes)


def _stored_products(weights: list[int], codes: list[int]) -> int:
    return sum((w + 128) * c for w, c in zip(weights, codes, strict=True))


unsigned_product.mistake("128 times the sum of the codes must go again", _stored_products)
unsigned_product.mistake(
    "128 was added once for each product, but times its code",
    lambda w, c: _stored_products(w, c) - 128 * len(c),
)
unsigned_product.mistake(
    "it is the sum of the codes that counts, not that of the weights",
    lambda w, c: _stored_products(w, c) - 128 * sum(w),
)
unsigned_product.mistake(
    "128 was added to every weight: take off 128 for each product, times its code",
    lambda w, c: _stored_products(w, c) - 128,
)


@exercise(
    "10.pairs_fit",
    points=1,
    cases=[(255, 127), (127, 127), (128, 128), (127, 129), (128, 127), (200, 100)],
    hints=[
        "The largest number in 16 bits with a sign is 32,767.",
        "Two products, each at most largest_weight x largest_code, are added.",
    ],
)
def pairs_fit(largest_weight: int, largest_code: int) -> bool:
    """Whether the sum of two such products fits 16 bits with a sign."""
    return 2 * largest_weight * largest_code <= 2**15 - 1


pairs_fit.mistake(
    "two products are added, not one, and one of the 16 bits is the sign",
    lambda w, c: w * c <= 2**15 - 1,
)
pairs_fit.mistake("32,768 is one too many", lambda w, c: 2 * w * c <= 2**15)


@exercise(
    "10.break_even_batch",
    points=2,
    cases=[(40e9, 400e9, 1.0), (40e9, 800e9, 2.0), (25e9, 1e11, 4.0), (320e9, 65e12, 2.0)],
    hints=[
        "A step reads every weight once, whatever the batch: bytes_per_weight / bandwidth each.",
        "It does 2 operations a weight and sequence: 2 x batch / throughput. Set them equal.",
    ],
)
def break_even_batch(bandwidth: float, throughput: float, bytes_per_weight: float) -> float:
    """Batch from which a decode step waits for operations and no longer for bytes."""
    return throughput * bytes_per_weight / (2 * bandwidth)


break_even_batch.mistake(
    "a multiplication and an addition are two operations", lambda b, t, s: t * s / b
)
break_even_batch.mistake(
    "more bytes a weight leave time for more operations", lambda b, t, s: t / (2 * b * s)
)
break_even_batch.mistake("that is its inverse", lambda b, t, s: 2 * b / (t * s))
