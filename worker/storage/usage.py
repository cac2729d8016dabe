"""The usage ledger: what each key used, by day, model and size."""

import sqlalchemy as sa

from worker.storage.schema import metadata

entries = sa.Table(
    "usage_entries",
    metadata,
    sa.Column("request_id", sa.String(64), primary_key=True),
    sa.Column("image_index", sa.Integer, primary_key=True, autoincrement=False),
    sa.Column("at", sa.Double, nullable=False, index=True),
    sa.Column("outcome", sa.String(8), nullable=False),
)

days = sa.Table(
    "usage_days",
    metadata,
    sa.Column("day", sa.String(10), primary_key=True),
    sa.Column("owner", sa.String(64), primary_key=True),
    sa.Column("model", sa.String(200), primary_key=True),
    sa.Column("width", sa.Integer, primary_key=True, autoincrement=False),
    sa.Column("height", sa.Integer, primary_key=True, autoincrement=False),
    sa.Column("requests", sa.BigInteger, nullable=False),
    sa.Column("images", sa.BigInteger, nullable=False),
    sa.Column("megapixel_steps", sa.Double, nullable=False),
    sa.Column("gpu_seconds", sa.Double, nullable=False),
    sa.Column("queue_seconds", sa.Double, nullable=False),
    sa.Column("refusals", sa.BigInteger, nullable=False),
    sa.Column("failures", sa.BigInteger, nullable=False),
    sa.Index(None, "owner", "day"),
)
