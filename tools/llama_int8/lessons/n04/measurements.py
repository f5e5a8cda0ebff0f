"""What lesson 04 measures: the states at the norms, a block's shapes, places of the norm, timings."""

import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from scipy import stats
from torch import Tensor, nn
from torch.nn import functional

from llama_int8.course import small_lm
from llama_int8.course.claims import put_on_trial
from llama_int8.measure.latency import interleaved, prefill_and_decode, repeated
from llama_int8.measure.results import Results
from llama_int8.measure.statistics import PairedDifference, paired_bootstrap, spread
from llama_int8.models.cost import ATTENTION, count_parameters
from llama_int8.transformer.attention import EncoderBlock, FeedForward, layer_norm
from llama_int8.transformer.checkpoints import META_BLOCK, META_TOP, to_pairs, write_meta
from llama_int8.transformer.config import LlamaConfig

DEPTHS = (4, 8, 16, 32)
PLACES = {"norm after": False, "norm before": True}
STARTS = [2**i for i in range(4, 15)]
ROUNDED = ("frequencies", "positions", "angles", "cos and sin")
RANDOM_DIRECTIONS = 8  # each costs a pass of the model
SAVING = 0.9  # a time below this share of another's is a saving; two equal networks differ by less


def norms_of(model: nn.Module) -> list[nn.Module]:
    """The norms of Hugging Face's model, in the order in which a token meets them."""
    return [module for name, module in model.named_modules() if name.endswith("norm")]


@contextmanager
def hooked(modules: list[nn.Module], hook: Callable[..., Any]) -> Iterator[None]:
    """Call `hook` with what enters each of these modules, until the block is left."""
    handles = [module.register_forward_pre_hook(hook) for module in modules]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def states_at_norms(model: nn.Module, tokens: Tensor) -> tuple[Tensor, Tensor]:
    """What enters each norm, (norms, T, C) on the CPU, and the model's logits (1, T, V)."""
    entering: list[Tensor] = []
    with (
        torch.inference_mode(),
        hooked(norms_of(model), lambda _, arguments: entering.append(arguments[0][0].cpu())),
    ):
        logits = model(tokens, use_cache=False).logits
    return torch.stack(entering), logits


def directions(width: int, count: int = 16) -> tuple[Tensor, Tensor]:
    """The mean's direction, (C,), and as many random ones, (count, C), all of length 1.

    Taking off a vector's part along the first one takes off its mean, as LayerNorm does.
    """
    draws = torch.Generator().manual_seed(0)
    random = torch.randn(count, width, generator=draws)
    return torch.ones(width) / width**0.5, functional.normalize(random, dim=-1)


def shares_along(states: Tensor, direction: Tensor) -> Tensor:
    """Which share of each vector's squared length lies along a direction, (norms, T)."""
    return (states @ direction).square() / states.square().sum(-1)


@torch.inference_mode()
def token_losses(model: nn.Module, tokens: Tensor) -> Tensor:
    """Loss of each next token in nats, (windows, T - 1) on the CPU, for windows (windows, T)."""
    losses = []
    for window in tokens:  # one at a time: the logits of all would be large
        out = model(window[None, :-1], use_cache=False)
        logits = getattr(out, "logits", out)[0]  # Hugging Face's model gives more than logits
        losses.append(functional.cross_entropy(logits, window[1:], reduction="none").cpu())
    return torch.stack(losses)


