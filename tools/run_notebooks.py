"""Execute the notebooks with papermill, and let only what succeeded replace what is committed.

A notebook runs in a working folder of its own under `.course/`, in a fresh kernel. When its last
cell has succeeded, its normalised copy, its figures and its results are moved to their places, and
last of all a stamp is written. So a failure, Ctrl-C or `kill -9` costs the notebook that was
running, and nothing that was there before.
"""

import errno
import hashlib
import json
import os
import shutil
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib.metadata import distributions
from pathlib import Path
from typing import Any

import psutil

import sync_notebooks
from common import ROOT, STATE, CourseError, require_writable
from llama_int8 import profiles
from llama_int8.files import package_hash, sha256, write_all
from llama_int8.measure.reference import set_machine
from llama_int8.measure.results import (
    DEFAULT_FOLDER,
    by_content,
    machine_name,
    model_file_name,
    write_json,
)
from llama_int8.models import DEFAULT_MODEL, SYNTHETIC, ModelError, config_of, model_folder
from llama_int8.models.content import is_folder, model_hash
from llama_int8.names import did_you_mean

REFERENCE_PROFILE = "cpu"
# What is no notebook parameter for `--param`, as the command has an option for it.
OPTIONS = {
    "profile": "--profile NAME",
    "model": "--model NAME",
    "results_dir": "--out FOLDER",
}
FREE_SPACE = "; free some space on the disk first"


@dataclass(frozen=True)
class Job:
    """One notebook to run: with which parameters, and where its products go."""

    name: str
    parameters: dict[str, Any]
    settings: profiles.Settings
    notebooks: Path
    figures: Path
    results: Path
    cell_timeout: int

    @property
    def source(self) -> Path:
        return sync_notebooks.NOTEBOOKS / f"{self.name}.ipynb"

    @property
    def stamp(self) -> Path:
        where = hashlib.sha256(str(self.notebooks.resolve()).encode()).hexdigest()[:8]
        return STATE / "stamps" / f"{self.settings.profile}-{where}" / f"{self.name}.json"


@dataclass(frozen=True)
class Outcome:
    """A line of the summary table."""

    name: str
    seconds: float | None  # None: was up to date
    figures: int
    slowest: list[tuple[str, float]] = field(default_factory=list)  # cell id, seconds


def main(
    profile: str = REFERENCE_PROFILE,
    only: list[str] | None = None,
    force: bool = False,
    model: str | None = None,
    params: list[str] | None = None,
    out: Path | None = None,
    cell_timeout: int | None = None,
) -> int:
    """Run what is not up to date; print progress and a summary table. Raises CourseError."""
    jobs = plan(profile, only, model, params or [], out, cell_timeout)
    for job in jobs:
        require_writable(job.notebooks, job.figures, job.results)
    clear_abandoned_work()
    fetch_models(jobs)
    outcomes = []
    for job in jobs:
        fresh = None if force else fresh_stamp(job)
        outcomes.append(
            Outcome(job.name, None, len(fresh["figures"])) if fresh is not None else execute(job)
        )
    print_table(outcomes)
    if jobs and jobs[0].notebooks != sync_notebooks.NOTEBOOKS:
        print(f"Notebooks and figures: {_shown(jobs[0].notebooks.parent)}")
    return 0


# --- planning: every mistake in the arguments is found before the first kernel starts


def plan(
    profile: str,
    only: list[str] | None,
    model: str | None,
    params: list[str],
    out: Path | None,
    cell_timeout: int | None,
) -> list[Job]:
    """The jobs that the arguments ask for. Raises CourseError for any that make no sense."""
    names = select([path.stem for path in sync_notebooks.notebook_paths()], only)
    if cell_timeout is not None and cell_timeout < 1:
        raise CourseError(f"--cell-timeout is {cell_timeout}; it must be at least 1 second")
    try:
        if model is not None:
            config_of(model)
        chosen = profiles.read_profile(profile)
        if chosen.device != "cpu":
            _require_gpu(profile)
        for name in names:
            profiles.resolve(name, profile)
        changes = parse_params(params, [chosen.notebooks[name] for name in names])
        given: dict[str, Any] = {"PROFILE": profile}
        if model is not None:  # a kernel starts in another folder; a registered name is no folder
            path = os.path.abspath(os.path.expanduser(model))
            model = given["MODEL"] = path if is_folder(model) else model
        jobs = []
        reference = profile == REFERENCE_PROFILE and model is None and not changes and out is None
        base = out or STATE / "runs" / (
            profile if model is None else f"{profile}-{model_file_name(model, model_hash(model))}"
        )
        # A results file names machine, notebook and model. A second CPU profile would take the place
        # of the reference run's, so only a GPU's profiles stand beside it.
        kept = profile == REFERENCE_PROFILE or chosen.device != "cpu"
        keep_results = out is None and not params and kept
        for name in names:
            own = {key: v for key, v in changes.items() if key in chosen.notebooks[name]}
            jobs.append(
                Job(
                    name,
                    {**given, "CHANGES": own},
                    profiles.resolve(name, profile, model, own),
                    sync_notebooks.NOTEBOOKS if reference else base / "notebooks",
                    ROOT / "figures" if reference else base / "figures",
                    ROOT / "results" if keep_results else base / "results",
                    cell_timeout or chosen.cell_timeout_s,
                )
            )
    except (ValueError, ModelError) as error:
        raise CourseError(str(error)) from None
    return jobs


