"""What quality is measured on: texts to predict, and items of which one choice is right.

PIQA, HellaSwag and WikiText-2 come from the hub through `datasets`, or from a local file; a text
and forty items travel with the package for a machine that has neither.
"""

import hashlib
import json
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

from llama_int8.errors import DataError
from llama_int8.measurement.texts import evaluation_text


@dataclass(frozen=True)
class Item:
    """One question: a text, its possible continuations, and the number of the right one."""

    context: str
    choices: tuple[str, ...]
    label: int


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
    """How a task is read: its address on the hub, and how a row becomes an item."""

    repository: str
    split: str
    columns: tuple[str, ...]
    item: Callable[[dict[str, Any]], Item] | None  # None: a text
    config: str | None = None
    revision: str | None = None


def piqa_item(row: dict[str, Any]) -> Item:
    """PIQA (arXiv:1911.11641) in the words of EleutherAI's lm-evaluation-harness."""
    return Item(f"Question: {row['goal']}\nAnswer:", (row["sol1"], row["sol2"]), int(row["label"]))


def hellaswag_item(row: dict[str, Any]) -> Item:
    """HellaSwag (arXiv:1905.07830), cleaned as in EleutherAI's lm-evaluation-harness."""
    context = f"{row['activity_label']}: {row['ctx_a']} {row['ctx_b'].capitalize()}"
    return Item(
        _without_brackets(context),
        tuple(_without_brackets(ending) for ending in row["endings"]),
        int(row["label"]),
    )


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
    "wikitext2": Source("Salesforce/wikitext", "test", ("text",), None, "wikitext-2-raw-v1"),
}
# Ours: in the package, so always there. "everyday-physics" is not PIQA, only of its kind.
OWN = {"piqa": "everyday-physics", "hellaswag": "everyday-physics", "wikitext2": "course-text"}
TASKS = (*SOURCES, *sorted(set(OWN.values())))


def load_task(name: str, data: str | Path | None = None, limit: int | None = None) -> Task:
    """The task `name`, from the local file `data`, the package, or the hub.

    `limit`: at most so many items, the first ones (a text stays whole: its windows are limited
    where it is scored). Raises DataError that says what is wrong with the data, and where.
    """
    check_task(name)
    if limit is not None and limit < 2:
        raise DataError(f"the limit is {limit}; at least 2 are needed to speak of a spread")
    if data is not None and name not in SOURCES:
        raise DataError(
            f"{name} is in the package and takes no file; a file of one's own goes by the name of "
            f"its kind: {', '.join(SOURCES)}"
        )
    if name == "course-text":
        return Task(name, "the package", evaluation_text())
    if name == "everyday-physics":
        path = files("llama_int8") / "data" / "everyday_physics.jsonl"
        rows = _numbered(path.read_text(encoding="utf-8"), "everyday_physics.jsonl")
        return Task(name, "the package", items=_items(SOURCES["piqa"], rows, limit))
    source = SOURCES[name]
    where = Path(data).expanduser().name if data else f"{source.repository}, {source.split}"
    if source.item is None:
        text = _read_file(data) if data else "\n\n".join(r["text"] for _, r in _hub_rows(source))
        return Task(name, where, plain_text(text))
    rows = _file_rows(Path(data).expanduser()) if data else _hub_rows(source)
    return Task(name, where, items=_items(source, rows, limit))


def check_task(name: str) -> None:
    """Raise DataError, with the names that are known, for another one."""
    if name not in TASKS:
        raise DataError(f"there is no task {name!r}; there are {', '.join(TASKS)}")


def available_task(name: str, data: str | Path | None = None, limit: int | None = None) -> Task:
    """`load_task`, or the package's own of the same kind, and said so, where the hub is away.

    For a lesson; who asks for a data set by its name gets it or an error from `load_task`.
    """
    try:
        return load_task(name, data, limit)
    except DataError as error:
        if data or name not in SOURCES:
            raise
        print(f"{error}.\nThis run goes on with {OWN[name]}, which travels with the package.")
        return load_task(OWN[name], limit=limit)


