"""The on-disk format of ReFT adapters. Knows neither PEFT nor transformers."""

from .errors import ReftError
from .manifest import MANIFEST_NAME, Manifest
from .positions import Positions, parse_positions
from .reader import check_folder
from .schema import SPEC_VERSION

__all__ = ["MANIFEST_NAME", "SPEC_VERSION", "Manifest", "Positions", "ReftError", "check_folder", "parse_positions"]
