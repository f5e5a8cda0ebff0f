"""The figures of notebook 06."""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from torch import Tensor, nn

from llama_int8.course.drawings import (
    SMALL,
    WIDTH,
    Area,
    NumberLine,
    apart,
    arrow,
    brace,
    canvas,
    fill,
    group,
    number_line,
    points,
    signed,
    write,
)
from llama_int8.course.plots import COLOURS, CURVES, HATCHES, INKS, SHAPES, figure
from llama_int8.lessons.n06.formats import bit_fields
from llama_int8.models.cost import weight_bytes
from llama_int8.quantization.quantize import absmax_quantize, dequantize, signal_to_noise
from llama_int8.transformer.config import LlamaConfig

FORMATS = {"FP32": torch.float32, "FP16": torch.float16, "bf16": torch.bfloat16}
DOT = 0.06  # inches from the middle of a dot to its edge


CODES_ALT = (
    "Three number lines below each other. On the first, the weights, and absmax marked from zero to the "
    "weight farthest from it. Arrows lead straight down to their codes, on a line of 255 marks from "
    "-127 to 127, and on to the restored weights, with small errors written below. At the bottom, "
    "enlarged: the followed weight between two codes, in the band of all that is rounded to its code; "
    "its distance from the code is the error."
)


def values_to_codes(values: Tensor, followed: int = 2) -> Figure:
    """Values, their codes and the restored values on three number lines; one value is followed.

    Below, enlarged: the codes beside the followed value, and the one it is rounded to.
    """
    quantized = absmax_quantize(values)
    codes, scale = quantized.codes.tolist(), quantized.scale.item()
    restored, absmax = dequantize(quantized), values.abs().max().item()
    drawn, axes = canvas(WIDTH, 6.0, "Each weight goes to the nearest of 255 codes, and back")
    ends, limits = (1.3, WIDTH - 0.45), (-absmax, absmax)
    end = {0: "", absmax: f"{absmax:.2f}"}
    top = number_line(axes, 4.72, ends, limits, end)
    middle = number_line(axes, 3.68, ends, (-127, 127), {127: "127"}, range(-127, 128), "int8")
    bottom = number_line(axes, 2.58, ends, limits, end)
    for on, name, numbers, number, y in (
        (top, "weights", values.tolist(), ".2f", 4.95),
        (middle, "int8 codes", codes, "d", 3.46),
        (bottom, "restored", restored.tolist(), ".3f", 2.36),
    ):
        write(axes, (0.12, on.y), name, ha="left", weight="bold")
        role = "int8" if on is middle else "weights"
        roles = ["highlight" if i == followed else role for i in range(len(numbers))]
        points(axes, on, numbers, roles, name)
        _numbers(axes, on, numbers, [signed(n, number) for n in numbers], y, followed)
    write(axes, (0.12, 2.15), "error", ha="left")
    errors = [signed(error, "+.3f") for error in (restored - values).tolist()]
    _numbers(axes, bottom, restored.tolist(), errors, 2.15, followed)
    places = zip(values.tolist(), codes, restored.tolist(), strict=True)
    for i, (value, code, back) in enumerate(places):
        role, x = "highlight" if i == followed else "neutral", middle.at(code)[0]
        arrow(axes, top.at(value), (x, middle.y + DOT), role=role)
        arrow(axes, (x, middle.y - 0.34), (bottom.at(back)[0], bottom.y + DOT), role=role)
    sides = sorted((top.at(0)[0], top.at(values[values.abs().argmax()])[0]))
    brace(axes, *((x, 5.12) for x in sides), f"absmax = {absmax:.2f}", above=True)
    write(axes, (6, 4.2), f"÷ scale, then round\nscale = absmax / 127 = {scale:.4f}")
    write(axes, (6, 3.13), "× scale")
    _enlarged(axes, values[followed].item(), codes[followed], scale)
    return drawn


