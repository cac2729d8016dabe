import threading
from collections.abc import Iterator

import pytest

from worker.outbox import Outbox


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


def test_what_is_left_is_tried_again_though_nothing_comes() -> None:
    left, tries = list[int](), list[list[int]]()
    done = threading.Event()

    def write(items: Iterator[int]) -> bool:
        left.extend(items)
        tries.append(left[:])
        if len(tries) < 3:
            return True
        done.set()
        return False

    outbox = Outbox[int](write, 10, 0.001)
    started(outbox)
    outbox.put(1)
    assert done.wait(20)
    assert outbox.close(20)
    assert tries[:3] == [[1], [1], [1]]


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
