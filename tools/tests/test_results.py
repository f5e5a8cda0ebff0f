"""Results: every number reaches the file at once, finite and with its unit; stages survive a crash."""

import json
import os
import shutil
import subprocess
import sys
import threading
import time
from datetime import UTC, date, datetime, timedelta
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from safetensors.numpy import save_file

import llama_int8
from llama_int8 import files
from llama_int8.errors import ModelFilesError
from llama_int8.files import SCORING, content_hash, package_hash
from llama_int8.measure import results as results_module
from llama_int8.measure.results import KIND_OF_UNIT, KINDS, Results, write_json
from llama_int8.models import MODELS
from llama_int8.profiles import Settings, resolve

NOTEBOOK = "00_start_here"


@pytest.fixture(autouse=True)
def known_machine(monkeypatch):
    monkeypatch.setattr(results_module, "environment", lambda device: {"machine": f"a-{device}"})


@pytest.fixture
def results(tmp_path):
    return Results(NOTEBOOK, resolve(NOTEBOOK, "cpu"), str(tmp_path))


def with_model(folder, model, **parameters):
    return Results(NOTEBOOK, resolve(NOTEBOOK, "cpu", str(model), parameters), str(folder))


def on_disk(results):
    return json.loads(results.path.read_text(encoding="utf-8"))


def measurement(results, name):
    return on_disk(results)["measurements"][name]


# --- record -----------------------------------------------------------------------------------


def test_a_number_is_on_disk_as_soon_as_it_is_recorded(results):
    results.record("speed", 12.5, "tokens/s", low=11.0, high=14.0, n=7, note="median")
    results.record("answer", "Paris", "text")
    assert on_disk(results)["measurements"] == {
        "speed": {
            "value": 12.5,
            "unit": "tokens/s",
            "kind": "timing",
            "low": 11.0,
            "high": 14.0,
            "n": 7,
            "note": "median",
        },
        "answer": {"value": "Paris", "unit": "text", "kind": "text"},
    }


def test_the_file_says_what_was_run_where(results):
    results.record("speed", 1.0, "s")
    found = on_disk(results)
    assert (found["notebook"], found["profile"], found["model"]) == (
        NOTEBOOK,
        "cpu",
        "smollm2-135m",
    )
    settings = dict(resolve(NOTEBOOK, "cpu"))
    del settings["results_dir"]  # a place on this machine; no number follows from it
    assert found["settings"] == settings
    assert found["environment"] == {"machine": "a-cpu"}


def test_recording_again_replaces_the_number(results):
    results.record("speed", 1.0, "s", n=3)
    results.record("speed", 2.0, "s")
    assert measurement(results, "speed") == {"value": 2.0, "unit": "s", "kind": "timing"}


@pytest.mark.parametrize(("unit", "kind"), KIND_OF_UNIT.items())
def test_every_unit_has_a_known_kind(results, unit, kind):
    assert kind in KINDS
    results.record("it", "so" if unit == "text" else 1, unit)
    assert measurement(results, "it")["kind"] == kind


def test_a_kind_may_be_named_for_a_unit_that_has_none(results):
    results.record("largest", 24_208.0, "hidden state", kind="exact")
    assert measurement(results, "largest")["kind"] == "exact"


@pytest.mark.parametrize(
    ("unit", "kind"), [("furlongs", None), ("s", "speed"), ("", None), (None, None)]
)
def test_an_unknown_unit_or_kind_is_refused_and_names_the_measurement(results, unit, kind):
    with pytest.raises(ValueError, match=r"speed: unit .*known units are s, ms, .*known kinds"):
        results.record("speed", 1.0, unit, kind=kind)
    assert not results.path.exists()


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf"), np.float32("nan")])
@pytest.mark.parametrize("where", ["value", "low", "high", "n"])
def test_a_number_that_is_not_finite_is_refused_and_named(results, where, bad):
    with pytest.raises(ValueError, match=f"loss: {where} is (nan|inf|-inf); only finite"):
        results.record("loss", **{"value": 1.0, "unit": "nats", where: bad})
    assert not results.path.exists()


@pytest.mark.parametrize("bad", [None, "fast", [1.0], np.ones(3), 1j])
def test_what_is_no_number_is_refused_and_named(results, bad):
    with pytest.raises(ValueError, match="speed: value is"):
        results.record("speed", bad, "s")


