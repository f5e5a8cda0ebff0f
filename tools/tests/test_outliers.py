"""What enters the linear layers, which of it are outliers, and models with rounded operands."""

from dataclasses import replace

import pytest
import torch
from helpers import normal, refused, twin_of
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_llama import tiny_llama
from torch import nn

from llama_int8.quantization.linear_layers import linear_layers, watching
from llama_int8.quantization.llm_int8 import Int8Linear
from llama_int8.quantization.outliers import (
    ENTRANCES,
    PAPERS_ENTRANCES,
    channel_absmax,
    layer_of,
    outlier_columns,
    outlier_features,
    papers_inputs,
    record_inputs,
)
from llama_int8.quantization.quantize import (
    absmax_quantize,
    dequantize,
    quantized_matmul,
    zeropoint_quantize,
)
from llama_int8.quantization.simulate import Scheme, simulated, smoothing_factors

TOKENS = torch.arange(40).reshape(2, 20) * 7 % 97
VECTORWISE = Scheme(weights="row", activations="row")


def hooks_of(model):
    return sum(len(m._forward_pre_hooks) + len(m._forward_hooks) for m in model.modules())


@pytest.fixture
def model():
    return tiny_llama(initializer_range=0.3)


# --- finding and watching layers --------------------------------------------------------------


def test_linear_layers_are_all_but_the_skipped_by_whole_parts_of_their_path(model):
    every = {n: m for n, m in model.named_modules() if isinstance(m, nn.Linear)}
    assert linear_layers(model, ()) == every and len(every) == 3 * 7 + 1
    assert linear_layers(model) == {n: m for n, m in every.items() if n != "lm_head"}
    assert set(linear_layers(model, "mlp")) == {n for n in every if ".mlp." not in n}
    twelve = nn.ModuleDict({str(i): nn.ModuleList([nn.Linear(1, 1)]) for i in (1, 12)})
    assert list(linear_layers(twelve, "1")) == ["12.0"]
    with refused(ValueError, "'down'"):
        linear_layers(model, ("lm_head", "down"))
    with refused(ValueError, "ModuleList", "no linear layer"):
        linear_layers(nn.ModuleList())


def test_watching_sees_each_input_in_order_and_its_hooks_end_with_the_block(model):
    seen = []
    linears = linear_layers(model)
    with watching(linears, lambda name, x: seen.append((name, x.shape, x.requires_grad))):
        model(TOKENS)
    assert {name for name, *_ in seen} == set(linears) and len(seen) == len(linears)
    assert seen[0] == ("model.layers.0.self_attn.q_proj", (2, 20, 24), False)
    with pytest.raises(ZeroDivisionError), watching(linears, lambda name, x: 1 / 0):
        model(TOKENS)
    assert hooks_of(model) == 0


@pytest.mark.parametrize("kinds", [ENTRANCES, PAPERS_ENTRANCES, ("up_proj", "lm_head")])
def test_recorded_is_exactly_what_enters_on_hugging_faces_model_and_on_ours(model, kinds):
    expected, hooks = {}, []
    for name, module in model.named_modules():
        if name.split(".")[-1] in kinds:
            hooks.append(
                module.register_forward_hook(
                    lambda _, x, y, name=name: expected.update({name: x[0]})
                )
            )
    model(TOKENS, logits_to_keep=1)
    for hook in hooks:
        hook.remove()
    recorded, ours = (
        record_inputs(model, TOKENS, kinds),
        record_inputs(twin_of(model), TOKENS, kinds),
    )
    assert list(recorded) == list(ours) == [n for n in expected if n] and expected
    for name, x in recorded.items():
        assert x.dtype == torch.float32 and not x.is_inference() and not x.requires_grad
        assert torch.equal(x, expected[name])
        torch.testing.assert_close(ours[name], x, rtol=1e-4, atol=1e-4)
    assert hooks_of(model) == 0


def test_recorded_inputs_are_fp32_and_hooks_go_after_an_error(model):
    recorded = record_inputs(model.bfloat16(), TOKENS)
    assert {x.dtype for x in recorded.values()} == {torch.float32}
    with pytest.raises(IndexError):
        record_inputs(model, TOKENS + 97)
    assert hooks_of(model) == 0
    with refused(ValueError, "LlamaForCausalLM", "no linear layer", "c_attn, proj"):
        record_inputs(model, TOKENS, ("c_attn", "proj"))


