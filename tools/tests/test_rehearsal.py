"""The T4 profile's way through memory, on a CPU: a limit that holds one precision, not two.

A T4 has 14.75 GiB and Colab 12.7 GB of RAM for LLaMA-2-7B's 12.55 GiB: sharded weights go to the
device piece by piece, and FP16 is freed before int8 is loaded. Here a synthetic model is sharded
and the process limited in proportion, so that holding both, or a copy, ends the run.
"""

import json
import subprocess
import sys

import pytest
import torch
from conftest import ROOT, Course
from saved_models import TINY, save_synthetic

import rehearse_t4
from llama_int8.models import load_tokenizer
from llama_int8.models.cost import weight_bytes
from llama_int8.transformer.config import LlamaConfig

CONFIG = LlamaConfig(
    vocab_size=49152,
    hidden_size=1792,
    intermediate_size=4864,
    num_hidden_layers=18,
    num_attention_heads=28,
    num_key_value_heads=7,
    head_dim=64,
    max_position_embeddings=2048,
)
BF16, INT8 = (weight_bytes(CONFIG, p).total for p in ("bf16", "int8"))
# A process may hold the mapped shards of one checkpoint, one int8 model, and what Python, torch
# and a pass take: measured, 3.1 GB. With the first model still there it would be 4.6 GB.
LIMIT = BF16 + INT8 + 1_000_000_000
# The limit counts addresses: what is freed inside the heap still counts, a mapping of its own not.
ALLOCATOR = {"MALLOC_ARENA_MAX": "2", "MALLOC_MMAP_THRESHOLD_": "1048576"}
SMALL = {
    "window": 32,
    "stride": 16,
    "windows": 3,
    "compared_windows": 1,
    "task_items": 3,
    "text_tokens": 3,
    "points": "[[1, 24], [1, 16], [2, 16]]",
    "decode_tokens": 2,
    "rounds": 1,
    "timed_items": 1,
    "more_models": "[]",
    "precisions": '["bf16", "int8"]',
}

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(sys.platform != "linux", reason="RLIMIT_DATA counts mappings on Linux"),
]


def limited() -> None:
    import resource

    resource.setrlimit(resource.RLIMIT_DATA, (LIMIT, LIMIT))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A model of 2 GB in shards of 200 MB, with the default model's tokenizer."""
    path = tmp_path_factory.mktemp("sharded") / "synthetic"
    save_synthetic(CONFIG, path, torch.bfloat16, shard_bytes=200_000_000)
    load_tokenizer("smollm2-135m").save_pretrained(path)
    return path


def test_the_notebook_runs_where_one_precision_fits_and_two_do_not(folder, tmp_path):
    assert len(list(folder.glob("*.safetensors"))) > 5
    parameters = [f"--param={name}={value}" for name, value in SMALL.items()]
    course = Course(ROOT)
    options = ["--only", "08", "--force", "--model", folder, "--out", tmp_path]
    done = subprocess.run(
        course.command("run", *options, *parameters),
        env=course.environment(OMP_NUM_THREADS="2", **ALLOCATOR),
        preexec_fn=limited,
        capture_output=True,
        text=True,
        timeout=1500,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    (file,) = tmp_path.rglob("08_fp16_vs_int8@synthetic-*.json")
    found = json.loads(file.read_text())["measurements"]
    assert found["weights.bf16.measured"]["value"] == BF16
    assert found["weights.int8.measured"]["value"] == INT8
    assert {"decode.bf16", "decode.int8", "perplexity.int8", "acc_norm.int8"} <= found.keys()


def test_under_the_same_limit_both_precisions_at_once_do_not_fit(folder):
    code = (
        "from llama_int8.models import load_model\n"
        f"held = [load_model({str(folder)!r}, p, 'cpu') for p in ('bf16', 'int8')]"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        env=Course(ROOT).environment(OMP_NUM_THREADS="2", PYTHONPATH=str(ROOT / "tools")),
        preexec_fn=limited,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode != 0
    assert "memory" in done.stderr


def rehearsed(folder, *options):
    """The script on a CPU; it limits its own process."""
    return subprocess.run(
        [sys.executable, str(ROOT / "tools" / "rehearse_t4.py"), "--device", "cpu", "--quick",
         "--folder", str(folder), *options],
        env=Course(ROOT).environment(OMP_NUM_THREADS="1"),
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )  # fmt: skip


@pytest.fixture(scope="module")
def tiny_folder(tmp_path_factory):
    """Several shards of a model of some kilobytes."""
    path = tmp_path_factory.mktemp("tiny") / "synthetic"
    return save_synthetic(TINY, path, torch.bfloat16, shard_bytes=20_000)


def test_the_script_measures_each_precision_and_checks_its_bytes(tiny_folder):
    assert len(list(tiny_folder.glob("*.safetensors"))) > 1
    done = rehearsed(tiny_folder)
    assert done.returncode == 0, done.stderr
    for precision in ("bf16", "int8"):
        assert f"{precision}: 0.00 GiB of weights as predicted" in done.stdout
    assert "both precisions at once: yes" in done.stdout
    assert "decode 2 x 16, tokens/s: bf16 " in done.stdout


def test_the_limit_adds_the_files_that_are_mapped_to_the_ram(tiny_folder, monkeypatch):
    """A mapped shard counts as data, and Colab's system could drop it."""
    import resource

    asked = []
    monkeypatch.setattr(resource, "setrlimit", lambda *given: asked.append(given))
    rehearse_t4.hold("cpu", 14.4, 1.5, tiny_folder)
    limit = 1_500_000_000 + sum(file.stat().st_size for file in tiny_folder.glob("*.safetensors"))
    assert asked == [(resource.RLIMIT_DATA, (limit, limit))] and limit > 1_500_000_000


def test_the_card_keeps_room_for_what_is_no_tensor():
    total = 14.75  # GiB that a T4 shows; context, cuBLAS and kernels take 0.2 to 0.4
    assert total - 0.4 <= rehearse_t4.parse([]).gpu_gib <= total - 0.2


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 172 MiB\nand more"),
        RuntimeError("unable to mmap 2 bytes from file: Cannot allocate memory (12)"),
    ],
)
def test_memory_that_ends_inside_pytorch_is_said_in_a_line(tiny_folder, monkeypatch, capsys, error):
    def rehearse(*_):
        raise error
        yield

    monkeypatch.setattr(rehearse_t4, "rehearse", rehearse)
    monkeypatch.setattr(rehearse_t4, "hold", lambda *_: None)
    assert rehearse_t4.main(["--device", "cpu", "--folder", str(tiny_folder)]) == 1
    said = capsys.readouterr().err
    assert said == f"error: {str(error).splitlines()[0]}\n"


def test_the_script_holds_itself_to_the_memory_that_it_was_given(tiny_folder):
    done = rehearsed(tiny_folder, "--ram-gb", "0.01")
    assert done.returncode == 1 and done.stderr.startswith("error: ")
    assert "memory" in done.stderr or "0.0 GiB are free" in done.stderr
