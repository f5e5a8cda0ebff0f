"""Every number that the report shows: recorded by a notebook, kept in one JSON file.

A file is `results/<machine>/<notebook>.json`, with `@<model>` before the ending where the model is
not the profile's own. It holds the environment, the settings, and for each number its value, unit,
kind, sample size and spread.
"""

import hashlib
import json
import math
import os
import platform
import re
import subprocess
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import psutil

from llama_int8.files import write_atomic
from llama_int8.profiles import PROFILES, Settings, read_profile

# What a difference between two runs means depends on the kind of number; `course.py compare`
# holds a tolerance for each.
KIND_OF_UNIT = {
    "s": "timing",
    "ms": "timing",
    "tokens/s": "timing",
    "GB/s": "timing",
    "GOP/s": "timing",
    "x": "timing",  # a ratio of two timings
    "nats": "quality",
    "bits": "quality",
    "perplexity": "quality",
    "%": "quality",
    "bytes": "memory",
    "count": "exact",
    "text": "text",
}
KINDS = ("exact", "memory", "quality", "timing", "text")
PACKAGES = ("torch", "transformers", "bitsandbytes", "accelerate", "numpy")


def machine_name(device: str) -> str:
    """A file name for the machine: the GPU's name, or the processor's with its cores."""
    if device != "cpu":
        import torch

        return _slug(torch.cuda.get_device_name())
    return _slug(f"{_processor()}-{os.cpu_count()}-cores")


