#!/usr/bin/env python3
"""The one command of the course: set up, run, test, report.

Needs Python 3.11 or newer and nothing else: it makes its own environment in `.venv`, with the
tested versions of `constraints.txt`, and goes on inside it.
"""

import argparse
import hashlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from importlib import invalidate_caches
from importlib.util import find_spec
from pathlib import Path

from common import ROOT, STATE, TOOLS, CourseError, require_writable

VENV = ROOT / ".venv"
PROFILES = sorted(file.stem for file in (TOOLS / "llama_int8/profiles").glob("*.yaml"))
NOTEBOOK_TESTS = "tools/tests/test_notebooks.py"
GPU_TESTS = "tools/tests/test_gpu.py"
OWN_MODELS = "with_a_model_of_ones_own"  # the test there that `test --models` runs, all of it

EXAMPLES = """examples:
  python3 tools/course.py run                       every notebook, profile cpu; rebuilds the report
  python3 tools/course.py run --only 06 --force     notebook 06 again, though nothing has changed
  python3 tools/course.py run --profile t4          on a T4; notebooks and figures go to .course/runs
  python3 tools/course.py run --only 08 --model ~/models/tiny --out /tmp/tiny
  python3 tools/course.py run --only 00 --param new_tokens=96 --out /tmp/longer
  python3 tools/course.py test --fast               lint and the quick tests
  python3 tools/course.py test --gpu                what needs an NVIDIA GPU, in minutes
  python3 tools/course.py test --models             every notebook with models of one's own
  python3 tools/course.py compare results/a results/b
  python3 tools/course.py generate --precision bf16,int8 --prompt "Why is the sky blue?"
  python3 tools/course.py evaluate --model llama-3.2-1b --task piqa --data valid.jsonl
  python3 tools/course.py grade submissions --out points.csv --learners learners.csv
  python3 tools/course.py slides talk               the slides, for any browser, in the folder talk
  python3 tools/course.py site                      the course as a website, in .course/site
  python3 tools/course.py fetch packages --platform windows,macos --python 3.12
  python3 tools/course.py install packages          without network, from such a folder
  python3 tools/course.py sync --repository jane/llama-in-8-bits   after a fork: badges, bootstrap

To use an environment of your own instead of .venv, name its interpreter in COURSE_PYTHON.
"""


def main(argv: list[str]) -> int:
    """Answer a command line; return its exit status."""
    open_streams()
    try:
        try:
            return answer(argv)
        finally:
            sys.stdout.flush()
    except OSError as error:  # standard output cannot be written: print no more
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        if isinstance(error, BrokenPipeError):  # its reader has seen enough, as in `... | head`
            return 141
        print(f"error: standard output: {error.strerror}", file=sys.stderr)
        return 1


def open_streams() -> None:
    """Put a sink where a standard stream is closed, and let output hold any text."""
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            stream = open(os.devnull, mode)  # noqa: SIM115 - open as long as the process
            # It takes the free number of the closed one, and a program started from here needs it.
            os.set_inheritable(stream.fileno(), True)
            setattr(sys, name, stream)
    for stream in (sys.stdout, sys.stderr):  # a file on Windows cannot show every learner's name
        stream.reconfigure(errors="replace")


