"""The exercises of lesson 02: references, cases, hints and known mistakes."""

from llama_int8.course.exercises import check, exercise, hint, solution

__all__ = ["check", "hint", "solution"]


@exercise(
    "02.previous_token_score",
    points=1,
    cases=[
        ([[1.0, 0.0, 0.0], [0.9, 0.1, 0.0], [0.2, 0.7, 0.1]],),
        ([[1, 0, 0, 0], [0.5, 0.5, 0, 0], [0.1, 0.3, 0.6, 0], [0.2, 0.1, 0.3, 0.4]],),
    ],
    hints=["For query t the previous token is column t - 1. Take t from 2 on, then the mean."],
)
def previous_token_score(weights: list[list[float]]) -> float:
    """Mean of the entries just below the diagonal, from query 2 on."""
    looks = [row[t - 1] for t, row in enumerate(weights) if t >= 2]
    return sum(looks) / len(looks)


previous_token_score.mistake(
    "nearly: leave query 1 out as well, its previous token is the sink",
    lambda w: sum(w[t][t - 1] for t in range(1, len(w))) / (len(w) - 1),
)
previous_token_score.mistake(
    "that is each token's weight on itself; the previous one is a column further left",
    lambda w: sum(w[t][t] for t in range(2, len(w))) / (len(w) - 2),
)
previous_token_score.mistake(
    "rows are queries: w[t][t - 1], not w[t - 1][t], which the mask has made 0",
    lambda w: sum(w[t - 1][t] for t in range(2, len(w))) / (len(w) - 2),
)
previous_token_score.mistake(
    "that is the sum; the mean was asked for", lambda w: sum(w[t][t - 1] for t in range(2, len(w)))
)
