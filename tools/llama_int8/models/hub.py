"""Models from the Hugging Face hub: one snapshot, and for every failure what to do."""

import contextlib
from pathlib import Path

from llama_int8.errors import GatedModelError, HubError, in_short
from llama_int8.models.registry import HubSource, ModelSpec

# No pickled weights and no code: safetensors, tokenizer and configuration only.
PATTERNS = ["*.safetensors", "*.json", "*.jinja", "tokenizer.model"]


def hub_folder(spec: ModelSpec) -> Path:
    """The local snapshot of `spec`, from the first of its sources that answers.

    Raises GatedModelError or HubError that names every source tried and its reason.
    """
    failures: list[HubError] = []
    away = not _hub_answers()
    for source in spec.sources:
        try:
            return _snapshot(source, cached_only=away)
        except HubError as error:
            failures.append(error)
    kind = GatedModelError if any(isinstance(f, GatedModelError) for f in failures) else HubError
    reasons = "; ".join(str(failure) for failure in failures)
    raise kind(
        f"{spec.name} cannot be had: {reasons}. Without a hub the course runs on smollm2-135m, "
        f"on a local folder, or on synthetic:{spec.name} for memory and speed"
    )


def cached_folder(spec: ModelSpec) -> Path | None:
    """The local snapshot of `spec` as an earlier download left it; nothing is fetched."""
    for source in spec.sources:
        with contextlib.suppress(HubError):
            return _snapshot(source, cached_only=True)
    return None


def _hub_answers() -> bool:
    # huggingface_hub waits for its first answer without limit, so ask once, with one.
    from huggingface_hub import constants, get_session

    try:
        get_session().head(constants.ENDPOINT, timeout=constants.HF_HUB_ETAG_TIMEOUT)
    except Exception:  # any kind of network failure, or HF_HUB_OFFLINE
        return False
    return True


def _snapshot(source: HubSource, cached_only: bool) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import (
        GatedRepoError,
        HfHubHTTPError,
        LocalEntryNotFoundError,
        RevisionNotFoundError,
    )

    name = source.repository
    try:
        folder = snapshot_download(
            name,
            revision=source.revision,
            allow_patterns=PATTERNS,
            local_files_only=cached_only,
        )
    except GatedRepoError:
        raise GatedModelError(
            f"{name} is gated: accept its licence on its hub page, then log in with "
            "`hf auth login` or set HF_TOKEN (in Colab: the key symbol on the left)"
        ) from None
    except RevisionNotFoundError:
        raise HubError(f"{name} has no revision {source.revision}") from None
    except (HfHubHTTPError, LocalEntryNotFoundError) as error:
        raise _answered_or_away(name, error) from None
    except Exception as error:  # the HTTP library's own kinds differ between hub versions
        raise HubError(
            f"{name}: the download broke off ({in_short(error)}); "
            "run it again, finished files are kept"
        ) from error
    return Path(folder)


def _answered_or_away(name: str, error: Exception) -> HubError:
    # huggingface_hub wraps what went wrong in "not found locally" when no copy is cached either.
    response = getattr(error, "response", None) or getattr(error.__cause__, "response", None)
    if response is None:
        return HubError(f"{name}: the hub cannot be reached and no complete copy is cached")
    if response.status_code in (401, 404):  # without a token the hub answers 401 for a missing one
        return HubError(
            f"{name} does not exist on the hub, or is private: then log in with `hf auth login` or "
            "set HF_TOKEN, and unset a token that expired"
        )
    if response.status_code == 403:
        return GatedModelError(
            f"{name}: the hub refuses access (HTTP 403) without a token that may read it: log in "
            "with `hf auth login` or set HF_TOKEN"
        )
    return HubError(f"{name}: the hub answers HTTP {response.status_code}; try again later")


def revision_of(folder: Path) -> str | None:
    """The commit that a hub snapshot was resolved to, None for any other folder."""
    return folder.name if folder.parent.name == "snapshots" else None
