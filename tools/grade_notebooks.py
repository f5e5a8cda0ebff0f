"""Grade learners' notebooks: run each one in profile smoke, and write its points to a CSV file.

A folder holds notebooks, or a subfolder of notebooks for each learner. Each notebook runs in a
kernel and a working folder of its own, up to its last cell with a `check`; the file itself is
read and never written. `check` hands its verdicts in through the file that COURSE_VERDICTS names, and
the last one on an exercise counts. Every exercise of the notebook gets a row, whatever became of
its cell.

An error in a cell stops nothing. A cell that runs too long, takes too much memory or ends its kernel
costs its own exercise alone: the course's cell takes its place, in which the reference solution
goes on, and the notebook runs once more. Such a cell without an exercise is left out.

A learner's code runs with your rights: it can read your files and use your network. The limits
hold against mistakes, not against malice. Grade strangers' notebooks in a container, or under an
account that owns nothing.
"""

import csv
import json
import math
import os
import re
import signal
import subprocess
import tempfile
import threading
import time
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import nbformat
import psutil
from nbclient import NotebookClient
from nbclient.exceptions import CellTimeoutError, DeadKernelError

import sync_notebooks
from course import TOOLS, CourseError
from llama_int8.classroom.exercise_book import EXERCISES
from llama_int8.measurement.cost import GIB

NOTEBOOK_CELLS = 10  # so many times the limit of a cell is the limit of one run of a notebook
LEFT_OUT = 2  # so many cells without an exercise may be left out of a notebook
COLUMNS = ("learner", "notebook", "exercise", "status", "points", "of", "message")
CHECK = re.compile(r"\bcheck\s*\(")
CHECKED = re.compile(r"""\bcheck\s*\(\s*(?:name\s*=\s*)?["'](\d\d\.\w+)["']""")
LONGEST_MESSAGE = 1000  # characters; spreadsheets take 32,767 in a cell
# What browsers, JupyterLab and Colab (in several languages) add to the name of a copy.
COPY_MARK = re.compile(
    r"\b(copy of|kopie von|copie de|copia de)\b|[ _-]*\(\d+\)|[ _-]copy\s*\d*\b", re.IGNORECASE
)
TWO_DIGITS = re.compile(r"(?<!\d)0\d(?!\d)")


@dataclass(frozen=True)
class Limits:
    """What a notebook may take."""

    seconds: int  # for a cell
    gib: float  # resident memory of the kernel and what it starts


@dataclass(frozen=True)
class HandedIn:
    """One file of a learner; None stands for a learner's folder without a notebook."""

    learner: str
    path: Path | None
    direct: bool = False  # it lies in the folder itself


@dataclass(frozen=True)
class Row:
    """A line of the CSV file."""

    learner: str
    notebook: str
    exercise: str
    status: str
    points: int
    of: int
    message: str


@dataclass
class Fatal:
    """A cell that ended its kernel or had to be stopped."""

    status: str  # time, memory, died
    message: str
    cell: int


@dataclass
class Run:
    """What came of running the cells once."""

    verdicts: dict[str, dict[str, Any]] = field(default_factory=dict)  # the last of each exercise
    judged: set[str] = field(default_factory=set)  # with a verdict from the fatal cell itself
    errors: dict[int, str] = field(default_factory=dict)  # by cell
    fatal: Fatal | None = None
    late: bool = False  # the notebook's time was up


