"""Files that learners handed in: whose each one is, which notebook it is, which attempt counts.

A folder holds notebooks, a subfolder for each learner, zip files of either, or what a learning
platform gives to a teacher: the names that Moodle, Canvas and Blackboard make are known, as are
copies of browsers and of Google Drive. Every file becomes either a `HandedIn`, or an `Other` with
the reason why it is not one.
"""

import json
import os
import re
import time
import warnings
import zipfile
import zlib
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import cache
from itertools import takewhile
from pathlib import Path
from typing import Any

import nbformat

import sync_notebooks
from common import CourseError
from llama_int8.lessons import exercises

EXERCISES = exercises()

CHECKED = re.compile(r"""\bcheck\s*\(\s*(?:name\s*=\s*)?["'](\d\d\.\w+)["']""")
NUMBER = re.compile(r"(?<!\d)\d\d(?!\d)")
# What browsers, file managers, JupyterLab and Google Drive add to the name of a copy.
COPY_MARK = re.compile(
    r"(?<![^\W_])(copy[ _]of|kopie[ _]von|kopie[ _]van|copie[ _]de|copia[ _]de|copia[ _]di"
    r"|cópia[ _]de|kopia[ _]av|kopi[ _]af|kopi[ _]av|copie[ _]a|bản[ _]sao[ _]của)(?![^\W_])"
    r"|^(kopia|kopie|kopi|kopio|salinan|копия|копія|αντίγραφο(?: του)?|نسخة من|עותק של|副本)\s"
    r"|(的副本|のコピー|의 사본| kopyası| másolata)"
    r"|[ _-]*\(\d+\)"
    r"|[ _–-]+(copy|kopie|copie|copia|cópia|kopia)\s*\d*\b"
    r"(?![ _]*(of|von|van|de|di|av|af|a)(?![^\W_]))",  # "Jane - Copy of ..." is the first of these
    re.IGNORECASE,
)
NOTEBOOK_NAME = re.compile(r"\.ipynb(\.(json|txt|download|part|crdownload|bak))?$", re.IGNORECASE)
PERHAPS_A_NOTEBOOK = ("", ".json", ".txt")  # as some browsers save one; its content decides

# What platforms call a learner's folder or file. Theirs is `file`.
MOODLE = re.compile(
    r"(?P<learner>.+?)_(?P<id>\d+)_assignsubmission_(?:[a-z]+)(?:_(?P<file>.*))?", re.IGNORECASE
)
# Here the assignment's title stands before the learner; both may hold "_" (see _titles).
BLACKBOARD = re.compile(
    r"(?P<learner>.+_.+)_[^\W\d_]+_(?P<when>\d{4}(?:-\d\d){5})(?:[_.](?P<file>.*))?"
)
CANVAS = re.compile(
    r"(?P<learner>[^\W\d_][^_]*)(?:_LATE)?_(?P<id>\d{3,})_\d{3,}_(?P<file>.+)", re.IGNORECASE
)
CANVAS_ATTEMPT = re.compile(r"-(\d+)(?=\.\w+$|$)")
ILIAS = re.compile(r"[^_\d][^_]*_[^_]+_[^_]+_\d+")
ILIAS_DATE = re.compile(r"^(\d{14})_")
# Google Drive gives a large folder in several archives with such names.
DRIVE_PART = re.compile(r".*-\d{8}T\d{6}Z(-\d+)*-\d{3}(\.zip)?", re.IGNORECASE)
# Of several folders that are all called like this none is a learner's.
GROUP = re.compile(
    r"(week|woche|semaine|semana|settimana|class|klasse|classe|kurs|course|section)[ _-]*\w{0,3}",
    re.IGNORECASE,
)
# A folder around all learners' folders or files is often called something like this ...
AROUND = re.compile(
    r"submission|abgabe|rendu|entrega|consegn|inlever|assignment|homework|classroom|download|class",
    re.IGNORECASE,
)
# ... unless the folders in it are one learner's own.
ONES_OWN = re.compile(
    r"attempt|versuch|version|\bv\d|old|new|final|draft|week|copy|backup|try|notebook",
    re.IGNORECASE,
)
LEFTOVERS = ("__MACOSX", "Thumbs.db", "desktop.ini", "__pycache__", "node_modules")

