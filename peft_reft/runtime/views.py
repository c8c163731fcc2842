"""An adapter as the runtime sees it: its groups, the numbering of its units, the ids of its special tokens."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from peft_reft.hub_format.positions import Generated
from peft_reft.hub_format.schema import SiteGroup
from peft_reft.positions import needs_prompt

__all__ = ["AdapterView"]


@dataclass(frozen=True)
class AdapterView:
    """One adapter's groups; units are numbered over the groups, then over the terms of an untied group."""

    name: str
    groups: tuple[SiteGroup, ...]
    token_ids: Mapping[str, int] = field(default_factory=dict)

    @property
    def touches_generated(self) -> bool:
        """Whether tokens after the prompt can be edited."""
        return any(group.positions.touches_generated for group in self.groups)

    @property
    def needs_prompt_end(self) -> bool:
        """Whether the edited tokens depend on where the prompt ends."""
        return any(group.needs_prompt_end for group in self.groups)

    @property
    def needs_turns(self) -> bool:
        """Whether the edited tokens depend on where every turn of a conversation starts and ends."""
        return any(group.needs_turns for group in self.groups)

    @property
    def needs_prompt(self) -> bool:
        """Whether a sequence without a prompt is an error."""
        return any(needs_prompt(group.positions) for group in self.groups)

    @property
    def counts_generated(self) -> bool:
        """Whether it matters how many tokens after the prompt there were before."""
        return any(
            isinstance(term, Generated) and (term.start or term.stop is not None)
            for group in self.groups
            for term in (*group.positions.terms, *group.positions.exclusions)
        )

    @property
    def units(self) -> int:
        """How many interventions the adapter has at a site where all its groups edit."""
        return sum(group.units for group in self.groups)

    def first_unit(self, group: int) -> int:
        """Number of the first unit of a group."""
        return sum(entry.units for entry in self.groups[:group])
