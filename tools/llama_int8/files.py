"""Files on disk: the cache, JSON, and the check that a model folder is whole."""

import codecs
import json
import os
import shutil
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

from llama_int8.errors import ModelFilesError


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


def read_json_object(path: Path) -> dict[str, Any]:
    """The object in a JSON file that came with a model. Raises ModelFilesError for anything else."""
    try:
        # Some editors put a byte-order mark in front, which is no part of JSON.
        content = json.loads(path.read_text(encoding="utf-8-sig"))
        if not isinstance(content, dict):
            raise ValueError("it holds no JSON object")
    except ValueError as error:
        raise ModelFilesError(
            f"{path} is damaged ({error}); delete it and fetch the model again"
        ) from None
    return content


def check_weights(folder: Path) -> None:
    """Raise ModelFilesError unless every safetensors file that `folder` needs is there and whole.

    Reads headers alone: safetensors refuses a file that is not as long as its header says.
    """
    from safetensors import SafetensorError, safe_open

    for name in weight_files(folder):
        path = folder / name
        if not path.exists():
            raise ModelFilesError(
                f"{path} is missing. The course loads safetensors only; if a download broke off, "
                "run it again: finished files are kept"
            )
        try:
            with safe_open(path, framework="numpy"):
                pass
        except (SafetensorError, OSError) as error:
            size = path.stat().st_size
            raise ModelFilesError(
                f"{path} ({size:,} bytes) was cut off or damaged ({error}). "
                "Delete it and fetch the model again"
            ) from None


def weight_files(folder: Path) -> list[str]:
    """Names of the safetensors files that `folder` must hold, by its index if there is one."""
    index = folder / "model.safetensors.index.json"
    if (folder / "model.safetensors").exists() or not index.exists():
        return ["model.safetensors"]
    if index.read_bytes()[:3] == codecs.BOM_UTF8:  # transformers would fail at it
        raise ModelFilesError(
            f"{index} begins with a byte-order mark, which no JSON file may have; save it as UTF-8 "
            "without one, or fetch it again"
        )
    try:
        content = json.loads(index.read_text(encoding="utf-8"))
        names = {str(name) for name in content["weight_map"].values()}
        if not names or not isinstance(content["metadata"], dict):
            raise ValueError
    except (ValueError, KeyError, TypeError, AttributeError):
        raise ModelFilesError(f"{index} is damaged; delete it and fetch the model again") from None
    return sorted(names)
