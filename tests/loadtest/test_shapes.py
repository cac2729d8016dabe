from loadtest.shapes import Name, Shape


def users(name: Name, *at: float) -> list[int | None]:
    shape = Shape(name, users=20, run_s=90.0, step_s=30.0)
    return [shape.users_at(passed_s) for passed_s in at]


def test_every_shape_ends_with_the_run() -> None:
    assert [users(name, 90.0) for name in ("constant", "steps", "spike", "day")] == [[None]] * 4


def test_constant_stays() -> None:
    assert users("constant", 0, 45, 89) == [20, 20, 20]


def test_steps_climb() -> None:
    assert users("steps", 0, 29, 30, 61) == [20, 20, 40, 60]


def test_steps_end_where_an_objective_breaks() -> None:
    assert Shape("steps", 20, 90.0, 30.0).users_at(10.0, broken=True) is None
    assert Shape("constant", 20, 90.0).users_at(10.0, broken=True) == 20


def test_spike_is_in_the_middle_third() -> None:
    assert users("spike", 0, 29, 31, 59, 61) == [4, 4, 20, 20, 4]


def test_day_has_its_peak_at_noon() -> None:
    assert users("day", 0, 45, 89.9) == [2, 20, 2]
