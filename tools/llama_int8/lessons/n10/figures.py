"""The figures of lesson 10, and the pieces of the kernel that it shows."""

from collections.abc import Iterable, Mapping, Sequence
from importlib.resources import files
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from llama_int8.course.drawings import SMALL, WIDTH, arrow, box, canvas, matrix, write
from llama_int8.course.plots import COLOURS, figure
from llama_int8.data import published
from llama_int8.lessons.n10 import gpu
from llama_int8.lessons.n10.backends import (
    BACKENDS,
    BASELINE,
    BF16_CALL,
    BF16_SWAPPED,
    ONE_CALL,
    READING,
    WEIGHTS_CALL,
    Case,
    Look,
    look,
)
from llama_int8.lessons.n10.measurements import APART, Cost, Factors, Mean, Steps, mean_speed
from llama_int8.lessons.n10.on_gpus import Predicted
from llama_int8.measure.statistics import Spread
from llama_int8.models.cost import roofline
from llama_int8.quantization.precisions import LLM_INT8

WAYS_ALT = (
    "Three rows. W16A16: 2 bytes per weight, multiplied as they are. W8A16: 1 byte per weight, "
    "widened to 16 bit, multiplied in 16 bit. W8A8: 1 byte, tokens rounded to int8, int8 multiplied."
)
DOT_ALT = (
    "Three of sixteen lanes. In each, four unsigned bytes of one output's weights times the same four "
    "signed codes of the token are added to the sum of this output, in 32 bits."
)
PACKED_ALT = (
    "Left: a matrix of 32 outputs and inputs k0 to k7. Right: the same in two blocks, bytes 1 to 128 "
    "for k0 to k3 of all outputs, row by row, then 129 to 256 for k4 to k7 of all outputs."
)
PARTS = {
    "16-bit products": ("#0072B2", ""),
    "int8 products": ("#D55E00", "///"),
    "one compiled call": ("#009E73", ""),
    "other operations": ("#595959", "xx"),
    "between operations": ("#949494", "--"),
}


