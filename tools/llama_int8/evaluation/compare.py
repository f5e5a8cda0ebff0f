"""What paired scores of several precisions say: computed and recorded in one place.

Notebook 08 and `course.py evaluate` record the same names through these functions.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np

from llama_int8.evaluation.loglikelihood import correct
from llama_int8.evaluation.perplexity import StridedText, bits_per_byte
from llama_int8.evaluation.tasks import Item, Task
from llama_int8.measure.results import Results
from llama_int8.measure.statistics import (
    PairedDifference,
    Spread,
    mcnemar_exact,
    paired_bootstrap,
    proportion_interval,
    smallest_detectable_change,
    spread,
)
from llama_int8.models.cost import forward_bytes, peak_bytes, weight_bytes
from llama_int8.transformer.config import LlamaConfig


class Point(NamedTuple):
    """What is measured at once: `batch` sequences of so many `tokens` of context each."""

    batch: int
    tokens: int

    @property
    def name(self) -> str:
        """How results and labels write it: "4 x 128"."""
        return f"{self.batch} x {self.tokens}"

    @classmethod
    def of(cls, record: Mapping[str, Any]) -> "Point":
        """The point of one record in a stage's JSON data."""
        return cls(record["batch"], record["tokens"])


def record_text(
    results: Results,
    windows: Mapping[str, Sequence[Mapping[str, Any]]],
    text: StridedText,
    baseline: str,
) -> dict[str, PairedDifference]:
    """Record perplexity, bits for each byte, and each precision's difference from the baseline.

    `windows`: `quality.window_scores` by precision. Returns the differences in nats per token, over
    windows.
    """
    nll = {p: np.array([w["nll"] for w in scores]) for p, scores in windows.items()}
    tokens = nll[baseline].size * text.stride
    differences = {}
    for p, values in nll.items():
        results.record(f"perplexity.{p}", np.exp(values.mean()), "perplexity", n=tokens)
        results.record(f"bits_per_byte.{p}", bits_per_byte(values, text), "bits", n=tokens)
        if p == baseline:
            continue
        found = differences[p] = paired_bootstrap(nll[baseline], values)
        ends = {"low": found.low, "high": found.high, "n": found.n}
        results.record(f"nll_difference.{p}", found.mean, "nats", **ends)
        results.record(f"smallest_detectable.{p}", found.smallest_detectable, "nats", n=found.n)
        compared = [w for w in windows[p] if "kl" in w]
        if compared:
            n = len(compared) * text.stride
            results.record(f"kl.{p}", np.mean([w["kl"] for w in compared]), "nats", n=n)
            agreement = 100 * np.mean([w["agreement"] for w in compared])
            results.record(f"agreement.{p}", agreement, "%", n=n)
    return differences


def record_memory(
    results: Results, runs: Mapping[str, Mapping[str, Any]], config: LlamaConfig
) -> dict[str, list[tuple[Point, int, int]]]:
    """Record bytes of weights and the peaks beyond them, predicted and measured.

    `runs`: `experiment.memory_quality_and_text` by precision. Returns (point, predicted, measured)
    of the peaks by precision.
    """
    device = "cpu" if "GPU" not in results.environment else "cuda"
    found: dict[str, list[tuple[Point, int, int]]] = {}
    for p, run in runs.items():
        predicted = weight_bytes(config, p).total
        results.record(f"weights.{p}.predicted", predicted, "bytes", kind="exact")
        results.record(f"weights.{p}.measured", run["weight bytes"], "bytes")
        meters = run.get("loaded", {})
        if meters:
            # Includes what libraries keep and give back late: not for comparing two runs.
            grown = meters["process"] - run["before"]["process"]
            results.record(f"process.{p}.loaded", grown, "bytes", kind="timing")
        for name in sorted(meters.keys() - {"process"}):
            results.record(f"{name}.{p}.loaded", meters[name], "bytes")
        for peak in run["peaks"]:
            point = Point.of(peak)
            parts = peak_bytes(config, p, point.tokens, point.batch, device)
            beyond = sum(parts.values()) - parts["weights"]
            results.record(f"peak.{p}.{point.name}.predicted", beyond, "bytes", kind="exact")
            results.record(f"peak.{p}.{point.name}.measured", peak["peak"], "bytes")
            found.setdefault(p, []).append((point, beyond, peak["peak"]))
    return found


