"""The figures of notebook 08."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullLocator

from llama_int8.course.drawings import (
    SMALL,
    WIDTH,
    canvas,
    matrix,
    number_line,
    points,
    write,
)
from llama_int8.course.plots import COLOURS, CURVES, HATCHES, INKS, MARKERS, figure
from llama_int8.evaluation.compare import Flips, Point, Speeds, faster_or_slower
from llama_int8.lessons.n08.measurements import BothModels, against_guessing
from llama_int8.measure.profiler import KINDS
from llama_int8.measure.statistics import PairedDifference, Spread, spread
from llama_int8.models.cost import (
    GIB,
    count_parameters,
    decode_bound,
    forward_bytes,
    forward_flops,
    peak_bytes,
    roofline,
)
from llama_int8.quantization import precisions
from llama_int8.transformer.config import LlamaConfig

# What cards show of their memory, in GiB, as nvidia-smi and CUDA report it. A card of 8 GB shows
# somewhat less than its name; no card shows more.
T4_GIB = 14.75
CARDS = {
    "8 GB": 8.0,  # nominal
    "T4, 16 GB": T4_GIB,
    "L4, 24 GB": 23_034 / 1024,
    "A100, 40 GB": 40_960 / 1024,
    "H100, 80 GB": 81_559 / 1024,
}


def _look(precision: str) -> dict[str, Any]:
    """Colour, marker and line of a precision, the same in every figure."""
    if precision == precisions.NO_DECOMPOSITION:
        return {"color": COLOURS["highlight"], "marker": "^", "linestyle": ":"}
    return {
        "color": COLOURS[precision],
        "marker": MARKERS[precision],
        "linestyle": "--" if precision == "fp32" else "-",
    }


def cards(configs: Mapping[str, LlamaConfig], contexts: tuple[int, int]) -> Figure:
    """GiB of every model in 16 bit and int8 at two lengths of context, against the usual cards.

    A length beyond what a model was made for is cut to that.
    """
    drawn, axes = figure(figsize=(8.5, 4.6))
    configs = dict(sorted(configs.items(), key=lambda entry: count_parameters(entry[1])))
    for row, config in enumerate(configs.values()):
        for offset, precision in ((-0.17, "fp16"), (0.17, "int8")):
            ends = [
                sum(peak_bytes(config, precision, min(t, config.max_position_embeddings)).values())
                / GIB
                for t in contexts
            ]
            look = _look(precision)
            axes.plot(ends, [row + offset] * 2, color=look["color"], linewidth=3, alpha=0.5)
            name = "16 bit" if precision == "fp16" else precisions.label(precision)
            shown = f"{name}, {contexts[0]:,} tokens or the model's limit" if row == 0 else None
            axes.plot(ends[0], row + offset, look["marker"], color=look["color"], label=shown)
            axes.annotate(
                f"{ends[0]:.1f}",
                (ends[0], row + offset),
                (-7, 0),
                fontsize=8,
                ha="right",
                va="center",
                textcoords="offset points",
                bbox={"color": "white", "pad": 0.5, "alpha": 0.8},
            )
    for card, room in CARDS.items():
        axes.axvline(room, color="#777777", linestyle="--", linewidth=1, zorder=0)
        short = card.split(",")[0]
        axes.annotate(short, (room, -0.7), fontsize=8, ha="center", backgroundcolor="white")
    axes.set_xscale("log")
    axes.set_xlim(0.12, 260)
    axes.set_xticks([0.25, 0.5, 1, 2, 4, 8, 16, 32, 64, 128], minor=False)
    axes.xaxis.set_major_formatter(lambda x, _: f"{x:g}")
    axes.minorticks_off()
    axes.set_yticks(range(len(configs)), list(configs))
    axes.set_ylim(len(configs) - 0.5, -1)
    axes.set_xlabel(
        f"GiB (log); bars go on to {contexts[1]:,} tokens where the model allows;\n"
        "dashed: memory that a card shows (8 GB: by its name)"
    )
    axes.grid(axis="y", visible=False)
    axes.legend(loc="lower left")
    fitting = {
        precision: sum(
            sum(peak_bytes(c, precision, min(contexts[0], c.max_position_embeddings)).values())
            < T4_GIB * GIB
            for c in configs.values()
        )
        for precision in ("fp16", "int8")
    }
    axes.set_title(
        f"Of {len(configs)} models a T4 holds {fitting['fp16']} in 16 bit and {fitting['int8']} in int8"
    )
    return drawn


def window_differences(
    differences: np.ndarray, summary: PairedDifference, first: str, second: str, margin: float
) -> Figure:
    """Each window's mean NLL difference, sorted, with the mean, its interval and the margin, in nats."""
    drawn, axes = figure(figsize=(7.5, 3.4))
    ordered = np.sort(differences)
    axes.axhline(0, color="black", linewidth=1)
    axes.axhspan(summary.low, summary.high, color=COLOURS["int8"], alpha=0.25, linewidth=0)
    axes.axhline(
        summary.mean,
        color=COLOURS["int8"],
        linewidth=1.5,
        label=f"mean and {summary.confidence:.0%} interval",
    )
    axes.axhline(
        margin,
        color=COLOURS["highlight"],
        linestyle="--",
        label=f"our margin, {np.expm1(margin):.0%}",
    )
    axes.plot(
        ordered, MARKERS["int8"], color=COLOURS["bf16"], markersize=4, label="one window of text"
    )
    axes.set_xlabel("windows, sorted")
    axes.set_ylabel(f"NLL of {second} minus {first}\n(nats per token)")
    axes.legend(loc="upper left")
    worse = int(np.sum(ordered > 0))
    axes.set_title(
        f"{second} changes NLL by {summary.mean:+.4f} nats per token; worse in {worse} of "
        f"{ordered.size} windows"
    )
    return drawn


