"""The course as a website: links that work, nothing from other hosts, and a look in Chromium."""

import functools
import http.server
import json
import os
import re
import subprocess
import sys
import threading
from html.parser import HTMLParser
from importlib.util import find_spec
from pathlib import Path
from urllib.parse import unquote, urldefrag, urljoin, urlsplit

import pytest
from conftest import ROOT
from helpers import refused
from test_browser import browser_path

import bibliography
import build_site
import course
import sync_notebooks
from build_slides import DECKS, Deck
from common import CourseError

ADDRESS = "jane/llama-in-8-bits"
NOTEBOOKS = sync_notebooks.notebook_paths()
PHONE = {"width": 390, "height": 844}
SCREENSHOTS = ROOT / ".course" / "site-screenshots"
# Formulas that MathJax did not set, or set with an error.
WRONG_FORMULAS = """async () => {
  const formulas = [...document.querySelectorAll('.bd-article .math')];
  if (formulas.length) await MathJax.startup.promise;
  return formulas.filter(f => !f.querySelector('svg') || f.querySelector('[data-mjx-error]'))
    .map(f => f.textContent);
}"""
LOOKED_AT = ("index.html", "notebooks/07_outliers_and_llm_int8.html", "REPORT.html")


@pytest.fixture(scope="module")
def sources():
    """Every page as Sphinx gets it."""
    decks = [Deck("00", "Start here", "What do 8 bits buy & cost?", 30, ())]
    return build_site.Sources(ADDRESS, decks).files()


@pytest.fixture
def some():
    return build_site.Sources(ADDRESS, [])


# --- the folder -----------------------------------------------------------------------------------


def test_a_folder_with_other_things_is_refused_and_left_as_it_is(tmp_path):
    (tmp_path / "thesis.tex").write_text("mine")
    with refused(CourseError, str(tmp_path), "thesis.tex", "name an empty folder"):
        build_site.main(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]


def test_a_file_among_the_pages_of_an_earlier_site_is_not_deleted(tmp_path):
    (tmp_path / "index.html").write_text("")
    (tmp_path / build_site.MARK).write_text("index.html\n")
    build_site.check_folder(tmp_path)
    (tmp_path / "mine.html").write_text("")
    with refused(CourseError, "mine.html"):
        build_site.check_folder(tmp_path)


@pytest.mark.parametrize("place", ["missing", "missing/deeper", "empty"])
def test_a_new_or_empty_folder_is_taken(place, tmp_path):
    (tmp_path / "empty").mkdir()
    build_site.check_folder(tmp_path / place)


def test_new_pages_replace_the_old_ones_as_a_whole(tmp_path):
    site, pages = tmp_path / "site", tmp_path / "pages"
    for folder, name in ((site, "old.html"), (pages, "new.html")):
        folder.mkdir()
        (folder / name).write_text(name)
    build_site.replace(site, pages, tmp_path / "old")
    assert [path.name for path in site.iterdir()] == ["new.html"]


def test_the_old_site_comes_back_where_the_new_one_cannot_be_put(tmp_path):
    site = tmp_path / "site"
    site.mkdir()
    (site / "index.html").write_text("old")
    with pytest.raises(OSError):
        build_site.replace(site, tmp_path / "no-pages", tmp_path / "old")
    assert (site / "index.html").read_text() == "old"


def test_without_its_packages_the_command_says_what_to_install(monkeypatch):
    monkeypatch.setenv("COURSE_PYTHON", "/usr/bin/python3")
    monkeypatch.setattr(course, "find_spec", lambda name: None)
    with refused(CourseError, "/usr/bin/python3", "'sphinx'", "[site]", "unset COURSE_PYTHON"):
        course.add_site_packages()


