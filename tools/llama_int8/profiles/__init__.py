"""How large a run is: one YAML file for each profile.

`cpu.yaml` is the full list: every notebook's parameters with value and meaning. Every other file
names its `base` and holds only the values that differ from it. `resolve` gives a notebook its
values: a profile's, or what the reader or papermill set in `MODEL` and `CHANGES`.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from importlib.resources import files
from typing import Any

import yaml

from llama_int8.files import read_yaml
from llama_int8.names import did_you_mean

FOLDER = files(__package__)
FULL = "cpu"  # the profile that lists every parameter
# From here on a GPU is larger than a T4 (which shows 14.75 GiB of its 16 GB).
LARGE_GPU_BYTES = 20 * 2**30
# What a notebook sets beside CHANGES, not in it.
OUTSIDE = {"model": "MODEL", "profile": "PROFILE"}
ADDED = ("profile", "device", "customized")  # by `resolve` to the parameters
KEYS = ("base", "device", "cell_timeout_s", "common", "notebooks")


class Settings(Mapping):
    """A notebook's parameters, read as `settings.window` or `settings["window"]`; never changed.

    Made like a dict: `Settings(earlier, window=64)` is a copy with another window.
    """

    def __init__(self, *values: Mapping[str, Any], **more: Any) -> None:
        self._values = dict(*values, **more)

    def __getitem__(self, name: str) -> Any:
        return self._values[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._values)

    def __len__(self) -> int:
        return len(self._values)

    def __getattr__(self, name: str) -> Any:
        values = vars(self).get("_values", {})
        if name in values:
            return values[name]
        raise AttributeError(f"no parameter {name!r}; there are {', '.join(values)}")

    def __repr__(self) -> str:
        return f"Settings({self._values})"


@dataclass(frozen=True)
class Profile:
    """A profile with all that its base gives it: the parameters' values by notebook."""

    name: str
    device: str
    cell_timeout_s: int
    notebooks: dict[str, dict[str, Any]]


def profile_names() -> list[str]:
    """The names of the YAML files, a base before what is based on it."""
    return sorted(_file_names(), key=lambda name: (len(_bases(name)), name))


def read_profile(name: str) -> Profile:
    """Read one profile. Raises ValueError for an unknown name, or a file that makes no sense."""
    first, *others = reversed(_bases(name))
    full = _read(first)
    notebooks = {
        notebook: {key: entry["value"] for key, entry in entries.items()}
        for notebook, entries in _entries(full).items()
    }
    top = {"device": full["device"], "cell_timeout_s": full["cell_timeout_s"]}
    for based in others:
        content = _read(based)
        top |= {key: content[key] for key in top if key in content}
        _apply(based, content, notebooks)
    return Profile(name, notebooks=notebooks, **top)


def meanings(notebook: str) -> dict[str, str]:
    """What each parameter of a notebook means."""
    return {name: entry["meaning"] for name, entry in _entries(_read(FULL))[notebook].items()}


def automatic_profile() -> str:
    """ "gpu" for a GPU larger than a T4, "t4" for any smaller one, "cpu" without."""
    import torch

    if not torch.cuda.is_available():
        return "cpu"
    memory = torch.cuda.get_device_properties(0).total_memory
    return "gpu" if memory >= LARGE_GPU_BYTES else "t4"


def resolve(
    notebook: str,
    profile: str = "auto",
    model: str | None = None,
    changes: Mapping[str, Any] | None = None,
) -> Settings:
    """The parameters of `notebook` in `profile`, with another model and other values where given.

    Adds `profile`, `device`, and `customized`: the names of what was set by hand and can change a
    result. Raises ValueError for an unknown profile, notebook or parameter, or a value of another
    type than the profile's.
    """
    chosen = read_profile(automatic_profile() if profile == "auto" else profile)
    if notebook not in chosen.notebooks:
        raise ValueError(
            f"profile {chosen.name} has no notebook {notebook!r}; there are "
            f"{', '.join(chosen.notebooks)}"
        )
    values = chosen.notebooks[notebook]
    changed = {} if model is None else {"model": check_type("model", model, values)}
    for name, value in _by_lower_case(changes, values).items():
        changed[name] = check_type(name, value, values)
    return Settings(
        {**values, **changed},
        profile=chosen.name,
        device=chosen.device,
        customized=sorted(changed.keys() - {"results_dir"}),
    )


