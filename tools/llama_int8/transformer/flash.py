"""FlashAttention: exact attention tile by tile, which never holds all scores at once.

Version 1 is Dao et al., 2022, arXiv:2205.14135; version 2 is Dao, 2023, arXiv:2307.08691.
Shapes: B batch, H query heads, H_kv key-value heads, T queries, S keys, D head dimension; H / H_kv
query heads share a key-value head. Slow memory holds whole tensors (a GPU's HBM), fast memory a
block of each (its SRAM); a tile is the scores of one block of queries with one block of keys.
A causal mask ends at the last key, as decoding with a cache needs it: query t sees the keys up to
t + S - T. (PyTorch's `is_causal` starts at the first key; where S = T they are the same.)
"""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable


@dataclass
class Traffic:
    """Counts what attention has moved and computed so far, at the place where it happens.

    `loads`, `stores`: elements that came from slow memory and went there. `rescales`, `divisions`:
    elements multiplied by a factor or divided by a sum outside the matrix products. These count
    all heads; `visited` and `skipped` count tiles, and a tile counts once for all heads.
    """

    loads: int = 0
    stores: int = 0
    visited: int = 0
    skipped: int = 0
    matmul_flops: int = 0
    exponentials: int = 0
    rescales: int = 0
    divisions: int = 0

    @property
    def moved(self) -> int:
        """Elements moved in either direction."""
        return self.loads + self.stores

    def load(self, block: Tensor) -> Tensor:
        """The block, which is now in fast memory."""
        self.loads += block.numel()
        return block

    def store(self, block: Tensor) -> Tensor:
        """The block, which is now in slow memory."""
        self.stores += block.numel()
        return block

    def matmul(self, a: Tensor, b: Tensor) -> Tensor:
        """a @ b, (..., n, k) and (..., k, m) -> (..., n, m): n k m products, and as many sums."""
        self.matmul_flops += 2 * a.numel() * b.shape[-1]
        return a @ b

    def visits(self, rows: slice, columns: slice, past: float) -> bool:
        """Whether the last query of a tile sees its first key; otherwise all of it is masked."""
        seen = columns.start <= rows.stop - 1 + past
        self.visited += seen
        self.skipped += not seen
        return seen


@dataclass(frozen=True)
class Tile:
    """The content of fast memory when a tile is done; given to the `watch` of both versions.

    `scores` (B, H, rows, columns); of these rows over all keys so far the `maximum` and the `total`
    of exp(score - maximum), (B, H, rows, 1), and the `output`, (B, H, rows, D), already divided.
    """

    rows: slice
    columns: slice
    scores: Tensor
    maximum: Tensor
    total: Tensor
    output: Tensor


Watch = Callable[[Tile], Any]


def finite(maximum: Tensor) -> Tensor:
    """The maximum, and 0 where no score was seen yet: exp(-inf - 0) is 0, exp(-inf + inf) is NaN."""
    return maximum.masked_fill(maximum == -math.inf, 0.0)


