"""How well a model predicts a text: negative log-likelihood (NLL), perplexity, bits for each byte.

And how far two models' predictions lie apart on the same tokens: Kullback-Leibler divergence and
agreement of the likeliest tokens.
"""

import base64
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from tqdm.auto import tqdm
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from llama_int8.evaluation.resume import Journal, Processes, run_batches


def windows(
    tokens: list[int], length: int, limit: int | None = None, start: Sequence[int] = ()
) -> torch.Tensor:
    """Cut a text into windows of `length` tokens, (N, length), at most `limit` of them.

    `start`: tokens that stand at the beginning of every window and count towards its length. What
    fills no window is left out, so that every window weighs the same.
    Raises ValueError where the text does not fill two windows.
    """
    own = length - len(start)  # tokens of the text in each window
    count = 0 if length < 2 or own < 1 else len(tokens) // own
    if limit is not None:
        count = min(count, limit)
    if count < 2:
        raise ValueError(
            f"{len(tokens)} tokens give {count} windows of {length} (limit {limit}); at least 2 "
            "windows of at least 2 tokens are needed"
        )
    cut = torch.tensor(tokens[: count * own]).view(count, own)
    return torch.cat([torch.tensor([list(start)] * count, dtype=cut.dtype), cut], dim=1)


def token_nll(model: torch.nn.Module, tokens: torch.Tensor) -> np.ndarray:
    """NLL in nats of every token but each window's first, (N, T - 1), in float64.

    `tokens`: (N, T). One window per pass: LLM.int8() finds its outlier columns per call, so the
    composition of a batch would change its answers.
    Raises ValueError for windows beyond the model's context, or NaN in the result.
    """
    check_context(model, tokens.shape[1])
    device = next(model.parameters()).device
    windows_ = tqdm(tokens.to(device), desc="windows", leave=False)
    return checked_nll(model, [window_nll(model, window) for window in windows_])


@torch.inference_mode()
def window_nll(model: torch.nn.Module, window: torch.Tensor) -> torch.Tensor:
    """NLL in nats of every token but the first of one window (T,), as (T - 1,)."""
    logits = model(window[None], use_cache=False).logits[0, :-1].float()  # (T - 1, V)
    return torch.nn.functional.cross_entropy(logits, window[1:], reduction="none")


def checked_nll(model: torch.nn.Module, rows: Sequence[torch.Tensor]) -> np.ndarray:
    """The windows' NLL as one array, (N, T - 1), in float64. Raises ValueError for NaN."""
    nll = torch.stack(list(rows)).double().cpu().numpy()
    if np.isnan(nll).any():
        bad = sorted(set(np.argwhere(np.isnan(nll))[:, 0].tolist()))
        raise ValueError(f"NLL is NaN in window(s) {bad}: {overflow(model)}")
    return nll


def check_context(model: torch.nn.Module, length: int) -> None:
    """Raise ValueError where windows of `length` tokens are longer than what the model was made for.

    A model still answers there, but not at its best: its positions were never trained.
    """
    most = getattr(getattr(model, "config", None), "max_position_embeddings", None)
    if most is not None and length > most:
        raise ValueError(
            f"the windows have {length} tokens, and the model takes {most}: take windows of at most "
            f"{most}"
        )


def overflow(model: torch.nn.Module) -> str:
    """Why a model gives NaN: a weight is NaN or infinite, or else the precision's range."""
    for name, weight in model.named_parameters():
        if weight.is_floating_point() and not weight.isfinite().all():
            return f"{name} holds NaN or infinity, so the model's file is damaged in any precision"
    return "the model overflowed in this precision"


def perplexity(nll: np.ndarray) -> float:
    """exp of the mean NLL."""
    return float(np.exp(nll.mean()))


@dataclass(frozen=True)
class StridedText:
    """A text in overlapping windows: each scores its last `stride` tokens, the rest is context.

    So no token is scored twice, and every scored one has at least `length - stride` tokens before
    it. `bytes` are the UTF-8 bytes of each window's scored tokens, so that models with different
    tokenizers can be compared.
    """

    windows: torch.Tensor  # (N, length)
    stride: int
    bytes: np.ndarray  # (N,)


