"""The slides: rules that every deck keeps, numbers from results/, pages that need no network."""

import json
import re
import shutil
from html.parser import HTMLParser

import pytest
from conftest import ROOT
from test_browser import browser_path
from test_teaching import at_home

import build_slides
import make_report
import sync_notebooks
from common import CourseError
from llama_int8.lessons import exercises

PATHS = build_slides.deck_paths(build_slides.DECKS)
NAMES = [path.stem for path in PATHS]
NOTES_WORDS = range(60, 161)
MEASURED = re.compile(r"(?:shown|value|percent|interval|told)\([^)]*\)")


@pytest.fixture(scope="module")
def report():
    return make_report.Report(ROOT)


@pytest.fixture(scope="module")
def pages(tmp_path_factory):
    """All decks, built once."""
    folder = tmp_path_factory.mktemp("slides") / "new"
    assert build_slides.main(folder) == 0
    return folder


# --- every deck -----------------------------------------------------------------------------------


@pytest.mark.parametrize("path", PATHS, ids=NAMES)
def test_a_deck_is_that_of_its_lesson_and_its_minutes_add_up(path, report):
    deck = build_slides.read_deck(path, report)  # itself holds the rules on slides, words, figures
    (notebook,) = [n for n in sync_notebooks.notebook_paths() if n.stem[:2] == path.stem]
    assert sync_notebooks.title(notebook.stem) == f"{deck.number} {deck.title}"
    assert make_report.question(notebook.stem) == deck.question
    quiz = 0 if deck.number == "00" else 5  # of the lesson before; it has no slide
    assert sum(map(minutes, deck.slides)) + quiz == deck.minutes


def minutes(slide) -> int:
    return int(re.match(r"<p>(\d+) minutes?\b", slide.notes)[1])


@pytest.mark.parametrize("path", PATHS, ids=NAMES)
def test_a_slide_of_home_work_says_so(path, report):
    """What the plan leaves for home is marked on its slide, or the slide takes no minutes."""
    home = at_home(path.stem)
    for slide in build_slides.read_deck(path, report).slides:
        body = re.sub(r"<[^>]+>", "", slide.body)
        for name in (name for name in exercises() if name.startswith(path.stem)):
            called = rf"(?:{path.stem}\.)?{name[3:]}\b"
            if re.search(rf"Your turn: {called}|Exercise {called}", body):
                assert (name in home) == (minutes(slide) == 0), f"{slide.heading}: {name}"
            elif re.search(rf"At home: {called}", body):
                assert name in home, f"{slide.heading}: {name}"
        if minutes(slide) == 0:
            assert "show it if there is time" in slide.notes, slide.heading


@pytest.mark.parametrize("path", PATHS, ids=NAMES)
def test_every_slide_has_notes_that_can_be_spoken(path, report):
    for slide in build_slides.read_deck(path, report).slides:
        assert slide.note_words in NOTES_WORDS, f"{slide.heading}: {slide.note_words} words"


@pytest.mark.parametrize("path", PATHS, ids=NAMES)
def test_a_guess_comes_before_its_answer(path):
    _, slides = build_slides.split(path.name, path.read_text(encoding="utf-8"))
    shown = [build_slides.NOTES.split(text)[0].strip() for text in slides]
    guesses = [place for place, text in enumerate(shown) if text.startswith("# Guess first")]
    assert len(guesses) >= 2
    for place in guesses:
        guess, answer = shown[place : place + 2]
        assert not answer.startswith("# Guess first")
        assert not set(MEASURED.findall(guess)) & set(MEASURED.findall(answer)), guess
        figures = re.findall(r"figures/(\w+)", guess)
        assert all("_drawing_" in name for name in figures), "a measured figure gives it away"
    assert any(text.startswith("# Common mistake") for text in shown)


# --- what is refused, and how ---------------------------------------------------------------------

FRONT = "---\ntitle: T\nquestion: Q?\nminutes: 90\n---\n"
SLIDE = "# A heading\n\nA line.\n\nNotes:\nSay it.\n"


