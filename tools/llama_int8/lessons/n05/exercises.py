"""The exercises of lesson 05: references, cases, hints and known mistakes."""

import math

import torch

from llama_int8.course.exercises import check, exercise, hint, solution
from llama_int8.lessons.n05.measurements import predicted_loss, tokens_needed
from llama_int8.transformer.config import LlamaConfig

__all__ = ["check", "hint", "solution"]

_GENERATOR = torch.Generator().manual_seed(5)


def _normal(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=_GENERATOR)


def _shape(**others: int | bool) -> LlamaConfig:
    small = {
        "vocab_size": 10,
        "hidden_size": 4,
        "intermediate_size": 6,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "head_dim": 2,
        "max_position_embeddings": 8,
    }
    return LlamaConfig(**{**small, **others})


@exercise(
    "05.count_parameters",
    points=2,
    cases=[
        (_shape(),),
        (_shape(tie_word_embeddings=True, num_hidden_layers=3),),
        (_shape(head_dim=3, num_attention_heads=6, num_key_value_heads=2, intermediate_size=11),),
    ],
    hints=[
        "Attention has four matrices: q_proj and o_proj are C x (heads x head_dim), k_proj and v_proj "
        "are C x (key-value heads x head_dim).",
        "The feed-forward network has three matrices of C x F. Each block has two norms of C numbers, "
        "and one more norm stands before the output.",
        "The table of the embedding is vocab_size x C. The output layer is as large, unless "
        "config.tie_word_embeddings says that it is the same table.",
    ],
)
def count_parameters(config):
    """All numbers that training can change: two tables or one, the blocks, the last norm."""
    C, F = config.hidden_size, config.intermediate_size
    queries = config.num_attention_heads * config.head_dim
    keys = config.num_key_value_heads * config.head_dim
    attention = 2 * C * queries + 2 * C * keys  # q_proj and o_proj, k_proj and v_proj
    block = attention + 3 * C * F + 2 * C
    tables = 1 if config.tie_word_embeddings else 2
    return tables * config.vocab_size * C + config.num_hidden_layers * block + C


def _counted(config, shared=True, matrices=3, norms=True, tied=True):
    C, F = config.hidden_size, config.intermediate_size
    queries = config.num_attention_heads * config.head_dim
    keys = config.num_key_value_heads * config.head_dim if shared else queries
    block = 2 * C * queries + 2 * C * keys + matrices * C * F + 2 * C * norms
    tables = 1 if tied and config.tie_word_embeddings else 2
    return tables * config.vocab_size * C + config.num_hidden_layers * block + C * norms


count_parameters.mistake(
    "keys and values have fewer heads: config.num_key_value_heads",
    lambda config: _counted(config, shared=False),
)
count_parameters.mistake(
    "SwiGLU has three matrices: gate, up and down", lambda config: _counted(config, matrices=2)
)
count_parameters.mistake(
    "nearly: the norms are missing, two of C numbers in each block and one at the end",
    lambda config: _counted(config, norms=False),
)
count_parameters.mistake(
    "where tie_word_embeddings is True, the output layer is the embedding's table: count it once",
    lambda config: _counted(config, tied=False),
)
count_parameters.mistake(
    "nearly: one more norm stands after the last block",
    lambda config: count_parameters(config) - config.hidden_size,
)
count_parameters.mistake(
    "that is one block; there are config.num_hidden_layers",
    lambda config: _counted(_one_block(config)),
)


def _one_block(config):
    return LlamaConfig(**{**vars(config), "num_hidden_layers": 1})


@exercise(
    "05.learning_rate",
    points=2,
    cases=[
        (0, 1000, 3e-4, 100),
        (99, 1000, 3e-4, 100),
        (100, 1000, 3e-4, 100),
        (550, 1000, 3e-4, 100),
        (1000, 1000, 3e-4, 100),
        (7, 40, 1.0, 20),
        (33, 40, 1.0, 20),
    ],
    hints=[
        "Warm-up: in step 0 already one part of `warmup` of the peak, so peak * (step + 1) / warmup.",
        "After it, progress = (step - warmup) / (steps - warmup) goes from 0 to 1.",
        "(1 + cos(pi * progress)) / 2 falls from 1 to 0. You need it to fall from 1 to 0.1.",
    ],
)
def learning_rate(step, steps, peak, warmup):
    """Linear warm-up to the peak, then a cosine down to a tenth of it."""
    if step < warmup:
        return peak * (step + 1) / warmup
    progress = (step - warmup) / (steps - warmup)
    return peak * (0.1 + 0.9 * (1 + math.cos(math.pi * progress)) / 2)


