"""Where the translator looks, beside the same model before training."""

import random
from collections.abc import Callable, Sequence
from datetime import date

import torch
from matplotlib.figure import Figure
from torch import Tensor, nn

from llama_int8.lessons.n02 import dates, figures
from llama_int8.measure.results import Results

PARTS = {"year": slice(0, 4), "month": slice(5, 7), "day": slice(8, 10)}  # of 1984-03-09
CrossWeights = Callable[[nn.Module, Tensor, Tensor], Tensor]  # words, ISO form -> (B, T, S)


def shares(
    cross_weights: CrossWeights, model: nn.Module, days: Sequence[date], wordings: Sequence[int]
) -> Tensor:
    """Share of the attention on the words of year, month, day and the rest, (3, 4).

    One row for each part that is being written, averaged over `days`; the wordings take turns.
    """
    total = torch.zeros(len(PARTS), len(PARTS) + 1)
    phrases = [dates.in_words(day, wordings[n % len(wordings)]) for n, day in enumerate(days)]
    words = dates.encode([phrase.text for phrase in phrases])  # padding gets no weight
    maps = cross_weights(model, words, dates.batch(days, random.Random(0))[1])  # (B, T, S)
    for phrase, weights in zip(phrases, maps, strict=True):
        for row, part in enumerate(PARTS):
            looked_at = weights[PARTS[part]].mean(0)  # (S,)
            for column, other in enumerate(PARTS):
                total[row, column] += looked_at[slice(*phrase.parts[other])].sum()
    total /= len(days)
    total[:, -1] = 1 - total[:, :-1].sum(1)  # spaces, commas, "the", weekdays
    return total


def of_one_date(cross_weights: CrossWeights, model: nn.Module, day: date, text: str) -> Tensor:
    """The cross-attention of one date in these words, (T, S)."""
    iso = dates.batch([day], random.Random(0))[1]
    return cross_weights(model, dates.encode([text]), iso)[0]


def compare(
    results: Results,
    cross_weights: CrossWeights,
    trained: nn.Module,
    untrained: nn.Module,
    days: Sequence[date],
) -> Figure:
    """Draw the cross-attention of both models; record how much falls on the right words."""
    day, text = days[0], dates.in_words(days[0], 0).text
    maps = [of_one_date(cross_weights, m, day, text)[:10] for m in (trained, untrained)]
    every = range(dates.WORDINGS)
    tables = [shares(cross_weights, m, days, every) for m in (trained, untrained)]
    for row, part in enumerate(PARTS):
        results.record(f"alignment.{part}", 100 * tables[0][row, row].item(), "%", n=len(days))
        name = f"alignment.untrained_{part}"
        results.record(name, 100 * tables[1][row, row].item(), "%", n=len(days))
    year_first = [dates.WORDINGS - 1]
    read_first = [
        100 * shares(cross_weights, m, days, year_first)[0, 0] for m in (trained, untrained)
    ]
    results.record("alignment.year_read_first", read_first[0].item(), "%", n=len(days))
    print("Where the text begins with the year, its words get", end=" ")
    print(f"{read_first[0]:.0f} % of the year's weight (untrained {read_first[1]:.0f} %)")
    phrases = [dates.in_words(day, number % dates.WORDINGS) for number, day in enumerate(days)]
    lengths = [(p.parts["year"][1] - p.parts["year"][0]) / len(p.text) for p in phrases]
    print(f"The year's words are {100 * sum(lengths) / len(lengths):.0f} % of the characters")
    return figures.alignment(maps, text, day.isoformat(), *tables)
