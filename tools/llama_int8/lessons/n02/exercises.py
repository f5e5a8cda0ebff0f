"""The exercises of lesson 02: references, cases, hints and known mistakes."""

import torch

from llama_int8.course.exercises import check, exercise, hint, solution

__all__ = ["check", "hint", "solution"]

_GENERATOR = torch.Generator().manual_seed(2)


def _case(x: tuple[int, ...], source: tuple[int, ...], width: int) -> tuple[torch.Tensor, ...]:
    shapes = (x, source, *[(x[-1], width)] * 3)
    return tuple(torch.randn(*shape, generator=_GENERATOR) for shape in shapes)


@exercise(
    "02.cross_attention",
    points=2,
    cases=[_case((3, 4), (5, 4), 4), _case((2, 3, 6), (2, 7, 6), 5)],
    hints=[
        "q = x @ w_q, but k = source @ w_k and v = source @ w_v.",
        "Then as in lesson 01: softmax(q @ k.transpose(-2, -1) / sqrt(D)) @ v.",
    ],
)
def cross_attention(x, source, w_q, w_k, w_v):
    """Each token of `x` takes a mean of the values of `source`."""
    q, k, v = x @ w_q, source @ w_k, source @ w_v  # (..., T, D), (..., S, D), (..., S, D)
    scores = q @ k.transpose(-2, -1) / q.shape[-1] ** 0.5  # (..., T, S)
    return scores.softmax(dim=-1) @ v


cross_attention.mistake(
    "that is self-attention: keys and values must come from source",
    lambda x, source, w_q, w_k, w_v: cross_attention(x, x, w_q, w_k, w_v),
)
cross_attention.mistake(
    "the other way round: the queries come from x, which is being written, not from source",
    lambda x, source, w_q, w_k, w_v: cross_attention(source, x, w_q, w_k, w_v),
)
cross_attention.mistake(
    "the scaling by the square root of D is missing",
    lambda x, source, w_q, w_k, w_v: cross_attention(
        x, source, w_q * w_q.shape[-1] ** 0.5, w_k, w_v
    ),
)
cross_attention.mistake(
    "the softmax must run over the keys, the last dimension",
    lambda x, source, w_q, w_k, w_v: (
        ((x @ w_q) @ (source @ w_k).transpose(-2, -1) / w_q.shape[-1] ** 0.5).softmax(-2)
        @ (source @ w_v)
    ),
)
cross_attention.mistake(
    "the values come from source, too: v = source @ w_v",
    lambda x, source, w_q, w_k, w_v: (
        ((x @ w_q) @ (source @ w_k).transpose(-2, -1) / w_q.shape[-1] ** 0.5).softmax(-1) @ source
    ),
)


class _Layer:
    """A linear layer as a function, printed by its name in a verdict."""

    def __init__(self, name: str, *shape: int) -> None:
        self.name = name
        self.weight = torch.randn(*shape, generator=_GENERATOR)

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        return x @ self.weight

    def __repr__(self) -> str:
        return self.name


def _mean_of_past(x: torch.Tensor) -> torch.Tensor:
    """Moves information between positions, as attention does."""
    return x.cumsum(-2) / torch.arange(1, x.shape[-2] + 1)[:, None]


def _centre(x: torch.Tensor) -> torch.Tensor:
    return (x - x.mean(-1, keepdim=True)) / (x.std(-1, keepdim=True, unbiased=False) + 0.1)


def _scale(x: torch.Tensor) -> torch.Tensor:
    return 3 * x / (x.square().mean(-1, keepdim=True) + 0.1).sqrt()


@exercise(
    "02.encoder_block",
    points=2,
    cases=[
        (
            torch.randn(2, 5, 4, generator=_GENERATOR),
            _mean_of_past,
            _Layer("feed_forward", 4, 4),
            _centre,
            _scale,
        ),
        (
            torch.randn(3, 7, generator=_GENERATOR),
            _Layer("attention", 7, 7),
            torch.relu,
            _scale,
            _centre,
        ),
    ],
    hints=[
        "Two steps of the same form: x = x + part(norm(x)).",
        "First attention with norm_1, then, on the new x, feed_forward with norm_2.",
    ],
)
def encoder_block(x, attention, feed_forward, norm_1, norm_2):
    """Pre-norm: each part reads a normed copy of the stream and adds its result to it."""
    x = x + attention(norm_1(x))  # (..., T, C): moves information between positions
    return x + feed_forward(norm_2(x))  # (..., T, C): works on each position by itself


encoder_block.mistake(
    "the shortcut is missing: add each part's result to x",
    lambda x, a, f, n1, n2: f(n2(a(n1(x)))),
)
encoder_block.mistake(
    "the second part needs its shortcut, too: return x + feed_forward(norm_2(x))",
    lambda x, a, f, n1, n2: f(n2(x + a(n1(x)))),
)
encoder_block.mistake(
    "the first part needs its shortcut, too: x = x + attention(norm_1(x))",
    lambda x, a, f, n1, n2: a(n1(x)) + f(n2(a(n1(x)))),
)
encoder_block.mistake(
    "that is post-norm, as in 2017; here each norm comes before its part, and the sum stays bare",
    lambda x, a, f, n1, n2: n2(n1(x + a(x)) + f(n1(x + a(x)))),
)
encoder_block.mistake(
    "the shortcut must carry x itself, not norm(x), or nothing passes the block unchanged",
    lambda x, a, f, n1, n2: n2(n1(x) + a(n1(x))) + f(n2(n1(x) + a(n1(x)))),
)
encoder_block.mistake(
    "both parts read the old x; the second one must read what the first one has added to",
    lambda x, a, f, n1, n2: x + a(n1(x)) + f(n2(x)),
)
encoder_block.mistake(
    "the other order: attention first, then feed_forward",
    lambda x, a, f, n1, n2: encoder_block(x, f, a, n2, n1),
)
encoder_block.mistake(
    "the norms are missing: attention reads norm_1(x), feed_forward reads norm_2(x)",
    lambda x, a, f, n1, n2: x + a(x) + f(x + a(x)),
)
encoder_block.mistake(
    "norm_1 belongs to attention, norm_2 to feed_forward",
    lambda x, a, f, n1, n2: encoder_block(x, a, f, n2, n1),
)


