"""The table of `docs/causal.md` on MIB's tasks, from the numbers measured."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

__all__ = ["RESULTS", "WAYS", "page", "table"]

RESULTS = "tasks.json"
WAYS = ("nothing", "whole vector", "neurons", "components", "rotation")
_TABLE = re.compile(r"(<!-- tasks -->\n).*?(<!-- /tasks -->)", re.S)


def table(results: Mapping[str, Any]) -> str:
    """A row for each variable and block; what was not sought, and why; what was calibrated; where it was measured."""
    lines = ["| task | variable | block | " + " | ".join(WAYS) + " | chance |", "| --- " * 3 + "| --: " * 6 + "|"]
    for name, found in results.items():
        for variable, blocks in found["variables"].items():
            for block, values in blocks.items() if isinstance(blocks, dict) else ():
                cells = " | ".join(f"{values[way]:.0%}" for way in (*WAYS, "chance"))
                lines.append(f"| `{name}` | {variable} | {block} | {cells} |")
    for name, found in results.items():
        lines += ["", f"`{name}`: {found['right']} of {found['asked']} prompts are answered rightly{_missing(found)}."]
        if "calibration" in found:
            at = found["calibration"]
            lines += [
                f"`calibrate` of `{at['variable']}` at block {at['block']}, with 100 networks whose blocks from there "
                "on are untrained:",
                *("", "```text", at["text"], "```"),
            ]
    places = dict.fromkeys(found["environment"] for found in results.values())
    return "\n".join([*lines, "", f"Measured on {'; '.join(places)}."]) + "\n"


def page(text: str, results: Mapping[str, Any]) -> str:
    """The page with the table of these results."""
    return _TABLE.sub(lambda found: f"{found[1]}{table(results)}{found[2]}", text)


def _missing(found: Mapping[str, Any]) -> str:
    few = {name: told for name, told in found["variables"].items() if not isinstance(told, dict)}
    return f"; {', '.join(few)}: {next(iter(few.values()))}" if few else ""