def margins(first: np.ndarray, second: np.ndarray, change: Flips, names: tuple[str, str]) -> Figure:
    """Margin of each item's right choice in two precisions, nats per character, (N,) each."""
    drawn, axes = figure(figsize=(6.2, 4.4))
    top = 1.08 * max(np.abs(first).max(), np.abs(second).max())
    axes.fill_between([-top, 0], 0, top, color=COLOURS["good"], alpha=0.15, linewidth=0)
    axes.fill_between([0, top], -top, 0, color=COLOURS["int8"], alpha=0.15, linewidth=0)
    axes.plot([-top, top], [-top, top], color="#777777", linewidth=1)
    axes.axhline(0, color="black", linewidth=0.8)
    axes.axvline(0, color="black", linewidth=0.8)
    axes.plot(first, second, "o", color=COLOURS["bf16"], markersize=4, alpha=0.7)
    axes.annotate(f"won: {change.won}", (-0.95 * top, 0.85 * top), color=INKS["good"])
    axes.annotate(f"lost: {change.lost}", (0.55 * top, -0.9 * top), color=INKS["int8"])
    axes.set_xlim(-top, top)
    axes.set_ylim(-top, top)
    axes.set_xlabel(f"score margin of the right choice in {names[0]}, nats per character")
    axes.set_ylabel(f"the same in {names[1]}")
    flipped = change.lost + change.won
    near = ", with margins near zero" if _near_zero(first, second) else ""
    verb = "flips" if flipped == 1 else "flip"
    axes.set_title(f"{flipped} of {len(first)} answers {verb} by acc_norm{near}")
    return drawn


def _near_zero(first: np.ndarray, second: np.ndarray) -> bool:
    """Whether every flipped item led by less than the median item did."""
    flipped = (first > 0) != (second > 0)
    return bool(flipped.any() and np.abs(first[flipped]).max() < np.median(np.abs(first)))


