"""The figures of notebook 06."""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.transforms import Bbox
from torch import Tensor

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
    matrix,
    number_line,
    points,
    signed,
    write,
)
from llama_int8.course.plots import COLOURS, CURVES, INKS, SHAPES, figure
from llama_int8.lessons.n06.formats import bit_fields
from llama_int8.quantization.quantize import absmax_quantize, dequantize, zeropoint_quantize

FORMATS = {"FP32": torch.float32, "FP16": torch.float16, "bf16": torch.bfloat16}
DOT = 0.06  # inches from the middle of a dot to its edge
# Where a label may stand, in points from its mark: near before far, right and left first.
LABEL_SIDES = [
    (reach * x, reach * y)
    for reach in (11, 15, 20)
    for x, y in (
        (1, 0),
        (-1, 0),
        (0.8, 0.8),
        (-0.8, -0.8),
        (-0.8, 0.8),
        (0.8, -0.8),
        (0, 1),
        (0, -1),
    )
]


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


OUTLIER_ALT = (
    "Two number lines. On the first, ten values and 15 codes close together: each value finds a code "
    "near it. On the second one value stands at 12, the 15 codes are far apart, and the ten values "
    "share three of them."
)
SCALES_ALT = (
    "The same four weights of one row, two groups of two, on three number lines of 3-bit codes. "
    "With the scale of the whole matrix the "
    "codes are far apart and three weights share two of them; with the row's own scale they are "
    "closer; with a scale for each half, the two small weights get codes of their own."
)
ZERO_POINT_ALT = (
    "Eight values from -0.9 to 2.6 on two number lines. Symmetric: codes from -3 to 3, of which -3 and "
    "-2 meet no value. Asymmetric: codes from 0 to 7, closer together, one for each value; 0 has code 2."
)
CLIPPING_ALT = (
    "Thirteen values, one of them far out, on two number lines with three codes. Without a clip all but "
    "the far value go to 0. Clipped at 0.9, they share three codes near them, and the value far out is "
    "moved to the last code."
)
PRODUCT_ALT = (
    "Activations X, one row per token, times transposed weights, one column per output channel, both "
    "in int8, give an int32 matrix. X has a scale for each row, W one for each column. One cell of "
    "the result is marked, with its row of X, its column of W and its two scales, which turn it into "
    "the output Y."
)


def _round_trip(
    axes: Axes,
    y: float,
    name: str,
    values: Sequence[float],
    grid: Sequence[float],
    limits: tuple[float, float],
    ticks: Mapping[float, str] | None = None,
    note: str = "",
) -> None:
    """Values above a line of codes, each with an arrow to the code that it goes to."""
    ends, lift = (1.75, WIDTH - 0.4), 0.46
    shown = [code for code in grid if limits[0] <= code <= limits[1]]
    on = number_line(axes, y, ends, limits, ticks, shown, "int8")
    above = NumberLine(y + lift, *ends, *limits)
    write(axes, (0.12, y + lift / 2), name, ha="left", weight="bold")
    codes = np.asarray(grid)
    nearest = [float(codes[np.abs(codes - value).argmin()]) for value in values]
    points(axes, above, values, ["weights"] * len(values), f"{name}, before")
    points(axes, on, nearest, ["int8"] * len(values), f"{name}, after")
    for value, code in zip(values, nearest, strict=True):
        x, _ = above.at(value)
        arrow(axes, (x, y + lift - DOT), (on.at(code)[0], y + DOT))
    if note:
        write(axes, (sum(ends) / 2, y - 0.37), note, SMALL)


def _grid(absmax: float, top: int) -> list[float]:
    """What the codes -top to top stand for."""
    return [absmax * code / top for code in range(-top, top + 1)]


