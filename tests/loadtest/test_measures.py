import json
import math
from pathlib import Path

import pytest

from loadtest import measures
from loadtest.chaos import Injected
from loadtest.observer import Sample
from loadtest.record import Record


def record(seconds: float, result: str = "ok", at: float = 0.0, **changed: object) -> Record:
    return Record(at=at, user="Program", kind="draw", seconds=seconds, result=result, **changed)  # type: ignore[arg-type]


def test_percentile_is_a_value_that_was_seen() -> None:
    values = [float(n) for n in range(100, 0, -1)]
    assert measures.percentile(values, 0.95) == 95.0
    assert measures.percentile([3.0], 0.99) == 3.0
    assert math.isnan(measures.percentile([], 0.5))


def test_latency_is_that_of_answered_requests() -> None:
    found = measures.of_users(
        [record(1.0, pictures=2), record(9.0, "refused"), record(99.0, "failed")], duration_s=10.0
    )
    assert (found["requests"], found["failed"], found["refused"]) == (3, 1, 1)
    assert found["p99_s"] == 1.0
    assert found["pictures_per_s"] == 0.2


def test_kinds_are_counted_where_they_were_answered() -> None:
    drawn, failed = record(1.0), record(1.0, "failed")
    assert measures.by_kind([drawn, drawn, failed], ("draw", "mask")) == {
        "answered_draw": 2.0,
        "answered_mask": 0.0,
    }


def test_users_who_left_are_no_refusals() -> None:
    found = measures.of_users([record(1.0, "left"), record(1.0, "refused")], duration_s=1.0)
    assert found["refused_share"] == 1.0


def test_pieces_have_latency_of_what_was_sent_and_rates_of_what_was_answered() -> None:
    # Two in the first ten seconds, of which one is answered later, and one after the last piece.
    records = [record(2.0, at=1.0), record(9.0, at=5.0), record(8.0, at=12.0)]
    (first, second) = measures.of_pieces(records, 0.0, 10.0)
    assert first[:2] == (0.0, 10.0)
    assert (first[2]["p95_s"], first[2]["requests_per_s"]) == (9.0, 0.1)
    assert second[1] == pytest.approx(20.0, abs=0.01)
    assert second[2]["p95_s"] == 8.0
    assert second[2]["requests_per_s"] == pytest.approx(0.2, abs=0.01)


def test_replies_that_a_fault_may_cut_are_counted_apart() -> None:
    records = [record(5.0, "failed", at=1.0), record(5.0, "failed", at=20.0), record(5.0, at=2.0)]
    cut = Injected(3.0, "nginx-worker-killed", "", None, 0.5)
    assert measures.apart(records, [cut]) == {"failed": 1.0, "cut": 1.0}
    killed = Injected(3.0, "kill", "w1", 0.1, 2.0)
    assert measures.apart(records, [killed]) == {"failed": 2.0}


def test_hang_is_not_expected_to_be_noticed_at_once() -> None:
    faults = [
        Injected(0.0, "kill", "w1", 0.1, 2.0),
        Injected(0.0, "step-hangs", "w2", 5.5, 9.0, allowance_s=5.0),
        Injected(0.0, "step-hangs", "w2", 8.6, 9.0, allowance_s=8.5),
        Injected(0.0, "slow", "w3", 4.0, 10.0),
    ]
    found = measures.of_faults(faults)
    assert (found["out_s"], found["hang_out_s"], found["back_s"]) == (0.1, 8.6, 10.0)
    assert found["hang_overdue_s"] == 0.5


@pytest.mark.parametrize(
    ("fault", "healed"),
    [
        (Injected(0.0, "kill", "w1", 0.1, 2.0), True),
        (Injected(0.0, "kill", "w1", None, 2.0), False),
        (Injected(0.0, "kill", "w1", 0.1, None), False),
        (Injected(0.0, "slow", "w1", None, 9.0), True),
        (Injected(0.0, "malformed-bodies", "", None, 5.0, "Unexpected: HTML"), False),
    ],
)
def test_fault_heals_when_what_must_happen_happened(fault: Injected, healed: bool) -> None:
    assert fault.healed is healed
    assert measures.of_faults([fault])["unhealed_faults"] == (not healed)


def test_line_is_fitted_exactly() -> None:
    (first, last) = measures.fitted([(x, 3 * x + 1) for x in range(8)])
    assert first == pytest.approx((2, 7))
    assert last == pytest.approx((7, 22))
    assert measures.growth([(1.0, 5.0)]) == 0.0
    assert measures.growth([]) == 0.0


def test_growth_forgets_the_first_quarter() -> None:
    warming_up = [(float(x), 100.0 * min(x, 25)) for x in range(100)]
    assert measures.growth(warming_up) == pytest.approx(0.0)


def test_worst_program_counts() -> None:
    resources = {
        "w1": [Sample(float(t), rss_mib=80.0, files=9, threads=4) for t in range(8)],
        "w2": [Sample(float(t), rss_mib=80.0 + t, files=9, threads=4) for t in range(8)],
    }
    found = measures.of_resources(resources)
    assert found["memory_growth_mib"] == pytest.approx(5.0)
    assert found["files_growth"] == 0.0


def test_replays_are_requests_with_a_second_worker(tmp_path: Path) -> None:
    log = tmp_path / "access.log"
    lines = [(5.0, "unix:w1"), (6.0, "unix:w1, unix:w2"), (1.0, "unix:w1, unix:w2")]
    lines += [(7.0, "unix:w1 : unix:w1")]
    log.write_text("".join(json.dumps({"end": e, "upstream_addr": a}) + "\n" for e, a in lines))
    assert measures.replayed(log, since=2.0) == 2
    handed_on = {"end": 8.0, "upstream_addr": "unix:w2 : unix:w1", "upstream_status": "421 : 200"}
    log.write_text(json.dumps(handed_on) + "\n")
    assert measures.replayed(log, since=2.0) == 0
