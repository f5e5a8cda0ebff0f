"""Choosing tokens, beam search, the KV cache: against Hugging Face, enumeration and float64."""

import functools
import itertools
import math
import random
from types import SimpleNamespace

import helpers
import numpy as np
import pytest
import torch
from helpers import refused
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from test_notebook_definitions import definitions
from tiny_llama import tiny_llama
from torch.nn import functional as F
from transformers import (
    DynamicCache,
    LlamaForCausalLM,
    LogitsProcessorList,
    RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from llama_int8.course.heads import attention_maps
from llama_int8.lessons.n03 import exercises as shown
from llama_int8.lessons.n03 import workflow
from llama_int8.measure.statistics import Spread
from llama_int8.models import DEFAULT_MODEL, load_model, load_tokenizer
from llama_int8.models.cost import kv_cache_bytes
from llama_int8.transformer.config import LlamaConfig
from llama_int8.transformer.generation import (
    KVCache,
    Sampler,
    beam_search,
    generate,
    greedy,
    keep_top_k,
    keep_top_p,
    next_logits,
    penalize_repetition,
    sampling_probabilities,
    scale_temperature,
)

INF, NAN = math.inf, math.nan
CONTEXT = 32
TEXTS = [
    "The capital of France is",
    "def fibonacci(n):\n    if n < 2:\n        return n\n    return",
    "1, 2, 3, 4, 5, 6, 7, 8,",
    "Once upon a time, in a village by the sea, there lived",
    "Der Zug nach Berlin fährt heute nicht, weil",
    "Question: How many legs does a spider have?\nAnswer:",
    "the the the the the the the the the the the the",
    "<html><head><title>A page</title></head><body>",
    "SELECT name, age FROM people WHERE age >",
    "To be, or not to be, that is the question:",
    "日本の首都は東京です。フランスの首都は",
    "x = 3; y = 4; the hypotenuse is",
    "Dear Sir or Madam,\n\nI am writing to",
    "🙂🙂🙂🙂🙂🙂 means that",
    "Water boils at 100 degrees Celsius and freezes at",
    "!!!!????....,,,,;;;;::::",
    "Ingredients: two eggs, a cup of flour, a pinch of salt,",
    "E = mc^2 is the best known equation of",
    "She opened the door very slowly, and behind it she saw",
    "import numpy as np\nimport torch\nfrom torch import",
    "In 1969 the first people landed on the moon. Their names were",
    "Roses are red, violets are blue, sugar is sweet, and",
    "A B C D E F G H I J K L M",
    "    \n\n\t  \n indented text comes here, and then it",
]


@functools.cache
def opinionated(vocabulary=11, seed=0, spread=0.6):
    """A random model with decided opinions and no end token of its own."""
    ends = {"bos_token_id": None, "eos_token_id": None}
    return tiny_llama(
        seed,
        vocab_size=vocabulary,
        num_hidden_layers=2,
        max_position_embeddings=CONTEXT,
        initializer_range=spread,
        **ends,
    )


@pytest.fixture(scope="module")
def real():
    model = load_model(DEFAULT_MODEL, "fp32", "cpu")
    model.generation_config.eos_token_id = None
    return model


@pytest.fixture(scope="module")
def prompts():
    """The texts' first tokens: prompts of 2, 4, 6 and 9 tokens, six of each."""
    tokenizer = load_tokenizer(DEFAULT_MODEL)
    tokens = [tokenizer(text)["input_ids"] for text in TEXTS]
    return [
        torch.tensor([text[:length] for text in tokens[group::4]])
        for group, length in enumerate([2, 4, 6, 9])
    ]


class Table:
    """A "model" whose next logits are a row of a table: that of the last token."""

    def __init__(self, table, context=64):
        self.table, self.calls = torch.as_tensor(table, dtype=torch.float32), 0
        self.config = SimpleNamespace(vocab_size=len(table), max_position_embeddings=context)

    def __call__(self, tokens, **_options):
        self.calls += 1
        return self.answer(self.table[tokens])

    def answer(self, logits):
        return SimpleNamespace(logits=logits)


random_tokens = functools.partial(helpers.random_tokens, vocabulary=25)


def chain(*successors):
    """A model that is sure which token follows each token."""
    return Table(10 * torch.eye(len(successors))[list(successors)])


def hugging_face(model, prompt, new, end=(), **options):
    """What Hugging Face's `generate` answers without sampling."""
    off = dict.fromkeys(["temperature", "top_p", "top_k"])
    return model.generate(
        prompt,
        attention_mask=torch.ones_like(prompt),
        max_new_tokens=new,
        do_sample=False,
        eos_token_id=list(end) or None,
        pad_token_id=0,
        **off,
        **options,
    )


def filled_with_the_end(tokens, start, end):
    """Hugging Face's padding after an end token, replaced by that token."""
    tokens = tokens.clone()
    for row in tokens:
        for position in range(start, len(row)):
            if row[position].item() in end:
                row[position:] = row[position].clone()
    return tokens


# --- greedy -----------------------------------------------------------------------------------


@pytest.mark.slow  # needs the package index, once
def test_greedy_is_hugging_faces_token_for_token(real, prompts):
    for batch in prompts:
        assert torch.equal(generate(real, batch, 16), hugging_face(real, batch, 16))


@pytest.mark.slow  # needs the package index, once
def test_one_prompt_alone_continues_as_in_hugging_face_with_and_without_cache(real, prompts):
    for prompt in (prompts[0][:1], prompts[2][:1]):
        expected = hugging_face(real, prompt, 8)
        assert torch.equal(generate(real, prompt, 8), expected)
        assert torch.equal(generate(real, prompt, 8, use_cache=False), expected)


@pytest.mark.slow  # needs the package index, once
def test_the_real_model_ends_where_it_ends_in_hugging_face(real, prompts):
    tokenizer = load_tokenizer(DEFAULT_MODEL)
    end = {tokenizer.encode(text)[0] for text in (".", ",", "\n")}
    batch = prompts[2]
    ours, theirs = generate(real, batch, 12, end=end), hugging_face(real, batch, 12, end)
    assert torch.equal(ours, filled_with_the_end(theirs, batch.shape[1], end))
    new = ours[:, batch.shape[1] :].tolist()
    lengths = {next((i for i, t in enumerate(row) if t in end), 12) for row in new}
    assert len(lengths) > 2  # the rows did end apart


@settings(max_examples=60, deadline=None)
@given(data=st.data(), rows=st.integers(1, 4), length=st.integers(1, 5), new=st.integers(1, 9))
def test_a_tiny_models_greedy_tokens_are_hugging_faces(data, rows, length, new):
    vocabulary = data.draw(st.sampled_from([1, 2, 5, 11]))
    tokens = st.integers(0, vocabulary - 1)
    row = st.lists(tokens, min_size=length, max_size=length)
    prompt = torch.tensor(data.draw(st.lists(row, min_size=rows, max_size=rows)))
    end = data.draw(st.sets(tokens, max_size=3))
    model = opinionated(vocabulary, data.draw(st.integers(0, 9)))
    expected = filled_with_the_end(hugging_face(model, prompt, new, end), length, end)
    for use_cache in (True, False):
        assert torch.equal(generate(model, prompt, new, end=end, use_cache=use_cache), expected)


def test_greedy_takes_the_largest_logit_of_each_row():
    assert greedy(torch.tensor([[1.0, 3, 2], [-1, -3, -2]]), torch.zeros(2, 1)).tolist() == [1, 0]


def test_rows_that_ended_repeat_their_end_token_while_others_go_on():
    model = chain(1, 2, 3, 4, 5, 0)
    tokens = generate(model, torch.tensor([[0], [1], [3]]), 8, end=[2, 5])
    assert tokens.tolist() == [[0, 1, 2], [1, 2, 2], [3, 4, 5]]


def test_generation_stops_when_all_rows_have_ended_and_not_before():
    model = chain(1, 2, 3, 4, 5, 0)
    generate(model, torch.tensor([[0], [3]]), 8, end=[4])
    assert model.calls == 4
    model.calls = 0
    assert generate(model, torch.tensor([[0], [3]]), 8).shape == (2, 9)
    assert model.calls == 8


def test_an_end_token_in_the_prompt_ends_nothing():
    assert generate(chain(1, 2, 0), torch.tensor([[2]]), 3, end=[2]).tolist() == [[2, 0, 1, 2]]


def test_a_model_may_answer_with_bare_logits():
    model = chain(1, 2, 0)
    model.answer = lambda logits: logits
    assert generate(model, torch.tensor([[1]]), 2).tolist() == [[1, 2, 0]]


@pytest.mark.parametrize("search", [generate, functools.partial(beam_search, beams=3)])
def test_the_prompt_stays_as_it_was_and_no_gradient_is_kept(search):
    model, prompt = opinionated(), torch.tensor([[3, 1, 4]])
    found = search(model, prompt, 5)
    assert prompt.tolist() == [[3, 1, 4]] and found[:, :3].tolist() == [[3, 1, 4]]
    assert found.is_inference() and not found.requires_grad
    assert all(p.requires_grad and p.grad is None for p in model.parameters())


def test_with_a_cache_each_token_is_computed_once():
    model, fed = opinionated(seed=3), []
    hook = model.register_forward_pre_hook(lambda _module, inputs: fed.append(inputs[0].shape[1]))
    generate(model, torch.tensor([[1, 2, 3]]), 4)
    generate(model, torch.tensor([[1, 2, 3]]), 4, use_cache=False)
    hook.remove()
    assert fed == [3, 1, 1, 1, 3, 4, 5, 6]


# --- beam search ------------------------------------------------------------------------------


@pytest.mark.slow  # needs the package index, once
@pytest.mark.parametrize(
    ("beams", "penalty", "ends"),
    [
        (1, 1.0, True),
        (2, 0.0, False),
        (2, 2.0, True),
        (2, -1.0, True),
        (4, 0.0, True),
        (4, 0.5, True),
        (4, 1.0, False),
        (4, 1.0, True),
    ],
)
def test_beam_search_is_hugging_faces_on_a_real_model(real, prompts, beams, penalty, ends):
    tokenizer = load_tokenizer(DEFAULT_MODEL)
    end = {tokenizer.encode(text)[0] for text in (".", ",")} if ends else set()
    prompt = prompts[beams - 1][1:2] if ends else prompts[3][2:3]
    expected = hugging_face(real, prompt, 8, end, num_beams=beams, length_penalty=penalty)
    assert torch.equal(beam_search(real, prompt, 8, beams, penalty, end), expected)


@pytest.mark.parametrize("penalty", [0.0, 1.0, 2.0, 0.5, -1.0])
@pytest.mark.parametrize("beams", [1, 2, 3, 4])
def test_beam_search_is_hugging_faces_on_tiny_models_that_do_end(beams, penalty):
    shorter = 0
    for seed in range(12):  # every vocabulary with every set of ends
        vocabulary = [3, 5, 11, 40][seed % 4]
        model = opinionated(vocabulary, seed % 8, [0.3, 0.6, 1.0][seed % 3])
        end = [[], [0], [1, 2]][seed // 4 % 3]
        prompt = random_tokens(1, 1 + seed % 3, vocabulary=vocabulary, seed=seed)
        expected = hugging_face(model, prompt, 9, end, num_beams=beams, length_penalty=penalty)
        assert torch.equal(beam_search(model, prompt, 9, beams, penalty, end), expected)
        shorter += expected.shape[1] < prompt.shape[1] + 9
    assert shorter  # else no end was ever met


@pytest.mark.parametrize("penalty", [0.0, 1.0, 2.0, 0.5, -1.0])
@pytest.mark.parametrize("end", [(), (2,), (0, 3)])
def test_with_enough_beams_nothing_scores_higher(penalty, end):
    vocabulary, new = 4, 3
    for seed in range(6):
        model, prompt = opinionated(vocabulary, seed), torch.tensor([[seed % 4, 1]])
        found = beam_search(model, prompt, new, vocabulary**new, penalty, end)
        continuations = torch.tensor(list(itertools.product(range(vocabulary), repeat=new)))
        whole = torch.cat([prompt.expand(len(continuations), -1), continuations], dim=1)
        with torch.no_grad():
            logs = model(whole[:, :-1]).logits[:, 1:].double().log_softmax(-1)
        logs = logs.gather(2, continuations[:, :, None])[:, :, 0]
        scores = {}
        for tokens, log in zip(continuations.tolist(), logs, strict=True):
            length = next((i for i, token in enumerate(tokens, 1) if token in end), new)
            scores[tuple(tokens[:length])] = log[:length].sum().item() / length**penalty
        assert tuple(found[0, 2:].tolist()) == max(scores, key=scores.get)


@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 9), first=st.integers(0, 10), penalty=st.floats(-2, 2), end=st.booleans()
)
def test_one_beam_is_greedy(seed, first, penalty, end):
    model, prompt, end = opinionated(11, seed), torch.tensor([[first, 4]]), [3, 7] if end else []
    found = beam_search(model, prompt, 8, 1, penalty, end)
    assert torch.equal(found, generate(model, prompt, 8, end=end))


