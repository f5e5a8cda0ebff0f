"""The files that a model's name stands for on this machine, found without fetching anything."""

from pathlib import Path

from llama_int8.files import content_hash
from llama_int8.models.embedded import embedded_place
from llama_int8.models.hub import cached_folder
from llama_int8.models.registry import DEFAULT_MODEL, MODELS, is_synthetic


def is_folder(name: str) -> bool:
    """Whether a model's name is the path of a folder: every name that the course does not know.

    A folder that is called like a registered model goes by its path, such as "./llama-7b".
    """
    return name not in MODELS and not is_synthetic(name)


def local_folder(name: str) -> Path | None:
    """The folder with the model's files, if they are here; a synthetic model has none."""
    if name == DEFAULT_MODEL:
        folder = embedded_place()
    elif name in MODELS:
        return cached_folder(MODELS[name])
    else:
        folder = Path(name).expanduser()
    return folder if folder.is_dir() else None


def model_hash(name: str) -> str | None:
    """`content_hash` of the model's files; None where they are not here."""
    folder = local_folder(name)
    return content_hash(folder) if folder else None
