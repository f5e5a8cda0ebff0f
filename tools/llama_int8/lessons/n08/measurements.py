"""What lesson 08 measures and decides: memory, paired quality, shares of time, and the audit."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

import llama_int8.models as models
from llama_int8.data import published
from llama_int8.evaluation import answers, compare, loglikelihood, perplexity
from llama_int8.evaluation.compare import Flips, Point
from llama_int8.evaluation.experiment import NO_DECOMPOSITION
from llama_int8.evaluation.tasks import Item, Task
from llama_int8.lessons.n08.places import places_named
from llama_int8.measure.memory import release
from llama_int8.measure.results import Results
from llama_int8.measure.statistics import (
    PairedDifference,
    Spread,
    holm,
    mcnemar_exact,
    mean_interval,
    proportion_interval,
)
from llama_int8.models.cost import (
    GIB,
    count_parameters,
    forward_bytes,
    kv_cache_bytes,
    weight_bytes,
)
from llama_int8.quantization.quantize import absmax_quantize, dequantize
from llama_int8.transformer.config import LlamaConfig

Verdict = tuple[str, str, str]  # measured, verdict, because: what put_on_trial takes
QUALITY_MARGIN = 0.01  # of perplexity, a convention of the course, set before the measurement
BLOCKS = (4, 8)  # windows in a row that count as one value, where neighbours may not be independent
WIDEST_SHARE = 0.3  # between the rounds, of a share of time that is a result
PIQA_ITEMS = 1838

# --- memory -------------------------------------------------------------------------------------


def verdict_on_shapes(counted: Mapping[str, int], theirs: Mapping[str, float]) -> Verdict:
    """Bytes counted from shapes beside what was measured on a T4, in GiB."""
    exact = all(round(counted[p] / GIB, 2) == gib for p, gib in theirs.items())
    measured = " and ".join(f"{size / GIB:.2f} GiB in {p}" for p, size in counted.items())
    because = (
        f"{'Both' if exact else 'Not both'} agree to two decimals. The page writes GB, but its code "
        "divides by 1024³, so these are GiB. It is the weights only, without cache, activations or "
        "CUDA's own memory."
    )
    return f"From shapes: {measured}.", "holds" if exact else "fails here", because


def verdict_on_small_card(longest: int, card: float, per_token: int) -> Verdict:
    """Whether LLaMA-2-7B in int8 fits a card of `card` GiB: what prompt it leaves room for.

    `per_token`: bytes of cache and activations that each token of the prompt takes.
    """
    measured = f"Of {card:g} GiB the weights leave room for a prompt of {longest:,} tokens."
    if not longest:
        return measured, "fails here", "Not one token fits beside the weights."
    because = (
        f"the prompt and its answer stay below {longest:,} tokens, less what CUDA takes for itself "
        f"(some hundred MB; each token takes {per_token / 1e6:.2f} MB) and what the card lacks of the "
        "size in its name. The model can read 4,096."
    )
    return measured, "holds only if", because


def verdict_on_share_in_int8(config: LlamaConfig, other: LlamaConfig) -> Verdict:
    """The share of the weights that LLM.int8() keeps in int8, for two models."""
    shares = [100 * weight_bytes(c, "int8").linear / count_parameters(c) for c in (config, other)]
    measured = f"{shares[0]:.1f} % of LLaMA-2-7B's weights, {shares[1]:.1f} % of Llama-3.2-1B's."
    because = (
        "Embedding, output layer and norms stay in 16 bit. (99.9 % comes from the paper, and speaks "
        "of the *values in the product* that are not outliers.)"
    )
    return measured, "holds" if min(shares) >= 99.85 else "fails here", because


def weights_table(runs: Mapping[str, Any], config: LlamaConfig) -> list[list[str]]:
    """Predicted and measured bytes of the weights. Raises AssertionError beyond 1 %."""
    rows = []
    for p, run in runs.items():
        predicted, measured = weight_bytes(config, p).total, run["weight bytes"]
        assert abs(measured / predicted - 1) < 0.01, f"weights in {p}: not what config.json says"
        rows.append([p, f"{predicted:,}", f"{measured:,}"])
    return rows


Peaks = Mapping[str, Sequence[tuple[Point, int, int]]]  # point, predicted, measured, by precision


def peaks_off(beyond: Peaks) -> str:
    """How well shapes predict what prompts need beside the weights, in one sentence."""
    off = [abs(m / predicted - 1) for rows in beyond.values() for _, predicted, m in rows]
    return f"Beside the weights, {len(off)} peaks are within {max(off):.0%} of what shapes predict."


def _beside_weights_and_cache(beyond: Peaks, config: LlamaConfig) -> dict[str, int]:
    """Bytes of activations and temporaries at the first point: the peak less weights and KV cache."""
    return {
        p: rows[0][2] - kv_cache_bytes(config, rows[0][0].tokens, rows[0][0].batch)
        for p, rows in beyond.items()
    }


def activations_of_int8(beyond: Peaks, half: str, config: LlamaConfig) -> float:
    """What int8 needs beside weights and KV cache for the first point, over what 16 bit needs.

    Without the FP32 copies that only bitsandbytes' CPU path makes.
    """
    needed = _beside_weights_and_cache(beyond, config)
    return (needed["int8"] - _copies(beyond["int8"][0][0], half, config)) / needed[half]


def _product(point: Point, config: LlamaConfig) -> int:
    """Bytes of the int32 product of the widest layer."""
    return 4 * point.batch * point.tokens * config.intermediate_size


def _copies(point: Point, half: str, config: LlamaConfig) -> int:
    """Bytes of bitsandbytes' three FP32 copies of that product, which it makes on a CPU only."""
    return 3 * _product(point, config) if half == "bf16" else 0


def verdict_on_activations(beyond: Peaks, half: str, config: LlamaConfig) -> Verdict:
    """Whether LLM.int8() needs less memory than 16 bit beside weights and KV cache.

    On a CPU bitsandbytes makes three FP32 copies of the int32 product, which a GPU does without: it is
    "fails here" only where LLM.int8() does not need less without them either.
    """
    point = beyond["int8"][0][0]
    needed = {p: size / 1e6 for p, size in _beside_weights_and_cache(beyond, config).items()}
    of_half = {point: measured for point, _, measured in beyond[half]}
    pairs = [
        (m, _copies(at, half, config), of_half[at]) for at, _, m in beyond["int8"] if at in of_half
    ]
    less = sum(int8 < other for int8, _, other in pairs)
    less_without = sum(int8 - made < other for int8, made, other in pairs)
    made = _copies(point, half, config) / 1e6
    bare = needed["int8"] - made
    measured = (
        f"Beside weights and KV cache, a prompt of {point.name} tokens needs {needed[half]:.1f} MB at "
        f"its peak in {half} and {bare:.1f} MB in LLM.int8()"
    )
    if made:
        measured += (
            ", without the FP32 copies that only bitsandbytes' CPU path makes. With them "
            f"({made:.1f} MB by shape) LLM.int8() needs {needed['int8']:.1f} MB"
        )
    measured += f". It needs less at {less_without} of {len(pairs)} points"
    measured += f" without the copies, at {less} with them." if made else "."
    because = (
        f"LLM.int8() holds the int32 product of its widest layer, {_product(point, config) / 1e6:.1f} "
        "MB by its shape, beside 16-bit rows."
    )
    if made:
        because = (
            f"What carries over is at least {bare / needed[half]:.2f} times {half}'s need: {because} "
            f"The total, {needed['int8'] / needed[half]:.2f} times, is this CPU's."
        )
    if less == len(pairs):
        return measured, "holds", because
    return measured, "undecided here" if less_without else "fails here", because


# --- quality ------------------------------------------------------------------------------------


