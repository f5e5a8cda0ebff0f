"""The exercises of all notebooks, by number of notebook, with their reference solutions."""

from llama_int8.classroom.exercises import Exercise


def int8_bytes(rows: int, columns: int) -> int:
    """One byte a weight, and one FP32 scale for every output row."""
    return rows * columns + 4 * rows


def fastest_decode(bytes_read: float, bandwidth: float) -> float:
    """Tokens per second if reading the weights were all the work."""
    return bandwidth / bytes_read


def mean_difference_interval(differences: list[float]) -> tuple[float, float]:
    """Mean minus and plus 1.96 standard errors."""
    n = len(differences)
    mean = sum(differences) / n
    variance = sum((d - mean) ** 2 for d in differences) / (n - 1)
    half = 1.96 * (variance / n) ** 0.5
    return mean - half, mean + half


_SQUARE_AND_NOT = ((1536, 576), (576, 1536), (1, 1), (4096, 11008))
_DIFFERENCES = (([0.1, 0.3, 0.2, 0.4],), ([-1.0, 1.0],), ([0.02, 0.05, -0.01, 0.03, 0.01],))

EXERCISES: dict[str, Exercise] = {
    exercise.name: exercise
    for exercise in [
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
            ),
        ),
        Exercise(
            "06.fastest_decode",
            1,
            fastest_decode,
            ((13.2e9, 320e9), (2.0, 1.0), (6.7e9, 320e9)),
            ("Each token reads all weights once. How often can they be read in a second?",),
            (
                (
                    lambda bytes_read, bandwidth: bytes_read / bandwidth,
                    "that is seconds for a token; tokens per second are the reciprocal",
                ),
            ),
        ),
        Exercise(
            "06.interval",
            2,
            mean_difference_interval,
            _DIFFERENCES,
            (
                "The standard error of a mean is the standard deviation over the square root of n.",
                "Divide the squared deviations by n - 1, and the variance once more by n.",
            ),
            (
                (
                    lambda d: (
                        sum(d) / len(d) - 1.96 * _deviation(d, 1),
                        sum(d) / len(d) + 1.96 * _deviation(d, 1),
                    ),
                    "that is where single windows lie; the mean of n windows varies less, by the "
                    "square root of n",
                ),
                (
                    lambda d: (
                        sum(d) / len(d) - 1.96 * _deviation(d, 0) / len(d) ** 0.5,
                        sum(d) / len(d) + 1.96 * _deviation(d, 0) / len(d) ** 0.5,
                    ),
                    "nearly: the variance of a sample divides by n - 1, not by n",
                ),
            ),
        ),
    ]
}


def _deviation(values: list[float], ddof: int) -> float:
    mean = sum(values) / len(values)
    return (sum((v - mean) ** 2 for v in values) / (len(values) - ddof)) ** 0.5
