"""What lesson 05 says about training: its numbers agree with each other and with the papers."""

import math
from functools import partial
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from tiny_llama import tiny_config
from torch import nn
from torch.utils.checkpoint import checkpoint
from transformers import LlamaForCausalLM

from llama_int8 import models
from llama_int8.course import small_lm
from llama_int8.data import load
from llama_int8.lessons.n05 import exercises, measurements
from llama_int8.models.cost import count_parameters, training_bytes, training_flops
from llama_int8.transformer.config import LlamaConfig
from llama_int8.transformer.llama import Llama

PAPERS = load("llama_papers")
FAMILY = measurements.family()


# --- what is published --------------------------------------------------------------------------


@pytest.mark.parametrize("name", FAMILY)
def test_the_shapes_of_each_model_give_its_published_number_of_parameters(name):
    said = PAPERS["later"].get(name) or PAPERS["sizes"][name.removeprefix("LLaMA ")]
    counted = count_parameters(FAMILY[name].config) / 1e9
    assert counted == pytest.approx(said["parameters"], rel=0.011)
    assert FAMILY[name].source in PAPERS["sources"]


@pytest.mark.parametrize(
    ("name", "registered"),
    [
        ("LLaMA 7B", "llama-7b"),
        ("Llama 2 7B", "llama-2-7b-chat"),
        ("Llama 2 13B", "llama-2-13b-chat"),
        ("Llama 3.1 8B", "llama-3.1-8b"),
        ("Llama 3.1 70B", "llama-3.1-70b"),
        ("Llama 3.2 1B", "llama-3.2-1b"),
        ("Llama 3.2 3B", "llama-3.2-3b"),
    ],
)
def test_they_are_the_registered_models(name, registered):
    ours, theirs = FAMILY[name].config, models.config_of(registered)
    assert count_parameters(ours) == count_parameters(theirs)
    assert ours.num_key_value_heads == theirs.num_key_value_heads


@pytest.mark.parametrize("size", PAPERS["sizes"])
def test_the_first_papers_hours_give_its_carbon(size):
    told, per = PAPERS["sizes"][size], PAPERS["footprint"]
    energy = told["gpu_hours"] * per["watts"] * per["pue"] / 1000  # kWh
    assert round(energy * per["kg_per_kwh"] / 1000) == told["tonnes"]


def test_a_tonne_of_carbon_takes_about_as_much_power_in_all_later_models():
    per_hour = {
        gpu: [m.tonnes / m.megawatt_hours for m in FAMILY.values() if m.gpu == gpu]
        for gpu in ("A100", "H100")
    }
    for ratios in per_hour.values():
        assert max(ratios) / min(ratios) < 1.1


def test_no_model_uses_more_than_its_gpus_can_give():
    for model in FAMILY.values():
        flops = training_flops(count_parameters(model.config), model.tokens)
        assert 0.03 < flops / (model.gpu_hours * 3600 * PAPERS["gpus"][model.gpu]) < 0.6


def test_llama_3s_mixture_adds_up():
    assert sum(PAPERS["mixture_llama3"].values()) == 100


def test_the_summary_printed_another_column():
    columns = np.array(list(PAPERS["benchmarks"]["rows"].values())).T
    summary = PAPERS["benchmarks"]["summary_piqa"]
    assert summary == columns[2].tolist() != columns[3].tolist()
    verdicts = []
    results = SimpleNamespace(add_claim=lambda *given: verdicts.append(given))
    measurements.benchmarks_on_trial(results)
    assert [given[2] for given in verdicts] == ["fails here"]


# --- the scaling law ----------------------------------------------------------------------------


def test_the_law_and_its_inverse_agree():
    sizes = torch.tensor([1e9, 8e9, 7e10], dtype=torch.float64)
    for size in sizes:
        loss = measurements.predicted_loss(size.item(), 2e12)
        assert measurements.tokens_needed(size, loss).item() == pytest.approx(2e12, rel=1e-9)
    assert measurements.tokens_needed(sizes, 2.02)[0] == math.inf  # too small for it


@pytest.mark.parametrize("loss", [1.95, 2.02, 2.3, 2.8])
def test_the_compute_optimal_model_is_the_cheapest_to_train(loss):
    size, tokens = measurements.compute_optimal(loss)
    assert measurements.predicted_loss(size, tokens) == pytest.approx(loss, rel=1e-12)
    assert 6 * size * tokens == pytest.approx(measurements.least_flops(loss, 0), rel=1e-9)
    assert exercises.cheapest_size(loss, 0) == pytest.approx(size, rel=0.01)


def test_the_law_gives_about_twenty_tokens_for_each_parameter():
    for loss in (2.0, 2.3):
        size, tokens = measurements.compute_optimal(loss)
        assert 15 < tokens / size < 30


def test_more_use_makes_the_best_model_smaller():
    sizes = [exercises.cheapest_size(2.02, served) for served in (0, 1e12, 1e13, 1e14)]
    assert sizes == sorted(sizes, reverse=True) and sizes[0] > 3 * sizes[-1]


