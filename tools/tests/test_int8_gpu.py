"""int8-fast for a GPU, as far as a machine without one can prove it.

The kernel runs in Triton's interpreter, and is compiled for cards that are not here: each in a
process of its own, because Triton reads its switch when a kernel is decorated. The layer, the model
and the loading run on a CPU, with the kernel's plain twin in its place.
"""

import importlib.util
import json
import os
import re
import subprocess
import sys
import weakref
from functools import cache

import pytest
import torch
from tiny_llama import tiny_llama
from torch import nn

import llama_int8.models as models
from generate_text import side_by_side
from llama_int8.data import published
from llama_int8.errors import PrecisionError
from llama_int8.lessons.n10 import figures, gpu, on_gpus
from llama_int8.models import int8_fast, load
from llama_int8.models.cost import forward_bytes, weight_bytes
from llama_int8.models.one_call import OneCallCache, generating_in_one_call
from llama_int8.quantization.cpu import linear as cpu_linear
from llama_int8.quantization.gpu import llama as gpu_llama
from llama_int8.quantization.gpu import products
from llama_int8.quantization.gpu.linear import GpuInt8Linear, replace_layers
from llama_int8.quantization.gpu.llama import BUCKET, GraphLlama
from llama_int8.transformer.config import read_config
from llama_int8.transformer.llama import Llama

needs_triton = pytest.mark.skipif(
    importlib.util.find_spec("triton") is None, reason="Triton is not installed"
)
SHAPES = {
    "vocab_size": 96,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "max_position_embeddings": 300,
}


