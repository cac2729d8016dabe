import asyncio
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Coroutine
from pathlib import Path
from typing import Any

import pytest

from worker.coordination import quota
from worker.coordination.quota import Quotas, require_size
from worker.errors import LimitReached, status_of
from worker.storage.keys import Key
from worker.types import Parameters


def key(**limits: Any) -> Key:
    return Key("key_a", "ada", b"", "", **limits)


PATIENCE_S = 60.0


@pytest.fixture(autouse=True)
def patience(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a busy machine, too, no lock is given up."""
    monkeypatch.setattr(quota, "_LOCK_TIMEOUT_S", PATIENCE_S)


def two_workers(home: Path) -> list[Quotas]:
    (home / "run").mkdir(exist_ok=True)
    return [Quotas(home / "run", home) for _ in range(2)]


def run(work: Coroutine[Any, Any, None]) -> None:
    asyncio.run(work)


def test_slots_hold_over_all_workers_and_come_back(tmp_path: Path) -> None:
    async def scenario() -> None:
        one, two = two_workers(tmp_path)
        held = [await one.hold(key(concurrency=2), f"r{i}", time.time(), 1) for i in range(2)]
        with pytest.raises(LimitReached, match="2 requests drawn at a time") as refused:
            await two.hold(key(concurrency=2), "r3", time.time(), 1)
        assert (status_of(refused.value), refused.value.retry) == (429, True)
        await held[0].release()
        again = await two.hold(key(concurrency=2), "r3", time.time(), 1)
        await again.release()
        await again.release()  # once more changes nothing
        await held[1].release()

    run(scenario())


def test_another_key_has_slots_of_its_own(tmp_path: Path) -> None:
    async def scenario() -> None:
        one, two = two_workers(tmp_path)
        await one.hold(key(concurrency=1), "r1", time.time(), 1)
        await two.hold(Key("key_b", "b", b"", "", concurrency=1), "r2", time.time(), 1)

    run(scenario())


HOLDER = """
import asyncio, sys, time
from pathlib import Path
from worker.coordination.quota import Quotas
from worker.storage.keys import Key
async def main():
    home = Path(sys.argv[1])
    key = Key("key_a", "ada", b"", "", concurrency=1, images_per_day=5)
    await Quotas(home / "run", home).hold(key, "r1", time.time(), 3)
    print("held", flush=True)
    await asyncio.sleep(600)
asyncio.run(main())
"""


def test_a_killed_worker_holds_no_slot_and_its_replay_counts_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    [mine, _] = two_workers(tmp_path)
    limits = key(concurrency=1, images_per_day=5)

    async def scenario(holder: "subprocess.Popen[str]") -> None:
        with pytest.raises(LimitReached):
            await mine.hold(limits, "r2", time.time(), 1)
        os.kill(holder.pid, signal.SIGKILL)
        monkeypatch.setattr(quota, "DYING_S", PATIENCE_S)
        # As nginx does: at once, with the arrival of before.
        replay = await mine.hold(limits, "r1", time.time() - 5, 3)
        replay.drawn = 3
        await replay.release()
        assert await mine.today(limits) == 3
        last = await mine.hold(limits, "r2", time.time() - 5, 2)
        last.drawn = 2
        await last.release()
        with pytest.raises(LimitReached, match="has drawn 5; this would be 1 more"):
            await mine.hold(limits, "r3", time.time(), 1)

    with subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(tmp_path)], stdout=subprocess.PIPE, text=True
    ) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "held\n"
        run(scenario(holder))


def test_pictures_under_way_count_and_those_not_drawn_do_not(tmp_path: Path) -> None:
    async def scenario() -> None:
        one, two = two_workers(tmp_path)
        under_way = await one.hold(key(images_per_day=4), "r1", time.time(), 3)
        with pytest.raises(LimitReached) as refused:
            await two.hold(key(images_per_day=4), "r2", time.time(), 2)
        assert not refused.value.retry
        assert 0 < refused.value.retry_after_s <= 86_400
        details = dict(refused.value.details or {})
        resets_in_s = float(details.pop("resets_at")) - time.time()
        assert details == {"reason": "images_per_day", "drawn": 3, "most": 4, "asked": 2}
        assert 0 <= resets_in_s <= 86_401
        under_way.drawn = 1
        await under_way.release()
        await two.hold(key(images_per_day=4), "r2", time.time(), 3)
        assert await one.today(key()) == 4

    run(scenario())


def test_a_failed_request_counts_again_when_it_is_sent_again(tmp_path: Path) -> None:
    async def scenario() -> None:
        one, two = two_workers(tmp_path)
        failed = await one.hold(key(images_per_day=4), "r1", time.time(), 2)
        await failed.release()
        assert await one.today(key()) == 0
        replay = await two.hold(key(images_per_day=4), "r1", time.time(), 2)
        replay.drawn = 2
        await replay.release()
        assert await one.today(key()) == 2

    run(scenario())


def test_whoever_leaves_while_it_is_counted_gets_it_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    counting, go, settled = threading.Event(), threading.Event(), threading.Event()
    reserve, settle = Quotas._reserve, Quotas.settle

    def slow(*arguments: Any) -> None:
        counting.set()
        go.wait(PATIENCE_S)
        reserve(*arguments)

    def seen(*arguments: Any) -> None:
        settle(*arguments)
        settled.set()

    monkeypatch.setattr(Quotas, "_reserve", slow)
    monkeypatch.setattr(Quotas, "settle", seen)

    async def scenario() -> None:
        [one, _] = two_workers(tmp_path)
        asked = asyncio.ensure_future(
            one.hold(key(images_per_day=3, concurrency=1), "r1", time.time(), 3)
        )
        await asyncio.to_thread(counting.wait, PATIENCE_S)
        asked.cancel()
        with pytest.raises(asyncio.CancelledError):
            await asked
        go.set()
        assert await asyncio.to_thread(settled.wait, PATIENCE_S)
        assert await one.today(key()) == 0
        await one.hold(key(images_per_day=3, concurrency=1), "r2", time.time(), 3)

    run(scenario())


def test_a_count_that_is_just_being_made_is_none(tmp_path: Path) -> None:
    async def scenario() -> None:
        [one, _] = two_workers(tmp_path)
        await one.hold(key(images_per_day=1), "r1", time.time(), 1)
        (counted,) = one._days.iterdir()
        os.truncate(counted, 0)
        assert await one.today(key()) is None

    run(scenario())


def test_a_new_day_begins_at_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def scenario() -> None:
        [one, _] = two_workers(tmp_path)
        held = await one.hold(key(images_per_day=1), "r1", time.time(), 1)
        monkeypatch.setattr(quota, "_today", lambda: int(time.time() // 86_400) + 1)
        assert await one.today(key()) == 0
        await held.release()  # yesterday's: nothing to give back
        await one.hold(key(images_per_day=1), "r2", time.time(), 1)
        assert await one.today(key()) == 1

    run(scenario())


def test_many_at_once_never_pass_the_limit(tmp_path: Path) -> None:
    async def scenario() -> None:
        workers = two_workers(tmp_path)
        wanted = [
            workers[i % 2].hold(key(images_per_day=20), f"r{i}", time.time(), 3) for i in range(30)
        ]
        found = await asyncio.gather(*wanted, return_exceptions=True)
        assert sum(not isinstance(one, LimitReached) for one in found) == 6
        assert await workers[0].today(key()) == 18

    run(scenario())


def test_without_limits_nothing_touches_the_disk(tmp_path: Path) -> None:
    async def scenario() -> None:
        quotas = Quotas(tmp_path / "missing", tmp_path / "missing")
        for who in (None, key()):
            await (await quotas.hold(who, "r", time.time(), 9)).release()
        assert await quotas.today(key()) is None

    run(scenario())


def test_a_disk_that_fails_lets_requests_pass(tmp_path: Path) -> None:
    async def scenario() -> None:
        quotas = Quotas(tmp_path / "missing", tmp_path / "missing")
        hold = await quotas.hold(key(images_per_day=1, concurrency=1), "r", time.time(), 9)
        await hold.release()

    run(scenario())


@pytest.mark.parametrize(
    ("size", "param"), [((512, 512, 9), "steps"), ((528, 512, 8), "size"), ((512, 512, 8), None)]
)
def test_a_picture_over_the_keys_own_limits_is_refused(
    size: tuple[int, int, int], param: str | None
) -> None:
    limits = key(max_pixels=512 * 512, max_steps=8)
    if param is None:
        require_size(limits, Parameters(*size))
        require_size(None, Parameters(*size))
        return
    with pytest.raises(LimitReached, match="Key 'ada' may") as refused:
        require_size(limits, Parameters(*size))
    assert (refused.value.param, refused.value.retry) == (param, False)
