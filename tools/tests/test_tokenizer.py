"""`load_tokenizer`: what a folder says of its texts is kept, and its habits change no measurement."""

import json
import shutil
from pathlib import Path

import pytest
import sentencepiece
from byte_tokenizer import byte_tokenizer
from test_checkpoints import RANKS, write_ranks
from tokenizers import processors

from llama_int8.errors import ModelError, ModelFilesError
from llama_int8.evaluation import loglikelihood, perplexity
from llama_int8.evaluation.tasks import Item
from llama_int8.models import check_ids, load_tokenizer, tokenizer

TEXT = "Salt melts ice , in the  end ."
ITEM = Item("Salt melts", ("ice.", "iron."), 0)
BOTH = {"special_tokens": [("<s>", 0), ("</s>", 1)]}


def saved(folder: Path, post_processor=None, **settings) -> Path:
    """A folder with a tokenizer of bytes, `<s>` before every text; `settings` of its config file."""
    made = byte_tokenizer(start=True)
    if post_processor is not None:
        made.backend_tokenizer.post_processor = post_processor
    made.save_pretrained(folder)
    change_json(folder / "tokenizer_config.json", **settings)
    return folder


def change_json(path, **changes):
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


@pytest.fixture
def plain(tmp_path):
    return load_tokenizer(saved(tmp_path / "plain"))


ENDING = {
    "a template": lambda: processors.TemplateProcessing(single="<s> $A </s>", **BOTH),
    "two ends": lambda: processors.TemplateProcessing(single="<s> $A </s> </s>", **BOTH),
    "in a sequence": lambda: processors.Sequence(
        [
            processors.ByteLevel(trim_offsets=False),
            processors.TemplateProcessing(single="<s> $A </s>", **BOTH),
        ]
    ),
}


@pytest.mark.parametrize("kind", ENDING)
def test_an_end_token_after_every_text_is_no_part_of_a_score_or_a_prompt(kind, plain, tmp_path):
    ending = load_tokenizer(saved(tmp_path / "ending", ENDING[kind]()))
    assert ending(TEXT)["input_ids"] == plain(TEXT)["input_ids"]
    assert ending("")["input_ids"] == plain("")["input_ids"] == [0]
    assert loglikelihood.pack(ending, ITEM) == loglikelihood.pack(plain, ITEM)
    ours, theirs = (perplexity.strided(t, TEXT * 3, 16, 8) for t in (ending, plain))
    assert ours.windows.tolist() == theirs.windows.tolist()
    assert ours.bytes.tolist() == theirs.bytes.tolist()


def test_an_end_token_that_cannot_be_taken_out_is_named(tmp_path):
    roberta = processors.RobertaProcessing(("</s>", 1), ("<s>", 0))
    with pytest.raises(ModelFilesError, match=r"puts a token after every text: RobertaP"):
        load_tokenizer(saved(tmp_path, roberta))


@pytest.mark.parametrize(
    "habits",
    [
        {"add_eos_token": True},
        {"clean_up_tokenization_spaces": True},
        {"model_max_length": 3},
        {"padding_side": "left", "truncation_side": "left"},
        {"split_special_tokens": True},
    ],
)
def test_a_habit_in_the_config_file_changes_no_text(habits, plain, tmp_path):
    other = load_tokenizer(saved(tmp_path / "other", **habits))
    for text in (TEXT, "<s>a</s>"):
        ids = other(text)["input_ids"]
        assert ids == plain(text)["input_ids"]
        assert other.decode(ids) == plain.decode(ids)
    assert loglikelihood.pack(other, ITEM) == loglikelihood.pack(plain, ITEM)


def test_cutting_and_filling_that_the_file_holds_are_undone(plain, tmp_path):
    folder = saved(tmp_path / "cutting")
    cut = {"direction": "Right", "max_length": 3, "strategy": "LongestFirst", "stride": 0}
    filled = {"pad_to_multiple_of": 64, "pad_id": 1, "pad_type_id": 0, "pad_token": "</s>"}
    fill = {"strategy": "BatchLongest", "direction": "Left", **filled}
    change_json(folder / "tokenizer.json", truncation=cut, padding=fill)
    cutting = load_tokenizer(folder)
    assert cutting(TEXT)["input_ids"] == plain(TEXT)["input_ids"]
    assert cutting.backend_tokenizer.encode(TEXT).ids == plain(TEXT)["input_ids"]


def test_whether_a_text_begins_with_a_token_is_the_models_own_form(tmp_path):
    byte_tokenizer().save_pretrained(tmp_path / "without")
    assert load_tokenizer(tmp_path / "without")("a")["input_ids"] != [0]
    assert load_tokenizer(saved(tmp_path / "with"))("a")["input_ids"][0] == 0


def test_neutral_habits_are_saved_and_loaded_again(plain, tmp_path):
    ending = load_tokenizer(saved(tmp_path / "ending", ENDING["a template"]()))
    ending.save_pretrained(tmp_path / "again")
    assert load_tokenizer(tmp_path / "again")(TEXT)["input_ids"] == plain(TEXT)["input_ids"]


