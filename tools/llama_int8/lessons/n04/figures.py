"""The figures of lesson 04: LLaMA from scratch."""

import math
from collections.abc import Iterable, Mapping, Sequence

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Circle
from matplotlib.ticker import NullFormatter
from torch import Tensor

from llama_int8.course.drawings import (
    SMALL,
    TITLE,
    WIDTH,
    Area,
    arrow,
    box,
    canvas,
    group,
    sign,
    stroke,
    write,
)
from llama_int8.course.plots import AFTER, BEFORE, COLOURS, GREY, INKS, figure
from llama_int8.lessons.n04.measurements import swiglu_verdict
from llama_int8.measure.statistics import PairedDifference
from llama_int8.transformer.llama import rotate

ROTARY_ALT = (
    "Five words in a row, each with a circle and two arrows: grey for the word's own vector, blue for "
    "the same vector turned by 30 degrees per position, 0 to 120. The word at positions 0 and 3 is the "
    "same: grey arrows are equal, blue ones are 90 degrees apart."
)
HEADS_ALT = (
    "Eight query heads three times. MHA: each has a key and value of its own. GQA: groups of four share "
    "one, a quarter of the cache. MQA: all eight share one, an eighth of the cache."
)
SWIGLU_ALT = (
    "x goes through two matrices, gate_proj and up_proj. The gate passes through SiLU and is "
    "multiplied with up's result; down_proj brings the product back to the width of the stream."
)
BLOCKS_ALT = (
    "Two blocks, drawn from the input at the bottom to the output at the top, each with the residual "
    "stream as a thick line at its left and two sublayers beside it, whose results are added to the "
    "stream. 2017: sines of the position are added to the input; attention has as many heads of keys "
    "and values as of queries; a LayerNorm stands on the stream after each sum; the feed-forward "
    "network is a matrix to width 4C, ReLU and a matrix back, with biases. LLaMA: nothing is added to "
    "the input and nothing stands on the stream; an RMSNorm comes before each sublayer; q and k are "
    "rotated inside attention; query heads share fewer heads of keys and values; the feed-forward "
    "network is SwiGLU, with matrices gate, up and down, width 8/3 C and no biases."
)


def blocks() -> Figure:
    """The block of 2017 and LLaMA's, side by side; the same number marks the same job."""
    drawn, axes = canvas(WIDTH, 7.7)
    notes = {
        "Transformer (2017)": "one block",
        "LLaMA, with shared heads": "one block, without biases",
    }
    for left, (name, note) in zip((0.0, 3.78), notes.items(), strict=True):
        write(axes, (left + 0.12, 7.5), name, TITLE, ha="left", weight="bold")
        frame = group(axes, Area(left + 0.06, 1.3, left + 3.66, 7.03), "")
        write(axes, (frame.x1 - 0.1, frame.y0 + 0.13), note, SMALL, ha="right", style="italic")
        write(axes, (left + 0.5, 0.65), "x  (B, T, C)", ha="left")
        write(axes, (left + 0.5, 7.18), "(B, T, C)", ha="left")
        write(axes, (left + 0.52, 3.0), "residual stream", SMALL, rotation=90)
    write(axes, (0.12, 0.2), "Numbers: what differs, by its job.", ha="left")
    jobs = {2.72: "norm", 3.45: "positions", 4.43: "heads", 5.24: "feed-forward", 6.48: "biases"}
    for number, (x, job) in enumerate(jobs.items(), 1):
        sign(axes, str(number), (x, 0.2), "highlight", 0.1)
        write(axes, (x + 0.16, 0.2), job, ha="left")
    _block_of_2017(axes, 0.0)
    _block_of_llama(axes, 3.78)
    return drawn


