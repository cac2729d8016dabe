"""Rows of pictures that were sent to be drawn from: each is kept for a while. Their files lie
where those of the gallery do (``images.py``).

The functions are work for ``Database.run`` and ``Database.read``. A row is written only after its
file is safe on the disk.
"""

import time
from collections.abc import Collection
from dataclasses import dataclass

import sqlalchemy as sa

from worker.errors import LimitReached
from worker.storage.images import day
from worker.storage.jobs import pictures_in_use
from worker.storage.locks import lock
from worker.storage.schema import metadata

KEEP_S = 86_400.0
MAX_UPLOADS = 1000
"""Of one owner, at a time."""
ID = r"upload_[0-9a-f]{32}"
_AT_ONCE = 500

uploads = sa.Table(
    "uploads",
    metadata,
    sa.Column("id", sa.String(64), primary_key=True),
    sa.Column("owner", sa.String(64), nullable=False),
    sa.Column("created_at", sa.Double, nullable=False),
    sa.Column("expires_at", sa.Double, nullable=False, index=True),
    sa.Column("bytes", sa.BigInteger, nullable=False),
    sa.Column("width", sa.Integer, nullable=False),
    sa.Column("height", sa.Integer, nullable=False),
    sa.Column("transparent", sa.Boolean, nullable=False),
    sa.Column("sha256", sa.String(64), nullable=False),
    sa.Index("ix_uploads_owner_created_at", "owner", "created_at"),
)


@dataclass(frozen=True)
class Upload:
    """One picture. Times in seconds since the epoch: ``created_at`` is its request's arrival, so
    that a replay stores the same row and file. ``bytes``: of the file that is kept, a PNG.
    ``transparent``: in parts. ``sha256``: in hex, of the file that was sent."""

    id: str
    owner: str
    created_at: float
    expires_at: float
    bytes: int
    width: int
    height: int
    transparent: bool
    sha256: str

    @property
    def name(self) -> str:
        """Of its file, for ``Images``."""
        return f"{day(self.created_at)}/{self.id}.png"


def add(connection: sa.Connection, upload: Upload, most_bytes: int) -> Upload:
    """Add the row; one that a replay has added stays as it is. Raises ``LimitReached``."""
    lock(connection, f"uploads of {upload.owner}")
    known = find(connection, upload.id)
    if known is not None:
        return known
    require_share(connection, upload.owner, most_bytes, more=upload.bytes)
    connection.execute(uploads.insert().values(**vars(upload)))
    return upload


def require_share(connection: sa.Connection, owner: str, most_bytes: int, *, more: int = 1) -> None:
    """Raise ``LimitReached`` where one more, of ``more`` bytes, would be over the owner's share."""
    held, first = sa.func.sum(uploads.c.bytes), sa.func.min(uploads.c.expires_at)
    sums = sa.select(sa.func.count(), held, first).where(uploads.c.owner == owner)
    count, bytes, first_ends = connection.execute(sums).one()
    if count < MAX_UPLOADS and int(bytes or 0) + more <= most_bytes:
        return
    when = f", or wait until they expire, the first at {_utc(first_ends)}" if count else ""
    raise LimitReached(
        f"You have {count} uploads of {int(bytes or 0)} bytes, this one has {more} and you may "
        f"have {MAX_UPLOADS} of {most_bytes} bytes: delete some (DELETE /v1/uploads/ID){when}.",
        retry_after_s=120.0,
    )


def _utc(at: float) -> str:
    return time.strftime("%H:%M UTC", time.gmtime(at))


def find(connection: sa.Connection, id: str) -> Upload | None:
    """The upload called ``id``, whosever it is."""
    row = connection.execute(sa.select(uploads).where(uploads.c.id == id)).one_or_none()
    return None if row is None else Upload(**row._mapping)


def of_owner(connection: sa.Connection, owner: str) -> list[Upload]:
    """All, newest first."""
    query = sa.select(uploads).where(uploads.c.owner == owner)
    query = query.order_by(uploads.c.created_at.desc(), uploads.c.id)
    return [Upload(**row._mapping) for row in connection.execute(query)]


def expired(connection: sa.Connection, now: float) -> list[Upload]:
    """Some whose time is over. What an open job draws from stays until it is over."""
    free = uploads.c.id.not_in(pictures_in_use())
    query = sa.select(uploads).where(uploads.c.expires_at < now, free)
    query = query.order_by(uploads.c.expires_at).limit(_AT_ONCE)
    return [Upload(**row._mapping) for row in connection.execute(query)]


def delete(connection: sa.Connection, ids: Collection[str]) -> None:
    """Forget uploads; their files go after the commit."""
    connection.execute(uploads.delete().where(uploads.c.id.in_(ids)))


def known(connection: sa.Connection, ids: Collection[str]) -> set[str]:
    """Which of ``ids`` are uploads."""
    return set(connection.scalars(sa.select(uploads.c.id).where(uploads.c.id.in_(ids))))
