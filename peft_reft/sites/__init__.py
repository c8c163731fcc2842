"""Where a model can be edited: its stacks of blocks, and the components of a block.

Shared by the tuner, the causal toolkit and serving; knows nothing of adapters.
"""

from .components import COMPONENTS, Place, Tap, component_place
from .fields import config_field
from .first_meaning import PARTS_SINCE, moved_components
from .forms import PLAIN, Form
from .shapes import forms_at
from .stacks import Stack, can_generate, find_stacks, hidden_size_of, role_of, text_config
from .table import Site, head_count_of, site_table
from .tensors import hidden_of, with_hidden, with_slice

__all__ = [
    "COMPONENTS",
    "PARTS_SINCE",
    "PLAIN",
    "Form",
    "Place",
    "Site",
    "Stack",
    "Tap",
    "can_generate",
    "component_place",
    "config_field",
    "find_stacks",
    "forms_at",
    "head_count_of",
    "hidden_of",
    "hidden_size_of",
    "moved_components",
    "role_of",
    "site_table",
    "text_config",
    "with_hidden",
    "with_slice",
]
