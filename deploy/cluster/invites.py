"""A token that lets one machine join: where the door is, how to know it, and a secret for once."""

import base64
import hashlib
import json
import secrets
from dataclasses import dataclass, field

from deploy.errors import CellError

_BEGIN = "zimage-join."
_MAX_CHARACTERS = 2000
_SECRET_BYTES = 32


class TokenError(CellError):
    """This is no token."""


@dataclass(frozen=True)
class Token:
    """``door``: host and port. ``pin``: SHA-256 of the certificate that the door shows, by which
    the machine knows that it speaks to the one that invited it."""

    door: str
    pin: bytes
    invite: str
    secret: bytes = field(repr=False)
    host: str
    role: str

    @classmethod
    def new(cls, door: str, pin: bytes, host: str, role: str) -> "Token":
        secret = secrets.token_bytes(_SECRET_BYTES)
        return cls(door, pin, secrets.token_hex(16), secret, host, role)

    @property
    def text(self) -> str:
        """One line of letters, digits, dots, dashes and underscores."""
        told = [self.door, _base64(self.pin), self.invite, _base64(self.secret)]
        return _BEGIN + _base64(json.dumps([*told, self.host, self.role]).encode())

    @classmethod
    def of(cls, text: str) -> "Token":
        """``TokenError``: this is none."""
        try:
            if not text.startswith(_BEGIN) or len(text) > _MAX_CHARACTERS:
                raise ValueError
            parts = json.loads(_bytes(text.removeprefix(_BEGIN)))
            door, pin, invite, secret, host, role = map(str, parts)
            found = cls(door, _bytes(pin), invite, _bytes(secret), host, role)
        except (ValueError, TypeError):
            raise TokenError(
                f"this is no token of zimage hosts invite, which begins with {_BEGIN}; give all of "
                "it, on one line, on standard input"
            ) from None
        return found


def hash_of(secret: bytes) -> bytes:
    """What is stored of it. Quick on purpose: there is nothing to guess in 256 bits."""
    return hashlib.sha256(b"zimage invite " + secret).digest()


def _base64(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).decode().rstrip("=")


def _bytes(text: str) -> bytes:
    return base64.b64decode(text + "=" * (-len(text) % 4), altchars=b"-_", validate=True)