def text_table(
    nll: Mapping[str, np.ndarray],
    differences: Mapping[str, PairedDifference],
    text: perplexity.StridedText,
) -> list[list[str]]:
    """Perplexity, bits per byte and the paired difference of each precision."""
    rows = []
    for p, values in nll.items():
        d = differences.get(p)
        change = f"{d.mean:+.4f} [{d.low:+.4f}, {d.high:+.4f}]" if d else "baseline"
        bits = perplexity.bits_per_byte(values, text)
        rows.append([p, f"{np.exp(values.mean()):.3f}", f"{bits:.4f}", change])
    return rows


def what_it_costs(difference: PairedDifference) -> str:
    """The paired difference of int8 in one sentence."""
    d = difference
    word = "loses" if d.low > 0 else "gains" if d.high < 0 else "does not clearly change"
    return (
        f"int8 {word} quality on this text: {d.mean:+.4f} nats per token, "
        f"{np.expm1(d.mean):+.1%} of perplexity, 95 % interval [{d.low:+.4f}, {d.high:+.4f}]."
    )


def without_pairs(first: np.ndarray, second: np.ndarray) -> str:
    """The interval of the same difference if the windows were not paired, in one sentence."""
    low, high = mean_interval(second - first)[1:]
    error = np.sqrt((first.var(ddof=1) + second.var(ddof=1)) / first.size)
    mean = float((second - first).mean())
    ends = f"[{mean - 1.96 * error:+.4f}, {mean + 1.96 * error:+.4f}]"
    times = 2 * 1.96 * error / (high - low)
    return f"Without pairs, the same windows would give {ends}: {times:.0f} times as wide."


def against_margin(difference: PairedDifference) -> tuple[float, float]:
    """The largest true cost that such a sample shows to be within the margin, the least beyond it.

    In nats per token, each shown four times out of five: as far from the margin as the smallest
    detectable difference is from zero.
    """
    margin = float(np.log1p(QUALITY_MARGIN))
    return margin - difference.smallest_detectable, margin + difference.smallest_detectable


def record_against_margin(results: Results, difference: PairedDifference) -> str:
    """Keep what the sample can show against the margin, and say it in words."""
    within, beyond = against_margin(difference)
    results.record("shown_within_margin.int8", within, "nats", n=difference.n)
    results.record("shown_beyond_margin.int8", beyond, "nats", n=difference.n)
    at_most = f"a true cost of at most {within:.4f} nats ({np.expm1(within):.1%} of perplexity)"
    if within < 0:
        at_most = f"no cost at all, only a gain of at least {-within:.4f} nats"
    return (
        f"Against a margin of {np.log1p(QUALITY_MARGIN):.4f} nats, {difference.n} windows show, four "
        f"times out of five:\n  within the margin: {at_most};\n  beyond it: at least {beyond:.4f} nats "
        f"({np.expm1(beyond):.1%})."
    )


def verdict_on_quality(
    model: str, difference: PairedDifference, per_window: np.ndarray, half: str
) -> Verdict:
    """Whether int8 keeps 16 bit's perplexity to within the margin; `per_window`: differences, (N,)."""
    margin = np.log1p(QUALITY_MARGIN)  # nats per token
    d = difference
    measured = (
        f"{model}: perplexity {np.exp(d.mean) - 1:+.2%} against {half}, {d.mean:+.4f} nats per token "
        f"[{d.low:+.4f}, {d.high:+.4f}] over {d.n} windows."
    )
    scope = (
        "This is one model on one text, against a margin of ours, and no test of the paper's models: "
        f"{_paper_on_quality()}"
    )
    if d.low <= margin <= d.high:
        within, beyond = against_margin(d)
        because = (
            f"The interval contains our margin of 1 %. True costs between {within:.4f} and "
            f"{beyond:.4f} nats are often left open by so many windows. {scope}"
        )
        return measured, "undecided here", because
    side, verdict = ("below", "holds") if d.high < margin else ("above", "fails here")
    blocks, across = _by_blocks(per_window)
    if across:
        because = (
            f"A close call. The interval over windows is {side} our margin of 1 %, but blocks "
            f"{across} contain it, and neighbouring windows may not be independent. {scope}"
        )
        return measured, "undecided here", because
    same = " Blocks of windows as units lie on the same side." if blocks else ""
    return measured, verdict, f"The whole interval is {side} our margin of 1 %.{same} {scope}"


def _by_blocks(per_window: np.ndarray) -> tuple[int, str]:
    """How many sizes of block have an interval, and which intervals contain the margin, in words."""
    margin = float(np.log1p(QUALITY_MARGIN))
    ends = {size: found for size in BLOCKS if (found := _block_interval(per_window, size))}
    across = [
        f"of {size} windows [{low:+.4f}, {high:+.4f}]"
        for size, (_, low, high, _) in ends.items()
        if low <= margin <= high
    ]
    return len(ends), " and ".join(across)


def _paper_on_quality() -> str:
    """What the paper's table has for its smallest and its largest model, in one sentence."""
    table = published("llm-int8-paper")
    before, after = table["rows"]["32-bit"], table["rows"]["vector-wise + decomposition"]
    said = [
        f"from {before[n]} to {after[n]} ({float(after[n]) / float(before[n]) - 1:+.1%}) at "
        f"{table['columns'][n]} parameters"
        for n in (0, -1)
    ]
    return f"there perplexity goes {' and '.join(said)}, on another text."


def choices_table(
    scores: Mapping[str, Any], items: Sequence[Item], flips: Mapping[str, Flips]
) -> list[list[str]]:
    """Accuracy by both rules, and the flips of each precision."""
    rows = []
    for p, found in scores.items():
        right = [loglikelihood.correct(found, items, norm).mean() for norm in (False, True)]
        f = flips.get(p)
        change = f"{f.lost} lost, {f.won} won, p = {f.p_value:.2f}" if f else "baseline"
        rows.append([p, *(f"{share:.1%}" for share in right), change])
    return rows


def item_rows(
    runs: Mapping[str, Any], item: Item, number: int, precisions: Sequence[str]
) -> tuple[list[list[str]], str]:
    """One item's choices with their log-likelihoods in each precision; and which one it takes."""
    rows, taken = [], {}
    for p in precisions:
        scores = runs[p]["choices"][number]
        taken[p] = max(range(len(scores)), key=scores.__getitem__)
        for place, (choice, score) in enumerate(zip(item.choices, scores, strict=True)):
            mark = "right" if place == item.label else ""
            rows.append([p, choice, f"{score:.2f}", f"{score / len(choice):.3f}", mark])
    said = ", ".join(
        f"{p} takes answer {place + 1} ({'right' if place == item.label else 'wrong'})"
        for p, place in taken.items()
    )
    return rows, f"By the sum, {said}."


def bound_without_flips(n: int) -> float:
    """The share of lost items beyond which no flip in `n` would be seen in fewer than 1 of 20 samples.

    One-sided, 95 %: (1 - share)**n is the chance of seeing none.
    """
    return 1 - 0.05 ** (1 / n)


def what_flips_say(name: str, found: Flips) -> str:
    """What the flips of one precision say, and what they could have shown."""
    n, changed = found.difference.n, found.lost + found.won
    noticed = (
        "a difference" if found.p_value < 0.05 else "no difference that can be told from chance"
    )
    said = f"{name}: {changed} of {n} answers change, so {noticed}."
    points = f"about {100 * found.smallest_detectable:.1f} points"  # Connor's formula is asymptotic
    if changed:
        return f"{said} A loss of fewer than {points} would often go unnoticed."
    return (
        f"{said}\nNo flip in {n} rules out a loss beyond {100 * bound_without_flips(n):.1f} points, for "
        "items like these (95 %, one-sided).\nThe test itself needs more: a loss of at least "
        f"{points}, all flips to one side, to show a difference four times out of five."
    )


