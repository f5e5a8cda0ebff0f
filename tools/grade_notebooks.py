"""Grade learners' notebooks: run each one in profile smoke, and write its points to a CSV file.

A folder holds notebooks, a subfolder of notebooks for each learner, zip files, or what a learning
platform gives; hand_ins.py tells whose a file is and which one counts. Each notebook runs in a
kernel of its own, up to its last cell with a `check`; the file itself is read and never written.
`check` hands its verdicts in through the file that COURSE_VERDICTS names, with what a right answer gave,
which is judged once more out here. Of several answers to an exercise a right one counts, else
the last. Every exercise of the notebook gets a row, whatever became of its cell, and every file
that is not graded is named with the reason. Where it is unclear whose a file is, a line says so.
What learners predicted (course/predict.py), if anything, comes out in the same way, into a file of
its own beside the points. gradebooks.py writes the points once more, in the forms that Moodle and
Canvas import.

An error in a cell stops nothing. A cell that runs too long, takes too much memory or ends its kernel
costs only its own exercise: the course's cell takes its place, with the reference solution, and
the notebook runs once more. Such a cell without an exercise is left out.

What a notebook does reaches nobody else:
- It has a home, folders, settings, a virtual environment, a copy of the package and of the cache of
  its own (isolation.py), all removed after it has run, with what it installed with pip; its
  processes are ended.
- On Linux (kernel 5.13 or newer) and macOS it can write nowhere else (sandbox.py). On Windows and
  older Linux it can, by a path that leads out; the grading says so when it begins.
- Where Linux allows it, it has a /dev/shm of its own. Elsewhere what is new there is removed after
  it has run, except files that another program uses.
- After each notebook the environment, the course, its cache, settings and what was handed in are
  compared with before. If what notebooks are graded with has changed, by whatever program,
  the grading stops and names learner and files; other changes are reported.

What is not protected: a learner's code runs with your rights. It can read your files, use your
network, change the permissions of your files (that is reported), and fill the disk. It can find out
the reference solutions, and whoever means to can forge a verdict with them. Grade strangers'
notebooks in a container, or under an account that owns nothing.
"""

import csv
import io
import json
import math
import os
import re
import signal
import subprocess
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import nbformat
import psutil
from jupyter_client.kernelspec import KernelSpecManager
from jupyter_client.manager import AsyncKernelManager
from nbclient import NotebookClient
from nbclient.exceptions import CellTimeoutError, DeadKernelError

import gradebooks
import hand_ins
import isolation
import sandbox
import sync_notebooks
from common import CourseError
from gradebooks import Row
from hand_ins import CHECKED, HandedIn, Other, courses_notebooks, source
from hand_ins import learner_of as learner_of  # known under this module's name, too
from hand_ins import which_notebook as which_notebook
from llama_int8.course.exercises import confirms
from llama_int8.files import write_atomic
from llama_int8.lessons import exercises
from llama_int8.models.cost import GIB

EXERCISES = exercises()

NOTEBOOK_CELLS = 10  # so many times the limit of a cell is the limit of one run of a notebook
LEFT_OUT = 2  # so many cells without an exercise may be left out of a notebook
COLUMNS = ("learner", "notebook", "exercise", "status", "points", "of", "message")
PREDICTION_COLUMNS = ("learner", "notebook", "name", "guess", "unit", "measured")
CHECK = re.compile(r"\bcheck\s*\(")
PREDICTED = re.compile(r"""\bpredict\(\s*["']([^"']*)["']""")
LOADS = re.compile(r"\b(load_model|load_tokenizer|embedded_folder|from_pretrained)\b")
LONGEST_MESSAGE = 1000  # characters; spreadsheets take 32,767 in a cell
LONGEST_GUESS = 100
OWN_FOLDER = " (a graded notebook can write in its working folder, its home and $TMPDIR only)"
UNPROTECTED = (
    "This system cannot keep a notebook from writing outside its own folder; what it changes there is "
    "reported after it has run. Linux 5.13 or newer and macOS can."
)


@dataclass(frozen=True)
class Limits:
    """The limits of a notebook."""

    seconds: int  # for a cell
    gib: float  # resident memory of the kernel and what it starts


@dataclass(frozen=True)
class Prediction:
    """A line of the file of predictions: a guess, and what this run of the notebook measured."""

    learner: str
    notebook: str
    name: str
    guess: str
    unit: str
    measured: str


@dataclass
class Graded:
    """The lines of one file."""

    rows: list[Row]
    predictions: list[Prediction] = field(default_factory=list)


