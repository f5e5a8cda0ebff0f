"""Predictions: whatever a learner types, the notebook goes on; a guess is compared, marked and kept."""

import ast
import csv
import json
import re

import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import grade_notebooks
import make_report
import sync_notebooks
from compare_results import compare_folders
from hand_ins import HandedIn
from llama_int8.course import exercises, predict, start
from llama_int8.course.plots import GREY
from llama_int8.course.predict import Guess
from llama_int8.measure import results as results_module
from llama_int8.measure.results import Results
from llama_int8.profiles import resolve

NAME = "08.activations"
CHOICES = ("half", "the same", "more")


@pytest.fixture
def results(tmp_path, monkeypatch):
    monkeypatch.setattr(results_module, "environment", lambda device: {"machine": f"a-{device}"})
    notebook = "08_fp16_vs_int8"
    return Results(notebook, resolve(notebook, "cpu"), str(tmp_path))


@pytest.fixture
def lesson(results, monkeypatch):
    monkeypatch.setattr(start, "_running", results)
    return results


def on_disk(results):
    return json.loads(results.path.read_text(encoding="utf-8"))


# --- what a learner types -----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("typed", "value"),
    [
        (12, 12),
        (-0.5, -0.5),
        (0, 0),
        ("12", 12),
        ("12 %", 12),
        ("12%", 12),
        (" 1,200.5 ", 1200.5),
        ("\u22123", -3),
        (".5", 0.5),
        ("1e6", 1_000_000),
        (np.float32(0.5), 0.5),
        (np.int64(7), 7),
        (np.array(7), 7),
        (torch.tensor(2.5), 2.5),
        (1e300, 1e300),
    ],
)
def test_a_number_is_understood_however_it_is_written(typed, value, capsys):
    guess = predict.predict(NAME, typed, unit="%")
    assert guess.value == value and type(guess.value) in (int, float)
    assert capsys.readouterr().out == f"your guess: {predict._with_unit(value, '%')}\n"


def test_a_percent_sign_is_understood_where_no_unit_is_named():
    assert predict.predict(NAME, "12 %").value == 12


@pytest.mark.parametrize("blank", [None, ..., "", "  "])
def test_a_blank_is_no_mistake(blank, capsys):
    assert predict.predict(NAME, blank).value is None
    assert predict.predict(NAME, blank, unit="MB").value is None
    assert predict.predict(NAME, blank, choices=CHOICES).value is None
    assert capsys.readouterr().out.splitlines() == [
        "no guess yet: put a number in place of None, then run this cell again",
        "no guess yet: put a number (in MB) in place of None, then run this cell again",
        'no guess yet: put "half", "the same" or "more" in place of None, then run this cell again',
    ]


class Odd:
    def __repr__(self):
        raise RuntimeError("no")

    @property
    def ndim(self):
        raise RuntimeError("no")


@pytest.mark.parametrize(
    ("typed", "shown"),
    [
        ("many", "'many'"),
        ("0,5", "'0,5'"),
        ("12 GB", "'12 GB'"),
        (True, "True"),
        (np.bool_(True), "np.True_"),
        (float("nan"), "nan"),
        (float("inf"), "inf"),
        (np.float64("nan"), "np.float64(nan)"),
        ("nan", "'nan'"),
        ("9" * 400, "'9999"),
        (10**400, "10000"),
        (10**5000, "something of type int"),
        (1 + 2j, "(1+2j)"),
        ([1, 2], "[1, 2]"),
        (np.arange(100), "array([ 0, 1, 2,"),
        (torch.ones(2), "tensor([1., 1.])"),
        (print, "<built-in function print>"),
        (Odd(), "something of type Odd"),
    ],
    ids=lambda value: type(value).__name__,
)
def test_what_is_no_number_is_said_in_one_line_and_counts_as_blank(typed, shown, capsys, lesson):
    assert predict.predict(NAME, typed, unit="%").value is None
    line = capsys.readouterr().out
    assert line.startswith(f"no guess yet: expected a number such as 12 %, got {shown}")
    assert line.count("\n") == 1 and len(line) < 180
    assert not lesson.path.exists()


