"""The exercises of lesson 09: references, cases, hints and known mistakes."""

import math

import torch

from llama_int8.course.exercises import check, exercise, hint, solution

__all__ = ["check", "hint", "solution"]

_GENERATOR = torch.Generator().manual_seed(9)


def _normal(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=_GENERATOR)


@exercise(
    "09.standard_moved",
    points=1,
    cases=[(128, 64), (1000, 64), (7, 3), (4096, 128)],
    hints=[
        "q, k, v come in and the output goes out: four times T x D elements.",
        "Scores are stored and loaded for the softmax, weights stored and loaded for the product.",
    ],
)
def standard_moved(length: int, head_dim: int) -> int:
    """Elements that standard attention moves for one head: 4 T D + 4 T^2."""
    return 4 * length * head_dim + 4 * length**2


standard_moved.mistake(
    "the T x T scores go to slow memory, too, and come back", lambda t, d: 4 * t * d
)
standard_moved.mistake(
    "scores *and* weights are stored and loaded", lambda t, d: 4 * t * d + 2 * t**2
)
standard_moved.mistake("each of T x T matrices is stored and loaded", lambda t, d: 4 * t * d + t**2)
standard_moved.mistake("elements were asked for, not bytes", lambda t, d: 8 * t * d + 8 * t**2)


@exercise(
    "09.online_softmax",
    points=2,
    cases=[
        (torch.tensor([[0.0, 1.0, 3.0, 2.0]]), 2),
        (_normal(3, 7) * 3, 3),
        (_normal(2, 5), 1),
        (torch.tensor([[800.0, 801.0, 799.0], [-500.0, 3.0, 3.0]]), 2),
        (_normal(2, 4), 9),
    ],
    hints=[
        "Before the first piece m is minus infinity and the total is 0. In the loop: new = "
        "torch.maximum(m, piece.amax(-1, keepdim=True)).",
        "Then total = (m - new).exp() * total + (piece - new).exp().sum(-1, keepdim=True), and "
        "m = new.",
    ],
)
def online_softmax(scores, block):
    """Maximum and sum of each row in one pass over its pieces; then the weights."""
    m = torch.full_like(scores[..., :1], float("-inf"))
    total = torch.zeros_like(m)  # l
    for piece in scores.split(block, dim=-1):
        new = torch.maximum(m, piece.amax(-1, keepdim=True))
        total = (m - new).exp() * total + (piece - new).exp().sum(-1, keepdim=True)
        m = new
    return (scores - m).exp() / total


def _in_pieces(scores, block, factor=None, own=False):
    m, total = torch.full_like(scores[..., :1], -math.inf), torch.zeros_like(scores[..., :1])
    for piece in scores.split(block, dim=-1):
        top = piece.amax(-1, keepdim=True)
        new = torch.maximum(m, top)
        scale = (m - new).exp() if factor is None else factor(m, new)
        total = scale * total + (piece - (top if own else new)).exp().sum(-1, keepdim=True)
        m = new
    return (scores - m).exp() / total


online_softmax.mistake(
    "the old sum was taken under the old maximum: multiply it by exp(old maximum - new maximum)",
    lambda s, b: _in_pieces(s, b, lambda m, new: torch.ones_like(m)),
)
online_softmax.mistake(
    "each piece has a softmax of its own there; the sum must be that of the whole row",
    lambda s, b: torch.cat([piece.softmax(-1) for piece in s.split(b, dim=-1)], -1),
)
online_softmax.mistake(
    "a piece's terms must be under the *running* maximum, not under the piece's own",
    lambda s, b: _in_pieces(s, b, own=True),
)
online_softmax.mistake(
    "exp(800) is infinite, and infinity / infinity is NaN: subtract the running maximum",
    lambda s, b: s.exp() / s.exp().sum(-1, keepdim=True),
)


def part(q, k, v, hidden=None):
    """Attention to these keys only, not yet divided: maximum, sum and output of each query."""
    scores = q / math.sqrt(q.shape[-1]) @ k.transpose(-2, -1)  # (..., T, D) -> (..., T, S)
    if hidden is not None:
        scores = scores.masked_fill(hidden, torch.finfo(scores.dtype).min)
    m = scores.amax(-1, keepdim=True)  # (..., T, 1)
    weights = (scores - m).exp()
    return m, weights.sum(-1, keepdim=True), weights @ v  # (..., T, 1), (..., T, D)


