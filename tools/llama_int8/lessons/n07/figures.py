"""The figures of notebook 07."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from torch import Tensor

from llama_int8.course.drawings import SMALL, WIDTH, arrow, box, canvas, matrix, sign, write
from llama_int8.course.plots import COLOURS, CURVES, INKS, SHAPES, figure
from llama_int8.course.predict import Guess
from llama_int8.evaluation.ladder import LLM_INT8, METHODS
from llama_int8.lessons.n07.measurements import Change, Climbed
from llama_int8.quantization.llm_int8 import vectorwise_quantize
from llama_int8.quantization.outliers import (
    layer_of,
    outlier_columns,
    outlier_shares,
    papers_inputs,
)
from llama_int8.quantization.precisions import THRESHOLD
from llama_int8.quantization.quantize import absmax_quantize, dequantize

SHORT = {
    LLM_INT8: "LLM.int8()",
    "absmax, random columns": "random columns kept",
    "absmax, another token": "another token kept",
    "absmax, first token": "first token kept",
    "absmax + decomposition": "outlier columns kept",
    "vector-wise, random columns": "random columns kept",
    "vector-wise, columns of down_proj": "columns: down_proj only",
    "vector-wise, columns of the others": "columns: all others",
    "vector-wise, own outliers": "each row's own outliers",
    "vector-wise, original weights": "original weights",
    "vector-wise, SmoothQuant": "SmoothQuant",
}


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
        # At rank n + 0.5: behind the channels above 6.0; at the axis, out of sight, where none is.
        panel.stairs(counts + 0.5, edges, orientation="horizontal", color="white")
        panel.set_xlim(0.5, grid.shape[1] + 0.5)
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
    dots = np.stack([100 * layers[ever], 100 * positions[ever]], 1).round(6)
    places, counts = np.unique(dots, axis=0, return_counts=True)
    right.plot(places[:, 0], places[:, 1], "o", color=COLOURS["bf16"])
    for (x_place, y_place), count in zip(places, counts, strict=True):
        if count > 1:
            right.annotate(
                f"{count} channels", (x_place, y_place), (6, -3), textcoords="offset points",
                fontsize=7,
            )  # fmt: skip
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
    """Largest magnitudes of the first token and of the others, by layer, and behind the norms.

    `residual`: (layers + 1, T, C), the embedding first.
    """
    drawn, (left, middle, right) = figure(3, figsize=(9.8, 3.7), sharey=True)
    entering = torch.stack(list(_by_layer(inputs, "down_proj").values())).abs()  # (layers, T, C)
    for panel, values in ((left, residual.abs()), (middle, entering)):
        for x, label, colour, shape in (
            (values[:, 0].amax(-1), "first token", COLOURS["int8"], "s"),
            (values[:, 1:].amax((1, 2)), "largest of the others", COLOURS["bf16"], "o"),
            (values.flatten(1).median(1).values, "median of all", COLOURS["predicted"], "."),
        ):
            panel.plot(range(len(values)), x, marker=shape, color=colour, markersize=4, label=label)
    largest = []
    for kind, colour, shape in (("q_proj", CURVES[0], "^"), ("gate_proj", CURVES[1], "v")):
        peaks = [x[0].abs().max().item() for x in _by_layer(inputs, kind).values()]
        largest += [(peak, layer, kind) for layer, peak in enumerate(peaks)]
        right.plot(range(len(peaks)), peaks, marker=shape, color=colour, markersize=4, label=kind)
    limit = residual.shape[-1] ** 0.5
    right.axhline(limit, color="black", linestyle="--", linewidth=1, label=f"√C = {limit:.0f}")
    left.set_yscale("log")
    for panel, label in ((left, "blocks passed"), (middle, "layer"), (right, "layer")):
        panel.set_xlabel(label)
    left.set_ylabel("magnitude (log)")
    left.legend(fontsize=8, loc="lower right")
    right.legend(fontsize=8, loc="upper left")
    ratio = (residual[:, 0].abs().amax(-1) / residual[:, 1:].abs().amax((1, 2))).max()
    left.set_title(f"Residual: first token\nup to {ratio:.0f} times the others", fontsize=10)
    peak, layer = entering[:, 0].amax(-1).max(0)
    middle.set_title(f"Into down_proj: up to\n{peak:,.0f}, in layer {layer}", fontsize=10)
    peak, layer, kind = max(largest)
    right.set_title(
        f"First token after the norms:\nup to {peak:.1f} ({kind}, layer {layer})", fontsize=10
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
        "one per row": dequantize(absmax_quantize(x, granularity="row")),
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


def _marked(panel: Axes, change: Change, row: float, colour: str) -> None:
    """A filled square where the interval leaves out zero, a hollow circle where it is undecided."""
    decided = change.decided != "undecided"
    panel.plot([change.low, change.high], [row, row], color=colour, linewidth=2)
    panel.plot(change.mean, row, "s" if decided else "o", color=colour, markersize=7,
               markerfacecolor=colour if decided else "white")  # fmt: skip


def methods(climbed: Climbed, paper: Mapping[str, Any]) -> Figure:
    """The paper's methods: this model's changes of the loss, and beside them the published ones."""
    names = [*METHODS, *(f"{name} + decomposition" for name in METHODS)]
    drawn, (left, right) = figure(2, figsize=(9.6, 4.6), sharey=True, sharex=True)
    for row, name in enumerate(names):
        _marked(left, climbed.change("FP32", name, 0.95), row, "black")
    full = np.array(paper["rows"]["32-bit"], float)
    sizes = zip(paper["columns"], CURVES, SHAPES, strict=False)
    for place, (size, colour, shape) in enumerate(sizes):
        points = [
            (np.log(float(values[place]) / full[place]), names.index(name))
            for name, values in paper["rows"].items()
            if name in names
        ]
        right.plot(*zip(*points, strict=True), shape, color=colour, label=size, alpha=0.85)
    for panel in (left, right):
        panel.axvline(0, color="black", linewidth=0.8)
        panel.axhline(len(names) / 2 - 0.5, color=COLOURS["predicted"], linewidth=0.8)
        panel.set_xscale("symlog", linthresh=0.01)
        ticks = [-0.01, 0, 0.01, 0.1, 1]
        panel.set_xticks(ticks, [f"{t:g}" for t in ticks])
        panel.set_xticks([], minor=True)
        panel.set_xlim(-0.02, 3)
        panel.set_xlabel("change of loss (nats per token);\nlinear to 0.01, logarithmic beyond")
    left.set_yticks(range(len(names)), names, fontsize=9)
    left.invert_yaxis()
    drawn.legend(*right.get_legend_handles_labels(), loc="outside lower right", ncols=5, fontsize=8)
    changes = [climbed.change("FP32", name, 0.95) for name in names]
    higher = sum(change.decided == "higher" for change in changes)
    left.set_title(f"Here: {higher} of {len(changes)} lose (decided)", fontsize=10)
    published = np.log(np.array(paper["rows"][LLM_INT8], float) / full)
    close = int((np.abs(published) <= 0.01).sum())
    right.set_title(
        f"The paper: LLM.int8() within 0.01\nof FP32 in {close} of {len(full)} models", fontsize=10
    )
    return drawn


def controls(climbed: Climbed, pairs: Mapping[str, Sequence[tuple[str, str]]]) -> Figure:
    """Each control below the rung that it belongs to: how it changes that rung's loss."""
    drawn, panels = figure(len(pairs), figsize=(9.6, 3.2))
    for panel, (base, own) in zip(panels, pairs.items(), strict=True):
        labels, lower, higher = [], 0, 0
        for row, (one, two) in enumerate(own):
            change = climbed.change(one, two)
            lower, higher = (
                lower + (change.decided == "lower"),
                higher + (change.decided == "higher"),
            )
            colour = {"lower": "good", "higher": "int8", "undecided": "predicted"}[change.decided]
            _marked(panel, change, row, COLOURS[colour])
            label = SHORT.get(two, two)
            labels.append(label if one == base else f"{label}, from\n{SHORT.get(one, one)}")
        panel.set_yticks(range(len(own)), labels, fontsize=8)
        panel.set_ylim(len(own) - 0.5, -0.5)
        panel.axvline(0, color="black", linewidth=0.8)
        panel.locator_params(axis="x", nbins=3)
        panel.tick_params(axis="x", labelsize=8)
        panel.set_xlabel("change of loss\n(nats per token)")
        counted = f"{lower} of {len(own)} lower" + (f", {higher} higher" if higher else "")
        panel.set_title(f"{SHORT.get(base, base)}:\n{counted} (decided)", fontsize=9)
    return drawn


