"""Search in prompts by an index, in SQLite; see ``worker/storage/search.py``."""

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0004"

# No positions and no copy of the text: whoever finds something compares it with the prompt itself.
_INDEX = """
    CREATE VIRTUAL TABLE images_search USING fts5(
        words, content='', columnsize=0, detail='none', tokenize='trigram case_sensitive 1'
    )
"""
_TERMS = "CREATE VIRTUAL TABLE images_terms USING fts5vocab('images_search', 'row')"
_INSERTED = """
    CREATE TRIGGER images_inserted AFTER INSERT ON images BEGIN
        INSERT INTO image_numbers (image_id) VALUES (new.id);
        INSERT INTO images_search (rowid, words)
            SELECT number, new.words || '  ' FROM image_numbers WHERE image_id = new.id;
    END
"""
_DELETED = """
    CREATE TRIGGER images_deleted AFTER DELETE ON images BEGIN
        INSERT INTO images_search (images_search, rowid, words)
            SELECT 'delete', number, old.words || '  ' FROM image_numbers WHERE image_id = old.id;
        DELETE FROM image_numbers WHERE image_id = old.id;
    END
"""
_FILL = """
    INSERT INTO images_search (rowid, words)
        SELECT number, words || '  ' FROM image_numbers JOIN images ON id = image_id
        ORDER BY number
"""


def upgrade() -> None:
    op.create_table(
        "image_numbers",
        sa.Column("number", sa.Integer, nullable=False),
        sa.Column("image_id", sa.String(64), nullable=False),
        sa.PrimaryKeyConstraint("number", name="pk_image_numbers"),
        sa.UniqueConstraint("image_id", name="uq_image_numbers_image_id"),
    )
    if _has_trigrams(op.get_bind()):
        op.execute("INSERT INTO image_numbers (image_id) SELECT id FROM images ORDER BY created_at")
        for statement in (_INDEX, _FILL, _TERMS, _INSERTED, _DELETED):
            op.execute(statement)


def _has_trigrams(connection: sa.Connection) -> bool:
    """SQLite from 3.34 on; without them searches look at every prompt, for a second at most."""
    if connection.dialect.name != "sqlite":
        return False
    try:
        with connection.begin_nested():
            connection.exec_driver_sql(
                "CREATE VIRTUAL TABLE images_trial USING fts5(words, tokenize='trigram')"
            )
            connection.exec_driver_sql("DROP TABLE images_trial")
    except sa.exc.DBAPIError:
        return False
    return True
