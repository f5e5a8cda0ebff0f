"""Models from the Hugging Face hub: one snapshot, and every failure in words that help."""

from pathlib import Path

from llama_int8.models.errors import GatedModelError, HubError, ModelError
from llama_int8.models.registry import HubSource, ModelSpec

# No pickled weights and no code: safetensors, tokenizer and configuration only.
PATTERNS = ["*.safetensors", "*.safetensors.index.json", "*.json", "tokenizer.model"]


def hub_folder(spec: ModelSpec) -> Path:
    """The local snapshot of `spec`, from the first of its sources that answers.

    Raises GatedModelError or HubError that names every source tried and its reason.
    """
    failures: list[ModelError] = []
    for source in spec.sources:
        try:
            return _snapshot(source)
        except HubError as error:
            failures.append(error)
    gated = next((f for f in failures if isinstance(f, GatedModelError)), None)
    kind = GatedModelError if gated and len(failures) == 1 else HubError
    reasons = "; ".join(str(failure) for failure in failures)
    raise kind(
        f"{spec.name} cannot be had: {reasons}. Without a hub the course runs on smollm2-135m, "
        f"on a local folder, or on synthetic:{spec.name} for memory and speed"
    )


def _snapshot(source: HubSource) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import (
        GatedRepoError,
        LocalEntryNotFoundError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    name = source.repository
    try:
        return Path(snapshot_download(name, revision=source.revision, allow_patterns=PATTERNS))
    except GatedRepoError:
        raise GatedModelError(
            f"{name} is gated: accept its licence on its hub page, then log in with "
            "`hf auth login` or set HF_TOKEN (in Colab: the key symbol on the left)"
        ) from None
    except RevisionNotFoundError:
        raise HubError(f"{name} has no revision {source.revision}") from None
    except RepositoryNotFoundError:
        raise HubError(f"{name} does not exist on the hub, or is private") from None
    except LocalEntryNotFoundError:
        raise HubError(f"{name}: the hub cannot be reached and no copy is cached") from None
    except Exception as error:  # the HTTP library's own kinds differ between hub versions
        first_line = (str(error).strip() or "no reason given").splitlines()[0]
        raise HubError(
            f"{name}: the download broke off ({type(error).__name__}: {first_line}); "
            "run it again, finished files are kept"
        ) from error


def revision_of(folder: Path) -> str | None:
    """The commit that a hub snapshot was resolved to, None for any other folder."""
    return folder.name if folder.parent.name == "snapshots" else None
