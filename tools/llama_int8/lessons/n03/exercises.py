"""The exercises of lesson 03: references, cases, hints and known mistakes."""

import torch

from llama_int8.course.exercises import check, exercise, hint, solution

__all__ = ["check", "hint", "solution"]

INF = float("inf")
_GENERATOR = torch.Generator().manual_seed(3)


def _normal(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=_GENERATOR)


@exercise(
    "03.token_nll",
    points=2,
    cases=[
        (_normal(4, 5), torch.tensor([1, 0, 4, 2])),
        (_normal(2, 7), torch.tensor([6, 3])),
        (3 * _normal(6, 3), torch.tensor([2, 2, 1, 0, 0, 1])),
    ],
    hints=[
        "logits.log_softmax(dim=-1) holds the log-probability of every token at every position.",
        "Position t predicts token t + 1: the last position predicts nothing that is there, and "
        "nothing predicts the first token.",
        "log_p[torch.arange(n), tokens[1:]] picks one number from each of the first n rows.",
    ],
)
def token_nll(logits, tokens):
    """-log p of each token after the first, (T - 1,), from the logits one position before it."""
    log_p = logits[:-1].log_softmax(dim=-1)  # (T - 1, V): the last position predicts the unknown
    targets = tokens[1:]
    return -log_p[torch.arange(len(targets)), targets]


def _picked(logits, tokens):
    return -logits.log_softmax(-1)[torch.arange(len(tokens)), tokens]


token_nll.mistake(
    "the famous one: the output at a position predicts the NEXT token, so logits[:-1] belong to "
    "tokens[1:]",
    lambda logits, tokens: _picked(logits, tokens),
)
token_nll.mistake(
    "nothing was shifted: you left out the first token, and kept its neighbour's output in place",
    lambda logits, tokens: _picked(logits, tokens)[1:],
)
token_nll.mistake(
    "shifted the wrong way: that asks an output about the token before it",
    lambda logits, tokens: _picked(logits[1:], tokens[:-1]),
)
token_nll.mistake(
    "the sign: a loss is the NEGATIVE log-likelihood",
    lambda logits, tokens: -token_nll(logits, tokens),
)
token_nll.mistake(
    "those are the logits; log_softmax turns them into log-probabilities first",
    lambda logits, tokens: -logits[:-1][torch.arange(len(tokens) - 1), tokens[1:]],
)
token_nll.mistake(
    "one number for each token was asked for, and this is their mean",
    lambda logits, tokens: token_nll(logits, tokens).mean(),
)
token_nll.mistake(
    "those are probabilities; the NLL is minus their logarithm",
    lambda logits, tokens: (-token_nll(logits, tokens)).exp(),
)
token_nll.mistake(
    "the softmax runs over the vocabulary, dim=-1, not over the positions",
    lambda logits, tokens: -logits[:-1].log_softmax(0)[torch.arange(len(tokens) - 1), tokens[1:]],
)


def _toy_model(tokens):
    """Logits of seven tokens that depend on the whole text, (B, 7)."""
    weights = torch.arange(1, tokens.shape[1] + 1)
    state = (tokens * weights).sum(-1, keepdim=True) + 3 * tokens[:, -1:]
    return torch.sin(1.7 * state + torch.arange(7.0) ** 2)


def _likeliest(logits, tokens):
    return logits.argmax(dim=-1)


def _second(logits, tokens):
    return logits.topk(2).indices[:, 1]


def _new_one(logits, tokens):
    return logits.scatter(-1, tokens, -INF).argmax(dim=-1)


@exercise(
    "03.generate",
    points=2,
    cases=[
        (_toy_model, torch.tensor([[1, 2, 3]]), 4, _likeliest),
        (_toy_model, torch.tensor([[5, 2], [0, 6]]), 3, _second),
        (_toy_model, torch.tensor([[4]]), 5, _new_one),
    ],
    hints=[
        "Repeat max_new_tokens times: ask next_logits(tokens), choose, append.",
        "choose(logits, tokens) gives (B,); chosen[:, None] is a column (B, 1).",
        "torch.cat([tokens, chosen[:, None]], dim=1) appends it.",
    ],
)
def generate(next_logits, tokens, max_new_tokens, choose):
    """The prompts (B, T) and max_new_tokens chosen tokens after each, (B, T + max_new_tokens)."""
    for _ in range(max_new_tokens):
        chosen = choose(next_logits(tokens), tokens)  # (B, V) -> (B,)
        tokens = torch.cat([tokens, chosen[:, None]], dim=1)
    return tokens


