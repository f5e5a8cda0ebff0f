"""Claims on trial: what papers and projects say, beside what a cell here measured."""

from functools import cache
from importlib.resources import files
from typing import Any

import yaml

from llama_int8.measurement.results import Results

VERDICTS = ("holds", "holds only if", "fails here", "not testable here")


@cache
def claims() -> dict[str, dict[str, Any]]:
    """All claims by name: `claim`, `source`, `notebook`."""
    text = (files("llama_int8") / "data" / "claims.yaml").read_text(encoding="utf-8")
    return yaml.safe_load(text)


def put_on_trial(results: Results, name: str, measured: str, verdict: str, because: str) -> None:
    """Show the claim, the measurement and the verdict, and keep them for the report.

    Raises ValueError for an unknown claim or verdict.
    """
    if name not in claims():
        raise ValueError(f"no claim {name!r}; there are {', '.join(claims())}")
    if verdict not in VERDICTS:
        raise ValueError(f"verdict is {verdict!r}; known are {', '.join(VERDICTS)}")
    results.add_claim(name, measured, verdict, because)

    from IPython.display import Markdown, display

    entry = claims()[name]
    display(
        Markdown(
            f"> **Claim.** {entry['claim']} ({entry['source']})\n>\n"
            f"> **Measured.** {measured}\n>\n> **Verdict: {verdict}.** {because}"
        )
    )
