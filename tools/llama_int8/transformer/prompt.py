"""The checks of a prompt, and of the tokens of a step, for every way to continue it."""

from typing import Any

import torch
from torch import Tensor


def check_prompt(model: Any, prompt: Tensor, max_new_tokens: int) -> None:
    """Raise ValueError or TypeError for a prompt that the model cannot continue so far."""
    if prompt.dim() != 2 or prompt.numel() == 0:
        raise ValueError(
            f"the prompt has shape {tuple(prompt.shape)}; expected token ids (B, T) with at least "
            "one token, such as the tokenizer's start token"
        )
    if prompt.is_floating_point() or prompt.dtype == torch.bool:
        raise TypeError(f"the prompt has dtype {prompt.dtype}; token ids are integers")
    vocabulary, context = model.config.vocab_size, model.config.max_position_embeddings
    wrong = prompt[(prompt < 0) | (prompt >= vocabulary)]
    if wrong.numel():
        raise ValueError(
            f"the prompt holds token {wrong[0].item()}; the model knows 0 to {vocabulary - 1}"
        )
    if max_new_tokens < 1:
        raise ValueError(f"max_new_tokens is {max_new_tokens}; it must be 1 or more")
    if prompt.shape[1] + max_new_tokens > context:
        raise ValueError(
            f"{prompt.shape[1]} tokens of prompt and {max_new_tokens} new ones exceed the model's "
            f"context of {context}; shorten the prompt by "
            f"{prompt.shape[1] + max_new_tokens - context} tokens"
        )


def check_tokens(model: Any, tokens: Tensor, dimensions: int) -> None:
    """Raise ValueError or TypeError for tokens that a model with a cache of its own cannot take.

    `tokens`: (B, T), or (B,) with `dimensions` 1. `model` has `batch`, `position`, `context`, `config`.
    """
    if tokens.dim() != dimensions or len(tokens) != model.batch or tokens.numel() == 0:
        shape = "(B, T)" if dimensions == 2 else "(B,)"
        raise ValueError(
            f"tokens have shape {tuple(tokens.shape)}; expected {shape} with B = {model.batch}"
        )
    if tokens.is_floating_point() or tokens.dtype == torch.bool:
        raise TypeError(f"tokens have dtype {tokens.dtype}; token ids are integers")
    length = model.position + (tokens.shape[1] if dimensions == 2 else 1)
    if length > model.context:
        raise ValueError(f"{length} tokens exceed the cache of {model.context}; call reserve")
    if tokens.device.type != "cpu":  # on a GPU, looking would mean waiting
        return
    wrong = tokens[(tokens < 0) | (tokens >= model.config.vocab_size)]
    if wrong.numel():
        raise ValueError(
            f"token {wrong[0].item()} is not in the vocabulary of {model.config.vocab_size}"
        )
