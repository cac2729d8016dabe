from tests.worker.engine.fakes import entry, spec
from worker.engine.costs import KINDS, Costs
from worker.engine.queue import Entry, Picture, Queue
from worker.engine.request import Priority
from worker.engine.scheduler import Scheduler
from worker.models.base import Sample


def queue_of(*entries: Entry) -> Queue:
    queue = Queue(100)
    for each in entries:
        queue.add(each)
    return queue


def scheduler(cap: int = 4) -> Scheduler:
    """Turns of 1 s: the pictures cost next to nothing."""
    return Scheduler(costs_of(1e-6, cap), quantum_s=1.0)


def costs_of(step_s: float, cap: int = 4) -> Costs:
    costs = Costs(cap)
    for kind in KINDS:
        costs.record(kind, (128, 128), 1, step_s)
    return costs


def start(*pictures: Picture, group: object = "group") -> None:
    for picture in pictures:
        picture.sample = Sample(picture.spec, group, picture.spec.parameters.steps)


def use_up_the_first_turn(plan: Scheduler, queue: Queue) -> None:
    """So that no key of ``queue`` counts as one that asks now and then."""
    for each in queue:
        plan.leader(queue)
        plan.charge(each.pictures, 2.0)
    plan.leader(queue)


def test_nothing_leads_an_empty_queue() -> None:
    assert scheduler().leader(Queue(1)) is None


def test_oldest_of_a_key_leads() -> None:
    young, old = entry("a", arrived_at=2.0), entry("b", arrived_at=1.0)
    assert scheduler().leader(queue_of(young, old)) is old.pictures[0]


def test_of_keys_that_have_as_many_requests_the_oldest_leads_whoever_came_again() -> None:
    plan = scheduler()
    for key in ("again", "once more"):
        first = entry("x", key=key)
        assert plan.leader(queue_of(first)) is first.pictures[0]
        plan.charge(first.pictures, 0.1)
    old, new = entry("a", key="again", arrived_at=1.0), entry("b", key="new", arrived_at=2.0)
    other = entry("c", key="once more", arrived_at=3.0)
    assert plan.leader(queue_of(new, old, other)) is old.pictures[0]


def test_who_floods_is_no_equal_however_old_its_requests_are() -> None:
    flood = [entry("a", key="flood", arrived_at=1.0) for _ in range(9)]
    plan, polite = scheduler(), entry("b", key="polite", arrived_at=9.0)
    plan.leader(queue_of(*flood))
    plan.charge(flood[0].pictures, 2.0)
    assert plan.leader(queue_of(*flood, polite)) is polite.pictures[0]


def test_an_equal_without_seconds_left_waits_for_its_turn() -> None:
    dear, other = entry("a", key="dear", arrived_at=1.0), entry("b", key="other", arrived_at=2.0)
    plan, queue = scheduler(), queue_of(dear, other)
    assert plan.leader(queue) is dear.pictures[0]
    plan.charge(dear.pictures, 2.0)
    assert plan.leader(queue) is other.pictures[0]


def test_interactive_leads_before_batch_work_that_is_under_way() -> None:
    batch = entry("a", arrived_at=1.0, priority=Priority.BATCH)
    interactive = entry("b", arrived_at=2.0)
    start(*batch.pictures)
    queue = queue_of(batch, interactive)
    assert scheduler().leader(queue) is interactive.pictures[0]


def test_interactive_newcomer_takes_the_place_of_batch_work_in_a_full_step() -> None:
    batch = entry("a", "b", arrived_at=1.0, priority=Priority.BATCH)
    interactive = entry("c", arrived_at=2.0)
    start(*batch.pictures, *interactive.pictures)
    queue = queue_of(batch, interactive)
    chosen = scheduler(cap=2).batch(interactive.pictures[0], queue)
    assert chosen == [interactive.pictures[0], batch.pictures[0]]


def test_newcomers_fill_a_step_up_to_the_cap() -> None:
    entries = [entry("a") for _ in range(6)]
    queue = queue_of(*entries)
    newcomers = scheduler(cap=4).newcomers(entries[0].pictures[0], queue)
    assert newcomers == [each.pictures[0] for each in entries[:4]]


def test_who_comes_late_does_not_ride_past_those_who_wait_for_another_shape() -> None:
    lead, late = entry("a", arrived_at=1.0), entry("b", arrived_at=9.0)
    others = [entry(specs=(spec(width=256),), arrived_at=2.0 + k) for k in range(2)]
    queue, plan = queue_of(lead, *others, late), scheduler(cap=2)
    use_up_the_first_turn(plan, queue)
    start(*lead.pictures)
    assert plan.newcomers(lead.pictures[0], queue) == []
    start(*others[0].pictures, group="another")
    assert plan.newcomers(lead.pictures[0], queue) == late.pictures


def test_the_pictures_of_a_request_ride_with_its_first_whoever_waits() -> None:
    flood = [entry(specs=(spec(width=256),), arrived_at=1.0, key="flood") for _ in range(5)]
    asked = entry("a", "b", arrived_at=9.0)
    queue, plan = queue_of(*flood, asked), scheduler(cap=2)
    use_up_the_first_turn(plan, queue)
    assert plan.newcomers(asked.pictures[0], queue) == asked.pictures


