"""`Site`: where in a network: a module or a block's component, at which positions, and what of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor, nn

from peft_reft.hub_format.errors import SiteError
from peft_reft.hub_format.positions import parse_positions
from peft_reft.sites import Tap, find_stacks, site_table

from .spaces import Space

__all__ = ["Address", "Column", "Position", "Site"]


@dataclass(frozen=True)
class Column:
    """A position that each row of the inputs says itself, under a key of its own.

    `inputs[key]` is `[batch]` or `[batch, k]`: indices among the row's real tokens, negatives from the end. The key is
    taken off before the model is called. So base and source may differ, and rows too.
    """

    key: str


Position = int | tuple[int, ...] | str | Column | None
"""Index among a row's real tokens (negatives from the end), several of them, a spec of the tuner's grammar
(`"l1"`, `"p[2:5]"`), a `Column`, or None: the whole activation, which is all there is without a sequence."""


@dataclass(frozen=True)
class Address:
    """A site's module and the tensor of its call, once the model is known.

    `role` is that of the stack, for the choice of the attention mask.
    """

    path: str
    tap: Tap
    role: str = "only"


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
        if self.units is not None and (len(set(self.units)) != len(self.units) or not self.units):
            raise SiteError(f"units={list(self.units)!r}", value=list(self.units), rule="one or more, each once")
        if isinstance(self.position, str):
            parse_positions(self.position)
        elif isinstance(self.position, bool) or not isinstance(self.position, (int, tuple, Column, type(None))):
            raise SiteError(
                f"position={self.position!r}",
                value=self.position,
                rule="an int, a tuple of ints, a spec such as 'l1', a Column, or None",
            )

    def address(self, model: nn.Module) -> Address:
        """Module and tensor of this site in a model.

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
            return Address(self.module, Tap(on_input=self.on_input))
        stacks = find_stacks(model, self.layers_pattern)
        if len(stacks) != 1:
            raise SiteError(
                f"layer={self.layer}: the model has {len(stacks)} stacks of blocks",
                value=self.layer,
                rule=f"they are: {', '.join(stack.path for stack in stacks)}",
                fix="pick one with layers_pattern",
            )
        (found,), _ = site_table(model, [(stacks, [self.layer or 0], self.component)])
        return Address(found.path, found.taps[0], found.stack.role)

    def describe(self) -> str:
        """In a few words, for errors and figures."""
        where = f"module {self.module!r}" if self.module is not None else f"layer {self.layer} {self.component}"
        at = "" if self.position is None else f" at {self.position}"
        units = "" if self.units is None else f", units {_shown(self.units)}"
        space = "" if self.space is None else f" of {type(self.space).__name__}"
        return f"{where}{at}{units}{space}"


def _shown(units: Sequence[int]) -> str:
    listed = list(units)
    consecutive = len(listed) > 2 and listed == list(range(listed[0], listed[-1] + 1))
    return f"{listed[0]}…{listed[-1]}" if consecutive else ", ".join(map(str, listed))
