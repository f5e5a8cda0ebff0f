"""`course.py generate`: one prompt, answered in several precisions, one after the other."""

import contextlib
import sys
import textwrap
import time
import unicodedata
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, replace
from itertools import zip_longest
from pathlib import Path
from typing import TextIO

import torch
from torch import Tensor, nn

from llama_int8 import models
from llama_int8.dtypes import torch_dtype
from llama_int8.errors import ModelError, ModelFilesError, NotEnoughMemoryError, first_line
from llama_int8.evaluation import answers
from llama_int8.measure import memory
from llama_int8.models.cost import GIB, QUANTIZED
from llama_int8.models.load import check_memory
from llama_int8.models.one_call import one_call_model
from llama_int8.quantization.cpu import linear as cpu_linear
from llama_int8.quantization.cpu.llama import FastLlama
from llama_int8.quantization.gpu import linear as gpu_linear
from llama_int8.quantization.gpu.llama import GraphLlama
from llama_int8.quantization.llm_int8 import replace_linears
from llama_int8.quantization.precisions import THRESHOLD
from llama_int8.transformer.config import is_meta_folder
from llama_int8.transformer.generation import (
    Choice,
    Sampler,
    generate,
    greedy,
    scale_temperature,
)
from llama_int8.transformer.llama import Llama
from llama_int8.transformer.prompt import check_prompt
from llama_int8.transformer.tokenizer import (
    LLAMA3_SPECIAL,
    MetaTokenizer,
    TiktokenTokenizer,
    load_meta_tokenizer,
)

TEMPERATURE = 0.7
WARMUP_TOKENS = 16
COLUMN = 33  # characters that the longest line of figures takes; two such columns fit in 69
GAP = " | "
NO_TEXT = "(no text: the model ended its answer at once)"


@dataclass(frozen=True)
class Source:
    """The common interface of Hugging Face and Meta checkpoints."""

    prompt: Tensor  # token ids (1, T)
    decode: Callable[[Sequence[int]], str]  # without special tokens
    load: Callable[[str], nn.Module]  # by precision
    ends: Callable[[nn.Module], Collection[int]]  # token ids that end an answer


@dataclass(frozen=True)
class Answer:
    """The text that one precision wrote, and what it cost."""

    precision: str
    device: str
    prompt_tokens: int
    tokens: list[int]  # with the token that ended it, if one did
    text: str
    first_seconds: float  # the pass over the prompt
    rest_seconds: float  # all further tokens
    weight_bytes: int
    memory_bytes: int  # GPU: the most that tensors held at once; CPU: the process, after answering
    differs_at: int | None = None  # first token that differs from the first precision's answer
    shared_text: str = ""  # what comes before it

    @property
    def tokens_per_second(self) -> float | None:
        """Speed of decoding; None where the first token is the only one."""
        return (len(self.tokens) - 1) / self.rest_seconds if len(self.tokens) > 1 else None


def side_by_side(
    name_or_folder: str | Path,
    prompt: str,
    precisions: Sequence[str] | None = None,
    device: str | None = None,
    new_tokens: int = 128,
    seed: int | None = None,
    temperature: float | None = None,
    live: "Live | None" = None,
    cache: str = "bf16",
) -> list[Answer]:
    """Answer `prompt` in each precision with at most `new_tokens` tokens, one model held at a time.

    `name_or_folder`: as for `load_model`, or a folder in Meta's format. `precisions`: None is the
    device's 16-bit format and int8. Greedy without a seed; with one drawn at `temperature`, from
    the same random numbers in every precision. `cache`: of int8-fast, "bf16" or "int8".
    `live` shows each answer while it is written. Raises ModelError or ValueError.
    """
    device = device or models.default_device()
    precisions = list(dict.fromkeys(precisions or (models.baseline_precision(device), "int8")))
    for precision in precisions:
        models.check_precision(precision, device)
    models.check_cache(cache, precisions, device)
    _check_request(prompt, new_tokens, seed, temperature)
    with contextlib.redirect_stdout(sys.stderr):  # a first download prints; stdout is for answers
        folder = Path(name_or_folder).expanduser()
        if str(name_or_folder) not in models.MODELS and is_meta_folder(folder):
            source = _meta_source(folder, precisions, device, prompt)
        else:
            source = _hugging_face_source(name_or_folder, precisions, device, prompt)
    settings = {"temperature": TEMPERATURE if temperature is None else temperature}
    found: list[Answer] = []
    for precision in precisions:
        choose = greedy if seed is None else Sampler(seed, **settings)
        answer = _answer(source, precision, device, new_tokens, choose, live, cache)
        at = answers.first_difference(found[0].tokens, answer.tokens) if found else None
        shared = "" if at is None else source.decode(answer.tokens[:at])
        found.append(replace(answer, differs_at=at, shared_text=shared))
    return found


