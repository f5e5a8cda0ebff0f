"""Accuracy by likelihood: of several continuations, which does the model find likeliest?

As EleutherAI's lm-evaluation-harness scores PIQA and HellaSwag: `acc` takes the highest
log-likelihood, `acc_norm` the highest per character of the continuation. A test holds every score
and both accuracies against lm-evaluation-harness 0.4.13, which it runs on the same items.
"""

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from llama_int8.evaluation.perplexity import overflow
from llama_int8.evaluation.resume import Journal, Processes, run_batches
from llama_int8.evaluation.tasks import Item, Task

Pack = Callable[[PreTrainedTokenizerBase, Sequence[Item]], list["Packed"]]
"""A way to ask items: how they become rows of tokens."""

# Tokens of a batch, padding included. It is part of the measurement: LLM.int8() finds its outlier
# columns in the batch as a whole.
BATCH_TOKENS = 1024


@dataclass(frozen=True)
class Packed:
    """One item as one row: what all choices begin with once, then the rest of each choice.

    `tails[c]` continue `shared` for choice c; tokens from index `scored` on are the continuation.
    """

    number: int
    shared: list[int]
    tails: list[list[int]]
    scored: int

    def __len__(self) -> int:
        return len(self.shared) + sum(map(len, self.tails))

    @property
    def longest(self) -> int:
        """Tokens of the text with its longest choice: how far positions reach."""
        return len(self.shared) + max(map(len, self.tails))


def pack(tokenizer: PreTrainedTokenizerBase, item: Item, number: int = 0) -> Packed:
    """Tokenize context and choices; the continuation starts where the context's tokens end.

    A token that holds the end of the context and the beginning of a choice is read and not scored.
    The harness reads the context's own tokens in its place. Tokenizers that split texts at spaces
    have no such token.

    Raises ValueError where the context has no token, or a choice adds none.
    """
    # A space at the context's end belongs to the continuation, as in the harness.
    context = tokenizer(item.context.rstrip())["input_ids"]
    rows = [tokenizer(f"{item.context} {choice}")["input_ids"] for choice in item.choices]
    if not context or min(map(len, rows)) <= len(context):
        where = item.where or f"item {number}"
        raise ValueError(f"{where}: its context or a choice has no token of its own: {item}")
    same = len(context)
    while same < min(map(len, rows)) - 1 and len({row[same] for row in rows}) == 1:
        same += 1
    while len({tuple(row[:same]) for row in rows}) > 1:  # the context's last token was merged
        same -= 1
    return Packed(number, rows[0][:same], [row[same:] for row in rows], len(context))


def pack_all(tokenizer: PreTrainedTokenizerBase, items: Sequence[Item]) -> list[Packed]:
    """Every item, with its place in the list as its number."""
    return [pack(tokenizer, item, number) for number, item in enumerate(items)]


def fitting(
    tokenizer: PreTrainedTokenizerBase, task: Task, context: int, packs: Collection[Pack] = ()
) -> Task:
    """The task without the items that are longer than `context` tokens; says how many those are.

    `packs`: other ways in which the same items are asked; they must fit in each. Raises ValueError
    where no item is left.
    """
    items = [item for item in task.items if _fits(tokenizer, item, context, packs)]
    if not items:
        raise ValueError(
            f"all {len(task.items)} items of {task.name} are longer than the {context:,} tokens that "
            "the model reads at once; take a task with shorter items"
        )
    left_out = len(task.items) - len(items)
    if left_out:
        print(
            f"{left_out} of {len(task.items)} items of {task.name} are left out: they are longer than "
            f"the {context:,} tokens that this model reads at once."
        )
    return replace(task, items=tuple(items))


def _fits(
    tokenizer: PreTrainedTokenizerBase, item: Item, context: int, packs: Collection[Pack]
) -> bool:
    size = len("".join((item.context, *item.choices)).encode())
    if size + 64 <= context:  # a token has a byte or more; the rest is for what stands before
        return True
    rows = [row for pack in (pack_all, *packs) for row in pack(tokenizer, [item])]
    return all(row.longest <= context for row in rows)


def batched(rows: Sequence[Packed], batch_tokens: int = BATCH_TOKENS) -> list[list[Packed]]:
    """Longest first, so that little is padded; a batch has at most `batch_tokens`, or one row."""
    batches: list[list[Packed]] = []
    for row in sorted(rows, key=len, reverse=True):
        if not batches or len(batches[-1][0]) * (len(batches[-1]) + 1) > batch_tokens:
            batches.append([])
        batches[-1].append(row)
    return batches


def check_lengths(rows: Sequence[Packed], most: int, items: Sequence[Item] = ()) -> None:
    """Raise ValueError that names the longest item, if it has more than `most` tokens.

    With the `items` of these rows it is named by its line in the file.
    """
    longest = max(rows, key=lambda row: row.longest)
    if longest.longest > most:
        where = items[longest.number].where if items else ""
        raise ValueError(
            f"{where or f'item {longest.number}'} has {longest.longest} tokens, and the model takes "
            f"{most}: leave the item out"
        )


# Rotations whose frequencies follow the longest sequence of a pass.
BY_LENGTH = ("dynamic", "longrope")


