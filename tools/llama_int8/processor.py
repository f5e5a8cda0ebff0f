"""The processor of this machine: name, family, model, caches, and the instruction sets that matter.

Asked from the operating system: /proc/cpuinfo on Linux, sysctl on macOS, the registry and
`IsProcessorFeaturePresent` on Windows. What cannot be asked is unknown (None), never "no".
"""

import ctypes
import functools
import platform
import re
import subprocess
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

# By architecture: our name of an instruction set, and Linux's name of the feature that tells it.
X86_SETS = {
    "AVX2": "avx2",
    "AVX-512": "avx512f",
    "VNNI": "avx512_vnni",
    "AVX-VNNI": "avx_vnni",
    "BF16": "avx512_bf16",
    "AMX": "amx_int8",
}
ARM_SETS = {"NEON": "asimd", "dot product": "asimddp", "i8mm": "i8mm", "BF16": "bf16"}
# macOS: sysctl's names of the same. An Intel Mac lists its features in two texts instead.
MACOS_ARM = {
    "asimd": "hw.optional.AdvSIMD",
    "asimddp": "hw.optional.arm.FEAT_DotProd",
    "i8mm": "hw.optional.arm.FEAT_I8MM",
    "bf16": "hw.optional.arm.FEAT_BF16",
}
MACOS_INTEL = ("machdep.cpu.features", "machdep.cpu.leaf7_features")
MACOS_CACHES = {
    "L1d": ("hw.perflevel0.l1dcachesize", "hw.l1dcachesize"),
    "L2": ("hw.perflevel0.l2cachesize", "hw.l2cachesize"),
    "L3": ("hw.l3cachesize",),
}
# Windows: the numbers of winnt.h, which has none for VNNI, AVX-VNNI, BF16 and AMX on x86.
WINDOWS = {"avx2": 40, "avx512f": 41, "asimd": 19, "asimddp": 43, "i8mm": 66, "bf16": 68}
ARM_MACHINES = ("arm64", "aarch64")


@dataclass(frozen=True)
class Processor:
    """What a speed depends on. `sets`: by name, whether it is there; None where nobody can say."""

    name: str
    family: str | None
    model: str | None
    caches: Mapping[
        str, int
    ]  # bytes by name ("L1d", "L2", "L3"), of one core where each has its own
    features: Mapping[str, bool | None]  # by Linux's names

    @property
    def sets(self) -> dict[str, bool | None]:
        """Whether each instruction set that matters here can be used."""
        sets = ARM_SETS if "asimd" in self.features else X86_SETS
        return {name: self.features.get(feature) for name, feature in sets.items()}

    @property
    def has(self) -> frozenset[str]:
        """The features that are there for certain, by Linux's names."""
        return frozenset(name for name, there in self.features.items() if there)

    def describe(self) -> dict[str, str]:
        """Name, family, model, caches and instruction sets as texts."""
        sizes = (f"{name} {_binary(size)}" for name, size in self.caches.items())
        there = [name for name, has in self.sets.items() if has]
        unknown = [f"{name} unknown" for name, has in self.sets.items() if has is None]
        return {
            "processor": self.name,
            "processor family": self.family or "unknown",
            "processor model": self.model or "unknown",
            "caches": ", ".join(sizes) or "unknown",
            "instruction sets": ", ".join(there + unknown) or "none of those that matter",
        }

    def words(self) -> list[str]:
        """The parts of a folder's name: what tells this kind of processor from others."""
        sets = [name for name, has in self.sets.items() if has]
        if "AVX-512" in sets:
            sets = [name for name in sets if name not in ("AVX2", "AVX-VNNI")]  # go without saying
        if "dot product" in sets:
            sets.remove("NEON")
        known = {"family": self.family, "model": self.model}
        return [self.name, *(f"{k} {v}" for k, v in known.items() if v), *sets]


@functools.cache
def processor() -> Processor:
    """This machine's. What the operating system does not tell is unknown; it never raises."""
    readers = {"linux": _linux, "darwin": _macos, "win32": _windows}
    try:
        return readers[sys.platform]()
    except (KeyError, ImportError, OSError, ValueError, subprocess.SubprocessError):
        name = platform.processor() or platform.machine()
        sets = ARM_SETS if platform.machine().lower() in ARM_MACHINES else X86_SETS
        return Processor(name, None, None, {}, dict.fromkeys(sets.values()))


# --- one function for each operating system -------------------------------------------------------


