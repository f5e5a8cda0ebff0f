"""Bytes that a model really holds."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch


def weight_memory(model: "torch.nn.Module") -> int:
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


def release() -> None:
    """Give freed memory back, so that the next model finds it."""
    import gc

    import torch

    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
