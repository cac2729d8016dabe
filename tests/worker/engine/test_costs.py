import itertools
import json

import pytest

from tests.worker.engine.fakes import request, spec
from worker.engine.costs import Costs
from worker.engine.forecast import NOBODY
from worker.engine.queue import Entry
from worker.types import NO_LORAS, ChosenLoras

SIZE = (128, 128)


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
    assert not Costs().knows("step")


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


def measured(*step_s: float, memory_limit: int | None = None) -> Costs:
    """Steps of so many seconds for one row, for two …; text and decode cost nothing."""
    costs = Costs(len(step_s), memory_limit)
    for rows, seconds in enumerate(step_s, 1):
        costs.record("step", SIZE, rows, seconds)
        costs.record("encode", SIZE, rows, 0.0)
        costs.record("decode", SIZE, rows, 0.0)
    return costs


def test_cap_is_the_smallest_batch_within_3_percent_of_the_best() -> None:
    assert measured(1.0, 1.2, 1.5, 1.97).batch_cap(SIZE) == 3
    assert measured(1.0, 1.2, 1.5, 1.9).batch_cap(SIZE) == 4


def test_where_batches_do_not_pay_one_is_drawn_at_a_time() -> None:
    assert measured(1.0, 1.99, 2.95, 3.9).batch_cap(SIZE) == 1


def test_cap_follows_the_backlog() -> None:
    costs = measured(1.0, 1.9, 1.5, 1.9)
    assert costs.batch_cap(SIZE, backlog=2) == 2
    assert costs.batch_cap(SIZE, backlog=9) == 4


def test_cap_does_not_waver_with_the_times() -> None:
    costs, caps = measured(1.0, 1.2, 1.5, 1.95), set()
    for turn in range(100):
        costs.record("step", SIZE, 4, 1.95 + 0.1 * (-1) ** turn)
        caps.add(costs.batch_cap(SIZE))
    assert len(caps) == 1


def test_cap_gives_way_when_a_batch_has_become_slow() -> None:
    costs = measured(1.0, 1.2)
    assert costs.batch_cap(SIZE) == 2
    for _ in range(100):
        costs.record("step", SIZE, 2, 2.5)
    assert costs.batch_cap(SIZE) == 1


def draws(costs: Costs, rows: int, seconds: float) -> None:
    costs.record("encode", SIZE, rows, 0.0)
    costs.record("step", SIZE, rows, seconds)
    costs.record("decode", SIZE, rows, 0.0)


def test_a_batch_that_was_held_up_once_is_drawn_again() -> None:
    costs = measured(1.0, 1.1)
    costs.record("decode", SIZE, 2, 20.0)
    for _ in range(9):
        draws(costs, costs.batch_cap(SIZE), 1.0)
    assert costs.batch_cap(SIZE) == 2


def test_a_batch_that_is_slow_is_drawn_again_ever_less_often() -> None:
    costs, drawn = measured(1.0, 3.0), []
    for _ in range(2000):
        drawn.append(costs.batch_cap(SIZE))
        draws(costs, drawn[-1], 1.0 if drawn[-1] == 1 else 3.0)
    tried = [at for at, cap in enumerate(drawn) if cap == 2]
    gaps = [later - earlier for earlier, later in itertools.pairwise(tried)]
    assert tried[0] == 8
    assert gaps == [17, 33, 65, 129, 257, 513, 513]


def test_a_batch_that_is_as_quick_but_need_not_be_larger_is_not_tried() -> None:
    costs = measured(1.0, 1.99)
    for _ in range(100):
        assert costs.batch_cap(SIZE) == 1
        draws(costs, 1, 1.0)


def test_a_trial_ends_where_no_two_pictures_are_decoded_together() -> None:
    costs, caps = measured(1.0, 3.0), []
    for _ in range(8 + 16 + 1):
        caps.append(costs.batch_cap(SIZE))
        costs.record("step", SIZE, caps[-1], 1.0 if caps[-1] == 1 else 3.0)
    assert caps == [*[1] * 8, *[2] * 16, 1]


def test_between_measured_rows_and_sizes_is_interpolated() -> None:
    costs = Costs()
    for size, one, four in (((100, 100), 1.0, 4.0), ((100, 300), 3.0, 12.0)):
        costs.record("step", size, 1, one)
        costs.record("step", size, 4, four)
    assert costs.predict_s("step", (100, 100), 2) == pytest.approx(2.0)
    assert costs.predict_s("step", (100, 200), 2) == pytest.approx(4.0)


