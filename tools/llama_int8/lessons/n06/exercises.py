"""The exercises of lesson 06: references, cases, hints and known mistakes."""

import math
from collections.abc import Callable, Sequence

from llama_int8.course.exercises import check, exercise, hint, solution

__all__ = ["check", "hint", "solution"]


@exercise(
    "06.spacing",
    points=1,
    cases=[
        (1.0, 7),
        (100.0, 7),
        (-3.0, 10),
        (0.15625, 7),
        (60000.0, 10),
        (4096.0, 10),
        (1.9990234375, 10),
        (16777216.0, 23),
    ],
    hints=[
        (
            "Between 1 and 2 the neighbours are 2**-mantissa_bits apart; between 2 and 4 twice as "
            "far."
        ),
        (
            "With 2**e the largest power of two not above |x|: 2**(e - mantissa_bits). math.frexp "
            "gives e + 1."
        ),
    ],
    rtol=1e-9,
)
def spacing(x: float, mantissa_bits: int) -> float:
    """2 to the power (floor(log2 |x|) - mantissa_bits)."""
    import math

    _, exponent = math.frexp(abs(x))  # |x| = f * 2**exponent with f from 0.5 to 1
    return 2.0 ** (exponent - 1 - mantissa_bits)


spacing.mistake(
    "that is the spacing between 1 and 2; it doubles with every power of two", lambda x, m: 2.0**-m
)
spacing.mistake(
    "the spacing does not grow with x, but in jumps: round log2 |x| down first",
    lambda x, m: abs(x) * 2.0**-m,
)
spacing.mistake(
    "that is the largest rounding error; the next float is twice as far away",
    lambda x, m: spacing(x, m + 1),
)
spacing.mistake(
    "twice too far: math.frexp gives a fraction from 0.5 to 1, so take 1 off its exponent",
    lambda x, m: spacing(x, m - 1),
)
spacing.mistake(
    "the spacing changes at a power of two, not halfway to it: math.floor, not round",
    lambda x, m: 2.0 ** (round(math.log2(abs(x))) - m),
)


@exercise(
    "06.absmax_codes",
    points=1,
    cases=[
        ([0.5, -1.0, 0.25, 0.9], 8),
        ([3.0, -2.0, 1.25, 0.3, -0.7], 4),
        ([-5.0, -1.0, 2.0], 8),
        ([1.0, 0.5, -0.5, 0.75], 2),
        ([-0.6], 8),
        ([0.0, 0.0, 0.0], 8),
    ],
    hints=[
        "The largest magnitude gets the largest code: for 8 bits that is 127, or -127.",
        "round(v / absmax * top) with top = 2**(bits - 1) - 1. If all values are 0, so is absmax.",
    ],
)
def absmax_codes(values: list[float], bits: int) -> list[int]:
    """round(v / absmax * top): the largest magnitude gets the code top or -top."""
    top = 2 ** (bits - 1) - 1
    absmax = max(abs(v) for v in values) or 1.0  # zeros alone: any scale gives zeros
    return [round(v / absmax * top) for v in values]


def _absmax(values: Sequence[float]) -> float:
    return max(abs(v) for v in values)


def _codes(
    values: Sequence[float], absmax: float, top: int, to_integer: Callable[[float], int] = round
) -> list[int]:
    return [to_integer(v / (absmax or 1.0) * top) for v in values]


absmax_codes.mistake(
    "the largest code is one less, 127 for 8 bits: +128 does not fit an int8",
    lambda v, b: _codes(v, _absmax(v), 2 ** (b - 1)),
)
absmax_codes.mistake(
    "floor makes every code too small, by half a step on average: round",
    lambda v, b: _codes(v, _absmax(v), 2 ** (b - 1) - 1, math.floor),
)
absmax_codes.mistake(
    "int() cuts towards zero; the nearest code comes from round()",
    lambda v, b: _codes(v, _absmax(v), 2 ** (b - 1) - 1, int),
)
absmax_codes.mistake(
    "the largest *magnitude*: a negative value may be the largest",
    lambda v, b: _codes(v, max(v), 2 ** (b - 1) - 1),
)
absmax_codes.mistake(
    "`bits` decides the largest code: 127 goes only with 8 bits",
    lambda v, b: _codes(v, _absmax(v), 127),
)


