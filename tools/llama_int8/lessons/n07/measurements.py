"""What lesson 07 measures: outliers of a model, layers beside bitsandbytes', twins, and the ladder."""

import copy
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import bitsandbytes
import numpy as np
import torch
from bitsandbytes.functional import int8_vectorwise_quant
from scipy import stats
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

import llama_int8.models as models
from llama_int8.course.tables import show_table
from llama_int8.evaluation import perplexity
from llama_int8.evaluation.answers import prompt_tokens
from llama_int8.evaluation.ladder import CONTROLS, LLM_INT8, RUNGS, climb
from llama_int8.measure.memory import weight_memory
from llama_int8.measure.results import Results
from llama_int8.measure.statistics import mean_interval
from llama_int8.models.cost import count_parameters
from llama_int8.profiles import Settings
from llama_int8.quantization.linear_layers import linear_layers
from llama_int8.quantization.outliers import (
    ENTRANCES,
    PAPERS_ENTRANCES,
    channel_absmax,
    outlier_columns,
    outlier_features,
    papers_inputs,
)
from llama_int8.quantization.precisions import THRESHOLD
from llama_int8.transformer.generation import generate

Verdict = tuple[str, str, str]  # measured, verdict, because: what put_on_trial takes
Quantize = Callable[[Tensor, float], tuple[Tensor, Tensor, Tensor]]  # codes, absmax, columns
LARGEST_TWIN = 500e6  # parameters: of a larger model no second copy is made
ROUNDS = 5  # of generation, the models in turns
LARGE = 6.7e9  # parameters: from here on the paper finds outlier features in all layers
SHIFTS = (0.0, 0.25, 0.5, 0.75)  # of a step: four grids of the weights; bitsandbytes uses the first

# --- outliers -----------------------------------------------------------------------------------


def residual_stream(model: PreTrainedModel, tokens: Tensor) -> Tensor:
    """The residual stream before and after every block, (blocks + 1, T, C)."""
    before_norm: list[Tensor] = []
    hook = model.model.norm.register_forward_pre_hook(
        lambda _, inputs: before_norm.append(inputs[0])
    )
    try:
        with torch.inference_mode():
            out = model(tokens, use_cache=False, logits_to_keep=1, output_hidden_states=True)
    finally:
        hook.remove()
    # Hugging Face's last state has passed the norm already.
    stream = [*out.hidden_states[:-1], *before_norm]
    return torch.stack([state[0].float().cpu() for state in stream])


@dataclass(frozen=True)
class Writers:
    """The largest value of a residual stream, and the blocks that change its channel most."""

    block: int  # how many blocks have been passed where it stands
    position: int
    channel: int
    largest: float
    median: float  # magnitude, of all values there
    rows: list[tuple]  # what the table of `show_writers` shows


def who_writes(model: PreTrainedModel, residual: Tensor, inputs: Mapping[str, Tensor]) -> Writers:
    """Blocks that change the largest value's channel most on the first token: writers and erasers.

    A block counts whose change is at least a tenth of the largest. `residual`: (blocks + 1, T, C).
    """
    peak = residual.abs().amax((1, 2)).argmax().item()
    sizes = residual[peak].abs()
    position, channel = divmod(sizes.argmax().item(), residual.shape[-1])
    values = residual[:, 0, channel]
    changes = values.diff()
    rows = []
    for block in (changes.abs() >= changes.abs().max() / 10).nonzero().flatten().tolist():
        before, change = values[block].item(), changes[block].item()
        layer = model.model.layers[block]
        down = layer.mlp.down_proj
        entering = inputs[f"model.layers.{block}.mlp.down_proj"][0, 0]
        by_down = (down.weight[channel].float().cpu() @ entering).item()
        grows = abs(before + change) > abs(before)
        gain = layer.post_attention_layernorm.weight[channel].item()
        numbers = (f"{number:+,.0f}" for number in (before, change, by_down))
        rows.append((block, *numbers, "writes" if grows else "erases", f"{gain:+.4f}"))
    return Writers(peak, position, channel, sizes.max().item(), sizes.median().item(), rows)


