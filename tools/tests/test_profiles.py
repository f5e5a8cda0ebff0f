"""Profiles: the same notebooks and parameters in each, and no value of a wrong kind gets through."""

import copy
import json
import pickle
import re
import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import course
from llama_int8 import profiles
from llama_int8.course import start as start_module
from llama_int8.course.start import start_lesson
from llama_int8.measure import results as results_module
from llama_int8.profiles import (
    FULL,
    Settings,
    automatic_profile,
    check_type,
    meanings,
    profile_names,
    read_profile,
    resolve,
)

PROFILES = profile_names()
CPU = read_profile("cpu").notebooks
NOTEBOOK = next(iter(CPU))


COURSES_OWN = {"cpu": "cpu", "smoke": "cpu", "t4": "cuda", "gpu": "cuda"}  # name: device


def test_the_profiles_are_the_yaml_files_a_base_before_what_is_based_on_it():
    assert [name for name in PROFILES if name in COURSES_OWN] == [*COURSES_OWN]
    assert sorted(PROFILES) == course.PROFILES
    files = Path(profiles.__file__).parent.glob("*.yaml")
    assert sorted(PROFILES) == sorted(file.stem for file in files)


@pytest.mark.parametrize("name", PROFILES)
def test_every_profile_has_the_same_notebooks_and_parameters_of_the_same_types(name):
    def types(notebooks):
        return {
            notebook: {parameter: type(value) for parameter, value in parameters.items()}
            for notebook, parameters in notebooks.items()
        }

    assert types(read_profile(name).notebooks) == types(CPU)


@pytest.mark.parametrize("name", PROFILES)
def test_a_profile_names_its_device_and_a_time_limit(name):
    profile = read_profile(name)
    assert profile.device == COURSES_OWN.get(name, profile.device) in ("cpu", "cuda")
    assert profile.cell_timeout_s >= 60


@pytest.mark.parametrize("notebook", CPU)
def test_only_the_smallest_profiles_are_bound_to_the_offline_model(notebook):
    assert {read_profile(name).notebooks[notebook]["model"] for name in ("smoke", "cpu")} == {
        "smollm2-135m"
    }


@pytest.mark.parametrize("notebook", CPU)
@pytest.mark.parametrize("profile", PROFILES)
def test_resolve_gives_the_profiles_values_its_name_and_device(profile, notebook):
    settings = resolve(notebook, profile)
    read = read_profile(profile)
    added = {"profile": profile, "device": read.device, "customized": []}
    assert settings == {**read.notebooks[notebook], **added}


def test_what_is_set_by_hand_wins_and_is_named():
    settings = resolve(NOTEBOOK, "cpu", "llama-7b", {"rounds": 3})
    assert (settings.rounds, settings.model) == (3, "llama-7b")
    assert settings.new_tokens == CPU[NOTEBOOK]["new_tokens"]
    assert settings.customized == ["model", "rounds"]


def test_names_of_changes_are_read_in_capitals_too():
    settings = resolve(NOTEBOOK, "cpu", changes={"ROUNDS": 3, " New_Tokens": 5})
    assert (settings.rounds, settings.new_tokens) == (3, 5)
    assert settings.customized == ["new_tokens", "rounds"]


def test_a_folder_for_the_results_makes_no_other_run():
    settings = resolve(NOTEBOOK, "cpu", changes={"results_dir": "/drive"})
    assert settings.results_dir == "/drive" and settings.customized == []


@pytest.mark.parametrize("notebook", CPU)
def test_every_parameter_has_a_meaning_in_words(notebook):
    assert meanings(notebook).keys() == CPU[notebook].keys()
    assert all(len(meaning.split()) >= 2 for meaning in meanings(notebook).values())


def test_an_override_does_not_reach_the_next_notebook():
    resolve(NOTEBOOK, "cpu", changes={"rounds": 99})
    assert resolve(NOTEBOOK, "cpu").rounds == CPU[NOTEBOOK]["rounds"]


# --- errors -----------------------------------------------------------------------------------


def test_an_unknown_profile_is_refused_with_the_known_ones():
    with pytest.raises(ValueError, match="profile is 'a100'; known are cpu, smoke, t4, gpu"):
        resolve(NOTEBOOK, "a100")


