"""Which adapters can be edited in vLLM's batches; others are refused when they are loaded, with the reason."""

from __future__ import annotations

from typing import Any

from torch import nn

from peft_reft.hub_format.errors import ConfigError, SiteError
from peft_reft.hub_format.manifest import Manifest
from peft_reft.hub_format.reader import CheckedFolder, edit_of
from peft_reft.hub_format.schema import SiteGroup
from peft_reft.interventions import intervention_class
from peft_reft.storage.identity import check_base

from .blocks import ARCHITECTURES
from .packed import view_of
from .settings import Settings

__all__ = ["check_servable"]


def check_servable(checked: CheckedFolder, config: Any, settings: Settings) -> None:
    """Refuse an adapter whose edits vLLM's batches cannot have.

    Args:
        checked: the adapter.
        config: the engine's `VllmConfig`.
        settings: its sizes.

    Raises:
        ConfigError: a kind, component, rank or position that is not served; names it, the rule and the fix.
        SiteError: sites that are no blocks of this model.
        BaseMismatchError: the adapter was made for another base.
    """
    for group in checked.groups:
        _check_group(group, settings)
    _check_counts(checked, config)
    beside = [name for name in checked.manifest.tensors if edit_of(name) is None]
    if beside:
        raise _refuse(
            f"the adapter saves modules in full, e.g. {beside[0][:120]!r}",
            beside[0],
            "vLLM holds the base's own",
            "serve it with transformers, or train without modules_to_save",
        )
    text = config.model_config.hf_text_config
    _check_sites(checked.manifest, text.num_hidden_layers)
    check_base(checked.manifest.base_model, _Shape.of(config.model_config))


def _check_group(group: SiteGroup, settings: Settings) -> None:
    kind = group.intervention
    if group.component != "block_output":
        raise _refuse(
            f"component={group.component!r}",
            group.component,
            "vLLM's layers fuse what stands inside a block: its output is edited",
            "train with component='block_output', or serve with transformers",
        )
    if group.signature.across_tokens:
        raise _refuse(
            f"intervention={kind!r}",
            kind,
            "its edit depends on other tokens, which may come in another step",
            "serve it with transformers, prefilled in one piece",
        )
    if group.needs_turns:
        raise _refuse(
            f"turns='each' with positions={str(group.positions)!r}",
            group.turns,
            "a request is one prompt, and does not say where its turns end",
            "train with turns='first', or serve with generate and prompt_mask",
        )
    folds = "affine" in intervention_class(kind).__dict__ and group.act_fn is None
    if folds and group.r > settings.max_reft_rank:
        raise _refuse(
            f"r={group.r}", group.r, f"slots are as wide as max_reft_rank={settings.max_reft_rank}",
            f"start the engine with max_reft_rank={group.r} (--max-reft-rank {group.r})",
        )  # fmt: skip


def _check_counts(checked: CheckedFolder, config: Any) -> None:
    """Drafts that are rejected change how many tokens were generated, which is then known to the device alone."""
    overlapped = config.scheduler_config.async_scheduling and config.speculative_config is not None
    if overlapped and view_of("", checked).counts_generated:
        raise _refuse(
            "positions that count generated tokens, g[a:b]",
            "g[a:b]",
            "with drafts and asynchronous scheduling nobody but the device knows how many were accepted",
            "start the engine with async_scheduling=False",
        )


def _check_sites(manifest: Manifest, layers: int) -> None:
    """Refuse sites that are no blocks of a model with so many."""
    lists = {blocks.path for blocks in ARCHITECTURES.values()}
    for name in manifest.tensors:
        if (place := edit_of(name)) is None:
            continue
        stack, _, number = place[0].rpartition(".")
        if stack not in lists or not number.isdecimal() or int(number) >= layers:
            raise SiteError(
                f"the adapter edits {place[0][:120]!r}",
                code="vllm.site",
                value=place[0],
                rule=f"served are edits of decoder blocks: {', '.join(sorted(lists))}, 0 to {layers - 1}",
                fix="load it on the base that it was trained on",
            )


class _Shape(nn.Module):
    """The engine's model as far as an adapter's manifest describes its base: config, class name, blocks."""

    config: Any

    @classmethod
    def of(cls, model_config: Any) -> nn.Module:
        """A model without weights, of a class of the architecture's name."""
        config = model_config.hf_text_config
        name = next(iter(getattr(model_config.hf_config, "architectures", None) or ["Model"]))
        shape: _Shape = type(name, (cls,), {"config": config})()
        return shape

    def get_submodule(self, target: str) -> Any:
        """As many blocks as the config says, at any path."""
        return nn.ModuleList(nn.Identity() for _ in range(self.config.num_hidden_layers))


def _refuse(what: str, value: object, rule: str, fix: str) -> ConfigError:
    return ConfigError(what, code="vllm.unsupported", value=value, rule=rule, fix=fix)
