"""Two gloo processes on the CPU against one process: losses, gradients, saved files, for each engine.

Model and adapters are in float64. A row of a batch has as many supervised tokens as any other, so the mean over two
processes is the loss of one that computes the whole batch. transformers computes the loss from float32 logits, which
sets its tolerance; DeepSpeed holds gradients and optimizer in float32, which sets that engine's.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel, get_peft_model
from safetensors.torch import load_file
from torch import Tensor

from contract.tiny import base_model
from distributed.checks import CHECKS, GENERATION, PROMPTS, ZERO_CHECKS
from distributed.engines import BASE, START, single
from distributed.launch import TORCHRUN, run
from distributed.models import KINDS, PENALISED, batch, edit_config, load, make, penalised, trained
from peft_reft.hub_format.manifest import WEIGHTS_NAME
from peft_reft.hub_format.reader import check_folder

PLAIN = ("ddp", "fsdp2", "fsdp2_kept", "tp")
ZERO = ("zero2", "zero3")
LOSS = 2e-6
"""Of losses around 8, from float32 logits: a few units in the last place."""
TOLERANCE = {**dict.fromkeys(PLAIN, 1e-12), **dict.fromkeys(ZERO, 2e-5)}


def prepare(root: Path) -> Path:
    """What the processes load and what they are compared with."""
    base_model("llama", dtype=torch.float64).save_pretrained(root / BASE)
    for kind in KINDS:
        make(kind).save_pretrained(str(root / f"{START}-{kind}"))
        for parts in (1, 2):
            result = single(kind, root / f"single{parts}-{kind}" / "0", parts=parts)
            torch.save(result, root / f"single{parts}-{kind}.pt")
    return root


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Engines of torch and transformers, and all checks, in one start of two processes."""
    root = prepare(tmp_path_factory.mktemp("plain"))
    run([*TORCHRUN, "-m", "distributed.worker", str(root), *PLAIN, *CHECKS])
    return root


