"""Hand-ins as platforms, browsers and learners name them: each is somebody's, or told why not."""

import io
import json
import os
import zipfile
from pathlib import Path

import pytest

import hand_ins
from common import CourseError

START, SCRATCH, OUTLIERS, FLASH = (
    "00_start_here",
    "04_llama_from_scratch",
    "07_outliers_and_llm_int8",
    "09_flash_attention",
)
EXERCISE = {
    START: "00.int8_bytes",
    SCRATCH: "04.rotate",
    OUTLIERS: "07.kept_share",
    FLASH: "09.sees",
}


def notebook(name: str = FLASH, *, ids: bool = False, code: str | None = None) -> bytes:
    """A notebook as a file holds it, with one cell."""
    code = f"exercises.check({EXERCISE[name]!r}, f)" if code is None else code
    cell = {"cell_type": "code", "metadata": {}, "source": code, "outputs": []}
    cell |= {"execution_count": None} | ({"id": "exercise-rms-norm"} if ids else {})
    content = {"cells": [cell], "metadata": {}, "nbformat": 4, "nbformat_minor": 4 + ids}
    return json.dumps(content).encode()


def zipped(files: dict[str, bytes]) -> bytes:
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w") as archive:
        for number, (name, data) in enumerate(files.items()):
            archive.writestr(zipfile.ZipInfo(name, (2026, 11, 1, 10, number, 0)), data)
    return content.getvalue()


def found(folder: Path, files: dict[str, bytes]) -> tuple[list, list]:
    """What becomes of these files, written in this order, a second apart."""
    for number, (name, content) in enumerate(files.items()):
        path = folder / "in" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
        os.utime(path, (1e9 + number, 1e9 + number))
    return hand_ins.find(folder / "in", folder / "unpacked")


def counted(papers: list) -> dict[str, list[str]]:
    """By learner the files that count."""
    by_learner: dict[str, list[str]] = {}
    for one in papers:
        if not one.counts and one.path:
            by_learner.setdefault(one.learner, []).append(one.shown)
    return by_learner


# --- platforms


MOODLE = {
    "Jane Doe_12345_assignsubmission_file_/00_start_here.ipynb": notebook(START),
    "Jane Doe_12345_assignsubmission_onlinetext_/onlinetext.html": b"<p>Here it is.</p>",
    "Zoë Ångström_12399_assignsubmission_file/solution.ipynb": notebook(START),
}
OF_MOODLE = {"Jane Doe", "Zoë Ångström"}


@pytest.mark.parametrize(
    "files",
    [
        MOODLE,
        {"LLaMA-HW1-4711.zip": zipped(MOODLE)},
        {"downloads/LLaMA-HW1-4711.zip": zipped(MOODLE)},
        {name.replace("_/", "/").replace("/", "_"): content for name, content in MOODLE.items()},
    ],
    ids=["folders", "download all", "in a folder", "without folders"],
)
def test_moodles_names_give_the_learners(files, tmp_path):
    papers, others = found(tmp_path, files)
    assert {one.learner for one in papers} == OF_MOODLE
    assert {one.notebook for one in papers} == {START}
    assert all("export" in o.reason or "archive" in o.reason for o in others)


def test_two_learners_of_one_name_are_told_apart_by_the_platforms_number(tmp_path):
    folder = "Jane Doe_{}_assignsubmission_file_/09.ipynb"
    papers, _ = found(tmp_path, {folder.format(n): notebook() for n in (11, 12)})
    assert set(counted(papers)) == {"Jane Doe (11)", "Jane Doe (12)"}


def test_canvas_names_give_the_learner_and_the_latest_attempt(tmp_path):
    late = "doejane_LATE_123_457_00_start_here-1.ipynb"
    files = {
        late: notebook(START),
        "doejane_123_456_00_start_here.ipynb": notebook(START),  # older, though written later
        "roerick_124_458_homework.zip": zipped({"a/b/09.ipynb": notebook()}),
        "leeann_125_459_report.html": b"<html>",
    }
    papers, others = found(tmp_path, files)
    roes = "roerick_124_458_homework.zip/a/b/09.ipynb"
    assert counted(papers) == {"doejane": [late], "roerick": [roes]}
    (earlier,) = (one for one in papers if one.counts)
    assert (earlier.shown, earlier.counts) == ("doejane_123_456_00_start_here.ipynb", late)
    (missing,) = (one for one in papers if not one.path)
    assert missing.learner == "leeann" and "report.html" in missing.problem
    (export,) = others
    assert "hand in the .ipynb file" in export.reason


