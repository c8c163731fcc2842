"""The grammar of position specs: text ↔ frozen dataclasses.

    spec      = term { "+" term | "-" term }
    term      = "f" n | "l" n | "prompt" | "all" | "generated" | "p" window | "g" window | "tok(" token ")"
    window    = "[" [int] ":" [int] "]"

`+` adds a term, `-` excludes one from all others. Terms claim tokens in the order in which they stand: a token belongs
to the first term that takes it. What the terms mean on tensors is in `peft_reft.positions`.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from .errors import PositionSyntaxError

__all__ = [
    "All",
    "First",
    "Generated",
    "Last",
    "Positions",
    "Prompt",
    "PromptWindow",
    "Special",
    "Term",
    "parse_positions",
]

GRAMMAR = (
    "terms 'f<n>' (first n of the prompt), 'l<n>' (last n), 'prompt', 'all', 'generated', 'p[a:b]', 'g[a:b]', "
    "'tok(<special token>)', joined by '+', excluded by '-'; e.g. 'f7+l7', 'l1', 'all-tok(<s>)'"
)
MAX_COUNT = 2**31 - 1
MAX_TEXT = 4096
BLANKS = " \t\n\v\f\r"
"""Characters that may stand between the parts of a spec; other blanks of Unicode are no part of the grammar."""


@dataclass(frozen=True)
class First:
    """The first `count` tokens of the prompt."""

    count: int

    def __str__(self) -> str:
        return f"f{self.count}"


@dataclass(frozen=True)
class Last:
    """The last `count` tokens of the prompt."""

    count: int

    def __str__(self) -> str:
        return f"l{self.count}"


@dataclass(frozen=True)
class Prompt:
    """Every token of the prompt."""

    def __str__(self) -> str:
        return "prompt"


@dataclass(frozen=True)
class All:
    """Every real token: prompt, completion and generated."""

    def __str__(self) -> str:
        return "all"


@dataclass(frozen=True)
class PromptWindow:
    """Tokens `start` (inclusive) to `stop` (exclusive) of the prompt; negatives count from its end."""

    start: int | None
    stop: int | None

    def __str__(self) -> str:
        return f"p[{_bound(self.start)}:{_bound(self.stop)}]"


@dataclass(frozen=True)
class Generated:
    """Tokens `start` to `stop` of what follows the prompt (the completion in training)."""

    start: int | None = None
    stop: int | None = None

    def __str__(self) -> str:
        if self.start is None and self.stop is None:
            return "generated"
        return f"g[{_bound(self.start)}:{_bound(self.stop)}]"


@dataclass(frozen=True)
class Special:
    """Every occurrence of one special token."""

    token: str

    def __str__(self) -> str:
        return f"tok({self.token})"


Term = First | Last | Prompt | All | PromptWindow | Generated | Special


@dataclass(frozen=True)
class Positions:
    """A parsed spec.

    Args:
        terms: in the order in which they claim tokens.
        exclusions: what is left out of all of them.
    """

    terms: tuple[Term, ...]
    exclusions: tuple[Term, ...] = ()

    def __str__(self) -> str:
        return "+".join(map(str, self.terms)) + "".join(f"-{term}" for term in self.exclusions)

    @property
    def needs_prompt_end(self) -> bool:
        """Whether the tokens edited depend on where the prompt ends."""
        return any(_needs_prompt_end(term) for term in (*self.terms, *self.exclusions))

    @property
    def touches_generated(self) -> bool:
        """Whether tokens after the prompt can be edited."""
        return any(isinstance(term, (All, Generated, Special)) for term in self.terms)


def parse_positions(text: str) -> Positions:
    """Parse a position spec.

    Args:
        text: e.g. `"f7+l7"`.

    Returns:
        The spec; `str` of it is the canonical spelling.

    Raises:
        PositionSyntaxError: for anything outside the grammar; the message shows the grammar.

    >>> str(parse_positions("f3 + l5"))
    'f3+l5'
    """
    if not isinstance(text, str):
        raise _refuse(text, "it is not a string")
    if len(text) > MAX_TEXT:
        raise _refuse(text[:MAX_TEXT], f"it has {len(text)} characters; at most {MAX_TEXT} are read")
    terms: list[Term] = []
    exclusions: list[Term] = []
    taken: set[Term] = set()
    sign = "+"
    rest = text.strip(BLANKS)
    while True:
        match = _TERM.match(rest)
        if match is None:
            raise _refuse(text, f"{rest[:20]!r} is not a term" if rest else "a term is missing")
        term = _term(text, match)
        if term in taken:
            raise _refuse(text, f"{str(term)!r} stands twice, the second would claim nothing")
        taken.add(term)
        (terms if sign == "+" else exclusions).append(term)
        rest = rest[match.end() :].lstrip(BLANKS)
        if not rest:
            break
        sign, rest = rest[0], rest[1:].lstrip(BLANKS)
        if sign not in "+-":
            raise _refuse(text, f"{sign!r} stands where '+' or '-' should")
    return Positions(tuple(terms), tuple(exclusions))


_TERM = re.compile(
    r"(?P<count>[fl][0-9]+)|(?P<window>[pg]\[\s*(-?[0-9]+)?\s*:\s*(-?[0-9]+)?\s*\])"
    r"|(?P<tok>tok\((?P<token>[^()]+)\))|(?P<word>prompt|all|generated)",
    re.ASCII,
)
_WORDS: dict[str, Term] = {"prompt": Prompt(), "all": All(), "generated": Generated()}


def _term(text: str, match: re.Match[str]) -> Term:
    if (count := match["count"]) is not None:
        number = _integer(text, count[1:])
        if number < 1:
            raise _refuse(text, f"{count!r} counts no token; n must be 1 or more")
        return First(number) if count[0] == "f" else Last(number)
    if (window := match["window"]) is not None:
        start, stop = (None if not part.strip() else _integer(text, part) for part in window[2:-1].split(":"))
        if window[0] == "g" and any(bound is not None and bound < 0 for bound in (start, stop)):
            raise _refuse(text, f"{window!r} counts from the end of the generation, which is not known")
        if stop == 0 or (start is not None and stop is not None and (start < 0) == (stop < 0) and start >= stop):
            raise _refuse(text, f"{window!r} is empty")
        return PromptWindow(start, stop) if window[0] == "p" else Generated(start, stop)
    if match["tok"] is not None:
        if not (token := match["token"].strip(BLANKS)):
            raise _refuse(text, f"{match['tok']!r} names no token")
        return Special(token)
    return _WORDS[match["word"]]


def _integer(text: str, digits: str) -> int:
    digits = digits.strip()
    if len(digits.lstrip("-")) > 10 or abs(number := int(digits)) > MAX_COUNT:
        raise _refuse(text, f"{digits[:12]!r} is larger than {MAX_COUNT}")
    return number


def _needs_prompt_end(term: Term) -> bool:
    if isinstance(term, PromptWindow):
        return (term.start or 0) < 0 or term.stop is None or term.stop < 0
    return isinstance(term, (Last, Prompt, Generated))


def _bound(value: int | None) -> str:
    return "" if value is None else str(value)


def _refuse(text: object, why: str) -> PositionSyntaxError:
    shown = repr(text) if len(repr(text)) < 80 else repr(text)[:80] + "…"
    return PositionSyntaxError(f"positions={shown}: {why}", value=text, rule=GRAMMAR)
