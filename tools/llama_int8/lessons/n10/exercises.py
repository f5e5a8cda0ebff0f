"""The exercises of lesson 10: references, cases, hints and known mistakes.

Three of them are C++: their function hands lines to `workshop`, which compiles them.
"""

import torch
from torch import Tensor

from llama_int8.course.exercises import check, exercise, hint, solution
from llama_int8.lessons.n10 import workshop
from llama_int8.quantization.cpu.packing import pack, pack_rows
from llama_int8.quantization.matmul import int8_matmul

__all__ = ["check", "hint", "solution"]


def _codes(rows: int, columns: int, least: int = -127) -> Tensor:
    generator = torch.Generator().manual_seed(rows * columns)
    return torch.randint(least, 128, (rows, columns), generator=generator, dtype=torch.int8)


def _values(rows: int, columns: int) -> Tensor:
    generator = torch.Generator().manual_seed(rows * columns)
    return torch.randn(rows, columns, generator=generator)


def _scales(rows: int, columns: int) -> Tensor:
    return _values(rows, columns).abs() + 0.1


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
    "10.w8a8",
    points=2,
    cases=[
        (_values(3, 40), _codes(8, 40), _scales(1, 8)[0]),
        (torch.tensor([[0.0, 0.0], [3.0, -1.5]]), _codes(3, 2), _scales(1, 3)[0]),
        (5 * _values(1, 16), _codes(4, 16), _scales(1, 4)[0]),
    ],
    hints=[
        "A scale per row of x: `x.abs().amax(1, keepdim=True) / 127`; then `x_codes`, as int8.",
        "Keep the scale above zero, as in `.clamp(min=1e-30)`: a row of zeros would give 0 / 0.",
        "`int8_matmul(x_codes, w_codes)` has the integer sums, (T, M); multiply by both scales.",
    ],
)
def w8a8(x, w_codes, scale):
    """Rows x (T, K) times weights in int8, w_codes (M, K) with a scale per row (M,): (T, M)."""
    step = x.abs().amax(1, keepdim=True).clamp(min=1e-30) / 127  # (T, 1)
    x_codes = (x / step).round().to(torch.int8)  # (T, K)
    return int8_matmul(x_codes, w_codes) * (step * scale)


@w8a8.mistake("the weights' scales are missing")
def _without_their_scales(x, codes, scale):
    return w8a8(x, codes, torch.ones_like(scale))


@w8a8.mistake("all tokens share one scale here; each row of x needs its own")
def _one_step(x, codes, scale):
    step = x.abs().max() / 127
    return int8_matmul((x / step).round().to(torch.int8), codes) * (step * scale)


@w8a8.mistake("codes are rounded to the nearest, not cut off: `.to(torch.int8)` cuts")
def _cut_off(x, codes, scale):
    step = x.abs().amax(1, keepdim=True).clamp(min=1e-30) / 127
    return int8_matmul((x / step).to(torch.int8), codes) * (step * scale)


@w8a8.mistake("x was not quantized: this is the product of W8A16")
def _not_quantized(x, codes, scale):
    return x @ (codes.float() * scale[:, None]).T


@exercise(
    "10.scalar_product",
    points=1,
    cases=[(_codes(1, 8), _codes(4, 8)), (_codes(3, 32), _codes(5, 32))],
    hints=[
        "A loop over k from 0 to K adds one product at a time to `sum`.",
        "Row t of x_codes begins at t * K, row m of w_codes at m * K.",
    ],
)
def scalar_product(x_codes, w_codes):
    """Integer products, one number after another: (T, K) and (M, K) -> (T, M)."""
    return workshop.loop(
        """
        for (int t = 0; t < T; t++)
            for (int m = 0; m < M; m++) {
                int sum = 0;
                for (int k = 0; k < K; k++) sum += x_codes[t * K + k] * w_codes[m * K + k];
                y[t * M + m] = sum;
            }
        """,
        x_codes,
        w_codes,
    )


