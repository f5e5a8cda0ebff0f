"""int8-fast as a precision: loaded, saved, loaded again, predicted to the byte, every fault named."""

import copy
import inspect
import json
import shutil
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from byte_tokenizer import byte_tokenizer
from helpers import refused
from safetensors.torch import load_file, save_file
from saved_models import save_synthetic
from tiny_llama import tiny_llama
from transformers import DynamicCache, GenerationConfig, LlamaForCausalLM

from generate_text import side_by_side
from llama_int8.evaluation.perplexity import StridedText, divergence, window_scores
from llama_int8.measure.memory import weight_memory
from llama_int8.models import (
    MODELS,
    ModelFilesError,
    PrecisionError,
    end_tokens,
    load,
    load_model,
    load_tokenizer,
    save_int8_fast,
)
from llama_int8.models.cost import forward_bytes, kv_cache_bytes, weight_bytes
from llama_int8.models.hugging_face import empty_model
from llama_int8.models.int8_fast import is_int8_fast
from llama_int8.models.registry import ModelSpec
from llama_int8.quantization.cpu.linear import Int8FastLinear, replace_layers
from llama_int8.quantization.cpu.llama import FastLlama
from llama_int8.quantization.linear_layers import linear_layers
from llama_int8.transformer.config import LlamaConfig

TINY = LlamaConfig(
    vocab_size=96,
    hidden_size=32,
    intermediate_size=72,  # filled up to 128
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
    head_dim=8,
    max_position_embeddings=64,
)
CONFIGS = {
    "untied": TINY,
    "tied": replace(TINY, tie_word_embeddings=True),
    "biases": replace(TINY, attention_bias=True, mlp_bias=True),
    "biases of attention": replace(TINY, attention_bias=True, tie_word_embeddings=True),
    "biases of the feed-forward": replace(TINY, mlp_bias=True, vocab_size=101),
}
TOKENS = torch.tensor([[1, 17, 42, 3, 95, 8]])


@pytest.fixture(params=CONFIGS)
def tiny(request, monkeypatch) -> LlamaConfig:
    """A tiny model, registered as "tiny"."""
    monkeypatch.setitem(MODELS, "tiny", ModelSpec("tiny", CONFIGS[request.param], "none"))
    return CONFIGS[request.param]


@pytest.fixture
def folder(tmp_path) -> Path:
    """A folder in int8-fast, to be damaged."""
    save_synthetic(CONFIGS["biases"], tmp_path / "bf16", torch.bfloat16)
    return save_int8_fast(load_model(tmp_path / "bf16", "int8-fast"), tmp_path / "int8-fast")


@torch.no_grad()
def logits(model):
    return model(TOKENS).logits


def same_state(one, two):
    ours, theirs = one.state_dict(), two.state_dict()
    assert ours.keys() == theirs.keys()
    for name, tensor in ours.items():
        assert tensor.dtype == theirs[name].dtype and torch.equal(tensor, theirs[name]), name


def change_config(folder, **changes):
    path = folder / "config.json"
    content = json.loads(path.read_text())
    content["quantization_config"] |= changes
    path.write_text(json.dumps(content))


# --- a precision of load_model ----------------------------------------------------------------


def test_every_linear_layer_is_int8_and_the_rest_bf16(tiny, tmp_path):
    save_synthetic(tiny, tmp_path, torch.bfloat16)
    for model in (load_model("synthetic:tiny", "int8-fast"), load_model(tmp_path, "int8-fast")):
        fast = {n: m for n, m in model.named_modules() if isinstance(m, Int8FastLinear)}
        assert len(fast) == 7 * tiny.num_hidden_layers + 1 and "lm_head" in fast
        assert not any(isinstance(module, torch.nn.Linear) for module in model.modules())
        assert {p.dtype for p in model.parameters()} == {torch.bfloat16}
        assert {layer.scale.dtype for layer in fast.values()} == {torch.bfloat16}
        assert {n for n, layer in fast.items() if layer.planes == 2} == {"lm_head"}
        biases = [layer.bias for layer in fast.values() if layer.bias is not None]
        assert len(biases) == 2 * (4 * tiny.attention_bias + 3 * tiny.mlp_bias)
        assert all(bias.dtype == torch.float32 for bias in biases)
        assert model.config.tie_word_embeddings == tiny.tie_word_embeddings
        assert not any(module.training for module in model.modules())


