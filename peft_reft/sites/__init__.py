"""Where a model can be edited: its stacks of blocks, and the components of a block.

Shared by the tuner, the causal toolkit and serving; knows nothing of adapters.
"""

from .components import COMPONENTS, component_module
from .stacks import Stack, find_stacks, hidden_size_of
from .table import Site, site_table

__all__ = ["COMPONENTS", "Site", "Stack", "component_module", "find_stacks", "hidden_size_of", "site_table"]
