"""One contract, every kind: formula, start, gradients, dtypes, dropout, activation, saving, scaling."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from torch import Tensor
from torch.testing import assert_close

from contract.tiny import base_model, reft_model, token_ids
from peft_reft import ReftConfig, scale_adapter
from peft_reft.hub_format.errors import ConfigError
from peft_reft.hub_format.kinds import kind_signature, known_kinds
from peft_reft.interventions import intervention_class, orthonormal_rows

from .kinds import HIDDEN, KINDS, RANK, Kind

ROTATED = [kind for kind in KINDS if "rotation" in kind_signature(kind.name).tensors]
every_kind = pytest.mark.parametrize("kind", KINDS, ids=str)


def hidden_states(*shape: int, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(*(shape or (5, HIDDEN)), generator=torch.Generator().manual_seed(3), dtype=torch.float64).to(
        dtype
    )


def tensors_of(unit: Any) -> dict[str, Tensor]:
    """A unit's tensors, with R in place of the raw parameter."""
    return {name: orthonormal_rows(t) if name in unit.orthonormal else t for name, t in unit.named_tensors().items()}


def test_the_table_holds_every_kind() -> None:
    ours = {name for name in known_kinds() if kind_signature(name).module.startswith("peft_reft.")}
    assert {kind.name for kind in KINDS} == ours


@every_kind
def test_the_edit_is_the_formula(kind: Kind) -> None:
    unit = kind.make().double()
    h = hidden_states()
    assert_close(h + unit(h), kind.edit(h, tensors_of(unit), lambda source: source), rtol=0, atol=1e-12)


@pytest.mark.parametrize("kind", [kind for kind in KINDS if "affine" in vars(intervention_class(kind.name))], ids=str)
def test_the_two_products_are_the_formula(kind: Kind) -> None:
    unit = kind.make().double()
    h, tensors = hidden_states(), tensors_of(unit)
    rotation = [tensors.pop(name) for name in unit.orthonormal]
    source, bias, projection = unit.affine(
        {name: held[None] for name, held in tensors.items()}, *(r[None] for r in rotation)
    )
    found = h + (h @ source[0].mT + bias[0]) @ projection[0]
    assert_close(found, kind.edit(h, tensors_of(unit), lambda same: same), rtol=0, atol=1e-12)


@pytest.mark.parametrize("name", ["relu", "tanh", "sigmoid", "gelu"])
@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind.activates], ids=str)
def test_the_activation_falls_on_the_learned_source(kind: Kind, name: str) -> None:
    unit = kind.make(act_fn=name).double()
    h = hidden_states()
    act = torch.nn.functional.gelu if name == "gelu" else getattr(torch, name)
    assert_close(h + unit(h), kind.edit(h, tensors_of(unit), act), rtol=0, atol=1e-12)


@every_kind
def test_an_activation_without_a_place_is_refused(kind: Kind) -> None:
    if kind.activates:
        ReftConfig(intervention=kind.name, act_fn="relu")
        return
    with pytest.raises(ConfigError, match="no learned source"):
        ReftConfig(intervention=kind.name, act_fn="relu")


@every_kind
@pytest.mark.parametrize("shape", [(HIDDEN,), (4, HIDDEN), (2, 4, HIDDEN), (0, HIDDEN)])
def test_shapes_are_kept(kind: Kind, shape: tuple[int, ...]) -> None:
    assert kind.make().double()(hidden_states(*shape)).shape == shape


@every_kind
def test_gradients_are_those_of_the_formula(kind: Kind) -> None:
    unit = kind.make().double()
    names = [name for name, _ in unit.named_parameters()]

    def edit(h: Tensor, *values: Tensor) -> Tensor:
        return torch.func.functional_call(unit, dict(zip(names, values, strict=True)), (h,))

    values = [parameter.detach().clone().requires_grad_() for parameter in unit.parameters()]
    assert torch.autograd.gradcheck(edit, (hidden_states().requires_grad_(), *values))


@every_kind
def test_frozen_tensors_are_no_parameters(kind: Kind) -> None:
    unit = kind.make()
    trained = {name for name, _ in unit.named_parameters()}
    assert trained == set(unit.named_tensors()) - unit.frozen


@every_kind
@pytest.mark.parametrize("act_fn", [None, "gelu"])
@pytest.mark.parametrize("init", [None, True])
def test_the_start_is_the_identity_where_the_row_says_so(kind: Kind, act_fn: str | None, init: bool | None) -> None:
    if act_fn and not kind.activates:
        return
    expected = kind.identity if act_fn is None else kind.identity and kind.act_identity
    assert intervention_class(kind.name).starts_as_identity(act_fn) == expected
    if init is True and not expected:
        with pytest.raises(ConfigError, match="identity"):
            kind.make(act_fn=act_fn, init_weights=True)
        with pytest.raises(ConfigError, match="identity"):
            ReftConfig(intervention=kind.name, act_fn=act_fn, init_weights=True)
        return
    edit = kind.make(act_fn=act_fn, init_weights=init).double()(hidden_states())
    assert bool((edit.abs() < 1e-6).all()) == expected


@every_kind
def test_the_published_start_has_an_orthonormal_rotation(kind: Kind) -> None:
    unit = kind.make(init_weights="paper")
    for name in unit.orthonormal:
        raw = getattr(unit, name)
        assert_close(raw @ raw.T, torch.eye(len(raw)), rtol=0, atol=1e-6)
    assert all(bool(tensor.isfinite().all()) for tensor in unit.named_tensors().values())


