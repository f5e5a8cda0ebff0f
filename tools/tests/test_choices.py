"""Accuracy by likelihood: an item in one row scores as its choices do in passes of their own."""

import math
from dataclasses import dataclass, field

import numpy as np
import pytest
import torch
from byte_tokenizer import byte_tokenizer
from hypothesis import example, given, settings
from hypothesis import strategies as st
from tiny_llama import tiny_llama

from llama_int8.evaluation import loglikelihood, wrong_rules
from llama_int8.evaluation.tasks import Item, Task

WORDS = "a word of seven tokens and more".split()
MERGED = 90  # this token and the next ones stand for a context's last token and what follows it


@dataclass
class ByHeart:
    """A tokenizer that knows its texts by heart, so that any tokens can be tested."""

    known: dict[str, list[int]] = field(default_factory=dict)

    def __call__(self, text: str) -> dict[str, list[int]]:
        return {"input_ids": list(self.known[text])}

    def item(self, context: list[int], rows: list[list[int]]) -> Item:
        """An item whose context, and context with each choice, are these tokens."""
        name = f"context {len(self.known)}"
        self.known[name] = context
        self.known |= {f"{name} {word}": row for word, row in zip(WORDS, rows, strict=False)}
        return Item(name, tuple(WORDS[: len(rows)]), 0)


def packed(questions):
    """Each question, (context, rows of context and choice), as a packed row."""
    tokenizer = ByHeart()
    return loglikelihood.pack_all(tokenizer, [tokenizer.item(*question) for question in questions])


@pytest.fixture(scope="module")
def model():
    return tiny_llama(initializer_range=0.5)


@torch.no_grad()
def alone(model, row, start):
    """Log-likelihood of the tokens from index `start`, in a pass over this one row of tokens."""
    log_p = model(torch.tensor([row])).logits[0].double().log_softmax(-1)
    return sum(log_p[i - 1, row[i]].item() for i in range(start, len(row)))


def all_alone(model, questions):
    return [[alone(model, row, len(context)) for row in rows] for context, rows in questions]


def assert_equal_scores(found, expected):
    assert [len(row) for row in found] == [len(row) for row in expected]
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-4)


# One item in one row

token = st.integers(1, 3)  # few, so that choices often begin alike


@st.composite
def question(draw):
    context = draw(st.lists(token, min_size=1, max_size=6))
    common = draw(st.lists(token, max_size=3))
    rows = []
    for _ in range(draw(st.integers(2, 4))):
        kept = draw(st.just(len(context)) | st.integers(0, len(context)))
        merged = draw(
            st.lists(
                st.integers(MERGED, MERGED + 1),
                min_size=len(context) - kept,
                max_size=len(context) - kept,
            )
        )
        rest = draw(st.lists(token, min_size=not common, max_size=4))
        rows.append([*context[:kept], *merged, *common, *rest])
    return context, rows


ODD_QUESTIONS = {
    "choices that share a beginning": ([5, 6], [[5, 6, 7, 8, 9], [5, 6, 7, 8, 3, 1]]),
    "a choice that begins another": ([5, 6], [[5, 6, 7], [5, 6, 7, 8, 9]]),
    "equal choices": ([5, 6], [[5, 6, 7, 8], [5, 6, 7, 8]]),
    "choices of one token": ([5, 6], [[5, 6, 7], [5, 6, 8], [5, 6, 9], [5, 6, 4]]),
    "a context of one token": ([5], [[5, 7], [5, 8, 9]]),
    "the border merged in one choice": ([5, 6], [[5, MERGED, 8], [5, 6, 8, 8]]),
    "the border merged in all": ([5, 6], [[5, MERGED, 8], [5, MERGED, 9]]),
    "nothing shared": ([5], [[MERGED, 8], [MERGED + 1, 8, 9]]),
}


@pytest.mark.parametrize("odd", ODD_QUESTIONS)
def test_an_item_scores_as_its_choices_do_alone(model, odd):
    questions = [ODD_QUESTIONS[odd]]
    assert_equal_scores(
        loglikelihood.choice_scores(model, packed(questions)), all_alone(model, questions)
    )


