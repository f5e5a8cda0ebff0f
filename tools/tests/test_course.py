"""The command: what is fresh is skipped, what fails says so and breaks nothing."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time

import pytest
from conftest import ROOT

from llama_int8.files import cache_folder

pytestmark = pytest.mark.slow


def wait_for(condition, seconds=60):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.1)


@pytest.fixture
def fails(course):
    """Assert that a command fails with these words in its one message, and changes nothing."""

    def run(*arguments, says, code=1, **more):
        before = course.state()
        done = course(*arguments, **more)
        assert done.returncode == code, done.stdout + done.stderr
        for words in says:
            assert words in done.stderr
        assert "Traceback" not in done.stderr
        assert course.state() == before
        return done

    return run


def test_a_second_run_skips_what_is_up_to_date_and_changes_nothing(course):
    assert course("run").returncode == 0
    before = course.state()
    start = time.monotonic()
    again = course("run")
    assert again.stdout.count("up to date") == 2
    assert time.monotonic() - start < 20
    assert course.state() == before


def test_the_closing_table_names_the_slowest_cells(course):
    course.change_notebook("06_second", "last", "import time\ntime.sleep(1.5)")
    done = course("run", "--only", "06")
    row = next(line for line in done.stdout.splitlines() if re.match(r"06_second .*last", line))
    assert re.search(r"last [1-9]\d* s", row), done.stdout
    assert re.search(r"together +\d+\.\d", done.stdout)


def test_a_file_in_a_folders_place_is_an_error_and_no_traceback(fails, course):
    (course.root / "packages").write_text("")
    fails("fetch", "packages", says=["error: packages: File exists"])


class TestAReadOnlyCheckout:
    """Somebody else's folder, or a shared one: nothing can be written into it."""

    @pytest.fixture
    def read_only(self, course):
        everything = [course.root, *course.root.rglob("*")]
        for path in everything:
            path.chmod(path.stat().st_mode & ~0o222)
        yield course
        for path in everything:
            path.chmod(path.stat().st_mode | 0o200)

    def call(self, course, *arguments, **more):
        """Run a command without root's right to write everywhere."""
        unprivileged = []
        if os.geteuid() == 0:
            if not shutil.which("setpriv"):
                pytest.skip("root may write everywhere, and there is no setpriv")
            unprivileged = ["setpriv", "--bounding-set", "-dac_override,-dac_read_search"]
        return subprocess.run(
            [*unprivileged, *course.command(*arguments)],
            env=course.environment(**more),
            cwd=course.root,
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )

    def test_run_in_place_says_so_before_anything_starts(self, read_only):
        done = self.call(read_only, "run")
        assert done.returncode == 1 and "cannot be written; --out FOLDER" in done.stderr
        assert ": cell 1 of" not in done.stdout and "Traceback" not in done.stderr

    def test_run_into_a_folder_of_ones_own_works_in_a_home_of_ones_own(self, read_only, tmp_path):
        home, out = tmp_path / "home of jané", tmp_path / "out"
        home.mkdir()
        out.mkdir()
        cache = tmp_path / "cache"
        cache.mkdir()
        model = "smollm2-135m-fp32"
        (cache / model).symlink_to(cache_folder() / model)
        done = self.call(
            read_only, "run", "--out", out, HOME=str(home), LLAMA_INT8_CACHE=str(cache)
        )
        assert done.returncode == 0, done.stdout + done.stderr
        text = (out / "notebooks/00_first.ipynb").read_text()
        assert "count 3" in text and str(home) not in text and str(read_only.root) not in text

    def test_report_check_works(self, read_only):
        assert self.call(read_only, "report", "--check").returncode == 0

    def test_without_an_environment_the_message_names_two_ways_out(self, read_only):
        done = self.call(read_only, "models", COURSE_PYTHON="")
        assert done.returncode == 1 and "Traceback" not in done.stderr
        assert "cannot be written" in done.stderr and "COURSE_PYTHON" in done.stderr


