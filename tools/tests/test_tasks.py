"""Texts and items: what a file or the hub holds is what is scored, and every fault has a name."""

import bz2
import gzip
import json
import lzma
import os
import subprocess
import sys
import tomllib
from pathlib import Path

import datasets
import pytest
from datasets.exceptions import DatasetNotFoundError

from llama_int8.data import evaluation_text
from llama_int8.errors import DataError
from llama_int8.evaluation import tasks
from llama_int8.evaluation.tasks import Item, Task, available_task, load_task

PIQA = [
    {"goal": "How to boil?", "sol1": "With heat.", "sol2": "With ice.", "label": 0},
    {"goal": "How to freeze?", "sol1": "With heat.", "sol2": " With ice. ", "label": 1},
    {"goal": "Öffnen", "sol1": "Schlüssel", "sol2": "Löffel", "label": 0},
]
PIQA_ITEMS = (
    Item("Question: How to boil?\nAnswer:", ("With heat.", "With ice."), 0),
    Item("Question: How to freeze?\nAnswer:", ("With heat.", " With ice. "), 1),
    Item("Question: Öffnen\nAnswer:", ("Schlüssel", "Löffel"), 0),
)
HELLASWAG = {
    "activity_label": "Roof shingle removal",
    "ctx_a": "A man is sitting on a roof.",
    "ctx_b": "he",
    "endings": ["is using wrap.", "is ripping tiles off.", "holds a cube.", "starts pulling."],
    "label": "3",
}


@pytest.fixture
def file(tmp_path):
    """Write rows, or a text, into a file and return its path."""

    def write(content, name="items.jsonl") -> Path:
        path = tmp_path / name
        if not isinstance(content, str | bytes):
            content = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in content)
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return path

    return write


@pytest.fixture
def hub(monkeypatch):
    """Play the hub: give it a table or an exception; it remembers what it was asked for."""
    asked = []

    def play(answer):
        def load_dataset(*names, **options):
            asked.append((names, options))
            if isinstance(answer, Exception):
                raise answer
            return answer

        monkeypatch.setattr(datasets, "load_dataset", load_dataset)
        return asked

    return play


AWAY = ConnectionError("Couldn't reach 'baber/piqa' on the Hub (OfflineModeIsEnabled)\nand more")


# Local files


def test_a_file_of_items_with_labels_inside(file):
    task = load_task("piqa", file(PIQA))
    assert task == Task("piqa", "items.jsonl", None, PIQA_ITEMS)


def test_labels_may_stand_in_a_file_beside_it_as_piqa_has_them(file):
    bare = [{k: v for k, v in row.items() if k != "label"} for row in PIQA]
    path = file(bare, "valid.jsonl")
    file("0\n1\n0\n", "valid-labels.lst")
    assert load_task("piqa", path).items == PIQA_ITEMS


def test_labels_inside_count_and_not_those_beside_it(file):
    path = file(PIQA, "valid.jsonl")
    file("1\n", "valid-labels.lst")
    assert load_task("piqa", path).items == PIQA_ITEMS


@pytest.mark.parametrize("labels", ["0\n1\n", "0\n1\n0\n1\n", ""])
def test_labels_for_another_number_of_items_are_refused(file, labels):
    path = file([{"goal": "g", "sol1": "a", "sol2": "b"}] * 3, "valid.jsonl")
    file(labels, "valid-labels.lst")
    says = rf"valid-labels.lst has {len(labels.split())} labels for 3 items"
    with pytest.raises(DataError, match=says):
        load_task("piqa", path)


def test_without_labels_the_missing_column_is_named(file):
    path = file([{"goal": "g", "sol1": "a", "sol2": "b"}] * 3)
    with pytest.raises(DataError, match="line 1: no column label; there are goal, sol1, sol2") as e:
        load_task("piqa", path)
    assert "labels may stand beside it in items-labels.lst" in str(e.value)


def test_empty_lines_and_windows_line_ends_do_no_harm(file):
    lines = [json.dumps(row) for row in PIQA]
    text = "\r\n" + "\r\n\r\n".join(lines) + "\r\n \r\n"
    assert load_task("piqa", file(text)).items == PIQA_ITEMS


