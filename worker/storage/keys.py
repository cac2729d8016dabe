"""API keys as rows. Of the key itself only a keyed hash is stored, and its last letters as a hint.

The functions are work for ``Database.run`` and ``Database.read``. Each change gives the one row of
``keys_state`` a new random ``version``: whoever remembers the last one sees that something changed,
an older database that was restored included.
"""

import hashlib
import hmac
import secrets
import time
from dataclasses import asdict, dataclass
from typing import Any, Literal

import sqlalchemy as sa

from worker.storage.locks import lock
from worker.storage.schema import insert_or, metadata

PREFIX = "zimage_"
"""Every key begins so: tools that look for leaked secrets can tell it."""

_ID_PREFIX = "key_"

EVERYONE = "everyone"
"""Owner of all pictures and jobs of a cell without keys."""

Role = Literal["user", "ops"]
KeyPriority = Literal["interactive", "batch"]

keys = sa.Table(
    "keys",
    metadata,
    sa.Column("id", sa.String(64), primary_key=True),
    sa.Column("name", sa.String(64), nullable=False, unique=True),
    sa.Column("hash", sa.LargeBinary(32), nullable=False),
    sa.Column("hint", sa.String(8), nullable=False),
    sa.Column("role", sa.String(8), nullable=False),
    sa.Column("priority", sa.String(16), nullable=False),
    sa.Column("images_per_day", sa.Integer),
    sa.Column("concurrency", sa.Integer),
    sa.Column("max_pixels", sa.Integer),
    sa.Column("max_steps", sa.Integer),
    sa.Column("loras", sa.Text),
    sa.Column("expires_at", sa.Double),
    sa.Column("disabled", sa.Boolean, nullable=False),
    sa.Column("version", sa.Integer, nullable=False),
    sa.Column("created_at", sa.Double, nullable=False),
)

ended_sessions = sa.Table(
    "ended_sessions",
    metadata,
    sa.Column("id", sa.String(32), primary_key=True),
    sa.Column("key_id", sa.String(64), nullable=False, index=True),
    sa.Column("ends_at", sa.Double, nullable=False),
)
"""Who signed out before the session was over. ``ends_at``: when it would have been."""

MAX_ENDED_SESSIONS = 1000
"""Of one key. Whoever signs out more often than that ends all its sessions instead."""

keys_state = sa.Table(
    "keys_state",
    metadata,
    sa.Column("id", sa.Integer, primary_key=True),
    sa.Column("version", sa.BigInteger, nullable=False),
    sa.Column("secret_check", sa.LargeBinary(32)),
)


@dataclass(frozen=True)
class Key:
    """One key without its secret. Limits: None is no limit of its own. ``loras``: the adapters
    that it may use, with commas between.

    ``version`` counts what ends the sign-ins of before (a new secret, switching off).
    ``expires_at`` and ``created_at`` are seconds since the epoch.
    """

    id: str
    name: str
    hash: bytes
    hint: str
    role: Role = "user"
    priority: KeyPriority = "interactive"
    images_per_day: int | None = None
    concurrency: int | None = None
    max_pixels: int | None = None
    max_steps: int | None = None
    loras: str | None = None
    expires_at: float | None = None
    disabled: bool = False
    version: int = 1
    created_at: float = 0.0

    def why_not(self, now: float) -> str | None:
        """``disabled``, ``expired``, or None while it is good."""
        if self.disabled:
            return "disabled"
        return "expired" if self.expires_at is not None and self.expires_at <= now else None


@dataclass(frozen=True)
class Snapshot:
    """All keys at once. ``secret_check`` is ``check_of`` the secret that their hashes need."""

    version: int
    secret_check: bytes | None
    keys: tuple[Key, ...]
    ended_sessions: frozenset[str] = frozenset()


class SecretLost(Exception):
    """There are keys, and the secret of their hashes is missing or another one."""


def new_token() -> str:
    """A fresh key as its owner sees it, once: 256 random bits."""
    return PREFIX + secrets.token_urlsafe(32)


def hash_of(secret: bytes, token: str) -> bytes:
    """What is stored of ``token``. Quick on purpose: there is nothing to guess in 256 bits."""
    return hmac.digest(secret, token.encode(), hashlib.sha256)


def check_of(secret: bytes) -> bytes:
    """Tells whether a secret is the one of the stored hashes, without telling the secret."""
    return hmac.digest(secret, b"zimage keys", hashlib.sha256)