def test_pip_installs_them_where_the_environment_is_the_courses_own(monkeypatch):
    steps = []
    monkeypatch.delenv("COURSE_PYTHON", raising=False)
    monkeypatch.setattr(course, "step", lambda what, command: steps.append((what, command)))
    monkeypatch.setattr(course, "find_spec", lambda name: None if name == "myst_nb" else object())
    course.add_site_packages()
    ((_, command),) = steps
    assert command[:3] == [sys.executable, "-m", "pip"] and command[-1] == f"{ROOT}[site]"
    assert command[command.index("-c") + 1] == str(ROOT / "tools/constraints.txt")
    monkeypatch.setattr(course, "find_spec", lambda name: object())
    course.add_site_packages()
    assert len(steps) == 1


# --- links ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("page", "link", "expected"),
    [
        ("REPORT.md", "notebooks/00_start_here.ipynb", "notebooks/00_start_here.ipynb"),
        ("notebooks/TEACHING.md", "../REPORT.md", "../REPORT.md"),
        ("notebooks/TEACHING.md", "../README.md", "../index.md"),
        ("README.md", "LICENSE", f"https://github.com/{ADDRESS}/blob/main/LICENSE"),
        ("REPORT.md", "results", f"https://github.com/{ADDRESS}/tree/main/results"),
        ("notebooks/TEACHING.md", "../README.md#the-lessons", "../index.md#the-lessons"),
        (
            "notebooks/TEACHING.md",
            "../README.md#on-your-own-machine",
            f"https://github.com/{ADDRESS}/blob/main/README.md#on-your-own-machine",
        ),
        ("REPORT.md", "#Quality:-differences-in-pairs", "#quality-differences-in-pairs"),
        ("REPORT.md", "https://arxiv.org/abs/1706.03762", "https://arxiv.org/abs/1706.03762"),
    ],
)
def test_a_link_goes_to_the_page_or_to_the_file_on_github(page, link, expected, some):
    assert some.target(page, link) == expected


def test_a_link_to_a_cell_in_colab_goes_to_that_cell_on_the_site(some):
    link = f"https://colab.research.google.com/github/{ADDRESS}/blob/main/notebooks/{{}}"
    link = link.format("08_fp16_vs_int8.ipynb#scrollTo=quality")
    text = some.page("REPORT.md", f"as [this cell]({link}) shows")
    assert text == "as [this cell](#cell-08-quality) shows"
    notebook = some.notebook(sync_notebooks.read(NOTEBOOKS[8]), NOTEBOOKS[8].stem)
    ids = [cell["id"] for cell in notebook["cells"]]
    label = notebook["cells"][ids.index("quality") - 1]
    assert label["source"] == "(cell-08-quality)="


def test_a_link_to_nothing_is_named_with_its_page(some):
    with refused(CourseError, "REPORT.md links to notebooks/11_more.ipynb", "not there"):
        some.page("REPORT.md", "see [more](notebooks/11_more.ipynb)")


def test_code_is_left_alone(some):
    text = "`[a](b.md)` and\n\n```\n[a](b.md)\n```\n"
    assert some.page("REPORT.md", text) == text


def test_formulas_in_githubs_way_are_formulas(some):
    assert some.page("REPORT.md", "so $`a_1 < b`$, and `$x$`") == "so $a_1 < b$, and `$x$`"


def test_no_page_shows_a_picture_from_another_host(sources):
    for name, content in sources.items():
        text = content if isinstance(content, str) else ""
        assert not re.search(r"!\[[^\]]*\]\(\s*https?:|<img[^>]+src=.?https?:", text), name


def test_every_page_is_in_the_sidebar(sources):
    listed = set(
        re.findall(r"[\w/]+\.(?:md|ipynb)", sources["index.md"].split("```{toctree}", 1)[1])
    )
    pages = {name for name in sources if name.endswith((".md", ".ipynb"))}
    assert listed == pages - {"index.md"}
    documents = {f"notebooks/{path.name}" for path in (ROOT / "notebooks").glob("*.md")}
    assert documents <= listed


def test_the_landing_page_has_the_lessons_and_no_badges(sources):
    text = sources["index.md"]
    assert text.count("[Open in Colab]") == 1 and "colab-badge" not in text
    for path in NOTEBOOKS:
        assert f"(notebooks/{path.name})" in text
    assert "\n## Run everything" not in text and "git clone" not in text


