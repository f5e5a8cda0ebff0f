"""Attention by backend: the same numbers, the reasons of those that refuse, shares that add up."""

import pytest
import torch
from tiny_llama import tiny_config
from torch.nn.functional import scaled_dot_product_attention

from llama_int8 import models
from llama_int8.lessons.n09 import backends
from llama_int8.lessons.n09.exercises import crossing_length
from llama_int8.models.cost import attention_flops, forward_flops
from llama_int8.transformer import llama
from llama_int8.transformer.config import LlamaConfig
from llama_int8.transformer.generation import KVCache

TINY = LlamaConfig.from_hugging_face(tiny_config().to_dict())


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    return llama.Llama(TINY).eval()


def heads(length, count=4, width=16):
    return torch.randn(3, 1, count, length, width).unbind(0)


def able():
    return [name for name, reason in backends.refusals(*heads(8)).items() if not reason]


def test_math_runs_everywhere_and_who_refuses_says_why():
    refused = backends.refusals(*heads(8))
    assert set(refused) == set(backends.BACKENDS) and refused["math"] == ""
    assert all(len(reason) > 10 for reason in refused.values() if reason)
    assert "cuDNN" not in able() or torch.cuda.is_available()


@pytest.mark.parametrize("name", able())
def test_every_backend_computes_the_same(name):
    q, k, v = heads(37)
    wanted = scaled_dot_product_attention(q, k, v, is_causal=True)
    torch.testing.assert_close(backends.by_backend(name)(q, k, v), wanted, rtol=1e-5, atol=1e-5)


def test_an_unknown_backend_is_named():
    with (
        pytest.raises(ValueError, match=r"'flush' is unknown.*math.*ours"),
        backends.using("flush"),
    ):
        pass


@pytest.mark.parametrize("name", [*able(), backends.OURS])
def test_the_model_gives_the_same_logits_with_a_cache_and_without(model, name):
    tokens = torch.arange(1, 21)[None]
    with torch.inference_mode():
        wanted = model(tokens)
        with backends.using(name):
            whole, cache = model(tokens), KVCache()
            parts = [model(part, cache) for part in tokens.split([9, 1, 10], 1)]
    assert llama.scaled_dot_product_attention is scaled_dot_product_attention  # ours has gone again
    torch.testing.assert_close(whole, wanted, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(torch.cat(parts, 1), wanted, rtol=1e-4, atol=1e-5)


def test_without_attention_a_token_knows_nothing_of_the_others(model):
    with torch.inference_mode(), backends.using(backends.NOTHING):
        whole, alone = model(torch.tensor([[5, 6, 7]])), model(torch.tensor([[5]]))
    torch.testing.assert_close(whole[:, :1], alone)
    assert llama.scaled_dot_product_attention is scaled_dot_product_attention


def test_logits_come_from_every_backend_that_can(model):
    tokens = torch.arange(1, 9)[None]
    found = backends.logits_by(model, tokens, [*backends.BACKENDS, backends.OURS])
    assert {"math", backends.OURS} <= set(found) <= {*able(), backends.OURS}
    for logits in found.values():
        torch.testing.assert_close(logits, found["math"], rtol=1e-4, atol=1e-5)


def test_time_and_memory_of_every_length_and_way():
    runs = {name: backends.by_backend(name) for name in ("math", "flash") if name in able()}
    found = backends.over_length([64, 256], runs, 4, 16, torch.float32, "cpu", rounds=2)
    assert set(found) == {64, 256} and all(set(one) == set(runs) for one in found.values())
    for length, one in found.items():
        assert all(len(e["seconds"]) == 2 and min(e["seconds"]) > 0 for e in one.values())
        assert one["math"]["peak"] >= 4 * length**2 * 4  # the scores of all heads
    if "flash" in runs:
        assert found[256]["flash"]["peak"] < found[256]["math"]["peak"]


def test_prompts_are_read_by_every_backend_and_without_attention(model):
    names = ["math", backends.OURS, backends.NOTHING]
    read = backends.prefill_over_length(model, [5, 9], names, rounds=2)
    assert set(read) == {5, 9}
    assert all(len(s) == 2 and min(s) > 0 for one in read.values() for s in one.values())


@pytest.mark.parametrize(("new", "past"), [(16, 0), (1, 8)])
def test_a_measured_share_is_a_share(model, new, past):
    assert 0 < backends.measured_share(model, "math", new, past) < 1


def test_attentions_operations_are_what_is_left_without_the_weights():
    config = models.config_of("llama-2-7b-chat")
    linear = sum(o * i for o, i in config.linear_shapes().values())
    weights = config.num_hidden_layers * linear
    head = config.vocab_size * config.hidden_size
    for new, past, batch in ((1, 0, 1), (7, 5, 3), (512, 0, 2)):
        rest = 2 * batch * (weights * new + head)
        attention = attention_flops(config, new, past, batch)
        assert attention + rest == forward_flops(config, new, past, batch)
    pairs = 3 * 10 + 6  # three queries after ten tokens: 11 + 12 + 13 keys
    assert attention_flops(config, 3, 10) == 4 * 32 * 4096 * pairs


def test_half_of_a_prompts_operations_are_attention_where_the_exercise_says():
    config = models.config_of("llama-2-7b-chat")
    weights = config.num_hidden_layers * sum(o * i for o, i in config.linear_shapes().values())
    length = round(crossing_length(weights, config.num_hidden_layers, config.hidden_size))
    assert backends.predicted_share(config, length, 0) == pytest.approx(0.5, abs=1e-3)


def test_a_step_reads_the_cache_beside_the_weights():
    config = models.config_of("llama-2-7b-chat")
    assert backends.predicted_share(config, 1, 0) < 1e-4
    shares = [backends.predicted_share(config, 1, past) for past in (100, 1000, 100_000)]
    assert shares == sorted(shares) and shares[-1] > 0.7
