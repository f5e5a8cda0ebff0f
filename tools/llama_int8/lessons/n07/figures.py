"""The figures of notebook 07."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from torch import Tensor

from llama_int8.course.plots import COLOURS, CURVES, INKS, SHAPES, figure
from llama_int8.course.predict import Guess
from llama_int8.evaluation.ladder import CONTROLS, LLM_INT8, RUNGS, THRESHOLDS
from llama_int8.measure.statistics import PairedDifference
from llama_int8.quantization.llm_int8 import vectorwise_quantize
from llama_int8.quantization.outliers import (
    layer_of,
    outlier_columns,
    outlier_shares,
    papers_inputs,
)
from llama_int8.quantization.precisions import THRESHOLD
from llama_int8.quantization.quantize import absmax_quantize, dequantize


def _by_layer(inputs: Mapping[str, Tensor], entrance: str) -> dict[int, Tensor]:
    """The inputs of one kind of layer by number of layer, (B T, C)."""
    own = {layer_of(n): x.flatten(0, -2) for n, x in inputs.items() if n.endswith(entrance)}
    return dict(sorted(own.items()))


def atlas(inputs: Mapping[str, Tensor], entrances: Sequence[str]) -> Figure:
    """Largest magnitude in each channel, sorted within each layer, for each entrance."""
    drawn, panels = figure(len(entrances), figsize=(9.6, 3.5), sharey=True)
    grids = {
        kind: np.stack([x.abs().amax(0).sort(descending=True).values.numpy() for x in own.values()])
        for kind in entrances
        if (own := _by_layer(inputs, kind))
    }
    norm = LogNorm(0.1, 1000)
    for panel, (kind, grid) in zip(panels, grids.items(), strict=True):
        ranks, layers = np.arange(1, grid.shape[1] + 1), np.arange(len(grid))
        image = panel.pcolormesh(ranks, layers, grid, cmap="viridis", norm=norm, shading="nearest")
        counts = (grid >= THRESHOLD).sum(1)
        edges = np.append(layers, layers[-1] + 1) - 0.5
        panel.stairs(np.maximum(counts, 0.5) + 0.5, edges, orientation="horizontal", color="white")
        panel.set_title(f"{kind}: {(grid >= THRESHOLD).sum():,} above", fontsize=10)
        panel.set_xscale("log")
        panel.set_xlabel(f"rank of {grid.shape[1]} channels")
        panel.grid(visible=False)
    panels[0].set_ylabel("layer")
    drawn.colorbar(image, ax=panels, label="largest magnitude", extend="both")
    return drawn


def one_entrance(
    inputs: Mapping[str, Tensor], layer: int, entrance: str, threshold: float
) -> Figure:
    """Tokens by channels of one layer's input, with the channels at or above `threshold` marked."""
    x = _by_layer(inputs, entrance)[layer]
    columns = outlier_columns(x, threshold).tolist()
    drawn, axes = figure(figsize=(8, 3.8))
    image = axes.imshow(x.abs().numpy(), aspect="auto", cmap="magma", norm=LogNorm(0.05, 100))
    axes.plot(columns, np.full(len(columns), -0.02), "^", color=COLOURS["int8"], clip_on=False,
              transform=axes.get_xaxis_transform(), markersize=6)  # fmt: skip
    axes.set_xlabel("channel (triangles: those that reach the threshold)", labelpad=8)
    axes.set_ylabel("token")
    axes.grid(visible=False)
    drawn.colorbar(image, ax=axes, label="magnitude", extend="both")
    share = len(columns) / x.shape[1]
    axes.set_title(
        f"{entrance}, layer {layer}: outlier columns at {threshold:g}: {len(columns)} ({share:.1%})"
    )
    return drawn