# --- notebooks ------------------------------------------------------------------------------------


def outputs(notebook):
    return [output for cell in notebook["cells"] for output in cell.get("outputs", [])]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_lesson_keeps_its_cells_its_outputs_and_its_pictures(path, sources):
    stored = sync_notebooks.read(path)
    shown = json.loads(sources[f"notebooks/{path.name}"])
    kept = [cell["id"] for cell in stored["cells"] if cell["id"] != "navigation"]
    assert [c["id"] for c in shown["cells"] if not c["id"].endswith("-label")] == kept
    pictures = [o for o in outputs(stored) if "image/png" in o.get("data", {})]
    texts = ["".join(o.get("data", {}).get("text/markdown", "")) for o in outputs(shown)]
    for picture in pictures:
        alt = build_site.escaped(picture["metadata"]["image/png"]["alt"])
        files = [t.removeprefix(f"![{alt}](")[:-1] for t in texts if t.startswith(f"![{alt}](")]
        assert files and all(f"notebooks/{file}" in sources for file in files)
    assert len(outputs(shown)) == len(outputs(stored)) and len(pictures) > 0


def test_solutions_start_open_and_can_be_closed(sources):
    for path in NOTEBOOKS:
        cells = json.loads(sources[f"notebooks/{path.name}"])["cells"]
        for cell in cells:
            if cell["id"].endswith("-solution"):
                assert "".join(cell["source"]).startswith("<details open>\n<summary>")


# --- pages that are made --------------------------------------------------------------------------


def test_the_page_of_slides_links_to_each_deck(sources):
    assert (
        '<a href="slides/00.html">00 Start here</a>: What do 8 bits buy &amp; cost?'
        in (sources["slides.md"])
    )


def test_every_paper_that_a_lesson_cites_is_in_the_bibliography(sources):
    page = sources["reference/bibliography.md"]
    for path in NOTEBOOKS:
        for number in set(re.findall(r"arxiv\.org/abs/(\d{4}\.\d{5})", bibliography.prose(path))):
            (line,) = [line for line in page.split("## Others'")[0].split("\n") if number in line]
            assert f"[lesson {path.stem[:2]}]" in line


def test_a_paper_is_listed_once_with_its_fullest_citation():
    short = "(Vaswani et al., 2017, [arXiv:1706.03762](x))"
    full = "Vaswani et al., *Attention Is All You Need*, 2017, [arXiv:1706.03762](x)."
    (line,) = bibliography.papers({"01_one": short, "02_two": full, "03_three": short})
    assert line.startswith(
        "- Vaswani et al., *Attention Is All You Need*, 2017, [arXiv:1706.03762]"
    )
    assert [f"[lesson {number}]" in line for number in ("01", "02", "03")] == [True] * 3


def test_every_module_with_its_purpose_is_on_a_page(sources):
    page = sources["reference/modules.md"]
    for path in build_site.PACKAGE.rglob("*.py"):
        place = path.relative_to(build_site.PACKAGE).with_suffix("")
        name = ".".join(place.parts).removesuffix(".__init__")
        if name != "__init__":
            assert f"\n### `{name}`\n" in page, f"{name} has no docstring"


def test_a_function_is_described_by_its_first_sentence():
    doc = "Rows of\n    a table, e.g. of int8: `x` and y. Raises ValueError.\n\n    More."
    assert build_site.first_sentence(doc) == "Rows of a table, e.g. of int8: `x` and y."


# --- in a browser ---------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def site_packages():
    """Skip where Sphinx and its extensions cannot be had; CI must have them."""
    if find_spec("sphinx_book_theme") is None or find_spec("myst_nb") is None:
        reason = (
            "the site's packages are not here; `course.py test` without COURSE_PYTHON fetches them"
        )
        if os.environ.get("CI"):
            pytest.fail(reason)
        pytest.skip(reason)