@exercise(
    "06.unbiased_codes",
    points=1,
    cases=[
        ([0.3, 0.8, -0.3, -0.8], 0.5),
        ([1.0, -1.0, 0.1], 0.03),
        ([0.5, 1.5, 2.5, -0.5, -1.5], 1.0),
        ([0.0], 0.25),
        ([7.9, -7.9, 4.2], 2.0),
    ],
    hints=[
        "By how much is floor(v / scale) too small on average, if v is anywhere in a step?",
        "Take the nearest number of steps: Python's round().",
    ],
)
def unbiased_codes(values: list[float], scale: float) -> list[int]:
    """The nearest number of steps, halves to the even one."""
    return [round(v / scale) for v in values]


unbiased_codes.mistake(
    "the famous one: floor always goes down, so all values come out too small, by half "
    "a step on average",
    lambda v, s: [math.floor(x / s) for x in v],
)
unbiased_codes.mistake(
    "int() always goes towards zero: no bias to one side, but every magnitude shrinks",
    lambda v, s: [int(x / s) for x in v],
)
unbiased_codes.mistake(
    "nearly: every half goes up here, still a small bias; round() takes the even one",
    lambda v, s: [math.floor(x / s + 0.5) for x in v],
)
unbiased_codes.mistake(
    "ceil is floor's bias the other way: half a step too large on average",
    lambda v, s: [math.ceil(x / s) for x in v],
)
unbiased_codes.mistake(
    "nearly: halves go away from 0 here, which makes magnitudes grow; round() takes the even one",
    lambda v, s: [int(math.copysign(math.floor(abs(x) / s + 0.5), x)) for x in v],
)


@exercise(
    "06.zero_point",
    points=2,
    cases=[
        (-1.0, 3.0, 8),
        (0.5, 2.0, 8),
        (-3.0, -0.5, 4),
        (0.0, 6.0, 8),
        (-0.7, 0.2, 4),
        (-2.0, 1.0, 2),
    ],
    hints=[
        (
            "First min(low, 0) and max(high, 0): 0 must lie in the range. Then 2**bits codes have "
            "2**bits - 1 steps between them."
        ),
        (
            "`low` gets the smallest code, -2**(bits - 1). From there to 0 it is round(-low / scale) "
            "steps."
        ),
    ],
)
def zero_point(low: float, high: float, bits: int) -> tuple[float, int]:
    """The size of a step, and the code that stands for 0."""
    low, high = min(low, 0.0), max(high, 0.0)
    scale = (high - low) / (2**bits - 1)
    return scale, -(2 ** (bits - 1)) - round(low / scale)


def _zero_point(low: float, high: float, steps: int, lowest: int, sign: int = 1) -> tuple:
    scale = (high - low) / steps
    return scale, lowest - sign * round(low / scale)


zero_point.mistake(
    "widen the range until it holds 0: else 0 has no code of its own",
    lambda low, high, b: _zero_point(low, high, 2**b - 1, -(2 ** (b - 1))),
)
zero_point.mistake(
    "right for codes from 0 on; signed ones begin at -2**(bits - 1)",
    lambda low, high, b: _zero_point(min(low, 0), max(high, 0), 2**b - 1, 0),
)
zero_point.mistake(
    "2**bits codes have one step less between them, as fence posts have gaps",
    lambda low, high, b: _zero_point(min(low, 0), max(high, 0), 2**b, -(2 ** (b - 1))),
)
zero_point.mistake(
    "the sign: low is not above 0, so the code of 0 lies above the smallest code",
    lambda low, high, b: _zero_point(min(low, 0), max(high, 0), 2**b - 1, -(2 ** (b - 1)), -1),
)
zero_point.mistake(
    "the scale comes first, then the zero point",
    lambda low, high, b: zero_point(low, high, b)[::-1],
)


