"""Random arrivals, sizes, cancellations and faults, driven without a thread."""

import logging
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.worker.engine.fakes import GatedPipeline, entry, fuzzed, recorder, spec
from worker.coordination.heartbeat import HeartbeatFile
from worker.engine.allowance import Allowances
from worker.engine.costs import Costs
from worker.engine.driver import Driver
from worker.engine.heartbeat_writer import HeartbeatWriter
from worker.engine.limits import Limits
from worker.engine.queue import Entry, Queue
from worker.engine.request import Drawn, Priority
from worker.engine.scheduler import Scheduler
from worker.errors import ZimageError
from worker.models.base import OnInnerStep, OutOfMemory, Sample
from worker.types import DrawSpec


@pytest.fixture(autouse=True, scope="module")
def quiet() -> Iterator[None]:
    logging.disable()
    yield
    logging.disable(logging.NOTSET)


pictures = st.builds(
    spec,
    prompt=st.sampled_from(["short", "a longer prompt", "error", "memory"]),
    width=st.sampled_from([64, 128]),
    steps=st.integers(1, 4),
    guidance_scale=st.sampled_from([0.0, 4.0]),
    reproducible=st.booleans(),
)
arrivals = st.builds(
    entry,
    specs=st.lists(pictures, min_size=1, max_size=3).map(tuple),
    arrived_at=st.floats(0, 100),
    key=st.sampled_from("ab"),
    priority=st.sampled_from(Priority),
    exclusive=st.integers(0, 9).map(lambda n: n == 0),
    partial_images=st.integers(0, 2),
)
# An arrival, the number of a request to cancel, or None: a step.
events = st.lists(arrivals | st.integers(0, 9) | st.none(), max_size=25)


class Judge(GatedPipeline):
    """Groups by length of prompt too, and checks what each call may hold."""

    def __init__(self, room: int) -> None:
        super().__init__()
        self.room = room
        self.shared: list[tuple[int, list[DrawSpec]]] = []

    def start(self, specs: Sequence[DrawSpec]) -> list[Sample]:
        samples = super().start(specs)
        for sample in samples:
            sample.group = sample.group, len(sample.spec.prompt)
        return samples

    def step(self, samples: Sequence[Sample], on_inner_step: OnInnerStep) -> None:
        assert len({sample.group for sample in samples}) == 1
        assert len({id(sample) for sample in samples}) == len(samples)
        prompts = [sample.spec.prompt for sample in samples]
        rows = sum(sample.rows for sample in samples)
        if len(samples) > 1:
            self.shared.append((rows, [sample.spec for sample in samples]))
        if "error" in prompts:
            raise RuntimeError
        if "memory" in prompts or rows > self.room:
            raise OutOfMemory
        super().step(samples, on_inner_step)


def driver_of(pipeline: Judge, cap: int, folder: str) -> Driver:
    costs = Costs(cap)
    heartbeat = HeartbeatFile(Path(folder) / "w1.beat")
    queue, scheduler = Queue(100), Scheduler(costs, quantum_s=1e-4)
    heartbeat_writer = HeartbeatWriter(heartbeat, Limits(), compiles=False)
    # The faults here are the prompts', so no recycling: it has a test of its own.
    allowances = Allowances(Limits(), costs, stepwise=pipeline.info.stepwise)
    return Driver(
        pipeline, heartbeat_writer, queue, costs, scheduler, allowances, max_lost_memory=10**6
    )


def out_of_order(entries: Sequence[Entry]) -> list[tuple[Entry, Entry]]:
    """Pairs of one key and priority in which the younger begins though the older could."""
    return [
        (old, young)
        for old in entries
        for young in entries
        if old.request.key == young.request.key
        and old.rank < young.rank
        and old.request.priority == young.request.priority
        and young.begun
        and not (old.begun or old.over)
        and not old.request.exclusive
        and not any(unlike(p, q) for p in old.request.specs for q in young.request.specs)
    ]


def unlike(one: DrawSpec, other: DrawSpec) -> bool:
    lengths = len(one.prompt), len(other.prompt)
    return (
        one.parameters.reproducible
        or one.parameters.size != other.parameters.size
        or lengths[0] != lengths[1]
    )


@fuzzed
@given(events=events, cap=st.integers(1, 5), room=st.integers(2, 6))
def test_everyone_is_answered_once_whatever_happens(
    events: list[Entry | int | None], cap: int, room: int
) -> None:
    entries: list[Entry] = []
    cancelled: set[Entry] = set()
    pipeline = Judge(room)
    with tempfile.TemporaryDirectory() as folder:
        driver = driver_of(pipeline, cap, folder)
        for event in events:
            if isinstance(event, Entry):
                entries.append(event)
                driver.queue.add(event)
            elif event is None:
                driver.tick()
            elif event < len(entries):
                cancelled.add(entries[event])
                driver.settle(entries[event], ZimageError("cancelled"))
        for _ in range(2000):
            if not driver.tick():
                break
    assert not len(driver.queue)
    for each in entries:
        require_one_answer(each, each in cancelled)
    assert all(rows <= cap for rows, _ in pipeline.shared)
    assert not any(s.parameters.reproducible for _, specs in pipeline.shared for s in specs)


def require_one_answer(each: Entry, cancelled: bool) -> None:
    heard = recorder(each)
    drawn = [event for event in heard.events if isinstance(event, Drawn)]
    indexes = [event.image_index for event in drawn]
    assert len(indexes) == len(set(indexes))
    complete = len(drawn) == len(each.request.specs)
    assert complete + len(heard.errors) == 1
    if not cancelled:
        bad = any(s.prompt in ("error", "memory") for s in each.request.specs)
        assert complete is not bad
    for event in drawn:
        assert (
            heard.texts[drawn.index(event)]
            == f"{event.spec.prompt}|7|{event.spec.parameters.steps}"
        )


@fuzzed
@given(entries=st.lists(arrivals, max_size=12), cap=st.integers(1, 5))
def test_order_is_kept_within_a_key_and_priority(entries: list[Entry], cap: int) -> None:
    with tempfile.TemporaryDirectory() as folder:
        driver = driver_of(Judge(room=100), cap, folder)
        for each in entries:
            driver.queue.add(each)
        while driver.tick():
            assert out_of_order(entries) == []
