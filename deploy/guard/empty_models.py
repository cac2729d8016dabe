"""Of several models, those that nobody draws with while others are drawn."""

from collections.abc import Sequence
from typing import Protocol

from deploy.guard.journal import Journal


class _Gate(Protocol):
    @property
    def is_open(self) -> bool: ...


class _Watched(Protocol):
    @property
    def model(self) -> str: ...

    @property
    def gate(self) -> _Gate: ...


class EmptyModels:
    """Alarms of each that had a worker in the pool and has had none for ``patience_s``."""

    def __init__(self, journal: Journal, patience_s: float) -> None:
        self._journal = journal
        self._patience_s = patience_s
        self._open_at: dict[str, float] = {}
        self._empty: list[str] = []

    def look(self, watches: Sequence[_Watched], now: float) -> None:
        """``now``: monotonic seconds. Where nobody draws at all, that is told alone."""
        drawn = {watch.model: False for watch in watches}
        for watch in watches:
            if watch.gate.is_open:
                drawn[watch.model] = True
                self._open_at[watch.model] = now
        late = now - self._patience_s
        empty = [model for model in drawn if self._open_at.get(model, now) < late]
        if not any(drawn.values()):
            empty = []
        if empty != self._empty:
            self._journal.clear("model_empty")  # so that it names those of now
        self._empty = empty
        names = " and ".join(f'"{model}"' for model in empty)
        text = f"no worker with {names} has been in for {self._patience_s:g} s"
        self._journal.set("model_empty", bool(empty), text)
