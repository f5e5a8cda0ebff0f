"""The figures of lesson 02: the Transformer."""

from collections.abc import Mapping, Sequence

import matplotlib.pyplot as plt
import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from llama_int8.course.drawings import (
    SMALL,
    TITLE,
    WIDTH,
    Area,
    arrow,
    box,
    canvas,
    group,
    matrix,
    sign,
    stroke,
    write,
)
from llama_int8.course.plots import COLOURS, CURVES, INKS, SHAPES, figure, heat_map

BLOCK_ALT = (
    "The residual stream x runs from left to right. Twice a copy leaves it upwards, passes a "
    "LayerNorm and a part, first attention, then the feed-forward network, and is added back."
)
TRANSFORMER_ALT = (
    "Left, the encoder: words, embedding and positions, N blocks of self-attention and feed-forward. "
    "Right, the decoder: the date so far, embedding and positions, N blocks of masked "
    "self-attention, cross-attention and feed-forward, lm_head, next character. An arrow leads from "
    "the encoder's states to cross-attention."
)
KINDS_ALT = (
    "Three stacks, each above its mask of six tokens. Encoder-only: every cell is filled. "
    "Decoder-only: the lower triangle. Encoder-decoder, an arrow from one stack to the other: the "
    "first three tokens see each other, the last three see those and their own past."
)


def drawing_block() -> Figure:
    """A pre-norm block: two parts that read from the residual stream and add to it."""
    drawn, axes = canvas(WIDTH, 2.75, "A block adds to a stream: two parts read it and write to it")
    y, high = 0.75, 1.65
    sums = [sign(axes, "+", (x, y)) for x in (3.55, 6.55)]
    parts = ("attention", "feed-forward")
    jobs = ("between positions", "each position by itself")
    for part, job, left, total in zip(parts, jobs, (1.1, 4.1), sums, strict=True):
        norm = box(axes, "LayerNorm", (left, high), (0.9, 0.36), "weights")
        middle = left + 1.3
        sublayer = box(axes, part, (middle, high), (1.15, 0.36), "queries")
        write(axes, (middle, high + 0.34), job, SMALL, style="italic")
        arrow(axes, (left, y), norm)
        arrow(axes, norm, sublayer)
        arrow(axes, sublayer, total, corners=[(total.centre[0], high)])
    stroke(axes, [(0.45, y), (sums[0].x0, y)], 3)
    stroke(axes, [(sums[0].x1, y), (sums[1].x0, y)], 3)
    end = box(axes, "x", (7.2, y), (0.3, 0.3), "activations")
    start = box(axes, "x", (0.3, y), (0.3, 0.3), "activations")
    arrow(axes, sums[1], end)
    write(axes, (start.x0, y - 0.35), "(B, T, C)", SMALL, ha="left")
    write(axes, (end.x1, y - 0.35), "(B, T, C)", SMALL, ha="right")
    write(axes, (3.6, y - 0.35), "residual stream: nothing but sums on the way", SMALL)
    return drawn