def taken_off(model: nn.Module, text: Tensor, width: int, results: Results) -> list[list[str]]:
    """A row for nothing, the mean, and random directions, taken off before every norm: the loss.

    The interval of the mean's change is over tokens, that of the random ones over directions.
    """
    mean, random = directions(width)
    usual = token_losses(model, text)[0].numpy()

    def without(direction: Tensor) -> PairedDifference:
        unit = direction.to(text.device)

        def take_off(_: nn.Module, arguments: tuple[Tensor, ...]) -> tuple[Tensor]:
            (x,) = arguments
            return (x - (x @ unit)[..., None] * unit,)

        with hooked(norms_of(model), take_off):
            return paired_bootstrap(usual, token_losses(model, text)[0].numpy(), resamples=1000)

    centred = without(mean)
    others = sorted(without(direction).mean for direction in random[:RANDOM_DIRECTIONS])
    middle = float(np.median(others))
    results.record(
        "norms.centred", centred.mean, "nats", low=centred.low, high=centred.high, n=centred.n
    )
    results.record("norms.random_direction", middle, "nats", n=len(others))
    return [
        ["nothing", f"{usual.mean():.3f}", "", ""],
        ["the mean", f"{usual.mean() + centred.mean:.3f}", f"{centred.mean:+.3f}",
         f"95 % interval over tokens: {centred.low:+.3f} to {centred.high:+.3f}"],
        ["a random direction (median)", f"{usual.mean() + middle:.3f}", f"{middle:+.3f}",
         f"least and largest of {len(others)} directions: {others[0]:+.3f} to {others[-1]:+.3f}"],
    ]  # fmt: skip


