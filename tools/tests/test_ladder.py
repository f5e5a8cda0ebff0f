"""The ladder of schemes, and the published table that stands beside it."""

import json

import numpy as np
import pytest
import torch
from tiny_llama import tiny_llama

from llama_int8.data import published
from llama_int8.evaluation import perplexity
from llama_int8.evaluation.ladder import CONTROLS, LLM_INT8, METHODS, RUNGS, THRESHOLDS, climb
from llama_int8.quantization.linear_layers import linear_layers
from llama_int8.quantization.llm_int8 import replace_linears
from llama_int8.quantization.outliers import channel_absmax

WINDOWS = (torch.arange(48).reshape(3, 16) * 5) % 97
SCHEMES = {**RUNGS, **THRESHOLDS, **CONTROLS}


@pytest.fixture(scope="module")
def model():
    return tiny_llama()


@pytest.fixture(scope="module")
def climbed(model):
    absmax = channel_absmax(model, WINDOWS, linear_layers(model))
    return climb(model, WINDOWS, SCHEMES, absmax)


def test_the_lowest_rung_is_the_model_itself(model, climbed):
    expected = perplexity.token_nll(model, WINDOWS).mean(1)
    np.testing.assert_array_equal(climbed["FP32"]["nll"], expected)
    assert climbed["FP32"]["kept"] is None  # nothing was rounded


def test_every_rung_that_rounds_changes_the_loss_and_the_model_is_as_before(model, climbed):
    base = climbed["FP32"]["nll"]
    assert all(run["nll"] != base for name, run in climbed.items() if name != "FP32")
    np.testing.assert_array_equal(perplexity.token_nll(model, WINDOWS).mean(1), base)


def test_a_rung_is_plain_json_and_has_one_loss_for_each_window(climbed):
    assert json.loads(json.dumps(climbed)) == climbed
    assert all(len(run["nll"]) == len(WINDOWS) for run in climbed.values())


def test_the_first_token_is_one_position_of_each_window(climbed):
    assert climbed["absmax, first token"]["kept"] == pytest.approx(1 / WINDOWS.shape[1])


def test_llm_int8_without_outliers_is_vector_wise(climbed):
    assert climbed[LLM_INT8]["kept"] == 0  # a tiny random model has none
    assert climbed[LLM_INT8]["nll"] == climbed["vector-wise"]["nll"]


def test_the_simulated_rung_is_close_to_the_real_layers(climbed):
    real = perplexity.token_nll(replace_linears(tiny_llama()), WINDOWS).mean(1)
    base, simulated = (np.array(climbed[name]["nll"]) for name in ("FP32", LLM_INT8))
    assert np.abs(simulated - real).mean() < 0.5 * np.abs(simulated - base).mean() + 1e-4


def test_each_rung_is_a_stage_of_its_own(model):
    stages = []

    def stage(name, compute, *, timed):
        stages.append(name)
        return compute()

    climb(model, WINDOWS, {name: RUNGS[name] for name in ("FP32", "absmax")}, {}, stage)
    assert stages == ["FP32", "absmax"]


def test_the_papers_table_has_our_methods_and_five_models():
    table = published("llm-int8-paper")
    assert {*METHODS, "row-wise + decomposition", LLM_INT8} <= set(table["rows"])
    assert all(len(row) == len(table["columns"]) == 5 for row in table["rows"].values())
    full = [float(value) for value in table["rows"]["32-bit"]]
    assert full == sorted(full, reverse=True)  # the larger model is the better one
