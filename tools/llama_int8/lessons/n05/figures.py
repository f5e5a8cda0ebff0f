"""The figures of lesson 05: how LLaMA is trained."""

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.figure import Figure
from torch import Tensor

from llama_int8.course.plots import AFTER, BEFORE, COLOURS, GREY, figure
from llama_int8.course.small_lm import learning_rate
from llama_int8.data import load
from llama_int8.measure.statistics import Spread, mean_interval
from llama_int8.models.cost import training_bytes


def training_recipe() -> Figure:
    """The paper's data mixture, and the learning rate over the tokens of each model."""
    papers = load("llama_papers")
    drawn, axes = figure(2, figsize=(11, 3.7))
    names = list(papers["mixture"])
    shares = [papers["mixture"][name][0] for name in names]
    axes[0].barh(names, shares, color=COLOURS["bf16"])
    for name, share in zip(names, shares, strict=True):
        _, epochs, gigabytes = papers["mixture"][name]
        text = f"{share:g} %, {gigabytes:,} GB, {epochs:.2f} epochs"
        axes[0].annotate(text, (share, name), (4, 0), textcoords="offset points", va="center")
    axes[0].invert_yaxis()
    axes[0].set_xlim(0, 130)
    axes[0].set_xticks(range(0, 101, 20))
    axes[0].set_xlabel("% of the tokens drawn in training")
    axes[0].grid(axis="y", visible=False)
    axes[0].set_title("Data: two thirds from CommonCrawl")
    pairs = (("7B and 13B", "7B", "int8", "--"), ("33B and 65B", "65B", "bf16", "-"))
    for label, name, colour, line in pairs:
        size = papers["sizes"][name]
        steps = round(size["tokens"] * 1e12 / 4e6)
        at = np.unique(np.concatenate([np.linspace(0, 4000, 60), np.linspace(0, steps, 200)]))
        rate = [1e4 * learning_rate(int(step), steps, size["rate"], 2000) for step in at]
        axes[1].plot(at * 4e6 / 1e12, rate, line, color=COLOURS[colour], label=label)
    axes[1].set_xlabel("trillions of tokens, 4 million a step")
    axes[1].set_ylabel("learning rate (1e-4)")
    axes[1].set_ylim(0)
    axes[1].legend()
    axes[1].set_title("2,000 steps up (a 125th of 7B's run), then a cosine")
    return drawn


def training_memory(parameters: Mapping[str, int], card_gb: float) -> Figure:
    """GB of weights, gradients and AdamW's states by model size, beside one card."""
    drawn, axes = figure(figsize=(8.5, 3.4))
    left = np.zeros(len(parameters))
    shades = (COLOURS["bf16"], COLOURS["good"], "#56B4E9", COLOURS["int8"], COLOURS["highlight"])
    hatches = ("", "///", "", "...", "xx")
    kinds = [training_bytes(count) for count in parameters.values()]
    for kind, colour, hatch in zip(kinds[0], shades, hatches, strict=True):
        width = np.array([bytes_[kind] / 1e9 for bytes_ in kinds])
        style = {"color": colour, "hatch": hatch, "edgecolor": "white"}
        axes.barh(list(parameters), width, left=left, label=kind, **style)
        left += width
    for name, total in zip(parameters, left, strict=True):
        text = f"{total:,.0f} GB"
        axes.annotate(text, (total, name), (4, 0), textcoords="offset points", va="center")
    axes.axvline(card_gb, color="black", linestyle=":", label=f"one A100, {card_gb:.0f} GB")
    axes.invert_yaxis()
    axes.set_xlim(0, left.max() * 1.15)
    axes.set_xlabel("GB before a single activation")
    axes.grid(axis="y", visible=False)
    axes.legend(fontsize=8, loc="upper right")
    axes.set_title("16 bytes a parameter: not even 7B trains on one card as it is")
    return drawn


