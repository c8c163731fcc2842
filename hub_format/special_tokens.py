"""The field `special_tokens`: the ids of the tokens that `tok(…)` names, and the tokenizer that gave them."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping

from .errors import ConfigError, shown
from .groups import SiteGroup
from .positions import Special

__all__ = ["FINGERPRINT", "check_special_tokens", "tokens_of", "unbound_tokens"]

FINGERPRINT = re.compile(r"sha256:[0-9a-f]{64}")
MAX_ID = 2**31 - 1
RULE = (
    'it is None, or {"tokenizer": "sha256:<64 hex digits>", "ids": {token: id}} with one id from 0 for every token '
    "that the positions name as tok(…), and no other"
)


def tokens_of(groups: Iterable[SiteGroup]) -> list[str]:
    """The tokens that the groups' positions name, each once, in order."""
    terms = (term for group in groups for term in (*group.positions.terms, *group.positions.exclusions))
    return list(dict.fromkeys(term.token for term in terms if isinstance(term, Special)))


def unbound_tokens(special_tokens: Mapping[str, object] | None, groups: Iterable[SiteGroup]) -> list[str]:
    """The tokens that the positions name and whose ids are not known."""
    return tokens_of(groups) if special_tokens is None else []


def check_special_tokens(value: object, groups: Iterable[SiteGroup]) -> None:
    """Refuse anything but None or the ids of exactly the tokens that the positions name.

    Raises:
        ConfigError: see above.
    """
    if value is None:
        return
    if not isinstance(value, Mapping) or set(value) != {"tokenizer", "ids"}:
        raise _refuse(value)
    fingerprint, ids = value["tokenizer"], value["ids"]
    if not isinstance(fingerprint, str) or not FINGERPRINT.fullmatch(fingerprint) or not isinstance(ids, Mapping):
        raise _refuse(value)
    plain = all(isinstance(number, int) and not isinstance(number, bool) for number in ids.values())
    if not plain or not all(0 <= number <= MAX_ID for number in ids.values()):
        raise _refuse(value)
    named = tokens_of(groups)
    if set(ids) != set(named):
        raise ConfigError(
            f"special_tokens holds ids of {str(sorted(map(str, ids)))[:200]}, "
            f"the positions name {str(sorted(named))[:200]}",
            code="config.special_tokens",
            value=sorted(map(str, ids)),
            rule=RULE,
            fix="set special_tokens to None and call config.bind_tokenizer(tokenizer)",
        )


def _refuse(value: object) -> ConfigError:
    return ConfigError(
        f"special_tokens={shown(value)} is not allowed",
        code="config.special_tokens",
        value=value,
        rule=RULE,
        fix="leave it None and call config.bind_tokenizer(tokenizer)",
    )