@every_kind
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_low_precision_is_rounded_once(kind: Kind, dtype: torch.dtype) -> None:
    """Parameters and h in half precision: the edit is that of the same numbers in float32."""
    half = kind.make().to(dtype)
    h = hidden_states(dtype=dtype).float()
    delta = half(h)
    assert delta.dtype == torch.float32
    assert_close(delta, half.float()(h), rtol=0, atol=1e-5)


@pytest.mark.parametrize("kind", [kind for kind in KINDS if not kind.samples], ids=str)
def test_dropout_falls_on_the_edit_and_only_in_training(kind: Kind) -> None:
    plain, dropped = kind.make(), kind.make(dropout=0.5)
    h = hidden_states(64, HIDDEN, dtype=torch.float32)
    assert_close(dropped.eval()(h), plain(h))
    with torch.random.fork_rng():
        torch.manual_seed(0)
        delta = dropped.train()(h)
    full = plain(h)
    kept = delta != 0
    assert 0.3 < kept[full != 0].double().mean() < 0.7
    assert_close(delta[kept], 2 * full[kept])


@pytest.mark.parametrize("name", ["loreft", "consreft"])
def test_only_the_rotated_subspace_is_edited(name: str) -> None:
    unit = next(kind for kind in KINDS if kind.name == name).make().double()
    rows = orthonormal_rows(unit.rotation)
    complement = torch.eye(HIDDEN, dtype=torch.float64) - rows.T @ rows
    h = hidden_states()
    edited = h + unit(h)
    assert_close(edited @ complement, h @ complement)
    inside = unit.bias.expand(5, -1) if name == "consreft" else h @ unit.weight.T + unit.bias
    assert_close(edited @ rows.T, inside)


@pytest.mark.parametrize("kind", ROTATED, ids=str)
def test_only_the_span_of_the_rotation_is_edited(kind: Kind) -> None:
    unit = kind.make().double()
    rows = orthonormal_rows(unit.rotation)
    h = hidden_states()
    delta = unit(h)
    assert_close(delta @ rows.T @ rows, delta)


@every_kind
def test_options_are_checked_and_kept(kind: Kind) -> None:
    config = ReftConfig(intervention=kind.name, options=kind.options or None)
    assert config.groups()[0].signature.with_defaults(kind.options).items() >= kind.options.items()
    with pytest.raises(ConfigError, match="no such option"):
        ReftConfig(intervention=kind.name, options={"nonsense": 1})


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("reft_r1", {"topk": 0}),
        ("noreft", {"add_bias": 1}),
        ("distribution", {"penalty": -0.1}),
        ("heads", {"penalty": True}),
        ("heads", {"heads": 2.0}),
        ("prosv", {"factor_start": float("nan")}),
    ],
)
def test_a_wrong_option_value_is_refused(name: str, options: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match="it is"):
        ReftConfig(intervention=name, options=options)


def model_with(kind: Kind, **changes: Any) -> PeftModel:
    return reft_model(
        "llama", r=RANK, intervention=kind.name, options=kind.options or None, positions="f2+l2", **changes
    )


@every_kind
def test_scaling_by_zero_is_off_and_by_two_is_twice(kind: Kind) -> None:
    model, ids = model_with(kind, layers_to_transform=[2]), token_ids(2, 7)
    base = base_model("llama")(ids).logits
    assert not torch.equal(model(ids).logits, base)
    scale_adapter(model, "default", 0.0)
    assert_close(model(ids).logits, base, rtol=0, atol=1e-6)


@every_kind
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_half_precision_base_keeps_its_dtype(kind: Kind, dtype: torch.dtype) -> None:
    model = model_with(kind, dtype=dtype).train(kind.samples)
    ids = token_ids(2, 7)
    labels = torch.where(torch.arange(7) < 5, -100, ids)
    loss = model(ids, **({"labels": labels} if kind.samples else {})).logits
    assert loss.dtype == dtype
    loss.float().sum().backward()
    grads = [parameter.grad for name, parameter in model.named_parameters() if "reft_" in name]
    assert grads
    assert all(grad is not None and bool(grad.isfinite().all()) for grad in grads)


LOAD = """
import sys, torch
sys.path.insert(0, sys.argv[1])
from contract.tiny import base_model, token_ids
from peft import PeftModel
model = PeftModel.from_pretrained(base_model("llama"), sys.argv[2]).eval()
for name in sys.argv[3:]:
    model.load_adapter(f"{sys.argv[2]}/../{name}", name)
for name in ["default", *sys.argv[3:]]:
    model.set_adapter(name)
    torch.save(model(token_ids(2, 7)).logits, f"{sys.argv[2]}/../{name}.pt")
"""


@pytest.fixture(scope="module")
def reloaded(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Every kind saved, then loaded and run in one fresh process, which does not import peft_reft by itself."""
    folder: Path = tmp_path_factory.mktemp("kinds")
    for kind in KINDS:
        model_with(kind).save_pretrained(folder / str(kind))
    model_with(KINDS[0]).save_pretrained(folder / "default")
    script = "import peft_reft\n" + LOAD
    tests = Path(__file__).parents[1]
    names = [str(kind) for kind in KINDS]
    subprocess.run([sys.executable, "-c", script, tests, folder / "default", *names], check=True, timeout=300)
    return folder


@every_kind
def test_a_fresh_process_gives_the_same_output(kind: Kind, reloaded: Path) -> None:
    expected = model_with(kind)(token_ids(2, 7)).logits
    assert torch.equal(torch.load(reloaded / f"{kind}.pt", weights_only=True), expected)
