"""The models that the course knows: where each comes from, its licence, its shapes.

Shapes are those of each model's own `config.json`; tests hold the parameter counts that follow
from them against the published ones.
"""

import re
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path

from llama_int8.errors import UnknownModelError
from llama_int8.folders import check_model_folder, explain_file, explain_missing
from llama_int8.names import letters
from llama_int8.transformer.config import LlamaConfig, read_config

DEFAULT_MODEL = "smollm2-135m"
# Where its weights are from; the course fetches them from the package index.
DEFAULT_REPOSITORY = "HuggingFaceTB/SmolLM2-135M-Instruct"
SYNTHETIC = "synthetic:"


@dataclass(frozen=True)
class HubSource:
    """A repository on the Hugging Face hub.

    `revision`: a commit that public code names as one that the hub served for this repository (as a
    pin, or in the path of a cache); None where we know of none to pin.
    """

    repository: str
    gated: bool = False
    revision: str | None = None


@dataclass(frozen=True)
class ModelSpec:
    """One registered model. `sources` are tried in order; none means the package index."""

    name: str
    config: LlamaConfig
    licence: str
    sources: tuple[HubSource, ...] = ()

    @property
    def gated(self) -> bool:
        """True where no ungated source is known."""
        return bool(self.sources) and all(source.gated for source in self.sources)


def _llama3_rope(factor: float) -> dict[str, float | int | str]:
    return {
        "rope_type": "llama3",
        "factor": factor,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
    }


