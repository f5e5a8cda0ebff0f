"""Files on disk: the cache, JSON, what a model folder holds, and the check that it is whole."""

import codecs
import contextlib
import hashlib
import json
import os
import shutil
import uuid
from collections.abc import Callable, Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any, BinaryIO

from llama_int8.errors import ModelFilesError

# The files that determine a model's numbers; a README beside them does not count.
MODEL_FILES = (
    "*.safetensors",
    "*.safetensors.index.json",
    "*.pth",
    "config.json",
    "generation_config.json",
    "params.json",
    "tokenizer*",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.*",
    "merges.txt",
    "chat_template*",
    "additional_chat_templates/*",
)
WHOLE_BYTES = 4 * 2**30  # files up to this size are hashed whole: a changed row must be seen
SAMPLES, SAMPLE_BYTES = 64, 4096
# The folders that a score follows from: figures, tables and meters change none.
SCORING = ("evaluation", "models", "quantization", "transformer", "data")
END_BYTES = 2**16  # PyTorch's archives end in a list of every tensor's checksum


def cache_folder() -> Path:
    """Where converted models are kept: $LLAMA_INT8_CACHE, else `~/.cache/llama_int8`."""
    configured = os.environ.get("LLAMA_INT8_CACHE")
    return Path(configured) if configured else Path.home() / ".cache" / "llama_int8"


def write_atomic(path: Path, content: str | bytes) -> None:
    """Write under a temporary name, then rename: a reader never meets half a file."""
    write_all({path: content})


def write_all(contents: Mapping[Path, str | bytes]) -> None:
    """Write all files, text as UTF-8, or none. A reader never meets half a file.

    All are complete under temporary names before the first one is renamed. If a later one cannot
    be renamed, the earlier ones are put back.
    """
    replaced: dict[Path, bytes | None] = {}
    try:
        for path, content in contents.items():
            path.parent.mkdir(parents=True, exist_ok=True)
            data = content.encode() if isinstance(content, str) else content
            _temporary(path).write_bytes(data)
            if path.exists():
                shutil.copymode(path, _temporary(path))
        for path in contents:
            before = path.read_bytes() if path.exists() else None
            _temporary(path).replace(path)
            replaced[path] = before
    except BaseException:
        for path, before in replaced.items():
            path.unlink() if before is None else path.write_bytes(before)
        raise
    finally:
        for path in contents:
            with contextlib.suppress(OSError):
                _temporary(path).unlink()


def _temporary(path: Path) -> Path:
    return path.with_name(f".{path.name}.{os.getpid()}")


def read_yaml(path: Path) -> Any:
    """The content of one of the course's YAML files, by libyaml where it is there: ten times faster."""
    import yaml  # `sync` uses this module before any package is installed

    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    return yaml.load(path.read_text(encoding="utf-8"), Loader=loader)


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
    except (ValueError, RecursionError) as error:
        raise ModelFilesError(
            f"{path} is damaged ({error}); delete it and fetch the model again"
        ) from None
    return content


def check_weights(folder: Path) -> None:
    """Raise ModelFilesError unless every safetensors file that `folder` needs is there and whole.

    Reads only headers: safetensors refuses a file that is not as long as its header says.
    """
    from safetensors import SafetensorError, safe_open

    for name in weight_files(folder):
        path = folder / name
        if not path.exists():
            others = sorted(other.name for other in folder.glob("*.safetensors"))
            raise ModelFilesError(
                f"{path} is missing. "
                + (
                    f"There is {others[0]}: rename it to model.safetensors, or add the "
                    "model.safetensors.index.json that belongs to several files"
                    if others and name == "model.safetensors"
                    else "The course loads safetensors only; if a download broke off, run it again: "
                    "finished files are kept"
                )
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
    elsewhere = sorted(name for name in names if Path(name).name != name or "\\" in name)
    if elsewhere:
        raise ModelFilesError(
            f"{index} names {elsewhere[0]}, which is not in the model's own folder: move the weights "
            "beside the index, and give their names without a folder"
        )
    return sorted(names)


def content_hash(folder: Path) -> str | None:
    """A hash of a model folder's content, None where no file of a model is in it.

    Of weights, configuration, tokenizer and chat template: equal for a copy under any name, another
    one where a file was changed. A file is read once as long as it stays as it is.
    """
    files = {path for pattern in MODEL_FILES for path in folder.glob(pattern) if path.is_file()}
    named = {path.relative_to(folder).as_posix(): file_hash(path) for path in files}
    if not named:
        return None
    return hashlib.sha256(json.dumps(named, sort_keys=True).encode()).hexdigest()


def sha256(path: Path) -> str:
    """SHA-256 of a whole file, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def file_hash(path: Path) -> str:
    """SHA-256 of a file; of one above 4 GiB its size and samples of it.

    The samples are both ends, places spread evenly, and the middle of every tensor of a safetensors
    file: a merged adapter may have changed one kind of layer only. There, an edit of a few rows in
    place can go unseen.
    """
    found = path.stat()
    return _file_hash(path, found.st_size, found.st_mtime_ns, found.st_ino)


@cache
def _file_hash(path: Path, size: int, _changed: int, _node: int) -> str:
    digest = hashlib.sha256(str(size).encode())
    with path.open("rb") as file:
        if size <= WHOLE_BYTES:
            while piece := file.read(2**22):
                digest.update(piece)
            return digest.hexdigest()
        ends = [(0, END_BYTES), (size - END_BYTES, END_BYTES)]
        even = [(size * n // SAMPLES, SAMPLE_BYTES) for n in range(1, SAMPLES)]
        tensors = _tensor_middles(file, size) if path.suffix == ".safetensors" else ()
        for place, length in (*ends, *even, *tensors):
            file.seek(place)
            digest.update(file.read(length))
    return digest.hexdigest()


def _tensor_middles(file: BinaryIO, size: int) -> Iterator[tuple[int, int]]:
    """(place, length) of a sample from each tensor; none where the header cannot be read."""
    length = int.from_bytes(file.read(8), "little")
    if length > size:
        return
    with contextlib.suppress(ValueError, AttributeError, TypeError, KeyError):
        header = json.loads(file.read(length))
        header.pop("__metadata__", None)
        for entry in header.values():
            begin, end = entry["data_offsets"]
            yield max(0, 8 + length + (begin + end - SAMPLE_BYTES) // 2), SAMPLE_BYTES


@cache
def package_hash(lesson: str | None = None, layers: tuple[str, ...] | None = None) -> str:
    """SHA-256 over the package's files: a number follows from the code, too.

    `lesson`, such as "n06": what only other lessons use is left out, since no lesson imports another.
    `layers`, such as SCORING: only these folders.
    """
    digest, package = hashlib.sha256(), Path(__file__).parent
    for path in sorted(package.rglob("*")):
        if path.suffix in (".py", ".yaml", ".txt", ".jsonl", ".cpp"):
            name = path.relative_to(package).as_posix()
            elsewhere = layers is not None and name.partition("/")[0] not in layers
            if not elsewhere and (lesson is None or not _of_another_lesson(name, lesson)):
                digest.update(name.encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()


def _of_another_lesson(name: str, lesson: str) -> bool:
    """Whether a file of the package belongs to another lesson; their topics belong to all."""
    folder, _, rest = name.removeprefix("lessons/").partition("/")
    return name.startswith("lessons/") and bool(rest) and folder != lesson and rest != "__init__.py"
