"""`course.py evaluate`, headless: what it records, how it resumes, and one process or several."""

import json
import os
import shutil
import socket
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from byte_tokenizer import byte_tokenizer
from conftest import ROOT
from transformers import LlamaConfig, LlamaForCausalLM

import course as command
from llama_int8.evaluation import loglikelihood, perplexity
from llama_int8.evaluation.evaluate import STRIDE, WINDOW, WITH_INT8_CACHE, Evaluation
from llama_int8.evaluation.resume import Journal, Processes, run_batches
from llama_int8.evaluation.tasks import load_task
from llama_int8.evaluation.wrong_rules import WRONG_RULES
from llama_int8.files import content_hash
from llama_int8.models import load_model, load_tokenizer

TINY = {
    "vocab_size": 258,  # two special tokens and one for each byte
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 2048,
    "initializer_range": 0.2,
}

# Long work in batches


class Interrupted(Exception):
    """Stands for whatever ends a process."""


class Work:
    """Squares a number and remembers the batches; it may break off before one."""

    def __init__(self, until: int | None = None) -> None:
        self.until, self.done = until, []

    def __call__(self, batch: int) -> dict:
        if len(self.done) == self.until:
            raise Interrupted
        self.done.append(batch)
        return {"square": [batch / 7, batch * batch], "of": batch}


BATCHES = [3, 1, 4, 15, 9, 2, 6]
WHOLE = [Work()(batch) for batch in BATCHES]


def test_results_come_in_the_order_of_the_batches():
    work = Work()
    assert run_batches(BATCHES, work, "test") == WHOLE
    assert work.done == BATCHES


@pytest.mark.parametrize("finished", range(len(BATCHES)))
def test_interrupted_work_goes_on_where_it_stopped(tmp_path, finished):
    journal = Journal(tmp_path / "new folder", "test", {"model": "a"})
    with pytest.raises(Interrupted):
        run_batches(BATCHES, Work(until=finished), "test", journal)
    rest = Work()
    assert run_batches(BATCHES, rest, "test", journal) == WHOLE
    assert rest.done == BATCHES[finished:]
    nothing = Work()
    assert run_batches(BATCHES, nothing, "test", journal) == WHOLE
    assert nothing.done == []


def test_a_journal_that_was_cut_off_anywhere_does_no_harm(tmp_path):
    journal = Journal(tmp_path, "test", "about")
    run_batches(BATCHES[:2], Work(), "test", journal)
    (path,) = tmp_path.iterdir()
    whole = path.read_bytes()
    for length in range(len(whole)):
        path.write_bytes(whole[:length])
        again = Work()
        assert run_batches(BATCHES[:2], again, "test", journal) == WHOLE[:2]
        assert again.done or length == len(whole) - 1, "what was cut off is computed again"
        assert journal.read() == dict(enumerate(WHOLE[:2])), "and kept, on a line of its own"


@pytest.mark.parametrize("about", [{"model": "b"}, {"model": "a", "more": 1}, "a", None])
def test_results_of_something_else_are_not_taken(tmp_path, about):
    run_batches(BATCHES, Work(), "test", Journal(tmp_path, "test", {"model": "a"}))
    work = Work()
    assert run_batches(BATCHES, work, "test", Journal(tmp_path, "test", about)) == WHOLE
    assert work.done == BATCHES
    assert Journal(tmp_path, "test", {"model": "a"}).read() == dict(enumerate(WHOLE))


def test_the_order_of_what_results_follow_from_does_not_matter(tmp_path):
    Journal(tmp_path, "test", {"a": 1, "b": 2}).add(0, 5, "kept")
    assert Journal(tmp_path, "test", {"b": 2, "a": 1}).read() == {5: "kept"}
    assert Journal(tmp_path, "other", {"a": 1, "b": 2}).read() == {}


def test_the_files_of_all_processes_are_read(tmp_path):
    journal = Journal(tmp_path, "test", "about")
    journal.add(0, 0, 1.5)
    journal.add(1, 1, [2, None])
    journal.add(0, 2, "three")
    assert len(list(tmp_path.iterdir())) == 2
    assert journal.read() == {0: 1.5, 1: [2, None], 2: "three"}


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_what_is_no_number_is_not_kept(tmp_path, value):
    journal = Journal(tmp_path, "test", "about")
    with pytest.raises(ValueError, match="JSON"):
        run_batches([1], lambda _: [value], "test", journal)
    assert journal.read() == {}


