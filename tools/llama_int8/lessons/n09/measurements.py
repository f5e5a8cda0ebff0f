"""What lesson 09 measures, beside the learner's own functions: time, bytes, errors, shares."""

import importlib.util
import math
import os
import re
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention

from llama_int8.course.claims import put_on_trial
from llama_int8.lessons.n09 import backends
from llama_int8.measure import latency
from llama_int8.measure.memory import count_new_bytes
from llama_int8.measure.results import Results
from llama_int8.processor import processor
from llama_int8.transformer import flash
from llama_int8.transformer.config import LlamaConfig

Attention = Callable[..., Tensor]
WRITTEN_OUT, YOURS = "written out", "your loop"
EMPTY = "your loop, tiles of one query and key"  # as many iterations, with next to no work
REUSED = "written out, memory reused"
ONE_TILE = "your code, one tile"
ONE_TILE_REUSED = "your code, one tile, memory reused"
TRITON = Path(__file__).with_name("triton_kernel.py")
BLOCK = 128  # of the learner's loop, wherever no other is said


def fast_dtype(device: str) -> torch.dtype:
    """What the kernels of this device are compared in: FP32 on a CPU, FP16 on a GPU."""
    return torch.float16 if device == "cuda" else torch.float32


def half_dtype(device: str) -> torch.dtype:
    """The 16-bit format that this device multiplies fast."""
    return torch.float16 if device == "cuda" else torch.bfloat16


def heads(config: LlamaConfig, length: int, dtype: torch.dtype, device: str) -> list[Tensor]:
    """Random q, k, v of the model's heads, all of them with keys of their own, (1, H, T, D)."""
    generator = torch.Generator().manual_seed(0)
    shape = (1, config.num_attention_heads, length, config.head_dim)
    return [torch.randn(shape, generator=generator).to(device, dtype) for _ in range(3)]


