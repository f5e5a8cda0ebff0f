"""The bibliography: every paper, repository and table that the course cites, with the lessons.

Nothing is typed in here: papers come from the references in lessons and report, the rest from
`llama_int8/data`.
"""

import re
from collections import defaultdict
from pathlib import Path

import sync_notebooks
from common import ROOT

# "Vaswani et al., *Attention Is All You Need*, 2017, [arXiv:1706.03762](...)", or without the title.
NAME = r"[A-Z][\w'’-]+"
CITED = re.compile(
    rf"((?:{NAME}(?:(?:, | and |, and ){NAME})*(?: et al\.)?)(?:,? \*[^*\n]+\*(?: \([^)]*\))?)?"
    r"),? \(?(\d{4}), \[arXiv:(\d{4}\.\d{5})\]"
)
ARXIV = re.compile(r"\[arXiv:(\d{4}\.\d{5})\]")
BARE = re.compile(r"(?<!\[)arXiv:(\d{4}\.\d{5})")
REPORT = "the report"


def bibliography(notebooks: list[Path]) -> str:
    """The page, in Markdown, for the folder `reference/` of the site."""
    texts = {path.stem: prose(path) for path in notebooks}
    texts[REPORT] = (ROOT / "REPORT.md").read_text(encoding="utf-8")
    return "\n".join(
        [
            "# Bibliography",
            "",
            "Made from the references in lessons and report and from the course's own data; the "
            "lessons that cite a source are named after it.",
            "",
            "## Papers",
            "",
            *papers(texts),
            "",
            "## Others' measurements",
            "",
            *measurements(),
            "",
            "## Numbers of the LLaMA family",
            "",
            *family(),
            "",
            "## Claims on trial",
            "",
            *claims(notebooks),
            "",
        ]
    )


def prose(path: Path) -> str:
    """The text of a notebook, without its code."""
    cells = sync_notebooks.read(path)["cells"]
    return "\n\n".join("".join(c["source"]) for c in cells if c["cell_type"] == "markdown")


def papers(texts: dict[str, str]) -> list[str]:
    """A line for each paper on arXiv: its fullest citation, and where it is cited."""
    citations: dict[str, str] = {}
    places = defaultdict(list)
    for where, text in texts.items():
        for work, year, number in CITED.findall(text):
            # With a title before without one, and the longer title.
            either = (citations.get(number, ""), f"{work}, {year}, ")
            citations[number] = max(either, key=lambda citation: ("*" in citation, len(citation)))
        for number in dict.fromkeys(ARXIV.findall(text)):
            places[number].append(where)
    lines = []
    for number, cited in places.items():
        link = f"[arXiv:{number}](https://arxiv.org/abs/{number})"
        links = ", ".join(place_link(where) for where in cited)
        lines.append(f"- {citations.get(number, '')}{link}. Cited in {links}.")
    return sorted(lines)


def place_link(where: str) -> str:
    return "[the report](../REPORT.md)" if where == REPORT else lesson_link(where)


def lesson_link(name: str) -> str:
    return f"[lesson {name[:2]}](../notebooks/{name}.ipynb)"


def linked(source: str) -> str:
    return BARE.sub(r"[arXiv:\1](https://arxiv.org/abs/\1)", source)


def measurements() -> list[str]:
    """The published tables that ours are compared with."""
    from llama_int8.data import load

    return [
        f"- **{table['title']}.** {linked(table['source'])}. {table['note'].strip()}"
        for table in load("published").values()
    ]


def family() -> list[str]:
    """The papers and model cards of which lesson 05 takes sizes, tokens and hours."""
    from llama_int8.data import load

    return [f"- {linked(source)}." for source in load("llama_papers")["sources"].values()]


def claims(notebooks: list[Path]) -> list[str]:
    """The claims for which a source can be cited, with the lesson that tries them."""
    from llama_int8.course.claims import often_heard
    from llama_int8.data import load

    known = {path.stem for path in notebooks}
    return [
        f"- \u201c{entry['claim'].strip()}\u201d ({linked(entry['source'])})."
        + (f" Tried in {lesson_link(entry['notebook'])}." if entry.get("notebook") in known else "")
        for entry in load("claims").values()
        if not often_heard(entry)
    ]
