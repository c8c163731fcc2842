"""`ReftConfig`: what is edited, where and how; a `PeftConfig` whose behaviour is stored in one strict object."""

from __future__ import annotations

import inspect
import textwrap
from contextvars import ContextVar
from dataclasses import InitVar, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol

from peft import PeftConfig, PeftType

from peft_reft.hub_format.digests import pickled_tensors
from peft_reft.hub_format.envelope import check_envelope, check_saved_parts
from peft_reft.hub_format.errors import ConfigError
from peft_reft.hub_format.keywords import check_keywords, known_of
from peft_reft.hub_format.migrations import migrate
from peft_reft.hub_format.positions import parse_positions
from peft_reft.hub_format.schema import (
    BEHAVIOUR,
    SPEC_VERSION,
    SiteGroup,
    canonical_fields,
    check_fields,
    from_object,
    to_object,
)
from peft_reft.hub_format.source import check_source
from peft_reft.hub_format.writer import ComingWeights, producer, write_adapter_files

from .interventions import intervention_class
from .interventions.choices import choices
from .positions.binding import bound_tokens
from .register import REFT
from .sites import PARTS_SINCE

__all__ = ["ReftConfig"]

ENVELOPE = (
    "auto_mapping",
    "base_model_name_or_path",
    "inference_mode",
    "modules_to_save",
    "peft_type",
    "peft_version",
    "revision",
    "task_type",
    "trainable_token_indices",
)
_MANIFEST_VERSION: ContextVar[str | None] = ContextVar("manifest_version", default=None)
"""The version of the manifest that was checked, while PEFT makes a config from the file beside it."""


class Fingerprinted(Protocol):
    """The tokenizer that lies beside a base model."""

    def fingerprint(self) -> str | None:
        """`sha256:` of its vocabulary; None where it cannot be read."""


class ComingSave(Protocol):
    """Weights that are written after the config."""

    def coming(self, folder: Path) -> ComingWeights | None:
        """Their file as it will be; None where that cannot be told."""


