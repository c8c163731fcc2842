"""What is checked when tensors reach a model: each has its place, shape and bytes; rotations have full rank."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from math import isfinite
from typing import Any, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from peft.utils.other import AuxiliaryTrainingWrapper, ModulesToSaveWrapper
from peft.utils.save_and_load import get_peft_model_state_dict
from torch import Tensor, nn

from peft_reft.config import ReftConfig
from peft_reft.hub_format.digests import check_recorded, dtype_name, tensor_info
from peft_reft.hub_format.envelope import MODEL_PREFIX
from peft_reft.hub_format.errors import AdapterLoadError, shown
from peft_reft.hub_format.kinds import COMPLEMENT
from peft_reft.hub_format.rank import freed, has_full_rank, have_clear_rank, is_orthonormal
from peft_reft.layer import CHILD, UNIT

from .beside import belongs_beside, embedding_paths
from .places import AdapterTensor, adapter_tensors, layers_in

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
    _check_tensors(remapped)
    if config.recorded_tensors is not None:
        check_recorded(_of_edits(config.recorded_tensors), _of_edits(stored).items())
        config.recorded_tensors = None  # of this load; the adapter may be trained from here on
        for _, layer in layers_in(model):
            layer.state.unverified.pop(adapter_name, None)
    expected, given = adapter_tensors(model, adapter_name), _of_edits(remapped)
    if len(given) < len(remapped):
        _check_all_beside(model, adapter_name, {name: remapped[name] for name in remapped if name not in given})
    for name in given:
        if name not in expected:
            raise _unfit(f"the tensor {name[:120]!r} finds no parameter in the model")
    cast = {}
    for name, place in expected.items():
        if name not in given:
            raise _unfit(f"the parameter {name[:120]!r} finds no tensor in the file")
        cast[name] = _fitting(name, given[name], place, None if ranks is None else ranks[place.number])
    _check_finite(cast)
    clear = _have_clear_rank([cast[name] for name, place in expected.items() if place.name in place.unit.orthonormal])
    for name, place in expected.items():
        if place.unit.taken is not None or (place.name in place.unit.orthonormal and not clear):
            _check_directions(name, place, cast)


def _check_tensors(given: Mapping[Any, Any]) -> None:
    """Refuse names and values of a state dict that are no names and no tensors with numbers of their own."""
    for name, tensor in given.items():
        whole = isinstance(tensor, Tensor) and tensor.layout is torch.strided
        if not isinstance(name, str) or not whole or tensor.is_meta or tensor.is_quantized:
            raise _unfit(f"{str(name)[:120]!r} stands for {shown(tensor)}, which is no dense tensor with values")


def _fitting(name: str, tensor: Tensor, place: AdapterTensor, rank: int | None) -> Tensor:
    """A file's tensor as the model will compute with it, if it has the shape of its place."""
    shape = getattr(place.held, "ds_shape", place.held.shape)
    if place.unit.is_ranked(place.name):
        shape = (place.unit.rank if rank is None else rank, *shape[1:])
    if tuple(tensor.shape) != tuple(shape):
        raise _unfit(f"the tensor {name[:120]!r} has shape {list(tensor.shape)}, the model {list(shape)}")
    if not place.held.is_floating_point():
        return tensor
    if not tensor.is_floating_point():
        raise _unfit(f"the tensor {name[:120]!r} has dtype {tensor.dtype}, the model {place.held.dtype}")
    return tensor.detach().to(place.held.dtype)


