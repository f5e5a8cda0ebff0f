"""The figures of notebook 00."""

from collections.abc import Mapping

import ipywidgets
import numpy as np
import torch
from matplotlib.figure import Figure
from transformers import PreTrainedTokenizerBase

from llama_int8.course.explore import explore
from llama_int8.course.plots import COLOURS, HATCHES, bars, figure
from llama_int8.lessons.n00.measurements import overlap
from llama_int8.measure.statistics import Spread


def triangle(
    megabytes: Mapping[str, float],
    quality: Mapping[str, tuple[float, float, float]],
    decode: Mapping[str, Spread],
) -> Figure:
    """Memory, quality and speed of each precision: three panels, one bar per precision.

    `quality`: change of perplexity in %, with the ends of its interval.
    """
    names = list(megabytes)
    drawn, axes = figure(3, figsize=(9, 2.9))
    bars(axes[0], names, [megabytes[n] for n in names], names, "MB of weights")
    change, *ends = zip(*(quality[n] for n in names), strict=True)
    spreads = list(zip(*ends, strict=True))
    bars(axes[1], names, list(change), names, "perplexity, change in %", spreads, decimals=2)
    spreads = [(decode[n].low, decode[n].high) for n in names]
    speeds = [decode[n].median for n in names]
    bars(axes[2], names, speeds, names, "decode, tokens per second", spreads, decimals=1)
    titles = (
        "less is better",
        "less is better\nwhiskers: 95 % interval",
        "more is better\nwhiskers: middle half of the rounds",
    )
    for panel, title in zip(axes, titles, strict=True):
        panel.set_title(title, fontsize=9, fontweight="normal")
    drawn.suptitle(
        _finding(megabytes, quality, decode), x=0.01, ha="left", fontweight="bold", fontsize=11
    )
    return drawn


def _finding(
    megabytes: Mapping[str, float],
    quality: Mapping[str, tuple[float, float, float]],
    decode: Mapping[str, Spread],
) -> str:
    """What the triangle shows of int8, without ratios of speeds and changes that may be chance."""
    first, half, int8 = megabytes
    change, low, high = quality[int8]
    clear = low > 0 or high < 0
    cost = f"perplexity {change:+.1f} % over {first}" if clear else "no clear change of perplexity"
    if overlap(decode[int8], decode[half]):
        speed = "no clear difference in speed"
    else:
        speed = f"{100 * decode[int8].median / decode[half].median:.0f} % of its speed"
    memory = f"{100 * megabytes[int8] / megabytes[half]:.0f} % of {half}'s memory"
    return f"int8: {memory}, {speed}; {cost}"


def explore_answer(
    tokenizer: PreTrainedTokenizerBase,
    answer: list[int],
    probabilities: Mapping[str, torch.Tensor],
    start: int,
) -> None:
    """A slider over the places of an answer, above the five likeliest next tokens of each.

    `probabilities`: (T, V) by precision, before each token of `answer`. The five are those of FP32.
    """
    top = probabilities["fp32"].topk(5).indices  # (T, 5)
    shares = {precision: p.gather(1, top) for precision, p in probabilities.items()}
    words = [tokenizer.decode([token]) for token in answer]
    names = [[tokenizer.decode([token]) for token in row] for row in top.tolist()]
    last = len(answer) - 1
    explore(
        lambda token: candidates(shares, words, token, names[token]),
        alt="Bars of the five likeliest next tokens at one place, in 32, 16 and 8 bits.",
        token=ipywidgets.IntSlider(value=min(start, last), min=0, max=last, description="token"),
    )


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
    largest = max(float(values[position].max()) for values in probabilities.values())
    axes.set_xlim(0, min(1.0, 1.3 * largest))
    axes.set_xlabel("probability of the next token")
    axes.grid(axis="y", visible=False)
    axes.legend(loc="lower right")
    before = "".join(words[:position])[-40:].replace("\n", " ")
    axes.set_title(f"token {position}: …{before} [{words[position].strip()}]")
    return drawn