def kernel_process(task, folder, **variables):
    """What the kernel's module prints for "check" or "compile", in a process of its own."""
    (place,) = importlib.util.find_spec("llama_int8.quantization.gpu").submodule_search_locations
    done = subprocess.run(
        [sys.executable, os.path.join(place, "kernels.py"), task],
        env=os.environ | {"TRITON_INTERPRET": "0", "TRITON_CACHE_DIR": str(folder)} | variables,
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


# --- the kernel --------------------------------------------------------------------------------


@needs_triton
@pytest.mark.slow
def test_the_kernel_interpreted_is_the_float64_product_up_to_rounding(tmp_path):
    """Odd shapes, one to eight tokens, groups and rows, three formats, zeros, huge values, NaN."""
    said = kernel_process("check", tmp_path, TRITON_INTERPRET="1", CUDA_VISIBLE_DEVICES="")
    compared, worst = re.search(r"([\d,]+) outputs .* worst ([\d.]+)", said).groups()
    assert int(compared.replace(",", "")) > 500 and 0 < float(worst) <= 1


@needs_triton
@pytest.mark.slow
def test_the_kernel_compiles_for_three_generations_with_wide_loads_and_without_a_spill(tmp_path):
    """At LLaMA-2's widths, 7B's and 70B's, for a T4, an A100 and an H100; read in PTX and cubin."""
    lines = kernel_process("compile", tmp_path).splitlines()
    assert len(lines) == 6 * 3 + 1  # and bf16 on a T4
    for line in lines:
        warps, registers = (int(re.search(rf"(\d+) {n}", line)[1]) for n in ("warps", "registers"))
        spilled, shared = (int(re.search(rf"(\d+) bytes {n}", line)[1]) for n in ("sp", "of sh"))
        loads, bits, enough = map(
            int, re.search(r"in (\d+) load\(s\) of (\d+) bits where (\d+) would do", line).groups()
        )
        assert spilled == 0 and bits == 128 and loads == enough, line
        assert warps * 32 * registers <= 65536, line  # a block fits
        assert shared <= (16384 if "28672 inputs, 8 " in line else 1024), line


# --- the products and the layer ----------------------------------------------------------------


@pytest.mark.parametrize("group", [32, 64, None])
@pytest.mark.parametrize("inputs", [16, 31, 100, 576])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_the_plain_twin_is_the_float64_product_up_to_rounding(group, inputs, dtype):
    torch.manual_seed(inputs)
    layer = GpuInt8Linear.from_linear(nn.Linear(inputs, 7), group)
    x = torch.randn(5, inputs).to(dtype)
    exact = x.double() @ layer.dequantized().double().T + layer.bias.double()
    torch.testing.assert_close(
        layer(x).double(), exact, rtol=float(torch.finfo(dtype).eps), atol=1e-5
    )


@pytest.mark.parametrize("inputs", [96, 100])
def test_codes_and_scales_are_those_of_int8_fast_on_a_cpu(inputs):
    linear = nn.Linear(inputs, 40)
    here, there = GpuInt8Linear.from_linear(linear), cpu_linear.Int8FastLinear.from_linear(linear)
    moved = GpuInt8Linear.from_cpu(there, "cpu")
    for layer in (here, moved):
        assert torch.equal(layer.weight, there.codes())
        assert torch.equal(layer.dequantized(), there.dequantized())
        assert torch.equal(layer.bias, there.bias)


def test_a_prompt_goes_through_the_dequantized_weights_and_a_few_tokens_through_the_kernel():
    layer, asked = GpuInt8Linear.from_linear(nn.Linear(64, 40)), []
    way = products.PREFILLS["dequantize"]
    products.PREFILLS["dequantize"] = lambda *given: (asked.append(len(given[0])), way(*given))[1]
    try:
        x = torch.randn(17, 64)
        torch.testing.assert_close(layer(x), torch.cat([layer(x[:16]), layer(x[16:])]))
    finally:
        products.PREFILLS["dequantize"] = way
    assert asked == [17]


def test_int_mm_quantizes_the_activations_and_is_offered_only_where_it_can_be_right():
    torch.manual_seed(0)
    linear = nn.Linear(64, 40)
    layer = GpuInt8Linear.from_linear(linear, None, "int_mm")
    x = torch.randn(32, 64)
    wanted = products.plain_product(x, layer.weight, layer.scale, layer.bias, None)
    off = (layer(x) - wanted).abs().max() / wanted.abs().max()
    assert 0 < off < 0.02  # int8 activations: close, and not the same
    x[3, 5] = torch.nan
    assert layer(x)[3].isnan().all() and layer(x)[:3].isfinite().all()
    held = (layer.weight, layer.scale)
    assert products.fastest_prefill(x, *held, None) in products.PREFILLS
    assert products.fastest_prefill(x, *held, 32) == "dequantize"
    with pytest.raises(ValueError, match=r"'int_mm'; a layer .* groups of 32 can take dequantize"):
        GpuInt8Linear.from_linear(linear, 32, "int_mm")
    with pytest.raises(ValueError, match="can take dequantize"):
        GpuInt8Linear.from_linear(nn.Linear(63, 40), None, "int_mm")


def test_nan_and_zeros_stay_with_their_token():
    layer = GpuInt8Linear.from_linear(nn.Linear(64, 40, bias=False))
    x = torch.randn(4, 64).half()
    x[0], x[1, 3] = 0, torch.nan
    y = layer(x)
    assert (y[0] == 0).all() and y[1].isnan().all() and y[2:].isfinite().all()


@pytest.mark.parametrize(
    "x, error, says",
    [
        (torch.zeros(2, 64, dtype=torch.int64), TypeError, "expected FP32, FP16 or bf16"),
        (torch.zeros(2, 63), ValueError, r"shape \(2, 63\); expected \(..., 64\)"),
        (torch.zeros(2, 64, device="meta"), ValueError, "input is on meta, the layer on cpu"),
    ],
)
def test_a_wrong_input_is_named(x, error, says):
    with pytest.raises(error, match=says):
        GpuInt8Linear.from_linear(nn.Linear(64, 8))(x)


def test_a_change_of_format_leaves_codes_scales_and_bias():
    layer = GpuInt8Linear.from_linear(nn.Linear(64, 8))
    before = {name: tensor.clone() for name, tensor in layer.state_dict().items()}
    for name, tensor in layer.half().state_dict().items():
        assert tensor.dtype == before[name].dtype and torch.equal(tensor, before[name])


# --- the model ---------------------------------------------------------------------------------


def restored(model):
    """The same model in floating point, with what int8 holds of its weights."""
    other = tiny_llama(**SHAPES)
    for name, layer in model.named_modules():
        if isinstance(layer, GpuInt8Linear):
            other.get_submodule(name).weight.data = layer.dequantized()
    return other


@pytest.fixture
def int8():
    return replace_layers(tiny_llama(**SHAPES))


@pytest.fixture
def ids():
    return torch.randint(96, (2, 20), generator=torch.Generator().manual_seed(1))


def steps(model, tokens):
    return torch.stack([model.step(tokens[:, t]) for t in range(tokens.shape[1])], 1)


def logits(model, tokens):
    with torch.inference_mode():
        return model(tokens).logits


def test_a_step_in_int8_is_the_step_with_dequantized_weights_bit_for_bit(int8, ids):
    other = restored(int8)
    assert torch.equal(logits(int8, ids), logits(other, ids))
    one, two = (GraphLlama(model, 40, batch=2) for model in (int8, other))
    assert torch.equal(steps(one, ids), steps(two, ids))


def test_steps_and_prompt_are_hugging_faces_forward_in_both_formats(int8, ids):
    plain = tiny_llama(**SHAPES)
    for model in (int8, plain):
        wanted, fast = logits(model, ids), GraphLlama(model, 40, batch=2)
        torch.testing.assert_close(steps(fast, ids), wanted, rtol=1e-5, atol=1e-6)
        fast.make_room(40, 2)
        torch.testing.assert_close(fast.forward(ids[:, :7], 0), wanted[:, :7], rtol=1e-5, atol=1e-6)
        later = fast.forward(ids[:, 7:], 0)  # behind what was read, with a mask
        torch.testing.assert_close(later, wanted[:, 7:], rtol=1e-5, atol=1e-6)
    off = logits(int8, ids) - logits(plain, ids)
    assert 0 < off.abs().max() < 0.05 * logits(plain, ids).abs().max()


def test_the_courses_own_llama_takes_the_same_step(tmp_path, ids):
    tiny_llama(**SHAPES).save_pretrained(tmp_path)
    own = Llama.from_pretrained(tmp_path)
    with torch.inference_mode():
        wanted = own(ids)
    for model in (own, replace_layers(own)):
        found = steps(GraphLlama(model, 40, batch=2), ids)
        torch.testing.assert_close(found, wanted, rtol=0.05, atol=5e-3)


def test_a_text_longer_than_a_bucket_is_read_with_a_step_for_each(int8):
    tokens = torch.randint(96, (1, BUCKET + 5))
    fast = GraphLlama(int8, BUCKET + 5)
    torch.testing.assert_close(steps(fast, tokens), logits(int8, tokens), rtol=1e-4, atol=1e-5)
    assert list(fast._steps) == [BUCKET, 2 * BUCKET]
    kept = fast._steps[BUCKET]
    fast.make_room(9, 1)  # another text, the same room: what was captured stays
    fast.step(tokens[:, 0])
    assert fast._steps[BUCKET] is kept


def test_a_cache_that_grows_keeps_what_was_read(int8, ids):
    fast, wanted = GraphLlama(int8, 1, batch=2), logits(int8, ids)
    fast.forward(ids[:, :9])
    fast.grow(BUCKET + 1)
    assert fast.context == 2 * BUCKET and fast.position == 9 and not fast._steps
    torch.testing.assert_close(steps(fast, ids[:, 9:]), wanted[:, 9:], rtol=1e-5, atol=1e-6)


def test_generation_equals_step_by_step_and_hugging_faces(int8, ids):
    fast = GraphLlama(int8, 60, batch=2)
    generated = fast.generate(ids, 12)
    fast.make_room(60, 2)
    token, single = fast.forward(ids)[:, -1].argmax(-1), []
    for _ in range(12):
        single.append(token)
        token = fast.step(token).argmax(-1)
    assert torch.equal(generated, torch.stack(single, 1))
    theirs = int8.generate(
        ids, max_new_tokens=12, do_sample=False, eos_token_id=None, attention_mask=ids > -1
    )
    assert torch.equal(generated, theirs[:, ids.shape[1] :])
    ended = fast.generate(ids, 12, end=generated[0, :1].tolist())
    assert (ended[0] == generated[0, 0]).all()


@pytest.mark.slow
def test_a_fused_step_is_the_plain_one_and_shares_its_weights(int8, ids):
    for model in (int8, tiny_llama(**SHAPES)):
        plain = GraphLlama(model, 40, batch=2)
        fused = plain.compiled()
        fused.make_room(40, 2)
        torch.testing.assert_close(steps(fused, ids), steps(plain, ids), rtol=1e-5, atol=1e-6)
        assert fused.layers[0].qkv_proj is plain.layers[0].qkv_proj
        assert fused.keys.data_ptr() != plain.keys.data_ptr()
        assert not plain.reader_for(plain)._fused  # the copy alone is fused


def test_what_a_step_returned_is_not_overwritten_by_the_next(int8):
    fast = GraphLlama(int8, 40)
    first = fast.step(torch.tensor([3]))
    kept = first.clone()
    fast.step(torch.tensor([4]))
    assert torch.equal(first, kept)


def test_weights_are_held_once_after_merging(int8):
    def places(layers):
        return {layer.weight.untyped_storage().data_ptr() for layer in layers}

    plain = tiny_llama(**SHAPES)
    for model in (int8, plain):
        fast = GraphLlama(model, 40)
        attention = model.model.layers[0].self_attn
        parts = [attention.q_proj, attention.k_proj, attention.v_proj]
        assert places(parts) == places([fast.layers[0].qkv_proj])


def test_other_layers_and_wrong_tokens_are_named(int8):
    with pytest.raises(TypeError, match=r"q_proj is Int8FastLinear; GraphLlama takes models in 16"):
        GraphLlama(cpu_linear.replace_layers(tiny_llama(**SHAPES)))
    fast = GraphLlama(int8, 4)
    for call, error, says in (
        (lambda: fast.step(torch.tensor([[1]])), ValueError, r"expected \(B,\) with B = 1"),
        (lambda: fast.forward(torch.tensor([[1.0]])), TypeError, "token ids are integers"),
        (lambda: fast.step(torch.tensor([96])), ValueError, "96 is not in the vocabulary of 96"),
        (lambda: fast.forward(torch.zeros(1, 129).long()), ValueError, "exceed the cache of 128"),
        (lambda: fast.reserve(301), ValueError, "context is 301 .* expected 1 to 300"),
        (lambda: fast.generate(torch.tensor([[1]]), 0), ValueError, "new_tokens is 0"),
        (lambda: fast.half(), TypeError, "move the model, then make this"),
    ):
        with pytest.raises(error, match=says):
            call()


def test_on_a_cpu_nothing_is_captured_and_the_function_itself_is_called():
    def run():
        return torch.ones(1)

    assert gpu_llama.captured(run, torch.device("cpu")) is run


def test_a_capture_warms_up_on_a_side_stream_records_once_and_then_only_replays(monkeypatch):
    """The order of the calls, with a card's functions in name only: what they do is a card's to show."""
    did, streams, out = [], [], torch.ones(1)

    class Recorded:
        def __init__(self, name="stream", *_, **__):
            self.name = str(name)

        def __enter__(self):
            did.append(f"in {self.name}")

        def __exit__(self, *_):
            did.append(f"out of {self.name}")

        def wait_stream(self, other):
            did.append(f"{self.name} waits for {other.name}")

        def replay(self):
            did.append("replay")

    names = {"current_stream": "main", "CUDAGraph": "graph"}
    for function, name in names.items():
        monkeypatch.setattr(torch.cuda, function, lambda name=name: Recorded(name))
    monkeypatch.setattr(torch.cuda, "Stream", lambda _: (streams.append(1), Recorded("side"))[1])
    monkeypatch.setattr(gpu_llama, "side_stream", cache(gpu_llama.side_stream.__wrapped__))
    monkeypatch.setattr(torch.cuda, "device", lambda device: Recorded(device))
    monkeypatch.setattr(torch.cuda, "stream", lambda stream: Recorded(stream.name))
    monkeypatch.setattr(
        torch.cuda, "graph",
        lambda graph, pool, stream: Recorded(f"{graph.name}, {pool}, {stream.name}"),
    )  # fmt: skip
    replay = gpu_llama.captured(lambda: (did.append("run"), out)[1], torch.device("cuda:1"), "pool")
    warm_up = ["in side", "run", "run", "run", "out of side", "main waits for side"]
    capture = ["in graph, pool, side", "run", "out of graph, pool, side"]
    assert did == ["in cuda:1", "side waits for main", *warm_up, *capture, "out of cuda:1"]
    assert replay() is out and replay() is out and did[-2:] == ["replay", "replay"]
    assert did.count("run") == 4
    gpu_llama.captured(lambda: out, torch.device("cuda:1"), "pool")
    assert len(streams) == 1  # a workspace of cuBLAS for each stream: all captures share one


def test_the_old_cache_goes_before_the_new_one_comes(int8, monkeypatch):
    fast, zeros, alive = GraphLlama(int8, 40), torch.zeros, []
    old = weakref.ref(fast.keys)
    monkeypatch.setattr(torch, "zeros", lambda *a, **k: (alive.append(old()), zeros(*a, **k))[1])
    fast.reserve(BUCKET + 1)
    assert alive[0] is None

    def full(*_, **__):
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(torch, "zeros", full)
    with pytest.raises(torch.OutOfMemoryError):
        fast.reserve(40)
    with pytest.raises(ValueError, match="exceed the cache of 0; call reserve"):
        fast.step(torch.tensor([1]))
    monkeypatch.undo()
    fast.make_room(40, 1)
    assert fast.step(torch.tensor([1])).isfinite().all()


def test_keys_are_copied_for_query_heads_only_where_heads_share_them(int8, ids, monkeypatch):
    copied, repeat = [], torch.Tensor.repeat_interleave
    monkeypatch.setattr(
        torch.Tensor, "repeat_interleave",
        lambda self, *a, **k: (copied.append(a), repeat(self, *a, **k))[1],
    )  # fmt: skip
    own = replace_layers(tiny_llama(**SHAPES | {"num_key_value_heads": 4}))
    for model, copies in ((own, 0), (int8, 2 * int8.config.num_hidden_layers)):
        wanted = logits(model, ids)
        copied.clear()
        found = GraphLlama(model, 40, batch=2).forward(ids, 0)
        torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-6)
        assert copied == [(2, 1)] * copies


