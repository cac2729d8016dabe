import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import anyio
import pytest

from tests.worker.conftest import migrated, settings_in
from tests.worker.storage.test_jobs import Store
from worker.coordination.change_notifier import ChangeNotifier
from worker.settings import Settings
from worker.storage.jobs import Job

PATIENCE_S = 120.0
"""Of a busy machine: nothing here is a promise of so many seconds."""
NEVER_S = 3600.0
"""A lease that ends by its time outlives the test."""


class ToldStore(Store):
    """Tells the workers of new jobs, as the one does that took the request."""

    def __init__(self, url: str, home: Path) -> None:
        super().__init__(url)
        self._notifier = ChangeNotifier(home / "run" / "jobs.changed")

    def create(self, *args: Any, **changes: Any) -> Job:
        job = super().create(*args, **changes)
        self._notifier.notify()
        return job


@pytest.fixture
def store(url: str, home: Path) -> Iterator[Store]:
    """The database of the workers in ``home``, for a look from outside."""
    made = ToldStore(url, home)
    yield made
    made.engine.dispose()


@pytest.fixture
def settings(home: Path, url: str) -> Settings:
    return settings_of(home)


def settings_of(home: Path, name: str = "w1", **changes: Any) -> Settings:
    return migrated(settings_in(home, name=name, **changes))


async def eventually(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < deadline
        await anyio.sleep(0.02)


async def over(store: Store, job: Job) -> Job:
    """The job once it is over."""
    await eventually(lambda: store.job(job.id).over)
    return store.job(job.id)
