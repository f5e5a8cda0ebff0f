"""Reading and writing checkpoints: Hugging Face's folder and Meta's own format.

Both hold the same numbers under other names, and in another order for queries and keys: Meta turns
neighbouring dimensions (x_2i, x_2i+1) by one angle, Hugging Face the halves (x_i, x_i+D/2).
"""

import json
import pickle
import zipfile
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from llama_int8.dtypes import safetensors_name
from llama_int8.errors import ModelFilesError, in_short
from llama_int8.files import check_weights, read_json_object, weight_files
from llama_int8.folders import check_model_folder, explain_file
from llama_int8.transformer.config import LlamaConfig, read_config
from llama_int8.transformer.stored import (
    EMBEDDING,
    OUTPUT,
    WAY_OUT,
    check_floating,
    check_not_quantized,
    is_own_format,
    stored_tensors,
    without_computed,
)

META_BLOCK = {
    "attention.wq": "self_attn.q_proj",
    "attention.wk": "self_attn.k_proj",
    "attention.wv": "self_attn.v_proj",
    "attention.wo": "self_attn.o_proj",
    "feed_forward.w1": "mlp.gate_proj",
    "feed_forward.w2": "mlp.down_proj",
    "feed_forward.w3": "mlp.up_proj",
    "attention_norm": "input_layernorm",
    "ffn_norm": "post_attention_layernorm",
}
META_TOP = {
    "tok_embeddings.weight": "model.embed_tokens.weight",
    "norm.weight": "model.norm.weight",
    "output.weight": "lm_head.weight",
}


def read_checkpoint(folder: Path) -> tuple[LlamaConfig, dict[str, Tensor]]:
    """Config and tensors by Hugging Face's names, on the CPU, in the dtype of the file.

    `folder` holds `config.json` with safetensors, or Meta's `params.json` with
    `consolidated.*.pth`. Raises ModelFilesError where it holds neither, or a file is damaged.
    """
    if folder.is_dir():
        check_model_folder(folder, meta_too=True)
    elif folder.exists():
        raise ModelFilesError(explain_file(folder))
    if (folder / "config.json").exists():
        config, tensors = read_hugging_face(folder)
    elif (folder / "params.json").exists():
        config, tensors = read_meta(folder)
    else:
        raise ModelFilesError(
            f"{folder} has neither config.json (Hugging Face's format) nor params.json (Meta's); "
            "give the folder that holds the model's files"
        )
    try:
        config.check()
    except ValueError as error:
        raise ModelFilesError(f"the config in {folder} cannot be used: {error}") from None
    return _tied_as_stored(config, tensors)


def read_hugging_face(folder: Path) -> tuple[LlamaConfig, dict[str, Tensor]]:
    """Like `read_checkpoint`, for one safetensors file or its shards."""
    from safetensors.torch import load_file

    config = read_config(folder)
    tensors: dict[str, Tensor] = {}
    if is_own_format(read_json_object(folder / "config.json")):
        raise ModelFilesError(
            f"{folder} holds int8-fast weights, which only load_model(folder, 'int8-fast') reads; or "
            f"{WAY_OUT}"
        )
    check_weights(folder)
    check_floating(folder, {name: stored.dtype for name, stored in stored_tensors(folder).items()})
    for name in weight_files(folder):
        tensors |= load_file(folder / name)
    return config, without_computed(tensors)


def check_tensors(
    folder: Path | str, wanted: Mapping[str, Tensor], found: Mapping[str, Tensor]
) -> None:
    """Raise ModelFilesError unless names and shapes of the tensors are those of the model."""
    missing = sorted(wanted.keys() - found.keys())
    foreign = sorted(found.keys() - wanted.keys())
    both = sorted(wanted.keys() & found.keys())
    misshapen = [
        f"{name} {tuple(found[name].shape)} instead of {tuple(wanted[name].shape)}"
        for name in both
        if found[name].shape != wanted[name].shape
    ]
    kinds = {"missing": missing, "unknown to the model": foreign, "of another shape": misshapen}
    wrong = [f"{len(names)} {kind} ({names[0]})" for kind, names in kinds.items() if names]
    if wrong:
        raise ModelFilesError(
            f"the tensors in {folder} do not fit its config: {', '.join(wrong)}. Fetch the model "
            "again, with the config that belongs to it"
        )


