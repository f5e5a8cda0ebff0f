"""What a grading writes for Moodle and Canvas: accounts, points per lesson, and what stays empty."""

import csv
import json

import pytest
from conftest import ROOT

import course
import grade_notebooks
import gradebooks
import isolation
from common import CourseError
from gradebooks import Row

FLASH, LLAMA = "09_flash_attention", "04_llama_from_scratch"
GUESSED = "09.scores_share"
ROWS = [
    Row("anna", FLASH, "09.merge", "correct", 2, 2),
    Row("anna", FLASH, "09.sees", "wrong", 0, 1),
    Row("anna", LLAMA, "04.rotate", "correct", 1, 1),
    Row("ben", FLASH, "09.merge", "blank", 0, 2),
    Row("ben", FLASH, "09.sees", "correct", 1, 1),
    Row("ben", LLAMA, "04.rotate", "unreadable", 0, 1),
    Row("ben", "notes.pdf", "", "not graded", 0, 0),
    Row("carla", "-", "", "missing", 0, 0),
]
ACCOUNTS = (
    "learner,email,id,username,name,section\nanna,a@x.org,17,anna1,Anna Ay,B\ndora,d@x.org,,,,\n"
)


def table(path):
    with path.open(encoding="utf-8", newline="") as text:
        return list(csv.reader(text))


def canvas_reads(path):
    """Points by account, as Canvas's importer finds them (gradebook_importer.rb in its source)."""
    header, possible, *students = table(path)
    assert "Student" in header[0] and "ID" in header[1]
    assert (header[2], header[3]) == ("SIS User ID", "SIS Login ID") and "Section" in header[4]
    assert "Points Possible" in possible[0]
    found = {}
    for name, number, user, login, _section, *points in students:
        assert number == ""  # Canvas's own number, which nobody here knows
        found[user or login or name] = dict(zip(header[5:], points, strict=True))
    return dict(zip(header[5:], possible[5:], strict=True)), found


@pytest.fixture
def written(tmp_path):
    (tmp_path / "learners.csv").write_text(ACCOUNTS)
    accounts = gradebooks.read_learners(tmp_path / "learners.csv")
    gradebooks.write(ROWS, tmp_path / "points.csv", accounts)
    return gradebooks.paths(tmp_path / "points.csv")


def test_moodle_gets_a_column_per_account_and_per_lesson(written):
    assert table(written[0]) == [
        ["Learner", "Email address", "ID number", "Username", LLAMA, FLASH],
        ["anna", "a@x.org", "17", "anna1", "1", "2"],
        ["ben", "", "", "", "", "1"],  # what could not be read is no zero
        ["carla", "", "", "", "", ""],
    ]


def test_canvas_finds_each_account_and_the_points_that_are_possible(written):
    possible, found = canvas_reads(written[1])
    assert possible == {LLAMA: "1", FLASH: "3"}
    assert found == {
        "17": {LLAMA: "1", FLASH: "2"},
        "ben": {LLAMA: "", FLASH: "1"},
        "carla": {LLAMA: "", FLASH: ""},
    }
    assert table(written[1])[2][:5] == ["Anna Ay", "", "17", "anna1", "B"]


def test_who_lacks_an_account_or_a_hand_in_is_named(tmp_path):
    (tmp_path / "learners.csv").write_text(ACCOUNTS)
    accounts = gradebooks.read_learners(tmp_path / "learners.csv")
    unknown, absent, empty = gradebooks.remarks(gradebooks.collect(ROWS), accounts)
    assert unknown.endswith("the folder's name stands there: ben; carla")
    assert absent.endswith("nothing handed in: dora")
    assert empty.endswith(f"left empty: ben, {LLAMA}")


def test_without_a_table_the_folders_names_stand_there_and_that_is_said(tmp_path, capsys):
    gradebooks.write(ROWS, tmp_path / "points.csv", {})
    assert "--learners TABLE" in capsys.readouterr().out
    moodle, canvas = gradebooks.paths(tmp_path / "points.csv")
    assert table(moodle)[0] == ["Learner", LLAMA, FLASH]
    assert canvas_reads(canvas)[1].keys() == {"anna", "ben", "carla"}


def test_a_login_may_be_an_email():
    points = gradebooks.collect(ROWS[:1])
    row = gradebooks.for_canvas(points, {"anna": {"email": "a@x.org", "id": ""}})[2]
    assert row[:4] == ["anna", "", "", "a@x.org"]


@pytest.mark.parametrize(
    "text", ["learner;email\nJosé;j@x.org\n", "\ufeffLearner,Email\nJosé, j@x.org\n"]
)
def test_a_table_is_read_as_spreadsheets_write_it(text, tmp_path):
    (tmp_path / "learners.csv").write_text(text, encoding="utf-8")
    assert gradebooks.read_learners(tmp_path / "learners.csv") == {"José": {"email": "j@x.org"}}


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"name,email\nanna,a@x.org\n", "has the columns name, email; it needs 'learner'"),
        (b"learner,points\nanna,3\n", "one or more of 'email', 'id', 'username'"),
        (b"", "has the columns none"),
        (b"learner,id\nanna,1\nanna,2\n", "names 'anna' twice"),
        ("learner,id\nJosé,1\n".encode("cp1252"), "is not UTF-8; save it as"),
    ],
)
def test_a_table_that_cannot_be_used_is_refused_before_anything_runs(content, says, tmp_path):
    (tmp_path / "learners.csv").write_bytes(content)
    with pytest.raises(CourseError, match=says):
        grade_notebooks.main(tmp_path, tmp_path / "points.csv", 60, 6.0, tmp_path / "learners.csv")