@settings(max_examples=60, deadline=None)
@given(st.lists(question(), min_size=1, max_size=5), st.integers(1, 150), st.randoms())
@example(list(ODD_QUESTIONS.values()), 1024, None)
@example(list(ODD_QUESTIONS.values()), 1, None)
def test_neither_packing_nor_the_batch_nor_the_order_changes_a_score(model, questions, budget, mix):
    rows = packed(questions)
    if mix:
        mix.shuffle(rows)
    found = loglikelihood.choice_scores(model, rows, batch_tokens=budget)
    assert_equal_scores(found, all_alone(model, questions))


@given(question())
def test_a_packed_row_holds_every_choice_and_what_they_share_once(question):
    context, rows = question
    (row,) = packed([question])
    assert [row.shared + tail for tail in row.tails] == rows
    assert row.scored == len(context)
    assert all(row.tails), "the last token of a choice is its own"
    lengths = len(row.shared), *map(len, row.tails)
    assert len(row) == sum(lengths)
    # Nothing more could be shared: the choices go on differently, or one has only its last token.
    assert len({tail[0] for tail in row.tails}) > 1 or min(lengths[1:]) == 1 or not row.shared[-1:]


def test_what_choices_share_is_computed_once():
    (row,) = packed([([5, 6, 7], [[5, 6, 7, 8, 1, 2], [5, 6, 7, 8, 3]])])
    assert (row.shared, row.tails, row.scored) == ([5, 6, 7, 8], [[1, 2], [3]], 3)


def test_padding_is_seen_by_nothing(model):
    """The embedding of token 0, which pads, may be anything."""
    questions = [([5, 6], [[5, 6, 7], [5, 6, 8]]), ([5, 6], [[5, 6, 7, 1, 2], [5, 6, 8, 3, 4]])]
    before = loglikelihood.choice_scores(model, packed(questions))
    other = tiny_llama(initializer_range=0.5)
    with torch.no_grad():
        other.get_input_embeddings().weight[0] += 1
    assert loglikelihood.choice_scores(other, packed(questions)) == before


def test_no_choice_sees_another(model):
    one, other = [5, 6, 7, 1, 2, 3], [5, 6, 8, 3, 4]
    (with_other,) = loglikelihood.choice_scores(model, packed([([5, 6], [one, other])]))
    (with_third,) = loglikelihood.choice_scores(model, packed([([5, 6], [one, [5, 6, 9, 9, 9]])]))
    assert with_other[0] == with_third[0]
    assert with_other[1] != with_third[1]


# Tokenization


def text_of(tokenizer, tokens):
    return tokenizer.convert_ids_to_tokens(tokens)


def test_the_continuation_begins_with_the_space_before_the_choice():
    tokenizer = byte_tokenizer()
    row = loglikelihood.pack(tokenizer, Item("Q:", ("ab", "cd"), 0))
    assert text_of(tokenizer, row.shared) == ["Q", ":", "Ġ"]
    assert [text_of(tokenizer, tail) for tail in row.tails] == [["a", "b"], ["c", "d"]]
    assert row.scored == 2


def test_a_start_token_belongs_to_the_context():
    row = loglikelihood.pack(byte_tokenizer(start=True), Item("Q:", ("ab", "cd"), 0))
    assert row.shared[0] == 0
    assert row.scored == 3
    assert 0 not in row.tails[0] + row.tails[1]


def test_a_token_across_the_border_is_context_and_not_scored():
    tokenizer = byte_tokenizer((":", "Ġ"), (":Ġ", "a"))
    row = loglikelihood.pack(tokenizer, Item("Q:", ("ab", "cd"), 0))
    assert text_of(tokenizer, row.shared) == ["Q"]
    assert [text_of(tokenizer, t) for t in row.tails] == [[":Ġa", "b"], [":Ġ", "c", "d"]]
    model = tiny_llama(initializer_range=0.5, vocab_size=len(tokenizer))
    whole = [tokenizer(f"Q: {choice}")["input_ids"] for choice in ("ab", "cd")]
    expected = [[alone(model, tokens, 2) for tokens in whole]]
    assert_equal_scores(loglikelihood.choice_scores(model, [row]), expected)


def test_a_space_at_the_end_of_a_context_goes_to_the_continuation():
    """As in the harness: else a context of HellaSwag that ended in a bracket is scored otherwise."""
    tokenizer = byte_tokenizer()
    row = loglikelihood.pack(tokenizer, Item("Q: ", ("ab", "cd"), 0))
    assert text_of(tokenizer, row.shared) == ["Q", ":", "Ġ", "Ġ"]
    assert row.scored == 2


