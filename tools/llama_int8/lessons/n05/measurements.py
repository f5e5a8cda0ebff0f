"""What lesson 05 computes and measures: the family's training, scaling law, passes, ablation."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from scipy import optimize
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from llama_int8.course import small_lm
from llama_int8.course.claims import put_on_trial
from llama_int8.data import load
from llama_int8.measure.latency import interleaved, repeated
from llama_int8.measure.memory import count_new_bytes
from llama_int8.measure.results import Results
from llama_int8.measure.statistics import Spread, mean_interval, spread
from llama_int8.models.cost import llama1_config
from llama_int8.transformer.config import LlamaConfig

NEAR, FAR, APART = slice(2, 4), slice(14, 16), 3  # bins of 32 bytes; windows begin 128 apart


@dataclass(frozen=True)
class TrainedModel:
    """What is published about the training of one model of the family; None: not published."""

    config: LlamaConfig
    tokens: float
    rate: float | None
    gpu: str
    gpu_hours: float
    watts: float  # of one GPU at its peak
    tonnes: float  # CO2 equivalent, location-based
    source: str

    @property
    def megawatt_hours(self) -> float:
        """Of the GPUs at their peak power, without the rest of the data centre."""
        return self.gpu_hours * self.watts / 1e6


def family() -> dict[str, TrainedModel]:
    """Every text model of LLaMA 1 to Llama 3.2, from `llama_papers.yaml`."""
    papers = load("llama_papers")
    first = {
        f"LLaMA {name}": TrainedModel(
            llama1_config(size["width"], size["heads"], size["layers"]),
            size["tokens"] * 1e12,
            size["rate"],
            "A100",
            size["gpu_hours"],
            papers["footprint"]["watts"],
            size["tonnes"],
            "llama-1",
        )
        for name, size in papers["sizes"].items()
    }
    later = {
        name: TrainedModel(
            _config(told),
            told["tokens"] * 1e12,
            told["rate"],
            told["gpu"],
            told["gpu_hours"],
            told["watts"],
            told["tonnes"],
            told["source"],
        )
        for name, told in papers["later"].items()
    }
    return first | later


def _config(told: Mapping[str, Any]) -> LlamaConfig:
    return LlamaConfig(
        vocab_size=told["vocabulary"],
        hidden_size=told["width"],
        intermediate_size=told["inner"],
        num_hidden_layers=told["layers"],
        num_attention_heads=told["heads"],
        num_key_value_heads=told["kv_heads"],
        head_dim=told["width"] // told["heads"],
        max_position_embeddings=told["context"],
        tie_word_embeddings=told.get("tied", False),
    )


def loss_terms(parameters: float, tokens: float) -> tuple[float, float, float]:
    """The scaling law's three terms: E, A / parameters^alpha, B / tokens^beta."""
    law = load("llama_papers")["law"]
    by_size = law["A"] / parameters ** law["alpha"]
    return law["E"], by_size, law["B"] / tokens ** law["beta"]


def predicted_loss(parameters: float, tokens: float) -> float:
    """The scaling law's loss: the sum of its terms."""
    return sum(loss_terms(parameters, tokens))


def tokens_needed(parameters: Tensor, loss: float) -> Tensor:
    """Tokens after which models of these sizes reach a loss by the law; inf where none suffices."""
    law = load("llama_papers")["law"]
    left = loss - law["E"] - law["A"] / parameters ** law["alpha"]
    return torch.where(left > 0, (law["B"] / left.clamp(min=1e-12)) ** (1 / law["beta"]), torch.inf)


def compute_optimal(loss: float) -> tuple[float, float]:
    """Parameters and tokens of the cheapest *training* that reaches a loss by the law.

    Where 6 N D is least, alpha A / N^alpha = beta B / D^beta: the rest above E is split by the
    exponents.
    """
    law = load("llama_papers")["law"]
    rest, both = loss - law["E"], law["alpha"] + law["beta"]
    parameters = (law["A"] / (rest * law["beta"] / both)) ** (1 / law["alpha"])
    tokens = (law["B"] / (rest * law["alpha"] / both)) ** (1 / law["beta"])
    return parameters, tokens


