"""Answers as learners write them that an exercise's list of mistakes cannot state.

Wrong ones that raise an error, or that come out right in some cases; right ones in NumPy, PyTorch
and single precision. Known mistakes stand beside their exercise, and the faults that any exercise can
have (no `return`, another signature, half precision) are made for all of them in test_classroom.py.
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class WrongAnswer:
    """What a learner wrote in the cell of an exercise, and what must be said of it."""

    exercise: str
    fault: str
    code: str
    says: str  # words of the message
    status: str = "wrong"


WRONG_ANSWERS = [
    WrongAnswer(*fields)
    for fields in [
        (
            "02.cross_attention",
            "looks at itself",
            """
import torch
def cross_attention(x, source, w_q, w_k, w_v):
    q = torch.matmul(x, w_q)
    k = torch.matmul(x, w_k)
    v = torch.matmul(x, w_v)
    return torch.softmax(q @ k.mT * k.shape[-1] ** -0.5, -1) @ v
""",
            "that is self-attention",
        ),
        (
            "02.encoder_block",
            "the second shortcut starts at the input",
            """
def encoder_block(x, attention, feed_forward, norm_1, norm_2):
    mixed = attention(norm_1(x))
    thought = feed_forward(norm_2(x))
    return x + mixed + thought
""",
            "both parts read the old x",
        ),
        (
            "02.encoder_block",
            "the norm stands after the sum",
            """
def encoder_block(x, attention, feed_forward, norm_1, norm_2):
    h = norm_1(attention(x) + x)
    return norm_2(feed_forward(h) + h)
""",
            "that is post-norm",
        ),
        (
            "02.encoder_block",
            "no shortcut",
            """
def encoder_block(x, attention, feed_forward, norm_1, norm_2):
    for part, norm in [(attention, norm_1), (feed_forward, norm_2)]:
        x = part(norm(x))
    return x
""",
            "the shortcut is missing",
        ),
        (
            "02.prefix_mask",
            "the prefix sees all columns",
            """
import torch
def prefix_mask(length, prefix):
    mask = torch.tril(torch.ones(length, length)) > 0
    mask[:prefix] = True
    return mask
""",
            "the prefix sees the text that is still to be written",
        ),
        (
            "02.prefix_mask",
            "a loop that knows only the past",
            """
def prefix_mask(length, prefix):
    return [[s <= t for s in range(length)] for t in range(length)]
""",
            "the prefix must also see itself to the right",
        ),
        (
            "02.shift",
            "cuts rows in place of columns",
            """
def shift(iso):
    inputs = iso[:-1]
    targets = iso[1:]
    return inputs, targets
""",
            "leaves out a row",
        ),
        (
            "02.shift",
            "swaps the two",
            """
import torch
def shift(iso):
    n = iso.shape[1]
    return torch.stack([iso.narrow(1, 1, n - 1), iso.narrow(1, 0, n - 1)])
""",
            "the other way round",
        ),
        (
            "02.influence",
            "rows and columns are swapped",
            """
import torch
def influence(decode, target):
    old = decode(target)
    T = target.shape[1]
    out = torch.zeros(T, T, dtype=torch.bool)
    for s in range(T):
        new = target.clone()
        new[:, s] = (target[:, s] + 2) % old.shape[-1]
        diff = decode(new) - old
        for t in range(T):
            out[s, t] = diff[:, t].abs().max() > 1e-6
    return out
""",
            "transposed",
        ),
        (
            "02.influence",
            "changes the same copy again and again",
            """
import torch
def influence(decode, target):
    old, rows, new = decode(target), [], target.clone()
    for s in range(target.shape[1]):
        new[:, s] = (target[:, s] + 3) % old.shape[-1]
        rows.append((decode(new) - old).abs().amax((0, 2)) > 1e-6)
    return torch.stack(rows, 1)
""",
            "the changes pile up",
        ),
        (
            "03.token_nll",
            "labels not shifted",
            """
import torch.nn.functional as F
def token_nll(logits, tokens):
    return F.cross_entropy(logits, tokens, reduction="none")
