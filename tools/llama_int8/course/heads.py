"""Attention inside a Hugging Face model: look at its weights, or replace how it is computed."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch.nn import functional as F
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel
from transformers.masking_utils import sdpa_mask


@contextmanager
def attend_with(model: PreTrainedModel, attention: Callable[..., torch.Tensor]) -> Iterator[None]:
    """Within the block, every layer of `model` computes its attention with `attention`.

    `attention(q, k, v, mask)`: q (B, H, T, D), k and v (B, H, S, D), mask boolean and broadcast to
    (B, H, T, S); returns (B, H, T, D). Key and value heads that a group of query heads shares are
    repeated before.
    """

    def attend(module: Any, q, k, v, attention_mask, **_: Any):
        k = k.repeat_interleave(module.num_key_value_groups, dim=1)
        v = v.repeat_interleave(module.num_key_value_groups, dim=1)
        return attention(q, k, v, attention_mask).transpose(1, 2), None  # (B, T, H, D)

    def full_mask(**options: Any):  # never None, transformers' short form of a causal mask
        return sdpa_mask(**{**options, "allow_is_causal_skip": False})

    name = f"llama_int8_{id(attention)}"  # its own: blocks may be nested
    AttentionInterface.register(name, attend)
    AttentionMaskInterface.register(name, full_mask)
    before = model.config._attn_implementation
    model.set_attn_implementation(name)
    try:
        yield
    finally:
        model.set_attn_implementation(before)


def queries_and_keys(
    model: PreTrainedModel, tokens: torch.Tensor, layer: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Queries and keys of one layer as it multiplies them, (H, T, D) each, in FP32 on the CPU.

    They are rotated by their positions, where the model does that; a key head that several query
    heads share is repeated. `tokens`: (1, T).
    """
    seen: list[tuple[torch.Tensor, torch.Tensor]] = []

    def watched(q, k, v, mask):
        seen.append((q[0].float().cpu(), k[0].float().cpu()))
        return F.scaled_dot_product_attention(q, k, v, mask)

    with attend_with(model, watched), torch.inference_mode():
        model(tokens.to(model.device), use_cache=False)
    return seen[layer]


def attention_maps(model: PreTrainedModel, tokens: torch.Tensor) -> torch.Tensor:
    """Attention weights of all layers and heads for one text, (layers, H, T, T), in FP32 on the CPU.

    `tokens`: (1, T). Raises ValueError for another number of rows.
    """
    if tokens.dim() != 2 or len(tokens) != 1:
        raise ValueError(f"tokens have shape {tuple(tokens.shape)}; expected one text, (1, T)")
    before = model.config._attn_implementation
    model.set_attn_implementation("eager")  # the fused kernels never form the weights
    try:
        with torch.inference_mode():
            out = model(tokens.to(model.device), output_attentions=True, use_cache=False)
    finally:
        model.set_attn_implementation(before)
    return torch.cat(out.attentions).float().cpu()


def weight_on_first(maps: torch.Tensor) -> torch.Tensor:
    """Mean weight that queries after the first give to the first token, (..., T, T) -> (...).

    Raises ValueError for fewer than three tokens.
    """
    _check_length(maps)
    return maps[..., 1:, 0].mean(-1)


def weight_on_previous(maps: torch.Tensor) -> torch.Tensor:
    """Mean weight that queries give to the token just before them, (..., T, T) -> (...).

    The query at position 1 is left out: there the previous token is the first one, too. Raises
    ValueError for fewer than three tokens.
    """
    _check_length(maps)
    return maps.diagonal(offset=-1, dim1=-2, dim2=-1)[..., 1:].mean(-1)


def _check_length(maps: torch.Tensor) -> None:
    if maps.shape[-1] < 3:
        raise ValueError(
            f"a text of {maps.shape[-1]} tokens shows no pattern; 3 or more are needed"
        )