def without_known_score(models_: Sequence[str]) -> str:
    """Which of these models have no PIQA score by a source that we can name; "" if all have one."""
    known = published("piqa-elsewhere")["rows"]
    missing = [name for name in models_ if name not in known]
    if not missing:
        return ""
    return f"no PIQA score by a source that we can name, so ours has no check: {', '.join(missing)}"


def beside_known_score(model: str, right: np.ndarray) -> str:
    """What others measured for this model on PIQA by `acc`, and a warning beyond 2 points.

    `right`: whether each item was answered right, (N,).
    """
    table = published("piqa-elsewhere")
    if model not in table["rows"]:
        return without_known_score([model])
    theirs, source = table["rows"][model]
    low, high = (100 * end for end in proportion_interval(int(right.sum()), right.size))
    ours = 100 * right.mean()
    warning = ""
    if abs(ours - theirs) > 2:
        warning = ". WARNING: beyond 2 points apart, so look for a reason before you go on"
    return f"acc {ours:.2f} [{low:.2f}, {high:.2f}], elsewhere {theirs} ({source}){warning}"


def _block_interval(differences: np.ndarray, size: int) -> tuple[float, float, float, int] | None:
    """Mean over blocks, its interval by Student's t, and how many blocks; None for three or fewer."""
    blocks = compare.in_blocks(differences, size)
    return (*mean_interval(blocks), blocks.size) if blocks.size > 3 else None


def block_rows(results: Results, differences: np.ndarray) -> tuple[list[list[Any]], str]:
    """Intervals of the mean over blocks of windows in a row, by size, and what they say of the margin.

    All intervals are Student's, so that their widths can be compared.
    """
    margin = float(np.log1p(QUALITY_MARGIN))
    rows, across = [], []
    for size in (1, *BLOCKS):
        found = _block_interval(differences, size)
        if found:
            mean, low, high, count = found
            results.record(f"blocks.{size}", mean, "nats", low=low, high=high, n=count)
            rows.append([size, count, f"[{low:+.4f}, {high:+.4f}]"])
            if low <= margin <= high:
                across.append(str(size))
    if not rows:
        return rows, "too few windows for blocks"
    where = f"in the interval over blocks of {', '.join(across)}" if across else "in none of these"
    return rows, f"Our margin, {margin:.4f} nats per token, lies {where}."


def divergence_rows(scored: Mapping[str, Any], half: str) -> list[list[Any]]:
    """KL divergence and agreement of each precision with the baseline."""
    rows = []
    for p in scored:
        compared = [w for w in scored[p] if "kl" in w] if p != half else []
        if compared:
            kl = np.array([w["kl"] for w in compared])
            same = np.mean([w["agreement"] for w in compared])
            ends = f"{kl.min():.4f} to {kl.max():.4f}"  # least and largest window
            rows.append([p, len(kl), f"{kl.mean():.5f}", ends, f"{same:.1%}"])
    return rows


def what_divergence_says(scored: Mapping[str, Any]) -> str:
    """The divergence of int8 beside that of FP32 instead of 16 bit, in words; "" without both.

    For small changes the divergence grows with the square of the change of the logits.
    """
    kl = {
        p: float(np.mean([w["kl"] for w in windows if "kl" in w]))
        for p, windows in scored.items()
        if p in ("fp32", "int8") and any("kl" in w for w in windows)
    }
    if len(kl) < 2 or not kl["fp32"]:
        return ""
    times = kl["int8"] / kl["fp32"]
    said = (
        f"int8 has {times:.1f} times the KL divergence of fp32, which only rounds more finely. It grows "
        f"about with the square of a small change: in the logits that is about {times**0.5:.1f} times."
    )
    return f"{said} So int8 is more than another rounding." if times > 2 else said


def alone_rows(
    results: Results, runs: Mapping[str, Any], items: Sequence[Item], half: str
) -> tuple[list[list[str]], str]:
    """The same items in batches and alone: how far scores move on average, and the answer in words."""
    rows, moves, changed = [], {}, {}
    for p in (half, "int8"):
        alone = runs[p]["choices alone"]
        some = items[: len(alone)]
        batched = runs[p]["choices"][: len(alone)]
        moved = np.abs(np.array(alone) - np.array(batched)).mean()
        flips = compare.flips(*(loglikelihood.correct(s, some, True) for s in (batched, alone)))
        share = loglikelihood.correct(alone, some, True).mean()
        results.record(f"alone.moved.{p}", moved, "nats", n=len(alone))
        results.record(f"alone.acc_norm.{p}", 100 * share, "%", n=len(alone))
        change = f"{flips.lost} lost, {flips.won} won"
        rows.append([p, f"{len(alone)}", f"{moved:.3f}", f"{share:.1%}", change])
        moves[p], changed[p] = moved, flips.lost + flips.won
    times = f"{moves['int8'] / moves[half]:.1f} times as far as" if moves[half] else "and not"
    depends = "depends on the batches, too" if changed["int8"] else "is the same without batches"
    said = (
        f"Batches move a score in int8 {times} in {half}; of the answers {changed['int8']} change in "
        f"int8, {changed[half]} in {half}. So what int8 answers here {depends}."
    )
    return rows, said


def slip_rows(results: Results, slips: Mapping[str, Any], items: Sequence[Item]) -> list[list[str]]:
    """Accuracy of each wrong rule, how often it takes each answer, ties, and hits without ties."""
    rows = []
    for rule, scores in slips.items():
        right = loglikelihood.correct(scores, items, normalized=False)
        low, high = (100 * end for end in proportion_interval(int(right.sum()), right.size))
        results.record(
            f"wrong_rule.{rule}", 100 * right.mean(), "%", low=low, high=high, n=len(items)
        )
        places = len(items[0].choices)
        taken = np.bincount(loglikelihood.picks(scores), minlength=places)
        untied = np.array([len(set(row)) > 1 for row in scores])
        share = f"{100 * right.mean():.1f} [{low:.1f}, {high:.1f}]"
        told = f"{int(right[untied].sum())} of {int(untied.sum())}"
        rows.append([rule, share, " / ".join(map(str, taken)), str(int((~untied).sum())), told])
    return rows


# Damage on purpose: bits, and what shares a scale. A model in ruins would be no test of a test.
CONTROLS = {
    "6 bits, one scale per matrix": (6, "tensor"),
    "3 bits, one scale per row": (3, "row"),
}


def control_scores(
    model_name: str, precision: str, device: str, packed: Sequence[loglikelihood.Packed]
) -> dict[str, list[list[float]]]:
    """Scores of models whose linear weights are rounded coarsely, by kind of damage.

    A test that does not notice these cannot say anything by not noticing int8.
    """
    scores = {}
    for name, (bits, granularity) in CONTROLS.items():
        model = models.load_model(model_name, precision, device)
        _round_linear(model, bits, granularity)
        scores[name] = loglikelihood.choice_scores(model, packed, label=name)
        del model
        release()  # before the next one is loaded
    return scores


@torch.inference_mode()
def _round_linear(model: PreTrainedModel, bits: int, granularity: str) -> None:
    for layer, module in model.named_modules():
        if isinstance(module, torch.nn.Linear) and layer != "lm_head":
            module.weight.copy_(dequantize(absmax_quantize(module.weight, bits, granularity)))


