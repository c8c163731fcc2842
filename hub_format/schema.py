"""The strict object `reft` of `adapter_config.json`: every field of an adapter's behaviour, and nothing else.

`check_fields` is the one validation, used when a config is typed by hand, read from a file or changed later.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from .activations import activations_named, canonical_activation
from .errors import ConfigError
from .groups import (
    ACTIVATIONS,
    COMPONENTS,
    GROUP_FIELDS,
    MAX_GROUPS,
    MAX_LAYERS,
    MAX_NAME,
    MAX_RANK,
    TURNS,
    SiteGroup,
    check_defaults,
    is_int,
    refuse,
    site_group,
)
from .keywords import meant
from .kinds import KindSignature, kind_signature
from .lowest import check_not_newer, lowest_version
from .migrations import migrate
from .special_tokens import check_special_tokens
from .versions import SPEC_VERSION, WRITTEN_VERSIONS, Version, check_same_version, parse_version

__all__ = [
    "ACTIVATIONS",
    "BEHAVIOUR",
    "COMPONENTS",
    "FIELDS",
    "GROUP_FIELDS",
    "MAX_GROUPS",
    "MAX_LAYERS",
    "MAX_RANK",
    "SPEC_VERSION",
    "TURNS",
    "SiteGroup",
    "canonical_fields",
    "check_fields",
    "from_object",
    "to_object",
]

_MODULE = re.compile(r"[^\W\d]\w*(\.\w+)*")

FIELDS: dict[str, Any] = {
    **GROUP_FIELDS,
    "init_weights": None,
    "interventions": None,
    "subspaces": None,
    "special_tokens": None,
    "spec_version": SPEC_VERSION,
}
"""Field → default, for everything that determines behaviour and stands in every file."""
SINCE = {"orthogonal_to": "1.2"}
"""Field → the version that brought it: a file has it where it says something, and is of that version at least."""
BEHAVIOUR: dict[str, Any] = {**FIELDS, **dict.fromkeys(SINCE)}
"""Field → default, for everything that determines behaviour."""
_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_-]{0,63}")


def check_fields(values: Mapping[str, Any]) -> tuple[SiteGroup, ...]:
    """Validate every behaviour field and return the site groups.

    Raises:
        ConfigError: a value that the format does not allow; the message names the field, the rule and a fix.
        PositionSyntaxError: a position spec outside the grammar.
        UnsupportedVersionError: an unknown spec version or intervention.
    """
    if values["spec_version"] not in WRITTEN_VERSIONS:
        rule = f"this library writes {' and '.join(WRITTEN_VERSIONS)}, the lowest that says what there is to say"
        raise refuse("spec_version", values["spec_version"], rule, "leave it out")
    init = values["init_weights"]
    if not (init is None or isinstance(init, bool) or init == "paper"):
        raise refuse("init_weights", init, "it is None, True, False or 'paper'")
    defaults = {name: values[name] for name in GROUP_FIELDS}
    listed = values["interventions"]
    if listed is None:
        return _checked([site_group(defaults)], values)
    if not isinstance(listed, (list, tuple)) or not 0 < len(listed) <= MAX_GROUPS:
        raise refuse("interventions", listed, f"it is a list of 1 to {MAX_GROUPS} dicts")
    check_defaults(defaults)
    groups = []
    for number, entry in enumerate(listed):
        if not isinstance(entry, Mapping):
            raise refuse(f"interventions[{number}]", entry, "it is a dict of config fields")
        for name in entry:
            if name not in GROUP_FIELDS:
                rule = f"a group sets only {', '.join(GROUP_FIELDS)}"
                raise refuse(f"interventions[{number}]", name, rule, fix=meant(name, GROUP_FIELDS))
        groups.append(site_group({**defaults, **entry}))
    return _checked(groups, values)


def _checked(groups: list[SiteGroup], values: Mapping[str, Any]) -> tuple[SiteGroup, ...]:
    """The groups, after the fields that are of all of them."""
    _check_subspaces(values["subspaces"], groups)
    check_special_tokens(values["special_tokens"], groups)
    if (former := values.get("orthogonal_to")) is None:
        return tuple(groups)
    rule = "it is a list of 1 to 64 names of adapters, none twice: letters, digits, _ and -, at most 64, no - first"
    listed = isinstance(former, (list, tuple)) and 0 < len(former) <= MAX_GROUPS
    if not listed or not all(isinstance(name, str) and _NAME.fullmatch(name) for name in former):
        raise refuse("orthogonal_to", former, rule)
    if len(set(former)) != len(former):
        raise refuse("orthogonal_to", former, rule)
    if not any(group.signature.orthonormal for group in groups):
        kinds = ", ".join(sorted({group.intervention for group in groups}))
        raise refuse("orthogonal_to", former, f"{kinds} has no R", "choose a kind with one, e.g. loreft")
    return tuple(replace(group, orthogonal=bool(group.signature.orthonormal)) for group in groups)


def canonical_fields(values: Mapping[str, Any]) -> dict[str, Any]:
    """Behaviour fields that were checked, in the words of a file: each activation by its one name, and the lowest
    version of the format that has them all."""
    needed = [since for name, since in SINCE.items() if values.get(name) is not None]
    version = max([lowest_version(values), *needed], key=parse_version)
    written = {**values, "spec_version": version}
    if values.get("orthogonal_to") is not None:
        written["orthogonal_to"] = list(values["orthogonal_to"])
    if values["act_fn"] is not None:
        written["act_fn"] = canonical_activation(values["act_fn"])
    if any(activations_named({**values, "act_fn": None})):
        written["interventions"] = [
            {**entry, "act_fn": canonical_activation(entry["act_fn"])} if "act_fn" in entry else entry
            for entry in values["interventions"]
        ]
    return written


def to_object(values: Mapping[str, Any]) -> dict[str, Any]:
    """Behaviour fields → the object `reft` as it is written: every field, and the version of every kind used."""
    groups = check_fields(values)
    kinds = {group.intervention: _kind_entry(group.signature) for group in groups}
    written = canonical_fields(values)
    said = [name for name in BEHAVIOUR if name not in SINCE or written.get(name) is not None]
    return {**{name: _plain(written[name]) for name in said}, "kinds": dict(sorted(kinds.items()))}


def from_object(stored: object, *, manifest_version: str | None = None) -> dict[str, Any]:
    """The object `reft` as read → behaviour fields. Unknown and missing fields are errors: never a silent default.

    Args:
        stored: the object.
        manifest_version: the version of the manifest beside the config. Where there is none, a higher minor version
            is refused: only a manifest says which features it requires.

    Raises:
        ConfigError, PositionSyntaxError: a field that is unknown, missing, or has a value that is not allowed.
        UnsupportedVersionError: a version or a kind that is not read.
    """
    if not isinstance(stored, dict):
        raise ConfigError(
            "the config holds no object 'reft'",
            code="config.reft",
            value=type(stored).__name__,
            rule="all behaviour stands in the object 'reft'",
            fix="save the adapter again with peft-reft",
        )
    written = stored.get("spec_version")
    stored = migrate(stored, "reft")
    version = parse_version(stored["spec_version"])
    if version > parse_version(WRITTEN_VERSIONS[-1]) or manifest_version is not None:
        check_same_version(written, manifest_version)
    allowed = {*BEHAVIOUR, "kinds", "tensors"}
    for name in stored:
        if name not in allowed:
            raise ConfigError(
                f"reft.{str(name)[:60]} is not a field of format version {WRITTEN_VERSIONS[-1]}",
                code="config.unknown",
                value=name,
                rule="an unknown field may change behaviour, so it is refused",
                fix="update peft-reft, or remove the field",
            )
    for name in (*FIELDS, "kinds"):
        if name not in stored:
            raise ConfigError(
                f"reft.{name} is missing", code="config.missing", value=name, rule="every field is written"
            )
    _check_since(stored, version)
    values = {**{name: stored.get(name) for name in BEHAVIOUR}, "spec_version": SPEC_VERSION}
    _check_kinds(stored["kinds"])
    groups = check_fields(values)
    check_not_newer(values, version)
    used = {group.intervention for group in groups}
    if set(stored["kinds"]) != used:
        raise ConfigError(
            f"reft.kinds={str(stored['kinds'])[:80]} does not list the kinds in use: {', '.join(sorted(used))}",
            code="config.kinds",
            value=stored["kinds"],
            rule="'kinds' maps every intervention in use to its version, and no other",
        )
    return canonical_fields(values)


def _check_since(stored: Mapping[str, Any], version: Version) -> None:
    """Refuse a field that a file of this version has not, and one of a later version that says nothing."""
    for name, since in SINCE.items():
        if name not in stored:
            continue
        if version < parse_version(since):
            raise ConfigError(
                f"reft.{name} is not a field of format version {'.'.join(map(str, version))}",
                code="config.unknown",
                value=name,
                rule=f"version {since} brought it",
                fix="save the adapter again",
            )
        if stored[name] is None:
            raise refuse(name, None, "a file has it only where it says something")


def _kind_entry(signature: KindSignature) -> int | dict[str, Any]:
    """What a file says of a kind: the version; of a user's own also the module, for error messages."""
    if _is_ours(signature):
        return signature.version
    return {"version": signature.version, "module": signature.module}


