"""The exercises of lesson 06: references, cases, hints and known mistakes."""

import math

import torch

from llama_int8.course.exercises import check, exercise, hint, solution

__all__ = ["check", "hint", "solution"]

_GENERATOR = torch.Generator().manual_seed(6)


def _normal(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=_GENERATOR)


_SHARES = torch.tensor([0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0])


@exercise(
    "06.absmax",
    points=2,
    cases=[
        (torch.tensor([0.5, -1.0, 0.26, 0.9]), 8),
        (torch.tensor([3.0, -2.0, 1.25, 0.3, -0.7]), 4),
        (torch.tensor([-5.0, -1.0, 2.0]), 8),
        (_normal(3, 5), 3),
        (torch.zeros(3), 8),
    ],
    hints=[
        "The largest magnitude gets the largest code, top = 2 ** (bits - 1) - 1. So one step is "
        "scale = x.abs().max() / top.",
        "codes = (x / scale).round(), and back: codes * scale. If all values are 0, so is the scale: "
        ".clamp(min=1e-12) keeps 0 / 0 away.",
    ],
)
def absmax(x, bits):
    """Each value goes to the nearest of 2^bits - 1 codes, and back."""
    top = 2 ** (bits - 1) - 1
    scale = x.abs().max().clamp(min=1e-12) / top
    codes = (x / scale).round()
    return codes * scale


def _rounded(x, largest, top, rule=torch.round):
    scale = largest.clamp(min=1e-12) / top
    return rule(x / scale) * scale


absmax.mistake(
    "those are the codes; multiply by the scale to come back to the values",
    lambda x, b: absmax(x, b) / (x.abs().max().clamp(min=1e-12) / (2 ** (b - 1) - 1)),
)
absmax.mistake(
    "the largest code is one less, 127 for 8 bits: +128 does not fit an int8",
    lambda x, b: _rounded(x, x.abs().max(), 2 ** (b - 1)),
)
absmax.mistake(
    "floor makes every value too small, by half a step on average: round",
    lambda x, b: _rounded(x, x.abs().max(), 2 ** (b - 1) - 1, torch.floor),
)
absmax.mistake(
    "that cuts towards zero (as .to(torch.int8) does); the nearest code comes from round()",
    lambda x, b: _rounded(x, x.abs().max(), 2 ** (b - 1) - 1, torch.trunc),
)
absmax.mistake(
    "the largest *magnitude*: a negative value may be the largest",
    lambda x, b: _rounded(x, x.max(), 2 ** (b - 1) - 1),
)
absmax.mistake(
    "`bits` decides the largest code: 127 goes only with 8 bits",
    lambda x, b: _rounded(x, x.abs().max(), 127),
)
absmax.mistake(
    "the division by zero: a tensor of zeros must stay one; clamp the largest magnitude",
    lambda x, b: absmax(x, b) / (x.abs().max() > 0),
)


@exercise(
    "06.absmax_rows",
    points=1,
    cases=[
        (_normal(3, 5), 8),
        (_normal(4, 4), 4),
        (_normal(2, 7) * torch.tensor([[1.0], [50]]), 4),
    ],
    hints=[
        "W.abs().amax(dim=-1, keepdim=True) is the largest magnitude of every row, (M, 1).",
        "With keepdim=True the scales broadcast along the rows. All else is as in absmax.",
    ],
)
def absmax_rows(W, bits):
    """As absmax, with a scale for each row."""
    top = 2 ** (bits - 1) - 1
    scale = W.abs().amax(dim=-1, keepdim=True).clamp(min=1e-12) / top  # (M, 1)
    codes = (W / scale).round()
    return codes * scale


absmax_rows.mistake(
    "that is one scale for the whole matrix; here each row has its own",
    lambda W, b: absmax(W, b),
)
absmax_rows.mistake(
    "those are the columns' scales: the row's maximum is taken over dim=-1",
    lambda W, b: absmax_rows(W.T, b).T,
)
absmax_rows.mistake(
    "the largest *magnitude* of a row: a negative value may be the largest",
    lambda W, b: _rounded(W, W.amax(-1, keepdim=True), 2 ** (b - 1) - 1),
)


