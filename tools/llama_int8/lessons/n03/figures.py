"""The figures of lesson 03: generation and decoding."""

from collections.abc import Mapping, Sequence
from itertools import pairwise
from statistics import median_low

import numpy as np
import torch
from matplotlib.figure import Figure
from matplotlib.ticker import NullLocator

from llama_int8.course.drawings import arrow, box, brace, canvas, matrix, write
from llama_int8.course.plots import COLOURS, HATCHES, figure
from llama_int8.measure.statistics import Spread, mean_interval
from llama_int8.models.cost import GIB, kv_cache_bytes
from llama_int8.transformer.config import LlamaConfig
from llama_int8.transformer.generation import sampling_probabilities

FORCING_ALT = (
    "Teacher forcing: the tokens of a text in a row go into a causal transformer in one pass; above "
    "each position stands the token that it has to predict, which is the next one of the text."
)
STAGES_ALT = (
    "Three boxes in a row: pre-training on any text, supervised fine-tuning on dialogues, preferences "
    "by RLHF or DPO on pairs of answers; below each what it learns from, and what it minimizes."
)
CACHE_ALT = (
    "A buffer of keys and one of values with eight places: five filled, one being written, two still "
    "empty. The new token's query meets the six keys; its key and value go to the sixth place."
)
PADDING_ALT = (
    "Three prompts of five, three and one tokens, padded on the left: the text stands at the right "
    "end of each row, where the next token is due, and its positions count from 0."
)


SURPRISE_ALT = "Bars of the negative log-likelihood of each token of a sentence, and their mean."
TIME_ALT = "Time of the next token against the tokens so far, without and with a cache."
PHASES_ALT = (
    "Tokens per second against tokens in one pass, rising, below a dashed bound on the left."
)
SIZES_ALT = "Bars of cache size for each model, as built and with a key-value head per query head."
DIVERSITY_ALT = "Scatter of mean log-probability against the share of new 3-grams for each rule."
REPETITION_ALT = (
    "NLL of each copy of a repeated sentence, falling from copy to copy on a log scale."
)
COPYING_ALT = (
    "NLL of each token of a random list said twice: high in the first half, low in the second."
)
ABLATION_ALT = (
    "Loss in the second copy for each head that is cut out, by layer, beside the lines of the whole "
    "model and of the first copy; the previous-token head is marked, and those that cost most."
)
TEMPLATE_ALT = (
    "The questions, with the log-probability of each answer in three forms of the question."
)
RECALL_ALT = (
    "Probability of the right first digit against distance, with the right name and with a "
    "stranger's, among other codes and where the code is the only one."
)
FORCED_ALT = (
    "Log-odds of the true sentence over its denial, after a forced Yes and after a forced No."
)


def drawing_teacher_forcing(words: Sequence[str]) -> Figure:
    """The text goes in, and the same text, one place to the left, is what should come out."""
    drawn, axes = canvas(
        7.5, 2.7, "Teacher forcing: one pass asks every position for its next token"
    )
    step = 5.9 / (len(words) - 1)
    write(axes, (0.1, 2.05), "to predict", ha="left")
    write(axes, (0.1, 0.4), "it reads", ha="left")
    middle = box(axes, "causal transformer, in one pass", (4.2, 1.22), (6.2, 0.42), "weights")
    for place, (word, following) in enumerate(pairwise(words)):
        x = 1.25 + step / 2 + place * step
        read = box(axes, word, (x, 0.4), (0.86 * step, 0.34), "activations", font=8)
        target = box(axes, following, (x, 2.05), (0.86 * step, 0.34), "highlight", font=8)
        arrow(axes, read, (x, middle.y0))
        arrow(axes, (x, middle.y1), target)
    return drawn


