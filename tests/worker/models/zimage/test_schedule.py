import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler

from worker.models.zimage.schedule import schedule_of


def test_a_schedule_falls_from_noise_to_picture() -> None:
    schedule = schedule_of(FlowMatchEulerDiscreteScheduler(shift=3.0), 8, image_tokens=256)
    assert (schedule.sigmas[0].item(), schedule.sigmas[-1].item()) == (1.0, 0.0)
    assert all(schedule.delta(step) < 0 for step in range(8))
    assert torch.equal(schedule.times, (1000 - schedule.sigmas[:-1] * 1000) / 1000)


def test_schedules_of_one_scheduler_are_independent() -> None:
    scheduler = FlowMatchEulerDiscreteScheduler(shift=3.0)
    first = schedule_of(scheduler, 5, image_tokens=256)
    before = first.sigmas.clone()
    schedule_of(scheduler, 8, image_tokens=256)
    assert torch.equal(first.sigmas, before)


@pytest.mark.parametrize(("dynamic", "equal"), [(True, False), (False, True)])
def test_dynamic_shifting_depends_on_the_size(dynamic: bool, equal: bool) -> None:
    scheduler = FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=dynamic)
    small, large = (schedule_of(scheduler, 4, tokens) for tokens in (256, 4096))
    assert torch.equal(small.sigmas, large.sigmas) is equal
