"""Grading: one fatal cell costs its own exercise alone, and a wrong answer is told what is wrong."""

import ast
import csv
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import psutil
import pytest
from conftest import ROOT
from helpers import solved
from wrong_answers import RIGHT_ANSWERS, WRONG_ANSWERS

import course
import grade_notebooks
import isolation
from common import CourseError
from llama_int8.course.exercises import find, judge
from llama_int8.lessons import exercises

EXERCISES = exercises()


@pytest.fixture(autouse=True, scope="module")
def nothing_is_watched():
    """What changes outside is for test_isolation.py: to look through all packages takes longer than
    to grade such small notebooks."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(isolation, "states", lambda *_places, **_more: {})
        yield


# --- wrong answers, and right ones in another style ---------------------------------------------


def the_function(code: str):
    """What a learner's cell defines last."""
    scope = {}
    exec(code, scope)
    return scope[[n.name for n in ast.parse(code).body if isinstance(n, ast.FunctionDef)][-1]]


@pytest.mark.filterwarnings("ignore")  # a wrong answer may well divide by zero
@pytest.mark.parametrize("wrong", WRONG_ANSWERS, ids=lambda one: f"{one.exercise}: {one.fault}")
def test_a_wrong_answer_is_told_apart_with_words_that_help(wrong):
    verdict = judge(wrong.exercise, the_function(wrong.code))
    assert (verdict.status, verdict.points) == (wrong.status, 0)
    assert wrong.says in verdict.message


@pytest.mark.parametrize("exercise, code", RIGHT_ANSWERS, ids=[name for name, _ in RIGHT_ANSWERS])
def test_a_right_answer_in_another_style_is_right(exercise, code):
    verdict = judge(exercise, the_function(code))
    assert (verdict.status, verdict.points) == ("correct", find(exercise).points), verdict.message


# --- small notebooks of learners ----------------------------------------------------------------


def write(path: Path, *codes: str) -> Path:
    cells = [
        {
            "cell_type": "code",
            "metadata": {},
            "source": code,
            "outputs": [],
            "execution_count": None,
        }
        for code in codes
    ]
    path.parent.mkdir(parents=True, exist_ok=True)
    content = {"cells": cells, "metadata": {}, "nbformat": 4, "nbformat_minor": 4}
    path.write_text(json.dumps(content), encoding="utf-8")
    return path


def checked(name: str, body: str, function: str = "answer", arguments: str = "*a") -> str:
    """The cell of an exercise, filled in by a learner."""
    check = f"{function} = exercises.check({name!r}, {function})"
    return f"def {function}({arguments}):\n    {body}\n\n{check}\n"


def right(name: str) -> str:
    source = find(name).source()
    function = find(name).reference.__name__
    return f"import torch\n\n\n{source}\n\n\n{function} = exercises.check({name!r}, {function})\n"


# Notebook 09 has nine exercises, none of which needs a model; these five need no other one.
MOVED, MERGE, SEES, TILES, CROSSING = (
    "09.standard_moved",
    "09.merge",
    "09.sees",
    "09.tiles_visited",
    "09.crossing_length",
)
# These four do; the cell that gives them `part` comes first.
GIVEN = "import torch\nfrom llama_int8.lessons.n09.exercises import part"
ONLINE, TILED, SPLIT, ENTROPY = (
    f"09.{name}" for name in ("online_softmax", "tiled_attention", "split_attention", "entropy")
)
ALL = [MOVED, ONLINE, MERGE, TILED, SPLIT, ENTROPY, CROSSING, SEES, TILES]  # as they stand there
IMPORT = "from llama_int8.course import exercises"


def graded(folder: Path, out: Path, seconds: int = 60, memory: float = 6.0) -> dict:
    """Rows by (learner, exercise)."""
    assert grade_notebooks.main(folder, out, seconds, memory) == 0
    with out.open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    assert tuple(rows[0]) == grade_notebooks.COLUMNS
    return {(row["learner"], row["exercise"]): row for row in rows}


