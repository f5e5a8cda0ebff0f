"""The exercises of all notebooks, by number of notebook, with their reference solutions."""

import math

from llama_int8.classroom.cpu_exercises import CPU
from llama_int8.classroom.evaluation_exercises import EVALUATION
from llama_int8.classroom.exercises import Exercise
from llama_int8.classroom.flash_exercises import FLASH
from llama_int8.classroom.quantization_exercises import QUANTIZATION


def int8_bytes(rows: int, columns: int) -> int:
    """One byte a weight, and one FP32 scale for every output row."""
    return rows * columns + 4 * rows


def attention_row(dots: list[float], d_k: int) -> list[float]:
    """softmax(dots / sqrt(d_k))."""
    import math

    scores = [dot / math.sqrt(d_k) for dot in dots]
    largest = max(scores)  # taken off, so that no exponential overflows
    powers = [math.exp(score - largest) for score in scores]
    return [power / sum(powers) for power in powers]


def additive_mask(length: int) -> list[list[float]]:
    """0 at and left of the diagonal, minus infinity right of it."""
    forbidden = float("-inf")
    return [[0.0 if s <= t else forbidden for s in range(length)] for t in range(length)]


def causal_weights(scores: list[list[float]]) -> list[list[float]]:
    """Row t is the softmax of its first t + 1 scores, then zeros."""
    import torch

    masked = torch.tensor(scores, dtype=torch.float64)
    future = torch.ones_like(masked, dtype=torch.bool).triu(1)
    return masked.masked_fill(future, float("-inf")).softmax(-1).tolist()


def padding_rows(lengths: list[int], longest: int) -> list[list[bool]]:
    """True for the first `length` places of each row."""
    return [[place < length for place in range(longest)] for length in lengths]


def previous_token_score(weights: list[list[float]]) -> float:
    """Mean of the entries just below the diagonal, from query 2 on."""
    looks = [row[t - 1] for t, row in enumerate(weights) if t >= 2]
    return sum(looks) / len(looks)


def shifted_loss(log_p: list[list[float]], tokens: list[int]) -> float:
    """Mean of -log p of each token after the first, predicted one position before it."""
    surprise = [-log_p[t][token] for t, token in enumerate(tokens[1:])]
    return sum(surprise) / len(surprise)


def perplexity(log_probabilities: list[float]) -> float:
    """exp of the mean negative log-probability."""
    import math

    return math.exp(-sum(log_probabilities) / len(log_probabilities))


def cache_bytes(
    layers: int, tokens: int, heads: int, kv_heads: int, head_dim: int, size: int
) -> int:
    """A key and a value for each layer, token and key-value head."""
    return 2 * layers * tokens * kv_heads * head_dim * size


def nucleus(probabilities: list[float], p: float) -> list[int]:
    """The likeliest tokens up to and with the one at which their sum reaches p."""
    kept, total = [], 0.0
    for token in sorted(range(len(probabilities)), key=lambda i: -probabilities[i]):
        if total >= p:
            break
        kept.append(token)
        total += probabilities[token]
    return sorted(kept)


def penalized(logits: list[float], seen: list[int], penalty: float) -> list[float]:
    """Seen tokens: a positive logit divided, a negative one multiplied."""
    return [
        (x * penalty if x < 0 else x / penalty) if token in seen else x
        for token, x in enumerate(logits)
    ]


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


def training_days(tokens: float, tokens_per_second_per_gpu: float, gpus: int) -> float:
    """Tokens over tokens per day."""
    return tokens / (tokens_per_second_per_gpu * gpus) / 86_400


def _down_the_columns(scores: list[list[float]]) -> list[list[float]]:
    columns = []
    for s, column in enumerate(zip(*scores, strict=True)):
        columns.append(attention_row([x if s <= t else -math.inf for t, x in enumerate(column)], 1))
    return [list(row) for row in zip(*columns, strict=True)]


def _log_of_the_mean(log_p: list[list[float]], tokens: list[int]) -> float:
    probabilities = [math.exp(log_p[t][token]) for t, token in enumerate(tokens[1:])]
    return -math.log(sum(probabilities) / len(probabilities))


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


def _penalized_each_time(logits: list[float], seen: list[int], penalty: float) -> list[float]:
    for token in seen:
        logits = penalized(logits, [token], penalty)
    return logits


_LOG_P = [
    [math.log(x) for x in row] for row in ([0.7, 0.2, 0.1], [0.1, 0.6, 0.3], [0.25, 0.25, 0.5])
]
_SQUARE_AND_NOT = ((1536, 576), (576, 1536), (1, 1), (4096, 11008))