def to_halves(weight: Tensor, heads: int) -> Tensor:
    """Rows (H D, C) of a query or key projection from Meta's order to Hugging Face's.

    Within each head: rows 0, 2, 4, ... first, then 1, 3, 5, ...
    """
    pairs = weight.unflatten(0, (heads, -1, 2))  # (H, D / 2, 2, C)
    return pairs.transpose(1, 2).flatten(0, 2)  # (H, 2, D / 2, C) -> (H D, C)


def to_pairs(weight: Tensor, heads: int) -> Tensor:
    """The inverse of `to_halves`: from Hugging Face's order to Meta's."""
    halves = weight.unflatten(0, (heads, 2, -1))  # (H, 2, D / 2, C)
    return halves.transpose(1, 2).flatten(0, 2)


def read_meta(folder: Path) -> tuple[LlamaConfig, dict[str, Tensor]]:
    """Like `read_checkpoint`, for `params.json` and one or several `consolidated.*.pth`.

    Several files are slices of a model that ran on as many GPUs (model parallelism). Pickles are
    read with `weights_only=True`: one that wants to run code is refused.
    """
    params = read_json_object(folder / "params.json")
    check_not_quantized(folder, params)
    if isinstance(params.get("model"), dict):
        params = params["model"]
    paths = sorted(folder.glob("consolidated.*.pth"))
    if not paths:
        raise ModelFilesError(
            f"{folder} has a params.json, but no consolidated.*.pth; fetch the weights, too"
        )
    shards = [_read_pickle(path) for path in paths]
    for path, shard in zip(paths, shards, strict=True):
        differing = sorted(shard.keys() ^ shards[0].keys())
        if differing:
            raise ModelFilesError(
                f"{path} and {paths[0].name} differ: one lacks {differing[0]}. All slices must be of "
                "the same model: fetch them again"
            )
    for shard in shards:
        check_floating(folder, {name: safetensors_name(t.dtype) for name, t in shard.items()})
    width = params.get("dim")
    tensors: dict[str, Tensor] = {}
    for name in without_computed(shards[0]):
        try:
            joined = _joined(name, [shard[name] for shard in shards], width)
        except RuntimeError as error:
            raise ModelFilesError(
                f"the slices of {name} in {folder} do not fit together ({error}); fetch them again"
            ) from None
        tensors[_hugging_face_name(name, folder)] = joined
    config = _meta_config(params, tensors, folder)
    for name, weight in tensors.items():
        heads = _rotary_heads(name, config)
        if heads and len(weight) == heads * config.head_dim:  # `check_tensors` names what is not
            tensors[name] = to_halves(weight, heads)
    return config, tensors


def write_meta(
    config: LlamaConfig, tensors: Mapping[str, Tensor], folder: Path, shards: int = 1
) -> None:
    """Write tensors with Hugging Face's names into `folder` in Meta's format.

    `shards`: files, each with an equal slice of every matrix. Raises ValueError for what that
    format cannot say: biases, heads that do not add up to the width, linear rotary scaling, a
    number of heads or columns that the shards do not divide.
    """
    config.check()
    params = _meta_params(config)
    if shards < 1:
        raise ValueError(f"{shards} shards are asked for; there must be 1 or more")
    if any(name.endswith(".bias") for name in tensors):
        raise ValueError("Meta's format has no biases; this model has some")
    if config.num_key_value_heads % shards or config.intermediate_size % shards:
        raise ValueError(
            f"{shards} shards do not divide {config.num_key_value_heads} key-value heads and "
            f"{config.intermediate_size} inner columns evenly"
        )
    slices: list[dict[str, Tensor]] = [{} for _ in range(shards)]
    if config.tie_word_embeddings:  # Meta's files hold the table twice
        tensors = {**tensors, "lm_head.weight": tensors["model.embed_tokens.weight"]}
    for name, tensor in tensors.items():
        heads = _rotary_heads(name, config)
        tensor = to_pairs(tensor, heads) if heads else tensor
        meta_name = _meta_name(name)
        axis = _sliced_dimension(meta_name)
        parts = [tensor] * shards if axis is None else tensor.tensor_split(shards, axis)
        for piece, part in zip(slices, parts, strict=True):
            piece[meta_name] = part.clone()  # a view would bring its whole storage along
    folder.mkdir(parents=True, exist_ok=True)
    for number, piece in enumerate(slices):
        torch.save(piece, folder / f"consolidated.{number:02d}.pth")
    (folder / "params.json").write_text(json.dumps(params, indent=1), encoding="utf-8")


