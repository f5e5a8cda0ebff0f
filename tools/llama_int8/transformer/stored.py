"""The content of a model's folder, from its config and the headers of its files, before it is read.

The course quantizes by itself, so it starts from floating-point weights. A folder that is
already quantized would be measured as something that it is not.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llama_int8.dtypes import FORMATS
from llama_int8.errors import ModelFilesError
from llama_int8.files import weight_files

OWN_METHOD = "llama-int8-fast"
"""`quant_method` of the folders that `save_int8_fast` writes."""

# Where the tools that quantize leave their settings in a config.
QUANTIZED_KEYS = (
    "quantization_config",
    "compression_config",
    "quantization",
    "quantization_args",
    "quantize_config",
    "quant_config",
    "quant_method",
    "quant_algo",
)
METHOD_KEYS = ("quant_method", "quant_algo", "quant_library", "quant_type", "method", "format")
# What stands at the end of a tensor's name, by the method that adds it.
QUANTIZED_NAMES = {
    ".qweight": "GPTQ or AWQ",
    ".qzeros": "GPTQ or AWQ",
    ".g_idx": "GPTQ",
    ".SCB": "bitsandbytes in 8 bits",
    ".weight_format": "bitsandbytes in 8 bits",
    ".absmax": "bitsandbytes in 4 bits",
    ".quant_map": "bitsandbytes in 4 bits",
    ".W_q": "HQQ",
    ".weight_packed": "compressed-tensors",
    ".weight_scale_inv": "FP8 in blocks",
    ".weight_scale": "FP8 or compressed-tensors",
    ".scales": "integer codes with scales",
}
FLOATING = [one.safetensors for one in FORMATS.values()]
EMBEDDING, OUTPUT = "model.embed_tokens.weight", "lm_head.weight"
# Computed from the config, yet stored in some files.
COMPUTED = ("rope.freqs", "rotary_emb.inv_freq")
WAY_OUT = "use the 16-bit model that it was made from"


@dataclass(frozen=True)
class Stored:
    """A tensor by its header: safetensors' name of its dtype, and its shape."""

    dtype: str
    shape: tuple[int, ...]


def is_own_format(config: Mapping[str, Any]) -> bool:
    """Whether a `config.json` describes a folder that `save_int8_fast` wrote."""
    found = config.get("quantization_config")
    return isinstance(found, dict) and found.get("quant_method") == OWN_METHOD


def check_not_quantized(folder: Path, config: Mapping[str, Any]) -> None:
    """Raise ModelFilesError where a config says that the weights are quantized, with the method.

    The course's own format passes.
    """
    if is_own_format(config):
        return
    found = next(_quantization(config), None)
    if found is not None:
        raise ModelFilesError(
            f"{folder} is quantized already ({found}). The course quantizes by itself, from "
            f"floating-point weights: {WAY_OUT}"
        )


def _quantization(config: Mapping[str, Any]) -> Iterator[str]:
    """The values of all quantization settings, however deep they lie."""
    for key, value in config.items():
        if key in QUANTIZED_KEYS:
            if value:  # null and {} say that there is none
                yield _method(key, value)
        elif isinstance(value, dict):
            yield from _quantization(value)


def _method(key: str, settings: Any) -> str:
    """The method and its bits, where the settings say them; else where they were found."""
    if not isinstance(settings, dict):
        return f"{key}: {settings}"
    method = next((str(settings[k]) for k in METHOD_KEYS if settings.get(k)), None)
    bits = settings.get("bits") or settings.get("w_bit") or settings.get("nbits")
    for flag, width in (("load_in_8bit", 8), ("load_in_4bit", 4)):
        if settings.get(flag):
            method, bits = method or "bitsandbytes", width
    if method is None:
        return f"its config has {key!r}"
    return f"{method}, {bits} bits" if bits else method


def stored_tensors(folder: Path) -> dict[str, Stored]:
    """Every tensor of a Hugging Face folder by its name, read only from the headers."""
    from safetensors import safe_open

    found: dict[str, Stored] = {}
    home: dict[str, str] = {}
    for name in weight_files(folder):
        with safe_open(folder / name, framework="numpy") as file:
            for key in file.keys():  # noqa: SIM118 - it is not a dictionary
                if home.setdefault(key, name) != name:
                    raise ModelFilesError(
                        f"{key} stands in {home[key]} and in {name} of {folder}: one of them is left "
                        "over from another save. Delete the weights and save or fetch them again"
                    )
                piece = file.get_slice(key)
                found[key] = Stored(piece.get_dtype(), tuple(piece.get_shape()))
    return found


def check_floating(folder: Path, dtypes: Mapping[str, str]) -> None:
    """Raise ModelFilesError for codes, which mean nothing without their quantizer, and for scales.

    `dtypes`: safetensors' name of the dtype of each tensor. Floating point of 16 bits or more passes.
    """
    names = sorted(name for name in dtypes if not name.endswith(COMPUTED))
    guesses = {
        name: m for name in names for end, m in QUANTIZED_NAMES.items() if name.endswith(end)
    }
    codes = [name for name in names if dtypes[name] not in FLOATING]
    for name in [*codes, *guesses]:
        guess = guesses.get(name) or next(iter(guesses.values()), None)
        raise ModelFilesError(
            f"the weights in {folder} are quantized already{f' ({guess})' if guess else ''}: "
            f"{name} is {dtypes[name]}. The course quantizes by itself, from floating-point weights "
            f"of 16 bits or more: {WAY_OUT}"
        )


def without_computed(tensors: Mapping[str, Any]) -> dict[str, Any]:
    """All but the rotary frequencies, which are computed from the config."""
    return {name: tensor for name, tensor in tensors.items() if not name.endswith(COMPUTED)}


def holds_two_tables(folder: Path) -> bool:
    """Whether a folder stores an output layer of its own, other than its embedding.

    False where one of them is missing or a file cannot be read: loading says that.
    """
    from safetensors import SafetensorError, safe_open

    try:
        files = {
            key: folder / name
            for name in weight_files(folder)
            for key in safe_open(folder / name, framework="pt").keys()  # noqa: SIM118
            if key in (EMBEDDING, OUTPUT)
        }
        if len(files) < 2:
            return False
        with (
            safe_open(files[EMBEDDING], framework="pt") as first,
            safe_open(files[OUTPUT], framework="pt") as second,
        ):
            return not _equal(first.get_slice(EMBEDDING), second.get_slice(OUTPUT))
    except (SafetensorError, OSError, ModelFilesError):
        return False


def _equal(one: Any, other: Any, rows: int = 4096) -> bool:
    """Whether two stored tables hold the same numbers, some rows at a time."""
    import torch

    if one.get_shape() != other.get_shape():
        return False
    starts = range(0, one.get_shape()[0], rows)
    return all(
        torch.equal(one[start : start + rows].float(), other[start : start + rows].float())
        for start in starts
    )
