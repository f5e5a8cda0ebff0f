"""Grouped heads on older cards: keys and values are expanded first, so that attention stays fast.

Where query heads share keys and values, transformers asks PyTorch's attention for `enable_gqa`. Below
compute capability 8.0 (a T4 has 7.5) only PyTorch's MATH kernel takes that, 1.6 to 1.8 times slower
end to end (transformers, issue 48633).
"""

CAPABILITY = (8, 0)  # from here on the fused kernels take grouped heads


def expand_grouped_heads(device: str) -> bool:
    """Let transformers expand keys and values itself on such a card; True if that was needed."""
    import torch

    if device == "cpu" or torch.cuda.get_device_capability() >= CAPABILITY:
        return False
    from transformers.integrations import sdpa_attention

    sdpa_attention.use_gqa_in_sdpa = _never
    return True


def _never(*_: object, **__: object) -> bool:
    return False
