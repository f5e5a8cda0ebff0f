"""The exercises of lesson 07: references, cases, hints and known mistakes."""

import math
from collections.abc import Callable, Sequence

from llama_int8.course.exercises import check, exercise, hint, solution

__all__ = ["check", "hint", "solution"]

_HIDDEN = [[0.5, -7.0, 1.0, 2.0], [-1.5, 0.25, 6.0, 5.75], [3.0, 1.0, -0.5, -2.0]]


@exercise(
    "07.outlier_columns",
    points=1,
    cases=[
        (_HIDDEN, 6.0),
        (_HIDDEN, 100.0),
        ([[-6.5, 0.0, 1.0], [1.0, 2.0, 9.0]], 6.5),
        ([[3.0, -2.0, 0.5, 2.0, 1.0]], 2.0),
    ],
    hints=[
        (
            "A column is the same feature in every token, x[0][j], x[1][j], ... One large value in "
            "it is enough."
        ),
        "zip(*x) gives the columns. Compare abs(value) >= threshold.",
    ],
)
def outlier_columns(x: list[list[float]], threshold: float) -> list[int]:
    """Columns with at least one magnitude of at least `threshold`."""
    columns = zip(*x, strict=True)
    return [j for j, column in enumerate(columns) if max(map(abs, column)) >= threshold]


def _absmax(values: Sequence[float]) -> float:
    return max(abs(v) for v in values)


outlier_columns.mistake(
    "nearly: a magnitude of exactly the threshold is an outlier, too (>=)",
    lambda x, t: [j for j, c in enumerate(zip(*x, strict=True)) if any(abs(v) > t for v in c)],
)
outlier_columns.mistake(
    "large negative values count as well: compare magnitudes",
    lambda x, t: [j for j, c in enumerate(zip(*x, strict=True)) if max(c) >= t],
)
outlier_columns.mistake(
    "those are rows, the tokens; outliers are found by column, the features",
    lambda x, t: [i for i, row in enumerate(x) if _absmax(row) >= t],
)
outlier_columns.mistake(
    "that is a mask; the numbers of the columns were asked for",
    lambda x, t: [_absmax(c) >= t for c in zip(*x, strict=True)],
)
outlier_columns.mistake(
    "one large value is enough to make a column an outlier",
    lambda x, t: [j for j, c in enumerate(zip(*x, strict=True)) if min(map(abs, c)) >= t],
)

_ROWS = (
    ([0.5, -2.0, 8.0, 1.0], 6.0),
    ([6.0, -0.75, 0.5, 2.75, -6.5], 6.0),
    ([1.0, -3.0, 0.3125], 6.0),
    ([7.0, -9.0], 6.0),
    ([0.0, 0.0, 0.0], 6.0),
    ([2.0, -1.25, 0.375, -40.0], 3.0),
)


@exercise(
    "07.row_codes",
    points=2,
    cases=_ROWS,
    hints=[
        "Set the outliers to 0 first; then it is absmax quantization as before.",
        "round(v * 127 / absmax) with the absmax of what is left. If nothing is left, zeros.",
    ],
)
def row_codes(row: list[float], threshold: float) -> list[int]:
    """round(v * 127 / absmax) with outliers set to 0 before the absmax is taken."""
    inliers = [v if abs(v) < threshold else 0.0 for v in row]
    absmax = max(abs(v) for v in inliers) or 1.0  # nothing left: any scale gives zeros
    return [round(v * 127 / absmax) for v in inliers]


def _codes(
    values: Sequence[float], absmax: float, top: int, to_integer: Callable[[float], int] = round
) -> list[int]:
    return [to_integer(v / (absmax or 1.0) * top) for v in values]


def _inliers(row: list[float], threshold: float) -> list[float]:
    return [v if abs(v) < threshold else 0.0 for v in row]