@exercise(
    "06.absmax_groups",
    points=2,
    cases=[(_normal(3, 8), 4, 4), (_normal(2, 12), 8, 3), (_normal(4, 4), 3, 4)],
    hints=[
        "W.view(-1, size) is a matrix whose rows are the groups. You have a function for that.",
        "At the end, .view_as(W) gives the shape back.",
    ],
)
def absmax_groups(W, bits, size):
    """As absmax, with a scale for every `size` neighbours in a row."""
    groups = W.reshape(-1, size)  # (M, K) -> (M * K / size, size)
    top = 2 ** (bits - 1) - 1
    scale = groups.abs().amax(dim=-1, keepdim=True).clamp(min=1e-12) / top
    codes = (groups / scale).round()
    return (codes * scale).reshape(W.shape)


absmax_groups.mistake(
    "that is a scale for each row; each group of `size` neighbours has its own",
    lambda W, b, size: absmax_rows(W, b),
)
absmax_groups.mistake(
    "the right numbers in the shape of the groups: .view_as(W) gives the shape back",
    lambda W, b, size: absmax_rows(W.reshape(-1, size), b),
)
absmax_groups.mistake(
    "those groups lie in a column; neighbours in a *row* share a scale",
    lambda W, b, size: absmax_rows(W.T.reshape(-1, size), b).reshape(W.T.shape).T,
)
absmax_groups.mistake(
    "`size` is the number of weights in a group, not the number of groups",
    lambda W, b, size: absmax_rows(W.reshape(size, -1), b).reshape(W.shape),
)


@exercise(
    "06.affine",
    points=2,
    cases=[
        (torch.tensor([-1.0, 0.3, 3.0, 1.7]), 8),
        (torch.tensor([0.5, 2.0, 1.1]), 8),
        (torch.tensor([-3.0, -0.5, -1.3]), 4),
        (_normal(3, 5).relu(), 3),
        (torch.tensor([-0.7, 0.2, 0.0]), 4),
    ],
    hints=[
        "low = x.min().clamp(max=0) and high = x.max().clamp(min=0): 0 must lie in the range. 2**bits "
        "codes have 2**bits - 1 steps between them.",
        "zero = (-low / scale).round() is the code of 0, if codes are counted from 0. Then codes = "
        "(x / scale).round() + zero, cut to 0 ... 2**bits - 1.",
        "And back: (codes - zero) * scale.",
    ],
)
def affine(x, bits):
    """Each value goes to the nearest of all 2^bits codes between the smallest and the largest."""
    low, high = x.min().clamp(max=0), x.max().clamp(min=0)
    scale = ((high - low) / (2**bits - 1)).clamp(min=1e-12)
    zero = (-low / scale).round()  # the code that stands for 0
    codes = ((x / scale).round() + zero).clamp(0, 2**bits - 1)
    return (codes - zero) * scale


def _affine(x, low, high, steps):
    scale = ((high - low) / steps).clamp(min=1e-12)
    zero = (-low / scale).round()
    return (((x / scale).round() + zero).clamp(0, steps) - zero) * scale


affine.mistake(
    "widen the range until it holds 0: else 0 has no code of its own",
    lambda x, b: _affine(x, x.min(), x.max(), 2**b - 1),
)
affine.mistake(
    "2**bits codes have one step less between them, as fence posts have gaps",
    lambda x, b: _affine(x, x.min().clamp(max=0), x.max().clamp(min=0), 2**b),
)
affine.mistake(
    "that is the symmetric grid, and half of its codes are not used here",
    lambda x, b: absmax(x, b),
)
affine.mistake(
    "the zero point must be a code, a whole number, or 0 does not come back as 0: round it",
    lambda x, b: (
        ((x - x.min().clamp(max=0)) / _step(x, b)).round() * _step(x, b) + x.min().clamp(max=0)
    ),
)
affine.mistake(
    "the zero point is still in it: take it off before you multiply by the scale",
    lambda x, b: affine(x, b) + (-x.min().clamp(max=0) / _step(x, b)).round() * _step(x, b),
)


