"""Jobs on a real cell, while it is killed."""

import pytest

from loadtest import crash_jobs

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(600)]


def test_nothing_is_lost_or_doubled_whatever_is_killed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Five rounds, one of them with every process of the cell."""
    kills = iter(["a worker", "everything", "nginx", "all workers", "the guard"])
    monkeypatch.setattr(crash_jobs, "_chosen", lambda rng: next(kills))
    report = crash_jobs.run(rounds=5)
    assert report.problems == []
    assert (report.jobs, report.items) == (5, 60)
