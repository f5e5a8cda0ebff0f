"""slides: a deck of slides per lesson, for any browser, without a network.

A deck is `slides/NN.md`: front matter, then slides between lines of `---`. Numbers come from results/
as in the report; a slide has one heading, and its speaker notes after a line `Notes:`.
"""

import html
import re
import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import jinja2
import yaml
from markdown_it import MarkdownIt
from markdown_it.token import Token
from mdit_py_plugins.dollarmath import dollarmath_plugin

import make_report
from common import ROOT, TOOLS, CourseError

DECKS = TOOLS / "slides"
KEPT = TOOLS / "site"  # reveal.js, MathJax and the decks' style
FEWEST, MOST = 12, 15  # slides of a deck
WORDS = 60  # of a slide with its heading
CODE = 72  # characters of a line of code
GUESS = "Guess first"
KINDS = {GUESS: "guess", "Your turn": "turn", "Common mistake": "mistake"}  # how a heading begins
FRONT = {"title": str, "question": str, "minutes": int}
# What an expression in a deck can raise: a name that is wrong, a table's row that is not there.
WRONG = (jinja2.TemplateError, CourseError, ArithmeticError, LookupError, TypeError, ValueError)
MADE_BY = '<meta name="generator" content="LLaMA in 8 bits, slides">'
WORD = re.compile(r"\S*[^\W\d_]\S*")  # has a letter: a number in a table is not a word
NOTES = re.compile(r"^Notes:[ \t]*", re.MULTILINE)
# A picture that is a paragraph, and below it, or in the next paragraph, its caption in italics.
PICTURE = re.compile(
    r"<p>(<img [^>]*>)(?:(?:</p>)?\s*(?:<p>)?<em>((?:(?!</?p>).)*)</em>)?</p>", re.DOTALL
)
INLINE = re.compile(r'(<span class="formula">[^<]*</span>)([.,:;?!)]+)')

PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
{made_by}
<title>{title}</title>
<link rel="stylesheet" href="reveal/reset.css">
<link rel="stylesheet" href="reveal/reveal.css">
<link rel="stylesheet" href="reveal/slides.css">
</head>
{body}
</html>
"""
DECK = """<body>
<div class="reveal"><div class="slides">
{slides}
</div></div>
<script src="reveal/reveal.js"></script>
<script src="reveal/notes.js"></script>
<script>
const show = () => Reveal.initialize({{
  width: 1280, height: 720, margin: 0, center: false, display: "flex", hash: true,
  slideNumber: "c/t", transition: "none", scrollActivationWidth: null, plugins: [RevealNotes],
}});
{start}
</script>{formulas}
</body>"""
# Formulas are set before the slides are laid out: they decide how much room a figure gets.
WITH_FORMULAS = """window.MathJax = {
  tex: { inlineMath: [["\\\\(", "\\\\)"]], displayMath: [["\\\\[", "\\\\]"]] },
  svg: { scale: 0.9 },
  options: { enableMenu: false, processHtmlClass: "formula", ignoreHtmlClass: "reveal" },
  startup: { pageReady: () => MathJax.startup.defaultPageReady().then(show) },
};"""
INDEX = """<body>
<main class="decks">
<h1>LLaMA in 8 bits: the slides</h1>
<p>Open a deck. <kbd>S</kbd> shows the speaker notes in a window of their own, <kbd>F</kbd> fills the
screen, <kbd>O</kbd> shows all slides, <kbd>?</kbd> lists the other keys. To print a deck, add
<code>?view=print</code> to its address.</p>
<ol>
{entries}
</ol>
</main>
</body>"""


@dataclass(frozen=True)
class Slide:
    """One slide as HTML, and what the rules ask about it."""

    heading: str
    body: str
    notes: str
    words: int  # that the audience reads: heading, text, table, code and caption
    note_words: int
    figures: tuple[str, ...]


@dataclass(frozen=True)
class Deck:
    """A lesson's slides."""

    number: str
    title: str
    question: str
    minutes: int
    slides: tuple[Slide, ...]


def main(folder: Path, decks: Path = DECKS) -> int:
    """Build every deck into `folder`, and replace it as a whole. Raises CourseError, OSError."""
    folder = folder.resolve()
    check_folder(folder)
    report = make_report.Report(ROOT)
    built = [read_deck(path, report) for path in deck_paths(decks)]
    for deck in built:
        if places := unmeasured(deck):
            print(f"{deck.number}.md, slide {places}: a number reads {make_report.NOT_MEASURED!r}")
    if report.missing:
        print("no machine in results/ has measured " + "; ".join(sorted(report.missing)))
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=f".{folder.name}-") as beside:
        fresh = Path(beside) / "new"
        write_decks(built, fresh)
        replace(folder, fresh, Path(beside) / "old")
    slides = sum(len(deck.slides) for deck in built)
    print(f"{len(built)} decks, {slides} slides: open {folder / 'index.html'} in a browser")
    print("In a deck, S opens the speaker notes, F fills the screen, ? lists the keys.")
    return 0


