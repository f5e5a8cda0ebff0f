"""What lesson 03 uses without showing it: the cache's other methods, heads cut out, stories."""

import random
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from statistics import median
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure
from torch import Tensor
from torch.nn import functional as F
from transformers import (
    DynamicCache,
    GPT2Config,
    GPT2LMHeadModel,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.generation import logits_process

from llama_int8.course.claims import put_on_trial
from llama_int8.course.tables import show_table
from llama_int8.lessons.n03 import figures
from llama_int8.measure.latency import interleaved
from llama_int8.measure.results import Results
from llama_int8.measure.statistics import (
    Spread,
    mean_interval,
    paired_bootstrap,
    proportion_interval,
    spread,
)

PEOPLE = ("Mara", "Otto", "Lena", "Ivan", "Nora", "Paul", "Rosa", "Emil", "Ada")


class CacheBase:
    """What Hugging Face's LLaMA asks of a cache besides `update`, and its size.

    A subclass fills `keys` and `values`, buffers (B, H_kv, room, D) by layer, and `lengths`, the
    tokens that they hold.
    """

    def __init__(self) -> None:
        self.keys: dict[int, Tensor] = {}
        self.values: dict[int, Tensor] = {}
        self.lengths: dict[int, int] = {}

    @property
    def length(self) -> int:
        """Tokens that every layer holds; during a pass the first layers are ahead."""
        return min(self.lengths.values(), default=0)

    @property
    def nbytes(self) -> int:
        """Bytes of all buffers, whether filled or not."""
        return sum(t.nbytes for t in (*self.keys.values(), *self.values.values()))

    def forget_after(self, length: int) -> None:
        """Go back to the first `length` tokens; what follows will overwrite the rest."""
        self.lengths = dict.fromkeys(self.lengths, length)

    def share(self, copies: int) -> None:
        """Repeat the batch, block by block, so that several texts go on from one beginning."""
        for buffers in (self.keys, self.values):
            for layer, held in buffers.items():
                buffers[layer] = held.repeat(copies, 1, 1, 1)

    def keep_first(self) -> None:
        """Only the first row's keys and values."""
        for buffers in (self.keys, self.values):
            for layer, held in buffers.items():
                buffers[layer] = held[:1]

    def get_seq_length(self, layer_idx: int = 0) -> int:
        """Tokens that a layer holds (Hugging Face's name)."""
        return self.lengths.get(layer_idx, 0)

    get_query_offset = get_seq_length

    def get_mask_sizes(self, query_length: int, layer_idx: int = 0) -> tuple[int, int]:
        """Keys in the next pass, and the position of the first one (Hugging Face's name)."""
        return self.get_seq_length(layer_idx) + query_length, 0


def lists_said_twice(rng: random.Random, count: int, length: int, vocab_size: int) -> Tensor:
    """Random lists of tokens, each followed by itself, (count, 2 * length).

    The first tokens of a vocabulary are left out, since they are single characters or markers.
    """
    lowest = min(1000, vocab_size // 2)
    rows = [[rng.randrange(lowest, vocab_size) for _ in range(length)] for _ in range(count)]
    return torch.tensor(rows).repeat(1, 2)


@contextmanager
def without(
    model: PreTrainedModel, heads: Collection[tuple[int, int]], mean: bool = False
) -> Iterator[None]:
    """Within the block, the outputs of these heads, (layer, head) each, are zero.

    `mean`: they are the mean over all positions of the text instead.
    """
    by_layer: dict[int, list[int]] = {}
    for layer, head in heads:
        by_layer.setdefault(layer, []).append(head)

    def cut(mixed: Tensor, layer: int) -> None:  # (B, T, H, D), changed in place
        chosen = mixed[:, :, by_layer[layer]]
        mixed[:, :, by_layer[layer]] = chosen.mean(dim=1, keepdim=True) if mean else 0

    with _heads_changed(model, by_layer, cut):
        yield


@contextmanager
def _heads_changed(
    model: PreTrainedModel, layers: Collection[int], change: Callable[[Tensor, int], None]
) -> Iterator[None]:
    """Within the block, `change(mixed, layer)` may write into what the heads hand to `o_proj`.

    `mixed`: a copy of the heads' outputs, (B, T, H, D). This is the last place where each head's
    output still stands by itself, however attention is computed.
    """
    heads = model.config.num_attention_heads

    def hook(layer: int) -> Callable[..., tuple[Tensor]]:
        def before_o_proj(_: Any, inputs: tuple[Tensor, ...]) -> tuple[Tensor]:
            joined = inputs[0].clone()  # (B, T, H * D)
            change(joined.view(*joined.shape[:2], heads, -1), layer)
            return (joined,)

        return before_o_proj

    projections = {layer: model.model.layers[layer].self_attn.o_proj for layer in layers}
    handles = [o.register_forward_pre_hook(hook(layer)) for layer, o in projections.items()]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


@torch.inference_mode()
def second_copy_by_head(model: PreTrainedModel, lists: Tensor) -> list[list[float]]:
    """Mean NLL of the second copies with each head cut out by itself, (layers, H).

    `lists`: (n, 2 T), each a list of T tokens that is said twice.
    """
    layers = range(model.config.num_hidden_layers)
    return each_head_of(model, lists, layers).mean(dim=0).tolist()


@torch.inference_mode()
def each_head_of(model: PreTrainedModel, lists: Tensor, layers: Sequence[int]) -> Tensor:
    """Mean NLL of each second copy with each head of these layers cut out, (lists, layers, H).

    `lists`: (n, 2 T), each a list of T tokens that is said twice. All heads of a layer go through
    the model in one batch, a row for each, in which only that head is zero. The layers below are
    the same in every row, so they are computed once.
    """
    length, heads = lists.shape[1] // 2, model.config.num_attention_heads
    every = torch.arange(heads)

    def cut_own(mixed: Tensor, _: int) -> None:  # (H, T, H, D)
        mixed[every, :, every] = 0

    losses = torch.zeros(len(lists), len(layers), heads)
    for number, tokens in enumerate(lists.to(model.device)):
        out = model(tokens[None], output_hidden_states=True, use_cache=False, logits_to_keep=1)
        targets = tokens[length + 1 :].repeat(heads)  # a copy's first token cannot be known
        for place, layer in enumerate(layers):
            states = out.hidden_states[layer].expand(heads, -1, -1)  # what the layer reads
            with _heads_changed(model, [layer], cut_own), _from_layer(model, layer):
                logits = model(inputs_embeds=states, use_cache=False, logits_to_keep=length).logits
            predicted = logits[:, :-1].flatten(0, 1).float()
            nll = F.cross_entropy(predicted, targets, reduction="none")
            losses[number, place] = nll.view(heads, -1).mean(dim=1).cpu()
    return losses


@contextmanager
def _from_layer(model: PreTrainedModel, layer: int) -> Iterator[None]:
    """Within the block, the model begins with this layer; `inputs_embeds` are what it reads."""
    layers = model.model.layers
    model.model.layers = layers[layer:]
    try:
        yield
    finally:
        model.model.layers = layers


@torch.inference_mode()
def with_cuts(
    model: PreTrainedModel, texts: Tensor, last: int
) -> Callable[..., tuple[Tensor, Tensor]]:
    """A function of heads: how well the texts' last tokens are predicted with these cut out.

    `texts`: (n, T), of one length; `last`: how many tokens at each end count. The function takes
    what `without` takes, and returns NLL and whether each token was guessed right, (n, last) each.
    The layers below the first head are the same whatever is cut, so they are computed once, here.
    """
    texts = texts.to(model.device)
    options = {"use_cache": False, "logits_to_keep": last + 1}
    out = model(texts, output_hidden_states=True, use_cache=False, logits_to_keep=1)
    states = out.hidden_states[: model.config.num_hidden_layers]  # what each layer reads
    targets = texts[:, -last:]

    @torch.inference_mode()
    def losses_without(
        heads: Collection[tuple[int, int]], mean: bool = False
    ) -> tuple[Tensor, Tensor]:
        first = min((layer for layer, _ in heads), default=len(states) - 1)
        with without(model, heads, mean), _from_layer(model, first):
            logits = model(inputs_embeds=states[first], **options).logits[:, :-1].float()
        nll = F.cross_entropy(logits.flatten(0, 1), targets.flatten(), reduction="none")
        return nll.view_as(targets).cpu(), (logits.argmax(dim=-1) == targets).cpu()

    return losses_without


def windows_of(text: Tensor, count: int, length: int) -> Tensor:
    """Pieces of a text (1, T) that do not overlap, spread over it; (count, length) at most."""
    count = max(2, min(count, text.shape[1] // length))
    starts = [n * ((text.shape[1] - length) // count) for n in range(count)]
    return torch.stack([text[0, start : start + length] for start in starts])


def as_many_of_the_same_layers(
    heads: Sequence[tuple[int, int]],
    taboo: Collection[tuple[int, int]],
    width: int,
    draw: random.Random,
) -> list[tuple[int, int]]:
    """For each head another one of its layer at random, none of `heads` or `taboo`, none twice.

    `width`: heads per layer. Where a layer has too few others, all of them are taken.
    """
    chosen = []
    for layer in sorted({layer for layer, _ in heads}):
        others = [(layer, n) for n in range(width)]
        others = [pair for pair in others if pair not in heads and pair not in taboo]
        asked = sum(pair[0] == layer for pair in heads)
        chosen += draw.sample(others, min(asked, len(others)))
    return chosen


def every_head_cut(results: Results, model: PreTrainedModel, lists: Tensor) -> Tensor:
    """What `second_copy_by_head` gives, (layers, H), kept as a stage: it takes a while."""
    losses = results.stage(
        "every head cut out by itself", lambda: second_copy_by_head(model, lists), timed=False
    )
    return torch.tensor(losses)


@dataclass(frozen=True)
class Fact:
    """A person and a code, told so many tokens before the end of a story."""

    who: str
    code: str
    distance: int


def draw_facts(distances: Sequence[int], draw: random.Random) -> tuple[list[Fact], str]:
    """Two facts for each distance, and a person about whom none is told.

    No two codes begin with the same digit. Raises ValueError for more than four distances.
    """
    if len(distances) > 4:
        raise ValueError(f"{len(distances)} distances were given; the story has room for 4")
    count = 2 * len(distances)
    *people, stranger = draw.sample(PEOPLE, count + 1)
    codes = [f"{first}{draw.randrange(1000):03d}" for first in draw.sample("123456789", count)]
    places = [distance for distance in distances for _ in range(2)]
    return [Fact(*fact) for fact in zip(people, codes, places, strict=True)], stranger


def tell(filler: Sequence[int], facts: Sequence[Fact], tokenizer: PreTrainedTokenizerBase) -> list:
    """Token ids of a story with the facts in it, each before the last `distance` tokens."""
    story: list[int] = []
    for place, token in enumerate(filler):
        for fact in facts:
            if place == len(filler) - fact.distance:
                text = f"\n\nThe code of {fact.who} is {fact.code}.\n\n"
                story += tokenizer(text, add_special_tokens=False)["input_ids"]
        story.append(token)
    return story


def first_digits(
    with_cache: Callable[[int], Any],
    tokenizer: PreTrainedTokenizerBase,
    filler: Sequence[int],
    facts: Sequence[Fact],
    stranger: str = "",
) -> Tensor:
    """Read a story once and ask for codes; the chance of each code's first digit, (names, codes).

    A row for each person of `facts`, and one for the stranger where a name is given.
    `with_cache(room)` makes a function that gives the logits after a text (1, T), on its model's
    device, and has the `cache` that it keeps.
    """
    names = [fact.who for fact in facts] + ([stranger] if stranger else [])
    questions = [_question(name, [fact.code for fact in facts], tokenizer) for name in names]
    story = tell(filler, facts, tokenizer)
    next_logits = with_cache(len(story) + max(len(asked) for asked, _ in questions))
    device, chances = next_logits.device, {}
    next_logits(torch.tensor([story], device=device))
    for length in sorted({len(asked) for asked, _ in questions}):  # each length is a batch
        batch = [n for n, (asked, _) in enumerate(questions) if len(asked) == length]
        next_logits.cache.forget_after(len(story))  # these questions overwrite the last ones
        next_logits.cache.keep_first()
        next_logits.cache.share(len(batch))
        texts = torch.tensor([story + questions[n][0] for n in batch], device=device)
        for n, shares in zip(batch, next_logits(texts).softmax(dim=-1).cpu(), strict=True):
            chances[n] = shares[questions[n][1]]
    return torch.stack([chances[n] for n in range(len(questions))])


TRIAL_HEADER = [
    "cut out",
    "NLL of the second copy",
    "guessed right",
    "more than nothing cut [95 %]",
    "the head on trial costs more by [95 %]",
    "on a story: more than nothing cut [95 %]",
]


@dataclass(frozen=True)
class Harm:
    """What a cut does to lists that are said twice, and to windows of ordinary text."""

    lists: Tensor  # mean NLL of each second copy, (lists,)
    right: Tensor  # share of each that is guessed right, (lists,)
    story: Tensor  # mean NLL of each window, (windows,)


def draw_heads(
    shape: tuple[int, int], taboo: Collection[tuple[int, int]], count: int
) -> list[tuple[int, int]]:
    """So many heads at random, none of them taboo; all others where there are fewer.

    `shape`: layers, and heads per layer.
    """
    pairs = [(layer, n) for layer in range(shape[0]) for n in range(shape[1])]
    pairs = [pair for pair in pairs if pair not in taboo]
    return random.Random(3).sample(pairs, min(count, len(pairs)))


def head_on_trial(
    results: Results,
    head: tuple[int, int],
    by_head: Tensor,
    lists_without: Callable[..., tuple[Tensor, Tensor]],
    story_without: Callable[..., tuple[Tensor, Tensor]],
    random_heads: int = 10,
) -> tuple[int, list[list[str]]]:
    """Cut out a head and, as controls, the most harmful others, its layer's others, random ones.

    `by_head`: what `second_copy_by_head` gave on the list of the search, (layers, H); all that is
    measured here is measured on other texts. `lists_without`, `story_without`: from `with_cuts`.
    Prints the head's rank in harm, in the search and here; returns the latter and a table's rows.
    """

    def harm(heads: Sequence[tuple[int, int]], mean: bool = False) -> Harm:
        nll, right = lists_without(heads, mean)
        story = story_without(heads, mean)[0].mean(dim=1)
        return Harm(nll.mean(dim=1), right.float().mean(dim=1), story)

    def row(label: str, own: Harm, compared: bool = True) -> list[str]:
        more = _with_interval(own.lists - whole.lists)
        less = _with_interval(cut.lists - own.lists) if compared else ""
        story = _with_interval(own.story - whole.story)
        return [label, f"{own.lists.mean():.2f}", f"{own.right.mean():.0%}", more, less, story]

    name = "layer {}, head {}".format(*head)
    order = by_head.flatten().argsort(descending=True, stable=True).tolist()
    others = [pair for pair in (divmod(n, by_head.shape[1]) for n in order) if pair != head]
    rivals, rest = others[:4], others[4:]
    mates = [pair for pair in rest if pair[0] == head[0]]
    drawn = draw_heads(tuple(by_head.shape), [head, *rivals, *mates], random_heads)
    whole, cut, replaced = harm([]), harm([head]), harm([head], mean=True)
    by_itself = {pair: harm([pair]) for pair in (*rivals, *mates, *drawn)}

    measures = [f"{whole.lists.mean():.2f}", f"{whole.right.mean():.0%}"]
    rows = [["nothing", *measures, "", "", f"{whole.story.mean():.2f} nats with nothing cut"]]
    rows += [row(name, cut, compared=False)]
    rows += [row("the same, its mean output in its place", replaced, compared=False)]
    rows += [row("layer {}, head {}".format(*pair), by_itself[pair]) for pair in rivals]
    _record_interval(results, "story.cut", cut.story - whole.story)
    for key, kind, heads in (
        ("its_layer", "others of its layer", mates),
        ("random", "heads drawn at random", drawn),
    ):
        if heads:
            control = _mean_harm([by_itself[pair] for pair in heads])
            rows.append(row(f"one of {len(heads)} {kind}, on average", control))
            _record_interval(results, f"copying.cut_minus_{key}", cut.lists - control.lists)
            _record_interval(results, f"story.{key}", control.story - whole.story)
    for key, own in (("whole", whole), ("cut", cut), ("mean", replaced)):
        results.record(f"copying.{key}", own.lists.mean().item(), "nats", n=len(own.lists))
        percent = 100 * own.right.mean().item()
        results.record(f"copying.{key}.right", percent, "%", n=len(own.right))
    in_search = _rank_in_search(results, by_head, head)
    differences = [own.lists - cut.lists for own in by_itself.values()]
    rank, low, high = rank_of(differences)
    results.record("copying.rank.new", rank, "count", low=low, high=high, n=1 + len(differences))
    print(
        f"In order of harm, {name} ranks {in_search} of {by_head.numel()} on the list of the search, "
        f"and {rank} (95 %: {low} to {high}) of the {1 + len(differences)} heads cut on new lists."
    )
    return rank, rows


def rank_of(differences: Sequence[Tensor]) -> tuple[int, int, int]:
    """A head's rank in harm: by the means, and the best and worst that the intervals leave open.

    `differences`: for each other head how much more than this one it costs, list by list. Each
    comparison has its own 95 % interval.
    """
    intervals = [mean_interval(values.numpy()) for values in differences]
    by_mean = 1 + sum(mean > 0 for mean, _, _ in intervals)
    best = 1 + sum(low > 0 for _, low, _ in intervals)
    worst = 1 + sum(high > 0 for _, _, high in intervals)
    return by_mean, best, worst


def _mean_harm(harms: Sequence[Harm]) -> Harm:
    """The mean over cuts, list by list and window by window."""
    fields = ([getattr(harm, name) for harm in harms] for name in ("lists", "right", "story"))
    return Harm(*(torch.stack(values).mean(dim=0) for values in fields))


def _record_interval(results: Results, name: str, values: Tensor) -> None:
    mean, low, high = mean_interval(values.numpy())
    results.record(name, mean, "nats", low=low, high=high, n=len(values))


def _rank_in_search(results: Results, by_head: Tensor, head: tuple[int, int]) -> int:
    """The head's rank among all in the search, kept beside the losses of the others."""
    elsewhere = by_head.flatten().tolist()
    here = elsewhere.pop(head[0] * by_head.shape[1] + head[1])
    rank = 1 + sum(loss > here for loss in elsewhere)
    results.record("copying.rank", rank, "count", n=by_head.numel())
    if elsewhere:
        results.record("copying.other_heads", median(elsewhere), "nats", n=len(elsewhere))
        results.record("copying.other_heads.largest", max(elsewhere), "nats", n=len(elsewhere))
    return rank


@dataclass(frozen=True)
class FalseSentence:
    """The beginning of a sentence, its true next token, and a false one that is said before."""

    bare: list[int]  # The opposite of hot is
    told: list[int]  # The opposite of hot is ice. (another sentence) The opposite of hot is
    true: int
    false: int


def false_sentences(
    facts: Sequence[str], between: str, tokenizer: PreTrainedTokenizerBase
) -> list[FalseSentence]:
    """Each fact without its last word, and with the next one's: told, and asked after `between`."""

    def ids(text: str) -> list[int]:
        return tokenizer("\n" + text, add_special_tokens=False)["input_ids"]

    split = [fact.rstrip(".").rsplit(" ", 1) for fact in facts]
    sentences = []
    for (beginning, true), (_, false) in zip(split, split[1:] + split[:1], strict=True):
        pair = [ids(f"{beginning} {word}") for word in (true, false)]
        shortest = min(map(len, pair))
        differ = (n for n in range(shortest) if pair[0][n] != pair[1][n])
        place = next(differ, shortest - 1)  # a tokenizer without these letters writes both alike
        told = ids(f"{beginning} {false}. {between} {beginning} {false}")
        told = told[: len(told) - len(pair[1]) + place]
        sentences.append(FalseSentence(pair[0][:place], told, pair[0][place], pair[1][place]))
    return sentences


@torch.inference_mode()
def copying_or_knowing(
    results: Results,
    model: PreTrainedModel,
    sentences: Sequence[FalseSentence],
    head: tuple[int, int],
    controls: Sequence[tuple[int, int]],
) -> list[list[str]]:
    """Does a cut head take what the model copies, or what it knows? Rows of a table, by cut.

    Columns: NLL of the true word with nothing said before (knowledge); of the false word with
    nothing said before, and after the false sentence (copying), with the change by the cut.
    """
    bare, told = [s.bare for s in sentences], [s.told for s in sentences]
    true, false = torch.tensor([[s.true, s.false] for s in sentences]).T
    each, kinds = torch.arange(len(sentences)), ("known", "forced", "copied")

    def losses(heads: Sequence[tuple[int, int]]) -> Tensor:  # (3, sentences)
        with without(model, heads):
            before, after = next_log_p(model, bare), next_log_p(model, told)
        return -torch.stack([before[each, true], before[each, false], after[each, false]])

    whole = losses([])
    name = "layer {}, head {}".format(*head)
    rows = [["nothing", *(f"{nll:.2f}" for nll in whole.mean(dim=1))]]
    changes = {name: losses([head]) - whole}
    if controls:
        at_random = torch.stack([losses([pair]) for pair in controls]).mean(dim=0)
        changes[f"one of {len(controls)} heads drawn at random, on average"] = at_random - whole
    for label, change in changes.items():
        rows.append([label, *(_with_interval(values) for values in change)])
    for key, label in zip(("cut", "random"), changes, strict=False):
        for kind, values in zip(kinds, changes[label], strict=True):
            _record_interval(results, f"false_sentence.{kind}.{key}", values)
    for kind, values in zip(kinds, whole, strict=True):
        record_mean(results, f"false_sentence.{kind}.whole", values.tolist(), "nats")
    return rows


@torch.inference_mode()
def next_log_p(model: PreTrainedModel, contexts: Sequence[list[int]]) -> Tensor:
    """Log-probabilities of the token after each context, (contexts, V), in one batch.

    Rows are padded on the right, which a causal model's tokens never see.
    """
    lengths = torch.tensor([len(context) for context in contexts])
    longest, shortest = int(lengths.max()), int(lengths.min())
    rows = torch.tensor([context + [0] * (longest - len(context)) for context in contexts])
    keep = longest - shortest + 1
    logits = model(rows.to(model.device), use_cache=False, logits_to_keep=keep).logits.cpu()
    last = logits[torch.arange(len(contexts)), lengths - shortest]
    return last.float().log_softmax(dim=-1)


@torch.inference_mode()
def nll_of_each(
    model: PreTrainedModel, contexts: Sequence[list[int]], continuations: Sequence[list[int]]
) -> list[Tensor]:
    """NLL of each continuation's tokens after its context, all of them in one batch.

    Rows are padded on the right, which a causal model's tokens never see.
    """
    texts = [one + two for one, two in zip(contexts, continuations, strict=True)]
    longest = max(map(len, texts))
    rows = torch.tensor([text + [0] * (longest - len(text)) for text in texts])
    keep = longest - min(map(len, contexts)) + 1
    logits = model(rows.to(model.device), use_cache=False, logits_to_keep=keep).logits
    first = longest - logits.shape[1]  # the position of the first logits
    log_p = logits.float().log_softmax(dim=-1).cpu()
    losses = []
    for n, (context, continuation) in enumerate(zip(contexts, continuations, strict=True)):
        places = torch.arange(len(continuation)) + len(context) - 1 - first
        losses.append(-log_p[n, places, continuation])
    return losses


def induction_on_trial(
    results: Results,
    scores: Mapping[str, Tensor],
    ranking: Sequence[tuple[int, int]],
    taboo: tuple[int, int],
    losses_without: Callable[[Sequence[tuple[int, int]]], Tensor],
    draws: int = 4,
) -> tuple[list[list[str]], int]:
    """Cut out the heads of the ranking, one more in each row, and as many of their layers at random.

    `scores`: induction scores, (layers, H), by how they were measured; `taboo`: a head that is never
    among the random ones; `losses_without(heads)`: mean NLL of each second copy, (lists,).
    Prints how much more all of them cost than the random ones. Returns a table's rows (the head, its
    scores in percent, the loss with all heads up to this one cut out), and the percentage of the
    first scores that the second way of measuring leaves.
    """
    rows, rng = [], random.Random(2)
    for count, head in enumerate(ranking, 1):
        losses = losses_without(ranking[:count])
        results.record(f"induction.{count}_cut", losses.mean().item(), "nats", n=len(losses))
        percent = [f"{score[head]:.0%}" for score in scores.values()]
        rows.append(["layer {}, head {}".format(*head), *percent, f"{losses.mean():.2f}"])
    width = next(iter(scores.values())).shape[1]
    drawn = [as_many_of_the_same_layers(ranking, [taboo], width, rng) for _ in range(draws)]
    at_random = torch.stack([losses_without(heads) for heads in drawn]).mean(dim=0)
    difference, low, high = mean_interval((losses - at_random).numpy())
    ends = {"low": low, "high": high, "n": len(losses)}
    results.record("induction.more_than_random", difference, "nats", **ends)
    print(
        f"All {len(ranking)} cut out: {losses.mean():.2f} nats. {len(drawn[0])} random other heads of "
        f"the same layers: {at_random.mean():.2f} (mean of {draws} draws).\n"
        f"Difference, list by list: {_with_interval(losses - at_random)}, 95 %"
    )
    before, without_it, *_ = (
        sum(score[pair].item() for pair in ranking) for score in scores.values()
    )
    results.record("induction.left", 100 * without_it / before, "%", n=len(ranking))
    return rows, round(100 * without_it / before)


def _with_interval(differences: Tensor) -> str:
    mean, low, high = mean_interval(differences.numpy())  # Student's t: there are few lists
    return f"{mean:+.2f} [{low:+.2f}, {high:+.2f}]"


def time_phases(
    with_cache: Callable[[int], Any], text: Tensor, lengths: Sequence[int], rounds: int
) -> dict[str, Any]:
    """Seconds of a pass that fills a cache, and of one more token, by length, as `interleaved`."""

    def pass_and_step(n: int) -> dict[str, float]:
        next_logits, taken = with_cache(n + 1), {}
        for phase, end in (("full", n), ("step", n + 1)):
            start_time = time.perf_counter()
            next_logits(text[:, :end])[0, 0].item()  # waits for the result
            taken[phase] = time.perf_counter() - start_time
        return taken

    return interleaved({str(n): lambda n=n: pass_and_step(n) for n in lengths}, rounds)


def record_times(
    results: Results, seconds: Mapping[str, Mapping[str, Any]]
) -> dict[str, dict[int, Spread]]:
    """Median times of a whole pass and of one step by the tokens so far, kept in ms.

    `seconds`: by tokens so far and phase ("full" or "step"), as `interleaved` gives them.
    """
    times = {
        phase: {int(n): spread(by_phase[phase]) for n, by_phase in seconds.items()}
        for phase in ("full", "step")
    }
    for phase, by_length in times.items():
        for n, s in by_length.items():
            ends = {"low": 1e3 * s.low, "high": 1e3 * s.high, "n": s.n}
            results.record(f"{phase}.{n}", 1e3 * s.median, "ms", **ends)
    return times


def median_step(steps: Mapping[int, Spread]) -> Spread:
    """The step whose median is in the middle: one slow moment of the machine does not count."""
    in_order = sorted(steps.values(), key=lambda s: s.median)
    return in_order[(len(in_order) - 1) // 2]


def batch_against_single(results: Results, seconds: Mapping[str, Mapping[str, Any]]) -> str:
    """How many times as long prompts take one after another as in a batch; kept, and as a sentence.

    `seconds`: as `interleaved` gives them, with the runs "single" and "batch" and the phase "call".
    """
    ratios = np.asarray(seconds["single"]["call"]) / np.asarray(seconds["batch"]["call"])
    ratio = spread(ratios)
    results.record("batch.speedup", ratio.median, "x", low=ratio.low, high=ratio.high, n=ratio.n)
    return (
        f"one after another they take {ratio.median:.2f} times as long as in the batch "
        f"(median of {ratio.n} rounds; lowest {ratios.min():.2f}, highest {ratios.max():.2f})"
    )


def padder(tokenizer: PreTrainedTokenizerBase, device: str) -> Callable[..., tuple[Tensor, Tensor]]:
    """A function of prompts (lists of ids): one tensor, (B, longest), and each one's padding, (B,)."""
    pad_id = tokenizer.pad_token_id or 0

    def padded(prompts: Sequence[list[int]], side: str = "left") -> tuple[Tensor, Tensor]:
        pads = torch.tensor([max(map(len, prompts)) - len(prompt) for prompt in prompts])
        filled = [[pad_id] * n for n in pads.tolist()]
        order = (filled, prompts) if side == "left" else (prompts, filled)
        rows = [one + two for one, two in zip(*order, strict=True)]
        return torch.tensor(rows, device=device), pads

    return padded


def same_as_the_library(
    probabilities: Callable[..., Tensor], logits: Tensor, tokens: Tensor, rules: Mapping[str, float]
) -> None:
    """Compare sampling rules with Hugging Face's, switched on one by one, so that each counts."""
    warpers, switched_on = logits_process.LogitsProcessorList(), {}
    classes = {
        "temperature": logits_process.TemperatureLogitsWarper,
        "top_k": logits_process.TopKLogitsWarper,
        "top_p": logits_process.TopPLogitsWarper,
    }
    for name, value in rules.items():
        warpers.append(classes[name](value))
        switched_on[name] = value
        ours = probabilities(logits, **switched_on)
        torch.testing.assert_close(ours, warpers(tokens, logits.clone()).softmax(dim=-1))
        print(f"with {name} {value}: {int((ours > 0).sum()):,} tokens can be drawn, as there")


def padded_on_the_right(model: PreTrainedModel, lengths: Tensor) -> Callable[[Tensor], Tensor]:
    """A `next_logits` for prompts that are padded on the right, with their mask and positions.

    `lengths`: tokens of each prompt, (B,). All is as it should be, but the next token is asked for
    at the end of the row, where a short prompt has padding.
    """
    longest = int(lengths.max())

    cache = DynamicCache()

    @torch.inference_mode()
    def next_logits(tokens: Tensor) -> Tensor:
        mask = torch.ones_like(tokens)
        mask[:, :longest] = (torch.arange(longest) < lengths[:, None]).long()
        places = (mask.cumsum(dim=-1) - 1).clamp(min=0)
        seen = cache.get_seq_length()
        options = {"attention_mask": mask, "position_ids": places[:, seen:]}
        out = model(tokens[:, seen:], **options, past_key_values=cache, logits_to_keep=1)
        return out.logits[:, -1].float()

    return next_logits


def compare_batches(
    results: Results,
    batched: Mapping[str, Tensor],
    by_itself: Sequence[Tensor],
    tokenizer: PreTrainedTokenizerBase,
) -> int:
    """Show how many prompts get the same text in a batch as alone; count the ways where all do.

    `batched`: texts (B, T) by how the prompts were batched; `by_itself`: the new tokens of each.
    """
    length, rows = len(by_itself[0]), [["alone", "", repr(tokenizer.decode(by_itself[1]))]]
    promises = 0
    for way, tokens in batched.items():
        new = tokens[:, -length:]
        same = sum(torch.equal(row, own) for row, own in zip(new, by_itself, strict=True))
        promises += same == len(by_itself)
        rows.append([way, f"{same} of {len(by_itself)}", repr(tokenizer.decode(new[1]))])
        results.record(f"batch.{way.replace(' ', '_')}", same, "count", n=len(by_itself))
    show_table(["batch", "as alone", "after the question"], rows, right=False)
    return promises


@torch.inference_mode()
def loss_of(model: PreTrainedModel, tokens: Tensor) -> float:
    """The mean loss of a text (1, T) as Hugging Face computes it, given the text as labels."""
    return model(tokens, labels=tokens).loss.item()


def record_scores(
    results: Results, scores: Mapping[str, tuple[Sequence[float], Sequence[float]]]
) -> None:
    """Keep likelihood and share of new 3-grams of each rule's texts."""
    for name, (likelihood, fresh) in scores.items():
        record_mean(results, f"likelihood.{name}", likelihood, "nats")
        record_mean(results, f"new_3grams.{name}", [100 * share for share in fresh], "%")


def search_figure(
    results: Results, by_head: Tensor, head: tuple[int, int], whole: Tensor
) -> Figure:
    """The figure of the search. `whole`: NLL of its list with nothing cut, (2 T - 1,)."""
    first_copy, second_copy = whole[: len(whole) // 2], whole[len(whole) // 2 + 1 :]
    results.record("copying.search", second_copy.mean().item(), "nats")
    return figures.ablation(by_head, head, second_copy.mean().item(), first_copy.mean().item())


def record_mean(results: Results, name: str, values: Sequence[float], unit: str) -> None:
    """Keep the mean of values, and how many there are."""
    results.record(name, sum(values) / len(values), unit, n=len(values))


def record_template(
    results: Results, bare: Sequence[float], framed: Sequence[float], templated: Sequence[float]
) -> None:
    """Keep and print what the template adds to the bare question, and to a plain frame.

    All: mean log-probability of the answer's tokens, by question.
    """
    for name, control in (("gain", bare), ("gain_over_frame", framed)):
        gain = paired_bootstrap(np.asarray(control), np.asarray(templated))
        ends = {"low": gain.low, "high": gain.high, "n": gain.n}
        results.record(f"template.{name}", gain.mean, "nats", **ends)
        interval = f"95 % interval {gain.low:+.2f} to {gain.high:+.2f}"
        print(f"{name}: {gain.mean:+.2f} nats per token, {interval}")


def record_hidden_words(results: Results, hits: Mapping[str, int], n: int) -> None:
    """Keep and print how many of `n` hidden words were found, with Wilson's 95 % interval."""
    for name, hit in hits.items():
        low, high = (100 * end for end in proportion_interval(hit, n))
        results.record(f"hidden_word.{name}", 100 * hit / n, "%", low=low, high=high, n=n)
        print(f"{name}: {hit} of {n} found; 95 % interval {low:.0f} to {high:.0f} %")


def ask_for_codes(
    with_cache: Callable[[int], Any],
    tokenizer: PreTrainedTokenizerBase,
    prose: Sequence[int],
    distances: Sequence[int],
    count: int,
) -> tuple[dict[int, list[float]], dict[int, list[float]], tuple[list[float], list[float]]]:
    """Hide codes in so many stories, and ask for each with its own name and with a stranger's.

    Returns the arguments of `record_recall`: by distance, the chances of the right first digit with
    its name and with a stranger's, and both for a story with a single code at the largest distance.
    """
    length = max(distances) + 48  # tokens, before the facts are put in
    stride = (len(prose) - length) // count
    if stride < 1:
        raise ValueError(f"the prose has {len(prose)} tokens; use fewer stories or less distance")
    named: dict[int, list[float]] = {distance: [] for distance in distances}
    strange: dict[int, list[float]] = {distance: [] for distance in distances}
    only_code: tuple[list[float], list[float]] = ([], [])
    rng = random.Random(3)
    for number in range(count):
        filler = prose[stride * number : stride * number + length]
        facts, stranger = draw_facts(distances, rng)
        chances = first_digits(with_cache, tokenizer, filler, facts, stranger)
        for distance in distances:  # chances: (names, codes); the last name is the stranger
            at = [n for n, fact in enumerate(facts) if fact.distance == distance]
            named[distance].append(chances[at, at].mean().item())
            strange[distance].append(chances[-1, at].mean().item())
        single = first_digits(with_cache, tokenizer, filler, facts[-1:], stranger)[:, 0]
        for told, chance in zip(only_code, single.tolist(), strict=True):
            told.append(chance)
    return named, strange, only_code


def record_forced(
    results: Results,
    log_odds: Mapping[str, Sequence[float]],
    first_words: Sequence[Sequence[float]],
) -> None:
    """Keep and print how a forced first word goes on, and how likely the model starts with it.

    `log_odds`: of the true sentence over its denial, after "Yes,", after "No," and after a "No,"
    that answers no question ("No, unasked"). `first_words`: P(Yes) and P(No), by question.
    """
    p_yes, p_no = torch.tensor(first_words).mean(dim=0).tolist()
    print(f"on average the model starts with Yes: {p_yes:.1%}, with No: {p_no:.1%}")
    for name, key in (("No,", "denied"), ("No, unasked", "denied_unasked")):
        denied = sum(odds < 0 for odds in log_odds[name])
        results.record(f"no_way_back.{key}", denied, "count", n=len(log_odds[name]))
        asked = "with no question before it" if key == "denied_unasked" else "after the question"
        low, high = (100 * end for end in proportion_interval(denied, len(log_odds[name])))
        print(
            f'"No," {asked}: the denial is likelier in {denied} of {len(log_odds[name])}; '
            f"95 % interval {low:.0f} to {high:.0f} %"
        )


def record_recall(
    results: Results,
    named: Mapping[int, Sequence[float]],
    strange: Mapping[int, Sequence[float]],
    only_code: tuple[Sequence[float], Sequence[float]],
) -> list[list[str]]:
    """Keep how likely the right first digit is, and what the right name adds to a stranger's.

    `named`, `strange`: probabilities by distance, one for each story, asked with the fact's own name
    and with that of a person who is not in the story; `only_code`: the same pair for a single code.
    Returns rows for a table: which code, the mean difference within a story and its interval.
    """
    pairs = {f"company.{distance}": (named[distance], strange[distance]) for distance in named}
    pairs["alone"] = only_code
    rows = []
    for name, (own, other) in pairs.items():
        own, other = 100 * np.asarray(own), 100 * np.asarray(other)
        record_mean(results, f"recall.{name}", own.tolist(), "%")
        record_mean(results, f"recall.never_named.{name}", other.tolist(), "%")
        mean, low, high = mean_interval(own - other)
        results.record(f"recall.name_adds.{name}", mean, "%", low=low, high=high, n=len(own))
        kind, _, distance = name.partition(".")
        told = f"among others, {distance} tokens away" if kind == "company" else "the only one"
        rows.append([told, f"{mean:+.0f} [{low:+.0f}, {high:+.0f}]"])
    return rows


def what_company_takes(
    named: Mapping[int, Sequence[float]],
    strange: Mapping[int, Sequence[float]],
    only_code: tuple[Sequence[float], Sequence[float]],
) -> str:
    """How much less likely the right digit is among other codes; how much of that is not recall.

    The arguments are those of `record_recall`; the largest distance is the only code's, too.
    """
    farthest = max(named)
    own, base_rate = (
        100 * float(np.mean(alone) - np.mean(among[farthest]))
        for alone, among in zip(only_code, (named, strange), strict=True)
    )
    return (
        f"At {farthest} tokens company takes {own:.0f} points off the right digit when the right "
        f"name is asked for, and {base_rate:.0f} points when it is a stranger's."
    )


def costs_more(
    results: Results,
    named: Mapping[int, Sequence[float]],
    strange: Mapping[int, Sequence[float]],
    only_code: tuple[Sequence[float], Sequence[float]],
) -> str:
    """Whether "distance" or "company" takes more off what the right name adds, or "undecided".

    The arguments are those of `record_recall`. A cost counts if its interval over the stories lies
    above 0 on both scales, points and log-odds, since points near 100 % are harder to gain. Where
    both count, so must their difference. Prints what each takes, by both measures.
    """
    nearest, farthest = min(named), max(named)
    by_scale = {}
    for scale, of in (("points", lambda p: 100 * p), ("log-odds", _log_odds)):
        near, far, only = (
            of(np.asarray(own)) - of(np.asarray(other))
            for own, other in (
                (named[nearest], strange[nearest]),
                (named[farthest], strange[farthest]),
                only_code,
            )
        )
        costs = {"distance": near - far, "company": only - far}
        by_scale[scale] = costs | {"company more": costs["company"] - costs["distance"]}
    for what in ("distance", "company"):
        mean, low, high = mean_interval(by_scale["points"][what])
        ends = {"low": low, "high": high, "n": len(named[nearest])}
        results.record(f"recall.{what}_takes", mean, "%", **ends)
        odds = mean_interval(by_scale["log-odds"][what])
        print(
            f"{what} takes {mean:+.0f} [{low:+.0f}, {high:+.0f}] points off what the name adds; "
            "in log-odds {:+.1f} [{:+.1f}, {:+.1f}], 95 %".format(*odds)
        )

    def shown(what: str, sign: int = 1) -> bool:
        return all(mean_interval(sign * costs[what])[1] > 0 for costs in by_scale.values())

    counts = [what for what in ("distance", "company") if shown(what)]
    if len(counts) == 2:
        counts = [
            w for w, sign in (("company", 1), ("distance", -1)) if shown("company more", sign)
        ]
    return counts[0] if counts else "undecided"


def _log_odds(p: np.ndarray) -> np.ndarray:
    p = p.clip(1e-6, 1 - 1e-6)
    return np.log(p / (1 - p))


def compare_beams(
    results: Results, greedy: Sequence[float], beams: Sequence[float], likelier: Sequence[float]
) -> None:
    """Does beam search repeat itself more than greedy? Shares of new 3-grams, text by text.

    `likelier`: how much likelier the text of the beams is, in nats per token, by text.
    """
    more = paired_bootstrap(np.asarray(greedy), np.asarray(beams))
    mean, low, high = mean_interval(np.asarray(likelier))
    ends = {"low": 100 * more.low, "high": 100 * more.high, "n": more.n}
    record_mean(results, "new_3grams.beams", [100 * share for share in beams], "%")
    results.record("beams.new_3grams_minus_greedy", 100 * more.mean, "%", **ends)
    print(
        f"4 beams minus greedy over {more.n} prompts, 95 % intervals:\n"
        f"new 3-grams {100 * more.mean:+.0f} points [{100 * more.low:+.0f}, {100 * more.high:+.0f}], "
        f"log-probability {mean:+.2f} nats per token [{low:+.2f}, {high:+.2f}]"
    )


def likelier(results: Results, original: Sequence[float], drawn: Sequence[float]) -> str:
    """Which of two texts the model finds likelier, by an interval: one of three answers.

    `original`, `drawn`: mean log-probability per token, by prompt. Prints and keeps the difference.
    """
    gap = paired_bootstrap(np.asarray(original), np.asarray(drawn))
    ends = {"low": gap.low, "high": gap.high, "n": gap.n}
    results.record("likelihood.drawn_minus_original", gap.mean, "nats", **ends)
    print(
        f"Log-probability of its own draw (τ = 1) minus the original: {gap.mean:+.2f} nats per "
        f"token, 95 % interval {gap.low:+.2f} to {gap.high:+.2f} over {gap.n} prompts"
    )
    return "its own draw" if gap.low > 0 else "the original" if gap.high < 0 else "undecided"


def repetition_on_trial(
    results: Results, greedy: Sequence[float], drawn: Sequence[float], original: Sequence[float]
) -> None:
    """Is less of a greedy text new than of a plain draw? All: shares of new 3-grams by text."""
    gap = paired_bootstrap(np.asarray(greedy), np.asarray(drawn))
    to_original = paired_bootstrap(np.asarray(greedy), np.asarray(original))
    put_on_trial(
        results,
        "likeliest-text-degenerates",
        f"Share of new 3-grams over {gap.n} prompts, draws at temperature 1 minus greedy: "
        f"{100 * gap.mean:+.0f} percentage points, 95 % interval {100 * gap.low:+.0f} to "
        f"{100 * gap.high:+.0f}; original minus greedy: {100 * to_original.mean:+.0f}, "
        f"{100 * to_original.low:+.0f} to {100 * to_original.high:+.0f}.",
        "holds" if gap.low > 0 else "fails here" if gap.high < 0 else "undecided here",
        "This was tested for greedy decoding, which takes the likeliest token at each step; it need "
        "not find the likeliest text. A small instruction-tuned model continued prose outside its "
        "template.",
    )


@torch.inference_mode()
def slip_with_learned_positions(mask: Tensor, positions: Tensor) -> tuple[float, float]:
    """How far a small untrained GPT-2 moves its last logits when prompts are padded on the left.

    `mask` and `positions`: (B, T), one row for each prompt. Returns the largest difference to each
    prompt alone, as a share of the largest logit: with these positions, and with those of the row.
    """
    config = GPT2Config(
        vocab_size=64,
        n_positions=mask.shape[1],
        n_embd=32,
        n_layer=2,
        n_head=2,
        initializer_range=0.2,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        gpt2 = GPT2LMHeadModel(config).eval()
    tokens = torch.arange(mask.numel()).view_as(mask) % config.vocab_size
    alone = torch.stack(
        [gpt2(row[own][None]).logits[0, -1] for row, own in zip(tokens, mask.bool(), strict=True)]
    )
    of_the_row = torch.arange(mask.shape[1]).expand_as(mask)
    errors = []
    for places in (positions, of_the_row):
        padded = gpt2(tokens, attention_mask=mask.long(), position_ids=places).logits[:, -1]
        errors.append(((padded - alone).abs().max() / alone.abs().max()).item())
    return errors[0], errors[1]


def in_template(question: str, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Token ids of a question in the model's chat template, up to where the answer begins.

    A base model has no template: there it is the question and a line break.
    """
    if tokenizer.chat_template is None:
        return tokenizer(question + "\n", add_special_tokens=False)["input_ids"]
    message = [{"role": "user", "content": question}]
    filled = tokenizer.apply_chat_template(message, add_generation_prompt=True, return_dict=True)
    return list(filled["input_ids"])


def in_plain_frame(question: str, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Token ids of a question between two plain words, up to where the answer begins.

    The answer follows on a line of its own, as in a chat template that ends with a line break.
    """
    text = f"Question: {question}\nAnswer:\n"
    return tokenizer(text, add_special_tokens=False)["input_ids"]


def _question(
    who: str, codes: Sequence[str], tokenizer: PreTrainedTokenizerBase
) -> tuple[list[int], list[int]]:
    """The question for a person's code up to where the codes differ, and each code's next token."""
    rows = [
        tokenizer(f"\n\nThe code of {who} is {code}", add_special_tokens=False)["input_ids"]
        for code in codes
    ]
    shortest = min(map(len, rows))
    differ = (n for n in range(shortest) if len({row[n] for row in rows}) > 1)
    place = next(differ, shortest - 1)  # a tokenizer without digits writes all codes alike
    return rows[0][:place], [row[place] for row in rows]
