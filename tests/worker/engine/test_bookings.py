from tests.worker.engine.fakes import entry
from worker.engine.bookings import GRACE_S, Bookings


def test_a_promise_is_known_again_by_key_and_fingerprint() -> None:
    bookings = Bookings(8)
    refused = entry("a", key="one", fingerprint="f")
    bookings.add(refused, 10.0, now=0.0)
    assert bookings.find(entry("a", key="other", fingerprint="f"), now=10.0) is None
    assert bookings.find(entry("b", key="one", fingerprint="g"), now=10.0) is None
    promise = bookings.find(entry("a", key="one", fingerprint="f"), now=10.0)
    assert promise
    assert promise.entry is refused


def test_a_promise_is_kept_once() -> None:
    bookings = Bookings(8)
    bookings.add(entry("a", fingerprint="f"), 10.0, now=0.0)
    bookings.discard(bookings.find(entry("a", fingerprint="f"), now=10.0))
    assert bookings.find(entry("a", fingerprint="f"), now=10.0) is None


def test_a_promise_is_due_at_its_time_and_not_long_before() -> None:
    bookings = Bookings(8)
    bookings.add(entry("a", fingerprint="f"), 10.0, now=0.0)
    promise = bookings.find(entry("a", fingerprint="f"), now=5.0)
    assert promise
    assert not promise.is_due(5.0)
    assert bookings.due(5.0) == []
    assert promise.is_due(10.0)
    assert bookings.due(10.0)


def test_who_does_not_come_loses_the_place() -> None:
    bookings = Bookings(8)
    bookings.add(entry("a", fingerprint="f"), 10.0, now=0.0)
    assert bookings.find(entry("a", fingerprint="f"), now=10.5 + GRACE_S) is None
    assert bookings.entries() == []


def test_promises_are_bounded() -> None:
    bookings = Bookings(1)
    bookings.add(entry("a", fingerprint="f"), 10.0, now=0.0)
    bookings.add(entry("b", fingerprint="g"), 10.0, now=0.0)
    assert len(bookings) == 1