""",
            "the output at a position predicts the NEXT token",
        ),
        (
            "03.token_nll",
            "the mean",
            """
import torch.nn.functional as F
def token_nll(logits, tokens):
    return F.cross_entropy(logits[:-1], tokens[1:])
""",
            "this is their mean",
        ),
        (
            "03.token_nll",
            "log of the logits' softmax over positions",
            """
def token_nll(logits, tokens):
    p = logits[:-1].softmax(0)
    return -p.gather(1, tokens[1:, None]).squeeze(1).log()
""",
            "over the vocabulary",
        ),
        (
            "03.token_nll",
            "one step too far",
            """
def token_nll(logits, tokens):
    lp = logits.log_softmax(-1)
    return [-lp[t][tokens[t + 1]] for t in range(len(tokens))]
""",
            "raised IndexError: index 4 is out of bounds",
            "error",
        ),
        (
            "03.generate",
            "only the new tokens",
            """
import torch
def generate(next_logits, tokens, max_new_tokens, choose):
    new = []
    for _ in range(max_new_tokens):
        chosen = choose(next_logits(tokens), tokens)
        new.append(chosen)
        tokens = torch.cat([tokens, chosen[:, None]], dim=1)
    return torch.stack(new, dim=1)
""",
            "without the prompt",
        ),
        (
            "03.generate",
            "argmax in place of choose",
            """
import torch
def generate(next_logits, tokens, max_new_tokens, choose):
    for _ in range(max_new_tokens):
        chosen = next_logits(tokens).argmax(-1, keepdim=True)
        tokens = torch.cat([tokens, chosen], dim=1)
    return tokens
""",
            "`choose` decides",
        ),
        (
            "03.cache_update",
            "torch.cat",
            """
import torch
def write_behind(buffer, length, new):
    return torch.cat([buffer[:, :, :length], new], dim=2)
""",
            "torch.cat makes a new",
        ),
        (
            "03.cache_update",
            "from the first place on",
            """
def write_behind(buffer, length, new):
    buffer[:, :, :new.shape[2]] = new
    return buffer
""",
            "overwrites the oldest",
        ),
        (
            "03.left_padding",
            "padding on the right",
            """
import torch
def left_padding(lengths, longest):
    mask = torch.arange(longest)[None] < lengths[:, None]
    positions = torch.arange(longest).repeat(len(lengths), 1)
    return mask, positions
""",
            "padding on the right",
        ),
        (
            "03.left_padding",
            "positions of the row",
            """
import torch
def left_padding(lengths, longest):
    mask = torch.zeros(len(lengths), longest).bool()
    for row, n in enumerate(lengths):
        mask[row, longest - n:] = True
    return mask, torch.arange(longest).expand_as(mask)
""",
            "count from the start of the text",
        ),
        (
            "03.left_padding",
            "positions from 1",
            """
import torch
def left_padding(lengths, longest):
    mask = torch.arange(longest) >= longest - lengths[:, None]
    return mask, torch.cumsum(mask.int(), 1)
""",
            "counted from 0",
        ),
        (
            "03.generate_until",
            "rows go on after their end",
            """
import torch
def generate_until(next_logits, tokens, max_new_tokens, choose, end):
    finished = torch.zeros(len(tokens)).bool()
    for _ in range(max_new_tokens):
        chosen = choose(next_logits(tokens), tokens)
        tokens = torch.cat([tokens, chosen[:, None]], dim=1)
        finished |= chosen == end
        if finished.all():
            return tokens
    return tokens
""",
            "must stay ended",
        ),
        (
            "03.generate_until",
            "stops with the first row",
            """
import torch
def generate_until(next_logits, tokens, max_new_tokens, choose, end):
    for _ in range(max_new_tokens):
        chosen = choose(next_logits(tokens), tokens)
        tokens = torch.cat([tokens, chosen[:, None]], dim=1)
        if end in chosen:
            break
    return tokens
""",
            "when the FIRST row has ended",
        ),
        (
            "03.generate_until",
            "never stops",
            """