def drawing_transformer() -> Figure:
    """The whole model of 2017: an encoder that reads, a decoder that writes."""
    drawn, axes = canvas(
        WIDTH, 5.0, "The encoder reads everything once, the decoder writes step by step"
    )
    left, right = 1.9, 5.5
    words = box(axes, "may third nineteen eighty four", (left, 0.35), (2.4, 0.3), "activations")
    so_far = box(axes, "START 1 9 8 4 -", (right, 0.35), (1.6, 0.3), "activations")
    tops = []
    stacks = {
        left: ("encoder block × N", ["self-attention", "feed-forward"], words),
        right: (
            "decoder block × N",
            ["self-attention, causal", "cross-attention", "feed-forward"],
            so_far,
        ),
    }
    crossing = None
    for x, (name, parts, source) in stacks.items():
        embed = box(axes, "embedding + positions", (x, 0.95), (2.1, 0.32), "weights")
        arrow(axes, source, embed)
        group(axes, Area(x - 1.25, 1.4, x + 1.25, 2.4 + 0.52 * (len(parts) - 1)), name)
        below = embed
        for number, part in enumerate(parts):
            role = "keys" if part == "cross-attention" else "queries"
            here = box(axes, part, (x, 1.68 + 0.52 * number), (2.1, 0.32), role)
            arrow(axes, below, here)
            below = here
            crossing = here if role == "keys" else crossing
        tops.append(below)
    states = box(axes, "states (B, S, C)", (left, 3.55), (2.1, 0.32), "activations")
    arrow(axes, tops[0], states)
    middle = (left + right) / 2
    arrow(
        axes,
        states,
        crossing,
        corners=[(middle, states.centre[1]), (middle, crossing.centre[1])],
    )
    write(axes, (middle + 0.02, states.centre[1] + 0.2), "keys, values", SMALL)
    head = box(axes, "lm_head", (right, 3.85), (2.1, 0.32), "weights")
    arrow(axes, tops[1], head)
    after = box(axes, "next character: 0", (right, 4.32), (1.6, 0.3), "activations")
    arrow(axes, head, after)
    return drawn


def drawing_kinds(length: int = 6, prefix: int = 3) -> Figure:
    """Encoder-only, decoder-only and encoder-decoder, each above its mask."""
    drawn, axes = canvas(WIDTH, 4.45)
    past = np.tril(np.ones((length, length), bool))
    joint = past.copy()
    joint[:prefix, :prefix] = True
    full = np.ones_like(past)
    names = {"encoder-only": "BERT", "decoder-only": "GPT, LLaMA", "encoder-decoder": "2017, T5"}
    labels = ("everyone sees everyone", "causal: the past only", "as one mask: prefix LM")
    for left, name, mask, label in zip(
        (0.1, 2.6, 5.1), names, (full, past, joint), labels, strict=True
    ):
        middle = left + 1.15
        write(axes, (middle, 4.26), name, TITLE, weight="bold")
        write(axes, (middle, 4.0), names[name], SMALL)
        _stack(axes, name, middle)
        cells = {"16 bit": [tuple(map(int, cell)) for cell in np.argwhere(mask)]}
        if name == "encoder-decoder":
            cells = _parts_of_the_prefix_lm(mask, prefix)
        size = 0.25
        corner = (middle - length * size / 2, 2.04)
        grid = matrix(axes, corner, mask.shape, label, cells=cells, size=size)
        if name == "encoder-decoder":
            step = prefix * size
            for x, y, part in ((0.5, 0.5, "encoder"), (0.5, 1.5, "cross"), (1.5, 1.83, "decoder")):
                write(axes, (grid.x0 + x * step, grid.y1 - y * step), part, SMALL)
        write(axes, (grid.x0 - 0.1, grid.centre[1]), "looks", SMALL, rotation=90)
        write(axes, (grid.centre[0], grid.y1 + 0.1), "is looked at", SMALL)
    return drawn


def _parts_of_the_prefix_lm(mask: np.ndarray, prefix: int) -> dict[str, list[tuple[int, int]]]:
    """The cells of the encoder, of cross-attention and of the decoder, with a colour each."""
    cells: dict[str, list[tuple[int, int]]] = {"16 bit": [], "keys": [], "values": []}
    for row, column in np.argwhere(mask):
        part = "16 bit" if row < prefix else "keys" if column < prefix else "values"
        cells[part].append((int(row), int(column)))
    return cells


