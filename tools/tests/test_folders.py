"""A name that is nearly right, or a folder of another kind: the message knows the way out."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from saved_models import TINY
from transformers import LlamaConfig as HuggingFaceConfig
from transformers import LlamaForCausalLM

from llama_int8.folders import check_model_folder
from llama_int8.models import (
    MODELS,
    ModelFilesError,
    UnknownModelError,
    config_of,
    load_model,
    load_tokenizer,
)
from llama_int8.models.registry import existing_folder
from llama_int8.names import did_you_mean, listed
from llama_int8.transformer.checkpoints import write_meta
from llama_int8.transformer.llama import Llama

# Names


@pytest.mark.parametrize(
    ("name", "meant"),
    [
        ("Llama-3.2-1B", "llama-3.2-1b"),
        ("llama3.2-1b", "llama-3.2-1b"),
        ("llama_3.2_1b", "llama-3.2-1b"),
        ("llama 3.2 1b", "llama-3.2-1b"),
        (" llama-3.2-1b ", "llama-3.2-1b"),
        ("LLAMA-3.2-3B", "llama-3.2-3b"),
        ("lama-3.2-1b", "llama-3.2-1b"),
        ("HuggingFaceTB/SmolLM2-135M-Instruct", "smollm2-135m"),
        ("SmolLM2-135M-Instruct", "smollm2-135m"),
        ("smollm2", "smollm2-135m"),
        ("SmolLM2-135M", "smollm2-135m"),
        ("tinyllama", "tinyllama-1.1b"),
        ("llama2-7b", "llama-2-7b-chat"),
        ("https://huggingface.co/unsloth/Llama-3.2-1B", "llama-3.2-1b"),
        ("synthetic:Llama-3.2-1B", "synthetic:llama-3.2-1b"),
        ("Synthetic:llama-3.2-1b", "synthetic:llama-3.2-1b"),
        *((s.repository, spec.name) for spec in MODELS.values() for s in spec.sources),
        *((name.upper(), name) for name in MODELS),
    ],
)
def test_a_name_that_is_nearly_right_is_an_error_with_the_one_that_was_meant(name, meant):
    for use in (config_of, existing_folder, load_tokenizer):
        if name.startswith("synthetic:") and use is load_tokenizer:
            continue  # has none, which is said first
        with pytest.raises(UnknownModelError) as error:
            use(name)
        assert f"{name!r} is neither a registered model nor a folder" in str(error.value)
        assert f"did you mean {meant}?" in str(error.value)


@pytest.mark.parametrize("name", ["gpt-5", "bert-base-uncased", "synthetic:", "", " ", "~no-one/x"])
def test_a_name_that_is_near_to_none_lists_the_known_ones_and_suggests_nothing(name):
    with pytest.raises(UnknownModelError) as error:
        config_of(name)
    assert all(known in str(error.value) for known in MODELS)
    assert "did you mean" not in str(error.value)


def test_another_repository_of_the_hub_is_told_how_to_fetch_it():
    with pytest.raises(
        UnknownModelError, match=r"hf download mistralai/Mistral-7B-v0\.1 --local-dir"
    ):
        config_of("mistralai/Mistral-7B-v0.1")
    with pytest.raises(UnknownModelError) as error:
        config_of("unsloth/Llama-3.2-1B")
    assert "hf download" not in str(error.value)


def test_the_names_of_a_list_are_read_without_blanks_capitals_and_repetitions():
    assert listed(" bf16, INT8,,bf16 ,") == ["bf16", "int8"]
    assert listed(" , ") == listed("") == []


def test_a_known_name_is_suggested_only_where_it_is_near():
    assert did_you_mean("int8_fast", ["int8", "int8-fast"]) == ". Did you mean int8-fast?"
    assert did_you_mean("HELLA-SWAG", ["piqa", "hellaswag"]) == ". Did you mean hellaswag?"
    assert did_you_mean("nothing", ["piqa", "hellaswag"]) == ""
    assert did_you_mean("", ["piqa"]) == did_you_mean("piqa", []) == ""


# Paths


def says(folder, *words, kind=ModelFilesError):
    """Every way to a model ends with this message, in one line."""
    for use in (config_of, load_tokenizer, lambda f: load_model(f, "fp32", "cpu")):
        with pytest.raises(kind) as error:
            use(folder)
        for word in words:
            assert str(word) in str(error.value)
        assert "\n" not in str(error.value)


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """A tiny model in one file; never changed."""
    folder = tmp_path_factory.mktemp("saved")
    LlamaForCausalLM(HuggingFaceConfig(**TINY.to_hugging_face())).save_pretrained(folder)
    return folder


@pytest.fixture
def folder(saved, tmp_path):
    """A copy of it, to be changed."""
    return Path(shutil.copytree(saved, tmp_path / "model"))


def test_a_path_that_leads_nowhere_says_how_far_it_leads(folder):
    missing = folder.parent / "modell" / "v1"
    words = [f"the folder {missing} does not exist", f"{folder.parent} exists", "'modell'"]
    says(missing, *words, "Did you mean model?", kind=UnknownModelError)
    beyond = folder / "config.json" / "x"
    says(beyond, f"{folder / 'config.json'} is a file", kind=UnknownModelError)


@pytest.mark.parametrize(
    "text", ["./none", "../none", "~/none", "models/none", "a/b/none", "..\\none"]
)
def test_what_looks_like_a_path_is_taken_for_one(text, tmp_path, monkeypatch):
    (tmp_path / "here" / "models").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "here")
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("USERPROFILE", str(tmp_path))
    says(text, "does not exist", "exists and holds no", kind=UnknownModelError)


def test_a_link_that_leads_nowhere_is_named(tmp_path):
    (tmp_path / "link").symlink_to(tmp_path / "gone")
    says(tmp_path / "link", f"a link to {tmp_path / 'gone'}", kind=UnknownModelError)


@pytest.mark.parametrize("name", ["config.json", "model.safetensors"])
def test_a_file_of_a_model_is_told_its_folder(folder, name):
    words = [f"{folder / name} is a file", f"give the folder that it is in: {folder}"]
    says(folder / name, *words, kind=UnknownModelError)
    with pytest.raises(ModelFilesError, match="is a file; give the folder"):
        Llama.from_pretrained(folder / name)


def test_files_of_other_kinds_are_told_what_to_take_instead(tmp_path):
    kinds = {
        "model-q8_0.gguf": "GGUF files are not read",
        "MODEL.GGUF": "GGUF files are not read",
        "pytorch_model.bin": "safetensors only",
        "model.pt": "safetensors only",
        "model.pth": "safetensors only",
        "model.tar.gz": "unpack it",
        "notes.txt": "give a folder",
    }
    for name, words in kinds.items():
        (tmp_path / name).write_bytes(b"x")
        says(tmp_path / name, name, words, kind=UnknownModelError)
    says(tmp_path / "away.gguf", "GGUF files are not read", kind=UnknownModelError)


# Folders


def test_an_empty_folder_is_named(tmp_path):
    says(tmp_path, f"{tmp_path} is empty", "config.json")


def test_the_hubs_cache_is_told_its_snapshots(folder, tmp_path):
    cache = tmp_path / "hub" / "models--me--tiny"
    snapshots = [cache / "snapshots" / (digit * 40) for digit in "01"]
    for snapshot in snapshots:
        shutil.copytree(folder, snapshot)
    (cache / "blobs").mkdir()
    for place in (cache, cache / "snapshots", cache.parent):
        says(place, place, *snapshots)
    assert config_of(snapshots[0]) == TINY
    for snapshot in snapshots:
        shutil.rmtree(snapshot)
    says(cache, "the hub's cache", "fetch the model again")


def test_a_folder_around_the_models_folder_names_it(folder, tmp_path):
    says(tmp_path, "has no config.json", folder)


@pytest.mark.parametrize("with_config", [True, False])
def test_an_adapter_is_to_be_merged_first(folder, with_config):
    config = {"base_model_name_or_path": "meta-llama/Llama-2-7b-hf", "peft_type": "LORA"}
    (folder / "adapter_config.json").write_text(json.dumps(config))
    (folder / "model.safetensors").rename(folder / "adapter_model.safetensors")
    if not with_config:
        (folder / "config.json").unlink()
    words = ["adapter", "merge_and_unload()", "meta-llama/Llama-2-7b-hf"]
    says(folder, folder, *words)
    with pytest.raises(ModelFilesError, match="merge_and_unload"):
        Llama.from_pretrained(folder)
    (folder / "adapter_config.json").write_text("{")
    says(folder, "merge_and_unload()")


@pytest.mark.parametrize("with_config", [True, False])
@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("pytorch_model.bin", "safetensors only"),
        ("pytorch_model-00001-of-00002.bin", "safetensors only"),
        ("model.pth", "safetensors only"),
        ("model-Q4_K_M.gguf", "GGUF files are not read"),
    ],
)
def test_weights_of_another_kind_alone_are_named(folder, name, words, with_config):
    torch.save(load_file(folder / "model.safetensors"), folder / name)
    assert config_of(folder) == TINY  # beside safetensors they do no harm
    (folder / "model.safetensors").unlink()
    if not with_config:
        (folder / "config.json").unlink()
    says(folder, folder, name, words)
    with pytest.raises(ModelFilesError, match=words):
        Llama.from_pretrained(folder)


@pytest.mark.parametrize("lost", [(), ("params.json",), ("consolidated.00.pth",)])
def test_metas_format_is_named_where_only_hugging_faces_is_read(folder, tmp_path, lost):
    meta = tmp_path / "meta"
    write_meta(TINY, load_file(folder / "model.safetensors"), meta)
    for name in lost:
        (meta / name).unlink()
    says(meta, meta, "Meta's format", "`course.py generate`", "Llama.from_pretrained")
    check_model_folder(meta, meta_too=True)


def test_a_folder_with_a_tokenizer_only_is_left_to_who_reads_it(tmp_path):
    (tmp_path / "tokenizer.json").write_text("{}")
    assert existing_folder(tmp_path) == tmp_path
    with pytest.raises(ModelFilesError, match=r"has no config\.json"):
        config_of(tmp_path)
