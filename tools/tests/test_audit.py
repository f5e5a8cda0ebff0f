"""The audit of lesson 08: what the published rule answers, and what explains the published numbers."""

import itertools
import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from llama_int8 import models
from llama_int8.data import load, published
from llama_int8.evaluation.compare import Point, flips
from llama_int8.evaluation.tasks import Item, Task, load_task
from llama_int8.lessons.n08 import exercises, figures, measurements
from llama_int8.measure.profiler import KINDS
from llama_int8.measure.statistics import Spread, paired_bootstrap, spread
from llama_int8.models.cost import kv_cache_bytes, weight_bytes

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
    expected = [whole.sum(), whole.log_softmax(-1).sum(), raw, own, last, last / 12]
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


@pytest.mark.parametrize(
    ("by_round", "rounds", "said"),
    [
        ((0.36, 0.4, 0.48, 0.5, 0.6), 5, "at most a part: the whole decomposition takes 48%"),
        ((-0.2, 0.4, 0.48, 0.5, 0.6), 5, "from -20% to 60%"),
        ((0.4, 0.4, 0.48, 0.5), 5, "in 1 of 5 rounds int8 takes no extra time"),
        ((0.4, 0.4, 0.48, 0.5), 4, "undecided: int8 stays slower at threshold 0, but 4 rounds"),
    ],
)
def test_a_part_of_the_extra_time_is_decided_only_by_all_of_five_rounds(by_round, rounds, said):
    point, slow = (1, 8), Spread(0.7, 0.68, 0.72, 5, 0.65, 0.75)
    ratios = {
        phase: {measurements.NO_DECOMPOSITION: {point: slow}} for phase in ("decode", "prefill")
    }
    parts = {"prefill": measurements.Part(0.48, by_round, rounds)}
    because = measurements.verdict_on_dequantizing(parts, ratios, point, True)[2]
    assert said in because and "is not isolated" in because and "on this CPU" in because
    assert "In decode, restoring weights is not the whole reason." in because
    on_gpu = " ".join(measurements.verdict_on_dequantizing(parts, ratios, point, True, "cuda"))
    assert "CPU" not in on_gpu


def test_phases_whose_rounds_lie_too_far_apart_leave_dequantizing_undecided_without_a_share():
    point, slow = (1, 8), Spread(0.7, 0.68, 0.72, 5, 0.65, 0.75)
    ratios = {
        phase: {measurements.NO_DECOMPOSITION: {point: slow}} for phase in ("decode", "prefill")
    }
    wide = measurements.Part(0.43, (0.09, 0.4, 0.43, 0.5, 0.72), 5)
    close = measurements.Part(0.4, (0.33, 0.38, 0.4, 0.44, 0.48), 5)
    parts = {"decode": wide, "prefill": wide}
    _, verdict, because = measurements.verdict_on_dequantizing(parts, ratios, point, True)
    assert verdict == "undecided here" and "In decode, undecided" in because
    assert "43%" not in because
    parts = {"decode": wide, "prefill": close}
    _, verdict, because = measurements.verdict_on_dequantizing(parts, ratios, point, True)
    assert verdict == "fails here" and "In decode, undecided" in because


def test_a_share_of_the_extra_time_is_worked_out_in_numbers():
    taken = {"bf16": 1.0, "int8": 2.0, measurements.NO_DECOMPOSITION: 1.6}
    record = {"precisions": {p: {"prefill": [t, 9.0]} for p, t in taken.items()}}
    said = measurements.worked_share(record, "bf16")
    assert said.endswith("1 - (1.600 s - 1.000 s) / (2.000 s - 1.000 s) = 40%")


def test_a_ratio_of_rounds_and_one_of_medians_are_told_apart():
    point = Point(1, 512)
    speeds = {"decode": {p: {point: spread(np.array([s]))} for p, s in (("bf16", 8), ("int8", 4))}}
    said = measurements.two_ratios(speeds, spread(np.array([0.57])), point, "bf16")
    assert said.startswith("57% is the median") and "125.0 ms in bf16 and 250.0 ms in int8" in said
    assert said.endswith("would give 50%.")


