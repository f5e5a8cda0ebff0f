"""Each notebook opened the way Colab does it: one file, an empty folder, Colab's own versions.

The bootstrap cell is run as published; git is told to take the repository's address for a copy of
this working tree, so that what is tested is what will be pushed.
"""

import hashlib
import json
import os
import shutil
import subprocess
import sys
import venv
from pathlib import Path

import contrast
import moves
import nbformat
import papermill
import pytest
from conftest import ROOT

import sync_notebooks

pytestmark = pytest.mark.slow

# Preinstalled in Colab's GPU runtime of August 2026 (googlecolab/backend-info); torch as we pin it.
TORCH = "torch==2.13.0"
PREINSTALLED = """
accelerate==1.14.0
datasets==4.0.0
ipykernel==6.17.1
ipython==7.34.0
ipywidgets==7.7.1
Jinja2==3.1.6
matplotlib==3.10.0
nbclient==0.10.4
numpy==2.1.3
pandas==2.2.3
pillow==11.3.0
psutil==5.9.5
PyYAML==6.0.3
safetensors==0.8.0
scipy==1.16.3
tokenizers==0.22.2
tqdm==4.67.3
transformers==5.15.0
""".split()


def run(*command, **options):
    done = subprocess.run(
        list(map(str, command)), capture_output=True, text=True, check=False, **options
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    return done.stdout


def installed(python):
    """Version of every package, by name."""
    listed = json.loads(run(python, "-m", "pip", "list", "--format=json"))
    return {package["name"].lower(): package["version"] for package in listed}


@pytest.fixture(scope="module")
def colab_python():
    """An environment with Colab's versions, kept between test runs until they change."""
    key = hashlib.sha256("\n".join([sys.version, TORCH, *PREINSTALLED]).encode()).hexdigest()[:8]
    folder = ROOT / ".course" / f"colab-{key}"
    python = folder / "bin" / "python"
    if not (folder / "ready").exists():
        shutil.rmtree(folder, ignore_errors=True)
        venv.create(folder, with_pip=True)
        run(python, "-m", "pip", "install", "--quiet", TORCH)
        run(python, "-m", "pip", "install", "--quiet", *PREINSTALLED)
        (folder / "ready").touch()
    return python


@pytest.fixture(scope="module")
def repository(tmp_path_factory):
    """A git repository with this working tree as its only commit."""
    folder = tmp_path_factory.mktemp("repository")
    listed = run("git", "ls-files", "-co", "--exclude-standard", "-z", cwd=ROOT).split("\0")
    for name in filter(None, listed):
        if (ROOT / name).is_file():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(ROOT / name, folder / name)
    run("git", "init", "--quiet", cwd=folder)
    run("git", "add", "-A", cwd=folder)
    author = ["-c", "user.name=test", "-c", "user.email=test@example.com"]
    run("git", *author, "commit", "--quiet", "-m", "as it is", cwd=folder)
    return folder


@pytest.fixture
def like_colab(colab_python, repository, tmp_path, monkeypatch):
    """Environment variables and a kernel as a Colab machine has them."""
    spec = tmp_path / "jupyter" / "kernels" / "colab" / "kernel.json"
    spec.parent.mkdir(parents=True)
    argv = [str(colab_python), "-m", "ipykernel_launcher", "-f", "{connection_file}"]
    spec.write_text(json.dumps({"argv": argv, "display_name": "colab", "language": "python"}))
    monkeypatch.setenv("JUPYTER_PATH", str(tmp_path / "jupyter"))
    monkeypatch.setenv("COLAB_RELEASE_TAG", "release-colab-2026.08")
    monkeypatch.setenv("PATH", f"{colab_python.parent}{os.pathsep}{os.environ['PATH']}")
    only_contrast = tmp_path / "contrast"  # the package itself must come from the bootstrap cell
    only_contrast.mkdir()
    shutil.copy(Path(contrast.__file__), only_contrast)
    monkeypatch.setenv("PYTHONPATH", str(only_contrast))
    published = f"https://github.com/{sync_notebooks.repository_address()}"
    monkeypatch.setenv("GIT_CONFIG_COUNT", "2")
    monkeypatch.setenv("GIT_CONFIG_KEY_0", f"url.file://{repository}.insteadOf")
    monkeypatch.setenv("GIT_CONFIG_VALUE_0", published)
    monkeypatch.setenv("GIT_CONFIG_KEY_1", "safe.directory")
    monkeypatch.setenv("GIT_CONFIG_VALUE_1", "*")


@pytest.mark.parametrize("path", sync_notebooks.notebook_paths(), ids=lambda path: path.stem)
def test_runs_to_its_end_in_colab_and_leaves_its_versions_alone(
    path: Path, colab_python, like_colab, tmp_path
):
    subprocess.run([colab_python, "-m", "pip", "uninstall", "-qy", "llama-int8"], check=True)
    empty = tmp_path / "content"
    empty.mkdir()
    notebook = nbformat.read(path, as_version=4)
    setup = 1 + next(k for k, cell in enumerate(notebook.cells) if cell.id == "bootstrap")
    notebook.cells.insert(setup, nbformat.v4.new_code_cell(contrast.FIRST_CELL))
    last = [moves.CELL, contrast.LAST_CELL] if moves.has_controls(path) else [contrast.LAST_CELL]
    notebook.cells += [nbformat.v4.new_code_cell(code) for code in last]
    nbformat.write(notebook, empty / path.name)
    papermill.execute_notebook(
        str(empty / path.name),
        str(empty / "executed.ipynb"),
        parameters={"PROFILE": "smoke"},
        kernel_name="colab",
        cwd=str(empty),
        progress_bar=False,
        execution_timeout=1200,
        iopub_timeout=1200,
    )
    if moves.has_controls(path):  # every one was moved, under ipywidgets 7
        executed = nbformat.read(empty / "executed.ipynb", as_version=4)
        assert "ipywidgets 7.7.1" in executed.cells[-2].outputs[-1].text
    after = installed(colab_python)
    assert "llama-int8" in after
    pins = dict(line.lower().split("==") for line in (TORCH, *PREINSTALLED))
    assert {name: after[name].partition("+")[0] for name in pins} == pins
    assert list((empty / "course_output").rglob("*.json")), "the results are beside the notebook"
