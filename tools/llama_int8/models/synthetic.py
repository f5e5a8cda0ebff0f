"""A registered model's exact shapes with seeded random weights: for memory and speed, not for text.

A tensor depends only on its name, the seed and the kind of device that draws it, so on a CPU
every process draws the same model.
"""

import json
import math
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from llama_int8.models.hugging_face import empty_model
from llama_int8.transformer.config import LlamaConfig

if TYPE_CHECKING:
    import torch

SEED = 0


def random_tensor(
    name: str, shape: tuple[int, ...], dtype: "torch.dtype", device: str = "cpu"
) -> "torch.Tensor":
    """The tensor called `name`: ones for a norm, else normal with standard deviation 0.02."""
    import torch

    if name.endswith("norm.weight"):
        return torch.ones(shape, dtype=dtype, device=device)
    generator = torch.Generator(device).manual_seed(SEED + zlib.crc32(name.encode()))
    return torch.randn(shape, generator=generator, device=device).mul_(0.02).to(dtype)


def build_synthetic(
    config: LlamaConfig,
    dtype: "torch.dtype",
    device: str,
    quantized: Callable[[str, "torch.nn.Linear"], "torch.nn.Module"] | None = None,
    skip: tuple[str, ...] = ("lm_head",),
    through_cpu: bool = True,
) -> "torch.nn.Module":
    """The model on `device`, filled tensor by tensor, so that memory holds one layer twice.

    `quantized(name, linear)` makes what stands in the place of a linear layer that is not in `skip`; its
    weights were rounded to `dtype` first, as a checkpoint's are when it is loaded: the same codes.
    Its weights are on the CPU first if `through_cpu`; then it is moved to `device`.
    """
    from torch import nn

    model = empty_model(config)
    for name, module in list(model.named_modules()):
        replaced = quantized is not None and isinstance(module, nn.Linear) and name not in skip
        for key, old in list(module.named_parameters(recurse=False)):
            full_name = f"{name}.{key}"
            if full_name == "lm_head.weight" and config.tie_word_embeddings:
                module.weight = model.model.embed_tokens.weight
                continue
            value = random_tensor(full_name, tuple(old.shape), dtype, device)
            if replaced and through_cpu:
                value = value.cpu()  # bitsandbytes quantizes on the way back
            # It may have a gradient, as a loaded one: else PyTorch's matmul copies the whole output
            # layer for a slice of the states, 2 s of a 3 s prefill at Llama-3.2-1B's shape.
            setattr(module, key, nn.Parameter(value))
        if replaced:
            parent = model.get_submodule(name.rpartition(".")[0])
            setattr(parent, name.rpartition(".")[2], quantized(name, module).to(device))
    return restore_rotary(model, device).eval()


def restore_rotary(model: "torch.nn.Module", device: str) -> "torch.nn.Module":
    """Give an `empty_model` its rotary buffers: computed from the configuration, not stored."""
    import torch

    with torch.device(device):
        model.model.rotary_emb = type(model.model.rotary_emb)(model.config)
    return model


def bitsandbytes_linear(_: str, linear: "torch.nn.Linear", threshold: float) -> "torch.nn.Module":
    """A layer of LLM.int8() that quantizes these weights when it is moved to its device."""
    import bitsandbytes as bnb

    layer = bnb.nn.Linear8bitLt(
        linear.in_features,
        linear.out_features,
        bias=False,
        has_fp16_weights=False,
        threshold=threshold,
        device="meta",
    )
    layer.weight = bnb.nn.Int8Params(
        linear.weight.data, requires_grad=False, has_fp16_weights=False
    )
    return layer


def save_synthetic(
    config: LlamaConfig,
    folder: Path,
    dtype: "torch.dtype",
    shard_bytes: int = 2 * 10**9,
    device: str = "cpu",
) -> Path:
    """Write the model as sharded safetensors in Hugging Face's format; memory holds one shard.

    `device`: what draws the numbers.
    """
    from safetensors.torch import save_file

    folder.mkdir(parents=True, exist_ok=True)
    shards = list(_shards(config, dtype.itemsize, shard_bytes))
    weight_map = {}
    for number, names in enumerate(shards, 1):
        file = f"model-{number:05d}-of-{len(shards):05d}.safetensors"
        tensors = {
            name: random_tensor(name, shape, dtype, device).cpu() for name, shape in names.items()
        }
        save_file(tensors, folder / file, metadata={"format": "pt"})
        weight_map.update(dict.fromkeys(names, file))
    total = dtype.itemsize * sum(math.prod(s) for names in shards for s in names.values())
    index = {"metadata": {"total_size": total}, "weight_map": weight_map}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index, indent=1))
    described = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "torch_dtype": str(dtype).removeprefix("torch."),
        **config.to_hugging_face(),
    }
    (folder / "config.json").write_text(json.dumps(described, indent=1))
    return folder


def _shards(
    config: LlamaConfig, itemsize: int, shard_bytes: int
) -> Iterator[dict[str, tuple[int, ...]]]:
    shard: dict[str, tuple[int, ...]] = {}
    size = 0
    for name, parameter in empty_model(config).named_parameters():
        bytes_ = parameter.numel() * itemsize
        if shard and size + bytes_ > shard_bytes:
            yield shard
            shard, size = {}, 0
        shard[name] = tuple(parameter.shape)
        size += bytes_
    if shard:
        yield shard
