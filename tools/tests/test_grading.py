"""`course.py grade` gives each learner their own points, whatever stands in a notebook."""

import csv
import os
import re
from pathlib import Path

import pytest
import solved
from conftest import ROOT
from nbformat import v4

import grade_notebooks
from course import CourseError
from grade_notebooks import Limits, grade
from llama_int8.classroom import exercises
from llama_int8.classroom.exercise_book import EXERCISES

WRONG_ANSWERS = re.findall(
    r"(?ms)^# (\d\d\.\w+): ([^\n]+)\n(.*?)(?=^# \d\d\.|\Z)",
    Path(__file__).with_name("wrong_answers.txt").read_text(encoding="utf-8"),
)
LIMITS = Limits(seconds=8, memory=2)
# Exercises of notebook 04 that need neither model nor earlier cells.
SPACING, LARGEST, DOT = "04.spacing", "04.largest_inner", "04.integer_dot"


def cell(exercise: str, answer: str | None = None, more: str = "") -> str:
    """An exercise cell: solved, or with an answer."""
    name = exercise.partition(".")[2]
    blank = f'def {name}(*_):\n    ...\n\n\n{name} = exercises.check("{exercise}", {name})\n'
    return solved.answered(blank, answer) + more


def notebook(*sources: str) -> dict:
    code = [v4.new_code_cell(source) for source in sources]
    return v4.new_notebook(cells=[v4.new_markdown_cell("# A learner's notebook"), *code])


@pytest.fixture
def rows(tmp_path):
    """Grade a notebook of these cells; its rows by exercise."""

    def judge(*sources: str, name: str = "04_quantization_math.ipynb") -> dict[str, dict]:
        path = solved.write(notebook(*sources), tmp_path / name)
        before = path.read_bytes()
        found = grade("anna", path, LIMITS).rows
        assert path.read_bytes() == before
        return {row["exercise"]: row for row in found}

    return judge


def test_right_wrong_blank_broken_and_deleted_answers_are_told_apart(rows):
    found = rows(
        "from llama_int8.classroom import exercises",
        cell(SPACING),
        cell(LARGEST, "def mine(bits):\n    return bits"),
        cell(DOT, "def mine(x, y, p, q):\n    ..."),
        cell("04.restored", "def mine(*a):\n    return a[99]"),
        'def layer_bytes(rows:\n\nlayer_bytes = exercises.check("04.layer_bytes", layer_bytes)',
    )
    of = {name: EXERCISES[name].points for name in found}
    assert {name: row["of"] for name, row in found.items()} == of
    assert found[SPACING]["status"] == "correct" and found[SPACING]["points"] == of[SPACING]
    assert found[LARGEST]["status"] == "wrong" and "mine(" in found[LARGEST]["message"]
    assert found[DOT]["status"] == "blank"
    assert found["04.restored"]["status"] == "error"
    assert "IndexError" in found["04.restored"]["message"]
    assert found["04.layer_bytes"]["status"] == "error"
    assert "SyntaxError" in found["04.layer_bytes"]["message"]
    missing = {name for name, row in found.items() if row["status"] == "missing"}
    assert missing == {n for n in EXERCISES if n[:2] == "04"} - {
        SPACING,
        LARGEST,
        DOT,
        "04.restored",
        "04.layer_bytes",
    }
    assert sum(row["points"] for row in found.values()) == of[SPACING]


@pytest.mark.parametrize(
    ("answer", "status"),
    [
        ("def mine(*_):\n    while True:\n        pass", "time"),
        (
            "def mine(*_):\n    rows = []\n    while True:\n        rows.append(b'x' * 2**24)",
            "memory",
        ),
        ("def mine(*_):\n    import os\n    os._exit(0)", "died"),
        ("def mine(*_):\n    import ctypes\n    ctypes.string_at(0)", "died"),
    ],
)
def test_an_answer_that_stops_the_kernel_costs_its_own_points_alone(rows, answer, status):
    found = rows(
        cell(SPACING), cell(DOT, answer, f"assert {DOT[3:]}([1], [1], 0, 0) == 1"), cell(LARGEST)
    )
    assert found[DOT]["status"] == status and found[DOT]["points"] == 0
    assert "the cell " in found[DOT]["message"]
    assert found[SPACING]["status"] == found[LARGEST]["status"] == "correct"


@pytest.mark.parametrize(
    "leave", ["exit()", "quit()", "import sys\nsys.exit(1)", "raise SystemExit"]
)
def test_leaving_by_the_front_door_stops_nothing(rows, leave):
    found = rows(
        cell(SPACING),
        leave,
        cell(LARGEST),
        cell(DOT, f"def mine(*_):\n    {leave.splitlines()[-1]}"),
    )
    assert found[LARGEST]["status"] == "correct"
    assert found[DOT]["status"] == "error"


def test_two_fatal_cells_and_one_without_an_exercise(rows):
    kill = "import os\nos._exit(1)"
    found = rows(
        kill,
        cell(SPACING, f"def mine(*_):\n    {kill.splitlines()[0]}; os._exit(1)"),
        cell(LARGEST),
    )
    assert found[""]["status"] == "died" and "import os" in found[""]["message"]
    assert found[SPACING]["status"] == "died" and found[LARGEST]["status"] == "correct"


