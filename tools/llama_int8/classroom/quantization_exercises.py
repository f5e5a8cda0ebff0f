"""The exercises of notebooks 04 (quantization) and 05 (outliers and LLM.int8())."""

import math
from collections.abc import Callable, Sequence

from llama_int8.classroom.exercises import Exercise


def spacing(x: float, mantissa_bits: int) -> float:
    """2 to the power (floor(log2 |x|) - mantissa_bits)."""
    import math

    _, exponent = math.frexp(abs(x))  # |x| = f * 2**exponent with f from 0.5 to 1
    return 2.0 ** (exponent - 1 - mantissa_bits)


def absmax_codes(values: list[float], bits: int) -> list[int]:
    """round(v / absmax * top): the largest magnitude gets the code top or -top."""
    top = 2 ** (bits - 1) - 1
    absmax = max(abs(v) for v in values) or 1.0  # zeros alone: any scale gives zeros
    return [round(v / absmax * top) for v in values]


def unbiased_codes(values: list[float], scale: float) -> list[int]:
    """The nearest number of steps, halves to the even one."""
    return [round(v / scale) for v in values]


def zero_point(low: float, high: float, bits: int) -> tuple[float, int]:
    """The size of a step, and the code that stands for 0."""
    low, high = min(low, 0.0), max(high, 0.0)
    scale = (high - low) / (2**bits - 1)
    return scale, -(2 ** (bits - 1)) - round(low / scale)


def dequantize_rows(codes: list[list[int]], SCB: list[float]) -> list[list[float]]:
    """codes[i][j] * SCB[i] / 127: a scale for each row."""
    return [[code * absmax / 127 for code in row] for row, absmax in zip(codes, SCB, strict=True)]


def restored(codes: list[int], scale: float, zero_point: int) -> list[float]:
    """(code - zero_point) * scale."""
    return [(code - zero_point) * scale for code in codes]


def integer_dot(x: list[int], y: list[int], p: int, q: int) -> int:
    """sum (x - p)(y - q) = sum xy - q sum x - p sum y + K p q."""
    products = sum(a * b for a, b in zip(x, y, strict=True))
    return products - q * sum(x) - p * sum(y) + len(x) * p * q


def layer_bytes(
    rows: int, columns: int, bits: int, group_size: int | None, scale_bytes: int
) -> float:
    """The codes, and a scale for each group, or for each row without groups."""
    scales = rows * columns // (group_size or columns)
    return rows * columns * bits / 8 + scales * scale_bytes


def largest_inner(bits: int) -> int:
    """int32 ends at 2^31 - 1; one product is at most the square of 2^(bits-1)."""
    return (2**31 - 1) // (2 ** (bits - 1)) ** 2


def outlier_columns(x: list[list[float]], threshold: float) -> list[int]:
    """Columns with at least one magnitude of at least `threshold`."""
    columns = zip(*x, strict=True)
    return [j for j, column in enumerate(columns) if max(map(abs, column)) >= threshold]


def row_codes(row: list[float], threshold: float) -> list[int]:
    """round(v * 127 / absmax) with outliers set to 0 before the absmax is taken."""
    inliers = [v if abs(v) < threshold else 0.0 for v in row]
    absmax = max(abs(v) for v in inliers) or 1.0  # nothing left: any scale gives zeros
    return [round(v * 127 / absmax) for v in inliers]


def kept_share(x: list[list[float]], threshold: float) -> float:
    """Outlier columns over all columns."""
    outlier = [max(map(abs, column)) >= threshold for column in zip(*x, strict=True)]
    return sum(outlier) / len(outlier)


def decomposed_row(x: list[float], weights: list[list[float]], threshold: float) -> list[float]:
    """An int8 product of the inliers, plus the outliers times the restored weights."""
    inliers = [v if abs(v) < threshold else 0.0 for v in x]
    SCA = max(abs(v) for v in inliers) or 1.0
    codes = [round(v * 127 / SCA) for v in inliers]
    y = []
    for row in weights:
        SCB = max(abs(w) for w in row) or 1.0
        CB = [round(w * 127 / SCB) for w in row]
        exact = sum(a * b for a, b in zip(codes, CB, strict=True))  # an integer
        kept = sum(v * b for v, b in zip(x, CB, strict=True) if abs(v) >= threshold)
        y.append(exact * SCA * SCB / 127**2 + kept * SCB / 127)
    return y


