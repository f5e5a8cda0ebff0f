"""The figures of lesson 02: the Transformer."""

from collections.abc import Mapping

import torch
from matplotlib.figure import Figure

from llama_int8.course.plots import COLOURS, INKS, figure, heat_map
from llama_int8.lessons.n02.heads import weight_on_first, weight_on_previous


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


def _points() -> dict[str, object]:
    return {"textcoords": "offset points", "fontsize": 8}
