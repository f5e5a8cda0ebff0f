"""What a model answers: greedy text, and where two models part."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


def prompt_tokens(tokenizer: "PreTrainedTokenizerBase", prompt: str) -> "torch.Tensor":
    """Token ids (1, T) of a user's message in the model's chat form, or as it is without one."""
    if tokenizer.chat_template is None:
        return tokenizer(prompt, return_tensors="pt")["input_ids"]
    messages = [{"role": "user", "content": prompt}]
    return tokenizer.apply_chat_template(
        messages, add_generation_prompt=True, return_tensors="pt", return_dict=True
    )["input_ids"]


def greedy_answer(model: "PreTrainedModel", tokens: "torch.Tensor", new_tokens: int) -> list[int]:
    """At most `new_tokens` ids after the prompt `tokens` (1, T), always the most probable one."""
    return answer_with_candidates(model, tokens, new_tokens, candidates=1)["tokens"]


def answer_with_candidates(
    model: "PreTrainedModel",
    tokens: "torch.Tensor",
    new_tokens: int,
    seed: int | None = None,
    temperature: float = 1.0,
    candidates: int = 20,
) -> dict[str, list]:
    """An answer as {"tokens": ids, "likeliest": ids, "p": probabilities}, plain JSON data.

    `tokens`: the prompt, (1, T). At each step the `candidates` likeliest tokens and their
    probabilities before any temperature are kept, so that two models' choices can be compared
    after both are gone. Greedy without a seed; with one drawn at `temperature`, where two models
    on the same device meet the same random numbers.
    """
    import torch

    prompt = tokens.to(model.device)
    # Some checkpoints carry sampling settings; greedy decoding has none.
    how = {"do_sample": False, "temperature": None}
    if seed is not None:
        torch.manual_seed(seed)
        how = {"do_sample": True, "temperature": temperature}
    out = model.generate(
        prompt,
        attention_mask=torch.ones_like(prompt),
        max_new_tokens=new_tokens,
        top_p=None,
        top_k=0 if seed is not None else None,
        pad_token_id=min(end_tokens(model), default=0),
        return_dict_in_generate=True,
        output_logits=True,
        **how,
    )
    p = torch.cat(out.logits).float().softmax(-1).cpu()  # (new tokens, V)
    best = p.topk(min(candidates, p.shape[-1]))
    return {
        "tokens": out.sequences[0, prompt.shape[1] :].tolist(),
        "likeliest": best.indices.tolist(),
        "p": best.values.tolist(),
    }


def probability_at(answer: dict[str, list], step: int, token: int) -> float | None:
    """Probability that the answer's model gave `token` at `step`; None if it was no candidate."""
    ids = answer["likeliest"][step]
    return answer["p"][step][ids.index(token)] if token in ids else None


def end_tokens(model: "PreTrainedModel") -> set[int]:
    """The tokens that end an answer: none, one, or any of several."""
    ends = model.generation_config.eos_token_id
    return set(ends) if isinstance(ends, list) else {ends} - {None}


def first_difference(first: list[int], second: list[int]) -> int | None:
    """Index of the first token in which two answers differ; None if they are the same."""
    for index, (one, other) in enumerate(zip(first, second, strict=False)):
        if one != other:
            return index
    return None if len(first) == len(second) else min(len(first), len(second))


def next_token_probabilities(
    model: "PreTrainedModel", prompt: "torch.Tensor", answer: list[int]
) -> "torch.Tensor":
    """Probabilities of the next token before each token of `answer`, (len(answer), V), in FP32.

    `prompt`: token ids (1, T). Goes token by token as generation does: in low precision, a single
    pass over the whole answer rounds differently and can turn a close decision round.
    """
    import torch

    tokens, cache, rows = prompt.to(model.device), None, []
    with torch.inference_mode():
        for token in answer:
            out = model(tokens, past_key_values=cache, use_cache=True, logits_to_keep=1)
            rows.append(out.logits[0, -1].float().softmax(-1).cpu())
            tokens, cache = torch.tensor([[token]], device=model.device), out.past_key_values
    return torch.stack(rows)