def drawing_stages() -> Figure:
    """From a model of text to an assistant, in three trainings."""
    drawn, axes = canvas(7.5, 2.75, "Three trainings, three kinds of data, three goals")
    stages = (
        ("pre-training", "any text,\ntrillions of tokens", "predict the next token"),
        ("SFT", "dialogues as they should be,\nthousands to millions", "the same, on the answers"),
        (
            "RLHF or DPO",
            "two answers,\nand which one is better",
            "prefer the better one,\nstay near SFT",
        ),
    )
    x = (1.3, 3.75, 6.2)
    boxes = [
        box(axes, name, (at, 2.0), (1.5, 0.42), "weights")
        for at, (name, _, _) in zip(x, stages, strict=True)
    ]
    arrow(axes, boxes[0], boxes[1])
    arrow(axes, boxes[1], boxes[2])
    for at, (_, data, goal) in zip(x, stages, strict=True):
        write(axes, (at, 1.42), data, 8, style="italic")
        write(axes, (at, 0.85), goal, 8, weight="bold")
    write(axes, (1.3, 0.35), "continues text", 8)
    write(axes, (3.75, 0.35), "answers in a fixed form", 8)
    write(axes, (6.2, 0.35), "answers as people prefer", 8)
    return drawn


def drawing_cache(filled: int = 5, room: int = 8) -> Figure:
    """Two buffers with room for more: the new token is written behind those that are there."""
    drawn, axes = canvas(7.5, 3.3, "The KV cache: write one place, read all that are filled")
    cells = {"highlight": [(0, filled)]}
    row = np.full((1, room), np.nan)
    row[0, : filled + 1] = np.arange(filled + 1)
    size, left = (0.42, 0.34), 2.3
    place = left + (filled + 0.5) * size[0]
    keys = matrix(axes, (left, 2.3), row, "", "keys", cells, size=size)
    values = matrix(axes, (left, 1.1), row, "", "values", cells, size=size)
    token = box(axes, f"new token {filled}", (1.05, 1.53), role="activations")
    for buffer, name, level, beside in (
        (keys, "its key", 2.65, "above"),
        (values, "its value", 0.4, "below"),
    ):
        end = buffer.y1 if name == "its key" else buffer.y0
        corners = [(token.centre[0], level), (place, level)]
        arrow(axes, token, (place, end), name, corners, beside=beside)
    write(axes, (5.8, keys.centre[1]), "keys of one layer,\nroom for more", 8, ha="left")
    write(axes, (5.8, values.centre[1]), "values of one layer", 8, ha="left")
    end = left + (filled + 1) * size[0]
    brace(axes, (left, 1.9), (end, 1.9), "its query meets these keys")
    write(axes, ((left + end) / 2, 1.25), "and takes a mean of these values", 8)
    return drawn


def drawing_padding(lengths: Sequence[int] = (5, 3, 1)) -> Figure:
    """Prompts of different lengths, padded on the left, with their positions."""
    drawn, axes = canvas(
        7.5, 2.1, "Padded on the left, every text ends where the next token is due"
    )
    longest = max(lengths)
    text = {
        (row, column)
        for row, length in enumerate(lengths)
        for column in range(longest - length, longest)
    }
    positions = np.full((len(lengths), longest), np.nan)
    for row, length in enumerate(lengths):
        positions[row, longest - length :] = np.arange(length)
    shown = {"activations": text}
    names = [f"prompt {row + 1}" for row in range(len(lengths))]
    mask = np.array([[float((r, c) in text) for c in range(longest)] for r in range(len(lengths))])
    first = matrix(axes, (0.95, 1.55), mask, "mask: 1 is text", "neutral", shown, names, size=0.36)
    second = matrix(axes, (4.2, 1.55), positions, "positions", "neutral", shown, size=0.36)
    for area in (first, second):
        due = box(axes, "next", (area.x1 + 0.5, area.centre[1]), role="highlight", font=8)
        arrow(axes, (area.x1 + 0.02, area.centre[1]), due)
    return drawn


