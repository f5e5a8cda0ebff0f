"""From logits to text: choosing tokens, beam search, and the KV cache.

Shapes: B batch, T tokens, V vocabulary, H_kv key-value heads, D head dimension. A `model` is called
as `model(tokens, past_key_values=cache, use_cache=..., logits_to_keep=1)` and has a `config`:
Hugging Face's models.
"""

import math
from collections.abc import Callable, Collection
from typing import Any

import torch
from torch import Tensor

from llama_int8.transformer.prompt import check_prompt as _check_prompt

Choice = Callable[[Tensor, Tensor], Tensor]
"""(logits (B, V), tokens so far (B, T)) -> the next token of each row, (B,)."""


def scale_temperature(logits: Tensor, temperature: float) -> Tensor:
    """logits / temperature: below 1 sharpens the distribution, above 1 flattens it.

    Raises ValueError for a temperature that is not a positive finite number.
    """
    _check_temperature(temperature)
    return logits / temperature


def keep_top_k(logits: Tensor, k: int) -> Tensor:
    """Minus infinity for all but the k largest of each row (..., V); ties with the k-th stay.

    Fan et al., 2018, arXiv:1805.04833. A k above V keeps all. Raises ValueError for k below 1.
    """
    _check_top_k(k)
    smallest_kept = logits.topk(min(k, logits.shape[-1])).values[..., -1:]
    return logits.masked_fill(logits < smallest_kept, -math.inf)


def keep_top_p(logits: Tensor, p: float) -> Tensor:
    """Minus infinity outside the smallest set of likeliest tokens with at least probability p.

    The token that crosses p belongs to the set, so that it is never empty. logits (..., V).
    Holtzman et al., 2020, arXiv:1904.09751. Raises ValueError for a p outside (0, 1].
    """
    _check_top_p(p)
    if p == 1:
        return logits
    ordered, order = logits.sort(descending=True, stable=True)
    probabilities = ordered.softmax(-1)
    before = probabilities.cumsum(-1) - probabilities  # what the likelier tokens hold together
    kept = ordered.masked_fill(before >= p, -math.inf)
    return torch.empty_like(kept).scatter(-1, order, kept)


def penalize_repetition(logits: Tensor, tokens: Tensor, penalty: float) -> Tensor:
    """Make each token that has occurred less likely: logit / penalty, or * penalty where negative.

    logits (B, V), tokens (B, T). Keskar et al., 2019, arXiv:1909.05858, equation 2, divides always,
    which would make a token with a negative logit likelier.
    Raises ValueError for a penalty that is not a positive finite number.
    """
    _check_penalty(penalty)
    seen = logits.gather(-1, tokens)  # (B, T)
    return logits.scatter(-1, tokens, torch.where(seen < 0, seen * penalty, seen / penalty))


def sampling_probabilities(
    logits: Tensor,
    tokens: Tensor,
    temperature: float = 1.0,
    top_k: int | None = None,
    top_p: float = 1.0,
    repetition_penalty: float = 1.0,
) -> Tensor:
    """The distribution that the next token is drawn from, (B, V), in FP32; rows sum to 1.

    In the order of Hugging Face's `generate`: penalty, temperature, top-k, top-p.
    Raises ValueError for a setting outside its range, or where NaN comes out.
    """
    logits = penalize_repetition(logits.float(), tokens, repetition_penalty)
    logits = scale_temperature(logits, temperature)
    if top_k is not None:
        logits = keep_top_k(logits, top_k)
    probabilities = keep_top_p(logits, top_p).softmax(-1)
    _check_probabilities(probabilities)
    return probabilities


def greedy(logits: Tensor, tokens: Tensor) -> Tensor:
    """The likeliest token of each row, (B, V) -> (B,)."""
    return logits.argmax(-1)


class Sampler:
    """Draws each next token from `sampling_probabilities` with the given settings."""

    def __init__(self, seed: int, **settings: Any) -> None:
        self.settings = settings
        # On the CPU, wherever the model is: the same draws on every device.
        self.generator = torch.Generator().manual_seed(seed)

    def __call__(self, logits: Tensor, tokens: Tensor) -> Tensor:
        """(B, V) -> (B,)."""
        probabilities = sampling_probabilities(logits, tokens, **self.settings).cpu()
        drawn = torch.multinomial(probabilities, 1, generator=self.generator)
        return drawn[:, 0].to(logits.device)


