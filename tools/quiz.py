"""quiz: five questions per lesson, for Moodle (GIFT) and for paper or a forum (Markdown).

The questions lie in `llama_int8/data/quiz.yaml`. GIFT: https://docs.moodle.org/en/GIFT_format
"""

import random
import re
from collections.abc import Mapping, Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any

import yaml

Question = Mapping[str, Any]  # question and right, wrong; or question and number, tolerance, why


def questions() -> dict[str, list[Question]]:
    """The questions of each lesson, by its number: "00", "01", ..."""
    text = (files("llama_int8") / "data" / "quiz.yaml").read_text(encoding="utf-8")
    return yaml.safe_load(text)


def main(folder: Path) -> int:
    """Write a GIFT file per lesson, and Markdown with and without answers. Raises OSError."""
    folder.mkdir(parents=True, exist_ok=True)
    for number, asked in questions().items():
        (folder / f"{number}.gift").write_text(gift(number, asked), encoding="utf-8")
        (folder / f"{number}.md").write_text(markdown(number, asked), encoding="utf-8")
        paper = markdown(number, asked, answers=False)
        (folder / f"{number}-to-print.md").write_text(paper, encoding="utf-8")
    print(f"{len(questions())} lessons: {folder}/NN.gift for Moodle, NN.md to read with answers,")
    print("NN-to-print.md for paper, without them")
    return 0


def gift(number: str, asked: Sequence[Question]) -> str:
    """A lesson's questions in GIFT. Moodle shuffles the answers itself."""
    found = [f"$CATEGORY: LLaMA in 8 bits/Lesson {number}"]
    for place, entry in enumerate(asked, start=1):
        title = f"::{number}.{place}::[plain]{_escaped(entry['question'])}"
        if "number" in entry:
            answers = [f"#{entry['number']}:{entry['tolerance']}####{_escaped(entry['why'])}"]
        else:
            answers = [f"={_escaped(entry['right'])}"]
            answers += [f"~{_escaped(a)}#{_escaped(why)}" for a, why in entry["wrong"].items()]
        found.append("\n".join([f"{title} {{", *(f"  {answer}" for answer in answers), "}"]))
    return "\n\n".join(found) + "\n"


def _escaped(text: str) -> str:
    """Text in which GIFT's own signs stand for themselves."""
    return re.sub(r"([\\~=#{}:])", r"\\\1", text)


def markdown(number: str, asked: Sequence[Question], answers: bool = True) -> str:
    """A lesson's questions to read, with each answer folded below it if `answers`."""
    found = [f"# Quiz for lesson {number}"]
    for place, entry in enumerate(asked, start=1):
        found.append(f"**{place}.** {entry['question']}")
        if "number" in entry:
            answer = f"{entry['number']}. {entry['why']}"
        else:
            choices = [entry["right"], *entry["wrong"]]
            random.Random(f"{number}.{place}").shuffle(choices)
            letters = dict(zip(choices, "abcd", strict=False))
            found.append("\n".join(f"- {letters[choice]}) {choice}" for choice in choices))
            reasons = [f"- {letters[wrong]}) {why}" for wrong, why in entry["wrong"].items()]
            answer = "\n".join(
                [f"{letters[entry['right']]}) is right. The others:", "", *sorted(reasons)]
            )
        if answers:
            found.append(f"<details>\n<summary>Answer</summary>\n\n{answer}\n\n</details>")
    return "\n\n".join(found) + "\n"