FORK = torch.tensor(
    [  # from token 0 a short way of 0.5 * 0.4, and a long one of 0.4 * 0.9 * 0.9
        [0, 0.5, 0.4, 0.1],
        [0, 0.3, 0.3, 0.4],
        [0, 0.05, 0.9, 0.05],
        [0.25, 0.25, 0.25, 0.25],
    ]
).log()


def test_two_beams_find_what_greedy_misses():
    prompt = torch.tensor([[0]])
    assert generate(Table(FORK), prompt, 3).tolist() == [[0, 1, 3, 0]]
    assert beam_search(Table(FORK), prompt, 3, 2).tolist() == [[0, 2, 2, 2]]


@pytest.mark.parametrize(
    ("penalty", "found"), [(-9.0, [0, 3]), (0.0, [0, 2, 2, 2]), (9.0, [0, 2, 2, 2])]
)
def test_a_larger_length_penalty_favours_longer_answers(penalty, found):
    # ln 0.1 stands against 2 ** -penalty ln 0.2 and 3 ** -penalty ln 0.324.
    assert beam_search(Table(FORK), torch.tensor([[0]]), 3, 3, penalty, [3]).tolist() == [found]


def test_beam_search_stops_when_no_running_beam_scores_above_the_worst_finished_one():
    half = math.log(0.5)
    table = [[-INF, half, half], [half, half, -INF], [half, -INF, half]]
    model = Table(table)  # both beams end after one step with ln 0.5; nothing later beats that
    beam_search(model, torch.tensor([[0]]), 20, 2, 0.0, [1, 2])
    assert model.calls == 1


def test_a_running_beam_that_only_equals_the_worst_finished_one_does_not_keep_the_search_going():
    model = Table([[-INF, 0, 0]] * 3)  # after two steps 1/4 stands against 1/2 and 1/4
    beam_search(model, torch.tensor([[0]]), 20, 2, 0.0, [2])
    assert model.calls == 2


def test_however_many_ends_come_first_as_many_beams_as_asked_go_on():
    start = [0.2, 0.19, 0.18, 0.3, 0.13, 0]  # 0, 1, 2 end; 4, the second that goes on, pays off
    rows = [start, start, start, [1 / 6] * 6, [0, 0, 0, 0, 1, 0], start]
    model = Table(torch.tensor(rows).log())
    found = beam_search(model, torch.tensor([[5]]), 3, 2, end=[0, 1, 2])
    assert found.tolist() == [[5, 4, 4, 4]]


def test_beam_search_returns_the_best_finished_answer_though_worse_ones_finish_later():
    # 0.6 ends at once; the other beam ends a step later with 0.4.
    logits = torch.tensor([[0, 0.4, 0.6], [0, 0, 1.0], [0, 0, 1.0]]).log()
    assert beam_search(Table(logits), torch.tensor([[0]]), 5, 2, 0.0, [2]).tolist() == [[0, 2]]


def test_beams_can_end_all_at_once():
    found = beam_search(Table(FORK), torch.tensor([[0]]), 5, 3, end=[0, 1, 2, 3])
    assert found.tolist() == [[0, 1]]


# --- the logits functions, against Hugging Face -----------------------------------------------

