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
    mean_interval,
    proportion_interval,
)
from llama_int8.models.cost import GIB, count_parameters, forward_bytes, weight_bytes
from llama_int8.quantization.quantize import absmax_quantize, dequantize
from llama_int8.transformer.config import LlamaConfig

Verdict = tuple[str, str, str]  # measured, verdict, because: what put_on_trial takes
QUALITY_MARGIN = 0.01  # of perplexity, set before the measurement
WIDEST_SHARE = 0.3  # between the rounds, of a share of time that is a result
CLAIMED_SAVING = 31  # percent, in the claim "int8-saves-31"
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


def verdict_on_small_card(longest: int, card: float) -> Verdict:
    """Whether LLaMA-2-7B in int8 fits a card that shows `card` GiB: what prompt it leaves room for."""
    measured = f"Of {card:g} GiB the weights leave room for a prompt of {longest:,} tokens."
    if not longest:
        return measured, "fails here", "Not one token fits beside the weights."
    because = (
        f"the prompt and its answer stay below {longest:,} tokens, less what CUDA takes for itself "
        "(some hundred MB; a token takes two thirds of one). The model can read 4,096."
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
        rows.append([p, f"{predicted:,}", f"{measured:,}", f"{measured / predicted - 1:+.3%}"])
    return rows


Peaks = Mapping[str, Sequence[tuple[Point, int, int]]]  # point, predicted, measured, by precision


def needed_beside_weights(beyond: Peaks, half: str) -> float:
    """What int8 needs for the first point, over what 16 bit needs."""
    return beyond["int8"][0][2] / beyond[half][0][2]


def verdict_on_activations(beyond: Peaks, half: str) -> Verdict:
    """Whether LLM.int8() needs less memory than 16 bit beside the weights."""
    point = beyond["int8"][0][0]
    megabytes = {p: beyond[p][0][2] / 1e6 for p in (half, "int8")}
    of_half = {point: measured for point, _, measured in beyond[half]}
    pairs = [(m, of_half[point]) for point, _, m in beyond["int8"] if point in of_half]
    less = sum(int8 < half_bytes for int8, half_bytes in pairs)
    measured = (
        f"Beside the weights, a prompt of {point.name} tokens needs {megabytes[half]:.1f} MB in {half} "
        f"and {megabytes['int8']:.1f} MB in LLM.int8(), at its peak. LLM.int8() needs less at {less} of "
        f"{len(pairs)} points."
    )
    because = (
        "The cache is in both, and the same. In LLM.int8() the int32 product and its scaling come on "
        "top of the 16-bit rows."
    )
    if half == "bf16":
        because += (
            " On a CPU it also holds FP32 copies that a GPU does without: this is no GPU's ratio."
        )
    verdict = "holds" if less == len(pairs) else "undecided here" if less else "fails here"
    return measured, verdict, because


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


def verdict_on_quality(model: str, difference: PairedDifference, half: str) -> Verdict:
    """Whether int8 keeps 16 bit's perplexity to within the margin."""
    margin = np.log1p(QUALITY_MARGIN)  # nats per token
    d = difference
    measured = (
        f"{model}: perplexity {np.exp(d.mean) - 1:+.2%} against {half}, {d.mean:+.4f} nats per token "
        f"[{d.low:+.4f}, {d.high:+.4f}] over {d.n} windows."
    )
    if d.high < margin:
        because = "The whole interval is below our margin of 1 %, for this model on this text."
        return measured, "holds", because
    if d.low > margin:
        because = (
            "The whole interval is above our margin of 1 %, if windows are independent (*Going deeper* "
            "tries that). It is one model on one text; where its weights come from a 4-bit file, the "
            "verdict is about those. (The paper's own table has +0.7 % at 125M parameters on another "
            "text, none at 13B.)"
        )
        return measured, "fails here", because
    within, beyond = against_margin(d)
    because = (
        f"The interval holds our margin of 1 %. True costs between {within:.4f} and {beyond:.4f} nats "
        "are often left open by so many windows."
    )
    return measured, "undecided here", because


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


def what_flips_say(name: str, found: Flips) -> str:
    """What the flips of one precision say, and what they could have shown, in one sentence."""
    noticed = (
        "a difference" if found.p_value < 0.05 else "no difference that can be told from chance"
    )
    return (
        f"{name}: {found.lost + found.won} of {found.difference.n} answers change, so {noticed}. A loss "
        f"of fewer than {100 * found.smallest_detectable:.1f} points would often go unnoticed."
    )


def without_known_score(models_: Sequence[str]) -> str:
    """Which of these models no source that we can name has scored on PIQA; "" if all have one."""
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


def block_rows(results: Results, differences: np.ndarray) -> tuple[list[list[Any]], str]:
    """Intervals of the mean over blocks of windows in a row, by size, and what they say of the margin.

    All intervals are Student's, so that their widths can be compared.
    """
    rows, lows, highs = [], [], []
    for size in (1, 4, 8):
        blocks = compare.in_blocks(differences, size)
        if blocks.size > 3:
            mean, low, high = mean_interval(blocks)
            results.record(f"blocks.{size}", mean, "nats", low=low, high=high, n=blocks.size)
            rows.append([size, blocks.size, f"[{low:+.4f}, {high:+.4f}]"])
            lows.append(low)
            highs.append(high)
    margin = float(np.log1p(QUALITY_MARGIN))
    if not lows:
        return rows, "too few windows for blocks"
    inside = min(lows) <= margin <= max(highs)
    where = "lies in one of them" if inside else "lies in none of them"
    return rows, f"Our margin of 1 % is {margin:.4f} nats per token; it {where}."


def divergence_rows(scored: Mapping[str, Any], half: str) -> list[list[Any]]:
    """KL divergence and agreement of each precision with the baseline."""
    rows = []
    for p in scored:
        compared = [w for w in scored[p] if "kl" in w] if p != half else []
        if compared:
            kl = np.array([w["kl"] for w in compared])
            same = np.mean([w["agreement"] for w in compared])
            ends = f"{kl.min():.4f} to {kl.max():.4f}"
            rows.append([p, len(kl), f"{kl.mean():.4f}", ends, f"{same:.1%}"])
    return rows


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
    said = (
        f"Batches move a score in int8 {times} in {half}; of the answers {changed['int8']} change in "
        f"int8, {changed[half]} in {half}."
    )
    return rows, said


def slip_rows(results: Results, slips: Mapping[str, Any], items: Sequence[Item]) -> list[list[str]]:
    """Accuracy of each wrong rule, how often it takes each answer, and how many items tie."""
    rows = []
    for rule, scores in slips.items():
        right = loglikelihood.correct(scores, items, normalized=False)
        low, high = (100 * end for end in proportion_interval(int(right.sum()), right.size))
        results.record(
            f"wrong_rule.{rule}", 100 * right.mean(), "%", low=low, high=high, n=len(items)
        )
        places = len(items[0].choices)
        taken = np.bincount(loglikelihood.picks(scores), minlength=places)
        ties = sum(len(set(row)) == 1 for row in scores)
        share = f"{100 * right.mean():.1f} [{low:.1f}, {high:.1f}]"
        rows.append([rule, share, " / ".join(map(str, taken)), str(ties)])
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
            rows.append([title, how, equal, len(pair[0])])
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


def _part_of_decomposition(phase: str, part: Part) -> str:
    said = f"Its part of {phase}'s extra time is not decided here: "
    together = f"all {part.rounds} rounds together give {part.together:.0%}"
    if part.rounds < compare.LEAST_ROUNDS:
        return f"{said}{part.rounds} rounds are too few ({together})."
    even = part.rounds - len(part.by_round)
    if even:
        return f"{said}in {even} of {part.rounds} rounds int8 takes no extra time ({together})."
    least, largest = min(part.by_round), max(part.by_round)
    ends = f"from {least:.0%} to {largest:.0%}"
    if least > 0 and largest - least <= WIDEST_SHARE:
        return f"It is {part.together:.0%} of {phase}'s extra time ({part.rounds} rounds, {ends})."
    return f"{said}the rounds lie too far apart, {ends} ({together})."


def verdict_on_dequantizing(
    parts: Mapping[str, Part], ratios: compare.Speeds, point: Point, fast_product: bool
) -> Verdict:
    """Whether restoring weights can be the reason for LLM.int8()'s extra time.

    The decomposition's part of a phase is decided where int8 has extra time in all of at least five
    rounds, and their parts lie within WIDEST_SHARE of each other.
    """
    if not fast_product:
        because = "Without AVX-512, bitsandbytes on a CPU converts all its weights at every step."
        return "This processor has no fast int8 product.", "holds", because
    bare = {phase: ratios[phase][NO_DECOMPOSITION][point] for phase in ("decode", "prefill")}
    said = {phase: compare.faster_or_slower(ratio) for phase, ratio in bare.items()}
    measured = "Without decomposition int8 restores no weight. Its speed is then " + ", ".join(
        f"{ratio.median:.2f} times 16 bit's in {phase} ({said[phase]})"
        for phase, ratio in bare.items()
    )
    shares = [_part_of_decomposition(phase, part) for phase, part in parts.items()]
    slower = [phase for phase, word in said.items() if word == "slower"]
    faster = all(word == "faster" for word in said.values())
    verdict = "fails here" if slower else "holds only if" if faster else "undecided here"
    still = f"Without it, int8 is still slower in {' and in '.join(slower)}. " if slower else ""
    because = (
        f"{still}The decomposition as a whole is the search for outliers, their columns, and restored "
        f"weights. {' '.join(shares) or 'Int8 is not slower here.'} The scaling of the int32 product, "
        "which profiles call dequantizing too, happens with and without it."
    )
    if verdict == "holds only if":
        because = f"by dequantizing all of the decomposition is meant. {because}"
    return f"{measured}.", verdict, because


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
        return rows, f"{said}: the speed of reading limits neither, so fewer bytes save little."
    return rows, f"{said}."


def int8_ratios(ratios: compare.Speeds, length: int) -> dict[str, dict[int, Spread]]:
    """Speed of int8 over 16 bit by phase and batch, for prompts of one length."""
    return {
        phase: {b: r for (b, t), r in sorted(ratios[phase]["int8"].items()) if t == length}
        for phase in ("prefill", "decode")
    }


def verdict_on_latency(
    measured_ratios: Mapping[str, Mapping[str, Mapping[int, Spread]]], half: str, where: str
) -> Verdict:
    """Whether int8 is faster, over all models, phases and batches that were measured."""
    cases = {
        f"{name}, {phase}, batch {batch}": ratio
        for name, phases in measured_ratios.items()
        for phase, by_batch in phases.items()
        for batch, ratio in by_batch.items()
    }
    said = {name: compare.faster_or_slower(ratio) for name, ratio in cases.items()}
    faster = [name for name, verdict in said.items() if verdict == "faster"]
    slower = sum(verdict == "slower" for verdict in said.values())
    medians = [ratio.median for ratio in cases.values()]
    measured = (
        f"Of {len(cases)} cases {len(faster)} are faster than {half} in all rounds by 5 % or more, "
        f"{slower} slower in all rounds, {len(cases) - len(faster) - slower} undecided; medians from "
        f"{min(medians):.2f} to {max(medians):.2f}."
    )
    if len(faster) == len(cases):
        return measured, "holds", f"bitsandbytes on {where}."
    if faster:
        return measured, "holds only if", f"the case is one of these: {'; '.join(faster)}."
    verdict = "fails here" if slower else "undecided here"
    return measured, verdict, f"bitsandbytes on {where}; no case is faster."


def when_it_stops(
    measured_ratios: Mapping[str, Mapping[str, Mapping[int, Spread]]],
    widths: Mapping[str, int],
    half: str,
) -> str:
    """From which width on LLM.int8() is not slow: what was measured here, and what the paper has."""
    ratios = [r for by in measured_ratios.values() for one in by.values() for r in one.values()]
    faster = sum(compare.faster_or_slower(ratio) == "faster" for ratio in ratios)
    stops = "in some cases" if faster else "not at all"
    table = published("llm-int8-speed")
    speeds = [float(value) for value in table["rows"]["LLM.int8()"]]
    first = next(n for n, speed in enumerate(speeds) if speed >= 1)
    below, above = table["columns"][first - 1 : first + 1]
    return (
        f"On this machine, {stops}: LLM.int8() is faster than {half} in {faster} of {len(ratios)} "
        f"cases, at widths up to {max(widths.values()):,}.\n"
        "In the paper, products of many rows pass 16 bit between widths "
        f"{below} and {above}.\n"
        "For decoding one sequence on a GPU somebody has to measure it: decode steps at batch 1,\n"
        "at widths on both sides of these, thresholds 6 and 0, five rounds or more, in turns."
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

    def share(self, rule: str) -> tuple[float, float, float]:
        """Accuracy in percent with its interval."""
        hits = sum(a == b for a, b in zip(self.taken[rule], self.right, strict=True))
        low, high = proportion_interval(hits, len(self.right))
        return 100 * hits / len(self.right), 100 * low, 100 * high


LIKELIER = "3. only of the text's own tokens"
PUBLISHED_RULE = "sum of logits in FP16 (published)"


OWN_LOGITS = "3. without 2: raw logits of own tokens"


def _own_logits(answer: AnswerLogits) -> Tensor:
    """The logits of the tokens that stand in the text, each from the row before; (T - 1,)."""
    return answer.logits.float()[:-1].gather(-1, answer.input_ids[1:, None])


def _repairs(
    answer_log_likelihood: Callable[[Tensor, Tensor, int], Tensor],
) -> dict[str, Callable[[AnswerLogits], Any]]:
    """Rules that change one thing after the other; each gives an answer a score."""
    return {
        "1. the same sum in FP32": lambda a: a.logits.float().sum(),
        "2. of log-probabilities": lambda a: a.logits.float().log_softmax(-1).sum(),
        OWN_LOGITS: lambda a: _own_logits(a).sum(),
        LIKELIER: lambda a: answer_log_likelihood(a.logits, a.input_ids, 1),
        "4. of the answer, per character": lambda a: (
            answer_log_likelihood(a.logits, a.input_ids, a.prompt_len) / a.characters
        ),
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
    """Keep every rule's accuracy; rows of rule, accuracy, answers taken, longer and likelier taken."""
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
        rows.append([rule, f"{share:.1f} [{low:.1f}, {high:.1f}]", counts, *texts])
    return rows


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
    measured = f"The weights take {eight.fp16:,.0f} MB in FP16 and {eight.int8:,.0f} MB in int8."
    because = (
        "With all weights on the card, memory can be larger than the weights, never smaller. The "
        f"repository's own file says {eight.measured[1]:,.0f} MB, where the weights of both models are "
        f"{eight.fp16 + eight.int8:,.0f} MB."
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
        "In the files, the memory of both runs is that of both models, so it cannot show a saving."
    )
    if min(by_shape) > max(by_page):
        because += " By shapes, the weights alone shrink by more than the page says."
    holds = min(by_shape) <= CLAIMED_SAVING <= max(by_shape)
    return f"Saved: {measured}.", "holds" if holds else "fails here", because


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
        f"The intervals of {guesses[0]} of {len(page)} accuracies on the page hold 50 %. In its files "
        f"{guesses[1]} of {len(files)} do, and {exact} are {second} / {items}, the share of second "
        "answers."
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
        f"On the page, the intervals of {guesses} of {len(ends)} hold the 50 % of guessing, and those "
        f"of the smallest and the largest overlap. In the files these two are {equal}. (LLaMA's own "
        "table has larger models ahead.)"
    )
    return measured, "not testable here", because


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
