"""A worker's copy of the keys follows the database, whatever else is read."""

import asyncio
import threading
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import sqlalchemy as sa

from tests.worker.storage.conftest import database  # noqa: F401 — a fixture
from worker.accounts.keyring import KeyRing
from worker.storage import keys
from worker.storage.database import Database
from worker.storage.keys import Key
from worker.storage.secret import shared_secret

pytestmark = pytest.mark.anyio


@pytest.fixture
async def busy(database: Database) -> AsyncIterator[Database]:  # noqa: F811
    """All that searches and reads has begun, and none of it ends."""
    go, begun = threading.Event(), threading.Semaphore(0)

    def hang(_: sa.Connection) -> None:
        begun.release()
        go.wait(60)

    calls = [work(hang) for work in (database.search, database.read) for _ in range(12)]
    hanging = [asyncio.ensure_future(call) for call in calls]
    for _ in range(4):
        assert await asyncio.to_thread(begun.acquire, timeout=10)
    yield database
    go.set()
    await asyncio.gather(*hanging, return_exceptions=True)


async def test_a_revoked_key_is_known_beside_any_number_of_searches(
    busy: Database, tmp_path: Path
) -> None:
    secret = shared_secret(tmp_path / "key-secret")
    ring = KeyRing(busy, tmp_path / "key-secret", 3600.0)
    key, token = keys.new_key(secret, "ada")
    await busy.run(lambda c: keys.insert(c, key, secret))
    await ring.refresh()
    assert ring.holder(token) == key
    await busy.run(lambda c: keys.change(c, key.id, disabled=True))
    await ring.refresh()
    found = ring.holder(token)
    assert isinstance(found, Key)
    assert found.disabled
