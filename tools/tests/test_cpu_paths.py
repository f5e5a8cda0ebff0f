"""The race of all paths on a CPU: every path is the same model, and every number has its case."""

import copy
import dataclasses
import time
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from matplotlib.colors import to_hex
from tiny_llama import tiny_llama

from llama_int8 import models
from llama_int8.lessons.n10 import backends, figures, measurements
from llama_int8.lessons.n10.backends import BACKENDS, BASELINE, FAST, ONE_CALL, PATHS, Case
from llama_int8.measure.profiler import kind_of
from llama_int8.measure.results import Results
from llama_int8.models.cost import forward_bytes, forward_flops
from llama_int8.profiles import Settings
from llama_int8.quantization.cpu import kernels

PROMPT = torch.arange(1, 13)[None] * 7


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("tiny")
    shapes = {"vocab_size": 320, "hidden_size": 128, "intermediate_size": 192, "head_dim": 32}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2}
    tiny_llama(**shapes, **heads, max_position_embeddings=256).save_pretrained(path)
    return str(path)


@pytest.fixture(scope="module")
def runners(folder):
    return backends.load_paths(folder)


def logits_of(runner):
    with torch.inference_mode():
        if isinstance(runner, backends.FastRunner):
            runner.model.reserve(64)
            return runner.model(PROMPT, logits_to_keep=0)[0].float()
        return runner.model(PROMPT).logits[0].float()


@pytest.mark.parametrize("path", PATHS)
def test_every_path_is_the_same_model_up_to_its_rounding(runners, path):
    full, found = logits_of(runners["fp32"]), logits_of(runners[path])
    error = (found - full).norm() / full.norm()
    assert error < {"fp32": 1e-6, "fp16": 2e-3}.get(path, 4e-2), error


def test_all_paths_are_there_and_an_unknown_one_is_named(runners, folder):
    assert tuple(runners) == PATHS == tuple(backend.name for backend in BACKENDS.values())
    with pytest.raises(ValueError, match="'int4'"):
        backends.load_paths(folder, ["int4"])


def test_the_two_thresholds_share_a_model_and_differ_in_the_threshold(runners):
    import bitsandbytes as bnb

    six, zero = runners["LLM.int8()"], runners["LLM.int8(), threshold 0"]
    assert six.model is zero.model
    for runner, wanted in ((six, 6.0), (zero, 0.0), (six, 6.0)):
        runner.prefill(PROMPT)
        layers = [m for m in runner.model.modules() if isinstance(m, bnb.nn.Linear8bitLt)]
        assert layers and all(layer.state.threshold == wanted for layer in layers)


def test_quality_is_scored_at_each_paths_own_threshold_and_by_its_own_step(runners):
    """Both share one model, and a race leaves it with the threshold of its last path."""
    import bitsandbytes as bnb

    six, zero = runners["LLM.int8()"], runners["LLM.int8(), threshold 0"]
    zero.prefill(PROMPT)
    with torch.inference_mode():
        paths = ("fp32", "LLM.int8()", *FAST, backends.BF16_CALL)
        scored = {path: measurements.log_likelihoods(runners[path], PROMPT) for path in paths}
    layers = [m for m in six.model.modules() if isinstance(m, bnb.nn.Linear8bitLt)]
    assert layers and all(layer.state.threshold == 6.0 for layer in layers)
    full = scored["fp32"]
    for path, found in scored.items():
        assert found.shape == full.shape and (found - full).norm() < 0.05 * full.norm(), path


@pytest.mark.parametrize("path", PATHS)
def test_a_decode_step_attends_to_the_whole_context(runners, path):
    """The cache is as long as the case says, whatever was run before."""
    seconds = [
        backends.decode(runners[path], batch, context, 2)
        for batch, context in ((2, 9), (1, 33), (3, 4))
    ]
    assert all(s > 0 for s in seconds)
    if path in (*FAST[1:], backends.BF16_CALL):
        assert runners[path].model.position == 6  # 4 tokens of context and 2 steps