# Tokens that the model does not know


def test_a_token_beyond_the_vocabulary_is_named_and_one_that_never_occurs_is_not(plain):
    plain.add_tokens(["[PAD]"])
    number = len(plain) - 1
    check_ids(plain, plain(TEXT)["input_ids"], number)
    with pytest.raises(ModelFilesError) as error:
        check_ids(plain, plain("a [PAD] b")["input_ids"], number)
    for words in (f"token {number} ('[PAD]')", f"vocabulary of {number}", "leave that token out"):
        assert words in str(error.value)


# A tokenizer.model without tokenizer.json, as older conversions have it


@pytest.fixture(scope="module")
def sentencepiece_folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("sentencepiece")
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(["The quick brown fox jumps over the lazy dog."] * 20),
        model_prefix=str(folder / "tokenizer"),
        model_type="bpe",
        vocab_size=300,
        byte_fallback=True,
        minloglevel=2,
    )
    (folder / "config.json").write_text('{"model_type": "llama"}')
    return folder


@pytest.mark.parametrize(
    ("settings", "start"),
    [
        (None, [1]),
        ({"tokenizer_class": "LlamaTokenizer"}, [1]),
        ({"tokenizer_class": "LlamaTokenizer", "add_bos_token": True, "legacy": False}, [1]),
        ({"tokenizer_class": "LlamaTokenizer", "add_bos_token": False}, []),
        ({"tokenizer_class": "LlamaTokenizer", "add_eos_token": True}, [1]),
    ],
)
def test_sentencepieces_file_is_read_as_sentencepiece_reads_it(
    settings, start, sentencepiece_folder, tmp_path
):
    pytest.importorskip("google.protobuf")
    folder = Path(shutil.copytree(sentencepiece_folder, tmp_path / "copy"))
    if settings is not None:
        (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    path = str(folder / "tokenizer.model")
    expected = sentencepiece.SentencePieceProcessor(model_file=path).encode("The lazy fox")
    assert load_tokenizer(folder)("The lazy fox")["input_ids"] == [*start, *expected]


@pytest.mark.parametrize("package", ["sentencepiece", "google.protobuf", "tiktoken"])
def test_the_package_that_a_tokenizer_model_needs_is_named(
    package, sentencepiece_folder, tmp_path, monkeypatch
):
    monkeypatch.setattr(tokenizer, "_is_installed", lambda name: name != package)
    folder = write_ranks(tmp_path, RANKS) if package == "tiktoken" else sentencepiece_folder
    name = package.removeprefix("google.")
    with pytest.raises(ModelError, match=rf"pip install {name}\. .*tokenizer\.json"):
        load_tokenizer(folder)


def test_a_folder_without_a_tokenizer_says_that_it_has_none(tmp_path):
    (tmp_path / "config.json").write_text('{"model_type": "llama"}')
    with pytest.raises(ModelFilesError, match=r"has no tokenizer \(tokenizer.json or"):
        load_tokenizer(tmp_path)


def test_merges_left_out_at_random_are_left_in(tmp_path):
    byte_tokenizer(("t", "h"), ("th", "e"), ("c", "a"), ("ca", "t")).save_pretrained(tmp_path)
    path = tmp_path / "tokenizer.json"
    content = json.loads(path.read_text())
    content["model"]["dropout"] = 0.5
    path.write_text(json.dumps(content))
    read = {tuple(load_tokenizer(tmp_path)("the cat, the cat")["input_ids"]) for _ in range(8)}
    content["model"]["dropout"] = None
    path.write_text(json.dumps(content))
    assert read == {tuple(load_tokenizer(tmp_path)("the cat, the cat")["input_ids"])}


def test_a_class_that_overrules_tokenizer_json_is_refused(tmp_path):
    byte_tokenizer(("t", "h")).save_pretrained(tmp_path)
    path = tmp_path / "tokenizer_config.json"
    config = json.loads(path.read_text())
    path.write_text(json.dumps({**config, "tokenizer_class": "GemmaTokenizer"}))
    with pytest.raises(ModelFilesError, match=r"in another way than tokenizer.json|cannot be read"):
        load_tokenizer(tmp_path)


def test_code_that_lies_in_a_folder_is_neither_run_nor_asked_for(tmp_path, monkeypatch):
    byte_tokenizer().save_pretrained(tmp_path)
    ran = tmp_path / "ran"
    (tmp_path / "own.py").write_text(f"open({str(ran)!r}, 'w')\nclass Own: pass\n")
    path = tmp_path / "tokenizer_config.json"
    own = {"auto_map": {"AutoTokenizer": ["own.Own", None]}, "tokenizer_class": "Own"}
    path.write_text(json.dumps({**json.loads(path.read_text()), **own}))
    monkeypatch.setattr("builtins.input", lambda *_: pytest.fail("asked"))
    try:
        load_tokenizer(tmp_path)
    except ModelFilesError as error:
        assert "cannot be read" in str(error)
    assert not ran.exists()