def online_step(
    scores: Tensor, maximum: Tensor, total: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """A softmax that has read one more block of `scores`, (..., block).

    `maximum`, `total`: of the scores before, (..., 1); minus infinity and 0 at the start. Returns
    both anew, the factor (..., 1) that turns what was summed under the old maximum into terms under
    the new one, and exp(scores - new maximum). Milakov and Gimelshein, arXiv:1805.02867, algorithm 3.
    """
    new = torch.maximum(maximum, scores.amax(-1, keepdim=True))
    factor = (maximum - finite(new)).exp()
    weights = (scores - finite(new)).exp()
    return new, factor * total + weights.sum(-1, keepdim=True), factor, weights


def online_softmax(scores: Tensor, block: int) -> tuple[Tensor, Tensor, Tensor]:
    """The softmax of (..., S), and the running maximum and sum after each block, (..., blocks).

    As in `torch.softmax` a row of nothing but minus infinity becomes NaN, 0 / 0.
    """
    maximum, total = scores.new_full((*scores.shape[:-1], 1), -math.inf), 0.0
    maxima, totals = [], []
    for columns in blocks(scores.shape[-1], block):
        maximum, total, _, _ = online_step(scores[..., columns], maximum, total)
        maxima.append(maximum)
        totals.append(total)
    weights = (scores - maximum).exp() / total
    return weights, torch.cat(maxima, -1), torch.cat(totals, -1)


def blocks(length: int, size: int) -> Iterator[slice]:
    """Slices of `size` that cover 0 to `length`; the last one may be shorter."""
    for start in range(0, length, size):
        yield slice(start, min(start + size, length))


def for_each_head(q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """q / sqrt(D), and k and v once for each query head, all (B, H, T or S, D), at least in FP32.

    Every query head loads the keys and values of its group for itself, as the paper's kernels do.
    """
    precise = torch.promote_types(q.dtype, torch.float32)
    group = q.shape[1] // k.shape[1]
    k, v = (x.to(precise).repeat_interleave(group, dim=1) for x in (k, v))  # H_kv -> H
    return q.to(precise) / math.sqrt(q.shape[-1]), k, v


def hide_future(scores: Tensor, rows: slice, columns: slice, past: float) -> Tensor:
    """A tile with minus infinity where the key's number exceeds the query's by more than `past`."""
    queries = torch.arange(rows.start, rows.stop, device=scores.device)[:, None]
    keys = torch.arange(columns.start, columns.stop, device=scores.device)
    return scores.masked_fill(keys > queries + past, -math.inf)


def divide(weighted: Tensor, total: Tensor) -> Tensor:
    """weighted / total, (..., D) and (..., 1); 0 where all scores so far are minus infinity."""
    return weighted / total.masked_fill(total == 0, 1.0)


@torch.no_grad()
def standard_attention(
    q: Tensor, k: Tensor, v: Tensor, causal: bool = False, traffic: Traffic | None = None
) -> tuple[Tensor, Tensor]:
    """Attention with all scores in slow memory: arXiv:2205.14135, algorithm 0.

    Shapes, results and errors as in `flash_attention_2`.
    """
    _check_inputs(q, k, v, causal)
    traffic = Traffic() if traffic is None else traffic
    dtype, past = q.dtype, k.shape[2] - q.shape[2] if causal else math.inf
    q, k, v = for_each_head(q, k, v)
    scores = traffic.store(traffic.matmul(traffic.load(q), traffic.load(k).mT))  # (B, H, T, S)
    scores = traffic.load(scores)
    scores = hide_future(scores, slice(0, q.shape[2]), slice(0, k.shape[2]), past)
    weights = traffic.store(scores.softmax(-1))
    traffic.exponentials += scores.numel()
    traffic.divisions += scores.numel()
    o = traffic.store(traffic.matmul(traffic.load(weights), traffic.load(v)))
    return o.to(dtype), scores.logsumexp(-1)


@torch.no_grad()
def flash_attention_1(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    causal: bool = False,
    block_q: int = 64,
    block_k: int = 64,
    traffic: Traffic | None = None,
    watch: Watch | None = None,
) -> tuple[Tensor, Tensor]:
    """Each block of keys and values stays while the queries pass: arXiv:2205.14135, algorithm 1.

    Output, maximum and sum of every query are in slow memory and come and go with each tile. A tile
    is computed under its own maximum, then both the old output and the tile's are rescaled, and the
    output is divided at every visit. Shapes, results and errors as in `flash_attention_2`.
    """
    _check_inputs(q, k, v, causal, block_q, block_k)
    traffic = Traffic() if traffic is None else traffic
    dtype, past = q.dtype, k.shape[2] - q.shape[2] if causal else math.inf
    q, k, v = for_each_head(q, k, v)
    o = traffic.store(torch.zeros_like(q))
    maxima = traffic.store(torch.full_like(q[..., :1], -math.inf))
    totals = traffic.store(torch.zeros_like(maxima))
    for columns in blocks(k.shape[2], block_k):
        k_j, v_j = traffic.load(k[:, :, columns]), traffic.load(v[:, :, columns])
        for rows in blocks(q.shape[2], block_q):
            if not traffic.visits(rows, columns, past):
                continue
            q_i, o_i, m_i, l_i = (traffic.load(x[:, :, rows]) for x in (q, o, maxima, totals))
            scores = hide_future(traffic.matmul(q_i, k_j.mT), rows, columns, past)
            own = scores.amax(-1, keepdim=True)  # of this tile
            weights = (scores - finite(own)).exp()
            new = torch.maximum(m_i, own)
            old, now = (m_i - finite(new)).exp(), (own - finite(new)).exp()
            l_new = old * l_i + now * weights.sum(-1, keepdim=True)
            o_i = divide(l_i * old * o_i + now * traffic.matmul(weights, v_j), l_new)
            traffic.exponentials += weights.numel() + 2 * old.numel()
            traffic.rescales += 2 * o_i.numel()
            traffic.divisions += o_i.numel()
            o[:, :, rows] = traffic.store(o_i)
            maxima[:, :, rows], totals[:, :, rows] = traffic.store(new), traffic.store(l_new)
            if watch is not None:
                watch(Tile(rows, columns, scores, new, l_new, o_i))
    return o.to(dtype), (maxima + totals.log()).squeeze(-1)


@torch.no_grad()
def flash_attention_2(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    causal: bool = False,
    block_q: int = 64,
    block_k: int = 64,
    traffic: Traffic | None = None,
    watch: Watch | None = None,
) -> tuple[Tensor, Tensor]:
    """Each block of queries stays while keys and values pass: arXiv:2307.08691, algorithm 1.

    No query block needs another one, and its output is divided once, at the end.
    q (B, H, T, D), k and v (B, H_kv, S, D) -> the output (B, H, T, D) and the log of each query's
    sum of exp(scores), (B, H, T), at least in FP32; neither carries a gradient: `flash_attention`
    does. `traffic` counts on; `watch` is called after each tile.
    Raises ValueError for shapes or block sizes that do not fit, and for more queries than keys
    under a causal mask; TypeError for dtypes that differ or are not floating-point.
    """
    _check_inputs(q, k, v, causal, block_q, block_k)
    traffic = Traffic() if traffic is None else traffic
    dtype, past = q.dtype, k.shape[2] - q.shape[2] if causal else math.inf
    q, k, v = for_each_head(q, k, v)
    o, lse = torch.empty_like(q), torch.empty_like(q[..., :1])
    for rows in blocks(q.shape[2], block_q):
        q_i = traffic.load(q[:, :, rows])
        o_i = torch.zeros_like(q_i)
        m_i, l_i = torch.full_like(q_i[..., :1], -math.inf), torch.zeros_like(q_i[..., :1])
        for columns in blocks(k.shape[2], block_k):
            if not traffic.visits(rows, columns, past):
                continue
            k_j, v_j = traffic.load(k[:, :, columns]), traffic.load(v[:, :, columns])
            scores = hide_future(traffic.matmul(q_i, k_j.mT), rows, columns, past)
            m_i, l_i, factor, weights = online_step(scores, m_i, l_i)
            o_i = factor * o_i + traffic.matmul(weights, v_j)
            traffic.exponentials += weights.numel() + factor.numel()
            traffic.rescales += o_i.numel()
            if watch is not None:
                watch(Tile(rows, columns, scores, m_i, l_i, divide(o_i, l_i)))
        o[:, :, rows] = traffic.store(divide(o_i, l_i))
        traffic.divisions += o_i.numel()
        lse[:, :, rows] = traffic.store(m_i + l_i.log())
    return o.to(dtype), lse.squeeze(-1)


@torch.no_grad()
def flash_backward(
    do: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    o: Tensor,
    lse: Tensor,
    causal: bool = False,
    block_q: int = 64,
    block_k: int = 64,
    traffic: Traffic | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of q, k and v from that of the output, `do`: arXiv:2307.08691, algorithm 2.

    `o` and `lse` are the forward pass's results; each tile's weights are computed again from them.
    """
    traffic = Traffic() if traffic is None else traffic
    dtype, heads, past = q.dtype, k.shape[1], k.shape[2] - q.shape[2] if causal else math.inf
    q, k, v = for_each_head(q, k, v)
    do, lse = do.to(q.dtype), lse[..., None]
    d = traffic.store((traffic.load(do) * traffic.load(o)).sum(-1, keepdim=True))
    dq, dk, dv = traffic.store(torch.zeros_like(q)), torch.empty_like(k), torch.empty_like(v)
    for columns in blocks(k.shape[2], block_k):
        k_j, v_j = traffic.load(k[:, :, columns]), traffic.load(v[:, :, columns])
        dk_j, dv_j = torch.zeros_like(k_j), torch.zeros_like(v_j)
        for rows in blocks(q.shape[2], block_q):
            if not traffic.visits(rows, columns, past):
                continue
            q_i, do_i, dq_i, lse_i, d_i = (traffic.load(x[:, :, rows]) for x in (q, do, dq, lse, d))
            scores = hide_future(traffic.matmul(q_i, k_j.mT), rows, columns, past)
            traffic.exponentials += scores.numel()
            weights = (scores - lse_i).exp()
            dv_j += traffic.matmul(weights.mT, do_i)
            dscores = weights * (traffic.matmul(do_i, v_j.mT) - d_i)
            dk_j += traffic.matmul(dscores.mT, q_i)
            dq[:, :, rows] = traffic.store(dq_i + traffic.matmul(dscores, k_j))
        dk[:, :, columns], dv[:, :, columns] = traffic.store(dk_j), traffic.store(dv_j)
    dk, dv = (x.unflatten(1, (heads, -1)).sum(2) for x in (dk, dv))  # H -> H_kv
    return (dq / math.sqrt(q.shape[-1])).to(dtype), dk.to(dtype), dv.to(dtype)


class FlashAttention(torch.autograd.Function):
    """Version 2, whose backward pass keeps the output and one number per query, but no weights."""

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, *settings: Any) -> Tensor:
        o, lse = flash_attention_2(q, k, v, *settings)
        ctx.save_for_backward(q, k, v, o, lse)
        ctx.settings = settings
        return o

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, do: Tensor) -> tuple[Tensor | None, ...]:
        gradients = flash_backward(do, *ctx.saved_tensors, *ctx.settings)
        return *gradients, *(None for _ in ctx.settings)


def flash_attention(
    q: Tensor, k: Tensor, v: Tensor, causal: bool = False, block_q: int = 64, block_k: int = 64
) -> Tensor:
    """Attention that can be trained through, (B, H, T, D): `flash_attention_2`, `flash_backward`.

    q (B, H, T, D), k and v (B, H_kv, S, D); errors as in `flash_attention_2`.
    """
    return FlashAttention.apply(q, k, v, causal, block_q, block_k)


def block_sizes(memory: int, head_dim: int, version: int = 1) -> tuple[int, int]:
    """Rows of a block of queries and of a block of keys, in a fast memory of `memory` elements.

    Version 1: ceil(M / 4 D) keys and at most D queries, arXiv:2205.14135, algorithm 1, line 1.
    Version 2: as many of both, ceil(M / 4 D); its paper has no rule, and tries 64 and 128 for each.
    The blocks of q, k, v and o then fill at most M, up to rounding; the scores come on top.
    Raises ValueError for less memory than one vector takes, and for another version.
    """
    _check_memory(memory, head_dim)
    _check_version(version)
    rows = math.ceil(memory / (4 * head_dim))
    return (min(rows, head_dim), rows) if version == 1 else (rows, rows)


def standard_traffic(T: int, S: int, D: int, heads: int = 1) -> Traffic:
    """The traffic and work of `standard_attention`, only from the shapes: Theta(T D + T S).

    Raises ValueError for no queries or no keys.
    """
    _check_lengths(T, S, causal=False)
    return Traffic(
        loads=heads * ((T + 2 * S) * D + 2 * T * S),
        stores=heads * (T * D + 2 * T * S),
        matmul_flops=heads * 4 * T * S * D,
        exponentials=heads * T * S,
        divisions=heads * T * S,
    )


def flash_traffic(
    T: int,
    S: int,
    D: int,
    block_q: int,
    block_k: int,
    causal: bool = False,
    version: int = 2,
    heads: int = 1,
) -> Traffic:
    """The traffic and work of `flash_attention_1` or `_2`, only from the shapes.

    With `block_sizes` of M elements it is Theta(T S D^2 / M): arXiv:2205.14135, theorem 2.
    Errors as in `flash_attention_2`, and ValueError for another version.
    """
    _check_lengths(T, S, causal)
    _check_block("block_q", block_q)
    _check_block("block_k", block_k)
    _check_version(version)
    visited = rows = keys = scores = 0  # summed over all visited tiles
    for start in range(0, T, block_q):
        height = min(block_q, T - start)
        last = start + height + S - T if causal else S  # keys that the block's last query sees
        tiles = math.ceil(last / block_k)
        visited, rows = visited + tiles, rows + tiles * height
        keys += min(tiles * block_k, S)
        scores += height * min(tiles * block_k, S)
    all_tiles = math.ceil(T / block_q) * math.ceil(S / block_k)
    # Version 1: q, o, maximum, sum for each tile, k and v once; o, maximum, sum are set before.
    loads, stores = 2 * S * D + rows * (2 * D + 2), (T + rows) * (D + 2)
    if version == 2:  # k and v for each tile; q once; o and the log of the sum at the end
        loads, stores = T * D + 2 * keys * D, T * (D + 1)
    return Traffic(
        loads=heads * loads,
        stores=heads * stores,
        visited=visited,
        skipped=all_tiles - visited,
        matmul_flops=heads * 4 * scores * D,
        exponentials=heads * (scores + (2 if version == 1 else 1) * rows),
        rescales=heads * (2 if version == 1 else 1) * rows * D,
        divisions=heads * (rows if version == 1 else T) * D,
    )


def _check_block(name: str, size: int) -> None:
    if not isinstance(size, int) or size < 1:
        raise ValueError(f"{name} is {size}; a block holds a whole number of rows, 1 or more")


def _check_lengths(queries: int, keys: int, causal: bool) -> None:
    if min(queries, keys) < 1:
        raise ValueError(f"{queries} queries and {keys} keys; at least one of each is needed")
    if causal and queries > keys:
        raise ValueError(
            f"{queries} queries and {keys} keys: a causal mask ends at the last key, so the first "
            f"{queries - keys} would see nothing; pass the last {keys} queries, or causal=False"
        )


def _check_inputs(
    q: Tensor, k: Tensor, v: Tensor, causal: bool, block_q: int = 1, block_k: int = 1
) -> None:
    _check_block("block_q", block_q)
    _check_block("block_k", block_k)
    shapes = f"q has shape {tuple(q.shape)}, k {tuple(k.shape)}, v {tuple(v.shape)}"
    expected = "expected q (B, H, T, D), k and v (B, H_kv, S, D) with the same B and D"
    same = q.dim() == 4 and k.dim() == 4 and k.shape == v.shape
    if not same or q.shape[0] != k.shape[0] or q.shape[3] != k.shape[3] or 0 in q.shape:
        raise ValueError(f"{shapes}; {expected}, none of them 0")
    if k.shape[1] < 1 or q.shape[1] % k.shape[1]:
        raise ValueError(
            f"{shapes}; {k.shape[1]} key-value heads do not divide {q.shape[1]} query heads"
        )
    _check_lengths(q.shape[2], k.shape[2], causal)
    if not q.dtype == k.dtype == v.dtype or not q.is_floating_point():
        raise TypeError(
            f"q is {q.dtype}, k {k.dtype}, v {v.dtype}; expected one floating-point dtype: "
            "convert with .to(q.dtype)"
        )
    if not q.device == k.device == v.device:
        raise ValueError(
            f"q is on {q.device}, k on {k.device}, v on {v.device}; move them to one device with .to"
        )


def _check_memory(memory: int, head_dim: int) -> None:
    if head_dim < 1 or memory < head_dim:
        raise ValueError(
            f"a fast memory of {memory} elements does not hold one vector of {head_dim}"
        )


def _check_version(version: int) -> None:
    if version not in (1, 2):
        raise ValueError(f"version is {version}; there are versions 1 and 2")