@given(st.one_of(st.text(), st.floats(), st.integers(), st.binary(), st.lists(st.none())))
def test_nothing_that_is_typed_stops_a_notebook(typed):
    for options in ({}, {"unit": "%"}, {"choices": CHOICES}):
        guess = predict.predict(NAME, typed, **options)
        guess.compare("more" if "choices" in options else 1.07)


def test_a_choice_is_one_of_the_choices_whatever_its_capitals(capsys):
    assert predict.predict(NAME, " The  Same", choices=CHOICES).value == "the same"
    assert predict.predict(NAME, "less", choices=CHOICES).value is None
    assert predict.predict(NAME, 2, choices=CHOICES).value is None
    expected = 'no guess yet: expected "half", "the same" or "more", got'
    assert capsys.readouterr().out.splitlines() == [
        "your guess: the same",
        f"{expected} 'less'; change it, or go on without",
        f"{expected} 2; change it, or go on without",
    ]


# --- beside the result --------------------------------------------------------------------------


def said(guess, measured, unit, capsys):
    Guess(NAME, guess, unit).compare(measured)
    return capsys.readouterr().out.removesuffix("\n")


@pytest.mark.parametrize(
    ("guess", "measured", "unit", "words"),
    [
        (12, 1.07, "%", "so your guess is 11 times too high."),
        (1, 2.5, "MB", "so your guess is 2.5 times too low."),
        (1000, 500, "", "so your guess is 2 times too high."),
        (55, 50, "%", "so your guess is 5 percentage points too high."),
        (900, 1000, "MB", "so your guess is 100 MB too low."),
        (0.3, 0.1 + 0.1, "", "so your guess is 0.1 too high."),
        (1.07, 1.07, "%", "so your guess is exactly right."),
        (3, np.float32(3), "", "so your guess is exactly right."),
        (0, 0.0, "%", "so your guess is exactly right."),
        (12, 0, "%", "so your guess is 12 percentage points too high."),
        (0, 12, "MB", "so your guess is 12 MB too low."),
        (-3, 2, "dB", "so your guess is 5 dB too low."),
        (-10, -2, "dB", "so your guess is 8 dB too low."),
        (5e9, 1, "", "so your guess is more than a million times too high."),
        (1e308, 1e-300, "", "so your guess is more than a million times too high."),
        (1e308, -1e308, "", "so your guess is far too high."),
        (12, float("inf"), "", "measured: infinity."),
        (12, float("-inf"), "", "measured: minus infinity."),
        (12, float("nan"), "", "measured: no number."),
        (12, "nothing", "%", "You guessed 12 %; measured: nothing, so your guess is not right."),
    ],
)
def test_a_sentence_says_how_far_off_a_guess_was(guess, measured, unit, words, capsys):
    sentence = said(guess, measured, unit, capsys)
    assert sentence.startswith("You guessed ") and sentence.endswith(words)


def test_the_sentence_holds_both_numbers_with_their_unit(capsys):
    expected = "You guessed 1,200 MB; measured: 12.5 MB, so your guess is 96 times too high."
    assert said(1200, torch.tensor(12.5), "MB", capsys) == expected
    assert said("half", "more", "", capsys) == (
        "You guessed half; measured: more, so your guess is not right."
    )
    assert said("more", "more", "", capsys).endswith("so your guess is right.")


def test_beside_a_blank_only_what_was_measured_is_said(capsys, lesson):
    assert said(None, 1.07, "%", capsys) == "Measured: 1.07 %"
    assert said(None, "more", "", capsys) == "Measured: more"


# --- in a figure --------------------------------------------------------------------------------


@pytest.fixture
def axes():
    drawn, axes = plt.subplots()
    axes.plot([1, 10], [1, 100])
    yield axes
    plt.close(drawn)


def arrows(axes):
    return [text for text in axes.texts if text.arrow_patch is not None]


