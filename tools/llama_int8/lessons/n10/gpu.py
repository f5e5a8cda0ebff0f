"""FP16 against int8 on one GPU: memory, speed, the time between kernels, and int8 codes.

`tools/benchmark_gpu.py` runs it. The most valuable measurement comes first and each result is
written as it comes. Every function takes a device, so that the same code runs on a CPU in tests.

Paths: the 16-bit baseline; the same weights by one CUDA graph for each step, the control;
int8-fast by such a graph; LLM.int8() with outlier threshold 6, and with threshold 0 (no
decomposition; the same model, switched over).
"""

import contextlib
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch._dynamo.exc import TorchDynamoException

import llama_int8.models as models
from llama_int8.dtypes import torch_dtype
from llama_int8.errors import PrecisionError, first_line
from llama_int8.evaluation import experiment
from llama_int8.evaluation.compare import Point
from llama_int8.measure import latency, memory, profiler
from llama_int8.measure.results import Results
from llama_int8.measure.statistics import spread
from llama_int8.models.cost import GIB, decode_bound, forward_bytes, weight_bytes
from llama_int8.models.grouped_heads import expand_grouped_heads
from llama_int8.models.synthetic import random_tensor
from llama_int8.quantization.gpu.linear import replace_layers
from llama_int8.quantization.gpu.llama import GraphLlama
from llama_int8.quantization.llm_int8 import vectorwise_quantize
from llama_int8.quantization.outliers import plant_outliers
from llama_int8.quantization.precisions import (
    INT8,
    LLM_INT8,
    LLM_INT8_AT_0,
    NO_DECOMPOSITION,
    THRESHOLD,
)

INT8_FAST = "int8-fast"
INT8_GRAPH = "int8-fast, one graph"
HALF_GRAPH = "fp16, one graph"  # of a GPU; `graph_of` has the name on any device
CHECKED_ROWS = 512  # of activations whose codes are compared
Runs = dict[str, Callable[[], dict[str, float]]]  # a timed run, by path


@dataclass(frozen=True)
class Sizes:
    """Sizes to measure. Decode points are (batch, tokens in the cache), most valuable first."""

    prompt: int = 512
    points: tuple[Point, ...] = (Point(1, 128), Point(1, 1024), Point(8, 128), Point(8, 1024))
    steps: int = 16
    rounds: int = 5
    megabytes: int = 512  # read to find the bandwidth

    def within(self, context: int) -> "Sizes":
        """The same with every length cut to a model's context; equal points are measured once."""
        longest = context - self.steps
        points = dict.fromkeys(Point(batch, min(tokens, longest)) for batch, tokens in self.points)
        return replace(self, prompt=min(self.prompt, context), points=tuple(points))


@dataclass(frozen=True)
class Step:
    """One measurement: the paths that take part, and a function that records it."""

    name: str
    paths: tuple[str, ...]
    measure: Callable[[], None]


