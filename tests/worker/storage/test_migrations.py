"""The revisions and the tables of the code are the same."""

from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext

from worker.storage import gallery, jobs, keys, usage
from worker.storage.database import create_engine
from worker.storage.schema import metadata

TABLES = (
    gallery.images,
    jobs.jobs,
    jobs.items,
    jobs.prompts,
    jobs.holds,
    keys.keys,
    keys.keys_state,
    usage.entries,
    usage.days,
)


def test_revisions_make_the_tables_that_the_code_uses(url: str) -> None:
    assert {table.name for table in TABLES} == set(metadata.tables)
    engine = create_engine(url, 1.0)
    with engine.connect() as connection:
        context = MigrationContext.configure(connection, opts={"compare_type": True})
        assert compare_metadata(context, metadata) == []
    engine.dispose()
