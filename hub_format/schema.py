"""The strict object `reft` of `adapter_config.json`: every field of an adapter's behaviour, and nothing else.

`check_fields` is the one validation, used when a config is typed by hand, read from a file or changed later.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, TypeGuard

from .errors import ConfigError
from .kinds import KindSignature, kind_signature
from .migrations import migrate
from .positions import All, Positions, Special, parse_positions
from .special_tokens import check_special_tokens
from .versions import SPEC_VERSION, check_same_version

__all__ = [
    "ACTIVATIONS",
    "FIELDS",
    "GROUP_FIELDS",
    "SPEC_VERSION",
    "SiteGroup",
    "check_fields",
    "from_object",
    "to_object",
]

ACTIVATIONS = ("gelu", "gelu_tanh", "leaky_relu", "mish", "relu", "relu6", "sigmoid", "silu", "tanh")
COMPONENTS = ("block_output", "block_input", "attention_output", "mlp_output")
HEAD = re.compile(r"head_output\[(0|[1-9]\d{0,3})\]")
TURNS = ("first", "each")
MAX_RANK = 65_536
MAX_LAYERS = 4_096
MAX_GROUPS = 64
MAX_NAME = 200
_MODULE = re.compile(r"[^\W\d]\w*(\.\w+)*")

GROUP_FIELDS: dict[str, Any] = {
    "r": 4,
    "intervention": "loreft",
    "options": None,
    "layers_to_transform": None,
    "component": "block_output",
    "positions": "l1",
    "turns": "first",
    "share_weights": True,
    "dropout": 0.0,
    "act_fn": None,
    "layers_pattern": None,
}
"""Field → default, for the fields that a site group may set for itself."""

FIELDS: dict[str, Any] = {
    **GROUP_FIELDS,
    "init_weights": None,
    "interventions": None,
    "subspaces": None,
    "special_tokens": None,
    "spec_version": SPEC_VERSION,
}
"""Field → default, for everything that determines behaviour."""


@dataclass(frozen=True)
class SiteGroup:
    """One set of sites that share a kind, a rank and positions; terms claim tokens within one group."""

    r: int
    intervention: str
    options: Mapping[str, Any] | None
    layers_to_transform: tuple[int, ...] | None
    component: str
    positions: Positions
    turns: str
    share_weights: bool
    dropout: float
    act_fn: str | None
    layers_pattern: str | tuple[str, ...] | None

    @property
    def signature(self) -> KindSignature:
        """Tensors and version of the group's kind."""
        return kind_signature(self.intervention)

    @property
    def units(self) -> int:
        """Interventions per site: one if tied, else one per term."""
        return 1 if self.share_weights else len(self.positions.terms)

    def shapes(self, *, hidden: int) -> dict[str, tuple[int, ...]]:
        """Tensor name → shape of one intervention of the group."""
        return self.signature.shapes(rank=self.r, hidden=hidden, options=self.options)

    @property
    def needs_prompt_end(self) -> bool:
        """Whether the tokens edited depend on where a prompt ends."""
        return self.positions.needs_prompt_end or self.needs_turns

    @property
    def needs_turns(self) -> bool:
        """Whether the tokens edited depend on where every turn's prompt starts and ends."""
        terms = (*self.positions.terms, *self.positions.exclusions)
        return self.turns == "each" and any(not isinstance(term, (All, Special)) for term in terms)

    @property
    def full_width(self) -> bool:
        """Whether its component is as wide as the hidden state; a head's output is narrower."""
        return self.component in COMPONENTS


