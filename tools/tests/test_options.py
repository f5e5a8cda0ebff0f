"""What people type after an option: read as it was meant, or named with what works."""

import json
import os
import shlex
import stat
import subprocess
import sys

import pytest
import torch
from conftest import ROOT

import course as command
import offline
import run_notebooks
from common import CourseError
from llama_int8.evaluation.tasks import TASKS
from llama_int8.models.load import PRECISIONS
from llama_int8.profiles import resolve


@pytest.fixture
def fails(monkeypatch, capsys):
    """Assert that a command ends with these words in one message, and without a traceback."""
    monkeypatch.setenv("COURSE_ACTIVE", str(ROOT))

    def run(*arguments, says):
        try:
            code = command.main([str(a) for a in arguments])
        except SystemExit as exit_:  # argparse's
            code = exit_.code
        out, err = capsys.readouterr()
        assert code in (1, 2) and out == ""
        message = err.splitlines()[-1]
        assert "error: " in message and "Traceback" not in err
        for words in says:
            assert words in message

    return run


# Lists of names


@pytest.mark.parametrize(
    ("text", "meant"),
    [
        ("bf16,int8", ["bf16", "int8"]),
        ("bf16, int8", ["bf16", "int8"]),
        ("bf16,", ["bf16"]),
        (" INT8 , Bf16", ["int8", "bf16"]),
        ("bf16,bf16,BF16", ["bf16"]),
        ("int8-fast", ["int8-fast"]),
        (None, None),
    ],
)
def test_precisions_are_read_as_they_are_meant(text, meant):
    assert command.precisions_of(text) == meant


@pytest.mark.parametrize(
    ("text", "meant"),
    [
        ("piqa, hellaswag", ["piqa", "hellaswag"]),
        ("PIQA", ["piqa"]),
        ("WikiText2,piqa,wikitext2,", ["wikitext2", "piqa"]),
    ],
)
def test_tasks_are_read_as_they_are_meant(text, meant):
    assert command.tasks_of(text) == meant


@pytest.mark.parametrize("text", ["", " ", ",", " , "])
def test_an_empty_list_of_names_is_an_error_with_the_known_ones(fails, text):
    for name in ("generate", "evaluate"):
        asked = [name, "--precision", text, *(["--prompt", "x"] if name == "generate" else [])]
        fails(*asked, says=["precision is '", *PRECISIONS])
    fails("evaluate", "--task", text, says=["there is no task '", *TASKS])
    fails("run", "--only", text, says=["--only is '", "00,06"])
    fails("fetch", "folder", "--platform", text, says=["--platform is ", "linux, macos, windows"])
    fails("fetch", "folder", "--python", text, says=["--python is ", "3.11, 3.12 and 3.13"])


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["evaluate", "--precision", "bf16,int8_fast"], ["'int8_fast'", "Did you mean int8-fast?"]),
        (["generate", "--prompt", "x", "--precision", "bf61"], ["'bf61'", "Did you mean bf16?"]),
        (["evaluate", "--task", "piqua"], ["'piqua'; there are piqa", "Did you mean piqa?"]),
        (["evaluate", "--task", "Hella-Swag"], ["'hella-swag'", "Did you mean hellaswag?"]),
        (["run", "--only", "6"], ["'6'", "06_quantization_math", "Did you mean 06?"]),
        (["run", "--only", "fp16_vs_int8"], ["Did you mean 08_fp16_vs_int8?"]),
        (["run", "--only", "00", "--param", "new_token=3"], ["Did you mean new_tokens?"]),
        (["run", "--only", "00", "--param", "newtokens=3"], ["Did you mean new_tokens?"]),
        (["run", "--model", "Llama-3.2-1B"], ["did you mean llama-3.2-1b?"]),
        (["generate", "--prompt", "x", "--model", "SmolLM2"], ["did you mean smollm2-135m?"]),
        (["evaluate", "--model", "unsloth/Llama-3.2-1B"], ["did you mean llama-3.2-1b?"]),
        (["fetch", "folder", "--platform", "mac"], ["'mac'", "Did you mean macos?"]),
    ],
)
def test_a_name_that_is_nearly_right_is_answered_with_the_right_one(fails, arguments, says):
    fails(*arguments, says=says)


@pytest.mark.parametrize(
    "text", ["00, 06", "06,00,", "00_start_here,06", "notebooks/00_start_here.ipynb,06"]
)
def test_notebooks_are_found_by_number_name_or_path(text):
    names = ["00_start_here", "05_outliers", "06_quantization_math"]
    only = text.strip(" ,").split(",")
    assert run_notebooks.select(names, only) == ["00_start_here", "06_quantization_math"]