def replace(folder: Path, fresh: Path, old: Path) -> None:
    """Put `fresh` in the place of `folder`, which is kept as `old`. Raises OSError."""
    if folder.exists():
        folder.rename(old)
    try:
        fresh.rename(folder)
    except OSError:
        if old.exists():
            old.rename(folder)
        raise


def unmeasured(deck: Deck) -> str:
    """The slides that show or tell a number that nobody has measured: "3, 7"."""
    places = enumerate(deck.slides, start=1)
    return ", ".join(str(k) for k, s in places if make_report.NOT_MEASURED in s.body + s.notes)


def deck_paths(decks: Path) -> list[Path]:
    """The files of the decks, in order. Raises CourseError where there are none."""
    paths = sorted(decks.glob("[0-9][0-9].md"))
    if not paths:
        raise CourseError(f"{decks} holds no deck; a deck is a file NN.md, such as 01.md")
    return paths


def check_folder(folder: Path) -> None:
    """Raise CourseError for a folder with other files: it is replaced as a whole."""
    if not folder.exists():
        return
    there = sorted(path.name for path in folder.iterdir())
    ours = {"index.html", "reveal", "figures"}
    others = [name for name in there if name not in ours and not re.fullmatch(r"\d\d\.html", name)]
    index = folder / "index.html"
    if not others and there and not (index.is_file() and MADE_BY in index.read_text("utf-8")):
        others = there
    if others:
        raise CourseError(
            f"{folder} holds {others[0]}, which is no part of the slides, and the folder is replaced "
            "as a whole; name a new or empty one"
        )


# --- from a file to slides


def read_deck(path: Path, report: make_report.Report) -> Deck:
    """A deck with its numbers filled in. Raises CourseError, with the slide's number."""
    name = path.name
    try:
        text = report.fill_in(path.read_text(encoding="utf-8"))
    except WRONG as error:
        line = f", line {error.lineno}" if getattr(error, "lineno", None) else ""
        raise CourseError(f"{name}{line}: {error}") from None
    front, slides = split(name, text)
    made = tuple(
        make_slide(f"{name}, slide {place}", slide, report.root)
        for place, slide in enumerate(slides, start=1)
    )
    if not FEWEST <= len(made) <= MOST:
        raise CourseError(f"{name} has {len(made)} slides; a deck has {FEWEST} to {MOST}")
    if made[-1].heading.startswith(GUESS):
        raise CourseError(f"{name}, slide {len(made)} asks for a guess and no slide answers it")
    return Deck(path.stem, **front, slides=made)


def split(name: str, text: str) -> tuple[dict[str, Any], list[str]]:
    """Front matter, and the text of each slide; a `---` inside a block of code divides nothing."""
    parts, code = [""], False
    for line in text.strip().splitlines():
        code ^= line.startswith("```")
        if line.rstrip() == "---" and not code:
            parts.append("")
        else:
            parts[-1] += line + "\n"
    before, front, *slides = [*parts, ""]
    try:
        entries = yaml.safe_load(front)
    except yaml.YAMLError:
        entries = None
    if before or not isinstance(entries, dict) or entries.keys() != FRONT.keys():
        raise CourseError(
            f"{name} has to begin with front matter that holds {', '.join(FRONT)} and no more; "
            'a text with a colon needs "quotes"'
        )
    for key, kind in FRONT.items():
        if not isinstance(entries[key], kind):
            raise CourseError(f"{name}: {key} is {entries[key]!r}, which is no {kind.__name__}")
    return entries, slides[:-1]


def make_slide(where: str, text: str, root: Path) -> Slide:
    """One slide from its Markdown. Raises CourseError where it breaks a rule."""
    shown, *notes = NOTES.split(text, maxsplit=1)
    if not notes or not notes[0].strip():
        raise CourseError(f"{where} has no speaker notes; write them after a line `Notes:`")
    tokens = parser().parse(re.sub(r"^(\s*)- \+ ", r"\1+ ", shown, flags=re.MULTILINE))
    check_slide(where, tokens)
    for token in tokens:
        if token.type == "list_item_open" and token.markup == "+":
            token.attrJoin("class", "fragment")
    heading, body, spoken = tokens[:3], tokens[3:], parser().parse(notes[0])
    body = PICTURE.sub(figure, as_html(body))
    return Slide(
        heading=heading[1].content,
        body=f'{as_html(heading)}<div class="body">\n{body}</div>\n',
        notes=as_html(spoken),
        note_words=sum(map(count_words, spoken)),
        words=sum(map(count_words, tokens)),
        figures=tuple(check_figures(where, tokens, root)),
    )


def check_slide(where: str, tokens: list[Token]) -> None:
    """Raise CourseError for a slide without its heading, or with more than fits on it."""
    headings = [place for place, token in enumerate(tokens) if token.type == "heading_open"]
    if headings != [0] or tokens[0].tag != "h1":
        raise CourseError(
            f"{where} has to begin with a line `# Heading`, and have no other heading"
        )
    words = sum(map(count_words, tokens))
    if words > WORDS:
        raise CourseError(
            f"{where} has {words} words; at most {WORDS} can be read while somebody speaks"
        )
    code = "\n".join(token.content for token in tokens if token.type == "fence")
    longest = max(map(len, code.splitlines()), default=0)
    if longest > CODE:
        raise CourseError(f"{where} has {longest} characters in a line of code; {CODE} fit")