def test_a_race_has_every_case_path_and_round(runners):
    few = {path: runners[path] for path in (BASELINE, ONE_CALL)}
    cases = [Case("prefill", 1, 8, 1), Case("decode", 2, 4, 1)]
    before = torch.get_num_threads()
    raced = backends.race(few, cases, steps=2, rounds=3, vocabulary=320)
    assert torch.get_num_threads() == before
    assert set(raced) == {"prefill.1x8.one", "decode.2x4.one"}
    assert set(raced["prefill.1x8.one"]) == {BASELINE}  # one call is no other way to read a prompt
    assert set(raced["decode.2x4.one"]) == set(few)
    for one in raced.values():
        assert all(len(s) == 3 and min(s) > 0 for s in one.values())


def test_a_path_that_takes_too_long_is_left_out():
    class Slow:
        def prefill(self, tokens):
            torch.zeros(1)

        def stepper(self, batch, context, steps):
            return lambda: time.sleep(0.2)

    class Quick(Slow):
        def stepper(self, batch, context, steps):
            return lambda: None

    runners = {"slow": Slow(), "quick": Quick(), BASELINE: Slow()}
    how = {"steps": 2, "rounds": 1, "vocabulary": 10, "patience": 0.3}
    raced = backends.race(runners, [Case("decode", 1, 4, 1)], **how)
    assert set(raced["decode.1x4.one"]) == {"quick", BASELINE}  # ratios need the baseline


def test_a_quick_step_is_timed_over_many_steps(runners):
    timed = []

    class Counted(backends.FastRunner):
        def stepper(self, batch, context, steps):
            timed.append(steps)
            return super().stepper(batch, context, steps)

    few = {BASELINE: Counted(runners[ONE_CALL].model, True)}
    raced = backends.race(few, [Case("decode", 1, 4, 1)], steps=2, rounds=1, vocabulary=320)
    assert set(timed) == {2} and len(timed) > 4 and raced["decode.1x4.one"][BASELINE][0] < 0.5


def test_paths_that_differ_in_decode_alone_are_not_raced_in_prefill(runners):
    case = Case("prefill", 1, 4, 1)
    raced = backends.race(runners, [case], steps=1, rounds=1, vocabulary=320)
    in_one_call = {ONE_CALL, backends.BF16_CALL, backends.WEIGHTS_CALL}
    assert set(raced["prefill.1x4.one"]) == set(PATHS) - in_one_call


@pytest.mark.parametrize(("instruction", "rate"), [(False, 1e8), (True, 1e9)])
def test_the_ceiling_is_the_later_of_bytes_and_operations(folder, monkeypatch, instruction, rate):
    monkeypatch.setattr(kernels, "multiplies_bf16", lambda: instruction)
    config = models.config_of(folder)
    step, prompt = Case("decode", 1, 50, 1), Case("prefill", 2, 64, 1)
    read = forward_bytes(config, "int8-fast", 1, 50, 1)
    rates = {"fp32": 1e8, "bf16": 1e9, "int8": 1e15}  # each path by the rate of its own products
    assert backends.ceiling(config, ONE_CALL, step, 1e9, rates) == pytest.approx(read / 1e9)
    work = forward_flops(config, 64, 0, 2)
    assert backends.ceiling(config, BASELINE, prompt, 1e15, rates) == pytest.approx(work / 1e9)
    control = backends.ceiling(config, backends.BF16_CALL, prompt, 1e15, rates)
    assert control == pytest.approx(work / rate)


def test_a_model_with_an_int8_cache_is_raced_beside_the_one_without(folder):
    few = backends.load_paths(folder, [BASELINE, ONE_CALL])
    few[backends.INT8_CACHE] = backends.with_int8_cache(few[ONE_CALL])
    cases = [Case("decode", 2, 40, 1), Case("prefill", 1, 8, 1)]
    raced = backends.race(few, cases, steps=2, rounds=1, vocabulary=320)
    assert set(raced["decode.2x40.one"]) == set(few) and set(raced["prefill.1x8.one"]) == {BASELINE}
    formats = [few[path].model.cache.format for path in (ONE_CALL, backends.INT8_CACHE)]
    assert formats == ["bf16", "int8"]
    assert few[ONE_CALL].model.lm_head is few[backends.INT8_CACHE].model.lm_head