def show_writers(results: Results, writers: Writers) -> None:
    """The largest value, and which layers write and erase it, as a table."""
    results.record("massive.largest", writers.largest, "magnitude", kind="quality")
    times = writers.largest / writers.median
    print(
        f"largest: after {writers.block} blocks, position {writers.position}, channel "
        f"{writers.channel}: {writers.largest:,.0f}, {times:,.0f} times that layer's median"
    )
    print(f"channel {writers.channel} on the first token:")
    header = ("layer", "before", "it adds", "by down_proj", "so it", "norm's gain before the FFN")
    show_table(header, writers.rows)


def token_or_position(results: Results, model: PreTrainedModel, tokens: Tensor) -> str:
    """Which makes the giant, the first token or the first position? A table, and the answer in words.

    The same text without its first token, with another one in its place, and with its first token
    once more in the middle. `tokens`: (1, T).
    """
    middle = tokens.shape[1] // 2
    another, again = tokens.clone(), tokens.clone()
    another[0, 0], again[0, middle] = tokens[0, middle], tokens[0, 0]
    texts = {"as it stands": tokens, "without its first token": tokens[:, 1:]}
    texts |= {"another token first": another, "first token also in the middle": again}
    rows, at_start, leading = [], 0.0, 0
    for name, ids in texts.items():
        peaks = residual_stream(model, ids).abs().amax((0, 2))  # (T,)
        start, rest = peaks[0].item(), peaks[1:].max().item()
        inside = f"{peaks[middle]:,.0f}" if ids is again else ""
        rows.append((name, f"{start:,.0f}", f"{rest:,.0f}", inside))
        results.record(f"massive.first position.{name}", start, "magnitude", kind="quality")
        leading += start > rest
        if ids is again:
            at_start = peaks[middle].item() / start
    header = ("text", "largest at the first position", "largest elsewhere", "same token, middle")
    show_table(header, rows)
    return (
        f"The first position holds the largest value in {leading} of {len(rows)} texts. The same token "
        f"in the middle reaches {at_start:.1%} of what it reaches at the start."
    )


def columns_by_tokens(inputs: Mapping[str, Tensor], counts: Sequence[int]) -> str:
    """Share of outlier columns at all inputs if only the first tokens are looked at."""
    width = sum(x.shape[-1] for x in inputs.values())
    shares = {
        count: sum(outlier_columns(x[0, :count]).numel() for x in inputs.values()) / width
        for count in counts
    }
    return ", ".join(f"{count} tokens {share:.2%}" for count, share in shares.items())


@dataclass(frozen=True)
class Shares:
    """Of one kind of entrance: share of values and of columns that reach the threshold."""

    values: float
    columns: float
    held: int  # columns with a large value
    width: int  # all columns


def shares_by_entrance(results: Results, inputs: Mapping[str, Tensor]) -> dict[str, Shares]:
    """What reaches 6.0 at each entrance, over all layers; shown as a table, and kept."""
    shares, rows = {}, []
    for kind in ENTRANCES:
        own = [x for name, x in inputs.items() if name.endswith(kind)]
        large = sum((x.abs() >= THRESHOLD).sum().item() for x in own)
        held, width = (
            sum(n)
            for n in zip(*((outlier_columns(x).numel(), x.shape[-1]) for x in own), strict=True)
        )
        values = large / sum(x.numel() for x in own)
        shares[kind] = Shares(values, held / width, held, width)
        rows.append((kind, f"{values:.3%}", held, f"{held / width:.2%}"))
        results.record(f"outlier columns.{kind}", 100 * held / width, "%", n=width)
    everything, width = share_of_columns(shares), sum(s.width for s in shares.values())
    results.record("outlier columns.all", 100 * everything, "%", n=width)
    show_table(("input of", "values at 6.0 or more", "columns with one", "share of columns"), rows)
    return shares


def share_of_columns(shares: Mapping[str, Shares], kinds: Sequence[str] = ENTRANCES) -> float:
    """Outlier columns over all columns of these kinds together."""
    return sum(shares[k].held for k in kinds) / sum(shares[k].width for k in kinds)


