"""PyTorch's attention by each of its backends: time, memory, and its share of a model's work."""

import contextlib
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any
from unittest import mock

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import scaled_dot_product_attention

from llama_int8.measure import latency, memory, profiler
from llama_int8.models.cost import (
    attention_flops,
    forward_bytes,
    forward_flops,
    kv_cache_bytes,
)
from llama_int8.transformer import llama
from llama_int8.transformer.config import LlamaConfig
from llama_int8.transformer.flash import flash_attention_2
from llama_int8.transformer.generation import KVCache

# PyTorch's names (torch.nn.attention.SDPBackend) behind ours.
BACKENDS = {
    "math": "MATH",
    "memory-efficient": "EFFICIENT_ATTENTION",
    "flash": "FLASH_ATTENTION",
    "cuDNN": "CUDNN_ATTENTION",
}
OURS = "ours, in PyTorch"
NOTHING = "no attention"


def with_flash_2(q: Tensor, k: Tensor, v: Tensor, causal: bool) -> Tensor:
    """`flash_attention_2` of the package, in blocks of 128."""
    return flash_attention_2(q, k, v, causal, 128, 128)[0]


@contextlib.contextmanager
def using(name: str, own: Callable[..., Tensor] = with_flash_2) -> Iterator[None]:
    """Within the block attention runs only by this backend, or raises RuntimeError.

    `OURS` is `own(q, k, v, causal)` in the place of PyTorch's function in our own `Llama`; q has H
    heads, k and v H_kv. `NOTHING` returns q there: the model's time without attention. Raises
    ValueError for an unknown name.
    """

    def ours(q: Tensor, k: Tensor, v: Tensor, mask: Any, is_causal: bool, enable_gqa: bool) -> Any:
        # The model's mask is the causal one, aligned to the last key: ours as well.
        return own(q, k, v, is_causal or mask is not None)

    def nothing(q: Tensor, *_: Any, **__: Any) -> Tensor:
        return q

    if name in (OURS, NOTHING):
        instead = ours if name == OURS else nothing
        with mock.patch.object(llama, "scaled_dot_product_attention", instead):
            yield
    elif name in BACKENDS:
        with sdpa_kernel([getattr(SDPBackend, BACKENDS[name])]):
            yield
    else:
        raise ValueError(f"backend {name!r} is unknown; there are {', '.join((*BACKENDS, OURS))}")


def refusals(q: Tensor, k: Tensor, v: Tensor, grouped: bool = False) -> dict[str, str]:
    """Why a backend does not take these tensors, in PyTorch's own words; "" where it does.

    `grouped`: k and v have fewer heads than q (`enable_gqa`).
    """
    found = {}
    for name in BACKENDS:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            try:
                with using(name):
                    scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=grouped)
                found[name] = ""
            except RuntimeError as error:
                said = [str(w.message).partition(" (Triggered")[0] for w in caught]
                kernel = (
                    f"no kernel for {q.device.type}" if "No viable" in str(error) else str(error)
                )
                found[name] = next((s for s in said if "not been run" not in s), kernel)
    return found


def logits_by(
    model: torch.nn.Module,
    tokens: Tensor,
    backends: Sequence[str],
    own: Callable[..., Tensor] = with_flash_2,
) -> dict[str, Tensor]:
    """Logits (B, T, V) of our `Llama` by each backend that takes its dtype and its heads."""
    found = {}
    for name in backends:
        with contextlib.suppress(RuntimeError), using(name, own), torch.inference_mode():
            found[name] = model(tokens)
    return found


def over_length(
    lengths: Sequence[int],
    runs: Mapping[str, Callable[[Tensor, Tensor, Tensor], Any]],
    heads: int,
    head_dim: int,
    dtype: torch.dtype,
    device: str,
    rounds: int,
) -> dict[int, dict[str, dict[str, Any]]]:
    """{length: {run: {"seconds": one per round, "peak": bytes beyond q, k, v}}}; runs take turns.

    Of a short length several calls are timed as one, so that a single hiccup weighs less.
    """
    found: dict[int, dict[str, dict[str, Any]]] = {}
    for length in lengths:
        generator = torch.Generator().manual_seed(0)
        q, k, v = (
            torch.randn(1, heads, length, head_dim, generator=generator).to(device, dtype)
            for _ in range(3)
        )
        work = {name: partial(run, q, k, v) for name, run in runs.items()}
        with torch.inference_mode():
            peaks = {name: memory.peak_bytes(one, device)["peak"] for name, one in work.items()}
            calls = max(1, 1024 // length)
            timed = {name: latency.repeated(one, calls, device) for name, one in work.items()}
            times = latency.interleaved(timed, rounds)
        found[length] = {
            name: {"seconds": times[name]["call"].tolist(), "peak": peaks[name]} for name in work
        }
        memory.release()
    return found


def by_backend(name: str, causal: bool = True) -> Callable[[Tensor, Tensor, Tensor], Any]:
    """A run for `over_length`: PyTorch's attention by one backend, causal or not."""

    def run(q: Tensor, k: Tensor, v: Tensor) -> Any:
        with using(name):
            return scaled_dot_product_attention(q, k, v, is_causal=causal)

    return run


def prefill_over_length(
    model: torch.nn.Module, lengths: Sequence[int], backends: Sequence[str], rounds: int
) -> dict[int, dict[str, list[float]]]:
    """{length: {backend: seconds in which our `Llama` reads a prompt, one per round}}."""
    device = next(model.parameters()).device
    found = {}
    for length in lengths:
        tokens = torch.arange(length, device=device)[None] % model.config.vocab_size

        def read(name: str, tokens: Any = tokens) -> Any:
            with using(name), torch.inference_mode():
                return model(tokens, logits_to_keep=1)

        runs = {name: latency.repeated(partial(read, name), 1, device.type) for name in backends}
        times = latency.interleaved(runs, rounds)
        found[length] = {name: one["call"].tolist() for name, one in times.items()}
    return found


def measured_share(model: torch.nn.Module, backend: str, new: int, past: int) -> float:
    """Share of PyTorch's operations' time that attention takes while our `Llama` reads `new` tokens.

    What lies between operations is left out: a graph or a compiler would remove it.
    """
    weight = next(model.parameters())
    tokens = torch.ones(1, new, dtype=torch.long, device=weight.device)
    config = model.config
    shape = (1, config.num_key_value_heads, past, config.head_dim)

    cache = KVCache() if past else None
    for layer in range(config.num_hidden_layers if past else 0):
        empty = torch.zeros(shape, dtype=weight.dtype, device=weight.device)
        cache.update(empty, empty, layer)

    def read() -> None:  # one token longer with each call
        with using(backend), torch.inference_mode():
            model(tokens, cache, logits_to_keep=1)

    kinds = profiler.profile(read, weight.device.type)
    seconds = {kind: entry["seconds"] for kind, entry in kinds.items()}
    seconds.pop("between operations")
    return seconds["attention"] / sum(seconds.values())


def predicted_share(config: LlamaConfig, new: int, past: int) -> float:
    """Share of attention in the work by the cost model: of operations, or for one token of bytes.

    A prompt is bound by operations, a step by bytes: there attention reads the cache in 16 bit, all
    else the weights.
    """
    if new > 1:
        return attention_flops(config, new, past) / forward_flops(config, new, past)
    cache = kv_cache_bytes(config, past + new)
    return cache / forward_bytes(config, "bf16", new, past)