def test_two_runs_give_the_same_bytes(course):
    assert course("run", "--force").returncode == 0
    before = course.state()
    assert course("run", "--force").returncode == 0
    after = course.state()
    timed = {name for name in before if name.startswith("results/") or name.endswith(".md")}
    assert {n: b for n, b in before.items() if n not in timed} == {
        n: b for n, b in after.items() if n not in timed
    }


def test_a_change_makes_only_its_notebook_stale(course):
    course("run")
    course.change_notebook("06_second", "last", "print('changed')")
    done = course("run")
    assert done.stdout.count("up to date") == 1
    assert "changed" in course.notebook("06_second").read_text()


def test_a_lost_figure_makes_its_notebook_stale(course):
    course("run")
    (course.root / "figures" / "00_first.png").unlink()
    assert course("run").stdout.count("up to date") == 1
    assert (course.root / "figures" / "00_first.png").exists()


def test_a_figure_that_is_no_longer_made_disappears(course):
    (course.root / "figures" / "00_old_name.png").write_bytes(b"stale")
    assert course("run", "--force").returncode == 0
    assert sorted(p.name for p in (course.root / "figures").iterdir()) == [
        "00_first.png",
        "06_second.png",
    ]


def test_progress_and_a_closing_table_are_shown(course):
    out = course("run", "--force", "--only", "00").stdout
    assert "00_first: cell 5 of 5" in out
    assert "notebook" in out and "seconds" in out and "figures" in out


@pytest.mark.parametrize(
    "extra", [["--profile", "smoke"], ["--param", "count=5"], ["--out", "x y"]]
)
def test_any_other_run_leaves_the_committed_files_alone(course, extra):
    before = course.state()
    done = course("run", "--only", "00", *extra)
    assert done.returncode == 0, done.stderr
    base = course.root / done.stdout.strip().splitlines()[-1].partition(": ")[2]
    assert (base / "notebooks" / "00_first.ipynb").exists()
    assert (base / "figures" / "00_first.png").exists()
    (result,) = (base / "results").rglob("*.json")
    expected = 5 if "count=5" in extra else 3
    assert json.loads(result.read_text())["measurements"]["count"]["value"] == expected
    after = course.state()
    assert {k: v for k, v in after.items() if not k.startswith("x y")} == before


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--only", "07"], ["'07'", "00_first"]),
        (["--only", "00,second"], ["'second'"]),
        (["--model", "gpt-5"], ["'gpt-5'", "smollm2-135m", "llama-2-7b-chat"]),
        (["--param", "cuont=3"], ["'cuont'", "count"]),
        (["--param", "count"], ["'count'", "NAME=VALUE"]),
        (["--param", "count=many"], ["'many'", "int"]),
        (["--param", "count=1.5"], ["1.5", "int"]),
        (["--param", "count=true"], ["True", "int"]),
        (["--profile", "t4"], ["needs a GPU", "--profile cpu"]),
        (["--cell-timeout", "0"], ["at least 1"]),
    ],
)
def test_a_wrong_argument_is_named_before_anything_runs(fails, arguments, says):
    done = fails("run", *arguments, says=says)
    assert "cell 1" not in done.stdout


def test_an_unknown_profile_is_named(fails):
    fails("run", "--profile", "tpu", says=["tpu", "smoke"], code=2)


def test_a_cell_that_raises_is_named_with_its_error_and_the_way_out(course, fails):
    course.change_notebook("06_second", "last", "# the last\nraise ValueError('seven\\nlines')")
    course("run", "--only", "00")
    done = fails(
        "run",
        says=["06_second, cell 5 of 5", "ValueError: seven", "# the last", "--only 06"],
    )
    assert "as they were" in done.stderr
    kept = json.loads((course.root / ".course/failed/06_second.ipynb").read_text())
    assert any(o["output_type"] == "error" for c in kept["cells"] for o in c.get("outputs", []))


def test_a_cell_over_its_limit_is_named(course, fails):
    course.change_notebook("06_second", "last", "import time; time.sleep(60)")
    says = ["06_second, cell 5 of 5", "longer than 5 s", "--cell-timeout"]
    fails("run", "--only", "06", "--cell-timeout", "5", says=says)