def test_blackboards_names_give_the_learner_and_the_latest_attempt(tmp_path):
    name = "HW_1_jdoe_attempt_2026-11-0{}-10-00-00_00_start_here.ipynb".format
    files = {name(2): notebook(START), name(1): notebook(START)}
    files["HW_1_jdoe_attempt_2026-11-02-10-00-00.txt"] = b"Name: Jane Doe (jdoe)"
    papers, others = found(tmp_path, files)
    assert counted(papers) == {"jdoe": [name(2)]}
    assert [other.shown for other in others] == ["HW_1_jdoe_attempt_2026-11-02-10-00-00.txt"]


@pytest.mark.parametrize(
    "middles, learners",
    [
        (("HW1_a_smith", "HW1_b_smith"), {"a_smith", "b_smith"}),
        (("HW_1_a_smith", "HW_1_jones"), {"a_smith", "jones"}),
        (("HW1_a", "HW1_a_b"), {"a", "a_b"}),
        (("HW1_a_smith", "HW2_b_smith"), {"HW1_a_smith", "HW2_b_smith"}),  # no title in common
        (("HW1_a_smith", "HW1_a_jones"), {"smith", "jones"}),
    ],
)
@pytest.mark.parametrize("place", ["{}.ipynb", "{}.zip", "{n}/{}.ipynb"])
def test_blackboards_learners_with_underscores_stay_apart(middles, learners, place, tmp_path):
    files = {}
    for number, middle in enumerate(middles):
        name = f"{middle}_attempt_2026-11-0{number + 1}-10-00-00_08"
        zips = place.endswith(".zip")
        files[place.format(name, n=number)] = (
            zipped({"09.ipynb": notebook()}) if zips else notebook()
        )
    papers, _ = found(tmp_path, files)
    assert counted(papers).keys() == learners


@pytest.mark.parametrize(
    "names",
    [
        "course-04-05-2024-10-11-12/{}/notebooks/09.ipynb",
        "Klasse 7b/{}/09.ipynb",
        "Klasse 7b/{}_09.ipynb",
        "Klasse 7b/Aufgabe/{}/09.ipynb",
        "week1/{}/09.ipynb",
        "2026/{}/attempt1/09.ipynb",
        "submitted/{}/ps4/09.ipynb",
        "class.zip/{}/09.ipynb",
        "drive-download-20240501T101112Z-001/{}/09.ipynb",
        "drive-download-20240501T101112Z-00{n}/{}/09.ipynb",
        "Homework-20240501T101112Z-1-00{n}/Homework/{}/09.ipynb",
        "Klasse 7{n}/{}/09.ipynb",
    ],
)
def test_a_folder_around_the_learners_is_nobodys(names, tmp_path):
    files = {names.format(who, n=n): notebook() for n, who in enumerate(("jane", "john"), 1)}
    files["roster.csv"] = b"jane, john"  # a file beside it changes nothing
    papers, _ = found(tmp_path, files)
    assert counted(papers) == {
        who: [names.format(who, n=n)] for n, who in ((1, "jane"), (2, "john"))
    }
    assert hand_ins.unclear(papers) == []


def test_a_learner_without_a_notebook_is_missed_inside_the_folder_around(tmp_path):
    (tmp_path / "in" / "Klasse 7b" / "zoe").mkdir(parents=True)
    files = {f"Klasse 7b/{who}/09.ipynb": notebook() for who in ("jane", "john")}
    papers, _ = found(tmp_path, {**files, "Klasse 7b/kim/report.pdf": b"%PDF"})
    assert {one.learner for one in papers if not one.path} == {"kim", "zoe"}


def test_one_learners_folders_are_nobody_elses(tmp_path):
    files = {
        "jane/Assignment 4/Version 1/09.ipynb": notebook(),
        "jane/Assignment 4/Version 2/09.ipynb": notebook(),
    }
    papers, _ = found(tmp_path, files)
    assert counted(papers) == {"jane": ["jane/Assignment 4/Version 2/09.ipynb"]}


