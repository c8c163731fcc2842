"""What a trainer must not do with a model that has ReFT adapters, told when it starts."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from peft_reft.hub_format.errors import ConfigError, MergeError, PromptBoundaryError
from peft_reft.hub_format.positions import All, Positions, Special

__all__ = ["cuts_rows", "refuse_cut_rows", "refuse_partial_reference", "refuse_tool_turns", "refuse_vllm"]

CUTTING = ("wrapped", "bfd_split")


def cuts_rows(args: Any) -> bool:
    """Whether a trainer's configuration has documents cut anywhere."""
    packs = getattr(args, "packing", False) or getattr(args, "eval_packing", False)
    return bool(packs) and getattr(args, "packing_strategy", None) in CUTTING


def refuse_cut_rows(args: Any, specs: Iterable[tuple[str, Positions]]) -> None:
    """Refuse a packing strategy that cuts documents anywhere, where positions count within a document.

    Args:
        args: the trainer's configuration, or None.
        specs: (adapter, positions) of what will edit; `all` and `tok(…)` need no document's bounds.

    Raises:
        ConfigError: see above; it names the strategy, the adapter and the fix.
    """
    if not cuts_rows(args):
        return
    strategy = args.packing_strategy
    for name, positions in specs:
        if any(not isinstance(term, (All, Special)) for term in (*positions.terms, *positions.exclusions)):
            raise ConfigError(
                f"packing_strategy={strategy!r} with adapter {name!r}, whose positions are {str(positions)!r}",
                code="positions.packing",
                value=strategy,
                rule="it cuts documents anywhere, so a row may start inside a prompt or an answer, and positions "
                "count from a document's own start and its prompt's end",
                fix="set packing_strategy='bfd', which keeps documents whole (and cuts only what is longer than "
                "max_length), or packing=False, or use positions='all'",
            )


def refuse_vllm(args: Any) -> None:
    """Refuse generation by vLLM, as a server or beside the trainer, for a policy with ReFT adapters.

    TRL brings a policy to vLLM by merging its adapters into the weights and sending these
    (trl/generation/vllm_generation.py, `merge_adapter`).

    Args:
        args: the trainer's configuration, or None.

    Raises:
        MergeError: see above.
    """
    if not getattr(args, "use_vllm", False):
        return
    mode = getattr(args, "vllm_mode", None)
    raise MergeError(
        f"use_vllm=True (vllm_mode={mode!r}) with a policy that has ReFT adapters",
        value=mode,
        rule="TRL sends a policy to vLLM as a LoRA, or else by merging its adapters into the weights, and an edit at "
        "chosen token positions is no LoRA and cannot be merged: vLLM would sample from another policy than the one "
        "that is trained",
        fix="set use_vllm=False: the trainer then generates with transformers, where edits apply "
        "(use_transformers_continuous_batching=True for many prompts at a time)",
    )


def refuse_partial_reference(active: Sequence[str], *, copied: str) -> None:
    """Refuse a reference that is not the policy.

    TRL's trainers copy one adapter into another and compare the policy with that (trl/trainer/dpo_trainer.py, `ref`).

    Args:
        active: the adapters that edit, which are the policy.
        copied: the one that is copied.

    Raises:
        ConfigError: the policy is more than the copied adapter, or another one.
    """
    if list(active) == [copied]:
        return
    raise ConfigError(
        f"a reference is to be made of adapter {copied!r}, and active are {list(active)}",
        code="trainer.reference",
        value=list(active),
        rule="the trainer copies that adapter alone, so the policy would be compared with another than itself: the "
        "margin of the first step would not be 0",
        fix=f"activate {copied!r} alone with set_adapter({copied!r}), or make one adapter of several groups "
        "(interventions=[…]) of what is active",
    )


def refuse_tool_turns(trainer: Any, specs: Iterable[tuple[str, Positions]]) -> None:
    """Refuse a trainer that generates in several turns, with the results of tools between them.

    To a later turn all that went before is its prompt; to the loss the prompt ends before the first answer
    (trl/trainer/grpo_trainer.py, `_tool_call_loop` and `_get_per_token_logps_and_entropies`).

    Args:
        trainer: that is about to generate.
        specs: (adapter, positions) of what will edit.

    Raises:
        PromptBoundaryError: the trainer has tools, and edits depend on where the prompt ends.
    """
    if not getattr(trainer, "tools", None):
        return
    for name, positions in specs:
        if positions.needs_prompt_end:
            raise PromptBoundaryError(
                f"a {type(trainer).__name__} with tools generates for adapter {name!r}, whose positions are "
                f"{str(positions)!r}",
                code="positions.tools",
                value=str(positions),
                rule="the answer after a tool's result is generated from a longer prompt than it is trained with, so "
                "other tokens would be edited",
                fix="use positions that do not depend on the prompt's end, such as 'f<n>' or 'all', or no tools",
            )
