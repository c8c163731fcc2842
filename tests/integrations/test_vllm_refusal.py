"""vLLM needs merged weights: our trainers refuse it at the start, and TRL's own as soon as they add an adapter."""

from __future__ import annotations

import inspect
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from peft import LoraConfig, get_peft_model
from torch import nn
from trl import GRPOTrainer, RLOOTrainer
from trl.generation.vllm_generation import VLLMGeneration

from peft_reft.hub_format.errors import MergeError
from peft_reft.integrations import ReftGRPOTrainer, ReftRLOOTrainer

from .preferences import POLICIES
from .test_online import KINDS, online_trainer
from .tiny_sft import base_model, losses, reft, trainable

OURS = {"grpo": ReftGRPOTrainer, "rloo": ReftRLOOTrainer}
LORA = LoraConfig(r=2, target_modules=["q_proj"], task_type="CAUSAL_LM")


@pytest.fixture(params=KINDS)
def kind(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    name: str = request.param
    monkeypatch.setitem(KINDS, name, (KINDS[name][0], OURS[name]))
    return name


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What has been asked of vLLM; it is not installed here, and must not be missed."""
    asked: list[str] = []
    monkeypatch.setattr(VLLMGeneration, "_init_vllm", lambda self: asked.append(self.mode))
    return asked


@pytest.mark.parametrize("mode", ["server", "colocate"])
@pytest.mark.parametrize("policy", ["new", *POLICIES])
def test_vllm_is_refused_before_it_is_asked(
    tmp_path: Path, kind: str, policy: str, mode: str, started: list[str]
) -> None:
    given: dict[str, Any] = {"given": {"peft_config": reft()}} if policy == "new" else {}
    model: nn.Module = base_model() if policy == "new" else POLICIES[policy]()
    before = [name for name, _ in model.named_parameters()]
    with pytest.raises(MergeError, match=rf"vllm_mode='{mode}'.*cannot be merged.*use_vllm=False"):
        online_trainer(kind, tmp_path, model, use_vllm=True, vllm_mode=mode, **given)
    assert started == []
    assert [name for name, _ in model.named_parameters()] == before


@pytest.mark.parametrize("policy", ["new", *POLICIES])
@pytest.mark.parametrize("plain", KINDS)
def test_a_plain_trainer_refuses_it_as_soon_as_it_adds_an_adapter(
    tmp_path: Path, plain: str, policy: str, started: list[str]
) -> None:
    """The policy's own, or the reference's."""
    given: dict[str, Any] = {"given": {"peft_config": reft()}} if policy == "new" else {}
    model: nn.Module = base_model() if policy == "new" else POLICIES[policy]()
    with pytest.raises(MergeError, match=r"vllm_mode='server'.*cannot be merged.*use_vllm=False"):
        online_trainer(plain, tmp_path, model, use_vllm=True, vllm_mode="server", **given)
    assert started == []


def test_a_policy_without_edits_may_use_vllm(tmp_path: Path, kind: str, started: list[str]) -> None:
    online_trainer(kind, tmp_path, get_peft_model(base_model(), LORA), use_vllm=True, vllm_mode="colocate")
    assert started == ["colocate"]


def test_without_vllm_they_train_as_trl_s_own(tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    found = []
    for trained in (OURS[kind], {"grpo": GRPOTrainer, "rloo": RLOOTrainer}[kind]):
        monkeypatch.setitem(KINDS, kind, (KINDS[kind][0], trained))
        trainer = online_trainer(kind, tmp_path, POLICIES["reft"]())
        assert type(trainer) is trained
        found.append((losses(trainer), trainable(trainer.model)))
    assert found[0][0] == found[1][0]
    assert all((p == found[1][1][name]).all() for name, p in found[0][1].items())


def test_they_take_what_trl_s_own_take() -> None:
    assert inspect.signature(ReftGRPOTrainer) == inspect.signature(GRPOTrainer)
    assert inspect.signature(ReftRLOOTrainer) == inspect.signature(RLOOTrainer)


@pytest.mark.parametrize("policy", POLICIES)
def test_sending_weights_is_an_error_that_names_the_option(policy: str) -> None:
    """What a stock trainer does in its first step with a policy that it was given, and no reference."""
    sender = VLLMGeneration.__new__(VLLMGeneration)
    sender.model = POLICIES[policy]()
    sender._dist = SimpleNamespace(gather_params=lambda parameters: nullcontext(), is_fsdp=False)
    sending = [
        value
        for value in vars(VLLMGeneration).values()
        if inspect.isgeneratorfunction(value) and "merge_adapter" in inspect.getsource(value)
    ]
    assert len(sending) == 1
    with pytest.raises(MergeError, match="use_vllm=False"):
        next(sending[0](sender))
