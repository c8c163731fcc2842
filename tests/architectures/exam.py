"""The exam of one class: a tiny model, an adapter on it, every check, a verdict."""

from __future__ import annotations

import copy
from collections.abc import Callable

import torch
from peft import LoraConfig, PeftModel, get_peft_model

from peft_reft import ReftConfig

from .checks import POSITIONS, Adapted, check_decoding, check_disabled, check_padding, check_saved
from .checks_forward import check_gradients, check_outputs, check_square, check_tokens
from .classes import Subject
from .decoding import can_generate
from .findings import Finding, Result, found_by, told
from .models import NotTinyError, Tiny, made, main_output
from .plain import sites_of

__all__ = ["adapted", "examine"]

Spoil = Callable[[PeftModel], object]


def examine(subject: Subject, *, spoil: Spoil | None = None) -> Result:
    """Examine one class.

    Args:
        subject: the class.
        spoil: breaks the adapted model before it is examined: for tests of the exam itself.
    """
    try:
        tiny = made(subject)
    except NotTinyError as error:
        return Result(subject.family, subject.name, "not tiny", told(error))
    cases: list[Adapted] = []
    making = found_by("making", lambda: cases.append(adapted(tiny)))
    if making.verdict == "crashed" and not _takes_lora(subject):
        return Result(subject.family, subject.name, "PEFT fails", making.reason)
    if not cases:
        return Result.of(subject.family, subject.name, [making])
    case = cases[0]
    if spoil is not None:
        spoil(case.model)
    checks: dict[str, Callable[[], str | None]] = {
        "edited tokens": lambda: check_tokens(case),
        "outputs": lambda: check_outputs(case),
        "disabled": lambda: check_disabled(case),
        "left padding": lambda: check_padding(case, "left"),
        "right padding": lambda: check_padding(case, "right"),
        "gradients": lambda: check_gradients(case),
    }
    if can_generate(tiny):
        if tiny.takes("attention_mask"):
            checks["decoding, left padding"] = lambda: check_decoding(case, "left")
        checks["decoding"] = lambda: check_decoding(case, None)
    checks["saved"] = lambda: check_saved(case)
    findings: list[Finding] = []
    for name, run in checks.items():
        if name == "decoding" and findings[-1] == Finding("decoding, left padding", "right"):
            continue  # two of its rows have no padding
        findings.append(found_by(name, run))
        if name == "edited tokens" and findings[0].verdict == "refused":
            findings.append(found_by("as many rows as columns", lambda: check_square(case)))
            break
    return Result.of(subject.family, subject.name, findings)


def adapted(tiny: Tiny) -> Adapted:
    """The model with a LoReFT at every block that is not the identity."""
    family = tiny.subject.family
    if family in ("classification", "embedding", "encoder"):
        task = "SEQ_CLS" if family == "classification" else "FEATURE_EXTRACTION"
    else:
        task = "SEQ_2_SEQ_LM" if tiny.pair else "CAUSAL_LM"
    with torch.no_grad():
        before = main_output(tiny.model(**tiny.batch()))
    twin = copy.deepcopy(tiny.model)
    model = _with_adapter(tiny, task)
    try:
        with torch.no_grad(), model.disable_adapter():
            model(**tiny.batch())
    except Exception:  # PEFT's class for the task calls the base as it cannot be called: the plain PeftModel does not
        model.unload()
        model = _with_adapter(tiny, None)
    return Adapted(tiny, model, twin, before, sites_of(tiny.model, pair=tiny.pair))


def _takes_lora(subject: Subject) -> bool:
    """Whether PEFT can put a LoRA on every linear map of the class."""
    try:
        get_peft_model(made(subject).model, LoraConfig(r=2, target_modules="all-linear"))
    except Exception:
        return False
    return True


def _with_adapter(tiny: Tiny, task: str | None) -> PeftModel:
    with torch.random.fork_rng():
        torch.manual_seed(2)
        config = ReftConfig(task_type=task, r=2, positions=POSITIONS, init_weights=False)
        return get_peft_model(tiny.model, config).eval()
