"""What lesson 01 measures: banks, sharp softmaxes, heads of a real model, and windows of sight."""

import random
import re
from collections.abc import Callable, Mapping
from itertools import combinations, product

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from llama_int8.course.claims import put_on_trial
from llama_int8.course.heads import (
    attend_with,
    attention_maps,
    weight_on_first,
    weight_on_previous,
)
from llama_int8.data import calibration_text, evaluation_text
from llama_int8.measure.results import Results
from llama_int8.measure.statistics import Spread, mean_interval, spread

# Sentences about the same length, which end with the word that is looked at. Each control is the
# first sentence of a pair in BANKS with another last word.
BANKS = {
    "river": [
        "He sat on the river bank",
        "They swam to the far bank",
        "Reeds grew along the bank",
        "The boat drifted to the bank",
        "The fisherman stood on the bank",
    ],
    "money": [
        "She put money in the bank",
        "He robbed the new savings bank",
        "I took a loan from the bank",
        "My salary goes to the bank",
        "The clerk works at the bank",
    ],
}
OTHER_WORDS = {
    "He sat on the river bank": "He sat on the river bench",
    "They swam to the far bank": "They swam to the far shore",
    "Reeds grew along the bank": "Reeds grew along the wall",
    "She put money in the bank": "She put money in the box",
    "The clerk works at the bank": "The clerk works at the office",
}
# Sentence, subject, object. "It" is the subject in all of them. The head was chosen on none.
PRONOUNS = [
    ("The ship did not reach the harbour because it was too slow.", "ship", "harbour"),
    ("The dog did not chase the ball because it was too old.", "dog", "ball"),
    ("The truck could not pass the bridge because it was too heavy.", "truck", "bridge"),
    ("The bird did not leave the nest because it was too weak.", "bird", "nest"),
    ("The river did not flood the town because it was too low.", "river", "town"),
    ("The cat did not enter the garden because it was too shy.", "cat", "garden"),
    ("The plane did not land at the airport because it was too fast.", "plane", "airport"),
    ("The robot could not open the door because it was too clumsy.", "robot", "door"),
]
REPEATED = (" dog", " house", " the", " seven", " run", " blue")
FIRST_TOKENS = ("\n", ",", " the", "Q", "7", " however", "</", " horse")
KEYS, ROWS = 64, 512  # of the random rows whose softmax gets sharp
TEXTS = 4  # read through a window


def sentence_tokens(tokenizer: PreTrainedTokenizerBase, sentence: str) -> tuple[Tensor, list[str]]:
    """Token ids (1, T), and each token as text. Raises ValueError for fewer than three tokens."""
    input_ids = tokenizer(sentence, return_tensors="pt")["input_ids"]
    words = [tokenizer.decode([i]) for i in input_ids[0].tolist()]
    if len(words) < 3:
        raise ValueError(f"sentence {sentence!r} makes {len(words)} tokens; 3 are needed")
    return input_ids, words


def place_of(tokenizer: PreTrainedTokenizerBase, sentence: str, word: str) -> int:
    """At which token `word` ends, where it first stands in `sentence`. A word may be many tokens."""
    end = re.search(rf"\b{re.escape(word)}\b", sentence).end()
    return len(tokenizer(sentence[:end])["input_ids"]) - 1


def banks(last_word: Callable[[str], Tensor], *senses: str) -> list[Tensor]:
    """`last_word` of every sentence that ends with a bank of these senses; of all without any."""
    return [last_word(text) for sense in senses or BANKS for text in BANKS[sense]]


def bank_rows(last_word: Callable[[str], Tensor]) -> tuple[list[list[str]], float]:
    """Cosine similarities between last words at each place, as mean [least, largest] of the pairs.

    `last_word(text)`: vectors of the last token at some places, (places, C). Also returns the mean
    between a river bank and a money bank at the second place.
    """
    river, money = (banks(last_word, sense) for sense in ("river", "money"))
    pairs = {
        "two banks of rivers": combinations(river, 2),
        "two banks for money": combinations(money, 2),
        "one of each": product(river, money),
        "bank and another word, same sentence": [
            (last_word(bank), last_word(other)) for bank, other in OTHER_WORDS.items()
        ],
    }
    rows, means = [], {}
    for name, vectors in pairs.items():
        found = torch.stack([torch.cosine_similarity(a, b) for a, b in vectors])  # (pairs, places)
        means[name] = found.mean(0)
        columns = [f"{x.mean():.2f} [{x.min():.2f}, {x.max():.2f}]" for x in found.T]
        rows.append([name, len(found), *columns])
    return rows, means["one of each"][1].item()