def test_a_parameter_is_read_with_blanks_and_capitals():
    known = [{"count": 3, "threshold": 6.0, "sentence": "A"}]
    given = ["COUNT = 5", " threshold=5", "sentence = One two. "]
    assert run_notebooks.parse_params(given, known) == {
        "count": 5,
        "threshold": 5.0,
        "sentence": "One two.",
    }


def test_a_parameter_that_is_nearly_right_is_named_in_a_notebook_too():
    with pytest.raises(ValueError, match=r"'round' is unknown; .*\. Did you mean rounds\?"):
        resolve("00_start_here", "cpu", changes={"round": 3})


def test_platforms_and_versions_are_read_as_they_are_meant():
    wanted = offline.parse_targets("linux,windows", "3.11,3.12")
    assert offline.parse_targets("Linux, windows, linux", " 3.11 ,3.12,") == wanted
    assert offline.parse_targets("ALL", "3.12") == offline.parse_targets("all", "3.12")


# Devices


@pytest.fixture(params=[0, 2])
def gpus(request, monkeypatch):
    """So many GPUs, as PyTorch tells."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: request.param > 0)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: request.param)
    return request.param


def test_a_device_is_read_as_it_is_meant(gpus):
    assert command.device_of(" CPU ", one_of_many=False) == "cpu"
    assert command.device_of(None, one_of_many=True) is None
    if gpus:
        assert command.device_of("CUDA", one_of_many=False) == "cuda"
        assert command.device_of("cuda:1", one_of_many=True) == "cuda:1"
        assert command.device_of("auto", one_of_many=True) == "auto"


@pytest.mark.parametrize("device", ["mps", "cuda:9", "gpu", "cpu:0", "", "tpu", "cuda:"])
@pytest.mark.parametrize("name", ["generate", "evaluate"])
def test_a_device_that_is_not_here_is_named_with_what_works(fails, gpus, name, device):
    prompt = ["--prompt", "x"] if name == "generate" else []
    every = "cpu, cuda, cuda:0, cuda:1, auto" if name == "evaluate" else "cpu, cuda"
    works = every if gpus else "cpu: PyTorch sees no GPU"
    fails(name, *prompt, "--device", device, says=[repr(device), f"what works here is {works}"])


def test_cuda_without_a_gpu_is_named_with_what_works(fails, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    for device in ("cuda", "auto", "cuda:0"):
        fails("evaluate", "--device", device, says=[repr(device), "PyTorch sees no GPU"])


# The interpreter and the streams


@pytest.fixture
def shell(tmp_path):
    """A command of the course as a shell starts it, `{}` in a line: its status and messages."""

    def run(line, python=sys.executable):
        command = shlex.join([sys.executable, str(ROOT / "tools" / "course.py")])
        done = subprocess.run(
            ["bash", "-c", line.format(command)],
            env={**os.environ, "COURSE_PYTHON": str(python), "COURSE_ACTIVE": ""},
            cwd=tmp_path,
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
        return done.returncode, done.stderr

    return run


def script(path, text):
    """A file that may be run."""
    path.write_text(text)
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    return path


bash = pytest.mark.skipif(os.name == "nt", reason="needs a shell")


@bash
def test_a_python_without_the_packages_is_named_with_what_to_install(shell, tmp_path):
    bare = tmp_path / "bare"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", bare], check=True)
    python = bare / "bin" / "python"
    for line, package in (("{} generate --prompt x", "torch"), ("{} report", "jinja2")):
        status, message = shell(line, python)
        assert status == 1 and message.count("\n") == 1
        assert f"COURSE_PYTHON names {python}, which has no package '{package}'" in message
        assert f"{python} -m pip install" in message and "unset COURSE_PYTHON" in message


@bash
def test_what_is_no_python_is_named(shell, tmp_path):
    file = tmp_path / "notes.txt"
    file.write_text("mine")
    for path, what in (
        (tmp_path, "is a folder"),
        (file, "is no program that you may run"),
        (script(tmp_path / "garbage", "\0garbage"), "is no Python"),
        (script(tmp_path / "other", "#!/bin/sh\necho other\n"), "is no Python"),
        (tmp_path / "nowhere", "does not exist"),
        ("~nobody-at-all/python", "does not exist"),
    ):
        status, message = shell("{} report --check", path)
        assert status == 1 and message.count("\n") == 1
        assert f"error: COURSE_PYTHON names {path}, which {what}" in message


def test_a_python_is_found_by_path_or_by_name(monkeypatch, tmp_path):
    assert str(command.interpreter(sys.executable)) == sys.executable
    if os.name == "posix":
        python = tmp_path / "my-python"
        python.symlink_to(sys.executable)
        monkeypatch.setenv("PATH", str(tmp_path))
        monkeypatch.setenv("HOME", str(tmp_path))
        assert command.interpreter("my-python") == python
        assert command.interpreter("~/my-python") == python


@bash
@pytest.mark.parametrize(
    ("line", "status", "message"),
    [
        ("{} compare figures figures >&-", 1, "error: figures is no folder"),
        ("{} --help >&-", 0, ""),
        ("{} models >&-", 0, ""),
        ("{} models >&- 2>&- <&-", 0, ""),
        ("{} models <&-", 0, ""),
        ("{} models | true; exit ${{PIPESTATUS[0]}}", 141, ""),
        ("{} --help | true; exit ${{PIPESTATUS[0]}}", 141, ""),
        ("export PYTHONUNBUFFERED=1; {} models | true; exit ${{PIPESTATUS[0]}}", 141, ""),
    ],
)
def test_output_that_nobody_reads_is_no_error(shell, line, status, message):
    got, said = shell(line)
    assert got in {0, 141} if status == 141 else got == status
    assert said.startswith(message) and said.count("\n") == bool(message)


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs a device that is always full")
def test_output_that_finds_no_space_is_an_error(shell):
    status, message = shell("unset PYTHONUNBUFFERED; {} models >/dev/full")
    assert status == 1 and message == "error: standard output: No space left on device\n"


# Files and folders


def test_a_file_by_task_is_read_with_blanks_and_capitals(tmp_path):
    assert command.data_files(["PIQA = valid.jsonl"], ["piqa"]) == {"piqa": "valid.jsonl"}
    odd = tmp_path / "a=b.jsonl"
    odd.write_text("")
    assert command.data_files([str(odd)], ["piqa"]) == {"piqa": str(odd)}
    with pytest.raises(CourseError, match=r"two files for piqa: a\.jsonl and b\.jsonl"):
        command.data_files(["piqa=a.jsonl", "piqa=b.jsonl"], ["piqa", "hellaswag"])


@pytest.mark.parametrize(
    ("task", "says"),
    [
        ("piqa", "0 items are too few"),
        ("hellaswag", "0 items are too few"),
        ("wikitext2", "is empty"),
        ("wikitext2-words", "is empty"),
    ],
)
def test_an_empty_file_is_named(fails, tmp_path, task, says):
    empty = tmp_path / "empty.txt"
    for content in ("", "\n \n"):
        empty.write_text(content)
        fails("evaluate", "--task", task, "--data", empty, says=[f"error: {empty}", says])


def test_brackets_thousands_deep_are_no_value(fails, tmp_path):
    deep = "[" * 100_000
    fails("run", "--only", "00", "--param", f"new_tokens={deep}", says=["new_tokens is '[["])
    (tmp_path / "deep.json").write_text(deep)
    fails("compare", tmp_path, tmp_path, says=["deep.json is not a results file"])
    (tmp_path / offline.MANIFEST).write_text(deep)
    fails("install", tmp_path, says=["is damaged; delete it and fetch again"])


@pytest.mark.parametrize(
    "arguments", [["run", "--only", "00"], ["evaluate", "--task", "course-text"]]
)
def test_a_place_that_cannot_hold_results_is_named_before_anything_is_computed(
    fails, tmp_path, arguments
):
    file = tmp_path / "file"
    file.write_text("mine")
    fails(*arguments, "--out", file, says=[f"--out is {file}", "is a file"])
    fails(*arguments, "--out", file / "deeper", says=[f"{file} is a file; name a folder"])
    fails(*arguments, "--out", "", says=["--out is empty"])
    if os.path.isdir("/proc"):  # a folder in which nobody, not even root, makes another
        fails(*arguments, "--out", "/proc/x", says=["--out is /proc/x", "cannot be written"])
    fails(*arguments, "--out", "~nobody-at-all/x", says=["no such user"])
    assert file.read_text() == "mine"


def test_the_courses_own_folder_is_no_place_for_a_run_apart(fails):
    fails("run", "--only", "00", "--out", ROOT, says=["the course's own folder"])


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["generate", "--prompt", "x", "--new-tokens", "abc"], ["--new-tokens", "'abc'"]),
        (["generate", "--prompt", "x", "--new-tokens", "-3"], ["-3", "at least 1"]),
        (["generate", "--prompt", "x", "--seed", "1", "--temperature", "-1"], ["-1.0", "positive"]),
        (["generate", "--prompt", "x", "--seed", "1", "--temperature", "nan"], ["nan"]),
        (["generate", "--prompt", "x", "--seed", "1", "--temperature", "inf"], ["inf"]),
        (["generate", "--prompt", "x", "--seed", "1.5"], ["--seed", "'1.5'"]),
        (["generate", "--prompt", "x", "--seed", 10**30], [str(10**30), "2^63"]),
        (["generate", "--prompt", "\udcff"], ["UTF-8"]),
        (["generate", "--prompt", "x", "--model", "~nobody-at-all/x"], ["no such user"]),
        (["generate", "--prompt", "x", "--model", ""], ["'' is no model"]),
        (["generate", "--prompt", "x", "--cache", "int8"], ["cache is 'int8'", "int8-fast"]),
        (["evaluate", "--cache", "int4"], ["'int4'", "bf16, int8"]),
        (["evaluate", "--limit", "many"], ["--limit", "'many'"]),
        (["evaluate", "--model", ""], ["'' is no model"]),
        (["run", "--model", ""], ["'' is no model"]),
        (["run", "--profile", "a100"], ["a100", "smoke", "cpu"]),
        (["run", "--param", "=3"], ["'' is unknown"]),
        (["run", "--param", "model=tiny"], ["--param is 'model=tiny'; use --model NAME instead"]),
        (["run", "--param", "Results_dir=x"], ["use --out FOLDER instead"]),
        (["compare", "README.md", "README.md"], ["README.md is no folder"]),
        (["compare", "figures", "figures"], ["figures holds no results file"]),
        (["grade", "README.md"], ["README.md is no folder"]),
        (["grade", "figures"], ["no notebook in figures"]),
        (["grade", "notebooks", "--seconds", "0"], ["--seconds is 0"]),
        (["grade", "notebooks", "--memory", "nan"], ["--memory nan"]),
        (["grade", "notebooks", "--out", "figures"], ["figures", "--out names another file"]),
        (["grade", "~nobody-at-all/x"], ["no such user"]),
        (["grade", ""], ["a path is ''"]),
        (["fetch", " ", "--platform", "linux"], ["a path is ' '"]),
        (["install", ""], ["a path is ''"]),
        (["compare", "", "figures"], ["a path is ''"]),
        (["install", "figures"], ["figures holds no course-packages.json"]),
        (["install", "README.md"], ["holds no course-packages.json"]),
        (["sync", "--repository", "jane"], ["'jane'", "OWNER/NAME"]),
        (["nonsense"], ["nonsense", "evaluate"]),
    ],
)
def test_nonsense_is_named_with_the_way_out(fails, monkeypatch, arguments, says):
    monkeypatch.chdir(ROOT)
    fails(*arguments, says=says)


def test_a_profile_is_read_with_capitals():
    assert command.parse(["run", "--profile", "Smoke"]).profile == "smoke"


@pytest.mark.parametrize("content", ["{}", "[]", '{"targets": 1, "files": {}}', '{"targets": []}'])
def test_a_manifest_of_another_kind_is_damaged(tmp_path, content):
    (tmp_path / offline.MANIFEST).write_text(content)
    with pytest.raises(CourseError, match="is damaged; delete it and fetch again"):
        offline.check(tmp_path)


@pytest.mark.parametrize(
    "measurements",
    [
        [],
        {"x": 1},
        {"x": {"value": 1}},
        {"x": {"value": None, "unit": "s", "kind": "timing"}},
        {"x": {"value": 1, "unit": "s", "kind": "taste"}},
    ],
)
def test_a_file_that_is_no_results_file_is_named(fails, tmp_path, measurements):
    (tmp_path / "x.json").write_text(json.dumps({"measurements": measurements}))
    fails("compare", tmp_path, tmp_path, says=["x.json is not a results file"])


# Commands without a model


def test_models_report_sync_and_the_planning_of_a_run_do_without_torch():
    code = (
        "import sys, make_report, sync_notebooks, run_notebooks, llama_int8.models\n"
        "sys.exit('torch' in sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], cwd=ROOT / "tools", check=True)


# How many tests run at a time


@pytest.mark.parametrize(
    ("cores", "free_gib", "expected"),
    [(16, 64, 16), (16, 24, 6), (16, 1, 2), (2, 64, 2), (1, 64, 2)],
)
def test_tests_run_on_every_core_that_has_memory_for_them_and_two_at_least(
    cores, free_gib, expected
):
    assert command.workers(cores, free_gib * 2**30, gib=4) == expected


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="only Linux binds to cores")
def test_cores_are_those_that_the_process_may_use():
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(before)})
    try:
        assert command.usable_cores() == 1
    finally:
        os.sched_setaffinity(0, before)
    assert command.usable_cores() == len(before)


@pytest.mark.parametrize("own", [[], ["--", "-n", "3"]])
def test_a_number_of_processes_among_the_arguments_wins(own, monkeypatch):
    asked = []
    monkeypatch.setattr(command, "tool", lambda *arguments: asked.append(arguments))
    monkeypatch.setattr(command, "usable_cores", lambda: 1)
    command.test(command.parse(["test", "--models", *own]))
    options = asked[-1]
    last = len(options) - 1 - options[::-1].index("-n")
    assert options[last + 1] == (own[-1] if own else "2")
