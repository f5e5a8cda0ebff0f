"""How a notebook starts: with its parameters, and the results that it writes into."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from IPython import get_ipython

import llama_int8.models as models
import llama_int8.profiles as profiles
from llama_int8.course.tables import show_table
from llama_int8.measure.results import Results, public
from llama_int8.profiles import Settings

_running: Results | None = None  # of the lesson that was started last in this process


def running() -> Results | None:
    """The results of the lesson that runs; None before the first has started."""
    return _running


def start_lesson(
    notebook: str,
    profile: str = "auto",
    model: str | None = None,
    changes: Mapping[str, Any] | None = None,
    *,
    device: str | None = None,
    fetch: bool = False,
) -> tuple[Settings, Results]:
    """The settings and the results of `notebook`, shown as a table of name, value and meaning.

    The settings are the profile's, with `model` and `changes` in their place, and no length is
    more than the model can read at once. `device` is for a notebook that always runs on the same
    one. `fetch` has the model's files here before anything is measured, and states their revision;
    a profile's own model that cannot be had is replaced by the default model, with a printed line.

    Raises ValueError for what `profiles.resolve` does not know, ModelError for a model.
    """
    global _running
    _refuse_single_names(notebook)
    asked = profiles.resolve(notebook, profile, model, changes)
    if device is not None:
        asked = Settings(asked, device=device)
    settings = models.within_context(asked)
    results = Results(notebook, settings)
    if fetch:
        name = settings.model
        if model is None:
            half = models.baseline_precision(settings.device)
            name = models.available_model(name, half, settings.device)
        results.use_model(name, models.revision_of(models.model_folder(name)))
        settings = Settings(settings, model=name)
    show_table(["name", "value", "meaning"], _rows(notebook, asked, settings, results), right=False)
    _running = results
    return settings, results


def _refuse_single_names(notebook: str) -> None:
    """Raise ValueError where `NEW_TOKENS = 96`, or papermill's `-p`, sets a parameter by itself.

    It would change nothing, and the run would look like one with the profile's values.
    """
    shell = get_ipython()
    for name in profiles.meanings(notebook) if shell else ():
        if name != "model" and name.upper() in shell.user_ns:
            raise ValueError(
                f"{name.upper()} is set by itself, which changes nothing; write "
                f"CHANGES = {{{name!r}: ...}}, or with papermill -y 'CHANGES: {{{name}: ...}}'"
            )


def _rows(
    notebook: str, asked: Settings, settings: Settings, results: Results
) -> list[tuple[str, str, str]]:
    """Profile, model, machine, then every other parameter; no path of this machine."""
    usual = profiles.read_profile(settings.profile).notebooks[notebook]
    shown, before, usually = (_texts(s) for s in (settings, asked, Settings(usual)))
    names = ", ".join(profiles.profile_names())
    about = f"how large a run; set in PROFILE: {names}, or auto for what suits this machine"
    machine = results.environment["machine"]
    rows = {}
    by_hand = {*settings.customized, *(["results_dir"] if settings.results_dir else [])}
    for name, meaning in profiles.meanings(notebook).items():
        value = f"`{shown[name]}`"
        if settings[name] != asked[name]:
            why = "not available" if name == "model" else "too long for this model"
            value = f"**{value}** (`{before[name]}` is {why})"
        elif name in by_hand:
            value = f"**{value}** (set by hand; {settings.profile}: `{usually[name]}`)"
        rows[name] = (name, value, meaning)
    return [
        ("profile", f"`{settings.profile}`", about),
        rows.pop("model"),
        ("machine", f"`{machine}`", "what every measured number depends on"),
        *(row for name, row in rows.items() if name != "results_dir"),
        rows["results_dir"],
    ]


def _texts(settings: Settings) -> dict[str, str]:
    """Every value as text, of folders and files the last part only."""
    values = public(settings)
    values["results_dir"] = Path(settings.results_dir).name
    return {
        name: '""' if value == "" else str(value).replace("`", "'")
        for name, value in values.items()
    }