def features_in_both(
    results: Results, texts: Mapping[str, Mapping[str, Tensor]]
) -> dict[int, tuple[float, float]]:
    """Outlier features that every text shows, with the first text's shares of layers and positions."""
    features = {text: outlier_features(papers_inputs(inputs)) for text, inputs in texts.items()}
    for text, channels in features.items():
        for channel, (layers, positions) in channels.items():
            print(
                f"{text}: channel {channel}, {layers:.0%} of layers, {positions:.0%} of positions"
            )
    first, *others = features.values()
    common = {c: shares for c, shares in first.items() if all(c in other for other in others)}
    print("outlier features in all texts:", sorted(common) or "none")
    results.record("outlier features", len(common), "count")
    return common


def share_kept(inputs: Mapping[str, Tensor], kept_share: Callable, threshold: float) -> float:
    """Share of the values of all inputs that LLM.int8() would keep in 16 bit at a threshold."""
    sizes = [x.numel() for x in inputs.values()]
    kept = sum(n * kept_share(x[0], threshold) for n, x in zip(sizes, inputs.values(), strict=True))
    return kept / sum(sizes)


def verdict_on_size(
    results: Results, settings: Settings, common: Mapping[int, tuple[float, float]]
) -> Verdict:
    """Do outlier features appear only from 6.7 billion parameters on?"""
    small = count_parameters(models.config_of(settings.model)) < LARGE
    most = max((layers for layers, _ in common.values()), default=0)
    where = f", in up to {most:.0%} of the layers." if common else "."
    return (
        f"Outlier features of {results.model} by the paper's criterion, on both texts: "
        f"{len(common)}{where}",
        "fails here" if common and small else "not testable here",
        "The paper's own words are that from 6.7B on outlier features are in all layers; its table 4 "
        "lists them in models of 117M parameters. This is one model and two texts.",
    )


def verdict_on_tenth(
    shares: Mapping[str, Shares], common: Mapping[int, Any], tokens: int, width: int
) -> Verdict:
    """Are outliers 0.1 % of the feature dimensions?"""
    everything, before = share_of_columns(shares), share_of_columns(shares, PAPERS_ENTRANCES)
    return (
        f"Columns that reach 6.0 once in {tokens} tokens: {before:.2%} without down_proj, "
        f"{shares['down_proj'].columns:.2%} of down_proj's, {everything:.2%} of all. Outlier "
        f"features by the paper's criterion: {len(common)} of {width} channels, "
        f"{len(common) / width:.2%}.",
        "holds" if everything < 0.0015 else "holds only if" if before < 0.0015 else "fails here",
        "down_proj is left out, as in the paper's count. In a LLaMA that is where a product of two "
        f"activations enters, with outliers in many columns, most in late layers. This is the mean over "
        f"all layers, and for {tokens} tokens: a column counts from its first large value on, so the "
        "count grows with the text.",
    )


# --- layers beside bitsandbytes' ----------------------------------------------------------------


def their_layer(linear: nn.Linear, device: str = "cpu", threshold: float = THRESHOLD) -> nn.Module:
    """bitsandbytes' layer with these weights: it quantizes when it is moved, even to the CPU."""
    layer = bitsandbytes.nn.Linear8bitLt(
        linear.in_features,
        linear.out_features,
        linear.bias is not None,
        has_fp16_weights=False,
        threshold=threshold,
    )
    layer.load_state_dict(linear.state_dict())
    return layer.to(device).eval()  # in training mode a CPU takes another way, without int8


