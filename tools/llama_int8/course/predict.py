"""Predictions that a learner types in: `guess = predict("08.activations", None, unit="%")`.

The learner puts a number (or one of `choices`) in place of None. `guess.compare(measured)` says later
how far off it was, and `guess.mark(axes)` draws it into a figure. A guess goes into the lesson's
results file and to the grader, a blank nowhere; nothing that a learner types stops the notebook.
"""

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from matplotlib import patheffects
from matplotlib.axes import Axes

from llama_int8.course import start
from llama_int8.course.exercises import hand_in, shown
from llama_int8.course.plots import GREY
from llama_int8.measure.results import Results, plain

# 12, -0.5, 1,200 or 1e6. Not 0,5: half the world would read it as five tenths, the others as 5.
NUMBER = re.compile(r"([+-]?(?:\d{1,3}(?:,\d{3})+|\d+)?(?:\.\d*)?(?:e[+-]?\d+)?)\s*(.*)", re.I)
LONGEST = 80  # characters of a wrong guess that are shown again


@dataclass(frozen=True)
class Guess:
    """What a learner predicted; `value` is None where nothing (usable) was typed."""

    name: str
    value: float | str | None
    unit: str = ""
    results: Results | None = field(default=None, repr=False)

    def compare(self, measured: Any, word: str = "measured") -> None:
        """Print the guess beside what was measured (or "computed", as `word` says), and keep both.

        Round `measured` as it is to be read; what differs from run to run has no place here, since
        a notebook's output is committed.
        """
        measured = plain(measured)
        if self.value is None:
            print(f"{word.capitalize()}: {_with_unit(measured, self.unit)}")
            return
        guessed, found = (_with_unit(value, self.unit) for value in (self.value, measured))
        verdict = _verdict(self.value, measured, self.unit)
        so = f", so your guess is {verdict}" if verdict else ""
        print(f"You guessed {guessed}; {word}: {found}{so}.")
        self._keep(measured if isinstance(measured, str) or math.isfinite(measured) else None)

    def mark(self, axes: Axes, axis: Literal["x", "y"] = "y") -> None:
        """Draw the guess as a dashed line across an axis, or an arrow where it lies outside.

        Call it last: it leaves the limits as they are. Draws nothing for a blank or a text.
        """
        if self.value is None or isinstance(self.value, str):
            return
        ends = axes.get_ylim() if axis == "y" else axes.get_xlim()
        if not min(ends) <= self.value <= max(ends):
            beyond = (self.value > max(ends)) == (ends[0] < ends[1])  # an axis may run downwards
            _arrow(axes, axis, beyond, f"your guess: {_with_unit(self.value, self.unit)}")
            return
        if axis == "y":
            axes.axhline(self.value, color=GREY, linestyle="--", label="your guess")
            where, offset = (1, self.value), (4, 0)  # beside the axes, where no data lie
            sides = {"ha": "left", "va": "center"}
            transform = axes.get_yaxis_transform()
        else:
            axes.axvline(self.value, color=GREY, linestyle="--", label="your guess")
            at = axes.transData.transform((self.value, axes.get_ylim()[0]))
            late = axes.transAxes.inverted().transform(at)[0] > 0.8  # no room to the right
            where, offset = (self.value, 0.98), (-4 if late else 4, 0)
            sides = {"ha": "right" if late else "left", "va": "top"}
            transform = axes.get_xaxis_transform()
        axes.annotate("your guess", where, offset, transform, "offset points", **_look(), **sides)

    def _keep(self, measured: float | str | None = None) -> None:
        if self.results is not None:
            self.results.add_prediction(self.name, self.value, self.unit, measured)
        hand_in(
            kind="prediction", name=self.name, guess=self.value, unit=self.unit, measured=measured
        )


def predict(name: str, value: Any, *, unit: str = "", choices: Sequence[str] = ()) -> Guess:
    """Take a learner's guess, print it, and keep it; the same name again replaces it.

    None (also `...` and an empty text) is a blank. So is what is not a number in `unit`, or not one
    of `choices` where there are some: one line says so.
    """
    if value is None or value is ... or (isinstance(value, str) and not value.strip()):
        found = None
        wanted = _either(choices) if choices else "a number" + (f" (in {unit})" if unit else "")
        print(f"no guess yet: put {wanted} in place of None, then run this cell again")
    else:
        found = _choice(value, choices) if choices else _number(value, unit)
        if found is None:
            wanted = _either(choices) if choices else f"a number such as {_with_unit(12, unit)}"
            given = " ".join(shown(value).split())
            given = given if len(given) <= LONGEST else f"{given[:LONGEST]} ..."
            print(f"no guess yet: expected {wanted}, got {given}; change it, or go on without")
        else:
            print(f"your guess: {_with_unit(found, unit)}")
    guess = Guess(name, found, unit, start.running())
    guess._keep()
    return guess