def size_of_derivatives(p: Tensor) -> Tensor:
    """Size of the derivatives of rows of weights p with respect to the softmax's input.

    The root of the sum of the squares of all entries of diag(p) - p pᵀ.
    """
    square = (p**2).sum(-1) - 2 * (p**3).sum(-1) + (p**2).sum(-1) ** 2
    return square.clamp(min=0).sqrt()


def rows_by_width(
    widths: list[int], generator: torch.Generator
) -> tuple[dict[str, list[Spread]], dict[str, list[Spread]]]:
    """Entropy (bits) and size of the derivatives of ROWS random rows at each width.

    The derivatives are those of the weights with respect to q·k, with the root and without.
    By "q·k" and "q·k / √D": q and k are standard normal, with KEYS keys of its own for each row.
    """
    entropy: dict[str, list[Spread]] = {"q·k": [], "q·k / √D": []}
    slope: dict[str, list[Spread]] = {"q·k": [], "q·k / √D": []}
    for width in widths:
        q = torch.randn(ROWS, 1, width, generator=generator)
        k = torch.randn(ROWS, KEYS, width, generator=generator)
        dots = (q @ k.transpose(-2, -1)).double()  # (ROWS, 1, KEYS)
        for name, divisor in (("q·k", 1.0), ("q·k / √D", width**0.5)):
            p = (dots / divisor).softmax(dim=-1)
            entropy[name].append(spread((-(p * p.clamp(min=1e-300).log2()).sum(-1)).numpy()))
            slope[name].append(spread((size_of_derivatives(p) / divisor).numpy()))
    return entropy, slope


def smaller_without_root(widths: list[int], slope: Mapping[str, list[Spread]]) -> int | None:
    """From which width on the median derivatives are smaller without the root; None for never."""
    start = None
    for width, plain, scaled in zip(widths, slope["q·k"], slope["q·k / √D"], strict=True):
        if plain.median >= scaled.median:
            start = None
        elif start is None:
            start = width
    return start


def root_on_trial(
    results: Results,
    widths: list[int],
    entropy: Mapping[str, list[Spread]],
    slope: Mapping[str, list[Spread]],
) -> None:
    """The suspicion of 2017, from what `rows_by_width` gives; the last width is the largest."""
    for name, values in (("plain", entropy["q·k"]), ("scaled", entropy["q·k / √D"])):
        s = values[-1]
        results.record(f"entropy.{name}.d1024", s.median, "bits", low=s.low, high=s.high, n=s.n)
    plain, scaled = ([s.median for s in slope[name]] for name in ("q·k", "q·k / √D"))
    start = smaller_without_root(widths, slope)
    peak = max(plain)
    put_on_trial(
        results,
        "scaling-keeps-gradients",
        f"Random queries and keys, medians of {ROWS:,} rows: without the root, the derivatives of "
        f"the weights with respect to q·k (the Frobenius norm of their matrix) rise to "
        f"{peak:.2f} at D = {widths[plain.index(peak)]}, then fall to {plain[-1]:.1g} at "
        f"D = {widths[-1]:,}; with the root it is {scaled[-1]:.1g} there.",
        "holds" if start is not None and plain[-1] < peak / 100 else "fails here",
        f"For large D, as it is meant: from D = {start:,} on (of the widths tried) derivatives are "
        f"smaller without the root than with it. Below that they are larger without it."
        if start is not None
        else "At no width tried are derivatives smaller without the root.",
    )


def head_for_pronouns(maps: Tensor, it: int, noun: int) -> tuple[int, int]:
    """Layer and head whose weight on `noun` from `it` stands out most from that of later words."""
    stands_out = maps[:, :, it, noun] - maps[:, :, it + 1 :, noun].mean(dim=-1)
    layer, head = divmod(int(stands_out.argmax()), maps.shape[1])
    return layer, head


def pronoun_weights(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    sentence: str,
    subject: str,
    other_noun: str,
    head: tuple[int, int],
) -> tuple[tuple[float, ...], str]:
    """Weights of one head, in %, and the word other than "it" that gives the subject most.

    The weights: from "it" to the subject; to the subject from the other words after it, mean and
    largest; from "it" to the other noun.
    """
    input_ids, words = sentence_tokens(tokenizer, sentence)
    weights = 100 * attention_maps(model, input_ids)[head]
    it, first, second = (
        place_of(tokenizer, sentence, word) for word in ("it", subject, other_noun)
    )
    others = weights[:, first].clone()
    others[[*range(first + 1), it]] = torch.nan
    largest = int(others.nan_to_num(-1).argmax())
    to_subject = (weights[it, first], others.nanmean(), others[largest])
    found = tuple(x.item() for x in (*to_subject, weights[it, second]))
    return found, words[largest].strip()