def main(folder: Path, out: Path, seconds: int, memory: float) -> int:
    """Grade what is in `folder`; print a line a notebook and a table. Raises CourseError."""
    if seconds < 1 or not memory > 0:
        raise CourseError(
            f"--seconds is {seconds} and --memory {memory:g}; both must be more than 0"
        )
    handed_in = find_notebooks(folder)
    check_writable(out)
    rows: list[Row] = []
    seen: dict[tuple[str, str], Path] = {}
    for number, one in enumerate(handed_in, 1):
        start = time.monotonic()
        fresh = grade(one, Limits(seconds, memory), seen)
        rows += fresh
        try:
            write_rows(rows, out)
        except CourseError as error:  # a spreadsheet has it open, most often
            if number == len(handed_in):  # nothing of hours may be lost
                out = out.with_stem(out.stem + "-2")
                write_rows(rows, out)
            print(f"{error}", flush=True)
        points, of = sum(row.points for row in fresh), sum(row.of for row in fresh)
        odd = Counter(r.status for r in fresh if r.status not in ("correct", "wrong", "blank"))
        print(
            f"[{number} of {len(handed_in)}] {fresh[0].learner}, {fresh[0].notebook}: "
            f"{points} of {of} points, {time.monotonic() - start:.0f} s"
            + "".join(f"; {status} {count}" for status, count in odd.items()),
            flush=True,
        )
    print_table(rows)
    print(f"\n{len(rows)} rows in {out}")
    return 0


# --- which file is whose, and which notebook it is


def find_notebooks(folder: Path) -> list[HandedIn]:
    """All files to grade, by learner and name. Raises CourseError if there is none."""
    if not folder.is_dir():
        raise CourseError(f"{folder} is no folder; give one that holds learners' notebooks")
    direct = sorted(path for path in folder.glob("*.ipynb") if _handed_in(path, folder))
    found = [HandedIn(learner_of(path, folder), path, direct=True) for path in direct]
    for own in sorted(path for path in folder.iterdir() if path.is_dir()):
        if _hidden(own.name):
            continue
        inside = [path for path in own.rglob("*.ipynb") if _handed_in(path, own)]
        # Of two copies one that can be read counts, and of these the newer one.
        inside.sort(key=lambda path: (bool(read_cells(path)[1]), -path.stat().st_mtime, path))
        found += [HandedIn(own.name, path) for path in inside or [None]]
    if not any(one.path for one in found):
        raise CourseError(
            f"no notebook in {folder}; it must hold .ipynb files, or a subfolder of them for each "
            "learner"
        )
    return found


def _handed_in(path: Path, folder: Path) -> bool:
    """Whether a file is one, and no system's leftover: checkpoints, or what a Mac puts into a zip."""
    return path.is_file() and not any(map(_hidden, path.relative_to(folder).parts))


def _hidden(name: str) -> bool:
    return name.startswith(".") or name == "__MACOSX"


def learner_of(path: Path, folder: Path) -> str:
    """What a file is called beside the notebook's name or number, else its folder's name."""
    rest = COPY_MARK.sub("", path.stem)
    for name in courses_notebooks():
        rest = rest.replace(name, "")
    rest = TWO_DIGITS.sub("", rest, count=1).strip(" _-.")
    return rest or folder.resolve().name


@cache
def courses_notebooks() -> dict[str, list[str]]:
    """The course's notebooks by name, each with its exercises in the order of its cells."""
    return {
        path.stem: [
            exercise
            for cell in sync_notebooks.read(path)["cells"]
            for exercise in CHECKED.findall(_source(cell))
        ]
        for path in sync_notebooks.notebook_paths()
    }


def which_notebook(cells: list[dict[str, Any]], file_name: str) -> str | None:
    """The course's notebook whose exercises the cells check, else name, else the file's name has."""
    code = "\n".join(_source(cell) for cell in cells)
    known = Counter(name[:2] for name in CHECKED.findall(code) if name in EXERCISES)
    number = known.most_common(1)[0][0] if known else None
    for name in courses_notebooks():
        if number == name[:2] if number else f'"{name}"' in code:
            return name
    digits = TWO_DIGITS.findall(file_name)
    return next((name for name in courses_notebooks() if name[:2] in digits), None)


def _source(cell: dict[str, Any]) -> str:
    """The text of a code cell; of another, none."""
    return "".join(cell["source"]) if cell["cell_type"] == "code" else ""


# --- grading one file