def test_an_unknown_notebook_is_refused_with_the_known_ones():
    with pytest.raises(ValueError, match=f"no notebook '99_none'; there are {', '.join(CPU)}"):
        resolve("99_none", "cpu")


def test_an_unknown_parameter_is_refused_with_the_known_ones():
    with pytest.raises(ValueError, match=r"'round' is unknown; .*\. Did you mean rounds\?"):
        resolve(NOTEBOOK, "cpu", changes={"round": 3})


@pytest.mark.parametrize("changes", ["{rounds: 3}", ["rounds"], 3])
def test_changes_that_are_no_dict_are_refused_with_an_example(changes):
    with pytest.raises(
        ValueError, match=r"CHANGES is .*; it must be a dict, such as \{\"prompt_to"
    ):
        resolve(NOTEBOOK, "cpu", changes=changes)


@pytest.mark.parametrize(("name", "place"), [("model", "MODEL"), ("Profile", "PROFILE")])
def test_model_and_profile_have_lines_of_their_own(name, place):
    with pytest.raises(ValueError, match=f"CHANGES sets '{name.lower()}'; use {place}"):
        resolve(NOTEBOOK, "cpu", changes={name: "cpu"})


def test_a_model_is_named_by_a_string():
    with pytest.raises(ValueError, match="model is 3, a int; it must be a str"):
        resolve(NOTEBOOK, "cpu", 3)


@pytest.mark.parametrize("value", ["3", 3.0, True, [3], float("nan"), None])
def test_only_an_int_is_an_int(value):
    with pytest.raises(ValueError, match=r"rounds is .*must be a int, like \d") as refused:
        resolve(NOTEBOOK, "cpu", changes={"rounds": value})
    assert repr(value) in str(refused.value) and type(value).__name__ in str(refused.value)


@given(st.integers(-(2**53), 2**53))
def test_an_int_may_stand_for_a_float(number):
    found = check_type("threshold", number, {"threshold": 6.0})
    assert type(found) is float and found == number


@pytest.mark.parametrize("value", [True, "6.0", None])
def test_nothing_else_stands_for_a_float(value):
    with pytest.raises(ValueError, match=r"threshold is .*must be a float, like 6\.0"):
        check_type("threshold", value, {"threshold": 6.0})


@pytest.mark.parametrize("value", [0, 1, "True"])
def test_only_a_bool_is_a_bool(value):
    with pytest.raises(ValueError, match="must be a bool"):
        check_type("quick", value, {"quick": True})


def test_a_missing_attribute_lists_the_parameters():
    with pytest.raises(AttributeError, match="no parameter 'rouns'; there are rounds, window"):
        _ = Settings(rounds=1, window=2).rouns


def test_settings_cannot_be_changed_only_copied_with_another_value():
    settings = Settings(rounds=1, window=2)
    with pytest.raises(TypeError, match="item assignment"):
        settings["rounds"] = 5
    assert Settings(settings, rounds=5) == {"rounds": 5, "window": 2}
    assert settings == {"rounds": 1, "window": 2}
    assert copy.deepcopy(settings) == pickle.loads(pickle.dumps(settings)) == settings


# --- a profile's file ---------------------------------------------------------------------------


@pytest.fixture
def folder(monkeypatch, tmp_path):
    """A folder of profiles in which a test may write its own."""
    copied = tmp_path / "profiles"
    shutil.copytree(Path(profiles.__file__).parent, copied)
    monkeypatch.setattr(profiles, "FOLDER", copied)
    return copied


def test_a_new_profile_is_one_file_with_what_differs(folder):
    own = {"common": {"model": "llama-7b"}, "notebooks": {NOTEBOOK: {"rounds": 3}}}
    (folder / "laptop.yaml").write_text(json.dumps({"base": "smoke", **own}))
    assert "laptop" in profile_names()
    settings, smoke = resolve(NOTEBOOK, "laptop"), resolve(NOTEBOOK, "smoke")
    assert settings == {**smoke, "profile": "laptop", "rounds": 3, "model": "llama-7b"}
    others = [values["model"] for values in read_profile("laptop").notebooks.values()]
    assert set(others) == {"llama-7b"}
    assert read_profile("laptop").cell_timeout_s == read_profile("smoke").cell_timeout_s