@pytest.mark.parametrize("served", [1e12, 1e13, 1e14])
def test_the_best_size_is_best_for_what_it_is_best_for(served):
    size = measurements.best_size(2.02, served)
    tokens = measurements.tokens_needed(torch.tensor(size, dtype=torch.float64), 2.02).item()
    assert measurements.served_where_best(size, tokens) == pytest.approx(served, rel=1e-3)


def test_the_least_cost_is_that_of_another_search():
    served, loss = 3e13, 2.02

    sizes = torch.logspace(9, 12, 400_001, dtype=torch.float64)
    costs = 6 * sizes * measurements.tokens_needed(sizes, loss) + 2 * sizes * served
    least = costs.min().item()
    assert measurements.least_flops(loss, served) == pytest.approx(least, rel=1e-6)


# --- what the lesson shows as solutions, and what the package holds -----------------------------


@pytest.mark.parametrize(
    "changed",
    [{}, {"tied": True}, {"kv": 1}, {"kv": 4, "head_dim": 6}, {"layers": 1, "inner": 7}],
)
def test_the_learners_count_is_the_packages_and_hugging_faces(changed):
    told = {"kv": 2, "head_dim": 4, "layers": 3, "inner": 22, "tied": False, **changed}
    config = LlamaConfig(
        vocab_size=31,
        hidden_size=16,
        intermediate_size=told["inner"],
        num_hidden_layers=told["layers"],
        num_attention_heads=4,
        num_key_value_heads=told["kv"],
        head_dim=told["head_dim"],
        max_position_embeddings=32,
        tie_word_embeddings=told["tied"],
    )
    assert exercises.count_parameters(config) == count_parameters(config)
    theirs = LlamaForCausalLM(
        tiny_config(
            vocab_size=31,
            hidden_size=16,
            intermediate_size=told["inner"],
            num_hidden_layers=told["layers"],
            num_attention_heads=4,
            num_key_value_heads=told["kv"],
            head_dim=told["head_dim"],
            tie_word_embeddings=told["tied"],
        )
    )
    assert exercises.count_parameters(config) == sum(p.numel() for p in theirs.parameters())


@pytest.mark.parametrize(("steps", "warmup"), [(250, 25), (7, 1), (1000, 999)])
def test_the_learners_schedule_is_the_packages(steps, warmup):
    for step in range(steps + 1):
        ours = small_lm.learning_rate(step, steps, 3e-3, warmup)
        assert exercises.learning_rate(step, steps, 3e-3, warmup) == pytest.approx(ours)


@pytest.mark.parametrize("size", [1e-4, 1.0, 1e4])
def test_the_learners_clipping_is_pytorchs(size):
    draws = torch.Generator().manual_seed(1)
    tensors = [nn.Parameter(torch.zeros(shape)) for shape in ((3, 4), (5,), (1, 1, 2))]
    for tensor in tensors:
        tensor.grad = size * torch.randn(tensor.shape, generator=draws)
    factor = exercises.clip_factor([t.grad for t in tensors], 1.0)
    ours = [factor * t.grad for t in tensors]
    nn.utils.clip_grad_norm_(tensors, 1.0)
    for mine, tensor in zip(ours, tensors, strict=True):
        torch.testing.assert_close(mine, tensor.grad, rtol=1e-4, atol=1e-7)


def test_the_learners_bytes_are_the_packages_and_those_of_the_zero_paper():
    assert exercises.bytes_per_gpu(7, 1, 0) == sum(training_bytes(7).values())
    figure_1 = [exercises.bytes_per_gpu(7.5e9, 64, stage) / 1e9 for stage in range(4)]
    assert np.round(figure_1, 1).tolist() == [120, 31.4, 16.6, 1.9]


def test_before_the_first_step_the_dpo_loss_is_the_logarithm_of_two():
    same = -torch.rand(6)
    assert exercises.dpo_loss(same, -same, same, -same, 0.3).item() == pytest.approx(math.log(2))


# --- what is measured ---------------------------------------------------------------------------


def test_pytorch_counts_two_flops_forward_and_four_backward():
    model = small_lm.SmallLM(small_lm.LLAMA)
    matrices = sum(p.numel() for p in model.parameters() if p.dim() == 2)
    matrices -= model.embedding.weight.numel()  # a lookup
    tokens = torch.randint(256, (2, 33), generator=torch.Generator().manual_seed(0))
    counted = measurements.counted_flops(model, tokens)
    assert counted["forward"] >= 2 * matrices * 64
    assert counted["backward"] == pytest.approx(2 * counted["forward"], rel=0.3)


def test_small_training_sees_the_packages_batches():
    steps, warmup = 6, 2
    model, batches = measurements.small_training(steps, seed=3)
    losses = measurements.small_losses(steps, warmup, seed=3)
    with torch.no_grad():
        logits = model(batches[0][:, :-1]).flatten(0, 1)
    first = nn.functional.cross_entropy(logits, batches[0][:, 1:].flatten()).item() / math.log(2)
    assert first == pytest.approx(losses[0], rel=1e-5)
    assert len(batches) == len(losses) == steps


