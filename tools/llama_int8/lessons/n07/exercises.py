"""The exercises of lesson 07: references, cases, hints and known mistakes."""

import torch

from llama_int8.course.exercises import check, exercise, hint, solution
from llama_int8.quantization.matmul import int8_matmul

__all__ = ["check", "hint", "solution"]

_HIDDEN = torch.tensor([[0.5, -7.0, 1.0, 2.0], [-1.5, 0.25, 6.0, 5.75], [3.0, 1.0, -0.5, -2.0]])
_CALM = torch.tensor([[0.5, -2.0, 3.0, 1.0, 0.0]])
_ZERO_ROW = torch.tensor([[0.0, 0.0, 0.0], [1.0, 0.3, -20.0], [7.0, -9.0, 8.0]])


@exercise(
    "07.outlier_columns",
    points=1,
    cases=[
        (_HIDDEN, 6.0),
        (_HIDDEN, 100.0),
        (torch.tensor([[-6.5, 0.0, 1.0], [1.0, 2.0, 9.0]]), 6.5),
        (_CALM, 2.0),
    ],
    hints=[
        "A column is one feature in every token: x[:, j]. One large value in it is enough.",
        "(x.abs() >= threshold).any(0) says it for each column; .nonzero().flatten() gives numbers.",
    ],
)
def outlier_columns(x, threshold):
    """The columns with at least one magnitude of at least `threshold`."""
    return (x.abs() >= threshold).any(0).nonzero().flatten()


outlier_columns.mistake(
    "nearly: a magnitude of exactly the threshold is an outlier, too (>=)",
    lambda x, t: (x.abs() > t).any(0).nonzero().flatten(),
)
outlier_columns.mistake(
    "large negative values count as well: compare magnitudes",
    lambda x, t: (x >= t).any(0).nonzero().flatten(),
)
outlier_columns.mistake(
    "those are rows, the tokens; outliers are found by column, the features",
    lambda x, t: (x.abs() >= t).any(1).nonzero().flatten(),
)
outlier_columns.mistake(
    "that is a mask; the numbers of the columns were asked for",
    lambda x, t: (x.abs() >= t).any(0),
)
outlier_columns.mistake(
    "one large value is enough to make a column an outlier",
    lambda x, t: (x.abs() >= t).all(0).nonzero().flatten(),
)


@exercise(
    "07.inlier_absmax",
    points=1,
    cases=[(_HIDDEN, 6.0), (_CALM, 6.0), (_ZERO_ROW, 6.0), (_HIDDEN, float("inf"))],
    hints=[
        "Set the outliers to 0 first; the largest magnitude of each row is then that of its inliers.",
        "x.masked_fill(mask, 0), then .abs().amax(1).",
    ],
)
def inlier_absmax(x, threshold):
    """The largest magnitude of each row, its outliers left out."""
    return x.masked_fill(x.abs() >= threshold, 0).abs().amax(1)


inlier_absmax.mistake(
    "that is the absmax of the whole row: leave the outliers out first",
    lambda x, t: x.abs().amax(1),
)
inlier_absmax.mistake(
    "that is one absmax for each column; each *row* has its own",
    lambda x, t: x.masked_fill(x.abs() >= t, 0).abs().amax(0),
)
inlier_absmax.mistake(
    "whole outlier columns are too much here: only the outliers themselves are left out of the "
    "absmax, as in bitsandbytes",
    lambda x, t: x.masked_fill((x.abs() >= t).any(0), 0).abs().amax(1),
)
inlier_absmax.mistake(
    "nearly: a magnitude of exactly the threshold is an outlier, too (>=)",
    lambda x, t: x.masked_fill(x.abs() > t, 0).abs().amax(1),
)
inlier_absmax.mistake(
    "a row's largest value may be negative: take the largest magnitude",
    lambda x, t: x.masked_fill(x.abs() >= t, 0).amax(1),
)


@exercise(
    "07.row_codes",
    points=2,
    cases=[(_HIDDEN, 6.0), (_CALM, 6.0), (_ZERO_ROW, 6.0), (_HIDDEN, float("inf"))],
    hints=[
        "127 / absmax is the number of steps in a unit, one number per row: [:, None] gives it to "
        "every column. .clamp(min=1e-12) keeps a row of zeros safe.",
        "codes = (x * steps).round(); then codes[:, outlier_columns(x, threshold)] = 0, and "
        ".to(torch.int8) last.",
    ],
)
def row_codes(x, threshold):
    """int8 codes: a scale per row from its inliers, and 0 in the outlier columns."""
    steps = 127 / inlier_absmax(x, threshold).clamp(min=1e-12)  # codes per unit of magnitude
    codes = (x * steps[:, None]).round()
    codes[:, outlier_columns(x, threshold)] = 0
    return codes.to(torch.int8)


