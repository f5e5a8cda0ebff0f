"""predictions: what a class guessed, question by question, as a table and a picture for each.

Reads what `grade` wrote beside the points, `points-predictions.csv`.
"""

import csv
import math
import statistics
from collections import Counter, defaultdict
from collections.abc import Sequence
from pathlib import Path

from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from common import CourseError
from llama_int8.course.plots import COLOURS, figure

Row = dict[str, str]  # learner, notebook, name, guess, unit, measured


def main(source: Path, folder: Path) -> int:
    """Print a line per question, and draw each into `folder`. Raises CourseError, OSError."""
    asked = by_question(source)
    folder.mkdir(parents=True, exist_ok=True)
    print(f"{'question':28}{'guesses':>9}{'in the middle':>18}{'measured':>16}")
    for name, rows in asked.items():
        middle, measured = summary(rows)
        print(f"{name:28}{len(rows):>9}{middle:>18}{measured:>16}")
        histogram(name, rows).savefig(folder / f"{name}.png", dpi=150)
    print(f"{len(asked)} pictures in {folder}")
    return 0


def by_question(source: Path) -> dict[str, list[Row]]:
    """The rows of a file of guesses, or of each such file in a folder, by the question's name."""
    files = sorted(source.glob("*-predictions.csv")) if source.is_dir() else [source]
    found = defaultdict(list)
    for file in files:
        with file.open(encoding="utf-8-sig", newline="") as lines:
            table = csv.DictReader(lines)
            if not {"name", "guess", "unit", "measured"} <= set(table.fieldnames or ()):
                raise CourseError(
                    f"{file} is no file of guesses; `grade` writes one beside the points"
                )
            for row in table:
                found[row["name"]].append(row)
    if not found:
        raise CourseError(
            f"{source} holds no guesses; `grade FOLDER` collects them, if there are any"
        )
    return dict(sorted(found.items()))


def numbers_of(rows: Sequence[Row]) -> list[float] | None:
    """The guesses as numbers, or None where one is a text."""
    try:
        return [float(row["guess"]) for row in rows]
    except ValueError:
        return None


def summary(rows: Sequence[Row]) -> tuple[str, str]:
    """The median guess, or the commonest text; and what the class's own runs measured."""
    numbers, unit = numbers_of(rows), rows[0]["unit"]
    counted = Counter(row["guess"] for row in rows)
    middle = counted.most_common(1)[0][0] if numbers is None else f"{statistics.median(numbers):g}"
    measured = Counter(row["measured"] for row in rows if row["measured"]).most_common(1)
    shown = [
        text and f"{text} {unit}".strip() for text in (middle, measured[0][0] if measured else "")
    ]
    return shown[0], shown[1]


def histogram(name: str, rows: Sequence[Row]) -> Figure:
    """How often each guess was made, with what was measured in another colour."""
    drawn, axes = figure(figsize=(7.0, 3.2))
    numbers, (middle, measured) = numbers_of(rows), summary(rows)
    truth = measured.removesuffix(rows[0]["unit"]).strip()
    if numbers is None:
        counted = Counter(row["guess"] for row in rows)
        colours = [COLOURS["good" if text == truth else "bf16"] for text in counted]
        axes.bar(list(counted), list(counted.values()), color=colours)
    else:
        positive = [value for value in numbers if value > 0]
        wide = len(positive) == len(numbers) and max(positive) > 100 * min(positive)
        if wide:  # guesses over several powers of ten
            low, high = (math.log10(end) for end in (min(positive), max(positive)))
            edges = [10 ** (low + (high - low) * k / 12) for k in range(13)]
            axes.set_xscale("log")
        axes.hist(numbers, bins=edges if wide else 12, color=COLOURS["bf16"], edgecolor="white")
        for place in numbers_of([{"guess": truth}]) or ():  # none where it is blank, or a text
            axes.axvline(place, color=COLOURS["good"], linewidth=3, label=f"measured: {measured}")
            axes.legend()
        axes.set_xlabel(f"guess{' (' + rows[0]['unit'] + ')' if rows[0]['unit'] else ''}")
    axes.yaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set_ylabel("learners")
    axes.set_title(f"{name}: {len(rows)} guesses, {middle} in the middle" if numbers else name)
    return drawn
