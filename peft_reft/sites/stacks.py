"""Finds the stacks of a model: each `ModuleList` whose elements are its blocks. By rule, not by list."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn
from transformers.modeling_layers import GradientCheckpointingLayer

from peft_reft.hub_format.errors import SiteError

from .fields import config_field

__all__ = ["Stack", "can_generate", "find_stacks", "hidden_size_of", "role_of", "text_config"]


@dataclass(frozen=True)
class Stack:
    """One stack of blocks.

    Attributes:
        path: dotted name of the `ModuleList`, e.g. `"model.layers"`.
        role: `"encoder"` or `"decoder"` in an encoder-decoder model, else `"only"`.
        length: number of blocks.
        passes: how often they run in one forward, all together, where that is oftener (ALBERT shares its blocks).
    """

    path: str
    role: str
    length: int
    passes: int | None = None


def find_stacks(model: nn.Module, pattern: str | Sequence[str] | None = None) -> list[Stack]:
    """The stacks of blocks of a model.

    Blocks are what transformers marks as such: elements of the outermost `ModuleList`s that are checkpointing layers
    or named in `_no_split_modules`; else the one homogeneous list as long as the config says. In a model with several
    towers only those of the text model count.

    Args:
        model: any module; transformers' models are understood without help.
        pattern: name of the list, or the end of its dotted name, where the rule cannot tell; it also picks one stack.

    Raises:
        SiteError: no list or several lists fit; the message says how to name one.
    """
    lists = list(_outermost_lists(model))
    if pattern is not None:
        names = [pattern] if isinstance(pattern, str) else list(pattern)
        every = [(path, module) for path, module in model.named_modules() if isinstance(module, nn.ModuleList)]
        chosen = [(path, blocks) for path, blocks in every if any(_ends_with(path, name) for name in names)]
        if not chosen:
            raise _refuse(f"layers_pattern={pattern!r} names no ModuleList of {type(model).__name__}", every)
        _check_tower(model, chosen)
    else:
        chosen = _text_tower(model, [(path, blocks) for path, blocks in lists if _are_blocks(model, blocks)])
        if not chosen:
            chosen = [(p, blocks) for p, blocks in lists if _fits_config(model, blocks) or _passes(model, blocks)]
        if not chosen:
            raise _refuse(f"the blocks of {type(model).__name__} cannot be told", lists)
    stacks = [Stack(path, role_of(model, path), len(blocks), _passes(model, blocks)) for path, blocks in chosen]
    if len({stack.role for stack in stacks}) != len(stacks):
        raise _several(model, chosen)
    return stacks


def hidden_size_of(model: nn.Module) -> int:
    """Size of the hidden states, from the config of the text model (weights may be packed).

    Raises:
        SiteError: the model has no config that says it.
    """
    config = text_config(model)
    for name in ("hidden_size", "d_model", "n_embd", "dim"):
        if isinstance(size := config_field(config, name), int):
            return size
    raise SiteError(
        f"the hidden size of {type(model).__name__} cannot be told",
        value=type(model).__name__,
        rule="it is read from model.config.hidden_size",
        fix="give the model a `config` with `hidden_size`",
    )


def _outermost_lists(module: nn.Module, prefix: str = "") -> Iterator[tuple[str, nn.ModuleList]]:
    for name, child in module.named_children():
        path = f"{prefix}.{name}" if prefix else name
        if isinstance(child, nn.ModuleList):
            if len(child):
                yield path, child
        else:
            yield from _outermost_lists(child, path)


def _are_blocks(model: nn.Module, blocks: nn.ModuleList) -> bool:
    if all(isinstance(block, GradientCheckpointingLayer) for block in blocks):
        return True
    named = {
        name for module in model.modules() for name in (getattr(module, "_no_split_modules", None) or ())
    }  # what `device_map` must not split: the blocks, and sometimes embeddings
    return all(isinstance(block, GradientCheckpointingLayer) or type(block).__name__ in named for block in blocks)


def _fits_config(model: nn.Module, blocks: nn.ModuleList) -> bool:
    config = text_config(model)
    names = ("num_hidden_layers", "num_layers", "n_layer", "n_layers")
    lengths = [config_field(config, name) for name in names]
    return len(blocks) in lengths and len({type(block) for block in blocks}) == 1 and any(blocks[0].children())


def _passes(model: nn.Module, blocks: nn.ModuleList) -> int | None:
    """How often groups of blocks run that share their weights, as the config says; None where nothing is shared."""
    config = text_config(model)
    groups, passes = (getattr(config, name, None) for name in ("num_hidden_groups", "num_hidden_layers"))
    shared = isinstance(groups, int) and isinstance(passes, int) and groups == len(blocks) < passes
    return passes if shared and len({type(block) for block in blocks}) == 1 and any(blocks[0].children()) else None


def text_config(model: nn.Module) -> Any:
    """The config of the text model, or of a module without towers its own; None without any."""
    config: Any = getattr(model, "config", None)
    return config.get_text_config() if hasattr(config, "get_text_config") else config


def _text_tower(model: nn.Module, lists: list[tuple[str, nn.ModuleList]]) -> list[tuple[str, nn.ModuleList]]:
    config = getattr(model, "config", None)
    text = text_config(model)
    if getattr(config, "is_encoder_decoder", False):
        reading = [(path, blocks) for path, blocks in lists if not _reads_no_tokens(model, path)]
        return _of_the_text(model, reading or lists)
    if len(lists) < 2:
        return lists
    if text is config:
        return _of_the_text(model, lists)
    return [
        (path, blocks)
        for path, blocks in lists
        if getattr(_owner_config(model, path), "model_type", None) == text.model_type
    ]


def _of_the_text(model: nn.Module, lists: list[tuple[str, nn.ModuleList]]) -> list[tuple[str, nn.ModuleList]]:
    """The lists of modules that have the model's own config, or that of its text; all of them where a role has none.

    A tower of images, sound or proteins has a config of its own beside the model's, whose words are the text's (GIT,
    Phi-4, Evolla), or beside those of an encoder's text (T5Gemma 2).
    """
    own: Any = getattr(model, "config", None)
    sides = [own, getattr(own, "encoder", None), getattr(own, "decoder", None)]
    configs = [config for config in sides if hasattr(config, "get_text_config")]
    types = {config.model_type for one in configs for config in (one, one.get_text_config())}
    kept = [one for one in lists if getattr(_owner_config(model, one[0]), "model_type", None) in types]
    roles = [{role_of(model, path) for path, _ in some} for some in (lists, kept)]
    return kept if roles[0] == roles[1] else lists


def _check_tower(model: nn.Module, chosen: list[tuple[str, nn.ModuleList]]) -> None:
    """Refuse blocks of a tower of images or sound: positions are of the text's tokens, and its sizes are others."""
    every = [(path, blocks) for path, blocks in _outermost_lists(model) if _are_blocks(model, blocks)]
    text = _text_tower(model, every)
    config = getattr(model, "config", None)
    pair = getattr(config, "is_encoder_decoder", False)
    beside = {path for path, _ in every} - {path for path, _ in text}
    if not text or (text_config(model) is config and not (pair or beside)):
        return
    for path, _ in chosen:
        model_type = getattr(_owner_config(model, path), "model_type", None)
        own = pair or text_config(model) is config or model_type == text_config(model).model_type
        if not own or path in beside or (pair and _reads_no_tokens(model, path)):
            raise SiteError(
                f"{path!r} is not in the text model of {type(model).__name__}",
                code="site.tower",
                value=path,
                rule="positions are those of the text's tokens, image tokens among them",
                fix=f"leave layers_pattern out, or name {', '.join(repr(path) for path, _ in text)}",
            )