def _is_ours(signature: KindSignature) -> bool:
    """Whether the kind is one of the format's, and no module's of its own."""
    return signature.module.partition(".")[0] == __name__.partition(".")[0]


def _check_kinds(kinds: object) -> None:
    """Refuse kinds, or versions of them, that are not registered here."""
    if not isinstance(kinds, dict):
        raise _refuse_kind("", kinds)
    for name, entry in kinds.items():
        version, module = entry, None
        if isinstance(entry, dict):
            version, module = entry.get("version"), entry.get("module")
            named = isinstance(module, str) and len(module) <= MAX_NAME and _MODULE.fullmatch(module)
            if set(entry) != {"version", "module"} or not named:
                raise _refuse_kind(name, entry)
        if not is_int(version):
            raise _refuse_kind(name, entry)
        signature = kind_signature(name, version=version, module=module)
        if module is not None and _is_ours(signature):  # a name that the format took since: not what the file means
            raise _refuse_kind(name, entry)


def _refuse_kind(name: object, entry: object) -> ConfigError:
    return ConfigError(
        f"reft.kinds{'.' if name else ''}{str(name)[:60]}={str(entry)[:80]} is malformed",
        code="config.kinds",
        value=entry,
        rule="a kind has a version, or {version, module} where another library registers it",
    )