@pytest.mark.parametrize(
    ("int8_products", "said"),
    [
        (4, "products -11; quantizing +9, scaling +2, outlier columns +3; all else -1. The products "
            "save time, and the work around them costs more"),
        (0.5, "products -14; quantizing +9, scaling +2, outlier columns +3; all else -1. The products "
              "save more time than"),
        (16, "products +1; quantizing +9, scaling +2, outlier columns +3; all else -1. The products "
             "take longer"),
    ],
)  # fmt: skip
def test_a_step_in_int8_is_taken_apart_into_what_it_saves_and_what_it_adds(int8_products, said):
    def profile(*milliseconds):
        return {k: {"seconds": ms / 1e3} for k, ms in zip(KINDS, milliseconds, strict=True)}

    half, int8 = profile(16, 0, 0, 0, 0, 2, 4, 3), profile(1, int8_products, 9, 2, 3, 2, 3, 3)
    words = measurements.what_int8_adds({"bf16": half, "int8": int8}, "bf16")
    assert f"From bf16 to int8, in ms: {said}" in words


def test_the_rate_of_products_is_bytes_over_their_time():
    config = models.config_of("smollm2-135m")
    size = weight_bytes(config, "bf16").read_per_token
    profile = {
        "16-bit products": {"seconds": size / 3e9},
        "everything else": {"seconds": size / 3e9},
    }
    said = measurements.rate_of_products(profile, config, "bf16", 20e9)
    assert "3.0 GB/s, 15% of the bandwidth" in said and "50% of its profiled step" in said


def test_a_round_without_extra_time_counts_in_the_part_of_all_rounds():
    recorded = {}
    results = SimpleNamespace(
        record=lambda name, value, unit, **more: recorded.update({name: (value, more)})
    )
    half, int8, bare = [10.0, 10.0, 10.0], [20.0, 22.0, 9.0], [15.0, 16.0, 10.0]
    taken = {"bf16": half, "int8": int8, measurements.NO_DECOMPOSITION: bare}
    record = {"precisions": {p: {"decode": t, "prefill": t} for p, t in taken.items()}}
    part = measurements.parts_of_decomposition(results, record, "bf16")["decode"]
    assert part.rounds == 3 and len(part.by_round) == 2
    assert part.together == pytest.approx(1 - 11 / 21)
    value, more = recorded["decomposition.decode"]
    assert more["n"] == 3 and more["low"] < value < more["high"]


def test_the_time_of_reading_is_set_beside_the_step():
    config = models.config_of("smollm2-135m")
    speeds = {
        "decode": {p: {Point(1, 512): Spread(10.0, 9, 11, 5, 8, 12)} for p in ("bf16", "int8")}
    }
    rows, said = measurements.step_rows(speeds, config, "bf16", 20e9)
    assert rows[0][3] == "100 ms" and "limits neither" in said
    assert "limits" not in measurements.step_rows(speeds, config, "bf16", 2e9)[1]


def test_an_item_is_shown_with_its_choices_and_the_one_that_each_precision_takes():
    item = Item("?", ("ice", "steam"), 1)
    runs = {"bf16": {"choices": [[-6.0, -5.0]]}, "int8": {"choices": [[-4.0, -5.0]]}}
    rows, said = measurements.item_rows(runs, item, 0, ("bf16", "int8"))
    assert rows[1] == ["bf16", "steam", "-5.00", "-1.000", "right"]
    assert said == "By the sum, bf16 takes answer 2 (right), int8 takes answer 1 (wrong)."


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


def test_a_damage_is_noticed_by_its_flips_and_equal_answers_are_not():
    said = {}
    results = SimpleNamespace(record=lambda name, value, unit, **_: said.update({name: value}))
    items = [Item("?", ("a", "b"), 0) for _ in range(40)]
    right, wrong = [[-1.0, -2.0]] * 40, [[-2.0, -1.0]] * 12 + [[-1.0, -2.0]] * 28
    rows = measurements.control_rows(results, {"damaged": wrong, "whole": right}, right, items)
    assert rows[0] == ["damaged", "70.0%", "-30.0", "12 lost, 0 won", "0.00049", "yes"]
    assert rows[1][1:] == ["100.0%", "+0.0", "0 lost, 0 won", "1", "no"]
    assert said["control.damaged.lost"] == 12 and said["control.damaged.acc_norm"] == 70


def test_the_taught_equation_gives_the_difference_that_the_cell_prints():
    n, z95, z80 = 40, 1.959964, 0.841621
    d = flips(np.ones(n, bool), np.ones(n, bool)).smallest_detectable  # no flips: s is d itself
    assert (n * d) ** 0.5 == pytest.approx(z95 + z80 * (1 - d) ** 0.5, rel=1e-5)
    first, second = np.arange(n) >= 8, np.arange(n) < 32  # 8 lost, 8 won
    d = flips(first, second).smallest_detectable
    s = (16 + 2) / (n + 4)
    assert n**0.5 * d == pytest.approx(z95 * s**0.5 + z80 * (s - d * d) ** 0.5, rel=1e-5)


