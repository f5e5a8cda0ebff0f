"""Names as people type them: lists with blanks and capitals, and the known name that was meant."""

from collections.abc import Collection
from difflib import get_close_matches


def listed(text: str) -> list[str]:
    """The names in "bf16, INT8,": in lower case, each once, in their order."""
    names = (name.strip().lower() for name in text.split(","))
    return list(dict.fromkeys(name for name in names if name))


def did_you_mean(name: str, known: Collection[str]) -> str:
    """ ". Did you mean int8?" where a known name is near, else nothing; the end of a message."""
    by_letters = {letters(one): one for one in known}
    near = get_close_matches(letters(name), by_letters, n=1, cutoff=0.6)
    return f". Did you mean {by_letters[near[0]]}?" if near else ""


def letters(name: str) -> str:
    """Letters and digits only, in lower case: "Int8_fast" and "int8-fast" are the same."""
    return "".join(char for char in name.lower() if char.isalnum())