def _choice(value: Any, choices: Sequence[str]) -> str | None:
    """The choice that this text is, whatever its capitals."""
    if not isinstance(value, str):
        return None
    same = " ".join(value.split()).casefold()
    return next((choice for choice in choices if choice.casefold() == same), None)


def _number(value: Any, unit: str) -> float | None:
    """A finite number, of Python, NumPy or PyTorch, or a text that holds one, "12 %" too."""
    if isinstance(value, str):
        match = NUMBER.fullmatch(value.strip().replace("\u2212", "-"))
        if match is None or match[2].strip().casefold() not in {"", unit.casefold() or "%"}:
            return None
        value = match[1].replace(",", "")
    try:
        value = plain(value)
        if isinstance(value, bool) or not isinstance(value, int | float | str):
            return None
        number = float(value)
    except Exception:  # no digits, too many, or whatever else a learner's object raises
        return None
    if not math.isfinite(number):
        return None
    return int(number) if number.is_integer() and abs(number) < 1e15 else number


def _verdict(guess: float | str, measured: float | str, unit: str) -> str:
    """How far off a guess was; empty where that cannot be said."""
    if isinstance(guess, str) or isinstance(measured, str):
        return "right" if guess == measured else "not right"
    if not math.isfinite(measured):
        return ""
    if _text(guess) == _text(measured):
        return "exactly right"
    guess, measured = float(guess), float(measured)
    side = "high" if guess > measured else "low"
    if guess > 0 and measured > 0:
        factor = max(guess, measured) / min(guess, measured)
        if factor > 1e6:
            return f"more than a million times too {side}"
        if factor >= 2:
            times = f"{factor:,.0f}" if factor >= 10 else f"{factor:.1f}".removesuffix(".0")
            return f"{times} times too {side}"
    # Near, or across zero, where a ratio says nothing. "10 % too high" would be a riddle.
    gap = abs(guess - measured)
    unit = "percentage points" if unit == "%" else unit
    return f"{_with_unit(gap, unit) if math.isfinite(gap) else 'far'} too {side}"


def _with_unit(value: Any, unit: str) -> str:
    return f"{_text(value)} {unit}" if unit and not isinstance(value, str) else _text(value)


def _text(value: Any) -> str:
    """A number as people write it: 1,200 and 0.35; a text as it is."""
    if not isinstance(value, int | float):
        return str(value)
    if not math.isfinite(value):
        return "no number" if math.isnan(value) else "infinity" if value > 0 else "minus infinity"
    whole = float(value).is_integer() or abs(value) >= 1e6
    return f"{value:,.0f}" if whole and abs(value) < 1e15 else f"{value:,.6g}"


def _either(choices: Sequence[str]) -> str:
    """ "half", "the same" or "more": in quotes, as they have to be typed."""
    quoted = [f'"{choice}"' for choice in choices]
    return " or ".join(filter(None, [", ".join(quoted[:-1]), quoted[-1]]))


def _arrow(axes: Axes, axis: str, beyond: bool, text: str) -> None:
    """A text at an end of an axis, with a small arrow that points out of the figure."""
    end, inwards = (1.0, -22) if beyond else (0.0, 22)
    if axis == "y":
        place, offset, start_at = (0.98, end), (0, inwards), (1, 0.5)
        sides = {"ha": "right", "va": "top" if beyond else "bottom"}
    else:
        place, offset, start_at = (end, 0.94), (inwards, 0), (0.5, 0.5)
        sides = {"ha": "right" if beyond else "left", "va": "center"}
    arrow = {"arrowstyle": "->", "color": GREY, "relpos": start_at, "path_effects": _rim()}
    axes.annotate(text, place, offset, "axes fraction", "offset points", arrow, **_look(), **sides)


def _look() -> dict[str, Any]:
    return {"color": GREY, "fontsize": 9, "path_effects": _rim()}


def _rim() -> list[patheffects.AbstractPathEffect]:
    """White around letters, which hides less of what they lie on than a box would."""
    return [patheffects.withStroke(linewidth=2.5, foreground="white")]
