"""The figures and drawings of lesson 05: how LLaMA is trained."""

from collections.abc import Callable, Mapping

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

from llama_int8.course.drawings import (
    SMALL,
    TITLE,
    WIDTH,
    Area,
    arrow,
    box,
    brace,
    canvas,
    group,
    matrix,
    write,
)
from llama_int8.course.plots import AFTER, BEFORE, COLOURS, CURVES, GREY, SHAPES, figure
from llama_int8.course.predict import Guess
from llama_int8.data import load
from llama_int8.measure.statistics import Spread

SIX_ALT = (
    "One weight in three products. Forward: input times weight, 2 FLOPs. Backward: gradient of the "
    "output times weight, and gradient of the output times input, 2 FLOPs each. Together 6."
)
DATA_ALT = (
    "A chain of boxes from raw web pages over duplicates, language, quality and mixture to tokens; "
    "below each box what it throws away or adds."
)
BYTES_ALT = (
    "Sixteen cells for one parameter: two for the weight and two for the gradient in 16 bit, then four "
    "each for the FP32 weight, AdamW's mean and its mean of the square."
)
PARALLEL_ALT = (
    "Three ways over two GPUs. Data parallel: the whole model on both, other texts. FSDP: a half of the "
    "sixteen bytes on each, fetched when needed. Tensor parallel: half of the columns of every matrix "
    "on each, the same text; the outputs are put side by side."
)
AFTER_ALT = (
    "The pre-trained model becomes the SFT model by written answers. PPO and DPO both start from its "
    "weights and end in the chat model. People rank answers: DPO learns from the choices, PPO from the "
    "scores of a reward model that the choices train. Rejection sampling leads from the reward model "
    "back to SFT; the chat model's answers start the next round."
)


def drawing_six() -> Figure:
    """Where the six FLOPs for each weight and token come from."""
    drawn, axes = canvas(WIDTH, 2.2)
    kinds = (
        ("forward", "activations", [("input  ×  weight", "gives the output")]),
        (
            "backward",
            "highlight",
            [
                ("output's gradient  ×  weight", "gives the input's gradient"),
                ("output's gradient  ×  input", "gives the weight's gradient"),
            ],
        ),
    )
    x = 1.3
    for name, role, products in kinds:
        for product, gives in products:
            part = box(axes, product, (x, 1.35), (2.3, 0.36), role)
            write(axes, (x, 1.0), gives, SMALL)
            write(axes, (x, 1.72), name, weight="bold")
            write(axes, (x, 0.7), "one multiplication, one addition: 2", SMALL)
            last = part
            x += 2.45
    brace(axes, (0.15, 0.52), (last.x1, 0.52), "6 FLOPs for each weight and token")
    return drawn


def drawing_data() -> Figure:
    """From web pages to tokens."""
    drawn, axes = canvas(WIDTH, 1.9)
    steps = (
        ("web pages\n(CommonCrawl)", "activations", "petabytes of\nHTML"),
        ("seen\nbefore?", "neutral", "deduplicate:\nlines, pages"),
        ("one\nlanguage?", "neutral", "fastText\nreads it"),
        ("good\ntext?", "neutral", "n-gram model,\nclassifier"),
        ("mixture", "weights", "books, code,\nWikipedia, papers"),
        ("tokens", "queries", "byte-pair\nencoding"),
    )
    places = np.linspace(0.7, WIDTH - 0.62, len(steps))
    last = None
    for (name, role, note), x in zip(steps, places, strict=True):
        part = box(axes, name, (x, 1.3), (1.0, 0.56), role, SMALL)
        write(axes, (x, 0.7), note, SMALL)
        if last is not None:
            arrow(axes, last, part)
        last = part
    write(axes, (places[1:4].mean(), 0.2), "what fails is thrown away", SMALL, style="italic")
    return drawn


