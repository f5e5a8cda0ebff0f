"""A place of its own for each run of a learner's notebook, and a watch on what lies outside.

In a `Room` lie the working folder, a home, a folder for temporary files, a virtual environment
that sees the teacher's packages, a copy of the course's package and a copy of its cache. So
`pip install`, `pip uninstall`, settings, files in the home and changes to the package reach nobody
else, on every system. Where the system allows it (see sandbox.py), nothing outside it can be
written at all. A `Watch` reports what has changed anyway.
"""

import ctypes
import os
import shutil
import site
import stat
import subprocess
import sys
import sysconfig
import tempfile
import time
import venv
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import psutil

import sandbox
from common import ROOT, TOOLS
from llama_int8.files import cache_folder

VERDICTS = "COURSE_VERDICTS"
SMALL = 1 << 20  # bytes; larger files of the cache are linked, not copied
SHARED_MEMORY = Path("/dev/shm")
SET_SUBREAPER, GET_SUBREAPER = 36, 37  # for prctl, from linux/prctl.h
PATIENCE = 10  # seconds in which the processes of a room must be ended
PREPARE = "from llama_int8.models.embedded import embedded_folder; embedded_folder()"

# Variables of the teacher's that would lead a notebook out of its room.
LEADING_OUT = {
    *"PYTHONHOME PYTHONSTARTUP PYTHONUSERBASE PYTHONPYCACHEPREFIX VIRTUAL_ENV COURSE_ACTIVE".split(),
    *"COURSE_PYTHON CONDA_PREFIX CONDA_DEFAULT_ENV UV_PROJECT_ENVIRONMENT UV_PYTHON".split(),
    *"PIP_TARGET PIP_PREFIX PIP_ROOT PIP_USER PIP_PYTHON PIP_CACHE_DIR PIP_LOG".split(),
    *"GIT_DIR GIT_WORK_TREE GIT_INDEX_FILE JUPYTER_PATH JUPYTER_CONFIG_PATH MATPLOTLIBRC".split(),
    *"HF_HOME HF_HUB_CACHE HF_DATASETS_CACHE HF_ASSETS_CACHE TRANSFORMERS_CACHE".split(),
    *"HUGGINGFACE_HUB_CACHE TORCH_HOME TORCHINDUCTOR_CACHE_DIR TRITON_CACHE_DIR".split(),
    *"XDG_CACHE_HOME XDG_CONFIG_HOME XDG_DATA_HOME XDG_STATE_HOME XDG_RUNTIME_DIR".split(),
}
# What a program may write beside the files that a Watch looks at.
NOT_WATCHED = {
    *"__pycache__ .ipynb_checkpoints .pytest_cache .ruff_cache .hypothesis".split(),
    *".git .venv node_modules".split(),
}
# Settings that programs read at their start; a line added to one would reach everybody.
SETTINGS = (
    *".bashrc .bash_profile .profile .zshrc .zprofile .zshenv .gitconfig .condarc .netrc".split(),
    *(".pip", ".config/pip", ".config/git", ".config/matplotlib", ".config/fish", ".config/uv"),
    *(".ipython/profile_default/startup", ".ipython/profile_default/ipython_config.py"),
    *(".matplotlib/matplotlibrc", ".jupyter/jupyter_lab_config.py", "pip/pip.ini"),
    *(".local/bin", ".local/share/jupyter/kernels", "Library/Jupyter/kernels"),
)


