"""Adapters: of drawings, and which of them a key may use."""

import sqlalchemy as sa
from alembic import op

revision = "0014"
down_revision = "0013"


def upgrade() -> None:
    for table in ("jobs", "images"):
        op.add_column(table, sa.Column("lora", sa.Text))
    op.add_column("keys", sa.Column("loras", sa.Text))
