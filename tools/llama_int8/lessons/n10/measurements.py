"""What lesson 10 measures: the steps of a product, sizes of groups, quality and speed of each path."""

import importlib.metadata
import json
import os
import subprocess
import sys
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields
from functools import partial
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import pad
from transformers import PreTrainedTokenizerBase

import llama_int8.models as models
from llama_int8.course.claims import put_on_trial
from llama_int8.data import evaluation_text
from llama_int8.evaluation import perplexity
from llama_int8.lessons.n10 import backends, workshop
from llama_int8.lessons.n10.backends import (
    BASELINE,
    BF16_CALL,
    BF16_SWAPPED,
    ONE_CALL,
    OWN,
    READING,
    SWAPPED,
    WEIGHTS_CALL,
    Case,
)
from llama_int8.measure import latency, memory
from llama_int8.measure.memory import weight_memory
from llama_int8.measure.results import Results
from llama_int8.measure.statistics import PairedDifference, paired_bootstrap
from llama_int8.models.cost import forward_bytes, weight_bytes
from llama_int8.processor import processor
from llama_int8.profiles import Settings
from llama_int8.quantization.cpu import kernels
from llama_int8.quantization.cpu.linear import Int8FastLinear
from llama_int8.quantization.cpu.packing import lost_bits, pack, pack_rows
from llama_int8.quantization.linear_layers import linear_layers, watching
from llama_int8.quantization.precisions import LLM_INT8
from llama_int8.transformer.config import LlamaConfig

YOURS = "W8A8 by token"  # the learner's first version
MUCH = 1.5  # "much faster"
MARGIN = 0.5  # percent of perplexity
WORDS = ("within", "undecided", "outside")  # of that margin, best first
NOISE = 0.1  # no verdict where bf16 differs further from itself, in the mean of the rounds
TIMING = 0.3  # seconds of one timing in the race, about
ONLY_READS = "only reads"
STEPS = [
    "compiler's vectors",
    "packed order",
    "dot instruction",
    "tile of tokens",
    "scale per group",
]
TOO_CLOSE = "too close to call"
FACTORS = ("our product", "one call", "int8")  # the chain from Hugging Face's bf16 on
SIZES = (None, 128, 64, 32, 16)  # inputs that share a scale; None: all of the row
IN_FLOATS = 0  # inputs that share a scale, where an operand is not rounded
APART = ("weights in groups of 32", "activations in groups of 32")  # the other with one scale
PREDICTS = {
    "avx2": "32 int8 products per instruction, added up in pairs",
    "avx512_vnni": "64 products and their sums in one instruction: `vpdpbusd`",
    "avx_vnni": "the same for 32 products: most laptops by Intel since 2021",
    "avx512_bf16": "32 bf16 products per instruction: bf16 is a strong baseline",
    "amx_bf16": "whole tiles of bf16, in PyTorch's own products: bf16 may win every prefill",
    "amx_int8": "whole tiles of int8, used only by PyTorch's own product",
    "avx512_fp16": "arithmetic in FP16, for products that use it; others convert to FP32",
    "asimddp": "ARM: 16 products and their sums in one instruction, `sdot`; both operands signed",
}
Product = Callable[..., Tensor]


# ---- the statistic of every timing


@dataclass(frozen=True)
class Mean:
    """Geometric mean over rounds, with the least and the largest of them.

    Such means of ratios multiply up, as the ratios of one round do. Medians need not.
    """

    mean: float
    low: float
    high: float
    n: int


def mean_over_rounds(values: np.ndarray) -> Mean:
    """Geometric mean, least and largest of values above zero, one per round."""
    values = np.asarray(values, np.float64)
    low, high = float(values.min()), float(values.max())
    mean = float(np.exp(np.log(values).mean()))
    return Mean(min(max(mean, low), high), low, high, values.size)  # rounding must not leave them


def ratio_of(one: Mean) -> str:
    """A ratio's mean, with its least and its largest round."""
    return f"{one.mean:.2f}x [{one.low:.2f}, {one.high:.2f}]"


# ---- the machine, and bytes


def features() -> list[list[str]]:
    """Rows of the instruction sets that matter here: name, yes / no / unknown, what it gives."""
    there = kernels.cpu_features()
    known = processor().features
    rows = []
    for name, meaning in PREDICTS.items():
        absent = sys.platform == "linux" or known.get(name) is False
        rows.append([name, "yes" if name in there else "no" if absent else "unknown", meaning])
    return rows


def multiplies() -> str:
    """A sentence: which code multiplies here, and why no faster one."""
    choice = kernels.chosen()
    if choice.library is None:
        return (
            f"Our kernel: plain PyTorch, slowly ({choice.reason}). Your C++ is not compiled: "
            "PyTorch computes the same numbers in its place, and every line you write passes."
        )
    return f"Our kernel, and your C++: {choice.name}." + (
        f" Not a faster version: {choice.reason}." if choice.reason else ""
    )


def bytes_of_formats(config: LlamaConfig) -> dict[str, Any]:
    """Bytes of the weights by format: held, and read for a token."""
    return {p: weight_bytes(config, p) for p in ("fp32", "bf16", "int8", "int8-fast")}


def kernel_rates(results: Results) -> dict[int, float]:
    """{threads: operations/s of our own int8 product for 1,024 tokens}, its scales included."""
    size, rates = 1024, {}
    layer = Int8FastLinear.from_linear(nn.Linear(size, size, bias=False))
    x = torch.randn(size, size).bfloat16()
    for count in backends.thread_counts():
        with backends.threads(count):
            run = latency.repeated(partial(layer, x), 1)
            rates[count] = 2 * size**3 / min(run()["call"] for _ in range(6))
        name = f"throughput.our kernel.{backends.thread_word(count)}"
        results.record(name, rates[count] / 1e9, "GOP/s", kind="timing")
    return rates


def without_tiles(
    results: Results, roof: Mapping[int, tuple[float, dict[str, float]]]
) -> tuple[float, float] | None:
    """Operations/s of PyTorch's int8 product on one thread: as it is, and held to AVX-512 VNNI.

    A roof is the best run: one that is faster here than in `roof` replaces it there. None where the
    processor has no tiles (AMX), so that there is nothing to hold back. oneDNN, which multiplies for
    PyTorch, asks once what it may use: hence processes of their own.
    """
    if "amx_int8" not in kernels.cpu_features():
        return None
    program = (
        "import torch; from llama_int8.measure.latency import matrix_throughput; "
        "torch.set_num_threads(1); print(matrix_throughput('cpu', 'int8', 1024, 5))"
    )
    rates = []
    for allowed in ("DEFAULT", "AVX512_CORE_VNNI"):
        environment = os.environ | {"ONEDNN_MAX_CPU_ISA": allowed}
        done = subprocess.run([sys.executable, "-c", program], env=environment, check=False,
                              capture_output=True, text=True, timeout=120)  # fmt: skip
        if done.returncode:
            return None
        rates.append(float(done.stdout.split()[-1]))
    best = roof[1][1]
    best["int8"] = max(best["int8"], rates[0])
    results.record("throughput.int8.one", best["int8"] / 1e9, "GOP/s")
    results.record("throughput.int8 without AMX.one", rates[1] / 1e9, "GOP/s", kind="timing")
    return best["int8"], rates[1]


