"""Prompt templates: ``a {red|blue} poster of {product}``. Pure.

``{red|blue}`` is drawn once with each choice; choices may hold braces themselves and may be empty.
``{product}`` takes each value of that variable, the same one wherever it stands. A backslash makes
``{``, ``|``, ``}`` and itself plain text. The first brace changes slowest.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice

from worker.errors import InvalidRequest

MAX_BRACES = 64
MAX_DEPTH = 8
_SPECIAL = "{|}\\"

Table = Mapping[str, Sequence[str]]
"""The values of each variable."""


@dataclass(frozen=True)
class _Variable:
    name: str


@dataclass(frozen=True)
class _Choice:
    options: tuple["_Text", ...]


_Text = tuple[str | _Variable | _Choice, ...]
_Bound = Mapping[str, str]


def expand(template: str, table: Table, limit: int) -> list[str]:
    """Every prompt that ``template`` stands for, in order.

    Raises ``InvalidRequest`` that names the place: braces that do not match, unknown or unused
    variables, more than ``limit`` prompts.
    """
    parser = _Parser(template, table)
    text = parser.parse()
    for name in table:
        if name not in parser.used:
            raise InvalidRequest(
                f"variables.{name}: the template does not use it: write {{{name}}} where it "
                "belongs, or leave it out.",
                param=f"variables.{name}",
            )
    prompts = [prompt for prompt, _ in islice(_expanded(text, table, {}), limit + 1)]
    if len(prompts) > limit:
        raise _wrong(f"makes more than {limit} prompts: take away choices or values")
    return prompts


def _expanded(text: _Text, table: Table, bound: _Bound) -> Iterator[tuple[str, _Bound]]:
    if not text:
        yield "", bound
        return
    for head, with_head in _options(text[0], table, bound):
        for tail, with_tail in _expanded(text[1:], table, with_head):
            yield head + tail, with_tail


def _options(
    part: str | _Variable | _Choice, table: Table, bound: _Bound
) -> Iterator[tuple[str, _Bound]]:
    match part:
        case _Variable(name) if name in bound:
            yield bound[name], bound
        case _Variable(name):
            for value in table[name]:
                yield value, {**bound, name: value}
        case _Choice(options):
            for option in options:
                yield from _expanded(option, table, bound)
        case str():
            yield part, bound


class _Parser:
    """One pass from left to right; ``used`` collects the variables."""

    def __init__(self, template: str, table: Table) -> None:
        self._template = template
        self._table = table
        self._at = 0
        self._braces = 0
        self.used: set[str] = set()

    def parse(self) -> _Text:
        text = self._text(depth=0)
        if self._at < len(self._template):
            raise _wrong("this } closes nothing; write \\} for a plain one", self._at)
        return text

    def _text(self, depth: int) -> _Text:
        """Up to the end, or within braces to the next | or }."""
        parts: list[str | _Variable | _Choice] = []
        plain: list[str] = []
        while (char := self._peek()) and not self._ends(char, depth):
            if char == "{":
                parts += ["".join(plain), self._brace(depth + 1)]
                plain.clear()
            else:
                plain.append(self._plain(char))
        return tuple(part for part in (*parts, "".join(plain)) if part)

    def _ends(self, char: str, depth: int) -> bool:
        return char == "}" or (char == "|" and depth > 0)

    def _plain(self, char: str) -> str:
        self._at += 1
        if char == "\\" and (following := self._peek()) and following in _SPECIAL:
            self._at += 1
            return following
        return char

    def _brace(self, depth: int) -> _Variable | _Choice:
        begin = self._at
        self._braces += 1
        if self._braces > MAX_BRACES:
            raise _wrong(f"has more than {MAX_BRACES} braces: make it shorter", begin)
        if depth > MAX_DEPTH:
            raise _wrong(f"braces stand more than {MAX_DEPTH} deep", begin)
        options: list[_Text] = []
        while not options or self._peek() == "|":
            self._at += 1  # the { or the |
            options.append(self._text(depth))
        if self._peek() != "}":
            raise _wrong("this { is not closed; write \\{ for a plain one", begin)
        self._at += 1
        return _Choice(tuple(options)) if len(options) > 1 else self._variable(begin)

    def _variable(self, begin: int) -> _Variable:
        name = self._template[begin + 1 : self._at - 1].strip()
        if name in self._table:
            self.used.add(name)
            return _Variable(name)
        if not name.isidentifier():
            raise _wrong("these braces hold neither choices, as in {red|blue}, nor a name", begin)
        known = ", ".join(self._table) or "none is given"
        raise _wrong(f"there is no variable {name[:40]!r} in variables ({known})", begin)

    def _peek(self) -> str:
        return self._template[self._at : self._at + 1]


def _wrong(what: str, at: int | None = None) -> InvalidRequest:
    place = "" if at is None else f"character {at + 1}: "
    return InvalidRequest(f"template: {place}{what}.", param="template")