import torch
def generate_until(next_logits, tokens, max_new_tokens, choose, end):
    finished = torch.zeros(len(tokens), dtype=torch.bool)
    for _ in range(max_new_tokens):
        chosen = choose(next_logits(tokens), tokens)
        chosen[finished] = end
        finished = finished | (chosen == end)
        tokens = torch.cat([tokens, chosen[:, None]], dim=1)
    return tokens
""",
            "nothing stops the loop",
        ),
        (
            "03.keep_top_p",
            "the sorted mask on unsorted logits",
            """
import torch
def keep_top_p(logits, p):
    q = logits.softmax(-1).sort(-1, descending=True).values
    return logits.masked_fill(q.cumsum(-1) - q >= p, -torch.inf)
""",
            "belongs to the SORTED tokens",
        ),
        (
            "03.keep_top_p",
            "sorted from the smallest up",
            """
import torch
def keep_top_p(logits, p):
    ordered, order = logits.sort(-1)
    q = ordered.softmax(-1)
    ordered[q.cumsum(-1) - q >= p] = -torch.inf
    return torch.empty_like(ordered).scatter(-1, order, ordered)
""",
            "descending=True",
        ),
        (
            "03.keep_top_p",
            "leaves out the token that crosses p",
            """
import torch
def keep_top_p(logits, p):
    ordered, order = torch.sort(logits, dim=-1, descending=True)
    gone = torch.cumsum(torch.softmax(ordered, -1), -1) > p
    ordered = ordered.masked_fill(gone, -torch.inf)
    return torch.zeros_like(logits).scatter(-1, order, ordered)
""",
            "the token that crosses p is missing",
        ),
        (
            "03.keep_top_p",
            "not put back in place",
            """
import torch
def keep_top_p(logits, p):
    ordered = logits.sort(descending=True).values
    q = ordered.softmax(-1)
    ordered[q.cumsum(-1) - q >= p] = -torch.inf
    return ordered
""",
            "must stay in the place of its token",
        ),
        (
            "03.repetition_penalty",
            "divides negative logits, too",
            """
import torch
def penalize_repetition(logits, tokens, penalty):
    out = logits.clone()
    for row, seen in zip(out, tokens):
        row[seen.unique()] /= penalty
    return out
""",
            "dividing a negative logit makes its token likelier",
        ),
        (
            "03.repetition_penalty",
            "as often as the token was seen",
            """
def penalize_repetition(logits, tokens, penalty):
    for row, seen in zip(logits, tokens):
        for t in seen:
            row[t] = row[t] / penalty if row[t] > 0 else row[t] * penalty
    return logits
""",
            "once only, however often the token has occurred",
        ),
        (
            "03.induction_score",
            "the first copy itself",
            """
import torch
def induction_score(maps, period):
    T = maps.shape[-1]
    t = torch.arange(period, T)
    return maps[..., t, t - period].mean(-1)
""",
            "the first copy of the SAME token",
        ),
        (
            "03.induction_score",
            "one number for the whole model",
            """
import torch
def induction_score(maps, period):
    t = torch.arange(period, maps.shape[-1])
    return maps[..., t, t - period + 1].mean()
""",
            "one score for each layer and head",
        ),
        (
            "04.rms_norm",
            "takes the mean off",
            """
def rms_norm(x, weight, eps):
    x = x - x.mean(dim=-1, keepdim=True)
    return x / (x.pow(2).mean(dim=-1, keepdim=True) + eps).sqrt() * weight
""",
            "takes the mean off first",
        ),
        (
            "04.rms_norm",
            "forgets the root",
            """
def rms_norm(x, weight, eps):
    return x / ((x * x).mean(-1, keepdim=True) + eps) * weight
""",
            "the root is missing",
        ),
        (
            "04.rms_norm",
            "one size for the whole batch",
            """
import torch
def rms_norm(x, weight, eps):
    return x * torch.rsqrt((x ** 2).mean() + eps) * weight
""",
            "the mean runs over the last dimension only",
        ),
        (
            "04.rms_norm",
            "forgets keepdim",
            """
def rms_norm(x, weight, eps):
    return weight * x / (x.square().mean(-1) + eps).sqrt()
""",
            "raised RuntimeError",
            "error",
        ),
        (
            "04.rotate",
            "uses the new value for the second half",
            """