EXPORTS = (
    ".html",
    ".htm",
    ".py",
    ".pdf",
    ".md",
    ".tex",
    ".docx",
    ".odt",
    ".rst",
    ".mhtml",
    ".slides",
)
ARCHIVES = (".rar", ".7z", ".tar", ".gz", ".tgz", ".bz2", ".xz")
LARGEST_MEMBER, LARGEST_ARCHIVE = 200 << 20, 4 << 30  # bytes, unpacked
DEEPEST_ARCHIVE = 4  # archives within one another


@dataclass(frozen=True)
class HandedIn:
    """One notebook of a learner; path None stands for a learner without a notebook."""

    learner: str
    shown: str  # its path below the folder, as the teacher sees it
    path: Path | None
    cells: list[dict[str, Any]] = field(default_factory=list)
    problem: str = ""  # why it has no cells
    notebook: str | None = None  # the course's notebook that it is
    counts: str = ""  # another attempt, which counts instead
    id: str = ""  # the platform's number of the learner
    named: bool = True  # something tells whose it is
    unclear: bool = False  # graded on its own, as it may be another learner's
    attempt: tuple[Any, ...] = ()  # the later one is larger

    @property
    def runs(self) -> bool:
        """Whether it is to be run."""
        return bool(self.cells) and self.notebook is not None and not self.counts


@dataclass(frozen=True)
class Other:
    """A file that is not a notebook, and why."""

    learner: str  # "" where nothing tells
    shown: str
    reason: str
    id: str = ""


@dataclass(frozen=True)
class Found:
    """A file as it lies in the folder; `parts` are the names on the way, archives among them."""

    parts: tuple[str, ...]
    path: Path | None
    reason: str = ""  # why it is not looked at
    around: int = 0  # how many folders or archives on the way are around the learners' own
    shared: bool = False  # the first folder of its own may be one learner's, or several learners'

    @property
    def own(self) -> tuple[str, ...]:
        """The names on the way from the learner's own on."""
        return self.parts[self.around :]

    @property
    def shown(self) -> str:
        return "/".join(self.parts)


def find(
    folder: Path, unpacked: Path, besides: Iterable[Path] = ()
) -> tuple[list[HandedIn], list[Other]]:
    """All notebooks by learner, the one that counts first, and every other file.

    Archives are unpacked into the folder `unpacked`; files in `besides` are the grader's own.
    Raises CourseError if there is no notebook.
    """
    if not folder.is_dir():
        raise CourseError(f"{folder} is no folder; give one that holds learners' notebooks")
    own = {path.resolve() for path in besides}
    files = [f for f in _files(folder, unpacked) if not (f.path and f.path.resolve() in own)]
    files = _without_checkouts(files)
    files = _with_owners(files)
    titles = _titles(files)
    ones = _tell_apart([_paper(file, folder, titles) for file in files])
    papers = [one for one in ones if isinstance(one, HandedIn)]
    others = [one for one in ones if isinstance(one, Other)]
    if not papers:
        named = f" It holds {', '.join(o.shown for o in others[:5])}." if others else ""
        raise CourseError(
            f"no notebook in {folder}; it must hold .ipynb files, or a subfolder of them for each "
            f"learner.{named}"
        )
    papers += _without_a_notebook(folder, files, papers, others)
    return _which_count(papers), others


# --- the files of a folder, those in archives among them


def _files(
    folder: Path, unpacked: Path, parts: tuple[str, ...] = (), depth: int = 0
) -> Iterator[Found]:
    try:
        entries = sorted(folder.iterdir())
    except OSError as error:
        yield Found((*parts, ""), None, f"the folder cannot be read ({error.strerror})")
        return
    for path in entries:
        here = (*parts, path.name)
        if _leftover(path.name):
            continue
        if path.is_symlink() and (path.is_dir() or not path.exists()):
            yield Found(here, None, "a link to a folder, or to nothing; hand in the file itself")
        elif path.is_dir() and (path / "pyvenv.cfg").exists():
            yield Found((*here, ""), None, "a Python environment")
        elif path.is_dir():
            yield from _files(path, unpacked, here, depth)
        else:
            yield from _unpacked(path, here, unpacked, depth)


