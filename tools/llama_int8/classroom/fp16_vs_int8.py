"""The figures of notebook 06."""

from collections.abc import Mapping

import numpy as np
from matplotlib.figure import Figure

from llama_int8.classroom.plots import COLOURS, HATCHES, MARKERS, figure
from llama_int8.measurement.cost import GIB, weight_bytes
from llama_int8.measurement.statistics import PairedDifference, Spread
from llama_int8.transformer.config import LlamaConfig

ENDS = ("median", "low", "high")
T4_GIB = 14.75  # what CUDA shows of a T4's 16 GB


def memory_map(
    configs: Mapping[str, LlamaConfig], measured: Mapping[str, Mapping[str, int]]
) -> Figure:
    """Predicted GiB of weights of every model in 16 bit and int8, with what was measured marked.

    `measured`: bytes by precision, by model.
    """
    drawn, axes = figure(figsize=(7.5, 4.2))
    rows = np.arange(len(configs))
    for offset, precision, label in ((-0.2, "fp16", "16 bit"), (0.2, "int8", "LLM.int8()")):
        sizes = [weight_bytes(config, precision).total / GIB for config in configs.values()]
        drawn_bars = axes.barh(
            rows + offset,
            sizes,
            0.38,
            label=f"{label}, predicted",
            color=COLOURS[precision],
            hatch=HATCHES.get(precision, ""),
            edgecolor="white",
        )
        axes.bar_label(drawn_bars, fmt="%.2f", padding=9, fontsize=8)
        marks = [
            (bytes_ / GIB, row + offset)
            for row, name in enumerate(configs)
            for p, bytes_ in measured.get(name, {}).items()
            if p != "fp32" and (p == "int8") == (precision == "int8")
        ]
        if marks:
            axes.plot(
                *zip(*marks, strict=True),
                "D",
                color="black",
                markerfacecolor="none",
                markersize=7,
                label="measured" if precision == "int8" else None,
            )
    axes.axvline(T4_GIB, color=COLOURS["highlight"], linestyle="--", zorder=3)
    axes.annotate(f" T4, {T4_GIB} GiB", (T4_GIB, -0.55), color=COLOURS["highlight"])
    axes.set_yticks(rows, list(configs))
    axes.invert_yaxis()
    axes.set_xlim(0, 17.5)
    axes.set_xlabel("GiB of weights")
    axes.grid(axis="y", visible=False)
    axes.legend(loc="lower right", bbox_to_anchor=(0.84, 0.42))
    axes.set_title("LLM.int8() halves the linear layers; embeddings and output layer stay")
    return drawn


def window_differences(
    differences: np.ndarray, summary: PairedDifference, first: str, second: str
) -> Figure:
    """Each window's mean NLL difference, sorted, with the mean and its interval."""
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
    axes.plot(
        ordered, MARKERS["int8"], color=COLOURS["bf16"], markersize=4, label="one window of text"
    )
    axes.set_xlabel("windows, sorted")
    axes.set_ylabel(f"NLL of {second} minus {first}\n(nats a token)")
    axes.legend(loc="upper left")
    worse = int(np.sum(ordered > 0))
    axes.set_title(
        f"{second} changes NLL by {summary.mean:+.4f} nats a token; worse in {worse} of "
        f"{ordered.size} windows"
    )
    return drawn


def phases(speeds: Mapping[str, Mapping[str, Spread]], bounds: Mapping[str, float]) -> Figure:
    """Prefill and decode speed of each precision; in decode, the bound that reading weights sets."""
    drawn, axes = figure(2, figsize=(8.5, 3.4))
    names = list(bounds)
    colours = [COLOURS[n] for n in names]
    prefill, decode = (
        {end: np.array([getattr(speeds[phase][n], end) for n in names]) for end in ENDS}
        for phase in ("prefill", "decode")
    )
    axes[0].bar(
        names,
        prefill["median"],
        0.55,
        yerr=_whiskers(prefill),
        color=colours,
        hatch=[HATCHES.get(n, "") for n in names],
        edgecolor="white",
        error_kw={"capsize": 3, "ecolor": "#333333"},
    )
    for x, name in enumerate(names):
        style = {"color": COLOURS[name], "marker": MARKERS[name], "markersize": 9, "capsize": 4}
        error = _whiskers({end: decode[end][x : x + 1] for end in ENDS})
        axes[1].errorbar([x], [decode["median"][x]], error, linestyle="none", **style)
    for panel, speed in zip(axes, (prefill, decode), strict=True):
        for x, value in enumerate(speed["median"]):
            panel.annotate(
                f"{value:,.0f}",
                (x, speed["high"][x]),
                (6, 4),
                textcoords="offset points",
                fontsize=9,
            )
        panel.grid(axis="x", visible=False)
        panel.set_xlim(-0.6, len(names) - 0.4)
    axes[1].plot(
        range(len(names)),
        [bounds[n] for n in names],
        MARKERS["predicted"],
        color="black",
        markersize=26,
        markeredgewidth=2,
    )
    for x, name in enumerate(names):
        axes[1].annotate(
            f"bound {bounds[name]:,.0f}",
            (x, bounds[name]),
            (0, 5),
            textcoords="offset points",
            fontsize=9,
            ha="center",
        )
    axes[1].set_yscale("log")
    axes[1].set_ylim(min(decode["low"]) / 1.6, max(bounds.values()) * 1.8)
    axes[1].set_xticks(range(len(names)), names)
    axes[0].set_ylim(0, max(prefill["high"]) * 1.15)
    axes[0].set_ylabel("prefill, tokens/s")
    axes[1].set_ylabel("decode, tokens/s (log)")
    shares = [decode["median"][x] / bounds[n] for x, n in enumerate(names)]
    half = next(n for n in names if n in ("bf16", "fp16"))
    ratio = speeds["prefill"]["int8"].median / speeds["prefill"][half].median
    axes[0].set_title(f"Prefill: int8 at {ratio:.0%} of {half}'s speed")
    axes[1].set_title(f"Decode: {min(shares):.0%} to {max(shares):.0%} of the bound")
    return drawn


def _whiskers(speed: Mapping[str, np.ndarray]) -> np.ndarray:
    return np.stack([speed["median"] - speed["low"], speed["high"] - speed["median"]])
