"""What runs on a GPU, run there: `python3 tools/course.py test --gpu`, in a few minutes, without a hub.

Most tests take a device. With "cuda" they are marked `gpu`; with "cpu" the same lines run on every
machine, so that a machine with a GPU meets no code for the first time.
"""

import importlib.util
import os
import subprocess
import sys
import time

import pytest
import torch
from byte_tokenizer import byte_tokenizer
from tiny_llama import tiny_llama
from torch import nn

import course
import generate_text
import llama_int8.models as models
from llama_int8 import data
from llama_int8.errors import NotEnoughMemoryError, PrecisionError
from llama_int8.evaluation import perplexity
from llama_int8.evaluation.compare import Point
from llama_int8.evaluation.evaluate import Evaluation
from llama_int8.lessons.n10 import gpu
from llama_int8.measure import latency, memory, profiler
from llama_int8.measure.results import Results
from llama_int8.models.cost import weight_bytes
from llama_int8.models.embedded import embedded_place
from llama_int8.profiles import Settings
from llama_int8.quantization.gpu import products
from llama_int8.quantization.gpu.linear import GpuInt8Linear
from llama_int8.quantization.gpu.llama import BUCKET, GraphLlama, captured

on_a_gpu = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="PyTorch sees no GPU"),
]
DEVICES = ["cpu", pytest.param("cuda", marks=on_a_gpu)]
SHAPES = {
    "vocab_size": 288,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "max_position_embeddings": 2048,
    "initializer_range": 0.1,
}
SIZES = gpu.Sizes(prompt=32, points=(Point(1, 8), Point(2, 4)), steps=2, rounds=3, megabytes=16)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A model with grouped heads and a tokenizer, as a user has it."""
    path = tmp_path_factory.mktemp("gpu") / "tiny"
    tiny_llama(**SHAPES).half().save_pretrained(path)
    byte_tokenizer().save_pretrained(path)
    return path


@pytest.fixture(params=DEVICES)
def device(request):
    return request.param


def precisions(device):
    return models.baseline_precision(device), "int8", "int8-fast"


def ids(device, count=BUCKET + 3):
    generator = torch.Generator().manual_seed(0)
    return torch.randint(288, (1, count), generator=generator).to(device)


def logits(model, tokens):
    with torch.inference_mode():
        return model(tokens).logits.float()


# --- loading, measuring, evaluating ------------------------------------------------------------


def test_every_precision_loads_to_its_device_with_the_predicted_bytes(folder, device):
    for precision in precisions(device):
        model = gpu.loaded(str(folder), precision, device)
        assert model.device.type == device
        assert (
            memory.weight_memory(model) == weight_bytes(models.config_of(folder), precision).total
        )
        assert logits(model, ids(device)).isfinite().all()


def test_a_prediction_of_memory_refuses_before_the_card_does(folder, device, monkeypatch):
    monkeypatch.setattr(models.load, "free_memory", lambda _: 1000)
    with pytest.raises(NotEnoughMemoryError, match=f"are free on {device}"):
        models.load_model(folder, models.baseline_precision(device), device)


@pytest.mark.slow
def test_the_benchmark_measures_every_path_and_finds_bitsandbytes_codes(folder, device, tmp_path):
    settings = Settings(vars(SIZES), model=str(folder), profile="benchmark", device=device)
    results = Results("gpu", settings, str(tmp_path))
    results.use_model(str(folder))
    said = []
    race = gpu.Race(str(folder), device, SIZES, results)
    assert race.run(time.monotonic() + 600, said.append), said
    found = results.measurements
    paths = (race.half, race.half_graph, gpu.INT8_GRAPH, gpu.LLM_INT8, gpu.LLM_INT8_AT_0)
    for case in ("decode.1x8", "decode.2x4", "prefill.1x32"):
        for path in paths:
            assert found[f"{case}.{path}"]["value"] > 0, said
    # On a GPU bitsandbytes divides by an approximation, so that ties can round the other way.
    steps, share = (0, 0) if device == "cpu" else (1, 1e-3)
    assert found["codes.furthest"]["value"] <= steps
    for kind in ("weights", "activations"):
        codes = found[f"codes.{kind}.differing"]
        assert codes["value"] <= share * codes["n"], codes
    assert found["codes.columns.differing"]["value"] == 0
    assert found["bandwidth"]["value"] > 0
    assert f"share of bandwidth.decode.1x8.{gpu.INT8_GRAPH}" in found


def test_roofs_peaks_and_shares_can_be_measured(folder, device):
    half = models.baseline_precision(device)
    model, tokens = gpu.loaded(str(folder), half, device), ids(device)
    assert latency.read_bandwidth(device, megabytes=16, repeats=2) > 1e8
    assert latency.matrix_throughput(device, half) > 1e8
    taken = latency.prefill_and_decode(model, tokens, 2)
    assert min(taken.values()) > 0
    peak = memory.peak_bytes(lambda: latency.prefill(model, tokens), device)["peak"]
    assert peak > tokens.numel() * 64 * 2  # at least the states of one layer
    kinds = profiler.profile(gpu.one_step(model, Point(1, 8)), device, calls=2)
    assert sum(kind["operations"] for kind in kinds.values()) > 50
    assert (sum(kind["launches"] for kind in kinds.values()) > 50) == (device != "cpu")


def test_a_task_is_scored_and_a_prompt_answered_in_every_precision(folder, device, tmp_path):
    half, *_ = precisions(device)
    chosen = [half, "int8-fast"]
    results = Evaluation(str(folder), chosen, device, tmp_path, limit=2).run("everyday-physics")
    for precision in chosen:
        assert f"acc.{precision}" in results.measurements
    answers = generate_text.side_by_side(str(folder), "Why?", chosen, device, 5)
    assert [answer.precision for answer in answers] == chosen
    assert all(1 <= len(answer.tokens) <= 5 for answer in answers)


@pytest.mark.slow
@pytest.mark.skipif(not embedded_place().is_dir(), reason="the embedded model is not here")
def test_int8_fast_keeps_the_embedded_models_quality_within_half_a_percent(device):
    tokenizer = models.load_tokenizer(models.DEFAULT_MODEL)
    text = perplexity.strided(tokenizer, data.evaluation_text(), 512, 256, 8)
    scores = {}
    for precision in (models.baseline_precision(device), "int8-fast"):
        model = gpu.loaded(models.DEFAULT_MODEL, precision, device)
        windows = perplexity.window_scores(model, text)
        scores[precision] = sum(one["nll"] for one in windows) / len(windows)
        del model
    half, int8 = scores.values()
    print(f"nats per token: {half:.4f} in 16 bit, {int8:.4f} in int8-fast")
    assert abs(int8 - half) < 0.005  # nats: 0.5 % of perplexity


# --- the captured step -------------------------------------------------------------------------


def test_steps_give_hugging_faces_logits_over_two_graphs(folder, device):
    tokens = ids(device)
    for precision in (models.baseline_precision(device), "int8-fast"):
        model = gpu.loaded(str(folder), precision, device)
        wanted = logits(model, tokens)[0]
        fast = GraphLlama(model, tokens.shape[1])
        found = torch.cat([fast.step(tokens[:, t]) for t in range(tokens.shape[1])])
        assert list(fast._steps) == [BUCKET, 2 * BUCKET]
        off = (found - wanted).abs().max() / wanted.abs().max()
        assert off < 0.03, precision  # 16-bit rounding in another order
        assert (found.argmax(-1) == wanted.argmax(-1)).float().mean() > 0.9


def test_a_captured_step_is_the_function_that_was_captured(folder, device):
    model = gpu.loaded(str(folder), "int8-fast", device)
    fast, tokens = GraphLlama(model, 40), ids(device, 20)
    fast.forward(tokens[:, :10])
    for t in range(10, 20):
        found = fast.step(tokens[:, t])
        with torch.inference_mode():
            direct = fast._step(BUCKET).float()  # the same token at the same place once more
        assert torch.equal(found, direct)


def test_generation_by_the_graph_is_hugging_faces(folder, device):
    model = gpu.loaded(str(folder), "int8-fast", device)
    prompt = ids(device, 12)
    fast = GraphLlama(model, 64)
    generated = fast.generate(prompt, 16)
    again = fast.generate(prompt, 16)  # the graph and the cache serve a second text
    assert torch.equal(generated, again)
    wanted = logits(model, torch.cat([prompt, generated], 1))[0, 11:-1]
    likely = wanted.gather(1, generated[0][:, None])[:, 0]
    assert (wanted.amax(-1) - likely < 0.03 * wanted.abs().max()).all()  # a tie at most


# --- only where there is a card ----------------------------------------------------------------


def on_card(function):
    for mark in on_a_gpu:
        function = mark(function)
    return function


@on_card
def test_the_kernel_on_this_card_is_the_float64_product_up_to_rounding(tmp_path):
    (place,) = importlib.util.find_spec("llama_int8.quantization.gpu").submodule_search_locations
    done = subprocess.run(
        [sys.executable, os.path.join(place, "kernels.py"), "check"],
        env=os.environ | {"TRITON_INTERPRET": "0", "TRITON_CACHE_DIR": str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    print(done.stdout)


@on_card
@pytest.mark.parametrize("group", [32, None])
def test_the_kernel_reads_weights_at_most_of_the_cards_bandwidth(group):
    from llama_int8.quantization.gpu.kernels import int8_product

    bandwidth = latency.read_bandwidth("cuda")
    for outputs, inputs in ((12288, 4096), (4096, 11008), (32000, 4096)):
        linear = nn.Linear(inputs, outputs, bias=False, device="cuda", dtype=torch.float16)
        layer = GpuInt8Linear.from_linear(linear, group)
        bytes_ = layer.weight.nbytes + layer.scale.nbytes
        copies = [layer.weight.clone() for _ in range(max(2, 2**28 // bytes_))]  # beyond the caches
        x = torch.randn(1, inputs, device="cuda", dtype=torch.float16)

        def read(x=x, copies=copies, layer=layer):
            for codes in copies:
                int8_product(x, codes, layer.scale, None, layer.group)

        replay = captured(read, x.device)  # else Python's own launches would be timed
        seconds = min(gpu.timed(replay, x.device) for _ in range(5)) / len(copies)
        share = bytes_ / seconds / bandwidth
        print(f"{outputs} x {inputs}, group {group}: {share:.0%} of {bandwidth / 1e9:.0f} GB/s")
        # From an H100 on, a layer takes 10 to 15 microseconds: beginning and end weigh more.
        assert share > (0.4 if torch.cuda.get_device_capability() >= (9, 0) else 0.5)


@on_card
def test_both_ways_of_a_prompt_are_right_on_this_card_and_one_is_chosen():
    linear = nn.Linear(256, 512, device="cuda", dtype=torch.float16)
    x = torch.randn(64, 256, device="cuda", dtype=torch.float16)
    for prefill, limit in (("dequantize", 5e-3), ("int_mm", 2e-2)):
        layer = GpuInt8Linear.from_linear(linear, None, prefill)
        wanted = products.plain_product(x, layer.weight, layer.scale, layer.bias, None).float()
        assert (layer(x).float() - wanted).abs().max() < limit * wanted.abs().max()
    name = products.fastest_prefill(x, layer.weight, layer.scale, None)
    print(f"fastest for 64 tokens: {name}")
    assert name in products.PREFILLS


@on_card
def test_a_folder_saved_on_a_cpu_gives_the_same_codes_on_the_card(folder, tmp_path):
    saved = models.save_int8_fast(models.load_model(folder, "int8-fast", "cpu"), tmp_path / "int8")
    there = models.load_model(saved, "int8-fast", "cuda")
    here = models.load_model(saved, "int8-fast", "cpu")
    for name, layer in there.named_modules():
        if isinstance(layer, GpuInt8Linear):
            assert torch.equal(layer.weight.cpu(), here.get_submodule(name).codes())
    assert there.generate(ids("cuda", 8), max_new_tokens=4).shape[1] <= 12


@on_card
def test_what_int8_fast_cannot_do_on_a_gpu_is_said():
    with pytest.raises(PrecisionError, match="single device"):
        models.load_model(models.DEFAULT_MODEL, "int8-fast", "auto")


@on_card
def test_a_share_of_the_card_is_all_that_counts_as_free():
    total = torch.cuda.get_device_properties(0).total_memory
    torch.cuda.set_per_process_memory_fraction(0.25)
    try:
        assert models.free_memory("cuda") <= total / 4
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)


@pytest.mark.skipif(torch.cuda.is_available(), reason="says what a machine without a GPU says")
def test_without_a_card_the_command_says_what_to_do():
    with pytest.raises(course.CourseError, match=r"sees no GPU.*`test` runs the same tests"):
        course.test_gpu([])