def _codes(x, absmax, rule=torch.round):
    return rule(x * (127 / absmax.clamp(min=1e-12))[:, None])


def _without_columns(codes, x, threshold):
    codes = codes.clone()
    codes[:, outlier_columns(x, threshold)] = 0
    return codes.clamp(-128, 127).to(torch.int8)


row_codes.mistake(
    "the outlier columns get code 0, but an outlier still sets its row's scale: take inlier_absmax",
    lambda x, t: _without_columns(_codes(x, x.abs().amax(1)), x, t),
)
row_codes.mistake(
    "only the outliers have code 0; their whole columns must: they are multiplied elsewhere",
    lambda x, t: _codes(x, inlier_absmax(x, t)).masked_fill(x.abs() >= t, 0).to(torch.int8),
)
row_codes.mistake(
    "the outlier columns are not cut to 127: their code is 0, their product is added elsewhere",
    lambda x, t: _codes(x, inlier_absmax(x, t)).clamp(-127, 127).to(torch.int8),
)
row_codes.mistake(
    "that is absmax quantization of the whole row: leave the outliers out first",
    lambda x, t: _codes(x, x.abs().amax(1)).to(torch.int8),
)
row_codes.mistake(
    "floor makes codes too small, by half a step on average: round",
    lambda x, t: _without_columns(_codes(x, inlier_absmax(x, t), torch.floor), x, t),
)
row_codes.mistake(
    ".to(torch.int8) before .round() cuts towards zero: round first",
    lambda x, t: _without_columns(_codes(x, inlier_absmax(x, t), torch.trunc), x, t),
)

_CB = torch.tensor([[40, -127, 9, 12], [127, 3, -80, 1], [-5, 60, 127, -127]], dtype=torch.int8)
_SCB = torch.tensor([0.5, 2.0, 0.25])


@exercise(
    "07.llm_int8",
    points=3,
    cases=[
        (_HIDDEN, _CB, _SCB, 6.0),
        (_HIDDEN, _CB, _SCB, 100.0),
        (_HIDDEN[:2], _CB[:2], _SCB[:2], 3.0),
        (_ZERO_ROW, _CB[:2, :3], _SCB[:2], 6.0),
    ],
    hints=[
        "Two products. The int8 one: int8_matmul(codes, CB), times absmax[:, None] * SCB / 127**2.",
        "The other: x[:, columns] times the restored weights of these columns, "
        "CB[:, columns] * (SCB / 127)[:, None], transposed. Their sum is the result.",
    ],
)
def llm_int8(x, CB, SCB, threshold):
    """x times restored weights: inliers in integers, outlier columns in floating point."""
    product = int8_matmul(row_codes(x, threshold), CB)  # (N, M), exact
    y = product * (inlier_absmax(x, threshold)[:, None] * SCB / 127**2)
    columns = outlier_columns(x, threshold)
    restored = CB[:, columns] * (SCB / 127)[:, None]  # (M, k)
    return y + x[:, columns] @ restored.T


def _inlier_part(x, CB, SCB, t):
    return int8_matmul(row_codes(x, t), CB) * (inlier_absmax(x, t)[:, None] * SCB / 127**2)


llm_int8.mistake(
    "the outlier columns are dropped: their product with the restored weights must be added",
    _inlier_part,
)
llm_int8.mistake(
    "an int8 product carries two scales, absmax / 127 and SCB / 127: divide by 127**2",
    lambda x, CB, SCB, t: llm_int8(x, CB, SCB, t) + 126 * _inlier_part(x, CB, SCB, t),
)
llm_int8.mistake(
    "the outliers met the codes CB; multiply these by SCB / 127 first",
    lambda x, CB, SCB, t: (
        _inlier_part(x, CB, SCB, t)
        + x[:, outlier_columns(x, t)] @ CB[:, outlier_columns(x, t)].float().T
    ),
)
llm_int8.mistake(
    "no decomposition: the outliers sit in the int8 product and set its scale",
    lambda x, CB, SCB, t: llm_int8(x, CB, SCB, float("inf")),
)
llm_int8.mistake(
    "the inliers are to be rounded as well: that is x times the restored weights",
    lambda x, CB, SCB, t: x @ (CB * (SCB / 127)[:, None]).T,
)