def test_only_a_newline_ends_a_line(file):
    """JSON may hold other characters that Unicode counts as line ends."""
    rows = [{**PIQA[0], "sol1": "one\u2028two\x85three"}, PIQA[1]]
    assert load_task("piqa", file(rows)).items[0].choices[0] == "one\u2028two\x85three"


def test_further_columns_do_no_harm(file):
    assert load_task("piqa", file([{"id": 7, **row} for row in PIQA])).items == PIQA_ITEMS


def test_a_limit_takes_the_first_items(file):
    path = file(PIQA)
    assert load_task("piqa", path, limit=2).items == PIQA_ITEMS[:2]
    assert load_task("piqa", path, limit=3).items == PIQA_ITEMS
    assert load_task("piqa", path, limit=9).items == PIQA_ITEMS


@pytest.mark.parametrize("limit", [1, 0, -1])
def test_a_limit_below_two_is_refused(file, limit):
    with pytest.raises(DataError, match=f"the limit is {limit}; at least 2"):
        load_task("piqa", file(PIQA), limit=limit)


@pytest.mark.parametrize("count", [0, 1])
def test_fewer_than_two_items_are_refused(file, count):
    with pytest.raises(DataError, match=rf"items\.jsonl: {count} items are too few"):
        load_task("piqa", file(PIQA[:count]))


def with_second(**changes):
    return [PIQA[0], {**PIQA[1], **changes}]


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (json.dumps(PIQA[0]) + "\n\n{oops}\n", "line 3 is not JSON"),
        (json.dumps(PIQA[0]) + "\n[1, 2]\n", "line 2 is not a JSON object but '[1, 2]'"),
        ([PIQA[0], {"goal": "g", "sol1": "a"}], "line 2: no column sol2, label; there are goal, "),
        (with_second(label=2), "line 2: label 2, but the choices are 0 to 1"),
        (with_second(label=-1), "line 2: label -1, but .* a split whose labels are hidden"),
        (with_second(label=""), "line 2: a value of an unexpected kind"),
        (with_second(label=None), "line 2: a value of an unexpected kind"),
        (with_second(label="yes"), "line 2: a value of an unexpected kind"),
        (with_second(sol1=None), "line 2: a value of an unexpected kind"),
        (with_second(sol2=5), "line 2: a value of an unexpected kind"),
        (with_second(sol1=""), "line 2: an empty choice"),
        (with_second(sol2=" \n"), "line 2: an empty choice"),
        (with_second(label=0.7), r"line 2: a value of .* \(label is 0.7; expected the number"),
        (with_second(label=True), r"line 2: a value of .* \(label is True; expected the number"),
        (with_second(label="first"), r"line 2: a value of .* \(label is 'first'; expected the"),
        (with_second(label="1_0"), r"line 2: a value of .* \(label is '1_0'; expected the"),
        (with_second(label=[0]), r"line 2: a value of .* \(label is \[0\]; expected the"),
        (with_second(label=float("nan")), r"line 2: a value of .* \(label is nan; expected the"),
        (with_second(label=""), r"line 2: .* \(label is ''; .* a split whose labels are hidden"),
        (with_second(label=None), r"line 2: .* \(label is None; .* labels are hidden"),
        (with_second(label=1e300), r"line 2: label \d+, but the choices are 0 to 1"),
        (with_second(goal=7), r"line 2: a value of .* \(goal is 7; expected a text"),
        (with_second(goal=float("nan")), r"line 2: a value of .* \(goal is nan; expected a text"),
        (with_second(sol1=["a"]), r"line 2: a value of .* \(sol1 is \['a'\]; expected a text"),
        (with_second(sol1=""), "line 2: an empty choice, .* leave this item out"),
        ("Gr\xfc\xdfe".encode("latin-1"), "cannot be read as a text: .* save it in UTF-8"),
        (
            json.dumps(PIQA),
            r"line 1 is not a JSON object but .* one JSON array. Expected is JSONL: one",
        ),
        (
            json.dumps(PIQA, indent=1),
            r"line 1 is not JSON .* one JSON array. Expected is JSONL: one",
        ),
        ("goal,sol1,sol2,label\nHow?,a,b,0\n", "line 1 is not JSON .* Expected is JSONL: one JSON"),
        (json.dumps(PIQA[0], indent=1), "line 1 is not JSON .* Expected is JSONL: one JSON object"),
        ("[" * 100_000, "line 1 is not JSON"),
        ("0\n1\n", "line 1 is not a JSON object but '0'. Expected is JSONL"),
    ],
    ids=lambda value: str(value)[-30:],
)
def test_what_is_wrong_with_a_file_is_said_with_its_line(file, content, says):
    with pytest.raises(DataError, match=rf"items.jsonl.*{says}".replace("[1, 2]", r"\[1, 2\]")):
        load_task("piqa", file(content))