def surprise(words: Sequence[str], nll: Sequence[float]) -> Figure:
    """NLL of each token after the first; `words` are these tokens."""
    drawn, axes = figure(figsize=(9, 3.2))
    mean = float(np.mean(nll))
    axes.bar(range(len(nll)), nll, color=COLOURS["bf16"])
    axes.axhline(mean, color=COLOURS["int8"], linestyle="--", label="mean")
    axes.legend()
    axes.set_xticks(range(len(words)), words, rotation=60, ha="right")
    axes.set_ylabel("surprisal (nats)")
    axes.grid(axis="x", visible=False)
    hardest, easiest = words[int(np.argmax(nll))].strip(), words[int(np.argmin(nll))].strip()
    axes.set_title(
        f"Mean {mean:.2f} nats, perplexity {np.exp(mean):.1f}; hardest “{hardest}”, "
        f"easiest “{easiest}”"
    )
    return drawn


def template_effect(questions: Sequence[str], answers: Mapping[str, Sequence[float]]) -> Figure:
    """Mean log-probability of each answer in three forms of the question, the template last."""
    drawn, axes = figure(figsize=(8.5, 4.2))
    rows = np.arange(len(questions))
    for row, values in zip(rows, zip(*answers.values(), strict=True), strict=True):
        axes.plot([min(values), max(values)], [row, row], color="#BBBBBB", zorder=1)
    looks = (("s", "predicted"), ("^", "int8"), ("o", "bf16"))
    for (name, values), (marker, colour) in zip(answers.items(), looks, strict=True):
        axes.plot(values, rows, marker, color=COLOURS[colour], label=name)
    axes.set_yticks(rows, questions, fontsize=8)
    axes.invert_yaxis()
    axes.set_xlabel("mean log-probability of the answer's tokens (nats); further right: likelier")
    axes.legend(loc="lower left", bbox_to_anchor=(0, 1), ncols=3)
    bare, framed, templated = (np.mean(values) for values in answers.values())
    drawn.suptitle(
        f"On average the template adds {templated - bare:+.2f} nats to the bare question, "
        f"{templated - framed:+.2f} to a plain frame",
        x=0.01,
        ha="left",
        fontweight="bold",
        fontsize=11,
    )
    return drawn


def cache_time(full: Mapping[int, Spread], step: Mapping[int, Spread]) -> Figure:
    """Milliseconds for the next token after so many: a pass over all, and a step with the cache."""
    drawn, axes = figure(figsize=(7.5, 3.4))
    for name, times, colour, marker in (
        ("without cache", full, "int8", "s"),
        ("with cache", step, "bf16", "o"),
    ):
        lengths = list(times)
        middle = [1e3 * times[n].median for n in lengths]
        low = [1e3 * (times[n].median - times[n].low) for n in lengths]
        high = [1e3 * (times[n].high - times[n].median) for n in lengths]
        style = {"color": COLOURS[colour], "marker": marker, "capsize": 3}
        axes.errorbar(lengths, middle, [low, high], label=name, **style)
    longest = max(step)
    ratio = full[longest].median / median_low(s.median for s in step.values())
    axes.set_xlabel("tokens so far")
    axes.set_ylabel("ms for the next token")
    axes.set_ylim(0)
    axes.legend()
    axes.set_title(f"A pass over {longest} tokens takes {ratio:.0f} times as long as over one")
    return drawn


def phases(passes: Mapping[int, Spread], weights: float, bandwidth: float) -> Figure:
    """Tokens/s by tokens in one pass, beside what reading the weights once per pass allows.

    `weights`: bytes that a pass reads; `bandwidth`: bytes/s.
    """
    drawn, axes = figure(figsize=(7.5, 3.4))
    sizes = list(passes)
    speed = [n / passes[n].median for n in sizes]
    axes.plot(sizes, speed, "D-", color="black", label="measured")
    bound = [n * bandwidth / weights for n in sizes]
    axes.plot(sizes, bound, "--", color=COLOURS["predicted"], label="if only the weights were read")
    axes.set_xscale("log", base=2)
    axes.set_yscale("log")
    axes.set_ylim(min(speed) / 2, max(speed) * 4)
    axes.set_xticks(sizes, sizes)
    axes.xaxis.set_minor_locator(NullLocator())
    axes.set_xlabel("tokens in one pass")
    axes.set_ylabel("tokens/s (log)")
    axes.legend(loc="lower right")
    axes.set_title(f"One token at a time runs at {speed[0] / max(speed):.0%} of the best speed")
    return drawn


