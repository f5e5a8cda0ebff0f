"""The parts that all notebooks share: Colab badge, bootstrap cell, navigation, normalised metadata.

Works on the notebooks' JSON with only the standard library, so that it runs before any set-up.
"""

import ast
import json
import re
import sys
import tomllib
from functools import cache
from pathlib import Path
from typing import Any

import addresses
from common import ROOT, TOOLS, CourseError
from llama_int8.files import write_all

NOTEBOOKS = ROOT / "notebooks"
MANAGED_CELLS = ("badge", "bootstrap", "navigation")
PROGRESS_BAR = re.compile(r"\d+%\|")
WIDGET_VIEW = "application/vnd.jupyter.widget-view+json"
# What may hold the repository's address besides the notebooks.
DOCUMENTS = ("*.md", "*.cff", "pyproject.toml", "notebooks/*.md", "tools/*.md")
OWN_FILES = ("pyproject.toml", "CITATION.cff")  # name no repository but the course's
GENERATED = re.compile(r"<!-- begin (\w+) -->\n.*?<!-- end \1 -->", re.DOTALL)

LESSONS = TOOLS / "llama_int8" / "lessons"
CHECKED = re.compile(r"""\bexercises\.check\(\s*["'](\d\d\.\w+)["'],\s*(\w+),?\s*\)""")
SOLUTION_ID = "-solution"
SOLUTION = """\
<details>
<summary>One solution</summary>

```python
{code}
```

</details>"""

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
    """Bring every notebook and document up to date, or with `check` only name those that are not.

    `repository`: the new address, in any form that people paste. Raises CourseError; then nothing
    has been written.
    """
    address = repository_address() if repository is None else addresses.parse(repository)
    stale = changes(address)
    if not check:
        try:
            write_all(stale)
        except OSError as error:
            what = error.filename or "a file"
            raise CourseError(f"{what}: {error.strerror}; nothing has been changed") from None
    for path in stale:
        print(f"{'stale' if check else 'updated'}: {path.relative_to(ROOT)}")
    if check and stale:
        option = "" if repository is None else f" --repository {address}"
        print(f"run `python3 tools/course.py sync{option}`", file=sys.stderr)
    return int(check and bool(stale))


def changes(address: str) -> dict[Path, str]:
    """The new text of every notebook and document that is not as it should be."""
    notebooks = {path: read(path) for path in notebook_paths()}
    documents = [path for pattern in DOCUMENTS for path in sorted(ROOT.glob(pattern))]
    texts = {path: _text(path) for path in documents}
    if (number := len(addresses.PYPROJECT.findall(texts.get(ROOT / "pyproject.toml", "")))) != 1:
        raise CourseError(
            'pyproject.toml should hold one line like Repository = "https://github.com/'
            f'{address}", it holds {number}'
        )
    names = [path.stem for path in notebooks]
    earlier = {known for p, text in texts.items() for known in _addresses_of(p, text, names)}
    for notebook in notebooks.values():
        earlier |= _addresses_in(notebook, names)
    wanted = {
        path: addresses.mended(text, address, earlier, names, own_file=_is_own(path))
        for path, text in texts.items()
    }
    found = {}
    for path, notebook in notebooks.items():
        texts[path] = path.read_text(encoding="utf-8")
        for cell in notebook["cells"]:
            source = "".join(cell["source"])
            cell["source"] = _lines(addresses.mended(source, address, earlier, names))
        found[path] = dump(synced(notebook, path.stem, address))
    return {path: text for path, text in (found | wanted).items() if text != texts[path]}


def _is_own(path: Path) -> bool:
    return path.parent == ROOT and path.name in OWN_FILES


def _addresses_of(path: Path, text: str, names: list[str]) -> set[str]:
    """The addresses in those parts of a document where readers put no links of their own."""
    if _is_own(path):
        return addresses.own(text, names)
    if path == ROOT / "README.md":
        blocks = "\n".join(match[0] for match in GENERATED.finditer(text))
        return addresses.own(blocks, names)
    return set()