def served_where_best(parameters: float, tokens: float) -> float:
    """Tokens served at which this is the cheapest model of its loss; negative: at none.

    Along the sizes of one loss, 6 N D + 2 N S is least where S is minus three times the slope of
    N D.
    """
    law = load("llama_papers")["law"]
    _, by_size, by_tokens = loss_terms(parameters, tokens)
    return 3 * tokens * (law["alpha"] * by_size / (law["beta"] * by_tokens) - 1)


def counted_flops(model: nn.Module, tokens: Tensor) -> dict[str, int]:
    """FLOPs of the matrix products in a forward and in a backward pass, counted by PyTorch.

    With attention as plain products: the counter does not see every fused kernel.
    """
    model.requires_grad_(True)
    counts = {}
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        logits = model(tokens[:, :-1])
    counts["forward"] = counter.get_total_flops()
    with FlopCounterMode(display=False) as counter:
        functional.cross_entropy(logits.flatten(0, 1), tokens[:, 1:].flatten()).backward()
    counts["backward"] = counter.get_total_flops()
    model.zero_grad(set_to_none=True)
    return counts


def train_pass(model: nn.Module, tokens: Tensor) -> None:
    """Forward and backward for the loss of the last token, so that logits take no memory."""
    model.zero_grad(set_to_none=True)
    last = model(tokens[:, :-1], logits_to_keep=1)[:, -1]
    functional.cross_entropy(last, tokens[:, -1]).backward()


@dataclass(frozen=True)
class Checkpointing:
    """Bytes kept for the backward pass and seconds of a training pass, by what is kept."""

    activation_bytes: dict[str, int]
    seconds: dict[str, Spread]
    ratio: tuple[float, float, float]
    """How many times as long a pass takes with it: geometric mean over rounds, 95 % interval."""


def checkpointing(
    make: Callable[[], nn.Module],
    recompute: Callable[[nn.Module], None],
    tokens: Tensor,
    settings: Any,
    results: Results,
) -> Checkpointing:
    """What activation checkpointing saves and costs, in turns after a warm-up.

    `recompute`: the learner's change, which puts `checkpoint` in front of each block. The ratio of
    times is taken within each round.
    """
    kept, calls = {}, {}
    for name in ("keep everything", "checkpoint each block"):
        model = make().requires_grad_(True)
        if name != "keep everything":
            recompute(model)
        with count_new_bytes() as counted:
            last = model(tokens[:, :-1], logits_to_keep=1)
            kept[name] = counted.held
        del last
        results.record(f"activations.{name}", kept[name], "bytes")
        calls[name] = repeated(partial(train_pass, model, tokens), 1, settings.device)
    timed = interleaved(calls, max(5, 2 * settings.rounds))
    seconds = {name: phases["call"] for name, phases in timed.items()}
    within_rounds = seconds["checkpoint each block"] / seconds["keep everything"]
    # In logarithms, since twice as long and half as long are equally far from no difference.
    mean, low, high = map(math.exp, mean_interval(np.log(within_rounds)))
    results.record("checkpointing.time", mean, "x", low=low, high=high, n=len(within_rounds))
    spreads = {name: spread(times) for name, times in seconds.items()}
    return Checkpointing(kept, spreads, (mean, low, high))


def five_months_on_trial(results: Results, flops: float) -> None:
    """The claim that 65B took five months; `flops`: of its final run, 6 N D."""
    papers = load("llama_papers")
    speed, largest = papers["speed"], papers["sizes"]["65B"]
    days = largest["tokens"] * 1e12 / speed["tokens_per_second_per_gpu"] / speed["gpus"] / 86_400
    by_hours = {n: s["gpu_hours"] / 24 / speed["gpus"] for n, s in papers["sizes"].items()}
    rate = flops / (largest["tokens"] * 1e12) * speed["tokens_per_second_per_gpu"] / 1e12
    put_on_trial(
        results,
        "five-months",
        f"1.4T tokens at 380 tokens/s on each of 2,048 GPUs take {days:.1f} days; the paper's GPU hours "
        f"give {by_hours['65B']:.1f} days for 65B, {sum(by_hours.values()):.1f} for the four final runs "
        f"({rate:.0f} TFLOP/s on each GPU).",
        "fails here" if days < 60 else "holds",
        "The paper says five months of the *development* of all models, and about 21 days of the 65B "
        "run. Computed from its figures, not measured.",
    )


