"""The figures of lesson 01: attention and causal masking."""

from collections.abc import Mapping, Sequence

import ipywidgets
import matplotlib.pyplot as plt
import numpy as np
import torch
from matplotlib.figure import Figure
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from llama_int8.course.drawings import arrow, box, brace, canvas, matrix, write
from llama_int8.course.explore import explore
from llama_int8.course.heads import attention_maps
from llama_int8.course.plots import COLOURS, GREY, figure, heat_map
from llama_int8.measure.statistics import Spread

ATTENTION_ALT = (
    "Attention for three tokens. Queries (3, 2) times transposed keys (2, 3) give dot products "
    "(3, 3); divided by the root of 2 and through a softmax they become weights, one row for each "
    "query; weights times values (3, 2) give the output (3, 2)."
)
HEADS_ALT = (
    "Three heads side by side. Each one takes the whole vectors x, of width C, and projects them to "
    "its own small queries, keys and values, of width D = C / 3. Their outputs are put beside each "
    "other, back to width C, and one matrix mixes them."
)


def drawing_attention(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, names: Sequence[str]
) -> Figure:
    """q, k, v (T, 2) with their numbers, and the way to the output, weights still to be computed."""
    drawn, axes = canvas(
        7.5, 3.7, "Attention: dot products, shares of each row, mean of the values"
    )
    length, size, y = len(q), 0.32, 2.95
    queries = matrix(axes, (1.0, y), q.numpy(), "queries Q", "queries", rows=names, size=size)
    keys = matrix(axes, (2.3, y), k.T.numpy(), "keys, Kᵀ", "keys", columns=names, size=(0.6, size))
    write(axes, ((queries.x1 + keys.x0) / 2, y - size), "×", 11)
    dots = matrix(
        axes, (5.3, y), (q @ k.T).numpy(), "dot products Q Kᵀ", columns=names, size=(0.6, size)
    )
    arrow(axes, (keys.x1 + 0.1, y - size), (dots.x0 - 0.1, y - size))
    y = 1.35
    weights = matrix(
        axes, (1.0, y), (length, length), "weights", "highlight", rows=names, size=(0.6, size)
    )
    values = matrix(axes, (3.8, y), v.numpy(), "values V", "values", rows=names, size=size)
    out = matrix(axes, (6.0, y), (length, 2), "output", "activations", rows=names, size=size)
    write(axes, (weights.x1 + 0.2, y - 1.5 * size), "×", 11)
    arrow(axes, (values.x1 + 0.1, y - 1.5 * size), (out.x0 - 0.55, y - 1.5 * size))
    arrow(
        axes,
        (dots.centre[0], dots.y0 - 0.24),
        (weights.centre[0], weights.y1 + 0.03),
        "÷ √D, then softmax along each row",
        corners=[(dots.centre[0], 1.6), (weights.centre[0], 1.6)],
        beside="below",
    )
    return drawn


def drawing_heads(heads: int = 3) -> Figure:
    """The whole vector goes to every head; their small outputs come together again."""
    drawn, axes = canvas(7.5, 3.6, "Every head takes in the whole vector and gives a small one")
    x = matrix(axes, (0.15, 2.45), (4, 2 * heads), "x (T, C)", "activations", size=(0.17, 0.25))
    whose = np.tile(np.repeat(np.arange(1, heads + 1), 2), (4, 1))
    joined = matrix(
        axes, (4.45, 2.45), whose, "side by side (T, C)", "activations", size=(0.17, 0.25)
    )
    for number in range(heads):
        y = 2.9 - 0.95 * number
        qkv = box(axes, "q, k, v (T, D)", (2.15, y), (1.15, 0.36), font=8)
        head = box(axes, f"attention {number + 1}", (3.5, y), (1.0, 0.36), font=8)
        arrow(axes, (x.x1 + 0.04, x.centre[1]), (qkv.x0, y))
        arrow(axes, qkv, head)
        arrow(axes, (head.x1, y), (joined.x0 - 0.03, joined.centre[1]))
    mixing = box(axes, "o_proj", (6.12, joined.centre[1]), role="weights")
    arrow(axes, joined, mixing)
    write(axes, (7.12, mixing.centre[1]), "(T, C)")
    arrow(axes, mixing, (6.82, mixing.centre[1]))
    brace(axes, (1.55, 0.7), (4.05, 0.7), "H heads, each with a softmax of its own")
    return drawn