ODD = [-INF, -1e30, -3.0, -0.0, 0.0, 1e-30, 2.5, 1e30]
LOGIT = st.sampled_from(ODD) | st.floats(-30, 30, width=32)


@st.composite
def logits_rows(draw, logit=LOGIT, most=12):
    """(B, V) with at least one finite logit in each row, ties and extremes included."""
    vocabulary = draw(st.integers(1, most))
    row = st.lists(logit, min_size=vocabulary, max_size=vocabulary).filter(lambda r: max(r) > -INF)
    return torch.tensor(draw(st.lists(row, min_size=1, max_size=3)), dtype=torch.float32)


def float64_probabilities(row):
    """Softmax by plain loops."""
    largest = max(row)
    weights = [math.exp(x - largest) for x in row]
    return [weight / math.fsum(weights) for weight in weights]


@settings(deadline=None)
@given(logits=logits_rows(), temperature=st.floats(1e-3, 1e3))
def test_temperature_is_hugging_faces(logits, temperature):
    expected = TemperatureLogitsWarper(temperature)(None, logits)
    assert torch.equal(scale_temperature(logits, temperature), expected)


@settings(deadline=None)
@given(logits=logits_rows(), k=st.integers(1, 15))
def test_top_k_is_hugging_faces(logits, k):
    assert torch.equal(keep_top_k(logits, k), TopKLogitsWarper(k)(None, logits))


@settings(deadline=None)
@given(logits=logits_rows(), p=st.floats(0.001, 0.999))
def test_top_p_is_hugging_faces_away_from_the_rounding(logits, p):
    for row in logits.tolist():
        held = np.cumsum(sorted(float64_probabilities(row), reverse=True))
        assume(np.abs(held - p).min() > 1e-5)
    ours, theirs = keep_top_p(logits, p), TopPLogitsWarper(p)(None, logits)
    kept = ours > -INF
    assert torch.equal(ours[kept], logits[kept])
    # Of tied tokens the two may keep different ones, but as many.
    assert torch.equal(ours.sort(-1).values, theirs.sort(-1).values)


@settings(deadline=None)
@given(data=st.data(), logits=logits_rows(), penalty=st.floats(0.01, 100))
def test_repetition_penalty_is_hugging_faces(data, logits, penalty):
    token = st.integers(0, logits.shape[1] - 1)
    length = data.draw(st.integers(1, 6))
    tokens = torch.tensor([[data.draw(token) for _ in range(length)] for _ in logits])
    expected = RepetitionPenaltyLogitsProcessor(penalty)(tokens, logits.clone())
    before = logits.clone()
    assert torch.equal(penalize_repetition(logits, tokens, penalty), expected)
    assert torch.equal(logits, before)


@pytest.mark.parametrize(
    "options",
    [
        {"temperature": 0.3},
        {"temperature": 3.0, "top_p": 0.6},
        {"temperature": 0.4, "top_k": 4},
        {"top_k": 3, "top_p": 0.7},
        {"repetition_penalty": 1.8},
        {"temperature": 1.7, "top_k": 6, "top_p": 0.8, "repetition_penalty": 1.5},
        {"temperature": 0.6, "top_k": 30, "top_p": 0.95, "repetition_penalty": 0.7},
    ],
)
def test_sampling_probabilities_are_those_that_hugging_faces_generate_draws_from(options):
    asked = {"temperature": 1.0, "top_k": 0, "top_p": 1.0, "repetition_penalty": 1.0, **options}
    for seed in range(5):
        model, prompt = opinionated(25, seed), random_tokens(3, 6, seed=seed)
        theirs = model.generate(
            prompt,
            attention_mask=torch.ones_like(prompt),
            max_new_tokens=1,
            do_sample=True,
            return_dict_in_generate=True,
            output_scores=True,
            **asked,
        )
        with torch.no_grad():
            ours = sampling_probabilities(next_logits(model, prompt), prompt, **options)
        torch.testing.assert_close(ours, theirs.scores[0].softmax(-1), rtol=1e-5, atol=1e-7)


# --- the logits functions, against their definitions ------------------------------------------


@settings(deadline=None)
@given(logits=logits_rows(), temperature=st.floats(0.01, 100))
def test_temperature_keeps_the_order(logits, temperature):
    scaled = scale_temperature(logits, temperature)
    order = logits.argsort(-1)
    assert (scaled.gather(-1, order).diff(dim=-1).nan_to_num() >= 0).all()


def test_a_low_temperature_sharpens_and_a_high_one_flattens():
    logits = torch.tensor([2.0, 0.0, -1.0, 1.0])
    largest = [scale_temperature(logits, t).softmax(-1).max() for t in (0.1, 0.5, 1, 2, 10)]
    assert largest == sorted(largest, reverse=True)
    torch.testing.assert_close(scale_temperature(logits, 1e6).softmax(-1), torch.full((4,), 0.25))
    assert scale_temperature(logits, 0.5).tolist() == [4, 0, -2, 2]


@settings(deadline=None)
@given(st.lists(st.integers(-99, 99), min_size=1, max_size=12, unique=True), st.integers(1, 15))
def test_without_ties_top_k_keeps_exactly_the_k_largest(row, k):
    kept = keep_top_k(torch.tensor(row, dtype=torch.float32), k)
    assert sorted(x for x in kept.tolist() if x > -INF) == sorted(row)[-k:]


def test_top_k_keeps_the_ties_with_the_kth():
    assert keep_top_k(torch.tensor([1.0, 2, 1, 0]), 2).tolist() == [1, 2, 1, -INF]


@settings(max_examples=150, deadline=None)
@given(logits=logits_rows(st.sampled_from(ODD) | st.floats(-4, 4), 7), p=st.floats(1e-4, 0.9999))
def test_top_p_keeps_the_smallest_set_that_holds_p(logits, p):
    for row, kept in zip(logits.tolist(), keep_top_p(logits, p).tolist(), strict=True):
        probabilities = float64_probabilities(row)
        for size in range(1, len(row) + 1):
            best = max(math.fsum(some) for some in itertools.combinations(probabilities, size))
            assume(abs(best - p) > 1e-5)  # float32 may round to either side
            if best >= p:
                break
        held = [q for q, logit in zip(probabilities, kept, strict=True) if logit > -INF]
        assert len(held) == size
        assert math.fsum(held) == pytest.approx(best, rel=1e-12)


@pytest.mark.parametrize(("p", "size"), [(0.2, 1), (0.25, 1), (0.2501, 2), (0.5, 2), (0.51, 3)])
def test_a_set_that_holds_exactly_p_is_enough(p, size):
    assert (keep_top_p(torch.zeros(1, 4), p) > -INF).sum() == size


def test_the_token_that_crosses_p_is_kept():
    logits = torch.tensor([0.1, 0.6, 0.3]).log()
    assert (keep_top_p(logits, 0.7) > -INF).tolist() == [False, True, True]
    assert (keep_top_p(logits, 1e-9) > -INF).tolist() == [False, True, False]


@settings(deadline=None)
@given(logits_rows())
def test_p_of_1_and_a_k_of_the_vocabulary_keep_everything(logits):
    assert torch.equal(keep_top_p(logits, 1), logits)
    for k in (logits.shape[1], logits.shape[1] + 7):
        assert torch.equal(keep_top_k(logits, k), logits)


def test_what_top_p_keeps_is_a_beginning_of_the_likeliest_tokens_in_a_large_vocabulary():
    generator = torch.Generator().manual_seed(0)
    for p in (0.03, 0.3, 0.6, 0.9, 0.99, 0.9999):
        logits = 2 * torch.randn(2, 49_152, generator=generator)
        for row, kept in zip(logits, keep_top_p(logits, p) > -INF, strict=True):
            assert row[kept].min() > row[~kept].max()
            held = row.double().softmax(-1)[kept]
            assert p - 1e-5 < held.sum() < p + held.min() + 1e-5


