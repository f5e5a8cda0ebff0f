"""Cost from shapes, memory held, seconds taken, quality on a text: each against a reference."""

import time
from types import SimpleNamespace

import bitsandbytes as bnb
import numpy as np
import psutil
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_llama import in_int8, tiny_config, tiny_llama
from torch import nn
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoModelForCausalLM, BitsAndBytesConfig, DynamicCache, LlamaForCausalLM

from llama_int8.data import calibration_text, evaluation_text, load, probes
from llama_int8.evaluation.perplexity import perplexity, token_nll, windows
from llama_int8.lessons.n00.figures import triangle
from llama_int8.lessons.n00.measurements import fastest, int8_against_others
from llama_int8.measure import latency, memory
from llama_int8.measure.latency import (
    interleaved,
    matrix_throughput,
    prefill,
    prefill_and_decode,
    read_bandwidth,
    repeated,
)
from llama_int8.measure.memory import count_new_bytes, weight_memory
from llama_int8.measure.statistics import Spread
from llama_int8.models import MODELS, config_of, cost, load_model, load_tokenizer
from llama_int8.models.cost import (
    GIB,
    count_parameters,
    decode_bound,
    feed_forward_width,
    kv_cache_bytes,
    llama1_config,
    training_bytes,
    training_flops,
    weight_bytes,
)
from llama_int8.quantization.cpu import kernels
from llama_int8.transformer.config import LlamaConfig

T4_BANDWIDTH = 320e9
DEFAULT = "smollm2-135m"


def course_config(config):
    return LlamaConfig.from_hugging_face(config.to_dict())


@pytest.fixture
def tiny():
    """A random GQA model in FP32."""
    return tiny_llama()


@pytest.fixture(scope="module")
def embedded():
    return load_model(DEFAULT, "fp32", "cpu")


# --- cost: published numbers ------------------------------------------------------------------


def test_llama_2_7b_takes_the_published_gibibytes():
    config = config_of("llama-2-7b-chat")
    assert round(weight_bytes(config, "fp16").total / GIB, 2) == 12.55
    assert round(weight_bytes(config, "int8").total / GIB, 2) == 6.53


def test_llama_2_7b_has_the_published_parameters_and_int8_weights():
    config = config_of("llama-2-7b-chat")
    int8 = weight_bytes(config, "int8")
    assert count_parameters(config) == 6_738_415_616
    assert int8.linear == 6_476_005_376
    assert round(int8.scales / 1e6, 1) == 5.4
    assert int8.embedding + int8.lm_head == 524_288_000


def test_llama_31_8b_takes_the_published_megabytes():
    config = config_of("llama-3.1-8b")
    assert round(weight_bytes(config, "fp16").total / 1e6) == 16_061
    int8 = weight_bytes(config, "int8")
    assert round((int8.total - int8.scales) / 1e6) == 9_081  # published without the row scales
    assert round(int8.total / 1e6) == 9_087


def test_a_t4_cannot_decode_llama_2_7b_faster_than_its_bandwidth_allows():
    config = config_of("llama-2-7b-chat")
    bounds = {
        precision: decode_bound(weight_bytes(config, precision).read_per_token, T4_BANDWIDTH)
        for precision in ("fp16", "int8")
    }
    assert round(bounds["fp16"], 1) == 24.2
    assert bounds["int8"] == pytest.approx(47, abs=0.7)


def test_the_embedding_table_is_read_only_where_it_is_the_output_layer():
    tied, untied = config_of("llama-3.2-1b"), config_of("llama-3.1-8b")
    assert weight_bytes(tied, "bf16").read_per_token == weight_bytes(tied, "bf16").total
    table = untied.vocab_size * untied.hidden_size * 2
    assert weight_bytes(untied, "bf16").read_per_token == weight_bytes(untied, "bf16").total - table


@pytest.mark.parametrize("name", MODELS)
def test_fp32_takes_twice_the_bytes_of_16_bit_and_int8_a_little_over_half(name):
    config = config_of(name)
    fp32, fp16, bf16, int8 = (
        weight_bytes(config, p).total for p in ("fp32", "fp16", "bf16", "int8")
    )
    assert fp32 == 2 * fp16 == 2 * bf16
    assert fp16 / 2 < int8 < fp16


@pytest.mark.parametrize("precision", ["int4", "FP16", "", None])
def test_another_precision_is_refused_by_name(precision):
    with pytest.raises(ValueError, match=r"precision is .*known are fp32, bf16, fp16, int8"):
        weight_bytes(config_of(DEFAULT), precision)


# --- cost: against Hugging Face ---------------------------------------------------------------