def _parts(maxima1, maxima2, *shape):
    """Two parts of the same rows; D is 1, so that m, l and o have one shape."""
    first = (torch.tensor(maxima1)[:, None], _normal(len(maxima1), 1).exp(), _normal(*shape))
    second = (torch.tensor(maxima2)[:, None], _normal(len(maxima2), 1).exp(), _normal(*shape))
    return first, second


@exercise(
    "09.merge",
    points=2,
    cases=[
        _parts([1.0, 5.0], [3.0, -2.0], 2, 1),
        _parts([0.0, 0.0, -1.0], [0.0, 2.0, 4.0], 3, 1),
        _parts([800.0], [801.0], 1, 1),
        _parts([float("-inf"), 2.0], [3.0, -1e30], 2, 1),
    ],
    hints=[
        "m1, l1, o1 = first unpacks a part. The new maximum is torch.maximum(m1, m2).",
        "Whatever was summed under m1 is multiplied by (m1 - m).exp(): the sum l1, and the output o1.",
    ],
)
def merge(first, second):
    """Two parts (m, l, o) of the same rows, as one part that has seen the keys of both."""
    m1, l1, o1 = first
    m2, l2, o2 = second
    m = torch.maximum(m1, m2)
    f1, f2 = (m1 - m).exp(), (m2 - m).exp()
    return m, f1 * l1 + f2 * l2, f1 * o1 + f2 * o2


def _merged(first, second, factor, of_outputs=None):
    (m1, l1, o1), (m2, l2, o2) = first, second
    m = torch.maximum(m1, m2)
    f1, f2 = factor(m1, m), factor(m2, m)
    g1, g2 = (f1, f2) if of_outputs is None else (of_outputs(m1, m), of_outputs(m2, m))
    return m, f1 * l1 + f2 * l2, g1 * o1 + g2 * o2


merge.mistake(
    "sums under different maxima cannot be added",
    lambda a, b: _merged(a, b, lambda m, _: torch.ones_like(m)),
)
merge.mistake(
    "the outputs were summed under the old maxima, too: rescale them like the sums",
    lambda a, b: _merged(a, b, lambda x, m: (x - m).exp(), lambda x, _: torch.ones_like(x)),
)
merge.mistake(
    "the smaller maximum's terms shrink: exp(m1 - m), not exp(m - m1)",
    lambda a, b: _merged(a, b, lambda x, m: (m - x).exp()),
)
merge.mistake(
    "do not divide yet: o is divided by l once, when all keys are seen",
    lambda a, b: (merge(a, b)[0], merge(a, b)[1], merge(a, b)[2] / merge(a, b)[1]),
)


@exercise(
    "09.sees",
    points=1,
    cases=[(0, 0, 4, 4), (0, 1, 4, 4), (0, 9, 1, 10), (1, 5, 3, 8), (0, 6, 3, 8), (2, 7, 3, 8)],
    hints=[
        "The last query sees the last key, whatever the lengths.",
        "Query t stands at position t + S - T of the keys.",
    ],
)
def sees(query: int, key: int, queries: int, keys: int) -> bool:
    """Whether a query sees a key under a causal mask that ends at the last key."""
    return key <= query + keys - queries


sees.mistake("that mask begins at the first key; a cache needs the last", lambda t, s, q, k: s <= t)
sees.mistake("a query sees its own key, too", lambda t, s, q, k: s < t + k - q)


@exercise(
    "09.tiled_attention",
    points=3,
    cases=[
        (_normal(6, 4), _normal(6, 4), _normal(6, 3), 2, torch.arange(6)),
        (_normal(2, 5, 4), _normal(2, 9, 4), _normal(2, 9, 4), 3, torch.arange(4, 9)),
        (_normal(7, 2), _normal(5, 2), _normal(5, 2), 4, torch.full((7,), 4)),
        (_normal(4, 2), _normal(4, 2), _normal(4, 2), 16, torch.arange(4)),
    ],
    hints=[
        "for first in range(0, q.shape[-2], block) walks over the blocks of queries, with rows = "
        "slice(first, first + block) and last = last_key[rows]. For one of them keys = "
        "int(last.max()) + 1 keys matter. Take `block` keys at a time, and merge their parts.",
        "hidden = torch.arange(start, stop, device=q.device) > last[:, None] is (queries, keys) "
        "of the tile.",
        "After the last tile of a block of queries: out[..., rows, :] = o / total.",
    ],
)
def tiled_attention(q, k, v, block, last_key):
    """Attention with at most block x block scores at a time; query t sees keys 0 to last_key[t]."""
    out = q.new_empty(*q.shape[:-1], v.shape[-1])
    for first in range(0, q.shape[-2], block):
        rows = slice(first, first + block)
        last = last_key[rows]
        keys = int(last.max()) + 1  # fully masked tiles are never computed
        state = None
        for start in range(0, keys, block):
            stop = min(start + block, keys)
            hidden = torch.arange(start, stop, device=q.device) > last[:, None]
            k_j, v_j = k[..., start:stop, :], v[..., start:stop, :]
            tile = part(q[..., rows, :], k_j, v_j, hidden if hidden.any() else None)
            state = tile if state is None else merge(state, tile)
        _, total, o = state
        out[..., rows, :] = o / total
    return out


