"""Each fault reaches the client as the failure it stands for."""

from __future__ import annotations

import pathlib
import time

import pytest
from huggingface_hub import HfApi
from huggingface_hub.errors import HfHubHTTPError

from tools.loopback_hub import LoopbackHub
from tools.loopback_hub.faults import (
    call_first,
    cut_connection,
    flipped_bit,
    lost_answer,
    server_error,
    slow_body,
    wrong_size,
)
from tools.loopback_hub.objects import StoredFile

# huggingface_hub 2.4 hands its upload body to httpx2 by a keyword that is deprecated there.
pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=<...>':DeprecationWarning")

DATA = bytes(range(256)) * 40


@pytest.fixture
def pushed(api: HfApi) -> HfApi:
    api.create_repo("me/x")
    api.upload_file(path_or_fileobj=DATA, path_in_repo="a.safetensors", repo_id="me/x")
    api.upload_file(path_or_fileobj=b'{"a": 1}', path_in_repo="a.json", repo_id="me/x")
    return api


def download(api: HfApi, path: str, cache: pathlib.Path) -> bytes:
    return pathlib.Path(api.hf_hub_download("me/x", path, cache_dir=cache)).read_bytes()


def test_an_upload_survives_a_passing_server_error(hub: LoopbackHub, pushed: HfApi, cache: pathlib.Path) -> None:
    hub.faults.add(r"PUT /cdn/", server_error(503))
    pushed.upload_file(path_or_fileobj=b"new", path_in_repo="a.safetensors", repo_id="me/x")
    assert hub.faults.unused == 0
    assert download(pushed, "a.safetensors", cache) == b"new"


def test_a_lost_answer_hides_a_commit_that_took_place(hub: LoopbackHub, pushed: HfApi) -> None:
    before = pushed.model_info("me/x").sha
    hub.faults.add(r"POST .*/commit/main", lost_answer(500))
    with pytest.raises(HfHubHTTPError):
        pushed.upload_file(path_or_fileobj=b"[]", path_in_repo="a.json", repo_id="me/x")
    assert pushed.list_repo_commits("me/x")[1].commit_id == before


def test_a_cut_download_is_resumed_by_range(hub: LoopbackHub, pushed: HfApi, cache: pathlib.Path) -> None:
    hub.faults.add(r"GET /cdn/.*a\.safetensors", cut_connection(after=5000))
    assert download(pushed, "a.safetensors", cache) == DATA
    assert hub.faults.unused == 0
    assert len([r for r in hub.requests if r.line.startswith("GET /cdn/")]) == 2


def test_a_body_may_be_slow(hub: LoopbackHub, pushed: HfApi, cache: pathlib.Path) -> None:
    hub.faults.add(r"GET .*/resolve/.*a\.json", slow_body(0.4))
    start = time.monotonic()
    assert download(pushed, "a.json", cache) == b'{"a": 1}'
    assert time.monotonic() - start >= 0.4


@pytest.mark.parametrize("by", [-1, 1])
def test_the_client_sees_a_wrong_size(hub: LoopbackHub, pushed: HfApi, cache: pathlib.Path, by: int) -> None:
    hub.faults.add(r"GET /cdn/", wrong_size(by))
    with pytest.raises(OSError, match="Consistency check failed"):
        download(pushed, "a.safetensors", cache)


def test_the_client_does_not_see_a_flipped_bit(hub: LoopbackHub, pushed: HfApi, cache: pathlib.Path) -> None:
    hub.faults.add(r"GET /cdn/", flipped_bit(at=7))
    received = download(pushed, "a.safetensors", cache)
    assert received == DATA[:7] + bytes([DATA[7] ^ 1]) + DATA[8:]


def test_a_push_between_two_reads_tears_them(hub: LoopbackHub, pushed: HfApi, cache: pathlib.Path) -> None:
    def push() -> None:
        hub.storage.repos["me/x"].commit({"a.json": StoredFile.regular(b'{"a": 2}')}, title="meanwhile")

    hub.faults.add(r"HEAD .*/a\.json", call_first(push))
    snapshot = pathlib.Path(pushed.hf_hub_download("me/x", "a.safetensors", cache_dir=cache)).parent
    assert pathlib.Path(pushed.hf_hub_download("me/x", "a.json", cache_dir=cache)).parent != snapshot
