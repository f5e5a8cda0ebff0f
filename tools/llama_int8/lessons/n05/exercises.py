"""The exercises of lesson 05: references, cases, hints and known mistakes."""

from llama_int8.course.exercises import check, exercise, hint, solution

__all__ = ["check", "hint", "solution"]


@exercise(
    "05.training_days",
    points=1,
    cases=[(1.4e12, 380.0, 2048), (1e9, 1000.0, 1), (86400.0, 1.0, 4)],
    hints=["All GPUs together make tokens_per_second_per_gpu * gpus. A day has 86,400 seconds."],
)
def training_days(tokens: float, tokens_per_second_per_gpu: float, gpus: int) -> float:
    """Tokens over tokens per day."""
    return tokens / (tokens_per_second_per_gpu * gpus) / 86_400


training_days.mistake(
    "the rate is that of one GPU; there are `gpus`", lambda t, r, g: t / r / 86_400
)
training_days.mistake("those are seconds", lambda t, r, g: t / (r * g))
training_days.mistake("those are hours", lambda t, r, g: t / (r * g) / 3600)
