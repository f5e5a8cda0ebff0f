"""Notebooks, lessons and solutions name the same exercises, with the same signatures."""

import ast
import re

import pytest

import sync_notebooks
from common import CourseError
from llama_int8.course.exercises import Exercise, exercise, find
from llama_int8.lessons import exercises

EXERCISES = exercises()
NOTEBOOKS = {path.stem: sync_notebooks.read(path) for path in sync_notebooks.notebook_paths()}
CHECKED = {
    (name, cell["id"], exercise, function): "".join(cell["source"])
    for name, notebook in NOTEBOOKS.items()
    for cell in notebook["cells"]
    if cell["cell_type"] == "code"
    for exercise, function in sync_notebooks.CHECKED.findall("".join(cell["source"]))
}
EACH = pytest.mark.parametrize(
    ("place", "source"), CHECKED.items(), ids=[place[2] for place in CHECKED]
)


def definition(source: str, name: str) -> ast.FunctionDef:
    return next(n for n in ast.parse(source).body if getattr(n, "name", None) == name)


def test_the_exercises_that_notebooks_check_are_those_that_lessons_hold():
    checked = [exercise for _, _, exercise, _ in CHECKED]
    assert sorted(checked) == sorted(EXERCISES), "each is checked once"
    assert all(name[:2] == exercise[:2] for name, _, exercise, _ in CHECKED)


@EACH
def test_the_cell_has_the_signature_of_the_reference(place, source):
    _, _, exercise, function = place
    reference = find(exercise).reference
    asked = definition(source, function)
    right = definition(find(exercise).source(), reference.__name__)
    assert ast.unparse(asked.args) == ast.unparse(right.args)
    assert [asked.returns and ast.unparse(asked.returns)] == [
        right.returns and ast.unparse(right.returns)
    ]


@EACH
def test_the_cell_defines_nothing_but_the_exercise(place, source):
    _, _, _, function = place
    defined = [node.name for node in ast.parse(source).body if hasattr(node, "name")]
    assert defined == [function], "who pastes a solution into the cell loses what else it defines"


@EACH
def test_the_folded_solution_below_the_cell_is_the_reference_and_right(place, source):
    notebook, cell_id, exercise, function = place
    cells = NOTEBOOKS[notebook]["cells"]
    below = next(c for c in cells if c["id"] == f"{cell_id}-solution")
    text = "".join(below["source"])
    assert cells.index(below) == 1 + next(i for i, c in enumerate(cells) if c["id"] == cell_id)
    assert text.startswith("<details>") and text.endswith("</details>")
    code = re.search(r"```python\n(.*)\n```", text, re.DOTALL)[1]
    reference = find(exercise).reference.__name__
    assert ast.unparse(definition(code, function)) == ast.unparse(
        definition(find(exercise).source(), reference)
    ).replace(f"def {reference}(", f"def {function}(", 1)


def test_a_renamed_exercise_is_named_with_its_cell():
    (path,) = (p for p in sync_notebooks.notebook_paths() if p.stem.startswith("06"))
    notebook = sync_notebooks.read(path)
    for cell in notebook["cells"]:
        cell["source"] = "".join(cell["source"]).replace('check("06.spacing"', 'check("06.spacin"')
    with pytest.raises(CourseError, match=r"06_quantization_math, cell exercise-spacing: .*spacin"):
        sync_notebooks.synced(notebook, path.stem, "jane/course")


def test_two_exercises_cannot_have_one_name():
    taken = next(iter(EXERCISES))
    with pytest.raises(ValueError, match=f"two exercises are called '{taken}'"):
        exercise(taken, points=1, cases=[()], hints=[])(lambda: 1)


def test_a_mistake_is_added_by_a_decorator_or_at_once():
    one = Exercise("99.none", 1, abs, ((1,),), ())
    one.mistake("negative", lambda x: -x)

    @one.mistake("twice")
    def _twice(x):
        return 2 * x

    assert [message for _, message in one.mistakes] == ["negative", "twice"]
    assert one.mistakes[1][0](3) == _twice(3) == 6 and one(-3) == 3
