"""site: the course as a website, from the notebooks as they are stored; nothing is executed.

The pages are copied into a temporary folder that is laid out as the repository is, so that links
between them keep working; a link to any other file of the repository becomes one to GitHub. Sphinx
builds from there (`site/conf.py`), and the folder is replaced as a whole at the end.
"""

import ast
import base64
import html
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import make_report
import sync_notebooks
from bibliography import bibliography
from build_slides import DECKS, Deck, deck_paths, read_deck, write_decks
from common import ROOT, TOOLS, CourseError

MARK = ".course-site"  # in the folder: the names of what `site` has put there
PACKAGE = TOOLS / "llama_int8"
HOME = "index.md"
# Sections of README that are about the repository, not about the course.
LEFT_OUT = ("On your own machine", "Where the rest is")
# What the sidebar calls a page whose own heading would say too little there.
SHORT = {
    "REPORT.md": "Report",
    "notebooks/HANDOUTS.md": "Formulas and glossary",
    "tools/README.md": "Map of the code",
}
BADGE = re.compile(
    r"\[!\[[^\]]*\]\(https://colab\.research\.google\.com/assets/[^)]*\)\]\(([^)\s]+)\)"
)
LINK = re.compile(r"(\]\()([^()\s]+)(\))")
SCROLL = re.compile(
    r"https://colab\.research\.google\.com/github/[^()\s]*/notebooks/(\w+)\.ipynb#scrollTo=([\w-]+)"
)
CODE = re.compile(r"(^```.*?^```[ \t]*$|``.+?``|`[^`\n]+`)", re.M | re.S)  # no links are in here
GITHUBS_FORMULA = re.compile(r"\$`([^`\n]+)`\$")
HEADING = re.compile(r"^#{1,6} +(.+?) *#*$", re.M)


def main(folder: Path) -> int:
    """Build the site into a folder. Raises CourseError for a folder that holds other things."""
    folder = folder.resolve()
    check_folder(folder)
    start = time.monotonic()
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{folder.name}-", dir=folder.parent) as temporary:
        work = Path(temporary)
        decks = add_decks(work / "pages")
        files = Sources(sync_notebooks.repository_address(), decks).files()
        for name, content in files.items():
            path = work / "sources" / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content if isinstance(content, bytes) else content.encode())
        build(work)
        names = sorted(path.name for path in (work / "pages").iterdir())
        (work / "pages" / MARK).write_text("\n".join(names) + "\n", encoding="utf-8")
        replace(folder, work / "pages", work / "old")
    number = sum(1 for name in files if name.endswith((".md", ".ipynb")))
    print(f"{number} pages in {time.monotonic() - start:.0f} s. Open {folder / 'index.html'}")
    return 0


def check_folder(folder: Path) -> None:
    """Raise CourseError where replacing the folder would delete what `site` has not made."""
    if not folder.exists():
        return
    if not folder.is_dir():
        raise CourseError(f"{folder} is a file; name a folder for the site")
    there = {path.name for path in folder.iterdir()}
    made = (folder / MARK).read_text(encoding="utf-8").split("\n") if MARK in there else []
    if others := sorted(there - {MARK, *made}):
        shown = ", ".join(others[:3]) + (" and more" if len(others) > 3 else "")
        raise CourseError(
            f"{folder} holds {shown}, which `site` did not write and would delete; name an empty "
            "folder, or one that holds an earlier site and nothing else"
        )


def replace(folder: Path, pages: Path, old: Path) -> None:
    """Put the new pages in the folder's place; on failure the old ones come back."""
    if folder.exists():
        folder.rename(old)
    try:
        pages.rename(folder)
    except OSError:
        if old.exists():
            old.rename(folder)
        raise


def add_decks(pages: Path) -> list[Deck]:
    """Build the slides into `slides/` beside the pages. Raises CourseError."""
    report = make_report.Report(ROOT)
    decks = [read_deck(path, report) for path in deck_paths(DECKS)]
    write_decks(decks, pages / "slides")
    return decks