def check_fields(values: Mapping[str, Any]) -> tuple[SiteGroup, ...]:
    """Validate every behaviour field and return the site groups.

    Raises:
        ConfigError: a value that the format does not allow; the message names the field, the rule and a fix.
        PositionSyntaxError: a position spec outside the grammar.
        UnsupportedVersionError: an unknown spec version or intervention.
    """
    if values["spec_version"] != SPEC_VERSION:
        raise _refuse("spec_version", values["spec_version"], f"this library writes {SPEC_VERSION}", "leave it out")
    init = values["init_weights"]
    if not (init is None or isinstance(init, bool) or init == "paper"):
        raise _refuse("init_weights", init, "it is None, True, False or 'paper'")
    defaults = {name: values[name] for name in GROUP_FIELDS}
    listed = values["interventions"]
    if listed is None:
        groups = [_group(defaults)]
        _check_subspaces(values["subspaces"], groups)
        check_special_tokens(values["special_tokens"], groups)
        return tuple(groups)
    if not isinstance(listed, (list, tuple)) or not 0 < len(listed) <= MAX_GROUPS:
        raise _refuse("interventions", listed, f"it is a list of 1 to {MAX_GROUPS} dicts")
    _check_defaults(defaults)
    groups = []
    for number, entry in enumerate(listed):
        if not isinstance(entry, Mapping):
            raise _refuse(f"interventions[{number}]", entry, "it is a dict of config fields")
        for name in entry:
            if name not in GROUP_FIELDS:
                raise _refuse(f"interventions[{number}]", name, f"a group sets only {', '.join(GROUP_FIELDS)}")
        groups.append(_group({**defaults, **entry}))
    _check_subspaces(values["subspaces"], groups)
    check_special_tokens(values["special_tokens"], groups)
    return tuple(groups)