def _check_subspaces(subspaces: object, groups: list[SiteGroup]) -> None:
    """Named row ranges [start, stop) of R: disjoint, inside the rank of every group."""
    if subspaces is None:
        return
    rule = "it maps names to [start, stop), disjoint ranges of R's rows"
    if not isinstance(subspaces, Mapping) or not 0 < len(subspaces) <= MAX_GROUPS:
        raise refuse("subspaces", subspaces, rule)
    for group in groups:
        if not group.signature.has_rank:
            raise refuse("subspaces", subspaces, f"intervention {group.intervention!r} has no rows to name")
    rank, taken = min(group.r for group in groups), set[int]()
    for name, bounds in subspaces.items():
        pair = isinstance(bounds, (list, tuple)) and len(bounds) == 2 and all(map(is_int, bounds))
        if not isinstance(name, str) or not re.fullmatch(r"\w[\w.-]{0,63}", name) or not pair:
            raise refuse("subspaces", subspaces, rule, 'e.g. {"style": [0, 2], "facts": [2, 4]}')
        rows = range(bounds[0], bounds[1])
        if not 0 <= bounds[0] < bounds[1] <= rank or taken & set(rows):
            raise refuse("subspaces", subspaces, f"{rule}, none empty, within r={rank}: see {name!r}")
        taken |= set(rows)


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple, set)):
        return [_plain(item) for item in value]
    return value