def _addresses_in(notebook: dict[str, Any], names: list[str]) -> set[str]:
    """The addresses in the cells that this module writes."""
    managed = {cell["id"]: "".join(cell["source"]) for cell in notebook["cells"]}
    fetched = addresses.BOOTSTRAP.findall(managed.get("bootstrap", ""))
    return addresses.own(managed.get("badge", ""), names) | addresses.parsed(fetched)


def repository_address() -> str:
    """OWNER/NAME, from the one place where it stands. Raises CourseError where it cannot be read."""
    try:
        project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
        return addresses.parse(project["urls"]["Repository"])
    except (ValueError, KeyError, TypeError, AttributeError, CourseError) as error:
        raise CourseError(
            f"pyproject.toml names no repository ({error}); "
            "`python3 tools/course.py sync --repository OWNER/NAME` writes it there"
        ) from None


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
    return normalised(with_solutions(notebook, name))


def with_solutions(notebook: dict[str, Any], name: str) -> dict[str, Any]:
    """The notebook with a folded solution below each cell that checks an exercise.

    Raises CourseError for an exercise that the lesson does not have.
    """
    cells = []
    for cell in notebook["cells"]:
        if is_solution(cell["id"]):
            continue
        cells.append(cell)
        source = "".join(cell["source"]) if cell["cell_type"] == "code" else ""
        shown = []
        for exercise, function in CHECKED.findall(source):
            known = references(exercise.partition(".")[0])
            if exercise not in known:
                raise CourseError(
                    f"{name}, cell {cell['id']}: no exercise is called {exercise!r}; that lesson has "
                    f"{', '.join(known) or 'none'}"
                )
            shown.append(re.sub(r"^def \w+", f"def {function}", known[exercise], count=1))
        if shown:
            text = SOLUTION.format(code="\n\n\n".join(shown))
            new = {"cell_type": "markdown", "id": cell["id"] + SOLUTION_ID, "metadata": {}}
            cells.append({**new, "source": _lines(text)})
    return {**notebook, "cells": cells}


def is_solution(cell_id: str) -> bool:
    return cell_id.endswith(SOLUTION_ID)


@cache
def references(number: str) -> dict[str, str]:
    """Source of each exercise's reference of a lesson, by the exercise's name.

    Read from the text, not imported: `sync` runs before any package is installed.
    """
    file = LESSONS / f"n{number}" / "exercises.py"
    if not file.exists():
        return {}
    text = file.read_text(encoding="utf-8")
    found = {}
    for node in ast.parse(text).body:
        for decorator in getattr(node, "decorator_list", []):
            if isinstance(decorator, ast.Call) and ast.unparse(decorator.func) == "exercise":
                found[decorator.args[0].value] = ast.get_source_segment(text, node)
    return found


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

    Removes papermill's injected cell and stamps, widget states and views, and progress bars. Joins
    neighbouring pieces of a stream (where they break depends on time), and counts cells from 1.
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
    """The notebook's JSON. Raises CourseError where it is not JSON."""
    try:
        notebook = json.loads(path.read_text(encoding="utf-8-sig"))  # an editor may add the mark
        notebook["cells"]
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise CourseError(f"{path.name} is not a notebook ({error}); restore it with git") from None
    for cell in notebook["cells"]:  # Colab keeps the id only in the metadata
        if cell.setdefault("id", cell.get("metadata", {}).get("id")) is None:
            raise CourseError(f"{path.name} has a cell without an id; save it once in JupyterLab")
    return notebook


def dump(notebook: dict[str, Any]) -> str:
    return json.dumps(notebook, indent=1, ensure_ascii=False) + "\n"


def _text(path: Path) -> str:
    """A document with its line ends as they are. Raises CourseError where it is not UTF-8."""
    try:
        return path.read_bytes().decode()
    except UnicodeDecodeError as error:
        raise CourseError(f"{path.name} is not UTF-8 text ({error}); restore it with git") from None
