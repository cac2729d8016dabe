from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any, TypeVar

import pytest
import sqlalchemy as sa

from worker.errors import Conflict, LimitReached, Refused
from worker.storage import job_changes, job_items, jobs
from worker.storage.database import create_engine
from worker.storage.jobs import Job, JobSpec, Share
from worker.storage.schema import metadata
from worker.types import FIELDS, Parameters

T = TypeVar("T")
REQUEST = "0123456789abcdef0123456789abcdef"
WISH = JobSpec(
    name="posters",
    prompts=("a", "b", "c"),
    first_seed=jobs.SEEDS - 2,
    parameters=Parameters(256, 128, 8),
    output_format="png",
    quality=None,
    priority=1,
    idempotency_key=None,
    digest="d",
)


SHARE = Share(open_jobs=1000, open_images=100_000, stored_bytes=1 << 30)


class Store:
    """Each call is a transaction of its own, as for workers."""

    def __init__(self, url: str, timeout_s: float = 5.0) -> None:
        self.engine = create_engine(url, timeout_s)

    def __call__(self, work: Callable[..., T], *args: Any, **values: Any) -> T:
        with self.engine.connect() as connection, connection.begin():
            return work(connection, *args, **values)

    def create(self, request_id: str = REQUEST, owner: str = "k1", **changes: Any) -> Job:
        share = changes.pop("share", SHARE)
        how = {name: changes.pop(name) for name in FIELDS if name in changes}
        parameters = replace(WISH.parameters, **how)
        wish = replace(WISH, parameters=parameters, **changes)
        return self(jobs.create, wish, owner, owner, request_id, now=100.0, share=share)

    def job(self, job_id: str) -> Job:
        return self(jobs.require, job_id)

    def items(self, job_id: str, *states: str) -> list[job_items.Item]:
        return self(job_items.items_of, job_id, states, 100, 0)


@pytest.fixture
def store(url: str) -> Iterator[Store]:
    made = Store(url)
    yield made
    made.engine.dispose()


def test_migration_makes_what_the_tables_say(store: Store) -> None:
    def said(kind: sa.types.TypeEngine[Any]) -> str:
        return kind.compile(store.engine.dialect)

    def columns(connection: sa.Connection, table: str) -> dict[str, str]:
        found = sa.inspect(connection).get_columns(table)
        return {c["name"]: f"{said(c['type'])} {c['nullable']}" for c in found}

    def indexes(connection: sa.Connection, table: str) -> set[object]:
        found = sa.inspect(connection).get_indexes(table)
        own = [index for index in found if "duplicates_constraint" not in index]
        return {(i["name"], tuple(i["column_names"]), i["unique"]) for i in own}

    for table in (jobs.jobs, jobs.items, jobs.prompts, jobs.holds):
        declared = {c.name: f"{said(c.type)} {c.nullable}" for c in table.columns}
        assert store(columns, table.name) == declared
        known = {(i.name, tuple(c.name for c in i.columns), i.unique) for i in table.indexes}
        assert store(indexes, table.name) == known
        assert table in metadata.sorted_tables


def test_job_has_an_item_for_each_prompt_with_its_own_seed(store: Store) -> None:
    job = store.create()
    assert (job.state, job.total, job.counts["waiting"]) == ("running", 3, 3)
    found = [(i.number, i.prompt, i.seed, i.state) for i in store.items(job.id)]
    assert found == [
        (1, "a", jobs.SEEDS - 2, "waiting"),
        (2, "b", jobs.SEEDS - 1, "waiting"),
        (3, "c", 0, "waiting"),
    ]


def test_a_replayed_post_makes_one_job(store: Store) -> None:
    first = store.create()
    assert store.create().id == first.id
    assert store.create(request_id="f" * 32).id != first.id


def test_an_idempotency_key_makes_one_job_of_its_owner(store: Store) -> None:
    first = store.create(idempotency_key="monday")
    again = store.create("e" * 32, idempotency_key="monday")
    other = store.create("f" * 32, owner="k2", idempotency_key="monday")
    assert again.id == first.id != other.id


def test_an_idempotency_key_stands_for_one_wish(store: Store) -> None:
    store.create(idempotency_key="monday")
    with pytest.raises(Refused, match="asked for something else") as refused:
        store.create("e" * 32, idempotency_key="monday", digest="other")
    assert refused.value.param == "idempotency_key"


