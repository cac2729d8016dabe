"""What a key may do holds for its jobs: when they are made, and as it is when they are drawn."""

import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import anyio
import httpx
import pytest

from tests.worker.api.middleware.test_access import Keyed
from tests.worker.conftest import ready, serving
from tests.worker.jobs.conftest import NEVER_S, eventually, over, settings_of
from tests.worker.storage.test_jobs import Store
from worker.coordination.quota import Hold, Quotas
from worker.engine.request import Priority
from worker.errors import Refused
from worker.generation.request import priority_of
from worker.jobs.drawing import require_allowed
from worker.storage import job_turns, keys
from worker.storage.jobs import Job
from worker.storage.keys import Key
from worker.storage.leases import Offer
from worker.storage.secret import shared_secret
from worker.types import Parameters

pytestmark = pytest.mark.anyio


@pytest.fixture
async def keyed(home: Path, url: str) -> AsyncIterator[Keyed]:
    settings = settings_of(home, auth="keys")
    secret = shared_secret(home / "key-secret")
    async with serving(settings) as (service, client):
        await ready(service)
        yield Keyed(service, client, secret)


async def post(keyed: Keyed, token: str, **changes: Any) -> httpx.Response:
    body = {"prompts": ["a"], "size": "128x64", "steps": 2, **changes}
    proof = {"Authorization": f"Bearer {token}"}
    return await keyed.client.post("/v1/jobs", json=body, headers=proof)


@pytest.mark.parametrize(
    ("limits", "param"), [({"max_pixels": 4096}, "size"), ({"max_steps": 1}, "steps")]
)
async def test_a_job_over_a_limit_is_refused_as_a_request_is(
    keyed: Keyed, limits: dict[str, Any], param: str
) -> None:
    _, token = await keyed.make(**limits)
    proof = {"Authorization": f"Bearer {token}"}
    asked = {"prompt": "a", "size": "128x64", "steps": 2}
    image = await keyed.client.post("/v1/images/generations", json=asked, headers=proof)
    job = await post(keyed, token)
    assert job.json() == image.json()
    assert (job.status_code, job.json()["error"]["param"]) == (image.status_code, param)


async def test_a_batch_key_has_no_interactive_jobs(keyed: Keyed) -> None:
    _, token = await keyed.make(priority="batch")
    answer = await post(keyed, token, priority="interactive")
    assert answer.json()["priority"] == "batch"


async def test_a_job_that_its_key_may_not_draw_any_more_fails_and_says_why(
    keyed: Keyed, store: Store
) -> None:
    key, _ = await keyed.make()
    await keyed.change(key, max_steps=4)
    job = await over(store, store.create(owner=key.id, prompts=("a",) * 200))
    assert (job.state, job.counts["failed"]) == ("failed", 200)
    assert {item.error_code for item in store.items(job.id)} == {"rate_limit_exceeded"}
    assert "Key 'ada' may use 4 a picture" in str(store.items(job.id)[0].error_message)
    # All at once, not batch by batch.
    assert job.revision == job.total + 1


async def test_jobs_of_a_key_that_became_a_batch_key_go_with_batch_work(
    keyed: Keyed, store: Store
) -> None:
    key, _ = await keyed.make()
    await keyed.change(key, priority="batch")
    job = await over(store, store.create(owner=key.id, priority=0))
    assert (job.state, job.priority) == ("completed", 1)


def test_what_was_leased_before_its_key_changed_is_looked_at_again() -> None:
    key = Key("key_a", "ada", b"", "", priority="batch", max_pixels=64)
    offer = Offer("job_a", key.id, key.id, 0, Parameters(16, 8, 4), 0.0, 1)
    with pytest.raises(Refused, match="16x8 is 128 pixels; Key 'ada' may draw 64"):
        require_allowed(key, offer)
    assert priority_of(key, Priority.INTERACTIVE) == Priority.BATCH
    require_allowed(None, offer)
    assert priority_of(None, Priority.INTERACTIVE) == Priority.INTERACTIVE


async def test_a_key_at_its_daily_limit_holds_up_nobody(keyed: Keyed, store: Store) -> None:
    busy, _ = await keyed.make("busy", images_per_day=2)
    other, _ = await keyed.make("other")
    first = store.create("1" * 32, owner=busy.id, prompts=("b",) * 256)
    second = store.create("2" * 32, owner=other.id, prompts=("o",) * 32)
    assert (await over(store, second)).counts["done"] == 32
    await eventually(lambda: store.job(first.id).held == "limit")
    await eventually(lambda: store.job(first.id).counts["running"] == 0)
    held = store.job(first.id)
    assert (held.counts["done"], held.counts["waiting"]) == (2, 254)
    # Little of it was leased in vain: what was looked at and what is taken may differ.
    assert changes_of(held) <= 16
    seen = (await keyed.client.get(f"/v1/jobs/{first.id}", headers=await operator(keyed))).json()
    assert (seen["state"], seen["held"]) == ("running", "key_limit")


def changes_of(job: Job) -> int:
    """Leases, results, holds and what was given back."""
    return job.revision // (job.total + 1)


async def test_what_is_not_counted_yet_is_not_leased_twice(
    keyed: Keyed, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    count = Quotas.hold

    async def slow(self: Quotas, *args: Any) -> Hold:
        await anyio.sleep(0.5)
        return await count(self, *args)

    monkeypatch.setattr(Quotas, "hold", slow)
    key, _ = await keyed.make(images_per_day=1)
    job = store.create(owner=key.id, prompts=("a",) * 256)
    await eventually(lambda: store.job(job.id).held == "limit")
    await eventually(lambda: store.job(job.id).counts["running"] == 0)
    held = store.job(job.id)
    assert held.counts["done"] == 1
    assert changes_of(held) == 3  # leased, drawn, held


async def test_a_held_key_draws_again_once_its_limit_is_raised(keyed: Keyed, store: Store) -> None:
    key, _ = await keyed.make(images_per_day=1)
    job = store.create(owner=key.id)
    await eventually(lambda: store.job(job.id).held == "limit")

    def raised(connection: Any) -> None:  # as `zimage keys change` does
        keys.change(connection, key.id, images_per_day=3)
        job_turns.let_draw(connection, key.id)

    store(raised)
    assert (await over(store, job)).counts["done"] == 3


async def test_a_key_that_is_changed_while_its_limit_is_looked_at_is_not_held(
    keyed: Keyed, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    key, _ = await keyed.make(images_per_day=1)
    quotas, changed = keyed.service.components.quotas, anyio.Event()
    read = quotas.today

    async def today(asked: Key) -> int | None:
        found = await read(asked)
        if found and not changed.is_set():
            await keyed.change(key, images_per_day=3)
            changed.set()
        return found

    monkeypatch.setattr(quotas, "today", today)
    job = store.create(owner=key.id)
    assert (await over(store, job)).counts["done"] == 3
    assert changed.is_set()


async def test_a_hold_ends_by_itself(keyed: Keyed, store: Store) -> None:
    key, _ = await keyed.make()
    store(job_turns.hold, key.id, time.time() + NEVER_S)
    job = store.create(owner=key.id)
    assert store.job(job.id).held == "limit"
    store(job_turns.hold, key.id, time.time() + 1)
    assert (await over(store, job)).counts["done"] == 3


async def operator(keyed: Keyed) -> dict[str, str]:
    _, token = await keyed.make("ops", role="ops")
    return {"Authorization": f"Bearer {token}"}
