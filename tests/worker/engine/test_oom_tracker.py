from worker.engine.oom_tracker import DOUBT_S, REFUSED_S, Closed, OomTracker, Verdict

LARGE, SMALL = ((512, 512), 1), ((128, 128), 1)


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def test_a_first_time_is_doubted_for_a_while_however_often_it_happens() -> None:
    clock = Clock()
    oom = OomTracker(clock)
    assert oom.failed(LARGE) is Verdict.DOUBTED
    clock.now += DOUBT_S - 1
    assert oom.failed(LARGE) is Verdict.DOUBTED
    assert oom.closed_to(LARGE) == Closed(Verdict.DOUBTED, 100.0 + DOUBT_S)
    assert oom.closed_to(SMALL) is None
    clock.now += 1
    assert oom.closed_to(LARGE) is None


def test_a_second_time_later_is_too_large_but_not_for_ever() -> None:
    clock = Clock()
    oom = OomTracker(clock)
    oom.failed(LARGE)
    clock.now += DOUBT_S
    assert oom.failed(LARGE) is Verdict.TOO_LARGE
    assert oom.too_large() == [(512, 512)]
    clock.now += REFUSED_S
    assert oom.closed_to(LARGE) is None
    assert oom.too_large() == []
    assert oom.failed(LARGE) is Verdict.TOO_LARGE


def test_what_was_drawn_has_room_and_lacks_it_only_where_memory_is_lost() -> None:
    oom = OomTracker(Clock())
    oom.failed(LARGE)
    oom.drew(LARGE)
    assert oom.closed_to(LARGE) is None
    assert oom.failed(LARGE) is Verdict.LOST
    assert oom.closed_to(LARGE) is None


def test_what_is_left_goes_by_the_rooms_own_clock() -> None:
    clock = Clock()
    oom = OomTracker(clock)
    oom.failed(LARGE)
    clock.now += 10
    closed = oom.closed_to(LARGE)
    assert closed
    assert oom.left_s(closed) == DOUBT_S - 10
    clock.now += DOUBT_S
    assert oom.left_s(closed) == 0