def scoring_rules(shares: Mapping[str, tuple[float, float, float]], n: int) -> Figure:
    """Accuracy in percent with its interval, (value, low, high), by rule of scoring of two answers."""
    drawn, axes = figure(figsize=(8, 3.2))
    values, low, high = np.array(list(shares.values())).T
    rows = range(len(shares))
    sides = list(against_guessing(shares, n).values())
    better, worse = (np.array([side == name for side in sides]) for name in ("better", "worse"))
    looks = [
        ("good", "") if good else ("highlight", "xx") if bad else ("predicted", "...")
        for good, bad in zip(better, worse, strict=True)
    ]
    axes.barh(
        rows,
        values,
        0.6,
        xerr=np.stack([values - low, high - values]),
        color=[COLOURS[colour] for colour, _ in looks],
        hatch=[hatch for _, hatch in looks],
        edgecolor="white",
        error_kw={"capsize": 3, "ecolor": "#333333"},
    )
    for row, value in enumerate(values):
        axes.annotate(f"{value:.1f}", (103, row), va="center", fontsize=9)
    axes.axvline(50, color="black", linestyle="--", linewidth=1)
    axes.set_yticks(rows, list(shares))
    axes.invert_yaxis()
    axes.set_xlim(0, 112)
    axes.grid(axis="y", visible=False)
    axes.set_xlabel(f"accuracy over {n} items, %; dashed: guessing")
    less = f", {int(worse.sum())} worse" if worse.any() else ""
    axes.set_title(f"{int(better.sum())} of {len(shares)} rules do better than guessing{less}")
    return drawn


def both_models(entries: Sequence[BothModels]) -> Figure:
    """Weights of the FP16 and the int8 model on each other, beside the memory in the CSV files."""
    drawn, axes = figure(figsize=(8, 1.2 + 0.75 * len(entries)))
    for row, entry in enumerate(entries):
        looks = (
            (entry.fp16, "bf16", "", "weights in FP16"),
            (entry.int8, "int8", "///", "in int8"),
        )
        left = 0.0
        for size, colour, hatch, label in looks:
            axes.barh(
                row, size / 1000, 0.5, left=left, color=COLOURS[colour], hatch=hatch,
                edgecolor="white", label=label if row == 0 else None,
            )  # fmt: skip
            left += size / 1000
        looks_of_runs = (("full", "v", -0.34), ("int8", "^", 0.34))  # above and below the bar
        for value, (run, marker, offset) in zip(entry.measured, looks_of_runs, strict=True):
            axes.plot(
                value / 1000, row + offset, marker, color="black", markersize=7,
                label=f"in the file, run \"{run}\"" if row == 0 else None,
            )  # fmt: skip
        note = f"  {entry.unexplained:.1%} not counted"
        axes.annotate(note, (max(entry.measured) / 1000 + 0.3, row), va="center", fontsize=9)
    axes.set_yticks(range(len(entries)), [entry.name for entry in entries])
    axes.invert_yaxis()
    axes.set_xlim(0, 1.35 * max(max(entry.measured) for entry in entries) / 1000)
    axes.grid(axis="y", visible=False)
    axes.set_xlabel("GB (10⁹ bytes)")
    drawn.legend(fontsize=8, ncols=4, loc="outside lower center")
    worst = max(entry.unexplained for entry in entries)
    axes.set_title(f"The files' memory is the weights of both models, to {worst:.1%} or better")
    return drawn


PAIRED_ALT = (
    "Two number lines with the losses of four windows in 16 bit and in int8, which overlap; below, a "
    "third with the four differences, all right of zero."
)
SCORING_ALT = (
    "A grid of logits, tokens of a question and its answer by vocabulary: one cell is marked in each of "
    "the three rows that predict a token of the answer."
)
PUBLISHED_ALT = (
    "The same grid of logits, tokens of a question and its answer by vocabulary: "
    "every cell is marked."
)


