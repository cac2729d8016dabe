"""Prompt templates: ``a {red|blue} poster of {product}``. Pure.

``{red|blue}`` is drawn once with each choice; choices may hold braces themselves and may be empty.
``{product}`` takes each value of that variable, the same one wherever it stands. A backslash makes
``{``, ``|``, ``}`` and itself plain text. The first brace changes slowest.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from worker.errors import InvalidRequest

MAX_BRACES = 64
MAX_DEPTH = 8
MAX_VARIABLE_CHARS = 60
"""Of a variable's name."""
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


@dataclass(frozen=True)
class Bounds:
    """Of what a template makes: a few letters can stand for gigabytes."""

    prompts: int
    prompt_chars: int
    total_chars: int
    """Of all prompts together."""


def expand(template: str, table: Table, bounds: Bounds) -> list[str]:
    """Every prompt that ``template`` stands for, in order.

    Raises ``InvalidRequest`` that names the place: braces that do not match, unknown or unused
    variables, more than ``bounds``. What is too much is never built.
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
    return _within(bounds, _Expansion(table, bounds.prompt_chars).of(text))


def _within(bounds: Bounds, expanded: Iterator[str]) -> list[str]:
    prompts: list[str] = []
    chars = 0
    for prompt in expanded:
        if len(prompts) == bounds.prompts:
            raise _wrong(
                f"makes more than {bounds.prompts} prompts: take away choices or values",
                reason="too_many_prompts",
                most=bounds.prompts,
            )
        chars += len(prompt)
        if chars > bounds.total_chars:
            raise _wrong(
                f"its prompts have more than {bounds.total_chars} characters together: "
                "shorten it, or send several jobs"
            )
        prompts.append(prompt)
    return prompts


class _Expansion:
    """Prompts one after the other. ``made`` is a prompt as far as it is known, and no more of it
    is made once it has more than ``most`` characters."""

    def __init__(self, table: Table, most: int) -> None:
        self._table = table
        self._most = most

    def of(self, text: _Text) -> Iterator[str]:
        return (made for made, _ in self._after("", text, {}))

    def _after(self, made: str, text: _Text, bound: _Bound) -> Iterator[tuple[str, _Bound]]:
        if not text:
            yield made, bound
            return
        for longer, with_part in self._with(made, text[0], bound):
            yield from self._after(longer, text[1:], with_part)

    def _with(
        self, made: str, part: str | _Variable | _Choice, bound: _Bound
    ) -> Iterator[tuple[str, _Bound]]:
        match part:
            case _Variable(name) if name in bound:
                yield self._joined(made, bound[name]), bound
            case _Variable(name):
                for value in self._table[name]:
                    yield self._joined(made, value), {**bound, name: value}
            case _Choice(options):
                for option in options:
                    yield from self._after(made, option, bound)
            case str():
                yield self._joined(made, part), bound

    def _joined(self, made: str, more: str) -> str:
        if len(made) + len(more) > self._most:
            raise _wrong(
                f"a prompt that it makes has more than {self._most} characters, and at most "
                f"{self._most} are read: shorten it or its values",
                reason="prompt_chars",
                most=self._most,
            )
        return made + more


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
            raise _wrong(
                "this } closes nothing; write \\} for a plain one", self._at, "brace_closes_nothing"
            )
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
            raise _wrong("this { is not closed; write \\{ for a plain one", begin, "brace_open")
        self._at += 1
        return _Choice(tuple(options)) if len(options) > 1 else self._variable(begin)

    def _variable(self, begin: int) -> _Variable:
        name = self._template[begin + 1 : self._at - 1].strip()
        if name in self._table:
            self.used.add(name)
            return _Variable(name)
        if not name.isidentifier():
            raise _wrong(
                "these braces hold neither choices, as in {red|blue}, nor a name",
                begin,
                "brace_no_name",
            )
        known = ", ".join(self._table) or "none is given"
        shown = name[:MAX_VARIABLE_CHARS]
        raise _wrong(f"there is no variable {shown!r} in variables ({known})", begin)

    def _peek(self) -> str:
        return self._template[self._at : self._at + 1]


def _wrong(
    what: str, at: int | None = None, reason: str | None = None, **numbers: int
) -> InvalidRequest:
    place = "" if at is None else f"character {at + 1}: "
    numbers |= {} if at is None else {"at": at + 1}
    details: dict[str, str | float] = {"reason": reason, **numbers} if reason else {}
    return InvalidRequest(f"template: {place}{what}.", param="template", details=details)