def test_what_a_sample_can_show_against_the_margin_is_as_far_from_it_as_from_zero():
    margin = np.log1p(measurements.QUALITY_MARGIN)
    errors = np.random.default_rng(0).normal(size=(2000, 50)) * 0.016
    errors = (errors - errors.mean()) / errors.std() * 0.016
    reach = paired_bootstrap(np.zeros(50), errors[0], resamples=200).smallest_detectable
    within, beyond = measurements.against_margin(SimpleNamespace(smallest_detectable=reach))
    assert (within + beyond) / 2 == pytest.approx(margin) and beyond - margin == reach
    # A true cost of that size is shown to be within the margin four times out of five.
    standard_error = 0.016 / 50**0.5
    cost = margin - 2.8 * standard_error
    upper = cost + errors.mean(axis=1) + 1.96 * standard_error
    assert 0.76 < (upper < margin).mean() < 0.84


def test_a_sample_that_is_too_small_says_that_it_can_show_a_gain_only():
    results = SimpleNamespace(record=lambda *_, **__: None)
    small = SimpleNamespace(smallest_detectable=0.02, n=5)
    assert "only a gain of at least 0.0100" in measurements.record_against_margin(results, small)
    large = SimpleNamespace(smallest_detectable=0.004, n=500)
    said = measurements.record_against_margin(results, large)
    assert "at most 0.0060 nats (0.6% of perplexity)" in said and "at least 0.0140" in said


@pytest.mark.parametrize(
    ("pairs", "verdict"),
    [
        ([(9, 8), (9, 8)], "holds"),
        ([(8, 9), (8, 9)], "fails here"),
        ([(9, 8), (8, 9)], "undecided"),
        ([(8, 8.1)], "undecided"),  # the CPU's FP32 copies take more than what it is over
    ],
)
def test_activations_are_judged_at_all_points(pairs, verdict):
    sizes = {p: [(Point(n + 1, 8), 1, int(1e6 * pair[k])) for n, pair in enumerate(pairs)]
             for k, p in enumerate(("bf16", "int8"))}  # fmt: skip
    config = models.config_of("smollm2-135m")
    measured, said, _ = measurements.verdict_on_activations(sizes, "bf16", config)
    assert said.startswith(verdict) and f"of {len(pairs)} points" in measured


def test_what_carries_over_to_a_gpu_stands_before_the_total_of_the_cpu():
    config = models.config_of("smollm2-135m")
    copies = 12 * 512 * config.intermediate_size
    cache = kv_cache_bytes(config, 512, 1)
    point = Point(1, 512)
    sizes = {"bf16": [(point, 1, cache + 8_000_000)]}
    sizes["int8"] = [(point, 1, cache + 8_400_000 + copies)]
    measured, verdict, because = measurements.verdict_on_activations(sizes, "bf16", config)
    assert verdict == "fails here" and "8.0 MB at its peak in bf16 and 8.4 MB" in measured
    assert because.startswith("What carries over is at least 1.05 times")
    assert because.endswith("2.23 times, is this CPU's.")
    on_gpu = " ".join(measurements.verdict_on_activations(
        {"fp16": sizes["bf16"], "int8": sizes["int8"]}, "fp16", config
    ))  # fmt: skip
    assert "CPU" not in on_gpu


def test_the_cache_that_both_precisions_hold_is_no_part_of_their_ratio():
    config = models.config_of("smollm2-135m")
    cache = kv_cache_bytes(config, 8, 1)
    half, int8 = [(Point(1, 8), 1, cache + 100)], [(Point(1, 8), 1, cache + 250)]
    assert measurements.activations_of_int8({"fp16": half, "int8": int8}, "fp16", config) == 2.5
    copies = 12 * 8 * config.intermediate_size  # three in FP32, only in bitsandbytes' CPU path
    int8 = [(Point(1, 8), 1, cache + 250 + copies)]
    assert measurements.activations_of_int8({"bf16": half, "int8": int8}, "bf16", config) == 2.5


