"""`ReftModel`: the tuner that PEFT puts around a base model."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any, NoReturn

import torch
from peft.tuners.tuners_utils import BaseTuner
from torch import Tensor, nn

from peft_reft.hub_format.bundle import check_name
from peft_reft.hub_format.envelope import IF_PRESENT
from peft_reft.hub_format.errors import ConfigError, MergeError, PositionError
from peft_reft.hub_format.schema import SiteGroup
from peft_reft.hub_format.special_tokens import unbound_tokens

from .adapters import split_rows
from .adapters.calls import rows_in_use
from .adapters.hiding import others_hidden
from .adapters.weighted import weighted_sum
from .base_tokenizer import tokenizer_source
from .config import ReftConfig
from .identity import base_identity, check_base
from .layer import CHILD, ReftLayer, UnitSpec
from .loading import check_sites, check_state_dict, check_wrappers
from .names import check_names_apart
from .runtime import Runtime
from .runtime.adapters import AdapterView
from .runtime.hooks import runtime_of
from .runtime.sharding import check_not_sharded, check_whole_input, share_start
from .runtime.trainer_refusals import refuse_cut_rows, refuse_partial_reference, refuse_vllm
from .runtime.trainers import running_trainer
from .sites import Site, find_stacks, hidden_size_of, site_table

__all__ = ["ReftModel"]

COMPLETION_TASKS = ("CAUSAL_LM", "SEQ_2_SEQ_LM")


class ReftModel(BaseTuner):  # type: ignore[misc]  # peft's types are not followed
    """ReFT adapters on a base model (arXiv 2404.03592).

    Blocks stay in place: the interventions are a child module `reft` of the block, applied by a forward hook, so no
    key of the base or of a LoRA changes. Made by `peft.get_peft_model(model, ReftConfig(...))`.
    """

    prefix = "reft_"
    _told_by: Mapping[str, Tensor] | None = None
    tuner_layer_cls = ReftLayer
    target_module_mapping: dict[str, list[str]] = {}  # noqa: RUF012  # PEFT's declaration

    def _prepare_adapter_config(self, peft_config: ReftConfig, model_config: dict[str, Any]) -> ReftConfig:
        """Resolve the config's layers and components to the sites of this model."""
        groups = peft_config.groups()
        _refuse_unbound(peft_config, groups)
        if peft_config.recorded_base is not None:
            check_base(peft_config.recorded_base, self.model)
        sites, stacks = site_table(
            self.model,
            [
                (find_stacks(self.model, group.layers_pattern), group.layers_to_transform, group.component)
                for group in groups
            ],
        )
        self._sites = {site.path: site for site in sites}
        if self._told_by is not None:
            check_sites(self._told_by, self._sites)
        _refuse_saved_sites(peft_config.modules_to_save, self._sites)
        _refuse_absent(peft_config.modules_to_save, self.model)
        _refuse_tokens(peft_config.trainable_token_indices, self.model)
        self._hidden_size = hidden_size_of(self.model)
        peft_config.target_modules = tuple(self._sites)
        peft_config.base_identity = base_identity(self.model, stacks, self._hidden_size)
        peft_config.base_tokenizer = tokenizer_source(self.model)
        return peft_config

    @staticmethod
    def _check_target_module_exists(peft_config: ReftConfig, key: str) -> bool:
        return key in peft_config.target_modules

    def inject_adapter(
        self,
        model: nn.Module,
        adapter_name: str,
        *args: Any,
        state_dict: Mapping[str, Tensor] | None = None,
        **kwargs: Any,
    ) -> None:
        """Add an adapter's interventions to its sites; see PEFT's `BaseTuner.inject_adapter`.

        The sites are those of the config; a `state_dict`, from which PEFT's other methods guess theirs, must have
        tensors at the same ones.
        """
        check_name(adapter_name)
        self._told_by = state_dict
        config = self.peft_config[adapter_name]
        if not isinstance(config, ReftConfig):
            raise ConfigError(
                f"adapter {adapter_name!r} has a {type(config).__name__}",
                value=type(config).__name__,
                rule="a ReftModel holds ReFT adapters",
                fix="use MixedReftModel for ReFT and LoRA in one model",
            )
        check_not_sharded(self.model)
        policy = self._check_trainer(adapter_name, config)
        runtime = runtime_of(self.model) or Runtime(self.model)
        try:
            with others_hidden(runtime, adapter_name):
                super().inject_adapter(model, adapter_name, *args, **kwargs)
        finally:
            self._told_by = None
            if not runtime.layers:
                runtime.remove()
        share_start(self.model, _parameters_of(runtime, adapter_name))
        runtime.views[adapter_name] = AdapterView(
            adapter_name, config.groups(), (config.special_tokens or {}).get("ids", {})
        )
        runtime.has_completion[adapter_name] = _has_completion(self.model, config)
        for layer in runtime.layers.values() if policy is not None else ():
            layer.follow(adapter_name, policy)
        runtime.changed()
        if config.recorded_tensors is not None:
            check_wrappers(self.model, adapter_name, config.recorded_tensors)
            runtime.unverified[adapter_name] = config.recorded_tensors

    def _check_trainer(self, adapter_name: str, config: ReftConfig) -> str | None:
        """Where a trainer that starts adds this adapter: refuse what it would do wrong with it.

        Returns:
            The adapter that the trainer copies into this one as its reference; None if it is no reference.
        """
        running, runtime = running_trainer(), runtime_of(self.model)
        if running is None or not running.starts:
            return None
        refuse_cut_rows(running.settings, [(adapter_name, group.positions) for group in config.groups()])
        refuse_vllm(running.settings)
        policy = next((name for name, known in self.peft_config.items() if known is config), adapter_name)
        if policy == adapter_name or runtime is None:
            return None
        refuse_partial_reference(runtime.active(), copied=policy)
        return policy

    def _create_and_replace(
        self,
        peft_config: ReftConfig,
        adapter_name: str,
        target: nn.Module,
        target_name: str,
        parent: nn.Module,
        current_key: str,
        parameter_name: str | None = None,
    ) -> None:
        site = self._sites[current_key]
        runtime = runtime_of(self.model)
        if runtime is None:  # pragma: no cover  # inject_adapter makes it
            raise ConfigError("the model carries no ReFT runtime")
        if any(tap.on_input for tap in site.taps):
            check_whole_input(self.model, current_key)
        if not all(config.inference_mode for config in self.peft_config.values()):  # something may be saved
            check_names_apart((adapter_name, *runtime.views), current_key)
        layer = getattr(target, CHILD, None)
        if layer is None:
            runtime.add_stack(site.stack)
            layer = ReftLayer(current_key, site.stack.path, runtime)
            target.add_module(CHILD, layer)
            runtime.add_layer(layer, target)
        layer.update_layer(
            adapter_name,
            _units_at(site, peft_config, self._hidden_size),
            init_weights=peft_config.init_weights,
            device=runtime.device_of(current_key),
        )

    def _cast_adapter_dtype(self, adapter_name: str, autocast_adapter_dtype: bool = True) -> None:
        """Adapters are float32; without autocasting they take the base's dtype, as PEFT's other methods do."""
        runtime = runtime_of(self.model)
        if autocast_adapter_dtype:
            with nullcontext() if runtime is None else others_hidden(runtime, adapter_name):
                super()._cast_adapter_dtype(adapter_name, autocast_adapter_dtype)
            return
        dtype = next((p.dtype for n, p in self.model.named_parameters() if f".{CHILD}." not in n), torch.float32)
        if not dtype.is_floating_point:
            return
        for module in self.model.modules():
            if isinstance(module, ReftLayer):
                for key in [(adapter_name, unit) for unit in module.units.get(adapter_name, ())]:
                    module.unit(key).to(dtype)

    @classmethod
    def _remap_adapter_state_dict_for_load(
        cls,
        model: nn.Module,
        config: ReftConfig,
        adapter_name: str,
        state_dict: dict[str, Tensor],
    ) -> dict[str, Tensor]:
        """Map a file's keys to the model's, after checking that every tensor has its place and its bytes."""
        remapped: dict[str, Tensor] = super()._remap_adapter_state_dict_for_load(
            model, config, adapter_name, state_dict
        )
        check_state_dict(model, config, adapter_name, state_dict, remapped)
        return remapped

    def delete_adapter(self, adapter_name: str) -> None:
        """Delete an adapter; the model keeps its hooks, which do nothing without an active one."""
        super().delete_adapter(adapter_name)
        runtime = runtime_of(self.model)
        if runtime is not None:
            for table in (runtime.views, runtime.has_completion, runtime.unverified):
                table.pop(adapter_name, None)
            runtime.stacks_of_adapters.drop(adapter_name)
            runtime.changed()

    def unload(self) -> nn.Module:
        """The base model as it was: no hooks, no attributes, no child modules of ours."""
        runtime = runtime_of(self.model)
        if runtime is not None:
            for path in runtime.layers:
                delattr(self.model.get_submodule(path), CHILD)
            runtime.remove()
        base: nn.Module = super()._unload_and_optionally_merge(merge=False)
        return base

    def merge_adapter(self, *args: Any, **kwargs: Any) -> NoReturn:
        """Refused: see `MergeError`."""
        raise _no_merge("merge_adapter")

    def unmerge_adapter(self) -> NoReturn:
        """Refused: nothing can have been merged."""
        raise _no_merge("unmerge_adapter")

    def merge_and_unload(self, *args: Any, **kwargs: Any) -> NoReturn:
        """Refused: see `MergeError`."""
        raise _no_merge("merge_and_unload")

    def add_weighted_adapter(
        self, adapters: Sequence[str], weights: Sequence[float], adapter_name: str, combination_type: str = "cat"
    ) -> None:
        """Add an adapter whose edit is the weighted sum of others' edits: exact, frozen, saved like any other.

        Its edit equals that of the others active together, each with `scale_adapter` set to its weight. Edits of the
        same tokens of the same sites become one of concatenated rank, further ones stand as site groups beside it.

        Args:
            adapters: names of the adapters; they stay as they are, a factor of `scale_adapter` counts.
            weights: a finite factor for each; negative ones subtract.
            adapter_name: of the new adapter; `set_adapter` makes it active.
            combination_type: `"cat"` or `"linear"`, which are the same here.

        Raises:
            ConfigError: a name, a weight, or adapters whose task or tokenizer differ.
            MergeError: a kind whose edit times a factor is no edit, e.g. `loreft` with an activation and a weight
                other than 1; or another `combination_type`.
        """
        if adapter_name in self.peft_config:
            raise ConfigError(
                f"there is an adapter {adapter_name!r} already", value=adapter_name, fix="choose another name"
            )
        check_name(adapter_name)
        runtime = runtime_of(self.model)
        if runtime is None:  # pragma: no cover  # an adapter is there, so is its runtime
            raise ConfigError("the model carries no ReFT runtime")
        summed = weighted_sum(runtime, self.peft_config, adapters, weights, combination_type=combination_type)
        self.peft_config[adapter_name] = summed.config
        try:
            self.inject_adapter(self.model, adapter_name)
        except Exception:
            self.peft_config.pop(adapter_name, None)
            raise
        summed.fill(runtime, adapter_name)

    @contextmanager
    def _enable_peft_forward_hooks(self, *args: Any, **kwargs: Any) -> Iterator[None]:
        """PEFT calls this with the keywords of forward and generate: here a batch's rows get their own adapters."""
        runtime, names = runtime_of(self.model), kwargs.get("adapter_names")
        if names is None or runtime is None:
            yield
            return
        rows = split_rows(names, self.peft_config, training=self.training)
        with rows_in_use(self.model, runtime, rows, kwargs.get("intervention_locations")):
            yield


