"""What several test files need: random numbers, comparisons, errors with their words, a twin."""

import re

import pytest
import torch
from torch import Tensor

from llama_int8.transformer.config import LlamaConfig
from llama_int8.transformer.llama import Llama


def normal(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    """Random numbers with mean 0 and standard deviation 1, the same in every run."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def random_tokens(*shape: int, vocabulary: int = 97, seed: int = 0) -> Tensor:
    """Random token ids below `vocabulary`, the same in every run."""
    return torch.randint(vocabulary, shape, generator=torch.Generator().manual_seed(seed))


def same(ours, theirs, tolerance: float = 1e-5) -> None:
    """Demand tensors of equal shape, dtype and values, up to this error."""
    torch.testing.assert_close(ours, theirs, rtol=tolerance, atol=tolerance)


def refused(error: type[Exception], *words: str):
    """Expect an error whose message has all these words."""
    return pytest.raises(error, match="(?s)" + "".join(f"(?=.*{re.escape(w)})" for w in words))


def twin_of(theirs) -> Llama:
    """Our model with the shapes and weights of a Hugging Face one."""
    ours = Llama(LlamaConfig.from_hugging_face(theirs.config.to_dict()))
    ours.load_state_dict(theirs.state_dict())
    return ours.eval()
