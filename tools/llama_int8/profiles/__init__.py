"""How large a run is: one YAML file a profile, holding the parameters of every notebook.

`resolve` is what a notebook calls after its parameters cell: what the reader or papermill set
there wins, everything else comes from the profile.
"""

from dataclasses import dataclass
from importlib.resources import files
from typing import Any

import yaml

from llama_int8.names import did_you_mean

PROFILES = ("smoke", "cpu", "t4", "gpu")
# From here on a GPU is larger than a T4 (which shows 14.75 GiB of its 16 GB).
LARGE_GPU_BYTES = 20 * 2**30


class Settings(dict):
    """A notebook's parameters, read as attributes: `settings.model`, `settings.new_tokens`."""

    def __getattr__(self, name: str) -> Any:
        try:
            return self[name]
        except KeyError:
            raise AttributeError(f"no parameter {name!r}; there are {', '.join(self)}") from None


@dataclass(frozen=True)
class Profile:
    """One profile file: the device, the time limit of a cell, the parameters by notebook."""

    name: str
    device: str
    cell_timeout_s: int
    notebooks: dict[str, dict[str, Any]]


def read_profile(name: str) -> Profile:
    """Read one profile. Raises ValueError for an unknown name."""
    if name not in PROFILES:
        raise ValueError(f"profile is {name!r}; known are {', '.join(PROFILES)}")
    text = (files(__package__) / f"{name}.yaml").read_text(encoding="utf-8")
    return Profile(name, **yaml.safe_load(text))


def automatic_profile() -> str:
    """ "gpu" for a GPU larger than a T4, "t4" for any smaller one, "cpu" without."""
    import torch

    if not torch.cuda.is_available():
        return "cpu"
    memory = torch.cuda.get_device_properties(0).total_memory
    return "gpu" if memory >= LARGE_GPU_BYTES else "t4"


def resolve(notebook: str, profile: str = "auto", **overrides: Any) -> Settings:
    """The parameters of `notebook` in `profile`, with every override that is not None applied.

    Adds `profile`, `device`, and `customized`: the names that were set by hand.
    Raises ValueError for an unknown profile, notebook or parameter, or a value of another type
    than the profile's.
    """
    chosen = read_profile(automatic_profile() if profile == "auto" else profile)
    if notebook not in chosen.notebooks:
        raise ValueError(
            f"profile {chosen.name} has no notebook {notebook!r}; there are "
            f"{', '.join(chosen.notebooks)}"
        )
    settings = Settings(chosen.notebooks[notebook])
    changed = {name: value for name, value in overrides.items() if value is not None}
    for name, value in changed.items():
        settings[name] = check_type(name, value, settings)
    return Settings(settings, profile=chosen.name, device=chosen.device, customized=sorted(changed))


def check_type(name: str, value: Any, parameters: dict[str, Any]) -> Any:
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
