"""What an adapter cannot ask of a model, said when it is made; and that it cannot be merged."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from torch import nn

from peft_reft.hub_format.envelope import IF_PRESENT
from peft_reft.hub_format.errors import ConfigError, MergeError, PositionError, SiteError
from peft_reft.hub_format.schema import SiteGroup
from peft_reft.hub_format.special_tokens import unbound_tokens
from peft_reft.hub_format.versions import parse_version
from peft_reft.sites import PARTS_SINCE

__all__ = [
    "no_merge",
    "refuse_absent",
    "refuse_first_meaning",
    "refuse_saved_sites",
    "refuse_tokens",
    "refuse_unbound",
]


def refuse_first_meaning(version: str | None, moved: Mapping[str, str]) -> None:
    """A file in whose version of the format a component is another module of this model, or another multiple.

    Args:
        version: of the file; None for a config that was not read from one.
        moved: component → a site's path, for those that the first version took elsewhere.

    Raises:
        SiteError: the two meet.
    """
    if version is None or not moved or parse_version(version) >= parse_version(PARTS_SINCE):
        return
    component, path = next(iter(moved.items()))
    raise SiteError(
        f"component={component!r} in a file of format {version}: at {path} it was something else then",
        code="site.component",
        value=component,
        rule=f"from format {PARTS_SINCE} on attention_output and mlp_output are what the block adds (behind the norm "
        "that follows the part, times the block's multiplier), head_output[n] is what its projection takes; edits of "
        "the first meaning would be at another place, or of another size",
        fix="train the adapter again, or load it with the version of peft-reft that saved it",
    )


def refuse_saved_sites(modules: object, sites: Iterable[str]) -> None:
    """Modules that would be copied with a site inside."""
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


def refuse_absent(modules: Iterable[str] | None, model: nn.Module) -> None:
    """Names that PEFT would pass over, and that a folder could then not be loaded with."""
    for name in modules or ():
        if name not in IF_PRESENT and not any(path.endswith(name) for path, _ in model.named_modules()):
            raise ConfigError(
                f"modules_to_save={sorted(modules or ())!r}: {type(model).__name__} has no module {name!r}",
                value=name,
                rule="what is trained and saved in full is a module of the model, named by the end of its path",
                fix="take the name from model.named_modules(), e.g. 'lm_head'",
            )


def refuse_tokens(indices: list[int] | dict[str, list[int]] | None, model: nn.Module) -> None:
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


def refuse_unbound(special_tokens: Mapping[str, Any] | None, groups: Sequence[SiteGroup]) -> None:
    """Positions that name a special token whose id is not known."""
    unbound = unbound_tokens(special_tokens, groups)
    if unbound:
        raise PositionError(
            f"positions name tok({unbound[0]}), which is bound to no tokenizer",
            code="positions.unbound",
            value=unbound[0],
            rule="a special token is edited by its id, which only a tokenizer knows",
            fix="call config.bind_tokenizer(tokenizer) before the model is made",
        )


def no_merge(verb: str) -> MergeError:
    """The refusal of a verb that merges."""
    return MergeError(
        f"{verb} is not possible for ReFT adapters",
        rule="an edit applies at chosen token positions, and weights do not know positions",
        fix="keep the adapter beside the model (its cost at generation is that of the prompt; in TRL's trainers set "
        "use_vllm=False), or call unload() to get the base model back",
    )
