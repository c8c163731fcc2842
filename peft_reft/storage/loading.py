"""What is checked when tensors reach a model: each has its place, shape and bytes; rotations have full rank."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import Any, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from peft.utils.other import AuxiliaryTrainingWrapper, ModulesToSaveWrapper
from peft.utils.save_and_load import get_peft_model_state_dict
from torch import Tensor, nn

from peft_reft.config import ReftConfig
from peft_reft.hub_format.digests import check_recorded, tensor_info
from peft_reft.hub_format.errors import AdapterLoadError
from peft_reft.hub_format.kinds import COMPLEMENT
from peft_reft.hub_format.rank import freed, has_full_rank, is_orthonormal
from peft_reft.interventions import Intervention
from peft_reft.layer import CHILD, UNIT, ReftLayer
from peft_reft.runtime.state import ModelState

from .beside import MODEL_PREFIX, belongs_beside, embedding_paths

__all__ = ["check_sites", "check_state_dict", "check_wrappers", "loaded_check"]

Value = TypeVar("Value")


def check_state_dict(
    model: nn.Module,
    config: ReftConfig,
    adapter_name: str,
    stored: dict[str, Tensor],
    remapped: dict[str, Tensor],
    *,
    ranks: Sequence[int] | None = None,
) -> None:
    """Refuse a file's tensors that do not fit the adapter exactly.

    Args:
        model: the model, its adapter already in place.
        config: the adapter's config.
        adapter_name: of the adapter.
        stored: the file's tensors under the file's names.
        remapped: the same under the model's names.
        ranks: of the file's units by number, where they may be lower than the model's.

    Raises:
        AdapterLoadError: a tensor finds no parameter, a parameter finds no tensor, or shape or values are wrong.
        IntegrityError: the bytes are not those that the config recorded.
    """
    if config.recorded_tensors is not None:
        check_recorded(_of_edits(config.recorded_tensors), _of_edits(stored).items())
        config.recorded_tensors = None  # of this load; the adapter may be trained from here on
        for state in _states(model):
            state.unverified.pop(adapter_name, None)
    expected = dict(_parameters(model, adapter_name))
    given = _of_edits(remapped)
    parameters = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    embeddings = embedding_paths(model) if len(given) < len(remapped) else frozenset()
    for name in remapped:
        if name in given:
            continue
        if not belongs_beside(name, adapter_name, embeddings):
            raise _unfit(f"the tensor {name[:120]!r} belongs to no part of a ReFT adapter")
        _check_beside(name, remapped[name], parameters.get(name, parameters.get(name.removeprefix(MODEL_PREFIX))))
    for name in given:
        if name not in expected:
            raise _unfit(f"the tensor {name[:120]!r} finds no parameter in the model")
    for name, (unit, number, tensor_name) in expected.items():
        if name not in given:
            raise _unfit(f"the parameter {name[:120]!r} finds no tensor in the file")
        tensor = given[name]
        shape = getattr(parameters[name], "ds_shape", parameters[name].shape)
        if tensor_name in unit.ranked:
            shape = (unit.rank if ranks is None else ranks[number], *shape[1:])
        if tuple(tensor.shape) != tuple(shape):
            raise _unfit(f"the tensor {name[:120]!r} has shape {list(tensor.shape)}, the model {list(shape)}")
        if parameters[name].is_floating_point():
            tensor = tensor.detach().to(parameters[name].dtype)  # what the model will compute with
        _check_finite(name, tensor)
        taken = given.get(f"{name.rpartition('.')[0]}.{COMPLEMENT}") if unit.taken is not None else None
        if tensor_name == COMPLEMENT and not is_orthonormal(_plain(tensor)):
            raise AdapterLoadError(
                f"the rows of {name[:120]!r} are not orthonormal",
                code="load.rank",
                rule="they are the directions that a rotation keeps out of",
            )
        if tensor_name in unit.orthonormal and not has_full_rank(_freed(tensor, taken)):
            raise AdapterLoadError(
                f"the raw rotation {name[:120]!r} does not have full rank",
                code="load.rank",
                rule="its rows must be linearly independent, or they have no orthonormal counterpart",
            )


def check_sites(names: Iterable[str], sites: Collection[str]) -> None:
    """Refuse tensors that an adapter is to be made from if they lie at other sites than its config says.

    Args:
        names: of the tensors.
        sites: paths of the config's sites.

    Raises:
        AdapterLoadError: a site without a tensor, or a tensor at no site.
    """
    edits = (name for name in names if f".{CHILD}.{UNIT}" in name)
    found = {
        name.partition(f".{CHILD}.{UNIT}")[0].removeprefix("_orig_mod.").removeprefix(MODEL_PREFIX) for name in edits
    }
    for path in sorted(found - set(sites)):
        raise _unfit(f"a tensor lies at {path[:120]!r}, which the config does not edit")
    for path in sorted(set(sites) - found):
        raise _unfit(f"the config edits {path[:120]!r}, and no tensor lies there")


def check_wrappers(model: nn.Module, adapter_name: str, recorded: Mapping[str, Any]) -> None:
    """Refuse a file that lacks tensors of the modules which its config saves in full; PEFT answers with a `KeyError`.

    Args:
        model: the base model, the adapter in place.
        adapter_name: of the adapter.
        recorded: the tensors of the file, as its config lists them.

    Raises:
        AdapterLoadError: a tensor is missing, or has another shape than the module's.
    """
    for path, module in model.named_modules():
        if not isinstance(module, AuxiliaryTrainingWrapper) or adapter_name not in module._adapters:
            continue
        parameters = {**dict(module.named_parameters()), **dict(module.named_buffers())}
        for stored, held in module.adapter_state_dict_load_map(adapter_name).items():
            name = f"{MODEL_PREFIX}{path}.{stored}"
            if name not in recorded:
                raise _unfit(f"the config saves {path!r} in full, and the file lacks its tensor {name[:120]!r}")
            parameter = parameters.get(held)
            shape = getattr(parameter, "ds_shape", None if parameter is None else parameter.shape)
            if shape is not None and list(shape) != list(recorded[name]["shape"]):
                raise _unfit(f"the tensor {name[:120]!r} has shape {recorded[name]['shape']}, the model {list(shape)}")


def loaded_check(model: nn.Module, adapter_name: str, recorded: Mapping[str, Any]) -> Callable[[], None]:
    """A check of an adapter's digests for later: transformers' `load_adapter` gives no chance to look at the file."""

    def check() -> None:
        state = get_peft_model_state_dict(model, adapter_name=adapter_name, save_embedding_layers=False)
        tensors = [
            (key if key.startswith(MODEL_PREFIX) else MODEL_PREFIX + key, tensor)
            for key, tensor in state.items()
            if f".{UNIT}" in key
        ]
        configs: Any = model.peft_config
        configs[adapter_name].outgoing = None  # nobody is saving
        check_recorded(_of_edits(recorded), tensors)
        _check_saved_in_full(model, adapter_name, recorded)

    return check


def _check_saved_in_full(model: nn.Module, adapter_name: str, recorded: Mapping[str, Any]) -> None:
    """Refuse a module that still is the base's, though the config saved another: some versions load no such module."""
    for path, module in model.named_modules():
        if not isinstance(module, ModulesToSaveWrapper) or adapter_name not in module._adapters:
            continue
        base, held = (part.state_dict() for part in (module.original_module, module.modules_to_save[adapter_name]))
        for name, tensor in base.items():
            entry = recorded.get(f"{MODEL_PREFIX}{path}.{name}")
            if (
                entry is None
                or tensor.is_meta
                or hasattr(tensor, "placements")
                or list(tensor.shape) != entry["shape"]
            ):
                continue  # not ours, or not all here
            if torch.equal(tensor, held[name].to(tensor)) and tensor_info(tensor, entry["dtype"]).to_json() != entry:
                raise AdapterLoadError(
                    f"{path!r}, which the config saves in full, was not loaded: it is the base's",
                    code="load.fit",
                    value=path,
                    rule="this version of transformers brings the edits alone in load_adapter",
                    fix="load with PeftModel.from_pretrained, or with a newer transformers",
                )


