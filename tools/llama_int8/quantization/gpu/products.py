"""Weight-only int8 products in plain PyTorch: the kernel's twin, and two ways for long prompts.

Shapes: N tokens, M outputs, K inputs, G groups of inputs.
"""

import time
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor
from torch.nn.functional import linear

from llama_int8.quantization.cpu.packing import quantize_groups

INT_MM_FROM = 17  # tokens: on CUDA `torch._int_mm` takes no fewer


def dequantize(codes: Tensor, scale: Tensor, group: int | None, dtype: torch.dtype) -> Tensor:
    """Codes (M, K) x scales (M, G) -> (M, K), multiplied in FP32 and rounded once, to `dtype`."""
    out = torch.empty(codes.shape, dtype=dtype, device=codes.device)
    if group is None:
        return torch.mul(codes, scale.float(), out=out)
    if codes.shape[1] % group == 0:  # on a GPU one kernel that reads int8 and writes 16 bit
        grouped = codes.unflatten(1, (-1, group))
        torch.mul(grouped, scale.float()[..., None], out=out.view(grouped.shape))
        return out
    spread = scale.float().repeat_interleave(group, 1)[:, : codes.shape[1]]
    return torch.mul(codes, spread, out=out)


def plain_product(
    x: Tensor, codes: Tensor, scale: Tensor, bias: Tensor | None, group: int | None
) -> Tensor:
    """The kernel's product by PyTorch: operands and sums in FP32, (N, K) -> (N, M) in x's dtype."""
    return linear(x.float(), dequantize(codes, scale, group, torch.float32), bias).to(x.dtype)


def by_dequantizing(
    x: Tensor, codes: Tensor, scale: Tensor, bias: Tensor | None, group: int | None
) -> Tensor:
    """The weights restored in x's dtype, then the library's product: one pass for many tokens."""
    bias = None if bias is None else bias.to(x.dtype)
    return linear(x, dequantize(codes, scale, group, x.dtype), bias)


def by_int_mm(
    x: Tensor, codes: Tensor, scale: Tensor, bias: Tensor | None, group: int | None
) -> Tensor:
    """Activations in int8 as well, one scale for each token (W8A8), by `torch._int_mm`.

    Needs one scale for each row of weights, and K and M that are multiples of 8. Faster on a card
    with int8 tensor cores, and less exact: a token's largest activation coarsens all of its others.
    """
    assert group is None  # `prefills` offers it for nothing else
    tokens, of_tokens = quantize_groups(x.float()[:, None])  # (N, 1, K), (N, 1)
    sums = torch._int_mm(tokens[:, 0], codes.T)  # (N, M), int32
    y = sums * of_tokens * scale.float().T
    return (y if bias is None else y + bias).to(x.dtype)


PREFILLS: dict[str, Callable[..., Tensor]] = {
    "dequantize": by_dequantizing,
    "int_mm": by_int_mm,
}


def prefills(shape: tuple[int, int], group: int | None) -> tuple[str, ...]:
    """Names of the ways that a layer of this shape, (M, K), and these groups can take."""
    fits = group is None and not any(size % 8 for size in shape)
    return ("dequantize", "int_mm") if fits else ("dequantize",)


def fastest_prefill(
    x: Tensor, codes: Tensor, scale: Tensor, group: int | None, repeats: int = 5
) -> str:
    """The name of the fastest way for `x` (N, K), N of 17 or more, timed here and now."""
    names = prefills(tuple(codes.shape), group)
    if len(names) == 1:
        return names[0]
    runs = {name: partial(PREFILLS[name], x, codes, scale, None, group) for name in names}
    times = {
        name: min(_seconds(run, x.device) for _ in range(repeats)) for name, run in runs.items()
    }
    return min(times, key=times.__getitem__)


def _seconds(run: Callable[[], Tensor], device: torch.device) -> float:
    wait = torch.cuda.synchronize if device.type == "cuda" else lambda: None
    wait()
    start = time.perf_counter()
    run()
    wait()
    return time.perf_counter() - start
