"""One model on a CPU by every path that the machine has, raced: prefill and decode, side by side."""

import contextlib
import copy
import math
import multiprocessing
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol

import numpy as np
import psutil
import torch
from torch.profiler import record_function
from transformers import DynamicCache

import llama_int8.models as models
from llama_int8.dtypes import torch_dtype
from llama_int8.evaluation.experiment import set_threshold
from llama_int8.lessons.n10.vectorwise import VectorwiseLinear
from llama_int8.measure import latency, memory, profiler
from llama_int8.measure.results import Results
from llama_int8.measure.statistics import Spread, spread
from llama_int8.models.cost import BYTES_PER_VALUE, QUANTIZED, forward_bytes, forward_flops
from llama_int8.models.synthetic import bitsandbytes_linear
from llama_int8.quantization.cpu import kernels
from llama_int8.quantization.cpu.baselines import (
    KernelBf16Linear,
    KernelWeightOnlyLinear,
    WeightOnlyLinear,
)
from llama_int8.quantization.cpu.linear import Int8FastLinear, replace_layers
from llama_int8.quantization.cpu.llama import FastLlama
from llama_int8.quantization.outliers import plant_outliers
from llama_int8.quantization.precisions import (
    INT8,
    LLM_INT8,
    LLM_INT8_AT_0,
    NO_DECOMPOSITION,
    THRESHOLD,
)
from llama_int8.transformer.config import LlamaConfig

BASELINE = "bf16"
SWAPPED, OWN, ONE_CALL = "int8-fast: swapped", "int8-fast: own model", "int8-fast: one call"
FAST = (SWAPPED, OWN, ONE_CALL)
INT8_CACHE = f"{ONE_CALL}, int8 cache"
# The controls: our own product and our one call, all but int8.
BF16_SWAPPED, BF16_CALL = "bf16: swapped", "bf16: one call"
OUR_BF16 = "our bf16 product"  # of a single layer
WEIGHTS_CALL = "weights only: one call"  # and this one all but the integer instruction
ARITHMETIC = ("fp32", "fp16", "bf16", "int8")  # what `latency.matrix_throughput` can measure
AGAIN = "bf16 again"  # the baseline a second time: its ratio to itself is the noise of a race
READING = "reading as "  # and a format: a path that only reads the bytes which that format has
LEAST = 0.15  # seconds of one timing, about, in as many repeats as it takes


@dataclass(frozen=True)
class Case:
    """What is timed: a prompt of `tokens` read by `batch` sequences, or one step after so many."""

    phase: str  # "prefill" or "decode"
    batch: int
    tokens: int
    threads: int

    @property
    def key(self) -> str:
        """The case's name in results: "decode.4x32.all" (or ".one") of the threads."""
        return f"{self.phase}.{self.batch}x{self.tokens}.{thread_word(self.threads)}"


class Runner(Protocol):
    """A model by one path."""

    def prefill(self, tokens: torch.Tensor) -> Any:
        """Read (B, T) tokens into an empty cache."""

    def stepper(self, batch: int, context: int, steps: int) -> Callable[[], None]:
        """A greedy step of `batch` sequences with `context` tokens in the cache, for `steps` calls."""


def decode(runner: Runner, batch: int, context: int, steps: int) -> float:
    """Seconds of so many steps; what prepares the cache is not among them."""
    step = runner.stepper(batch, context, steps)
    start = time.perf_counter()
    for _ in range(steps):
        step()
    return time.perf_counter() - start


class HuggingFaceRunner:
    """Any of Hugging Face's models, with its own cache."""

    def __init__(self, model: torch.nn.Module, threshold_of: str | None = None) -> None:
        """`threshold_of`: "int8" or NO_DECOMPOSITION, which share one model and are set again."""
        self.model, self.threshold_of = model, threshold_of

    def prefill(self, tokens: torch.Tensor) -> Any:
        self._set_threshold()
        return latency.prefill(self.model, tokens)

    def logits(self, tokens: torch.Tensor) -> torch.Tensor:
        """(B, T) -> (B, T, V) without a cache."""
        self._set_threshold()
        return self.model(tokens).logits

    def stepper(self, batch: int, context: int, steps: int) -> Callable[[], None]:
        self._set_threshold()
        cache = _filled_cache(self.model, batch, context)
        tokens = torch.ones(batch, 1, dtype=torch.long)

        @torch.inference_mode()
        def step() -> None:
            nonlocal tokens
            out = self.model(tokens, past_key_values=cache, use_cache=True, logits_to_keep=1)
            tokens = out.logits[:, -1:].argmax(-1)  # (B, 1)

        return step

    def _set_threshold(self) -> None:
        if self.threshold_of is not None:
            set_threshold(self.model, self.threshold_of)


