"""API keys and the usage ledger."""

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None


def upgrade() -> None:
    op.create_table(
        "keys",
        sa.Column("id", sa.String(64), nullable=False),
        sa.Column("name", sa.String(64), nullable=False),
        sa.Column("hash", sa.LargeBinary(32), nullable=False),
        sa.Column("hint", sa.String(8), nullable=False),
        sa.Column("role", sa.String(8), nullable=False),
        sa.Column("priority", sa.String(16), nullable=False),
        sa.Column("images_per_day", sa.Integer),
        sa.Column("concurrency", sa.Integer),
        sa.Column("max_pixels", sa.Integer),
        sa.Column("max_steps", sa.Integer),
        sa.Column("expires_at", sa.Double),
        sa.Column("disabled", sa.Boolean, nullable=False),
        sa.Column("version", sa.Integer, nullable=False),
        sa.Column("created_at", sa.Double, nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_keys"),
        sa.UniqueConstraint("name", name="uq_keys_name"),
    )
    state = op.create_table(
        "keys_state",
        sa.Column("id", sa.Integer, nullable=False),
        sa.Column("version", sa.BigInteger, nullable=False),
        sa.Column("secret_check", sa.LargeBinary(32)),
        sa.PrimaryKeyConstraint("id", name="pk_keys_state"),
    )
    op.bulk_insert(state, [{"id": 1, "version": 0, "secret_check": None}])
    op.create_table(
        "usage_entries",
        sa.Column("request_id", sa.String(64), nullable=False),
        sa.Column("image_index", sa.Integer, nullable=False),
        sa.Column("at", sa.Double, nullable=False),
        sa.Column("outcome", sa.String(8), nullable=False),
        sa.PrimaryKeyConstraint("request_id", "image_index", name="pk_usage_entries"),
    )
    op.create_index("ix_usage_entries_at", "usage_entries", ["at"])
    op.create_table(
        "usage_days",
        sa.Column("day", sa.String(10), nullable=False),
        sa.Column("owner", sa.String(64), nullable=False),
        sa.Column("model", sa.String(200), nullable=False),
        sa.Column("width", sa.Integer, nullable=False),
        sa.Column("height", sa.Integer, nullable=False),
        sa.Column("requests", sa.BigInteger, nullable=False),
        sa.Column("images", sa.BigInteger, nullable=False),
        sa.Column("megapixel_steps", sa.Double, nullable=False),
        sa.Column("gpu_seconds", sa.Double, nullable=False),
        sa.Column("queue_seconds", sa.Double, nullable=False),
        sa.Column("refusals", sa.BigInteger, nullable=False),
        sa.Column("failures", sa.BigInteger, nullable=False),
        sa.PrimaryKeyConstraint("day", "owner", "model", "width", "height", name="pk_usage_days"),
    )
    op.create_index("ix_usage_days_owner_day", "usage_days", ["owner", "day"])
