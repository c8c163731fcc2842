"""`peft-reft validate`: every check that a load makes, without a model: files, digests, config, names, values."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from peft_reft.hub_format.bundle import INDEX_NAME, Member, read_index
from peft_reft.hub_format.errors import ReftError
from peft_reft.hub_format.listing import check_member, list_members
from peft_reft.hub_format.manifest import WEIGHTS_NAME
from peft_reft.hub_format.opening import open_source
from peft_reft.hub_format.rank import check_ranks
from peft_reft.hub_format.weight_member import check_weight_member

from .report import JsonOption, Report, RevisionOption, TokenOption, describe_error, error_lines
from .source import SourceArgument

__all__ = ["validate"]


def validate(
    source: SourceArgument,
    revision: RevisionOption = None,
    token: TokenOption = None,
    as_json: JsonOption = False,
) -> Report:
    """Check every adapter of a folder or repository as a load would; status 1 and the rule broken for each refusal."""
    root = open_source(source, revision=revision, token=token)
    problems: list[dict[str, Any]] = []
    members: list[Member] = []
    try:
        members = list_members(root)
    except ReftError as error:
        if error.code == "adapter.missing":
            raise  # nothing to validate
        problems.append({"member": None, **describe_error(error)})
    for member in members:
        try:
            _check(root, member)
        except ReftError as error:
            problems.append({"member": member.name, **describe_error(error)})
    if members and not problems:
        try:
            read_index(root)  # its digests describe files that are all well in themselves
        except ReftError as error:
            problems.append({"member": None, **describe_error(error)})
    names = [member.name for member in members]
    data = {"source": source, "members": names, "problems": problems}
    if not problems:
        return Report(data, [f"{source}: valid, {len(names)} adapter{'s' if len(names) > 1 else ''}"])
    lines = [line for problem in problems for line in _lines(problem)]
    return Report(data, [f"{source}: refused", *lines], status=1)


def _lines(problem: dict[str, Any]) -> list[str]:
    first, *rest = error_lines(problem)
    return [first if problem["member"] is None else f"{problem['member']}: {first}", *rest]


def _check(root: Path, member: Member) -> None:
    folder = root / member.folder
    checked = check_member(root, member)
    if member.kind == "reft":
        check_ranks(folder / WEIGHTS_NAME, checked.tensors, checked.groups)
    else:
        in_bundle = (root / INDEX_NAME).is_file()  # which we load; a LoRA alone is PEFT's business
        check_weight_member(folder, allow_patterns=not in_bundle)