def pronoun_head_rows(
    results: Results,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    chosen_on: str,
    head: tuple[int, int],
) -> list[list[str]]:
    """The head on the sentence it was chosen on, and on the others with 95 % intervals; all kept."""
    keys = ("", "_others", "_largest", "_other_noun")
    chosen, word = pronoun_weights(model, tokenizer, chosen_on, "animal", "street", head)
    for key, weight in zip(keys, chosen, strict=True):
        results.record(f"pronoun.chosen{key}", weight, "%")
    row = [f"{weight:.0f} %" for weight in chosen]
    row[2] += f' ("{word}")'
    found = torch.tensor([pronoun_weights(model, tokenizer, *case, head)[0] for case in PRONOUNS])
    means, differences = [], ['"it" minus that, 95 %', ""]
    for key, values in zip(keys, found.T, strict=True):
        mean, low, high = mean_interval(values.numpy())
        results.record(f"pronoun.other{key}", mean, "%", low=low, high=high, n=len(values))
        means.append(f"{mean:.0f} %")
        if key:
            mean, low, high = mean_interval((found[:, 0] - values).numpy())
            differences.append(f"{mean:+.0f} [{low:+.0f}, {high:+.0f}]")
    return [
        ["the one it was chosen on", *row],
        [f"{len(found)} others, mean", *means],
        differences,
    ]


def head_texts(
    tokenizer: PreTrainedTokenizerBase, length: int, vocabulary: int
) -> dict[str, list[list[int]]]:
    """Rows of `length` token ids on which a head is tried; the first text is for choosing it."""
    draw = random.Random(0)
    chosen_on = tokenizer(calibration_text())["input_ids"]
    others = tokenizer(evaluation_text())["input_ids"]
    step = len(others) // 6
    words = [tokenizer(word)["input_ids"][-1] for word in REPEATED]
    pairs = zip(words[-1:] + words, words, strict=False)  # each word after the one before it
    return {
        "first text": [chosen_on[:length]],
        "other texts": [others[n * step : n * step + length] for n in range(6)],
        "random tokens": [[draw.randrange(vocabulary) for _ in range(length)] for _ in range(6)],
        "one token repeated": [[word] * length for word in words],
        "another token, then one repeated": [
            [first] + [word] * (length - 1) for first, word in pairs
        ],
    }


def head_rows(
    results: Results,
    previous: Mapping[str, Tensor],
    first: Mapping[str, Tensor],
    head: tuple[int, int],
    length: int,
) -> list[list[str]]:
    """Weight on the previous token in one head, and on the first in all; mean [least, largest].

    `previous`, `first`: (rows, layers, H) for each kind of text. The means are kept in `results`.
    """
    kept_as = {"other texts": "second_text"}
    rows = []
    for name in previous:
        key = kept_as.get(name, re.sub(r"\W+", "_", name))
        row = [name, len(previous[name])]
        for what, values in (
            ("previous_token_head", 100 * previous[name][:, *head]),
            ("sink", 100 * first[name].mean(dim=(-2, -1))),
        ):
            low, mean, high = (f(values).item() for f in (torch.min, torch.mean, torch.max))
            results.record(f"{what}.{key}", mean, "%", low=low, high=high, n=len(values))
            between = f" [{low:.0f}, {high:.0f}]" if len(values) > 1 else ""
            row.append(f"{mean:.0f} %{between}")
        rows.append(row)
    even = even_weights(length)
    shares = [100 * of(even).item() for of in (weight_on_previous, weight_on_first)]
    return [*rows, ["equal weights would give", "", *(f"{share:.0f} %" for share in shares)]]


def pair_rows(
    tokenizer: PreTrainedTokenizerBase,
    rows: list[list[int]],
    previous: Tensor,
    first: Tensor,
    head: tuple[int, int],
) -> list[list[str]]:
    """Each row of "another token, then one repeated" by itself: the weights of `head_rows`, in %."""
    columns = 100 * previous[:, *head], 100 * first.mean(dim=(-2, -1))
    named = [" then ".join(f"`{tokenizer.decode([i])!r}`" for i in row[:2]) for row in rows]
    return [
        [name, *(f"{weight:.0f} %" for weight in weights)]
        for name, *weights in zip(named, *columns, strict=True)
    ]


