"""What is "up to date" follows from the content of models and data files, and folders from it too."""

import json
import shutil
from pathlib import Path

import pytest
from tiny_llama import tiny_config

import run_notebooks
from common import CourseError
from llama_int8 import files, profiles
from llama_int8.files import content_hash
from llama_int8.models import MODELS


def model_in(folder, weights="seed 0"):
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(tiny_config().to_dict()))
    (folder / "model.safetensors").write_text(weights)
    return folder


def job(number="00", **options):
    arguments = {"profile": "cpu", "params": [], "out": None, "cell_timeout": None, "model": None}
    (planned,) = run_notebooks.plan(only=[number], **{**arguments, **options})
    return planned


def fingerprint(**options):
    return run_notebooks.fingerprint(job(**options))


def test_a_run_is_not_up_to_date_once_the_models_weights_have_changed(tmp_path):
    mine = model_in(tmp_path / "mine")
    before = fingerprint(model=str(mine))
    assert fingerprint(model=str(mine)) == before
    model_in(mine, "seed 1")
    assert fingerprint(model=str(mine)) != before


def test_a_renamed_folder_is_the_same_model(tmp_path):
    before = fingerprint(model=str(model_in(tmp_path / "mine")))
    assert fingerprint(model=str(model_in(tmp_path / "yours"))) == before


@pytest.mark.parametrize("parameter", ["text_file", "task_file"])
def test_a_run_is_not_up_to_date_once_a_data_file_has_changed(tmp_path, parameter):
    file = tmp_path / "data"
    file.write_text("one")
    options = {"number": "08", "params": [f"{parameter}={file}"]}
    before = fingerprint(**options)
    file.write_text("two")
    assert fingerprint(**options) != before
    file.write_text("one")
    assert fingerprint(**options) == before


def test_a_model_of_the_comparison_counts_too(tmp_path):
    other = model_in(tmp_path / "other")
    options = {"number": "08", "params": [f"more_models={json.dumps([str(other)])}"]}
    before = fingerprint(**options)
    model_in(other, "seed 1")
    assert fingerprint(**options) != before


def test_what_changed_during_a_run_is_named(tmp_path):
    mine = model_in(tmp_path / "mine")
    file = tmp_path / "text.txt"
    file.write_text("one")
    planned = job(number="08", model=str(mine), params=[f"text_file={file}"])
    before = run_notebooks.by_content(planned.settings)
    assert run_notebooks.changed_inputs(planned, before) == ""
    model_in(mine, "seed 1")
    assert run_notebooks.changed_inputs(planned, before) == "model"
    file.write_text("two")
    assert set(run_notebooks.changed_inputs(planned, before).split(", ")) == {"model", "text_file"}


def test_a_model_that_a_notebook_fetches_has_not_changed(tmp_path, monkeypatch):
    monkeypatch.setenv("LLAMA_INT8_CACHE", str(tmp_path))
    planned = job()
    before = run_notebooks.by_content(planned.settings)
    assert before["model"] == "smollm2-135m"  # not here yet
    model_in(tmp_path / "smollm2-135m-fp32")
    assert run_notebooks.by_content(planned.settings)["model"] != "smollm2-135m"
    assert run_notebooks.changed_inputs(planned, before) == ""


def test_no_two_models_write_into_one_folder(tmp_path):
    names = ["My Model", "my-model", "модель", "模型", "a/model", "b/model", "smollm2-135m", "CON"]
    folders = [str(model_in(tmp_path / name, name)) for name in names]
    found = [job(model=name).notebooks.parent for name in [*folders, *MODELS]]
    assert len({str(folder).lower() for folder in found}) == len(found)
    mark = content_hash(tmp_path / "My Model")[:8]
    assert found[0] == run_notebooks.STATE / "runs" / f"cpu-my-model-{mark}"
    assert job(model="synthetic:llama-7b").notebooks.parent.name == "cpu-synthetic-llama-7b"


def test_a_registered_name_is_never_a_folder_of_the_same_name(tmp_path, monkeypatch):
    """As for `evaluate`: the folder goes by its path."""
    model_in(tmp_path / "smollm2-135m")
    monkeypatch.chdir(tmp_path)
    assert job(model="smollm2-135m").settings.model == "smollm2-135m"
    assert job(model="./smollm2-135m").settings.model == str(tmp_path / "smollm2-135m")
    with pytest.raises(CourseError, match="'smollm' is neither a registered model nor a folder"):
        job(model="smollm")


def test_an_edit_of_one_lesson_leaves_the_other_notebooks_up_to_date(monkeypatch, tmp_path):
    package = tmp_path / "llama_int8"
    shutil.copytree(Path(files.__file__).parent, package)
    monkeypatch.setattr(files, "__file__", str(package / "files.py"))

    def hashes():
        files.package_hash.cache_clear()
        return [files.package_hash(lesson) for lesson in ("n06", "n07", None)]

    before = hashes()
    with (package / "lessons/n07/exercises.py").open("a") as file:
        file.write("# another hint")
    other, own, whole = hashes()
    assert other == before[0] and own != before[1] and whole != before[2]
    with (package / "course/plots.py").open("a") as file:
        file.write("# another colour")
    assert hashes()[0] != before[0]
    files.package_hash.cache_clear()


def test_only_the_reference_profile_and_those_of_a_gpu_write_into_results(monkeypatch, tmp_path):
    """A second CPU profile would put its numbers in the place of the reference run's."""
    folder = tmp_path / "profiles"
    shutil.copytree(Path(profiles.__file__).parent, folder)
    (folder / "laptop.yaml").write_text("base: cpu\nnotebooks:\n  00_start_here: {new_tokens: 6}\n")
    monkeypatch.setattr(profiles, "FOLDER", folder)
    monkeypatch.setattr(run_notebooks, "_require_gpu", lambda _profile: None)
    where = {name: job(profile=name).results for name in ("cpu", "t4", "gpu", "smoke", "laptop")}
    shared = {name for name, path in where.items() if path == run_notebooks.ROOT / "results"}
    assert shared == {"cpu", "t4", "gpu"}