def test_a_synthetic_model_is_the_same_in_memory_from_shards_and_from_its_own_format(
    tiny, tmp_path
):
    save_synthetic(tiny, tmp_path / "bf16", torch.bfloat16, 20_000)
    model, loaded = (
        load_model("synthetic:tiny", "int8-fast"),
        load_model(tmp_path / "bf16", "int8-fast"),
    )
    saved = load_model(save_int8_fast(loaded, tmp_path / "fast"), "int8-fast")
    for other in (loaded, saved):
        same_state(model, other)
        assert torch.equal(logits(other), logits(model))
        assert not any(module.training for module in other.modules())
    ours, theirs = (FastLlama(m, context=8).forward(TOKENS, 0) for m in (saved, model))
    assert torch.equal(ours, theirs)


def test_its_logits_are_near_those_of_bf16(tiny, tmp_path):
    save_synthetic(tiny, tmp_path, torch.bfloat16)
    bf16, fast = (logits(load_model(tmp_path, p, "cpu")) for p in ("bf16", "int8-fast"))
    assert fast.dtype == torch.bfloat16
    assert 0 < (fast - bf16).norm() / bf16.norm() < 0.03


def test_predicted_bytes_are_the_measured_ones(tiny, tmp_path):
    save_synthetic(tiny, tmp_path / "bf16", torch.bfloat16)
    predicted = weight_bytes(tiny, "int8-fast")
    model = load_model(tmp_path / "bf16", "int8-fast")
    saved = load_model(save_int8_fast(model, tmp_path / "fast"), "int8-fast")
    for other in (model, saved, load_model("synthetic:tiny", "int8-fast")):
        assert weight_memory(other) == predicted.total  # to the byte
    layers = [m for m in model.modules() if isinstance(m, Int8FastLinear)]
    blocks = [layer for layer in layers if layer is not model.lm_head]
    assert predicted.linear == sum(layer.weight.numel() for layer in blocks)
    assert predicted.scales == 2 * sum(layer.scale.numel() for layer in layers)
    assert predicted.lm_head == model.lm_head.weight.numel()
    assert predicted.biases == 4 * sum(
        layer.bias.numel() for layer in layers if layer.bias is not None
    )
    size = (tmp_path / "fast" / "model.safetensors").stat().st_size
    assert 0 <= size - predicted.total < 20_000  # names and shapes


def test_a_step_reads_every_weight_but_the_embedding_and_the_cache():
    config = CONFIGS["tied"]
    table, cache = 2 * config.vocab_size * config.hidden_size, kv_cache_bytes(config, 10)
    whole = weight_bytes(config, "int8-fast").total
    assert forward_bytes(config, "int8-fast", 1, 9) == whole - table + cache


@pytest.mark.parametrize("name", sorted(MODELS))
def test_predicted_bytes_of_every_registered_model_are_those_of_its_empty_layers(name):
    config = MODELS[name].config
    model = replace_layers(empty_model(replace(config, num_hidden_layers=2)))
    sizes = {torch.uint8: 1, torch.bfloat16: 2, torch.float32: 4}
    measured = 0
    for key, tensor in model.state_dict(keep_vars=True).items():
        assert tensor.is_meta
        kept = isinstance(tensor, torch.nn.Parameter)  # embedding and norms: bf16, when loaded
        measured += tensor.numel() * (2 if kept else sizes[tensor.dtype])
        assert kept == ("norm" in key or "embed" in key)
    assert weight_bytes(replace(config, num_hidden_layers=2), "int8-fast").total == measured


def test_its_place_is_the_cpu_whatever_else_is_there(tiny, monkeypatch):
    monkeypatch.setattr(load, "default_device", lambda: "cuda")
    assert load_model("synthetic:tiny", "int8-fast").device.type == "cpu"


@pytest.mark.parametrize("gpu", [True, False])
def test_several_gpus_are_refused(tiny, monkeypatch, gpu):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: gpu)
    with pytest.raises(PrecisionError, match=r"single device.*'auto'.*'cuda'.*precision='int8'"):
        load_model("synthetic:tiny", "int8-fast", device="auto")