def fetch_models(jobs: list[Job]) -> None:
    """Fetch the models before a notebook starts, so that no download shows in its outputs.

    A hub model that a profile chose is left to the notebook, which can run without it. Raises
    CourseError.
    """
    named = {j.settings.model for j in jobs if "model" in j.settings.customized}
    usual = {j.settings.model for j in jobs} & {DEFAULT_MODEL}
    try:
        for name in named | usual:
            if not name.startswith(SYNTHETIC):
                model_folder(name)
    except ModelError as error:
        raise CourseError(str(error)) from None


def select(names: list[str], only: list[str] | None) -> list[str]:
    """The notebooks meant by `only`: numbers ("06") or names. Raises CourseError."""
    if only is None:
        return names
    chosen = []
    for wanted in (Path(part.strip()).name.removesuffix(".ipynb") for part in only):
        found = [name for name in names if wanted.lower() in (name, name.partition("_")[0])]
        if not found:
            near = did_you_mean(wanted.zfill(2), [n.partition("_")[0] for n in names])
            near = near or did_you_mean(wanted, names)
            raise CourseError(f"no notebook {wanted!r}; there are {', '.join(names)}{near}")
        chosen += found
    return sorted(set(chosen))


def parse_params(params: list[str], known: list[dict[str, Any]]) -> dict[str, Any]:
    """NAME=VALUE pairs as values of the types that the profile holds. Raises CourseError."""
    everything = {name: value for parameters in known for name, value in parameters.items()}
    parsed = {}
    for text in params:
        name, equals, value = text.partition("=")
        name, value = name.strip().lower(), value.strip()
        if not equals:
            raise CourseError(f"--param is {text!r}; it must be NAME=VALUE")
        if name in OPTIONS:
            raise CourseError(f"--param is {text!r}; use {OPTIONS[name]} instead")
        try:
            read = value if isinstance(everything.get(name), str) else json.loads(value)
        except (ValueError, RecursionError):  # the latter: brackets within brackets, thousands deep
            read = value
        parsed[name] = profiles.check_type(name, read, everything)
    return parsed


def _require_gpu(profile: str) -> None:
    import torch

    if not torch.cuda.is_available():
        raise CourseError(f"profile {profile} needs a GPU and PyTorch sees none; use --profile cpu")


# --- freshness


def fingerprint(job: Job) -> str:
    """What a run's products follow from: text, parameters, package, versions, machine.

    Models and data files count by their content, whatever their names.
    """
    cells = [
        (cell["cell_type"], "".join(cell["source"]))
        for cell in sync_notebooks.read(job.source)["cells"]
        if cell["id"] not in sync_notebooks.MANAGED_CELLS
        and not sync_notebooks.is_solution(cell["id"])
    ]
    versions = sorted((d.metadata["Name"], d.version) for d in distributions())
    everything = {
        "cells": cells,
        "settings": by_content(job.settings),
        "package": package_hash(f"n{job.name.partition('_')[0]}"),
        "versions": [sys.version, *versions],
        "machine": machine_name(job.settings.device),
    }
    return hashlib.sha256(json.dumps(everything, sort_keys=True).encode()).hexdigest()


def fresh_stamp(job: Job) -> dict[str, Any] | None:
    """The stamp of the last run, if all that it followed from and produced is unchanged."""
    try:
        stamp = json.loads(job.stamp.read_text(encoding="utf-8"))
        if stamp["fingerprint"] != fingerprint(job):
            return None
        outputs = _outputs_hash(job.notebooks / job.source.name)
        same = outputs == stamp["outputs"] and all(
            sha256(Path(path)) == digest for path, digest in stamp["files"].items()
        )
    except (OSError, ValueError, KeyError, CourseError):
        return None
    return stamp if same else None