def criterion(large: list[list[list[bool]]], layers: float, positions: float) -> list[int]:
    """Channels large in enough layers, and at enough of all (layer, position) pairs."""
    chosen = []
    for channel in range(len(large[0][0])):
        found = [[position[channel] for position in layer] for layer in large]
        by_layer = sum(map(any, found)) / len(found)
        by_position = sum(map(sum, found)) / sum(map(len, found))
        if by_layer >= layers and by_position >= positions:
            chosen.append(channel)
    return chosen


def fair_difference(
    int8_on_own: list[float], int8_on_text: list[float], bf16_on_text: list[float]
) -> float:
    """Mean loss of int8 minus mean loss of bf16, both on the same human text."""
    return sum(int8_on_text) / len(int8_on_text) - sum(bf16_on_text) / len(bf16_on_text)


def inference_bytes(parameters: int) -> int:
    """Two bytes a weight; inference keeps no gradients."""
    return 2 * parameters


def smoothing(x_absmax: list[float], w_absmax: list[float], alpha: float) -> list[float]:
    """x^alpha / w^(1 - alpha) for each channel."""
    return [x**alpha / w ** (1 - alpha) for x, w in zip(x_absmax, w_absmax, strict=True)]


def _codes(
    values: Sequence[float], absmax: float, top: int, to_integer: Callable[[float], int] = round
) -> list[int]:
    return [to_integer(v / (absmax or 1.0) * top) for v in values]


def _absmax(values: Sequence[float]) -> float:
    return max(abs(v) for v in values)


def _inliers(row: list[float], threshold: float) -> list[float]:
    return [v if abs(v) < threshold else 0.0 for v in row]


def _clipped_row(row: list[float], threshold: float) -> list[int]:
    absmax = _absmax(_inliers(row, threshold))
    return [max(-127, min(127, code)) for code in _codes(row, absmax, 127)]


def _zero_point(low: float, high: float, steps: int, lowest: int, sign: int = 1) -> tuple:
    scale = (high - low) / steps
    return scale, lowest - sign * round(low / scale)


def _inlier_product(x: list[float], weights: list[list[float]], threshold: float) -> list[float]:
    return decomposed_row(_inliers(x, threshold), weights, threshold)


def _with_outliers_times_originals(
    x: list[float], weights: list[list[float]], threshold: float
) -> list[float]:
    return [
        y + sum(v * w for v, w in zip(x, row, strict=True) if abs(v) >= threshold)
        for y, row in zip(_inlier_product(x, weights, threshold), weights, strict=True)
    ]


def _with_exact_weights(
    x: list[float], weights: list[list[float]], threshold: float
) -> list[float]:
    inliers = _inliers(x, threshold)
    absmax = _absmax(inliers) or 1.0
    restored_x = [
        code * absmax / 127 if abs(v) < threshold else v
        for code, v in zip(_codes(inliers, absmax, 127), x, strict=True)
    ]
    return [sum(v * w for v, w in zip(restored_x, row, strict=True)) for row in weights]


def _with_127_once(x: list[float], weights: list[list[float]], threshold: float) -> list[float]:
    outliers = decomposed_row([v if abs(v) >= threshold else 0.0 for v in x], weights, threshold)
    product = _inlier_product(x, weights, threshold)
    return [127 * y + z for y, z in zip(product, outliers, strict=True)]


def _chosen(
    large: list[list[list[bool]]], enough: Callable[[float, float, float], bool]
) -> list[int]:
    """Channels for which enough(share of layers, share of pairs, share of positions) is true."""
    chosen = []
    for channel in range(len(large[0][0])):
        found = [[position[channel] for position in layer] for layer in large]
        by_layer = sum(map(any, found)) / len(found)
        by_pair = sum(map(sum, found)) / sum(map(len, found))
        by_position = sum(map(any, zip(*found, strict=True))) / len(found[0])
        if enough(by_layer, by_pair, by_position):
            chosen.append(channel)
    return chosen


