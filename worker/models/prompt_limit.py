"""How much of a prompt the model reads. What is longer is refused: it would be cut without a word.

Counts are of the prompt alone; what the model puts around it is taken off the limit.
"""

import functools
import itertools
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import NoReturn

from worker.errors import InvalidRequest

CODE = "prompt_too_long"
_TOGETHER = 64
_KEPT = 256  # counts of the latest texts: a request is checked when it comes and when it is drawn


class PromptLimit:
    """``count`` tells the tokens of each of some texts, from any thread."""

    def __init__(self, max_tokens: int, count: Callable[[Sequence[str]], list[int]]) -> None:
        self.max_tokens = max_tokens
        self._count = count
        self._of_one = functools.lru_cache(maxsize=_KEPT)(lambda text: count([text])[0])

    def tokens(self, text: str) -> int:
        return self._of_one(text)

    def too_long(self, texts: Iterable[str]) -> Iterator[tuple[int, "Complaint"]]:
        """Place and complaint of each that is over the limit; many texts are counted together."""
        numbered = enumerate(texts)
        while some := list(itertools.islice(numbered, _TOGETHER)):
            counts = self._count([text for _, text in some])
            for (place, _), tokens in zip(some, counts, strict=True):
                if tokens > self.max_tokens:
                    yield place, self._complaint(tokens)

    def check(self, param: str, text: str) -> None:
        """Raise ``InvalidRequest`` where the model would not read ``text`` to its end."""
        tokens = self.tokens(text)
        if tokens > self.max_tokens:
            refuse(param, self._complaint(tokens))

    def _complaint(self, tokens: int) -> "Complaint":
        return Complaint(tokens, self.max_tokens)


@dataclass(frozen=True)
class Complaint:
    """A text has ``tokens``, and the model reads at most ``most``."""

    tokens: int
    most: int

    @property
    def percent(self) -> int:
        return math.ceil(100 * (self.tokens - self.most) / self.tokens)

    def __str__(self) -> str:
        return (
            f"{self.tokens} tokens; this model reads at most {self.most}: "
            f"shorten it by about {self.percent} %"
        )


def refuse(param: str, complaint: Complaint, where: str = "") -> NoReturn:
    """``where``: what of ``param`` it is."""
    details: dict[str, str | float] = {
        "reason": "too_many_tokens",
        "tokens": complaint.tokens,
        "most": complaint.most,
        "percent": complaint.percent,
    }
    message = f"{param}: {where}{complaint}."
    raise InvalidRequest(message, param=param, code=CODE, details=details)