def environment(device: str) -> dict[str, Any]:
    """What a number depends on: hardware, versions, threads."""
    import torch

    found = {
        "machine": machine_name(device),
        "processor": _processor(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "instruction set": torch.backends.cpu.get_cpu_capability(),
        "memory GiB": round(psutil.virtual_memory().total / 2**30, 1),
        "system": platform.system(),
        "Python": platform.python_version(),
        **{name: version(name) for name in PACKAGES},
    }
    if device != "cpu":
        properties = torch.cuda.get_device_properties(0)
        found["GPU"] = properties.name
        found["GPU memory GiB"] = round(properties.total_memory / 2**30, 2)
        found["compute capability"] = f"{properties.major}.{properties.minor}"
        found["CUDA"] = torch.version.cuda
    return found


def write_json(path: Path, content: Any) -> None:
    """Write under a temporary name, then rename: a reader never meets half a file."""
    text = json.dumps(content, indent=1, ensure_ascii=False, allow_nan=False)
    write_atomic(path, text + "\n")


class Results:
    """The results of one notebook's run; written to disk after every addition."""

    def __init__(self, notebook: str, settings: Settings, folder: str | None = None) -> None:
        """`folder`: where to keep results and figures; None is `course_output` beside the notebook.

        With a folder named (a mounted Drive, say), stages that are finished there are not run again.
        """
        self.root = Path(folder or "course_output").expanduser()
        self.keeps_stages = bool(folder)
        self.notebook, self.settings = notebook, settings
        self._model, self._revision = settings.model, None
        self.environment = environment(settings.device)
        self._content: dict[str, Any] = {
            "notebook": notebook,
            "profile": settings.profile,
            "model": _public_name(settings.model),
            "settings": {**settings, "model": _public_name(settings.model)},
            "environment": self.environment,
            "measurements": {},
            "figures": {},
            "claims": {},
        }

    @property
    def path(self) -> Path:
        usual = None  # of a task of `course.py evaluate`
        if self.settings.profile in PROFILES:
            usual = read_profile(self.settings.profile).notebooks[self.notebook]["model"]
        suffix = "" if self._model == usual else f"@{_slug(_public_name(self._model))}"
        return self.root / "results" / self.environment["machine"] / f"{self.notebook}{suffix}.json"

    @property
    def identity(self) -> list[Any]:
        """What a kept stage follows from: notebook, model and revision, settings, environment."""
        return [self.notebook, [self._model, self._revision], self.settings, self.environment]

    @property
    def model(self) -> str:
        """The model's public name; of a folder its last part."""
        return self._content["model"]

    def use_model(self, name: str, revision: str | None = None) -> None:
        """State the model that was really used, and the revision that its name resolved to."""
        self._model, self._revision = name, revision
        self._content["model"], self._content["revision"] = _public_name(name), revision

    @property
    def measurements(self) -> dict[str, dict[str, Any]]:
        """Every number so far by name: value, unit, kind, spread."""
        return self._content["measurements"]

    def resume(self) -> int:
        """Keep the numbers of an earlier, interrupted run of the same thing; return how many.

        Only where model, settings and environment are the same: else the file is begun anew.
        """
        try:
            earlier = json.loads(self.path.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return 0
        same = ("notebook", "profile", "model", "revision", "settings", "environment")
        plain = json.loads(json.dumps(self._content))
        if any(earlier.get(key) != plain.get(key) for key in same):
            return 0
        self._content["measurements"] = earlier["measurements"]
        return len(self.measurements)

    def use_data(self, **facts: str) -> None:
        """State what data were really used; kept stages follow from it as from the settings."""
        self.settings = Settings(self.settings, **facts)
        self._content["settings"].update(facts)

    def record(
        self,
        name: str,
        value: float | str,
        unit: str,
        *,
        kind: str | None = None,
        low: float | None = None,
        high: float | None = None,
        n: int | None = None,
        note: str | None = None,
    ) -> None:
        """Keep one number (or text, unit "text"), with its spread `low` to `high` over `n` samples.

        `kind` defaults to the unit's; a unit that the course does not know needs one. Raises
        ValueError for an unknown unit or kind, or a value that is no text or no finite number.
        """
        kind = kind or KIND_OF_UNIT.get(unit)
        if kind not in KINDS:
            raise ValueError(
                f"{name}: unit {unit!r}, kind {kind!r}; known units are "
                f"{', '.join(KIND_OF_UNIT)}, known kinds {', '.join(KINDS)}"
            )
        value, low, high, n = map(_plain, (value, low, high, n))
        if kind == "text" and not isinstance(value, str):
            raise ValueError(f"{name}: value is {value!r}; with kind 'text' it must be a string")
        numbers = {k: v for k, v in {"low": low, "high": high, "n": n}.items() if v is not None}
        for key, number in (numbers if kind == "text" else {"value": value, **numbers}).items():
            if not isinstance(number, int | float) or not abs(number) < math.inf:
                raise ValueError(f"{name}: {key} is {number!r}; only finite numbers are results")
        entry = {"value": value, "unit": unit, "kind": kind, "low": low, "high": high}
        entry |= {"n": n, "note": note}
        self._add("measurements", name, {k: _rounded(v) for k, v in entry.items() if v is not None})

    def lines(self) -> list[str]:
        """Every number so far as a line of text: name, value, ends, unit, sample size."""
        shown = []
        for name, m in self._content["measurements"].items():
            ends = f" [{m['low']:.5g}, {m['high']:.5g}]" if "low" in m else ""
            size = f", n = {m['n']:,}" if "n" in m else ""
            value = m["value"] if isinstance(m["value"], str) else f"{m['value']:.6g}"
            shown.append(f"{name:36} {value}{ends} {m['unit']}{size}")
        return shown

    def add_figure(self, name: str, alt: str, caption: str) -> Path:
        """Keep a figure's texts; return the path that its picture goes to."""
        self._add("figures", name, {"alt": alt, "caption": caption})
        return self.root / "figures" / f"{name}.png"

    def add_claim(self, name: str, measured: str, verdict: str, because: str) -> None:
        """Keep the verdict on a claim (`classroom.claims` knows its wording and source)."""
        self._add("claims", name, {"measured": measured, "verdict": verdict, "because": because})

    def stage(self, name: str, compute: Callable[[], Any]) -> Any:
        """Run `compute` and keep what it returns, or return what an earlier run has kept.

        What it returns must be plain JSON data. A kept stage counts only for the same settings,
        model, machine and versions. Without a folder of one's own nothing is kept.
        """
        if not self.keeps_stages:
            return json.loads(json.dumps(compute(), allow_nan=False))
        same = json.dumps([name, *self.identity], sort_keys=True)
        key = hashlib.sha256(same.encode()).hexdigest()[:12]
        path = self.root / "stages" / self.notebook / f"{_slug(name)}-{key}.json"
        if not path.exists():
            write_json(path, compute())
        return json.loads(path.read_text(encoding="utf-8"))

    def _add(self, section: str, name: str, entry: dict[str, Any]) -> None:
        content = {**self._content, section: {**self._content[section], name: entry}}
        write_json(self.path, content)
        self._content = content  # only now: an entry that cannot be written spoils no later one


def _public_name(model: str) -> str:
    """The model's name; of a folder its last part alone, for the path is nobody else's business."""
    return os.path.basename(os.path.abspath(os.path.expanduser(model)))


def _plain(value: Any) -> Any:
    """Python's own number for a scalar of NumPy or PyTorch."""
    return value.item() if getattr(value, "ndim", None) == 0 else value


def _rounded(value: Any) -> Any:
    return float(f"{value:.7g}") if isinstance(value, float) else value


def _slug(text: str) -> str:
    return re.sub(r"[^a-z0-9.]+", "-", text.lower().replace("(r)", "").replace("(tm)", "")).strip(
        "-"
    )


def _processor() -> str:
    try:
        if platform.system() == "Linux":
            for line in Path("/proc/cpuinfo").read_text().splitlines():
                if line.startswith("model name"):
                    return line.partition(":")[2].strip()
        if platform.system() == "Darwin":
            command = ["sysctl", "-n", "machdep.cpu.brand_string"]
            return subprocess.run(
                command, capture_output=True, text=True, check=True
            ).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        pass
    return platform.processor() or platform.machine()
