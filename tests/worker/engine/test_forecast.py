import pytest

from tests.worker.engine.fakes import entry, spec
from worker.engine.costs import Costs
from worker.engine.forecast import forecast, remaining_s
from worker.engine.queue import Picture
from worker.engine.request import Priority
from worker.pipelines.base import Sample


@pytest.fixture
def costs() -> Costs:
    """Steps of 1 s for one row and for two; text and decode 0.5 s each. Drawn alone: 5 s."""
    costs = Costs(max_batch=2)
    for rows in (1, 2):
        costs.record("encode", (128, 128), rows, 0.5)
        costs.record("step", (128, 128), rows, 1.0)
        costs.record("decode", (128, 128), rows, 0.5)
    return costs


def begin(picture: Picture, steps_done: int) -> None:
    picture.entry.begun = True
    picture.sample = Sample(picture.spec, "group", 4, step_index=steps_done)


def test_an_empty_engine_keeps_nobody_waiting(costs: Costs) -> None:
    one = entry("a")
    assert forecast([one], costs)[one].wait_s == 0


def test_who_shares_the_next_step_does_not_wait(costs: Costs) -> None:
    one, two, three = entry("a"), entry("b"), entry("c")
    waits = forecast([one, two, three], costs)
    assert [waits[e].wait_s for e in (one, two, three)] == [0.0, 0.0, 5.0]
    assert [waits[e].position for e in (one, two, three)] == [0, 1, 2]


def test_what_runs_counts_with_its_remaining_steps(costs: Costs) -> None:
    running, waiting = entry("a", "b"), entry("c")
    for picture in running.pictures:
        begin(picture, steps_done=3)
    assert forecast([running, waiting], costs) == {
        waiting: forecast([waiting], costs)[waiting].__class__(0, 1.5)
    }


def test_batch_work_waits_for_interactive_requests(costs: Costs) -> None:
    batch = entry("a", arrived_at=1.0, priority=Priority.BATCH)
    interactive = entry("b", "c", arrived_at=2.0)
    waits = forecast([batch, interactive], costs)
    assert waits[interactive].wait_s == 0.0
    assert waits[batch].wait_s == 5.0


def test_a_newcomer_does_not_wait_for_all_of_a_busier_key(costs: Costs) -> None:
    crowd = [entry("a", key="crowd", arrived_at=float(k)) for k in range(10)]
    single = entry("b", key="single", arrived_at=99.0)
    assert forecast([*crowd, single], costs)[single].position == 1


def test_solo_pictures_wait_for_a_step_of_their_own(costs: Costs) -> None:
    plain, exact = entry("a"), entry(specs=(spec(reproducible=True),))
    assert forecast([plain, exact], costs)[exact].wait_s == 5.0


def test_remaining_time_covers_steps_and_decode(costs: Costs) -> None:
    picture = entry("a").pictures[0]
    begin(picture, steps_done=1)
    assert remaining_s(picture, 1, costs) == 3.5
