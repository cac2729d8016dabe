"""Who may join a cluster, who has joined, and what its hosts hand to each other."""

import hmac
from dataclasses import dataclass

import sqlalchemy as sa

from worker.storage.database import clock
from worker.storage.locks import lock
from worker.storage.schema import insert_or, metadata

MAX_TRIES = 5
INVITE_LIFE_S = 600.0
_KEPT_S = 30 * 86_400.0

invites = sa.Table(
    "invites",
    metadata,
    sa.Column("id", sa.String(32), primary_key=True),
    sa.Column("host", sa.String(32), nullable=False),
    sa.Column("role", sa.String(8), nullable=False),
    sa.Column("hash", sa.LargeBinary(32), nullable=False),
    sa.Column("made_at", sa.Double, nullable=False),
    sa.Column("ends_at", sa.Double, nullable=False),
    sa.Column("tries", sa.Integer, nullable=False),
    sa.Column("used_at", sa.Double),
)
"""Good once, until ``ends_at``, for a few ``tries``: those that are left. Of the secret only the
hash is here."""

certificates = sa.Table(
    "certificates",
    metadata,
    sa.Column("serial", sa.String(40), primary_key=True),
    sa.Column("host", sa.String(32), nullable=False, index=True),
    sa.Column("role", sa.String(8), nullable=False),
    sa.Column("pem", sa.Text, nullable=False),
    sa.Column("made_at", sa.Double, nullable=False),
    sa.Column("ends_at", sa.Double, nullable=False),
    sa.Column("revoked_at", sa.Double),
)
"""Every certificate of a host or front that the authority has signed."""

cluster_documents = sa.Table(
    "cluster_documents",
    metadata,
    sa.Column("name", sa.String(64), primary_key=True),
    sa.Column("content", sa.LargeBinary, nullable=False),
    sa.Column("version", sa.BigInteger, nullable=False),
    sa.Column("at", sa.Double, nullable=False),
)
"""What every machine of the cluster keeps a copy of: the authority's certificate, the CRL, …"""


@dataclass(frozen=True)
class Invite:
    """``was_used``: by somebody who came before with the same secret."""

    id: str
    host: str
    role: str
    was_used: bool


@dataclass(frozen=True)
class Certificate:
    """One row. ``ends_at`` and ``revoked_at``: seconds since the epoch."""

    serial: str
    host: str
    role: str
    pem: str
    ends_at: float
    revoked_at: float | None = None


@dataclass(frozen=True)
class Document:
    """``version`` grows with every change."""

    name: str
    content: bytes
    version: int


def invite(connection: sa.Connection, id: str, host: str, role: str, hash: bytes) -> float:
    """Let whoever knows the secret of ``hash`` join as ``host``, for ten minutes; when that ends
    (seconds since the epoch). An invite of this host from before is good no more."""
    now = clock(connection)
    ends_at = now + INVITE_LIFE_S
    gone = (invites.c.host == host) | (invites.c.ends_at < now)
    connection.execute(invites.delete().where(gone))
    values = {"made_at": now, "ends_at": ends_at, "tries": MAX_TRIES}
    connection.execute(invites.insert().values(id=id, host=host, role=role, hash=hash, **values))
    return ends_at


def withdraw(connection: sa.Connection, id: str) -> None:
    connection.execute(invites.delete().where(invites.c.id == id))


def withdraw_of(connection: sa.Connection, host: str) -> None:
    """All invites of ``host``."""
    connection.execute(invites.delete().where(invites.c.host == host))


def use(connection: sa.Connection, id: str, hash: bytes) -> Invite | None:
    """Use up the invite; None where there is none that is good now, or the secret is wrong, which
    costs one try. Of several at once one finds it unused.

    Whoever refuses afterwards for another reason rolls back, and the invite is good as before.
    """
    row = _tried(connection, id)
    if row is None or not hmac.compare_digest(row.hash, hash):
        return None
    used_at = clock(connection) if row.used_at is None else row.used_at
    values = {"tries": invites.c.tries + 1, "used_at": used_at}
    connection.execute(invites.update().where(invites.c.id == id).values(values))
    return Invite(id, row.host, row.role, row.used_at is not None)


