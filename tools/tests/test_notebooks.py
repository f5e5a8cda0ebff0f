"""Every notebook from its first cell to its last, in profile smoke."""

import pytest
from conftest import ROOT, Course

import sync_notebooks

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("path", sync_notebooks.notebook_paths(), ids=lambda path: path.stem)
def test_runs_to_its_end_and_draws_its_figures(path, tmp_path):
    done = Course(ROOT)(
        "run", "--profile", "smoke", "--only", path.stem, "--out", str(tmp_path), timeout=1200
    )
    assert done.returncode == 0, done.stdout + done.stderr
    committed = {figure.name for figure in (ROOT / "figures").glob(f"{path.stem[:2]}_*.png")}
    assert {figure.name for figure in (tmp_path / "figures").glob("*.png")} == committed
    assert list((tmp_path / "results").rglob("*.json"))
