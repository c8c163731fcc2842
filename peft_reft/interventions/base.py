"""What every intervention shares: its parameters, its start, the activation and dropout of its edit."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from peft_reft.hub_format.errors import ConfigError

from .rotation import orthonormal_rows

__all__ = ["Init", "Intervention", "activation"]

Init = Literal["paper"] | bool | None

_ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "gelu": F.gelu,
    "gelu_tanh": lambda hidden: F.gelu(hidden, approximate="tanh"),
    "leaky_relu": F.leaky_relu,
    "mish": F.mish,
    "relu": F.relu,
    "relu6": F.relu6,
    "sigmoid": torch.sigmoid,
    "silu": F.silu,
    "tanh": torch.tanh,
}


def activation(name: str | None, source: Tensor) -> Tensor:
    """Apply the named activation to the learned source `[..., rank]`; None is the identity."""
    return source if name is None else _ACTIVATIONS[name](source)


class Intervention(nn.Module):
    """One learned edit h′ = h + delta(h).

    A kind names its tensors in `tensors` and computes `edit_delta`. Parameters may have any floating dtype and live on
    the block's device; the edit is computed in float32 at least.

    Args:
        hidden_size: size of h.
        rank: r.
        act_fn: name of the activation on the learned source, or None.
        dropout: probability; falls on the edit, never on h.
        init_weights: None or True: the identity where the kind has one; `"paper"`: the published start; False: random.
        options: the kind's own parameters.
        device: where the parameters are created.
    """

    kind: ClassVar[str]
    tensors: ClassVar[Mapping[str, tuple[str, ...]]]
    orthonormal: ClassVar[frozenset[str]] = frozenset()
    option_checks: ClassVar[Mapping[str, Callable[[Any], str | None]]] = {}
    identity_start: ClassVar[bool] = True
    """Whether some parameters make the edit the identity, when there is no activation."""
    act_keeps_identity: ClassVar[bool] = False
    """Whether the identity start survives an activation with act(0) = 0."""

    def __init__(
        self,
        hidden_size: int,
        rank: int,
        *,
        act_fn: str | None = None,
        dropout: float = 0.0,
        init_weights: Init = None,
        options: Mapping[str, Any] | None = None,
        device: torch.device | None = None,
    ) -> None:
        super().__init__()
        if rank > hidden_size:
            raise ConfigError(
                f"r={rank} is larger than the hidden size {hidden_size}",
                value=rank,
                rule="r orthonormal rows need r dimensions",
                fix=f"choose r ≤ {hidden_size}",
            )
        self.hidden_size = hidden_size
        self.rank = rank
        self.act_fn = act_fn
        self.dropout = dropout
        self.options = dict(options or {})
        sizes = {"rank": rank, "hidden": hidden_size}
        for name, shape in self.tensors.items():
            empty = torch.empty([sizes[word] for word in shape], dtype=torch.float32, device=device)
            self.register_parameter(name, nn.Parameter(empty))
        self.start(init_weights)

    def start(self, init_weights: Init) -> None:
        """Set the parameters to their start. On the meta device there is nothing to set."""
        if any(parameter.is_meta for parameter in self.parameters()):
            return
        identity = self.starts_as_identity(self.act_fn)
        with torch.no_grad():
            if init_weights is False:
                self.random_start()
            elif init_weights == "paper" or (init_weights is None and not identity):
                self.paper_start()
            elif identity:
                self.identity()
            else:
                raise ConfigError(
                    f"init_weights=True with intervention={self.kind!r}, act_fn={self.act_fn!r}: it has no identity start",
                    value=True,
                    fix="leave init_weights None or set it to 'paper'",
                )

    @classmethod
    def starts_as_identity(cls, act_fn: str | None) -> bool:
        """Whether some start makes the edit the identity, given the activation."""
        if act_fn is None:
            return cls.identity_start
        return cls.identity_start and cls.act_keeps_identity and act_fn != "sigmoid"  # sigmoid(0) = 1/2

    def random_start(self) -> None:
        """Random and non-trivial."""
        for parameter in self.parameters():
            nn.init.normal_(parameter, std=1.0)

    def paper_start(self) -> None:
        """The published start: projections and sources as in `nn.Linear`, rotations orthonormal."""
        bound = 1 / math.sqrt(self.hidden_size)
        for name, parameter in self.named_parameters(recurse=False):
            if name in self.orthonormal:
                nn.init.normal_(parameter)
                parameter.copy_(orthonormal_rows(parameter))
            else:
                nn.init.uniform_(parameter, -bound, bound)

    def identity(self) -> None:
        """Set the parameters so that the edit is zero."""
        raise NotImplementedError

    def edit_delta(self, hidden: Tensor, rotation: Tensor | None) -> Tensor:
        """h′ − h.

        Args:
            hidden: h `[..., hidden]`, float32 or float64.
            rotation: R `[rank, hidden]` of the raw parameter, for kinds that have one; else None.

        Returns:
            `[..., hidden]`.
        """
        raise NotImplementedError

    def forward(self, hidden: Tensor, rotation: Tensor | None = None) -> Tensor:
        """The edit with dropout: delta `[..., hidden]` for h `[..., hidden]`.

        `rotation` is passed where the rotations of all layers were computed in one call; without it it is computed
        here, which sharded parameters need.
        """
        if rotation is None and self.orthonormal:
            (name,) = self.orthonormal
            rotation = orthonormal_rows(getattr(self, name))
        delta = self.edit_delta(hidden, None if rotation is None else rotation.to(hidden.dtype))
        return F.dropout(delta, self.dropout, self.training) if self.dropout else delta

    def parameter(self, name: str, like: Tensor) -> Tensor:
        """A parameter in the dtype in which the edit is computed."""
        value: Tensor = getattr(self, name)
        return value.to(like.dtype)

    def extra_repr(self) -> str:
        """Shown by `print(model)`."""
        return f"{self.kind}, hidden={self.hidden_size}, rank={self.rank}"
