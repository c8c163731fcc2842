"""Bundles on disk, opened: their members and configs after the checks, before anything is built from them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from peft import PeftConfig
from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING

from peft_reft.hub_format.bundle import INDEX_NAME, REFT_FOLDER, Member, read_index
from peft_reft.hub_format.errors import AdapterLoadError, ManifestError, ReftError
from peft_reft.hub_format.journal import settle
from peft_reft.hub_format.listing import list_members
from peft_reft.hub_format.manifest import CONFIG_NAME, WEIGHTS_NAME
from peft_reft.hub_format.reader import check_folder, check_link, check_regular
from peft_reft.hub_format.remote import fetch_folder
from peft_reft.hub_format.strict_json import load_json
from peft_reft.hub_format.weight_member import check_weight_member

__all__ = ["Bundle", "made_by_peft", "open_bundle"]


@dataclass(frozen=True)
class Bundle:
    """An opened bundle.

    Attributes:
        root: its folder on this machine.
        members: after their checks.
        indexed: whether an index lists them; False for a weight adapter alone.
    """

    root: Path
    members: tuple[Member, ...]
    indexed: bool = True

    def configs(self, *, is_trainable: bool, allow_other_base: bool = False) -> dict[str, PeftConfig]:
        """Name → config of every member, weight adapters first."""
        found = {}
        for member in sorted(self.members, key=lambda member: member.kind == "reft"):
            folder = str(self.root / member.folder)
            kind = load_json(Path(folder, CONFIG_NAME)).get("peft_type")
            if kind not in PEFT_TYPE_TO_CONFIG_MAPPING or str(kind).lower() != member.kind:
                raise ManifestError(
                    f"lists {member.name!r} as {member.kind!r}, its config says {str(kind)[:40]!r}",
                    file=INDEX_NAME,
                    rule="a member's kind is its config's peft_type in lower case, one that the installed PEFT has",
                    fix="update peft, or save the bundle again",
                )
            options = {"allow_other_base": allow_other_base} if member.kind == "reft" else {}
            with made_by_peft(member.name):
                found[member.name] = PEFT_TYPE_TO_CONFIG_MAPPING[kind].from_pretrained(folder, **options)
            found[member.name].inference_mode = not is_trainable
        return found


@contextmanager
def made_by_peft(members: str) -> Iterator[None]:
    """Errors of PEFT's, when it makes adapters from what a bundle says, become refusals of the bundle."""
    try:
        yield
    except ReftError:
        raise
    except (ValueError, TypeError, LookupError, AttributeError, ImportError, NotImplementedError) as error:
        raise AdapterLoadError(
            f"PEFT makes no adapter of what the bundle says of {members}: {type(error).__name__}: {str(error)[:200]}",
            code="bundle.member",
            file=CONFIG_NAME,
            value=members,
            rule="a member's config is one that the installed PEFT takes, and fits the base",
            fix="load the member alone with peft.PeftModel.from_pretrained to see PEFT's own words",
        ) from error


def open_bundle(source: str, *, allow_patterns: bool = False, **kwargs: Any) -> Bundle:
    """Open a bundle from a folder or a Hub repository; a weight adapter alone is a bundle of one.

    Args:
        source: a folder, or a repository's id.
        allow_patterns: whether a LoRA's config may hold regular expressions, which PEFT runs.
        **kwargs: `revision`, `token` and other settings of a download.

    Raises:
        ManifestError: it is no bundle and no weight adapter, or the index and the files disagree.
    """
    root = Path(source) if Path(source).exists() else fetch_folder(source, **kwargs)
    settle(root)
    listed = read_index(root)
    members = [_alone(root, source)] if listed is None else listed
    for member in members:
        if member.kind == "reft":
            check_folder(root / member.folder)
        else:
            check_weight_member(root / member.folder, allow_patterns=allow_patterns)
    return Bundle(root, tuple(members), indexed=listed is not None)


def _alone(root: Path, source: str) -> Member:
    """The weight adapter at the root of a folder without an index, as the member it would be."""
    for name in (CONFIG_NAME, WEIGHTS_NAME):
        check_link(root / name)
        check_regular(root / name)
    if (root / REFT_FOLDER).is_dir():
        list_members(root)  # refuses ReFTs of a bundle whose index is not there
    kind = load_json(root / CONFIG_NAME).get("peft_type") if (root / CONFIG_NAME).is_file() else None
    if not isinstance(kind, str) or kind == "REFT":
        raise ManifestError(
            f"{source} has no {INDEX_NAME}, and no weight adapter at its root",
            code="bundle.index",
            file=INDEX_NAME,
            rule="a bundle has an index at its root; without one, what lies there is a bundle of one, a LoRA say",
            fix="load a ReFT alone with peft.PeftModel.from_pretrained, or put it beside its LoRA with "
            "`peft-reft bundle LORA REFT --out DIR`",
        )
    if not (root / WEIGHTS_NAME).is_file():
        raise ManifestError(
            f"{source} holds no {WEIGHTS_NAME}",
            code="weights.missing",
            file=WEIGHTS_NAME,
            rule="an adapter is its config and its weights, in safetensors",
            fix="load it with peft.PeftModel.from_pretrained, and take that model with MixedReftModel.from_peft",
        )
    return Member("default", kind.lower(), ".")
