"""Which version of the parameters a job is drawn by: workers that do not know it leave it."""

import sqlalchemy as sa
from alembic import op

revision = "0008"
down_revision = "0007"


def upgrade() -> None:
    op.add_column("jobs", sa.Column("needs", sa.SmallInteger))
