"""A small course in a folder of its own: the real tools, two tiny notebooks, nothing to download."""

import gc
import json
import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest
import yaml

from llama_int8.profiles import FULL

ROOT = Path(__file__).resolve().parents[2]

SETUP_CELL = """\
from llama_int8.course.plots import figure, save_figure
from llama_int8.course.start import start_lesson

settings, results = start_lesson("{name}", PROFILE, MODEL, CHANGES)
results.record("count", settings.count, "count")
results.record("last", settings.count - 1, "count")
print("count", settings.count)
"""
FIGURE_CELL = """\
drawn, axes = figure()
axes.plot(range(settings.count))
save_figure(results, drawn, "{name}", alt="A rising line, one point a step.", caption="It rises.")
"""
TEMPLATE = """\
count {{ value("00", "count") }}

{{ figure("00_first") }}

{{ by_machine("06", {"second": "count", "third": "last"}, ".0f") }}
"""
README = """\
# Tiny

https://colab.research.google.com/github/OWNER/llama-in-8-bits/blob/main/x

git clone https://github.com/OWNER/llama-in-8-bits.git
cd llama-in-8-bits

<!-- begin notebooks -->
<!-- end notebooks -->
"""


gc.disable()  # until all tests are collected: what they import stays, so there is nothing to free


def pytest_collection_finish(session):
    gc.enable()


@pytest.fixture(autouse=True, scope="module")
def nothing_old_is_scanned_for_garbage():
    """Keep the garbage collector from scanning what is imported and collected by now.

    It would take 0.3 s each time, and the course frees every model with `gc.collect()`.
    """
    gc.collect()
    gc.freeze()


@pytest.hookimpl(tryfirst=True)  # before tests are chosen by their marks
def pytest_collection_modifyitems(items):
    """A test that starts a copy of the course is slow."""
    for item in items:
        if "tiny_course" in item.fixturenames:
            item.add_marker("slow")


@dataclass
class Course:
    """A copy of the course in which a test may break things."""

    root: Path

    def command(self, *arguments: str) -> list[str]:
        return [sys.executable, str(self.root / "tools" / "course.py"), *map(str, arguments)]

    def environment(self, **more: str) -> dict[str, str]:
        return {**os.environ, "COURSE_PYTHON": sys.executable, **more}

    def __call__(self, *arguments: str, timeout: float = 120, **more: str):
        """Run a command of the course; its output is text."""
        return subprocess.run(
            self.command(*arguments),
            env=self.environment(**more),
            cwd=self.root,
            capture_output=True,
            text=True,
            timeout=timeout,
            check=False,
        )

    def notebook(self, name: str) -> Path:
        return self.root / "notebooks" / f"{name}.ipynb"

    def change_notebook(self, name: str, cell_id: str, source: str) -> None:
        """Replace the source of one cell."""
        path = self.notebook(name)
        content = json.loads(path.read_text())
        next(c for c in content["cells"] if c["id"] == cell_id)["source"] = source
        path.write_text(json.dumps(content))

    def state(self) -> dict[str, bytes]:
        """Everything that a failed run must leave as it was."""
        files = [
            *self.root.glob("notebooks/*"),
            *self.root.glob("figures/*"),
            *self.root.glob("results/**/*"),
            self.root / "README.md",
            self.root / "REPORT.md",
        ]
        return {str(f.relative_to(self.root)): f.read_bytes() for f in files if f.is_file()}


def tiny_notebook(name: str) -> dict:
    """One of the two notebooks: the cells every notebook has, and a last one for mischief."""

    def cell(kind: str, cell_id: str, source: str, *tags: str) -> dict:
        code = {"execution_count": None, "outputs": []} if kind == "code" else {}
        metadata = {"tags": list(tags)} if tags else {}
        return {"cell_type": kind, "id": cell_id, "metadata": metadata, "source": source, **code}

    parameters = 'PROFILE = "auto"\nMODEL = None\nCHANGES = {}'
    return {
        "cells": [
            cell("markdown", "title", f"# {name[:2]} A tiny notebook"),
            cell("markdown", "badge", ""),
            cell("code", "bootstrap", ""),
            cell("code", "parameters", parameters, "parameters"),
            cell("code", "setup", SETUP_CELL.format(name=name)),
            cell("code", "figure", FIGURE_CELL.format(name=name)),
            cell("code", "last", "pass"),
            cell("markdown", "navigation", ""),
        ],
        "metadata": {},
        "nbformat": 4,
        "nbformat_minor": 5,
    }


@pytest.fixture(scope="session")
def tiny_course(tmp_path_factory) -> Path:
    """The tiny course, run once in profile cpu."""
    root = tmp_path_factory.mktemp("tiny")
    ignore = shutil.ignore_patterns("tests", "__pycache__", "*.egg-info")
    shutil.copytree(ROOT / "tools", root / "tools", ignore=ignore)
    for file in ("pyproject.toml", "requirements.txt", "CITATION.cff"):
        shutil.copy(ROOT / file, root)
    names = ("00_first", "06_second")
    (root / "notebooks").mkdir()
    for name in names:
        (root / "notebooks" / f"{name}.ipynb").write_text(json.dumps(tiny_notebook(name)))
    for path in (root / "tools/llama_int8/profiles").glob("*.yaml"):
        content = yaml.safe_load(path.read_text()) | {"notebooks": {}}
        if path.stem == FULL:
            count = {"count": {"value": 3, "meaning": "how far to count"}}
            content |= {"notebooks": dict.fromkeys(names, count)}
        path.write_text(json.dumps(content))
    (root / "tools/report_template.md").write_text(TEMPLATE)
    blocks = "{% block notebooks %}\n{{ notebooks() }}\n{% endblock %}\n"
    (root / "tools/readme_blocks.md").write_text(blocks)
    (root / "README.md").write_text(README)
    done = Course(root)("run")
    assert done.returncode == 0, done.stderr
    return root


@pytest.fixture
def course(tiny_course, tmp_path) -> Course:
    """A fresh copy of the tiny course as it is after a run."""
    # Stamps name absolute paths, so the copy's notebooks are not up to date in it.
    root = tmp_path / "course"
    shutil.copytree(tiny_course, root, ignore=shutil.ignore_patterns(".course"))
    return Course(root)


@pytest.fixture
def one_thread(threads):
    """Attention on a CPU has a buffer for each thread, which beside a tiny model would count."""
    threads(1)


@pytest.fixture
def threads():
    """Set PyTorch's number of threads; the one before comes back at the end."""
    import torch

    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)
