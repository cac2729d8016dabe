"""The one ``metadata`` of all tables. Each table stands in the module of its noun.

``insert_or`` makes an ``INSERT`` that can say ``ON CONFLICT``: in SQLite, too, whose words for it
are PostgreSQL's. Whoever looks first and inserts then loses to another who does the same.
"""

import sqlalchemy as sa
from sqlalchemy.dialects.postgresql import insert as insert_or

__all__ = ["insert_or", "metadata"]

metadata = sa.MetaData(
    naming_convention={
        "pk": "pk_%(table_name)s",
        "fk": "fk_%(table_name)s_%(column_0_name)s",
        "ix": "ix_%(table_name)s_%(column_0_N_name)s",
        "uq": "uq_%(table_name)s_%(column_0_N_name)s",
    }
)