def _block_of_2017(axes: Axes, left: float) -> None:
    """Norms on the stream, positions added to the input."""
    stream, middle = left + 0.36, left + 2.09
    sines = box(axes, "sines of the position", (middle, 1.0), (1.8, 0.3), "highlight")
    sums = [sign(axes, "+", (stream, y)) for y in (1.0, 4.1, 6.25)]
    norms = [box(axes, "Layer\nNorm", (stream, y), (0.5, None), "highlight") for y in (4.56, 6.71)]
    heads, attention, output = _attention(axes, left, 4, "H", "causal attention")
    first = box(axes, "matrix and bias  C → 4C", (middle, 5.27), (2.3, 0.3), "weights")
    relu = box(axes, "ReLU", (middle, 5.76), (2.3, 0.3), "highlight")
    second = box(axes, "matrix and bias  4C → C", (middle, 6.25), (2.3, 0.3), "weights")
    stroke(axes, [(stream, 1.75), (heads[2].centre[0], 1.75)])
    for head in heads:
        x = head.centre[0]
        arrow(axes, (x, 1.75), head)
        arrow(axes, (x, head.y1), (x, attention.y0))
    arrow(axes, (stream, 4.95), first, corners=[(middle, 4.95)])
    for start, end, text in (
        (sines, sums[0], ""), (output, sums[1], ""), (first, relu, ""),
        (relu, second, "(B, T, 4C)"), (second, sums[2], ""),
    ):  # fmt: skip
        arrow(axes, start, end, text)
    tags = (*((1, n) for n in norms), (2, sines), (3, heads[2]), (4, relu), (5, second))
    _stream_and_tags(axes, stream, tags)


def _block_of_llama(axes: Axes, left: float) -> None:
    """Norms before the sublayers, positions inside attention; the stream is free."""
    stream, middle = left + 0.36, left + 2.09
    sums = [sign(axes, "+", (stream, y)) for y in (4.1, 6.25)]
    norms = [box(axes, "RMSNorm", (middle, y), (2.8, 0.28), "highlight") for y in (1.75, 4.68)]
    kind = "causal attention, k and v shared"
    heads, attention, output = _attention(axes, left, 2, "H_{kv}", kind)
    q, k, v = (head.centre[0] for head in heads)
    turned = box(axes, "rotate by position", ((q + k) / 2, 3.03), (1.84, 0.28), "highlight")
    gate = box(axes, "gate  C → 8/3 C", (middle - 0.73, 5.22), (1.34, 0.3), "weights")
    up = box(axes, "up  C → 8/3 C", (middle + 0.73, 5.22), (1.34, 0.3), "weights")
    product = box(axes, "SiLU(gate) × up", (middle, 5.74), (2.8, 0.3), "highlight")
    down = box(axes, "down, no bias  8/3 C → C", (middle, 6.25), (2.3, 0.3), "weights")
    for norm in norms:
        arrow(axes, (stream, norm.centre[1]), norm)
    for head in heads:
        arrow(axes, (head.centre[0], norms[0].y1), head)
    for x in (q, k):
        arrow(axes, (x, heads[0].y1), (x, turned.y0))
        arrow(axes, (x, turned.y1), (x, attention.y0))
    arrow(axes, (v, heads[2].y1), (v, attention.y0))
    arrow(axes, output, sums[0])
    for part in (gate, up):
        arrow(axes, (part.centre[0], norms[1].y1), part)
        arrow(axes, part, (part.centre[0], product.y0))
    arrow(axes, product, down, "(B, T, 8/3 C)")
    arrow(axes, down, sums[1])
    tags = (*((1, n) for n in norms), (2, turned), (3, heads[2]), (4, product), (5, down))
    _stream_and_tags(axes, stream, tags)


def _attention(
    axes: Axes, left: float, shared: int, count: str, kind: str
) -> tuple[list[Area], Area, Area]:
    """q, k and v with a card for each head (four of queries, `shared` of keys and values), above
    them attention and the output matrix."""
    parts = (("q", "queries", 4, "H"), ("k", "keys", shared, count), ("v", "values", shared, count))
    heads = []
    for (name, role, copies, heads_of), x in zip(parts, (1.13, 2.09, 3.05), strict=True):
        text = f"{name}\n(B, T, $\\mathrm{{{heads_of}}}$, D)"
        place = (left + x, 2.35)
        heads.append(box(axes, text, place, (0.86, 0.42), role, SMALL, copies))
    attention = box(axes, kind, (left + 2.09, 3.58), (2.8, 0.3))
    output = box(axes, "output matrix", (left + 2.09, 4.1), (2.3, 0.3), "weights")
    arrow(axes, attention, output)
    return heads, attention, output