def answer(argv: list[str]) -> int:
    options = parse(argv)
    try:
        if sys.version_info < (3, 11):  # noqa: UP036 - this file runs before anything is checked
            raise CourseError(
                f"Python is {sys.version.split()[0]}; the course needs 3.11 or newer. "
                "Start it with another one, such as python3.12 tools/course.py"
            )
        if options.command == "sync":  # needs no environment: a fork's first step
            return sync(options)
        if options.command == "install":  # makes the environment
            return install(options)
        enter_environment(argv)
        return COMMANDS[options.command](options)
    except CourseError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except ModuleNotFoundError as error:
        print(f"error: {missing_package(error.name)}", file=sys.stderr)
        return 1
    except OSError as error:
        if isinstance(error, BrokenPipeError):
            print(flush=True)  # raises again if nobody reads standard output
        where = f"{error.filename}: " if error.filename else ""
        print(f"error: {where}{error.strerror or error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        kept = {"run": "notebooks are", "evaluate": "parts are", "fetch": "packages are"}
        kept = kept.get(options.command)
        more = f"; finished {kept} kept, run again to go on" if kept else ""
        print(f"\ninterrupted{more}", file=sys.stderr)
        return 130


def missing_package(name: str) -> str:
    """Say what to do where the interpreter lacks some of the course's packages."""
    own = os.environ.get("COURSE_PYTHON")
    if own:
        return (
            f"COURSE_PYTHON names {own}, which has no package {name!r}: install the course there "
            f"(`{own} -m pip install -e {ROOT}[headless]`), or unset COURSE_PYTHON to use .venv"
        )
    return f"{sys.executable} has no package {name!r}: delete {VENV} and run the command again"


def parse(argv: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="course.py",
        description='"LLaMA in 8 bits": run, test and report the course.',
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    run = commands.add_parser("run", help="execute the notebooks, rebuild figures and report")
    run.add_argument(
        "--profile",
        type=lambda text: text.strip().lower(),
        choices=PROFILES,
        default="cpu",
        help="how large (default: cpu)",
    )
    run.add_argument("--only", metavar="00,06", help="these notebooks, by number or name")
    run.add_argument("--force", action="store_true", help="run even what is up to date")
    run.add_argument("--model", metavar="NAME", help="a registered model or a folder")
    run.add_argument(
        "--param", metavar="NAME=VALUE", action="append", default=[], help="one notebook parameter"
    )
    run.add_argument("--out", metavar="FOLDER", help="write everything here instead")
    run.add_argument("--cell-timeout", metavar="SECONDS", type=int, help="limit for one cell")

    test = commands.add_parser("test", help="lint, tests, every notebook in profile smoke")
    what = test.add_mutually_exclusive_group()
    what.add_argument("--fast", action="store_true", help="leave out notebooks and slow tests")
    what.add_argument("--gpu", action="store_true", help="only what needs a GPU, in minutes")
    what.add_argument(
        "--models", action="store_true", help="run only the notebooks, with models of your own"
    )
    test.add_argument("pytest", nargs="*", metavar="-- PYTEST", help="more arguments for pytest")

    report = commands.add_parser("report", help="rebuild REPORT.md and README.md's blocks")
    report.add_argument("--check", action="store_true", help="only say whether they are current")

    sync_ = commands.add_parser("sync", help="update badges, navigation, bootstrap cells, metadata")
    sync_.add_argument("--check", action="store_true", help="only say whether they are current")
    sync_.add_argument(
        "--repository",
        metavar="ADDRESS",
        help="the repository's new address on GitHub: OWNER/NAME, or as pasted",
    )

    commands.add_parser("models", help="list the registered models")
    cache_help = "keys and values of int8-fast: bf16 (default) or int8"

    evaluate_ = commands.add_parser(
        "evaluate", help="perplexity and accuracy of a model in several precisions"
    )
    evaluate_.add_argument("--model", metavar="NAME", default="smollm2-135m", help="or a folder")
    evaluate_.add_argument(
        "--precision", metavar="fp16,int8", help="default: the device's 16-bit format and int8"
    )
    evaluate_.add_argument(
        "--task",
        metavar="NAME,NAME",
        default="piqa,wikitext2",
        help="piqa, hellaswag, wikitext2, wikitext2-words; own: everyday-physics, course-text",
    )
    evaluate_.add_argument(
        "--data",
        metavar="FILE",
        action="append",
        default=[],
        help="a local file instead of the hub; with several tasks write TASK=FILE, once for each",
    )
    evaluate_.add_argument("--cache", metavar="FORMAT", default="bf16", help=cache_help)
    evaluate_.add_argument("--limit", metavar="N", type=int, help="at most N items or windows")
    evaluate_.add_argument("--device", help="cpu, cuda, cuda:1, or auto: over all GPUs")
    evaluate_.add_argument("--out", metavar="FOLDER", help="where the results go")
    evaluate_.add_argument(
        "--wrong-rules", action="store_true", help="also score by three wrong rules"
    )

    generate_ = commands.add_parser("generate", help="answers of several precisions side by side")
    generate_.add_argument(
        "--model", metavar="NAME", default="smollm2-135m", help="or a folder, also in Meta's format"
    )
    generate_.add_argument(
        "--precision", metavar="fp16,int8", help="default: the device's 16-bit format and int8"
    )
    generate_.add_argument("--prompt", metavar="TEXT", required=True)
    generate_.add_argument(
        "--new-tokens", metavar="N", type=int, default=128, help="at most N (default: 128)"
    )
    generate_.add_argument("--seed", metavar="N", type=int, help="draw tokens; default: greedy")
    generate_.add_argument(
        "--temperature", metavar="T", type=float, help="with a seed (default: 0.7)"
    )
    generate_.add_argument("--cache", metavar="FORMAT", default="bf16", help=cache_help)
    generate_.add_argument("--device", help="cpu or cuda; default: the GPU, if any")

    grade_ = commands.add_parser(
        "grade",
        help="run learners' notebooks and write their points",
        description=(
            "Run learners' notebooks and write their points. Each runs in a home, an environment and "
            "a working folder of its own; on Linux (kernel 5.13 or newer) and macOS it can write "
            "nowhere else. What changes outside anyway is reported with the learner's name; if "
            "notebooks are graded with it, the grading stops. A notebook can still read your "
            "files and use your network: grade strangers' notebooks in a container."
        ),
    )
    grade_.add_argument(
        "folder",
        metavar="FOLDER",
        help="notebooks, a subfolder for each learner, zip files, or what Moodle, Canvas, "
        "Blackboard, ILIAS or GitHub Classroom gives; or a points.csv, to write only the files for "
        "a gradebook again",
    )
    grade_.add_argument(
        "--out", metavar="FILE", default="points.csv", help="default: points.csv, here"
    )
    grade_.add_argument(
        "--learners",
        metavar="TABLE",
        help="a CSV file that maps names in the folder to accounts: learner, email, id, username",
    )
    grade_.add_argument(
        "--seconds",
        metavar="N",
        type=int,
        default=120,
        help="limit for one cell; ten times that for a run of a notebook (default: 120)",
    )
    grade_.add_argument(
        "--memory", metavar="GIB", type=float, default=6.0, help="limit of a kernel (default: 6)"
    )

    guesses = commands.add_parser("predictions", help="what a class guessed, as pictures")
    guesses.add_argument(
        "source", metavar="FILE", help="points-predictions.csv, as `grade` wrote it"
    )
    guesses.add_argument("folder", metavar="FOLDER", help="where the pictures go")

    quiz_ = commands.add_parser("quiz", help="five questions per lesson, for Moodle and on paper")
    quiz_.add_argument("folder", metavar="FOLDER", help="where to")

    slides_ = commands.add_parser("slides", help="a deck of slides per lesson, for a browser")
    slides_.add_argument(
        "folder", metavar="FOLDER", nargs="?", help="where to (default: .course/slides)"
    )
    slides_.add_argument("--decks", metavar="FOLDER", help="use your own decks instead: NN.md")

    site_ = commands.add_parser("site", help="the course as a website, from the stored notebooks")
    site_.add_argument("folder", metavar="FOLDER", nargs="?", help="default: .course/site")

    fetch_ = commands.add_parser("fetch", help="get packages and model for use without network")
    fetch_.add_argument("folder", metavar="FOLDER", help="where to")
    fetch_.add_argument(
        "--platform", metavar="NAME,NAME", help="linux, macos, windows or all; default: this one"
    )
    fetch_.add_argument("--python", metavar="3.11,3.12", help="default: this Python's version")

    install_ = commands.add_parser("install", help="set up from such a folder, without network")
    install_.add_argument("folder", metavar="FOLDER", help="what `fetch` has filled")

    compare = commands.add_parser("compare", help="compare two results folders")
    compare.add_argument("first", metavar="FOLDER")
    compare.add_argument("second", metavar="FOLDER")
    return parser.parse_args(argv)


# --- the commands; each imports what it needs inside the environment


def run(options: argparse.Namespace) -> int:
    import run_notebooks

    out = None if options.out is None else folder_to_fill("--out", options.out)
    if out is not None and out.resolve() == ROOT:
        raise CourseError("--out is the course's own folder; without --out the results go there")
    if options.only is not None and not options.only.strip(" ,"):
        raise CourseError(f"--only is {options.only!r}; give numbers of notebooks, such as 00,06")
    code = run_notebooks.main(
        profile=options.profile,
        only=None if options.only is None else options.only.strip(" ,").split(","),
        force=options.force,
        model=options.model,
        params=options.param,
        out=out,
        cell_timeout=options.cell_timeout,
    )
    if code == 0 and out is None and options.profile != "smoke" and not options.param:
        import make_report

        return make_report.main(check=False)
    return code


def test(options: argparse.Namespace) -> int:
    if options.models:
        return test_models(options.pytest)
    if options.gpu:
        return test_gpu(options.pytest)
    import make_report
    import sync_notebooks

    checks = [
        lambda: tool("ruff", "check", "--quiet", "tools", "notebooks"),
        lambda: tool("ruff", "format", "--check", "--quiet", "tools"),
        lambda: sync_notebooks.main(check=True),
        lambda: make_report.main(check=True),
    ]
    failed = [number for number, check in enumerate(checks) if check() != 0]
    if not options.fast:
        try:
            add_site_packages()
        except CourseError as error:  # its tests are skipped; on CI they fail instead
            print(f"The site is not tested here: {error}", file=sys.stderr)
    quick = ["-m", "not slow and not models"] if options.fast else []
    order = ["--dist", "loadfile", "--no-loadscope-reorder"]
    code = pytest([*order, *quick, *options.pytest], gib=2 if options.fast else 4)
    return code or int(bool(failed))


def test_gpu(more: list[str]) -> int:
    """The tests that need a GPU, in one process, since they share the card; a line for each."""
    import torch

    from llama_int8.models import no_gpu

    if not torch.cuda.is_available():
        raise CourseError(
            f"{no_gpu()}: `test --gpu` needs an NVIDIA card and a CUDA build of PyTorch; "
            "`test` runs the same tests with the CPU as their device"
        )
    print(f"on {torch.cuda.get_device_name()}, PyTorch {torch.__version__}", flush=True)
    return tool("pytest", "-m", "gpu", "-vv", "-rP", "--durations=5", GPU_TESTS, *more)


def test_models(more: list[str]) -> int:
    """Every notebook with each kind of model that a user may bring; a line for each that is done."""
    return pytest(["-m", "models or slow", "-vv", "-k", OWN_MODELS, NOTEBOOK_TESTS, *more])


def pytest(arguments: list[str], gib: float = 4) -> int:
    """Run pytest in processes of one thread, of `gib` each; `-n N` among the arguments wins."""
    from llama_int8.models import free_memory

    # With more threads in each they would wait for one another.
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    return tool("pytest", "-n", str(workers(usable_cores(), free_memory("cpu"), gib)), *arguments)


def workers(cores: int, free: int, gib: float) -> int:
    """Number of processes: one per core as far as the free memory goes, and never less than two."""
    return max(2, min(cores, int(free / (gib * 2**30))))


def usable_cores() -> int:
    """The cores that this process may run on, which can be fewer than the machine has."""
    if hasattr(os, "sched_getaffinity"):  # Linux
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def report(options: argparse.Namespace) -> int:
    import make_report

    return make_report.main(check=options.check)


def sync(options: argparse.Namespace) -> int:
    import sync_notebooks

    return sync_notebooks.main(check=options.check, repository=options.repository)


def models(_options: argparse.Namespace) -> int:
    from llama_int8.models import MODELS
    from llama_int8.models.cost import GIB, count_parameters, weight_bytes

    print(f"{'name':17}{'parameters':>15}{'16 bit GiB':>12}{'int8 GiB':>10}  gated  from, licence")
    for spec in MODELS.values():
        half, int8 = (weight_bytes(spec.config, p).total / GIB for p in ("fp16", "int8"))
        source = spec.sources[0].repository if spec.sources else "the package index"
        print(
            f"{spec.name:17}{count_parameters(spec.config):>15,}{half:>12.2f}{int8:>10.2f}  "
            f"{'yes' if spec.gated else 'no':5}  {source}, {spec.licence}"
        )
    print(
        "\nAlso: a folder in Hugging Face's format, or synthetic:<name> (same shapes, random weights)."
    )
    return 0


def evaluate(options: argparse.Namespace) -> int:
    from llama_int8.errors import DataError, ModelError

    tasks = tasks_of(options.task)
    precisions = precisions_of(options.precision)
    device = device_of(options.device, one_of_many=True)
    files = data_files(options.data, tasks)
    out = None if options.out is None else folder_to_fill("--out", options.out)
    # A part of a data set is a trial, and must not stand in the report as the whole.
    own = STATE / "evaluate"
    place = out or (own if options.limit else ROOT)
    if place == ROOT:
        require_writable(ROOT / "results")
    # Takes seconds to import: only once the options are known to be right.
    from llama_int8.evaluation.evaluate import Evaluation

    try:
        work = Evaluation(
            options.model,
            precisions,
            device,
            out=place,
            limit=options.limit,
            wrong_rules=options.wrong_rules,
            kept=out or own,
            cache=options.cache,
        )
        for task in tasks:
            results = work.run(task, files.get(task))
            if results:
                print("\n".join(results.lines()), f"\n{os.path.relpath(results.path)}", flush=True)
    except (ModelError, DataError, ValueError, OSError) as error:
        raise CourseError(str(error)) from None
    return 0


def tasks_of(text: str) -> list[str]:
    """The tasks that `--task` names. Raises CourseError for an unknown one."""
    from llama_int8.evaluation.tasks import TASKS
    from llama_int8.names import did_you_mean, listed

    tasks = listed(text)
    for task in tasks or [text.strip()]:
        if task not in TASKS:
            raise CourseError(
                f"there is no task {task!r}; there are {', '.join(TASKS)}{did_you_mean(task, TASKS)}"
            )
    return tasks


def precisions_of(text: str | None) -> list[str] | None:
    """The precisions that `--precision` names. Raises CourseError for an unknown one."""
    from llama_int8.models.load import PRECISIONS
    from llama_int8.names import did_you_mean, listed

    if text is None:
        return None
    precisions = listed(text)
    for precision in precisions or [text.strip()]:
        if precision not in PRECISIONS:
            raise CourseError(
                f"precision is {precision!r}; known are {', '.join(PRECISIONS)}"
                f"{did_you_mean(precision, PRECISIONS)}"
            )
    return precisions


def device_of(text: str | None, one_of_many: bool) -> str | None:
    """The device that `--device` names. Raises CourseError for one that is not here.

    `one_of_many`: also a GPU by its number, or "auto", over all of them.
    """
    import torch

    from llama_int8.models import no_gpu

    if text is None:
        return None
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    works = ["cpu", "cuda"] if count else ["cpu"]
    if count and one_of_many:
        works += [*(f"cuda:{number}" for number in range(count)), "auto"]
    device = text.strip().lower()
    if device not in works:
        why = "" if count else f": {no_gpu()}"
        raise CourseError(f"device is {text!r}; what works here is {', '.join(works)}{why}")
    return device


def data_files(given: list[str], tasks: list[str]) -> dict[str, str]:
    """Local file by task, from FILE (where there is one task) or TASK=FILE. Raises CourseError."""
    files: dict[str, str] = {}
    for text in given:
        task, equals, file = text.partition("=")
        task = task.strip().lower()
        if len(tasks) == 1 and (not equals or Path(text).is_file()):
            task, file = tasks[0], text
        if task not in tasks or not file.strip():
            raise CourseError(f"--data is {text!r}; with tasks {', '.join(tasks)} write TASK=FILE")
        if task in files:
            raise CourseError(f"--data names two files for {task}: {files[task]} and {file}")
        files[task] = file.strip()
    return files


def path_of(text: str) -> Path:
    """A path as typed; "~" is the home folder. Raises CourseError where it names no place."""
    if not text.strip():
        raise CourseError(
            f"a path is {text!r}; name a file or a folder ('.' is the one you are in)"
        )
    try:
        return Path(text).expanduser()
    except RuntimeError:
        raise CourseError(f"{text}: there is no such user here; write the path in full") from None


def folder_to_fill(option: str, text: str) -> Path:
    """The folder that an option names, there or not yet. Raises CourseError where none can be."""
    if not text.strip():
        raise CourseError(f"{option} is empty; name a folder, or leave the option out")
    folder = path_of(text)
    here = folder.absolute()
    there = next(path for path in (here, *here.parents) if path.exists())
    if not there.is_dir():
        raise CourseError(f"{option} is {text}, but {there} is a file; name a folder")
    try:
        with tempfile.TemporaryDirectory(dir=there):
            pass
    except OSError as error:
        raise CourseError(
            f"{option} is {text}, but {there} cannot be written ({error.strerror}); name another folder"
        ) from None
    return folder


def generate(options: argparse.Namespace) -> int:
    from generate_text import Live, report, side_by_side
    from llama_int8.errors import ModelError

    precisions, device = precisions_of(options.precision), device_of(options.device, False)
    try:
        options.prompt.encode()
    except UnicodeEncodeError:
        raise CourseError(
            f"the prompt {options.prompt!r} is not UTF-8 text; type it again"
        ) from None
    if options.model.startswith("~"):
        path_of(options.model)  # says what is wrong with it
    # One answer is printed as it comes. Several are printed side by side at the end; a terminal
    # also shows them on standard error as they come.
    one, width = len(set(precisions or ())) == 1, shutil.get_terminal_size().columns
    shown = sys.stdout if one else sys.stderr if sys.stderr.isatty() else None
    try:
        found = side_by_side(
            options.model,
            options.prompt,
            precisions,
            device,
            new_tokens=options.new_tokens,
            seed=options.seed,
            temperature=options.temperature,
            live=Live(shown, width) if shown else None,
            cache=options.cache,
        )
    except (ModelError, ValueError) as error:
        raise CourseError(str(error)) from None
    print("\n".join(report(found, width, texts=not one)))
    return 0


def grade(options: argparse.Namespace) -> int:
    folder = path_of(options.folder)
    learners = None if options.learners is None else path_of(options.learners)
    if folder.suffix.lower() == ".csv" and folder.is_file():
        import gradebooks

        return gradebooks.main(folder, learners)
    import grade_notebooks

    return grade_notebooks.main(
        folder=folder,
        out=path_of(options.out),
        seconds=options.seconds,
        memory=options.memory,
        learners=learners,
    )


def predictions(options: argparse.Namespace) -> int:
    import class_predictions

    return class_predictions.main(path_of(options.source), path_of(options.folder))


def quiz(options: argparse.Namespace) -> int:
    import quiz as questions

    return questions.main(path_of(options.folder))


def slides(options: argparse.Namespace) -> int:
    import build_slides

    text = str(STATE / "slides") if options.folder is None else options.folder
    decks = build_slides.DECKS if options.decks is None else path_of(options.decks)
    return build_slides.main(folder_to_fill("FOLDER", text), decks)


def site(options: argparse.Namespace) -> int:
    folder = STATE / "site"
    if options.folder is not None:
        folder = folder_to_fill("FOLDER", options.folder)
    import build_site

    build_site.check_folder(folder.resolve())  # before packages are fetched
    add_site_packages()
    return build_site.main(folder)


def fetch(options: argparse.Namespace) -> int:
    import offline

    targets = offline.parse_targets(options.platform, options.python)
    return offline.fetch(path_of(options.folder), targets)


def install(options: argparse.Namespace) -> int:
    import offline

    folder = path_of(options.folder)
    offline.check(folder)
    os.environ |= offline.without_network(folder)
    set_up()
    print("The default model ...", flush=True)
    code = "from llama_int8.models.embedded import embedded_folder; print(embedded_folder())"
    model = subprocess.run([venv_python(), "-c", code], check=False)
    if model.returncode:
        raise CourseError("the default model could not be unpacked; the reason stands above")
    print(f"Ready. Next: {venv_python()} -m jupyterlab notebooks/00_start_here.ipynb")
    return 0


def compare(options: argparse.Namespace) -> int:
    from compare_results import compare_folders

    first, second = path_of(options.first), path_of(options.second)
    for folder in (first, second):
        if not folder.is_dir():
            raise CourseError(f"{folder} is no folder; give two folders such as results/<machine>")
    try:
        lines, different = compare_folders(first, second)
    except ValueError as error:
        raise CourseError(str(error)) from None
    print("\n".join(lines))
    return int(different)


COMMANDS = {
    "run": run,
    "test": test,
    "report": report,
    "models": models,
    "compare": compare,
    "grade": grade,
    "predictions": predictions,
    "quiz": quiz,
    "slides": slides,
    "site": site,
    "fetch": fetch,
    "evaluate": evaluate,
    "generate": generate,
}


def tool(name: str, *arguments: str) -> int:
    """Run a tool of the environment from the root; return its exit status."""
    return subprocess.run(
        [sys.executable, "-m", name, *arguments], cwd=ROOT, check=False
    ).returncode


# --- the environment


def enter_environment(argv: list[str]) -> None:
    """Return inside the environment, with this checkout's package first on the path.

    Outside it, set it up where needed and start this command again in it.
    """
    if os.environ.get("COURSE_ACTIVE") == str(ROOT):
        return
    own = os.environ.get("COURSE_PYTHON")
    if not own:
        set_up()
    python = interpreter(own) if own else venv_python()
    path = os.pathsep.join(filter(None, [str(TOOLS), os.environ.get("PYTHONPATH")]))
    environment = {**os.environ, "COURSE_ACTIVE": str(ROOT), "PYTHONPATH": path}
    command = [str(python), str(Path(__file__).resolve()), *argv]
    if os.name == "posix":
        os.execve(python, command, environment)
    process = subprocess.Popen(command, env=environment)
    while True:
        try:
            sys.exit(process.wait())
        except KeyboardInterrupt:  # the child got it, too, and ends in its own way
            continue


def interpreter(own: str) -> Path:
    """The Python that COURSE_PYTHON names. Raises CourseError where it is none."""
    path = Path(os.path.expanduser(own))
    found = shutil.which(path)
    if found is None:
        what = "does not exist"
        if path.is_dir():
            what = "is a folder; name the interpreter in it, such as bin/python"
        elif path.exists():
            what = "is no program that you may run; name a Python interpreter"
        raise CourseError(f"COURSE_PYTHON names {own}, which {what}")
    try:
        code = [found, "-c", "print('Python', 3)"]
        done = subprocess.run(code, capture_output=True, stdin=subprocess.DEVNULL, timeout=60)
        answers = done.stdout.split() == [b"Python", b"3"]
    except (OSError, subprocess.TimeoutExpired):
        answers = False
    if not answers:
        raise CourseError(f"COURSE_PYTHON names {own}, which is no Python 3; name an interpreter")
    return Path(found)


def venv_python() -> Path:
    return VENV / ("Scripts/python.exe" if os.name == "nt" else "bin/python")


def set_up() -> None:
    """Make `.venv` and install the tested versions, unless they are there already."""
    wanted = hashlib.sha256(sys.version.encode())
    for file in ("requirements.txt", "pyproject.toml", "tools/constraints.txt"):
        wanted.update((ROOT / file).read_bytes())
    stamp = VENV / "course-setup.json"
    fingerprint = json.dumps({"fingerprint": wanted.hexdigest()})
    if stamp.exists() and stamp.read_text() == fingerprint:
        return
    if not os.access(ROOT, os.W_OK):
        raise CourseError(
            f"{ROOT} cannot be written, so no .venv can be made in it: clone the course into a folder "
            "of yours, or name in COURSE_PYTHON an interpreter that has the course's packages"
        )
    print("Setting up .venv with the tested versions (once, some minutes) ...", flush=True)
    start = time.monotonic()
    stamp.unlink(missing_ok=True)
    step("creating .venv", [sys.executable, "-m", "venv", "--clear", str(VENV)])
    pip = [str(venv_python()), "-m", "pip", "install", "--disable-pip-version-check"]
    constraints = ["-c", str(TOOLS / "constraints.txt")]
    # torch by its exact version first: a range would let pip weigh other, larger builds.
    torch = next(
        line
        for line in (TOOLS / "constraints.txt").read_text().split()
        if line.startswith("torch==")
    )
    step(f"installing {torch}", [*pip, torch])
    step("installing the rest", [*pip, *constraints, "-e", f"{ROOT}[headless]"])
    has_triton = [str(venv_python()), "-c", "import triton"]  # a CUDA build of torch brings its own
    if sys.platform == "linux" and subprocess.run(has_triton, capture_output=True).returncode:
        try:
            step("installing Triton", [*pip, *constraints, "-e", f"{ROOT}[triton]"])
        except CourseError:
            print("  not available here: lesson 09 runs without its kernel for GPUs", flush=True)
    stamp.write_text(fingerprint)
    print(f"Set up in {time.monotonic() - start:.0f} s.", flush=True)


def add_site_packages() -> None:
    """Install what only the site needs into the environment, unless it is there already.

    Raises CourseError where this fails, or where the environment is the user's own.
    """
    modules = ("sphinx", "myst_nb", "sphinx_book_theme", "sphinx_copybutton")
    missing = [name for name in modules if find_spec(name) is None]
    if not missing:
        return
    own = os.environ.get("COURSE_PYTHON")
    if own:
        raise CourseError(
            f"COURSE_PYTHON names {own}, which has no package {missing[0]!r}; install what the site "
            f'needs there (`{own} -m pip install -c {TOOLS / "constraints.txt"} -e "{ROOT}[site]"`), '
            "or unset COURSE_PYTHON to use .venv"
        )
    pip = [sys.executable, "-m", "pip", "install", "--disable-pip-version-check"]
    wanted = ["-c", str(TOOLS / "constraints.txt"), "-e", f"{ROOT}[site]"]
    step("installing packages for the site", [*pip, *wanted])
    invalidate_caches()


def step(what: str, command: list[str]) -> None:
    """Run one step of the set-up with its output in a log; on failure say why and what to do."""
    print(f"  {what} ...", flush=True)
    log = STATE / f"setup-{what.partition('=')[0].replace(' ', '-')}.log"
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("wb") as file:
        done = subprocess.run(command, stdout=file, stderr=subprocess.STDOUT, check=False)
    if done.returncode:
        output = log.read_text(encoding="utf-8", errors="replace")
        errors = [line for line in output.splitlines() if "ERROR" in line or "No space" in line]
        raise CourseError(
            f"{what} failed: {(errors or output.splitlines() or ['no output'])[-1].strip()}\n"
            "What to do: check network, proxy and disk space (5 GB), then run it again"
            + ("; on Debian and Ubuntu install python3-venv" if "venv" in what else "")
            + f". The whole log is .course/{log.name}"
        )


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
