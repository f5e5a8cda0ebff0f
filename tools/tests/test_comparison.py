"""What is recorded of paired scores equals what a direct computation gives."""

import json
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from llama_int8.evaluation.compare import (
    Point,
    faster_or_slower,
    flips,
    in_blocks,
    record_choices,
    record_memory,
    record_speed,
    record_text,
)
from llama_int8.evaluation.perplexity import StridedText
from llama_int8.evaluation.tasks import Item
from llama_int8.measure.results import Results
from llama_int8.measure.statistics import (
    mcnemar_exact,
    paired_bootstrap,
    proportion_interval,
    smallest_detectable_change,
    spread,
)
from llama_int8.models import config_of
from llama_int8.models.cost import peak_bytes, weight_bytes
from llama_int8.profiles import Settings


@pytest.fixture
def results(tmp_path):
    chosen = Settings(model="tiny", profile="evaluate", device="cpu")
    return Results("wikitext2", chosen, str(tmp_path))


def recorded(results):
    return json.loads(results.path.read_text(encoding="utf-8"))["measurements"]


def value(results, name):
    return recorded(results)[name]["value"]


# --- a text -------------------------------------------------------------------------------------

STRIDE = 8
TEXT = StridedText(torch.zeros(5, 16), STRIDE, np.array([30, 31, 35, 28, 40]))
NLL = {"bf16": [2.0, 2.5, 3.0, 1.5, 2.2], "int8": [2.1, 2.4, 3.3, 1.6, 2.2]}
COMPARED = [{"kl": 0.02, "agreement": 1.0}, {"kl": 0.05, "agreement": 0.75}]


def windows():
    scores = {p: [{"nll": one} for one in values] for p, values in NLL.items()}
    for one, more in zip(scores["int8"], COMPARED, strict=False):  # the first two were compared
        one |= more
    return scores


def test_perplexity_and_bits_of_a_text_are_those_of_all_its_tokens(results):
    record_text(results, windows(), TEXT, "bf16")
    for p, values in NLL.items():
        perplexity, bits = (
            recorded(results)[f"perplexity.{p}"],
            value(results, f"bits_per_byte.{p}"),
        )
        assert perplexity["value"] == pytest.approx(math.exp(sum(values) / 5), rel=1e-6)
        assert perplexity["n"] == 5 * STRIDE
        nats = sum(values) * STRIDE  # of the whole text
        assert bits == pytest.approx(nats / math.log(2) / (30 + 31 + 35 + 28 + 40), rel=1e-6)


def test_the_difference_of_two_precisions_is_taken_window_by_window(results):
    found = record_text(results, windows(), TEXT, "bf16")
    expected = paired_bootstrap(np.array(NLL["bf16"]), np.array(NLL["int8"]))
    assert found == {"int8": expected}
    kept = recorded(results)["nll_difference.int8"]
    assert kept["value"] == pytest.approx(0.4 / 5, rel=1e-6) and kept["n"] == 5
    assert [kept["low"], kept["high"]] == pytest.approx([expected.low, expected.high], rel=1e-6)
    smallest = recorded(results)["smallest_detectable.int8"]
    assert smallest["value"] == pytest.approx(expected.smallest_detectable, rel=1e-6)
    assert smallest["n"] == 5 and smallest["unit"] == kept["unit"] == "nats"
    assert "nll_difference.bf16" not in recorded(results)


def test_kl_and_agreement_are_means_over_the_windows_that_were_compared(results):
    record_text(results, windows(), TEXT, "bf16")
    kl, agreement = (recorded(results)[f"{name}.int8"] for name in ("kl", "agreement"))
    assert kl["value"] == pytest.approx(0.035) and kl["unit"] == "nats"
    assert agreement["value"] == 87.5 and agreement["unit"] == "%"
    assert kl["n"] == agreement["n"] == 2 * STRIDE
    assert not any(name in recorded(results) for name in ("kl.bf16", "agreement.bf16"))


def test_without_a_compared_window_no_kl_is_recorded(results):
    scores = {p: [{"nll": one} for one in values] for p, values in NLL.items()}
    record_text(results, scores, TEXT, "bf16")
    assert "perplexity.int8" in recorded(results) and "kl.int8" not in recorded(results)