def _leftover(name: str) -> bool:
    """Whether a system or a program left it: checkpoints, or what a Mac puts into a zip."""
    return name.startswith((".", "~$")) or name in LEFTOVERS


def _unpacked(path: Path, parts: tuple[str, ...], into: Path, depth: int) -> Iterator[Found]:
    """A file, or all that is in it if it is a zip file."""
    if path.suffix.lower() != ".zip":
        yield Found(parts, path)
        return
    if depth >= DEEPEST_ARCHIVE:
        yield Found(parts, None, "an archive in too many archives; unpack it and grade again")
        return
    size, empty = 0, True
    try:
        with zipfile.ZipFile(path) as archive:
            for number, member in enumerate(archive.infolist()):
                inner = _member_parts(member)
                if member.is_dir() or not inner or any(map(_leftover, inner)):
                    continue
                empty = False
                here = (*parts, *inner)
                size += member.file_size
                if not _worth_reading(inner[-1]):
                    yield Found(here, None, _why_no_notebook(inner[-1]))
                elif member.flag_bits & 1:
                    yield Found(here, None, "locked by a password")
                elif member.file_size > LARGEST_MEMBER or size > LARGEST_ARCHIVE:
                    yield Found(here, None, f"too large ({member.file_size:,} bytes)")
                else:
                    target = into / f"{path.stat().st_ino}-{depth}-{number}-{len(parts)}"
                    target.mkdir(parents=True, exist_ok=True)
                    yield from _member(archive, member, target / inner[-1], here, into, depth)
        if empty:
            yield Found(parts, None, "an empty archive")
    except (zipfile.BadZipFile, OSError, EOFError, ValueError) as error:
        reason = f"an archive that cannot be read ({error}); unpack it and grade again"
        yield Found(parts, None, reason)


def _member(
    archive: zipfile.ZipFile,
    member: zipfile.ZipInfo,
    target: Path,
    parts: tuple[str, ...],
    into: Path,
    depth: int,
) -> Iterator[Found]:
    try:
        target.write_bytes(archive.read(member))
    except (zipfile.BadZipFile, NotImplementedError, zlib.error, OSError, EOFError) as error:
        yield Found(parts, None, f"damaged in its archive ({error})")
        return
    with suppress(ValueError, OverflowError):  # a date that is none
        when = time.mktime((*member.date_time, 0, 0, -1))
        os.utime(target, (when, when))  # it tells which attempt is the later one
    yield from _unpacked(target, parts, into, depth + 1)


def _member_parts(member: zipfile.ZipInfo) -> tuple[str, ...]:
    """The names on a member's path, without those that lead out of the archive."""
    name = member.filename
    if not member.flag_bits & 0x800:  # some programs write UTF-8 without saying so
        with suppress(UnicodeError):
            name = name.encode("cp437").decode("utf-8")
    return tuple(p for p in re.split(r"[\\/]", name) if p not in ("", ".", "..") and ":" not in p)


def _worth_reading(name: str) -> bool:
    suffix = Path(name).suffix.lower()
    return bool(NOTEBOOK_NAME.search(name)) or suffix == ".zip" or suffix in PERHAPS_A_NOTEBOOK


def _without_checkouts(files: list[Found]) -> list[Found]:
    """One entry for all that a checkout of the course holds beside notebooks."""
    roots = {file.parts[:-2] for file in files if file.parts[-2:] == ("tools", "course.py")}
    kept, counted = [], Counter()
    for file in files:
        root = next((root for root in roots if file.parts[: len(root)] == root), None)
        if root is None or NOTEBOOK_NAME.search(file.parts[-1]):
            kept.append(file)
        else:
            counted[root] += 1
    reason = "a checkout of the course: {} files beside its notebooks"
    return kept + [Found((*root, ""), None, reason.format(n)) for root, n in counted.items()]


# --- whose a file is


