"""PyTorch's own modules holding the weights of ours: an independent computation to compare with."""

import warnings

import torch
from torch import nn

from llama_int8.transformer.attention import (
    DecoderBlock,
    EncoderBlock,
    EncoderDecoder,
    MultiHeadAttention,
)


def torch_twin(ours: nn.Module) -> nn.Module:
    """PyTorch's module of the same kind, shapes and weights, in evaluation mode, batch first.

    MultiHeadAttention -> nn.MultiheadAttention, EncoderBlock -> nn.TransformerEncoderLayer,
    DecoderBlock -> nn.TransformerDecoderLayer, EncoderDecoder -> nn.Transformer (which has neither
    embedding nor output layer). Raises TypeError for another module.
    """
    kinds = {
        "MultiHeadAttention": _attention,
        "EncoderBlock": _encoder_block,
        "DecoderBlock": _decoder_block,
        "EncoderDecoder": _encoder_decoder,
    }
    name = type(ours).__name__  # by name: a notebook defines classes of its own
    if name not in kinds:
        raise TypeError(f"there is no twin of {name}; there is one of {', '.join(kinds)}")
    weights = next(ours.parameters())
    with torch.no_grad():
        return kinds[name](ours).to(weights.device, weights.dtype).eval()


def _attention(ours: MultiHeadAttention) -> nn.MultiheadAttention:
    projections = (ours.q_proj, ours.k_proj, ours.v_proj)
    twin = nn.MultiheadAttention(ours.q_proj.in_features, ours.heads, batch_first=True)
    twin.in_proj_weight.copy_(torch.cat([p.weight for p in projections]))
    twin.in_proj_bias.copy_(torch.cat([p.bias for p in projections]))
    twin.out_proj.load_state_dict(ours.o_proj.state_dict())
    return twin


def _shape(ours: nn.Module, heads: int) -> dict:
    width, inner = ours.feed_forward.fc1.in_features, ours.feed_forward.fc1.out_features
    # The plain blocks that a lesson builds hold their norms themselves, always before the part.
    first = ours.residuals[0].norm_first if hasattr(ours, "residuals") else True
    return {
        "d_model": width,
        "nhead": heads,
        "dim_feedforward": inner,
        "dropout": 0.0,
        "batch_first": True,
        "norm_first": first,
    }


def _copy_rest(twin: nn.Module, ours: nn.Module) -> None:
    twin.linear1.load_state_dict(ours.feed_forward.fc1.state_dict())
    twin.linear2.load_state_dict(ours.feed_forward.fc2.state_dict())
    norms = [r.norm for r in ours.residuals] if hasattr(ours, "residuals") else ours.norms
    for number, norm in enumerate(norms, start=1):
        getattr(twin, f"norm{number}").load_state_dict(norm.state_dict())


def _encoder_block(ours: EncoderBlock) -> nn.TransformerEncoderLayer:
    twin = nn.TransformerEncoderLayer(**_shape(ours, ours.attention.heads))
    twin.self_attn = _attention(ours.attention)
    _copy_rest(twin, ours)
    return twin


def _decoder_block(ours: DecoderBlock) -> nn.TransformerDecoderLayer:
    twin = nn.TransformerDecoderLayer(**_shape(ours, ours.self_attention.heads))
    twin.self_attn = _attention(ours.self_attention)
    twin.multihead_attn = _attention(ours.cross_attention)
    _copy_rest(twin, ours)
    return twin


def _encoder_decoder(ours: EncoderDecoder) -> nn.Transformer:
    shape = _shape(ours.encoder[0], ours.encoder[0].attention.heads)
    layers = {"num_encoder_layers": len(ours.encoder), "num_decoder_layers": len(ours.decoder)}
    with warnings.catch_warnings():  # that its fast path is not for pre-norm blocks
        warnings.simplefilter("ignore")
        twin = nn.Transformer(**shape, **layers)
    twin.encoder.layers = nn.ModuleList(map(_encoder_block, ours.encoder))
    twin.decoder.layers = nn.ModuleList(map(_decoder_block, ours.decoder))
    twin.encoder.norm.load_state_dict(ours.encoder_norm.state_dict())
    twin.decoder.norm.load_state_dict(ours.decoder_norm.state_dict())
    return twin