generate.mistake(
    "right, but without the prompt: return the whole text",
    lambda ask, tokens, n, choose: generate(ask, tokens, n, choose)[:, tokens.shape[1] :],
)
generate.mistake(
    "one token too many",
    lambda ask, tokens, n, choose: generate(ask, tokens, n + 1, choose),
)
generate.mistake(
    "one token is missing",
    lambda ask, tokens, n, choose: generate(ask, tokens, n - 1, choose),
)
generate.mistake(
    "`choose` decides, not always the likeliest token",
    lambda ask, tokens, n, choose: generate(ask, tokens, n, _likeliest),
)


@generate.mistake("the model was asked about the prompt each time: append before you ask again")
def _asks_the_prompt(next_logits, tokens, max_new_tokens, choose):
    prompt = tokens
    for _ in range(max_new_tokens):
        chosen = choose(next_logits(prompt), tokens)
        tokens = torch.cat([tokens, chosen[:, None]], dim=1)
    return tokens


@generate.mistake(
    "the model saw only the newest token: it needs the whole text so far (what can be spared comes "
    "in the next section)"
)
def _asks_the_last(next_logits, tokens, max_new_tokens, choose):
    for _ in range(max_new_tokens):
        chosen = choose(next_logits(tokens[:, -1:]), tokens)
        tokens = torch.cat([tokens, chosen[:, None]], dim=1)
    return tokens


@exercise(
    "03.cache_update",
    points=2,
    cases=[
        (torch.zeros(1, 2, 6, 3), 0, _normal(1, 2, 4, 3)),
        (_normal(2, 1, 5, 4), 3, _normal(2, 1, 1, 4)),
        (_normal(1, 3, 7, 2), 2, _normal(1, 3, 5, 2)),
    ],
    hints=[
        "`new` holds new.shape[2] tokens, so the places are length to length + new.shape[2].",
        "buffer[:, :, start:end] = new writes into the buffer itself; then return buffer.",
    ],
)
def write_behind(buffer, length, new):
    """Write `new` (B, H, T, D) behind the `length` tokens of `buffer` (B, H, room, D)."""
    end = length + new.shape[2]
    buffer[:, :, length:end] = new
    return buffer


def _with(buffer, start, new):
    buffer = buffer.clone()
    buffer[:, :, start : start + new.shape[2]] = new[:, :, : buffer.shape[2] - start]
    return buffer


write_behind.mistake(
    "torch.cat makes a new, longer tensor at every step, and copies all that was there; write into "
    "the buffer instead",
    lambda buffer, length, new: torch.cat([buffer[:, :, :length], new], dim=2),
)
write_behind.mistake(
    "joined behind the whole buffer, empty places included: write into it, from `length` on",
    lambda buffer, length, new: torch.cat([buffer, new], dim=2),
)
write_behind.mistake(
    "that overwrites the oldest tokens: the new ones belong behind the first `length`",
    lambda buffer, length, new: _with(buffer, 0, new),
)
write_behind.mistake(
    "that is the buffer as it was: nothing was written",
    lambda buffer, length, new: buffer,
)
write_behind.mistake(
    "off by one: places are counted from 0, so the first free one is `length`",
    lambda buffer, length, new: _with(buffer, max(0, length - 1), new),
)
write_behind.mistake(
    "only the first of the new tokens is written; a prompt brings many",
    lambda buffer, length, new: _with(buffer, length, new[:, :, :1]),
)


@exercise(
    "03.left_padding",
    points=2,
    cases=[
        (torch.tensor([5, 3]), 5),
        (torch.tensor([1, 4, 2]), 4),
        (torch.tensor([2, 2]), 6),
    ],
    hints=[
        "Text stands in the last `length` places of its row: "
        "torch.arange(longest) >= longest - lengths[:, None].",
        "Count the text so far: mask.cumsum(dim=-1) is 1 at the first token of a text.",
        "At the padding that count minus 1 is -1; .clamp(min=0) makes it 0.",
    ],
)
def left_padding(lengths, longest):
    """Mask, True for text, and positions, 0 at the padding and at a text's first token; (B, T)."""
    mask = torch.arange(longest) >= longest - lengths[:, None]
    positions = (mask.cumsum(dim=-1) - 1).clamp(min=0)
    return mask, positions