class Together:
    """Several processes, played by threads of this one."""

    def __init__(self, count: int) -> None:
        self.count, self.shelf, self.barrier = count, {}, threading.Barrier(count, timeout=20)

    def process(self, number: int) -> SimpleNamespace:
        def gather(entries):
            self.shelf[number] = entries
            self.barrier.wait()
            return [entry for n in range(self.count) for entry in self.shelf[n]]

        return SimpleNamespace(number=number, count=self.count, first=number == 0, gather=gather)

    def run(self, works, journal=None):
        """What each process gets for the batches."""
        with ThreadPoolExecutor(self.count) as pool:
            futures = [
                pool.submit(run_batches, BATCHES, work, "test", journal, self.process(number))
                for number, work in enumerate(works)
            ]
            return [future.result() for future in futures]


@pytest.mark.parametrize("count", [1, 2, 3, 8])
def test_every_process_does_its_share_and_has_every_result(tmp_path, count):
    works = [Work() for _ in range(count)]
    journal = Journal(tmp_path, "test", "about")
    assert Together(count).run(works, journal) == [WHOLE] * count
    assert [work.done for work in works] == [BATCHES[n::count] for n in range(count)]
    assert journal.read() == dict(enumerate(WHOLE))


def test_work_that_one_process_began_several_may_end_and_the_other_way_round(tmp_path):
    journal = Journal(tmp_path, "test", "about")
    with pytest.raises(Interrupted):
        run_batches(BATCHES, Work(until=3), "test", journal)
    works = [Work(), Work()]
    assert Together(2).run(works, journal) == [WHOLE, WHOLE]
    assert sorted(works[0].done + works[1].done) == sorted(BATCHES[3:])
    alone = Work()
    assert run_batches(BATCHES, alone, "test", journal) == WHOLE
    assert alone.done == []


def test_one_process_needs_nobody(monkeypatch):
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    one = Processes("cuda")
    assert (one.number, one.count, one.first) == (0, 1, True)
    assert one.gather([1, 2]) == [1, 2]
    assert one.own_device("auto") == "auto"


def test_each_of_several_processes_takes_a_gpu_of_its_own():
    second = Processes()
    second.number, second.count = 5, 8
    second._state = SimpleNamespace(local_process_index=1)  # the second on its machine
    assert second.own_device("cuda") == second.own_device("auto") == "cuda:1"
    assert second.own_device("cpu") == "cpu"
    assert not second.first


# The command


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> str:
    """A model of random weights with a tokenizer of bytes, saved."""
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("model") / "tiny-bytes"
    LlamaForCausalLM(LlamaConfig(**TINY)).save_pretrained(path)
    byte_tokenizer().save_pretrained(path)
    return str(path)


@pytest.fixture
def evaluate(monkeypatch, folder, tmp_path):
    """Run the command in this process, inside the environment; results go into `tmp_path`."""
    monkeypatch.setenv("COURSE_ACTIVE", str(ROOT))
    monkeypatch.delenv("WORLD_SIZE", raising=False)

    def run(*arguments, model=folder, out=tmp_path):
        fixed = ["--model", model, "--device", "cpu", *(["--out", str(out)] if out else [])]
        return command.main(["evaluate", *fixed, *arguments])

    return run


def results_of(out, task):
    (path,) = out.glob(f"results/*/{task}@tiny-bytes-*.json")
    return json.loads(path.read_text())


def without_timings(content):
    kept = {n: m for n, m in content["measurements"].items() if m["kind"] != "timing"}
    assert len(kept) < len(content["measurements"])
    return {**content, "measurements": kept}


def values(content):
    return {name: m["value"] for name, m in content["measurements"].items()}


@torch.no_grad()
def log_likelihoods(model, tokens):
    """Of every token but the first, in a pass over these tokens alone, in float64."""
    log_p = model(torch.tensor([tokens])).logits[0, :-1].double().log_softmax(-1)
    return log_p[range(len(tokens) - 1), tokens[1:]].numpy()


CHOICE_NAMES = {f"{rule}.{p}" for rule in ("acc", "acc_norm") for p in ("fp32", "int8")} | {
    f"{rule}_{what}.int8"
    for rule in ("acc", "acc_norm")
    for what in ("difference", "smallest_detectable", "lost", "won", "mcnemar")
}
TEXT_NAMES = {f"{what}.{p}" for what in ("perplexity", "bits_per_byte") for p in ("fp32", "int8")}
TEXT_NAMES |= {f"{n}.int8" for n in ("nll_difference", "smallest_detectable", "kl", "agreement")}
SECONDS = {"seconds.fp32", "seconds.int8"}
RIGHT = {"right answer.1", "right answer.2"}