def neighbours(effects: Mapping[float, Sequence[Mapping[str, Any]]]) -> Figure:
    """KL divergence by threshold: one dot per prompt, with the number of flips.

    `effects`: for each threshold and prompt `neighbour`, `continuation` (each with ` flips`) and
    `error`, the divergence from the unquantized model.
    """
    drawn, axes = figure(figsize=(8, 4.2))
    smallest = 1e-8
    kinds = (("neighbour", "bf16", "o", -0.25), ("continuation", "good", "s", 0.0))
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
    axes.set_ylim(smallest / 2, 20)
    axes.set_xlim(-1.15, len(effects) - 0.5)
    axes.set_xticks(range(len(effects)), [f"{threshold:g}" for threshold in effects])
    axes.set_xlabel("outlier threshold (0: no decomposition)")
    axes.set_ylabel("KL divergence of the\nnext token (nats)")
    axes.grid(axis="x", visible=False)
    drawn.legend(*axes.get_legend_handles_labels(), loc="outside lower center", ncols=3, fontsize=9)
    medians = {t: np.median([e["neighbour"] for e in entries]) for t, entries in effects.items()}
    worst = max(medians, key=medians.get)
    axes.set_title(
        f"A neighbour moves my next token's distribution most at threshold {worst:g} (median)"
    )
    return drawn


