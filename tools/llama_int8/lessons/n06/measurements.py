"""What lesson 06 measures on a real model: rounded weights and their loss, zeros among activations."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from tqdm.auto import tqdm
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from llama_int8.evaluation import perplexity
from llama_int8.lessons.n06.grids import shifted, turned
from llama_int8.measure.results import Results
from llama_int8.measure.statistics import PairedDifference, mean_interval, paired_bootstrap
from llama_int8.quantization.linear_layers import watching

Rule = Callable[[Tensor], Tensor]  # weights in, rounded weights out
Rules = Rule | Mapping[str, Rule]  # one for all layers, or each layer's own by its name
Verdict = tuple[str, str, str]  # measured, verdict, because: what put_on_trial takes
# One layer for each entrance of a block: q, k and v get the same input, and so do gate and up.
ENTRANCES = {"q_proj": "q, k, v", "o_proj": "o", "gate_proj": "gate, up", "down_proj": "down"}
LOSS_HEADER = "codes", "scheme", "bits per weight", "SNR of weights, dB", "change of loss, nats"
PAIRS = {  # what is compared window by window: the second minus the first
    "4 bits, groups minus rows": (("per-channel", "4 bits"), ("per-group", "4 bits")),
    "8 bits per row, FP8 minus int8": (("per-channel", "8 bits"), ("FP8, per-channel", "8 bits")),
}
FEW_BITS = [(by, f"{bits} bits") for bits in (4, 3) for by in ("per-channel", "per-group")]
TURNED_HEADER = "codes", "weights", "per-channel", "per-group", "groups minus rows"
TOKENS_PER_PASS = 1024
ZERO_AT = 254  # half a step of an 8-bit absmax grid is the largest magnitude over 2 x 127


def _noise_to_signal(values: Tensor, restored: Tensor) -> Tensor:
    """Mean square of the error over that of the values, much faster than in float64."""
    norm = torch.linalg.vector_norm
    return (norm((restored - values).float()) / norm(values.float())).square()


@contextmanager
def rounded_weights(linears: Mapping[str, nn.Linear], rules: Rules) -> Iterator[float]:
    """Within the block every layer has its rule's weights; yields the SNR of all of them in dB.

    It is that of the mean noise-to-signal ratio, so that a large layer counts no more than a small
    one. The weights are put back at the end of the block, after an error, too.
    """
    originals = {name: linear.weight.data for name, linear in linears.items()}
    noise = []
    try:
        for name, linear in linears.items():
            rule = rules if callable(rules) else rules[name]
            linear.weight.data = rule(originals[name]).to(originals[name].dtype)
            noise.append(_noise_to_signal(originals[name], linear.weight.data))
        yield -10 * torch.stack(noise).mean().log10().item()
    finally:
        for name, linear in linears.items():
            linear.weight.data = originals[name]


@dataclass(frozen=True)
class Scheme:
    """How the weights, and perhaps the activations, of every linear layer are rounded."""

    weights: Rules
    bits_per_weight: float  # codes and scales
    activations: Rule | None = None  # takes what enters a layer as a matrix, one row per token


@dataclass(frozen=True)
class Cost:
    """What a scheme costs a model."""

    decibels: float  # SNR of the weights
    bits_per_weight: float
    nll: np.ndarray  # of each window, in nats per token
    loss: PairedDifference  # change against the model as it was


def at_bits(
    linears: Mapping[str, nn.Linear],
    rules: Mapping[str, Callable[..., Tensor]],
    widths: Sequence[int],
    size: int,
) -> dict[tuple[str, str], Scheme]:
    """Every granularity with every number of bits; a scale counts as 16 bits.

    `rules`: "per-tensor", "per-channel" and "per-group" (of `size`), each called with `bits`.
    """
    weights = sum(linear.weight.numel() for linear in linears.values())
    rows = sum(linear.out_features for linear in linears.values())
    scales = {"per-tensor": 0.0, "per-channel": 16 * rows / weights, "per-group": 16 / size}
    return {
        (name, f"{bits} bits"): Scheme(partial(rule, bits=bits), bits + scales[name])
        for bits in widths
        for name, rule in rules.items()
    }


def clip_schemes(
    linears: Mapping[str, nn.Linear],
    clipped: Callable[..., Tensor],
    best_clip: Callable[[Tensor, int, Tensor], Tensor],
    bits: int = 4,
) -> tuple[Scheme, Scheme]:
    """Each layer clipped where its own error is least: with rounding, and the cut without it."""
    rounds: dict[str, Rule] = {}
    cuts: dict[str, Rule] = {}
    for name, linear in linears.items():
        weight = linear.weight.data
        share = best_clip(weight, bits, torch.linspace(0.1, 0.6, 6, device=weight.device))
        rounds[name] = partial(clipped, bits=bits, share=share)
        end = (share * weight.abs().max()).item()
        cuts[name] = partial(torch.clamp, min=-end, max=end)
    return Scheme(rounds, bits), Scheme(cuts, 32)


@contextmanager
def _rounded_inputs(linears: Mapping[str, nn.Linear], rule: Rule | None) -> Iterator[None]:
    """Within the block every layer meets `rule(input)`, one row per token; None leaves it."""

    def before(_module: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor]:
        return (rule(inputs[0].flatten(0, -2)).reshape(inputs[0].shape),)

    hooks = [linear.register_forward_pre_hook(before) for linear in linears.values() if rule]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def window_nll(model: PreTrainedModel, windows: Tensor) -> np.ndarray:
    """Mean NLL of each window (N, T) in nats per token, (N,).

    Several windows per pass, which is much faster than one: the weights are read once for all, and
    no scheme of this lesson looks at more than one token at a time. Raises ValueError for windows
    beyond the model's context, or NaN in the result.
    """
    perplexity.check_context(model, windows.shape[1])
    windows = windows.to(next(model.parameters()).device)
    means = []
    with torch.inference_mode():
        for batch in windows.split(max(1, TOKENS_PER_PASS // windows.shape[1])):
            logits = model(batch, use_cache=False).logits[:, :-1].float()  # (B, T - 1, V)
            targets = batch[:, 1:].flatten()
            nll = nn.functional.cross_entropy(logits.flatten(0, 1), targets, reduction="none")
            means.append(nll.view(len(batch), -1).double().mean(1))
    nll = torch.cat(means).cpu().numpy()
    if np.isnan(nll).any():
        raise ValueError(f"the loss of a window is NaN: {perplexity.overflow(model)}")
    return nll


def losses(
    model: PreTrainedModel,
    linears: Mapping[str, nn.Linear],
    windows: Tensor,
    schemes: Mapping[Any, Scheme],
    base: np.ndarray,
) -> dict[Any, Cost]:
    """What each scheme costs on the same `windows` (N, T); `base`: their NLL without rounding."""
    costs = {}
    for name, scheme in tqdm(schemes.items(), desc="schemes", leave=False):
        with (
            rounded_weights(linears, scheme.weights) as decibels,
            _rounded_inputs(linears, scheme.activations),
        ):
            nll = window_nll(model, windows)
        change = paired_bootstrap(base, nll)
        costs[name] = Cost(decibels, scheme.bits_per_weight, nll, change)
    return costs


def on_turned_weights(
    model: PreTrainedModel,
    linears: Mapping[str, nn.Linear],
    windows: Tensor,
    base: np.ndarray,
    schemes: Mapping[Any, Scheme],
    by_turning: Callable[[Tensor, Rule, int], Tensor] = turned,
    draws: int = 4,
) -> dict[Any, list[float]]:
    """The change of the loss with weights turned before they are rounded, for each draw of angles.

    `by_turning`: how weights are turned, rounded by a rule and turned back, for the seed of a draw.
    Each draw has its own share of the windows, so an interval over draws covers draws and text.
    """
    draws = min(draws, len(windows))
    changes: dict[Any, list[float]] = {name: [] for name in schemes}
    for draw in tqdm(range(draws), desc="draws", leave=False):
        for name, scheme in schemes.items():
            with rounded_weights(linears, partial(by_turning, rule=scheme.weights, seed=draw)):
                nll = window_nll(model, windows[draw::draws])
            changes[name].append((nll - base[draw::draws]).mean())
    return changes


def record_losses(results: Results, costs: Mapping[tuple[str, str], Cost]) -> list[list[str]]:
    """Keep every cost by scheme and bits; the rows of a table with LOSS_HEADER."""
    table = []
    for (scheme, bits), cost in costs.items():
        loss = cost.loss
        ends = {"low": loss.low, "high": loss.high, "n": loss.n}
        results.record(f"loss.{scheme}.{bits}", loss.mean, "nats", **ends)
        results.record(f"snr.{scheme}.{bits}", cost.decibels, "dB", kind="quality")
        sizes = f"{cost.bits_per_weight:.2f}", f"{cost.decibels:.1f}"
        table.append([bits, scheme, *sizes, _between(loss.mean, loss.low, loss.high)])
    return table


def _between(mean: float, low: float, high: float) -> str:
    return f"{mean:+.3f} [{low:+.3f}, {high:+.3f}]"


def record_turned(
    results: Results,
    costs: Mapping[tuple[str, str], Cost],
    by_draw: Mapping[tuple[str, str], Sequence[float]],
) -> tuple[list[list[str]], str]:
    """Rows and groups with weights as they are and turned: a table with TURNED_HEADER, and a verdict.

    As they are: intervals over windows. Turned: Student's t over draws.
    """
    table, leads = [], []
    for bits in dict.fromkeys(bits for _, bits in by_draw):
        rows, groups = ("per-channel", bits), ("per-group", bits)
        lead = paired_bootstrap(costs[rows].nll, costs[groups].nll)
        own = [costs[rows].loss, costs[groups].loss, lead]
        table.append([bits, "as they are", *(_between(x.mean, x.low, x.high) for x in own)])
        draws = [np.array(by_draw[rows]), np.array(by_draw[groups])]
        draws.append(draws[1] - draws[0])
        intervals = [mean_interval(values) for values in draws]
        names = [f"turned.{rows[0]}.{bits}", f"turned.{groups[0]}.{bits}", f"turned.lead.{bits}"]
        for name, (mean, low, high) in zip(names, intervals, strict=True):
            results.record(name, mean, "nats", low=low, high=high, n=len(draws[0]))
        table.append([bits, "turned", *(_between(*interval) for interval in intervals)])
        leads.append((bits, *intervals[-1]))
    words = [
        f"{bits}: {'less loss' if high < 0 else 'more loss' if low > 0 else 'undecided here'}"
        for bits, _, low, high in leads
    ]
    return table, f"Turned, groups against rows: {'; '.join(words)}."


def compared(results: Results, name: str, first: Cost, second: Cost) -> str:
    """What `second` changes against `first`, window by window, as a sentence's end."""
    change = paired_bootstrap(first.nll, second.nll)
    ends = {"low": change.low, "high": change.high, "n": change.n}
    results.record(f"difference.{name}", change.mean, "nats", **ends)
    said = f"{change.mean:+.3f} nats, 95 % interval [{change.low:+.3f}, {change.high:+.3f}]"
    less, more = change.high < 0, change.low > 0
    return f"{said}: {'less loss' if less else 'more loss' if more else 'undecided here'}"