def _with_owners(files: list[Found]) -> list[Found]:
    """The files, each with the folders and archives on its way that are around the learners."""
    files = [_deeper(f) if len(f.own) > 1 and DRIVE_PART.fullmatch(f.own[0]) else f for f in files]
    inner = files
    while further := _inside(inner):
        inner = further
    around = sorted({file.parts[: file.around] for file in inner}, key=len)
    placed = []
    for file in files:
        for place in around:
            if len(file.parts) > len(place) >= file.around and file.parts[: len(place)] == place:
                file = replace(file, around=len(place))
        placed.append(file)
    shared = _shared_tops(placed)
    return [replace(f, shared=True) if f.parts[: f.around + 1] in shared else f for f in placed]


def _deeper(file: Found) -> Found:
    return replace(file, around=file.around + 1)


def _inside(files: list[Found]) -> list[Found]:
    """The files that lie in folders around the learners, seen from inside; none if they don't.

    A single folder is around learners if two folders in it hold the same notebook. What lies
    beside it and is no notebook does not matter.
    """
    files = [file for file in files if len(file.own) > 1 or _is_notebook(file)]
    tops = {file.own[0] for file in files}
    if any(len(file.own) == 1 or _platform(file.own[0]) for file in files):
        return []
    below = [_deeper(file) for file in files]
    children = {file.own[0] for file in below}
    if len(tops) != 1:
        groups = all(map(GROUP.fullmatch, tops)) and not any(map(ONES_OWN.search, children))
        return below if groups and not _namesakes(files) else []
    if any(file.own == ("",) for file in below):  # it is one learner's checkout
        return []
    if any(len(names) > 1 for names in _children(files, flat=_is_around(*tops)).values()):
        return below
    return _inside(below) if len({f.own[0] for f in below if len(f.own) > 1}) == 1 else []


def _namesakes(files: list[Found]) -> bool:
    """Whether two top folders hold the same notebook of one name, perhaps of two learners."""
    found = Counter()
    for top in {file.own[0] for file in files}:
        children = _children([file for file in files if file.own[0] == top], flat=True)
        found.update((notebook, name) for notebook, names in children.items() for name in names)
    return any(count > 1 for count in found.values())


def _is_around(name: str) -> bool:
    """Whether files of several learners can lie in it without folders."""
    return bool(name.lower().endswith(".zip") or AROUND.search(name) or GROUP.fullmatch(name))


def _is_notebook(file: Found) -> bool:
    return bool(file.path and NOTEBOOK_NAME.search(file.parts[-1]))


def _platform(name: str) -> bool:
    return any(known.fullmatch(name) for known in (MOODLE, BLACKBOARD, CANVAS, ILIAS))


def _children(files: list[Found], flat: bool) -> dict[str, set[str]]:
    """By notebook of the course, what may be learners' names one level below a top folder.

    These are names of folders, and if `flat` of notebooks too.
    """
    children: dict[str, set[str]] = defaultdict(set)
    for file in files:
        if not _is_notebook(file) or (len(file.own) == 2 and not flat):
            continue
        child = _rest_of_name(file.own[1]) if len(file.own) == 2 else _without_zip(file.own[1])
        if child and not ONES_OWN.search(child):
            cells, _ = read_cells(file.path)
            children[which_notebook(cells, stem_of(file.parts[-1])) or ""].add(child)
    children.pop("", None)
    return children


def _shared_tops(files: list[Found]) -> set[tuple[str, ...]]:
    """Folders beside others in which two folders hold the same notebook: a learner's, or a class."""
    tops: dict[tuple[str, ...], list[Found]] = defaultdict(list)
    for file in files:
        if len(file.own) > 2 and not any(map(_platform, file.own)):
            tops[file.parts[: file.around + 1]].append(file)
    shared = set()
    for top, own in tops.items():
        own = [file for file in own if not AROUND.search(file.own[1])]
        if any(len(names) > 1 for names in _children(own, flat=False).values()):
            shared.add(top)
    return shared


def _titles(files: list[Found]) -> dict[tuple[str, ...], str]:
    """By folder, the assignment's title with which all of Blackboard's names in it begin.

    A title and a learner's name may both hold "_". Where there is only one name, all others help.
    """
    names: dict[tuple[str, ...], set[str]] = defaultdict(set)
    for file in files:
        for level, part in enumerate(file.parts):
            if found := BLACKBOARD.fullmatch(part):
                names[file.parts[:level]].add(found["learner"])
    every = set().union(*names.values())
    return {place: _title(own if len(own) > 1 else every) for place, own in names.items()}


