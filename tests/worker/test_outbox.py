import asyncio
import threading
from collections.abc import Iterator

import pytest

from worker.errors import StoreAway
from worker.outbox import LoopOutbox, Outbox


def started(outbox: "Outbox[int]") -> threading.Thread:
    thread = threading.Thread(target=outbox.run, daemon=True)
    thread.start()
    return thread


def test_all_that_was_put_is_written_in_order_before_the_end() -> None:
    written = list[int]()
    outbox = Outbox[int](lambda items: written.extend(items), 10_000, 0.001)
    thread = started(outbox)
    for k in range(5000):
        assert outbox.put(k)
    assert outbox.close(20)
    thread.join(20)
    assert (written, outbox.lost) == (list(range(5000)), 0)


def test_what_comes_during_a_write_and_its_pause_is_written_together() -> None:
    batches, second = list[list[int]](), threading.Event()

    def write(items: Iterator[int]) -> None:
        batches.append(list(items))
        if len(batches) == 1:
            for k in range(1, 20):
                outbox.put(k)
        else:
            second.set()

    outbox = Outbox[int](write, 100, 0.01)
    started(outbox)
    outbox.put(0)
    assert second.wait(20)
    outbox.close(20)
    assert batches[:2] == [[0], list(range(1, 20))]


def test_a_full_outbox_drops_counts_and_never_waits() -> None:
    outbox = Outbox[int](lambda items: None, 3, 0.01)
    assert [outbox.put(k) for k in range(5)] == [True] * 3 + [False] * 2
    assert outbox.lost == 2


def test_the_end_waits_for_no_pause() -> None:
    written = list[int]()
    first = threading.Event()

    def write(items: Iterator[int]) -> None:
        written.extend(items)
        first.set()

    outbox = Outbox[int](write, 10, 3600.0)
    started(outbox)
    outbox.put(1)
    assert first.wait(20)
    outbox.put(2)
    assert outbox.close(20)
    assert written == [1, 2]


def test_the_end_waits_for_a_while_only() -> None:
    go = threading.Event()

    def write(items: Iterator[int]) -> None:
        for _ in items:
            go.wait(20)

    outbox = Outbox[int](write, 10, 0.01)
    started(outbox)
    outbox.put(1)
    assert not outbox.close(0.01)
    go.set()


def test_what_ends_a_write_loses_nothing_that_it_has_not_taken() -> None:
    written = list[int]()

    def write(items: Iterator[int]) -> None:
        for item in items:
            if item == 1:
                raise ValueError
            written.append(item)

    outbox = Outbox[int](write, 10, 0.001)
    for k in range(4):
        outbox.put(k)
    outbox.close(0)
    with pytest.raises(ValueError):  # noqa: PT011
        outbox.run()
    outbox.run()  # as a worker's background tasks do
    assert written == [0, 2, 3]


class Store(LoopOutbox[int]):
    """Fails with ``errors``, one a write."""

    def __init__(self, *errors: Exception) -> None:
        self.lost = list[int]()
        super().__init__(self.lost.append, ("numbers wait", "numbers are lost"), retry_s=0.001)
        self._pause_s = lambda _: 0.0
        self._errors = list(errors)
        self.written = list[int]()

    def put(self, item: int) -> None:
        self._put(item, 1, 5, 4)

    async def close(self) -> None:
        await self._end(20)

    async def _write(self) -> None:
        if self._errors:
            raise self._errors.pop(0)
        self.written += self._waiting
        self._waiting.clear()
        self._waiting_bytes = 0


@pytest.mark.anyio
async def test_an_outage_is_told_once_and_loses_nothing(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO", "worker")
    store = Store(StoreAway("away"), OSError("away"), StoreAway("away"))
    for k in range(3):
        store.put(k)
    async with asyncio.TaskGroup() as group:
        running = group.create_task(store.run())
        await store.close()
        running.cancel()
    assert (store.written, store.lost) == ([0, 1, 2], [])
    assert [(r.message, vars(r)["fields"]) for r in caplog.records] == [
        ("numbers wait", {"why": "away"})
    ]


@pytest.mark.anyio
async def test_whatever_ends_a_writer_the_next_one_begins_with_what_is_left() -> None:
    store = Store(RuntimeError("a bug"))
    store.put(1)
    with pytest.raises(RuntimeError):
        await asyncio.wait_for(store.run(), 20)
    async with asyncio.TaskGroup() as group:
        running = group.create_task(store.run())
        await store.close()
        running.cancel()
    assert store.written == [1]


@pytest.mark.anyio
async def test_what_finds_no_room_is_counted_and_so_is_what_is_left_at_the_end() -> None:
    store = Store()
    for k in range(6):
        store.put(k)
    assert store.lost == [1, 1]
    await store._end(0.001)
    assert store.lost == [1, 1, 4]