def test_a_ceiling_of_bytes_is_raced_and_recorded_as_a_path_that_only_reads(folder, tmp_path):
    config, case = models.config_of(folder), Case("decode", 3, 40, 1)
    few = backends.load_paths(folder, [BASELINE, ONE_CALL])
    reading = backends.readers(config, tuple(few))
    assert list(reading) == ["reading as bf16", "reading as int8-fast"]
    cases = [case, Case("prefill", 1, 8, 1)]
    raced = backends.race(few | reading, cases, steps=2, rounds=2, vocabulary=320)
    assert set(raced[case.key]) == {*few, *reading} and set(raced["prefill.1x8.one"]) == {BASELINE}
    step = reading["reading as int8-fast"].stepper(3, 40, 2)
    read = forward_bytes(config, "int8-fast", 1, 40, 3)
    assert read <= step.__self__.data.nbytes < read + 64
    settings = Settings(model=folder, profile="benchmark", device="cpu")
    results = Results("int8_cpu", settings, str(tmp_path))
    seconds = {"bf16": [4.0, 4.0], ONE_CALL: [2.0, 2.0], "reading as int8-fast": [1.0, 1.5]}
    roof = {1: (1.0, {"bf16": 1e15, "int8": 1e15})}  # so slow that it would be exceeded
    race = backends.record_race(results, {case.key: seconds}, [case], config, roof)
    assert race.shares[case][ONE_CALL] == 0.5 and race.shares[case]["bf16"] > 1
    assert race.speeds[case]["reading as int8-fast"].median == pytest.approx(3 * (1 + 1 / 1.5) / 2)
    slow = {1: (1.0, {"bf16": 1e15, "int8": forward_flops(config, 1, 40, 3) / 1.8})}
    race = backends.record_race(results, {case.key: seconds}, [case], config, slow)
    assert race.shares[case][ONE_CALL] == pytest.approx(0.9)  # operations are the later ones


def test_int8_paths_are_those_with_int8_codes_whatever_their_name():
    int8 = {path for path, backend in BACKENDS.items() if backend.in_8_bits}
    sixteen_bit = {"fp32", "fp16", BASELINE, backends.BF16_SWAPPED, backends.BF16_CALL}
    assert int8 == set(PATHS) - sixteen_bit
    fp8 = replace(BACKENDS[BASELINE], name="fp8, 8 threads")
    assert not fp8.in_8_bits


def test_a_backend_is_one_entry_it_is_loaded_raced_recorded_and_drawn(
    monkeypatch, folder, tmp_path
):
    """Nothing but the entry in the table knows of it."""
    new = backends.Backend(
        "mine",
        stored="bf16",
        arithmetic="bf16",
        load=lambda loaded: backends.HuggingFaceRunner(loaded.hugging_face("bf16")),
        look=backends.Look("#123456", "", "o"),
        layer=backends.Layer("my layer", lambda linear: copy.deepcopy(linear).bfloat16()),
    )
    monkeypatch.setitem(BACKENDS, "mine", new)
    case = Case("decode", 1, 4, 1)
    few = backends.load_paths(folder, [BASELINE, "mine"])
    raced = backends.race(few, [case], steps=2, rounds=2, vocabulary=320)
    results = Results(
        "int8_cpu", Settings(model=folder, profile="benchmark", device="cpu"), str(tmp_path)
    )
    roof = {1: (1e12, {"bf16": 1e15})}
    race = backends.record_race(results, raced, [case], models.config_of(folder), roof)
    assert {"decode.1x4.one.mine", "ratio.decode.1x4.one.mine"} <= set(results.measurements)
    bars = figures.paths(raced, case, race.shares[case]).axes[0].patches
    assert to_hex(bars[1].get_facecolor()) == "#123456"
    layers = backends.race_layers({"small": (64, 128)}, 3, 1, held=64 * 128)
    assert "my layer" in layers["small"] and backends.look("my layer") == new.look


def test_speed_counts_the_tokens_of_the_whole_batch():
    assert backends.tokens_per_second(Case("prefill", 3, 100, 1), [2.0])[0] == 150
    assert backends.tokens_per_second(Case("decode", 8, 100, 1), [2.0])[0] == 4


