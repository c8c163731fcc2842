"""`peft-reft validate`: every check that a load makes, without a model: files, digests, config, names, values."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from peft_reft.hub_format.bundle import Member, read_index
from peft_reft.hub_format.errors import AdapterLoadError, ReftError
from peft_reft.hub_format.listing import list_members
from peft_reft.hub_format.manifest import WEIGHTS_NAME

from .members import check_member
from .report import JsonOption, Report, RevisionOption, TokenOption, describe_error, error_lines
from .source import SourceArgument, open_source

__all__ = ["validate"]


def validate(
    source: SourceArgument,
    revision: RevisionOption = None,
    token: TokenOption = None,
    as_json: JsonOption = False,
) -> Report:
    """Check every adapter of a folder or repository as a load would; status 1 and the rule broken for each refusal."""
    root = open_source(source, revision=revision, token=token)
    members = list_members(root)
    problems: list[dict[str, Any]] = []
    for member in members:
        try:
            check_member(root, member)
            _check_values(root / member.folder / WEIGHTS_NAME, member)
        except ReftError as error:
            problems.append({"member": member.name, **describe_error(error)})
    if not problems:
        read_index(root)  # its digests describe files that are all well in themselves
    names = [member.name for member in members]
    data = {"source": source, "members": names, "problems": problems}
    if not problems:
        return Report(data, [f"{source}: valid, {len(names)} adapter{'s' if len(names) > 1 else ''}"])
    lines = [line for problem in problems for line in _lines(problem)]
    return Report(data, [f"{source}: refused", *lines], status=1)


def _lines(problem: dict[str, Any]) -> list[str]:
    first, *rest = error_lines(problem)
    return [f"{problem['member']}: {first}", *rest]


def _check_values(weights: Path, member: Member) -> None:
    if not weights.is_file():
        return  # a pickle, which PEFT opens; its bytes are checked
    import torch
    from safetensors import safe_open

    with safe_open(weights, "pt") as opened:
        for name in opened.keys():  # noqa: SIM118
            tensor = opened.get_tensor(name)
            if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
                raise AdapterLoadError(
                    f"the tensor {name[:120]!r} of {member.name!r} holds NaN or infinity",
                    code="load.finite",
                    file=WEIGHTS_NAME,
                    rule="every value is a finite number",
                    fix="train again with a smaller learning rate, or take an earlier checkpoint",
                )