row_codes.mistake(
    "the outliers get code 0, but still set the scale: leave them out of the absmax",
    lambda row, t: _codes(_inliers(row, t), _absmax(row), 127),
)


@row_codes.mistake("an outlier is not cut to 127: its code is 0, its product is added elsewhere")
def _clipped_row(row: list[float], threshold: float) -> list[int]:
    absmax = _absmax(_inliers(row, threshold))
    return [max(-127, min(127, code)) for code in _codes(row, absmax, 127)]


row_codes.mistake(
    "that is absmax quantization of the whole row: leave the outliers out first",
    lambda row, t: _codes(row, _absmax(row), 127),
)
row_codes.mistake(
    "floor makes codes too small, by half a step on average: round",
    lambda row, t: _codes(_inliers(row, t), _absmax(_inliers(row, t)), 127, math.floor),
)
row_codes.mistake(
    "outliers keep their places: a code 0 each, so that the row stays as long as it is",
    lambda row, t: [code for code, v in zip(row_codes(row, t), row, strict=True) if abs(v) < t],
)


@exercise(
    "07.kept_share",
    points=1,
    cases=[
        (_HIDDEN, 6.5),
        (_HIDDEN, 6.0),
        (_HIDDEN, 2.5),
        (_HIDDEN, 100.0),
        ([[1.0, -8.0, 0.5, 2.0, 0.0]], 1.0),
    ],
    hints=[
        "A column stays in high precision as a whole, as soon as one value in it is large.",
        "The number of outlier columns over the number of columns.",
    ],
)
def kept_share(x: list[list[float]], threshold: float) -> float:
    """Outlier columns over all columns."""
    outlier = [max(map(abs, column)) >= threshold for column in zip(*x, strict=True)]
    return sum(outlier) / len(outlier)


def _mean(values: list[float]) -> float:
    return sum(values) / len(values)


kept_share.mistake(
    "the famous one, turned round: that is the share in int8. A lower threshold makes "
    "more columns outliers, so it keeps *more* in high precision",
    lambda x, t: 1 - kept_share(x, t),
)
kept_share.mistake(
    "those are only the large values; the whole column stays with each of them",
    lambda x, t: _mean([abs(v) >= t for row in x for v in row]),
)
kept_share.mistake(
    "that is the share of rows, the tokens; columns stay, the features",
    lambda x, t: _mean([_absmax(row) >= t for row in x]),
)
kept_share.mistake(
    "nearly: a magnitude of exactly the threshold is an outlier, too (>=)",
    lambda x, t: _mean([_absmax(c) > t for c in zip(*x, strict=True)]),
)
kept_share.mistake(
    "that is the number of columns; a share divides by all of them",
    lambda x, t: len(outlier_columns(x, t)),
)

_WEIGHTS = [[0.5, -1.0, 0.25, 0.75], [0.1875, 0.0625, -0.5, 0.375], [2.0, 1.5, -0.3125, -1.75]]


@exercise(
    "07.decomposed_row",
    points=3,
    cases=[
        ([0.5, -2.0, 8.0, 1.0], _WEIGHTS, 6.0),
        ([0.5, -2.0, 3.0, 1.0], _WEIGHTS, 6.0),
        ([-6.0, 0.75, 40.0, -0.375], _WEIGHTS[:2], 6.0),
        ([7.0, -9.0], [[0.5, -0.3125]], 6.0),
        ([1.0, 0.5, -20.0], [[0.0, 0.0, 0.0], [1.0, 0.25, -0.625]], 6.0),
    ],
    hints=[
        (
            "Two products. The inliers as int8 codes (07.row_codes) with the codes of the weights; "
            "the outliers as they are with the weights restored from their codes."
        ),
        (
            "For each row of weights with absmax SCB: sum(codes * CB) * SCA * SCB / 127**2 + "
            "sum(outlier * CB * SCB / 127)."
        ),
    ],
    rtol=1e-5,
)
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


