"""The quiz: five sound questions per lesson, and files that Moodle reads back as they were meant."""

import math
import re

import pytest

import quiz
import sync_notebooks

QUESTIONS = quiz.questions()
EVERY = [(f"{n}.{k}", q) for n, asked in QUESTIONS.items() for k, q in enumerate(asked, start=1)]
NUMBERS = {
    "00.3": 40e9 / 2e9,
    "01.3": 100 * math.exp(math.log(3)) / (1 + math.exp(math.log(3))),
    "03.1": 4 * 2 * (2 * 8) * 2,
    "04.3": 32 / 8,
    "05.1": 2e12 / 7e9,
    "06.1": round(1 / (3 / 127)),
    "06.5": (32 * 4 + 16) / 32,
    "09.1": 4096 * 4096 * 2 / 2**20,
    "09.2": math.exp(1) / math.exp(3),
    "10.2": (32 * 8 + 32) / 32,
    "10.5": 12 / 10,
}


def test_each_lesson_has_five_questions():
    assert [path.stem[:2] for path in sync_notebooks.notebook_paths()] == sorted(QUESTIONS)
    assert {len(asked) for asked in QUESTIONS.values()} == {5}


@pytest.mark.parametrize(("name", "entry"), EVERY, ids=[name for name, _ in EVERY])
def test_a_question_has_one_answer_and_a_reason_against_each_other_one(name, entry):
    if "number" in entry:
        assert entry.keys() == {"question", "number", "tolerance", "why"}
        assert abs(NUMBERS[name] - entry["number"]) <= entry["tolerance"] < 0.05 * entry["number"]
    else:
        assert entry.keys() == {"question", "right", "wrong"} and len(entry["wrong"]) == 3
        assert len({entry["right"], *entry["wrong"]}) == 4 and all(entry["wrong"].values())


def read_back(text):
    """Questions of a GIFT file, by the rules of Moodle's manual: title, text, answers."""
    sign = r"(?:\\.|[^\\~=#{}])"  # one sign of a text, escaped or its own
    for title, asked, body in re.findall(
        rf"::([\d.]+)::\[plain\]({sign}+?) \{{\n(.*?)\n\}}", text, re.S
    ):
        found = [
            re.fullmatch(rf"  ([=~])({sign}+)(?:#({sign}+))?", line) for line in body.split("\n")
        ]
        yield title, re.sub(r"\\(.)", r"\1", asked), body, found


@pytest.mark.parametrize("number", sorted(QUESTIONS))
def test_gift_can_be_read_back(number):
    back = list(read_back(quiz.gift(number, QUESTIONS[number])))
    assert [title for title, *_ in back] == [f"{number}.{k}" for k in range(1, 6)]
    for entry, (_, asked, body, found) in zip(QUESTIONS[number], back, strict=True):
        assert asked == entry["question"]
        if "number" in entry:
            plain = re.sub(r"\\(.)", r"\1", body)
            assert plain == f"  #{entry['number']}:{entry['tolerance']}####{entry['why']}"
        else:
            clean = [[re.sub(r"\\(.)", r"\1", part or "") for part in m.groups()] for m in found]
            assert clean[0] == ["=", entry["right"], ""]
            assert [(a, why) for _, a, why in clean[1:]] == list(entry["wrong"].items())


def test_signs_that_gift_uses_are_escaped():
    entry = {"question": "a = {b}: ~c # \\d?", "number": 1, "tolerance": 0, "why": "1 = 1"}
    (line, *_) = quiz.gift("00", [entry]).splitlines()[2:]
    assert line == r"::00.1::[plain]a \= \{b\}\: \~c \# \\d? {"


@pytest.mark.parametrize("number", sorted(QUESTIONS))
def test_the_page_names_the_right_letter_and_the_right_answer_has_no_place_of_its_own(number):
    text = quiz.markdown(number, QUESTIONS[number])
    for entry in (entry for entry in QUESTIONS[number] if "right" in entry):
        (letter,) = re.findall(rf"^- ([a-d])\) {re.escape(entry['right'])}$", text, re.M)
        after = text[text.index(entry["question"]) :]
        assert re.search(r"([a-d])\) is right", after)[1] == letter


def test_right_answers_stand_at_every_letter():
    pages = (quiz.markdown(number, asked) for number, asked in QUESTIONS.items())
    letters = re.findall(r"([a-d])\) is right", "\n".join(pages))
    assert set(letters) == set("abcd") and max(map(letters.count, "abcd")) < len(letters) / 2


def test_a_right_answer_is_not_given_away_by_its_length():
    """The longest of four is right in a quarter of the questions if length says nothing."""
    choices = [entry for _, entry in EVERY if "right" in entry]
    longest = [entry for entry in choices if len(entry["right"]) > max(map(len, entry["wrong"]))]
    shortest = [entry for entry in choices if len(entry["right"]) < min(map(len, entry["wrong"]))]
    assert max(len(longest), len(shortest)) <= len(choices) / 4


def test_the_paper_has_every_question_and_no_answer():
    for number, asked in QUESTIONS.items():
        paper = quiz.markdown(number, asked, answers=False)
        assert all(entry["question"] in paper for entry in asked)
        assert "Answer" not in paper and ") is right" not in paper
        assert not any(entry["why"] in paper for entry in asked if "number" in entry)


def test_the_command_writes_three_files_per_lesson(tmp_path):
    assert quiz.main(tmp_path / "new" / "folder") == 0
    written = {path.name for path in (tmp_path / "new" / "folder").iterdir()}
    kinds = (".gift", ".md", "-to-print.md")
    assert written == {f"{number}{kind}" for number in QUESTIONS for kind in kinds}