@pytest.mark.parametrize("bad", [None, 3, float("nan"), ["Paris"]])
def test_what_is_no_text_is_refused_as_text(results, bad):
    with pytest.raises(ValueError, match=r"answer: value is .* must be a string"):
        results.record("answer", bad, "text")


@pytest.mark.parametrize(
    ("scalar", "plain"),
    [
        (np.float32(0.5), 0.5),
        (np.float64(1 / 3), 0.3333333),
        (np.int64(7), 7),
        (torch.tensor(0.25), 0.25),
        (torch.tensor(9), 9),
        (10**400, 10**400),
    ],
    ids=lambda value: type(value).__name__,
)
def test_scalars_of_numpy_and_pytorch_become_plain_numbers(results, scalar, plain):
    results.record("it", scalar, "count", low=scalar, n=scalar)
    found = measurement(results, "it")
    assert found["value"] == found["low"] == plain and type(found["value"]) is type(plain)


@hypothesis_settings(max_examples=30, deadline=None)
@given(value=st.floats(allow_nan=False, allow_infinity=False))
def test_a_float_keeps_seven_digits(tmp_path_factory, value):
    results = with_model(tmp_path_factory.mktemp("digits"), "smollm2-135m")
    results.record("it", value, "x")
    assert measurement(results, "it")["value"] == pytest.approx(value, rel=5.1e-7, abs=5e-324)


def test_an_entry_that_cannot_be_written_spoils_neither_the_file_nor_the_next_entry(results):
    results.record("first", 1.0, "s")
    with pytest.raises(TypeError):
        results.record("second", 2.0, "s", note=object())
    assert set(on_disk(results)["measurements"]) == {"first"}
    results.record("third", 3.0, "s")
    assert set(on_disk(results)["measurements"]) == {"first", "third"}


def test_figures_and_claims_are_kept_beside_the_numbers(results, tmp_path):
    assert results.add_figure("00_bars", "Two bars", "One is shorter") == (
        tmp_path / "figures" / "00_bars.png"
    )
    results.add_claim("int8-halves-memory", "0.52", "holds", "nearly")
    found = on_disk(results)
    assert found["figures"] == {"00_bars": {"alt": "Two bars", "caption": "One is shorter"}}
    assert found["claims"]["int8-halves-memory"]["verdict"] == "holds"


def test_lines_show_every_number_with_its_ends_unit_and_sample_size(results):
    assert results.lines() == []
    results.record("acc.int8", 1234.5678, "%", low=1000.123456, high=2000.0, n=12345)
    results.record("seconds", 2 / 3, "s")
    results.record("count", 7, "count", n=0)
    results.record("answer", "Paris", "text")
    lines = results.lines()
    assert [line.split()[0] for line in lines] == ["acc.int8", "seconds", "count", "answer"]
    assert [line[36:].strip() for line in lines] == [
        "1234.57 [1000.1, 2000] %, n = 12,345",
        "0.666667 s",
        "7 count, n = 0",
        "Paris text",
    ]


# --- the file ---------------------------------------------------------------------------------


def test_a_reader_never_meets_half_a_file(tmp_path):
    path, stop, read = tmp_path / "it.json", threading.Event(), []
    write_json(path, {"number": 0, "filling": "x" * 100_000})

    def keep_reading():
        while not stop.is_set():
            read.append(json.loads(path.read_text(encoding="utf-8"))["number"])

    reader = threading.Thread(target=keep_reading)
    reader.start()
    for number in range(100):
        write_json(path, {"number": number, "filling": "x" * 100_000})
    stop.set()
    reader.join()
    assert read == sorted(read)  # and every one of them was a whole file
    assert [file.name for file in tmp_path.iterdir()] == ["it.json"]


def test_a_failed_write_leaves_the_old_file_and_no_other(tmp_path):
    path = tmp_path / "it.json"
    write_json(path, {"number": 1})
    for bad in (float("nan"), object()):
        with pytest.raises((TypeError, ValueError)):
            write_json(path, {"number": bad})
    assert [file.name for file in tmp_path.iterdir()] == ["it.json"]
    assert json.loads(path.read_text()) == {"number": 1}


