"""A collection of wrong answers as learners write them, each with the words that help.

They are neither the exercises' references nor their known `mistakes` in other clothes: their own code,
in the styles that a class hands in (loops, NumPy, PyTorch), with one plausible fault each.
`test_grading.py` demands of every one its status and its words.
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
        # --- 00
        (
            "00.int8_bytes",
            "the scales are counted as 32, in bits",
            """
def int8_bytes(rows, columns):
    weights = rows * columns      # 1 byte
    scales = rows * 32            # float32
    return weights + scales
""",
            "32 bits are four bytes",
        ),
        (
            "00.int8_bytes",
            "one scale a column",
            """
import numpy as np
def int8_bytes(rows, columns):
    W = np.empty((rows, columns), dtype=np.int8)
    absmax = np.empty(W.shape[1], dtype=np.float32)
    return W.nbytes + absmax.nbytes
""",
            "the scales belong to the rows, not to the columns",
        ),
        (
            "00.int8_bytes",
            "prints and returns nothing",
            """
def int8_bytes(rows: int, columns: int) -> int:
    total = rows*columns + rows*4
    print(total)
""",
            "`return` the result; print() only shows it",
        ),
        (
            "00.int8_bytes",
            "takes a shape in place of two numbers",
            """
def int8_bytes(shape):
    r, c = shape
    return r * c + 4 * r
""",
            "takes 1 positional argument but 2 were given",
            "error",
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
        # --- 01
        (
            "01.attention_row",
            "divides by d_k",
            """
import torch
def attention_row(dots, d_k):
    s = torch.tensor(dots, dtype=torch.float64) / d_k
    return torch.softmax(s, dim=0).tolist()
""",
            "divide by the square root of d_k, not by d_k",
        ),
        (
            "01.attention_row",
            "multiplies by the root",
            """
import numpy as np
def attention_row(dots, d_k):
    z = np.array(dots) * np.sqrt(d_k)
    e = np.exp(z - z.max())
    return list(e / e.sum())
""",
            "divide by the square root of d_k; this multiplies",
        ),
        (
            "01.attention_row",
            "divides by the root after the softmax",
            """
import numpy as np
def attention_row(dots, d_k):
    e = np.exp(np.array(dots) - max(dots))
    return (e / e.sum()) / d_k ** 0.5
""",
            "scale the scores, before the softmax",
        ),
        (
            "01.attention_row",
            "divides by the sum of the scores",
            """
def attention_row(dots, d_k):
    scaled = [d / d_k ** 0.5 for d in dots]
    total = sum(scaled)
    return [s / total for s in scaled]
""",
            "raised ZeroDivisionError",
            "error",
        ),
        (
            "01.additive_mask",
            "ones to add instead of minus infinity",
            """
import numpy as np
def additive_mask(length):
    return np.tril(np.ones((length, length))).tolist()
""",
            "zeros and ones are a multiplicative mask",
        ),
        (
            "01.additive_mask",
            "minus a thousand million",
            """
import torch
def additive_mask(length):
    m = torch.zeros(length, length)
    m[torch.triu(torch.ones(length, length), diagonal=1).bool()] = -1e9
    return m
""",
            "overflows FP16",
        ),
        (
            "01.additive_mask",
            "multiplies 0 by infinity",
            """
import numpy as np
def additive_mask(length):
    return np.triu(np.ones((length, length)), 1) * -np.inf
""",
            "0 times infinity is nan",
        ),
        (
            "01.additive_mask",
            "the diagonal is forbidden, too",
            """
import torch
def additive_mask(length):
    full = torch.full((length, length), float("-inf"))
    return torch.triu(full, diagonal=0).tolist()
""",
            "a token may look at itself",
        ),
        (
            "01.find_the_bug",
            "normalises the columns",
            """
import torch
def causal_weights(scores):
    s = torch.tensor(scores, dtype=torch.float64)
    n = len(scores)
    s[torch.triu(torch.ones(n, n), 1) == 1] = float('-inf')
    return s.softmax(dim=0).tolist()
""",
            "each row must sum to 1",
        ),
        (
            "01.find_the_bug",
            "masks the past",
            """
import torch
def causal_weights(scores):
    s = torch.tensor(scores, dtype=torch.float64)
    past = torch.ones_like(s).tril(-1).bool()
    return torch.softmax(s.masked_fill(past, -torch.inf), -1).tolist()
