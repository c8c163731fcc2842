"""Name → skill, of all sources."""

from __future__ import annotations

from .bigbench import bigbench_skills
from .gym import gym_skills
from .rules import rule_skills
from .skill import Skill, SkillError

__all__ = ["SKILLS", "skill"]

SKILLS: dict[str, Skill] = {**rule_skills(), **gym_skills(), **bigbench_skills()}


def skill(name: str) -> Skill:
    """The skill of this name.

    Raises:
        SkillError: there is none; the message lists those that there are.
    """
    if name not in SKILLS:
        raise SkillError(f"{name!r} is no skill: known are {', '.join(SKILLS)}")
    return SKILLS[name]
