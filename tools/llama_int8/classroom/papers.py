"""Numbers from papers, in files with their sources: to compute with and to compare."""

from functools import cache
from importlib.resources import files
from typing import Any

import yaml


@cache
def llama_papers() -> dict[str, Any]:
    """`sizes`, `mixture`, `speed`, `family`, `kinds`, and the `sources` of all of them."""
    text = (files("llama_int8") / "data" / "llama_papers.yaml").read_text(encoding="utf-8")
    return yaml.safe_load(text)


@cache
def published(name: str) -> dict[str, Any]:
    """One table of others' measurements: `title`, `source`, `note`, `columns`, `rows`."""
    text = (files("llama_int8") / "data" / "published.yaml").read_text(encoding="utf-8")
    return yaml.safe_load(text)[name]