@dataclass
class Fatal:
    """A cell that ended its kernel or had to be stopped."""

    status: str  # time, memory, died
    message: str
    cell: int


@dataclass(frozen=True)
class Verdict:
    """The outcome of one answer to an exercise."""

    cell: int
    name: str
    status: str
    message: str


@dataclass
class Run:
    """Result of one run of the notebook."""

    verdicts: list[Verdict] = field(default_factory=list)  # in the order of the checks
    errors: dict[int, str] = field(default_factory=dict)  # by cell
    fatal: Fatal | None = None
    late: bool = False  # the notebook's time was up
    predictions: dict[str, dict[str, Any]] = field(default_factory=dict)  # the last by name


@dataclass(frozen=True)
class Outcome:
    """What a notebook's runs gave: status and message by exercise, and predictions by name."""

    exercises: dict[str, tuple[str, str]]
    predictions: dict[str, dict[str, Any]] = field(default_factory=dict)


def main(folder: Path, out: Path, seconds: int, memory: float, learners: Path | None = None) -> int:
    """Grade what is in `folder`; print a line for each and a table. Raises CourseError, OSError."""
    if seconds < 1 or not memory > 0:
        raise CourseError(
            f"--seconds is {seconds} and --memory {memory:g}; both must be more than 0"
        )
    second = out.with_stem(out.stem + "-2")
    own = (out, second, _for_predictions(out), _for_predictions(second), *gradebooks.paths(out))
    accounts = gradebooks.read_learners(learners) if learners else {}
    if learners:
        own += (learners,)
    with tempfile.TemporaryDirectory(prefix="grade-", ignore_cleanup_errors=True) as unpacked:
        handed_in, others = hand_ins.find(folder, Path(unpacked), besides=own)
    check_writable(out)
    for other in others:
        print(f"not graded: {other.shown}: {other.reason}")
    for line in hand_ins.unclear(handed_in):
        print(line)
    _prepare(handed_in)
    rows: list[Row] = []
    predictions: list[Prediction] = []
    guesses = _for_predictions(out)
    told: set[str] = set()
    stopped = ""
    watch = isolation.Watch(folder, own=own)
    for number, one in enumerate(handed_in, 1):
        if one.learner not in told:
            told.add(one.learner)
            rows += [_row_of(other) for other in others if other.learner == one.learner]
        start = time.monotonic()
        left_out = stopped and one.runs
        fresh = _not_graded(one, stopped) if left_out else grade(one, Limits(seconds, memory))
        rows += fresh.rows
        predictions += fresh.predictions
        _report(fresh.rows, f"[{number} of {len(handed_in)}]", time.monotonic() - start)
        if not stopped and one.runs:
            stopped = _look_around(watch, one)
        # Most often a spreadsheet has the file open; hours of work must not be lost.
        last = number == len(handed_in)
        out = _write(rows, out, second if last else None)
        if predictions or guesses.exists():  # one of an earlier grading
            instead = _for_predictions(second) if last else None
            guesses = _write(predictions, guesses, instead, PREDICTION_COLUMNS)
    print_table(rows)
    print(f"\n{len(rows)} rows in {out}")
    if predictions:
        print(f"{len(predictions)} predictions in {guesses}")
    gradebooks.write(rows, out, accounts)
    if stopped:
        raise CourseError(stopped)
    return 0


def _prepare(handed_in: list[HandedIn]) -> None:
    """Read and fetch, before the first notebook runs, what all of them need."""
    for one in handed_in:
        if one.notebook:
            _own_cells(one.notebook)
    if not sandbox.works():
        print(UNPROTECTED)
    loads = any(LOADS.search(source(cell)) for one in handed_in for cell in one.cells)
    if loads and (failed := isolation.prepare_model()):
        print(f"The default model is not there ({failed}); each notebook tries to fetch it.")


def _look_around(watch: isolation.Watch, one: HandedIn) -> str:
    """Say what has changed outside while a notebook ran; why nothing more can be graded, if so."""
    changes = watch.changes()
    who = f"while {one.learner}'s {one.shown} ran"
    if changes.other:
        print(f"CHANGED {who}, by it or by another program: {_few(changes.other)}", flush=True)
    if not changes.grading:
        return ""
    return (
        f"grading stopped: {who}, what every notebook is graded with was changed, by it or by another "
        f"program: {_few(changes.grading)}. Put it right (git checkout for the course's files; for "
        "packages delete .venv, the next command makes it again), then grade again"
    )


def _few(paths: list[str]) -> str:
    more = f" and {len(paths) - 5} more" if len(paths) > 5 else ""
    return ", ".join(paths[:5]) + more