def drawing_paired() -> Figure:
    """Four windows scored by two models: apart they overlap, as pairs they do not."""
    drawn, axes = canvas(WIDTH, 3.1, "The same windows, seen apart and seen as pairs")
    half = [2.6, 3.1, 3.7, 4.4]
    int8 = [loss + change for loss, change in zip(half, (0.1, 0.3, 0.2, 0.4), strict=True)]
    changes = [b - a for a, b in zip(half, int8, strict=True)]
    for y, name, values, role in ((2.35, "16 bit", half, "16 bit"), (1.6, "int8", int8, "int8")):
        line = number_line(axes, y, (1.0, 5.2), (2.3, 5.0), {2.5: "2.5", 3.5: "3.5", 4.5: "4.5"})
        write(axes, (0.5, y), name)
        points(axes, line, values, [role] * 4, name)
        mean = sum(values) / 4
        write(axes, (5.6, y), f"mean {mean:.2f}", ha="left")
    write(
        axes, (3.1, 1.08), "loss of four windows: how hard a passage is hides the difference", SMALL
    )
    line = number_line(axes, 0.65, (1.0, 5.2), (-0.5, 0.5), {-0.4: "−0.4", 0: "0", 0.4: "0.4"})
    write(axes, (0.5, 0.65), "int8 −\n16 bit")
    points(axes, line, changes, ["highlight"] * 4, "differences")
    write(axes, (5.6, 0.65), f"mean {sum(changes) / 4:+.2f}", ha="left")
    write(axes, (3.1, 0.13), "the four differences: all on one side of 0", SMALL)
    return drawn


WORDS, CELLS = ("Question", "Answer:", "use", "a", "spoon"), 8


def _added_up(cells: Sequence[tuple[int, int]], name: str, note: str) -> tuple[Figure, Axes]:
    """The logits of one question and answer, with the cells marked that a rule adds up."""
    drawn, axes = canvas(WIDTH, 3.05, "Which numbers make the score of an answer?")
    grid = matrix(
        axes, (2.4, 2.3), (len(WORDS), CELLS), "logits (T, V)", "16 bit",
        {"highlight": cells}, rows=WORDS, size=0.3,
    )  # fmt: skip
    write(axes, (grid.centre[0], 2.48), name)
    write(axes, (WIDTH / 2, 0.25), note, SMALL)
    return drawn, axes


def drawing_scoring() -> Figure:
    """The logits of one question and answer: which numbers the log-likelihood adds up."""
    note = "Each row predicts the next token. After log-softmax, one number of a row counts."
    cells = [(1, 4), (2, 1), (3, 6)]
    drawn, axes = _added_up(cells, "log-likelihood of the answer", note)
    for row, word in ((1, "use"), (2, "a"), (3, "spoon")):
        place = (2.4 + CELLS * 0.3 + 0.08, 2.3 - (row + 0.5) * 0.3)
        write(axes, place, f"of {word}", SMALL, ha="left")
    return drawn


def drawing_published() -> Figure:
    """The same logits: the published rule adds up all of them."""
    everything = [(row, column) for row in range(len(WORDS)) for column in range(CELLS)]
    note = "All positions, all words of the vocabulary: nothing points at the answer's tokens."
    return _added_up(everything, "published rule: all logits", note)[0]


