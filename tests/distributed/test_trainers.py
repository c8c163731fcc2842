"""The example of `examples/distributed` under each launcher and engine: SFTTrainer in two processes is one process.

One process takes batches of four rows, two take two rows each: the same rows in every step, of unequal lengths, whose
losses the trainer weighs by tokens. In float32, with SGD, whose steps are linear in the gradient.
"""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import torch
from integrations.tiny_sft import PAIRS, base_model, tokenizer
from peft import PeftModel
from safetensors.torch import load_file
from torch import Tensor

from distributed.launch import ROOT, TORCHRUN, free_port, run, run_nodes
from distributed.on_cpu import KINDS, RESUMED
from peft_reft import MixedReftModel
from peft_reft.hub_format.manifest import WEIGHTS_NAME
from peft_reft.hub_format.reader import check_folder

ENGINES = ("torchrun", "ddp", "fsdp2", "zero2", "zero3")
ATOL = 2e-5
"""After four steps from parameters around 1: float32, summed in another order."""


def commands(engine: str) -> list[list[str]]:
    """How the example's README starts it, on a machine without an accelerator: two nodes, or two processes of one."""
    port = str(free_port())
    if engine == "torchrun":
        node = [*TORCHRUN[:2], "--nnodes", "2", "--nproc_per_node", "1", "--rdzv_id", "example"]
        return [[*node, "--rdzv_backend", "c10d", "--rdzv_endpoint", f"127.0.0.1:{port}"]] * 2
    config = str(ROOT / "examples" / "distributed" / f"{engine}.yaml")
    start = ["-m", "accelerate.commands.launch", "--config_file", config, "--num_processes", "2"]
    start += ["--mixed_precision", "no", "--main_process_ip", "127.0.0.1", "--main_process_port", port]
    nodes = 2 if engine == "fsdp2" else 1
    return [[*start, "--num_machines", str(nodes), "--machine_rank", str(node)] for node in range(nodes)]


def train(root: Path, engine: str, size: int, starts: list[list[str]]) -> None:
    data = [str(root), str(root / "base"), str(root / "rows.jsonl"), str(size)]
    run_nodes([[*start, "-m", "distributed.on_cpu", engine, *data] for start in starts], timeout=600)


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a base model, rows, and what one process made of them."""
    folder = tmp_path_factory.mktemp("trainers")
    base_model().save_pretrained(folder / "base")
    tokenizer().save_pretrained(folder / "base")
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in PAIRS * 4), "utf-8")
    train(folder, "single", 4, [[]])
    return folder


@pytest.fixture(scope="module", params=ENGINES)
def engine(request: pytest.FixtureRequest, root: Path) -> str:
    """The name of an engine that has run in two processes."""
    name: str = request.param
    if name.startswith("zero"):
        pytest.importorskip("deepspeed", reason="the extra `distributed` is not installed")
    train(root, name, 2, commands(name))
    return name


def files(folder: Path) -> dict[str, dict[str, Tensor]]:
    """The adapters that lie in a folder itself, not those of its checkpoints."""
    paths = [path for path in sorted(folder.rglob(WEIGHTS_NAME)) if "checkpoint-" not in str(path.relative_to(folder))]
    return {path.relative_to(folder).as_posix(): load_file(path) for path in paths}


def losses(folder: Path) -> list[float]:
    state = json.loads((folder / "checkpoint-4" / "trainer_state.json").read_text("utf-8"))
    return [entry["loss"] for entry in state["log_history"] if "loss" in entry]


def assert_same(found: dict[str, dict[str, Tensor]], expected: dict[str, dict[str, Tensor]], atol: float) -> None:
    assert {name: set(tensors) for name, tensors in found.items()} == {n: set(t) for n, t in expected.items()}
    for name, tensors in expected.items():
        for key, tensor in tensors.items():
            assert float((found[name][key] - tensor).abs().max()) <= atol, key


pytestmark = pytest.mark.slow


@pytest.mark.parametrize("kind", KINDS)
def test_a_trainer_in_two_processes_saves_what_one_saves(root: Path, engine: str, kind: str) -> None:
    expected = root / f"single-{kind}"
    found = root / f"{engine}-{kind}"
    assert_same(files(found), files(expected), ATOL)
    assert losses(found) == pytest.approx(losses(expected), abs=ATOL)
    assert len(files(found)) == (2 if kind == "mixed" else 1)
    first = files(expected / "checkpoint-2")
    moved = [float((first[n][k] - t).abs().max()) for n, ts in files(expected).items() for k, t in ts.items()]
    assert max(moved) > 100 * ATOL


@pytest.mark.parametrize("kind", KINDS)
def test_a_resumed_run_ends_where_the_whole_one_does(root: Path, engine: str, kind: str) -> None:
    """Both parts of a mixed model are resumed, or the second half would start from fresh edits."""
    whole, resumed = root / f"{engine}-{kind}", root / f"{engine}-{kind}-{RESUMED}"
    assert_same(files(resumed), files(whole), 0.0 if engine != "fsdp2" else ATOL)
    assert losses(resumed) == losses(whole)


@pytest.mark.parametrize("kind", KINDS)
def test_stock_peft_loads_what_two_processes_saved(root: Path, engine: str, kind: str) -> None:
    folder = root / f"{engine}-{kind}"
    edit = folder if kind == "reft" else folder / "reft" / "edit"
    check_folder(edit)
    loaded = PeftModel.from_pretrained(base_model(), str(edit))
    own = {name.replace(".default.", "."): p for name, p in loaded.named_parameters() if "reft_" in name}
    stored = load_file(edit / WEIGHTS_NAME)
    assert set(own) == set(stored)
    assert all(torch.equal(own[name], tensor) for name, tensor in stored.items())
    if kind == "mixed":
        assert set(MixedReftModel.from_pretrained(base_model(), str(folder)).peft_config) == {"default", "edit"}


def test_the_page_names_every_launcher() -> None:
    """And each command of it uses options that the example has."""
    page = (ROOT / "examples" / "distributed" / "README.md").read_text("utf-8")
    for name in ENGINES:
        assert name in page
    help_text = run([str(ROOT / "examples" / "distributed" / "train.py"), "--help"])
    for option in set(re.findall(r"train\.py (.+)", page)):
        for flag in re.findall(r"--(\w+)", option):
            assert f"--{flag}" in help_text, flag