@pytest.mark.parametrize("axis", ["x", "y"])
@pytest.mark.parametrize("scale", ["linear", "log", "symlog"])
@pytest.mark.parametrize("inverted", [False, True])
def test_a_guess_inside_is_a_dashed_grey_line_with_its_label(axes, axis, scale, inverted):
    axes.set(xscale=scale, yscale=scale)
    if inverted:
        axes.invert_xaxis()
        axes.invert_yaxis()
    before = axes.get_xlim(), axes.get_ylim()
    Guess(NAME, 5).mark(axes, axis)
    assert (axes.get_xlim(), axes.get_ylim()) == before
    line, (text,) = axes.lines[-1], axes.texts
    assert (line.get_linestyle(), line.get_color()) == ("--", GREY)
    assert set(line.get_xdata() if axis == "x" else line.get_ydata()) == {5}
    assert text.get_text() == "your guess" and arrows(axes) == []


@pytest.mark.parametrize("axis", ["x", "y"])
@pytest.mark.parametrize(
    ("value", "scale", "inverted", "end"),
    [
        (1e300, "linear", False, 1),
        (1e300, "log", True, 0),
        (-4, "linear", False, 0),
        (-4, "linear", True, 1),
        (0, "log", False, 0),
        (-4, "log", False, 0),
    ],
)
def test_a_guess_outside_is_an_arrow_at_that_edge(axes, axis, value, scale, inverted, end):
    axes.set(xscale=scale, yscale=scale)
    if inverted:
        axes.invert_xaxis()
        axes.invert_yaxis()
    before, lines = (axes.get_xlim(), axes.get_ylim()), len(axes.lines)
    Guess(NAME, value, "%").mark(axes, axis)
    axes.figure.canvas.draw()
    assert (axes.get_xlim(), axes.get_ylim()) == before and len(axes.lines) == lines
    (arrow,) = arrows(axes)
    assert arrow.get_text() == f"your guess: {predict._with_unit(value, '%')}"
    assert arrow.xy[axis == "y"] == end
    around, box = axes.get_window_extent(), arrow.get_window_extent()
    assert around.x0 <= box.x0 and box.x1 <= around.x1
    assert around.y0 <= box.y0 and box.y1 <= around.y1


def test_the_label_of_a_horizontal_mark_lies_on_no_data(axes):
    Guess(NAME, 99).mark(axes)
    axes.figure.canvas.draw()
    label = axes.texts[0].get_window_extent()
    assert label.x0 >= axes.get_window_extent().x1
    assert label.x1 <= axes.figure.bbox.x1  # and inside the figure


@pytest.mark.parametrize("value", [None, "more"])
def test_a_blank_and_a_text_draw_nothing(axes, value):
    lines = len(axes.lines)
    Guess(NAME, value).mark(axes)
    assert len(axes.lines) == lines and not axes.texts


# --- kept with the results ----------------------------------------------------------------------


def test_a_guess_is_kept_and_later_what_was_measured(lesson):
    guess = predict.predict(NAME, "12 %", unit="%")
    entry = {"guess": 12, "unit": "%", "measured": None}
    assert on_disk(lesson)["predictions"] == {NAME: entry}
    guess.compare(np.float64(1.07))
    lesson.record("speed", 1, "s")
    assert on_disk(lesson)["predictions"] == {NAME: entry | {"measured": 1.07}}


def test_the_same_name_again_replaces_a_guess_and_a_blank_takes_it_away(lesson):
    predict.predict(NAME, "half", choices=CHOICES)
    predict.predict("08.other", 3)
    predict.predict(NAME, "more", choices=CHOICES)
    found = on_disk(lesson)["predictions"]
    assert {name: entry["guess"] for name, entry in found.items()} == {NAME: "more", "08.other": 3}
    predict.predict(NAME, None)
    assert list(on_disk(lesson)["predictions"]) == ["08.other"]
    predict.predict("08.other", None)
    assert "predictions" not in on_disk(lesson)


