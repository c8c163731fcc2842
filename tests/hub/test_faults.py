"""A Hub that fails, stalls, cuts off or spoils: the folder stays or is the new one, and the error has its name."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from peft import PeftModel
from saving.killing import count_steps, killed_at

from contract.tiny import base_model, reft_model
from peft_reft import MixedReftModel, ReftConfig, list_adapters, pull, push_to_hub
from peft_reft.hub_format.errors import HubError, ReftError
from peft_reft.hub_format.journal import STAGE_PREFIX
from tools.loopback_hub import LoopbackHub
from tools.loopback_hub.faults import (
    Effect,
    call_first,
    cut_connection,
    flipped_bit,
    server_error,
    slow_body,
    wrong_size,
)

from .folders import contents, upload

pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=<...>':DeprecationWarning")
INFO = r"GET /api/models/me/x"
WEIGHTS, CONFIG = r"GET /cdn/me/x/.*/adapter_model", r"GET /me/x/resolve/.*/adapter_config"
HEAD_WEIGHTS, HEAD_CONFIG = r"HEAD /me/x/resolve/.*/adapter_model", r"HEAD /me/x/resolve/.*/adapter_config"
ALWAYS = 999
FAULTS: dict[str, tuple[str, Effect, int, str | None]] = {
    "no information": (INFO, server_error(500), ALWAYS, "hub.server"),
    "no weights": (WEIGHTS, server_error(500), ALWAYS, "hub.server"),
    "no weights once": (WEIGHTS, server_error(503), 1, "hub.server"),
    "too busy": (WEIGHTS, server_error(429), ALWAYS, "hub.server"),
    "refused": (WEIGHTS, server_error(403), ALWAYS, "hub.refused"),
    "no head of the config": (HEAD_CONFIG, server_error(500), ALWAYS, "hub.server"),
    "no head of the weights": (HEAD_WEIGHTS, server_error(502), ALWAYS, "hub.server"),
    "slow": (WEIGHTS, slow_body(0.4), 1, None),
    "cut off once": (WEIGHTS, cut_connection(700), 1, None),
    "cut off": (WEIGHTS, cut_connection(700), ALWAYS, "hub.transfer"),
    "config cut off": (CONFIG, cut_connection(100), ALWAYS, "hub.transfer"),
    "too long": (WEIGHTS, wrong_size(8), ALWAYS, "hub.transfer"),
    "too short": (WEIGHTS, wrong_size(-8), ALWAYS, "hub.transfer"),
    "config too short": (CONFIG, wrong_size(-8), ALWAYS, "hub.transfer"),
    "flipped": (WEIGHTS, flipped_bit(), ALWAYS, "spoilt"),
    "config flipped": (CONFIG, flipped_bit(), ALWAYS, "spoilt"),
}
SPOILT = ("bundle.files", "integrity.file")


@pytest.fixture(autouse=True)
def hasty(monkeypatch: pytest.MonkeyPatch) -> None:
    """The client waits up to 23 seconds between its attempts."""
    monkeypatch.setattr(time, "sleep", lambda _: None)


@pytest.mark.parametrize("name", FAULTS)
def test_a_pull_is_the_old_the_new_or_a_named_error(
    name: str, hub: LoopbackHub, alone: Path, bundle: Path, tmp_path: Path
) -> None:
    pattern, effect, times, code = FAULTS[name]
    here = tmp_path / "here"
    shutil.copytree(alone, here)
    upload(hub, bundle)
    hub.faults.add(pattern, effect, times=times)
    if code is None:
        pull("me/x", here)
        assert hub.faults.unused == 0
    else:
        with pytest.raises(ReftError) as caught:
            pull("me/x", here)
        assert caught.value.code in (SPOILT if code == "spoilt" else (code,))
        assert caught.value.fix
        assert hub.faults.unused < times
        assert contents(here) == contents(alone)
        assert not [path for path in tmp_path.rglob(".*") if STAGE_PREFIX in path.name]
        hub.faults.clear()
        if code != "spoilt":  # which the cache has now; asking again with another commit heals that
            pull("me/x", here)
    if code != "spoilt":
        assert contents(here) == contents(bundle)


@pytest.mark.parametrize("name", FAULTS)
def test_a_load_is_whole_or_a_named_error(
    name: str, hub: LoopbackHub, alone: Path, bundle: Path, tmp_path: Path
) -> None:
    pattern, effect, times, code = FAULTS[name]
    loads: dict[str, Callable[[], Any]] = {
        "mixed": lambda: MixedReftModel.from_pretrained(base_model("llama"), "me/x"),
        "peft": lambda: PeftModel.from_pretrained(base_model("llama"), "me/x"),
        "config": lambda: ReftConfig.from_pretrained("me/x"),
    }
    for verb, load in loads.items():
        upload(hub, bundle if verb == "mixed" else alone)
        shutil.rmtree(tmp_path / "cache", ignore_errors=True)
        hub.faults.add(pattern, effect, times=times)
        asked = pattern != INFO or verb == "mixed"  # only a whole folder asks for it
        if code is None or not asked:
            load()
        else:
            with pytest.raises(ValueError) as caught:  # noqa: PT011  # the code is looked at below
                load()
            if isinstance(caught.value, ReftError):
                assert caught.value.code in (SPOILT if code == "spoilt" else (code,))
            else:  # PEFT asks for the config first, to know whose it is
                assert verb == "peft"
                assert "Can't find 'adapter_config.json'" in str(caught.value)
                assert "config" in name
        hub.faults.clear()


def test_a_revision_torn_between_config_and_weights_is_refused(hub: LoopbackHub, alone: Path, tmp_path: Path) -> None:
    """PEFT asks for the branch twice; a push between the two brings other weights."""
    upload(hub, alone)
    other = tmp_path / "other"
    reft_model("llama", seed=3).save_pretrained(other)
    hub.faults.add(r"HEAD /me/x/resolve/main/adapter_model", call_first(lambda: upload(hub, other)))
    with pytest.raises(ReftError) as caught:
        PeftModel.from_pretrained(base_model("llama"), "me/x")
    assert hub.faults.unused == 0
    assert caught.value.code == "integrity.tensors"
    PeftModel.from_pretrained(base_model("llama"), "me/x")


def test_a_hub_that_is_not_there_is_named_with_its_fix(
    hub: LoopbackHub, alone: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import huggingface_hub.hf_api as api

    upload(hub, alone)
    pull("me/x", tmp_path / "before")
    monkeypatch.setattr(api.api, "endpoint", "http://127.0.0.1:9")
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setattr("huggingface_hub.hf_api.ENDPOINT", "http://127.0.0.1:9", raising=False)
    for ask in (
        lambda: pull("me/other", tmp_path / "never"),
        lambda: list_adapters("me/other"),
        lambda: push_to_hub(reft_model("llama"), "me/other"),
    ):
        with pytest.raises(HubError) as caught:
            ask()
        assert caught.value.code == "hub.offline"
        assert "connection" in str(caught.value.fix)
    assert not (tmp_path / "never").exists()


def test_a_killed_pull_leaves_the_old_or_the_new(hub: LoopbackHub, alone: Path, bundle: Path, tmp_path: Path) -> None:
    upload(hub, bundle)
    pull("me/x", tmp_path / "cached")
    here = tmp_path / "home" / "here"

    def again() -> None:
        shutil.rmtree(here.parent, ignore_errors=True)
        shutil.copytree(alone, here)

    again()
    total = count_steps(lambda: pull("me/x", here), here.parent)
    assert total > 30
    seen = set()
    for step in [0, total // 2, *range(total - 15, total, 3)]:
        again()
        killed_at(step, lambda: pull("me/x", here), here.parent)
        list_adapters(here)
        found = {path: data for path, data in contents(here).items() if STAGE_PREFIX not in path}
        assert found in (contents(alone), contents(bundle)), step
        seen.add(found == contents(bundle))
    assert seen == {False, True}


def test_a_disk_that_is_full_is_no_fault_of_the_hub(
    hub: LoopbackHub, alone: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    upload(hub, alone)

    def full(*_: object, **__: object) -> None:
        raise OSError(28, os.strerror(28))

    monkeypatch.setattr(shutil, "copyfile", full)
    with pytest.raises(OSError, match="No space"):
        pull("me/x", tmp_path / "here")
    assert not (tmp_path / "here").exists()