def drawing_bytes() -> Figure:
    """The sixteen bytes of one parameter."""
    drawn, axes = canvas(WIDTH, 1.55)
    parts = (
        ("weight\n16 bit", 2, "16 bit"),
        ("gradient\n16 bit", 2, "highlight"),
        ("weight\nFP32", 4, "weights"),
        ("AdamW's mean\nFP32", 4, "keys"),
        ("mean of the\nsquare, FP32", 4, "values"),
    )
    x, step = 0.35, 0.41
    for name, count, role in parts:
        area = matrix(axes, (x, 1.3), (1, count), role=role, size=(step, 0.34))
        write(axes, (area.centre[0], 0.7), name, SMALL)
        x = area.x1 + 0.06
    brace(
        axes, (0.35, 0.47), (x - 0.06, 0.47), "16 bytes for each parameter, before any activation"
    )
    return drawn


def drawing_parallel() -> Figure:
    """Two GPUs, three ways to share the work."""
    drawn, axes = canvas(WIDTH, 2.75)
    kinds = (
        ("data parallel", ("all", "all"), ("text 1", "text 2"), "average the gradients"),
        (
            "FSDP / ZeRO-3",
            ("half", "half"),
            ("text 1", "text 2"),
            "fetch a layer, use it, forget it",
        ),
        ("tensor parallel", ("left", "right"), ("text 1", "text 1"), "put outputs side by side"),
    )
    for (name, held, texts, sends), left in zip(kinds, (0.1, 2.57, 5.04), strict=True):
        write(axes, (left + 0.02, 2.55), name, TITLE, ha="left", weight="bold")
        for number, (part, text) in enumerate(zip(held, texts, strict=True)):
            x = left + 0.58 + 1.2 * number
            frame = group(axes, Area(x - 0.54, 0.62, x + 0.54, 2.32), f"GPU {number + 1}")
            _held(axes, (frame.centre[0], 1.62), part, number)
            box(axes, text, (x, 0.85), (0.8, 0.28), "activations", SMALL)
        write(axes, (left + 1.18, 0.36), sends, SMALL, style="italic")
    write(axes, (WIDTH / 2, 0.1), "each layer's matrix: what a GPU holds of it is yellow", SMALL)
    return drawn


def _held(axes: Axes, centre: tuple[float, float], part: str, number: int) -> None:
    """A matrix of 4 x 4, of which a GPU holds all, the upper or lower half, or a side."""
    cells = {
        "all": [(r, c) for r in range(4) for c in range(4)],
        "half": [(r, c) for r in range(2 * number, 2 * number + 2) for c in range(4)],
        "left": [(r, c) for r in range(4) for c in range(2)],
        "right": [(r, c) for r in range(4) for c in range(2, 4)],
    }[part]
    corner = (centre[0] - 0.36, centre[1] + 0.36)
    matrix(axes, corner, (4, 4), cells={"weights": cells}, size=0.18)


def drawing_after() -> Figure:
    """From a model that continues text to one that answers."""
    drawn, axes = canvas(WIDTH, 3.3)
    middle = 1.85
    base = box(axes, "pre-trained\nmodel", (0.68, middle), (1.1, 0.5), "weights")
    tuned = box(axes, "SFT model", (2.35, middle), (1.1, 0.5), "weights")
    ranked = box(axes, "people rank\nanswers", (4.3, middle), (1.15, 0.5), "activations")
    chat = box(axes, "chat model", (6.75, middle), (1.15, 0.5), "weights")
    reward = box(axes, "reward\nmodel", (4.3, 0.95), (1.15, 0.5), "highlight")
    direct = box(axes, "train with DPO", (5.75, 2.9), (1.35, 0.36), "neutral")
    ppo = box(axes, "train with PPO", (5.75, 0.3), (1.35, 0.36), "neutral")
    arrow(axes, base, tuned)
    write(axes, (1.5, 2.28), "SFT on\nwritten answers", SMALL)
    arrow(axes, tuned, ranked, "its answers", beside="above")
    arrow(axes, ranked, reward)
    for method, height, side in ((direct, 2.9, "above"), (ppo, 0.3, "below")):
        arrow(axes, tuned, method, "starts from its weights", [(2.35, height)], beside=side)
        arrow(axes, method, chat, corners=[(6.75, height)])
    arrow(axes, ranked, direct, "choices", [(4.3, 2.45), (5.75, 2.45)], beside="below")
    arrow(axes, reward, ppo, "scores", [(5.75, 0.95)], beside="above")
    arrow(axes, (3.725, 1.07), (2.62, 1.6), corners=[(2.62, 1.07)])
    write(axes, (3.15, 0.88), "rejection sampling", SMALL)
    arrow(axes, chat, ranked, "the next round", beside="above")
    return drawn


