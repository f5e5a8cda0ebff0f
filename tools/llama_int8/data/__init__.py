"""Texts, questions, claims and published numbers that travel with the package."""

from functools import cache
from importlib.resources import files
from typing import Any

from llama_int8.files import read_yaml

FOLDER = files(__package__)


@cache
def load(name: str) -> Any:
    """The content of `data/<name>.yaml`: "claims", "llama_papers", "paris", "probes" or "published".

    Raises ValueError for another name.
    """
    path = FOLDER / f"{name}.yaml"
    if not path.is_file():
        known = sorted(
            p.name[: -len(".yaml")] for p in FOLDER.iterdir() if p.name.endswith(".yaml")
        )
        raise ValueError(f"there are no data {name!r}; there are {', '.join(known)}")
    return read_yaml(path)


def probes(kind: str) -> list:
    """Small questions of one kind: "answers", "hidden_words", "yes_or_no" or "repeated".

    Raises ValueError for another kind.
    """
    kinds = load("probes")
    if kind not in kinds:
        raise ValueError(f"there are no probes {kind!r}; there are {', '.join(kinds)}")
    return kinds[kind]


def published(name: str) -> dict[str, Any]:
    """One table of others' measurements: `title`, `source`, `note`, `columns`, `rows`."""
    return load("published")[name]


def evaluation_text() -> str:
    """A story, a manual, a report, a dialogue and an argument: more than 8,000 tokens."""
    return _joined("evaluation")


def calibration_text() -> str:
    """Letters, recipes, a lecture and a travel diary: more than 4,000 tokens, none of them shared."""
    return _joined("calibration")


def _joined(folder: str) -> str:
    parts = sorted((p for p in (FOLDER / folder).iterdir() if p.name.endswith(".txt")), key=str)
    return "\n\n".join(part.read_text(encoding="utf-8").strip() for part in parts)
