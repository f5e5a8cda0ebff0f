"""Every number that the report shows: recorded by a notebook, kept in one JSON file.

A file is `results/<machine>/<notebook>.json`, with `@<model>` before the ending where the model is
not the profile's own. It holds the date, the commit, the environment, the settings, a hash of the
model's files, for each number its value, unit, kind, sample size and spread, and a learner's
predictions, if any.
"""

import hashlib
import json
import math
import os
import platform
import re
import subprocess
import sys
import unicodedata
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from functools import cache
from importlib.metadata import PackageNotFoundError, distribution, version
from pathlib import Path
from typing import Any

import psutil

from llama_int8.errors import ModelFilesError
from llama_int8.files import SCORING, file_hash, package_hash, write_atomic
from llama_int8.models.content import is_folder, model_hash
from llama_int8.processor import processor
from llama_int8.profiles import Settings, profile_names, read_profile

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
DEFAULT_FOLDER = "course_output"  # for results and figures, beside the notebook
NAME_BYTES = 80  # of a folder's name in a file's: most systems take 255 for all of it
PACKAGES = ("torch", "transformers", "bitsandbytes", "accelerate", "numpy")
PEERS = ("llama-cpp-python", "torchao")  # whom the benchmarks race against


def machine_name(device: str) -> str:
    """A file name for the machine: the GPU's name, or what tells its processor, and the cores."""
    if device != "cpu":
        import torch

        return _slug(torch.cuda.get_device_name())
    return _slug("-".join([*processor().words(), f"{os.cpu_count()}-cores"]))


def environment(device: str) -> dict[str, Any]:
    """What a number depends on: hardware, versions, threads, the compiler of the kernels."""
    import torch

    from llama_int8.quantization.cpu.kernels import compiler_version

    found = {
        "machine": machine_name(device),
        **processor().describe(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "PyTorch's instruction set": torch.backends.cpu.get_cpu_capability(),
        "memory GiB": round(psutil.virtual_memory().total / 2**30, 1),
        "system": platform.system(),
        "Python": platform.python_version(),
        "C++ compiler": compiler_version(),
        **package_versions(),
    }
    if device != "cpu":
        properties = torch.cuda.get_device_properties(0)
        found["GPU"] = properties.name
        found["GPU memory GiB"] = round(properties.total_memory / 2**30, 2)
        found["compute capability"] = f"{properties.major}.{properties.minor}"
        found["CUDA"] = torch.version.cuda
    return found


def package_versions() -> dict[str, str]:
    """Versions of the packages that numbers follow from, and of the peers that are installed."""
    found = {name: version(name) for name in PACKAGES}
    for name in PEERS:
        with suppress(PackageNotFoundError):
            found[name] = version(name)
    return found


@cache
def commit() -> str:
    """The commit that the package is of, with "changed" where its files differ; else "unknown"."""
    package = Path(__file__).parents[1]
    with suppress(PackageNotFoundError, ValueError, KeyError):  # installed from a repository
        source = distribution("llama-int8").read_text("direct_url.json")
        if source and package.parent == Path(distribution("llama-int8").locate_file("")):
            return json.loads(source)["vcs_info"]["commit_id"]
    # Only where git knows these files: an environment may lie in somebody else's repository.
    if _git(package, "ls-files", "--error-unmatch", "files.py") is None:
        return "unknown"
    changed = _git(package, "status", "--porcelain", "--", ".")
    return f"{_git(package, 'rev-parse', 'HEAD')}{', changed' if changed else ''}"


def _git(folder: Path, *arguments: str) -> str | None:
    """What git answers; None where it cannot."""
    command = ["git", "-C", str(folder), *arguments]
    with suppress(OSError, subprocess.SubprocessError):
        done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=20)
        return done.stdout.strip()
    return None


def write_json(path: Path, content: Any) -> None:
    """Write under a temporary name, then rename: a reader never meets half a file."""
    text = json.dumps(content, indent=1, ensure_ascii=False, allow_nan=False)
    write_atomic(path, text + "\n")


