from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.worker.engine.fakes import GatedPipeline, Untimed
from worker.coordination.heartbeat import HeartbeatFile
from worker.engine import Engine, Limits

Running = Callable[..., AbstractAsyncContextManager[Engine]]


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture
def heartbeat(tmp_path: Path) -> HeartbeatFile:
    return HeartbeatFile(tmp_path / "w1.beat")


@pytest.fixture
def running(heartbeat: HeartbeatFile) -> Running:
    """``async with running(pipeline, **limits) as engine``: started, and closed at the end."""

    @asynccontextmanager
    async def run(
        pipeline: GatedPipeline, spare: Iterator[object] | None = None, **limits: Any
    ) -> AsyncIterator[Engine]:
        bounds = Limits(**limits)
        engine = Engine(pipeline, heartbeat, bounds, Untimed(bounds.max_batch))
        if spare:
            engine.when_idle(spare)
        engine.start()
        try:
            yield engine
        finally:
            pipeline.open()
            await engine.close()

    return run
