"""A supervisor that notices deaths and starts programs only when it is asked something."""

import asyncio
import contextlib
from collections.abc import Callable
from pathlib import Path

import pytest

from deploy.guard import programs
from deploy.guard.journal import Journal
from deploy.guard.left_behind import LeftBehind
from deploy.guard.programs import Programs
from deploy.guard.settings import GuardSettings, WorkerSettings
from deploy.guard.supervisor import Exit, Program
from deploy.guard.troubles import Troubles
from deploy.layout import Layout

DEAD, ANOTHER = 41, 42


class SlowToDie:
    """``asks``: how often it still has the dead process for running; then, for one ask, exited."""

    def __init__(self, asks: int) -> None:
        self._asks = asks
        self.started = asyncio.Event()
        self.loop = asyncio.get_running_loop()

    def programs(self) -> dict[str, Program]:
        self._asks -= 1
        if self._asks >= 0:
            found = Program("w1", "RUNNING", DEAD, 60.0, "")
        elif self._asks == -1:
            found = Program("w1", "EXITED", 0, 0.0, "")
        else:
            found = Program("w1", "STARTING", ANOTHER, 0.0, "")
            self.loop.call_soon_threadsafe(self.started.set)
        return {"w1": found}

    def exits(self) -> list[Exit]:
        return []


@pytest.fixture
def make(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[], Programs]:
    monkeypatch.setattr(programs, "_INTERVAL_S", 600.0)

    def made() -> Programs:
        workers = (WorkerSettings(name="w1"),)
        settings = GuardSettings(var_dir=tmp_path, run_dir=tmp_path, workers=workers)
        layout, journal = Layout(tmp_path, tmp_path), Journal()
        left = LeftBehind(layout, journal, Troubles(journal))
        return Programs([], settings, layout, journal, left)

    return made


@pytest.mark.anyio
async def test_who_takes_long_to_die_is_replaced_as_soon_as_it_is_gone(
    make: Callable[[], Programs], monkeypatch: pytest.MonkeyPatch
) -> None:
    followed, supervisor = make(), SlowToDie(asks=5)
    monkeypatch.setattr(followed, "_supervisor", supervisor)
    following = asyncio.create_task(followed.follow())
    followed.poke(DEAD)
    await asyncio.wait_for(supervisor.started.wait(), 60)
    following.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await following


def test_nobody_hurries_for_what_is_replaced_or_never_goes(
    make: Callable[[], Programs], monkeypatch: pytest.MonkeyPatch
) -> None:
    followed = make()
    followed._programs = {"w1": Program("w1", "RUNNING", DEAD, 60.0, "")}
    followed.poke(DEAD)
    assert followed._hurries()
    followed._programs = {"w1": Program("w1", "STARTING", ANOTHER, 0.0, "")}
    assert not followed._hurries()
    monkeypatch.setattr(programs, "_DYING_S", 0.0)
    followed._programs = {"w1": Program("w1", "RUNNING", DEAD, 60.0, "")}
    followed.poke(DEAD)
    assert not followed._hurries()