def tokens_per_parameter(ratios: Mapping[str, float], guess: Guess, about: str) -> Figure:
    """Tokens for each parameter of every model, on a log axis, beside the compute-optimal twenty."""
    optimal = load("llama_papers")["tokens_per_parameter"]
    drawn, axes = figure(figsize=(8.5, 5))
    for row, (name, ratio) in enumerate(ratios.items()):
        of_llama = name.lower().startswith("llama")
        style = {"color": AFTER["color"], "marker": "o"} if of_llama else {**BEFORE}
        axes.plot([optimal, ratio], [row, row], color=style["color"], linewidth=1, alpha=0.5)
        axes.plot(ratio, row, linestyle="", **style)
        written = f"{ratio:,.0f}" if ratio >= 10 else f"{ratio:.1f}"
        axes.annotate(written, (ratio, row), (7, 0), "data", "offset points", va="center").set_bbox(
            {"facecolor": "white", "edgecolor": "none", "pad": 0.5}
        )
    axes.axvline(optimal, color="black", linestyle=":")
    axes.set_yticks(range(len(ratios)), ratios)
    axes.invert_yaxis()
    axes.set_xscale("log")
    axes.set_xlim(1, 60_000)
    axes.set_xlabel("tokens of training for each parameter (dotted: compute-optimal, 20)")
    axes.grid(axis="y", visible=False)
    axes.set_title("Small models are trained far beyond what is cheapest to train")
    if guess.value is not None and not isinstance(guess.value, str) and guess.value > 0:
        axes.plot(guess.value, list(ratios).index(about), "x", color=GREY, markersize=9)
    return drawn


def life(
    models: Mapping[str, tuple[float, float]],
    cost: Callable[..., float],
    least: Callable[[float], float],
    meet: float,
) -> Figure:
    """FLOPs of training and serving over the tokens served, for (parameters, tokens) of each model.

    `least`: FLOPs of the best size for each number of tokens served.
    `meet`: tokens served where the first two cost the same.
    """
    drawn, axes = figure(figsize=(8, 3.8))
    served = np.logspace(11, 15, 200)
    for (name, (size, tokens)), colour, marker in zip(models.items(), CURVES, SHAPES, strict=False):
        flops = [cost(size, tokens, s) for s in served]
        style = {"color": colour, "marker": marker, "markevery": 25, "markersize": 5}
        axes.plot(served, flops, label=name, **style)
    best = [least(s) for s in served]
    axes.plot(served, best, color=GREY, linestyle="--", label="best size for each, same loss")
    axes.axvline(meet, color="black", linestyle=":")
    text = f"equal after {meet / 1e12:.0f} trillion"
    at = axes.get_xaxis_transform()  # from the lower edge, whatever the scale
    axes.annotate(text, (meet, 0), (5, 12), at, "offset points", fontsize=9)
    axes.set(xscale="log", yscale="log")
    axes.set_xlabel("tokens served in the model's life")
    axes.set_ylabel("FLOPs, training and serving")
    axes.legend()
    axes.set_title("The more you serve, the more a smaller model pays off")
    return drawn