def test_a_recorded_race_pairs_ratios_within_a_round(tmp_path, folder):
    settings = Settings(model=folder, profile="benchmark", device="cpu")
    results = Results("int8_cpu", settings, str(tmp_path))
    cases = [Case("decode", 1, 32, 1), Case("decode", 1, 32, 2)]
    times = {"bf16": [2.0, 4.0, 8.0], ONE_CALL: [1.0, 1.0, 1.0], "llama.cpp-Q8_0": [1.0, 2.0, 4.0]}
    roof = {count: (1e12, {"int8": 1e15, "bf16": 1e15}) for count in (1, 2)}
    seconds = {case.key: times for case in cases}
    race = backends.record_race(results, seconds, cases, models.config_of(folder), roof)
    ratio = race.over_bf16[cases[0]]
    assert ratio["llama.cpp-Q8_0"].median == 2 and ratio["llama.cpp-Q8_0"].high == 2
    assert ratio[ONE_CALL].median == 4 and race.speeds[cases[1]]["bf16"].median == 0.25
    assert "llama.cpp-Q8_0" not in race.shares[cases[0]]  # its bytes are not ours to know
    text = results.path.read_text()
    assert "ratio.decode.1x32.all.int8-fast: one call" in text and "decode.1x32.one.bf16" in text


def test_no_path_exceeds_its_ceiling_even_where_pytorchs_product_is_slow(
    folder, tmp_path, monkeypatch
):
    monkeypatch.setattr(kernels, "multiplies_bf16", lambda: False)
    config = models.config_of(folder)
    settings = Settings({"rounds": 2}, model=folder, profile="benchmark", device="cpu")
    results = Results("int8_cpu", settings, str(tmp_path))
    cases = [Case("decode", 16, 32, 1), Case("decode", 1, 32, 1)]
    times = {
        BASELINE: [0.2, 0.3],
        backends.BF16_CALL: [0.1, 0.4],
        backends.WEIGHTS_CALL: [1.0, 1.0],
    }
    seconds = {cases[0].key: times, cases[1].key: {path: [1.0, 1.0] for path in times}}
    rates = {"fp32": 1.0, "bf16": 1e15}  # FP32 as slow as can be: every path would be above it
    race = backends.record_race(results, seconds, cases, config, {1: (1e15, rates)})
    work = backends.forward_flops(config, 1, 32, 16)
    raised = backends.with_what_was_reached(rates, seconds, cases, config)
    assert raised == {"fp32": pytest.approx(work / 0.1), "bf16": 1e15}
    assert race.shares[cases[0]][backends.BF16_CALL] == pytest.approx(0.1 / 0.25)  # of its median
    assert not any(name.startswith("lead.") for name in results.measurements)  # no int8 in one call
    for each in seconds.values():
        each |= {ONE_CALL: [0.05, 0.1], "llama.cpp-Q8_0": [0.2, 0.3], "fp16": [1.0, 1.0]}
    rates |= {"fp16": 1.0, "int8": 1.0}
    backends.record_race(results, seconds, cases, config, {1: (1e15, rates)})
    leads = {name for name in results.measurements if name.startswith(f"lead.{cases[0].key}.")}
    paths = (backends.BF16_CALL, backends.WEIGHTS_CALL, "llama.cpp-Q8_0")
    assert leads == {f"lead.{cases[0].key}.{path}" for path in paths}
    lead = results.measurements[f"lead.{cases[0].key}.{backends.BF16_CALL}"]
    assert [lead[key] for key in ("value", "low", "high", "n")] == pytest.approx([3, 2, 4, 2])
    assert all(0 < share <= 1 for shares in race.shares.values() for share in shares.values())