def as_html(tokens: list[Token]) -> str:
    """Markdown's tokens as HTML, where a comma after a formula stays on the formula's line."""
    return INLINE.sub(
        r'<span class="together">\1\2</span>',
        parser().renderer.render(tokens, parser().options, {}),
    )


@cache
def parser() -> MarkdownIt:
    """Markdown with tables and $formulas$, which are left to MathJax."""
    made = MarkdownIt("commonmark").enable("table")
    made.use(dollarmath_plugin, allow_digits=False, double_inline=True)
    for kind in ("math_inline", "math_inline_double", "math_block"):
        made.add_render_rule(kind, formula)
    return made


def formula(_renderer: Any, tokens: list[Token], place: int, _options: Any, _env: Any) -> str:
    """A formula between the signs that MathJax looks for."""
    text = html.escape(tokens[place].content.strip())
    if tokens[place].type == "math_inline":
        return f'<span class="formula">\\({text}\\)</span>'
    return f'<div class="formula block">\\[{text}\\]</div>'


def figure(match: re.Match[str]) -> str:
    """A picture, and its caption if it has one."""
    caption = f"<figcaption>{match[2]}</figcaption>" if match[2] else ""
    return f"<figure>{match[1]}{caption}</figure>"


def count_words(token: Token) -> int:
    """The words that are read: of text and code, without formulas and descriptions of pictures."""
    if token.type in ("text", "code_inline", "fence", "code_block"):
        return len(WORD.findall(token.content))
    children = token.children if token.type != "image" else None
    return sum(map(count_words, children or ()))


def check_figures(where: str, tokens: list[Token], root: Path) -> Iterator[str]:
    """The slide's figures, by file name. Raises CourseError for one that cannot be shown."""
    for image in (c for token in tokens for c in token.children or () if c.type == "image"):
        source = str(image.attrs["src"])
        if not re.fullmatch(r"figures/\w+\.png", source) or not (root / source).is_file():
            raise CourseError(f"{where} shows {source}, which is no figure of the course")
        if len(image.content) < 20:
            raise CourseError(f"{where}: say in the brackets what {source} shows, for the blind")
        yield source.removeprefix("figures/")


# --- from slides to pages


def write_decks(decks: list[Deck], folder: Path) -> None:
    """Pages, figures and scripts of all decks in a new folder."""
    (folder / "figures").mkdir(parents=True)
    shutil.copytree(KEPT / "reveal", folder / "reveal")
    shutil.copytree(KEPT / "mathjax", folder / "reveal" / "mathjax")
    shutil.copy(KEPT / "slides.css", folder / "reveal")
    for deck in decks:
        (folder / f"{deck.number}.html").write_text(deck_page(deck), encoding="utf-8")
        for name in {name for slide in deck.slides for name in slide.figures}:
            shutil.copy(ROOT / "figures" / name, folder / "figures")
    (folder / "index.html").write_text(index_page(decks), encoding="utf-8")


def deck_page(deck: Deck) -> str:
    """A deck as a page of reveal.js."""
    first, *others = deck.slides
    eyebrow = f"LLaMA in 8 bits · Lesson {deck.number} · {html.escape(deck.title)}"
    slides = [section(first, "first", f'<p class="eyebrow">{eyebrow}</p>\n')]
    slides += [section(slide, kind_of(slide)) for slide in others]
    text = "\n".join(slides)
    formulas = 'class="formula' in text
    body = DECK.format(
        slides=text,
        start=WITH_FORMULAS if formulas else "show();",
        formulas='\n<script src="reveal/mathjax/tex-svg.js"></script>' if formulas else "",
    )
    title = html.escape(f"{deck.number} {deck.title}: slides")
    return PAGE.format(made_by=MADE_BY, title=title, body=body)


def kind_of(slide: Slide) -> str:
    """What a slide asks for, by the first words of its heading; "" if nothing."""
    return next((kind for words, kind in KINDS.items() if slide.heading.startswith(words)), "")


def section(slide: Slide, kind: str, before: str = "") -> str:
    """A slide as a section of reveal.js."""
    named = f' class="{kind}"' if kind else ""
    notes = f'<aside class="notes">\n{slide.notes}</aside>'
    return f"<section{named}>\n{before}{slide.body}{notes}\n</section>"


def index_page(decks: list[Deck]) -> str:
    """The list of decks."""
    entries = [
        f'<li><a href="{deck.number}.html">{deck.number} {html.escape(deck.title)}</a>'
        f'<span class="about">{html.escape(deck.question)} {len(deck.slides)} slides, for a lesson '
        f"of {deck.minutes} minutes.</span></li>"
        for deck in decks
    ]
    body = INDEX.format(entries="\n".join(entries))
    return PAGE.format(made_by=MADE_BY, title="LLaMA in 8 bits: the slides", body=body)