# --- drawings -----------------------------------------------------------------------------------

PATHS_ALT = (
    "Activations X enter at the left. Their outlier columns go the lower way: in 16 bit, times the "
    "restored weights of these columns. Everything else goes the upper way: int8 codes with a scale "
    "per row, an exact product with the int8 weights, then both scales. At the right the two "
    "results are added to Y."
)


def drawing_paths() -> Figure:
    """LLM.int8(): the outlier columns take their own way."""
    drawn, axes = canvas(WIDTH, 4.1, "Two ways through one layer")
    outliers = [(row, 2) for row in range(3)]
    x = matrix(
        axes, (0.25, 2.5), (3, 5), "X: tokens × channels", "activations", {"highlight": outliers},
        size=0.26,
    )  # fmt: skip
    codes = matrix(
        axes, (2.45, 3.5), (3, 5), "int8 codes, scale per row", "int8", {"neutral": outliers},
        size=0.22,
    )  # fmt: skip
    product = box(axes, "× int8 weights,\nsums exact", (4.75, 3.17), (1.25, 0.6), "int8")
    scaled = box(axes, "× both\nscales", (6.1, 3.17), (0.75, 0.6), "neutral")
    columns = matrix(axes, (2.85, 1.35), (3, 1), "outlier columns", "16 bit", size=0.22)
    restored = box(
        axes, "× weights of these channels,\nrestored from int8", (5.05, 1.02), (2.0, 0.6), "16 bit"
    )
    added = sign(axes, "+", (6.95, 2.1))
    middle = x.centre[1]
    arrow(axes, (x.x1, middle), codes, corners=[(1.95, middle), (1.95, codes.centre[1])])
    arrow(axes, (x.x1, middle), columns, corners=[(1.95, middle), (1.95, columns.centre[1])])
    arrow(axes, codes, product)
    arrow(axes, product, scaled)
    arrow(axes, scaled, added, corners=[(6.95, scaled.centre[1])])
    arrow(axes, columns, restored)
    arrow(axes, restored, added, corners=[(6.95, restored.centre[1])])
    write(axes, (7.2, 2.1), "Y", weight="bold")
    write(
        axes,
        (3.0, 0.3),
        "marked: a column with an outlier; its codes are 0 on the upper way",
        SMALL,
    )
    return drawn


KEPT_ALT = (
    "The same small matrix of activations twice, with three outliers. On the left their whole "
    "columns are marked as kept in 16 bit, on the right only the outliers themselves."
)


def drawing_kept() -> Figure:
    """What is kept: whole columns, or each row's own outliers."""
    drawn, axes = canvas(WIDTH, 2.75, "What must stay in 16 bit?")
    values = np.array(
        [[0.3, -8, 1, 0.5, 0.1, 2], [1, 0.4, -0.2, 1, -1, 0.6], [0.2, 1, 0.9, -7, 0, 0.3],
         [-1, 0.1, 0.4, 9, 0.8, 1]]
    )  # fmt: skip
    outliers = [tuple(place) for place in np.argwhere(np.abs(values) >= 6).tolist()]
    held = {column for _, column in outliers}
    columns = [(row, column) for row in range(len(values)) for column in held]
    size = (0.46, 0.36)
    whole = f"whole columns: {len(columns)} of {values.size} values"
    own = f"each row's own: {len(outliers)} of {values.size} values"
    matrix(axes, (0.5, 2.2), values, whole, "int8", {"16 bit": columns}, size=size)
    matrix(axes, (4.2, 2.2), values, own, "int8", {"16 bit": outliers}, size=size)
    write(axes, (WIDTH / 2, 0.2), "blue: kept in 16 bit    orange: rounded to int8", SMALL)
    return drawn