def test_where_it_is_unclear_whose_a_file_is_both_are_graded_and_it_is_said(tmp_path):
    files = {
        "anna/09.ipynb": notebook(),
        "blue/jane/09.ipynb": notebook(),
        "blue/john/09.ipynb": notebook(),
        "blue/john/04.ipynb": notebook(SCRATCH),
        "blue/notes.pdf": b"%PDF",
    }
    papers, others = found(tmp_path, files)
    first, jane, john, johns, _ = files
    assert {who: set(shown) for who, shown in counted(papers).items()} == {
        "anna": {first},
        "blue/jane": {jane},
        "blue/john": {john, johns},
    }
    assert all(one.path and not one.counts for one in papers)
    lines = hand_ins.unclear(papers)
    assert len(lines) == 3 and not any(first in line for line in lines)
    assert f"{jane}; graded on its own, as blue/jane's" in lines[0]
    assert [(other.learner, other.shown) for other in others] == [("", "blue/notes.pdf")]


def test_learners_of_one_name_in_two_classes_stay_apart(tmp_path):
    files = {f"Klasse 7{n}/{who}/09.ipynb": notebook() for n in "ab" for who in ("jane", "john")}
    papers, _ = found(tmp_path, files)
    assert counted(papers) == {name.removesuffix("/09.ipynb"): [name] for name in files}


def test_copies_that_nothing_names_are_two_peoples_and_it_is_said(tmp_path):
    copies = ("Copy of 09_flash_attention (1).ipynb", "Copy of 09_flash_attention.ipynb")
    papers, _ = found(tmp_path, {name: notebook() for name in copies})
    assert counted(papers) == {"in": [copies[0]], "in (2)": [copies[1]]}
    assert [name in line for name, line in zip(copies, hand_ins.unclear(papers), strict=True)] == [
        True,
        True,
    ]


def test_iliass_folder_around_the_learners_is_nobodys(tmp_path):
    files = {
        "Abgaben/Doe_Jane_jdoe_123/20261102100000_09.ipynb": notebook(),
        "Abgaben/Doe_Jane_jdoe_123/20261101100000_09.ipynb": notebook(),
        "Abgaben/Roe_Rick_rroe_124/20261101100000_09.ipynb": notebook(),
    }
    papers, _ = found(tmp_path, files)
    first, _, third = files
    assert counted(papers) == {"Doe_Jane_jdoe_123": [first], "Roe_Rick_rroe_124": [third]}


def test_a_checkout_of_each_learner_gives_its_notebooks_and_one_line_for_the_rest(tmp_path):
    rest = ("tools/course.py", "tools/llama_int8/files.py", "results/a.json", ".git/HEAD")
    files = {f"hw1-submissions/hw1-{who}/{name}": b"" for who in ("jane", "rick") for name in rest}
    for who in ("jane", "rick"):
        files[f"hw1-submissions/hw1-{who}/notebooks/{FLASH}.ipynb"] = notebook()
        files[f"hw1-submissions/hw1-{who}/notebooks/{OUTLIERS}.ipynb"] = notebook(OUTLIERS)
    papers, others = found(tmp_path, files)
    assert {who: len(shown) for who, shown in counted(papers).items()} == {
        "hw1-jane": 2,
        "hw1-rick": 2,
    }
    assert [other.learner for other in others] == ["hw1-jane", "hw1-rick"]
    assert all("a checkout of the course: 3 files" in other.reason for other in others)


def test_a_zip_file_for_each_learner_and_one_for_the_class(tmp_path):
    files = {
        "anna.zip": zipped({"notebooks/09.ipynb": notebook(), "__MACOSX/._09.ipynb": b"\0"}),
        "ben.zip": zipped({"again.zip": zipped({"09.ipynb": notebook()})}),
    }
    papers, others = found(tmp_path / "each", files)
    assert set(counted(papers)) == {"anna", "ben"} and others == []
    flat = zipped({"anna_09.ipynb": notebook(), "ben_09.ipynb": notebook()})
    papers, _ = found(tmp_path / "flat", {"class.zip": flat})
    assert set(counted(papers)) == {"anna", "ben"}


def test_a_zip_file_writes_nowhere_else(tmp_path):
    files = {"anna/a.zip": zipped({"../../../evil.ipynb": notebook(), "/tmp/x.ipynb": notebook()})}
    papers, _ = found(tmp_path, files)
    assert len(papers) == 2
    assert all(one.path.resolve().is_relative_to(tmp_path / "unpacked") for one in papers)