def build(work: Path) -> None:
    """Run Sphinx. Raises CourseError with what it complains about, such as a broken link."""
    jobs = str(min(4, os.cpu_count() or 1))
    command = [sys.executable, "-m", "sphinx", "--builder=html", "--quiet", "--fail-on-warning"]
    command += ["--keep-going", f"--jobs={jobs}", f"--conf-dir={TOOLS / 'site'}"]
    command += [f"--doctree-dir={work / 'doctrees'}", str(work / "sources"), str(work / "pages")]
    path = os.pathsep.join(filter(None, [str(TOOLS), os.environ.get("PYTHONPATH")]))
    environment = {**os.environ, "PYTHONPATH": path}  # conf.py and autodoc import from here
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    if done.returncode:
        said = done.stderr.replace(f"{work / 'sources'}{os.sep}", "").strip()
        raise CourseError(f"Sphinx could not build the site; it says:\n{said}")
    pages = work / "pages"
    # Sphinx's notes for its next build, and what the theme was made from.
    for path in [pages / ".buildinfo", *pages.rglob("*.map"), *pages.rglob("*webpack-macros.html")]:
        path.unlink(missing_ok=True)
    if (pages / "_sources").exists():
        (pages / "_sources").rmdir()  # nothing is copied into it


# --- the sources


@dataclass
class Sources:
    """The pages of the site as Sphinx reads them: path in the site's sources, and content."""

    address: str  # OWNER/NAME
    decks: list[Deck]
    images: dict[str, bytes] = field(default_factory=dict)
    cells: set[tuple[str, str]] = field(
        default_factory=set
    )  # (notebook, cell) that a page links to

    def __post_init__(self) -> None:
        paths = [
            *sync_notebooks.notebook_paths(),
            ROOT / "REPORT.md",
            *sorted((ROOT / "notebooks").glob("*.md")),
            TOOLS / "README.md",
            ROOT / "CONTRIBUTING.md",
        ]
        names = [path.relative_to(ROOT).as_posix() for path in paths]
        self.documents = {"README.md": HOME} | dict(zip(names, names, strict=True))
        self.readme = landing((ROOT / "README.md").read_text(encoding="utf-8"))
        self.home_anchors = {slug(heading) for heading in HEADING.findall(self.readme)}

    def files(self) -> dict[str, str | bytes]:
        found: dict[str, str | bytes] = {}
        for name, page in self.documents.items():
            if name.endswith(".md") and page != HOME:
                found[page] = self.page(name, (ROOT / name).read_text(encoding="utf-8"))
        found[HOME] = self.page("README.md", self.readme) + self.contents()
        found["reference/interface.md"] = interface()
        found["reference/modules.md"] = modules(self.address)
        found["reference/bibliography.md"] = bibliography(sync_notebooks.notebook_paths())
        found["slides.md"] = deck_list(self.decks)
        for path in sync_notebooks.notebook_paths():  # last: pages have named cells by now
            notebook = self.notebook(sync_notebooks.read(path), path.stem)
            found[f"notebooks/{path.name}"] = sync_notebooks.dump(notebook)
        return found | self.images

    def contents(self) -> str:
        """The tables of contents, which make the sidebar and the order of the pages."""
        lessons = [name for name in self.documents if name.endswith(".ipynb")]
        guide = "notebooks/TEACHING.md"
        others = [n for n in self.documents if n.startswith("notebooks/") and n not in lessons]
        parts = {
            "Lessons": lessons,
            "Results": ["REPORT.md", "reference/bibliography.md"],
            "Teaching": [guide, *(name for name in others if name != guide), "slides.md"],
            "Code": [
                "tools/README.md",
                "reference/interface.md",
                "reference/modules.md",
                "CONTRIBUTING.md",
            ],
        }
        text = ""
        for part, names in parts.items():
            entries = (f"{SHORT[name]} <{name}>" if name in SHORT else name for name in names)
            text += f"\n\n```{{toctree}}\n:hidden:\n:caption: {part}\n\n"
            text += "\n".join(entries) + "\n```\n"
        return text

    def page(self, name: str, text: str) -> str:
        """A document's text with links that work on the site. Raises CourseError for a broken one."""
        text = BADGE.sub(r"[Open in Colab](\1){.colab}", without_column(text, "Colab"))
        text = GITHUBS_FORMULA.sub(r"$\1$", text.replace("<details>", "<details open>"))
        pieces = CODE.split(text)  # code at the odd places
        pieces[::2] = [LINK.sub(lambda m: self._linked(name, m), part) for part in pieces[::2]]
        return "".join(pieces)

    def _linked(self, name: str, match: re.Match[str]) -> str:
        return f"{match[1]}{self.target(name, match[2])}{match[3]}"

    def target(self, name: str, link: str) -> str:
        """Where a link of the document `name` goes on the site."""
        if scroll := SCROLL.fullmatch(link):
            self.cells.add((scroll[1], scroll[2]))
            return f"#{cell_label(scroll[1], scroll[2])}"
        if re.match(r"[a-z][a-z+.-]*:", link):
            return link
        path, sharp, anchor = link.partition("#")
        anchor = f"#{slug(anchor)}" if sharp else ""  # Jupyter keeps capitals and punctuation
        if not path:
            return anchor
        file = (ROOT / name).parent / path
        if not file.exists():
            raise CourseError(f"{name} links to {link}, which is not there; fix the link")
        place = file.resolve().relative_to(ROOT).as_posix()
        page = self.documents.get(place)
        if page == HOME and anchor and anchor[1:] not in self.home_anchors:
            page = None  # a section that only README has
        if page:
            return os.path.relpath(page, os.path.dirname(self.documents[name]) or ".") + anchor
        if file.suffix == ".png":
            self.images[place] = file.read_bytes()
            return path
        kind = "tree" if file.is_dir() else "blob"
        return f"https://github.com/{self.address}/{kind}/main/{place}{anchor}"

    def notebook(self, notebook: dict[str, Any], name: str) -> dict[str, Any]:
        """A lesson's notebook: no navigation of its own, pictures as files with their alt texts."""
        cells = []
        for cell in notebook["cells"]:
            if cell["id"] == "navigation":  # the site has its own
                continue
            if (name, cell["id"]) in self.cells:
                label = f"({cell_label(name, cell['id'])})="
                cells.append({"cell_type": "markdown", "id": f"{cell['id']}-label", "metadata": {}})
                cells[-1]["source"] = label
            source = "".join(cell["source"])
            if cell["cell_type"] == "markdown":
                cell["source"] = self.page(f"notebooks/{name}.ipynb", source)
            elif cell["id"] == "bootstrap":
                cell["metadata"]["tags"] = ["hide-input"]
            for number, output in enumerate(cell.get("outputs", [])):
                self._keep_image(output, f"{name}-{cell['id']}-{number}.png")
            cells.append(cell)
        return {**notebook, "cells": cells}

    def _keep_image(self, output: dict[str, Any], file: str) -> None:
        """Make a picture in an output a file; myst-nb would lose its alt text."""
        if "image/png" not in output.get("data", {}):
            return
        alt = output["metadata"].get("image/png", {}).get("alt", "")
        self.images[f"notebooks/{file}"] = base64.b64decode("".join(output["data"]["image/png"]))
        output["data"] = {"text/markdown": f"![{escaped(alt)}]({file})"}
        output["metadata"] = {}