def test_accuracy_is_that_of_every_choice_in_a_pass_of_its_own(evaluate, folder, tmp_path):
    assert evaluate("--task", "everyday-physics", "--precision", "fp32,int8") == 0
    content = results_of(tmp_path, "everyday-physics")
    found = values(content)
    assert found.keys() == CHOICE_NAMES | SECONDS | RIGHT
    task = load_task("everyday-physics")
    assert content["settings"]["data"] == "the package"
    assert content["settings"]["sha256"] == task.sha256
    assert content["settings"]["items"] == content["measurements"]["acc.fp32"]["n"] == 40

    tokenizer = load_tokenizer(folder)
    model = load_model(folder, "fp32", "cpu")
    scores = [
        [
            log_likelihoods(model, tokenizer(f"{item.context} {choice}")["input_ids"])[
                len(tokenizer(item.context)["input_ids"]) - 1 :
            ].sum()
            for choice in item.choices
        ]
        for item in task.items
    ]
    labels = np.array([item.label for item in task.items])
    lengths = np.array([[len(choice) for choice in item.choices] for item in task.items])
    full = {
        "acc": np.argmax(scores, 1) == labels,
        "acc_norm": np.argmax(scores / lengths, 1) == labels,
    }
    rows = loglikelihood.pack_all(tokenizer, task.items)
    scores = loglikelihood.choice_scores(load_model(folder, "int8", "cpu"), rows)
    int8 = {rule: loglikelihood.correct(scores, task.items, rule == "acc_norm") for rule in full}
    for rule, right in full.items():
        assert found[f"{rule}.fp32"] == pytest.approx(100 * right.mean())
        assert found[f"{rule}.int8"] == pytest.approx(100 * int8[rule].mean())
        assert found[f"{rule}_lost.int8"] == (right & ~int8[rule]).sum()
        assert found[f"{rule}_won.int8"] == (~right & int8[rule]).sum()


def test_perplexity_is_that_of_strided_windows(evaluate, folder, tmp_path):
    limit = 3
    options = ["--task", "course-text", "--precision", "fp32,int8", "--limit", str(limit)]
    assert evaluate(*options) == 0
    content = results_of(tmp_path, "course-text")
    found = values(content)
    assert found.keys() == TEXT_NAMES | SECONDS
    assert content["settings"]["windows"] == limit
    assert content["measurements"]["perplexity.fp32"]["n"] == limit * STRIDE

    tokens = load_tokenizer(folder)(load_task("course-text").text)["input_ids"]
    for precision in ("fp32", "int8"):
        model = load_model(folder, precision, "cpu")
        cut = [tokens[n * STRIDE : n * STRIDE + WINDOW] for n in range(limit)]
        nll = -np.stack([log_likelihoods(model, window)[-STRIDE:] for window in cut])
        assert found[f"perplexity.{precision}"] == pytest.approx(np.exp(nll.mean()), rel=1e-5)
        # A token is a byte here, and the course's text is ASCII.
        bits = nll.mean() / np.log(2)
        assert found[f"bits_per_byte.{precision}"] == pytest.approx(bits, rel=1e-5)


def test_without_a_choice_the_devices_16_bit_format_is_compared_with_int8(evaluate, tmp_path):
    assert evaluate("--task", "everyday-physics,course-text", "--limit", "3") == 0
    physics = results_of(tmp_path, "everyday-physics")
    assert physics["measurements"]["acc.bf16"]["n"] == 3
    assert physics["settings"]["precisions"] == ["bf16", "int8"]
    assert "acc_norm_difference.int8" in physics["measurements"]
    assert "kl.int8" in results_of(tmp_path, "course-text")["measurements"]


def test_differences_are_against_16_bit_wherever_it_was_named(evaluate, tmp_path):
    options = ["--task", "everyday-physics", "--limit", "4", "--precision", "int8,fp32,bf16"]
    assert evaluate(*options) == 0
    found = values(results_of(tmp_path, "everyday-physics"))
    differences = {name for name in found if name.startswith("acc_difference.")}
    assert differences == {"acc_difference.int8", "acc_difference.fp32"}