class FastRunner:
    """Our own model, step by step in PyTorch's operations or in one compiled call."""

    def __init__(self, model: FastLlama, compiled: bool) -> None:
        self.model, self.compiled = model, compiled

    def prefill(self, tokens: torch.Tensor) -> Any:
        self._make_room(len(tokens), tokens.shape[1])
        return self.model(tokens)

    def logits(self, tokens: torch.Tensor) -> torch.Tensor:
        """(B, T) -> (B, T, V); where a step is one call, the model is scored as it generates."""
        self.model.reserve(tokens.shape[1], len(tokens), self.compiled)
        if not self.compiled:
            return self.model(tokens, logits_to_keep=0)
        return torch.stack([self.model.step(column) for column in tokens.T], 1)

    def stepper(self, batch: int, context: int, steps: int) -> Callable[[], None]:
        self._make_room(batch, context + steps)
        self.model.position = context  # what the cache holds there does not change the time
        tokens = torch.ones(batch, dtype=torch.long)

        def step() -> None:
            nonlocal tokens
            logits = (
                self.model.step(tokens) if self.compiled else self.model(tokens[:, None])[:, -1]
            )
            tokens = logits.argmax(-1)  # (B,)

        return step

    def _make_room(self, batch: int, length: int) -> None:
        self.model.make_room(max(length, self.model.context), batch, self.compiled)


def with_int8_cache(runner: FastRunner) -> FastRunner:
    """The same model, which keeps keys and values of its own, in int8."""
    model = copy.copy(runner.model)
    model.cache_format = "int8"
    return FastRunner(model.reserve(model.context), runner.compiled)


class ReadingRunner:
    """A step that reads as many bytes of memory as a step in one format, and does nothing else.

    What the caches can hold of a model they can hold of these bytes: no path of the format is
    faster.
    """

    def __init__(self, config: LlamaConfig, stored: str) -> None:
        self.config, self.stored = config, stored
        self._case: tuple[int, int, int] | None = None
        self._reader: latency.MemoryReader | None = None

    def stepper(self, batch: int, context: int, steps: int) -> Callable[[], None]:
        del steps
        case = (batch, context, torch.get_num_threads())
        if self._reader is None or self._case != case:
            size = forward_bytes(self.config, self.stored, 1, context, batch)
            self._case, self._reader = case, latency.MemoryReader(size)
            self._reader.read()  # finds out how it is fastest
        return self._reader.read


def readers(config: LlamaConfig, paths: Sequence[str]) -> dict[str, ReadingRunner]:
    """A path that only reads for each format of `paths`: their ceilings, raced beside them."""
    formats = dict.fromkeys(BACKENDS[path].stored for path in paths)
    return {f"{READING}{stored}": ReadingRunner(config, stored) for stored in formats}


