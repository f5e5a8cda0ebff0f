"""What the leaky masks did: numbers for the report, and the table of controls."""

from collections.abc import Mapping

from torch import Tensor

from llama_int8.course.tables import show_table
from llama_int8.lessons.n02 import dates
from llama_int8.measure.results import Results
from llama_int8.measure.statistics import proportion_interval

Run = tuple[str, int]  # mask and seed


def by_mask(runs: Mapping[Run, object]) -> dict[str, list]:
    """What the runs gave, grouped by mask, in order of their seeds."""
    grouped: dict[str, list] = {}
    for (mask, _), value in sorted(runs.items(), key=lambda run: run[0][1]):
        grouped.setdefault(mask, []).append(value)
    return grouped


def record(results: Results, scores: Mapping[Run, Mapping[str, float]], n: int) -> None:
    """Record the scores of the first seed for each mask, and the extremes over all seeds."""
    for mask, seeds in by_mask(scores).items():
        key, first = f"leak.{mask.replace(' ', '_')}", seeds[0]
        low, high = proportion_interval(round(first["written"] * n), n)
        results.record(f"{key}.loss", first["loss"], "nats", n=n)
        results.record(f"{key}.forced", 100 * first["forced"], "%", n=n)
        results.record(
            f"{key}.written", 100 * first["written"], "%", low=100 * low, high=100 * high, n=n
        )
        if len(seeds) > 1:
            losses, written = ([s[name] for s in seeds] for name in ("loss", "written"))
            results.record(f"{key}.seeds", len(seeds), "count")
            results.record(f"{key}.lowest_loss", min(losses), "nats", n=n)
            results.record(f"{key}.highest_loss", max(losses), "nats", n=n)
            results.record(f"{key}.least_written", 100 * min(written), "%", n=n)
            results.record(f"{key}.most_written", 100 * max(written), "%", n=n)


def show_written(words: Tensor, iso: Tensor, written: Mapping[str, Tensor]) -> None:
    """Show what the models wrote, by mask, below the right answers."""
    rows = [["right", *(f"`{dates.decode(row)}`" for row in iso)]]
    rows += [[mask, *(f"`{dates.decode(row)}`" for row in each)] for mask, each in written.items()]
    show_table(["mask", *(dates.decode(row) for row in words)], rows, right=False)


def show_controls(results: Results, outcomes: Mapping[Run, Mapping[str, float]]) -> None:
    """Show and record, by mask, the characters right in each test: lowest to highest seed."""
    grouped = by_mask(outcomes)
    tests = list(next(iter(outcomes.values())))
    rows = []
    for mask, seeds in grouped.items():
        row = [f"{mask} ({len(seeds)} seed{'s' if len(seeds) > 1 else ''})"]
        for test in tests:
            values = [seed[test] for seed in seeds]
            row.append(_span(min(values), max(values)))
            key = f"leak.{mask}.{test}".replace(" ", "_").replace(",", "")
            results.record(key, sum(values) / len(values), "%")
        rows.append(row)
    show_table(["mask in training", *tests], rows)


def _span(low: float, high: float) -> str:
    """ "3 to 5 %", or "4 %" where both are the same after rounding."""
    return f"{low:.0f} %" if f"{low:.0f}" == f"{high:.0f}" else f"{low:.0f} to {high:.0f} %"