@pytest.mark.parametrize(
    ("item", "merges"),
    [
        (Item("", ("a", "b"), 0), ()),
        (Item("  ", ("a", "b"), 0), ()),
        (Item("Q:", ("a", "b"), 0), ((":", "Ġ"), (":Ġ", "a"))),
    ],
    ids=["an empty context", "a blank context", "a choice merged away"],
)
def test_what_has_no_token_of_its_own_is_named(item, merges):
    with pytest.raises(ValueError, match="item 7: its context or a choice has no token"):
        loglikelihood.pack(byte_tokenizer(*merges), item, 7)


def test_an_empty_choice_is_named():
    tokenizer = ByHeart()
    item = tokenizer.item([5, 6], [[5, 6, 7], [5, 6]])
    with pytest.raises(ValueError, match="item 3: its context or a choice has no token"):
        loglikelihood.pack(tokenizer, item, 3)


def test_an_empty_context_scores_after_the_start_token_where_there_is_one():
    row = loglikelihood.pack(byte_tokenizer(start=True), Item("", ("a", "b"), 0))
    assert (row.shared[0], row.scored) == (0, 1)


# Batches

lengths = st.lists(st.integers(1, 40), min_size=1, max_size=30)


@given(lengths, st.integers(1, 150))
def test_a_batch_holds_at_most_its_tokens_or_one_row_and_every_row_is_in_one(lengths, budget):
    rows = [loglikelihood.Packed(n, [1] * length, [], 1) for n, length in enumerate(lengths)]
    batches = loglikelihood.batched(rows, budget)
    assert sorted(row.number for batch in batches for row in batch) == list(range(len(rows)))
    for batch in batches:
        assert max(map(len, batch)) * len(batch) <= budget or len(batch) == 1
    for batch in batches[:-1]:
        assert len(batch[0]) * (len(batch) + 1) > budget, "one more row would fit"
    # Longest first, and of equally long ones the first: the same batches on every machine.
    order = [row.number for batch in batches for row in batch]
    assert order == sorted(range(len(rows)), key=lambda n: (-lengths[n], n))


# From scores to answers


# That both rules are the harness' is shown in test_against_lm_eval.py.


def test_a_character_of_several_bytes_counts_once():
    item = Item("", ("ä€ä€", "long"), 0)  # ten bytes, and four
    assert loglikelihood.picks([[-4.0, -3.0]], [item]).tolist() == [1]
    assert loglikelihood.correct([[-4.0, -3.0]], [item], normalized=True).tolist() == [False]


def test_of_equal_scores_the_first_choice_is_picked():
    assert loglikelihood.picks([[-2.0, -2.0], [-3.0, -1.0], [-1.0, -1.0]]).tolist() == [0, 1, 0]
    item = Item("", ("ab", "abcd", "a"), 0)
    assert loglikelihood.picks([[-2.0, -4.0, -1.0]], [item]).tolist() == [0]


def test_a_long_answer_may_win_by_the_character_and_lose_by_the_sum():
    item = Item("", ("no", "a long answer"), 1)
    scores = [[-4.0, -13.0]]
    assert loglikelihood.correct(scores, [item], normalized=False).tolist() == [False]
    assert loglikelihood.correct(scores, [item], normalized=True).tolist() == [True]


# What cannot be scored


def test_an_overflow_is_reported_with_the_item():
    model = tiny_llama()
    with torch.no_grad():
        model.get_input_embeddings().weight[42] = math.nan
    questions = [([5, n], [[5, n, 7], [5, n, 8, 9]]) for n in (6, 42, 7, 42)]
    for budget in (1, 1000):
        with pytest.raises(ValueError, match=r"the logits are NaN or infinite in item\(s\) \[[13]"):
            loglikelihood.choice_scores(model, packed(questions), budget)
    with pytest.raises(ValueError, match=r"item\(s\) \[1, 3\]"):
        loglikelihood.score_batch(model, packed(questions))


def test_an_infinite_score_is_reported_with_the_item():
    model = tiny_llama()
    row = packed([([5, 6], [[5, 6, 7], [5, 6, 8]])] * 2)
    head = model.get_output_embeddings()

    def overflow(_module, _inputs, logits):
        logits[-1, 8] = -math.inf  # what predicts the second item's second choice

    handle = head.register_forward_hook(overflow)
    with pytest.raises(ValueError, match=r"item\(s\) \[1\]"):
        loglikelihood.score_batch(model, row)
    handle.remove()


