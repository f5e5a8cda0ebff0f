"""The teacher's guide speaks of the course as it is."""

import re

import pytest
from conftest import ROOT

import course
import sync_notebooks
from llama_int8.lessons import exercises

EXERCISES = exercises()

GUIDE = (ROOT / "notebooks" / "TEACHING.md").read_text(encoding="utf-8")


def headings(number: str) -> set[str]:
    """The headings of a notebook, without their marks and the word "Exercise"."""
    (path,) = sync_notebooks.NOTEBOOKS.glob(f"{number}_*.ipynb")
    lines = [
        line
        for cell in sync_notebooks.read(path)["cells"]
        if cell["cell_type"] == "markdown"
        for line in "".join(cell["source"]).splitlines()
        if line.startswith("#")
    ]
    whole = {re.sub(r"^#+ (Exercise: )?", "", line).rstrip("?") for line in lines}
    return whole | {name.partition(":")[0] for name in whole}  # "Absmax: the grid from ..."


def test_every_link_leads_somewhere():
    targets = re.findall(r"\]\(([^)#]+)\)", GUIDE)
    assert targets
    for target in targets:
        assert (ROOT / "notebooks" / target).exists(), target


@pytest.mark.parametrize("path", sync_notebooks.notebook_paths(), ids=lambda path: path.stem)
def test_a_notebook_has_goals_questions_and_its_exercises_with_points(path):
    number = path.stem[:2]
    section = GUIDE.split(f"\n### {number} ")[1].split("\n## ")[0].split("\n### ")[0]
    for part in ("Goal", "Teaching time:", "**Discuss**", "**Misunderstandings.**"):
        assert part in section, part
    assert len(re.findall(r"(?m)^- \*.+\?\* ", section)) >= 3
    points = [e.points for name, e in EXERCISES.items() if name.startswith(number)]
    assert f"**Exercises:** {len(points)}, {sum(points)} points." in section


def test_the_plans_name_sections_that_exist():
    rows = re.findall(r"(?m)^\| *\d+ \|.*$", GUIDE)
    assert rows
    for row in rows:
        number = re.search(r"^\| *\d+ \| \[?(\d\d)\b", row)[1]
        there = headings(number)
        for name in re.findall(r"(?<!\*)\*([A-Z][^*]+)\*(?!\*)", row):
            assert name.rstrip("?") in there, f"{number} has no section {name!r}"
        for listed in re.findall(r"exercises?: ([^.;|]+)", row):
            for name in listed.strip().split(", "):
                assert name in there, f"{number} has no exercise {name!r}"


def test_its_commands_are_those_of_course_py():
    commands = re.findall(r"(?:python3 )?tools/course\.py ([^`\n]+)", GUIDE)
    assert {command.split()[0] for command in commands} >= {"grade", "fetch", "install", "sync"}
    for command in commands:
        course.parse(command.split())