def landing(readme: str) -> str:
    """README without the sections that are about the repository."""
    parts = re.split(r"^(?=## )", readme, flags=re.M)
    kept = (part for part in parts if part.split("\n", 1)[0].removeprefix("## ") not in LEFT_OUT)
    return "".join(kept)


def without_column(text: str, name: str) -> str:
    """Markdown in which no table has a last column of this name."""
    lines, inside = [], False
    for line in text.split("\n"):
        cells = re.split(r"(?<!\\)\|", line.strip())[1:-1]
        inside = line.startswith("|") and (inside or [c.strip() for c in cells[-1:]] == [name])
        lines.append(f"|{'|'.join(cells[:-1])}|" if inside else line)
    return "\n".join(lines)


def slug(heading: str) -> str:
    """The anchor of a heading, as GitHub makes it."""
    return re.sub(r"[^\w\- ]", "", heading.strip().lower()).replace(" ", "-")


def cell_label(name: str, cell: str) -> str:
    return f"cell-{name[:2]}-{cell}"


def escaped(text: str) -> str:
    """Text in which Markdown's own signs stand for themselves; `code` stays code."""
    parts = re.split(r"(`[^`\n]+`)", text)
    parts[::2] = [re.sub(r"([\\*_$<>\[\]{}|`])", r"\\\1", part) for part in parts[::2]]
    return "".join(parts)