@pytest.mark.parametrize("make", [lambda m: m, twin_of])
def test_channel_absmax_is_the_largest_over_all_windows(model, make):
    model = make(model)
    inputs = [record_inputs(model, window[None], ("down_proj", "q_proj")) for window in TOKENS]
    largest = channel_absmax(model, TOKENS, linear_layers(model))
    assert set(largest) == set(linear_layers(model)) and hooks_of(model) == 0
    for name in inputs[0]:
        by_window = torch.stack([x[name][0].abs().amax(0) for x in inputs])
        assert (by_window.argmax(0) == 0).any() and (by_window.argmax(0) == 1).any()
        assert torch.equal(largest[name], by_window.amax(0))


# --- outliers ---------------------------------------------------------------------------------


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 999), st.lists(st.integers(1, 4), max_size=3), st.floats(0.1, 3))
def test_outlier_columns_hold_a_magnitude_of_the_threshold(seed, shape, threshold):
    x = normal(*shape, 2, 6, seed=seed)
    x[..., 0, 3] = -threshold
    threshold = x[..., 0, 3].abs().max().item()  # as FP32 holds it
    rows = x.reshape(-1, 6).tolist()
    expected = [c for c in range(6) if any(abs(row[c]) >= threshold for row in rows)]
    assert 3 in expected and outlier_columns(x, threshold).tolist() == expected


def features_by_loops(inputs, threshold, layers, positions):
    """The criterion of the paper's section 4, word by word."""
    numbers = sorted({int(name.split(".")[2]) for name in inputs})
    B, T, C = next(iter(inputs.values())).shape
    found = {}
    for c in range(C):
        hit_layers, hits = 0, 0
        for number in numbers:
            mine = [x for name, x in inputs.items() if int(name.split(".")[2]) == number]
            places = [(b, t) for b in range(B) for t in range(T)]
            large = [p for p in places if any(abs(x[p][c].item()) >= threshold for x in mine)]
            hit_layers += bool(large)
            hits += len(large)
        shares = hit_layers / len(numbers), hits / (len(numbers) * B * T)
        if shares[0] >= layers and shares[1] >= positions:
            found[c] = shares
    return found


@settings(max_examples=60, deadline=None)
@given(
    st.integers(0, 999),
    st.integers(1, 5),
    st.sampled_from([(1, 5), (2, 5), (1, 10)]),
    st.sampled_from([0.0, 0.25, 0.5, 1.0]),
    st.sampled_from([0.0, 0.05, 0.06, 0.1, 0.2]),
    st.sampled_from([5.0, 6.0, 8.0]),
)
def test_outlier_features_are_those_of_loops_over_every_value(seed, n, shape, layers, share, limit):
    inputs = {}
    for layer in range(n):
        for kind in ("self_attn.q_proj", "mlp.gate_proj")[: 1 + (layer + seed) % 2]:
            values = (3 * normal(*shape, 8, seed=seed + 97 * len(inputs))).round()  # 6.0 exactly
            inputs[f"model.layers.{7 + layer}.{kind}"] = values * (torch.arange(8) / 5).ceil()
    found = outlier_features(inputs, limit, layers, share)
    expected = features_by_loops(inputs, limit, layers, share)
    assert list(found) == list(expected)
    for channel, shares in expected.items():
        assert found[channel] == pytest.approx(shares, rel=1e-6)


@pytest.mark.parametrize("T", [50, 100, 150, 200, 450, 850])
def test_a_quarter_of_the_layers_and_six_percent_of_the_positions_are_enough(T):
    inputs = {f"model.layers.{i}.self_attn.q_proj": torch.zeros(1, T, 3) for i in range(4)}
    enough = 4 * T * 6 // 100
    inputs["model.layers.2.self_attn.q_proj"][0, :enough, 0] = -6.0
    inputs["model.layers.2.self_attn.q_proj"][0, : enough - 1, 1] = 600.0
    assert outlier_features(inputs) == {0: (0.25, pytest.approx(0.06))}
    inputs["model.layers.4.self_attn.q_proj"] = torch.zeros(1, T, 3)
    assert outlier_features(inputs, positions=0) == {}  # in one layer of five


