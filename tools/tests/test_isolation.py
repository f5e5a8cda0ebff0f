"""Learners do not touch each other: what a notebook does stays in its room, or is told."""

import base64
import csv
import hashlib
import os
import shutil
import subprocess
import sys
import time
import zipfile
from contextlib import ExitStack
from pathlib import Path

import psutil
import pytest
from conftest import ROOT
from test_grading import MERGE, SEES, right, write

import grade_notebooks
import isolation
import sandbox
from common import CourseError

needs_sandbox = pytest.mark.skipif(
    not sandbox.works(), reason="this system cannot keep a process in its folder"
)


@pytest.fixture
def teacher(tmp_path, monkeypatch) -> Path:
    """A teacher's home with some settings, and a cache with a model in it."""
    home = tmp_path / "teacher"
    for name, content in {
        ".bashrc": b"alias a=b",
        ".ipython/profile_default/startup/own.py": b"x = 1",
        "thesis/chapter.txt": b"years of work",
        "cache/model/config.json": b"{}",
        "cache/model/weights": b"w" * (isolation.SMALL + 1),
    }.items():
        (home / name).parent.mkdir(parents=True, exist_ok=True)
        (home / name).write_bytes(content)
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.setenv("LLAMA_INT8_CACHE", str(home / "cache"))
    return home


def contents(folder: Path) -> dict[str, bytes]:
    """All files but what Python and Matplotlib keep to be quicker the next time."""
    files = (path for path in folder.rglob("*") if path.is_file())
    kept = (file for file in files if not {"matplotlib", "__pycache__"} & set(file.parts))
    return {str(file.relative_to(folder)): file.read_bytes() for file in kept}


def graded(folder: Path, out: Path) -> dict:
    """Rows by (learner, exercise), also if the grading was stopped."""
    try:
        grade_notebooks.main(folder, out, 60, 6.0)
    finally:
        with out.open(encoding="utf-8", newline="") as file:
            rows = {(row["learner"], row["exercise"]): row for row in csv.DictReader(file)}
    return rows


