"""`course.py generate`: the texts are those of independent references, and one model is held."""

import io
import json
import shutil
import sys
import weakref
from dataclasses import replace

import pytest
import sentencepiece
import torch
from byte_tokenizer import byte_tokenizer
from conftest import ROOT
from helpers import refused
from test_checkpoints import RANKS, change_tensors, meta_llama, save_meta, write_ranks
from transformers import LlamaConfig as HuggingFaceConfig
from transformers import LlamaForCausalLM

import course as command
import generate_text
from generate_text import Answer, report
from llama_int8 import models
from llama_int8.errors import ModelError, ModelFilesError, NotEnoughMemoryError
from llama_int8.evaluation import answers
from llama_int8.models import load_model, load_tokenizer
from llama_int8.models.cost import weight_bytes
from llama_int8.quantization.cpu.llama import FastLlama
from llama_int8.transformer.checkpoints import read_checkpoint
from llama_int8.transformer.llama import Llama
from llama_int8.transformer.tokenizer import load_meta_tokenizer

TINY = {
    "vocab_size": 258,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
    "initializer_range": 0.5,
    "bos_token_id": 0,
    "eos_token_id": None,
}
PROMPT = "Why?"
NEW = 12
TEMPLATE = "[{{ messages[0]['content'] }}]{% if add_generation_prompt %}>{% endif %}"


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """A folder in Hugging Face's format, with a tokenizer of bytes."""
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("hugging_face")
    LlamaForCausalLM(HuggingFaceConfig(**TINY)).save_pretrained(folder)
    byte_tokenizer().save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def theirs():
    """Hugging Face's model, which `meta` holds in Meta's format."""
    return meta_llama(vocab_size=len(RANKS) + 256, eos_token_id=None)


@pytest.fixture(scope="module")
def meta(theirs, tmp_path_factory):
    return write_ranks(save_meta(theirs, tmp_path_factory.mktemp("meta")), RANKS)


@pytest.fixture(params=["saved", "meta"])
def folder(request):
    """A folder in either format."""
    return request.getfixturevalue(request.param)


def answer(folder, *precisions, prompt=PROMPT, new_tokens=NEW, **more):
    found = generate_text.side_by_side(
        folder, prompt, precisions or ("fp32",), "cpu", new_tokens, **more
    )
    return found if len(precisions) > 1 else found[0]


@torch.no_grad()
def always_the_likeliest(model, ids, new_tokens=NEW):
    """Without a cache: one pass over the whole text for each token."""
    tokens = torch.tensor([ids])
    for _ in range(new_tokens):
        tokens = torch.cat([tokens, model(tokens).logits[:, -1:].argmax(-1)], dim=1)
    return tokens[0, len(ids) :].tolist()


# The texts


@pytest.mark.parametrize("precision", ["fp32", "bf16", "int8"])
def test_a_greedy_text_is_that_of_hugging_faces_generate(saved, precision):
    tokenizer = load_tokenizer(saved)
    ids = tokenizer(PROMPT, return_tensors="pt")["input_ids"]
    expected = answers.greedy_answer(load_model(saved, precision, "cpu"), ids, NEW)
    found = answer(saved, precision)
    assert found.tokens == expected
    assert found.text == tokenizer.decode(expected)
    assert found.prompt_tokens == ids.shape[1] == len(PROMPT)


def test_a_greedy_text_from_metas_format_is_that_of_hugging_faces_model(meta, theirs):
    tokenizer = load_meta_tokenizer(meta)
    ids = tokenizer.encode(PROMPT)
    expected = always_the_likeliest(theirs, ids)
    found = answer(meta)
    assert found.tokens == expected
    assert found.text == tokenizer.decode(expected)
    assert found.prompt_tokens == len(ids)