@settings(max_examples=25, deadline=None)
@given(
    key_value_heads=st.integers(1, 4),
    group=st.integers(1, 3),
    head_dim=st.sampled_from([2, 4, 10]),
    layers=st.integers(1, 3),
    width=st.integers(1, 9),
    inner=st.integers(1, 50),
    vocabulary=st.integers(3, 120),
    tied=st.booleans(),
    attention_bias=st.booleans(),
    mlp_bias=st.booleans(),
)
def test_parameters_and_bytes_are_those_of_hugging_faces_model(
    key_value_heads,
    group,
    head_dim,
    layers,
    width,
    inner,
    vocabulary,
    tied,
    attention_bias,
    mlp_bias,
):
    config = tiny_config(
        vocab_size=vocabulary,
        hidden_size=key_value_heads * group * width,  # need not be heads x head_dim
        intermediate_size=inner,
        num_hidden_layers=layers,
        num_attention_heads=key_value_heads * group,
        num_key_value_heads=key_value_heads,
        head_dim=head_dim,
        tie_word_embeddings=tied,
        attention_bias=attention_bias,
        mlp_bias=mlp_bias,
    )
    with torch.device("meta"):
        model = LlamaForCausalLM(config).half()
    ours = course_config(config)
    assert count_parameters(ours) == sum(p.numel() for p in model.parameters())
    assert weight_bytes(ours, "fp16").total == sum(p.nbytes for p in model.parameters())


@pytest.mark.parametrize(("where", "layers"), [("attention_bias", 4), ("mlp_bias", 3)])
def test_biases_are_counted_in_the_layers_that_have_them(where, layers):
    config = tiny_config(**{where: True})
    model = LlamaForCausalLM(config)
    biases = [p for name, p in model.named_parameters() if name.endswith("bias")]
    assert len(biases) == layers * config.num_hidden_layers
    assert weight_bytes(course_config(config), "fp32").biases == sum(b.nbytes for b in biases)


@pytest.mark.parametrize(("batch", "length", "dtype"), [(1, 5, "float32"), (3, 7, "bfloat16")])
def test_kv_cache_bytes_are_those_of_hugging_faces_cache(batch, length, dtype):
    dtype = getattr(torch, dtype)
    config = tiny_config()
    model, cache = LlamaForCausalLM(config).to(dtype).eval(), DynamicCache()
    with torch.inference_mode():
        model(torch.zeros(batch, length, dtype=torch.long), past_key_values=cache)
    held = sum(layer.keys.nbytes + layer.values.nbytes for layer in cache.layers)
    assert kv_cache_bytes(course_config(config), length, batch, dtype.itemsize) == held
    assert kv_cache_bytes(course_config(config), 0) == 0


def test_the_int8_prediction_is_what_bitsandbytes_holds(tmp_path):
    config = tiny_config(hidden_size=48, attention_bias=True, mlp_bias=True)
    LlamaForCausalLM(config).save_pretrained(tmp_path)
    model = AutoModelForCausalLM.from_pretrained(
        tmp_path,
        dtype=torch.bfloat16,
        device_map={"": "cpu"},
        quantization_config=BitsAndBytesConfig(load_in_8bit=True),
    ).eval()
    predicted = weight_bytes(course_config(config), "int8")
    assert weight_memory(model) == predicted.total
    assert model.get_memory_footprint() < predicted.total  # it leaves the scales out
    model(torch.arange(5)[None])  # moves bitsandbytes' scales from the weight to the layer's state
    assert weight_memory(model) == predicted.total


# --- cost: activations, operations, bytes moved -------------------------------------------------

SHAPES = {
    "GQA": {"hidden_size": 64, "intermediate_size": 192, "head_dim": 8, "num_attention_heads": 8},
    "MHA": {
        "hidden_size": 96,
        "intermediate_size": 258,  # LLaMA's 2.69 times the width; no multiple of 64
        "head_dim": 16,
        "num_attention_heads": 6,
        "num_key_value_heads": 6,
    },
    "wide": {
        "hidden_size": 128,
        "intermediate_size": 520,
        "head_dim": 32,
        "num_attention_heads": 4,
    },
    "narrow heads": {"hidden_size": 120, "intermediate_size": 330, "head_dim": 4},
}
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


def shaped(shape, precision):
    """A random model of one of the shapes, in this precision."""
    model = tiny_llama(max_position_embeddings=1024, **SHAPES[shape])
    return in_int8(model) if precision == "int8" else model.to(DTYPES[precision])


def measured_and_predicted(shape, precision, batch, length):
    """Peak bytes of one prefill beyond the weights: seen by the profiler, and from the shapes."""
    model = shaped(shape, precision)
    tokens = torch.randint(97, (batch, length), generator=torch.Generator().manual_seed(0))
    prefill(model, tokens[:, :2])  # bitsandbytes moves its scales in the first pass
    measured = memory.peak_bytes(lambda: prefill(model, tokens), "cpu")["peak"]
    parts = cost.peak_bytes(course_config(model.config), precision, length, batch, "cpu")
    return measured, sum(parts.values()) - parts["weights"]