def _outputs_hash(notebook: Path) -> str:
    outputs = [cell.get("outputs") for cell in sync_notebooks.read(notebook)["cells"]]
    return hashlib.sha256(json.dumps(outputs).encode()).hexdigest()


# --- execution


def execute(job: Job) -> Outcome:
    """Run one notebook and publish what it made. Raises CourseError if anything fails."""
    from nbclient.exceptions import CellTimeoutError, DeadKernelError
    from papermill.exceptions import PapermillExecutionError

    work = STATE / "work" / f"{os.getpid()}-{job.name}"
    work.mkdir(parents=True)
    progress = Progress(job)
    before = by_content(job.settings)
    try:
        with progress.shown():
            _papermill(job, work, progress)
        changed = changed_inputs(job, before)
        if changed:
            reason = f"what {changed} names changed in the run: the numbers belong to neither state"
            raise _failed(job, work, progress, reason)
        figures = publish(job, work, progress.seconds)
    except PapermillExecutionError as error:
        reason = f"{error.ename}: {_first_line(error.evalue)}"
        full = os.strerror(errno.ENOSPC) in error.evalue
        raise _failed(job, work, progress, reason + (FREE_SPACE if full else "")) from None
    except CellTimeoutError:
        reason = f"it took longer than {job.cell_timeout} s; --cell-timeout SECONDS allows more"
        raise _failed(job, work, progress, reason) from None
    except DeadKernelError:
        reason = "the kernel died, most often from lack of memory: close other programs, or take a "
        raise _failed(job, work, progress, reason + "smaller --model or --profile") from None
    except OSError as error:
        full = error.errno in (errno.ENOSPC, errno.EDQUOT)
        reason = error.strerror or str(error)
        raise _failed(job, work, progress, reason + (FREE_SPACE if full else "")) from None
    finally:
        shutil.rmtree(work, ignore_errors=True)
    return Outcome(job.name, progress.seconds, len(figures), progress.slowest())


def changed_inputs(job: Job, before: dict[str, Any]) -> str:
    """Parameters whose model or file is not the one from `before` the run; a fetched one is new."""
    after = by_content(job.settings)
    known = [
        name for name in before if name != "more_models" and before[name] != job.settings[name]
    ]
    return ", ".join(name for name in known if before[name] != after[name])


def _papermill(job: Job, work: Path, progress: "Progress") -> None:
    import papermill
    from papermill.engines import NBClientEngine, papermill_engines

    class ProgressEngine(NBClientEngine):
        """papermill's own engine, telling `progress` of each cell that it starts."""

        @classmethod
        def execute_managed_notebook(cls, nb_man, kernel_name, **options):
            start = nb_man.cell_start

            def tell_and_start(cell, cell_index=None, **more):
                progress.starts(cell)
                return start(cell, cell_index, **more)

            nb_man.cell_start = tell_and_start
            return super().execute_managed_notebook(nb_man, kernel_name, **options)

    papermill_engines.register("progress", ProgressEngine)
    papermill.execute_notebook(
        str(job.source),
        str(work / job.source.name),
        parameters=job.parameters,
        engine_name="progress",
        kernel_name="python3",
        language="python",
        progress_bar=False,
        cwd=str(work),
        execution_timeout=job.cell_timeout,
        iopub_timeout=job.cell_timeout,  # 4 s of silence on a busy machine is not a failure
        extra_arguments=["--IPKernelApp.log_level=50"],  # readers do not need its log
    )


def publish(job: Job, work: Path, seconds: float) -> list[str]:
    """Copy notebook, figures and results to their places, then write the stamp; returns figures."""
    output = work / DEFAULT_FOLDER
    executed = sync_notebooks.read(work / job.source.name)
    notebook = sync_notebooks.synced(executed, job.name, sync_notebooks.repository_address())
    for path in (output / "results").rglob("*.json"):
        content = json.loads(path.read_text(encoding="utf-8"))
        write_json(path, {**content, "run_seconds": round(seconds, 1)})
    figures = sorted((output / "figures").glob("*.png"))
    published = job.notebooks / job.source.name
    targets: dict[Path, str | bytes] = {published: sync_notebooks.dump(notebook)}
    targets |= {job.figures / path.name: path.read_bytes() for path in figures}
    for path in sorted((output / "results").rglob("*.json")):
        targets[job.results / path.relative_to(output / "results")] = path.read_bytes()
    write_all(targets)
    number = job.name.partition("_")[0]
    for old in set(job.figures.glob(f"{number}_*.png")) - set(targets):
        old.unlink()
    stamp = {
        "fingerprint": fingerprint(job),
        "outputs": _outputs_hash(published),
        "files": {str(t): sha256(t) for t in targets if t != published},
        "figures": [path.name for path in figures],
    }
    if job.notebooks == sync_notebooks.NOTEBOOKS:  # the report's headline follows the figures
        machine = machine_name(job.settings.device)
        set_machine(ROOT / "results", job.name, machine)
    write_json(job.stamp, stamp)
    return stamp["figures"]