def compare_with_bitsandbytes(
    linears: Mapping[str, nn.Linear],
    inputs: Mapping[str, Tensor],
    quantize: Quantize,
    layer_of: Callable[[nn.Linear], nn.Module],
    device: str,
) -> None:
    """Every code, scale and column of every layer beside bitsandbytes' CPU code: they must be equal.

    The outputs must agree to 1e-4 of the largest. On a GPU, bitsandbytes' kernel divides in another
    way: there the codes that differ are counted, and by how much. Raises AssertionError.
    """
    compared, largest = 0, 0.0
    off, steps = 0, 0
    for name, linear in linears.items():
        linear, x = copy.deepcopy(linear).cpu().float(), inputs[name][0].half()
        mine, other = layer_of(linear), their_layer(linear)
        codes = [(quantize(x, THRESHOLD), _their_codes(x, THRESHOLD))]
        codes.append(((mine.weight, mine.SCB), (other.weight.data, other.weight.SCB)))
        for ours, theirs in codes:
            same = all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))
            assert same, f"bitsandbytes has other codes, scales or columns in {name}"
            compared += ours[0].numel()
        if device != "cpu":
            for values, threshold, ours in (
                (x, THRESHOLD, codes[0][0][0]),
                (linear.weight.data.half(), 0.0, mine.weight),
            ):
                apart = (_their_codes(values.to(device), threshold)[0].cpu().int() - ours).abs()
                off, steps = off + int((apart > 0).sum()), max(steps, int(apart.max()))
        y = other(x.float())
        difference = (mine(x.float()) - y).abs().max() / y.abs().max()
        largest = max(largest, difference.item())
    assert largest < 1e-4, f"the outputs differ by up to {largest:.0e} of the largest"
    print(
        f"{len(linears)} layers, {compared:,} codes: all equal to those of bitsandbytes' CPU code"
    )
    print(f"outputs apart by at most {largest:.0e} of the largest")
    if device != "cpu":
        print(f"bitsandbytes on {device}: {off:,} of these codes differ, by at most {steps}")


def _their_codes(values: Tensor, threshold: float) -> tuple[Tensor, Tensor, Tensor]:
    codes, absmax, columns = int8_vectorwise_quant(values.clone(), threshold=threshold)
    return codes, absmax, torch.zeros(0, dtype=torch.long) if columns is None else columns


def against_float64(
    linear: nn.Linear, x: Tensor, quantize: Quantize, layer_of: Callable[[nn.Linear], nn.Module]
) -> list[tuple[str, str, str]]:
    """How far our output and bitsandbytes' are from the same formula in float64, by input format."""
    linear = copy.deepcopy(linear).cpu().float()
    ours, theirs = layer_of(linear), their_layer(linear)
    codes_w, absmax_w, _ = quantize(linear.weight.data.half(), float("inf"))
    B, t = codes_w.double(), absmax_w.double()
    rows = []
    for dtype in (torch.float32, torch.float16, torch.bfloat16):
        # The same values in every format: what they are after the cast to 8 bits of mantissa.
        values = x.bfloat16().to(dtype)
        codes, absmax, columns = quantize(values[0], THRESHOLD)
        reference = (codes.double() @ B.T) * (absmax.double()[:, None] * t / 127**2)
        reference += values[0, :, columns].double() @ (B[:, columns] * (t / 127)[:, None]).T
        size = reference.square().mean().sqrt()
        outputs = (ours(values)[0], theirs(values.clone())[0])
        gaps = [(y.double() - reference).square().mean().sqrt() / size for y in outputs]
        rows.append((str(dtype)[6:], *(f"{gap:.1e}" for gap in gaps)))
    return rows


# --- whole models -------------------------------------------------------------------------------


def second_model(settings: Settings, model: PreTrainedModel) -> tuple[str, PreTrainedModel]:
    """Name and FP32 copy of the model for twins and ladder: this one, or the default if it is large.

    Twins and ladder hold several copies; only a small model has the room.
    """
    if count_parameters(models.config_of(settings.model)) > LARGEST_TWIN:
        print(f"{settings.model} is large; from here on it is smollm2-135m, in FP32")
        return "smollm2-135m", models.load_model("smollm2-135m", "fp32", settings.device)
    if next(model.parameters()).dtype == torch.float32:
        return settings.model, model
    return settings.model, models.load_model(settings.model, "fp32", settings.device)