@pytest.mark.parametrize("device", ["cuda", "cuda:1"])
def test_a_gpu_that_is_not_there_is_named(tiny, monkeypatch, device):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(PrecisionError, match=f"{device!r}, but PyTorch sees no GPU; use .*'cpu'"):
        load_model("synthetic:tiny", "int8-fast", device=device)


# --- the files --------------------------------------------------------------------------------


def test_a_saved_folder_says_what_it_is_and_holds_what_it_says(folder):
    content = json.loads((folder / "config.json").read_text())
    assert content["quantization_config"] == {
        "quant_method": "llama-int8-fast",
        "version": 2,
        "group": 32,
        "rows": 32,
    }
    assert LlamaConfig.from_hugging_face(content) == CONFIGS["biases"]
    assert is_int8_fast(folder) and not is_int8_fast(folder.parent / "bf16")
    tensors = load_file(folder / "model.safetensors")
    assert tensors["lm_head.weight"].dtype == torch.uint8
    assert tensors["lm_head.scale"].dtype == torch.bfloat16
    assert tensors["model.layers.0.mlp.up_proj.bias"].dtype == torch.float32
    assert tensors["model.embed_tokens.weight"].dtype == torch.bfloat16


def test_a_tensor_in_another_format_is_refused(folder):
    tensors = load_file(folder / "model.safetensors")
    name = "model.layers.0.mlp.up_proj.scale"
    save_file({**tensors, name: tensors[name].half()}, folder / "model.safetensors")
    with pytest.raises(ModelFilesError, match=name):
        load_model(folder, "int8-fast")


def test_a_loaded_model_computes_after_its_files_are_gone(folder):
    model = load_model(folder, "int8-fast")
    before = logits(model)
    shutil.rmtree(folder)
    assert torch.equal(logits(model), before)


def test_a_tokenizer_is_saved_beside_the_model(folder, tmp_path):
    model = load_model(folder, "int8-fast")
    writes = SimpleNamespace(save_pretrained=lambda place: (place / "tokenizer.json").touch())
    assert (save_int8_fast(model, tmp_path / "new", writes) / "tokenizer.json").exists()


@pytest.mark.parametrize("ends", [3, [2, 3], None])
def test_a_saved_model_has_the_ends_and_the_context_of_the_original(ends, tmp_path):
    save_synthetic(TINY, tmp_path / "bf16", torch.bfloat16)
    tokens = {"bos_token_id": 1, "eos_token_id": ends, "pad_token_id": 0}
    path = tmp_path / "bf16" / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | tokens))
    model = load_model(tmp_path / "bf16", "int8-fast")
    saved = load_model(save_int8_fast(model, tmp_path / "fast"), "int8-fast")
    for name, value in tokens.items():
        for settings in (saved.config, saved.generation_config):
            assert getattr(settings, name) == value
    before, after = model.config.to_dict(), saved.config.to_dict()
    told = {name for name in before if before[name] != after[name]}
    assert told <= {"dtype", "_name_or_path"}  # where it came from
    assert saved.generation_config.to_dict() == model.generation_config.to_dict()


def test_ends_of_a_generation_config_alone_are_kept(tmp_path):
    save_synthetic(TINY, tmp_path / "bf16", torch.bfloat16)
    settings = {"eos_token_id": [90, 91], "temperature": 0.6, "do_sample": True}
    (tmp_path / "bf16" / "generation_config.json").write_text(json.dumps(settings))
    model = load_model(tmp_path / "bf16", "int8-fast")
    saved = load_model(save_int8_fast(model, tmp_path / "fast"), "int8-fast")
    assert end_tokens(saved) == end_tokens(model) == {90, 91}


