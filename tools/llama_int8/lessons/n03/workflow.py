"""What lesson 03 uses without showing it: the cache's other methods, heads cut out, stories."""

import random
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from statistics import median
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedModel, PreTrainedTokenizerBase

from llama_int8.course.claims import put_on_trial
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


def others_of_its_layer(model: PreTrainedModel, lists: Tensor, head: tuple[int, int]) -> Tensor:
    """Mean NLL of each second copy with one other head of this head's layer cut out, (lists, H - 1).

    A column for each of the other heads; none in a model with one head per layer.
    """
    layer, own = head
    losses = each_head_of(model, lists, [layer])[:, 0]
    return losses[:, [n for n in range(losses.shape[1]) if n != own]]


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
    """Two facts for each distance, and a person of whom none is told.

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
    device, chances = next_logits.device, []
    next_logits(torch.tensor([story], device=device))
    for asked, digits in questions:
        next_logits.cache.forget_after(len(story))  # the next question overwrites this one
        logits = next_logits(torch.tensor([story + asked], device=device))[0]
        chances.append(logits.softmax(dim=-1)[digits].cpu())
    return torch.stack(chances)


def record_copying(
    results: Results,
    first: Tensor,
    second: Mapping[str, tuple[Tensor, Tensor]],
    by_head: Tensor,
    head: tuple[int, int],
    others: Tensor,
) -> list[list[str]]:
    """Keep how well lists that are said twice are copied, whole and with a head cut out.

    `first`: NLL of the first copies, (lists, T - 1). `second`: by what is cut, NLL of the second
    copies and whether each token was guessed right, (lists, T - 1) each: "whole", "cut", "mean" and
    the names of other heads. `by_head`: what `second_copy_by_head` gave; `head`: the one on trial;
    `others`: what `others_of_its_layer` gave.
    Returns rows for a table: name, mean NLL per token, how much that is more than "whole", how much
    more the head on trial costs (both list by list, with a 95 % interval), percent right.
    """
    cut = "layer {}, head {}".format(*head)
    labels = {
        "whole": "second copy, nothing cut",
        "cut": f"without {cut}",
        "mean": "with the mean of its output in its place",
    }
    rows = [["first copy, nothing cut", f"{first.mean():.2f}", "", "", ""]]
    whole, on_trial = (second[name][0].mean(dim=1) for name in ("whole", "cut"))
    results.record("copying.first", first.mean().item(), "nats", n=first.numel())
    for name, (nll, right) in second.items():
        percent, by_list = 100 * right.float().mean().item(), nll.mean(dim=1)
        more = "" if name == "whole" else _with_interval(by_list - whole)
        less = "" if name in labels else _with_interval(on_trial - by_list)
        label = labels.get(name, f"without {name}")
        rows.append([label, f"{nll.mean():.2f}", more, less, f"{percent:.0f} %"])
        if name in labels:
            results.record(f"copying.{name}", nll.mean().item(), "nats", n=nll.numel())
            results.record(f"copying.{name}.right", percent, "%", n=nll.numel())
    if others.shape[1]:
        by_list = others.mean(dim=1)
        mean, low, high = mean_interval((on_trial - by_list).numpy())
        ends = {"low": low, "high": high, "n": len(by_list)}
        results.record("copying.cut_minus_its_layer", mean, "nats", **ends)
        label = f"without one of the {others.shape[1]} others of its layer, on average"
        intervals = [_with_interval(d) for d in (by_list - whole, on_trial - by_list)]
        rows.append([label, f"{others.mean():.2f}", *intervals, ""])
    elsewhere = by_head.flatten().tolist()
    here = elsewhere.pop(head[0] * by_head.shape[1] + head[1])
    rank = 1 + sum(loss > here for loss in elsewhere)
    results.record("copying.rank", rank, "count", n=by_head.numel())
    if elsewhere:
        results.record("copying.other_heads", median(elsewhere), "nats", n=len(elsewhere))
        results.record("copying.other_heads.largest", max(elsewhere), "nats", n=len(elsewhere))
    return rows


def induction_on_trial(
    results: Results,
    scores: Mapping[str, Tensor],
    ranking: Sequence[tuple[int, int]],
    taboo: tuple[int, int],
    losses_without: Callable[[Sequence[tuple[int, int]]], Tensor],
    draws: int = 4,
) -> list[list[str]]:
    """Cut out the heads of the ranking, one more in each row, and as many of their layers at random.

    `scores`: induction scores, (layers, H), by how they were measured; `taboo`: a head that is never
    among the random ones; `losses_without(heads)`: mean NLL of each second copy, (lists,).
    Prints how much more all of them cost than the random ones, and returns a table's rows: the
    head, its scores in percent, the loss with all heads up to this one cut out.
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
    return rows


def _with_interval(differences: Tensor) -> str:
    mean, low, high = mean_interval(differences.numpy())  # Student's t: there are few lists
    return f"{mean:+.2f} [{low:+.2f}, {high:+.2f}]"


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


def padded_on_the_right(model: PreTrainedModel, lengths: Tensor) -> Callable[[Tensor], Tensor]:
    """A `next_logits` for prompts that are padded on the right, with their mask and positions.

    `lengths`: tokens of each prompt, (B,). All is as it should be, but the next token is asked for
    at the end of the row, where a short prompt has padding.
    """
    longest = int(lengths.max())

    @torch.inference_mode()
    def next_logits(tokens: Tensor) -> Tensor:
        mask = torch.ones_like(tokens)
        mask[:, :longest] = (torch.arange(longest) < lengths[:, None]).long()
        places = (mask.cumsum(dim=-1) - 1).clamp(min=0)
        options = {"attention_mask": mask, "position_ids": places, "use_cache": False}
        return model(tokens, **options, logits_to_keep=1).logits[:, -1].float()

    return next_logits


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
    """How much less likely the right digit is among other codes, and how much of that is no recall.

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


def costs_more(named: Mapping[int, Sequence[float]], alone: Sequence[float]) -> str:
    """Whether "distance" or "company" takes more off the mean probability of the right digit."""
    nearest, farthest = (float(np.mean(named[d])) for d in (min(named), max(named)))
    return "company" if float(np.mean(alone)) - farthest > nearest - farthest else "distance"


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