class KVCache:
    """Keys and values of all tokens so far: two tensors (B, H_kv, T, D) for each layer.

    Has the methods that Hugging Face's LLaMA calls on its `past_key_values`.
    """

    def __init__(self) -> None:
        self.keys: dict[int, Tensor] = {}
        self.values: dict[int, Tensor] = {}

    def update(self, k: Tensor, v: Tensor, layer: int, *_: Any, **__: Any) -> tuple[Tensor, Tensor]:
        """Append the new tokens' keys and values to a layer's; return all of them."""
        if layer in self.keys:
            k = torch.cat([self.keys[layer], k], dim=-2)  # along T
            v = torch.cat([self.values[layer], v], dim=-2)
        self.keys[layer], self.values[layer] = k, v
        return k, v

    @property
    def length(self) -> int:
        """Tokens that every layer holds."""
        return min((k.shape[-2] for k in self.keys.values()), default=0)

    @property
    def nbytes(self) -> int:
        """Bytes of all keys and values."""
        return sum(t.nbytes for t in (*self.keys.values(), *self.values.values()))

    def select(self, rows: Tensor) -> None:
        """Keep these rows of the batch, in this order: what beam search does when beams die."""
        for tensors in (self.keys, self.values):
            for layer in tensors:
                tensors[layer] = tensors[layer][rows]

    def get_seq_length(self, layer_idx: int = 0) -> int:
        """Tokens that a layer holds (Hugging Face's name)."""
        return self.keys[layer_idx].shape[-2] if layer_idx in self.keys else 0

    get_query_offset = get_seq_length

    def get_mask_sizes(self, query_length: int, layer_idx: int = 0) -> tuple[int, int]:
        """Keys in the next pass, and the position of the first one (Hugging Face's name)."""
        return self.get_seq_length(layer_idx) + query_length, 0


def next_logits(model: Any, tokens: Tensor, cache: KVCache | None = None) -> Tensor:
    """Logits of the token after `tokens` (B, T), (B, V).

    With a cache, which must hold a beginning of `tokens`, only the tokens after it are computed.
    Raises ValueError where the cache leaves none, or the logits give no distribution.
    """
    _check_cache(tokens, cache)
    if cache is None:
        out = model(tokens, use_cache=False, logits_to_keep=1)
    else:
        new = tokens[:, cache.length :]
        out = model(new, past_key_values=cache, use_cache=True, logits_to_keep=1)
    logits = getattr(out, "logits", out)[:, -1]
    _check_logits(logits)
    return logits


@torch.inference_mode()
def generate(
    model: Any,
    prompt: Tensor,
    max_new_tokens: int,
    choose: Choice = greedy,
    end: Collection[int] = (),
    use_cache: bool = True,
) -> Tensor:
    """The prompt (B, T) and at most `max_new_tokens` tokens after it, (B, T + new).

    Rows end with a token of `end`, which is repeated until the longest row has ended. Raises
    ValueError for an empty prompt, one that leaves no room in the model's context, or no new tokens.
    """
    _check_prompt(model, prompt, max_new_tokens)
    cache = KVCache() if use_cache else None
    return extend(
        prompt, max_new_tokens, lambda tokens: next_logits(model, tokens, cache), choose, end
    )


def extend(
    prompt: Tensor,
    max_new_tokens: int,
    next_logits: Callable[[Tensor], Tensor],
    choose: Choice = greedy,
    end: Collection[int] = (),
) -> Tensor:
    """`generate` for any way to the logits: `next_logits` makes (B, V) of all tokens so far."""
    ends = torch.tensor(sorted(end), dtype=prompt.dtype, device=prompt.device)
    tokens = prompt
    ended = torch.zeros(len(prompt), dtype=torch.bool, device=prompt.device)
    for _ in range(max_new_tokens):
        chosen = choose(next_logits(tokens), tokens)  # (B,)
        chosen = torch.where(ended, tokens[:, -1], chosen)
        tokens = torch.cat([tokens, chosen[:, None]], dim=1)
        ended |= torch.isin(chosen, ends)
        if ended.all():
            break
    return tokens


