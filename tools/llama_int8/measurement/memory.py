"""Bytes that a model really holds, and what the process and the GPU hold."""

from typing import TYPE_CHECKING

import psutil

if TYPE_CHECKING:
    import torch


def weight_memory(model: "torch.nn.Module") -> int:
    """Bytes of all weights in memory, shared storage counted once, bitsandbytes' scales included.

    bitsandbytes keeps each layer's row scales (`SCB`) outside the parameters, so
    `get_memory_footprint()` leaves them out.
    """
    tensors = list(model.parameters())
    for module in model.modules():
        for owner in (getattr(module, "weight", None), getattr(module, "state", None)):
            tensors.append(getattr(owner, "SCB", None))
    storages = {
        t.untyped_storage().data_ptr(): t.untyped_storage().nbytes()
        for t in tensors
        if t is not None
    }
    return sum(storages.values())


def process_memory() -> int:
    """Resident bytes of this process."""
    return psutil.Process().memory_info().rss


def device_peak(device: str) -> int | None:
    """Most bytes that PyTorch has had allocated on the GPU since the last reset; None on a CPU."""
    import torch

    return None if device == "cpu" else torch.cuda.max_memory_allocated()


def release() -> None:
    """Give freed memory back, so that the next model finds it."""
    import gc

    import torch

    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