def test_a_layers_inputs_count_together_and_the_layers_number_is_the_first_in_its_name():
    early, late = torch.zeros(1, 10, 2), torch.zeros(1, 10, 2)
    early[0, :2, 0], late[0, 1:3, 0] = 7, -7
    names = "model.layers.10.self_attn.q_proj", "model.layers.10.mlp.gate_proj"
    assert {layer_of(name) for name in names} == {10}
    assert outlier_features(dict(zip(names, (early, late), strict=True))) == {
        0: (1.0, pytest.approx(0.3))
    }


def test_what_is_no_threshold_and_inputs_of_several_widths_are_refused():
    inputs = {f"layers.{i}.q_proj": torch.ones(1, 1, 2 + i) for i in range(2)}
    with refused(ValueError, "[2, 3]", "one width"):
        outlier_features(inputs)
    for threshold in (0.0, -6.0, float("nan"), float("inf")):
        for refuse in (outlier_features, lambda x, t: outlier_columns(x["layers.0.q_proj"], t)):
            with refused(ValueError, f"threshold is {threshold}"):
                refuse({"layers.0.q_proj": torch.ones(1, 1, 2)}, threshold)


@pytest.mark.parametrize("head_dim", [6, 8])  # 4 heads of 6 are the width of 24, of 8 are not
def test_channels_of_o_proj_count_only_where_they_are_those_of_the_residual_stream(head_dim):
    model = tiny_llama(num_attention_heads=4, num_key_value_heads=2, head_dim=head_dim)
    chosen = papers_inputs(record_inputs(model, TOKENS))
    kinds = ("q_proj", "o_proj", "gate_proj") if head_dim == 6 else ("q_proj", "gate_proj")
    assert [name.rpartition(".")[2] for name in chosen] == [*kinds] * 3  # layers
    assert {x.shape[-1] for x in chosen.values()} == {24}
    assert outlier_features(chosen, threshold=1e-9, positions=0.0).keys() == set(range(24))


# --- simulated schemes ------------------------------------------------------------------------


def layer_and_input(seed=0):
    """A layer and inputs (2, 9, 16) of which columns 1 and 8 hold outliers, all numbers FP16's."""
    torch.manual_seed(seed)
    linear, x = nn.Linear(16, 11), normal(2, 9, 16, seed=seed)
    x[0, 3, 1], x[1, 2, 8], x[0, 0] = 17.0, -60.0, 5 * x[0, 0].clamp(-1, 1)
    linear.weight.data = linear.weight.data.half().float()
    return linear, x.half().float()


def passed_on(linear, x, scheme, **options):
    """What the layer multiplies within the block, and the count."""
    with simulated({"layer": linear}, scheme, **options) as kept, torch.no_grad():
        seen = []
        handle = linear.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
        y = linear(x)
        handle.remove()
    return seen[0], kept, y


def test_a_last_group_may_be_shorter_and_has_a_scale_of_its_own():
    torch.manual_seed(0)
    linear, x = nn.Linear(80, 5), normal(2, 3, 80)  # groups of 32, 32 and 16
    seen, kept, _ = passed_on(linear, x, Scheme("group", "group"))
    parts = [p / p.abs().amax(-1, keepdim=True) * 127 for p in x.split(32, dim=-1)]
    sizes = [p.abs().amax(-1, keepdim=True) / 127 for p in x.split(32, dim=-1)]
    wanted = torch.cat([p.round() * size for p, size in zip(parts, sizes, strict=True)], -1)
    torch.testing.assert_close(seen, wanted, rtol=1e-5, atol=1e-6)
    assert kept.values == x.numel()


