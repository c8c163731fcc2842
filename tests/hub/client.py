"""This process as a client of a hub: huggingface_hub reads its settings when it is imported, long before."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import huggingface_hub._snapshot_download as snapshots
import huggingface_hub.file_download as downloads
import huggingface_hub.hf_api as api
import pytest
import transformers.utils.hub as transformers_hub
from huggingface_hub import constants
from huggingface_hub.utils import disable_progress_bars

from tools.loopback_hub import LoopbackHub

__all__ = ["become_client", "hub"]


def become_client(hub: LoopbackHub, home: Path, patch: pytest.MonkeyPatch) -> None:
    """Point this process's client to a hub, with an empty cache in `home` and the token of user "me"."""
    for module in (constants, downloads, snapshots, api):
        for name, value in (("ENDPOINT", hub.endpoint), ("HF_HUB_CACHE", str(home / "cache"))):
            if hasattr(module, name):
                patch.setattr(module, name, value)
    patch.setattr(api.api, "endpoint", hub.endpoint)
    patch.setattr(transformers_hub, "_hf_api", None, raising=False)  # newer ones keep one, of the hub before
    patch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", hub.endpoint + "/{repo_id}/resolve/{revision}/{filename}")
    patch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    patch.setattr(constants, "HF_HUB_OFFLINE", False)
    patch.setattr(constants, "HF_TOKEN_PATH", str(home / "token"))
    patch.setenv("HF_TOKEN", hub.token)
    disable_progress_bars()


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[LoopbackHub]:
    """A hub that this process's client talks to."""
    with LoopbackHub() as running:
        become_client(running, tmp_path, monkeypatch)
        yield running
