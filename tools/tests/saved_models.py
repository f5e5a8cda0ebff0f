"""Models with random weights, written as a checkpoint of several files."""

import json
import math
from collections.abc import Iterator
from pathlib import Path

import torch
from safetensors.torch import save_file

from llama_int8.models.hugging_face import empty_model
from llama_int8.models.synthetic import random_tensor
from llama_int8.transformer.config import LlamaConfig

TINY = LlamaConfig(
    vocab_size=96,
    hidden_size=32,
    intermediate_size=64,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
    head_dim=8,
    max_position_embeddings=64,
)


def save_synthetic(
    config: LlamaConfig, folder: Path, dtype: torch.dtype, shard_bytes: int = 2 * 10**9
) -> Path:
    """Write the model as sharded safetensors in Hugging Face's format; memory holds one shard."""
    folder.mkdir(parents=True, exist_ok=True)
    shards = list(_shards(config, dtype.itemsize, shard_bytes))
    weight_map = {}
    for number, names in enumerate(shards, 1):
        file = f"model-{number:05d}-of-{len(shards):05d}.safetensors"
        tensors = {name: random_tensor(name, shape, dtype) for name, shape in names.items()}
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