def test_a_rename_that_fails_leaves_no_temporary_file(tmp_path, monkeypatch):
    def fails(*_arguments):
        raise OSError("the disk is gone")

    monkeypatch.setattr(Path, "replace", fails)
    with pytest.raises(OSError, match="the disk is gone"):
        write_json(tmp_path / "it.json", {"number": 1})
    assert list(tmp_path.iterdir()) == []


def test_of_several_files_all_are_replaced_or_none(tmp_path, monkeypatch):
    old, new, last = (tmp_path / name for name in ("old", "new", "last"))
    old.write_bytes(b"before\r\n")
    old.chmod(0o640)
    last.write_text("before")
    replace = Path.replace

    def fails_at_the_last(self, target):
        if target == last:
            raise OSError(28, "No space left on device", str(target))
        return replace(self, target)

    monkeypatch.setattr(Path, "replace", fails_at_the_last)
    with pytest.raises(OSError, match="No space left"):
        files.write_all({old: "after", new: b"after", last: "after"})
    assert old.read_bytes() == b"before\r\n" and last.read_text() == "before"
    assert sorted(tmp_path.iterdir()) == [last, old]
    monkeypatch.undo()
    files.write_all({old: "après\n", new: b"\xff", last: "after"})
    assert old.read_bytes() == "après\n".encode() and new.read_bytes() == b"\xff"
    assert old.stat().st_mode & 0o777 == 0o640 or os.name == "nt"
    assert sorted(tmp_path.iterdir()) == [last, new, old]


def test_the_profiles_own_model_needs_no_suffix(results, tmp_path):
    assert results.path == tmp_path / "results" / "a-cpu" / f"{NOTEBOOK}.json"


@pytest.mark.parametrize(
    ("model", "suffix"),
    [
        ("llama-2-7b-chat", "@llama-2-7b-chat"),
        ("synthetic:llama-3.2-1b", "@synthetic-llama-3.2-1b"),
        ("synthetic:smollm2-135m", "@synthetic-smollm2-135m"),
    ],
)
def test_another_models_file_carries_its_name(tmp_path, model, suffix):
    results = with_model(tmp_path, model)
    assert results.path.name == f"{NOTEBOOK}{suffix}.json"
    assert results.model == model


