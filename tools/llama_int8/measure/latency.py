"""Seconds of prefill and of decode, measured apart, and fairly: interleaved, after a warm-up."""

import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
import psutil
import torch
from tqdm.auto import tqdm
from transformers import DynamicCache

from llama_int8.dtypes import torch_dtype
from llama_int8.processor import processor
from llama_int8.quantization.cpu import kernels
from llama_int8.quantization.cpu.pages import LargePages
from llama_int8.quantization.matmul import int8_matmul

Run = Callable[[], dict[str, float]]  # seconds by phase


def interleaved(
    runs: Mapping[str, Callable[[], Mapping[str, float]]], rounds: int, warmup: int = 1
) -> dict[str, dict[str, np.ndarray]]:
    """Call every run once a round, so that all of them meet the same moments of a noisy machine;
    every second round in the opposite order, so that none always follows the same one.

    A run returns seconds by phase. Returns {run: {phase: seconds of shape (rounds,)}}; round r of
    one run is paired with round r of another, so that a ratio can be taken within the round.
    Raises ValueError for fewer than one round.
    """
    if rounds < 1:
        raise ValueError(f"rounds is {rounds}; at least 1 is needed")
    for _ in range(warmup):
        for run in runs.values():
            run()
    taken: dict[str, list[Mapping[str, float]]] = {name: [] for name in runs}
    for number in tqdm(range(rounds), desc="rounds", leave=False):
        for name in reversed(runs) if number % 2 else runs:
            taken[name].append(runs[name]())
    return {
        name: {phase: np.array([one[phase] for one in times]) for phase in times[0]}
        for name, times in taken.items()
    }


def prefill_and_decode(
    model: torch.nn.Module, tokens: torch.Tensor, new_tokens: int
) -> dict[str, float]:
    """Seconds of one pass over the prompt, and of `new_tokens` greedy steps after it.

    `tokens`: prompt of shape (B, T). The first new token comes out of the prefill, so the decode
    phase is `new_tokens` further passes over one token each.
    """
    cache = DynamicCache()  # the same one for every model, ours and Hugging Face's

    def now() -> float:
        if tokens.device.type == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter()

    def step(new: torch.Tensor) -> torch.Tensor:
        out = model(new, past_key_values=cache, use_cache=True, logits_to_keep=1)
        return getattr(out, "logits", out)[:, -1:].argmax(-1)  # (B, 1)

    with torch.inference_mode():
        start = now()
        next_token = step(tokens)
        middle = now()
        for _ in range(new_tokens):
            next_token = step(next_token)
        end = now()
    return {"prefill": middle - start, "decode": end - middle}


def prefill(model: torch.nn.Module, tokens: torch.Tensor, cache: Any = None) -> Any:
    """One pass over `tokens` (B, T) that fills a KV cache; returns the cache."""
    cache = DynamicCache() if cache is None else cache
    with torch.inference_mode():
        model(tokens, past_key_values=cache, use_cache=True, logits_to_keep=1)
    return cache