def drawing_outlier() -> Figure:
    """Ten values on a grid of 4 bits, without and with one value that stands out."""
    drawn, axes = canvas(WIDTH, 2.9, "One outlier stretches the grid for everybody")
    values, limits = [-2.0, -1.5, -1.1, -0.6, -0.2, 0.3, 0.7, 1.2, 1.6, 2.1], (-4.0, 12.6)
    for y, name, more in ((1.75, "10 values", []), (0.55, "and one at 12", [12.0])):
        grid = _grid(max(values + more), 7)
        zeros = sum(abs(value) < grid[8] / 2 for value in values)
        note = f"one step is {grid[8]:.2f}: {zeros} of the 10 values become 0"
        _round_trip(axes, y, name, values + more, grid, limits, {0: "0", 12: "12"}, note)
    return drawn


def drawing_scales() -> Figure:
    """Four weights of one row, with the scale of their matrix, of their row, of their group."""
    drawn, axes = canvas(WIDTH, 4.5, "Whose scale? The smaller the block, the finer the steps")
    row, matrix_max, limits = [-0.28, 0.16, 0.92, -0.66], 2.4, (-1.3, 1.3)
    first, second = (", ".join(signed(x, ".2f") for x in pair) for pair in (row[:2], row[2:]))
    write(axes, (0.12, 3.85), f"one row: [{first} | {second}]; 3 bits, codes −3 to 3", ha="left")
    ticks = {0: "0", -1: "−1", 1: "1"}
    for y, name, grid, note in (
        (2.95, "per-tensor", _grid(matrix_max, 3), "another row holds a 2.4: steps of 0.80"),
        (1.75, "per-channel\n(row)", _grid(0.92, 3), "this row reaches 0.92: steps of 0.31"),
    ):
        _round_trip(axes, y, name, row, grid, limits, ticks, note)
    inner, outer = _grid(0.28, 3), _grid(0.92, 3)
    _round_trip(axes, 0.55, "per-group", row[:2], inner, limits, ticks, "")
    _two_more(axes, 0.55, row[2:], outer, limits)
    note = "two groups: steps of 0.09 for the first pair, of 0.31 (blue) for the second"
    write(axes, ((1.75 + WIDTH - 0.4) / 2, 0.18), note, SMALL)
    return drawn


def _two_more(
    axes: Axes, y: float, values: Sequence[float], grid: Sequence[float], limits: tuple
) -> None:
    """The second group of a row, on the same line with its own codes, in another colour."""
    on = NumberLine(y, 1.75, WIDTH - 0.4, *limits)
    x = [on.at(code)[0] for code in grid]
    axes.vlines(x, y - 0.12, y + 0.12, INKS["bf16"], linewidth=1.6, zorder=2)
    for value in values:
        code = min(grid, key=lambda place: abs(place - value))
        points(axes, NumberLine(y + 0.46, on.x0, on.x1, *limits), [value], ["weights"], "second")
        points(axes, on, [code], ["16 bit"], "second, after")
        arrow(axes, (on.at(value)[0], y + 0.46 - DOT), (on.at(code)[0], y + DOT))


def drawing_zero_point() -> Figure:
    """Lopsided values on a symmetric and on an asymmetric grid of 3 bits."""
    drawn, axes = canvas(WIDTH, 2.9, "A symmetric grid has codes where no value is")
    values, limits = [-0.9, -0.4, 0.0, 0.6, 1.1, 1.4, 2.1, 2.6], (-3.0, 3.0)
    top = max(map(abs, values))
    affine = zeropoint_quantize(torch.tensor(values), bits=3)
    step, zero = affine.scale.item(), affine.zero_point.item() + 4  # codes counted from 0
    for y, name, grid, first, note in (
        (1.75, "symmetric\n(absmax)", _grid(top, 3), -3, f"codes −3 to 3; steps of {top / 3:.2f}"),
        (
            0.55,
            "asymmetric\n(zero point)",
            [step * (code - zero) for code in range(8)],
            0,
            f"codes 0 to 7; steps of {step:.2f}; the value 0 has the code z = {zero}",
        ),
    ):
        ticks = {place: signed(first + i, "d") for i, place in enumerate(grid)}
        _round_trip(axes, y, name, values, grid, limits, ticks, note)
    return drawn


