"""The data that quality is measured on: texts to predict, and items with one right choice.

PIQA, HellaSwag and WikiText-2 come from the hub through `datasets`, or from a local file; a text
and forty items travel with the package for a machine that has neither.

WikiText-2 is two texts, and each has its name here. `wikitext2` is the raw one, joined and scored
as the field does. `wikitext2-words` is the older one, cut into words, with rare words replaced by
<unk>.
"""

import hashlib
import io
import json
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from importlib.resources import files
from pathlib import Path
from typing import Any

from llama_int8.data import evaluation_text
from llama_int8.errors import DataError, in_short


@dataclass(frozen=True)
class Item:
    """One question: a text, its possible continuations, and the number of the right one."""

    context: str
    choices: tuple[str, ...]
    label: int
    where: str = field(default="", compare=False, repr=False)  # file and line, for messages


@dataclass(frozen=True)
class Task:
    """A text or a list of items, with where it came from and a hash of what was read."""

    name: str
    source: str
    text: str | None = None
    items: tuple[Item, ...] = ()

    @property
    def sha256(self) -> str:
        """Of the text, or of the items as JSON: equal for equal content, whatever the file."""
        content = self.text or json.dumps([[i.context, i.choices, i.label] for i in self.items])
        return hashlib.sha256(content.encode()).hexdigest()


@dataclass(frozen=True)
class Source:
    """How a task is read: its address on the hub, how a row becomes an item, or rows a text."""

    repository: str
    split: str
    columns: tuple[str, ...]
    item: Callable[[dict[str, Any]], Item] | None = None  # None: a text
    text: Callable[[Sequence[str]], str] = "".join
    config: str | None = None
    revision: str | None = None


def piqa_item(row: dict[str, Any]) -> Item:
    """PIQA (arXiv:1911.11641) in the words of EleutherAI's lm-evaluation-harness."""
    goal, *solutions = (_text(name, row[name]) for name in ("goal", "sol1", "sol2"))
    return Item(f"Question: {goal}\nAnswer:", tuple(solutions), _label(row["label"]))


def hellaswag_item(row: dict[str, Any]) -> Item:
    """HellaSwag (arXiv:1905.07830), cleaned as in EleutherAI's lm-evaluation-harness."""
    activity, first, second = (_text(n, row[n]) for n in ("activity_label", "ctx_a", "ctx_b"))
    endings = row["endings"]
    if not isinstance(endings, list | tuple) or len(endings) < 2:
        raise ValueError(f"endings is {_short(endings)}; expected a list of at least two texts")
    return Item(
        _without_brackets(f"{activity}: {first} {second.capitalize()}"),
        tuple(_without_brackets(_text("endings", ending)) for ending in endings),
        _label(row["label"]),
    )


def _text(name: str, value: Any) -> str:
    """The value of a column, if it is a text that can be written as UTF-8."""
    if not isinstance(value, str):
        raise ValueError(f"{name} is {_short(value)}; expected a text")
    try:
        value.encode()
    except UnicodeEncodeError as error:
        half = ascii(value[error.start])
        raise ValueError(f"{name} holds {half}, one half of a character; fix the text") from None
    return value


def _label(value: Any) -> int:
    """The number of the right choice, from a whole number or the text of one; nothing is rounded."""
    if isinstance(value, str) and re.fullmatch(r"\s*[+-]?\d+(\.0*)?\s*", value, re.ASCII):
        return int(value.partition(".")[0])
    if type(value) is int or (type(value) is float and value.is_integer()):
        return int(value)
    hidden = value is None or not str(value).strip()
    raise ValueError(
        f"label is {_short(value)}; expected the number of the right choice, 0 for the first"
        + ("; a split whose labels are hidden cannot be scored" if hidden else "")
    )