def wheel(folder: Path, name: str) -> Path:
    """A package of one module, as pip installs it."""
    info = f"{name}-1.0.dist-info"
    files = {
        f"{name}.py": "VALUE = 1\n",
        f"{info}/METADATA": f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n",
        f"{info}/WHEEL": "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    }
    record = ""
    for file, text in files.items():
        digest = base64.urlsafe_b64encode(hashlib.sha256(text.encode()).digest()).rstrip(b"=")
        record += f"{file},sha256={digest.decode()},{len(text)}\n"
    path = folder / f"{name}-1.0-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as archive:
        for file, text in {**files, f"{info}/RECORD": record + f"{info}/RECORD,,\n"}.items():
            archive.writestr(file, text)
    return path


# --- the room ------------------------------------------------------------------------------------


def run(room: isolation.Room, *command: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        command, env=room.environment(), cwd=room.work, capture_output=True, text=True, check=False
    )


@pytest.mark.slow
@pytest.mark.parametrize("held", [True, False], ids=["with sandbox", "without"])
def test_pip_installs_into_the_room_and_takes_nothing_out_of_the_teachers_packages(
    held, teacher, tmp_path, monkeypatch
):
    if not held:
        monkeypatch.setattr(sandbox, "works", lambda: False)
    packages = tmp_path / "packages"
    with zipfile.ZipFile(wheel(tmp_path, "victim")) as archive:
        archive.extractall(packages)
    real = isolation.package_folders()
    monkeypatch.setattr(isolation, "package_folders", lambda: [str(packages), *real])
    before = contents(packages)
    new = str(wheel(tmp_path, "newcomer"))
    with isolation.room() as room:
        assert run(room, *room.command("-c", "import victim")).returncode == 0
        run(room, *room.command("-m", "pip", "uninstall", "-y", "victim"))  # as %pip does it
        command = sandbox.wrapped(["sh", "-c", f"pip install --no-index {new}"], room.folder)
        done = run(room, *command)  # as !pip
        assert done.returncode == 0, done.stderr
        assert run(room, *room.command("-c", "import newcomer, victim, numpy")).returncode == 0
    assert contents(packages) == before
    with isolation.room() as room:
        assert "No module" in run(room, *room.command("-c", "import newcomer")).stderr


def test_a_room_has_a_home_a_package_and_a_cache_of_its_own(teacher):
    code = (
        "import llama_int8, pathlib; from llama_int8.files import cache_folder\n"
        "print(pathlib.Path.home(), llama_int8.__file__, cache_folder(), sep='\\n')\n"
    )
    before = contents(teacher)
    with isolation.room() as room:
        places = run(room, *room.command("-c", code)).stdout.split()
        assert len(places) == 3
        assert all(Path(place).is_relative_to(room.folder) for place in places)
        copy = room.folder / "cache" / "model"
        assert (copy / "config.json").read_text() == "{}"
        assert (copy / "weights").stat().st_size == isolation.SMALL + 1
        assert (copy / "weights").is_symlink()  # no second copy of what is large
        shutil.rmtree(room.folder / "cache")
    assert contents(teacher) == before
    assert not room.folder.exists()


@pytest.mark.skipif(os.name != "posix", reason="daemons")
def test_a_daemon_ends_with_its_room(teacher):
    with isolation.room() as room:
        code = "import os\nif os.fork() == 0:\n os.setsid()\n if os.fork() == 0:\n  "
        code += "os.closerange(0, 3); os.execvp('sleep', ['sleep', '4321.7'])"
        run(room, *room.command("-c", code))
        deadline = time.monotonic() + 20
        while not (started := running("4321.7")) and time.monotonic() < deadline:
            time.sleep(0.05)
        assert started
    assert not running("4321.7")


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux hands orphans to the grader")
def test_a_process_that_leaves_everything_of_its_room_ends_with_it(teacher):
    with isolation.room() as room:
        other = subprocess.Popen(["sleep", "4321.9"])  # a program of the grader's own
        clean = "cd /; env -i /bin/sh -c 'setsid sleep 4321.8 > /dev/null 2>&1 &'"
        run(room, *room.command("-c", f"import os; os.setsid(); os.system({clean!r})"))
        deadline = time.monotonic() + 20
        while not (started := running("4321.8")) and time.monotonic() < deadline:
            time.sleep(0.05)
        traces = [str(process.environ()) + process.cwd() for process in started]
    left, others = running("4321.8"), running("4321.9")
    for process in (*left, *others):
        process.kill()
    other.wait()
    assert len(traces) == 1 and str(room.folder) not in traces[0]
    assert left == [] and [process.pid for process in others] == [other.pid]
    assert started[0].pid not in psutil.pids()  # nor is it left as a zombie


def test_a_process_is_a_rooms_by_its_folder_its_program_or_its_environment(tmp_path):
    room, elsewhere = tmp_path / "room", tmp_path / "elsewhere"
    for folder in (room, elsewhere):
        folder.mkdir()
    sleep = shutil.copy2(Path(shutil.which("sleep")).resolve(), room / "sleep")
    starts = {
        "folder": (["sleep", "60"], {"cwd": room, "env": {"PATH": os.environ["PATH"]}}),
        "program": ([sleep, "60"], {"cwd": elsewhere, "env": {}}),
        "environment": (["sleep", "60"], {"cwd": elsewhere, "env": {**os.environ, "A": str(room)}}),
        "nothing": (["sleep", "60"], {"cwd": elsewhere}),
    }
    started = {why: subprocess.Popen(command, **more) for why, (command, more) in starts.items()}
    isolation.end_strays(room, set(psutil.Process().children()))
    left = [why for why, process in started.items() if process.poll() is None]
    for process in started.values():
        process.kill()
        process.wait()
    assert left == ["nothing"]


needs_shared_memory = pytest.mark.skipif(
    not isolation.SHARED_MEMORY.is_dir(), reason="this system has no folder of shared memory"
)


@pytest.fixture
def others_file():
    """A file that another program has left in the shared memory."""
    path = isolation.SHARED_MEMORY / f"course-test-{os.getpid()}"
    path.write_text("another program's")
    yield path
    path.unlink(missing_ok=True)


@needs_shared_memory
@pytest.mark.parametrize("held", [True, False], ids=["with sandbox", "without"])
def test_what_a_notebook_leaves_in_the_shared_memory_goes_with_its_room(
    held, teacher, others_file, monkeypatch
):
    if not held:
        monkeypatch.setattr(sandbox, "works", lambda: False)
        sandbox.hides_shared_memory.cache_clear()
    left, folder = (others_file.with_name(f"{others_file.name}-{n}") for n in "ab")
    with isolation.room() as room:
        code = f"import os; open({str(left)!r}, 'w').write('answers'); os.mkdir({str(folder)!r})"
        code += f"; open({str(folder / 'file')!r}, 'w')"
        assert run(room, *room.command("-c", code)).returncode == 0
        assert left.exists() != sandbox.hides_shared_memory()
    sandbox.hides_shared_memory.cache_clear()
    assert not left.exists() and not folder.exists()
    assert others_file.read_text() == "another program's"


@needs_shared_memory
def test_a_new_file_of_a_living_program_in_the_shared_memory_stays(
    teacher, others_file, monkeypatch
):
    monkeypatch.setattr(sandbox, "hides_shared_memory", lambda: False)
    used, left = (others_file.with_name(f"{others_file.name}-{n}") for n in ("used", "left"))
    with ExitStack() as living:
        with isolation._shared_memory_as_before():
            living.enter_context(used.open("w"))
            left.write_text("left")
        assert used.exists() and not left.exists()
    used.unlink()


@needs_shared_memory
def test_a_held_command_has_a_shared_memory_of_its_own(others_file, tmp_path):
    if not sandbox.hides_shared_memory():
        pytest.skip("this system lets only its administrator do that")
    code = f"""
import os
from multiprocessing import Lock, shared_memory
assert not os.path.exists({str(others_file)!r})
open({str(others_file)!r}, "w").write("mine")
Lock()
block = shared_memory.SharedMemory(create=True, size=8)
block.close()
block.unlink()
"""
    held = sandbox.wrapped([sys.executable, "-c", code], tmp_path)
    done = subprocess.run(held, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert others_file.read_text() == "another program's"


def running(argument: str) -> list[psutil.Process]:
    return [
        process
        for process in psutil.process_iter(["cmdline", "status"])
        if (process.info["cmdline"] or [])[-1:] == [argument]
        and process.info["status"] != psutil.STATUS_ZOMBIE
    ]


# --- the sandbox ---------------------------------------------------------------------------------


@needs_sandbox
def test_a_held_command_and_what_it_starts_write_in_their_folders_only(tmp_path):
    inside, outside = tmp_path / "inside", tmp_path / "outside"
    for folder in (inside, outside):
        folder.mkdir()
        (folder / "old").write_text("old")
    before = contents(outside)
    for command in (
        f"echo new > {outside}/new",
        f"echo new >> {outside}/old",
        f"rm -rf {outside}/old",
        f"mv {outside}/old {inside}/moved",
        f"mv {inside}/old {outside}/old",
        f"mkdir {outside}/folder",
        f"ln -s {outside}/old {inside}/link && echo new > {inside}/link",
        f"ln {outside}/old {inside}/hard && echo new > {inside}/hard",
        f'{sys.executable} -c \'open("{outside}/old", "w")\'',
        "cd .. && echo new > outside/new",
    ):
        held = sandbox.wrapped(["sh", "-c", command], inside)
        assert subprocess.run(held, cwd=inside, capture_output=True, check=False).returncode, (
            command
        )
        assert contents(outside) == before, command
    works = "echo a > a; mkdir b; mv a b/c; rm old; echo > /dev/null; cat b/c ../outside/old"
    works = f"cd {inside}; {works}"
    held = sandbox.wrapped(["sh", "-c", works], inside)
    assert subprocess.run(held, capture_output=True, text=True, check=True).stdout == "a\nold"


@needs_sandbox
def test_a_held_command_ends_no_process_of_others(tmp_path):
    release = tuple(int(part) for part in os.uname().release.split("-")[0].split(".")[:2])
    if sys.platform == "linux" and release < (6, 12):
        pytest.skip("Landlock does that from Linux 6.12 on")
    other = subprocess.Popen(["sleep", "60"])
    held = sandbox.wrapped(["sh", "-c", f"kill -9 {other.pid}; sleep 60 & kill $!"], tmp_path)
    assert subprocess.run(held, capture_output=True, check=False).returncode == 0  # its own ended
    assert other.poll() is None
    other.kill()
    other.wait()


# --- whole notebooks -----------------------------------------------------------------------------


VANDAL = """\
import os, pathlib, shutil, subprocess, sys
import llama_int8
from llama_int8.files import cache_folder

def attempt(action, *arguments, **more):
    try:
        action(*arguments, **more)
    except OSError:
        pass

def shell(command):
    subprocess.run(command, shell=True, capture_output=True)

def overwrite(path, text="raise SystemExit"):
    attempt(pathlib.Path(path).write_text, text)
"""
BY_NAME = """\
shell("rm -rf ~ $HOME/* ../verdicts.jsonl")
os.makedirs(os.path.expanduser("~/.ipython/profile_default/startup"), exist_ok=True)
overwrite(os.path.expanduser("~/.ipython/profile_default/startup/a.py"))
overwrite(os.path.expanduser("~/.bashrc"))
overwrite(llama_int8.__file__)
attempt(shutil.rmtree, cache_folder())
os.environ["COURSE_VERDICTS"] = os.environ["LLAMA_INT8_CACHE"] = "/nonsense"
os.environ["PYTHONSTARTUP"] = "/nonsense"
os.chdir("/")
"""
BEN = """\
import os
assert not os.environ["COURSE_VERDICTS"].startswith("/nonsense") and os.getcwd() != "/"
"""


@pytest.mark.slow
@needs_sandbox
def test_no_ordinary_thing_that_a_notebook_does_reaches_the_teacher_or_the_next(
    teacher, tmp_path, capsys
):
    folder = tmp_path / "in"
    checkout = tmp_path / "checkout"
    checkout.mkdir()
    git = ["git", "-C", str(checkout), "-c", "user.name=a", "-c", "user.email=a@b.c"]
    subprocess.run([*git, "init", "-q"], check=True)
    subprocess.run([*git, "commit", "-q", "--allow-empty", "-m", "first"], check=True)
    out = tmp_path / "points.csv"
    by_path = f"""\
shell("rm -rf {teacher} {folder} {out}")
shell("cd {checkout} && git -c user.name=a -c user.email=a@b.c commit --allow-empty -m x")
places = [{str(ROOT)!r}, {str(ROOT / "tools" / "llama_int8")!r}, *{isolation.package_folders()!r}]
for place in places:
    overwrite(pathlib.Path(place) / "vandal.txt", "I was here")
"""
    # The last cell has a check, so that all before it run.
    write(folder / "anna" / "09.ipynb", VANDAL, right(SEES), by_path, BY_NAME, right(MERGE))
    write(folder / "ben" / "09.ipynb", BEN + right(SEES), right(MERGE))
    before = contents(tmp_path)
    rows = graded(folder, out)
    after = contents(tmp_path)
    for name in ("points.csv", "points-moodle.csv", "points-canvas.csv"):
        assert after.pop(name)
    assert after == before
    places = (ROOT, ROOT / "tools" / "llama_int8", *isolation.package_folders())
    assert not any(Path(place, "vandal.txt").exists() for place in places)
    assert [rows[who, SEES]["status"] for who in ("anna", "ben")] == ["correct", "correct"]
    assert rows["ben", MERGE]["status"] == "correct"
    assert "CHANGED" not in capsys.readouterr().out


@pytest.mark.slow
def test_what_cannot_be_prevented_is_told_and_nobody_is_graded_with_it(
    teacher, tmp_path, monkeypatch, capsys
):
    monkeypatch.setattr(sandbox, "works", lambda: False)
    folder = tmp_path / "in"
    harmless = f"""\
open({str(teacher / ".bashrc")!r}, "a").write("alias ls=rm")
open({str(folder / "ben" / "09.ipynb")!r}, "w").write("spoilt")
"""
    harmful = f"open({str(teacher / 'cache' / 'model' / 'config.json')!r}, 'w').write('spoilt')\n"
    write(folder / "anna" / "09.ipynb", harmless, right(SEES))
    write(folder / "ben" / "09.ipynb", harmful, right(SEES))
    write(folder / "carla" / "09.ipynb", right(SEES))
    with pytest.raises(
        CourseError, match=r"grading stopped: while ben's ben/09\.ipynb ran"
    ) as stop:
        grade_notebooks.main(folder, tmp_path / "points.csv", 60, 6.0)
    assert str(teacher / "cache" / "model" / "config.json") in str(stop.value)
    with (tmp_path / "points.csv").open(encoding="utf-8", newline="") as file:
        rows = {(row["learner"], row["exercise"]): row for row in csv.DictReader(file)}
    # Ben's was read before Anna's ran; Carla's did not run.
    assert [rows[who, SEES]["status"] for who in ("anna", "ben", "carla")] == [
        "correct",
        "correct",
        "not graded",
    ]
    assert "while ben's" in rows["carla", SEES]["message"]
    printed = capsys.readouterr().out
    assert "This system cannot keep a notebook from writing outside" in printed
    assert "CHANGED while anna's anna/09.ipynb ran" in printed
    assert str(teacher / ".bashrc") in printed and str(folder / "ben" / "09.ipynb") in printed


def test_what_has_changed_is_seen_by_size_date_or_permissions(teacher, tmp_path):
    hand_ins = tmp_path / "in"
    write(hand_ins / "anna.ipynb", "1")
    watch = isolation.Watch(hand_ins, own=(tmp_path / "in" / "points.csv",))
    assert watch.changes() == isolation.Changes([], [])
    weights = teacher / "cache" / "model" / "weights"
    weights.chmod(0o600)
    (hand_ins / "points.csv").write_text("the grader's own")
    (teacher / "thesis" / "chapter.txt").write_text("not watched: no setting of a program")
    (teacher / ".gitconfig").write_text("new")
    assert watch.changes() == isolation.Changes([str(weights)], [str(teacher / ".gitconfig")])
    assert watch.changes() == isolation.Changes([], [])
    (hand_ins / "anna.ipynb").unlink()
    assert watch.changes().other == [str(hand_ins / "anna.ipynb")]