@settings(deadline=None)
@given(data=st.data(), penalty=st.floats(1.01, 10))
def test_repetition_penalty_makes_what_was_seen_less_likely_and_leaves_the_rest(data, penalty):
    row = data.draw(st.lists(st.floats(-30, 30, width=32), min_size=2, max_size=8))
    seen = data.draw(st.sets(st.integers(0, len(row) - 1), min_size=1))
    penalized = penalize_repetition(torch.tensor([row]), torch.tensor([list(seen)]), penalty)
    for token, (before, after) in enumerate(zip(row, penalized[0].tolist(), strict=True)):
        if token in seen and abs(before) > 1e-30:
            assert after < before
            assert after == pytest.approx(before * penalty if before < 0 else before / penalty)
        else:
            assert after == pytest.approx(before, abs=1e-28)


def test_a_token_seen_thrice_is_penalized_once_and_each_row_for_its_own_tokens():
    logits = torch.tensor([[2.0, -2, 4, -4], [2, -2, 4, -4]])
    penalized = penalize_repetition(logits, torch.tensor([[0, 0, 0], [1, 3, 1]]), 2.0)
    assert penalized.tolist() == [[1, -2, 4, -4], [2, -4, 4, -8]]


def test_probabilities_of_half_precision_logits_are_fp32_and_sum_to_1():
    logits = torch.randn(3, 5000, generator=torch.Generator().manual_seed(0)).bfloat16()
    options = {"temperature": 0.9, "top_p": 0.99, "repetition_penalty": 1.1}
    probabilities = sampling_probabilities(logits, torch.zeros(3, 1).long(), **options)
    assert probabilities.dtype == torch.float32
    torch.testing.assert_close(probabilities.sum(-1), torch.ones(3))


# --- sampling ---------------------------------------------------------------------------------

LOGITS = [1.5, 0.9, -0.4, 0.0, 2.1, -1.2, 0.8, -3.0]
SEEN = [4, 2, 4, 5]
DRAWS = 40_000
SETTINGS = [
    {},
    {"temperature": 0.7},
    {"temperature": 2.5},
    {"top_k": 3},
    {"top_p": 0.75},
    {"repetition_penalty": 1.4},
    {"temperature": 1.8, "top_p": 0.7},
    {"temperature": 0.6, "top_k": 6, "top_p": 0.9, "repetition_penalty": 1.3},
]


def by_definition(
    logits, seen, temperature=1.0, top_k=None, top_p=1.0, repetition_penalty=1.0, swapped=False
):
    """The probability of each token, in float64 by plain loops."""
    scores = list(logits)
    for token in set(seen):
        factor = repetition_penalty if scores[token] < 0 else 1 / repetition_penalty
        scores[token] *= factor
    hot = [score / temperature for score in scores]
    order = sorted(range(len(hot)), key=lambda token: -hot[token])[:top_k]
    asked = float64_probabilities([(scores if swapped else hot)[token] for token in order])
    nucleus, held = [], 0.0
    for token, probability in zip(order, asked, strict=True):
        if held >= top_p:
            break
        nucleus.append(token)
        held += probability
    kept = dict(zip(nucleus, float64_probabilities([hot[t] for t in nucleus]), strict=True))
    return [kept.get(token, 0.0) for token in range(len(hot))]


def chi_square(counts, probabilities):
    """Pearson's statistic and its degrees of freedom; infinite where the impossible was drawn."""
    possible = [(n, q * sum(counts)) for n, q in zip(counts, probabilities, strict=True) if q > 0]
    if sum(n for n, _ in possible) < sum(counts):
        return INF, len(possible) - 1
    return sum((n - wanted) ** 2 / wanted for n, wanted in possible), len(possible) - 1


def chi_square_bound(degrees, chance=1e-6):
    """Exceeded with at most this chance: Laurent and Massart, 2000, lemma 1."""
    x = -math.log(chance)
    return degrees + 2 * math.sqrt(degrees * x) + 2 * x


def draws(seed, count=DRAWS, **options):
    """Independent draws, one a row, from the fixed logits."""
    logits = torch.tensor(LOGITS).expand(count, -1)
    return Sampler(seed, **options)(logits, torch.tensor(SEEN).expand(count, -1))


def counts(drawn):
    return drawn.bincount(minlength=len(LOGITS)).tolist()


def test_draws_from_the_distribution_itself_stay_below_the_bound():
    probabilities = by_definition(LOGITS, SEEN)
    drawn = np.random.default_rng(0).multinomial(DRAWS, probabilities, size=2000)
    statistics = [chi_square(row.tolist(), probabilities)[0] for row in drawn]
    assert np.mean(statistics) == pytest.approx(7, abs=0.4)  # the mean is the degrees of freedom
    assert max(statistics) < chi_square_bound(7)


@pytest.mark.parametrize("options", SETTINGS)
def test_draws_follow_the_definition(options):
    statistic, degrees = chi_square(
        counts(draws(1, **options)), by_definition(LOGITS, SEEN, **options)
    )
    assert statistic < chi_square_bound(degrees)


@pytest.mark.parametrize(
    ("options", "wrong"),
    [
        ({"temperature": 0.7}, {"temperature": 0.75}),
        ({"temperature": 0.7}, {"temperature": 1 / 0.7}),
        ({"top_k": 3}, {"top_k": 4}),
        ({"top_k": 3}, {"top_k": 2}),
        ({"top_p": 0.75}, {"top_p": 0.6}),
        ({"repetition_penalty": 1.4}, {"repetition_penalty": 1.3}),
        ({"temperature": 1.8, "top_p": 0.7}, {"temperature": 1.8, "top_p": 0.7, "swapped": True}),
    ],
)
def test_the_statistic_rejects_draws_from_a_slightly_different_distribution(options, wrong):
    statistic, degrees = chi_square(
        counts(draws(1, **options)), by_definition(LOGITS, SEEN, **wrong)
    )
    assert statistic > chi_square_bound(degrees)


def test_generated_sequences_follow_the_chain_rule_with_the_penalty_on_new_tokens_too():
    table = [[0.5, 1.0, -0.5], [1.2, -0.3, 0.4], [-1.0, 0.8, 0.9]]
    options = {"temperature": 1.3, "repetition_penalty": 1.6}
    rows = generate(Table(table), torch.zeros(DRAWS, 1).long(), 2, Sampler(5, **options))
    expected, counted = [], []
    for first, second in itertools.product(range(3), repeat=2):
        one = by_definition(table[0], [0], **options)[first]
        expected.append(one * by_definition(table[first], [0, first], **options)[second])
        counted.append(((rows[:, 1] == first) & (rows[:, 2] == second)).sum().item())
    statistic, degrees = chi_square(counted, expected)
    assert statistic < chi_square_bound(degrees)


def test_the_same_seed_draws_the_same_and_another_seed_other_tokens():
    assert torch.equal(draws(3, 200), draws(3, 200))
    assert not torch.equal(draws(3, 200), draws(4, 200))
    sampler = Sampler(3)
    again = torch.tensor(LOGITS).expand(200, -1), torch.zeros(200, 1).long()
    assert not torch.equal(sampler(*again), sampler(*again))


def test_draws_do_not_touch_the_global_generator():
    before = torch.get_rng_state()
    draws(0, 10)
    assert torch.equal(torch.get_rng_state(), before)


@settings(max_examples=50, deadline=None)
@given(
    logits=logits_rows(),
    k=st.none() | st.integers(1, 5),
    p=st.floats(0.01, 1),
    seed=st.integers(0, 99),
)
def test_a_filtered_token_is_never_drawn(logits, k, p, seed):
    kept = logits if k is None else keep_top_k(logits, k)
    kept = keep_top_p(kept, p) > -INF
    tokens = torch.zeros(len(logits), 1).long()
    sampler = Sampler(seed, top_k=k, top_p=p)
    for _ in range(10):
        assert kept.gather(1, sampler(logits, tokens)[:, None]).all()


@pytest.mark.parametrize("options", [{"top_k": 1}, {"top_p": 1e-6}, {"temperature": 1e-4}])
def test_the_strictest_settings_are_greedy(options):
    model, prompt = opinionated(25), torch.tensor([[1, 2], [3, 4]])
    drawn = generate(model, prompt, 8, Sampler(0, **options))
    assert torch.equal(drawn, generate(model, prompt, 8))


