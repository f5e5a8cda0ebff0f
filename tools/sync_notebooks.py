"""What all notebooks share: Colab badge, bootstrap cell, navigation, normalised metadata.

Works on the notebooks' JSON with the standard library alone, so that it runs before any set-up.
"""

import json
import re
import sys
import tomllib
from pathlib import Path
from typing import Any

from course import ROOT, CourseError

NOTEBOOKS = ROOT / "notebooks"
MANAGED_CELLS = ("badge", "bootstrap", "navigation")
PROGRESS_BAR = re.compile(r"\d+%\|")
WIDGET_VIEW = "application/vnd.jupyter.widget-view+json"
ADDRESS = re.compile(r'(?m)^Repository = "https://github\.com/([\w.-]+/[\w.-]+)"$')
DOCUMENTS = ("README.md", "REPORT.md", "CITATION.cff")  # they name the address, too
ADDRESSES = re.compile(
    r"(https://(?:colab\.research\.google\.com/)?github(?:\.com)?/)[\w.-]+/[\w.-]+?(?=/blob/|\.git|\n)"
)
CLONED_FOLDER = re.compile(r"(git clone \S+\.git\ncd )[\w.-]+")

BOOTSTRAP = """\
# On a fresh machine (Colab, say) this fetches the course's package; elsewhere it does nothing.
import importlib.util

if importlib.util.find_spec("llama_int8") is None:
    %pip install -q git+https://github.com/{address}
    importlib.invalidate_caches()"""
BADGE = (
    "[![Open this notebook in Google Colab](https://colab.research.google.com/assets/colab-badge.svg)]"
    "(https://colab.research.google.com/github/{address}/blob/main/notebooks/{name}.ipynb)"
)


def main(check: bool = False, repository: str | None = None) -> int:
    """Bring every notebook up to date, or with `check` only name those that are not."""
    if repository is not None:
        if not re.fullmatch(r"[\w.-]+/[\w.-]+", repository):
            raise CourseError(f"repository is {repository!r}; it must be OWNER/NAME")
        _replace(ROOT / "pyproject.toml", ADDRESS, repository)
    address = repository_address()
    stale = []
    for path in notebook_paths():
        before = path.read_text(encoding="utf-8")
        after = dump(synced(read(path), path.stem, address))
        if after != before:
            stale.append(path)
            if not check:
                write(path, after)
    for path in (ROOT / name for name in DOCUMENTS):
        if path.exists():
            text = path.read_text(encoding="utf-8")
            current = ADDRESSES.sub(lambda m: m[1] + address, text)
            current = CLONED_FOLDER.sub(lambda m: m[1] + address.split("/")[1], current)
            if current != text:
                stale.append(path)
                if not check:
                    write(path, current)
    for path in stale:
        print(f"{'stale' if check else 'updated'}: {path.relative_to(ROOT)}")
    if check and stale:
        print("run `python3 tools/course.py sync`", file=sys.stderr)
    return int(check and bool(stale))


def repository_address() -> str:
    """OWNER/NAME, from the one place where it stands."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    return project["urls"]["Repository"].removeprefix("https://github.com/")


def notebook_paths() -> list[Path]:
    """The course's notebooks, without the "-Copy1" that JupyterLab makes of them."""
    return sorted(p for p in NOTEBOOKS.glob("*.ipynb") if re.fullmatch(r"\d\d_\w+", p.stem))


def synced(notebook: dict[str, Any], name: str, address: str) -> dict[str, Any]:
    """The notebook with its managed cells as they should be and its metadata normalised."""
    contents = {
        "badge": BADGE.format(address=address, name=name),
        "bootstrap": BOOTSTRAP.format(address=address),
        "navigation": navigation(name),
    }
    found = set()
    for cell in notebook["cells"]:
        if cell["id"] in contents:
            found.add(cell["id"])
            cell["source"] = contents[cell["id"]].splitlines(keepends=True)
    if missing := set(contents) - found:
        raise CourseError(f"{name} has no cell with the id {', '.join(sorted(missing))}")
    return normalised(notebook)


def navigation(name: str) -> str:
    """Links to the notebooks before and after."""
    names = [path.stem for path in notebook_paths()]
    here = names.index(name)
    links = []
    if here > 0:
        links.append(f"← [{title(names[here - 1])}]({names[here - 1]}.ipynb)")
    if here + 1 < len(names):
        links.append(f"[{title(names[here + 1])}]({names[here + 1]}.ipynb) →")
    return "---\n" + " · ".join(links) if links else "---"


