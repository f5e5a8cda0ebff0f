"""The least a model costs, computed only from its shapes: bytes, and the speed that bytes allow.

Bandwidth bound: in decoding, every weight is read once for each token, so tokens/s cannot exceed
bandwidth / bytes (Pope et al., arXiv:2211.05102, section 2).
"""

import math
from dataclasses import dataclass

from llama_int8.dtypes import FORMATS
from llama_int8.quantization.cpu.layout import packed_bytes, scale_bytes
from llama_int8.quantization.gpu import FEW
from llama_int8.transformer.config import LlamaConfig

GIB = 2**30
QUANTIZED = ("int8", "int8-fast")
BYTES_PER_VALUE = {
    **{name: FORMATS[name].bytes for name in ("fp32", "bf16", "fp16")},
    **dict.fromkeys(QUANTIZED, 1),
}
ATTENTION = ("q_proj", "k_proj", "v_proj", "o_proj")


@dataclass(frozen=True)
class WeightBytes:
    """Bytes of each kind of weight."""

    linear: int  # the linear layers of the blocks: what LLM.int8() quantizes
    scales: int  # LLM.int8(): one FP32 absmax per row (bitsandbytes' SCB); 0 in floating point
    embedding: int
    lm_head: int  # 0 where it shares the embedding's memory
    norms: int
    biases: int

    @property
    def total(self) -> int:
        return sum(vars(self).values())

    @property
    def read_per_token(self) -> int:
        """Bytes that decoding one token reads: all but the embedding table, where it reads one row.

        A shared table is read as the output layer.
        """
        return self.total - (self.embedding if self.lm_head else 0)


def weight_bytes(config: LlamaConfig, precision: str) -> WeightBytes:
    """Bytes that the weights of `config` take at "fp32", "fp16", "bf16", "int8" or "int8-fast".

    In int8 the blocks' linear layers hold one byte per weight and 4 bytes per row; everything else
    stays at 16 bit (Dettmers et al., arXiv:2208.07339; bitsandbytes skips `lm_head`).
    In int8-fast the output layer is int8 as well, the embedding keeps a table of its own, biases
    are FP32, and shapes are filled up to what the kernel reads.
    Raises ValueError for another precision.
    """
    if precision not in BYTES_PER_VALUE:
        raise ValueError(f"precision is {precision!r}; known are {', '.join(BYTES_PER_VALUE)}")
    fast = precision == "int8-fast"
    other = _other_size(precision)
    layers, shapes = config.num_hidden_layers, config.linear_shapes()
    table = config.vocab_size * config.hidden_size * other
    size = packed_bytes if fast else lambda out, in_: out * in_ * BYTES_PER_VALUE[precision]
    head = (config.vocab_size, config.hidden_size)
    if fast:
        scales = layers * sum(scale_bytes(*s) for s in shapes.values()) + scale_bytes(*head)
    else:
        scales = 4 * layers * sum(o for o, _ in shapes.values()) if precision == "int8" else 0
    biased = [
        out
        for name, (out, _) in shapes.items()
        if (config.attention_bias if name in ATTENTION else config.mlp_bias)
    ]
    return WeightBytes(
        linear=layers * sum(size(*shape) for shape in shapes.values()),
        scales=scales,
        embedding=table,
        lm_head=packed_bytes(*head) if fast else 0 if config.tie_word_embeddings else table,
        norms=(2 * layers + 1) * config.hidden_size * other,
        biases=layers * sum(biased) * (4 if fast else other),
    )


def _other_size(precision: str) -> int:
    """Bytes of a value that is not a quantized weight."""
    return 2 if precision in QUANTIZED else BYTES_PER_VALUE[precision]


def count_parameters(config: LlamaConfig) -> int:
    """Number of weights; a shared embedding counts once."""
    return weight_bytes(config, "fp32").total // 4


def kv_cache_bytes(
    config: LlamaConfig, tokens: int, batch: int = 1, bytes_per_value: int = 2
) -> int:
    """Bytes of the keys and values of `tokens` positions in all layers."""
    width = config.num_key_value_heads * config.head_dim
    return 2 * config.num_hidden_layers * batch * tokens * width * bytes_per_value


def activation_bytes(
    config: LlamaConfig, tokens: int, batch: int, precision: str, device: str = "cuda"
) -> int:
    """Bytes that one forward pass over (batch, tokens) holds at its widest place beside the cache.

    That place is the feed-forward layer: four rows of the width (embedding, layer input, sum after
    attention, normed) and three of the inner width (gate, up, their product). LLM.int8() keeps its
    int8 codes and the int32 product of one layer beside two of these; bitsandbytes on a CPU scales
    that product through three copies in FP32, on a GPU in one kernel. Read in Hugging Face's and
    bitsandbytes' code, and checked by measuring; attention is taken to hold no T x T scores. Where
    the inner width is less than 1.5 times the width, attention can be the wider place. int8-fast on
    a GPU restores a layer's weights in 16 bit beside it.
    """
    width, inner = config.hidden_size, config.intermediate_size
    size = _other_size(precision)
    if precision == "int8":
        product = 4 + (12 if device == "cpu" else size)
        row = 4 * width * size + width + inner * (size + product)
    else:
        row = (4 * width + 3 * inner) * size
    positions = 8 + 2 * config.head_dim * size  # indices, cosines and sines: once for the batch
    restored = 0
    if precision == "int8-fast" and device != "cpu":
        restored = restored_bytes(config, batch * tokens, batch)
    return batch * tokens * row + tokens * positions + restored