@pytest.mark.usefixtures("one_thread")
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize(("batch", "length"), [(1, 64), (4, 64), (1, 500), (4, 200)])
def test_a_prefills_peak_is_predicted_within_1_percent(shape, precision, batch, length):
    measured, predicted = measured_and_predicted(shape, precision, batch, length)
    assert predicted == pytest.approx(measured, rel=0.01)


@pytest.mark.usefixtures("one_thread")
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize(("batch", "length"), [(1, 64), (4, 64), (1, 500), (4, 200)])
def test_a_prefills_peak_in_int8_is_predicted_within_10_percent(shape, batch, length):
    measured, predicted = measured_and_predicted(shape, "int8", batch, length)
    assert predicted == pytest.approx(measured, rel=0.1)


def test_the_peak_by_part_is_the_sum_of_what_each_function_says():
    config = config_of("tinyllama-1.1b")
    for precision, size in (("fp32", 4), ("fp16", 2), ("int8", 2)):
        for device in ("cpu", "cuda"):
            assert cost.peak_bytes(config, precision, 300, 4, device) == {
                "weights": weight_bytes(config, precision).total,
                "KV cache": kv_cache_bytes(config, 300, 4, size),
                "activations": cost.activation_bytes(config, 300, 4, precision, device),
                "logits": 4 * config.vocab_size * size,
            }


def test_activations_of_int8_by_hand():
    config = course_config(tiny_config(hidden_size=12, intermediate_size=100, head_dim=8))
    positions = 8 + 2 * 8 * 2  # an index, and cosines and sines in 16 bit
    # 4 rows of 12 in 16 bit, their codes, a row of 100 in 16 bit and the int32 product; then FP32
    # three times on a CPU, 16 bit once on a GPU.
    for device, scaled in (("cpu", 12), ("cuda", 2)):
        row = 4 * 12 * 2 + 12 + 100 * 2 + 100 * 4 + 100 * scaled
        found = cost.activation_bytes(config, 7, 3, "int8", device)
        assert found == 3 * 7 * row + 7 * positions


def test_what_int8_fast_restores_on_a_gpu_is_its_largest_layer_in_16_bit():
    config = config_of("llama-2-7b-chat")
    width, inner, words = config.hidden_size, config.intermediate_size, config.vocab_size
    cases = ((1, 16, 0), (1, 17, 2 * inner), (17, 1, words), (8, 64, 2 * inner))
    for batch, tokens, restored in cases:
        there, here = (
            cost.activation_bytes(config, tokens, batch, "int8-fast", device)
            for device in ("cuda", "cpu")
        )
        assert there - here == 2 * restored * width
    assert cost.restored_bytes(config, 512, 512) == 2 * words * width  # scoring: all logits
    assert cost.activation_bytes(config, 64, 1, "fp16", "cuda") == cost.activation_bytes(
        config, 64, 1, "fp16", "cpu"
    )


def test_logits_are_a_score_for_every_token_at_every_place():
    config = config_of("llama-3.2-1b")
    assert cost.logits_bytes(config, 512, 4) == 4 * 512 * 128256 * 2
    assert cost.logits_bytes(config, 1, bytes_per_value=4) == 128256 * 4


def counted_flops(model, new, past, batch):
    """PyTorch's count of one pass over (batch, new) tokens after `past` ones."""
    tokens = torch.ones(batch, past + new, dtype=torch.long)
    cache = prefill(model, tokens[:, :past]) if past else DynamicCache()
    with torch.inference_mode(), FlopCounterMode(display=False) as counter:
        model(tokens[:, past:], past_key_values=cache, use_cache=True, logits_to_keep=1)
    return counter.get_total_flops()


@pytest.mark.parametrize(("new", "past", "batch"), [(1, 0, 1), (1, 30, 1), (1, 9, 3)])
def test_operations_of_a_decode_step_are_those_that_pytorch_counts(new, past, batch):
    model = tiny_llama(attn_implementation="eager")
    expected = counted_flops(model, new, past, batch)
    assert cost.forward_flops(course_config(model.config), new, past, batch) == expected


@pytest.mark.parametrize(("new", "past", "batch"), [(2, 0, 1), (20, 0, 3), (7, 12, 2)])
def test_operations_of_a_prefill_are_pytorchs_without_those_that_the_mask_hides(new, past, batch):
    # Eager attention computes all T x T scores; a kernel that knows the mask leaves half of them.
    model = tiny_llama(attn_implementation="eager")
    config = course_config(model.config)
    hidden = new * (new - 1) // 2  # pairs of a query and a later key
    width = config.num_attention_heads * config.head_dim
    unmasked = 4 * config.num_hidden_layers * batch * width * hidden
    expected = counted_flops(model, new, past, batch) - unmasked
    assert cost.forward_flops(config, new, past, batch) == expected


