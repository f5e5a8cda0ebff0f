"""Exercises without a second copy of the notebook: `check`, `hint`, `solution`.

The learner fills in a function; `check` says whether it is right and returns a function that is,
so that Run All goes on whatever stands in the cell. If the environment variable COURSE_VERDICTS
names a file, `check` writes there, too, a line of JSON as it begins and one with its verdict; so the
verdicts get out of a notebook that is run without anyone looking on.
"""

import ast
import copy
import inspect
import json
import os
import textwrap
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from typing import Any, Literal

import numpy as np

# Read once: a learner's cell may change the environment.
VERDICTS = os.environ.get("COURSE_VERDICTS")
Status = Literal["correct", "blank", "wrong", "error"]


@dataclass(frozen=True)
class Exercise:
    """One exercise: what is right, on which inputs it is checked, and which mistakes are known.

    Stands in the place of its reference, and can be called like it.
    """

    name: str
    points: int
    reference: Callable[..., Any]
    cases: tuple[tuple[Any, ...], ...]
    hints: tuple[str, ...]
    mistakes: list[tuple[Callable[..., Any], str]] = field(default_factory=list)
    rtol: float = 1e-5  # FP32 passes; whole numbers are compared exactly

    def __call__(self, *arguments: Any) -> Any:
        return self.reference(*arguments)

    def mistake(self, message: str, answer: Callable[..., Any] | None = None) -> Callable[..., Any]:
        """Say `message` to whoever answers like `answer`; without it, a decorator of the answer."""
        if answer is None:
            return partial(self.mistake, message)
        self.mistakes.append((answer, message))
        return answer

    def source(self) -> str:
        """The source of the reference, without its decorator."""
        lines = textwrap.dedent(inspect.getsource(self.reference)).splitlines()
        (function,) = ast.parse("\n".join(lines)).body
        return "\n".join(lines[function.lineno - 1 :])


EXERCISES: dict[str, Exercise] = {}  # those of the lessons that have been imported


@dataclass(frozen=True)
class Verdict:
    """The verdict of `check`, with the points earned."""

    status: Status
    message: str
    points: int = 0
    outcomes: tuple[Any, ...] = ()  # what a right answer gave in each case, as lists of numbers


def exercise(
    name: str,
    *,
    points: int,
    cases: Sequence[tuple[Any, ...]],
    hints: Sequence[str],
    rtol: float = 1e-5,
) -> Callable[[Callable[..., Any]], Exercise]:
    """Make the function below the reference of an exercise that `check`, `hint` and `solution` know.

    `cases`: tuples of arguments. Its `mistake` adds the known mistakes, which are told apart in
    their order. Raises ValueError where a name is taken.
    """

    def register(reference: Callable[..., Any]) -> Exercise:
        taken = EXERCISES.get(name)
        own = (reference.__module__, reference.__qualname__)
        if taken and (taken.reference.__module__, taken.reference.__qualname__) != own:
            raise ValueError(f"two exercises are called {name!r}")
        EXERCISES[name] = Exercise(name, points, reference, tuple(cases), tuple(hints), rtol=rtol)
        return EXERCISES[name]

    return register


def find(name: str) -> Exercise:
    """The exercise called `name`, such as "00.int8_bytes". Raises KeyError with the known names."""
    if name not in EXERCISES:
        raise KeyError(f"no exercise {name!r}; there are {', '.join(sorted(EXERCISES))}")
    return EXERCISES[name]


def judge(name: str, answer: Callable[..., Any]) -> Verdict:
    """Tell a blank, a wrong and a right answer apart, and say where a wrong one differs."""
    exercise = find(name)
    if not callable(answer):
        return Verdict("wrong", f"expected a function; this is {shown(answer)}")
    outcomes = []
    for case in exercise.cases:
        try:
            outcomes.append(answer(*copy.deepcopy(case)))  # an answer may change its arguments
        except NotImplementedError:
            outcomes.append(...)
        except (Exception, SystemExit) as error:  # a learner's code may raise anything
            call = _call(answer, case)
            return Verdict("error", f"{call} raised {type(error).__name__}: {error}")
    if all(outcome is None or outcome is ... for outcome in outcomes):
        if outcomes[0] is None and _has_a_body(answer):
            message = "gives None in every case: `return` the result; print() only shows it"
            return Verdict("wrong", f"{answer.__name__} {message}")
        return Verdict("blank", f"not filled in yet; exercises.hint({name!r}) helps")
    wanted = [exercise.reference(*copy.deepcopy(case)) for case in exercise.cases]
    if all(map(_equal, outcomes, wanted, [exercise.rtol] * len(wanted))):
        given = tuple(_numbers(outcome).tolist() for outcome in outcomes)
        return Verdict("correct", f"correct, {_points(exercise)}", exercise.points, given)
    for mistaken, message in exercise.mistakes:
        theirs = [mistaken(*copy.deepcopy(case)) for case in exercise.cases]
        if all(map(_equal, outcomes, theirs, [exercise.rtol] * len(theirs))):
            return Verdict("wrong", message)
    for case, outcome, want in zip(exercise.cases, outcomes, wanted, strict=True):
        if not _equal(outcome, want, exercise.rtol):
            gives = f"{_call(answer, case)} gives {shown(outcome)}"
            return Verdict("wrong", f"{gives}, expected {shown(want)}")
    raise AssertionError("unreachable: a wrong answer differs somewhere")