def test_the_factors_are_paired_and_multiply_up_where_rounds_disagree():
    """Each round another speed: medians of one path alone would say nothing."""
    case, rounds = Case("decode", 1, 32, 2), np.array([1.0, 2.0, 4.0])
    seconds = {BASELINE: 12.0, backends.BF16_SWAPPED: 6.0, FAST[0]: 5.0}
    seconds |= {backends.BF16_CALL: 2.0, ONE_CALL: 1.0, "fp32": 10.0, "fp16": 11.0}
    seconds |= {backends.WEIGHTS_CALL: 1.6, "reading as bf16": 0.8, "reading as int8-fast": 0.2}
    raced = {case.key: {path: (one * rounds).tolist() for path, one in seconds.items()}}
    found = measurements.factors(raced, case)
    means = [one.mean for one in (found.product, found.calls, found.int8, found.whole)]
    assert means == pytest.approx([2, 3, 2, 12]) and found.one_call.mean == pytest.approx(6)
    assert found.int8_swapped.low == found.int8_swapped.high == pytest.approx(1.2)
    assert measurements.largest_factor(raced, case) == "one call"
    assert measurements.gains_by_batch(raced, [case])[1].mean == pytest.approx(2)
    rows = measurements.two_by_two(raced, case, found)
    assert rows[1][3] == "1.20x [1.20, 1.20]" and rows[2][3] == "2.00x [2.00, 2.00]"
    assert "int8 comes first, with 1.20x [1.20, 1.20]" in measurements.sentence_on_factors(found)
    assert rows[3][1:3] == ["3.00x [3.00, 3.00]", "5.00x [5.00, 5.00]"] and len(rows) == 4
    said = measurements.sentence_on_baseline(raced, case)
    assert "fp32 in Hugging Face's model runs at 1.20x" in said
    assert measurements.gain_of_readers(raced, case) == pytest.approx(4)
    assert (found.stored.mean, found.multiplied.mean) == pytest.approx((1.25, 1.6))
    said = measurements.sentence_on_weights_only(found)
    assert "run at 1.25x [1.25, 1.25]" in said and "adds to that: 1.60x [1.60, 1.60]" in said

    raced[case.key][ONE_CALL] = [0.5, 2.5, 3.0]  # in one round int8 is the larger factor
    found = measurements.factors(raced, case)
    chain = found.product.mean * found.calls.mean * found.int8.mean
    assert chain == pytest.approx(found.whole.mean)
    assert found.int8.low < found.int8.mean < found.int8.high
    speeds = [measurements.mean_speed(raced, case, p).mean for p in (backends.BF16_CALL, ONE_CALL)]
    assert speeds[1] / speeds[0] == pytest.approx(found.int8.mean)  # bars agree with the factor
    assert measurements.largest_factor(raced, case) == measurements.TOO_CLOSE
    raced[case.key][backends.WEIGHTS_CALL] = [0.4, 3.2, 6.4]
    found = measurements.factors(raced, case)
    assert found.stored.mean * found.multiplied.mean == pytest.approx(found.int8.mean)
    assert "is not shown to add" in measurements.sentence_on_weights_only(found)


def test_a_mean_lies_within_its_rounds():
    """A figure's error bars would be negative; the logarithm of one value does not lead back."""
    for value in (1.1, 3.3, 0.7, 1e9 / 3):
        one = measurements.mean_over_rounds(np.array([value]))
        assert one.low == one.mean == one.high == value


def test_what_bytes_do_not_explain_is_laid_to_a_cache_only_where_the_ceilings_say_so():
    stored = measurements.bytes_of_formats(models.config_of("smollm2-135m"))
    assert "allow int8 1.88 times" in measurements.sentence_on_ceilings(1.9, stored)
    assert "cache" not in measurements.sentence_on_ceilings(1.9, stored)
    assert "a cache holds" in measurements.sentence_on_ceilings(2.8, stored)


