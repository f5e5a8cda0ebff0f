"""The exercises of lesson 04: references, cases, hints and known mistakes."""

import torch
from torch import nn

from llama_int8.course.exercises import check, exercise, hint, solution

__all__ = ["check", "hint", "solution"]

_GENERATOR = torch.Generator().manual_seed(4)


def _normal(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=_GENERATOR)


def _linear(outputs: int, inputs: int) -> nn.Linear:
    """A layer with fixed weights, made without a draw from the learner's own random numbers."""
    layer = nn.utils.skip_init(nn.Linear, inputs, outputs, bias=False).requires_grad_(False)
    layer.weight.copy_(_normal(outputs, inputs))
    return layer


@exercise(
    "04.rms_norm",
    points=1,
    cases=[
        (torch.tensor([3.0, 4.0]), torch.ones(2), 0.0),
        (_normal(2, 3, 6), _normal(6), 1e-5),
        (0.01 * _normal(4, 5), _normal(5), 0.1),
    ],
    hints=[
        "First the mean of the squares along the last dimension: x.square().mean(-1, keepdim=True).",
        "eps is added to it, then comes the root; x is divided by that, and multiplied by weight.",
    ],
)
def rms_norm(x, weight, eps):
    """x over the root of its mean square, times the weights, (..., C) -> (..., C)."""
    mean_square = x.square().mean(-1, keepdim=True)  # (..., 1)
    return weight * x / (mean_square + eps).sqrt()


rms_norm.mistake(
    "that takes the mean off first, which is what LayerNorm does and RMSNorm saves",
    lambda x, w, eps: rms_norm(x - x.mean(-1, keepdim=True), w, eps),
)
rms_norm.mistake(
    "divide the sum of squares by their number: the *mean* square",
    lambda x, w, eps: w * x / (x.square().sum(-1, keepdim=True) + eps).sqrt(),
)
rms_norm.mistake(
    "the mean runs over the last dimension only: each vector is divided by its own size",
    lambda x, w, eps: w * x / (x.square().mean() + eps).sqrt(),
)
rms_norm.mistake(
    "the learned weights are missing", lambda x, w, eps: rms_norm(x, torch.ones_like(w), eps)
)
rms_norm.mistake(
    "nearly: eps stands under the root, beside the mean square",
    lambda x, w, eps: w * x / (x.square().mean(-1, keepdim=True).sqrt() + eps),
)
rms_norm.mistake(
    "the root is missing: x is divided by the *root* of its mean square",
    lambda x, w, eps: w * x / (x.square().mean(-1, keepdim=True) + eps),
)


_ANGLES = torch.tensor([[0.0, 0.0, 0.0], [0.5, 1.5, -2.0]])


@exercise(
    "04.rotate",
    points=2,
    cases=[
        (
            torch.tensor([1.0, 0.0, 0.0, 1.0]),
            torch.tensor([0.5, 0.8]) ** 0.5,
            torch.tensor([0.5, 0.2]) ** 0.5,
        ),
        (_normal(2, 3, 2, 6), _ANGLES.cos(), _ANGLES.sin()),
        (_normal(1, 2), torch.tensor([[0.6]]), torch.tensor([[0.8]])),
    ],
    hints=[
        "first, second = x.chunk(2, dim=-1) gives the two halves, each (..., D / 2).",
        "The new first half is first * cos - second * sin; the new second half is second * cos + "
        "first * sin.",
        "torch.cat([..., ...], dim=-1) puts the halves beside each other again.",
    ],
)
def rotate(x, cos, sin):
    """Turn each pair (x_i, x_{i + D/2}) by its angle, (..., T, D) -> (..., T, D)."""
    first, second = x.chunk(2, dim=-1)  # two halves (..., T, D / 2)
    return torch.cat([first * cos - second * sin, second * cos + first * sin], dim=-1)


@rotate.mistake(
    "those are neighbouring pairs, x[2i] and x[2i + 1]: Meta's order. Hugging "
    "Face's weights are stored for halves, x[i] and x[i + D/2]"
)
def _turned_neighbours(x, cos, sin):
    first, second = x[..., 0::2], x[..., 1::2]
    turned = first * cos - second * sin, second * cos + first * sin
    return torch.stack(turned, dim=-1).flatten(-2)


