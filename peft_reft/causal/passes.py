"""One forward pass with hooks at sites: some read, some edit. Hooks are off again whatever happens."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from peft_reft.hub_format.errors import SiteError
from peft_reft.sites import PLAIN, hidden_of, with_hidden

from .edits import Edit, apply_edit
from .inputs import call_model, check_module, named
from .site import Address, Site
from .spaces import Rotation
from .traces import recomputing_nothing
from .views import View, view_of

__all__ = ["run"]

_ORTHOGONAL = 1e-4
Visit = Callable[[Tensor], Tensor | None]


def run(
    model: nn.Module,
    inputs: Any,
    *,
    edits: Sequence[Edit] = (),
    reads: Sequence[Site] = (),
    known: Sequence[Site] = (),
    disjoint: bool = False,
) -> tuple[Any, list[View]]:
    """The model's output under edits, and the views read.

    Edits at one module apply in the order given; a read at a module sees the edits there.

    Args:
        model: any module.
        inputs: a tensor, a tuple or keywords.
        edits: what is changed.
        reads: what is kept.
        known: further sites whose `Column` keys the inputs may hold.
        disjoint: refuse edits that claim the same coordinates of the same vector.

    Raises:
        SiteError: a site that the model does not have, that the forward does not reach, or that it reaches several
            times; two edits of the same coordinates.
    """
    check_module(model)
    found: list[View | None] = [None] * len(reads)
    ids = named(inputs).get("input_ids", inputs)
    length = ids.shape[1] if isinstance(ids, Tensor) and ids.dim() > 1 else None
    stops = [
        *_edit_stops(model, inputs, edits, length, disjoint=disjoint),
        *_read_stops(model, inputs, reads, length, found),
    ]
    handles: list[RemovableHandle] = []
    try:
        for stop in stops:
            handles.append(stop.attach(model))
        with recomputing_nothing(model, [stop.address.path for stop in stops]):
            output = call_model(model, inputs, [*(edit.site for edit in edits), *reads, *known])
    finally:
        for handle in handles:
            handle.remove()
    for stop in stops:
        stop.check_reached()
    return output, [view for view in found if view is not None]


def _edit_stops(
    model: nn.Module, inputs: Any, edits: Sequence[Edit], length: int | None, *, disjoint: bool
) -> Iterator[_Stop]:
    earlier: dict[tuple[Address, int | None], list[tuple[Edit, View]]] = {}

    def visiting(edit: Edit, address: Address) -> Visit:
        def visit(tensor: Tensor) -> Tensor:
            view = view_of(edit.site, address, tensor, inputs)
            if disjoint:
                _check_disjoint(edit, view, earlier.setdefault((address, edit.site.call), []))
            return view.put(apply_edit(edit, view))

        return visit

    for edit in edits:
        address = edit.site.address(model)
        yield _Stop(edit.site, address, visiting(edit, address), length)


def _read_stops(
    model: nn.Module, inputs: Any, reads: Sequence[Site], length: int | None, found: list[View | None]
) -> Iterator[_Stop]:
    """Each keeps its view at its place in `found`."""

    def visiting(place: int, site: Site, address: Address) -> Visit:
        def visit(tensor: Tensor) -> None:
            found[place] = view_of(site, address, tensor, inputs).kept()

        return visit

    for place, site in enumerate(reads):
        address = site.address(model)
        yield _Stop(site, address, visiting(place, site, address), length)


class _Stop:
    """One site of a pass: counts the calls of its module and visits the one that is meant."""

    def __init__(self, site: Site, address: Address, visit: Visit, length: int | None) -> None:
        self.site, self.address, self.visit, self.length = site, address, visit, length
        self.calls = 0

    def attach(self, model: nn.Module) -> RemovableHandle:
        module = model.get_submodule(self.address.path)
        if self.address.tap.on_input:
            return module.register_forward_pre_hook(self._on_input, with_kwargs=True)
        return module.register_forward_hook(self._on_output)

    def _on_input(self, module: nn.Module, args: Any, kwargs: dict[str, Any]) -> Any:
        name = None if args else next(iter(kwargs))
        edited = self._visited(args[0] if name is None else kwargs[name])
        if edited is None:
            return None
        return ((edited, *args[1:]), kwargs) if name is None else (args, {**kwargs, name: edited})

    def _on_output(self, module: nn.Module, args: Any, output: Any) -> Any:
        edited = self._visited(hidden_of(output))
        return None if edited is None else with_hidden(output, edited)

    def _visited(self, tensor: Tensor) -> Tensor | None:
        self.calls += 1
        if self.site.call is None and self.calls > 1:
            raise SiteError(
                f"{self.site.describe()}: the module is called several times in one forward",
                code="site.call",
                rule="a site is one call of its module",
                fix="say which with call=0, 1, …",
            )
        if self.site.call not in (None, self.calls - 1):
            return None
        form = self.address.tap.form
        if form == PLAIN:
            return self.visit(tensor)
        if not form.fits(tensor):
            raise SiteError(
                f"{self.site.describe()}: the activation has shape {list(tensor.shape)}",
                code="site.shape",
                value=list(tensor.shape),
                rule=f"it is [{form.axes}]",
            )
        edited = self.visit(form.states(tensor, self.length or tensor.shape[1]))
        return None if edited is None else form.put_back(edited, tensor)

    def check_reached(self) -> None:
        if self.calls <= (self.site.call or 0):
            raise SiteError(
                f"{self.site.describe()}: the forward called the module {self.calls} times",
                code="site.call",
                value=self.calls,
                rule="a site lies on the way from the inputs to the output",
            )


def _check_disjoint(edit: Edit, view: View, earlier: list[tuple[Edit, View]]) -> None:
    for other, seen in earlier:
        if view.overlaps(seen) and _share_coordinates(edit.site, other.site, view, seen):
            raise SiteError(
                f"{edit.site.describe()} and {other.site.describe()} claim the same coordinates",
                code="site.overlap",
                rule="several sources go into disjoint units, or orthogonal rows of one rotation (2303.02536, def. 3)",
            )
    earlier.append((edit, view))


def _share_coordinates(first: Site, second: Site, view: View, seen: View) -> bool:
    if view.rows.shape[1] != seen.rows.shape[1]:
        return True
    bases = [_basis(site, view.rows) for site in (first, second)]
    if bases[0] is None or bases[1] is None:
        return True
    return bool(((bases[0] @ bases[1].mT).abs() > _ORTHOGONAL).any())


def _basis(site: Site, rows: Tensor) -> Tensor | None:
    """Rows that span what a site claims; None: everything."""
    if site.space is None:
        basis = torch.eye(rows.shape[1], device=rows.device)
    elif isinstance(site.space, Rotation):
        basis = site.space.matrix.detach().float()
    else:
        return None
    return basis if site.units is None else basis[list(site.units)]
