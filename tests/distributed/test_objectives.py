"""Objectives and penalties under stock trainers in two processes: losses and steps are those of one process."""

from __future__ import annotations

from pathlib import Path

import pytest
from integrations.preferences import OBJECTIVES
from safetensors.torch import load_file
from torch import Tensor
from torch.testing import assert_close

from distributed.launch import TESTS, run_nodes
from distributed.objectives import PENALISED, TRAINED, losses_of
from distributed.test_trainers import commands
from peft_reft.hub_format.manifest import WEIGHTS_NAME

pytestmark = pytest.mark.slow


def train(root: Path, engine: str, size: int, starts: list[list[str]]) -> None:
    program = [str(TESTS / "distributed" / "objectives.py"), engine, str(root), str(size)]
    run_nodes([[*start, *program] for start in starts], timeout=600)


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What one process makes of all four pairs at once."""
    folder: Path = tmp_path_factory.mktemp("objectives")
    train(folder, "single", 4, [[]])
    return folder


@pytest.fixture(scope="module", params=["ddp", "fsdp2"])
def engine(request: pytest.FixtureRequest, root: Path) -> str:
    """The name of an engine that has run in two processes, two pairs each."""
    name: str = request.param
    train(root, name, 2, commands(name))
    return name


def weights(folder: Path) -> dict[str, Tensor]:
    return load_file(folder / WEIGHTS_NAME)


@pytest.mark.parametrize("name", TRAINED)
def test_two_processes_have_the_losses_and_steps_of_one(root: Path, engine: str, name: str) -> None:
    if engine == "fsdp2" and name in PENALISED:
        pytest.skip("a penalty of sharded parameters is refused")
    assert_close(losses_of(root / engine / name), losses_of(root / "single" / name), rtol=1e-4, atol=1e-5)
    found, expected = weights(root / engine / name), weights(root / "single" / name)
    assert set(found) == set(expected)
    for key, tensor in expected.items():
        assert_close(found[key], tensor, rtol=1e-4, atol=2e-5)


def test_the_objectives_and_the_penalty_train_apart(root: Path) -> None:
    """Or equal files would say nothing."""
    (key,) = weights(root / "single" / "split")
    ends = [weights(root / "single" / name)[key] for name in OBJECTIVES]
    for place, one in enumerate(ends):
        assert all(float((one - other).abs().max()) > 1e-3 for other in ends[:place])
    first, recomputed = (weights(root / "single" / name) for name in PENALISED)
    assert_close(first, recomputed, rtol=1e-5, atol=1e-6)
