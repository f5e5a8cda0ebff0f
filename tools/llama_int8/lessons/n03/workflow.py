"""What lesson 03 uses without showing it: the cache's other methods, heads cut out, stories."""

import random
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from statistics import median
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from llama_int8.course.heads import attend_with
from llama_int8.measure.results import Results

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


@contextmanager
def without(
    model: PreTrainedModel, heads: Collection[tuple[int, int]], mean: bool = False
) -> Iterator[None]:
    """Within the block, the outputs of these heads, (layer, head) each, are zero.

    `mean`: they are the mean over all positions of the text instead.
    """
    layers, calls = model.config.num_hidden_layers, 0

    def attention(q: Tensor, k: Tensor, v: Tensor, mask: Tensor) -> Tensor:
        nonlocal calls
        mixed = F.scaled_dot_product_attention(q, k, v, mask)  # (B, H, T, D)
        cut = [head for layer, head in heads if layer == calls % layers]
        calls += 1
        if cut:
            mixed[:, cut] = mixed[:, cut].mean(dim=2, keepdim=True) if mean else 0
        return mixed

    with attend_with(model, attention):
        yield


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
    nll: Tensor,
    second: Mapping[str, tuple[float, float]],
    random_losses: Sequence[float],
) -> None:
    """Keep how well a list said twice is copied: with all heads, and with heads cut out.

    `nll`: (lists, 2 T - 1), of the whole model. `second`: (nats, percent right) in the second copy.
    """
    first = nll[:, : nll.shape[1] // 2]
    results.record("copying.first", first.mean().item(), "nats", n=first.numel())
    for name, (loss, right) in second.items():
        results.record(f"copying.{name}", loss, "nats", n=first.numel())
        results.record(f"copying.{name}.right", right, "%", n=first.numel())
    if random_losses:
        n = len(random_losses)
        results.record("copying.random_heads", median(random_losses), "nats", n=n)
        results.record("copying.random_heads.largest", max(random_losses), "nats", n=n)


def in_template(question: str, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Token ids of a question in the model's chat template, up to where the answer begins.

    A base model has no template: there it is the question and a line break.
    """
    if tokenizer.chat_template is None:
        return tokenizer(question + "\n", add_special_tokens=False)["input_ids"]
    message = [{"role": "user", "content": question}]
    filled = tokenizer.apply_chat_template(message, add_generation_prompt=True, return_dict=True)
    return list(filled["input_ids"])


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
