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
            "07.inference_bytes",
            "gigabytes",
            """
def inference_bytes(parameters):
    return round(parameters * 2 / 1e9, 1)
""",
            "gives 13.5, expected 13476831232",
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
    ]
]


RIGHT_ANSWERS = [  # (exercise, code) that differ from the reference in kind and in rounding
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
        "06.spacing",
        """
import math
def spacing(x, mantissa_bits):
    return math.ldexp(1, math.floor(math.log2(abs(x))) - mantissa_bits)
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
