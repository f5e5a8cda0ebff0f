"""The figures of notebook 10, and the piece of the kernel that it prints."""

from collections.abc import Mapping
from importlib.resources import files

import numpy as np
import torch
from matplotlib.figure import Figure

from llama_int8.course.plots import figure
from llama_int8.lessons.n10.backends import (
    BASELINE,
    BF16_CALL,
    ONE_CALL,
    Case,
    Look,
    Race,
    look,
)
from llama_int8.measure.statistics import PairedDifference, Spread
from llama_int8.models.cost import roofline
from llama_int8.quantization.cpu.layout import GROUP
from llama_int8.quantization.precisions import LLM_INT8

PARTS = {
    "16-bit products": ("#0072B2", ""),
    "int8 products": ("#D55E00", "///"),
    "one compiled call": ("#009E73", ""),
    "other operations": ("#595959", "xx"),
    "between operations": ("#949494", "--"),
}


def kernel_section(title: str) -> str:
    """The section of kernel.cpp whose heading begins with `title`. Raises ValueError if none does."""
    source = (files("llama_int8.quantization.cpu") / "kernel.cpp").read_text(encoding="utf-8")
    sections = source.split("\n// ---- ")[1:]
    for section in sections:
        if section.startswith(title):
            return section.partition("\n")[2].strip()
    titles = ", ".join(s.partition(" -")[0] for s in sections)
    raise ValueError(f"kernel.cpp has no section {title!r}; there are {titles}")


def lost_to_the_row(
    absmax: np.ndarray, where: str, lost: Mapping[str, tuple[float, float]]
) -> Figure:
    """One token's groups against its one step; and the bits that groups lose, by kind of layer.

    `absmax`: of each group of one token. `lost`: {kind: (median, highest tenth)} in bits.
    """
    drawn, axes = figure(2, figsize=(9.5, 3.6))
    step = absmax.max() / 127
    axes[0].bar(range(len(absmax)), absmax, color="#0072B2", edgecolor="white")
    axes[0].axhline(step, color="#D55E00", linestyle="--")
    axes[0].set_yscale("log")
    axes[0].set_xlabel(f"group of {GROUP} inputs of {where}; dashed: one step")
    axes[0].set_ylabel("largest magnitude (log)")
    axes[0].set_title(f"The smallest group has {absmax.min() / step:.0f} of 127 steps")
    kinds = list(lost)
    middle, high = (np.array([lost[k][i] for k in kinds]) for i in (0, 1))
    axes[1].barh(kinds, middle, color="#0072B2", edgecolor="white", label="median")
    axes[1].plot(high, kinds, "|", color="#D55E00", markersize=14, markeredgewidth=2,
                 label="a tenth of the groups loses more")  # fmt: skip
    axes[1].invert_yaxis()
    axes[1].grid(axis="y", visible=False)
    axes[1].set_xlabel("bits of 8 that a group loses to the row's scale")
    drawn.legend(fontsize=8, ncols=2, loc="outside lower right")
    worst = kinds[int(middle.argmax())]
    axes[1].set_title(f"Groups before {worst} lose most: {middle.max():.1f} bits")
    return drawn


def scheme_changes(changes: Mapping[str, PairedDifference]) -> Figure:
    """Differences of NLL from FP32 with their intervals, one row a scheme."""
    drawn, axes = figure(figsize=(8.5, 1.2 + 0.42 * len(changes)))
    for row, change in enumerate(changes.values()):
        error = [[change.mean - change.low], [change.high - change.mean]]
        kept = change.low <= 0 <= change.high
        axes.errorbar(change.mean, row, xerr=error, capsize=3, color="#0072B2" if kept else "#D55E00",
                      marker="o" if kept else "s")  # fmt: skip
        axes.annotate(f"{np.expm1(change.mean):+.2%}", (change.high, row), (6, 0), fontsize=8,
                      textcoords="offset points", va="center")  # fmt: skip
    axes.axvline(0, color="black", linewidth=0.8)
    axes.set_yticks(range(len(changes)), list(changes))
    axes.invert_yaxis()
    axes.margins(x=0.18)
    axes.set_xlabel("NLL minus FP32's, nats; beside it the change of perplexity")
    worst = max(changes, key=lambda name: changes[name].mean)
    axes.set_title(f"Highest cost: {worst}")
    return drawn


