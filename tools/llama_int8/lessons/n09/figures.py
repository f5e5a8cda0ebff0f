"""The figures of lesson 09."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import ipywidgets
import numpy as np
import torch
from matplotlib.colors import ListedColormap
from matplotlib.figure import Figure
from matplotlib.patches import PathPatch
from matplotlib.path import Path
from torch import Tensor

from llama_int8.course.drawings import (
    SMALL,
    WIDTH,
    Area,
    arrow,
    box,
    brace,
    canvas,
    group,
    matrix,
    sign,
    write,
)
from llama_int8.course.explore import explore
from llama_int8.course.plots import CURVES, SHAPES, figure
from llama_int8.lessons.n09.backends import BACKENDS, NOTHING
from llama_int8.lessons.n09.measurements import WRITTEN_OUT, YOURS, fastest, spread_of
from llama_int8.transformer.config import LlamaConfig
from llama_int8.transformer.flash import Tile, flash_attention_1, flash_attention_2, flash_traffic

LOOKS = dict(zip((*BACKENDS, YOURS, WRITTEN_OUT), zip(CURVES, SHAPES, strict=False), strict=False))
PREDICTED = (("#949494", ":"), ("#666666", "-."), ("#000000", "--"))
MEMORY_ALT = (
    "Above: slow memory. Q, K, V and O are narrow; the scores and the weights, T by T, are squares "
    "of the same height. Below: a small fast memory with the arithmetic. Three steps: Q and K go down "
    "and scores come up; scores go down and weights come up; weights and V go down and O comes up."
)
TILES_ALT = (
    "A score matrix of four by four tiles, blocks of queries at the left, blocks of keys at the top. "
    "One row of tiles is being computed from left to right. Tiles above the diagonal are hatched and "
    "skipped; those on the diagonal are half hidden. At the right, the running m, l and o of that "
    "block of queries."
)
SPLIT_ALT = (
    "One query goes to eight workers, side by side. Each has a share of the keys and values, and makes "
    "a part (m, l, o), all at the same time. Merges in three levels, four, two and one, make one part "
    "of them; o / l is the output."
)


def drawing_memory() -> Figure:
    """The three steps of standard attention between slow and fast memory."""
    drawn, axes = canvas(WIDTH, 3.9)
    group(axes, Area(0.1, 1.75, WIDTH - 0.1, 3.8), "slow memory: large, far away")
    group(axes, Area(0.1, 0.1, WIDTH - 0.1, 0.95), "fast memory: small")
    tall, middle = 1.4, 2.62  # T rows; a square of T x T is as wide
    places = {}
    for name, role, x in (("Q", "queries", 0.45), ("K", "keys", 0.95), ("V", "values", 1.45)):
        places[name] = box(axes, name, (x, middle), (0.3, tall), role)
    for name, x in (("scores", 2.75), ("weights", 4.75)):
        places[name] = box(axes, f"{name}\nT x T", (x, middle), (tall, tall), "weights")
    places["O"] = box(axes, "O", (6.95, middle), (0.3, tall), "activations")
    steps = {
        "1": (2.1, "$QK^T / \\sqrt{D}$", ("Q", "K"), "scores"),
        "2": (3.9, "softmax", ("scores",), "weights"),
        "3": (5.9, "times V", ("weights",), "O"),
    }
    for number, (x, text, sources, result) in steps.items():
        step = box(axes, text, (x, 0.38), (1.15, 0.34), "neutral")
        sign(axes, number, (step.x0, step.y1), "highlight", 0.1)
        for shift, source in enumerate(sources):
            level = 1.5 - 0.14 * shift
            start, end = places[source].centre[0], x - 0.25 - 0.12 * shift
            corners = [(start, level), (end, level)]
            arrow(axes, (start, places[source].y0), (end, step.y1), corners=corners)
        up = places["O"].centre[0] if result == "O" else x + 0.35
        bends = [(x + 0.35, 1.3), (up, 1.3)] if result == "O" else []
        arrow(axes, (x + 0.35, step.y1), (up, places[result].y0), corners=bends)
    v = places["V"].centre[0]
    arrow(axes, (v, places["V"].y0), (5.53, 0.55), corners=[(v, 1.08), (5.53, 1.08)])
    return drawn


def drawing_tiles() -> Figure:
    """Which tiles of a causal score matrix are done, which is computed now, and what is kept."""
    drawn, axes = canvas(WIDTH, 3.2)
    side, per, left, top = 0.55, 4, 1.75, 2.5
    done = {(0, 0), (1, 0), (1, 1), (2, 0)}
    now, later = {(2, 1)}, {(2, 2), (3, 0), (3, 1), (3, 2), (3, 3)}
    names = [f"keys {n}" for n in range(1, 5)]
    cells = {"weights": done, "highlight": now, "neutral": later}
    grid = matrix(
        axes,
        (left, top),
        (per, per),
        cells=cells,
        columns=names,
        rows=[""] * per,
        size=(0.72, side),
    )
    hidden = {"facecolor": "white", "edgecolor": "#BBBBBB", "hatch": "////", "zorder": 3.5}
    for row, column in np.ndindex(per, per):
        x, y = left + column * 0.72, top - row * side
        corners = [(x, y), (x + 0.72, y), (x + 0.72, y - side)]  # above the tile's diagonal
        if row < column:
            corners.append((x, y - side))
        if row <= column:
            axes.add_patch(PathPatch(Path([*corners, corners[0]]), **hidden))
    for row, column in np.ndindex(per, per):
        x, y = left + (column + 0.5) * 0.72, top - (row + 0.5) * side
        if row == column:  # below the hidden half
            x, y = x - 0.13, y - 0.13
        text = (
            "done" if (row, column) in done
            else "now" if (row, column) in now
            else "later" if (row, column) in later
            else "skipped"
        )  # fmt: skip
        shown = write(axes, (x, y), text, SMALL)
        if text == "skipped":
            shown.set_bbox({"facecolor": "white", "edgecolor": "none", "pad": 1})
    for row in range(per):
        y = top - (row + 0.5) * side
        box(axes, f"queries {row + 1}", (1.1, y), (1.0, 0.36), "queries", SMALL)
    y = top - 2.5 * side
    kept = [
        box(axes, text, (x, y), (wide, 0.42), role, SMALL)
        for text, x, wide, role in (
            ("m", 5.35, 0.36, "neutral"),
            ("l", 5.8, 0.36, "neutral"),
            ("o  (undivided)", 6.6, 1.05, "activations"),
        )
    ]
    arrow(axes, (grid.x1, y), kept[0])
    brace(
        axes,
        (kept[0].x0, kept[0].y0 - 0.05),
        (kept[-1].x1, kept[0].y0 - 0.05),
        "kept until the row\nof tiles is done",
    )
    write(
        axes,
        (0.6, 0.12),
        "Each tile: load a block of keys and values, merge its part, forget it.",
        ha="left",
    )
    return drawn


def drawing_split() -> Figure:
    """One query goes to many workers, each with its share of the keys; a tree merges their parts."""
    drawn, axes = canvas(WIDTH, 4.3)
    query = box(
        axes, "q: one query, sent to every worker", (WIDTH / 2, 4.08), (2.6, 0.32), "queries"
    )
    state = []
    for worker in range(8):
        x = WIDTH / 2 + 0.92 * (worker - 3.5)
        name = f"keys,\nvalues {worker + 1}"
        keys = box(axes, name, (x, 3.3), (0.8, 0.44), "keys", SMALL)
        down = [(WIDTH / 2, 3.72), (x, 3.72)]
        arrow(axes, (WIDTH / 2, query.y0), (x, keys.y1), corners=down)
        made = box(axes, f"part {worker + 1}\nm, l, o", (x, 2.6), (0.8, 0.44), "neutral", SMALL)
        arrow(axes, keys, made)
        state.append(made)
    for y in (1.95, 1.4, 0.85):  # every level merges pairs of neighbours
        merged = []
        for left, right in zip(state[::2], state[1::2], strict=True):
            middle = (left.centre[0] + right.centre[0]) / 2
            both = box(axes, "merge", (middle, y), (0.62, 0.28), "highlight", SMALL)
            for part in (left, right):
                arrow(axes, part, both, corners=[(part.centre[0], y)])
            merged.append(both)
        state = merged
    out = box(axes, "o / l", (WIDTH / 2, 0.27), (0.62, 0.28), "activations", SMALL)
    arrow(axes, state[0], out)
    return drawn


def _look(name: str) -> dict[str, Any]:
    colour, marker = LOOKS.get(name, (CURVES[0], SHAPES[0]))
    return {"color": colour, "marker": marker, "markersize": 5}


def running(scores: Tensor, block: int) -> Figure:
    """One row of scores with its running maximum, and the sum after each block of it."""
    ends = np.arange(block, len(scores) + block, block).clip(max=len(scores))
    maxima = np.array([scores[:end].max().item() for end in ends])
    sums = [(scores[:end] - top).exp().sum().item() for end, top in zip(ends, maxima, strict=True)]
    drawn, axes = figure(2, figsize=(9, 3.2))
    axes[0].bar(np.arange(len(scores)), scores.numpy(), color=CURVES[0], label="scores")
    axes[0].step(
        ends - 0.5, maxima, where="post", color=CURVES[1], marker="o", label="maximum so far"
    )
    axes[0].set(xlabel="key", ylabel="score")
    rises = int((np.diff(maxima) > 0).sum())
    axes[0].set_title(f"The maximum rises {rises} times after the first block")
    axes[0].legend(fontsize=8)
    log = np.log(sums) + maxima
    axes[1].plot(ends, sums, color=CURVES[2], marker="o", label="sum $l$")
    axes[1].plot(
        ends, log, color=CURVES[3], marker="s", linestyle="--",
        label=r"$m + \log\, l$, the log of the true sum",
    )  # fmt: skip
    axes[1].set(xlabel="keys read", ylabel="value")
    axes[1].set_title("The sum may fall; $m + \\log\\, l$ never does")
    axes[1].legend(fontsize=8)
    return drawn


def tiles(
    done: Sequence[Tile],
    state: tuple[Tensor, Tensor, Tensor],
    final: Tensor,
    shape: tuple[int, int],
    visited: np.ndarray,
    version: int,
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
    count = f"{len(done)} tile{'s' if len(done) > 1 else ''}"
    axes[0].set_title(f"Version {version}: {count} done")
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


def state_after(tiles: Sequence[Tile], queries: int) -> tuple[Tensor, Tensor, Tensor]:
    """Maximum and sum (B, H, T, 1) and output (B, H, T, D) of all queries once `tiles` are done.

    A query that no tile has reached holds minus infinity, 0 and 0. Raises ValueError for no tile.
    """
    if not tiles:
        raise ValueError("there is no tile; record some with watch=tiles.append")
    *heads, _, width = tiles[0].output.shape
    maximum = tiles[0].output.new_full((*heads, queries, 1), -math.inf)
    total, output = torch.zeros_like(maximum), maximum.new_zeros((*heads, queries, width))
    for tile in tiles:
        maximum[:, :, tile.rows] = tile.maximum
        total[:, :, tile.rows] = tile.total
        output[:, :, tile.rows] = tile.output
    return maximum, total, output


def explore_tiles(queries: int = 24, keys: int = 32, block: int = 8) -> None:
    """A slider over the tiles of a small causal attention, in the order of either version."""
    generator = torch.Generator().manual_seed(2)
    q = torch.randn(1, 1, queries, 16, generator=generator)
    k, v = torch.randn(2, 1, 1, keys, 16, generator=generator).unbind(0)
    walks: dict[int, list[Tile]] = {1: [], 2: []}
    flash_attention_1(q, k, v, True, block, block, watch=walks[1].append)
    final, _ = flash_attention_2(q, k, v, True, block, block, watch=walks[2].append)
    visited = np.zeros((queries, keys), dtype=bool)
    for tile in walks[2]:
        visited[tile.rows, tile.columns] = True

    def draw(version: int, step: int) -> Figure:
        done = walks[version][:step]
        return tiles(done, state_after(done, queries), final, (queries, keys), visited, version)

    explore(
        draw,
        "Tiles done so far, the running maximum and sum of each query, and the error of its output.",
        version=ipywidgets.Dropdown(options=[2, 1], value=2, description="version"),
        step=ipywidgets.IntSlider(value=1, min=1, max=len(walks[2]), description="tiles"),
    )


def blocks(
    block: int, seconds: Mapping[int, Sequence[float]], length: int, config: LlamaConfig
) -> Figure:
    """Measured time of the learner's loop beside what the formula says it moves, by block size.

    Both for all heads together, causal, in FP32.
    """
    width, heads = config.head_dim, config.num_attention_heads
    sizes = list(seconds)
    moved = [
        4 * flash_traffic(length, length, width, n, n, causal=True, heads=heads).moved / 2**20
        for n in sizes
    ]
    drawn, axes = figure(2, figsize=(9, 3.5))
    middle = 1e3 * np.array([np.median(seconds[n]) for n in sizes])
    low, high = (1e3 * np.array([end(seconds[n]) for n in sizes]) for end in (min, max))
    axes[0].plot(sizes, moved, color=CURVES[2], marker="^")
    axes[0].set_ylabel("predicted traffic in FP32, MiB")
    axes[0].set_title(f"Blocks of {block}: {moved[sizes.index(block)]:,.0f} MiB moved")
    axes[1].errorbar(sizes, middle, [middle - low, high - middle], capsize=2, **_look(YOURS))
    axes[1].set_ylabel("measured, ms")
    best = sizes[int(middle.argmin())]
    here = middle[sizes.index(block)]
    axes[1].set_title(f"{here:,.0f} ms; lowest median: blocks of {best}")
    for panel in axes:
        panel.axvline(block, color="#555555", linestyle=":")
        panel.set_xscale("log", base=2)
        panel.set_xticks(sizes, sizes)
        panel.minorticks_off()
        panel.set_ylim(0)
        panel.set_xlabel("block: queries and keys of a tile (log)")
    return drawn


def explore_blocks(
    seconds: Mapping[int, Sequence[float]], length: int, config: LlamaConfig, start: int
) -> None:
    """A slider over the block sizes that were measured."""
    sizes = list(seconds)
    explore(
        lambda block: blocks(block, seconds, length, config),
        f"Two curves by block size, for {length:,} tokens and all heads: the traffic that the formula "
        "predicts, and the measured time.",
        block=ipywidgets.SelectionSlider(
            options=sizes, value=min(sizes, key=lambda n: abs(n - start)), description="block"
        ),
    )


def moved(lengths: Sequence[int], by_memory: Mapping[int, Mapping[str, Sequence[float]]]) -> Figure:
    """Bytes moved by each way over the length, as multiples of what standard attention moves.

    A panel for each size of the fast memory; the last line of each gives its title.
    """
    drawn, axes = figure(len(by_memory), figsize=(9.5, 4.5))
    for panel, (memory, lines) in zip(axes, by_memory.items(), strict=True):
        for number, (name, values) in enumerate(lines.items()):
            look = {"color": CURVES[number], "marker": SHAPES[number], "markersize": 5}
            panel.plot(lengths, values, label=name, **look)
        panel.set_xscale("log", base=2)
        panel.set_xlabel("length T, queries and keys (log)")
        panel.set_ylim(0, min(4, 1.1 * max(map(max, lines.values()))))
        below = {"loc": "upper center", "bbox_to_anchor": (0.5, -0.2), "ncols": 2}
        panel.legend(fontsize=8, title="block of queries x keys", title_fontsize=8, **below)
        *_, (name, values) = lines.items()
        last = values[-1]
        how = f"{1 / last:.1f} times less" if last < 1 else f"{last:.1f} times more"
        version = name.partition(",")[0]
        panel.set_title(
            f"{memory:,} numbers fit: at {lengths[-1]:,} tokens\n{version} moves {how}", fontsize=10
        )
    axes[0].set_ylabel("moved, over standard attention")
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
    most = max(peaks, key=lambda name: peaks[name]["peak"])
    least = min(peaks, key=lambda name: peaks[name]["peak"])
    ratio = np.median(spread_of(found, lengths[-1], "math", YOURS))
    axes[0].set_title(
        f"{lengths[-1]:,} tokens, causal: your loop is\n{ratio:.1f} times as fast as math",
        fontsize=10,
    )
    memory = peaks[most]["peak"] / max(peaks[least]["peak"], 1)
    axes[1].set_title(
        f"{lengths[-1]:,} tokens: {most} takes\n{memory:.0f} times the memory of {least}",
        fontsize=10,
    )
    return drawn


def prefill(found: Mapping[int, Mapping[str, Sequence[float]]]) -> Figure:
    """Tokens/s in which the model reads a prompt, over its length, by backend and without attention."""
    drawn, axes = figure(figsize=(8, 3.8))
    lengths = list(found)
    for name in found[lengths[0]]:
        own = [n for n in lengths if name in found[n]]
        speed = np.array([n / np.median(found[n][name]) for n in own])
        low = np.array([n / max(found[n][name]) for n in own])
        high = np.array([n / min(found[n][name]) for n in own])
        look = _look(name)
        if name == NOTHING:
            look |= {"color": "black", "marker": "", "linestyle": ":"}
        axes.errorbar(own, speed, [speed - low, high - speed], capsize=2, label=name, **look)
    axes.set_xscale("log", base=2)
    axes.set_xticks(lengths, [f"{n:,}" for n in lengths])
    axes.minorticks_off()
    axes.set_ylim(0)
    axes.set_xlabel("tokens of the prompt (log)")
    axes.set_ylabel("prefill, tokens/s")
    axes.legend(fontsize=8)
    last = found[lengths[-1]]
    best = fastest(last)
    others = [min(times) for name, times in last.items() if name not in (best, NOTHING)]
    clear = all(max(last[best]) < other for other in others)
    axes.set_title(
        f"{lengths[-1]:,} tokens: {best} reads fastest in every round"
        if clear
        else f"{lengths[-1]:,} tokens: the ranges of the backends overlap"
    )
    return drawn


def shares(
    lengths: Sequence[int],
    predicted: Mapping[str, Mapping[str, Sequence[float]]],
    measured: Mapping[str, Mapping[str, Mapping[int, float]]],
    models: Mapping[str, LlamaConfig],
) -> Figure:
    """Attention's share of the work over the length, predicted for models, measured for backends.

    Both: {"prefill" or "decode": {name: values}}. A model's line ends at its context.
    """
    drawn, axes = figure(2, figsize=(9.5, 3.9), sharey=True)
    words = {"prefill": "tokens of the prompt", "decode": "tokens in the cache"}
    for panel, (phase, by_model) in zip(axes, predicted.items(), strict=True):
        for number, (name, values) in enumerate(by_model.items()):
            colour, style = PREDICTED[number % len(PREDICTED)]
            own = [length for length in lengths if length <= models[name].max_position_embeddings]
            panel.plot(own, values[: len(own)], color=colour, linestyle=style, linewidth=1.2,
                       label=f"{name}, predicted")  # fmt: skip
        for name, found in measured[phase].items():
            panel.plot(list(found), list(found.values()), label=f"measured, {name}", **_look(name))
        panel.axhline(0.5, color="black", linewidth=0.8)
        panel.set_xscale("log", base=2)
        panel.set_ylim(0, 1)
        panel.set_xlabel(f"{words[phase]} (log)")
    for panel, (phase, found) in zip(axes, measured.items(), strict=True):
        panel.set_title(_longest_share(found, phase), fontsize=10)
    axes[0].set_ylabel("attention's share of the work")
    handles, labels = axes[0].get_legend_handles_labels()
    drawn.legend(handles, labels, fontsize=8, ncols=3, loc="outside lower center")
    return drawn


def _longest_share(measured: Mapping[str, Mapping[int, float]], phase: str) -> str:
    """Attention's share at the longest measured length, by each backend."""
    length = list(next(iter(measured.values())))[-1]
    parts = [f"{found[length]:.0%} of the time by {name}" for name, found in measured.items()]
    case = "Reading" if phase == "prefill" else "A step after"
    return f"{case} {length:,} tokens, attention takes\n{', '.join(parts)}"
