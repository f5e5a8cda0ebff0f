"""A model's answers: greedy text, and where the texts of two models diverge."""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from llama_int8.errors import ModelFilesError, in_short
from llama_int8.models.hugging_face import end_tokens, plain_generation
from llama_int8.transformer.prompt import check_prompt

# Some chat templates ask for the date ("Today Date: 26 Jul 2024"), and a prompt must not change
# overnight. The day is the one that Llama 3.1's template falls back on.
FIXED_DATE = "{% macro strftime_now(format) %}26 Jul 2024{% endmacro +%}"
PLACE = "\ue000prompt\ue000"  # stands for the prompt where only the form around it is wanted


def prompt_tokens(tokenizer: PreTrainedTokenizerBase, prompt: str) -> torch.Tensor:
    """Token ids (1, T) of a user's message in the model's chat form, or as it is without one.

    A message is text: the names of special tokens in it are ordinary characters, and a
    "<|eot_id|>" ends no turn. Raises ModelFilesError for a chat template that cannot be used.
    """
    template = _chat_template(tokenizer)
    if template is None:
        return tokenizer(prompt, split_special_tokens=True, return_tensors="pt")["input_ids"]
    filled = _filled(tokenizer, template, prompt)
    if any(name in prompt for name in _special_names(tokenizer)):
        ids = _ids_around_text(tokenizer, filled, *_form(tokenizer, template, filled))
    else:
        ids = _ids(tokenizer, filled)
    return torch.tensor([ids])


def _chat_template(tokenizer: PreTrainedTokenizerBase) -> str | None:
    """The template of a plain conversation; some models have others for tools beside it."""
    found = tokenizer.chat_template
    if not isinstance(found, dict):
        return found
    if "default" not in found:
        raise ModelFilesError(
            f"the tokenizer has the chat templates {', '.join(sorted(found))}, and none called "
            "'default'; give the one for plain conversations this name"
        )
    return found["default"]


def _filled(tokenizer: PreTrainedTokenizerBase, template: str, prompt: str) -> str:
    """The whole conversation as a text, up to where the answer begins."""
    try:
        return tokenizer.apply_chat_template(
            [{"role": "user", "content": prompt}],
            chat_template=f"{FIXED_DATE}{template}" if "strftime_now" in template else template,
            add_generation_prompt=True,
            tokenize=False,
        )
    except Exception as error:  # a template can fail in any way that a program can
        raise ModelFilesError(
            f"the model's chat template cannot be filled in ({in_short(error)}); "
            "fetch the tokenizer again, or repair chat_template.jinja or tokenizer_config.json"
        ) from None


def _form(tokenizer: PreTrainedTokenizerBase, template: str, filled: str) -> tuple[str, str]:
    """The template's text before and after the prompt. ValueError where that cannot be told."""
    before, _, after = _filled(tokenizer, template, PLACE).partition(PLACE)
    if PLACE in after or not (filled.startswith(before) and filled.endswith(after)):
        raise ValueError(
            "the prompt has the name of a special token in it, and the model's chat template changes "
            "its prompts, so that the two cannot be told apart; leave the name out"
        )
    return before, after


def _ids_around_text(
    tokenizer: PreTrainedTokenizerBase, filled: str, before: str, after: str
) -> list[int]:
    """Ids of a conversation: its own special tokens count, those in the prompt do not.

    A tokenizer cuts a text at its special tokens, and what lies between two of them is tokenized by
    itself. So the part around the prompt, from the last one before to the first one after it, is
    read as text.
    """
    special = re.compile("|".join(map(re.escape, _special_names(tokenizer))))
    start = max((found.end() for found in special.finditer(before)), default=0)
    first_after = special.search(after)
    end = len(filled) - (len(after) - first_after.start() if first_after else 0)
    return [
        *_ids(tokenizer, filled[:start]),
        *_ids(tokenizer, filled[start:end], as_text=True),
        *_ids(tokenizer, filled[end:]),
    ]


def _ids(tokenizer: PreTrainedTokenizerBase, text: str, as_text: bool = False) -> list[int]:
    """Without a start token: chat templates have their own."""
    how = {"add_special_tokens": False, "split_special_tokens": as_text}
    return tokenizer(text, **how)["input_ids"] if text else []


def _special_names(tokenizer: PreTrainedTokenizerBase) -> list[str]:
    """Longest first, so that a search finds the whole of each."""
    added = tokenizer.added_tokens_decoder.values()
    return sorted((str(token) for token in added if token.special), key=len, reverse=True)


def greedy_answer(model: PreTrainedModel, tokens: torch.Tensor, new_tokens: int) -> list[int]:
    """At most `new_tokens` ids after the prompt `tokens` (1, T), always the most probable one."""
    return answer_with_candidates(model, tokens, new_tokens, candidates=1)["tokens"]


def answer_with_candidates(
    model: PreTrainedModel,
    tokens: torch.Tensor,
    new_tokens: int,
    seed: int | None = None,
    temperature: float = 1.0,
    candidates: int = 20,
) -> dict[str, list]:
    """An answer as {"tokens": ids, "likeliest": ids, "p": probabilities}, plain JSON data.

    `tokens`: the prompt, (1, T). At each step the `candidates` likeliest tokens and their
    probabilities before any temperature are kept, so that two models' choices can be compared
    after both are gone. Greedy without a seed; with one drawn at `temperature`, where two models
    on the same device meet the same random numbers. Raises ValueError for a prompt that leaves no
    room in the model's context.
    """
    prompt = tokens.to(model.device)
    check_prompt(model, prompt, new_tokens)
    how: dict[str, Any] = {"do_sample": False}
    if seed is not None:
        torch.manual_seed(seed)
        how = {"do_sample": True, "temperature": temperature, "top_k": 0}
    with _plain_settings(model):
        out = model.generate(
            prompt,
            attention_mask=torch.ones_like(prompt),
            max_new_tokens=new_tokens,
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


@contextmanager
def _plain_settings(model: PreTrainedModel) -> Iterator[None]:
    """Within the block, `model.generate` takes nothing but its end tokens from the model's folder.

    Checkpoints bring sampling, penalties, beams and watermarks along, and transformers adds them to
    whatever a caller asks for.
    """
    before = model.generation_config
    model.generation_config = plain_generation(model)
    try:
        yield
    finally:
        model.generation_config = before


def first_difference(first: list[int], second: list[int]) -> int | None:
    """Index of the first token in which two answers differ; None if they are the same."""
    for index, (one, other) in enumerate(zip(first, second, strict=False)):
        if one != other:
            return index
    return None if len(first) == len(second) else min(len(first), len(second))


def next_token_probabilities(
    model: PreTrainedModel, prompt: torch.Tensor, answer: list[int]
) -> torch.Tensor:
    """Probabilities of the next token before each token of `answer`, (len(answer), V), in FP32.

    `prompt`: token ids (1, T). Goes token by token as generation does: in low precision, a single
    pass over the whole answer rounds differently and can reverse a close decision.
    """
    tokens, cache, rows = prompt.to(model.device), None, []
    with torch.inference_mode():
        for token in answer:
            out = model(tokens, past_key_values=cache, use_cache=True, logits_to_keep=1)
            rows.append(out.logits[0, -1].float().softmax(-1).cpu())
            tokens, cache = torch.tensor([[token]], device=model.device), out.past_key_values
    return torch.stack(rows)