class Race:
    """One model's measurements. `results` may hold those of an earlier run, which are kept."""

    def __init__(self, name: str, device: str, sizes: Sizes, results: Results) -> None:
        self.name, self.device, self.results = name, device, results
        self.config = models.config_of(name)
        self.sizes = sizes.within(self.config.max_position_embeddings)
        self.half = models.baseline_precision(device)
        self.held: dict[str, nn.Module] = {}  # by path
        self.half_graph = graph_of(self.half)
        self.unable = _without_int8_fast(device)
        taken = (self.half, INT8) if self.unable else (self.half, INT8, INT8_FAST)
        needed = sum(weight_bytes(self.config, p).total for p in taken)
        self.together = needed * models.HEADROOM <= models.free_memory(device)
        self.expanded = expand_grouped_heads(device)

    def run(self, deadline: float, say: Callable[[str], None] = print) -> bool:
        """Measure what is missing; False if `deadline` (of time.monotonic) came first."""
        self.results.record("interleaved", "yes" if self.together else "no", "text")
        self.results.record("grouped heads expanded", "yes" if self.expanded else "no", "text")
        if self.expanded:
            say(
                f"{self.name}: this card's fast attention takes no grouped heads; they are expanded"
            )
        groups = [(self.half, self.half_graph), (INT8_GRAPH,), (LLM_INT8, LLM_INT8_AT_0)]
        if self.unable:
            say(f"{self.name}: {self.unable}")
            self.results.record(f"left out.{INT8_GRAPH}", self.unable, "text")
            groups.remove((INT8_GRAPH,))
        if self.together:
            groups = [sum(groups, ())]
        else:
            say(f"{self.name}: {self.half} and int8 do not fit together: one after the other")
        for paths in groups:
            steps = [step for step in self.steps(paths) if not self._done(step)]
            if not steps:
                continue
            try:
                self._load(paths, say)
                for number, step in enumerate(steps):
                    if time.monotonic() > deadline:
                        left = ", ".join(s.name for s in steps[number:])
                        say(
                            f"{self.name}: the time is used up before {left}; run it again for these"
                        )
                        return False
                    self._measure(step, say)
            # The second where something beside the weights finds no room, such as merged layers.
            except (models.NotEnoughMemoryError, torch.OutOfMemoryError) as error:
                say(f"{self.name}: {first_line(error)}")
                self.results.record(f"left out.{paths[0]}", first_line(error), "text")
            finally:
                self.held.clear()
                memory.release()
        self._record_ratios()
        return True

    def steps(self, paths: tuple[str, ...]) -> Iterator[Step]:
        """The measurements of these paths, the most valuable first."""
        first, *others = self.sizes.points
        decode = lambda point: Step(  # noqa: E731 - three uses, one line each
            f"decode {point.name}", paths, partial(self._decode, paths, point)
        )
        yield decode(first)
        yield Step(
            f"prefill {Point(1, self.sizes.prompt).name}", paths, partial(self._prefill, paths)
        )
        by_kernel = tuple(path for path in paths if path not in (self.half_graph, INT8_GRAPH))
        if by_kernel:  # a graph is one launch, whose kernels the profiler puts nowhere
            yield Step("profile of a decode step", paths, partial(self._profile, by_kernel, first))
        if LLM_INT8 in paths:
            yield Step("codes", (LLM_INT8,), self._codes)
        for point in others:
            yield decode(point)
        yield Step("peak of the prefill", paths, partial(self._peaks, paths))
        yield Step("bandwidth", paths, partial(self._bandwidth, paths))
        if graphs := tuple(path for path in paths if path in (self.half_graph, INT8_GRAPH)):
            # Last: it says what the compiler adds to the graph, and compiles for minutes.
            yield Step(f"torch.compile, decode {first.name}", graphs, partial(self._fused, graphs))

    # --- loading and bookkeeping

    def _load(self, paths: Sequence[str], say: Callable[[str], None]) -> None:
        """Load what `paths` need, and record what each model takes of the card."""
        for path, precision in (
            (self.half, self.half),
            (INT8_GRAPH, INT8_FAST),
            (LLM_INT8, INT8),
        ):
            if path not in paths:
                continue
            say(f"{self.name}: loading {path}")
            memory.release()
            before, start = memory.snapshot(self.device), time.monotonic()
            model = loaded(self.name, precision, self.device)
            self.results.record(f"loading.{path}", time.monotonic() - start, "s")
            memory.release()
            after = memory.snapshot(self.device)
            self.results.record(f"weights.{path}", memory.weight_memory(model), "bytes")
            for kind in after.keys() - {"process"}:
                note = "taken by loading this model; card: of all programs"
                taken = after[kind] - before[kind]
                self.results.record(f"memory.{kind}.{path}", taken, "bytes", note=note)
            bound = weight_bytes(self.config, precision).read_per_token
            self.results.record(f"read per token.{path}", bound, "bytes")
            self.held |= self._paths_of(path, model, say)

    def _paths_of(
        self, path: str, model: nn.Module, say: Callable[[str], None]
    ) -> dict[str, nn.Module]:
        """Everything that is measured with this model: the paths share its weights."""
        if path == INT8_GRAPH:
            return {path: GraphLlama(model, 1)}
        if path != self.half:
            return {LLM_INT8: model, LLM_INT8_AT_0: model}
        try:
            return {path: model, self.half_graph: GraphLlama(model, 1)}
        except torch.OutOfMemoryError as error:  # a layer is merged whole or not at all
            reason = f"no room to merge its layers: {first_line(error)}"
        say(f"{self.name}, {self.half_graph}: left out, {reason}")
        self.results.record(f"left out.{self.half_graph}", reason, "text")
        return {path: model}

    def _done(self, step: Step) -> bool:
        return f"done.{step.name}.{step.paths[0]}" in self.results.measurements

    def _measure(self, step: Step, say: Callable[[str], None]) -> None:
        """Run one step; where memory ends, say so and go on with the next."""
        start, reason = time.monotonic(), ""
        try:
            step.measure()
        except (torch.OutOfMemoryError, MemoryError) as error:
            free = models.free_memory(self.device) / GIB
            reason = f"out of memory with {free:.1f} GiB free: {first_line(error)}"
        except TorchDynamoException as error:  # no compiler here, or none for this card
            inner = getattr(error, "inner_exception", error)
            reason = f"torch.compile: {first_line(inner)}"
        if reason:  # here, where the error no longer holds what the step held
            say(f"{self.name}, {step.name}: left out, {reason}")
            self.results.record(f"left out.{step.name}.{step.paths[0]}", reason, "text")
            memory.release()
            return
        seconds = time.monotonic() - start
        self.results.record(f"done.{step.name}.{step.paths[0]}", seconds, "s")
        say(f"{self.name}, {step.name}: done in {seconds:.1f} s")

    def _fitting(self, paths: Sequence[str], point: Point) -> list[str]:
        """The paths whose cache and activations fit; else out of memory, with the point."""
        able = [
            path
            for path in paths
            if path in self.held
            and experiment.fits(self.config, self._stored(path), self.device, point)
        ]
        if not able:
            raise MemoryError(f"{point.name} tokens do not fit beside the weights")
        return able

    def _stored(self, path: str) -> str:
        """The precision whose bytes a path reads."""
        known = {self.half: self.half, self.half_graph: self.half, INT8_GRAPH: INT8_FAST}
        return known.get(path, INT8)

    # --- the measurements

    def _decode(self, paths: Sequence[str], point: Point) -> None:
        batch, context = point
        longest = Point(batch, context + self.sizes.steps)
        for group in self._groups(self._fitting(paths, longest), longest):
            with self._giving_back(group) as runs:
                for path in group:
                    runs[path] = self._switched(
                        path, decoder(self.held[path], point, self.sizes.steps)
                    )
                self._record(_case("decode", point), runs, batch * self.sizes.steps)

    def _fused(self, paths: Sequence[str]) -> None:
        """How much faster a graph is whose kernels `torch.compile` has fused, in the same rounds."""
        point = self.sizes.points[0]
        longest = Point(point.batch, point.tokens + self.sizes.steps)
        for path in self._fitting(paths, longest):
            pair = {"plain": self.held[path], "fused": self.held[path].compiled()}
            with self._giving_back([path]) as runs:
                for name, model in pair.items():
                    work = decoder(model, point, self.sizes.steps)
                    runs[name] = partial(lambda work: {"call": work()}, work)
                with torch.inference_mode():
                    times = latency.interleaved(runs, self.sizes.rounds)
            ratio = spread(times["plain"]["call"] / times["fused"]["call"])
            ends = {"low": ratio.low, "high": ratio.high, "n": ratio.n}
            self.results.record(f"fused.{_case('decode', point)}.{path}", ratio.median, "x", **ends)

    def _prefill(self, paths: Sequence[str]) -> None:
        point = Point(1, self.sizes.prompt)
        for group in self._groups(self._fitting(paths, point), point):
            with self._giving_back(group) as runs:
                for path in group:
                    runs[path] = self._switched(path, prefiller(self.held[path], point))
                self._record(_case("prefill", point), runs, self.sizes.prompt)

    def _groups(self, paths: list[str], point: Point) -> list[list[str]]:
        """The paths that take turns: all, or one after the other where their caches do not all fit."""
        needed = sum(
            experiment.beside_weights(self.config, self._stored(path), self.device, point)
            for path in paths
        )
        if self.together and needed * models.HEADROOM <= models.free_memory(self.device):
            return [paths]
        return [[path] for path in paths]

    @contextlib.contextmanager
    def _giving_back(self, paths: Sequence[str]) -> Iterator[Runs]:
        """Runs to fill; afterwards they and their caches are gone, also where memory ended."""
        runs: Runs = {}
        try:
            yield runs
        finally:
            runs.clear()  # Hugging Face's caches live in them
            for path in paths:
                if isinstance(self.held[path], GraphLlama):
                    self.held[path].reserve(1)

    def _switched(self, path: str, work: Callable[[], float]) -> Callable[[], dict[str, float]]:
        """The run with this path's threshold, which is set beside the clock."""

        def run() -> dict[str, float]:
            experiment.set_threshold(self.held[path], precision_of(path))
            return {"call": work()}

        return run

    def _record(
        self, case: str, runs: Mapping[str, Callable[[], dict[str, float]]], tokens: int
    ) -> None:
        """Record tokens/s of each path, and its ratio to 16 bit within the rounds."""
        with torch.inference_mode():
            times = latency.interleaved(runs, self.sizes.rounds)
        for path, phases in times.items():
            speed = spread(tokens / phases["call"])
            ends = {"low": speed.low, "high": speed.high, "n": speed.n}
            self.results.record(f"{case}.{path}", speed.median, "tokens/s", **ends)
            if self.half in times and path != self.half:
                ratio = spread(times[self.half]["call"] / phases["call"])
                ends = {"low": ratio.low, "high": ratio.high, "n": ratio.n}
                self.results.record(f"ratio.{case}.{path}", ratio.median, "x", **ends)
        if {INT8_GRAPH, self.half_graph} <= times.keys():
            ratio = spread(times[self.half_graph]["call"] / times[INT8_GRAPH]["call"])
            ends = {"low": ratio.low, "high": ratio.high, "n": ratio.n}
            self.results.record(f"over the control.{case}", ratio.median, "x", **ends)

    def _record_ratios(self) -> None:
        """Where the paths did not take turns: the quotient of two medians, without an interval."""
        found = self.results.measurements
        cases = [_case("decode", point) for point in self.sizes.points]
        for case in [*cases, _case("prefill", Point(1, self.sizes.prompt))]:
            quotients = {
                f"ratio.{case}.{path}": (path, self.half)
                for path in (self.half_graph, INT8_GRAPH, LLM_INT8, LLM_INT8_AT_0)
            }
            quotients[f"over the control.{case}"] = (INT8_GRAPH, self.half_graph)
            for name, paths in quotients.items():
                int8, half = (found.get(f"{case}.{path}") for path in paths)
                if half and int8 and name not in found:
                    quotient = int8["value"] / half["value"]
                    note = "unpaired: a quotient of two medians"
                    self.results.record(name, quotient, "x", note=note)
        bandwidth = found.get("bandwidth")
        for path in (self.half_graph, INT8_GRAPH):
            case = _case("decode", self.sizes.points[0])
            speed = found.get(f"{case}.{path}")
            if bandwidth and speed:
                point = self.sizes.points[0]
                read = forward_bytes(self.config, self._stored(path), 1, point.tokens, point.batch)
                share = 100 * speed["value"] / point.batch * read / (1e9 * bandwidth["value"])
                note = "weights and cache that a step reads, of the bandwidth measured here"
                self.results.record(f"share of bandwidth.{case}.{path}", share, "%", note=note)

    def _profile(self, paths: Sequence[str], point: Point) -> None:
        """Kernels started for one token, and the share of a step's time between kernels."""
        for path in paths:
            model = self.held[path]
            experiment.set_threshold(model, precision_of(path))
            step = one_step(model, point)
            with torch.inference_mode():
                kinds = profiler.profile(step, self.device)
            total = sum(kind["seconds"] for kind in kinds.values())
            for kind, entry in kinds.items():
                share = 100 * entry["seconds"] / total
                self.results.record(f"share.{kind}.{path}", share, "%")
            for count in ("operations", "launches"):
                number = sum(kind[count] for kind in kinds.values())
                self.results.record(f"{count} per token.{path}", number, "count")

    def _peaks(self, paths: Sequence[str]) -> None:
        """The most bytes held beside the weights while the prompt is read."""
        point = Point(1, self.sizes.prompt)
        for path in self._fitting(paths, point):
            experiment.set_threshold(self.held[path], precision_of(path))
            with self._giving_back([path]):
                work = prefiller(self.held[path], point)
                peak = memory.peak_bytes(work, self.device)["peak"]
            self.results.record(f"peak.1x{self.sizes.prompt}.{path}", peak, "bytes")

    def _bandwidth(self, paths: Sequence[str]) -> None:
        """Bytes/s that the device reads, and the tokens/s that this allows each path at batch 1."""
        bandwidth = latency.read_bandwidth(self.device, megabytes=self.sizes.megabytes)
        self.results.record("bandwidth", bandwidth / 1e9, "GB/s")
        for path in paths:
            bytes_ = weight_bytes(self.config, self._stored(path)).read_per_token
            self.results.record(f"bound.{path}", decode_bound(bytes_, bandwidth), "tokens/s")

    def _codes(self) -> None:
        """bitsandbytes' codes, scales and outlier columns on this device against our own."""
        model = self.held[LLM_INT8]
        experiment.set_threshold(model, INT8)
        layers = checked_layers(model)
        inputs = inputs_of(model, layers, min(CHECKED_ROWS, self.sizes.prompt))
        counts = Counts()
        for name, layer in layers.items():
            weight = self._original(name)
            counts.add_weight(layer, weight)
            for rows in (inputs[name], with_outliers(weight.shape[1], self.device)):
                counts.add_activations(rows)
        counts.record(self.results)

    def _original(self, name: str) -> Tensor:
        """The layer's 16-bit weights: of the model beside it, else made once more."""
        if self.half in self.held:
            return self.held[self.half].get_submodule(name).weight.detach()
        if not self.name.startswith(models.SYNTHETIC):
            raise MemoryError("the 16-bit weights are not on the device beside the int8 ones")
        layer = self.held[LLM_INT8].get_submodule(name)
        shape = (layer.out_features, layer.in_features)
        return random_tensor(f"{name}.weight", shape, torch_dtype(self.half), self.device)


