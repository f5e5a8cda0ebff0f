"""The inputs of a model's linear layers, and which of their columns are outliers."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from llama_int8.quantization.linear_layers import watching
from llama_int8.quantization.precisions import THRESHOLD

# One layer for each tensor that enters linear layers: q, k and v share one, gate and up share one.
ENTRANCES = ("q_proj", "o_proj", "gate_proj", "down_proj")
# What the paper looks at: the attention's projections and the first of the feed-forward network.
PAPERS_ENTRANCES = ("q_proj", "o_proj", "gate_proj")


def record_inputs(
    model: nn.Module, tokens: Tensor, kinds: Sequence[str] = ENTRANCES
) -> dict[str, Tensor]:
    """Inputs of the linear layers called `kinds` for `tokens` (B, T): {name: (B, T, C), FP32, CPU}.

    Works on every model whose layers bear these names: Hugging Face's, and our own `Llama`.
    Raises ValueError where there is no such layer.
    """
    kinds = (kinds,) if isinstance(kinds, str) else tuple(kinds)
    linears = {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear) and name.rpartition(".")[2] in kinds
    }
    if not linears:
        raise ValueError(f"{type(model).__name__} has no linear layer called {', '.join(kinds)}")
    inputs: dict[str, Tensor] = {}

    def keep(name: str, x: Tensor) -> None:
        inputs[name] = x.float().cpu().clone()

    with watching(linears, keep), torch.inference_mode():
        model(tokens, use_cache=False, logits_to_keep=1)
    return {name: x.clone() for name, x in inputs.items()}  # no inference tensors outside


def layer_of(name: str) -> int:
    """The number in a layer's name: "model.layers.12.mlp.down_proj" -> 12."""
    numbers = [int(part) for part in name.split(".") if part.isdigit()]
    if not numbers:
        raise ValueError(f"{name!r} holds no layer number")
    return numbers[0]


def outlier_columns(x: Tensor, threshold: float = THRESHOLD) -> Tensor:
    """Columns of (..., C) that hold a magnitude of at least `threshold`, ascending, int64 (k,)."""
    _check_threshold(threshold)
    return (x.abs() >= threshold).reshape(-1, x.shape[-1]).any(0).nonzero().flatten()


def plant_outliers(x: Tensor, channels: int = 6, factor: float = 20.0) -> Tensor:
    """A copy of normal values (N, C) in which evenly spaced channels have `factor` times the spread."""
    planted = x.clone()
    planted[:, torch.linspace(0, x.shape[-1] - 1, channels).long()] *= factor
    return planted


def papers_inputs(
    inputs: Mapping[str, Tensor], kinds: Sequence[str] = PAPERS_ENTRANCES
) -> dict[str, Tensor]:
    """Those of `inputs` that the paper looks at, and that have the width of the residual stream.

    What enters o_proj has another width where the heads do not add up to the model's width: its
    channels are then different ones, and are left out.
    """
    own = {n: x for n, x in inputs.items() if n.rpartition(".")[2] in kinds}
    width = next(x.shape[-1] for n, x in own.items() if not n.endswith("o_proj"))
    return {name: x for name, x in own.items() if x.shape[-1] == width}


def outlier_shares(
    inputs: Mapping[str, Tensor], threshold: float = THRESHOLD
) -> tuple[Tensor, Tensor]:
    """Share of layers, and of positions, in which each channel reaches `threshold`: (C,) and (C,).

    `inputs`: (B, T, C) by name, all of one width C. A layer counts if any of its inputs does, at any
    position; positions are counted in every layer, so their share is a mean over the layers.
    Raises ValueError for widths that differ.
    """
    _check_threshold(threshold)
    widths = {x.shape[-1] for x in inputs.values()}
    if len(widths) != 1:
        raise ValueError(f"inputs have widths {sorted(widths)}; channels of one width are compared")
    found: dict[int, Tensor] = {}
    for name, x in inputs.items():
        large = x.abs() >= threshold  # (B, T, C)
        layer = layer_of(name)
        found[layer] = found[layer] | large if layer in found else large
    stacked = torch.stack(list(found.values())).flatten(1, -2).float()  # (layers, B T, C)
    return stacked.amax(1).mean(0), stacked.mean((0, 1))


def outlier_features(
    inputs: Mapping[str, Tensor],
    threshold: float = THRESHOLD,
    layers: float = 0.25,
    positions: float = 0.06,
) -> dict[int, tuple[float, float]]:
    """Outlier features by the paper's criterion: {channel: (share of layers, share of positions)}.

    A channel counts if a magnitude of at least `threshold` stands in it in at least `layers` of the
    transformer layers and at `positions` of all positions (arXiv:2208.07339, section 4), counted as
    in `outlier_shares`, which also says what `inputs` are and what is raised.
    """
    by_layer, by_position = outlier_shares(inputs, threshold)
    chosen = (by_layer >= layers) & (by_position >= positions)
    return {
        channel: (by_layer[channel].item(), by_position[channel].item())
        for channel in chosen.nonzero().flatten().tolist()
    }


def channel_absmax(
    model: nn.Module, windows: Tensor, linears: Mapping[str, nn.Linear]
) -> dict[str, Tensor]:
    """Largest magnitude of each input channel over all `windows` (N, T): {name: (C,)}."""
    largest: dict[str, Tensor] = {}

    def update(name: str, x: Tensor) -> None:
        absmax = x.abs().flatten(0, -2).amax(0)
        largest[name] = absmax if name not in largest else torch.maximum(largest[name], absmax)

    with watching(linears, update), torch.inference_mode():
        for window in windows:
            model(window[None], use_cache=False, logits_to_keep=1)
    return {name: x.clone() for name, x in largest.items()}  # no inference tensors outside


def _check_threshold(threshold: float) -> None:
    if not 0 < threshold < float("inf"):
        raise ValueError(f"threshold is {threshold}; an outlier has a magnitude above 0")
