"""The ladder of schemes, and the published table that stands beside it."""

import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from tiny_llama import tiny_llama

from llama_int8.data import published
from llama_int8.evaluation import perplexity
from llama_int8.evaluation.ladder import (
    CONTROLS,
    LLM_INT8,
    METHODS,
    RUNGS,
    climb,
    losses,
)
from llama_int8.lessons.n07.measurements import (
    Climbed,
    change_over_both,
    spent_error,
    square_table,
    token_or_position,
    verdict_on_decomposition,
)
from llama_int8.quantization.integers import fits, in_integers
from llama_int8.quantization.linear_layers import linear_layers
from llama_int8.quantization.llm_int8 import replace_linears
from llama_int8.quantization.outliers import channel_absmax
from llama_int8.quantization.simulate import Scheme, simulated

WINDOWS = (torch.arange(48).reshape(3, 16) * 5) % 97
SCHEMES = {**RUNGS, **CONTROLS}


@pytest.fixture(scope="module")
def model():
    return tiny_llama()


@pytest.fixture(scope="module")
def climbed(model):
    absmax = channel_absmax(model, WINDOWS, linear_layers(model))
    return climb(model, WINDOWS, SCHEMES, absmax)


def test_the_lowest_rung_is_the_model_itself(model, climbed):
    expected = perplexity.token_nll(model, WINDOWS).mean(1)
    np.testing.assert_allclose(climbed["FP32"]["nll"], [expected], rtol=1e-6)
    assert climbed["FP32"]["kept"] is None  # nothing was rounded


def test_every_rung_that_rounds_changes_the_loss_and_the_model_is_as_before(model, climbed):
    base = climbed["FP32"]["nll"]
    assert all(run["nll"] != base for name, run in climbed.items() if name != "FP32")
    assert losses(model, WINDOWS) == base[0]


def test_a_rung_is_plain_json_and_has_one_loss_for_each_window(climbed):
    assert json.loads(json.dumps(climbed)) == climbed
    assert all([len(n) for n in run["nll"]] == [len(WINDOWS)] for run in climbed.values())


def test_the_first_token_is_one_position_of_each_window(climbed):
    assert climbed["absmax, first token"]["kept"] == pytest.approx(1 / WINDOWS.shape[1])


def test_llm_int8_without_outliers_is_vector_wise(climbed):
    assert climbed[LLM_INT8]["kept"] == 0  # a tiny random model has none
    assert climbed[LLM_INT8]["nll"] == climbed["vector-wise"]["nll"]


def test_the_simulated_rung_is_close_to_the_real_layers(climbed):
    real = perplexity.token_nll(replace_linears(tiny_llama()), WINDOWS).mean(1)
    base, rung = (np.array(climbed[name]["nll"][0]) for name in ("FP32", LLM_INT8))
    assert np.abs(rung - real).mean() < 0.5 * np.abs(rung - base).mean() + 1e-4


def test_each_rung_is_a_stage_of_its_own(model):
    stages = []

    def stage(name, compute, *, timed):
        stages.append(name)
        return compute()

    climb(model, WINDOWS, {name: RUNGS[name] for name in ("FP32", "absmax")}, {}, stage)
    assert [name.split(",")[0] for name in stages] == ["FP32", "absmax"]


# --- exact integer products -----------------------------------------------------------------------

IN_INTEGERS = {name: scheme for name, scheme in SCHEMES.items() if fits(scheme)}


@pytest.mark.parametrize("name", IN_INTEGERS)
def test_integer_products_are_the_simulation_to_the_rounding_of_fp32(name):
    """Layer by layer, on the same input: in a whole model a rounded tie would grow."""
    torch.manual_seed(0)
    linear = torch.nn.Linear(24, 10)
    x = torch.randn(1, 12, 24) * 3
    x[0, 0] *= 5
    scheme, layer = SCHEMES[name], {"model.layers.0.mlp.down_proj": linear}
    if scheme.random_columns:
        pytest.skip("both draw columns of their own")
    absmax = {name: x[0].abs().amax(0) for name in layer}
    with torch.inference_mode():
        with simulated(layer, scheme, absmax) as simulated_count:
            expected = linear(x)
        with in_integers(layer, scheme, absmax) as count:
            y = linear(x)
        torch.testing.assert_close(y, expected, rtol=1e-4, atol=1e-4)
        assert count.share == simulated_count.share
        assert not torch.equal(linear(x), y)  # the layer is as it was