def test_metas_older_tokenizer_serves_as_well(tmp_path):
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(["The quick brown fox jumps over the lazy dog."] * 20),
        model_prefix=str(tmp_path / "tokenizer"),
        model_type="bpe",
        vocab_size=300,
        byte_fallback=True,
        minloglevel=2,
    )
    theirs = meta_llama(vocab_size=300)
    tokenizer = load_meta_tokenizer(save_meta(theirs, tmp_path))
    expected = always_the_likeliest(theirs, tokenizer.encode(PROMPT), 4)
    assert tokenizer.eos_id not in expected
    assert answer(tmp_path, new_tokens=4).tokens == expected


@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16", "int8"])
def test_each_precision_runs_and_holds_the_predicted_bytes(folder, precision):
    config = read_checkpoint(folder)[0]
    found = answer(folder, precision)
    assert (len(found.tokens), found.precision) == (NEW, precision)
    assert found.weight_bytes == weight_bytes(config, precision).total
    assert found.memory_bytes > found.weight_bytes
    assert min(found.first_seconds, found.rest_seconds, found.tokens_per_second) > 0


@pytest.mark.parametrize("several", [False, True], ids=["one end", "several"])
def test_an_answer_ends_where_hugging_faces_does(saved, tmp_path, several):
    model = load_model(saved, "fp32", "cpu")
    end = answer(saved).tokens[5]
    model.generation_config.eos_token_id = [1, end] if several else end
    model.save_pretrained(tmp_path)
    tokenizer = load_tokenizer(saved)
    tokenizer.save_pretrained(tmp_path)
    ids = tokenizer(PROMPT, return_tensors="pt")["input_ids"]
    found = answer(tmp_path)
    assert found.tokens[-1] == end
    generated = model.generate(
        ids,
        attention_mask=torch.ones_like(ids),
        max_new_tokens=NEW,
        do_sample=False,
        pad_token_id=0,
    )
    assert found.tokens == generated[0, ids.shape[1] :].tolist()
    assert len(found.tokens) < NEW


@pytest.mark.parametrize("name", ["<|end_of_text|>", "<|eom_id|>", "<|eot_id|>"])
def test_llama_3_ends_a_text_or_a_turn_and_shows_no_end_token(meta, theirs, name, tmp_path):
    """Two rows of the output layer change places, and with them two tokens."""
    tokenizer = load_meta_tokenizer(meta)
    end = tokenizer.model.encode_single_token(name)
    ids = answer(meta).tokens
    at = next(i for i in range(3, NEW) if ids[i] not in ids[:i])
    swapped = write_ranks(save_meta(theirs, tmp_path), RANKS)

    def swap(tensors):
        tensors["output.weight"][[ids[at], end]] = tensors["output.weight"][[end, ids[at]]]

    change_tensors(swapped / "consolidated.00.pth", swap)
    found = answer(swapped)
    assert found.tokens == [*ids[:at], end]
    assert found.text == tokenizer.decode(ids[:at])


def test_the_prompt_takes_the_chat_form_where_the_tokenizer_has_one(saved, tmp_path):
    load_model(saved, "fp32", "cpu").save_pretrained(tmp_path)
    tokenizer = byte_tokenizer()
    tokenizer.chat_template = TEMPLATE
    tokenizer.save_pretrained(tmp_path)
    assert answer(tmp_path).tokens == answer(saved, prompt=f"[{PROMPT}]>").tokens


def test_the_name_of_an_end_token_in_a_prompt_is_text_in_both_formats(folder):
    plain, named = (
        answer(folder, new_tokens=1),
        answer(folder, prompt="</s><|eot_id|>", new_tokens=1),
    )
    letters = named.prompt_tokens - (plain.prompt_tokens - len(PROMPT))
    assert letters == len("</s><|eot_id|>")  # a token for each letter, none for the names