def test_a_saved_model_that_always_ends_its_turn_says_one_token(tmp_path):
    """Its blocks add nothing, and every token's row of the embedding is that of token 3."""
    theirs = tiny_llama(vocab_size=258, eos_token_id=[2, 3])
    with torch.no_grad():
        row = torch.randn(24)
        theirs.model.embed_tokens.weight[:] = row
        theirs.lm_head.weight.zero_()
        theirs.lm_head.weight[3] = row
        for block in theirs.model.layers:
            block.self_attn.o_proj.weight.zero_()
            block.mlp.down_proj.weight.zero_()
    theirs.save_pretrained(tmp_path / "theirs")
    byte_tokenizer().save_pretrained(tmp_path / "theirs")
    tokenizer = load_tokenizer(tmp_path / "theirs")
    tokenizer.chat_template = "[{{ messages[0]['content'] }}]"
    fast = load_model(tmp_path / "theirs", "int8-fast")
    folder = save_int8_fast(fast, tmp_path / "fast", tokenizer)
    for place in (tmp_path / "theirs", folder):
        assert side_by_side(place, "Why?", ["int8-fast"], "cpu", 6)[0].tokens == [3]
    again = load_tokenizer(folder)
    assert again.chat_template == tokenizer.chat_template
    assert again("a b")["input_ids"] == tokenizer("a b")["input_ids"]


def test_a_folder_that_cannot_be_finished_leaves_nothing(folder, tmp_path):
    def fails(_):
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        save_int8_fast(
            load_model(folder, "int8-fast"),
            tmp_path / "empty" / "new",
            SimpleNamespace(save_pretrained=fails),
        )
    assert not list((tmp_path / "empty").iterdir())


def test_a_folder_that_exists_is_not_overwritten(folder):
    before = (folder / "model.safetensors").read_bytes()
    with pytest.raises(FileExistsError, match=r"int8-fast exists already; name a new folder"):
        save_int8_fast(load_model(folder, "int8-fast"), str(folder))
    assert (folder / "model.safetensors").read_bytes() == before


def test_a_model_in_another_precision_is_not_saved(tmp_path):
    with pytest.raises(TypeError, match="not in int8-fast; load it with that precision"):
        save_int8_fast(tiny_llama().bfloat16(), tmp_path / "new")
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize("version", [0, 1, "2", None])
def test_another_version_of_the_format_is_refused(folder, version):
    change_config(folder, version=version)
    with pytest.raises(ModelFilesError, match=f"version {version!r}.*reads 2; quantize"):
        load_model(folder, "int8-fast")


@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16", "int8"])
def test_it_cannot_be_loaded_in_another_precision(folder, precision):
    with pytest.raises(PrecisionError, match=f"{precision} cannot be made.*precision='int8-fast'"):
        load_model(folder, precision, "cpu")


@pytest.mark.parametrize("keep", [0, 5, 100, -1])
def test_a_truncated_file_is_named_with_its_length(folder, keep):
    path = folder / "model.safetensors"
    content = path.read_bytes()[:keep]
    path.write_bytes(content)
    with pytest.raises(ModelFilesError, match=rf"model.safetensors \({len(content):,} bytes\)"):
        load_model(folder, "int8-fast")


def test_a_missing_file_is_named(folder):
    (folder / "model.safetensors").unlink()
    with pytest.raises(ModelFilesError, match=r"model.safetensors is missing"):
        load_model(folder, "int8-fast")


@pytest.mark.parametrize(
    "name", ["lm_head.scale", "model.norm.weight", "model.layers.1.self_attn.q_proj.bias"]
)
@pytest.mark.parametrize("change", ["missing", "unknown", "of another shape"])
def test_tensors_that_do_not_fit_the_config_are_named(folder, name, change):
    tensors = load_file(folder / "model.safetensors")
    tensor = tensors.pop(name)
    if change == "unknown":
        tensors |= {name: tensor, f"{name}.more": tensor.clone()}
    elif change == "of another shape":
        tensors[name] = tensor[:-1].contiguous()
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ModelFilesError, match=rf"do not fit its config.json: {name}.*{change}"):
        load_model(folder, "int8-fast")


# --- its quality against the baseline ---------------------------------------------------------


