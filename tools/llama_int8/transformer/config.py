"""The shapes of a LLaMA-type model."""

import math
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from llama_int8.errors import ModelFilesError
from llama_int8.files import read_json_object
from llama_int8.folders import check_model_folder
from llama_int8.transformer.stored import (
    check_not_quantized,
    holds_two_tables,
    is_own_format,
)

ROPE_SETTINGS = {
    "default": (),
    "linear": ("factor",),
    "llama3": (
        "factor",
        "low_freq_factor",
        "high_freq_factor",
        "original_max_position_embeddings",
    ),
}
"""The keys that each kind of rotary scaling needs in `rope_scaling`."""


@dataclass(frozen=True)
class LlamaConfig:
    """Shapes and constants of a LLaMA-type model, named as in Hugging Face's `config.json`."""

    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int
    max_position_embeddings: int
    rms_norm_eps: float = 1e-5
    rope_theta: float = 10_000.0
    rope_scaling: dict[str, Any] | None = None
    tie_word_embeddings: bool = False
    attention_bias: bool = False
    mlp_bias: bool = False

    @classmethod
    def from_hugging_face(cls, config: dict[str, Any]) -> "LlamaConfig":
        """Read the content of a `config.json`, transformers 4's (`rope_theta`) or 5's.

        Raises ValueError where a key is missing or the model is not of the LLaMA type.
        """
        if config.get("model_type") != "llama":
            raise ValueError(
                f"model_type is {config.get('model_type')!r}; only 'llama' models are supported"
            )
        if config.get("hidden_act", "silu") != "silu":
            raise ValueError(
                f"hidden_act is {config['hidden_act']!r}; LLaMA's feed-forward has 'silu'"
            )
        # If both are there, transformers takes the older name.
        rope = dict(config.get("rope_scaling") or config.get("rope_parameters") or {})
        turned = rope.pop("partial_rotary_factor", config.get("partial_rotary_factor"))
        if turned not in (None, 1):
            raise ValueError(
                f"partial_rotary_factor is {turned}; LLaMA turns whole heads, so it must be 1"
            )
        theta = rope.pop("rope_theta", config.get("rope_theta", 10_000.0))
        old_name = rope.pop("type", "default")
        kind = rope.setdefault("rope_type", old_name)
        if kind != "default" and config.get("original_max_position_embeddings"):
            rope["original_max_position_embeddings"] = config["original_max_position_embeddings"]
        try:
            heads, hidden = config["num_attention_heads"], config["hidden_size"]
            return cls(
                vocab_size=config["vocab_size"],
                hidden_size=hidden,
                intermediate_size=config["intermediate_size"],
                num_hidden_layers=config["num_hidden_layers"],
                num_attention_heads=heads,
                num_key_value_heads=config.get("num_key_value_heads") or heads,
                head_dim=config.get("head_dim") or hidden // heads,
                max_position_embeddings=config.get("max_position_embeddings", 2048),
                rms_norm_eps=config.get("rms_norm_eps", 1e-6),
                rope_theta=theta,
                rope_scaling=None if kind == "default" else rope,
                tie_word_embeddings=config.get("tie_word_embeddings", False),
                attention_bias=config.get("attention_bias", False),
                mlp_bias=config.get("mlp_bias", False),
            )
        except KeyError as missing:
            raise ValueError(f"config.json has no {missing}; a LLaMA-type model needs it") from None

    def to_hugging_face(self) -> dict[str, Any]:
        """The same shapes as keyword arguments of `transformers.LlamaConfig`."""
        rope = {"rope_type": "default", **(self.rope_scaling or {}), "rope_theta": self.rope_theta}
        shapes = {k: v for k, v in vars(self).items() if k not in ("rope_theta", "rope_scaling")}
        return {**shapes, "rope_parameters": rope}

    def check(self) -> None:
        """Raise ValueError, with the value, for what the course's own model cannot be."""
        self.check_shapes()
        self._check_scaling()

    def check_shapes(self) -> None:
        """Raise ValueError, with the value, for what cannot be the shapes of a LLaMA."""
        for name, kind in self.__annotations__.items():
            if kind is int and not (type(getattr(self, name)) is int and getattr(self, name) > 0):
                raise ValueError(
                    f"{name} is {getattr(self, name)!r}; it must be an integer above 0"
                )
            if kind is bool and type(getattr(self, name)) is not bool:
                raise ValueError(f"{name} is {getattr(self, name)!r}; it must be true or false")
        heads, shared = self.num_attention_heads, self.num_key_value_heads
        if heads % shared:
            raise ValueError(f"{heads} query heads cannot share {shared} key-value heads evenly")
        if self.head_dim % 2:
            raise ValueError(f"head_dim is {self.head_dim}; rotary pairs need an even number")
        if not _is_positive(self.rope_theta):
            raise ValueError(f"rope_theta is {self.rope_theta!r}; it must be positive and finite")
        if not _is_positive(self.rms_norm_eps):
            raise ValueError(f"rms_norm_eps is {self.rms_norm_eps!r}; it must be positive")

    def _check_scaling(self) -> None:
        scaling = self.rope_scaling or {"rope_type": "default"}
        kind = scaling.get("rope_type")
        if kind not in ROPE_SETTINGS:
            raise ValueError(f"rope_type is {kind!r}; this model knows {', '.join(ROPE_SETTINGS)}")
        for name in ROPE_SETTINGS[kind]:
            if not _is_positive(scaling.get(name)):
                raise ValueError(
                    f"{name} of rope_type {kind!r} is {scaling.get(name)}; it must be positive"
                )
        if kind == "llama3" and scaling["low_freq_factor"] >= scaling["high_freq_factor"]:
            raise ValueError(
                f"low_freq_factor is {scaling['low_freq_factor']}, high_freq_factor "
                f"{scaling['high_freq_factor']}; the high one must be larger"
            )

    def linear_shapes(self) -> dict[str, tuple[int, int]]:
        """(out, in) of each linear layer of one block, keyed by Hugging Face's name."""
        queries = self.num_attention_heads * self.head_dim
        keys = self.num_key_value_heads * self.head_dim
        hidden, inner = self.hidden_size, self.intermediate_size
        return {
            "q_proj": (queries, hidden),
            "k_proj": (keys, hidden),
            "v_proj": (keys, hidden),
            "o_proj": (hidden, queries),
            "gate_proj": (inner, hidden),
            "up_proj": (inner, hidden),
            "down_proj": (hidden, inner),
        }


