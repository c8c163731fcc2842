"""Tasks with a causal model behind them, after the causal variable localisation of MIB (arXiv 2504.13151).

One file each and one row of `TASKS`: how prompts are made, what the answer depends on, and which counterfactuals tell
the variables apart.
"""

from .arithmetic import ARITHMETIC
from .ioi import IOI
from .mcqa import MCQA
from .reading import TaskReader
from .task import Task

__all__ = ["TASKS", "Task", "TaskReader"]

TASKS: dict[str, Task] = {task.name: task for task in (IOI, MCQA, ARITHMETIC)}
"""Name → task."""