def _numbers(
    axes: Axes, on: NumberLine, places: list[float], texts: list[str], y: float, followed: int
) -> None:
    """A text for each place on the line, at height `y`, none over another."""
    room = 0.092 * max(map(len, texts))  # a little more than a digit's width for each character
    spread = apart([on.at(place)[0] for place in places], room)
    for i, (x, text) in enumerate(zip(spread, texts, strict=True)):
        style = {"weight": "bold", "color": INKS["highlight"]} if i == followed else {}
        write(axes, (x, y), text, **style)


def _enlarged(axes: Axes, value: float, code: int, scale: float) -> None:
    """Four neighbouring codes, the value between them, and all that goes to the same code."""
    title = f"the codes around {signed(value, '.2f')}, enlarged"
    group(axes, Area(0.12, 0.1, WIDTH - 0.12, 1.92), title)
    share, ends = value / scale, (1.3, WIDTH - 0.45)
    first = math.floor(share) - 1
    ticks = {c: f"{c}\n{signed(c * scale, '.3f')}" for c in range(first, first + 4)}
    on = number_line(axes, 1.08, ends, (first - 0.3, first + 3.3), ticks, role="int8")
    write(axes, (0.25, 0.83), "code\n× scale", SMALL, ha="left")
    (low, y), (high, _) = on.at(code - 0.5), on.at(code + 0.5)
    band = {"facecolor": fill("int8"), "linewidth": 0, "zorder": 1}
    axes.add_patch(Rectangle((low, y - 0.07), high - low, 0.14, **band))
    brace(axes, (low, 0.6), (high, 0.6), f"all of this becomes {code}")
    points(axes, on, [share], ["highlight"], "enlarged")
    near, far = sorted((on.at(share)[0], on.at(code)[0]))
    brace(axes, (near, 1.2), (far, 1.2), f"error {code * scale - value:+.3f}", above=True)
    place = (on.at(share)[0] - 0.1, 1.32)
    style = {"ha": "right", "weight": "bold", "color": INKS["highlight"]}
    write(axes, place, f"{signed(value, '.2f')} / scale = {signed(share, '.2f')}", SMALL, **style)


def spacings(spacing: Callable[[float, int], float], absmax: float) -> Figure:
    """Distance between neighbours against the number; `spacing(x, mantissa_bits)` for floats."""
    drawn, axes = figure(figsize=(7.5, 3.8))
    x = np.geomspace(1e-4, 10, 800)
    colours = (INKS["highlight"], INKS["bf16"], INKS["good"], COLOURS["fp32"])
    floats = (("FP8 (E4M3)", 3, 2**-9), ("bf16", 7, 0), ("FP16", 10, 0), ("FP32", 23, 0))
    for (name, bits, smallest), colour in zip(floats, colours, strict=True):
        steps = np.maximum([spacing(v, bits) for v in x], smallest)  # smallest: subnormal numbers
        axes.plot(x, steps, color=colour)
        axes.annotate(name, (x[-1], steps[-1]), (4, -3), textcoords="offset points", color=colour)
    inside = x[x <= absmax]
    axes.plot(inside, np.full_like(inside, absmax / 127), "--", color=COLOURS["int8"], linewidth=2)
    axes.annotate(
        f"int8, absmax {absmax:g}", (2e-3, absmax / 127), (0, 5), textcoords="offset points",
        color=INKS["int8"],
    )  # fmt: skip
    axes.axvline(absmax / 254, color=COLOURS["int8"], linewidth=0.8, linestyle=":")
    axes.annotate(
        "smaller numbers\nbecome 0 in int8 ", (absmax / 254, 1e-8), ha="right", fontsize=9,
        color=INKS["int8"],
    )  # fmt: skip
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.set_xlabel("number")
    axes.set_ylabel("distance to the next one")
    axes.set_xlim(right=60)
    axes.set_ylim(top=2)
    axes.set_title("Floating point keeps the relative distance, int8 the absolute one")
    return drawn