@pytest.mark.parametrize("label", [1, 1.0, "1", " 1 ", "1.0", "+1"])
def test_a_label_is_a_whole_number_however_it_is_written(file, label):
    rows = [PIQA[0], {**PIQA[1], "label": label}]
    assert [item.label for item in load_task("piqa", file(rows)).items] == [0, 1]


def test_half_a_character_is_named_and_not_printed(file):
    """A terminal cannot show it, so the message must hold its number."""
    row = json.dumps(PIQA[1]).replace("With heat.", "With \\ud83d heat.")
    with pytest.raises(DataError, match=r"line 2: .*sol1 holds '\\ud83d', one half of") as error:
        load_task("piqa", file(json.dumps(PIQA[0]) + "\n" + row))
    assert str(error.value).isprintable()


def test_a_mark_at_the_beginning_of_a_file_does_no_harm(file):
    """Windows' editors put it there."""
    mark = "\ufeff"
    text = mark + "".join(json.dumps(row) + "\n" for row in PIQA)
    assert load_task("piqa", file(text)).items == PIQA_ITEMS
    bare = [{k: v for k, v in row.items() if k != "label"} for row in PIQA]
    path = file(bare, "valid.jsonl")
    file(mark + "0\r\n1\r\n0\r\n", "valid-labels.lst")
    assert load_task("piqa", path).items == PIQA_ITEMS
    marked, plain = (file(start + "A text.\n", f"{len(start)}.txt") for start in (mark, ""))
    assert load_task("wikitext2", marked).sha256 == load_task("wikitext2", plain).sha256


def test_a_label_in_a_file_of_its_own_is_named_by_that_files_line(file):
    path = file([{"goal": "g", "sol1": "a", "sol2": "b"}] * 3, "valid.jsonl")
    file("0\n\nsecond\n1\n", "valid-labels.lst")
    with pytest.raises(DataError, match=r"valid-labels.lst, line 3: label is 'second'; expected"):
        load_task("piqa", path)


ROWS = "".join(json.dumps(row) + "\n" for row in PIQA)


@pytest.mark.parametrize("task", ["piqa", "wikitext2", "wikitext2-words"])
@pytest.mark.parametrize(
    ("content", "says"),
    [
        (ROWS.encode("utf-16"), "it is in UTF-16 or UTF-32; save it in UTF-8"),
        (ROWS.encode("utf-16-le"), "it holds bytes of value 0, as UTF-16 does"),
        (b"\xfe\xff" + ROWS.encode("utf-16-be"), "it is in UTF-16; save it in UTF-8"),
        (ROWS.encode("utf-32"), "it is in UTF-16 or UTF-32; save it in UTF-8"),
        (gzip.compress(ROWS.encode()), "it is compressed with gzip; unpack it first"),
        (bz2.compress(ROWS.encode()), "it is compressed with bzip2; unpack it first"),
        (lzma.compress(ROWS.encode()), "it is compressed with xz; unpack it first"),
        (b"PK\x03\x04" + bytes(30), "it is a zip archive; unpack it first"),
        (b"PAR1" + bytes(30) + b"PAR1", "it is a Parquet file; write it as JSONL"),
        (b"version https://git-lfs.github.com/spec/v1\noid", "it is a pointer of Git LFS"),
        (b"\n<!DOCTYPE html>\n<html>", "it is a web page; fetch the file itself"),
    ],
    ids=lambda value: str(value)[-30:],
)
def test_a_file_that_is_no_text_is_refused_with_what_it_is(file, task, content, says):
    with pytest.raises(DataError, match=f"items.jsonl cannot be read as a text: {says}"):
        load_task(task, file(content))