def test_int8_is_ruled_by_all_rounds_and_llm_int8_beside_bf16_in_the_same_calls(monkeypatch):
    case = Case("decode", 4, 32, 2)
    took = {BASELINE: [4.0, 4.0], backends.BF16_CALL: [2.0, 2.0], "LLM.int8()": [8.0, 8.0]}
    took[backends.AGAIN] = [4.0, 4.2]
    within = dict.fromkeys(PATHS, SimpleNamespace(word="within"))
    monkeypatch.setattr(kernels, "cpu_features", lambda: {"avx2"})
    monkeypatch.setattr(kernels, "multiplies_bf16", lambda: False)

    def ruled(more, quality=within, case=case):
        (ruling,) = measurements.rule({case.key: took | more}, [case], quality)
        return ruling

    clear = ruled({ONE_CALL: [1.0, 1.2]})
    assert clear.word == "holds" and clear.usual.mean == pytest.approx(0.5)
    assert clear.row()[4] == "1.83x [1.67, 2.00]"
    assert clear.row()[5] == "0.98x [0.95, 1.00]"
    assert ruled({ONE_CALL: [1.0, 1.6]}).word == "undecided"

    noisy = ruled({ONE_CALL: [1.0, 1.2], backends.AGAIN: [4.4, 4.6]})
    assert noisy.word == "undecided" and noisy.row()[1] == "too noisy"
    assert ruled({ONE_CALL: [1.0, 1.2], backends.AGAIN: [3.5, 4.5]}).word == "holds"
    same = ruled({ONE_CALL: [2.01, 2.09]})
    assert same.word == "fails" and same.row()[1] == "not much faster, no difference shown"

    quick = {ONE_CALL: [1.0, 1.2], "W8A8 by token": [0.5, 0.5]}
    assert ruled(quick).int8 == "W8A8 by token"
    for word in ("undecided", "outside"):  # quality first: the fastest is another model
        others = dict.fromkeys(("W8A8 by token", "LLM.int8()"), SimpleNamespace(word=word))
        quality = within | others
        assert ruled(quick, quality).int8 == ONE_CALL
    poor = ruled(quick, dict.fromkeys(PATHS, SimpleNamespace(word="outside")))
    assert poor.word == "undecided" and "outside in quality" in poor.row()[2]

    # A control that leaves an instruction for bf16 unused gives an upper bound, which decides nothing.
    for there, used, unused in (
        ({"avx512_bf16"}, True, False),
        ({"avx512_bf16"}, False, True),
        ({"avx512_bf16", "amx_bf16"}, True, True),
        ({"amx_bf16"}, False, True),
    ):
        monkeypatch.setattr(kernels, "cpu_features", lambda there=there: there)
        monkeypatch.setattr(kernels, "multiplies_bf16", lambda used=used: used)
        assert clear.upper_bound == unused == ("(an upper bound)" in clear.row()[4])
        assert clear.word == ("undecided" if unused else "holds")


def test_the_controls_multiply_bf16_where_the_processor_has_an_instruction_for_it(monkeypatch):
    for used, arithmetic in ((True, "bf16"), (False, "fp32")):
        monkeypatch.setattr(kernels, "multiplies_bf16", lambda used=used: used)
        for path in (backends.BF16_SWAPPED, backends.BF16_CALL):
            assert backends.arithmetic_of(path) == arithmetic
        assert backends.arithmetic_of(BASELINE) == "bf16"
        assert backends.arithmetic_of(backends.WEIGHTS_CALL) == "fp32"


def test_a_step_of_the_product_is_judged_by_the_fastest_before_it():
    """Packing that only undoes what it has lost is no gain, and a tie has no winner."""

    def steps(*rates):
        names = ("scalar", "vectors", "packed", "packed, vectors", "dot", "tile", "groups")
        means = [measurements.mean_over_rounds([rate]) for rate in rates]
        measured = [measurements.Rate(one, one) for one in means]
        return measurements.Steps(dict(zip(names, measured, strict=True)), 1.0)

    largest = measurements.largest_step
    assert largest(steps(1.0, 10.0, 1.0, 9.0, 30.0, 120.0, 100.0)) == "compiler's vectors"
    assert largest(steps(1.0, 2.0, 1.0, 9.0, 30.0, 120.0, 100.0)) == "packed order"
    said = measurements.sentence_on_steps(steps(1.0, 10.0, 1.0, 9.0, 30.0, 120.0, 60.0))
    assert "compiler's vectors 10.00x" in said and "scale per group 0.50x" in said
    assert "0.90x [0.90, 0.90] for one token" in said
    assert largest(steps(6.7, 29.7, 5.2, 13.9, 130.8, 227.1, 281.1)) == measurements.TOO_CLOSE


def test_peers_stand_beside_our_paths_from_the_same_race(tmp_path, folder):
    results = Results(
        "int8_cpu", Settings(model=folder, profile="benchmark", device="cpu"), str(tmp_path)
    )
    prefill, decode = Case("prefill", 1, 8, 1), Case("decode", 1, 4, 1)
    paths = (BASELINE, "LLM.int8()", measurements.YOURS, *FAST, "theirs")
    one = {path: [2.0, 4.0] for path in paths} | {"theirs": [1.0, 2.0]}
    raced = {prefill.key: one, decode.key: one}
    rows = measurements.peers(results, raced, [prefill, decode], ["theirs"])
    ratio = "2.00x [2.00, 2.00]"
    assert ["theirs", "0.7", ratio, "5.7", ratio] in rows  # tokens/s are means of rounds, too
    assert results.measurements["peer.decode.theirs"]["value"] == pytest.approx(2)
    said = measurements.sentence_on_peers(results, raced, decode, ["theirs"], {"other": "absent"})
    assert "int8-fast: one call at 0.50x [0.50, 0.50]" in said and "other (absent)" in said


