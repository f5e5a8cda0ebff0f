"""The processor: read from each operating system's own interface; what it does not say is unknown."""

import platform
import subprocess
import sys

import pytest

from llama_int8 import processor as module
from llama_int8.processor import Processor, from_cpuinfo, from_sysctl, from_windows, processor

INTEL = """processor\t: 0
vendor_id\t: GenuineIntel
cpu family\t: 6
model\t\t: 143
model name\t: Intel(R) Xeon(R) Platinum 8481C CPU @ 2.70GHz
flags\t\t: fpu avx2 fma avx512f avx512bw avx512vl avx512dq avx512_vnni avx512_bf16 amx_int8

processor\t: 1
model\t\t: 143
"""
HASWELL = INTEL.replace("143", "63").partition("avx512f")[0]
GRAVITON = """processor\t: 0
Features\t: fp asimd aes asimdhp asimddp sve i8mm bf16
CPU implementer\t: 0x41
CPU architecture: 8
CPU part\t: 0xd40
"""
M2 = {
    "hw.optional.arm64": "1",
    "machdep.cpu.brand_string": "Apple M2",
    "hw.cpufamily": "3660830781",
    "hw.optional.AdvSIMD": "1",
    "hw.optional.arm.FEAT_DotProd": "1",
    "hw.optional.arm.FEAT_I8MM": "1",
    "hw.perflevel0.l1dcachesize": "131072",
    "hw.perflevel0.l2cachesize": "16777216",
    "hw.l2cachesize": "4194304",
}
INTEL_MAC = {
    "machdep.cpu.brand_string": "Intel(R) Core(TM) i9-9880H CPU @ 2.30GHz",
    "machdep.cpu.family": "6",
    "machdep.cpu.model": "158",
    "machdep.cpu.features": "FPU SSE4.2 FMA AVX1.0",
    "machdep.cpu.leaf7_features": "BMI1 AVX2 BMI2",
    "hw.l1dcachesize": "32768",
    "hw.l3cachesize": "16777216",
}


def has(one, wanted):
    return [name for name, there in one.sets.items() if there is wanted]


def test_a_linux_machine_with_x86():
    one = from_cpuinfo(INTEL, {"L1d": 49152, "L3": 2**20})
    assert (one.family, one.model) == ("6", "143")
    assert has(one, True) == ["AVX2", "AVX-512", "VNNI", "BF16", "AMX"]
    assert has(one, False) == ["AVX-VNNI"] and has(one, None) == []
    assert {"avx512bw", "fma"} <= one.has  # what the kernels ask for besides
    assert one.describe()["caches"] == "L1d 48 KiB, L3 1 MiB"


def test_a_linux_machine_with_arm_has_no_name_in_the_list_but_a_maker_and_a_part():
    one = from_cpuinfo(GRAVITON, {})
    assert (one.name, one.family, one.model) == ("ARM part 0xd40", "0x41", "0xd40")
    assert has(one, True) == ["NEON", "dot product", "i8mm", "BF16"]
    assert one.describe()["caches"] == "unknown"


def test_a_list_without_features_is_an_error_and_not_a_processor_without_any():
    with pytest.raises(ValueError, match="lists no features"):
        from_cpuinfo("processor : 0\n", {})


def test_an_apple_processor():
    one = from_sysctl(M2.get)
    assert (one.name, one.family, one.model) == ("Apple M2", "3660830781", None)
    assert has(one, True) == ["NEON", "dot product", "i8mm"]
    assert has(one, None) == ["BF16"]  # this system was not asked with success: not "no"
    assert one.describe()["caches"] == "L1d 128 KiB, L2 16 MiB"
    assert one.describe()["instruction sets"] == "NEON, dot product, i8mm, BF16 unknown"


def test_an_intel_mac():
    one = from_sysctl(INTEL_MAC.get)
    assert (one.family, one.model) == ("6", "158")
    assert has(one, True) == ["AVX2"] and "VNNI" in has(one, False)
    without = {k: v for k, v in INTEL_MAC.items() if "leaf7" not in k}
    assert set(has(from_sysctl(without.get), None)) == set(module.X86_SETS)


def test_windows_says_what_it_has_a_number_for_and_the_rest_is_unknown():
    words = "Intel64 Family 6 Model 165 Stepping 2, GenuineIntel"
    one = from_windows("Intel(R) Core(TM) i7-10750H", words, lambda number: number == 40)
    assert (one.family, one.model) == ("6", "165")
    assert has(one, True) == ["AVX2"] and has(one, False) == []
    arm = from_windows(
        "Snapdragon", "ARMv8 (64-bit) Family 8 Model 1 Revision 201", {19, 43}.__contains__
    )
    assert has(arm, True) == ["NEON", "dot product"] and has(arm, None) == ["i8mm", "BF16"]
    assert from_windows("x", "", lambda _: False).describe()["processor family"] == "unknown"


def test_the_name_of_a_folder_tells_processors_of_the_same_name_apart():
    one, other = from_cpuinfo(INTEL, {}), from_cpuinfo(HASWELL, {})
    assert one.words()[1:] == ["family 6", "model 143", "AVX-512", "VNNI", "BF16", "AMX"]
    assert other.words()[1:] == ["family 6", "model 63", "AVX2"]
    assert from_cpuinfo(GRAVITON, {}).words()[-3:] == ["dot product", "i8mm", "BF16"]


@pytest.mark.parametrize("system", ["linux", "darwin", "win32", "plan9"])
def test_where_nothing_can_be_asked_everything_is_unknown(monkeypatch, system):
    def refuse(*_, **__):
        raise OSError("not here")

    monkeypatch.setattr(sys, "platform", system)
    monkeypatch.setattr(module.Path, "read_text", refuse)
    monkeypatch.setattr(module.subprocess, "run", refuse)
    monkeypatch.setitem(sys.modules, "winreg", None)
    found = processor.__wrapped__()
    assert found.name and not found.has and set(found.sets.values()) == {None}
    assert found.words() == [found.name]


def test_an_unknown_processor_describes_itself():
    nobody = Processor("x", None, None, {}, {})
    assert nobody.describe()["processor model"] == "unknown"
    assert "AVX2 unknown" in nobody.describe()["instruction sets"]


@pytest.mark.skipif(platform.system() != "Linux", reason="lscpu is Linux's")
def test_this_machine_is_what_another_program_says():
    said = subprocess.run(["lscpu"], capture_output=True, text=True, check=False).stdout
    if not said:
        pytest.skip("there is no lscpu")
    told = {k.strip(): v.strip() for k, _, v in (x.partition(":") for x in said.splitlines())}
    found = processor()
    assert found.has == set(told["Flags"].split()) | found.has
    assert (found.family, found.model) == (told.get("CPU family"), told.get("Model"))