def _rotary_heads(name: str, config: LlamaConfig) -> int:
    """Heads of a projection that is rotated; 0 for any other tensor."""
    kinds = {
        "q_proj.weight": config.num_attention_heads,
        "k_proj.weight": config.num_key_value_heads,
    }
    return next((heads for end, heads in kinds.items() if name.endswith(end)), 0)


def _tied_as_stored(
    config: LlamaConfig, tensors: dict[str, Tensor]
) -> tuple[LlamaConfig, dict[str, Tensor]]:
    """Where the config shares one table and the file holds two: one if they are equal, else both."""
    output, table = tensors.get(OUTPUT), tensors.get(EMBEDDING)
    if not config.tie_word_embeddings or output is None or table is None:
        return config, tensors
    if not torch.equal(output, table):
        return replace(config, tie_word_embeddings=False), tensors
    return config, {name: t for name, t in tensors.items() if name != OUTPUT}


def _hugging_face_name(name: str, folder: Path) -> str:
    if name in META_TOP:
        return META_TOP[name]
    layers, _, rest = name.partition(".")
    number, _, part = rest.partition(".")
    part = part.removesuffix(".weight")
    if layers != "layers" or not number.isdigit() or part not in META_BLOCK:
        raise ModelFilesError(
            f"the checkpoint in {folder} holds {name!r}, which no LLaMA has; is it another model's?"
        )
    return f"model.layers.{number}.{META_BLOCK[part]}.weight"


def _meta_name(name: str) -> str:
    top = {theirs: ours for ours, theirs in META_TOP.items()}
    if name in top:
        return top[name]
    block = {theirs: ours for ours, theirs in META_BLOCK.items()}
    number, _, part = name.removeprefix("model.layers.").partition(".")
    return f"layers.{number}.{block[part.removesuffix('.weight')]}.weight"


def _sliced_dimension(meta_name: str) -> int | None:
    """Along which dimension the shards hold slices; None where each holds the whole tensor.

    The embedding was sliced by columns in LLaMA 1 and 2, by rows in Llama 3.
    """
    if meta_name.endswith("norm.weight"):
        return None
    return 1 if meta_name.endswith(("wo.weight", "w2.weight", "tok_embeddings.weight")) else 0


def _joined(name: str, parts: list[Tensor], width: int) -> Tensor:
    axis = _sliced_dimension(name)
    if axis is None or len(parts) == 1:
        return parts[0]
    if name == "tok_embeddings.weight" and parts[0].shape[1] == width:
        axis = 0
    return torch.cat(parts, axis)


def _meta_config(
    params: Mapping[str, Any], tensors: Mapping[str, Tensor], folder: Path
) -> LlamaConfig:
    """The shapes: from `params.json`, and from the tensors what that leaves out."""
    try:
        width, heads = params["dim"], params["n_heads"]
        table = tensors["model.embed_tokens.weight"]
        scaled = params.get("use_scaled_rope", False)
        return LlamaConfig(
            vocab_size=len(table),
            hidden_size=width,
            intermediate_size=len(tensors["model.layers.0.mlp.gate_proj.weight"]),
            num_hidden_layers=params["n_layers"],
            num_attention_heads=heads,
            num_key_value_heads=params.get("n_kv_heads") or heads,
            head_dim=width // heads,
            max_position_embeddings=_meta_context(params),
            rms_norm_eps=params["norm_eps"],
            rope_theta=params.get("rope_theta", 10_000.0),
            rope_scaling=_meta_scaling(params) if scaled else None,
            tie_word_embeddings=True,  # `_tied_as_stored` sees whether there are two
        )
    except KeyError as missing:
        raise ModelFilesError(
            f"the checkpoint in {folder} has no {missing}; fetch params.json and weights again"
        ) from None
    except (TypeError, ArithmeticError) as error:
        raise ModelFilesError(
            f"{folder / 'params.json'} cannot be used ({error}); fetch it again"
        ) from None


