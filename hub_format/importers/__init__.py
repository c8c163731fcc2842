"""Folders of other libraries ↔ records: which kind, at which layer and component, for which term, with which tensors.

Pure: they read and write files and know no model. Naming the modules of a base is `peft_reft.convert`'s work. Reading
never unpickles code.
"""

from .adapters import read_adapters, write_adapters
from .gguf import write_gguf
from .pyreft import read_pyreft, write_pyreft
from .records import Imported, Record

__all__ = [
    "Imported",
    "Record",
    "read_adapters",
    "read_pyreft",
    "write_adapters",
    "write_gguf",
    "write_pyreft",
]
