"""A notebook's lengths, cut to what the chosen model can read at once."""

from typing import Any

from llama_int8.models.registry import config_of
from llama_int8.profiles import Settings

# Names of parameters that are lengths in tokens, by how much of the context each may take.
READ_WHOLE = ("window", "map_tokens", "atlas_tokens", "prompt_lengths")
WITH_AN_ANSWER = ("prompt_tokens", "lengths", "contexts", "points")
STEPS = 8  # tokens after a prompt, at the least: a profile of one step takes several
FACTS = 320  # tokens of notebook 03's stories beside the distance: other facts, and the question
NEAR = 16  # its shortest distance


def within_context(settings: Settings) -> Settings:
    """`settings` with every length cut to the context of their model; prints what it cut.

    A profile's lengths fit the models of the course; a model of one's own may read less. Beyond its
    context a model computes, too, but what comes out means nothing.
    """
    context = config_of(settings.model).max_position_embeddings
    most = _limits(settings, context)
    cut = {
        name: _cut(name, settings[name], limit) for name, limit in most.items() if name in settings
    }
    changed = {name: value for name, value in cut.items() if value != settings[name]}
    if "stride" in settings and "window" in changed:  # in proportion
        changed["stride"] = max(1, settings.stride * changed["window"] // settings.window)
    for name, value in changed.items():
        print(
            f"{name} is {value} instead of {settings[name]}: this model reads at most "
            f"{context:,} tokens at once."
        )
    if "distances" in changed and context < FACTS + NEAR:
        print(
            f"Even so the stories with hidden facts are longer than {context:,} tokens: what is "
            "recalled from them says nothing about this model."
        )
    return Settings(settings, **changed)


def _limits(settings: Settings, context: int) -> dict[str, int]:
    answer = context // 3
    steps = [min(settings.get(name, 0), answer) for name in ("new_tokens", "decode_tokens")]
    added = max(STEPS, *steps)
    limits = dict.fromkeys(READ_WHOLE, context)
    limits |= dict.fromkeys(WITH_AN_ANSWER, context - added)
    limits["new_tokens"] = answer
    limits["text_tokens"] = answer if "task" in settings else context  # 08: an answer; 04: a text
    limits["check_tokens"] = context // 4  # notebook 07 reads four times as many in one piece
    limits["distances"] = max(context - FACTS, NEAR)
    if "prompt_lengths" in settings:  # notebook 09 times only attention at its `lengths`
        del limits["lengths"]
    return limits


def _cut(name: str, value: Any, most: int) -> Any:
    """The value, or each of its lengths, cut to `most`; equal lengths are kept once."""
    if not isinstance(value, list):
        return min(value, most)
    if name == "points":
        shorter = [[batch, min(length, most)] for batch, length in value]
    else:
        shorter = [min(length, most) for length in value]
    return [one for place, one in enumerate(shorter) if one not in shorter[:place]]
