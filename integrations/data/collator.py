"""`ReftDataCollator`: any collator, and the prompts of its batches beside them."""

from __future__ import annotations

from collections.abc import Callable, MutableMapping, Sequence
from typing import Any

from torch import Tensor
from transformers import DataCollatorForTokenClassification

from peft_reft.hub_format.errors import ConfigError, LocationError

from .boundaries import StackName, prompt_mask_of, real_tokens
from .columns import merge_locations, merge_masks, slots_of, split_columns

__all__ = ["ReftDataCollator"]

_OWN = ("collator", "stack")


class ReftDataCollator:
    """Wraps a data collator and adds `prompt_mask`, long `[batch, seq]`, to its batches.

    A forward with labels knows where the prompt ends. One without them does not, and training makes such forwards for
    metrics, label smoothing and custom losses. Inside a `Trainer` the labels of its batch are found all the same; a
    loop of your own needs this mask, which stays in the batch and says what the labels say: 1 on prompts (one run for
    every turn), 0 on supervised tokens and on padding. It depends on no adapter, so it is right for several at once.

    Examples may state their positions themselves, counted from their own first real token: `prompt_mask` (one entry
    per token), `prompt_lengths` (a number) or `intervention_locations` (`[terms, k]`, −1 for none, or a dict adapter →
    such). These columns do not reach the wrapped collator; they are padded and shifted to their place in the batch.
    What is stated wins. A `Trainer` drops unknown columns before it collates: `ReftSFTTrainer` keeps these, elsewhere
    set `remove_unused_columns=False`.

    The wrapped collator's attributes can be read and set through this one.

    Args:
        collator: returns batches of torch tensors, e.g. TRL's `DataCollatorForLanguageModeling`,
            `DataCollatorForSeq2Seq`, `default_data_collator`.
        stack: `"only"` for models with one stack. `"decoder"` for an encoder-decoder whose decoder alone is edited.
            Edits of an encoder need no collator: its prompt is the attended input, whatever the labels are.

    Raises:
        ConfigError: something that cannot be called, or a collator for token classification or masked language
            modelling, where every real token is prompt and a mask made from labels would say otherwise.

    >>> from transformers import default_data_collator
    >>> collate = ReftDataCollator(default_data_collator)
    >>> collate([{"input_ids": [5, 6, 7], "labels": [-100, -100, 7]}])["prompt_mask"]
    tensor([[1, 1, 0]])
    """

    collator: Callable[..., Any]
    stack: StackName

    def __init__(self, collator: Callable[..., Any], *, stack: StackName = "only") -> None:
        if not callable(collator):
            raise ConfigError(f"collator is a {type(collator).__name__}", rule="a data collator can be called")
        if isinstance(collator, DataCollatorForTokenClassification) or getattr(collator, "mlm", False):
            raise ConfigError(
                f"{type(collator).__name__} makes labels that tell no answer from a prompt",
                rule="for token classification and masked language modelling every real token is prompt",
                fix="use it without ReftDataCollator, or with mlm=False for a causal model",
            )
        if stack not in ("only", "decoder"):
            raise ConfigError(f"stack={stack!r}", value=stack, rule="it is 'only' or 'decoder'")
        object.__setattr__(self, "collator", collator)
        object.__setattr__(self, "stack", stack)

    def __call__(self, features: Sequence[Any], return_tensors: str | None = None) -> Any:
        """Collate examples.

        Args:
            features: the examples.
            return_tensors: passed on where it is given; only `"pt"` can work.

        Returns:
            The wrapped collator's batch with `prompt_mask`, and `intervention_locations` where the examples have them.

        Raises:
            PromptBoundaryError: the batch has no labels, and nothing else says where prompts end.
            LocationError: stated positions that do not fit their examples.
        """
        features, columns = split_columns(features)
        batch = self.collator(features, **({} if return_tensors is None else {"return_tensors": return_tensors}))
        if not isinstance(batch, MutableMapping):
            raise LocationError(f"the wrapped collator returned a {type(batch).__name__}", rule="a batch is a mapping")
        if columns:
            self._merge(batch, features, columns)
        if "prompt_mask" not in batch and not ("intervention_locations" in batch and batch.get("labels") is None):
            batch["prompt_mask"] = prompt_mask_of(batch, self.stack)
        return batch

    def _merge(self, batch: MutableMapping[str, Any], features: list[Any], columns: dict[str, list[Any]]) -> None:
        if self.stack != "only":
            raise LocationError(
                f"examples for an encoder-decoder have {sorted(columns)[0]}",
                rule="stated positions are collated for models with one stack",
            )
        real: Tensor = real_tokens(batch)
        slots = slots_of(features, real, masked=batch.get("attention_mask") is not None)
        mask = merge_masks(columns, slots, real)
        if mask is not None:
            batch["prompt_mask"] = mask
        if "intervention_locations" in columns:
            batch["intervention_locations"] = merge_locations(columns["intervention_locations"], slots, real)

    def __getattr__(self, name: str) -> Any:
        if name in _OWN or name.startswith("__"):  # not set yet: while it is unpickled or copied
            raise AttributeError(name)
        return getattr(self.collator, name)

    def __setattr__(self, name: str, value: Any) -> None:
        if name in _OWN:
            object.__setattr__(self, name, value)
        else:
            setattr(self.collator, name, value)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.collator!r}, stack={self.stack!r})"