def test_each_version_of_the_kernel_is_named_and_says_why_it_did_not_run():
    lines = measurements.same_bits()
    assert [line.split()[0].rstrip(":") for line in lines] == list(kernels.VERSIONS)
    for version, line in zip(kernels.VERSIONS, lines, strict=True):
        reason = kernels.refusal(version)
        assert line.endswith(f"not run, {reason}" if reason else "the same bits as PyTorch")


def test_how_pytorch_multiplies_is_said_by_what_holding_it_back_costs():
    said = measurements.sentence_on_instruction
    assert "uses whole tiles (AMX) here: 1,200 GOP/s" in said((1.2e12, 0.6e12))
    assert "gains nothing by tiles" in said((1.2e12, 1.1e12))
    assert "no tiles (AMX) here" in said(None)


def test_a_profile_sees_the_kernels_calls(runners):
    found = backends.profile_steps({p: runners[p] for p in (BASELINE, *FAST)}, 8)
    assert found[BASELINE]["16-bit products"] > 0 == found[BASELINE]["int8 products"]
    if kernels.chosen().library is None:
        pytest.skip("no kernel on this machine")
    assert found[FAST[0]]["int8 products"] > 0 == found[FAST[0]]["16-bit products"]
    assert found[ONE_CALL]["one compiled call"] > 0 == found[ONE_CALL]["int8 products"]
    assert found[ONE_CALL]["count"] < found[FAST[1]]["count"] < found[BASELINE]["count"]
    assert kind_of(["aten::empty", "int8_fast::linear"]) == "finding outliers, quantizing"


def test_single_layers_are_raced_at_their_shapes():
    raced = backends.race_layers({"small": (64, 128)}, 3, 2, held=2 * 64 * 128)
    kinds = "fp16,bf16,our bf16 product,LLM.int8(),weights only,W8A8 by token,int8-fast".split(",")
    assert list(raced["small"]) == kinds
    assert all(len(times) == 2 for times in raced["small"].values())


def test_a_single_layer_gets_six_outlier_channels_at_every_width(monkeypatch):
    given = []
    monkeypatch.setattr(
        backends, "_layer_run", lambda layers, x: given.append(x) or (lambda: {"call": 1.0})
    )
    shapes = {f"{width} inputs": (8, width) for width in (576, 2048, 11008)}
    backends.race_layers(shapes, tokens=64, rounds=1, held=1)
    assert {x.shape[1] for x in given} == {576, 2048, 11008}
    for x in given:
        assert (x.float().std(0) > 5).sum() == 6, x.shape


@pytest.mark.slow
def test_a_process_takes_about_the_bytes_of_its_weights(tmp_path):
    from llama_int8.models.cost import weight_bytes

    config = models.config_of(models.DEFAULT_MODEL)
    found = backends.resident_bytes(models.DEFAULT_MODEL, "int8-fast: swapped")
    wanted = weight_bytes(config, "int8-fast").total
    assert 0.8 * wanted < found < 1.5 * wanted


def test_fast_paths_give_the_same_tokens_as_the_swapped_model(runners):
    """In a batch, too: the kernel's tokens do not know each other."""
    swapped, fast = runners[FAST[0]].model, runners[ONE_CALL].model
    batch = torch.stack([PROMPT[0], PROMPT[0].flip(0)])
    with torch.inference_mode():
        wanted = swapped(batch).logits[:, -1].float()
    fast.reserve(32, 2)
    fast(batch[:, :-1])
    found = fast.step(batch[:, -1])
    assert np.allclose(found, wanted, atol=0.05 * wanted.std())


@pytest.mark.parametrize("field", ["stored", "arithmetic"])
def test_a_backend_of_a_format_that_nobody_can_measure_is_refused_before_it_is_raced(field):
    with pytest.raises(ValueError, match=f"{field} is 'int4'; known are fp32, .*int8"):
        dataclasses.replace(next(iter(backends.BACKENDS.values())), **{field: "int4"})
