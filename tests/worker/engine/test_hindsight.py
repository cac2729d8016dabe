import pytest

from worker.engine.hindsight import Hindsight


def test_nothing_is_added_before_anything_was_learnt() -> None:
    assert Hindsight().factor == 1.0


def test_waits_that_become_longer_are_learnt() -> None:
    hindsight = Hindsight()
    for _ in range(200):
        hindsight.learn(2.0, 2.2)
    assert hindsight.factor == pytest.approx(1.1, abs=0.01)


def test_what_was_learnt_is_forgotten_when_forecasts_come_true_again() -> None:
    hindsight = Hindsight()
    for wait_s in [2.2] * 200 + [2.0] * 200:
        hindsight.learn(2.0, wait_s)
    assert hindsight.factor == pytest.approx(1.0, abs=0.01)


def test_one_wait_that_went_wrong_changes_little() -> None:
    hindsight = Hindsight()
    hindsight.learn(1.0, 5.0)
    assert hindsight.factor < 1.08


def test_those_who_were_to_begin_at_once_and_nearly_did_change_next_to_nothing() -> None:
    hindsight = Hindsight()
    for _ in range(2000):
        hindsight.learn(0.0, 0.01)
        hindsight.learn(2.0, 2.0)
    assert hindsight.factor < 1.01


def test_the_factor_is_bounded_whatever_happens() -> None:
    hindsight = Hindsight()
    for _ in range(200):
        hindsight.learn(1.0, 100.0)
        assert hindsight.factor <= 1.15
    for _ in range(200):
        hindsight.learn(500.0, 0.0)
        assert hindsight.factor >= 1.0
