"""The prose that travels with the package, written for it: one text to score, one to calibrate on."""

from importlib.resources import files


def evaluation_text() -> str:
    """A story, a manual, a report, a dialogue and an argument: more than 8,000 tokens."""
    return _joined("evaluation")


def calibration_text() -> str:
    """Letters, recipes, a lecture and a travel diary: more than 4,000 tokens, none of them shared."""
    return _joined("calibration")


def _joined(folder: str) -> str:
    parts = (files("llama_int8") / "data" / folder).iterdir()
    texts = sorted((p for p in parts if p.name.endswith(".txt")), key=lambda part: part.name)
    return "\n\n".join(part.read_text(encoding="utf-8").strip() for part in texts)