def parting(texts: Mapping[str, Mapping[str, Any]], step: int | None, words: str) -> Figure:
    """Probability of each token that two precisions chose, up to the step at which they diverge.

    `texts`: `answers.answer_with_candidates` of both; `words`: the two tokens at that step.
    """
    drawn, axes = figure(figsize=(8.5, 3.2))
    last = None if step is None else step + 1
    chosen = {p: [likeliest[0] for likeliest in answer["p"]][:last] for p, answer in texts.items()}
    for precision, values in chosen.items():
        look = _look(precision) | {"linewidth": 1, "markersize": 3.5}
        axes.plot(np.arange(1, len(values) + 1), values, label=precision, **look)
    axes.set_ylim(0, 1.02)
    axes.set_xlabel("step")
    axes.set_ylabel("probability of the chosen token")
    if step is None:
        axes.set_title("The two texts are the same to the last token")
    else:
        axes.axvline(step + 1, color=COLOURS["highlight"], linestyle="--")
        axes.annotate(
            f" {words}", (step + 1, 0.03), color=INKS["highlight"], fontsize=9, ha="right"
        )
        at = [f"{values[step]:.2f}" for values in chosen.values() if len(values) > step]
        axes.set_title(f"They diverge at token {step + 1}, at probabilities of {' and '.join(at)}")
    axes.legend(loc="lower right", bbox_to_anchor=(1, 1), ncols=2)
    return drawn


def most_batches(points: Sequence[Sequence[int]]) -> int:
    """The prompt length that was measured with the most batches; the shortest of equal ones."""
    lengths = [length for _, length in points]
    return max(sorted(set(lengths)), key=lengths.count)


def speed_of_both_phases(
    speeds: Speeds, ratios: Speeds, config: LlamaConfig, half: str, bandwidth: float
) -> Figure:
    """Prefill over prompt length at the smallest batch; decode over batch at one prompt length.

    The titles give `ratios`, taken within rounds, of the points that their lines show. The headline,
    which is the first point, has open marks beside the line where its prompt is of another length.
    """
    points = [point for by_point in speeds["prefill"].values() for point in by_point]
    context, smallest = most_batches(sorted(set(points))), min(b for b, _ in points)
    by_length = {
        p: {t: s for (b, t), s in sorted(found.items()) if b == smallest}
        for p, found in speeds["prefill"].items()
    }
    by_batch = {
        p: {b: s for (b, t), s in sorted(found.items()) if t == context}
        for p, found in speeds["decode"].items()
    }
    bounds = {
        p: decode_bounds(config, p, list(by_batch[p]), context, bandwidth) for p in (half, "int8")
    }
    drawn = _speeds(by_length, by_batch, bounds)
    headline = next(iter(speeds["decode"]["int8"]))
    if headline.tokens != context:
        for p, found in speeds["decode"].items():
            if headline not in found:
                continue
            one = found[headline]
            drawn.axes[1].errorbar(
                headline.batch * 1.12, one.median, [[one.median - one.low], [one.high - one.median]],
                capsize=3, markerfacecolor="white", **_look(p),
            )  # fmt: skip
        drawn.axes[1].set_xlabel(
            f"batch; short lines: bound by bandwidth;\nopen marks: {headline.name} tokens"
        )
    shown = {
        "Prefill": [r for (b, _), r in ratios["prefill"].get("int8", {}).items() if b == smallest],
        f"Decode after {context:,}": [
            r for (_, t), r in ratios["decode"].get("int8", {}).items() if t == context
        ],
    }
    for panel, (name, found) in zip(drawn.axes, shown.items(), strict=True):
        said = f":\nint8 at {_range([r.median for r in found])} of {half}'s speed" if found else ""
        panel.set_title(f"{name}{said}", fontsize=10)
    return drawn