def test_a_seeds_text_is_the_same_with_and_without_cache_and_ends_at_the_end():
    model, prompt = opinionated(25, spread=0.3), torch.tensor([[1, 2], [3, 4], [5, 6]])
    sampled = [
        generate(model, prompt, 20, Sampler(7, top_k=9), end=[0, 1, 2, 3], use_cache=use_cache)
        for use_cache in (True, False)
    ]
    assert torch.equal(*sampled)
    assert torch.equal(sampled[0], filled_with_the_end(sampled[0], 2, {0, 1, 2, 3}))
    assert set(sampled[0][:, -1].tolist()) & {0, 1, 2, 3}


# --- KV cache ---------------------------------------------------------------------------------


def assert_close_to_the_largest(ours, theirs):
    assert (ours - theirs).abs().max() <= 1e-5 * theirs.abs().max()


@torch.inference_mode()
def assert_same_logits_in_pieces(model, tokens, pieces):
    whole, cache, stop = model(tokens, use_cache=False).logits, KVCache(), 0
    for piece in pieces:
        start, stop = stop, stop + piece
        out = model(tokens[:, start:stop], past_key_values=cache, use_cache=True).logits
        assert_close_to_the_largest(out, whole[:, start:stop])
        assert cache.length == stop
    assert stop == tokens.shape[1]


@pytest.mark.parametrize("pieces", [[1] * 9, [9], [4, 1, 1, 1, 1, 1], [2, 5, 2], [1, 8]])
def test_the_cache_gives_the_same_logits_as_the_full_pass(pieces):
    tokens = random_tokens(3, 9)
    assert_same_logits_in_pieces(opinionated(25), tokens, pieces)


@pytest.mark.slow  # needs the package index, once
@pytest.mark.parametrize("pieces", [[5, 1, 1, 1, 1], [3, 4, 2]])
def test_the_cache_gives_the_real_models_logits(real, prompts, pieces):
    assert_same_logits_in_pieces(real, prompts[3][:2], pieces)


def test_next_logits_are_the_full_passes_last_whether_the_cache_is_behind_by_one_or_more():
    model, tokens, cache = opinionated(25), torch.arange(20).view(2, 10), KVCache()
    with torch.inference_mode():
        for length in (3, 4, 8, 10):
            expected = model(tokens[:, :length]).logits[:, -1]
            assert_close_to_the_largest(next_logits(model, tokens[:, :length], cache), expected)
            assert_close_to_the_largest(next_logits(model, tokens[:, :length]), expected)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_cache_holds_what_hugging_faces_holds_in_the_predicted_bytes(dtype):
    model = LlamaForCausalLM(opinionated(25).config).to(dtype).eval()
    ours, theirs = KVCache(), DynamicCache()
    tokens = random_tokens(3, 7)
    with torch.inference_mode():
        for piece in tokens.split([4, 1, 2], dim=1):
            for cache in (ours, theirs):
                model(piece, past_key_values=cache, use_cache=True)
    assert sorted(ours.keys) == sorted(ours.values) == [0, 1]
    for layer, reference in enumerate(theirs.layers):
        assert ours.keys[layer].shape == (3, 2, 7, 8) and ours.keys[layer].dtype == dtype
        assert torch.equal(ours.keys[layer], reference.keys)
        assert torch.equal(ours.values[layer], reference.values)
    assert ours.nbytes == 2 * 2 * 3 * 2 * 7 * 8 * dtype.itemsize
    shapes = LlamaConfig.from_hugging_face(model.config.to_dict())
    assert ours.nbytes == kv_cache_bytes(shapes, 7, 3, dtype.itemsize)


def test_an_empty_cache_holds_nothing():
    cache = KVCache()
    assert cache.length == cache.nbytes == cache.get_seq_length() == 0
    assert cache.get_mask_sizes(5) == (5, 0)


def test_update_appends_to_its_own_layer_and_returns_all_of_it():
    cache = KVCache()
    k, v = torch.randn(2, 2, 3, 5, 4)  # (B, H_kv, T, D) each
    assert torch.equal(cache.update(k[..., :3, :], v[..., :3, :], 0)[0], k[..., :3, :])
    cache.update(v, k, 1)
    assert cache.length == 3 and cache.get_seq_length(1) == 5  # layer 0 is behind
    assert cache.get_mask_sizes(2, 0) == (5, 0) and cache.get_mask_sizes(2, 1) == (7, 0)
    all_k, all_v = cache.update(k[..., 3:, :], v[..., 3:, :], 0)
    assert torch.equal(all_k, k) and torch.equal(all_v, v)
    assert torch.equal(cache.keys[0], k) and torch.equal(cache.values[0], v)
    assert torch.equal(cache.keys[1], v) and torch.equal(cache.values[1], k)
    assert cache.length == cache.get_query_offset(0) == 5


@torch.inference_mode()
def test_select_reorders_drops_and_duplicates_rows():
    model, tokens, rows = opinionated(25), random_tokens(3, 6), torch.tensor([2, 0, 0, 1])
    cache = KVCache()
    next_logits(model, tokens[:, :5], cache)
    held = {layer: keys.clone() for layer, keys in cache.keys.items()}
    cache.select(rows)
    assert cache.length == 5
    for layer, keys in held.items():
        for row, old in enumerate(rows.tolist()):
            assert torch.equal(cache.keys[layer][row], keys[old])
    expected = model(tokens[rows]).logits[:, -1]
    assert_close_to_the_largest(next_logits(model, tokens[rows], cache), expected)


# --- bad input --------------------------------------------------------------------------------

ROW = torch.tensor([[1.0, 2.0, 3.0]])
TOKEN = torch.tensor([[0]])
SEARCHES = [generate, functools.partial(beam_search, beams=2)]


@pytest.mark.parametrize("p", [0, 0.0, -0.1, 1.1, NAN, INF])
def test_a_top_p_outside_its_range_is_refused(p):
    for call in (lambda: keep_top_p(ROW, p), lambda: Sampler(0, top_p=p)(ROW, TOKEN)):
        with refused(ValueError, f"top_p is {p};", "(0, 1]"):
            call()


@pytest.mark.parametrize("k", [0, -1, -50])
def test_a_top_k_below_1_is_refused(k):
    for call in (lambda: keep_top_k(ROW, k), lambda: Sampler(0, top_k=k)(ROW, TOKEN)):
        with refused(ValueError, f"top_k is {k};", "1 or more"):
            call()


@pytest.mark.parametrize("bad", [0, -1.0, NAN, INF, -INF])
def test_a_temperature_or_penalty_that_is_not_positive_and_finite_is_refused(bad):
    for name, call in [
        ("temperature", lambda: scale_temperature(ROW, bad)),
        ("temperature", lambda: Sampler(0, temperature=bad)(ROW, TOKEN)),
        ("repetition_penalty", lambda: penalize_repetition(ROW, TOKEN, bad)),
        ("repetition_penalty", lambda: Sampler(0, repetition_penalty=bad)(ROW, TOKEN)),
    ]:
        with refused(ValueError, f"{name} is {bad};", "positive and finite"):
            call()


@pytest.mark.parametrize("row", [[NAN, 0, 1], [-INF] * 3, [INF, 0, 1], [INF, INF, -INF]])
def test_logits_without_a_distribution_are_refused(row):
    logits = torch.tensor([[0.0, 1, 2], row])
    with refused(ValueError, "NaN or infinity"):
        sampling_probabilities(logits, torch.zeros(2, 1).long(), top_k=2, top_p=0.9)


@pytest.mark.parametrize("search", SEARCHES)
def test_nan_logits_of_a_model_are_refused(search):
    with refused(ValueError, "in row(s) [0] hold NaN"):
        search(Table([[0, NAN], [0, 0]]), TOKEN, 2)


def test_the_rows_with_nan_are_named():
    model = Table([[0, 1, 2], [0, NAN, 0], [0, 0, 0]])
    with refused(ValueError, "row(s) [1, 3]"):
        generate(model, torch.tensor([[0], [1], [2], [1]]), 2)


@pytest.mark.parametrize("search", SEARCHES)
@pytest.mark.parametrize("shape", [(3,), (1, 0), (0, 3), (1, 2, 3), ()])
def test_a_prompt_that_is_not_rows_of_tokens_is_refused(search, shape):
    with refused(ValueError, f"shape {shape}", "at least one token"):
        search(opinionated(), torch.zeros(shape).long(), 2)