def test_who_asks_now_and_then_rides_however_many_wait_for_another_shape() -> None:
    lead = entry("a", arrived_at=1.0, key="polite")
    flood = [entry(specs=(spec(width=256),), arrived_at=1.0, key="flood") for _ in range(5)]
    other = entry("b", arrived_at=9.0, key="another")
    newcomers = scheduler(cap=2).newcomers(lead.pictures[0], queue_of(lead, *flood, other))
    assert newcomers == [*lead.pictures, *other.pictures]


def test_a_leader_is_started_even_where_the_cap_is_below_its_rows() -> None:
    guided = entry(specs=(spec(guidance_scale=4.0),))
    queue = queue_of(guided)
    assert scheduler(cap=1).newcomers(guided.pictures[0], queue) == guided.pictures


def test_guided_pictures_count_two_rows() -> None:
    entries = [entry(specs=(spec(guidance_scale=4.0),)) for _ in range(3)]
    newcomers = scheduler(cap=4).newcomers(entries[0].pictures[0], queue_of(*entries))
    assert len(newcomers) == 2


def test_pictures_under_way_go_before_newcomers() -> None:
    older, running = entry("a", arrived_at=1.0), entry("b", "c", arrived_at=2.0)
    start(*running.pictures)
    chosen = scheduler(cap=2).newcomers(running.pictures[0], queue_of(older, running))
    assert chosen == []


def test_a_step_holds_one_group_only() -> None:
    one, other = entry("a"), entry("b")
    start(*one.pictures, group="short")
    start(*other.pictures, group="long")
    assert scheduler().batch(one.pictures[0], queue_of(one, other)) == one.pictures


def test_started_pictures_of_other_groups_are_bounded() -> None:
    lead, *others = [entry("a") for _ in range(20)]
    start(*lead.pictures, group="short")
    for other in others[:7]:
        start(*other.pictures, group="long")
    assert scheduler(cap=4).newcomers(lead.pictures[0], queue_of(lead, *others)) == []


def test_exclusive_and_reproducible_pictures_share_with_nobody() -> None:
    exclusive = entry("a", "b", exclusive=True)
    exact = entry(specs=(spec(reproducible=True),))
    plain = entry("c")
    queue = queue_of(exclusive, exact, plain)
    for each in (*exclusive.pictures, *exact.pictures, *plain.pictures):
        assert scheduler().newcomers(each, queue) == [each]


def test_keys_share_the_free_places_of_a_step() -> None:
    crowd = [entry("a", key="crowd", arrived_at=k) for k in range(5)]
    single = entry("b", key="single", arrived_at=9.0)
    newcomers = scheduler(cap=3).newcomers(crowd[0].pictures[0], queue_of(*crowd, single))
    assert single.pictures[0] in newcomers


def test_batch_work_keeps_its_share_beside_a_flood_of_interactive_requests() -> None:
    batch = entry("a", arrived_at=1.0, priority=Priority.BATCH)
    queue, each = queue_of(batch, entry("b", arrived_at=2.0)), Scheduler(costs_of(1.0, cap=1))
    used = {Priority.BATCH: 0, Priority.INTERACTIVE: 0}
    for _ in range(1000):
        lead = each.leader(queue)
        assert lead
        each.charge([lead], 1.0)
        used[lead.entry.request.priority] += 1
    assert used[Priority.BATCH] == 50


def test_batch_work_that_was_alone_has_no_claim_on_a_newcomer() -> None:
    batch = entry("a", arrived_at=1.0, priority=Priority.BATCH)
    each, newcomer = Scheduler(costs_of(1.0, cap=1)), entry("b", arrived_at=2.0)
    each.leader(queue_of(batch))
    each.charge(batch.pictures, 100.0)
    assert each.leader(queue_of(batch, newcomer)) is newcomer.pictures[0]


def slowing(cap: int = 4) -> Scheduler:
    """Each further row makes a step longer by half of what one row takes."""
    costs = costs_of(1.0, cap)
    for rows in range(1, cap + 1):
        costs.record("step", (128, 128), rows, 0.5 + 0.5 * rows)
    return Scheduler(costs)


def test_batch_work_does_not_slow_an_interactive_step() -> None:
    batch = entry("a", arrived_at=1.0, priority=Priority.BATCH)
    interactive = entry("b", arrived_at=2.0)
    start(*batch.pictures, *interactive.pictures)
    queue, each = queue_of(batch, interactive), slowing()
    assert each.batch(interactive.pictures[0], queue) == interactive.pictures


def test_a_busy_key_does_not_slow_the_step_of_who_asks_now_and_then() -> None:
    busy, rare = entry("a", key="busy"), entry("b", key="rare")
    each = slowing()
    each.leader(queue_of(busy))
    each.charge(busy.pictures, 100.0)
    start(*busy.pictures, *rare.pictures)
    queue = queue_of(busy, rare)
    assert each.leader(queue) is rare.pictures[0]
    assert each.batch(rare.pictures[0], queue) == rare.pictures


