"""`GenerationMetric`: a trainer's evaluation with a metric of generated answers; the same by hand."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import nn
from transformers import TrainerCallback

from peft_reft.hub_format.errors import ConfigError

from .answers import answers_to, undisturbed
from .questions import Question, question_of_row, questions_of_batch

__all__ = ["GenerationMetric", "evaluate_generations"]

Metric = Callable[[list[str], list[str]], Mapping[str, float]]

RESERVED = (
    "epoch",
    "entropy",
    "loss",
    "mean_token_accuracy",
    "num_tokens",
    "runtime",
    "samples_per_second",
    "steps_per_second",
)
"""Names that trainers write into an evaluation after this metric may have been added."""


def evaluate_generations(
    model: nn.Module,
    tokenizer: Any,
    rows: Iterable[Mapping[str, Any]],
    metric: Metric,
    *,
    batch_size: int = 8,
    max_new_tokens: int = 64,
    generation: Mapping[str, Any] | None = None,
) -> dict[str, float]:
    """Generate an answer to every row and return what a metric says of them.

    Args:
        model: any causal model with `generate`: plain, with adapters, mixed. Its mode is restored.
        tokenizer: of the model; it is left as it is, prompts are padded on the left whatever its padding side.
        rows: `prompt` and `completion`, both text or both messages; or `input_ids` and `labels` (−100 before the
            answer; rows that are all −100 are left out).
        metric: (predictions, references) → name → number. Texts come without special tokens and surrounding space.
        batch_size: prompts per call of `generate`.
        max_new_tokens: of an answer.
        generation: further keywords of `generate`; without any it decodes greedily.

    Returns:
        What the metric returned, name → number.

    Raises:
        ConfigError: rows of another kind, or none with an answer; a metric that returns anything but numbers by name.
    """
    found = (question_of_row(row, tokenizer) for row in rows)
    questions = [question for question in found if question is not None]
    options = _options(max_new_tokens, generation)
    with undisturbed(model):
        return _measured(metric, *answers_to(model, tokenizer, questions, batch_size=batch_size, generation=options))


class GenerationMetric(TrainerCallback):  # type: ignore[misc]  # transformers' types are not followed
    """A callback for any trainer: at each evaluation it generates answers and adds a metric of them to `eval_*`.

    `trainer.evaluate()` and `predict` return it, `metric_for_best_model` and callbacks after this one see it, and it
    stands in `trainer.state.log_history`. `ReftSFTTrainer` logs it with the loss; another trainer has told its
    reporters (TensorBoard and the like) of the evaluation before any callback runs, so they do not get it.

    Without rows of its own it asks what the evaluation's batches ask: the prompt is what stands before the first
    supervised label, the reference is the first run of supervised tokens. Padded, padding-free and packed batches
    give the same questions. Training is not disturbed: modes and random numbers are restored.

    With several processes each generates the answers of its batches, and the metric sees all of them. Rows by which a
    last batch was filled up are not counted; of packed data they are, since there a row is several questions.

    Args:
        metric: (predictions, references) → name → number; `{"exact": 0.5}` becomes `eval_exact`.
        max_new_tokens: of an answer.
        batch_size: prompts per call of `generate`; None is the evaluation's batches, or 8 for rows.
        rows: what to ask instead of the evaluation's own data; see `evaluate_generations`.
        tokenizer: None is the trainer's `processing_class`.
        generation: further keywords of `generate`; without any it decodes greedily.

    Raises:
        ConfigError: when it is made: an argument that cannot work. When it runs: see `evaluate_generations`; also a
            metric whose name the evaluation has already.
        PromptBoundaryError: when it runs: batches without labels, or an answer without a prompt.
    """

    def __init__(
        self,
        metric: Metric,
        *,
        max_new_tokens: int = 64,
        batch_size: int | None = None,
        rows: Iterable[Mapping[str, Any]] | None = None,
        tokenizer: Any = None,
        generation: Mapping[str, Any] | None = None,
    ) -> None:
        if not callable(metric):
            raise ConfigError(
                f"metric is a {type(metric).__name__}", rule="it is a function (predictions, references) → dict"
            )
        if batch_size is not None and batch_size < 1:
            raise ConfigError(f"batch_size={batch_size}", value=batch_size, rule="it is at least 1")
        self.metric = metric
        self.batch_size = batch_size
        self.rows = rows
        self.tokenizer = tokenizer
        self.generation: dict[str, Any] = _options(max_new_tokens, generation)
        self._measured: Any = None

    def on_evaluate(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Add the metric to what the trainer's evaluation is about to return."""
        metrics = kwargs["metrics"]
        if metrics is self._measured:  # a trainer of ours did it before it logged
            return
        prefix = next((name.removesuffix("_runtime") for name in metrics if name.endswith("_runtime")), "eval")
        added = self.measure(metrics, prefix, kwargs["model"], kwargs["eval_dataloader"], kwargs["processing_class"])
        if state.log_history and f"{prefix}_runtime" in state.log_history[-1]:
            state.log_history[-1].update(added)

    def on_predict(self, args: Any, state: Any, control: Any, metrics: Any, **kwargs: Any) -> None:
        """Add the metric to what `predict` is about to return."""
        self.on_evaluate(args, state, control, metrics=metrics, **kwargs)

    def measure(
        self, metrics: dict[str, float], prefix: str, model: nn.Module, loader: Any, processor: Any
    ) -> dict[str, float]:
        """Generate, and add `<prefix>_<name>` to an evaluation's metrics.

        Args:
            metrics: of the evaluation; changed.
            prefix: of its names, `eval` or `eval_<data set>`.
            model: the trainer's.
            loader: the evaluation's batches.
            processor: the trainer's tokenizer or processor, taken if this callback has no tokenizer.

        Returns:
            What was added.

        Raises:
            ConfigError: nothing decodes the answers, or the metric takes a name that the evaluation has.
            PromptBoundaryError: batches without labels, or an answer without a prompt.
        """
        tokenizer = self.tokenizer if self.tokenizer is not None else getattr(processor, "tokenizer", processor)
        if tokenizer is None:
            raise ConfigError(
                "the trainer has no processing_class",
                rule="answers are decoded by a tokenizer",
                fix="pass processing_class=tokenizer to the trainer, or tokenizer= to GenerationMetric",
            )
        with undisturbed(model):
            predictions, references = self._answers(model, loader, tokenizer)
            found = _measured(self.metric, predictions, references)
        added = {name if name.startswith(f"{prefix}_") else f"{prefix}_{name}": value for name, value in found.items()}
        taken = sorted(added.keys() & {*metrics, *(f"{prefix}_{name}" for name in RESERVED)})
        if taken:
            raise ConfigError(
                f"the metric returns {taken[0]!r}, which the evaluation has already",
                value=taken[0],
                rule="an evaluation's names are its own",
                fix="give the number another name",
            )
        metrics.update(added)
        self._measured = metrics
        return added

    def _answers(self, model: nn.Module, loader: Any, tokenizer: Any) -> tuple[list[str], list[str]]:
        if self.rows is not None:
            found = (question_of_row(row, tokenizer) for row in self.rows)
            questions = [question for question in found if question is not None]
            return self._ask(model, tokenizer, questions, self.batch_size or 8)
        pairs: list[tuple[str, str]] = []
        for batch in loader:
            questions = questions_of_batch(batch)
            answers = self._ask(model, tokenizer, questions, self.batch_size or max(1, len(questions)))
            pairs += _gathered(list(zip(*answers, strict=True)), getattr(loader, "total_batch_size", None))
        return [prediction for prediction, _ in pairs], [reference for _, reference in pairs]

    def _ask(
        self, model: nn.Module, tokenizer: Any, questions: list[Question], size: int
    ) -> tuple[list[str], list[str]]:
        return answers_to(model, tokenizer, questions, batch_size=size, generation=self.generation)