def _stacked(mask, positions):
    return torch.stack([mask.long(), positions])


left_padding.mistake(
    "that is padding on the right: the text must end where the next token is due",
    lambda lengths, n: _stacked(
        torch.arange(n) < lengths[:, None],
        torch.minimum(torch.arange(n), lengths[:, None] - 1),
    ),
)
left_padding.mistake(
    "that is padding on the right: the text must end where the next token is due",
    lambda lengths, n: _stacked(
        torch.arange(n) < lengths[:, None], torch.arange(n).expand(len(lengths), -1)
    ),
)
left_padding.mistake(
    "the mask is right. The positions count from the start of the row; they must count from the "
    "start of the text",
    lambda lengths, n: _stacked(
        left_padding(lengths, n)[0], torch.arange(n).expand(len(lengths), -1)
    ),
)
left_padding.mistake(
    "the mask is right, and so are the positions of text; make those of the padding 0, since a "
    "position must not be negative",
    lambda lengths, n: _stacked(
        left_padding(lengths, n)[0], torch.arange(n) - n + lengths[:, None]
    ),
)
left_padding.mistake(
    "the mask is right, and so are the positions of text; make those of the padding 0, since a "
    "position must not be negative",
    lambda lengths, n: _stacked(
        left_padding(lengths, n)[0], left_padding(lengths, n)[0].cumsum(-1) - 1
    ),
)
left_padding.mistake(
    "the mask is right. Positions are counted from 0: the first token of a text has position 0",
    lambda lengths, n: _stacked(
        left_padding(lengths, n)[0], left_padding(lengths, n)[0].cumsum(-1)
    ),
)
left_padding.mistake(
    "turned round: the mask is True for text",
    lambda lengths, n: _stacked(~left_padding(lengths, n)[0], left_padding(lengths, n)[1]),
)
left_padding.mistake(
    "that is the mask; the positions are asked for, too: return mask, positions",
    lambda lengths, n: left_padding(lengths, n)[0],
)


def _choose_by_turns(logits, tokens):
    """One row ends at once, one later, one never: the token depends on row and length."""
    return (tokens.shape[1] * torch.arange(1, len(tokens) + 1)) % 5


@exercise(
    "03.generate_until",
    points=2,
    cases=[
        (_toy_model, torch.tensor([[1, 3], [2, 4], [3, 3]]), 5, _choose_by_turns, 4),
        (_toy_model, torch.tensor([[1, 2, 3], [5, 2, 2]]), 6, _likeliest, 2),
        (_toy_model, torch.tensor([[5, 2], [0, 6]]), 3, _second, 9),
        (_toy_model, torch.tensor([[2]]), 7, _choose_by_turns, 3),
    ],
    hints=[
        "Start from your `generate`, and keep `finished`, (B,), False for every row.",
        "torch.where(finished, end, chosen) writes `end` in the rows that have finished.",
        "After appending: finished = finished | (chosen == end); if finished.all(): break.",
    ],
)
def generate_until(next_logits, tokens, max_new_tokens, choose, end):
    """As `generate`, but a row that has chosen `end` goes on with `end`; all ended: stop."""
    finished = torch.zeros(len(tokens), dtype=torch.bool, device=tokens.device)
    for _ in range(max_new_tokens):
        chosen = choose(next_logits(tokens), tokens)
        chosen = torch.where(finished, end, chosen)
        tokens = torch.cat([tokens, chosen[:, None]], dim=1)
        finished = finished | (chosen == end)
        if finished.all():
            break
    return tokens


def _until(ask, tokens, n, choose, end, stop=torch.all, fill=None, seen=None, keep=True):
    """The reference with one thing changed."""
    finished = torch.zeros(len(tokens), dtype=torch.bool) if seen is None else seen
    for _ in range(n):
        chosen = choose(ask(tokens), tokens)
        chosen = torch.where(finished, end if fill is None else fill, chosen) if keep else chosen
        tokens = torch.cat([tokens, chosen[:, None]], dim=1)
        finished = finished | (chosen == end)
        if stop is not None and stop(finished):
            break
    return tokens