def _speeds(
    prefill: Mapping[str, Mapping[int, Spread]],
    decode: Mapping[str, Mapping[int, Spread]],
    bounds: Mapping[str, Mapping[int, float]],
) -> Figure:
    """Tokens/s by precision: prefill over context at batch 1, decode over batch with its bound."""
    drawn, axes = figure(2, figsize=(9.5, 3.8))
    for panel, lines in zip(axes, (prefill, decode), strict=True):
        for precision, by_size in lines.items():
            x = list(by_size)
            middle, low, high = (
                np.array([getattr(by_size[k], end) for k in x]) for end in ("median", "low", "high")
            )
            panel.errorbar(
                x, middle, np.stack([middle - low, high - middle]), capsize=3, label=precision,
                **_look(precision),
            )  # fmt: skip
        panel.set_xscale("log", base=2)
        panel.set_yscale("log")
        panel.set_xticks(x, [f"{k:,}" for k in x])
        panel.minorticks_off()
        _plain_ticks(panel.yaxis)
    for precision, by_batch in bounds.items():
        axes[1].plot(
            list(by_batch), list(by_batch.values()), MARKERS["predicted"], markersize=18,
            color=_look(precision)["color"], markeredgewidth=2,
        )  # fmt: skip
    axes[0].set_xlabel("tokens in the prompt, batch 1")
    axes[0].set_ylabel("prefill, tokens/s (log)")
    axes[1].set_xlabel("batch; short lines: bound by bandwidth")
    axes[1].set_ylabel("decode, tokens/s, whole batch (log)")
    axes[0].legend(loc="best", fontsize=8)
    return drawn


def _plain_ticks(axis: Axis) -> None:
    """1, 2, 3, 5, 7, 10, ... written out, on a logarithmic axis; more where it spans little."""
    low, high = axis.get_view_interval()
    narrow = high < 8 * low
    axis.set_major_locator(
        LogLocator(subs=(1, 1.2, 1.5, 2, 2.5, 3, 4, 5, 6, 8) if narrow else (1, 2, 3, 5, 7))
    )
    axis.set_major_formatter(lambda value, _: f"{value:,g}")
    axis.set_minor_locator(NullLocator())


def _range(ratios: Sequence[float]) -> str:
    low, high = f"{min(ratios):.0%}", f"{max(ratios):.0%}"
    return low if low == high else f"{low} to {high}"


def when_it_pays(
    ours: Mapping[str, Mapping[str, Mapping[int, Spread]]], lengths: Mapping[str, int]
) -> Figure:
    """Speed of int8 over 16 bit by batch, for each model and phase.

    `ours`: {model: {phase: {batch: ratio}}}; `lengths`: tokens in each model's prompts.
    """
    drawn, panel = figure(figsize=(8.5, 3.8))
    series = 0
    for colour, (model, phases) in zip(CURVES, ours.items(), strict=False):
        for phase, style in (("decode", "-"), ("prefill", "--")):
            by_batch = phases[phase]
            aside = 1.04 ** (series - len(ours) + 0.5)  # so that no whisker hides another
            series += 1
            middle = [s.median for s in by_batch.values()]
            low = [s.median - s.low for s in by_batch.values()]
            high = [s.high - s.median for s in by_batch.values()]
            panel.errorbar(
                [b * aside for b in by_batch], middle, [low, high], color=colour, linestyle=style,
                capsize=3, marker="o" if phase == "decode" else "v",
                label=f"{model}, {phase}, prompts of {lengths[model]:,}",
            )  # fmt: skip
    batches = sorted({b for phases in ours.values() for p in phases.values() for b in p})
    panel.set_xscale("log", base=2)
    panel.set_xticks(batches, batches)
    panel.minorticks_off()
    panel.axhline(1, color="black", linewidth=1)
    panel.set_xlabel("batch")
    panel.set_ylabel("speed of int8 over 16 bit")
    panel.legend(fontsize=8, loc="center left", bbox_to_anchor=(1, 0.5))
    faster = sum(
        faster_or_slower(s) == "faster"
        for m in ours.values()
        for p in m.values()
        for s in p.values()
    )
    total = sum(len(p) for m in ours.values() for p in m.values())
    panel.set_title(f"int8 is faster in {faster} of the {total} cases drawn")
    return drawn


def roofline_marks(
    speeds: Speeds, config: LlamaConfig, half: str
) -> list[tuple[str, str, float, float]]:
    """Every run as (phase, precision, operations per byte, operations/s)."""
    marks = []
    for phase, by_precision in speeds.items():
        for p in (half, "int8"):
            for (batch, length), speed in by_precision[p].items():
                new, past = (length, 0) if phase == "prefill" else (1, length)
                flops = forward_flops(config, new, past, batch)
                intensity = flops / forward_bytes(config, p, new, past, batch)
                marks.append((phase, p, intensity, flops * speed.median / (batch * new)))
    return marks