def _stack(axes: Axes, name: str, middle: float) -> None:
    """The boxes of one kind of transformer, what goes in below and what comes out above."""
    if name == "encoder-decoder":
        encoder = box(axes, "encoder", (middle - 0.57, 3.1), (0.85, 0.32), "16 bit")
        decoder = box(axes, "decoder", (middle + 0.57, 3.1), (0.85, 0.32), "values")
        arrow(axes, encoder, decoder)
        texts = {encoder: ("source", ""), decoder: ("target so far", "next token")}
    else:
        block = box(axes, name.removesuffix("-only"), (middle, 3.1), (1.2, 0.32), "16 bit")
        texts = {block: ("text with gaps", "what fills the gaps")}
        if name == "decoder-only":
            texts = {block: ("text so far", "next token")}
    for block, (goes_in, comes_out) in texts.items():
        x = block.centre[0]
        arrow(axes, box(axes, goes_in, (x, 2.58), (None, 0.24), "activations", SMALL), block)
        if comes_out:
            arrow(axes, block, box(axes, comes_out, (x, 3.62), (None, 0.24), "activations", SMALL))


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


def reach(gradients: Mapping[str, torch.Tensor]) -> Figure:
    """Gradient of the last output at the token some steps back, the last token itself first."""
    drawn, axes = figure(figsize=(7.5, 3.6))
    for (name, values), colour, marker in zip(gradients.items(), CURVES, SHAPES, strict=False):
        axes.plot(values, marker=marker, ms=3.5, color=colour, label=name)
    axes.set_yscale("log")
    axes.set_xlabel("steps back from the last token")
    axes.set_ylabel("gradient there")
    axes.set_title("A GRU loses gradient with every step back, attention does not")
    axes.legend(loc="lower left")
    return drawn


def training(losses: Sequence[float], history: Mapping[int, Mapping[str, float]]) -> Figure:
    """Loss of each step and on held-out dates, and whole dates written right, during training.

    `history`: by step "loss" and "written", on held-out dates.
    """
    drawn, axes = figure(2, figsize=(9, 3.3))
    axes[0].plot(losses, color=COLOURS["bf16"], linewidth=0.8, label="training dates")
    held_out = [score["loss"] for score in history.values()]
    style = {"color": COLOURS["int8"], "markersize": 5}
    axes[0].plot(list(history), held_out, "s", label="unseen dates", **style)
    axes[0].set_yscale("log")
    axes[0].set_xlabel("step")
    axes[0].set_ylabel("loss (nats per character)")
    axes[0].set_title(f"Loss on unseen dates: {held_out[0]:.1f}, at the end {held_out[-1]:.2g}")
    axes[0].legend()
    written = [100 * score["written"] for score in history.values()]
    axes[1].plot(list(history), written, "o-", color=COLOURS["good"])
    axes[1].set_ylim(-3, 103)
    axes[1].set_xlabel("step")
    axes[1].set_ylabel("unseen dates written right (%)")
    axes[1].set_title(f"Whole dates right at the end: {written[-1]:.0f} %")
    return drawn


def alignment(
    maps: Sequence[torch.Tensor],
    words: str,
    iso: str,
    shares: torch.Tensor,
    untrained: torch.Tensor,
) -> Figure:
    """Cross-attention of one date, (output, input), of the trained and of the untrained model.

    Beside them the `shares` of the parts over many dates, and those of the `untrained` model.
    """
    drawn = plt.figure(figsize=(12, 5.6), layout="constrained")
    grid = drawn.add_gridspec(2, 2, width_ratios=[1.75, 1])
    own_words = all(shares[row, row] > untrained[row, row] for row in range(len(shares)))
    titles = ("After training", "Before training")
    for place, (weights, title) in enumerate(zip(maps, titles, strict=True)):
        axes = drawn.add_subplot(grid[place, 0])
        image = heat_map(axes, weights, list(iso), list(words.replace(" ", "·")), vmin=0)
        drawn.colorbar(image, ax=axes, shrink=0.8, label="weight")
        axes.tick_params(axis="x", rotation=0)
        axes.set_ylabel("being written")
        axes.set_title(title)
    axes.set_xlabel("character looked at")
    axes = drawn.add_subplot(grid[:, 1])
    parts = ["year", "month", "day"]
    image = heat_map(axes, shares, parts, [*parts, "rest"], vmin=0, vmax=1)
    axes.tick_params(axis="x", rotation=0)
    for row, column in np.ndindex(*shares.shape):
        share = shares[row, column].item()
        label = f"{share:.0%}\n(untrained\n{untrained[row, column]:.0%})"
        colour = "white" if share > 0.6 else "black"
        axes.text(column, row, label, ha="center", va="center", color=colour, fontsize=8)
    drawn.colorbar(image, ax=axes, shrink=0.6, label="share of the attention")
    axes.set_ylabel("part being written")
    axes.set_xlabel("words looked at")
    axes.set_title(
        "Training turns each part to its own words" if own_words else "Who looks where, many dates"
    )
    return drawn


