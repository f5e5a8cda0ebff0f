"""The tokenizers of Meta's own checkpoints, both in a file called `tokenizer.model`.

LLaMA 1 and 2: SentencePiece. Llama 3: byte-pair ranks as tiktoken reads them, and 256 special
tokens after them.
"""

import base64
import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

from llama_int8.errors import ModelFilesError, first_line

# A word, up to three digits, punctuation, or white space: what byte pairs never reach across.
LLAMA3_PATTERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
LLAMA3_SPECIAL = {  # Llama 3.1's, by place after the byte pairs; the others are reserved
    0: "<|begin_of_text|>",
    1: "<|end_of_text|>",
    4: "<|finetune_right_pad_id|>",
    6: "<|start_header_id|>",
    7: "<|end_header_id|>",
    8: "<|eom_id|>",
    9: "<|eot_id|>",
    10: "<|python_tag|>",
}
LLAMA3_SPECIAL_TOKENS = 256


class MetaTokenizer(Protocol):
    """The interface that both kinds share."""

    vocab_size: int
    bos_id: int
    eos_id: int

    def encode(self, text: str, bos: bool = True, eos: bool = False) -> list[int]:
        """Ids of `text`, a start token before and an end token after it where asked for.

        The names of special tokens in `text` are ordinary text.
        """
        ...

    def decode(self, ids: Sequence[int]) -> str:
        """The text of `ids`."""
        ...


def load_meta_tokenizer(folder: Path | str) -> MetaTokenizer:
    """The tokenizer in `folder/tokenizer.model`, of whichever kind.

    Raises ModelFilesError where it is missing or damaged, ImportError with the package to install.
    """
    path = Path(folder) / "tokenizer.model"
    if not path.exists():
        raise ModelFilesError(f"{path} is missing; Meta's downloads have it beside the weights")
    return TiktokenTokenizer(path) if holds_ranks(path) else SentencePieceTokenizer(path)


def holds_ranks(path: Path) -> bool:
    """Whether a tokenizer.model is Llama 3's kind, lines of text, and not SentencePiece's."""
    with path.open("rb") as file:
        first_line = file.read(200).split(b"\n")[0].split()
    return len(first_line) == 2 and first_line[1].isdigit()


class SentencePieceTokenizer:
    """LLaMA 1 and 2: pieces with "▁" for a space, digits one by one, bytes for what is unknown."""

    def __init__(self, path: Path) -> None:
        try:
            from sentencepiece import SentencePieceProcessor
        except ImportError:
            raise ImportError(f"{path} needs a package: pip install sentencepiece") from None
        try:
            self.model = SentencePieceProcessor(model_file=str(path))
        except (RuntimeError, OSError) as error:
            raise _damaged(path, error) from None
        self.vocab_size = self.model.vocab_size()
        self.bos_id, self.eos_id = self.model.bos_id(), self.model.eos_id()

    def encode(self, text: str, bos: bool = True, eos: bool = False) -> list[int]:
        """See `MetaTokenizer`."""
        return [self.bos_id] * bos + self.model.encode(text) + [self.eos_id] * eos

    def decode(self, ids: Sequence[int]) -> str:
        """See `MetaTokenizer`."""
        return self.model.decode(list(ids))


class TiktokenTokenizer:
    """Llama 3: byte pairs within words, digits in groups of up to three."""

    def __init__(self, path: Path) -> None:
        try:
            import tiktoken
        except ImportError:
            raise ImportError(f"{path} needs a package: pip install tiktoken") from None
        try:
            ranks = _read_ranks(path)
            reserved = (f"<|reserved_special_token_{number}|>" for number in itertools.count())
            special = {
                LLAMA3_SPECIAL.get(place) or next(reserved): len(ranks) + place
                for place in range(LLAMA3_SPECIAL_TOKENS)
            }
            self.model = tiktoken.Encoding(
                "llama3", pat_str=LLAMA3_PATTERN, mergeable_ranks=ranks, special_tokens=special
            )
        except ValueError as error:
            raise _damaged(path, error) from None
        self.vocab_size = self.model.n_vocab
        self.bos_id, self.eos_id = len(ranks), len(ranks) + 1

    def encode(self, text: str, bos: bool = True, eos: bool = False) -> list[int]:
        """See `MetaTokenizer`."""
        return [self.bos_id] * bos + self.model.encode_ordinary(text) + [self.eos_id] * eos

    def decode(self, ids: Sequence[int]) -> str:
        """See `MetaTokenizer`."""
        return self.model.decode(list(ids))


def _read_ranks(path: Path) -> dict[bytes, int]:
    """Byte pairs with their ranks: lines of base64 and a number.

    Not through tiktoken's own reader, which keeps a copy by path and would not see a new file.
    """
    lines = [line.split() for line in path.read_bytes().splitlines() if line]
    ranks = {base64.b64decode(token, validate=True): int(rank) for token, rank in lines}
    if sorted(ranks.values()) != list(range(len(lines))):
        raise ValueError("its ranks have gaps")
    missing = [byte for byte in range(256) if bytes([byte]) not in ranks]
    if missing:
        raise ValueError(f"it has no token for the single byte {missing[0]}")
    return ranks


def _damaged(path: Path, error: Exception) -> ModelFilesError:
    return ModelFilesError(f"{path} cannot be read ({first_line(error)}); fetch it again")
