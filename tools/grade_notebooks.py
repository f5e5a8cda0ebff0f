"""Grade learners' notebooks: run each headless in profile smoke, and write their points to a CSV.

Learners' code runs with the rights of whoever grades: for strangers use an account or a container
of its own. Limits on time and memory guard against accidents, not against malice.
"""

import csv
import json
import os
import re
import shutil
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil

import sync_notebooks
from course import TOOLS, CourseError
from llama_int8.classroom import exercises
from llama_int8.classroom.exercise_book import EXERCISES

COLUMNS = ("learner", "notebook", "exercise", "status", "points", "of", "message")
CHECK = re.compile(r"""check\(\s*["'](\d\d\.\w+)["']""")
# Runs before the learner's first cell: what a broken cell may have failed to import, and `exit`
# as an error like any other, since IPython's own would end the kernel at some later moment.
BEFORE = """\
from llama_int8.classroom import exercises


def exit(*_):
    raise SystemExit("exit() was called")


quit = exit
"""
# Runs after the parameters cell: as small as it gets, and away from the learner's own results.
SMALL = 'PROFILE, MODEL, RESULTS_DIR = "smoke", None, "output"'
FATAL = {
    "time": "took longer than {seconds:.0f} s",
    "memory": "took more than {memory:g} GiB of memory",
    "died": "ended the kernel",
}


@dataclass(frozen=True)
class Limits:
    """`seconds` for a cell, ten times that for a notebook; `memory` in GiB for a kernel."""

    seconds: float
    memory: float

    def __post_init__(self) -> None:
        if self.seconds <= 0 or self.memory <= 0:
            raise CourseError(
                f"limits are {self.seconds} s and {self.memory} GiB; both must be above 0"
            )


@dataclass
class Graded:
    """One notebook: its rows of the CSV."""

    learner: str
    file: Path
    rows: list[dict[str, Any]] = field(default_factory=list)

    def add(
        self, exercise: str, status: str, message: str = "", points: int = 0, of: int = 0
    ) -> None:
        values = (self.learner, self.file.name, exercise, status, points, of, message[:500])
        self.rows.append(dict(zip(COLUMNS, values, strict=True)))

    @property
    def points(self) -> int:
        return sum(row["points"] for row in self.rows)

    @property
    def of(self) -> int:
        return sum(row["of"] for row in self.rows)


def main(folder: Path, out: Path, seconds: float, memory: float) -> int:
    """Grade every notebook under `folder`; the CSV grows by each one. Raises CourseError."""
    limits = Limits(seconds, memory)
    files = learners_notebooks(folder)
    check_writable(out)
    graded: list[Graded] = []
    for number, (learner, file) in enumerate(files, 1):
        start = time.monotonic()
        one = grade(learner, file, limits)
        graded.append(one)
        write_csv(out, graded)
        print(
            f"{number} of {len(files)}: {file.relative_to(folder)}: {one.points} of {one.of} points, "
            f"{time.monotonic() - start:.0f} s",
            flush=True,
        )
    print_table(graded)
    print(f"\n{out}")
    return 0


def learners_notebooks(folder: Path) -> list[tuple[str, Path]]:
    """(learner, file) of each notebook in `folder` and its subfolders, which name the learners."""
    if not folder.is_dir():
        raise CourseError(f"{folder} is no folder; give the one that holds the learners' notebooks")
    found = []
    for file in sorted(folder.rglob("*.ipynb")):
        parts = file.relative_to(folder).parts
        if not any(part.startswith(".") for part in parts):
            found.append((parts[0] if len(parts) > 1 else file.stem, file))
    if not found:
        raise CourseError(
            f"{folder} holds no notebooks (*.ipynb), in itself or in a folder for each learner"
        )
    return found