@pytest.mark.parametrize("tied", [True, False])
def test_divergence_from_the_baseline_is_that_of_both_models_own_logits(tied):
    torch.manual_seed(0)
    base = tiny_llama(tie_word_embeddings=tied).bfloat16()
    for parameter in base.parameters():
        parameter.data = parameter.data + (torch.randn_like(parameter) / 4).bfloat16()
    base.tie_weights()
    fast = replace_layers(copy.deepcopy(base), skip=() if tied else ("lm_head",))
    windows = torch.randint(97, (2, 12), generator=torch.Generator().manual_seed(1))
    text = StridedText(windows, 8, np.array([20, 20]))
    found = window_scores(fast, text, reference=window_scores(base, text, keep=2))
    for window, score in zip(windows, found, strict=True):
        with torch.no_grad():
            p, q = (
                m(window[None], use_cache=False).logits[0, -9:-1].float().log_softmax(-1)
                for m in (base, fast)
            )
        assert score["kl"] == pytest.approx(divergence(p, q).mean().item(), rel=1e-3)
        assert score["kl"] > 1e-5
        assert score["agreement"] == (p.argmax(-1) == q.argmax(-1)).double().mean().item()


def test_the_layers_of_a_synthetic_model_have_the_codes_of_its_bf16_weights(monkeypatch):
    monkeypatch.setitem(MODELS, "tiny", ModelSpec("tiny", CONFIGS["tied"], "none"))
    fast, bf16 = (load_model("synthetic:tiny", p, "cpu") for p in ("int8-fast", "bf16"))
    for name, linear in linear_layers(bf16, skip=()).items():
        ours, theirs = fast.get_submodule(name), Int8FastLinear.from_linear(linear)
        same_state(ours, theirs)


# --- what `generate` does with it --------------------------------------------------------------

PROMPTS = torch.arange(3 * 7).view(3, 7) % 96


@pytest.fixture
def calls(monkeypatch):
    """How often a token was read in one compiled call."""
    counted, step = [], FastLlama.step
    monkeypatch.setattr(FastLlama, "step", lambda *args: counted.append(1) or step(*args))
    return counted


@pytest.mark.parametrize("batch", [1, 3])
def test_generate_reads_each_new_token_in_one_compiled_call(tiny, calls, batch):
    model, prompt = load_model("synthetic:tiny", "int8-fast"), PROMPTS[:batch]
    expected = FastLlama(model, 20).generate(prompt, 12)
    calls.clear()
    for _ in range(2):  # the second forgets what the first read
        found = model.generate(prompt, max_new_tokens=12, eos_token_id=None)
        assert torch.equal(found, torch.cat([prompt, expected], 1))
    assert len(calls) == 2 * 11  # the first token comes of the prompt
    end = expected[0, 5].item()
    ended = model.generate(prompt[:1], max_new_tokens=12, eos_token_id=end, use_cache=True)
    assert ended[0, 7:].tolist() == expected[0, : expected[0].tolist().index(end) + 1].tolist()


def test_generate_streams_and_draws_as_hugging_faces_own_loop_does(tiny, calls):
    model, seen = load_model("synthetic:tiny", "int8-fast"), []
    streamer = SimpleNamespace(put=lambda tokens: seen.append(tokens.flatten()), end=lambda: None)
    torch.manual_seed(0)
    settings = {"max_new_tokens": 30, "eos_token_id": None, "do_sample": True, "top_k": 5}
    found = model.generate(PROMPTS[:1], streamer=streamer, **settings)
    assert torch.equal(torch.cat(seen), found[0]) and len(calls) == 29  # the room grew twice
    told = model.generate(
        PROMPTS, return_dict_in_generate=True, output_logits=True, max_new_tokens=2
    )
    expected = FastLlama(model, 8, 3).forward(PROMPTS)[:, -1].float()
    assert torch.equal(told.logits[0], expected)


@pytest.mark.parametrize(
    "asked",
    [
        {"num_beams": 3},
        {"use_cache": False},
        {"output_hidden_states": True, "return_dict_in_generate": True},
        {"attention_mask": torch.ones(3, 7).index_fill(1, torch.tensor([0]), 0)},
        {"generation_config": GenerationConfig(num_beams=2, max_new_tokens=4)},
    ],
    ids=str,
)
def test_what_needs_more_than_logits_is_hugging_faces_as_before(tiny, calls, asked):
    model = load_model("synthetic:tiny", "int8-fast")
    plain = copy.deepcopy(model)
    plain.__class__ = LlamaForCausalLM
    one, two = (m.generate(PROMPTS, max_new_tokens=4, **asked) for m in (model, plain))
    one, two = (getattr(out, "sequences", out) for out in (one, two))
    assert torch.equal(one, two) and not calls


