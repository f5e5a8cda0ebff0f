"""The ladder: one model, the same tokens, its linear layers rounded in one way after another."""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from tqdm.auto import tqdm

from llama_int8.evaluation import perplexity
from llama_int8.quantization.linear_layers import linear_layers
from llama_int8.quantization.precisions import THRESHOLD
from llama_int8.quantization.simulate import Scheme, simulated

# Weights and activations of each method of the paper's table 1; True: with zero points.
METHODS = {
    "absmax": ("tensor", "tensor", False),
    "zero point": ("tensor", "tensor", True),
    "row-wise": ("tensor", "row", False),
    "vector-wise": ("row", "row", False),
}
LLM_INT8 = "vector-wise + decomposition"
OTHER_THRESHOLDS = (2.0, 4.0, 12.0)
BEFORE_DOWN = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj")
ANOTHER_TOKEN = 8  # some position that is not the first

RUNGS = {
    "FP32": Scheme(),
    "weights alone, tensor": Scheme("tensor"),
    "weights alone, row": Scheme("row"),
    **{name: Scheme(*method) for name, method in METHODS.items()},
    **{
        f"{name} + decomposition": Scheme(*method, threshold=THRESHOLD)
        for name, method in METHODS.items()
    },
}
THRESHOLDS = {
    f"threshold {value:g}": Scheme("row", "row", threshold=value) for value in OTHER_THRESHOLDS
}
# What else could explain that the decomposition helps? Each keeps something else, or less.
CONTROLS = {
    "absmax, random columns": Scheme("tensor", "tensor", threshold=THRESHOLD, random_columns=True),
    "vector-wise, random columns": Scheme("row", "row", threshold=THRESHOLD, random_columns=True),
    "absmax, first token": Scheme("tensor", "tensor", token=0),
    "absmax, another token": Scheme("tensor", "tensor", token=ANOTHER_TOKEN),
    "absmax, first token + columns": Scheme("tensor", "tensor", threshold=THRESHOLD, token=0),
    "vector-wise, first token": Scheme("row", "row", token=0),
    "vector-wise, columns of down_proj": Scheme(
        "row", "row", threshold=THRESHOLD, decomposed=("down_proj",)
    ),
    "vector-wise, columns of the others": Scheme(
        "row", "row", threshold=THRESHOLD, decomposed=BEFORE_DOWN
    ),
    "vector-wise, original weights": Scheme(
        "row", "row", threshold=THRESHOLD, original_weights=True
    ),
    "vector-wise, SmoothQuant": Scheme("row", "row", smoothing=0.5),
}


def climb(
    model: torch.nn.Module,
    windows: torch.Tensor,
    rungs: Mapping[str, Scheme],
    absmax: Mapping[str, torch.Tensor],
    stage: Callable[..., Any] = lambda _, compute, *, timed: compute(),
) -> dict[str, dict[str, Any]]:
    """{rung: {"nll": mean of each window, "kept": share of activations left in high precision}}.

    "kept" is None where no activation is rounded. `windows`: (N, T). `absmax`: of each layer's
    input channels, from another text. `stage`: `Results.stage`, so that an interrupted session goes
    on where it was.
    """
    linears = linear_layers(model)

    def measure(scheme: Scheme) -> dict[str, Any]:
        with simulated(linears, scheme, absmax) as kept:
            nll = perplexity.token_nll(model, windows).mean(1)
        return {"nll": nll.tolist(), "kept": kept.share if scheme.activations else None}

    return {
        name: stage(name, lambda scheme=scheme: measure(scheme), timed=False)
        for name, scheme in tqdm(rungs.items(), desc="rungs", leave=False)
    }