LEAK_STYLES = {  # colour, line, marker
    "causal": (COLOURS["bf16"], "-", "o"),
    "after the softmax": (COLOURS["int8"], "--", "s"),
    "off by one": (COLOURS["highlight"], ":", "^"),
}


def leak(
    curves: Mapping[tuple[str, int], Mapping[int, float]],
    scores: Mapping[tuple[str, int], Mapping[str, float]],
) -> Figure:
    """Held-out loss during training, and dates right at its end, by mask and seed.

    `curves`: by (mask, seed) the loss at some steps; `scores`: "loss", "forced" and "written".
    """
    drawn, axes = figure(2, figsize=(10.5, 3.9), width_ratios=[1.15, 1], layout="constrained")
    for (mask, seed), curve in curves.items():
        colour, line, marker = LEAK_STYLES[mask]
        label = mask if seed == 0 else None
        axes[0].plot(
            list(curve), list(curve.values()), line, marker=marker, ms=4, color=colour, label=label
        )
    axes[0].set_yscale("log")
    axes[0].set_xlabel("step")
    axes[0].set_ylabel("loss on unseen dates\n(nats per character)")
    axes[0].legend(title="mask (a line per seed)")
    masks = list(dict.fromkeys(mask for mask, _ in scores))
    kinds = (
        ("forced", "with teacher forcing", "bf16", "", -0.2),
        ("written", "writing by itself", "int8", "///", 0.2),
    )
    for key, label, colour, hatch, shift in kinds:
        runs = [[100 * s[key] for (mask, _), s in scores.items() if mask == m] for m in masks]
        means = [sum(run) / len(run) for run in runs]
        style = {"color": COLOURS[colour], "hatch": hatch, "edgecolor": "white"}
        places = np.arange(len(masks)) + shift
        axes[1].bar(places, means, 0.38, label=label, **style)
        for place, run, mean in zip(places, runs, means, strict=True):
            (dots,) = axes[1].plot([place] * len(run), run, "o", color="black", ms=3)
            axes[1].annotate(
                f"{mean:.0f} %", (place, max(run)), (0, 4), color=INKS[colour], **_points()
            )
    axes[1].set_xticks(range(len(masks)), masks)
    axes[1].set_ylim(0, 128)
    axes[1].set_yticks(range(0, 101, 20))
    axes[1].set_ylabel("unseen dates right (%)")
    axes[1].grid(axis="x", visible=False)
    dots.set_label("one seed")
    axes[1].legend(loc="upper left", ncols=3, fontsize=8)
    honest = [score for (mask, _), score in scores.items() if mask == "causal"]
    leaky = [score for (mask, _), score in scores.items() if mask != "causal"]
    better = max(s["loss"] for s in leaky) < min(s["loss"] for s in honest)
    none = all(s["written"] == 0 for s in leaky)
    axes[0].set_title("Each leaky model has the better loss ..." if better else "Loss by mask")
    axes[1].set_title("... but writes no date right" if none else "Unseen dates right")
    return drawn


def _points() -> dict[str, object]:
    return {"textcoords": "offset points", "fontsize": 9, "ha": "center"}