def strided(
    tokenizer: PreTrainedTokenizerBase,
    text: str,
    length: int,
    stride: int,
    limit: int | None = None,
) -> StridedText:
    """Cut a text into windows of `length` tokens that advance by `stride`, at most `limit` of them.

    Tokens that the tokenizer puts before every text stand at the beginning of every window and
    count towards its length. What fills no window at the end is left out, so that every window
    weighs the same. Raises ValueError for lengths that make no sense or too short a text.
    """
    start = tokenizer("")["input_ids"]
    own = length - len(start)  # tokens of the text in each window
    # Without a start the first token of a window that scores all of its own would have no context.
    if not 1 <= stride <= own - (not start):
        raise ValueError(
            f"the stride is {stride} with windows of {length}; it must be 1 to {own - (not start)}"
        )
    found = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
    tokens, spans = found["input_ids"], found["offset_mapping"]
    count = max(0, (len(tokens) - own) // stride + 1)
    count = count if limit is None else min(count, limit)
    if count < 2:
        raise ValueError(
            f"{len(tokens)} tokens give {count} windows of {length} with stride {stride} (limit "
            f"{limit}); at least 2 are needed"
        )
    cut = [[*start, *tokens[n * stride : n * stride + own]] for n in range(count)]
    ends = [spans[n * stride + own - 1][1] for n in range(count)]
    begins = [spans[own - stride][0], *ends[:-1]]
    bytes_ = [len(text[a:b].encode()) for a, b in zip(begins, ends, strict=True)]
    return StridedText(torch.tensor(cut), stride, np.array(bytes_))


def evenly(text: StridedText, count: int) -> StridedText:
    """At most `count` of the windows, spread evenly over the text."""
    if len(text.windows) <= count:
        return text
    chosen = np.linspace(0, len(text.windows) - 1, count).round().astype(int)
    return replace(text, windows=text.windows[chosen], bytes=text.bytes[chosen])


def window_scores(
    model: PreTrainedModel,
    text: StridedText,
    keep: int = 0,
    reference: Sequence[dict[str, Any]] = (),
    label: str = "windows",
    journal: Journal | None = None,
    processes: Processes | None = None,
) -> list[dict[str, Any]]:
    """For each window {"nll": mean over its scored tokens, in nats}; plain JSON data.

    For the first `keep` windows also "hidden": the states that the output layer reads. Where a
    `reference` (another precision's result on the same windows) holds them, "kl" and "agreement"
    from it to this model: its states are read by its own output layer, which is this model's, too
    (LLM.int8() leaves it in 16 bit) or the embedding's table (where both share it), so they stand
    for its distributions at a fraction of their bytes. One window per pass: LLM.int8() finds its
    outlier columns per call. Raises ValueError for windows beyond the model's context, or for NaN.
    """
    check_context(model, text.windows.shape[1])

    def score(number: int) -> dict[str, Any]:
        other = reference[number].get("hidden") if number < len(reference) else None
        return _window_score(model, text, number, number < keep, other)

    return run_batches(range(len(text.windows)), score, label, journal, processes)


def _window_score(
    model: PreTrainedModel, text: StridedText, number: int, keep: bool, other: str | None
) -> dict[str, Any]:
    window = text.windows[number].to(model.device)
    head = model.get_output_embeddings()
    with torch.inference_mode():
        states = model.base_model(window[None], use_cache=False).last_hidden_state[0]
        states = states[-text.stride - 1 : -1]  # (stride, C): each predicts the token after it
        log_p = head(states).float().log_softmax(-1)  # (stride, V)
        targets = window[-text.stride :, None].to(log_p.device)
        nll = -log_p.gather(-1, targets).double().mean().item()
        if math.isnan(nll):
            raise ValueError(f"NLL is NaN in window {number}: {overflow(model)}")
        found: dict[str, Any] = {"nll": nll}
        if keep:
            found["hidden"] = _packed(states)
        if other is not None:
            theirs = _baseline_logits(model, _unpacked(other, states)).float().log_softmax(-1)
            found["kl"] = divergence(theirs, log_p).mean().item()
            found["agreement"] = (theirs.argmax(-1) == log_p.argmax(-1)).double().mean().item()
    return found


def _baseline_logits(model: PreTrainedModel, states: torch.Tensor) -> torch.Tensor:
    """The baseline's logits from its states: by the shared table, if it has one."""
    if model.config.tie_word_embeddings:  # int8-fast quantizes its output layer, not the table
        return torch.nn.functional.linear(states, model.get_input_embeddings().weight)
    return model.get_output_embeddings()(states)


def divergence(first: torch.Tensor, second: torch.Tensor) -> torch.Tensor:
    """KL(first || second) in nats of log-probabilities (..., V) -> (...), in float64."""
    first, second = first.double(), second.double()
    return (first.exp() * (first - second)).sum(-1)


def _packed(states: torch.Tensor) -> str:
    """In FP32, which holds every value of a 16-bit format, as text for a JSON file."""
    return base64.b64encode(states.float().cpu().numpy().tobytes()).decode()


def _unpacked(text: str, like: torch.Tensor) -> torch.Tensor:
    values = np.frombuffer(base64.b64decode(text), np.float32).reshape(like.shape)
    return torch.tensor(values).to(like)


def bits_per_byte(nll: np.ndarray, text: StridedText) -> float:
    """Bits that a byte of the text takes; `nll`: mean in nats of each window's tokens, (N,)."""
    return float(nll.sum() * text.stride / math.log(2) / text.bytes[: len(nll)].sum())