def checkpointing(
    kept: Mapping[str, float], floor: float, times: Mapping[str, Spread], tokens: int
) -> Figure:
    """Bytes kept for the backward pass, and seconds of a training pass, without and with it."""
    drawn, axes = figure(2, figsize=(10, 2.9))
    colours, hatches = [BEFORE["color"], AFTER["color"]], ["///", ""]
    names = list(kept)
    megabytes = [kept[name] / 1e6 for name in names]
    axes[0].barh(names, megabytes, color=colours, hatch=hatches, edgecolor="white")
    axes[0].axvline(floor / 1e6, color="black", linestyle=":", label="inputs of the blocks alone")
    axes[0].set_xlabel(f"MB kept for the backward pass, {tokens} tokens")
    axes[0].legend(fontsize=8, loc="lower right")
    axes[0].set_title(f"{megabytes[0] / megabytes[1]:.0f}x less to keep")
    middle = np.array([times[name].median for name in names])
    low = middle - [times[name].low for name in names]
    high = [times[name].high for name in names] - middle
    axes[1].barh(names, middle, color=colours, hatch=hatches, edgecolor="white")
    axes[1].errorbar(middle, names, xerr=[low, high], fmt="none", ecolor="black", capsize=3)
    axes[1].set_xlabel("s forward and backward")
    axes[1].set_title(f"for {middle[1] / middle[0] - 1:+.0%} time")
    for panel in axes:
        panel.invert_yaxis()
        panel.grid(axis="y", visible=False)
    return drawn


def ablation(scores: Mapping[str, Sequence[float]]) -> Figure:
    """Held-out loss of each variant minus the original's with the same seed, and their means."""
    drawn, axes = figure(2, figsize=(11, 3.9), width_ratios=(1, 1))
    names = [name for name in scores if name != "original"]
    original = np.array(scores["original"])
    for panel, shown in zip(axes, (names, [n for n in names if n not in _LARGE]), strict=True):
        for row, name in enumerate(shown):
            differences = np.array(scores[name]) - original
            panel.plot(differences, [row] * len(differences), "o", color=GREY, markersize=4)
            mean, low, high = mean_interval(differences)
            error = [[mean - low], [high - mean]]
            panel.errorbar(mean, row, xerr=error, capsize=4, **{**AFTER, "marker": "D"})
        panel.axvline(0, color="black", linewidth=1)
        panel.set_yticks(range(len(shown)), shown)
        panel.invert_yaxis()
        panel.grid(axis="y", visible=False)
        panel.set_xlabel("bits a byte against the original: better ←  → worse")
    axes[0].set_title("Only rotary positions make a large difference")
    axes[1].set_title("The rest, enlarged")
    return drawn


def beyond_training(
    curves: Mapping[str, Tensor], trained: int, bin_width: int, cut: float
) -> Figure:
    """Loss by position, (seeds, windows, bins of `bin_width` bytes) for each kind of position.

    `cut`: the loss of the rotary model where the text is cut to what it was trained on.
    """
    drawn, axes = figure(figsize=(9.5, 4.2))
    styles = (
        (COLOURS["int8"], "s", "--"),
        (COLOURS["highlight"], "v", "--"),
        ("#56B4E9", "+", ":"),
        (COLOURS["bf16"], "o", "-"),
        (COLOURS["predicted"], "x", ":"),
        (COLOURS["good"], "D", "-"),
    )
    for (name, losses), (colour, marker, line) in zip(curves.items(), styles, strict=True):
        middle = (np.arange(losses.shape[2]) + 0.5) * bin_width
        by_seed = losses.mean(1)  # (seeds, bins)
        style = {"color": colour, "marker": marker, "linestyle": line, "markersize": 5}
        axes.plot(middle, by_seed.mean(0), label=name, **style)
        band = {"color": colour, "alpha": 0.15, "linewidth": 0}
        axes.fill_between(middle, by_seed.amin(0), by_seed.amax(0), **band)
    axes.axhline(cut, color=COLOURS["bf16"], linestyle=(0, (1, 3)), label="rotary, text cut")
    axes.axvline(trained, color="black", linestyle=":")
    axes.annotate(
        "trained up to here",
        (trained, axes.get_ylim()[1]),
        (4, -10),
        fontsize=8,
        textcoords="offset points",
    )
    axes.set_xlabel("position in the text (bytes)")
    axes.set_ylabel("held-out loss (bits a byte)")
    axes.legend(fontsize=8, loc="upper left", bbox_to_anchor=(1, 1))
    axes.set_title("Beyond the trained length rotary positions fail; llama3 scaling survives")
    return drawn


_LARGE = ("+ rotary", "all: LLaMA", "rotary, no scale")  # in a panel of their own scale