def test_a_pass_moves_every_weight_and_the_cache_once():
    config = config_of("llama-3.1-8b")  # two tables, of which a pass reads one and a row
    cache = 2 * 32 * 8 * 128 * (100 + 5) * 3 * 2  # 16 bit, 3 rows of 105 positions
    for precision in ("fp16", "int8"):
        read = weight_bytes(config, precision).read_per_token
        assert cost.forward_bytes(config, precision, 5, 100, 3) == read + cache
    assert cost.forward_bytes(config, "fp32", 1) == (
        weight_bytes(config, "fp32").read_per_token + 2 * 32 * 8 * 128 * 4
    )


def test_the_roof_slopes_up_to_the_ridge_and_is_flat_behind_it():
    bandwidth, throughput = 300e9, 60e12  # the ridge is at 200 operations a byte
    assert cost.roofline(1, bandwidth, throughput) == 300e9
    assert cost.roofline(100, bandwidth, throughput) == 30e12
    assert cost.roofline(200, bandwidth, throughput) == throughput
    assert cost.roofline(5000, bandwidth, throughput) == throughput


# --- memory -----------------------------------------------------------------------------------


def test_shared_storage_is_counted_once():
    first, second = nn.Linear(7, 5, bias=False), nn.Linear(7, 5, bias=False)
    both = nn.ModuleList([first, second])
    assert weight_memory(both) == 2 * 7 * 5 * 4
    second.weight = first.weight
    assert weight_memory(both) == 7 * 5 * 4


def test_a_view_holds_its_whole_storage():
    layer = nn.Linear(4, 3, bias=False)
    layer.weight = nn.Parameter(torch.zeros(100, 4)[:3])
    assert weight_memory(layer) == 100 * 4 * 4


def test_bitsandbytes_row_scales_are_counted_before_and_after_the_first_product():
    layer = bnb.nn.Linear8bitLt(64, 48, bias=True, has_fp16_weights=False).to("cpu").eval()
    assert layer.weight.SCB.dtype == torch.float32 and layer.weight.SCB.shape == (48,)
    by_hand = 48 * 64 + 48 * 4 + layer.bias.nbytes
    assert weight_memory(layer) == by_hand
    layer(torch.ones(2, 64, dtype=layer.bias.dtype))
    assert weight_memory(layer) == by_hand


def test_weights_kept_as_buffers_are_counted_and_scratch_buffers_are_not():
    layer = nn.Module()
    layer.register_buffer("weight", torch.zeros(6, 4, dtype=torch.int8))
    layer.register_buffer("SCB", torch.zeros(6))
    layer.register_buffer("inv_freq", torch.zeros(9), persistent=False)
    assert weight_memory(layer) == 6 * 4 + 6 * 4


def test_a_model_without_weights_takes_nothing():
    assert weight_memory(nn.ReLU()) == 0


def test_the_peak_of_a_run_is_that_of_its_allocations():
    def run():
        first = torch.empty(1000)
        second = torch.empty(3000)
        del first
        third = torch.empty(500)
        del second, third

    assert memory.peak_bytes(run, "cpu")["peak"] == 4 * (1000 + 3000)


def test_what_is_freed_again_makes_room_below_the_peak():
    kept = []

    def run():
        for size in (100, 700, 300):
            torch.empty(size)  # freed at once
        kept.append(torch.empty(650))

    found = memory.peak_bytes(run, "cpu")
    assert found["peak"] == 4 * 700


def test_what_was_held_before_the_run_does_not_count():
    before = torch.empty(10_000)
    assert memory.peak_bytes(before.neg_, "cpu")["peak"] == 0
    assert memory.peak_bytes(lambda: before[:500].clone(), "cpu")["peak"] == 2000
    assert memory.peak_bytes(lambda: None, "cpu")["peak"] == 0


def test_a_matrix_products_peak_is_its_result():
    a, b = torch.randn(30, 40), torch.randn(40, 50)
    assert memory.peak_bytes(lambda: a @ b, "cpu")["peak"] == 30 * 50 * 4


def test_a_snapshot_on_a_cpu_is_the_process_alone():
    found = memory.snapshot("cpu")
    assert set(found) == {"process"}
    assert found["process"] == pytest.approx(psutil.Process().memory_info().rss, rel=0.05)
    assert memory.peak_bytes(lambda: None, "cpu").keys() == {"peak", "process"}


# --- latency ----------------------------------------------------------------------------------


def recorded_runs(calls, names):
    def run(name):
        calls.append(name)
        return {"decode": float(len(calls)), "prefill": 0.5}

    return {name: lambda name=name: run(name) for name in names}


@pytest.mark.parametrize(("rounds", "warmup"), [(1, 0), (3, 1), (2, 4)])
def test_runs_alternate_and_warm_ups_are_not_counted(rounds, warmup):
    calls = []
    times = interleaved(recorded_runs(calls, "abc"), rounds, warmup)
    # Every second round backwards, so that none always follows the same one.
    assert "".join(calls) == "abc" * warmup + ("abccba" * rounds)[: 3 * rounds]
    # A run here returns the number of its own call, so the rows show which calls were kept.
    for name in "abc":
        kept = [n for n, call in enumerate(calls, 1) if call == name][warmup:]
        np.testing.assert_array_equal(times[name]["decode"], kept)
        np.testing.assert_array_equal(times[name]["prefill"], np.full(rounds, 0.5))