def check_type(name: str, value: Any, parameters: Mapping[str, Any]) -> Any:
    """Return `value` if it has the type of the profile's own value; an int may stand for a float."""
    if name not in parameters:
        raise ValueError(
            f"parameter {name!r} is unknown; there are {', '.join(parameters)}"
            f"{did_you_mean(name, parameters)}"
        )
    kind = type(parameters[name])
    if kind is float and type(value) is int:
        return float(value)
    if type(value) is not kind:
        raise ValueError(
            f"parameter {name} is {value!r}, a {type(value).__name__}; it must be a "
            f"{kind.__name__}, like {parameters[name]!r}"
        )
    return value


def _by_lower_case(changes: Any, values: Mapping[str, Any]) -> dict[str, Any]:
    """CHANGES with its names in lower case. Raises ValueError unless it is a dict of parameters."""
    if changes is None:
        return {}
    if not isinstance(changes, Mapping):
        name = next((name for name, value in values.items() if type(value) is int), "name")
        example = f'{{"{name}": {values.get(name, "value")}}}'
        raise ValueError(
            f"CHANGES is {changes!r}, a {type(changes).__name__}; it must be a dict, such as {example}"
        )
    lower = {str(name).strip().lower(): value for name, value in changes.items()}
    for name in OUTSIDE.keys() & lower.keys():
        raise ValueError(f"CHANGES sets {name!r}; use {OUTSIDE[name]} for it, in the line above")
    return lower


# --- the files


def _file_names() -> list[str]:
    names = (file.name for file in FOLDER.iterdir())
    return sorted(name.removesuffix(".yaml") for name in names if name.endswith(".yaml"))


def _read(name: str) -> dict[str, Any]:
    """What stands in one file. Raises ValueError if that is not a profile."""
    try:
        content = read_yaml(FOLDER / f"{name}.yaml")
    except yaml.YAMLError as error:
        raise ValueError(f"{name}.yaml is not valid YAML: {' '.join(str(error).split())}") from None
    if not isinstance(content, dict):
        raise ValueError(f"{name}.yaml is not a profile; it must hold {', '.join(KEYS)}")
    for key in content.keys() - set(KEYS):
        raise ValueError(
            f"{name}.yaml has {key!r}; known are {', '.join(KEYS)}{did_you_mean(str(key), KEYS)}"
        )
    return content


def _bases(name: str) -> list[str]:
    """The profile, its base, the base's base and so on, down to the full list."""
    known = _file_names()
    if name not in known:
        raise ValueError(f"profile is {name!r}; known are {', '.join(profile_names())}")
    found = [name]
    while found[-1] != FULL:
        base = _read(found[-1]).get("base")
        if base not in known:
            raise ValueError(
                f"{found[-1]}.yaml has base {base!r}; it must name one of {', '.join(known)}"
            )
        if base in found:
            raise ValueError(
                f"the bases of profile {name} go in a circle: {' -> '.join([*found, base])}; one of "
                f"them must be based on {FULL}"
            )
        found.append(base)
    return found


def _entries(full: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Value and meaning by notebook and parameter. Raises ValueError for an entry without them."""
    common = full["common"]
    notebooks = {name: {**common, **own} for name, own in full["notebooks"].items()}
    for notebook, entries in notebooks.items():
        for name, entry in entries.items():
            if not isinstance(entry, dict) or set(entry) != {"value", "meaning"}:
                raise ValueError(
                    f"{FULL}.yaml has {name} of {notebook} as {entry!r}; it must have a value and a "
                    "meaning"
                )
            if name in (*dir(Settings), *ADDED):  # settings.items would be the method
                raise ValueError(
                    f"{FULL}.yaml has a parameter {name!r} of {notebook}; settings use this name for "
                    "something else, so choose another"
                )
    return notebooks


def _apply(name: str, content: Mapping[str, Any], notebooks: dict[str, dict[str, Any]]) -> None:
    """Put a profile's own values in place of its base's, each of the same type."""
    own = content.get("notebooks") or {}
    for notebook in own.keys() - notebooks.keys():
        raise ValueError(
            f"{name}.yaml has a notebook {notebook!r}, which {FULL}.yaml does not have"
            f"{did_you_mean(str(notebook), notebooks)}"
        )
    for notebook, values in notebooks.items():
        changed = {**(content.get("common") or {}), **(own.get(notebook) or {})}
        for parameter, value in changed.items():
            try:
                values[parameter] = check_type(parameter, value, values)
            except ValueError as error:
                raise ValueError(f"{name}.yaml, {notebook}: {error}") from None