def _tried(connection: sa.Connection, id: str) -> "sa.Row[tuple[bytes, str, str, float]] | None":
    """One try less; others of this invite wait until the transaction ends."""
    good = (invites.c.id == id) & (invites.c.ends_at > clock(connection)) & (invites.c.tries > 0)
    one_less = invites.update().where(good).values(tries=invites.c.tries - 1)
    told = (invites.c.hash, invites.c.host, invites.c.role, invites.c.used_at)
    return connection.execute(one_less.returning(*told)).one_or_none()


def is_used(connection: sa.Connection, id: str) -> bool:
    return connection.scalar(sa.select(invites.c.used_at).where(invites.c.id == id)) is not None


def record(connection: sa.Connection, certificate: Certificate) -> None:
    """Remember what was signed. What ended a month ago is forgotten."""
    now = clock(connection)
    connection.execute(certificates.delete().where(certificates.c.ends_at < now - _KEPT_S))
    connection.execute(certificates.insert().values(**vars(certificate), made_at=now))


def of_host(connection: sa.Connection, host: str) -> list[Certificate]:
    """Those of ``host`` that are good, the latest first."""
    good = (certificates.c.revoked_at.is_(None)) & (certificates.c.ends_at > clock(connection))
    asked = sa.select(certificates).where(certificates.c.host == host, good)
    return _read(connection, asked.order_by(certificates.c.made_at.desc()))


def all_good(connection: sa.Connection) -> list[Certificate]:
    """Of all hosts, the latest first."""
    good = (certificates.c.revoked_at.is_(None)) & (certificates.c.ends_at > clock(connection))
    asked = sa.select(certificates).where(good)
    return _read(connection, asked.order_by(certificates.c.made_at.desc()))


def revoke(connection: sa.Connection, host: str) -> int:
    """Revoke all certificates of ``host``; of how many it was not known yet."""
    good = (certificates.c.host == host) & certificates.c.revoked_at.is_(None)
    ending = certificates.update().where(good).values(revoked_at=clock(connection))
    return connection.execute(ending).rowcount


def revoked(connection: sa.Connection) -> dict[int, float]:
    """Serial numbers, and when each was revoked."""
    asked = sa.select(certificates.c.serial, certificates.c.revoked_at)
    rows = connection.execute(asked.where(certificates.c.revoked_at.is_not(None)))
    return {int(serial, 16): at for serial, at in rows}


def _read(connection: sa.Connection, asked: "sa.Select[tuple[object, ...]]") -> list[Certificate]:
    return [
        Certificate(row.serial, row.host, row.role, row.pem, row.ends_at, row.revoked_at)
        for row in connection.execute(asked)
    ]


def lock_cluster(connection: sa.Connection) -> None:
    """Nobody else changes what the cluster trusts until the transaction ends."""
    lock(connection, "cluster")


def put(connection: sa.Connection, name: str, content: bytes, version: int) -> None:
    """Store a document; ``version``: above that of its predecessor."""
    values = {"content": content, "version": version, "at": clock(connection)}
    fresh = insert_or(cluster_documents).values(name=name, **values)
    connection.execute(fresh.on_conflict_do_update(index_elements=["name"], set_=values))


def document(connection: sa.Connection, name: str) -> Document | None:
    return next(iter(documents(connection, name)), None)


def documents(connection: sa.Connection, prefix: str) -> list[Document]:
    """Those whose names begin so."""
    table = cluster_documents
    found = sa.select(table).where(table.c.name.startswith(prefix, autoescape=True))
    rows = connection.execute(found.order_by(table.c.name))
    return [Document(row.name, row.content, row.version) for row in rows]


def forget(connection: sa.Connection, name: str) -> None:
    connection.execute(cluster_documents.delete().where(cluster_documents.c.name == name))