def _parameters_of(runtime: Runtime, name: str) -> Iterator[nn.Parameter]:
    for layer in runtime.layers.values():
        for number in layer.units.get(name, ()):
            yield from layer.unit((name, number)).parameters()


def _units_at(site: Site, config: ReftConfig, hidden_size: int) -> list[UnitSpec]:
    groups = config.groups()
    view = AdapterView("", groups)
    return [
        UnitSpec(view.first_unit(number) + offset, groups[number], tap, tap.width or hidden_size)
        for number, tap in zip(site.groups, site.taps, strict=True)
        for offset in range(groups[number].units)
    ]


def _refuse_saved_sites(modules: object, sites: Iterable[str]) -> None:
    if modules is None:
        return
    if not isinstance(modules, (list, tuple, set)) or not all(isinstance(name, str) and name for name in modules):
        raise ConfigError(f"modules_to_save={modules!r} is not allowed", value=modules, rule="it is a list of names")
    for name in modules:
        for site in sites:
            if f".{name}." in f".{site}.":
                raise ConfigError(
                    f"modules_to_save={list(modules)!r}: {name!r} holds the site {site!r}",
                    value=name,
                    rule="a module that is trained and saved in full is copied, and a site cannot be",
                    fix="save modules inside or beside the blocks, e.g. a classification head",
                )


