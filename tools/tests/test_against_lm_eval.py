"""lm-evaluation-harness itself judges our scoring: its own command, on the same items and model.

PIQA and HellaSwag are the tasks that come with the harness, down to the wording; only their data
are ours. So reading, wording, tokenizing, scoring and picking are all held against it.
"""

import hashlib
import json
import os
import re
import subprocess
import sys
from dataclasses import dataclass, replace
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from byte_tokenizer import byte_tokenizer
from tiny_llama import tiny_llama

from common import STATE, TOOLS
from llama_int8 import load_model, load_tokenizer
from llama_int8.evaluation import loglikelihood, wrong_rules
from llama_int8.evaluation.tasks import SOURCES, Item, load_task
from llama_int8.files import build_once
from llama_int8.models.embedded import embedded_folder

PINS = Path(__file__).with_name("lm_eval.txt")
METRICS = ("acc", "acc_norm", "acc_bytes")

# Both sides compute in FP32, which rounds by 2^-24 = 6e-8 of a number. About ten roundings follow
# one another in each of thirty layers: 2e-5 in all, where none cancel. A short choice is allowed
# 1e-4: its log-likelihood may be the small difference of a logit and the log of a sum, near 20 both.
RTOL, ATOL = 2e-5, 1e-4

AWKWARD_PIQA = [
    (
        "How?",
        "Yes",
        "By heating the water slowly in a covered pot until it begins to boil. " * 3,
        1,
    ),
    ("Which letter comes first", "A", "B", 0),
    ("Wie heißt „Wärme“ auf Französisch? 🤔", "la chaleur 🔥", "熱さ、または温度", 0),
    ("A line\nends here, and a space too ", " begins with a space", "ends with one ", 1),
    (r"""It's "quoted" \n and {{braced}}""", r"""don't "say" \t""", "{% say %} 50 %", 0),
]
AWKWARD_HELLASWAG = [
    (
        "Food",
        "[header] How to cook rice [title] Wash it. [step] Rinse  twice. [substeps]",  # a last space
        "",
        [" Stir [title]Serve", "[step] Wait  here.", "a[b]c[d]e", "naïve café, 東京 ☕"],
        3,
    ),
    ("Surfing", "One   wave.", "a Boy Rides", ["it.", "off into the sun", "x", " plain. "], 0),
]
AWKWARD = [
    Item("The answer is ", ("yes", "no, not at all"), 1),
    Item("Two lines\n\n", ("a", "b"), 0),
    Item("A tab\t", ("a", "b\n"), 1),
    Item("", ("The sun rises.", "Sun the rises."), 0),
    # A character of several bytes is one character.
    Item("In Greek, one, two, three are", ("ένα, δύο, τρία", "un, deux, trois, quatre"), 0),
]
BORDER = Item("1 + 1 =", ("2", "11"), 0)


def test_whoever_names_the_harness_names_the_tested_version():
    version = re.search("^lm_eval==(.+)$", PINS.read_text(encoding="utf-8"), re.MULTILINE)[1]
    for text in ((TOOLS / "README.md").read_text(encoding="utf-8"), loglikelihood.__doc__):
        assert re.findall(r"lm-evaluation-harness (\d[\d.]*\d)", text) == [version]


def test_installing_the_harness_changes_no_tested_version():
    def versions(path):
        lines = path.read_text(encoding="utf-8").splitlines()
        pairs = (line.split("==") for line in lines if "==" in line)
        return {name.lower().replace("_", "-"): version for name, version in pairs}

    tested, harness = versions(TOOLS / "constraints.txt"), versions(PINS)
    assert len(harness) > 10
    assert {n: v for n, v in harness.items() if n in tested and tested[n] != v} == {}


# --------------------------------------------------------------------------------------------
# The harness' command


@dataclass
class Judged:
    """One item as the harness scored it."""

    scores: list[float]
    acc: bool
    acc_norm: bool
    acc_bytes: bool


def run(*command, **options) -> None:
    done = subprocess.run(
        list(map(str, command)), capture_output=True, text=True, check=False, **options
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]


