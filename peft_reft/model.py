"""`ReftModel`: the tuner that PEFT puts around a base model."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, NoReturn

from peft.tuners.tuners_utils import BaseTunerLayer
from torch import Tensor, nn

from peft_reft.hub_format.bundle import check_name
from peft_reft.hub_format.errors import ConfigError
from peft_reft.hub_format.groups import SiteGroup

from .adapters.calls import rows_in_use
from .adapters.heads import refuse_head_count
from .adapters.hiding import others_hidden
from .adapters.names import check_free, check_known, check_names_apart
from .adapters.orthogonal import NOTHING, Former, former_units
from .adapters.per_row import split_rows
from .adapters.refusals import (
    no_merge,
    refuse_absent,
    refuse_first_meaning,
    refuse_saved_sites,
    refuse_tokens,
    refuse_unbound,
)
from .adapters.stacking import stacks_of
from .adapters.weighted import weighted_sum
from .adapters.weights import activate, cast_adapter, freeze_base
from .config import ReftConfig
from .generation import ContinuousBatching, Generations
from .interventions.starts import LOADED
from .layer import CHILD, ReftLayer, units_at
from .lookup import units_of
from .runtime import Runtime, runtime_of, state_of
from .runtime.boundary import register_boundary
from .runtime.devices import site_device
from .runtime.views import AdapterView
from .sites import can_generate, find_stacks, hidden_size_of, moved_components, site_table
from .storage.base_tokenizer import base_tokenizer
from .storage.identity import base_identity, check_base
from .storage.loading import check_sites, check_wrappers, loaded_check
from .storage.state_dicts import SavingTuner
from .training import PackedBase, Trainers
from .training.checkpointing import Recomputation, carry_frames
from .training.refusals import refuse_cut_rows, refuse_partial_reference, refuse_vllm
from .training.resuming import bring_root
from .training.running import running_trainer
from .training.sharding import check_not_sharded, check_whole_input, share_start

__all__ = ["ReftModel"]

COMPLETION_TASKS = ("CAUSAL_LM", "SEQ_2_SEQ_LM")

for _provider in (PackedBase, Recomputation, Generations, ContinuousBatching, Trainers):  # asked in this order
    register_boundary(_provider)


class ReftModel(SavingTuner):
    """ReFT adapters on a base model (arXiv 2404.03592).

    Blocks stay in place: the interventions are a child module `reft` of the block, applied by a forward hook, so no
    key of the base or of a LoRA changes. Made by `peft.get_peft_model(model, ReftConfig(...))`.
    """

    prefix = "reft_"
    _told_by: Mapping[str, Tensor] | None = None
    _former: Former = NOTHING
    _groups: tuple[SiteGroup, ...] = ()
    _adding: str = ""
    tuner_layer_cls: type[BaseTunerLayer] = ReftLayer
    target_module_mapping: dict[str, list[str]] = {}  # noqa: RUF012  # PEFT's declaration

    def _prepare_adapter_config(self, peft_config: ReftConfig, model_config: dict[str, Any]) -> ReftConfig:
        """Resolve the config's layers and components to the sites of this model."""
        groups = self._groups = peft_config.groups()
        refuse_unbound(peft_config.special_tokens, groups)
        if peft_config.recorded_base is not None:
            check_base(peft_config.recorded_base, self.model)
        found = [find_stacks(self.model, group.layers_pattern) for group in groups]
        asked = [(at, g.layers_to_transform, g.component) for at, g in zip(found, groups, strict=True)]
        sites, stacks = site_table(self.model, asked)
        refuse_head_count(self.model, sites, groups)
        self._sites = {site.path: site for site in sites}
        peft_config.moved = moved_components(self.model, sites, [group.component for group in groups])
        refuse_first_meaning(peft_config.recorded_version, peft_config.moved)
        if self._told_by is not None:
            check_sites(self._told_by, self._sites)
        state = state_of(self.model)
        if state is not None and not all(config.inference_mode for config in self.peft_config.values()):
            check_names_apart((self._adding, *state.views), self._sites)  # something may be saved
        refuse_saved_sites(peft_config.modules_to_save, self._sites)
        refuse_absent(peft_config.modules_to_save, self.model)
        refuse_tokens(peft_config.trainable_token_indices, self.model)
        self._hidden_size = hidden_size_of(self.model)
        peft_config.target_modules = tuple(self._sites)
        streams = max((tap.form.streams for site in sites for tap in site.taps), default=1)
        peft_config.base_identity = base_identity(self.model, stacks, self._hidden_size, streams=streams)
        peft_config.base_tokenizer = base_tokenizer(self.model)
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
        self._told_by, self._adding = state_dict, adapter_name
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
        state = runtime.state
        try:
            self._former = former_units(config, adapter_name, self.peft_config, state)
            with others_hidden(state, adapter_name):
                super().inject_adapter(model, adapter_name, *args, **kwargs)
        finally:
            self._told_by, self._former = None, NOTHING
            if not state.layers:
                runtime.remove()
        share_start(self.model, (held for unit in units_of(state, adapter_name) for held in unit.parameters()))
        state.views[adapter_name] = AdapterView(
            adapter_name, config.groups(), (config.special_tokens or {}).get("ids", {})
        )
        state.has_completion[adapter_name] = _has_completion(self.model, config)
        for layer in state.layers.values() if policy is not None else ():
            layer.follow(adapter_name, policy)
        state.changed()
        runtime.mode_changed()
        if config.recorded_tensors is not None:
            if config.modules_to_save or config.trainable_token_indices:
                check_wrappers(self.model, adapter_name, config.recorded_tensors)
            state.unverified[adapter_name] = loaded_check(self.model, adapter_name, config.recorded_tensors)

    def _check_trainer(self, adapter_name: str, config: ReftConfig) -> str | None:
        """Where a trainer that starts adds this adapter: refuse what it would do wrong with it.

        Returns:
            The adapter that the trainer copies into this one as its reference; None if it is no reference.
        """
        running, state = running_trainer(), state_of(self.model)
        if running is None or not running.starts:
            return None
        refuse_cut_rows(running.settings, [(adapter_name, group.positions) for group in config.groups()])
        refuse_vllm(running.settings)
        policy = next((name for name, known in self.peft_config.items() if known is config), adapter_name)
        if policy == adapter_name or state is None:
            return None
        refuse_partial_reference(state.active(), copied=policy)
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
        layer = getattr(target, CHILD, None)
        if layer is None:
            runtime.add_stack(site.stack)
            layer = ReftLayer(current_key, site.stack.path, runtime)
            layer.attach(target)
            carry_frames(runtime, current_key, site.stack.path)
        units = units_at(site, self._groups, self._hidden_size)
        layer.update_layer(
            adapter_name,
            units,
            init_weights=peft_config.init_weights if peft_config.recorded_tensors is None else LOADED,
            device=site_device(target),
            complements=self._former.at(layer, units),
        )

    def _cast_adapter_dtype(self, adapter_name: str, autocast_adapter_dtype: bool = True) -> None:
        state = state_of(self.model)
        if state is None:
            super()._cast_adapter_dtype(adapter_name, autocast_adapter_dtype)
        else:
            cast_adapter(self.model, state, adapter_name, autocast_adapter_dtype)

    def _mark_only_adapters_as_trainable(self, model: nn.Module) -> None:
        state = state_of(self.model)
        if state is None or model is not self.model or not freeze_base(state):
            super()._mark_only_adapters_as_trainable(model)

    def set_adapter(self, adapter_name: str | list[str], inference_mode: bool = False) -> None:
        """Make these adapters the active ones; see PEFT's `BaseTuner.set_adapter`."""
        several = isinstance(adapter_name, (list, tuple, set))
        check_known(adapter_name if several else [adapter_name], self.peft_config)
        bring_root(self)
        state = state_of(self.model)
        if state is None or not activate(state, adapter_name, inference_mode):
            super().set_adapter(adapter_name, inference_mode=inference_mode)
        self.active_adapter = adapter_name

    def delete_adapter(self, adapter_name: str) -> None:
        """Delete an adapter; the model keeps its hooks, which do nothing without an active one.

        Raises:
            ConfigError: requests of continuous batching that have not ended name it.
        """
        runtime = runtime_of(self.model)
        if runtime is not None:
            runtime.provider(ContinuousBatching).check_unused(adapter_name)
        super().delete_adapter(adapter_name)
        state = state_of(self.model)
        if state is not None:
            stacks_of(state).drop(adapter_name)
            state.forget(adapter_name)

    def unload(self) -> nn.Module:
        """The base model as it was: no hooks, no attributes, no child modules of ours."""
        runtime = runtime_of(self.model)
        if runtime is not None:
            for path in runtime.state.layers:
                delattr(self.model.get_submodule(path), CHILD)
            runtime.remove()
        base: nn.Module = super()._unload_and_optionally_merge(merge=False)
        return base

    def merge_adapter(self, *args: Any, **kwargs: Any) -> NoReturn:
        """Refused: see `MergeError`."""
        raise no_merge("merge_adapter")

    def unmerge_adapter(self) -> NoReturn:
        """Refused: nothing can have been merged."""
        raise no_merge("unmerge_adapter")

    def merge_and_unload(self, *args: Any, **kwargs: Any) -> NoReturn:
        """Refused: see `MergeError`."""
        raise no_merge("merge_and_unload")

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
        check_free(adapter_name, self.peft_config)
        check_name(adapter_name)
        state = state_of(self.model)
        if state is None:  # pragma: no cover  # an adapter is there, so is its runtime
            raise ConfigError("the model carries no ReFT runtime")
        summed = weighted_sum(state, self.peft_config, adapters, weights, combination_type=combination_type)
        self.peft_config[adapter_name] = summed.config
        try:
            self.inject_adapter(self.model, adapter_name)
        except Exception:
            self.peft_config.pop(adapter_name, None)
            raise
        summed.fill(state, adapter_name)

    @contextmanager
    def _enable_peft_forward_hooks(self, *args: Any, **kwargs: Any) -> Iterator[None]:
        """PEFT calls this with the keywords of forward and generate: here a batch's rows get their own adapters."""
        state, names = state_of(self.model), kwargs.get("adapter_names")
        if names is None or state is None:
            yield
            return
        rows = split_rows(names, self.peft_config, training=self.training)
        with rows_in_use(self.model, state, rows, args, kwargs):
            yield


def _has_completion(model: nn.Module, config: ReftConfig) -> bool:
    if config.task_type is not None:
        return str(getattr(config.task_type, "value", config.task_type)) in COMPLETION_TASKS
    return bool(can_generate(model))