generate_until.mistake(
    "a row that has ended must stay ended: write `end` there, whatever the model would choose",
    lambda *given: _until(*given, keep=False),
)
generate_until.mistake(
    "that stops when the FIRST row has ended, and cuts the others off: wait for all of them",
    lambda *given: _until(*given, stop=torch.any),
)
generate_until.mistake(
    "nothing stops the loop: once all rows have ended, every further pass is wasted",
    lambda *given: _until(*given, stop=None),
)
generate_until.mistake(
    "rows that have ended go on with `end`, not with 0, which is a token like any other",
    lambda *given: _until(*given, fill=0),
)
generate_until.mistake(
    "an `end` in the prompt ends nothing (a chat has one after every turn): look only at what is "
    "chosen",
    lambda ask, tokens, n, choose, end: _until(
        ask, tokens, n, choose, end, seen=(tokens == end).any(dim=1)
    ),
)
generate_until.mistake(
    "that is `generate`: the rows go on after `end`, and nothing stops the loop",
    lambda ask, tokens, n, choose, end: generate(ask, tokens, n, choose),
)
generate_until.mistake(
    "right, but without the prompt: return the whole text",
    lambda ask, tokens, n, choose, end: generate_until(ask, tokens, n, choose, end)[
        :, tokens.shape[1] :
    ],
)


@exercise(
    "03.keep_top_p",
    points=2,
    cases=[
        (torch.tensor([0.5, 0.25, 0.15, 0.1]).log(), 0.8),
        (torch.tensor([[0.1, 0.2, 0.7], [0.3, 0.3001, 0.3999]]).log(), 0.5),
        (2 * _normal(3, 9), 0.9),
        (torch.tensor([-1.0, 3.0, 0.5, 2.0]), 0.99),
    ],
    hints=[
        "Sort the logits in descending order, take their softmax, and cumsum it.",
        "A token is kept if the tokens BEFORE it hold less than p: cumsum minus its own share.",
        "The smallest logit that is kept is a threshold. Fill what lies below it with -inf.",
    ],
)
def keep_top_p(logits, p):
    """Minus infinity for all but the fewest likeliest tokens that hold p, and ties; (..., V)."""
    ordered = logits.sort(dim=-1, descending=True).values
    shares = ordered.softmax(dim=-1)
    before = shares.cumsum(dim=-1) - shares  # what the likelier tokens hold together
    threshold = ordered.masked_fill(before >= p, float("inf")).amin(dim=-1, keepdim=True)
    return logits.masked_fill(logits < threshold, float("-inf"))


def _reached(logits, p):
    """Only tokens with which the sum stays at most p, without the one that crosses it."""
    ordered = logits.sort(dim=-1, descending=True).values
    kept = ordered.softmax(-1).cumsum(-1) <= p
    threshold = ordered.masked_fill(~kept, INF).amin(-1, keepdim=True)
    return logits.masked_fill(logits < threshold, -INF)


keep_top_p.mistake(
    "the token that crosses p is missing; where one token has more than p, nothing is left",
    _reached,
)
keep_top_p.mistake(
    "that goes through the tokens as they stand: sort them by probability first",
    lambda logits, p: logits.masked_fill(
        logits.softmax(-1).cumsum(-1) - logits.softmax(-1) >= p, -INF
    ),
)


def _mask_of_sorted(logits, p):
    """The mask of the sorted tokens, laid over the tokens as they stand."""
    shares = logits.sort(dim=-1, descending=True).values.softmax(-1)
    return logits.masked_fill(shares.cumsum(-1) - shares >= p, -INF)


def _ascending(logits, p):
    ordered, order = logits.sort(dim=-1)
    shares = ordered.softmax(-1)
    ordered = ordered.masked_fill(shares.cumsum(-1) - shares >= p, -INF)
    return torch.empty_like(ordered).scatter(-1, order, ordered)


keep_top_p.mistake(
    "your mask belongs to the SORTED tokens, but `logits` are not sorted: turn the smallest logit "
    "that is kept into a threshold, or scatter the sorted logits back to their places",
    _mask_of_sorted,
)
keep_top_p.mistake(
    "sorted from the smallest up, so you kept the unlikeliest tokens: sort with descending=True",
    _ascending,
)
keep_top_p.mistake(
    "the right tokens, but a logit of 0 forbids nothing: use minus infinity",
    lambda logits, p: logits.masked_fill(keep_top_p(logits, p) == -INF, 0.0),
)
keep_top_p.mistake(
    "those are probabilities; logits were asked for, so that a softmax can follow",
    lambda logits, p: keep_top_p(logits, p).softmax(-1),
)
keep_top_p.mistake(
    "that is what falls away; keep the likeliest tokens",
    lambda logits, p: logits.masked_fill(keep_top_p(logits, p) > -INF, -INF),
)
keep_top_p.mistake(
    "the right logits, but sorted; each must stay in the place of its token",
    lambda logits, p: keep_top_p(logits, p).sort(dim=-1, descending=True).values,
)
keep_top_p.mistake(
    "that keeps each token that has at least p by itself; it is the sum that must reach p",
    lambda logits, p: logits.masked_fill(logits.softmax(-1) < p, -INF),
)