def root(plain: torch.Tensor, scaled: torch.Tensor, words: list[str]) -> Figure:
    """One head's weights (T, T) without and with the square root, beside each other."""
    drawn, axes = figure(2, figsize=(9, 4.0))
    hidden = torch.ones_like(plain).triu(1).bool()
    for panel, (values, title) in zip(
        axes, ((plain, "softmax(q·k)"), (scaled, "softmax(q·k / √D)")), strict=True
    ):
        panel.set_facecolor("#DDDDDD")  # what the mask hides
        seen = values.masked_fill(hidden, torch.nan)
        image = heat_map(panel, seen, words if panel is axes[0] else None, words, vmin=0, vmax=1)
        largest = values[1:].amax(-1).mean()
        panel.set_title(f"{title}: largest {largest:.0%}\n(mean of the rows after the first)")
        panel.set_xlabel("key")
        if panel is axes[1]:
            panel.set_yticks([])
    axes[0].set_ylabel("query")
    drawn.colorbar(image, ax=axes, shrink=0.8, label="weight")
    return drawn


def scaling(
    widths: list[int],
    entropy: Mapping[str, list[Spread]],
    slope: Mapping[str, list[Spread]],
    keys: int,
    own: int,
    smaller_from: int | None,
) -> Figure:
    """Entropy and size of the derivatives of random rows against D; `own`: the model's D.

    `smaller_from`: from which D on the derivatives are smaller without the root.
    """
    drawn, axes = figure(2, figsize=(9, 3.3))
    styles = {"q·k": ("int8", "s"), "q·k / √D": ("bf16", "o")}
    for panel, measured in zip(axes, (entropy, slope), strict=True):
        for name, spreads in measured.items():
            style, marker = styles[name]
            colour, middle = COLOURS[style], [s.median for s in spreads]
            panel.plot(widths, middle, marker, linestyle="-", color=colour, label=name)
            ends = [s.low for s in spreads], [s.high for s in spreads]
            panel.fill_between(widths, *ends, color=colour, alpha=0.2, linewidth=0)
        panel.set_xscale("log", base=2)
        panel.set_xlabel("width D of queries and keys")
    axes[0].axhline(np.log2(keys), linestyle=":", color="black")
    axes[0].annotate(f"all {keys} keys alike", (widths[0], np.log2(keys)), (0, 3), **_points())
    axes[0].set_ylim(0, np.log2(keys) * 1.12)
    axes[0].set_ylabel("entropy of a row (bits)")
    axes[0].set_title("Without the root, rows get sharp ...")
    axes[0].legend()
    axes[1].axvline(own, linestyle=":", color=GREY)
    axes[1].set_yscale("log")
    axes[1].set_ylim(1e-4, 1)
    axes[1].set_ylabel("size of derivatives by q·k")
    start = f"from D = {smaller_from:,} on" if smaller_from else "at no width tried"
    axes[1].set_title(f"... derivatives smaller {start}")
    return drawn