def test_no_flip_bounds_the_loss_and_the_test_needs_a_larger_one():
    bound = measurements.bound_without_flips(40)
    assert (1 - bound) ** 40 == pytest.approx(0.05) and 0.07 < bound < 0.075
    same = flips(np.ones(40, bool), np.ones(40, bool))
    assert same.smallest_detectable > bound
    said = measurements.what_flips_say("int8", same)
    assert "loss beyond 7.2 points" in said and "at least about 18.5 points" in said
    other = flips(np.ones(40, bool), np.arange(40) > 0)
    assert "rules out" not in measurements.what_flips_say("int8", other)


def test_a_verdict_on_quality_says_where_blocks_of_windows_would_leave_it_undecided():
    generator = np.random.default_rng(0)
    alone = 0.03 + 0.004 * generator.normal(size=48)
    alike = np.repeat(0.0155 + 0.010 * generator.normal(size=6), 8)
    close = (alike - alike.mean() + 0.0148, "undecided here")
    for values, expected in ((alone, "fails here"), (alone - 0.03, "holds"), close):
        difference = paired_bootstrap(np.zeros(48), values, resamples=500)
        _, verdict, because = measurements.verdict_on_quality("m", difference, values, "bf16")
        assert verdict == expected and ("A close call" in because) is (verdict == "undecided here")
        assert "from 25.65 to 25.83 (+0.7%) at 125M parameters" in because
        assert "from 12.45 to 12.45 (+0.0%) at 13B" in because


def test_a_divergence_is_compared_as_one_and_its_root_with_the_logits():
    scored = {p: [{"kl": kl}] for p, kl in (("bf16", 0.0), ("fp32", 0.001), ("int8", 0.036))}
    said = measurements.what_divergence_says(scored)
    assert "36.0 times the KL divergence" in said and "about 6.0 times" in said
    assert "another rounding" in said
    scored["int8"] = [{"kl": 0.0015}]
    assert "another rounding" not in measurements.what_divergence_says(scored)


def test_the_margin_is_small_beside_a_step_in_the_papers_model_sizes():
    perplexity = [float(value) for value in published("llm-int8-paper")["rows"]["32-bit"]]
    steps = [100 * (1 - after / before) for before, after in itertools.pairwise(perplexity)]
    assert round(min(steps)) == 6 and round(max(steps)) == 38  # the numbers in the lesson


def test_windows_that_are_not_paired_give_a_wider_interval():
    first = np.random.default_rng(0).normal(3, 0.5, size=50)
    said = measurements.without_pairs(first, first + 0.01 + 0.001 * np.arange(50))
    assert int(said.split(": ")[1].split()[0]) > 5


def test_rules_of_scoring_are_compared_item_by_item_in_pairs():
    right = [1, 2] * 20
    taken = {rule: list(right) for rule in measurements.RULES}
    taken[measurements.PUBLISHED_RULE] = [2] * 40
    taken[measurements.LOG_PROBABILITIES] = [3 - answer for answer in right]
    found = measurements.Audit([[1.0, 2.0]] * 40, [[4, 4]] * 30 + [[4, 5]] * 10, taken, right)
    assert found.flips(measurements.PUBLISHED_RULE, measurements.FP32_SUM) == (0, 20)
    rows, said = measurements.rule_flips(found, exercises.flip_p_value)
    assert len(rows) == 8 and "E to F" not in [name for name, *_ in rows]
    assert ["B to C", "40 lost, 0 won", "1.8e-12", "1.5e-11"] in rows
    assert ["B to D", "0 lost, 0 won", "1", "1"] in rows
    assert "worse: C;" in said[0] and "better than guessing: B, D, E, F, G;" in said[0]
    assert "correction: A to B, B to C, C to E, A to D, A to G." in said[1]
    assert said[1].endswith("leave open: B to D, D to E, F to G.")
    assert "by construction" in said[2] and said[3].startswith("In 10 of 40 pairs")


def test_rules_are_told_from_guessing_after_a_correction_for_their_number():
    shares = {f"rule {n}": (50.0, 35.0, 65.0) for n in range(6)} | {"odd": (30.0, 18.1, 45.4)}
    assert set(measurements.against_guessing(shares, 40).values()) == {""}  # p is 0.017, of seven
    assert measurements.against_guessing({"odd": shares["odd"]}, 40) == {"odd": "worse"}
    assert measurements.against_guessing({"good": (90.0, 76.9, 96.0)}, 40) == {"good": "better"}


