"""Two results folders beside each other, with a tolerance for each kind of number."""

import json
from pathlib import Path
from typing import Any

# Relative differences that two runs of the same thing may show. Timings of a shared machine vary
# widely; texts are reported, and count as a difference.
TOLERANCE = {"exact": 0.0, "memory": 0.01, "quality": 0.005, "timing": 0.5, "text": 0.0}


def compare_folders(first: Path, second: Path) -> tuple[list[str], bool]:
    """Lines that describe every number outside its tolerance or in only one folder; True if any.

    Raises ValueError where a file is not a results file.
    """
    left, right = _read(first), _read(second)
    lines, outside, unmatched = [], 0, 0
    for key in sorted(left.keys() | right.keys()):
        if key not in left or key not in right:
            unmatched += 1
            lines.append(f"only in {second if key not in left else first}: {key}")
            continue
        one, other = left[key], right[key]
        kind = one["kind"]
        if not _close(one["value"], other["value"], TOLERANCE[kind]):
            outside += 1
            lines.append(f"{kind:8}{key}: {_shown(one)} against {_shown(other)}")
    count = len(left.keys() & right.keys())
    tolerances = ", ".join(f"{kind} {t:.1%}" for kind, t in TOLERANCE.items())
    summary = f"{count} numbers compared, {outside} outside tolerance ({tolerances})"
    if unmatched:
        summary += f"; {unmatched} in only one folder"
    lines.append(summary)
    return lines, bool(outside or unmatched)


def _read(folder: Path) -> dict[str, dict[str, Any]]:
    found = {}
    for path in sorted(folder.rglob("*.json")):
        try:
            measurements = json.loads(path.read_text(encoding="utf-8"))["measurements"]
            sound = all(_is_measurement(entry) for entry in measurements.values())
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
            sound = False
        if not sound:
            raise ValueError(f"{path} is not a results file")
        name = path.relative_to(folder).with_suffix("").as_posix()
        found |= {f"{name}: {key}": entry for key, entry in measurements.items()}
    if not found:
        raise ValueError(f"{folder} holds no results file (.json)")
    return found


def _is_measurement(entry: dict[str, Any]) -> bool:
    known = entry["kind"] in TOLERANCE and "unit" in entry
    return known and isinstance(entry["value"], float | int | str)


def _close(one: float | str, other: float | str, tolerance: float) -> bool:
    if isinstance(one, str) or isinstance(other, str) or tolerance == 0:
        return one == other
    return abs(one - other) <= tolerance * max(abs(one), abs(other))


def _shown(entry: dict[str, Any]) -> str:
    value = entry["value"]
    return repr(value[:60]) if isinstance(value, str) else f"{value:,.6g} {entry['unit']}"