Speeds = dict[str, dict[str, dict[Point, Spread]]]


def record_speed(
    results: Results, timed: Mapping[str, Any], decode_tokens: int, baseline: str
) -> tuple[Speeds, Speeds]:
    """Record tokens/s and the ratio to the baseline of every point; the first point is the headline.

    `timed`: what `experiment.speed` returns. Returns speeds and ratios, {phase: {precision:
    {Point: Spread}}}; a ratio is taken within each round where the precisions took turns,
    else it is a ratio of medians, whose spread comes from redrawing the rounds of both.
    """
    paired = timed["interleaved"]
    results.record("interleaved", "yes" if paired else "no", "text")
    found: Speeds = {"prefill": {}, "decode": {}}
    ratios: Speeds = {"prefill": {}, "decode": {}}
    for number, record in enumerate(timed["seconds"]):
        batch, context = point = Point.of(record)
        by_precision = record["precisions"]
        for phase, tokens in (("prefill", batch * context), ("decode", batch * decode_tokens)):
            for p, phases in by_precision.items():
                seconds = np.array(phases[phase])
                one = found[phase].setdefault(p, {})[point] = spread(tokens / seconds)
                names = [f"{phase}.{p}.{point.name}", *([f"{phase}.{p}"] if number == 0 else [])]
                for name in names:
                    results.record(name, one.median, "tokens/s", **_ends(one))
                if baseline in by_precision:
                    other = np.array(by_precision[baseline][phase])
                    # Rounds are pairs only where the precisions took turns.
                    ratio = spread(other / seconds) if paired else _unpaired_ratio(other, seconds)
                    ratios[phase].setdefault(p, {})[point] = ratio
                    for name in names:
                        results.record(f"{name}.ratio", ratio.median, "x", **_ends(ratio))
    for p, taken in timed["items"].items():
        one = spread(np.array(taken))
        note = "over items, which differ in length; each the faster of two passes"
        results.record(f"item_seconds.{p}", one.median, "s", **_ends(one), note=note)
    return found, ratios


def _unpaired_ratio(other: np.ndarray, seconds: np.ndarray, resamples: int = 2000) -> Spread:
    """Quotient of two medians whose rounds are no pairs, spread by drawing the rounds again."""
    generator = np.random.default_rng(0)
    medians = [
        np.median(generator.choice(values, (resamples, values.size)), axis=1)
        for values in (other, seconds)
    ]
    drawn = spread(medians[0] / medians[1])
    median = float(np.median(other) / np.median(seconds))
    n = min(other.size, seconds.size)
    return replace(drawn, median=median, n=n)


MARGIN, LEAST_ROUNDS = 0.05, 5  # of a verdict on speed; both set before the measurement


def faster_or_slower(ratio: Spread) -> str:
    """Say "faster", "slower" or "undecided", of a speed over the baseline's.

    It takes five rounds at least, and all of them on one side of 1, by 5 % or more: five values lie
    all above their true median, or all below it, in 1 of 16 cases.
    """
    if ratio.n < LEAST_ROUNDS or ratio.least is None or ratio.largest is None:
        return "undecided"
    if ratio.least > 1 + MARGIN:
        return "faster"
    return "slower" if ratio.largest < 1 / (1 + MARGIN) else "undecided"


@dataclass(frozen=True)
class Summary:
    """One model's results file with its speeds and ratios by phase, precision and point."""

    results: Results
    speeds: Speeds
    ratios: Speeds


def _ends(one: Spread) -> dict[str, float]:
    return {"low": one.low, "high": one.high, "n": one.n}