def landscape(
    x: Tensor, inputs: Mapping[str, Tensor], entrances: Sequence[str], name: str
) -> Figure:
    """Magnitudes of one layer's input as a landscape; channels by share of layers and positions."""
    drawn = figure(figsize=(9.4, 4.0))[0]
    drawn.clear()
    left, right = drawn.add_subplot(1, 2, 1, projection="3d"), drawn.add_subplot(1, 2, 2)
    heights = x[:96].abs().numpy()
    tokens, channels = np.mgrid[: heights.shape[0], : heights.shape[1]]
    left.plot_surface(
        channels, tokens, heights, cmap="viridis", rcount=96, ccount=heights.shape[1], linewidth=0
    )
    left.set_xlabel("channel")
    left.set_ylabel("token")
    left.set_zlabel("magnitude")
    left.view_init(28, -62)
    tallest = int(heights.mean(0).argmax())
    short = ".".join(name.split(".")[-3:])
    left.set_title(f"{short}: a wall at channel {tallest}", fontsize=10)
    chosen = papers_inputs(inputs, entrances)
    layers, positions = (shares.numpy() for shares in outlier_shares(chosen))
    ever = layers > 0
    right.add_patch(Rectangle((25, 6), 80, 100, color=COLOURS["good"], alpha=0.15, linewidth=0))
    right.plot(100 * layers[ever], 100 * positions[ever], "o", color=COLOURS["bf16"])
    for channel in np.nonzero((layers >= 0.1) & ever)[0]:
        right.annotate(
            str(channel), (100 * layers[channel], 100 * positions[channel]), (6, -3),
            textcoords="offset points",
        )  # fmt: skip
    right.set_yscale("symlog", linthresh=0.01)
    right.set_xlim(0, 105)
    right.set_ylim(0, 110)
    right.set_yticks([0, 0.01, 0.1, 1, 10, 100], ["0", "0.01", "0.1", "1", "10", "100"])
    right.set_xlabel("% of layers in which it reaches 6.0")
    right.set_ylabel("% of positions, mean over layers")
    inside = int(((layers >= 0.25) & (positions >= 0.06)).sum())
    right.set_title(f"{inside} of {int(ever.sum())} channels meet the criterion", fontsize=10)
    return drawn


def first_token(residual: Tensor, inputs: Mapping[str, Tensor]) -> Figure:
    """Largest magnitudes of the first token and of the others, by layer.

    `residual`: magnitudes (layers + 1, T, C), the embedding first.
    """
    drawn, (left, right) = figure(2, figsize=(9, 3.5), sharey=True)
    down = _by_layer(inputs, "down_proj")
    entering = torch.stack(list(down.values())).abs()  # (layers, T, C)
    for panel, values, first_layer in ((left, residual, 0), (right, entering, 0)):
        layers = np.arange(first_layer, first_layer + len(values))
        for x, label, colour, shape in (
            (values[:, 0].amax(-1), "first token", COLOURS["int8"], "s"),
            (values[:, 1:].amax((1, 2)), "largest of the others", COLOURS["bf16"], "o"),
            (values.flatten(1).median(1).values, "median of all", COLOURS["predicted"], "."),
        ):
            panel.plot(layers, x, marker=shape, color=colour, markersize=5, label=label)
        panel.set_yscale("log")
    left.set_xlabel("blocks passed")
    right.set_xlabel("layer")
    left.set_ylabel("magnitude (log)")
    left.legend(fontsize=9)
    ratio = (residual[:, 0].amax(-1) / residual[:, 1:].amax((1, 2))).max()
    left.set_title(f"Residual: the first token up to {ratio:.0f} times the others", fontsize=10)
    peaks = entering[:, 0].amax(-1)
    large = [i for i, v in enumerate(peaks.tolist()) if v > 100]
    right.set_title(
        f"down_proj: above 100 on it in layers {', '.join(map(str, large)) or 'none'}", fontsize=10
    )
    return drawn


def one_outlier(values: Tensor, size: float, threshold: float) -> Figure:
    """Errors of a small matrix with one value set to `size`: by tensor, by row, decomposed."""
    x = values.clone()
    x[2, 5] = size
    codes, absmax, columns = vectorwise_quantize(x, threshold)
    decomposed = codes * (absmax / 127)[:, None]
    decomposed[:, columns] = x[:, columns]
    versions = {
        "one scale": dequantize(absmax_quantize(x)),
        "one a row": dequantize(absmax_quantize(x, granularity="row")),
        f"decomposed, {columns.numel()} of {x.shape[1]} kept": decomposed,
    }
    drawn, panels = figure(3, figsize=(9, 2.7))
    calm = torch.ones_like(x, dtype=torch.bool)
    calm[2, 5] = False
    for panel, (name, restored) in zip(panels, versions.items(), strict=True):
        error = (restored - x).abs()
        image = panel.imshow(error.numpy(), cmap="magma", vmin=0, vmax=0.25, aspect="auto")
        panel.set_title(f"{name}\nmean error {error[calm].mean():.4f}", fontsize=10)
        panel.set_xlabel("channel")
        panel.grid(visible=False)
    panels[0].set_ylabel("token")
    drawn.colorbar(image, ax=panels, label="error", extend="max")
    return drawn


