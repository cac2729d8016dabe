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


async def eventually(condition: Callable[[], bool], timeout_s: float = 30.0) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline
        await anyio.sleep(0.02)


async def over(store: Store, job: Job, timeout_s: float = 30.0) -> Job:
    """The job once it is over."""
    await eventually(lambda: store.job(job.id).over, timeout_s)
    return store.job(job.id)
