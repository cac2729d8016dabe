from pathlib import Path

import pytest

from loadtest import slo
from loadtest.scenarios import SCENARIOS
from loadtest.slo import Bound, SloError


def judged(bound: Bound, **measured: float) -> slo.Objective:
    (objective,) = slo.judge({"p95_s": bound}, measured)
    return objective


def test_met_objective_is_met_at_the_bound() -> None:
    assert judged(Bound(max=2.0), p95_s=2.0).met


def test_missed_objective_says_by_how_much() -> None:
    missed = judged(Bound(max=2.0), p95_s=3.5)
    assert not missed.met
    assert str(missed) == "p95_s 3.5 missed ≤ 2 by 1.5"


def test_figure_below_its_minimum_is_a_miss() -> None:
    assert judged(Bound(min=2.0), p95_s=0.5).missed_by == 1.5


def test_figure_that_was_not_measured_is_a_miss() -> None:
    assert not judged(Bound(max=2.0)).met
    assert not judged(Bound(max=2.0), p95_s=float("nan")).met


def test_optional_figure_may_be_missing_but_not_wrong() -> None:
    assert slo.judge({"p95_s": Bound(max=2.0, optional=True)}, {}) == []
    assert not judged(Bound(max=2.0, optional=True), p95_s=3.0).met


def test_every_scenario_has_objectives() -> None:
    for scenario in SCENARIOS:
        assert slo.load(slo.DEFAULT_PATH, scenario)


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("[failover]\np95_s = { maximum = 1 }", "maximum"),
        ("[failover]\np95_s = {}", "needs min or max"),
        ("[failovr]\n", 'did you mean "failovr"?'),
        ("[failover", "slo.toml"),
    ],
)
def test_wrong_file_is_refused_with_its_key(tmp_path: Path, text: str, why: str) -> None:
    file = tmp_path / "slo.toml"
    file.write_text(text)
    with pytest.raises(SloError, match=why.replace("?", r"\?")):
        slo.load(file, "failover")