def _options(max_new_tokens: int, generation: Mapping[str, Any] | None) -> dict[str, Any]:
    if isinstance(max_new_tokens, bool) or not isinstance(max_new_tokens, int) or max_new_tokens < 1:
        raise ConfigError(f"max_new_tokens={max_new_tokens!r}", value=max_new_tokens, rule="it is at least 1")
    return {"do_sample": False, "max_new_tokens": max_new_tokens, **(generation or {})}


def _gathered(pairs: list[tuple[str, str]], batch_size: int | None) -> list[tuple[str, str]]:
    """The pairs of all processes.

    The last batch is filled up with rows that came before. As in accelerate's `gather_for_metrics` they are cut off,
    where every row is one question; of packed rows it cannot be told which questions are theirs, and they stay.

    Args:
        pairs: of this process.
        batch_size: rows of all processes together, where the loader says it.
    """
    if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
        return pairs
    from accelerate.state import GradientState
    from accelerate.utils import gather_object

    state, gathered = GradientState(), gather_object(pairs)
    filled = state.end_of_dataloader and state.remainder > 0
    return list(gathered[: state.remainder] if filled and len(gathered) == batch_size else gathered)


def _measured(metric: Metric, predictions: list[str], references: list[str]) -> dict[str, float]:
    if not predictions:
        raise ConfigError("no row has an answer", rule="a metric is computed from at least one answer")
    found = metric(predictions, references)
    if not isinstance(found, Mapping) or not all(isinstance(name, str) for name in found):
        raise ConfigError(
            f"the metric returned {found!r:.80}", value=type(found).__name__, rule="it returns a dict: name → number"
        )
    for name, value in found.items():
        if not hasattr(value, "__float__"):
            raise ConfigError(f"the metric returned {value!r:.40} for {name!r}", value=value, rule="it is a number")
    return {name: float(value) for name, value in found.items()}
