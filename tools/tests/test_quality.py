"""Overlapping windows, their scores, and how far two models' predictions lie apart."""

import base64
import math

import numpy as np
import pytest
import torch
from byte_tokenizer import byte_tokenizer
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from tiny_llama import tiny_llama
from tokenizers import Tokenizer, models, processors
from transformers import PreTrainedTokenizerFast

from llama_int8.evaluation.perplexity import (
    StridedText,
    bits_per_byte,
    divergence,
    evenly,
    strided,
    token_nll,
    window_scores,
)

START = "<s>"
quick = settings(max_examples=60, deadline=None)


def character_tokenizer(text, start):
    """One token for each character of `text`; `start`: whether one stands before every text."""
    letters = sorted(set(text))
    vocabulary = {token: i for i, token in enumerate([START, *letters])}
    tokenizer = Tokenizer(models.BPE(vocabulary, []))
    if start:
        tokenizer.post_processor = processors.TemplateProcessing(
            single=f"{START} $A", special_tokens=[(START, 0)]
        )
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer)


@st.composite
def cuts(draw):
    """A text of which no character stands twice, and windows that it fills at least two of."""
    start = draw(st.booleans())
    length = draw(st.integers(2 + start, 12))
    own = length - start
    stride = draw(st.integers(1, own if start else own - 1))
    # One to four bytes a character, so that bytes, characters and tokens are three numbers.
    letters = st.sampled_from([*map(chr, range(33, 60)), *"äöüßéèœ", *"日本語文字列", *"🙂🚀🗼🥐"])
    text = draw(st.lists(letters, unique=True, min_size=own + stride, max_size=44))
    return "".join(text), start, length, stride


def characters(tokenizer, windows):
    return [tokenizer.convert_ids_to_tokens(window.tolist()) for window in windows]


# --- overlapping windows ------------------------------------------------------------------------


@quick
@given(cuts())
def test_every_token_is_scored_once_in_order_and_none_between_them_is_left_out(cut):
    text, start, length, stride = cut
    tokenizer = character_tokenizer(text, start)
    found = strided(tokenizer, text, length, stride)
    scored = "".join(c for window in characters(tokenizer, found.windows) for c in window[-stride:])
    assert found.stride == stride and found.windows.shape[1] == length
    assert len(set(scored)) == len(scored)
    # The text goes on without a gap from the first scored token; the rest would fill no window.
    first = text.index(scored[0])
    assert text[first : first + len(scored)] == scored
    assert first == length - start - stride
    assert len(text) - first - len(scored) < stride


@quick
@given(cuts())
def test_every_scored_token_has_its_context_before_it_and_the_start_before_that(cut):
    text, start, length, stride = cut
    tokenizer = character_tokenizer(text, start)
    for window in characters(tokenizer, strided(tokenizer, text, length, stride).windows):
        assert window[:start] == [START] * start
        assert "".join(window[start:]) in text  # as it stands in the text, without a gap
        assert len(window) - stride == length - stride >= 1


@quick
@given(cuts())
def test_bytes_are_those_of_the_characters_that_are_scored(cut):
    text, start, length, stride = cut
    tokenizer = character_tokenizer(text, start)
    found = strided(tokenizer, text, length, stride)
    expected = [
        len("".join(window[-stride:]).encode()) for window in characters(tokenizer, found.windows)
    ]
    assert found.bytes.tolist() == expected


@quick
@given(st.text(min_size=20, max_size=60), st.booleans(), st.integers(1, 7))
def test_where_a_character_is_several_tokens_no_byte_is_counted_twice(text, start, stride):
    assume(len(text.encode()) >= 20)
    tokenizer = byte_tokenizer(start=start)  # so a window may end within a character
    found = strided(tokenizer, text, 9, stride)
    scored = len(found.windows) * stride  # one byte each
    # A character is counted where it begins; only the first and the last may reach out.
    assert scored <= found.bytes.sum() <= scored + 6
    assert (np.abs(np.cumsum(found.bytes) - stride * np.arange(1, len(found.bytes) + 1)) <= 6).all()


@quick
@given(cuts(), st.integers(2, 9))
def test_a_limit_keeps_the_first_windows(cut, limit):
    text, start, length, stride = cut
    tokenizer = character_tokenizer(text, start)
    everything = strided(tokenizer, text, length, stride)
    found = strided(tokenizer, text, length, stride, limit)
    assert len(found.windows) == min(limit, len(everything.windows))
    assert torch.equal(found.windows, everything.windows[:limit])
    assert found.bytes.tolist() == everything.bytes[:limit].tolist()