def test_a_kernel_that_dies_is_told_from_a_cell_that_raises(course, fails):
    course.change_notebook("06_second", "last", "import os; os.kill(os.getpid(), 9)")
    fails("run", "--only", "06", says=["06_second, cell 5 of 5", "kernel died", "memory"])


def test_a_kernel_that_exits_by_itself_is_a_failure(course, fails):
    course.change_notebook("06_second", "last", "import os; os._exit(0)")
    fails("run", "--only", "06", says=["06_second, cell 5 of 5", "kernel died"])


def test_a_full_disk_is_named_and_costs_nothing(course, fails):
    state = course.root / ".course"
    state.mkdir(exist_ok=True)
    mount = ["mount", "-t", "tmpfs", "-o", "size=200k", "none", str(state)]
    if subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("needs the right to mount a small file system")
    try:
        source = "results.root.joinpath('big').write_bytes(bytes(10**6))"
        course.change_notebook("06_second", "last", source)
        fails("run", "--only", "06", says=["06_second", "No space left", "free some space"])
    finally:
        subprocess.run(["umount", str(state)], check=True)


def test_a_full_disk_in_the_last_moment_costs_nothing(course, fails):
    figures = course.root / "figures"
    before = {path.name: path.read_bytes() for path in figures.iterdir()}
    pages = sum(-(-len(content) // 4096) for content in before.values()) + 2
    mount = ["mount", "-t", "tmpfs", "-o", f"size={pages * 4}k", "none", str(figures)]
    if subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("needs the right to mount a small file system")
    try:
        for name, content in before.items():
            (figures / name).write_bytes(content)
        fails("run", "--force", "--only", "06", says=["06_second", "No space left", "free some"])
    finally:
        subprocess.run(["umount", str(figures)], check=True)


def test_a_file_that_is_no_notebook_is_named(course, fails):
    course.notebook("06_second").write_text("{")
    fails("run", says=["06_second.ipynb", "not a notebook", "git"])


def start_and_wait_for_the_second_notebook(course, flag):
    waiting = (
        f"import time, pathlib\nwhile not pathlib.Path({str(flag)!r}).exists(): time.sleep(0.1)"
    )
    course.change_notebook("06_second", "last", waiting)
    out = course.root / "out.txt"
    with out.open("w") as file:
        process = subprocess.Popen(
            course.command("run"),
            env=course.environment(),
            stdout=file,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            # a test run in the background is started with Ctrl-C ignored, and hands that down
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
        )
    wait_for(lambda: "06_second: cell 5" in out.read_text())
    return process, out


@pytest.mark.parametrize("how", ["SIGKILL", "SIGINT"])  # Windows knows only the second
def test_a_run_that_is_stopped_goes_on_with_the_notebook_that_was_running(course, tmp_path, how):
    process, out = start_and_wait_for_the_second_notebook(course, tmp_path / "go")
    second = course.notebook("06_second").read_bytes()
    if how == "SIGKILL":
        process.kill()
    else:
        os.killpg(process.pid, getattr(signal, how))
    assert process.wait(timeout=30) == (-9 if how == "SIGKILL" else 130), out.read_text()
    assert course.notebook("06_second").read_bytes() == second
    (tmp_path / "go").touch()
    again = course("run")
    assert again.returncode == 0, again.stderr
    lines = {
        line.split()[0]: line for line in again.stdout.splitlines() if line[:3] in ("00_", "06_")
    }
    assert "up to date" in lines["00_first"]
    assert "up to date" not in lines["06_second"]
    assert not list((course.root / ".course" / "work").iterdir())


def test_the_real_notebooks_give_the_same_bytes_twice_apart_from_timings(tmp_path):
    run = [
        sys.executable,
        ROOT / "tools" / "course.py",
        "run",
        "--profile",
        "smoke",
        "--only",
        "00,08",
    ]
    environment = {**os.environ, "COURSE_PYTHON": sys.executable}
    for out in ("a", "b"):
        subprocess.run([*run, "--out", tmp_path / out], env=environment, check=True)
    for path in sorted((tmp_path / "a" / "notebooks").iterdir()):
        first, second = (
            json.loads((tmp_path / out / "notebooks" / path.name).read_text()) for out in ("a", "b")
        )
        for one, other in zip(first["cells"], second["cells"], strict=True):
            if "timing" in one["metadata"].get("tags", []):
                one["outputs"] = other["outputs"] = []
            assert one == other, f"{path.name}, cell {one['id']}: a second run says something else"
        assert first == second
    for name in ("08_cards.png", "08_quality.png", "08_flips.png"):
        one, other = ((tmp_path / out / "figures" / name).read_bytes() for out in ("a", "b"))
        assert one == other


def test_help_shows_examples(course):
    out = course("--help").stdout
    assert "examples:" in out and "--profile t4" in out


def test_models_lists_the_registry(course):
    out = course("models").stdout
    assert "llama-2-7b-chat" in out and "12.55" in out and "6.53" in out


NO_INDEX = {
    "PIP_CONFIG_FILE": os.devnull,
    "PIP_INDEX_URL": "http://127.0.0.1:9/simple",
    "PIP_EXTRA_INDEX_URL": "",
    "PIP_FIND_LINKS": "",
    "PIP_RETRIES": "0",
    "PIP_TIMEOUT": "2",
}


def test_a_default_model_that_cannot_be_fetched_is_said_before_any_notebook_starts(fails, tmp_path):
    says = ["default model could not be fetched", "Check the network"]
    done = fails("run", "--force", says=says, LLAMA_INT8_CACHE=str(tmp_path), **NO_INDEX)
    assert "cell 1" not in done.stdout


def test_set_up_without_a_network_says_so(course):
    environment = {**course.environment(), **NO_INDEX}
    del environment["COURSE_PYTHON"]
    done = subprocess.run(
        course.command("run"), env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 1
    assert "installing torch==" in done.stderr and "check network" in done.stderr
    assert "Traceback" not in done.stderr


class TestCompare:
    """`compare` tells what differs by kind of number, and says so by its exit status."""

    @pytest.fixture
    def folders(self, tmp_path):
        def write(folder, **values):
            kinds = {"bytes": "memory", "perplexity": "quality", "speed": "timing", "text": "text"}
            entries = {
                name: {"value": value, "unit": name, "kind": kinds[name]}
                for name, value in values.items()
            }
            (tmp_path / folder).mkdir(exist_ok=True)
            path = tmp_path / folder / "06_second.json"
            path.write_text(json.dumps({"measurements": entries}))
            return str(tmp_path / folder)

        return write

    def test_the_same_numbers_pass(self, course, folders):
        first = folders("a", bytes=1000, perplexity=20.0, speed=10.0, text="yes")
        second = folders("b", bytes=1005, perplexity=20.05, speed=14.0, text="yes")
        done = course("compare", first, second)
        assert done.returncode == 0, done.stdout

    @pytest.mark.parametrize(
        "changed",
        [{"bytes": 1100}, {"perplexity": 21.0}, {"speed": 4.0}, {"text": "no"}],
    )
    def test_a_number_outside_its_tolerance_is_named(self, course, folders, changed):
        same = {"bytes": 1000, "perplexity": 20.0, "speed": 10.0, "text": "yes"}
        done = course("compare", folders("a", **same), folders("b", **{**same, **changed}))
        assert done.returncode == 1
        assert next(iter(changed)) in done.stdout

    def test_a_number_that_one_side_lacks_is_named(self, course, folders):
        done = course("compare", folders("a", bytes=1000, speed=1.0), folders("b", bytes=1000))
        assert done.returncode == 1 and "only in" in done.stdout

    def test_a_number_in_only_one_folder_does_not_count_as_outside_its_tolerance(
        self, course, folders
    ):
        first, second = folders("a", bytes=1000, speed=1.0), folders("b", bytes=1000, text="yes")
        done = course("compare", first, second)
        assert "1 numbers compared, 0 outside tolerance" in done.stdout
        assert "2 in only one folder" in done.stdout

    def test_a_folder_that_is_none_is_named(self, course, folders):
        done = course("compare", folders("a", bytes=1), "/nowhere")
        assert done.returncode == 1 and "/nowhere" in done.stderr
