"""The worker's own copy of all keys: a request is checked against memory, never the database.

It is renewed when the database says that something changed, and good for ``cache_s`` without the
database.
"""

import asyncio
import hmac
import time
from pathlib import Path

from worker import log
from worker.accounts import tokens
from worker.errors import StoreAway
from worker.storage import keys
from worker.storage.database import Database
from worker.storage.keys import Key
from worker.storage.secret import Signing

POLL_S = 0.5
"""A change is known everywhere within this and one read."""

OPERATOR = Key("operator", "operator", b"", "", role="ops")
"""Who holds a token of ``tokens.operator_token``."""

_NO_HASH = bytes(32)


class KeyRing:
    """``secret_path`` is made by ``zimage``, never by a worker: a new one would fit no key.
    ``signing``: what a cluster signs with, in place of that secret."""

    def __init__(
        self,
        database: Database,
        secret_path: Path,
        cache_s: float,
        signing: Signing | None = None,
    ) -> None:
        self._database = database
        self._secret_path = secret_path
        self._cache_s = cache_s
        self._secret = b""
        self._signing = signing or (lambda: (self._secret,))
        self._version: int | None = None
        self._by_hash: dict[bytes, Key] = {}
        self._by_id: dict[str, Key] = {}
        self._ended_sessions: frozenset[str] = frozenset()
        self._read_at: float | None = None  # monotonic: when the copy was last known to be right
        self._away = ""

    async def follow(self) -> None:
        """Keep the copy right, for ever."""
        while True:
            await self.refresh()
            await asyncio.sleep(POLL_S)

    async def refresh(self) -> None:
        """Read the keys if they changed. Without the database the copy stays as it is."""
        try:
            if await self._database.read_keys(keys.version) != self._version:
                await self._read()
        except (StoreAway, OSError, keys.SecretLost) as error:
            self._tell(_why(error))
            return
        self._read_at = time.monotonic()
        self._tell("")

    async def _read(self) -> None:
        found = await self._database.read_keys(keys.snapshot)
        secret = await asyncio.to_thread(self._secret_path.read_bytes)
        if found.keys and found.secret_check != keys.check_of(secret):
            raise keys.SecretLost
        self._secret = secret
        self._by_hash = {key.hash: key for key in found.keys}
        self._by_id = {key.id: key for key in found.keys}
        self._ended_sessions = found.ended_sessions
        self._version = found.version
        log.event("keys read", keys=len(found.keys))

    def _tell(self, away: str) -> None:
        if away and away != self._away:
            log.event("keys cannot be read; the copy in memory goes on", why=away)
        self._away = away

    @property
    def age_s(self) -> float:
        """Seconds since the copy was known to be right; infinite where there is none."""
        return float("inf") if self._read_at is None else time.monotonic() - self._read_at

    def require(self) -> None:
        """Raise ``StoreAway`` where there is no copy, or one that is older than ``cache_s``."""
        if self.age_s > self._cache_s:
            raise StoreAway("Keys cannot be checked now: try again, or tell the operators.")

    def require_current(self) -> None:
        """Raise ``StoreAway`` unless the database confirmed the copy when last asked."""
        self.require()
        if self._away:
            raise StoreAway("Nobody can sign in now: the database is away. Try again.")

    @property
    def secrets(self) -> tuple[bytes, ...]:
        """What sessions are signed with: the first signs, and all of them verify."""
        self.require()
        return self._signing()

    def holder(self, token: str) -> Key | None:
        """Whose secret key ``token`` is. The key may be disabled or expired."""
        self.require()
        if any(tokens.is_operator(secret, token, time.time()) for secret in self._signing()):
            return OPERATOR
        hashed = keys.hash_of(self._secret, token)
        key = self._by_hash.get(hashed)
        # The hash is keyed, so where a look-up stops tells nothing; this makes it plain.
        genuine = hmac.compare_digest(_NO_HASH if key is None else key.hash, hashed)
        return key if genuine else None

    def known(self, id: str) -> Key | None:
        """The key with this id, as far as it was ever read: whose limits a job has."""
        return self._by_id.get(id)

    def named(self, id: str) -> Key | None:
        """The key with this id."""
        self.require()
        return self._by_id.get(id)

    def has_ended(self, session_id: str) -> bool:
        """Whether this session was ended before it was over."""
        return session_id in self._ended_sessions


def _why(error: Exception) -> str:
    if isinstance(error, keys.SecretLost):
        return "the secret of the keys is not the one that they were stored with"
    return str(error)
