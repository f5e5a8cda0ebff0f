"""The exercises of lesson 08: references, cases, hints and known mistakes."""

import torch
from scipy import stats

from llama_int8.course.exercises import check, exercise, hint, solution

__all__ = ["check", "hint", "solution"]


@exercise(
    "08.longest_context",
    points=1,
    cases=[(15_837_691_904, 13_990_000_000, 524_288, 131_848), (100, 200, 1, 1), (1_007, 0, 7, 3)],
    hints=[
        "What is left beside the fixed bytes, shared out in pieces of one token each.",
        "Only whole tokens, and never fewer than none: max(0, ... // ...).",
    ],
)
def longest_context(free: int, fixed: int, cache_per_token: int, rest_per_token: int) -> int:
    """Tokens whose cache and activations fit beside what is fixed; 0 if nothing does."""
    return max(0, (free - fixed) // (cache_per_token + rest_per_token))


longest_context.mistake(
    "a card that is too small even for the weights holds 0 tokens, not fewer",
    lambda free, fixed, cache, rest: (free - fixed) // (cache + rest),
)
longest_context.mistake(
    "a part of a token does not fit; only whole ones count",
    lambda free, fixed, cache, rest: max(0, (free - fixed) / (cache + rest)),
)
longest_context.mistake(
    "each token of the prompt takes activations as well as cache",
    lambda free, fixed, cache, rest: max(0, (free - fixed) // cache),
)
longest_context.mistake(
    "the last token must fit whole: round down",
    lambda free, fixed, cache, rest: max(0, round((free - fixed) / (cache + rest))),
)


@exercise(
    "08.scored_tokens",
    points=2,
    cases=[(10, 4, 2), (10, 4, 4), (3, 4, 2), (11, 4, 3)],
    hints=[
        "Window n starts at token n * stride; one that would run over the end is left out.",
        "Of a window from start to start + length, the last `stride` tokens are scored.",
    ],
)
def scored_tokens(count: int, length: int, stride: int) -> list[tuple[int, int]]:
    """Of each full window the last `stride` tokens."""
    starts = range(0, count - length + 1, stride)
    return [(start + length - stride, start + length) for start in starts]


@scored_tokens.mistake("those are the windows; neighbouring ones would score the same tokens twice")
def _whole_windows(count: int, length: int, stride: int) -> list[tuple[int, int]]:
    return [(s, s + length) for s in range(0, count - length + 1, stride)]


@scored_tokens.mistake(
    "the first tokens of a window have the least before them; score its last ones"
)
def _first_tokens(count: int, length: int, stride: int) -> list[tuple[int, int]]:
    return [(s, s + stride) for s in range(0, count - length + 1, stride)]


@scored_tokens.mistake("nearly: a window that ends just with the text is full, too")
def _without_the_last(count: int, length: int, stride: int) -> list[tuple[int, int]]:
    return [(s + length - stride, s + length) for s in range(0, count - length, stride)]


scored_tokens.mistake(
    "nearly: the end is not counted in, so it is one more than the last scored token",
    lambda count, length, stride: [
        (first, end - 1) for first, end in scored_tokens(count, length, stride)
    ],
)

_GENERATOR = torch.Generator().manual_seed(8)


def _logits(tokens: int, vocabulary: int, shift: float = 0.0) -> torch.Tensor:
    return torch.randn(tokens, vocabulary, generator=_GENERATOR) * 3 + shift


@exercise(
    "08.answer_log_likelihood",
    points=3,
    cases=[
        (_logits(6, 11, 2.0), torch.tensor([3, 1, 4, 1, 5, 9]), 3),
        (_logits(4, 7), torch.tensor([0, 6, 2, 2]), 1),
        (_logits(5, 7, -40.0), torch.tensor([1, 2, 3, 4, 5]), 4),
    ],
    hints=[
        "logits[i] is about the token after i. So the answer's tokens, input_ids[prompt_len:], are "
        "predicted by logits[prompt_len - 1 : -1].",
        "log_p = logits[prompt_len - 1 : -1].log_softmax(-1) has a row for each token of the answer. "
        "Take one number of each row: log_p[range(len(answer)), answer], and add them up.",
    ],
    rtol=1e-4,
)
def answer_log_likelihood(logits, input_ids, prompt_len):
    """What the model gives the tokens of the answer, in nats; logits (T, V), input_ids (T,)."""
    answer = input_ids[prompt_len:]
    log_p = logits[prompt_len - 1 : -1].float().log_softmax(dim=-1)  # (answer, V)
    return log_p[range(len(answer)), answer].sum()


answer_log_likelihood.mistake(
    "those are raw logits; a constant added to all of them changes no probability, and changes your "
    "sum: take log_softmax first",
    lambda logits, ids, n: logits[n - 1 : -1][range(len(ids) - n), ids[n:]].sum(),
)
answer_log_likelihood.mistake(
    "each token is scored by the logits at its own place, which have seen it; those one place before "
    "predict it",
    lambda logits, ids, n: logits[n:].log_softmax(-1)[range(len(ids) - n), ids[n:]].sum(),
)
answer_log_likelihood.mistake(
    "that scores the question as well; the answer begins at prompt_len",
    lambda logits, ids, n: logits[:-1].log_softmax(-1)[range(len(ids) - 1), ids[1:]].sum(),
)
answer_log_likelihood.mistake(
    "that adds up the whole vocabulary; of each row take the number of the token that stands there",
    lambda logits, ids, n: logits[n - 1 : -1].log_softmax(-1).sum(),
)
answer_log_likelihood.mistake(
    "nearly: that is the mean per token; the sum was asked for",
    lambda logits, ids, n: answer_log_likelihood(logits, ids, n) / (len(ids) - n),
)
answer_log_likelihood.mistake(
    "nearly: that is a loss, which is smaller for a better answer; the log-likelihood has the other "
    "sign",
    lambda logits, ids, n: -answer_log_likelihood(logits, ids, n),
)

_HALF = torch.float16


@exercise(
    "08.published_answer",
    points=2,
    cases=[
        (torch.ones(2, 3, dtype=_HALF), torch.full((2, 3), 2.0, dtype=_HALF)),
        (torch.full((2, 3), 2.0, dtype=_HALF), torch.ones(2, 3, dtype=_HALF)),
        (torch.ones(2, 3, dtype=_HALF), torch.ones(2, 3, dtype=_HALF)),
        (torch.full((2, 3), 2.0, dtype=_HALF), torch.ones(5, 3, dtype=_HALF)),
        (torch.full((300, 200), 9.0, dtype=_HALF), torch.full((300, 200), 3.0, dtype=_HALF)),
    ],
    hints=[
        "The rule: a score is the sum of all logits, in their own format. Answer 1 needs the larger "
        "score; everything else is answer 2.",
        "return 1 if first.sum() > second.sum() else 2",
    ],
)
def published_answer(first, second):
    """1 or 2: the answer whose logits (T, V) add up to more, and 2 where the first is not larger."""
    return 1 if first.sum() > second.sum() else 2


published_answer.mistake(
    "a sum in FP32 does not overflow: keep the format of the logits, as the published code did",
    lambda first, second: 1 if first.float().sum() > second.float().sum() else 2,
)
published_answer.mistake(
    "nearly: where both sums are equal, the published code answers 2",
    lambda first, second: 1 if first.sum() >= second.sum() else 2,
)
published_answer.mistake(
    "the answers are numbered 1 and 2",
    lambda first, second: 0 if first.sum() > second.sum() else 1,
)
published_answer.mistake(
    "the other way round: the larger sum wins",
    lambda first, second: 1 if first.sum() < second.sum() else 2,
)
published_answer.mistake(
    "the sum was asked for, not the mean: two answers have different numbers of tokens",
    lambda first, second: 1 if first.float().mean() > second.float().mean() else 2,
)


@exercise(
    "08.flip_p_value",
    points=2,
    cases=[(0, 6), (6, 0), (3, 3), (0, 0), (8, 2), (30, 22)],
    hints=[
        "If neither is better, each flip is a coin toss. How likely are so few heads?",
        "Add comb(n, k) for k from 0 to the smaller count, over 2**n, and double it.",
        "Twice a tail that holds the middle can exceed 1; a probability cannot.",
    ],
)
def flip_p_value(lost: int, won: int) -> float:
    """Twice the probability of so few heads, or fewer, in lost + won tosses of a fair coin."""
    import math

    tosses = lost + won
    tail = sum(math.comb(tosses, heads) for heads in range(min(lost, won) + 1))
    return min(1.0, 2 * tail / 2**tosses)


@flip_p_value.mistake("that is one side; nobody said beforehand which precision would win")
def _one_sided(lost: int, won: int) -> float:
    return flip_p_value(lost, won) / 2 if lost != won else flip_p_value(lost, won)


@flip_p_value.mistake("so few *or fewer*: add up the whole tail")
def _at_exactly(lost: int, won: int) -> float:
    import math

    return min(1.0, 2 * math.comb(lost + won, min(lost, won)) / 2 ** (lost + won))


@flip_p_value.mistake("twice a tail that holds the middle can exceed 1; a probability cannot")
def _beyond_one(lost: int, won: int) -> float:
    import math

    tail = sum(math.comb(lost + won, heads) for heads in range(min(lost, won) + 1))
    return 2 * tail / 2 ** (lost + won)


@flip_p_value.mistake("the tail ends with the smaller count itself; range(k) ends at k - 1")
def _one_early(lost: int, won: int) -> float:
    import math

    tail = sum(math.comb(lost + won, heads) for heads in range(min(lost, won)))
    return min(1.0, 2 * tail / 2 ** (lost + won))


@exercise(
    "08.fastest_decode",
    points=1,
    cases=[(13.2e9, 320e9), (2.0, 1.0), (6.7e9, 320e9)],
    hints=["Each token reads all weights once. How often can they be read in a second?"],
)
def fastest_decode(bytes_read: float, bandwidth: float) -> float:
    """Tokens per second if reading the weights were all the work."""
    return bandwidth / bytes_read


fastest_decode.mistake(
    "that is seconds for a token; tokens per second are the reciprocal",
    lambda bytes_read, bandwidth: bytes_read / bandwidth,
)


@exercise(
    "08.fixed_cost_per_layer",
    points=2,
    cases=[(6.77, 47.4, 224), (10.0, 20.0, 5), (16.58, 24.2, 224)],
    hints=[
        "Seconds per token are 1 / speed; those that the bytes need are 1 / bound.",
        "What is left of them, shared out over the layers.",
    ],
)
def fixed_cost_per_layer(speed, bound, layers):
    """Seconds per token and layer that reading bytes does not explain; both speeds in tokens/s."""
    return (1 / speed - 1 / bound) / layers


fixed_cost_per_layer.mistake(
    "nearly: seconds per token; share them out over the layers",
    lambda speed, bound, layers: 1 / speed - 1 / bound,
)
fixed_cost_per_layer.mistake(
    "nearly: that is all of a token's time; take off what reading the bytes needs, 1 / bound",
    lambda speed, bound, layers: 1 / speed / layers,
)
fixed_cost_per_layer.mistake(
    "a difference of two speeds is no time: take seconds per token, 1 / speed and 1 / bound",
    lambda speed, bound, layers: (bound - speed) / layers,
)
fixed_cost_per_layer.mistake(
    "nearly: the other sign; the measured time is the longer one",
    lambda speed, bound, layers: (1 / bound - 1 / speed) / layers,
)

_DIFFERENCES = (([0.1, 0.3, 0.2, 0.4],), ([-1.0, 1.0],), ([0.02, 0.05, -0.01, 0.03, 0.01],))


@exercise(
    "08.interval",
    points=2,
    cases=_DIFFERENCES,
    hints=[
        "The standard error of a mean is the standard deviation over the square root of n.",
        "Divide the squared deviations by n - 1, and the variance once more by n. How many standard "
        "errors lie to each side says t.ppf(0.975, n - 1).",
    ],
)
def mean_difference_interval(differences: list[float]) -> tuple[float, float]:
    """Mean minus and plus as many standard errors as Student's t asks for n values."""
    from scipy.stats import t

    n = len(differences)
    mean = sum(differences) / n
    variance = sum((d - mean) ** 2 for d in differences) / (n - 1)
    reach = t.ppf(0.975, n - 1) * (variance / n) ** 0.5
    return mean - reach, mean + reach


def _deviation(values: list[float], ddof: int) -> float:
    mean = sum(values) / len(values)
    return (sum((v - mean) ** 2 for v in values) / (len(values) - ddof)) ** 0.5


def _around(values: list[float], half: float) -> tuple[float, float]:
    mean = sum(values) / len(values)
    return mean - half, mean + half


def _t(values: list[float]) -> float:
    return float(stats.t.ppf(0.975, len(values) - 1))


mean_difference_interval.mistake(
    "that is where single windows lie; the mean of n windows varies less, by the square root of n",
    lambda d: _around(d, _t(d) * _deviation(d, 1)),
)
mean_difference_interval.mistake(
    "nearly: the variance of a sample divides by n - 1, not by n",
    lambda d: _around(d, _t(d) * _deviation(d, 0) / len(d) ** 0.5),
)
mean_difference_interval.mistake(
    "nearly: 1.96 is for very many values; so few need t.ppf(0.975, n - 1)",
    lambda d: _around(d, 1.96 * _deviation(d, 1) / len(d) ** 0.5),
)
mean_difference_interval.mistake(
    "that is the mean and half of the width; the two ends were asked for",
    lambda d: (sum(d) / len(d), _t(d) * _deviation(d, 1) / len(d) ** 0.5),
)
