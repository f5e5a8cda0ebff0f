"""The hub's answers and faults, played by a server on this machine; the client is a fresh process.

A fresh process, because huggingface_hub reads HF_ENDPOINT and HF_HOME when it is imported.
"""

import dataclasses
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from hub_stand_in import (
    BROKEN,
    COMMIT,
    FORBIDDEN,
    GATED,
    GATED_FOR_THIS_TOKEN,
    MISSING,
    MISSING_OR_PRIVATE,
    HubStandIn,
)
from saved_models import TINY, save_synthetic
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

import llama_int8
from llama_int8.files import content_hash

CONFIG = dataclasses.replace(TINY, vocab_size=16)
FIRST, SECOND = "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"

# What the client process does: register a model with the given sources, fetch it, say what came.
CLIENT = """
import json, sys, time
from llama_int8.models import MODELS, load_model, load_tokenizer, model_folder, revision_of
from llama_int8.models.content import model_hash
from llama_int8.models.registry import HubSource, ModelSpec
from llama_int8.transformer.config import LlamaConfig

config, sources, load = json.loads(sys.argv[1])
MODELS["tiny"] = ModelSpec(
    "tiny", LlamaConfig(**config), "none", tuple(HubSource(*source) for source in sources)
)
start, before = time.monotonic(), model_hash("tiny")
try:
    folder = model_folder("tiny")
    answer = {"folder": str(folder), "revision": revision_of(folder)}
    answer["content"] = [before, model_hash("tiny")]
    if load:
        tokens = load_tokenizer("tiny")("to be or not to be", return_tensors="pt").input_ids
        answer["tokens"] = tokens[0].tolist()
        answer["logits"] = load_model("tiny", "fp32", "cpu")(tokens).logits[0, -1].tolist()
except Exception as error:
    kinds = [kind.__name__ for kind in type(error).__mro__]
    answer = {"kinds": kinds, "message": str(error)}
print(json.dumps({**answer, "seconds": time.monotonic() - start}))
"""