def to_object(values: Mapping[str, Any]) -> dict[str, Any]:
    """Behaviour fields → the object `reft` as it is written: every field, and the version of every kind used."""
    groups = check_fields(values)
    kinds = {group.intervention: _kind_entry(group.signature) for group in groups}
    written = {name: _plain(values[name]) for name in FIELDS}
    written["spec_version"] = SPEC_VERSION
    return {**written, "kinds": dict(sorted(kinds.items()))}


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
    if stored["spec_version"] != SPEC_VERSION or manifest_version is not None:
        check_same_version(written, manifest_version)
    allowed = {*FIELDS, "kinds", "tensors"}
    for name in stored:
        if name not in allowed:
            raise ConfigError(
                f"reft.{str(name)[:60]} is not a field of format version {SPEC_VERSION}",
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
    values = {**{name: stored[name] for name in FIELDS}, "spec_version": SPEC_VERSION}
    _check_kinds(stored["kinds"])
    groups = check_fields(values)
    used = {group.intervention for group in groups}
    if set(stored["kinds"]) != used:
        raise ConfigError(
            f"reft.kinds={str(stored['kinds'])[:80]} does not list the kinds in use: {', '.join(sorted(used))}",
            code="config.kinds",
            value=stored["kinds"],
            rule="'kinds' maps every intervention in use to its version, and no other",
        )
    return values


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
        if not _is_int(version):
            raise _refuse_kind(name, entry)
        signature = kind_signature(name, version=version, module=module)
        if module is not None and _is_ours(signature):  # a name that the format took since: not what the file means
            raise _refuse_kind(name, entry)


def _check_defaults(values: Mapping[str, Any]) -> None:
    """Refuse a top-level field that no value of a group could be, also where every group says its own."""
    options, act_fn = values["options"], values["act_fn"]  # whose place is with the kind of a group
    if options is not None and not isinstance(options, Mapping):
        raise _refuse("options", options, "it is None or a dict of the kind's own parameters")
    if act_fn is not None and (not isinstance(act_fn, str) or act_fn not in ACTIVATIONS):
        raise _refuse("act_fn", act_fn, f"it is None or one of {', '.join(ACTIVATIONS)}")
    _group({**values, "options": None, "act_fn": None})


def _refuse_kind(name: object, entry: object) -> ConfigError:
    return ConfigError(
        f"reft.kinds{'.' if name else ''}{str(name)[:60]}={str(entry)[:80]} is malformed",
        code="config.kinds",
        value=entry,
        rule="a kind has a version, or {version, module} where another library registers it",
    )


def _group(values: Mapping[str, Any]) -> SiteGroup:
    rank, options, layers = values["r"], values["options"], values["layers_to_transform"]
    if not _is_int(rank) or not 1 <= rank <= MAX_RANK:
        raise _refuse("r", rank, f"the rank is an integer from 1 to {MAX_RANK}, and at most the hidden size")
    signature = kind_signature(values["intervention"])
    if options is not None and not isinstance(options, Mapping):
        raise _refuse("options", options, "it is None or a dict of the kind's own parameters")
    signature.check_options(options or {})
    component = values["component"]
    if not isinstance(component, str) or (component not in COMPONENTS and HEAD.fullmatch(component) is None):
        raise _refuse("component", component, f"it is one of {', '.join(COMPONENTS)}, or head_output[<n>]")
    if not isinstance(values["turns"], str) or values["turns"] not in TURNS:
        raise _refuse("turns", values["turns"], f"it is one of {', '.join(map(repr, TURNS))}")
    if not isinstance(values["share_weights"], bool):
        raise _refuse("share_weights", values["share_weights"], "it is True or False")
    dropout = values["dropout"]
    if isinstance(dropout, bool) or not isinstance(dropout, (int, float)) or not 0 <= dropout < 1:
        raise _refuse("dropout", dropout, "it is a number from 0 up to, but not including, 1")
    if values["act_fn"] is not None and (not isinstance(values["act_fn"], str) or values["act_fn"] not in ACTIVATIONS):
        raise _refuse("act_fn", values["act_fn"], f"it is None or one of {', '.join(ACTIVATIONS)}")
    if values["act_fn"] is not None and not signature.activates:
        rule = f"intervention {signature.name!r} has no learned source to activate"
        raise _refuse("act_fn", values["act_fn"], rule, "leave it None")
    pattern = values["layers_pattern"]
    _check_pattern(pattern)
    positions = parse_positions(values["positions"])
    return SiteGroup(
        **{
            **{field.name: values[field.name] for field in fields(SiteGroup)},
            "layers_to_transform": _layers(layers),
            "positions": positions,
            "dropout": float(dropout),
            "layers_pattern": pattern if pattern is None or isinstance(pattern, str) else tuple(pattern),
        }
    )


def _check_subspaces(subspaces: object, groups: list[SiteGroup]) -> None:
    """Named row ranges [start, stop) of R: disjoint, inside the rank of every group."""
    if subspaces is None:
        return
    rule = "it maps names to [start, stop), disjoint ranges of R's rows"
    if not isinstance(subspaces, Mapping) or not 0 < len(subspaces) <= MAX_GROUPS:
        raise _refuse("subspaces", subspaces, rule)
    for group in groups:
        if not group.signature.has_rank:
            raise _refuse("subspaces", subspaces, f"intervention {group.intervention!r} has no rows to name")
    rank, taken = min(group.r for group in groups), set[int]()
    for name, bounds in subspaces.items():
        pair = isinstance(bounds, (list, tuple)) and len(bounds) == 2 and all(map(_is_int, bounds))
        if not isinstance(name, str) or not re.fullmatch(r"\w[\w.-]{0,63}", name) or not pair:
            raise _refuse("subspaces", subspaces, rule, 'e.g. {"style": [0, 2], "facts": [2, 4]}')
        rows = range(bounds[0], bounds[1])
        if not 0 <= bounds[0] < bounds[1] <= rank or taken & set(rows):
            raise _refuse("subspaces", subspaces, f"{rule}, none empty, within r={rank}: see {name!r}")
        taken |= set(rows)


def _layers(layers: object) -> tuple[int, ...] | None:
    if layers is None:
        return None
    if _is_int(layers):
        return (layers,)
    if not isinstance(layers, (list, tuple)) or not all(_is_int(item) for item in layers):
        raise _refuse("layers_to_transform", layers, "it is None (all), an integer or a list of integers")
    if not layers:
        raise _refuse("layers_to_transform", layers, "an empty list edits nothing", "leave it None for all layers")
    if len(layers) > MAX_LAYERS or len(set(layers)) != len(layers):
        raise _refuse("layers_to_transform", layers, f"each layer stands once, at most {MAX_LAYERS} of them")
    return tuple(layers)


def _check_pattern(pattern: object) -> None:
    if pattern is None:
        return
    names = pattern if isinstance(pattern, (list, tuple)) else [pattern]
    if not 0 < len(names) <= MAX_GROUPS or not all(map(_is_stack_name, names)):
        rule = f"it is the dotted name of a ModuleList of blocks, or a list of 1 to {MAX_GROUPS} such"
        raise _refuse("layers_pattern", pattern, rule)


def _is_stack_name(name: object) -> bool:
    return isinstance(name, str) and len(name) <= MAX_NAME and re.fullmatch(r"\w+(\.\w+)*", name) is not None


def _is_int(value: object) -> TypeGuard[int]:
    return isinstance(value, int) and not isinstance(value, bool)


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple, set)):
        return [_plain(item) for item in value]
    return value


def _refuse(name: str, value: object, rule: str, fix: str | None = None) -> ConfigError:
    shown = repr(value)
    return ConfigError(
        f"{name}={shown if len(shown) < 80 else shown[:80] + '…'} is not allowed", value=value, rule=rule, fix=fix
    )