def _for_predictions(out: Path) -> Path:
    return out.with_stem(out.stem + "-predictions")


def _not_graded(one: HandedIn, why: str) -> Graded:
    names = courses_notebooks()[one.notebook]
    return Graded(_rows(one, dict.fromkeys(names, ("not graded", why))))


def _row_of(other: Other) -> Row:
    return Row(other.learner, other.shown, "", "not graded", 0, 0, other.reason)


def _report(rows: list[Row], number: str, seconds: float) -> None:
    first = rows[0]
    start = f"{number} {first.learner}, {first.notebook}:"
    if not first.exercise:  # nothing of it has run
        print(f"{start} {first.message}", flush=True)
        return
    points, of = sum(row.points for row in rows), sum(row.of for row in rows)
    odd = Counter(r.status for r in rows if r.status not in ("correct", "wrong", "blank"))
    more = "".join(f"; {status} {count}" for status, count in odd.items())
    print(f"{start} {points} of {of} points, {seconds:.0f} s{more}", flush=True)


def _write(
    rows: Sequence[Row | Prediction],
    out: Path,
    instead: Path | None,
    columns: tuple[str, ...] = COLUMNS,
) -> Path:
    """Write rows, to `instead` if there is one and `out` cannot be written; the file it was."""
    try:
        write_rows(rows, out, columns)
    except CourseError as error:
        print(error, flush=True)
        if instead:
            write_rows(rows, instead, columns)
            return instead
    return out


# --- grading one file


def grade(one: HandedIn, limits: Limits) -> Graded:
    """The rows of one file, and its predictions."""
    if one.path is None:
        return Graded([Row(one.learner, "-", "", "missing", 0, 0, one.problem)])
    if one.counts:
        message = (
            f"not graded: {one.shown} is the same notebook as {one.counts}, which counts, as the "
            "latest that can be read"
        )
        return Graded([Row(one.learner, one.notebook, "", "duplicate", 0, 0, message)])
    if one.notebook is None:
        message = one.problem or "no exercise of the course is in it"
        name = one.shown.rpartition("/")[2]
        return Graded([Row(one.learner, name, "", "unreadable", 0, 0, message)])
    if one.problem:
        names = courses_notebooks()[one.notebook]
        return Graded(_rows(one, dict.fromkeys(names, ("unreadable", one.problem))))
    outcome = judge_cells(one.cells, one.notebook, limits)
    return Graded(_rows(one, outcome.exercises), predictions_of(one, outcome.predictions))


def _rows(one: HandedIn, found: dict[str, tuple[str, str]]) -> list[Row]:
    rows = []
    for name in courses_notebooks()[one.notebook]:
        status, message = found[name]
        of = EXERCISES[name].points
        points = of if status == "correct" else 0
        message = " ".join(message.split())
        message = message[:LONGEST_MESSAGE] + " ..." * (len(message) > LONGEST_MESSAGE)
        rows.append(Row(one.learner, one.notebook, name, status, points, of, message))
    return rows


def predictions_of(one: HandedIn, found: dict[str, dict[str, Any]]) -> list[Prediction]:
    """The guesses that a notebook handed in, of those that the course's own notebook asks for."""
    own = [source(cell) for cell in _own_cells(one.notebook)]
    asked = dict.fromkeys(name for text in own for name in PREDICTED.findall(text))
    predictions = []
    for name in asked:
        line = found.get(name, {})
        guess, unit, measured = (_as_text(line.get(key)) for key in ("guess", "unit", "measured"))
        if guess:
            predictions.append(Prediction(one.learner, one.notebook, name, guess, unit, measured))
    return predictions


def _as_text(value: Any) -> str:
    """A number or a text of a learner's notebook for a table; nothing for anything else."""
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        return ""
    text = " ".join(str(value).split())[:LONGEST_GUESS]
    # A spreadsheet would compute what begins like a formula.
    formula = isinstance(value, str) and text.startswith(("=", "+", "-", "@"))
    return f"'{text}" if formula else text


def judge_cells(cells: list[dict[str, Any]], notebook: str, limits: Limits) -> Outcome:
    """The outcome of a notebook, from as many runs as fatal cells ask for."""
    code = tuple(filter(None, map(source, cells)))
    if code == tuple(filter(None, map(source, _own_cells(notebook)))):
        return _as_handed_out(notebook, limits)
    return _judge(cells, notebook, limits)


@cache
def _as_handed_out(notebook: str, limits: Limits) -> Outcome:
    """The result of the unchanged notebook: the same for every learner."""
    return _judge(_own_cells(notebook), notebook, limits)


