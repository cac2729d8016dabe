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

from tests.postgres import Server
from tests.worker import databases
from worker.app import create_app
from worker.lifecycle import Lifecycle
from worker.models.base import Pipeline
from worker.models.loras.folder import LoraFolder
from worker.models.synthetic import SyntheticPipeline
from worker.settings import Settings


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture
def home() -> Iterator[Path]:
    """A folder with a short path, for sockets: pytest's own are too long."""
    folder = Path(tempfile.mkdtemp(prefix="zw-", dir="/tmp"))
    yield folder
    shutil.rmtree(folder, ignore_errors=True)


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    databases.parametrize(metafunc)


@pytest.fixture(scope="session")
def emptied(postgres: Server) -> Iterator[databases.Emptied]:
    with postgres.database("zimage_test") as url:
        yield databases.Emptied(postgres, url)


@pytest.fixture
def url(request: pytest.FixtureRequest, home: Path) -> Iterator[str]:
    """A migrated database of each kind in turn, which is the one of the workers in ``home``."""
    if request.param == "postgresql":
        yield from request.getfixturevalue("emptied").use(home)
    else:
        databases.prepare(databases.url_of(home))
        yield databases.url_of(home)


@pytest.fixture
def shared_url(home: Path, emptied: databases.Emptied) -> Iterator[str]:
    """A database that several hosts may share, which is the one of the workers in ``home``."""
    yield from emptied.use(home)


@pytest.fixture
def settings(home: Path) -> Settings:
    return settings_in(home)


def settings_in(home: Path, **changes: Any) -> Settings:
    values = {"run_dir": home / "run", "var_dir": home, "model": "synthetic:step_ms=1"}
    values["database_url"] = databases.url_of(home)
    return Settings(**{**values, **changes})


def migrated(settings: Settings) -> Settings:
    """``settings`` with the database of their ``var_dir`` made, as ``zimage up`` does."""
    databases.prepare(settings.database_url or databases.url_of(settings.var_dir))
    return settings


def load_synthetic(settings: Settings) -> Pipeline:
    return SyntheticPipeline(settings.model, LoraFolder(settings.lora_dir))


@asynccontextmanager
async def serving(
    settings: Settings,
    load: Callable[[Settings], Pipeline] = load_synthetic,
    settle_memory: Callable[[], object] = lambda: None,
) -> AsyncIterator[tuple[Lifecycle, httpx.AsyncClient]]:
    """The application of ``settings``, not waited for, and a client of it."""
    app = create_app(settings, load)
    transport = httpx.ASGITransport(app)
    with pytest.MonkeyPatch.context() as patched:
        # A worker that is ready looks at all that is imported here and then keeps it for life, and
        # with it what is the test's own.
        patched.setattr("worker.lifecycle._settle_memory", settle_memory)
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