def grade(learner: str, file: Path, limits: Limits) -> Graded:
    """Run one notebook until no cell of it stops the kernel, and judge its exercises.

    A cell that runs too long, takes too much memory or ends the kernel loses its points; the
    course's own blank cell, with which the notebook goes on by the reference, takes its place, and
    the notebook is run again.
    """
    graded = Graded(learner, file)
    try:
        notebook = sync_notebooks.read(file)
        number = notebook_number(notebook, file)
        course = course_cells(number)
        cells = prepared(notebook["cells"], course)
    except CourseError as error:
        graded.add("", "unreadable", str(error))
        return graded
    fatal: dict[str, tuple[str, str]] = {}
    for _ in range(len(cells)):  # each repeat has one dangerous cell less
        verdicts, errors, stopped = run(cells, limits)
        if stopped is None:
            break
        position, status = stopped
        told = FATAL[status].format(seconds=limits.seconds, memory=limits.memory)
        names = CHECK.findall(cells[position]["source"])
        for name in names:
            fatal[name] = (status, f"the cell {told}")
        if not names:
            first = cells[position]["source"].strip().partition("\n")[0]
            graded.add("", status, f"a cell without an exercise {told}, and was left out: {first}")
        cells[position] = {**cells[position], "source": replacement(cells[position], course)}
    there = {name for cell in cells for name in CHECK.findall(cell["source"])}
    for name, exercise in EXERCISES.items():
        if not name.startswith(f"{number}."):
            continue
        if name in fatal:
            graded.add(name, *fatal[name], of=exercise.points)
        elif name in verdicts:
            v = verdicts[name]
            graded.add(name, v["status"], v["message"], v["points"], exercise.points)
        elif name in there:
            message = errors.get(name, "its cell did not come to the check")
            graded.add(name, "error", message, of=exercise.points)
        else:
            graded.add(name, "missing", "the notebook has no check of it", of=exercise.points)
    return graded


def notebook_number(notebook: dict[str, Any], file: Path) -> str:
    """ "05" for notebook 05, by the exercises that it checks, else by its name."""
    names = [n for c in code_cells(notebook["cells"]) for n in CHECK.findall(c["source"])]
    numbers = [name.partition(".")[0] for name in names if name in EXERCISES]
    if numbers:
        return max(set(numbers), key=numbers.count)
    by_name = re.search(r"0\d(?=_)", file.name)
    if by_name and any(name.startswith(by_name[0]) for name in EXERCISES):
        return by_name[0]
    raise CourseError("neither its exercises nor its name tell which notebook of the course it is")


def course_cells(number: str) -> dict[str, str]:
    """The course's own code cells of a notebook: source by exercise and by cell id."""
    (path,) = sync_notebooks.NOTEBOOKS.glob(f"{number}_*.ipynb")
    cells = code_cells(sync_notebooks.read(path)["cells"])
    by_id = {cell["id"]: cell["source"] for cell in cells}
    return by_id | {name: c["source"] for c in cells for name in CHECK.findall(c["source"])}