# --- names and kinds of files


@pytest.mark.parametrize(
    "name, learner",
    [
        ("Copy of 09_flash_attention anna.ipynb", "anna"),
        ("Anna Lee - Copy of 09_flash_attention.ipynb", "Anna Lee"),
        ("anna_Copy_of_08_flash_attention.ipynb", "anna"),
        ("Copy_of_anna_09.ipynb", "anna"),
        ("anna - Kopie von 09.ipynb", "anna"),
        ("anna - Kopie 09.ipynb", "anna"),
        ("Copy of 09_flash_attention.ipynb", "in"),
        ("Kopie von anna_09.ipynb", "anna"),
        ("Copie de 09_flash_attention (1) anna.ipynb", "anna"),
        ("Cópia de anna 09.ipynb", "anna"),
        ("anna 09 - Copy (2).ipynb", "anna"),
        ("anna-flash_attention.ipynb", "anna"),
        ("Anna Lee - 09_flash_attention.ipynb", "Anna Lee"),
        ("anna_08.IPYNB", "anna"),
        ("anna_09.ipynb.json", "anna"),
        ("anna_09.ipynb.txt", "anna"),
        ("anna_08.json", "anna"),
    ],
)
def test_a_file_beside_others_is_known_under_any_usual_name(name, learner, tmp_path):
    papers, others = found(tmp_path, {name: notebook()})
    assert counted(papers) == {learner: [name]} and others == []


def test_a_number_of_two_digits_is_the_notebooks_if_there_is_one(monkeypatch):
    more = {**hand_ins.courses_notebooks(), "11_what_comes_next": []}
    monkeypatch.setattr(hand_ins, "courses_notebooks", lambda: more)
    assert hand_ins.learner_of(Path("anna_11.ipynb"), Path("x")) == "anna"
    assert hand_ins.learner_of(Path("anna_12.ipynb"), Path("x")) == "anna_12"
    assert hand_ins.learner_of(Path("2010 anna 09.ipynb"), Path("x")) == "2010 anna"
    assert hand_ins.which_notebook([], "anna_11") == "11_what_comes_next"
    assert hand_ins.which_notebook([], "anna_110") is None


def test_a_notebook_is_known_by_exercises_ids_heading_or_the_words_of_its_name():
    def cell(kind, text, **more):
        return {"cell_type": kind, "source": text, **more}

    which = hand_ins.which_notebook
    assert which([cell("code", "check('04.rotate', f)")], "notebook 5 FINAL") == SCRATCH
    assert which([cell("code", "x", id="exercise-rms-norm")], "homework") == SCRATCH
    colabs = cell("code", "x", metadata={"id": "exercise-rms-norm"})
    assert which([colabs], "homework") == SCRATCH
    assert which([cell("markdown", "# 04 LLaMA from scratch\n\nText")], "homework") == SCRATCH
    assert which([], "LLaMA from Scratch, anna") == SCRATCH
    assert which([cell("code", "x", id="bootstrap")], "homework") is None  # all notebooks have one


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-32"])
def test_a_notebook_is_read_in_any_unicode_encoding(encoding, tmp_path):
    path = tmp_path / "a.ipynb"
    path.write_bytes(notebook(code="# größer ≥ 1").decode().encode(encoding))
    cells, problem = hand_ins.read_cells(path)
    assert problem == "" and cells[0]["source"] == "# größer ≥ 1"


@pytest.mark.parametrize(
    "content, words",
    [
        (b"", "it is empty, 0 bytes"),
        (b"\xef\xbb\xbf\n<!DOCTYPE html>", "a web page; hand in the .ipynb file"),
        (zipped({"a": b""}), "a zip file"),
        (b"%PDF-1.7", "a PDF file"),
        (b"version https://git-lfs.github.com/spec/v1", "a pointer of Git LFS"),
        (b'{"cells": [\n<<<<<<< HEAD\n', "marks of a merge conflict"),
        (notebook()[:60], "NotJSONError"),
        (b'{"cells": [], "metadata": {}, "nbformat": 4, "nbformat_minor": 4}', "holds no cells"),
    ],
)
def test_what_is_wrong_with_a_file_is_said(content, words, tmp_path):
    (tmp_path / "a.ipynb").write_bytes(content)
    cells, problem = hand_ins.read_cells(tmp_path / "a.ipynb")
    assert cells == [] and words in problem


