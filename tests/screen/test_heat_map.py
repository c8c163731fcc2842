"""Numbers as a picture: one cell each, darker for more, labels escaped."""

from __future__ import annotations

import math
import re
from typing import Any
from xml.etree import ElementTree

import pytest

from peft_reft.screen import bars, heat_map_html, heat_map_svg

HOSTILE = '</text><script>x</script>"\x1b[2J'


def cells(svg: str) -> list[tuple[str, str]]:
    """(colour, number) of each cell, in order."""
    return re.findall(r'<rect x=[^>]*fill="(#\w+)"/><text[^>]*>([^<]*)</text>', svg)


def luminance(colour: str) -> float:
    red, green, blue = (int(colour[start : start + 2], 16) for start in (1, 3, 5))
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


def test_there_is_a_cell_for_every_number_and_none_for_what_is_missing() -> None:
    svg = heat_map_svg([[0.0, 1.0], [None, 2.0]], rows=["a", "b"], columns=["f1", "l1"], title="t")
    assert [text for _, text in cells(svg)] == ["0.00", "1.00", "2.00"]
    shades = [luminance(colour) for colour, _ in cells(svg)]
    assert shades == sorted(shades, reverse=True)
    assert shades[0] > 240 > 60 > shades[-1]
    ElementTree.fromstring(svg)


def test_the_darkest_colour_is_of_the_largest_or_of_the_number_given() -> None:
    alone = cells(heat_map_svg([[0.5]], rows=["a"], columns=["b"], title="t"))
    of_one = cells(heat_map_svg([[0.5]], rows=["a"], columns=["b"], title="t", highest=1.0))
    assert luminance(alone[0][0]) < luminance(of_one[0][0])


def test_every_cell_and_label_is_inside_the_picture() -> None:
    names = ["model.language_model.layers.10.self_attn.o_proj", "b"]
    svg = heat_map_svg([[1.0] * 3] * 2, rows=names, columns=["f1", "l1", "tok(<|im_start|>)"], title="one\ntwo")
    root = ElementTree.fromstring(svg)
    width, height = float(root.get("width", 0)), float(root.get("height", 0))
    for part in root.iter("{http://www.w3.org/2000/svg}rect"):
        assert float(part.get("x", 0)) + float(part.get("width", 0)) <= width
        assert float(part.get("y", 0)) + float(part.get("height", 0)) <= height
    assert len(list(root.iter("{http://www.w3.org/2000/svg}text"))) == 2 + 3 + 2 + 6


def test_labels_are_text_and_nothing_else() -> None:
    svg = heat_map_svg([[1.0]], rows=[HOSTILE], columns=[HOSTILE], title=HOSTILE)
    assert "script" not in {part.tag.rpartition("}")[2] for part in ElementTree.fromstring(svg).iter()}
    page = heat_map_html([[1.0]], rows=[HOSTILE], columns=[HOSTILE], title=HOSTILE)
    assert "<script" not in page


def test_the_table_of_a_notebook_has_numbers_without_its_colours() -> None:
    page = heat_map_html([[0.25, None]], rows=["layer 3"], columns=["1", "-1"], title="t", written="{:.0%}")
    assert re.findall(r"<td[^>]*>(.*?)</td>", page) == ["25%", ""]
    assert re.findall(r"<th>(.*?)</th>", page) == ["", "1", "-1", "layer 3"]


def test_bars_are_as_long_as_their_numbers() -> None:
    assert bars([0.0, 0.5, 1.0, None], width=4) == ["", "██", "████", ""]
    assert bars([0.25], width=2, highest=1.0) == ["▌"]
    assert bars([0.0, 0.0]) == ["", ""]


@pytest.mark.parametrize(
    ("values", "rows", "columns"),
    [
        ([[1.0]], ["a", "b"], ["c"]),
        ([[1.0, 2.0]], ["a"], ["c"]),
        ([[-1.0]], ["a"], ["c"]),
        ([[math.nan]], ["a"], ["c"]),
        ([[math.inf]], ["a"], ["c"]),
    ],
)
@pytest.mark.parametrize("draw", [heat_map_svg, heat_map_html])
def test_numbers_without_a_place_or_a_colour_are_refused(draw: Any, values: Any, rows: Any, columns: Any) -> None:
    with pytest.raises(ValueError, match=r"names of rows|0 or more"):
        draw(values, rows=rows, columns=columns, title="t")


@pytest.mark.parametrize("value", [-1.0, math.nan, math.inf])
def test_there_is_no_bar_for_what_is_no_length(value: float) -> None:
    with pytest.raises(ValueError, match="0 or more"):
        bars([1.0, value])
