"""Which pictures may have some words in their prompts: an index of all groups of three characters.

In SQLite a full-text table (``images_search``) that triggers keep: its rows have the numbers of
``image_numbers``, since those that SQLite itself gives rows may change. Two blanks behind each
prompt make its last characters begin groups, too. PostgreSQL's own index (``pg_trgm``) serves
``LIKE`` itself, so that nothing is to be known before.
"""

from collections.abc import Sequence

import sqlalchemy as sa

from worker.storage.database import lock_to_migrate
from worker.storage.schema import metadata

numbers = sa.Table(
    "image_numbers",
    metadata,
    sa.Column("number", sa.Integer, primary_key=True),
    sa.Column("image_id", sa.String(64), nullable=False, unique=True),
)

_POSTGRES_INDEX = (
    "CREATE EXTENSION IF NOT EXISTS pg_trgm",
    "CREATE INDEX IF NOT EXISTS ix_images_words ON images USING gin (words gin_trgm_ops)",
)

MOST = 500
"""Of more pictures a page is found sooner by looking at the newest first."""
_GROUP = 3
_MOST_GROUPS = 200  # that begin with a short word
_LAST = "\U0010ffff"


def searchable(text: str) -> str:
    """A prompt or a word as it is compared: without upper case, and without the character at which
    SQLite stops comparing."""
    return text.casefold().replace("\0", " ")


def candidates(connection: sa.Connection, words: Sequence[str]) -> list[str] | None:
    """The ids of at most ``MOST`` pictures, among which are all that have ``words`` (each
    ``searchable``); None where there may be more, or nothing is known."""
    if connection.dialect.name != "sqlite" or not _is_indexed(connection):
        return None
    asked = [_having(connection, word) for word in words]
    if "" in asked:
        return []
    known = [part for part in asked if part]
    if not known:
        return None
    wanted = sa.text("SELECT rowid FROM images_search WHERE images_search MATCH :asked LIMIT :most")
    found = connection.scalars(wanted, {"asked": " AND ".join(known), "most": MOST + 1}).all()
    if len(found) > MOST:
        return None
    return list(
        connection.scalars(sa.select(numbers.c.image_id).where(numbers.c.number.in_(found)))
    )


def make_index(engine: sa.Engine) -> None:
    """PostgreSQL's, where it is missing. Raises ``DBAPIError`` where it cannot be made: then
    searches look at every prompt, for a second at most."""
    if engine.dialect.name == "sqlite":
        return  # a revision made it
    with engine.connect() as connection, connection.begin():
        lock_to_migrate(connection)
        for statement in _POSTGRES_INDEX:
            connection.exec_driver_sql(statement)


def _is_indexed(connection: sa.Connection) -> bool:
    """Not where SQLite was too old when the database was migrated."""
    there = "SELECT 1 FROM sqlite_master WHERE name = 'images_terms'"
    return connection.scalar(sa.text(there)) is not None


def _having(connection: sa.Connection, word: str) -> str | None:
    """What asks the index for prompts with ``word``: empty where there are none, None where too
    many groups begin with it."""
    if len(word) >= _GROUP:
        groups = {word[k : k + _GROUP] for k in range(len(word) - _GROUP + 1)}
        return "(" + " AND ".join(map(_quoted, sorted(groups))) + ")"
    begin = sa.text(
        "SELECT term FROM images_terms WHERE term >= :first AND term < :last LIMIT :most"
    )
    limits = {"first": word, "last": word + _LAST, "most": _MOST_GROUPS + 1}
    found = connection.scalars(begin, limits).all()
    if len(found) > _MOST_GROUPS:
        return None
    return "(" + " OR ".join(map(_quoted, found)) + ")" if found else ""


def _quoted(group: str) -> str:
    return '"' + group.replace('"', '""') + '"'
