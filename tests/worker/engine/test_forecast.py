import pytest

from tests.worker.engine.fakes import entry, spec
from worker.engine.costs import Costs
from worker.engine.forecast import Call, forecast, remaining_s
from worker.engine.queue import Entry, Picture, Queue
from worker.engine.request import Priority, Queued
from worker.engine.scheduler import Scheduler
from worker.models.base import Sample


@pytest.fixture
def costs() -> Costs:
    """Steps of 1 s for one row and for two; text and decode 0.5 s each. Drawn alone: 5 s."""
    costs = Costs(max_batch=2)
    for rows in (1, 2):
        costs.record("encode", (128, 128), rows, 0.5)
        costs.record("step", (128, 128), rows, 1.0)
        costs.record("decode", (128, 128), rows, 0.5)
    return costs


def ahead(entries: list[Entry], costs: Costs, running: Call | None = None) -> dict[Entry, Queued]:
    return forecast(entries, Scheduler(costs), running)


def begin(picture: Picture, steps_done: int) -> None:
    picture.entry.begun = True
    picture.sample = Sample(picture.spec, "group", 4, step_index=steps_done)


def test_an_empty_engine_keeps_nobody_waiting(costs: Costs) -> None:
    one = entry("a")
    assert ahead([one], costs)[one].wait_s == 0


def test_who_shares_the_next_step_does_not_wait(costs: Costs) -> None:
    one, two, three = entry("a"), entry("b"), entry("c")
    waits = ahead([one, two, three], costs)
    assert [waits[e].wait_s for e in (one, two, three)] == [0.0, 0.0, 5.0]
    assert [waits[e].position for e in (one, two, three)] == [0, 1, 2]


def test_what_lies_between_the_pictures_of_one_request_is_told(costs: Costs) -> None:
    one, many = entry("a"), entry("b", "c", "d")
    waits = ahead([one, many], costs)
    assert waits[many].picture_s == waits[one].picture_s
    assert (waits[one].picture_s or 0) > 1


def test_what_runs_counts_with_its_remaining_steps(costs: Costs) -> None:
    running, waiting = entry("a", "b"), entry("c")
    for picture in running.pictures:
        begin(picture, steps_done=3)
    assert ahead([running, waiting], costs) == {waiting: Queued(0, 1.5)}


def test_a_freed_place_is_filled_at_the_next_step(costs: Costs) -> None:
    short, long, waiting = entry("a"), entry("b"), entry("c")
    begin(short.pictures[0], steps_done=3)
    begin(long.pictures[0], steps_done=0)
    assert ahead([short, long, waiting], costs)[waiting].wait_s == 1.5


def test_the_running_call_is_waited_for(costs: Costs) -> None:
    running, waiting = entry("a", "b"), entry("c")
    for picture in running.pictures:
        begin(picture, steps_done=3)
    call = Call("step", running.pictures, left_s=0.25)
    assert ahead([running, waiting], costs, call) == {waiting: Queued(0, 0.8)}


def test_the_forecast_changes_nothing(costs: Costs) -> None:
    running, waiting = entry("a"), entry("b")
    begin(running.pictures[0], steps_done=1)
    scheduler = Scheduler(costs)
    forecast([running, waiting], scheduler)
    assert (running.pictures[0].steps_done, waiting.pictures[0].sample) == (1, None)
    assert scheduler.leader(Queue.of([running, waiting])) is running.pictures[0]


def test_who_floods_does_not_make_others_wait_longer_than_a_turn(costs: Costs) -> None:
    flood = [entry("a", key="flood", arrived_at=float(k)) for k in range(30)]
    polite = entry("b", key="polite", arrived_at=99.0)
    waits = ahead([*flood, polite], costs)
    assert waits[polite].wait_s <= 10.0
    assert waits[flood[-1]].wait_s > 60.0


def test_a_whole_call_is_joined_by_nobody(costs: Costs) -> None:
    running, waiting = entry("a"), entry("b")
    begin(running.pictures[0], steps_done=0)
    call = Call("step", running.pictures, left_s=4.0)
    places = forecast([running, waiting], Scheduler(costs), call, stepwise=False)
    assert places[waiting].wait_s == 4.5


def test_batch_work_waits_for_interactive_requests(costs: Costs) -> None:
    batch = entry("a", arrived_at=1.0, priority=Priority.BATCH)
    interactive = entry("b", "c", arrived_at=2.0)
    waits = ahead([batch, interactive], costs)
    assert waits[interactive].wait_s == 0.0
    assert 5.0 <= waits[batch].wait_s <= 5.5


def test_a_newcomer_does_not_wait_for_all_of_a_busier_key(costs: Costs) -> None:
    crowd = [entry("a", key="crowd", arrived_at=float(k)) for k in range(10)]
    single = entry("b", key="single", arrived_at=99.0)
    assert ahead([*crowd, single], costs)[single].position <= 4


def test_solo_pictures_wait_for_a_step_of_their_own(costs: Costs) -> None:
    plain, exact = entry("a"), entry(specs=(spec(reproducible=True),))
    assert ahead([plain, exact], costs)[exact].wait_s == 5.0


def test_remaining_time_covers_steps_and_decode(costs: Costs) -> None:
    picture = entry("a").pictures[0]
    begin(picture, steps_done=1)
    assert remaining_s(picture, 1, costs) == 3.5


def test_a_long_queue_is_guessed_beyond_what_is_worth_computing(costs: Costs) -> None:
    crowd = [entry("a", arrived_at=float(k)) for k in range(400)]
    places = ahead(crowd, costs)
    assert [places[each].position for each in crowd] == list(range(400))
    assert places[crowd[-1]].wait_s > 900.0