def deck(*slides, count=12, front=FRONT):
    return front + "---\n".join([*slides, *[SLIDE] * (count - len(slides))])


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (deck(count=11), "01.md has 11 slides; a deck has 12 to 15"),
        (deck(count=16), "01.md has 16 slides"),
        (
            deck(SLIDE, "A line.\n\nNotes:\nSay it.\n"),
            "slide 2 has to begin with a line `# Heading`",
        ),
        (deck("# One\n\n# Two\n\nNotes:\nSay it.\n"), "slide 1 has to begin with a line"),
        (deck(SLIDE, SLIDE, "# A heading\n\nA line.\n"), "slide 3 has no speaker notes"),
        (deck("# A heading\n\nNotes:\n\n"), "slide 1 has no speaker notes"),
        (
            deck("# A\n\n" + "word " * 60 + "\n\nNotes:\nSay it.\n"),
            "slide 1 has 61 words; at most 60",
        ),
        (
            deck("# A\n\n```\n" + "x" * 73 + "\n```\n\nNotes:\nSay it.\n"),
            "slide 1 has 73 characters in",
        ),
        (
            deck("# A\n\n![What it shows, in words](figures/00_no.png)\n\nNotes:\nSay.\n"),
            "00_no.png",
        ),
        (deck("# A\n\n![short](figures/00_triangle.png)\n\nNotes:\nSay.\n"), "for the blind"),
        (
            deck("# A\n\n![What it shows, in words](https://a.b/c.png)\n\nNotes:\nSay.\n"),
            "no figure of",
        ),
        (
            deck(*[SLIDE] * 11, "# Guess first: how many?\n\nNotes:\nSay it.\n"),
            "slide 12 asks for a",
        ),
        (
            deck(front="---\ntitle: T\nquestion: Q?\n---\n"),
            "front matter that holds title, question",
        ),
        (deck(front=FRONT.replace("90", "ninety")), "minutes is 'ninety', which is no int"),
        (deck("# A\n\n{{ unknown }}\n\nNotes:\nSay it.\n"), "01.md: 'unknown' is undefined"),
        (deck("# A\n\n{{ papers['none'].x }}\n\nNotes:\nSay it.\n"), "01.md: "),
        (deck("# A\n\n{{ published('none') }}\n\nNotes:\nSay it.\n"), "01.md: 'none'"),
        (deck("# A\n\n{{ shown( }}\n\nNotes:\nSay it.\n"), "01.md, line 8"),
    ],
    ids=lambda value: value[:40] if value.startswith(("0", "slide")) else "",
)
def test_a_deck_that_breaks_a_rule_is_named_with_its_slide(text, said, tmp_path, report):
    path = tmp_path / "01.md"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(CourseError, match=re.escape(said)):
        build_slides.read_deck(path, report)


def test_a_folder_of_other_things_is_left_alone_and_an_older_build_is_replaced(pages, tmp_path):
    (tmp_path / "thesis.txt").write_text("mine")
    with pytest.raises(CourseError, match=r"holds thesis\.txt, which is no part of the slides"):
        build_slides.main(tmp_path)
    site = tmp_path / "site"
    site.mkdir()
    (site / "index.html").write_text("<p>another page</p>")
    with pytest.raises(CourseError, match=re.escape("holds index.html")):
        build_slides.main(site)
    again = shutil.copytree(pages, tmp_path / "again")
    (again / "99.html").write_text("of a deck that is gone")
    assert build_slides.main(again) == 0
    assert not (again / "99.html").exists() and (again / "index.html").exists()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["again", "site", "thesis.txt"]


def test_an_older_build_stays_where_a_new_one_cannot_take_its_place(tmp_path):
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "index.html").write_text("the older one")
    with pytest.raises(OSError):
        build_slides.replace(tmp_path / "folder", tmp_path / "no new one", tmp_path / "old")
    assert (tmp_path / "folder" / "index.html").read_text() == "the older one"


