import json

import pytest

from worker.engine.costs import Costs


def test_running_average_follows_new_measurements() -> None:
    costs = Costs()
    for _ in range(50):
        costs.record("step", (128, 128), 1, 0.1)
    for _ in range(50):
        costs.record("step", (128, 128), 1, 0.2)
    assert costs.predict_s("step", (128, 128), 1) == pytest.approx(0.2, rel=0.01)


def test_unmeasured_rows_are_predicted_from_the_nearest() -> None:
    costs = Costs()
    costs.record("step", (128, 128), 2, 0.2)
    assert costs.predict_s("step", (128, 128), 4) == pytest.approx(0.4)
    assert costs.predict_s("step", (128, 128), 1) == pytest.approx(0.2)


def test_unmeasured_size_is_scaled_by_its_area() -> None:
    costs = Costs()
    costs.record("step", (128, 128), 1, 0.1)
    assert costs.predict_s("step", (256, 128), 1) == pytest.approx(0.2)


def test_text_takes_as_long_at_every_size() -> None:
    costs = Costs()
    costs.record("encode", (128, 128), 1, 0.03)
    assert costs.predict_s("encode", (1024, 1024), 1) == pytest.approx(0.03)


def test_something_is_predicted_before_anything_was_measured() -> None:
    assert Costs().predict_s("step", (128, 128), 1) > 0
    assert Costs().measured_s("step", (128, 128), 1) is None


def test_cap_shrinks_below_the_limit_and_never_below_one() -> None:
    costs = Costs(max_batch=4)
    costs.shrink((128, 128), 2)
    assert costs.batch_cap((128, 128)) == 2
    costs.shrink((128, 128), 0)
    assert costs.batch_cap((128, 128)) == 1
    assert costs.batch_cap((256, 256)) == 4


def test_what_was_learnt_survives_a_round_trip_through_json() -> None:
    costs = Costs(max_batch=4)
    costs.record("step", (128, 256), 2, 0.25)
    costs.shrink((128, 256), 3)
    again = Costs.load(json.loads(json.dumps(costs.dump())), max_batch=4)
    assert again.dump() == costs.dump()
    assert again.batch_cap((128, 256)) == 3


def test_step_times_are_named_for_people() -> None:
    costs = Costs()
    costs.record("step", (128, 256), 2, 0.25)
    assert costs.step_ms() == {"128x256/2": 250.0}


def test_a_drawing_is_text_steps_and_decode() -> None:
    costs = Costs()
    costs.record("encode", (128, 128), 1, 0.5)
    costs.record("step", (128, 128), 1, 1.0)
    costs.record("decode", (128, 128), 1, 0.25)
    assert costs.drawing_s((128, 128), rows=1, steps=4) == pytest.approx(4.75)