@pytest.mark.parametrize("rounds", [0, -1])
def test_fewer_than_one_round_is_refused_before_anything_runs(rounds):
    calls = []
    with pytest.raises(ValueError, match=f"rounds is {rounds}"):
        interleaved(recorded_runs(calls, "ab"), rounds)
    assert calls == []


@pytest.mark.parametrize("new_tokens", [0, 1, 6])
def test_decode_is_one_pass_over_one_token_for_each_new_token(tiny, new_tokens):
    prompt, fed = torch.arange(2 * 9).view(2, 9), []
    tiny.register_forward_pre_hook(lambda _module, inputs: fed.append(inputs[0]))
    seconds = prefill_and_decode(tiny, prompt, new_tokens)
    assert [tuple(tokens.shape) for tokens in fed] == [(2, 9)] + [(2, 1)] * new_tokens
    assert seconds["prefill"] > 0 and seconds["decode"] >= 0


def test_decode_takes_the_greedy_tokens_of_hugging_faces_generate(tiny):
    prompt, fed = torch.tensor([[5, 80, 3, 41, 7]]), []
    hook = tiny.register_forward_pre_hook(lambda _module, inputs: fed.append(inputs[0]))
    prefill_and_decode(tiny, prompt, 8)
    hook.remove()
    generated = tiny.generate(
        prompt, max_new_tokens=8, do_sample=False, eos_token_id=None, pad_token_id=0
    )
    assert torch.equal(torch.cat(fed, dim=1), generated)


def test_prefill_and_decode_are_timed_apart(monkeypatch):
    clock = SimpleNamespace(now=100.0)

    def model(tokens, past_key_values=None, **_options):  # a second a token, and no other work
        clock.now += tokens.shape[1]
        return SimpleNamespace(logits=torch.zeros(*tokens.shape, 4), past_key_values=None)

    monkeypatch.setattr(time, "perf_counter", lambda: clock.now)
    assert prefill_and_decode(model, torch.zeros(1, 7), 3) == {"prefill": 7.0, "decode": 3.0}


def test_a_prefill_fills_a_cache_that_a_second_one_continues(tiny):
    tokens = torch.arange(2 * 9).view(2, 9)
    whole, parts = prefill(tiny, tokens), prefill(tiny, tokens[:, :5])
    assert parts.get_seq_length() == 5
    assert prefill(tiny, tokens[:, 5:], parts) is parts
    assert whole.get_seq_length() == parts.get_seq_length() == 9
    for one, other in zip(whole.layers, parts.layers, strict=True):
        torch.testing.assert_close(one.keys, other.keys)
        torch.testing.assert_close(one.values, other.values)


def test_a_prefill_computes_the_scores_of_the_last_place_alone(tiny):
    shapes = []
    tiny.lm_head.register_forward_hook(lambda _m, _i, out: shapes.append(tuple(out.shape)))
    prefill(tiny, torch.arange(2 * 9).view(2, 9))
    assert shapes == [(2, 1, 97)]


@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16", "int8"])
def test_a_matrix_product_has_a_speed_in_every_precision(precision):
    assert 1e6 < matrix_throughput("cpu", precision, size=64, repeats=1) < 1e15


def test_throughput_is_two_operations_a_product_in_the_best_run(monkeypatch):
    taken = iter([0.5, 0.002, 0.004])
    works = []

    def repeated(work, calls, device):
        works.append((work(), calls, device))
        return lambda: {"call": next(taken)}

    monkeypatch.setattr(latency, "repeated", repeated)
    assert matrix_throughput("cpu", "int8", size=10, repeats=2) == 2 * 10**3 / 0.002
    product, calls, device = works[0]
    assert product.dtype == torch.int32 and product.shape == (10, 10)
    assert (calls, device) == (1, "cpu")


def test_a_roof_is_the_best_of_all_moments_and_never_falls(monkeypatch):
    seconds = {"read": iter([4.0, 2.0, 1.0, 8.0, 8.0]), "int8": iter([4.0, 2.0, 4.0, 1.0, 4.0])}
    order = []

    def run(name):
        def one():
            order.append(name)
            return {"call": next(seconds[name])}

        return one

    roofs = latency.Roofs("cpu", ["int8"])
    monkeypatch.setattr(roofs, "_make", lambda: {n: (run(n), 8) for n in ("read", "int8")})
    roofs.measure(rounds=2)  # after a warm-up, which does not count
    assert roofs.best == {"read": 8.0, "int8": 4.0}
    assert order == ["read", "int8", "read", "int8", "int8", "read"]
    roofs.measure(rounds=1)
    assert roofs.best == {"read": 8.0, "int8": 4.0}


