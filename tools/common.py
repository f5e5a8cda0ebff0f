"""What the scripts share: the course's folder, the folder for runs' state, the user's error.

Needs nothing but Python: `course.py` imports it before the environment exists.
"""

import hashlib
import os
from pathlib import Path

TOOLS = Path(__file__).resolve().parent
ROOT = TOOLS.parent


class CourseError(Exception):
    """Something that the user can put right; the message says how."""


def _state_folder() -> Path:
    """Where runs keep their state: `.course`, or the user's cache if the checkout is read-only."""
    state = ROOT / ".course"
    if os.access(state if state.exists() else ROOT, os.W_OK):
        return state
    from llama_int8.files import cache_folder

    return cache_folder() / f"course-{hashlib.sha256(str(ROOT).encode()).hexdigest()[:8]}"


STATE = _state_folder()


def require_writable(*folders: Path) -> None:
    """Raise CourseError, before any work begins, for a folder that cannot be made or written to."""
    for folder in folders:
        there = next(f for f in (folder, *folder.absolute().parents) if f.exists())
        if not os.access(there, os.W_OK):
            raise CourseError(
                f"{folder} cannot be written; --out FOLDER puts the results into a folder of yours"
            )


def let_freed_memory_join() -> None:
    """Let PyTorch join freed pieces of a GPU's memory. Call it before torch is imported.

    Otherwise, on a nearly full card, a large tensor such as two merged layers finds only pieces.
    """
    if "PYTORCH_CUDA_ALLOC_CONF" not in os.environ:  # the older name of the same setting
        os.environ.setdefault("PYTORCH_ALLOC_CONF", "expandable_segments:True")