def _refuse_absent(modules: Iterable[str] | None, model: nn.Module) -> None:
    """Names that PEFT would pass over, and that a folder could then not be loaded with."""
    for name in modules or ():
        if name not in IF_PRESENT and not any(path.endswith(name) for path, _ in model.named_modules()):
            raise ConfigError(
                f"modules_to_save={sorted(modules or ())!r}: {type(model).__name__} has no module {name!r}",
                value=name,
                rule="what is trained and saved in full is a module of the model, named by the end of its path",
                fix="take the name from model.named_modules(), e.g. 'lm_head'",
            )


def _refuse_tokens(indices: list[int] | dict[str, list[int]] | None, model: nn.Module) -> None:
    """Token ids that an embedding lacks, and embeddings that the model lacks: PEFT answers with an `IndexError`."""
    if indices is None:
        return
    embeddings: list[tuple[str, nn.Module | None, list[int]]] = []
    if isinstance(indices, dict):
        named = [(path, module) for path, module in model.named_modules() if hasattr(module, "weight")]
        for name, ids in indices.items():
            found = [module for path, module in named if path == name or path.endswith(f".{name}")]
            embeddings += [(name, module, ids) for module in found or [None]]
    elif callable(get := getattr(model, "get_input_embeddings", None)):
        embeddings = [("the input embedding", get(), indices)]
    for name, module, ids in embeddings:
        weight = getattr(module, "weight", None)
        rows = 0 if weight is None else int(getattr(weight, "ds_shape", weight.shape)[0])
        highest = max(ids, default=0)
        if highest >= rows:
            raise ConfigError(
                f"trainable_token_indices: {name[:80]!r} of {type(model).__name__} has {rows} rows, {highest} is none",
                value=highest,
                rule="a token that is trained is a row of an embedding of the model",
                fix="resize the embeddings first, or name the module as model.named_modules() does",
            )


def _refuse_unbound(config: ReftConfig, groups: Sequence[SiteGroup]) -> None:
    unbound = unbound_tokens(config.special_tokens, groups)
    if unbound:
        raise PositionError(
            f"positions name tok({unbound[0]}), which is bound to no tokenizer",
            code="positions.unbound",
            value=unbound[0],
            rule="a special token is edited by its id, which only a tokenizer knows",
            fix="call config.bind_tokenizer(tokenizer) before the model is made",
        )


def _has_completion(model: nn.Module, config: ReftConfig) -> bool:
    if config.task_type is not None:
        return str(getattr(config.task_type, "value", config.task_type)) in COMPLETION_TASKS
    can_generate = getattr(model, "can_generate", None)
    return bool(can_generate()) if callable(can_generate) else False


def _no_merge(verb: str) -> MergeError:
    return MergeError(
        f"{verb} is not possible for ReFT adapters",
        rule="an edit applies at chosen token positions, and weights do not know positions",
        fix="keep the adapter beside the model (its cost at generation is that of the prompt; in TRL's trainers set "
        "use_vllm=False), or call unload() to get the base model back",
    )
