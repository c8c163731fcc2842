"""`Site`: where in a network: a module or a block's component, at which positions, and what of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from operator import index
from typing import Any

from torch import Tensor, nn

from peft_reft.hub_format.errors import SiteError
from peft_reft.hub_format.positions import parse_positions
from peft_reft.sites import Tap, can_generate, find_stacks, forms_at, role_of, site_table

from .spaces import Space

__all__ = ["Address", "Column", "Position", "Site"]


@dataclass(frozen=True)
class Column:
    """A position that each row of the inputs says itself, under a key of its own.

    `inputs[key]` is `[batch]` or `[batch, k]`: indices among the row's real tokens, negatives from the end. The key is
    taken off before the model is called. So base and source may differ, and rows too.

    Args:
        key: of the inputs.
    """

    key: str


Position = int | tuple[int, ...] | str | Column | None
"""Index among a row's real tokens (negatives from the end), several of them, a spec of the tuner's grammar
(`"l1"`, `"p[2:5]"`), a `Column`, or None: the whole activation, which is all there is without a sequence."""


@dataclass(frozen=True)
class Address:
    """A site's module and the tensor of its call, once the model is known.

    `role` is that of the stack, for the choice of the attention mask and of what labels say; `completes`, whether the
    model writes on: elsewhere labels say nothing of a prompt.
    """

    path: str
    tap: Tap
    role: str = "only"
    completes: bool = True


@dataclass(frozen=True, kw_only=True, eq=False)
class Site:
    """Where a variable is thought to be, in any `nn.Module`.

    Either `module`, a dotted path (`""` is the model itself), or `layer` and `component` as in `ReftConfig`. Of that
    activation `[batch, …, hidden]` the vectors at `position` are meant; of each vector all of it, the `units`, or
    coordinates in a `space`.

    Args:
        module: dotted path of a module.
        on_input: its first input instead of its output.
        call: which call of the module in one forward, from 0; needed where there are several.
        layer: index of a block; negatives count from the end.
        component: of that block: `"block_output"`, `"block_input"`, `"attention_output"`, `"mlp_output"`,
            `"head_output[n]"`.
        layers_pattern: name of the list of blocks, where it cannot be told.
        position: see `Position`.
        joint: take the vectors of one row together, as one vector of k · hidden (without positions: the whole
            activation of a row, whatever its shape).
        units: coordinates: neurons, or where there is a space, its features (rows of a rotation). None: all.
        space: `Rotation`, `Pca`, `Autoencoder`, or one's own; None for the neurons themselves.
        mask: how much of each coordinate is exchanged, 0 to 1: `[width]` or `[batch, width]`, instead of `units`.

    Raises:
        SiteError, PositionSyntaxError: no or two addresses, units and mask, a spec that is none.

    >>> Site(layer=3, position=-1, units=range(8)).describe()
    'layer 3 block_output at -1, units 0…7'
    """

    module: str | None = None
    on_input: bool = False
    call: int | None = None
    layer: int | None = None
    component: str = "block_output"
    layers_pattern: str | None = None
    position: Position = None
    joint: bool = False
    units: Sequence[int] | None = None
    space: Space | None = None
    mask: Tensor | None = None

    def __post_init__(self) -> None:
        if (self.module is None) == (self.layer is None):
            raise SiteError(
                f"module={self.module!r}, layer={self.layer!r}",
                value=(self.module, self.layer),
                rule="a site is named by one of them: a module's path, or a layer and a component",
            )
        if self.layer is not None and self.on_input:
            raise SiteError("on_input=True with a layer", value=True, fix="use component='block_input'")
        if self.units is not None and self.mask is not None:
            raise SiteError("units and mask are both given", rule="a mask says of every coordinate how much")
        for name in ("layer", "call"):
            value = getattr(self, name)
            if not (value is None or _is_int(value)) or (name == "call" and (value or 0) < 0):
                raise SiteError(f"{name}={value!r}", value=value, rule="it is an int, and calls count from 0")
        for name in ("on_input", "joint"):
            if not isinstance(getattr(self, name), bool):
                raise SiteError(
                    f"{name}={getattr(self, name)!r}", value=getattr(self, name), rule="it is True or False"
                )
        for name in ("module", "component", "layers_pattern"):
            value = getattr(self, name)
            if not (isinstance(value, str) or (value is None and name != "component")):
                raise SiteError(f"{name}={value!r}", value=value, rule="it is a name, a str")
        if self.units is not None:
            object.__setattr__(self, "units", _units(self.units))
        if self.mask is not None and not isinstance(self.mask, Tensor):
            raise SiteError(f"mask={self.mask!r}", value=self.mask, rule="it is a tensor [width] or [batch, width]")
        if (
            self.mask is not None
            and not self.mask.requires_grad
            and not bool(((self.mask >= 0) & (self.mask <= 1)).all())
        ):
            raise SiteError(
                "the mask has values outside of 0 to 1",
                value=self.mask.tolist(),
                rule="it says of every coordinate how much is exchanged: 0 none of it, 1 all of it",
            )
        if self.space is not None and not isinstance(self.space, Space):
            raise SiteError(
                f"space of type {type(self.space).__name__}",
                value=type(self.space).__name__,
                rule="it is a Space",
                fix="space=Rotation(matrix)",
            )
        if isinstance(self.position, str):
            parse_positions(self.position)
        elif not _is_position(self.position):
            raise SiteError(
                f"position={self.position!r}",
                value=self.position,
                rule="an int, a tuple of ints, a spec such as 'l1', a Column, or None",
            )

    def address(self, model: nn.Module) -> Address:
        """Module and tensor of this site in a model.

        Args:
            model: any module.

        Returns:
            The module's path and the tensor of its call.

        Raises:
            SiteError: the model has no such module, layer or component.
        """
        if self.module is not None:
            try:
                model.get_submodule(self.module)
            except AttributeError as error:
                names = [name for name, _ in model.named_modules() if name]
                raise SiteError(
                    f"module={self.module!r}: {type(model).__name__} has none",
                    value=self.module,
                    rule=f"its modules are: {', '.join(names[:20])}{', …' if len(names) > 20 else ''}",
                ) from error
            role = role_of(model, self.module)
            if self.position is None:  # the whole activation, whatever it is
                return Address(self.module, Tap(on_input=self.on_input), role, can_generate(model) is not False)
            spot = (self.module, self.on_input)
            form = forms_at(model, {spot: role}, strict=False)[spot]
            return Address(self.module, Tap(on_input=self.on_input, form=form), role, can_generate(model) is not False)
        stacks = find_stacks(model, self.layers_pattern)
        if len(stacks) != 1:
            raise SiteError(
                f"layer={self.layer}: the model has {len(stacks)} stacks of blocks",
                value=self.layer,
                rule=f"they are: {', '.join(stack.path for stack in stacks)}",
                fix="pick one with layers_pattern",
            )
        (found,), _ = site_table(model, [(stacks, [self.layer or 0], self.component)])
        return Address(found.path, found.taps[0], found.stack.role, can_generate(model) is not False)

    def describe(self) -> str:
        """In a few words, for errors and figures."""
        where = f"module {self.module!r}" if self.module is not None else f"layer {self.layer} {self.component}"
        at = "" if self.position is None else f" at {self.position}"
        units = "" if self.units is None else f", units {_shown(self.units)}"
        space = "" if self.space is None else f" of {type(self.space).__name__}"
        return f"{where}{at}{units}{space}"


def _is_int(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_position(position: object) -> bool:
    if isinstance(position, tuple):
        return bool(position) and all(map(_is_int, position))
    return position is None or _is_int(position) or isinstance(position, Column)


def _units(units: Any) -> Sequence[int]:
    """Units as plain ints: a range, or a tuple of what a list, an array or a tensor holds."""
    try:
        listed = None if isinstance(units, str) else [index(unit) for unit in units if not isinstance(unit, bool)]
    except TypeError:
        listed = None
    if listed is None or len(listed) != len(units) or not listed or len(set(listed)) != len(listed):
        raise SiteError(f"units={units!r}", value=units, rule="they are ints, one or more, each once")
    return units if isinstance(units, range) else tuple(listed)


def _shown(units: Sequence[int]) -> str:
    listed = list(units)
    consecutive = len(listed) > 2 and listed == list(range(listed[0], listed[-1] + 1))
    return f"{listed[0]}…{listed[-1]}" if consecutive else ", ".join(map(str, listed))