@torch.inference_mode()
def beam_search(
    model: Any,
    prompt: Tensor,
    max_new_tokens: int,
    beams: int,
    length_penalty: float = 1.0,
    end: Collection[int] = (),
) -> Tensor:
    """The prompt (1, T) with the continuation of the highest score that was found, (1, T + new).

    A score is the sum of log-probabilities over length ** length_penalty, as in Hugging Face's
    `generate` (with its default `early_stopping=False`). Errors as in `generate`, and ValueError
    for fewer than one beam or more than one prompt.
    """
    _check_prompt(model, prompt, max_new_tokens)
    _check_beams(beams, prompt)
    ends = torch.tensor(sorted(end), dtype=prompt.dtype, device=prompt.device)
    tokens, sums, cache = prompt, torch.zeros(1, 1, device=prompt.device), KVCache()
    finished: list[tuple[float, Tensor]] = []
    for length in range(1, max_new_tokens + 1):
        totals = next_logits(model, tokens, cache).float().log_softmax(-1) + sums  # (beams, V)
        # Enough candidates that `beams` are left even if all the others end here.
        wanted = beams * max(2, 1 + len(end))
        best = totals.flatten().topk(min(wanted, totals.numel()))
        parents, chosen = best.indices // totals.shape[1], best.indices % totals.shape[1]
        candidates = torch.cat([tokens[parents], chosen[:, None]], dim=1)
        stops = torch.isin(chosen, ends) | (length == max_new_tokens)
        for row in stops[:beams].nonzero()[:, 0].tolist():
            finished.append((best.values[row].item() / length**length_penalty, candidates[row]))
        finished = sorted(finished, key=lambda scored: scored[0], reverse=True)[:beams]
        going = (~stops).nonzero()[:beams, 0]
        if len(going) == 0:
            break
        tokens, sums = candidates[going], best.values[going, None]
        cache.select(parents[going])
        if len(finished) == beams and sums[0].item() / length**length_penalty <= finished[-1][0]:
            break
    return finished[0][1][None]


def _check_temperature(temperature: float) -> None:
    if not 0 < temperature < math.inf:
        raise ValueError(
            f"temperature is {temperature}; it must be positive and finite (towards 0 sampling "
            "becomes greedy: use `greedy`)"
        )


def _check_top_k(k: int) -> None:
    if k < 1:
        raise ValueError(f"top_k is {k}; it must be 1 or more (None keeps all tokens)")


def _check_top_p(p: float) -> None:
    if not 0 < p <= 1:
        raise ValueError(f"top_p is {p}; it must lie in (0, 1] (1 keeps all tokens)")


def _check_penalty(penalty: float) -> None:
    if not 0 < penalty < math.inf:
        raise ValueError(
            f"repetition_penalty is {penalty}; it must be positive and finite (1 does nothing)"
        )


def _check_cache(tokens: Tensor, cache: KVCache | None) -> None:
    if cache is not None and cache.length >= tokens.shape[1]:
        raise ValueError(
            f"the cache holds {cache.length} tokens and the text has {tokens.shape[1]}: nothing is "
            "left to compute. Does the cache belong to another text?"
        )


def _check_probabilities(probabilities: Tensor) -> None:
    if probabilities.isnan().any():
        raise ValueError("the logits hold NaN or infinity: there is no distribution to draw from")


def _check_logits(logits: Tensor) -> None:
    bad = (~logits.amax(-1).isfinite()).nonzero()[:, 0].tolist()  # NaN wins a maximum
    if bad:
        raise ValueError(
            f"the model's logits in row(s) {bad} hold NaN or infinity, or forbid every token: it "
            "overflowed in this precision"
        )


def _check_beams(beams: int, prompt: Tensor) -> None:
    if beams < 1:
        raise ValueError(f"beams is {beams}; it must be 1 or more")
    if len(prompt) != 1:
        raise ValueError(f"{len(prompt)} prompts were given; beam search takes one at a time")
