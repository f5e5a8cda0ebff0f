"""The figures of notebook 01."""

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from llama_int8.classroom.plots import COLOURS, INKS, figure
from llama_int8.measurement.attention import weight_on_first, weight_on_previous

WEIGHTS = "Blues"  # white is 0: one hue, darker is more, safe for colour-blind readers


def heat_map(
    axes: Axes,
    values: torch.Tensor,
    rows: Sequence[str] | None = None,
    columns: Sequence[str] | None = None,
    **options: object,
) -> object:
    """`values` (rows, columns) as squares, the first row on top; returns the image."""
    image = axes.imshow(values.detach().numpy(), **{"cmap": WEIGHTS, "aspect": "auto", **options})
    axes.grid(visible=False)
    if rows is not None:
        axes.set_yticks(range(len(rows)), rows, fontsize=8)
    if columns is not None:
        axes.set_xticks(range(len(columns)), columns, rotation=90, fontsize=8)
    return image


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


def gallery(maps: torch.Tensor) -> Figure:
    """Every head's map (layers, H, T, T) as a thumbnail: a column a layer, a row a head."""
    layers, heads, length, _ = maps.shape
    gap = 2
    canvas = torch.full((heads * (length + gap), layers * (length + gap)), float("nan"))
    for layer in range(layers):
        for head in range(heads):
            top, left = head * (length + gap), layer * (length + gap)
            shown = maps[layer, head].sqrt()  # small weights become visible
            shown = shown.masked_fill(torch.ones(length, length).triu(1).bool(), float("nan"))
            canvas[top : top + length, left : left + length] = shown
    drawn, axes = figure(figsize=(12, min(12 * heads / layers, 16) + 0.7))
    image = axes.imshow(canvas.numpy(), cmap="viridis", vmin=0, vmax=1, interpolation="nearest")
    axes.grid(visible=False)
    centre = length / 2
    axes.set_xticks([i * (length + gap) + centre for i in range(layers)], range(layers), fontsize=8)
    axes.set_yticks([i * (length + gap) + centre for i in range(heads)], range(heads), fontsize=8)
    axes.set_xlabel("layer")
    axes.set_ylabel("head")
    axes.set_title("All heads of the model on one sentence: few patterns, often repeated")
    bar = drawn.colorbar(image, ax=axes, shrink=0.8, label="weight")
    bar.set_ticks([0, 0.5**0.5, 1], labels=["0", "0.5", "1"])
    return drawn


def heads(first: torch.Tensor, previous: torch.Tensor, found: tuple[int, int]) -> Figure:
    """Mean weight on the first and on the previous token, (layers, H) each; `found` is marked."""
    drawn, axes = figure(2, figsize=(10, 3.2))
    titles = ("Weight on the first token", "Weight on the previous token")
    for panel, values, title in zip(axes, (first, previous), titles, strict=True):
        image = heat_map(panel, values.T, vmin=0, vmax=1)
        drawn.colorbar(image, ax=panel, shrink=0.8)
        panel.set_xlabel("layer")
        panel.set_title(title)
    axes[0].set_ylabel("head")
    layer, head = found
    axes[1].plot(layer, head, "o", ms=13, mfc="none", mec=COLOURS["int8"], mew=2)
    right = layer < first.shape[0] / 2
    axes[1].annotate(
        f"layer {layer}, head {head}",
        (layer, head),
        (12 if right else -12, -14),
        ha="left" if right else "right",
        bbox={"facecolor": "white", "edgecolor": "none", "alpha": 0.8, "pad": 1},
        color=INKS["int8"],
        **_points(),
    )
    return drawn


def head_and_mask(maps: torch.Tensor, words: list[str], layer: int, head: int) -> Figure:
    """One head's map (layers, H, T, T) beside the mask that it keeps to."""
    drawn, axes = figure(2, figsize=(10, 4.4), width_ratios=[1.25, 1])
    weights = maps[layer, head]
    heat_map(axes[1], torch.ones_like(weights).tril(), None, words, vmin=0, vmax=1.6)
    image = heat_map(axes[0], weights, words, words, vmin=0, vmax=1)
    drawn.colorbar(image, ax=axes[0], shrink=0.8, label="weight")
    first, previous = weight_on_first(weights), weight_on_previous(weights)
    axes[0].set_title(f"layer {layer}, head {head}: first {first:.0%}, previous {previous:.0%}")
    axes[0].set_ylabel("query")
    axes[0].set_xlabel("key")
    axes[1].set_yticks([])
    axes[1].set_xlabel("key")
    axes[1].set_title("the mask: blue may be looked at")
    return drawn


def _symmetric(values: torch.Tensor) -> dict[str, float]:
    largest = values.abs().max().item()
    return {"vmin": -largest, "vmax": largest}


def _points() -> dict[str, object]:
    return {"textcoords": "offset points", "fontsize": 8}
