"""What happens to a job, as server-sent events."""

import asyncio
import time
from collections.abc import AsyncGenerator
from functools import partial
from typing import Any

import sqlalchemy as sa

from worker.api import sse
from worker.api.routes.job_objects import (
    MAX_ITEMS,
    describe,
    describe_item,
    few,
    missing,
    pictures_of,
)
from worker.components import Components
from worker.coordination.progress import Steps
from worker.storage import job_items, jobs
from worker.storage.gallery import StoredImage
from worker.storage.job_items import Item
from worker.storage.jobs import Job

_LOOK_S = 1.0
_STEPS_S = 0.25


async def events(
    components: Components, job_id: str, after: int, root: str
) -> AsyncGenerator[bytes, None]:
    """All that happens to the job after revision ``after``, each event as bytes on the wire. Paths
    in them begin with ``root``."""
    notifier, told, look_at = components.jobs.listen(), Steps(), 0.0
    leases: dict[str, int] = {}
    while True:
        if notifier.changed() or time.monotonic() >= look_at:
            look = partial(_changes, job_id=job_id, after=after)
            job, changed, more, images, leases = await components.database.read(look)
            for item in changed:
                yield sse.event("job.item", item=describe_item(item, job, images, {}, root))
            if more:
                after = changed[-1].revision
                continue
            if changed or job.revision > after:
                # The only event with an id: a stream that is cut before it tells its items again.
                after = job.revision
                ends = await components.job_eta.finish_times()
                yield _event(after, "job.updated", job=describe(job, ends, components.models))
            if job.over:
                return
            look_at = time.monotonic() + _LOOK_S
        new = await _news(components, leases, told)
        for lease, (done, of) in new.items():
            yield sse.event("job.step", number=leases[lease], step=done, steps=of)
        told = {lease: told[lease] for lease in leases if lease in told} | new
        await asyncio.sleep(_STEPS_S)


async def _news(components: Components, leases: dict[str, int], told: Steps) -> Steps:
    """Steps of ``leases`` that were not told yet."""
    steps = await components.steps.read() if leases else {}
    return {k: steps[k] for k in leases if k in steps and told.get(k) != steps[k]}


def _changes(
    connection: sa.Connection, job_id: str, after: int
) -> tuple[Job, list[Item], bool, dict[str, StoredImage], dict[str, int]]:
    job = jobs.get(connection, job_id)
    if job is None:
        raise missing(job_id)
    found = job_items.changed_since(connection, job_id, after, MAX_ITEMS + 1)
    changed, more = few(found, MAX_ITEMS)
    leases = job_items.leases_of(connection, job_id)
    return job, changed, more, pictures_of(connection, changed), leases


def _event(revision: int, kind: str, **fields: Any) -> bytes:
    return b"id: %d\n%b" % (revision, sse.event(kind, **fields))