def test_no_scheme_changes_no_bit_and_every_scheme_leaves_the_weights_as_they_were(model):
    linears, before = linear_layers(model), {k: v.clone() for k, v in model.state_dict().items()}
    absmax = channel_absmax(model, TOKENS, linears)
    pointers = [linear.weight.data_ptr() for linear in linears.values()]

    def run(scheme, tokens=TOKENS):
        with torch.no_grad(), simulated(linears, scheme, absmax):
            return model(tokens).logits

    plain = model(TOKENS).logits
    assert torch.equal(run(Scheme()), plain)
    every = replace(VECTORWISE, threshold=3.0, token=0, smoothing=0.5, zero_point=True)
    for scheme in (Scheme(weights="row"), Scheme(activations="tensor"), VECTORWISE, every):
        assert not torch.equal(run(scheme), plain)
        with pytest.raises(IndexError):
            run(scheme, TOKENS + 97)
        if scheme.smoothing is not None:  # an error before the block begins
            with (
                pytest.raises(KeyError),
                simulated(linears, scheme, dict(list(absmax.items())[:3])),
            ):
                pass
        assert hooks_of(model) == 0
        assert all(torch.equal(model.state_dict()[k], v) for k, v in before.items())
        assert [linear.weight.data_ptr() for linear in linears.values()] == pointers
        assert torch.equal(model(TOKENS).logits, plain)


@pytest.mark.parametrize("quantize", [absmax_quantize, zeropoint_quantize])
@pytest.mark.parametrize("weights", ["tensor", "row"])
@pytest.mark.parametrize("activations", ["tensor", "row"])
def test_rounded_operands_give_the_integer_product(weights, activations, quantize):
    linear, x = layer_and_input()
    scheme = Scheme(weights, activations, zero_point=quantize is zeropoint_quantize)
    _, kept, y = passed_on(linear, x, scheme)
    a = quantize(x.reshape(-1, 16), granularity=activations)
    b = quantize(linear.weight.detach(), granularity=weights)
    expected = quantized_matmul(a, b) + linear.bias
    torch.testing.assert_close(y.reshape(-1, 11), expected, rtol=1e-5, atol=1e-5)
    assert (kept.values, kept.kept, kept.share) == (2 * 9 * 16, 0, 0.0)


@pytest.mark.parametrize("threshold", [0.0, 2.0, 6.0, 17.0])  # one value is 17.0
def test_row_by_row_with_a_threshold_is_llm_int8(threshold):
    linear, x = layer_and_input()
    _, kept, y = passed_on(linear, x, replace(VECTORWISE, threshold=threshold))
    torch.testing.assert_close(
        y, Int8Linear.from_linear(linear, threshold)(x), rtol=1e-5, atol=1e-5
    )
    columns = outlier_columns(x, threshold).numel() if threshold else 0
    assert kept.share == columns / 16
    assert kept.kept == 18 * columns


def test_the_first_token_of_each_window_stays_bit_by_bit_and_no_other():
    linear, x = layer_and_input()
    for scheme in (VECTORWISE, Scheme(activations="tensor"), replace(VECTORWISE, threshold=6.0)):
        entered, kept, _ = passed_on(linear, x, replace(scheme, token=0))
        changed = entered != x
        assert not changed[:, 0].any() and changed[:, 1:].any(-1).all()
        columns = 2 if scheme.threshold else 0
        assert not columns or not changed[..., [1, 8]].any()
        assert kept.kept == 2 * 16 + columns * (18 - 2)  # the tokens, and the columns of the others
    x[:, 0] *= 1000  # what stays has no part in the scale
    rounded = passed_on(linear, x, Scheme(activations="tensor", token=0))[0]
    assert torch.equal(rounded[:, 1:], passed_on(linear, x[:, 1:], Scheme(activations="tensor"))[0])


def test_random_columns_are_as_many_as_the_thresholds_and_stay_whole():
    linear, x = layer_and_input()
    scheme = replace(VECTORWISE, threshold=6.0, random_columns=True)
    chosen = set()
    for seed in range(20):
        entered, kept, _ = passed_on(linear, x, scheme, seed=seed)
        assert torch.equal(entered, passed_on(linear, x, scheme, seed=seed)[0])
        whole = (entered == x).flatten(0, 1).all(0).nonzero().flatten().tolist()
        assert len(whole) == 2 and kept.share == 2 / 16
        rest = x.clone()
        rest[..., whole] = 0  # they have no part in the scale; the outliers that do not stay have
        rounded = dequantize(absmax_quantize(rest, granularity="row"))
        assert torch.equal(entered - rounded, x - rest)
        chosen.add(tuple(whole))
    assert len(chosen) > 10