EXERCISES: dict[str, Exercise] = {
    exercise.name: exercise
    for exercise in [
        Exercise(
            "00.int8_bytes",
            2,
            int8_bytes,
            _SQUARE_AND_NOT,
            (
                "An int8 weight takes one byte. What else must be kept to turn codes back to numbers?",
                "There is one scale for each output row, that is, for each row of the matrix: a "
                "32-bit float.",
            ),
            (
                (lambda r, c: r * c, "the weights are right; the scales of the rows are missing"),
                (lambda r, c: r * c + 4 * c, "the scales belong to the rows, not to the columns"),
                (lambda r, c: 2 * r * c, "that is 16 bit; an int8 weight takes one byte"),
                (lambda r, c: r * c + r, "a scale is an FP32 number: four bytes, not one"),
                (lambda r, c: r * c + 2 * r, "a scale is an FP32 number here: four bytes, not two"),
                (lambda r, c: r * c + 4, "LLM.int8() keeps a scale for each row, not one in all"),
                (lambda r, c: r * c + 32 * r, "a scale has 32 bits, and 32 bits are four bytes"),
            ),
        ),
        Exercise(
            "01.attention_row",
            1,
            attention_row,
            (([1.0, 2.0, 3.0], 4), ([0.0, 0.0], 64), ([-5.0, 30.0, 28.0, 2.0], 9), ([7.0], 2)),
            (
                "First divide every dot product by the square root of d_k.",
                "Then weight i is exp(score i) over the sum of all exp(score). Taking the largest "
                "score off first changes nothing and keeps exp() small.",
            ),
            (
                (
                    lambda d, n: attention_row(d, 1),
                    "the scaling by the square root of d_k is missing",
                ),
                (
                    lambda d, n: attention_row(d, n * n),
                    "divide by the square root of d_k, not by d_k",
                ),
                (
                    lambda d, n: [x / math.sqrt(n) for x in d],
                    "those are the scaled scores; the softmax is missing",
                ),
                (
                    lambda d, n: [math.exp(x / math.sqrt(n)) for x in d],
                    "positive, but their sum is not 1: divide by it",
                ),
                (
                    lambda d, n: attention_row(d, 1 / n),
                    "divide by the square root of d_k; this multiplies by it",
                ),
                (
                    lambda d, n: [w / math.sqrt(n) for w in attention_row(d, 1)],
                    "scale the scores, before the softmax: the weights must still sum to 1",
                ),
            ),
        ),
        Exercise(
            "01.additive_mask",
            1,
            additive_mask,
            ((1,), (2,), (5,)),
            (
                "Row t is a query, column s a key. It may look where s <= t.",
                "What is added must leave an allowed score as it is, and make exp() of a forbidden "
                "one 0: that is 0.0 and -math.inf.",
            ),
            (
                (
                    lambda n: [[1.0 if s <= t else 0.0 for s in range(n)] for t in range(n)],
                    "zeros and ones are a multiplicative mask; added to the scores, they forbid "
                    "nothing",
                ),
                (
                    lambda n: [[0.0 if s >= t else -math.inf for s in range(n)] for t in range(n)],
                    "that is turned round: each token would see its future and not its past",
                ),
                (
                    lambda n: [[0.0 if s < t else -math.inf for s in range(n)] for t in range(n)],
                    "a token may look at itself; here the first one could look nowhere",
                ),
                (
                    lambda n: [
                        [0.0 if s <= t + 1 else -math.inf for s in range(n)] for t in range(n)
                    ],
                    "off by one: each token sees the next one, which it should predict",
                ),
                (
                    lambda n: [[0.0 if s <= t else -1e9 for s in range(n)] for t in range(n)],
                    "-1e9 overflows FP16; -math.inf does in every format what is meant",
                ),
                (
                    lambda n: [
                        [math.nan if s <= t else -math.inf for s in range(n)] for t in range(n)
                    ],
                    "0 times infinity is nan: choose between 0.0 and -math.inf, do not multiply",
                ),
            ),
        ),
        Exercise(
            "01.find_the_bug",
            2,
            causal_weights,
            (
                ([[0.0, 1.0], [2.0, -1.0]],),
                ([[1.0, 9.0, 2.0], [0.5, 0.1, 4.0], [3.0, 2.0, 1.0]],),
            ),
            (
                "What do the rows of the result sum to? What should they?",
                "Forbid before the softmax: put minus infinity into the upper triangle of the "
                "scores, then take the softmax.",
            ),
            (
                (
                    lambda scores: [
                        [w if s <= t else 0.0 for s, w in enumerate(attention_row(row, 1))]
                        for t, row in enumerate(scores)
                    ],
                    "still the bug: the softmax has divided by a sum that holds the future",
                ),
                (
                    lambda scores: [
                        attention_row([x if s <= t else 0.0 for s, x in enumerate(row)], 1)
                        for t, row in enumerate(scores)
                    ],
                    "a score of 0 forbids nothing: exp(0) is 1. Use minus infinity",
                ),
                (
                    _down_the_columns,
                    "each row must sum to 1: the softmax runs along a row, dim=-1, not down a column",
                ),
                (
                    lambda scores: [
                        attention_row([x if s >= t else -math.inf for s, x in enumerate(row)], 1)
                        for t, row in enumerate(scores)
                    ],
                    "that is turned round: each token would see its future and not its past",
                ),
            ),
        ),
        Exercise(
            "01.padding_mask",
            1,
            padding_rows,
            (([7, 4], 7), ([1, 3, 2], 3), ([2], 5)),
            ("Place p of a row is text if p is smaller than the row's length.",),
            (
                (
                    lambda lengths, n: [[p >= length for p in range(n)] for length in lengths],
                    "turned round: True is for text here (the masks of PyTorch's modules are the "
                    "other way)",
                ),
                (
                    lambda lengths, n: [[p <= length for p in range(n)] for length in lengths],
                    "off by one: places are counted from 0, so the last text place is length - 1",
                ),
                (
                    lambda lengths, n: [[p >= n - length for p in range(n)] for length in lengths],
                    "that is padding on the left; here it stands after the text",
                ),
            ),
        ),
        Exercise(
            "01.previous_token_score",
            1,
            previous_token_score,
            (
                ([[1.0, 0.0, 0.0], [0.9, 0.1, 0.0], [0.2, 0.7, 0.1]],),
                ([[1, 0, 0, 0], [0.5, 0.5, 0, 0], [0.1, 0.3, 0.6, 0], [0.2, 0.1, 0.3, 0.4]],),
            ),
            ("For query t the previous token is column t - 1. Take t from 2 on, then the mean.",),
            (
                (
                    lambda w: sum(w[t][t - 1] for t in range(1, len(w))) / (len(w) - 1),
                    "nearly: leave query 1 out as well, its previous token is the sink",
                ),
                (
                    lambda w: sum(w[t][t] for t in range(2, len(w))) / (len(w) - 2),
                    "that is each token's weight on itself; the previous one is a column further "
                    "left",
                ),
                (
                    lambda w: sum(w[t - 1][t] for t in range(2, len(w))) / (len(w) - 2),
                    "rows are queries: w[t][t - 1], not w[t - 1][t], which the mask has made 0",
                ),
                (
                    lambda w: sum(w[t][t - 1] for t in range(2, len(w))),
                    "that is the sum; the mean was asked for",
                ),
            ),
        ),
        Exercise(
            "02.shifted_loss",
            2,
            shifted_loss,
            ((_LOG_P, [0, 1, 2]), (_LOG_P, [2, 2, 1]), (_LOG_P[:2], [1, 0])),
            (
                "log_p[0] is the model's guess for tokens[1], not for tokens[0].",
                "The mean of -log_p[t][tokens[t + 1]] over t from 0 to len(tokens) - 2.",
            ),
            (
                (
                    lambda lp, tokens: -sum(lp[t][x] for t, x in enumerate(tokens)) / len(tokens),
                    "the famous one: the output at a position predicts the next token, so the "
                    "labels must be shifted by one",
                ),
                (
                    lambda lp, tokens: -sum(lp[t][x] for t, x in enumerate(tokens[1:])),
                    "shifted rightly; the mean was asked for, this is the sum",
                ),
                (
                    lambda lp, tokens: (
                        sum(lp[t][x] for t, x in enumerate(tokens[1:])) / (len(tokens) - 1)
                    ),
                    "the sign: a loss is the negative log-likelihood",
                ),
                (
                    lambda lp, tokens: (
                        -sum(lp[t][x] for t, x in enumerate(tokens[1:])) / len(tokens)
                    ),
                    "nearly: T tokens have T - 1 predictions, since nothing predicts the first",
                ),
                (
                    lambda lp, tokens: (
                        -sum(lp[t + 1][x] for t, x in enumerate(tokens[:-1])) / (len(tokens) - 1)
                    ),
                    "shifted the wrong way: that asks an output about the token before it",
                ),
                (
                    _log_of_the_mean,
                    "take the mean of the logarithms, not the logarithm of the mean",
                ),
            ),
        ),
        Exercise(
            "02.perplexity",
            1,
            perplexity,
            (([math.log(1 / 8)] * 4,), ([-0.1, -2.0, -3.5],), ([-1.0],)),
            ("Take the mean of the negative logarithms first, then exp().",),
            (
                (
                    lambda lp: sum(math.exp(-x) for x in lp) / len(lp),
                    "the mean comes first: this is the mean of each token's perplexity, which one "
                    "bad token can dominate",
                ),
                (lambda lp: math.exp(-sum(lp)), "divide by the number of tokens before exp()"),
                (
                    lambda lp: math.exp(sum(lp) / len(lp)),
                    "the sign: that is the mean probability, one over the perplexity",
                ),
                (
                    lambda lp: 2 ** (-sum(lp) / len(lp)),
                    "2 to the power goes with logarithms to base 2; these are natural ones",
                ),
                (lambda lp: -sum(lp) / len(lp), "that is the mean loss; perplexity is exp of it"),
            ),
        ),
        Exercise(
            "02.cache_bytes",
            1,
            cache_bytes,
            ((30, 100, 9, 3, 64, 4), (32, 4096, 32, 32, 128, 2), (16, 1, 32, 8, 64, 2)),
            ("A key and a value: how many tensors a layer, and of which shape?",),
            (
                (
                    lambda n, t, h, kv, d, s: 2 * n * t * h * d * s,
                    "only key-value heads are kept; query heads that share one store nothing",
                ),
                (
                    lambda n, t, h, kv, d, s: n * t * kv * d * s,
                    "that is keys or values; both are kept",
                ),
                (
                    lambda n, t, h, kv, d, s: 2 * t * kv * d * s,
                    "that is one layer; each has a cache of its own",
                ),
                (
                    lambda n, t, h, kv, d, s: n * t * (h + 2 * kv) * d * s,
                    "queries are not kept: later tokens need only keys and values",
                ),
            ),
        ),
        Exercise(
            "02.nucleus",
            2,
            nucleus,
            (
                ([0.5, 0.25, 0.15, 0.1], 0.8),
                ([0.1, 0.2, 0.7], 0.5),
                ([0.1, 0.2, 0.7], 1.0),
                ([0.25, 0.5, 0.25 - 2**-10, 2**-10], 0.5),
            ),
            (
                "Go through the tokens from the likeliest on and add up their probabilities.",
                "Stop as soon as the sum has reached p; the token that made it reach p is kept.",
            ),
            (
                (
                    lambda q, p: sorted(
                        i for i in range(len(q)) if sum(x for x in q if x >= q[i]) <= p
                    ),
                    "the token that crosses p is missing; where a single token has more than p, "
                    "your set is empty",
                ),
                (
                    lambda q, p: [i for i in range(len(q)) if sum(q[:i]) < p],
                    "that goes through the tokens as they stand: sort by probability first",
                ),
                (
                    lambda q, p: sorted(nucleus(q, p), key=lambda i: -q[i]),
                    "the right tokens; list them in the order of their numbers",
                ),
            ),
        ),
        Exercise(
            "02.repetition_penalty",
            1,
            penalized,
            (
                ([2.0, -1.0, 0.5, -3.0], [0, 1], 2.0),
                ([1.0, -4.0], [1, 1, 1], 1.5),
                ([3.0, 1.0, -2.0], [], 1.3),
                ([3.0, 2.0], [0, 0], 1.5),
            ),
            (
                "What does dividing -4 by 2 do to it? Is the token less likely then?",
                "Divide a positive logit, multiply a negative one.",
            ),
            (
                (
                    lambda x, seen, p: [v / p if i in seen else v for i, v in enumerate(x)],
                    "as in the first paper: dividing a negative logit makes its token likelier",
                ),
                (
                    lambda x, seen, p: [v - p if i in seen else v for i, v in enumerate(x)],
                    "that is a presence penalty, which subtracts; this one scales",
                ),
                (_penalized_each_time, "once only, however often the token occurred"),
                (
                    lambda x, seen, p: penalized(x, seen, 1 / p),
                    "turned round: that makes seen tokens likelier",
                ),
            ),
        ),
        Exercise(
            "03.rms_norm",
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
                        b * v / (sum(u * u for u in x) + eps) ** 0.5
                        for b, v in zip(w, x, strict=True)
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
            "03.rotate",
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
            "03.shared_heads",
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
            "03.inner_width",
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
            "03.metas_rows",
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
        Exercise(
            "03.training_days",
            1,
            training_days,
            ((1.4e12, 380.0, 2048), (1e9, 1000.0, 1), (86400.0, 1.0, 4)),
            ("All GPUs together make tokens_per_second_per_gpu * gpus. A day has 86,400 seconds.",),
            (
                (lambda t, r, g: t / r / 86_400, "the rate is that of one GPU; there are `gpus`"),
                (lambda t, r, g: t / (r * g), "those are seconds"),
                (lambda t, r, g: t / (r * g) / 3600, "those are hours"),
            ),
        ),
        *QUANTIZATION,
        *EVALUATION,
        *CPU,
        *FLASH,
    ]
}