def control_rows(
    results: Results,
    scores: Mapping[str, Sequence[Sequence[float]]],
    baseline: Sequence[Sequence[float]],
    items: Sequence[Item],
) -> list[list[str]]:
    """Each damaged model's loss of accuracy, its flips, and whether the test notices them."""
    before = loglikelihood.correct(baseline, items, normalized=True)
    rows = []
    for name, damaged in scores.items():
        after = loglikelihood.correct(damaged, items, normalized=True)
        found = compare.flips(before, after)
        results.record(f"control.{name}.acc_norm", 100 * after.mean(), "%", n=after.size)
        results.record(f"control.{name}.lost", found.lost, "count", n=after.size)
        results.record(f"control.{name}.won", found.won, "count", n=after.size)
        change = f"{100 * (after.mean() - before.mean()):+.1f}"
        flipped = f"{found.lost} lost, {found.won} won"
        noticed = "yes" if found.p_value < 0.05 else "no"
        rows.append([name, f"{after.mean():.1%}", change, flipped, f"{found.p_value:.2g}", noticed])
    return rows


# --- texts --------------------------------------------------------------------------------------


def side_by_side(
    results: Results, tokenizer: PreTrainedTokenizerBase, pair: Mapping[str, Sequence[int]]
) -> tuple[int | None, str]:
    """Where two greedy texts diverge, and both as Markdown with that place marked."""
    first = answers.first_difference(*pair.values())
    parts = []
    for p, tokens in pair.items():
        whole = tokenizer.decode(tokens, skip_special_tokens=True)
        same = tokenizer.decode(tokens[:first], skip_special_tokens=True)
        marked = f"{same} **⟦ here they diverge ⟧** {whole[len(same) :]}"
        lines = (marked if first is not None else whole).splitlines()
        parts.append(f"**{p}**\n\n" + "\n".join(f"> {line}" for line in lines))
        results.record(f"text.{p}", whole, "text")
    shared = len(next(iter(pair.values()))) if first is None else first
    results.record("first_difference", shared, "count")
    return first, "\n\n".join(parts)


def words_at(
    tokenizer: PreTrainedTokenizerBase, pair: Mapping[str, Sequence[int]], step: int | None
) -> str:
    """The two tokens at which two texts diverge: "' a' or ' b'"."""
    if step is None:
        return ""
    return " or ".join(repr(tokenizer.decode(tokens[step : step + 1])) for tokens in pair.values())


def equal_token_rows(results: Results, runs: Mapping[str, Any], half: str) -> list[list[Any]]:
    """By prompt and way of decoding: how many tokens both precisions have in common."""
    rows = []
    for title, ways in runs[half]["answers"].items():
        for how in ways:
            pair = [runs[p]["answers"][title][how]["tokens"] for p in (half, "int8")]
            first = answers.first_difference(*pair)
            equal = len(pair[0]) if first is None else first
            results.record(f"equal_tokens.{title}.{how}", equal, "count")
            shown = equal if first is not None else f"{equal}, did not diverge"
            rows.append([title, how, shown, len(pair[0])])
    return rows


PUBLISHED_PROMPT = "Paris, as published"


def published_prompt(tokenizer: PreTrainedTokenizerBase) -> Tensor:
    """The T4 project's prompt as it gave it: without a chat form; token ids (1, T)."""
    (prompt,) = published("t4-protocol")["rows"]["prompt"]
    return tokenizer(prompt, return_tensors="pt")["input_ids"]


def place_rows(
    results: Results, tokenizer: PreTrainedTokenizerBase, runs: Mapping[str, Any], half: str
) -> list[list[str]]:
    """The places that each plan names, in Paris and elsewhere; empty where no plan names any."""
    rows, named = [], 0
    for title in (title for title in runs[half]["answers"] if title.startswith("Paris")):
        for how in ("greedy", "sampled"):
            for p in (half, "int8"):
                text = tokenizer.decode(runs[p]["answers"][title][how]["tokens"])
                inside, outside = places_named(text)
                mark = "" if title == "Paris" else "published."
                results.record(f"places.{mark}{how}.{p}", len(inside), "count", note="in Paris")
                results.record(f"places_elsewhere.{mark}{how}.{p}", len(outside), "count")
                plan = f"{title}, {how}, {p}"
                rows.append([plan, ", ".join(inside) or "none", ", ".join(outside) or "none"])
                named += len(inside) + len(outside)
    return rows if named else []


# --- speed --------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Part:
    """What part of int8's extra time in one phase goes with the decomposition."""

    together: float  # of all rounds' extra time
    by_round: tuple[float, ...]  # one for each round that has extra time
    rounds: int  # all of them


def parts_of_decomposition(
    results: Results, record: Mapping[str, Any], half: str
) -> dict[str, Part]:
    """By phase: what part of int8's extra time goes with the decomposition, from all rounds.

    The times of all rounds are added up before the quotient is taken, so a round without extra time
    counts as well. Recorded with the least and the largest that leaving out one round gives. A phase
    whose rounds have no extra time together is left out.
    """
    parts = {}
    for phase in ("decode", "prefill"):
        seconds = {p: np.array(taken[phase]) for p, taken in record["precisions"].items()}
        extra = seconds["int8"] - seconds[half]
        bare = seconds[NO_DECOMPOSITION] - seconds[half]
        if extra.sum() <= 0:
            continue
        slower = extra > 0
        by_round = tuple((1 - bare[slower] / extra[slower]).tolist())
        part = parts[phase] = Part(float(1 - bare.sum() / extra.sum()), by_round, extra.size)
        rest = extra.sum() - extra  # without one round each
        without = 1 - (bare.sum() - bare)[rest > 0] / rest[rest > 0]
        ends = {"low": 100 * without.min(), "high": 100 * without.max()} if without.size else {}
        note = "of int8's extra time, all rounds together; low and high: with one round left out"
        name = f"decomposition.{phase}"
        results.record(
            name, 100 * part.together, "%", kind="timing", **ends, n=part.rounds, note=note
        )
    return parts


def _undecided_part(part: Part) -> str:
    """Why a part of the extra time is not a result; "" where it is one."""
    if part.rounds < compare.LEAST_ROUNDS:
        return f"{part.rounds} rounds are too few"
    even = part.rounds - len(part.by_round)
    if even:
        return f"in {even} of {part.rounds} rounds int8 takes no extra time"
    least, largest = min(part.by_round), max(part.by_round)
    if least > 0 and largest - least <= WIDEST_SHARE:
        return ""
    return f"the rounds' shares lie too far apart, from {least:.0%} to {largest:.0%}"


def _part_of_decomposition(phase: str, part: Part | None, slower: bool) -> str:
    """What threshold 0 says of restored weights in one phase, in one sentence."""
    head = "int8 is then not clearly slower"
    if slower:
        head = "restoring weights is not the whole reason"
    if part is None:
        return f"In {phase}, {head}."
    open_because = _undecided_part(part)
    if open_because:
        still = "int8 stays slower at threshold 0" if slower else head
        return f"In {phase}, undecided: {still}, but {open_because}."
    ends = f"from {min(part.by_round):.0%} to {max(part.by_round):.0%}"
    return (
        f"In {phase}, {head}; it is at most a part: the whole decomposition takes {part.together:.0%} "
        f"of the extra time ({part.rounds} rounds, {ends})."
    )


def worked_share(record: Mapping[str, Any], half: str, phase: str = "prefill") -> str:
    """The decomposition's share of the extra time in the first round of one phase, worked out."""
    bare, int8, base = (record["precisions"][p][phase][0] for p in (NO_DECOMPOSITION, "int8", half))
    return (
        f"For example, {phase} in the first round: 1 - ({bare:.3f} s - {base:.3f} s) / "
        f"({int8:.3f} s - {base:.3f} s) = {1 - (bare - base) / (int8 - base):.0%}"
    )


