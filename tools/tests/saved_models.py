"""Models with random weights, written as a checkpoint of several files."""

from llama_int8.models.synthetic import save_synthetic
from llama_int8.transformer.config import LlamaConfig

__all__ = ["TINY", "save_synthetic"]

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
