"""`MixedReftModel`: a weight tuner (LoRA) and a ReFT tuner on one base model, trained, saved and served together."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from os import PathLike
from typing import Any

from peft import PeftConfig, PeftModel
from torch import nn

from peft_reft.adapters.calls import rows_in_use
from peft_reft.adapters.names import check_free, check_known
from peft_reft.adapters.per_row import split_rows
from peft_reft.config import ReftConfig
from peft_reft.runtime import state_of
from peft_reft.storage.hub import push_to_hub

from . import checkpoint, checks
from .opening import made_by_peft, open_bundle
from .reference import add_reference, restore
from .two_tuners import TwoTuners

__all__ = ["MixedReftModel"]


class MixedReftModel(TwoTuners):
    """A causal language model with LoRA adapters and ReFT adapters, all of which may be active at once.

    To PEFT, TRL, transformers and accelerate it is the PEFT model of its LoRA part; the ReFT part works through hooks
    on the same base, so no key of the LoRA changes. Make it with `from_configs` or `from_pretrained`.

    Args:
        model: the base model.
        peft_config: of the first weight adapter.
        adapter_name: of the first weight adapter.
    """

    @classmethod
    def from_configs(
        cls,
        model: nn.Module,
        configs: Mapping[str, PeftConfig],
        *,
        autocast_adapter_dtype: bool = True,
        orthogonal: bool = False,
    ) -> MixedReftModel:
        """A model with fresh adapters, all active and trainable.

        Args:
            model: the base model; it is changed in place.
            configs: adapter name → config. The name `"default"` must be a weight adapter's (LoRA), at least one other
                a `ReftConfig`.
            autocast_adapter_dtype: whether adapters of half-precision bases are float32.
            orthogonal: keep what the edits of kind `adapter` read out of what the LoRA of their block writes.

        Returns:
            The mixed model, around the base that was given.

        Raises:
            ConfigError: a part is missing, a name is not allowed, or nothing can be kept orthogonal.
        """
        checks.check_configs(configs)
        return cls._made(model, configs, autocast_adapter_dtype)._kept_apart(orthogonal)

    @classmethod
    def from_peft(cls, model: PeftModel) -> MixedReftModel:
        """A PEFT model at hand, as a mixed one, to which ReFTs are added: `add_adapter("edit", ReftConfig(...))`.

        Its adapters stay as they are: their weights, which are active, which are trained. The model that was given
        holds the same modules; use the one that is returned.

        Args:
            model: of a weight adapter such as a LoRA, one of them named `"default"`.

        Returns:
            The mixed model, around the same modules.

        Raises:
            ConfigError: a model that cannot be the weight part of a mixed one.
        """
        checks.check_weight_model(model)
        return cls._around(model)

    @classmethod
    def from_pretrained(
        cls,
        model: nn.Module,
        model_id: str | PathLike[str],
        *,
        is_trainable: bool = False,
        autocast_adapter_dtype: bool = True,
        allow_other_base: bool = False,
        orthogonal: bool = False,
        **kwargs: Any,
    ) -> MixedReftModel:
        """Load a bundle from a folder or a Hub repository.

        A LoRA alone, as stock PEFT saves it, is a bundle of one: `add_adapter("edit", ReftConfig(...))` puts a ReFT
        beside it, and `set_adapter(["default", "edit"])` makes both active.

        Args:
            model: the base model; it is changed in place.
            model_id: folder or repository.
            is_trainable: whether the adapters are to be trained further.
            autocast_adapter_dtype: as in `from_configs`.
            allow_other_base: load ReFTs on another base than their manifests say they were made for.
            orthogonal: as in `from_configs`, where it is trained further; what was saved is orthogonal as it is.
            kwargs: `revision`, `token`, `cache_dir`, `local_files_only`, as in huggingface_hub; `allow_patterns=True`
                runs regular expressions of a LoRA's config, which can take forever: only where you trust its author.

        Returns:
            The mixed model, its adapters loaded and active.

        Raises:
            ReftError: the folder is no bundle and no weight adapter, or a file of it is not what was saved.
            BaseMismatchError: the bundle was made for another base; the error names the item that differs.
        """
        bundle = open_bundle(str(model_id), **kwargs)
        configs = bundle.configs(is_trainable=is_trainable, allow_other_base=allow_other_base)
        if bundle.indexed:
            checks.check_configs(configs)
        else:
            checks.check_parts(configs)
        with made_by_peft(", ".join(configs)):
            mixed = cls._made(model, configs, autocast_adapter_dtype)
        return checkpoint.filled(mixed, bundle, is_trainable=is_trainable)._kept_apart(orthogonal)

    def add_adapter(
        self,
        adapter_name: str,
        peft_config: PeftConfig,
        low_cpu_mem_usage: bool = False,
        autocast_adapter_dtype: bool = True,
    ) -> None:
        """Add a fresh adapter of either part; it is not active, nor trained, until `set_adapter` names it.

        With the config of a weight adapter of this model, the very object, as TRL's trainers give it for their "ref":
        the new adapter is that policy's reference. A frozen copy of every active edit goes with it: `set_adapter` of
        this name switches all of them on, and a following `set_adapter(model.active_adapter)` brings back what was
        active and trained before. References are not saved.
        """
        checks.check_part(adapter_name, peft_config)
        check_free(adapter_name, self.peft_config)
        active, trained = (
            self.active_adapters,
            [name for name, value in self.named_parameters() if value.requires_grad],
        )
        if any(peft_config is config for config in self.base_model.peft_config.values()):
            self.references.members[adapter_name] = add_reference(self, adapter_name, peft_config, low_cpu_mem_usage)
        elif isinstance(peft_config, ReftConfig):
            self.add_edit(adapter_name, peft_config, low_cpu_mem_usage)
        else:
            self.add_weights(adapter_name, peft_config, low_cpu_mem_usage)
        self._tuner_of(adapter_name)._cast_adapter_dtype(
            adapter_name=adapter_name, autocast_adapter_dtype=autocast_adapter_dtype
        )
        self.set_adapter(active)
        restore(self, trained)  # what was frozen stays so

    def set_adapter(self, adapter_name: str | Sequence[str], inference_mode: bool = False) -> None:
        """Make exactly these adapters active, of either part or both.

        Args:
            adapter_name: a name or a list of names; an empty list leaves the base alone.
            inference_mode: whether the active adapters stay frozen.
        """
        names, before = self.references.chosen(self, adapter_name)
        known = self.peft_config
        check_known(names, known)
        edited = [name for name in names if isinstance(known[name], ReftConfig)]
        self.base_model.set_adapter([name for name in names if name not in edited], inference_mode=inference_mode)
        if self.edits is not None:
            self.edits.set_adapter(edited, inference_mode=inference_mode)
        if before is not None:
            restore(self, before[1])

    def delete_adapter(self, adapter_name: str) -> None:
        """Delete an adapter of either part; the weight adapter `"default"` stays, a bundle needs it."""
        check_known([adapter_name], self.peft_config)
        checks.check_deletable(adapter_name)
        self._tuner_of(adapter_name).delete_adapter(adapter_name)
        for copied in self.references.drop(adapter_name):
            self.edits.delete_adapter(copied)

    def add_weighted_adapter(
        self, adapters: Sequence[str], weights: Sequence[float], adapter_name: str, **kwargs: Any
    ) -> None:
        """Add the weighted sum of adapters of one part; see `ReftModel.add_weighted_adapter`, or PEFT for a LoRA.

        Args:
            adapters: names, all of one part.
            weights: one for each.
            adapter_name: of the sum.
            kwargs: for a LoRA as in PEFT.

        Raises:
            ConfigError: the adapters are of both parts, or the name is taken.
        """
        known = self.peft_config
        check_free(adapter_name, known)
        edits = checks.check_one_part(adapters, known)
        active = self.active_adapters
        (self.edits if edits else self.base_model).add_weighted_adapter(adapters, weights, adapter_name, **kwargs)
        self.base_model.model.peft_config = self.peft_config
        self.set_adapter(active)

    def save_pretrained(self, save_directory: str, *, is_main_process: bool = True, **kwargs: Any) -> None:
        """Save a bundle: the LoRA `default` at the root, ReFTs under `reft/<name>/`, and the index.

        Args:
            save_directory: folder; made if needed. Files of members that no longer exist are removed.
            is_main_process: whether this process writes.
            kwargs: `state_dict` and `save_embedding_layers` as in PEFT.

        Raises:
            ConfigError: `safe_serialization=False` or `selected_adapters`.
        """
        if self.orthogonal is not None:
            self.orthogonal.keep()
        checkpoint.save_bundle(self, save_directory, is_main_process=is_main_process, **kwargs)

    def load_adapter(
        self, model_id: str | PathLike[str], adapter_name: str, is_trainable: bool = False, **kwargs: Any
    ) -> Any:
        """Load an adapter; from a bundle, all members, into the adapters of their names, `adapter_name` among them.

        A trainer that resumes or restores its best checkpoint calls this with the name of the first adapter only, and
        must get both parts back.
        """
        return checkpoint.load_adapter(self, str(model_id), adapter_name, is_trainable=is_trainable, **kwargs)

    def push_to_hub(self, repo_id: str, **kwargs: Any) -> str:
        """Push the bundle as one commit with a card; see `peft_reft.push_to_hub`."""
        return push_to_hub(self, repo_id, **kwargs)

    @contextmanager
    def _enable_peft_forward_hooks(self, *args: Any, **kwargs: Any) -> Iterator[None]:
        """Every call comes by here: `adapter_names` gives each row its weight adapter, its edits, or both."""
        if self.orthogonal is not None:
            self.orthogonal.keep()
        names, state = kwargs.pop("adapter_names", None), state_of(self.base_model.model)
        if names is None or state is None:
            with super()._enable_peft_forward_hooks(*args, adapter_names=names, **kwargs):
                yield
            return
        rows = split_rows(names, list(self.peft_config), training=self.training)
        weights, edits = checks.by_part(rows, set(self.base_model.peft_config))
        with (
            rows_in_use(self.base_model.model, state, edits, args, kwargs),
            super()._enable_peft_forward_hooks(*args, adapter_names=weights, **kwargs),
        ):
            yield