def plain_text(text: str) -> str:
    """WikiText's word-tokenized form with ` @-@ `, ` @,@ `, ` @.@ ` joined again, <unk> left out."""
    for spaced, joined in ((" <unk>", ""), (" @-@ ", "-"), (" @,@ ", ","), (" @.@ ", ".")):
        text = text.replace(spaced, joined)
    return text


def _items(
    source: Source, rows: Iterable[tuple[str, dict[str, Any]]], limit: int | None
) -> tuple[Item, ...]:
    items = []
    for where, row in rows:
        if limit is not None and len(items) == limit:
            break
        missing = [column for column in source.columns if column not in row]
        if missing:
            raise DataError(
                f"{where}: no column {', '.join(missing)}; there are {', '.join(row)}. The course "
                f"reads {', '.join(source.columns)}"
            )
        try:
            item = source.item(row)
            empty = not all(choice.strip() for choice in item.choices)
        except (ValueError, TypeError, AttributeError) as error:
            raise DataError(f"{where}: a value of an unexpected kind ({error})") from None
        if not 0 <= item.label < len(item.choices):
            raise DataError(
                f"{where}: label {item.label}, but the choices are 0 to {len(item.choices) - 1}"
                + ("; a split whose labels are hidden cannot be scored" if item.label < 0 else "")
            )
        if empty:
            raise DataError(f"{where}: an empty choice, which has no likelihood")
        items.append(item)
    if len(items) < 2:
        raise DataError(f"{len(items)} items are too few to speak of an accuracy")
    return tuple(items)


def _read_file(data: str | Path) -> str:
    path = Path(data).expanduser()
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path} cannot be read as a text: {error}") from None


def _numbered(text: str, name: str) -> Iterable[tuple[str, dict[str, Any]]]:
    for number, line in enumerate(text.split("\n"), 1):
        if not line.strip():
            continue
        where = f"{name}, line {number}"
        try:
            row = json.loads(line)
        except ValueError as error:
            raise DataError(f"{where} is no JSON ({error})") from None
        if not isinstance(row, dict):
            raise DataError(f"{where} is no JSON object but {line.strip()[:40]!r}")
        yield where, row


def _file_rows(path: Path) -> Iterable[tuple[str, dict[str, Any]]]:
    """Rows of a JSONL file; labels may stand in `<name>-labels.lst` beside it, as PIQA has them."""
    rows = list(_numbered(_read_file(path), path.name))
    labels = path.with_name(f"{path.stem}-labels.lst")
    if rows and "label" not in rows[0][1] and labels.exists():
        lines = _read_file(labels).split()
        if len(lines) != len(rows):
            raise DataError(f"{labels.name} has {len(lines)} labels for {len(rows)} items")
        rows = [(where, {**r, "label": v}) for (where, r), v in zip(rows, lines, strict=True)]
    return rows


def _hub_rows(source: Source) -> list[tuple[str, dict[str, Any]]]:
    import datasets

    datasets.disable_progress_bars()
    name = source.repository
    try:
        table = datasets.load_dataset(
            name, source.config, split=source.split, revision=source.revision
        )
    except Exception as error:  # the kinds differ between versions of datasets and of the hub
        first_line = (str(error).strip() or "no reason given").splitlines()[0]
        raise DataError(
            f"{name} cannot be had from the hub ({type(error).__name__}: {first_line}). "
            "Name a local file, or take a task of the package: "
            f"{', '.join(sorted(set(OWN.values())))}"
        ) from None
    missing = [column for column in source.columns if column not in table.column_names]
    if missing:
        raise DataError(
            f"{name} has no column {', '.join(missing)} any more; there are "
            f"{', '.join(table.column_names)}. Name a local file with the columns of old"
        )
    return [(f"{name}, row {number}", row) for number, row in enumerate(table)]