@exercise(
    "06.dequantize_rows",
    points=1,
    cases=[  # no more columns than rows, so that SCB[j] gets its message and no IndexError
        ([[127, -64], [12, -127]], [0.5, 2.0]),
        ([[127, 3], [-127, 0], [50, 127]], [1.0, 0.25, 4.0]),
        ([[127], [-127], [127]], [0.1, 0.2, 0.3]),
        ([[0, 0], [127, 1]], [0.0, 12.7]),
    ],
    hints=[
        "SCB[i] is the absmax of row i: code 127 in row i stands for SCB[i].",
        "codes[i][j] * SCB[i] / 127; with tensors CB * SCB.unsqueeze(1) / 127.",
    ],
)
def dequantize_rows(codes: list[list[int]], SCB: list[float]) -> list[list[float]]:
    """codes[i][j] * SCB[i] / 127: a scale for each row."""
    return [[code * absmax / 127 for code in row] for row, absmax in zip(codes, SCB, strict=True)]


dequantize_rows.mistake(
    "the famous one: `CB * SCB / 127` runs the scales along the columns. Only a square "
    "matrix lets it pass; a scale belongs to a row, SCB.unsqueeze(1)",
    lambda codes, SCB: [[code * SCB[j] / 127 for j, code in enumerate(row)] for row in codes],
)
dequantize_rows.mistake(
    "SCB holds the absmax of a row, not the size of a step: divide by 127",
    lambda codes, SCB: [
        [code * absmax for code in row] for row, absmax in zip(codes, SCB, strict=True)
    ],
)
dequantize_rows.mistake(
    "nearly: the absmax has code 127, so a step is a 127th of it",
    lambda codes, SCB: [
        [code * absmax / 128 for code in row] for row, absmax in zip(codes, SCB, strict=True)
    ],
)


@exercise(
    "06.restored",
    points=1,
    cases=[
        ([-128, -28, 0, 127], 0.02, -28),
        ([-8, 0, 7], 0.5, 3),
        ([5, -5], 0.1, 0),
        ([0], 2.0, -1),
    ],
    hints=[
        "Which value does the code `zero_point` stand for? And one code above it?",
        "Take the zero point off first, then multiply by the size of a step.",
    ],
)
def restored(codes: list[int], scale: float, zero_point: int) -> list[float]:
    """(code - zero_point) * scale."""
    return [(code - zero_point) * scale for code in codes]


restored.mistake(
    "the famous one: those are the codes themselves. A histogram of them is none of "
    "dequantized values, whatever its title says",
    lambda codes, scale, zero: list(codes),
)
restored.mistake(
    "the zero point is missing: its code must give 0",
    lambda codes, scale, zero: [code * scale for code in codes],
)
restored.mistake(
    "the zero point is a code: take it off before multiplying by the scale",
    lambda codes, scale, zero: [code * scale - zero for code in codes],
)
restored.mistake(
    "the sign: the code `zero_point` must give 0, so subtract it",
    lambda codes, scale, zero: [(code + zero) * scale for code in codes],
)


@exercise(
    "06.integer_dot",
    points=2,
    cases=[
        ([1, 2, 3], [4, -5, 6], 1, 2),
        ([-128, 127, 5, 0], [127, -128, -7, 9], -28, 3),
        ([10], [20], 10, 0),
        ([3, -3], [8, 1], 0, 0),
        ([], [], 5, 7),
        ([100, 90, -20], [7, 7, 7], 0, -4),
    ],
    hints=[
        "Multiply (x - p)(y - q) out: four terms. Then sum each over the K entries.",
        "sum xy - q sum x - p sum y + K p q: only the first needs products of codes.",
    ],
)
def integer_dot(x: list[int], y: list[int], p: int, q: int) -> int:
    """sum (x - p)(y - q) = sum xy - q sum x - p sum y + K p q."""
    products = sum(a * b for a, b in zip(x, y, strict=True))
    return products - q * sum(x) - p * sum(y) + len(x) * p * q


