"""A model in `int8-fast` as files: quantized once, loaded without the 16-bit weights.

Format: Hugging Face's folder. `config.json` has a `quantization_config` with `quant_method`
"llama-int8-fast" and the layout's `version`. In `model.safetensors` every linear layer, the output
layer included, has `weight` (uint8: codes + 128 in the order of `quantization.cpu.packing.pack`),
`scale` (bf16, one for every 32 inputs of a row, in the order of `pack_rows`) and, if it has one,
`bias` (FP32); the rest is bf16. The output layer, `lm_head`, reads its activations in two planes.
"""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llama_int8.errors import ModelFilesError
from llama_int8.files import build_once, check_weights, read_json_object, weight_files
from llama_int8.models.hugging_face import (
    TOKENS,
    empty_model,
    plain_generation,
    token_ids,
)
from llama_int8.models.synthetic import restore_rotary
from llama_int8.quantization.cpu.layout import FORMAT_VERSION, GROUP, ROWS
from llama_int8.transformer.config import LlamaConfig
from llama_int8.transformer.stored import OUTPUT, OWN_METHOD, is_own_format

if TYPE_CHECKING:
    import torch


def is_int8_fast(folder: Path) -> bool:
    """Whether `folder` was written by `save_int8_fast`."""
    path = folder / "config.json"
    return path.exists() and is_own_format(read_json_object(path))


def save_int8_fast(model: "torch.nn.Module", folder: str | Path, tokenizer: Any = None) -> Path:
    """Write a model of precision "int8-fast" to a folder that is not there yet.

    The model's start, end and padding tokens are kept; with its `tokenizer` the folder is all that a
    reader needs. The folder appears when it is complete. Raises TypeError for a model in another
    precision, FileExistsError for a folder that exists.
    """
    from safetensors.torch import save_file

    from llama_int8.quantization.cpu.linear import Int8FastLinear
    from llama_int8.quantization.gpu.linear import GpuInt8Linear

    folder = Path(folder)
    if isinstance(model.lm_head, GpuInt8Linear):
        raise TypeError(
            "this model is in int8-fast for a GPU, and a folder is written from a CPU: load it with "
            "device='cpu' and save that; the folder then loads on both"
        )
    if not isinstance(model.lm_head, Int8FastLinear):
        raise TypeError("this model is not in int8-fast; load it with that precision first")
    if folder.exists():
        raise FileExistsError(f"{folder} exists already; name a new folder, or delete it")

    def write(unfinished: Path) -> None:
        tensors = {name: tensor.contiguous() for name, tensor in model.state_dict().items()}
        metadata = {"format": "pt", "quant_method": OWN_METHOD, "version": str(FORMAT_VERSION)}
        save_file(tensors, unfinished / "model.safetensors", metadata=metadata)
        config = LlamaConfig.from_hugging_face(model.config.to_dict())
        layout = {"version": FORMAT_VERSION, "group": GROUP, "rows": ROWS}
        tokens = {name: getattr(model.config, name, None) for name in TOKENS}
        described = {
            "architectures": ["LlamaForCausalLM"],
            "model_type": "llama",
            **config.to_hugging_face(),
            **tokens,
            "quantization_config": {"quant_method": OWN_METHOD, **layout},
        }
        (unfinished / "config.json").write_text(json.dumps(described, indent=1))
        plain_generation(model).save_pretrained(unfinished)
        if tokenizer is not None:
            tokenizer.save_pretrained(unfinished)

    return build_once(folder, write)


def load_int8_fast(folder: Path, config: LlamaConfig) -> "torch.nn.Module":
    """Hugging Face's model with the folder's layers, in evaluation mode on the CPU.

    Raises ModelFilesError for another version of the format, and for files that are damaged or do
    not fit the config.
    """
    from safetensors.torch import load_file

    from llama_int8.quantization.cpu.linear import replace_layers

    version = read_json_object(folder / "config.json")["quantization_config"].get("version")
    if version != FORMAT_VERSION:
        raise ModelFilesError(
            f"{folder} is in version {version!r} of the int8-fast format, but this course reads "
            f"{FORMAT_VERSION}; quantize the original model again"
        )
    check_weights(folder)
    model = replace_layers(empty_model(config, token_ids(folder, config.vocab_size)))
    tensors = load_file(folder / "model.safetensors")
    wanted = model.state_dict()
    wrong = sorted(wanted.keys() ^ tensors.keys()) or [
        name
        for name, tensor in tensors.items()
        if tensor.shape != wanted[name].shape or tensor.dtype != _dtype(name)
    ]
    if wrong:
        raise ModelFilesError(
            f"the weights in {folder} do not fit its config.json: {wrong[0]} is missing, unknown or "
            "of another shape or format. Quantize the model again"
        )
    model.load_state_dict(tensors, assign=True)
    return restore_rotary(model, "cpu").eval()


def on_gpu(model: "torch.nn.Module", dtype: "torch.dtype", device: str) -> "torch.nn.Module":
    """What `load_int8_fast` read, on a GPU: the same codes and scales, in the order of its kernel."""
    from llama_int8.quantization.gpu.linear import from_cpu_layers

    # The rotary angles stay in FP32, as in every other precision: `.to(dtype)` would round them.
    return restore_rotary(from_cpu_layers(model, device).to(dtype), device).eval()


def quantize_on_gpu(
    folder: Path, config: LlamaConfig, dtype: "torch.dtype", device: str
) -> "torch.nn.Module":
    """Hugging Face's model in int8-fast on a GPU, from a folder in 16 bit whose tensors were checked.

    Each tensor goes to the device by itself and is quantized there, so that neither memory holds
    more than the int8 model and one layer: a model fits whose 16-bit weights would not.
    """
    from safetensors import safe_open
    from torch import nn

    from llama_int8.quantization.gpu.linear import gpu_linear

    model = empty_model(config, token_ids(folder, config.vocab_size))
    places = dict(model.named_modules())

    def put(name: str, tensor: "torch.Tensor") -> None:
        path, _, kind = name.rpartition(".")
        module = places[path]
        value = tensor.to(device=device, dtype=dtype)
        setattr(module, kind, nn.Parameter(value, requires_grad=False))
        if isinstance(module, nn.Linear) and not any(p.is_meta for p in module.parameters()):
            parent, _, child = path.rpartition(".")
            setattr(places[parent], child, gpu_linear(path, module))
            places[path] = nn.Module()  # let go of the 16-bit weights

    wanted = {name for name, _ in model.named_parameters()}  # a shared table once
    for file in weight_files(folder):
        with safe_open(folder / file, framework="pt") as tensors:
            for name in sorted(wanted & set(tensors.keys())):
                put(name, tensors.get_tensor(name))
    if config.tie_word_embeddings:
        put(OUTPUT, model.model.embed_tokens.weight.detach())
    return restore_rotary(model, device).eval()


def _dtype(name: str) -> "torch.dtype":
    """The kernel gets addresses: a tensor in another format would be misread."""
    import torch

    if name.endswith("bias"):
        return torch.float32
    codes = name.endswith("weight") and "embed" not in name and "norm" not in name
    return torch.uint8 if codes else torch.bfloat16