def _meta_context(params: Mapping[str, Any]) -> int:
    """Longest text: `params.json` does not say, so by what tells the versions apart.

    LLaMA 1 (2,048) and 2 (4,096) look the same; a text between them is the caller's risk.
    """
    if params.get("use_scaled_rope"):
        return 131_072
    contexts = {500_000.0: 8_192, 1_000_000.0: 16_384}  # Llama 3, CodeLlama
    return contexts.get(params.get("rope_theta", 10_000.0), 4_096)


def _meta_scaling(params: Mapping[str, Any]) -> dict[str, Any]:
    """Llama 3.1 scales by 8, 3.2 (width 2,048 and 3,072) by 32; not every file says so."""
    return {
        "rope_type": "llama3",
        "factor": params.get("rope_scaling_factor", 8.0 if params["dim"] >= 4096 else 32.0),
        "low_freq_factor": 1.0,
        "high_freq_factor": params.get("rope_high_freq_factor", 4.0),
        "original_max_position_embeddings": 8192,
    }


def _meta_params(config: LlamaConfig) -> dict[str, Any]:
    if config.head_dim * config.num_attention_heads != config.hidden_size:
        raise ValueError(
            f"{config.num_attention_heads} heads of {config.head_dim} are not the width of "
            f"{config.hidden_size}; Meta's format needs that"
        )
    params = {
        "dim": config.hidden_size,
        "n_layers": config.num_hidden_layers,
        "n_heads": config.num_attention_heads,
        "n_kv_heads": config.num_key_value_heads,
        "vocab_size": config.vocab_size,
        # Meta: round int(multiplier * int(8 dim / 3)) up to a multiple of `multiple_of`.
        "ffn_dim_multiplier": (config.intermediate_size + 0.5) / (8 * config.hidden_size // 3),
        "multiple_of": 1,
        "norm_eps": config.rms_norm_eps,
        "rope_theta": config.rope_theta,
    }
    if (config.rope_scaling or {"rope_type": "default"})["rope_type"] != "default":
        if _meta_scaling({**params, "rope_scaling_factor": 1.0}) != {
            **config.rope_scaling,
            "factor": 1.0,
        }:
            raise ValueError(
                f"rope_scaling is {config.rope_scaling}; Meta's format has only Llama 3.1's"
            )
        factor = config.rope_scaling["factor"]
        params |= {"use_scaled_rope": True, "rope_scaling_factor": factor}
    return params


def _read_pickle(path: Path) -> dict[str, Tensor]:
    is_zip = zipfile.is_zipfile(path)  # the format since PyTorch 1.6; only that can be mapped
    try:
        content = torch.load(path, map_location="cpu", weights_only=True, mmap=is_zip)
    except pickle.UnpicklingError:  # PyTorch's own message says how to run the code after all
        raise ModelFilesError(
            f"{path} was not read: it is damaged, or holds more than tensors, and such a pickle can "
            "run code. Fetch it again, from Meta; or take the model in safetensors"
        ) from None
    except Exception as error:  # a damaged file surfaces as almost any kind
        raise ModelFilesError(
            f"{path} ({path.stat().st_size:,} bytes) was cut off or damaged "
            f"({in_short(error)}). Fetch it again"
        ) from None
    if not isinstance(content, dict) or not all(isinstance(t, Tensor) for t in content.values()):
        raise ModelFilesError(
            f"{path} holds no dictionary of tensors; Meta's weights are one. Is it another file?"
        )
    return content