def mixture() -> Figure:
    """The first LLaMA's data: share of the tokens, epochs and size on disk of each source."""
    papers = load("llama_papers")
    drawn, axes = figure(figsize=(8, 3.2))
    names = list(papers["mixture"])
    shares = [papers["mixture"][name][0] for name in names]
    axes.barh(names, shares, color=COLOURS["bf16"])
    for name, share in zip(names, shares, strict=True):
        _, epochs, gigabytes = papers["mixture"][name]
        text = f"{share:g} %, {gigabytes:,} GB, read {epochs:.2f} times"
        axes.annotate(text, (share, name), (4, 0), textcoords="offset points", va="center")
    axes.invert_yaxis()
    axes.set_xlim(0, 115)  # room for the words
    axes.set_xticks(range(0, 71, 10))
    axes.set_xlabel("% of the tokens drawn in training")
    axes.grid(axis="y", visible=False)
    axes.set_title("Two thirds are CommonCrawl; Wikipedia and books are read more than twice")
    return drawn


def schedule(learning_rate: Callable[[int, int, float, int], float]) -> Figure:
    """The learning rate over the tokens of two models, and its first 4,000 steps."""
    sizes = load("llama_papers")["sizes"]
    drawn, axes = figure(2, figsize=(9.5, 3.2), sharey=True)
    pairs = (("7B and 13B", "7B", "int8", "--"), ("33B and 65B", "65B", "bf16", "-"))
    for label, name, colour, line in pairs:
        size = sizes[name]
        steps = round(size["tokens"] * 1e12 / 4e6)
        for panel, last in zip(axes, (4000, steps), strict=True):
            at = np.unique(np.linspace(0, last, 200).astype(int))
            rate = [1e4 * learning_rate(int(step), steps, size["rate"], 2000) for step in at]
            x = at if last == 4000 else at * 4e6 / 1e12
            panel.plot(x, rate, line, color=COLOURS[colour], label=label)
    axes[0].set_xlabel("step")
    axes[1].set_xlabel("trillions of tokens, 4 million per step")
    axes[0].set_ylabel("learning rate (1e-4)")
    axes[0].set_ylim(0)
    axes[1].legend()
    axes[0].set_title("2,000 steps up")
    axes[1].set_title("then a cosine, down to a tenth")
    return drawn


def checkpointing(
    kept: Mapping[str, float],
    floor: float,
    times: Mapping[str, Spread],
    ratio: tuple[float, float, float],
    tokens: int,
) -> Figure:
    """Bytes kept for the backward pass, and seconds of a training pass, without and with it.

    `ratio`: of the times, with its interval.
    """
    drawn, axes = figure(2, figsize=(10, 2.9))
    colours, hatches = [BEFORE["color"], AFTER["color"]], ["///", ""]
    names = list(kept)
    megabytes = [kept[name] / 1e6 for name in names]
    axes[0].barh(names, megabytes, color=colours, hatch=hatches, edgecolor="white")
    axes[0].axvline(
        floor / 1e6, color="black", linestyle=":", label="only the inputs of the blocks"
    )
    axes[0].set_xlabel(f"MB kept by the blocks, {tokens} tokens")
    axes[0].legend(fontsize=8, loc="lower right")
    less = kept[names[0]] / kept[names[1]]
    axes[0].set_title(f"{less:.0f} times less is kept")
    middle = np.array([times[name].median for name in names])
    low = middle - [times[name].low for name in names]
    high = [times[name].high for name in names] - middle
    axes[1].barh(names, middle, color=colours, hatch=hatches, edgecolor="white")
    axes[1].errorbar(middle, names, xerr=[low, high], fmt="none", ecolor="black", capsize=3)
    axes[1].set_xlabel("s forward and backward")
    mean, low, high = ratio
    axes[1].set_title(f"{mean:.2f} times the time [{low:.2f}, {high:.2f}]")
    for panel in axes:
        panel.invert_yaxis()
        panel.grid(axis="y", visible=False)
    return drawn