def test_equals_share_a_step_that_pays() -> None:
    one, other = entry("a", key="one"), entry("b", key="other")
    start(*one.pictures, *other.pictures)
    queue, each = queue_of(one, other), slowing()
    assert each.leader(queue) is one.pictures[0]
    assert each.batch(one.pictures[0], queue) == [*one.pictures, *other.pictures]


def test_batch_work_is_not_started_to_ride_along() -> None:
    batch = entry("a", arrived_at=1.0, priority=Priority.BATCH)
    interactive = entry("b", arrived_at=2.0)
    newcomers = scheduler().newcomers(interactive.pictures[0], queue_of(batch, interactive))
    assert newcomers == interactive.pictures


def test_where_batches_do_not_pay_the_oldest_is_drawn_alone() -> None:
    old, young = entry("a", arrived_at=1.0), entry("b", arrived_at=2.0)
    costs = costs_of(1.0)
    for rows in (2, 3, 4):
        costs.record("step", (128, 128), rows, 1.0 * rows)
    costs.record("encode", (128, 128), 2, 2.0)
    costs.record("decode", (128, 128), 2, 2.0)
    each, queue = Scheduler(costs), queue_of(old, young)
    assert each.leader(queue) is old.pictures[0]
    assert each.newcomers(old.pictures[0], queue) == old.pictures


def test_dear_pictures_of_equal_cost_are_drawn_one_after_the_other() -> None:
    one, other = entry("a", key="one"), entry("b", key="other")
    queue, each = queue_of(one, other), Scheduler(costs_of(10.0, cap=1), quantum_s=1.0)
    for _ in range(6):  # text, four steps, decode
        assert each.leader(queue) is one.pictures[0]
        each.charge(one.pictures, 10.0)


def test_a_cheap_picture_waits_for_a_slice_of_a_dear_one_only() -> None:
    dear, cheap = entry(specs=(spec("a", steps=50),), key="one"), entry("b", key="other")
    queue, each = queue_of(dear, cheap), Scheduler(costs_of(1.0, cap=1), quantum_s=1.0)
    start(*dear.pictures)
    turns = 0
    while each.leader(queue) is dear.pictures[0]:
        each.charge(dear.pictures, 1.0)
        turns += 1
    assert turns == 9  # 1.5 times the 6 s of the cheap one


def test_seconds_are_shared_by_rows() -> None:
    one, other = entry("a", key="one"), entry("b", key="other")
    queue, each = queue_of(one, other), scheduler()
    each.leader(queue)
    each.charge([*one.pictures, *other.pictures], 1.9)
    assert each.leader(queue) is one.pictures[0]
    each.charge(one.pictures, 0.1)
    assert each.leader(queue) is other.pictures[0]


def where_batches_pay_a_little() -> Scheduler:
    """A picture takes 4 % less in a batch of four than alone, and 2 % less in one of two."""
    costs = Costs(4)
    for rows, step_s in ((1, 1.04), (2, 2.04), (3, 3.04), (4, 4.0)):
        costs.record("step", (128, 128), rows, step_s / 100)
        for kind in ("encode", "decode"):
            costs.record(kind, (128, 128), rows, rows / 1000)
    return Scheduler(costs)


def newcomers(plan: Scheduler, here: list[Entry]) -> int:
    """How many of ``here`` are started together."""
    queue = queue_of(*here)
    lead = plan.leader(queue)
    assert lead
    return len(plan.newcomers(lead, queue))


def test_a_few_are_drawn_in_the_smallest_batch_that_pays() -> None:
    plan, few = where_batches_pay_a_little(), [entry(str(n), arrived_at=n) for n in range(7)]
    assert newcomers(plan, few) == 2


def test_where_two_batches_wait_full_ones_are_drawn_until_there_is_less_than_one() -> None:
    """Whoever is answered asks again at once, but not yet when the next batch is chosen."""
    plan, many = where_batches_pay_a_little(), [entry(str(n), arrived_at=n) for n in range(8)]
    turns = (many, many[4:], many[4:], many[5:], many[4:])
    assert [newcomers(plan, here) for here in turns] == [4, 4, 4, 2, 2]


def test_what_is_tried_on_a_copy_makes_nobody_busy() -> None:
    plan, many = where_batches_pay_a_little(), [entry(str(n), arrived_at=n) for n in range(8)]
    twin = plan.copy()
    assert newcomers(twin, many) == 4
    assert newcomers(plan, many[4:]) == 2
    assert newcomers(twin.copy(), many[4:]) == 4


def test_a_size_whose_requests_were_cancelled_is_busy_no_longer() -> None:
    plan = where_batches_pay_a_little()
    for k in range(50):
        asked = spec(width=64 + 16 * k)
        newcomers(plan, [entry(specs=(asked,), arrived_at=n) for n in range(8)])
    assert len(plan._busy) == 1
