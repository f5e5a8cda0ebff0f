"""Six small decoders for the challenge: some of them see the future. Reading this spoils it."""

from collections.abc import Callable

import torch
from torch import Tensor

LENGTH, BATCH, VOCABULARY = 8, 4, 50
Decoder = Callable[[Tensor], Tensor]


def targets() -> Tensor:
    """Texts for the decoders, (B, T), without padding."""
    return torch.randint(3, VOCABULARY - 1, (BATCH, LENGTH), generator=_generator())


def decoders() -> dict[str, tuple[Decoder, bool]]:
    """By letter: tokens (B, T) to logits (B, T, V), and whether it sees the future."""
    table = torch.randn(VOCABULARY, VOCABULARY, generator=_generator())
    scores = torch.randn(LENGTH, LENGTH, generator=_generator())
    past = torch.ones(LENGTH, LENGTH).tril().bool()
    causal = scores.masked_fill(~past, float("-inf")).softmax(-1)
    noise = _generator()

    def honest(tokens: Tensor) -> Tensor:
        return causal @ table[tokens]

    def off_by_one(tokens: Tensor) -> Tensor:
        wider = torch.ones(LENGTH, LENGTH).tril(1).bool()
        return scores.masked_fill(~wider, float("-inf")).softmax(-1) @ table[tokens]

    def after_the_softmax(tokens: Tensor) -> Tensor:
        x = table[tokens]
        return (x @ x.transpose(1, 2) / VOCABULARY**0.5).softmax(-1).tril() @ x

    def normed_over_positions(tokens: Tensor) -> Tensor:
        x = table[tokens]
        return causal @ (x - x.mean(1, keepdim=True))  # the mean holds the future

    def with_dropout(tokens: Tensor) -> Tensor:
        states = honest(tokens)
        return states * (torch.rand(states.shape, generator=noise) > 0.1)

    def knows_the_length(tokens: Tensor) -> Tensor:
        left = (tokens != 0).sum(1)[:, None] - torch.arange(LENGTH)  # how far it is to the end
        return honest(tokens) + (0.1 * left)[..., None]

    return {
        "A": (after_the_softmax, True),
        "B": (honest, False),
        "C": (knows_the_length, True),
        "D": (off_by_one, True),
        "E": (with_dropout, False),
        "F": (normed_over_positions, True),
    }


def _generator() -> torch.Generator:
    return torch.Generator().manual_seed(2)