def ablation(
    differences: Mapping[str, Tensor],
    intervals: Mapping[str, tuple[float, float, float]],
    guess: Guess | None = None,
) -> Figure:
    """Held-out loss of each variant minus the original's, by seed, with (mean, low, high) of each."""
    drawn, axes = figure(2, figsize=(11, 3.9))
    means = {name: interval[0] for name, interval in intervals.items()}
    small = [name for name, mean in means.items() if abs(mean) < 0.2]
    for panel, shown in zip(axes, (list(differences), small), strict=True):
        for row, name in enumerate(shown):
            values = differences[name].numpy()
            panel.plot(values, [row] * len(values), "o", color=GREY, markersize=4)
            mean, low, high = intervals[name]
            error = [[mean - low], [high - mean]]
            panel.errorbar(mean, row, xerr=error, capsize=4, **{**AFTER, "marker": "D"})
        panel.axvline(0, color="black", linewidth=1)
        panel.set_yticks(range(len(shown)), shown)
        panel.invert_yaxis()
        panel.grid(axis="y", visible=False)
        panel.set_xlabel("bits per byte against the original: better ←  → worse")
    if guess is not None and guess.value in differences:
        axes[0].get_yticklabels()[list(differences).index(guess.value)].set_weight("bold")
    best = min(means, key=means.get)
    axes[0].set_title(f'"{best}" changes the loss most')
    axes[1].set_title("The small ones, enlarged")
    return drawn


def beyond_training(
    curves: Mapping[str, Tensor], trained: int, bin_width: int, cut: float
) -> Figure:
    """Loss by position, (seeds, windows, bins of `bin_width` bytes): kinds of positions, and rules.

    `cut`: the loss of the rotary model where the text is cut to what it was trained on.
    """
    drawn, axes = figure(2, figsize=(10, 4.6), sharey=True)
    kinds = {name: losses for name, losses in curves.items() if "," not in name}
    rules = {
        name.removeprefix("rotary, ").removesuffix(" scaling"): losses
        for name, losses in curves.items()
        if name not in kinds
    }
    for panel, shown in zip(axes, (kinds, {"rotary": curves["rotary"], **rules}), strict=True):
        for name, losses in shown.items():
            middle = (np.arange(losses.shape[2]) + 0.5) * bin_width
            by_seed = losses.mean(1)  # (seeds, bins)
            colour, marker, line = _POSITIONS[name]
            style = {"color": colour, "marker": marker, "linestyle": line, "markersize": 5}
            panel.plot(middle, by_seed.mean(0), label=name, **style)
            band = {"color": colour, "alpha": 0.15, "linewidth": 0}
            panel.fill_between(middle, by_seed.amin(0), by_seed.amax(0), **band)
        panel.axvline(trained, color="black", linestyle=":")
        panel.annotate(
            "trained up to here",
            (trained, 1),
            (4, -12),
            panel.get_xaxis_transform(),
            "offset points",
            fontsize=8,
        )
        panel.set_xlabel("position in the text (bytes)")
    axes[1].axhline(cut, color=COLOURS["bf16"], linestyle=(0, (1, 3)), label="rotary, text cut")
    axes[0].set_ylabel("held-out loss (bits per byte)")
    inside, last = trained // bin_width, slice(-2, None)
    rises = {n: v[:, :, last].mean() - v[:, :, :inside].mean() for n, v in kinds.items()}
    far = {name: losses[:, :, last].mean() for name, losses in rules.items()}
    axes[0].set_title(f'Beyond, the loss rises most with "{max(rises, key=rises.get)}"')
    axes[1].set_title(f'Of four scalings, "{min(far, key=far.get)}" loses least there')
    for panel in axes:
        panel.legend(fontsize=8, loc="upper center", bbox_to_anchor=(0.5, -0.18), ncol=3)
    return drawn


# Colour, marker and line of each kind of positions and each scaling of the rotary ones.
_POSITIONS = {
    "sinusoidal": ("#D55E00", "s", "--"),
    "learned": ("#CC79A7", "v", "--"),
    "none": ("#56B4E9", "P", ":"),
    "rotary": ("#0072B2", "o", "-"),
    "linear": ("#767676", "x", ":"),
    "llama3": ("#009E73", "D", "-"),
    "NTK-aware": ("#E69F00", "^", "-."),
    "YaRN": ("#000000", "*", (0, (3, 1, 1, 1))),
}
