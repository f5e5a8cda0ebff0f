"""Other grids for the same weights: shifted by a part of a step, or met by turned weights."""

from collections.abc import Callable
from math import pi

import torch
from torch import Tensor


def shifted(W: Tensor, bits: int, shift: float) -> Tensor:
    """Absmax by rows on a grid moved by a fraction of a step: codes at shift, shift + 1, shift - 1 ...

    Its noise is the same. But only where `shift` is a whole number does 0 have a code.
    """
    scale = W.abs().amax(-1, keepdim=True).clamp(min=1e-12) / (2 ** (bits - 1) - 1)
    return ((W / scale - shift).round() + shift) * scale


def turn(W: Tensor, angles: Tensor) -> Tensor:
    """Row i of W (M, K) turned together with row i + M / 2, by `angles` (M / 2, 1)."""
    first, second = W.chunk(2)
    cos, sin = angles.cos(), angles.sin()
    return torch.cat([first * cos - second * sin, first * sin + second * cos])


def turned(W: Tensor, rule: Callable[[Tensor], Tensor], seed: int) -> Tensor:
    """Turn by random angles, round by `rule`, turn back: (M, K) -> (M, K).

    The turned weights are the same layer, except for a rotation of its output that turning back
    undoes. They lie on no grid on which W may have lain, and a rotation changes no error's size.
    """
    draw = torch.Generator().manual_seed(seed)
    angles = 2 * pi * torch.rand(len(W) // 2, 1, generator=draw).to(W.device)
    return turn(rule(turn(W, angles)), -angles)