def test_roofs_are_measured_in_every_precision():
    roofs = latency.Roofs("cpu", ["bf16", "int8"], size=64, megabytes=16)
    roofs.measure(rounds=1)
    assert list(roofs.best) == ["read", "bf16", "int8"]
    assert 1e8 < roofs.best["read"] < 1e13 and 1e6 < roofs.best["int8"] < 1e15


@pytest.mark.parametrize("version", ["auto", kernels.PYTORCH])
def test_read_bandwidth_is_that_of_a_memory(version, monkeypatch):
    monkeypatch.setenv(kernels.CHOICE, version)
    assert 1e8 < read_bandwidth("cpu", megabytes=16, repeats=2) < 1e13


def test_a_reader_reads_whole_lines_as_fast_as_it_found_out_to_be_possible(monkeypatch):
    library, calls = SimpleNamespace(), []
    monkeypatch.setattr(kernels, "chosen", lambda: SimpleNamespace(library=library))
    slowest_first = {streams: 0.008 / streams for streams in kernels.STREAMS}

    def sum_memory(given, data, streams):
        assert given is library
        calls.append((data.nbytes, streams))
        time.sleep(slowest_first[streams])

    monkeypatch.setattr(kernels, "sum_memory", sum_memory)
    reader = latency.MemoryReader(1000)
    reader.read()
    assert {streams for _, streams in calls} == set(kernels.STREAMS)
    assert calls[-1] == (1024, kernels.STREAMS[-1])
    before = len(calls)
    reader.read()
    assert calls[before:] == [(1024, kernels.STREAMS[-1])]


# --- quality ----------------------------------------------------------------------------------


class Fixed(nn.Module):
    """A "model" that answers every window with the logits that `answer(window)` gives."""

    def __init__(self, answer):
        super().__init__()
        self.weight, self.answer = nn.Parameter(torch.zeros(1)), answer

    def forward(self, tokens, **_options):
        return SimpleNamespace(logits=torch.stack([self.answer(window) for window in tokens]))


@pytest.mark.slow  # needs the package index, once
def test_token_nll_is_hugging_faces_loss_window_by_window(embedded):
    text = load_tokenizer(DEFAULT)(evaluation_text()[:2000])["input_ids"]
    cut = windows(text, 40, limit=3)
    with torch.inference_mode():
        losses = [embedded(window[None], labels=window[None]).loss.item() for window in cut]
    nll = token_nll(embedded, cut)
    assert nll.shape == (3, 39) and nll.dtype == np.float64
    np.testing.assert_allclose(nll.mean(axis=1), losses, rtol=1e-5)


def test_token_nll_is_the_log_softmax_of_the_next_token_in_float64(tiny):
    tokens = torch.randint(0, 97, (4, 11), generator=torch.Generator().manual_seed(1))
    with torch.inference_mode():
        logits = tiny(tokens).logits.double().numpy()[:, :-1]
    log_sums = np.log(np.exp(logits - logits.max(-1, keepdims=True)).sum(-1)) + logits.max(-1)
    chosen = np.take_along_axis(logits, tokens[:, 1:, None].numpy(), -1)[..., 0]
    np.testing.assert_allclose(token_nll(tiny, tokens), log_sums - chosen, rtol=2e-6)


def test_a_windows_nll_does_not_depend_on_its_neighbours(tiny):
    tokens = torch.arange(30).view(3, 10)
    alone = np.concatenate([token_nll(tiny, window[None]) for window in tokens])
    np.testing.assert_array_equal(token_nll(tiny, tokens), alone)


def test_perplexity_of_a_uniform_model_is_its_vocabulary(tiny):
    nn.init.zeros_(tiny.lm_head.weight)
    assert perplexity(token_nll(tiny, torch.arange(20).view(2, 10))) == pytest.approx(97, rel=1e-6)


def test_perplexity_of_a_model_that_knows_the_answer_is_one():
    knows = Fixed(lambda window: 1e4 * nn.functional.one_hot(window.roll(-1), 30).float())
    assert perplexity(token_nll(knows, torch.arange(20).view(2, 10))) == 1.0


def test_perplexity_is_the_inverse_geometric_mean_of_the_probabilities():
    probabilities = np.array([[0.5, 0.25], [0.9, 0.01]])
    assert perplexity(-np.log(probabilities)) == pytest.approx(np.prod(probabilities) ** (-1 / 4))


def test_every_window_begins_with_the_start_tokens_and_the_text_goes_on_behind_them():
    cut = windows(list(range(100)), 12, limit=5, start=[7, 8])
    assert cut.shape == (5, 12)
    assert cut[:, :2].tolist() == [[7, 8]] * 5
    assert cut[:, 2:].flatten().tolist() == list(range(50))