def restored_bytes(config: LlamaConfig, rows: int, scored: int) -> int:
    """Bytes of the largest layer that int8-fast on a GPU restores in 16 bit, one after the other.

    `rows`: tokens of all sequences that the blocks read; `scored`: those of them whose logits are
    computed. Few enough go through the kernel, which restores nothing. Gate and up are one layer, and
    so are query, key and value.
    """
    width, shapes = config.hidden_size, config.linear_shapes()
    outputs = [shapes["gate_proj"][0] + shapes["up_proj"][0]]
    outputs += [sum(shapes[name][0] for name in ("q_proj", "k_proj", "v_proj"))]
    weights = [width * out for out in outputs]
    weights += [out * in_ for out, in_ in (shapes["o_proj"], shapes["down_proj"])]
    largest = max(weights) if rows > FEW else 0
    head = config.vocab_size * width if scored > FEW else 0
    return 2 * max(largest, head)


def logits_bytes(
    config: LlamaConfig, positions: int, batch: int = 1, bytes_per_value: int = 2
) -> int:
    """Bytes of the scores of all tokens of the vocabulary at `positions` places of each row."""
    return batch * positions * config.vocab_size * bytes_per_value


def peak_bytes(
    config: LlamaConfig, precision: str, tokens: int, batch: int = 1, device: str = "cuda"
) -> dict[str, int]:
    """Bytes by part while (batch, tokens) are read in one pass with a cache, in this precision.

    Logits are only those of the last position, as in generation.
    """
    size = _other_size(precision)
    return {
        "weights": weight_bytes(config, precision).total,
        "KV cache": kv_cache_bytes(config, tokens, batch, size),
        "activations": activation_bytes(config, tokens, batch, precision, device),
        "logits": logits_bytes(config, 1, batch, size),
    }


def forward_flops(config: LlamaConfig, new: int, past: int = 0, batch: int = 1) -> int:
    """Operations of one pass over `new` tokens after `past` ones, with logits of only the last one.

    Two for each weight and token, and in attention two for each product of a query with a key and
    of a weight with a value, under the causal mask (Pope et al., arXiv:2211.05102, section 2).
    """
    weights = config.num_hidden_layers * sum(o * i for o, i in config.linear_shapes().values())
    output = 2 * config.hidden_size * config.vocab_size
    return batch * (2 * weights * new + output) + attention_flops(config, new, past, batch)


def attention_flops(config: LlamaConfig, new: int, past: int = 0, batch: int = 1) -> int:
    """Operations of such a pass in attention: in all layers, without its linear layers."""
    seen = new * past + new * (new + 1) // 2  # keys that the queries of a row see
    width = config.num_attention_heads * config.head_dim
    return 4 * config.num_hidden_layers * width * seen * batch


def forward_bytes(
    config: LlamaConfig, precision: str, new: int, past: int = 0, batch: int = 1
) -> int:
    """Bytes that such a pass must move at least: every weight once, and the KV cache once."""
    size = _other_size(precision)
    cache = kv_cache_bytes(config, past + new, batch, size)
    return weight_bytes(config, precision).read_per_token + cache


def feed_forward_width(width: int, multiple_of: int = 256, multiplier: float = 1.0) -> int:
    """LLaMA's inner width: two thirds of 4 x width, rounded up to a multiple (section 2.2).

    The `multiplier` came with Llama 2 70B. As in Meta's code, each step is cut to an integer.
    """
    inner = int(multiplier * int(2 * (4 * width) / 3))
    return multiple_of * math.ceil(inner / multiple_of)


def llama1_config(width: int, heads: int, layers: int) -> LlamaConfig:
    """A LLaMA of the first generation (arXiv:2302.13971, table 2), with its 32,000 tokens."""
    return LlamaConfig(
        vocab_size=32000,
        hidden_size=width,
        intermediate_size=feed_forward_width(width),
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=heads,
        head_dim=width // heads,
        max_position_embeddings=2048,
        rms_norm_eps=1e-6,
    )


def training_flops(parameters: float, tokens: float) -> float:
    """6 N D: 2 operations per weight and token forward, 4 backward (arXiv:2001.08361, sec. 2.1)."""
    return 6 * parameters * tokens


def training_bytes(parameters: int) -> dict[str, int]:
    """State of mixed-precision AdamW, 16 bytes per parameter (ZeRO, arXiv:1910.02054, sec. 3.1)."""
    return {
        "weights, 16 bit": 2 * parameters,
        "gradients, 16 bit": 2 * parameters,
        "weights, FP32": 4 * parameters,
        "AdamW's mean": 4 * parameters,
        "AdamW's variance": 4 * parameters,
    }


def roofline(intensity: float, bandwidth: float, throughput: float) -> float:
    """Highest operations/s at `intensity` operations per byte (Williams et al., 2009)."""
    return min(throughput, intensity * bandwidth)


def decode_bound(bytes_read: float, bandwidth: float) -> float:
    """Highest possible tokens/s at batch 1, from `bytes_read` per token and bytes/s `bandwidth`."""
    return bandwidth / bytes_read