def grade(one: HandedIn, limits: Limits, seen: dict[tuple[str, str], Path]) -> list[Row]:
    """The rows of one file; `seen` holds what was graded before, by learner and notebook."""
    if one.path is None:
        return [Row(one.learner, "-", "", "missing", 0, 0, "no notebook in the folder")]
    cells, problem = read_cells(one.path)
    notebook = which_notebook(cells, one.path.stem)
    if notebook is None:
        message = problem or "no exercise of the course is in it"
        return [Row(one.learner, one.path.name, "", "unreadable", 0, 0, message)]
    learner = one.learner
    if (learner, notebook) in seen and one.direct:  # two people's, both called "05.ipynb" once
        learner = one.path.stem
    if (first := seen.setdefault((learner, notebook), one.path)) is not one.path:
        message = f"not graded: {one.path.name} is the same notebook as {first.name}, which counts"
        return [Row(learner, notebook, "", "duplicate", 0, 0, message)]
    exercises = courses_notebooks()[notebook]
    found = (
        {name: ("unreadable", problem) for name in exercises}
        if problem
        else judge_cells(cells, notebook, limits)
    )
    rows = []
    for name in exercises:
        status, message = found[name]
        of = EXERCISES[name].points
        points = of if status == "correct" else 0
        message = " ".join(message.split())
        message = message[:LONGEST_MESSAGE] + " ..." * (len(message) > LONGEST_MESSAGE)
        rows.append(Row(learner, notebook, name, status, points, of, message))
    return rows


