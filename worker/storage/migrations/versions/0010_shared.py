"""What workers of several hosts share: limits of keys, strikes of requests, how far items are."""

import sqlalchemy as sa
from alembic import op

revision = "0010"
down_revision = "0009"


def upgrade() -> None:
    op.create_table(
        "quota_days",
        sa.Column("key_id", sa.String(64)),
        sa.Column("day", sa.Integer),
        sa.Column("images", sa.Integer, nullable=False),
        sa.PrimaryKeyConstraint("key_id", "day", name="pk_quota_days"),
    )
    op.create_table(
        "quota_requests",
        sa.Column("key_id", sa.String(64)),
        sa.Column("request_id", sa.String(64)),
        sa.Column("day", sa.Integer, nullable=False),
        sa.Column("images", sa.Integer, nullable=False),
        sa.Column("attempt", sa.String(32), nullable=False),
        sa.PrimaryKeyConstraint("key_id", "request_id", name="pk_quota_requests"),
    )
    op.create_index("ix_quota_requests_day", "quota_requests", ["day"])
    op.create_table(
        "slots",
        sa.Column("attempt", sa.String(32)),
        sa.Column("key_id", sa.String(64), nullable=False),
        sa.Column("request_id", sa.String(64), nullable=False),
        sa.Column("holder", sa.String(200), nullable=False),
        sa.Column("host", sa.String(32), nullable=False),
        sa.Column("ends_at", sa.Double, nullable=False),
        sa.PrimaryKeyConstraint("attempt", name="pk_slots"),
    )
    op.create_index("ix_slots_key_id", "slots", ["key_id"])
    op.create_index("ix_slots_holder", "slots", ["holder"])
    op.create_table(
        "strikes",
        sa.Column("fingerprint", sa.String(32)),
        sa.Column("host", sa.String(32)),
        sa.Column("name", sa.String(200)),
        sa.Column("at", sa.Double, nullable=False),
        sa.PrimaryKeyConstraint("fingerprint", "host", "name", name="pk_strikes"),
    )
    op.create_index("ix_strikes_at", "strikes", ["at"])
    op.create_table(
        "job_steps",
        sa.Column("holder", sa.String(200)),
        sa.Column("steps", sa.Text, nullable=False),
        sa.Column("at", sa.Double, nullable=False),
        sa.PrimaryKeyConstraint("holder", name="pk_job_steps"),
    )
    if op.get_context().dialect.name != "sqlite":
        op.execute("ALTER TABLE job_steps SET UNLOGGED")
