from tests.worker.engine.fakes import entry
from worker.engine.reservations import GRACE_S, Reservations


def test_a_promise_is_known_again_by_key_and_fingerprint() -> None:
    reservations = Reservations(8)
    refused = entry("a", key="one", fingerprint="f")
    reservations.add(refused, 10.0, now=0.0)
    assert reservations.find(entry("a", key="other", fingerprint="f"), now=10.0) is None
    assert reservations.find(entry("b", key="one", fingerprint="g"), now=10.0) is None
    promise = reservations.find(entry("a", key="one", fingerprint="f"), now=10.0)
    assert promise
    assert promise.entry is refused


def test_a_promise_is_kept_once() -> None:
    reservations = Reservations(8)
    reservations.add(entry("a", fingerprint="f"), 10.0, now=0.0)
    reservations.discard(reservations.find(entry("a", fingerprint="f"), now=10.0))
    assert reservations.find(entry("a", fingerprint="f"), now=10.0) is None


def test_a_promise_is_due_at_its_time_and_not_long_before() -> None:
    reservations = Reservations(8)
    reservations.add(entry("a", fingerprint="f"), 10.0, now=0.0)
    promise = reservations.find(entry("a", fingerprint="f"), now=5.0)
    assert promise
    assert not promise.is_due(5.0)
    assert reservations.due(5.0) == []
    assert promise.is_due(10.0)
    assert reservations.due(10.0)


def test_who_does_not_come_loses_the_place() -> None:
    reservations = Reservations(8)
    reservations.add(entry("a", fingerprint="f"), 10.0, now=0.0)
    assert reservations.find(entry("a", fingerprint="f"), now=10.5 + GRACE_S) is None
    assert reservations.entries() == []


def test_promises_are_bounded() -> None:
    reservations = Reservations(1)
    reservations.add(entry("a", fingerprint="f"), 10.0, now=0.0)
    reservations.add(entry("b", fingerprint="g"), 10.0, now=0.0)
    assert len(reservations) == 1
