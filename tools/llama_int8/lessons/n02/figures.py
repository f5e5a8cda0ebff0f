"""The figures of lesson 02: the Transformer."""

from collections.abc import Mapping

import numpy as np
import torch
from matplotlib.figure import Figure

from llama_int8.course.plots import COLOURS, figure, heat_map


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


def training(losses: list[float], exact: Mapping[int, float]) -> Figure:
    """The loss of each step, and exact matches on held-out dates during training."""
    drawn, axes = figure(2, figsize=(9, 3.1))
    axes[0].plot(losses, color=COLOURS["bf16"], linewidth=1)
    axes[0].set_yscale("log")
    axes[0].set_xlabel("step")
    axes[0].set_ylabel("cross-entropy (nats a character)")
    axes[0].set_title("Loss on training dates")
    axes[1].plot(list(exact), [100 * v for v in exact.values()], "o-", color=COLOURS["good"])
    axes[1].axhline(95, linestyle="--", color=COLOURS["predicted"])
    axes[1].annotate("95 %", (0, 95), (0, -11), textcoords="offset points", fontsize=8)
    axes[1].set_ylim(-3, 103)
    axes[1].set_xlabel("step")
    axes[1].set_ylabel("held-out dates all right (%)")
    axes[1].set_title(f"{100 * list(exact.values())[-1]:.1f} % of unseen dates at the end")
    return drawn


def alignment(
    one: torch.Tensor, words: str, iso: str, shares: torch.Tensor, uniform: torch.Tensor
) -> Figure:
    """Cross-attention of one date, (output, input), and the shares of the parts over many.

    `uniform`: the shares of year, month and day if every character got the same weight.
    """
    drawn, axes = figure(2, figsize=(10.5, 3.9), width_ratios=[2.1, 1])
    heat_map(axes[0], one, list(iso), list(words.replace(" ", "·")), vmin=0)
    axes[0].tick_params(axis="x", rotation=0)
    axes[0].set_ylabel("character being written")
    axes[0].set_xlabel("character looked at")
    axes[0].set_title("Where the decoder looks while it writes")
    parts = ["year", "month", "day"]
    image = heat_map(axes[1], shares, parts, [*parts, "rest"], vmin=0, vmax=1)
    axes[1].tick_params(axis="x", rotation=0)
    for row in range(shares.shape[0]):
        for column in range(shares.shape[1]):
            share = shares[row, column].item()
            colour = "white" if share > 0.6 else "black"
            label = f"{share:.0%}" + (f"\neven: {uniform[row]:.0%}" if row == column else "")
            axes[1].text(column, row, label, ha="center", va="center", color=colour, fontsize=9)
    drawn.colorbar(image, ax=axes[1], shrink=0.8, label="share of the attention")
    axes[1].set_ylabel("part being written")
    axes[1].set_xlabel("words looked at")
    axes[1].set_title("Shares over many dates")
    return drawn


def three_kinds(masks: Mapping[str, torch.Tensor], prefix: int) -> Figure:
    """Who may look at whom: one boolean mask (T, T) for each kind of transformer."""
    drawn, axes = figure(len(masks), figsize=(3.2 * len(masks), 3.8))
    for panel, (name, mask) in zip(axes, masks.items(), strict=True):
        heat_map(panel, mask.float(), vmin=0, vmax=1.6, aspect="equal")
        for row, column in mask.nonzero().tolist():
            panel.plot(column, row, ".", color="black", markersize=4)
        if "encoder-decoder" in name:
            panel.axhline(prefix - 0.5, color=COLOURS["int8"])
            panel.axvline(prefix - 0.5, color=COLOURS["int8"])
        panel.set_title(name)
        panel.set_xlabel("looked at")
        panel.set_xticks([])
        panel.set_yticks([])
    axes[0].set_ylabel("token that looks")
    return drawn