def _title(names: set[str]) -> str:
    """The words with which all names begin; the last word of each is the learner's in any case."""
    words = zip(*(name.split("_")[:-1] for name in names), strict=False)
    same = takewhile(lambda column: len(set(column)) == 1, words)
    return "".join(f"{column[0]}_" for column in same)


def _owner(
    file: Found, folder: Path, titles: dict[tuple[str, ...], str]
) -> tuple[str, str, str, bool, tuple[Any, ...]]:
    """Learner, the platform's number of them, the file's own name, whether named, which attempt."""
    parts = file.own
    name = parts[-1]
    learner, number, when, version = "", "", "", 0
    for level, part in enumerate(parts, file.around):
        if found := MOODLE.fullmatch(part):
            learner, number = found["learner"], found["id"]
        elif found := BLACKBOARD.fullmatch(part):
            learner, when = found["learner"], found["when"]
            learner = learner.removeprefix(titles[file.parts[:level]])
        elif found := CANVAS.fullmatch(part):
            learner, number = found["learner"], found["id"]
            version = int(next(iter(CANVAS_ATTEMPT.findall(found["file"])), 0))
        if learner:
            if part is name:
                name = found["file"] or name
            break
    if found := ILIAS_DATE.match(name):
        when, name = found[1], name[15:]
    named = True
    if not learner and len(parts) > 1 and not parts[0].lower().endswith(".zip"):
        learner = "/".join(parts[: 2 if file.shared and len(parts) > 2 else 1])
    elif not learner:
        rest = _rest_of_name(parts[0])
        named, learner = bool(rest), rest or folder.resolve().name
    modified = file.path.stat().st_mtime if file.path else 0.0
    copy = re.search(r"\((\d+)\)|-Copy(\d+)", name)
    copies = int(next(filter(None, copy.groups()))) if copy else 0
    digits = re.sub(r"\D", "", when)
    return learner, number, name, named, (digits, version, modified, copies)


def learner_of(path: Path, folder: Path) -> str:
    """The rest of a file's name beside the notebook's name or number, else its folder's name."""
    return _rest_of_name(path.name) or folder.resolve().name


def _rest_of_name(name: str) -> str:
    rest = COPY_MARK.sub("", stem_of(name))
    for notebook in sorted(courses_notebooks(), key=len, reverse=True):
        for words in (notebook, notebook[3:]):
            rest = re.sub(re.escape(words), "", rest, flags=re.IGNORECASE)
    numbers = {notebook[:2] for notebook in courses_notebooks()}
    found = next((m for m in NUMBER.finditer(rest) if m[0] in numbers), None)
    if found:
        rest = rest[: found.start()] + rest[found.end() :]
    return rest.strip(" _-.–")


def stem_of(name: str) -> str:
    """A file's name without ".ipynb", and without what a browser put after that."""
    return re.sub(r"\.(ipynb\b.*|zip|\w{1,5})$", "", name, count=1, flags=re.IGNORECASE)


def _without_zip(name: str) -> str:
    return re.sub(r"\.zip$", "", name, flags=re.IGNORECASE)


def _tell_apart(ones: list[Any]) -> list[Any]:
    """Learners of one name get the platform's number behind it."""
    numbers: dict[str, set[str]] = defaultdict(set)
    for one in ones:
        numbers[one.learner].add(one.id)
    return [
        replace(one, learner=f"{one.learner} ({one.id})")
        if one.id and len(numbers[one.learner]) > 1
        else one
        for one in ones
    ]


def _without_a_notebook(
    folder: Path, files: list[Found], papers: list[HandedIn], others: list[Other]
) -> list[HandedIn]:
    """Learners of whom something is there, an empty folder perhaps, but no notebook."""
    learners = {other.learner: None for other in others if other.learner}
    for around in sorted({file.parts[: file.around] for file in files}):
        inside = folder.joinpath(*around)
        if not inside.is_dir():
            continue
        depth = len(around)
        here = [f for f in files if f.parts[:depth] == around and len(f.parts) > depth]
        filled = {file.parts[depth] for file in here}
        for path in sorted(inside.iterdir()):
            if path.is_dir() and not _leftover(path.name) and path.name not in filled:
                found = MOODLE.fullmatch(path.name)
                learners.setdefault(found["learner"] if found else path.name)
    missing = []
    for learner in learners.keys() - {one.learner for one in papers}:
        names = [other.shown.split("/")[-1] for other in others if other.learner == learner]
        only = f", only {', '.join(names[:5])}" if names else ""
        missing.append(HandedIn(learner, learner, None, problem=f"no notebook in the folder{only}"))
    return missing