def _large(*layers: str) -> list[list[list[bool]]]:
    """A word a position, a letter a channel: x where it is large."""
    return [[[letter == "x" for letter in word] for word in layer.split()] for layer in layers]


def _mean(values: list[float]) -> float:
    return sum(values) / len(values)


_HIDDEN = [[0.5, -7.0, 1.0, 2.0], [-1.5, 0.25, 6.0, 5.75], [3.0, 1.0, -0.5, -2.0]]
_ROWS = (
    ([0.5, -2.0, 8.0, 1.0], 6.0),
    ([6.0, -0.75, 0.5, 2.75, -6.5], 6.0),
    ([1.0, -3.0, 0.3125], 6.0),
    ([7.0, -9.0], 6.0),
    ([0.0, 0.0, 0.0], 6.0),
    ([2.0, -1.25, 0.375, -40.0], 3.0),
)
_WEIGHTS = [[0.5, -1.0, 0.25, 0.75], [0.1875, 0.0625, -0.5, 0.375], [2.0, 1.5, -0.3125, -1.75]]

QUANTIZATION: list[Exercise] = [
    Exercise(
        "04.spacing",
        1,
        spacing,
        (
            (1.0, 7),
            (100.0, 7),
            (-3.0, 10),
            (0.15625, 7),
            (60000.0, 10),
            (4096.0, 10),
            (1.9990234375, 10),
            (16777216.0, 23),
        ),
        (
            "Between 1 and 2 the neighbours are 2**-mantissa_bits apart; between 2 and 4 twice as "
            "far.",
            "With 2**e the largest power of two not above |x|: 2**(e - mantissa_bits). math.frexp "
            "gives e + 1.",
        ),
        (
            (
                lambda x, m: 2.0**-m,
                "that is the spacing between 1 and 2; it doubles with every power of two",
            ),
            (
                lambda x, m: abs(x) * 2.0**-m,
                "the spacing does not grow with x, but in jumps: round log2 |x| down first",
            ),
            (
                lambda x, m: spacing(x, m + 1),
                "that is the largest rounding error; the next float is twice as far away",
            ),
            (
                lambda x, m: spacing(x, m - 1),
                "twice too far: math.frexp gives a fraction from 0.5 to 1, so take 1 off its "
                "exponent",
            ),
            (
                lambda x, m: 2.0 ** (round(math.log2(abs(x))) - m),
                "the spacing changes at a power of two, not halfway to it: math.floor, not round",
            ),
        ),
        rtol=1e-9,
    ),
    Exercise(
        "04.absmax_codes",
        1,
        absmax_codes,
        (
            ([0.5, -1.0, 0.25, 0.9], 8),
            ([3.0, -2.0, 1.25, 0.3, -0.7], 4),
            ([-5.0, -1.0, 2.0], 8),
            ([1.0, 0.5, -0.5, 0.75], 2),
            ([-0.6], 8),
            ([0.0, 0.0, 0.0], 8),
        ),
        (
            "The largest magnitude gets the largest code: for 8 bits that is 127, or -127.",
            "round(v / absmax * top) with top = 2**(bits - 1) - 1. If all values are 0, so is absmax.",
        ),
        (
            (
                lambda v, b: _codes(v, _absmax(v), 2 ** (b - 1)),
                "the largest code is one less, 127 for 8 bits: +128 does not fit an int8",
            ),
            (
                lambda v, b: _codes(v, _absmax(v), 2 ** (b - 1) - 1, math.floor),
                "floor makes every code too small, by half a step on average: round",
            ),
            (
                lambda v, b: _codes(v, _absmax(v), 2 ** (b - 1) - 1, int),
                "int() cuts towards zero; the nearest code comes from round()",
            ),
            (
                lambda v, b: _codes(v, max(v), 2 ** (b - 1) - 1),
                "the largest *magnitude*: a negative value may be the largest",
            ),
            (
                lambda v, b: _codes(v, _absmax(v), 127),
                "`bits` decides the largest code: 127 goes only with 8 bits",
            ),
        ),
    ),
    Exercise(
        "04.unbiased_codes",
        1,
        unbiased_codes,
        (
            ([0.3, 0.8, -0.3, -0.8], 0.5),
            ([1.0, -1.0, 0.1], 0.03),
            ([0.5, 1.5, 2.5, -0.5, -1.5], 1.0),
            ([0.0], 0.25),
            ([7.9, -7.9, 4.2], 2.0),
        ),
        (
            "By how much is floor(v / scale) too small on average, if v is anywhere in a step?",
            "Take the nearest number of steps: Python's round().",
        ),
        (
            (
                lambda v, s: [math.floor(x / s) for x in v],
                "the famous one: floor always goes down, so all values come out too small, by half "
                "a step on average",
            ),
            (
                lambda v, s: [int(x / s) for x in v],
                "int() always goes towards zero: no bias to one side, but every magnitude shrinks",
            ),
            (
                lambda v, s: [math.floor(x / s + 0.5) for x in v],
                "nearly: every half goes up here, still a small bias; round() takes the even one",
            ),
            (
                lambda v, s: [math.ceil(x / s) for x in v],
                "ceil is floor's bias the other way: half a step too large on average",
            ),
            (
                lambda v, s: [int(math.copysign(math.floor(abs(x) / s + 0.5), x)) for x in v],
                "nearly: halves go away from 0 here, which makes magnitudes grow; round() takes the "
                "even one",
            ),
        ),
    ),
    Exercise(
        "04.zero_point",
        2,
        zero_point,
        (
            (-1.0, 3.0, 8),
            (0.5, 2.0, 8),
            (-3.0, -0.5, 4),
            (0.0, 6.0, 8),
            (-0.7, 0.2, 4),
            (-2.0, 1.0, 2),
        ),
        (
            "First min(low, 0) and max(high, 0): 0 must lie in the range. Then 2**bits codes have "
            "2**bits - 1 steps between them.",
            "`low` gets the smallest code, -2**(bits - 1). From there to 0 it is round(-low / scale) "
            "steps.",
        ),
        (
            (
                lambda low, high, b: _zero_point(low, high, 2**b - 1, -(2 ** (b - 1))),
                "widen the range until it holds 0: else 0 has no code of its own",
            ),
            (
                lambda low, high, b: _zero_point(min(low, 0), max(high, 0), 2**b - 1, 0),
                "right for codes from 0 on; signed ones begin at -2**(bits - 1)",
            ),
            (
                lambda low, high, b: _zero_point(min(low, 0), max(high, 0), 2**b, -(2 ** (b - 1))),
                "2**bits codes have one step less between them, as fence posts have gaps",
            ),
            (
                lambda low, high, b: _zero_point(
                    min(low, 0), max(high, 0), 2**b - 1, -(2 ** (b - 1)), -1
                ),
                "the sign: low is not above 0, so the code of 0 lies above the smallest code",
            ),
            (
                lambda low, high, b: zero_point(low, high, b)[::-1],
                "the scale comes first, then the zero point",
            ),
        ),
    ),
    Exercise(
        "04.dequantize_rows",
        1,
        dequantize_rows,
        (  # no more columns than rows, so that SCB[j] gets its message and no IndexError
            ([[127, -64], [12, -127]], [0.5, 2.0]),
            ([[127, 3], [-127, 0], [50, 127]], [1.0, 0.25, 4.0]),
            ([[127], [-127], [127]], [0.1, 0.2, 0.3]),
            ([[0, 0], [127, 1]], [0.0, 12.7]),
        ),
        (
            "SCB[i] is the absmax of row i: code 127 in row i stands for SCB[i].",
            "codes[i][j] * SCB[i] / 127; with tensors CB * SCB.unsqueeze(1) / 127.",
        ),
        (
            (
                lambda codes, SCB: [
                    [code * SCB[j] / 127 for j, code in enumerate(row)] for row in codes
                ],
                "the famous one: `CB * SCB / 127` runs the scales along the columns. Only a square "
                "matrix lets it pass; a scale belongs to a row, SCB.unsqueeze(1)",
            ),
            (
                lambda codes, SCB: [
                    [code * absmax for code in row] for row, absmax in zip(codes, SCB, strict=True)
                ],
                "SCB holds the absmax of a row, not the size of a step: divide by 127",
            ),
            (
                lambda codes, SCB: [
                    [code * absmax / 128 for code in row]
                    for row, absmax in zip(codes, SCB, strict=True)
                ],
                "nearly: the absmax has code 127, so a step is a 127th of it",
            ),
        ),
    ),
    Exercise(
        "04.restored",
        1,
        restored,
        (
            ([-128, -28, 0, 127], 0.02, -28),
            ([-8, 0, 7], 0.5, 3),
            ([5, -5], 0.1, 0),
            ([0], 2.0, -1),
        ),
        (
            "Which value does the code `zero_point` stand for? And one code above it?",
            "Take the zero point off first, then multiply by the size of a step.",
        ),
        (
            (
                lambda codes, scale, zero: list(codes),
                "the famous one: those are the codes themselves. A histogram of them is none of "
                "dequantized values, whatever its title says",
            ),
            (
                lambda codes, scale, zero: [code * scale for code in codes],
                "the zero point is missing: its code must give 0",
            ),
            (
                lambda codes, scale, zero: [code * scale - zero for code in codes],
                "the zero point is a code: take it off before multiplying by the scale",
            ),
            (
                lambda codes, scale, zero: [(code + zero) * scale for code in codes],
                "the sign: the code `zero_point` must give 0, so subtract it",
            ),
        ),
    ),
    Exercise(
        "04.integer_dot",
        2,
        integer_dot,
        (
            ([1, 2, 3], [4, -5, 6], 1, 2),
            ([-128, 127, 5, 0], [127, -128, -7, 9], -28, 3),
            ([10], [20], 10, 0),
            ([3, -3], [8, 1], 0, 0),
            ([], [], 5, 7),
            ([100, 90, -20], [7, 7, 7], 0, -4),
        ),
        (
            "Multiply (x - p)(y - q) out: four terms. Then sum each over the K entries.",
            "sum xy - q sum x - p sum y + K p q: only the first needs products of codes.",
        ),
        (
            (
                lambda x, y, p, q: integer_dot(x, y, 0, 0),
                "that is the sum of the products of the codes; the zero points are still in it",
            ),
            (
                lambda x, y, p, q: integer_dot(x, y, p, q) - len(x) * p * q,
                "the last term is missing: q sum x and p sum y both take K p q off, so add it once",
            ),
            (
                lambda x, y, p, q: integer_dot(x, y, p, q) - (len(x) - 1) * p * q,
                "p q stands in each of the K terms: K p q",
            ),
            (
                lambda x, y, p, q: integer_dot(x, y, q, p),
                "crossed: p is the zero point of x, so it multiplies the sum of y",
            ),
        ),
    ),
    Exercise(
        "04.layer_bytes",
        1,
        layer_bytes,
        (
            (4096, 4096, 8, None, 4),
            (4096, 11008, 4, 128, 2),
            (576, 192, 3, 64, 2),
            (2, 64, 4, 32, 2),
            (3, 5, 8, None, 4),
            (1, 8, 4, 8, 2),
        ),
        (
            "The codes take rows * columns * bits / 8 bytes. How many scales are there?",
            "None: one scale a row. Else columns / group_size scales in each row.",
        ),
        (
            (
                lambda r, c, b, g, s: r * c * b / 8,
                "those are the codes; without their scales they cannot be turned back",
            ),
            (
                lambda r, c, b, g, s: r * c * b / 8 + r * s,
                "each group has a scale of its own, not only each row",
            ),
            (
                lambda r, c, b, g, s: r * c * b / 8 + s,
                "that is one scale for the whole matrix; here each row or group has its own",
            ),
            (
                lambda r, c, b, g, s: layer_bytes(r, c, 8 * b, g, s),
                "the codes are counted in bits: eight of them are a byte",
            ),
        ),
        rtol=1e-9,
    ),
    Exercise(
        "04.largest_inner",
        1,
        largest_inner,
        ((8,), (4,), (2,), (16,)),
        (
            "The largest product of two codes is that of the two most negative ones.",
            "int32 ends at 2**31 - 1. How often does (2**(bits - 1))**2 go into it?",
        ),
        (
            (
                lambda b: 2**31 // 4 ** (b - 1),
                "one too many: the sum would be 2**31, and int32 ends at 2**31 - 1",
            ),
            (
                lambda b: (2**31 - 1) // (2 ** (b - 1) - 1) ** 2,
                "that is for codes down to -127; -128 is a code as well, and (-128)**2 is larger",
            ),
            (
                lambda b: (2**32 - 1) // 4 ** (b - 1),
                "that is uint32; int32 spends a bit on the sign",
            ),
            (
                lambda b: (2**31 - 1) // 4**b,
                "a signed code of 8 bits reaches 128 in magnitude, not 256",
            ),
        ),
        rtol=0.0,
    ),
    Exercise(
        "05.outlier_columns",
        1,
        outlier_columns,
        (
            (_HIDDEN, 6.0),
            (_HIDDEN, 100.0),
            ([[-6.5, 0.0, 1.0], [1.0, 2.0, 9.0]], 6.5),
            ([[3.0, -2.0, 0.5, 2.0, 1.0]], 2.0),
        ),
        (
            "A column is the same feature in every token, x[0][j], x[1][j], ... One large value in "
            "it is enough.",
            "zip(*x) gives the columns. Compare abs(value) >= threshold.",
        ),
        (
            (
                lambda x, t: [
                    j for j, c in enumerate(zip(*x, strict=True)) if any(abs(v) > t for v in c)
                ],
                "nearly: a magnitude of exactly the threshold is an outlier, too (>=)",
            ),
            (
                lambda x, t: [j for j, c in enumerate(zip(*x, strict=True)) if max(c) >= t],
                "large negative values count as well: compare magnitudes",
            ),
            (
                lambda x, t: [i for i, row in enumerate(x) if _absmax(row) >= t],
                "those are rows, the tokens; outliers are found by column, the features",
            ),
            (
                lambda x, t: [_absmax(c) >= t for c in zip(*x, strict=True)],
                "that is a mask; the numbers of the columns were asked for",
            ),
            (
                lambda x, t: [
                    j for j, c in enumerate(zip(*x, strict=True)) if min(map(abs, c)) >= t
                ],
                "one large value is enough to make a column an outlier",
            ),
        ),
    ),
    Exercise(
        "05.row_codes",
        2,
        row_codes,
        _ROWS,
        (
            "Set the outliers to 0 first; then it is absmax quantization as before.",
            "round(v * 127 / absmax) with the absmax of what is left. If nothing is left, zeros.",
        ),
        (
            (
                lambda row, t: _codes(_inliers(row, t), _absmax(row), 127),
                "the outliers get code 0, but still set the scale: leave them out of the absmax",
            ),
            (
                _clipped_row,
                "an outlier is not cut to 127: its code is 0, its product is added elsewhere",
            ),
            (
                lambda row, t: _codes(row, _absmax(row), 127),
                "that is absmax quantization of the whole row: leave the outliers out first",
            ),
            (
                lambda row, t: _codes(_inliers(row, t), _absmax(_inliers(row, t)), 127, math.floor),
                "floor makes codes too small, by half a step on average: round",
            ),
            (
                lambda row, t: [
                    code for code, v in zip(row_codes(row, t), row, strict=True) if abs(v) < t
                ],
                "outliers keep their places: a code 0 each, so that the row stays as long as it is",
            ),
        ),
    ),
    Exercise(
        "05.kept_share",
        1,
        kept_share,
        (
            (_HIDDEN, 6.5),
            (_HIDDEN, 6.0),
            (_HIDDEN, 2.5),
            (_HIDDEN, 100.0),
            ([[1.0, -8.0, 0.5, 2.0, 0.0]], 1.0),
        ),
        (
            "A column stays in high precision as a whole, as soon as one value in it is large.",
            "The number of outlier columns over the number of columns.",
        ),
        (
            (
                lambda x, t: 1 - kept_share(x, t),
                "the famous one, turned round: that is the share in int8. A lower threshold makes "
                "more columns outliers, so it keeps *more* in high precision",
            ),
            (
                lambda x, t: _mean([abs(v) >= t for row in x for v in row]),
                "those are only the large values; the whole column stays with each of them",
            ),
            (
                lambda x, t: _mean([_absmax(row) >= t for row in x]),
                "that is the share of rows, the tokens; columns stay, the features",
            ),
            (
                lambda x, t: _mean([_absmax(c) > t for c in zip(*x, strict=True)]),
                "nearly: a magnitude of exactly the threshold is an outlier, too (>=)",
            ),
            (
                lambda x, t: len(outlier_columns(x, t)),
                "that is the number of columns; a share divides by all of them",
            ),
        ),
    ),
    Exercise(
        "05.decomposed_row",
        3,
        decomposed_row,
        (
            ([0.5, -2.0, 8.0, 1.0], _WEIGHTS, 6.0),
            ([0.5, -2.0, 3.0, 1.0], _WEIGHTS, 6.0),
            ([-6.0, 0.75, 40.0, -0.375], _WEIGHTS[:2], 6.0),
            ([7.0, -9.0], [[0.5, -0.3125]], 6.0),
            ([1.0, 0.5, -20.0], [[0.0, 0.0, 0.0], [1.0, 0.25, -0.625]], 6.0),
        ),
        (
            "Two products. The inliers as int8 codes (05.row_codes) with the codes of the weights; "
            "the outliers as they are with the weights restored from their codes.",
            "For each row of weights with absmax SCB: sum(codes * CB) * SCA * SCB / 127**2 + "
            "sum(outlier * CB * SCB / 127).",
        ),
        (
            (
                _inlier_product,
                "the outliers are dropped: their product with the restored weights must be added",
            ),
            (
                _with_127_once,
                "an int8 product carries two scales, SCA / 127 and SCB / 127: divide by 127**2",
            ),
            (
                _with_outliers_times_originals,
                "that is the paper's way; bitsandbytes keeps no FP16 weights, so its outliers meet "
                "the weights restored from int8",
            ),
            (
                lambda x, w, t: decomposed_row(x, w, math.inf),
                "no decomposition: the outliers sit in the int8 product and set its scale",
            ),
            (_with_exact_weights, "the weights are int8 codes, too, in both products"),
        ),
        rtol=1e-5,
    ),
    Exercise(
        "05.criterion",
        2,
        criterion,
        (
            (_large("xx.. x.x.", "xx.. .x..", ".x.. ....", ".x.x ..x."), 0.5, 0.375),
            (_large(".x x. x. xx", ".x .. .. x.", ".x .. .. ..", ".. .. .. .."), 0.25, 0.06),
            (_large("x.x x.. x.. x..", "... .x. .x. .x."), 0.5, 0.5),
            (
                _large("xx. x.. x.. x..", "..x .x. ... ..x", ".x. ..x ... ...", "... ... ... ..x"),
                0.5,
                0.1875,
            ),
            (_large("x.", "x."), 1.0, 1.0),
        ),
        (
            "Two shares for each channel: of layers, where one large position is enough, and of all "
            "(layer, position) pairs.",
            "Both conditions must hold, and both hold at equality (>=).",
        ),
        (
            (
                lambda x, layers, positions: _chosen(
                    x, lambda layer, pair, _: layer > layers and pair > positions
                ),
                "nearly: at least, so a share of exactly the limit counts (>=)",
            ),
            (
                lambda x, layers, positions: _chosen(x, lambda layer, pair, _: layer >= layers),
                "half of it: the channel must be large at enough positions, too",
            ),
            (
                lambda x, layers, positions: _chosen(
                    x, lambda layer, _, union: layer >= layers and union >= positions
                ),
                "that counts a position that is large in any layer; here each (layer, position) "
                "pair counts by itself",
            ),
            (
                lambda x, layers, positions: _chosen(x, lambda _, pair, __: pair >= positions),
                "half of it: the channel must be large in enough layers, too",
            ),
            (
                lambda x, layers, positions: _chosen(
                    x, lambda layer, pair, _: layer >= layers or pair >= positions
                ),
                "both must hold: `and`, not `or`",
            ),
        ),
    ),
    Exercise(
        "05.fair_difference",
        1,
        fair_difference,
        (
            ([1.0, 1.5, 0.5], [3.0, 4.0, 2.0], [2.5, 4.0, 2.0]),
            ([0.25], [2.0, 2.5], [2.25, 2.5]),
            ([2.0, 1.0], [3.5], [3.5]),
        ),
        (
            "Two of the three lists are losses on the same human text. Compare these.",
            "The difference of their means, int8 minus bf16: in nats, positive if int8 is worse.",
        ),
        (
            (
                lambda own, text, bf16: _mean(own) - _mean(bf16),
                "the famous one: a model finds its own samples easy, so int8 seems to gain. Score "
                "both on the same text, which neither has written",
            ),
            (
                lambda own, text, bf16: math.exp(_mean(text)) - math.exp(_mean(bf16)),
                "that is a difference of perplexities; in nats it is that of the mean losses",
            ),
            (
                lambda own, text, bf16: _mean(bf16) - _mean(text),
                "the sign: int8 minus bf16, so that a loss of quality is positive",
            ),
            (
                lambda own, text, bf16: sum(text) - sum(bf16),
                "those are sums; take the mean of each list",
            ),
            (
                lambda own, text, bf16: _mean(text) / _mean(bf16),
                "that is a ratio; a difference was asked for",
            ),
        ),
    ),
    Exercise(
        "05.inference_bytes",
        1,
        inference_bytes,
        ((6_738_415_616,), (134_515_008,), (1,)),
        ("bf16 has 16 bits. What else would training keep, and does inference need it?",),
        (
            (
                lambda n: 4 * n,
                "the famous one: 26 GB for LLaMA-2-7B in bf16 counts a gradient for each weight. "
                "Inference keeps only the weights (four bytes would also be FP32)",
            ),
            (lambda n: n, "that is int8; a bf16 weight takes two bytes"),
            (lambda n: 16 * n, "those are bits; eight of them are a byte"),
        ),
    ),
    Exercise(
        "05.smoothing",
        1,
        smoothing,
        (
            ([16.0, 1.0, 4.0], [0.25, 1.0, 0.5], 0.5),
            ([50.0, 2.0], [0.5, 0.125], 0.75),
            ([9.0, 0.5], [3.0, 2.0], 0.0),
            ([9.0, 0.5], [3.0, 2.0], 1.0),
        ),
        (
            "Activations are divided by s, weights multiplied by it. So s is large where activations "
            "are large.",
            "s = x_absmax**alpha / w_absmax**(1 - alpha), channel by channel.",
        ),
        (
            (
                lambda x, w, a: [1 / s for s in smoothing(x, w, a)],
                "turned round: activations are divided by s, so it grows with their absmax",
            ),
            (
                lambda x, w, a: smoothing(x, w, 1 - a),
                "the exponents are swapped: alpha belongs to the activations",
            ),
            (
                lambda x, w, a: smoothing(x, w, 0.5),
                "that is alpha = 0.5, whatever alpha is given",
            ),
            (
                lambda x, w, a: [(u / v) ** a for u, v in zip(x, w, strict=True)],
                "the weights have an exponent of their own, 1 - alpha",
            ),
            (
                lambda x, w, a: [u**a * v ** (1 - a) for u, v in zip(x, w, strict=True)],
                "w_absmax**(1 - alpha) divides; this multiplies by it",
            ),
        ),
    ),
]
