"""The revisions and the tables of the code are the same."""

from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext

from worker.storage import gallery, jobs, keys, search, usage
from worker.storage.database import create_engine
from worker.storage.schema import metadata

TABLES = (
    gallery.images,
    jobs.jobs,
    jobs.items,
    jobs.prompts,
    jobs.holds,
    keys.ended_sessions,
    keys.keys,
    keys.keys_state,
    search.numbers,
    usage.entries,
    usage.days,
)


def _is_ours(name: str | None, kind: str, _: object) -> bool:
    """Not the tables that SQLite's full-text search makes for itself."""
    return not (kind == "table" and (name or "").startswith(("images_search", "images_terms")))


OPTIONS = {"compare_type": True, "include_name": _is_ours}


def test_revisions_make_the_tables_that_the_code_uses(url: str) -> None:
    assert {table.name for table in TABLES} == set(metadata.tables)
    engine = create_engine(url, 1.0)
    with engine.connect() as connection:
        context = MigrationContext.configure(connection, opts=OPTIONS)
        assert compare_metadata(context, metadata) == []
    engine.dispose()
