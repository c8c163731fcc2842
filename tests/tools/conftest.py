"""A hub of its own for each test, and a real client of it in this process."""

from __future__ import annotations

import pathlib
from collections.abc import Iterator

import pytest
from huggingface_hub import HfApi, constants

from tools.loopback_hub import LoopbackHub


@pytest.fixture
def hub() -> Iterator[LoopbackHub]:
    with LoopbackHub() as running:
        yield running


@pytest.fixture
def api(hub: LoopbackHub, monkeypatch: pytest.MonkeyPatch) -> HfApi:
    """A client with the write token; the client's own switch for Xet is read at import, so it is set in place."""
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    return HfApi(endpoint=hub.endpoint, token=hub.token)


@pytest.fixture
def cache(tmp_path: pathlib.Path) -> pathlib.Path:
    return tmp_path / "hub-cache"
