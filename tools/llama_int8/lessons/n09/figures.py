"""The figures of notebook 09."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.colors import ListedColormap
from matplotlib.figure import Figure
from torch import Tensor

from llama_int8.course.plots import CURVES, SHAPES, figure
from llama_int8.lessons.n09.backends import BACKENDS, OURS
from llama_int8.transformer.flash import Tile

LOOKS = dict(zip((*BACKENDS, OURS), zip(CURVES, SHAPES, strict=True), strict=False))
PREDICTED = (("#949494", ":"), ("#666666", "-."), ("#000000", "--"))
LOOKS |= {
    "standard": (CURVES[0], SHAPES[0]),
    "version 1": (CURVES[1], SHAPES[1]),
    "version 2": (CURVES[2], SHAPES[2]),
}


def _look(name: str) -> dict[str, Any]:
    colour, marker = LOOKS.get(name, (CURVES[0], SHAPES[0]))
    return {"color": colour, "marker": marker, "markersize": 5}


def running(scores: Tensor, maxima: Tensor, totals: Tensor, block: int) -> Figure:
    """One row of scores, and the maximum and the sum after each block of it."""
    drawn, axes = figure(2, figsize=(9, 3.2))
    x = np.arange(len(scores))
    axes[0].bar(x, scores.numpy(), color=CURVES[0], label="scores")
    ends = np.arange(1, len(maxima) + 1) * block
    axes[0].step([0, *ends], [maxima[0].item(), *maxima.tolist()], where="pre", color=CURVES[1],
                 label="maximum after this block")  # fmt: skip
    axes[0].set_xlabel("key")
    axes[0].set_title(f"The maximum rises {int((maxima.diff() > 0).sum())} times")
    axes[0].legend(fontsize=8)
    log = (totals.log() + maxima).numpy()
    axes[1].plot(ends, totals.numpy(), color=CURVES[2], marker="o", label="running sum")
    axes[1].plot(ends, log, color=CURVES[3], marker="s", label="maximum + log(sum)")
    axes[1].set_xlabel("keys read")
    axes[1].set_title("The sum may fall, the pink line cannot")
    axes[1].legend(fontsize=8)
    return drawn


def tiles(
    done: Sequence[Tile],
    state: tuple[Tensor, Tensor, Tensor],
    final: Tensor,
    shape: tuple[int, int],
    visited: np.ndarray,
) -> Figure:
    """The scores' tiles after so many steps, and of each query its maximum, sum and error so far.

    `done`: tiles so far, the last one just computed; `state`: `state_after` of them; `final`: the
    output (1, H, T, D); `shape`: queries and keys; `visited`: which scores are ever computed (T, S).
    """
    maximum, total, output = (part[0, 0].numpy() for part in state)
    grid = np.where(visited, 1, 0)  # 0 skipped, 1 to come, 2 done, 3 now
    for tile in done:
        grid[tile.rows, tile.columns] = 2
    grid[done[-1].rows, done[-1].columns] = 3
    drawn, axes = figure(3, figsize=(9.5, 3.6), sharey=True, width_ratios=(2.4, 1, 1))
    colours = ListedColormap(["#FFFFFF", "#DDDDDD", "#56B4E9", "#D55E00"])
    axes[0].imshow(grid, cmap=colours, vmin=0, vmax=3, aspect="auto", interpolation="nearest")
    high, wide = (part.stop - part.start for part in (done[0].rows, done[0].columns))
    axes[0].set_yticks(np.arange(0, shape[0], high) - 0.5, np.arange(0, shape[0], high))
    axes[0].set_xticks(np.arange(0, shape[1], wide) - 0.5, np.arange(0, shape[1], wide))
    axes[0].set_xlabel("key (white: skipped; grey: to come; blue: done; orange: now)")
    axes[0].set_ylabel("query")
    axes[0].grid(color="black", linewidth=0.8)
    axes[0].set_axisbelow(False)
    axes[0].set_title(f"{len(done)} tile{'s' if len(done) > 1 else ''} done")
    rows = np.arange(shape[0])
    axes[1].barh(rows, total[:, 0], color=CURVES[2], label="sum")
    seen = np.isfinite(maximum[:, 0])
    axes[1].plot(maximum[seen, 0], rows[seen], "D", color=CURVES[1], markersize=3, label="maximum")
    drawn.legend(fontsize=8, ncols=2, loc="outside lower center")
    axes[1].set_xlabel("running maximum and sum")
    axes[1].set_title(f"{int(seen.sum())} rows begun")
    error = np.abs(output - final[0, 0].numpy()).max(1)
    axes[2].barh(rows, error, color=CURVES[3], hatch="//", edgecolor="white")
    axes[2].set_xlim(0, 1.05 * max(np.abs(final.numpy()).max(), 1e-9))
    axes[2].set_xlabel("largest error of the output")
    axes[2].set_title(f"{int((error < 1e-5).sum())} of {shape[0]} rows final")
    return drawn


def moved(
    lengths: Sequence[int],
    lines: Mapping[str, Sequence[float]],
    counted: Mapping[str, Mapping[int, float]],
    title: str,
) -> Figure:
    """Bytes moved over the length by the formulas, and dots where the loops were counted."""
    drawn, axes = figure(figsize=(8.5, 4))
    for name, values in lines.items():
        look = _look(name)
        axes.plot(lengths, values, color=look["color"], label=name)
        dots = counted.get(name, {})
        axes.plot(list(dots), list(dots.values()), linestyle="", **look)
    axes.set_xscale("log", base=2)
    axes.set_yscale("log")
    axes.set_xlabel("length T, queries and keys (dots: counted in the loops)")
    axes.set_ylabel("bytes moved for one head")
    axes.legend(fontsize=8)
    axes.set_title(title)
    return drawn


def over_length(found: Mapping[int, Mapping[str, Mapping[str, Any]]]) -> Figure:
    """Time and peak memory of attention by itself over the length, a line for each way."""
    drawn, axes = figure(2, figsize=(9.5, 3.9))
    lengths = list(found)
    for name in found[lengths[0]]:
        own = [n for n in lengths if name in found[n]]
        times = 1e3 * np.array([np.median(found[n][name]["seconds"]) for n in own])
        low, high = (
            1e3 * np.array([end(found[n][name]["seconds"]) for n in own]) for end in (min, max)
        )
        axes[0].errorbar(own, times, [times - low, high - times], capsize=2, label=name,
                         **_look(name))  # fmt: skip
        axes[1].plot(own, [found[n][name]["peak"] / 2**20 for n in own], label=name, **_look(name))
    for panel, word in zip(axes, ("milliseconds", "peak MiB beyond q, k, v"), strict=True):
        panel.set_xscale("log", base=2)
        panel.set_yscale("log")
        panel.set_xlabel("length T")
        panel.set_ylabel(word)
    axes[0].legend(fontsize=8)
    peaks = found[lengths[-1]]
    names = sorted(peaks, key=lambda name: -peaks[name]["peak"])
    most, least = peaks[names[0]]["peak"], peaks[names[-1]]["peak"]
    axes[0].set_title("Time of attention")
    axes[1].set_title(
        f"At {lengths[-1]:,} {names[0]} takes {most / least:.0f}x {names[-1]}'s memory"
    )
    return drawn


def prefill(found: Mapping[int, Mapping[str, Sequence[float]]]) -> Figure:
    """Tokens/s in which the model reads a prompt, over its length, by backend."""
    drawn, axes = figure(figsize=(8, 3.8))
    lengths = list(found)
    for name in found[lengths[0]]:
        own = [n for n in lengths if name in found[n]]
        speed = np.array([n / np.median(found[n][name]) for n in own])
        low = np.array([n / max(found[n][name]) for n in own])
        high = np.array([n / min(found[n][name]) for n in own])
        axes.errorbar(own, speed, [speed - low, high - speed], capsize=2, label=name, **_look(name))
    axes.set_xscale("log", base=2)
    axes.set_xticks(lengths, [f"{n:,}" for n in lengths])
    axes.minorticks_off()
    axes.set_ylim(0)
    axes.set_xlabel("tokens of the prompt (log)")
    axes.set_ylabel("prefill, tokens/s")
    axes.legend(fontsize=8)
    last = {name: lengths[-1] / np.median(times) for name, times in found[lengths[-1]].items()}
    best = max(last, key=last.get)
    axes.set_title(f"At {lengths[-1]:,} tokens {best} reads fastest")
    return drawn


def shares(
    lengths: Sequence[int],
    predicted: Mapping[str, Mapping[str, Sequence[float]]],
    measured: Mapping[str, Mapping[str, Mapping[int, float]]],
) -> Figure:
    """Attention's share of the work over the length, predicted for models, measured for backends.

    Both: {"prefill" or "decode": {name: values}}.
    """
    drawn, axes = figure(2, figsize=(9.5, 3.9), sharey=True)
    words = {"prefill": "tokens of the prompt", "decode": "tokens in the cache"}
    for panel, (phase, by_model) in zip(axes, predicted.items(), strict=True):
        for number, (name, values) in enumerate(by_model.items()):
            colour, style = PREDICTED[number % len(PREDICTED)]
            panel.plot(lengths, values, color=colour, linestyle=style, linewidth=1.2,
                       label=f"{name}, predicted")  # fmt: skip
        for name, found in measured[phase].items():
            panel.plot(list(found), list(found.values()), label=f"measured, {name}", **_look(name))
        panel.axhline(0.5, color="black", linewidth=0.8)
        panel.set_xscale("log", base=2)
        panel.set_ylim(0, 1)
        panel.set_xlabel(f"{words[phase]} (log)")
        panel.set_title(phase)
    axes[0].set_ylabel("attention's share of the work")
    handles, labels = axes[0].get_legend_handles_labels()
    drawn.legend(handles, labels, fontsize=8, ncols=3, loc="outside lower center")
    return drawn