@scalar_product.mistake("the last product is missing: k runs from 0 to K - 1")
def _one_short(codes, weights):
    return int8_matmul(codes[:, :-1], weights[:, :-1])


@scalar_product.mistake("only the last product is left: add to `sum`, do not assign")
def _the_last_one(codes, weights):
    return codes[:, -1:].int() * weights[:, -1].int()


@exercise(
    "10.unsigned_product",
    points=1,
    cases=[([1, -2, 3], [4, 5, -6]), ([-127, 127], [127, 127]), ([5, 7], [3, 1])],
    hints=["Each product has 128 times its code too much.", "Subtract 128 * sum(codes)."],
)
def unsigned_product(weights: list[int], codes: list[int]) -> int:
    """Sum of products from weights that were stored with 128 added, as unsigned bytes."""
    total = sum((w + 128) * c for w, c in zip(weights, codes, strict=True))
    return total - 128 * sum(codes)


def _stored_products(weights: list[int], codes: list[int]) -> int:
    return sum((w + 128) * c for w, c in zip(weights, codes, strict=True))


unsigned_product.mistake("take 128 times the sum of the codes off again", _stored_products)
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
    "10.pack_weights",
    points=2,
    cases=[(_codes(32, 8),), (_codes(96, 32),)],
    hints=[
        "Split both dimensions first: `weights.view(M // 32, 32, K // 4, 4)`.",
        "Swap the two in the middle; add 128 in a wider type, then `.to(torch.uint8)`.",
    ],
)
def pack_weights(weights):
    """int8 (M, K) -> uint8 (M / 32, K / 4, 32, 4), code + 128: the order in which a tile reads."""
    blocks = weights.view(len(weights) // 32, 32, -1, 4).transpose(1, 2)  # (M/32, K/4, 32, 4)
    return (blocks.int() + 128).to(torch.uint8).contiguous()


@pack_weights.mistake("the order is right; add 128 to each code")
def _signed(weights):
    return weights.view(len(weights) // 32, 32, -1, 4).transpose(1, 2)


@pack_weights.mistake(
    "the numbers are right, their order is not: four inputs of 32 rows lie together"
)
def _in_rows(weights):
    return (weights.view(len(weights) // 32, -1, 32, 4).int() + 128).to(torch.uint8)


@exercise(
    "10.tile_product",
    points=2,
    cases=[
        (_codes(1, 32), pack(_codes(32, 32))),
        (_codes(11, 64), pack(_codes(64, 64)), 11),
    ],
    hints=[
        "`dot4(sum, weights, codes)` adds to each lane of `sum` the products of 4 inputs.",
        "The weights of vector v: `load_ints(w_codes + k * 32 + v * 4 * LANES)`.",
        "Token t's four codes, in every lane: `four_codes(x_codes + t * K + k)`.",
    ],
)
def tile_product(x_codes, packed, tokens=1):
    """Integer products by the processor's own instruction, a tile of 32 outputs at a time."""
    return workshop.tile(
        """
        Ints sum[TOKENS][VECTORS];
        for (int t = 0; t < TOKENS; t++)
            for (int v = 0; v < VECTORS; v++) sum[t][v] = ints(start[t]);
        for (int k = 0; k < K; k += 4)
            for (int t = 0; t < TOKENS; t++)
                for (int v = 0; v < VECTORS; v++)
                    dot4(sum[t][v], load_ints(w_codes + k * 32 + v * 4 * LANES),
                         four_codes(x_codes + t * K + k));
        for (int t = 0; t < TOKENS; t++)
            for (int v = 0; v < VECTORS; v++) store(y + t * M + v * LANES, sum[t][v]);
        """,
        x_codes,
        packed,
        tokens=tokens,
    )


@tile_product.mistake("every token gets the codes of the first one: they begin at x_codes + t * K")
def _first_token(codes, packed, tokens=1):
    return tile_product(codes[:1].expand_as(codes).contiguous(), packed, tokens)


@tile_product.mistake("every four inputs meet the first four weights: they lie at w_codes + k * 32")
def _first_weights(codes, packed, tokens=1):
    return tile_product(codes, packed[:, :1].expand_as(packed).contiguous(), tokens)


@exercise(
    "10.round_in_groups",
    points=2,
    cases=[
        (torch.tensor([[1.0, -2.0, 127.0, 4.0]]), 2),
        (torch.tensor([[0.0, 0.0, 3.0, -1.5]]), 2),
        (_values(3, 96), 32),
        (_values(2, 48), 48),
    ],
    hints=[
        "`x.unflatten(1, (-1, size))` has the shape (T, groups, size).",
        "A scale per group: the largest magnitude of the last dimension, over 127, above zero.",
        "Codes are `(groups / scale).round()`; times the scale, and `.flatten(1)`.",
    ],
)
def round_in_groups(x, size):
    """x (T, K), each `size` neighbours rounded to int8 with a scale of their own, and restored."""
    groups = x.unflatten(1, (-1, size))  # (T, K / size, size)
    scale = groups.abs().amax(-1, keepdim=True).clamp(min=1e-30) / 127
    return ((groups / scale).round() * scale).flatten(1)


@round_in_groups.mistake("all groups of a row share one scale here; each needs its own")
def _one_per_row(x, size):
    return round_in_groups(x, x.shape[1])


@round_in_groups.mistake("codes are rounded to the nearest, not cut off")
def _codes_cut_off(x, size):
    groups = x.unflatten(1, (-1, size))
    scale = groups.abs().amax(-1, keepdim=True).clamp(min=1e-30) / 127
    return ((groups / scale).trunc() * scale).flatten(1)


@round_in_groups.mistake(
    "a group of zeros has scale 0, and 0 / 0 is nan: keep the scale above zero"
)
def _nan_for_zeros(x, size):
    groups = x.unflatten(1, (-1, size))
    scale = groups.abs().amax(-1, keepdim=True) / 127
    return ((groups / scale).round() * scale).flatten(1)


@round_in_groups.mistake("these are the codes; multiply them by the scale again")
def _only_codes(x, size):
    groups = x.unflatten(1, (-1, size))
    scale = groups.abs().amax(-1, keepdim=True).clamp(min=1e-30) / 127
    return (groups / scale).round().flatten(1)


@exercise(
    "10.grouped_product",
    points=2,
    cases=[
        (
            _codes(rows, inputs, 0),
            _scales(rows, inputs // 32),
            pack(_codes(32, inputs, 0)),
            pack_rows(_scales(32, inputs // 32).bfloat16()),
            rows,
        )
        for rows, inputs in ((1, 64), (9, 96))
    ],
    hints=[
        "The token's scale of this group in all lanes: `floats(a[t * G + g])`.",
        "The scales of 32 outputs lie together: `load_bf16(s + g * 32 + v * LANES)`.",
        "total = add(total, mul(to_floats(sum), mul(the one scale, the other)))",
    ],
    rtol=1e-3,
)
def grouped_product(x_codes, a, packed, s, tokens=1):
    """Products whose sums get their scales after every 32 inputs, in FP32."""
    return workshop.tile(
        """
        Floats total[TOKENS][VECTORS] = {};
        for (int g = 0; g < G; g++) {
            Ints sum[TOKENS][VECTORS];
            for (int t = 0; t < TOKENS; t++)
                for (int v = 0; v < VECTORS; v++) sum[t][v] = ints(start[t * G + g]);
            for (int k = 32 * g; k < 32 * (g + 1); k += 4)
                for (int t = 0; t < TOKENS; t++)
                    for (int v = 0; v < VECTORS; v++)
                        dot4(sum[t][v], load_ints(w_codes + k * 32 + v * 4 * LANES),
                             four_codes(x_codes + t * K + k));
            for (int t = 0; t < TOKENS; t++)
                for (int v = 0; v < VECTORS; v++) {
                    Floats scale = mul(floats(a[t * G + g]), load_bf16(s + g * 32 + v * LANES));
                    total[t][v] = add(total[t][v], mul(to_floats(sum[t][v]), scale));
                }
        }
        for (int t = 0; t < TOKENS; t++)
            for (int v = 0; v < VECTORS; v++) store(y + t * M + v * LANES, total[t][v]);
        """,
        x_codes,
        packed,
        (a, s),
        tokens,
    )


@grouped_product.mistake("the weights' scales are missing")
def _only_tokens_scales(codes, a, packed, s, tokens=1):
    return grouped_product(codes, a, packed, torch.ones_like(s), tokens)


@grouped_product.mistake("the token's scales are missing")
def _only_weights_scales(codes, a, packed, s, tokens=1):
    return grouped_product(codes, torch.ones_like(a), packed, s, tokens)


@grouped_product.mistake(
    "every group gets the first group's scale of the token: it is a[t * G + g]"
)
def _first_groups_scale(codes, a, packed, s, tokens=1):
    return grouped_product(codes, a[:, :1].expand_as(a).contiguous(), packed, s, tokens)


class Multiplier:
    """Weights that only take int8, and only twice: what a processor's instruction can do."""

    def __init__(self, weights: Tensor, times: int = 2) -> None:
        self.weights, self.left = weights, times

    def __call__(self, codes: Tensor) -> Tensor:
        """int8 (T, K) -> FP32 (T, M). Raises TypeError for other types, RuntimeError if used up."""
        if codes.dtype != torch.int8:
            raise TypeError(f"multiply takes int8, this is {codes.dtype}; quantize first")
        if not self.left:
            raise RuntimeError("multiply may be called twice; this is the third time")
        self.left -= 1
        return int8_matmul(codes, self.weights).float()

    def __repr__(self) -> str:
        return "multiply"


@exercise(
    "10.two_products",
    points=3,
    cases=[
        (_values(3, 24).abs() + 0.03, Multiplier(_codes(5, 24, 1))),
        (torch.tensor([[0.0, 0.0], [9.0, 0.01]]), Multiplier(_codes(4, 2, 1))),
    ],
    hints=[
        "What does the first product leave undone? x minus what its codes stand for.",
        "That rest is small, and has a largest magnitude of its own: give it a scale of its own.",
    ],
    rtol=3e-4,
)
def two_products(x, multiply):
    """x (T, K) times weights that take only int8, nearly as exact as 15 bits, in two products."""
    step = x.abs().amax(1, keepdim=True).clamp(min=1e-30) / 127
    first = (x / step).round()
    rest = x - first * step
    fine = rest.abs().amax(1, keepdim=True).clamp(min=1e-30) / 127
    second = (rest / fine).round()
    return multiply(first.to(torch.int8)) * step + multiply(second.to(torch.int8)) * fine


@two_products.mistake(
    "that is one product's accuracy; the second one multiplies what rounding left"
)
def _one_plane(x, multiply):
    step = x.abs().amax(1, keepdim=True).clamp(min=1e-30) / 127
    return multiply((x / step).round().to(torch.int8)) * step


@exercise(
    "10.pairs_fit",
    points=1,
    cases=[(255, 127), (127, 127), (128, 128), (127, 129), (128, 127), (200, 100)],
    hints=[
        "The largest number in signed 16 bits is 32,767.",
        "Two products, each at most largest_weight x largest_code, are added.",
    ],
)
def pairs_fit(largest_weight: int, largest_code: int) -> bool:
    """Whether the sum of two such products fits signed 16 bits."""
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
        "It does 2 operations per weight and sequence: 2 x batch / throughput. Set them equal.",
    ],
)
def break_even_batch(bandwidth: float, throughput: float, bytes_per_weight: float) -> float:
    """Batch from which a decode step waits for operations and no longer for bytes."""
    return throughput * bytes_per_weight / (2 * bandwidth)


break_even_batch.mistake(
    "a multiplication and an addition are two operations", lambda b, t, s: t * s / b
)
break_even_batch.mistake(
    "more bytes per weight leave time for more operations", lambda b, t, s: t / (2 * b * s)
)
break_even_batch.mistake("that is its inverse", lambda b, t, s: 2 * b / (t * s))
