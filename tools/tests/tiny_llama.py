"""Random models of the LLaMA type, small enough for a test."""

import bitsandbytes as bnb
import torch
from torch import nn
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


def in_int8(model: LlamaForCausalLM) -> LlamaForCausalLM:
    """This model with bitsandbytes' layers in place of the blocks' linear ones, the rest in bf16."""
    model = model.bfloat16()
    for parent in list(model.model.layers.modules()):
        for name, linear in list(parent.named_children()):
            if isinstance(linear, nn.Linear):
                layer = bnb.nn.Linear8bitLt(
                    linear.in_features,
                    linear.out_features,
                    bias=False,
                    has_fp16_weights=False,
                    threshold=6.0,
                )
                layer.weight = bnb.nn.Int8Params(
                    linear.weight.data, requires_grad=False, has_fp16_weights=False
                )
                setattr(parent, name, layer.to("cpu"))
    return model.eval()