def verdict_on_dequantizing(
    parts: Mapping[str, Part],
    ratios: compare.Speeds,
    point: Point,
    fast_product: bool,
    device: str = "cpu",
) -> Verdict:
    """Whether restoring weights can be the reason for LLM.int8()'s extra time.

    The decomposition's part of a phase is decided where int8 has extra time in all of at least five
    rounds, and their parts lie within WIDEST_SHARE of each other. A phase that is not decided decides
    nothing.
    """
    if not fast_product:
        because = "Without AVX-512, bitsandbytes on a CPU converts all its weights at every step."
        return "This processor has no fast int8 product.", "holds", because
    bare = {phase: ratios[phase][NO_DECOMPOSITION][point] for phase in ("decode", "prefill")}
    said = {phase: compare.faster_or_slower(ratio) for phase, ratio in bare.items()}
    measured = (
        "Tested is *restoring weights*: threshold 0 leaves it out, with the search for outliers and "
        f"their columns. On this {'CPU' if device == 'cpu' else 'GPU'} the speed is then "
        + ", ".join(
            f"{ratio.median:.2f} times 16 bit's in {phase} ({said[phase]})"
            for phase, ratio in bare.items()
        )
    )
    slower = [phase for phase, word in said.items() if word == "slower"]
    decided = [p for p in slower if p not in parts or not _undecided_part(parts[p])]
    faster = all(word == "faster" for word in said.values())
    verdict = "fails here" if decided else "holds only if" if faster else "undecided here"
    shares = [_part_of_decomposition(p, parts.get(p), p in slower) for p in bare]
    because = (
        f"{' '.join(shares)} *Scaling the product* is not isolated: it remains at threshold 0."
    )
    if device == "cpu":
        because = (
            "That is on this CPU; the sentence, in our words, is about GPUs, and not tested there. "
            f"{because}"
        )
    if verdict == "holds only if":
        because = f"by dequantizing all of the decomposition is meant. {because}"
    return f"{measured}.", verdict, because


def operation_lines(
    operations: Mapping[str, int], speeds: compare.Speeds, point: Point, half: str, linear: int
) -> list[str]:
    """For each precision the operations of a decode step, and its time without the profiler.

    `linear`: how many linear layers the model has.
    """
    lines = []
    for p, count in operations.items():
        seconds = point.batch / speeds["decode"][p][point].median
        more = f" ({(count - operations[half]) / linear:.0f} more per linear layer)"
        lines.append(
            f"{p}: {count:,} operations per step{'' if p == half else more}; without the profiler "
            f"{1e3 * seconds:.0f} ms"
        )
    return lines


def two_ratios(speeds: compare.Speeds, ratio: Spread, point: Point, half: str) -> str:
    """The median ratio of the rounds beside the ratio of the two median steps, in words."""
    steps = {p: point.batch / speeds["decode"][p][point].median for p in (half, "int8")}
    shown = " and ".join(f"{1e3 * seconds:.1f} ms in {p}" for p, seconds in steps.items())
    return (
        f"{ratio.median:.0%} is the median of the ratios within rounds, which we use. The median steps, "
        f"{shown}, would give {steps[half] / steps['int8']:.0%}."
    )


PRODUCTS = ("16-bit products", "int8 products")
AROUND = {  # what LLM.int8() has beside its products
    "finding outliers, quantizing": "quantizing",
    "scaling the product": "scaling",
    "outlier columns": "outlier columns",
}


def what_int8_adds(profiles: Mapping[str, Mapping[str, Mapping[str, Any]]], half: str) -> str:
    """Where LLM.int8()'s step differs from 16 bit's, in milliseconds of the profile's medians."""
    more = {
        kind: 1e3 * (entry["seconds"] - profiles[half][kind]["seconds"])
        for kind, entry in profiles["int8"].items()
    }
    products, around = (sum(more[kind] for kind in kinds) for kinds in (PRODUCTS, AROUND))
    each = ", ".join(f"{name} {more[kind]:+.0f}" for kind, name in AROUND.items())
    rest = sum(more.values()) - products - around
    if products >= 0:
        said = "The products take longer, and so does what stands around them"
    elif around > -products:
        said = "The products save time, and the work around them costs more than that"
    else:
        said = "The products save more time than the work around them costs"
    return f"From {half} to int8, in ms: products {products:+.0f}; {each}; all else {rest:+.0f}. {said}."


def rate_of_products(
    profile: Mapping[str, Mapping[str, Any]], config: LlamaConfig, half: str, bandwidth: float
) -> str:
    """How fast a 16-bit decode step reads its weights inside its products; `bandwidth`: bytes/s."""
    size, taken = weight_bytes(config, half).read_per_token, profile["16-bit products"]
    rate = size / taken["seconds"]
    share = taken["seconds"] / sum(entry["seconds"] for entry in profile.values())
    return (
        f"Inside its products, {half} reads {size / 1e6:.0f} MB of weights in "
        f"{1e3 * taken['seconds']:.0f} ms (profiled): {rate / 1e9:.1f} GB/s, {rate / bandwidth:.0%} of "
        f"the bandwidth.\nThey are {share:.0%} of its profiled step; the rest is launching, and other "
        "work."
    )


def step_rows(
    speeds: compare.Speeds, config: LlamaConfig, half: str, bandwidth: float
) -> tuple[list[list[str]], str]:
    """What a decode step reads, how long reading takes, and how long the step does; and in words.

    `bandwidth`: bytes/s. At the headline, which is the first point.
    """
    rows, shares = [], {}
    for p in (half, "int8"):
        point, speed = next(iter(speeds["decode"][p].items()))
        read = forward_bytes(config, p, 1, point.tokens, point.batch)
        step, reading = point.batch / speed.median, read / bandwidth
        shares[p] = reading / step
        times = [f"{1000 * reading:.1f} ms", f"{1000 * step:.0f} ms"]
        rows.append([p, f"{read / 1e6:.0f} MB", *times, f"{shares[p]:.0%}"])
    said = f"Reading is {shares[half]:.0%} of a step in {half} and {shares['int8']:.0%} in int8"
    if max(shares.values()) < 0.5:
        said = f"{said}: bandwidth limits neither"
    return rows, f"{said}."


def int8_ratios(ratios: compare.Speeds, length: int) -> dict[str, dict[int, Spread]]:
    """Speed of int8 over 16 bit by phase and batch, for prompts of one length."""
    return {
        phase: {b: r for (b, t), r in sorted(ratios[phase]["int8"].items()) if t == length}
        for phase in ("prefill", "decode")
    }


def all_cases(
    summaries: Mapping[str, tuple[compare.Speeds, compare.Speeds, LlamaConfig]],
) -> dict[str, Spread]:
    """Speed of int8 over 16 bit for every model, phase and point that was measured."""
    return {
        f"{name}, {phase}, {point.name}": ratio
        for name, (_, ratios, _) in summaries.items()
        for phase in ("prefill", "decode")
        for point, ratio in ratios[phase]["int8"].items()
    }


def verdict_on_latency(cases: Mapping[str, Spread], half: str, where: str) -> Verdict:
    """Whether int8 is faster, over all cases that were measured."""
    said = {name: compare.faster_or_slower(ratio) for name, ratio in cases.items()}
    faster = [name for name, verdict in said.items() if verdict == "faster"]
    slower = sum(verdict == "slower" for verdict in said.values())
    medians = [ratio.median for ratio in cases.values()]
    by_chance = sum(2 * 0.5**ratio.n for ratio in cases.values())  # all rounds on one side
    measured = (
        f"Tested is bitsandbytes' LLM.int8(), one way of quantizing to 8 bits. Of {len(cases)} cases "
        f"{len(faster)} are faster than {half} in all rounds by 5 % or more, "
        f"{slower} slower in all rounds, {len(cases) - len(faster) - slower} undecided; medians from "
        f"{min(medians):.2f} to {max(medians):.2f}, their median {np.median(medians):.2f}. Without any "
        f"difference, chance puts all rounds of a case on one side in about {by_chance:.1f} of "
        f"{len(cases)}, half of them faster."
    )
    if len(faster) == len(cases):
        return measured, "holds", f"bitsandbytes on {where}."
    if faster:
        return measured, "holds only if", f"the case is one of these: {'; '.join(faster)}."
    verdict = "fails here" if slower else "undecided here"
    return measured, verdict, f"No case is faster with bitsandbytes on {where}."


