"""Special tokens → ids, and which tokenizer said so: what `ReftConfig.bind_tokenizer` does."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from typing import Any

from peft_reft.hub_format.errors import ConfigError, shown
from peft_reft.hub_format.schema import SiteGroup
from peft_reft.hub_format.special_tokens import tokens_of

__all__ = ["bound_tokens", "special_ids", "tokenizer_fingerprint"]


def bound_tokens(
    tokenizer: Any, groups: Iterable[SiteGroup], bound: Mapping[str, Any] | None
) -> dict[str, Any] | None:
    """The field `special_tokens` for the tokens that the groups' positions name; None where they name none.

    Args:
        tokenizer: a `PreTrainedTokenizerBase`.
        groups: of the config.
        bound: the field as it is.

    Raises:
        ConfigError: an ordinary word, an unknown token, or other ids than those that are bound already.
    """
    ids = special_ids(tokenizer, groups, bound)
    return {"tokenizer": tokenizer_fingerprint(tokenizer), "ids": ids} if ids else None


def special_ids(tokenizer: Any, groups: Iterable[SiteGroup], bound: Mapping[str, Any] | None) -> dict[str, int]:
    """Token → id for the tokens that the groups' positions name; as `bound_tokens`, without the costly fingerprint."""
    names = tokens_of(groups)
    if not names:
        return {}
    known = _whole_tokens(tokenizer)
    for name in names:
        if name not in known:
            shown = ", ".join(sorted(known)[:12]) or "none"
            raise ConfigError(
                f"tok({name}) names no special token of {type(tokenizer).__name__}",
                code="config.special_tokens",
                value=name,
                rule="a special or added token is never merged with its neighbours; an ordinary word may be",
                fix=f"name one of: {shown}",
            )
    ids = {name: known[name] for name in names}
    if bound is not None and dict(bound["ids"]) != ids:
        raise ConfigError(
            f"the config is bound to the ids {dict(bound['ids'])}, this tokenizer has {ids}",
            code="config.special_tokens",
            value=ids,
            rule="a trained adapter edits the tokens whose ids it was trained with",
            fix="use the tokenizer it was trained with; for an adapter yet to be trained set special_tokens to None "
            "first",
        )
    return ids


def _whole_tokens(tokenizer: Any) -> dict[str, int]:
    """Tokens that a tokenizer keeps whole wherever they stand → ids."""
    if not hasattr(tokenizer, "get_added_vocab"):
        raise ConfigError(f"tokenizer is {shown(tokenizer)}", value=tokenizer, rule="a tokenizer of transformers")
    added = {str(token): int(number) for token, number in tokenizer.get_added_vocab().items()}
    special = zip(tokenizer.all_special_tokens, tokenizer.all_special_ids, strict=True)
    return {**added, **{str(token): int(number) for token, number in special}}


def tokenizer_fingerprint(tokenizer: Any) -> str:
    """`sha256:` of a tokenizer's vocabulary, added tokens included: the JSON of [token, id] pairs, sorted by id."""
    pairs = sorted(([str(token), int(number)] for token, number in tokenizer.get_vocab().items()), key=_by_id)
    return "sha256:" + hashlib.sha256(json.dumps(pairs, separators=(",", ":")).encode()).hexdigest()


def _by_id(pair: list[Any]) -> tuple[int, str]:
    return pair[1], pair[0]