@dataclass(frozen=True)
class Room:
    """The folders of one run, and what its kernel is started with."""

    folder: Path
    python: Path

    @property
    def work(self) -> Path:
        return self.folder / "work"

    @property
    def verdicts(self) -> Path:
        return self.folder / "verdicts.jsonl"

    def command(self, *arguments: str) -> list[str]:
        """Its Python with these arguments, held to the folder where the system can do that."""
        return sandbox.wrapped([str(self.python), *arguments], self.folder)

    def environment(self) -> dict[str, str]:
        """The teacher's environment variables; those that name a place name one in this room."""
        kept = {k: v for k, v in os.environ.items() if k not in LEADING_OUT}
        home = self.folder / "home"
        places = {
            **dict.fromkeys(("HOME", "USERPROFILE"), home),
            **dict.fromkeys(("TMPDIR", "TEMP", "TMP"), self.folder / "t"),
            "APPDATA": home / "AppData" / "Roaming",
            "LOCALAPPDATA": home / "AppData" / "Local",
            "IPYTHONDIR": home / ".ipython",
            "JUPYTER_CONFIG_DIR": home / ".jupyter",
            "JUPYTER_DATA_DIR": home / "jupyter",
            "JUPYTER_RUNTIME_DIR": home / "jupyter" / "runtime",
            "MPLCONFIGDIR": home / "matplotlib",
            "PYTHONUSERBASE": home / "python",
            "VIRTUAL_ENV": self.folder / "venv",
            "LLAMA_INT8_CACHE": self.folder / "cache",
            VERDICTS: self.verdicts,
        }
        path = [str(self.python.parent), os.environ.get("PATH", "")]
        packages = [str(self.folder / "package"), os.environ.get("PYTHONPATH", "")]
        more = {"PATH": path, "PYTHONPATH": packages}
        return {
            **kept,
            **{name: str(place) for name, place in places.items()},
            **{name: os.pathsep.join(filter(None, parts)) for name, parts in more.items()},
            **_pip_settings(),
            "PYTHONNOUSERSITE": "1",
        }


@contextmanager
def room() -> Iterator[Room]:
    """A fresh room; all that is in it, and every process that was started there, goes at the end."""
    # Short names: the path of a socket in a folder for temporary files has 104 characters on a Mac.
    with tempfile.TemporaryDirectory(prefix="grade-", ignore_cleanup_errors=True) as name:
        folder = Path(name).resolve()
        for own in ("work", "t", "home/matplotlib"):
            (folder / own).mkdir(parents=True)
        for fonts in _font_lists():  # to look for all fonts takes a kernel seconds
            shutil.copy2(fonts, folder / "home" / "matplotlib")
        shutil.copytree(
            TOOLS / "llama_int8", folder / "package" / "llama_int8", copy_function=shutil.copy2
        )
        copy_cache(cache_folder(), folder / "cache")
        made = Room(folder, _virtual_environment(folder / "venv"))
        with _shared_memory_as_before(), _no_strays(folder):
            try:
                yield made
            finally:
                _make_removable(folder)


def _virtual_environment(folder: Path) -> Path:
    """An environment that sees this one's packages but installs into itself; its Python.

    pip takes nothing out of another environment than its own: it says "outside environment".
    """
    builder = venv.EnvBuilder(with_pip=False, symlinks=os.name != "nt")
    builder.create(folder)
    scripts = folder / ("Scripts" if os.name == "nt" else "bin")
    python = scripts / ("python.exe" if os.name == "nt" else "python")
    paths = sysconfig.get_paths(vars={"base": str(folder), "platbase": str(folder)}, scheme="venv")
    lines = [f"import site; site.addsitedir({place!r})" for place in package_folders()]
    Path(paths["purelib"], "course.pth").write_text("\n".join(lines) + "\n", encoding="utf-8")
    for name in ("pip", "pip3"):
        if os.name == "nt":
            (scripts / f"{name}.bat").write_text('@"%~dp0python.exe" -m pip %*\n')
        else:
            (scripts / name).write_text('#!/bin/sh\nexec "$(dirname "$0")/python" -m pip "$@"\n')
            (scripts / name).chmod(0o755)
    return python


def package_folders() -> list[str]:
    """Where the packages of this environment lie, the user's own folder included if it is in use."""
    found = [
        *site.getsitepackages(),
        *(sysconfig.get_path(name) for name in ("purelib", "platlib")),
    ]
    if site.ENABLE_USER_SITE:
        found.append(site.getusersitepackages())
    return [place for place in dict.fromkeys(found) if os.path.isdir(place)]


def _pip_settings() -> dict[str, str]:
    """The user's own file of pip, which may name the index of a school."""
    candidates = (".config/pip/pip.conf", ".pip/pip.conf", "pip/pip.ini")
    for name in candidates:
        if "PIP_CONFIG_FILE" not in os.environ and (Path.home() / name).is_file():
            return {"PIP_CONFIG_FILE": str(Path.home() / name)}
    return {}


@cache
def _font_lists() -> list[Path]:
    """Matplotlib's lists of the fonts on this machine; made once if there is none."""
    import matplotlib

    def lists() -> list[Path]:
        return sorted(Path(matplotlib.get_cachedir()).glob("fontlist*.json"))

    if not lists():
        code = "import matplotlib.font_manager"
        subprocess.run([sys.executable, "-c", code], capture_output=True, check=False)
    return lists()