def _check_directions(name: str, place: AdapterTensor, cast: Mapping[str, Tensor]) -> None:
    """Refuse a raw rotation without full rank, and directions to keep out of that are not orthonormal."""
    if place.name == COMPLEMENT and not is_orthonormal(_plain(cast[name])):
        raise AdapterLoadError(
            f"the rows of {name[:120]!r} are not orthonormal",
            code="load.rank",
            rule="they are the directions that a rotation keeps out of",
        )
    if place.name not in place.unit.orthonormal:
        return
    taken = cast[f"{name.rpartition('.')[0]}.{COMPLEMENT}"] if place.unit.taken is not None else None
    if not has_full_rank(_freed(cast[name], taken)):
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
    """Refuse a module that still is the base's, though the config saved another: some versions load no such module.

    One that was loaded into another dtype than the file's cannot be compared with its digest.
    """
    for path, module in model.named_modules():
        if not isinstance(module, ModulesToSaveWrapper) or adapter_name not in module._adapters:
            continue
        base, held = (part.state_dict() for part in (module.original_module, module.modules_to_save[adapter_name]))
        for name, tensor in held.items():
            entry = recorded.get(f"{MODEL_PREFIX}{path}.{name}")
            here = not (tensor.is_meta or hasattr(tensor, "placements"))
            if entry is None or not here or list(tensor.shape) != entry["shape"]:
                continue  # not ours, or not all here
            if tensor_info(tensor, entry["dtype"]).to_json() == entry:
                continue
            if torch.equal(tensor, base[name].to(tensor)):
                raise AdapterLoadError(
                    f"{path!r}, which the config saves in full, was not loaded: it is the base's",
                    code="load.fit",
                    value=path,
                    rule="this version of transformers brings the edits alone in load_adapter",
                    fix="load with PeftModel.from_pretrained, or with a newer transformers",
                )
            if dtype_name(tensor) == entry["dtype"]:
                stored = f"{MODEL_PREFIX}{path}.{name}"
                check_recorded({stored: entry}, [(stored, tensor)])


def _of_edits(entries: Mapping[str, Value]) -> dict[str, Value]:
    """The entries of interventions, without those that PEFT saves beside them."""
    return {name: entry for name, entry in entries.items() if f".{UNIT}" in name}


def _check_all_beside(model: nn.Module, adapter_name: str, tensors: Mapping[str, Tensor]) -> None:
    """Refuse tensors beside the edits that are not PEFT's own, not of their parameters' shapes, or no numbers."""
    parameters = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    embeddings = embedding_paths(model)
    for name, tensor in tensors.items():
        if not belongs_beside(name, adapter_name, embeddings):
            raise _unfit(f"the tensor {name[:120]!r} belongs to no part of a ReFT adapter")
        parameter = parameters.get(name, parameters.get(name.removeprefix(MODEL_PREFIX)))
        shape = getattr(parameter, "ds_shape", None if parameter is None else parameter.shape)
        floating = parameter is not None and parameter.is_floating_point()
        if floating and shape is not None and tuple(tensor.shape) != tuple(shape):
            raise _unfit(f"the tensor {name[:120]!r} has shape {list(tensor.shape)}, the model {list(shape)}")
    _check_finite(tensors)


def _check_finite(tensors: Mapping[str, Tensor]) -> None:
    """Refuse what is no number: all tensors of a device in one go, one by one where that finds something."""
    by_device: dict[torch.device, list[Tensor]] = {}
    for tensor in tensors.values():
        if tensor.is_floating_point():
            by_device.setdefault(tensor.device, []).append(tensor.reshape(-1))
    if all(isfinite(float(torch.cat(flat).sum())) for flat in by_device.values()):
        return  # a sum with something that is no number is none; one that overflows is looked at below
    for name, tensor in tensors.items():
        if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
            raise AdapterLoadError(
                f"the tensor {name[:120]!r} holds NaN or infinity, or a number that the model's dtype does not hold",
                code="load.finite",
            )


def _have_clear_rank(raws: Sequence[Tensor]) -> bool:
    """Whether a look at all raw rotations together is enough: they have one shape, and ranks beyond doubt."""
    return len({raw.shape for raw in raws}) == 1 and have_clear_rank(np.stack([_plain(raw) for raw in raws]))


def _plain(tensor: Tensor) -> NDArray[np.float64]:
    values: NDArray[np.float64] = tensor.detach().to("cpu", torch.float64).numpy()
    return values


def _freed(raw: Tensor, taken: Tensor | None) -> NDArray[np.float64]:
    """What R is made of: the raw matrix, without the directions that R keeps out of."""
    values: NDArray[np.float64] = _plain(raw) if taken is None else freed(_plain(raw), _plain(taken))
    return values


def _unfit(message: str) -> AdapterLoadError:
    return AdapterLoadError(
        message,
        code="load.fit",
        rule="every tensor of the file and every parameter of the adapter belong together",
        fix="load it into a model of the architecture it was trained on, with the same config",
    )