@pytest.fixture(scope="session")
def served_folder(tmp_path_factory) -> Path:
    """A tiny model in two shards, with its tokenizer, and pickled weights that nobody may fetch."""
    folder = save_synthetic(
        CONFIG, tmp_path_factory.mktemp("served"), torch.float32, shard_bytes=50_000
    )
    assert {path.name for path in folder.glob("*.safetensors")} == {FIRST, SECOND}
    words = ["<unk>", "be", "not", "or", "to"]
    tokenizer = Tokenizer(models.WordLevel({w: i for i, w in enumerate(words)}, "<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, unk_token="<unk>", chat_template="{{ messages }}"
    ).save_pretrained(folder)
    (folder / "pytorch_model.bin").write_bytes(b"pickled")
    return folder


@pytest.fixture
def hub():
    with HubStandIn() as hub:
        yield hub


@pytest.fixture
def fetch(hub, tmp_path):
    """Fetch a model whose sources are `names` (or (name, gated, revision)) in a fresh process."""

    def run(*names, load=False, **settings):
        sources = [(name,) if isinstance(name, str) else name for name in names]
        environment = {k: v for k, v in os.environ.items() if not k.upper().startswith("HF_")} | {
            "PYTHONPATH": str(Path(llama_int8.__file__).parents[1]),
            "HF_ENDPOINT": hub.address,
            "HF_HOME": str(tmp_path / "hf"),
            "HF_HUB_DISABLE_PROGRESS_BARS": "1",
            "NO_PROXY": "*",
            **settings,
        }
        task = json.dumps([vars(CONFIG), sources, load])
        done = subprocess.run(
            [sys.executable, "-c", CLIENT, task],
            env=environment,
            capture_output=True,
            text=True,
            timeout=100,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout.splitlines()[-1])

    return run


def the_error(answer, kind="HubError"):
    """The message, after what holds for every failure: its class, one line, the way out."""
    assert answer["kinds"][0] == kind, answer
    assert "\n" not in answer["message"]
    assert "smollm2-135m" in answer["message"]
    assert "synthetic:tiny" in answer["message"]
    return answer["message"]


@pytest.mark.slow
def test_a_model_from_the_hub_is_the_one_served_and_loads_again_without_the_hub(
    hub, fetch, served_folder
):
    from llama_int8.models import load_model

    name = hub.serve("someone/tiny", served_folder)
    first = fetch(name, load=True)
    tokens = torch.tensor([first["tokens"]])
    expected = load_model(served_folder, "fp32", "cpu")(tokens).logits[0, -1]

    assert first["tokens"] == [4, 1, 3, 2, 4, 1]
    torch.testing.assert_close(torch.tensor(first["logits"]), expected)
    hub.go_away()
    again = fetch(name, load=True)
    assert again["logits"] == first["logits"]


def test_the_content_of_a_model_is_known_once_it_is_here_and_asks_the_hub_for_nothing(
    hub, fetch, served_folder
):
    first = fetch(hub.serve("someone/tiny", served_folder))
    assert first["content"] == [None, content_hash(served_folder)]
    hub.go_away()
    hub.requests.clear()
    assert fetch("someone/tiny")["content"] == [content_hash(served_folder)] * 2
    assert not hub.requests


def test_the_recorded_revision_is_the_commit_that_the_hub_served(hub, fetch, served_folder):
    assert fetch(hub.serve("someone/tiny", served_folder))["revision"] == COMMIT


def test_a_local_folder_has_no_revision(served_folder):
    from llama_int8.models import revision_of

    assert revision_of(served_folder) is None


def test_every_file_that_a_model_needs_is_fetched_and_pickled_weights_are_not(
    hub, fetch, served_folder
):
    answer = fetch(hub.serve("someone/tiny", served_folder))
    everything = {path.name for path in served_folder.iterdir()}
    assert {"chat_template.jinja", "tokenizer.json", "pytorch_model.bin"} <= everything
    assert {path.name for path in Path(answer["folder"]).iterdir()} == hub.downloads()
    assert hub.downloads() == everything - {"pytorch_model.bin"}


def test_a_pinned_commit_is_fetched_under_its_own_name(hub, fetch, served_folder):
    name = hub.serve("someone/tiny", served_folder)
    assert fetch((name, False, COMMIT))["revision"] == COMMIT


def test_a_second_fetch_downloads_nothing(hub, fetch, served_folder):
    name = hub.serve("someone/tiny", served_folder)
    first = fetch(name)
    hub.requests.clear()
    assert fetch(name)["folder"] == first["folder"]
    assert not hub.downloads()


@pytest.mark.parametrize("refusal", [GATED, GATED_FOR_THIS_TOKEN])
@pytest.mark.parametrize("files_only", [True, False])
def test_a_gated_repository_asks_for_licence_and_token(
    hub, fetch, served_folder, refusal, files_only
):
    name = hub.serve("meta/tiny", served_folder, refusal=refusal, refuses_files_only=files_only)
    message = the_error(fetch((name, True)), "GatedModelError")
    assert "meta/tiny is gated" in message
    assert "licence" in message
    assert "HF_TOKEN" in message


@pytest.mark.parametrize("files_only", [True, False])
def test_a_forbidden_repository_asks_for_another_token(hub, fetch, served_folder, files_only):
    name = hub.serve("meta/tiny", served_folder, refusal=FORBIDDEN, refuses_files_only=files_only)
    message = the_error(fetch(name), "GatedModelError")
    assert "HTTP 403" in message
    assert "HF_TOKEN" in message


@pytest.mark.parametrize("refusal", [MISSING, MISSING_OR_PRIVATE])
def test_a_missing_repository_is_named_and_is_not_called_gated(hub, fetch, refusal):
    message = the_error(fetch(hub.serve("someone/gone", refusal=refusal)))
    assert "someone/gone does not exist on the hub, or is private" in message


@pytest.mark.parametrize("revision", ["v9", "f" * 40])
def test_a_missing_revision_is_named(hub, fetch, served_folder, revision):
    name = hub.serve("someone/tiny", served_folder)
    message = the_error(fetch((name, False, revision)))
    assert f"someone/tiny has no revision {revision}" in message


def test_a_broken_hub_is_told_from_one_that_is_away(hub, fetch):
    message = the_error(fetch(hub.serve("someone/tiny", refusal=BROKEN)))
    assert "the hub answers HTTP 500" in message


def test_the_second_source_is_taken_where_the_first_is_missing(hub, fetch, served_folder):
    hub.serve("mirror/tiny", served_folder)
    answer = fetch("someone/gone", "mirror/tiny")
    assert "models--mirror--tiny" in answer["folder"]


def test_the_first_source_is_taken_where_both_are_there(hub, fetch, served_folder):
    hub.serve("first/tiny", served_folder)
    hub.serve("mirror/tiny", served_folder)
    assert "models--first--tiny" in fetch("first/tiny", "mirror/tiny")["folder"]


def test_where_a_mirror_is_gone_and_the_original_gated_the_message_has_both(hub, fetch):
    hub.serve("meta/tiny", refusal=GATED)
    message = the_error(fetch("someone/gone", ("meta/tiny", True)), "GatedModelError")
    assert "someone/gone does not exist" in message
    assert "meta/tiny is gated" in message


@pytest.mark.parametrize("revision", [None, COMMIT])
def test_a_hub_that_is_away_is_given_up_within_seconds(hub, fetch, revision):
    hub.go_away()
    answer = fetch(("someone/tiny", False, revision), ("mirror/tiny", False, revision))
    message = the_error(answer)
    assert message.count("the hub cannot be reached and no complete copy is cached") == 2
    assert answer["seconds"] < 5


def test_a_hub_that_takes_the_call_and_stays_silent_is_given_up_too(hub, fetch):
    hub.silent.set()
    answer = fetch("someone/tiny", HF_HUB_ETAG_TIMEOUT="1", HF_HUB_DISABLE_TELEMETRY="1")
    assert "the hub cannot be reached" in the_error(answer)
    assert answer["seconds"] < 10


def test_hf_hub_offline_takes_the_cached_copy_and_asks_nobody(hub, fetch, served_folder):
    name = hub.serve("someone/tiny", served_folder)
    first = fetch(name)
    hub.requests.clear()
    assert fetch(name, HF_HUB_OFFLINE="1")["folder"] == first["folder"]
    assert not hub.requests


def test_a_shortened_file_is_an_error_and_the_next_try_fetches_that_file_alone(
    hub, fetch, served_folder
):
    name = hub.serve("someone/tiny", served_folder)
    hub.cut, hub.drops_connection = (SECOND, 1000), False
    message = the_error(fetch(name))
    assert "the download broke off" in message
    assert "finished files are kept" in message

    hub.cut = None
    hub.requests.clear()
    whole = Path(fetch(name)["folder"])
    assert hub.downloads() == {SECOND}
    assert (whole / SECOND).read_bytes() == (served_folder / SECOND).read_bytes()


@pytest.mark.slow
def test_a_line_that_breaks_in_the_middle_of_a_file_is_an_error_within_bounded_time(
    hub, fetch, served_folder
):
    name = hub.serve("someone/tiny", served_folder)
    hub.cut = (SECOND, 1000)
    answer = fetch(name)
    assert "the download broke off" in the_error(answer)
    assert answer["seconds"] < 30

    hub.cut = None
    hub.requests.clear()
    whole = Path(fetch(name)["folder"])
    assert hub.downloads() == {SECOND}
    assert (whole / SECOND).read_bytes() == (served_folder / SECOND).read_bytes()


def test_half_a_snapshot_is_not_taken_for_a_copy_when_the_hub_is_away(hub, fetch, served_folder):
    name = hub.serve("someone/tiny", served_folder)
    hub.cut, hub.drops_connection = (SECOND, 1000), False
    fetch(name)
    hub.go_away()
    assert "no complete copy is cached" in the_error(fetch(name))