class Results:
    """The results of one notebook's run; written to disk after every addition."""

    def __init__(self, notebook: str, settings: Settings, folder: str | None = None) -> None:
        """`folder`: where to keep results and figures; None is DEFAULT_FOLDER beside the notebook.

        With a folder named (a mounted Drive, say), stages that are finished there are not run again.
        A notebook names it in its parameter `results_dir`, which no number follows from.
        """
        folder = folder or settings.get("results_dir")
        settings = Settings({k: v for k, v in settings.items() if k != "results_dir"})
        self.root = Path(folder or DEFAULT_FOLDER).expanduser()
        self.keeps_stages = bool(folder)
        self.notebook, self.settings = notebook, settings
        self._model, self._revision = settings.model, None
        self._sha256 = model_hash(settings.model)
        self._at_once = False
        self.environment = environment(settings.device)
        self._usual = None  # the profile's own model; none for a task of `course.py evaluate`
        if settings.profile in profile_names():
            self._usual = read_profile(settings.profile).notebooks[notebook]["model"]
        self._content: dict[str, Any] = {
            "notebook": notebook,
            "profile": settings.profile,
            "model": model_title(settings.model, self._sha256),
            "settings": public(settings),
            "date": datetime.now(UTC).date().isoformat(),
            "commit": commit(),
            "environment": self.environment,
            "measurements": {},
            "figures": {},
            "claims": {},
        }

    @property
    def path(self) -> Path:
        suffix = (
            "" if self._model == self._usual else f"@{model_file_name(self._model, self._sha256)}"
        )
        return self.root / "results" / self.environment["machine"] / f"{self.notebook}{suffix}.json"

    def follows_from(self, *, timed: bool = True) -> dict[str, Any]:
        """What numbers follow from: notebook, model, settings, environment, package.

        Models and files count by their content, not by their place. Without `timed` they are
        scores, which follow from no more of the machine than its kind of device, from the versions,
        and from the part of the package that scores.
        """
        elsewhere = ("model", "more_models", "profile", "customized")  # these change no number
        settings = {k: v for k, v in self.settings.items() if k not in elsewhere}
        environment, package = self.environment, package_hash()
        if not timed:
            of_scores = ("GPU", "compute capability", *PACKAGES)
            environment = {k: v for k, v in environment.items() if k in of_scores}
            package = package_hash(layers=SCORING)
        return {
            "notebook": self.notebook,
            "model": self.model_sha256 or _full(self._model),
            "revision": self._revision,
            "settings": by_content(settings),
            "environment": environment,
            "package": package,
        }

    @property
    def model(self) -> str:
        """The model's public name; of a folder its last part and the beginning of its hash."""
        return self._content["model"]

    @property
    def model_sha256(self) -> str | None:
        """`files.content_hash` of the model's files; None as long as they are not here."""
        if self._sha256 is None:
            self._sha256 = model_hash(self._model)
        return self._sha256

    def use_model(self, name: str, revision: str | None = None) -> None:
        """State the model that was really used, and the revision that its name resolved to."""
        self._model, self._revision = name, revision
        self._sha256 = model_hash(name)
        self._content["model"] = model_title(name, self._sha256)
        self._content["revision"] = revision

    def check_model(self) -> None:
        """Raise ModelFilesError where the model's files are not those that the run began with."""
        if self._sha256 and model_hash(self._model) != self._sha256:
            raise ModelFilesError(
                f"the files of {self.model} changed while they were measured, so the numbers belong "
                "to no model. They are not kept; run it again"
            )

    @property
    def measurements(self) -> dict[str, dict[str, Any]]:
        """Every number so far by name: value, unit, kind, spread."""
        return self._content["measurements"]

    def resume(self) -> int:
        """Keep the numbers of an earlier, interrupted run of the same thing; return how many.

        Only where model, settings and environment are the same: else a new file is begun.
        """
        try:
            earlier = json.loads(self.path.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return 0
        same = "notebook profile model model_sha256 package_sha256 revision settings environment"
        plain = json.loads(json.dumps({**self._content, **self._hashes()}))
        if any(earlier.get(key) != plain.get(key) for key in same.split()):
            return 0
        self._content["measurements"] = earlier["measurements"]
        return len(self.measurements)

    def use_data(self, **facts: str) -> None:
        """State what data were really used; kept stages follow from it as from the settings."""
        self.settings = Settings(self.settings, **facts)
        self._content["settings"].update(public(facts))

    @contextmanager
    def at_once(self) -> Iterator[None]:
        """Write the file once, when the block has ended; after an error it is as it was."""
        before, self._at_once = self._content, True
        try:
            yield
        finally:
            self._at_once = False
        if self._content is not before:
            self._write(self._content)

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
        value, low, high, n = map(plain, (value, low, high, n))
        if kind == "text" and not isinstance(value, str):
            raise ValueError(f"{name}: value is {value!r}; with kind 'text' it must be a string")
        numbers = {k: v for k, v in {"low": low, "high": high, "n": n}.items() if v is not None}
        for key, number in (numbers if kind == "text" else {"value": value, **numbers}).items():
            if not isinstance(number, int | float) or not abs(number) < math.inf:
                raise ValueError(f"{name}: {key} is {number!r}; only finite numbers are results")
        entry = {"value": value, "unit": unit, "kind": kind, "low": low, "high": high}
        entry |= {"n": n, "note": note}
        self._add("measurements", name, {k: _rounded(v) for k, v in entry.items() if v is not None})

    def keep(
        self, measurements: Mapping[str, Any] | None = None, precisions: Sequence[str] = ()
    ) -> None:
        """Add an earlier file's numbers to those so far; `precisions` names those of both."""
        if measurements:
            found = {**measurements, **self._content["measurements"]}
            settings = {**self._content["settings"], "precisions": list(precisions)}
            self._content = {**self._content, "settings": settings, "measurements": found}

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
        """Keep the verdict on a claim (`course.claims` knows its wording and source)."""
        self._add("claims", name, {"measured": measured, "verdict": verdict, "because": because})

    def add_prediction(
        self, name: str, guess: float | str | None, unit: str, measured: float | str | None
    ) -> None:
        """Keep a learner's guess; None removes an earlier one, and keeps nothing."""
        predictions = {k: v for k, v in self._content.get("predictions", {}).items() if k != name}
        if guess is not None:
            predictions[name] = {"guess": guess, "unit": unit, "measured": _rounded(measured)}
        elif name not in self._content.get("predictions", {}):
            return  # the file of a run without a guess is as it always was
        content = {k: v for k, v in self._content.items() if k != "predictions"}
        self._replace({**content, "predictions": predictions} if predictions else content)

    def stage(self, name: str, compute: Callable[[], Any], *, timed: bool = True) -> Any:
        """Run `compute` and keep what it returns, or return what an earlier run has kept.

        What it returns must be plain JSON data. A kept stage counts only where `follows_from` is
        the same; scores (not `timed`) so outlive a change of the machine. A stage that runs
        again is reported, with the reason. Without a folder of one's own nothing is kept.
        """
        if not self.keeps_stages:
            return json.loads(json.dumps(compute(), allow_nan=False))
        about = json.loads(json.dumps(self.follows_from(timed=timed)))
        same = json.dumps([name, about], sort_keys=True)
        key = hashlib.sha256(same.encode()).hexdigest()[:12]
        stem = _slug(name)[:NAME_BYTES]
        path = self.root / "stages" / self.notebook / f"{stem}-{key}.json"
        if path.exists():
            print(f"{name}: kept from an earlier run", file=sys.stderr)
            return json.loads(path.read_text(encoding="utf-8"))["result"]
        if changed := _changed(path, about):
            print(f"{name}: run again, since {changed} changed", file=sys.stderr)
        result = json.loads(json.dumps(compute(), allow_nan=False))
        self.check_model()
        write_json(path, {"name": name, "follows_from": about, "result": result})
        return result

    def _add(self, section: str, name: str, entry: dict[str, Any]) -> None:
        self._replace({**self._content, section: {**self._content[section], name: entry}})

    def _replace(self, content: dict[str, Any]) -> None:
        if not self._at_once:
            self._write(content)
        self._content = content  # only now, so that an unwritable entry spoils no later one

    def _write(self, content: dict[str, Any]) -> None:
        write_json(self.path, {**content, **self._hashes()})

    def _hashes(self) -> dict[str, str]:
        """Of the model's files and of the code: what else the numbers follow from."""
        model = {"model_sha256": self.model_sha256} if self.model_sha256 else {}
        return {**model, "package_sha256": package_hash()}


def _changed(path: Path, about: Mapping[str, Any]) -> str:
    """What differs between `about` and the latest kept stage of this name, in words; "" for none."""
    stem, _, key = path.stem.rpartition("-")
    others = path.parent.glob(f"{stem}-{'[0-9a-f]' * len(key)}.json")
    for other in sorted(others, key=lambda file: file.stat().st_mtime, reverse=True):
        with suppress(OSError, ValueError, LookupError, TypeError, AttributeError):
            before = json.loads(other.read_text(encoding="utf-8"))["follows_from"]
            return ", ".join(differences(before, about))
    return ""


def differences(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """Names of what numbers follow from (`Results.follows_from`), where the two differ."""
    found = []
    for part in sorted(before.keys() | now.keys()):
        old, new = before.get(part), now.get(part)
        if part in ("settings", "environment"):
            names = (old or {}).keys() | (new or {}).keys()
            found += sorted(n for n in names if (old or {}).get(n) != (new or {}).get(n))
        elif old != new:
            found.append("the course's code" if part == "package" else f"the {part}")
    return found


def model_title(name: str, sha256: str | None = None) -> str:
    """A model's public name: its own if it is registered, for a folder its last part with a mark.

    The path is nobody else's business. The mark is the beginning of the content's hash, so that
    neither two folders nor a folder and a registered model have the same name.
    """
    if not is_folder(name):
        return name
    last = _last_part(name).encode("utf-8", "replace").decode()
    return f"{last} (folder {_mark(name, sha256)})"


def model_file_name(name: str, sha256: str | None = None) -> str:
    """The same as a part of a file's name: in any alphabet, with nothing that a system refuses."""
    if not is_folder(name):
        return _slug(name)
    text = unicodedata.normalize("NFC", _last_part(name)).lower()
    text = re.sub(r"[^\w.]+", "-", text).encode()[:NAME_BYTES].decode("utf-8", "ignore")
    return f"{text.strip('-._') or 'model'}-{_mark(name, sha256)}"


def by_content(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Settings with the hash of each model's and file's content in place of its name or path."""
    found = {}
    for key, value in settings.items():
        if key == "model":
            value = model_hash(value) or value
        elif key == "more_models":
            value = [model_hash(name) or name for name in value]
        elif key.endswith("_file") and value and Path(value).expanduser().is_file():
            value = file_hash(Path(value).expanduser())
        elif key == "data" and "sha256" in settings:
            continue  # where a text came from does not change it
        found[key] = value
    return found


def public(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Settings without a path of this machine: of folders and files the last part only."""
    found = dict(settings)
    for key, value in settings.items():
        if key == "model":
            found[key] = _title(value)
        elif key == "more_models":
            found[key] = [_title(name) for name in value]
        elif key.endswith("_file"):
            found[key] = os.path.basename(value or "")
    return found


def _title(name: str) -> str:
    return model_title(name, model_hash(name) if is_folder(name) else None)


def _full(name: str) -> str:
    """A registered model's name, or a folder's whole path."""
    return os.path.abspath(os.path.expanduser(name)) if is_folder(name) else name


def _last_part(name: str) -> str:
    return os.path.basename(_full(name))


def _mark(name: str, sha256: str | None) -> str:
    """Eight digits that tell a folder from others; without files of a model, by its path."""
    return (sha256 or hashlib.sha256(os.fsencode(_full(name))).hexdigest())[:8]


def plain(value: Any) -> Any:
    """Python's own number for a scalar of NumPy or PyTorch."""
    return value.item() if getattr(value, "ndim", None) == 0 else value


def _rounded(value: Any) -> Any:
    return float(f"{value:.7g}") if isinstance(value, float) else value


def _slug(text: str) -> str:
    return re.sub(r"[^a-z0-9.]+", "-", text.lower().replace("(r)", "").replace("(tm)", "")).strip(
        "-"
    )