def benchmarks_on_trial(results: Results) -> None:
    """A summary's column "PIQA" beside the paper's columns."""
    table = load("llama_papers")["benchmarks"]
    columns = dict(zip(table["columns"], zip(*table["rows"].values(), strict=True), strict=True))
    summary = table["summary_piqa"]
    same = {name: sum(map(float.__eq__, summary, column)) for name, column in columns.items()}
    gaps = [round(s - p, 1) for s, p in zip(summary, columns["PIQA"], strict=True)]
    put_on_trial(
        results,
        "boolq-under-piqa",
        f"Of its {len(summary)} numbers, {same['PIQA']} stand in the paper's PIQA column and "
        f"{same['BoolQ']} in its BoolQ column. Against PIQA they are off by "
        f"{', '.join(f'{gap:+.1f}' for gap in gaps)} points.",
        "fails here" if same["BoolQ"] == len(summary) != same["PIQA"] else "holds",
        "The numbers are right and stand under the wrong heading. Compared with the paper's tables, "
        "not measured.",
    )


@dataclass(frozen=True)
class Trainings:
    """What `small_lm.train_and_measure` gave for every model of the lesson's two experiments."""

    variants: dict[str, list[dict[str, Any]]]
    """By variant of the ablation, one for each seed."""
    kinds: dict[str, list[dict[str, Any]]]
    """By kind of positions, everything else as in LLaMA."""
    rates: dict[str, dict[float, dict[str, Any]]]
    """By variant and peak rate, the first seed."""


TRIED = ("original", "+ rotary", "all: LLaMA")
RATES = (1e-2, 3e-2)  # above PEAK_RATE: at a third of it the first two are worse


def trainings(settings: Any, results: Results) -> Trainings:
    """Train every model; record losses, and each variant's difference from the original."""
    others = {name: p for name, p in small_lm.POSITIONS.items() if name != "rotary"}
    by_seed, by_rate = small_lm.train_all(
        {**small_lm.CHANGES, **others},
        settings.training_steps,
        settings.seeds,
        results.stage,
        dict.fromkeys(TRIED, RATES),
    )
    variants = {name: by_seed[name] for name in small_lm.CHANGES}
    kinds = {name: by_seed[name] for name in others} | {"rotary": variants["all: LLaMA"]}
    for name, (mean, low, high) in intervals(differences(variants)).items():
        results.record(f"ablation.{name}", mean, "bits", low=low, high=high, n=settings.seeds)
    for name, (training, held) in losses(variants).items():
        results.record(f"ablation.{name}.loss", held, "bits", n=settings.seeds)
        results.record(f"ablation.{name}.training", training, "bits", n=settings.seeds)
    for name, by_peak in by_rate.items():
        for rate, run in by_peak.items():
            results.record(f"rates.{name}.{rate:g}", run["held_out"], "bits", n=1)
        best = min(run["held_out"] for run in by_peak.values())
        results.record(f"rates.{name}.best", best, "bits", n=1)
    for name, (_, held) in small_lm.baselines().items():
        results.record(f"baseline.{name}", held, "bits")
    return Trainings(variants, kinds, by_rate)


def held_out(variants: Mapping[str, list[dict[str, Any]]]) -> dict[str, list[float]]:
    """Held-out loss in bits per byte of each seed, by variant."""
    return {name: [run["held_out"] for run in runs] for name, runs in variants.items()}


def losses(variants: Mapping[str, list[dict[str, Any]]]) -> dict[str, tuple[float, float]]:
    """Mean over the seeds of the (training, held-out) loss, by variant."""
    return {
        name: tuple(
            float(np.mean([run[kind] for run in runs])) for kind in ("training", "held_out")
        )
        for name, runs in variants.items()
    }


