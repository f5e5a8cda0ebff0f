"""grade's last step: a learner's points per lesson, in the forms that Moodle and Canvas import.

Both files have a row per learner and a column per lesson, and stand beside points.csv. A table of the
teacher's, one row per learner, says which account belongs to which name in the folder. A lesson that was
not handed in, or that could not be graded, has an empty cell: whether that is zero, the teacher decides.

Moodle lets the teacher say which column holds the account, and which column is which grade item. Canvas
finds the account by "SIS User ID", then by "SIS Login ID", then by the name; it wants its own headings
in front and a row with the points that are possible.
"""

import csv
import io
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from common import CourseError
from llama_int8.files import write_atomic

# What a column of the learners' table may be called, and its heading in Moodle's file.
ACCOUNT = {"email": "Email address", "id": "ID number", "username": "Username"}
CANVAS = ("Student", "ID", "SIS User ID", "SIS Login ID", "Section")
NOT_JUDGED = ("not graded", "unreadable")
NAMED = 5  # so many learners are named in a line


@dataclass(frozen=True)
class Row:
    """A line of points.csv; what is read back from there has no message."""

    learner: str
    notebook: str
    exercise: str
    status: str
    points: int
    of: int
    message: str = ""


@dataclass
class Points:
    """Points per learner and lesson, and how many a lesson has."""

    by_learner: dict[str, dict[str, int]]
    possible: dict[str, int]
    left_empty: list[str]  # "learner, notebook" that could not be graded


def paths(out: Path) -> tuple[Path, Path]:
    """Where Moodle's and Canvas's files go."""
    return out.with_stem(out.stem + "-moodle"), out.with_stem(out.stem + "-canvas")


def main(points: Path, learners: Path | None) -> int:
    """Write both files from a points.csv of an earlier grading. Raises CourseError, OSError."""
    accounts = read_learners(learners) if learners else {}
    write(read_points(points), points, accounts)
    return 0


def read_points(file: Path) -> list[Row]:
    """The lines of a points.csv. Raises CourseError for another file."""
    table = _table(file)
    names = list(Row.__annotations__)[:-1]
    if not set(names) <= set(table.fieldnames or ()):
        raise CourseError(f"{file} is no file of points; `grade FOLDER` writes points.csv")
    lines = []
    for row in table:
        *texts, points, of = (row[name] for name in names)
        try:
            lines.append(Row(*texts, int(points), int(of)))
        except (TypeError, ValueError):
            raise CourseError(
                f"{file} has points {points!r} of {of!r}, which are no whole numbers; put them right"
            ) from None
    return lines


def read_learners(file: Path) -> dict[str, dict[str, str]]:
    """Accounts by the learner's name in the folder. Raises CourseError, OSError."""
    table = _table(file)
    headings = {(name or "").strip().lower(): name for name in table.fieldnames or ()}
    if "learner" not in headings or not headings.keys() & ACCOUNT.keys():
        raise CourseError(
            f"{file} has the columns {', '.join(headings) or 'none'}; it needs 'learner', the name in "
            "the folder, and one or more of 'email', 'id', 'username'"
        )
    found: dict[str, dict[str, str]] = {}
    for row in table:
        account = {name: (row[heading] or "").strip() for name, heading in headings.items()}
        learner = account.pop("learner")
        if learner in found:
            raise CourseError(f"{file} names {learner!r} twice; give each learner one row")
        if learner:
            found[learner] = account
    return found


def _table(file: Path) -> csv.DictReader:
    try:
        text = file.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError:
        raise CourseError(f'{file} is not UTF-8; save it as "CSV UTF-8"') from None
    first = text.partition("\n")[0]  # spreadsheets of some languages write semicolons
    return csv.DictReader(io.StringIO(text, newline=""), delimiter=";" if ";" in first else ",")


def collect(rows: Sequence[Row]) -> Points:
    """Sum the rows of a grading by learner and lesson."""
    points: dict[str, dict[str, int]] = {}
    of: dict[tuple[str, str], int] = defaultdict(int)
    left_empty: dict[str, None] = {}
    for row in rows:
        own = points.setdefault(row.learner, {})  # who handed in no notebook has a row, too
        if not row.exercise:
            continue
        if row.status in NOT_JUDGED:
            left_empty[f"{row.learner}, {row.notebook}"] = None
            continue
        own[row.notebook] = own.get(row.notebook, 0) + row.points
        of[row.learner, row.notebook] += row.of
    possible = {notebook: count for (_, notebook), count in of.items()}
    return Points(points, dict(sorted(possible.items())), list(left_empty))


def write(rows: Sequence[Row], out: Path, accounts: dict[str, dict[str, str]]) -> None:
    """Write both files and say what a teacher must know to import them."""
    points = collect(rows)
    moodle, canvas = paths(out)
    for path, table in (
        (moodle, for_moodle(points, accounts)),
        (canvas, for_canvas(points, accounts)),
    ):
        text = io.StringIO(newline="")
        csv.writer(text).writerows(table)
        try:
            write_atomic(path, text.getvalue().encode(errors="replace"))
        except OSError as error:
            print(
                f"cannot write {path}: {error.strerror}; close the program that has it open, then "
                f"`grade {out}` writes it from the points",
                flush=True,
            )
    print("\n".join([f"for a gradebook: {moodle}, {canvas}", *remarks(points, accounts)]))


def remarks(points: Points, accounts: dict[str, dict[str, str]]) -> list[str]:
    """What the files cannot tell: who has no account, who handed in nothing, what was left empty."""
    if not accounts:
        return [
            "The names in the folder stand for accounts in them; --learners TABLE gives email, id or "
            "username (columns: learner, email, id, username)"
        ]
    unknown = [learner for learner in points.by_learner if learner not in accounts]
    absent = [learner for learner in accounts if learner not in points.by_learner]
    told = (
        ("not in the learners' table, so the folder's name stands there", unknown),
        ("in the learners' table, and nothing handed in", absent),
        ("not graded, so left empty", points.left_empty),
    )
    return [f"{what}: {_few(names)}" for what, names in told if names]


def _few(names: list[str]) -> str:
    more = f" and {len(names) - NAMED} more" if len(names) > NAMED else ""
    return "; ".join(names[:NAMED]) + more


def for_moodle(points: Points, accounts: dict[str, dict[str, str]]) -> list[list[str | int]]:
    """Moodle's table: the name in the folder, what is known of the account, a column per lesson."""
    known = {name for account in accounts.values() for name, value in account.items() if value}
    columns = [name for name in ACCOUNT if name in known]
    table: list[list[str | int]] = [
        ["Learner", *(ACCOUNT[name] for name in columns), *points.possible]
    ]
    for learner, own in points.by_learner.items():
        account = accounts.get(learner, {})
        of_account = [account.get(name, "") for name in columns]
        table.append([learner, *of_account, *(own.get(name, "") for name in points.possible)])
    return table


def for_canvas(points: Points, accounts: dict[str, dict[str, str]]) -> list[list[str | int]]:
    """Canvas's table: its five headings, the row of possible points, a row per learner."""
    table: list[list[str | int]] = [
        [*CANVAS, *points.possible],
        ["    Points Possible", "", "", "", "", *points.possible.values()],
    ]
    for learner, own in points.by_learner.items():
        account = accounts.get(learner, {})
        login = account.get("username") or account.get("email") or ""
        who = [account.get("name") or learner, "", account.get("id", ""), login]
        section = account.get("section", "")
        table.append([*who, section, *(own.get(name, "") for name in points.possible)])
    return table