def _inlier_product(x: list[float], weights: list[list[float]], threshold: float) -> list[float]:
    return decomposed_row(_inliers(x, threshold), weights, threshold)


decomposed_row.mistake(
    "the outliers are dropped: their product with the restored weights must be added",
    _inlier_product,
)


@decomposed_row.mistake(
    "an int8 product carries two scales, SCA / 127 and SCB / 127: divide by 127**2"
)
def _with_127_once(x: list[float], weights: list[list[float]], threshold: float) -> list[float]:
    outliers = decomposed_row([v if abs(v) >= threshold else 0.0 for v in x], weights, threshold)
    product = _inlier_product(x, weights, threshold)
    return [127 * y + z for y, z in zip(product, outliers, strict=True)]


@decomposed_row.mistake(
    "that is the paper's way; bitsandbytes keeps no FP16 weights, so its outliers meet "
    "the weights restored from int8"
)
def _with_outliers_times_originals(
    x: list[float], weights: list[list[float]], threshold: float
) -> list[float]:
    return [
        y + sum(v * w for v, w in zip(x, row, strict=True) if abs(v) >= threshold)
        for y, row in zip(_inlier_product(x, weights, threshold), weights, strict=True)
    ]


decomposed_row.mistake(
    "no decomposition: the outliers sit in the int8 product and set its scale",
    lambda x, w, t: decomposed_row(x, w, math.inf),
)


@decomposed_row.mistake("the weights are int8 codes, too, in both products")
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


def _large(*layers: str) -> list[list[list[bool]]]:
    """A word a position, a letter a channel: x where it is large."""
    return [[[letter == "x" for letter in word] for word in layer.split()] for layer in layers]


@exercise(
    "07.criterion",
    points=2,
    cases=[
        (_large("xx.. x.x.", "xx.. .x..", ".x.. ....", ".x.x ..x."), 0.5, 0.375),
        (_large(".x x. x. xx", ".x .. .. x.", ".x .. .. ..", ".. .. .. .."), 0.25, 0.06),
        (_large("x.x x.. x.. x..", "... .x. .x. .x."), 0.5, 0.5),
        (
            _large("xx. x.. x.. x..", "..x .x. ... ..x", ".x. ..x ... ...", "... ... ... ..x"),
            0.5,
            0.1875,
        ),
        (_large("x.", "x."), 1.0, 1.0),
    ],
    hints=[
        (
            "Two shares for each channel: of layers, where one large position is enough, and of all "
            "(layer, position) pairs."
        ),
        "Both conditions must hold, and both hold at equality (>=).",
    ],
)
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


criterion.mistake(
    "nearly: at least, so a share of exactly the limit counts (>=)",
    lambda x, layers, positions: _chosen(
        x, lambda layer, pair, _: layer > layers and pair > positions
    ),
)
criterion.mistake(
    "half of it: the channel must be large at enough positions, too",
    lambda x, layers, positions: _chosen(x, lambda layer, pair, _: layer >= layers),
)
criterion.mistake(
    "that counts a position that is large in any layer; here each (layer, position) "
    "pair counts by itself",
    lambda x, layers, positions: _chosen(
        x, lambda layer, _, union: layer >= layers and union >= positions
    ),
)
criterion.mistake(
    "half of it: the channel must be large in enough layers, too",
    lambda x, layers, positions: _chosen(x, lambda _, pair, __: pair >= positions),
)
criterion.mistake(
    "both must hold: `and`, not `or`",
    lambda x, layers, positions: _chosen(
        x, lambda layer, pair, _: layer >= layers or pair >= positions
    ),
)