def differences(variants: Mapping[str, list[dict[str, Any]]]) -> dict[str, Tensor]:
    """Each variant's held-out loss minus the original's with the same seed, (seeds,)."""
    bits = {name: torch.tensor(v, dtype=torch.float64) for name, v in held_out(variants).items()}
    return {name: v - bits["original"] for name, v in bits.items() if name != "original"}


def intervals(compared: Mapping[str, Tensor]) -> dict[str, tuple[float, float, float]]:
    """Mean and interval over seeds of each comparison of one table, (seeds,) each.

    The lesson's one rule, Bonferroni: the 5 % are shared out over the comparisons, so that all
    intervals of a table hold together with 95 %.
    """
    return {
        name: mean_interval(values, 1 - 0.05 / len(compared)) for name, values in compared.items()
    }


def decided(compared: Mapping[str, Tensor]) -> dict[str, list[str]]:
    """Names of the comparisons whose interval leaves zero: "lower", "higher"; and "undecided"."""
    groups: dict[str, list[str]] = {"lower": [], "higher": [], "undecided": []}
    for name, (_, low, high) in intervals(compared).items():
        groups["lower" if high < 0 else "higher" if low > 0 else "undecided"].append(name)
    return groups


def loss_rows(variants: Mapping[str, list[dict[str, Any]]]) -> list[list[str]]:
    """Rows (name, training, held out) of what needs no network, and of every variant."""
    both = {**small_lm.baselines(), **losses(variants)}
    return [[name, *("" if x is None else f"{x:.2f}" for x in pair)] for name, pair in both.items()]


def rate_rows(by_rate: Mapping[str, Mapping[float, dict[str, Any]]]) -> list[list[str]]:
    """Rows of the held-out loss by peak rate, and of the difference of the best from the original's.

    Each variant at the best of its rates, the original too.
    """
    bits = {
        name: {rate: runs[rate]["held_out"] for rate in sorted(runs)}
        for name, runs in by_rate.items()
    }
    best = {name: min(losses.values()) for name, losses in bits.items()}
    return [
        [name, *(f"{loss:.2f}" for loss in tried.values()), f"{best[name] - best['original']:+.2f}"]
        for name, tried in bits.items()
    ]


def beyond(kinds: Mapping[str, list[dict[str, Any]]], results: Results) -> dict[str, Tensor]:
    """Loss beyond the trained length, (seeds, windows, bins), for each kind of positions.

    And for each rule of scaling. Records how far each kind's loss rises, and what each rule changes.
    """
    curves = {}
    for kind, runs in kinds.items():
        for scaling in runs[0]["beyond"]:
            name = kind if scaling == "as trained" else f"{kind}, {scaling} scaling"
            curves[name] = torch.tensor([run["beyond"][scaling] for run in runs])
    compared = {"beyond": rises(curves), "scaling": changes_by_rule(curves)}
    for table, values in compared.items():
        for name, (mean, low, high) in intervals(values).items():
            seeds = len(values[name])
            results.record(f"{table}.{name}", mean, "bits", low=low, high=high, n=seeds)
    return curves


def near_and_far(curve: Tensor) -> tuple[Tensor, Tensor]:
    """Loss of the same bytes at positions 64 to 127 and at 448 to 511, (seeds,) each."""
    return curve[:, APART:, NEAR].mean((1, 2)), curve[:, :-APART, FAR].mean((1, 2))


