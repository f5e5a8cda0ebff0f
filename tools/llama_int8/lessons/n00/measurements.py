"""What lesson 00 measures: bytes, speeds and perplexity of one model in three precisions."""

from collections.abc import Callable, Mapping
from functools import partial

import numpy as np
import torch
from torch import Tensor, nn

import llama_int8.models as models
from llama_int8.course.claims import put_on_trial
from llama_int8.evaluation import perplexity
from llama_int8.measure.latency import interleaved, prefill_and_decode
from llama_int8.measure.results import Results
from llama_int8.measure.statistics import Spread, paired_bootstrap, spread
from llama_int8.models.cost import WeightBytes, weight_bytes

PARTS = ("linear", "scales", "embedding", "lm_head", "norms", "total")
Change = tuple[float, float, float]  # mean and the ends of its interval


def memory_rows(predicted: Mapping[str, WeightBytes]) -> list[list[str]]:
    """A row of megabytes for each part of the model, one column per precision."""
    return [
        [part, *(f"{getattr(sizes, part) / 1e6:,.1f}" for sizes in predicted.values())]
        for part in PARTS
    ]


def record_bytes(
    results: Results, predicted: Mapping[str, WeightBytes], counted: Mapping[str, int]
) -> None:
    """Keep what the shapes predict beside what the loaded models hold."""
    for precision, found in counted.items():
        expected = predicted[precision].total
        results.record(f"weights.{precision}.predicted", expected, "bytes", kind="exact")
        results.record(f"weights.{precision}.measured", found, "bytes")


def half_memory_on_trial(
    results: Results, here: float, half: WeightBytes, int8: WeightBytes
) -> None:
    """The paper's promise, for the layers it names, this whole model, and LLaMA-2-7B's shapes.

    `here`: the share of the 16-bit bytes that was counted; `half`, `int8`: what the shapes say.
    """
    layers = (int8.linear + int8.scales) / half.linear
    large = models.config_of("llama-2-7b-chat")
    there = weight_bytes(large, "int8").total / weight_bytes(large, "fp16").total
    everywhere = max(layers, here, there) <= 0.525
    put_on_trial(
        results,
        "int8-halves-memory",
        f"Weights only, without cache and activations. int8 takes {layers:.1%} of 16 bit for the "
        f"feed-forward and attention layers, with their scales; {here:.1%} for the whole model "
        f"here, {there:.1%} for LLaMA-2-7B.",
        "holds" if everywhere else "holds only if",
        "The embedding table and the last matrix, which stay in 16 bits, are small here."
        if everywhere
        else "it is read of the feed-forward and attention layers that the sentence names, or of "
        "models so large that the embedding table and the last matrix, which stay in 16 bits, are "
        "a small share of all weights. The paper's largest are of that kind.",
    )


def speeds(
    results: Results, loaded: Mapping[str, nn.Module], prompt: Tensor, new_tokens: int, rounds: int
) -> dict[str, dict[str, Spread]]:
    """Tokens per second of each phase and precision, median and quartiles; all kept in `results`.

    `prompt`: token ids (1, T). The models take turns, after a warm-up round that does not count.
    """
    runs = {
        precision: partial(prefill_and_decode, model, prompt, new_tokens)
        for precision, model in loaded.items()
    }
    seconds = interleaved(runs, rounds)
    tokens = {"prefill": prompt.shape[1], "decode": new_tokens}
    speed: dict[str, dict[str, Spread]] = {phase: {} for phase in tokens}
    for phase, count in tokens.items():
        for precision in loaded:
            s = spread(count / seconds[precision][phase])
            speed[phase][precision] = s
            name = f"{phase}.{precision}"
            results.record(name, s.median, "tokens/s", low=s.low, high=s.high, n=s.n)
    return speed