def read_cells(path: Path) -> tuple[list[dict[str, Any]], str]:
    """The cells of a notebook, or none and what is wrong with the file."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # an old notebook's cells have no ids
            cells = nbformat.read(path, as_version=4)["cells"]
            return [{"cell_type": c["cell_type"], "source": c["source"]} | c for c in cells], ""
    except Exception as error:  # whatever a file can hold that is no notebook
        return [], f"the file is no notebook that can be read ({type(error).__name__})"


def judge_cells(
    cells: list[dict[str, Any]], notebook: str, limits: Limits
) -> dict[str, tuple[str, str]]:
    """Status and message of each exercise, from as many runs as fatal cells ask for."""
    exercises = courses_notebooks()[notebook]
    own = {
        name: _source(cell)
        for cell in sync_notebooks.read(sync_notebooks.NOTEBOOKS / f"{notebook}.ipynb")["cells"]
        for name in CHECKED.findall(_source(cell))
    }
    texts = with_parameters(cells, notebook)
    last = max((i for i, text in enumerate(texts) if CHECK.search(text)), default=-1)
    texts = texts[: last + 1]
    at = {name: i for i, text in enumerate(texts) for name in CHECKED.findall(text)}
    settled: dict[str, tuple[str, str]] = {}
    notes: list[str] = []
    replaced: set[int] = set()
    run = Run()
    for _ in range(len(exercises) + LEFT_OUT + 1 if texts else 0):
        run = run_cells(texts, limits)
        if run.fatal is None:
            break
        cell, first_line = run.fatal.cell, texts[run.fatal.cell].strip().partition("\n")[0]
        inside = [n for n in exercises if at.get(n) == cell and cell not in replaced]
        for name in inside:  # a verdict from before the end stands
            settled[name] = (
                _verdict(run, name) if name in run.judged else (run.fatal.status, run.fatal.message)
            )
        if not inside or all(name in run.judged for name in inside):
            notes.append(f"a cell was left out ({first_line[:60]!r}: {run.fatal.message})")
        replaced.add(cell)
        texts[cell] = "\n\n".join(own[name] for name in inside)
    found = {}
    for name in exercises:
        if name in settled:
            found[name] = settled[name]
        elif run.verdicts.get(name, {}).get("status", "begun") != "begun":
            found[name] = _verdict(run, name)
        elif name in at and at[name] in run.errors:
            found[name] = ("error", run.errors[at[name]])
        elif run.late:
            found[name] = ("time", f"not reached in {NOTEBOOK_CELLS * limits.seconds} s")
        elif run.fatal:
            found[name] = (run.fatal.status, f"not reached: {run.fatal.message} in too many cells")
        elif name in at:
            found[name] = ("missing", "its cell never called check")
        else:
            found[name] = ("missing", "no cell checks it")
        status, message = found[name]
        found[name] = (status, "; ".join([message, *notes]))
    return found


def _verdict(run: Run, name: str) -> tuple[str, str]:
    return run.verdicts[name]["status"], run.verdicts[name]["message"]


def with_parameters(cells: list[dict[str, Any]], notebook: str) -> list[str]:
    """The cells' code, and after the parameters the course's own ones, in profile smoke.

    `exercises` is imported with them, for the first exercise's cell, which does so, may be gone; and
    exit() does not end the kernel, since it would do so in the next cell.
    """
    own = sync_notebooks.read(sync_notebooks.NOTEBOOKS / f"{notebook}.ipynb")["cells"]
    parameters = next(_source(cell) for cell in own if _is_parameters(cell))
    forced = (
        f'{parameters}\nPROFILE, RESULTS_DIR = "smoke", "output"\n'
        "from llama_int8.classroom import exercises\nget_ipython().ask_exit = lambda: None\n"
    )
    texts = [] if any(map(_is_parameters, cells)) else [forced]
    for cell in cells:
        texts += [_source(cell), forced] if _is_parameters(cell) else [_source(cell)]
    return texts


def _is_parameters(cell: dict[str, Any]) -> bool:
    tagged = "parameters" in cell.get("metadata", {}).get("tags", [])
    return tagged or bool(re.search(r"^PROFILE\s*=", _source(cell), re.MULTILINE))


# --- running the cells, with limits


class QuietClient(NotebookClient):
    """Keeps nothing of what the cells show, so that a cell that prints for ever fills no memory."""

    def process_message(self, msg: dict[str, Any], cell: Any, cell_index: int) -> Any:
        if msg["msg_type"] == "status":
            return super().process_message(msg, cell, cell_index)
        return None


def run_cells(texts: list[str], limits: Limits) -> Run:
    """Run cells in a fresh kernel and an empty folder, up to the first that is fatal."""
    run = Run()
    with tempfile.TemporaryDirectory(prefix="course-grade-", ignore_cleanup_errors=True) as folder:
        file, work = Path(folder) / "verdicts.jsonl", Path(folder) / "work"
        work.mkdir()
        with kernel(texts, file, work) as (client, watched):
            with memory_limit(watched, limits.gib) as exceeded:
                _run_each(client, limits, run, file, exceeded)
            if run.fatal and exceeded():
                run.fatal.status = "memory"
                run.fatal.message = f"the cell took more than {limits.gib:g} GiB of memory"
    return run


def _run_each(
    client: NotebookClient, limits: Limits, run: Run, file: Path, exceeded: Callable[[], bool]
) -> None:
    end = time.monotonic() + NOTEBOOK_CELLS * limits.seconds
    client.on_cell_error = lambda cell, cell_index, execute_reply: run.errors.__setitem__(
        cell_index, "{ename}: {evalue}".format(**execute_reply["content"])
    )
    for number, cell in enumerate(client.nb.cells):
        left = end - time.monotonic()
        if left <= 0:
            run.late = True
            return
        before = _size(file)
        client.timeout = min(limits.seconds, math.ceil(left))
        try:
            client.execute_cell(cell, number)
        except CellTimeoutError:
            if left < limits.seconds:
                run.late = True
            else:
                message = f"the cell ran longer than {limits.seconds} s"
                run.fatal = Fatal("time", message, number)
        except DeadKernelError:
            run.fatal = Fatal("died", "the cell ended its kernel (an exit or a crash)", number)
        if run.fatal is None and exceeded():  # what it keeps would cost the next cell
            run.fatal = Fatal("memory", "", number)
        lines = _lines(file, before)
        run.verdicts |= {line["name"]: line for line in lines}
        if run.fatal:
            run.judged = {n for n in run.verdicts if run.verdicts[n]["status"] != "begun"}
            run.judged &= {line["name"] for line in lines}
        if run.fatal or run.late:
            return


@contextmanager
def kernel(
    texts: list[str], verdicts: Path, work: Path
) -> Iterator[tuple[NotebookClient, psutil.Process]]:
    """A client of these cells, and its kernel in the folder `work`; the kernel is killed at the end."""
    path = os.pathsep.join(filter(None, [str(TOOLS), os.environ.get("PYTHONPATH")]))
    environment = {**os.environ, "PYTHONPATH": path, "COURSE_VERDICTS": str(verdicts)}
    client = QuietClient(
        nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(text) for text in texts]),
        kernel_name="python3",
        allow_errors=True,
        shutdown_kernel="immediate",
        extra_arguments=["--IPKernelApp.log_level=50", "--HistoryManager.enabled=False"],
    )
    client.log.setLevel("CRITICAL")  # a death of the kernel is no news here
    silent = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    with ExitStack() as stack:
        try:
            stack.enter_context(client.setup_kernel(env=environment, cwd=str(work), **silent))
        except RuntimeError as error:
            raise CourseError(f"the kernel does not start: {error}") from None
        watched = psutil.Process(client.km.provisioner.pid)
        try:
            yield client, watched
        finally:
            kill(watched)


@contextmanager
def memory_limit(watched: psutil.Process, gib: float) -> Iterator[Callable[[], bool]]:
    """Kill a process and what it started as soon as they hold more; yields whether they have."""
    killed, ended = threading.Event(), threading.Event()

    def exceeded() -> bool:
        if not killed.is_set() and held_bytes(watched) > gib * GIB:
            killed.set()
            kill(watched)
        return killed.is_set()

    def watch() -> None:
        while not ended.wait(0.2) and not exceeded():
            pass

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    try:
        yield exceeded
    finally:
        ended.set()
        watcher.join()


def kill(process: psutil.Process) -> None:
    """End a kernel and all that it started, also what has outlived it."""
    for one in _family(process):
        with suppress(psutil.Error):
            one.kill()
    if os.name == "posix":  # a kernel leads a process group of its own
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(process.pid, signal.SIGKILL)


def _family(process: psutil.Process) -> list[psutil.Process]:
    try:
        return [*process.children(recursive=True), process]
    except psutil.Error:
        return []


def held_bytes(process: psutil.Process) -> int:
    """Memory of a process and all that it started; what forks share counts once, where Linux tells."""
    family, held = _family(process), 0
    for one in family:
        with suppress(psutil.Error):
            full = one.memory_full_info() if len(family) > 1 else one.memory_info()
            held += getattr(full, "pss", full.rss)
    return held


def _size(file: Path) -> int:
    return file.stat().st_size if file.exists() else 0


def _lines(file: Path, start: int) -> list[dict[str, Any]]:
    """The verdicts written from a place in the file on; a killed kernel's last line may be torn."""
    if not file.exists():
        return []
    lines = []
    for text in file.read_bytes()[start:].splitlines():
        try:
            lines.append(json.loads(text))
        except ValueError:
            continue
    return lines