def layers(
    ratios: Mapping[int, Mapping[str, Mapping[str, Mean]]],
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
            width = 0.85 / len(kinds)
            at = np.arange(len(by_layer)) + (number - (len(kinds) - 1) / 2) * width
            values = [by_layer[layer][kind] for layer in by_layer]
            middle, ends = _means(values)
            bar = look(kind)
            panel.barh(at, middle, 0.95 * width, xerr=ends, color=bar.colour, hatch=bar.hatch,
                       edgecolor="white", label=kind,
                       error_kw={"capsize": 2, "ecolor": "#333333"})  # fmt: skip
            for layer, place, value in zip(by_layer, at, middle + ends[1], strict=True):
                if tokens == 1:
                    panel.annotate(f"{reading[layer][kind] / 1e9:.0f} GB/s", (value, place), (6, 0),
                                   textcoords="offset points", va="center", fontsize=7, zorder=4,
                                   bbox={"facecolor": "white", "edgecolor": "none",
                                         "pad": 0.5})  # fmt: skip
        panel.axvline(1, color="black", linestyle="--", linewidth=1, zorder=3)
        panel.set_yticks(range(len(names)), names)
        panel.grid(axis="y", visible=False)
        panel.set_xlabel("speed over bf16's (dashed)")
        best = [by_layer[layer]["int8-fast"].mean for layer in by_layer]
        word = "token" if tokens == 1 else "tokens"
        panel.set_title(f"{tokens} {word}: int8-fast {min(best):.1f}x to {max(best):.1f}x")
    np.atleast_1d(axes)[0].invert_yaxis()
    handles, labels = np.atleast_1d(axes)[0].get_legend_handles_labels()
    drawn.legend(handles, labels, fontsize=8, ncols=6, loc="outside lower center")
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


def show_source(*pieces: tuple[str, str]) -> None:
    """Display pieces of kernel.cpp as C++; a piece goes from a line to the end of its function.

    `pieces`: how the first line begins, and a sentence above. Raises ValueError where none does.
    """
    from IPython.display import Markdown, display

    for start, sentence in pieces:
        display(Markdown(f"{sentence}\n\n```cpp\n{kernel_function(start)}\n```"))


def kernel_function(start: str) -> str:
    """The function of kernel.cpp of which one line begins with `start`, up to its closing brace."""
    source = (files("llama_int8.quantization.cpu") / "kernel.cpp").read_text(encoding="utf-8")
    _, found, after = source.partition(f"\n{start}")
    if not found:
        raise ValueError(f"kernel.cpp has no line that begins with {start!r}")
    return f"{start}{after.partition(chr(10) + '}')[0]}\n}}"


def drawing_ways() -> Figure:
    """W16A16, W8A16 and W8A8: what is read, and what is multiplied."""
    drawn, axes = canvas(WIDTH, 2.55)
    for x, text in ((1.75, "weights in memory"), (3.75, "on the way"), (5.95, "multiplied")):
        write(axes, (x, 2.38), text, SMALL)
    rows = (
        ("W16A16", ("2 bytes", "16 bit"), "as they are", "16 bit x 16 bit", "16 bit"),
        ("W8A16", ("1 byte", "int8"), "weights: int8 to 16 bit", "16 bit x 16 bit", "16 bit"),
        ("W8A8", ("1 byte", "int8"), "tokens: 16 bit to int8", "int8 x int8", "int8"),
    )
    for number, (name, (size, role), way, product, of_product) in enumerate(rows):
        y = 1.95 - 0.72 * number
        write(axes, (0.55, y), name, weight="bold")
        first = box(axes, size, (1.75, y), (1.3 if role == "16 bit" else 0.7, 0.4), role)
        middle = box(axes, way, (3.75, y), (1.75, 0.4), "neutral", SMALL)
        last = box(axes, product, (5.95, y), (1.5, 0.4), of_product)
        arrow(axes, first, middle)
        arrow(axes, middle, last)
    return drawn


def drawing_dot() -> Figure:
    """One instruction: four products of bytes, added to one sum; and all lanes at once."""
    drawn, axes = canvas(WIDTH, 2.6)
    for lane, (output, x) in enumerate(((0, 1.55), (1, 3.55), (15, 5.75))):
        weights = matrix(axes, (x, 2.3), (1, 4), role="int8", size=(0.36, 0.3))
        codes = matrix(axes, (x, 1.75), (1, 4), role="activations", size=(0.36, 0.3))
        for k in range(4):
            write(axes, (x + 0.36 * (k + 0.5), 2.15), f"{output},{k}", SMALL)
            write(axes, (x + 0.36 * (k + 0.5), 1.6), f"c{k}", SMALL)
        middle = (weights.x0 + weights.x1) / 2
        write(axes, (middle, 1.87), "times", SMALL)
        total = box(axes, f"sum of output {output}", (middle, 0.75), (1.4, 0.34), "neutral", SMALL)
        arrow(axes, (middle, codes.y0), total, "+ 4 products" if lane == 0 else "")
    write(axes, (0.7, 2.15), "unsigned weights\n(output, input)", SMALL)
    write(axes, (0.7, 1.6), "signed codes\nof the token", SMALL)
    write(axes, (0.7, 0.75), "32 bits", SMALL)
    write(axes, (5.32, 2.15), "...")
    write(axes, (5.32, 0.75), "...")
    write(
        axes,
        (WIDTH / 2, 0.25),
        "One instruction, all lanes at once. All lanes get the same four codes.",
    )
    return drawn


def drawing_packed() -> Figure:
    """A matrix of weights, and the order in which a tile reads it: four inputs of 32 outputs."""
    drawn, axes = canvas(WIDTH, 2.9)
    left = {"int8": [(r, k) for r in range(4) for k in range(4)]}
    left["highlight"] = [(r, k) for r in range(4) for k in range(4, 8)]
    matrix(axes, (1.2, 2.35), (4, 8), cells=left, columns=[f"k{k}" for k in range(8)],
           rows=["output 0", "output 1", "...", "output 31"], size=0.3)  # fmt: skip
    write(axes, (2.4, 0.93), "as a matrix: one output's inputs lie together", SMALL)
    for number, (role, name) in enumerate((("int8", "k0 to k3"), ("highlight", "k4 to k7"))):
        x = 4.55 + 1.45 * number
        cells = {role: [(r, k) for r in range(4) for k in range(4)]}
        part = matrix(axes, (x, 2.35), (4, 4), cells=cells, size=0.3)
        write(axes, ((part.x0 + part.x1) / 2, 2.47), name, SMALL)
        for row, output in enumerate((0, 1, None, 31)):
            for k in range(4):
                byte = "..." if output is None else f"{128 * number + 4 * output + k + 1}"
                write(axes, (x + 0.3 * (k + 0.5), 2.2 - 0.3 * row), byte, SMALL)
    write(axes, (5.9, 0.93), "packed: four inputs of 32 outputs, then the next four", SMALL)
    write(axes, (WIDTH / 2, 0.5), "The numbers are the order in memory, byte by byte.")
    write(axes, (WIDTH / 2, 0.2), "A tile reads from the first byte to the last.", SMALL)
    return drawn


def steps(measured: Steps, rate: float, without_tiles: tuple[float, float] | None = None) -> Figure:
    """Each step of the learner's product: bytes read per second, and operations per second (log).

    `rate`: one thread's operations/s in PyTorch's int8 product; `without_tiles`: the same as it is and
    held to the kernel's own instruction, see `measurements.without_tiles`.
    """
    rates = measured.rates
    drawn, axes = figure(2, figsize=(9.5, 3.7), sharey=True)
    names = list(rates)
    panels = (
        ([r.read for r in rates.values()], measured.reading, "1 token: GB/s of weights"),
        ([r.operations for r in rates.values()], rate / 1e9, "64 tokens: GOP/s (log)"),
    )
    for panel, (values, ceiling, label) in zip(axes, panels, strict=True):
        middle, ends = _means(values)
        most = max(ceiling, max(v.high for v in values))
        if panel is axes[0]:
            panel.barh(names, middle, xerr=ends, color=COLOURS["int8"], edgecolor="white",
                       error_kw={"capsize": 2, "ecolor": "#333333"})  # fmt: skip
            panel.set_xlim(0, 1.18 * most)
        else:  # the rates span powers of ten; bars would have to begin at zero
            panel.errorbar(middle, range(len(names)), xerr=ends, fmt="s", capsize=2,
                           color=COLOURS["int8"], ecolor="#333333")  # fmt: skip
            panel.set_xscale("log")
            panel.set_xlim(0.6 * min(v.low for v in values), 4 * most)
        for row, value in enumerate(values):
            panel.annotate(f"{value.mean:.1f}", (value.high, row), (6, 0), va="center", zorder=4,
                           textcoords="offset points", fontsize=8,
                           bbox={"facecolor": "white", "edgecolor": "none", "pad": 1})  # fmt: skip
        panel.axvline(ceiling, color="black", linestyle="--",
                      label="only reading (left), PyTorch's int8 product (right)")  # fmt: skip
        panel.set_xlabel(label)
        panel.grid(axis="y", visible=False)
        gain = middle[-1] / max(middle[: names.index("3 dot instruction")])
        panel.set_title(f"Last step: {gain:.1f} times the fastest loop")
    if without_tiles is not None:
        axes[1].axvline(without_tiles[1] / 1e9, color="black", linestyle=":",
                        label="PyTorch's int8 product without AMX")  # fmt: skip
    axes[0].invert_yaxis()
    handles, labels = axes[1].get_legend_handles_labels()
    drawn.legend(handles, labels, fontsize=8, ncols=2, loc="outside lower center")
    return drawn


def sharing(costs: Mapping[str, Cost]) -> Figure:
    """What sharing a scale costs: KL from FP32 over bytes per weight; and which operand costs it."""
    drawn, axes = figure(2, figsize=(9.5, 3.6))
    one = [name for name in costs if "only" in name]
    both = [name for name in costs if name not in (*one, *APART)]
    apart = {name.partition(" ")[0] + "\nonly": costs[name] for name in one}
    apart |= {"both": costs[both[0]]}
    apart |= {f"both,\n{name.partition(' ')[0]}\nin groups": costs[name] for name in APART}
    apart |= {"both,\nboth\nin groups": costs["groups of 32"]}
    middle = [1e3 * cost.kl.mean for cost in apart.values()]
    ends = 1e3 * np.array([[c.kl.mean - c.kl.low, c.kl.high - c.kl.mean] for c in apart.values()]).T
    axes[0].bar(list(apart), middle, yerr=ends, color=COLOURS["int8"], edgecolor="white", capsize=3)
    axes[0].set_ylabel("KL from FP32, thousandths of a nat")
    axes[0].tick_params(axis="x", labelsize=7)
    worse = max(one, key=lambda name: costs[name].kl.mean).partition(" ")[0]
    axes[0].set_title(f"One scale per row or token: {worse} cost more")
    axes[0].grid(axis="x", visible=False)
    x = [costs[name].bytes_per_weight for name in both]
    y = [1e3 * costs[name].kl.mean for name in both]
    spans = (
        1e3
        * np.array(
            [
                [costs[n].kl.mean - costs[n].kl.low, costs[n].kl.high - costs[n].kl.mean]
                for n in both
            ]
        ).T
    )
    axes[1].errorbar(x, y, spans, color=COLOURS["int8"], marker="s", capsize=3)
    for name, across, high in zip(both, x, y, strict=True):
        short = name.removeprefix("groups of ") if "groups" in name else "whole row"
        axes[1].annotate(short, (across, high), (5, 6), textcoords="offset points", fontsize=8)
    only = costs[APART[1]]
    axes[1].plot(only.bytes_per_weight, 1e3 * only.kl.mean, "o", color="white",
                 markeredgecolor=COLOURS["int8"])  # fmt: skip
    axes[1].annotate("32, only\nactivations", (only.bytes_per_weight, 1e3 * only.kl.mean), (0, -6),
                     textcoords="offset points", fontsize=8, ha="center", va="top")  # fmt: skip
    axes[1].set_ylim(0)
    axes[1].margins(x=0.12)
    axes[1].set_xlabel("bytes per weight, its share of a 16-bit scale included")
    axes[1].set_ylabel("KL from FP32, thousandths of a nat")
    kept = costs["groups of 32"].kl.mean / max(costs[both[0]].kl.mean, 1e-9)
    axes[1].set_title(f"Groups of 32 for both leave {kept:.0%} of the KL")
    return drawn


def waterfall(
    seconds: Mapping[str, Mapping[str, Sequence[float]]], case: Case, yours: str, factors: Factors
) -> Figure:
    """From Hugging Face's bf16 to int8 in one call, each path beside its ceiling.

    Bars are geometric means over rounds, as the factors are, so that their quotients are the factors.
    The learner's layers stand apart: they are no step of this chain.
    """
    names = {
        BASELINE: "bf16\nHugging Face",
        BF16_SWAPPED: "bf16, our product\nHugging Face",
        BF16_CALL: "bf16\none call",
        WEIGHTS_CALL: "int8 weights\none call",
        ONE_CALL: "int8 products\none call",
        yours: "beside it: your\nW8A8, Hugging Face",
    }
    places = [0, 1, 2, 3, 4, 5.5]
    drawn, axes = figure(figsize=(10.5, 4.2))
    speeds = [mean_speed(seconds, case, path) for path in names]
    tops = [mean_speed(seconds, case, f"{READING}{BACKENDS[path].stored}").high for path in names]
    for place, path, speed, top in zip(places, names, speeds, tops, strict=True):
        int8 = BACKENDS[path].in_8_bits
        ends = [[speed.mean - speed.low], [speed.high - speed.mean]]
        axes.bar(place, speed.mean, yerr=ends, color=COLOURS["int8" if int8 else "bf16"],
                 hatch="//" if int8 else "", edgecolor="white", capsize=3)  # fmt: skip
        label = "ceiling: only reading the bytes" if place == 0 else None
        axes.hlines(top, place - 0.42, place + 0.42, color="black", linestyle="--", label=label)
        text = f"{speed.mean:.0f}: {speed.mean / top:.0%} of it"
        axes.annotate(text, (place, speed.high), (0, 5), ha="center", va="bottom",
                      textcoords="offset points", fontsize=9,
                      bbox={"facecolor": "white", "edgecolor": "none", "pad": 1})  # fmt: skip
    axes.axvline(4.75, color="#949494", linewidth=1)
    axes.set_xticks(places, list(names.values()))
    axes.set_ylim(0, 1.15 * max(*tops, *(speed.high for speed in speeds)))
    axes.set_ylabel("decode, tokens/s")
    axes.grid(axis="x", visible=False)
    axes.legend(fontsize=8, loc="upper left")
    steps = (
        ("Our product", "product"),
        ("one call", "calls"),
        ("8 bits stored", "stored"),
        ("8 bits multiplied", "multiplied"),
    )
    parts = [f"{word}: {getattr(factors, name).mean:.2f} times" for word, name in steps]
    axes.set_title("; ".join(parts))
    return drawn


def paths(
    seconds: Mapping[str, Mapping[str, Sequence[float]]], case: Case, shares: Mapping[str, float]
) -> Figure:
    """Tokens/s of every path in one case, with its ratio to bf16 and its share of the ceiling."""
    raced = [path for path in seconds[case.key] if path in BACKENDS]
    speeds = {path: mean_speed(seconds, case, path) for path in raced}
    drawn, axes = figure(figsize=(9.5, 0.9 + 0.36 * len(speeds)))
    for row, (path, one) in enumerate(speeds.items()):
        bar = look(path)
        ends = [[one.mean - one.low], [one.high - one.mean]]
        axes.barh(row, one.mean, 0.75, xerr=ends, color=bar.colour, hatch=bar.hatch,
                  edgecolor="white", error_kw={"capsize": 2, "ecolor": "#333333"})  # fmt: skip
        ratio = one.mean / speeds[BASELINE].mean
        text = f"{ratio:.2f}x, {shares[path]:.0%} of its ceiling"
        axes.annotate(text, (one.high, row), (4, 0), fontsize=8, textcoords="offset points",
                      va="center")  # fmt: skip
    axes.set_yticks(range(len(speeds)), list(speeds))
    axes.invert_yaxis()
    axes.grid(axis="y", visible=False)
    axes.set_xlim(0, 1.35 * max(s.high for s in speeds.values()))
    axes.set_xlabel(f"{case.phase}, tokens/s; beside it the ratio to Hugging Face's bf16")
    fastest = max(speeds, key=lambda path: speeds[path].mean)
    axes.set_title(f"{case.phase.capitalize()}: the fastest path is {fastest}")
    return drawn


def batches(speeds: Mapping[str, Mapping[int, Mean]], gains: Mapping[int, Mean]) -> Figure:
    """Decode tokens/s of the whole batch by path, over the batch.

    `gains`: {batch: int8 over bf16, both in one call}.
    """
    drawn, axes = figure(figsize=(8.5, 4.2))
    for path, by_batch in speeds.items():
        line = look(path)
        x = list(by_batch)
        middle, ends = _means(by_batch.values())
        axes.errorbar(x, middle, ends, capsize=2, color=line.colour,
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
    first, last = (gains[k].mean for k in (x[0], x[-1]))
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

    `throughputs`: {precision: operations/s}; `points`: {label: (precision, operations per byte)}.
    """
    drawn, axes = figure(figsize=(8.5, 4))
    x = np.geomspace(0.5, 4096, 200)
    for precision, throughput in throughputs.items():
        colour, width = _look_of(precision).colour, 1.5 if precision == "int8" else 5
        axes.plot(x, [roofline(i, bandwidth, throughput) / 1e9 for i in x], color=colour,
                  linewidth=width, label=f"{precision}: {throughput / 1e9:,.0f} GOP/s")  # fmt: skip
    for label, (precision, intensity) in points.items():
        mark = _look_of(precision)
        reached = roofline(intensity, bandwidth, throughputs[precision]) / 1e9
        axes.plot(intensity, reached, mark.marker, color=mark.colour, markersize=10)
        axes.annotate(label, (intensity, reached), (6, -12), textcoords="offset points", fontsize=8)
    axes.set_xscale("log", base=2)
    axes.set_yscale("log")
    axes.set_xlabel("operations for each byte that must be read (log)")
    axes.set_ylabel("under the measured roof, GOP/s (log)")
    axes.legend(fontsize=8, loc="lower right", title=f"reading {bandwidth / 1e9:.0f} GB/s")
    axes.set_title(title)
    return drawn


def predicted_on_gpus(
    predictions: Mapping[str, Mapping[str, Predicted]], on_card: Mapping[str, Any]
) -> Figure:
    """Tokens/s at LLaMA-2-7B's shape on four cards, from bytes and launches: ranges, not measurements.

    `on_card`: what a card here has measured, with its name as "GPU"; empty where there was none.
    Beside the T4 stand the two published runs on one.
    """
    drawn, panels = figure(2, figsize=(9.5, 3.9), layout="constrained")
    names = {"fp16": "FP16, one graph", "int8-fast": "int8, one graph"}
    for panel, cards in zip(panels, (("T4", "L4"), ("A100", "H100")), strict=True):
        for place, card in enumerate(cards):
            for shift, precision in ((-0.2, "fp16"), (0.2, "int8-fast")):
                one = predictions[card][precision]
                colour = COLOURS["int8" if precision == "int8-fast" else "fp16"]
                label = f"{names[precision]} (predicted)" if place == 0 else None
                panel.barh(place + shift, one.high - one.low, 0.34, left=one.low, color=colour,
                           hatch="//" if precision == "int8-fast" else "", edgecolor="white",
                           label=label)  # fmt: skip
                text = f"{one.low:.0f} to {one.high:.0f}"
                panel.annotate(text, (one.high, place + shift), (4, 0), fontsize=8,
                               textcoords="offset points", va="center")  # fmt: skip
        panel.set_yticks(range(len(cards)), cards)
        panel.invert_yaxis()
        panel.grid(axis="y", visible=False)
        most = max(predictions[card]["int8-fast"].high for card in cards)
        panel.set_xlim(0, 1.3 * most)
        panel.set_xlabel("decode, tokens/s")
    table = published("t4-llama-2-7b-chat")
    for column, marker, speed in zip(
        table["columns"], "os", table["rows"]["speed (tokens/s)"], strict=True
    ):
        kind, row = ("LLM.int8()", 0.2) if column == "int8" else ("FP16", -0.2)
        panels[0].plot(speed, row, marker, color="black", markerfacecolor="white",
                       label=f"{kind}, published (measured)", zorder=3)  # fmt: skip
    title = "Predicted, not measured: int8 leads FP16 on every card"
    if on_card:
        half, int8 = on_card[gpu.HALF_GRAPH], on_card[gpu.INT8_GRAPH]
        title = (
            f"Predicted for four cards; measured on {on_card['GPU']}: {int8 / half:.2f} times FP16"
        )
        for panel, cards in zip(panels, (("T4", "L4"), ("A100", "H100")), strict=True):
            for place, card in enumerate(cards):
                if card in on_card["GPU"]:
                    panel.plot([half, int8], [place - 0.2, place + 0.2], "D", color="black",
                               label="measured here", zorder=3)  # fmt: skip
    labelled = {
        label: handle
        for panel in reversed(panels)
        for handle, label in zip(*panel.get_legend_handles_labels(), strict=True)
    }
    drawn.legend(labelled.values(), labelled, loc="outside lower center", ncols=3, fontsize=8)
    drawn.suptitle(title)
    return drawn


def _means(values: Iterable[Mean]) -> tuple[np.ndarray, np.ndarray]:
    """Means, and how far the least and the largest round are from them, (2, n)."""
    values = list(values)
    middle = np.array([v.mean for v in values])
    return middle, np.array([[v.mean - v.low, v.high - v.mean] for v in values]).T


def _look_of(precision: str) -> Look:
    """Of int8 in general, our own fast layers stand for it."""
    return look("int8-fast" if precision == "int8" else precision)


def shown(spread: Spread, digits: str = ",.0f") -> str:
    """Median with the ends of its spread, as text."""
    return f"{spread.median:{digits}} [{spread.low:{digits}} to {spread.high:{digits}}]"