@pytest.mark.parametrize("name", ["piqa", "wikitext2"])
def test_a_file_that_is_not_there_or_is_a_folder_is_named(tmp_path, name):
    with pytest.raises(DataError, match=r"missing\.txt cannot be read as a text: .*No such file"):
        load_task(name, tmp_path / "missing.txt")
    with pytest.raises(DataError, match="cannot be read as a text: it is a folder; name a file"):
        load_task(name, tmp_path)


def test_a_text_that_is_not_utf8_is_named(file):
    with pytest.raises(DataError, match=r"old\.txt cannot be read as a text: .*utf-8"):
        load_task("wikitext2", file("Grüße".encode("latin-1"), "old.txt"))


def test_a_path_may_begin_at_home(file, monkeypatch):
    path = file(PIQA)
    monkeypatch.setenv("HOME", str(path.parent))
    monkeypatch.setenv("USERPROFILE", str(path.parent))
    assert load_task("piqa", "~/items.jsonl").items == PIQA_ITEMS
    assert load_task("wikitext2", "~/items.jsonl").text


def test_an_unknown_task_is_refused_with_the_known_ones():
    with pytest.raises(DataError, match=r"no task 'piqua'; there are piqa, hellaswag, wikitext2"):
        load_task("piqua")
    assert tasks.TASKS == (
        "piqa",
        "hellaswag",
        "wikitext2",
        "wikitext2-words",
        "course-text",
        "everyday-physics",
    )


# HellaSwag, cleaned as in lm-evaluation-harness: the expected strings are its output.


@pytest.mark.parametrize(
    ("activity", "first", "second", "expected"),
    [
        (
            "Roof shingle removal",
            "A man is sitting on a roof.",
            "he",
            "Roof shingle removal: A man is sitting on a roof. He",
        ),
        (
            "Food and Entertaining",
            "[header] How to cook rice [title] Wash it. [step] Rinse  twice.",
            "",
            "Food and Entertaining: How to cook rice. Wash it. Rinse twice.",
        ),
        ("Surfing", "One   wave.", "a Boy Rides", "Surfing: One  wave. A boy rides"),
        ("  Talk", "Two [sub]steps [x] end [y]", "", "Talk: Two steps end "),
    ],
)
def test_a_hellaswag_context_is_cleaned_as_in_the_harness(file, activity, first, second, expected):
    row = {**HELLASWAG, "activity_label": activity, "ctx_a": first, "ctx_b": second}
    items = load_task("hellaswag", file([row, HELLASWAG])).items
    assert items[0].context == expected
    assert items[0].label == 3


def test_hellaswag_endings_are_cleaned_as_in_the_harness(file):
    endings = [
        " plain. ",
        "Stir [title]Serve [title] Eat",
        "[step] Wait  here. [substeps] Go",
        "a[b]c[d]e",
    ]
    items = load_task("hellaswag", file([{**HELLASWAG, "endings": endings}, HELLASWAG])).items
    assert items[0].choices == ("plain.", "Stir. Serve. Eat", " Wait here. Go", "ace")
    assert items[1].choices == tuple(HELLASWAG["endings"])


def test_an_ending_of_brackets_alone_is_empty(file):
    endings = ["one", "two", "[step]", "four"]
    with pytest.raises(DataError, match="line 2: an empty choice"):
        load_task("hellaswag", file([HELLASWAG, {**HELLASWAG, "endings": endings}]))


@pytest.mark.parametrize("label", ["", "4", "-1"])
def test_a_hellaswag_label_that_is_hidden_or_too_large_is_refused(file, label):
    with pytest.raises(DataError, match=r"line 2: (label|a value of an unexpected kind)"):
        load_task("hellaswag", file([HELLASWAG, {**HELLASWAG, "label": label}]))


@pytest.mark.parametrize("endings", ["['a', 'b', 'c', 'd']", "abcd", [], ["a"], None, {"a": "b"}])
def test_endings_that_are_no_list_of_texts_are_refused_by_name(file, endings):
    with pytest.raises(DataError, match=r"line 2: .*\(endings is .*; expected a list of at least"):
        load_task("hellaswag", file([HELLASWAG, {**HELLASWAG, "endings": endings}]))
    with pytest.raises(DataError, match=r"line 2: .*\(endings is 5; expected a text"):
        load_task("hellaswag", file([HELLASWAG, {**HELLASWAG, "endings": ["a", 5, "c", "d"]}]))