def layers(
    ratios: Mapping[int, Mapping[str, Mapping[str, Spread]]],
    shapes: Mapping[str, tuple[int, int]],
    reading: Mapping[str, Mapping[str, float]],
) -> Figure:
    """Speed of one layer over bf16's, by kind; a panel for each number of tokens.

    `ratios`: {tokens: {layer: {kind: bf16's seconds over its own}}}. `reading`: {layer: {kind: bytes/s
    of weights for one token}}, written beside the first panel's bars, bf16's below the layer's name.
    """
    drawn, axes = figure(len(ratios), figsize=(9.5, 4.2), sharey=True)
    names = [
        f"{name}\n{o:,} x {i:,}\nbf16: {reading[name]['bf16'] / 1e9:.0f} GB/s"
        for name, (o, i) in shapes.items()
    ]
    for panel, (tokens, by_layer) in zip(np.atleast_1d(axes), ratios.items(), strict=True):
        kinds = [kind for kind in next(iter(by_layer.values())) if kind != "bf16"]
        for number, kind in enumerate(kinds):
            at = np.arange(len(by_layer)) + (number - (len(kinds) - 1) / 2) * 0.16
            values = [by_layer[layer][kind] for layer in by_layer]
            middle = np.array([v.median for v in values])
            ends = np.array([[v.median - v.low, v.high - v.median] for v in values]).T
            bar = look(kind)
            panel.barh(at, middle, 0.15, xerr=ends, color=bar.colour, hatch=bar.hatch,
                       edgecolor="white", label=kind,
                       error_kw={"capsize": 2, "ecolor": "#333333"})  # fmt: skip
            for layer, place, value in zip(by_layer, at, middle + ends[1], strict=True):
                if tokens == 1:
                    panel.annotate(f"{reading[layer][kind] / 1e9:.0f} GB/s", (value, place), (6, 0),
                                   textcoords="offset points", va="center", fontsize=7)  # fmt: skip
        panel.axvline(1, color="black", linestyle="--", linewidth=1)
        panel.set_yticks(range(len(names)), names)
        panel.grid(axis="y", visible=False)
        panel.set_xlabel("speed over bf16's (dashed)")
        best = [by_layer[layer]["int8-fast"].median for layer in by_layer]
        word = "token" if tokens == 1 else "tokens"
        panel.set_title(f"{tokens} {word}: int8-fast {min(best):.1f}x to {max(best):.1f}x")
    np.atleast_1d(axes)[0].invert_yaxis()
    handles, labels = np.atleast_1d(axes)[0].get_legend_handles_labels()
    drawn.legend(handles, labels, fontsize=8, ncols=5, loc="outside lower center")
    return drawn


def where_steps_go(profiles: Mapping[str, Mapping[str, float]]) -> Figure:
    """Milliseconds of one decode step by part, and how many operations PyTorch ran."""
    drawn, axes = figure(figsize=(9, 1.5 + 0.45 * len(profiles)))
    rows, left = list(profiles), np.zeros(len(profiles))
    for part, (colour, hatch) in PARTS.items():
        values = np.array([1e3 * profiles[path][part] for path in rows])
        axes.barh(rows, values, 0.6, left=left, color=colour, hatch=hatch, edgecolor="white",
                  label=part)  # fmt: skip
        left += values
    for row, (path, total) in enumerate(zip(rows, left, strict=True)):
        count = profiles[path]["count"]
        axes.annotate(f" {total:.0f} ms, {count:,.0f} operations", (total, row), va="center",
                      fontsize=8)  # fmt: skip
    axes.set_xlim(0, 1.35 * left.max())
    axes.invert_yaxis()
    axes.grid(axis="y", visible=False)
    axes.set_xlabel("ms of one decode step, under the profiler")
    drawn.legend(fontsize=8, ncols=3, loc="outside lower center")
    half, most = (profiles[path]["count"] for path in (BASELINE, LLM_INT8))
    axes.set_title(
        f"{BASELINE} runs {half:,.0f} operations for a token, {LLM_INT8} {most / half:.1f}x as many"
    )
    return drawn