def columns_by_layer(
    inputs: Mapping[str, Tensor], entrances: Sequence[str], guess: Guess | None = None
) -> Figure:
    """Share of outlier columns in each layer, for each entrance, and what a learner guessed."""
    drawn, axes = figure(figsize=(7.8, 3.5))
    total = {}
    for kind, colour, shape in zip(entrances, CURVES, SHAPES, strict=False):
        own = _by_layer(inputs, kind)
        counts = [outlier_columns(x).numel() for x in own.values()]
        total[kind] = sum(counts)
        shares = [100 * c / x.shape[1] for c, x in zip(counts, own.values(), strict=True)]
        axes.plot(list(own), shares, marker=shape, color=colour, markersize=5, label=kind)
    axes.axhline(0.1, color="black", linestyle="--", linewidth=1)
    axes.set_yscale("symlog", linthresh=0.05)
    axes.set_ylim(-0.004, 150)
    axes.set_yticks([0, 0.1, 1, 10, 100], ["0", "0.1", "1", "10", "100"])
    axes.set_yticks([], minor=True)
    axes.set_xlabel("layer")
    axes.set_ylabel("outlier columns (%)")
    axes.legend(loc="upper left", ncols=2)
    if guess is not None:
        guess.mark(axes)
    share = total.get("down_proj", 0) / max(1, sum(total.values()))
    axes.set_title(f"{share:.0%} of all outlier columns enter down_proj")
    return drawn


def ladder(changes: Mapping[str, PairedDifference], paper: Mapping[str, Any]) -> Figure:
    """Change of loss of every scheme with its interval; the published changes beside it."""
    names = [name for name in changes if name != "FP32"]
    drawn, (left, right) = figure(
        2, figsize=(9.6, 0.29 * len(names) + 1.2), sharey=True, width_ratios=(3, 2)
    )
    rows = {name: row for row, name in enumerate(names)}
    styles = {
        "operands rounded": (COLOURS["bf16"], "o"),
        "outlier columns kept": (COLOURS["good"], "s"),
        "controls": (COLOURS["highlight"], "D"),
        "real layers": (COLOURS["fp32"], "^"),
    }
    for name, row in rows.items():
        change = changes[name]
        if name in CONTROLS:
            group = "controls"
        elif "decomposition" in name or name in THRESHOLDS:
            group = "outlier columns kept"
        else:
            group = "operands rounded" if name in RUNGS else "real layers"
        colour, shape = styles.get(group)
        left.plot([change.low, change.high], [row, row], color=colour, linewidth=2)
        left.plot(change.mean, row, shape, color=colour, markersize=6)
    for group, (colour, shape) in styles.items():
        left.plot([], [], shape, color=colour, label=group)
    left.legend(loc="lower left", fontsize=8)
    for panel in (left, right):
        panel.axvline(0, color="black", linewidth=0.8)
        panel.set_xscale("symlog", linthresh=0.01)
        ticks = [-0.01, 0, 0.01, 0.1, 1]
        panel.set_xticks(ticks, [f"{t:g}" for t in ticks])
        panel.set_xticks([], minor=True)
    left.set_yticks(range(len(names)), names, fontsize=9)
    left.invert_yaxis()
    left.set_xlabel("change of loss against FP32\n(nats a token; linear up to 0.01, then log)")
    right.set_xlabel("ln(perplexity / 32-bit perplexity)")
    full = np.array(paper["rows"]["32-bit"], float)
    for place, (size, colour, shape) in enumerate(
        zip(paper["columns"], CURVES, SHAPES, strict=False)
    ):
        points = [
            (np.log(float(values[place]) / full[place]), rows[name])
            for name, values in paper["rows"].items()
            if name in rows
        ]
        right.plot(*zip(*points, strict=True), shape, color=colour, label=size, alpha=0.85)
    right.legend(loc="lower center", fontsize=8)
    best = changes[LLM_INT8].mean
    worst = changes["absmax"].mean
    left.set_title(f"From {worst:+.2f} (absmax) to {best:+.3f} (LLM.int8())", fontsize=10)
    right.set_title("The paper's models, C4", fontsize=10)
    return drawn


