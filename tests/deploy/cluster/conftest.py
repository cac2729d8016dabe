from collections.abc import Iterator

import pytest

from tests.postgres import Server
from tests.worker.databases import Emptied


@pytest.fixture(scope="module")
def shared(postgres: Server) -> Iterator[str]:
    """The database of a cluster, for the tests of a module."""
    with postgres.database("cluster") as url:
        yield url


@pytest.fixture
def url(postgres: Server, shared: str, request: pytest.FixtureRequest) -> Iterator[str]:
    """It, without a row."""
    home = request.getfixturevalue("tmp_path")
    yield from Emptied(postgres, shared).use(home)