def title(name: str) -> str:
    """The first heading of a notebook."""
    for cell in read(NOTEBOOKS / f"{name}.ipynb")["cells"]:
        for line in "".join(cell["source"]).splitlines():
            if cell["cell_type"] == "markdown" and line.startswith("# "):
                return line.removeprefix("# ")
    raise CourseError(f"{name} has no heading")


def normalised(notebook: dict[str, Any]) -> dict[str, Any]:
    """The notebook without what differs from run to run or from machine to machine.

    Gone are papermill's injected cell and stamps, widget states and views, progress bars; neighbouring
    pieces of one stream are joined (where they break depends on time), and cells are counted from 1.
    """
    cells, count = [], 0
    for cell in notebook["cells"]:
        tags = cell.get("metadata", {}).get("tags", [])
        if "injected-parameters" in tags:
            continue
        kept = {
            "cell_type": cell["cell_type"],
            "id": cell["id"],
            # Colab finds the cell of a link (#scrollTo=...) by the metadata, Jupyter by the cell's id.
            "metadata": {"id": cell["id"]} | ({"tags": tags} if tags else {}),
            "source": _lines(cell["source"]),
        }
        if cell["cell_type"] == "code":
            if cell.get("execution_count") is not None:
                count += 1
            kept["execution_count"] = count if cell.get("execution_count") is not None else None
            kept["outputs"] = _normalised_outputs(cell["outputs"], kept["execution_count"])
        cells.append(dict(sorted(kept.items())))
    return {
        "cells": cells,
        "metadata": {
            "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
            "language_info": {"name": "python"},
        },
        "nbformat": 4,
        "nbformat_minor": 5,
    }


def _normalised_outputs(outputs: list[dict[str, Any]], count: int | None) -> list[dict[str, Any]]:
    kept: list[dict[str, Any]] = []
    for output in outputs:
        if output["output_type"] == "stream":
            text = "".join(output["text"])
            if output["name"] == "stderr" and ("\r" in text or PROGRESS_BAR.search(text)):
                continue
            last = kept[-1] if kept else {}
            if last.get("name") == output["name"]:
                last["text"] = _lines("".join(last["text"]) + text)
                continue
            kept.append({"name": output["name"], "output_type": "stream", "text": _lines(text)})
        elif output["output_type"] in ("display_data", "execute_result"):
            data = {mime: d for mime, d in output["data"].items() if mime != WIDGET_VIEW}
            had_view = WIDGET_VIEW in output["data"]
            if not data or (had_view and set(data) == {"text/plain"}):
                continue  # nothing is left but the widget's name
            alt = output.get("metadata", {}).get("image/png", {}).get("alt")
            entry: dict[str, Any] = {
                "data": {
                    # nbformat keeps a picture as one string and text as lines
                    mime: _lines(d) if mime.startswith("text/") else d
                    for mime, d in sorted(data.items())
                },
                "metadata": {"image/png": {"alt": alt}} if alt else {},
                "output_type": output["output_type"],
            }
            if output["output_type"] == "execute_result":
                entry["execution_count"] = count
            kept.append(dict(sorted(entry.items())))
        else:
            kept.append(output)
    return kept


def _lines(text: str | list[str]) -> list[str]:
    return "".join(text).splitlines(keepends=True)


def read(path: Path) -> dict[str, Any]:
    """The notebook's JSON. Raises CourseError where it is none."""
    try:
        notebook = json.loads(path.read_text(encoding="utf-8"))
        notebook["cells"]
    except (ValueError, KeyError, TypeError) as error:
        raise CourseError(f"{path.name} is no notebook ({error}); restore it with git") from None
    for cell in notebook["cells"]:  # Colab keeps the id in the metadata alone
        if cell.setdefault("id", cell.get("metadata", {}).get("id")) is None:
            raise CourseError(f"{path.name} has a cell without an id; save it once in JupyterLab")
    return notebook


def dump(notebook: dict[str, Any]) -> str:
    return json.dumps(notebook, indent=1, ensure_ascii=False) + "\n"


def write(path: Path, text: str) -> None:
    """Write under a temporary name, then rename."""
    temporary = path.with_name(f".{path.name}.new")
    temporary.write_text(text, encoding="utf-8")
    temporary.replace(path)


def _replace(path: Path, pattern: re.Pattern[str], address: str) -> None:
    line = f'Repository = "https://github.com/{address}"'
    text, number = pattern.subn(lambda _: line, path.read_text(encoding="utf-8"))
    if number != 1:
        raise CourseError(f"{path.name} should hold one line like {line!r}, it holds {number}")
    write(path, text)