def _stream_and_tags(axes: Axes, x: float, tags: Iterable[tuple[int, Area]]) -> None:
    """The residual stream from the input to the output, under all that stands on it."""
    stroke(axes, [(x, 0.5), (x, 7.2)], 3)
    arrow(axes, (x, 7.2), (x, 7.32))
    for number, part in tags:
        sign(axes, str(number), (part.x1 + 0.02, part.y1), "highlight", 0.1)


def drawing_heads() -> Figure:
    """Eight query heads over eight, two and one heads of keys and values."""
    drawn, axes = canvas(WIDTH, 2.75)
    kinds = (("MHA: one each", 8), ("GQA: shared by a group", 2), ("MQA: one for all", 1))
    for (name, shared), left in zip(kinds, (0.2, 2.7, 5.2), strict=True):
        write(axes, (left, 2.5), name, TITLE, ha="left", weight="bold")
        places = [left + 0.12 + 0.28 * head for head in range(8)]
        group_size = 8 // shared
        for number in range(shared):
            members = places[number * group_size : (number + 1) * group_size]
            middle = sum(members) / group_size
            keys = box(axes, "k", (middle, 0.95), (0.22, 0.26), "keys", SMALL)
            box(axes, "v", (middle, 0.62), (0.22, 0.26), "values", SMALL)
            for x in members:
                query = box(axes, "q", (x, 1.95), (0.22, 0.26), "queries", SMALL)
                stroke(axes, [(x, query.y0), (middle, keys.y1)])
        cached = "cache: all of it" if shared == 8 else f"cache: 1/{8 // shared} of it"
        write(axes, (left + 0.02, 0.25), cached, ha="left")
    return drawn


def drawing_swiglu() -> Figure:
    """Two matrices widen x; one result passes through SiLU and becomes the gate of the other."""
    drawn, axes = canvas(WIDTH, 2.2)
    x = box(axes, "x\n(B, T, C)", (0.65, 1.1), role="activations")
    gate = box(axes, "gate_proj", (2.1, 1.65), (1.0, 0.34), "weights")
    up = box(axes, "up_proj", (2.1, 0.55), (1.0, 0.34), "weights")
    silu = box(axes, "SiLU", (3.45, 1.65), (0.75, 0.34), "highlight")
    times = sign(axes, "×", (4.55, 1.1), "highlight", 0.16)
    down = box(axes, "down_proj", (5.6, 1.1), (1.0, 0.34), "weights")
    result = box(axes, "to the stream\n(B, T, C)", (6.85, 1.1), role="activations")
    for part in (gate, up):
        arrow(axes, x, (part.x0, part.centre[1]), corners=[(1.3, 1.1), (1.3, part.centre[1])])
    arrow(axes, gate, silu)
    arrow(axes, silu, times, corners=[(4.55, 1.65)])
    write(axes, (4.68, 1.55), "how much passes", SMALL, ha="left")
    arrow(axes, up, times, corners=[(4.55, 0.55)])
    write(axes, (4.68, 0.65), "what could pass  (B, T, F)", SMALL, ha="left")
    arrow(axes, times, down)
    arrow(axes, down, result)
    return drawn