@exercise(
    "07.own_outliers",
    points=2,
    cases=[
        (_HIDDEN, _CB, _SCB, 6.0),
        (_HIDDEN, _CB, _SCB, 2.0),
        (_ZERO_ROW, _CB[:2, :3], _SCB[:2], 6.0),
    ],
    hints=[
        "inliers = x.masked_fill(outliers, 0) go through int8, the rest x - inliers does not.",
        "inliers holds no outlier any more, so llm_int8(inliers, CB, SCB, threshold) is the int8 "
        "part. The other part meets all restored weights.",
    ],
)
def own_outliers(x, CB, SCB, threshold):
    """LLM.int8() that keeps each row's own outliers, not the columns in which they stand."""
    inliers = x.masked_fill(x.abs() >= threshold, 0)
    restored = CB * (SCB / 127)[:, None]  # (M, K)
    return llm_int8(inliers, CB, SCB, threshold) + (x - inliers) @ restored.T


own_outliers.mistake(
    "that keeps whole columns: a value below the threshold goes through int8 even there",
    lambda x, CB, SCB, t: llm_int8(x, CB, SCB, t),
)
own_outliers.mistake(
    "the outliers are dropped: their product with the restored weights must be added",
    lambda x, CB, SCB, t: llm_int8(x.masked_fill(x.abs() >= t, 0), CB, SCB, t),
)
own_outliers.mistake(
    "the inliers are counted twice: the second product takes only the outliers, x - inliers",
    lambda x, CB, SCB, t: (
        llm_int8(x.masked_fill(x.abs() >= t, 0), CB, SCB, t) + x @ (CB * (SCB / 127)[:, None]).T
    ),
)


@exercise(
    "07.spend",
    points=3,
    cases=[
        (torch.tensor([[1.0, -9.0, 2.0], [4.0, 3.5, -3.0]]), 1),
        (torch.tensor([[1.0, -9.0, 2.0], [8.0, 7.5, -1.0], [5.0, 0.5, -0.25]]), 2),
        (torch.tensor([[10.0, 9.5, 9.0, 1.0], [6.0, 1.0, 0.5, 0.25]]), 1),
        (torch.tensor([[10.0, 9.5, 9.0, 1.0], [6.0, 1.0, 0.5, 0.25]]), 3),
        (
            torch.tensor([[10.0, 8.0, -1.0], [5.0, -2.0, 0.5]]),
            1,
        ),  # 2 and 3 apart, 36 and 21 squared
    ],
    hints=[
        "A row's noise grows with the square of its absmax. Taking its largest value out lowers it "
        "by (largest squared) - (second largest squared). Spend one value after another.",
        "left.topk(2, dim=1) gives both values and their places for every row; "
        "gain.argmax() the row to spend on; then set left[row, place] = 0 and mark it as kept.",
    ],
)
def spend(x, budget):
    """A mask of `budget` values: each time the one whose row gains most, absmax squared."""
    left, kept = x.abs(), torch.zeros_like(x, dtype=torch.bool)
    for _ in range(budget):
        largest, places = left.topk(2, dim=1)  # (N, 2)
        row = (largest[:, 0].square() - largest[:, 1].square()).argmax()
        left[row, places[row, 0]] = 0
        kept[row, places[row, 0]] = True
    return kept


def _largest_values(x, budget):
    kept = torch.zeros(x.numel(), dtype=torch.bool)
    kept[x.abs().flatten().topk(budget).indices] = True
    return kept.view(x.shape)


def _spent(x, budget, gain_of):
    left, kept = x.abs(), torch.zeros_like(x, dtype=torch.bool)
    for _ in range(budget):
        largest, places = left.topk(2, dim=1)
        row = gain_of(largest).argmax()
        left[row, places[row, 0]] = 0
        kept[row, places[row, 0]] = True
    return kept


spend.mistake(
    "those are the largest values of the matrix. A value is worth what its row gains: if another "
    "one of nearly its size stays in the row, that is little",
    _largest_values,
)
spend.mistake(
    "that compares the difference of two magnitudes; noise grows with the *square* of absmax",
    lambda x, budget: _spent(x, budget, lambda v: v[:, 0] - v[:, 1]),
)
spend.mistake("that is one value more than the budget", lambda x, budget: spend(x, budget + 1))
spend.mistake("that marks what goes through int8; mark what is kept", lambda x, b: ~spend(x, b))


@exercise(
    "07.kept_share",
    points=1,
    cases=[(_HIDDEN, 6.5), (_HIDDEN, 6.0), (_HIDDEN, 2.5), (_HIDDEN, 100.0), (_CALM, 1.0)],
    hints=[
        "A column stays in high precision as a whole, as soon as one value in it is large.",
        "The number of outlier columns over the number of columns, x.shape[1].",
    ],
)
def kept_share(x, threshold):
    """Outlier columns over all columns."""
    return len(outlier_columns(x, threshold)) / x.shape[1]