def test_a_new_parameter_is_one_entry(folder):
    text = (folder / "cpu.yaml").read_text()
    entry = "    depth: {value: 3, meaning: how deep to look}"
    (folder / "cpu.yaml").write_text(text.replace(f"  {NOTEBOOK}:", f"  {NOTEBOOK}:\n{entry}"))
    assert {resolve(NOTEBOOK, name).depth for name in profile_names()} == {3}
    assert meanings(NOTEBOOK)["depth"] == "how deep to look"


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ({}, "own.yaml has base None; it must name one of cpu, gpu, own, smoke, t4"),
        ({"base": "t5"}, "own.yaml has base 't5'"),
        ({"base": "own"}, "go in a circle: own -> own; one of them must be based on cpu"),
        ({"base": "cpu", "devise": "cuda"}, r"own.yaml has 'devise'; .*Did you mean device\?"),
        ({"base": "cpu", "notebooks": {"09_none": {}}}, "own.yaml has a notebook '09_none'"),
        (
            {"base": "cpu", "notebooks": {NOTEBOOK: {"round": 3}}},
            rf"own.yaml, {NOTEBOOK}: parameter 'round' is unknown; .*Did you mean rounds\?",
        ),
        (
            {"base": "cpu", "notebooks": {NOTEBOOK: {"rounds": "many"}}},
            f"own.yaml, {NOTEBOOK}: parameter rounds is 'many', a str; it must be a int",
        ),
        ([], "own.yaml is not a profile"),
    ],
)
def test_a_profile_that_makes_no_sense_is_named_with_its_mistake(folder, content, says):
    (folder / "own.yaml").write_text(json.dumps(content))
    with pytest.raises(ValueError, match=says):
        read_profile("own")


def test_two_profiles_that_are_each_others_base_are_named(folder):
    (folder / "one.yaml").write_text("base: two")
    (folder / "two.yaml").write_text("base: one")
    with pytest.raises(ValueError, match="profile one go in a circle: one -> two -> one"):
        read_profile("one")


def test_a_file_that_is_no_yaml_is_named_in_one_line(folder):
    (folder / "own.yaml").write_text("base: [")
    with pytest.raises(ValueError, match=r"^own\.yaml is not valid YAML: [^\n]*$"):
        read_profile("own")


@pytest.mark.parametrize("name", ["items", "keys", "get", "customized"])
def test_a_parameter_that_settings_could_not_give_is_refused(folder, name):
    text = (folder / f"{FULL}.yaml").read_text()
    entry = f"    {name}: {{value: 3, meaning: a trap}}"
    (folder / f"{FULL}.yaml").write_text(text.replace(f"  {NOTEBOOK}:", f"  {NOTEBOOK}:\n{entry}"))
    with pytest.raises(
        ValueError, match=f"has a parameter '{name}' of {NOTEBOOK}.* choose another"
    ):
        resolve(NOTEBOOK, "smoke")


def test_a_parameter_without_a_meaning_is_refused(folder):
    text = (folder / f"{FULL}.yaml").read_text()
    (folder / f"{FULL}.yaml").write_text(text.replace(", meaning: length of the answer", ""))
    with pytest.raises(ValueError, match=r"new_tokens of 00_start_here .* a value and a meaning"):
        read_profile("cpu")


# --- start --------------------------------------------------------------------------------------


@pytest.fixture
def shown(monkeypatch, tmp_path):
    """The rows of the table that `start_lesson` shows last, by name."""
    rows: dict[str, list[str]] = {}

    def show(_header, lines, **_options):
        rows.clear()
        rows.update({name: list(rest) for name, *rest in lines})

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(start_module, "show_table", show)
    monkeypatch.setattr(results_module, "environment", lambda device: {"machine": f"a-{device}"})
    return rows