def _is_positive(value: Any) -> bool:
    return isinstance(value, int | float) and value is not True and 0 < value < math.inf


def read_config(folder: Path) -> LlamaConfig:
    """The shapes in a folder's `config.json`. Raises ModelFilesError where they cannot be read.

    A folder that is quantized already, in another format than the course's own, is refused. Where
    the config lets the output layer share the embedding's table and the files hold two different
    ones, the files are right: they are what was trained.
    """
    path = folder / "config.json"
    check_model_folder(folder)
    if not path.exists():
        raise ModelFilesError(
            f"{folder} has no config.json, so it is not a model folder in Hugging Face's format"
        )
    content = read_json_object(path)
    check_not_quantized(folder, content)
    try:
        config = LlamaConfig.from_hugging_face(content)
        config.check_shapes()
    except (ValueError, TypeError, ArithmeticError) as error:
        raise ModelFilesError(f"{path} cannot be used: {error}") from None
    if config.tie_word_embeddings and not is_own_format(content) and holds_two_tables(folder):
        return replace(config, tie_word_embeddings=False)
    return config


def is_meta_folder(folder: Path) -> bool:
    """Whether a folder holds Meta's `params.json`, and not Hugging Face's config beside it."""
    return (folder / "params.json").exists() and not (folder / "config.json").exists()