def test_the_last_answer_counts_and_another_notebooks_exercise_does_not(rows):
    wrong = cell(SPACING, "def mine(*_):\n    return 0.0")
    found = rows(cell(SPACING), wrong, cell("00.int8_bytes"), cell(DOT))
    assert found[SPACING]["status"] == "wrong" and "00.int8_bytes" not in found
    assert rows(wrong, cell(SPACING))[SPACING]["status"] == "correct"


def test_a_learner_who_asks_the_keyboard_is_not_waited_for(rows):
    found = rows(cell(SPACING, "def mine(*_):\n    return float(input())"), cell(LARGEST))
    assert found[SPACING]["points"] == 0 and found[LARGEST]["status"] == "correct"


def test_a_renamed_notebook_is_known_by_its_exercises(rows):
    assert rows(cell(SPACING), name="anna (1).ipynb")[SPACING]["status"] == "correct"


def test_a_file_that_is_no_notebook_says_so_and_stops_nobody_else(tmp_path, capsys):
    (tmp_path / "ben").mkdir()
    (tmp_path / "ben" / "04.ipynb").write_text("{")
    (tmp_path / "ben" / "list.ipynb").write_text("[]")
    solved.write(notebook("1 + 1"), tmp_path / "carl" / "mine.ipynb")
    solved.write(notebook(cell(SPACING)), tmp_path / "anna" / "04.ipynb")
    solved.write(notebook(cell(SPACING)), tmp_path / "anna" / ".ipynb_checkpoints" / "04.ipynb")
    out = tmp_path / "points.csv"
    assert grade_notebooks.main(tmp_path, out, 8, 2) == 0
    with out.open(newline="", encoding="utf-8") as file:
        found = list(csv.DictReader(file))
    by_learner = {
        row["learner"]: row for row in found if row["status"] in ("correct", "unreadable")
    }
    assert by_learner["anna"]["exercise"] == SPACING and list(found[0]) == list(
        grade_notebooks.COLUMNS
    )
    assert (
        by_learner["ben"]["status"] == "unreadable" and by_learner["carl"]["status"] == "unreadable"
    )
    assert len([row for row in found if row["exercise"] == SPACING]) == 1
    printed = capsys.readouterr().out
    assert "anna/04.ipynb" in printed and "carl" in printed


def test_what_cannot_be_graded_is_said_before_the_work(tmp_path):
    with pytest.raises(CourseError, match="is no folder"):
        grade_notebooks.main(tmp_path / "nowhere", tmp_path / "p.csv", 8, 2)
    with pytest.raises(CourseError, match="holds no notebooks"):
        grade_notebooks.main(tmp_path, tmp_path / "p.csv", 8, 2)
    solved.write(notebook(cell(SPACING)), tmp_path / "04.ipynb")
    with pytest.raises(CourseError, match="does not exist"):
        grade_notebooks.main(tmp_path, tmp_path / "away" / "p.csv", 8, 2)
    with pytest.raises(CourseError, match="cannot be written"):
        grade_notebooks.main(tmp_path, tmp_path, 8, 2)
    for seconds, memory in ((0, 2), (8, -1)):
        with pytest.raises(CourseError, match="above 0"):
            grade_notebooks.main(tmp_path, tmp_path / "p.csv", seconds, memory)


@pytest.mark.parametrize(("exercise", "words", "source"), WRONG_ANSWERS)
def test_a_plausible_wrong_answer_is_told_apart_with_words_that_help(exercise, words, source):
    scope = {}
    exec(source, scope)
    verdict = exercises.judge(exercise, scope["f"])
    assert verdict.status in ("wrong", "error") and verdict.points == 0
    assert words in verdict.message


def test_the_wrong_answers_are_many_and_from_every_notebook():
    assert len(WRONG_ANSWERS) >= 40
    assert {name[:2] for name, _, _ in WRONG_ANSWERS} == {name[:2] for name in EXERCISES}


def test_every_exercise_of_the_course_stands_in_its_notebook():
    for number in sorted({name[:2] for name in EXERCISES}):
        there = grade_notebooks.course_cells(number)
        assert {n for n in EXERCISES if n.startswith(number)} <= there.keys()


@pytest.mark.slow
def test_real_notebooks_blank_have_no_points_and_solved_have_all(tmp_path):
    names = ("00_start_here", "04_quantization_math")
    for name in names:
        own = (ROOT / "notebooks" / f"{name}.ipynb").read_bytes()
        (tmp_path / "blank").mkdir(exist_ok=True)
        (tmp_path / "blank" / f"{name}.ipynb").write_bytes(own)
        solved.write(solved.solved_notebook(name), tmp_path / "solved" / f"{name}.ipynb")
    limits = Limits(seconds=120, memory=6)
    for learner, file in grade_notebooks.learners_notebooks(tmp_path):
        rows = grade(learner, file, limits).rows
        wanted = "correct" if learner == "solved" else "blank"
        assert {row["status"] for row in rows} == {wanted}, rows
        of = sum(e.points for n, e in EXERCISES.items() if n[:2] == file.name[:2])
        assert sum(row["points"] for row in rows) == (of if learner == "solved" else 0)
        assert not os.path.exists(file.with_name("output"))