import torch
def rotate(x, cos, sin):
    n = x.shape[-1] // 2
    x = x.clone()
    x[..., :n] = x[..., :n] * cos - x[..., n:] * sin
    x[..., n:] = x[..., n:] * cos + x[..., :n] * sin
    return x
""",
            "the old first half",
        ),
        (
            "04.rotate",
            "neighbours",
            """
import torch
def rotate(x, cos, sin):
    z = torch.view_as_complex(x.unflatten(-1, (-1, 2)).contiguous()) * torch.complex(cos, sin)
    return torch.view_as_real(z).flatten(-2)
""",
            "Meta's order",
        ),
        (
            "04.rotate",
            "the sign of rotate_half",
            """
import torch
def rotate(x, cos, sin):
    x1, x2 = x.chunk(2, -1)
    cos, sin = torch.cat([cos, cos], -1), torch.cat([sin, sin], -1)
    return x * cos + torch.cat([x2, -x1], -1) * sin
""",
            "turned the other way",
        ),
        (
            "04.shared_heads",
            "repeat",
            """
import torch
def share_heads(kv, query_heads):
    return torch.cat([kv] * (query_heads // kv.shape[1]), dim=1)
""",
            "`repeat` for `repeat_interleave`",
        ),
        (
            "04.shared_heads",
            "repeats each as often as there are heads",
            """
def share_heads(kv, query_heads):
    return kv.repeat_interleave(query_heads, 1)
""",
            "how many there are afterwards",
        ),
        (
            "04.swiglu",
            "the sigmoid for silu",
            """
import torch
def swiglu(x, gate_proj, up_proj, down_proj):
    return down_proj(torch.sigmoid(gate_proj(x)) * up_proj(x))
""",
            "that is the plain sigmoid",
        ),
        (
            "04.swiglu",
            "gate and up exchanged",
            """
import torch
def swiglu(x, gate_proj, up_proj, down_proj):
    up = up_proj(x)
    return down_proj(gate_proj(x) * up * torch.sigmoid(up))
""",
            "the activation belongs on the gate",
        ),
        (
            "04.block",
            "post-norm",
            """
def llama_block(x, input_layernorm, self_attn, post_attention_layernorm, mlp):
    h = input_layernorm(self_attn(x) + x)
    return post_attention_layernorm(mlp(h) + h)
""",
            "the norm stands on the stream",
        ),
        (
            "04.block",
            "adds to the old x",
            """
def llama_block(x, input_layernorm, self_attn, post_attention_layernorm, mlp):
    h = self_attn(input_layernorm(x))
    return x + h + mlp(post_attention_layernorm(x))
""",
            "side by side, as in GPT-J",
        ),
        (
            "04.to_halves",
            "across the heads",
            """
import torch
def to_halves(weight, heads):
    n = len(weight)
    return weight[torch.tensor([*range(0, n, 2), *range(1, n, 2)])]
""",
            "within each head",
        ),
        (
            "04.to_halves",
            "the way back",
            """
def to_halves(weight, heads):
    d = len(weight) // heads
    return weight.view(heads, 2, d // 2, -1).transpose(1, 2).reshape(heads * d, -1)
""",
            "that is the way back",
        ),
        (
            "04.in_halves",
            "turned round",
            """
def in_halves(weight, heads):
    n = weight.norm(dim=1).log().view(heads, -1)
    half = n.shape[1] // 2
    return bool((n[:, :half] - n[:, half:]).abs().mean() > (n[:, ::2] - n[:, 1::2]).abs().mean())
""",
            "turned round",
        ),
        (
            "05.count_parameters",
            "keys and values as wide as queries",
            """
def count_parameters(config):
    c = config.hidden_size
    q = config.num_attention_heads * config.head_dim
    per_block = 4 * c * q + 3 * c * config.intermediate_size + 2 * c
    tables = config.vocab_size * c * (1 if config.tie_word_embeddings else 2)
    return tables + per_block * config.num_hidden_layers + c
""",
            "keys and values have fewer heads",
        ),
        (
            "05.learning_rate",
            "falls to zero",
            """
import math
def learning_rate(step, steps, peak, warmup):
    if step < warmup:
        return peak * (step + 1) / warmup
    t = (step - warmup) / (steps - warmup)
    return peak * 0.5 * (1 + math.cos(math.pi * t))
""",
            "stops at a tenth",
        ),
        (
            "05.clip_factor",
            "lengthens short gradients",
            """
import torch
def clip_factor(gradients, limit):
    flat = torch.cat([g.flatten() for g in gradients])
    return limit / flat.norm()
""",
            "never more than 1",
        ),
        (
            "05.bytes_per_gpu",
            "shares out everything at once",
            """
def bytes_per_gpu(parameters, gpus, stage):
    return 16 * parameters / gpus
""",
            "shares out everything in every stage",
        ),
        (
            "05.utilization",
            "forgets the backward pass",
            """
def utilization(parameters, tokens, gpu_hours, peak):
    return 2 * parameters * tokens / (gpu_hours * 3600) / peak
""",
            "six for each parameter",
        ),
        (
            "05.cheapest_size",
            "looks at training only",
            """
import torch
from llama_int8.lessons.n05.measurements import tokens_needed
def cheapest_size(loss, served):
    sizes = torch.logspace(8, 13, 80_001, dtype=torch.float64)
    return float(sizes[(sizes * tokens_needed(sizes, loss)).argmin()])
""",
            "the cheapest training",
        ),
        (
            "05.dpo_loss",
            "leaves the reference out",
            """
import torch
def dpo_loss(chosen, rejected, ref_chosen, ref_rejected, beta):
    return -torch.log(torch.sigmoid(beta * (chosen - rejected))).mean()
""",
            "the reference is missing",
        ),
        (
            "06.absmax",
            "the largest code is 128, and nothing clips it",
            """
import torch
def absmax(x, bits):
    scale = x.abs().max() / 2 ** (bits - 1)
    return torch.round(x / scale.clamp(min=1e-12)) * scale
""",
            "+128 does not fit an int8",
        ),
        (
            "06.absmax",
            "zeros alone are divided by 0",
            """
def absmax(x, bits):
    scale = x.abs().max() / (2 ** (bits - 1) - 1)
    return (x / scale).round() * scale
""",
            "a tensor of zeros must stay one",
        ),
        (
            "06.absmax",
            "the codes are cast without being rounded",
            """
import torch
def absmax(x, bits):
    scale = x.abs().max().clamp(min=1e-9) / (2 ** (bits - 1) - 1)
    return (x / scale).to(torch.int8) * scale
""",
            "that cuts towards zero",
        ),
        (
            "06.absmax",
            "8 bits whatever `bits` is",
            """
def absmax(x, bits=8):
    scale = x.abs().max().clamp(min=1e-9) / 127
    return scale * (x / scale).round()
""",
            "`bits` decides the largest code",
        ),
        (
            "06.absmax_rows",
            "the maximum over the wrong dimension",
            """
def absmax_rows(W, bits):
    scale = W.abs().amax(0) / (2 ** (bits - 1) - 1)
    return (W / scale).round() * scale
""",
            "the row's maximum is taken over dim=-1",
        ),
        (
            "06.absmax_groups",
            "forgets to give the shape back",
            """
def absmax_groups(W, bits, size):
    g = W.view(-1, size)
    s = g.abs().amax(1, keepdim=True) / (2 ** (bits - 1) - 1)
    return (g / s).round() * s
""",
            ".view_as(W) gives the shape back",
        ),
        (
            "06.affine",
            "the range is not widened",
            """
def affine(x, bits):
    n = 2 ** bits - 1
    s = (x.max() - x.min()) / n
    z = (-x.min() / s).round()
    return s * (((x / s).round() + z).clamp(0, n) - z)
""",
            "widen the range until it holds 0",
        ),
        (
            "06.affine",
            "as many steps as codes",
            """
def affine(x, bits):
    low, high = x.min().clamp(max=0), x.max().clamp(min=0)
    s = (high - low) / 2 ** bits
    z = (-low / s).round()
    q = ((x / s).round() + z).clamp(0, 2 ** bits)
    return (q - z) * s
""",
            "as fence posts have gaps",
        ),
        (
            "06.dequantize_rows",
            "scales along the columns",
            """
def dequantize_rows(CB, SCB):
    return CB * SCB[: CB.shape[1]] / 127
""",
            "SCB.unsqueeze(1)",
        ),
        (
            "06.dequantize_rows",
            "no division by 127",
            """
def dequantize_rows(CB, SCB):
    return SCB[:, None] * CB
""",
            "divide by 127",
        ),
        (
            "06.integer_product",
            "forgets the last term",
            """
def integer_product(a, b, p, q):
    return a @ b.T - q * a.sum(1, keepdim=True) - p * b.sum(1) + p * q
""",
            "in each of the K terms",
        ),
        (
            "06.integer_product",
            "crosses the zero points",
            """
def integer_product(a, b, p, q):
    return (a - q) @ (b - p).T
""",
            "crossed: p is the zero point of a",
        ),
        (
            "06.best_clip",
            "nothing is cut off",
            """
def best_clip(x, bits, shares):
    best, top = None, 2 ** (bits - 1) - 1
    for share in shares:
        s = x.abs().max() * share / top
        error = (((x / s).round() * s - x) ** 2).mean()
        if best is None or error < best[0]:
            best = error, share
    return best[1]
""",
            "codes beyond top do not exist",
        ),
        (
            "06.four_bits",
            "one share for all groups",
            """
def four_bits(W, bits, size, shares):
    g, top = W.view(-1, size), 2 ** (bits - 1) - 1
    tries = []
    for share in shares:
        s = g.abs().amax(1, keepdim=True) * share / top
        tries.append((g / s).round().clamp(-top, top) * s)
    return min(tries, key=lambda t: (t - g).square().sum()).view_as(W)
""",
            "each group has its own best one",
        ),
        (
            "00.int8_bytes",
            "in MB",
            """
def int8_bytes(rows, columns):
    return (rows * columns + 4 * rows) / 1e6
""",
            "int8_bytes(1536, 576) gives 0.89088, expected 890880",
        ),
        (
            "01.attention",
            "transposes all dimensions",
            """
def attention(q, k, v, mask=None):
    return (q @ k.T / q.shape[-1] ** 0.5).softmax(-1) @ v
""",
            "raised ",
            "error",
        ),
        (
            "01.split_heads",
            "a dimension too few",
            """
def split_heads(x, heads):
    return x.unflatten(-1, (heads, -1)).transpose(1, 2).flatten(0, 1)
""",
            "split_heads(",
        ),
        (
            "01.padding_mask",
            "rows end where the text ends",
            """
def padding_mask(lengths, longest):
    return [[True] * int(n) for n in lengths]
""",
            "padding_mask(tensor([7, 4]), 7) gives [[True, True, True, True, True, True, True], [True, ",
        ),
        (
            "06.spacing",
            "the difference to nextafter, whatever the format",
            """
import numpy as np
def spacing(x, mantissa_bits):
    x32 = np.float32(x)
    return abs(float(np.nextafter(x32, np.float32(np.inf)) - x32))
""",
            "spacing(1.0, 7) gives 1.1920928955078125e-07, expected 0.0078125",
        ),
        (
            "10.round_in_groups",
            "still in groups",
            """
def round_in_groups(x, size):
    groups = x.unflatten(1, (-1, size))
    scale = groups.abs().amax(-1, keepdim=True).clamp(min=1e-30) / 127
    return (groups / scale).round() * scale
""",
            "gives tensor([[[",
        ),
    ]
]


RIGHT_ANSWERS = [  # (exercise, code) that differ from the reference in kind and in rounding
    (
        "03.token_nll",
        """
import torch.nn.functional as F
def token_nll(logits, tokens):
    return F.cross_entropy(logits[:-1], tokens[1:], reduction="none")
""",
    ),
    (
        "03.left_padding",
        """
import torch
def left_padding(lengths, longest):
    positions = torch.arange(longest) - (longest - lengths[:, None])
    return torch.stack([(positions >= 0).long(), torch.relu(positions)])
""",
    ),
    (
        "03.generate_until",
        """
import torch
def generate_until(next_logits, tokens, max_new_tokens, choose, end):
    going = [True] * len(tokens)
    while max_new_tokens and any(going):
        chosen = choose(next_logits(tokens), tokens).tolist()
        chosen = [token if on else end for token, on in zip(chosen, going)]
        going = [on and token != end for token, on in zip(chosen, going)]
        tokens = torch.cat([tokens, torch.tensor(chosen)[:, None]], 1)
        max_new_tokens -= 1
    return tokens
""",
    ),
    (
        "03.keep_top_p",
        """
import torch
def keep_top_p(logits, p):
    ordered, order = logits.sort(dim=-1, descending=True, stable=True)
    q = ordered.softmax(-1)
    ordered[q.cumsum(-1) - q >= p] = -torch.inf
    return torch.empty_like(ordered).scatter(-1, order, ordered)
""",
    ),
    (
        "03.induction_score",
        """
import torch
def induction_score(maps, period):
    t = torch.arange(period, maps.shape[-1])
    return maps[..., t, t - period + 1].mean(-1)
""",
    ),
    (
        "04.rms_norm",
        """
import torch
def rms_norm(x, weight, eps):
    return torch.nn.functional.rms_norm(x, x.shape[-1:], weight, eps)
""",
    ),
    (
        "04.rotate",
        """
import torch
def rotate(x, cos, sin):
    first, second = x.chunk(2, -1)
    twice = lambda t: torch.cat([t, t], -1)
    return x * twice(cos) + torch.cat([-second, first], -1) * twice(sin)
""",
    ),
    (
        "04.to_halves",
        """
import torch
def to_halves(weight, heads):
    d = len(weight) // heads
    order = torch.arange(d).view(-1, 2).T.reshape(-1)
    return torch.cat([weight[h * d : (h + 1) * d][order] for h in range(heads)])
""",
    ),
    (
        "04.in_halves",
        """
def in_halves(weight, heads):
    n = weight.norm(dim=1).log().view(heads, -1)
    half = n.shape[1] // 2
    return (n[:, :half] - n[:, half:]).abs().mean() < (n[:, ::2] - n[:, 1::2]).abs().mean()
""",
    ),
    (
        "05.clip_factor",
        """
import torch
def clip_factor(gradients, limit):
    norm = torch.linalg.vector_norm(torch.stack([g.norm() for g in gradients]))
    return float(torch.minimum(torch.tensor(1.0), limit / norm))
""",
    ),
    (
        "05.cheapest_size",
        """
import numpy as np
import torch
from llama_int8.lessons.n05.measurements import tokens_needed
def cheapest_size(loss, served):
    sizes = np.geomspace(1e8, 1e13, 80_000)
    tokens = tokens_needed(torch.from_numpy(sizes), loss).numpy()
    return sizes[np.argmin(6 * sizes * tokens + 2 * sizes * served)]
""",
    ),
    (
        "05.dpo_loss",
        """
import torch
def dpo_loss(chosen, rejected, ref_chosen, ref_rejected, beta):
    ratio = (chosen - rejected) - (ref_chosen - ref_rejected)
    return torch.log1p(torch.exp(-beta * ratio)).mean()
""",
    ),
    (
        "06.absmax",
        """
import torch
def absmax(x, bits):
    top = 2 ** (bits - 1) - 1
    largest = torch.linalg.vector_norm(x.double(), ord=float("inf"))
    s = torch.clamp(largest, min=1e-9) / top
    return torch.round(x.double() / s) * s
""",
    ),
    (
        "06.absmax_groups",
        """
import torch
def absmax_groups(W, bits, size):
    out = torch.empty_like(W)
    for i in range(0, W.shape[1], size):
        part = W[:, i : i + size]
        s = part.abs().max(dim=1, keepdim=True).values / (2 ** (bits - 1) - 1)
        out[:, i : i + size] = torch.round(part / s) * s
    return out
""",
    ),
    (
        "06.affine",
        """
def affine(x, bits):
    low, high = min(float(x.min()), 0.0), max(float(x.max()), 0.0)
    s, lowest = (high - low) / (2 ** bits - 1), -(2 ** (bits - 1))
    z = lowest - round(low / s)                                     # signed codes
    return (((x / s).round() + z).clamp(lowest, -lowest - 1) - z) * s
""",
    ),
    (
        "06.integer_product",
        """
def integer_product(a, b, p, q):
    return (a - p) @ (b - q).T
""",
    ),
    (
        "01.attention",
        """
import math, torch
def attention(q, k, v, mask=None):                                  # mask added, einsum
    scores = torch.einsum("...td,...sd->...ts", q, k) / math.sqrt(k.shape[-1])
    if mask is not None:
        scores = scores + torch.zeros(mask.shape).masked_fill(mask.logical_not(), -math.inf)
    return torch.softmax(scores, dim=-1).matmul(v)
""",
    ),
    (
        "01.causal_mask",
        """
import torch
def causal_mask(length):
    t = torch.arange(length)
    return t[None, :] <= t[:, None]
""",
    ),
    (
        "01.find_the_bug",
        """
import torch
def causal_weights(scores):
    allowed = torch.ones(scores.shape[-2:]).tril() == 1
    weights = torch.where(allowed, scores, -torch.inf).exp()
    return weights / weights.sum(-1, keepdim=True)
""",
    ),
    (
        "01.split_heads",
        """
def split_heads(x, heads):
    B, T, C = x.shape
    return x.view(B, T, heads, C // heads).permute(0, 2, 1, 3)
""",
    ),
    (
        "01.padding_mask",
        """
import numpy as np
def padding_mask(lengths, longest):
    return (np.arange(longest)[None, :] < np.array(lengths)[:, None])[:, None, None]
""",
    ),
    (
        "02.cross_attention",
        """
import torch
def cross_attention(x, source, w_q, w_k, w_v):
    return torch.nn.functional.scaled_dot_product_attention(x @ w_q, source @ w_k, source @ w_v)
""",
    ),
    (
        "06.spacing",
        """
import math
def spacing(x, mantissa_bits):
    return math.ldexp(1, math.floor(math.log2(abs(x))) - mantissa_bits)
""",
    ),
    (
        "07.llm_int8",
        """
import torch
def llm_int8(x, CB, SCB, threshold):
    big = x.abs() >= threshold
    columns = big.any(0)
    small = torch.where(big, 0, x)
    SCA = small.abs().amax(1, keepdim=True).clamp(min=1e-9)
    CA = torch.where(columns, 0, (small * 127 / SCA).round())
    y = (CA @ CB.float().T) * (SCA * SCB / 127 ** 2)
    return y + x[:, columns] @ (CB[:, columns] * (SCB / 127)[:, None]).T
""",
    ),
    (
        "07.kept_share",
        """
def kept_share(x, threshold):
    return (x.abs() >= threshold).any(0).float().mean()
""",
    ),
    (
        "07.smoothing",
        """
import torch
def smoothing(x_absmax, w_absmax, alpha):
    return torch.exp(alpha * torch.log(x_absmax) - (1 - alpha) * torch.log(w_absmax))
""",
    ),
    (
        "08.interval",
        """
import numpy as np
def interval(differences):
    from scipy.stats import t
    d = np.array(differences)
    return d.mean() + t.ppf([0.025, 0.975], len(d) - 1) * d.std(ddof=1) / np.sqrt(len(d))
""",
    ),
    (
        "10.pairs_fit",
        """
import numpy as np
def pairs_fit(largest_weight, largest_code):
    return np.int64(largest_weight) * largest_code * 2 <= np.iinfo(np.int16).max
""",
    ),
    (
        "09.merge",
        """
import torch
def merge(first, second):
    m, l, o = (torch.stack(both) for both in zip(first, second))
    f = torch.exp(m - m.amax(0))
    return m.amax(0), (f * l).sum(0), (f * o).sum(0)
""",
    ),
    (
        "09.sees",
        """
import torch
def sees(query, key, queries, keys):
    return torch.ones(queries, keys).tril(keys - queries)[query, key].bool()
""",
    ),
]
