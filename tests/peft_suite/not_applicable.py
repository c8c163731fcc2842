"""PEFT's tests that do not apply to ReFT: name → reason, and the error that they must end in."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from peft_reft.hub_format.errors import ConfigError, HubError, MergeError, PromptBoundaryError, ReftError

__all__ = ["NOT_APPLICABLE", "Reason"]


@dataclass(frozen=True)
class Reason:
    """Why a test does not apply.

    Attributes:
        text: shown beside the test.
        raises: the error of ours that a run of it must end in; any other outcome is a failure.
        prompt_end: whether it only stands for configs whose positions count from a prompt's end.
    """

    text: str
    raises: type[ReftError] | type[Exception]
    prompt_end: bool = False

    def holds_for(self, parameters: dict[str, Any]) -> bool:
        """Whether it stands for a test's parameters."""
        if not self.prompt_end:
            return True
        config = parameters["config_cls"](**parameters["config_kwargs"])
        return any(group.needs_prompt_end for group in config.groups())


MERGING = Reason("edits live at positions, which weights do not know: nothing can be merged", MergeError)
UNLABELLED = Reason(
    "trains a language model without labels, so nothing says where a prompt ends", PromptBoundaryError, prompt_end=True
)
AFTERWARDS = Reason("merges once its forward has passed", MergeError)
FOREIGN = Reason("reads a LoRA as if it were a ReFT; its manifest is looked for, and no hub is asked", HubError)
NAMED = Reason("names an adapter 'reft', the folder of a bundle: refused, where PEFT would warn", ConfigError)

NOT_APPLICABLE: dict[str, Reason] = {
    "test_delete_merged_adapter_only_rejects_the_merged_one": MERGING,
    "test_delete_merged_adapter_raises_without_mutation": MERGING,
    "test_disable_adapters_with_merging": MERGING,
    "test_forward_bfloat16": AFTERWARDS,
    "test_forward_bfloat16_no_autocast": AFTERWARDS,
    "test_forward_float16": AFTERWARDS,
    "test_forward_float16_no_autocast": AFTERWARDS,
    "test_merge_adapters_large": MERGING,
    "test_merge_adapters_small": MERGING,
    "test_merge_layers": MERGING,
    "test_merge_layers_fp16": MERGING,
    "test_merge_layers_is_deterministic_in_train_mode": MERGING,
    "test_merge_layers_is_idempotent": MERGING,
    "test_merge_layers_multi": MERGING,
    "test_merge_layers_nan": MERGING,
    "test_mixed_adapter_batches_merged_raises": MERGING,
    "test_model_merged_adapters_large": MERGING,
    "test_model_merged_adapters_small": MERGING,
    "test_multiple_active_adapters_merge_and_unmerge": MERGING,
    "test_safe_merge": MERGING,
    "test_sequential_merge_matches_batch_merge": MERGING,
    "test_unmerge_after_sequential_merge_restores_base": MERGING,
    "test_training_decoders_gradient_checkpointing": UNLABELLED,
    "test_training_encoder_decoders_gradient_checkpointing": UNLABELLED,
    "test_from_pretrained_sanity_check": Reason(
        "a file that is no config is refused as every file is, with a ValueError; the test expects a TypeError",
        ConfigError,
    ),
    "test_from_pretrained": FOREIGN,
    "test_from_pretrained_cache_dir": Reason("downloads into an empty cache, and no hub is asked", ValueError),
    "test_save_pretrained_with_runtime_config": FOREIGN,
    "test_warning_naming_conflict_get_peft_model": NAMED,
    "test_warning_naming_conflict_save_and_load": NAMED,
}