def model_in(folder, content="weights"):
    """A folder with what a model's content is found by; `content` stands for the weights."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text("{}")
    (folder / "model.safetensors").write_text(content)
    return folder


@pytest.mark.parametrize(
    ("name", "shown"),
    [
        ("My Model (v2)", "my-model-v2"),
        ("модель", "модель"),
        ("模型", "模型"),
        ("smollm2-135m", "smollm2-135m"),
        ("synthetic-llama-3.2-1b", "synthetic-llama-3.2-1b"),
        ("CON", "con"),
        ("ends.", "ends"),
        ("..hidden", "hidden"),
        ("???", "model"),
        ("e\u0301t\u00e9", "\u00e9t\u00e9"),  # one letter, written in two ways
        ("x" * 250, "x" * 80),
        ("\u6a21" * 80, "\u6a21" * 26),  # 78 bytes
    ],
)
def test_a_folders_file_has_its_name_in_any_alphabet_and_a_part_of_its_hash(tmp_path, name, shown):
    folder = model_in(tmp_path / name)
    results = with_model(tmp_path / "out", folder)
    mark = content_hash(folder)[:8]
    assert results.path.name == f"{NOTEBOOK}@{shown}-{mark}.json"
    assert results.model == f"{name} (folder {mark})"
    results.record("speed", 1.0, "s")  # the file system takes it
    assert on_disk(results)["model"] == on_disk(results)["settings"]["model"] == results.model


def test_no_two_models_share_a_file_or_a_name(tmp_path):
    names = ["My Model", "my-model", "модель", "模型", "a/model", "b/model", "smollm2-135m", "a"]
    folders = [model_in(tmp_path / name, content=name) for name in names]
    every = [str(folder) for folder in folders] + list(MODELS) + [f"synthetic:{n}" for n in MODELS]
    runs = [with_model(tmp_path / "out", name) for name in every]
    # As on a system where "A" and "a" are one file.
    assert len({str(run.path).lower() for run in runs}) == len(every)
    assert len({run.model for run in runs}) == len(every)


def test_a_model_that_was_trained_on_is_another_model(tmp_path):
    before = with_model(tmp_path / "out", model_in(tmp_path / "mine", "seed 0"))
    after = with_model(tmp_path / "out", model_in(tmp_path / "mine", "seed 1"))
    assert before.path != after.path and before.model != after.model


def test_the_file_states_the_content_of_the_model(tmp_path):
    folder = model_in(tmp_path / "mine")
    results = with_model(tmp_path / "out", "llama-7b")
    results.use_model(str(folder))
    results.record("speed", 1.0, "s")
    assert on_disk(results)["model_sha256"] == content_hash(folder)


def test_a_task_of_evaluate_is_no_notebook_so_its_file_always_carries_the_model(tmp_path):
    chosen = Settings(model="smollm2-135m", profile="evaluate", device="cpu")
    results = Results("piqa", chosen, str(tmp_path))
    assert results.path == tmp_path / "results" / "a-cpu" / "piqa@smollm2-135m.json"
    results.use_model("llama-7b", "abc")
    results.record("acc.int8", 70.0, "%")
    assert results.path.name == "piqa@llama-7b.json"
    assert on_disk(results)["profile"] == "evaluate"


def test_a_folder_named_by_a_dot_is_called_by_its_name(tmp_path, monkeypatch):
    (tmp_path / "tiny" / "inner").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "tiny" / "inner")
    assert with_model(tmp_path, ".").path.name.startswith(f"{NOTEBOOK}@inner-")
    assert with_model(tmp_path, "..").path.name.startswith(f"{NOTEBOOK}@tiny-")


def test_the_model_that_was_really_used_names_the_file(results):
    results.use_model("tinyllama-1.1b", "abc123")
    results.record("speed", 1.0, "s")
    assert results.path.name == f"{NOTEBOOK}@tinyllama-1.1b.json"
    assert (on_disk(results)["model"], on_disk(results)["revision"]) == ("tinyllama-1.1b", "abc123")


@pytest.mark.parametrize("state_it", [False, True])
def test_a_folders_path_stays_on_the_machine(tmp_path, state_it):
    folder = tmp_path / "private" / "tiny-llama"
    results = with_model(tmp_path, folder)
    if state_it:
        results.use_model(str(folder))
    results.record("speed", 1.0, "s")
    found = on_disk(results)
    assert found["model"] == found["settings"]["model"]
    assert found["model"].startswith("tiny-llama (folder ")
    written = results.path.read_text(encoding="utf-8")
    assert "private" not in written and str(tmp_path) not in written
    assert results.settings.model == str(folder)  # the notebook itself still finds it


def test_other_models_and_files_are_named_without_their_paths_too(tmp_path):
    own = tmp_path / "private"
    changes = {
        "more_models": [str(own / "tiny"), "llama-7b"],
        "text_file": str(own / "a.txt"),
        "task_file": str(own / "b.jsonl"),
    }
    chosen = resolve("08_fp16_vs_int8", "cpu", changes=changes)
    results = Results("08_fp16_vs_int8", chosen, str(tmp_path))
    results.record("speed", 1.0, "s")
    found = on_disk(results)["settings"]
    assert (found["text_file"], found["task_file"]) == ("a.txt", "b.jsonl")
    assert found["more_models"][0].startswith("tiny (folder ")
    assert found["more_models"][1] == "llama-7b"
    assert "private" not in results.path.read_text(encoding="utf-8")


def test_a_block_is_written_at_once_and_not_after_an_error(results):
    results.record("speed", 1.0, "s")
    before = results.path.read_bytes()
    with results.at_once():
        results.record("speed", 2.0, "s")
        assert results.path.read_bytes() == before
    assert measurement(results, "speed")["value"] == 2.0
    with pytest.raises(ZeroDivisionError), results.at_once():
        results.record("speed", 3.0, "s")
        results.record("speed", 1 / 0, "s")
    assert measurement(results, "speed")["value"] == 2.0


def test_without_a_folder_results_lie_beside_the_notebook(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for unnamed in (None, ""):
        results = Results(NOTEBOOK, resolve(NOTEBOOK, "cpu"), unnamed)
        assert results.root == Path("course_output") and not results.keeps_stages


def test_a_folder_among_the_parameters_keeps_stages_and_is_recorded_nowhere(tmp_path):
    chosen = resolve(NOTEBOOK, "cpu", changes={"results_dir": str(tmp_path / "drive")})
    results = Results(NOTEBOOK, chosen)
    results.record("speed", 1.0, "s")
    assert results.root == tmp_path / "drive" and results.keeps_stages
    unnamed = Results(NOTEBOOK, resolve(NOTEBOOK, "cpu"))
    assert results.follows_from() == unnamed.follows_from()
    assert chosen.customized == [] and "drive" not in results.path.read_text(encoding="utf-8")


def test_the_real_environment_names_versions_and_no_path(monkeypatch):
    monkeypatch.undo()
    found = results_module.environment("cpu")
    assert torch.__version__.startswith(found["torch"])
    assert found["machine"] == results_module.machine_name("cpu")
    assert found["machine"].strip("abcdefghijklmnopqrstuvwxyz0123456789.-") == ""
    assert found["instruction sets"] and found["C++ compiler"]
    assert str(Path.home()) + os.sep not in json.dumps(found)


# --- stages -----------------------------------------------------------------------------------


def counting(value):
    calls = []

    def compute():
        calls.append(None)
        return value

    return compute, calls


def test_a_finished_stage_is_not_run_again(tmp_path):
    compute, calls = counting({"nll": [1.5, 2.5]})
    for _ in range(2):  # two runs of the notebook
        assert with_model(tmp_path, "smollm2-135m").stage("score", compute) == {"nll": [1.5, 2.5]}
    assert len(calls) == 1


def test_two_stages_are_two(results):
    assert results.stage("one", lambda: 1) == 1
    assert results.stage("two", lambda: 2) == 2


def test_a_stage_may_have_any_name_and_its_file_any_system(results, tmp_path):
    names = ["all: LLaMA-0", "+ all, llama 0", 'a/b*?"<>|']
    assert [results.stage(name, lambda name=name: name) for name in names] == names
    files = [path.name for path in (tmp_path / "stages").rglob("*.json")]
    assert len(files) == 3 and not set('/:*?"<>|') & set("".join(files))


def test_a_stage_that_fails_keeps_nothing(results, tmp_path):
    with pytest.raises(ZeroDivisionError):
        results.stage("score", lambda: 1 / 0)
    assert not list((tmp_path / "stages").rglob("*.json"))
    assert results.stage("score", lambda: 3) == 3


@pytest.mark.parametrize("change", ["parameter", "model", "revision", "environment", "notebook"])
def test_a_stage_of_another_setting_model_machine_or_notebook_does_not_count(
    tmp_path, monkeypatch, change
):
    with_model(tmp_path, "smollm2-135m").stage("score", lambda: "old")
    parameters = {"rounds": 6} if change == "parameter" else {}
    other = with_model(tmp_path, "smollm2-135m", **parameters)
    if change == "model":
        other = with_model(tmp_path, "llama-7b")
    if change == "revision":
        other.use_model("smollm2-135m", "new")
    if change == "environment":
        monkeypatch.setattr(results_module, "environment", lambda _device: {"machine": "another"})
        other = with_model(tmp_path, "smollm2-135m")
    if change == "notebook":
        settings = resolve(NOTEBOOK, "cpu")
        other = Results("08_fp16_vs_int8", settings, str(tmp_path))
    assert other.stage("score", lambda: "new") == "new"


@pytest.mark.parametrize("stated", [False, True])
def test_folders_of_the_same_name_do_not_share_stages(tmp_path, stated):
    for folder in ("/one/tiny", "/two/tiny"):
        results = with_model(tmp_path, "llama-7b" if stated else folder)
        if stated:
            results.use_model(folder)
        assert results.stage("score", lambda folder=folder: folder) == folder


def test_what_a_result_follows_from(results, tmp_path):
    settings = dict(resolve(NOTEBOOK, "cpu"))
    for name in ("model", "results_dir", "profile", "customized"):
        settings.pop(name, None)
    rest = {
        "notebook": NOTEBOOK,
        "settings": settings,
        "environment": {"machine": "a-cpu"},
        "package": package_hash(),
    }
    folder = model_in(tmp_path / "mine")
    results.use_model(str(folder), "abc")
    of_folder = {"model": content_hash(folder), "revision": "abc"}
    assert results.follows_from() == of_folder | rest
    results.use_model("synthetic:llama-7b")
    synthetic = {"model": "synthetic:llama-7b", "revision": None}
    assert results.follows_from() == synthetic | rest
    results.record("speed", 1.0, "s")  # numbers do not change it
    assert results.follows_from() == json.loads(json.dumps(results.follows_from()))


MACHINES = (
    {"machine": "old", "processor": "A", "cores": 2, "torch": "2.13.0", "GPU": "Tesla T4"},
    {"machine": "new", "processor": "B", "cores": 4, "torch": "2.13.0", "GPU": "Tesla T4"},
)


def on_machine(monkeypatch, folder, machine, **parameters):
    monkeypatch.setattr(results_module, "environment", lambda _device: machine)
    return with_model(folder, "smollm2-135m", **parameters)


def test_on_a_new_machine_scores_are_kept_and_timings_run_again(tmp_path, monkeypatch, capsys):
    old, new = (partial(on_machine, monkeypatch, tmp_path, machine) for machine in MACHINES)
    old().stage("score", lambda: "old", timed=False)
    old().stage("race", lambda: "old")
    capsys.readouterr()
    assert new().stage("score", lambda: "new", timed=False) == "old"
    assert new().stage("race", lambda: "new") == "new"
    said = capsys.readouterr().err.splitlines()
    assert said == [
        "score: kept from an earlier run",
        "race: run again, since cores, machine, processor changed",
    ]


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"torch": "2.14.0"}, "torch"),
        ({"GPU": "NVIDIA L4"}, "GPU"),
        ({"rounds": 9}, "rounds"),
        ({"package_hash": lambda *_, **__: "other"}, "the course's code"),
    ],
)
def test_scores_are_run_again_where_they_may_differ_and_the_reason_is_said(
    tmp_path, monkeypatch, capsys, change, reason
):
    on_machine(monkeypatch, tmp_path, MACHINES[0]).stage("score", lambda: "old", timed=False)
    (name, value), parameters, machine = *change.items(), {}, MACHINES[0]
    if name == "package_hash":
        monkeypatch.setattr(results_module, name, value)
    elif name == "rounds":
        parameters = change
    else:
        machine = {**machine, **change}
    again = on_machine(monkeypatch, tmp_path, machine, **parameters)
    assert again.stage("score", lambda: "new", timed=False) == "new"
    assert f"score: run again, since {reason} changed" in capsys.readouterr().err


def test_scores_outlive_an_edit_of_figures_and_no_edit_of_what_scores(tmp_path, monkeypatch):
    package = tmp_path / "llama_int8"
    shutil.copytree(
        Path(files.__file__).parent, package, ignore=lambda _, n: {"__pycache__"} & {*n}
    )
    monkeypatch.setattr(files, "__file__", str(package / "files.py"))

    def scoring():
        package_hash.cache_clear()
        return package_hash(layers=SCORING)

    before = scoring()
    for place, same in (
        ("course/plots.py", True),
        ("measure/latency.py", True),
        ("evaluation/loglikelihood.py", False),
        ("quantization/cpu/kernel.cpp", False),
    ):
        path = package / place
        text = path.read_text()
        path.write_text(text + "\n")
        assert (scoring() == before) is same, place
        path.write_text(text)
    package_hash.cache_clear()


def test_a_damaged_kept_stage_of_the_same_name_gives_no_reason_and_no_error(tmp_path, results):
    results.stage("score", lambda: 1)
    (kept,) = (tmp_path / "stages").rglob("*.json")
    damaged = kept.with_name(kept.name.replace(kept.stem[-12:], "0123456789ab"))
    for content in ("{", "[]", '{"follows_from": null}', ""):
        damaged.write_text(content)
        kept.unlink(missing_ok=True)
        assert results.stage("score", lambda: 2) == 2


def test_results_carry_the_date_and_the_commit(results):
    results.record("speed", 1.0, "s")
    content = on_disk(results)
    assert abs(date.fromisoformat(content["date"]) - datetime.now(UTC).date()) <= timedelta(days=1)
    assert content["commit"] == results_module.commit()


def in_repository(folder, *arguments):
    command = ["git", "-c", "user.name=a", "-c", "user.email=a@b", "-C", str(folder), *arguments]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    return done.stdout.strip()


def test_the_commit_is_the_packages_own_and_says_that_it_was_changed(tmp_path, monkeypatch):
    package = tmp_path / "tools/llama_int8"
    (package / "measure").mkdir(parents=True)
    monkeypatch.setattr(results_module, "__file__", str(package / "measure/results.py"))

    def commit():
        return results_module.commit.__wrapped__()

    assert commit() == "unknown"  # no repository
    in_repository(tmp_path, "init", "-q")
    (package / "files.py").write_text("")
    assert commit() == "unknown"  # a repository that does not know the package
    in_repository(tmp_path, "add", ".")
    in_repository(tmp_path, "commit", "-q", "-m", "first")
    head = in_repository(tmp_path, "rev-parse", "HEAD")
    (tmp_path / "notes.txt").write_text("beside the package")
    assert commit() == head
    (package / "files.py").write_text("changed = True\n")
    assert commit() == f"{head}, changed"


def test_a_stage_follows_from_the_models_content_and_not_from_its_place(tmp_path, capsys):
    folder = model_in(tmp_path / "mine", "seed 0")
    first = with_model(tmp_path / "out", folder)
    assert first.stage("score", lambda: "of seed 0") == "of seed 0"
    moved = folder.rename(tmp_path / "renamed")
    again = with_model(tmp_path / "out", moved)
    assert again.stage("score", lambda: "computed again") == "of seed 0"
    assert "score: kept from an earlier run" in capsys.readouterr().err
    trained = with_model(tmp_path / "out", model_in(moved, "seed 1"))
    assert trained.stage("score", lambda: "of seed 1") == "of seed 1"


def test_a_stage_follows_from_the_content_of_its_data_files(tmp_path):
    file = tmp_path / "text.txt"

    def stage(text):
        file.write_text(text)
        chosen = resolve("08_fp16_vs_int8", "cpu", changes={"text_file": str(file)})
        return Results("08_fp16_vs_int8", chosen, str(tmp_path)).stage("score", lambda: text)

    assert [stage(text) for text in ("one", "two", "one")] == ["one", "two", "one"]


def test_a_stage_follows_from_the_code_of_the_package(tmp_path, monkeypatch):
    with_model(tmp_path, "smollm2-135m").stage("score", lambda: "old")
    monkeypatch.setattr(results_module, "package_hash", lambda **_: "another")
    assert with_model(tmp_path, "smollm2-135m").stage("score", lambda: "new") == "new"


def test_a_stage_whose_model_changed_meanwhile_is_not_kept(tmp_path):
    folder = model_in(tmp_path / "mine", "seed 0")
    results = with_model(tmp_path / "out", folder)
    with pytest.raises(ModelFilesError, match=r"the files of mine .* changed while they were"):
        results.stage("score", lambda: str(model_in(folder, "seed 1")))
    assert not list((tmp_path / "out").rglob("*.json"))


# --- the hash of a model's content ---------------------------------------------------------------


def test_content_is_equal_for_a_copy_and_for_what_lies_beside_it(tmp_path):
    one, other = model_in(tmp_path / "one"), model_in(tmp_path / "other")
    (other / "README.md").write_text("A model.")
    os.utime(other / "config.json", (0, 0))
    assert content_hash(one) == content_hash(other)
    linked = tmp_path / "linked"  # as the hub's cache has it
    linked.mkdir()
    for file in one.iterdir():
        (linked / file.name).symlink_to(file)
    assert content_hash(linked) == content_hash(one)
    assert content_hash(tmp_path) is None


@pytest.mark.parametrize(
    "file",
    [
        "config.json",
        "generation_config.json",
        "tokenizer.json",
        "tokenizer_config.json",
        "tokenizer.model",
        "special_tokens_map.json",
        "chat_template.jinja",
        "model.safetensors",
        "model-00002-of-00002.safetensors",
        "model.safetensors.index.json",
        "params.json",
        "consolidated.00.pth",
    ],
)
def test_content_is_another_one_where_a_file_is_changed_added_or_renamed(tmp_path, file):
    folder = model_in(tmp_path / "mine")
    found = [content_hash(folder)]
    for text in ("one", "two", "more than two"):
        (folder / file).write_text(text)
        found.append(content_hash(folder))
    (folder / file).rename(folder / f"tokenizer_{file}")
    found.append(content_hash(folder))
    assert len(set(found)) == len(found)


@pytest.mark.parametrize("where", ["begin", "middle", "end"])
def test_a_change_in_any_tensor_of_a_large_file_is_seen(tmp_path, monkeypatch, where):
    monkeypatch.setattr(files, "WHOLE_BYTES", 1000)
    monkeypatch.setattr(files, "END_BYTES", 64)
    monkeypatch.setattr(files, "SAMPLE_BYTES", 16)
    monkeypatch.setattr(files, "SAMPLES", 2)  # the tensors' own samples have to find it
    tensors = {f"layer {n}": np.full(4000, n, np.float32) for n in range(12)}
    path = tmp_path / "model.safetensors"
    seen = set()
    for changed in (None, *tensors):
        new = {name: values.copy() for name, values in tensors.items()}
        if changed:
            new[changed] += 0.5  # a merged adapter changes one kind of layer
        save_file(new, path)
        seen.add(files.file_hash(path))
    assert len(seen) == 13
    content = bytearray(path.read_bytes())
    place = {"begin": 0, "middle": len(content) // 2, "end": -1}[where]
    content[place] ^= 1
    path.write_bytes(content)
    assert files.file_hash(path) not in seen


def test_one_changed_byte_of_a_file_of_many_megabytes_is_seen(tmp_path):
    """A head set to zero, a token's row trained: edits that samples of a file would miss."""
    path = tmp_path / "model.safetensors"
    content = bytearray(np.random.default_rng(0).bytes(40_000_000))
    path.write_bytes(content)
    before = files.file_hash(path)
    content[12_345_678] ^= 1
    path.write_bytes(content)
    assert files.file_hash(path) != before