_SPECS = [
    ModelSpec(
        DEFAULT_MODEL,
        LlamaConfig(
            vocab_size=49152,
            hidden_size=576,
            intermediate_size=1536,
            num_hidden_layers=30,
            num_attention_heads=9,
            num_key_value_heads=3,
            head_dim=64,
            max_position_embeddings=8192,
            rms_norm_eps=1e-5,
            rope_theta=100_000.0,
            tie_word_embeddings=True,
        ),
        "Apache-2.0",
    ),
    ModelSpec(
        "tinyllama-1.1b",
        LlamaConfig(
            vocab_size=32000,
            hidden_size=2048,
            intermediate_size=5632,
            num_hidden_layers=22,
            num_attention_heads=32,
            num_key_value_heads=4,
            head_dim=64,
            max_position_embeddings=2048,
        ),
        "Apache-2.0",
        (
            HubSource(
                "TinyLlama/TinyLlama-1.1B-Chat-v1.0",
                revision="fe8a4ea1ffedaf415f4da2f062534de366a451e6",
            ),
        ),
    ),
    ModelSpec(
        "llama-3.2-1b",
        LlamaConfig(
            vocab_size=128256,
            hidden_size=2048,
            intermediate_size=8192,
            num_hidden_layers=16,
            num_attention_heads=32,
            num_key_value_heads=8,
            head_dim=64,
            max_position_embeddings=131072,
            rms_norm_eps=1e-5,
            rope_theta=500_000.0,
            rope_scaling=_llama3_rope(32.0),
            tie_word_embeddings=True,
        ),
        "Llama 3.2 Community License",
        (
            HubSource("unsloth/Llama-3.2-1B", False, "9535bd9b1d1dea6acafbdc4813b728796aeb28da"),
            HubSource("meta-llama/Llama-3.2-1B", True, "4e20de362430cd3b72f300e6b0f18e50e7166e08"),
        ),
    ),
    ModelSpec(
        "llama-3.2-3b",
        LlamaConfig(
            vocab_size=128256,
            hidden_size=3072,
            intermediate_size=8192,
            num_hidden_layers=28,
            num_attention_heads=24,
            num_key_value_heads=8,
            head_dim=128,
            max_position_embeddings=131072,
            rms_norm_eps=1e-5,
            rope_theta=500_000.0,
            rope_scaling=_llama3_rope(32.0),
            tie_word_embeddings=True,
        ),
        "Llama 3.2 Community License",
        (
            HubSource("unsloth/Llama-3.2-3B", False, "d4446454d87d51aa42e1fb174f25acc5f8762331"),
            HubSource("meta-llama/Llama-3.2-3B", True, "13afe5124825b4f3751f836b40dafda64c1ed062"),
        ),
    ),
    ModelSpec(
        "llama-3.1-8b",
        LlamaConfig(
            vocab_size=128256,
            hidden_size=4096,
            intermediate_size=14336,
            num_hidden_layers=32,
            num_attention_heads=32,
            num_key_value_heads=8,
            head_dim=128,
            max_position_embeddings=131072,
            rms_norm_eps=1e-5,
            rope_theta=500_000.0,
            rope_scaling=_llama3_rope(8.0),
        ),
        "Llama 3.1 Community License",
        (
            HubSource("unsloth/Meta-Llama-3.1-8B"),
            HubSource("meta-llama/Llama-3.1-8B", True, "d04e592bb4f6aa9cfee91e2e20afa771667e1d4b"),
        ),
    ),
    ModelSpec(
        "llama-2-7b-chat",
        LlamaConfig(
            vocab_size=32000,
            hidden_size=4096,
            intermediate_size=11008,
            num_hidden_layers=32,
            num_attention_heads=32,
            num_key_value_heads=32,
            head_dim=128,
            max_position_embeddings=4096,
        ),
        "Llama 2 Community License",
        (
            HubSource(
                "NousResearch/Llama-2-7b-chat-hf",
                revision="351844e75ed0bcbbe3f10671b3c808d2b83894ee",
            ),
            HubSource(
                "meta-llama/Llama-2-7b-chat-hf",
                gated=True,
                revision="f5db02db724555f92da89c216ac04704f23d4590",
            ),
        ),
    ),
    ModelSpec(
        "llama-2-13b-chat",
        LlamaConfig(
            vocab_size=32000,
            hidden_size=5120,
            intermediate_size=13824,
            num_hidden_layers=40,
            num_attention_heads=40,
            num_key_value_heads=40,
            head_dim=128,
            max_position_embeddings=4096,
        ),
        "Llama 2 Community License",
        (
            HubSource("NousResearch/Llama-2-13b-chat-hf"),
            HubSource("meta-llama/Llama-2-13b-chat-hf", gated=True),
        ),
    ),
    ModelSpec(
        "llama-3.1-70b",
        LlamaConfig(
            vocab_size=128256,
            hidden_size=8192,
            intermediate_size=28672,
            num_hidden_layers=80,
            num_attention_heads=64,
            num_key_value_heads=8,
            head_dim=128,
            max_position_embeddings=131072,
            rms_norm_eps=1e-5,
            rope_theta=500_000.0,
            rope_scaling=_llama3_rope(8.0),
        ),
        "Llama 3.1 Community License",
        (
            HubSource("unsloth/Meta-Llama-3.1-70B"),
            HubSource("meta-llama/Llama-3.1-70B", gated=True),
        ),
    ),
    ModelSpec(
        "llama-7b",
        LlamaConfig(
            vocab_size=32000,
            hidden_size=4096,
            intermediate_size=11008,
            num_hidden_layers=32,
            num_attention_heads=32,
            num_key_value_heads=32,
            head_dim=128,
            max_position_embeddings=2048,
            rms_norm_eps=1e-6,
        ),
        "LLaMA licence (non-commercial)",
        (HubSource("huggyllama/llama-7b"),),
    ),
]
MODELS: dict[str, ModelSpec] = {spec.name: spec for spec in _SPECS}


def as_name(name_or_folder: str | Path) -> str:
    """A model's name or its folder as text. A Path is always a folder, whatever it is called."""
    name = str(name_or_folder)
    known = name in MODELS or is_synthetic(name)
    return str(Path(name).absolute()) if known and isinstance(name_or_folder, Path) else name


