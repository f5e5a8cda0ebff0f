"""Which machine's run of each notebook the report shows: `results/reference.txt`.

One line for each notebook: its name, and the machine that last ran it in place. A line that names
only a machine stands for every notebook without a line of its own.
"""

import codecs
from collections.abc import Mapping
from pathlib import Path

from llama_int8.files import write_atomic

FILE = "reference.txt"


def read_reference(results: Path) -> dict[str, str]:
    """Machine by notebook from the folder `results`; the key "" stands for all others."""
    try:
        content = (results / FILE).read_bytes()
    except OSError:
        return {}
    utf16 = content[:2] in (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)  # PowerShell's ">" writes it
    lines = content.decode("utf-16" if utf16 else "utf-8-sig", errors="replace").splitlines()
    fields = [line.split() for line in lines if line.strip()]
    return {(words[0] if len(words) > 1 else ""): words[-1] for words in fields}


def machine_of(reference: Mapping[str, str], notebook: str) -> str | None:
    """The machine that the report shows for `notebook`; None if no line says so."""
    return reference.get(notebook, reference.get(""))


def set_machine(results: Path, notebook: str, machine: str) -> None:
    """State that `machine` ran `notebook` in place; every other line stays."""
    reference = {**read_reference(results), notebook: machine}
    lines = [f"{name} {where}".strip() for name, where in sorted(reference.items())]
    write_atomic(results / FILE, "\n".join(lines) + "\n")