def paths(race: Race, case: Case) -> Figure:
    """Tokens/s of every path, one bar for each number of threads; ratio and share of the ceiling.

    For the cases that differ from `case` only in the number of threads; the shares are `case`'s own.
    """
    speeds = race.by_threads(race.speeds, case)
    ratios = race.by_threads(race.over_bf16, case)
    drawn, axes = figure(figsize=(9.5, 0.9 + 0.5 * len(speeds)))
    counts = list(next(iter(speeds.values())))
    height = 0.8 / len(counts)
    for row, (path, by_threads) in enumerate(speeds.items()):
        bar = look(path)
        for number, count in enumerate(counts):
            one = by_threads[count]
            at = row + (number - (len(counts) - 1) / 2) * height
            ends = [[one.median - one.low], [one.high - one.median]]
            axes.barh(at, one.median, height * 0.92, xerr=ends, color=bar.colour, hatch=bar.hatch,
                      edgecolor="white", alpha=1 if count == case.threads else 0.55,
                      error_kw={"capsize": 2, "ecolor": "#333333"})  # fmt: skip
            text = f"{ratios[path][count].median:.2f}x"
            if count == case.threads:
                text += f", {race.shares[case][path]:.0%} of its ceiling"
            axes.annotate(text, (one.high, at), (4, 0), fontsize=7.5,
                          textcoords="offset points", va="center")  # fmt: skip
    axes.set_yticks(range(len(speeds)), list(speeds))
    axes.invert_yaxis()
    axes.grid(axis="y", visible=False)
    axes.set_xlim(0, 1.3 * max(s.high for b in speeds.values() for s in b.values()))
    word = " and ".join(f"{c} thread{'s' if c > 1 else ''}" for c in counts)
    axes.set_xlabel(f"{case.phase}, tokens/s with {word} (pale: one), and the ratio to bf16")
    fastest = max(speeds, key=lambda path: speeds[path][case.threads].median)
    axes.set_title(f"{case.phase.capitalize()}: fastest is {fastest}")
    return drawn


def batches(speeds: Mapping[str, Mapping[int, Spread]]) -> Figure:
    """Decode tokens/s of the whole batch by path, over the batch."""
    drawn, axes = figure(figsize=(8.5, 4.2))
    for path, by_batch in speeds.items():
        line = look(path)
        x = list(by_batch)
        middle = np.array([s.median for s in by_batch.values()])
        low, high = (
            np.array([getattr(s, end) for s in by_batch.values()]) for end in ("low", "high")
        )
        axes.errorbar(x, middle, [middle - low, high - middle], capsize=2, color=line.colour,
                      marker=line.marker, label=path)  # fmt: skip
    axes.set_xscale("log", base=2)
    axes.set_yscale("log")
    axes.set_xticks(x, [str(k) for k in x])
    axes.minorticks_off()
    axes.set_yticks(ticks := [10, 20, 50, 100, 200, 500, 1000], [str(t) for t in ticks])
    axes.set_ylim(0.8 * min(s.low for b in speeds.values() for s in b.values()))
    axes.set_xlabel("sequences in the batch")
    axes.set_ylabel("decode, tokens/s of the whole batch (log)")
    axes.legend(fontsize=8, loc="center left", bbox_to_anchor=(1, 0.5))
    first, last = (speeds[ONE_CALL][k].median / speeds[BF16_CALL][k].median for k in (x[0], x[-1]))
    axes.set_title(
        f"Both in one call, int8 is {first:.1f}x bf16 at batch {x[0]}, {last:.1f}x at batch {x[-1]}"
    )
    return drawn


def machine_roof(
    bandwidth: float,
    throughputs: Mapping[str, float],
    points: Mapping[str, tuple[str, float]],
    title: str,
) -> Figure:
    """The machine's roofs, and where a workload stands below each; for sliders.

    `throughputs`: {precision: operations/s}; `points`: {label: (precision, operations a byte)}.
    """
    drawn, axes = figure(figsize=(8.5, 4))
    x = np.geomspace(0.5, 4096, 200)
    for precision, throughput in throughputs.items():
        colour = _look_of(precision).colour
        axes.plot(x, [roofline(i, bandwidth, throughput) / 1e9 for i in x], color=colour,
                  label=f"{precision}: {throughput / 1e9:,.0f} GOP/s")  # fmt: skip
    for label, (precision, intensity) in points.items():
        mark = _look_of(precision)
        reached = roofline(intensity, bandwidth, throughputs[precision]) / 1e9
        axes.plot(intensity, reached, mark.marker, color=mark.colour, markersize=10)
        axes.annotate(label, (intensity, reached), (6, -12), textcoords="offset points", fontsize=8)
    axes.set_xscale("log", base=2)
    axes.set_yscale("log")
    axes.set_xlabel("operations for each byte that must be read (log)")
    axes.set_ylabel("at most, GOP/s (log)")
    axes.legend(fontsize=8, loc="lower right", title=f"reading {bandwidth / 1e9:.0f} GB/s")
    axes.set_title(title)
    return drawn


def _look_of(precision: str) -> Look:
    """Of int8 in general, our own fast layers stand for it."""
    return look("int8-fast" if precision == "int8" else precision)


def group_absmax(x: torch.Tensor, size: int) -> np.ndarray:
    """Largest magnitude of each group of a token's activations, (K,) -> (groups,)."""
    return np.array([group.abs().max().item() for group in x.float().split(size)])


def shown(spread: Spread, digits: str = ",.0f") -> str:
    """Median with the ends of its spread, as text."""
    return f"{spread.median:{digits}} [{spread.low:{digits}} to {spread.high:{digits}}]"