def cache_sizes(configs: Mapping[str, LlamaConfig], tokens: int) -> Figure:
    """GiB of cache for one text of `tokens` in 16 bit, beside that of one key head per query head.

    Models that read less are left out; the others stand in the order of their cache.
    """
    fits = {name: c for name, c in configs.items() if c.max_position_embeddings >= tokens}
    configs = dict(sorted(fits.items(), key=lambda named: kv_cache_bytes(named[1], tokens)))
    drawn, axes = figure(figsize=(8.5, 3.6))
    rows = np.arange(len(configs))
    grouped = np.array([kv_cache_bytes(c, tokens) / GIB for c in configs.values()])
    shares = [c.num_attention_heads / c.num_key_value_heads for c in configs.values()]
    full = grouped * np.array(shares)
    axes.barh(rows - 0.2, full, 0.38, color=COLOURS["predicted"], hatch="...", edgecolor="white")
    axes.barh(rows + 0.2, grouped, 0.38, color=COLOURS["bf16"], edgecolor="white")
    for row, before, now, share in zip(rows, full, grouped, shares, strict=True):
        axes.annotate(f"{before:.2f}", (before, row - 0.2), (4, -3), **_points())
        saved = "" if share == 1 else f"  ({share:.0f}x less)"
        axes.annotate(f"{now:.2f}{saved}", (now, row + 0.2), (4, -3), **_points())
    axes.set_yticks(rows, list(configs))
    axes.invert_yaxis()
    axes.set_xlim(0, full.max() * 1.2)
    axes.set_xlabel(f"GiB of keys and values for {tokens:,} tokens in 16 bit")
    axes.legend(["one key-value head per query head", "as built"], loc="upper right")
    axes.grid(axis="y", visible=False)
    axes.set_title("Sharing keys and values among query heads shrinks the cache")
    return drawn


def diversity(
    texts: Mapping[str, tuple[Sequence[float], Sequence[float]]], original: str
) -> Figure:
    """Mean log-probabilities and shares of new 3-grams of the texts that each way to choose wrote.

    A mark is the mean over texts, its cross 1.96 standard errors; `original` names the star.
    """
    drawn, axes = figure(figsize=(8, 4.6))
    beside = {original: (-9, 9, "right")}
    beside |= dict.fromkeys(("τ = 0.5", "top-p 0.9"), (-8, -13, "right"))
    for name, values in texts.items():
        (x, y), errors = np.mean(values, axis=1), 1.96 * np.std(values, axis=1, ddof=1)
        errors /= len(values[0]) ** 0.5
        kind = ("int8", "*", 15) if name == original else None
        kind = ("good", "s", 8) if name == "greedy" else kind
        colour, marker, size = kind or ("bf16", "o", 8)
        style = {"color": COLOURS[colour], "marker": marker, "markersize": size, "elinewidth": 0.7}
        up_to_one = [[errors[1]], [min(errors[1], 1 - y)]]  # a share ends there
        axes.errorbar(x, y, up_to_one, errors[0], **style)
        right, up, align = beside.get(name, (7, -11, "left"))
        paper = {"facecolor": "white", "edgecolor": "none", "alpha": 0.8, "pad": 0.5}
        axes.annotate(name, (x, y), (right, up), ha=align, bbox=paper, **_points())
    axes.set_xlabel("mean log-probability of a token (nats): likelier →")
    axes.set_ylabel("3-grams that are new (share): distinct-3")
    axes.set_ylim(top=1.07)
    axes.set_xlim(right=0.4)
    new = [f"{name} {np.mean(texts[name][1]):.0%}" for name in ("greedy", "τ = 1", original)]
    axes.set_title("New 3-grams: " + ", ".join(new))
    return drawn