@pytest.fixture(scope="module")
def zero(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """DeepSpeed's stages 2 and 3."""
    pytest.importorskip("deepspeed", reason="the extra `distributed` is not installed")
    root = prepare(tmp_path_factory.mktemp("zero"))
    run([*TORCHRUN, "-m", "distributed.worker", str(root), *ZERO, *ZERO_CHECKS])
    return root


def read(path: Path) -> dict[str, Any]:
    result: dict[str, Any] = torch.load(path, weights_only=False)
    return result


def files(folder: Path) -> dict[str, dict[str, Tensor]]:
    return {path.relative_to(folder).as_posix(): load_file(path) for path in sorted(folder.rglob(WEIGHTS_NAME))}


def assert_same(found: dict[str, Tensor], expected: dict[str, Tensor], atol: float) -> None:
    """Within atol, or bit for bit where that is 0."""
    assert set(found) == set(expected)
    for name, tensor in expected.items():
        assert found[name].shape == tensor.shape, name
        worst = float((found[name] - tensor).abs().max())
        assert worst <= atol, f"{name} differs by {worst}"


def is_idle(name: str) -> bool:
    """What edits the first tokens after the last block: nothing that is supervised reads it, its gradient is zero."""
    return ".layers.2.reft.reft_0." in name


def compare(root: Path, engine: str, kind: str, *, parts: int = 1, atol: float, loss: float) -> None:
    reference = read(root / f"single{parts}-{kind}.pt")
    assert min(float(g.abs().max()) for name, g in reference["gradients"].items() if not is_idle(name)) > 1e-4
    for rank in (0, 1):
        result = read(root / f"{engine}-{kind}-{rank}.pt")
        for value, expected in zip(result["losses"], reference["losses"], strict=True):
            assert abs(float(value) - float(expected)) <= loss
        assert_same(result["gradients"], reference["gradients"], atol)
    assert not [path for path in (root / f"{engine}-{kind}" / "1").rglob("*") if path.is_file()]  # rank 0 alone writes
    stored, expected_files = files(root / f"{engine}-{kind}" / "0"), files(root / f"single{parts}-{kind}" / "0")
    start = files(root / f"{START}-{kind}")
    assert set(stored) == set(expected_files) == set(start)
    for name, tensors in expected_files.items():
        assert_same(stored[name], tensors, atol)
        moved = min(float((tensors[key] - start[name][key]).abs().max()) for key in tensors if not is_idle(key))
        assert moved > 1e-4  # or equal files would say nothing


def loads(root: Path, engine: str, kind: str) -> None:
    """Stock PEFT takes what was saved, digests and all, and computes what one process's model computes."""
    folder = root / f"{engine}-{kind}" / "0"
    edit = folder if kind == "reft" else folder / "reft" / "edit"
    check_folder(edit)
    alone = PeftModel.from_pretrained(base_model("llama", dtype=torch.float64), str(edit))
    assert set(load_file(edit / WEIGHTS_NAME)) == {
        name.replace(".default.", ".") for name, _ in alone.named_parameters() if "reft_" in name
    }
    given = {name: tensor for name, tensor in batch(0).items() if name != "labels"}
    outputs = []
    for where in (folder, root / f"single1-{kind}" / "0"):
        model = load(kind, where, base=base_model("llama", dtype=torch.float64)).eval()
        with torch.no_grad():
            outputs.append(model(**given).logits)
    torch.testing.assert_close(outputs[0], outputs[1], rtol=0, atol=1e3 * TOLERANCE[engine])


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("engine", PLAIN)
def test_two_processes_train_as_one(plain: Path, engine: str, kind: str) -> None:
    compare(plain, engine, kind, atol=TOLERANCE[engine], loss=LOSS)


@pytest.mark.parametrize("kind", KINDS)
def test_ddp_is_the_accumulation_of_its_parts_bit_for_bit(plain: Path, kind: str) -> None:
    """The mean of two gradients is the same sum, whichever processes they come from."""
    compare(plain, "ddp", kind, parts=2, atol=0.0, loss=0.0)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("engine", PLAIN)
def test_what_two_processes_saved_loads_in_one(plain: Path, engine: str, kind: str) -> None:
    loads(plain, engine, kind)


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("engine", ZERO)
def test_deepspeed_trains_as_one_process(zero: Path, engine: str, kind: str) -> None:
    compare(zero, engine, kind, atol=TOLERANCE[engine], loss=LOSS)
    loads(zero, engine, kind)


@pytest.mark.parametrize("form", ["blocks", "inner", "second"])
def test_an_adapter_that_comes_after_sharding_is_refused(plain: Path, form: str) -> None:
    for rank in (0, 1):
        result = read(plain / f"late_adapters-{rank}.pt")
        code, text = result[form]
        assert code == "model.sharded"
        assert "FSDP" in text
        assert "get_peft_model first" in text
        assert result["left"] == []
        assert result["known"] == ["default"]


@pytest.mark.slow
def test_an_adapter_that_comes_after_zero3_is_refused(zero: Path) -> None:
    for rank in (0, 1):
        result = read(zero / f"late_under_zero3-{rank}.pt")
        code, text = result["second"]
        assert code == "model.sharded"
        assert "ZeRO-3" in text
        assert "deepspeed.initialize" in text
        assert result["known"] == ["default"]


def test_processes_of_one_model_start_alike_whatever_their_seeds(plain: Path) -> None:
    first, second = (read(plain / f"unequal_seeds-{rank}.pt") for rank in (0, 1))
    assert_same(first, second, 0.0)
    assert all(float(tensor.std()) > 0 for tensor in first.values())


@pytest.mark.parametrize("component", ["block_output", "block_input", "attention_output", "mlp_output"])
def test_every_whole_component_is_edited_under_tensor_parallelism(plain: Path, component: str) -> None:
    torch.manual_seed(3)
    model = get_peft_model(base_model("llama", dtype=torch.float64), edit_config(component=component)).double()
    expected = model(**batch(0)).loss.item()
    for rank in (0, 1):
        assert read(plain / f"components-{rank}.pt")[component] == pytest.approx(expected, abs=LOSS)


def test_a_head_whose_input_is_spread_over_processes_is_refused(plain: Path) -> None:
    for rank in (0, 1):
        code, text = read(plain / f"components-{rank}.pt")["head_output[2]"]
        assert code == "site.sharded"
        assert "attention_output" in text


def test_generation_gives_the_tokens_of_one_process(plain: Path) -> None:
    ids = torch.tensor(PROMPTS)
    torch.manual_seed(3)
    whole = get_peft_model(base_model("llama", dtype=torch.float64), edit_config()).double().eval()
    expected = whole.generate(input_ids=ids, attention_mask=(ids != 0).long(), **GENERATION)
    alone = make("reft").eval()
    for rank in (0, 1):
        result = read(plain / f"generation-{rank}.pt")
        assert torch.equal(result["tp"], expected)
        own = ids[rank][None]
        more = {**GENERATION, "max_new_tokens": 5 - 2 * rank}
        assert torch.equal(result["fsdp2"], alone.generate(input_ids=own, attention_mask=(own != 0).long(), **more))


@pytest.mark.parametrize("kind", PENALISED)
def test_two_processes_add_one_penalty(plain: Path, kind: str) -> None:
    """The mean over processes is the gradient of one that computes the whole batch."""
    model = penalised(kind)
    torch.manual_seed(11)
    model(**batch(0)).loss.backward()
    wanted = {name: parameter.grad for name, parameter in trained(model).items()}
    for rank in range(2):
        found = torch.load(plain / f"penalties-{rank}.pt")[kind]
        for name, grad in wanted.items():
            torch.testing.assert_close(found[name], grad, rtol=1e-3, atol=1e-3)
    assert any(float(grad.abs().max()) > 0.1 for grad in wanted.values())