def test_scoring_is_hugging_faces_as_before_also_after_generating(tiny):
    model = load_model("synthetic:tiny", "int8-fast")
    plain = copy.deepcopy(model)
    plain.__class__ = LlamaForCausalLM
    model.generate(PROMPTS, max_new_tokens=4)
    out, expected = model(PROMPTS), plain(PROMPTS)
    assert torch.equal(out.logits, expected.logits)
    assert type(out.past_key_values) is type(expected.past_key_values)
    assert inspect.signature(model.forward) == inspect.signature(plain.forward)
    copied = copy.deepcopy(model)
    for tensor in (*model.parameters(), *model.buffers()):
        tensor.data.zero_()
    expected = plain.generate(PROMPTS, max_new_tokens=1)
    assert torch.equal(copied.generate(PROMPTS, max_new_tokens=1), expected)


def test_a_text_beyond_the_models_context_is_refused(tiny):
    model = load_model("synthetic:tiny", "int8-fast")
    most = model.config.max_position_embeddings
    with pytest.raises(ValueError, match=f"1 to {most}"):
        model.generate(PROMPTS, max_new_tokens=most)


def test_generating_holds_no_weights_twice(monkeypatch):
    whole = replace(
        TINY, hidden_size=64, intermediate_size=96, num_attention_heads=4, head_dim=16,
        num_key_value_heads=2,
    )  # fmt: skip
    monkeypatch.setitem(MODELS, "tiny", ModelSpec("tiny", whole, "none"))
    model = load_model("synthetic:tiny", "int8-fast")
    before, scores = weight_memory(model), logits(model)
    fast = FastLlama(model, 8)
    places = {t.untyped_storage().data_ptr() for t in model.state_dict().values()}
    assert weight_memory(model) == before and torch.equal(logits(model), scores)
    for layer in fast.modules():
        if isinstance(layer, Int8FastLinear):
            assert {t.untyped_storage().data_ptr() for t in (layer.weight, layer.scale)} <= places


# --- keys and values in int8, too --------------------------------------------------------------


class Rounded(DynamicCache):
    """The definition: the nearest of 255 steps, which the largest number of each vector sets."""

    def update(self, keys, values, *args, **options):
        def nearest(x):
            largest = x.float().abs().amax(-1, keepdim=True)
            codes = (x.float() * (torch.tensor(127.0) / largest)).round()
            return (codes * (largest / 127)).to(x.dtype)

        return super().update(nearest(keys), nearest(values), *args, **options)


def test_with_an_int8_cache_scoring_and_generating_read_what_int8_holds(tiny, calls):
    plain = load_model("synthetic:tiny", "int8-fast")
    model = load_model("synthetic:tiny", "int8-fast", cache="int8")
    with torch.no_grad():
        expected = plain(PROMPTS, past_key_values=Rounded()).logits
        found = model(PROMPTS, use_cache=False).logits
        states = model.base_model(PROMPTS, use_cache=False).last_hidden_state
    assert torch.equal(found, expected) and not torch.equal(found, plain(PROMPTS).logits)
    assert torch.equal(model.lm_head(states), found)
    fast = FastLlama(plain, 20, cache="int8")
    expected = fast.generate(PROMPTS, 8)
    calls.clear()
    found = model.generate(PROMPTS, max_new_tokens=8, eos_token_id=None)
    assert torch.equal(found[:, 7:], expected) and len(calls) == 7
    assert torch.equal(copy.deepcopy(model)(PROMPTS).logits, model(PROMPTS).logits)


@pytest.mark.parametrize(
    ("precision", "cache", "words"),
    [
        ("bf16", "int8", ["cache is 'int8'", "only the precision int8-fast has, not bf16"]),
        ("int8-fast", "int4", ["cache is 'int4'", "bf16, int8"]),
    ],
)
def test_a_cache_that_cannot_be_is_refused_before_loading(precision, cache, words, monkeypatch):
    monkeypatch.setattr(load, "check_memory", None)
    with refused(ValueError, *words):
        load_model("smollm2-135m", precision, "cpu", cache=cache)