def copy_cache(original: Path, copy: Path) -> None:
    """A copy of the course's cache whose large files are links: no model is there twice."""
    copy.mkdir(parents=True, exist_ok=True)
    if not original.is_dir():
        return
    for path in original.iterdir():
        if ".unfinished-" in path.name:  # another process writes it just now
            continue
        if path.is_dir():
            copy_cache(path, copy / path.name)
        elif path.stat().st_size <= SMALL:
            shutil.copy2(path, copy)
        else:
            _link(path.resolve(), copy / path.name)


def _link(original: Path, link: Path) -> None:
    try:
        link.symlink_to(original)
    except OSError:  # Windows does not let everybody do that
        try:
            os.link(original, link)
        except OSError:
            shutil.copy2(original, link)


def prepare_model() -> str:
    """Fetch and convert the default model before a notebook does so in its room; "" or what failed."""
    if (cache_folder() / "smollm2-135m-fp32").is_dir():
        return ""
    print("Fetching the default model, once ...", flush=True)
    path = os.pathsep.join(filter(None, [str(TOOLS), os.environ.get("PYTHONPATH")]))
    done = subprocess.run(
        [sys.executable, "-c", PREPARE],
        env={**os.environ, "PYTHONPATH": path},
        capture_output=True,
        text=True,
        check=False,
    )
    return (done.stderr.strip().splitlines() or ["no reason given"])[-1] if done.returncode else ""


@contextmanager
def _no_strays(folder: Path) -> Iterator[None]:
    """At the end no process that was started in this room is left, whatever it did to get away."""
    children = set(psutil.Process().children())
    with _adopting():
        try:
            yield
        finally:
            end_strays(folder, children)


@contextmanager
def _adopting() -> Iterator[None]:
    """On Linux, let a process whose parent has ended become this one's child, not the system's."""
    if sys.platform != "linux":
        yield
        return
    libc, before = ctypes.CDLL(None), ctypes.c_int()
    libc.prctl(GET_SUBREAPER, ctypes.byref(before))
    libc.prctl(SET_SUBREAPER, ctypes.c_ulong(1))
    try:
        yield
    finally:
        libc.prctl(SET_SUBREAPER, ctypes.c_ulong(before.value))


def end_strays(folder: Path, children: set[psutil.Process]) -> None:
    """End the processes of a room that no longer hang on its kernel, such as servers and daemons.

    `children` are those that this process had before the room was opened.
    """
    deadline = time.monotonic() + PATIENCE
    # While some are being ended, others of them can start new ones.
    while (strays := _strays(folder, children)) and time.monotonic() < deadline:
        for stray in strays:
            with suppress(psutil.Error, OSError):
                stray.kill()
        # This also takes what they leave from the list of processes.
        psutil.wait_procs(strays, timeout=1)


def _strays(folder: Path, children: set[psutil.Process]) -> set[psutil.Process]:
    """All processes that come from the room: by their parents, or by what they have of it."""
    own = psutil.Process()
    roots = {child for child in own.children() if child not in children and _of_a_kernel(child)}
    roots |= {process for process in psutil.process_iter() if _has_of(process, folder)}
    found = set(roots)
    for root in roots:
        with suppress(psutil.Error, OSError):
            found.update(root.children(recursive=True))
    return found - {own, *own.parents()}


def _of_a_kernel(child: psutil.Process) -> bool:
    """Whether a child was adopted: kernels have sessions of their own, and no way into this one."""
    with suppress(OSError):
        return os.name == "posix" and os.getsid(child.pid) != os.getsid(0)
    return False


def _has_of(process: psutil.Process, folder: Path) -> bool:
    """Whether its environment, its working folder or its program names this folder."""
    looks: list[Callable[[], Iterable[str]]] = [
        lambda: process.environ().values(),
        lambda: [process.cwd()],
        lambda: [process.exe()],
    ]
    for look in looks:
        with suppress(psutil.Error, OSError):
            if any(str(folder) in text for text in look()):
                return True
    return False