def drawing_clipping() -> Figure:
    """A value far out, on a grid that reaches it and on one that does not, both of 2 bits."""
    drawn, axes = canvas(WIDTH, 2.9, "Clipping: one large error buys finer steps for the rest")
    values = [-1.17, -0.93, -0.74, -0.52, -0.33, -0.11, 0.16, 0.37, 0.58, 0.72, 0.91, 1.07, 2.0]
    for y, name, clip in ((1.75, "no clip", 2.0), (0.55, "clip at 0.9", 0.9)):
        ticks = {0: "0", clip: f"{clip:g}", -clip: signed(-clip, "g")}
        grid = _grid(clip, 1)
        error = sum(min(abs(v - g) for g in grid) ** 2 for v in values) / len(values)
        note = f"three codes, steps of {clip:.1f}; mean squared error {error:.2f}"
        _round_trip(axes, y, name, values, grid, (-2.3, 2.3), ticks, note)
    return drawn


def drawing_product() -> Figure:
    """Per-token scales times per-channel scales: both stand outside the sum."""
    drawn, axes = canvas(WIDTH, 4.75, "The scales do not depend on k, so the sum runs in integers")
    size, left, middle, low = 0.28, 1.5, 3.3, 1.95
    row, column = 1, 2
    x_cells = {"highlight": [(row, k) for k in range(5)]}
    w_cells = {"highlight": [(k, column) for k in range(5)]}
    cell = {"highlight": [(row, column)]}
    matrix(axes, (left, low), (3, 5), "X in int8 (T, K)", "int8", x_cells, size=size)
    tokens = matrix(
        axes, (0.75, low), (3, 1), "a scale\nper token", "activations",
        {"highlight": [(row, 0)]}, size=size,
    )  # fmt: skip
    weights = matrix(axes, (middle, 3.6), (5, 4), "", "int8", w_cells, size=size)
    scales = matrix(
        axes, (middle, 4.1), (1, 4), "", "weights", {"highlight": [(0, column)]}, size=size
    )
    beside = weights.x1 + 0.12
    write(axes, (beside, weights.centre[1]), "Wᵀ in int8 (K, M)", ha="left")
    write(axes, (beside, scales.centre[1]), "a scale per output channel", ha="left")
    sums = matrix(axes, (middle, low), (3, 4), "sums in int32 (T, M)", "neutral", cell, size=size)
    out = matrix(axes, (6.1, low), (3, 4), "Y (T, M)", "16 bit", cell, size=size)
    arrow(axes, sums, out, "× both scales", beside="above")
    write(axes, (WIDTH / 2, 0.35), "marked: one output, and all that it is made of", SMALL)
    assert tokens.x1 < left
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
    axes.set_title(
        f"Six dB per bit: at {bits[-1]} bits the formula is off by {last:.2f} dB at most"
    )
    return drawn


def zeros(entrances: Sequence[Any]) -> Figure:
    """Share of activations whose code is 0 against how far the largest value stands out."""
    drawn, axes = figure(figsize=(7.5, 3.9))
    kinds = list(dict.fromkeys(e.kind for e in entrances))
    for kind, colour, shape in zip(kinds, CURVES, SHAPES, strict=False):
        own = [e for e in entrances if e.kind == kind]
        x, y = [e.stands_out for e in own], [100 * e.zeros for e in own]
        order = 2 if kind == "down" else 3  # down's many marks hide none of the others
        axes.plot(
            x, y, shape, color=colour, label=f"input of {kind}", markersize=6, alpha=0.8,
            zorder=order,
        )  # fmt: skip
    axes.axvline(254, color="black", linestyle=":", linewidth=1)
    axes.axhline(50, color="black", linestyle=":", linewidth=1)
    axes.annotate("254", (254, 0), (4, 3), textcoords="offset points", fontsize=9)
    axes.set_xscale("log")
    axes.set_ylim(0, 104)
    axes.set_xlabel("largest magnitude / median magnitude")
    axes.set_ylabel("values with code 0 (%)")
    axes.legend(fontsize=9)
    most = sum(e.zeros > 0.5 for e in entrances)
    axes.set_title(f"{most} of {len(entrances)} inputs lose more than half of their values to zero")
    return drawn