def _step(x, b):
    return (x.max().clamp(min=0) - x.min().clamp(max=0)) / (2**b - 1)


@exercise(
    "06.dequantize_rows",
    points=1,
    cases=[  # no more columns than rows, so that SCB along the columns gets its message
        (torch.tensor([[127, -64], [12, -127]]), torch.tensor([0.5, 2.0])),
        (torch.tensor([[127, 3], [-127, 0], [50, 127]]), torch.tensor([1.0, 0.25, 4.0])),
        (torch.tensor([[127], [-127], [127]]), torch.tensor([0.1, 0.2, 0.3])),
    ],
    hints=[
        "SCB[i] is the absmax of row i: code 127 in row i stands for SCB[i].",
        "SCB.unsqueeze(1) is a column, (M, 1). A column broadcasts along the rows.",
    ],
)
def dequantize_rows(CB, SCB):
    """Row i of the codes times SCB[i] / 127."""
    return CB * SCB.unsqueeze(1) / 127  # (M, K) * (M, 1)


dequantize_rows.mistake(
    "the famous one: `CB * SCB / 127` runs the scales along the columns. Only a square "
    "matrix lets it pass; a scale belongs to a row, SCB.unsqueeze(1)",
    lambda CB, SCB: CB * SCB[: CB.shape[1]] / 127,
)
dequantize_rows.mistake(
    "SCB holds the absmax of a row, not the size of a step: divide by 127",
    lambda CB, SCB: CB * SCB.unsqueeze(1),
)
dequantize_rows.mistake(
    "nearly: the absmax has code 127, so a step is a 127th of it",
    lambda CB, SCB: CB * SCB.unsqueeze(1) / 128,
)


@exercise(
    "06.integer_product",
    points=2,
    cases=[
        (torch.tensor([[1, 2, 3]]), torch.tensor([[4, -5, 6]]), 1, 2),
        (
            torch.tensor([[-128, 127, 5, 0], [9, 9, 9, 9]]),
            torch.tensor([[127, -128, -7, 9]]),
            -28,
            3,
        ),
        (torch.tensor([[10]]), torch.tensor([[20], [30]]), 10, 0),
        (torch.tensor([[100, 90, -20]]), torch.tensor([[7, 7, 7], [1, 2, 3]]), 0, -4),
    ],
    hints=[
        "Multiply (a - p)(b - q) out: four terms. Then sum each over the K columns.",
        "a @ b.T, minus q times the row sums of a, minus p times the row sums of b, plus K p q.",
        "a.sum(-1, keepdim=True) is (T, 1), b.sum(-1) is (M,): both broadcast to (T, M).",
    ],
)
def integer_product(a, b, p, q):
    """sum (a - p)(b - q) over k, from the product of the codes and their sums: (T, M)."""
    products = a @ b.T  # (T, K) @ (K, M) -> (T, M)
    return products - q * a.sum(-1, keepdim=True) - p * b.sum(-1) + a.shape[-1] * p * q


