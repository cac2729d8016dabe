import errno
import json
import os
import time
from collections.abc import Iterable
from pathlib import Path

import anyio
import numpy as np
import pytest
from PIL import Image

from tests.worker.conftest import ready, serving
from tests.worker.databases import locked
from tests.worker.jobs.conftest import NEVER_S, eventually, over, settings_of
from tests.worker.storage.test_jobs import Store
from worker.coordination import host_drain
from worker.coordination.change_notifier import ChangeNotifier
from worker.coordination.heartbeat import Running, digest
from worker.coordination.inflight import read_in_flight
from worker.coordination.lease_holder import this_process
from worker.errors import Refused, TooSlow
from worker.jobs.drawing import _fingerprint
from worker.jobs.runner import HARMFUL, IDLE_LOOK_S, _fail, _new_lease
from worker.lifecycle import Lifecycle
from worker.models.synthetic import text_of
from worker.settings import Settings
from worker.storage import gallery, job_changes, jobs, leases
from worker.storage.jobs import Job
from worker.storage.leases import Leased

pytestmark = pytest.mark.anyio
PROMPTS = tuple(f"item {k}" for k in range(9))


def pictures(store: Store, home: Path, job: Job) -> list[str]:
    """What the stored picture of each item spells, in order."""
    found = []
    for item in store.items(job.id):
        assert item.image_id is not None
        image = store(gallery.find, item.image_id)
        assert image is not None
        assert (image.job_id, image.job_number, image.owner) == (job.id, item.number, job.owner)
        pixels = np.asarray(Image.open(home / "images" / image.name))
        found.append(text_of(pixels))
    return found


async def test_every_item_gets_the_picture_of_its_seed(
    settings: Settings, store: Store, home: Path
) -> None:
    async with serving(settings) as (service, _):
        job = store.create(prompts=PROMPTS)
        await ready(service)
        done = await over(store, job)
    assert (done.state, done.counts["done"]) == ("completed", 9)
    seeds = [(jobs.SEEDS - 2 + k) % jobs.SEEDS for k in range(9)]
    assert pictures(store, home, job) == [
        f"{prompt}|{seed}|8" for prompt, seed in zip(PROMPTS, seeds, strict=True)
    ]
    assert len(list((home / "images").rglob("img_*.png"))) == 9


async def test_every_picture_of_a_job_is_in_the_audit_log(
    settings: Settings, store: Store, home: Path
) -> None:
    async with serving(settings) as (service, _):
        job = store.create(prompts=PROMPTS)
        await ready(service)
        await over(store, job)
    texts = [path.read_text() for path in (home / "audit").iterdir()]
    noted = [json.loads(line) for text in texts for line in text.splitlines()]
    assert sorted(line["prompt"] for line in noted) == sorted(PROMPTS)
    assert {(line["job"], line["owner"]) for line in noted} == {(job.id, job.owner)}
    assert {line["image"] for line in noted} == {item.image_id for item in store.items(job.id)}


async def test_batches_are_full(home: Path, store: Store) -> None:
    # Steps so long that even a busy machine leases and admits the next items meanwhile.
    async with serving(settings_of(home, model="synthetic:step_ms=150")) as (service, _):
        await ready(service)
        before = service.model.engine.state().steps_done
        job = store.create(prompts=PROMPTS[:8])
        await over(store, job)
        assert service.model.engine.state().steps_done - before <= 2 * 8 + 2


async def test_workers_share_a_job(home: Path, store: Store) -> None:
    one, two = (settings_of(home, name, model="synthetic:step_ms=60") for name in ("w1", "w2"))
    async with serving(one) as (first, _), serving(two) as (second, _):
        await ready(first)
        await ready(second)
        before = [s.model.engine.state().totals["pictures_drawn"] for s in (first, second)]
        # More than one of them may lease before the other looks.
        job = store.create(prompts=[f"item {k}" for k in range(27)])
        await over(store, job)
        after = [s.model.engine.state().totals["pictures_drawn"] for s in (first, second)]
    assert min(b - a for a, b in zip(before, after, strict=True)) >= 2