def test_nan_logits_are_an_error_that_names_the_windows():
    def overflows_on_token_0(window):
        return torch.full((len(window), 50), float("inf") if 0 in window else 1.0)

    tokens = torch.arange(40).roll(15).view(4, 10)  # token 0 stands in window 1
    with pytest.raises(ValueError, match=r"NaN in window\(s\) \[1\]"):
        token_nll(Fixed(overflows_on_token_0), tokens)


def test_a_token_held_impossible_has_infinite_nll_and_perplexity():
    logits = torch.tensor([0.0, float("-inf")])
    impossible = token_nll(Fixed(lambda window: logits.expand(3, 2)), torch.ones(2, 3).long())
    assert np.isposinf(impossible).all() and perplexity(impossible) == float("inf")


@settings(max_examples=50, deadline=None)
@given(
    tokens=st.lists(st.integers(0, 60_000), max_size=60),
    length=st.integers(2, 12),
    limit=st.none() | st.integers(0, 8),
)
def test_windows_are_the_texts_beginning_cut_exactly(tokens, length, limit):
    count = len(tokens) // length if limit is None else min(limit, len(tokens) // length)
    if count < 2:
        with pytest.raises(ValueError, match=f"{count} windows of {length}"):
            windows(tokens, length, limit)
        return
    cut = windows(tokens, length, limit)
    assert cut.shape == (count, length)
    assert cut.flatten().tolist() == tokens[: count * length]


@pytest.mark.parametrize("length", [1, 0, -3])
def test_windows_in_which_nothing_is_predicted_are_refused(length):
    with pytest.raises(ValueError, match="at least 2 tokens"):
        windows(list(range(100)), length)


def test_an_empty_text_and_a_limit_below_two_are_refused():
    for tokens, limit in [([], None), (list(range(100)), 0), (list(range(100)), 1)]:
        with pytest.raises(ValueError, match="at least 2 windows"):
            windows(tokens, 10, limit)


# --- texts ------------------------------------------------------------------------------------


@pytest.mark.slow  # needs the package index, once
def test_the_texts_are_as_long_as_they_say():
    tokenizer = load_tokenizer(DEFAULT)
    assert len(tokenizer(evaluation_text())["input_ids"]) > 8_000
    assert len(tokenizer(calibration_text())["input_ids"]) > 4_000


def test_calibration_and_evaluation_share_no_six_words():
    def runs(text):
        words = text.lower().split()
        return {tuple(words[i : i + 6]) for i in range(len(words) - 5)}

    assert not runs(evaluation_text()) & runs(calibration_text())


@pytest.mark.parametrize(("kind", "parts"), [("answers", 2), ("hidden_words", 5), ("yes_or_no", 3)])
def test_probes_are_complete_and_different(kind, parts):
    found = probes(kind)
    assert all(len(entry) == parts and len(set(entry)) == parts for entry in found)
    assert len({entry[0] for entry in found}) == len(found) > 0


def test_a_hidden_word_leaves_one_gap():
    assert all(sentence.count("{}") == 1 for sentence, *_ in probes("hidden_words"))


def test_unknown_probes_list_the_known_ones():
    with pytest.raises(ValueError, match=r"'riddles'.*answers, hidden_words, yes_or_no, repeated"):
        probes("riddles")


# --- training: width, operations, bytes ---------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "published"),
    [
        ((4096,), 11008),  # LLaMA-7B, Llama-2-7B
        ((5120,), 13824),
        ((6656,), 17920),
        ((8192,), 22016),
        ((8192, 4096, 1.3), 28672),  # Llama-2-70B
        ((4096, 1024, 1.3), 14336),  # Llama-3-8B
        ((2048, 256, 1.5), 8192),  # Llama-3.2-1B
    ],
)
def test_the_inner_width_is_that_of_the_published_models(arguments, published):
    assert feed_forward_width(*arguments) == published


@pytest.mark.parametrize("size", load("llama_papers")["sizes"])
def test_the_papers_sizes_hours_and_speed_agree_with_each_other(size):
    printed = load("llama_papers")["sizes"][size]
    config = llama1_config(printed["width"], printed["heads"], printed["layers"])
    assert count_parameters(config) / 1e9 == pytest.approx(printed["parameters"], rel=0.006)
    if size == load("llama_papers")["speed"]["size"]:
        rate = printed["tokens"] * 1e12 / (printed["gpu_hours"] * 3600)
        assert rate == pytest.approx(
            load("llama_papers")["speed"]["tokens_per_second_per_gpu"], rel=0.01
        )


def test_llama_7b_has_the_shapes_of_the_registered_one():
    assert llama1_config(4096, 32, 32) == config_of("llama-7b")


def test_the_papers_mixture_adds_up():
    assert sum(share for share, _, _ in load("llama_papers")["mixture"].values()) == pytest.approx(
        100
    )


