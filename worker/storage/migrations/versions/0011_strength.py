"""How far a drawing leaves the picture that it goes on from."""

import sqlalchemy as sa
from alembic import op

revision = "0011"
down_revision = "0010"


def upgrade() -> None:
    for table in ("jobs", "images"):
        op.add_column(table, sa.Column("strength", sa.Double))