def roofline_figure(
    points: Sequence[tuple[str, str, float, float]],
    bandwidth: float,
    throughputs: Mapping[str, float],
) -> Figure:
    """Every run as (label, precision, operations per byte, operations/s) under the machine's roof."""
    drawn, axes = figure(figsize=(8.5, 4.4))
    x = np.geomspace(min(p[2] for p in points) / 2, max(p[2] for p in points) * 2, 200)
    highest = max(throughputs.values())
    for number, (precision, throughput) in enumerate(throughputs.items()):
        above = throughput == highest  # the lower roof has its label below, so that none overprints
        roof = [roofline(i, bandwidth, throughput) / 1e9 for i in x]
        wide = {"linewidth": 5, "alpha": 0.4} if number else {"linewidth": 1.5, "zorder": 3}
        axes.plot(
            x, roof, color=_look(precision)["color"], **wide
        )  # where they coincide, both show
        axes.annotate(
            f"matrix product in {precision}: {throughput / 1e9:,.0f} GOP/s", (x[-1], roof[-1]),
            (0, 4 if above else -4), textcoords="offset points", ha="right",
            va="bottom" if above else "top", fontsize=8,
        )  # fmt: skip
    axes.annotate(
        f"reading {bandwidth / 1e9:.0f} GB/s", (x[20], x[20] * bandwidth / 1e9), (0, 10),
        textcoords="offset points", ha="right", fontsize=8,
    )  # fmt: skip
    seen = set()
    for label, precision, intensity, speed in points:
        look = _look(precision)
        axes.plot(
            intensity, speed / 1e9, look["marker"], color=look["color"],
            fillstyle="full" if "decode" in label else "none",
            label=None if precision in seen else precision,
        )  # fmt: skip
        seen.add(precision)
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.set_xlabel("operations for each byte that must be read (log)")
    axes.set_ylabel("achieved, GOP/s (log)")
    axes.legend(loc="lower right", title="filled: decode, open: prefill", fontsize=8)
    reached: dict[str, list[float]] = {}
    for phase, precision, intensity, speed in points:
        if precision == "int8":
            roof = roofline(intensity, bandwidth, throughputs[precision])
            reached.setdefault(phase, []).append(speed / roof)
    said = " and ".join(f"{_range(shares)} in {phase}" for phase, shares in reached.items())
    axes.set_title(f"Of its roof, int8 reaches {said}")
    return drawn


AROUND_PRODUCTS = ("finding outliers, quantizing", "scaling the product", "outlier columns")


def share_of(profile: Mapping[str, Mapping[str, Any]], kinds: Sequence[str]) -> Spread:
    """The part of a profiled step that some kinds of operation take, over the profiled rounds."""
    total = np.sum([entry["each"] for entry in profile.values()], axis=0)
    return spread(np.sum([profile[kind]["each"] for kind in kinds], axis=0) / total)


_SHOWN_KINDS = {  # threshold 0 looks for no outliers
    "finding outliers, quantizing": "quantizing (and finding outliers, not at threshold 0)"
}


def profile_rows(profiles: Mapping[str, Mapping[str, Mapping[str, Any]]]) -> list[list[str]]:
    """Milliseconds by kind and precision: median, and least to largest of the profiled rounds."""
    return [
        [_SHOWN_KINDS.get(kind, kind)]
        + [
            f"{1e3 * p[kind]['seconds']:.0f} ({1e3 * min(p[kind]['each']):.0f} to "
            f"{1e3 * max(p[kind]['each']):.0f})"
            for p in profiles.values()
        ]
        for kind in KINDS
    ]


