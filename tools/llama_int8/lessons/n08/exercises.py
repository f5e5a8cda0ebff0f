"""The exercises of lesson 08: references, cases, hints and known mistakes."""

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

_CHOICES = (
    ([-8.0, -9.0], ["a kettle", "an old paper bag"]),
    ([-30.0, -12.0], ["Use a knife with a long and even blade.", "Use a spoon."]),
    ([-6.0, -6.6], ["a cat", "a hippopotamus"]),
    ([-2.0, -20.0, -9.0], ["a kettle", "a paper bag", "a spoon"]),
)


@exercise(
    "08.length_normalized",
    points=1,
    cases=_CHOICES,
    hints=["Divide each log-likelihood by the length of its choice, and take the largest."],
)
def length_normalized(log_likelihoods: list[float], choices: list[str]) -> int:
    """The choice with the highest log-likelihood for each character."""
    per_character = [s / len(c) for s, c in zip(log_likelihoods, choices, strict=True)]
    return per_character.index(max(per_character))


length_normalized.mistake(
    "that is `acc`: a longer choice has more tokens to lose likelihood on",
    lambda scores, choices: scores.index(max(scores)),
)


@length_normalized.mistake("for each character, not for each word")
def _by_words(scores: list[float], choices: list[str]) -> int:
    per_word = [s / len(c.split()) for s, c in zip(scores, choices, strict=True)]
    return per_word.index(max(per_word))


@length_normalized.mistake("log-likelihoods are negative: the likeliest is the largest")
def _least_likely(scores: list[float], choices: list[str]) -> int:
    per_character = [s / len(c) for s, c in zip(scores, choices, strict=True)]
    return per_character.index(min(per_character))


length_normalized.mistake(
    "that is the best score; the number of the choice was asked for",
    lambda scores, choices: max(s / len(c) for s, c in zip(scores, choices, strict=True)),
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

_DIFFERENCES = (([0.1, 0.3, 0.2, 0.4],), ([-1.0, 1.0],), ([0.02, 0.05, -0.01, 0.03, 0.01],))


@exercise(
    "08.interval",
    points=2,
    cases=_DIFFERENCES,
    hints=[
        "The standard error of a mean is the standard deviation over the square root of n.",
        "Divide the squared deviations by n - 1, and the variance once more by n.",
    ],
)
def mean_difference_interval(differences: list[float]) -> tuple[float, float]:
    """Mean minus and plus 1.96 standard errors."""
    n = len(differences)
    mean = sum(differences) / n
    variance = sum((d - mean) ** 2 for d in differences) / (n - 1)
    half = 1.96 * (variance / n) ** 0.5
    return mean - half, mean + half


def _deviation(values: list[float], ddof: int) -> float:
    mean = sum(values) / len(values)
    return (sum((v - mean) ** 2 for v in values) / (len(values) - ddof)) ** 0.5


mean_difference_interval.mistake(
    "that is where single windows lie; the mean of n windows varies less, by the square root of n",
    lambda d: (
        sum(d) / len(d) - 1.96 * _deviation(d, 1),
        sum(d) / len(d) + 1.96 * _deviation(d, 1),
    ),
)
mean_difference_interval.mistake(
    "nearly: the variance of a sample divides by n - 1, not by n",
    lambda d: (
        sum(d) / len(d) - 1.96 * _deviation(d, 0) / len(d) ** 0.5,
        sum(d) / len(d) + 1.96 * _deviation(d, 0) / len(d) ** 0.5,
    ),
)
mean_difference_interval.mistake(
    "that is the mean and half of the width; the two ends were asked for",
    lambda d: (sum(d) / len(d), 1.96 * _deviation(d, 1) / len(d) ** 0.5),
)