def blame_for_clip(alone: PairedDifference, rounded: PairedDifference) -> str:
    """Does the cut do the damage of a clip? From its loss `alone`, and `rounded` as well."""
    said = f"Clip without rounding {alone.mean:+.3f} nats, clip and rounding {rounded.mean:+.3f}."
    if alone.low > rounded.high / 2:
        return f"{said} The cut alone is enough to do most of the damage."
    if alone.high < rounded.low / 2:
        return f"{said} Most of the damage comes only with the rounding."
    return f"{said} Which of them does most of the damage is undecided here."


def floor_against_round(
    model: PreTrainedModel,
    linears: Mapping[str, nn.Linear],
    windows: Tensor,
    base: np.ndarray,
    rounded: np.ndarray,
    results: Results,
    shifts: Sequence[float] = (0.0, 0.25, 0.5, 0.75),
) -> tuple[list[list[str]], str]:
    """Loss of 8-bit weights with a scale per row, rounded and floored on shifted grids.

    Gives the rows of a table, and what the bias costs as a sentence. NLL of the windows: `base`
    without rounding, `rounded` on the first grid, which is not shifted.

    Floor on a grid is round on the grid shifted by half a step, with half a step taken off every
    weight. So each floor is paired with *that* grid's round: what differs is only the bias.
    """

    def loss(shift: float, bias: float) -> float:
        def rule(weight: Tensor) -> Tensor:
            step = weight.abs().amax(1, keepdim=True).clamp(min=1e-12) / 127
            return shifted(weight, 8, shift) + bias * step

        with rounded_weights(linears, rule):
            return window_nll(model, windows).mean() - base.mean()

    first = rounded.mean() - base.mean()
    changes = {"round": [first, *(loss(shift, 0.0) for shift in shifts[1:])]}
    # Round on the grid at m, half a step lower, is floor on the grid at m - 1/2.
    changes["floor"] = [loss(shift, -0.5) for shift in shifts]
    pairs = zip(changes["floor"], changes["round"], strict=True)
    changes["floor minus round"] = [floor - rounded for floor, rounded in pairs]
    table = []
    for name, values in changes.items():
        mean, low, high = mean_interval(values)
        results.record(f"weights.{name}", mean, "nats", low=low, high=high, n=len(values))
        single = ", ".join(f"{value:+.4f}" for value in values)
        table.append([name, f"{mean:+.4f}", f"[{low:+.4f}, {high:+.4f}]", single])
    bias = np.mean(changes["floor minus round"])
    return table, f"The bias of floor multiplies perplexity by {np.exp(bias):.4f}."