class MemoryReader:
    """Reads an array on a CPU, whole and with all threads, and does nothing else: a step's ceiling.

    By the kernel's own library, in as many places at once as is fastest here; where there is no
    kernel, as a sum of PyTorch's.
    """

    def __init__(self, nbytes: int) -> None:
        whole_lines = -(-nbytes // kernels.LINE) * kernels.LINE
        # As a step's weights lie: in pages of another size the ceiling could be exceeded.
        self.data = LargePages([whole_lines]).zeros([whole_lines // 8], torch.int64).fill_(1)
        self._streams: dict[int, int] = {}  # the fastest, by number of threads

    def read(self) -> None:
        """Read the array once."""
        library = kernels.chosen().library
        if library is None:
            self.data.sum()
        else:
            kernels.sum_memory(library, self.data, self._fastest(library))

    def _fastest(self, library: Any) -> int:
        threads = torch.get_num_threads()
        if threads not in self._streams:
            runs = {
                str(streams): repeated(partial(kernels.sum_memory, library, self.data, streams), 1)
                for streams in kernels.STREAMS
            }
            taken = interleaved(runs, 3)
            self._streams[threads] = int(min(taken, key=lambda name: taken[name]["call"].min()))
        return self._streams[threads]


def read_bandwidth(device: str, megabytes: int | None = None, repeats: int = 15) -> float:
    """Bytes/s that `device` reads from memory: the best of several runs over a large array.

    A ceiling is the best run, not the median: a disturbance only makes a run slower. `megabytes`:
    None is 512, on a CPU at least four times its last cache, as far as memory is free.
    """
    run, nbytes = _reading(device, megabytes)
    return nbytes / min(run()["call"] for _ in range(repeats + 1))


def _reading(device: str, megabytes: int | None = None) -> tuple[Run, int]:
    """A run that reads a large array, and the array's bytes."""
    if device == "cpu":
        beyond = 4 * max(processor().caches.values(), default=0)
        usual = min(max(2**29, beyond), psutil.virtual_memory().available // 4)
        reader = MemoryReader(megabytes * 2**20 if megabytes else usual)
        data, work = reader.data, reader.read
    else:
        data = torch.ones((megabytes or 512) * 2**20 // 4, device=device)
        work = data.sum
    return repeated(work, 1, device), data.nbytes


def matrix_throughput(
    device: str, precision: str, size: int | None = None, repeats: int = 8
) -> float:
    """Operations/s of a (size, size) matrix product in this precision: the best of several.

    On a large GPU a product of 2,048 rows takes no longer than its launch, so there the matrices are
    larger, and several calls are timed as one.
    """
    run, operations = _product(device, precision, size)
    return operations / min(run()["call"] for _ in range(repeats + 1))


def _product(device: str, precision: str, size: int | None = None) -> tuple[Run, int]:
    """A run that multiplies two matrices, and its number of operations."""
    size = size or (2048 if device == "cpu" else 8192)
    calls = 1 if device == "cpu" else 20
    generator = torch.Generator().manual_seed(0)
    first, second = (
        torch.randint(-127, 128, (size, size), generator=generator, dtype=torch.int8).to(device)
        for _ in range(2)
    )
    if precision == "int8":
        work = partial(int8_matmul, first, second)
    else:
        dtype = torch_dtype(precision)
        # As a layer multiplies: FP16 has a fast kernel only for a transposed factor.
        work = partial(torch.nn.functional.linear, first.to(dtype), second.to(dtype))
    return repeated(work, calls, device), 2 * size**3


class Roofs:
    """The best that a device did: "read" in bytes/s, products in operations/s by precision.

    A roof is the best run, and a busy neighbour presses down every run of a minute. So `measure` is
    called at several moments; in each, reading and the products take turns.
    """

    def __init__(
        self,
        device: str,
        precisions: Sequence[str],
        size: int | None = None,
        megabytes: int | None = None,
    ) -> None:
        self.best: dict[str, float] = {}
        self._device, self._precisions = device, precisions
        self._size, self._megabytes = size, megabytes

    def measure(self, rounds: int = 3) -> None:
        """Time every kind once more, and keep what was better than before."""
        runs = self._make()  # made again each time: a model may need the room in between
        taken = interleaved({name: run for name, (run, _) in runs.items()}, rounds)
        for name, (_, work) in runs.items():
            found = work / float(taken[name]["call"].min())
            self.best[name] = max(found, self.best.get(name, 0.0))

    def _make(self) -> dict[str, tuple[Run, int]]:
        products = {p: _product(self._device, p, self._size) for p in self._precisions}
        return {"read": _reading(self._device, self._megabytes), **products}


def repeated(
    work: Callable[[], object], calls: int, device: str = "cpu"
) -> Callable[[], dict[str, float]]:
    """A run for `interleaved` with one phase, "call": the mean of `calls` calls in a row."""

    def wait() -> None:
        if device != "cpu":
            torch.cuda.synchronize()

    def run() -> dict[str, float]:
        wait()
        start = time.perf_counter()
        for _ in range(calls):
            work()
        wait()
        return {"call": (time.perf_counter() - start) / calls}

    return run
