"""FSDP's checkpoints of a mixed model are written whole, or not at all."""

from __future__ import annotations

import pytest
from accelerate import FullyShardedDataParallelPlugin
from accelerate.state import AcceleratorState

from mixed.tiny import mixed_model
from peft_reft.hub_format.errors import ConfigError


@pytest.mark.parametrize("kind", ["SHARDED_STATE_DICT", "FULL_STATE_DICT"])
def test_a_checkpoint_that_would_lose_the_edits_is_refused_before_training(
    kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = mixed_model()
    plugin = FullyShardedDataParallelPlugin(fsdp_version=2, state_dict_type=kind)
    monkeypatch.setitem(AcceleratorState._shared_state, "fsdp_plugin", plugin)
    model.eval()
    if kind == "FULL_STATE_DICT":
        assert model.train().training
        return
    with pytest.raises(ConfigError, match="FULL_STATE_DICT"):
        model.train()
    assert not model.training


def test_training_needs_no_accelerate() -> None:
    assert mixed_model().eval().train().training
