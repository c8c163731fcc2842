"""`ReftLM`: the harness's model of transformers, with ReFT adapters, which says where each request's context ends."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from tqdm import tqdm

from peft_reft.hub_format.errors import ConfigError, PromptBoundaryError
from peft_reft.hub_format.positions import All, Positions, Special
from peft_reft.integrations.loading import load_adapters
from peft_reft.runtime.state import state_of
from peft_reft.runtime.views import AdapterView

from .requests import Request, Scoring, padded, scorings

try:
    from lm_eval.api.registry import register_model
    from lm_eval.models.huggingface import HFLM
except ModuleNotFoundError as _error:
    if _error.name is None or _error.name.partition(".")[0] != "lm_eval":
        raise
    raise ModuleNotFoundError(
        "peft_reft.integrations.lm_eval needs lm-evaluation-harness: pip install 'peft-reft[evals]'", name=_error.name
    ) from _error

__all__ = ["ReftLM"]


@register_model("peft-reft")
class ReftLM(HFLM):  # type: ignore[misc]  # the harness's types are not followed
    """`--model peft-reft`: as `hf`, with ReFT adapters on the base, alone or in a bundle with a LoRA.

    A log-likelihood is one forward over context and continuation. Its context is the prompt of the edits, told to the
    model for every row, as in training; the harness's own class says nothing, and `l<n>` falls on the answer.

    Args:
        pretrained: the base, as in `HFLM`; or a model with ReFT adapters.
        reft: folder or repository of a ReFT or of a bundle.
        adapter: which of its adapters are active, joined by `+`; without it all of a bundle, or the only one.
        reft_revision: of the repository.
        options: of `HFLM`. Its `peft` takes a single ReFT too.

    Raises:
        ConfigError: there is no ReFT to evaluate, or it is not said which; `peft` and `reft` at once.
    """

    _model: Any  # of HFLM
    batch_sizes: dict[int, int]  # of HFLM

    def __init__(
        self,
        pretrained: Any,
        reft: str | None = None,
        adapter: str | None = None,
        reft_revision: str | None = None,
        **options: Any,
    ) -> None:
        if reft is not None and options.get("peft"):
            raise ConfigError(
                f"peft={options['peft']} and reft={reft}",
                rule="reft names everything that is put on the base",
                fix="save LoRA and ReFT as one bundle, and name it with reft",
            )
        self.reft: str | None = None if reft is None else str(reft)
        self._chosen = {"adapter": adapter, "revision": None if reft_revision is None else str(reft_revision)}
        if self.reft is not None and not isinstance(pretrained, str):
            pretrained = load_adapters(pretrained, self.reft, **self._chosen)
        super().__init__(pretrained, **options)
        if not any(state_of(module) for module in self.model.modules()):
            raise ConfigError(
                "the model has no ReFT adapter",
                rule="peft-reft evaluates one",
                fix="add reft=FOLDER_OR_REPOSITORY to the model's arguments, or use --model hf",
            )

    def _create_model(self, pretrained: str, *args: Any, **options: Any) -> None:
        super()._create_model(pretrained, *args, **options)
        if self.reft is not None:
            self._model = load_adapters(self._model, self.reft, **self._chosen)

    def loglikelihood_rolling(self, requests: list[Any], disable_tqdm: bool = False) -> list[float]:
        """Log-likelihoods of whole texts, which have no prompt.

        Raises:
            PromptBoundaryError: an active adapter edits other tokens than `all` and `tok(…)` name.
        """
        for view in self._views():
            for group in view.groups:
                if _depends_on_prompt(group.positions):
                    raise PromptBoundaryError(
                        f"adapter {view.name!r} edits {str(group.positions)!r}, and loglikelihood_rolling scores "
                        "whole texts",
                        code="positions.no_prompt",
                        value=str(group.positions),
                        rule="a text that is scored from its first token has no prompt: only 'all', 'tok(…)' and "
                        "what these leave out say which tokens are edited",
                        fix="evaluate this adapter on tasks with a context (multiple_choice, loglikelihood, "
                        "generate_until), or train one with positions='all'",
                    )
        texts: list[float] = super().loglikelihood_rolling(requests, disable_tqdm=disable_tqdm)
        return texts

    def _loglikelihood_tokens(
        self, requests: Sequence[Request], disable_tqdm: bool = False, override_bs: int | None = None
    ) -> list[tuple[float, bool]]:
        """Log-likelihood of each continuation, and whether it is what greedy decoding gives."""
        answers: list[tuple[float, bool]]
        if self.backend != "causal":  # the encoder's input is the prompt, and labels are passed
            answers = super()._loglikelihood_tokens(requests, disable_tqdm=disable_tqdm, override_bs=override_bs)
            return answers
        self._refuse_turns()
        answers = [(0.0, False)] * len(requests)
        rows = scorings(requests, max_length=self.max_length, share=self.logits_cache)
        with tqdm(
            total=len(requests), disable=disable_tqdm or self.rank != 0, desc="Running loglikelihood requests"
        ) as bar:
            for batch in self._batches(rows, requests, override_bs):
                ids, context = padded(batch, self.device)
                logits = self._model_call(ids, prompt_lengths=context)
                for row, of_row in zip(batch, F.log_softmax(logits, dim=-1, dtype=self.softmax_dtype), strict=True):
                    predicted = of_row[row.scored]
                    greedy = predicted.argmax(dim=-1)
                    for number in row.requests:
                        texts, _, continuation = requests[number]
                        wanted = torch.tensor(continuation, device=predicted.device)
                        total = float(predicted.gather(1, wanted[:, None]).sum())
                        answers[number] = (total, bool((greedy == wanted).all()))
                        if texts is not None:
                            self.cache_hook.add_partial("loglikelihood", texts, answers[number])
                        bar.update(1)
        return answers

    def _batches(
        self, rows: Sequence[Scoring], requests: Sequence[Request], override_bs: int | None
    ) -> Iterator[Sequence[Scoring]]:
        """Rows in batches of `batch_size`, which may be looked for at intervals."""
        search = self.batch_size == "auto" and override_bs is None
        ordered = [requests[row.requests[0]] for row in rows] if search else []
        if search:
            self.batch_sizes = {}
        start = 0
        while start < len(rows):
            fixed: Any = override_bs if self.batch_size == "auto" else self.batch_size
            size = int(self._batch_scheduler(start, ordered) if search else fixed)
            yield rows[start : start + size]
            start += size

    def _model_call(
        self,
        inps: Tensor,
        attn_mask: Tensor | None = None,
        labels: Tensor | None = None,
        prompt_lengths: Tensor | None = None,
    ) -> Tensor:
        """Logits `[batch, seq, vocabulary]`.

        Args:
            inps: ids `[batch, seq]`.
            attn_mask: `[batch, seq]`, of an encoder-decoder.
            labels: of an encoder-decoder.
            prompt_lengths: `[batch]`; None where the harness tries what fits into memory, and scores nothing.
        """
        if labels is not None:
            output: Tensor = super()._model_call(inps, attn_mask, labels)
            return output
        if prompt_lengths is None:
            prompt_lengths = inps.new_full((inps.shape[0],), inps.shape[1])
        mixed = self.mixed_precision_dtype
        with torch.no_grad(), torch.autocast(self.device.type, dtype=mixed, enabled=mixed is not None):
            output = self.model(inps, prompt_lengths=prompt_lengths).logits
        return output

    def _model_generate(self, context: Tensor, max_length: int, stop: list[str], **options: Any) -> Tensor:
        """Ids `[batch, max_length]` at most: the whole context, as its attention mask says, is the prompt."""
        if self.backend == "causal":
            self._refuse_turns()
        generated: Tensor = super()._model_generate(context, max_length, stop, **options)
        return generated

    def get_model_info(self) -> dict[str, Any]:
        """What is written beside the results: with the adapters that were active, and the tokens they edit."""
        edits = {view.name: [str(group.positions) for group in view.groups] for view in self._views()}
        return {**super().get_model_info(), "reft": self.reft, "reft_positions": edits}

    def _views(self) -> list[AdapterView]:
        states = [state for module in self.model.modules() if (state := state_of(module)) is not None]
        return [view for state in states for view in state.active_views()]

    def _refuse_turns(self) -> None:
        """The harness hands over one text, in which nothing tells where earlier answers stand."""
        for view in self._views():
            if view.needs_turns:
                raise PromptBoundaryError(
                    f"adapter {view.name!r} edits every turn (turns='each')",
                    code="positions.turns",
                    rule="a request of the harness is one text: it does not say where the turns of its context end",
                    fix="evaluate with a loop of your own that passes prompt_mask, or train with turns='first'",
                )


def _depends_on_prompt(positions: Positions) -> bool:
    return any(not isinstance(term, (All, Special)) for term in (*positions.terms, *positions.exclusions))