class LoadedModels:
    """One model in several forms. A form that several backends share is made once."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.room = min(64, models.config_of(name).max_position_embeddings)
        self._held: dict[str, Any] = {}

    def hugging_face(self, precision: str) -> torch.nn.Module:
        """Hugging Face's model in a precision that `load_model` knows."""
        return self._once(precision, partial(models.load_model, self.name, precision, "cpu"))

    def with_layers(self, make: Callable[[torch.nn.Linear], torch.nn.Module]) -> torch.nn.Module:
        """The bf16 model with every linear layer, the output layer too, replaced by `make(layer)`."""

        def replace_layer(_: str, layer: torch.nn.Linear) -> torch.nn.Module:
            return make(layer)

        if not self.name.startswith(models.SYNTHETIC):
            model = models.load_model(self.name, BASELINE, "cpu")
            return replace_layers(model, make=replace_layer)
        config = models.config_of(self.name)
        return models.build_synthetic(config, torch.bfloat16, "cpu", replace_layer, skip=())

    def own(self) -> FastLlama:
        """Our own model, with int8-fast's weights."""
        swapped = self.hugging_face("int8-fast")
        return self._once("own", partial(FastLlama, swapped, context=self.room))

    def swapped_in_bf16(self) -> torch.nn.Module:
        """Hugging Face's model with the kernel's product in 16 bit."""
        return self._once("16 bit", partial(self.with_layers, KernelBf16Linear.from_linear))

    def own_in_bf16(self) -> FastLlama:
        """Our own model in 16 bit."""
        return FastLlama(self.swapped_in_bf16(), context=self.room)

    def own_in_weights_only(self) -> FastLlama:
        """Our own model with int8-fast's weights, multiplied in FP32."""
        swapped = self.with_layers(KernelWeightOnlyLinear.from_linear)
        return FastLlama(swapped, context=self.room)

    def _once(self, form: str, load: Callable[[], Any]) -> Any:
        if form not in self._held:
            self._held[form] = load()
            memory.release()
        return self._held[form]


# ---- the backends


@dataclass(frozen=True)
class Look:
    """How figures draw a backend."""

    colour: str
    hatch: str  # of bars
    marker: str  # of lines


@dataclass(frozen=True)
class Layer:
    """One linear layer as a backend runs it, for `race_layers`."""

    name: str
    make: Callable[[torch.nn.Linear], torch.nn.Module]
    inputs: str = "bf16"  # the format of what enters it


@dataclass(frozen=True)
class Backend:
    """One path of a model on a CPU. All that the race and its figures must know of it is here."""

    name: str
    stored: str  # the format whose bytes it reads
    arithmetic: str  # the precision it multiplies in
    load: Callable[[LoadedModels], Runner]
    look: Look
    layer: Layer | None = None
    # A decode step is one compiled call. It reads a prompt as another backend does, so it is not
    # raced in prefill.
    one_call: bool = False

    def __post_init__(self) -> None:
        for field, known in (("stored", BYTES_PER_VALUE), ("arithmetic", ARITHMETIC)):
            value = getattr(self, field)
            if value not in known:
                raise ValueError(f"{self.name}: {field} is {value!r}; known are {', '.join(known)}")

    @property
    def in_8_bits(self) -> bool:
        """Whether its weights are int8 codes."""
        return self.stored in QUANTIZED


def _cast(precision: str) -> Callable[[torch.nn.Linear], torch.nn.Module]:
    return lambda linear: copy.deepcopy(linear).to(torch_dtype(precision))


def _bitsandbytes(linear: torch.nn.Linear) -> torch.nn.Module:
    layer = bitsandbytes_linear("", copy.deepcopy(linear).bfloat16(), threshold=THRESHOLD)
    return layer.to("cpu").eval()