learning_rate.mistake(
    "that falls to zero; LLaMA stops at a tenth of the peak",
    lambda step, steps, peak, warmup: (
        learning_rate(step, steps, peak, warmup)
        if step < warmup
        else (learning_rate(step, steps, peak, warmup) - 0.1 * peak) / 0.9
    ),
)
learning_rate.mistake(
    "nearly: step 0 would change nothing with a rate of zero; use step + 1 in the warm-up",
    lambda step, steps, peak, warmup: (
        peak * step / warmup if step < warmup else learning_rate(step, steps, peak, warmup)
    ),
)
learning_rate.mistake(
    "the cosine begins where the warm-up ends: progress counts from there",
    lambda step, steps, peak, warmup: (
        peak * (step + 1) / warmup
        if step < warmup
        else peak * (0.1 + 0.45 * (1 + math.cos(math.pi * step / steps)))
    ),
)
learning_rate.mistake(
    "that falls along a straight line; LLaMA falls along a cosine",
    lambda step, steps, peak, warmup: (
        peak * (step + 1) / warmup
        if step < warmup
        else peak * (1 - 0.9 * (step - warmup) / (steps - warmup))
    ),
)
learning_rate.mistake(
    "the warm-up is missing",
    lambda step, steps, peak, warmup: (
        peak * (0.1 + 0.45 * (1 + math.cos(math.pi * (step - warmup) / (steps - warmup))))
    ),
)


@exercise(
    "05.clip_factor",
    points=2,
    cases=[
        ([torch.tensor([3.0]), torch.tensor([[4.0]])], 1.0),
        ([_normal(3, 4), _normal(5)], 1.0),
        ([0.01 * _normal(3, 4), 0.01 * _normal(5)], 1.0),
        ([_normal(2, 2), _normal(2), 3 * _normal(1)], 2.5),
    ],
    hints=[
        "The norm is that of all numbers together: the root of the sum of all squares.",
        "squares = sum(g.square().sum() for g in gradients); the norm is squares.sqrt().",
        "The factor is limit / norm, but never more than 1: small gradients stay as they are.",
    ],
)
def clip_factor(gradients, limit):
    """By what to multiply all gradients, so that their common norm is at most `limit`."""
    norm = sum(gradient.square().sum() for gradient in gradients).sqrt()
    return (limit / norm).clamp(max=1.0)


clip_factor.mistake(
    "small gradients stay as they are: the factor is never more than 1",
    lambda gradients, limit: limit / _norm(gradients),
)
clip_factor.mistake(
    "one norm for all tensors together: the root of the sum of all squares, not a sum of norms",
    lambda gradients, limit: min(1.0, limit / sum(g.norm() for g in gradients)),
)
clip_factor.mistake(
    "one norm for all tensors together, not that of the largest",
    lambda gradients, limit: min(1.0, limit / max(g.norm() for g in gradients)),
)
clip_factor.mistake(
    "the root is missing: the norm is the root of the sum of squares",
    lambda gradients, limit: min(1.0, limit / _norm(gradients) ** 2),
)
clip_factor.mistake("return the factor, not the norm", lambda gradients, limit: _norm(gradients))
clip_factor.mistake("turned round: limit over norm", lambda g, limit: min(1.0, _norm(g) / limit))


def _norm(gradients):
    return sum(gradient.square().sum() for gradient in gradients).sqrt()


@exercise(
    "05.bytes_per_gpu",
    points=2,
    cases=[
        (7.5e9, 64, 0),
        (7.5e9, 64, 1),
        (7.5e9, 64, 2),
        (7.5e9, 64, 3),
        (1e9, 1, 3),
    ],
    hints=[
        "Per parameter: 2 bytes of weight, 2 of gradient, and 4 + 4 + 4 of FP32 weight and two moments.",
        "Stage 1 divides the 12 bytes by the number of GPUs, stage 2 also the gradient's, stage 3 all.",
    ],
)
def bytes_per_gpu(parameters, gpus, stage):
    """Bytes on each GPU, where a stage of ZeRO shares out more and more of the sixteen."""
    weights, gradients, optimizer = 2 * parameters, 2 * parameters, 12 * parameters
    if stage >= 1:
        optimizer = optimizer / gpus
    if stage >= 2:
        gradients = gradients / gpus
    if stage >= 3:
        weights = weights / gpus
    return weights + gradients + optimizer


bytes_per_gpu.mistake(
    "that shares out everything in every stage", lambda n, gpus, stage: 16 * n / gpus
)
bytes_per_gpu.mistake(
    "that shares out nothing: every stage takes more of the sixteen bytes apart",
    lambda n, gpus, stage: 16 * n,
)
bytes_per_gpu.mistake(
    "mixed precision keeps an FP32 copy of each weight: 12 bytes for the optimizer, not 8",
    lambda n, gpus, stage: bytes_per_gpu(n, gpus, stage) - 4 * n / (gpus if stage else 1),
)
bytes_per_gpu.mistake(
    "the stages add up: stage 2 shares out the optimizer's states *and* the gradients",
    lambda n, gpus, stage: 16 * n - (0, 12, 2, 2)[stage] * n + (0, 12, 2, 2)[stage] * n / gpus,
)


@exercise(
    "05.utilization",
    points=1,
    cases=[
        (6.7e9, 1e12, 82_432.0, 3.12e14),
        (1e9, 1e9, 1.0, 1e15),
        (4.05e11, 1.56e13, 3.1e7, 9.89e14),
    ],
    hints=[
        "What was computed: 6 N D. What could have been: hours * 3600 seconds at the peak rate.",
        "Return a share between 0 and 1, not a percentage.",
    ],
)
def utilization(parameters, tokens, gpu_hours, peak):
    """Useful FLOPs, 6 N D, over what the GPUs could have done at most in their hours."""
    return 6 * parameters * tokens / (gpu_hours * 3600 * peak)


