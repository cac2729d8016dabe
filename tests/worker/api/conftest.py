"""A worker with a database, in this process."""

from collections.abc import AsyncIterator
from pathlib import Path

import httpx
import pytest

from tests.worker.conftest import migrated, ready, serving, settings_in
from worker.lifecycle import Lifecycle


@pytest.fixture
async def cell(home: Path) -> AsyncIterator[tuple[Lifecycle, httpx.AsyncClient]]:
    async with serving(migrated(settings_in(home))) as (service, client):
        await ready(service)
        yield service, client


@pytest.fixture
async def client(cell: tuple[Lifecycle, httpx.AsyncClient]) -> httpx.AsyncClient:
    return cell[1]
