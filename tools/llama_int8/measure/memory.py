"""Bytes that a model really holds."""

import contextlib
import ctypes
import gc
import weakref
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import psutil
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


def weight_memory(model: torch.nn.Module) -> int:
    """Bytes of all weights in memory, shared storage counted once: what `state_dict` holds.

    That takes in weights kept as buffers, and the row scales (`SCB`) that bitsandbytes keeps
    outside the parameters, so that `get_memory_footprint()` leaves them out.
    """
    tensors = (
        tensor
        for name, tensor in model.state_dict(keep_vars=True).items()
        if not name.endswith("weight_format")  # bitsandbytes makes it up for the file
    )
    storages = {
        tensor.untyped_storage().data_ptr(): tensor.untyped_storage().nbytes() for tensor in tensors
    }
    return sum(storages.values())


def snapshot(device: str) -> dict[str, int]:
    """Bytes now: "process" (resident), and on a GPU "allocated" by tensors, "reserved", "card".

    "reserved" is what PyTorch's allocator has taken from the card, "card" all that is taken of it,
    by CUDA itself and by other programs, too.
    """
    found = {"process": psutil.Process().memory_info().rss}
    if device != "cpu":
        free, total = torch.cuda.mem_get_info()
        found |= {
            "allocated": torch.cuda.memory_allocated(),
            "reserved": torch.cuda.memory_reserved(),
            "card": total - free,
        }
    return found


def peak_bytes(run: Callable[[], object], device: str) -> dict[str, int]:
    """Call `run`: {"peak": the most bytes held at once beyond what was there before, ...}.

    On a GPU by the allocator's own statistics, with `snapshot` after the run. On a CPU from every
    allocation that PyTorch's profiler saw, buffers inside a library's operations included.
    """
    if device != "cpu":
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        run()
        torch.cuda.synchronize()
        return {"peak": torch.cuda.max_memory_allocated() - before, **snapshot(device)}
    with torch.profiler.profile(profile_memory=True) as recorded:
        run()
    # The only record of single allocations; FunctionEvent adds them up by operation.
    events = [e for e in recorded.profiler.kineto_results.events() if e.name() == "[memory]"]
    held = np.cumsum([e.nbytes() for e in sorted(events, key=lambda e: e.start_ns())])
    return {"peak": int(held.max(initial=0)), **snapshot(device)}


def release() -> None:
    """Give freed memory back, so that the next model finds it."""
    gc.collect()
    with contextlib.suppress(OSError, AttributeError):  # glibc keeps freed blocks: 1 GB for 1 GB
        ctypes.CDLL(None).malloc_trim(0)
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()


@contextlib.contextmanager
def count_new_bytes() -> Iterator["NewBytes"]:
    """Count the bytes of the tensors that are made inside the block and still held.

    With PyTorch's own bookkeeping of operations, so that the count is exact and the same on every
    machine; a library's hidden buffers are not seen. What autograd keeps for the backward pass is.
    """
    counter = NewBytes()
    mode = _counting_mode(counter)
    with mode:
        yield counter


@dataclass
class NewBytes:
    """Bytes held now, and the most that were held at once."""

    held: int = 0
    peak: int = 0

    def change(self, bytes_: int) -> None:
        self.held += bytes_
        self.peak = max(self.peak, self.held)


def _counting_mode(counter: NewBytes) -> torch.utils._python_dispatch.TorchDispatchMode:
    known: set[int] = set()

    class Counting(TorchDispatchMode):
        def __torch_dispatch__(self, function, types, arguments=(), options=None):
            # What comes in was made earlier, before the block, or is counted already.
            old = {
                id(t.untyped_storage()) for t in tree_leaves((arguments, options)) if is_tensor(t)
            }
            out = function(*arguments, **(options or {}))
            for tensor in filter(is_tensor, tree_leaves(out)):
                storage = tensor.untyped_storage()
                key = id(storage)
                if key not in known and key not in old:
                    known.add(key)
                    counter.change(storage.nbytes())
                    weakref.finalize(storage, forget, key, storage.nbytes())
            return out

    def is_tensor(leaf: object) -> bool:
        return isinstance(leaf, torch.Tensor)

    def forget(key: int, bytes_: int) -> None:
        known.discard(key)
        counter.change(-bytes_)

    return Counting()