def where_time_goes(
    profiles: Mapping[str, Mapping[str, Mapping[str, float]]], phase: str, point: Point
) -> Figure:
    """Milliseconds by kind of operation, medians stacked; `profiles`: {precision: {kind: entry}}.

    `point`: what was profiled.
    """
    drawn, axes = figure(figsize=(8.5, 1.5 + 0.5 * len(profiles)))
    hatches = ("", "///", "xx", "||", "\\\\\\", "..", "", "--")
    colours = (
        COLOURS["bf16"],
        COLOURS["int8"],
        COLOURS["highlight"],
        "#56B4E9",
        "#E69F00",
        COLOURS["good"],
        "#595959",
        "#949494",
    )
    rows = list(profiles)
    left = np.zeros(len(rows))
    for kind, colour, hatch in zip(KINDS, colours, hatches, strict=True):
        values = np.array([1e3 * profiles[p][kind]["seconds"] for p in rows])
        axes.barh(
            rows,
            values,
            0.6,
            left=left,
            color=colour,
            hatch=hatch,
            edgecolor="white",
            label=_SHOWN_KINDS.get(kind, kind),
        )
        left += values
    for row, (p, total) in enumerate(zip(rows, left, strict=True)):
        count = sum(e["launches"] or e["operations"] for e in profiles[p].values())
        unit = "kernels" if any(e["launches"] for e in profiles[p].values()) else "operations"
        axes.annotate(
            f" {total:.0f} ms, {count:,.0f} {unit}", (total, row), va="center", fontsize=8
        )
    axes.set_xlim(0, 1.3 * left.max())
    axes.invert_yaxis()
    axes.grid(axis="y", visible=False)
    rounds = len(profiles["int8"][KINDS[0]]["each"])
    axes.set_xlabel(
        f"ms of one {phase} under the profiler ({point.name} tokens), median of {rounds} by kind"
    )
    drawn.legend(fontsize=8, ncols=3, loc="outside lower center")
    share = share_of(profiles["int8"], AROUND_PRODUCTS)
    axes.set_title(
        f"{phase.capitalize()}: by the round, {_range([share.least, share.largest])} of int8's "
        "profiled time is around its products"
    )
    return drawn


def calculator(
    config: LlamaConfig, precision: str, context: int, batch: int, card: str, name: str
) -> Figure:
    """The memory that one model needs, part by part, beside what a card has; for sliders."""
    drawn, axes = figure(figsize=(8.5, 2.1))
    parts = peak_bytes(config, precision, context, batch)
    left = 0.0
    colours = (COLOURS["int8"], COLOURS["bf16"], COLOURS["good"], COLOURS["highlight"])
    for (part, size), colour in zip(parts.items(), colours, strict=True):
        axes.barh(
            [0],
            size / GIB,
            0.5,
            left=left,
            color=colour,
            edgecolor="white",
            hatch=HATCHES.get(precision, "") if part == "weights" else "",
            label=f"{part} {size / GIB:.2f}",
        )
        left += size / GIB
    room = CARDS[card]
    axes.axvline(room, color="black", linestyle="--")
    axes.set_yticks([])
    axes.set_xlim(0, max(1.1 * room, 1.05 * left))
    axes.set_xlabel(f"GiB; dashed: what the card shows ({card}), {room:.2f} GiB")
    drawn.legend(ncols=4, fontsize=8, loc="outside lower center")
    fits = "fits" if left <= room else "does not fit"
    axes.set_title(f"{name}, {precision}, {batch} x {context:,} tokens: {left:.2f} GiB, {fits}")
    return drawn


def decode_bounds(
    config: LlamaConfig, precision: str, batches: Sequence[int], context: int, bandwidth: float
) -> dict[int, float]:
    """Tokens/s of the whole batch that reading weights and cache allows, by batch."""
    return {
        batch: batch * decode_bound(forward_bytes(config, precision, 1, context, batch), bandwidth)
        for batch in batches
    }