@pytest.fixture(scope="module")
def a_class(tmp_path_factory):
    """Learners with one trouble each, graded at once: rows by (learner, exercise), and the files."""
    folder = tmp_path_factory.mktemp("class") / "handed_in"
    files = {
        "anna/09_flash_attention.ipynb": [
            IMPORT,
            GIVEN,
            *map(right, ALL),
            "raise RuntimeError('after the last check: never run')",
        ],
        "ben/09 (1).ipynb": [
            IMPORT,
            checked(MOVED, "return 4 * length * head_dim", arguments="length, head_dim"),
            checked(MERGE, "..."),
            checked(SEES, "return 1 / 0"),
            "def tiles_visited(length, block:\n    return 3\n\nexercises.check('09.tiles_visited', 3)",
        ],
        "carla/homework.ipynb": [  # the import went with the deleted first exercise
            right(MERGE),
            "exercises.check('00.int8_bytes', lambda r, c: r * c + 4 * r)",
            "exercises.check('08.nonsense', 3)",
            checked(SEES, "return True"),
            right(SEES),
            right(TILES),
            checked(TILES, "return True"),
            right(CROSSING),
        ],
        "dora/09.ipynb": [
            IMPORT,
            checked(MOVED, "raise KeyboardInterrupt"),
            "exit()",
            checked(MERGE, "exit(); sys.exit(3)"),
            "merge = None  # of the exercise before; no exercise itself",
            right(CROSSING),
        ],
    }
    written = [write(folder / name, *codes) for name, codes in files.items()]
    before = {path: path.read_bytes() for path in written}
    out = folder.parent / "points.csv"
    rows = graded(folder, out)
    return rows, before, out


def status(row: dict) -> tuple[str, str]:
    return row["status"], row["points"]


@pytest.mark.slow
def test_right_answers_earn_full_points(a_class):
    rows, _, _ = a_class
    own = [row for (learner, _), row in rows.items() if learner == "anna"]
    assert [row["exercise"] for row in own] == ALL
    assert all(row["status"] == "correct" and row["points"] == row["of"] for row in own)
    assert {row["notebook"] for row in own} == {"09_flash_attention"}


def test_wrong_blank_and_broken_cells_get_their_own_status_and_words(a_class):
    rows, _, _ = a_class
    expected = {
        MOVED: ("wrong", "the T x T scores go to slow memory, too"),
        MERGE: ("blank", "not filled in yet; exercises.hint('09.merge') helps"),
        SEES: ("error", "raised ZeroDivisionError: division by zero"),
        TILES: ("error", "SyntaxError"),
        CROSSING: ("missing", "no cell checks it"),
    }
    for name, (wanted, words) in expected.items():
        assert status(rows["ben", name]) == (wanted, "0")
        assert words in rows["ben", name]["message"]


def test_a_deleted_cell_costs_only_its_own_exercise_though_it_imported_the_checks(a_class):
    rows, _, _ = a_class
    assert status(rows["carla", MOVED]) == ("missing", "0")
    assert status(rows["carla", MERGE]) == ("correct", "2")
    assert status(rows["carla", CROSSING]) == ("correct", "2")


def test_the_best_answer_to_an_exercise_counts(a_class):
    rows, _, _ = a_class
    assert status(rows["carla", SEES]) == ("correct", "1")  # first wrong, then right
    assert status(rows["carla", TILES]) == ("correct", "2")  # first right, then wrong


def test_an_exercise_of_another_notebook_earns_nothing(a_class):
    rows, _, _ = a_class
    assert {name for learner, name in rows if learner == "carla"} == set(ALL)


def test_exit_and_an_interrupt_end_nothing_but_their_exercise(a_class):
    rows, _, _ = a_class
    assert rows["dora", MOVED]["status"] == "error"
    assert "KeyboardInterrupt" in rows["dora", MOVED]["message"]
    assert rows["dora", MERGE]["status"] == "error"
    assert status(rows["dora", CROSSING]) == ("correct", "2")


def test_the_learners_files_stay_as_they_are(a_class):
    _, before, _ = a_class
    for path, content in before.items():
        assert path.read_bytes() == content
        assert [p.name for p in path.parent.iterdir()] == [path.name]


# --- cells that end their kernel ----------------------------------------------------------------


@pytest.mark.slow
def test_a_loop_without_end_costs_its_own_exercise_alone(tmp_path):
    write(
        tmp_path / "in" / "eve.ipynb",
        right(MOVED),
        checked(MERGE, "print('round and round')\n    while True: print('and round')"),
        right(SEES),
        checked(TILES, "return 0"),
    )
    rows = graded(tmp_path / "in", tmp_path / "points.csv", seconds=4)
    assert status(rows["eve", MERGE]) == ("time", "0")
    assert "longer than 4 s" in rows["eve", MERGE]["message"]
    assert status(rows["eve", MOVED]) == ("correct", "1")
    assert status(rows["eve", SEES]) == ("correct", "1")
    assert rows["eve", TILES]["status"] == "wrong"