@settings(max_examples=40, deadline=None)
@given(arrays(np.float64, st.integers(1, 40), elements=st.floats(-9, 9)), st.integers(1, 9))
def test_blocks_are_the_means_of_neighbours_and_no_window_is_left_out(values, size):
    found = in_blocks(values, size)
    count = max(1, len(values) // size)
    assert found.shape == (count,)
    if len(values) >= size:
        lengths = np.array([len(part) for part in np.array_split(values, count)])
        assert lengths.min() >= size
        np.testing.assert_allclose(found @ lengths, values.sum(), atol=1e-9)
    if len(values) % size == 0:
        expected = values.reshape(count, size).mean(axis=1)
        np.testing.assert_allclose(found, expected, atol=1e-12)


# --- memory and speed ---------------------------------------------------------------------------


def a_run(peaks, **loaded):
    before = {"process": 1000}
    return {"weight bytes": 500, "before": before, "loaded": {"process": 1700, **loaded}, **peaks}


def test_memory_is_recorded_as_predicted_and_as_measured(results):
    config = config_of("smollm2-135m")
    peaks = [{"batch": 1, "tokens": 128, "peak": 77}, {"batch": 4, "tokens": 64, "peak": 99}]
    runs = {"bf16": a_run({"peaks": peaks}), "int8": a_run({"peaks": []})}
    found = record_memory(results, runs, config)
    for p in ("bf16", "int8"):
        assert value(results, f"weights.{p}.predicted") == weight_bytes(config, p).total
        assert value(results, f"weights.{p}.measured") == 500
        assert value(results, f"process.{p}.loaded") == 700
    predicted = []
    for batch, context in ((1, 128), (4, 64)):
        parts = peak_bytes(config, "bf16", context, batch, "cpu")
        predicted.append(parts["KV cache"] + parts["activations"] + parts["logits"])
        assert value(results, f"peak.bf16.{batch} x {context}.predicted") == predicted[-1]
    assert value(results, "peak.bf16.4 x 64.measured") == 99
    assert found == {"bf16": [(Point(1, 128), predicted[0], 77), (Point(4, 64), predicted[1], 99)]}
    assert {m["unit"] for m in recorded(results).values()} == {"bytes"}
    assert recorded(results)["weights.int8.predicted"]["kind"] == "exact"
    assert not any(name.startswith(("allocated", "card")) for name in recorded(results))


def test_on_a_gpu_the_allocators_numbers_are_recorded_and_its_kernels_predicted(results):
    config = config_of("smollm2-135m")
    results.environment["GPU"] = "a card"
    peaks = {"peaks": [{"batch": 2, "tokens": 32, "peak": 5}]}
    found = record_memory(
        results, {"int8": a_run(peaks, allocated=11, reserved=12, card=13)}, config
    )
    names = ("allocated", "reserved", "card")
    assert [value(results, f"{name}.int8.loaded") for name in names] == [11, 12, 13]
    parts = peak_bytes(config, "int8", 32, 2, "cuda")
    assert found["int8"] == [(Point(2, 32), sum(parts.values()) - parts["weights"], 5)]


TIMED = {
    "seconds": [
        {
            "batch": 1,
            "tokens": 100,
            "precisions": {
                "bf16": {"prefill": [1.0, 2.0, 8.0], "decode": [2.0, 2.0, 5.0]},
                "int8": {"prefill": [2.0, 2.0, 2.0], "decode": [4.0, 8.0, 5.0]},
            },
        },
        {
            "batch": 4,
            "tokens": 50,
            "precisions": {"int8": {"prefill": [10.0, 20.0, 40.0], "decode": [1.0, 1.0, 1.0]}},
        },
    ],
    "items": {"bf16": [0.5, 0.1, 0.3], "int8": [1.0, 3.0, 2.0]},
    "interleaved": True,
}


def test_speed_is_tokens_of_the_whole_batch_a_second(results):
    speeds, _ = record_speed(results, TIMED, 10, "bf16")
    assert speeds["prefill"]["bf16"] == {(1, 100): spread([100, 50, 12.5])}
    assert speeds["prefill"]["int8"][4, 50] == spread([20, 10, 5])  # 4 x 50 tokens in each pass
    assert speeds["decode"]["int8"] == {(1, 100): spread([2.5, 1.25, 2]), (4, 50): spread([40] * 3)}
    found = recorded(results)["prefill.int8.4 x 50"]
    assert (found["value"], found["low"], found["high"], found["n"]) == (10, 7.5, 15, 3)
    assert found["unit"] == "tokens/s"
    items = recorded(results)["item_seconds.int8"]
    assert (items["value"], items["low"], items["high"], items["unit"]) == (2, 1.5, 2.5, "s")


def test_a_ratio_is_taken_within_its_round_and_above_one_where_it_is_faster(results):
    _, ratios = record_speed(results, TIMED, 10, "bf16")
    # In its rounds int8 had 1/2, 2/2 and 8/2 of bf16's speed.
    assert ratios["prefill"]["int8"] == {(1, 100): spread([0.5, 1.0, 4.0])}
    assert ratios["prefill"]["bf16"] == {(1, 100): spread([1.0] * 3)}
    found = recorded(results)["prefill.int8.1 x 100.ratio"]
    assert (found["value"], found["unit"], found["n"]) == (1.0, "x", 3)
    # Where the baseline did not fit there is nothing to take a ratio to.
    assert "decode.int8.4 x 50" in recorded(results)
    assert "decode.int8.4 x 50.ratio" not in recorded(results)


def test_runs_that_were_no_pairs_have_a_spread_too(results):
    point = {"batch": 1, "tokens": 9}
    slow = {"prefill": [4.0, 4.4, 3.6], "decode": [1.0, 1.0, 1.0]}
    fast = {"prefill": [2.0, 2.2, 1.8], "decode": [1.0, 1.0, 1.0]}
    seconds = [{**point, "precisions": {"bf16": slow, "int8": fast}}]
    timed = {"seconds": seconds, "items": {}, "interleaved": False}
    _, ratios = record_speed(results, timed, 10, "bf16")
    ratio = ratios["prefill"]["int8"][1, 9]
    assert (ratio.median, ratio.n) == (2.0, 3)
    assert ratio.least < ratio.low < ratio.median < ratio.high < ratio.largest
    # Rounds without any spread leave nothing to doubt but their number.
    assert ratios["decode"]["int8"][1, 9].low == ratios["decode"]["int8"][1, 9].high == 1.0


@pytest.mark.parametrize(
    ("rounds", "verdict"),
    [
        ([1.06, 1.2, 1.3, 1.1, 1.4], "faster"),
        ([0.9, 0.8, 0.7, 0.94, 0.6], "slower"),
        ([1.06, 1.2, 1.3, 1.1], "undecided"),  # four rounds are too few
        ([1.04, 1.2, 1.3, 1.1, 1.4], "undecided"),  # one of them within the margin
        ([0.9, 0.8, 1.1, 0.9, 0.6], "undecided"),
    ],
)
def test_a_verdict_on_speed_needs_five_rounds_beyond_the_margin(rounds, verdict):
    assert faster_or_slower(spread(np.array(rounds))) == verdict


def test_the_first_point_is_the_headline(results):
    record_speed(results, TIMED, 10, "bf16")
    found = recorded(results)
    for phase in ("prefill", "decode"):
        for p in ("bf16", "int8"):
            assert found[f"{phase}.{p}"] == found[f"{phase}.{p}.1 x 100"]
            assert found[f"{phase}.{p}.ratio"] == found[f"{phase}.{p}.1 x 100.ratio"]


# --- choices ------------------------------------------------------------------------------------


def test_flips_by_hand():
    first = np.array([1, 1, 1, 0, 0, 1, 0, 1], bool)
    second = np.array([1, 0, 0, 1, 0, 0, 0, 1], bool)
    found = flips(first, second)
    assert (found.lost, found.won) == (3, 1)
    assert found.difference.mean == pytest.approx(3 / 8 - 5 / 8)
    assert found.difference.mean == pytest.approx(-2 / 8)
    assert found.p_value == pytest.approx(2 * (1 + 4) / 2**4)  # 3 and 1 of four fair coins
    assert found.smallest_detectable == smallest_detectable_change(8, 4)


def test_items_lost_and_won_both_are_noise_in_which_a_change_must_be_found():
    first = np.arange(1000) >= 500
    second = first ^ (np.arange(1000) % 20 == 0)  # every twentieth answer turns round
    found = flips(first, second)
    assert (found.lost, found.won, found.p_value) == (25, 25, 1.0)
    assert found.smallest_detectable == smallest_detectable_change(1000, 50)
    assert found.smallest_detectable > smallest_detectable_change(1000, 25)


def test_models_that_answer_alike_have_no_flips():
    right = np.array([True, False, True, True])
    found = flips(right, right)
    assert (found.lost, found.won, found.p_value, found.difference.mean) == (0, 0, 1.0, 0.0)


# Four items; "acc" and "acc_norm" differ, for the choices are of different lengths.
ITEMS = [
    Item("a", ("short", "a much longer one"), 0),
    Item("b", ("short", "a much longer one"), 1),
    Item("c", ("equal", "sizes"), 0),
    Item("d", ("equal", "sizes"), 1),
]
SCORES = {
    "bf16": [[-5.0, -6.0], [-5.0, -6.0], [-1.0, -2.0], [-2.0, -1.0]],
    "int8": [[-5.0, -30.0], [-5.0, -6.0], [-2.0, -1.0], [-2.0, -1.0]],
}
RIGHT = {
    "acc": {"bf16": [1, 0, 1, 1], "int8": [1, 0, 0, 1]},
    "acc_norm": {"bf16": [0, 1, 1, 1], "int8": [1, 1, 0, 1]},
}


@pytest.mark.parametrize("rule", ["acc", "acc_norm"])
def test_accuracy_by_both_rules_has_wilsons_interval_in_percent(results, rule):
    record_choices(results, SCORES, ITEMS, "bf16")
    for p, right in RIGHT[rule].items():
        found = recorded(results)[f"{rule}.{p}"]
        low, high = proportion_interval(sum(right), 4)
        assert (found["value"], found["n"], found["unit"]) == (25.0 * sum(right), 4, "%")
        assert [found["low"], found["high"]] == pytest.approx([100 * low, 100 * high], rel=1e-6)


@pytest.mark.parametrize("rule", ["acc", "acc_norm"])
def test_flips_against_the_baseline_are_recorded_by_both_rules(results, rule):
    returned = record_choices(results, SCORES, ITEMS, "bf16")
    first, second = (np.array(RIGHT[rule][p], bool) for p in ("bf16", "int8"))
    difference = paired_bootstrap(first, second)
    found = recorded(results)
    kept = found[f"{rule}_difference.int8"]
    assert kept["value"] == pytest.approx(100 * difference.mean, rel=1e-6)
    ends = [100 * difference.low, 100 * difference.high]
    assert [kept["low"], kept["high"]] == pytest.approx(ends, rel=1e-6)
    lost, won = sum(first & ~second), sum(second & ~first)
    assert [found[f"{rule}_{what}.int8"]["value"] for what in ("lost", "won")] == [lost, won]
    assert found[f"{rule}_mcnemar.int8"]["value"] == mcnemar_exact(int(lost), int(won))
    smallest = 100 * smallest_detectable_change(4, int(lost + won))
    kept = found[f"{rule}_smallest_detectable.int8"]
    assert kept["value"] == pytest.approx(smallest, rel=1e-6)
    assert {one["n"] for one in found.values()} == {4}
    assert {name for name in found if name.endswith(".bf16")} == {"acc.bf16", "acc_norm.bf16"}
    assert set(returned) == {"int8"}


def test_the_flips_that_come_back_are_those_by_acc_norm(results):
    found = record_choices(results, SCORES, ITEMS, "bf16")["int8"]
    assert (found.lost, found.won) == (1, 1) and found.difference.mean == 0