def choice_scores(
    model: PreTrainedModel,
    rows: Sequence[Packed],
    batch_tokens: int = BATCH_TOKENS,
    label: str = "items",
    journal: Journal | None = None,
    processes: Processes | None = None,
) -> list[list[float]]:
    """Log-likelihood in nats of every choice of every item, in the order of the items' numbers.

    Raises ValueError for an item that is longer than the model's context, or where NaN or infinity
    comes out.
    """
    check_lengths(rows, model.config.max_position_embeddings)
    scaling = getattr(model.config, "rope_parameters", None) or {}
    if scaling.get("rope_type") in BY_LENGTH:  # one's length would change its neighbours
        batches = [[row] for row in rows]
    else:
        batches = batched(rows, batch_tokens)
    scored = run_batches(batches, partial(score_batch, model), label, journal, processes)
    return [scores for _, scores in sorted(pair for batch in scored for pair in batch)]


def score_batch(model: PreTrainedModel, batch: Sequence[Packed]) -> list[list[Any]]:
    """[number, log-likelihood of each choice] of each row, in one pass over the padded batch."""
    device = model.device
    tokens, positions, mask = (t.to(device) for t in _tensors(batch))
    with torch.inference_mode():
        hidden = model.base_model(
            tokens, attention_mask=mask, position_ids=positions, use_cache=False
        ).last_hidden_state  # (B, T, C)
        rows, places, targets, owners = _scored(batch)
        picked = hidden[rows, places]  # (N, C): only what predicts a scored token
        logits = model.get_output_embeddings()(picked).float()  # (N, V)
        nll = torch.nn.functional.cross_entropy(
            logits, torch.tensor(targets, device=logits.device), reduction="none"
        ).double()
    nll = nll.cpu().numpy()
    if not np.isfinite(nll).all():
        bad = sorted({batch[rows[n]].number for n in np.flatnonzero(~np.isfinite(nll))})
        raise ValueError(f"the logits are NaN or infinite in item(s) {bad[:5]}: {overflow(model)}")
    sums = [[0.0] * len(row.tails) for row in batch]
    for b, value, choices in zip(rows, nll, owners, strict=True):
        for choice in choices:
            sums[b][choice] -= float(value)
    return [[row.number, scores] for row, scores in zip(batch, sums, strict=True)]


def _tensors(batch: Sequence[Packed]) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Token ids (B, T), positions (B, T) and what may be seen (B, 1, T, T).

    A token sees what the choices share and its own choice, up to itself. Padding stands at the end
    as one more choice, which nothing sees.
    """
    longest = max(map(len, batch))
    tokens, positions, parts = [], [], []
    for row in batch:
        tails = [*row.tails, [0] * (longest - len(row))]
        start = len(row.shared)
        tokens.append(row.shared + [token for tail in tails for token in tail])
        own = [*range(start)] + [start + i for tail in row.tails for i in range(len(tail))]
        # Padding stands at 0: some rotations follow the furthest position of a whole batch.
        positions.append(own + [0] * (longest - len(own)))
        parts.append([-1] * start + [c for c, tail in enumerate(tails) for _ in tail])
    part = torch.tensor(parts)  # -1: shared
    same = (part[:, :, None] == part[:, None, :]) | (part[:, None, :] == -1)  # (B, T, T)
    causal = torch.ones(longest, longest, dtype=torch.bool).tril()
    return torch.tensor(tokens), torch.tensor(positions), (same & causal)[:, None]


def _scored(
    batch: Sequence[Packed],
) -> tuple[list[int], list[int], list[int], list[Sequence[int]]]:
    """For each scored token: its row, the place that predicts it, itself, and whose choice it is."""
    rows, places, targets, owners = [], [], [], []

    def add(row: int, place: int, target: int, choices: Sequence[int]) -> None:
        rows.append(row)
        places.append(place)
        targets.append(target)
        owners.append(choices)

    for b, row in enumerate(batch):
        start = len(row.shared)
        for i in range(row.scored, start):  # what all choices begin with
            add(b, i - 1, row.shared[i], range(len(row.tails)))
        offset = start
        for choice, tail in enumerate(row.tails):
            for i, token in enumerate(tail):
                if start + i >= row.scored:
                    add(b, offset + i - 1 if i else start - 1, token, (choice,))
            offset += len(tail)
    return rows, places, targets, owners


def picks(scores: Sequence[Sequence[float]], items: Sequence[Item] | None = None) -> np.ndarray:
    """Number of the likeliest choice of each item, (N,); per character where `items` are given.

    Of equal ones the first.
    """
    if items is not None:
        scores = [
            [s / len(choice) for s, choice in zip(row, item.choices, strict=True)]
            for row, item in zip(scores, items, strict=True)
        ]
    return np.array([int(np.argmax(row)) for row in scores])


def leads(scores: Sequence[Sequence[float]], items: Sequence[Item]) -> np.ndarray:
    """By how many nats per character the right choice leads the best wrong one, (N,)."""
    found = []
    for row, item in zip(scores, items, strict=True):
        each = [s / len(choice) for s, choice in zip(row, item.choices, strict=True)]
        others = [value for number, value in enumerate(each) if number != item.label]
        found.append(each[item.label] - max(others))
    return np.array(found)


def correct(
    scores: Sequence[Sequence[float]], items: Sequence[Item], normalized: bool
) -> np.ndarray:
    """Whether each item is answered right, (N,): by `acc_norm` if `normalized`, else by `acc`."""
    labels = np.array([item.label for item in items])
    return picks(scores, items if normalized else None) == labels