def test_windows_by_hand():
    found = strided(byte_tokenizer(start=True), "abcdefghij", 6, 2)
    tokens = byte_tokenizer().convert_ids_to_tokens
    assert [" ".join(tokens(row.tolist())) for row in found.windows] == [
        "<s> a b c d e",
        "<s> c d e f g",
        "<s> e f g h i",
    ]
    assert found.bytes.tolist() == [2, 2, 2]


@pytest.mark.parametrize(
    ("start", "stride", "most"), [(True, 0, 7), (True, 8, 7), (False, 8, 7), (False, -1, 7)]
)
def test_a_stride_that_makes_no_sense_is_refused_with_those_that_do(start, stride, most):
    tokenizer = byte_tokenizer(start=start)
    with pytest.raises(ValueError, match=f"stride is {stride} with windows of 8.* 1 to {most}"):
        strided(tokenizer, "a" * 100, 8, stride)
    for possible in (1, most):
        assert len(strided(tokenizer, "a" * 100, 8, possible).windows) >= 2


@pytest.mark.parametrize("length", [1, 0, -4])
def test_a_window_without_room_for_a_scored_token_is_refused(length):
    with pytest.raises(ValueError, match=f"with windows of {length}"):
        strided(byte_tokenizer(start=True), "a" * 100, length, 1)


@pytest.mark.parametrize(
    ("text", "limit", "count"), [("", None, 0), ("a" * 9, None, 1), ("a" * 90, 1, 1)]
)
def test_fewer_than_two_windows_are_refused(text, limit, count):
    with pytest.raises(ValueError, match=f"{len(text)} tokens give {count} windows of 8"):
        strided(byte_tokenizer(), text, 8, 2, limit)


# --- scores of windows --------------------------------------------------------------------------


def two_models(dtype=torch.float32):
    """A random model and a noisy copy that shares its output layer, as an int8 form does."""
    first, second = (tiny_llama(initializer_range=0.3) for _ in range(2))
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for weight in second.model.parameters():
            weight += 0.05 * torch.randn(weight.shape, generator=generator)
    second.lm_head = first.lm_head
    return first.to(dtype), second.to(dtype)


def some_text(count=3, length=16, stride=5):
    tokens = torch.randint(0, 97, (count, length), generator=torch.Generator().manual_seed(2))
    return StridedText(tokens, stride, np.full(count, stride))


@torch.no_grad()
def log_p(model, text):
    """Log-probabilities (N, stride, V) at the scored places, by Hugging Face in float64."""
    logits = model.double()(text.windows).logits[:, -text.stride - 1 : -1]
    return logits.log_softmax(-1)


def test_a_windows_score_is_the_mean_nll_of_its_last_tokens():
    model, text = tiny_llama(initializer_range=0.3), some_text()
    found = window_scores(model, text)
    assert [set(one) for one in found] == [{"nll"}] * 3
    expected = log_p(model, text)
    expected = -expected.gather(-1, text.windows[:, -5:, None]).mean(dim=(1, 2))
    np.testing.assert_allclose([one["nll"] for one in found], expected, rtol=1e-5)


def test_with_all_but_one_token_scored_the_loss_is_hugging_faces():
    model, text = tiny_llama(initializer_range=0.3), some_text(stride=15)
    with torch.no_grad():
        losses = [model(w[None], labels=w[None]).loss.item() for w in text.windows]
    found = [one["nll"] for one in window_scores(model, text)]
    np.testing.assert_allclose(found, losses, rtol=1e-5)


def test_kl_and_agreement_are_those_of_the_two_models_full_distributions():
    (first, second), text = two_models(), some_text(count=4)
    reference = window_scores(first, text, keep=3)
    found = window_scores(second, text, reference=reference)
    p, q = log_p(first, text), log_p(second, text)
    kl = (p.exp() * (p - q)).sum(-1).mean(-1)
    agreement = (p.argmax(-1) == q.argmax(-1)).double().mean(-1)
    assert kl.min() > 0.01 and 0 < agreement.mean() < 1  # there is something to get wrong
    np.testing.assert_allclose([one["kl"] for one in found[:3]], kl[:3], rtol=1e-4)
    assert [one["agreement"] for one in found[:3]] == agreement[:3].tolist()
    assert "kl" not in found[3] and "hidden" not in found[0]
    # The direction: from the reference to this model.
    backwards = (q.exp() * (q - p)).sum(-1).mean(-1)
    assert (kl / backwards - 1).abs().min() > 1e-2


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_model_lies_exactly_nowhere_from_itself(dtype):
    model, text = two_models(dtype)[0], some_text()
    reference = window_scores(model, text, keep=3)
    again = window_scores(model, text, reference=reference)
    assert [(one["kl"], one["agreement"]) for one in again] == [(0.0, 1.0)] * 3
    assert [one["nll"] for one in again] == [one["nll"] for one in reference]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_kept_states_lose_nothing_on_their_way_through_text(dtype):
    model, text = two_models(dtype)[0], some_text()
    kept = window_scores(model, text, keep=2)
    assert ["hidden" in one for one in kept] == [True, True, False]
    for window, one in zip(text.windows, kept[:2], strict=False):
        with torch.inference_mode():
            states = model.model(window[None]).last_hidden_state[0, -6:-1]
        stored = np.frombuffer(base64.b64decode(one["hidden"]), np.float32).reshape(5, -1)
        assert torch.equal(torch.tensor(stored).to(dtype), states)


