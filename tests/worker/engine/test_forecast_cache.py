from dataclasses import dataclass, field

import pytest

from tests.worker.engine.fakes import entry, spec
from worker.engine.forecast_cache import SHARE, Ahead, ForecastCache
from worker.engine.queue import Entry
from worker.engine.request import Priority, Queued


@dataclass
class Looks:
    """Forecasts that take ``cost_s`` each; also the clock."""

    waits_s: dict[Entry, float] = field(default_factory=dict)
    newcomers_s: float = 0.0
    cost_s: float = 0.01
    now: float = 100.0
    count: int = 0

    def __call__(self) -> Ahead:
        self.count += 1
        self.now += self.cost_s
        places = {e: Queued(k, s) for k, (e, s) in enumerate(self.waits_s.items())}
        return places, self.newcomers_s

    def recent(self) -> ForecastCache:
        return ForecastCache(self, lambda: self.now)


def test_looking_ahead_takes_a_bounded_share_of_the_time_however_often_it_is_asked_for() -> None:
    looks = Looks(cost_s=0.01)
    recent = looks.recent()
    began = looks.now
    while looks.now < began + 60.0:
        recent.waits_s()
        looks.now += 0.001
    assert 0 < looks.count * looks.cost_s <= 60.0 / SHARE + looks.cost_s


def test_what_costs_nothing_is_always_fresh() -> None:
    one = entry("a")
    looks = Looks({one: 3.0}, newcomers_s=4.0, cost_s=0.0)
    recent = looks.recent()
    assert recent.waits_s() == [3.0]
    looks.waits_s = {}
    assert recent.waits_s() == []


def test_what_was_seen_grows_older_and_never_negative() -> None:
    one = entry("a", key="k")
    looks = Looks({one: 3.0, entry("b"): 0.5}, newcomers_s=4.0, cost_s=0.01)
    recent = looks.recent()
    recent.waits_s()
    looks.now += 0.99
    assert recent.waits_s() == [pytest.approx(2.0), 0.0]
    assert recent.waits_s("k") == [pytest.approx(2.0)]
    assert recent.newcomers_wait_s() == pytest.approx(3.0)
    assert looks.count == 1


def test_who_has_begun_or_left_waits_no_more() -> None:
    one, two = entry("a"), entry("b")
    looks = Looks({one: 3.0, two: 4.0})
    recent = looks.recent()
    recent.waits_s()
    one.begun = two.over = True
    assert recent.waits_s() == []


def test_a_newcomer_is_one_more_behind_those_of_its_key_and_shape() -> None:
    line = {entry("a", key="k"): 2.0, entry("b", key="k"): 4.0, entry("c", key="l"): 9.0}
    recent = Looks(line, cost_s=1.0).recent()
    assert recent.behind_s(entry("d", key="k")) == pytest.approx(6.0)
    assert recent.behind_s(entry("e", key="k")) == pytest.approx(8.0 - 1.0)


@pytest.mark.parametrize(
    "other",
    [
        entry("a", key="other"),
        entry("a", key="k", priority=Priority.BATCH),
        entry(key="k", specs=(spec(width=256),)),
        entry(key="k", specs=(spec(reproducible=True),)),
    ],
    ids=["key", "priority", "size", "alone"],
)
def test_who_might_be_overtaken_says_nothing_about_a_newcomer(other: Entry) -> None:
    assert Looks({other: 9.0}).recent().behind_s(entry("d", key="k")) is None