# 16 bit and more have blues and black, int8 has the other colours.
BACKENDS = {
    backend.name: backend
    for backend in (
        Backend(
            "fp32",
            stored="fp32",
            arithmetic="fp32",
            load=lambda loaded: HuggingFaceRunner(loaded.hugging_face("fp32")),
            look=Look("#000000", "", "D"),
        ),
        Backend(
            "fp16",
            stored="fp16",
            arithmetic="fp16",
            load=lambda loaded: HuggingFaceRunner(loaded.hugging_face("fp16")),
            look=Look("#56B4E9", "", "v"),
            layer=Layer("fp16", _cast("fp16"), inputs="fp16"),
        ),
        Backend(
            BASELINE,
            stored="bf16",
            arithmetic="bf16",
            load=lambda loaded: HuggingFaceRunner(loaded.hugging_face("bf16")),
            look=Look("#0072B2", "", "o"),
            layer=Layer(BASELINE, _cast("bf16")),
        ),
        Backend(
            BF16_SWAPPED,
            stored="bf16",
            arithmetic="fp32",
            load=lambda loaded: HuggingFaceRunner(loaded.swapped_in_bf16()),
            look=Look("#5B8DB8", "//", "p"),
            layer=Layer(OUR_BF16, KernelBf16Linear.from_linear),
        ),
        Backend(
            BF16_CALL,
            stored="bf16",
            arithmetic="fp32",
            load=lambda loaded: FastRunner(loaded.own_in_bf16(), compiled=True),
            look=Look("#004C7A", "||", "d"),
            one_call=True,
        ),
        Backend(
            LLM_INT8,
            stored="int8",
            arithmetic="int8",
            load=lambda loaded: HuggingFaceRunner(loaded.hugging_face(INT8), INT8),
            look=Look("#D55E00", "///", "s"),
            layer=Layer(LLM_INT8, _bitsandbytes),
        ),
        Backend(
            LLM_INT8_AT_0,
            stored="int8",
            arithmetic="int8",
            load=lambda loaded: HuggingFaceRunner(loaded.hugging_face(INT8), NO_DECOMPOSITION),
            look=Look("#8A3B00", "...", "X"),
        ),
        Backend(
            "weights only",
            stored="int8-fast",
            arithmetic="bf16",
            load=lambda loaded: HuggingFaceRunner(loaded.with_layers(WeightOnlyLinear.from_linear)),
            look=Look("#E69F00", "xx", "P"),
            layer=Layer("weights only", WeightOnlyLinear.from_linear),
        ),
        Backend(
            WEIGHTS_CALL,
            stored="int8-fast",
            arithmetic="fp32",
            load=lambda loaded: FastRunner(loaded.own_in_weights_only(), compiled=True),
            look=Look("#A87400", "||", "h"),
            one_call=True,
        ),
        Backend(
            "W8A8 by token",
            stored="int8-fast",
            arithmetic="int8",
            load=lambda loaded: HuggingFaceRunner(loaded.with_layers(VectorwiseLinear)),
            look=Look("#CC79A7", "--", "^"),
            layer=Layer("W8A8 by token", VectorwiseLinear),
        ),
        Backend(
            SWAPPED,
            stored="int8-fast",
            arithmetic="int8",
            load=lambda loaded: HuggingFaceRunner(loaded.hugging_face("int8-fast")),
            look=Look("#00704F", "\\\\", "<"),
        ),
        Backend(
            OWN,
            stored="int8-fast",
            arithmetic="int8",
            load=lambda loaded: FastRunner(loaded.own(), compiled=False),
            look=Look("#3D9B80", "++", ">"),
        ),
        Backend(
            ONE_CALL,
            stored="int8-fast",
            arithmetic="int8",
            load=lambda loaded: FastRunner(loaded.own(), compiled=True),
            look=Look("#009E73", "", "*"),
            layer=Layer("int8-fast", Int8FastLinear.from_linear),
            one_call=True,
        ),
    )
}
PATHS = tuple(BACKENDS)


def look(name: str) -> Look:
    """Of a backend, or of the layer that one of them runs."""
    of_layers = {backend.layer.name: backend for backend in _with_layer()}
    return (BACKENDS.get(name) or of_layers[name]).look


def _with_layer() -> list[Backend]:
    return [backend for backend in BACKENDS.values() if backend.layer]


def _in_one_call(path: str) -> bool:
    """Also False for other programs, such as llama.cpp, which are not in BACKENDS."""
    return path in BACKENDS and BACKENDS[path].one_call


def _decodes_only(path: str) -> bool:
    return _in_one_call(path) or path == INT8_CACHE or path.startswith(READING)


def load_paths(
    name: str,
    paths: Sequence[str] = PATHS,
    own: Mapping[str, Callable[[torch.nn.Linear], torch.nn.Module]] | None = None,
) -> dict[str, Runner]:
    """The model by each of `paths`, all in memory at once; those of LLM.int8() share one model.

    `own`: {path: what makes its layers}, a learner's in the place of the package's.
    """
    unknown = [path for path in paths if path not in BACKENDS]
    if unknown:
        raise ValueError(f"path {unknown[0]!r} is unknown; there are {', '.join(BACKENDS)}")
    loaded = LoadedModels(name)
    return {
        path: HuggingFaceRunner(loaded.with_layers(own[path]))
        if own and path in own
        else BACKENDS[path].load(loaded)
        for path in paths
    }


# ---- the race