def confirms(name: str, outcomes: Any) -> bool:
    """Whether these, one for each case, are what the exercise asks for.

    So a program that reads the file of COURSE_VERDICTS judges "correct" once more, where a notebook
    has changed nothing.
    """
    exercise = find(name)
    if not isinstance(outcomes, list) or len(outcomes) != len(exercise.cases):
        return False
    wanted = [exercise.reference(*copy.deepcopy(case)) for case in exercise.cases]
    return all(map(_equal, outcomes, wanted, [exercise.rtol] * len(wanted)))


def check(name: str, answer: Callable[..., Any]) -> Callable[..., Any]:
    """Print the verdict on `answer`; return it if it is correct, else the reference solution."""
    hand_in(name=name, status="begun")
    verdict = judge(name, answer)
    # It is the reference where only the line of the check runs again: an earlier one gave it back.
    hand_in(name=name, **asdict(verdict), own=answer is not find(name).reference)
    sign = {"correct": "✓", "blank": "…"}.get(verdict.status, "✗")
    goes_on = "" if verdict.status == "correct" else " (the notebook goes on with the reference)"
    print(f"{sign} {name}: {verdict.message}{goes_on}")
    return answer if verdict.status == "correct" else find(name).reference


def hint(name: str, number: int = 1) -> None:
    """Print the hint with this number, counted from 1."""
    hints = find(name).hints
    if not 1 <= number <= len(hints):
        raise ValueError(f"{name} has hints 1 to {len(hints)}, not {number}")
    more = f" (exercises.hint({name!r}, {number + 1}) says more)" if number < len(hints) else ""
    print(hints[number - 1] + more)


def solution(name: str) -> None:
    """Print the source of the reference solution."""
    print(find(name).source())


def hand_in(**line: Any) -> None:
    """Write a verdict, or a prediction, to the file of COURSE_VERDICTS, if there is one."""
    if VERDICTS:
        with open(VERDICTS, "a", encoding="utf-8") as verdicts:
            verdicts.write(json.dumps(line) + "\n")


def _has_a_body(answer: Callable[..., Any]) -> bool:
    """Whether a function does anything; `...`, `pass` or only a docstring does nothing."""
    code = getattr(answer, "__code__", None)
    return code is not None and len(code.co_code) > len((lambda: None).__code__.co_code)


def _call(answer: Callable[..., Any], case: tuple[Any, ...]) -> str:
    return f"{getattr(answer, '__name__', 'the function')}({', '.join(map(shown, case))})"


def shown(value: Any) -> str:
    """What a learner gave, as Python writes it, at most 300 characters long."""
    try:
        text = repr(value)
    except Exception:  # a learner's class, or an int of more digits than Python prints
        return f"something of type {type(value).__name__}"
    return text if len(text) <= 300 else f"{text[:300]} ..."


def _points(exercise: Exercise) -> str:
    return f"{exercise.points} point{'s' if exercise.points != 1 else ''}"


def _equal(found: Any, wanted: Any, rtol: float) -> bool:
    try:
        first, second = _numbers(found), np.asarray(wanted, np.float64)
    except Exception:  # whatever NumPy cannot turn into numbers is not the answer
        return False
    rtol = rtol if np.asarray(wanted).dtype.kind == "f" else 0.0
    if first.shape != second.shape:
        return False
    # Not 0: cos(pi / 2) in FP32 is 4e-8.
    return np.allclose(first, second, rtol, atol=1e-7, equal_nan=True)


def _numbers(found: Any) -> np.ndarray:
    """An outcome as an array of float64. Raises whatever NumPy does for anything else."""
    if hasattr(found, "detach"):  # a tensor, on a GPU perhaps
        found = found.detach().cpu()
    if np.asarray(found).dtype.kind not in "biufO":  # NumPy would read the text "3" as 3
        raise TypeError(f"{type(found).__name__} is no number")
    return np.asarray(found, np.float64)