def rises(curves: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """For each kind of positions, without scaling: far minus near, the same bytes, (seeds,)."""
    pairs = {name: near_and_far(curve) for name, curve in curves.items() if "," not in name}
    return {name: far - near for name, (near, far) in pairs.items()}


def changes_by_rule(curves: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """For each rule: loss minus that without scaling at the same positions, "near" and "far".

    The same model, the same bytes; (seeds,) each.
    """
    changes = {}
    for name, curve in curves.items():
        kind, _, rule = name.partition(", ")
        if rule:
            pairs = zip(near_and_far(curve), near_and_far(curves[kind]), strict=True)
            for place, (scaled, unscaled) in zip(("near", "far"), pairs, strict=True):
                changes[f"{rule.removesuffix(' scaling')}.{place}"] = scaled - unscaled
    return changes


def rise_rows(curves: Mapping[str, Tensor]) -> list[list[str]]:
    """Rows (kind of positions, near, far, far minus near with its interval)."""
    return [
        [name, *_levels(curves[name]), _written(*interval)]
        for name, interval in intervals(rises(curves)).items()
    ]


def rule_rows(curves: Mapping[str, Tensor]) -> list[list[str]]:
    """Rows (rule, near, far, change of near, change of far), the first one without a rule."""
    changes = intervals(changes_by_rule(curves))
    rows = [["no rule", *_levels(curves["rotary"]), "", ""]]
    for name, curve in curves.items():
        rule = name.partition(", ")[2].removesuffix(" scaling")
        if rule:
            written = (_written(*changes[f"{rule}.{place}"]) for place in ("near", "far"))
            rows.append([rule, *_levels(curve), *written])
    return rows


def _levels(curve: Tensor) -> list[str]:
    return [f"{bits.mean():.2f}" for bits in near_and_far(curve)]


def _written(mean: float, low: float, high: float) -> str:
    """A difference with its interval; "undecided" where it holds zero."""
    return f"{mean:+.2f} [{low:+.2f}, {high:+.2f}]" + (", undecided" if low <= 0 <= high else "")


def rope_on_trial(results: Results, curves: Mapping[str, Tensor]) -> None:
    """The claim that rotary positions generalize to longer texts."""
    plain = intervals(rises(curves))["rotary"]
    scaled = intervals(changes_by_rule(curves))["llama3.far"]
    put_on_trial(
        results,
        "rope-extrapolates",
        f"The same bytes at positions 448 to 511 cost {plain[0]:+.2f} bits more than at 64 to 127 "
        f"[{plain[1]:+.2f}, {plain[2]:+.2f}], {len(curves['rotary'])} seeds. Far out, llama3 scaling "
        f"without further training changes the loss by {scaled[0]:+.2f} "
        f"[{scaled[1]:+.2f}, {scaled[2]:+.2f}].",
        "fails here" if plain[1] > 0 else "undecided here" if plain[2] > 0 else "holds",
        "Small byte-level models trained on 128 bytes. Rotation can be computed for any position; that "
        "does not mean that the model has learned what to do with it.",
    )


def small_training(steps: int, seed: int) -> tuple[nn.Module, list[Tensor]]:
    """An untrained small LLaMA, and the batches (8, 65) of bytes that it is to see."""
    text, _ = small_lm.corpus()
    torch.manual_seed(seed)
    model = small_lm.SmallLM(small_lm.LLAMA, layers=2)
    draw = torch.Generator().manual_seed(seed)
    starts = [torch.randint(len(text) - 65, (8, 1), generator=draw) for _ in range(steps)]
    return model, [text[start + torch.arange(65)] for start in starts]


def small_losses(steps: int, warmup: int, seed: int) -> list[float]:
    """The same model and batches through the package's training, in bits per byte."""
    small = {"layers": 2, "batch": 8, "context": 64, "warmup": warmup}
    return small_lm.train(small_lm.LLAMA, steps, seed, **small)[1]


def least_flops(loss: float, served: float) -> float:
    """Least FLOPs of training and serving at a loss, found by SciPy."""
    return _best(loss, served)[1]


def best_size(loss: float, served: float) -> float:
    """Parameters of the model with the least FLOPs of training and serving at a loss."""
    return _best(loss, served)[0]


def _best(loss: float, served: float) -> tuple[float, float]:
    """Best number of parameters, and its FLOPs."""

    def cost(log_size: float) -> float:
        size = torch.tensor(10.0**log_size, dtype=torch.float64)
        return (6 * size * tokens_needed(size, loss) + 2 * size * served).item()

    law = load("llama_papers")["law"]
    smallest = math.log10((law["A"] / (loss - law["E"])) ** (1 / law["alpha"]))
    bounds = smallest + 1e-6, smallest + 4
    found = optimize.minimize_scalar(cost, bounds=bounds, method="bounded")
    return 10.0**found.x, float(found.fun)
