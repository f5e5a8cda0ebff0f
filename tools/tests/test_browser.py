"""Every interactive figure in a real browser: JupyterLab, Chromium, all cells, every control.

Screenshots of the figures after the moves are kept in `.course/browser/`.
"""

import json
import os
import secrets
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import moves
import pytest
from conftest import ROOT

import sync_notebooks

pytestmark = pytest.mark.slow

SCREENSHOTS = ROOT / ".course" / "browser"
BROWSERS = ("chromium", "chromium-browser", "google-chrome", "chrome", "msedge")
SETTINGS = {
    # Cells that are out of sight are taken out of the page otherwise.
    "@jupyterlab/notebook-extension/tracker": {"windowingMode": "none"},
    "@jupyterlab/apputils-extension/notification": {"fetchNews": "false", "checkForUpdates": False},
}
RUN_ALL = """async () => {
  const app = window.jupyterapp;
  await app.restored;
  while (!app.shell.currentWidget?.sessionContext) await new Promise(r => setTimeout(r, 100));
  const { context, sessionContext } = app.shell.currentWidget;
  await context.ready;
  await sessionContext.ready;
  await sessionContext.session.kernel.info;
  await app.commands.execute('notebook:run-all-cells');
  return context.model.sharedModel.cells.flatMap(cell => cell.cell_type === 'code'
    ? cell.outputs.filter(output => output.output_type === 'error').map(output => output.evalue)
    : []);
}"""
ERRORS = """() => Promise.race([
  window.errorsOfAllCells,
  new Promise((_, fail) => setTimeout(() => fail(new Error('cells ran for 15 minutes')), 900000)),
])"""
BROKEN_PICTURES = """() => [...document.querySelectorAll('.jp-Notebook img')]
  .filter(image => !image.complete || image.naturalWidth === 0)
  .map(image => image.alt || image.src.slice(0, 80))"""
# The badge is a picture on Colab's site; whether that site is up is not tested here.
BADGE = '<svg xmlns="http://www.w3.org/2000/svg" width="117" height="20"/>'


def browser_path() -> str:
    for name in BROWSERS:
        if found := shutil.which(name):
            return found
    reason = "no Chromium here; on Debian and Ubuntu `apt-get install chromium`"
    if os.environ.get("CI"):
        pytest.fail(reason)
    pytest.skip(reason)


@contextmanager
def jupyterlab(folder: Path, home: Path) -> Iterator[str]:
    """A JupyterLab of its own on `folder`; yields its address with the token in it."""
    for name, values in SETTINGS.items():
        path = home / "settings" / f"{name}.jupyterlab-settings"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(values))
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    token = secrets.token_hex(16)
    options = f"""--no-browser --allow-root --ip=127.0.0.1 --port={port}
        --IdentityProvider.token={token} --LabApp.expose_app_in_browser=True --LabApp.news_url=
        --ServerApp.port_retries=0""".split()
    command = [sys.executable, "-m", "jupyterlab", *options, f"--ServerApp.root_dir={folder}"]
    environment = os.environ | {
        "JUPYTERLAB_SETTINGS_DIR": str(home / "settings"),
        "JUPYTERLAB_WORKSPACES_DIR": str(home / "workspaces"),
        "JUPYTER_CONFIG_DIR": str(home / "config"),
        "JUPYTER_DATA_DIR": str(home / "data"),
        "JUPYTER_RUNTIME_DIR": str(home / "runtime"),
        "PYTHONPATH": str(ROOT / "tools"),
        "IPYTHONDIR": str(home / "ipython"),
        "HF_HUB_OFFLINE": "1",
        "OMP_NUM_THREADS": "1",  # two notebooks run at a time, on what may be two cores
    }
    log = (home / "jupyterlab.log").open("wb")
    server = subprocess.Popen(command, env=environment, stdout=log, stderr=log)
    try:
        for _ in range(240):
            try:
                urllib.request.urlopen(f"http://127.0.0.1:{port}/api?token={token}", timeout=5)
                break
            except OSError:
                assert server.poll() is None, (home / "jupyterlab.log").read_text()
                time.sleep(0.25)
        else:
            pytest.fail((home / "jupyterlab.log").read_text())
        yield f"http://127.0.0.1:{port}/lab/tree/{{}}?reset&token={token}"
    finally:
        server.terminate()
        server.wait(timeout=30)
        log.close()


