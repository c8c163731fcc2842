"""What runs in a thread: the frame of one forward, made where it starts and gone when it ends.

Each model has a `Running` of its own, and every thread sees its own values of it: threads may share a model. Nothing
of a call outlives it: two forwards may precede one backward.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeAlias

import torch
from torch import Tensor
from torch.utils.hooks import RemovableHandle

from .plan import StackPlan
from .situation import UnitKey
from .window import Room, Workspace

__all__ = ["CHILD", "Frame", "Prepared", "Products", "Ready", "Running"]


CHILD = "reft"
"""Name of the `ReftLayer` among the children of its site. A hook takes it from the module that runs, which may be a
copy: of `copy.deepcopy`, of DataParallel."""


class Products(NamedTuple):
    """delta(h) = (h A + c) B, in the dtype in which the edit is computed.

    Attributes:
        down: A `[hidden, rank]`; gradients go to `source` in its place.
        bias: c `[rank]`.
        up: B `[rank, hidden]`.
        source: Aᵀ where a gradient is wanted, so that the parameters' has their layout; else None.
    """

    down: Tensor
    bias: Tensor
    up: Tensor
    source: Tensor | None


Prepared: TypeAlias = dict[tuple[str, UnitKey], Products | Tensor]
"""(path of a site, unit) → its two thin products, or R."""


class Ready(NamedTuple):
    """The one edit of a site, where it is affine and falls on the whole output.

    Attributes:
        dtype: of the output.
        shape: `[batch, seq, hidden]` of the output.
        rows: long `[n]`, distinct rows of the flattened output.
        used: bool `[n, 1]`, which of them are edited; None if all are.
        room: of the edit, where a view of the output shows these rows in this order; else None.
        products: the edit.
        trained: whether a gradient of the products is wanted.
    """

    dtype: torch.dtype
    shape: torch.Size
    rows: Tensor
    used: Tensor | None
    room: Room | None
    products: Products
    trained: bool

    def fits(self, hidden: Tensor) -> bool:
        """Whether an output is what the edit was made ready for: OPT's feed-forward part gives `[batch · seq, …]`."""
        return hidden.shape == self.shape and hidden.dtype is self.dtype

    def learns(self, hidden: Tensor) -> bool:
        """Whether gradients go through the edit of an output."""
        return torch.is_grad_enabled() and (hidden.requires_grad or self.trained)


@dataclass(slots=True)
class Frame:
    """One running forward.

    Attributes:
        plans: stack path → its plan; None, or no entry, where nothing is edited in this call.
        units: site path → the units at work there.
        rows: what the call says for its rows, if it does.
        prepared: what the edits of all sites need beside h; None until it is made, by the first edit or ahead of it.
        ready: path of a site → its edit in one step, where it has that; None until the first edit.
        workspace: in which the last edit of a window was computed, for the next one.
        keeper: a generation that runs, which keeps what is prepared from forward to forward.
        counts_from_end: whether an edit depends on where the prompt of this call ends.
        penalties: what kinds add to this forward's loss; None where nothing does.
        noise: what kinds that sample draw from in this forward; None where nothing is drawn.
        guarded: whether a row whose edit is no number stays as it is.
    """

    plans: Mapping[str, StackPlan | None]
    units: Mapping[str, Any]
    rows: Any = None
    prepared: Prepared | None = None
    ready: Mapping[str, Ready] | None = None
    workspace: Workspace | None = None
    keeper: Any = None
    counts_from_end: bool = False
    penalties: Any = None
    noise: Any = None
    guarded: bool = False


class Running(threading.local):
    """What runs of one model in this thread.

    Whoever sets one of these puts it back in a `finally` of its own: an interrupt may strike where an `__exit__` or a
    generator is about to run, which then never does.

    Attributes:
        frame: of the forward that runs.
        call: that this forward belongs to.
        session: what a generation that runs knows of its prompt.
        rows: what a call with `adapter_names` says for its rows.
        handles: of the hooks that such a call has put on the model.
        under: runs a function as this forward runs, under a factor that is not the edits' own: for blocks that are
            recomputed when the forward is over.
    """

    def __init__(self) -> None:
        self.frame: Frame | None = None
        self.call: Any = None
        self.session: Any = None
        self.rows: Any = None
        self.handles: list[RemovableHandle] = []
        self.under: Callable[[Callable[[], Any]], Any] | None = None

    def __reduce__(self) -> tuple[type[Running], tuple[()]]:
        """A copy of a model runs nothing."""
        return Running, ()