@exercise(
    "02.prefix_mask",
    points=1,
    cases=[(5, 2), (4, 0), (3, 3), (6, 5)],
    hints=[
        "Begin with the causal mask: torch.ones(length, length).tril().bool().",
        "Then open the square of the prefix: mask[:prefix, :prefix] = True.",
    ],
)
def prefix_mask(length, prefix):
    """The prefix sees itself whole; what follows sees the prefix and its own past."""
    mask = torch.ones(length, length).tril().bool()
    mask[:prefix, :prefix] = True
    return mask


prefix_mask.mistake(
    "that is the plain causal mask: the prefix must also see itself to the right",
    lambda n, p: prefix_mask(n, 0),
)
prefix_mask.mistake(
    "rows are queries: here the prefix sees the text that is still to be written",
    lambda n, p: prefix_mask(n, 0) | (torch.arange(n)[:, None] < p).expand(n, n),
)
prefix_mask.mistake(
    "everybody sees everything: what follows the prefix must stay causal",
    lambda n, p: torch.ones(n, n).bool(),
)
prefix_mask.mistake(
    "what follows must see its own past, too, not only the prefix",
    lambda n, p: (torch.arange(n) < p).expand(n, n),
)
prefix_mask.mistake(
    "inverted: True is where a query may look",
    lambda n, p: ~prefix_mask(n, p),
)


@exercise(
    "02.shift",
    points=1,
    cases=[
        (torch.tensor([[1, 40, 41, 42, 2], [1, 50, 51, 52, 2]]),),
        (torch.tensor([[1, 7, 2]]),),
    ],
    hints=[
        "For 1 A B C 2 the decoder reads 1 A B C and has to give A B C 2.",
        "Columns of a tensor: iso[:, :-1] is all but the last, iso[:, 1:] all but the first.",
    ],
)
def shift(iso):
    """What the decoder reads, and what it has to predict at each of these positions."""
    return iso[:, :-1], iso[:, 1:]


shift.mistake(
    "both are the same here: position t must predict the character after it",
    lambda iso: (iso[:, :-1], iso[:, :-1]),
)
shift.mistake(
    "inputs and targets are the whole row here: one lacks its END, the other its START",
    lambda iso: (iso, iso),
)
shift.mistake(
    "the other way round: inputs begin with START, targets end with END",
    lambda iso: (iso[:, 1:], iso[:, :-1]),
)
shift.mistake(
    "END must stay in the targets, or the model never learns to stop",
    lambda iso: (iso[:, :-2], iso[:, 1:-1]),
)
shift.mistake(
    "`iso[:-1]` leaves out a row, a whole date; columns are iso[:, :-1]",
    lambda iso: (iso[:-1], iso[1:]),
)


def _later(logits: torch.Tensor, steps: int) -> torch.Tensor:
    return torch.cat([logits[:, steps:], 0 * logits[:, :steps]], dim=1)


_TABLE = torch.randn(60, 60, generator=_GENERATOR)


def honest(target):
    """Each position takes the mean of itself and its past."""
    return _mean_of_past(_TABLE[target])


def one_ahead(target):
    """Each position also takes the next one."""
    return honest(target) + _later(_TABLE[target], 1)


def two_ahead(target):
    """Each position takes only the one after the next."""
    return _later(_TABLE[target], 2)


_TARGETS = torch.tensor([[1, 5, 9, 12, 2], [1, 30, 59, 32, 2]])  # 59: the last of the vocabulary


@exercise(
    "02.influence",
    points=2,
    cases=[(honest, _TARGETS), (one_ahead, _TARGETS), (two_ahead, _TARGETS)],
    hints=[
        "before = decode(target). Then, for each column s: copy target, change column s, decode. "
        "With `+ 1`, the last token leaves the vocabulary: take it % V, V = before.shape[-1].",
        "moved = (decode(changed) - before).abs().amax(dim=(0, 2)) has one number per position t.",
        "torch.stack of these, with dim=1, puts changed tokens into columns; then compare with 0.",
    ],
)
def influence(decode, target):
    """Which logits move when a token changes, (T, T): row t the logits, column s the token."""
    before, moved = decode(target), []  # decode: (B, T) -> (B, T, V)
    for s in range(target.shape[1]):
        changed = target.clone()
        changed[:, s] = (target[:, s] + 1) % before.shape[-1]  # stays in the vocabulary
        moved.append((decode(changed) - before).abs().amax(dim=(0, 2)) > 1e-6)  # (T,)
    return torch.stack(moved, dim=1)


influence.mistake(
    "transposed: rows are the logits that move, columns the token that was changed",
    lambda decode, target: influence(decode, target).T,
)
influence.mistake(
    "the changes pile up: begin each column with a fresh copy of target (target.clone())",
    lambda decode, target: influence(decode, target).int().cummax(dim=1)[0].bool(),
)
influence.mistake(
    "only leaks are marked here; mark every logit that moves, those after the change included",
    lambda decode, target: influence(decode, target).triu(1),
)
influence.mistake(
    "inverted: True is where the logits DO move",
    lambda decode, target: ~influence(decode, target),
)
