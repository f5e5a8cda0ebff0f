"""The audit of lesson 08: what the published rule answers, and what explains the published numbers."""

import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from llama_int8.data import load, published
from llama_int8.evaluation.compare import flips
from llama_int8.evaluation.tasks import Item, Task, load_task
from llama_int8.lessons.n08 import exercises, figures, measurements
from llama_int8.measure.statistics import Spread

ROOT = Path(__file__).resolve().parents[2]
FP16_END = torch.finfo(torch.float16).max


def logits(tokens, vocabulary, seed=0, dtype=torch.float16):
    generator = torch.Generator().manual_seed(seed)
    return (torch.randn(tokens, vocabulary, generator=generator) * 2 + 3).to(dtype)


def test_the_published_rule_says_second_as_soon_as_both_sums_overflow():
    larger, smaller = logits(40, 2000, 1), logits(20, 2000, 2)
    assert larger.sum().isinf() and smaller.sum().isinf()
    assert exercises.published_answer(larger, smaller) == 2
    assert exercises.published_answer(smaller, larger) == 2
    # With numbers that FP16 can hold, the same rule takes either.
    assert larger[:2, :50].sum() < FP16_END
    assert exercises.published_answer(larger[:2, :50], smaller[:1, :50]) == 1


@pytest.mark.parametrize(("tokens", "vocabulary", "prompt_len"), [(2, 5, 1), (7, 13, 6), (9, 4, 2)])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_the_shown_log_likelihood_equals_cross_entropy(tokens, vocabulary, prompt_len, dtype):
    given = logits(tokens, vocabulary, tokens, dtype)
    input_ids = torch.arange(tokens) % vocabulary
    nll = torch.nn.functional.cross_entropy(
        given[prompt_len - 1 : -1].float(), input_ids[prompt_len:], reduction="sum"
    )
    found = exercises.answer_log_likelihood(given, input_ids, prompt_len)
    torch.testing.assert_close(found, -nll)


def test_the_share_of_second_answers_is_the_published_accuracy_to_the_last_digit():
    (second,) = published("piqa-answers")["rows"]["second"]
    (first,) = published("piqa-answers")["rows"]["first"]
    assert first + second == measurements.PIQA_ITEMS
    shares = [share for row in published("a40-piqa-csv")["rows"].values() for share in row[:2]]
    assert shares.count(second / measurements.PIQA_ITEMS) == 4
    # The others are whole numbers of items as well.
    for share in shares:
        assert round(share * measurements.PIQA_ITEMS) / measurements.PIQA_ITEMS == share


def test_the_counts_are_those_of_our_own_piqa_run():
    (file,) = (ROOT / "results").rglob("piqa@smollm2-135m.json")
    run = json.loads(file.read_text(encoding="utf-8"))
    table = published("piqa-answers")
    assert run["settings"]["sha256"] in table["source"]
    # "question scored" ties everywhere and takes the first answer: it counts the labels.
    always_first = run["measurements"]["wrong_rule.question scored"]
    assert always_first["n"] == measurements.PIQA_ITEMS
    first = always_first["value"] / 100 * always_first["n"]
    assert first == pytest.approx(table["rows"]["first"][0], abs=1e-3)


def test_all_of_piqa_is_counted_live_and_a_part_of_it_is_not(monkeypatch):
    said = {}
    results = SimpleNamespace(record=lambda name, value, unit, **_: said.update({name: value}))
    items = tuple(Item("Question: ?\nAnswer:", ("a", "b"), n % 2) for n in range(1838))
    task = Task("piqa", "here", items=items)
    assert measurements.second_answers(results, task) == (919, 1838, "counted here")
    assert said["right answer.2"] == said["audit.second answers of PIQA"] == 919
    part = Task("piqa", "here", items=items[:40])
    assert measurements.second_answers(results, part)[:2] == (928, 1838)


def test_both_models_together_explain_the_published_memory():
    for entry in measurements.memory_of_both():
        assert 0 < entry.unexplained < 0.012
        assert max(entry.fp16, entry.int8) < 0.7 * min(entry.measured)  # one of them does not


def test_the_page_cannot_be_right_about_the_largest_model():
    _, verdict, _ = measurements.verdict_on_a40_memory(measurements.memory_of_both())
    assert verdict == "fails here"


def test_the_courses_own_items_are_balanced_in_both_halves_and_in_length():
    items = load_task("everyday-physics").items
    rules = {"first": lambda _question, _choices: 0}
    rules["longest"] = lambda _question, choices: max((0, 1), key=lambda n: len(choices[n]))
    for rule in rules.values():
        rows = list(measurements.without_a_model(rule, items))
        assert sum(right for _, right, *_ in rows) == len(items) / 2
    assert [right for _, right, *_ in measurements.without_a_model(rules["first"], items)] == [
        10,
        10,
    ]


