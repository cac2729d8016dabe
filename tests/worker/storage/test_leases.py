import itertools
import time
from collections.abc import Iterator
from typing import Any

import pytest
import sqlalchemy as sa

from tests.worker.storage.test_jobs import SHARE, Store
from worker.storage import job_changes, job_turns, keys, leases
from worker.storage.jobs import Job, jobs
from worker.storage.leases import LEASE_S, Leased, Offer
from worker.types import KNOWN

NAMES = (f"lease-{k}" for k in itertools.count())


@pytest.fixture
def store(url: str) -> Iterator[Store]:
    made = Store(url)
    yield made
    made.engine.dispose()


def take(store: Store, count: int = 1, holder: str = "w1", now: float = 200.0) -> list[Leased]:
    return store(leases.take, holder, lambda: next(NAMES), lambda _: count, now)


def test_items_are_leased_in_order_and_once(store: Store) -> None:
    job = store.create()
    first, second = take(store, 2), take(store, 2)
    assert [i.number for i in first + second] == [1, 2, 3]
    assert [i.prompt for i in first] == ["a", "b"]
    assert take(store) == []
    assert store.job(job.id).counts["running"] == 3


def test_last_result_ends_the_job(store: Store) -> None:
    job = store.create()
    for item in take(store, 3):
        assert store.job(job.id).state == "running"
        assert store(leases.finish, item, f"img_{item.number}", now=300.0)
    done = store.job(job.id)
    assert (done.state, done.finished_at, done.counts["done"]) == ("completed", 300.0, 3)
    assert [i.image_id for i in store.items(job.id)] == ["img_1", "img_2", "img_3"]


def test_a_failed_item_fails_the_job_once_all_are_over(store: Store) -> None:
    job = store.create()
    one, *others = take(store, 3)
    store(leases.fail, one, "request_refused", "it kills workers", 300.0)
    assert store.job(job.id).state == "running"
    for item in others:
        store(leases.finish, item, "img", 301.0)
    assert store.job(job.id).state == "failed"
    store(job_changes.retry, store.job(job.id), SHARE)
    again = store.job(job.id)
    assert (again.state, again.finished_at, again.counts["waiting"]) == ("running", None, 1)
    assert store.items(job.id, "waiting")[0].error_code is None


def test_only_the_present_lease_gives_a_result(store: Store) -> None:
    job = store.create()
    [item] = take(store)
    assert store(leases.end, {"w1"}, 201.0) == 1
    [other] = take(store, holder="w2")
    assert other.number == item.number
    assert not store(leases.finish, item, "img_late", 300.0)
    assert not store(leases.fail, item, "x", "x", 300.0)
    assert not store(leases.requeue, item)
    assert store(leases.finish, other, "img_right", 300.0)
    assert store.items(job.id, "done")[0].image_id == "img_right"


def test_a_result_may_be_given_again_after_a_doubtful_commit(store: Store) -> None:
    job = store.create()
    [item] = take(store)
    assert store(leases.finish, item, "img_1", 300.0)
    assert store(leases.finish, item, "img_1", 300.0)
    assert not store(leases.finish, item, "img_2", 300.0)
    assert store.job(job.id).counts["done"] == 1


def test_leases_end_with_their_time_unless_they_are_renewed(store: Store) -> None:
    store.create()
    kept, lost = take(store, 2)
    late = 200.0 + LEASE_S + 1
    store(leases.renew, [kept.lease], 200.0 + LEASE_S)
    assert store(leases.snapshot, late).late
    assert store(leases.end, (), late) == 1
    assert store(leases.held_by, "w1") == {kept.lease}
    assert [i.number for i in take(store, 3, now=late)] == [lost.number, 3]
    assert not store(leases.snapshot, late).late


def test_a_snapshot_says_what_is_next_and_who_has_some(store: Store) -> None:
    assert store(leases.snapshot, 200.0) == leases.LeaseSnapshot(None, frozenset(), False)
    job = store.create()
    take(store, 1)
    seen = store(leases.snapshot, 200.0)
    assert seen.offer is not None
    assert (seen.offer.job_id, seen.offer.ready) == (job.id, 2)
    assert (seen.holders, seen.late) == (frozenset({"w1"}), False)
    store(job_changes.pause, store.job(job.id))
    assert store(leases.snapshot, 200.0) == leases.LeaseSnapshot(None, frozenset(), False)


def test_what_is_given_back_waits_until_it_may_be_tried_again(store: Store) -> None:
    job = store.create()
    [item] = take(store)
    why = ("storage_failed", "the disk is full")
    store(leases.requeue, item, not_before=250.0, tried=True, why=why)
    assert [i.number for i in take(store, 3)] == [2, 3]
    assert store(leases.snapshot, 249.0).offer is None
    [again] = take(store, now=250.0)
    assert (again.number, again.tries) == (1, 1)
    assert store.items(job.id)[0].error_message == "the disk is full"
    store(leases.finish, again, "img", 251.0)
    assert store.items(job.id)[0].error_code is None


def test_paused_and_cancelled_items_lose_their_leases(store: Store) -> None:
    job = store.create()
    [item] = take(store)
    store(job_changes.pause, store.job(job.id))
    assert store(leases.held_by, "w1") == frozenset()
    assert take(store) == []
    assert not store(leases.finish, item, "img", 300.0)
    store(job_changes.resume, store.job(job.id))
    [again] = take(store)
    store(job_changes.cancel, store.job(job.id), 301.0)
    assert not store(leases.finish, again, "img", 302.0)
    assert store.job(job.id).counts == {
        "waiting": 0,
        "running": 0,
        "done": 0,
        "failed": 0,
        "cancelled": 3,
    }


