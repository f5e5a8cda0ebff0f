"""How well a model predicts a text: negative log-likelihood (NLL) for each token, perplexity."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from tqdm.auto import tqdm

if TYPE_CHECKING:
    import torch


def windows(
    tokens: list[int], length: int, limit: int | None = None, start: Sequence[int] = ()
) -> "torch.Tensor":
    """Cut a text into windows of `length` tokens, (N, length), at most `limit` of them.

    `start`: tokens that stand at the beginning of every window and count towards its length. What
    fills no window is left out, so that every window weighs the same.
    Raises ValueError where the text does not fill two windows.
    """
    import torch

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


def token_nll(model: "torch.nn.Module", tokens: "torch.Tensor") -> np.ndarray:
    """NLL in nats of every token but each window's first, (N, T - 1), in float64.

    `tokens`: (N, T). One window a pass: LLM.int8() finds its outlier columns per call, so that the
    composition of a batch would change its answers.
    Raises ValueError for NaN in the result.
    """
    import torch

    device = next(model.parameters()).device
    rows = []
    with torch.inference_mode():
        for window in tqdm(tokens.to(device), desc="windows", leave=False):
            logits = model(window[None], use_cache=False).logits[0, :-1].float()  # (T - 1, V)
            rows.append(torch.nn.functional.cross_entropy(logits, window[1:], reduction="none"))
    nll = torch.stack(rows).double().cpu().numpy()
    if np.isnan(nll).any():
        bad = sorted(set(np.argwhere(np.isnan(nll))[:, 0].tolist()))
        raise ValueError(f"NLL is NaN in window(s) {bad}: the model overflowed in this precision")
    return nll


def perplexity(nll: np.ndarray) -> float:
    """exp of the mean NLL."""
    return float(np.exp(nll.mean()))