kept_share.mistake(
    "that is the share in int8. A lower threshold makes more columns outliers, so it keeps *more* "
    "in high precision",
    lambda x, t: 1 - kept_share(x, t),
)
kept_share.mistake(
    "those are only the large values; the whole column stays with each of them",
    lambda x, t: (x.abs() >= t).float().mean(),
)
kept_share.mistake(
    "that is the share of rows, the tokens; columns stay, the features",
    lambda x, t: (x.abs() >= t).any(1).float().mean(),
)
kept_share.mistake(
    "nearly: a magnitude of exactly the threshold is an outlier, too (>=)",
    lambda x, t: (x.abs() > t).any(0).float().mean(),
)
kept_share.mistake(
    "that is the number of columns; a share divides by all of them",
    lambda x, t: len(outlier_columns(x, t)),
)


def _large(*layers):
    """A word a position, a letter a channel: x where it is large."""
    return torch.tensor(
        [[[letter == "x" for letter in word] for word in layer.split()] for layer in layers]
    )


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
        "Two shares per channel. Of layers, where one large position is enough: large.any(1), then "
        "the mean over layers. And of all (layer, position) pairs.",
        "large.float().mean((0, 1)) is the second. Both conditions hold at equality, too (>=).",
    ],
)
def criterion(large, layer_share, position_share):
    """Channels that are large in enough layers, and at enough of all (layer, position) pairs."""
    by_layer = large.any(1).float().mean(0)  # (C,)
    by_position = large.float().mean((0, 1))  # (C,)
    return ((by_layer >= layer_share) & (by_position >= position_share)).nonzero().flatten()


def _chosen(large, enough):
    """Channels for which enough(share of layers, of pairs, of positions in any layer) is true."""
    by_layer, by_pair = large.any(1).float().mean(0), large.float().mean((0, 1))
    return enough(by_layer, by_pair, large.any(0).float().mean(0)).nonzero().flatten()


criterion.mistake(
    "nearly: at least, so a share of exactly the limit counts (>=)",
    lambda x, layers, positions: _chosen(
        x, lambda layer, pair, _: (layer > layers) & (pair > positions)
    ),
)
criterion.mistake(
    "half of it: the channel must be large at enough positions, too",
    lambda x, layers, positions: _chosen(x, lambda layer, pair, _: layer >= layers),
)
criterion.mistake(
    "that counts a position that is large in any layer; here each (layer, position) pair counts "
    "by itself",
    lambda x, layers, positions: _chosen(
        x, lambda layer, _, union: (layer >= layers) & (union >= positions)
    ),
)
criterion.mistake(
    "half of it: the channel must be large in enough layers, too",
    lambda x, layers, positions: _chosen(x, lambda _, pair, __: pair >= positions),
)
criterion.mistake(
    "both must hold: &, not |",
    lambda x, layers, positions: _chosen(
        x, lambda layer, pair, _: (layer >= layers) | (pair >= positions)
    ),
)


@exercise(
    "07.smoothing",
    points=1,
    cases=[
        (torch.tensor([16.0, 1.0, 4.0]), torch.tensor([0.25, 1.0, 0.5]), 0.5),
        (torch.tensor([50.0, 2.0]), torch.tensor([0.5, 0.125]), 0.75),
        (torch.tensor([9.0, 0.5]), torch.tensor([3.0, 2.0]), 0.0),
        (torch.tensor([9.0, 0.5]), torch.tensor([3.0, 2.0]), 1.0),
    ],
    hints=[
        "Activations are divided by s, weights multiplied by it. So s is large where activations "
        "are large.",
        "s = x_absmax**alpha / w_absmax**(1 - alpha), for all channels at once.",
    ],
)
def smoothing(x_absmax, w_absmax, alpha):
    """x^alpha / w^(1 - alpha) for each channel."""
    return x_absmax**alpha / w_absmax ** (1 - alpha)


smoothing.mistake(
    "turned round: activations are divided by s, so it grows with their absmax",
    lambda x, w, a: 1 / smoothing(x, w, a),
)
smoothing.mistake(
    "the exponents are swapped: alpha belongs to the activations",
    lambda x, w, a: smoothing(x, w, 1 - a),
)
smoothing.mistake(
    "that is alpha = 0.5, whatever alpha is given", lambda x, w, a: smoothing(x, w, 0.5)
)
smoothing.mistake(
    "the weights have an exponent of their own, 1 - alpha", lambda x, w, a: (x / w) ** a
)
smoothing.mistake(
    "w_absmax**(1 - alpha) divides; this multiplies by it", lambda x, w, a: x**a * w ** (1 - a)
)