def test_an_item_longer_than_the_models_context_is_named():
    model = tiny_llama(max_position_embeddings=8)
    fits = ([5, 6], [[5, 6, choice, *range(5)] for choice in (7, 8, 9)])  # 20 tokens in its row
    too_long = ([5, 6], [[5, 6, 9], [5, 6, *range(7)]])
    assert len(loglikelihood.choice_scores(model, packed([fits]))) == 1
    with pytest.raises(ValueError, match="item 1 has 9 tokens, and the model takes 8"):
        loglikelihood.choice_scores(model, packed([fits, too_long, fits]))


def test_choices_that_fit_one_by_one_fit_together():
    """What counts is how far a choice reaches from the text's beginning."""
    model = tiny_llama(initializer_range=0.5, max_position_embeddings=8)
    questions = [([5, 6], [[5, 6, c, 1, 2, 3, 4, 5] for c in (7, 8, 9)])]
    assert_equal_scores(
        loglikelihood.choice_scores(model, packed(questions)), all_alone(model, questions)
    )


# Three wrong rules


ITEMS = [
    Item("Question: Why?\nAnswer:", ("Because.", " Never mind. "), 1),
    Item("No question", ("So.", "So not"), 0),
]


def shown(tokenizer, row):
    """The packed row in words: the context and each continuation, read as text."""

    def read(tokens):
        return "".join(text_of(tokenizer, tokens)).replace("Ġ", " ").replace("Ċ", "\n")

    wholes = [row.shared + tail for tail in row.tails]
    texts = [(read(whole[: row.scored]), read(whole[row.scored :])) for whole in wholes]
    assert len({context for context, _ in texts}) == 1
    return texts[0][0], [continuation for _, continuation in texts]


def test_the_right_rule_scores_the_words_of_each_choice():
    tokenizer = byte_tokenizer()
    found = [shown(tokenizer, row) for row in loglikelihood.pack_all(tokenizer, ITEMS)]
    assert found == [
        ("Question: Why?\nAnswer:", [" Because.", "  Never mind. "]),
        ("No question", [" So.", " So not"]),
    ]


def test_asking_for_a_letter_lists_the_choices_and_scores_the_letters():
    tokenizer = byte_tokenizer()
    rows = wrong_rules.ask_for_a_letter(tokenizer, ITEMS)
    assert [row.number for row in rows] == [0, 1]
    assert [shown(tokenizer, row) for row in rows] == [
        ("Question: Why?\nA. Because.\nB. Never mind.\nAnswer:", [" A", " B"]),
        ("No question\nA. So.\nB. So not\nAnswer:", [" A", " B"]),
    ]


def test_the_first_token_alone_forgets_the_rest_of_each_choice():
    tokenizer = byte_tokenizer(("Ġ", "B"), ("Ġ", "S"))
    rows = wrong_rules.first_token_alone(tokenizer, ITEMS)
    assert [row.number for row in rows] == [0, 1]
    assert [shown(tokenizer, row) for row in rows] == [
        ("Question: Why?\nAnswer:", [" B", " "]),
        ("No question", [" S", " S"]),
    ]


def test_choices_that_begin_alike_tie_by_their_first_token(model):
    tokenizer = ByHeart()
    item = tokenizer.item([5, 6], [[5, 6, 7, 8, 9], [5, 6, 7, 8, 3]])
    scores = loglikelihood.choice_scores(model, wrong_rules.first_token_alone(tokenizer, [item]))
    expected = alone(model, [5, 6, 7], 2)
    assert scores[0] == pytest.approx([expected, expected], abs=1e-5)
    assert scores[0][0] == scores[0][1]


@pytest.mark.parametrize("odd", ODD_QUESTIONS)
def test_the_first_token_alone_is_the_first_of_the_score(model, odd):
    context, rows = ODD_QUESTIONS[odd]
    tokenizer = ByHeart()
    short = wrong_rules.first_token_alone(tokenizer, [tokenizer.item(context, rows)])
    expected = [[alone(model, row[: len(context) + 1], len(context)) for row in rows]]
    assert_equal_scores(loglikelihood.choice_scores(model, short), expected)


