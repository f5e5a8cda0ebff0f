"""Three plausible ways to a chance-level accuracy, each one slip in an honest evaluation.

Which of them, if any, made a published table is not known. All of them keep the model, the items
and the code that scores; only the question or the tokens that count differ.
"""

from collections.abc import Sequence

from transformers import PreTrainedTokenizerBase

from llama_int8.evaluation.loglikelihood import Pack, Packed, pack_all
from llama_int8.evaluation.tasks import Item

LETTERS = "ABCDEFGH"


def ask_for_a_letter(tokenizer: PreTrainedTokenizerBase, items: Sequence[Item]) -> list[Packed]:
    """List the choices as A, B, ... and compare the letters: small models know no such exam."""

    def lettered(item: Item) -> Item:
        letters = LETTERS[: len(item.choices)]
        lines = [f"{a}. {c.strip()}" for a, c in zip(letters, item.choices, strict=True)]
        question, _, _ = item.context.partition("\nAnswer:")
        context = "\n".join([question, *lines, "Answer:"])
        return Item(context, tuple(letters), item.label)

    return pack_all(tokenizer, [lettered(item) for item in items])


def first_token_alone(tokenizer: PreTrainedTokenizerBase, items: Sequence[Item]) -> list[Packed]:
    """Compare the first token of each choice, as one call of `argmax` over logits suggests.

    Choices that begin alike tie, and of equal ones the first is taken.
    """
    return [
        Packed(
            row.number, shared, [tail[: row.scored + 1 - len(shared)] for tail in tails], row.scored
        )
        for row in pack_all(tokenizer, items)
        for shared, tails in [_unpacked(row)]
    ]


def question_scored(tokenizer: PreTrainedTokenizerBase, items: Sequence[Item]) -> list[Packed]:
    """Score the question instead of the answer, as an inverted label mask does.

    No token sees what comes after it, so the question is as likely before either choice: all tie,
    and the first is taken.
    """
    return [
        Packed(row.number, _unpacked(row)[0], [[] for _ in row.tails], 1)
        for row in pack_all(tokenizer, items)
    ]


def _unpacked(row: Packed) -> tuple[list[int], list[list[int]]]:
    """The part of the context that all choices share, and the rest of each choice in full."""
    # A token merged across the border is in the tails: then less than the context is shared.
    return row.shared[: row.scored], [row.shared[row.scored :] + tail for tail in row.tails]


WRONG_RULES: dict[str, Pack] = {
    "asked for a letter": ask_for_a_letter,
    "first token alone": first_token_alone,
    "question scored": question_scored,
}
