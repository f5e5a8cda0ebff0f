"""The ladder: one model, the same tokens, its linear layers rounded in one way after another."""

import os
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import torch
from tqdm.auto import tqdm

from llama_int8.evaluation import perplexity
from llama_int8.quantization.integers import fits, in_integers
from llama_int8.quantization.linear_layers import linear_layers
from llama_int8.quantization.precisions import THRESHOLD
from llama_int8.quantization.simulate import Kept, Scheme, simulated

# Weights and activations of each method of the paper's table 1; True: with zero points.
METHODS = {
    "absmax": ("tensor", "tensor", False),
    "zero point": ("tensor", "tensor", True),
    "row-wise": ("tensor", "row", False),
    "vector-wise": ("row", "row", False),
    "zero point vector-wise": ("row", "row", True),
}
LLM_INT8 = "vector-wise + decomposition"
BEFORE_DOWN = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj")
VOCABULARY_PIECE = 4096
ANOTHER_TOKEN = 8  # some position that is not the first

# The methods of the paper's table 1.
RUNGS = {
    "FP32": Scheme(),
    **{name: Scheme(*method) for name, method in METHODS.items()},
    **{
        f"{name} + decomposition": Scheme(*method, threshold=THRESHOLD)
        for name, method in METHODS.items()
    },
}
# What else could explain that the decomposition helps? Each keeps something else, or less.
CONTROLS = {
    "absmax, random columns": Scheme("tensor", "tensor", threshold=THRESHOLD, random_columns=True),
    "absmax, first token": Scheme("tensor", "tensor", token=0),
    "absmax, another token": Scheme("tensor", "tensor", token=ANOTHER_TOKEN),
    "vector-wise, random columns": Scheme("row", "row", threshold=THRESHOLD, random_columns=True),
    "vector-wise, columns of down_proj": Scheme(
        "row", "row", threshold=THRESHOLD, decomposed=("down_proj",)
    ),
    "vector-wise, columns of the others": Scheme(
        "row", "row", threshold=THRESHOLD, decomposed=BEFORE_DOWN
    ),
    "vector-wise, own outliers": Scheme("row", "row", threshold=THRESHOLD, own_values=True),
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
    shifts: Sequence[float] = (0.0,),
    in_turns: bool = False,
) -> dict[str, dict[str, Any]]:
    """{rung: {"nll": mean of each window on each grid, "kept": share left in high precision}}.

    "nll" has a list for each of `shifts`: fractions of a step by which the weights' grid is moved
    (only the first where nothing is computed in integers). `in_turns`: the windows take the grids
    in turns, each window one; the others' place holds None. "kept" is None where no activation is
    rounded. `windows`: (N, T). `absmax`: of each layer's input channels, from another text.
    `stage`: `Results.stage`, so that an interrupted session goes on where it was.
    """
    linears = linear_layers(model)
    known: dict[tuple, Any] = {}  # many rungs share their weights' codes

    def measure(scheme: Scheme) -> dict[str, Any]:
        if not fits(scheme):
            with simulated(linears, scheme, absmax) as kept:
                nll = [losses(model, windows, 1 if scheme.activations else None)]
            return {"nll": nll, "kept": kept.share if scheme.activations else None}
        nll, total = [], Kept()
        for number, shift in enumerate(shifts):
            turn = slice(number, None, len(shifts)) if in_turns else slice(None)
            row: list[float | None] = [None] * len(windows)
            with in_integers(linears, scheme, absmax, shift, known) as kept:
                row[turn] = losses(model, windows[turn])
            nll.append(row)
            total.values, total.kept = total.values + kept.values, total.kept + kept.kept
        return {"nll": nll, "kept": total.share}

    turns = " in turns" if in_turns else ""
    names = {name: f"{name}, {len(windows)} windows, {len(shifts)} grids{turns}" for name in rungs}
    return {
        name: stage(names[name], lambda scheme=scheme: measure(scheme), timed=False)
        for name, scheme in tqdm(rungs.items(), desc="rungs", leave=False)
    }


def losses(
    model: torch.nn.Module, windows: torch.Tensor, workers: int | None = None
) -> list[float]:
    """Mean NLL of each window. On a CPU, windows side by side, each on one core from start to end.

    Many small operations gain little from a second core, and a window computed on one core has the
    same result on every number of cores.
    """
    if not len(windows):
        return []
    if windows.is_cuda:
        return perplexity.token_nll(model, windows).mean(1).tolist()
    perplexity.check_context(model, windows.shape[1])
    workers = workers or min(len(windows), os.cpu_count() or 1)
    with ThreadPoolExecutor(workers, initializer=torch.set_num_threads, initargs=(1,)) as pool:
        rows = pool.map(lambda window: _window_nll(model, window), windows)
        return perplexity.checked_nll(model, list(rows)).mean(1).tolist()


@torch.inference_mode()
def _window_nll(model: torch.nn.Module, window: torch.Tensor) -> torch.Tensor:
    """`perplexity.window_nll`, the vocabulary in pieces: all logits at once would leave the cache."""
    states = model.base_model(window[None], use_cache=False).last_hidden_state[0, :-1]  # (T - 1, C)
    table = model.get_output_embeddings().weight  # (V, C)
    sums = []
    for piece in table.split(VOCABULARY_PIECE):
        logits = (states @ piece.T).float()
        top = logits.amax(1)
        sums.append(top + logits.sub_(top[:, None]).exp_().sum(1).log())
    own = (states * table[window[1:]]).sum(1).float()
    return torch.stack(sums).logsumexp(0) - own