def race(
    runners: Mapping[str, Runner],
    cases: Sequence[Case],
    *,
    steps: int,
    rounds: int,
    vocabulary: int,
    patience: float = float("inf"),
    least: float = LEAST,
) -> dict[str, dict[str, list[float]]]:
    """{case: {path: seconds of the prompt or of a step, one per round}}; paths take turns.

    One timing is `steps` steps or one prompt, repeated for about `least` seconds. A path whose
    warm-up took more than `patience` seconds is left out of that case, except the baseline.
    """
    found: dict[str, dict[str, list[float]]] = {}
    for case in cases:
        with threads(case.threads):
            runs = {}
            for path, runner in runners.items():
                if case.phase == "prefill" and _decodes_only(path):
                    continue
                run, units = _work(runner, case, steps, vocabulary)
                warm = run()
                if warm <= patience or path == BASELINE:
                    runs[path] = _timing(run, max(1, round(least / warm)), units)
            times = latency.interleaved(runs, rounds, warmup=0) if runs else {}
        found[case.key] = {path: one["call"].tolist() for path, one in times.items()}
    return found


def _work(
    runner: Runner, case: Case, steps: int, vocabulary: int
) -> tuple[Callable[[], float], int]:
    """Seconds of one prompt, or of `steps` steps; and how many prompts or steps that is."""
    if case.phase == "decode":
        return partial(decode, runner, case.batch, case.tokens, steps), steps
    tokens = _random_tokens(case.batch, case.tokens, vocabulary)
    call = latency.repeated(partial(runner.prefill, tokens), 1)
    return lambda: call()["call"], 1


def _timing(run: Callable[[], float], repeats: int, units: int) -> Callable[[], dict[str, float]]:
    return lambda: {"call": sum(run() for _ in range(repeats)) / (repeats * units)}