def test_two_posts_at_once_cannot_both_make_a_job(store: Store) -> None:
    job = store.create()

    def blindly(connection: sa.Connection) -> None:
        row = connection.execute(sa.select(jobs.jobs)).mappings().one()
        connection.execute(jobs.jobs.insert().values(**{**row, "id": "job_other"}))

    with pytest.raises(sa.exc.IntegrityError):
        store(blindly)
    assert store.job(job.id).total == 3


def test_what_waits_is_bounded_for_each_owner(
    store: Store,
) -> None:
    share = replace(SHARE, open_images=5)
    first = store.create(share=share)
    with pytest.raises(LimitReached, match=r"3 pictures of your jobs are waiting.* and 5 may"):
        store.create("e" * 32, share=share)
    store.create("f" * 32, owner="k2", share=share)
    store(job_changes.cancel, store.job(first.id), 1.0)
    store.create("e" * 32, share=share)


def test_list_is_newest_first_and_paged(store: Store) -> None:
    ids = [store.create(f"{k}" * 32).id for k in range(5)]
    everything = [job.id for job in store(jobs.page, "k1", (), 10, None)]
    assert sorted(everything) == sorted(ids)
    first = [job.id for job in store(jobs.page, "k1", (), 2, None)]
    rest = [job.id for job in store(jobs.page, "k1", (), 10, first[-1])]
    assert first + rest == everything
    assert store(jobs.page, "k2", (), 10, None) == []
    assert len(store(jobs.page, None, ("running", "paused"), 10, None)) == 5
    assert store(jobs.page, None, ("paused",), 10, None) == []
    assert store(jobs.page, None, (), 10, "job_gone") == []


def test_pause_and_resume_may_be_repeated(store: Store) -> None:
    job = store.create()
    for _ in range(2):
        store(job_changes.pause, store.job(job.id))
        assert store.job(job.id).state == "paused"
    for _ in range(2):
        store(job_changes.resume, store.job(job.id))
        assert store.job(job.id).state == "running"


def test_a_cancelled_job_is_neither_paused_nor_resumed(store: Store) -> None:
    job = store.create()
    for now in (7.0, 8.0):
        store(job_changes.cancel, store.job(job.id), now)
    cancelled = store.job(job.id)
    assert (cancelled.state, cancelled.finished_at) == ("cancelled", 7.0)
    assert cancelled.counts["cancelled"] == 3
    for verb in (job_changes.pause, job_changes.resume):
        with pytest.raises(Conflict, match="is cancelled and cannot be"):
            store(verb, cancelled)


def test_a_cancelled_job_is_drawn_after_all_by_a_retry(store: Store) -> None:
    job = store.create()
    store(job_changes.change_items, job.id, jobs.items.c.number == 1, state="done")
    store(job_changes.cancel, store.job(job.id), 7.0)
    store(job_changes.retry, store.job(job.id), SHARE)
    again = store.job(job.id)
    assert (again.state, again.finished_at) == ("running", None)
    assert (again.counts["done"], again.counts["waiting"]) == (1, 2)


def test_a_job_that_was_paused_when_it_was_cancelled_can_wait_again(store: Store) -> None:
    job = store.create()
    store(job_changes.pause, job)
    store(job_changes.cancel, store.job(job.id), 7.0)
    store(job_changes.retry, store.job(job.id), SHARE, paused=True)
    again = store.job(job.id)
    assert (again.state, again.finished_at, again.counts["waiting"]) == ("paused", None, 3)


def test_whoever_knows_a_revision_learns_what_changed_since(store: Store) -> None:
    job = store.create()
    store(job_changes.change_items, job.id, jobs.items.c.number == 2, state="done")
    seen = store(job_items.changed_since, job.id, 0, 10)
    assert [(i.number, i.state) for i in seen] == [(2, "done")]
    store(job_changes.cancel, store.job(job.id), 1.0)
    first = store(job_items.changed_since, job.id, seen[-1].revision, 1)
    rest = store(job_items.changed_since, job.id, first[-1].revision, 10)
    assert [i.number for i in first + rest] == [1, 3]
    assert rest[-1].revision <= store.job(job.id).revision
    assert store(job_items.changed_since, job.id, store.job(job.id).revision, 10) == []


def test_deleted_and_old_jobs_leave_no_items(store: Store) -> None:
    one, two = store.create(), store.create("e" * 32)
    store(job_changes.delete, one.id)
    assert store(jobs.get, one.id) is None
    store(job_changes.cancel, two, 50.0)
    assert store(job_changes.forget_finished, 50.0) == 0
    assert store(job_changes.forget_finished, 51.0) == 1
    count = sa.select(sa.func.count()).select_from(jobs.items)
    assert store(lambda connection: connection.scalar(count)) == 0
