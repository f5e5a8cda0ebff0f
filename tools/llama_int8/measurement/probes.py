"""Small questions to a language model: they travel with the package and were written for it."""

from importlib.resources import files

import yaml


def probes(kind: str) -> list:
    """One kind of question: "answers", "hidden_words", "yes_or_no" or "repeated".

    Raises ValueError for another kind.
    """
    text = (files("llama_int8") / "data" / "probes.yaml").read_text(encoding="utf-8")
    kinds = yaml.safe_load(text)
    if kind not in kinds:
        raise ValueError(f"there are no probes {kind!r}; there are {', '.join(kinds)}")
    return kinds[kind]