def test_a_file_is_read_once_as_long_as_it_stays_as_it_is(tmp_path, monkeypatch):
    path = tmp_path / "model.safetensors"
    path.write_bytes(b"1" * 1000)
    before = files.file_hash(path)
    monkeypatch.setattr(Path, "open", lambda *_: pytest.fail("read again"))
    assert files.file_hash(path) == before


def test_a_file_larger_than_can_be_read_whole_is_sampled(tmp_path):
    path = tmp_path / "model.safetensors"
    with path.open("wb") as file:
        file.truncate(files.WHOLE_BYTES + 2**30)  # no bytes on the disk
    start = time.monotonic()
    files.file_hash(path)
    assert time.monotonic() - start < 2


@pytest.mark.parametrize("folder", [True, False])
def test_a_stage_gives_plain_json_data_with_and_without_a_folder(tmp_path, monkeypatch, folder):
    monkeypatch.chdir(tmp_path)
    results = Results(NOTEBOOK, resolve(NOTEBOOK, "cpu"), str(tmp_path) if folder else None)
    assert results.stage("score", lambda: {1: (2, 3.5), "é": None}) == {"1": [2, 3.5], "é": None}
    for bad in (float("nan"), {1, 2}):
        with pytest.raises((TypeError, ValueError)):
            results.stage("bad", lambda bad=bad: bad)