def _owner_config(model: nn.Module, path: str) -> Any:
    """The config of the innermost module around a list that has one."""
    parts = path.split(".")[:-1]
    for end in range(len(parts), -1, -1):
        config = getattr(model.get_submodule(".".join(parts[:end])), "config", None)
        if config is not None:
            return config
    return None


def role_of(model: nn.Module, path: str) -> str:
    """The role of the stack that a module belongs to, by its dotted name."""
    if not getattr(getattr(model, "config", None), "is_encoder_decoder", False):
        return "only"
    # the outermost name says it: a decoder may be a BERT, which keeps its blocks in an encoder
    parts = (part.rpartition("_")[2] for part in path.split("."))  # text_encoder is one too
    return next((part for part in parts if part in ("encoder", "decoder")), "only")


def _reads_no_tokens(model: nn.Module, path: str) -> bool:
    """Whether a list belongs to an encoder of images or sound: `main_input_name` is what a model's encoder takes."""
    reads = getattr(model, "main_input_name", "input_ids")
    return role_of(model, path) == "encoder" and reads not in ("input_ids", "inputs_embeds")


def _ends_with(path: str, name: str) -> bool:
    return path == name or path.endswith(f".{name}")


def _several(model: nn.Module, chosen: Sequence[tuple[str, nn.ModuleList]]) -> SiteError:
    owners = {path.rpartition(".")[0] for path, _ in chosen}
    sizes = {len(blocks) for _, blocks in chosen}
    if len(owners) == 1 and len(sizes) == 1:  # XLM, Flaubert
        owner = model.get_submodule(next(iter(owners)))
        beside = [name for name, child in owner.named_children() if isinstance(child, nn.ModuleList)]
        return SiteError(
            f"{type(model).__name__} keeps the parts of its blocks in lists of their own: {', '.join(beside)}",
            code="site.stack",
            value=beside,
            rule="a block is one module, whose output is edited, and no module of this model is a whole block",
            fix=f"name the list whose outputs are to be edited, e.g. layers_pattern={beside[-1]!r}: the last of them "
            "closes the block where its norms stand behind the sums",
        )
    names = " or ".join(f"layers_pattern={path!r}" for path, _ in chosen)
    return _refuse(f"{type(model).__name__} has several stacks of blocks", chosen, fix=f"choose one: {names[:400]}")


def _refuse(message: str, lists: Sequence[tuple[str, nn.ModuleList]], *, fix: str | None = None) -> SiteError:
    found = ", ".join(f"{path!r} ({len(blocks)} × {type(blocks[0]).__name__})" for path, blocks in lists) or "none"
    return SiteError(
        message,
        code="site.stack",
        rule=f"each stack of blocks is one ModuleList; found: {found[:600]}",
        fix=fix or "name it with layers_pattern, e.g. layers_pattern='encoder.layers'",
    )


def can_generate(model: nn.Module) -> bool | None:
    """Whether a model writes on behind its input, as it says itself; None where it does not say."""
    told = getattr(model, "can_generate", None)
    return bool(told()) if callable(told) else None