def test_a_windows_scores_do_not_depend_on_its_neighbours():
    model, text = tiny_llama(initializer_range=0.3), some_text()
    alone = [
        window_scores(model, StridedText(window[None], text.stride, text.bytes[:1]))[0]
        for window in text.windows
    ]
    assert window_scores(model, text) == alone


def test_nan_is_an_error_that_names_the_window_and_the_cause():
    model, text = tiny_llama(), some_text()
    text.windows[text.windows == 7] = 8
    text.windows[1, 3] = 7
    hook = model.model.embed_tokens.register_forward_hook(
        lambda _, inputs, states: states.masked_fill((inputs[0] == 7)[..., None], float("nan"))
    )
    with pytest.raises(ValueError, match="NLL is NaN in window 1: the model overflowed"):
        window_scores(model, text)
    hook.remove()
    with torch.no_grad():
        model.model.embed_tokens.weight[7] = float("nan")
    with pytest.raises(ValueError, match=r"window 1: model\.embed_tokens\.weight holds NaN"):
        window_scores(model, text)


# --- divergence and bits ------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_divergence_is_pytorchs_in_float64(dtype):
    generator = torch.Generator().manual_seed(0)
    first, second = (
        (4 * torch.randn(3, 5, 200, generator=generator, dtype=dtype)).log_softmax(-1)
        for _ in range(2)
    )
    expected = torch.nn.functional.kl_div(
        second.double(), first.double(), reduction="none", log_target=True
    ).sum(-1)
    found = divergence(first, second)
    assert found.dtype == torch.float64 and found.shape == (3, 5)
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=0)


def test_divergence_of_a_sure_and_an_undecided_coin_is_a_bit():
    first, second = torch.tensor([1.0, 1e-30]).log(), torch.tensor([0.5, 0.5]).log()
    assert divergence(first, second).item() == pytest.approx(math.log(2))


def test_bits_per_byte_by_hand():
    text = StridedText(torch.zeros(3, 9), 4, np.array([10, 6, 100]))
    # 4 tokens of 1 bit and 4 of 2 bits, over 16 bytes; the third window was not scored.
    assert bits_per_byte(math.log(2) * np.array([1.0, 2.0]), text) == pytest.approx(12 / 16)


def test_a_few_windows_are_spread_over_the_whole_text():
    text = StridedText(torch.arange(22).view(11, 2), 1, np.arange(11))
    found = evenly(text, 3)
    assert found.windows[:, 0].tolist() == [0, 10, 20] and found.bytes.tolist() == [0, 5, 10]
    assert found.stride == 1
    assert evenly(text, 11) is text and evenly(text, 99) is text


def test_windows_beyond_the_models_context_are_refused_with_both_numbers():
    model = tiny_llama(max_position_embeddings=8)
    says = "the windows have 9 tokens, and the model takes 8: take windows of at most 8"
    tokens = torch.ones(2, 9, dtype=torch.long)
    with pytest.raises(ValueError, match=says):
        window_scores(model, StridedText(tokens, 4, np.array([4, 4])))
    with pytest.raises(ValueError, match=says):
        token_nll(model, tokens)
    assert len(window_scores(model, StridedText(tokens[:, :8], 4, np.array([4, 4])))) == 2
    assert token_nll(model, tokens[:, :8]).shape == (2, 7)


def test_a_model_that_knows_nothing_takes_the_bits_of_its_vocabulary():
    tokenizer = byte_tokenizer()
    model = tiny_llama(vocab_size=258)
    torch.nn.init.zeros_(model.lm_head.weight)
    text = strided(tokenizer, "Plain letters, one byte each.", 10, 4)
    nll = np.array([one["nll"] for one in window_scores(model, text)])
    assert bits_per_byte(nll, text) == pytest.approx(math.log2(258), rel=1e-6)