@pytest.mark.parametrize("search", SEARCHES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.bool])
def test_a_prompt_that_is_not_of_integers_is_refused(search, dtype):
    with refused(TypeError, f"dtype {dtype}"):
        search(opinionated(), torch.ones(1, 2, dtype=dtype), 2)


@pytest.mark.parametrize("search", SEARCHES)
@pytest.mark.parametrize("token", [-1, 11, 5000])
def test_a_token_outside_the_vocabulary_is_refused(search, token):
    with refused(ValueError, f"token {token};", "0 to 10"):
        search(opinionated(11), torch.tensor([[3, token]]), 2)


@pytest.mark.parametrize("search", SEARCHES)
@pytest.mark.parametrize("new", [0, -4])
def test_fewer_than_one_new_token_is_refused(search, new):
    with refused(ValueError, f"max_new_tokens is {new};", "1 or more"):
        search(opinionated(), TOKEN, new)


@pytest.mark.parametrize("search", SEARCHES)
def test_what_exceeds_the_context_is_refused_and_what_fills_it_is_not(search):
    prompt = torch.ones(1, CONTEXT - 3).long()
    assert search(opinionated(), prompt, 3).shape == (1, CONTEXT)
    with refused(ValueError, "29 tokens", "5 new", "context of 32", "by 2 tokens"):
        search(opinionated(), prompt, 5)


@pytest.mark.parametrize("beams", [0, -2])
def test_fewer_than_one_beam_is_refused(beams):
    with refused(ValueError, f"beams is {beams};", "1 or more"):
        beam_search(opinionated(), TOKEN, 2, beams)


def test_beam_search_refuses_two_prompts():
    with refused(ValueError, "2 prompts", "one at a time"):
        beam_search(opinionated(), torch.zeros(2, 3).long(), 2, 2)


def test_a_cache_of_another_text_is_refused():
    cache = KVCache()
    cache.update(torch.zeros(1, 1, 4, 2), torch.zeros(1, 1, 4, 2), 0)
    with refused(ValueError, "holds 4 tokens and the text has 4"):
        next_logits(Table([[0, 0]]), TOKEN.expand(1, 4), cache)


# --- what lesson 03 shows, and what the package holds -------------------------------------------


@pytest.fixture(scope="module")
def lesson():
    """What the notebook defines, with the solutions in the place of the learner's answers."""
    source = definitions("03_generation_and_decoding")
    names = "write_behind left_padding keep_top_p penalize_repetition token_nll".split()
    space = {name: getattr(shown, name) for name in names}
    space |= {"torch": torch, "workflow": workflow}
    space["settings"] = SimpleNamespace(device="cpu")
    for name in "KVCache with_cache sampling_probabilities Sampler beam_search distinct_3".split():
        exec(source[name], space)
    return SimpleNamespace(**space), space


@pytest.mark.parametrize("shape", [(5,), (2, 7), (3, 2, 11)])
@pytest.mark.parametrize("p", [0.05, 0.5, 0.9, 0.999])
def test_the_nucleus_shown_is_the_packages(shape, p):
    logits = 2 * torch.randn(*shape, generator=torch.Generator().manual_seed(len(shape)))
    assert torch.equal(shown.keep_top_p(logits, p), keep_top_p(logits, p))


@pytest.mark.parametrize("length", [1, 2, 9])
def test_the_penalty_and_the_loss_shown_are_the_packages_and_pytorchs(length):
    logits = torch.randn(3, 25, generator=torch.Generator().manual_seed(length))
    tokens = random_tokens(3, length)
    ours = shown.penalize_repetition(logits, tokens, 1.3)
    assert torch.equal(ours, penalize_repetition(logits, tokens, 1.3))
    text, scores = random_tokens(length + 1), torch.randn(length + 1, 25)
    expected = F.cross_entropy(scores[:-1], text[1:], reduction="none")
    torch.testing.assert_close(shown.token_nll(scores, text), expected)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"temperature": 0.5},
        {"top_k": 1},
        {"top_k": 400, "top_p": 0.7},
        {"temperature": 1.3, "top_k": 5, "top_p": 0.9},
    ],
)
def test_the_sampler_shown_draws_what_the_packages_draws(lesson, options):
    logits, tokens = 3 * torch.randn(4, 25), random_tokens(4, 6)
    ours, theirs = lesson[0].sampling_probabilities, sampling_probabilities
    torch.testing.assert_close(ours(logits, **options), theirs(logits, tokens, **options))
    ours, theirs = lesson[0].Sampler(3, **options), Sampler(3, **options)
    for _ in range(5):
        assert torch.equal(ours(logits, tokens), theirs(logits, tokens))


@pytest.mark.parametrize("seed", range(5))
def test_every_rule_shown_bites_and_all_together_are_hugging_faces(lesson, seed):
    logits = 3 * torch.randn(3, 200, generator=torch.Generator().manual_seed(seed))
    tokens = logits.topk(6).indices  # likely ones have occurred, so that the penalty bites, too
    chain, options, before = LogitsProcessorList(), {}, logits.softmax(-1)
    for name, value, warper in (
        ("temperature", 1.7, TemperatureLogitsWarper),
        ("top_k", 30, TopKLogitsWarper),
        ("top_p", 0.8, TopPLogitsWarper),
    ):
        options[name] = value
        chain.append(warper(value))
        ours = lesson[0].sampling_probabilities(logits, **options)
        torch.testing.assert_close(ours, chain(tokens, logits.clone()).softmax(-1))
        moved = (ours - before).abs().sum(-1)
        assert (moved > 0.05).all(), f"{name} changes nothing here"
        before = ours
    assert ((before > 0).sum(-1) < 30).all()  # top-p takes some of what top-k had left
    penalized = shown.penalize_repetition(logits, tokens, 1.3)
    chain.insert(0, RepetitionPenaltyLogitsProcessor(1.3))
    ours = lesson[0].sampling_probabilities(penalized, **options)
    torch.testing.assert_close(ours, chain(tokens, logits.clone()).softmax(-1))
    assert (ours - before).abs().sum() > 0.01


@pytest.mark.parametrize("chunks", [[9], [1] * 9, [4, 1, 4], [8, 1]])
@pytest.mark.parametrize("batch", [1, 3])
def test_the_cache_shown_returns_what_the_packages_returns(lesson, chunks, batch):
    ours, theirs = lesson[0].KVCache(room=12), KVCache()
    for length in chunks:
        for layer in (0, 1):
            k, v = torch.randn(2, batch, 2, length, 5)
            for mine, yours in zip(
                ours.update(k, v, layer), theirs.update(k, v, layer), strict=True
            ):
                assert torch.equal(mine, yours)
        assert ours.length == theirs.length == ours.get_seq_length(1)
        assert ours.get_mask_sizes(2) == theirs.get_mask_sizes(2)
    assert ours.nbytes * 9 == theirs.nbytes * 12  # room for 12, of which 9 are filled
    with pytest.raises(ValueError, match="room for 12 tokens; 13 were given"):
        ours.update(*torch.randn(2, batch, 2, 4, 5), 0)
    ours.forget_after(3)
    assert ours.length == 3


@pytest.mark.parametrize("batch", [1, 3])
def test_the_loop_shown_writes_what_the_packages_writes(lesson, batch):
    space, names = lesson
    names["model"] = model = opinionated()
    prompt = random_tokens(batch, 5, vocabulary=11)
    expected = generate(model, prompt, 8)
    assert torch.equal(shown.generate(space.with_cache(13), prompt, 8, greedy), expected)
    without_cache = functools.partial(next_logits, model)
    assert torch.equal(shown.generate(without_cache, prompt, 8, greedy), expected)


@pytest.mark.parametrize("lengths", [[5, 3, 1], [2, 2], [1, 6]])
def test_a_prompt_in_a_batch_shown_gets_what_it_gets_alone(lesson, lengths):
    space, names = lesson
    names["model"] = model = opinionated(seed=1)
    longest = max(lengths)
    tokens, pads = (
        random_tokens(len(lengths), longest, vocabulary=11),
        longest - torch.tensor(lengths),
    )
    batch = shown.generate(space.with_cache(longest + 6, pads), tokens, 6, greedy)
    for row, length, text in zip(tokens, lengths, batch, strict=True):
        alone = generate(model, row[None, longest - length :], 6)[0]
        assert torch.equal(text[longest - length :], alone)


