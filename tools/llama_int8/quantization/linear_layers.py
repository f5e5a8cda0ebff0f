"""The linear layers of a model: found by name, and watched while it computes."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager

from torch import Tensor, nn


class ScaledCodes(nn.Module):
    """A layer with buffers `weight` (codes), `scale` and `bias` that `.to(dtype)` must not round."""

    def _apply(self, fn, recurse: bool = True):
        scale, bias = self.scale, self.bias
        super()._apply(fn, recurse)
        device = self.weight.device
        self.scale, self.bias = scale.to(device), None if bias is None else bias.to(device)
        return self


def linear_layers(model: nn.Module, skip: Sequence[str] = ("lm_head",)) -> dict[str, nn.Linear]:
    """The linear layers by name, without those whose path, or a part of it, is in `skip`."""
    skip = (skip,) if isinstance(skip, str) else tuple(skip)
    names = [name for name, _ in model.named_modules()]
    for wanted in skip:
        if not wanted or (
            wanted != "lm_head" and not any(_is_part(wanted, name) for name in names)
        ):
            raise ValueError(
                f"skip names {wanted!r}, which is not a whole part of any module's name"
            )
    found = {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear) and not any(_is_part(part, name) for part in skip)
    }
    if not found:
        raise ValueError(f"{type(model).__name__} has no linear layer beside those in skip={skip}")
    return found


@contextmanager
def watching(
    linears: Mapping[str, nn.Linear], see: Callable[[str, Tensor], None]
) -> Iterator[None]:
    """Within the block, `see(name, input)` is called with what enters each of `linears`, (B, T, C).

    So statistics can be taken of what is too large to be kept. The hooks are removed at the end of
    the block, even after an error.
    """
    hooks = [
        linear.register_forward_pre_hook(lambda _, inputs, name=name: see(name, inputs[0].detach()))
        for name, linear in linears.items()
    ]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def _is_part(part: str, name: str) -> bool:
    return f".{part}." in f".{name}."