def _short(value: Any) -> str:
    text = ascii(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def _without_brackets(text: str) -> str:
    text = text.strip().replace(" [title]", ". ")
    return re.sub(r"\[.*?\]", "", text).replace("  ", " ")


SOURCES = {
    "piqa": Source(
        "baber/piqa",
        "validation",
        ("goal", "sol1", "sol2", "label"),
        piqa_item,
        revision="142f6d7367fd9877f0fb3b5734ea6a545f54cdd1",
    ),
    "hellaswag": Source(
        "Rowan/hellaswag",
        "validation",
        ("activity_label", "ctx_a", "ctx_b", "endings", "label"),
        hellaswag_item,
        revision="218ec52e09a7e7462a5400043bb9a69a41d06b76",
    ),
    "wikitext2": Source(
        "Salesforce/wikitext",
        "test",
        ("text",),
        text="\n\n".join,  # as in Hugging Face's guide on perplexity
        config="wikitext-2-raw-v1",
    ),
    "wikitext2-words": Source(
        "Salesforce/wikitext",
        "test",
        ("text",),
        text=lambda rows: plain_text("".join(row or " \n" for row in rows)),
        config="wikitext-2-v1",
    ),
}
# Ours: in the package, so always there. "everyday-physics" is not PIQA, only of its kind.
OWN = {
    "piqa": "everyday-physics",
    "hellaswag": "everyday-physics",
    "wikitext2": "course-text",
    "wikitext2-words": "course-text",
}
TASKS = (*SOURCES, *sorted(set(OWN.values())))
# In WikiText-2 every 16th word is <unk>; a raw text may quote one.
UNKNOWN, UNKNOWN_SHARE = "<unk>", 1 / 1000


def load_task(name: str, data: str | Path | None = None, limit: int | None = None) -> Task:
    """The task `name`, from the local file `data`, the package, or the hub.

    A file with the word-level WikiText-2 is the task "wikitext2-words", also under the other name.
    `limit`: at most so many items, the first ones (a text stays whole: its windows are limited
    where it is scored). Raises DataError that says what is wrong with the data, and where.
    """
    check_task(name)
    if limit is not None and limit < 2:
        raise DataError(f"the limit is {limit}; at least 2 are needed to speak of a spread")
    if data is not None and name not in SOURCES:
        raise DataError(
            f"{name} is in the package and takes no file; give a file of your own the name of "
            f"its kind: {', '.join(SOURCES)}"
        )
    if name == "course-text":
        return Task(name, "the package", evaluation_text())
    if name == "everyday-physics":
        path = files("llama_int8") / "data" / "everyday_physics.jsonl"
        rows = _numbered(path.read_text(encoding="utf-8"), "everyday_physics.jsonl")
        return Task(name, "the package", items=_items(SOURCES["piqa"], rows, limit, path.name))
    source = SOURCES[name]
    where = Path(data).expanduser().name if data else f"{source.repository}, {source.split}"
    if source.item is None:
        if data:
            content = _read_file(data)
            if not content.strip():
                raise DataError(f"{data} is empty; name a file with the text of {name}")
            name = _kind_of_wikitext(name, where, content)
            rows = _lines(content)
        else:
            rows = [row["text"] for _, row in _hub_rows(source)]
        return Task(name, where, SOURCES[name].text(rows))
    rows = _file_rows(Path(data).expanduser()) if data else _hub_rows(source)
    return Task(name, where, items=_items(source, rows, limit, str(data or where)))


def check_task(name: str) -> None:
    """Raise DataError, with the names that are known, for another one."""
    if name not in TASKS:
        raise DataError(f"there is no task {name!r}; there are {', '.join(TASKS)}")


def available_task(name: str, data: str | Path | None = None, limit: int | None = None) -> Task:
    """`load_task`, or the package's own of the same kind, with a printed line, if the hub fails.

    For a lesson; whoever asks for a data set by name gets it, or an error from `load_task`.
    """
    try:
        task = load_task(name, data, limit)
        if task.name != name:
            print(other_name(name, task))
        return task
    except DataError as error:
        if data or name not in SOURCES:
            raise
        print(f"{error}.\nThis run goes on with {OWN[name]}, which travels with the package.")
        return load_task(OWN[name], limit=limit)


def other_name(asked: str, task: Task) -> str:
    """The message where `load_task` has found a file to be another task than was asked for."""
    return f"{task.source} holds {UNKNOWN} for rare words: the task is {task.name}, not {asked}"


def _kind_of_wikitext(name: str, where: str, text: str) -> str:
    words = text.split()
    word_level = bool(words) and words.count(UNKNOWN) / len(words) > UNKNOWN_SHARE
    if name == "wikitext2-words" and not word_level:
        raise DataError(
            f"{where} is not a word-level text of WikiText-2: rare words should be {UNKNOWN}. If it is "
            "wiki.test.raw, its task is wikitext2"
        )
    return "wikitext2-words" if word_level else name


def _lines(text: str) -> list[str]:
    """Rows as `datasets` makes them of a file: a line with its newline, nothing for a blank one."""
    return [line if line.strip() else "" for line in io.StringIO(text)]


def plain_text(text: str) -> str:
    """WikiText's word-tokenized form with ` @-@ `, ` @,@ `, ` @.@ ` joined again, <unk> left out."""
    for spaced, joined in ((" <unk>", ""), (" @-@ ", "-"), (" @,@ ", ","), (" @.@ ", ".")):
        text = text.replace(spaced, joined)
    return text


def _items(
    source: Source, rows: Iterable[tuple[str, dict[str, Any]]], limit: int | None, name: str
) -> tuple[Item, ...]:
    """`name`: of the file or data set that the rows are from."""
    items = []
    for where, row in rows:
        if limit is not None and len(items) == limit:
            break
        missing = [column for column in source.columns if column not in row]
        if missing:
            labels = _labels_of(name) if "label" in missing else ""
            beside = f"; labels may stand beside it in {labels}" if labels else ""
            raise DataError(
                f"{where}: no column {', '.join(missing)}; there are {', '.join(row)}. The course "
                f"reads {', '.join(source.columns)}{beside}"
            )
        try:
            item = replace(source.item(row), where=where)
        except ValueError as error:
            raise DataError(f"{where}: a value of an unexpected kind ({error})") from None
        if not 0 <= item.label < len(item.choices):
            raise DataError(
                f"{where}: label {item.label}, but the choices are 0 to {len(item.choices) - 1}"
                + ("; a split whose labels are hidden cannot be scored" if item.label < 0 else "")
            )
        if not all(choice.strip() for choice in item.choices):
            raise DataError(
                f"{where}: an empty choice, which has no likelihood; leave this item out and run it "
                "again"
            )
        items.append(item)
    if len(items) < 2:
        raise DataError(
            f"{name}: {len(items)} items are too few to speak of an accuracy; at least 2 are needed"
        )
    return tuple(items)


# How files begin that hold no text, and what to do with each.
NO_TEXT = {
    b"\x1f\x8b": "it is compressed with gzip; unpack it first",
    b"PK\x03\x04": "it is a zip archive; unpack it first",
    b"BZh": "it is compressed with bzip2; unpack it first",
    b"\xfd7zXZ": "it is compressed with xz; unpack it first",
    b"\x28\xb5\x2f\xfd": "it is compressed with zstd; unpack it first",
    b"PAR1": "it is a Parquet file; write it as JSONL (one JSON object per line) or as plain text",
    b"ARROW1": "it is an Arrow file; write it as JSONL (one JSON object per line) or as plain text",
    b"\xff\xfe": "it is in UTF-16 or UTF-32; save it in UTF-8",
    b"\xfe\xff": "it is in UTF-16; save it in UTF-8",
    b"version https://git-lfs": "it is a pointer of Git LFS; `git lfs pull` fetches the file itself",
    b"<!doctype html": "it is a web page; fetch the file itself",
    b"<html": "it is a web page; fetch the file itself",
}


def _read_file(data: str | Path) -> str:
    path = Path(data).expanduser()
    text, reason = "", "it is a folder; name a file in it"
    try:
        if not path.is_dir():
            content = path.read_bytes()
            reason = _no_text(content)
            text = "" if reason else content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        reason = f"{error}; save it in UTF-8"
    except OSError as error:
        reason = str(error)
    if reason:
        raise DataError(f"{path} cannot be read as a text: {reason}")
    return text.replace("\r\n", "\n").replace("\r", "\n")


def _no_text(content: bytes) -> str:
    """Why the content of a file is not UTF-8 text; nothing where it may be one."""
    start = content[:64].lstrip().lower()
    for beginning, reason in NO_TEXT.items():
        if content.startswith(beginning) or start.startswith(beginning):
            return reason
    return "it holds bytes of value 0, as UTF-16 does; save it in UTF-8" if b"\0" in content else ""


def _numbered(text: str, name: str) -> Iterator[tuple[str, dict[str, Any]]]:
    for number, line in enumerate(text.split("\n"), 1):
        if not line.strip():
            continue
        where = f"{name}, line {number}"
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise DataError(f"{where} is not JSON ({error}). {_expected(text)}") from None
        if not isinstance(row, dict):
            found = _short(line.strip()[:40])
            raise DataError(f"{where} is not a JSON object but {found}. {_expected(text)}")
        yield where, row


def _expected(text: str) -> str:
    """Say what a file of items should be, and what this one is, judged by its beginning."""
    array = "The file is one JSON array. " if text.lstrip().startswith("[") else ""
    return f"{array}Expected is JSONL: one JSON object on each line"


def _file_rows(path: Path) -> Iterable[tuple[str, dict[str, Any]]]:
    """Rows of a JSONL file; labels may stand in `<name>-labels.lst` beside it, as PIQA has them."""
    rows = list(_numbered(_read_file(path), path.name))
    labels = path.with_name(_labels_of(path.name))
    if rows and not any("label" in row for _, row in rows) and labels.exists():
        found = list(_labels(_read_file(labels), labels.name))
        if len(found) != len(rows):
            raise DataError(f"{labels.name} has {len(found)} labels for {len(rows)} items")
        rows = [(where, {**r, "label": v}) for (where, r), v in zip(rows, found, strict=True)]
    return rows


def _labels_of(name: str) -> str:
    return f"{Path(name).stem}-labels.lst"


def _labels(text: str, name: str) -> Iterator[int]:
    for number, line in enumerate(text.split("\n"), 1):
        for word in line.split():
            try:
                yield _label(word)
            except ValueError as error:
                raise DataError(f"{name}, line {number}: {error}") from None


def _hub_rows(source: Source) -> list[tuple[str, dict[str, Any]]]:
    import datasets

    datasets.disable_progress_bars()
    name = source.repository
    try:
        table = datasets.load_dataset(
            name, source.config, split=source.split, revision=source.revision
        )
    except Exception as error:  # the kinds differ between versions of datasets and of the hub
        raise DataError(
            f"{name} cannot be had from the hub ({in_short(error)}). "
            "Name a local file, or take a task of the package: "
            f"{', '.join(sorted(set(OWN.values())))}"
        ) from None
    missing = [column for column in source.columns if column not in table.column_names]
    if missing:
        raise DataError(
            f"{name} has no column {', '.join(missing)} any more; there are "
            f"{', '.join(table.column_names)}. Name a local file with the old columns"
        )
    return [(f"{name}, row {number}", row) for number, row in enumerate(table)]