# --- which attempt counts


def _which_count(papers: list[HandedIn]) -> list[HandedIn]:
    """In order of learners; of one learner's files of one notebook the latest is to be graded.

    Of two copies one that can be read counts, and of these the later one. Two files that nothing
    names are two people's: both called "05.ipynb" once.
    """
    groups: dict[tuple[str, str], list[HandedIn]] = defaultdict(list)
    for one in papers:
        groups[one.learner, one.notebook or one.shown].append(one)
    done = []
    for group in groups.values():
        group.sort(key=lambda one: (bool(one.cells), one.attempt), reverse=True)
        if len(group) > 1 and not any(one.named for one in group):
            group.sort(key=lambda one: one.shown)
            for number, one in enumerate(group, 1):
                more = f" ({number})" if number > 1 else ""
                done.append(replace(one, learner=one.learner + more, unclear=True))
            continue
        first, *rest = group
        done += [first, *(replace(one, counts=first.shown) for one in rest)]
    alone = {one.learner for one in done if not one.named or "/" not in one.shown}
    return sorted(done, key=lambda one: (one.learner not in alone, one.learner))


def unclear(papers: Iterable[HandedIn]) -> list[str]:
    """A line for each file of which nothing tells whose it is."""
    return [
        f"unclear whose: {one.shown}; graded on its own, as {one.learner}'s. Give each learner a "
        "folder to make it clear"
        for one in papers
        if one.unclear and not one.counts
    ]


# --- what a file is


def _paper(file: Found, folder: Path, titles: dict[tuple[str, ...], str]) -> HandedIn | Other:
    learner, number, name, named, attempt = _owner(file, folder, titles)
    whose = learner if len(file.parts) > 1 or number or name != file.parts[-1] else ""
    if file.shared and len(file.own) == 2:
        whose = ""  # beside the folders in a folder of which nobody knows whose it is
    if file.path is None:
        return Other(whose, file.shown, file.reason, number)
    surely = NOTEBOOK_NAME.search(name)
    perhaps = Path(name).suffix.lower() in PERHAPS_A_NOTEBOOK
    if not surely and not (perhaps and file.path.stat().st_size <= LARGEST_MEMBER):
        return Other(whose, file.shown, _why_no_notebook(name), number)
    cells, problem = read_cells(file.path)
    if not surely and problem:
        return Other(whose, file.shown, _why_no_notebook(name), number)
    notebook = which_notebook(cells, stem_of(name))
    return HandedIn(
        learner,
        file.shown,
        file.path,
        cells,
        problem or _of_another_edition(cells),
        notebook,
        id=number,
        named=named,
        unclear=file.shared and len(file.own) > 2,
        attempt=attempt,
    )


def _of_another_edition(cells: list[dict[str, Any]]) -> str:
    """What to say of a notebook whose exercises are all unknown; "" for any other."""
    names = CHECKED.findall("\n".join(map(source, cells)))
    if not names or any(name in EXERCISES for name in names):
        return ""
    return (
        f"none of its exercises ({', '.join(names[:3])}{', ...' if names[3:] else ''}) is in this "
        "edition of the course; hand in the notebook of this edition"
    )


def _why_no_notebook(name: str) -> str:
    suffix = Path(name).suffix.lower()
    if suffix in EXPORTS:
        return f"an export or a text ({suffix}), not the notebook; hand in the .ipynb file"
    if suffix in ARCHIVES:
        return f"an archive ({suffix}) that is not unpacked here; unpack it and grade again"
    return "no notebook"