def side_by_side(
    results: Results,
    tokenizer: PreTrainedTokenizerBase,
    loaders: Mapping[str, Callable[[], nn.Module]],
    prompt: str,
    new_tokens: int,
    end: Sequence[int],
) -> list[nn.Module]:
    """Load each model, let it answer, and show text, bytes, loading and time per token in a table.

    Time per token is that of `new_tokens` tokens whatever they are, in rounds that take turns.
    """
    loaded, loading = {}, {}
    for name, load in loaders.items():
        begun = time.perf_counter()
        loaded[name] = load()
        loading[name] = time.perf_counter() - begun
    device = next(next(iter(loaded.values())).parameters()).device
    asked = prompt_tokens(tokenizer, prompt).to(device)
    # The first answers also warm up.
    answers = {n: generate(m, asked, new_tokens, end=end)[0] for n, m in loaded.items()}
    spent: dict[str, list[float]] = {name: [] for name in loaded}
    for _ in range(ROUNDS):
        for name, model in loaded.items():
            begun = time.perf_counter()
            generate(model, asked, new_tokens)
            spent[name].append(1000 * (time.perf_counter() - begun) / new_tokens)
    rows = []
    for name, model in loaded.items():
        text = tokenizer.decode(answers[name][asked.shape[1] :], skip_special_tokens=True)
        bytes_, times = weight_memory(model), spent[name]
        results.record(f"side by side.{name}.bytes", bytes_ / 1e6, "MB", kind="exact")
        results.record(f"side by side.{name}.loading", loading[name], "s")
        middle, low, high = float(np.median(times)), min(times), max(times)
        results.record(f"side by side.{name}.per token", middle, "ms", low=low, high=high, n=ROUNDS)
        per_token = f"{middle:.0f} ms ({low:.0f} to {high:.0f})"
        rows.append(
            (name, text.strip(), f"{bytes_ / 1e6:.0f} MB", f"{loading[name]:.1f} s", per_token)
        )
    header = ("model", prompt, "weights", "loading", f"time per token, median of {ROUNDS}")
    show_table(header, rows, right=False)
    return list(loaded.values())


def twins_apart(
    results: Results, name: str, model: PreTrainedModel, twin: nn.Module, tokens: Tensor
) -> float:
    """KL divergence between 8-bit models that ought to be the same, as a table.

    `model`: the original; `twin`: it with our layers. Returns the divergence of the nudged twin over
    that of the original.
    """
    device = next(model.parameters()).device
    nudged = copy.deepcopy(twin)
    for layer in nudged.modules():
        if hasattr(layer, "SCB"):
            layer.SCB *= 1 + 1e-6
    theirs = copy.deepcopy(model)
    for path, linear in linear_layers(model).items():
        parent, _, child = path.rpartition(".")
        setattr(theirs.get_submodule(parent), child, their_layer(linear, str(device)))
    speakers = {
        "our int8, nudged": nudged,
        "bitsandbytes' layers": theirs,
        "bitsandbytes": models.load_model(name, "int8", device.type),
        "original": model,
    }
    ours, rows, apart = _log_p(twin, tokens), [], {}
    for other, speaker in speakers.items():
        log_p = _log_p(speaker, tokens)
        apart[other] = perplexity.divergence(log_p, ours).mean().item()
        same = (log_p.argmax(-1) == ours.argmax(-1)).float().mean().item()
        rows.append((f"our int8 and {other}", f"{apart[other]:.4f}", f"{same:.1%}"))
        results.record(f"twins.our int8 and {other}", apart[other], "nats", n=tokens.shape[1])
    header = ("pair", f"KL divergence, nats, mean of {tokens.shape[1]} tokens", "same next token")
    show_table(header, rows)
    return apart["our int8, nudged"] / apart["original"]


def _log_p(model: nn.Module, tokens: Tensor) -> Tensor:
    return _logits(model, tokens)[0].float().log_softmax(-1)


def _logits(model: nn.Module, tokens: Tensor) -> Tensor:
    """(B, T, V), of Hugging Face's model or of our own LLaMA."""
    with torch.inference_mode():
        out = model(tokens)
    return out if isinstance(out, Tensor) else out.logits


