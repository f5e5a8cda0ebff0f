"""Which places a travel plan for Paris names, and which of them are in Paris."""

import re
import unicodedata
from functools import cache

from llama_int8.data import load


@cache
def _spellings() -> dict[str, tuple[str, bool]]:
    """Plain spelling: (name, whether it is in Paris); longest first."""
    lists = load("paris")
    known = {
        _plain(spelling): (name, True)
        for name, others in lists["in_paris"].items()
        for spelling in (name, *others)
    }
    known |= {_plain(name): (name, False) for name in lists["elsewhere"]}
    return dict(sorted(known.items(), key=lambda entry: -len(entry[0])))


def _plain(text: str) -> str:
    """Lower case without accents; hyphens as spaces, one kind of apostrophe."""
    text = re.sub("[-\u2010\u2011]", " ", text.lower().replace("œ", "oe").replace("’", "'"))
    letters = unicodedata.normalize("NFKD", text)
    return " ".join("".join(c for c in letters if not unicodedata.combining(c)).split())


def places_named(text: str) -> tuple[list[str], list[str]]:
    """Names of places in Paris and of places elsewhere in `text`, each once, in alphabetical order.

    Only places of the package's list count: one that is on neither list, or invented, is not seen.
    A longer name hides the shorter one in it ("Louvre Abu Dhabi" is not the Louvre).
    """
    rest, found = _plain(text), set()
    for spelling, entry in _spellings().items():
        pattern = rf"(?<!\w){re.escape(spelling)}(?!\w)"
        if re.search(pattern, rest):
            found.add(entry)
            rest = re.sub(pattern, "|", rest)
    return tuple(sorted(name for name, inside in found if inside is side) for side in (True, False))