def test_a_folder_without_decks_is_refused(tmp_path):
    with pytest.raises(CourseError, match=r"a deck is a file NN\.md"):
        build_slides.main(tmp_path / "out", decks=tmp_path)


# --- the pages ------------------------------------------------------------------------------------


def test_numbers_come_from_results(tmp_path):
    shutil.copytree(ROOT / "results", tmp_path / "results")
    path = tmp_path / "01.md"
    slide = '# A\n\nIt is {{ shown("01", "sink.first_text", ".1f") }} %.\n\nNotes:\nSay it.\n'
    path.write_text(deck(slide), encoding="utf-8")

    def read():
        return build_slides.read_deck(path, make_report.Report(tmp_path))

    def shown():
        return read().slides[0].body

    measured = make_report.Report(ROOT).shown("01", "sink.first_text", ".1f")
    assert f"It is {measured} %." in shown()
    for file in (tmp_path / "results").glob("*/01_*.json"):
        run = json.loads(file.read_text(encoding="utf-8"))
        run["measurements"]["sink.first_text"]["value"] = 12.34
        file.write_text(json.dumps(run), encoding="utf-8")
    assert "It is 12.3 %." in shown() and build_slides.unmeasured(read()) == ""
    shutil.rmtree(tmp_path / "results")
    assert "It is not measured %." in shown() and build_slides.unmeasured(read()) == "1"


def test_markdown_becomes_what_a_slide_needs():
    text = """# What $x$ is

![A picture of two curves](figures/00_triangle.png)
*One line.*

- seen
+ on click
- + on click, too

$$a_b = c < d$$

Notes:
*Say* it.
"""
    slide = build_slides.make_slide("01.md, slide 1", text, ROOT)
    assert '<h1>What <span class="formula">\\(x\\)</span>' in slide.body
    assert slide.body.count('<li class="fragment">') == 2 and "<li>seen</li>" in slide.body
    assert '<div class="formula block">\\[a_b = c &lt; d\\]</div>' in slide.body
    assert "<figure><img" in slide.body and "<figcaption>One line.</figcaption>" in slide.body
    assert slide.figures == ("00_triangle.png",) and slide.notes == "<p><em>Say</em> it.</p>\n"
    assert slide.words == len("What is One line. seen on click on click, too".split())


class Sources(HTMLParser):
    """What a page loads by itself, and what it links to."""

    def __init__(self, text):
        super().__init__()
        self.loads, self.links = [], []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        for name, value in attrs:
            if name in ("src", "href", "srcset", "data", "poster"):
                (self.links if tag == "a" else self.loads).append(value)


def test_a_page_loads_only_what_lies_beside_it(pages):
    for page in pages.glob("*.html"):
        found = Sources(page.read_text(encoding="utf-8"))
        for source in found.loads:
            assert (pages / source).is_file(), f"{page.name} loads {source}"
        for link in found.links:
            assert link.startswith("https://") or (pages / link).is_file()
    for style in (pages / "reveal").glob("*.css"):
        assert not re.search(
            r"""url\(["']?(?!data:)[^"']|@import""", style.read_text(encoding="utf-8")
        ), style.name


def test_the_list_names_every_deck_and_no_figure_is_there_in_vain(pages):
    index = Sources((pages / "index.html").read_text(encoding="utf-8"))
    assert index.links == [f"{name}.html" for name in NAMES]
    loaded = [Sources((pages / link).read_text(encoding="utf-8")).loads for link in index.links]
    used = {source for sources in loaded for source in sources if source.startswith("figures/")}
    assert used == {f"figures/{path.name}" for path in (pages / "figures").iterdir()}


def test_what_others_made_is_kept_with_its_licence():
    listed = (build_slides.KEPT / "README.md").read_text(encoding="utf-8")
    for folder in (path for path in build_slides.KEPT.iterdir() if path.is_dir()):
        assert (folder / "LICENSE").is_file() and f"`{folder.name}/`" in listed
    files = [path for path in build_slides.KEPT.rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) < 5 * 2**20


