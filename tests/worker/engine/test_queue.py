import pytest

from tests.worker.engine.fakes import entry, spec
from worker.engine.queue import Queue, QueueFull, expected_rows
from worker.engine.request import Priority


def test_older_requests_stand_before_younger_ones_whenever_they_come() -> None:
    queue = Queue(8)
    young, old = entry("a", arrived_at=20.0), entry("b", arrived_at=10.0)
    queue.add(young)
    queue.add(old)
    assert list(queue) == [old, young]


def test_equal_arrivals_stand_in_the_order_of_admission() -> None:
    queue = Queue(8)
    entries = [entry("a", arrived_at=1.0) for _ in range(5)]
    for each in entries:
        queue.add(each)
    assert list(queue) == entries


def test_interactive_requests_stand_before_older_batch_work() -> None:
    queue = Queue(8)
    batch = entry("a", arrived_at=1.0, priority=Priority.BATCH)
    interactive = entry("b", arrived_at=2.0)
    queue.add(batch)
    queue.add(interactive)
    assert list(queue) == [interactive, batch]


def test_queue_is_bounded_by_requests_that_wait() -> None:
    queue = Queue(1)
    first = entry("a")
    queue.add(first)
    with pytest.raises(QueueFull):
        queue.add(entry("b"))
    first.begun = True
    queue.add(entry("c"))
    assert len(queue) == 2


def test_removing_twice_is_harmless() -> None:
    queue = Queue(8)
    one = entry("a")
    queue.add(one)
    queue.remove(one)
    queue.remove(one)
    assert not len(queue)


def test_pictures_that_are_done_are_no_longer_offered() -> None:
    queue = Queue(8)
    one = entry("a", "b")
    queue.add(one)
    one.pictures[0].done = True
    assert list(queue.pictures()) == [one.pictures[1]]


def test_a_guided_picture_is_expected_to_take_two_rows() -> None:
    assert expected_rows(spec(guidance_scale=4.0).parameters) == 2
    assert expected_rows(spec().parameters) == 1