@pytest.mark.parametrize("batch", [1, 2, 5])
@pytest.mark.parametrize("end", range(4))
def test_the_loop_that_stops_writes_what_the_packages_writes(batch, end):
    model, prompt = opinionated(seed=3), random_tokens(batch, 5, vocabulary=11)
    ask = functools.partial(next_logits, model)
    expected = generate(model, prompt, 12, end=[end])
    with torch.inference_mode():
        assert torch.equal(shown.generate_until(ask, prompt, 12, greedy, end), expected)


@pytest.mark.parametrize("beams", [1, 2, 5])
def test_the_beam_search_shown_is_the_packages_where_no_text_ends(lesson, beams):
    model, prompt = opinionated(seed=2), random_tokens(1, 4, vocabulary=11)
    ask = functools.partial(next_logits, model)
    with torch.inference_mode():
        ours = lesson[0].beam_search(ask, prompt, 6, beams)
    assert torch.equal(ours, beam_search(model, prompt, 6, beams))


# --- what lesson 03 does behind the scenes ------------------------------------------------------


def test_a_head_that_is_cut_out_gives_nothing_and_the_others_all():
    model, tokens = opinionated(), random_tokens(2, 7, vocabulary=11)
    size = model.config.head_dim
    with torch.no_grad():
        whole = model(tokens, use_cache=False).logits
        with workflow.without(model, [(1, 2)]):
            cut = model(tokens, use_cache=False).logits
        with workflow.without(model, []):
            torch.testing.assert_close(model(tokens, use_cache=False).logits, whole)
        o_proj = model.model.layers[1].self_attn.o_proj.weight
        kept = o_proj.clone()
        o_proj[:, 2 * size : 3 * size] = 0  # what the head says reaches nobody
        expected = model(tokens, use_cache=False).logits
        o_proj.copy_(kept)
    torch.testing.assert_close(cut, expected)
    assert (cut - whole).abs().max() > 1e-3


def test_a_head_may_be_replaced_by_its_mean_over_the_text():
    model, same_token = opinionated(), torch.full((1, 6), 3)
    with torch.no_grad():  # one token repeated: every head gives the same everywhere
        whole = model(same_token, use_cache=False).logits
        with workflow.without(model, [(0, 1)], mean=True):
            averaged = model(same_token, use_cache=False).logits
    torch.testing.assert_close(averaged, whole, rtol=1e-4, atol=1e-5)


def test_each_head_cut_in_its_own_row_costs_what_it_costs_by_itself():
    model = opinionated()
    lists = random_tokens(2, 6, vocabulary=11).repeat(1, 2)
    losses = torch.tensor(workflow.second_copy_by_head(model, lists))
    config = model.config
    assert losses.shape == (config.num_hidden_layers, config.num_attention_heads)
    for layer, head in itertools.product(*map(range, losses.shape)):
        with torch.no_grad(), workflow.without(model, [(layer, head)]):
            logits = model(lists, use_cache=False).logits
        nll = torch.stack([shown.token_nll(*pair) for pair in zip(logits, lists, strict=True)])
        torch.testing.assert_close(losses[layer, head], nll[:, 6:].mean())


@pytest.mark.parametrize("heads", [[], [(1, 2)], [(1, 0), (0, 1)]])
@pytest.mark.parametrize("mean", [False, True])
def test_cuts_that_share_the_layers_below_cost_what_they_cost_by_themselves(heads, mean):
    model, texts = opinionated(), random_tokens(3, 8, vocabulary=11)
    nll, right = workflow.with_cuts(model, texts, 5)(heads, mean)
    with torch.no_grad(), workflow.without(model, heads, mean):
        logits = model(texts, use_cache=False).logits
    expected = torch.stack([shown.token_nll(*pair) for pair in zip(logits, texts, strict=True)])
    torch.testing.assert_close(nll, expected[:, -5:])
    assert torch.equal(right, (logits[:, :-1].argmax(dim=-1) == texts[:, 1:])[:, -5:])


def test_texts_of_unequal_length_in_one_batch_cost_what_they_cost_alone():
    model = opinionated()
    contexts = [random_tokens(n, vocabulary=11).tolist() for n in (2, 5, 3)]
    continuations = [random_tokens(n, vocabulary=11).tolist() for n in (4, 1, 2)]
    losses = workflow.nll_of_each(model, contexts, continuations)
    next_log_p = workflow.next_log_p(model, contexts)
    for n, (context, continuation) in enumerate(zip(contexts, continuations, strict=True)):
        text = torch.tensor(context + continuation)
        with torch.no_grad():
            logits = model(text[None], use_cache=False).logits[0]
        alone = shown.token_nll(logits, text)[-len(continuation) :]
        torch.testing.assert_close(losses[n], alone)
        torch.testing.assert_close(next_log_p[n], logits[len(context) - 1].log_softmax(dim=-1))


def test_a_head_is_cut_out_of_the_maps_of_later_layers_too():
    model, tokens = opinionated(), random_tokens(1, 7, vocabulary=11)
    whole = attention_maps(model, tokens)
    with workflow.without(model, [(0, 1)]):
        cut = attention_maps(model, tokens)
    assert torch.equal(cut[0], whole[0])  # what a head looks at, it looks at before it is cut
    assert (cut[1] - whole[1]).abs().max() > 1e-4


def test_positions_of_the_row_harm_a_model_that_has_learned_them():
    mask, positions = shown.left_padding(torch.tensor([6, 2, 4]), 6)
    right, of_the_row = workflow.slip_with_learned_positions(mask, positions)
    assert right < 1e-4 and of_the_row > 0.05


def test_a_list_said_twice_is_said_twice():
    lists = workflow.lists_said_twice(random.Random(0), 3, 5, 49152)
    assert lists.shape == (3, 10) and torch.equal(lists[:, :5], lists[:, 5:])
    assert lists.min() >= 1000 and len(lists.unique(dim=0)) == 3


def test_what_a_name_adds_is_measured_within_each_story():
    results = Recorder()
    named, strange = {8: [0.5, 0.9], 32: [0.2, 0.6]}, {8: [0.1, 0.5], 32: [0.2, 0.5]}
    rows = workflow.record_recall(results, named, strange, ([0.9, 0.8], [0.4, 0.3]))
    assert [row[0] for row in rows] == [
        "among others, 8 tokens away",
        "among others, 32 tokens away",
        "the only one",
    ]
    assert rows[0][1].startswith("+40 [")
    assert results.values["recall.name_adds.alone"] == pytest.approx(50)
    said = workflow.what_company_takes(named, strange, ([0.9, 0.8], [0.4, 0.3]))
    assert "takes 45 points" in said and "and 0 points" in said


@pytest.mark.parametrize(
    ("far", "only", "answer"),
    [(0.3, 0.6, "company"), (0.1, 0.1, "distance"), (0.6, 0.6, "undecided")],
)
def test_what_costs_more_is_graded_by_what_the_name_adds(far, only, answer, capsys):
    def around(share):
        return [share - 0.01, share, share + 0.01]

    near = {"distance": 0.6, "company": 0.3, "undecided": 0.6}[answer]
    named = {8: around(near), 32: around(far)}
    strange = {8: [0.05] * 3, 32: [0.05] * 3}
    given = named, strange, (around(only), [0.05] * 3)
    assert workflow.costs_more(Recorder(), *given) == answer
    assert "company takes" in capsys.readouterr().out
    # A stranger gets the only code just as often: then company lowers the base rate, no more.
    base_rate = named, strange, ([0.9, 0.91, 0.89], [0.9 - far + 0.05] * 3)
    assert workflow.costs_more(Recorder(), *base_rate) != "company"