def continued(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, prompt: str, new_tokens: int
) -> str:
    """The likeliest continuation of a prompt, on one line."""
    inputs = tokenizer(prompt, return_tensors="pt").to(model.device)
    with torch.inference_mode():
        ids = model.generate(**inputs, max_new_tokens=new_tokens, do_sample=False)
    text = tokenizer.decode(ids[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
    return " ".join(text.replace("|", "/").replace("`", "'").split())


def input_of(model: PreTrainedModel, linear: nn.Linear, input_ids: Tensor) -> Tensor:
    """What enters one linear layer on a text, (T, K), on the CPU."""
    seen: list[Tensor] = []
    with torch.inference_mode(), watching({"it": linear}, lambda _, x: seen.append(x)):
        model(input_ids.to(model.device), use_cache=False)
    return seen[0][0].float().cpu().clone()


@dataclass(frozen=True)
class Entrance:
    """What enters one group of linear layers, and how much of it 8-bit codes send to zero."""

    kind: str
    layer: int
    stands_out: float  # the largest magnitude over the median one
    zeros: float  # share of the values whose code is 0, with one scale for all of it
    zeros_per_token: float  # the same, with a scale for each token
    largest: float  # the largest magnitude
    token: int  # where it stands


def zeros_at_entrances(
    model: PreTrainedModel, linears: Mapping[str, nn.Linear], input_ids: Tensor
) -> list[Entrance]:
    """Share of activations that 8-bit codes send to zero, for each entrance of a block."""
    inputs: dict[str, Tensor] = {}
    kinds = {name: linear for name, linear in linears.items() if name.split(".")[-1] in ENTRANCES}
    with torch.inference_mode(), watching(kinds, lambda name, x: inputs.update({name: x.float()})):
        model(input_ids.to(model.device), use_cache=False)
    entrances = []
    for name, x in inputs.items():
        largest, median = x.abs().max(), x.abs().median().clamp(min=1e-30)
        per_token = x.abs().amax(-1, keepdim=True)
        zeros, by_token = (
            ((x / most.clamp(min=1e-30) * 127).round() == 0).float().mean().item()
            for most in (largest, per_token)
        )
        layer = next(int(part) for part in name.split(".") if part.isdigit())
        kind, token = ENTRANCES[name.split(".")[-1]], per_token.flatten().argmax().item()
        stands_out = (largest / median).item()
        entrances.append(Entrance(kind, layer, stands_out, zeros, by_token, largest.item(), token))
    return entrances


def survey(
    linears: Mapping[str, nn.Linear], rules: Mapping[str, Rule]
) -> list[dict[str, float | str]]:
    """Name, crest factor and the SNR of each rule, for every layer."""
    entries = []
    for layer, linear in tqdm(linears.items(), desc="layers", leave=False):
        weight = linear.weight.data
        crest = (weight.abs().max() / weight.square().mean().sqrt()).item()
        decibels = {
            name: -10 * _noise_to_signal(weight, rule(weight)).log10().item()
            for name, rule in rules.items()
        }
        entries.append({"name": layer, "crest": crest, **decibels})
    return entries


def verdict_on_bits(curves: Mapping[str, Sequence[float]]) -> Verdict:
    """Is every bit worth 6 dB? `curves`: SNR at 2, 3, ... 8 bits, for each kind of values."""
    late = {name: (curve[-1] - curve[-3]) / 2 for name, curve in curves.items()}
    early = {name: curve[1] - curve[0] for name, curve in curves.items()}
    fine, coarse = (all(abs(x - 6.02) < 0.25 for x in steps.values()) for steps in (late, early))
    texts = [", ".join(f"{x:.2f} dB ({name})" for name, x in s.items()) for s in (late, early)]
    return (
        f"From 6 to 8 bits, each bit adds {texts[0]}. From 2 to 3 bits: {texts[1]}; "
        f"the formula says {20 * np.log10(3):.2f} dB.",
        "holds" if fine and coarse else "holds only if" if fine else "fails here",
        "the steps are fine against the bulk of the values. With few bits, or one value far out, "
        "most values fall to zero, and the rule says nothing.",
    )


def verdict_on_zeros(results: Results, entrances: Sequence[Entrance]) -> Verdict:
    """Does one outlier send most values to zero? By the rule: largest over 254 times the median."""
    down = [e for e in entrances if e.kind == "down"]
    most = [e for e in entrances if e.zeros > 0.5]
    by_rule = [e for e in entrances if e.stands_out > ZERO_AT]
    down_most = sum(e.zeros > 0.5 for e in down)
    largest = max(e.zeros for e in entrances)
    rule = (
        f"the largest value is more than {ZERO_AT} times the median magnitude. That much is "
        "arithmetic; what was counted is how many inputs are so. For normally distributed values "
        "it takes 171 standard deviations."
    )
    results.record("zeros.down_proj", down_most, "layers", kind="exact", n=len(down))
    results.record("zeros.largest", 100 * largest, "%")
    return (
        f"On this text, with one scale per tensor, {down_most} of {len(down)} inputs of down_proj "
        f"lose more than half of their values to code 0 (up to {largest:.1%}), and "
        f"{len(most) - down_most} of the {len(entrances) - len(down)} other inputs do. "
        f"{len(by_rule)} inputs have a value beyond {ZERO_AT} times the median magnitude.",
        "holds only if" if most else "fails here",
        rule if most else f"It would hold only if {rule}",
    )


def verdict_on_memory(
    results: Results, ratios: Mapping[str, tuple[float, float]], linear_layers_only: float
) -> Verdict:
    """Is a model in 8 bits four times smaller? `ratios`: from FP32 and from FP16, for each model."""
    from_32, from_16 = ([ratio[i] for ratio in ratios.values()] for i in (0, 1))
    return (
        f"All weights together become {min(from_32):.2f} to {max(from_32):.2f} times smaller from "
        f"FP32, and {min(from_16):.2f} to {max(from_16):.2f} times from FP16, over {len(ratios)} "
        f"models; the linear layers of {results.model} by themselves {linear_layers_only:.2f} times "
        "from FP32.",
        "holds only if" if linear_layers_only > 3.95 > min(from_32) else "fails here",
        "one starts from FP32 and counts only the linear layers. From 16 bit it is under two, less "
        "where embedding and output layer are a large share.",
    )