def test_every_file_is_somebodys_or_told(tmp_path):
    locked = bytearray(zipped({"09.ipynb": notebook()}))
    for place in (6, locked.index(b"PK\1\2") + 8):  # the flags, in both of its places
        locked[place] |= 1
    files = {
        "anna/09.ipynb": notebook(),
        "anna/report.html": b"<html>",
        "anna/08.py": b"print()",
        "ben/homework.rar": b"Rar!",
        "ben/broken.zip": b"PK",
        "ben/locked.zip": bytes(locked),
        "ben/data.csv": b"1",
        "carla/notes.txt": b"hello",
        "carla/09.ipynb.crdownload": notebook()[:50],
        "dora/.ipynb_checkpoints/08-checkpoint.ipynb": notebook(),
        "roster.csv": b"anna",
        "emil/env/pyvenv.cfg": b"",
        "emil/env/lib/a.py": b"",
    }
    papers, others = found(tmp_path, files)
    (tmp_path / "in" / "emil" / "lost.ipynb").symlink_to(tmp_path / "gone")
    papers, others = hand_ins.find(tmp_path / "in", tmp_path / "unpacked")
    reasons = {other.shown: other.reason for other in others}
    expected = {
        "anna/report.html": "an export",
        "anna/08.py": "an export",
        "ben/homework.rar": "unpack it and grade again",
        "ben/broken.zip": "cannot be read",
        "ben/locked.zip/09.ipynb": "locked by a password",
        "ben/data.csv": "no notebook",
        "carla/notes.txt": "no notebook",
        "roster.csv": "no notebook",
        "emil/env/": "a Python environment",
        "emil/lost.ipynb": "a link to a folder, or to nothing",
    }
    assert reasons.keys() == expected.keys()
    assert all(words in reasons[name] for name, words in expected.items())
    assert counted(papers) == {"anna": ["anna/09.ipynb"], "carla": ["carla/09.ipynb.crdownload"]}
    missing = {one.learner: one.problem for one in papers if not one.path}
    assert missing.keys() == {"ben", "dora", "emil"}
    assert "only broken.zip, data.csv, homework.rar" in missing["ben"]
    assert missing["dora"] == "no notebook in the folder"


def test_a_folder_with_exports_only_is_told_what_it_holds(tmp_path):
    with pytest.raises(CourseError, match=r"no notebook in .*It holds anna/report\.html"):
        found(tmp_path, {"anna/report.html": b"<html>"})


# --- attempts


def test_the_latest_attempt_of_a_learner_counts_in_whatever_folder(tmp_path):
    files = {
        "anna/attempt1/09.ipynb": notebook(),
        "anna/attempt2/09.ipynb": notebook(),
        "anna_09.ipynb": notebook(),
        "ben_09.ipynb": notebook(),
        "ben_09 (1).ipynb": notebook(),
        "carla/09 final.ipynb": notebook(),
        "carla/09 final FINAL.ipynb": b"half a file",  # later, and cannot be read
    }
    papers, _ = found(tmp_path, files)
    assert counted(papers) == {
        "anna": ["anna_09.ipynb"],
        "ben": ["ben_09 (1).ipynb"],
        "carla": ["carla/09 final.ipynb"],
    }
    instead = {one.shown: one.counts for one in papers if one.counts}
    assert instead["anna/attempt1/09.ipynb"] == "anna_09.ipynb"
    assert instead["ben_09.ipynb"] == "ben_09 (1).ipynb"
    assert len(papers) == len(files)


def test_a_notebook_of_another_edition_is_named_as_such(tmp_path):
    cells = [
        {"cell_type": "code", "source": f"f = exercises.check('{name}', f)"}
        for name in ("04.spacing", "04.zero_point", "04.restored", "04.layer_bytes")
    ]
    assert hand_ins._of_another_edition(cells) == (
        "none of its exercises (04.spacing, 04.zero_point, 04.restored, ...) is in this edition of "
        "the course; hand in the notebook of this edition"
    )
    known = {"cell_type": "code", "source": "f = exercises.check('06.spacing', f)"}
    assert hand_ins._of_another_edition([*cells, known]) == ""
    assert hand_ins._of_another_edition([]) == ""
