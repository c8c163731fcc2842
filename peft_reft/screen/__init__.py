"""What a person looks at: bars while work is long, and pictures of numbers. Knows neither models nor formats."""

from .heat_map import bars, heat_map_html, heat_map_svg
from .layers_svg import layers_svg
from .progress import progress

__all__ = ["bars", "heat_map_html", "heat_map_svg", "layers_svg", "progress"]