def runs(*bits):
    return [{"held_out": b, "training": b - 0.5} for b in bits]


def test_a_change_is_decided_only_where_its_interval_over_seeds_leaves_zero():
    trained = {
        "original": runs(3.0, 3.1, 3.2),
        "better": runs(2.5, 2.61, 2.7),
        "worse": runs(3.4, 3.51, 3.6),
        "luck": runs(2.9, 3.3, 3.1),
        "by itself": runs(3.06, 3.17, 3.3),
    }
    groups = measurements.decided(measurements.differences(trained))
    unsure = ["luck", "by itself"]
    assert groups == {"lower": ["better"], "higher": ["worse"], "undecided": unsure}
    alone = measurements.differences({name: trained[name] for name in ("original", "by itself")})
    assert measurements.decided(alone)["higher"] == ["by itself"]


def test_all_intervals_of_a_table_hold_together():
    draws = np.random.default_rng(0).normal(size=(2000, 8, 3))  # no change has an effect
    held = 0
    for table in draws:
        compared = {str(row): torch.from_numpy(values) for row, values in enumerate(table)}
        held += len(measurements.decided(compared)["undecided"]) == 8
    assert 0.935 < held / len(draws) < 0.975


def test_training_and_held_out_loss_stand_beside_what_needs_no_network():
    rows = measurements.loss_rows({"original": runs(3.0, 3.2)})
    assert rows[0] == ["guessing", "8.00", "8.00"]
    assert [row[0] for row in rows[1:]] == [
        "counted bytes",
        "counted pairs of bytes",
        "xz",
        "original",
    ]
    assert rows[-1][1:] == ["2.60", "3.10"]


def test_each_variant_is_compared_at_the_best_of_its_rates():
    by_rate = {
        "original": {3e-3: runs(3.0)[0], 1e-3: runs(3.4)[0], 1e-2: runs(2.9)[0]},
        "+ rotary": {3e-3: runs(2.5)[0], 1e-3: runs(2.8)[0], 1e-2: runs(2.6)[0]},
    }
    rows = measurements.rate_rows(by_rate)
    assert rows[0] == ["original", "3.40", "3.00", "2.90", "+0.00"]
    assert rows[1] == ["+ rotary", "2.80", "2.50", "2.60", "-0.40"]


def test_a_rise_compares_the_same_bytes_for_each_seed():
    windows, bins = 6, 16
    position = torch.arange(bins).float().expand(2, windows, bins)
    rises = measurements.rises({"rotary": position, "rotary, x scaling": position + 1})
    assert list(rises) == ["rotary"]
    torch.testing.assert_close(rises["rotary"], torch.full([2], 14.5 - 2.5))


def test_a_rule_is_compared_with_the_same_model_at_the_same_positions():
    unscaled = torch.rand(3, 6, 16, generator=torch.Generator().manual_seed(0))
    scaled = unscaled.clone()
    scaled[:, :, :4] += 0.25  # worse within the 128 bytes that the models are trained on
    scaled[:, :, 4:] -= 0.5
    noise = torch.tensor([0.1, -0.1, 0.0])[:, None, None]
    curves = {
        "none": unscaled,
        "rotary": unscaled,
        "rotary, x scaling": scaled,
        "rotary, y scaling": unscaled + noise,
    }
    changes = measurements.changes_by_rule(curves)
    assert list(changes) == ["x.near", "x.far", "y.near", "y.far"]
    torch.testing.assert_close(changes["x.near"], torch.full([3], 0.25))
    torch.testing.assert_close(changes["x.far"], torch.full([3], -0.5))
    plain, by_x, by_y = measurements.rule_rows(curves)
    assert plain[0] == "no rule" and plain[3:] == ["", ""]
    assert by_x[3:] == ["+0.25 [+0.25, +0.25]", "-0.50 [-0.50, -0.50]"]
    assert all(change.endswith("undecided") for change in by_y[3:])
    near, far = (float(x) - float(p) for x, p in zip(by_x[1:3], plain[1:3], strict=True))
    assert near == pytest.approx(0.25, abs=0.011) and far == pytest.approx(-0.5, abs=0.011)


def test_checkpointing_keeps_less_and_its_time_has_an_interval():
    recorded = {}
    results = SimpleNamespace(
        record=lambda name, value, unit, **more: recorded.update({name: more})
    )
    settings = SimpleNamespace(rounds=2, device="cpu")
    config = LlamaConfig(97, 24, 40, 3, 6, 2, head_dim=8, max_position_embeddings=64)
    tokens = torch.randint(97, (1, 33))

    def recompute(model):
        for block in model.model.layers:
            block.forward = partial(checkpoint, block.forward, use_reentrant=False)

    measured = measurements.checkpointing(
        lambda: Llama(config), recompute, tokens, settings, results
    )
    everything, inputs_only = measured.activation_bytes.values()
    assert everything > 2 * inputs_only
    mean, low, high = measured.ratio
    assert 0 < low < mean < high
    assert recorded["checkpointing.time"] == {"low": low, "high": high, "n": 5}