def neighbours(
    model: nn.Module, twin: nn.Module, pieces: Tensor, thresholds: Sequence[float]
) -> dict[float, list[dict[str, Any]]]:
    """How far a neighbour or a continuation moves the distribution after a prompt, by threshold.

    `pieces`: (N + 1, T); each prompt's neighbour, and continuation, is the next piece. For each
    prompt: KL divergence from the answer by itself ("neighbour", "continuation"), whether the next
    token changes ("... flips"), and "error", the divergence of the answer by itself from the
    unquantized model.
    """
    last = pieces.shape[1] - 1

    def after(speaker: nn.Module, rows: Tensor) -> Tensor:
        return _logits(speaker, rows)[0, last].float().log_softmax(-1)

    true = [after(model, piece[None]) for piece in pieces[:-1]]
    effects: dict[float, list[dict[str, Any]]] = {}
    for threshold in thresholds:
        _set_threshold(twin, threshold)
        effects[threshold] = entries = []
        for mine, next_one, original in zip(pieces[:-1], pieces[1:], true, strict=True):
            alone = after(twin, mine[None])
            entry: dict[str, Any] = {"error": perplexity.divergence(original, alone).item()}
            changed = {
                "neighbour": after(twin, torch.stack([mine, next_one])),
                "continuation": after(twin, torch.cat([mine, next_one])[None]),
            }
            for kind, log_p in changed.items():
                entry[kind] = perplexity.divergence(alone, log_p).item()
                entry[f"{kind} flips"] = bool(log_p.argmax() != alone.argmax())
            entries.append(entry)
    _set_threshold(twin, THRESHOLD)
    return effects


def _set_threshold(twin: nn.Module, threshold: float) -> None:
    """0 switches the decomposition off, as in bitsandbytes: no magnitude is infinite."""
    for layer in twin.modules():
        if hasattr(layer, "SCB"):
            layer.threshold = threshold or float("inf")


def record_neighbours(
    results: Results, effects: Mapping[float, Sequence[Mapping[str, Any]]]
) -> None:
    """Keep the median of each effect at each threshold."""
    for threshold, entries in effects.items():
        for kind in ("neighbour", "continuation", "error"):
            middle = float(np.median([entry[kind] for entry in entries]))
            results.record(f"batch.{kind}.{threshold:g}", middle, "nats", n=len(entries))


# --- the ladder ---------------------------------------------------------------------------------

# Their differences are thousandths of a nat: every window on every grid. The others take turns.
FINE = (
    "vector-wise",
    LLM_INT8,
    "vector-wise, random columns",
    "vector-wise, columns of down_proj",
    "vector-wise, columns of the others",
    "vector-wise, own outliers",
    "vector-wise, original weights",
    "vector-wise, SmoothQuant",
)
# Under the rung that they belong to: from which rung, to which.
PAIRS = {
    "absmax": (
        ("absmax", "absmax, random columns"),
        ("absmax", "absmax, another token"),
        ("absmax", "absmax, first token"),
        ("absmax", "absmax + decomposition"),
    ),
    "vector-wise": (
        ("vector-wise", "vector-wise, random columns"),
        ("vector-wise", "vector-wise, columns of down_proj"),
        ("vector-wise", "vector-wise, columns of the others"),
        ("vector-wise", LLM_INT8),
        ("vector-wise, random columns", LLM_INT8),
    ),
    LLM_INT8: (
        (LLM_INT8, "vector-wise, own outliers"),
        (LLM_INT8, "vector-wise, original weights"),
        (LLM_INT8, "vector-wise, SmoothQuant"),
    ),
}
# The controls, and what LLM.int8() still loses against FP32.
COMPARISONS = sum(len(pairs) for pairs in PAIRS.values()) + 1
TOGETHER = 1 - 0.05 / COMPARISONS  # of each interval, so that all hold at 95 % (Bonferroni)


@dataclass(frozen=True)
class Change:
    """Mean change of the loss, in nats per token, with an interval over windows and grids."""

    mean: float
    low: float
    high: float
    windows: int
    grids: int

    @property
    def decided(self) -> str:
        """The one rule: "lower" or "higher" where the interval leaves out zero, else "undecided"."""
        return "lower" if self.high < 0 else "higher" if self.low > 0 else "undecided"

    def __str__(self) -> str:
        return f"{self.mean:+.4f} [{self.low:+.4f}, {self.high:+.4f}]"


