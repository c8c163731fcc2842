"""What `show_positions` returns: plain text for a terminal, HTML for a notebook. Tokens are not trusted."""

from __future__ import annotations

import html
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

__all__ = ["PositionPicture"]

WIDTH = 100
END = "‖"
"""Stands where a prompt ends."""
STYLES = (("#ffd54f", "solid"), ("#81d4fa", "dashed"), ("#a5d6a7", "dotted"), ("#f48fb1", "double"))
"""Background and border of the terms, in turn; their numbers stand beside the tokens in any case."""


@dataclass(frozen=True, repr=False)
class PositionPicture:
    """The tokens of one example, and which of them each term edits.

    All positions count from the first real token.

    Attributes:
        terms: the terms, over all groups in order.
        tokens: the real tokens, as text.
        edited: for each term the positions that it edits.
        prompts: start and stop of every prompt; None where nothing says what is prompt.
        padding: columns of padding before and after the tokens, which are not shown.
        note: how many interventions the terms share.
    """

    terms: tuple[str, ...]
    tokens: tuple[str, ...]
    edited: tuple[tuple[int, ...], ...]
    prompts: tuple[tuple[int, int], ...] | None
    padding: tuple[int, int]
    note: str

    def marks(self, position: int) -> list[int]:
        """Numbers, from 1, of the terms that edit a token. More than one where several groups do.

        Args:
            position: of the token, from 0 at the first real one.

        Returns:
            The numbers.
        """
        return [number for number, positions in enumerate(self.edited, start=1) if position in positions]

    def __str__(self) -> str:
        pieces = []
        for position, token in enumerate(self.tokens):
            shown = _escaped(_visible(token))
            marks = self.marks(position)
            pieces.append(f"[{','.join(map(str, marks))} {shown}]" if marks else shown)
            pieces += [END] if self._ends_prompt(position) else []
        legend = [f"[{number}] {term}: {_ranges(where)}" for number, term, where in self._terms()]
        return "\n".join([self._title(), "", *_wrapped(pieces), "", *legend, self._boundary()])

    __repr__ = __str__

    def _repr_html_(self) -> str:
        pieces = []
        for position, token in enumerate(self.tokens):
            pieces.append(self._html_token(position, html.escape(_visible(token))))
            pieces += [f'<b title="the prompt ends here">{END}</b>'] if self._ends_prompt(position) else []
        legend = "".join(
            f"<li>{_html_mark([number], html.escape(term), term)} {_ranges(where)}</li>"
            for number, term, where in self._terms()
        )
        return (
            f'<div style="font-family: monospace; line-height: 2.2"><div>{html.escape(self._title())}</div>'
            f"<div>{' '.join(pieces)}</div>"
            f'<ul style="list-style: none; padding: 0">{legend}<li>{html.escape(self._boundary())}</li></ul></div>'
        )

    def _html_token(self, position: int, shown: str) -> str:
        marks = self.marks(position)
        if not marks:
            return f'<span title="position {position}">{shown}</span>'
        names = ", ".join(self.terms[number - 1] for number in marks)
        return _html_mark(marks, shown, f"position {position}: {names}")

    def _terms(self) -> list[tuple[int, str, tuple[int, ...]]]:
        return [(n, *pair) for n, pair in enumerate(zip(self.terms, self.edited, strict=True), start=1)]

    def _ends_prompt(self, position: int) -> bool:
        return self.prompts is not None and any(position + 1 == stop for _, stop in self.prompts)

    def _title(self) -> str:
        left, right = self.padding
        padding = f", padding not shown: {left} before, {right} after" if left or right else ""
        return f"{len(self.tokens)} tokens{padding}; {self.note}"

    def _boundary(self) -> str:
        if self.prompts is None:
            return f"{END} is not shown: nothing says where the prompt ends"
        runs = ", ".join(f"{start}-{stop - 1}" for start, stop in self.prompts)
        return f"{END} end of the prompt, tokens {runs}" if runs else f"{END} there is no prompt"


def _html_mark(marks: Sequence[int], shown: str, title: str) -> str:
    colour, border = STYLES[(marks[0] - 1) % len(STYLES)]
    style = f"background: {colour}; color: #111; border: 2px {border} #111; padding: 0 2px"
    numbers = ",".join(map(str, marks))
    return f'<span style="{style}" title="{html.escape(title)}"><sup>{numbers}</sup>{shown}</span>'


def _visible(token: str) -> str:
    """One token on one line: a space is `·`; what does not print, or steers a terminal, is its escape."""
    return "".join(
        "·" if letter == " " else letter if letter.isprintable() else letter.encode("unicode_escape").decode()
        for letter in token
    )


def _escaped(token: str) -> str:
    """A token's own signs, told from ours."""
    return "".join(f"\\{letter}" if letter in f"[]{END}" else letter for letter in token)


def _ranges(positions: Iterable[int]) -> str:
    runs: list[list[int]] = []
    for position in positions:
        if runs and runs[-1][1] + 1 == position:
            runs[-1][1] = position
        else:
            runs.append([position, position])
    return ", ".join(str(start) if start == stop else f"{start}-{stop}" for start, stop in runs) or "none"


def _wrapped(pieces: Iterable[str]) -> list[str]:
    lines = [""]
    for piece in pieces:
        joined = f"{lines[-1]} {piece}" if lines[-1] else piece
        if len(joined) <= WIDTH or not lines[-1]:
            lines[-1] = joined
        else:
            lines.append(piece)
    return lines