# --- what comes out


def check_writable(out: Path) -> None:
    """Raise CourseError now, not after the first notebook, if the points cannot be written."""
    try:
        if out.is_dir():
            raise IsADirectoryError(None, "it is a folder")
        with tempfile.NamedTemporaryFile(dir=out.resolve().parent):
            pass
    except OSError as error:
        raise CourseError(
            f"cannot write {out}: {error.strerror}; --out names another file"
        ) from None


def write_rows(rows: list[Row], out: Path) -> None:
    """Replace the file by one with these rows."""
    new = out.with_name(f".{out.name}.new")
    try:
        # A name from another system's zip may hold what UTF-8 cannot.
        with new.open("w", encoding="utf-8", errors="replace", newline="") as file:
            table = csv.writer(file)
            table.writerow(COLUMNS)
            table.writerows([getattr(row, name) for name in COLUMNS] for row in rows)
        new.replace(out)
    except OSError as error:
        raise CourseError(f"cannot write {out}: {error.strerror}") from None


def print_table(rows: list[Row]) -> None:
    """Learner, points, of how many in what was handed in."""
    learners = dict.fromkeys(row.learner for row in rows)
    width = max(map(len, ("learner", *learners)))
    print(f"\n{'learner':{width}}{'points':>8}{'of':>6}")
    for learner in learners:
        own = [row for row in rows if row.learner == learner]
        points, of = sum(row.points for row in own), sum(row.of for row in own)
        print(f"{learner:{width}}{points:>8}{of:>6}")