def _failed(job: Job, work: Path, progress: "Progress", reason: str) -> CourseError:
    """The one message of a failure; the notebook is kept as far as it ran."""
    kept = STATE / "failed" / job.source.name
    where = ""
    try:
        kept.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(work / job.source.name, kept)
        where = f"  The notebook up to this point: {_shown(kept)}\n"
    except OSError:
        pass
    return CourseError(
        f"{job.name}, cell {progress.cell} of {progress.cells}: {reason}\n"
        f"  The cell begins: {progress.first_line}\n{where}"
        "  Committed notebook, figures and results are as they were. When it is fixed: "
        f"python3 tools/course.py run --only {job.name.partition('_')[0]}"
    )


def clear_abandoned_work() -> None:
    """Remove the working folders of runs that were killed."""
    for folder in (STATE / "work").glob("*-*"):
        if not psutil.pid_exists(int(folder.name.partition("-")[0])):
            shutil.rmtree(folder, ignore_errors=True)


# --- what the user sees


class Progress:
    """Notebook, cell k of n and elapsed time, kept up to date on a terminal."""

    def __init__(self, job: Job) -> None:
        self.name = job.name
        cells = sync_notebooks.read(job.source)["cells"]
        self.cells = sum(cell["cell_type"] == "code" for cell in cells)
        self.cell, self.first_line = 0, "(no cell had started)"
        self._start, self.seconds = time.monotonic(), 0.0
        self._starts: list[tuple[str, float]] = []  # (cell id, when it began)
        self._ended = threading.Event()

    def starts(self, cell: dict[str, Any]) -> None:
        """Count a code cell that begins; papermill's injected one is not the notebook's."""
        if cell["cell_type"] != "code" or "injected-parameters" in cell["metadata"].get("tags", []):
            return
        self.cell += 1
        self.first_line = _first_line(cell["source"])
        self._starts.append((cell["id"], time.monotonic()))
        if not sys.stdout.isatty():
            print(self._line(), flush=True)

    @contextmanager
    def shown(self) -> Iterator[None]:
        """Rewrite the line each half second while the block runs, if there is a terminal."""
        ticker = threading.Thread(target=self._tick, daemon=True)
        ticker.start()
        try:
            yield
        finally:
            self.seconds = time.monotonic() - self._start
            self._ended.set()
            ticker.join()

    def slowest(self, count: int = 3) -> list[tuple[str, float]]:
        """Ids and seconds of the cells that took longest."""
        ends = [*(begun for _, begun in self._starts[1:]), self._start + self.seconds]
        took = [(name, end - begun) for (name, begun), end in zip(self._starts, ends, strict=True)]
        return sorted(took, key=lambda cell: -cell[1])[:count]

    def _tick(self) -> None:
        while sys.stdout.isatty() and not self._ended.wait(0.5):
            print(f"\r{self._line()}", end="", flush=True)
        if sys.stdout.isatty():
            print("\r" + " " * 60 + "\r", end="", flush=True)

    def _line(self) -> str:
        minutes, seconds = divmod(int(time.monotonic() - self._start), 60)
        return f"{self.name}: cell {self.cell} of {self.cells}, {minutes}:{seconds:02d}"


def print_table(outcomes: list[Outcome]) -> None:
    """Notebook, seconds, figures written, and where the time went."""
    print(f"\n{'notebook':28}{'seconds':>12}{'figures':>9}  slowest cells")
    for one in outcomes:
        took = "up to date" if one.seconds is None else f"{one.seconds:.1f}"
        cells = ", ".join(f"{name} {seconds:.0f} s" for name, seconds in one.slowest)
        print(f"{one.name:28}{took:>12}{one.figures:>9}  {cells}".rstrip())
    total = sum(one.seconds or 0 for one in outcomes)
    print(f"{'together':28}{total:>12.1f}")


def _first_line(text: str) -> str:
    return next((line for line in text.splitlines() if line.strip()), "(empty)")


def _shown(path: Path) -> str:
    return str(path.relative_to(ROOT) if path.is_relative_to(ROOT) else path)
