"""Proofs that are signed instead of stored: who is signed in, and who operates the cell.

Both are derived from the secret of the keys, so a new secret ends them all. They say who and until
when, in the open, and are good for nothing without the signature.
"""

import hashlib
import hmac
import time
from dataclasses import dataclass

_OPERATOR = "zimage-operator"
OPERATOR_LIFE_S = 600.0


@dataclass(frozen=True)
class Session:
    """Who is signed in. ``version`` is the key's at that time; seconds since the epoch."""

    key_id: str
    version: int
    expires_at: int


def session_text(secret: bytes, session: Session) -> str:
    """The cookie's value: letters, digits, dots, dashes and underscores."""
    return _signed(secret, f"{session.key_id}.{session.version}.{session.expires_at}")


def read_session(secret: bytes, text: str, now: float) -> Session | None:
    """The session that ``text`` proves, or None where it is forged, damaged or over."""
    told = _verified(secret, text).split(".")
    if len(told) != 3:
        return None
    session = Session(told[0], int(told[1]), int(told[2]))
    return session if session.expires_at > now else None


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