integer_product.mistake(
    "that is the sum of the products of the codes; the zero points are still in it",
    lambda a, b, p, q: a @ b.T,
)
integer_product.mistake(
    "the last term is missing: both sums take K p q off, so add it once",
    lambda a, b, p, q: integer_product(a, b, p, q) - a.shape[-1] * p * q,
)
integer_product.mistake(
    "p q stands in each of the K terms: K p q",
    lambda a, b, p, q: integer_product(a, b, p, q) - (a.shape[-1] - 1) * p * q,
)
integer_product.mistake(
    "crossed: p is the zero point of a, so it multiplies the sums of b",
    lambda a, b, p, q: integer_product(a, b, q, p),
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


def clipped(x, bits, share):
    """absmax as if the largest magnitude were `share` of what it is: the lesson gives it."""
    top = 2 ** (bits - 1) - 1
    scale = (share * x.abs().max()).clamp(min=1e-12) / top
    return (x / scale).round().clamp(-top, top) * scale


@exercise(
    "06.best_clip",
    points=2,
    cases=[
        (torch.cat([_normal(200), torch.tensor([9.0])]), 4, _SHARES),
        (_normal(500), 3, _SHARES),
        (_normal(50), 8, _SHARES),
        (torch.cat([_normal(100), torch.tensor([-30.0])]), 3, torch.linspace(0.05, 1, 20)),
    ],
    hints=[
        "For each share, clipped(x, bits, share) is what comes back.",
        "Keep the share with the smallest (restored - x).square().mean().",
    ],
)
def best_clip(x, bits, shares):
    """The share of absmax at which to clip, so that the mean squared error is the smallest."""
    errors = [(clipped(x, bits, share) - x).square().mean() for share in shares]
    return shares[torch.stack(errors).argmin()]


def _clip_errors(x, bits, shares, top_offset=1, clamp=True):
    top, errors = 2 ** (bits - 1) - top_offset, []
    for share in shares:
        scale = share * x.abs().max() / top
        codes = (x / scale).round()
        restored = (codes.clamp(-top, top) if clamp else codes) * scale
        errors.append(restored - x)
    return torch.stack(errors)


best_clip.mistake(
    "nothing is cut off: codes beyond top do not exist, so .clamp(-top, top)",
    lambda x, b, shares: shares[_clip_errors(x, b, shares, clamp=False).square().mean(-1).argmin()],
)
best_clip.mistake(
    "that is the place in the list; return the share itself",
    lambda x, b, shares: _clip_errors(x, b, shares).square().mean(-1).argmin(),
)
best_clip.mistake(
    "that is the smallest error; return the share that gives it",
    lambda x, b, shares: _clip_errors(x, b, shares).square().mean(-1).min(),
)
best_clip.mistake(
    "that is the clip itself; return it as a share of the largest magnitude",
    lambda x, b, shares: best_clip(x, b, shares) * x.abs().max(),
)
best_clip.mistake(
    "the *largest* error decides here, and it never likes a cut: take the mean of the squares",
    lambda x, b, shares: shares[_clip_errors(x, b, shares).abs().amax(-1).argmin()],
)


@exercise(
    "06.four_bits",
    points=2,
    cases=[
        (_normal(3, 16), 4, 8, _SHARES),
        (_normal(4, 64), 3, 64, _SHARES),
        (_normal(2, 32) ** 3, 4, 32, _SHARES),
    ],
    hints=[
        "Cut W into groups, (N, size). For each share, round all groups at once, and take each "
        "group's own error: .square().sum(-1, keepdim=True), (N, 1).",
        "torch.where(error < best_error, restored, best) keeps, for each group, the better of two.",
    ],
)
def four_bits(W, bits, size, shares):
    """As absmax_groups, but each group is clipped at the share of its absmax that suits it best."""
    groups, top = W.reshape(-1, size), 2 ** (bits - 1) - 1
    absmax = groups.abs().amax(-1, keepdim=True).clamp(min=1e-12)
    best, best_error = torch.zeros_like(groups), torch.full_like(absmax, float("inf"))
    for share in shares:
        scale = share * absmax / top
        restored = (groups / scale).round().clamp(-top, top) * scale
        error = (restored - groups).square().sum(-1, keepdim=True)  # (N, 1)
        best = torch.where(error < best_error, restored, best)
        best_error = torch.minimum(error, best_error)
    return best.reshape(W.shape)


four_bits.mistake(
    "that is without a cut; each group takes the share that suits it best",
    lambda W, b, size, shares: absmax_groups(W, b, size),
)
four_bits.mistake(
    "one share for the whole matrix; each group has its own best one",
    lambda W, b, size, shares: min(
        (four_bits(W, b, size, share[None]) for share in shares),
        key=lambda restored: (restored - W).square().sum(),
    ),
)
four_bits.mistake(
    "that takes the best share for every single weight, and nothing would store which: one for "
    "each group",
    lambda W, b, size, shares: _best_of_each(W, b, size, shares),
)


def _best_of_each(W, b, size, shares):
    tried = torch.stack([four_bits(W, b, size, share[None]) for share in shares])
    return tried.gather(0, (tried - W).abs().argmin(0, keepdim=True))[0]


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
