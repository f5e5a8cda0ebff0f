"""Transformers' objects around a folder's weights, made only of what the course reads.

A config.json and a generation_config.json can switch on dropout, another attention, sampling,
penalties, watermarks. None of that is the model: its shapes and its tokens are.
"""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from llama_int8.errors import ModelFilesError
from llama_int8.files import read_json_object
from llama_int8.transformer.config import LlamaConfig

if TYPE_CHECKING:
    import torch
    from transformers import GenerationConfig
    from transformers import LlamaConfig as HuggingFaceConfig

TOKENS = ("bos_token_id", "eos_token_id", "pad_token_id")


def hugging_face_config(
    config: LlamaConfig, tokens: dict[str, Any] | None = None
) -> "HuggingFaceConfig":
    """Transformers' config with these shapes, and defaults for everything else.

    `tokens`: ids by transformers' names. Raises ValueError where transformers refuses the shapes.
    """
    from transformers import LlamaConfig as HuggingFaceConfig

    try:
        return HuggingFaceConfig(**config.to_hugging_face(), **(tokens or {}))
    except Exception as error:  # its checks raise kinds of their own
        raise ValueError(f"transformers refuses these shapes: {_reason(error)}") from None


def empty_model(config: LlamaConfig, tokens: dict[str, Any] | None = None) -> "torch.nn.Module":
    """Hugging Face's model of these shapes without memory for its weights (`meta` device)."""
    import torch
    from transformers import LlamaForCausalLM

    described = hugging_face_config(config, tokens)
    try:
        with torch.device("meta"):
            return LlamaForCausalLM(described).eval()
    except (KeyError, TypeError, ValueError, ArithmeticError) as error:
        raise ValueError(
            f"transformers cannot build it with rope_scaling {config.rope_scaling}: "
            f"{_reason(error)}"
        ) from None


def _reason(error: Exception) -> str:
    """The last line: before it, transformers' checks tell where in its own code they are."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1] if lines else type(error).__name__


def token_ids(folder: Path, vocab_size: int) -> dict[str, Any]:
    """Start, end and padding tokens of a folder, as keyword arguments of transformers' configs.

    From generation_config.json first, which is newer and names all ends of a chat model, then from
    config.json. Padding outside the vocabulary is left out (old conversions say -1).
    """
    files = (folder / "generation_config.json", folder / "config.json")
    said = [read_json_object(path) for path in files if path.exists()]
    found = {}
    for name in TOKENS:
        values = [content[name] for content in said if name in content]
        if values:  # else transformers' default, which is LLaMA's
            found[name] = next((value for value in values if value not in (None, [])), None)
    for name, value in found.items():
        if not _are_ids(value):
            raise ModelFilesError(
                f"{name} in {folder} is {value!r}; it must be a token id, a list of them, or null"
            )
    padding = found.get("pad_token_id")
    if isinstance(padding, list) or (padding is not None and not 0 <= padding < vocab_size):
        found["pad_token_id"] = None
    return found


def _are_ids(value: Any) -> bool:
    several = value if isinstance(value, list) else [value]
    return value is None or all(type(one) is int for one in several)


def plain_generation(model: "torch.nn.Module") -> "GenerationConfig":
    """Greedy settings for `model.generate`: the model's tokens, and nothing else."""
    from transformers import GenerationConfig

    return GenerationConfig(**{name: _token(model, name) for name in TOKENS})


def end_tokens(model: "torch.nn.Module") -> set[int]:
    """Ids that end an answer: the generation settings' if they have any, else the config's."""
    found = _token(model, "eos_token_id")
    return set(found) if isinstance(found, list) else {found} - {None}


def _token(model: "torch.nn.Module", name: str) -> int | list[int] | None:
    found = (getattr(settings, name, None) for settings in (model.generation_config, model.config))
    return next((value for value in found if value not in (None, [])), None)
