"""The figures of lesson 01: attention and causal masking."""

from collections.abc import Mapping

import numpy as np
import torch
from matplotlib.figure import Figure

from llama_int8.course.plots import COLOURS, figure, heat_map


def from_scores_to_weights(
    dots: torch.Tensor, scaled: torch.Tensor, weights: torch.Tensor, words: list[str]
) -> Figure:
    """q k^T, the same over sqrt(D), and its softmax, each (T, T), beside each other."""
    drawn, axes = figure(3, figsize=(10, 3.9))
    panels = (
        (dots, f"q·k: up to {dots.abs().max():.0f}"),
        (scaled, f"q·k / √d_k: up to {scaled.abs().max():.1f}"),
        (weights, "softmax: each row sums to 1"),
    )
    for panel, (values, title) in zip(axes, panels, strict=True):
        zero_based = {"vmin": 0} if panel is axes[2] else {"cmap": "PuOr", **_symmetric(values)}
        image = heat_map(panel, values, words if panel is axes[0] else None, words, **zero_based)
        if panel is not axes[0]:
            panel.set_yticks([])
        drawn.colorbar(image, ax=panel, shrink=0.8)
        panel.set_title(title)
        panel.set_xlabel("key")
    axes[0].set_ylabel("query")
    return drawn


def scaling(
    widths: list[int],
    variance: Mapping[str, list[float]],
    entropy: Mapping[str, list[float]],
    gradient: Mapping[str, list[float]],
    keys: int,
) -> Figure:
    """Variance of the scores, entropy of the weights, and gradient, against d_k."""
    drawn, axes = figure(3, figsize=(10, 3.3))
    styles = {"q·k": ("int8", "s"), "q·k / √d_k": ("bf16", "o")}
    for panel, measured in zip(axes, (variance, entropy, gradient), strict=True):
        for name, values in measured.items():
            colour, marker = styles[name]
            panel.plot(widths, values, marker, linestyle="-", color=COLOURS[colour], label=name)
        panel.set_xscale("log", base=2)
        panel.set_xlabel("d_k")
    axes[0].plot(widths, widths, "--", color=COLOURS["predicted"], label="predicted: d_k and 1")
    axes[0].axhline(1, linestyle="--", color=COLOURS["predicted"])
    axes[0].set_yscale("log", base=2)
    axes[0].set_ylabel("variance of the scores")
    axes[0].set_title("Unscaled, the variance is d_k")
    axes[0].legend(fontsize=8)
    uniform = np.log2(keys)
    axes[1].axhline(uniform, linestyle=":", color="black")
    axes[1].annotate(f"all {keys} keys alike", (widths[0], uniform), (0, 3), **_points())
    axes[1].set_ylim(0, uniform * 1.12)
    axes[1].set_ylabel("entropy of the weights (bits)")
    axes[1].set_title("one key takes nearly all")
    axes[2].set_yscale("log")
    axes[2].set_ylabel("median derivative p(1 − p)")
    axes[2].set_title("and the softmax goes flat")
    axes[2].set_ylim(bottom=1e-9)
    return drawn


def positions(table: torch.Tensor, dots: torch.Tensor) -> Figure:
    """Sinusoidal positions (length, width), and their dot products by distance."""
    drawn, axes = figure(2, figsize=(10, 3.6))
    image = heat_map(axes[0], table, cmap="PuOr", vmin=-1, vmax=1)
    drawn.colorbar(image, ax=axes[0], shrink=0.8)
    axes[0].set_xlabel("dimension")
    axes[0].set_ylabel("position")
    axes[0].set_title("Fast waves left, slow waves right")
    length = len(dots)
    starts = [length // 8, length // 2, length - length // 8 - 1]
    lines = (("bf16", "o", 6), ("int8", "s", 4), ("fp32", ".", 2))
    for start, (colour, marker, size) in zip(starts, lines, strict=True):
        style = {"color": COLOURS[colour], "marker": marker, "ms": size, "linewidth": 0.8}
        axes[1].plot(np.arange(length) - start, dots[start], label=f"from {start}", **style)
    axes[1].set_xlabel("distance (positions)")
    axes[1].set_ylabel("dot product")
    axes[1].set_title("Between positions, only distance counts")
    axes[1].legend(fontsize=8)
    return drawn


def influence(moved: Mapping[str, torch.Tensor]) -> Figure:
    """How far each output moved when one input changed, (T, T) for each way of masking."""
    drawn, axes = figure(len(moved), figsize=(2.3 * len(moved), 3.0))
    for panel, (name, values) in zip(axes, moved.items(), strict=True):
        heat_map(panel, (values > 0).float(), vmin=0, vmax=1.6, aspect="equal")
        length = len(values)
        leaks = int((values.triu(1) > 0).sum())
        panel.set_title(f"{name}\n{leaks} leaks" if leaks else f"{name}\nno leak", fontsize=9)
        for row, column in (values.triu(1) > 0).nonzero().tolist():
            panel.plot(column, row, "x", color=COLOURS["int8"], markersize=4)
        panel.set_xticks(range(0, length, 2))
        panel.set_yticks(range(0, length, 2))
        panel.set_xlabel("token that was changed")
    axes[0].set_ylabel("output that moved")
    return drawn


def _symmetric(values: torch.Tensor) -> dict[str, float]:
    largest = values.abs().max().item()
    return {"vmin": -largest, "vmax": largest}


def _points() -> dict[str, object]:
    return {"textcoords": "offset points", "fontsize": 8}