def test_random_columns_are_as_many_and_hold_no_outlier():
    linear, x = torch.nn.Linear(24, 10), torch.ones(1, 5, 24)
    x[0, 2, [3, 7]] = 50.0
    layer = {"down_proj": linear}
    with (
        in_integers(layer, SCHEMES["vector-wise, random columns"]) as count,
        torch.inference_mode(),
    ):
        linear(x)
    assert count.share == 2 / 24


def test_a_moved_grid_is_another_draw_of_the_same_size_of_error():
    torch.manual_seed(0)
    linear, x = torch.nn.Linear(256, 64, bias=False), torch.randn(1, 32, 256)
    errors = []
    with torch.inference_mode():
        exact = linear(x)
        for shift in (0.0, 0.25, 0.5):
            with in_integers({"it": linear}, Scheme("row", "row"), shift=shift):
                errors.append(linear(x) - exact)
    sizes = [error.square().mean().sqrt().item() for error in errors]
    assert max(sizes) < 1.2 * min(sizes)
    assert not torch.allclose(errors[0], errors[1], atol=sizes[0] / 2)


def test_schemes_share_the_codes_of_weights_that_they_round_alike(model):
    names = ("vector-wise", LLM_INT8, "absmax", "row-wise", "zero point")
    together = climb(model, WINDOWS, {name: SCHEMES[name] for name in names}, {}, shifts=(0.0, 0.5))
    for name in names:
        by_itself = climb(model, WINDOWS, {name: SCHEMES[name]}, {}, shifts=(0.0, 0.5))
        assert together[name] == by_itself[name]
    known, linears = {}, linear_layers(model)
    for name in names:
        with in_integers(linears, SCHEMES[name], known=known):
            pass
    assert len(known) == 3 * len(linears)  # by row, by tensor, and by tensor with zero points


@pytest.mark.parametrize(
    "name", ["zero point", "zero point + decomposition", LLM_INT8, "zero point vector-wise"]
)
def test_on_a_moved_grid_a_product_is_that_of_the_values_on_this_grid(name):
    """Weights that lie on the moved grid come back exactly, so only the activations are rounded."""
    torch.manual_seed(0)
    scheme, shift = SCHEMES[name], 0.25
    codes = torch.randint(-120, 121, (10, 24)).float()
    codes[:, 0], codes[:, 1] = -127.0, 127.0
    linear, x = torch.nn.Linear(24, 10, bias=False), torch.randn(1, 12, 24)
    linear.weight.data = codes + shift
    with torch.inference_mode():
        exact = linear(x)
        errors = []
        for moved in (0.0, shift):
            with in_integers({"it": linear}, scheme, shift=moved):
                errors.append((linear(x) - exact).square().mean().sqrt())
    assert errors[1] < 1.02 * errors[0] < 0.05 * exact.square().mean().sqrt()


def test_one_sided_schemes_are_left_to_the_simulation():
    for scheme in (Scheme("row"), Scheme(None, "row"), SCHEMES["FP32"]):
        assert not fits(scheme)
        with pytest.raises(ValueError, match="simulate"), in_integers({}, scheme):
            pass


# --- the interval over windows and grids ------------------------------------------------------


def test_an_interval_over_both_covers_the_luck_of_both():
    generator = np.random.default_rng(0)
    covered = 0
    for _ in range(300):
        windows = generator.normal(0, 0.03, (1, 40))
        grids = generator.normal(0, 0.004, (4, 1))
        change = change_over_both(1 + windows + grids + generator.normal(0, 0.03, (4, 40)))
        covered += change.low <= 1 <= change.high
    assert covered / 300 >= 0.93


def test_an_interval_over_windows_by_themselves_is_too_narrow_where_grids_differ():
    differences = np.array([[0.9], [1.1], [0.95], [1.05]]) + np.linspace(-0.01, 0.01, 20)
    over_both, over_windows = change_over_both(differences), change_over_both(differences[:1])
    assert over_both.high - over_both.low > 5 * (over_windows.high - over_windows.low)
    assert (over_both.windows, over_both.grids, over_windows.grids) == (20, 4, 1)


def test_the_papers_table_has_our_methods_and_five_models():
    table = published("llm-int8-paper")
    assert {*METHODS, "row-wise + decomposition", LLM_INT8} <= set(table["rows"])
    assert all(len(row) == len(table["columns"]) == 5 for row in table["rows"].values())
    full = [float(value) for value in table["rows"]["32-bit"]]
    assert full == sorted(full, reverse=True)  # the larger model is the better one