def test_an_item_knows_its_line(file):
    text = "\n" + json.dumps(PIQA[0]) + "\n\n" + json.dumps(PIQA[1]) + "\n"
    items = load_task("piqa", file(text)).items
    assert [item.where for item in items] == ["items.jsonl, line 2", "items.jsonl, line 4"]


# Texts


def test_words_of_wikitext_are_joined_again():
    spaced = " a guest @-@ star paid 1 @,@ 000 or 2 @.@ 5 to <unk> and Robert <unk> \n @ - @ \n"
    assert tasks.plain_text(spaced) == " a guest-star paid 1,000 or 2.5 to and Robert \n @ - @ \n"


def test_no_unknown_word_is_left_beside_another_or_a_hyphen():
    assert tasks.plain_text(" by <unk> <unk> <unk> , and <unk> <unk> \n") == " by , and \n"
    assert tasks.plain_text(" Neo @-@ <unk> is <unk> @-@ like \n") == " Neo-is-like \n"


RAW = " \n = Robert Boulter = \n \n He had a guest @-@ star role in <unk> 2000 . \n" + 2000 * "a "
WORDS = " \n = Robert <unk> = \n \n He had a guest @-@ star role . \n a\u2028b \n"


def rows_of(path):
    """As the builder of `datasets` makes them: it goes over the lines of an open file."""
    with path.open(encoding="utf-8") as lines:
        return datasets.Dataset.from_dict({"text": [x if x.strip() else "" for x in lines]})


def test_the_raw_text_is_joined_as_in_the_fields_guide_and_nothing_replaced(file):
    path = file(RAW, "wiki.test.raw")
    task = load_task("wikitext2", path)
    assert task.name == "wikitext2" and task.source == "wiki.test.raw" and task.items == ()
    assert task.text == "\n\n".join(rows_of(path)["text"])
    assert task.text.startswith(
        "\n\n = Robert Boulter = \n\n\n\n\n He had a guest @-@ star role in <unk>"
    )


def test_the_word_level_text_is_plain_and_has_a_name_of_its_own(file):
    task = load_task("wikitext2-words", file(WORDS, "test.txt"))
    assert (task.name, task.source, task.items) == ("wikitext2-words", "test.txt", ())
    assert task.text == " \n = Robert = \n \n He had a guest-star role . \n a\u2028b \n"
    assert load_task("wikitext2", file(WORDS, "test.txt")) == task


def test_the_raw_text_is_refused_as_the_word_level_one(file):
    with pytest.raises(
        DataError, match=r"test.raw is not a word-level text .* its task is wikitext2$"
    ):
        load_task("wikitext2-words", file(RAW, "test.raw"))


@pytest.mark.parametrize(("name", "text"), [("wikitext2", RAW), ("wikitext2-words", WORDS)])
@pytest.mark.parametrize("change", [str, lambda text: text.replace("\n", "\r\n")])
def test_hub_and_file_give_the_same_text(file, hub, name, text, change):
    path = file(change(text), "test.txt")
    asked = hub(rows_of(path))
    from_hub, from_file = load_task(name), load_task(name, path)
    assert from_hub.text == from_file.text and from_hub.sha256 == from_file.sha256
    config = {"wikitext2": "wikitext-2-raw-v1", "wikitext2-words": "wikitext-2-v1"}[name]
    assert asked[0] == (
        ("Salesforce/wikitext", config),
        {"split": "test", "revision": None},
    )


def test_a_lesson_says_that_a_file_is_the_other_text(file, capsys):
    assert available_task("wikitext2", file(WORDS, "test.txt")).name == "wikitext2-words"
    said = capsys.readouterr().out
    assert said == (
        "test.txt holds <unk> for rare words: the task is wikitext2-words, not wikitext2\n"
    )


# What was read has a hash


def test_equal_content_has_an_equal_hash_whatever_the_file(file):
    inside = load_task("piqa", file(PIQA, "one.jsonl"))
    file("0 1 0", "two-labels.lst")
    bare = [{k: v for k, v in row.items() if k != "label"} for row in PIQA]
    beside = load_task("piqa", file(bare, "two.jsonl"))
    assert inside.sha256 == beside.sha256
    text = load_task("wikitext2", file("a\n \nb", "one.txt"))
    assert text.sha256 == load_task("wikitext2", file("a\n\nb", "two.txt")).sha256