def windows_of(input_ids: Tensor, length: int, count: int = 8) -> Tensor:
    """The first windows of a text, (count or fewer, length)."""
    count = max(1, min(count, input_ids.shape[1] // length))
    return input_ids[0, : count * length].view(count, -1)


def by_distance(excess: Tensor) -> list[tuple[int, int, PairedDifference]]:
    """Means of (windows, T) over runs of positions 0, 1, 2-3, 4-7, ..., with intervals over windows.

    Each entry: the first position, the last one, and the mean. A token at position t has t others to
    look back at. Of only one window the interval is its mean.
    """
    runs, first = [], 0
    while first < excess.shape[1]:
        last = min(max(2 * first - 1, first), excess.shape[1] - 1)
        values = excess[:, first : last + 1].double().mean(1).numpy()
        values = np.repeat(values, 2) if len(values) == 1 else values
        runs.append((first, last, paired_bootstrap(np.zeros_like(values), values, resamples=1000)))
        first = last + 1
    return runs


def shapes_in_block(
    block: nn.Module, x: Tensor, rotation: tuple[Tensor, Tensor], mask: Tensor
) -> list[list[str]]:
    """A row for each step of the learner's block: its name, the shape of its result, its weights."""
    rows = [["the stream enters", str(tuple(x.shape)), ""]]

    def remember(name: str, module: nn.Module, _: Any, result: Tensor) -> None:
        weight = tuple(module.weight.shape) if hasattr(module, "weight") else ""
        shape = str(tuple(result.shape))
        if name in ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"):
            heads = module.out_features // block.self_attn.head_dim
            shape += f", cut into {heads} heads of {block.self_attn.head_dim}"
        rows.append([f"`{name}`", shape, str(weight)])

    handles = [
        module.register_forward_hook(partial(remember, name))
        for name, module in block.named_modules()
        if name
    ]
    try:
        with torch.inference_mode():
            block(x, rotation, mask)
    finally:
        for handle in handles:
            handle.remove()
    return rows


def parameters_by_part(config: LlamaConfig) -> dict[str, int]:
    """Weights in the tables, in attention and in the feed-forward networks; norms left out."""
    sizes = {name: rows * columns for name, (rows, columns) in config.linear_shapes().items()}
    attention = sum(size for name, size in sizes.items() if name in ATTENTION)
    tables = 1 if config.tie_word_embeddings else 2
    return {
        "tables": tables * config.vocab_size * config.hidden_size,
        "attention": config.num_hidden_layers * attention,
        "feed-forward": config.num_hidden_layers * (sum(sizes.values()) - attention),
    }


def bias_share(config: LlamaConfig) -> float:
    """Biases of all linear layers, if there were any, over the parameters that there are."""
    rows = sum(rows for rows, _ in config.linear_shapes().values())
    return config.num_hidden_layers * rows / count_parameters(config)


@dataclass(frozen=True)
class MetasFiles:
    """A model in Meta's layout: what each file holds, Hugging Face's name for each of Meta's, and a
    row for each kind of tensor (both names, the whole shape, the shape in a file)."""

    slices: list[dict[str, Tensor]]
    names: dict[str, str]
    table: list[list[str]]


def metas_files(model: nn.Module) -> MetasFiles:
    """Write a model in Meta's layout, in up to three files, print their names and read them.

    For a model that the format cannot hold, this prints why and gives nothing to read.
    """
    config, tensors = model.config, dict(model.state_dict())
    cut = config.num_key_value_heads, config.intermediate_size
    shards = next(n for n in (3, 2, 1) if not any(size % n for size in cut))
    with tempfile.TemporaryDirectory() as folder:
        try:
            write_meta(config, tensors, Path(folder), shards)
        except ValueError as reason:
            print(f"Meta's format cannot hold this model: {reason}")
            return MetasFiles([], {}, [])
        print(*sorted(path.name for path in Path(folder).iterdir()))
        paths = sorted(Path(folder).glob("consolidated.*.pth"))
        slices = [torch.load(path, "cpu", weights_only=True) for path in paths]
    names = dict(META_TOP)
    for layer in range(config.num_hidden_layers):
        for meta, name in META_BLOCK.items():
            names[f"layers.{layer}.{meta}.weight"] = f"model.layers.{layer}.{name}.weight"
    table = [
        [
            f"`{meta}`",
            f"`{name}`",
            str(tuple(tensors[name].shape)),
            str(tuple(slices[0][meta].shape)),
        ]
        for meta, name in names.items()
        if "layers" not in meta or meta.startswith("layers.0.")
    ]
    return MetasFiles(slices, names, table)


def reordered(
    model: nn.Module, names: list[str], change: Callable[[Tensor, int], Tensor]
) -> nn.Module:
    """A copy in which the rows of these projections have changed places: `change(rows, heads)`.

    It shares all other weights with the model, which stays as it is.
    """
    ending = tuple(f"{name}.{kind}" for name in names for kind in ("weight", "bias"))
    shared = {id(p): p for name, p in model.named_parameters() if not name.endswith(ending)}
    copied = deepcopy(model, shared)  # what `shared` knows is not copied
    for name, rows in copied.named_parameters():
        if name.endswith(ending):
            table = rows.data.reshape(len(rows), -1)
            rows.data = change(table, len(rows) // model.config.head_dim).reshape(rows.shape)
    return copied


def mistakes(model: nn.Module) -> dict[str, nn.Module | None]:
    """Copies of a model as wrong conversions from Meta's files make them, by the mistake.

    The first has none. None stands where a wrong shape stops the conversion. Each copy shares all
    other weights with the model, which stays as it is.
    """
    exchanged = _sharing_all(model)
    for block in exchanged.model.layers:
        block.mlp.gate_proj, block.mlp.up_proj = block.mlp.up_proj, block.mlp.gate_proj
    return {
        "none": model,
        "permutation left out": reordered(model, ["q_proj", "k_proj"], to_pairs),
        "permutation left out of `wk` only": reordered(model, ["k_proj"], to_pairs),
        "`w1` and `w3` exchanged": exchanged,
        "`wo` of one layer transposed": _transposed_slice(model, 1),
        "its slice in one of two files transposed": _transposed_slice(model, 2),
    }


def _sharing_all(model: nn.Module) -> nn.Module:
    return deepcopy(model, {id(p): p for p in model.parameters()})


def _transposed_slice(model: nn.Module, files: int) -> nn.Module | None:
    """A copy in which the middle layer's `wo`, cut into slices, had its first one transposed."""
    copied = _sharing_all(model)
    output = copied.model.layers[len(copied.model.layers) // 2].self_attn.o_proj
    first, *others = output.weight.detach().chunk(files, dim=1)
    try:
        joined = torch.cat([first.T, *others], dim=1)
    except RuntimeError:  # the slices do not fit together
        return None
    if joined.shape != output.weight.shape:
        return None
    output.weight = nn.Parameter(joined.contiguous(), requires_grad=False)
    return copied


def small_llama3() -> tuple[nn.Module, LlamaConfig, Tensor]:
    """Hugging Face's model with llama3 scaling and random weights, its shapes, and tokens (1, 256).

    The original context is 64 tokens. The weights are large enough for attention to be sharp: with
    the usual 0.02 the positions hardly matter.
    """
    rope = {
        "rope_type": "llama3",
        "rope_theta": 500_000.0,
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 64,
    }
    config = transformers.LlamaConfig(
        vocab_size=100,
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=32,
        max_position_embeddings=512,
        rope_parameters=rope,
        initializer_range=0.1,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = transformers.LlamaForCausalLM(config).eval()
        tokens = torch.randint(config.vocab_size, (1, 256))
    return model, LlamaConfig.from_hugging_face(config.to_dict()), tokens


def pairs_alike(weight: Tensor, heads: int) -> bool:
    """The simplest rule for the order of rows: in which one are the two of a pair more alike?"""
    lengths = weight.norm(dim=1).log().unflatten(0, (heads, -1))
    halves, pairs = lengths.unflatten(1, (2, -1)), lengths.unflatten(1, (-1, 2)).transpose(1, 2)
    apart = [(order[:, 0] - order[:, 1]).square().sum() for order in (halves, pairs)]
    return bool(apart[0] < apart[1])


def recognized_orders(
    model: nn.Module, in_halves: Callable[[Tensor, int], bool]
) -> tuple[int, int]:
    """How often a rule is right about a query or key matrix, in either order, and of how many."""
    answers = []
    for block in model.model.layers:
        for projection in (block.self_attn.q_proj, block.self_attn.k_proj):
            weight = projection.weight.detach()
            heads = len(weight) // model.config.head_dim
            answers += [in_halves(weight, heads), not in_halves(to_pairs(weight, heads), heads)]
    return sum(map(bool, answers)), len(answers)


def norm_times(width: int, rms_norm: Callable[..., Tensor], settings: Any) -> dict[str, np.ndarray]:
    """Seconds of each round for 512 vectors: both norms, as formulas and as PyTorch's functions."""
    x = torch.randn(1, 512, width, device=settings.device)
    ones, zeros = torch.ones_like(x[0, 0]), torch.zeros_like(x[0, 0])
    ways = {
        "LayerNorm, formula": lambda: layer_norm(x, ones, zeros),
        "RMSNorm, formula": lambda: rms_norm(x, ones, 1e-5),
        "LayerNorm, PyTorch": lambda: functional.layer_norm(x, (width,), ones, zeros),
        "RMSNorm, PyTorch": lambda: functional.rms_norm(x, (width,), ones),
    }
    with torch.inference_mode():
        timed = interleaved(
            {name: repeated(way, 50, settings.device) for name, way in ways.items()},
            3 * settings.rounds,
        )
    return {name: phases["call"] for name, phases in timed.items()}


def time_feed_forward(
    width: int, kind: Callable[[int, int], nn.Module], settings: Any
) -> tuple[dict[str, np.ndarray], dict[str, float]]:
    """Of ReLU's network, the same again, and two of SwiGLU: seconds of each round, and weights
    over ReLU's. The second of ReLU's shows how far two equal networks differ.

    `kind`: the learner's SwiGLU, made from its width and its inner width. 512 tokens at once.
    """
    x = torch.randn(1, 512, width, device=settings.device)
    networks = {
        "ReLU, 4x": FeedForward(width, 4 * width),
        "ReLU, 4x, again": FeedForward(width, 4 * width),
        "SwiGLU, 4x": kind(width, 4 * width),
        "SwiGLU, 8/3x": kind(width, 8 * width // 3),
    }
    calls = {}
    for name, network in networks.items():
        network.to(settings.device).requires_grad_(False)
        calls[name] = repeated(partial(network, x), 5, settings.device)
    timed = interleaved(calls, 6 * settings.rounds)  # an interval of the median needs more than 15
    sizes = {name: sum(p.numel() for p in n.parameters()) for name, n in networks.items()}
    base = sizes["ReLU, 4x"]
    seconds = {name: phases["call"] for name, phases in timed.items()}
    return seconds, {name: size / base for name, size in sizes.items()}


def median_interval(ratios: np.ndarray) -> tuple[float, float, float]:
    """The median and its 95 % interval, from the order of the values; NaN ends for too few."""
    ends = stats.quantile_test(ratios, p=0.5).confidence_interval(0.95)
    return float(np.median(ratios)), float(ends.low), float(ends.high)


def saving_verdict(
    same: tuple[float, float, float],
    less: tuple[float, float, float],
    control: tuple[float, float, float],
) -> str:
    """The verdict on a saving, from medians with intervals: at the same width, at two thirds, and of
    two equal networks. NaN ends decide nothing."""
    if not SAVING < control[1] <= control[2] < 1 / SAVING:  # a clock that sees what is not there
        return "undecided here"
    if same[2] < SAVING:
        return "holds"
    if less[2] < SAVING:
        return "holds only if"
    return "fails here" if min(same[1], less[1]) > SAVING else "undecided here"


def swiglu_verdict(
    seconds: Mapping[str, np.ndarray],
) -> tuple[str, list[tuple[float, float, float]]]:
    """Whether SwiGLU saves time, and medians with intervals over ReLU's time: of the same inner
    width, of two thirds of it, and of ReLU's own again."""
    names = "SwiGLU, 4x", "SwiGLU, 8/3x", "ReLU, 4x, again"
    timed = [median_interval(seconds[name] / seconds["ReLU, 4x"]) for name in names]
    return saving_verdict(*timed), timed


def swiglu_on_trial(
    results: Results, seconds: Mapping[str, np.ndarray], weights: Mapping[str, float]
) -> None:
    """The claim that SwiGLU saves cost, from what `time_feed_forward` gives."""
    verdict, timed = swiglu_verdict(seconds)
    rounds = seconds["ReLU, 4x"].size
    shown = [
        f"{median:.2f}" + (f" [{low:.2f}, {high:.2f}]" if low < high else " (too few rounds)")
        for median, low, high in timed
    ]
    condition = "the inner width is two thirds. " if verdict == "holds only if" else ""
    put_on_trial(
        results,
        "swiglu-reduces-cost",
        f"Time over ReLU's: {shown[0]} at the same inner width, {shown[1]} at two thirds of it, "
        f"{shown[2]} for ReLU's own again; "
        f"weights {weights['SwiGLU, 4x']:.2f} and {weights['SwiGLU, 8/3x']:.2f} times.",
        verdict,
        f"{condition}The rule: a saving counts from a tenth on, so the claim holds at a width whose "
        f"interval ends below {SAVING}, fails here if both begin above it, and is undecided "
        "otherwise, or if the interval of ReLU's own again leaves that tenth. "
        f"512 tokens at once, FP32, 95 % intervals of the median of {rounds} rounds. What SwiGLU "
        "can give is a lower loss for the same number of weights.",
    )


def gradients() -> dict[str, dict[int, Tensor]]:
    """Gradient norms of each block's last matrix at initialization, (3 seeds, layers), by depth."""
    return {
        place: {
            depth: torch.stack([_gradient_by_layer(first, depth, seed) for seed in range(3)])
            for depth in DEPTHS
        }
        for place, first in PLACES.items()
    }


def _gradient_by_layer(norm_first: bool, layers: int, seed: int) -> Tensor:
    """(layers,), in a stack of lesson 02's blocks with random inputs and targets."""
    torch.manual_seed(seed)
    blocks = nn.ModuleList([EncoderBlock(64, 4, 256, norm_first) for _ in range(layers)])
    head = nn.Linear(64, 256)
    for matrix in [p for m in (blocks, head) for p in m.parameters() if p.dim() == 2]:
        nn.init.xavier_uniform_(matrix)  # as in the analysis
    x, targets = torch.randn(8, 32, 64), torch.randint(256, (8, 32))
    for block in blocks:
        x = block(x)
    x = functional.layer_norm(x, (64,)) if norm_first else x
    functional.cross_entropy(head(x).flatten(0, 1), targets.flatten()).backward()
    return torch.stack([block.feed_forward.fc2.weight.grad.norm() for block in blocks])


def train_by_depth(steps: int, results: Results) -> dict[str, Tensor]:
    """Training losses (2 seeds, steps) in bits per byte, for both places of the norm and two depths.

    One more model has the norm after, 16 layers, and care: twice the steps, a third of the rate,
    and a warm-up over half of them.
    """
    after, before = small_lm.CHANGES["original"], small_lm.CHANGES["+ pre-norm"]
    tasks: dict[str, tuple[Any, ...]] = {
        "norm after, 4 layers": (after, steps, 4),
        "norm after, 16 layers": (after, steps, 16),
        "norm before, 4 layers": (before, steps, 4),
        "norm before, 16 layers": (before, steps, 16),
        "norm after, 16 layers, with care": (after, 2 * steps, 16, 1e-3, steps),
    }
    batch, context = 8, 64
    runs = {
        f"{name}, seed {seed}": (parts, count, seed, layers, batch, context, *care)
        for name, (parts, count, layers, *care) in tasks.items()
        for seed in range(2)
    }
    losses = small_lm.in_parallel(small_lm.training_losses, runs, results.stage)
    curves = {n: torch.tensor([losses[f"{n}, seed {seed}"] for seed in range(2)]) for n in tasks}
    for name, curve in curves.items():
        results.record(f"depth.{name}", curve[:, -10:].mean().item(), "bits", n=2)
    results.record("depth.byte_entropy", small_lm.byte_entropy(), "bits")
    return curves


def norm_place_on_trial(results: Results, by_depth: Mapping[str, Mapping[int, Tensor]]) -> None:
    """Xiong et al.'s claim, from what `gradients` gives: the last layer, deepest over shallowest."""
    last = {name: {d: g[:, -1] for d, g in depths.items()} for name, depths in by_depth.items()}
    ratio = {name: depths[DEPTHS[-1]] / depths[DEPTHS[0]] for name, depths in last.items()}
    ranges = {name: f"{r.min():.2f} to {r.max():.2f}" for name, r in ratio.items()}
    holds = ratio["norm after"].mean() > 0.7 and ratio["norm before"].max() < 0.7
    put_on_trial(
        results,
        "post-norm-large-gradients",
        f"Gradient norm in the last layer, {DEPTHS[-1]} layers over {DEPTHS[0]}, least to largest of "
        f"3 seeds: {ranges['norm after']} times with the norm after, {ranges['norm before']} times "
        "with the norm before (1/√8 is 0.35); width 64.",
        "holds" if holds else "fails here",
        "In stacks of lesson 02's blocks with random inputs and Xavier initialization; cross-entropy "
        "on random targets, and no more than 3 seeds. In the middle of the stack, norm after varies "
        "widely from seed to seed.",
    )


def rope_errors(
    near: int, far: int, head_dim: int, theta: float, rotate: Callable[..., Tensor]
) -> dict[str, Tensor]:
    """How far bf16 moves a score, in units of the scores' RMS: (octaves, starts) for each part.

    The query stands `near` to `far` tokens after the key; everything but the named part stays in
    float64. For each of `STARTS` the key stands at random places between it and its double, each
    with a distance of its own; each value is the median over 100 random pairs of query and key.
    """
    draws = torch.Generator().manual_seed(0)
    q, k = torch.randn(2, 100, head_dim, generator=draws, dtype=torch.float64)
    frequencies = theta ** (-torch.arange(0, head_dim, 2, dtype=torch.float64) / head_dim)
    keys = torch.stack([s + torch.randint(s, (16,), generator=draws) for s in STARTS]).double()
    # At random, since a power of two, plus 1 say, is rounded in a way of its own.
    distances = torch.randint(near, far + 1, keys.shape, generator=draws).double()

    def turned(x: Tensor, positions: Tensor, part: str) -> Tensor:
        """Vectors (100, D) at each of these positions, (..., 100, D)."""
        places = _in_bf16(positions, part == "positions")[..., None, None]
        angles = _in_bf16(places * _in_bf16(frequencies, part == "frequencies"), part == "angles")
        cos, sin = (_in_bf16(t, part == "cos and sin") for t in (angles.cos(), angles.sin()))
        return rotate(x, cos, sin)

    def scores(starts: Tensor, apart: Tensor, part: str = "") -> Tensor:
        return (turned(q, starts + apart, part) * turned(k, starts, part)).sum(-1)  # (..., 100)

    exact = scores(torch.zeros_like(keys), distances)
    usual = exact.square().mean().sqrt()
    errors = {part: torch.empty(keys.shape) for part in ROUNDED}
    for row, (starts, apart) in enumerate(zip(keys, distances, strict=True)):
        # The proof: only the distance counts.
        torch.testing.assert_close(scores(starts, apart), exact[row], rtol=0, atol=1e-7)
        for part, values in errors.items():
            values[row] = (scores(starts, apart, part) - exact[row]).abs().median(-1).values / usual
    return errors


def _in_bf16(x: Tensor, rounded: bool) -> Tensor:
    return x.to(torch.bfloat16).to(x.dtype) if rounded else x


def decode_speed(
    ours: nn.Module, theirs: nn.Module, tokens: Tensor, half: str, results: Results, rounds: int
) -> list[list[str]]:
    """A row for each precision: both in tokens/s, and our speed over theirs. Prints what it says.

    Both models are converted in place: first FP32, then `half`, which they keep.
    """
    rows, new = [], 8  # many short rounds: the median of few would be noise
    medians: dict[str, dict[str, float]] = {}
    for precision in ("fp32", half):
        dtype = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}[precision]
        pair = {"ours": ours.to(dtype), "theirs": theirs.to(dtype)}
        calls = {n: partial(prefill_and_decode, m, tokens, new) for n, m in pair.items()}
        decode = {n: phases["decode"] for n, phases in interleaved(calls, rounds).items()}
        ratio = spread(decode["theirs"] / decode["ours"])
        results.record(
            f"decode.{precision}.ratio", ratio.median, "x",
            low=ratio.low, high=ratio.high, n=ratio.n,
        )  # fmt: skip
        medians[precision] = {n: spread(decode[n]).median for n in pair}
        rates = [f"{new / median:.1f}" for median in medians[precision].values()]
        interval = f"{ratio.median:.2f} [{ratio.low:.2f}, {ratio.high:.2f}]"
        name = precision.upper().replace("BF", "bf")
        rows.append([name, *rates, interval])
        side = "slower" if ratio.high < 1 else "faster" if ratio.low > 1 else ""
        found = (
            f"this notebook's model is {side} in three of four rounds or more"
            if side
            else "no difference: the quartiles span 1"
        )
        print(f"{name}: {found}")
    gains = [medians["fp32"][n] / medians[half][n] for n in ("ours", "theirs")]
    fewer_bytes = "as fewer bytes alone would give" if min(gains) >= 1.8 else "and not 2 for both"
    print(
        f"{name} over FP32 (ratio of median speeds): {gains[0]:.1f} for this notebook's model, "
        f"{gains[1]:.1f} for Hugging Face's: {fewer_bytes}"
    )
    return rows
