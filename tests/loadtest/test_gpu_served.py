import pytest

from loadtest.gpu.served import rate
from loadtest.gpu.suite import of_promised


def test_a_rate_does_not_depend_on_where_a_batch_falls() -> None:
    """Two pictures every 1.6 s, from any batch on and with any as the last."""
    ends = [1.6 * batch + 0.1 * place for batch in range(12) for place in range(2)]
    for first, last in ((0, 24), (2, 24), (0, 22), (2, 22)):
        assert round(rate(ends[first:last], [2] * (last - first)), 6) == 1.25


def test_too_few_pictures_have_no_rate() -> None:
    assert rate([], []) == 0.0
    assert rate([1.0, 1.5], [1, 1]) == 0.0
    assert rate([1.0, 2.5], [2, 2]) == 0.0


def test_a_mixed_load_is_held_against_the_seconds_that_its_pictures_take_alone() -> None:
    """One size at 1 and one at 4 a second, in turns: four fifths of the time for the first."""
    alone = {1024: 1.0, 512: 4.0}
    ends = [1.25 * pair + late for pair in range(9) for late in (0.0, 0.25)]
    drawn = [(end, side, 1) for end, side in zip(ends, [512, 1024] * 9, strict=True)]
    found = of_promised(drawn, alone)
    assert found["drawn"] == {1024: 9, 512: 8}
    assert found["of_promised"] == pytest.approx(11 / 10.25, abs=0.001)