@cache  # what stands there when the grading begins, whoever runs the notebooks meanwhile
def _own_cells(notebook: str) -> list[dict[str, Any]]:
    return sync_notebooks.read(sync_notebooks.NOTEBOOKS / f"{notebook}.ipynb")["cells"]


def _judge(cells: list[dict[str, Any]], notebook: str, limits: Limits) -> Outcome:
    exercises = courses_notebooks()[notebook]
    own = {name: source(c) for c in _own_cells(notebook) for name in CHECKED.findall(source(c))}
    texts = with_parameters(cells, notebook)
    last = max((i for i, text in enumerate(texts) if CHECK.search(text)), default=-1)
    texts = texts[: last + 1]
    checked = [[name for name in exercises if name in CHECKED.findall(text)] for text in texts]
    replaced: dict[int, list[Verdict]] = {}
    notes: list[str] = []
    predictions: dict[str, dict[str, Any]] = {}
    run = Run()
    for _ in range(len(exercises) + LEFT_OUT + 1 if texts else 0):
        run = run_cells(texts, limits)
        predictions |= run.predictions
        if run.fatal is None:
            break
        cell, first_line = run.fatal.cell, texts[run.fatal.cell].strip().partition("\n")[0]
        inside = [] if cell in replaced else checked[cell]
        verdicts = [v for v in run.verdicts if v.cell == cell and cell not in replaced]
        judged = {verdict.name for verdict in verdicts}  # one from before the end stands
        ended = [
            Verdict(cell, name, run.fatal.status, run.fatal.message)
            for name in inside
            if name not in judged
        ]
        if not ended:
            notes.append(f"a cell was left out ({first_line[:60]!r}: {run.fatal.message})")
        replaced.setdefault(cell, verdicts + ended)
        texts[cell] = "\n\n".join(own[name] for name in inside)
    verdicts = [v for v in run.verdicts if v.cell not in replaced]
    verdicts += [verdict for ones in replaced.values() for verdict in ones]
    judged = {(verdict.cell, verdict.name) for verdict in verdicts}
    verdicts += [
        Verdict(cell, name, "error", run.errors[cell])
        for cell in run.errors.keys() - replaced.keys()
        for name in checked[cell]
        if (cell, name) not in judged
    ]
    found = {}
    for name in exercises:
        status, message = best([v for v in verdicts if v.name == name]) or _why_none(
            run, any(name in names for names in checked), limits
        )
        found[name] = (status, "; ".join([message, *notes]))
    return Outcome(found, predictions)


def best(verdicts: list[Verdict]) -> tuple[str, str] | None:
    """The answer to one exercise that counts: a right one, else the last one that is not blank.

    A blank copy of a cell below, or a try after the right answer, takes nothing away.
    """
    ranks = {"correct": 2, "blank": 0}
    verdicts = sorted(verdicts, key=lambda v: (ranks.get(v.status, 1), v.cell))
    return (verdicts[-1].status, verdicts[-1].message) if verdicts else None


def _why_none(run: Run, has_a_cell: bool, limits: Limits) -> tuple[str, str]:
    if run.late:
        return "time", f"not reached in {NOTEBOOK_CELLS * limits.seconds} s"
    if run.fatal:
        return run.fatal.status, f"not reached: {run.fatal.message} in too many cells"
    return "missing", "its cell never called check" if has_a_cell else "no cell checks it"


def with_parameters(cells: list[dict[str, Any]], notebook: str) -> list[str]:
    """The cells' code, and after the parameters the course's own ones, in profile smoke.

    `exercises` is imported with them, for the first exercise's cell, which does so, may be gone; and
    exit() does not end the kernel, since it would do so in the next cell.
    """
    parameters = next(source(cell) for cell in _own_cells(notebook) if _is_parameters(cell))
    forced = (
        f'{parameters}\nPROFILE = "smoke"\n'
        f"from llama_int8.lessons.n{notebook.partition('_')[0]} import exercises\n"
        "get_ipython().ask_exit = lambda: None\n"
    )
    texts = [] if any(map(_is_parameters, cells)) else [forced]
    for cell in cells:
        texts += [source(cell), forced] if _is_parameters(cell) else [source(cell)]
    return texts


def _is_parameters(cell: dict[str, Any]) -> bool:
    tagged = "parameters" in cell.get("metadata", {}).get("tags", [])
    return tagged or bool(re.search(r"^PROFILE\s*=", source(cell), re.MULTILINE))


# --- running the cells, with limits