@pytest.mark.parametrize(
    "change", [{"label": 0}, {"goal": "How?"}, {"sol1": "With ice."}, {"sol2": "With ice."}]
)
def test_any_other_content_has_another_hash(file, change):
    before = load_task("piqa", file(PIQA)).sha256
    assert load_task("piqa", file([PIQA[0], {**PIQA[1], **change}, PIQA[2]])).sha256 != before
    assert load_task("piqa", file(PIQA), limit=2).sha256 != before
    assert load_task("piqa", file(PIQA[::-1])).sha256 != before


def test_another_text_has_another_hash(file):
    one, two = (load_task("wikitext2", file(text, f"{text}.txt")) for text in "ab")
    assert one.sha256 != two.sha256


# What travels with the package


def test_everyday_physics_is_forty_distinct_items_half_of_them_of_either_label():
    task = load_task("everyday-physics")
    assert task.source == "the package"
    assert len(task.items) == 40
    assert sum(item.label for item in task.items) == 20
    assert {len(item.choices) for item in task.items} == {2}
    assert len({item.context for item in task.items}) == 40
    assert len({choice for item in task.items for choice in item.choices}) == 80
    for item in task.items:
        text = item.context + "".join(item.choices)
        assert text.isascii()
        assert item.context.startswith("Question: ") and item.context.endswith("?\nAnswer:")
        assert all(choice == choice.strip() for choice in item.choices)


def test_an_installed_package_holds_every_file_of_the_data_folder():
    package = Path(tasks.__file__).parents[1]
    project = tomllib.loads((package.parents[1] / "pyproject.toml").read_text())
    patterns = project["tool"]["setuptools"]["package-data"]["llama_int8"]
    files = {
        p for p in package.glob("data/**/*") if p.is_file() and p.suffix not in (".py", ".pyc")
    }
    assert files == {p for pattern in patterns for p in package.glob(pattern)} & files


def test_in_everyday_physics_neither_length_nor_order_gives_the_answer_away():
    items = load_task("everyday-physics").items
    lengths = [[len(choice) for choice in item.choices] for item in items]
    for pick in (min, max):
        right = sum(row[item.label] == pick(row) for row, item in zip(lengths, items, strict=True))
        assert 12 <= right <= 28, "within two standard errors of chance, and what ties add"
    labels = "".join(str(item.label) for item in items)
    assert "00000" not in labels and "11111" not in labels


def test_the_limit_holds_for_the_packages_items_and_not_for_its_text():
    assert len(load_task("everyday-physics", limit=5).items) == 5
    assert load_task("course-text", limit=5).text == evaluation_text()


@pytest.mark.parametrize("name", ["everyday-physics", "course-text"])
def test_a_file_for_what_the_package_holds_is_refused_and_not_ignored(file, name):
    with pytest.raises(DataError, match=f"{name} is in the package and takes no file"):
        load_task(name, file(PIQA))


# The hub


def test_items_from_the_hub_are_asked_for_by_split_and_revision(hub):
    asked = hub(datasets.Dataset.from_list(PIQA))
    task = load_task("piqa")
    assert task == Task("piqa", "baber/piqa, validation", None, PIQA_ITEMS)
    revision = "142f6d7367fd9877f0fb3b5734ea6a545f54cdd1"
    assert asked == [(("baber/piqa", None), {"split": "validation", "revision": revision})]


def test_hellaswag_from_the_hub(hub):
    asked = hub(datasets.Dataset.from_list([HELLASWAG] * 3))
    task = load_task("hellaswag", limit=2)
    assert [item.label for item in task.items] == [3, 3]
    revision = "218ec52e09a7e7462a5400043bb9a69a41d06b76"
    assert asked == [(("Rowan/hellaswag", None), {"split": "validation", "revision": revision})]


def test_a_text_from_the_hub_is_joined_by_empty_lines(hub):
    lines = ["", " = Title = \n", "", " A guest @-@ star . \n"]
    asked = hub(datasets.Dataset.from_dict({"text": lines}))
    task = load_task("wikitext2")
    assert task.source == "Salesforce/wikitext, test"
    assert task.text == "\n\n = Title = \n\n\n\n\n A guest @-@ star . \n"
    (names, options) = asked[0]
    assert names == ("Salesforce/wikitext", "wikitext-2-raw-v1")
    assert options["split"] == "test"