def stored_number(exponent: float, absmax: float) -> Figure:
    """The bits of 10 to the `exponent` in three formats and its int8 code, with what is stored."""
    value = 10.0**exponent
    drawn, axes = figure(figsize=(8.6, 2.9))
    colours = (INKS["highlight"], INKS["good"], INKS["bf16"])
    for line, (name, dtype) in enumerate(FORMATS.items()):
        place = 0
        for bits, colour in zip(bit_fields(value, dtype), colours, strict=True):
            for bit in bits:
                _bit(axes, place, -line, bit, colour)
                place += 1
        stored = torch.tensor(value, dtype=dtype).item()
        error = "too large" if np.isinf(stored) else f"error {abs(stored / value - 1):.1e}"
        _line(axes, -line, name, f"{stored:.8g}", error)
    code = min(round(value / absmax * 127), 127)
    for place, bit in enumerate(f"{code:08b}"):
        _bit(axes, place, -3, bit, INKS["int8"])
    stored = code * absmax / 127
    _line(axes, -3, f"int8 ({code})", f"{stored:.8g}", f"error {abs(stored / value - 1):.1e}")
    for x, text, colour in zip((0.2, 1, 9), ("s", "exponent", "mantissa"), colours, strict=True):
        axes.text(x, 0.85, text, color=colour, fontsize=9)
    axes.text(33, 0.85, "stored", fontsize=9)
    axes.text(41, 0.85, "relative", fontsize=9)
    axes.set_xlim(-5, 49)
    axes.set_ylim(-3.4, 1.3)
    axes.set_axis_off()
    axes.set_title(f"{value:.6g} in four formats (int8 with absmax {absmax:g})")
    return drawn


def _bit(axes: Any, x: float, y: float, bit: str, colour: str) -> None:
    face = colour if bit == "1" else "white"
    axes.add_patch(Rectangle((x, y), 0.9, 0.7, facecolor=face, edgecolor=colour, linewidth=0.8))
    ink = "white" if bit == "1" else "black"
    axes.text(x + 0.45, y + 0.33, bit, ha="center", va="center", fontsize=7, color=ink)


def _line(axes: Any, y: float, name: str, stored: str, error: str) -> None:
    axes.text(-0.4, y + 0.33, name, ha="right", va="center")
    axes.text(33, y + 0.33, stored, va="center", fontsize=9)
    axes.text(41, y + 0.33, error, va="center", fontsize=9)


def floor_bias(inners: Sequence[int], errors: Mapping[str, Sequence[float]]) -> Figure:
    """Relative error of a sum against its number of summands, for two rules of rounding."""
    drawn, axes = figure(figsize=(7.5, 3.4))
    for name, colour, shape in (("floor", COLOURS["int8"], "s"), ("round", COLOURS["bf16"], "o")):
        axes.plot(inners, errors[name], marker=shape, color=colour, label=name)
    axes.set_xscale("log", base=2)
    axes.set_yscale("log")
    axes.set_xlabel("summands K")
    axes.set_ylabel("error / output\n(root mean squares)")
    axes.legend()
    times = errors["floor"][-1] / errors["round"][-1]
    axes.set_title(f"A bias adds up: at K = {inners[-1]:,} floor is {times:,.0f} times worse")
    return drawn