def causal(attention: Attention, *sizes: int) -> Attention:
    """A run for `backends.over_length`: the learner's function under a causal mask."""

    def run(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return attention(q, k, v, *sizes, torch.arange(q.shape[-2], device=q.device))

    return run


def who_runs(config: LlamaConfig, dtype: torch.dtype, device: str) -> tuple[list[str], list[list]]:
    """The backends that take the model's heads, and a row for each with PyTorch's reason if not."""
    q, k, v = heads(config, 64, dtype, device)
    shared = config.num_key_value_heads
    refused = backends.refusals(q, k, v)
    grouped = backends.refusals(q, k[:, :shared], v[:, :shared], grouped=True)
    rows = [
        [name, *(reasons[name].partition(". ")[0] or "yes" for reasons in (refused, grouped))]
        for name in refused
    ]
    return [name for name, reason in refused.items() if not reason], rows


def over_length(
    results: Results, settings: Any, config: LlamaConfig, own: Mapping[str, Attention]
) -> dict[int, dict[str, Any]]:
    """Time and peak memory of attention by every backend and by `own`, recorded for the report."""
    device, dtype = settings.device, fast_dtype(settings.device)
    able, _ = who_runs(config, dtype, device)
    runs = dict(own) | {name: backends.by_backend(name) for name in able}
    sizes = (config.num_attention_heads, config.head_dim, dtype, device, settings.rounds)

    def measure() -> dict[int, dict[str, Any]]:
        backends.over_length(settings.lengths[:1], runs, *sizes)  # warms up; not kept
        return backends.over_length(settings.lengths, runs, *sizes)

    found = results.stage("attention over length", measure)
    found = {
        int(length): entry for length, entry in found.items()
    }  # a kept stage has text for keys
    for length, entry in found.items():
        for name, one in entry.items():
            seconds = np.array(one["seconds"])
            ratio = spread_of(found, length, "math", name)
            record = partial(results.record, kind="timing")
            record(f"attention_ms.{length}.{name}", 1e3 * np.median(seconds), "ms")
            low, high = ratio.min(), ratio.max()
            middle = np.median(ratio)
            record(
                f"attention_speed.{length}.{name}", middle, "x", low=low, high=high, n=len(ratio)
            )
            results.record(
                f"attention_peak.{length}.{name}", one["peak"] / 2**20, "MiB", kind="memory"
            )
    return found


def spread_of(found: Mapping, length: int, slow: str, fast: str) -> np.ndarray:
    """Seconds of one way over those of another at a length, round by round."""
    entry = found[length]
    return np.array(entry[slow]["seconds"]) / np.array(entry[fast]["seconds"])


def best_tiled(entry: Mapping[str, Mapping[str, Any]]) -> str:
    """The fastest of PyTorch's kernels beside `math`; `math` where there is no other."""
    others = [name for name in entry if name in backends.BACKENDS and name != "math"]
    return min(others, key=lambda name: np.median(entry[name]["seconds"]), default="math")


def is_faster(found: Mapping, name: str = YOURS) -> str:
    """Whether a way is faster than PyTorch's `math` at the longest length, in every round or in none.

    "faster", "slower" or "undecided".
    """
    return _decided(spread_of(found, max(found), "math", name), "faster", "slower")


def _decided(ratio: np.ndarray, above: str, below: str) -> str:
    """`above` where every round's ratio exceeds 1, `below` where none does, else "undecided"."""
    if ratio.min() > 1:
        return above
    return below if ratio.max() < 1 else "undecided"


def name_of(dtype: torch.dtype) -> str:
    """float32, bfloat16, ..."""
    return str(dtype).removeprefix("torch.")


def sentence_on_speed(found: Mapping, dtype: torch.dtype) -> str:
    """How the learner's loop does at the longest length, and from which length on it leads."""
    longest = max(found)
    parts = [f"{times(spread_of(found, longest, 'math', YOURS))} times as fast as math"]
    tiled = best_tiled(found[longest])
    if tiled != "math":
        ratio = times(spread_of(found, longest, YOURS, tiled))
        parts.append(f"and {tiled}, in compiled code, is {ratio} times as fast as your loop")
    case = f"{longest:,} tokens, causal, {name_of(dtype)}"
    return (
        f"{case}: your loop is {', '.join(parts)}. (Medians of ratios, with ranges.) "
        + _sentence_on_crossover(found)
    )


def _sentence_on_crossover(found: Mapping) -> str:
    """At which lengths the loop is slower than `math`, and at which faster, in every round."""
    said = {length: _decided(spread_of(found, length, "math", YOURS), "+", "-") for length in found}
    texts = []
    for sign, word in (("-", "slower"), ("+", "faster")):
        lengths = [f"{length:,}" for length in sorted(said) if said[length] == sign]
        texts.append(f"{word} at {', '.join(lengths) or 'no length'}")
    return f"Against math, in every round: {' and '.join(texts)}."


def sentence_on_steps(found: Mapping, config: LlamaConfig, device: str) -> str:
    """By what `math`'s time grows from length to length, and how large its scores are at the jump."""
    lengths = sorted(found)
    if len(lengths) < 2:
        return ""
    medians = [np.median(found[length]["math"]["seconds"]) for length in lengths]
    steps = [after / before for before, after in pairwise(medians)]
    jump = int(np.argmax(steps))
    size = config.num_attention_heads * fast_dtype(device).itemsize / 2**20
    before, after = lengths[jump : jump + 2]
    caches = ", ".join(
        f"{name} {held / 2**20:.3g} MiB" for name, held in processor().caches.items()
    )
    said = f" This processor's caches: {caches}." if caches and device == "cpu" else ""
    return (
        f"math's time grows, from length to length, by {', '.join(f'{step:.1f}' for step in steps)}. "
        f"The largest step is from {before:,} to {after:,} tokens: there its scores grow by "
        f"{(after / before) ** 2:.1f}, from {size * before**2:.1f} to {size * after**2:.1f} MiB.{said}"
    )


@dataclass(frozen=True)
class LoopTimes:
    """{way: seconds, one per round} without and with a mask; page faults of a call without one."""

    no_mask: Mapping[str, np.ndarray]
    causal: Mapping[str, np.ndarray]
    faults: Mapping[str, int | None]


@dataclass(frozen=True)
class Factor:
    """Two ways that differ in one respect: seconds with it and without it, paired by rounds."""

    name: str
    how: str
    slow: np.ndarray
    fast: np.ndarray

    @property
    def ratio(self) -> np.ndarray:
        """How many times as fast the second way is, in each round."""
        return self.slow / self.fast


def loop_apart(
    results: Results,
    settings: Any,
    config: LlamaConfig,
    standard: Attention,
    reusing: Attention,
    tiled: Attention,
) -> LoopTimes:
    """The learner's loop at the longest length, and the ways that stand between it and `standard`.

    `standard` and `reusing` take the last keys or None; `reusing` also takes two (T, S) matrices
    per head, made once, for scores and weights. `tiled` is the learner's loop. It runs in blocks of
    `BLOCK`, and with one block as long as the text: the same code, without tiles.
    """
    longest, device = max(settings.lengths), settings.device
    dtype = fast_dtype(device)

    def measure() -> dict[str, dict[str, Any]]:
        q, k, v = heads(config, longest, dtype, device)
        room = room_for_scores(q, k)
        last_keys = {
            "no mask": torch.full((longest,), longest - 1, device=device),
            "causal": torch.arange(longest, device=device),
        }
        runs = {}
        for case, last in last_keys.items():
            mask = last if case == "causal" else None
            runs[case, WRITTEN_OUT] = partial(standard, q, k, v, mask)
            runs[case, REUSED] = partial(reusing, q, k, v, mask, *room)
            if mask is None:
                runs[case, ONE_TILE] = partial(tiled, q, k, v, longest, last)
                runs[case, ONE_TILE_REUSED] = partial(one_tile_reusing, q, k, v, *room)
            runs[case, YOURS] = partial(tiled, q, k, v, BLOCK, last)
        tiles = -(-longest // BLOCK)  # in each direction
        small = [x[..., :tiles, :1].contiguous() for x in (q, k, v)]
        seen = torch.full((tiles,), tiles - 1, device=device)
        runs["no mask", EMPTY] = partial(tiled, *small, 1, seen)
        timed = {key: latency.repeated(run, 1, device) for key, run in runs.items()}
        with torch.inference_mode():
            found = latency.interleaved(timed, settings.rounds)
            faults = {
                name: page_faults(run) for (case, name), run in runs.items() if case == "no mask"
            }
        seconds = {
            case: {name: found[case, name]["call"].tolist() for at, name in found if at == case}
            for case in last_keys
        }
        return seconds | {"page faults": faults}

    stage = results.stage("loop and controls", measure)
    no_mask, causal = (
        {name: np.array(seconds) for name, seconds in stage[case].items()}
        for case in ("no mask", "causal")
    )
    found = LoopTimes(no_mask, causal, stage["page faults"])
    for case, one in (("no mask", no_mask), ("causal", causal)):
        for name, seconds in one.items():
            if name not in (YOURS, EMPTY):
                ratio = seconds / one[YOURS]
                _record_ratio(results, f"loop_speed.{longest}.{case}.{name}", ratio)
    for factor in [*factors_of_the_lead(found), *controls(found)]:
        _record_ratio(results, f"loop_factor.{longest}.{factor.name}", factor.ratio)
    ratio = no_mask[YOURS] / causal[YOURS]
    _record_ratio(results, f"loop_speed.{longest}.skipping", ratio)
    share = 100 * no_mask[EMPTY] / no_mask[YOURS]
    spread = {"low": share.min(), "high": share.max(), "n": share.size}
    results.record(f"loop_iterations.{longest}", np.median(share), "%", kind="timing", **spread)
    return found


def one_tile_reusing(q: Tensor, k: Tensor, v: Tensor, scores: Tensor, weights: Tensor) -> Tensor:
    """The operations of `part` over all keys, then o / l, into two matrices that were made once."""
    torch.matmul(q / math.sqrt(q.shape[-1]), k.transpose(-2, -1), out=scores)
    m = scores.amax(-1, keepdim=True)
    torch.sub(scores, m, out=weights)
    torch.exp(weights, out=scores)
    return scores @ v / scores.sum(-1, keepdim=True)


def page_faults(run: Callable[[], object]) -> int | None:
    """How many pages of memory the operating system sets up in one call; None where it cannot say."""
    try:
        import resource
    except ImportError:  # Windows has none
        return None
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    run()
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before


def room_for_scores(q: Tensor, k: Tensor) -> list[Tensor]:
    """Two matrices (..., T, S), for scores and weights, that can be written again and again."""
    return [q.new_empty(*q.shape[:-1], k.shape[-2]) for _ in range(2)]


def _record_ratio(results: Results, name: str, ratio: np.ndarray) -> None:
    low, high = ratio.min(), ratio.max()
    results.record(name, np.median(ratio), "x", kind="timing", low=low, high=high, n=ratio.size)


def loop_rows(found: LoopTimes) -> list[list]:
    """Rows: way, median ms without and with a mask, page faults, your loop's speed without a mask."""
    rows = []
    for name, seconds in found.no_mask.items():
        masked, faults = found.causal.get(name), found.faults[name]
        rows.append(
            [
                name,
                f"{1e3 * np.median(seconds):,.0f}",
                "" if masked is None else f"{1e3 * np.median(masked):,.0f}",
                "unknown" if faults is None else f"{faults:,}",
                "" if name in (YOURS, EMPTY) else times(seconds / found.no_mask[YOURS], 2),
            ]
        )
    return rows


def factors_of_the_lead(found: LoopTimes) -> list[Factor]:
    """The loop's lead over `written out` under the mask as factors; the last one is the lead.

    Each compares two ways that differ in one respect; within a round they multiply to the lead.
    """
    no_mask, causal = found.no_mask, found.causal
    return [
        Factor(
            "masked into a new matrix",
            "written out, causal / no mask",
            causal[WRITTEN_OUT],
            no_mask[WRITTEN_OUT],
        ),
        Factor(
            "new memory",
            "written out, no mask: new memory / reused",
            no_mask[WRITTEN_OUT],
            no_mask[REUSED],
        ),
        Factor(
            "the softmax in separate operations",
            "no mask, memory reused: written out / one tile",
            no_mask[REUSED],
            no_mask[ONE_TILE_REUSED],
        ),
        Factor(
            "tiles",
            "no mask, memory reused: one tile / your loop",
            no_mask[ONE_TILE_REUSED],
            no_mask[YOURS],
        ),
        Factor("skipped tiles", "your loop, no mask / causal", no_mask[YOURS], causal[YOURS]),
        Factor(
            "all together",
            "written out / your loop, causal",
            causal[WRITTEN_OUT],
            causal[YOURS],
        ),
    ]


def controls(found: LoopTimes) -> list[Factor]:
    """Factors that are not in the product: the mask without a new matrix, new memory in your code."""
    no_mask, causal = found.no_mask, found.causal
    return [
        Factor(
            "control: masked in place",
            "written out, memory reused, causal / no mask",
            causal[REUSED],
            no_mask[REUSED],
        ),
        Factor(
            "control: new memory in your code",
            "one tile, no mask: new memory / reused",
            no_mask[ONE_TILE],
            no_mask[ONE_TILE_REUSED],
        ),
    ]


def factor_rows(factors: Sequence[Factor]) -> list[list]:
    """Rows: factor, how it was measured, ratio of the medians, median of the rounds' ratios."""
    return [
        [
            one.name,
            one.how,
            f"{np.median(one.slow) / np.median(one.fast):.2f}",
            times(one.ratio, 2),
        ]
        for one in factors
    ]


def keeps_its_lead(found: LoopTimes) -> str:
    """Whether your loop is the faster one without a mask and with memory reused.

    "yes" in every round, "no" in none, else "undecided".
    """
    return _decided(found.no_mask[REUSED] / found.no_mask[YOURS], "yes", "no")


def share_of_tiles(length: int, block: int = BLOCK) -> float:
    """The share of tiles that a causal mask leaves, at least in part."""
    rows = -(-length // block)
    return (rows + 1) / (2 * rows)


def answer(found: LoopTimes) -> str:
    """Whether moving less decides the race by itself, and what does, as the rounds decide.

    A factor counts where its range over the rounds lies above or below 1.
    """
    fair = found.no_mask[REUSED] / found.no_mask[YOURS]
    first = {
        "yes": "For your loop moving less won here by itself",
        "no": "For your loop moving less did not win here by itself",
        "undecided": "The rounds do not show that for your loop moving less won here by itself",
    }[keeps_its_lead(found)]
    *factors, lead = factors_of_the_lead(found)
    says = {"gain": [], "cost": [], "undecided": []}
    for factor in factors:
        text = f"{factor.name} ({np.median(factor.ratio):.2f})"
        says[_decided(factor.ratio, "gain", "cost")].append(text)
    parts = [
        f"{first}: without a mask it is {times(fair, 2)} times as fast as {REUSED}.",
        f"Causal, it is {times(lead.ratio, 2)} times as fast as {WRITTEN_OUT}. What "
        f"makes it faster: {_listed(says['gain'])}.",
        f"What makes it slower: {_listed(says['cost'])}." if says["cost"] else "",
        f"Undecided: {_listed(says['undecided'])}." if says["undecided"] else "",
    ]
    return " ".join(part for part in parts if part)


def sentence_on_loop(found: LoopTimes, tiles: float) -> str:
    """`answer`, what skipping is worth and what Python costs.

    `tiles`: the share of tiles that the mask leaves.
    """
    share = found.causal[YOURS] / found.no_mask[YOURS]
    python = found.no_mask[EMPTY] / found.no_mask[YOURS]
    without = found.no_mask[ONE_TILE_REUSED] / (found.no_mask[YOURS] - found.no_mask[EMPTY])
    return (
        f"{answer(found)} The mask leaves {tiles:.0%} of the tiles; your loop then needs "
        f"{np.median(share):.0%} [{share.min():.0%}, {share.max():.0%}] of the time. Its iterations "
        f"by themselves, on tiles of one query and one key, take {np.median(python):.0%} "
        f"[{python.min():.0%}, {python.max():.0%}] of its time without a mask; with that taken off, "
        f"the factor of tiles would be {times(without, 2)}."
    )


def _listed(names: Sequence[str]) -> str:
    """a, b and c; "nothing" for none."""
    if len(names) < 2:
        return names[0] if names else "nothing"
    return f"{', '.join(names[:-1])} and {names[-1]}"


def by_block(
    results: Results, settings: Any, config: LlamaConfig, attention: Attention
) -> dict[int, list[float]]:
    """{block: seconds, one per round} of the learner's loop at the second longest length."""
    length = sorted(settings.lengths)[-2:][0]
    q, k, v = heads(config, length, fast_dtype(settings.device), settings.device)
    sizes = [2**n for n in range(5, 12) if 2**n <= length]

    def measure() -> dict[int, list[float]]:
        runs = {
            size: latency.repeated(partial(causal(attention, size), q, k, v), 1, settings.device)
            for size in sizes
        }
        with torch.inference_mode():
            times = latency.interleaved(runs, settings.rounds)
        return {size: one["call"].tolist() for size, one in times.items()}

    found = {int(size): seconds for size, seconds in results.stage("blocks", measure).items()}
    for size, seconds in found.items():
        results.record(f"block_ms.{length}.{size}", 1e3 * np.median(seconds), "ms", kind="timing")
    return found


def sentence_on_blocks(found: Mapping[int, Sequence[float]], length: int) -> str:
    """From the fastest block to one as long as the text: how computed scores and time grow."""
    medians = {size: np.median(seconds) for size, seconds in found.items()}
    best, largest = min(medians, key=medians.get), max(medians)
    if best == largest:
        return f"Blocks of {best:,} are the fastest of those measured."
    computed = {n: share_of_tiles(length, n) * (-(-length // n) * n) ** 2 for n in (best, largest)}
    more, longer = computed[largest] / computed[best], medians[largest] / medians[best]
    return (
        f"From blocks of {best:,}, the fastest, to {largest:,}, the scores computed grow by "
        f"{more:.2f}, because more hidden ones are among them. The time grows by {longer:.2f}."
    )


def taken_apart(
    results: Results, settings: Any, config: LlamaConfig, reusing: Attention
) -> dict[str, np.ndarray]:
    """{opponent and case: its seconds over those of the fastest tiled kernel, round by round}.

    First the fair opponent: `reusing`, three steps into two matrices made once, no mask. Then
    `math`, no mask; then with a mask, half of which `math` computes for nothing; then also in 16
    bit, which `math` converts to FP32 unless told otherwise.
    """
    device, longest = settings.device, max(settings.lengths)
    precise, half = fast_dtype(device), half_dtype(device)
    cases = [("no mask", precise, False), ("causal", precise, True)]
    if half != precise:
        cases.append(("causal", half, True))

    def measure() -> dict[str, list[float]]:
        ratios = {}
        for mask, dtype, is_causal in cases:
            names, _ = who_runs(config, dtype, device)
            runs = {name: backends.by_backend(name, is_causal) for name in names}
            if not is_causal:
                room = room_for_scores(*heads(config, longest, dtype, device)[:2])
                runs[REUSED] = _into(room, reusing)
            sizes = (config.num_attention_heads, config.head_dim, dtype, device, settings.rounds)
            found = backends.over_length([longest], runs, *sizes)
            tiled = best_tiled(found[longest])
            name = f"{name_of(dtype)}, {mask}"
            if not is_causal:
                ratios[f"{name}, memory reused"] = spread_of(found, longest, REUSED, tiled).tolist()
            ratios[name] = spread_of(found, longest, "math", tiled).tolist()
        return ratios

    stage = results.stage("tiled kernel apart", measure)
    found = {name: np.array(ratio) for name, ratio in stage.items()}
    for name, ratio in found.items():
        _record_ratio(results, f"tiled_speed.{longest}.{name}", ratio)
    return found


def _into(room: Sequence[Tensor], reusing: Attention) -> Attention:
    """A run for `backends.over_length`: three steps into the matrices of `room`, no mask."""

    def run(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return reusing(q, k, v, None, *room)

    return run


def apart_rows(found: Mapping[str, np.ndarray]) -> list[list]:
    """Rows for `taken_apart`: opponent, format and mask, the kernel's speed over it."""
    rows = []
    for name, ratio in found.items():
        case, reused, _ = name.partition(", memory reused")
        opponent = "the three steps, memory reused" if reused else "math"
        rows.append([opponent, case, times(ratio)])
    return rows


def times(ratio: np.ndarray, decimals: int = 1) -> str:
    """A ratio's median and range over the rounds."""
    low, middle, high = ratio.min(), np.median(ratio), ratio.max()
    return f"{middle:.{decimals}f} [{low:.{decimals}f}, {high:.{decimals}f}]"


# --- in the model -------------------------------------------------------------------------------


def same_logits(
    model: nn.Module, tokens: Tensor, able: Sequence[str], own: Attention
) -> list[list]:
    """Rows: how far each backend's and the learner's logits are from `math`'s.

    Raises AssertionError where they are not the same to 1e-4 of the largest.
    """
    logits = backends.logits_by(model, tokens, [*able, backends.OURS], own)
    largest, rows = logits["math"].abs().max().item(), []
    for name, values in logits.items():
        error = (values - logits["math"]).abs().max().item() / largest
        assert error < 1e-4, f"{name} gives logits that differ from math's by {error:.0e}"
        if name != "math":
            exponent = "equal" if error == 0 else f"below 1e{int(np.ceil(np.log10(error)))}"
            rows.append([YOURS if name == backends.OURS else name, exponent])
    return rows


def backends_of(model: nn.Module, config: LlamaConfig, tokens: Tensor, device: str) -> list[str]:
    """The backends with which the model, in 16 bit and with its grouped heads, reads tokens."""
    able, _ = who_runs(config, half_dtype(device), device)
    return list(backends.logits_by(model, tokens, able))


def prefill(
    results: Results, settings: Any, model: nn.Module, able: Sequence[str]
) -> dict[int, dict[str, list[float]]]:
    """Seconds in which the model reads prompts by each backend, recorded as tokens/s.

    Among them is the model without attention, `backends.NOTHING`: what no backend can beat.
    """
    read = results.stage(
        "prefill over length, and without attention",
        lambda: backends.prefill_over_length(
            model, settings.prompt_lengths, [*able, backends.NOTHING], settings.prompt_rounds
        ),
    )
    read = {int(length): entry for length, entry in read.items()}
    for length, entry in read.items():
        for name, seconds in entry.items():
            speed = length / np.median(seconds)
            results.record(f"prefill.{length}.{name}", speed, "tokens/s", kind="timing")
    return read


def fastest(entry: Mapping[str, Sequence[float]]) -> str:
    """The backend with the lowest median; the model without attention does not count."""
    able = [name for name in entry if name != backends.NOTHING]
    return min(able, key=lambda name: np.median(entry[name]))


def share_of_attention(entry: Mapping[str, Sequence[float]], name: str) -> float:
    """Attention's share of the time with a backend: what the model without attention does not take."""
    left = np.array(entry[backends.NOTHING]) / np.array(entry[name])
    return max(0.0, 1 - float(np.median(left)))


def shares(
    results: Results,
    settings: Any,
    model: nn.Module,
    able: Sequence[str],
    read: Mapping[int, Mapping[str, Sequence[float]]],
) -> dict[str, dict[str, dict[int, float]]]:
    """{"prefill" or "decode": {backend: {length: attention's measured share}}}, recorded in %.

    Of prefill from the seconds of `prefill`, of decode from a profile of one step.
    """
    measured = {
        "prefill": {
            name: {size: share_of_attention(entry, name) for size, entry in read.items()}
            for name in able
        },
        "decode": {
            name: {
                size: backends.measured_share(model, name, 1, size) for size in settings.contexts
            }
            for name in able
        },
    }
    for phase, by_backend in measured.items():
        for name, found in by_backend.items():
            for size, share in found.items():
                results.record(f"share.{phase}.{size}.{name}", 100 * share, "%", kind="timing")
    return measured


def predicted_shares(
    models: Mapping[str, LlamaConfig], lengths: Sequence[int]
) -> dict[str, dict[str, list[float]]]:
    """{"prefill" or "decode": {model: attention's share at each length by the cost model}}."""
    return {
        "prefill": {
            n: [backends.predicted_share(c, T, 0) for T in lengths] for n, c in models.items()
        },
        "decode": {
            n: [backends.predicted_share(c, 1, T) for T in lengths] for n, c in models.items()
        },
    }


def sentence_on_prefill(config: LlamaConfig, measured: Mapping) -> str:
    """What a counted operation of attention costs beside one of the linear layers, in prefill."""
    costs, size = [], max(next(iter(measured["prefill"].values())))
    by_count = backends.predicted_share(config, size, 0)
    for name, found in measured["prefill"].items():
        cost = found[size] / (1 - found[size]) * (1 - by_count) / by_count
        costs.append(f"{cost:.1f} times ({name})")
    said = (
        f"Reading {size:,} tokens, a counted operation of attention takes {' and '.join(costs)} the "
        "time of one in the linear layers."
    )
    earlier = all(found[size] > by_count for found in measured["prefill"].values())
    return (
        f"{said} So attention is half of the work earlier than the formula says."
        if earlier
        else said
    )


def decode_beside_the_model(
    config: LlamaConfig, measured: Mapping, able: Sequence[str]
) -> list[list]:
    """Rows for decode: context, share by bytes, and the measured share of each backend, in %."""
    contexts = list(measured["decode"][able[0]])
    return [
        [
            f"{size:,}",
            f"{100 * backends.predicted_share(config, 1, size):.1f}",
            *(f"{100 * measured['decode'][name][size]:.1f}" for name in able),
        ]
        for size in contexts
    ]


def sentence_on_decode(config: LlamaConfig, measured: Mapping) -> str:
    """What a byte of the cache costs beside a byte of weights, at the longest measured context."""
    costs, size = [], max(next(iter(measured["decode"].values())))
    by_bytes = backends.predicted_share(config, 1, size)
    for name, found in measured["decode"].items():
        cost = found[size] / (1 - found[size]) * (1 - by_bytes) / by_bytes
        costs.append(f"{cost:.2f} times ({name})")
    return (
        f"With {size:,} tokens in the cache, a byte of the cache takes {' and '.join(costs)} the "
        "time of a byte of weights. The count by bytes takes both as equal, and knows no fixed cost "
        "of a call."
    )


def crossings(
    models: Mapping[str, LlamaConfig], own: str, measured: Mapping, crossing_length: Callable
) -> list[list]:
    """Rows: the prompt of which half is attention, by the formula and as measured."""
    rows = []
    for name, c in models.items():
        weights = c.num_hidden_layers * sum(o * i for o, i in c.linear_shapes().values())
        width = c.num_attention_heads * c.head_dim
        length = crossing_length(weights, c.num_hidden_layers, width)
        context = c.max_position_embeddings
        beyond = f" (beyond its context of {context:,})" if length > context else ""
        rows.append([name, "formula", f"{length:,.0f}{beyond}"])
    for name, entry in measured["prefill"].items():
        below = [size for size, share in entry.items() if share <= 0.5]
        above = [size for size, share in entry.items() if share > 0.5]
        if not above:
            found = f"beyond {max(below):,}"
        elif not below:
            found = f"below {min(above):,}"
        else:
            found = f"between {max(below):,} and {min(above):,}"
        rows.append([own, f"measured, {name}", found])
    return rows


def amdahl_rows(read: Mapping[int, Mapping[str, Sequence[float]]]) -> list[list]:
    """Rows: attention's share with `math`, the most that a model can gain, and what it gained.

    All from the same rounds: the most is the gain of the model without attention.
    """
    rows = []
    for length, entry in read.items():
        math_seconds = np.array(entry["math"])
        share = share_of_attention(entry, "math")
        limit, gain = (
            math_seconds / np.array(entry[name]) for name in (backends.NOTHING, fastest(entry))
        )
        rows.append([f"{length:,}", f"{share:.1%}", times(limit), times(gain)])
    return rows


def on_trial(
    results: Results,
    config: LlamaConfig,
    found: Mapping[int, Mapping],
    apart: Mapping[str, np.ndarray],
    read: Mapping[int, Mapping],
) -> None:
    """FlashAttention's claim beside this machine's kernels; says so where no tiled one runs."""
    longest, first = max(found), min(found)
    tiled = best_tiled(found[longest])
    if tiled == "math":
        return print("Only math runs here: the claim is not tried.")
    entry = found[longest]
    (_, faster), (case, over_math), *others = apart.items()  # these two without a mask
    longer = longest / first
    grown = {n: entry[n]["peak"] / found[first][n]["peak"] for n in ("math", tiled)}
    prompt = {name: np.array(seconds) for name, seconds in read[max(read)].items()}
    gain = prompt["math"] / prompt[fastest(prompt)]
    linear, won = grown[tiled] < 1.5 * longer, _decided(faster, "yes", "no")
    verdict = {"yes": "consistent with it here", "no": "fails here"}.get(won, "undecided here")
    verdict = verdict if linear else "fails here"
    put_on_trial(
        results,
        "flash-attention-exact-faster-smaller",
        f"{config.num_attention_heads} heads of {config.head_dim}, {longest:,} tokens, {case}: "
        f"the fastest tiled kernel is {times(faster)} times as fast as three separate steps into "
        f"memory that is reused ({len(faster)} rounds), and {times(over_math)} times as fast as math. "
        + "".join(
            f"In {name}, where math is handicapped: {times(ratio)}. " for name, ratio in others[:1]
        )
        + "".join(f"In {name}: {times(ratio)}. " for name, ratio in others[1:])
        + f"From {first:,} to "
        f"{longest:,} tokens, {longer:.0f} times as many, its memory grows {grown[tiled]:.0f} times, "
        f"that of math {grown['math']:.0f} times. Reading {max(read):,} tokens in 16 bit, the whole "
        f"model is {times(gain)} times as fast as with math ({len(gain)} rounds).",
        verdict,
        "The paper's claim is about a GPU's memory; here one shape was timed, with PyTorch's kernels on "
        "this machine. On a CPU that is a tiled kernel of PyTorch's own. Exact means to the rounding of "
        "FP32. The first ratio is the fair one, and decides: no mask, and memory that is asked for "
        "once. math takes new memory for each step, computes what a mask hides, and by default "
        "converts 16 bit to FP32. What a model gains depends on attention's share of its work.",
    )


# --- going deeper -------------------------------------------------------------------------------


def counts_at(
    block_sizes: Mapping[str, tuple[int, int]], length: int, width: int
) -> dict[str, Any]:
    """The traffic and work that the loops of the package count, each checked against its formula."""
    generator = torch.Generator().manual_seed(0)
    q, k, v = torch.randn(3, 1, 1, length, width, generator=generator).unbind(0)
    counts = {"standard": flash.Traffic()}
    flash.standard_attention(q, k, v, traffic=counts["standard"])
    assert counts["standard"] == flash.standard_traffic(length, length, width)
    for name, sizes in block_sizes.items():
        version = int(name.split()[1].rstrip(","))
        run = flash.flash_attention_1 if version == 1 else flash.flash_attention_2
        counts[name] = flash.Traffic()
        run(q, k, v, False, *sizes, counts[name])
        predicted = flash.flash_traffic(length, length, width, *sizes, version=version)
        assert counts[name] == predicted, f"{name} moves what is not predicted"
    return counts


def non_matmul_operations(count: Any, width: int) -> int:
    """Operations around the products: per score a maximum, subtraction and sum; and those counted.

    Counted are exponentials, rescaled and divided outputs. A few numbers per row are left out.
    """
    scores = count.matmul_flops // (4 * width)
    return 3 * scores + count.exponentials + count.rescales + count.divisions


def sentence_on_versions(counts: Mapping[str, Any], width: int) -> str:
    """How many more operations around the products version 1 has than version 2, at equal blocks."""
    parts = []
    for name, count in counts.items():
        version, _, sizes = name.partition(", ")
        if version == "version 1":
            other = counts[f"version 2, {sizes}"]
            ratio = non_matmul_operations(count, width) / non_matmul_operations(other, width)
            parts.append(f"{ratio:.2f} times in blocks of {sizes}")
    return (
        "Non-matmul operations of version 1, relative to version 2 with the same blocks: "
        f"{', '.join(parts)}."
    )


def intensity_rows(
    counts: Mapping[str, Any], block_sizes: Mapping[str, tuple[int, int]], width: int
) -> list[list]:
    """Rows: operations per byte in 16 bit as counted, and by the formulas for a very long input."""
    length = 2**20
    long = {"standard": flash.standard_traffic(length, length, width)}
    for name, sizes in block_sizes.items():
        version = int(name.split()[1].rstrip(","))
        long[name] = flash.flash_traffic(length, length, width, *sizes, version=version)
    said = (("operations per byte, 16 bit", counts), (f"the same, {length:,} tokens", long))
    return [
        [text, *(f"{one.matmul_flops / (2 * one.moved):.0f}" for one in found.values())]
        for text, found in said
    ]


def moved(lengths: Sequence[int], width: int, memory: int) -> dict[str, list[float]]:
    """{way and blocks: bytes moved in 16 bit over what standard attention moves, at each length}.

    Both versions with version 1's blocks, and last version 2 with them swapped: as many queries as
    those have keys.
    """
    standard = np.array([flash.standard_traffic(T, T, width).moved for T in lengths])
    lines = {"standard": [1.0] * len(lengths)}
    queries, keys = flash.block_sizes(memory, width)
    for version, sizes in ((1, (queries, keys)), (2, (queries, keys)), (2, (keys, queries))):
        own = [flash.flash_traffic(T, T, width, *sizes, version=version).moved for T in lengths]
        name = f"version {version}, {sizes[0]} x {sizes[1]}"
        lines[name] = (np.array(own) / standard).tolist()
    return lines


def rounding(dtype: torch.dtype, length: int = 512, width: int = 64) -> list[list]:
    """Rows: the error of attention in 16 bit against float64, by what is rounded on the way."""
    generator = torch.Generator().manual_seed(4)
    q, k, v = (torch.randn(1, 2, length, width, generator=generator).to(dtype) for _ in range(3))
    exact = scaled_dot_product_attention(q.double(), k.double(), v.double())
    scores = (q.float() @ k.float().mT) / width**0.5
    m = scores.amax(-1, keepdim=True)
    weights = (scores - m).exp()
    total = weights.sum(-1, keepdim=True)
    in_half = (q @ k.mT / width**0.5).softmax(-1) @ v
    ways = {
        "nothing but the output": (weights @ v.float() / total).to(dtype),
        "and P, before the product with V (the kernels)": (
            (weights.to(dtype).float() @ v.float()) / total
        ).to(dtype),
        "everything, scores too (written out in 16 bit)": in_half,
    }
    rows = []
    for name, out in ways.items():
        error = (
            (out.double() - exact).square().mean().sqrt() / exact.square().mean().sqrt()
        ).item()
        rows.append([name, f"{error:.1e}"])
    return rows


def kept_for_backward(run: Callable[..., Tensor], leaves: Sequence[Tensor]) -> int:
    """Bytes that are held after a forward pass, output included, inputs not."""
    with count_new_bytes() as new:
        out = run(*leaves)
    held = new.held
    del out
    return held


def backward_traffic(length: int, width: int, block: int) -> list[list]:
    """Rows: elements moved by the forward and the backward pass of one head, both ways."""
    generator = torch.Generator().manual_seed(5)
    q, k, v, do = torch.randn(4, 1, 1, length, width, generator=generator).unbind(0)
    forward, backward = flash.Traffic(), flash.Traffic()
    o, lse = flash.flash_attention_2(q, k, v, False, block, block, forward)
    flash.flash_backward(do, q, k, v, o, lse, False, block, block, backward)
    # Standard: dV from P; dP out; dA from dP and P; dQ and dK from dA. Operands once per product.
    pairs, rows = length * length, length * width
    standard = {"forward": 4 * pairs + 4 * rows, "backward": 7 * pairs + 8 * rows}
    return [
        [phase, f"{standard[phase]:,}", f"{count.moved:,}", f"{standard[phase] / count.moved:.1f}x"]
        for phase, count in (("forward", forward), ("backward", backward))
    ]


def show_kernel() -> None:
    """Display the Triton kernel's source as a block of Python."""
    from IPython.display import Markdown, display

    source = TRITON.read_text(encoding="utf-8")
    _, kernel, _ = re.split(r"# --- .* ---\n", source)
    display(Markdown(f"```python\n{kernel.strip()}\n```"))


def in_a_process(task: str, **variables: str) -> str:
    """What `triton_kernel.py` prints for a task, run in a process of its own, or why it cannot.

    Triton reads TRITON_INTERPRET when a kernel is decorated, so each way needs a fresh process.
    """
    if importlib.util.find_spec("triton") is None:
        return f"{task}: not run here, Triton is not installed"
    environment = os.environ | {"TRITON_INTERPRET": "0"} | variables
    done = subprocess.run(
        [sys.executable, str(TRITON), task],
        env=environment,
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    if done.returncode == 0:
        return done.stdout.strip()
    return f"{task}: not run here, {done.stderr.strip().splitlines()[-1]}"
