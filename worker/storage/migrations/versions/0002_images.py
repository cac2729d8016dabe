"""Pictures and what they were drawn from."""

revision = "0002"
down_revision = "0001"


def upgrade() -> None:
    pass