def test_wrong_rules_are_recorded_on_demand_in_one_precision(evaluate, folder, tmp_path):
    options = ["--task", "everyday-physics", "--precision", "fp32,int8"]
    assert evaluate(*options, "--wrong-rules") == 0
    content = results_of(tmp_path, "everyday-physics")
    names = {f"wrong_rule.{rule}" for rule in WRONG_RULES}
    assert values(content).keys() == CHOICE_NAMES | SECONDS | RIGHT | names
    tokenizer, model = load_tokenizer(folder), load_model(folder, "fp32", "cpu")
    items = load_task("everyday-physics").items
    for rule, pack in WRONG_RULES.items():
        entry = content["measurements"][f"wrong_rule.{rule}"]
        right = loglikelihood.correct(
            loglikelihood.choice_scores(model, pack(tokenizer, items)), items, False
        )
        assert entry["value"] == pytest.approx(100 * right.mean())
        assert entry["n"] == 40
        assert 0 <= entry["low"] <= entry["value"] <= entry["high"] <= 100


def test_numbers_and_the_path_of_the_file_are_shown(evaluate, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    options = ["--task", "everyday-physics", "--precision", "fp32", "--limit", "4"]
    assert evaluate(*options) == 0
    *lines, path = capsys.readouterr().out.splitlines()
    assert any(line.startswith("acc_norm.fp32") and "n = 4" in line for line in lines)
    assert json.loads((tmp_path / path).read_text())["notebook"] == "everyday-physics"


FROM_A_FILE = [
    {"goal": f"Question {n}?", "sol1": f"Answer {n}.", "sol2": "None.", "label": n % 2}
    for n in range(5)
]


@pytest.mark.parametrize("form", ["{}", "piqa={}"])
def test_items_come_from_a_local_file(evaluate, tmp_path, form):
    file = tmp_path / "valid.jsonl"
    file.write_text("\n".join(map(json.dumps, FROM_A_FILE)))
    options = ["--task", "piqa", "--precision", "fp32", "--data", form.format(file)]
    assert evaluate(*options) == 0
    content = results_of(tmp_path, "piqa")
    assert content["measurements"]["acc.fp32"]["n"] == 5
    assert content["settings"]["data"] == "valid.jsonl"
    assert str(tmp_path) not in json.dumps(content), "a path is nobody else's business"


def test_a_file_that_was_changed_is_scored_again(evaluate, tmp_path):
    file = tmp_path / "valid.jsonl"
    options = ["--task", "piqa", "--precision", "fp32", "--data", str(file)]
    found = []
    for out in ("one", "one", "other"):
        content = FROM_A_FILE[1:] if found else FROM_A_FILE[:4]  # the labels are other ones
        file.write_text("\n".join(map(json.dumps, content)))
        assert evaluate(*options, out=tmp_path / out) == 0
        found.append(sorted((tmp_path / out).glob("stages/*/*.jsonl")))
    assert len(found[0]) == 1
    assert found[0][0].read_text() != found[2][0].read_text()
    assert len(found[1]) == 2, "both are kept"
    assert without_timings(results_of(tmp_path / "one", "piqa")) == without_timings(
        results_of(tmp_path / "other", "piqa")
    )


def test_each_task_takes_its_own_file():
    given, tasks = ["wikitext2=a=b.txt", "piqa=valid.jsonl"], ["piqa", "wikitext2", "hellaswag"]
    assert command.data_files(given, tasks) == {"piqa": "valid.jsonl", "wikitext2": "a=b.txt"}
    assert command.data_files([], tasks) == {}


# A number belongs to the model that was really scored


def weights(folder, seed, **changes):
    """Random weights of this seed in a folder with a tokenizer; as if it had been trained on."""
    torch.manual_seed(seed)
    LlamaForCausalLM(LlamaConfig(**{**TINY, **changes})).save_pretrained(folder)
    byte_tokenizer().save_pretrained(folder)
    return str(folder)


FEW = ["--task", "everyday-physics", "--precision", "fp32", "--limit", "6"]


def all_results(out, task="everyday-physics"):
    found = [json.loads(path.read_text()) for path in out.glob(f"results/*/{task}@*.json")]
    return {content["model"]: without_timings(content) for content in found}


def test_weights_that_changed_in_the_same_folder_are_scored_anew(evaluate, tmp_path, capsys):
    mine = tmp_path / "mine"
    for seed in (0, 1):
        assert evaluate(*FEW, model=weights(mine, seed)) == 0
        assert "kept from an earlier run" not in capsys.readouterr().out
    truth = tmp_path / "truth"
    assert evaluate(*FEW, model=weights(tmp_path / "copy" / "mine", 1), out=truth) == 0
    found = all_results(tmp_path)
    assert len(found) == 2, "each state of the folder has a file of its own"
    for name, content in all_results(truth).items():
        assert found[name] == content


def test_the_same_model_in_another_folder_is_not_computed_again_and_said(
    evaluate, tmp_path, capsys
):
    assert evaluate(*FEW, model=weights(tmp_path / "mine", 0)) == 0
    shutil.move(tmp_path / "mine", tmp_path / "renamed")
    assert evaluate(*FEW, model=str(tmp_path / "renamed")) == 0
    said = capsys.readouterr().out
    assert "everyday-physics, fp32: 1 of 1 batches were kept from an earlier run" in said


def test_the_same_data_in_another_file_is_not_computed_again(evaluate, tmp_path, capsys):
    for name in ("one.jsonl", "two.jsonl"):
        (tmp_path / name).write_text("\n".join(map(json.dumps, FROM_A_FILE)))
        options = ["--task", "piqa", "--precision", "fp32", "--data", str(tmp_path / name)]
        assert evaluate(*options) == 0
    assert "1 of 1 batches were kept" in capsys.readouterr().out
    assert results_of(tmp_path, "piqa")["settings"]["data"] == "two.jsonl"


@pytest.mark.parametrize("file", ["tokenizer_config.json", "generation_config.json", "config.json"])
def test_any_other_file_of_a_model_counts_too(evaluate, tmp_path, file):
    mine = Path(weights(tmp_path / "mine", 0))
    assert evaluate(*FEW, model=str(mine)) == 0
    content = json.loads((mine / file).read_text())
    (mine / file).write_text(json.dumps({**content, "more": 1}))
    assert evaluate(*FEW, model=str(mine)) == 0
    assert len(list(tmp_path.glob("stages/*/*.jsonl"))) == 2


def test_a_folder_cannot_take_a_registered_models_place(evaluate, tmp_path):
    assert evaluate(*FEW, model=weights(tmp_path / "smollm2-135m", 0)) == 0
    (name,) = all_results(tmp_path)
    assert name.startswith("smollm2-135m (folder ")
    assert not list(tmp_path.glob("results/*/*@smollm2-135m.json"))


def test_a_model_that_changes_while_it_is_evaluated_is_an_error_and_leaves_nothing(
    evaluate, tmp_path, capsys, monkeypatch
):
    mine = weights(tmp_path / "mine", 0)
    right = loglikelihood.score_batch

    def score_while_training_goes_on(*arguments):
        weights(mine, 1)
        return right(*arguments)

    monkeypatch.setattr(loglikelihood, "score_batch", score_while_training_goes_on)
    assert evaluate(*FEW, model=mine) == 1
    message = capsys.readouterr().err.splitlines()[-1]
    assert message.startswith("error: the files of mine (folder ")
    assert "changed while they were measured" in message
    assert not [path for name in ("results", "stages") for path in tmp_path.glob(f"{name}/*/*")]


# What an earlier file holds


def test_precisions_that_are_not_measured_again_stay_in_the_file(evaluate, tmp_path, capsys):
    options = ["--task", "everyday-physics", "--limit", "6", "--precision"]
    assert evaluate(*options, "bf16,fp32,int8", "--wrong-rules") == 0
    whole = results_of(tmp_path, "everyday-physics")
    assert "stay in" not in capsys.readouterr().out
    assert evaluate(*options, "bf16,int8") == 0
    stay = ", ".join(sorted(["fp32", *WRONG_RULES]))
    assert f"earlier results of {stay} stay in everyday-physics@tiny-bytes-" in (
        capsys.readouterr().out
    )
    assert without_timings(results_of(tmp_path, "everyday-physics")) == without_timings(whole)
    assert evaluate(*options, "fp32") == 0  # no baseline of the file's, and no difference
    assert without_timings(results_of(tmp_path, "everyday-physics")) == without_timings(whole)


def test_a_precision_is_added_to_those_of_an_earlier_run(evaluate, tmp_path):
    options = ["--task", "everyday-physics", "--limit", "6", "--precision"]
    for precisions in ("bf16,int8", "bf16,fp32"):
        assert evaluate(*options, precisions) == 0
    assert evaluate(*options, "bf16,int8,fp32", out=tmp_path / "at once") == 0
    assert without_timings(results_of(tmp_path, "everyday-physics")) == without_timings(
        results_of(tmp_path / "at once", "everyday-physics")
    )


@pytest.mark.parametrize(
    ("change", "options", "says"),
    [
        ({}, ["--limit", "5", "--precision", "bf16"], "items, data"),
        ({"environment": {"torch": "1.0"}}, ["--limit", "6", "--precision", "bf16"], "torch"),
        ({"model_sha256": "0"}, ["--limit", "6", "--precision", "bf16"], "model"),
        ({"package_sha256": "0"}, ["--limit", "6", "--precision", "bf16"], "the course's code"),
        ({}, ["--limit", "6", "--precision", "fp32,int8"], "the baseline"),
    ],
)
def test_results_that_cannot_stay_are_replaced_and_said(
    evaluate, tmp_path, capsys, change, options, says
):
    task = ["--task", "everyday-physics"]
    assert evaluate(*task, "--limit", "6", "--precision", "bf16,int8") == 0
    (path,) = tmp_path.glob("results/*/*.json")
    old = json.loads(path.read_text())
    for name, value in change.items():
        old[name] = {**old[name], **value} if isinstance(value, dict) else value
    path.write_text(json.dumps(old))
    capsys.readouterr()
    assert evaluate(*task, *options) == 0
    said = capsys.readouterr().out
    assert " are replaced: " in said and f"{says} changed since then" in said
    left = {name.partition(".")[2] for name in values(json.loads(path.read_text())).keys() - RIGHT}
    assert left == set(options[-1].split(","))


def test_a_broken_evaluation_leaves_an_earlier_file_as_it_was(evaluate, tmp_path, monkeypatch):
    assert evaluate(*FEW) == 0
    (path,) = tmp_path.glob("results/*/*.json")
    before = path.read_bytes()

    def breaks(*_):
        raise OSError("the disk is gone")

    monkeypatch.setattr(perplexity, "_window_score", breaks)
    monkeypatch.setattr(loglikelihood, "score_batch", breaks)
    assert evaluate("--task", "everyday-physics", "--precision", "fp32,bf16") == 1
    assert path.read_bytes() == before


# Beyond the model's context


def test_no_window_is_longer_than_the_models_context(evaluate, tmp_path, capsys):
    short = weights(tmp_path / "short", 0, max_position_embeddings=96)
    options = ["--task", "course-text", "--precision", "fp32", "--limit", "3"]
    assert evaluate(*options, model=short) == 0
    assert "the model takes 96 tokens: the windows have 96, not 1,024" in capsys.readouterr().out
    ((_, content),) = all_results(tmp_path, "course-text").items()
    assert (content["settings"]["window"], content["settings"]["stride"]) == (96, 48)
    tokens = load_tokenizer(short)(load_task("course-text").text)["input_ids"]
    model = load_model(short, "fp32", "cpu")
    cut = [tokens[n * 48 : n * 48 + 96] for n in range(3)]
    nll = -np.stack([log_likelihoods(model, window)[-48:] for window in cut])
    assert values(content)["perplexity.fp32"] == pytest.approx(np.exp(nll.mean()), rel=1e-5)


def test_a_context_that_is_long_enough_changes_nothing(evaluate, tmp_path, capsys):
    options = ["--task", "course-text", "--precision", "fp32", "--limit", "2"]
    assert evaluate(*options) == 0
    assert "the model takes" not in capsys.readouterr().out
    settings = results_of(tmp_path, "course-text")["settings"]
    assert (settings["window"], settings["stride"]) == (WINDOW, STRIDE) == (1024, 512)


def test_the_word_level_text_goes_by_its_own_name_and_the_command_says_so(
    evaluate, tmp_path, capsys
):
    file = tmp_path / "test.txt"
    file.write_text(" \n = Robert <unk> = \n \n" + " A guest @-@ star of <unk> . \n" * 100)
    options = ["--task", "wikitext2", "--precision", "fp32", "--limit", "2", "--data", str(file)]
    assert evaluate(*options) == 0
    assert "the task is wikitext2-words, not wikitext2" in capsys.readouterr().out
    content = results_of(tmp_path, "wikitext2-words")
    assert content["notebook"] == "wikitext2-words"
    assert not list(tmp_path.glob("results/*/wikitext2@*"))


# Interrupted, and over several processes

TASKS = ("everyday-physics", "course-text")
BOTH = ["--task", ",".join(TASKS), "--limit", "6", "--precision", "fp32,int8"]


def lasting(out):
    """What two equal evaluations have in common: the results without the timings."""
    return [without_timings(results_of(out, task)) for task in TASKS]


@pytest.fixture(scope="module")
def finished(folder, tmp_path_factory):
    """The output of an evaluation that nothing has interrupted."""
    out = tmp_path_factory.mktemp("finished")
    work = Evaluation(folder, ["fp32", "int8"], "cpu", out, limit=6)
    for task in TASKS:
        work.run(task)
    return out


def test_an_int8_cache_is_scored_beside_the_one_in_16_bit(evaluate, tmp_path):
    asked = ["--task", "course-text", "--limit", "3", "--precision", "bf16,int8-fast"]
    assert evaluate(*asked, "--cache", "int8") == 0
    found = values(results_of(tmp_path, "course-text"))
    plain, rounded = (found[f"perplexity.{p}"] for p in ("int8-fast", WITH_INT8_CACHE))
    assert plain != rounded and rounded == pytest.approx(plain, rel=0.02)
    assert 0 < found[f"kl.{WITH_INT8_CACHE}"] < 0.1


def test_what_an_earlier_run_has_kept_is_not_computed_again(
    evaluate, finished, tmp_path, monkeypatch
):
    shutil.copytree(finished / "stages", tmp_path / "stages")

    def never(*_):
        raise AssertionError("computed again")

    monkeypatch.setattr(loglikelihood, "score_batch", never)
    monkeypatch.setattr(perplexity, "_window_score", never)
    assert evaluate(*BOTH) == 0
    assert lasting(tmp_path) == lasting(finished)


def test_a_run_that_was_killed_gives_the_same_file_in_the_end(evaluate, finished, tmp_path):
    shutil.copytree(finished / "stages", tmp_path / "stages")
    journals = sorted(tmp_path.glob("stages/*/*.jsonl"))
    assert len(journals) == 4  # two tasks in two precisions
    for path in journals:
        content = path.read_bytes()
        path.write_bytes(content[: len(content) // 2])
    assert evaluate(*BOTH) == 0
    assert lasting(tmp_path) == lasting(finished)


def free_port() -> str:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return str(listener.getsockname()[1])


@pytest.mark.slow
def test_two_processes_write_the_file_that_one_writes(folder, tmp_path):
    script = [str(ROOT / "tools" / "course.py"), "evaluate", "--model", folder, "--device", "cpu"]
    accelerate = ["-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", "2"]
    accelerate += ["--main_process_port", free_port(), "--num_machines", "1"]
    accelerate += ["--mixed_precision", "no", "--dynamo_backend", "no"]
    environment = {k: v for k, v in os.environ.items() if k not in ("COURSE_ACTIVE", "WORLD_SIZE")}
    # The number of threads decides the order of a sum, so it is the same in both.
    environment |= {"COURSE_PYTHON": sys.executable, "OMP_NUM_THREADS": "1"}
    found = {}
    for count, launcher in ((1, []), (2, accelerate)):
        out = tmp_path / str(count)
        done = subprocess.run(
            [sys.executable, *launcher, *script, *BOTH, "--wrong-rules", "--out", str(out)],
            env=environment,
            cwd=tmp_path,
            capture_output=True,
            text=True,
            timeout=300,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        found[count] = lasting(out)
        journals = {path.name.split(".")[-2] for path in out.glob("stages/*/*.jsonl")}
        assert journals == {str(number) for number in range(count)}, "each process did a part"
        assert done.stdout.count("acc_norm.fp32") == 1, "one process alone writes and shows"
    assert found[2] == found[1]


# What goes wrong


@pytest.fixture
def fails(evaluate, capsys, tmp_path):
    """Assert that the command ends with these words in its one message, and writes no results."""

    def run(*arguments, says, **more):
        assert evaluate(*arguments, **more) == 1
        message = capsys.readouterr().err
        last = message.splitlines()[-1]  # after the progress of what was begun
        assert last.startswith("error: ")
        assert says in last
        assert "Traceback" not in message
        assert not list(tmp_path.glob("results/*/*"))

    return run


@pytest.mark.parametrize(
    ("task", "data"),
    [
        ("piqa,hellaswag", "valid.jsonl"),  # whose is it?
        ("piqa,hellaswag", "wikitext2=test.txt"),
        ("piqa", "hellaswag=valid.jsonl"),
        ("piqa", "piqa="),
        ("piqa", ""),
        ("piqa", "=valid.jsonl"),
    ],
)
def test_a_file_for_no_task_is_refused(fails, task, data):
    says = f"--data is {data!r}; with tasks {', '.join(task.split(','))} write TASK=FILE"
    fails("--task", task, "--data", data, says=says)


@pytest.mark.parametrize("task", ["piqua", "everyday-physics,piqua", ""])
def test_an_unknown_task_is_refused_before_anything_is_computed(fails, task):
    fails("--task", task, says=f"there is no task {task.split(',')[-1]!r}; there are piqa, ")


def test_an_unknown_precision_is_refused_with_the_known_ones(fails):
    options = ["--task", "everyday-physics", "--precision", "bf16,int7"]
    fails(*options, says="precision is 'int7'; known are fp32, bf16, fp16, int8")


def test_an_unknown_model_is_refused_with_the_known_ones(fails):
    says = "'no-such-model' is neither a registered model nor a folder"
    fails("--task", "everyday-physics", says=says, model="no-such-model")


def test_an_item_beyond_the_models_context_is_named_by_its_line(fails, tmp_path):
    rows = [*FROM_A_FILE, {**FROM_A_FILE[0], "goal": "word " * 500}]
    file = tmp_path / "valid.jsonl"
    file.write_text("\n\n".join(map(json.dumps, rows)))
    tokens = len(f"Question: {rows[-1]['goal']}\nAnswer: Answer 0.")  # a token is a byte here
    says = f"valid.jsonl, line 11 has {tokens} tokens, and the model takes 2048: leave the item out"
    fails("--task", "piqa", "--precision", "fp32", "--data", str(file), says=says)


def test_metas_format_is_refused_with_a_way_out(fails, tmp_path):
    (tmp_path / "meta").mkdir()
    (tmp_path / "meta" / "params.json").write_text("{}")
    says = "is in Meta's format, and evaluate reads Hugging Face's only"
    fails("--task", "everyday-physics", says=says, model=str(tmp_path / "meta"))


def test_a_model_without_a_tokenizer_is_refused(fails):
    says = "has random weights and no tokenizer"
    fails("--task", "everyday-physics", says=says, model="synthetic:smollm2-135m")


@pytest.mark.parametrize("limit", ["1", "0", "-5"])
@pytest.mark.parametrize("task", ["everyday-physics", "course-text"])
def test_too_small_a_limit_is_refused(fails, task, limit):
    fails("--task", task, "--limit", limit, says=f"the limit is {limit}; at least 2")


def test_a_bad_line_of_a_file_is_named(fails, tmp_path):
    file = tmp_path / "valid.jsonl"
    file.write_text(json.dumps(FROM_A_FILE[0]) + "\n{oops\n")
    fails("--task", "piqa", "--data", str(file), says="valid.jsonl, line 2 is not JSON")


def test_a_missing_file_is_named(fails, tmp_path):
    file = tmp_path / "missing.jsonl"
    fails("--task", "piqa", "--data", str(file), says=f"{file} cannot be read as a text")


def test_a_text_that_is_too_short_is_refused(fails, tmp_path):
    file = tmp_path / "short.txt"
    file.write_text("A short text.")
    says = f"13 tokens give 0 windows of {WINDOW} with stride {STRIDE}"
    fails("--task", "wikitext2", "--data", str(file), says=says)


def test_a_folder_that_cannot_be_written_is_named(fails, tmp_path):
    (tmp_path / "file").write_text("")
    options = ["--task", "everyday-physics", "--limit", "2", "--precision", "fp32"]
    fails(*options, out=tmp_path / "file", says=str(tmp_path / "file"))


@pytest.mark.slow
def test_the_command_itself_ends_with_the_message_alone(folder, tmp_path):
    environment = {k: v for k, v in os.environ.items() if k != "COURSE_ACTIVE"}
    done = subprocess.run(
        [sys.executable, str(ROOT / "tools" / "course.py"), "evaluate", "--task", "piqua"],
        env={**environment, "COURSE_PYTHON": sys.executable},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    assert done.returncode == 1
    assert done.stderr.startswith("error: there is no task 'piqua'")
    assert len(done.stderr.splitlines()) == 1


# Where results go


def test_a_part_of_a_data_set_does_not_stand_among_the_courses_results(
    evaluate, monkeypatch, tmp_path
):
    monkeypatch.setattr(command, "ROOT", tmp_path)
    monkeypatch.setattr(command, "STATE", tmp_path / ".course")
    monkeypatch.setenv("COURSE_ACTIVE", str(tmp_path))
    options = ["--task", "everyday-physics", "--precision", "fp32"]
    assert evaluate(*options, "--limit", "4", out=None) == 0
    part = results_of(tmp_path / ".course" / "evaluate", "everyday-physics")
    assert part["measurements"]["acc.fp32"]["n"] == 4
    assert not (tmp_path / "results").exists()
    assert evaluate(*options, out=None) == 0
    assert results_of(tmp_path, "everyday-physics")["measurements"]["acc.fp32"]["n"] == 40


def test_the_same_evaluation_in_python(folder, tmp_path):
    work = Evaluation(folder, ["fp32"], "cpu", tmp_path, limit=4)
    results = work.run("everyday-physics")
    assert json.loads(results.path.read_text()) == results_of(tmp_path, "everyday-physics")
    assert results.model == f"tiny-bytes (folder {content_hash(Path(folder))[:8]})"