integer_dot.mistake(
    "that is the sum of the products of the codes; the zero points are still in it",
    lambda x, y, p, q: integer_dot(x, y, 0, 0),
)
integer_dot.mistake(
    "the last term is missing: q sum x and p sum y both take K p q off, so add it once",
    lambda x, y, p, q: integer_dot(x, y, p, q) - len(x) * p * q,
)
integer_dot.mistake(
    "p q stands in each of the K terms: K p q",
    lambda x, y, p, q: integer_dot(x, y, p, q) - (len(x) - 1) * p * q,
)
integer_dot.mistake(
    "crossed: p is the zero point of x, so it multiplies the sum of y",
    lambda x, y, p, q: integer_dot(x, y, q, p),
)


@exercise(
    "06.layer_bytes",
    points=1,
    cases=[
        (4096, 4096, 8, None, 4),
        (4096, 11008, 4, 128, 2),
        (576, 192, 3, 64, 2),
        (2, 64, 4, 32, 2),
        (3, 5, 8, None, 4),
        (1, 8, 4, 8, 2),
    ],
    hints=[
        "The codes take rows * columns * bits / 8 bytes. How many scales are there?",
        "None: one scale a row. Else columns / group_size scales in each row.",
    ],
    rtol=1e-9,
)
def layer_bytes(
    rows: int, columns: int, bits: int, group_size: int | None, scale_bytes: int
) -> float:
    """The codes, and a scale for each group, or for each row without groups."""
    scales = rows * columns // (group_size or columns)
    return rows * columns * bits / 8 + scales * scale_bytes


layer_bytes.mistake(
    "those are the codes; without their scales they cannot be turned back",
    lambda r, c, b, g, s: r * c * b / 8,
)
layer_bytes.mistake(
    "each group has a scale of its own, not only each row",
    lambda r, c, b, g, s: r * c * b / 8 + r * s,
)
layer_bytes.mistake(
    "that is one scale for the whole matrix; here each row or group has its own",
    lambda r, c, b, g, s: r * c * b / 8 + s,
)
layer_bytes.mistake(
    "the codes are counted in bits: eight of them are a byte",
    lambda r, c, b, g, s: layer_bytes(r, c, 8 * b, g, s),
)


@exercise(
    "06.largest_inner",
    points=1,
    cases=[(8,), (4,), (2,), (16,)],
    hints=[
        "The largest product of two codes is that of the two most negative ones.",
        "int32 ends at 2**31 - 1. How often does (2**(bits - 1))**2 go into it?",
    ],
    rtol=0.0,
)
def largest_inner(bits: int) -> int:
    """int32 ends at 2^31 - 1; one product is at most the square of 2^(bits-1)."""
    return (2**31 - 1) // (2 ** (bits - 1)) ** 2


largest_inner.mistake(
    "one too many: the sum would be 2**31, and int32 ends at 2**31 - 1",
    lambda b: 2**31 // 4 ** (b - 1),
)
largest_inner.mistake(
    "that is for codes down to -127; -128 is a code as well, and (-128)**2 is larger",
    lambda b: (2**31 - 1) // (2 ** (b - 1) - 1) ** 2,
)
largest_inner.mistake(
    "that is uint32; int32 spends a bit on the sign", lambda b: (2**32 - 1) // 4 ** (b - 1)
)
largest_inner.mistake(
    "a signed code of 8 bits reaches 128 in magnitude, not 256", lambda b: (2**31 - 1) // 4**b
)
