"""The figures of notebook 03."""

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from matplotlib.figure import Figure
from matplotlib.ticker import NullLocator

from llama_int8.course.plots import COLOURS, HATCHES, figure
from llama_int8.measure.statistics import Spread
from llama_int8.models.cost import GIB, kv_cache_bytes
from llama_int8.transformer.config import LlamaConfig
from llama_int8.transformer.generation import sampling_probabilities


def surprise(words: Sequence[str], nll: Sequence[float]) -> Figure:
    """NLL of each token after the first; `words` are these tokens."""
    drawn, axes = figure(figsize=(9, 3.2))
    mean = float(np.mean(nll))
    axes.bar(range(len(nll)), nll, color=COLOURS["bf16"])
    axes.axhline(mean, color=COLOURS["int8"], linestyle="--", label="mean")
    axes.legend()
    axes.set_xticks(range(len(words)), words, rotation=60, ha="right")
    axes.set_ylabel("surprise (nats)")
    axes.grid(axis="x", visible=False)
    hardest, easiest = words[int(np.argmax(nll))].strip(), words[int(np.argmin(nll))].strip()
    axes.set_title(
        f"Mean {mean:.2f} nats, perplexity {np.exp(mean):.1f}; hardest “{hardest}”, "
        f"easiest “{easiest}”"
    )
    return drawn


def template_effect(
    questions: Sequence[str], without: Sequence[float], with_template: Sequence[float]
) -> Figure:
    """Mean log-probability of each answer, with the chat template and without."""
    drawn, axes = figure(figsize=(8.5, 4.2))
    rows = np.arange(len(questions))
    for row, first, second in zip(rows, without, with_template, strict=True):
        axes.plot([first, second], [row, row], color="#BBBBBB", zorder=1)
    axes.plot(without, rows, "s", color=COLOURS["predicted"], label="question alone")
    axes.plot(with_template, rows, "o", color=COLOURS["bf16"], label="in the chat template")
    axes.set_yticks(rows, questions, fontsize=8)
    axes.invert_yaxis()
    axes.set_xlabel("mean log-probability of the answer's tokens (nats)")
    axes.legend(loc="lower left", bbox_to_anchor=(0, 1), ncols=2)
    better = sum(w > o for o, w in zip(without, with_template, strict=True))
    drawn.suptitle(
        f"{better} of {len(questions)} answers are likelier in the form of the fine-tuning",
        x=0.01,
        ha="left",
        fontweight="bold",
        fontsize=11,
    )
    return drawn


def cache_time(
    full: Mapping[int, Spread], step: Mapping[int, Spread], weights: float, bandwidth: float
) -> Figure:
    """Seconds for the next token without and with a cache; tokens/s by tokens in one pass.

    `full`: seconds of a pass over so many tokens; `step`: of one token after so many in the cache.
    `weights`: bytes that a pass reads; `bandwidth`: bytes/s.
    """
    drawn, axes = figure(2, figsize=(10, 3.7))
    for name, times, colour, marker in (
        ("without cache", full, "int8", "s"),
        ("with cache", step, "bf16", "o"),
    ):
        lengths = list(times)
        middle = [1e3 * times[n].median for n in lengths]
        low = [1e3 * (times[n].median - times[n].low) for n in lengths]
        high = [1e3 * (times[n].high - times[n].median) for n in lengths]
        style = {"color": COLOURS[colour], "marker": marker, "capsize": 3}
        axes[0].errorbar(lengths, middle, [low, high], label=name, **style)
    longest = max(step)
    ratio = full[longest].median / step[longest].median
    axes[0].set_xlabel("tokens so far")
    axes[0].set_ylabel("ms for the next token")
    axes[0].set_ylim(0)
    axes[0].legend()
    axes[0].set_title(f"After {longest} tokens the cache saves {ratio:.0f}x")
    passes = {1: step[min(step)], **full}
    sizes = list(passes)
    speed = [n / passes[n].median for n in sizes]
    axes[1].plot(sizes, speed, "D-", color="black", label="measured")
    bound = [n * bandwidth / weights for n in sizes]
    axes[1].plot(sizes, bound, "--", color=COLOURS["predicted"], label="bound: weights read once")
    axes[1].axhline(max(speed), color=COLOURS["good"], linestyle=":", label="best measured")
    axes[1].set_xscale("log", base=2)
    axes[1].set_yscale("log")
    axes[1].set_ylim(min(speed) / 2, max(speed) * 4)
    axes[1].set_xlabel("tokens in one pass")
    axes[1].set_ylabel("tokens/s (log)")
    axes[1].legend(fontsize=8, loc="lower right")
    axes[1].set_title(f"One at a time: {speed[0] / max(speed):.0%} of the best speed")
    return drawn