def test_metas_format_is_answered_from_in_int8_fast_as_hugging_faces_is(meta, theirs, tmp_path):
    theirs.save_pretrained(tmp_path)
    ids = load_meta_tokenizer(meta).encode(PROMPT)
    one_call = FastLlama(load_model(tmp_path, "int8-fast"), len(ids) + NEW)
    found = answer(meta, "int8-fast")
    expected = one_call.generate(torch.tensor([ids]), len(found.tokens))[0].tolist()
    assert found.tokens == expected
    assert found.weight_bytes == weight_bytes(read_checkpoint(meta)[0], "int8-fast").total


def test_an_int8_cache_is_one_calls_and_the_answers_of_others_stay(saved, folder):
    ids = torch.tensor([list(range(5, 25))])
    one_call = FastLlama(load_model(saved, "int8-fast"), 40, cache="int8")
    assert one_call.generate(ids, 4).shape == (1, 4) and one_call.cache.format == "int8"
    plain, fast = answer(folder, "fp32", "int8-fast", cache="int8")
    assert plain.tokens == answer(folder).tokens
    assert fast.tokens[0] == answer(folder, "int8-fast").tokens[0]
    with refused(ValueError, "'int8'", "int8-fast"):
        answer(folder, "fp32", cache="int8")


def test_ends_that_only_config_json_names_are_ends(saved, tmp_path):
    model, end = load_model(saved, "fp32", "cpu"), answer(saved).tokens[5]
    model.config.eos_token_id = [1, end]
    model.save_pretrained(tmp_path)
    (tmp_path / "generation_config.json").unlink()
    load_tokenizer(saved).save_pretrained(tmp_path)
    assert answer(tmp_path).tokens[-1] == end


@pytest.mark.parametrize(
    "settings", [{"repetition_penalty": 9.0}, {"do_sample": True}, {"min_new_tokens": 9}]
)
def test_what_a_folder_says_of_sampling_changes_no_answer(saved, tmp_path, settings):
    shutil.copytree(saved, tmp_path / "copy")
    (tmp_path / "copy" / "generation_config.json").write_text(json.dumps(settings))
    assert answer(tmp_path / "copy").tokens == answer(saved).tokens


def test_a_token_beyond_the_vocabulary_is_named_before_anything_is_loaded(
    saved, tmp_path, monkeypatch
):
    shutil.copytree(saved, tmp_path / "copy")
    larger = byte_tokenizer()
    larger.add_tokens(["[PAD]"])
    larger.save_pretrained(tmp_path / "copy")
    assert answer(tmp_path / "copy").tokens == answer(saved).tokens
    monkeypatch.setattr(models, "load_model", None)
    with refused(ModelFilesError, "token 258 ('[PAD]')", "vocabulary of 258"):
        answer(tmp_path / "copy", prompt="a [PAD] b")


def test_one_new_token_has_no_speed(saved):
    found = answer(saved, new_tokens=1)
    assert (len(found.tokens), found.rest_seconds, found.tokens_per_second) == (1, 0.0, None)
    assert any("one token only" in line for line in report([found], 80))


# Sampling


def test_a_seed_gives_the_same_texts_again_in_any_order_of_precisions(folder):
    first, second = answer(folder, "bf16", "int8", seed=3)
    other_second, other_first = answer(folder, "int8", "bf16", seed=3)
    assert first.tokens == other_first.tokens
    assert second.tokens == other_second.tokens
    assert answer(folder, "bf16", seed=4).tokens != first.tokens


def test_a_low_temperature_is_greedy_and_the_default_is_the_documented_one(folder):
    assert answer(folder, seed=0, temperature=1e-4).tokens == answer(folder).tokens
    assert answer(folder, seed=0).tokens == answer(folder, seed=0, temperature=0.7).tokens


# One model at a time