@pytest.fixture(scope="module")
def lm_eval() -> Path:
    """The folder that the harness is installed in, kept between test runs until its pins change."""
    key = hashlib.sha256((sys.version + PINS.read_text(encoding="utf-8")).encode()).hexdigest()[:8]
    options = ["--quiet", "--no-deps", "--only-binary", ":all:", "--requirement", PINS]
    pip = [sys.executable, "-m", "pip", "install", *options, "--target"]
    return build_once(STATE / f"lm-eval-{key}", lambda folder: run(*pip, folder))


def task_file(name: str, data: Path, lm_eval: Path) -> dict[str, Any]:
    """A task for these data: the harness' own of this name, or a plain one."""
    own = lm_eval / "lm_eval" / "tasks" / name / f"{name}.yaml"
    plain = {"output_type": "multiple_choice", "doc_to_text": "{{context}}"}
    plain |= {"doc_to_choice": "choices", "doc_to_target": "label"}
    return ({"include": str(own)} if own.exists() else plain) | {
        "task": f"our_{name}",
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": str(data)},
        "training_split": None,
        "validation_split": "train",  # what `datasets` calls a file
        "metric_list": [{"metric": metric} for metric in METRICS],
    }


def judge(lm_eval: Path, model: Path, data: dict[str, Path], room: Path) -> dict[str, list[Judged]]:
    """What the command `lm_eval run` finds for every item of these files, by task."""
    for name, path in data.items():
        content = json.dumps(task_file(name, path, lm_eval))
        (room / f"{name}.yaml").write_text(content, encoding="utf-8")
    run(
        *(sys.executable, "-m", "lm_eval", "run", "--device", "cpu", "--batch_size", 8),
        *("--model", "hf", "--model_args", f"pretrained={model},dtype=float32"),
        *("--include_path", room, "--tasks", ",".join(f"our_{name}" for name in data)),
        *("--output_path", room / "out", "--log_samples"),
        cwd=room,
        env=os.environ
        | {"PYTHONPATH": str(lm_eval), "HF_HUB_OFFLINE": "1", "HF_HOME": str(room / "hub")},
    )
    (summary,) = (room / "out").rglob("results_*.json")
    results = json.loads(summary.read_text(encoding="utf-8"))["results"]
    found = {}
    for name in data:
        (samples,) = (room / "out").rglob(f"samples_our_{name}_*.jsonl")
        lines = sorted(_rows(samples), key=lambda line: line["doc_id"])
        found[name] = [
            Judged(
                [float(score) for score, _ in line["filtered_resps"]],
                *(line[metric] == 1 for metric in METRICS),
            )
            for line in lines
        ]
        for metric in METRICS:  # what the harness reports is what it says of its items
            mean = np.mean([getattr(item, metric) for item in found[name]])
            assert results[f"our_{name}"][f"{metric},none"] == pytest.approx(mean)
    return found