def test_training_takes_6_operations_and_16_bytes_a_parameter():
    assert training_flops(7e9, 1e12) == 4.2e22
    assert sum(training_bytes(1000).values()) == 16_000


def test_adamw_holds_the_two_averages_that_are_predicted(tiny):
    tiny(torch.ones(1, 3, dtype=torch.long)).logits.sum().backward()
    optimizer = torch.optim.AdamW(tiny.parameters())
    optimizer.step()
    held = sum(
        t.nbytes for state in optimizer.state.values() for t in state.values() if t.dim() > 0
    )
    predicted = training_bytes(sum(p.numel() for p in tiny.parameters()))
    assert held == predicted["AdamW's mean"] + predicted["AdamW's variance"]


# --- bytes of new tensors -----------------------------------------------------------------------


def test_new_tensors_are_counted_while_they_are_held():
    before = torch.ones(500)
    with count_new_bytes() as counted:
        first = before + 1
        assert counted.held == 2000
        view = first.view(5, 100)[2]
        assert counted.held == 2000  # the same storage
        del first
        assert counted.held == 2000  # the view holds it
        del view
        assert counted.held == 0
        before.add_(1)
        assert (counted.held, counted.peak) == (0, 2000)


def test_what_autograd_keeps_is_counted_and_given_back():
    layer, x = nn.Linear(30, 20), torch.randn(10, 30)
    with count_new_bytes() as counted:
        y = layer(x).relu().square().sum()  # keeps relu's output, and y itself
        assert counted.held == 10 * 20 * 4 + 4
        y.backward()
        del y
        assert counted.held == sum(p.grad.nbytes for p in layer.parameters())


def test_checkpointing_keeps_the_inputs_of_its_blocks():
    from torch.utils.checkpoint import checkpoint

    blocks = [nn.Sequential(nn.Linear(16, 64), nn.GELU(), nn.Linear(64, 16)) for _ in range(4)]
    held = {}
    for name in ("all", "inputs"):
        x = torch.randn(8, 16, requires_grad=True)
        with count_new_bytes() as counted:
            for block in blocks:
                x = block(x) if name == "all" else checkpoint(block, x, use_reentrant=False)
            held[name] = counted.held
    assert held["inputs"] == 4 * 8 * 16 * 4  # what each block hands to the next, the last included
    assert held["all"] > 8 * held["inputs"]


def test_repeated_work_gives_the_mean_of_its_calls():
    calls = []
    phases = repeated(lambda: (calls.append(1), time.sleep(0.002)), 5)()
    assert len(calls) == 5
    assert 0.002 <= phases["call"] < 0.1


def test_our_own_model_is_timed_like_hugging_faces(tiny):
    from llama_int8.transformer.llama import Llama

    ours = Llama(course_config(tiny.config)).eval()
    phases = prefill_and_decode(ours, torch.ones(1, 5, dtype=torch.long), 3)
    assert set(phases) == {"prefill", "decode"} and min(phases.values()) > 0


def test_an_order_of_speeds_is_claimed_only_where_the_brackets_lie_apart():
    apart = {
        "fp32": Spread(4.6, 4.5, 5.0, 5),
        "bf16": Spread(10.0, 9.0, 10.2, 5),
        "int8": Spread(3.0, 2.9, 3.8, 5),
    }
    assert fastest(apart) == "bf16"
    said = int8_against_others(apart)
    assert said == "int8 is slower than fp32 here; int8 is slower than bf16 here"
    # The second best lies apart from the best, and still a wide third one reaches it.
    wide = apart | {"int8": Spread(4.0, 2.0, 9.5, 5)}
    assert fastest(wide) == "cannot tell"
    assert int8_against_others(wide).count("cannot be told") == 2
    swift = apart | {"int8": Spread(20.0, 19.0, 21.0, 5)}
    assert fastest(swift) == "int8" and int8_against_others(swift).count("faster") == 2


@pytest.mark.parametrize(
    ("int8", "change", "said"),
    [
        (
            Spread(3.0, 2.9, 3.8, 5),
            (2.4, 1.7, 3.3),
            ("perplexity +2.4 % over fp32", "30 % of its speed"),
        ),
        (
            Spread(4.0, 2.0, 9.5, 5),
            (0.1, -0.2, 0.3),
            ("no clear change", "no clear difference in speed"),
        ),
    ],
)
def test_the_title_of_the_triangle_claims_no_difference_that_may_be_chance(int8, change, said):
    memory_of = {"fp32": 4.0, "bf16": 2.0, "int8": 1.0}
    quality = dict.fromkeys(("fp32", "bf16"), (0.0, 0.0, 0.0)) | {"int8": change}
    decode = dict.fromkeys(("fp32", "bf16"), Spread(10.0, 9.0, 10.2, 5)) | {"int8": int8}
    title = triangle(memory_of, quality, decode).get_suptitle()
    assert all(part in title for part in ("50 % of bf16's memory", *said)), title
