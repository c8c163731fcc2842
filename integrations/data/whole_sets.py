"""What is a data set of `datasets`, without importing it: who passes one has done so."""

from __future__ import annotations

import sys
from typing import Any

__all__ = ["is_data_set"]


def is_data_set(example: Any) -> bool:
    """Whether something is a `Dataset` or `DatasetDict`, whose `map` takes `num_proc` and `desc`."""
    datasets = sys.modules.get("datasets")
    return datasets is not None and isinstance(example, (datasets.Dataset, datasets.DatasetDict))