def change_over_both(differences: np.ndarray, confidence: float = 0.95) -> Change:
    """From paired differences (grids, windows): both are drawn, and both count in the interval.

    Every window on every grid: the squared standard errors of the means over windows and over grids
    are added; Student's t has Satterthwaite's degrees of freedom (1946). That is a little too wide,
    never too narrow: what windows and grids have in common is counted twice. One grid gives an
    interval over windows only. NaN where a window did not meet a grid (they took turns): each grid
    has windows of its own then, so the means of the grids are independent, and Student's t is taken
    over them.
    """
    differences = np.atleast_2d(differences)
    differences = differences[~np.isnan(differences).all(1)]
    grids, windows = differences.shape
    if np.isnan(differences).any():
        means = np.nanmean(differences, 1)
        mean, low, high = mean_interval(means, confidence)
        return Change(mean, low, high, windows, grids)
    squared = [differences.mean(0).var(ddof=1) / windows]
    if grids > 1:
        squared.append(differences.mean(1).var(ddof=1) / grids)
    free = [windows - 1, grids - 1]
    total = sum(squared)
    if total == 0:
        half = 0.0
    else:
        freedom = total**2 / sum(s**2 / f for s, f in zip(squared, free, strict=False))
        half = stats.t.ppf((1 + confidence) / 2, freedom) * total**0.5
    mean = differences.mean()
    return Change(float(mean), float(mean - half), float(mean + half), windows, grids)


@dataclass(frozen=True)
class Climbed:
    """Losses of every rung, (grids, windows); NaN where a window did not meet a grid."""

    nll: Mapping[str, np.ndarray]
    kept: Mapping[str, float | None]

    def change(self, one: str, two: str, confidence: float = TOGETHER) -> Change:
        """From rung `one` to rung `two`, paired: the same windows on the same grids.

        FP32 has no grid: it stands for itself on each of them.
        """
        return change_over_both(self.nll[two] - self.nll[one], confidence)

    def first_grid(self, one: str, two: str) -> Change:
        """The same on the grid that is not moved, which is bitsandbytes'; 95 % over windows."""
        return change_over_both(self.nll[two][:1] - self.nll[one][:1])


def climb_all(
    results: Results,
    settings: Settings,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    scored: str,
    other: str,
) -> Climbed:
    """The whole ladder. Windows begin as the tokenizer begins a text; `other` calibrates."""
    start = tokenizer("")["input_ids"]
    device = next(model.parameters()).device

    def cut(text: str, count: int) -> Tensor:
        ids = tokenizer(text, add_special_tokens=False)["input_ids"]
        return perplexity.windows(ids, settings.window, count, start).to(device)

    windows = cut(scored, settings.windows)
    different = windows[:, 0].unique().numel()
    print(f"{len(windows)} windows, which begin with {different} different tokens")
    absmax = channel_absmax(model, cut(other, settings.calibration_windows), linear_layers(model))
    every = {**RUNGS, **CONTROLS}
    fine = {name: every[name] for name in FINE}
    in_turns = {name: every[name] for name in every if name not in FINE and name != "FP32"}
    runs = climb(model, windows, {"FP32": every["FP32"]}, absmax, results.stage)
    runs |= climb(model, windows, fine, absmax, results.stage, SHIFTS)
    runs |= climb(model, windows, in_turns, absmax, results.stage, SHIFTS, in_turns=True)
    nll = {name: np.array(run["nll"], float) for name, run in runs.items()}
    climbed = Climbed(nll, {name: run["kept"] for name, run in runs.items()})

    def record(name: str, change: Change) -> None:
        spread = {"low": change.low, "high": change.high, "n": change.windows}
        results.record(name, change.mean, "nats", **spread)

    for name, share in climbed.kept.items():
        record(f"ladder.{name}", climbed.change("FP32", name, 0.95))
        if share is not None:
            results.record(f"ladder.{name}.kept", 100 * share, "%")
    for one, two in (pair for pairs in PAIRS.values() for pair in pairs):
        record(f"controls.{one} to {two}", climbed.change(one, two))
    record("ladder.first grid", climbed.first_grid("FP32", LLM_INT8))
    return climbed


def ladder_table(climbed: Climbed) -> None:
    """Perplexity, change of the loss and share kept of every rung, on all windows and grids."""
    base = climbed.nll["FP32"].mean()
    rows = []
    for name, share in climbed.kept.items():
        change = climbed.change("FP32", name, 0.95)
        loss = base + change.mean
        kept = "" if share is None else f"{share:.3%}"
        pairs = np.isfinite(climbed.nll[name]).sum()
        rows.append((name, f"{loss:.4f}", f"{np.exp(loss):.2f}", str(change), kept, str(pairs)))
    header = ("rung", "loss", "perplexity", "change of loss, nats, 95 % interval", "kept", "passes")
    show_table(header, rows)


