"""Pictures tell by their ids the pictures that they were drawn from, and how."""

import sqlalchemy as sa
from alembic import op

revision = "0016"
down_revision = "0015"


def upgrade() -> None:
    op.add_column("images", sa.Column("drawn_from", sa.Text))