def test_the_file_of_a_run_without_a_guess_knows_nothing_of_predictions(lesson):
    predict.predict(NAME, None).compare(1.07)
    assert not lesson.path.exists()
    lesson.record("speed", 1, "s")
    assert "predictions" not in on_disk(lesson)


@pytest.mark.parametrize("measured", [float("inf"), float("nan")])
def test_what_json_cannot_hold_is_not_kept(lesson, measured):
    predict.predict(NAME, 1).compare(measured)
    assert on_disk(lesson)["predictions"][NAME]["measured"] is None


def test_a_guess_belongs_to_the_lesson_that_was_started_last(tmp_path, monkeypatch):
    monkeypatch.setattr(start, "_running", None)
    predict.predict("00.speed", 1).compare(2)  # before any lesson: said, and kept nowhere
    folder = {"results_dir": str(tmp_path)}
    _, first = start.start_lesson("00_start_here", "smoke", changes=folder)
    guess = predict.predict("00.speed", 1)
    _, second = start.start_lesson("09_flash_attention", "smoke", changes=folder)
    predict.predict("09.speed", 2)
    guess.compare(3)  # of the first lesson still
    assert on_disk(first)["predictions"] == {"00.speed": {"guess": 1, "unit": "", "measured": 3}}
    assert list(on_disk(second)["predictions"]) == ["09.speed"]


def test_report_and_comparison_pass_predictions_over(lesson, tmp_path):
    lesson.record("speed", 1, "s")
    plain = lesson.path.with_name("plain")
    plain.mkdir()
    (plain / lesson.path.name).write_bytes(lesson.path.read_bytes())
    predict.predict(NAME, 12)
    ours = lesson.path.with_name("ours")
    ours.mkdir()
    lesson.path.rename(ours / lesson.path.name)
    assert compare_folders(plain, ours)[1] is False
    (run,) = [make_report._read_run(path) for path in ours.glob("*.json")]
    assert run["predictions"][NAME]["guess"] == 12


# --- notebooks ----------------------------------------------------------------------------------

ASSIGNED = re.compile(r"""(\w+) = predict\(\s*["']([^"']*)["'],\s*(\w+)""")


def code_cells(path):
    cells = sync_notebooks.read(path)["cells"]
    return ["".join(cell["source"]) for cell in cells if cell["cell_type"] == "code"]


@pytest.mark.parametrize("path", sync_notebooks.notebook_paths(), ids=lambda path: path.stem)
def test_a_notebooks_predictions_carry_its_number_are_blank_and_are_met_later(path):
    cells = code_cells(path)
    for number, cell in enumerate(cells):
        asked = grade_notebooks.PREDICTED.findall(cell)
        assigned = ASSIGNED.findall(cell)
        assert [name for _, name, _ in assigned] == asked
        for variable, name, value in assigned:
            assert re.fullmatch(rf"{path.stem[:2]}\.\w+", name) and value == "None"
            here = cell[cell.index(f'predict("{name}"') :]
            later = "\n".join([here, *cells[number + 1 :]])
            assert re.search(rf"\b{variable}\.(compare|mark)\(", later), f"{name} is never met"


@pytest.mark.parametrize("path", sync_notebooks.notebook_paths(), ids=lambda path: path.stem)
def test_a_guess_has_a_cell_of_its_own_so_that_it_stands_before_its_answer(path):
    for cell in code_cells(path):
        if "= predict(" in cell:
            body = ast.parse(cell).body
            assert all(isinstance(node, ast.Import | ast.ImportFrom | ast.Assign) for node in body)
            calls = [
                node.value for node in body if isinstance(getattr(node, "value", None), ast.Call)
            ]
            assert {ast.unparse(call.func) for call in calls} == {"predict"}, cell


def test_some_notebooks_ask_for_predictions_each_name_once():
    paths = sync_notebooks.notebook_paths()
    names = [n for p in paths for n in grade_notebooks.PREDICTED.findall("\n".join(code_cells(p)))]
    assert len(names) == len(set(names)) >= 2


# --- the grader's side --------------------------------------------------------------------------

COLUMNS = "07.columns_with_a_large_value"


