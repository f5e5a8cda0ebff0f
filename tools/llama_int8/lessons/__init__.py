"""What only one lesson uses: a folder for each, with its figures, its exercises and its workflow.

What two lessons use lies a layer below. A folder `nNN` with an `exercises.py` is a lesson; nothing
else needs to name it.
"""

from functools import cache
from importlib import import_module
from pathlib import Path

from llama_int8.course.exercises import EXERCISES, Exercise

LESSONS = tuple(sorted(p.parent.name for p in Path(__file__).parent.glob("n[0-9]*/exercises.py")))


@cache
def exercises() -> dict[str, Exercise]:
    """The exercises of all lessons by name, such as "06.spacing"."""
    for lesson in LESSONS:
        import_module(f"{__name__}.{lesson}.exercises")
    return EXERCISES


def lesson_map() -> list[tuple[str, str, str]]:
    """Number, topic and question of every lesson, as its folder states them."""
    modules = {lesson: import_module(f"{__name__}.{lesson}") for lesson in LESSONS}
    return [(lesson[1:], module.TOPIC, module.QUESTION) for lesson, module in modules.items()]