async def test_a_host_that_is_wanted_out_begins_nothing_of_jobs_until_it_is_in_again(
    home: Path, store: Store
) -> None:
    out, other = (settings_of(home, name, run_dir=home / name) for name in ("w1", "w2"))
    out.run_dir.mkdir(exist_ok=True)
    host_drain.flag(out.run_dir).touch()
    async with serving(out) as (first, client):
        await ready(first)
        before = first.model.engine.state().totals["pictures_drawn"]
        async with serving(other) as (second, _):
            await ready(second)
            await over(store, store.create(prompts=PROMPTS))
        assert first.model.engine.state().totals["pictures_drawn"] == before
        asked = {"prompt": "a request", "size": "64x64"}
        assert (await client.post("/v1/images/generations", json=asked)).status_code == 200
        host_drain.flag(out.run_dir).unlink()
        await over(store, store.create(request_id="f" * 32, prompts=PROMPTS))


async def test_a_host_that_is_wanted_out_finishes_what_it_has_begun(
    slow: Settings, store: Store
) -> None:
    async with serving(slow) as (service, _):
        job = await drawing(store, service)
        host_drain.flag(slow.run_dir).touch()
        await eventually(lambda: service.components.jobs.held == 0)
        counts = store.job(job.id).counts
    assert counts["running"] == 0
    assert counts["done"] >= 2
    assert counts["waiting"] > 0


@pytest.fixture
def slow(home: Path, url: str) -> Settings:
    return settings_of(home, model="synthetic:step_ms=100", max_batch=2)


async def drawing(store: Store, service: Lifecycle) -> Job:
    """A job of many steps, once it is being drawn."""
    await ready(service)
    job = store.create(prompts=PROMPTS, steps=50)
    await eventually(lambda: service.model.engine.state().running == 2)
    return job


@pytest.mark.parametrize("verb", ["pause", "cancel", "delete"])
async def test_stopped_items_leave_within_a_step(slow: Settings, store: Store, verb: str) -> None:
    async with serving(slow) as (service, _):
        job = await drawing(store, service)
        match verb:
            case "pause":
                store(job_changes.pause, store.job(job.id))
            case "cancel":
                store(job_changes.cancel, store.job(job.id), time.time())
            case _:
                store(job_changes.delete, job.id)
        # Rung by nobody: the runner looks by itself.
        await eventually(lambda: not service.model.engine.state().running)
        await eventually(lambda: not service.components.jobs.held)
    if verb == "pause":
        assert store.job(job.id).counts["waiting"] == 9


async def test_draining_gives_back_what_has_not_begun(slow: Settings, store: Store) -> None:
    async with serving(slow) as (service, _):
        await ready(service)
        job = store.create(prompts=PROMPTS, steps=40)
        await eventually(lambda: service.model.engine.state().running == 2)
        await eventually(lambda: store.job(job.id).counts["running"] == 4)
        service.drain()
        await eventually(lambda: store.job(job.id).counts["running"] == 2)
        await eventually(lambda: store.job(job.id).counts["done"] == 2)
        assert store.job(job.id).counts["waiting"] == 7
        service.undrain()
        await eventually(lambda: store.job(job.id).counts["done"] > 2)


async def test_closing_gives_everything_back(slow: Settings, store: Store) -> None:
    async with serving(slow) as (service, _):
        job = await drawing(store, service)
    assert store.job(job.id).counts["waiting"] == 9


def take(store: Store, holder: str) -> Leased:
    return store(leases.take, holder, lambda: f"lease-{holder[-40:]}", lambda _: 1, time.time())[0]


