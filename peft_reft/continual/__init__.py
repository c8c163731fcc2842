"""Learning one skill after another without forgetting: keep to the model before, route, merge.

`ReftConfig(orthogonal_to=[...])` is the fourth tool, and needs nothing from here.
"""

from .anchor import add_anchor
from .merging import MergedSkills, merge_skills
from .router import RouterReport, SkillRouter

__all__ = ["MergedSkills", "RouterReport", "SkillRouter", "add_anchor", "merge_skills"]
