"""The folder or repository that an adapter is about to be loaded from: brought here at one revision, and checked."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from huggingface_hub import hf_hub_download
from huggingface_hub.errors import EntryNotFoundError

from .errors import ManifestError
from .journal import settle
from .manifest import CONFIG_NAME, MANIFEST_NAME, WEIGHTS_NAME
from .reader import CheckedFolder, check_folder
from .remote import hub_errors

__all__ = ["check_source"]


def check_source(source: str, subfolder: str | None, download: Mapping[str, Any]) -> CheckedFolder | None:
    """Check the folder or Hub repository that an adapter is about to be loaded from.

    A Hub repository is brought into the cache at one revision. PEFT asks for the weights again later; if it is given
    other bytes by then, the digests in the config refuse them.

    Returns:
        Config and manifest; None where PEFT is left to report what is missing, or where there are no weights.

    Raises:
        HubError: a file could not be fetched. PEFT would ask again, and load what nobody checked.
    """
    folder = Path(source, subfolder) if subfolder else Path(source)
    if folder.is_dir():
        settle(folder)
    if (folder / CONFIG_NAME).is_file():
        return check_folder(folder, pickles=True)
    if folder.exists():
        return None  # a folder without a config: PEFT's own message says so
    options = {name: value for name, value in download.items() if name != "subfolder"}
    found = {}
    for name in (CONFIG_NAME, MANIFEST_NAME, WEIGHTS_NAME):
        try:
            with hub_errors(source, options.get("revision")):
                found[name] = hf_hub_download(source, name, subfolder=subfolder, **options)
        except EntryNotFoundError:
            continue
        if name == CONFIG_NAME and (commit := _commit_of(Path(found[name]), subfolder)):
            options["revision"] = commit
    if CONFIG_NAME in found and (WEIGHTS_NAME in found or MANIFEST_NAME in found):
        return check_folder(Path(found[CONFIG_NAME]).parent)
    if CONFIG_NAME in found:
        raise ManifestError(
            f"{source} has a config and no {WEIGHTS_NAME}",
            code="weights.missing",
            value=source,
            fix="load a repository whose adapter was saved in safetensors",
        )
    return None


def _commit_of(path: Path, subfolder: str | None) -> str | None:
    folder = path.parent
    for _ in Path(subfolder or "").parts:
        folder = folder.parent
    return folder.name if folder.parent.name == "snapshots" else None