def repetition(nll: torch.Tensor) -> Figure:
    """NLL of a sentence's copies, (sentences, copies): a line each and their mean."""
    drawn, axes = figure(figsize=(7, 3.4))
    copies = np.arange(1, nll.shape[1] + 1)
    for row in nll.numpy():
        axes.plot(copies, row, color=COLOURS["predicted"], linewidth=1)
    mean = nll.mean(0).numpy()
    axes.plot(copies, mean, "o-", color=COLOURS["int8"], label=f"mean of {len(nll)} sentences")
    axes.set_yscale("log")
    axes.set_xticks(copies)
    axes.xaxis.set_minor_locator(NullLocator())
    axes.set_xlabel("copy of the sentence")
    axes.set_ylabel("NLL of its tokens (nats, log)")
    axes.legend()
    axes.set_title(f"By copy {nll.shape[1]} a token's probability is {np.exp(-mean[-1]):.0%}")
    return drawn


def copying(nll: torch.Tensor) -> Figure:
    """NLL of the tokens of a random list said twice, (2 T - 1,)."""
    drawn, axes = figure(figsize=(7.5, 3.2))
    length = (len(nll) + 1) // 2
    axes.plot(range(1, len(nll) + 1), nll, ".", color=COLOURS["bf16"])
    axes.axvline(length - 0.5, color=COLOURS["int8"], linestyle="--")
    axes.annotate("the list starts again", (length - 0.5, float(nll.max())), (5, -4), **_points())
    axes.set_ylim(0)
    axes.set_xlabel("position")
    axes.set_ylabel("NLL (nats)")
    before, after = nll[: length - 1].mean(), nll[length:].mean()
    axes.set_title(f"Random tokens cost {before:.1f} nats the first time, {after:.1f} the second")
    return drawn