def in_blocks(values: np.ndarray, size: int) -> np.ndarray:
    """Means of `size` windows in a row, (N,) -> (N // size,); what is left over makes some longer."""
    count = max(1, len(values) // size)
    return np.array([block.mean() for block in np.array_split(values, count)])


@dataclass(frozen=True)
class Flips:
    """Two precisions on the same items: those that changed, and what that says."""

    lost: int  # right only in the first
    won: int  # right only in the second
    difference: PairedDifference  # of the share of right answers, second minus first

    @property
    def p_value(self) -> float:
        """McNemar's exact two-sided p-value."""
        return mcnemar_exact(self.lost, self.won)

    @property
    def smallest_detectable(self) -> float:
        """Difference of the shares that these items would have shown four times out of five."""
        return smallest_detectable_change(self.difference.n, self.lost + self.won)


def flips(first: np.ndarray, second: np.ndarray) -> Flips:
    """Compare right (True) and wrong answers to the same items, both of shape (N,)."""
    lost, won = int((first & ~second).sum()), int((second & ~first).sum())
    return Flips(lost, won, paired_bootstrap(first, second))


def record_choices(
    results: Results,
    scores: Mapping[str, Sequence[Sequence[float]]],
    items: Sequence[Item],
    baseline: str,
) -> dict[str, Flips]:
    """Record accuracy by both rules with Wilson's interval, and flips against the baseline.

    `scores`: log-likelihoods of each item's choices by precision. Returns the flips by `acc_norm`.
    """
    changed = {}
    for rule in ("acc", "acc_norm"):
        right = {p: correct(rows, items, rule == "acc_norm") for p, rows in scores.items()}
        for p, values in right.items():
            low, high = proportion_interval(int(values.sum()), values.size)
            ends = {"low": 100 * low, "high": 100 * high, "n": values.size}
            results.record(f"{rule}.{p}", 100 * values.mean(), "%", **ends)
            if p == baseline:
                continue
            found = flips(right[baseline], values)
            d = found.difference
            ends = {"low": 100 * d.low, "high": 100 * d.high, "n": d.n}
            results.record(f"{rule}_difference.{p}", 100 * d.mean, "%", **ends)
            smallest = 100 * found.smallest_detectable
            results.record(f"{rule}_smallest_detectable.{p}", smallest, "%", n=d.n)
            results.record(f"{rule}_lost.{p}", found.lost, "count", n=d.n)
            results.record(f"{rule}_won.{p}", found.won, "count", n=d.n)
            results.record(f"{rule}_mcnemar.{p}", found.p_value, "p", kind="quality", n=d.n)
            if rule == "acc_norm":
                changed[p] = found
    return changed


RIGHT_ANSWERS = "right answer."


def record_right_answers(results: Results, task: Task) -> None:
    """Record how often each place holds the right answer: what always taking one place would score."""
    for place in range(max(len(item.choices) for item in task.items)):
        count = sum(item.label == place for item in task.items)
        note = f"of {len(task.items)} items with sha256 {task.sha256}"
        results.record(f"{RIGHT_ANSWERS}{place + 1}", count, "count", note=note)


def decode_against_bytes(
    speeds: Speeds, ratios: Speeds, config: LlamaConfig, baseline: str, bandwidth: float
) -> dict[str, float]:
    """At the headline: the speed-up that bytes allow int8, the measured one, bandwidth used.

    The parts of `bandwidth`, in bytes/s, are {baseline: .., "int8": ..}.
    """
    point = batch, context = next(iter(ratios["decode"]["int8"]))  # the headline comes first
    pair = (baseline, "int8")
    needed = {p: forward_bytes(config, p, 1, context, batch) for p in pair}
    steps = {p: speeds["decode"][p][point].median / batch for p in pair}  # passes a second
    return {
        "allowed": needed[baseline] / needed["int8"],
        "measured": ratios["decode"]["int8"][point].median,
        **{p: steps[p] * needed[p] / bandwidth for p in pair},
    }
