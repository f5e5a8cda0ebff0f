"""Profiles: the same notebooks and parameters in each, and no value of a wrong kind gets through."""

from types import SimpleNamespace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from llama_int8.profiles import (
    PROFILES,
    Settings,
    automatic_profile,
    check_type,
    read_profile,
    resolve,
)

CPU = read_profile("cpu").notebooks
NOTEBOOK = next(iter(CPU))


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
    assert profile.device == ("cpu" if name in ("smoke", "cpu") else "cuda")
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
    settings = resolve(NOTEBOOK, "cpu", rounds=3, model="llama-7b", new_tokens=None)
    assert (settings.rounds, settings.model) == (3, "llama-7b")
    assert settings.new_tokens == CPU[NOTEBOOK]["new_tokens"]  # None leaves the profile's value
    assert settings.customized == ["model", "rounds"]


def test_an_override_does_not_reach_the_next_notebook():
    resolve(NOTEBOOK, "cpu", rounds=99)
    assert resolve(NOTEBOOK, "cpu").rounds == CPU[NOTEBOOK]["rounds"]


# --- errors -----------------------------------------------------------------------------------


def test_an_unknown_profile_is_refused_with_the_known_ones():
    with pytest.raises(ValueError, match="profile is 'a100'; known are smoke, cpu, t4, gpu"):
        resolve(NOTEBOOK, "a100")


def test_an_unknown_notebook_is_refused_with_the_known_ones():
    with pytest.raises(ValueError, match=f"no notebook '99_none'; there are {', '.join(CPU)}"):
        resolve("99_none", "cpu")


def test_an_unknown_parameter_is_refused_with_the_known_ones():
    with pytest.raises(ValueError, match=r"'round' is unknown; there are .*rounds"):
        resolve(NOTEBOOK, "cpu", round=3)


@pytest.mark.parametrize("value", ["3", 3.0, True, [3], float("nan")])
def test_only_an_int_is_an_int(value):
    with pytest.raises(ValueError, match=r"rounds is .*must be a int, like 7") as refused:
        resolve(NOTEBOOK, "cpu", rounds=value)
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