def cache_sizes(configs: Mapping[str, LlamaConfig], tokens: int) -> Figure:
    """GiB of cache for one text of `tokens` in 16 bit, beside what one key head a query head takes."""
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
    beside = {original: (-9, 9, "right"), "greedy, penalty 1.3": (0, 9, "center")}
    beside |= dict.fromkeys(("τ = 0.5", "τ = 1", "top-p 0.9"), (-8, -13, "right"))
    for name, values in texts.items():
        (x, y), errors = np.mean(values, axis=1), 1.96 * np.std(values, axis=1, ddof=1)
        errors /= len(values[0]) ** 0.5
        searches = name in ("greedy", "beam search", "greedy, penalty 1.3")
        kind = ("int8", "*", 15) if name == original else ("good", "s", 8) if searches else None
        colour, marker, size = kind or ("bf16", "o", 8)
        style = {"color": COLOURS[colour], "marker": marker, "markersize": size, "elinewidth": 0.7}
        up_to_one = [[errors[1]], [min(errors[1], 1 - y)]]  # a share ends there
        axes.errorbar(x, y, up_to_one, errors[0], **style)
        right, up, align = beside.get(name, (7, -11, "left"))
        paper = {"facecolor": "white", "edgecolor": "none", "alpha": 0.8, "pad": 0.5}
        axes.annotate(name, (x, y), (right, up), ha=align, bbox=paper, **_points())
    axes.set_xlabel("mean log-probability of a token (nats): likelier →")
    axes.set_ylabel("3-grams that are new (share)")
    axes.set_ylim(top=1.07)
    axes.set_xlim(right=0.4)
    axes.set_title("Greedy text is likely and repetitive; the original is neither")
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
    axes.set_title(
        f"In copy {nll.shape[1]}, a token's probability is {np.exp(-mean[-1]):.0%} (geometric mean)"
    )
    return drawn


def strengths_and_limits(
    copying: tuple[torch.Tensor, int],
    hidden: Mapping[str, tuple[int, float, float, int]],
    forced: Mapping[str, Sequence[float]],
    recall: Mapping[str, Mapping[int, Sequence[float]]],
    control: float,
) -> Figure:
    """Four experiments: copying, the hidden word, a forced first word, recall over distance.

    `copying`: NLL of each token of a random list said twice, and the list's length. `hidden`:
    (right, low, high, n) by what the model may use. `forced`: log-odds of the true sentence after
    each start. `recall`: probability of a digit by company and distance; `control`: of another person.
    """
    drawn, axes = figure(4, figsize=(13, 3.5))
    nll, length = copying
    axes[0].plot(range(1, len(nll) + 1), nll, ".", color=COLOURS["bf16"])
    axes[0].axvline(length - 0.5, color=COLOURS["int8"], linestyle="--")
    axes[0].set_xlabel("position; the list starts again at the line")
    axes[0].set_ylabel("NLL (nats)")
    before, after = nll[: length - 1].mean(), nll[length:].mean()
    axes[0].set_title(f"Copying: {before:.1f}, then {after:.1f} nats")
    names = list(hidden)
    for x, name in enumerate(names):
        right, low, high, n = hidden[name]
        share = right / n
        axes[1].bar(x, share, 0.6, color=COLOURS[("int8", "bf16")[x]], hatch=("///", "")[x])
        axes[1].errorbar(x, share, [[share - low], [high - share]], color="black", capsize=4)
        inside = "white" if share > 0.15 else "black"  # a low bar does not reach behind the text
        axes[1].annotate(f"{right} of {n}", (x, 0.02), ha="center", color=inside, weight="bold")
    axes[1].axhline(0.25, color="black", linestyle=":")
    axes[1].annotate("chance", (1.45, 0.26), ha="right", fontsize=8)
    axes[1].set_xticks(range(len(names)), names)
    axes[1].set_ylim(0, 1)
    axes[1].set_ylabel("hidden word found")
    axes[1].set_title("One direction: the end helps")
    for x, (name, odds) in enumerate(forced.items()):
        spread = np.linspace(-0.18, 0.18, len(odds)) + x
        colour, marker = (("bf16", "o"), ("int8", "s"))[x]
        axes[2].plot(spread, odds, marker, color=COLOURS[colour], label=name)
    axes[2].axhline(0, color="black", linewidth=1)
    axes[2].set_xticks(range(len(forced)), [f"after “{name}”" for name in forced])
    axes[2].set_xlim(-0.5, len(forced) - 0.5)
    axes[2].set_ylabel("log-odds of the true sentence")
    after_no = list(forced.values())[1]
    denied = sum(o < 0 for o in after_no)
    axes[2].set_title(f"No way back: {denied} of {len(after_no)} denied")
    styles = (("bf16", "o"), ("int8", "s"))
    for (company, told), (colour, marker) in zip(recall.items(), styles, strict=True):
        for distance, values in told.items():
            style = {"color": COLOURS[colour], "markersize": 4, "alpha": 0.4}
            axes[3].plot([distance] * len(values), values, marker, **style)
        means = [np.mean(values) for values in told.values()]
        axes[3].plot(list(told), means, marker, ls="-", color=COLOURS[colour], label=company)
    axes[3].axhline(control, color="black", linestyle=":", label="never named")
    axes[3].set_xscale("log", base=2)
    axes[3].set_xticks(list(told), list(told))
    axes[3].xaxis.set_minor_locator(NullLocator())
    axes[3].set_ylim(0, 1)
    axes[3].legend(fontsize=8, loc="lower left")
    axes[3].set_xlabel("tokens between fact and question")
    axes[3].set_ylabel("probability of a digit")
    axes[3].set_title("Recall: distance and company")
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
    bits = -(changed[changed > 0] * changed[changed > 0].log2()).sum()
    axes.set_title(f"{kept:,} tokens can be drawn; entropy {bits:.2f} bits")
    return drawn


def _points() -> dict[str, object]:
    return {"textcoords": "offset points", "fontsize": 8}