utilization.mistake(
    "the peak is per second, and an hour has 3,600 of them",
    lambda n, d, hours, peak: 6 * n * d / (hours * peak),
)
utilization.mistake(
    "a share between 0 and 1, please, not a percentage",
    lambda n, d, hours, peak: 100 * utilization(n, d, hours, peak),
)
utilization.mistake("turned round: useful over possible", lambda *given: 1 / utilization(*given))
utilization.mistake(
    "training takes six for each parameter and token, forward and backward",
    lambda n, d, hours, peak: 2 * n * d / (hours * 3600 * peak),
)


@exercise(
    "05.cheapest_size",
    points=2,
    rtol=1e-3,
    cases=[
        (predicted_loss(8.03e9, 1.5e13), 0.0),
        (predicted_loss(8.03e9, 1.5e13), 1e13),
        (predicted_loss(7e10, 1.4e12), 1e12),
        (predicted_loss(1e9, 2e11), 1e14),
    ],
    hints=[
        "Try many sizes at once: sizes = torch.logspace(8, 13, 100_001, dtype=torch.float64).",
        "tokens_needed(sizes, loss) says how long each must train; it is infinite for sizes that "
        "are too small to reach the loss at all.",
        "6 * sizes * tokens + 2 * sizes * served is the cost of each. argmin() finds the least.",
    ],
)
def cheapest_size(loss, served):
    """Of all sizes that reach a loss, the one whose training and serving together cost least."""
    from llama_int8.lessons.n05.measurements import tokens_needed

    sizes = torch.logspace(8, 13, 100_001, dtype=torch.float64)
    cost = 6 * sizes * tokens_needed(sizes, loss) + 2 * sizes * served
    return sizes[cost.argmin()].item()


cheapest_size.mistake(
    "that is the size for the cheapest training; what does serving cost?",
    lambda loss, served: cheapest_size(loss, 0.0),
)
cheapest_size.mistake(
    "serving costs two for each parameter and token, not six",
    lambda loss, served: cheapest_size(loss, 3 * served),
)
cheapest_size.mistake(
    "that is the number of tokens; return the number of parameters",
    lambda loss, served: tokens_needed(
        torch.tensor(cheapest_size(loss, served), dtype=torch.float64), loss
    ).item(),
)
cheapest_size.mistake(
    "that is the least cost; return the number of parameters that has it",
    lambda loss, served: _life(cheapest_size(loss, served), loss, served),
)


def _life(size: float, loss: float, served: float) -> float:
    tokens = tokens_needed(torch.tensor(size, dtype=torch.float64), loss).item()
    return 6 * size * tokens + 2 * size * served


@exercise(
    "05.dpo_loss",
    points=2,
    cases=[
        (torch.zeros(1), torch.zeros(1), torch.zeros(1), torch.zeros(1), 0.1),
        (-_normal(4).abs(), -_normal(4).abs(), -_normal(4).abs(), -_normal(4).abs(), 0.1),
        (-9 * _normal(3).abs(), -9 * _normal(3).abs(), -_normal(3).abs(), -_normal(3).abs(), 0.5),
    ],
    hints=[
        "How much likelier has training made each answer? chosen - ref_chosen, rejected - "
        "ref_rejected.",
        "The margin is the first minus the second, times beta. The loss is minus the mean "
        "of torch.nn.functional.logsigmoid(margin).",
    ],
)
def dpo_loss(chosen, rejected, ref_chosen, ref_rejected, beta):
    """-log sigmoid of beta times (gain of the chosen answer - gain of the rejected one), the mean."""
    margin = (chosen - ref_chosen) - (rejected - ref_rejected)
    return -torch.nn.functional.logsigmoid(beta * margin).mean()


dpo_loss.mistake(
    "turned round: the chosen answer should gain, the rejected one lose",
    lambda c, r, rc, rr, beta: dpo_loss(r, c, rr, rc, beta),
)
dpo_loss.mistake(
    "the reference is missing: what counts is how far an answer has moved from it",
    lambda c, r, rc, rr, beta: dpo_loss(c, r, torch.zeros_like(c), torch.zeros_like(r), beta),
)
dpo_loss.mistake("beta is missing", lambda c, r, rc, rr, beta: dpo_loss(c, r, rc, rr, 1.0))
dpo_loss.mistake(
    "the minus sign is missing: a loss falls as the margin grows",
    lambda *given: -dpo_loss(*given),
)
dpo_loss.mistake(
    "the mean over the pairs, not the sum",
    lambda c, *given: len(c) * dpo_loss(c, *given),
)
dpo_loss.mistake(
    "that is the sigmoid; the loss is minus its logarithm",
    lambda c, r, rc, rr, beta: torch.sigmoid(beta * ((c - rc) - (r - rr))).mean(),
)