def granularities(found: Mapping[tuple[str, int], tuple[float, float]], size: int) -> Figure:
    """A small matrix with the blocks that share a scale shaded; below, dB and bits per weight."""
    drawn, panels = figure(4, figsize=(9, 3.0))
    rows, columns, width = 6, 8, 4
    r, c = np.mgrid[:rows, :columns]
    shades = {
        "per-tensor": np.zeros_like(r),
        "per column": c % 2,
        "per-channel (row)": r % 2,
        f"per-group ({size})": (r + c // width) % 2,
    }
    ways = list(dict.fromkeys(way for way, _ in found))
    top = max(bits for _, bits in found)
    gain = found[ways[2], top][0] - found[ways[0], top][0]
    cost = found[ways[2], top][1] - found[ways[0], top][1]
    for panel, way, (name, shade) in zip(panels, ways, shades.items(), strict=True):
        for (row, column), dark in np.ndenumerate(shade):
            face = "#56B4E9" if dark else "#E8F3FA"
            panel.add_patch(Rectangle((column, -row), 0.92, 0.92, facecolor=face))
        panel.set(xlim=(0, columns), ylim=(-rows + 1, 1), aspect="equal", xticks=[], yticks=[])
        panel.grid(visible=False)
        for spine in panel.spines.values():
            spine.set_visible(False)
        lines = []
        for bits in sorted({bits for _, bits in found}, reverse=True):
            decibels, each = found[way, bits]
            lines += [f"{bits}-bit codes: {decibels:.1f} dB", f"for {each:.2f} bits per weight"]
        panel.set_xlabel("\n".join(lines), fontsize=9)
        panel.set_title(name, fontsize=10)
    title = f"A scale for each row: {gain:+.0f} dB for {cost:.2f} bits per weight"
    drawn.suptitle(title, x=0.01, ha="left", fontweight="bold", fontsize=11)
    return drawn


def layer_survey(survey: Sequence[Mapping[str, Any]]) -> Figure:
    """SNR of int8 and FP8 against the crest factor: with one scale per tensor, and one per row.

    `survey`: for each layer its `crest`, and the dB of "int8, tensor", "FP8, tensor", "int8, row" and
    "FP8, row".
    """
    drawn, panels = figure(2, figsize=(9.4, 3.9), sharey=True)
    crests = [entry["crest"] for entry in survey]
    for panel, blocks in zip(panels, ("tensor", "row"), strict=True):
        for name, colour, shape in (("int8", COLOURS["int8"], "s"), ("FP8", COLOURS["bf16"], "o")):
            decibels = [entry[f"{name}, {blocks}"] for entry in survey]
            panel.plot(crests, decibels, shape, color=colour, label=name, markersize=4, alpha=0.7)
        panel.set_xscale("log")
        ticks = [t for t in (3, 5, 10, 20, 50, 100, 200) if min(crests) < t < max(crests)]
        panel.set_xticks(ticks, [str(t) for t in ticks])
        panel.set_xticks([], minor=True)
        panel.set_xlabel("crest factor of the whole matrix")
        better = sum(entry[f"int8, {blocks}"] > entry[f"FP8, {blocks}"] for entry in survey)
        panel.set_title(f"A scale per {blocks}: int8 wins in {better} of {len(survey)} layers")
    x = np.geomspace(min(crests) / 1.1, max(crests) * 1.1)
    formula = 52.87 - 20 * np.log10(x)
    panels[0].plot(x, formula, color="black", linewidth=1, label="formula for int8")
    panels[0].set_ylabel("SNR (dB)")
    panels[0].legend(fontsize=9)
    return drawn


def hardest_layer(weight: Tensor, name: str) -> Figure:
    """Histogram of a layer's weights, and the largest magnitude of each of its rows."""
    drawn, (left, right) = figure(2, figsize=(9, 3.4))
    left.hist(weight.flatten().cpu().numpy(), bins=120, color=COLOURS["bf16"])
    left.set_yscale("log")
    left.set_xlabel("weight")
    left.set_ylabel("count (log)")
    spread = weight.square().mean().sqrt().item()
    short = ".".join(name.split(".")[-3:])
    left.set_title(f"{short}: largest {weight.abs().max() / spread:.0f} × RMS")
    heights = weight.abs().amax(1).cpu().numpy()
    right.plot(heights, ".", color=COLOURS["bf16"], markersize=4)
    for row in np.argsort(heights)[-2:]:
        right.plot(row, heights[row], "s", color=COLOURS["int8"])
        right.annotate(
            f"row {row}", (row, heights[row]), (6, -3), textcoords="offset points", fontsize=9
        )
    right.margins(x=0.12)
    right.set_xlabel("row (output channel)")
    right.set_ylabel("largest magnitude")
    far = int((heights > 5 * np.median(heights)).sum())
    right.set_title(f"{far} of {heights.size} rows exceed 5 × the median row")
    return drawn


def clipping(shares: Sequence[float], curves: Mapping[int, Sequence[float]]) -> Figure:
    """SNR against the clip for several numbers of bits, the best one marked."""
    drawn, axes = figure(figsize=(7.5, 3.6))
    gains = {}
    for (bits, curve), colour, shape in zip(curves.items(), CURVES, SHAPES, strict=False):
        best = int(np.argmax(curve))
        gains[bits] = curve[best] - curve[-1]
        marks = {"marker": shape, "markevery": [best], "markersize": 8}
        axes.plot(shares, curve, color=colour, label=f"{bits} bits", **marks)
    axes.set_xlabel("clip, as a share of the largest magnitude (right end: nothing is clipped)")
    axes.set_ylabel("SNR (dB)")
    axes.legend(ncols=2)
    low, high = min(gains), max(gains)
    axes.set_title(
        f"The best clip gains {gains[low]:.0f} dB at {low} bits, {gains[high]:.0f} dB at {high}"
    )
    return drawn


def loss_against_noise(
    costs: Mapping[tuple[str, str], Any],
    by_grid: Mapping[tuple[str, str], Sequence[float]] | None = None,
) -> Figure:
    """Change of the loss against the SNR of the weights, for each scheme and number of bits.

    `by_grid`: changes on several grids of the same noise, drawn as a thin line from end to end.
    """
    by_grid = by_grid or {}
    drawn, axes = figure(figsize=(7.8, 4.4))
    schemes = list(dict.fromkeys(scheme for scheme, _ in costs))
    inks = dict(zip(schemes, [*INKS.values(), "#7A5200"], strict=False))  # CURVES, darker
    for (scheme, colour), shape in zip(inks.items(), SHAPES, strict=False):
        own = [cost for (name, _), cost in costs.items() if name == scheme]
        x, y = [cost.decibels for cost in own], [cost.loss.mean for cost in own]
        spread = [
            [cost.loss.mean - cost.loss.low for cost in own],
            [cost.loss.high - cost.loss.mean for cost in own],
        ]
        look = {"color": colour, "markersize": 7, "markerfacecolor": "none", "markeredgewidth": 1.8}
        axes.errorbar(
            x, y, spread, fmt=shape, capsize=3, label=scheme, **look
        )  # hollow: none hides
        for name in costs:
            if name[0] == scheme and name in by_grid:
                ends = min(by_grid[name]), max(by_grid[name])
                axes.plot(2 * [costs[name].decibels], ends, color=colour, linewidth=1, zorder=1)
    axes.axhline(0, color="black", linewidth=0.8)
    axes.set_yscale("symlog", linthresh=0.02)
    ticks = [0, 0.01, 0.1, 1, 10]
    axes.set_yticks(ticks, [str(t) for t in ticks])
    lowest = min(cost.loss.low for cost in costs.values())
    highest = max(cost.loss.high for cost in costs.values())
    axes.set_ylim(min(2 * lowest, -0.01), 3 * max(0.1, highest))
    axes.margins(x=0.08)
    axes.set_xlabel("SNR of the weights (dB); the numbers are bits")
    axes.set_ylabel("change of the loss\n(nats per token; linear below 0.02)")
    axes.legend(fontsize=9)
    axes.set_title(_title_of_loss(costs, by_grid))
    _label_bits(axes, costs, inks)
    return drawn


def _title_of_loss(
    costs: Mapping[tuple[str, str], Any], by_grid: Mapping[tuple[str, str], Sequence[float]]
) -> str:
    """The loss of a clip beside that of a scheme with the same noise, to a decibel, on every grid."""
    others = [name for name in costs if "clip" not in name[0]]
    for name, clip in costs.items():
        like = min(others, key=lambda other: abs(costs[other].decibels - clip.decibels))
        same_noise = abs(costs[like].decibels - clip.decibels) < 1
        highest = max(costs[like].loss.high, *by_grid.get(like, [0.0]))
        if "clip" in name[0] and same_noise and clip.loss.low > highest > 0:
            ratio = clip.loss.low / highest
            return (
                f"With about the same noise, the clip costs more than {int(ratio)} times the loss"
            )
    return "Loss against the noise of the weights"


def _label_bits(axes: Axes, costs: Mapping[tuple[str, str], Any], inks: Mapping[str, str]) -> None:
    """The number of bits beside each mark, where it hides no mark, no interval, no other number."""
    axes.figure.draw_without_rendering()  # fixes the axes, and so where everything lies
    point = axes.figure.dpi / 72
    _, zero = axes.transData.transform((0, 0))
    taken = [Bbox.from_extents(axes.bbox.x0, zero - point, axes.bbox.x1, zero + point)]
    for cost in costs.values():
        x, y = axes.transData.transform((cost.decibels, cost.loss.mean))
        (_, low), (_, high) = axes.transData.transform([(0, cost.loss.low), (0, cost.loss.high)])
        taken.append(Bbox.from_extents(x - 4 * point, y - 4 * point, x + 4 * point, y + 4 * point))
        taken.append(Bbox.from_extents(x - 3 * point, low, x + 3 * point, high))
    for (scheme, bits), cost in costs.items():
        for side in LABEL_SIDES:
            label = axes.annotate(
                bits.split()[0], (cost.decibels, cost.loss.mean), side, gid="bits",
                textcoords="offset points", ha="center", va="center", fontsize=9,
                color=inks.get(scheme, "black"),
            )  # fmt: skip
            extent = label.get_window_extent()
            if not any(extent.overlaps(other) for other in taken):
                break
            if side != LABEL_SIDES[-1]:
                label.remove()
        taken.append(extent)


def spacings(spacing: Callable[[float, int], float], absmax: float) -> Figure:
    """Distance between neighbours against the number; `spacing(x, mantissa_bits)` for floats."""
    drawn, axes = figure(figsize=(7.5, 3.8))
    x = np.geomspace(1e-4, 10, 800)
    colours = (INKS["highlight"], INKS["bf16"], INKS["good"], COLOURS["fp32"])
    scale = absmax / 448  # so that the largest value meets E4M3's largest number
    floats = (("FP8 (E4M3)", 3, scale), ("bf16", 7, 1), ("FP16", 10, 1), ("FP32", 23, 1))
    for (name, bits, unit), colour in zip(floats, colours, strict=True):
        smallest = 2**-9 * unit if bits == 3 else 0  # between subnormal numbers
        steps = np.maximum([unit * spacing(v / unit, bits) for v in x], smallest)
        steps[x > (absmax if bits == 3 else np.inf)] = np.nan
        last = np.nanargmax(x * np.isfinite(steps))
        axes.plot(x, steps, color=colour)
        axes.annotate(
            name, (x[last], steps[last]), (4, -3), textcoords="offset points", color=colour
        )
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
    _line(axes, -3, f"int8, code {code}", f"{stored:.8g}", f"error {abs(stored / value - 1):.1e}")
    for x, text, colour in zip((0.2, 1, 9), ("s", "exponent", "mantissa"), colours, strict=True):
        axes.text(x, 0.85, text, color=colour, fontsize=9)
    axes.text(33, 0.85, "stored", fontsize=9)
    axes.text(41, 0.85, "relative", fontsize=9)
    axes.set_xlim(-7.5, 49)
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