def drawing_rotary(words: Sequence[str], degrees: float = 30) -> Figure:
    """One pair of each word's vector, before (grey) and after its turn by position x `degrees`."""
    drawn, axes = canvas(WIDTH, 2.35)
    first = {word: 20 + 65 * words.index(word) for word in words}  # equal words, equal vectors
    step = (WIDTH - 0.3) / len(words)
    for position, word in enumerate(words):
        x, y, radius = 0.15 + (position + 0.5) * step, 1.3, 0.42
        axes.add_patch(_circle((x, y), radius))
        turned = first[word] + position * degrees
        for angle, role in ((first[word], "neutral"), (turned, "queries")):
            along = math.cos(math.radians(angle)), math.sin(math.radians(angle))
            arrow(axes, (x, y), (x + radius * along[0], y + radius * along[1]), role=role)
        write(axes, (x, 2.05), word, weight="bold")
        write(axes, (x, 0.62), f"position {position}", SMALL)
        write(axes, (x, 0.4), f"+ {position * degrees:g}°", SMALL)
    write(axes, (0.15, 0.12), "grey: the vector of the word. Blue: turned.", SMALL, ha="left")
    return drawn


def mean_share(mean: Tensor, random: Sequence[Tensor]) -> Figure:
    """What LayerNorm would take off, in % of a vector's squared length, (norms, tokens).

    `random`: the same share along each of several random directions.
    """
    drawn, axes = figure(figsize=(7.5, 3.4))
    places = range(len(mean))
    axes.plot(places, 100 * mean.median(1).values, **AFTER, markersize=3, label="along the mean")
    others = 100 * torch.stack([share.median(1).values for share in random])  # (directions, norms)
    band = {"color": GREY, "alpha": 0.35, "linewidth": 0}
    axes.plot(
        places, others.median(0).values, "--", color="black", label="random directions: median"
    )
    axes.fill_between(places, others.amin(0), others.amax(0), **band, label="least to largest")
    axes.set_yscale("log")
    axes.set_xlabel("norm, from the input to the output")
    axes.set_ylabel("% of the squared length (log)")
    axes.set_ylim(top=10)
    axes.legend(fontsize=8, loc="upper left", ncols=3)
    axes.set_title("There is hardly a mean to take off")
    return drawn


def norm_times(times: Mapping[str, np.ndarray]) -> Figure:
    """Time of each norm, as a formula and as PyTorch's function; `times`: seconds of each round."""
    drawn, axes = figure(figsize=(7.5, 2.5))
    names = list(times)
    quartiles = [0.25, 0.5, 0.75]
    low, middle, high = 1e6 * np.quantile(list(times.values()), quartiles, axis=1)
    layer, root = COLOURS["int8"], COLOURS["bf16"]
    colours = [layer if "Layer" in name else root for name in names]
    hatches = ["///" if "Layer" in name else "" for name in names]
    axes.barh(names, middle, color=colours, hatch=hatches, edgecolor="white")
    error = [middle - low, high - middle]
    axes.errorbar(middle, names, xerr=error, fmt="none", ecolor="black", capsize=3)
    axes.invert_yaxis()
    axes.set_xlabel("µs for 512 vectors")
    axes.grid(axis="y", visible=False)
    found = []
    for kind, name in (("formula", "formula"), ("PyTorch", "function")):
        ratio = np.quantile(times[f"RMSNorm, {kind}"] / times[f"LayerNorm, {kind}"], quartiles)
        found.append(f"{ratio[1]:.1f} [{ratio[0]:.1f}, {ratio[2]:.1f}] as {name}")
    axes.set_title(f"RMSNorm over LayerNorm:\n{', '.join(found)}")
    return drawn


def wrong_order(runs: Sequence[tuple[int, int, PairedDifference]], windows: int) -> Figure:
    """What a wrong order of rows costs, over how many tokens there are to look back at."""
    drawn, axes = figure(figsize=(7.5, 3.2))
    means = np.array([run.mean for _, _, run in runs])
    low = means - [run.low for _, _, run in runs]
    high = [run.high for _, _, run in runs] - means
    places = range(len(runs))
    axes.bar(places, means, color=COLOURS["int8"], hatch="///", edgecolor="white")
    if windows > 1:
        axes.errorbar(places, means, [low, high], fmt="none", ecolor="black", capsize=3)
    names = [f"{first}" if first == last else f"{first}–{last}" for first, last, _ in runs]
    axes.set_xticks(places, names, fontsize=8)
    axes.axhline(0, color="black", linewidth=0.8)
    axes.set_xlabel("tokens to look back at")
    axes.set_ylabel("loss added (nats per token)")
    axes.grid(axis="x", visible=False)
    grows = runs[-1][2].low > runs[0][2].high
    found = "The wrong order costs more, the more tokens stand before"
    axes.set_title(found if grows else "What the wrong order costs, by position")
    return drawn