def _attention(q, k, v, last_key):
    _, total, o = part(q, k, v, torch.arange(k.shape[-2]) > last_key[:, None])
    return o / total


tiled_attention.mistake(
    "the mask is missing: query t sees only the keys from 0 to last_key[t]",
    lambda q, k, v, block, last: _attention(q, k, v, torch.full_like(last, k.shape[-2])),
)
tiled_attention.mistake(
    "a query sees the key at last_key itself, too: hidden are the keys *beyond* it",
    lambda q, k, v, block, last: _attention(q, k, v, last - 1),
)
tiled_attention.mistake(
    "the outputs are not divided: o / total after the last tile of a block of queries",
    lambda q, k, v, block, last: part(q, k, v, torch.arange(k.shape[-2]) > last[:, None])[2],
)
tiled_attention.mistake(
    "that is only the last tile of each row; merge it with the tiles before",
    lambda q, k, v, block, last: torch.cat(
        [
            _attention(
                q[..., rows, :],
                k[..., (first := int(last[rows].max()) // block * block) :, :],
                v[..., first:, :],
                last[rows] - first,
            )
            for rows in torch.arange(len(last)).split(block)
        ],
        -2,
    ),
)


@exercise(
    "09.tiles_visited",
    points=2,
    cases=[(8, 2), (9, 2), (64, 64), (100, 16), (5, 1)],
    hints=[
        "Of the tiles in a row of tiles, those beyond the diagonal are skipped.",
        "With n = ceil(T / block) rows of tiles it is 1 + 2 + ... + n.",
    ],
)
def tiles_visited(length: int, block: int) -> int:
    """Tiles of block x block with at least one visible score, for T queries and T keys."""
    rows = -(-length // block)
    return rows * (rows + 1) // 2


tiles_visited.mistake("tiles above the diagonal are skipped", lambda t, b: math.ceil(t / b) ** 2)
tiles_visited.mistake(
    "tiles on the diagonal are needed in part: they are visited",
    lambda t, b: math.ceil(t / b) * (math.ceil(t / b) - 1) // 2,
)
tiles_visited.mistake(
    "the last block may be shorter, but it is there", lambda t, b: (t // b) * (t // b + 1) // 2
)
tiles_visited.mistake(
    "tiles on the diagonal are visited whole, so it is more than half of the square",
    lambda t, b: math.ceil(t / b) ** 2 / 2,
)


@exercise(
    "09.split_attention",
    points=2,
    cases=[
        (_normal(1, 4), _normal(9, 4), _normal(9, 4), 3),
        (_normal(2, 3, 4), _normal(2, 7, 4), _normal(2, 7, 4), 2),
        (_normal(3, 2), _normal(8, 2), _normal(8, 2), 8),
    ],
    hints=[
        "k.chunk(workers, dim=-2) cuts the keys into that many runs of neighbours; the values likewise.",
        "Each worker's result is part(q, its keys, its values). Merge them one after the other, and "
        "divide o by l at the end.",
    ],
)
def split_attention(q, k, v, workers):
    """Each worker reads its own share of the keys; the parts are merged at the end."""
    shares = zip(k.chunk(workers, dim=-2), v.chunk(workers, dim=-2), strict=True)
    parts = [part(q, k_j, v_j) for k_j, v_j in shares]
    state = parts[0]
    for other in parts[1:]:
        state = merge(state, other)
    _, total, o = state
    return o / total


def _shares(q, k, v, workers):
    return [part(q, *kv) for kv in zip(k.chunk(workers, -2), v.chunk(workers, -2), strict=True)]


split_attention.mistake(
    "the mean of the workers' outputs forgets that some have seen larger scores: merge",
    lambda q, k, v, n: torch.stack([o / total for _, total, o in _shares(q, k, v, n)]).mean(0),
)
split_attention.mistake(
    "their sums are under different maxima, so they cannot be added as they are: merge",
    lambda q, k, v, n: (
        sum(o for _, _, o in _shares(q, k, v, n))
        / sum(total for _, total, _ in _shares(q, k, v, n))
    ),
)
split_attention.mistake(
    "that is the last worker's share only",
    lambda q, k, v, n: _shares(q, k, v, n)[-1][2] / _shares(q, k, v, n)[-1][1],
)


@exercise(
    "09.crossing_length",
    points=2,
    cases=[(106e6, 30, 576), (6.5e9, 32, 4096), (1e9, 16, 2048)],
    hints=[
        "Weights: 2 operations each and token, 2 N T. Attention: 4 x width for each pair and layer.",
        "Under the mask there are about T^2 / 2 pairs: 2 L width T^2. Set both equal.",
    ],
)
def crossing_length(weights: float, layers: int, width: int) -> float:
    """Prompt length at which attention under the mask needs as many operations as the weights."""
    return weights / (layers * width)


crossing_length.mistake(
    "the mask hides half of the pairs", lambda n, layers, w: n / (2 * layers * w)
)
crossing_length.mistake("every layer attends", lambda n, layers, w: n / w)


@exercise(
    "09.entropy",
    points=3,
    cases=[
        (torch.tensor([[0.0, 1.0, 3.0, 2.0]]), 2),
        (_normal(3, 7) * 3, 3),
        (_normal(2, 5), 1),
        (torch.tensor([[100.0, 101.0, 99.0], [-50.0, 3.0, 3.0]]), 2),
        (torch.zeros(2, 8), 3),
        (10_000 + _normal(4, 9), 4),
    ],
    hints=[
        "Put p = exp(s - m) / l into H = - sum p log p. What has to be summed over the keys?",
        "H = log l - (sum of (s - m) exp(s - m)) / l. The third sum needs care: when m rises to new, "
        "every s - m in it falls by new - m as well.",
        "So with f = exp(m - new): third = f * (third + (m - new) * l), before l itself is "
        "rescaled. If m starts at minus infinity, -inf * 0 is NaN: start from the row's first score.",
    ],
    rtol=1e-4,
)
def entropy(scores, block):
    """Entropy in nats of each row's softmax, from one pass over its pieces."""
    m = scores[..., :1]  # minus infinity would give NaN below; any score of the row will do
    total, u = torch.zeros_like(m), torch.zeros_like(m)  # of exp(s - m), of (s - m) exp(s - m)
    for piece in scores.split(block, dim=-1):
        new = torch.maximum(m, piece.amax(-1, keepdim=True))
        factor, terms = (m - new).exp(), (piece - new).exp()
        u = factor * (u + (m - new) * total) + ((piece - new) * terms).sum(-1, keepdim=True)
        total = factor * total + terms.sum(-1, keepdim=True)
        m = new
    return (total.log() - u / total).squeeze(-1)


def _entropy(scores):
    return -(scores.softmax(-1) * scores.log_softmax(-1)).sum(-1)


entropy.mistake(
    "nats were asked for, not bits: the natural logarithm",
    lambda s, b: _entropy(s) / math.log(2),
)
entropy.mistake("the sign: an entropy is never negative", lambda s, b: -_entropy(s))
entropy.mistake(
    "that is log l: the sum of s p is still missing",
    lambda s, b: (s - s.amax(-1, keepdim=True)).exp().sum(-1).log(),
)
entropy.mistake(
    "that is the log of the sum of exponentials; take the mean score under the weights off",
    lambda s, b: s.logsumexp(-1),
)


@entropy.mistake(
    "right for small scores; near 10,000 it subtracts two large numbers, and their digits cancel: "
    "carry the sum of (s - m) exp(s - m), not of s exp(s - m)"
)
def _cancels(scores, block):
    m = torch.full_like(scores[..., :1], -math.inf)
    total, weighted = torch.zeros_like(m), torch.zeros_like(m)
    for piece in scores.split(block, dim=-1):
        new = torch.maximum(m, piece.amax(-1, keepdim=True))
        factor, terms = (m - new).exp(), (piece - new).exp()
        total = factor * total + terms.sum(-1, keepdim=True)
        weighted = factor * weighted + (piece * terms).sum(-1, keepdim=True)
        m = new
    return (m + total.log() - weighted / total).squeeze(-1)
