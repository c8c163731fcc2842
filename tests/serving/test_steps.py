"""One step's edits, without vLLM: rows, slots and products against the tuner's own modules, request by request."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from torch import Tensor

from peft_reft.hub_format.errors import ReftError
from peft_reft.integrations.vllm.editor import Editor
from peft_reft.integrations.vllm.op import ACTIVE  # which registers the operators
from peft_reft.integrations.vllm.packed import read_packed
from peft_reft.integrations.vllm.pool import Pool
from peft_reft.integrations.vllm.segments import Even

from . import bases
from .test_tracking import new, step

CPU = torch.device("cpu")
ADAPTERS: dict[str, tuple[str, dict[str, Any]]] = {
    "tied": ("f3+l2", {}),
    "untied": ("f2+l3", {"share_weights": False, "r": 3}),
    "activated": ("l4", {"act_fn": "gelu"}),
    "red": ("prompt-f1", {"intervention": "red", "layers_to_transform": [1]}),
    "all": ("all", {"intervention": "direft", "r": 4}),
}


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Path]]:
    root = tmp_path_factory.mktemp("steps")
    base = bases.saved_base(root / "base")
    return base, {
        name: bases.saved_adapter(root / name, base, spec, seed=number, **fields)
        for number, (name, (spec, fields)) in enumerate(ADAPTERS.items())
    }


def editor(adapters: dict[str, Path], *, slots: int = 8) -> Editor:
    pool = Pool(layers=bases.LAYERS, slots=slots, rank=4, hidden_size=bases.HIDDEN, device=CPU)
    made = Editor(bases.LAYERS, pool)
    for name, folder in adapters.items():
        made.load(name, str(folder))
    return made


def edited_alone(base: Path, folder: Path, layer: int, hidden: Tensor, prompt: int) -> Tensor:
    """h′ `[tokens, hidden]` of one request, by the tuner: its block is replaced by one that gives h."""
    model = PeftModel.from_pretrained(bases.loaded(base), folder).eval()
    block = model.get_base_model().model.layers[layer]
    block.forward = lambda *args, **kwargs: hidden[None]
    given: list[Tensor] = []
    block.register_forward_hook(lambda module, args, output: given.append(output))
    lengths = torch.tensor([prompt])
    with torch.no_grad():
        model(input_ids=torch.full((1, len(hidden)), 9), prompt_lengths=lengths)
    return given[0][0]


@pytest.mark.parametrize("slots", [8, 2], ids=["all fit", "more than fit at once"])
@pytest.mark.parametrize("pair", [True, False], ids=["residual apart", "h itself"])
def test_a_step_edits_each_request_as_the_tuner_does(
    saved: tuple[Path, dict[str, Path]], slots: int, pair: bool
) -> None:
    base, adapters = saved
    generator = torch.Generator().manual_seed(3)
    made = editor(adapters, slots=slots)
    requests = [*adapters, None, *adapters]
    prompts = [9, 6, 5, 2, 4, 7, 1, 12, 3, 8, 6]
    fresh = [
        new(f"r{n}", prompt, adapter=name) for n, (name, prompt) in enumerate(zip(requests, prompts, strict=True))
    ]
    scheduled = {f"r{n}": prompt for n, prompt in enumerate(prompts)}
    order = sorted(scheduled, reverse=True)
    tokens = sum(prompts)
    made.begin(step(scheduled, fresh=fresh))
    with made.forward(order, [scheduled[name] for name in order], torch.full((tokens + 5,), 9)):
        for layer in range(bases.LAYERS):
            hidden = torch.randn(tokens + 5, bases.HIDDEN, generator=generator)
            residual = torch.randn(tokens + 5, bases.HIDDEN, generator=generator) * 10
            before = hidden + residual if pair else hidden.clone()
            plain = residual.clone()
            if pair:
                torch.ops.peft_reft.edit_pair(hidden, residual, layer)
                after = hidden + residual
            else:
                torch.ops.peft_reft.edit_plain(hidden, layer)
                after = hidden
            row = 0
            for name in order:
                number, length = int(name[1:]), scheduled[name]
                own, rows = requests[number], slice(row, row + length)
                expected = (
                    before[rows] if own is None else edited_alone(base, adapters[own], layer, before[rows], length)
                )
                torch.testing.assert_close(after[rows], expected, atol=1e-5, rtol=1e-5)
                row += length
            assert torch.equal(after[tokens:], before[tokens:])  # padding
            assert pair or torch.equal(residual, plain)


@pytest.mark.parametrize("spec", ["f3+l2", "f2+l3"], ids=["one unit", "two units"])
def test_requests_of_even_lengths_are_edited_as_each_alone_bit_for_bit(tmp_path: Path, spec: str) -> None:
    """Their rows lie in the order of their slots, and nothing is gathered; two requests may name one adapter."""
    base = bases.saved_base(tmp_path / "base")
    own = {
        name: bases.saved_adapter(tmp_path / name, base, spec, seed=seed, r=rank, share_weights=spec == "f3+l2")
        for seed, (name, rank) in enumerate({"a": 2, "b": 4, "c": 1}.items())
    }
    names, length = ["b", "a", "c", "b"], 9
    made, tokens = editor(own), length * len(names)
    fresh = [new(f"r{n}", length, adapter=name) for n, name in enumerate(names)]
    requests = [one.req_id for one in fresh]
    hidden = torch.randn(tokens, bases.HIDDEN, generator=torch.Generator().manual_seed(5))
    together = hidden.clone()
    made.begin(step(dict.fromkeys(requests, length), fresh=fresh))
    with made.forward(requests, [length] * len(names), None):
        pieces = ACTIVE.layers[1].pieces
        assert isinstance(pieces, Even) == (spec == "f3+l2")  # 2 rows of one unit and 3 of the other are not even
        torch.ops.peft_reft.edit_plain(together, 1)
    for n, name in enumerate(names):
        rows, alone = slice(n * length, (n + 1) * length), editor(own)
        single = hidden[rows].clone()
        alone.begin(step({"x": length}, fresh=[new("x", length, adapter=name)]))
        with alone.forward(["x"], [length], None):
            torch.ops.peft_reft.edit_plain(single, 1)
        assert torch.equal(together[rows], single)
        torch.testing.assert_close(
            single, edited_alone(base, own[name], 1, hidden[rows], length), atol=1e-5, rtol=1e-5
        )


def test_a_chunk_edits_what_the_whole_prompt_would(saved: tuple[Path, dict[str, Path]]) -> None:
    _, adapters = saved
    hidden = torch.randn(12, bases.HIDDEN, generator=torch.Generator().manual_seed(1))
    whole, parts = hidden.clone(), hidden.clone()
    made = editor(adapters)
    made.begin(step({"x": 12}, fresh=[new("x", 12, adapter="untied")]))
    with made.forward(["x"], [12], None):
        torch.ops.peft_reft.edit_plain(whole, 0)
    made.begin(step({"y": 5}, fresh=[new("y", 12, adapter="untied")]))
    with made.forward(["y"], [5], None):
        torch.ops.peft_reft.edit_plain(parts[:5], 0)
    made.begin(step({"y": 7}, cached={"y": 5}))
    with made.forward(["y"], [7], None):
        torch.ops.peft_reft.edit_plain(parts[5:], 0)
    assert torch.equal(whole, parts)
    assert not torch.equal(whole, hidden)


def test_a_decoding_step_calls_no_kernel(saved: tuple[Path, dict[str, Path]]) -> None:
    from torch.utils._python_dispatch import TorchDispatchMode

    class Calls(TorchDispatchMode):
        def __init__(self) -> None:
            super().__init__()
            self.names: list[str] = []

        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            self.names.append(str(func))
            return func(*args, **(kwargs or {}))

    made = editor(saved[1])
    made.begin(step({"x": 5}, fresh=[new("x", 5, adapter="tied")]))
    with made.forward(["x"], [5], None):
        pass
    hidden, residual = torch.zeros(1, bases.HIDDEN), torch.zeros(1, bases.HIDDEN)
    with Calls() as calls:
        made.begin(step({"x": 1}, cached={"x": 5}))
        with made.forward(["x"], [1], None):
            torch.ops.peft_reft.edit_pair(hidden, residual, 0)
    assert calls.names == ["peft_reft.edit_pair.default"]


def test_a_key_that_no_worker_holds_is_an_error_and_not_the_base(saved: tuple[Path, dict[str, Path]]) -> None:
    made = editor(saved[1])
    with pytest.raises(ReftError, match="does not hold"):
        made.begin(step({"x": 5}, fresh=[new("x", 5, adapter="nobody")]))


def test_an_adapter_stays_until_its_last_request_has_ended(saved: tuple[Path, dict[str, Path]]) -> None:
    """Whoever asks for it to be dropped may not have heard of a request that is on its way out."""
    made = editor(saved[1])
    made.begin(step({"x": 3}, fresh=[new("x", 5, adapter="tied")]))
    made.drop("tied")
    made.begin(step({"x": 2}, cached={"x": 3}))
    hidden = torch.randn(2, bases.HIDDEN, generator=torch.Generator().manual_seed(0))
    before = hidden.clone()
    with made.forward(["x"], [2], None):
        torch.ops.peft_reft.edit_plain(hidden, 0)
    assert not torch.equal(hidden, before)
    made.begin(step({}, finished={"x"}))
    assert "tied" not in made.adapters
    assert ("tied", 0) not in made.pool.held


def test_slots_go_to_the_most_recently_used(saved: tuple[Path, dict[str, Path]]) -> None:
    pool = Pool(layers=bases.LAYERS, slots=2, rank=4, hidden_size=bases.HIDDEN, device=CPU)
    unit = read_packed(saved[1]["tied"], "tied", device=CPU).affine[0]
    for key in ("a", "b", "a", "c"):  # b is the least recently used when c comes
        pool.slots_of([((key, 0), unit)])
    assert {key for key, _ in pool.held} == {"a", "c"}
    assert pool.copies == 3
    pool.drop([("a", 0)])
    pool.slots_of([(("d", 0), unit)])
    assert {key for key, _ in pool.held} == {"c", "d"}


def test_a_lower_rank_in_a_used_slot_leaves_nothing_of_the_one_before(saved: tuple[Path, dict[str, Path]]) -> None:
    pool = Pool(layers=bases.LAYERS, slots=1, rank=4, hidden_size=bases.HIDDEN, device=CPU)
    wide, narrow = (read_packed(saved[1][name], name, device=CPU).affine[0] for name in ("all", "tied"))
    pool.slots_of([(("wide", 0), wide)])
    pool.slots_of([(("narrow", 0), narrow)])
    for tensor in (pool.source, pool.projection, pool.bias):
        assert not tensor[:, 0, 2:].any()


def test_folding_is_the_modules_own_edit(saved: tuple[Path, dict[str, Path]]) -> None:
    """Rᵀ(Wh + b − Rh), written down from the tensors."""
    model = PeftModel.from_pretrained(bases.loaded(saved[0]), saved[1]["tied"])
    held = model.get_base_model().model.layers[2].reft.unit(("default", 0))
    hidden = torch.randn(4, bases.HIDDEN, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    rotation = torch.linalg.qr(held.rotation.double().mT)
    rows = (rotation.Q * rotation.R.diagonal().sign()).mT
    expected = (hidden @ held.weight.double().mT + held.bias.double() - hidden @ rows.mT) @ rows
    unit = read_packed(saved[1]["tied"], "tied", device=CPU).affine[0]
    found = (hidden @ unit.source[2].double().mT + unit.bias[2].double()) @ unit.projection[2].double()
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)


def test_an_edit_that_leaves_the_range_of_numbers_harms_no_other_row(tmp_path: Path) -> None:
    """Its own rows stay as they are, and are counted; a kind with an activation and an affine one."""
    base = bases.saved_base(tmp_path / "base")
    wild = {
        name: bases.saved_adapter(tmp_path / name, base, "f2", std=1e25, **fields)
        for name, fields in {
            "folded": {"intervention": "noreft"},
            "own": {"intervention": "direft", "act_fn": "leaky_relu"},
        }.items()
    }
    made = editor({**wild, "good": bases.saved_adapter(tmp_path / "good", base, "f2", seed=3)})
    requests = {"a": "folded", "b": "good", "c": "own", "d": None}
    fresh = [new(request, 3, adapter=adapter) for request, adapter in requests.items()]
    made.begin(step(dict.fromkeys(requests, 3), fresh=fresh))
    hidden = torch.randn(12, bases.HIDDEN, generator=torch.Generator().manual_seed(0)) + 1.0
    before = hidden.clone()
    with made.forward(list(requests), [3] * 4, torch.full((12,), 9)):
        torch.ops.peft_reft.edit_plain(hidden, 0)
    assert torch.isfinite(hidden).all()
    changed = (hidden != before).any(1).nonzero()[:, 0].tolist()
    assert changed == [3, 4]
    assert made.report()["unsound_rows"] == 4