@contextlib.contextmanager
def threads(count: int) -> Iterator[None]:
    """Within the block PyTorch, and the kernel with it, uses `count` threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def thread_word(count: int) -> str:
    """A name that means the same on every machine: "one" or "all"."""
    return "one" if count == 1 else "all"


def thread_counts() -> list[int]:
    """One thread, and as many as PyTorch uses by itself."""
    return sorted({1, torch.get_num_threads()})


def tokens_per_second(case: Case, seconds: Sequence[float]) -> np.ndarray:
    """Of the whole batch: tokens of the prompt, or one per sequence and step."""
    tokens = case.batch * (case.tokens if case.phase == "prefill" else 1)
    return tokens / np.asarray(seconds)


def ceiling(
    config: LlamaConfig, path: str, case: Case, bandwidth: float, rates: Mapping[str, float]
) -> float:
    """Fewest seconds that bytes (`bandwidth`, bytes/s) and operations allow.

    `rates`: operations/s by precision; all of a path's operations are taken to run at the rate of its
    own products, attention too, which no path has in int8.
    """
    new, past = _lengths(case)
    read = forward_bytes(config, BACKENDS[path].stored, new, past, case.batch)
    work = forward_flops(config, new, past, case.batch)
    return max(read / bandwidth, work / rates[arithmetic_of(path)])


def arithmetic_of(path: str) -> str:
    """In which format a path multiplies: the kernel bf16 by an instruction for it, else in FP32."""
    of_the_kernel = path in (BF16_SWAPPED, BF16_CALL)
    return "bf16" if of_the_kernel and kernels.multiplies_bf16() else BACKENDS[path].arithmetic


def _lengths(case: Case) -> tuple[int, int]:
    """New tokens of each sequence, and those in the cache."""
    return (case.tokens, 0) if case.phase == "prefill" else (1, case.tokens)


def with_what_was_reached(
    rates: Mapping[str, float],
    seconds: Mapping[str, Mapping[str, Sequence[float]]],
    cases: Sequence[Case],
    config: LlamaConfig,
) -> dict[str, float]:
    """`rates`, each at least what a path of its precision has reached: no ceiling is exceeded."""
    found = dict(rates)
    for case in cases:
        work = forward_flops(config, *_lengths(case), case.batch)
        for path, times in seconds[case.key].items():
            if path in BACKENDS:
                precision = arithmetic_of(path)
                found[precision] = max(found[precision], work / min(times))
    return found


def resident_bytes(name: str, path: str) -> int:
    """Memory of its own that a fresh process takes to load the model by one path and read a token.

    Pages of a file that other processes could share are left out, and so is what libraries take:
    the process has loaded the model once before, and let it go.
    """
    context = multiprocessing.get_context("spawn")
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=_weigh, args=(name, path, sender))
    process.start()
    sender.close()
    try:
        return receiver.recv()
    except EOFError:
        raise RuntimeError(
            f"the process that was to weigh {path} ended without an answer"
        ) from None
    finally:
        process.join()


def _weigh(name: str, path: str, sender: Any) -> None:
    vocabulary = models.config_of(name).vocab_size
    with open(os.devnull, "w") as nothing, contextlib.redirect_stderr(nothing):
        for _ in range(2):
            memory.release()
            before = psutil.Process().memory_full_info().uss
            runner = load_paths(name, [path])[path]
            runner.prefill(_random_tokens(1, 1, min(1000, vocabulary)))
            memory.release()
            after = psutil.Process().memory_full_info().uss
            del runner
        sender.send(after - before)


def _random_tokens(batch: int, length: int, vocabulary: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randint(vocabulary, (batch, length), generator=generator)


def _filled_cache(model: torch.nn.Module, batch: int, context: int) -> Any:
    config, cache = model.config, DynamicCache()
    shape = (batch, config.num_key_value_heads, context, config.head_dim)
    dtype = model.get_input_embeddings().weight.dtype
    for layer in range(config.num_hidden_layers):
        cache.update(torch.zeros(shape, dtype=dtype), torch.zeros(shape, dtype=dtype), layer)
    return cache


# ---- one layer at a time


def race_layers(
    shapes: Mapping[str, tuple[int, int]], tokens: int, rounds: int, held: int = 2**27
) -> dict[str, dict[str, list[float]]]:
    """{layer: {kind of layer: seconds of one product with `tokens` rows, one per round}}.

    `shapes`: (outputs, inputs). Weights are random. Each kind takes turns with so many copies of a
    layer that their int8 codes fill `held` bytes: from a cache it would seem faster than memory is.
    Inputs are normal, except six channels with twenty times the spread: outliers for LLM.int8().
    """
    found = {}
    for layer, (outputs, inputs) in shapes.items():
        linear = torch.nn.Linear(inputs, outputs, bias=False)
        copies = max(1, held // (outputs * inputs))
        x = plant_outliers(torch.randn(tokens, inputs, dtype=torch.bfloat16))
        runs = {}
        for kind in (backend.layer for backend in _with_layer()):
            copied = [kind.make(linear) for _ in range(copies)]
            runs[kind.name] = _layer_run(copied, x.to(torch_dtype(kind.inputs)))
        times = latency.interleaved(runs, rounds)
        found[layer] = {kind: one["call"].tolist() for kind, one in times.items()}
        del runs
        memory.release()
    return found


def _layer_run(layers: Sequence[Any], x: torch.Tensor) -> Callable[[], dict[str, float]]:
    def work() -> None:
        with torch.inference_mode():
            for layer in layers:
                layer(x)

    run = latency.repeated(work, 1)
    return lambda: {"call": run()["call"] / len(layers)}


# ---- where the time of one decode step goes


def profile_steps(runners: Mapping[str, Runner], context: int) -> dict[str, dict[str, float]]:
    """{path: {"int8 products": s, "other operations": s, "between operations": s, ...}} of one step.

    "one compiled call" is what `FastLlama.step` does in one; "count": PyTorch's operations.
    """
    found = {}
    for path, runner in runners.items():
        with _visible_kernel():
            kinds = profiler.profile(runner.stepper(1, context, profiler.CALLS))
        one_call = _in_one_call(path)
        products = kinds["int8 products"]["seconds"]
        between = kinds["between operations"]["seconds"]
        rest = sum(entry["seconds"] for entry in kinds.values()) - products - between
        sixteen = kinds["16-bit products"]["seconds"]
        found[path] = {
            "16-bit products": sixteen,
            "int8 products": 0.0 if one_call else products,
            "one compiled call": products if one_call else 0.0,
            "other operations": rest - sixteen,
            "between operations": between,
            "count": sum(entry["operations"] for entry in kinds.values()),
        }
    return found


@contextlib.contextmanager
def _visible_kernel() -> Iterator[None]:
    """Let PyTorch's profiler see the calls into the kernel, which go past PyTorch."""
    linear, step = kernels.compiled_linear, FastLlama.step

    def seen_linear(*arguments: Any) -> Any:
        with record_function("int8_fast::linear"):
            return linear(*arguments)

    def seen_step(*arguments: Any) -> Any:
        with record_function("int8_fast::step"):
            return step(*arguments)

    kernels.compiled_linear, FastLlama.step = seen_linear, seen_step
    try:
        yield
    finally:
        kernels.compiled_linear, FastLlama.step = linear, step