def when_it_stops(
    cases: Mapping[str, Spread],
    measured_ratios: Mapping[str, Mapping[str, Mapping[int, Spread]]],
    widths: Mapping[str, int],
    half: str,
) -> str:
    """From which width on LLM.int8() is not slow: what was measured here, and what the paper has.

    `measured_ratios` and `widths` have the same models.
    """
    faster = sum(compare.faster_or_slower(ratio) == "faster" for ratio in cases.values())
    stops = "in some cases" if faster else "not at all"
    table = published("llm-int8-speed")
    speeds = [float(value) for value in table["rows"]["LLM.int8()"]]
    first = next(n for n, speed in enumerate(speeds) if speed >= 1)
    below, above = table["columns"][first - 1 : first + 1]
    return (
        f"On this machine, {stops}: LLM.int8() is faster than {half} in {faster} of {len(cases)} "
        f"cases, at widths up to {max(widths.values()):,}.\n"
        f"{_by_width(measured_ratios, widths, half)}"
        "In the paper, products of many rows pass 16 bit between widths "
        f"{below} and {above}.\n"
        "For decoding one sequence on a GPU somebody has to measure it: decode steps at batch 1,\n"
        "at widths on both sides of these, thresholds 6 and 0, five rounds or more, in turns."
    )


def _by_width(
    measured_ratios: Mapping[str, Mapping[str, Mapping[int, Spread]]],
    widths: Mapping[str, int],
    half: str,
) -> str:
    """Decode of one sequence by width, and what else differs between the models; "" for one model."""
    one = sorted(
        (widths[name], phases["decode"][1].median)
        for name, phases in measured_ratios.items()
        if 1 in phases["decode"]
    )
    if len(one) < 2:
        return ""
    by_width = ", ".join(f"{ratio:.2f} at width {width:,}" for width, ratio in one)
    return (
        f"Decoding one sequence, it reaches of {half}'s speed {by_width}. But these models\n"
        "differ in depth, vocabulary, prompt length and weights (trained or random) as well.\n"
    )


def decode_use(
    summaries: Mapping[str, tuple[compare.Speeds, compare.Speeds, LlamaConfig]],
    half: str,
    bandwidth: float,
) -> list[list[str]]:
    """For each model what bytes allow int8 at its headline point, and what it reached."""
    rows = []
    for name, parts in summaries.items():
        use = compare.decode_against_bytes(*parts, half, bandwidth)
        shares = [f"{use[p]:.0%}" for p in (half, "int8")]
        point = next(iter(parts[1]["decode"]["int8"])).name
        rows.append(
            [f"{name}, {point}", f"{use['allowed']:.2f}", f"{use['measured']:.2f}", *shares]
        )
    return rows


# --- the audit ----------------------------------------------------------------------------------


@dataclass(frozen=True)
class AnswerLogits:
    """One answer as the published code gave it to the model, and the logits that came back."""

    logits: Tensor  # (T, V) in FP16
    input_ids: Tensor  # (T,)
    prompt_len: int
    characters: int


def published_form(item: Item) -> str:
    """The question on one line, as the published evaluation puts it."""
    return item.context.replace("\nAnswer:", " Answer:")


def logits_of_answers(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, item: Item
) -> list[AnswerLogits]:
    """Both answers of one item, each in a pass of its own, as the published evaluation did."""
    question = published_form(item)
    prompt_len = len(tokenizer(question)["input_ids"])
    found = []
    for choice in item.choices[:2]:
        ids = tokenizer(f"{question} {choice}", return_tensors="pt")["input_ids"].to(model.device)
        with torch.inference_mode():
            logits = model(ids, use_cache=False).logits[0].to(torch.float16).cpu()
        start = min(prompt_len, ids.shape[1] - 1)  # an answer has one token at least
        found.append(AnswerLogits(logits, ids[0].cpu(), start, len(choice)))
    return found


@dataclass(frozen=True)
class Audit:
    """What one model answers by the published rule and by its repairs."""

    sums: list[list[float]]  # of both answers' logits in FP16, for each item
    tokens: list[list[int]]  # of both texts
    taken: dict[str, list[int]]  # 1 or 2 for each item, by rule
    right: list[int]  # 1 or 2

    @property
    def infinite(self) -> int:
        """How many of the sums are infinite."""
        return int(np.isinf(np.array(self.sums)).sum())

    @property
    def signs(self) -> str:
        """The signs of the infinite sums: "+", "-", both, or none."""
        infinite = {value for row in self.sums for value in row if np.isinf(value)}
        return " and ".join("+" if value > 0 else "-" for value in sorted(infinite, reverse=True))

    def longer(self, rule: str) -> tuple[int, int]:
        """How often a rule takes the text with more tokens, and of how many items that can be said."""
        pairs = [
            (answer, 1 if first > second else 2)
            for answer, (first, second) in zip(self.taken[rule], self.tokens, strict=True)
            if first != second
        ]
        return sum(answer == longer for answer, longer in pairs), len(pairs)

    def likelier(self, rule: str) -> int:
        """How often a rule takes the text that the model finds likelier."""
        return sum(a == b for a, b in zip(self.taken[rule], self.taken[LIKELIER], strict=True))

    def flips(self, before: str, after: str) -> tuple[int, int]:
        """How many items only the one rule answers right, and how many only the other: lost, won."""
        right = [np.array(self.taken[rule]) == np.array(self.right) for rule in (before, after)]
        return int((right[0] & ~right[1]).sum()), int((right[1] & ~right[0]).sum())

    def share(self, rule: str) -> tuple[float, float, float]:
        """Accuracy in percent with its interval."""
        hits = sum(a == b for a, b in zip(self.taken[rule], self.right, strict=True))
        low, high = proportion_interval(hits, len(self.right))
        return 100 * hits / len(self.right), 100 * low, 100 * high


PUBLISHED_RULE = "sum of logits in FP16 (published)"
FP32_SUM = "1. the same sum in FP32"
LOG_PROBABILITIES = "2. of log-probabilities"
OWN_LOGITS = "3. without 2: raw logits of own tokens"
LIKELIER = "3. only of the text's own tokens"
ANSWER_ONLY = "4. of the answer"
PER_CHARACTER = "4. of the answer, per character"


@dataclass(frozen=True)
class Rule:
    """How a rule of scoring is shown: its letter, what it adds up, and the rule it changes."""

    letter: str
    shown: str
    fp32: bool = True
    log_softmax: bool = False
    own_tokens: bool = False
    answer_only: bool = False
    per_character: bool = False
    before: tuple[str, ...] = ()  # each of them differs from it in one thing

    @property
    def marks(self) -> list[str]:
        """One "yes" or "" for each thing that a rule can have."""
        parts = (
            self.fp32,
            self.log_softmax,
            self.own_tokens,
            self.answer_only,
            self.per_character,
        )
        return ["yes" if part else "" for part in parts]


