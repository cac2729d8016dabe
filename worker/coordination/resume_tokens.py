"""Places in the queue, for clients to keep: a stream that is cut goes on in the place that it had.

nginx cannot replay a stream, so its client sends the request again, and that is a new request to
everybody. A place proves when the first one arrived. It is signed instead of stored, by a secret
that the workers of a cell or a cluster share: ``<arrival in ms>.<signature of a picture>.<…>``. It
is good for its caller and its pictures alone, so nobody gains by keeping it for something else.
"""

import hashlib
import hmac
import re
from collections.abc import Sequence
from dataclasses import dataclass

from worker.storage.secret import Signing
from worker.types import DrawSpec

MAX_AGE_S = 900.0
"""Longer than a stream waits and draws; the page gives up one that is silent for so long."""

_TEXT = re.compile(r"[0-9]{1,15}(\.[0-9a-f]{16})+")


@dataclass(frozen=True)
class ResumeToken:
    """Since when its holder waits (seconds since the epoch), for the pictures so signed."""

    arrived_at: float
    signatures: frozenset[str]


class ResumeTokens:
    """Gives out places and takes them back, each for one request at a time: a thousand copies of a
    request must not all pass for one that has waited."""

    def __init__(self, signing: Signing) -> None:
        self._signing = signing
        self._taken = set[str]()

    def text(self, arrived_at: float, turn: str, specs: Sequence[DrawSpec]) -> str:
        """The place of caller ``turn`` who came at ``arrived_at`` for ``specs``."""
        ms, secret = round(arrived_at * 1000), self._signing()[0]
        return ".".join([str(ms), *(_signature(secret, ms, turn, spec) for spec in specs)])

    def take(
        self, text: str, turn: str, specs: Sequence[DrawSpec], now: float
    ) -> ResumeToken | None:
        """Place ``text``, taken until it is ``free``; None where it is not one of ``turn`` for all
        of ``specs``, is too old, or is taken."""
        place = self._read(text, turn, specs)
        if place is None or not 0 <= now - place.arrived_at <= MAX_AGE_S:
            return None
        if not self._taken.isdisjoint(place.signatures):
            return None
        self._taken |= place.signatures
        return place

    def free(self, place: ResumeToken | None) -> None:
        """Whoever took ``place``, if anybody did, is answered."""
        if place is not None:
            self._taken -= place.signatures

    def _read(self, text: str, turn: str, specs: Sequence[DrawSpec]) -> ResumeToken | None:
        if not _TEXT.fullmatch(text):
            return None
        told, *signatures = text.split(".")
        for secret in self._signing():
            ours = frozenset(_signature(secret, int(told), turn, spec) for spec in specs)
            if ours.issubset(signatures):
                return ResumeToken(int(told) / 1000, ours)
        return None


def _signature(secret: bytes, ms: int, turn: str, spec: DrawSpec) -> str:
    # The first word tells it from the signature of a link, which begins with a day.
    message = f"place\n{turn}\n{ms}\n".encode()
    return hmac.digest(secret, message + spec.normalised(), hashlib.sha256).hex()[:16]
