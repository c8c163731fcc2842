"""What is read from the Hub: one revision per load, and refusals that say which kind they are."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from huggingface_hub import snapshot_download
from huggingface_hub.errors import (
    EntryNotFoundError,
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    LocalEntryNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from .bundle import INDEX_NAME
from .errors import HubError
from .http_client import ConnectError, TransportError
from .manifest import CARD_NAME, CONFIG_NAME, MANIFEST_NAME, ROUTER_NAME, WEIGHTS_NAME

__all__ = ["fetch_folder", "fetch_listing", "hub_errors"]


def fetch_folder(
    repo_id: str, *, revision: str | None = None, token: str | bool | None = None, **options: Any
) -> Path:
    """Bring a repository's adapter files, card and router into the cache, all from one commit; returns the folder.

    Offline, or where the Hub cannot be reached, the folder is the cached one of that revision, as far as it was
    fetched before.

    Raises:
        HubError: the repository is missing, gated, has no such revision, or is out of reach and not cached.
    """
    names = (CONFIG_NAME, WEIGHTS_NAME, MANIFEST_NAME, INDEX_NAME)
    patterns = [*names, *(f"*/{name}" for name in names), CARD_NAME, ROUTER_NAME]
    return _snapshot(repo_id, patterns, revision=revision, token=token, **options)


def fetch_listing(repo_id: str, *, revision: str | None = None, token: str | bool | None = None) -> Path:
    """As `fetch_folder`, without weights: what says which adapters a repository holds."""
    return _snapshot(repo_id, [INDEX_NAME, CONFIG_NAME, f"*/{CONFIG_NAME}"], revision=revision, token=token)


@contextmanager
def hub_errors(repo_id: str, revision: str | None) -> Iterator[None]:
    """Name what a Hub says no to: it tells a gated repository from a missing one in `X-Error-Code`.

    Raises:
        HubError: with the code `hub.name`, `hub.gated`, `hub.missing`, `hub.revision`, `hub.offline`, `hub.server` (it
            failed, or is too busy), `hub.refused` or `hub.transfer` (bytes were cut off, or are not as many as it
            said). What was fetched stays in the cache, so that trying again goes on from there.
    """
    try:
        yield
    except (HFValidationError, HfHubHTTPError, TransportError, OSError, RuntimeError) as error:
        meant = _meaning(error, repo_id, revision)
        if meant is None:
            raise
        raise meant from error


def _meaning(error: Exception, repo_id: str, revision: str | None) -> HubError | None:
    """What an error of the client says of a repository; None where it says nothing of it."""
    if isinstance(error, HFValidationError):
        return HubError(
            f"{repo_id[:100]!r} is neither a folder nor the name of a repository",
            code="hub.name",
            value=repo_id,
            rule="a repository is named 'owner/name'",
            fix="check the path or the name",
        )
    if isinstance(error, RepositoryNotFoundError | RevisionNotFoundError):
        return _not_there(error, repo_id, revision)
    status = _status(error)
    if isinstance(error, LocalEntryNotFoundError | OfflineModeIsEnabled | ConnectError):
        return _answered(repo_id, status) if status is not None else _out_of_reach(repo_id, revision)
    if isinstance(error, EntryNotFoundError):
        return None  # a file that the repository does not have: who asked knows whether it needs it
    if isinstance(error, HfHubHTTPError):
        return _answered(repo_id, status)
    if isinstance(error, OSError) and error.errno is not None:
        return None  # of this machine's disk
    if status is not None:  # of one file of several, which the client wraps
        return _answered(repo_id, status)
    if isinstance(error, RuntimeError) and not isinstance(error.__cause__, TransportError):
        return None
    return HubError(
        f"a file of {repo_id} did not arrive whole: {str(error).splitlines()[0][:160]}",
        code="hub.transfer",
        value=repo_id,
        rule="what is cut off, or has another size than the Hub says, is not used",
        fix="try again: what arrived is in the cache",
    )


def _not_there(error: Exception, repo_id: str, revision: str | None) -> HubError:
    """Gated, missing, or without the revision."""
    if isinstance(error, GatedRepoError):  # a RepositoryNotFoundError too, so it is asked for first
        return HubError(
            f"access to {repo_id} is gated",
            code="hub.gated",
            value=repo_id,
            rule="its owner admits readers one by one",
            fix="ask for access on its page, and pass the token of the account that was admitted",
        )
    if isinstance(error, RepositoryNotFoundError):
        return HubError(
            f"{repo_id} does not exist, or is private and this token may not see it",
            code="hub.missing",
            value=repo_id,
            fix="check the name; for a private repository pass token=, or log in with `hf auth login`",
        )
    return HubError(
        f"{repo_id} has no revision {revision!r}",
        code="hub.revision",
        value=revision,
        rule="a revision is a branch, a tag, a commit or refs/pr/<number>",
        fix="leave it out for the default branch",
    )


def _out_of_reach(repo_id: str, revision: str | None) -> HubError:
    return HubError(
        f"the Hub cannot be reached, and revision {revision or 'main'!r} of {repo_id} is not in the cache",
        code="hub.offline",
        value=repo_id,
        fix="fetch it once with a connection (and without HF_HUB_OFFLINE), or give a local folder",
    )


def _status(error: BaseException | None) -> int | None:
    """The status that a Hub answered with, where an error comes from an answer; the client wraps some."""
    while error is not None:
        if isinstance(error, HfHubHTTPError) and error.response is not None:
            return int(error.response.status_code)
        error = error.__cause__ or error.__context__
    return None


def _answered(repo_id: str, status: int | None) -> HubError:
    if status is not None and (status >= 500 or status == 429):
        return HubError(
            f"the Hub answered {status} for {repo_id}",
            code="hub.server",
            value=status,
            fix="try again later: nothing was lost, and what was sent or fetched is not sent or fetched twice",
        )
    return HubError(
        f"the Hub refused the request for {repo_id}" + (f" with status {status}" if status else ""),
        code="hub.refused",
        value=status,
        fix="check that the token may do this, and that the repository is not disabled",
    )


def _snapshot(repo_id: str, patterns: list[str], **options: Any) -> Path:
    with hub_errors(repo_id, options.get("revision")):
        return Path(snapshot_download(repo_id, allow_patterns=patterns, **options))