def test_a_deleted_job_takes_its_leases_along(store: Store) -> None:
    job = store.create()
    [item] = take(store)
    store(job_changes.delete, job.id)
    assert not store(leases.finish, item, "img", 300.0)


def test_owners_take_turns_and_interactive_jobs_go_first(store: Store) -> None:
    store.create("1" * 32, owner="busy", prompts=("b",) * 9)
    store.create("2" * 32, owner="quiet", prompts=("q",) * 9)
    order = [take(store, 2)[0].owner for _ in range(4)]
    assert order == ["busy", "quiet", "busy", "quiet"]
    store.create("3" * 32, owner="busy", prompts=("now",), priority=0)
    assert take(store)[0].prompt == "now"


def test_a_job_that_others_take_from_at_this_moment_is_passed_over(store: Store) -> None:
    if store.engine.dialect.name == "sqlite":
        pytest.skip("whoever writes has the whole of SQLite")
    first, second = store.create("r1", "k1"), store.create("r2", "k2")

    def take_one(connection: sa.Connection) -> list[Leased]:
        return leases.take(connection, "w1", lambda: next(NAMES), lambda _: 1, 200.0)

    with store.engine.connect() as other, other.begin():
        assert [item.job_id for item in take_one(other)] == [first.id]
        assert [item.job_id for item in take(store)] == [second.id]


def test_room_is_asked_for_the_job_that_is_next(store: Store) -> None:
    store.create()
    asked: list[Offer] = []

    def full(offer: Offer) -> int:
        asked.append(offer)
        return 0

    assert store(leases.take, "w1", lambda: "x", full, 200.0) == []
    assert (asked[0].parameters.size, asked[0].ready) == ((256, 128), 3)


def test_a_job_of_a_newer_version_is_left_to_its_workers(store: Store) -> None:
    newer, older = store.create(), store.create("f" * 32)
    needs = jobs.update().where(jobs.c.id == newer.id).values(needs=KNOWN + 1)
    store(lambda connection: connection.execute(needs))
    assert {item.job_id for item in take(store, 10)} == {older.id}
    assert take(store) == []
    assert store(leases.snapshot, 200.0).offer is None
    assert store.job(newer.id).counts["waiting"] == newer.total


def test_leases_can_be_let_go(store: Store) -> None:
    store.create()
    one, two = take(store, 2)
    store(leases.release, [one.lease, "unknown"])
    assert store(leases.held_by, "w1") == {two.lease}
    assert take(store)[0].number == one.number


def test_a_job_that_does_harm_is_stopped(store: Store) -> None:
    job = store.create()
    one, _ = take(store, 2)
    store(leases.fail, one, "request_refused", "it kills", 300.0)
    assert store(leases.failures, job.id, "request_refused") == 1
    store(leases.pause_job, job.id)
    assert store.job(job.id).state == "paused"
    assert store.job(job.id).counts["waiting"] == 2


def owned(store: Store, name: str, **values: Any) -> tuple[str, Job]:
    """A key and its job."""
    key, _ = keys.new_key(b"secret", name, **values)
    store(keys.insert, key, b"secret")
    return key.id, store.create(name * 32, owner=key.id)


def test_jobs_of_a_key_that_is_not_good_are_held(store: Store) -> None:
    leaked, job = owned(store, "a")
    _, expired = owned(store, "b", expires_at=time.time() - 1)
    _, other = owned(store, "c")
    store(keys.change, leaked, disabled=True)
    assert [store.job(j.id).held for j in (job, expired, other)] == ["disabled", "expired", ""]
    assert {item.job_id for item in take(store, 9, now=time.time())} == {other.id}
    assert take(store, 9, now=time.time()) == []
    assert [j.id for j in store(job_turns.foreseen)] == [other.id]
    store(keys.change, leaked, disabled=False)
    assert len(take(store, 9, now=time.time())) == 3
    assert store.job(job.id).held == ""


def test_jobs_whose_key_is_gone_are_held(store: Store) -> None:
    id, job = owned(store, "a")
    store(keys.delete, id)
    assert store.job(job.id).held == "deleted"
    assert take(store) == []


def test_what_is_under_way_of_a_stopped_key_gives_no_result(store: Store) -> None:
    id, job = owned(store, "a")
    _, other = owned(store, "b")
    under_way = {item.job_id: item for item in take(store) + take(store)}
    seen = store.job(job.id).revision
    store(job_changes.stop, id)
    assert store.job(job.id).counts["waiting"] == 3
    assert store.job(job.id).revision > seen  # so that event streams tell it
    assert not store(leases.finish, under_way[job.id], "img", 300.0)
    assert store(leases.finish, under_way[other.id], "img", 300.0)
    assert store.job(other.id).counts["done"] == 1


def test_jobs_of_a_deleted_key_are_cancelled_with_the_reason(store: Store) -> None:
    id, job = owned(store, "a")
    [one, _] = take(store, 2)
    store(leases.finish, one, "img", 300.0)
    _, other = owned(store, "b")
    assert store(job_changes.cancel_all, id, "The key a was deleted.", 400.0) == 1
    ended = store.job(job.id)
    assert (ended.state, ended.finished_at) == ("cancelled", 400.0)
    assert (ended.counts["done"], ended.counts["cancelled"]) == (1, 2)
    said = {(i.error_code, i.error_message) for i in store.items(job.id, "cancelled")}
    assert said == {("key_deleted", "The key a was deleted.")}
    assert store.job(other.id).state == "running"
