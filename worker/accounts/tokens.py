"""Proofs that are signed instead of stored: who is signed in, and who operates the cell.

Both are derived from the secret of the keys, so a new secret ends them all. They say who and until
when, in the open, and are good for nothing without the signature.
"""

import hashlib
import hmac
import secrets
import time
from dataclasses import astuple, dataclass, fields

_OPERATOR = "zimage-operator"
OPERATOR_LIFE_S = 600.0
_PARTS_BEFORE_IDS = 3
"""Of sessions of an earlier version: good until they end, never renewed."""


@dataclass(frozen=True)
class Session:
    """Who is signed in; ``version`` is the key's at that time. Seconds since the epoch.

    ``id`` and ``started_at`` stay when it is renewed: by the one it can be ended, from the other on
    its absolute end is counted.
    """

    key_id: str
    version: int
    expires_at: int
    id: str
    started_at: int


def new_session_id() -> str:
    return secrets.token_hex(16)


def session_text(secret: bytes, session: Session) -> str:
    """The cookie's value: letters, digits, dots, dashes and underscores."""
    return _signed(secret, ".".join(str(part) for part in astuple(session)))


def read_session(secret: bytes, text: str, now: float, max_s: float) -> Session | None:
    """The session that ``text`` proves, or None where it is forged, damaged, over, or began more
    than ``max_s`` ago."""
    told = _verified(secret, text).split(".")
    if len(told) == _PARTS_BEFORE_IDS:
        # It says nothing of its beginning, so it ends when it was said to and no later.
        told += [hashlib.sha256(text.encode()).hexdigest()[:32], str(int(told[2]) - int(max_s))]
    if len(told) != len(fields(Session)):
        return None
    session = Session(told[0], int(told[1]), int(told[2]), told[3], int(told[4]))
    return session if now < min(session.expires_at, session.started_at + max_s) else None


def is_of_before_ids(text: str) -> bool:
    """Whether ``text`` is a session as it was before it had an id, if it is one at all."""
    return text.count(".") == _PARTS_BEFORE_IDS


def operator_token(secret: bytes) -> str:
    """A short-lived bearer token: whoever can read the secret may do what a key of role ops may."""
    return _signed(secret, f"{_OPERATOR}.{int(time.time() + OPERATOR_LIFE_S)}")


def is_operator(secret: bytes, text: str, now: float) -> bool:
    """Whether ``text`` is an ``operator_token`` that is still good."""
    if not text.startswith(_OPERATOR):
        return False  # spares every other token the time
    who, _, expires_at = _verified(secret, text).partition(".")
    return who == _OPERATOR and now < int(expires_at)


def _signed(secret: bytes, text: str) -> str:
    return f"{text}.{hmac.new(secret, b'token ' + text.encode(), hashlib.sha256).hexdigest()}"


def _verified(secret: bytes, text: str) -> str:
    """What was signed, or ""."""
    told, _, _ = text.rpartition(".")
    # Compared as bytes: compare_digest refuses text beyond ASCII.
    genuine = hmac.compare_digest(_signed(secret, told).encode(), text.encode())
    return told if genuine else ""