def sentence_on_instruction(rates: tuple[float, float] | None) -> str:
    """By which instruction PyTorch multiplies int8 here; `rates`: see `without_tiles`."""
    if rates is None:
        fast = torch.cpu._is_vnni_supported()
        way = "at best the instruction of our kernel" if fast else "FP32, in exact pieces"
        return f"PyTorch's int8 product has no tiles (AMX) here. It uses {way}."
    free, held = rates
    uses = "uses whole tiles (AMX)" if held < 0.8 * free else "gains nothing by tiles (AMX)"
    return (
        f"PyTorch's int8 product {uses} here: {free / 1e9:,.0f} GOP/s on one thread, and "
        f"{held / 1e9:,.0f} when it is held to AVX-512 VNNI, the instruction of our kernel."
    )


# ---- the learner's product, step by step


@dataclass(frozen=True)
class Rate:
    """One step of the product: bytes of weights per second for one token, operations for many."""

    read: Mean  # GB/s
    operations: Mean  # GOP/s


@dataclass(frozen=True)
class Steps:
    """The steps by name, and what a program that only reads reached between them, GB/s."""

    rates: dict[str, Rate]
    reading: float


def time_steps(
    results: Results,
    settings: Settings,
    scalar: Product,
    packed: Product,
    tile: Product,
    grouped: Product,
) -> Steps:
    """Each step of the learner's product on one thread, in turns, recorded.

    The weights are held in so many copies that no cache hides the memory, and beside them an array
    of the same size is only read.
    """
    outputs, inputs = models.config_of(settings.layers_of).linear_shapes()["q_proj"]
    outputs, inputs = min(1024, outputs) // 32 * 32, inputs // 32 * 32
    generator = torch.Generator().manual_seed(0)
    weight = torch.randint(-127, 128, (outputs, inputs), generator=generator, dtype=torch.int8)
    copies = max(1, settings.layer_bytes // weight.numel())
    rows, blocks = ([of.clone() for _ in range(copies)] for of in (weight, pack(weight)))
    of_weights = pack_rows(torch.rand(outputs, inputs // 32, generator=generator).bfloat16())

    def steps(codes: Tensor) -> dict[str, Callable[[int], Tensor]]:
        of_codes = torch.rand(len(codes), inputs // 32, generator=generator)
        many = len(codes)

        def with_vectors(n: int) -> Tensor:
            with workshop.compilers_vectors():
                return scalar(codes, rows[n])

        def packed_with_vectors(n: int) -> Tensor:
            with workshop.compilers_vectors():
                return packed(codes, blocks[n])

        return {
            "1 scalar loop": lambda n: scalar(codes, rows[n]),
            "1 the same, compiler's vectors": with_vectors,
            "2 packed order": lambda n: packed(codes, blocks[n]),
            "2 the same, compiler's vectors": packed_with_vectors,
            "3 dot instruction": lambda n: tile(codes, blocks[n], 1),
            "4 tile of tokens": lambda n: tile(codes, blocks[n], many),
            "5 scale per group": lambda n: grouped(codes, of_codes, blocks[n], of_weights, many),
        }

    with backends.threads(1):
        found = {}
        reader = latency.MemoryReader(copies * weight.numel())
        reader.read()  # finds out how it is fastest
        for tokens in (1, 64):
            shape = (tokens, inputs)
            codes = torch.randint(-127, 128, shape, generator=generator, dtype=torch.int8)
            each = copies if tokens == 1 else 1
            runs = {name: _over(step, each) for name, step in steps(codes).items()}
            if tokens == 1:
                runs[ONLY_READS] = latency.repeated(reader.read, 1)
            times = latency.interleaved(runs, settings.layer_rounds)
            found[tokens] = {name: one["call"] for name, one in times.items()}
    reading = mean_over_rounds(reader.data.nbytes / found[1].pop(ONLY_READS) / 1e9).mean
    results.record("step.read.only reading", reading, "GB/s", kind="timing")
    del reader
    memory.release()
    return Steps(_recorded(results, found, outputs * inputs), reading)


def _over(step: Callable[[int], Tensor], copies: int) -> Callable[[], dict[str, float]]:
    run = latency.repeated(lambda: [step(n) for n in range(copies)], 1)
    return lambda: {"call": run()["call"] / copies}


def _recorded(
    results: Results, found: Mapping[int, Mapping[str, np.ndarray]], weights: int
) -> dict[str, Rate]:
    rates = {}
    for name in found[1]:
        read = mean_over_rounds(weights / found[1][name] / 1e9)
        operations = mean_over_rounds(2 * 64 * weights / found[64][name] / 1e9)
        rates[name] = Rate(read, operations)
        for kind, one, unit in (("read", read, "GB/s"), ("rate", operations, "GOP/s")):
            ends = {"low": one.low, "high": one.high, "n": one.n}
            results.record(f"step.{kind}.{name}", one.mean, unit, kind="timing", **ends)
    return rates


# ---- what sharing a scale costs


@dataclass(frozen=True)
class Cost:
    """A scheme's distance from FP32: KL with its interval in nats, same likeliest token, bytes."""

    kl: PairedDifference
    same: float
    bytes_per_weight: float
    by_window: np.ndarray  # KL of each, so that two schemes can be paired


def cost_of_sharing(
    results: Results, model: nn.Module, windows: Tensor, rounded: Callable[[Tensor, int], Tensor]
) -> dict[str, Cost]:
    """What rounding costs by who shares a scale, for the linear layers but the output layer.

    `rounded(x, size)`: the learner's function; here it gets rows filled up to whole groups.
    """
    linears = linear_layers(model)
    schemes: dict[str, tuple[int | None, int | None]] = {  # of weights, of activations
        "weights only, one scale per row": (None, IN_FLOATS),
        "activations only, one scale per token": (IN_FLOATS, None),
    }
    for size in SIZES:
        name = f"groups of {size}" if size else "one scale per row and token"
        schemes[name] = (size, size)
    schemes |= dict(zip(APART, ((32, None), (None, 32)), strict=True))
    with torch.inference_mode():
        reference = [model(window[None]).logits[0].log_softmax(-1) for window in windows]
        found = {}
        for name, (weights, activations) in schemes.items():
            with _rounding(linears, weights, activations, rounded):
                found[name] = _distances(model, windows, reference)
    costs = {}
    for name, (kl, same) in found.items():
        size = schemes[name][0]  # of the weights
        change = paired_bootstrap(np.zeros_like(kl), kl)
        costs[name] = Cost(change, same, 1 + 2 / size if size else 1.0, kl)
        ends = {"low": change.low, "high": change.high, "n": change.n}
        results.record(f"sharing.kl.{name}", change.mean, "nats", **ends)
    return costs


@contextmanager
def _rounding(
    linears: Mapping[str, nn.Linear],
    weights: int | None,
    activations: int | None,
    rounded: Callable[[Tensor, int], Tensor],
) -> Iterator[None]:
    """Within the block the layers compute with operands rounded in groups of so many inputs."""

    def restore(values: Tensor, size: int | None) -> Tensor:
        rows, inputs = values.flatten(0, -2), values.shape[-1]
        step = size or inputs
        filled = pad(rows, (0, -inputs % step))
        return rounded(filled, step)[:, :inputs].reshape(values.shape)

    kept = {name: linear.weight.data for name, linear in linears.items()}
    hooks = []
    try:
        for linear in linears.values():
            if weights != IN_FLOATS:
                linear.weight.data = restore(linear.weight.data, weights)
            if activations != IN_FLOATS:
                hooks.append(
                    linear.register_forward_pre_hook(lambda _, x: (restore(x[0], activations),))
                )
        yield
    finally:
        for hook in hooks:
            hook.remove()
        for name, linear in linears.items():
            linear.weight.data = kept[name]


def _distances(
    model: nn.Module, windows: Tensor, reference: Sequence[Tensor]
) -> tuple[np.ndarray, float]:
    """KL from the reference for each window, and the share of tokens with the same likeliest next."""
    kl, same = [], []
    for window, likely in zip(windows, reference, strict=True):
        found = model(window[None]).logits[0].log_softmax(-1)
        kl.append(perplexity.divergence(likely, found).mean().item())
        same.append((likely.argmax(-1) == found.argmax(-1)).double().mean().item())
    return np.array(kl), float(np.mean(same))


# ---- quality of each path


@dataclass(frozen=True)
class Quality:
    """A path beside FP32 and beside bf16, on the same windows."""

    kl: PairedDifference  # nats, from FP32
    same: float  # share of tokens with FP32's likeliest next one
    perplexity: PairedDifference | None  # difference of NLL from bf16's; None for bf16

    @property
    def word(self) -> str:
        """Whether the whole interval is within the margin; one of `WORDS`."""
        if self.perplexity is None:
            return "within"
        low, _, high = (100 * np.expm1(v) for v in _ends(self.perplexity))
        if low > -MARGIN and high < MARGIN:
            return "within"
        return "outside" if low > MARGIN or high < -MARGIN else "undecided"

    @property
    def change(self) -> str:
        """Of perplexity, in percent with its interval, and whether it is within the margin."""
        if self.perplexity is None:
            return "-"
        low, middle, high = (100 * np.expm1(v) for v in _ends(self.perplexity))
        return f"{middle:+.2f} % [{low:+.2f}, {high:+.2f}], {self.word}"


def _ends(change: PairedDifference) -> tuple[float, float, float]:
    return change.low, change.mean, change.high


def quality_of_paths(
    results: Results, runners: Mapping[str, Any], paths: Sequence[str], windows: Tensor
) -> dict[str, Quality]:
    """KL from FP32, agreement, and change of perplexity from bf16, of each path, recorded."""
    scores: dict[str, list[tuple[float, float, float]]] = {path: [] for path in paths}
    with torch.inference_mode():
        for some in windows.split(8):
            reference = log_likelihoods(runners["fp32"], some)
            for path in paths:
                found = log_likelihoods(runners[path], some)
                for window, first, second in zip(some, reference, found, strict=True):
                    nll = -second[:-1].gather(1, window[1:, None]).double().mean().item()
                    kl = perplexity.divergence(first, second).mean().item()
                    same = (first.argmax(-1) == second.argmax(-1)).double().mean().item()
                    scores[path].append((nll, kl, same))
    measured = {path: np.array(rows) for path, rows in scores.items()}
    qualities = {}
    for path, rows in measured.items():
        kl = paired_bootstrap(np.zeros(len(rows)), rows[:, 1])
        same, change = float(rows[:, 2].mean()), None
        ends = {"low": kl.low, "high": kl.high, "n": kl.n}
        results.record(f"kl.{path}", kl.mean, "nats", **ends)
        results.record(f"same_token.{path}", 100 * same, "%")
        if path != BASELINE:
            change = paired_bootstrap(measured[BASELINE][:, 0], rows[:, 0])
            low, middle, high = (100 * np.expm1(v) for v in _ends(change))
            results.record(f"perplexity_change.{path}", middle, "%", low=low, high=high, n=change.n)
        qualities[path] = Quality(kl, same, change)
    return qualities


def log_likelihoods(runner: Any, windows: Tensor) -> Tensor:
    """Log-probabilities (B, T, V) in FP32."""
    return runner.logits(windows).float().log_softmax(-1)


# ---- the race


def race_cases(settings: Settings) -> list[Case]:
    """Prefill of one prompt, decode by context and by batch, on all threads."""
    every, short = backends.thread_counts()[-1], settings.contexts[0]
    return [
        Case("prefill", 1, settings.prompt_tokens, every),
        *(Case("decode", 1, context, every) for context in settings.contexts),
        *(Case("decode", batch, short, every) for batch in settings.batches[1:]),
    ]


def race_paths(
    results: Results,
    settings: Settings,
    runners: Mapping[str, Any],
    others: Mapping[str, Any],
    config: LlamaConfig,
) -> dict[str, dict[str, list[float]]]:
    """Seconds of all paths in turns, see `backends.race`; bf16 is raced twice, also as `AGAIN`.

    `others`, and the readers, only in the first two cases: no verdict needs them.
    """
    cases = race_cases(settings)
    few = {**runners, backends.AGAIN: runners[BASELINE]}
    every = few | {**others} | backends.readers(config, list(runners))
    how = {"steps": settings.decode_tokens, "rounds": settings.rounds, "least": TIMING}

    def run() -> dict[str, dict[str, list[float]]]:
        first = backends.race(every, cases[:2], vocabulary=config.vocab_size, **how)
        return first | backends.race(few, cases[2:], vocabulary=config.vocab_size, **how)

    return results.stage("race of all paths, bf16 twice", run)


def name_of(case: Case) -> str:
    """The case in words."""
    if case.phase == "prefill":
        return f"prefill of {case.tokens} tokens"
    many = f"{case.batch} sequence{'s' if case.batch > 1 else ''}"
    return f"decode, {many} after {case.tokens} tokens"


@dataclass(frozen=True)
class Ruling:
    """One case: the best int8 that keeps the quality against the best of FP32, FP16 and bf16."""

    case: Case
    int8: str
    full: str
    ratio: Mean  # seconds of the best full precision over those of the best int8
    usual: Mean  # Hugging Face's bf16 over LLM.int8(), both in its calls
    again: Mean  # Hugging Face's bf16 over itself: the noise
    quality: str  # of the int8 path, one of `WORDS`

    @property
    def noisy(self) -> bool:
        """Whether bf16 differs from itself by more than `NOISE`."""
        return not 1 / (1 + NOISE) <= self.again.mean <= 1 + NOISE

    @property
    def word(self) -> str:
        """Whether int8 is much faster, by all rounds, and within the margin of quality."""
        word = _much(self.ratio.low, self.ratio.high)
        poor = word == "holds" and (self.quality != "within" or self.upper_bound)
        return "undecided" if self.noisy or poor else word

    @property
    def upper_bound(self) -> bool:
        """Whether the control leaves an instruction of this processor for bf16 unused."""
        there = {"avx512_bf16", "amx_bf16"} & set(kernels.cpu_features())
        unused = there - {"avx512_bf16"} if kernels.multiplies_bf16() else there
        return self.full == BF16_CALL and bool(unused)

    def row(self) -> list[str]:
        """A row of the table: case, ruling, both sides, their ratio, the noise, LLM.int8()."""
        words = {"holds": "much faster", "fails": "not much faster", "undecided": "undecided"}
        inside = self.again.low <= self.ratio.low and self.ratio.high <= self.again.high
        word = "too noisy" if self.noisy else words[self.word]
        return [
            name_of(self.case),
            f"{word}, no difference shown" if inside and not self.noisy else word,
            self.int8 if self.quality == "within" else f"{self.int8} ({self.quality} in quality)",
            self.full,
            f"{ratio_of(self.ratio)}{' (an upper bound)' if self.upper_bound else ''}",
            ratio_of(self.again),
            ratio_of(self.usual),
        ]


def _much(low: float, high: float) -> str:
    """Whether a speed-up is `MUCH`, by its ends."""
    if low > MUCH:
        return "holds"
    return "undecided" if high > MUCH else "fails"


def rule(
    seconds: Mapping[str, Mapping[str, Sequence[float]]],
    cases: Sequence[Case],
    quality: Mapping[str, Quality],
) -> list[Ruling]:
    """The best int8 against the best full precision, for each case; ratios within a round.

    Quality comes first: an int8 path can be the best only where none is better by `WORDS`.
    """
    rulings = []
    for case in cases:
        took = {
            path: np.array(s) for path, s in seconds[case.key].items() if path in backends.PATHS
        }
        words = {p: quality[p].word for p in took if backends.BACKENDS[p].in_8_bits}
        word = min(words.values(), key=WORDS.index)
        int8 = min((p for p in words if words[p] == word), key=_mean_of(took))
        full = min((p for p in took if p not in words), key=_mean_of(took))
        ratio = mean_over_rounds(took[full] / took[int8])
        usual = mean_over_rounds(took[BASELINE] / took[LLM_INT8])
        again = mean_over_rounds(took[BASELINE] / np.array(seconds[case.key][backends.AGAIN]))
        rulings.append(Ruling(case, int8, full, ratio, usual, again, word))
    return rulings


def ruling_rows(rulings: Sequence[Ruling]) -> list[list[str]]:
    """The table of the rulings, with its header."""
    header = ["case", "int8 is", "best int8", "best of 16 bit and FP32", "int8 over it"]
    return [[*header, "bf16 over itself", "LLM.int8() over bf16"], *(r.row() for r in rulings)]


def _mean_of(took: Mapping[str, np.ndarray]) -> Callable[[str], float]:
    return lambda path: mean_over_rounds(took[path]).mean


def on_trial(results: Results, rulings: Sequence[Ruling], config: LlamaConfig) -> None:
    """The hypothesis, its measurement and its verdict, which is about this model."""
    best = [ruling.ratio.mean for ruling in rulings]
    usual = [ruling.usual.mean for ruling in rulings]
    noise = [end for r in rulings for end in (r.again.low, r.again.high)]
    kept = all(ruling.quality == "within" for ruling in rulings)
    by_word = {
        word: [name_of(r.case) for r in rulings if r.word == word]
        for word in ("holds", "undecided", "fails")
    }
    verdict = "fails here"
    if by_word["holds"]:
        verdict = "holds" if len(by_word["holds"]) == len(rulings) else "holds only if"
    elif by_word["undecided"]:
        verdict = "undecided here"
    millions = weight_bytes(config, "bf16").total / 2e6  # two bytes per parameter
    size = f"this model of {millions:,.1f} million parameters"
    because = f"'Much faster' is taken as {MUCH} times, for {size}. True for"
    if verdict == "holds only if":  # the sentence goes on
        because = f"it is {size} in one of these cases, with {MUCH} times as 'much faster'"
    parts = [
        f"{said}: {'; '.join(by_word[word])}."
        for word, said in (
            ("holds", because),
            ("fails", "Not for"),
            ("undecided", "Undecided for"),
        )
        if by_word[word]
    ]
    if not by_word["holds"]:
        parts.insert(0, because.removesuffix(" True for"))
    if any(ruling.upper_bound for ruling in rulings):
        parts.append(f"Over {BF16_CALL} the factors are upper bounds, which decide nothing.")
    put_on_trial(
        results,
        "int8-faster-on-cpu",
        f"{results.model}, all threads, against the best of FP32, FP16 and bf16 in each case: the best "
        f"int8{' within the margin of quality' if kept else ''} {min(best):.2f} to {max(best):.2f} "
        f"times as fast. LLM.int8() against bf16, both in Hugging Face's calls: {min(usual):.2f} to "
        f"{max(usual):.2f} times; bf16 against itself: {min(noise):.2f} to {max(noise):.2f}.",
        verdict,
        " ".join(parts),
    )


@torch.inference_mode()
def written(
    runner: backends.Runner, tokenizer: PreTrainedTokenizerBase, prompt: str, new_tokens: int = 40
) -> str:
    """What a path writes after a prompt, always the likeliest token; the text is read anew each time."""
    start = tokenizer(prompt, return_tensors="pt")["input_ids"]
    ids = start
    for _ in range(new_tokens):
        ids = torch.cat([ids, runner.logits(ids)[:, -1:].argmax(-1)], 1)
    return tokenizer.decode(ids[0, start.shape[1] :])


@dataclass(frozen=True)
class Factors:
    """Speed-ups of one decode case, each of them the mean of ratios within a round."""

    product: Mean  # our bf16 product over PyTorch's, both in Hugging Face's model
    calls: Mean  # one call over Hugging Face's calls, both with our bf16 product
    int8: Mean  # int8 over bf16, both in one call
    one_call: Mean  # bf16 in one call over Hugging Face's bf16: `product` and `calls`
    whole: Mean  # int8 in one call over Hugging Face's bf16: all of them
    int8_swapped: Mean  # int8 over bf16, both our products in Hugging Face's model
    calls_int8: Mean  # one call over Hugging Face's calls, both with our int8 product
    stored: Mean  # int8 weights multiplied in FP32 over bf16 weights, both in one call
    multiplied: Mean  # integer products over those; `stored` and `multiplied` are `int8`


def factors(seconds: Mapping[str, Mapping[str, Sequence[float]]], case: Case) -> Factors:
    """The steps from Hugging Face's bf16 to int8 in one call, apart."""
    took = {path: np.array(s) for path, s in seconds[case.key].items()}

    def times(slow: str, fast: str) -> Mean:
        return mean_over_rounds(took[slow] / took[fast])

    return Factors(
        product=times(BASELINE, BF16_SWAPPED),
        calls=times(BF16_SWAPPED, BF16_CALL),
        int8=times(BF16_CALL, ONE_CALL),
        one_call=times(BASELINE, BF16_CALL),
        whole=times(BASELINE, ONE_CALL),
        int8_swapped=times(BF16_SWAPPED, SWAPPED),
        calls_int8=times(SWAPPED, ONE_CALL),
        stored=times(BF16_CALL, WEIGHTS_CALL),
        multiplied=times(WEIGHTS_CALL, ONE_CALL),
    )


def record_factors(results: Results, found: Factors) -> None:
    """Each factor under its own name, for the report."""
    for field in fields(found):
        one = getattr(found, field.name)
        ends = {"low": one.low, "high": one.high, "n": one.n}
        results.record(f"factor.{field.name}", one.mean, "x", kind="timing", **ends)


def mean_speed(seconds: Mapping[str, Mapping[str, Sequence[float]]], case: Case, path: str) -> Mean:
    """Tokens/s; ratios of such means are the means of the ratios within rounds."""
    return mean_over_rounds(backends.tokens_per_second(case, seconds[case.key][path]))


def over_bf16(seconds: Mapping[str, Mapping[str, Sequence[float]]], case: Case, path: str) -> Mean:
    """Speed over Hugging Face's bf16, within a round."""
    took = seconds[case.key]
    return mean_over_rounds(np.array(took[BASELINE]) / np.array(took[path]))


def two_by_two(
    seconds: Mapping[str, Mapping[str, Sequence[float]]], case: Case, found: Factors
) -> list[list[str]]:
    """Rows: calls and product, tokens/s of bf16 and int8, and int8 over bf16; then the calls' factor."""

    def speed(path: str) -> str:
        return f"{mean_speed(seconds, case, path).mean:.1f}"

    return [
        ["Hugging Face's calls, PyTorch's product", speed(BASELINE), "-", "-"],
        ["Hugging Face's calls, our product", speed(BF16_SWAPPED), speed(SWAPPED),
         ratio_of(found.int8_swapped)],
        ["one call, our product", speed(BF16_CALL), speed(ONE_CALL), ratio_of(found.int8)],
        ["one call over Hugging Face's, our product", ratio_of(found.calls),
         ratio_of(found.calls_int8), "-"],
    ]  # fmt: skip


# ---- peers


def load_peers(name: str) -> tuple[dict[str, backends.Runner], dict[str, str]]:
    """Other people's int8 for the race, by name; and why one of them does not take part."""
    there, absent = {}, {}
    for peer, make in (
        ("PyTorch, quantize_dynamic", _quantize_dynamic),
        ("torchao, int8 dynamic", _torchao),
    ):
        try:
            runner = backends.HuggingFaceRunner(make(name))
            runner.prefill(torch.ones(1, 2, dtype=torch.long))  # fails here or not at all
            there[peer] = runner
        except ImportError:
            absent[peer] = "not installed"
        except Exception as error:  # what others raise for a model they do not know
            absent[peer] = f"does not run here ({type(error).__name__})"
    return there, absent


def peers(
    results: Results,
    seconds: Mapping[str, Mapping[str, Sequence[float]]],
    cases: Sequence[Case],
    others: Sequence[str],
) -> list[list[str]]:
    """Rows of other people's int8 beside ours, from the same race: tokens/s and ratio to bf16.

    Decode, then prefill. `cases`: prefill first, then decode of one sequence. `others`: see
    `load_peers`.
    """
    prefill, decode = cases[:2]
    named = {  # how each decodes, and how it reads a prompt
        "Hugging Face, bf16": (BASELINE, BASELINE),
        "bitsandbytes, LLM.int8()": (LLM_INT8, LLM_INT8),
        "your W8A8 layer": (YOURS, YOURS),
        "int8-fast, layers swapped": (SWAPPED, SWAPPED),
        "int8-fast, one call per token": (ONE_CALL, OWN),
    } | {name: (name, name) for name in others}
    rows = []
    for name, paths in named.items():
        row = [name]
        for case, path in zip((decode, prefill), paths, strict=True):
            ratio = over_bf16(seconds, case, path)
            row += [f"{mean_speed(seconds, case, path).mean:.1f}", ratio_of(ratio)]
            results.record(f"peer.{case.phase}.{name}", ratio.mean, "x", kind="timing")
        rows.append(row)
    return rows


def sentence_on_peers(
    results: Results,
    seconds: Mapping[str, Mapping[str, Sequence[float]]],
    case: Case,
    others: Sequence[str],
    absent: Mapping[str, str],
) -> str:
    """Other people's int8 against ours in `case`, and which of them did not take part."""
    took = {path: np.array(s) for path, s in seconds[case.key].items()}
    said = [
        f"{name_of(case).capitalize()}: {SWAPPED} runs at "
        f"{ratio_of(mean_over_rounds(took[name] / took[SWAPPED]))} the speed of {name}, {ONE_CALL} "
        f"at {ratio_of(mean_over_rounds(took[name] / took[ONE_CALL]))}."
        for name in others
    ]
    away = [f"{name} ({why})" for name, why in (absent | _onnx_runtime()).items()]
    return " ".join([*said, _llama_cpp(results), f"Not raced: {'; '.join(away)}."])


def _quantize_dynamic(name: str) -> nn.Module:
    """FP32 with PyTorch's own dynamic int8: a scale per tensor for activations."""
    from torch.ao.quantization import quantize_dynamic

    model = models.load_model(name, "fp32", "cpu")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # PyTorch says that it will be removed one day
        return quantize_dynamic(model, {nn.Linear}, dtype=torch.qint8)


def _torchao(name: str) -> nn.Module:
    from torchao.quantization import Int8DynamicActivationInt8WeightConfig, quantize_

    model = models.load_model(name, "bf16", "cpu")
    quantize_(model, Int8DynamicActivationInt8WeightConfig())
    return model


def _onnx_runtime() -> dict[str, str]:
    name = "ONNX Runtime, dynamic int8"
    try:
        version = importlib.metadata.version("onnxruntime")
    except importlib.metadata.PackageNotFoundError:
        return {name: "not installed"}
    return {name: f"version {version} is here, but needs the model in its own format"}


def _llama_cpp(results: Results) -> str:
    """From the benchmark's own run on this model, with its machine, where that lies beside ours."""
    for path in sorted(results.path.parent.parent.glob("*/int8_cpu@*.json")):
        run = json.loads(path.read_text(encoding="utf-8"))
        found = run["measurements"]
        keys = ["ratio.decode.1x32.all", "ratio.prefill.1x512.all"]
        found = [found.get(f"{key}.llama.cpp-Q8_0") for key in keys]
        if run["model"] == results.model and all(found):
            decode, prefill = (f"{one['value']:.2f}x" for one in found)
            return (
                f"llama.cpp's Q8_0 on {run['environment']['machine']}, by the benchmark: {decode} "
                f"Hugging Face's bf16 in decode, {prefill} in prefill."
            )
    return "llama.cpp's Q8_0 was not measured here."


# ---- small helpers of the notebook's cells


def windows_of_text(tokenizer: Any, settings: Settings) -> Tensor:
    """The windows of the package's text on which quality is measured, (N, T)."""
    ids = tokenizer(evaluation_text())["input_ids"]
    return perplexity.windows(ids, settings.window, settings.quality_windows)


def costlier(costs: Mapping[str, Cost]) -> str:
    """The operand that costs more by itself."""
    alone = {name.partition(" ")[0]: cost.kl.mean for name, cost in costs.items() if "only" in name}
    return max(alone, key=lambda name: alone[name])


def sentence_on_sharing(costs: Mapping[str, Cost]) -> str:
    """What groups buy for one operand, for both, and at half the size, and their bytes."""
    whole = costs["one scale per row and token"]
    at = {size: costs[f"groups of {size}"] for size in SIZES if size}
    weights, activations = (costs[name] for name in APART)
    more = paired_bootstrap(activations.by_window, at[32].by_window)
    return (
        f"One scale per row and token: KL {whole.kl.mean:.4f}, the same likeliest token in "
        f"{whole.same:.1%}. Groups of 32 only for activations: {activations.kl.mean:.4f}, for no more "
        f"bytes of weights; only for weights: {weights.kl.mean:.4f}, for "
        f"{weights.bytes_per_weight - 1:.1%} more; for both: {at[32].kl.mean:.4f} and "
        f"{at[32].same:.1%} (paired by window, {more.mean:+.4f} [{more.low:+.4f}, {more.high:+.4f}] "
        f"from only activations). Groups of 16 for both: {at[16].kl.mean:.4f}, for "
        f"{at[16].bytes_per_weight - 1:.1%} more."
    )


def largest_step(steps: Steps) -> str:
    """The step with the largest factor over the fastest before it, for many tokens.

    Too close to call where the next one comes within 10 % of it, or their intervals overlap.
    """
    found = _step_factors(steps)
    second, first = sorted(found, key=lambda name: found[name].mean)[-2:]
    clear = found[first].mean > 1.1 * found[second].mean and found[first].low > found[second].high
    return first if clear else TOO_CLOSE


def _step_factors(steps: Steps) -> dict[str, Mean]:
    """Each of `STEPS` over the fastest before it, for many tokens."""
    fastest, vectors, packed, packed_vectors, *others = (
        rate.operations for rate in steps.rates.values()
    )
    by_step = (vectors, max(packed, packed_vectors, key=_mean), *others)
    factors = {}
    for name, one in zip(STEPS, by_step, strict=True):
        factors[name] = _over_ends(one, fastest)
        fastest = max(fastest, one, key=_mean)
    return factors


def _over_ends(one: Mean, other: Mean) -> Mean:
    """A ratio whose interval goes from the least over the largest to the largest over the least."""
    return Mean(one.mean / other.mean, one.low / other.high, one.high / other.low, one.n)


def _mean(one: Mean) -> float:
    return one.mean


def sentence_on_steps(steps: Steps) -> str:
    """Every step's factor, and what packing by itself does to the compiler's loop."""
    rates = list(steps.rates.values())
    parts = [f"{name} {ratio_of(one)}" for name, one in _step_factors(steps).items()]
    one, many = (
        ratio_of(_over_ends(getattr(rates[3], kind), getattr(rates[1], kind)))
        for kind in ("read", "operations")
    )
    return (
        f"64 tokens, each over the fastest before it: {', '.join(parts)}. Packing by itself, both "
        f"with the compiler's vectors: {one} for one token, {many} for 64."
    )


def largest_factor(seconds: Mapping[str, Mapping[str, Sequence[float]]], case: Case) -> str:
    """Which of `FACTORS` is the largest in every round; where none is, it is too close to call."""
    took = seconds[case.key]
    chain = (BASELINE, BF16_SWAPPED, BF16_CALL, ONE_CALL)
    rounds = np.array([np.array(took[a]) / np.array(took[b]) for a, b in pairwise(chain)])
    largest = set(rounds.argmax(0))  # one for each round
    return FACTORS[int(largest.pop())] if len(largest) == 1 else TOO_CLOSE


def sentence_on_factors(found: Factors) -> str:
    """The factors of which the whole speed-up is made."""
    return (
        f"Int8 in one call over Hugging Face's bf16: {ratio_of(found.whole)}. It is the product of "
        f"three: our product {ratio_of(found.product)}, one call {ratio_of(found.calls)}, int8 "
        f"{ratio_of(found.int8)}. In the other order int8 comes first, with "
        f"{ratio_of(found.int8_swapped)}, and one call gives {ratio_of(found.calls_int8)}."
    )


def sentence_on_baseline(seconds: Mapping[str, Mapping[str, Sequence[float]]], case: Case) -> str:
    """The fastest that Hugging Face's model is without int8, and int8 in one call over that."""
    took = {path: np.array(s) for path, s in seconds[case.key].items()}
    best = min(("fp32", "fp16", BASELINE), key=_mean_of(took))
    over = ratio_of(mean_over_rounds(took[best] / took[ONE_CALL]))
    if best == BASELINE:
        return f"{BASELINE} is Hugging Face's fastest format here: the baseline is its best."
    slower = ratio_of(mean_over_rounds(took[BASELINE] / took[best]))
    return (
        f"{BASELINE} is a weak baseline here: {best} in Hugging Face's model runs at {slower} its "
        f"speed. Over {best}, int8 in one call runs at {over}."
    )


def gain_of_readers(seconds: Mapping[str, Mapping[str, Sequence[float]]], case: Case) -> float:
    """How much higher the measured ceiling of int8-fast is than that of bf16: the fastest rounds."""
    slow, fast = (min(seconds[case.key][f"{READING}{kind}"]) for kind in ("bf16", "int8-fast"))
    return slow / fast


def sentence_on_ceilings(gain: float, stored: Mapping[str, Any]) -> str:
    """What bytes allow from memory, beside the ceilings' own ratio, see `gain_of_readers`."""
    allowed = stored["bf16"].read_per_token / stored["int8-fast"].read_per_token
    why = "."
    if gain > 1.1 * allowed:
        why = ", more than bytes give: a cache holds a larger part of the smaller model."
    return (
        f"From memory, bytes allow int8 {allowed:.2f} times. Here the program that only reads was "
        f"{gain:.2f} times as fast with int8's bytes as with bf16's{why}"
    )


def sentence_on_weights_only(found: Factors) -> str:
    """Int8's factor in two: what is stored in 8 bits, and what is multiplied in 8 bits."""
    adds = "adds to that" if found.multiplied.low > 1 else "is not shown to add to that"
    return (
        f"In one call, int8 weights that are widened and multiplied in FP32 (W8A16's way) run at "
        f"{ratio_of(found.stored)} the speed of bf16 weights; the integer instruction {adds}: "
        f"{ratio_of(found.multiplied)}. The two multiply up to int8's factor."
    )


def sentence_on_profile(
    profiled: Mapping[str, Mapping[str, float]],
    seconds: Mapping[str, Mapping[str, Sequence[float]]],
    case: Case,
) -> str:
    """Milliseconds of a bf16 step in the profile beside those in the race."""
    bar = 1e3 * sum(value for part, value in profiled[BASELINE].items() if part != "count")
    raced = 1e3 * mean_over_rounds(np.array(seconds[case.key][BASELINE])).mean
    return (
        f"A step of {BASELINE}: {bar:.0f} ms in the profile, {raced:.0f} ms in the race. The bar is the "
        "fastest of a few calls at one moment (or the profiled call, if its parts add up to more); "
        "the race has the mean of its rounds."
    )


def sentence_on_bytes(
    found: Factors,
    stored: Mapping[str, Any],
    explained: Callable[[float, float, float], tuple[float, float]],
    gain: float,
) -> str:
    """Int8's factor beside what the bytes allow, by the learner's function, and the ceilings'."""
    read = [stored[name].read_per_token for name in ("bf16", "int8-fast")]
    ends = found.int8.mean, found.int8.low, found.int8.high
    allowed, _ = explained(ends[0], *read)
    rest = Mean(*(explained(ratio, *read)[1] for ratio in ends), found.int8.n)
    return (
        f"Int8 gives {ratio_of(found.int8)}, both in one call. From memory, bytes allow at most "
        f"{allowed:.2f}; the rest is {ratio_of(rest)}. The measured ceilings differ by {gain:.2f}."
    )


def sentence_on_quality(quality: Mapping[str, Quality]) -> str:
    """The int8 path that stays nearest to FP32, and the one that goes furthest."""
    int8 = [path for path in quality if backends.BACKENDS[path].in_8_bits]
    near, far = (end(int8, key=lambda path: quality[path].kl.mean) for end in (min, max))
    least = 1e-9  # a model that rounding does not change
    over = {path: quality[near].kl.mean / max(quality[path].kl.mean, least)
            for path in (BASELINE, BF16_CALL)}  # fmt: skip
    further = quality[far].kl.mean / max(quality[near].kl.mean, least)
    return (
        f"Nearest to FP32 of the int8 paths is {near}, with {over[BASELINE]:.1f} times the KL of bf16 "
        f"in Hugging Face's model and {over[BF16_CALL]:.0f} times that of {BF16_CALL}. Furthest is "
        f"{far}, with {further:.0f} times the KL of {near}. Not within the margin: "
        f"{', '.join(p for p in int8 if quality[p].word != 'within') or 'none'}."
    )


KINDS = {"q_proj": "q, k, v", "o_proj": "o", "gate_proj": "gate, up", "down_proj": "down"}


def bits_lost(model: nn.Module, window: Tensor) -> list[list[str]]:
    """Rows: kind of layer, bits of eight that its groups of 32 inputs lose to the token's scale."""
    lost: dict[str, list[Tensor]] = {}

    def see(name: str, x: Tensor) -> None:
        kind = KINDS.get(name.rpartition(".")[2])
        if kind:
            lost.setdefault(kind, []).append(lost_bits(x[0, 1:]).flatten())  # no first token

    with watching(linear_layers(model), see), torch.inference_mode():
        model(window)
    bits = {kind: torch.cat(parts).numpy() for kind, parts in lost.items()}
    return [[k, f"{np.median(b):.1f}", f"{np.quantile(b, 0.9):.1f}"] for k, b in bits.items()]


Times = Mapping[int, Mapping[str, Mapping[str, Sequence[float]]]]


def time_layers(
    results: Results, settings: Settings, shapes: Mapping[str, tuple[int, int]]
) -> Times:
    """{tokens: {layer: {kind: seconds}}} of single layers, for one token and for 64."""
    often = {"rounds": settings.layer_rounds, "held": settings.layer_bytes}

    def race_of(tokens: int) -> Callable[[], Any]:
        return lambda: backends.race_layers(shapes, tokens, **often)

    return {n: results.stage(f"layers, {n}", race_of(n)) for n in (1, 64)}


IN_16_BIT = ("fp16", BASELINE, backends.OUR_BF16)


def record_layers(
    results: Results, by_tokens: Times, shapes: Mapping[str, tuple[int, int]]
) -> tuple[dict[int, dict[str, dict[str, Mean]]], dict[str, dict[str, float]]]:
    """Ratios to bf16 within a round, recorded; and bytes/s of weights for one token."""
    ratios: dict[int, dict[str, dict[str, Mean]]] = {}
    for tokens, layers in by_tokens.items():
        for layer, times in layers.items():
            for kind, seconds in times.items():
                one = mean_over_rounds(np.array(times[BASELINE]) / np.array(seconds))
                ratios.setdefault(tokens, {}).setdefault(layer, {})[kind] = one
                ends = {"low": one.low, "high": one.high, "n": one.n}
                results.record(f"layer.{tokens}.{layer}.{kind}", one.mean, "x", **ends)
    reading = {}
    for layer, times in by_tokens[1].items():
        weights = np.prod(shapes[layer])
        size = {kind: 2 if kind in IN_16_BIT else 1 for kind in times}
        mean = {kind: mean_over_rounds(np.array(s)).mean for kind, s in times.items()}
        reading[layer] = {kind: size[kind] * weights / mean[kind] for kind in times}
    return ratios, reading


def sentence_on_layers(by_tokens: Times) -> str:
    """Single layers of int8-fast over the best in 16 bit, ruled as paths are; and weights only."""
    said = {"holds": "is much faster", "undecided": "is undecided", "fails": "is not much faster"}
    parts, many, over = [], [], {}  # `over`: weights only over int8-fast
    for tokens, layers in by_tokens.items():
        for layer, times in layers.items():
            took = {kind: np.array(seconds) for kind, seconds in times.items()}
            best = min((kind for kind in IN_16_BIT if kind in took), key=_mean_of(took))
            gain = mean_over_rounds(took[best] / took["int8-fast"])
            if tokens == 1:
                parts.append(
                    f"{layer} {said[_much(gain.low, gain.high)]}, {ratio_of(gain)} ({best})"
                )
            else:
                many.append(f"{ratio_of(gain)} ({best})")
            pair = mean_over_rounds(took["int8-fast"] / took["weights only"])
            over.setdefault(tokens, []).append(pair)
    faster = sum(one.low > 1 for one in over[1])
    why = "There bytes count; the integer instruction is for batches and prefill." if faster else ""
    return (
        f"One token, int8-fast over the best in 16 bit: {'; '.join(parts)}. 64 tokens: "
        f"{', '.join(many)}. Weights only over int8-fast: {', '.join(map(ratio_of, over[1]))} for "
        f"one token, {', '.join(map(ratio_of, over[64]))} for 64. For one token it is faster in every "
        f"round in {faster} of {len(over[1])} layers. {why}"
    ).rstrip()


def by_context(
    config: LlamaConfig,
    seconds: Mapping[str, Mapping[str, Sequence[float]]],
    cases: Sequence[Case],
    shown: Sequence[str],
) -> list[list[str]]:
    """Rows: context, bf16's tokens/s, paths over bf16, int8's own factor, and what bytes allow."""
    rows = []
    for case in cases:
        ratios = [f"{over_bf16(seconds, case, path).mean:.2f}x" for path in shown]
        read = [
            forward_bytes(config, kind, 1, case.tokens, case.batch)
            for kind in ("bf16", "int8-fast")
        ]
        speed = f"{mean_speed(seconds, case, BASELINE).mean:.1f}"
        own = ratio_of(factors(seconds, case).int8)
        rows.append([case.tokens, speed, *ratios, own, f"{read[0] / read[1]:.2f}x"])
    return rows


def by_batch(
    seconds: Mapping[str, Mapping[str, Sequence[float]]],
    cases: Sequence[Case],
    paths: Sequence[str] = backends.PATHS,
) -> dict[str, dict[int, Mean]]:
    """{path: {batch: tokens/s}} of decoding after the shortest context."""
    decode = [case for case in cases if case.phase == "decode"]
    short = decode[0].tokens
    lines: dict[str, dict[int, Mean]] = {}
    for case in decode:
        for path in paths if case.tokens == short else ():
            lines.setdefault(path, {})[case.batch] = mean_speed(seconds, case, path)
    return lines


def gains_by_batch(
    seconds: Mapping[str, Mapping[str, Sequence[float]]], cases: Sequence[Case]
) -> dict[int, Mean]:
    """{batch: int8 over bf16, both in one call} after the shortest context, within a round."""
    decode = [case for case in cases if case.phase == "decode"]
    short = decode[0].tokens
    return {c.batch: factors(seconds, c).int8 for c in decode if c.tokens == short}


def same_bits() -> list[str]:
    """A line for each version of the kernel: whether its bits are PyTorch's, or why it cannot run."""
    torch.manual_seed(1)
    layer = Int8FastLinear.from_linear(nn.Linear(200, 77))
    x = torch.randn(13, 200)
    x[0, 5], x[1] = 3000.0, 0.0
    with kernels.using("pytorch"):
        plain = layer(x)
    lines = []
    for version in kernels.VERSIONS:
        if reason := kernels.refusal(version):
            lines.append(f"{version}: not run, {reason}")
            continue
        with kernels.using(version) as choice:
            if not torch.equal(layer(x), plain):
                raise AssertionError(f"{choice.name} gives other bits than PyTorch")
        lines.append(f"{version} ({choice.name}): the same bits as PyTorch")
    return lines


def weigh(
    results: Results, settings: Settings, runners: Mapping[str, Any], stored: Mapping[str, Any]
) -> list[list[str]]:
    """Rows: path, MB of its tensors (checked against their prediction) and of a process of its own.

    The last column has the process's over the first one's.
    """
    rows, first = [], None
    paths = [BASELINE, LLM_INT8, SWAPPED]
    for path in paths[-1 if settings.profile == "smoke" else 0 :]:
        held = weight_memory(runners[path].model)
        predicted = stored[backends.BACKENDS[path].stored].total
        results.record(f"weights.{path}", held / 1e6, "MB", kind="exact")
        resident = backends.resident_bytes(settings.model, path)
        results.record(f"resident.{path}", resident / 1e6, "MB", kind="timing")
        said = f"{held / 1e6:.0f}" + (
            "" if held == predicted else f" ({predicted / 1e6:.0f} predicted)"
        )
        first = first or resident
        rows.append([path, said, f"{resident / 1e6:.0f}", f"{resident / first:.0%}"])
    return rows
