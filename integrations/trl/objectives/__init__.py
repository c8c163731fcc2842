"""Losses of steering papers in a stock `DPOTrainer`: one file each, one row of `OBJECTIVES`.

An objective says which forwards a step needs (`Pass`: the edit's factor, and which answer is wanted there) and what a
pair's two answers cost in each. `use_objective` puts it into a trainer.
"""

from .installed import OBJECTIVES, use_objective
from .reps import RepsObjective, reps_loss
from .split import SplitObjective, split_loss

__all__ = ["OBJECTIVES", "RepsObjective", "SplitObjective", "reps_loss", "split_loss", "use_objective"]