rotate.mistake(
    "turned the other way: the sign of the sine", lambda x, cos, sin: rotate(x, cos, -sin)
)


@rotate.mistake("the second half needs the old first half, which is overwritten by then")
def _turned_in_place(x, cos, sin):
    first, second = x.chunk(2, dim=-1)
    first = first * cos - second * sin
    return torch.cat([first, second * cos + first * sin], dim=-1)


@rotate.mistake("a rotation has one minus sign: with two plus signs lengths change")
def _not_a_rotation(x, cos, sin):
    first, second = x.chunk(2, dim=-1)
    return torch.cat([first * cos + second * sin, second * cos + first * sin], dim=-1)


@rotate.mistake("the right numbers in Meta's order: put the two halves beside each other, with cat")
def _interleaved(x, cos, sin):
    first, second = rotate(x, cos, sin).chunk(2, dim=-1)
    return torch.stack([first, second], dim=-1).flatten(-2)


@exercise(
    "04.shared_heads",
    points=1,
    cases=[(_normal(1, 2, 3, 2), 4), (_normal(2, 3, 2, 4), 9), (_normal(1, 2, 2, 2), 2)],
    hints=[
        "With 9 query heads and 3 key-value heads, query heads 0, 1 and 2 use number 0.",
        "So each head is repeated query_heads // kv.shape[1] times, and its copies stand side by "
        "side: look for torch's repeat_interleave, along dim=1.",
    ],
)
def share_heads(kv, query_heads):
    """Neighbouring query heads share a key-value head, (B, H_kv, S, D) -> (B, H, S, D)."""
    return kv.repeat_interleave(query_heads // kv.shape[1], dim=1)


share_heads.mistake(
    "the famous one: `repeat` for `repeat_interleave`. Neighbours share a head; "
    "the shapes fit either way, and the text becomes nonsense",
    lambda kv, heads: kv.repeat(1, heads // kv.shape[1], 1, 1),
)
share_heads.mistake(
    "that repeats the tokens, dim=2; the heads are dim=1",
    lambda kv, heads: kv.repeat_interleave(heads // kv.shape[1], dim=2),
)
share_heads.mistake(
    "`query_heads` is how many there are afterwards, not how often each is repeated",
    lambda kv, heads: kv.repeat_interleave(heads, dim=1),
)


@exercise(
    "04.swiglu",
    points=1,
    cases=[
        (torch.tensor([[1.0, -2.0]]), _linear(3, 2), _linear(3, 2), _linear(2, 3)),
        (_normal(2, 3, 4), _linear(5, 4), _linear(5, 4), _linear(4, 5)),
    ],
    hints=[
        "The matrices are layers: gate_proj(x) is x times that matrix.",
        "silu(gate_proj(x)) * up_proj(x), and down_proj of that. silu is in torch.nn.functional.",
    ],
)
def swiglu(x, gate_proj, up_proj, down_proj):
    """down(silu(gate(x)) * up(x)), (..., C) -> (..., C)."""
    gate = nn.functional.silu(gate_proj(x))  # (..., F)
    return down_proj(gate * up_proj(x))


swiglu.mistake(
    "the activation belongs on the gate, not on up",
    lambda x, gate, up, down: swiglu(x, up, gate, down),
)
swiglu.mistake(
    "silu is missing: without it the product of two linear layers is all that is left",
    lambda x, gate, up, down: down(gate(x) * up(x)),
)
swiglu.mistake(
    "that is the plain sigmoid, Dauphin's GLU; silu(z) is z times sigmoid(z)",
    lambda x, gate, up, down: down(gate(x).sigmoid() * up(x)),
)
swiglu.mistake(
    "the gate multiplies, it is not added",
    lambda x, gate, up, down: down(nn.functional.silu(gate(x)) + up(x)),
)
swiglu.mistake(
    "that is ReGLU, with ReLU on the gate; LLaMA takes silu",
    lambda x, gate, up, down: down(gate(x).relu() * up(x)),
)
swiglu.mistake(
    "down_proj is missing: the result has the width of the model again",
    lambda x, gate, up, down: nn.functional.silu(gate(x)) * up(x),
)


@exercise(
    "04.block",
    points=2,
    cases=[
        (_normal(1, 3, 4), _linear(4, 4), _linear(4, 4), _linear(4, 4), _linear(4, 4)),
        (_normal(2, 1, 2), _linear(2, 2), _linear(2, 2), _linear(2, 2), _linear(2, 2)),
    ],
    hints=[
        "Twice the same pattern: x = x + sublayer(norm(x)).",
        "The second sublayer is added to the x that attention has already changed.",
    ],
)
def llama_block(x, input_layernorm, self_attn, post_attention_layernorm, mlp):
    """Attention, then the feed-forward network, each behind its norm and added to the stream."""
    x = x + self_attn(input_layernorm(x))
    return x + mlp(post_attention_layernorm(x))


@llama_block.mistake(
    "the norm stands on the stream, as in 2017; LLaMA norms only what enters the sublayer"
)
def _norm_after(x, input_layernorm, self_attn, post_attention_layernorm, mlp):
    x = input_layernorm(x + self_attn(x))
    return post_attention_layernorm(x + mlp(x))


@llama_block.mistake("add the sublayer's result to x itself, not to the normed x")
def _added_to_the_normed(x, input_layernorm, self_attn, post_attention_layernorm, mlp):
    x = input_layernorm(x)
    x = post_attention_layernorm(x + self_attn(x))
    return x + mlp(x)


llama_block.mistake(
    "the residual path is missing: add each sublayer's result to x",
    lambda x, n1, attention, n2, mlp: mlp(n2(attention(n1(x)))),
)
llama_block.mistake(
    "side by side, as in GPT-J; in LLaMA the feed-forward network sees what attention has added",
    lambda x, n1, attention, n2, mlp: x + attention(n1(x)) + mlp(n2(x)),
)
llama_block.mistake(
    "attention's result has not been added to x",
    lambda x, n1, attention, n2, mlp: x + mlp(n2(attention(n1(x)))),
)
llama_block.mistake(
    "the two norms have changed places",
    lambda x, n1, attention, n2, mlp: llama_block(x, n2, attention, n1, mlp),
)


@exercise(
    "04.inner_width",
    points=1,
    cases=[
        (4096, 256, 1.0),
        (576, 256, 1.0),
        (5120, 256, 1.0),
        (100, 7, 1.0),
        (8192, 4096, 1.3),
        (4096, 1024, 1.3),
        (2048, 256, 1.5),
    ],
    hints=[
        "Two thirds of 4 x width, cut to an integer; times the multiplier, cut again; and then up to "
        "the next multiple.",
        "Rounding n up to a multiple of m: (n + m - 1) // m * m.",
    ],
)
def inner_width(width: int, multiple_of: int, multiplier: float) -> int:
    """Two thirds of 4 x width, times `multiplier`, rounded up to a multiple."""
    inner = int(multiplier * (2 * (4 * width) // 3))
    return (inner + multiple_of - 1) // multiple_of * multiple_of


inner_width.mistake(
    "that is the original's width; SwiGLU takes two thirds of it", lambda w, m, f: 4 * w
)
inner_width.mistake(
    "the multiplier is missing: `ffn_dim_multiplier` comes before the rounding up",
    lambda w, m, f: inner_width(w, m, 1.0),
)
inner_width.mistake(
    "the multiplier comes before the rounding up, not after it",
    lambda w, m, f: int(f * inner_width(w, m, 1.0)),
)
inner_width.mistake(
    "and now up to the next multiple of `multiple_of`", lambda w, m, f: int(f * (8 * w // 3))
)
inner_width.mistake(
    "rounded down; LLaMA rounds up, so that nothing is lost",
    lambda w, m, f: int(f * (8 * w // 3)) // m * m,
)
inner_width.mistake(
    "LLaMA rounds up, not to the nearest multiple",
    lambda w, m, f: round(int(f * (8 * w // 3)) / m) * m,
)
inner_width.mistake(
    "nearly: a width that is a multiple already stays as it is",
    lambda w, m, f: (int(f * (8 * w // 3)) // m + 1) * m,
)


@exercise(
    "04.to_halves",
    points=1,
    cases=[
        (torch.arange(8.0)[:, None], 1),
        (_normal(12, 5), 2),
        (_normal(6, 3), 3),
    ],
    hints=[
        "For one head of four rows: 0, 2, 1, 3. The even rows come first.",
        "weight.unflatten(0, (heads, -1, 2)) is (H, D / 2, 2, C): the last but one index is 0 for "
        "even rows and 1 for odd ones.",
        "Let the second and the third dimension change places, then .flatten(0, 2).",
    ],
)
def to_halves(weight, heads):
    """Rows of a query or key projection from Meta's order to Hugging Face's, (H D, C)."""
    pairs = weight.unflatten(0, (heads, -1, 2))  # (H, D / 2, 2, C)
    return pairs.transpose(1, 2).flatten(0, 2)  # (H, 2, D / 2, C) -> (H D, C)


to_halves.mistake(
    "that is the way back: from halves to neighbours",
    lambda weight, heads: weight.unflatten(0, (heads, 2, -1)).transpose(1, 2).flatten(0, 2),
)
to_halves.mistake("nothing has changed places", lambda weight, heads: weight)
to_halves.mistake(
    "the even rows come first, then the odd ones",
    lambda weight, heads: to_halves(weight.unflatten(0, (-1, 2)).flip(1).flatten(0, 1), heads),
)
to_halves.mistake(
    "the rows change places within each head, not across the whole matrix",
    lambda weight, heads: torch.cat([weight[0::2], weight[1::2]]),
)


def _rows(in_halves: bool, heads: int, pairs: int) -> torch.Tensor:
    """A made-up projection in which the two rows of a pair are about equally long."""
    length = (0.8 * _normal(heads, pairs, 1, 1) + 0.02 * _normal(heads, pairs, 2, 1)).exp()
    rows = length * nn.functional.normalize(_normal(heads, pairs, 2, 16), dim=-1)
    return (rows.transpose(1, 2) if in_halves else rows).flatten(0, 2)


@exercise(
    "04.in_halves",
    points=2,
    cases=[
        (_rows(True, 2, 16), 2),
        (_rows(False, 2, 16), 2),
        (_rows(False, 1, 24), 1),
        (_rows(True, 3, 12), 3),
    ],
    hints=[
        "The two rows of a pair are turned together, and training makes them about equally long: "
        "weight.norm(dim=1).",
        "lengths = weight.norm(dim=1).log().unflatten(0, (heads, -1)). In halves, entries i and "
        "i + D/2 are alike; in Meta's order, entries 2i and 2i + 1.",
        "On real weights this is not enough, since neighbouring pairs are alike, too. Ask which order "
        "makes the whole list of lengths smooth.",
    ],
)
def in_halves(weight, heads):
    """Whether a projection's rows are in halves: the order whose lengths are smoother."""
    lengths = weight.norm(dim=1).log().unflatten(0, (heads, -1))  # (H, D)
    roughness = []
    for order in (lengths.unflatten(1, (2, -1)), lengths.unflatten(1, (-1, 2)).transpose(1, 2)):
        within = (order[:, 0] - order[:, 1]).square().sum()  # (H, 2, D / 2): the two of a pair
        along = order.diff(dim=-1).square().sum()  # and each pair beside the next
        roughness.append(within + along / 2)
    return bool(roughness[0] < roughness[1])


in_halves.mistake(
    "turned round: True is for halves, where rows i and i + D/2 make a pair",
    lambda weight, heads: not in_halves(weight, heads),
)
in_halves.mistake("not every matrix is in halves: look at the rows", lambda weight, heads: True)
in_halves.mistake("some of them are in halves: look at the rows", lambda weight, heads: False)
