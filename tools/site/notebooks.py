"""A notebook as a Markdown page: its text, its code and what the code gave."""

from __future__ import annotations

import json
from typing import Any

__all__ = ["as_markdown"]


def as_markdown(text: str) -> str:
    """The cells of a notebook, in order.

    Args:
        text: the `.ipynb` file's content (nbformat 4).

    Returns:
        Markdown. Of an output the richest form is kept: HTML or an SVG figure as it stands, else the text.
    """
    parts: list[str] = []
    for cell in json.loads(text)["cells"]:
        source = "".join(cell["source"]).strip("\n")
        if cell["cell_type"] == "markdown":
            parts.append(source)
        elif cell["cell_type"] == "code" and source:
            parts.append(f"```python\n{source}\n```")
            parts.extend(shown for output in cell["outputs"] if (shown := _output(output)))
    return "\n\n".join(parts) + "\n"


def _output(output: dict[str, Any]) -> str:
    if output["output_type"] == "stream":
        return _text("".join(output["text"]))
    data = output.get("data", {})
    for rich in ("text/html", "image/svg+xml"):
        if rich in data:
            lines = [line for line in "".join(data[rich]).splitlines() if line.strip()]
            return '<div class="output">\n' + "\n".join(lines) + "\n</div>"
    return _text("".join(data.get("text/plain", "")))


def _text(text: str) -> str:
    return f"```text\n{text.rstrip()}\n```" if text.strip() else ""