def test_a_model_is_freed_before_the_next_is_loaded(folder, monkeypatch):
    loaded = []

    def watched(load):
        def load_and_look(*arguments):
            assert not any(model() for model in loaded), "the last model is still held"
            model = load(*arguments)
            loaded.append(weakref.ref(model))
            return model

        return load_and_look

    monkeypatch.setattr(models, "load_model", watched(models.load_model))
    monkeypatch.setattr(Llama, "from_pretrained", watched(Llama.from_pretrained))
    found = answer(folder, "fp32", "bf16", "int8")
    assert [one.precision for one in found] == ["fp32", "bf16", "int8"]
    assert len(loaded) == 3
    assert not any(model() for model in loaded)


def test_a_precision_named_twice_answers_once_and_the_default_is_16_bit_and_int8(saved):
    assert [one.precision for one in answer(saved, "bf16", "bf16", new_tokens=1)] == ["bf16"]
    found = generate_text.side_by_side(saved, PROMPT, device="cpu", new_tokens=1)
    assert [one.precision for one in found] == ["bf16", "int8"]


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_on_a_gpu_the_peak_holds_the_weights_and_is_each_precisions_own(folder):
    found = generate_text.side_by_side(folder, PROMPT, ("fp32", "fp16"), "cuda", NEW)
    assert all(one.memory_bytes >= one.weight_bytes for one in found)
    assert found[0].memory_bytes > found[1].memory_bytes


# Where texts part, and how it is printed


def test_where_two_texts_part_is_said_with_what_they_share(saved):
    found = answer(saved, "fp32", "int8")
    at = answers.first_difference(found[0].tokens, found[1].tokens)
    assert found[0].differs_at is None
    assert found[1].differs_at == at
    shared = found[0].tokens[:at] if at is not None else []
    assert found[1].shared_text == load_tokenizer(saved).decode(shared)


FIRST = Answer(
    "fp16",
    "cpu",
    7,
    [5] * 9,
    "one two three four five six seven eight blue",
    0.25,
    2.0,
    2**30,
    2**31,
)
OTHER = replace(
    FIRST,
    precision="int8",
    text="one two three four five six seven eight " + "grey " * 30,
    differs_at=8,
    shared_text="one two three four five six seven eight",
)


def test_columns_stand_side_by_side_where_they_fit():
    lines = report([FIRST, OTHER], 80)
    assert max(map(len, lines)) <= 80
    (heading,) = (line for line in lines if "fp16" in line and "---" in line)
    assert "int8" in heading
    assert any(line.count("4.0 tokens/s") == 2 for line in lines)
    assert any(line.count("1074 MB (1.00 GiB)") == 2 for line in lines)
    assert any(line.count("7 + 9 new") == 2 for line in lines)


@pytest.mark.parametrize("width", [68, 40, 12])
def test_in_a_narrow_terminal_one_follows_the_other(width):
    lines = report([FIRST, OTHER], width)
    assert max(map(len, lines)) <= width
    headings = [line for line in lines if line.startswith(("fp16 --", "int8 --"))]
    assert len(headings) == 2


def test_one_precision_takes_the_whole_width_and_four_need_a_wide_terminal():
    assert " | " not in "".join(report([FIRST], 200))
    four = [FIRST, *(replace(OTHER, precision=name) for name in ("bf16", "int8", "fp32"))]
    assert " | " not in "".join(report(four, 80))
    assert any(line.count(" | ") == 3 for line in report(four, 160))


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({}, 'fp16 and int8 share 8 tokens and part after "... three four five six seven eight".'),
        ({"differs_at": 0}, "fp16 and int8 part at the first token."),
        ({"differs_at": 1, "shared_text": "one"}, 'share 1 token and part after "... one".'),
        ({"differs_at": None}, "fp16 and int8 give the same 9 tokens."),
    ],
)
def test_one_sentence_says_where_they_part(changes, sentence):
    assert sentence in " ".join(report([FIRST, replace(OTHER, **changes)], 100))


def test_what_moves_the_cursor_is_not_printed_and_wide_letters_bend_no_column():
    hostile = replace(FIRST, text="a\x1b[2Jb\rc\n\n  d")
    printed = "\n".join(report([hostile, OTHER], 80))
    assert not set(printed) & {"\x1b", "\r"}
    assert " | " not in "\n".join(report([replace(FIRST, text="日本"), OTHER], 80))


