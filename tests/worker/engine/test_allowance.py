import pytest

from tests.worker.engine.fakes import entry, spec
from worker.coordination.heartbeat import Phase
from worker.engine.allowance import Allowances
from worker.engine.costs import KINDS, Costs
from worker.engine.limits import Limits
from worker.engine.queue import Picture
from worker.types import ChosenLoras

LIMITS = Limits(step_allowance_s=5.0, compile_allowance_s=600.0)
CALLS = (Phase.ENCODE, Phase.STEP, Phase.DECODE)
SMALL = (256, 256)


def picture(prompt: str = "a cat", *, size: tuple[int, int] = SMALL, steps: int = 4) -> Picture:
    width, height = size
    return entry(specs=(spec(prompt, width=width, height=height, steps=steps),)).pictures[0]


def measured(seconds: float) -> Costs:
    """Every kind of call took ``seconds`` for one row of 256x256."""
    costs = Costs()
    for kind in KINDS:
        costs.record(kind, SMALL, 1, seconds)
    return costs


def stepwise(costs: Costs) -> Allowances:
    return Allowances(LIMITS, costs, stepwise=True)


@pytest.mark.parametrize("phase", CALLS)
@pytest.mark.parametrize(("seconds", "allowance_s"), [(0.1, 5.0), (2.0, 20.0)])
def test_a_slow_call_may_last_ten_times_as_long_as_it_should(
    phase: Phase, seconds: float, allowance_s: float
) -> None:
    assert stepwise(measured(seconds)).allowance_s(phase, [picture()]) == allowance_s


@pytest.mark.parametrize("phase", [Phase.STEP, Phase.DECODE])
def test_a_size_that_was_never_drawn_is_allowed_what_its_pixels_should_take(phase: Phase) -> None:
    allowances = stepwise(measured(0.25))
    # 28 times as many pixels as what was measured, so 7 s: a flat 5 s would call it a hang.
    large = picture(size=(1792, 1024))
    assert allowances.allowance_s(phase, [large]) == pytest.approx(70.0)
    assert allowances.allowance_s(phase, [large, large]) == pytest.approx(140.0)


@pytest.mark.parametrize("phase", CALLS)
def test_before_anything_is_measured_a_slow_machine_has_time(phase: Phase) -> None:
    costs = Costs()
    assert stepwise(costs).allowance_s(phase, [picture()]) == 600.0
    costs.record("encode", SMALL, 1, 0.1)
    known = phase is Phase.ENCODE
    assert stepwise(costs).allowance_s(phase, [picture()]) == (5.0 if known else 600.0)


def test_the_first_image_is_allowed_what_its_decoding_takes() -> None:
    """Each worker encodes its first one long after its start: ten minutes would hide a hang."""
    costs = measured(2.0)
    assert stepwise(costs).allowance_s(Phase.ENCODE, [picture()], "image") == 20.0
    assert stepwise(Costs()).allowance_s(Phase.ENCODE, [picture()], "image") == 600.0


def test_a_long_text_is_allowed_its_length_though_repeated_ones_took_no_time() -> None:
    costs = measured(0.0)  # as of texts that were cached
    allowances = stepwise(costs)
    allowances.learn(Phase.ENCODE, [picture("x" * 100)], 2.0)
    assert allowances.allowance_s(Phase.ENCODE, [picture("y" * 800)]) == pytest.approx(160.0)
    allowances.learn(Phase.ENCODE, [picture("x" * 100)], 1e6)  # the machine stood still
    assert allowances.allowance_s(Phase.ENCODE, [picture("y" * 800)]) == 600.0


def test_a_drawing_of_one_call_may_spend_it_on_its_text_or_its_decoding() -> None:
    whole = Allowances(LIMITS, measured(0.5), stepwise=False)
    assert whole.allowance_s(Phase.STEP, [picture(steps=50)]) == pytest.approx(50.0)
    assert whole.allowance_s(Phase.STEP, [picture(steps=1)]) == 5.0


def test_adapters_may_come_from_a_cold_disk_as_their_drawing_is_started() -> None:
    allowances = stepwise(measured(0.1))
    asked = spec(width=256, height=256, lora=ChosenLoras("ink*1@0"))
    adapted = entry(specs=(asked,)).pictures
    assert allowances.allowance_s(Phase.ENCODE, adapted) == 35.0
    assert allowances.allowance_s(Phase.STEP, adapted) == 5.0
