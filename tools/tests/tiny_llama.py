"""Random models of the LLaMA type, small enough for a test."""

import torch
from transformers import LlamaConfig, LlamaForCausalLM


def tiny_config(**changes) -> LlamaConfig:
    """Hugging Face's config of a GQA model; `changes` replace or add entries."""
    shapes = {
        "vocab_size": 97,
        "hidden_size": 24,
        "intermediate_size": 40,
        "num_hidden_layers": 3,
        "num_attention_heads": 6,
        "num_key_value_heads": 2,
        "head_dim": 8,  # 6 x 8 = 48, not the hidden size
        "max_position_embeddings": 64,
    }
    return LlamaConfig(**{**shapes, "tie_word_embeddings": False, **changes})


def tiny_llama(seed: int = 0, **changes) -> LlamaForCausalLM:
    """A model of this config with random weights, in FP32 and evaluation mode."""
    torch.manual_seed(seed)
    return LlamaForCausalLM(tiny_config(**changes)).eval()
