"""The product of two int8 matrices, exact in int32, in a way that is fast on the machine."""

import torch
from torch import Tensor
from torch.nn.functional import pad

LARGEST_INNER = (2**31 - 1) // 128**2  # 131,071: beyond it a sum of products can exceed int32
_PIECE = 2**24 // 128**2  # 1,024: so many products stay below 2^24, where FP32 holds every integer


def int8_matmul(a: Tensor, b: Tensor) -> Tensor:
    """a times b transposed: int8 (M, K) and int8 (N, K) -> int32 (M, N), exact for every code.

    `torch._int_mm` where it is fast (CUDA, or a CPU with AVX-512 VNNI), else FP32 products of
    pieces so short that FP32 is exact. Raises TypeError for another dtype, ValueError for shapes
    that do not fit and for an inner dimension above 131,071, from which on int32 can overflow.
    """
    if a.dtype != torch.int8 or b.dtype != torch.int8:
        raise TypeError(f"the codes are {a.dtype} and {b.dtype}; both must be torch.int8")
    if a.dim() != 2 or b.dim() != 2 or a.shape[1] != b.shape[1]:
        raise ValueError(
            f"shapes are {tuple(a.shape)} and {tuple(b.shape)}; expected (M, K) and (N, K)"
        )
    inner = a.shape[1]
    if inner > LARGEST_INNER:
        raise ValueError(
            f"the inner dimension is {inner}; int32 holds every sum up to {LARGEST_INNER}. Split it"
        )
    if a.is_cuda:
        return _on_cuda(a, b)
    # Without VNNI it is a slow loop; at K = 1 PyTorch 2.13 returns what happens to be in memory.
    if torch.cpu._is_vnni_supported() and inner > 1:
        return torch._int_mm(_plain(a), _plain(b).T)
    return in_exact_pieces(a, b)


def in_exact_pieces(a: Tensor, b: Tensor) -> Tensor:
    """The same product from FP32 products of at most 1,024 columns, each of them exact."""
    total = torch.zeros(a.shape[0], b.shape[0], dtype=torch.int32, device=a.device)
    for start in range(0, a.shape[1], _PIECE):
        piece = slice(start, start + _PIECE)
        total += (a[:, piece].float() @ b[:, piece].float().T).int()
    return total


def _plain(codes: Tensor) -> Tensor:
    """The codes with a fresh matrix's strides; `_int_mm` on a CPU trusts those of a repeated row."""
    if codes.stride() == (codes.shape[1], 1):
        return codes
    return codes.clone(memory_format=torch.contiguous_format)


def _on_cuda(a: Tensor, b: Tensor) -> Tensor:
    """`torch._int_mm` on CUDA needs more than 16 rows, and K and N in eights; zeros fill up."""
    (rows, inner), columns = a.shape, b.shape[0]
    a = pad(a, (0, -inner % 8, 0, max(0, 32 - rows)))
    b = pad(b, (0, -inner % 8, 0, -columns % 8))
    return torch._int_mm(a, b.T)[:rows, :columns]