class QuietClient(NotebookClient):
    """Keeps nothing of what the cells show, so a cell that prints forever does not fill memory."""

    def process_message(self, msg: dict[str, Any], cell: Any, cell_index: int) -> Any:
        if msg["msg_type"] == "status":
            return super().process_message(msg, cell, cell_index)
        return None


def run_cells(texts: list[str], limits: Limits) -> Run:
    """Run cells in a fresh kernel and a room of its own, up to the first that is fatal."""
    run = Run()
    with isolation.room() as room, kernel(texts, room) as (client, watched):
        with memory_limit(watched, limits.gib) as exceeded:
            _run_each(client, limits, run, room.verdicts, exceeded)
        if run.fatal and exceeded():
            run.fatal.status = "memory"
            run.fatal.message = f"the cell took more than {limits.gib:g} GiB of memory"
    return run


def _run_each(
    client: NotebookClient, limits: Limits, run: Run, file: Path, exceeded: Callable[[], bool]
) -> None:
    end = time.monotonic() + NOTEBOOK_CELLS * limits.seconds

    def note_error(cell: Any, cell_index: int, execute_reply: dict[str, Any]) -> None:
        error = execute_reply["content"]
        hint = OWN_FOLDER if error["ename"] == "PermissionError" else ""
        run.errors[cell_index] = "{ename}: {evalue}".format(**error) + hint

    client.on_cell_error = note_error
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
        run.verdicts += [_verdict(number, line) for line in lines if _is_verdict(line)]
        run.predictions |= {line["name"]: line for line in lines if _is_prediction(line)}
        if run.fatal or run.late:
            return


@contextmanager
def kernel(
    texts: list[str], room: isolation.Room
) -> Iterator[tuple[NotebookClient, psutil.Process]]:
    """A client of these cells, and its kernel in the room; the kernel is killed at the end."""
    command = room.command("-m", "ipykernel_launcher", "-f", "{connection_file}")
    spec = {"argv": command, "display_name": "graded", "language": "python"}
    (room.folder / "kernels" / "graded").mkdir(parents=True)
    (room.folder / "kernels" / "graded" / "kernel.json").write_text(json.dumps(spec))
    client = QuietClient(
        nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(text) for text in texts]),
        km=AsyncKernelManager(
            kernel_name="graded",
            kernel_spec_manager=KernelSpecManager(kernel_dirs=[str(room.folder / "kernels")]),
            connection_file=str(room.folder / "kernel.json"),
        ),
        allow_errors=True,
        shutdown_kernel="immediate",
        extra_arguments=["--IPKernelApp.log_level=50", "--HistoryManager.enabled=False"],
    )
    client.log.setLevel("CRITICAL")  # a death of the kernel is no news here
    silent = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    with ExitStack() as stack:
        try:
            start = {"env": room.environment(), "cwd": str(room.work), "cleanup_kc": True}
            stack.enter_context(client.setup_kernel(**start, **silent))
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
    """What `check` and `predict` wrote from a place in the file on; all else there is passed over.

    A killed kernel's last line may be torn, and a notebook may write or delete what it likes.
    """
    if not file.is_file():
        return []
    lines = []
    content = file.read_bytes()
    for text in content[start if start <= len(content) else 0 :].splitlines():
        with suppress(ValueError, RecursionError):
            line = json.loads(text)
            if isinstance(line, dict) and isinstance(line.get("name"), str):
                lines.append(line)
    return lines


def _is_verdict(line: dict[str, Any]) -> bool:
    return line.get("status", "begun") != "begun" and line["name"] in EXERCISES


def _is_prediction(line: dict[str, Any]) -> bool:
    return line.get("kind") == "prediction"


def _verdict(cell: int, line: dict[str, Any]) -> Verdict:
    """A verdict of the notebook's own `check`; "correct" is looked at once more, out here."""
    status, message = str(line["status"]), str(line.get("message", ""))
    if status == "correct" and not confirms(line["name"], line.get("outcomes")):
        status = "altered"
        message = "the notebook has changed how its answers are checked: this one is not right"
    elif line.get("own") is False:
        status = "blank"
        message = "this is the reference, as an earlier check gave it; define your function again"
    return Verdict(cell, line["name"], status, message)


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


def write_rows(
    rows: Sequence[Row | Prediction], out: Path, columns: tuple[str, ...] = COLUMNS
) -> None:
    """Replace the file by one with these rows."""
    text = io.StringIO(newline="")
    table = csv.writer(text)
    table.writerow(columns)
    table.writerows([getattr(row, name) for name in columns] for row in rows)
    try:  # a name from another system's zip may hold what UTF-8 cannot
        write_atomic(out, text.getvalue().encode(errors="replace"))
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