def test_layers_that_share_an_input_share_what_is_kept_of_it(model):
    linears = linear_layers(model)
    entered = {}
    scheme = replace(VECTORWISE, threshold=2.0, random_columns=True)
    with simulated(linears, scheme) as kept, watching(linears, entered.__setitem__):
        model(TOKENS)
    for name in linears:
        for first, other in (("q_proj", "k_proj"), ("q_proj", "v_proj"), ("gate_proj", "up_proj")):
            if name.endswith(first):
                assert torch.equal(entered[name], entered[name.replace(first, other)])
    assert kept.values == sum(x.numel() for x in entered.values())


@pytest.mark.parametrize("alpha", [0.0, 0.5, 1.0])
def test_smoothing_alone_changes_nothing_but_by_rounding(model, alpha):
    linears = linear_layers(model)
    absmax = channel_absmax(model, TOKENS, linears)
    with torch.no_grad():
        plain = model(TOKENS).logits
        with simulated(linears, Scheme(smoothing=alpha), absmax):
            smoothed = model(TOKENS).logits
    assert not torch.equal(smoothed, plain)
    torch.testing.assert_close(smoothed, plain, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("alpha", [0.0, 0.3, 0.5, 1.0])
def test_smoothing_factors_are_the_papers_and_divide_what_enters(alpha):
    linear, x = layer_and_input()
    absmax = x.abs().amax((0, 1))
    largest = linear.weight.detach().abs().amax(0)
    expected = absmax.double() ** alpha / largest.double() ** (1 - alpha)
    factors = smoothing_factors(linear.weight.detach(), absmax, alpha)
    torch.testing.assert_close(factors.double(), expected, rtol=1e-5, atol=0)
    entered = passed_on(linear, x, Scheme(smoothing=alpha), absmax={"layer": absmax})[0]
    torch.testing.assert_close(entered, x / expected.float(), rtol=1e-5, atol=0)
    for weight in (torch.zeros(3, 2), torch.full((3, 2), 1e30)):
        unused = smoothing_factors(weight, torch.zeros(2), alpha)
        assert unused.isfinite().all() and (unused >= 0.99e-5).all()


def test_smoothing_moves_the_outliers_into_the_weights_before_both_are_rounded():
    linear, x = layer_and_input()
    absmax = {"layer": x.abs().amax((0, 1))}
    with torch.no_grad():
        exact = linear(x)

    def error(scheme):
        return (passed_on(linear, x, scheme, absmax=absmax)[2] - exact).abs().mean()

    one = Scheme("tensor", "tensor")
    assert error(replace(one, smoothing=0.5)) < 0.5 * error(one)
    with refused(ValueError, "absmax"), simulated({"layer": linear}, replace(one, smoothing=0.5)):
        pass


def test_another_token_can_be_kept_instead():
    linear, x = nn.Linear(6, 4), torch.randn(2, 5, 6)
    entered, kept, _ = passed_on(linear, x, replace(VECTORWISE, token=3))
    assert torch.equal(entered[:, 3], x[:, 3])
    assert not torch.equal(entered[:, 0], x[:, 0])
    assert kept.share == 1 / 5


def test_columns_are_kept_only_in_the_layers_that_are_named():
    model = tiny_llama()
    absolute = {name: [] for name in ("all", "down_proj", "nothing")}
    for name, decomposed in (("all", None), ("down_proj", ("down_proj",)), ("nothing", ("x",))):
        scheme = replace(VECTORWISE, threshold=1e-3, decomposed=decomposed)
        with simulated(linear_layers(model), scheme) as kept:
            model(TOKENS)
        absolute[name] = kept.kept
    assert absolute["all"] > absolute["down_proj"] > absolute["nothing"] == 0


def test_with_original_weights_the_kept_columns_are_multiplied_exactly():
    torch.manual_seed(0)
    linear, x = nn.Linear(6, 4), torch.randn(3, 5, 6)
    x[..., 2] += 50
    scheme = replace(VECTORWISE, threshold=20.0, original_weights=True)
    with simulated({"it": linear}, scheme) as kept, torch.no_grad():
        y = linear(x)
    assert kept.share == 1 / 6
    rest = x.clone()
    rest[..., 2] = 0
    codes = dequantize(absmax_quantize(rest, granularity="row"))
    weights = dequantize(absmax_quantize(linear.weight.detach(), granularity="row"))
    expected = codes @ weights.T + x[..., 2:3] @ linear.weight.detach()[:, 2:3].T + linear.bias
    torch.testing.assert_close(y, expected.detach())
