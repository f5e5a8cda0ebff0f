"""The package behind the course "LLaMA in 8 bits": from attention to int8, every step measured.

Imports point down one list: lessons, course, evaluation, measure, models, quantization, transformer;
`data`, `profiles`, errors and file helpers lie below all of them (see tools/README.md). The names in
`PUBLIC` can be imported from here. Each is loaded when it is first asked for, so that
`import llama_int8` takes no time and needs no torch.
"""

import os
from importlib import import_module
from typing import Any

# Before torch is imported: its memory profiler warns of every block whose start it has not seen.
os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")
os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # the profiler says when it starts and stops

__version__ = "0.2.0"

PUBLIC = {
    "load_model": "models.load",
    "load_tokenizer": "models.tokenizer",
    "causal_mask": "transformer.attention",
    "scaled_dot_product_attention": "transformer.attention",
    "Llama": "transformer.llama",
    "LlamaConfig": "transformer.config",
    "flash_attention": "transformer.flash",
    "absmax_quantize": "quantization.quantize",
    "zeropoint_quantize": "quantization.quantize",
    "dequantize": "quantization.quantize",
    "Int8Linear": "quantization.llm_int8",
    "replace_linears": "quantization.llm_int8",
    "FastLlama": "quantization.cpu.llama",
}
__all__ = ["PUBLIC", "__version__", *PUBLIC]


def __getattr__(name: str) -> Any:
    if name not in PUBLIC:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(f"{__name__}.{PUBLIC[name]}"), name)
    globals()[name] = value  # the next time it is there
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *PUBLIC})
