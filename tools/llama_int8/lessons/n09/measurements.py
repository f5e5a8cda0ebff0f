"""What lesson 09 measures, beside the learner's own functions: time, bytes, errors, shares."""

import importlib.util
import os
import re
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from functools import partial
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
from llama_int8.measure.statistics import mean_interval
from llama_int8.transformer import flash
from llama_int8.transformer.config import LlamaConfig

Attention = Callable[..., Tensor]
WRITTEN_OUT, YOURS = "written out", "your loop"
REUSED = "written out, memory reused"
ONE_TILE = "your code, one tile"
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
    parts = []
    for name in (WRITTEN_OUT, "math"):
        ratio = spread_of(found, longest, name, YOURS)
        parts.append(f"{times(ratio)} times as fast as {name}")
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


def loop_apart(
    results: Results,
    settings: Any,
    config: LlamaConfig,
    standard: Attention,
    reusing: Attention,
    tiled: Attention,
) -> dict[str, dict[str, np.ndarray]]:
    """{"no mask" or "causal": {way: seconds, one a round}} at the longest length.

    `standard` and `reusing` take the last keys or None; `reusing` also takes two (T, S) matrices
    per head, made once, for scores and weights. `tiled` is the learner's loop. It runs in blocks of
    `BLOCK`, and with one block as long as the text: the same code, without tiles.
    """
    longest, device = max(settings.lengths), settings.device
    dtype = fast_dtype(device)

    def measure() -> dict[str, dict[str, list[float]]]:
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
            runs[case, ONE_TILE] = partial(tiled, q, k, v, longest, last)
            runs[case, YOURS] = partial(tiled, q, k, v, BLOCK, last)
        timed = {key: latency.repeated(run, 1, device) for key, run in runs.items()}
        with torch.inference_mode():
            found = latency.interleaved(timed, settings.rounds)
        return {
            case: {name: found[case, name]["call"].tolist() for at, name in found if at == case}
            for case in last_keys
        }

    stage = results.stage("loop and one tile", measure)
    found = {case: {n: np.array(s) for n, s in one.items()} for case, one in stage.items()}
    for case, one in found.items():
        for name in (WRITTEN_OUT, REUSED, ONE_TILE):
            _record_ratio(results, f"loop_speed.{longest}.{case}.{name}", one[name] / one[YOURS])
    for name in (WRITTEN_OUT, REUSED, ONE_TILE):
        ratio = found["causal"][name] / found["no mask"][name]
        _record_ratio(results, f"mask_time.{longest}.{name}", ratio)
    ratio = found["no mask"][YOURS] / found["causal"][YOURS]
    _record_ratio(results, f"loop_speed.{longest}.skipping", ratio)
    return found


def room_for_scores(q: Tensor, k: Tensor) -> list[Tensor]:
    """Two matrices (..., T, S), for scores and weights, that can be written again and again."""
    return [q.new_empty(*q.shape[:-1], k.shape[-2]) for _ in range(2)]


def _record_ratio(results: Results, name: str, ratio: np.ndarray) -> None:
    low, high = ratio.min(), ratio.max()
    results.record(name, np.median(ratio), "x", kind="timing", low=low, high=high, n=ratio.size)


def loop_rows(found: Mapping[str, Mapping[str, np.ndarray]]) -> list[list]:
    """Rows for `loop_apart`: ms without and with the mask, their ratio, your loop's speed over each."""
    no_mask, causal = found["no mask"], found["causal"]
    return [
        [
            name,
            f"{1e3 * np.median(no_mask[name]):,.0f}",
            f"{1e3 * np.median(causal[name]):,.0f}",
            times(causal[name] / no_mask[name], 2),
            *(
                "" if name == YOURS else times(one[name] / one[YOURS], 2)
                for one in (no_mask, causal)
            ),
        ]
        for name in no_mask
    ]