def test_a_row_of_the_hub_that_cannot_be_scored_is_named(hub):
    hub(datasets.Dataset.from_list([*PIQA[:2], {**PIQA[2], "label": -1}]))
    with pytest.raises(DataError, match=r"baber/piqa, row 2: label -1.*labels are hidden"):
        load_task("piqa")


@pytest.mark.parametrize("name", ["piqa", "hellaswag", "wikitext2"])
def test_columns_that_the_hub_renamed_are_named(hub, name):
    hub(datasets.Dataset.from_dict({"other": ["a", "b"], "label": [0, 1]}))
    with pytest.raises(DataError, match=r"has no column .* any more; there are other, label"):
        load_task(name)


@pytest.mark.parametrize(
    "error",
    [
        AWAY,
        DatasetNotFoundError("Dataset 'x' is a gated dataset on the Hub. Visit its page."),
        ValueError("Unknown split \"validation\". Should be one of ['train']."),
        OSError(),
    ],
    ids=["away", "gated", "no such split", "without a reason"],
)
def test_whatever_the_hub_raises_the_way_out_is_named(hub, error):
    hub(error)
    with pytest.raises(DataError) as caught:
        load_task("piqa")
    message = str(caught.value)
    first_line = (str(error) or "no reason given").splitlines()[0]
    assert (
        f"baber/piqa cannot be had from the hub ({type(error).__name__}: {first_line})" in message
    )
    assert "Name a local file, or take a task of the package: course-text, everyday-physics" in (
        message
    )
    assert "\n" not in message


@pytest.mark.slow
def test_offline_the_real_library_is_not_waited_for(tmp_path):
    """A fresh process, because the library reads its environment when it is imported."""
    code = (
        "from llama_int8.errors import DataError\n"
        "from llama_int8.evaluation.tasks import available_task, load_task\n"
        "for name in ('piqa', 'hellaswag', 'wikitext2'):\n"
        "    try:\n"
        "        load_task(name)\n"
        "    except DataError as error:\n"
        "        print(error)\n"
        "print(available_task('piqa').name, available_task('wikitext2').name)\n"
    )
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("HF_", "HUGGING"))}
    environment |= {"HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path)}
    environment["PYTHONPATH"] = str(Path(tasks.__file__).parents[2])
    done = subprocess.run(
        [sys.executable, "-c", code],
        env=environment,
        capture_output=True,
        text=True,
        timeout=100,
        check=True,
    )
    lines = done.stdout.splitlines()
    for line, repository in zip(
        lines, ("baber/piqa", "Rowan/hellaswag", "Salesforce/wikitext"), strict=False
    ):
        assert line.startswith(f"{repository} cannot be had from the hub (ConnectionError: ")
    assert lines[-1] == "everyday-physics course-text"


@pytest.mark.parametrize(
    ("name", "own"),
    [
        ("piqa", "everyday-physics"),
        ("hellaswag", "everyday-physics"),
        ("wikitext2", "course-text"),
        ("wikitext2-words", "course-text"),
    ],
)
def test_a_lesson_goes_on_with_the_packages_own_and_says_so(hub, capsys, name, own):
    hub(AWAY)
    assert available_task(name, limit=3) == load_task(own, limit=3)
    said = capsys.readouterr().out
    assert "cannot be had from the hub" in said
    assert f"This run goes on with {own}, which travels with the package." in said


def test_a_lesson_takes_what_the_hub_has(hub, capsys):
    hub(datasets.Dataset.from_list(PIQA))
    assert available_task("piqa", limit=2).items == PIQA_ITEMS[:2]
    assert capsys.readouterr().out == ""


def test_a_file_that_was_named_is_never_replaced(hub, tmp_path, file):
    hub(AWAY)
    assert available_task("piqa", file(PIQA)).items == PIQA_ITEMS
    with pytest.raises(DataError, match="cannot be read"):
        available_task("piqa", tmp_path / "missing.jsonl")
    with pytest.raises(DataError, match="no task 'piqua'"):
        available_task("piqua")
