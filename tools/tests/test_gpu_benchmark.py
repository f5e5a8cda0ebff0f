"""The GPU benchmark with the CPU as its device: same code, another argument."""

import json
import os
import subprocess
import sys
import time
import weakref

import numpy as np
import pytest
import torch
from tiny_llama import in_int8, tiny_llama
from torch import nn
from torch._dynamo.exc import BackendCompilerFailed

import benchmark_gpu
from llama_int8 import models
from llama_int8.evaluation import experiment
from llama_int8.evaluation.compare import Point
from llama_int8.lessons.n10 import gpu
from llama_int8.measure import latency
from llama_int8.measure.results import Results
from llama_int8.models import grouped_heads
from llama_int8.models.cost import forward_bytes, weight_bytes
from llama_int8.models.synthetic import random_tensor
from llama_int8.profiles import Settings
from llama_int8.quantization.gpu.llama import GraphLlama

PATHS = ("bf16", "LLM.int8()", "LLM.int8(), threshold 0")
NO_COMPILER = "no compiler is here"
GRAPHS = ("bf16, one graph", "int8-fast, one graph")
SIZES = gpu.Sizes(prompt=16, points=(Point(1, 8), Point(2, 4)), steps=2, rounds=3, megabytes=1)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A model with grouped heads, as a user has it."""
    path = tmp_path_factory.mktemp("gpu") / "tiny"
    tiny_llama(hidden_size=48, intermediate_size=96, max_position_embeddings=256).save_pretrained(
        path
    )
    return str(path)


def new_results(folder, out, sizes=SIZES):
    settings = Settings(vars(sizes), model=folder, profile="benchmark", device="cpu")
    results = Results("gpu", settings, str(out))
    results.use_model(folder)
    return results


def run(folder, out, seconds=600.0, sizes=SIZES):
    """Race the model; what was said, and whether it came to its end."""
    results, said = new_results(folder, out, sizes), []
    kept = results.resume()
    work = gpu.Race(folder, "cpu", sizes, results)
    ended = work.run(time.monotonic() + seconds, said.append)
    return results.measurements, said, ended, kept


def cannot_compile(_):
    raise BackendCompilerFailed(lambda: None, RuntimeError(NO_COMPILER), None)


@pytest.fixture(scope="module")
def measured(folder, tmp_path_factory):
    out = tmp_path_factory.mktemp("out")
    return out, run(folder, out)


def test_every_case_has_a_speed_of_each_path_and_a_ratio_within_its_rounds(measured):
    found, _, ended, _ = measured[1]
    assert ended
    for case in ("decode.1x8", "decode.2x4", "prefill.1x16"):
        for path in (*PATHS, *GRAPHS):
            entry = found[f"{case}.{path}"]
            assert entry["unit"] == "tokens/s" and entry["n"] == SIZES.rounds
            assert 0 < entry["low"] <= entry["value"] <= entry["high"]
        for path in (*PATHS[1:], *GRAPHS):
            assert found[f"ratio.{case}.{path}"]["n"] == SIZES.rounds
        assert found[f"over the control.{case}"]["n"] == SIZES.rounds
        assert f"ratio.{case}.bf16" not in found


def test_the_compilers_fused_kernels_are_compared_or_the_reason_is_kept(
    measured, folder, tmp_path, monkeypatch
):
    found = measured[1][0]
    for path in GRAPHS:
        assert found[f"fused.decode.1x8.{path}"]["n"] == SIZES.rounds
    monkeypatch.setattr(GraphLlama, "compiled", cannot_compile)
    found, said, ended, _ = run(folder, tmp_path)
    assert ended and f"left out, torch.compile: {NO_COMPILER}" in "\n".join(said)
    left = found["left out.torch.compile, decode 1 x 8.bf16, one graph"]["value"]
    assert left == f"torch.compile: {NO_COMPILER}"
    assert not any(name.startswith("fused.") for name in found)


def test_weights_are_the_bytes_that_the_shapes_predict(measured, folder):
    config = models.config_of(folder)
    for path, precision in (("bf16", "bf16"), (gpu.LLM_INT8, "int8")):
        expected = weight_bytes(config, precision).total
        assert measured[1][0][f"weights.{path}"]["value"] == expected


def test_the_shares_of_a_step_add_up_and_its_operations_are_counted(measured):
    found = measured[1][0]
    for path in PATHS:
        shares = [
            m["value"]
            for n, m in found.items()
            if n.startswith("share.") and n.endswith(f".{path}")
        ]
        assert sum(shares) == pytest.approx(100, abs=1e-3)
    operations = [found[f"operations per token.{path}"]["value"] for path in PATHS]
    assert operations[1] > operations[2] > operations[0] > 0  # the decomposition costs operations


def test_codes_scales_and_columns_are_those_of_bitsandbytes(measured, folder):
    found, config = measured[1][0], models.config_of(folder)
    linear = sum(out * in_ for out, in_ in config.linear_shapes().values())
    assert found["codes.weights.differing"]["n"] == 3 * linear  # three blocks of three
    assert found["codes.weights.differing"]["value"] == 0
    assert found["codes.activations.differing"]["value"] == 0
    assert found["codes.columns.differing"] == {
        "value": 0,
        "unit": "count",
        "kind": "exact",
        "n": found["codes.columns.differing"]["n"],
    }
    assert found["codes.columns.differing"]["n"] >= 6 * 21  # six planted in each of 21 layers
    assert found["codes.furthest"]["value"] == 0 and found["codes.scales"]["value"] == 0


def test_a_code_a_scale_and_a_column_that_differ_are_counted():
    torch.manual_seed(0)
    model = tiny_llama()
    weight = model.model.layers[0].self_attn.q_proj.weight.detach().bfloat16().clone()
    layer = in_int8(model).model.layers[0].self_attn.q_proj
    counts = gpu.Counts()
    counts.add_weight(layer, weight)
    assert (counts.weights, counts.other_weights, counts.scale) == (weight.numel(), 0, 0)
    layer.weight.CB[2, 3] += 5
    layer.weight.SCB[4] *= 1.5
    counts.add_weight(layer, weight)
    assert counts.other_weights == 1 and counts.furthest == 5
    assert counts.scale == pytest.approx(0.5)


def test_what_bitsandbytes_does_not_find_is_counted_as_another_column(monkeypatch):
    import bitsandbytes.functional

    real = bitsandbytes.functional.int8_vectorwise_quant

    def forgetful(x, threshold):
        codes, absmax, columns = real(x, threshold)
        return codes, absmax, columns[1:]

    monkeypatch.setattr(bitsandbytes.functional, "int8_vectorwise_quant", forgetful)
    counts = gpu.Counts()
    counts.add_activations(gpu.with_outliers(96, "cpu"))
    assert counts.columns >= 6 and counts.other_columns == 1


def test_a_steps_share_of_the_bandwidth_counts_weights_and_cache(measured, folder):
    found, config = measured[1][0], models.config_of(folder)
    for path, precision in (("bf16, one graph", "bf16"), (gpu.INT8_GRAPH, "int8-fast")):
        speed = found[f"decode.1x8.{path}"]["value"] * forward_bytes(config, precision, 1, 8)
        share = found[f"share of bandwidth.decode.1x8.{path}"]["value"]
        assert share == pytest.approx(100 * speed / (1e9 * found["bandwidth"]["value"]), rel=1e-3)


def test_graph_paths_read_the_same_tokens_as_hugging_faces(folder):
    """The likeliest tokens after the prompt, one step after the other, by both ways."""
    model = models.load_model(folder, "fp32", "cpu")
    graph, point, read = GraphLlama(model, 1), Point(1, 5), []
    step = graph.step
    graph.step = lambda tokens: (read.append(tokens.clone()), step(tokens))[1]
    seconds = gpu.decoder(graph, point, 3)
    assert seconds() > 0 and seconds() > 0 and graph.position == 8
    assert torch.equal(torch.stack(read[:3]), torch.stack(read[3:]))
    expected = experiment.tokens_of((), model, point)
    with torch.inference_mode():
        for tokens in read[:3]:
            if len(expected[0]) > point.tokens:
                assert torch.equal(model(expected).logits[:, -1].argmax(-1), tokens)
            expected = torch.cat([expected, tokens[:, None]], 1)


def test_where_int8_fast_cannot_run_it_is_left_out_with_the_reason(folder, tmp_path, monkeypatch):
    monkeypatch.setattr(gpu, "_without_int8_fast", lambda _: "int8-fast needs Triton")
    found, said, ended, _ = run(folder, tmp_path)
    assert ended and any("int8-fast needs Triton" in line for line in said)
    assert found["left out.int8-fast, one graph"]["value"] == "int8-fast needs Triton"
    assert "decode.1x8.bf16, one graph" in found and f"decode.1x8.{gpu.INT8_GRAPH}" not in found


def full_where(monkeypatch, full):
    """On this card no layer of a model can be merged for which `full` holds."""

    class Full(GraphLlama):
        def __init__(self, model, *more):
            if full(model):
                raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 172 MiB\nGPU 0")
            super().__init__(model, *more)

    monkeypatch.setattr(gpu, "GraphLlama", Full)


def test_without_room_to_merge_16_bit_layers_the_plain_path_and_int8_are_measured(
    folder, tmp_path, monkeypatch
):
    full_where(monkeypatch, lambda model: isinstance(model.lm_head, nn.Linear))
    found, said, ended, _ = run(folder, tmp_path)
    left_out = "no room to merge its layers: CUDA out of memory. Tried to allocate 172 MiB"
    assert ended and found[f"left out.{GRAPHS[0]}"]["value"] == left_out
    assert any(line.endswith(f"{GRAPHS[0]}: left out, {left_out}") for line in said)
    for path in (*PATHS, gpu.INT8_GRAPH):
        assert f"decode.1x8.{path}" in found and f"prefill.1x16.{path}" in found
    assert f"decode.1x8.{GRAPHS[0]}" not in found


def test_without_room_to_merge_int8_layers_the_other_paths_are_measured(
    folder, tmp_path, monkeypatch
):
    full_where(monkeypatch, lambda _: True)
    in_turn(folder, monkeypatch)
    found, _, ended, _ = run(folder, tmp_path)
    assert ended and "CUDA out of memory" in found[f"left out.{gpu.INT8_GRAPH}"]["value"]
    for path in PATHS:
        assert f"decode.1x8.{path}" in found
    assert not any(f"decode.1x8.{path}" in found for path in GRAPHS)


def test_where_all_models_fit_and_their_caches_do_not_each_path_has_its_turn(
    folder, tmp_path, monkeypatch
):
    """A path's cache is gone before the next one's comes."""
    monkeypatch.setattr(models, "free_memory", lambda _: 10**9)
    monkeypatch.setattr(experiment, "beside_weights", lambda *_: 4 * 10**8)  # each by itself fits
    caches, graphs = [], set()
    fill, decoder = latency.prefill, gpu.decoder

    def prefill(*given):
        cache = fill(*given)
        caches.append(weakref.ref(cache))
        return cache

    def decoding(model, point, steps):
        assert not any(cache() is not None for cache in caches)
        graphs.update([model] if isinstance(model, GraphLlama) else [])
        assert all(graph.batch == 1 for graph in graphs)
        return decoder(model, point, steps)

    monkeypatch.setattr(latency, "prefill", prefill)
    monkeypatch.setattr(gpu, "decoder", decoding)
    found, _, ended, _ = run(folder, tmp_path)
    assert ended and found["interleaved"]["value"] == "yes"
    assert len(graphs) == 4  # two, and each of them fused
    for path in (*PATHS[1:], *GRAPHS):
        ratio = found[f"ratio.decode.2x4.{path}"]
        assert "unpaired" in ratio["note"] and "low" not in ratio


def test_caches_are_given_back_also_where_memory_ends(folder, tmp_path, monkeypatch):
    interleaved, peaks, made = latency.interleaved, gpu.Race._peaks, GraphLlama.__init__
    graphs, held = [], []

    def making(self, *given):
        made(self, *given)
        graphs.append(self)

    def ending(runs, rounds):
        times = interleaved(runs, rounds)
        if any(graph.batch == 2 for graph in graphs):
            raise torch.OutOfMemoryError("CUDA out of memory")
        return times

    def later(self, paths):
        held.extend((graph.batch, graph.context) for graph in graphs)
        peaks(self, paths)

    monkeypatch.setattr(GraphLlama, "__init__", making)
    monkeypatch.setattr(latency, "interleaved", ending)
    monkeypatch.setattr(gpu.Race, "_peaks", later)
    _, said, ended, _ = run(folder, tmp_path)
    assert ended and any("decode 2 x 4: left out, out of memory" in line for line in said)
    assert held == [(1, 128)] * 2


def test_a_second_run_keeps_everything_and_measures_nothing(measured, folder, monkeypatch):
    out, (found, *_) = measured
    monkeypatch.setattr(latency, "interleaved", lambda *_: pytest.fail("measured again"))
    again, _, ended, kept = run(folder, out)
    assert ended and kept == len(found) and again == found


def test_other_settings_begin_a_new_file(measured, folder, tmp_path):
    old = new_results(folder, tmp_path)
    old.record("decode.1x8.bf16", 1.0, "tokens/s")
    assert new_results(folder, tmp_path).resume() == 1
    assert new_results(folder, tmp_path, gpu.Sizes(rounds=2)).resume() == 0
    old.path.write_text("{")
    assert new_results(folder, tmp_path).resume() == 0


def test_when_the_time_is_used_up_it_says_what_is_left_and_the_next_run_goes_on(
    folder, tmp_path, monkeypatch
):
    _, said, ended, _ = run(folder, tmp_path, seconds=-1)
    assert not ended and "used up before decode 1 x 8, prefill 1 x 16" in said[-1]
    real, start = gpu.Race._prefill, time.monotonic()

    def slow(self, paths):
        real(self, paths)
        monkeypatch.setattr(gpu.time, "monotonic", lambda: start + 1e6)

    monkeypatch.setattr(gpu.Race, "_prefill", slow)
    found, said, ended, _ = run(folder, tmp_path)
    assert not ended and "used up before profile" in said[-1] and "decode.1x8.bf16" in found
    monkeypatch.undo()
    first = found["decode.1x8.bf16"]
    found, _, ended, _ = run(folder, tmp_path)
    assert ended and found["decode.1x8.bf16"] == first and "decode.2x4.bf16" in found


def in_turn(folder, monkeypatch):
    """A card that holds one precision, not three."""
    config = models.config_of(folder)
    needed = sum(weight_bytes(config, p).total for p in ("bf16", "int8", "int8-fast"))
    monkeypatch.setattr(models, "free_memory", lambda _: needed)  # not a tenth more
    monkeypatch.setattr(experiment, "fits", lambda *_: True)


def test_what_does_not_fit_together_is_measured_in_turn_with_a_plain_quotient(
    folder, tmp_path, monkeypatch
):
    in_turn(folder, monkeypatch)
    held = []
    real = gpu.Race._decode
    monkeypatch.setattr(
        gpu.Race, "_decode", lambda self, *a: (held.append(set(self.held)), real(self, *a))
    )
    found, said, ended, _ = run(folder, tmp_path)
    assert ended and found["interleaved"]["value"] == "no" and "do not fit together" in said[0]
    assert (
        all(
            one in ({"bf16", GRAPHS[0]}, {gpu.INT8_GRAPH}, {gpu.LLM_INT8, gpu.LLM_INT8_AT_0})
            for one in held
        )
        and len(held) == 6
    )
    control = found["over the control.decode.1x8"]
    fast, half_graph = (
        found[f"decode.1x8.{path}"]["value"] for path in (gpu.INT8_GRAPH, GRAPHS[0])
    )
    assert control["value"] == pytest.approx(fast / half_graph, rel=1e-5)
    ratio, half, int8 = (
        found[n]
        for n in ("ratio.decode.1x8.LLM.int8()", "decode.1x8.bf16", "decode.1x8.LLM.int8()")
    )
    assert ratio["value"] == pytest.approx(int8["value"] / half["value"], rel=1e-5)
    assert "low" not in ratio and "unpaired" in ratio["note"]
    assert "ratio.decode.1x8.LLM.int8(), threshold 0" in found


def test_where_memory_ends_the_point_is_named_and_the_rest_goes_on(folder, tmp_path, monkeypatch):
    def fits(_config, _precision, _device, point):
        return point[0] == 1

    monkeypatch.setattr(experiment, "fits", fits)
    found, said, ended, _ = run(folder, tmp_path)
    assert ended and any("decode 2 x 4: left out, out of memory" in line for line in said)
    assert "2 x 6 tokens do not fit" in found["left out.decode 2 x 4.bf16"]["value"]
    assert "decode.2x4.bf16" not in found and "peak.1x16.bf16" in found
    monkeypatch.undo()  # a later run with more memory measures it
    assert "decode.2x4.bf16" in run(folder, tmp_path)[0]


def test_a_model_that_does_not_fit_at_all_is_named(folder, tmp_path, monkeypatch):
    def full(*_args, **_more):
        raise models.NotEnoughMemoryError("needs 13.8 GiB; 3.0 GiB are free")

    monkeypatch.setattr(models, "load_model", full)
    found, said, _, _ = run(folder, tmp_path)
    assert "needs 13.8 GiB" in said[-1] and "13.8" in found["left out.bf16"]["value"]


def test_decoding_starts_at_the_same_length_each_time_and_reads_its_own_tokens():
    model, lengths, read = tiny_llama(max_position_embeddings=64), [], []
    real = model.forward

    def forward(tokens, past_key_values=None, **more):
        lengths.append(past_key_values.get_seq_length())
        read.append(tokens.clone())
        return real(tokens, past_key_values=past_key_values, **more)

    model.forward = forward
    seconds = gpu.decoder(model, Point(2, 5), 3)
    with torch.inference_mode():
        assert seconds() > 0 and seconds() > 0
    assert lengths == [0, 5, 6, 7, 5, 6, 7]
    prompt = read[0]
    expected = prompt
    model.forward = real
    with torch.inference_mode():
        # The first token read is the prompt's last one once more, then the likeliest ones.
        expected = torch.cat([prompt, prompt[:, -1:]], 1)
        for step in range(1, 3):
            likeliest = model(expected).logits[:, -1:].argmax(-1)
            assert torch.equal(likeliest, read[1 + step])
            expected = torch.cat([expected, likeliest], 1)


def test_no_length_goes_beyond_a_models_context():
    sizes = gpu.Sizes(prompt=512, points=((1, 128), (1, 1024), (1, 2048), (8, 128)), steps=16)
    assert sizes.within(4096) == sizes
    cut = sizes.within(256)
    assert cut.prompt == 256 and cut.points == ((1, 128), (1, 240), (8, 128))


def test_random_weights_are_the_same_whichever_way_they_are_drawn():
    one = random_tensor("a.weight", (3, 5), torch.float32)
    assert torch.equal(one, random_tensor("a.weight", (3, 5), torch.float32, "cpu"))
    assert not torch.equal(one, random_tensor("b.weight", (3, 5), torch.float32))


class TestGroupedHeads:
    """Below compute capability 8.0 transformers must not ask for `enable_gqa`."""

    @pytest.fixture
    def asked(self, monkeypatch):
        """Whether PyTorch's attention was asked for it, in each call."""
        from transformers.integrations import sdpa_attention

        monkeypatch.setattr(sdpa_attention, "use_gqa_in_sdpa", sdpa_attention.use_gqa_in_sdpa)
        seen, real = [], torch.nn.functional.scaled_dot_product_attention

        def attention(*args, enable_gqa=False, **more):
            seen.append(enable_gqa)
            return real(*args, enable_gqa=enable_gqa, **more)

        monkeypatch.setattr(torch.nn.functional, "scaled_dot_product_attention", attention)
        return seen

    def logits(self):
        with torch.inference_mode():
            return tiny_llama()(torch.arange(12)[None]).logits.numpy()

    def test_a_t4_gets_expanded_heads_and_the_same_logits(self, asked, monkeypatch):
        before = self.logits()
        assert asked and all(asked)  # else nothing had to be avoided
        asked.clear()
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: (7, 5))
        assert grouped_heads.expand_grouped_heads("cuda")
        np.testing.assert_allclose(self.logits(), before, rtol=1e-5, atol=1e-6)
        assert asked and not any(asked)

    @pytest.mark.parametrize("device, capability", [("cpu", (7, 5)), ("cuda", (8, 0))])
    def test_elsewhere_nothing_changes(self, asked, monkeypatch, device, capability):
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: capability)
        assert not grouped_heads.expand_grouped_heads(device)
        self.logits()
        assert all(asked)


