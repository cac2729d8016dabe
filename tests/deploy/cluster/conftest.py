from collections.abc import Iterator

import pytest

from tests.postgres import Server
from worker.storage.migrations import migrate


@pytest.fixture
def url(postgres: Server) -> Iterator[str]:
    """A migrated database on PostgreSQL, as hosts share one."""
    with postgres.database("zimage_hosts") as url:
        migrate(url)
        yield url
