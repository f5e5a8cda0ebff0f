"""The exercises of lesson 00: references, cases, hints and known mistakes."""

from llama_int8.course.exercises import check, exercise, hint, solution

__all__ = ["check", "hint", "solution"]

_SQUARE_AND_NOT = ((1536, 576), (576, 1536), (1, 1), (4096, 11008))


@exercise(
    "00.int8_bytes",
    points=2,
    cases=_SQUARE_AND_NOT,
    hints=[
        "An int8 weight takes one byte. What else must be kept to turn codes back to numbers?",
        (
            "There is one scale for each output row, that is, for each row of the matrix: a "
            "32-bit float."
        ),
    ],
)
def int8_bytes(rows: int, columns: int) -> int:
    """One byte a weight, and one FP32 scale for every output row."""
    return rows * columns + 4 * rows


int8_bytes.mistake("the weights are right; the scales of the rows are missing", lambda r, c: r * c)
int8_bytes.mistake("the scales belong to the rows, not to the columns", lambda r, c: r * c + 4 * c)
int8_bytes.mistake("that is 16 bit; an int8 weight takes one byte", lambda r, c: 2 * r * c)
int8_bytes.mistake("a scale is an FP32 number: four bytes, not one", lambda r, c: r * c + r)
int8_bytes.mistake(
    "a scale is an FP32 number here: four bytes, not two", lambda r, c: r * c + 2 * r
)
int8_bytes.mistake("LLM.int8() keeps a scale for each row, not one in all", lambda r, c: r * c + 4)
int8_bytes.mistake("a scale has 32 bits, and 32 bits are four bytes", lambda r, c: r * c + 32 * r)


@exercise(
    "00.saved_share",
    points=1,
    cases=[(100, 0), (100, 100), (3, 1), (0, 7)],
    hints=[
        "In 16 bit every number takes two bytes; in int8 the linear ones take one.",
        "`linear` bytes are saved, of 2 * (linear + other).",
    ],
)
def saved_share(linear: int, other: int) -> float:
    """One byte of two is saved for each linear weight, none for the others."""
    return linear / (2 * (linear + other))


saved_share.mistake(
    "that is the share that stays; the exercise asks for the share that is saved",
    lambda linear, other: 1 - saved_share(linear, other),
)
saved_share.mistake(
    "that is the share of the linear weights; int8 saves only half of their bytes",
    lambda linear, other: linear / (linear + other),
)
saved_share.mistake(
    "in 16 bit the other numbers take two bytes each, too",
    lambda linear, other: linear / (2 * linear + other),
)
saved_share.mistake(
    "that is in percent; the share lies between 0 and 1",
    lambda linear, other: 100 * saved_share(linear, other),
)