def test_the_rank_of_a_head_is_taken_on_new_lists_with_what_they_leave_open(capsys):
    by_head = torch.tensor([[1.0, 9.0, 1.1], [2.0, 1.5, 1.2], [8.0, 7.0, 6.0], [0.1, 0.2, 0.3]])
    on_new_lists = {(0, 1): 3.0, (1, 0): 4.0}  # the best of the search is not the best here

    def lists_without(heads, mean=False):
        harm = sum(on_new_lists.get(head, 0.5) for head in heads)
        nll = torch.tensor([[1.0, 1.2], [2.0, 2.2], [3.0, 3.4]]) + harm
        return nll, torch.tensor([[not heads, True]] * 3)

    def story_without(heads, mean=False):
        return torch.tensor([[4.0], [5.0]]) + 0.25 * len(heads), None

    results = Recorder()
    on_trial = (1, 0), by_head, lists_without, story_without
    rank, rows = workflow.head_on_trial(results, *on_trial, random_heads=2)
    assert rank == results.values["copying.rank.new"] == 1
    assert results.values["copying.rank"] == 5
    assert results.values["copying.cut.right"] == 50
    # The same lists each time: the cut costs four nats more, however the lists differ.
    assert rows[1][3:] == ["+4.00 [+4.00, +4.00]", "", "+0.25 [+0.25, +0.25]"]
    assert rows[3][0] == "layer 0, head 1" and rows[3][4] == "+1.00 [+1.00, +1.00]"
    assert rows[-2][0].startswith("one of 2 others of its layer") and "+3.50 [" in rows[-2][4]
    assert rows[-1][0].startswith("one of 2 heads drawn at random") and "+3.50 [" in rows[-1][4]
    assert results.values["story.random"] == 0.25
    assert (
        "ranks 5 of 12 on the list of the search, and 1 (95 %: 1 to 1)" in capsys.readouterr().out
    )


def test_a_rank_stays_open_where_the_intervals_do():
    surely_less, open_question = torch.tensor([-1.0, -1.1, -0.9]), torch.tensor([-1.0, 1.5, -0.2])
    assert workflow.rank_of([surely_less, open_question]) == (2, 1, 2)
    assert workflow.rank_of([]) == (1, 1, 1)


def test_a_false_sentence_ends_where_the_false_word_is_due():
    tokenizer = load_tokenizer(DEFAULT_MODEL)
    facts = ["Bees make honey.", "The opposite of hot is cold."]
    first, second = workflow.false_sentences(facts, "He left.", tokenizer)
    told = tokenizer.decode(first.told)
    assert told == "\nBees make cold. He left. Bees make"
    assert tokenizer.decode(first.bare) == "\nBees make"
    assert tokenizer.decode([first.true]) == " honey"
    assert tokenizer.decode([first.false]) == " cold" == tokenizer.decode([second.true])


def test_random_heads_come_from_the_same_layers_and_are_others():
    chosen, rng = [(2, 0), (2, 1), (5, 3)], random.Random(0)
    for _ in range(20):
        drawn = workflow.as_many_of_the_same_layers(chosen, [(5, 0)], 4, rng)
        assert [layer for layer, _ in drawn] == [2, 2, 5]
        assert len(set(drawn)) == 3 and not {*chosen, (5, 0)} & set(drawn)
    assert workflow.as_many_of_the_same_layers([(0, 0)], [], 1, rng) == []


def test_the_induction_heads_are_compared_with_others_of_their_layers(capsys):
    results, scores = Recorder(), {"": torch.eye(3, 4), "without it": torch.zeros(3, 4)}
    ranking, asked = [(0, 0), (1, 1)], []

    def losses_without(heads):
        asked.append(list(heads))
        return torch.tensor([1.0, 2.0]) + sum(3.0 for head in heads if head in ranking)

    rows, left = workflow.induction_on_trial(results, scores, ranking, (2, 2), losses_without)
    assert left == 0
    assert rows[0] == ["layer 0, head 0", "100%", "0%", "4.50"] and rows[1][-1] == "7.50"
    assert all([layer for layer, _ in heads] == [0, 1] for heads in asked[2:])
    assert results.values["induction.more_than_random"] == 6
    assert "+6.00 [+6.00, +6.00]" in capsys.readouterr().out


def test_a_batch_is_compared_with_single_prompts_round_by_round():
    results = Recorder()
    seconds = {"single": {"call": [2.0, 4.0, 9.0]}, "batch": {"call": [1.0, 2.0, 3.0]}}
    said = workflow.batch_against_single(results, seconds)
    assert results.values["batch.speedup"] == 2
    assert "2.00 times" in said and "highest 3.00" in said


@pytest.mark.parametrize(
    ("shift", "answer"), [(1.0, "its own draw"), (-1.0, "the original"), (0.0, "undecided")]
)
def test_which_text_is_likelier_is_said_only_where_the_interval_tells(shift, answer, capsys):
    original, noise = [-3.0, -2.0, -4.0, -1.0], [0.1, -0.1, 0.2, -0.2]
    drawn = [x + e + shift for x, e in zip(original, noise, strict=True)]
    assert workflow.likelier(Recorder(), original, drawn) == answer
    assert "95 % interval" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("drawn", "verdict"),
    [
        ([0.9, 0.8, 0.9], "holds"),
        ([0.1, 0.2, 0.1], "fails here"),
        ([0.1, 0.9, 0.5], "undecided here"),
    ],
)
def test_the_claim_on_repetition_is_decided_by_its_interval_and_says_greedy(
    drawn, verdict, monkeypatch
):
    said = []
    monkeypatch.setattr(workflow, "put_on_trial", lambda *words: said.extend(words))
    workflow.repetition_on_trial(Recorder(), [0.5, 0.5, 0.5], drawn, [0.9, 0.9, 0.8])
    assert said[3] == verdict
    assert "greedy decoding" in said[4] and "not find the likeliest text" in said[4]


def test_padding_on_the_right_asks_a_short_prompt_at_the_wrong_place():
    model, lengths = opinionated(), torch.tensor([6, 4])
    tokens = random_tokens(2, 6, vocabulary=11)
    with torch.inference_mode():
        alone = [model(row[None, :n]).logits[0] for row, n in zip(tokens, lengths, strict=True)]
        logits = workflow.padded_on_the_right(model, lengths)(tokens)
    torch.testing.assert_close(logits[0], alone[0][-1])  # the longest has no padding
    assert (logits[1] - alone[1][-1]).abs().max() > 1e-3


def test_one_slow_step_does_not_stand_for_all():
    steps = {
        n: Spread(median, median, median, 5) for n, median in ((16, 9.0), (64, 1.0), (128, 2.0))
    }
    assert workflow.median_step(steps).median == 2.0


class Recorder:
    """Stands in for Results: keeps the values that were recorded."""

    def __init__(self):
        self.values = {}

    def record(self, name, value, unit, **_):
        self.values[name] = value


def test_induction_is_a_look_one_past_the_first_copy():
    maps = torch.zeros(2, 10, 10)
    for t in range(5, 10):
        maps[1, t, t - 5 + 1] = 1.0
    assert shown.induction_score(maps, 5).tolist() == [0.0, 1.0]


@pytest.mark.parametrize("distances", [[4], [4, 9], [2, 5, 9, 11]])
def test_facts_stand_where_they_are_said_to_and_no_two_codes_begin_alike(distances):
    tokenizer = load_tokenizer(DEFAULT_MODEL)
    facts, stranger = workflow.draw_facts(distances, random.Random(1))
    assert len({fact.code[0] for fact in facts}) == len(facts) == 2 * len(distances)
    assert stranger not in {fact.who for fact in facts}
    filler = tokenizer(" day" * 12)["input_ids"]
    story = tokenizer.decode(workflow.tell(filler, facts, tokenizer))
    for fact in facts:
        before, after = story.split(f"The code of {fact.who} is {fact.code}.")
        assert before.count(" day") == 12 - fact.distance and after.count(" day") == fact.distance


def test_there_is_no_room_for_a_fifth_distance():
    with pytest.raises(ValueError, match="5 distances were given"):
        workflow.draw_facts([1, 2, 3, 4, 5], random.Random(0))


def test_a_question_ends_where_the_codes_differ():
    tokenizer = load_tokenizer(DEFAULT_MODEL)
    asked, digits = workflow._question("Mara", ["7294", "1234"], tokenizer)
    assert tokenizer.decode(asked) == "\n\nThe code of Mara is "
    assert [tokenizer.decode([digit]) for digit in digits] == ["7", "1"]