RULES = {
    PUBLISHED_RULE: Rule("A", "all logits in FP16 (published)", fp32=False),
    FP32_SUM: Rule("B", "the same sum in FP32", before=(PUBLISHED_RULE,)),
    LOG_PROBABILITIES: Rule("C", "all log-probabilities", log_softmax=True, before=(FP32_SUM,)),
    OWN_LOGITS: Rule("D", "logits of own tokens", own_tokens=True, before=(FP32_SUM,)),
    LIKELIER: Rule(
        "E", "log-probabilities of own tokens", log_softmax=True, own_tokens=True,
        before=(LOG_PROBABILITIES, OWN_LOGITS),
    ),
    ANSWER_ONLY: Rule(
        "F", "of the answer's tokens", log_softmax=True, own_tokens=True, answer_only=True,
        before=(LIKELIER,),
    ),
    PER_CHARACTER: Rule(
        "G", "and per character", log_softmax=True, own_tokens=True, answer_only=True,
        per_character=True, before=(ANSWER_ONLY,),
    ),
}  # fmt: skip


def _own_logits(answer: AnswerLogits) -> Tensor:
    """The logits of the tokens that stand in the text, each from the row before; (T - 1,)."""
    return answer.logits.float()[:-1].gather(-1, answer.input_ids[1:, None])


def _repairs(
    answer_log_likelihood: Callable[[Tensor, Tensor, int], Tensor],
) -> dict[str, Callable[[AnswerLogits], Any]]:
    """Rules that change one thing after the other; each gives an answer a score."""

    def of_answer(a: AnswerLogits) -> Tensor:
        return answer_log_likelihood(a.logits, a.input_ids, a.prompt_len)

    return {
        FP32_SUM: lambda a: a.logits.float().sum(),
        LOG_PROBABILITIES: lambda a: a.logits.float().log_softmax(-1).sum(),
        OWN_LOGITS: lambda a: _own_logits(a).sum(),
        LIKELIER: lambda a: answer_log_likelihood(a.logits, a.input_ids, 1),
        ANSWER_ONLY: of_answer,
        PER_CHARACTER: lambda a: of_answer(a) / a.characters,
    }


def audit(
    model_name: str,
    precision: str,
    device: str,
    tokenizer: PreTrainedTokenizerBase,
    items: Sequence[Item],
    published_answer: Callable[[Tensor, Tensor], int],
    answer_log_likelihood: Callable[[Tensor, Tensor, int], Tensor],
) -> Audit:
    """Answer the items by the published rule, and by rules that repair it step by step."""
    rules = _repairs(answer_log_likelihood)
    sums: list[list[float]] = []
    tokens: list[list[int]] = []
    taken: dict[str, list[int]] = {PUBLISHED_RULE: [], **{rule: [] for rule in rules}}
    model = models.load_model(model_name, precision, device)
    for item in items:
        first, second = logits_of_answers(model, tokenizer, item)
        sums.append([answer.logits.sum().item() for answer in (first, second)])
        tokens.append([len(answer.input_ids) for answer in (first, second)])
        taken[PUBLISHED_RULE].append(int(published_answer(first.logits, second.logits)))
        for rule, score in rules.items():
            taken[rule].append(1 if score(first) > score(second) else 2)
    return Audit(sums, tokens, taken, [item.label + 1 for item in items])


def record_audit(results: Results, found: Audit) -> list[list[str]]:
    """Keep every rule's accuracy; rows of letter, what it has, accuracy, and which texts it takes."""
    results.record("audit.infinite sums", found.infinite, "count", n=2 * len(found.sums))
    rows = []
    for rule, taken in found.taken.items():
        share, low, high = found.share(rule)
        results.record(f"audit.{rule}", share, "%", low=low, high=high, n=len(taken))
        counts = f"{taken.count(1)} / {taken.count(2)}"
        longer, unequal = found.longer(rule)
        results.record(f"audit.longer.{rule}", longer, "count", n=unequal)
        likelier = found.likelier(rule)
        results.record(f"audit.likelier.{rule}", likelier, "count", n=len(taken))
        texts = [f"{longer} of {unequal}", f"{likelier} of {len(taken)}"]
        accuracy = f"{share:.1f} [{low:.1f}, {high:.1f}]"
        rows.append([RULES[rule].letter, *RULES[rule].marks, accuracy, counts, *texts])
    return rows


# A causal model gives the question's tokens the same scores in both texts, so they cancel.
SAME_BY_CONSTRUCTION = (LIKELIER, ANSWER_ONLY)
BEYOND_ONE_STEP = ((PUBLISHED_RULE, OWN_LOGITS), (PUBLISHED_RULE, PER_CHARACTER))


def against_guessing(shares: Mapping[str, tuple[float, float, float]], n: int) -> dict[str, str]:
    """How each rule differs from guessing at 5 %: "better", "worse" or "".

    `shares`: (accuracy, low, high) in percent by rule, over n items. Binomial tests with Holm's
    correction.
    """
    right = {rule: round(share[0] * n / 100) for rule, share in shares.items()}
    p = holm([mcnemar_exact(n - count, count) for count in right.values()])
    return {
        rule: ("better" if 2 * count > n else "worse") if corrected < 0.05 else ""
        for (rule, count), corrected in zip(right.items(), p, strict=True)
    }


def rule_flips(
    found: Audit, p_value: Callable[[int, int], float]
) -> tuple[list[list[str]], list[str]]:
    """Each rule against those it changes in one thing, two against the published one; and in words.

    `p_value`: of lost and won items, two-sided. Holm's correction covers all pairs of the table.
    """
    pairs = [(before, rule) for rule, shown in RULES.items() for before in shown.before]
    pairs = [pair for pair in [*pairs, *BEYOND_ONE_STEP] if pair != SAME_BY_CONSTRUCTION]
    counts = [found.flips(*pair) for pair in pairs]
    p_values = [p_value(lost, won) for lost, won in counts]
    rows, clear, unclear = [], [], []
    for pair, (lost, won), p, corrected in zip(
        pairs, counts, p_values, holm(p_values), strict=True
    ):
        name = " to ".join(RULES[rule].letter for rule in pair)
        rows.append([name, f"{lost} lost, {won} won", f"{p:.2g}", f"{corrected:.2g}"])
        if corrected < 0.05:
            clear.append(name)
        elif pair not in BEYOND_ONE_STEP:
            unclear.append(name)
    shares = {rule: found.share(rule) for rule in found.taken}
    sides: dict[str, list[str]] = {"better": [], "worse": [], "": []}
    for rule, side in against_guessing(shares, len(found.right)).items():
        sides[side].append(RULES[rule].letter)
    _, unequal = found.longer(PUBLISHED_RULE)
    said = [
        f"After Holm's correction for {len(shares)} rules, better than guessing: "
        f"{', '.join(sides['better']) or 'none'}; worse: {', '.join(sides['worse']) or 'none'}; all "
        "others cannot be told from it.",
        f"Steps that count after the correction: {', '.join(clear) or 'none'}. Steps that these items "
        f"leave open: {', '.join(unclear) or 'none'}.",
        "E and F decide alike by construction: the question's tokens score the same in both texts, and "
        "cancel.",
        f"In {unequal} of {len(found.right)} pairs the two texts differ in their number of tokens.",
    ]
    return rows, said


def page_against_files() -> list[list[str]]:
    """The published page's accuracies, latencies and memory beside those of its own CSV files."""
    page, csv = published("a40-piqa")["rows"], published("a40-piqa-csv")["rows"]
    rows = []
    for name, on_page in page.items():
        in_file = csv[name]
        for place, precision in ((1, "full"), (0, "int8")):
            shares = (f"{on_page[place]:.2f} %", f"{100 * in_file[place]:.2f} %")
            seconds = (f"{on_page[place + 2]:.4f}", f"{in_file[place + 2]:.4f}")
            memory = (f"{on_page[place + 4]:,}", f"{in_file[place + 4]:,.0f}")
            rows.append([f"{name}, {precision}", *shares, *seconds, *memory])
    return rows