def test_a_sum_of_logits_leads_only_through_the_tokens_of_the_text():
    answer = measurements.AnswerLogits(logits(6, 11), torch.arange(6), 3, 12)
    repairs = measurements._repairs(exercises.answer_log_likelihood)
    scores = [float(score(answer)) for score in repairs.values()]
    whole = answer.logits.float()
    own = -torch.nn.functional.cross_entropy(whole[:-1], answer.input_ids[1:], reduction="sum")
    last = -torch.nn.functional.cross_entropy(whole[2:-1], answer.input_ids[3:], reduction="sum")
    raw = sum(whole[place - 1, answer.input_ids[place]] for place in range(1, 6))
    expected = [whole.sum(), whole.log_softmax(-1).sum(), raw, own, last / 12]
    assert scores == pytest.approx([float(value) for value in expected], rel=1e-4)


def test_dequantizing_is_acquitted_only_by_five_clear_rounds():
    point, slow = (1, 8), Spread(0.7, 0.68, 0.72, 5, 0.65, 0.75)
    ratios = {
        phase: {measurements.NO_DECOMPOSITION: {point: slow}} for phase in ("decode", "prefill")
    }
    assert measurements.verdict_on_dequantizing({}, ratios, point, True)[1] == "fails here"
    few = Spread(0.7, 0.68, 0.72, 2, 0.65, 0.75)
    ratios = {
        phase: {measurements.NO_DECOMPOSITION: {point: few}} for phase in ("decode", "prefill")
    }
    assert measurements.verdict_on_dequantizing({}, ratios, point, True)[1] == "undecided here"
    assert measurements.verdict_on_dequantizing({}, ratios, point, False)[1] == "holds"


@pytest.mark.parametrize(("least", "said"), [(0.28, "48% of prefill's"), (-0.2, "undecided")])
def test_a_part_of_the_extra_time_is_given_only_where_all_rounds_agree(least, said):
    point, slow = (1, 8), Spread(0.7, 0.68, 0.72, 5, 0.65, 0.75)
    ratios = {
        phase: {measurements.NO_DECOMPOSITION: {point: slow}} for phase in ("decode", "prefill")
    }
    shares = {"prefill": Spread(0.48, 0.4, 0.5, 5, least, 0.6)}
    assert said in measurements.verdict_on_dequantizing(shares, ratios, point, True)[2]


def test_the_audit_says_which_sign_infinity_has_and_how_often_the_longer_text_is_taken():
    inf = float("inf")
    taken = {"rule": [2, 1, 2]}
    found = measurements.Audit(
        [[inf, inf], [3.0, inf], [1.0, 2.0]], [[4, 9], [7, 7], [8, 5]], taken, [1] * 3
    )
    assert (found.infinite, found.signs) == (3, "+")
    assert found.longer("rule") == (1, 2)  # texts of equal length say nothing
    both = measurements.Audit([[inf, -inf]], [[1, 2]], {"rule": [1]}, [1])
    assert both.signs == "+ and -"


def test_the_positive_control_is_noticed_and_equal_answers_are_not():
    said = {}
    results = SimpleNamespace(record=lambda name, value, unit, **_: said.update({name: value}))
    right, wrong = np.ones(40, bool), np.arange(40) >= 12
    assert "notices it" in measurements.record_control(results, flips(right, wrong), wrong)
    assert said["control.lost"] == 12 and said["control.acc_norm"] == 70
    assert "too few" in measurements.record_control(results, flips(right, right), right)


def test_the_page_as_well_as_its_files_are_at_chance():
    measured, verdict, _ = measurements.verdict_on_cost(928, measurements.PIQA_ITEMS)
    assert verdict == "not testable here"
    assert "6 of 6 accuracies on the page" in measured and "In its files 6 of 6" in measured


def test_every_published_table_names_its_source_and_the_two_projects_their_commits():
    for name, table in load("published").items():
        assert table["source"], name
    for name in ("a40-piqa", "a40-piqa-csv"):
        assert "theodruilhe/Quantized-LLAMA, commit ec53dc8" in published(name)["source"]
    assert "commit 26e94d4" in published("t4-llama-2-7b-chat")["source"].replace("\n", " ")


def test_no_card_shows_more_than_its_name_says():
    for name, room in figures.CARDS.items():
        nominal = float(name.removesuffix(" GB").split()[-1])
        assert 0.9 * nominal <= room <= nominal