def test_an_empty_answer_and_the_kind_of_memory_are_said():
    on_gpu = "\n".join(report([replace(FIRST, text="", device="cuda")], 80))
    assert "the model ended its answer at once" in on_gpu
    assert "GPU peak" in on_gpu
    assert "memory of the whole process" in "\n".join(report([FIRST], 200))


# The command


@pytest.fixture
def course(monkeypatch, capsys):
    """Run the command in this process; returns its status, output and errors."""
    monkeypatch.setenv("COURSE_ACTIVE", str(ROOT))
    monkeypatch.setenv("COLUMNS", "90")

    def run(*arguments):
        code = command.main(["generate", "--device", "cpu", *map(str, arguments)])
        return code, *capsys.readouterr()

    return run


def test_the_command_prints_the_texts_and_nothing_else(folder, course):
    asked = ("--model", folder, "--precision", "fp32,int8", "--prompt", PROMPT, "--new-tokens", 6)
    code, out, err = course(*asked)
    assert (code, err) == (0, "")
    assert out.startswith("fp32 ---")
    for words in ("int8 ---", "tokens/s", "first token", "resident", "fp32 and int8"):
        assert words in out


def test_progress_goes_to_a_terminals_error_stream(saved, course, monkeypatch):
    monkeypatch.setattr(generate_text.sys.stderr, "isatty", lambda: True)
    asked = ("--model", saved, "--precision", "fp32", "--prompt", PROMPT, "--new-tokens", 2)
    code, out, err = course(*asked)
    assert code == 0
    assert err.splitlines() == ["loading fp32 ...", "answering in fp32 ..."]
    assert "loading" not in out


def test_one_answer_is_printed_token_by_token_and_several_on_a_terminals_error_stream(
    saved, course, monkeypatch
):
    seen = []
    monkeypatch.setattr(generate_text.Live, "_print", lambda live, text: seen.append((live, text)))
    asked = ("--model", saved, "--prompt", PROMPT, "--new-tokens", NEW, "--precision")
    code, out, _ = course(*asked, "fp32")
    assert code == 0 and seen[0][0].stream is sys.stdout
    assert out.startswith("tokens") and "tokens/s" in out  # the figures follow the text
    heading, *pieces = (text for _, text in seen)
    text = generate_text._harmless(answer(saved).text.strip("\n"))
    assert heading.startswith("fp32 ---") and "".join(pieces).rstrip("\n") == text.rstrip("\n")
    assert len(pieces) > NEW / 2
    seen.clear()
    code, out, _ = course(*asked, "fp32,int8")
    assert code == 0 and not seen and out.startswith("fp32 ---")
    monkeypatch.setattr(generate_text.sys.stderr, "isatty", lambda: True)
    code, out, _ = course(*asked, "fp32,int8")
    assert {live.stream for live, _ in seen} == {sys.stderr} and out.startswith("fp32 ---")
    assert [text[:5] for _, text in seen if "---" in text] == ["fp32 ", "int8 "]