def influence(moved: Mapping[str, torch.Tensor]) -> Figure:
    """How far each output moved when one token changed, (T, T) for each way of masking."""
    drawn, axes = figure(len(moved), figsize=(2.55 * len(moved), 3.2))
    smallest = min(values[values > 0].min().item() for values in moved.values())
    low, high = np.log10(smallest), np.log10(max(v.max().item() for v in moved.values()))
    for panel, (name, values) in zip(axes, moved.items(), strict=True):
        size = values.masked_fill(values == 0, torch.nan).log10()
        image = heat_map(panel, size, vmin=low, vmax=high, aspect="equal")
        leaks = (values.triu(1) > 0).nonzero().tolist()
        panel.set_title(f"{name}\n{len(leaks)} leaks" if leaks else f"{name}\nno leak", fontsize=10)
        for row, column in leaks:
            panel.plot(column, row, "x", color="white", markersize=8, markeredgewidth=3.5)
            panel.plot(column, row, "x", color=COLOURS["int8"], markersize=7, markeredgewidth=2)
        panel.set_xticks(range(0, len(values), 2))
        panel.set_yticks(range(0, len(values), 2))
        panel.set_xlabel("token that was changed")
    axes[0].set_ylabel("output that moved")
    bar = drawn.colorbar(image, ax=axes, shrink=0.75, label="how far it moved")
    ticks = range(int(np.ceil(low)), int(np.floor(high)) + 1)
    bar.set_ticks(list(ticks), labels=[f"$10^{{{tick}}}$" for tick in ticks])
    return drawn


def pronoun(tired: torch.Tensor, wide: torch.Tensor, words: list[str], title: str) -> Figure:
    """The weights of one query on the words before it, in two sentences, as pairs of bars."""
    drawn, axes = figure(figsize=(7.5, 3.0))
    places = np.arange(len(words))
    looks = (("... too tired", tired, "bf16", ""), ("... too wide", wide, "int8", "///"))
    for shift, (name, weights, colour, hatch) in zip((-0.2, 0.2), looks, strict=True):
        style = {"color": COLOURS[colour], "hatch": hatch, "edgecolor": "white"}
        axes.bar(places + shift, 100 * weights.numpy(), 0.38, label=name, **style)
    axes.set_xticks(places, words)
    axes.set_ylim(0, 100)
    axes.set_ylabel('weight of "it" (%)')
    axes.set_title(title)
    axes.grid(axis="x", visible=False)
    axes.legend()
    return drawn


def cost(lengths: Sequence[int], scores: Sequence[float], model_bytes: float) -> Figure:
    """Bytes of one layer's weights of attention against the length of the text."""
    drawn, axes = figure(figsize=(7.5, 3.3))
    axes.plot(lengths, scores, "o-", color=COLOURS["bf16"], label="attention weights of one layer")
    axes.axhline(model_bytes, linestyle="--", color=GREY)
    axes.annotate("all parameters of the model", (lengths[0], model_bytes), (0, 4), **_points())
    axes.set_xscale("log", base=2)
    axes.set_yscale("log")
    axes.set_xticks(lengths, [f"{length:,}" for length in lengths])
    axes.set_xlabel("tokens T")
    axes.set_ylabel("bytes in FP32")
    axes.set_title("Twice the text, four times the attention weights")
    axes.legend(loc="lower right")
    return drawn


def heads(first: torch.Tensor, previous: torch.Tensor, found: tuple[int, int]) -> Figure:
    """Mean weight on the first and on the previous token, (layers, H) each; `found` is marked."""
    drawn, axes = figure(2, figsize=(10, 3.4))
    layer, head = found
    titles = (
        "Weight on the first token",
        f"Weight on the previous token\n(circle: layer {layer}, head {head})",
    )
    for panel, values, title in zip(axes, (first, previous), titles, strict=True):
        image = heat_map(panel, values.T, vmin=0, vmax=1)
        drawn.colorbar(image, ax=panel, shrink=0.8).ax.set_title("weight", fontsize=8)
        panel.set_xlabel("layer")
        panel.set_title(title)
    axes[0].set_ylabel("head")
    axes[1].plot(layer, head, "o", ms=13, mfc="none", mec=COLOURS["int8"], mew=2)
    return drawn