def _case(phase: str, point: Point) -> str:
    """The case's name in results: "decode.4x128"."""
    return f"{phase}.{point.batch}x{point.tokens}"


def graph_of(half: str) -> str:
    """The control's name: 16-bit weights, one graph for each step."""
    return f"{half}, one graph"


def loaded(name: str, precision: str, device: str) -> nn.Module:
    """The model; in int8-fast with a GPU's layers on every device, so that a CPU runs the same code."""
    if precision == INT8_FAST and device == "cpu":
        return replace_layers(models.load_model(name, models.baseline_precision(device), device))
    return models.load_model(name, precision, device, threshold=THRESHOLD)


def _without_int8_fast(device: str) -> str:
    """Why int8-fast cannot run here; empty where it can."""
    if device == "cpu":
        return ""
    try:
        models.check_precision(INT8_FAST, device)
    except PrecisionError as error:
        return str(error)
    return ""


def precision_of(path: str) -> str:
    """The name that `experiment.set_threshold` knows the path by."""
    return NO_DECOMPOSITION if path == LLM_INT8_AT_0 else INT8


def timed(work: Callable[[], Any], device: torch.device) -> float:
    """Seconds of `work` by the device's own clock (CUDA events), waiting for it to end."""
    if device.type != "cuda":
        start = time.perf_counter()
        work()
        return time.perf_counter() - start
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    torch.cuda.synchronize(device)
    begin.record()
    work()
    end.record()
    torch.cuda.synchronize(device)
    return begin.elapsed_time(end) / 1e3