class Live:
    """Prints answers token by token, each below the name of its precision."""

    def __init__(self, stream: TextIO, width: int) -> None:
        self.stream, self.width, self.shown = stream, width, ""

    def begin(self, precision: str) -> None:
        """A new answer."""
        self.shown = ""
        self._print(_heading(precision, self.width) + "\n")

    def show(self, text: str) -> None:
        """`text` is all of the answer so far; what is new in it is printed."""
        text = text.lstrip("\n")
        if text.startswith(self.shown) and not text.endswith(
            "\ufffd"
        ):  # a letter's first byte only
            self._print(_harmless(text[len(self.shown) :]))
            self.shown = text

    def end(self, text: str) -> None:
        """`text` is the whole answer."""
        rest = text.strip("\n")[len(self.shown) :]
        self._print(_harmless(rest if self.shown or rest else NO_TEXT).rstrip("\n") + "\n\n")

    def _print(self, text: str) -> None:
        print(text, end="", file=self.stream, flush=True)


def report(found: Sequence[Answer], width: int, texts: bool = True) -> list[str]:
    """Lines of at most `width` characters: texts and figures in columns where these fit.

    `texts`: False for a single answer whose text was shown while it was written.
    """
    column = (width - len(GAP) * (len(found) - 1)) // len(found)
    # A wide character (Chinese, most emoji) takes two places, which would bend the columns.
    wide = any(unicodedata.east_asian_width(char) in "WF" for one in found for char in one.text)
    lines: list[str] = []
    if len(found) == 1 or column < COLUMN or wide:
        for one in found:
            lines += [*(_text_block(one, width) if texts else ()), *_figures(one, width), ""]
    else:
        lines += _in_columns([_text_block(one, column) for one in found], column)
        lines += [*_in_columns([_figures(one, column) for one in found], column), ""]
    for other in found[1:]:
        lines += _wrapped(_parting(found[0], other), width)
    return [*lines, *_wrapped(_note(found[0].device), width)]


# --- one answer


def _answer(
    source: Source,
    precision: str,
    device: str,
    new_tokens: int,
    choose: Choice,
    live: Live | None,
    cache: str,
) -> Answer:
    _say(f"loading {precision} ...")
    try:
        with contextlib.redirect_stdout(sys.stderr):
            model = source.load(precision)
        weights, ends = memory.weight_memory(model), source.ends(model)
        prompt = source.prompt.to(device)
        check_prompt(model, prompt, new_tokens)
        if precision == "int8-fast":  # one call for a token: compiled, or a CUDA graph
            model = one_call_model(model, prompt.shape[1] + new_tokens, cache)
        # Libraries set themselves up in the first passes; that is not the model's time.
        _continue(model, prompt[:, :WARMUP_TOKENS], min(2, new_tokens))
        if device != "cpu":
            torch.cuda.reset_peak_memory_stats()  # loading can hold more than answering
        _say(f"answering in {precision} ...")
        if live:
            live.begin(precision)
        show = (lambda tokens: live.show(source.decode(tokens))) if live else (lambda _: None)
        tokens, seconds = _timed(model, prompt, new_tokens, choose, ends, show)
    except torch.OutOfMemoryError as error:
        raise NotEnoughMemoryError(
            f"{precision} ran out of memory on {device} ({first_line(error)}); take int8, "
            f"a smaller model, a shorter prompt or fewer than {new_tokens} new tokens"
        ) from None
    held = (
        torch.cuda.max_memory_allocated() if device != "cpu" else memory.snapshot("cpu")["process"]
    )
    del model
    memory.release()
    text = source.decode(tokens)
    if live:
        live.end(text)
    return Answer(precision, device, prompt.shape[1], tokens, text, *seconds, weights, held)