def parameters(counts: Mapping[str, Mapping[str, int]]) -> Figure:
    """Where the parameters of each model are, in % of all; `counts`: {model: {part: weights}}."""
    drawn, axes = figure(figsize=(7.5, 1.2 + 0.5 * len(counts)))
    colours = (COLOURS["highlight"], COLOURS["bf16"], COLOURS["good"])
    hatches = ("...", "", "///")
    left = np.zeros(len(counts))
    names = [f"{name}\n{sum(parts.values()) / 1e9:.2f} billion" for name, parts in counts.items()]
    for part, colour, hatch in zip(next(iter(counts.values())), colours, hatches, strict=True):
        share = np.array([100 * c[part] / sum(c.values()) for c in counts.values()])
        axes.barh(names, share, left=left, color=colour, hatch=hatch, edgecolor="white", label=part)
        for row, value in enumerate(share):
            where = (max(left[row] + value / 2, 3.2), row)
            style = {"boxstyle": "round,pad=0.15", "facecolor": "white", "edgecolor": "none"}
            axes.annotate(f"{value:.0f} %", where, ha="center", va="center", fontsize=8, bbox=style)
        left += share
    axes.invert_yaxis()
    axes.set_xlim(0, 100)
    axes.set_xlabel("% of all parameters")
    axes.grid(visible=False)
    drawn.legend(fontsize=8, ncols=3, loc="outside lower center")
    axes.set_title("Most of a LLaMA is feed-forward network")
    return drawn


def norm_places(
    gradients: Mapping[str, Mapping[int, Tensor]],
    curves: Mapping[str, Tensor],
    entropy: float,
) -> Figure:
    """The effect of the norm's place: gradients at initialization, and a deep model's training.

    `gradients`: norms (seeds, layers), for each place and depth; `curves`: training loss
    (seeds, steps); `entropy`: bits per byte of only the byte frequencies.
    """
    drawn, axes = figure(3, figsize=(12, 3.8))
    for (name, by_depth), style in zip(gradients.items(), (BEFORE, AFTER), strict=True):
        values = by_depth[max(by_depth)]
        layers = np.arange(1, values.shape[1] + 1)
        axes[0].plot(layers, values.mean(0), label=name, **style, markersize=4)
        band = {"color": style["color"], "alpha": 0.2, "linewidth": 0}
        axes[0].fill_between(layers, values.amin(0), values.amax(0), **band)
    axes[0].set_ylim(0)
    axes[0].set_xlabel("layer, from the input to the output")
    axes[0].set_ylabel("gradient norm at initialization")
    axes[0].legend()
    axes[0].set_title(f"{len(layers)} layers: norm before calms the last")
    for (name, by_depth), style in zip(gradients.items(), (BEFORE, AFTER), strict=True):
        depths = {depth: values[:, -1] for depth, values in by_depth.items()}
        means = np.array([values.mean().item() for values in depths.values()])
        low = means - [values.min().item() for values in depths.values()]
        high = [values.max().item() for values in depths.values()] - means
        axes[1].errorbar(list(depths), means, [low, high], label=name, capsize=3, **style)
    reference = [means[0] * math.sqrt(min(depths) / depth) for depth in depths]
    axes[1].plot(list(depths), reference, ":", color="black", label="1 / √layers")
    axes[1].set_xscale("log", base=2)
    axes[1].set_yscale("log")
    axes[1].set_yticks([0.05, 0.1, 0.2, 0.4], ["0.05", "0.1", "0.2", "0.4"])
    axes[1].yaxis.set_minor_formatter(NullFormatter())
    axes[1].set_xticks(list(depths), list(depths))
    axes[1].set_xlabel("layers of the model (log)")
    axes[1].set_ylabel("gradient norm, last layer (log)")
    axes[1].legend(fontsize=8)
    axes[1].set_title("Norm after: no smaller with depth")
    styles = (
        (BEFORE["color"], "--", "s"),
        (BEFORE["color"], "-", "s"),
        (AFTER["color"], "--", "o"),
        (AFTER["color"], "-", "o"),
        (COLOURS["highlight"], "-.", "^"),
    )
    for (name, losses), (colour, line, marker) in zip(curves.items(), styles, strict=True):
        smooth = _smooth(losses)
        for run in smooth:
            axes[2].plot(run, line, color=colour, linewidth=1)
        end = [smooth.shape[1] - 1], [smooth[:, -1].mean()]
        hollow = {"fillstyle": "none" if line == "--" else "full"}
        axes[2].plot(*end, line, marker=marker, color=colour, label=name, **hollow)
    axes[2].axhline(entropy, color="black", linestyle=":", label="only byte frequencies")
    axes[2].set_ylim(3.2, 6.2)
    axes[2].set_xlabel("training step")
    axes[2].set_ylabel("training loss (bits per byte)")
    axes[2].legend(fontsize=7)
    axes[2].set_title("16 layers: norm after needs care")
    return drawn


