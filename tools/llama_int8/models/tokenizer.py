"""`load_tokenizer`: a folder's tokenizer, without the habits that would change a measurement."""

import codecs
import json
import shutil
import tempfile
from collections.abc import Iterable
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from llama_int8.errors import ModelError, ModelFilesError, in_short
from llama_int8.files import read_json_object
from llama_int8.models.load import model_folder, quiet_libraries
from llama_int8.models.registry import SYNTHETIC, as_name, is_synthetic
from llama_int8.transformer.tokenizer import holds_ranks

FILES = ("tokenizer.json", "tokenizer.model")

if TYPE_CHECKING:
    from tokenizers import Tokenizer
    from tokenizers.processors import PostProcessor
    from transformers import LlamaConfig, PreTrainedTokenizerBase


def load_tokenizer(name_or_folder: str | Path) -> "PreTrainedTokenizerBase":
    """Load the tokenizer that belongs to a registered model or lies in a folder.

    What it puts before a text is the model's own form and stays. Nothing comes after a text, nothing
    is cut off or filled up, and decoding gives back every space: see `_without_habits`.
    """
    name_or_folder = as_name(name_or_folder)
    if is_synthetic(name_or_folder):
        raise ModelError(
            f"{name_or_folder} has random weights and no tokenizer: give it token ids, or take the "
            f"tokenizer of {name_or_folder.removeprefix(SYNTHETIC)}"
        )
    quiet_libraries()
    folder = model_folder(name_or_folder)
    if not any((folder / name).exists() for name in FILES):
        raise ModelFilesError(
            f"{folder} has no tokenizer ({' or '.join(FILES)}); copy the tokenizer's files there from "
            "the model that this one comes from"
        )
    _check_packages(folder)
    try:
        tokenizer = _read(folder)
        if not tokenizer.is_fast:
            raise ValueError(f"{type(tokenizer).__name__} does not say where its tokens are")
        return _without_habits(tokenizer)
    except Exception as error:  # a damaged file surfaces as almost any kind
        raise ModelFilesError(
            f"the tokenizer in {folder} cannot be read ({in_short(error)}); "
            "fetch it again, or load the tokenizer of the model that this one comes from"
        ) from error


def check_ids(tokenizer: "PreTrainedTokenizerBase", ids: Iterable[int], vocab_size: int) -> None:
    """Raise ModelFilesError for a token that the model has no row for in its embedding.

    A tokenizer may know more tokens than the model, as long as no text has them.
    """
    wrong = sorted(token for token in set(ids) if not 0 <= token < vocab_size)
    if wrong:
        raise ModelFilesError(
            f"token {wrong[0]} ({tokenizer.convert_ids_to_tokens(wrong[0])!r}) is not in the model's "
            f"vocabulary of {vocab_size}. The tokenizer is another model's, or tokens were added to "
            "it and the model was not made larger: take the tokenizer that belongs to the model, or "
            "leave that token out of the text"
        )


def _read(folder: Path) -> "PreTrainedTokenizerBase":
    from transformers import AutoTokenizer, LlamaTokenizer

    with tempfile.TemporaryDirectory() as scratch:
        there = _without_marks(folder, Path(scratch))
        config = _model_config(there)
        if _holds_pieces_alone(there) and config is not None:
            # Transformers 5 forgets the start token and the space before a text where
            # tokenizer_config.json does not name them; LLaMA has both.
            path = there / "tokenizer_config.json"
            start = read_json_object(path).get("add_bos_token") if path.exists() else None
            return LlamaTokenizer.from_pretrained(
                there, add_bos_token=start is not False, add_eos_token=False, local_files_only=True
            )
        tokenizer = AutoTokenizer.from_pretrained(
            there, config=config, local_files_only=True, trust_remote_code=False
        )
        _check_class(tokenizer, there)
        return tokenizer


KNOWN_CLASSES = ("LlamaTokenizer", "PreTrainedTokenizer", "TokenizersBackend")
PROBE = "The cat sat on 1,234 mats,\n  and then it left.\tCafé!"


def _check_class(tokenizer: "PreTrainedTokenizerBase", folder: Path) -> None:
    """Raise ValueError where the class in tokenizer_config.json overrules tokenizer.json.

    Some classes build a tokenizer of their own kind from its vocabulary and read texts differently.
    """
    from tokenizers import Tokenizer

    path = folder / "tokenizer.json"
    if not path.exists() or type(tokenizer).__name__.removesuffix("Fast") in KNOWN_CLASSES:
        return
    read = []
    for backend in (tokenizer.backend_tokenizer, Tokenizer.from_file(str(path))):
        _without_cuts(backend)
        read.append(backend.encode(PROBE, add_special_tokens=False).ids)
    if read[0] != read[1]:
        raise ValueError(
            f"as {type(tokenizer).__name__}, which tokenizer_config.json names, it reads texts in "
            "another way than tokenizer.json says"
        )