def _timed(
    model: nn.Module,
    prompt: Tensor,
    new_tokens: int,
    choose: Choice,
    ends: Collection[int],
    show: Callable[[Sequence[int]], None],
) -> tuple[list[int], tuple[float, float]]:
    """New token ids, and seconds of the first one and of all others; `show` sees those so far."""
    times, shown = [time.perf_counter()], 0.0
    written: list[int] = []

    def choose_and_look_at_the_clock(logits: Tensor, tokens: Tensor) -> Tensor:
        nonlocal shown
        chosen = choose(logits, tokens)
        written.extend(chosen.tolist())  # waits for the GPU
        now = time.perf_counter()
        times.append(now - shown)
        show(written)
        shown += time.perf_counter() - now
        return chosen

    tokens = _continue(model, prompt, new_tokens, choose_and_look_at_the_clock, ends)
    return tokens, (times[1] - times[0], times[-1] - times[1])


def _continue(
    model: nn.Module,
    prompt: Tensor,
    new_tokens: int,
    choose: Choice = greedy,
    ends: Collection[int] = (),
) -> list[int]:
    """New token ids after a prompt (1, T)."""
    if isinstance(model, (FastLlama, GraphLlama)):
        return model.generate(prompt, new_tokens, choose=choose, end=ends)[0].tolist()
    return generate(model, prompt, new_tokens, choose, ends)[0, prompt.shape[1] :].tolist()


def _say(line: str) -> None:
    if sys.stderr.isatty():
        print(line, file=sys.stderr, flush=True)


def _check_request(
    prompt: str, new_tokens: int, seed: int | None, temperature: float | None
) -> None:
    """Refuse before a long load what would otherwise fail only after it."""
    if not prompt.strip():
        raise ValueError(f"the prompt is {prompt!r}; give a text to answer")
    if new_tokens < 1:
        raise ValueError(f"new tokens: {new_tokens}; at least 1 is needed")
    if seed is None:
        if temperature is not None:
            raise ValueError(
                f"temperature is {temperature}, but without a seed answers are greedy and have "
                "none; give a seed, too"
            )
        return
    if not 0 <= seed < 2**63:
        raise ValueError(f"seed is {seed}; take a whole number from 0 to 2^63 - 1")
    if temperature is not None:
        scale_temperature(torch.zeros(1), temperature)


# --- the two kinds of folder


def _hugging_face_source(
    name_or_folder: str | Path, precisions: Sequence[str], device: str, prompt: str
) -> Source:
    synthetic = str(name_or_folder).startswith(models.SYNTHETIC)
    config = models.config_of(name_or_folder)
    for precision in precisions if not synthetic else ():  # before a useless fetch of gigabytes
        check_memory(str(name_or_folder), config, precision, device)
    tokenizer = models.load_tokenizer(name_or_folder)  # a synthetic model has none, which is said
    tokens = answers.prompt_tokens(tokenizer, prompt)
    models.check_ids(tokenizer, tokens[0].tolist(), config.vocab_size)
    return Source(
        tokens,
        lambda tokens: tokenizer.decode(tokens, skip_special_tokens=True),
        lambda precision: models.load_model(name_or_folder, precision, device),
        models.end_tokens,
    )


def _meta_source(folder: Path, precisions: Sequence[str], device: str, prompt: str) -> Source:
    for precision in precisions:
        _check_meta_memory(folder, precision, device)
    try:
        tokenizer = load_meta_tokenizer(folder)
    except ImportError as error:  # its message names the package to install
        raise ModelError(str(error)) from None
    ends = _meta_ends(tokenizer)

    def load(precision: str) -> nn.Module:
        model = _load_meta(folder, precision, device)
        if model.config.vocab_size != tokenizer.vocab_size:
            raise ModelFilesError(
                f"tokenizer.model in {folder} knows {tokenizer.vocab_size} tokens, the weights "
                f"{model.config.vocab_size}; put the tokenizer there that came with the weights"
            )
        return model

    return Source(
        torch.tensor([tokenizer.encode(prompt)]),
        lambda tokens: tokenizer.decode([token for token in tokens if token not in ends]),
        load,
        lambda model: ends,
    )