""",
            "turned round: each token would see its future and not its past",
        ),
        (
            "01.padding_mask",
            "pads on the left",
            """
def padding_rows(lengths, longest):
    out = []
    for n in lengths:
        out.append([False] * (longest - n) + [True] * n)
    return out
""",
            "that is padding on the left",
        ),
        (
            "01.padding_mask",
            "rows end where the text ends",
            """
def padding_rows(lengths, longest):
    return [[True] * n for n in lengths]
""",
            "padding_rows([7, 4], 7) gives [[True, True, True, True, True, True, True], [True, ",
        ),
        (
            "02.previous_token_score",
            "the mean of all entries below the diagonal",
            """
import numpy as np
def previous_token_score(weights):
    w = np.array(weights)
    return np.diagonal(w, offset=-1).mean()
""",
            "leave query 1 out as well",
        ),
        (
            "02.previous_token_score",
            "above the diagonal",
            """
import torch
def previous_token_score(weights):
    return torch.tensor(weights).diagonal(1)[1:].mean().item()
""",
            "rows are queries",
        ),
        # --- 02
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
def update(buffer, length, new):
    return torch.cat([buffer[:, :, :length], new], dim=2)
""",
            "torch.cat makes a new",
        ),
        (
            "03.cache_update",
            "from the first place on",
            """
def update(buffer, length, new):
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
        # --- 03
        (
            "04.rms_norm",
            "takes the mean off",
            """
import torch
def rms_norm(x, weight, eps):
    x, weight = torch.tensor(x, dtype=torch.float64), torch.tensor(weight)
    x = x - x.mean()
    return x / torch.sqrt((x ** 2).mean() + eps) * weight
""",
            "takes the mean off first",
        ),
        (
            "04.rms_norm",
            "forgets the root",
            """
def rms_norm(x, weight, eps):
    ms = sum(v**2 for v in x) / len(x)
    return [w*v/(ms+eps) for v, w in zip(x, weight)]
""",
            "the root is missing",
        ),
        (
            "04.rms_norm",
            "lists as if they were tensors",
            """
def rms_norm(x, weight, eps):
    return weight * x / ((x ** 2).mean() + eps) ** 0.5
""",
            "raised TypeError",
            "error",
        ),
        (
            "04.rotate",
            "uses the new value for the second half",
            """
import math
def rotated(x, angles):
    n = len(angles)
    for i in range(n):
        c, s = math.cos(angles[i]), math.sin(angles[i])
        x[i] = x[i] * c - x[i + n] * s
        x[i + n] = x[i + n] * c + x[i] * s
    return x
""",
            "both from the old values",
        ),
        (
            "04.rotate",
            "degrees",
            """
import numpy as np
def rotated(x, angles):
    x = np.array(x); a = np.radians(angles)
    a = np.concatenate([a, a])
    half = len(angles)
    turned = np.concatenate([-x[half:], x[:half]])
    return x * np.cos(a) + turned * np.sin(a)
""",
            "angles are in radians already",
        ),
        (
            "04.rotate",
            "the sign of rotate_half",
            """
import torch
def rotated(x, angles):
    x = torch.tensor(x, dtype=torch.float64)
    a = torch.tensor(angles, dtype=torch.float64).repeat(2)
    x1, x2 = x.chunk(2)
    return x * a.cos() + torch.cat([x2, -x1]) * a.sin()
""",
            "turned the other way",
        ),
        (
            "04.shared_heads",
            "repeat",
            """
import torch
def shared_heads(query_heads, key_value_heads):
    return torch.arange(key_value_heads).repeat(query_heads // key_value_heads).tolist()
""",
            "`repeat` for `repeat_interleave`",
        ),
        (
            "04.shared_heads",
            "groups of the wrong size",
            """
def shared_heads(query_heads, key_value_heads):
    return [h // key_value_heads for h in range(query_heads)]
""",
            "the size of a group is query_heads // key_value_heads",
        ),
        (
            "04.inner_width",
            "rounds to the nearest multiple",
            """
def inner_width(width, multiple_of):
    hidden = int(2 * 4 * width / 3)
    return round(hidden / multiple_of) * multiple_of
""",
            "not to the nearest",
        ),
        (
            "04.inner_width",
            "always one multiple more",
            """
def inner_width(width, multiple_of):
    h = 8 * width // 3
    return (h // multiple_of + 1) * multiple_of
""",
            "a width that is a multiple already stays",
        ),
        (
            "04.metas_rows",
            "odd rows first",
            """
import numpy as np
def metas_rows(head_dim):
    rows = np.arange(head_dim)
    return np.concatenate([rows[1::2], rows[::2]]).tolist()
""",
            "even rows come first",
        ),
        (
            "05.training_days",
            "hours",
            """
def training_days(tokens, tokens_per_second_per_gpu, gpus):
    seconds = tokens / tokens_per_second_per_gpu / gpus
    return seconds / 60 / 60
""",
            "those are hours",
        ),
        # --- 04
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
            "06.spacing",
            "rounds the logarithm",
            """
import math
def spacing(x, mantissa_bits):
    e = round(math.log2(abs(x)))
    return 2.0 ** (e - mantissa_bits)
""",
            "math.floor, not round",
        ),
        (
            "06.absmax_codes",
            "the largest code is 128, and nothing clips it",
            """
import torch
def absmax_codes(values, bits):
    v = torch.tensor(values)
    scale = v.abs().max() / 2 ** (bits - 1)
    return torch.round(v / scale.clamp(min=1e-12)).int()
""",
            "+128 does not fit an int8",
        ),
        (
            "06.absmax_codes",
            "zeros alone are divided by 0",
            """
def absmax_codes(values, bits):
    m = max([abs(v) for v in values])
    return [round(v / m * (2 ** (bits - 1) - 1)) for v in values]
""",
            "raised ZeroDivisionError",
            "error",
        ),
        (
            "06.absmax_codes",
            "the codes are cast without being rounded",
            """
import numpy as np
def absmax_codes(values, bits):
    v = np.array(values)
    top = 2 ** (bits - 1) - 1
    amax = np.abs(v).max() or 1.0
    return (v / amax * top).astype(np.int8)
""",
            "int() cuts towards zero",
        ),
        (
            "06.absmax_codes",
            "8 bits whatever `bits` is",
            """
def absmax_codes(values, bits=8):
    biggest = max(map(abs, values)) or 1
    return [int(round(127 * v / biggest)) for v in values]
""",
            "`bits` decides the largest code",
        ),
        (
            "06.unbiased_codes",
            "uses ceil",
            """
import numpy as np
def unbiased_codes(values, scale):
    return np.ceil(np.array(values) / scale).astype(int)
""",
            "ceil is floor's bias the other way",
        ),
        (
            "06.unbiased_codes",
            "halves away from 0",
            """
import math
def unbiased_codes(values, scale):
    return [int(math.copysign(math.floor(abs(v) / scale + 0.5), v)) for v in values]
""",
            "round() takes the even one",
        ),
        (
            "06.zero_point",
            "unsigned codes",
            """
import numpy as np
def scale_and_zero_point(low, high, bits):
    low = np.minimum(low, 0); high = np.maximum(high, 0)
    s = (high - low) / (2 ** bits - 1)
    return s, int(np.round(-low / s))
""",
            "right for codes from 0 on",
        ),
        (
            "06.zero_point",
            "the two values swapped",
            """
def scale_and_zero_point(low, high, bits):
    lo, hi = min(0, low), max(0, high)
    scale = (hi - lo) / (2**bits - 1)
    zp = round(-(2**(bits-1)) - lo / scale)
    return zp, scale
""",
            "the scale comes first, then the zero point",
        ),
        (
            "06.dequantize_rows",
            "scales along the columns",
            """
import numpy as np
def dequantize_rows(codes, SCB):
    CB = np.array(codes)
    return CB * np.array(SCB)[: CB.shape[1]] / 127
""",
            "SCB.unsqueeze(1)",
        ),
        (
            "06.dequantize_rows",
            "the product in int8",
            """
import numpy as np
def dequantize_rows(codes, SCB):
    CB = np.array(codes, dtype=np.int8)
    return (CB * np.array(SCB)[:, None]).astype(np.int8) / 127
""",
            "dequantize_rows([[127, -64], [12, -127]], [0.5, 2.0]) gives",
        ),
        (
            "06.restored",
            "adds the zero point",
            """
def restored_values(codes, scale, zero_point):
    return [scale * (c + zero_point) for c in codes]
""",
            "must give 0, so subtract it",
        ),
        (
            "06.integer_dot",
            "forgets the last term",
            """
import numpy as np
def integer_dot(x, y, p, q):
    x, y = np.array(x), np.array(y)
    return int(x @ y - q * x.sum() - p * y.sum() + p * q)
""",
            "in each of the K terms",
        ),
        (
            "06.integer_dot",
            "the codes stay int8",
            """
import numpy as np
def integer_dot(x, y, p, q):
    x = np.array(x, dtype=np.int8) - np.int8(p)
    y = np.array(y, dtype=np.int8) - np.int8(q)
    return np.dot(x, y)
""",
            "expected -32867",
        ),
        (
            "06.layer_bytes",
            "a scale a row though there are groups",
            """
def layer_bytes(rows, columns, bits, group_size, scale_bytes):
    weight = rows * columns * bits // 8
    return weight + rows * scale_bytes
""",
            "each group has a scale of its own",
        ),
        (
            "06.layer_bytes",
            "no branch for rows without groups",
            """
def layer_bytes(rows, columns, bits, group_size, scale_bytes):
    if group_size is not None:
        groups = rows * columns / group_size
        return rows * columns * bits / 8 + groups * scale_bytes
""",
            "layer_bytes(4096, 4096, 8, None, 4) gives None, expected 16793600.0",
        ),
        (
            "06.largest_inner",
            "by 127 squared",
            """
def largest_inner(bits):
    biggest = 2 ** (bits - 1) - 1
    n = 0x7FFFFFFF
    return int(n // (biggest * biggest))
""",
            "-128 is a code as well",
        ),
        # --- 05
        (
            "07.outlier_columns",
            "rows for columns",
            """
import numpy as np
def columns_with_outliers(x, threshold):
    a = np.abs(np.array(x))
    return np.where(a.max(axis=1) >= threshold)[0].tolist()
""",
            "those are rows, the tokens",
        ),
        (
            "07.outlier_columns",
            "a mask, not numbers",
            """
import torch
def columns_with_outliers(x, threshold):
    return (torch.tensor(x).abs() >= threshold).any(dim=0)
""",
            "the numbers of the columns",
        ),
        (
            "07.outlier_columns",
            "all must be large",
            """
def columns_with_outliers(x, threshold):
    found = []
    for j in range(len(x[0])):
        if all(abs(row[j]) >= threshold for row in x):
            found.append(j)
    return found
""",
            "one large value is enough",
        ),
        (
            "07.row_codes",
            "the outliers set the scale",
            """
import numpy as np
def row_codes(row, threshold):
    r = np.array(row)
    s = np.abs(r).max() or 1
    r[np.abs(r) >= threshold] = 0
    return np.rint(r / s * 127).astype(int).tolist()
""",
            "but still set the scale",
        ),
        (
            "07.row_codes",
            "drops the outliers from the row",
            """
def row_codes(row, threshold):
    small = [v for v in row if abs(v) < threshold]
    m = max([abs(v) for v in small], default=0) or 1.0
    return [round(127 * v / m) for v in small]
""",
            "outliers keep their places",
        ),
        (
            "07.kept_share",
            "values for columns",
            """
import numpy as np
def kept_share(x, threshold):
    return (np.abs(np.array(x)) >= threshold).mean()
""",
            "the whole column stays",
        ),
        (
            "07.kept_share",
            "a count",
            """
def kept_share(x, threshold):
    count = 0
    for col in zip(*x):
        if any(abs(v) >= threshold for v in col):
            count += 1
    return count
""",
            "that is the number of columns; a share divides by all of them",
        ),
        (
            "07.decomposed_row",
            "never adds the outliers",
            """
import numpy as np
def decomposed_row(x, weights, threshold):
    x, W = np.array(x), np.array(weights)
    xi = np.where(np.abs(x) < threshold, x, 0)
    sa = np.abs(xi).max() or 1.0
    sb = np.abs(W).max(axis=1)
    sb[sb == 0] = 1
    a = np.rint(xi / sa * 127)
    b = np.rint(W / sb[:, None] * 127)
    return (b @ a) * sa * sb / 127 / 127
""",
            "the outliers are dropped",
        ),
        (
            "07.decomposed_row",
            "quantizes the activations, and not the weights",
            """
import numpy as np
def decomposed_row(x, weights, threshold):
    x, W = np.array(x), np.array(weights)
    out = np.abs(x) >= threshold
    xi = np.where(out, 0, x)
    s = max(np.abs(xi).max(), 1e-9)
    q = np.rint(xi * 127 / s) * s / 127
    return W @ q + W[:, out] @ x[out]
""",
            "the weights are int8 codes, too",
        ),
        (
            "07.criterion",
            "or for and",
            """
import numpy as np
def criterion(large, layers, positions):
    a = np.array(large)
    by_layer = a.any(axis=1).mean(axis=0)
    by_place = a.mean(axis=(0, 1))
    return np.flatnonzero((by_layer >= layers) | (by_place >= positions))
""",
            "both must hold",
        ),
        (
            "07.fair_difference",
            "each on its own text",
            """
import statistics
def fair_difference(int8_on_own, int8_on_text, bf16_on_text):
    return statistics.mean(int8_on_own) - statistics.mean(bf16_on_text)
""",
            "Score both on the same text",
        ),
        (
            "07.fair_difference",
            "a ratio",
            """
def fair_difference(int8_on_own, int8_on_text, bf16_on_text):
    avg = lambda l: sum(l) / len(l)
    return avg(int8_on_text) / avg(bf16_on_text)
""",
            "that is a ratio",
        ),
        (
            "07.inference_bytes",
            "with gradients",
            """
def inference_bytes(parameters):
    weights, gradients = 2 * parameters, 2 * parameters
    return weights + gradients
""",
            "counts a gradient for each weight",
        ),
        (
            "07.inference_bytes",
            "gigabytes",
            """
def inference_bytes(parameters):
    return round(parameters * 2 / 1e9, 1)
""",
            "gives 13.5, expected 13476831232",
        ),
        (
            "07.smoothing",
            "multiplied where it is divided",
            """
import torch
def smoothing(x_absmax, w_absmax, alpha):
    x, w = torch.tensor(x_absmax), torch.tensor(w_absmax)
    return x.pow(alpha) * w.pow(1 - alpha)
""",
            "divides; this multiplies by it",
        ),
        # --- 06
        (
            "08.longest_context",
            "rounds to the nearest token",
            """
def longest_context(free, fixed, cache_per_token, rest_per_token):
    room = free - fixed
    if room <= 0:
        return 0
    return round(room / (cache_per_token + rest_per_token))
""",
            "the last token must fit whole: round down",
        ),
        (
            "08.longest_context",
            "negative contexts",
            """
def longest_context(free, fixed, cache_per_token, rest_per_token):
    return int(free - fixed) // int(cache_per_token + rest_per_token)
""",
            "holds 0 tokens, not fewer",
        ),
        (
            "08.scored_tokens",
            "the windows themselves",
            """
def scored_tokens(count, length, stride):
    out, s = [], 0
    while s + length <= count:
        out.append((s, s + length))
        s += stride
    return out
""",
            "would score the same tokens twice",
        ),
        (
            "08.scored_tokens",
            "the end counted in",
            """
def scored_tokens(count, length, stride):
    res = []
    for s in range(0, count - length + 1, stride):
        e = s + length
        res.append((e - stride, e - 1))
    return res
""",
            "the end is not counted in",
        ),
        (
            "08.length_normalized",
            "the score, not the choice",
            """
def length_normalized(log_likelihoods, choices):
    return max(ll / len(c) for ll, c in zip(log_likelihoods, choices))
""",
            "the number of the choice",
        ),
        (
            "08.length_normalized",
            "argmin",
            """
import numpy as np
def length_normalized(log_likelihoods, choices):
    lengths = np.array([len(c) for c in choices])
    return int(np.argmin(np.array(log_likelihoods) / lengths))
""",
            "the likeliest is the largest",
        ),
        (
            "08.flip_p_value",
            "twice the tail, beyond 1",
            """
from math import comb
def flip_p_value(lost, won):
    n, k = lost + won, min(lost, won)
    return 2 * sum(comb(n, i) for i in range(k + 1)) * 0.5 ** n
""",
            "a probability cannot",
        ),
        (
            "08.flip_p_value",
            "the tail ends one early",
            """
from math import comb
def flip_p_value(lost, won):
    n = lost + won
    p = 2 * sum(comb(n, i) for i in range(min(lost, won))) / 2**n
    return min(p, 1.0)
""",
            "range(k) ends at k - 1",
        ),
        (
            "08.fastest_decode",
            "seconds for a token",
            """
def fastest_decode(bytes_read, bandwidth):
    t = bytes_read / bandwidth
    return t
""",
            "tokens per second are the reciprocal",
        ),
        (
            "08.interval",
            "NumPy's std divides by n",
            """
import numpy as np
def interval(differences):
    d = np.asarray(differences)
    se = d.std() / np.sqrt(d.size)
    return d.mean() - 1.96 * se, d.mean() + 1.96 * se
""",
            "divides by n - 1, not by n",
        ),
        (
            "08.interval",
            "mean and half-width",
            """
import numpy as np
def interval(differences):
    d = np.asarray(differences)
    return d.mean(), 1.96 * d.std(ddof=1) / len(d) ** 0.5
""",
            "the two ends",
        ),
        # --- 07
        (
            "10.explained_by_bytes",
            "subtracts",
            """
def explained_by_bytes(ratio, bytes_before, bytes_after):
    from_bytes = bytes_before / bytes_after
    rest = ratio - from_bytes
    return (from_bytes, rest)
""",
            "that is a difference; factors multiply",
        ),
        (
            "10.group_codes",
            "nested lists",
            """
def group_codes(values, size):
    result = []
    for k in range(0, len(values), size):
        g = values[k:k+size]
        m = max(abs(v) for v in g) or 1
        result.append([round(v * 127 / m) for v in g])
    return result
""",
            "gives [[64, -127], [127, 4]], expected [64, -127, 127, 4]",
        ),
        (
            "10.group_codes",
            "a group of zeros",
            """
import numpy as np
def group_codes(values, size):
    out = []
    for k in range(0, len(values), size):
        g = np.array(values[k:k+size])
        out.extend(np.round(g / (np.abs(g).max() / 127)))
    return out
""",
            "a group of zeros has scale 0",
        ),
        (
            "10.unsigned_product",
            "takes off 128 once",
            """
def unsigned_product(weights, codes):
    acc = 0
    for w, c in zip(weights, codes):
        acc += (w + 128) * c
    return acc - 128
""",
            "128 for each product, times its code",
        ),
        (
            "10.pairs_fit",
            "65,535, without a sign",
            """
def pairs_fit(largest_weight, largest_code):
    return largest_weight * largest_code * 2 < 2 ** 16
""",
            "one of the 16 bits is the sign",
        ),
        (
            "10.break_even_batch",
            "one operation a weight",
            """
def break_even_batch(bandwidth, throughput, bytes_per_weight):
    t_bytes = bytes_per_weight / bandwidth
    t_op = 1 / throughput
    return t_bytes / t_op
""",
            "a multiplication and an addition are two operations",
        ),
        # --- 08
        (
            "09.standard_moved",
            "the scores once",
            """
def standard_moved(length, head_dim):
    qkvo = 4 * length * head_dim
    scores = length * length
    return qkvo + scores
""",
            "each of T x T matrices is stored and loaded",
        ),
        (
            "09.standard_moved",
            "in bytes",
            """
def standard_moved(length, head_dim):
    return 2 * (4 * length * head_dim + 4 * length ** 2)
""",
            "elements were asked for, not bytes",
        ),
        (
            "09.merge",
            "adds the sums",
            """
def merge(m1, l1, m2, l2):
    m = m1 if m1 > m2 else m2
    return m, l1 + l2
""",
            "sums under different maxima cannot be added",
        ),
        (
            "09.merge",
            "undoes the maxima first",
            """
import numpy as np
def merge(m1, l1, m2, l2):
    m = max(m1, m2)
    return m, (l1 * np.exp(m1) + l2 * np.exp(m2)) / np.exp(m)
""",
            "exp(800) overflows",
        ),
        (
            "09.sees",
            "counts from the first key",
            """
def sees(query, key, queries, keys):
    mask = [[j <= i for j in range(keys)] for i in range(queries)]
    return mask[query][key]
""",
            "that mask begins at the first key",
        ),
        (
            "09.tiles_visited",
            "a whole square of tiles",
            """
def tiles_visited(length, block):
    per_side = length // block + (length % block > 0)
    return per_side * per_side
""",
            "tiles above the diagonal are skipped",
        ),
        (
            "09.tiles_visited",
            "half of the square",
            """
import math
def tiles_visited(length, block):
    n = math.ceil(length / block)
    return n * n / 2
""",
            "tiles on the diagonal are visited whole",
        ),
        (
            "09.crossing_length",
            "without the mask",
            """
def crossing_length(weights, layers, width):
    linear = 2 * weights              # per token
    attention = 4 * layers * width    # per token and key
    return linear / attention
""",
            "the mask hides half of the pairs",
        ),
    ]
]


RIGHT_ANSWERS = [  # (exercise, code) that differ from the reference in kind and in rounding
    (
        "01.attention_row",
        """
import torch
def attention_row(dots, d_k):
    return torch.softmax(torch.tensor(dots) / d_k ** 0.5, dim=-1)   # FP32
""",
    ),
    (
        "01.additive_mask",
        """
import torch
def additive_mask(length):
    return torch.full((length, length), -torch.inf).triu(1)
""",
    ),
    (
        "01.find_the_bug",
        """
import torch
def causal_weights(scores):
    s = torch.tensor(scores)                                        # FP32
    allowed = torch.ones(len(s), len(s)).tril() == 1
    return torch.where(allowed, s, -torch.inf).softmax(-1).tolist()
""",
    ),
    (
        "01.padding_mask",
        """
import numpy as np
def padding_rows(lengths, longest):
    return np.arange(longest)[None, :] < np.array(lengths)[:, None]
""",
    ),
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
        "03.keep_top_p",
        """
import torch
def keep_top_p(logits, p):
    ordered, order = logits.sort(-1, descending=True, stable=True)
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
    x, weight = torch.tensor(x), torch.tensor(weight)
    return weight * x * torch.rsqrt(x.pow(2).mean() + eps)
""",
    ),
    (
        "04.rotate",
        """
import torch
def rotated(x, angles):
    x, a = torch.tensor(x), torch.tensor(angles).repeat(2)
    first, second = x.chunk(2)
    return (x * a.cos() + torch.cat([-second, first]) * a.sin()).tolist()
""",
    ),
    (
        "04.metas_rows",
        """
import torch
def metas_rows(head_dim):
    return torch.arange(head_dim).view(-1, 2).T.reshape(-1)
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
        "06.unbiased_codes",
        """
import numpy as np
def unbiased_codes(values, scale):
    return np.rint(np.array(values) / scale).astype(np.int8)
""",
    ),
    (
        "06.zero_point",
        """
import torch
def scale_and_zero_point(low, high, bits):
    low, high = min(low, 0), max(high, 0)
    scale = torch.tensor((high - low) / (2 ** bits - 1))            # FP32
    return scale, -(2 ** (bits - 1)) - torch.round(low / scale)
""",
    ),
    (
        "07.decomposed_row",
        """
import torch
def decomposed_row(x, weights, threshold):
    x, W = torch.tensor(x), torch.tensor(weights)                   # FP32
    big = x.abs() >= threshold
    small = torch.where(big, 0, x)
    SCA = small.abs().max().clamp(min=1e-9)
    SCB = W.abs().amax(1).clamp(min=1e-9)
    CA, CB = (small * 127 / SCA).round().int(), (W * 127 / SCB[:, None]).round().int()
    y = (CB * CA).sum(1) * (SCA * SCB / 127 ** 2)
    return y + (CB[:, big] * (SCB / 127)[:, None]) @ x[big]
""",
    ),
    (
        "07.kept_share",
        """
import torch
def kept_share(x, threshold):
    return (torch.tensor(x).abs() >= threshold).any(0).float().mean()
""",
    ),
    (
        "07.smoothing",
        """
import numpy as np
def smoothing(x_absmax, w_absmax, alpha):
    x, w = np.float32(x_absmax), np.float32(w_absmax)
    return list(x ** alpha / w ** (1 - alpha))
""",
    ),
    (
        "08.interval",
        """
import numpy as np
def interval(differences):
    d = np.array(differences)
    return d.mean() + np.array([-1.96, 1.96]) * d.std(ddof=1) / np.sqrt(len(d))
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
def merge(m1, l1, m2, l2):
    m = torch.tensor([m1, m2])                                      # FP32
    return m.max(), (torch.tensor([l1, l2]) * torch.exp(m - m.max())).sum()
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