def _holds_pieces_alone(folder: Path) -> bool:
    """Whether a tokenizer is SentencePiece's model file, without tokenizer.json beside it."""
    path = folder / "tokenizer.model"
    return path.exists() and not (folder / "tokenizer.json").exists() and not holds_ranks(path)


def _model_config(folder: Path) -> "LlamaConfig | None":
    """The config by which transformers chooses a tokenizer; else it reads all of config.json.

    The shapes in there may have faults that are not the tokenizer's. None for other families.
    """
    from transformers import LlamaConfig

    path = folder / "config.json"
    content = read_json_object(path) if path.exists() else {}
    if content.get("model_type") != "llama":
        return None
    return LlamaConfig(tokenizer_class=content.get("tokenizer_class"))


def _without_marks(folder: Path, scratch: Path) -> Path:
    """`folder`, or its tokenizer copied to `scratch` where a file begins with a byte-order mark.

    Some editors put one there. Transformers cannot read JSON with it, and takes that of a chat
    template for a part of every prompt.
    """
    files = [
        path
        for path in folder.iterdir()
        if path.suffix in (".json", ".jinja", ".txt", ".model") and path.is_file()
    ]
    if not any(_begins_with_mark(path) for path in files):
        return folder
    for path in files:
        shutil.copy(path, scratch)
        if _begins_with_mark(path):
            (scratch / path.name).write_bytes(path.read_bytes().removeprefix(codecs.BOM_UTF8))
    return scratch


def _begins_with_mark(path: Path) -> bool:
    with path.open("rb") as file:
        return file.read(3) == codecs.BOM_UTF8


def _without_habits(tokenizer: "PreTrainedTokenizerBase") -> "PreTrainedTokenizerBase":
    """Switch off what a folder can switch on and no measurement may depend on.

    Cutting and filling texts and leaving out merges at random, which tokenizer.json can hold; an end
    token after every text, which would be scored as a part of it and ends a prompt before its
    answer; names of special tokens read as text in the chat form; spaces that decoding takes out.
    """
    backend = tokenizer.backend_tokenizer
    _without_cuts(backend)
    tokenizer.split_special_tokens = backend.encode_special_tokens = False
    tokenizer.clean_up_tokenization_spaces = False
    if _ends_texts(backend):
        backend.post_processor = _without_end(backend.post_processor)
        if _ends_texts(backend):
            raise ValueError(
                f"its post-processor puts a token after every text: {backend.post_processor}"
            )
    return tokenizer


def _without_cuts(backend: "Tokenizer") -> None:
    backend.no_truncation()
    backend.no_padding()
    if getattr(backend.model, "dropout", None):  # BPE-dropout: other tokens at every call
        backend.model.dropout = None


def _ends_texts(backend: "Tokenizer") -> bool:
    return backend.encode("a").special_tokens_mask[-1:] == [1]


def _without_end(post_processor: "PostProcessor") -> "PostProcessor":
    """The same, without the special tokens that its template has after a text."""
    from tokenizers import Tokenizer, models

    holder = Tokenizer(models.BPE())
    holder.post_processor = post_processor
    content = json.loads(holder.to_str())
    outer = content["post_processor"]
    for part in outer.get("processors", [outer]):
        pieces = part.get("single", [])
        while pieces and "SpecialToken" in pieces[-1]:
            pieces.pop()
    return Tokenizer.from_str(json.dumps(content)).post_processor


def _check_packages(folder: Path) -> None:
    """SentencePiece's model file needs two packages, which transformers does not name."""
    path = folder / "tokenizer.model"
    if (folder / "tokenizer.json").exists() or not path.exists():
        return
    needed = ["tiktoken"] if holds_ranks(path) else ["sentencepiece", "google.protobuf"]
    missing = [name.removeprefix("google.") for name in needed if not _is_installed(name)]
    if missing:
        raise ModelError(
            f"{path} needs a package to be read: pip install {' '.join(missing)}. Or give the folder "
            "the model's tokenizer.json, which needs none"
        )


def _is_installed(name: str) -> bool:
    try:
        return find_spec(name) is not None
    except ModuleNotFoundError:  # the package around it
        return False
