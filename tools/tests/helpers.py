"""What several test files need: random numbers, comparisons, errors with their words, solutions."""

import json
import re
from pathlib import Path

import pytest
import torch
from torch import Tensor

from llama_int8.course.exercises import find
from llama_int8.lessons import exercises
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


def solved(path: Path) -> dict:
    """A notebook with the references' source in the cells of its exercises."""
    exercises()  # so that they can be found by name
    content = json.loads(path.read_text(encoding="utf-8"))
    for cell in content["cells"]:
        source = "".join(cell["source"])
        for name, function in re.findall(r'check\("(\d\d\.\w+)", (\w+)\)', source):
            reference = find(name).reference
            own = find(name).source().replace(f"def {reference.__name__}(", f"def {function}(")
            blank = re.search(r"^def .*?(?=^\w+ = exercises\.check)", source, re.M | re.S)
            source = source.replace(blank[0], f"{own}\n\n")
            cell["source"] = source
    return content