# ---- what a race says


@dataclass(frozen=True)
class Race:
    """For each case and path: tokens/s, ratio to bf16 within a round, share of the path's ceiling."""

    speeds: dict[Case, dict[str, Spread]]
    over_bf16: dict[Case, dict[str, Spread]]
    shares: dict[Case, dict[str, float]]


def record_race(
    results: Results,
    seconds: Mapping[str, Mapping[str, Sequence[float]]],
    cases: Sequence[Case],
    config: LlamaConfig,
    roof: Mapping[int, tuple[float, Mapping[str, float]]],
) -> Race:
    """Record speeds and ratios of a race: medians, with the least and largest of the rounds.

    `roof`: {threads: (bytes/s, {precision: operations/s})}. A `lead` is how many times as fast int8
    in one call is as a control or llama.cpp. Where `readers` took part, their time stands for the
    bandwidth. A precision's rate is raised to what a path has reached in it: PyTorch's product is no
    peak, and not even the fastest here.
    """
    found = Race({}, {}, {})
    rates_of = {
        count: with_what_was_reached(
            rates, seconds, [case for case in cases if case.threads == count], config
        )
        for count, (_, rates) in roof.items()
    }
    for case in cases:
        bandwidth, rates = roof[case.threads][0], rates_of[case.threads]
        taken = {path: np.array(times) for path, times in seconds[case.key].items()}
        for path, times in taken.items():
            speed = spread(tokens_per_second(case, times))
            ratio = spread(taken[BASELINE] / times)
            found.speeds.setdefault(case, {})[path] = speed
            found.over_bf16.setdefault(case, {})[path] = ratio
            if path in BACKENDS:  # other people's formats read other bytes
                limit = ceiling(config, path, case, bandwidth, rates)
                reading = taken.get(f"{READING}{BACKENDS[path].stored}")
                if reading is not None:  # in the same rounds, and nothing reads faster
                    limit = max(reading.min(), ceiling(config, path, case, math.inf, rates))
                found.shares.setdefault(case, {})[path] = limit / float(np.median(times))
            for name, unit, value in ((f"{case.key}.{path}", "tokens/s", speed),
                                      (f"ratio.{case.key}.{path}", "x", ratio)):  # fmt: skip
                ends = {"low": value.least, "high": value.largest, "n": times.size}
                results.record(name, value.median, unit, **ends)
            opponent = path in (BF16_CALL, WEIGHTS_CALL) or path.startswith("llama.cpp")
            if opponent and ONE_CALL in taken:
                lead = spread(times / taken[ONE_CALL])
                ends = {"low": lead.least, "high": lead.largest, "n": times.size}
                results.record(f"lead.{case.key}.{path}", lead.median, "x", **ends)
    return found


def measured_roof(results: Results) -> dict[int, tuple[float, dict[str, float]]]:
    """{threads: (bytes/s read, {precision that a backend multiplies in: operations/s})}, recorded.

    The best of two bouts, between which the threads take turns.
    """
    precisions = list(dict.fromkeys(backend.arithmetic for backend in BACKENDS.values()))
    meters = {count: latency.Roofs("cpu", precisions, size=1024) for count in thread_counts()}
    for _ in range(2):
        for count, meter in meters.items():
            with threads(count):
                meter.measure(5)
    roof = {}
    for count, meter in meters.items():
        rates = dict(meter.best)
        bandwidth, word = rates.pop("read"), thread_word(count)
        results.record(f"bandwidth.{word}", bandwidth / 1e9, "GB/s")
        for precision, rate in rates.items():
            results.record(f"throughput.{precision}.{word}", rate / 1e9, "GOP/s")
        roof[count] = (bandwidth, rates)
    return roof