def with_peaks(limit: int) -> Costs:
    """10 bytes of weights; a row of 128x128 takes 5 more."""
    costs = measured(1.0, 1.1, 1.2, 1.3, memory_limit=limit)
    for rows in (1, 2):
        costs.record_peak(SIZE, rows, peak=10 + 5 * rows, resident=10)
    return costs


def test_cap_stays_inside_the_memory() -> None:
    assert with_peaks(25).batch_cap(SIZE) == 3
    assert with_peaks(100).batch_cap(SIZE) == 4


def test_a_size_is_predicted_not_to_fit() -> None:
    costs = with_peaks(25)
    assert costs.fits((256, 128), 1)
    assert not costs.fits((256, 256), 1)


def test_without_a_table_everything_is_expected_to_fit() -> None:
    assert Costs(4, memory_limit=1).fits(SIZE, 4)
    assert Costs(4, memory_limit=1).batch_cap(SIZE) == 4


def test_where_many_wait_a_cap_leaves_no_hundredth_behind() -> None:
    """Nor does one that is in use stay while its pictures take up to 6 % more."""
    costs = Costs(max_batch=4)
    for rows, picture_s in ((1, 0.106), (2, 0.1005), (3, 0.1005), (4, 0.1)):
        costs.record("step", SIZE, rows, rows * picture_s)
        costs.record("encode", SIZE, rows, 0.0)
        costs.record("decode", SIZE, rows, 0.0)
    assert (costs.batch_cap(SIZE), costs.batch_cap(SIZE, busy=True)) == (2, 2)
    for _ in range(20):
        costs.record("step", SIZE, 2, 2 * 0.104)
        costs.record("step", SIZE, 3, 3 * 0.104)
    assert (costs.batch_cap(SIZE), costs.batch_cap(SIZE, busy=True)) == (2, 4)
    assert costs.batch_cap(SIZE, 3, busy=True) == 2


def peaks_of(peak: int, resident: int) -> Costs:
    costs = Costs()
    costs.record("step", SIZE, 1, peak / 1000)
    costs.record_peak(SIZE, 1, peak, resident)
    assert costs.predict_peak(SIZE, 1) == peak  # is remembered
    return costs


def test_a_process_that_takes_more_by_itself_takes_as_much_more_in_every_call() -> None:
    costs = peaks_of(150, resident=100)
    costs.rebase(1000)
    assert costs.predict_peak(SIZE, 1) == 1050


def test_what_was_measured_again_is_predicted_at_once() -> None:
    costs = peaks_of(150, resident=100)
    assert costs.predict_s("step", SIZE, 1) == 0.15
    costs.take(peaks_of(300, resident=200))
    assert costs.predict_peak(SIZE, 1) == 300
    assert costs.predict_s("step", SIZE, 1) == 0.3


def test_what_adapters_add_is_learnt_apart_and_by_the_rows_that_have_them() -> None:
    plain, adapted = (
        Entry(request(specs=(spec(lora=lora),)), NOBODY, 0, 0.0).pictures[0]
        for lora in (NO_LORAS, ChosenLoras("ink*1@0"))
    )
    costs = Costs()
    costs.record("step", SIZE, 1, 0.1)
    costs.record("step", SIZE, 2, 0.2)
    for _ in range(50):
        costs.record_call("step", [adapted], 1, 0.14)
        costs.record_call("step", [plain, adapted], 2, 0.24)
    assert costs.predict_s("step", SIZE, 1) == pytest.approx(0.1)
    assert costs.call_s("step", [plain]) == pytest.approx(0.1)
    assert costs.call_s("step", [adapted]) == pytest.approx(0.14, rel=0.01)
    assert costs.call_s("step", [plain, adapted]) == pytest.approx(0.24, rel=0.01)
    again = Costs.load(json.loads(json.dumps(costs.dump())))
    assert again.call_s("step", [adapted]) == costs.call_s("step", [adapted])


def test_reading_adapters_is_not_taken_for_the_time_of_texts() -> None:
    costs = Costs()
    (adapted,) = Entry(request(specs=(spec(lora=ChosenLoras("ink*1@0")),)), NOBODY, 0, 0.0).pictures
    costs.record("encode", SIZE, 1, 0.01)
    costs.record_call("encode", [adapted], 1, 3.0)
    assert costs.call_s("encode", [adapted]) == 0.01
