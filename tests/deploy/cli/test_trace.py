from pathlib import Path

import pytest

from deploy.cli.trace import Trace, counters


def test_idle_share_is_what_the_pipeline_did_not_use() -> None:
    assert Trace("w1", 5.0, busy_s=4.0, device_s=3.9, steps=9).idle_share == pytest.approx(0.025)


def test_a_worker_that_had_nothing_to_draw_has_no_share() -> None:
    assert Trace("w1", 5.0, busy_s=0.0, device_s=0.0, steps=0).idle_share is None


def test_a_worker_that_does_not_answer_has_no_counters(tmp_path: Path) -> None:
    assert counters(tmp_path / "w1.sock") is None
