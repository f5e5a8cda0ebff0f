"""Claims on trial: what papers and projects say, beside what a cell here measured."""

from typing import Any

from llama_int8.data import load
from llama_int8.measure.results import Results

# The second: what was measured here agrees, but is too little of what the claim is about. "undecided
# here": measured, but the interval allows both answers; the last: no measurement here can.
VERDICTS = (
    "holds",
    "consistent with it here",
    "holds only if",
    "fails here",
    "undecided here",
    "not testable here",
)


def claims() -> dict[str, dict[str, Any]]:
    """All claims by name: `claim`, `source`, `notebook`."""
    return load("claims")


# How a claim's source begins if nobody can be cited for it.
HEARD = ("often heard", "a common", "a circulating", "a published summary")


def often_heard(entry: dict[str, Any]) -> bool:
    """Whether a claim has no source that one could cite."""
    return entry["source"].startswith(HEARD)


def put_on_trial(
    results: Results, name: str, measured: str, verdict: str, because: str, word: str = "Measured"
) -> None:
    """Show the claim, the measurement and the verdict, and keep them for the report.

    `word` is shown before `measured`: "Counted" where nothing was measured. Raises ValueError for an
    unknown claim or verdict.
    """
    if name not in claims():
        raise ValueError(f"no claim {name!r}; there are {', '.join(claims())}")
    if verdict not in VERDICTS:
        raise ValueError(f"verdict is {verdict!r}; known are {', '.join(VERDICTS)}")
    results.add_claim(name, measured, verdict, because)

    from IPython.display import Markdown, display

    entry = claims()[name]
    goes_on = verdict.endswith("if") and because[:1].islower()  # `because` ends the sentence
    stop = "" if goes_on else "."
    display(
        Markdown(
            f"> **Claim.** {entry['claim']} ({entry['source']})\n>\n"
            f"> **{word}.** {measured}\n>\n> **Verdict: {verdict}{stop}** {because}"
        )
    )