def test_the_question_scores_the_same_in_both_texts_so_leaving_it_out_changes_nothing():
    question = logits(4, 11)
    first, second = (torch.cat([question, logits(5, 11, seed)]) for seed in (1, 2))
    scores = {}
    repairs = measurements._repairs(exercises.answer_log_likelihood)
    for rule in measurements.SAME_BY_CONSTRUCTION:
        given = [measurements.AnswerLogits(of, torch.arange(9), 5, 12) for of in (first, second)]
        scores[rule] = float(repairs[rule](given[0]) - repairs[rule](given[1]))
    assert len(set(scores)) == 2
    assert scores[measurements.LIKELIER] == pytest.approx(
        scores[measurements.ANSWER_ONLY], abs=1e-4
    )


def test_the_saving_of_a_total_is_not_refuted_by_the_weights():
    _, verdict, because = measurements.verdict_on_saving(measurements.memory_of_both())
    assert verdict == "not testable here" and because.startswith("Its files do not support it")


def test_accuracies_without_their_items_are_called_unpaired():
    _, verdict, because = measurements.verdict_on_size()
    assert verdict == "not testable here" and "unpaired, and these files cannot tell" in because


def test_the_challenge_says_which_score_is_needed():
    items = load_task("everyday-physics").items
    assert "20 items: 15 of them" in measurements.score_that_is_needed(items)
    assert "too few" in measurements.score_that_is_needed(items[:4])
    rows = measurements.items_to_look_at(items)
    assert len(rows) == 20 and "Answer:" not in rows[0][0] and not rows[0][0].startswith("Question")
    assert [row[3] for row in rows] == [item.label for item in items[:20]]


def test_each_rule_changes_one_thing_of_the_rules_before_it():
    for rule, shown in measurements.RULES.items():
        for before in shown.before:
            pairs = zip(shown.marks, measurements.RULES[before].marks, strict=True)
            assert sum(a != b for a, b in pairs) == 1, (rule, before)


def test_the_answer_to_when_it_stops_counts_cases_and_reads_the_papers_table():
    slow, fast = (Spread(x, x, x, 5, x, x) for x in (0.6, 1.3))
    ratios = {"small": {"decode": {1: slow}, "prefill": {1: slow}}}
    cases = {"one": slow, "two": slow}
    said = measurements.when_it_stops(cases, ratios, {"small": 576}, "bf16")
    assert "not at all" in said and "0 of 2 cases" in said and "4,096 and 5,140" in said
    ratios["wide"] = {"decode": {1: fast}}
    assert "differ in depth" not in said
    cases["three"] = fast
    said = measurements.when_it_stops(cases, ratios, {"small": 576, "wide": 4096}, "bf16")
    assert "1 of 3 cases" in said and "0.60 at width 576, 1.30 at width 4,096" in said


def test_no_case_is_left_out_of_the_verdict_on_latency_and_chance_is_counted():
    slow, fast = (Spread(x, x, x, 5, x, x) for x in (0.6, 1.3))
    ratios = {phase: {"int8": {Point(1, 512): slow, Point(1, 128): slow, Point(4, 128): slow}}
              for phase in ("prefill", "decode")}  # fmt: skip
    wide = {"prefill": {"int8": {Point(1, 32): slow}}, "decode": {"int8": {Point(1, 32): fast}}}
    cases = measurements.all_cases({"small": ({}, ratios, None), "wide": ({}, wide, None)})
    assert len(cases) == 8 and "small, decode, 1 x 512" in cases
    measured, verdict, because = measurements.verdict_on_latency(cases, "bf16", "here")
    assert (
        "LLM.int8(), one way of quantizing to 8 bits. Of 8 cases 1 are faster" in measured
        and "7 slower" in measured
    )
    assert "their median 0.60" in measured and "in about 0.5 of 8" in measured  # 8 x 1/16
    assert verdict == "holds only if" and "wide, decode, 1 x 32" in because


def test_a_known_score_is_set_beside_ours_with_a_warning_beyond_two_points():
    right = np.arange(1838) < 0.7639 * 1838
    said = measurements.beside_known_score("llama-2-7b-chat", right)
    assert "elsewhere 76.39 (intel/auto-round" in said and "WARNING" not in said
    assert "WARNING" in measurements.beside_known_score("llama-2-7b-chat", np.arange(1838) < 1300)
    assert "no PIQA score" in measurements.beside_known_score("llama-3.2-1b", right)
    said = measurements.without_known_score(["llama-7b", "llama-3.2-1b"])
    assert said.endswith(": llama-3.2-1b") and not measurements.without_known_score(["llama-7b"])


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
