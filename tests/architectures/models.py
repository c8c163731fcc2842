"""One tiny model of a class, and the batches it is called with."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import transformers
from torch import Tensor, nn
from transformers import CONFIG_MAPPING, PreTrainedConfig

from .classes import Subject
from .shrink import PROFILES, VOCABULARY, Profile, shrunk

__all__ = ["BATCH", "LENGTH", "LIMIT", "Batch", "NotTinyError", "Tiny", "made", "main_output"]

BATCH, LENGTH = (
    6,
    13,
)  # no other size in a call, so these dimensions of an activation can be told
LIMIT = 80_000_000
"""Parameters of a model that counts as tiny."""

Batch = dict[str, Tensor]


class NotTinyError(Exception):
    """No profile gives a model that runs on tokens; the message is that of the last one that came furthest."""


@dataclass
class Tiny:
    """A tiny model in evaluation mode, and what is needed to call it."""

    subject: Subject
    profile: Profile
    config: PreTrainedConfig
    model: nn.Module
    tokens: list[int]
    images: bool = False

    @property
    def pair(self) -> bool:
        """Whether it is an encoder-decoder."""
        return bool(getattr(self.config, "is_encoder_decoder", False)) and self.takes("decoder_input_ids")

    @property
    def has_decoder_input(self) -> bool:
        """Whether it is called with tokens of a decoder too; classifiers make these of their input."""
        return self.pair and self.subject.family != "classification"

    @property
    def pad(self) -> int:
        """The id that padded columns hold."""
        pad = getattr(self.config.get_text_config(), "pad_token_id", None)
        return pad if isinstance(pad, int) and 0 <= pad < VOCABULARY else 0

    def takes(self, name: str) -> bool:
        """Whether the forward has a parameter of that name."""
        return name in inspect.signature(self.model.forward).parameters

    @property
    def start(self) -> int:
        """The decoder's start token."""
        for config in (self.config, getattr(self.config, "decoder", None), self.config.get_text_config()):
            for name in ("decoder_start_token_id", "bos_token_id", "pad_token_id"):
                if isinstance(value := getattr(config, name, None), int):
                    return value
        return 0

    def batch(self, length: int = LENGTH, rows: int = BATCH) -> Batch:
        """Rows without padding: tokens drawn from those without a meaning of their own, the same for every call."""
        generator = torch.Generator().manual_seed(5)
        ids = torch.tensor(self.tokens)[torch.randint(len(self.tokens), (rows, length), generator=generator)]
        eos = _eos(self.config)
        if self.subject.family == "classification" and self.pair and eos is not None:
            ids[:, -1] = eos  # BART's head reads the last end token
        found = {"input_ids": ids}
        if self.takes("attention_mask"):
            found["attention_mask"] = torch.ones_like(ids)
        if self.has_decoder_input:
            found["decoder_input_ids"] = torch.full((rows, 1), self.start)
        if self.images:
            tower = getattr(self.config, "vision_config", None) or self.config.encoder
            size = tower.image_size
            generator.manual_seed(6)
            found["pixel_values"] = torch.rand((rows, 3, size, size), generator=generator)
        return found

    def padded(self, pad: Sequence[int], side: str) -> Batch:
        """The batch with so many columns of padding in each row; the tokens there are gone."""
        found = self.batch()
        for row, count in enumerate(pad):
            columns = slice(0, count) if side == "left" else slice(LENGTH - count, LENGTH)
            ids = found["input_ids"][row].clone()
            real = ids[: LENGTH - count] if side == "right" else ids[count:]
            if count and side == "right":
                real[-1] = ids[-1]  # an end token that a head reads stays the last
            found["input_ids"][row, columns] = self.pad
            kept = slice(count, LENGTH) if side == "left" else slice(0, LENGTH - count)
            found["input_ids"][row, kept] = real
            found["attention_mask"][row, columns] = 0
        return found


def main_output(output: Any) -> Tensor:
    """The logits, or the hidden states, of a model's output."""
    for name in ("logits", "last_hidden_state", "prediction_logits"):
        if isinstance(value := getattr(output, name, None), Tensor):
            return value
    values = output.values() if isinstance(output, Mapping) else output if isinstance(output, tuple) else (output,)
    return next(value for value in values if isinstance(value, Tensor) and value.is_floating_point() and value.dim())


def made(subject: Subject) -> Tiny:
    """A tiny model of the first profile that gives one, random, its parameters of a size that makes edits count.

    Raises:
        NotTinyError: none does.
    """
    failures: list[str] = []
    for profile in PROFILES:
        try:
            tiny = _made(subject, profile)
            output = _first_output(tiny)
            if not output.isfinite().all():
                raise NotTinyError("its output is not finite")
            return tiny
        except Exception as error:  # what a class says of a wrong size is of any type
            failures.append(str(error) if isinstance(error, NotTinyError) else f"{type(error).__name__}: {error}")
    raise NotTinyError(failures[0])


def _first_output(tiny: Tiny) -> Tensor:
    """The output for tokens alone, or with images where the class asks for them."""
    with torch.no_grad():
        try:
            return main_output(tiny.model(**tiny.batch()))
        except (TypeError, ValueError) as error:
            if "pixel_values" not in str(error):
                raise
            tiny.images = True
            return main_output(tiny.model(**tiny.batch()))


def _made(subject: Subject, profile: Profile) -> Tiny:
    model_class = getattr(transformers, subject.name)
    config = shrunk(model_class.config_class or CONFIG_MAPPING[subject.model_type], profile)
    for part in (config, config.get_text_config()):
        if getattr(part, "pad_token_id", None) is None:
            part.pad_token_id = 0  # classifiers of batches need one
        if getattr(part, "is_encoder_decoder", False) and getattr(part, "decoder_start_token_id", None) is None:
            part.decoder_start_token_id = part.pad_token_id
        if subject.family == "causal" and hasattr(part, "is_decoder"):
            part.is_decoder = True  # a config that serves both kinds
    if profile.attention is not None:
        config._attn_implementation = profile.attention
    with torch.device("meta"):
        size = sum(parameter.numel() for parameter in model_class(config).parameters())
    if size > LIMIT:
        raise NotTinyError(f"the smallest config has {size:,} parameters, more than {LIMIT:,}")
    torch.manual_seed(0)
    model = model_class(config).float().eval()
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.is_floating_point():  # also what starts at zero, such as a gate, shall matter
                parameter.add_(torch.randn(parameter.shape, generator=generator), alpha=0.05)
    special = set(_special(config))
    return Tiny(subject, profile, config, model, [one for one in range(5, 100) if one not in special])


def _special(config: PreTrainedConfig) -> Iterator[int]:
    for value in vars(config).values():
        if isinstance(value, PreTrainedConfig):
            yield from _special(value)
        elif isinstance(value, int):
            yield value


def _eos(config: PreTrainedConfig) -> int | None:
    eos = getattr(config.get_text_config(), "eos_token_id", None)
    return eos[0] if isinstance(eos, list) else eos