@pytest.mark.slow
def test_memory_without_end_costs_its_own_exercise_alone(tmp_path):
    grows = "kept = []\n    while True: kept.append(bytearray(b'x') * 10_000_000)"
    write(tmp_path / "in" / "finn.ipynb", right(MOVED), checked(MERGE, grows), right(SEES))
    rows = graded(tmp_path / "in", tmp_path / "points.csv", memory=1.0)
    assert status(rows["finn", MERGE]) == ("memory", "0")
    assert "more than 1 GiB" in rows["finn", MERGE]["message"]
    assert status(rows["finn", MOVED]) == ("correct", "1")
    assert status(rows["finn", SEES]) == ("correct", "1")


@pytest.mark.slow
def test_memory_that_a_quick_cell_keeps_does_not_cost_the_next_exercise(tmp_path):
    keeps = "kept = bytearray(b'x') * 1_100_000_000"
    slow = f"import time\ntime.sleep(1)\n{right(SEES)}"
    write(tmp_path / "in" / "fay.ipynb", IMPORT, keeps, slow)
    rows = graded(tmp_path / "in", tmp_path / "points.csv", memory=0.9)
    assert status(rows["fay", SEES]) == ("correct", "1")
    assert "kept = bytearray" in rows["fay", SEES]["message"]


@pytest.mark.slow
@pytest.mark.skipif(os.name != "posix", reason="process groups")
def test_what_a_cell_started_ends_with_its_kernel(tmp_path):
    code = "import os, subprocess\nsubprocess.Popen(['sleep', '4321.5'])\nos._exit(1)"
    write(tmp_path / "in" / "gil.ipynb", code, right(SEES))
    rows = graded(tmp_path / "in", tmp_path / "points.csv")
    assert rows["gil", SEES]["status"] == "correct"
    running = [process.info["cmdline"] for process in psutil.process_iter(["cmdline"])]
    assert ["sleep", "4321.5"] not in running


@pytest.mark.slow
def test_a_dead_kernel_costs_its_own_exercise_alone(tmp_path):
    write(
        tmp_path / "in" / "gus.ipynb",
        right(MOVED),
        checked(MERGE, "import os; os._exit(1)"),
        checked(SEES, "import ctypes; ctypes.string_at(0)"),
        right(TILES),
        right(CROSSING),
    )
    rows = graded(tmp_path / "in", tmp_path / "points.csv")
    for name in (MERGE, SEES):
        assert status(rows["gus", name]) == ("died", "0")
        assert "ended its kernel" in rows["gus", name]["message"]
    for name in (MOVED, TILES, CROSSING):
        assert rows["gus", name]["status"] == "correct"


@pytest.mark.slow
def test_a_fatal_cell_without_an_exercise_is_left_out_and_said(tmp_path):
    write(
        tmp_path / "in" / "hana.ipynb",
        right(MOVED),
        "import os\nos._exit(0)",
        right(MERGE),
    )
    rows = graded(tmp_path / "in", tmp_path / "points.csv")
    assert rows["hana", MERGE]["status"] == "correct"
    for name in (MOVED, MERGE):
        assert (
            "a cell was left out ('import os': the cell ended its kernel"
            in (rows["hana", name]["message"])
        )


@pytest.mark.slow
def test_a_verdict_from_before_its_cell_died_stands(tmp_path):
    write(tmp_path / "in" / "ida.ipynb", right(MOVED) + "import os; os._exit(0)", right(MERGE))
    rows = graded(tmp_path / "in", tmp_path / "points.csv")
    assert status(rows["ida", MOVED]) == ("correct", "1")
    assert rows["ida", MERGE]["status"] == "correct"


# --- which answer counts, and a check that a notebook has changed --------------------------------


def test_of_several_answers_a_right_one_counts_else_the_last_that_is_no_blank():
    def counts(*statuses):
        verdicts = [grade_notebooks.Verdict(n, SEES, s, f"{n}") for n, s in enumerate(statuses)]
        return grade_notebooks.best(verdicts)

    assert counts("correct", "blank") == ("correct", "0")  # a blank copy of the cell below
    assert counts("correct", "wrong", "error") == ("correct", "0")
    assert counts("blank", "wrong", "time", "blank") == ("time", "2")
    assert counts("blank", "blank") == ("blank", "1")
    assert counts() is None