def test_half_a_letter_waits_for_its_other_half_and_an_empty_answer_is_said():
    screen = io.StringIO()
    live = generate_text.Live(screen, 10)
    live.begin("bf16")
    for text in ("\n", "\na", "\nab\ufffd", "\nab\u00e9", "\nab\u00e9\x1b\ufffd"):
        live.show(text)
    live.end("\nab\u00e9\x1b\ufffd\n")
    live.begin("int8")
    live.end("")
    assert (
        screen.getvalue()
        == f"bf16 -----\nab\u00e9 \ufffd\n\nint8 -----\n{generate_text.NO_TEXT}\n\n"
    )


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--prompt", ""], ["prompt is ''", "give a text"]),
        (["--prompt", " \n"], ["prompt is ' \\n'"]),
        (["--precision", "fp32,int4"], ["'int4'", "fp32, bf16, fp16, int8"]),
        (["--precision", ""], ["precision is ''"]),
        (["--new-tokens", "0"], ["new tokens: 0", "at least 1"]),
        (["--new-tokens", "500"], ["500", "context of 128", "shorten"]),
        (["--seed", "-1"], ["seed is -1", "2^63"]),
        (["--seed", str(2**70)], [str(2**70)]),
        (["--seed", "1", "--temperature", "0"], ["temperature is 0.0", "positive"]),
        (["--temperature", "0.5"], ["temperature is 0.5", "give a seed"]),
        (["--model", "no-such-model"], ["'no-such-model'", "smollm2-135m"]),
        (["--model", "synthetic:smollm2-135m"], ["no tokenizer", "tokenizer of smollm2-135m"]),
    ],
)
def test_an_error_gives_the_value_and_the_way_out(saved, course, arguments, words):
    usual = ["--model", saved, "--precision", "fp32", "--prompt", PROMPT, "--new-tokens", 4]
    code, out, err = course(*usual, *arguments)
    assert (code, out) == (1, "")
    assert err.startswith("error: ")
    for word in words:
        assert word in err


def test_a_gpu_that_is_not_there_is_named(saved, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with refused(ModelError, "'cuda'", "device='cpu'"):
        generate_text.side_by_side(saved, PROMPT, ("fp16",), "cuda")


def test_too_little_memory_is_said_before_anything_is_read(folder, monkeypatch):
    monkeypatch.setattr(models.load, "free_memory", lambda device: 1000)
    monkeypatch.setattr(models, "free_memory", lambda device: 1000)
    monkeypatch.setattr(generate_text.models, "load_tokenizer", None)
    monkeypatch.setattr(generate_text, "load_meta_tokenizer", None)
    with refused(NotEnoughMemoryError, str(folder), "fp32", "are free on cpu"):
        answer(folder)


def test_memory_that_runs_out_on_the_way_is_said_with_what_would_need_less(saved, monkeypatch):
    def run_out(*_):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB.\nMore.")

    monkeypatch.setattr(generate_text, "generate", run_out)
    with refused(NotEnoughMemoryError, "fp32 ran out", "Tried to allocate 2 GiB", "12 new tokens"):
        answer(saved)


def test_a_tokenizer_of_another_model_is_refused(theirs, tmp_path):
    fewer = {token: rank for token, rank in RANKS.items() if rank < len(RANKS) - 1}
    write_ranks(save_meta(theirs, tmp_path), fewer)
    with refused(ModelFilesError, str(len(fewer) + 256), str(len(RANKS) + 256), "came with"):
        answer(tmp_path)


def test_a_meta_folder_without_weights_or_tokenizer_is_named(meta, theirs, tmp_path):
    save_meta(theirs, tmp_path)
    with refused(ModelFilesError, "tokenizer.model", "missing"):
        answer(tmp_path)
    write_ranks(tmp_path, RANKS)
    (tmp_path / "consolidated.00.pth").unlink()
    with refused(ModelFilesError, "no consolidated"):
        answer(tmp_path)


def test_a_tokenizers_missing_package_is_named(meta, monkeypatch):
    monkeypatch.setitem(sys.modules, "tiktoken", None)
    with refused(ModelError, "pip install tiktoken"):
        answer(meta)


@pytest.mark.slow
def test_the_default_model_answers_as_hugging_faces_generate_does():
    name = models.DEFAULT_MODEL
    prompt = answers.prompt_tokens(load_tokenizer(name), "Why is the sky blue?")
    found = answer(name, "bf16", "int8", prompt="Why is the sky blue?", new_tokens=16)
    for one in found:
        model = load_model(name, one.precision, "cpu")
        assert one.tokens == answers.greedy_answer(model, prompt, 16)
