"""The forecast, which skips what it knows, against the scheduler taken step by step."""

from hypothesis import example, given
from hypothesis import strategies as st

from tests.worker.engine.fakes import entry, fuzzed, spec
from worker.engine.costs import Costs, Kind
from worker.engine.forecast import forecast
from worker.engine.queue import Entry, Picture, Queue
from worker.engine.request import Priority
from worker.engine.scheduler import Scheduler
from worker.models.base import Sample

STEP_S = {1: 0.100713, 2: 0.120517, 3: 0.150391, 4: 0.200639}

arrivals = st.lists(
    st.builds(
        entry,
        specs=st.lists(
            st.builds(spec, width=st.sampled_from([128, 256]), steps=st.integers(1, 12)),
            min_size=1,
            max_size=3,
        ).map(tuple),
        arrived_at=st.floats(1, 100),
        key=st.sampled_from("abc"),
        priority=st.sampled_from(Priority),
        exclusive=st.integers(0, 9).map(lambda n: n == 0),
    ),
    min_size=1,
    max_size=12,
)


def known() -> Costs:
    costs = Costs(max_batch=4)
    for width, rows in ((w, n) for w in (128, 256) for n in STEP_S):
        costs.record("step", (width, 128), rows, STEP_S[rows] * width / 128)
        costs.record("encode", (width, 128), rows, 0.0101273 * rows)
        costs.record("decode", (width, 128), rows, 0.0500817 * rows)
    return costs


class StepByStep:
    """What the driver does, with the time that costs predict."""

    def __init__(self, entries: list[Entry], scheduler: Scheduler) -> None:
        self.queue, self.scheduler = Queue.of(entries), scheduler
        self.now = 0.0
        self.starts: dict[Entry, float] = {}

    def run(self) -> None:
        while (lead := self.scheduler.leader(self.queue)) is not None:
            if newcomers := self.scheduler.newcomers(lead, self.queue):
                for picture in newcomers:
                    self.starts.setdefault(picture.entry, self.now)
                    picture.sample = Sample(
                        picture.spec, picture.size, picture.spec.parameters.steps
                    )
                self.spend("encode", newcomers)
                continue
            self.step(self.scheduler.batch(lead, self.queue))

    def step(self, batch: list[Picture]) -> None:
        self.spend("step", batch)
        for picture in batch:
            assert picture.sample
            picture.sample.step_index += 1
        if drawn := [p for p in batch if p.sample and p.sample.drawn]:
            self.spend("decode", drawn)
            for picture in drawn:
                picture.done, picture.sample = True, None
                if not picture.entry.undone:
                    self.queue.remove(picture.entry)

    def spend(self, kind: Kind, pictures: list[Picture]) -> None:
        rows = sum(picture.rows for picture in pictures)
        seconds = self.scheduler.costs.predict_s(kind, pictures[0].size, rows)
        self.scheduler.charge(pictures, seconds)
        self.now += seconds


def solo(key: str, priority: Priority, *steps: int) -> Entry:
    specs = tuple(spec(width=128, steps=n) for n in steps)
    return entry(key=key, arrived_at=1.0, priority=priority, exclusive=True, specs=specs)


# A turn of 'a' ends with nothing left but rounding, which differs with the number of calls.
TIE = [
    solo("a", Priority.INTERACTIVE, 1),
    solo("a", Priority.BATCH, 8, 10, 9),
    solo("a", Priority.BATCH, 1),
    solo("b", Priority.BATCH, 10, 4),
]


@fuzzed
@example(entries=TIE)
@given(entries=arrivals)
def test_predicted_waits_are_those_of_the_scheduler(entries: list[Entry]) -> None:
    scheduler = Scheduler(known())
    predicted = forecast(entries, scheduler)
    real = StepByStep(entries, scheduler)
    real.run()
    assert set(predicted) == set(real.starts)
    for each, at in real.starts.items():
        assert abs(predicted[each].wait_s - at) <= 0.06, (each, at, predicted[each])


@fuzzed
@given(entries=arrivals)
def test_everybody_gets_a_turn(entries: list[Entry]) -> None:
    real = StepByStep(entries, Scheduler(known()))
    real.run()
    assert set(real.starts) == set(entries)
    alone_s = sum(
        p.spec.parameters.steps * p.size[0] / 128 * 0.100713 + 0.0603
        for e in entries
        for p in e.pictures
    )
    assert real.now <= 1.01 * alone_s