@pytest.fixture(scope="module")
def lab(tmp_path_factory):
    """JupyterLab on copies of the notebooks in profile smoke."""
    folder, home = tmp_path_factory.mktemp("notebooks"), tmp_path_factory.mktemp("jupyter")
    for path in sync_notebooks.notebook_paths():
        notebook = sync_notebooks.read(path)
        (cell,) = [c for c in notebook["cells"] if "parameters" in c["metadata"].get("tags", [])]
        cell["source"] = [*cell["source"], '\nPROFILE = "smoke"']
        (folder / path.name).write_text(json.dumps(notebook), encoding="utf-8")
    browser = browser_path()
    with jupyterlab(folder, home) as address:
        yield browser, address


class Pages:
    """One page for each notebook; the next notebook runs while one is looked at."""

    def __init__(self, browser, address: str) -> None:
        self.browser, self.address, self.open = browser, address, {}

    def start(self, path: Path) -> None:
        """Open the notebook and begin to run all its cells, unless that was done."""
        if path in self.open:
            return
        page = self.browser.new_page(viewport={"width": 1280, "height": 1000})
        page.set_default_timeout(60_000)
        complaints = []
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.on("console", lambda m: complaints.append(m.text) if m.type == "error" else None)
        page.route(
            lambda url: (
                not url.startswith(("http://127.0.0.1", "ws://127.0.0.1", "data:", "blob:"))
            ),
            lambda route: (
                route.fulfill(content_type="image/svg+xml", body=BADGE)
                if route.request.url.startswith("https://colab.research.google.com/")
                else route.abort()  # and an error in the console
            ),
        )
        page.goto(self.address.format(path.name))
        page.wait_for_function("window.jupyterapp")
        page.evaluate(f"() => {{ window.errorsOfAllCells = ({RUN_ALL})(); }}")
        self.open[path] = page, complaints

    def take(self, path: Path):
        """(page, its complaints), with the next notebook begun."""
        paths = sync_notebooks.notebook_paths()
        self.start(path)
        for following in paths[paths.index(path) + 1 :][:1]:
            self.start(following)
        return self.open.pop(path)


@pytest.fixture(scope="module")
def pages(lab):
    from playwright.sync_api import sync_playwright

    executable, address = lab
    with sync_playwright() as playwright:
        # Without a sandbox, since a container's root may not have one; the pages are our own.
        browser = playwright.chromium.launch(executable_path=executable, args=["--no-sandbox"])
        yield Pages(browser, address)
        browser.close()


def move(control, picture) -> list[str]:
    """Try a control's values until the picture changes; returns what was tried in vain."""
    before, tried = picture.get_attribute("src"), []
    for what, act in ways(control):
        act()
        for _ in range(100):
            if picture.get_attribute("src") != before:
                return []
            time.sleep(0.1)
        tried.append(what)
    return tried or ["nothing to move"]


def ways(control):
    """(name, function) of each way to give a control another value."""
    handle = control.locator(".noUi-handle")
    if handle.count():
        for key in ("ArrowRight", "ArrowLeft", "End", "Home"):
            yield key, lambda key=key: handle.first.press(key)
    selection = control.locator("select")
    if selection.count():
        for value in selection.first.locator("option").all_inner_texts():
            yield value, lambda value=value: selection.first.select_option(label=value)
    text = control.locator("input[type=text]:not(.widget-readout)")
    if text.count() and not handle.count():

        def write():
            text.first.fill(text.first.input_value() + " Again.")
            text.first.press("Enter")

        yield "text", write


@pytest.mark.parametrize(
    "path",
    [path for path in sync_notebooks.notebook_paths() if moves.has_controls(path)],
    ids=lambda path: path.stem,
)
def test_every_control_of_every_figure_moves_its_picture_in_a_browser(path, pages):
    page, complaints = pages.take(path)
    assert page.evaluate(ERRORS) == []
    page.bring_to_front()
    figures = page.locator(".jp-Notebook .widget-vbox:has(> img.widget-image)")
    figures.first.wait_for()
    SCREENSHOTS.mkdir(parents=True, exist_ok=True)
    for number in range(figures.count()):
        figure = figures.nth(number)
        figure.scroll_into_view_if_needed()
        picture = figure.locator("> img.widget-image")
        controls = figure.locator("> :not(.widget-label, img)")
        names = controls.all_inner_texts()
        for k in range(controls.count()):
            tried = move(controls.nth(k), picture)
            assert not tried, f"{names[k]!r} of figure {number + 1}: {tried} change nothing"
            message = figure.locator("> .widget-label").inner_text()
            assert message == "", message
        figure.screenshot(path=SCREENSHOTS / f"{path.stem}-{number + 1}.png")
    assert page.evaluate(BROKEN_PICTURES) == []
    assert complaints == []
    # A closed page leaves its kernel alive, with all its memory.
    page.evaluate("() => window.jupyterapp.shell.currentWidget.sessionContext.shutdown()")
    page.close()