def _linux() -> Processor:
    text = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
    return from_cpuinfo(text, _linux_caches(Path("/sys/devices/system/cpu/cpu0/cache")))


def from_cpuinfo(text: str, caches: Mapping[str, int]) -> Processor:
    """Of the first processor in /proc/cpuinfo, on x86 and on ARM. Raises ValueError for no list."""
    first = text.strip().partition("\n\n")[0]
    lines = (line.partition(":") for line in first.splitlines())
    entry = {key.strip(): value.strip() for key, _, value in lines}
    flags = entry.get("flags", entry.get("Features"))
    if flags is None:
        raise ValueError("/proc/cpuinfo lists no features")
    there = set(flags.split())
    sets = ARM_SETS if {"asimd", "neon"} & there else X86_SETS
    features = dict.fromkeys(sets.values(), False) | dict.fromkeys(there, True)
    arm = entry.get("CPU part")
    name = entry.get("model name") or (f"ARM part {arm}" if arm else platform.machine())
    family = entry.get("cpu family") or entry.get("CPU implementer")
    return Processor(name, family, entry.get("model") or arm, caches, features)


def _linux_caches(folder: Path) -> dict[str, int]:
    found = {}
    for index in sorted(folder.glob("index*")):
        level, kind, size = (
            (index / name).read_text().strip() for name in ("level", "type", "size")
        )
        if kind != "Instruction":
            found["L1d" if level == "1" else f"L{level}"] = _bytes(size)
    return found


def _macos() -> Processor:
    def ask(name: str) -> str | None:
        command = ["/usr/sbin/sysctl", "-n", name]
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=10)
        return done.stdout.strip() or None

    return from_sysctl(ask)


def from_sysctl(ask: Callable[[str], str | None]) -> Processor:
    """From what `ask` answers to sysctl's names, None for those that this Mac does not know."""
    features: dict[str, bool | None] = {}
    if ask("hw.optional.arm64") == "1":
        family, model = ask("hw.cpufamily"), ask("hw.cpusubfamily")
        answers = {feature: ask(name) for feature, name in MACOS_ARM.items()}
        features = {name: None if said is None else said == "1" for name, said in answers.items()}
    else:
        family, model = ask("machdep.cpu.family"), ask("machdep.cpu.model")
        lists = [ask(name) for name in MACOS_INTEL]
        words = " ".join(filter(None, lists)).lower().replace("avx512vnni", "avx512_vnni")
        there = set(words.split())
        absent = False if all(lists) else None
        features = dict.fromkeys(X86_SETS.values(), absent) | dict.fromkeys(there, True)
    caches = {
        name: next((int(size) for size in map(ask, places) if size), 0)
        for name, places in MACOS_CACHES.items()
    }
    name = ask("machdep.cpu.brand_string") or platform.machine()
    return Processor(name, family, model, {k: v for k, v in caches.items() if v}, features)


def _windows() -> Processor:
    import winreg

    key = r"HARDWARE\DESCRIPTION\System\CentralProcessor\0"
    with winreg.OpenKey(winreg.HKEY_LOCAL_MACHINE, key) as entry:
        name, identifier = (
            str(winreg.QueryValueEx(entry, value)[0])
            for value in ("ProcessorNameString", "Identifier")
        )
    present = ctypes.windll.kernel32.IsProcessorFeaturePresent
    return from_windows(name, identifier, lambda number: bool(present(number)))


def from_windows(name: str, identifier: str, present: Callable[[int], bool]) -> Processor:
    """From the registry's texts ("Intel64 Family 6 Model 165 Stepping 2") and the feature numbers."""
    known = re.search(r"Family (\w+) Model (\w+)", identifier)
    family, model = known.groups() if known else (None, None)
    sets = ARM_SETS if "ARM" in identifier else X86_SETS
    # "Not present" also says a Windows that is older than the number: that is unknown, not "no".
    asked = {name: name in WINDOWS and present(WINDOWS[name]) for name in sets.values()}
    return Processor(name.strip(), family, model, {}, {k: v or None for k, v in asked.items()})


def _bytes(text: str) -> int:
    number, unit = re.fullmatch(r"(\d+)([KMG]?)", text).groups()
    return int(number) * 1024 ** " KMG".index(unit or " ")


def _binary(size: int) -> str:
    unit = "MiB" if size >= 2**20 else "KiB"
    return f"{size / (2**20 if unit == 'MiB' else 2**10):g} {unit}"
