"""What an intervention's parameters are at first: the identity, the published start, or random ones."""

from __future__ import annotations

import math
from typing import ClassVar, Final, Literal

import torch
from torch import Tensor, nn

from peft_reft.hub_format.activations import canonical_activation
from peft_reft.hub_format.errors import ConfigError

from .activations import starts_at_zero
from .complement import COMPLEMENT
from .rotation import orthonormal_rows

__all__ = ["LOADED", "Init", "Starting"]

LOADED: Final = "loaded"
"""In place of a start where a file's tensors come next: valid, the cheapest there is, and the same each time."""
Init = Literal["paper", "loaded"] | bool | None


class Starting(nn.Module):
    """What an intervention does about its start; its tensors, sizes and activation are the intervention's."""

    kind: ClassVar[str]
    orthonormal: ClassVar[frozenset[str]]
    act_keeps_identity: ClassVar[bool]
    hidden_size: int
    act_fn: str | None

    def named_tensors(self) -> dict[str, Tensor]:
        """Name → tensor of the intervention's own."""
        raise NotImplementedError

    def raw_rotation(self) -> Tensor:
        """What R `[rank, hidden]` is made of."""
        raise NotImplementedError

    def start(self, init_weights: Init) -> None:
        """Set the parameters to their start. On the meta device there is nothing to set.

        Args:
            init_weights: as in the class.

        Raises:
            ConfigError: the identity was asked for, and the kind has none.
        """
        if any(tensor.is_meta for tensor in self.named_tensors().values()):
            return
        self.check_start(init_weights, self.act_fn)
        with torch.no_grad():
            if init_weights == LOADED:
                self.placeholder()
            elif init_weights is False:
                self.random_start()
            elif init_weights == "paper" or not self.starts_as_identity(self.act_fn):
                self.paper_start()
            else:
                self.identity()

    @classmethod
    def check_start(cls, init_weights: Init, act_fn: str | None) -> None:
        """Refuse the identity where this kind does not start as it.

        Args:
            init_weights: as in the class.
            act_fn: the activation on the learned source, or None.

        Raises:
            ConfigError: it was asked for, and there is none.
        """
        if init_weights is True and not cls.starts_as_identity(act_fn):
            raise ConfigError(
                f"init_weights=True with intervention={cls.kind!r}, act_fn={act_fn!r}",
                value=True,
                rule="this combination has no parameters for which the edit is the identity, or none from which it "
                "learns: at the flat side of an activation there is no gradient",
                fix="leave init_weights None, or set it to 'paper'",
            )

    @classmethod
    def starts_as_identity(cls, act_fn: str | None) -> bool:
        """Whether some start makes the edit the identity.

        Args:
            act_fn: the activation on the learned source, or None.

        Returns:
            True where the kind has such a start and the activation keeps it.
        """
        has_identity = cls.identity is not Starting.identity
        name = canonical_activation(act_fn)
        return has_identity and (name is None or (cls.act_keeps_identity and starts_at_zero(name)))

    def placeholder(self) -> None:
        """Zeros, and rows of the unit matrix for a rotation: no random number is drawn."""
        for name, tensor in self.named_tensors().items():
            if name in self.orthonormal:
                nn.init.eye_(tensor)
            elif name != COMPLEMENT:
                tensor.zero_()

    def random_start(self) -> None:
        """Random and non-trivial."""
        for name, tensor in self.named_tensors().items():
            if name != COMPLEMENT:
                nn.init.normal_(tensor, std=1.0)

    def paper_start(self) -> None:
        """The published start: projections and sources as in `nn.Linear`, rotations orthonormal."""
        bound = 1 / math.sqrt(self.hidden_size)
        for name, tensor in self.named_tensors().items():
            if name in self.orthonormal:
                nn.init.normal_(tensor)
                tensor.copy_(orthonormal_rows(self.raw_rotation()))
            elif name != COMPLEMENT:
                nn.init.uniform_(tensor, -bound, bound)

    def identity(self) -> None:
        """Set the parameters so that the edit is zero; a kind that cannot be the identity leaves this undefined."""
        raise NotImplementedError
