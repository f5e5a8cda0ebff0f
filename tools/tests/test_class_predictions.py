"""What a class guessed: the table, the pictures, and files that are something else."""

import csv

import matplotlib.pyplot as plt
import pytest

import class_predictions
from common import CourseError
from grade_notebooks import PREDICTION_COLUMNS


@pytest.fixture
def guesses(tmp_path):
    rows = [("08.activations", value, "%", "2.82") for value in ("10", "50", "2", "1000", "40")]
    rows += [("09.loop", value, "", "faster") for value in ("slower", "slower", "faster")]
    file = tmp_path / "points-predictions.csv"
    with file.open("w", newline="") as text:
        table = csv.writer(text)
        table.writerow(PREDICTION_COLUMNS)
        for number, (name, guess, unit, measured) in enumerate(rows):
            line = {"learner": f"learner {number}", "notebook": name[:2], "name": name}
            line |= {"guess": guess, "unit": unit, "measured": measured}
            table.writerow([line[column] for column in PREDICTION_COLUMNS])
    return file


def test_numbers_have_a_median_and_texts_the_commonest(guesses, tmp_path, capsys):
    assert class_predictions.main(guesses, tmp_path / "a" / "pictures") == 0
    first, second = capsys.readouterr().out.splitlines()[1:3]
    assert first.split() == ["08.activations", "5", "40", "%", "2.82", "%"]
    assert second.split() == ["09.loop", "3", "slower", "faster"]
    names = {path.name for path in (tmp_path / "a" / "pictures").iterdir()}
    assert names == {"08.activations.png", "09.loop.png"}


def test_each_guess_is_drawn_and_so_is_what_was_measured(guesses):
    asked = class_predictions.by_question(guesses.parent)
    (axes,) = class_predictions.histogram("08.activations", asked["08.activations"]).axes
    assert sum(bar.get_height() for bar in axes.patches) == 5
    assert axes.get_xscale() == "log" and axes.lines[0].get_xdata()[0] == 2.82
    (axes,) = class_predictions.histogram("09.loop", asked["09.loop"]).axes
    heights = {tick.get_text(): bar.get_height() for tick, bar in zip(
        axes.get_xticklabels(), axes.patches, strict=True)}  # fmt: skip
    assert heights == {"slower": 2, "faster": 1}
    colours = [bar.get_facecolor() for bar in axes.patches]
    assert colours[0] != colours[1]
    plt.close("all")


@pytest.mark.parametrize("measured", ["", "undecided"])
def test_guesses_are_drawn_where_nothing_or_a_text_was_measured(measured):
    rows = [{"name": "08.a", "guess": g, "unit": "%", "measured": measured} for g in ("1", "3")]
    (axes,) = class_predictions.histogram("08.a", rows).axes
    assert sum(bar.get_height() for bar in axes.patches) == 2 and not axes.lines
    plt.close("all")


@pytest.mark.parametrize(
    ("text", "says"),
    [("learner,points\nanna,3\n", "no file of guesses"), ("", "no file of guesses")],
)
def test_another_file_is_refused(text, says, tmp_path):
    file = tmp_path / "points-predictions.csv"
    file.write_text(text)
    with pytest.raises(CourseError, match=says):
        class_predictions.main(file, tmp_path / "pictures")


def test_a_folder_without_guesses_says_what_collects_them(tmp_path):
    with pytest.raises(CourseError, match="`grade FOLDER` collects them"):
        class_predictions.main(tmp_path, tmp_path / "pictures")