def is_synthetic(name: str) -> bool:
    """Whether a name stands for a registered model's shapes with random weights."""
    return name.startswith(SYNTHETIC) and name.removeprefix(SYNTHETIC) in MODELS


def config_of(name_or_folder: str | Path) -> LlamaConfig:
    """The shapes of a registered model, of `synthetic:<registered>`, or of a Hugging Face folder."""
    name = as_name(name_or_folder)
    if is_synthetic(name):
        name = name.removeprefix(SYNTHETIC)
    if name in MODELS:
        return MODELS[name].config
    return read_config(existing_folder(name_or_folder))


def existing_folder(name_or_folder: str | Path) -> Path:
    """The path, if it is a model's folder in Hugging Face's format.

    Raises UnknownModelError, with what was probably meant, where it is not a folder, and
    ModelFilesError where the folder is of another kind.
    """
    name = str(name_or_folder)
    try:
        folder = Path(name_or_folder).expanduser()
        is_folder = folder.is_dir()
    except (RuntimeError, OSError) as error:  # "~nobody", a name of a thousand letters
        raise UnknownModelError(f"{name!r} is no model ({error}). {_registered()}") from None
    if not name.strip():
        raise UnknownModelError(f"{name!r} is no model. {_registered()}")
    if is_folder:
        check_model_folder(folder)
        return folder
    if folder.exists() or folder.suffix.lower() == ".gguf":
        raise UnknownModelError(explain_file(folder))
    if folder.is_symlink() or _is_path(name):
        raise UnknownModelError(explain_missing(folder))
    meant = _meant(name)
    near = f"; did you mean {' or '.join(meant)}?" if meant else "."
    raise UnknownModelError(
        f"{name!r} is neither a registered model nor a folder{near}{_from_the_hub(name)} {_registered()}"
    )


def _from_the_hub(name: str) -> str:
    """How to get another repository of the hub."""
    if not re.fullmatch(r"[\w.-]+/[\w.-]+", name) or letters(name.partition("/")[2]) in _names():
        return ""
    return f" Another model of the hub: `hf download {name} --local-dir FOLDER`, then give FOLDER."


def _registered() -> str:
    return (
        f"Registered: {', '.join(MODELS)}; or {SYNTHETIC}<one of these> for its shapes with random "
        "weights"
    )


def _is_path(name: str) -> bool:
    """Whether somebody meant a place on the disk, not the name of a model."""
    if name.startswith((".", "~", "/", "\\")) or "\\" in name or Path(name).is_absolute():
        return True
    first, *rest = Path(name).parts
    address = name.lower().startswith(("http:", "https:", "huggingface.co", "hf.co"))
    return bool(rest) and not address and (len(rest) > 1 or Path(first).is_dir())


def _meant(name: str) -> list[str]:
    """Registered models that a name may stand for: by their names, or by their addresses."""
    prefix = SYNTHETIC if name.lower().startswith(SYNTHETIC) else ""
    wanted = re.sub(r"^(https?://)?(www\.)?(huggingface\.co|hf\.co)/", "", name[len(prefix) :])
    wanted = letters(wanted.strip(" /").rpartition("/")[2])
    names = _names()
    if wanted in names:
        found = [names[wanted]]
    else:
        begin = [one for one in names if wanted and one.startswith(wanted)]
        begin += [one for one in names if wanted.startswith(one)]
        near = get_close_matches(wanted, names, n=1, cutoff=0.75)
        found = [names[one] for one in begin or near]
    return [prefix + one for one in dict.fromkeys(found)][:3]


def _names() -> dict[str, str]:
    """Registered names by their letters, and by those of their repositories without the owner."""
    found = {letters(DEFAULT_REPOSITORY.partition("/")[2]): DEFAULT_MODEL}
    for spec in MODELS.values():
        repositories = [source.repository.partition("/")[2] for source in spec.sources]
        found |= {letters(one): spec.name for one in (spec.name, *repositories)}
    return found