def decoder(model: nn.Module, point: Point, steps: int) -> Callable[[], float]:
    """Seconds of `steps` greedy steps after a prompt of this (batch, length), each time anew.

    The prompt is read once; its cache is cut back to its length before each call.
    """
    tokens = experiment.tokens_of((), model, point)
    if isinstance(model, GraphLlama):
        return graph_decoder(model, tokens, steps)
    cache = latency.prefill(model, tokens)
    step = stepper(model, cache, tokens[:, -1:])

    def run() -> float:
        new = cache.get_seq_length() - point.tokens
        if new:
            cache.crop(-new)  # a length to cut back to is not accepted by every transformers 5
        return timed(lambda: [step() for _ in range(steps)], tokens.device)

    return run


def graph_decoder(model: GraphLlama, tokens: Tensor, steps: int) -> Callable[[], float]:
    """The same for a model whose step is one graph, which the first call captures."""
    model.make_room(tokens.shape[1] + steps, len(tokens))
    model.forward(tokens)

    def run() -> float:
        model.position = tokens.shape[1]
        token = tokens[:, -1]

        def loop() -> None:
            nonlocal token
            for _ in range(steps):
                token = model.step(token).argmax(-1)  # (B,), stays on the device

        return timed(loop, tokens.device)

    return run