def code_cells(cells: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The code cells, each source one string; a cell without an id gets an empty one."""
    try:
        return [
            {
                "id": cell.get("id", ""),
                "source": "".join(cell["source"]),
                "tags": cell.get("metadata", {}).get("tags", []),
            }
            for cell in cells
            if cell["cell_type"] == "code"
        ]
    except (KeyError, TypeError, AttributeError) as error:
        raise CourseError(f"it is no notebook: {error!r}") from None


def prepared(cells: list[dict[str, Any]], course: dict[str, str]) -> list[dict[str, Any]]:
    """What is run: the code cells up to the last exercise, with small parameters."""
    code = code_cells(cells)
    last = max((k for k, c in enumerate(code) if CHECK.search(c["source"])), default=-1)
    code = code[: last + 1]
    small = {"id": "", "source": SMALL, "tags": []}
    for position, cell in enumerate(code):
        if "parameters" in cell["tags"] or re.search(r"(?m)^PROFILE\s*=", cell["source"]):
            code.insert(position + 1, small)
            break
    return [{"id": "", "source": BEFORE, "tags": []}, *code]


def replacement(cell: dict[str, Any], course: dict[str, str]) -> str:
    """The course's own text of a cell that may not run again."""
    names = [name for name in CHECK.findall(cell["source"]) if name in course]
    if names:
        return "\n".join(course[name] for name in names)
    own = course.get(cell["id"], "")
    return own if own != cell["source"] else ""


def run(
    cells: list[dict[str, Any]], limits: Limits
) -> tuple[dict[str, Any], dict[str, str], tuple[int, str] | None]:
    """Run the cells in a kernel of their own.

    Returns the verdicts of `check` by exercise, the errors of cells that hold an exercise, and
    (position, "time" | "memory" | "died") of the cell that ended it, if one did.
    """
    from nbclient import NotebookClient
    from nbclient.exceptions import CellTimeoutError, DeadKernelError
    from nbformat import v4

    work = Path(tempfile.mkdtemp(prefix="grading-"))
    verdicts_file = work / "verdicts.jsonl"
    path = os.pathsep.join(filter(None, [str(TOOLS), os.environ.get("PYTHONPATH")]))
    env = {**os.environ, "PYTHONPATH": path, exercises.VERDICTS: str(verdicts_file)}
    notebook = v4.new_notebook(cells=[v4.new_code_cell(cell["source"]) for cell in cells])
    end = time.monotonic() + 10 * limits.seconds
    client = NotebookClient(
        notebook,
        kernel_name="python3",
        allow_errors=True,
        timeout_func=lambda _: max(1, min(limits.seconds, end - time.monotonic())),
        resources={"metadata": {"path": str(work)}},
        extra_arguments=["--IPKernelApp.log_level=50"],  # its log is no teacher's concern
    )
    stopped, errors = None, {}
    try:
        with client.setup_kernel(env=env), watched(client.km, limits.memory) as (kernel, too_large):
            for position, cell in enumerate(notebook.cells):
                try:
                    client.execute_cell(cell, position)
                except CellTimeoutError:
                    stopped = position, "time"
                except DeadKernelError:
                    stopped = position, "memory" if too_large.is_set() else "died"
                if stopped:
                    kill(family_of(kernel))
                    break
                for output in cell.outputs:
                    if output.output_type == "error":
                        for name in CHECK.findall(cell.source):
                            errors[name] = f"{output.ename}: {output.evalue}"
        return read_verdicts(verdicts_file), errors, stopped
    finally:
        shutil.rmtree(work, ignore_errors=True)


@contextmanager
def watched(manager: Any, gibibytes: float) -> Iterator[tuple[psutil.Process, threading.Event]]:
    """Kill the kernel when it and its children hold more; the event tells that it happened."""
    too_large, ended = threading.Event(), threading.Event()
    kernel = psutil.Process(manager.provisioner.pid)

    def watch() -> None:
        while not ended.wait(0.1):
            family = family_of(kernel)
            with suppress(psutil.NoSuchProcess):  # one may end between two lines
                if sum(process.memory_info().rss for process in family) > gibibytes * 2**30:
                    too_large.set()
                    kill(family)

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield kernel, too_large
    finally:
        ended.set()
        thread.join()


def family_of(kernel: psutil.Process) -> list[psutil.Process]:
    """The kernel and what it has started."""
    try:
        return [kernel, *kernel.children(recursive=True)]
    except psutil.NoSuchProcess:
        return []


def kill(processes: list[psutil.Process]) -> None:
    for process in reversed(processes):
        with suppress(psutil.NoSuchProcess):
            process.kill()


def read_verdicts(path: Path) -> dict[str, Any]:
    """The last verdict on each exercise: what stands in the notebook when it has run."""
    verdicts = {}
    if path.exists():
        for line in path.read_text(encoding="utf-8").splitlines():
            entry = json.loads(line)
            verdicts[entry["exercise"]] = entry
    return verdicts


# --- what the teacher sees


def check_writable(out: Path) -> None:
    """Find out before an hour of grading. Raises CourseError."""
    if not out.parent.is_dir():
        raise CourseError(f"--out is {out}, and its folder does not exist; make it first")
    if out.is_dir() or not os.access(out.parent, os.W_OK):
        raise CourseError(f"--out is {out}, which cannot be written; name another file")


def write_csv(out: Path, graded: list[Graded]) -> None:
    """All rows so far, under a temporary name first, so that no file is ever half written."""
    new = out.with_name(f".{out.name}.new")
    with new.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, COLUMNS)
        writer.writeheader()
        for one in graded:
            writer.writerows(one.rows)
    new.replace(out)


def print_table(graded: list[Graded]) -> None:
    """Points of each learner over all notebooks."""
    learners = list(dict.fromkeys(one.learner for one in graded))
    width = max(len(name) for name in ["learner", *learners])
    print(f"\n{'learner':{width}}{'points':>9}{'of':>6}")
    for learner in learners:
        theirs = [one for one in graded if one.learner == learner]
        points, of = sum(one.points for one in theirs), sum(one.of for one in theirs)
        print(f"{learner:{width}}{points:>9}{of:>6}")
    sys.stdout.flush()
