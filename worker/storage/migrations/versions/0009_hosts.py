"""Hosts of a cluster, and how they come to trust each other."""

import sqlalchemy as sa
from alembic import op

revision = "0009"
down_revision = "0008"


def upgrade() -> None:
    op.create_table(
        "hosts",
        sa.Column("id", sa.String(32)),
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
        sa.Column("since", sa.Double, nullable=False),
        sa.Column("wanted", sa.String(16), nullable=False),
        sa.Column("wanted_reason", sa.String(200), nullable=False),
        sa.Column("wanted_at", sa.Double, nullable=False),
        sa.Column("wanted_version", sa.String(64), nullable=False),
        sa.Column("wanted_version_at", sa.Double, nullable=False),
        sa.Column("lost_at", sa.Double),
        sa.PrimaryKeyConstraint("id", name="pk_hosts"),
    )
    op.create_table(
        "invites",
        sa.Column("id", sa.String(32)),
        sa.Column("host", sa.String(32), nullable=False),
        sa.Column("role", sa.String(8), nullable=False),
        sa.Column("hash", sa.LargeBinary(32), nullable=False),
        sa.Column("made_at", sa.Double, nullable=False),
        sa.Column("ends_at", sa.Double, nullable=False),
        sa.Column("tries", sa.Integer, nullable=False),
        sa.Column("used_at", sa.Double),
        sa.PrimaryKeyConstraint("id", name="pk_invites"),
    )
    op.create_table(
        "certificates",
        sa.Column("serial", sa.String(40)),
        sa.Column("host", sa.String(32), nullable=False),
        sa.Column("role", sa.String(8), nullable=False),
        sa.Column("pem", sa.Text, nullable=False),
        sa.Column("made_at", sa.Double, nullable=False),
        sa.Column("ends_at", sa.Double, nullable=False),
        sa.Column("revoked_at", sa.Double),
        sa.PrimaryKeyConstraint("serial", name="pk_certificates"),
    )
    op.create_index("ix_certificates_host", "certificates", ["host"])
    op.create_table(
        "cluster_documents",
        sa.Column("name", sa.String(64)),
        sa.Column("content", sa.LargeBinary, nullable=False),
        sa.Column("version", sa.BigInteger, nullable=False),
        sa.Column("at", sa.Double, nullable=False),
        sa.PrimaryKeyConstraint("name", name="pk_cluster_documents"),
    )
