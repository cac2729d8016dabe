"""Workers for tests: in this process without a socket, or as processes of their own."""

import shutil
import tempfile
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import anyio
import httpx
import pytest

from worker.app import create_app
from worker.lifecycle import Lifecycle
from worker.models.base import Pipeline
from worker.models.synthetic import SyntheticPipeline
from worker.settings import Settings
from worker.storage.database import sqlite_url
from worker.storage.migrations import migrate


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture
def home() -> Iterator[Path]:
    """A folder with a short path, for sockets: pytest's own are too long."""
    folder = Path(tempfile.mkdtemp(prefix="zw-", dir="/tmp"))
    yield folder
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture
def settings(home: Path) -> Settings:
    return settings_in(home)


def settings_in(home: Path, **changes: Any) -> Settings:
    values = {"run_dir": home / "run", "var_dir": home, "model": "synthetic:step_ms=1"}
    return Settings(**{**values, **changes})


def migrated(settings: Settings) -> Settings:
    """``settings`` with the database of their ``var_dir`` made, as ``zimage up`` does."""
    migrate(settings.database_url or sqlite_url(settings.var_dir / "zimage.db"))
    return settings


def load_synthetic(settings: Settings) -> Pipeline:
    return SyntheticPipeline(settings.model)


@asynccontextmanager
async def serving(
    settings: Settings, load: Callable[[Settings], Pipeline] = load_synthetic
) -> AsyncIterator[tuple[Lifecycle, httpx.AsyncClient]]:
    """The application of ``settings``, not waited for, and a client of it."""
    app = create_app(settings, load)
    transport = httpx.ASGITransport(app)
    with pytest.MonkeyPatch.context() as patched:
        # A worker that is ready looks at all that is imported here and then keeps it for life, and
        # with it what is the test's own.
        patched.setattr("worker.lifecycle._settle_memory", lambda: None)
        async with (
            app.router.lifespan_context(app),
            httpx.AsyncClient(transport=transport, base_url="http://cell") as client,
        ):
            yield app.state.lifecycle, client


async def ready(service: Lifecycle) -> None:
    await until(service, None)


async def until(service: Lifecycle, reason: str | None) -> None:
    """Wait until ``service`` is not ready for ``reason``; None: until it is ready."""
    deadline = time.monotonic() + 30
    while service.not_ready() != reason:
        assert time.monotonic() < deadline, service.not_ready()
        await anyio.sleep(0.005)


@pytest.fixture
async def client(settings: Settings) -> AsyncIterator[httpx.AsyncClient]:
    """A client of a ready worker in this process."""
    async with serving(settings) as (service, client):
        await ready(service)
        yield client