@pytest.mark.parametrize("notebook", CPU)
def test_the_table_begins_with_profile_model_and_machine_and_has_every_parameter(notebook, shown):
    settings, results = start_lesson(notebook, "smoke")
    assert list(shown)[:3] == ["profile", "model", "machine"]
    assert [value for value, _ in shown.values()][:3] == ["`smoke`", "`smollm2-135m`", "`a-cpu`"]
    assert shown.keys() - {"profile", "machine"} == CPU[notebook].keys()
    for name, meaning in meanings(notebook).items():
        assert shown[name][1] == meaning
    assert settings == resolve(notebook, "smoke")
    assert results.notebook == notebook and "set by hand" not in str(shown)


def test_what_was_changed_or_shortened_is_marked(shown, capsys):
    start_lesson(NOTEBOOK, "cpu", None, {"rounds": 3, "prompt_tokens": 100_000})
    usual = resolve(NOTEBOOK, "cpu").rounds
    assert shown["rounds"][0] == f"**`3`** (set by hand; cpu: `{usual}`)"
    assert re.fullmatch(
        r"\*\*`\d+`\*\* \(`100000` is too long for this model\)", shown["prompt_tokens"][0]
    )
    assert shown["new_tokens"][0] == "`48`"
    assert "prompt_tokens is " in capsys.readouterr().out


def test_the_table_names_no_folder_of_this_machine(shown, tmp_path):
    changes = {"results_dir": str(tmp_path / "drive"), "text_file": str(tmp_path / "a.txt")}
    settings, results = start_lesson("08_fp16_vs_int8", "cpu", None, changes)
    assert str(tmp_path) not in str(shown)
    assert shown["results_dir"][0].startswith("**`drive`** (set by hand")
    assert shown["text_file"][0].startswith("**`a.txt`** (set by hand")
    assert results.root == Path(settings.results_dir) == tmp_path / "drive"


def test_a_device_of_the_notebooks_own_wins_over_the_profiles(shown):
    settings, _ = start_lesson("10_fast_int8", "t4", device="cpu")
    assert settings.device == "cpu" and shown["machine"][0] == "`a-cpu`"


def test_a_profiles_model_that_cannot_be_had_is_replaced_and_named(shown, monkeypatch):
    monkeypatch.setattr(start_module.models, "available_model", lambda *_: "smollm2-135m")
    settings, results = start_lesson("08_fp16_vs_int8", "t4", device="cpu", fetch=True)
    assert settings.model == results.model == "smollm2-135m"
    assert shown["model"][0] == "**`smollm2-135m`** (`llama-2-7b-chat` is not available)"
    assert results.settings.model == "llama-2-7b-chat"  # what was asked for stays in the results
    assert results.path.name == "08_fp16_vs_int8@smollm2-135m.json"


def test_a_model_that_somebody_named_is_not_replaced(shown, monkeypatch):
    def never(*_):
        raise AssertionError

    monkeypatch.setattr(start_module.models, "available_model", never)
    settings, _ = start_lesson(NOTEBOOK, "cpu", "smollm2-135m", fetch=True)
    assert settings.customized == ["model"]
    assert shown["model"][0] == "**`smollm2-135m`** (set by hand; cpu: `smollm2-135m`)"


# --- the automatic profile --------------------------------------------------------------------


@pytest.mark.parametrize(
    ("gibibytes", "profile"),
    [(None, "cpu"), (14.75, "t4"), (6, "t4"), (22.5, "gpu"), (79.1, "gpu"), (139, "gpu")],
)
def test_the_gpus_memory_chooses_the_profile(monkeypatch, gibibytes, profile):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: gibibytes is not None)
    if gibibytes is not None:
        properties = SimpleNamespace(total_memory=int(gibibytes * 2**30))
        monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _number: properties)
    assert automatic_profile() == profile
    assert resolve(NOTEBOOK).profile == profile


def test_a_parameter_that_is_set_by_itself_is_refused_with_what_to_write(monkeypatch):
    shell = SimpleNamespace(user_ns={"ROUNDS": 3})
    monkeypatch.setattr(start_module, "get_ipython", lambda: shell)
    with pytest.raises(
        ValueError, match=r"ROUNDS is set by itself.*CHANGES = \{'rounds': \.\.\.\}"
    ):
        start_lesson("00_start_here", "smoke")
    shell.user_ns = {"MODEL": None, "CHANGES": {}, "ROUND": 1}
    assert start_lesson("00_start_here", "smoke")[0].rounds == 2