def quality_against_share(
    changes: Mapping[str, PairedDifference], kept: Mapping[str, float | None]
) -> Figure:
    """Change of loss against the share kept, for both bases: one scale a tensor, and vector-wise."""
    drawn, panels = figure(2, figsize=(9.4, 4.2))
    looks = {
        "random columns": ("X", COLOURS["predicted"]),
        "first token": ("D", COLOURS["highlight"]),
        "another token": ("d", COLOURS["predicted"]),
        "first token + columns": ("P", COLOURS["highlight"]),
        "columns of down_proj": ("<", "#56B4E9"),
        "columns of the others": (">", COLOURS["bf16"]),
        "SmoothQuant": ("^", COLOURS["good"]),
    }
    for panel, base in zip(panels, ("absmax", "vector-wise"), strict=True):
        marks = [(base, "nothing kept", "o", "#000000")]
        marks += [
            (f"{base}, {control}", control, *look)
            for control, look in looks.items()
            if f"{base}, {control}" in changes
        ]
        marks += [(f"{base} + decomposition", "outlier columns, 6.0", "s", COLOURS["int8"])]
        for name, label, shape, colour in marks:
            _with_interval(panel, changes[name], kept[name] or 0.0, label, shape, colour)
        if base == "vector-wise":
            line = {THRESHOLD: LLM_INT8} | {s.threshold: n for n, s in THRESHOLDS.items()}
            points = [(t, kept[line[t]] or 0.0, changes[line[t]]) for t in sorted(line)]
            panel.plot(
                [100 * share for _, share, _ in points], [c.mean for *_, c in points], "--",
                color=COLOURS["int8"], linewidth=1,
            )  # fmt: skip
            for threshold, share, change in points:
                if threshold != THRESHOLD:
                    _with_interval(panel, change, share, None, ".", COLOURS["int8"])
                panel.annotate(
                    f"{threshold:g}", (100 * share, change.mean), (4, 5),
                    textcoords="offset points", fontsize=8, color=INKS["int8"],
                )  # fmt: skip
        panel.axhline(0, color="black", linewidth=0.8)
        panel.set_xscale("symlog", linthresh=0.1)
        panel.set_xlim(-0.02, 25)
        panel.set_xticks([0, 0.1, 1, 10], ["0", "0.1", "1", "10"])
        panel.set_xticks([], minor=True)
        panel.set_xlabel("% of activations in high precision")
        panel.legend(fontsize=8, loc="upper left", bbox_to_anchor=(0, -0.2), ncols=2)
    panels[0].set_ylabel("change of loss (nats a token)")
    token = 1 - changes["absmax, first token"].mean / changes["absmax"].mean
    columns = 1 - changes["absmax + decomposition"].mean / changes["absmax"].mean
    panels[0].set_title(f"absmax: columns repair {columns:.0%}, one token {token:.0%}", fontsize=10)
    base, best = changes["vector-wise"].mean, changes[LLM_INT8].mean
    panels[1].set_title(f"vector-wise: columns repair {1 - best / base:.0%}", fontsize=10)
    return drawn


def _with_interval(
    panel: Any, change: PairedDifference, share: float, label: str | None, shape: str, colour: str
) -> None:
    x = 100 * share
    panel.plot([x, x], [change.low, change.high], color=colour, linewidth=1.2)
    panel.plot(x, change.mean, shape, color=colour, markersize=7, label=label)


def neighbours(effects: Mapping[float, Sequence[Mapping[str, Any]]]) -> Figure:
    """Relative change of the logits by threshold: one dot a prompt, with the number of flips.

    `effects`: for each threshold and prompt `neighbour`, `continuation` (each with ` flips`) and
    `error`, the distance from the unquantized model.
    """
    drawn, axes = figure(figsize=(8, 3.8))
    smallest = 1e-8
    kinds = (
        ("neighbour", "bf16", "o", -0.25),
        ("continuation", "good", "s", 0.0),
    )
    for kind, named, shape, offset in (*kinds, ("error", "predicted", "D", 0.25)):
        colour = COLOURS[named]
        for place, entries in enumerate(effects.values()):
            seen = np.maximum([entry[kind] for entry in entries], smallest)
            spread = place + offset + np.linspace(-0.09, 0.09, len(seen))
            label = {"error": "rounding error"}.get(kind, kind) if place == 0 else None
            axes.plot(spread, seen, shape, color=colour, alpha=0.45, markersize=3, label=label)
            ends = [place + offset - 0.11, place + offset + 0.11]
            axes.plot(ends, [np.median(seen)] * 2, color=colour, linewidth=2.5)
            if kind != "error":
                flips = sum(entry[f"{kind} flips"] for entry in entries)
                axes.annotate(
                    f"{flips}", (place + offset, 1), (0, -12), ha="center", color=INKS[named],
                    textcoords="offset points", fontsize=9, xycoords=("data", "axes fraction"),
                )  # fmt: skip
    count = len(next(iter(effects.values())))
    axes.annotate(f"flips of {count}:", (-0.4, 1), (0, -12), ha="right", fontsize=9,
                  textcoords="offset points", xycoords=("data", "axes fraction"))  # fmt: skip
    axes.set_yscale("log")
    axes.set_ylim(smallest / 2, 5)
    axes.set_xlim(-1.15, len(effects) - 0.5)
    axes.set_xticks(range(len(effects)), [f"{threshold:g}" for threshold in effects])
    axes.set_xlabel("outlier threshold (0: no decomposition)")
    axes.set_ylabel("change of the logits\n(relative)")
    axes.grid(axis="x", visible=False)
    axes.legend(loc="lower center", fontsize=9)
    medians = {t: np.median([e["neighbour"] for e in entries]) for t, entries in effects.items()}
    worst = max(medians, key=medians.get)
    axes.set_title(
        f"A neighbour moves the logits by {medians[worst]:.0%} at threshold {worst:g} (median)"
    )
    return drawn