def read_cells(path: Path) -> tuple[list[dict[str, Any]], str]:
    """The cells of a notebook without what they showed, or none and what is wrong with the file."""
    content = b""
    try:
        content = path.read_bytes()
        text = content.decode(json.detect_encoding(content)).removeprefix("\ufeff")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # an old notebook's cells have no ids
            cells = nbformat.reads(text, as_version=4)["cells"]
            kept = ("cell_type", "source", "metadata", "id")
            # Without type and source a cell is none, whatever else it has.
            cells = [
                {"cell_type": c["cell_type"], "source": c["source"]}
                | {key: c[key] for key in kept if key in c}
                for c in cells
            ]
        return cells, "" if cells else "the notebook holds no cells"
    except OSError as error:
        return [], f"the file cannot be read ({error.strerror})"
    except Exception as error:  # whatever a file can hold that is no notebook
        return [], f"the file is no notebook that can be read ({_what_it_is(content, error)})"


def _what_it_is(content: bytes, error: Exception) -> str:
    start = content[:200].lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    if not content:
        return "it is empty, 0 bytes"
    kinds: list[tuple[bytes, str]] = [
        (b"<", "it is a web page; hand in the .ipynb file itself"),
        (b"pk\x03\x04", "it is a zip file"),
        (b"%pdf", "it is a PDF file; hand in the .ipynb file"),
        (b"version https://git-lfs", "it is a pointer of Git LFS, not the file"),
    ]
    conflict = b"\n<<<<<<< " in content or start.startswith(b"<<<<<<<")
    if conflict:
        return "Git's marks of a merge conflict are in it"
    for begin, said in kinds:
        if start.startswith(begin):
            return said
    return type(error).__name__


@cache
def courses_notebooks() -> dict[str, list[str]]:
    """The course's notebooks by name, each with its exercises in the order of its cells."""
    return {
        path.stem: [
            exercise
            for cell in sync_notebooks.read(path)["cells"]
            for exercise in CHECKED.findall(source(cell))
        ]
        for path in sync_notebooks.notebook_paths()
    }


@cache
def _own_marks() -> dict[str, str]:
    """The course's notebook by the ids that only its cells have, and by its heading."""
    ids, headings = Counter(), {}
    cells = {
        path.stem: sync_notebooks.read(path)["cells"] for path in sync_notebooks.notebook_paths()
    }
    for name, own in cells.items():
        ids.update({cell.get("id") for cell in own})
        headings[f"# {sync_notebooks.title(name)}"] = name
    unique = {
        c["id"]: n for n, own in cells.items() for c in own if c.get("id") and ids[c["id"]] == 1
    }
    return unique | headings


def which_notebook(cells: list[dict[str, Any]], file_name: str) -> str | None:
    """The course's notebook that a file is, by the first of these that tells.

    The exercises that its cells check, the notebook's name in its code, the ids of its cells and
    its heading, then the number or the words of the file's name.
    """
    code = "\n".join(source(cell) for cell in cells)
    exercises = [name for name in CHECKED.findall(code) if name in EXERCISES]
    marks = [_own_marks().get(mark) for cell in cells for mark in _marks(cell)]
    ways: list[Callable[[], list[str | None]]] = [
        lambda: [_numbered(name[:2]) for name in exercises],
        lambda: [n for n in courses_notebooks() if f'"{n}"' in code or f"'{n}'" in code],
        lambda: marks,
        lambda: [_numbered(number) for number in NUMBER.findall(file_name)],
        lambda: [n for n in courses_notebooks() if _letters(n[3:]) in _letters(file_name)],
    ]
    for way in ways:
        known = Counter(name for name in way() if name)
        if known:
            return known.most_common(1)[0][0]
    return None


def _numbered(number: str) -> str | None:
    return next((name for name in courses_notebooks() if name[:2] == number), None)


def _marks(cell: dict[str, Any]) -> list[str]:
    metadata = cell.get("metadata") or {}
    heading = "".join(cell["source"]).partition("\n")[0] if cell["cell_type"] == "markdown" else ""
    return [str(mark) for mark in (cell.get("id"), metadata.get("id"), heading.strip()) if mark]


def _letters(text: str) -> str:
    return re.sub(r"[\W_]", "", text).lower()


def source(cell: dict[str, Any]) -> str:
    """The text of a code cell; of another, none."""
    return "".join(cell["source"]) if cell["cell_type"] == "code" else ""
