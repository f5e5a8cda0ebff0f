"""A small translation task with a visible alignment: dates in English words into ISO form."""

import random
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import date, timedelta

import torch
from torch import Tensor

FIRST, LAST = date(1900, 1, 1), date(2099, 12, 31)
WORDINGS = 4
HELD_OUT = 1000  # dates that training never sees, in any wording
PAD, START, END = 0, 1, 2
CHARACTERS = " ,-0123456789abcdefghijklmnopqrstuvwxyz"
VOCABULARY = 3 + len(CHARACTERS)
NUMBER_OF = {character: 3 + place for place, character in enumerate(CHARACTERS)}

SMALL = """zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen
fifteen sixteen seventeen eighteen nineteen""".split()
TENS = "- - twenty thirty forty fifty sixty seventy eighty ninety".split()
IRREGULAR = {"one": "first", "two": "second", "three": "third", "five": "fifth"}
IRREGULAR |= {"eight": "eighth", "nine": "ninth", "twelve": "twelfth"}
IRREGULAR |= {"twenty": "twentieth", "thirty": "thirtieth"}
MONTHS = """january february march april may june july august september october november
december""".split()
WEEKDAYS = "monday tuesday wednesday thursday friday saturday sunday".split()


@dataclass(frozen=True)
class Words:
    """A date in words, with the (start, end) of each of its parts in the text."""

    text: str
    parts: dict[str, tuple[int, int]]


def cardinal(number: int) -> str:
    """0 to 99 in words: "forty two"."""
    if number < 20:
        return SMALL[number]
    tens, ones = divmod(number, 10)
    return TENS[tens] + (f" {SMALL[ones]}" if ones else "")


def ordinal(number: int) -> str:
    """1 to 31 as "first", "twenty second"."""
    *before, last = cardinal(number).split()
    return " ".join([*before, IRREGULAR.get(last, f"{last}th")])


def year_in_words(year: int) -> str:
    """ "nineteen eighty four", "nineteen oh five", "two thousand and one"."""
    century, rest = divmod(year, 100)
    if 2000 <= year < 2010:
        return "two thousand" + (f" and {SMALL[rest]}" if rest else "")
    if rest == 0:
        return f"{cardinal(century)} hundred"
    return f"{cardinal(century)} {'oh ' if rest < 10 else ''}{cardinal(rest)}"


def in_words(day: date, wording: int) -> Words:
    """`day` in one of the four wordings."""
    pieces = {
        "day": ordinal(day.day),
        "month": MONTHS[day.month - 1],
        "year": year_in_words(day.year),
    }
    weekday = WEEKDAYS[day.weekday()]
    pattern = [
        ("the ", "day", " of ", "month", " ", "year"),
        ("month", " the ", "day", ", ", "year"),
        (weekday, ", ", "month", " ", "day", " ", "year"),
        ("year", ", ", "month", " ", "day"),  # the year does not always stand last
    ][wording]
    text, parts = "", {}
    for piece in pattern:
        start, text = len(text), text + pieces.get(piece, piece)
        if piece in pieces:
            parts[piece] = (start, len(text))
    return Words(text, parts)


def split() -> tuple[list[date], list[date]]:
    """All dates of two centuries, shuffled: those to train on, and HELD_OUT others."""
    days = [FIRST + timedelta(n) for n in range((LAST - FIRST).days + 1)]
    random.Random(0).shuffle(days)
    return days[HELD_OUT:], days[:HELD_OUT]


def encode(texts: Sequence[str]) -> Tensor:
    """Characters to numbers, (B, longest), padded with PAD. Raises KeyError for another character."""
    longest = max(map(len, texts))
    rows = [[NUMBER_OF[c] for c in text] + [PAD] * (longest - len(text)) for text in texts]
    return torch.tensor(rows)


def decode(numbers: Tensor) -> str:
    """Numbers (T,) back to characters; PAD, START and END are left out."""
    return "".join(CHARACTERS[n - 3] for n in numbers.tolist() if n > END)


def batch(days: Sequence[date], chance: random.Random) -> tuple[Tensor, Tensor]:
    """Words (B, S) in a random wording, and START, ISO form, END, (B, 12)."""
    words = encode([in_words(day, chance.randrange(WORDINGS)).text for day in days])
    iso = encode([day.isoformat() for day in days])
    edge = torch.ones(len(days), 1, dtype=iso.dtype)
    return words, torch.cat([START * edge, iso, END * edge], dim=1)
