"""What every intervention shares: its parameters, its start, the activation and dropout of its edit."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from peft_reft.hub_format.activations import canonical_activation
from peft_reft.hub_format.errors import ConfigError
from peft_reft.hub_format.kinds import Option, kind_signature

from .activations import activation
from .affine import Affine
from .capacity import Reserving
from .complement import COMPLEMENT, outside
from .rotation import orthonormal_rows
from .starts import Init, Starting

__all__ = ["Init", "Intervention", "activation"]


class Intervention(Starting, Reserving):
    """One learned edit h′ = h + delta(h).

    A kind names its tensors in `tensors` and computes `edit_delta(hidden)`; with an entry in `orthonormal` it is
    `edit_delta(hidden, rotation)`, with `across_tokens` there is a keyword `sequence` too. A kind that can be the
    identity defines `identity`. Parameters may have any floating dtype and live on the block's device; the edit is
    computed in float32 at least.

    Args:
        hidden_size: size of h.
        rank: r; kinds without a rank do not look at it.
        act_fn: name of the activation on the learned source, or None.
        dropout: probability; falls on the edit, never on h.
        init_weights: None or True: the identity where the kind has one; `"paper"`: the published start; False: random.
        options: the kind's own parameters.
        device: where the parameters are created.
        complement: directions `[k, hidden]` that R keeps out of; for kinds with an R. It is saved and never trained.

    Raises:
        ConfigError: a rank above the hidden size, an option or a start that the kind does not have.
    """

    kind: ClassVar[str]
    tensors: ClassVar[Mapping[str, tuple[str, ...]]]
    """Tensor name → shape in the words `"rank"`, `"hidden"`, `"one"`, or an option's name: as many as it lists."""
    orthonormal: ClassVar[frozenset[str]] = frozenset()
    """The raw tensor, one at most, whose rows are orthonormalised."""
    frozen: ClassVar[frozenset[str]] = frozenset()
    """Tensors that the user brings: saved like the others, never trained."""
    option_table: ClassVar[Mapping[str, Option]] = {}
    optional: ClassVar[Mapping[str, str]] = {}
    """Tensor name → the option that brings it."""
    activates: ClassVar[bool] = False
    """Whether `act_fn` has a place in the formula; where it has none, setting it is an error."""
    act_keeps_identity: ClassVar[bool] = False
    """Whether the identity start survives an activation with act(0) = 0."""
    broadcasts: ClassVar[bool] = False
    """Whether `edit_delta` also takes h `[batch, k, hidden]` with tensors of every row's own, matrices
    `[batch, rank, hidden]` and vectors `[batch, 1, …]`, so that many adapters are one product. Not inherited."""
    pads: ClassVar[bool] = False
    """Whether rows of zeros, in every tensor that has the rank's rows, add nothing to the edit, exactly. Not
    inherited."""
    across_tokens: ClassVar[bool] = False
    """Whether an edit depends on the other edited tokens of its sequence."""
    samples: ClassVar[bool] = False
    """Whether an edit is drawn at random in training: `edit_delta` then has a keyword `generator`, or None for torch's
    own."""

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
        complement: Tensor | None = None,
    ) -> None:
        super().__init__()
        signature = kind_signature(self.kind)
        if rank > hidden_size and signature.has_rank:
            raise ConfigError(
                f"r={rank} is larger than the hidden size {hidden_size}",
                value=rank,
                rule="r orthonormal rows need r dimensions",
                fix=f"choose r ≤ {hidden_size}",
            )
        self.hidden_size = hidden_size
        self.rank = rank
        self.act_fn: str | None = canonical_activation(act_fn)
        self.set_dropout(dropout)
        self.options: dict[str, Any] = signature.with_defaults(options or {})
        self.rows: list[int] | None = None
        self.capacity: int | None = None
        for name, shape in signature.shapes(rank=rank, hidden=hidden_size, options=self.options).items():
            empty = torch.empty(shape, dtype=torch.float32, device=device)
            if name in self.frozen:
                self.register_buffer(name, empty)
            else:
                self.register_parameter(name, nn.Parameter(empty))
        if complement is not None:
            self.register_buffer(COMPLEMENT, complement.to(device=device, dtype=torch.float32))
        self.start(init_weights)

    @classmethod
    def options_conflict(cls, options: Mapping[str, Any]) -> str | None:
        """What is wrong with options that are allowed one by one.

        Args:
            options: the kind's own, by name.

        Returns:
            The fault in words; None if there is none.
        """
        return None

    @property
    def drops(self) -> float:
        """The probability with which dropout falls on a number of the edit in training."""
        held = self._modules.get("dropout")
        return 0.0 if held is None else float(held.p)  # type: ignore[arg-type]  # nn.Dropout's

    def set_dropout(self, probability: float) -> None:
        """Let dropout fall on the edit: a module where there is any, which trainers that switch it off look for.

        Args:
            probability: of a number of the edit to be dropped in training; from 0 to below 1.
        """
        if "dropout" in self._modules:
            self.dropout.p = probability
        elif probability:
            self.dropout: nn.Dropout = nn.Dropout(probability).train(self.training)

    @property
    def taken(self) -> Tensor | None:
        """Orthonormal rows `[k, hidden]` that R keeps out of; None where there are none."""
        return self._buffers.get(COMPLEMENT)

    @property
    def stackable(self) -> bool:
        """Whether it edits as its parameters and options alone say, and not as something chosen at run time says."""
        return self.rows is None

    def named_tensors(self) -> dict[str, Tensor]:
        """Every saved tensor by name, trained or brought."""
        return {name: held for name, held in (*self._parameters.items(), *self._buffers.items()) if held is not None}

    def edit_delta(self, hidden: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """What the edit adds to h; every kind defines it.

        Args:
            hidden: h `[..., hidden]`, float32 or float64.
            args: R `[rank, hidden]`, for kinds with an entry in `orthonormal`.
            kwargs: `sequence` for kinds across tokens, `generator` for kinds that sample; see the class.

        Returns:
            h′ − h `[..., hidden]`, in the dtype of h.
        """
        raise NotImplementedError

    def penalty(self) -> Tensor:
        """What the parameters add to the loss in training, `[]`, times its weight; see `runtime.penalties`."""
        raise NotImplementedError

    def row_penalty(self, hidden: Tensor) -> Tensor:
        """What edited rows add to the loss in training; their mean is added, times its weight.

        Args:
            hidden: h of the rows `[..., hidden]`.

        Returns:
            A number for each row, `[...]`.
        """
        raise NotImplementedError

    def affine(self, tensors: Mapping[str, Tensor], *args: Any) -> Affine:
        """The edit as two thin products, so that a forward prepares those of all sites in a few calls.

        Defined by kinds whose edit is affine in h without an activation; not inherited, since a subclass has another
        formula. With an entry in `orthonormal` it is `affine(tensors, rotation)`, R in the same dtype. Not asked where
        there is an activation, or dropout falls on the edit.

        Args:
            tensors: the parameters of a kind, or of several units that differ in nothing else, stacked `[units, ...]`;
                all of one floating dtype. Without the raw one of R.
            args: R `[rank, hidden]`, stacked alike, for kinds with an entry in `orthonormal`.

        Returns:
            The two products, and what they add.
        """
        raise NotImplementedError

    def scaled(self, factor: float) -> tuple[str, dict[str, Tensor]] | None:
        """The edit times a factor, as an edit again; not inherited, since a subclass has another formula.

        Args:
            factor: what every edit is multiplied by.

        Returns:
            A kind, its options all at their defaults, and its tensors, of the shapes `tensors` names (`[rank, hidden]`
                and so on); None where no kind is that edit.
        """
        return None

    @classmethod
    def summed(cls, parts: Sequence[Mapping[str, Tensor]], hidden_size: int) -> dict[str, Tensor] | None:
        """The tensors of one edit of this kind that is the sum of several.

        Args:
            parts: the tensors of each, of the shapes `tensors` names, e.g. `[rank, hidden]`.
            hidden_size: of the sites; the sum's rank must not exceed it.

        Returns:
            The tensors of the sum, whose rank is the sum of the ranks; None where no choice of tensors is it.
        """
        return None

    def forward(
        self,
        hidden: Tensor,
        rotation: Tensor | None = None,
        *,
        sequence: Tensor | None = None,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """The edit with dropout: delta `[..., hidden]` for h `[..., hidden]`.

        Args:
            hidden: h.
            rotation: R `[rank, hidden]`, passed where the rotations of all layers were computed in one call; without
                it it is computed here, which sharded parameters need.
            sequence: for kinds across tokens, long `[...]`: the sequence of each row of h, −1 for rows that are not
                edited; without it the last but one dimension of h is the sequence.
            generator: for kinds that sample, what they draw from in training.
        """
        given: list[Tensor] = []
        if self.orthonormal:
            if rotation is None:
                rotation = orthonormal_rows(self.raw_rotation(), padded=self.capacity is not None)
            given.append(self.active(rotation, next(iter(self.orthonormal))).to(hidden.dtype))
        more: dict[str, Any] = {"sequence": sequence} if self.across_tokens else {}
        if self.samples:
            more["generator"] = generator
        delta = self.edit_delta(hidden, *given, **more)
        return F.dropout(delta, self.drops) if self.training and self.drops else delta

    def raw_rotation(self) -> Tensor:
        """What R `[rank, hidden]` is made of: the raw parameter, freed of the directions that R keeps out of.

        The rows of subspaces that are off get no gradient.
        """
        (name,) = self.orthonormal
        raw: Tensor = getattr(self, name)
        if self.rows is not None:
            on = torch.zeros(len(raw), 1, dtype=torch.bool, device=raw.device)
            on[self.rows] = True
            raw = torch.where(on, raw, raw.detach())
        return raw if self.taken is None else outside(raw, self.taken)

    @torch.no_grad()
    def fold_complement(self) -> None:
        """Let the raw parameter be R itself, so that it needs no directions to keep out of; the edit stays."""
        if self.taken is not None:
            (name,) = self.orthonormal
            getattr(self, name).copy_(orthonormal_rows(self.raw_rotation(), padded=self.capacity is not None))
            delattr(self, COMPLEMENT)

    def active(self, tensor: Tensor, name: str) -> Tensor:
        """The rows of a tensor that are on: all of them, or those of the chosen subspaces.

        Args:
            tensor: one of the kind's, `[rank, ...]` or without a rank.
            name: its name.

        Returns:
            `[rows, ...]`; the tensor itself where all are on.
        """
        return tensor if self.rows is None or self.tensors[name][0] != "rank" else tensor[self.rows]

    def parameter(self, name: str, like: Tensor) -> Tensor:
        """A tensor in the dtype in which the edit is computed; where subspaces are off, without their rows.

        Args:
            name: of a tensor of the kind.
            like: any tensor in the dtype of the edit.

        Returns:
            The tensor, `[rows, ...]` of its `[rank, ...]` where subspaces are off.
        """
        value: Tensor = getattr(self, name)
        return self.active(value, name).to(like.dtype)

    def extra_repr(self) -> str:
        """Shown by `print(model)`."""
        return f"{self.kind}, hidden={self.hidden_size}, rank={self.rank}"