def collected(lines, tmp_path, notebook="07_outliers_and_llm_int8"):
    """What the grader makes of lines that a notebook has written: guesses, and verdicts."""
    file = tmp_path / "verdicts"
    file.write_text("\n".join(lines), encoding="utf-8")
    found = grade_notebooks._lines(file, 0)
    guesses = {line["name"]: line for line in found if grade_notebooks._is_prediction(line)}
    handed_in = HandedIn("anna", "07.ipynb", tmp_path / "07.ipynb", notebook=notebook)
    verdicts = [line for line in found if grade_notebooks._is_verdict(line)]
    return grade_notebooks.predictions_of(handed_in, guesses), verdicts


def test_the_grader_collects_the_last_guess_of_a_name(tmp_path, monkeypatch):
    file = tmp_path / "verdicts.jsonl"
    monkeypatch.setattr(exercises, "VERDICTS", str(file))
    monkeypatch.setattr(start, "_running", None)
    predict.predict(COLUMNS, 50, unit="%")
    predict.predict(COLUMNS, "12 %", unit="%").compare(2.82)
    (found,), verdicts = collected(file.read_text().splitlines(), tmp_path)
    notebook = "07_outliers_and_llm_int8"
    assert found == grade_notebooks.Prediction("anna", notebook, COLUMNS, "12", "%", "2.82")
    assert verdicts == []
    predict.predict(COLUMNS, None)
    assert collected(file.read_text().splitlines(), tmp_path) == ([], [])


def forged(**line):
    return json.dumps({"kind": "prediction", "name": COLUMNS, "guess": 1} | line)


@pytest.mark.parametrize(
    "line",
    [
        "[1]",
        "null",
        "torn",
        '{"kind": "prediction"}',
        forged(name=[1]),
        forged(name="07.another"),
        forged(name="08.activations"),
        forged(name="07.outlier_columns"),  # an exercise's
        forged(guess=None),
        forged(guess=True),
        forged(guess=[1]),
        forged(guess={"a": 1}),
        forged(guess="\n"),
        f'{{"kind": "prediction", "name": "{COLUMNS}", "guess": {"9" * 5000}}}',
    ],
)
def test_a_line_that_is_no_prediction_of_this_notebook_is_passed_over(line, tmp_path):
    assert collected([line], tmp_path) == ([], [])


def test_a_forged_guess_is_a_short_text_that_no_spreadsheet_computes(tmp_path):
    line = forged(guess="=HYPERLINK(1)\n" + "x" * 1000, unit="@x", measured=["no"])
    (found,), _ = collected([line], tmp_path)
    assert found.guess.startswith("'=HYPERLINK(1) x") and len(found.guess) <= 101
    assert (found.unit, found.measured) == ("'@x", "")


@pytest.mark.slow
def test_grade_writes_predictions_beside_the_points_where_there_are_any(tmp_path):
    from test_grading import write

    folder, out = tmp_path / "in", tmp_path / "in" / "points.csv"  # among what was handed in
    beside = tmp_path / "in" / "points-predictions.csv"
    ask = "from llama_int8.course.predict import predict\n"
    check = "from llama_int8.course import exercises\nexercises.check('08.longest_context', None)"
    write(folder / "ben" / "08.ipynb", f"{ask}guess = predict('{NAME}', None)", check)
    assert grade_notebooks.main(folder, out, 60, 6.0) == 0
    assert out.exists() and not beside.exists()
    asks = f"{ask}guess = predict('{NAME}', '50 %', unit='%')"
    write(folder / "anna" / "08.ipynb", asks, "guess.compare(151)", check)
    for _ in range(2):  # the second time they are there already
        assert grade_notebooks.main(folder, out, 60, 6.0) == 0
        with beside.open(encoding="utf-8", newline="") as file:
            (row,) = csv.DictReader(file)
        assert row == {
            "learner": "anna",
            "notebook": "08_fp16_vs_int8",
            "name": NAME,
            "guess": "50",
            "unit": "%",
            "measured": "151",
        }
