"""attention_output and mlp_output are what a block adds to its residual stream, family by family, by plain hooks."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from peft import get_peft_model
from torch import Tensor, nn
from torch.testing import assert_close

from peft_reft import ReftConfig
from peft_reft.causal import Site, collect, interchange, intervene, zero
from peft_reft.hub_format.errors import SiteError

from .families import FAMILIES, Family

IDS = torch.tensor([[5, 9, 33, 12, 7], [40, 6, 21, 8, 11]])
OTHER = torch.tensor([[30, 31, 14, 19, 22], [13, 16, 44, 41, 9]])
COMPONENTS = ["attention_output", "mlp_output"]


def first(value: Any) -> Tensor:
    found: Tensor = value if isinstance(value, Tensor) else value[0]
    return found.reshape(*IDS.shape, -1)


def given(model: nn.Module, path: str, *, inputs: bool = False) -> Tensor:
    """What a module gives, or takes, in a plain forward."""
    seen: list[Tensor] = []

    def take(module: nn.Module, args: Any, kwargs: dict[str, Any]) -> None:
        seen.append(first(args[0] if args else next(iter(kwargs.values()))).clone())

    def give(module: nn.Module, args: Any, output: Any) -> None:
        seen.append(first(output).clone())

    module = model.get_submodule(path)
    handle = module.register_forward_pre_hook(take, with_kwargs=True) if inputs else module.register_forward_hook(give)
    with torch.no_grad():
        model(input_ids=IDS)
    handle.remove()
    (found,) = seen
    return found


def replaced(model: nn.Module, path: str, change: Callable[[Tensor], Tensor], *, inputs: bool = False) -> Tensor:
    """Logits of a plain forward in which a module gives, or takes, something else."""

    def take(module: nn.Module, args: Any, kwargs: dict[str, Any]) -> Any:
        if args:
            return (change(args[0]), *args[1:]), kwargs
        name = next(iter(kwargs))
        return args, {**kwargs, name: change(kwargs[name])}

    def give(module: nn.Module, args: Any, output: Any) -> Any:
        return change(output) if isinstance(output, Tensor) else (change(output[0]), *output[1:])

    module = model.get_submodule(path)
    handle = module.register_forward_pre_hook(take, with_kwargs=True) if inputs else module.register_forward_hook(give)
    with torch.no_grad():
        logits: Tensor = model(input_ids=IDS).logits
    handle.remove()
    return logits


def path_of(family: Family, inner: str = "") -> str:
    return ".".join(filter(None, (family.blocks, str(family.layer), inner)))


def module_of(family: Family, component: str) -> str:
    inner = family.attention if component == "attention_output" else family.mlp
    if inner is None:
        pytest.skip("no module of this block gives it: see the test of refusals")
    return path_of(family, inner)


@pytest.mark.parametrize("component", COMPONENTS)
@pytest.mark.parametrize("family", FAMILIES, ids=str)
def test_the_component_is_read_where_the_block_adds_it(family: Family, component: str) -> None:
    path, model = module_of(family, component), family.make()
    with torch.no_grad():
        found = collect(model, {"input_ids": IDS}, Site(layer=family.layer, component=component))
    assert_close(found.reshape(*IDS.shape, -1), family.factor * given(model, path))


@pytest.mark.parametrize("family", [f for f in FAMILIES if f.sums and f.mlp], ids=str)
def test_input_and_parts_are_the_output(family: Family) -> None:
    """Nothing of the modules' names is used here: only the block's own input and output."""
    model = family.make()
    with torch.no_grad():
        parts = [
            collect(model, {"input_ids": IDS}, Site(layer=family.layer, component=component)).reshape(*IDS.shape, -1)
            for component in COMPONENTS
        ]
    before, after = given(model, path_of(family), inputs=True), given(model, path_of(family))
    assert_close(before + parts[0] + parts[1], after, rtol=1e-5, atol=1e-5)
    assert all(float(part.abs().max()) > 1e-3 for part in parts)


@pytest.mark.parametrize("component", COMPONENTS)
@pytest.mark.parametrize("family", FAMILIES, ids=str)
def test_without_it_the_model_is_as_if_nothing_were_added(family: Family, component: str) -> None:
    path, model = module_of(family, component), family.make()
    with torch.no_grad():
        found = intervene(model, {"input_ids": IDS}, zero(Site(layer=family.layer, component=component))).logits
    assert_close(found, replaced(model, path, torch.zeros_like), rtol=1e-4, atol=1e-5)
    assert not torch.equal(found, model(input_ids=IDS).logits)


@pytest.mark.parametrize("component", COMPONENTS)
@pytest.mark.parametrize("family", [f for f in FAMILIES if "Granite" in f.model or "Bloom" in f.model], ids=str)
def test_an_adapter_s_vector_is_added_to_the_stream_as_it_is(family: Family, component: str) -> None:
    path, model = module_of(family, component), family.make()
    reft = get_peft_model(
        model,
        ReftConfig(
            intervention="bias",
            layers_to_transform=[family.layer],
            component=component,
            positions="f2",
            init_weights=False,
            task_type="CAUSAL_LM",
        ),
    )
    (vector,) = [p.detach() for n, p in reft.named_parameters() if "reft_" in n]
    with torch.no_grad():
        found = reft(input_ids=IDS).logits

    def shifted(hidden: Tensor) -> Tensor:
        changed = hidden.clone()
        changed[:, :2] += vector.reshape(-1) / family.factor
        return changed

    base = reft.unload()
    assert_close(found, replaced(base, path, shifted), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("family", [f for f in FAMILIES if f.projection], ids=str)
def test_a_head_is_its_columns_of_the_output_projection_s_input(family: Family) -> None:
    model, head = family.make(), 2
    path = path_of(family, family.projection or "")
    columns = given(model, path, inputs=True)
    size = columns.shape[-1] // family.heads
    place = slice(head * size, (head + 1) * size)
    with torch.no_grad():
        site = Site(layer=family.layer, component=f"head_output[{head}]")
        found = collect(model, {"input_ids": IDS}, site).reshape(*IDS.shape, -1)
        swapped = interchange(model, {"input_ids": IDS}, {"input_ids": OTHER}, site).logits
        source = collect(model, {"input_ids": OTHER}, Site(module=path, on_input=True))
    assert_close(found, columns[..., place])

    def exchanged(hidden: Tensor) -> Tensor:
        changed = hidden.clone()
        changed[..., place] = source.reshape(hidden.shape)[..., place]
        return changed

    assert_close(swapped, replaced(model, path, exchanged, inputs=True), rtol=1e-4, atol=1e-5)


REFUSED = [
    ("GraniteMoeSharedForCausalLM", "mlp_output", 1),
    ("MambaForCausalLM", "mlp_output", 1),
    ("MambaForCausalLM", "attention_output", 1),
    ("JambaForCausalLM", "attention_output", 0),
    ("DiffLlamaForCausalLM", "head_output[0]", 1),
    ("DogeForCausalLM", "attention_output", 1),
    ("Gemma4ForCausalLM", "mlp_output", 1),
    ("DeepseekV4ForCausalLM", "attention_output", 1),
]


@pytest.mark.parametrize(("name", "component", "layer"), REFUSED)
def test_what_no_module_gives_is_refused_by_name(name: str, component: str, layer: int) -> None:
    model = Family(name).make()
    with pytest.raises(SiteError, match=r"component=.*Fix: use component='block_output'"):
        get_peft_model(model, ReftConfig(component=component, layers_to_transform=[layer], intervention="bias"))
    with pytest.raises(SiteError, match="component="):
        collect(model, {"input_ids": IDS}, Site(layer=layer, component=component))