def square_table(climbed: Climbed) -> str:
    """A scale per row or not, by decomposition or not, as a table; and what each repairs, in words.

    The weights have one scale per tensor in all four.
    """
    rows, damage = [], climbed.change("FP32", "absmax").mean
    repaired = []
    for label, name in (("one per tensor", "absmax"), ("one per row", "row-wise")):
        changes = [climbed.change("FP32", n, 0.95) for n in (name, f"{name} + decomposition")]
        rows.append((label, *map(str, changes)))
        repaired += [
            climbed.change("absmax", n).mean / -damage for n in (name, f"{name} + decomposition")
        ]
    show_table(("scale of the activations", "no decomposition", "decomposition at 6.0"), rows)
    _, columns, scales, both = repaired
    said = (
        f"Repaired of what absmax loses: by a scale per row {scales:.0%}, by the decomposition "
        f"{columns:.0%}, by both {both:.0%}."
    )
    return f"{said} So they mend mostly the same damage." if scales + columns - both > 0.5 else said


def control_table(climbed: Climbed, base: str) -> None:
    """What each control of a rung changes; the intervals of all controls hold together."""
    rows = []
    for one, two in PAIRS[base]:
        change, share = climbed.change(one, two), climbed.kept[two]
        name = two if one == base else f"{two}, instead of {one}"
        kept = "" if share is None else f"{share:.3%}"
        rows.append((name, str(change), change.decided, kept))
    header = (f"instead of {base}", "change of loss, nats", "the loss is", "kept")
    show_table(header, rows)


def verdict_on_decomposition(climbed: Climbed, model: str, parameters: float) -> Verdict:
    """Does the decomposition restore the quality of full precision? By the rule of the controls.

    The claim is about large models: a smaller one is measured, and decides nothing about it.
    """
    left, gap = climbed.change("FP32", LLM_INT8), climbed.change("vector-wise", LLM_INT8)
    before, restored, papers = (
        climbed.change("FP32", name, 0.95)
        for name in ("vector-wise", LLM_INT8, "vector-wise, original weights")
    )
    measured = (
        f"Against FP32, means over {left.windows} windows and {left.grids} grids, intervals as in the "
        f"ladder: vector-wise {before} nats; with decomposition and restored weights {restored}; with "
        f"original weights, as in the paper, {papers}. From vector-wise to decomposition {gap}, an "
        f"interval as in the controls. On the first grid only, which is bitsandbytes', LLM.int8() is "
        f"at {climbed.first_grid('FP32', LLM_INT8)} (95 %, over windows)."
    )
    part = {
        "lower": "The decomposition restores a part of the loss",
        "higher": "The decomposition makes the loss larger",
        "undecided": "Whether the decomposition restores a part of the loss is undecided",
    }[gap.decided]
    lost = left.decided == "higher"
    rest = "a loss is left" if lost else "no loss that is left can be told from zero"
    here = f"{part}, and {rest}, in {model} on one text."
    if parameters < LARGE:
        because = (
            "The claim is about large models, whose outlier features stand in all layers: by the paper "
            f"from 6.7 billion parameters on. This one is smaller. {here} (The paper's smallest, of 125 "
            "million, kept a loss, too: perplexity 25.65 became 25.83.)"
        )
        return measured, "not testable here", because
    return measured, "fails here" if lost else "undecided here", here


def spent_noise(x: Tensor, kept: Tensor) -> float:
    """Noise of int8 codes with a scale per row, over all rows, where `kept` values are left out."""
    left = x.masked_fill(kept, 0)
    return (left.abs().amax(1) / 127).square().div(12).sum().item() * x.shape[1]


def spent_error(x: Tensor, kept: Tensor, weight: Tensor) -> float:
    """Relative error of x W^T where `kept` values stay and all others get int8 codes row by row."""
    left = x.masked_fill(kept, 0)
    step = left.abs().amax(1, keepdim=True).clamp(min=1e-12) / 127
    error = ((left / step).round() * step - left) @ weight.T
    return (error.square().mean() / (x @ weight.T).square().mean()).sqrt().item()
