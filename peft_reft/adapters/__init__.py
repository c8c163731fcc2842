"""Many adapters on one model: a different one for every row of a batch, their parameters stacked."""

from .per_row import BASE, RowAdapters, adapters_per_row, row_adapters, split_rows
from .scales import Scales
from .stacking import AdapterStack, Stacks

__all__ = ["BASE", "AdapterStack", "RowAdapters", "Scales", "Stacks", "adapters_per_row", "row_adapters", "split_rows"]
