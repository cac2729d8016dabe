"""What Alembic runs: the revisions, in the transaction that ``migrate`` opened."""

from alembic import context

context.configure(
    connection=context.config.attributes["connection"],
    # Without it each revision would try to commit on its own.
    transaction_per_migration=False,
)
context.run_migrations()