def test_without_a_folder_nothing_is_kept(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    results = Results(NOTEBOOK, resolve(NOTEBOOK, "cpu"))
    compute, calls = counting(1)
    assert [results.stage("score", compute) for _ in range(3)] == [1, 1, 1]
    assert len(calls) == 3 and list(tmp_path.iterdir()) == []


RUN = """
import os, sys
from llama_int8.measure import results
from llama_int8.profiles import Settings, resolve
results.environment = lambda device: {"machine": "a-cpu"}
run = results.Results("00_start_here", resolve("00_start_here", "cpu"), sys.argv[1])
def stage(name):
    print("runs", name, flush=True)
    if name == sys.argv[2]:
        os._exit(9)  # as a killed kernel: no handler, no clean-up
    return name
print([run.stage(name, lambda: stage(name)) for name in ("one", "two", "three")])
"""


def test_a_kill_loses_only_the_stage_in_which_it_came(tmp_path):
    def run(killed_in):
        command = [sys.executable, "-c", RUN, str(tmp_path), killed_in]
        path = str(Path(llama_int8.__file__).parents[1])
        environment = {**os.environ, "PYTHONPATH": path}
        done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
        return done.returncode, done.stdout.splitlines()

    assert run(killed_in="two") == (9, ["runs one", "runs two"])
    assert run(killed_in="") == (0, ["runs two", "runs three", "['one', 'two', 'three']"])