@dataclass
class ReftConfig(PeftConfig):  # type: ignore[misc]  # peft's types are not followed
    """Configuration of a ReFT adapter (representation finetuning, arXiv 2404.03592).

    Args:
        r: rank: dimensions of the subspace that is edited. Start with 4; the paper stays below 32.
        intervention: the edit by its name, e.g. `"loreft"` (h + Rᵀ(Wh + b − Rh)) or `"direft"` (h + Pᵀ(Wh + b));
            `help(ReftConfig)` lists all of them, and what else has fixed names.
        options: the kind's own parameters.
        layers_to_transform: block indices, an int or a list; negatives count from the end; None edits every block.
            In an encoder-decoder model they count within each stack.
        component: where in a block; `"block_output"` is its output, residual stream included.
        positions: which tokens, e.g. `"f7+l7"`: the first and the last seven of the prompt. See
            `peft_reft.hub_format.positions` for the grammar.
        turns: `"first"`: the prompt ends before the first supervised token. `"each"`: every run of tokens before an
            answer is a prompt, so that `l<n>` stands before each answer of a conversation.
        share_weights: True: one intervention for all positions of a block. False: one for each term of `positions`,
            so `"f7+l7"` has twice the parameters.
        dropout: probability in training; falls on the edit, never on h.
        act_fn: activation on Wh + b by any name of transformers' `ACT2FN` without trained parameters, None for none.
            Held and saved by one name for each function: `gelu_new` becomes `gelu_tanh`, `swish` becomes `silu`.
        modules_to_save: modules trained and saved in full beside the edits, e.g. a new classification head.
        layers_pattern: name of the `ModuleList` that holds the blocks, where it cannot be told, or to pick one stack.
        init_weights: None: the identity where the kind has one, else the published start. True: the identity, or an
            error. `"paper"`: the published start. False: random, for tests.
        interventions: a list of dicts with any of the fields from `r` to `act_fn`; each is one group of sites and the
            fields above are its defaults.
        subspaces: named row ranges of one R.
        special_tokens: ids of the tokens that `tok(…)` names, and their tokenizer's fingerprint; set by
            `bind_tokenizer`.
        orthogonal_to: names of ReFT adapters on the model: R is kept orthogonal to theirs at the same sites, as they
            are when this adapter is added. What they have taken is saved along, so that it loads without them.
        spec_version: version of the file format: the lowest that has all that the config says.
        trainable_token_indices: as in PEFT's LoRA; TRL sets it for a chat template with new tokens.
        reft: the stored object that `adapter_config.json` holds; not for typing by hand.

    Raises:
        ConfigError, PositionSyntaxError, UnsupportedVersionError: a value that is not allowed; all are `ValueError`s.

    >>> ReftConfig(r=4, positions="f7+l7").positions
    'f7+l7'
    """

    r: int = field(default=4)
    intervention: str = field(default="loreft")
    options: dict[str, Any] | None = field(default=None)
    layers_to_transform: list[int] | int | None = field(default=None)
    component: str = field(default="block_output")
    positions: str = field(default="l1")
    turns: str = field(default="first")
    share_weights: bool = field(default=True)
    dropout: float = field(default=0.0)
    act_fn: str | None = field(default=None)
    modules_to_save: list[str] | None = field(default=None)
    layers_pattern: list[str] | str | None = field(default=None)
    init_weights: Literal["paper"] | bool | None = field(default=None)
    interventions: list[dict[str, Any]] | None = field(default=None)
    subspaces: dict[str, Any] | None = field(default=None)
    special_tokens: dict[str, Any] | None = field(default=None)
    orthogonal_to: list[str] | None = field(default=None)
    spec_version: str = field(default=SPEC_VERSION)
    trainable_token_indices: list[int] | dict[str, list[int]] | None = field(default=None)
    reft: InitVar[dict[str, Any] | None] = None

    if not TYPE_CHECKING:  # an editor shall see the fields

        def __new__(cls, *args: Any, **kwargs: Any) -> ReftConfig:
            """A config; unknown keywords are refused here, where all of them are seen."""
            check_keywords(kwargs, known_of(cls.__init__), of=cls.__name__)
            return super().__new__(cls)

    def __post_init__(self, reft: dict[str, Any] | None) -> None:
        if reft is None and self.peft_version is not None:
            raise ConfigError(
                "the config was stored and holds no object 'reft'",
                code="config.reft",
                value=self.peft_version,
                rule="a stored config (it has a peft_version) carries all behaviour in 'reft', never in defaults",
                fix="save the adapter again; to change a field of a config, set it, or make a new ReftConfig",
            )
        if reft is not None:
            check_envelope({name: getattr(self, name) for name in ENVELOPE})
        super().__post_init__()
        self.peft_type: PeftType | str | None = REFT
        self.recorded_tensors: dict[str, Any] | None = None
        self.recorded_version: str | None = None  # of the file that it was read from
        self.moved: dict[str, str] = {}  # components that format 1.0 takes elsewhere in the base that a model has
        self.target_modules: tuple[str, ...] = ()  # PEFT reads it; set to the sites when a model is made
        self.base_identity: dict[str, Any] | None = None
        self.base_tokenizer: Fingerprinted | None = None  # read when the adapter is saved
        self.outgoing: ComingSave | None = None  # between PEFT's collecting of the weights and their being written
        self.recorded_base: dict[str, Any] | None = None  # what the manifest says; compared when a model is made
        if reft is not None:
            self._take_stored(reft)
        self.groups()
        for name, value in canonical_fields(self._behaviour()).items():
            setattr(self, name, value)
        self.positions = str(parse_positions(self.positions))
        if self.interventions is not None:
            self.interventions = [_canonical(entry) for entry in self.interventions]

    def groups(self) -> tuple[SiteGroup, ...]:
        """The validated site groups. Called again whenever a model is made, so later changes are checked too.

        Returns:
            One group for each entry of `interventions`, or a single one of the top-level fields.

        Raises:
            ConfigError: a field that was set to what is not allowed, or an identity start that a kind does not have.
        """
        check_saved_parts(
            {name: _listed(getattr(self, name)) for name in ("modules_to_save", "trainable_token_indices")}
        )
        groups = check_fields(self._behaviour())
        for group in groups:
            intervention_class(group.intervention).check_start(self.init_weights, group.act_fn)
        return groups

    def bind_tokenizer(self, tokenizer: Any) -> ReftConfig:
        """Look up the ids of the tokens that `tok(…)` names, and note which tokenizer gave them.

        Needed before a model is made from positions with `tok(…)`; without such terms it changes nothing.

        Args:
            tokenizer: of the base model, a `PreTrainedTokenizerBase`.

        Returns:
            The config itself.

        Raises:
            ConfigError: a token that is neither special nor added to the tokenizer; or the config is bound already and
                this tokenizer has other ids.
        """
        self.special_tokens = bound_tokens(tokenizer, self.groups(), self.special_tokens)
        return self

    def to_dict(self) -> dict[str, Any]:
        """The content of `adapter_config.json`: PEFT's envelope, and the behaviour in `reft`."""
        flat = super().to_dict()
        envelope = {name: value for name, value in flat.items() if name not in BEHAVIOUR}
        return {**envelope, "reft": to_object(self._behaviour())}

    def save_pretrained(self, save_directory: str, **kwargs: Any) -> None:
        """Write `adapter_config.json`, and the manifest where weights lie in the folder already.

        PEFT's `save_pretrained` of a model calls this after it has written the weights.
        """
        if Path(save_directory).is_file():
            raise ConfigError(f"{save_directory} is a file, not a folder", value=save_directory)
        folder = Path(save_directory)
        folder.mkdir(parents=True, exist_ok=True)
        stored = {name: sorted(value) if isinstance(value, set) else value for name, value in self.to_dict().items()}
        if (mapping := kwargs.pop("auto_mapping_dict", None)) is not None:
            stored["auto_mapping"] = mapping
        outgoing, self.outgoing = self.outgoing, None
        coming = None if outgoing is None else outgoing.coming(folder)
        write_adapter_files(
            folder,
            stored,
            base_model=self._base(),
            producer=producer(),
            since=PARTS_SINCE if self.moved else SPEC_VERSION,
            pickled_tensors=pickled_tensors(folder) if coming is None else None,
            coming=coming,
        )

    @classmethod
    def from_pretrained(
        cls,
        pretrained_model_name_or_path: str,
        subfolder: str | None = None,
        *,
        allow_other_base: bool = False,
        **kwargs: Any,
    ) -> ReftConfig:
        """Read a config from a folder or a Hub repository, after checking the folder against its manifest.

        Args:
            pretrained_model_name_or_path: folder or repository.
            subfolder: of the adapter in it.
            allow_other_base: let the adapter be loaded on another base than the manifest says it was made for.
            kwargs: `revision`, `token` and others, as in PEFT.

        Raises:
            ReftError: a folder, file or value that the format does not allow.
        """
        checked = check_source(pretrained_model_name_or_path, subfolder, cls._split_kwargs(kwargs)[0])
        seen = _MANIFEST_VERSION.set(None if checked is None else checked.manifest.spec_version)
        try:
            config: ReftConfig = super().from_pretrained(pretrained_model_name_or_path, subfolder, **kwargs)
        finally:
            _MANIFEST_VERSION.reset(seen)
        if checked is not None and not allow_other_base:
            config.recorded_base = dict(checked.manifest.base_model)
        return config

    def _take_stored(self, stored: dict[str, Any]) -> None:
        for name, default in BEHAVIOUR.items():
            if getattr(self, name) != default:
                raise ConfigError(
                    f"{name} stands beside the stored object 'reft'",
                    code="config.envelope",
                    value=name,
                    rule="a stored config carries all behaviour in 'reft'",
                )
        for name, value in from_object(stored, manifest_version=_MANIFEST_VERSION.get()).items():
            setattr(self, name, value)
        current = migrate(stored, "reft")
        self.recorded_tensors, self.recorded_version = current.get("tensors"), current["spec_version"]

    def _base(self) -> dict[str, Any]:
        """Identity of the base, with the tokenizer beside it; where that is out of reach, the one recorded."""
        if self.base_identity is None:
            return {}
        found = None if self.base_tokenizer is None else self.base_tokenizer.fingerprint()
        fingerprint = found or (self.recorded_base or {}).get("tokenizer")
        return {**self.base_identity, **({"tokenizer": fingerprint} if fingerprint else {})}

    def _behaviour(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in BEHAVIOUR}


def _canonical(group: dict[str, Any]) -> dict[str, Any]:
    """A group whose positions, if it has any of its own, are spelled as those of a config."""
    return {**group, "positions": str(parse_positions(group["positions"]))} if "positions" in group else group


def _listed(value: Any) -> Any:
    """A tuple or a set as the list that a file holds of it."""
    return list(value) if isinstance(value, (tuple, set)) else value


_made = inspect.signature(ReftConfig.__init__)
ReftConfig.__signature__ = _made.replace(parameters=[*_made.parameters.values()][1:])  # for help
if ReftConfig.__doc__:  # python -OO has none
    ReftConfig.__doc__ = f"{ReftConfig.__doc__}\n{textwrap.indent(choices(), '    ')}\n"
