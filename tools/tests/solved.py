"""A learner's notebook made from the course's own: blank, solved, or with an answer of choice."""

import inspect
import json
import re
from pathlib import Path

from conftest import ROOT

from llama_int8.classroom import exercises

CELL = re.compile(
    r"""(?P<before>.*?)^def (?P<name>\w+)\("""
    r""".*?(?P<check>^\w+ = exercises\.check\(\s*"(?P<exercise>[^"]+)".*)\Z""",
    re.MULTILINE | re.DOTALL,
)


def answered(source: str, answer: str | None = None) -> str:
    """An exercise cell with `answer` (a function's source) in place of the learner's function.

    Without one, the reference solution. A cell without an exercise comes back as it is.
    """
    cell = CELL.match(source)
    if cell is None:
        return source
    text = answer or inspect.getsource(exercises.find(cell["exercise"]).reference)
    theirs = re.findall(r"(?m)^def (\w+)", text)[-1]
    return f"{cell['before']}{text}\n\n{cell['name']} = {theirs}\n{cell['check']}"


def solved_notebook(name: str) -> dict:
    """The course's notebook of this name with every exercise solved."""
    notebook = json.loads((ROOT / "notebooks" / f"{name}.ipynb").read_text(encoding="utf-8"))
    for cell in notebook["cells"]:
        if cell["cell_type"] == "code":
            cell["source"] = answered("".join(cell["source"]))
    return notebook


def write(notebook: dict, path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(notebook), encoding="utf-8")
    return path
