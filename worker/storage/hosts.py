"""The hosts of a cluster as rows: what each says of itself, and what operators want of it."""

import sqlalchemy as sa

from worker.storage.schema import metadata

hosts = sa.Table(
    "hosts",
    metadata,
    sa.Column("id", sa.String(32), primary_key=True),
    sa.Column("address", sa.String(260), nullable=False),
    sa.Column("role", sa.String(8), nullable=False),
    sa.Column("version", sa.String(64), nullable=False),
    sa.Column("models", sa.Text, nullable=False),
    sa.Column("workers", sa.Integer, nullable=False),
    sa.Column("ready", sa.Integer, nullable=False),
    sa.Column("queued", sa.Integer, nullable=False),
    sa.Column("running", sa.Integer, nullable=False),
    sa.Column("wait_s", sa.Double, nullable=False),
    sa.Column("skew_s", sa.Double, nullable=False),
    sa.Column("state", sa.String(16), nullable=False),
    sa.Column("facts", sa.Text, nullable=False),
    sa.Column("joined_at", sa.Double, nullable=False),
    sa.Column("at", sa.Double, nullable=False),
    sa.Column("wanted", sa.String(16), nullable=False),
    sa.Column("wanted_reason", sa.String(200), nullable=False),
    sa.Column("lost_at", sa.Double),
)
"""``workers`` are the configured ones, ``ready`` those in the pool. ``models`` and ``facts`` are
JSON; ``facts`` has what is for people alone. ``state`` is one of the six of a worker, of the host
as a whole. ``wanted`` is "in", "out" or "removed". ``at``: when the host wrote, by the database's
clock, as all times here; ``skew_s``: its own clock less that one. ``lost_at``: since when no front
has heard of it."""