# --- in a browser ---------------------------------------------------------------------------------

TOO_LONG = """() => Reveal.getSlides().flatMap((slide, k) => {
  Reveal.slide(k);
  const frame = slide.getBoundingClientRect(), body = slide.querySelector(".body");
  const outside = [...slide.querySelectorAll("h1, .body *")].filter(part => {
    const box = part.getBoundingClientRect();
    return !part.closest("svg, mjx-assistive-mml") && box.width > 0 &&
      (box.left < frame.left || box.right > frame.right || box.bottom > frame.bottom);
  });
  const cut = [body, ...slide.querySelectorAll("pre")].filter(
    part => part.scrollHeight > part.clientHeight + 1 || part.scrollWidth > part.clientWidth + 1);
  return outside.length + cut.length ? [`slide ${k + 1}: ${slide.querySelector("h1").textContent}`] : [];
})"""
SMALL = """() => Reveal.getSlides().flatMap((slide, k) => {
  Reveal.slide(k);
  return [...slide.querySelectorAll("figure img")].filter(image => {
    const box = image.getBoundingClientRect();
    const scale = Math.min(box.width / image.naturalWidth, box.height / image.naturalHeight);
    return !(scale > 0.4);  // a figure's letters have ten points at 150 dots per inch
  }).map(image => `slide ${k + 1}: ${image.src}`);
})"""


@pytest.fixture(scope="module")
def browser():
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        # Without a sandbox, since a container's root may not have one; the pages are our own.
        chromium = playwright.chromium.launch(executable_path=browser_path(), args=["--no-sandbox"])
        yield chromium
        chromium.close()


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_a_deck_opens_from_disk_and_every_slide_fits_its_frame(name, pages, browser):
    page, complaints = browser.new_page(viewport={"width": 1280, "height": 720}), []
    page.on("pageerror", lambda error: complaints.append(str(error)))
    page.on("console", lambda m: complaints.append(m.text) if m.type != "log" else None)
    page.on("requestfailed", lambda request: complaints.append(request.url))
    page.on(
        "request",
        lambda r: None if r.url.startswith(("file:", "data:")) else complaints.append(r.url),
    )
    page.goto((pages / f"{name}.html").as_uri())
    page.wait_for_function("window.Reveal && Reveal.isReady()")
    assert page.evaluate(TOO_LONG) == []
    assert page.evaluate(SMALL) == []
    assert page.locator(".formula:not(:has(svg))").count() == 0
    assert page.locator("[data-mjx-error], mjx-merror").count() == 0
    assert complaints == []
    page.close()


@pytest.mark.slow
def test_a_slide_that_does_not_fit_would_be_found(tmp_path, browser):
    rows = "| a | b |\n| --- | --- |\n" + "| 1 | 2 |\n" * 12
    (tmp_path / "01.md").write_text(deck(SLIDE, f"# Long\n\n{rows}\nNotes:\nSay it.\n"))
    assert build_slides.main(tmp_path / "out", decks=tmp_path) == 0
    page = browser.new_page(viewport={"width": 1280, "height": 720})
    page.goto((tmp_path / "out" / "01.html").as_uri())
    page.wait_for_function("window.Reveal && Reveal.isReady()")
    assert page.evaluate(TOO_LONG) == ["slide 2: Long"]
    page.close()


@pytest.mark.slow
def test_the_speaker_sees_the_notes_in_a_window_of_their_own(pages, browser):
    context = browser.new_context()
    page = context.new_page()
    page.goto((pages / f"{NAMES[0]}.html").as_uri())
    page.wait_for_function("window.Reveal && Reveal.isReady()")
    with context.expect_page() as opened:
        page.keyboard.press("s")
    notes = page.locator("aside.notes").first.text_content().strip()
    value = opened.value.locator(".speaker-controls-notes .value")
    value.get_by_text(notes[:40]).wait_for()
    context.close()
