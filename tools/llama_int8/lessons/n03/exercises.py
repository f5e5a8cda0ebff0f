"""The exercises of lesson 03: references, cases, hints and known mistakes."""

import math

from llama_int8.course.exercises import check, exercise, hint, solution

__all__ = ["check", "hint", "solution"]

_LOG_P = [
    [math.log(x) for x in row] for row in ([0.7, 0.2, 0.1], [0.1, 0.6, 0.3], [0.25, 0.25, 0.5])
]


@exercise(
    "03.shifted_loss",
    points=2,
    cases=[(_LOG_P, [0, 1, 2]), (_LOG_P, [2, 2, 1]), (_LOG_P[:2], [1, 0])],
    hints=[
        "log_p[0] is the model's guess for tokens[1], not for tokens[0].",
        "The mean of -log_p[t][tokens[t + 1]] over t from 0 to len(tokens) - 2.",
    ],
)
def shifted_loss(log_p: list[list[float]], tokens: list[int]) -> float:
    """Mean of -log p of each token after the first, predicted one position before it."""
    surprise = [-log_p[t][token] for t, token in enumerate(tokens[1:])]
    return sum(surprise) / len(surprise)


shifted_loss.mistake(
    "the famous one: the output at a position predicts the next token, so the "
    "labels must be shifted by one",
    lambda lp, tokens: -sum(lp[t][x] for t, x in enumerate(tokens)) / len(tokens),
)
shifted_loss.mistake(
    "shifted rightly; the mean was asked for, this is the sum",
    lambda lp, tokens: -sum(lp[t][x] for t, x in enumerate(tokens[1:])),
)
shifted_loss.mistake(
    "the sign: a loss is the negative log-likelihood",
    lambda lp, tokens: sum(lp[t][x] for t, x in enumerate(tokens[1:])) / (len(tokens) - 1),
)
shifted_loss.mistake(
    "nearly: T tokens have T - 1 predictions, since nothing predicts the first",
    lambda lp, tokens: -sum(lp[t][x] for t, x in enumerate(tokens[1:])) / len(tokens),
)
shifted_loss.mistake(
    "shifted the wrong way: that asks an output about the token before it",
    lambda lp, tokens: -sum(lp[t + 1][x] for t, x in enumerate(tokens[:-1])) / (len(tokens) - 1),
)


@shifted_loss.mistake("take the mean of the logarithms, not the logarithm of the mean")
def _log_of_the_mean(log_p: list[list[float]], tokens: list[int]) -> float:
    probabilities = [math.exp(log_p[t][token]) for t, token in enumerate(tokens[1:])]
    return -math.log(sum(probabilities) / len(probabilities))


@exercise(
    "03.perplexity",
    points=1,
    cases=[([math.log(1 / 8)] * 4,), ([-0.1, -2.0, -3.5],), ([-1.0],)],
    hints=["Take the mean of the negative logarithms first, then exp()."],
)
def perplexity(log_probabilities: list[float]) -> float:
    """exp of the mean negative log-probability."""
    import math

    return math.exp(-sum(log_probabilities) / len(log_probabilities))


perplexity.mistake(
    "the mean comes first: this is the mean of each token's perplexity, which one "
    "bad token can dominate",
    lambda lp: sum(math.exp(-x) for x in lp) / len(lp),
)
perplexity.mistake("divide by the number of tokens before exp()", lambda lp: math.exp(-sum(lp)))
perplexity.mistake(
    "the sign: that is the mean probability, one over the perplexity",
    lambda lp: math.exp(sum(lp) / len(lp)),
)
perplexity.mistake(
    "2 to the power goes with logarithms to base 2; these are natural ones",
    lambda lp: 2 ** (-sum(lp) / len(lp)),
)
perplexity.mistake("that is the mean loss; perplexity is exp of it", lambda lp: -sum(lp) / len(lp))