def _rows(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").split("\n") if line]


# --------------------------------------------------------------------------------------------
# Both sides


def plain_row(item: Item) -> dict[str, Any]:
    return {"context": item.context, "choices": list(item.choices), "label": item.label}


def write_data(room: Path) -> dict[str, Path]:
    """The files that both sides read, by task."""
    piqa = [dict(zip(SOURCES["piqa"].columns, row, strict=True)) for row in AWKWARD_PIQA]
    columns = SOURCES["hellaswag"].columns
    rows = {
        "piqa": [*_rows(files("llama_int8") / "data" / "everyday_physics.jsonl"), *piqa],
        "hellaswag": [dict(zip(columns, row, strict=True)) for row in AWKWARD_HELLASWAG],
        "plain": [plain_row(item) for item in AWKWARD],
        "border": [plain_row(BORDER)],
    }
    for name, content in rows.items():
        lines = "".join(json.dumps(row) + "\n" for row in content)
        (room / f"{name}.jsonl").write_text(lines, encoding="utf-8")
    return {name: room / f"{name}.jsonl" for name in rows}


def our_items(name: str, path: Path, tokenizer: Any) -> list[Item]:
    """The items of a file; for a task of the course as `evaluate --data` reads them."""
    if name in SOURCES:
        return list(load_task(name, path).items)
    items = AWKWARD if name == "plain" else [BORDER]
    if tokenizer("")["input_ids"]:
        return items
    # Where a tokenizer puts no start token before a text, we refuse an empty context. The harness
    # begins with the start token all the same, so we are asked with it written out.
    return [item if item.context else replace(item, context=tokenizer.bos_token) for item in items]


def with_a_start_token(folder: Path) -> Path:
    """A tiny model with random weights; like Llama's, its tokenizer puts <s> before every text.

    It merges an equals sign and the space after it, across the border of context and choice.
    """
    tokenizer = byte_tokenizer(("=", "Ġ"), start=True)
    tokenizer.bos_token = "<s>"
    tokenizer.save_pretrained(folder)
    model = tiny_llama(
        initializer_range=0.2, vocab_size=len(tokenizer), max_position_embeddings=512
    )
    model.save_pretrained(folder)
    return folder


@dataclass
class Both:
    """One model on both sides: ours, and what the harness found for the same items."""

    model: Any
    tokenizer: Any
    items: dict[str, list[Item]]
    judged: dict[str, list[Judged]]

    def our_scores(self, name: str, pack: loglikelihood.Pack) -> list[list[float]]:
        return loglikelihood.choice_scores(self.model, pack(self.tokenizer, self.items[name]))


@pytest.fixture(scope="module", params=["smollm2-135m", "a start token"])
def both(request, lm_eval, tmp_path_factory) -> Both:
    room = tmp_path_factory.mktemp("judge")
    own = request.param == "a start token"
    folder = with_a_start_token(room / "model") if own else embedded_folder()
    tokenizer = load_tokenizer(str(folder))
    data = write_data(room)
    items = {name: our_items(name, path, tokenizer) for name, path in data.items()}
    model = load_model(str(folder), "fp32", "cpu")
    return Both(model, tokenizer, items, judge(lm_eval, folder, data, room))


def assert_same_scores(ours: list[list[float]], judged: list[Judged]) -> None:
    assert [len(row) for row in ours] == [len(item.scores) for item in judged]
    for row, item in zip(ours, judged, strict=True):
        np.testing.assert_allclose(row, item.scores, rtol=RTOL, atol=ATOL)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["piqa", "hellaswag", "plain"])
def test_every_choice_has_the_log_likelihood_and_every_item_the_verdicts_of_the_harness(both, name):
    ours = both.our_scores(name, loglikelihood.pack_all)
    items, judged = both.items[name], both.judged[name]
    assert_same_scores(ours, judged)
    picked = loglikelihood.picks(ours).tolist()
    assert picked == [int(np.argmax(item.scores)) for item in judged]
    acc = loglikelihood.correct(ours, items, normalized=False).tolist()
    assert acc == [item.acc for item in judged]
    acc_norm = loglikelihood.correct(ours, items, normalized=True).tolist()
    assert acc_norm == [item.acc_norm for item in judged]


@pytest.mark.slow
def test_these_items_tell_the_rules_apart(both):
    """Else equal accuracies would show little: by sum, by character and by byte differ somewhere."""
    items = [item for found in both.judged.values() for item in found]
    assert {item.acc for item in items} == {True, False}
    assert any(item.acc != item.acc_norm for item in items)
    assert any(item.acc_norm != item.acc_bytes for item in items)


@pytest.mark.slow
@pytest.mark.parametrize("rule", wrong_rules.WRONG_RULES)
def test_the_harness_contradicts_each_wrong_rule(both, rule):
    ours = both.our_scores("plain", wrong_rules.WRONG_RULES[rule])
    with pytest.raises(AssertionError):
        assert_same_scores(ours, both.judged["plain"])


@pytest.mark.slow
def test_only_a_token_across_the_border_is_read_otherwise(both):
    """The one difference by design, which tokenizers that split at spaces never show.

    We read the text's own tokens and score those after the merged one. The harness reads the
    context's tokens instead of the merged one: a text without the space that went into it.
    """
    context = both.tokenizer(BORDER.context)["input_ids"]
    n = len(context)
    wholes = [both.tokenizer(f"{BORDER.context} {c}")["input_ids"] for c in BORDER.choices]
    theirs = loglikelihood.Packed(0, context, [whole[n:] for whole in wholes], n)
    judged = both.judged["border"]
    assert_same_scores(loglikelihood.choice_scores(both.model, [theirs]), judged)
    ours = both.our_scores("border", loglikelihood.pack_all)
    if all(whole[:n] == context for whole in wholes):
        assert_same_scores(ours, judged)
    else:
        with pytest.raises(AssertionError):
            assert_same_scores(ours, judged)