@exercise(
    "07.fair_difference",
    points=1,
    cases=[
        ([1.0, 1.5, 0.5], [3.0, 4.0, 2.0], [2.5, 4.0, 2.0]),
        ([0.25], [2.0, 2.5], [2.25, 2.5]),
        ([2.0, 1.0], [3.5], [3.5]),
    ],
    hints=[
        "Two of the three lists are losses on the same human text. Compare these.",
        "The difference of their means, int8 minus bf16: in nats, positive if int8 is worse.",
    ],
)
def fair_difference(
    int8_on_own: list[float], int8_on_text: list[float], bf16_on_text: list[float]
) -> float:
    """Mean loss of int8 minus mean loss of bf16, both on the same human text."""
    return sum(int8_on_text) / len(int8_on_text) - sum(bf16_on_text) / len(bf16_on_text)


fair_difference.mistake(
    "the famous one: a model finds its own samples easy, so int8 seems to gain. Score "
    "both on the same text, which neither has written",
    lambda own, text, bf16: _mean(own) - _mean(bf16),
)
fair_difference.mistake(
    "that is a difference of perplexities; in nats it is that of the mean losses",
    lambda own, text, bf16: math.exp(_mean(text)) - math.exp(_mean(bf16)),
)
fair_difference.mistake(
    "the sign: int8 minus bf16, so that a loss of quality is positive",
    lambda own, text, bf16: _mean(bf16) - _mean(text),
)
fair_difference.mistake(
    "those are sums; take the mean of each list", lambda own, text, bf16: sum(text) - sum(bf16)
)
fair_difference.mistake(
    "that is a ratio; a difference was asked for", lambda own, text, bf16: _mean(text) / _mean(bf16)
)


@exercise(
    "07.inference_bytes",
    points=1,
    cases=[(6_738_415_616,), (134_515_008,), (1,)],
    hints=["bf16 has 16 bits. What else would training keep, and does inference need it?"],
)
def inference_bytes(parameters: int) -> int:
    """Two bytes a weight; inference keeps no gradients."""
    return 2 * parameters


inference_bytes.mistake(
    "the famous one: 26 GB for LLaMA-2-7B in bf16 counts a gradient for each weight. "
    "Inference keeps only the weights (four bytes would also be FP32)",
    lambda n: 4 * n,
)
inference_bytes.mistake("that is int8; a bf16 weight takes two bytes", lambda n: n)
inference_bytes.mistake("those are bits; eight of them are a byte", lambda n: 16 * n)


@exercise(
    "07.smoothing",
    points=1,
    cases=[
        ([16.0, 1.0, 4.0], [0.25, 1.0, 0.5], 0.5),
        ([50.0, 2.0], [0.5, 0.125], 0.75),
        ([9.0, 0.5], [3.0, 2.0], 0.0),
        ([9.0, 0.5], [3.0, 2.0], 1.0),
    ],
    hints=[
        (
            "Activations are divided by s, weights multiplied by it. So s is large where activations "
            "are large."
        ),
        "s = x_absmax**alpha / w_absmax**(1 - alpha), channel by channel.",
    ],
)
def smoothing(x_absmax: list[float], w_absmax: list[float], alpha: float) -> list[float]:
    """x^alpha / w^(1 - alpha) for each channel."""
    return [x**alpha / w ** (1 - alpha) for x, w in zip(x_absmax, w_absmax, strict=True)]


smoothing.mistake(
    "turned round: activations are divided by s, so it grows with their absmax",
    lambda x, w, a: [1 / s for s in smoothing(x, w, a)],
)
smoothing.mistake(
    "the exponents are swapped: alpha belongs to the activations",
    lambda x, w, a: smoothing(x, w, 1 - a),
)
smoothing.mistake(
    "that is alpha = 0.5, whatever alpha is given", lambda x, w, a: smoothing(x, w, 0.5)
)
smoothing.mistake(
    "the weights have an exponent of their own, 1 - alpha",
    lambda x, w, a: [(u / v) ** a for u, v in zip(x, w, strict=True)],
)
smoothing.mistake(
    "w_absmax**(1 - alpha) divides; this multiplies by it",
    lambda x, w, a: [u**a * v ** (1 - a) for u, v in zip(x, w, strict=True)],
)