def even_weights(length: int) -> Tensor:
    """The map of a causal head that makes no difference between the tokens it sees, (T, T)."""
    return torch.ones(length, length).tril() / torch.arange(1, length + 1)[:, None]


def sink_on_trial(
    results: Results,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    text: list[int],
    all_the_same: Tensor,
) -> None:
    """Other first tokens before one text; `all_the_same`: weights on the first of equal tokens."""
    sinks = []
    for start in FIRST_TOKENS:
        row = [tokenizer(start)["input_ids"][-1], *text[1:]]
        sinks.append(weight_on_first(attention_maps(model, torch.tensor([row]))).mean().item())
    even = weight_on_first(even_weights(len(text))).item()
    same = all_the_same.mean().item()
    put_on_trial(
        results,
        "sink-whatever-the-token",
        f"Mean weight on the first token over all heads: {min(sinks):.0%} to {max(sinks):.0%} with "
        f"{len(sinks)} different first tokens, {same:.0%} where all tokens are the same; equal "
        f"weights would give {even:.0%}.",
        "holds" if min(sinks) > 2 * even else "fails here",
        f"For the {len(sinks)} first tokens tried before one text the share is at least "
        f"{min(sinks):.0%}; it needs other tokens after the first, since among equal tokens it is "
        f"{same:.0%}.",
    )


def shuffled_pasts(x: Tensor, number: int, generator: torch.Generator) -> list[Tensor]:
    """Copies of x (1, T, C) in which all tokens but the last have changed places at random."""
    past = x.shape[1] - 1
    orders = [torch.randperm(past, generator=generator).tolist() for _ in range(number)]
    return [x[:, [*order, past]] for order in orders]


def window_texts(tokenizer: PreTrainedTokenizerBase, length: int) -> Tensor:
    """TEXTS pieces of `length` tokens, (texts, T), spread over the course's evaluation text."""
    tokens = tokenizer(evaluation_text())["input_ids"]
    length = min(length, len(tokens))
    step = max(1, (len(tokens) - length) // (TEXTS - 1))
    return torch.tensor([tokens[n * step :][:length] for n in range(TEXTS)])


def one_token_in_sight(mask: Tensor, place: int) -> Tensor:
    """The mask (T, T) with one more token that it and all later ones see."""
    mask = mask.clone()
    mask[place:, place] = True
    return mask


def losses_with(
    model: PreTrainedModel, texts: Tensor, attention: Callable[..., Tensor], mask: Tensor
) -> Tensor:
    """Mean loss on the second half of each text, nats per token, (texts,), seen through `mask`."""
    half, mask = texts.shape[1] // 2, mask.to(model.device)
    losses = []
    with torch.inference_mode(), attend_with(model, lambda q, k, v, _: attention(q, k, v, mask)):
        for text in texts.to(model.device):
            out = model(text[None], use_cache=False, logits_to_keep=len(text) - half)
            logits = out.logits[0, :-1].float()
            losses.append(nn.functional.cross_entropy(logits, text[half + 1 :]).item())
    return torch.tensor(losses)


def window_rows(results: Results, losses: Mapping[str, Tensor], length: int) -> list[list[str]]:
    """Mean loss through each mask, and the share of the damage that it repairs, by text.

    `losses`: (texts,) each; the first is that of full sight, the second the bare window's. The ones
    that the report names are kept.
    """
    full, bare = list(losses.values())[:2]
    rows = []
    for name, loss in losses.items():
        repaired = 100 * (bare - loss) / (bare - full)
        mean, low, high = (round(f(repaired).item()) for f in (torch.mean, torch.min, torch.max))
        share = f"{mean} % [{low}, {high}]"  # whole numbers: a format would print -0
        rows.append([name, f"{loss.mean():.2f}", share])
    n = len(full)
    ends = {"n": n * (length - length // 2 - 1)}
    results.record("window.full", full.mean().item(), "nats", **ends)
    for sinks, name in ((0, list(losses)[1]), (1, "and the first token"), (4, "and the first 4")):
        results.record(f"window.{sinks}_sinks", losses[name].mean().item(), "nats", **ends)
    return rows


def first_tokens_needed(losses: Mapping[str, Tensor]) -> int | str:
    """The fewest first tokens in sight that repair more than half of the window's damage."""
    full, bare = (loss.mean() for loss in list(losses.values())[:2])
    for number, name in (
        (1, "and the first token"),
        (2, "and the first 2"),
        (4, "and the first 4"),
    ):
        if bare - losses[name].mean() > (bare - full) / 2:
            return number
    return "more than 4"