async def test_leases_of_the_dead_end_at_once(
    settings: Settings, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(leases, "LEASE_S", NEVER_S)
    job = store.create()
    boot, _, at, name = this_process("w9").split("/")
    take(store, f"{boot}/4194304/{at}/{name}")
    async with serving(settings) as (service, _):
        await ready(service)
        done = await over(store, job)
    assert done.counts["done"] == 3


async def test_leases_of_the_living_end_by_time(
    settings: Settings, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(leases, "LEASE_S", NEVER_S)
    job = store.create()
    lost = take(store, this_process("w9"))
    own = jobs.items.c.lease == lost.lease
    async with serving(settings) as (service, _):
        await ready(service)
        await eventually(lambda: store.job(job.id).counts["done"] == 2)
        assert store.job(job.id).counts["running"] == 1
        store(lambda c: c.execute(jobs.items.update().where(own).values(lease_until=time.time())))
        done = await over(store, job)
    assert done.counts["done"] == 3
    assert not store(leases.finish, lost, "img_late", 1.0)


async def test_leases_that_nobody_remembers_are_given_back(
    settings: Settings, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(leases, "LEASE_S", NEVER_S)
    async with serving(settings) as (service, _):
        await ready(service)
        holder = service.components.jobs._holder
        job = store.create()
        with store.engine.connect() as raw, raw.begin():
            leases.take(raw, holder, lambda: "forgotten", lambda _: 1, time.time())
        await over(store, job)


async def test_a_failing_item_is_tried_again_and_then_fails(
    settings: Settings, store: Store
) -> None:
    job = store.create(prompts=("fine", "fault:error"))
    async with serving(settings) as (service, _):
        await ready(service)
        done = await over(store, job)
    assert (done.state, done.counts["done"], done.counts["failed"]) == ("failed", 1, 1)
    bad = store.items(job.id, "failed")[0]
    assert bad.error_code == "drawing_failed"
    assert "the drawing failed" in str(bad.error_message)


def strike(
    home: Path,
    store: Store,
    job: Job,
    number: int,
    deaths: Iterable[str] = ("w7-1-alone", "w8-2-alone"),
) -> None:
    """Two workers died with this item alone in their step."""
    [leased] = [store(leases.take, "x", lambda: "probe", lambda _: 1, time.time())[0]]
    store(leases.release, ["probe"])
    name = _fingerprint(Leased(**{**vars(leased), "job_id": job.id, "number": number}))
    folder = home / "strikes" / digest(name).hex()
    folder.mkdir(parents=True)
    for death in deaths:
        (folder / death).touch()


async def test_an_item_that_is_encoded_is_being_handled(
    settings: Settings, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[list[Running]] = []
    async with serving(settings) as (service, _):
        await ready(service)
        encoded = service.components.encoders.encoded

        def look(*how: object) -> object:
            seen.append(read_in_flight(settings.heartbeat))
            return encoded(*how)  # type: ignore[arg-type]

        monkeypatch.setattr(service.components.encoders, "encoded", look)
        job = store.create(prompts=PROMPTS[:1])
        await over(store, job)
        assert read_in_flight(settings.heartbeat) == []
    [[line]] = seen
    assert line.request == digest(f"{job.id}-{store.items(job.id)[0].number}")
    assert line.fingerprint != line.request, "it is known by what a strike would stand under"


async def test_an_item_that_ends_workers_is_not_tried_again(
    settings: Settings, store: Store, home: Path
) -> None:
    job = store.create()
    strike(home, store, job, 2)
    async with serving(settings) as (service, _):
        await ready(service)
        done = await over(store, job)
    assert (done.counts["done"], done.counts["failed"]) == (2, 1)
    bad = store.items(job.id, "failed")[0]
    assert (bad.number, bad.error_code) == (2, "request_refused")
    assert "ended 2 workers" in str(bad.error_message)


async def test_an_item_that_is_too_slow_fails_and_says_so(
    settings: Settings, store: Store, home: Path
) -> None:
    job = store.create()
    strike(home, store, job, 2, ("w7-1-late5", "w8-2-late20-patient-alone"))
    async with serving(settings) as (service, _):
        await ready(service)
        done = await over(store, job)
    assert (done.counts["done"], done.counts["failed"]) == (2, 1)
    bad = store.items(job.id, "failed")[0]
    assert (bad.number, bad.error_code) == (2, "too_slow")
    assert "took too long" in str(bad.error_message)


@pytest.mark.parametrize("error", [Refused("it ended workers"), TooSlow("it hangs")])
def test_a_job_full_of_them_is_paused(store: Store, error: Refused) -> None:
    job, now = store.create(prompts=PROMPTS), time.time()
    for number in range(HARMFUL):
        assert store.job(job.id).state == "running"
        [item] = store(leases.take, "x", lambda: f"lease {number}", lambda _: 1, now)  # noqa: B023
        store(_fail, item, error, now)
    assert store.job(job.id).state == "paused"
    assert store.job(job.id).counts["failed"] == HARMFUL


def test_a_job_of_which_nothing_is_left_is_over_not_paused(store: Store) -> None:
    job, now = store.create(prompts=PROMPTS[:HARMFUL]), time.time()
    for item in store(leases.take, "x", _new_lease, lambda _: HARMFUL, now):
        store(_fail, item, Refused("it ended workers"), now)
    assert store.job(job.id).state == "failed"


async def test_a_worker_pauses_a_job_full_of_them(
    settings: Settings, store: Store, home: Path
) -> None:
    job = store.create(prompts=PROMPTS)
    for number in (1, 2, 3):
        strike(home, store, job, number)
    # Were all of the other items done before the third refusal is told, the job would be over.
    last = jobs.items.c.number == len(PROMPTS)
    store(lambda c: c.execute(jobs.items.update().where(last).values(ready_at=2e10)))
    async with serving(settings) as (service, _):
        await ready(service)
        await eventually(lambda: store.job(job.id).state == "paused")
    assert {item.number for item in store.items(job.id, "failed")} == {1, 2, 3}


async def test_results_wait_for_a_locked_database(
    settings: Settings, store: Store, home: Path, url: str
) -> None:
    job = store.create(prompts=("slow",), steps=50)
    async with serving(settings) as (service, _):
        await ready(service)
        await eventually(lambda: store.job(job.id).counts["running"] == 1)
        with locked(url):
            await eventually(lambda: len(list((home / "images").rglob("img_*.png"))) == 1)
            await anyio.sleep(0.3)
            assert service.components.jobs.held == 1
        done = await over(store, job)
    assert pictures(store, home, job) == [f"slow|{jobs.SEEDS - 2}|50"]
    assert done.state == "completed"


async def test_without_room_on_the_disk_items_wait_and_say_why(
    settings: Settings, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    async with serving(settings) as (service, _):
        await ready(service)
        monkeypatch.setattr(os, "fsync", full)
        job = store.create(prompts=("a",))
        await eventually(lambda: store.items(job.id)[0].error_code == "storage_failed")
        assert store.job(job.id).counts["waiting"] == 1
        assert "No space left" in str(store.items(job.id)[0].error_message)


async def test_a_picture_whose_lease_is_lost_is_deleted(
    slow: Settings, store: Store, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with serving(slow) as (service, _):
        await ready(service)
        save = service.components.images.save

        def robbed(name: str, data: bytes) -> None:
            save(name, data)
            store(leases.end, [service.components.jobs._holder], 0.0)

        monkeypatch.setattr(service.components.images, "save", robbed)
        job = store.create(prompts=("a",), steps=1)
        await eventually(lambda: service.model.engine.state().totals["pictures_drawn"] > 2)
        monkeypatch.undo()
        await over(store, job)
    names = [p.stem for p in (home / "images").rglob("img_*.png")]
    assert names == [store.items(job.id)[0].image_id]


async def test_each_picture_is_in_the_audit_log(home: Path, store: Store) -> None:
    job = store.create(prompts=("a", "b"))
    async with serving(settings_of(home, audit={"log": True})) as (service, _):
        await ready(service)
        await over(store, job)
    lines = [json.loads(x) for f in (home / "audit").iterdir() for x in f.read_text().splitlines()]
    assert [(line["owner"], line["job"]) for line in lines] == [("k1", job.id)] * 2
    assert {line["image"] for line in lines} == {i.image_id for i in store.items(job.id)}


async def test_without_a_database_the_worker_goes_on(home: Path) -> None:
    unmade = Settings(run_dir=home / "run", var_dir=home, model="synthetic:step_ms=1")
    async with serving(unmade) as (service, client):
        await ready(service)
        answer = await client.post("/v1/images/generations", json={"prompt": "a"})
        assert answer.status_code == 200


async def test_a_worker_that_nobody_gives_work_looks_seldom(
    settings: Settings, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("worker.jobs.runner.IDLE_AFTER_S", 0.0)
    waits_s, wait = list[float](), ChangeNotifier.wait

    async def noted(notifier: ChangeNotifier, timeout_s: float) -> None:
        waits_s.append(timeout_s)
        await wait(notifier, timeout_s)

    monkeypatch.setattr(ChangeNotifier, "wait", noted)
    async with serving(settings) as (service, _):
        await ready(service)
        job = store.create(prompts=("a",))
        await over(store, job)
    assert waits_s[0] == IDLE_LOOK_S