@pytest.fixture(scope="module")
def site(tmp_path_factory, site_packages) -> Path:
    """The whole site, built once by the command."""
    folder = tmp_path_factory.mktemp("built") / "site"
    command = [sys.executable, str(ROOT / "tools/course.py"), "site", str(folder)]
    environment = {**os.environ, "COURSE_PYTHON": sys.executable}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "index.html" in done.stdout
    return folder


@pytest.fixture(scope="module")
def address(site):
    """The site on a server of its own, as visitors get it."""

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *_):
            pass

    handler = functools.partial(Quiet, directory=str(site))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_address[1]}/"
        server.shutdown()


@pytest.fixture(scope="module")
def chromium():
    from playwright.sync_api import sync_playwright

    executable = browser_path()
    with sync_playwright() as playwright:
        # Without a sandbox, since a container's root may not have one; the pages are our own.
        browser = playwright.chromium.launch(executable_path=executable, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture
def page(chromium, address):
    """A page whose complaints and requests to other hosts are errors at the end."""
    page = chromium.new_page(viewport={"width": 1280, "height": 900})
    complaints = []
    page.on("pageerror", lambda error: complaints.append(str(error)))
    page.on("console", lambda m: complaints.append(m.text) if m.type == "error" else None)
    page.on("requestfailed", lambda r: complaints.append(f"{r.url}: {r.failure}"))
    page.on(
        "request",
        lambda r: (
            None if r.url.startswith((address, "data:", "blob:")) else complaints.append(r.url)
        ),
    )
    page.on("response", lambda r: complaints.append(r.url) if r.status >= 400 else None)
    yield page
    page.close()
    assert complaints == []


class Links(HTMLParser):
    """What a page links to and loads, and the anchors in it."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.links, self.loaded, self.anchors = set(), set(), set()
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        found = dict(attributes)
        if tag == "a" and found.get("href"):
            self.links.add(found["href"])
        elif tag == "link" and found.get("rel") != "canonical" and found.get("href"):
            self.loaded.add(found["href"])
        elif tag in ("img", "script", "iframe", "source") and found.get("src"):
            self.loaded.add(found["src"])
        self.anchors.update(found[name] for name in ("id", "name") if found.get(name))


@pytest.mark.slow
def test_every_broken_reference_fails_the_build(tmp_path, site_packages):
    (tmp_path / "sources").mkdir()
    links = "[a](#nowhere), [b](more.md#not-there) and [c](missing.md)"
    index = f"# Home\n\nSee {links}.\n\n```{{toctree}}\nmore\n```\n"
    (tmp_path / "sources/index.md").write_text(index)
    (tmp_path / "sources/more.md").write_text("# More\n")
    with refused(CourseError, "index.md:3", "nowhere", "not-there", "missing.md"):
        build_site.build(tmp_path)


@pytest.mark.slow
def test_no_link_picture_or_anchor_is_broken_and_nothing_is_loaded_from_elsewhere(site):
    pages = {path: Links(path.read_text(encoding="utf-8")) for path in site.rglob("*.html")}
    decks = {path.stem for path in DECKS.glob("[0-9][0-9].md")}
    assert decks == {path.stem for path in (site / "slides").glob("[0-9]*.html")} != set()
    assert len(pages) > len(NOTEBOOKS) + len(decks) + 5
    broken = []
    for path, parsed in pages.items():
        for link in parsed.links | parsed.loaded:
            if urlsplit(link).scheme:
                if link in parsed.loaded and not link.startswith("data:"):
                    broken.append((path.name, link))
                continue
            file, anchor = urldefrag(urljoin(path.as_uri(), link))
            target = Path(unquote(urlsplit(file).path))
            anchors = pages[target].anchors if target in pages else set()
            if not target.is_file() or (anchor and unquote(anchor) not in anchors):
                broken.append((path.name, link))
    assert broken == []


@pytest.mark.slow
def test_every_page_loads_without_a_complaint_sets_its_formulas_and_fits_a_phone(
    site, address, page
):
    for path in sorted(site.rglob("*.html")):
        name = path.relative_to(site).as_posix()
        if name.startswith("slides/"):  # frames of a fixed shape, with tests of their own
            continue
        page.set_viewport_size(PHONE)
        page.goto(address + name)
        page.wait_for_load_state("networkidle")
        assert page.evaluate(WRONG_FORMULAS) == [], name
        width = page.evaluate("document.documentElement.scrollWidth")
        assert width <= PHONE["width"], f"{name} is {width} pixels wide on a phone"
        if name in LOOKED_AT:
            SCREENSHOTS.mkdir(parents=True, exist_ok=True)
            page.screenshot(path=SCREENSHOTS / f"{path.stem}-phone.png")


@pytest.mark.slow
def test_search_finds_the_kv_cache(address, page):
    page.goto(address + "search.html?q=KV+cache")
    page.wait_for_selector("#search-results li a")
    page.wait_for_function(
        "document.querySelector('.search-summary')?.textContent.includes('found')"
    )
    found = page.locator("#search-results li a").evaluate_all("all => all.map(a => a.href)")
    assert any("03_generation_and_decoding" in link for link in found)


@pytest.mark.slow
def test_a_figure_enlarges_by_mouse_and_by_key_and_closes_again(address, page):
    page.goto(address + "notebooks/00_start_here.html")
    figure = page.locator(".bd-article img[role=button]").first
    small = figure.bounding_box()["width"]
    dialog = page.locator("dialog.enlarged")
    figure.click()
    assert dialog.locator("img").bounding_box()["width"] > small
    assert dialog.locator("img").get_attribute("alt") == figure.get_attribute("alt") != ""
    page.keyboard.press("Escape")
    dialog.wait_for(state="hidden")
    figure.press("Enter")
    dialog.wait_for(state="visible")
    dialog.locator("button").click()
    dialog.wait_for(state="hidden")


@pytest.mark.slow
def test_a_solution_folds_and_unfolds(address, page):
    page.goto(address + "notebooks/01_attention_and_causal_masking.html")
    solution = page.locator(".bd-article details:has(summary:text('One solution'))").first
    code = solution.locator("pre").first
    code.wait_for(state="visible")
    solution.locator("summary").click()
    code.wait_for(state="hidden")
    solution.locator("summary").click()
    code.wait_for(state="visible")


@pytest.mark.slow
def test_a_lesson_has_colab_its_neighbours_and_copy_buttons(address, page):
    page.goto(address + "notebooks/07_outliers_and_llm_int8.html")
    repository = f"/github/{sync_notebooks.repository_address()}/blob/main/notebooks/07_"
    links = page.locator("a").evaluate_all("all => all.map(a => a.getAttribute('href'))")
    assert any("colab.research.google.com" + repository in (link or "") for link in links)
    assert "06_" in page.locator("a.left-prev").get_attribute("href")
    assert "08_" in page.locator("a.right-next").get_attribute("href")
    inputs = page.locator("div.cell_input pre").count()
    assert page.locator("div.cell_input .copybtn").count() == inputs > 10


@pytest.mark.slow
def test_dark_and_light_can_be_chosen(address, page):
    page.goto(address + "notebooks/00_start_here.html")
    brightness = "() => getComputedStyle(document.body).backgroundColor.match(/\\d+/g).map(Number)"
    for mode, is_right in (
        ("dark", lambda rgb: max(rgb) < 60),
        ("light", lambda rgb: min(rgb) > 200),
    ):
        page.locator(".theme-switch-button:visible").click()
        page.locator(f".theme-change-button[data-mode={mode}]:visible").click()
        assert page.locator("html").get_attribute("data-theme") == mode
        assert is_right(page.evaluate(brightness)[:3])


@pytest.mark.slow
def test_the_interface_shows_every_public_name_with_its_docstring(address, page):
    from llama_int8 import PUBLIC

    page.goto(address + "reference/interface.html")
    for name in PUBLIC:
        entry = page.locator(f"dt[id='llama_int8.{name}'] + dd p").first
        assert len(entry.inner_text()) > 20