def test_a_check_that_says_correct_of_anything_earns_nothing(tmp_path):
    tricks = [
        "import dataclasses, os\nfrom llama_int8.course import exercises\nkept = exercises.judge",
        "exercises.judge = lambda *a: exercises.Verdict('correct', 'correct', 1)\n"
        + checked(MOVED, "return 1"),
        "exercises.judge, exercises._equal = kept, lambda *a: True\n"
        + checked(MERGE, "return 1.0, 1.0, 1.0"),
        f"exercises.hand_in(name={SEES!r}, status='correct', points=1, message='correct')",
        f"own = exercises.EXERCISES\nown[{TILES!r}] = dataclasses.replace("
        f"own[{TILES!r}], cases=((1, 1),), reference=lambda *a: 1)\n" + checked(TILES, "return 1"),
        checked(CROSSING, "..."),
        f"answer = exercises.check({CROSSING!r}, answer)  # what the check above gave back",
        "with open(os.environ['COURSE_VERDICTS'], 'a') as file:\n"
        "    print('[1]', 'null', '{\"name\": 3, \"status\": 4}', 'torn', sep='\\n', file=file)\n"
        "exercises.check",
    ]
    write(tmp_path / "in" / "anna" / "09.ipynb", *tricks)
    own = "def check(name, f): return f\n" + "".join(
        f"check({name!r}, print)\n" for name in (MOVED, MERGE, SEES)
    )
    blank = checked(TILES, "...")
    write(tmp_path / "in" / "ben" / "09.ipynb", own, right(TILES), blank, "exercises.check")
    rows = graded(tmp_path / "in", tmp_path / "points.csv")
    found = {key: row["status"] for key, row in rows.items()}
    assert [found["anna", name] for name in (MOVED, MERGE, SEES, TILES, CROSSING)] == [
        *["altered"] * 4,
        "blank",
    ]
    assert "has changed how its answers are checked" in rows["anna", MOVED]["message"]
    assert "an earlier check gave it" in rows["anna", CROSSING]["message"]
    assert all(row["points"] == "0" for (who, _), row in rows.items() if who == "anna")
    assert [found["ben", name] for name in (MOVED, MERGE, SEES)] == ["missing"] * 3
    assert status(rows["ben", TILES]) == ("correct", "2")  # with a blank copy below


def test_a_notebook_as_it_was_handed_out_runs_once_for_all_learners(tmp_path, monkeypatch):
    name = "09_flash_attention"
    judged = []

    def judge(_cells, notebook, _limits):
        judged.append(notebook)
        names = grade_notebooks.courses_notebooks()[notebook]
        return grade_notebooks.Outcome(dict.fromkeys(names, ("blank", "not filled in yet")))

    monkeypatch.setattr(grade_notebooks, "_judge", judge)
    grade_notebooks._as_handed_out.cache_clear()
    for learner in ("anna", "ben"):
        (tmp_path / "in" / learner).mkdir(parents=True)
        shutil.copy(ROOT / "notebooks" / f"{name}.ipynb", tmp_path / "in" / learner)
    write(tmp_path / "in" / "carla" / "09.ipynb", right(SEES))
    rows = graded(tmp_path / "in", tmp_path / "points.csv")
    grade_notebooks._as_handed_out.cache_clear()
    assert {learner for learner, _ in rows} == {"anna", "ben", "carla"}
    assert judged == [name, name]  # once for Anna and Ben, once for Carla


# --- which file is what --------------------------------------------------------------------------


@pytest.mark.parametrize(
    "file_name, learner",
    [
        ("05 (1).ipynb", "handed"),
        ("07_outliers_and_llm_int8-Copy1.ipynb", "handed"),
        ("anna_05.ipynb", "anna"),
        ("05-ben (2).ipynb", "ben"),
        ("carla 07_outliers_and_llm_int8.ipynb", "carla"),
        ("project 42.ipynb", "project 42"),
        ("Copy of 07_outliers_and_llm_int8.ipynb", "handed"),
        ("Kopie von anna_05.ipynb", "anna"),
    ],
)
def test_a_file_beside_others_is_named_after_its_learner(file_name, learner):
    assert grade_notebooks.learner_of(Path(file_name), Path("handed")) == learner


def test_a_renamed_file_is_known_by_its_exercises_first_then_by_its_setup_then_by_its_name():
    def cells(text):
        return [{"cell_type": "code", "source": text}]

    which = grade_notebooks.which_notebook
    assert which(cells('check("07.kept_share", f)'), "anna_01") == "07_outliers_and_llm_int8"
    assert which(cells('start_lesson("10_fast_int8")'), "anna_01") == "10_fast_int8"
    assert which(cells("print()"), "anna_01") == "01_attention_and_causal_masking"
    assert which(cells("print()"), "anna") is None