def test_a_scored_question_is_as_likely_before_either_choice(model):
    tokenizer = ByHeart()
    context = [5, 6, 3, 2]
    unlike = tokenizer.item(context, [[*context, 7, 8, 9], [*context, 4]])
    alike = tokenizer.item(context, [[*context, 7, 8, 9], [*context, 7, 8, 1]])
    scores = loglikelihood.choice_scores(
        model, wrong_rules.question_scored(tokenizer, [unlike, alike])
    )
    assert_equal_scores(scores, [[alone(model, context, 1)] * 2] * 2)
    assert loglikelihood.picks(scores).tolist() == [0, 0], "all tie, and the first is taken"


@pytest.mark.parametrize("rule", wrong_rules.WRONG_RULES)
def test_every_wrong_rule_keeps_the_items_their_order_and_their_choices(rule):
    rows = wrong_rules.WRONG_RULES[rule](byte_tokenizer(), ITEMS)
    assert [(row.number, len(row.tails)) for row in rows] == [(0, 2), (1, 2)]


# --------------------------------------------------------------------------------------------
# Items that are longer than the model's context


def sized(*sizes: int) -> Task:
    """A task whose items have so many bytes, with " yes" as the longer choice."""
    items = tuple(Item("Q" * (size - 4), ("no", "yes"), 0) for size in sizes)
    return Task("letters", "here", items=items)


def test_items_beyond_the_context_are_left_out_and_said(capsys):
    tokenizer = byte_tokenizer()  # a token for each byte
    task = sized(50, 101, 100, 300)
    found = loglikelihood.fitting(tokenizer, task, 100)
    assert [len(item.context) + 4 for item in found.items] == [50, 100]
    assert (found.name, found.source) == (task.name, task.source)
    assert capsys.readouterr().out == (
        "2 of 4 items of letters are left out: they are longer than the 100 tokens that this model "
        "reads at once.\n"
    )


def test_where_all_items_fit_nothing_changes_and_nothing_is_said(capsys):
    task = sized(50, 101, 100, 300)
    assert loglikelihood.fitting(byte_tokenizer(), task, 300) == task
    assert capsys.readouterr().out == ""


def test_a_start_token_counts():
    assert len(loglikelihood.fitting(byte_tokenizer(start=True), sized(99, 100), 100).items) == 1


def test_items_must_fit_in_every_way_in_which_they_are_asked():
    tokenizer, task = byte_tokenizer(), sized(90, 60)  # letters add two lines to the question
    rules = wrong_rules.WRONG_RULES.values()
    kept = loglikelihood.fitting(tokenizer, task, 100, rules).items
    assert kept == task.items[1:]
    asked = [row for pack in rules for row in pack(tokenizer, kept)]
    assert max(row.longest for row in asked) <= 100


def test_where_no_item_fits_the_message_says_what_to_do():
    with pytest.raises(ValueError, match="all 2 items of letters are longer than the 64 tokens"):
        loglikelihood.fitting(byte_tokenizer(), sized(70, 80), 64)


@pytest.mark.parametrize("kind", ["default", "dynamic", "longrope"])
def test_a_short_items_scores_do_not_follow_its_neighbours(kind):
    """Some rotations follow the furthest position of a pass, padding's included."""
    rope = {"rope_type": kind, "rope_theta": 10_000.0, "factor": 4.0}
    factors = {"short_factor": [1.0] * 4, "long_factor": [4.0, 3.0, 2.0, 5.0]}
    rope |= {**factors, "original_max_position_embeddings": 24} if kind == "longrope" else {}
    rope = {"rope_type": "default", "rope_theta": 10_000.0} if kind == "default" else rope
    model = tiny_llama(
        rope_parameters=rope, max_position_embeddings=24 if kind == "dynamic" else 96
    )
    generator = np.random.default_rng(0)

    def row(number, tails):
        ids = generator.integers(0, 97, (1 + tails, 4)).tolist()
        return loglikelihood.Packed(number, ids[0], ids[1:], 4)

    short, long = row(0, 2), row(1, 12)  # which fills the short one up with 40 tokens
    alone = loglikelihood.choice_scores(model, [short])
    beside = loglikelihood.choice_scores(model, [short, long])
    np.testing.assert_allclose(beside[0], alone[0], rtol=1e-4)