@contextmanager
def _shared_memory_as_before() -> Iterator[None]:
    """Remove what is new in the shared memory at the end, where the room has none of its own."""
    if not SHARED_MEMORY.is_dir() or sandbox.hides_shared_memory():
        yield
        return
    before = _of_this_user(SHARED_MEMORY)
    try:
        yield
    finally:
        new = _of_this_user(SHARED_MEMORY) - before
        used = _in_use() if new else set()
        for path, _ in sorted(new - {one for one in new if one[0] in used}, reverse=True):
            with suppress(OSError):  # a folder in which another program's file lies stays
                os.rmdir(path) if os.path.isdir(path) else os.unlink(path)


def _of_this_user(folder: Path) -> set[tuple[str, int]]:
    """Path and identity of all files and folders in it that are this user's."""
    found = set()
    for here, folders, files in os.walk(folder):
        for path in (os.path.join(here, name) for name in (*folders, *files)):
            with suppress(OSError):
                state = os.lstat(path)
                if state.st_uid == os.geteuid():
                    found.add((path, state.st_ino))
    return found


def _in_use() -> set[str]:
    """The files that a program has open or in its memory: they are living programs', not a room's."""
    used = set()
    for process in psutil.process_iter():
        with suppress(psutil.Error, OSError):
            used.update(file.path for file in process.open_files())
        with suppress(psutil.Error, OSError):
            used.update(part.path for part in process.memory_maps(grouped=True))
    return used


def _make_removable(folder: Path) -> None:
    """Give back the rights that a notebook took from folders of its own."""
    for here, folders, _ in os.walk(folder):
        for name in folders:
            with suppress(OSError):
                path = os.path.join(here, name)
                if not os.path.islink(path):
                    os.chmod(path, stat.S_IRWXU)


# --- what lies outside


@dataclass(frozen=True)
class Changes:
    """Files that are no longer what they were."""

    grading: list[str]  # what the next notebook would be graded with
    other: list[str]  # the rest of the checkout, settings, hand-ins


class Watch:
    """Tells which files outside have changed since it last looked, by size, date and permissions."""

    def __init__(self, hand_ins: Path, own: tuple[Path, ...] = ()) -> None:
        """`own` are files that the grading itself writes."""
        self.hand_ins = hand_ins.resolve()
        self.own = {str(path.resolve()) for path in own}
        self.before = self._look()

    def changes(self) -> Changes:
        """The changes since the last call."""
        before, self.before = self.before, self._look()
        found: dict[str, list[str]] = {}
        for kind, files in self.before.items():
            old = before[kind]
            # What is new in the cache or among the hand-ins is another program's and does no harm.
            new = set() if kind in ("cache", "hand-ins") else set(files) - set(old)
            changed = {path for path in old if files.get(path) != old[path]}
            found[kind] = sorted((new | changed) - self.own)
        return Changes(
            found["packages"] + found["course"] + found["cache"], found["rest"] + found["hand-ins"]
        )

    def _look(self) -> dict[str, dict[str, tuple[int, ...]]]:
        rest = [ROOT, *(ROOT / ".git" / name for name in ("HEAD", "config", "hooks", "refs/heads"))]
        rest += [Path.home() / name for name in SETTINGS]
        packages = [Path(place) for place in package_folders()]
        course = [TOOLS]
        return {
            "packages": states(packages),
            "course": states(course),
            "cache": states([cache_folder()]),
            "rest": states(rest, besides=[*course, *packages, self.hand_ins]),
            "hand-ins": states([self.hand_ins]),
        }


def states(places: list[Path], besides: list[Path] | None = None) -> dict[str, tuple[int, ...]]:
    """Size, date, permissions and identity of every file in these folders, by path."""
    left_out = {str(path) for path in besides or []}
    found = {}
    waiting = [str(path) for path in places]
    while waiting:
        place = waiting.pop()
        with suppress(OSError):
            if not os.path.isdir(place):
                found[place] = _state(os.lstat(place))
                continue
            with os.scandir(place) as entries:
                for entry in entries:
                    if entry.is_dir(follow_symlinks=False):
                        if not _beside(entry, left_out):
                            waiting.append(entry.path)
                    else:
                        found[entry.path] = _state(entry.stat(follow_symlinks=False))
    return found


def _beside(entry: os.DirEntry[str], left_out: set[str]) -> bool:
    unseen = entry.name in NOT_WATCHED or entry.name.endswith(".egg-info")
    return unseen or ".unfinished-" in entry.name or entry.path in left_out


def _state(found: os.stat_result) -> tuple[int, ...]:
    return found.st_size, found.st_mtime_ns, found.st_mode, found.st_ino
