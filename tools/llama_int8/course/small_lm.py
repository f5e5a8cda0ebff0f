"""A small byte-level language model of exchangeable parts: the original Transformer's or LLaMA's.

Every part is the course's own: the blocks of notebook 02 and of notebook 04.
"""

import lzma
import math
import multiprocessing
import os
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, scaled_dot_product_attention
from tqdm.auto import tqdm

from llama_int8.data import calibration_text, evaluation_text
from llama_int8.transformer.attention import FeedForward, Residual, sinusoidal_positions
from llama_int8.transformer.llama import (
    GroupedQueryAttention,
    LlamaConfig,
    RMSNorm,
    SwiGLU,
    rope_frequencies,
    rope_rotation,
)

WIDTH, LAYERS, HEADS, CONTEXT, BATCH = 64, 4, 4, 128, 16
PEAK_RATE = 3e-3
BYTES = 256


@dataclass(frozen=True)
class Parts:
    """Which parts a model is made of; by default those of 2017."""

    norm_first: bool = False
    rms_norm: bool = False
    positions: str = "sinusoidal"  # or "learned", "rotary", "none"
    swiglu: bool = False
    key_value_heads: int = HEADS
    bias: bool = True
    embedding_scale: bool = True


ORIGINAL = Parts()
LLAMA = Parts(True, True, "rotary", True, HEADS // 2, False, False)
CHANGES: dict[str, Parts] = {
    "original": ORIGINAL,
    "+ pre-norm": replace(ORIGINAL, norm_first=True),
    "+ RMSNorm": replace(ORIGINAL, rms_norm=True),
    "+ rotary": replace(ORIGINAL, positions="rotary"),
    "+ SwiGLU": replace(ORIGINAL, swiglu=True),
    "+ shared heads": replace(ORIGINAL, key_value_heads=HEADS // 2),
    "+ no biases": replace(ORIGINAL, bias=False),
    "all: LLaMA": LLAMA,
    "no positions": replace(ORIGINAL, positions="none"),
}
POSITIONS: dict[str, Parts] = {
    # Sines are as large as a scaled embedding: that is what the scale of 2017 is for.
    "sinusoidal": replace(LLAMA, positions="sinusoidal", embedding_scale=True),
    "learned": replace(LLAMA, positions="learned"),
    "none": replace(LLAMA, positions="none"),
    "rotary": LLAMA,
}
BEYOND, BIN = 4 * CONTEXT, 32
SCALINGS: dict[str, dict | None] = {
    "as trained": None,
    "linear": {"rope_type": "linear", "factor": BEYOND / CONTEXT},
    "llama3": {
        "rope_type": "llama3",
        "factor": BEYOND / CONTEXT,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": CONTEXT,
    },
    "NTK-aware": {"rope_type": "ntk", "factor": BEYOND / CONTEXT},
    "YaRN": {
        "rope_type": "yarn",
        "factor": BEYOND / CONTEXT,
        "low_freq_factor": 1.0,
        "high_freq_factor": 32.0,
        "original_max_position_embeddings": CONTEXT,
    },
}
"""Rotary scalings that stretch the trained context to the length of BEYOND."""


def scaled_rope(config: LlamaConfig, scaling: dict | None) -> tuple[Tensor, float]:
    """Frequencies (D / 2,) under a scaling, and the factor by which queries and keys grow.

    "ntk" raises theta so far that the slowest pair slows by the factor and the fastest stays
    (Peng et al., arXiv:2309.00071, section 3.1). "yarn" blends by turns, as llama3 does, between 1
    and 32 turns, and sharpens the scores (sections 3.2 and 3.4). All others: `rope_frequencies`.
    """
    kind = scaling["rope_type"] if scaling else "default"
    if kind == "ntk":
        stretch = scaling["factor"] ** (config.head_dim / (config.head_dim - 2))
        return rope_frequencies(replace(config, rope_theta=config.rope_theta * stretch)), 1.0
    if kind == "yarn":
        by_parts = replace(config, rope_scaling={**scaling, "rope_type": "llama3"})
        return rope_frequencies(by_parts), 0.1 * math.log(scaling["factor"]) + 1
    return rope_frequencies(replace(config, rope_scaling=scaling)), 1.0


class SmallAttention(GroupedQueryAttention):
    """With a rotation or without: turning all pairs by nothing takes a fifth of a training's time."""

    def forward(self, x: Tensor, rotation: tuple[Tensor, Tensor] | None) -> Tensor:
        """(B, T, C) -> (B, T, C)."""
        if rotation is not None:
            return super().forward(x, rotation, None)
        q, k, v = (self._split(p(x)) for p in (self.q_proj, self.k_proj, self.v_proj))
        mixed = scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)
        return self.o_proj(mixed.transpose(1, 2).flatten(2))  # (B, H, T, D) -> (B, T, C)


class SmallBlock(nn.Module):
    """Attention and feed-forward network with the norms and residuals of `parts`."""

    def __init__(self, parts: Parts, config: LlamaConfig, layer: int) -> None:
        super().__init__()
        self.attention = SmallAttention(config, layer)
        # As many weights as the original's two matrices, and as what shared keys and values save.
        saved = 2 * WIDTH * (WIDTH - parts.key_value_heads * config.head_dim)
        weights = 2 * WIDTH * 4 * WIDTH + saved
        self.feed_forward = (
            SwiGLU(WIDTH, round(weights / (3 * WIDTH)), parts.bias)
            if parts.swiglu
            else FeedForward(WIDTH, round(weights / (2 * WIDTH)))
        )
        self.residuals = nn.ModuleList([Residual(WIDTH, parts.norm_first) for _ in range(2)])
        if parts.rms_norm:
            for residual in self.residuals:
                residual.norm = RMSNorm(WIDTH)

    def forward(self, x: Tensor, rotation: tuple[Tensor, Tensor] | None) -> Tensor:
        """(B, T, C) -> (B, T, C)."""
        x = self.residuals[0](x, lambda h: self.attention(h, rotation))
        return self.residuals[1](x, self.feed_forward)


class SmallLM(nn.Module):
    """Bytes (B, T) -> logits of the next byte (B, T, 256)."""

    def __init__(self, parts: Parts, layers: int = LAYERS, longest: int = BEYOND) -> None:
        super().__init__()
        self.parts = parts
        self.config = LlamaConfig(
            vocab_size=BYTES,
            hidden_size=WIDTH,
            intermediate_size=4 * WIDTH,
            num_hidden_layers=layers,
            num_attention_heads=HEADS,
            num_key_value_heads=parts.key_value_heads,
            head_dim=WIDTH // HEADS,
            max_position_embeddings=longest,
            attention_bias=parts.bias,
        )
        self.embedding = nn.Embedding(BYTES, WIDTH)
        self.blocks = nn.ModuleList([SmallBlock(parts, self.config, i) for i in range(layers)])
        kind = RMSNorm if parts.rms_norm else nn.LayerNorm
        self.norm = kind(WIDTH) if parts.norm_first else nn.Identity()
        self.lm_head = nn.Linear(WIDTH, BYTES, bias=False)
        # With the scale of 2017 numbers of size 1, about as large as the sines; 0.02 without.
        self.scale = math.sqrt(WIDTH) if parts.embedding_scale else 1.0
        nn.init.normal_(
            self.embedding.weight, std=1 / self.scale if parts.embedding_scale else 0.02
        )
        if parts.positions == "learned":
            self.positions = nn.Embedding(longest, WIDTH)
            nn.init.normal_(self.positions.weight, std=0.02)
        if not parts.bias:
            for module in self.modules():
                if isinstance(module, nn.Linear):
                    module.bias = None

    def forward(self, tokens: Tensor, scaling: dict | None = None) -> Tensor:
        """`scaling`: a rotary scaling as in `LlamaConfig.rope_scaling`, for longer texts."""
        places = torch.arange(tokens.shape[1])
        x = self.embedding(tokens) * self.scale  # (B, T, C), scaled as in 2017, section 3.4
        if self.parts.positions == "sinusoidal":
            x = x + sinusoidal_positions(len(places), WIDTH)
        elif self.parts.positions == "learned":
            x = x + self.positions(places)
        rotation = None
        if self.parts.positions == "rotary":
            frequencies, growth = scaled_rope(self.config, scaling)
            cos, sin = rope_rotation(places, frequencies, x.dtype)
            rotation = cos * growth, sin * growth
        for block in self.blocks:
            x = block(x, rotation)
        return self.lm_head(self.norm(x))


def learning_rate(step: int, steps: int, peak: float, warmup: int) -> float:
    """LLaMA's schedule: linear warm-up, then a cosine down to a tenth of the peak (section 2.3)."""
    if step < warmup:
        return peak * (step + 1) / warmup
    progress = (step - warmup) / max(1, steps - warmup)
    return peak * (0.1 + 0.45 * (1 + math.cos(math.pi * progress)))


def byte_entropy() -> float:
    """Bits per byte for a guess that knows only how often each byte occurs in the training text."""
    text, _ = corpus()
    shares = torch.bincount(text, minlength=BYTES).double() / len(text)
    return -(shares * shares.clamp_min(1e-12).log2()).sum().item()


def baselines() -> dict[str, tuple[float | None, float]]:
    """Bits per byte, (training, held out), without a neural network; all learn on `corpus`'s text.

    A uniform guess; counted bytes; counted pairs, each row of counts with one more count that is
    spread like the counted bytes; and xz, whose figure is what the held-out text adds to the
    compressed size of the training text.
    """
    texts = corpus()
    read, held_out = texts
    counts = torch.bincount(read, minlength=BYTES).double() + 1
    single = counts / counts.sum()
    pairs = torch.bincount(read[:-1] * BYTES + read[1:], minlength=BYTES**2).view(BYTES, BYTES)
    after = (pairs + single) / (pairs.sum(1, keepdim=True) + 1)
    packed = [len(lzma.compress(bytes(t.tolist()))) for t in (read, torch.cat(texts))]
    found = {
        "guessing": tuple(math.log2(BYTES) for _ in texts),
        "counted bytes": tuple(-single.log2()[t].mean().item() for t in texts),
        "counted pairs of bytes": tuple(-after.log2()[t[:-1], t[1:]].mean().item() for t in texts),
    }
    return {**found, "xz": (None, 8 * (packed[1] - packed[0]) / len(held_out))}


def corpus() -> tuple[Tensor, Tensor]:
    """Bytes to train on and bytes held out: the last fifth of each of the package's two texts."""
    parts = [torch.tensor(list(t.encode())) for t in (evaluation_text(), calibration_text())]
    cuts = [len(part) * 4 // 5 for part in parts]
    train = torch.cat([part[:cut] for part, cut in zip(parts, cuts, strict=True)])
    held_out = torch.cat([part[cut:] for part, cut in zip(parts, cuts, strict=True)])
    return train, held_out


def train(
    parts: Parts,
    steps: int,
    seed: int,
    layers: int = LAYERS,
    batch: int = BATCH,
    context: int = CONTEXT,
    rate: float = PEAK_RATE,
    warmup: int | None = None,
) -> tuple[SmallLM, list[float]]:
    """A trained model and its training loss, in bits per byte, at each step.

    With LLaMA's optimizer (section 2.3): AdamW, betas 0.9 and 0.95, decay 0.1, clipping at 1.
    `warmup`: steps, None for a tenth. Every variant sees the same batches for the same seed.
    """
    text, _ = corpus()
    torch.manual_seed(seed)
    model = SmallLM(parts, layers)
    decay = {"betas": (0.9, 0.95), "weight_decay": 0.1}
    optimizer = torch.optim.AdamW(model.parameters(), fused=True, **decay)  # one pass over a tensor
    draw, losses = torch.Generator().manual_seed(seed), []
    for step in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(
                step, steps, rate, steps // 10 if warmup is None else warmup
            )
        starts = torch.randint(len(text) - context - 1, (batch, 1), generator=draw)
        shown = text[starts + torch.arange(context + 1)]
        loss = cross_entropy(model(shown[:, :-1]).flatten(0, 1), shown[:, 1:].flatten())
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        losses.append(loss.item() / math.log(2))
    return model.eval(), losses


@torch.inference_mode()
def loss_by_position(model: SmallLM, length: int, scaling: dict | None = None) -> Tensor:
    """NLL in bits of each held-out byte by its place in a window, (windows, length).

    Windows overlap: each begins a context's length after the one before, so that the same bytes
    occur at several places.
    """
    _, text = corpus()
    starts = torch.arange(0, len(text) - length, CONTEXT)
    windows = text[starts[:, None] + torch.arange(length + 1)]
    nll = [
        cross_entropy(model(w[:, :-1], scaling).transpose(1, 2), w[:, 1:], reduction="none")
        for w in windows.split(BATCH)
    ]
    return torch.cat(nll) / math.log(2)


def train_and_measure(
    parts: Parts, steps: int, seed: int, rate: float = PEAK_RATE
) -> dict[str, Any]:
    """Train, and return plain data: losses in bits per byte, also by position beyond the context.

    `training`: mean over the last tenth of the steps. `held_out`: over windows of the trained
    length. `beyond`, for LLaMA with any kind of positions: by window and bin of BIN bytes, for each
    rotary scaling.
    """
    model, losses = train(parts, steps, seed, rate=rate)
    last = losses[-max(1, steps // 10) :]
    measured: dict[str, Any] = {
        "training": sum(last) / len(last),
        "held_out": loss_by_position(model, CONTEXT).mean().item(),
    }
    if parts in POSITIONS.values():
        scalings = SCALINGS if parts.positions == "rotary" else {"as trained": None}
        measured["beyond"] = {
            name: loss_by_position(model, BEYOND, scaling).unflatten(1, (-1, BIN)).mean(2).tolist()
            for name, scaling in scalings.items()
        }
    return measured


def training_losses(*arguments: Any) -> list[float]:
    """The losses of `train`, without the model."""
    return train(*arguments)[1]


def in_parallel(
    work: Callable[..., Any],
    arguments: Mapping[str, tuple[Any, ...]],
    stage: Callable[[str, Callable[[], Any]], Any] = lambda _, compute: compute(),
) -> dict[str, Any]:
    """`work(*arguments)` for each name: a process for each core with one thread, and a progress bar.

    Small matrices gain little from a second thread. `stage`: `Results.stage`, so that an interrupted
    session goes on where it was.
    """
    workers = os.cpu_count() or 1
    # Fresh processes, as on every platform: a copy of this one would bring its threads' locks.
    processes = ProcessPoolExecutor(
        workers, multiprocessing.get_context("spawn"), torch.set_num_threads, (1,)
    )

    def run(name: str) -> Any:
        return stage(name, lambda: processes.submit(work, *arguments[name]).result())

    with processes, ThreadPoolExecutor(workers) as threads:
        found = threads.map(run, arguments)
        done = list(tqdm(found, total=len(arguments), desc="trainings", leave=False))
    return dict(zip(arguments, done, strict=True))


def train_all(
    variants: Mapping[str, Parts],
    steps: int,
    seeds: int,
    stage: Callable[[str, Callable[[], Any]], Any],
    rates: Mapping[str, Sequence[float]] = MappingProxyType({}),
) -> tuple[dict[str, list[dict[str, Any]]], dict[str, dict[float, dict[str, Any]]]]:
    """Results of `train_and_measure`, all from one pool of processes; `stage` as in `in_parallel`.

    First for each seed of every variant at PEAK_RATE; then for the variants in `rates`, by peak
    rate, of the first seed: those rates and PEAK_RATE.
    """
    arguments = {
        f"{name}-{seed}": (parts, steps, seed)
        for seed in range(seeds)
        for name, parts in variants.items()
    }
    arguments |= {
        f"{name}-0 at {rate:g}": (variants[name], steps, 0, rate)
        for name, several in rates.items()
        for rate in several
    }
    found = in_parallel(train_and_measure, arguments, stage)
    by_seed = {name: [found[f"{name}-{seed}"] for seed in range(seeds)] for name in variants}
    by_rate = {
        name: {rate: found[f"{name}-0 at {rate:g}"] for rate in several}
        | {PEAK_RATE: by_seed[name][0]}
        for name, several in rates.items()
    }
    return by_seed, by_rate
