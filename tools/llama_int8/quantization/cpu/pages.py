"""Tensors in pages of 2 MiB, where Linux has them.

A decode step touches every page of the weights once. In the usual pages of 4 KiB each of them must be
looked up, and a processor's prefetching ends at its border.
"""

import mmap
from collections.abc import Sequence

import torch
from torch import Tensor

LARGE = 2 * 2**20
LINE = 64  # bytes, at a multiple of which each tensor begins


class LargePages:
    """Room for tensors of `nbytes` in all, one after another. It lives as long as any of them."""

    def __init__(self, nbytes: Sequence[int]) -> None:
        total = sum(_whole_lines(size) for size in nbytes)
        self._memory: mmap.mmap | None = None
        if total >= LARGE and hasattr(mmap, "MADV_HUGEPAGE"):
            self._memory = mmap.mmap(-1, total, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
            self._advise()
        self._end = 0

    def _advise(self) -> None:
        try:
            self._memory.madvise(mmap.MADV_HUGEPAGE)
        except OSError:  # a kernel without them
            self._memory = None

    def copy(self, tensor: Tensor) -> Tensor:
        """The same values in this room; the tensor itself where there is none."""
        if self._memory is None or tensor.nbytes == 0:
            return tensor
        return self._next(tensor.shape, tensor.dtype).copy_(tensor)

    def zeros(self, shape: Sequence[int], dtype: torch.dtype) -> Tensor:
        """Zeros in this room, or anywhere."""
        if self._memory is None or 0 in shape:
            return torch.zeros(shape, dtype=dtype)
        return self._next(shape, dtype)

    def _next(self, shape: Sequence[int], dtype: torch.dtype) -> Tensor:
        count, start = torch.Size(shape).numel(), self._end
        self._end += _whole_lines(count * dtype.itemsize)
        flat = torch.frombuffer(self._memory, dtype=dtype, count=count, offset=start)
        return flat.view(shape)


def _whole_lines(nbytes: int) -> int:
    return -(-nbytes // LINE) * LINE