def stripe(weight: torch.Tensor, largest: torch.Tensor, lengths: Sequence[float]) -> Figure:
    """By layer: weight on the first token, largest entries of the states, length of its value vector.

    `largest`: (layers, T), of each token's state; `lengths`: the first token's value vector over the
    mean of the others'.
    """
    drawn, axes = plt.subplots(3, sharex=True, figsize=(7.5, 5.2))
    layers = range(len(weight))
    first = {"color": COLOURS["int8"], "marker": "s", "markersize": 4, "label": "first token"}
    others = {"color": COLOURS["bf16"], "marker": "o", "markersize": 3, "label": "others (median)"}
    axes[0].plot(layers, 100 * weight, **first)
    axes[0].set_ylim(0, 100)
    axes[0].set_ylabel("weight on the\nfirst token (%)")
    axes[0].set_title("Sink and huge entry come and go together")
    axes[1].plot(layers, largest[:, 0], **first)
    axes[1].plot(layers, largest[:, 1:].median(-1).values, **others)
    axes[1].set_yscale("log")
    axes[1].set_ylabel("largest entry\nof a state")
    axes[1].legend(fontsize=8)
    axes[2].plot(layers, lengths, **first)
    axes[2].axhline(1, linestyle=":", color=GREY)
    axes[2].set_ylim(bottom=0)
    axes[2].set_ylabel("length of its value\nvector (others: 1)")
    axes[2].set_xlabel("layer")
    return drawn


def head_and_mask(maps: torch.Tensor, words: list[str], layer: int, head: int) -> Figure:
    """One head's map (layers, H, T, T) beside the mask that it keeps to."""
    drawn, axes = figure(2, figsize=(10, 4.4), width_ratios=[1.25, 1])
    weights = maps[layer, head]
    hidden = torch.ones_like(weights).triu(1).bool()
    for panel in axes:
        panel.set_facecolor("#DDDDDD")  # what the mask hides
        panel.set_xlabel("key")
    seen = weights.masked_fill(hidden, torch.nan)
    image = heat_map(axes[0], seen, words, words, vmin=0, vmax=1)
    mask = torch.ones_like(weights).masked_fill(hidden, torch.nan)
    heat_map(axes[1], mask, None, words, vmin=0, vmax=1.6)
    drawn.colorbar(image, ax=axes[0], shrink=0.8).ax.set_title("weight", fontsize=8)
    axes[0].set_title(f"layer {layer}, head {head}")
    axes[0].set_ylabel("query")
    axes[1].set_yticks([])
    axes[1].set_title("the mask: blue may be looked at, grey not")
    return drawn


def explore_heads(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    sentence: str,
    layer: int,
    head: int,
) -> None:
    """A sentence to type and sliders for layer and head, above `head_and_mask`; at most 40 tokens."""
    remembered: dict[str, tuple[torch.Tensor, list[str]]] = {}

    def show(sentence: str, layer: int, head: int) -> Figure:
        if sentence not in remembered:
            ids = tokenizer(sentence, return_tensors="pt")["input_ids"]
            words = [tokenizer.decode([i]).strip() for i in ids[0].tolist()]
            maps = attention_maps(model, ids)
            remembered[sentence] = maps[:, :, :40, :40], words[:40]  # labels stay readable
        return head_and_mask(*remembered[sentence], layer, head)

    last_layer, last_head = (
        model.config.num_hidden_layers - 1,
        model.config.num_attention_heads - 1,
    )
    explore(
        show,
        alt="Attention map of one head on the sentence, beside the triangular causal mask.",
        sentence=ipywidgets.Text(sentence, description="sentence", continuous_update=False),
        layer=ipywidgets.IntSlider(layer, 0, last_layer, description="layer"),
        head=ipywidgets.IntSlider(head, 0, last_head, description="head"),
    )


def _points() -> dict[str, object]:
    return {"textcoords": "offset points", "fontsize": 8}
