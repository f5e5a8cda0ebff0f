"""Files on disk: the cache, and the check that a model folder is whole."""

import json
import os
import shutil
import uuid
from collections.abc import Callable
from pathlib import Path

from llama_int8.models.errors import ModelFilesError


def cache_folder() -> Path:
    """Where converted models are kept: $LLAMA_INT8_CACHE, else `~/.cache/llama_int8`."""
    configured = os.environ.get("LLAMA_INT8_CACHE")
    return Path(configured) if configured else Path.home() / ".cache" / "llama_int8"


def build_once(folder: Path, build: Callable[[Path], None]) -> Path:
    """Return `folder`, filled by `build(unfinished)` if it is not there yet.

    The unfinished folder is renamed when it is complete, so neither a kill nor a second process
    can leave half a folder under the final name.
    """
    if folder.is_dir():
        return folder
    unfinished = folder.with_name(f"{folder.name}.unfinished-{uuid.uuid4().hex[:8]}")
    unfinished.mkdir(parents=True)
    try:
        build(unfinished)
        try:
            unfinished.rename(folder)
        except OSError:
            if not folder.is_dir():  # else another process was first: its folder is as good
                raise
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)
    return folder


def check_weights(folder: Path) -> None:
    """Raise ModelFilesError unless every safetensors file that `folder` needs is there and whole.

    Reads headers alone: a file must be exactly as long as its header says (format: 8 bytes of
    header length, JSON header with `data_offsets`, data).
    """
    index = folder / "model.safetensors.index.json"
    if index.exists():
        try:
            names = sorted(
                set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values())
            )
        except (ValueError, KeyError, AttributeError):
            raise ModelFilesError(
                f"{index} is damaged; delete it and fetch the model again"
            ) from None
    else:
        names = ["model.safetensors"]
    for name in names:
        path = folder / name
        if not path.exists():
            raise ModelFilesError(
                f"{path} is missing. The course loads safetensors only; if a download broke off, "
                "run it again: it goes on where it stopped"
            )
        expected, actual = _expected_length(path), path.stat().st_size
        if expected != actual:
            raise ModelFilesError(
                f"{path} holds {actual:,} bytes where its header announces {expected:,}: it was cut "
                "off or damaged. Delete it and fetch the model again"
            )


def _expected_length(path: Path) -> int:
    with path.open("rb") as file:
        start = file.read(8)
        length = int.from_bytes(start, "little")
        try:
            if len(start) < 8 or length > path.stat().st_size:
                raise ValueError
            header = json.loads(file.read(length))
            ends = [v["data_offsets"][1] for k, v in header.items() if k != "__metadata__"]
        except (ValueError, KeyError, TypeError, AttributeError):
            raise ModelFilesError(
                f"{path} has no readable safetensors header: it was cut off or damaged. "
                "Delete it and fetch the model again"
            ) from None
    return 8 + length + max(ends, default=0)
