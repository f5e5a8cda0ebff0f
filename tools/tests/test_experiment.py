"""Answers and where they part, tables, and the measurement of one model in several precisions."""

import json

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import LlamaConfig as HuggingFaceConfig
from transformers import LlamaForCausalLM

from llama_int8.classroom.tables import markdown_table
from llama_int8.measurement import answers, experiment, quality
from llama_int8.measurement.cost import weight_bytes
from llama_int8.models import config_of, load_model, load_tokenizer

TINY = {
    "vocab_size": 64,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
}
PROMPT = torch.tensor([[5, 9, 2, 40, 7]])


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A tiny model with random weights, saved."""
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("tiny")
    LlamaForCausalLM(HuggingFaceConfig(**TINY, initializer_range=0.5)).save_pretrained(path)
    return str(path)


@pytest.fixture(scope="module")
def model(folder):
    return load_model(folder, "fp32", "cpu")


def test_a_greedy_answer_takes_the_most_probable_token_at_each_step(model):
    tokens = PROMPT
    for _ in range(12):
        tokens = torch.cat([tokens, model(tokens).logits[:, -1:].argmax(-1)], dim=1)
    expected = tokens[0, PROMPT.shape[1] :].tolist()
    found = answers.greedy_answer(model, PROMPT, 12)
    assert found == expected[: len(found)]
    assert len(found) == 12 or found[-1] == model.generation_config.eos_token_id


def test_next_token_probabilities_are_those_of_one_pass_over_the_whole_text(model):
    answer = [3, 60, 1, 0, 17]
    found = answers.next_token_probabilities(model, PROMPT, answer)
    whole = torch.cat([PROMPT, torch.tensor([answer])], dim=1)
    expected = model(whole).logits[0, PROMPT.shape[1] - 1 : -1].double().softmax(-1)
    torch.testing.assert_close(found.double(), expected, atol=1e-6, rtol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["bf16", "int8"])
def test_on_the_path_of_its_own_answer_a_model_finds_its_own_tokens_likeliest(precision):
    tokenizer = load_tokenizer("smollm2-135m")
    real = load_model("smollm2-135m", precision, "cpu")
    prompt = answers.prompt_tokens(tokenizer, "Why is the sky blue?")
    answer = answers.greedy_answer(real, prompt, 24)
    assert answers.next_token_probabilities(real, prompt, answer).argmax(-1).tolist() == answer


@given(st.lists(st.integers(0, 3)), st.lists(st.integers(0, 3)))
def test_the_first_difference_is_where_equal_beginnings_end(first, second):
    index = answers.first_difference(first, second)
    if index is None:
        assert first == second
    else:
        assert first[:index] == second[:index]
        assert first[index : index + 1] != second[index : index + 1]


@pytest.mark.slow
def test_a_prompt_takes_the_chat_form_where_the_model_has_one():
    tokenizer = load_tokenizer("smollm2-135m")
    assert "<|im_start|>user\nHello<|im_end|>" in tokenizer.decode(
        answers.prompt_tokens(tokenizer, "Hello")[0]
    )
    tokenizer.chat_template = None
    assert tokenizer.decode(answers.prompt_tokens(tokenizer, "Hello")[0]) == "Hello"


@pytest.mark.parametrize("precision", ["fp32", "bf16", "int8"])
def test_one_stage_measures_bytes_quality_and_text_and_is_plain_json(folder, precision):
    windows = torch.arange(48).view(3, 16)
    run = experiment.memory_quality_and_text(folder, precision, "cpu", windows, PROMPT, 6)
    assert json.loads(json.dumps(run)) == run
    assert run["weight bytes"] == weight_bytes(config_of(folder), precision).total
    alone = load_model(folder, precision, "cpu")
    assert run["nll"] == quality.token_nll(alone, windows).tolist()
    assert run["answer"] == answers.greedy_answer(alone, PROMPT, 6)


@pytest.mark.parametrize(("free", "together"), [(10**9, True), (20_000, False)])
def test_precisions_take_turns_where_they_fit_together_and_the_result_says_so(
    folder, monkeypatch, free, together
):
    monkeypatch.setattr(experiment.models, "free_memory", lambda device: free)
    held, most = [], []

    def load(name, precision, device):
        held.append(precision)
        most.append(len(held))
        return load_model(name, precision, device)

    monkeypatch.setattr(experiment.models, "load_model", load)
    monkeypatch.setattr(experiment.memory, "release", held.clear)
    timed = experiment.speed(folder, ["fp32", "bf16"], "cpu", PROMPT, 3, rounds=2)
    assert timed["interleaved"] is together
    assert max(most) == (2 if together else 1)
    assert timed["seconds"].keys() == {"fp32", "bf16"}
    for phases in timed["seconds"].values():
        assert {phase: len(all_) for phase, all_ in phases.items()} == {"prefill": 2, "decode": 2}


def test_a_cell_cannot_break_its_table():
    table = markdown_table(["a", "b"], [["x|y", "two\nlines"]])
    assert table.splitlines()[2] == "| x\\|y | two lines |"