def second_answers(results: Results, task: Task) -> tuple[int, int, str]:
    """How often PIQA's second answer is right, of how many, and where that comes from."""
    if task.name == "piqa" and len(task.items) == PIQA_ITEMS:
        second, where = sum(item.label == 1 for item in task.items), "counted here"
        compare.record_right_answers(results, task)
    else:
        table = published("piqa-answers")
        (second,), where = table["rows"]["second"], table["source"]
    results.record("audit.second answers of PIQA", second, "count", n=PIQA_ITEMS)
    return second, PIQA_ITEMS, where


def explained_accuracies(second: int, items: int) -> list[list[str]]:
    """Every accuracy of the CSV files beside the share of second answers, to the last digit."""
    rows = []
    for name, row in published("a40-piqa-csv")["rows"].items():
        for place, precision in ((1, "full"), (0, "int8")):
            right = round(row[place] * items)
            said = "yes" if row[place] == second / items else f"no: {right - second:+d} items"
            rows.append([f"{name}, {precision}", repr(row[place]), f"{right} / {items}", said])
    return rows


@dataclass(frozen=True)
class BothModels:
    """Memory in MB: weights in both precisions from shapes, and what the CSV file says of a run."""

    name: str
    fp16: float
    int8: float
    measured: tuple[float, float]  # of the run "full", and of the run "int8"

    @property
    def unexplained(self) -> float:
        """The part of the larger measurement that the weights of both models leave over."""
        return 1 - (self.fp16 + self.int8) / max(self.measured)


def memory_of_both() -> list[BothModels]:
    """For each model of the published table its weights from shapes, and the measured peaks."""
    found = []
    for name, row in published("a40-piqa-csv")["rows"].items():
        config = models.config_of(name.lower())
        fp16, int8 = (weight_bytes(config, p).total / 1e6 for p in ("fp16", "int8"))
        found.append(BothModels(name, fp16, int8, (row[5], row[4])))
    return found


def verdict_on_a40_memory(both: Sequence[BothModels]) -> Verdict:
    """Whether the page's memory of Llama-3.1-8B is possible."""
    eight = next(entry for entry in both if entry.name == "Llama-3.1-8B")
    row = published("a40-piqa")["rows"][eight.name]
    possible = eight.fp16 <= row[5] and eight.int8 <= row[4]
    sizes = round(eight.fp16), round(eight.int8)  # so that the sum is that of what is shown
    measured = f"The weights take {sizes[0]:,} MB in FP16 and {sizes[1]:,} MB in int8."
    because = (
        "With all weights on the card, memory can be larger than the weights, never smaller. The "
        f"repository's own file says {eight.measured[1]:,.0f} MB, where the weights of both models are "
        f"{sum(sizes):,} MB."
    )
    return measured, "holds only if" if possible else "fails here", because


def verdict_on_saving(both: Sequence[BothModels]) -> Verdict:
    """The memory that int8 saves: by the page, by its files, and by shapes."""
    page = published("a40-piqa")["rows"]
    by_page = [100 * (1 - row[4] / row[5]) for row in page.values()]
    by_shape = [100 * (1 - entry.int8 / entry.fp16) for entry in both]
    in_file = [100 * (1 - entry.measured[1] / entry.measured[0]) for entry in both]
    measured = "; ".join(
        f"{what} {min(values):.2f} to {max(values):.2f} %"
        for what, values in (
            ("by the page", by_page),
            ("by its files", in_file),
            ("weights by shape", by_shape),
        )
    )
    because = (
        "Its files do not support it: the memory of both runs there is that of both models. The weights "
        "do not decide it either, since a total has cache and activations in it, which int8 does not "
        "halve."
    )
    return f"Saved: {measured}.", "not testable here", because


def verdict_on_cost(second: int, items: int) -> Verdict:
    """Whether the published accuracies can show what int8 costs."""
    page = [share / 100 for row in published("a40-piqa")["rows"].values() for share in row[:2]]
    files = [share for row in published("a40-piqa-csv")["rows"].values() for share in row[:2]]
    guesses = [
        sum(
            low < 0.5 < high
            for low, high in (proportion_interval(round(s * items), items) for s in of)
        )
        for of in (page, files)
    ]
    exact = sum(share == second / items for share in files)
    measured = (
        f"The intervals of {guesses[0]} of {len(page)} accuracies on the page contain 50 %. In its "
        f"files {guesses[1]} of {len(files)} do, and {exact} are {second} / {items}, the share of "
        "second answers."
    )
    if guesses != [len(page), len(files)]:
        because = (
            "Some of these accuracies can be told from guessing; the paired answers are not there."
        )
        return measured, "undecided here", because
    because = (
        "All these accuracies agree with guessing, and guessing shows no cost. The page's own run "
        "cannot be repeated."
    )
    return measured, "not testable here", because


def verdict_on_size() -> Verdict:
    """Whether the published accuracies grow with the model."""
    page = {name: f"{row[1]:.2f} %" for name, row in published("a40-piqa")["rows"].items()}
    files = {
        name: f"{100 * row[1]:.2f} %" for name, row in published("a40-piqa-csv")["rows"].items()
    }
    measured = "; ".join(
        f"{where}: {', '.join(f'{name} {share}' for name, share in shares.items())}"
        for where, shares in (("on the page", page), ("in its files", files))
    )
    measured = measured[0].upper() + measured[1:] + "."
    shares = [row[1] / 100 for row in published("a40-piqa")["rows"].values()]
    ends = [proportion_interval(round(share * PIQA_ITEMS), PIQA_ITEMS) for share in shares]
    if ends[-1][0] > ends[0][1]:
        return (
            measured,
            "holds",
            "On the page, the intervals of smallest and largest do not overlap.",
        )
    in_files = list(published("a40-piqa-csv")["rows"].values())
    equal = "equal to the last digit" if in_files[0][1] == in_files[-1][1] else "not equal"
    guesses = sum(low < 0.5 < high for low, high in ends)
    because = (
        "The answers are published without their items, so they are unpaired, and these files cannot "
        f"tell. The intervals of {guesses} of {len(ends)} accuracies on the page contain the 50 % of "
        f"guessing; in the files, the smallest and the largest model are {equal}. (LLaMA's own table "
        "has larger models ahead.)"
    )
    return measured, "not testable here", because


def items_to_look_at(items: Sequence[Item]) -> list[list[str]]:
    """The first half of the items as rows: question, both answers, and which one is right."""
    return [
        [
            item.context.removeprefix("Question: ").removesuffix("\nAnswer:"),
            *item.choices[:2],
            item.label,
        ]
        for item in items[: len(items) // 2]
    ]


def score_that_is_needed(items: Sequence[Item]) -> str:
    """How many items of the other half must be right for an interval above 50 %, in words."""
    n = len(items) - len(items) // 2
    needed = next((k for k in range(n + 1) if proportion_interval(k, n)[0] > 0.5), None)
    if needed is None:
        return f"The other half has {n} items: too few for any interval above 50 %."
    return f"The other half has {n} items: {needed} of them must be right."


def without_a_model(
    rule: Callable[[str, Sequence[str]], int], items: Sequence[Item]
) -> Iterator[tuple[str, int, int, float, float]]:
    """Score a rule that sees only the words: on the half to look at, and on the other half.

    Gives name, right answers, items, and the ends of the interval in percent.
    """
    half = len(items) // 2
    for name, part in (("to look at", items[:half]), ("to be tested on", items[half:])):
        right = sum(rule(item.context, item.choices) == item.label for item in part)
        low, high = proportion_interval(right, len(part))
        yield name, right, len(part), 100 * low, 100 * high