def _parameters(model: nn.Module, adapter_name: str) -> list[tuple[str, tuple[Intervention, int, str]]]:
    found = []
    for path, module in model.named_modules():
        if isinstance(module, ReftLayer):
            for number in module.units.get(adapter_name, ()):
                unit = module.unit((adapter_name, number))
                for name in unit.named_tensors():
                    found.append((f"{path}.{UNIT}{number}.{adapter_name}.{name}", (unit, number, name)))
    return found


def _of_edits(entries: Mapping[str, Value]) -> dict[str, Value]:
    """The entries of interventions, without those that PEFT saves beside them."""
    return {name: entry for name, entry in entries.items() if f".{UNIT}" in name}


def _check_beside(name: str, tensor: Tensor, parameter: Tensor | None) -> None:
    """Refuse a tensor beside the edits that is not its parameter's shape, or holds what is no number."""
    shape = getattr(parameter, "ds_shape", None if parameter is None else parameter.shape)
    floating = parameter is not None and parameter.is_floating_point()
    if floating and shape is not None and tuple(tensor.shape) != tuple(shape):
        raise _unfit(f"the tensor {name[:120]!r} has shape {list(tensor.shape)}, the model {list(shape)}")
    if tensor.is_floating_point():
        _check_finite(name, tensor)


def _check_finite(name: str, tensor: Tensor) -> None:
    if not bool(torch.isfinite(tensor).all()):
        raise AdapterLoadError(
            f"the tensor {name[:120]!r} holds NaN or infinity, or a number that the model's dtype does not hold",
            code="load.finite",
        )


def _plain(tensor: Tensor) -> NDArray[np.float64]:
    values: NDArray[np.float64] = tensor.detach().to("cpu", torch.float64).numpy()
    return values


def _freed(raw: Tensor, taken: Tensor | None) -> NDArray[np.float64]:
    """What R is made of: the raw matrix, without the directions that R keeps out of."""
    values: NDArray[np.float64] = _plain(raw) if taken is None else freed(_plain(raw), _plain(taken))
    return values


def _states(model: nn.Module) -> list[ModelState]:
    return list({id(m.state): m.state for m in model.modules() if isinstance(m, ReftLayer)}.values())


def _unfit(message: str) -> AdapterLoadError:
    return AdapterLoadError(
        message,
        code="load.fit",
        rule="every tensor of the file and every parameter of the adapter belong together",
        fix="load it into a model of the architecture it was trained on, with the same config",
    )