def ablation(by_head: torch.Tensor, head: tuple[int, int], whole: float, first: float) -> Figure:
    """NLL of the second copy with each head cut out by itself, (layers, H): a dot for each head.

    `head`, (layer, head), is marked. Lines: the second copy with nothing cut, and the first copy.
    """
    drawn, axes = figure(figsize=(8, 3.6))
    layers, heads = by_head.shape
    costs = by_head.flatten().tolist()
    chosen = head[0] * heads + head[1]
    others = [n for n in range(len(costs)) if n != chosen]
    style = {"color": COLOURS["predicted"], "markersize": 4}
    axes.plot([n // heads for n in others], [costs[n] for n in others], "o", **style)
    axes.plot([head[0]], [costs[chosen]], "s", color=COLOURS["int8"], markersize=8)
    worst = sorted(others, key=lambda n: -costs[n])[:3]
    for n in (chosen, *worst):
        layer, left = n // heads, n // heads < 2 / 3 * layers
        label = f"layer {layer}, head {n % heads}"
        offset, align = ((7, -3), "left") if left else ((-7, -3), "right")
        axes.annotate(label, (layer, costs[n]), offset, ha=align, **_points())
    for level, name, style in ((first, "first copy", "--"), (whole, "nothing cut", ":")):
        axes.axhline(level, color="black", linestyle=style, linewidth=1)
        axes.annotate(name, (layers - 0.3, level), (0, 4), **_points())
    axes.set_xlim(-0.7, 1.12 * layers)  # room for the names of the lines
    axes.set_ylim(0, 1.12 * max(first, by_head.max().item()))
    axes.set_xlabel("layer of the head that is cut out")
    axes.set_ylabel("NLL in the second copy (nats)")
    below = sum(costs[n] < costs[chosen] for n in others)
    axes.set_title(
        f"Cutting layer {head[0]}, head {head[1]} costs more than {below} of the {len(others)} others"
    )
    return drawn


def recall(
    right: Mapping[int, Sequence[float]],
    stranger: Mapping[int, Sequence[float]],
    alone: tuple[Sequence[float], Sequence[float]],
    blind: float,
) -> Figure:
    """Probability of a code's first digit by distance, asked with its name and with a stranger's.

    `alone`: the same pair where the code is the only one, at the largest distance, which is drawn
    a little to the right.
    """
    drawn, axes = figure(figsize=(7.5, 3.6))
    farthest = 1.12 * max(right)
    series = (
        ("only code: the right name", {farthest: alone[0]}, "bf16", "o", "bf16"),
        ("only code: a stranger", {farthest: alone[1]}, "bf16", "o", "white"),
        ("among others: the right name", right, "int8", "s", "int8"),
        ("among others: a stranger", stranger, "int8", "s", "white"),
    )
    for name, told, colour, marker, inside in series:
        means = np.array([mean_interval(np.asarray(values)) for values in told.values()]).T
        middle, low, high = np.clip(100 * means, 0, 100)
        axes.errorbar(
            list(told),
            middle,
            [middle - low, high - middle],
            fmt=f"{marker}{'--' if inside == 'white' else '-'}",
            label=name,
            color=COLOURS[colour],
            markerfacecolor=COLOURS.get(inside, inside),
            capsize=4,
        )
    axes.axhline(100 * blind, color="black", linestyle=":", label="one of the codes, blindly")
    axes.set_xscale("log", base=2)
    axes.set_xticks(list(right), list(right))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.set_ylim(0, 100)
    axes.set_xlabel("tokens between fact and question")
    axes.set_ylabel("probability of the\nright first digit (%)")
    axes.legend(loc="center left", bbox_to_anchor=(1.02, 0.5), fontsize=8)
    own, other = np.mean(alone[0]), np.mean(alone[1])
    axes.set_title(f"The only code: {own:.0%} with its name, {other:.0%} with a stranger's")
    return drawn


def forced_words(log_odds: Mapping[str, Sequence[float]]) -> Figure:
    """Log-odds of the true sentence after each forced first word."""
    drawn, axes = figure(figsize=(5.5, 3.2))
    for x, (name, values) in enumerate(log_odds.items()):
        spread = np.linspace(-0.18, 0.18, len(values)) + x
        colour, marker = (("bf16", "o"), ("int8", "s"))[x]
        axes.plot(spread, values, marker, color=COLOURS[colour], label=name)
    axes.axhline(0, color="black", linewidth=1)
    axes.set_xticks(range(len(log_odds)), [f"after “{name}”" for name in log_odds])
    axes.set_xlim(-0.5, len(log_odds) - 0.5)
    axes.set_ylabel("log-odds of the true sentence")
    after_no = list(log_odds.values())[1]
    denied = sum(odds < 0 for odds in after_no)
    axes.set_title(f"After a forced No it denies {denied} of {len(after_no)} true sentences")
    return drawn


def one_step(
    logits: torch.Tensor, vocabulary: Sequence[str], temperature: float, top_k: int, top_p: float
) -> Figure:
    """The likeliest next tokens before and after temperature, top-k and top-p.

    `logits` (V,); `vocabulary`: the names of all tokens that may be shown, likeliest first.
    """
    shown = len(vocabulary)
    nothing_yet = torch.zeros(1, 0, dtype=torch.long)
    plain = sampling_probabilities(logits[None], nothing_yet)[0]
    settings = {"temperature": temperature, "top_k": top_k, "top_p": top_p}
    changed = sampling_probabilities(logits[None], nothing_yet, **settings)[0]
    order = logits.argsort(descending=True, stable=True)[:shown]
    drawn, axes = figure(figsize=(9, 3.6))
    places = np.arange(shown)
    axes.bar(places - 0.2, plain[order], 0.4, color=COLOURS["predicted"], label="the model's own")
    axes.bar(
        places + 0.2,
        changed[order],
        0.4,
        color=COLOURS["int8"],
        hatch=HATCHES["int8"],
        edgecolor="white",
        label="to draw from",
    )
    axes.set_xticks(places, vocabulary, rotation=60, ha="right")
    axes.set_ylim(0, 1)
    axes.set_ylabel("probability")
    axes.grid(axis="x", visible=False)
    axes.legend()
    kept = int((changed > 0).sum())
    nats = -(changed[changed > 0] * changed[changed > 0].log()).sum()
    axes.set_title(f"{kept:,} tokens can be drawn; entropy {nats:.2f} nats")
    return drawn


def _points() -> dict[str, object]:
    return {"textcoords": "offset points", "fontsize": 8}