def gates(values: Tensor) -> Figure:
    """ReLU and SiLU, over how often each gate value occurs in the real model."""
    drawn, axes = figure(figsize=(7.5, 3.3))
    x = torch.linspace(-6, 6, 241)
    count = axes.twinx()
    shares = torch.full((len(values),), 100 / len(values)).numpy()
    count.hist(values.numpy(), bins=80, range=(-6, 6), color="#DDDDDD", weights=shares)
    count.set_ylabel("grey: % of the gates")
    count.grid(visible=False)
    axes.set_zorder(count.get_zorder() + 1)
    axes.patch.set_visible(False)
    axes.plot(x, x.relu(), color=BEFORE["color"], linestyle="--", label="ReLU")
    axes.plot(x, torch.nn.functional.silu(x), color=AFTER["color"], label="SiLU")
    axes.set_ylim(-0.6, 4)
    axes.set_xlabel("gate: what gate_proj gives")
    axes.set_ylabel("after the activation")
    axes.legend(loc="upper left")
    negative = (values < 0).float().mean()
    axes.set_title(f"{negative:.0%} of the gates are negative: nearly closed, not shut")
    return drawn


def feed_forward_times(seconds: Mapping[str, np.ndarray]) -> Figure:
    """Time of each feed-forward network over the first one's, taken within each round; the title
    says what the claim's verdict says."""
    drawn, axes = figure(figsize=(7.5, 2.6))
    names = list(seconds)
    ratios = [np.quantile(seconds[n] / seconds[names[0]], [0.25, 0.5, 0.75]) for n in names]
    low, middle, high = np.array(ratios).T
    colours = [BEFORE["color"], BEFORE["color"], AFTER["color"], AFTER["color"]]
    axes.barh(names, middle, color=colours, hatch=["///", "///", "", ".."], edgecolor="white")
    error = [middle - low, high - middle]
    axes.errorbar(middle, names, xerr=error, fmt="none", ecolor="black", capsize=3)
    for name, value, end in zip(names, middle, high, strict=True):
        beside = {"textcoords": "offset points", "va": "center"}
        axes.annotate(f"{value:.2f}x", (end, name), (6, 0), **beside)
    axes.set_xlim(0, 1.2 * max(high))
    axes.invert_yaxis()
    axes.set_xlabel("time, over ReLU's")
    axes.grid(axis="y", visible=False)
    titles = {
        "holds": "SwiGLU takes less time, even at the same inner width",
        "holds only if": "SwiGLU takes less time only with a smaller inner width",
        "fails here": "SwiGLU saves no time, not even with a smaller inner width",
        "undecided here": "Whether SwiGLU saves time: undecided in this run",
    }
    axes.set_title(titles[swiglu_verdict(seconds)[0]])
    return drawn


