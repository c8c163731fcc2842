"""`ReftSFTTrainer`: TRL's `SFTTrainer`, and positions that the data set states."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from functools import update_wrapper
from typing import Any

from trl import SFTTrainer

from peft_reft.integrations.data import ReftDataCollator
from peft_reft.integrations.evals import GenerationMetric
from peft_reft.runtime.inputs import EXPLICIT
from peft_reft.training.refusals import refuse_cut_rows

from .cuts import active_specs, has_reft, refuse_lost_columns

__all__ = ["ReftSFTTrainer"]


class ReftSFTTrainer(SFTTrainer):  # type: ignore[misc]  # trl ships no types
    """`SFTTrainer` with what an adapter alone cannot do; same arguments, nothing else to write.

    A plain `SFTTrainer` trains ReFT adapters too: labels say where a prompt ends, also where the trainer takes them
    out of a batch before a forward (`compute_metrics`, `predict`, `label_smoothing_factor`, `compute_loss_func`). This
    one adds:

    - The columns `prompt_mask`, `prompt_lengths` and `intervention_locations` of a tokenised data set reach the model;
      packing, which would drop them, and `truncation_mode="keep_end"`, which would move them, are refused.
    - `prompt_mask` stands in every batch (`ReftDataCollator` around the trainer's own collator), so no forward depends
      on labels.
    - Rows that are cut anywhere (`packing_strategy` `"wrapped"` or `"bfd_split"`) are refused before anything runs,
      if an active adapter's positions count from the start or the end of a document. A plain `SFTTrainer` is stopped
      too: where it adds the adapter, or before the first step of a model that it was given.
    - A `GenerationMetric` among the callbacks is computed before the evaluation is logged, so reporters get it too.

    Of a model without ReFT adapters it is a plain `SFTTrainer`.

    Raises:
        ConfigError: rows that are cut anywhere; positions in a data set that its preparation would lose.
    """

    data_collator: Any
    _signature_columns: list[str]

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        given = inspect.signature(SFTTrainer.__init__).bind(self, *args, **kwargs).arguments
        refuse_cut_rows(given.get("args"), active_specs(given["model"], given.get("peft_config")))
        super().__init__(*args, **kwargs)
        refuse_cut_rows(self.args, active_specs(self.model, None))  # of a model that was given by name
        if has_reft(self.model) and not isinstance(self.data_collator, ReftDataCollator):
            self.data_collator = ReftDataCollator(self.data_collator)

    update_wrapper(__init__, SFTTrainer.__init__)  # the signature and the help of theirs

    def evaluation_loop(
        self,
        dataloader: Any,
        description: str,
        prediction_loss_only: bool | None = None,
        ignore_keys: list[str] | None = None,
        metric_key_prefix: str = "eval",
    ) -> Any:
        """The trainer's own, and the metrics of generated answers in what it returns."""
        output = super().evaluation_loop(dataloader, description, prediction_loss_only, ignore_keys, metric_key_prefix)
        for callback in self.callback_handler.callbacks:
            if isinstance(callback, GenerationMetric):
                callback.measure(output.metrics, metric_key_prefix, self.model, dataloader, self.processing_class)
        return output

    def _prepare_dataset(
        self, dataset: Any, processing_class: Any, args: Any, packing: bool, *rest: Any, **named: Any
    ) -> Any:
        refuse_lost_columns(dataset, args, packing=packing)
        return super()._prepare_dataset(dataset, processing_class, args, packing, *rest, **named)

    def _set_signature_columns_if_needed(self) -> None:
        super()._set_signature_columns_if_needed()
        known = self._signature_columns
        self._signature_columns = [*known, *(name for name in EXPLICIT if name not in known)]

    def _reject_skip_prepare_without_labels(self, datasets: Mapping[str, Any], data_collator: Any) -> None:
        # TRL looks at the collator's class
        plain = data_collator.collator if isinstance(data_collator, ReftDataCollator) else data_collator
        super()._reject_skip_prepare_without_labels(datasets, plain)
