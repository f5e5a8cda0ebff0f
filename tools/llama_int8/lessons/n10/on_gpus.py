"""int8 on GPUs: what bytes and launches predict, and what a card has measured, where there was one.

A prediction is arithmetic on a model's shapes, a card's published bandwidth and the assumptions in
`ASSUMPTIONS`. `tools/benchmark_gpu.py` measures; its file then stands beside the prediction.
"""

import json
import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, replace
from importlib.resources import files
from pathlib import Path
from typing import Any

import torch
from torch.overrides import TorchFunctionMode

from llama_int8.data import published
from llama_int8.lessons.n10 import gpu
from llama_int8.models import config_of
from llama_int8.models.cost import forward_bytes, weight_bytes
from llama_int8.models.synthetic import build_synthetic
from llama_int8.quantization.gpu.llama import BUCKET, GraphLlama
from llama_int8.transformer.config import LlamaConfig

MODEL = "llama-2-7b-chat"
CONTEXT = 128  # tokens in the cache
FILE = f"gpu@synthetic-{MODEL}.json"
PRECISIONS = ("fp16", "int8-fast")  # both by one graph for each step
VIEWS = frozenset(
    "chunk transpose unflatten flatten squeeze unsqueeze view reshape split size dim __len__ "
    "is_floating_point detach".split()
)
"""Functions of PyTorch that start nothing on a card."""


@dataclass(frozen=True)
class Assumptions:
    """What shapes do not say: how much of its bandwidth a card reaches, and an operation's time."""

    share: float  # of the published bandwidth that products reach
    seconds: float  # of each operation of the graph beside reading its bytes


ASSUMPTIONS = (Assumptions(0.65, 5e-6), Assumptions(0.80, 2.5e-6))
"""The worse and the better end: guesses of a usual size, for a T4 with its ECC on.

The share that the published FP16 run on a T4 reached, Python and prefill in its time, lies between.
"""


@dataclass(frozen=True)
class Predicted:
    """Tokens/s of one card in one precision, at the worse end and at the better one."""

    low: float
    high: float


class _Launches(TorchFunctionMode):
    """Counts the calls into PyTorch that compute something."""

    def __init__(self) -> None:
        super().__init__()
        self.found: Counter[str] = Counter()

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = getattr(func, "__name__", str(func))
        view = name in VIEWS or name == "__get__"  # of an attribute, such as `.shape`
        if name == "__getitem__":  # a slice is a view; a choice by a tensor is not
            index = args[1] if isinstance(args[1], tuple) else (args[1],)
            view = not any(isinstance(one, torch.Tensor) for one in index)
        self.found[name] += not view
        return func(*args, **(kwargs or {}))


def launches(config: LlamaConfig) -> int:
    """Operations of one captured step, counted while a small model with more and more layers runs.

    A layer's operations do not depend on its width, so two narrow models of one and two layers do.
    """
    small = replace(
        config, vocab_size=32, hidden_size=8, intermediate_size=8, head_dim=2,
        num_attention_heads=4, num_key_value_heads=4, num_hidden_layers=1,
    )  # fmt: skip
    counts = []
    for layers in (1, 2):
        shapes = replace(small, num_hidden_layers=layers)
        step = GraphLlama(build_synthetic(shapes, torch.float32, "cpu"), 8)
        with torch.inference_mode(), _Launches() as mode:
            step._step(8)
        counts.append(sum(mode.found.values()))
    one, two = counts
    return one + (two - one) * (config.num_hidden_layers - 1)


def step_bytes(config: LlamaConfig, precision: str, context: int) -> int:
    """Bytes that a captured step reads: all weights, and the cache to the end of its bucket."""
    seen = (context // BUCKET + 1) * BUCKET
    return forward_bytes(config, precision, 1, seen - 1)


def predictions(name: str = MODEL, context: int = CONTEXT) -> dict[str, dict[str, Predicted]]:
    """Tokens/s for one sequence after `context` tokens: {card: {precision: ..}}."""
    config = config_of(name)
    count = launches(config)
    cards = {card: 1e9 * row[0] for card, row in published("gpu-bandwidth")["rows"].items()}
    return {
        card: {
            precision: Predicted(
                *(
                    speed(step_bytes(config, precision, context), bandwidth, count, end)
                    for end in ASSUMPTIONS
                )
            )
            for precision in PRECISIONS
        }
        for card, bandwidth in cards.items()
    }


def speed(bytes_: float, bandwidth: float, count: int, end: Assumptions) -> float:
    """Tokens/s where a step reads `bytes_` and runs `count` operations one after the other."""
    return 1 / (bytes_ / (end.share * bandwidth) + count * end.seconds)


def lost_per_layer(config: LlamaConfig, paths: Mapping[str, str]) -> dict[str, float]:
    """Milliseconds per linear layer that reading does not explain, in the published runs on a T4.

    `paths`: the table's column by the precision of `weight_bytes`.
    """
    table, bandwidth = published("t4-llama-2-7b-chat"), published("gpu-bandwidth")["rows"]["T4"][0]
    speeds = dict(zip(table["columns"], table["rows"]["speed (tokens/s)"], strict=True))
    layers = config.num_hidden_layers * len(config.linear_shapes())
    return {
        column: 1e3
        * (1 / speeds[column] - weight_bytes(config, precision).read_per_token / (1e9 * bandwidth))
        / layers
        for precision, column in paths.items()
    }


def measured(*folders: str | Path) -> dict[str, Any]:
    """What `benchmark_gpu.py` has measured on a card: {"GPU": its name, path: tokens/s}, or {}.

    `folders`: where results/ may lie; the first file with a GPU's numbers counts.
    """
    case = f"decode.1x{CONTEXT}."
    paths = [p for folder in folders for p in sorted(Path(folder).glob(f"results/*/{FILE}"))]
    for path in paths:
        content = json.loads(path.read_text(encoding="utf-8"))
        found = {
            name.removeprefix(case): entry["value"]
            for name, entry in content["measurements"].items()
            if name.startswith(case)
        }
        if "GPU" in content["environment"] and {gpu.HALF_GRAPH, gpu.INT8_GRAPH} <= found.keys():
            return {"GPU": content["environment"]["GPU"], **found}
    return {}


def table(found: Mapping[str, Mapping[str, Predicted]]) -> list[list[str]]:
    """Rows for `show_table`: card, tokens/s in FP16 and in int8, and their ratio at both ends."""
    rows = []
    for card, by_precision in found.items():
        fp16, int8 = (by_precision[precision] for precision in PRECISIONS)
        ratios = sorted((int8.low / fp16.low, int8.high / fp16.high))
        cells = [f"{one.low:.0f} to {one.high:.0f}" for one in (fp16, int8)]
        rows.append([card, *cells, f"{ratios[0]:.2f} to {ratios[1]:.2f}"])
    return rows


def show_pieces() -> None:
    """Display the kernel, and the capture of a step, as Python."""
    from IPython.display import Markdown, display

    for piece in pieces():
        display(Markdown(f"```python\n{piece}\n```"))


def pieces() -> list[str]:
    """The source of the kernel and of the capture, between their marks."""
    package = files("llama_int8.quantization.gpu")
    found = []
    for name in ("kernels.py", "llama.py"):
        source = (package / name).read_text(encoding="utf-8")
        _, piece, _ = re.split(r"# --- .* ---\n", source)
        found.append(piece.strip())
    return found