@pytest.mark.parametrize("script", ["benchmark_gpu", "rehearse_t4"])
@pytest.mark.parametrize("given", [{}, {"PYTORCH_CUDA_ALLOC_CONF": "backend:native"}])
def test_freed_pieces_of_the_card_join_again_as_set_before_torch_is_there(script, given):
    code = (
        f"import os, sys, {script}\n"
        "def parse(_):\n"
        "    print('torch' in sys.modules, os.environ.get('PYTORCH_ALLOC_CONF'))\n"
        "    raise SystemExit\n"
        f"{script}.parse = parse\n"
        f"{script}.main([])"
    )
    names = ("PYTORCH_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF")
    plain = {name: value for name, value in os.environ.items() if name not in names}
    plain["PYTHONPATH"] = str(benchmark_gpu.TOOLS)
    done = subprocess.run(
        [sys.executable, "-c", code], env=plain | given, capture_output=True, text=True, check=True
    )
    wanted = None if given else "expandable_segments:True"
    assert done.stdout == f"False {wanted}\n"


class TestCommand:
    def test_runs_from_end_to_end_on_a_cpu(self, folder, tmp_path, capsys):
        options = ["--device", "cpu", "--models", folder, "--quick", "--rounds", "2"]
        assert benchmark_gpu.main([*options, "--out", str(tmp_path)]) == 0
        shown = capsys.readouterr().out
        (path,) = tmp_path.glob("results/*/gpu@*.json")
        content = json.loads(path.read_text())
        assert content["notebook"] == "gpu" and "decode.1x8.bf16" in content["measurements"]
        assert str(path) in shown and "LLM.int8(), threshold 0" in shown

    @pytest.mark.parametrize(
        "arguments, says",
        [
            ([], "sees no GPU; --device cpu"),
            (["--device", "cuda"], "sees no GPU"),
            (["--device", "cpu", "--models", "8b"], "'8b' is neither"),
            (["--device", "cpu", "--rounds", "0", "--quick"], "rounds is 0"),
            (["--device", "cpu", "--gguf", "no-such-file"], "no such file"),
        ],
    )
    def test_what_cannot_work_is_said_in_a_line(self, folder, tmp_path, capsys, arguments, says):
        if torch.cuda.is_available():
            pytest.skip("says what a machine without a GPU says")
        arguments = arguments if "--models" in arguments else [*arguments, "--models", folder]
        assert benchmark_gpu.main([*arguments, "--out", str(tmp_path)]) == 1
        said = capsys.readouterr().err
        assert says in said and "Traceback" not in said

    def test_a_file_in_parts_is_put_together_and_verified(self, tmp_path, monkeypatch, capsys):
        from llama_int8.models import embedded

        monkeypatch.setenv("LLAMA_INT8_CACHE", str(tmp_path / "cache"))
        parts = [tmp_path / "one", tmp_path / "two"]
        for part, text in zip(parts, (b"GG", b"UF"), strict=True):
            part.write_bytes(text)
        options = ["--device", "cpu", "--models", "embedded", "--gguf", *map(str, parts)]
        assert benchmark_gpu.main(options) == 1
        assert "has SHA-256" in capsys.readouterr().err
        whole = []
        monkeypatch.setattr(
            embedded, "verify_sha256", lambda path, _: whole.append(path.read_bytes())
        )
        monkeypatch.setattr(embedded, "gguf_to_safetensors", lambda _, folder: None)
        benchmark_gpu.unpack(parts)
        assert whole == [b"GGUF"] and embedded.embedded_place().is_dir()