def rotations(frequencies: Tensor, positions: int = 8) -> Figure:
    """The same vector at positions 0, 1, 2, ... in the planes of four pairs, fast to slow."""
    pairs = [0, len(frequencies) // 6, len(frequencies) // 3, len(frequencies) - 1]
    drawn, axes = figure(4, figsize=(11, 3.1))
    shades = np.linspace(0.3, 1, positions)
    for panel, pair in zip(axes, pairs, strict=True):
        angle = frequencies[pair].item()
        _plane(panel)
        for position, shade in enumerate(shades):
            end = math.cos(0.4 + position * angle), math.sin(0.4 + position * angle)
            style = {"arrowstyle": "->", "color": COLOURS["bf16"], "alpha": shade, "lw": 1.6}
            panel.annotate("", end, (0, 0), arrowprops=style)
            if position in (0, positions - 1) and (position == 0 or pair != pairs[-1]):
                panel.annotate(
                    f"{position}", (1.13 * end[0], 1.13 * end[1]), ha="center", fontsize=8
                )
        turn = 2 * math.pi / angle
        panel.set_title(f"pair {pair}: {math.degrees(angle):.3g}° per token", fontsize=9)
        panel.set_xlabel(f"a full turn in {turn:,.0f} tokens", fontsize=9)
    return drawn


def rope_errors(
    starts: Sequence[int], errors: Mapping[tuple[int, int], Mapping[str, Tensor]]
) -> Figure:
    """Error of a score over the key's position, for each distance and each part rounded to bf16.

    `errors`: {(near, far): {part: (octaves, starts)}}, over the RMS of the scores.
    """
    drawn, axes = figure(2, figsize=(9, 3.9), sharey=True)
    styles = (
        (COLOURS["good"], "^", "-."),
        (COLOURS["bf16"], "o", "-"),
        (COLOURS["int8"], "s", "--"),
        (COLOURS["fp32"], "D", ":"),
    )
    middles = [1.5 * start for start in starts]  # of each octave
    for panel, ((near, far), parts) in zip(axes, errors.items(), strict=True):
        for (name, values), (colour, marker, line) in zip(parts.items(), styles, strict=True):
            low, middle, high = 100 * values.quantile(torch.tensor([0.25, 0.5, 0.75]), dim=1)
            style = {"color": colour, "marker": marker, "linestyle": line, "markersize": 4}
            panel.plot(middles, middle, label=name, **style)
            panel.fill_between(middles, low, high, color=colour, alpha=0.2, linewidth=0)
        panel.set_xscale("log", base=2)
        panel.set_xlabel("position of the key (log)")
        panel.set_title(f"query {near:,} to {far:,} tokens after the key")
    axes[0].set_ylim(0)  # of both panels, once all is drawn
    axes[0].set_ylabel("error, % of a usual score")
    axes[0].legend(fontsize=8, loc="upper left", title="rounded to bf16")
    drawn.suptitle("Round the cosines and sines, and nothing before them", weight="bold")
    return drawn


def wavelengths(curves: Mapping[str, Tensor], contexts: Mapping[str, int]) -> Figure:
    """Tokens for a full turn of each pair, (D / 2,) for each kind of rotary embedding."""
    drawn, axes = figure(figsize=(8, 4))
    styles = (
        (COLOURS["int8"], "--"),
        (COLOURS["good"], "-."),
        (COLOURS["bf16"], ":"),
        (COLOURS["fp32"], "-"),
    )
    for (name, frequencies), (colour, line) in zip(curves.items(), styles, strict=True):
        share = np.arange(len(frequencies)) / len(frequencies)
        axes.plot(share, 2 * math.pi / frequencies, line, color=colour, label=name, linewidth=2)
    for name, length in contexts.items():
        axes.axhline(length, color=GREY, linewidth=1)
        axes.annotate(name, (0, length), xytext=(2, 2), textcoords="offset points", fontsize=8)
    axes.set_yscale("log")
    axes.set_xlabel("pair of dimensions, as a share of all pairs")
    axes.set_ylabel("tokens for a full turn (log)")
    axes.legend(loc="lower right")
    axes.set_title(
        "A larger theta slows all pairs but the first; Llama 3.1 slows only the slow ones"
    )
    return drawn


def turn(query: int, key: int, theta: float, pair: int, pairs: int = 16) -> Figure:
    """Two equal vectors turned to the query's and the key's position: one plane, and the score.

    Each of the `pairs` has length 1, so the score is the sum of cos(distance x frequency).
    """
    frequencies = theta ** (-torch.arange(pairs) / pairs)
    vector = torch.cat([torch.full((pairs,), math.cos(0.4)), torch.full((pairs,), math.sin(0.4))])
    drawn, axes = figure(2, figsize=(11, 3.8), width_ratios=(1, 2))
    _plane(axes[0], 1.5)
    for name, position, kind in (("q", query, "bf16"), ("k", key, "int8")):
        there = rotate(vector, *_cos_sin(frequencies, position))
        end = there[pair].item(), there[pair + pairs].item()
        style = {"arrowstyle": "->", "color": COLOURS[kind], "lw": 2}
        axes[0].annotate("", end, (0, 0), arrowprops=style)
        outside = (1.2 * end[0], 1.2 * end[1])
        style = {"color": INKS[kind], "weight": "bold", "ha": "center"}
        axes[0].annotate(f"{name} at {position}", outside, **style)
    grey = {"arrowstyle": "->", "color": GREY, "lw": 1}
    axes[0].annotate(
        "", (vector[pair].item(), vector[pair + pairs].item()), (0, 0), arrowprops=grey
    )
    axes[0].set_xlabel("grey: both before the rotation")
    axes[0].set_title(f"pair {pair}: {math.degrees(frequencies[pair].item()):.3g}° per token")
    places = torch.arange(0, 129)
    turned_query = rotate(vector, *_cos_sin(frequencies, query))
    scores = [
        (turned_query @ rotate(vector, *_cos_sin(frequencies, int(p)))).item() for p in places
    ]
    axes[1].plot(places, scores, color=GREY, label=f"key anywhere, query at {query}")
    axes[1].plot(key, scores[key], "s", color=COLOURS["int8"], markersize=9, label="the key")
    axes[1].axvline(query, color=COLOURS["bf16"], linestyle=":", label="the query's position")
    axes[1].set_ylim(-pairs, pairs * 1.4)
    axes[1].set_xlabel("position of the key")
    axes[1].set_ylabel("score q·k")
    axes[1].legend(fontsize=8, ncols=3, loc="upper left")
    axes[1].set_title(f"theta {theta:,}, distance {query - key}: score {scores[key]:.2f}")
    return drawn


def _smooth(losses: Tensor, window: int = 5) -> Tensor:
    """Running mean over `window` steps, (seeds, steps) -> (seeds, steps - window + 1)."""
    return losses.unfold(1, window, 1).mean(-1)


def _cos_sin(frequencies: Tensor, position: int) -> tuple[Tensor, Tensor]:
    return (position * frequencies).cos(), (position * frequencies).sin()


def _plane(axes: Axes, reach: float = 1.25) -> None:
    """A square plane with a unit circle."""
    axes.add_patch(_circle())
    axes.set_xlim(-reach, reach)
    axes.set_ylim(-reach, reach)
    axes.set_aspect("equal")
    axes.set_xticks([])
    axes.set_yticks([])
    axes.spines[:].set_visible(False)


def _circle(centre: tuple[float, float] = (0, 0), radius: float = 1) -> Circle:
    return Circle(centre, radius, fill=False, color="#BBBBBB", linewidth=0.8)
