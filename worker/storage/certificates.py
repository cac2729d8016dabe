"""Who may join a cluster, who has joined, and what its hosts hand to each other."""

import sqlalchemy as sa

from worker.storage.schema import metadata

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
"""Good once, until ``ends_at``, for a few ``tries``. Of the secret only the hash is here."""

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
