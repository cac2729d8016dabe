"""Pictures that jobs draw from, and the digests of what gallery's pictures were drawn from."""

import sqlalchemy as sa
from alembic import op

revision = "0013"
down_revision = "0012"


def upgrade() -> None:
    for name in ("image", "mask"):
        op.add_column("jobs", sa.Column(name, sa.String(64)))
        op.add_column("images", sa.Column(f"{name}_sha256", sa.String(64)))
    op.add_column("jobs", sa.Column("fit", sa.String(8)))
    op.add_column("jobs", sa.Column("position", sa.String(16)))