def test_a_wider_confidence_gives_a_wider_interval_about_the_same_mean():
    differences = np.random.default_rng(1).normal(0.01, 0.03, (4, 20))
    single, together = change_over_both(differences), change_over_both(differences, 0.995)
    assert single.mean == together.mean
    assert together.low < single.low and together.high > single.high


def test_windows_that_take_turns_give_an_interval_over_the_grids_means():
    generator = np.random.default_rng(3)
    covered = 0
    for _ in range(300):
        losses = generator.normal(0, 0.03, (4, 40)) + generator.normal(0, 0.01, (4, 1)) + 1
        losses[np.arange(4)[:, None] != np.arange(40) % 4] = np.nan
        change = change_over_both(losses)
        assert (change.windows, change.grids) == (40, 4)
        covered += change.low <= 1 <= change.high
    assert covered / 300 >= 0.92


def test_rungs_in_turns_and_on_every_grid_are_compared_on_the_same_pairs(model):
    shifts = (0.0, 0.5)
    rungs = {name: SCHEMES[name] for name in ("row-wise", "vector-wise")}
    every = climb(model, WINDOWS, rungs, {}, shifts=shifts)
    turns = climb(model, WINDOWS, rungs, {}, shifts=shifts, in_turns=True)
    whole, some = (np.array(run["row-wise"]["nll"], float) for run in (every, turns))
    met = np.isfinite(some)
    assert met.tolist() == [[True, False, True], [False, True, False]]
    np.testing.assert_array_equal(whole[met], some[met])
    other = np.array(every["vector-wise"]["nll"], float)
    change = Climbed({"one": some, "two": other}, {}).change("one", "two")
    means = [(other - whole)[grid][met[grid]].mean() for grid in (0, 1)]
    assert change.mean == pytest.approx(np.mean(means))


def test_one_rule_says_what_is_decided():
    differences = np.random.default_rng(4).normal(0, 0.001, (4, 20))
    decided = [change_over_both(differences + mean).decided for mean in (-0.1, 0.0, 0.1)]
    assert decided == ["lower", "undecided", "higher"]


def test_the_verdict_on_the_decomposition_follows_the_rule_of_the_controls():
    noise = np.random.default_rng(5).normal(0, 0.001, (3, 4, 20))
    names = (LLM_INT8, "vector-wise, original weights", "vector-wise")

    def verdict(left, before):
        losses = {"FP32": np.zeros((1, 20))}
        losses |= dict(
            zip(names, noise + np.array([left, left, before])[:, None, None], strict=True)
        )
        return verdict_on_decomposition(Climbed(losses, {}), "tiny", parameters)

    parameters = 6.74e9
    assert verdict(0.1, 0.2)[1] == "fails here"
    assert "restores a part of the loss" in verdict(0.1, 0.2)[2]
    assert "restores a part of the loss is undecided" in verdict(0.1, 0.1)[2]
    assert verdict(0.0, 0.1)[1] == "undecided here"
    parameters = 135e6  # the claim is not about so small a model
    assert verdict(0.1, 0.2)[1] == verdict(0.0, 0.1)[1] == "not testable here"


def test_the_square_says_what_each_part_repairs_of_the_damage(capsys):
    losses = {"FP32": [[0.0] * 4], "absmax": [[1.0] * 4], "absmax + decomposition": [[0.2] * 4]}
    losses |= {"row-wise": [[0.1] * 4], "row-wise + decomposition": [[0.05] * 4]}
    climbed = Climbed({name: np.array(rows) for name, rows in losses.items()}, {})
    said = square_table(climbed)
    assert "a scale per row 90%, by the decomposition 80%, by both 95%" in said
    assert "mostly the same damage" in said


def test_a_text_that_repeats_its_first_token_tells_token_from_position(capsys):
    torch.manual_seed(0)
    results = SimpleNamespace(record=lambda name, *_, **__: recorded.append(name))
    recorded = []
    said = token_or_position(results, tiny_llama(), torch.tensor([[5, 9, 11, 3, 8, 2]]))
    assert "of 4 texts" in said and len(recorded) == 4


def test_the_error_of_a_layers_output_falls_with_what_is_kept():
    torch.manual_seed(0)
    x, weight = torch.randn(6, 32), torch.randn(8, 32)
    x[2, 3] = 60.0
    errors = [spent_error(x, x.abs() >= limit, weight) for limit in (100.0, 6.0, 0.0)]
    assert errors[0] > 2 * errors[1] > errors[2] == 0
