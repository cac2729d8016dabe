import pytest

from worker.engine.forecast_bias import ForecastBias


def test_nothing_is_added_before_anything_was_learnt() -> None:
    assert ForecastBias().factor == 1.0


def test_waits_that_become_longer_are_learnt() -> None:
    bias = ForecastBias()
    for _ in range(200):
        bias.learn(2.0, 2.2)
    assert bias.factor == pytest.approx(1.1, abs=0.01)


def test_what_was_learnt_is_forgotten_when_forecasts_come_true_again() -> None:
    bias = ForecastBias()
    for wait_s in [2.2] * 200 + [2.0] * 200:
        bias.learn(2.0, wait_s)
    assert bias.factor == pytest.approx(1.0, abs=0.01)


def test_one_wait_that_went_wrong_changes_little() -> None:
    bias = ForecastBias()
    bias.learn(1.0, 5.0)
    assert bias.factor < 1.08


def test_those_who_were_to_begin_at_once_and_nearly_did_change_next_to_nothing() -> None:
    bias = ForecastBias()
    for _ in range(2000):
        bias.learn(0.0, 0.01)
        bias.learn(2.0, 2.0)
    assert bias.factor < 1.01


def test_the_factor_is_bounded_whatever_happens() -> None:
    bias = ForecastBias()
    for _ in range(200):
        bias.learn(1.0, 100.0)
        assert bias.factor <= 1.15
    for _ in range(200):
        bias.learn(500.0, 0.0)
        assert bias.factor >= 1.0
