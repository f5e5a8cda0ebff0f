"""One door to every model: the registry, `load_model` and `load_tokenizer`."""

from llama_int8.errors import (
    GatedModelError,
    HubError,
    ModelError,
    ModelFilesError,
    NotEnoughMemoryError,
    PrecisionError,
    UnknownModelError,
)
from llama_int8.models.context import within_context
from llama_int8.models.hub import revision_of
from llama_int8.models.hugging_face import end_tokens
from llama_int8.models.int8_fast import save_int8_fast
from llama_int8.models.load import (
    HEADROOM,
    available_model,
    baseline_precision,
    check_cache,
    check_precision,
    default_device,
    explained_memory,
    free_memory,
    load_model,
    model_folder,
    no_gpu,
    placement,
)
from llama_int8.models.registry import (
    DEFAULT_MODEL,
    MODELS,
    SYNTHETIC,
    as_name,
    config_of,
    is_synthetic,
)
from llama_int8.models.synthetic import build_synthetic
from llama_int8.models.tokenizer import check_ids, load_tokenizer

__all__ = [
    "DEFAULT_MODEL",
    "HEADROOM",
    "MODELS",
    "SYNTHETIC",
    "GatedModelError",
    "HubError",
    "ModelError",
    "ModelFilesError",
    "NotEnoughMemoryError",
    "PrecisionError",
    "UnknownModelError",
    "as_name",
    "available_model",
    "baseline_precision",
    "build_synthetic",
    "check_cache",
    "check_ids",
    "check_precision",
    "config_of",
    "default_device",
    "end_tokens",
    "explained_memory",
    "free_memory",
    "is_synthetic",
    "load_model",
    "load_tokenizer",
    "model_folder",
    "no_gpu",
    "placement",
    "revision_of",
    "save_int8_fast",
    "within_context",
]