@pytest.mark.slow
def test_two_files_of_one_notebook_count_once_and_two_learners_files_apart(tmp_path):
    folder = tmp_path / "in"
    write(folder / "anna" / "09.ipynb", right(SEES))
    os.utime(write(folder / "anna" / "old.ipynb", right(SEES)), (1e9, 1e9))
    write(folder / "09.ipynb", checked(SEES, "return True"))
    write(folder / "09 (1).ipynb", checked(SEES, "return True"))
    (folder / "zoe").mkdir()
    out = tmp_path / "points.csv"
    grade_notebooks.main(folder, out, 60, 6.0)
    with out.open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    (twice,) = (row for row in rows if row["status"] == "duplicate")
    assert twice["learner"] == "anna" and "old.ipynb is the same notebook" in twice["message"]
    assert "anna/09.ipynb, which counts, as the latest" in twice["message"]
    assert twice["of"] == "0"
    assert len({row["learner"] for row in rows if row["exercise"] == SEES}) == 3
    (nothing,) = (row for row in rows if row["learner"] == "zoe")
    assert (nothing["status"], nothing["message"]) == ("missing", "no notebook in the folder")


def test_what_systems_leave_in_a_folder_is_not_graded_and_a_broken_copy_costs_nothing(tmp_path):
    folder = tmp_path / "in"
    anna = folder / "anna"
    write(anna / "09_flash_attention.ipynb", right(SEES))
    os.utime(anna / "09_flash_attention.ipynb", (1e9, 1e9))
    (anna / "09 (1).ipynb").write_text("half a download")  # newer
    for left in ("anna/__MACOSX", "anna/.ipynb_checkpoints", "__MACOSX"):
        (folder / left).mkdir()
        (folder / left / "._08_flash_attention.ipynb").write_bytes(b"\0\5\x16\7")
    (folder / "._ben_09.ipynb").write_bytes(b"\0\5\x16\7")
    (anna / "lost.ipynb").symlink_to(folder / "gone.ipynb")
    rows = graded(folder, tmp_path / "points.csv")
    assert {learner for learner, _ in rows} == {"anna"}
    assert status(rows["anna", SEES]) == ("correct", "1")
    assert rows["anna", ""]["status"] == "duplicate"


@pytest.mark.skipif(sys.platform != "linux", reason="other systems refuse such names")
def test_a_name_that_is_no_text_and_a_long_message_do_not_end_the_grading(tmp_path):
    folder = tmp_path / "in"
    long = checked(SEES, "raise ValueError('x' * 200_000)")
    write(folder / os.fsdecode(b"Ren\xe9") / "09.ipynb", long)
    rows = graded(folder, tmp_path / "points.csv")
    assert rows["Ren?", SEES]["status"] == "error"
    assert len(rows["Ren?", SEES]["message"]) < 1100


def test_points_go_beside_a_file_that_another_program_holds(tmp_path, monkeypatch, capsys):
    write(tmp_path / "in" / "anna.ipynb", right(SEES))
    replace = Path.replace

    def held(self, target):
        if target.name == "points.csv":
            raise PermissionError(13, "it is open elsewhere")
        return replace(self, target)

    monkeypatch.setattr(Path, "replace", held)
    assert grade_notebooks.main(tmp_path / "in", tmp_path / "points.csv", 60, 6.0) == 0
    assert "09.sees" in (tmp_path / "points-2.csv").read_text()
    assert "points-2.csv" in capsys.readouterr().out


def test_a_file_that_is_no_notebook_stops_no_other(tmp_path, capsys):
    folder = tmp_path / "in"
    folder.mkdir()
    (folder / "anna_09.ipynb").write_text("<html>", encoding="utf-8")
    (folder / "ben.ipynb").write_bytes(b"\xff\x00")
    write(folder / "carla.ipynb", "print('hello')")
    write(folder / "dora.ipynb", right(SEES))
    rows = graded(folder, tmp_path / "points.csv")
    assert rows["anna", SEES]["status"] == "unreadable" and rows["anna", SEES]["of"] == "1"
    assert rows["ben", ""]["status"] == "unreadable"
    assert "no exercise of the course" in rows["carla", ""]["message"]
    assert rows["dora", SEES]["status"] == "correct"
    printed = capsys.readouterr().out
    assert "[4 of 4] dora, 09_flash_attention: 1 of 18 points" in printed
    assert re.search(r"dora +1 +18\n", printed)


