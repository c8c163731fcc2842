"""What a check finds, and the verdict that follows from all findings of a class."""

from __future__ import annotations

import traceback
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import transformers

import peft_reft
from peft_reft.hub_format.errors import ReftError

__all__ = ["FAILURES", "VERDICTS", "BaseFailsError", "Finding", "Result", "WrongError", "found_by", "told"]

VERDICTS = {
    "right": "every check holds",
    "right where the base is": "every check holds that the base model passes; the reasons say what it does not",
    "refused in part": "edits are right; something else is refused by an error that names the cause",
    "refused": "an error of ours names the cause when the model is made, or at the first call",
    "PEFT fails": "PEFT cannot put a LoRA on it either",
    "not tiny": "no shrunk config gives a model that runs on tokens alone",
    "not examined": "the sweep was stopped before; the same command goes on",
    "gave up": "over the limit of time or memory",
    "crashed": "an error that is not ours where the base model runs",
    "wrong": "a check does not hold, and nothing says so",
}
"""Verdict → what it means, the best first."""
FAILURES = ("crashed", "wrong")
"""Verdicts that make the suite fail."""


class WrongError(Exception):
    """A check does not hold."""


class BaseFailsError(Exception):
    """The base model does not do it either."""


@dataclass(frozen=True)
class Finding:
    """What one check says: `right`, `base`, `refused`, `crashed` or `wrong`, and why."""

    check: str
    verdict: str
    reason: str = ""


@dataclass(frozen=True)
class Result:
    """The verdict about one class."""

    family: str
    name: str
    verdict: str
    reason: str = ""
    findings: list[Finding] = field(default_factory=list)

    def to_dict(self) -> dict[str, Any]:
        """As JSON can hold it."""
        return asdict(self)

    @classmethod
    def from_dict(cls, stored: dict[str, Any]) -> Result:
        """What `to_dict` gave."""
        return cls(**{**stored, "findings": [Finding(**one) for one in stored["findings"]]})

    @classmethod
    def of(cls, family: str, name: str, findings: Sequence[Finding]) -> Result:
        """The worst finding decides; what is refused at the first call is refused as a whole."""
        kinds = [one.verdict for one in findings if not (one.verdict == "base" and one.check in PADDED)]
        by_kind = {"wrong": "wrong", "crashed": "crashed", "refused": "refused in part", "base": VERDICT_OF_BASE}
        verdict = next((name for kind, name in by_kind.items() if kind in kinds), "right")
        if verdict == "refused in part" and findings[0].verdict == "refused":
            verdict = "refused"
        reasons: dict[str, list[str]] = {}
        for one in findings:
            if one.verdict != "right":
                reasons.setdefault(f"{SAID[one.verdict]}{one.reason}", []).append(one.check)
        reason = "; ".join(f"{', '.join(checks)}: {text}" for text, checks in reasons.items())
        return cls(family, name, verdict, reason, list(findings))


SAID = {"wrong": "", "crashed": "", "refused": "refused: ", "base": "the base too: "}
VERDICT_OF_BASE = "right where the base is"
PADDED = ("left padding", "right padding")
"""Few models stand padding on both sides of a bare forward: that the base does not is told, and no verdict."""


def found_by(check: str, run: Callable[[], str | None]) -> Finding:
    """Run one check. What it returns is a remark."""
    try:
        return Finding(check, "right", run() or "")
    except WrongError as error:
        return Finding(check, "wrong", told(error))
    except BaseFailsError as error:
        return Finding(check, "base", told(error))
    except ReftError as error:
        return Finding(check, "refused", told(error))
    except Exception as error:
        return Finding(check, "crashed", f"{type(error).__name__}: {told(error)} ({_origin(error)})")


def told(error: BaseException, limit: int = 240) -> str:
    """An error's text in one line, without the places of this machine."""
    text = " ".join(str(error).split()) or type(error).__name__
    for module in (transformers, peft_reft):
        text = text.replace(str(Path(module.__file__).parent), module.__name__)
    return text if len(text) <= limit else f"{text[:limit]} …"


def _origin(error: BaseException) -> str:
    """The last lines of a traceback, innermost last: file and line, without folders."""
    frames = traceback.extract_tb(error.__traceback__)[-3:]
    return ", ".join(f"{Path(frame.filename).name}:{frame.lineno}" for frame in frames)
