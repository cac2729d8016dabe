"""Prompts once a job, owners that are held, and indexes for what every worker asks all the time."""

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"


def upgrade() -> None:
    op.create_table(
        "job_prompts",
        sa.Column("job_id", sa.String(40), nullable=False),
        sa.Column("number", sa.Integer, nullable=False, autoincrement=False),
        sa.Column("prompt", sa.Text, nullable=False),
        sa.PrimaryKeyConstraint("job_id", "number", name="pk_job_prompts"),
        sa.ForeignKeyConstraint(
            ["job_id"], ["jobs.id"], name="fk_job_prompts_job_id", ondelete="CASCADE"
        ),
    )
    op.create_table(
        "job_holds",
        sa.Column("owner", sa.String(64), nullable=False),
        sa.Column("until", sa.Double, nullable=False),
        sa.PrimaryKeyConstraint("owner", name="pk_job_holds"),
    )
    op.add_column("job_items", sa.Column("prompt_number", sa.Integer))
    op.add_column("job_items", sa.Column("ready_at", sa.Double))
    op.add_column("jobs", sa.Column("stored_bytes", sa.BigInteger))
    for columns in (
        ["state", "priority", "turn", "created_at"],
        ["owner", "finished_at", "stored_bytes", "total"],
        ["created_at", "id"],
        ["finished_at"],
    ):
        op.create_index(f"ix_jobs_{'_'.join(columns)}", "jobs", columns)
