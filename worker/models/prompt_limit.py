"""How much of a prompt the model reads. What is longer is refused: it would be cut without a word.

Counts are of the prompt alone; what the model puts around it is taken off the limit.
"""

import functools
import itertools
import math
from collections.abc import Callable, Iterable, Iterator, Sequence

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

    def too_long(self, texts: Iterable[str]) -> Iterator[tuple[int, str]]:
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

    def _complaint(self, tokens: int) -> str:
        over = math.ceil(100 * (tokens - self.max_tokens) / tokens)
        return (
            f"{tokens} tokens; this model reads at most {self.max_tokens}: "
            f"shorten it by about {over} %"
        )


def refuse(param: str, complaint: str) -> None:
    raise InvalidRequest(f"{param}: {complaint}.", param=param, code=CODE)