@exercise(
    "03.repetition_penalty",
    points=1,
    cases=[
        (torch.tensor([[2.0, -1.0, 0.5, -3.0]]), torch.tensor([[0, 1]]), 2.0),
        (torch.tensor([[1.0, -4.0], [-2.0, 3.0]]), torch.tensor([[1, 1, 1], [0, 1, 1]]), 1.5),
        (torch.tensor([[3.0, 1.0, -2.0]]), torch.tensor([[2]]), 1.3),
    ],
    hints=[
        "What does dividing -4 by 2 do to it? Is the token less likely then?",
        "logits.gather(-1, tokens) are the logits of the tokens that have occurred, (B, T).",
        "torch.where(seen < 0, seen * penalty, seen / penalty), and scatter puts them back.",
    ],
)
def penalize_repetition(logits, tokens, penalty):
    """Tokens that have occurred: a positive logit is divided, a negative one multiplied; (B, V)."""
    seen = logits.gather(-1, tokens)  # (B, T)
    lowered = torch.where(seen < 0, seen * penalty, seen / penalty)
    return logits.scatter(-1, tokens, lowered)


penalize_repetition.mistake(
    "as in the first paper: dividing a negative logit makes its token likelier",
    lambda logits, tokens, p: logits.scatter(-1, tokens, logits.gather(-1, tokens) / p),
)
penalize_repetition.mistake(
    "that is a presence penalty, which subtracts; this one scales",
    lambda logits, tokens, p: logits.scatter(-1, tokens, logits.gather(-1, tokens) - p),
)
penalize_repetition.mistake(
    "reversed: that makes the tokens that have occurred likelier",
    lambda logits, tokens, p: penalize_repetition(logits, tokens, 1 / p),
)


@penalize_repetition.mistake("once only, however often the token has occurred")
def _penalized_each_time(logits, tokens, penalty):
    for column in tokens.split(1, dim=1):
        logits = penalize_repetition(logits, column, penalty)
    return logits


@exercise(
    "03.induction_score",
    points=2,
    cases=[
        (_normal(8, 8).softmax(-1), 4),
        (_normal(2, 3, 10, 10).softmax(-1), 5),
        (_normal(2, 6, 6).softmax(-1), 2),
    ],
    hints=[
        "The query at t stands on the second copy of a token; the first copy is at t - period.",
        "It must look one place further: at t - period + 1, the token that came next.",
        "maps.diagonal(offset, dim1=-2, dim2=-1) with a negative offset goes below the diagonal.",
    ],
)
def induction_score(maps, period):
    """Mean weight of the queries t >= period on the key t - period + 1, (..., T, T) -> (...)."""
    weights = maps.diagonal(1 - period, dim1=-2, dim2=-1)  # keys 0, 1, ...: queries from period - 1
    return weights[..., 1:].mean(dim=-1)


induction_score.mistake(
    "that is the weight on the first copy of the SAME token; what came next stands one place later",
    lambda maps, period: maps.diagonal(-period, dim1=-2, dim2=-1).mean(-1),
)
induction_score.mistake(
    "nearly: the query at period - 1 still belongs to the first copy; leave it out",
    lambda maps, period: maps.diagonal(1 - period, dim1=-2, dim2=-1).mean(-1),
)
induction_score.mistake(
    "that is the weight on the token before the first copy: minus 1 where plus 1 belongs",
    lambda maps, period: maps.diagonal(-period - 1, dim1=-2, dim2=-1).mean(-1),
)
induction_score.mistake(
    "rows are queries and columns are keys; this is the other way",
    lambda maps, period: induction_score(maps.transpose(-2, -1), period),
)
induction_score.mistake(
    "that is the previous-token head again; here the key lies a whole list back",
    lambda maps, period: maps.diagonal(-1, dim1=-2, dim2=-1).mean(-1),
)
induction_score.mistake(
    "one score for each layer and head was asked for: mean over the last dimension only",
    lambda maps, period: induction_score(maps, period).mean(),
)