# --- Hugging Face's interface, files and errors ------------------------------------------------


def test_generate_uses_the_captured_step_and_gives_each_text_a_cache_of_its_own(int8, ids):
    wanted = int8.generate(ids[:1], max_new_tokens=8, do_sample=False, eos_token_id=None)
    model = generating_in_one_call(int8)
    model.generation_config = load.plain_generation(model)
    model.generation_config.eos_token_id = None
    assert torch.equal(model.generate(ids[:1], max_new_tokens=8), wanted)
    fast = model._fast()
    assert list(fast._steps) == [BUCKET]
    captured = fast._steps[BUCKET]
    model.generate(ids[1:], max_new_tokens=8)
    assert fast._steps[BUCKET] is captured  # not captured again
    first, second = OneCallCache(fast), OneCallCache(fast)
    assert first.reader is fast and second.reader is not fast
    first.read(ids[:1], 1), second.read(ids[1:], 1)
    assert first.reader.keys.data_ptr() != second.reader.keys.data_ptr()
    one = first.read(ids[1:, :1], 1)
    again = OneCallCache(fast)
    again.read(ids[:1], 1)
    assert torch.equal(one, again.read(ids[1:, :1], 1))


def test_a_token_after_the_prompt_does_not_wait_for_its_mask(int8, ids):
    class Mask:
        def all(self):
            pytest.fail("the mask was looked at")

    model = generating_in_one_call(int8)
    read = OneCallCache(model._fast())
    model(ids[:1, :9], torch.ones(1, 9), past_key_values=read)
    found = model(ids[:1, 9:10], Mask(), past_key_values=read).logits[:, -1]
    torch.testing.assert_close(found, logits(model, ids[:1, :10])[:, -1], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("tied", [False, True])
def test_a_folder_is_quantized_tensor_by_tensor_and_a_saved_one_gives_the_same(tmp_path, ids, tied):
    tiny_llama(**SHAPES, tie_word_embeddings=tied).bfloat16().save_pretrained(tmp_path / "bf16")
    folder, config = tmp_path / "bf16", read_config(tmp_path / "bf16")
    saved = models.save_int8_fast(models.load_model(folder, "int8-fast"), tmp_path / "saved")
    read = int8_fast.load_int8_fast(saved, config)
    one = int8_fast.quantize_on_gpu(folder, config, torch.bfloat16, "cpu")
    two = int8_fast.on_gpu(read, torch.bfloat16, "cpu")
    assert one.state_dict().keys() == two.state_dict().keys()
    for name, tensor in one.state_dict().items():
        assert torch.equal(tensor, two.state_dict()[name]), name
    assert torch.equal(logits(one, ids), logits(two, ids))
    for model in (one, two):
        assert model.model.rotary_emb.inv_freq.dtype == torch.float32  # not in the state
        load.check_layers(model, "int8-fast", torch.bfloat16, 6.0, "cuda")
        held = {t.data_ptr(): t.nbytes for t in model.state_dict().values()}
        assert sum(held.values()) == weight_bytes(config, "int8-fast").total
    with pytest.raises(TypeError, match="written from a CPU: load it with device='cpu'"):
        models.save_int8_fast(one, tmp_path / "other")


@pytest.fixture
def card(monkeypatch, tmp_path):
    """PyTorch says that a T4 is here; whatever would use it fails."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "Tesla T4")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: (7, 5))
    monkeypatch.setattr(load.importlib.util, "find_spec", lambda name: object())
    monkeypatch.setattr(load.shutil, "which", lambda name: f"/usr/bin/{name}")
    monkeypatch.setattr(load.sysconfig, "get_path", lambda *_: str(tmp_path))
    (tmp_path / "Python.h").touch()
    monkeypatch.setattr(load, "_missing_driver_library", lambda: "")
    monkeypatch.setattr(torch.cuda, "get_arch_list", lambda: ["sm_75", "sm_80"])
    return monkeypatch


def test_a_t4_with_triton_is_accepted(card):
    models.check_precision("int8-fast", "cuda")


def test_an_old_card_is_named_with_its_capability(card):
    card.setattr(torch.cuda, "get_device_capability", lambda: (6, 1))
    card.setattr(torch.cuda, "get_arch_list", lambda: ["sm_61"])
    with pytest.raises(PrecisionError, match=r"7\.0, Triton's least; .* has 6\.1\. Use .*'fp16'"):
        models.check_precision("int8-fast", "cuda")


def test_without_triton_the_way_to_it_is_said(card):
    card.setattr(load.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(PrecisionError, match=r"needs Triton, which is not installed.*pip install"):
        models.check_precision("int8-fast", "cuda")


def test_without_a_c_compiler_it_is_said_why_one_is_needed(card):
    card.setattr(load.shutil, "which", lambda name: None)
    card.delenv("CC", raising=False)
    with pytest.raises(PrecisionError, match=r"needs a C compiler.*neither gcc nor clang"):
        models.check_precision("int8-fast", "cuda")


def test_without_pythons_headers_it_is_said_how_to_get_them(card):
    card.setattr(load.sysconfig, "get_path", lambda *_: "/no/such/place")
    with pytest.raises(PrecisionError, match=r"no /no/such/place/Python\.h; install python3-dev"):
        models.check_precision("int8-fast", "cuda")


def test_without_the_drivers_library_where_triton_looks_it_is_said(card):
    card.setattr(load, "_missing_driver_library", lambda: "libcuda.so cannot found!")
    with pytest.raises(
        PrecisionError, match=r"\(libcuda\.so cannot found!\); run ldconfig as root"
    ):
        models.check_precision("int8-fast", "cuda")


@needs_triton
def test_triton_itself_is_asked_where_the_drivers_library_is(monkeypatch):
    from triton.backends.nvidia import driver

    def missing():
        raise AssertionError("libcuda.so cannot found!\nPlease make sure")

    monkeypatch.setattr(driver, "libcuda_dirs", missing)
    assert load._missing_driver_library() == "libcuda.so cannot found!"
    monkeypatch.setattr(driver, "libcuda_dirs", lambda: ["/usr/lib"])
    assert load._missing_driver_library() == ""


@pytest.mark.parametrize(
    "built, capability, works",
    [
        (["sm_75", "sm_80", "compute_120"], (7, 0), False),  # CUDA 13 on a V100
        (["sm_75", "sm_80", "compute_120"], (7, 5), True),
        (["sm_75", "sm_80", "sm_90"], (8, 9), True),  # machine code of the same major version
        (["sm_75", "sm_80", "sm_90"], (10, 0), False),
        (["sm_75", "compute_80"], (12, 0), True),  # PTX for an older card
        ([], (7, 0), True),
    ],
)
def test_a_card_that_this_pytorch_was_not_built_for_is_named(card, built, capability, works):
    card.setattr(torch.cuda, "get_arch_list", lambda: built)
    card.setattr(torch.cuda, "get_device_capability", lambda: capability)
    if works:
        models.check_precision("int8-fast", "cuda")
        return
    major, minor = capability
    says = rf"capability {major}\.{minor}, for which this PyTorch .* was not built"
    for precision in ("fp16", "int8-fast"):
        with pytest.raises(PrecisionError, match=says):
            models.check_precision(precision, "cuda")


def test_a_gpu_that_pytorch_does_not_see_may_have_an_old_driver(monkeypatch):
    monkeypatch.setattr(load.shutil, "which", lambda _: None)
    assert models.no_gpu() == "PyTorch sees no GPU"
    monkeypatch.setattr(load.shutil, "which", lambda name: f"/usr/bin/{name}")
    for built, says in (("13.0", "driver is too old for CUDA 13.0"), (None, "without CUDA")):
        monkeypatch.setattr(torch.version, "cuda", built)
        assert says in models.no_gpu()


def test_a_cache_in_int8_is_for_a_cpu(card):
    with pytest.raises(ValueError, match="only on a CPU, and device is 'cuda'"):
        models.load_model("smollm2-135m", "int8-fast", "cuda", cache="int8")
    with pytest.raises(ValueError, match="only on a CPU, and device is 'cuda'"):
        side_by_side("smollm2-135m", "Why?", ["int8-fast"], "cuda", cache="int8")


# --- what is predicted for cards that are not here ---------------------------------------------


def test_launches_are_counted_from_the_step_itself(monkeypatch):
    config = models.config_of(on_gpus.MODEL)
    counted = on_gpus.launches(config)
    feed_forward = GraphLlama._feed_forward

    def one_more(self, x, block):
        return feed_forward(self, x, block) * 1

    monkeypatch.setattr(GraphLlama, "_feed_forward", one_more)
    assert on_gpus.launches(config) == counted + config.num_hidden_layers
    # Per layer: 4 products, 2 norms, attention, 2 writes, 2 sums, silu and its product, rotation.
    assert 13 < counted / config.num_hidden_layers < 25


def test_a_prediction_is_bytes_over_bandwidth_and_a_time_for_each_launch():
    config, found = models.config_of(on_gpus.MODEL), on_gpus.predictions()
    worse, better = on_gpus.ASSUMPTIONS
    assert worse.share < better.share and worse.seconds > better.seconds
    assert found.keys() == published("gpu-bandwidth")["rows"].keys()
    one = found["T4"]["int8-fast"]
    # After 128 tokens a step reads the cache to the end of its second bucket.
    seconds = forward_bytes(config, "int8-fast", 1, 2 * BUCKET - 1) / (0.8 * 320e9)
    seconds += on_gpus.launches(config) * better.seconds
    assert one.high == pytest.approx(1 / seconds)
    for by_precision in found.values():
        fp16, int8 = (by_precision[precision] for precision in on_gpus.PRECISIONS)
        bytes_ = [on_gpus.step_bytes(config, p, on_gpus.CONTEXT) for p in on_gpus.PRECISIONS]
        assert 1 < int8.low / fp16.low < bytes_[0] / bytes_[1]  # launches take from bytes' factor
        assert fp16.low < fp16.high and int8.low < int8.high
    # The published FP16 run on a T4, without a graph, lies between the ends; so does its share.
    speed = published("t4-llama-2-7b-chat")["rows"]["speed (tokens/s)"][0]
    assert found["T4"]["fp16"].low < speed < found["T4"]["fp16"].high
    share = speed * weight_bytes(config, "fp16").read_per_token / 320e9
    assert worse.share < share < better.share


def test_what_reading_does_not_explain_on_a_t4_is_half_a_millisecond_per_layer_in_int8():
    config = models.config_of(on_gpus.MODEL)
    lost = on_gpus.lost_per_layer(config, {"fp16": "FP16", "int8": "int8"})
    assert lost["int8"] == pytest.approx(0.57, abs=0.01) and lost["FP16"] < 0.1


@pytest.fixture
def benchmark(tmp_path):
    """What tools/benchmark_gpu.py leaves on a machine with a card."""
    file = tmp_path / "results" / "tesla-t4" / on_gpus.FILE
    file.parent.mkdir(parents=True)
    numbers = {gpu.HALF_GRAPH: 17.0, gpu.INT8_GRAPH: 30.0}
    measurements = {f"decode.1x128.{path}": {"value": v} for path, v in numbers.items()}
    content = {"environment": {"GPU": "Tesla T4"}, "measurements": measurements}
    file.write_text(json.dumps(content))
    return file


def test_a_cards_own_numbers_stand_beside_the_prediction_and_only_a_cards(benchmark, tmp_path):
    assert on_gpus.measured(tmp_path / "none", tmp_path)["int8-fast, one graph"] == 30.0
    content = json.loads(benchmark.read_text())
    benchmark.write_text(json.dumps(content | {"environment": {}}))
    assert on_gpus.measured(tmp_path) == {}


def test_the_figure_says_whether_it_predicts_or_has_measured(benchmark, tmp_path):
    predicted = on_gpus.predictions()
    for on_card, title in (
        ({}, "Predicted, not measured"),
        (on_gpus.measured(tmp_path), "Tesla T4"),
    ):
        drawn = figures.predicted_on_gpus(predicted, on_card)
        assert title in drawn.get_suptitle()
        labels = [text.get_text() for text in drawn.legends[0].get_texts()]
        assert ("measured here" in labels) == bool(on_card)
        assert sum("predicted" in label for label in labels) == 2
        assert sum("published (measured)" in label for label in labels) == 2


def test_the_lesson_shows_the_kernel_and_the_capture_whole():
    kernel, capture = on_gpus.pieces()
    assert kernel.startswith("@triton.jit\ndef int8_rows(") and "tl.store(" in kernel
    assert len(kernel.splitlines()) <= 40
    assert capture.startswith("def captured(") and capture.endswith("return replay")
