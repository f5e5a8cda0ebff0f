"""A notebook's lengths are cut to what the chosen model can read at once."""

import dataclasses

import pytest

from llama_int8 import models
from llama_int8.models import MODELS, within_context
from llama_int8.models.registry import ModelSpec
from llama_int8.profiles import profile_names, read_profile, resolve

NOTEBOOKS = list(read_profile("cpu").notebooks)
# Of each notebook: tokens that it reads in one piece with these settings, the most of any cell.
READS = {  # tokens at once, of each notebook whose lengths a short model cuts
    "00": lambda s: max(s.window, s.prompt_tokens + s.new_tokens),
    "01": lambda s: max(s.map_tokens, s.text_tokens),
    "03": lambda s: max(
        s.map_tokens,
        2 * s.search_tokens,
        s.prompt_tokens + s.new_tokens,
        *(n + 1 for n in s.lengths),
    ),
    "04": lambda s: s.text_tokens,
    "05": lambda s: s.text_tokens,
    "06": lambda s: max(s.window, s.text_tokens),
    "07": lambda s: max(s.atlas_tokens, 4 * s.check_tokens, s.window),
    "08": lambda s: max(s.window, *(length + s.decode_tokens for _, length in s.points)),
    "09": lambda s: max(*s.prompt_lengths, *(n + 1 for n in s.contexts)),
    "10": lambda s: max(s.window, s.prompt_tokens, *(n + s.decode_tokens for n in s.contexts)),
}


@pytest.fixture
def short(monkeypatch):
    """Register the default model's shapes under another name, with another context."""

    def register(context: int) -> str:
        config = dataclasses.replace(
            models.config_of("smollm2-135m"), max_position_embeddings=context
        )
        monkeypatch.setitem(MODELS, "short", ModelSpec("short", config, "none"))
        return "short"

    return register


@pytest.mark.parametrize("profile", profile_names())
@pytest.mark.parametrize("notebook", NOTEBOOKS)
def test_the_profiles_own_models_read_all_that_their_profile_asks(notebook, profile, capsys):
    settings = resolve(notebook, profile)
    assert within_context(settings) == settings
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize("profile", profile_names())
@pytest.mark.parametrize("context", [128, 500, 1024])
@pytest.mark.parametrize("notebook", NOTEBOOKS)
def test_no_notebook_reads_more_than_a_short_model_can(notebook, context, profile, short, capsys):
    asked = resolve(notebook, profile, short(context))
    settings = within_context(asked)
    assert READS.get(notebook[:2], lambda _: 0)(settings) <= context
    assert settings.keys() == asked.keys()
    said = "\n" + capsys.readouterr().out
    for name, value in settings.items():
        assert (value != asked[name]) == (f"\n{name} is {value} instead of" in said), name


def test_what_is_said_names_both_lengths_and_the_models_own(short, capsys):
    settings = within_context(resolve("06_quantization_math", "cpu", short(100)))
    assert settings.window == 100
    assert capsys.readouterr().out == (
        "window is 100 instead of 128: this model reads at most 100 tokens at once.\n"
        "text_tokens is 100 instead of 256: this model reads at most 100 tokens at once.\n"
    )


def test_a_list_holds_no_length_twice_and_keeps_its_order_and_batches(short):
    asked = resolve("08_fp16_vs_int8", "cpu", short(108), {"decode_tokens": 6})
    assert asked.points == [[1, 512], [1, 128], [4, 128], [8, 128]]
    assert within_context(asked).points == [[1, 100], [4, 100], [8, 100]]


def test_the_stride_shrinks_with_its_window(short):
    asked = resolve("08_fp16_vs_int8", "cpu", short(128), {"window": 256, "stride": 208})
    settings = within_context(asked)
    assert (settings.window, settings.stride) == (128, 104)


def test_stories_that_are_too_long_all_the_same_are_named(short, capsys):
    within_context(resolve("03_generation_and_decoding", "cpu", short(128)))
    assert "longer than 128 tokens: what is recalled from them says nothing" in (
        capsys.readouterr().out
    )
    within_context(resolve("03_generation_and_decoding", "cpu", short(400)))
    assert "says nothing" not in capsys.readouterr().out
