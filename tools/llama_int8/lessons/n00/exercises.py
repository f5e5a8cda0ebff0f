"""The exercises of lesson 00: references, cases, hints and known mistakes."""

from llama_int8.course.exercises import Exercise, check, hint, register, solution

__all__ = ["EXERCISES", "check", "hint", "solution"]


def int8_bytes(rows: int, columns: int) -> int:
    """One byte a weight, and one FP32 scale for every output row."""
    return rows * columns + 4 * rows


_SQUARE_AND_NOT = ((1536, 576), (576, 1536), (1, 1), (4096, 11008))

EXERCISES = register(
    Exercise(
        "00.int8_bytes",
        2,
        int8_bytes,
        _SQUARE_AND_NOT,
        (
            "An int8 weight takes one byte. What else must be kept to turn codes back to numbers?",
            "There is one scale for each output row, that is, for each row of the matrix: a "
            "32-bit float.",
        ),
        (
            (lambda r, c: r * c, "the weights are right; the scales of the rows are missing"),
            (lambda r, c: r * c + 4 * c, "the scales belong to the rows, not to the columns"),
            (lambda r, c: 2 * r * c, "that is 16 bit; an int8 weight takes one byte"),
            (lambda r, c: r * c + r, "a scale is an FP32 number: four bytes, not one"),
            (lambda r, c: r * c + 2 * r, "a scale is an FP32 number here: four bytes, not two"),
            (lambda r, c: r * c + 4, "LLM.int8() keeps a scale for each row, not one in all"),
            (lambda r, c: r * c + 32 * r, "a scale has 32 bits, and 32 bits are four bytes"),
        ),
    ),
)