def test_every_file_that_is_not_graded_is_named_with_the_reason(tmp_path, capsys):
    folder = tmp_path / "in"
    write(folder / "anna" / "09.ipynb", right(SEES))
    (folder / "anna" / "08.html").write_text("<html>")
    (folder / "ben").mkdir()
    (folder / "ben" / "08.py").write_text("print()")
    (folder / "roster.csv").write_text("anna")
    rows = graded(folder, folder / "points.csv")  # beside them, and no hand-in itself
    assert (rows["anna", ""]["notebook"], rows["anna", ""]["status"]) == (
        "anna/08.html",
        "not graded",
    )
    assert rows["ben", ""]["message"] == "no notebook in the folder, only 08.py"
    printed = capsys.readouterr().out
    for name in ("anna/08.html", "ben/08.py", "roster.csv"):
        assert f"not graded: {name}: " in printed
    assert printed.count("hand in the .ipynb file") >= 2
    assert "points.csv:" not in printed


# --- what cannot be graded -----------------------------------------------------------------------


def test_a_folder_without_notebooks_and_no_folder_are_told(tmp_path):
    with pytest.raises(CourseError, match="is no folder"):
        grade_notebooks.main(tmp_path / "none", tmp_path / "points.csv", 60, 6.0)
    with pytest.raises(CourseError, match=r"no notebook in .*a subfolder of them for each learner"):
        grade_notebooks.main(tmp_path, tmp_path / "points.csv", 60, 6.0)


@pytest.mark.parametrize("seconds, memory", [(0, 6.0), (-1, 6.0), (60, 0.0), (60, float("nan"))])
def test_a_limit_that_makes_no_sense_is_told(tmp_path, seconds, memory):
    with pytest.raises(CourseError, match="both must be more than 0"):
        grade_notebooks.main(tmp_path, tmp_path / "points.csv", seconds, memory)


def test_points_that_cannot_be_written_are_told_before_anything_runs(tmp_path):
    write(tmp_path / "in" / "anna.ipynb", right(SEES))
    for out in (tmp_path, tmp_path / "none" / "points.csv"):
        with pytest.raises(CourseError, match=r"cannot write .*--out names another file"):
            grade_notebooks.main(tmp_path / "in", out, 60, 6.0)


@pytest.mark.slow
def test_the_command_grades_and_says_what_is_wrong(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("COURSE_ACTIVE", str(ROOT))
    assert course.main(["grade", str(tmp_path)]) == 1
    assert "error: no notebook in" in capsys.readouterr().err
    write(tmp_path / "in" / "anna.ipynb", checked(SEES, "return 3"))
    done = subprocess.run(
        [sys.executable, str(ROOT / "tools" / "course.py"), "grade", "in"],
        env={**os.environ, "COURSE_PYTHON": sys.executable},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr  # whatever the points
    for name in ("points", "points-moodle", "points-canvas"):
        assert (tmp_path / f"{name}.csv").exists()


# --- the whole course ---------------------------------------------------------------------------


# test_notebooks.py runs each notebook with all its solutions; here is what the grading makes of one
# that loads a model, and of one as it was handed out.


@pytest.mark.slow
def test_a_solved_notebook_has_full_marks(tmp_path, monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "1")  # twice as quick where cores are few or shared
    (path,) = (ROOT / "notebooks").glob("04_*.ipynb")
    (tmp_path / "solved").mkdir()
    (tmp_path / "solved" / path.name).write_text(json.dumps(solved(path)), encoding="utf-8")
    rows = graded(tmp_path / "solved", tmp_path / "points.csv", seconds=300)
    assert {name for _, name in rows} == {name for name in EXERCISES if name[:2] == "04"}
    assert {key: row["message"] for key, row in rows.items() if row["status"] != "correct"} == {}


@pytest.mark.slow
def test_a_blank_notebook_runs_to_its_end_without_points(tmp_path, monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    name = "01_attention_and_causal_masking"
    shutil.copy(ROOT / "notebooks" / f"{name}.ipynb", tmp_path)
    rows = graded(tmp_path, tmp_path / "points.csv", seconds=300)
    found = {name: row["status"] for (_, name), row in rows.items()}
    assert found.pop("01.find_the_bug") == "wrong"  # its cell holds the bug, not a blank
    assert set(found.values()) == {"blank"}
    assert all(row["points"] == "0" for row in rows.values())
