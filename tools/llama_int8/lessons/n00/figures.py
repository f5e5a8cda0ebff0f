"""The figures of notebook 00."""

from collections.abc import Mapping

import numpy as np
import torch
from matplotlib.figure import Figure

from llama_int8.course.plots import COLOURS, HATCHES, bars, figure
from llama_int8.measure.statistics import Spread


def side_by_side(
    megabytes: Mapping[str, float], prefill: Mapping[str, Spread], decode: Mapping[str, Spread]
) -> Figure:
    """Memory and speed of each precision: three panels, one bar a precision."""
    names = list(megabytes)
    drawn, axes = figure(3, figsize=(9, 2.4))
    bars(axes[0], names, [megabytes[n] for n in names], names, "MB of weights")
    for panel, phase, label in (
        (axes[1], prefill, "prefill, tokens/s"),
        (axes[2], decode, "decode, tokens/s"),
    ):
        spreads = [(phase[n].low, phase[n].high) for n in names]
        bars(panel, names, [phase[n].median for n in names], names, label, spreads)
    first, second = names[0], names[-1]
    memory = megabytes[second] / megabytes[first]
    speed = decode[second].median / decode[first].median
    drawn.suptitle(
        f"{second} takes {memory:.0%} of {first}'s memory and decodes at {speed:.0%} of its speed",
        x=0.01,
        ha="left",
        fontweight="bold",
        fontsize=11,
    )
    return drawn


def candidates(
    probabilities: Mapping[str, torch.Tensor],
    words: list[str],
    position: int,
    vocabulary: list[str],
) -> Figure:
    """The five likeliest tokens at one position of an answer, in each precision.

    `probabilities`: (positions, 5 or more candidates) by precision, columns named by `vocabulary`
    of that position; `words`: the answer's tokens, of which the one at `position` is in brackets.
    """
    drawn, axes = figure(figsize=(7.5, 3.2))
    names = list(probabilities)
    height = 0.8 / len(names)
    rows = np.arange(len(vocabulary))
    for index, name in enumerate(names):
        axes.barh(
            rows + index * height,
            probabilities[name][position],
            height,
            label=name,
            color=COLOURS[name],
            hatch=HATCHES.get(name, ""),
            edgecolor="white",
        )
    axes.set_yticks(rows + height * (len(names) - 1) / 2, [repr(word) for word in vocabulary])
    axes.invert_yaxis()
    axes.set_xlim(0, 1)
    axes.set_xlabel("probability of the next token")
    axes.grid(axis="y", visible=False)
    axes.legend(loc="lower right")
    before = "".join(words[:position])[-40:].replace("\n", " ")
    axes.set_title(f"token {position}: …{before} [{words[position].strip()}]")
    return drawn
