"""Where the time of one forward pass goes, by kind of operation, from PyTorch's profiler."""

from collections.abc import Callable, Mapping, Sequence
from statistics import median
from typing import Any

from torch.autograd.profiler_util import FunctionEvent
from torch.profiler import ProfilerActivity
from torch.profiler import profile as profiler

from llama_int8.measure.latency import repeated

KINDS = (
    "16-bit products",
    "int8 products",
    "finding outliers, quantizing",
    "scaling the product",
    "outlier columns",
    "attention",
    "everything else",
    "between operations",
)
CALLS = 4  # of what is profiled
_PRODUCTS = ("aten::mm", "aten::addmm", "aten::bmm")
_INT8_PRODUCTS = (
    "aten::_int_mm",
    "aten::_weight_int8pack_mm",
    "bitsandbytes::int8_linear_matmul",
    "int8_fast::linear",
    "int8_fast::step",
)
_AROUND = {
    "bitsandbytes::int8_vectorwise_quant": "finding outliers, quantizing",
    "bitsandbytes::int8_mm_dequant": "scaling the product",
    "bitsandbytes::int8_scaled_mm": "scaling the product",
    "bitsandbytes::int8_vectorwise_dequant": "outlier columns",
    "bitsandbytes::int8_mixed_scaled_mm": "outlier columns",  # and their product, and its sum
}


def kind_of(names: list[str]) -> str:
    """Kind of an operation from its name and those of the operations that called it, inner first.

    What bitsandbytes does around its product has three kinds. A profile calls the second of them
    "dequant", but no weight is restored there: the int32 sums are multiplied by both scales. Weights
    are restored with the outlier columns, and only theirs. Without AVX-512 bitsandbytes multiplies
    the int8 codes in FP32: that is its int8 product.
    """
    if "int8_fast::linear" in names[1:]:  # what PyTorch does around the kernel's call
        return "finding outliers, quantizing"
    if any(name in _INT8_PRODUCTS for name in names):
        return "int8 products"
    for name in names:  # the innermost of bitsandbytes' operations decides
        if name in _AROUND:
            return _AROUND[name]
    if any(name.startswith(("bitsandbytes::", "MatMul8bitLt")) for name in names):
        return "finding outliers, quantizing"
    if any("scaled_dot_product" in name for name in names):
        return "attention"
    return "16-bit products" if names[0] in _PRODUCTS else "everything else"


def profile(
    run: Callable[[], Any], device: str = "cpu", calls: int = CALLS
) -> dict[str, dict[str, float]]:
    """Call `run`, the last time profiled: {kind: {"seconds", "operations", "launches"}}.

    On a CPU the seconds are those inside operations; on a GPU those of the kernels, and "launches"
    counts the kernels. What the fastest call without the profiler took beyond these is "between
    operations". Every operation is counted, the ones that it calls as well.
    The profiler itself slows the many small operations: read shares, not sums.
    """
    on_gpu = device != "cpu"
    timed = repeated(run, 1, device)
    # This warms up as well, so that the profiler sees a usual step.
    alone = min(timed()["call"] for _ in range(calls - 1))
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if on_gpu else [])]
    with profiler(activities=activities) as recorded:
        run()
    found = {kind: {"seconds": 0.0, "operations": 0, "launches": 0} for kind in KINDS}
    for event in recorded.events():
        if event.device_type.name != "CPU":  # a kernel: counted with the operation that started it
            continue
        entry = found[kind_of(_callers(event))]
        spent = (
            sum(kernel.duration for kernel in event.kernels)
            if on_gpu
            else event.self_cpu_time_total
        )
        entry["seconds"] += spent / 1e6
        entry["launches"] += len(event.kernels)
        entry["operations"] += event.name.startswith(("aten::", "bitsandbytes::"))
    # On a GPU mostly waiting for the next kernel, on a CPU Python; the profiler's cost may hide it.
    seen = sum(entry["seconds"] for entry in found.values())
    found["between operations"]["seconds"] = max(0.0, alone - seen)
    return found


def medians(profiles: Sequence[Mapping[str, Mapping[str, float]]]) -> dict[str, dict[str, Any]]:
    """Several profiles of the same call as one: median seconds by kind, and "each" of them.

    Counts are those of the first; the same call has the same operations.
    """
    merged = {}
    for kind, entry in profiles[0].items():
        each = [one[kind]["seconds"] for one in profiles]
        merged[kind] = {**entry, "seconds": median(each), "each": each}
    return merged


def _callers(event: FunctionEvent) -> list[str]:
    names = []
    while event is not None:
        names.append(event.name)
        event = event.cpu_parent
    return names