def deck_list(decks: list[Deck]) -> str:
    """The page that links to the slides, which are not Sphinx pages."""
    links = "\n".join(
        f'<li><a href="slides/{deck.number}.html">{deck.number} {html.escape(deck.title)}</a>: '
        f"{html.escape(deck.question)} ({deck.minutes} minutes)</li>"
        for deck in decks
    )
    return (
        "# Slides\n\nA deck for a lesson, to show in class. In a deck, *S* opens the speaker notes, "
        f"*F* fills the screen, *?* lists the other keys.\n\n<ul>\n{links}\n</ul>\n"
    )


# --- the code


def interface() -> str:
    """The page of the names that can be imported from the package itself, by Sphinx's autodoc."""
    from llama_int8 import PUBLIC

    text = (
        "# The public interface\n\nThese names are imported from `llama_int8` itself, as in "
        "`from llama_int8 import load_model`. The module that holds a name loads when the name is "
        "first asked for. [Every module](modules.md) lists what else there is.\n\n"
        "| name | its module |\n| --- | --- |\n"
    )
    text += "".join(f"| `{name}` | `llama_int8.{home}` |\n" for name, home in PUBLIC.items())
    for name in PUBLIC:
        kind = "autofunction" if name[0].islower() else "autoclass"
        members = "\n   :members:" if kind == "autoclass" else ""
        text += f"\n```{{eval-rst}}\n.. {kind}:: llama_int8.{name}{members}\n```\n"
    return text


def modules(address: str) -> str:
    """The page of all modules, from their docstrings, in the order of the import rule."""
    text = (
        "# Every module\n\nWhat each module of the package is for, and what others may call in it. "
        "The [map](../tools/README.md) says where something belongs. All names begin with "
        "`llama_int8.`\n"
    )
    rule = (TOOLS / "README.md").read_text(encoding="utf-8").partition("## The import rule")[2]
    layers = re.findall(r"`(\w+)`", rule.split(".")[0])
    for layer in [*layers, ""]:
        folder = PACKAGE / layer
        paths = sorted(folder.rglob("*.py")) if layer else bottom(layers)
        text += f"\n## {layer or 'Below all layers'}\n"
        for path in paths:
            text += module_entry(path, address)
    return text


def bottom(layers: list[str]) -> list[Path]:
    """The modules that all layers may import."""
    paths = (path for path in sorted(PACKAGE.rglob("*.py")) if path != PACKAGE / "__init__.py")
    return [path for path in paths if path.relative_to(PACKAGE).parts[0] not in layers]


def module_entry(path: Path, address: str) -> str:
    """A module's name, docstring, and public functions and classes with their first sentence."""
    place = path.relative_to(PACKAGE).with_suffix("")
    name = ".".join(place.parts).removesuffix(".__init__")
    tree = ast.parse(path.read_text(encoding="utf-8"))
    doc = ast.get_docstring(tree)
    if not doc:
        return ""
    url = f"https://github.com/{address}/blob/main/{path.relative_to(ROOT).as_posix()}"
    lines = [f"\n### `{name}`\n", f"{escaped(doc)} ([source]({url}))\n"]
    lines += [f"- `{what}`: {escaped(said)}" for what, said in public(tree)]
    return "\n".join(lines) + "\n"


def public(tree: ast.Module) -> Iterator[tuple[str, str]]:
    """(name with arguments, first sentence) of a module's public functions and classes."""
    for node in tree.body:
        if not isinstance(node, ast.FunctionDef | ast.ClassDef) or node.name.startswith("_"):
            continue
        if doc := ast.get_docstring(node):
            names = ""
            if isinstance(node, ast.FunctionDef):
                every = [*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs]
                names = f"({', '.join(argument.arg for argument in every)})"
            yield f"{node.name}{names}", first_sentence(doc)


def first_sentence(doc: str) -> str:
    words = " ".join(doc.split("\n\n")[0].split())
    return re.split(r"(?<=\.) (?=[A-Z`])", words)[0]