def lead_as_a_product(found: Mapping[str, Mapping[str, np.ndarray]]) -> dict[str, np.ndarray]:
    """The loop's lead over `written out` under the mask, round by round, as factors; then the lead.

    Each factor compares two ways that differ in one respect; multiplied they give the lead.
    """
    no_mask, causal = found["no mask"], found["causal"]
    return {
        "the softmax in separate operations": no_mask[WRITTEN_OUT] / no_mask[ONE_TILE],
        "tiles": no_mask[ONE_TILE] / no_mask[YOURS],
        "the mask's extra pass in written out": causal[WRITTEN_OUT] / no_mask[WRITTEN_OUT],
        "skipped tiles": no_mask[YOURS] / causal[YOURS],
        "all together": causal[WRITTEN_OUT] / causal[YOURS],
    }


def factor_rows(factors: Mapping[str, np.ndarray]) -> list[list]:
    """Rows for `lead_as_a_product`: factor, how it was measured, its value with the range."""
    measured = (
        "written out / one tile, no mask",
        "one tile / your loop, no mask",
        "written out, causal / no mask",
        "your loop, no mask / causal",
        "written out / your loop, causal",
    )
    return [
        [name, how, times(ratio, 2)]
        for (name, ratio), how in zip(factors.items(), measured, strict=True)
    ]


def keeps_its_lead(found: Mapping[str, Mapping[str, np.ndarray]]) -> str:
    """Whether your loop is the faster one without a mask and with memory reused.

    "yes" in every round, "no" in none, else "undecided".
    """
    return _decided(found["no mask"][REUSED] / found["no mask"][YOURS], "yes", "no")