def granularities(found: Mapping[tuple[str, int], tuple[float, float]], group: int) -> Figure:
    """A small matrix with the blocks that share a scale shaded; below, dB and bits a weight."""
    drawn, panels = figure(4, figsize=(9, 3.0))
    rows, columns, size = 6, 8, 4
    r, c = np.mgrid[:rows, :columns]
    shades = {
        "tensor": np.zeros_like(r),
        "column": c % 2,
        "row": r % 2,
        "group": (r + c // size) % 2,
    }
    top = max(bits for _, bits in found)
    gain = found["row", top][0] - found["tensor", top][0]
    cost = found["row", top][1] - found["tensor", top][1]
    for panel, (way, shade) in zip(panels, shades.items(), strict=True):
        for (row, column), dark in np.ndenumerate(shade):
            face = "#56B4E9" if dark else "#E8F3FA"
            panel.add_patch(Rectangle((column, -row), 0.92, 0.92, facecolor=face))
        panel.set_xlim(0, columns)
        panel.set_ylim(-rows + 1, 1)
        panel.set_aspect("equal")
        panel.grid(visible=False)
        panel.set_xticks([])
        panel.set_yticks([])
        for spine in panel.spines.values():
            spine.set_visible(False)
        lines = []
        for bits in sorted({bits for _, bits in found}, reverse=True):
            decibels, cost_of_all = found[way, bits]
            lines += [
                f"{bits}-bit codes: {decibels:.1f} dB",
                f"for {cost_of_all:.2f} bits a weight",
            ]
        panel.set_xlabel("\n".join(lines), fontsize=9)
        name = f"group of {group}" if way == "group" else way
        panel.set_title(f"one scale a {name}" if way != "tensor" else "one scale", fontsize=10)
    title = f"A scale for each row: {gain:+.0f} dB for {cost:.2f} bits a weight"
    drawn.suptitle(title, x=0.01, ha="left", fontweight="bold", fontsize=11)
    return drawn


def noise_against_bits(
    bits: Sequence[int],
    curves: Mapping[str, Sequence[float]],
    theory: Mapping[str, Sequence[float]],
) -> Figure:
    """Measured SNR of several kinds of values as marks, the formula as lines."""
    drawn, axes = figure(figsize=(7.5, 3.8))
    for (name, curve), colour, shape in zip(curves.items(), CURVES, SHAPES, strict=False):
        axes.plot(bits, theory[name], color=colour, linewidth=1)
        axes.plot(bits, curve, shape, color=colour, label=name, markersize=7)
    axes.axhline(0, color="black", linewidth=0.8)
    axes.set_xticks(list(bits))
    axes.set_xlabel("bits")
    axes.set_ylabel("SNR (dB)")
    axes.set_ylim(bottom=-12)
    axes.legend()
    last = max(abs(curves[name][-1] - theory[name][-1]) for name in curves)
    first = max(abs(curves[name][0] - theory[name][0]) for name in curves)
    axes.set_title(
        f"The formula is off by {last:.2f} dB at {bits[-1]} bits, by up to {first:.0f} dB at {bits[0]}"
    )
    return drawn


def clipped_grid(
    values: Tensor, bits: int, clip: float, quantize: Callable, restore: Callable
) -> Figure:
    """Histogram of `values` with the grid's numbers below, and the SNR with and without the cut."""
    drawn, axes = figure(figsize=(7.5, 3.2))
    quantized = quantize(values, bits, clip=clip)
    grid = np.arange(-(2 ** (bits - 1)) + 1, 2 ** (bits - 1)) * quantized.scale.item()
    axes.hist(values.numpy(), bins=np.linspace(-13, 13, 105), color=COLOURS["bf16"])
    axes.plot(grid, np.full_like(grid, 0.5), "|", color=COLOURS["int8"], markersize=14)
    axes.set_yscale("symlog", linthresh=1)
    axes.set_ylim(0, 200)
    axes.set_xlim(-13, 13)
    axes.set_xlabel("value (orange: numbers that a code can stand for)")
    axes.set_ylabel("count")
    now = signal_to_noise(values, restore(quantized))
    uncut = signal_to_noise(values, restore(quantize(values, bits)))
    axes.set_title(f"{bits} bits, cut at {clip:g}: {now:.1f} dB ({uncut:.1f} dB uncut)")
    return drawn


def clipping(cuts: Sequence[float], curves: Mapping[int, Sequence[float]]) -> Figure:
    """SNR against the place of the cut for several numbers of bits, the best one marked."""
    drawn, axes = figure(figsize=(7.5, 3.6))
    gains = {}
    for (bits, curve), colour, shape in zip(curves.items(), CURVES, SHAPES, strict=False):
        best = int(np.argmax(curve))
        gains[bits] = curve[best] - curve[-1]
        axes.plot(cuts, curve, color=colour, label=f"{bits} bits")
        axes.plot(cuts[best], curve[best], shape, color=colour, markersize=8)
    axes.set_xlabel("cut at this many root mean squares (right end: nothing is cut)")
    axes.set_ylabel("SNR (dB)")
    axes.legend(ncols=2)
    low, high = min(gains), max(gains)
    axes.set_title(
        f"The best cut gains {gains[low]:.0f} dB at {low} bits, {gains[high]:.0f} dB at {high}"
    )
    return drawn


def weight_histograms(linears: Mapping[str, nn.Linear]) -> Figure:
    """Histograms of all weights by kind of layer, each in units of its layer's root mean square."""
    drawn, axes = figure(figsize=(7.8, 3.8))
    bins, reach = 240, 60.0
    centres = (np.arange(bins) + 0.5) * 2 * reach / bins - reach
    counts: dict[str, Tensor] = {}
    largest = 0.0
    for name, linear in linears.items():
        weight = linear.weight.data.float()
        scaled = weight / weight.square().mean().sqrt()
        largest = max(largest, scaled.abs().max().item())
        kind = name.rpartition(".")[2]
        found = scaled.clamp(-reach, reach).histc(bins, -reach, reach).cpu()
        counts[kind] = counts.get(kind, torch.zeros(bins)) + found
    for (kind, found), colour, shape in zip(counts.items(), CURVES, SHAPES, strict=False):
        share = (found / found.sum()).numpy()
        seen = share > 0
        axes.plot(centres[seen], share[seen], shape, color=colour, markersize=3, label=kind)
    normal = 2 * reach / bins * np.exp(-(centres**2) / 2) / np.sqrt(2 * np.pi)
    axes.plot(centres, np.maximum(normal, 1e-300), ":", color="black", label="normal")
    axes.set_yscale("log")
    axes.set_ylim(1e-8, 1)
    axes.set_xlabel("weight / root mean square of its layer")
    axes.set_ylabel("share of weights (log)")
    axes.legend(fontsize=8)
    axes.set_title(f"A normal middle, and tails up to {largest:.0f} root mean squares")
    return drawn


def layer_survey(survey: Sequence[Mapping[str, Any]]) -> Figure:
    """SNR with one scale a tensor: a map of layers by kinds, and against the crest factor.

    `survey`: for each layer its `name`, `tensor` (dB) and `crest`.
    """
    drawn, (left, right) = figure(2, figsize=(9.4, 3.9))
    kinds = list(dict.fromkeys(entry["name"].rpartition(".")[2] for entry in survey))
    layers = len(survey) // len(kinds)
    grid = np.array([entry["tensor"] for entry in survey]).reshape(layers, len(kinds)).T
    image = left.imshow(grid, aspect="auto", cmap="viridis")
    left.set_yticks(range(len(kinds)), kinds)
    left.set_xlabel("layer")
    left.grid(visible=False)
    drawn.colorbar(image, ax=left, label="SNR (dB)")
    worst = min(survey, key=lambda entry: entry["tensor"])
    left.set_title(f"From {grid.min():.0f} to {grid.max():.0f} dB")
    for kind, colour, shape in zip(kinds, CURVES, SHAPES, strict=False):
        own = [entry for entry in survey if entry["name"].endswith(kind)]
        right.plot(
            [e["crest"] for e in own], [e["tensor"] for e in own], shape, color=colour, label=kind,
            markersize=5, alpha=0.8,
        )  # fmt: skip
    crests = np.geomspace(min(e["crest"] for e in survey) / 1.1, worst["crest"] * 1.1)
    expected = 10.79 + 20 * np.log10(127) - 20 * np.log10(crests)
    right.plot(crests, expected, color="black", linewidth=1, label="formula")
    right.set_xscale("log")
    ticks = [t for t in (5, 10, 20, 50, 100, 200) if crests[0] < t < crests[-1]]
    right.set_xticks(ticks, [str(t) for t in ticks])
    right.set_xticks([], minor=True)
    right.set_xlabel("crest factor, largest / root mean square")
    right.set_ylabel("SNR (dB)")
    right.legend(fontsize=8, ncols=2)
    off = max(
        abs(e["tensor"] - (10.79 + 20 * np.log10(127) - 20 * np.log10(e["crest"]))) for e in survey
    )
    right.set_title(f"All {len(survey)} within {off:.1f} dB of the formula")
    return drawn


def hardest_layer(weight: Tensor, name: str) -> Figure:
    """Histogram of a layer's weights, and the largest magnitude of each of its columns."""
    drawn, (left, right) = figure(2, figsize=(9, 3.4))
    left.hist(weight.flatten().cpu().numpy(), bins=120, color=COLOURS["bf16"])
    left.set_yscale("log")
    left.set_xlabel("weight")
    left.set_ylabel("count (log)")
    spread = weight.square().mean().sqrt().item()
    short = ".".join(name.split(".")[-4:])
    left.set_title(f"{short}: largest {weight.abs().max() / spread:.0f} x RMS")
    heights = weight.abs().amax(0).cpu().numpy()
    right.plot(heights, ".", color=COLOURS["bf16"], markersize=4)
    marked = np.argsort(heights)[-4:]
    for column in marked:
        right.plot(column, heights[column], "s", color=COLOURS["int8"])
        crowded = ((marked > column) & (marked < column + 60)).any()
        right.annotate(
            str(column), (column, heights[column]), (-25, -3) if crowded else (5, -3),
            textcoords="offset points", fontsize=9,
        )  # fmt: skip
    right.set_xlabel("column (input channel)")
    right.set_ylabel("largest magnitude")
    far = int((heights > 5 * np.median(heights)).sum())
    right.set_title(f"{far} of {heights.size} columns exceed 5 x the median")
    return drawn


def two_histograms(weight: Tensor, codes: Tensor) -> Figure:
    """Weights, and beside them what an article showed as the restored weights."""
    drawn, (left, right) = figure(2, figsize=(8.6, 3.0))
    left.hist(weight.flatten().cpu().numpy(), bins=80, color=COLOURS["bf16"])
    left.set_xlabel("weights")
    right.hist(
        codes.flatten().cpu().numpy(),
        bins=np.arange(-127.5, 129, 3),
        color=COLOURS["int8"],
        hatch=HATCHES["int8"],
    )
    right.set_xlabel('"dequantized" weights')
    left.set_ylabel("count")
    left.set_title(f"Before: up to {weight.abs().max():.1f}")
    right.set_title(f"After, it is said: up to {codes.abs().max():.0f}")
    return drawn


def memory_parts(configs: Mapping[str, LlamaConfig]) -> Figure:
    """Bytes of each model in three precisions, relative to FP32, linear layers and the rest."""
    drawn, axes = figure(figsize=(8, 4.4))
    step = 0.27
    for row, config in enumerate(configs.values()):
        full = weight_bytes(config, "fp32").total
        for offset, precision in zip((-step, 0, step), ("fp32", "fp16", "int8"), strict=True):
            found = weight_bytes(config, precision)
            linear = (found.linear + found.scales) / full
            style = {"color": COLOURS[precision], "hatch": HATCHES.get(precision)}
            first = {"label": f"{precision}, linear layers"} if row == 0 else {}
            axes.barh(row + offset, linear, step * 0.9, edgecolor="white", **style, **first)
            rest = {"label": "the rest"} if row == 0 and precision == "fp32" else {}
            axes.barh(
                row + offset, found.total / full - linear, step * 0.9, left=linear,
                color="#BBBBBB", edgecolor="white", **rest,
            )  # fmt: skip
            axes.annotate(
                f"{found.total / full:.2f}", (found.total / full, row + offset), (3, 0),
                textcoords="offset points", va="center", fontsize=8,
            )  # fmt: skip
    axes.axvline(0.25, color="black", linestyle=":", linewidth=1)
    axes.set_yticks(range(len(configs)), list(configs))
    axes.invert_yaxis()
    axes.grid(axis="y", visible=False)
    axes.set_xlim(0, 1.45)
    axes.set_xlabel("bytes, FP32 = 1 (dotted: a quarter)")
    axes.legend(loc="lower right", fontsize=9)
    shares = {
        n: weight_bytes(c, "int8").total / weight_bytes(c, "fp32").total for n, c in configs.items()
    }
    axes.set_title(
        f"LLM.int8() takes {min(shares.values()):.2f} to {max(shares.values()):.2f} of FP32's bytes"
    )
    return drawn