def _load_meta(folder: Path, precision: str, device: str) -> nn.Module:
    """Our own model; where it is quantized with our own layers, the rest in 16 bits."""
    stored = models.baseline_precision(device) if precision in QUANTIZED else precision
    model = Llama.from_pretrained(folder, torch_dtype(stored), device)
    if precision == "int8-fast":
        return (cpu_linear if device == "cpu" else gpu_linear).replace_layers(model)
    return replace_linears(model, threshold=THRESHOLD) if precision == "int8" else model


def _meta_ends(tokenizer: MetaTokenizer) -> set[int]:
    """Llama 3's chat models end a turn with a token of their own, not with that of a text."""
    if not isinstance(tokenizer, TiktokenTokenizer):
        return {tokenizer.eos_id}
    names = ("<|end_of_text|>", "<|eom_id|>", "<|eot_id|>")
    return {tokenizer.bos_id + place for place, name in LLAMA3_SPECIAL.items() if name in names}


def _check_meta_memory(folder: Path, precision: str, device: str) -> None:
    """By the size of the files, which are 16-bit; int8, too, is made from 16-bit weights."""
    size = sum(path.stat().st_size for path in folder.glob("consolidated.*.pth"))
    needed = models.HEADROOM * size * (2 if precision == "fp32" else 1)
    free = models.free_memory(device)
    if needed > free:
        raise NotEnoughMemoryError(
            f"loading {folder} in {precision} needs {needed / GIB:.1f} GiB (its files, in this format, "
            f"and a tenth more); {free / GIB:.1f} GiB are free on {device}. Free some memory, take a "
            "16-bit format instead of fp32, or a smaller model"
        )


# --- what is printed


def _text_block(answer: Answer, width: int) -> list[str]:
    """The precision, the text, and an empty line."""
    text = answer.text.strip("\n") or NO_TEXT
    return [_heading(answer.precision, width), *_wrapped(text, width), ""]


def _heading(precision: str, width: int) -> str:
    return f"{precision} ".ljust(width, "-")


def _harmless(text: str) -> str:
    """Without what would move the cursor."""
    return "".join(c if c.isprintable() or c == "\n" else " " for c in text.expandtabs())


def _wrapped(text: str, width: int) -> list[str]:
    """Lines of at most `width` characters; what would move the cursor becomes a blank."""
    lines = _harmless(text).split("\n")
    return [part for line in lines for part in textwrap.wrap(line, width) or [""]]


def _figures(answer: Answer, width: int) -> list[str]:
    """One line for each number, labels on the left."""
    speed = answer.tokens_per_second
    rows = {
        "tokens": f"{answer.prompt_tokens} + {len(answer.tokens)} new",
        "first token": f"{answer.first_seconds:.3f} s",
        "the rest": f"{answer.rest_seconds:.3f} s",
        "decoding": "one token only" if speed is None else f"{speed:.1f} tokens/s",
        "weights": _bytes(answer.weight_bytes),
        "resident" if answer.device == "cpu" else "GPU peak": _bytes(answer.memory_bytes),
    }
    return [
        line for label, value in rows.items() for line in _wrapped(f"{label:<12}{value}", width)
    ]


def _bytes(count: int) -> str:
    return f"{count / 1e6:.0f} MB ({count / GIB:.2f} GiB)"


def _in_columns(blocks: Sequence[Sequence[str]], column: int) -> list[str]:
    rows = zip_longest(*blocks, fillvalue="")
    return [GAP.join(part.ljust(column) for part in row).rstrip() for row in rows]


def _parting(first: Answer, other: Answer) -> str:
    """One sentence: where two answers diverge, with the last equal words."""
    names = f"{first.precision} and {other.precision}"
    if other.differs_at is None:
        return f"{names} give the same {len(first.tokens)} tokens."
    if other.differs_at == 0:
        return f"{names} part at the first token."
    words = " ".join(other.shared_text.split()[-6:])
    shared = "1 token" if other.differs_at == 1 else f"{other.differs_at} tokens"
    return f'{names} share {shared} and part after "... {words}".'


def _note(device: str) -> str:
    held = (
        "Resident is the memory of the whole process after its answer, libraries included."
        if device == "cpu"
        else "GPU peak is the most that tensors held at once while answering, weights included."
    )
    return f"First token: the pass over the prompt. {held} One answer is no measurement of speed."
