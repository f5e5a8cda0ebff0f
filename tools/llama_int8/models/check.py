"""Check that each layer of a loaded model is what its precision promises, before measuring."""

from typing import TYPE_CHECKING

from llama_int8.errors import PrecisionError

if TYPE_CHECKING:
    import torch


def check_layers(
    model: "torch.nn.Module",
    precision: str,
    dtype: "torch.dtype",
    threshold: float,
    device: str = "cpu",
) -> None:
    """Raise PrecisionError where a layer is not what `precision` means.

    `dtype`: of everything that is not quantized. `threshold`: of the layers of "int8".
    `device`: where int8-fast has layers of another kind.
    """
    for name, module in model.named_modules():
        if not hasattr(module, "weight"):
            continue
        wanted = _wanted(name, precision, dtype, threshold, device)
        found = _found(module)
        if found != wanted:
            raise PrecisionError(
                f"{name} was loaded as {found}, but {precision} means {wanted}. Do the versions of "
                "transformers and bitsandbytes fit together? tools/constraints.txt has a set that does"
            )


def _wanted(name: str, precision: str, dtype: "torch.dtype", threshold: float, device: str) -> str:
    kind = name.rpartition(".")[2]
    if kind == "embed_tokens":
        return f"Embedding {dtype}"
    if kind.endswith("norm"):
        return f"LlamaRMSNorm {dtype}"
    if precision == "int8-fast":
        return "Int8FastLinear torch.uint8" if device == "cpu" else "GpuInt8Linear torch.int8"
    if precision == "int8" and kind != "lm_head":
        return f"Linear8bitLt torch.int8 with threshold {threshold:g}"
    return f"Linear {dtype}"


def _found(module: "torch.nn.Module") -> str:
    found = f"{type(module).__name__} {module.weight.dtype}"
    state = getattr(module, "state", None)  # bitsandbytes'
    return found if state is None else f"{found} with threshold {state.threshold:g}"