def new_key(secret: bytes, name: str, token: str = "", **limits: Any) -> tuple[Key, str]:
    """A key called ``name`` that is not stored yet, and its token: ``token`` or a fresh one."""
    token = token or new_token()
    id = f"{_ID_PREFIX}{secrets.token_hex(8)}"
    key = Key(id, name, hash_of(secret, token), token[-4:], created_at=time.time(), **limits)
    return key, token


def version(connection: sa.Connection) -> int:
    """Changes with every change of a key."""
    return connection.scalar(sa.select(keys_state.c.version)) or 0


def snapshot(connection: sa.Connection) -> Snapshot:
    state = connection.execute(sa.select(keys_state.c.version, keys_state.c.secret_check)).one()
    rows = connection.execute(sa.select(keys).order_by(keys.c.name)).mappings()
    ended = frozenset(connection.scalars(sa.select(ended_sessions.c.id)))
    return Snapshot(state.version, state.secret_check, tuple(Key(**row) for row in rows), ended)


def require_secret(connection: sa.Connection, secret: bytes | None) -> None:
    """Raise ``SecretLost`` unless ``secret`` is that of the stored keys. Without keys any is."""
    found = snapshot(connection)
    if found.keys and (secret is None or found.secret_check != check_of(secret)):
        raise SecretLost


def insert(connection: sa.Connection, key: Key, secret: bytes) -> None:
    """Store a new key. Raises ``IntegrityError`` where its name is taken."""
    lock(connection, "keys")  # the first ones of two hosts must have one secret
    require_secret(connection, secret)
    connection.execute(keys.insert().values(asdict(key)))
    _changed(connection, secret_check=check_of(secret))


def change(connection: sa.Connection, id: str, *, signs_out: bool = False, **values: Any) -> None:
    """Set columns of one key; ``signs_out``: and end all of its sessions."""
    if signs_out:  # counted here: whoever read the key before may have missed another sign-out
        values["version"] = keys.c.version + 1
    connection.execute(keys.update().where(keys.c.id == id).values(values))
    _changed(connection)


def delete(connection: sa.Connection, id: str) -> None:
    """Forget a key. What it used stays in the ledger, under its id."""
    connection.execute(keys.delete().where(keys.c.id == id))
    connection.execute(ended_sessions.delete().where(ended_sessions.c.key_id == id))
    _changed(connection)


def end_session(
    connection: sa.Connection, id: str, key_id: str, ends_at: float, now: float
) -> None:
    """End one session of a key, which would be over at ``ends_at`` (seconds since the epoch)."""
    ended = ended_sessions
    connection.execute(ended.delete().where(ended.c.ends_at <= now))
    ending = insert_or(ended).values(id=id, key_id=key_id, ends_at=ends_at)
    if not connection.execute(ending.on_conflict_do_nothing()).rowcount:
        return
    of_key = sa.select(sa.func.count()).select_from(ended).where(ended.c.key_id == key_id)
    if (connection.scalar(of_key) or 0) > MAX_ENDED_SESSIONS:
        end_sessions(connection, key_id)
    else:
        _changed(connection)


def end_sessions(connection: sa.Connection, key_id: str) -> None:
    """End all sessions of a key that began until now."""
    connection.execute(keys.update().where(keys.c.id == key_id).values(version=keys.c.version + 1))
    connection.execute(ended_sessions.delete().where(ended_sessions.c.key_id == key_id))
    _changed(connection)


def find(connection: sa.Connection, name: str, *, lock: bool = False) -> Key | None:
    """By name or id. With ``lock``, nobody changes it until the transaction ends."""
    wanted = sa.select(keys).where(sa.or_(keys.c.name == name, keys.c.id == name))
    wanted = wanted.with_for_update(read=True) if lock else wanted
    row = connection.execute(wanted).mappings().first()
    return None if row is None else Key(**row)


def why_not(owner: sa.ColumnElement[str], now: float) -> sa.ColumnElement[str]:
    """``Key.why_not`` in SQL: why the key whose id is ``owner`` is not good, ``deleted`` where it
    is gone; empty while it is good, and for owners that are no keys."""
    found = sa.case((keys.c.disabled, "disabled"), (keys.c.expires_at <= now, "expired"), else_="")
    gone = sa.case((owner.startswith(_ID_PREFIX, autoescape=True), "deleted"), else_="")
    stored = sa.select(found).where(keys.c.id == owner).scalar_subquery()
    return sa.func.coalesce(stored, gone)


def _changed(connection: sa.Connection, **values: Any) -> None:
    connection.execute(keys_state.update().values(version=secrets.randbits(62), **values))
