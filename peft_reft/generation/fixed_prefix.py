"""Whether an adapter's edits all lie in a fixed prefix, and whether a cache of it holds all that later tokens see."""

from __future__ import annotations

from typing import Any

from peft.tuners.tuners_utils import BaseTunerLayer
from peft.utils.constants import TRANSFORMERS_MODELS_TO_PREFIX_TUNING_POSTPROCESS_MAPPING
from peft.utils.other import AuxiliaryTrainingWrapper
from torch import Tensor, nn
from transformers.cache_utils import DynamicCache, DynamicLayer

from peft_reft.hub_format.errors import ConfigError, PositionError
from peft_reft.hub_format.positions import First, Generated, PromptWindow, Special, Term
from peft_reft.layer import ReftLayer
from peft_reft.runtime.views import AdapterView

__all__ = ["check_alone", "check_positions", "full_attention"]


def check_positions(view: AdapterView, width: int) -> None:
    """Refuse positions that reach beyond the first `width` tokens of some longer prompt, or depend on its end.

    Raises:
        PositionError: names the term.
    """
    for group in view.groups:
        if group.turns == "each":
            raise _outside(view.name, "turns='each'", width)
        for term in group.positions.terms:
            if not _inside(term, width):
                raise _outside(view.name, str(term), width)
        for term in group.positions.exclusions:
            if not isinstance(term, (Special, Generated)) and not _inside(term, width):
                raise _outside(view.name, f"-{term}", width)


def _inside(term: Term, width: int) -> bool:
    if isinstance(term, First):
        return term.count <= width
    if not isinstance(term, PromptWindow) or term.stop is None:
        return False
    return (term.start or 0) >= 0 and 0 < term.stop <= width


def _outside(name: str, what: str, width: int) -> PositionError:
    return PositionError(
        f"adapter {name!r} edits {what}, and the prefix has {width} tokens",
        code="export.positions",
        value=what,
        rule="only edits at places that are counted from the start, all inside of the prefix, are the same for every "
        "continuation: f<n> and p[a:b] with bounds from 0 to its length; l<n>, prompt, all, generated and tok(…) are "
        "not, nor exclusions that count from the prompt's end",
        fix="train with such positions, or give a longer prefix",
    )


def check_alone(model: nn.Module) -> None:
    """Refuse what else changes the base: it would have to act on every token, and a cache holds the prefix alone.

    Raises:
        ConfigError: another tuner that is active, or modules and tokens that were trained in full.
    """
    for name, module in model.named_modules():
        other = (
            isinstance(module, BaseTunerLayer) and not isinstance(module, ReftLayer) and hasattr(module, "base_layer")
        )
        if other and module.active_adapters and not module.disable_adapters:
            raise ConfigError(
                f"{name} has the weight adapter {', '.join(module.active_adapters)!r}",
                code="export.beside",
                value=name,
                rule="a prefix stands for edits alone: the tokens behind it are computed by the base",
                fix="make the ReFT alone active: model.set_adapter([name])",
            )
        if isinstance(module, AuxiliaryTrainingWrapper) and module.active_adapters:
            raise ConfigError(
                f"{name} was trained in full beside the edits",
                code="export.beside",
                value=name,
                rule="a prefix stands for edits alone: the tokens behind it are computed by the base",
                fix="train without modules_to_save and trainable_token_indices",
            )


def full_attention(cache: Any, base: nn.Module) -> list[tuple[Tensor, Tensor]]:
    """Keys and values `[1, heads, seq, size]` of every layer, where they are all that attention keeps.

    Raises:
        ConfigError: a cache, or a layer of one, of another kind; layers of different shapes; a model whose prefixes
            PEFT rewrites.
    """
    cls = type(base).__name__
    model_type = getattr(getattr(base, "config", None), "model_type", None)
    if model_type in TRANSFORMERS_MODELS_TO_PREFIX_TUNING_POSTPROCESS_MAPPING:
        raise _inexact(cls, f"PEFT rewrites the prefixes of {model_type!r}, for an older cache of that model")
    if type(cache) is not DynamicCache:
        raise _inexact(cls, f"its cache is a {type(cache).__name__}")
    for number, layer in enumerate(cache.layers):
        if type(layer) is not DynamicLayer:
            raise _inexact(cls, f"layer {number} keeps a {type(layer).__name__}: a window, or a state of fixed size")
    found = [(layer.keys, layer.values) for layer in cache.layers]
    shapes = {tuple(held.shape) for pair in found for held in pair}
    if len(shapes) != 1:
        raise _inexact(cls, f"its keys and values have {len(shapes)} different shapes: {sorted(shapes)[:3]}")
    return found


def _inexact(cls: str, why: str) -> ConfigError:
    return ConfigError(
        f"{cls}: {why}",
        code="export.cache",
        value=cls,
        rule="a stock prefix holds keys and values of one shape for every layer, and every later token attends to all "
        "of them; elsewhere it would not be exact",
        fix="save the adapter itself",
    )