def share_of_tiles(length: int, block: int = BLOCK) -> float:
    """The share of tiles that a causal mask leaves, at least in part."""
    rows = -(-length // block)
    return (rows + 1) / (2 * rows)


def sentence_on_loop(found: Mapping[str, Mapping[str, np.ndarray]], tiles: float) -> str:
    """Where the lead comes from, as the rounds decide; `tiles`: the share that the mask leaves."""
    *factors, _ = lead_as_a_product(found).items()
    says = {"gain": [], "cost": [], "undecided": []}
    for name, ratio in factors:
        text = f"{name} ({np.median(ratio):.2f})"
        says[_decided(ratio, "gain", "cost")].append(text)
    answer = [
        f"Your loop gains by {_listed(says['gain'])}.",
        f"It loses by {_listed(says['cost'])}." if says["cost"] else "",
        f"The rounds do not decide on {_listed(says['undecided'])}." if says["undecided"] else "",
    ]
    no_mask = found["no mask"]
    said = {
        name: _decided(no_mask[name] / no_mask[YOURS], "faster than", "slower than")
        for name in (WRITTEN_OUT, REUSED)
    }
    if len(set(said.values())) == 1 and "undecided" not in said.values():
        answer.append(f"Without a mask it is {said[REUSED]} both {WRITTEN_OUT} and the control.")
    else:
        for name, called in ((WRITTEN_OUT, WRITTEN_OUT), (REUSED, "the control")):
            word = said[name].replace("undecided", "neither clearly faster nor slower than")
            answer.append(f"Without a mask it is {word} {called}.")
    reusing = no_mask[WRITTEN_OUT] / no_mask[REUSED]
    share = found["causal"][YOURS] / no_mask[YOURS]
    answer += [
        f"Reusing memory makes the three steps {times(reusing, 2)} times as fast.",
        f"The mask leaves {tiles:.0%} of the tiles; your loop then needs "
        f"{np.median(share):.0%} [{share.min():.0%}, {share.max():.0%}] of the time.",
    ]
    return " ".join(part for part in answer if part)


def _listed(names: Sequence[str]) -> str:
    """a, b and c; "nothing" for none."""
    if len(names) < 2:
        return names[0] if names else "nothing"
    return f"{', '.join(names[:-1])} and {names[-1]}"


def by_block(
    results: Results, settings: Any, config: LlamaConfig, attention: Attention
) -> dict[int, list[float]]:
    """{block: seconds, one a round} of the learner's loop at the second longest length."""
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


def taken_apart(
    results: Results, settings: Any, config: LlamaConfig, reusing: Attention
) -> dict[str, np.ndarray]:
    """{opponent and case: its seconds over those of the fastest tiled kernel, round by round}.

    First the fair opponent: `reusing`, three steps into two matrices made once, no mask. Then
    `math`, no mask; then with a mask, half of which `math` computes for nothing; then also in 16
    bit, which `math` converts to FP32 on a CPU.
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
    """Seconds in which the model reads prompts by each backend, recorded as tokens/s."""
    read = results.stage(
        "prefill over length",
        lambda: backends.prefill_over_length(
            model, settings.prompt_lengths, able, settings.prompt_rounds
        ),
    )
    read = {int(length): entry for length, entry in read.items()}
    for length, entry in read.items():
        for name, seconds in entry.items():
            speed = length / np.median(seconds)
            results.record(f"prefill.{length}.{name}", speed, "tokens/s", kind="timing")
    return read


def shares(
    results: Results, settings: Any, model: nn.Module, able: Sequence[str]
) -> dict[str, dict[str, dict[int, float]]]:
    """{"prefill" or "decode": {backend: {length: attention's measured share}}}, recorded in %."""
    points = {"prefill": (settings.prompt_lengths, False), "decode": (settings.contexts, True)}
    measured: dict[str, dict[str, dict[int, float]]] = {}
    for phase, (sizes, step) in points.items():
        measured[phase] = {name: {} for name in able}
        for size in sizes:
            for name in able:
                new, past = (1, size) if step else (size, 0)
                share = backends.measured_share(model, name, new, past)
                measured[phase][name][size] = share
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


def crossings(
    models: Mapping[str, LlamaConfig], own: str, measured: Mapping, crossing_length: Callable
) -> list[list]:
    """Rows: the prompt of which half is attention, by the formula and as measured."""
    rows = []
    for name, c in models.items():
        weights = c.num_hidden_layers * sum(o * i for o, i in c.linear_shapes().values())
        width = c.num_attention_heads * c.head_dim
        length = crossing_length(weights, c.num_hidden_layers, width)
        rows.append([name, "formula", f"{length:,.0f}"])
    for name, entry in measured["prefill"].items():
        longer = [size for size, share in entry.items() if share > 0.5]
        first = f"at most {longer[0]:,}" if longer else "none measured"
        rows.append([own, f"measured, {name}", first])
    return rows


def amdahl_rows(read: Mapping[int, Mapping[str, Sequence[float]]], measured: Mapping) -> list[list]:
    """Rows: attention's share with `math`, the most that a model can gain, and what it gained."""
    rows = []
    for length, entry in read.items():
        share = measured["prefill"]["math"][length]
        medians = {name: np.median(seconds) for name, seconds in entry.items()}
        gain = np.array(entry["math"]) / np.array(entry[min(medians, key=medians.get)])
        rows.append([f"{length:,}", f"{share:.0%}", f"{1 / (1 - share):.1f}", times(gain)])
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
    low, _, _ = mean_interval(np.log(faster))
    longer = longest / first
    grown = {n: entry[n]["peak"] / found[first][n]["peak"] for n in ("math", tiled)}
    prompt = {name: np.array(seconds) for name, seconds in read[max(read)].items()}
    gain = prompt["math"] / prompt[min(prompt, key=lambda name: np.median(prompt[name]))]
    linear = grown[tiled] < 1.5 * longer
    verdict = "holds" if low > 0 and linear else "undecided here" if linear else "fails here"
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
        "This refers to PyTorch's kernels on this machine. On a CPU that is a tiled kernel of "
        "PyTorch's own, which stands here for the paper's, written for GPUs. Exact means to the "
        "rounding of FP32. The first ratio is the fair one, and decides: no mask, and memory that is "
        "asked for once. math takes new memory for each step, computes what a mask hides, and on a "
        "CPU converts 16 bit to FP32. What a model gains depends on attention's share of its work.",
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


def moved(lengths: Sequence[int], width: int, memory: int) -> dict[str, list[float]]:
    """{way and blocks: bytes moved in 16 bit over what standard attention moves, at each length}.

    Version 1 with its paper's blocks, version 2 with the same ones, and last version 2 with square
    ones.
    """
    standard = np.array([flash.standard_traffic(T, T, width).moved for T in lengths])
    lines = {"standard": [1.0] * len(lengths)}
    for version, rule in ((1, 1), (2, 1), (2, 2)):
        sizes = flash.block_sizes(memory, width, rule)
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