def speed_rows(speed: Mapping[str, Mapping[str, Spread]]) -> list[list[str]]:
    """A row per precision: prefill and decode, as median [quartiles]."""
    return [
        [precision, *(_in_brackets(speed[phase][precision]) for phase in ("prefill", "decode"))]
        for precision in speed["decode"]
    ]


def fastest(speed: Mapping[str, Spread]) -> str:
    """The precision of the highest median; "cannot tell" where another's bracket reaches its own."""
    best = max(speed, key=lambda precision: speed[precision].median)
    others = [s for precision, s in speed.items() if precision != best]
    return "cannot tell" if any(overlap(speed[best], s) for s in others) else best


def int8_against_others(speed: Mapping[str, Spread]) -> str:
    """int8 beside each other precision in words; where the brackets overlap, the order is open."""
    parts = []
    for precision, other in speed.items():
        if precision == "int8":
            continue
        if overlap(speed["int8"], other):
            parts.append(f"int8 or {precision}: the order cannot be told, the brackets overlap")
        else:
            word = "faster" if speed["int8"].median > other.median else "slower"
            parts.append(f"int8 is {word} than {precision} here")
    return "; ".join(parts)


def overlap(first: Spread, second: Spread) -> bool:
    """Whether the middle halves of two measurements have a value in common."""
    return first.low <= second.high and second.low <= first.high


def _in_brackets(s: Spread) -> str:
    return f"{s.median:,.1f} [{s.low:,.1f}, {s.high:,.1f}]"


def perplexity_changes(
    results: Results, nll: Mapping[str, np.ndarray], half: str
) -> dict[str, dict[str, Change]]:
    """Change of perplexity in %, by precision and then by baseline (fp32 and `half`), with interval.

    `nll`: (windows, tokens) of each precision on the same windows, which are compared in pairs.
    """
    changes: dict[str, dict[str, Change]] = {precision: {} for precision in nll}
    for precision, values in nll.items():
        for baseline in ("fp32", half):
            found = paired_bootstrap(nll[baseline].mean(1), values.mean(1))
            ends = {"low": found.low, "high": found.high, "n": found.n}
            results.record(f"nll_change.{precision}.{baseline}", found.mean, "nats", **ends)
            mean, low, high = 100 * np.expm1([found.mean, found.low, found.high])
            changes[precision][baseline] = (float(mean), float(low), float(high))
    return changes


def quality_rows(
    nll: Mapping[str, np.ndarray], changes: Mapping[str, Mapping[str, Change]]
) -> list[list[str]]:
    """A row per precision: its perplexity, and its change against each baseline but itself."""
    rows = []
    for precision, by_baseline in changes.items():
        row = [precision, f"{perplexity.perplexity(nll[precision]):.2f}"]
        for baseline, (mean, low, high) in by_baseline.items():
            change = f"{mean:+.2f} [{low:+.2f}, {high:+.2f}]"
            row.append("" if baseline == precision else change)
        rows.append(row)
    return rows


def saved_rows(saved_share: Callable[[int, int], float]) -> list[list[str]]:
    """A row for each model that the course knows, with what `saved_share(linear, other)` says."""
    rows = []
    for name in models.MODELS:
        config = models.config_of(name)
        in_half, in_int8 = weight_bytes(config, "fp16"), weight_bytes(config, "int8")
        linear = in_half.linear // 2  # numbers of two bytes each
        share = saved_share(linear, in_half.total // 2 - linear)
        gigabytes = [f"{sizes.total / 1e9:,.1f}" for sizes in (in_half, in_int8)]
        shapes = [f"{config.vocab_size:,}", f"{config.hidden_size:,}"]
        last = "its own" if in_half.lm_head else "shared"
        rows.append([name, *gigabytes, *shapes, last, f"{100 * share:.1f}"])
    return rows


def closest_decision(probabilities: Tensor) -> int:
    """The place at which the two likeliest tokens lie closest together; `probabilities` (T, V)."""
    first, second = torch.topk(probabilities, 2).values.T
    return int((first - second).argmin())