@pytest.fixture
def ten_hand_ins(tmp_path, monkeypatch):
    """Ten learners' folders with two lessons each, of which learner n has solved n exercises a lesson.

    Everything but the kernels is real: these verdicts stand where a run would give them.
    """
    monkeypatch.setattr(isolation, "states", lambda *_places, **_more: {})
    for number in range(10):
        for name in (FLASH, LLAMA):
            content = json.loads((ROOT / "notebooks" / f"{name}.ipynb").read_text(encoding="utf-8"))
            content["cells"].append(
                {"cell_type": "markdown", "metadata": {}, "source": str(number)}
            )
            folder = tmp_path / "in" / f"learner {number}"
            folder.mkdir(parents=True, exist_ok=True)
            (folder / f"{name}.ipynb").write_text(json.dumps(content), encoding="utf-8")

    def solved(cells, notebook, _limits):
        count = int(cells[-1]["source"])
        names = grade_notebooks.courses_notebooks()[notebook]
        verdicts = ["correct"] * count + ["blank"] * len(names)
        found = {n: (v, "") for n, v in zip(names, verdicts, strict=False)}
        guess = {"name": GUESSED, "guess": 10 * count, "unit": "%", "measured": 98}
        return grade_notebooks.Outcome(found, {GUESSED: guess})

    monkeypatch.setattr(grade_notebooks, "judge_cells", solved)
    lines = [f"learner {number},{number}@x.org" for number in range(10)]
    (tmp_path / "learners.csv").write_text("\n".join(["learner,email", *lines]))
    return tmp_path


def test_ten_hand_ins_become_ten_rows_that_agree_with_the_points(ten_hand_ins, monkeypatch):
    monkeypatch.setenv("COURSE_ACTIVE", str(ROOT))
    out, learners = ten_hand_ins / "points.csv", ten_hand_ins / "learners.csv"
    command = ["grade", str(ten_hand_ins / "in"), "--out", str(out), "--learners", str(learners)]
    assert course.main(command) == 0
    with out.open(encoding="utf-8", newline="") as text:
        rows = list(csv.DictReader(text))
    moodle, canvas = gradebooks.paths(out)
    header, *lines = table(moodle)
    assert header == ["Learner", "Email address", LLAMA, FLASH] and len(lines) == 10
    possible, found = canvas_reads(canvas)
    for name in (LLAMA, FLASH):
        own = [e for e in grade_notebooks.courses_notebooks()[name]]
        assert possible[name] == str(sum(grade_notebooks.EXERCISES[e].points for e in own))
        for learner, email, *_ in lines:
            earned = sum(
                int(r["points"]) for r in rows if (r["learner"], r["notebook"]) == (learner, name)
            )
            assert found[email][name] == str(earned)
            assert lines[int(email[0])][header.index(name)] == str(earned)
    assert len({line[3] for line in lines}) > 5  # not all the same


def test_ten_hand_ins_become_one_picture_of_ten_guesses(ten_hand_ins, monkeypatch, capsys):
    monkeypatch.setenv("COURSE_ACTIVE", str(ROOT))
    out = ten_hand_ins / "points.csv"
    assert course.main(["grade", str(ten_hand_ins / "in"), "--out", str(out)]) == 0
    capsys.readouterr()
    guesses, pictures = ten_hand_ins / "points-predictions.csv", ten_hand_ins / "pictures"
    assert course.main(["predictions", str(guesses), str(pictures)]) == 0
    line = next(line for line in capsys.readouterr().out.splitlines() if GUESSED in line)
    assert line.split() == [GUESSED, "10", "45", "%", "98", "%"]
    assert [path.name for path in pictures.iterdir()] == [f"{GUESSED}.png"]


def test_both_files_are_written_anew_from_the_points_without_a_run(
    ten_hand_ins, monkeypatch, capsys
):
    monkeypatch.setenv("COURSE_ACTIVE", str(ROOT))
    out = ten_hand_ins / "points.csv"
    assert course.main(["grade", str(ten_hand_ins / "in"), "--out", str(out)]) == 0
    before = table(gradebooks.paths(out)[0])
    monkeypatch.delattr(grade_notebooks, "judge_cells")  # so that nothing can run
    capsys.readouterr()
    again = ["grade", str(out), "--learners", str(ten_hand_ins / "learners.csv")]
    assert course.main(again) == 0, capsys.readouterr()
    after = table(gradebooks.paths(out)[0])
    assert after[0][1] == "Email address" and [r[:1] + r[2:] for r in after] == before


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("a,b\n1,2\n", "is no file of points"),
        (
            "learner,notebook,exercise,status,points,of\nanna,09,09.sees,correct,half,1\n",
            "points 'half' of '1', which are no whole numbers",
        ),
    ],
)
def test_another_file_in_place_of_the_points_is_refused(text, says, tmp_path):
    (tmp_path / "points.csv").write_text(text)
    with pytest.raises(CourseError, match=says):
        gradebooks.main(tmp_path / "points.csv", None)
