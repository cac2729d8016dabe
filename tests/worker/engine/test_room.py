from worker.engine.room import DOUBT_S, REFUSED_S, Closed, Room, Verdict

LARGE, SMALL = ((512, 512), 1), ((128, 128), 1)


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def test_a_first_time_is_doubted_for_a_while_however_often_it_happens() -> None:
    clock = Clock()
    room = Room(clock)
    assert room.failed(LARGE) is Verdict.DOUBTED
    clock.now += DOUBT_S - 1
    assert room.failed(LARGE) is Verdict.DOUBTED
    assert room.closed_to(LARGE) == Closed(Verdict.DOUBTED, 100.0 + DOUBT_S)
    assert room.closed_to(SMALL) is None
    clock.now += 1
    assert room.closed_to(LARGE) is None


def test_a_second_time_later_is_too_large_but_not_for_ever() -> None:
    clock = Clock()
    room = Room(clock)
    room.failed(LARGE)
    clock.now += DOUBT_S
    assert room.failed(LARGE) is Verdict.TOO_LARGE
    assert room.too_large() == [(512, 512)]
    clock.now += REFUSED_S
    assert room.closed_to(LARGE) is None
    assert room.too_large() == []
    assert room.failed(LARGE) is Verdict.TOO_LARGE


def test_what_was_drawn_has_room_and_lacks_it_only_where_memory_is_lost() -> None:
    room = Room(Clock())
    room.failed(LARGE)
    room.drew(LARGE)
    assert room.closed_to(LARGE) is None
    assert room.failed(LARGE) is Verdict.LOST
    assert room.closed_to(LARGE) is None


def test_what_is_left_goes_by_the_rooms_own_clock() -> None:
    clock = Clock()
    room = Room(clock)
    room.failed(LARGE)
    clock.now += 10
    closed = room.closed_to(LARGE)
    assert closed
    assert room.left_s(closed) == DOUBT_S - 10
    clock.now += DOUBT_S
    assert room.left_s(closed) == 0
