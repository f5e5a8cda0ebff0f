"""Every notebook from its first cell to its last, in profile smoke.

With its exercises solved here, once each; as it is handed out in test_colab.py and test_browser.py,
and with models of one's own.
"""

import ast
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import own_models
import pytest
from conftest import ROOT, Course
from helpers import solved

import course
import sync_notebooks
from llama_int8.files import content_hash
from llama_int8.lessons import exercises

PATHS = sync_notebooks.notebook_paths()
# Run in every test: the base model in those notebooks that ask most of a model.
ALWAYS = "base", ("00", "04", "05", "06", "10")


def own_cases():
    """Each kind of model with each notebook; all but a few only in `test --models`."""
    for kind in own_models.KINDS:
        for path in PATHS:
            always = kind == ALWAYS[0] and path.stem[:2] in ALWAYS[1]
            mark = pytest.mark.slow if always else pytest.mark.models
            yield pytest.param(kind, path, marks=mark, id=f"{kind}-{path.stem}")


@pytest.fixture(scope="session")
def own_folder(tmp_path_factory):
    """The folder of each kind of model, made when it is asked for; its path has a blank and an ü."""
    root = tmp_path_factory.mktemp("my models ü")

    def folder(kind: str) -> Path:
        if not (root / kind).exists():
            own_models.KINDS[kind](root / kind)
        return root / kind

    return folder


@pytest.fixture(scope="session")
def solved_course(tmp_path_factory):
    """The course with the answers of a learner who has solved every exercise."""
    root = tmp_path_factory.mktemp("solved")
    ignore = shutil.ignore_patterns("tests", "__pycache__", "*.egg-info")
    shutil.copytree(ROOT / "tools", root / "tools", ignore=ignore)
    for file in ("pyproject.toml", "requirements.txt"):
        shutil.copy(ROOT / file, root)
    (root / "notebooks").mkdir()
    for path in PATHS:
        text = json.dumps(solved(path))
        (root / "notebooks" / path.name).write_text(text, encoding="utf-8")
    return Course(root)


def run(course: Course, path: Path, out: Path, *options: str, **environment: str) -> None:
    """Run one notebook; a failure shows what the command says: notebook, cell and reason."""
    command = ("run", "--profile", "smoke", "--only", path.stem, "--out", str(out), *options)
    done = course(*command, timeout=1800, **environment)
    assert done.returncode == 0, done.stderr or done.stdout


def figures(folder: Path, number: str) -> set[str]:
    return {figure.name for figure in folder.glob(f"{number}_*.png")}


def code(path: Path) -> dict[str, str]:
    """The code of each cell by its id, without what only IPython understands."""
    cells = sync_notebooks.read(path)["cells"]
    own = [c for c in cells if c["cell_type"] == "code" and c["id"] != "bootstrap"]
    return {cell["id"]: "".join(cell["source"]) for cell in own}


@pytest.mark.parametrize("path", PATHS, ids=lambda path: path.stem)
def test_a_check_that_fails_says_what_is_wrong(path):
    for name, source in code(path).items():
        checks = [node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Assert)]
        assert all(check.msg is not None for check in checks), name


@pytest.mark.parametrize("path", PATHS, ids=lambda path: path.stem)
def test_no_cell_takes_for_granted_how_many_layers_a_model_has(path):
    found = {
        name: re.findall(r"layers(?:\.|\[)[1-9]\d*", text) for name, text in code(path).items()
    }
    assert not any(found.values()), found


@pytest.mark.slow
@pytest.mark.parametrize("path", PATHS, ids=lambda path: path.stem)
def test_solved_it_runs_to_its_end_draws_its_figures_and_every_answer_is_right(
    path, solved_course, tmp_path
):
    verdicts = tmp_path / "verdicts.jsonl"
    run(solved_course, path, tmp_path, COURSE_VERDICTS=str(verdicts))
    number = path.stem[:2]
    assert figures(tmp_path / "figures", number) == figures(ROOT / "figures", number)
    assert list((tmp_path / "results").rglob("*.json"))
    lines = [json.loads(line) for line in verdicts.read_text(encoding="utf-8").splitlines()]
    verdicts = [line for line in lines if "status" in line]  # the others are predictions
    given = {line["name"]: line for line in verdicts if line["status"] != "begun"}
    wanted = {name: one.points for name, one in exercises().items() if name[:2] == number}
    assert {name: line["points"] for name, line in given.items()} == wanted, given
    assert all(line["status"] == "correct" and line["own"] for line in given.values()), given


@pytest.mark.parametrize(("kind", "path"), list(own_cases()))
def test_runs_to_its_end_with_a_model_of_ones_own(kind, path, own_folder, tmp_path):
    run(Course(ROOT), path, tmp_path, "--model", str(own_folder(kind)))
    number = path.stem[:2]
    assert figures(tmp_path / "figures", number) == figures(ROOT / "figures", number)
    (file,) = (tmp_path / "results").rglob("*.json")
    mark = content_hash(own_folder(kind))[:8]
    assert file.name == f"{path.stem}@{kind}-{mark}.json"
    found = json.loads(file.read_text(encoding="utf-8"))
    assert found["model"] == f"{kind} (folder {mark})"
    assert str(own_folder(kind)) not in json.dumps(found)


@pytest.mark.slow
@pytest.mark.parametrize("option", ["--models", None])
def test_which_of_these_a_test_command_selects(option, monkeypatch):
    asked = []
    monkeypatch.setattr(course, "tool", lambda name, *arguments: asked.append((name, *arguments)))
    monkeypatch.setattr(sync_notebooks, "main", lambda check: 0)
    monkeypatch.setattr("make_report.main", lambda check: 0)
    course.test(course.parse(["test", *([option] if option else [])]))
    command = [sys.executable, "-m", *asked[-1], "--collect-only", "-n", "0"]
    if option != "--models":
        command.append(course.NOTEBOOK_TESTS)
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    found = re.findall(rf"{course.OWN_MODELS}\[(\w+)-(\d\d)_", done.stdout)
    always = {(ALWAYS[0], number) for number in ALWAYS[1]}
    every = {(kind, path.stem[:2]) for kind in own_models.KINDS for path in PATHS}
    wanted = every if option else always
    assert set(found) == wanted and len(found) == len(wanted), done.stdout + done.stderr