def stepper(model: nn.Module, cache: Any, token: Tensor) -> Callable[[], None]:
    """A greedy step for each row of the batch; `token`: (B, 1), the first that is read."""

    def step() -> None:
        nonlocal token
        out = model(token, past_key_values=cache, use_cache=True, logits_to_keep=1)
        token = out.logits[:, -1:].argmax(-1)  # (B, 1), stays on the device

    return step


def one_step(model: nn.Module, point: Point) -> Callable[[], None]:
    tokens = experiment.tokens_of((), model, point)
    return stepper(model, latency.prefill(model, tokens), tokens[:, -1:])


def prefiller(model: nn.Module, point: Point) -> Callable[[], float]:
    """Seconds of one pass over a prompt of this (batch, length) that fills a cache."""
    tokens = experiment.tokens_of((), model, point)
    if not isinstance(model, GraphLlama):
        return lambda: timed(lambda: latency.prefill(model, tokens), tokens.device)

    def run() -> float:
        model.make_room(point.tokens, point.batch)
        return timed(lambda: model.forward(tokens), tokens.device)

    return run


# --- codes


def checked_layers(model: nn.Module) -> dict[str, nn.Module]:
    """The int8 layers of the first, the middle and the last block, by name."""
    count = model.config.num_hidden_layers
    blocks = {f"model.layers.{n}." for n in (0, count // 2, count - 1)}
    return {
        name: module
        for name, module in model.named_modules()
        if hasattr(module, "weight")
        and module.weight.dtype == torch.int8
        and any(name.startswith(block) for block in blocks)
    }


def inputs_of(model: nn.Module, layers: Mapping[str, nn.Module], length: int) -> dict[str, Tensor]:
    """Inputs of each layer while a prompt of `length` tokens is read: (length, K)."""
    found: dict[str, Tensor] = {}

    def keep(name: str) -> Callable[[nn.Module, tuple[Tensor]], None]:
        def hook(_: nn.Module, arguments: tuple[Tensor]) -> None:
            found[name] = arguments[0].detach().flatten(0, -2)  # (1, T, K) -> (T, K)

        return hook

    hooks = [layer.register_forward_pre_hook(keep(name)) for name, layer in layers.items()]
    try:
        latency.prefill(model, experiment.tokens_of((), model, Point(1, length)))
    finally:
        for hook in hooks:
            hook.remove()
    return found


def with_outliers(width: int, device: str, rows: int = 64) -> Tensor:
    """Normal values (rows, width), six channels with twenty times the spread: outliers."""
    generator = torch.Generator().manual_seed(0)
    return plant_outliers(torch.randn(rows, width, generator=generator)).to(device)


@dataclass
class Counts:
    """How many codes, scales and outlier columns of bitsandbytes are not ours."""

    weights: int = 0
    other_weights: int = 0
    activations: int = 0
    other_activations: int = 0
    furthest: int = 0  # of any code, in steps of the grid
    scale: float = 0.0  # largest relative difference of a row's absmax
    columns: int = 0
    other_columns: int = 0

    def add_weight(self, layer: nn.Module, weight: Tensor) -> None:
        """The layer's codes and row scales against those of its 16-bit weights (M, K)."""
        codes, absmax, _ = vectorwise_quantize(weight)
        weights = getattr(layer.weight, "CB", None)
        weights = layer.weight.data if weights is None else weights
        scales = layer.weight.SCB if layer.weight.SCB is not None else layer.state.SCB
        self.weights += codes.numel()
        self.other_weights += self._differing(codes, weights)
        self._scale(absmax, scales)

    def add_activations(self, x: Tensor) -> None:
        """bitsandbytes' codes for rows (N, K) against ours, at the threshold."""
        import bitsandbytes.functional as bnb

        codes, absmax, columns = vectorwise_quantize(x, THRESHOLD)
        theirs, their_absmax, their_columns = bnb.int8_vectorwise_quant(x.half(), THRESHOLD)
        theirs = theirs.clone()
        their_columns = columns[:0] if their_columns is None else their_columns
        # Some of its kernels leave codes in outlier columns; the product does not read them there.
        theirs[:, their_columns] = 0
        self.activations += codes.numel()
        self.other_activations += self._differing(codes, theirs)
        self._scale(absmax, their_absmax)
        ours, others = set(columns.tolist()), set(their_columns.tolist())
        self.columns += len(ours)
        self.other_columns += len(ours ^ others)

    def _differing(self, codes: Tensor, theirs: Tensor) -> int:
        distance = (codes.int() - theirs.to(codes.device).int()).abs()
        self.furthest = max(self.furthest, int(distance.max()))
        return int(distance.count_nonzero())

    def _scale(self, absmax: Tensor, theirs: Tensor) -> None:
        difference = (absmax - theirs.flatten().to(absmax.device)).abs()
        relative = difference / absmax.clamp_min(torch.finfo(torch.float32).tiny)
        self.scale = max(self.scale, float(relative.max()))

    def record(self, results: Results) -> None:
        """All of it, each count with the number that was compared."""
        results.record("codes.weights.differing", self.other_weights, "count", n=self.weights)
        results.record(
            "codes.activations.differing", self.other_activations, "count", n=self.activations
        )
        results.record("codes.furthest", self.furthest, "count", note="in steps of the grid")
        results.record("codes.scales", 100 * self.scale, "%", note="largest relative difference")
        results.record("codes.columns.differing", self.other_columns, "count", n=self.columns)


def lines(results: Results, half: str) -> list[str]:
    """The measured numbers as a short table: a row for each case, a column for each path."""
    paths = (half, graph_of(half), INT8_GRAPH, LLM_INT8, LLM_INT8_AT_0)
    found = results.measurements
    shown = [f"{'tokens/s':22}" + "".join(f"{path:>25}" for path in paths)]
    cases = dict.fromkeys(
        name.rpartition(f".{half}")[0] for name, m in found.items() if m["unit"] == "tokens/s"
    )
    for case in filter(None, cases):
        cells = [found.get(f"{case}.{path}") for path in paths]
        values = [f"{np.round(c['value'], 1):,.1f}" if c else "not measured" for c in cells]
        shown.append(f"{case:22}" + "".join(f"{value:>25}" for value in values))
    return shown