@exercise(
    "03.cache_bytes",
    points=1,
    cases=[(30, 100, 9, 3, 64, 4), (32, 4096, 32, 32, 128, 2), (16, 1, 32, 8, 64, 2)],
    hints=["A key and a value: how many tensors a layer, and of which shape?"],
)
def cache_bytes(
    layers: int, tokens: int, heads: int, kv_heads: int, head_dim: int, size: int
) -> int:
    """A key and a value for each layer, token and key-value head."""
    return 2 * layers * tokens * kv_heads * head_dim * size


cache_bytes.mistake(
    "only key-value heads are kept; query heads that share one store nothing",
    lambda n, t, h, kv, d, s: 2 * n * t * h * d * s,
)
cache_bytes.mistake(
    "that is keys or values; both are kept", lambda n, t, h, kv, d, s: n * t * kv * d * s
)
cache_bytes.mistake(
    "that is one layer; each has a cache of its own", lambda n, t, h, kv, d, s: 2 * t * kv * d * s
)
cache_bytes.mistake(
    "queries are not kept: later tokens need only keys and values",
    lambda n, t, h, kv, d, s: n * t * (h + 2 * kv) * d * s,
)


@exercise(
    "03.nucleus",
    points=2,
    cases=[
        ([0.5, 0.25, 0.15, 0.1], 0.8),
        ([0.1, 0.2, 0.7], 0.5),
        ([0.1, 0.2, 0.7], 1.0),
        ([0.25, 0.5, 0.25 - 2**-10, 2**-10], 0.5),
    ],
    hints=[
        "Go through the tokens from the likeliest on and add up their probabilities.",
        "Stop as soon as the sum has reached p; the token that made it reach p is kept.",
    ],
)
def nucleus(probabilities: list[float], p: float) -> list[int]:
    """The likeliest tokens up to and with the one at which their sum reaches p."""
    kept, total = [], 0.0
    for token in sorted(range(len(probabilities)), key=lambda i: -probabilities[i]):
        if total >= p:
            break
        kept.append(token)
        total += probabilities[token]
    return sorted(kept)


nucleus.mistake(
    "the token that crosses p is missing; where a single token has more than p, your set is empty",
    lambda q, p: sorted(i for i in range(len(q)) if sum(x for x in q if x >= q[i]) <= p),
)
nucleus.mistake(
    "that goes through the tokens as they stand: sort by probability first",
    lambda q, p: [i for i in range(len(q)) if sum(q[:i]) < p],
)
nucleus.mistake(
    "the right tokens; list them in the order of their numbers",
    lambda q, p: sorted(nucleus(q, p), key=lambda i: -q[i]),
)


@exercise(
    "03.repetition_penalty",
    points=1,
    cases=[
        ([2.0, -1.0, 0.5, -3.0], [0, 1], 2.0),
        ([1.0, -4.0], [1, 1, 1], 1.5),
        ([3.0, 1.0, -2.0], [], 1.3),
        ([3.0, 2.0], [0, 0], 1.5),
    ],
    hints=[
        "What does dividing -4 by 2 do to it? Is the token less likely then?",
        "Divide a positive logit, multiply a negative one.",
    ],
)
def penalized(logits: list[float], seen: list[int], penalty: float) -> list[float]:
    """Seen tokens: a positive logit divided, a negative one multiplied."""
    return [
        (x * penalty if x < 0 else x / penalty) if token in seen else x
        for token, x in enumerate(logits)
    ]


penalized.mistake(
    "as in the first paper: dividing a negative logit makes its token likelier",
    lambda x, seen, p: [v / p if i in seen else v for i, v in enumerate(x)],
)
penalized.mistake(
    "that is a presence penalty, which subtracts; this one scales",
    lambda x, seen, p: [v - p if i in seen else v for i, v in enumerate(x)],
)


@penalized.mistake("once only, however often the token occurred")
def _penalized_each_time(logits: list[float], seen: list[int], penalty: float) -> list[float]:
    for token in seen:
        logits = penalized(logits, [token], penalty)
    return logits


penalized.mistake(
    "turned round: that makes seen tokens likelier", lambda x, seen, p: penalized(x, seen, 1 / p)
)
