"""One sample's own way from noise to picture."""

from dataclasses import dataclass
from typing import Any

import torch
from diffusers.pipelines.z_image.pipeline_z_image import (
    calculate_shift,
    get_default_z_image_sigmas,
    retrieve_timesteps,
)


@dataclass(frozen=True, eq=False)
class Schedule:
    """``sigmas``: steps + 1 noise levels from 1 down to 0. ``times``: what the transformer is
    told at each step, 0 for noise. Both fp32 on the CPU."""

    sigmas: torch.Tensor
    times: torch.Tensor

    def after(self, step: int) -> "Schedule":
        """From ``step`` on."""
        return Schedule(self.sigmas[step:], self.times[step:])

    def delta(self, step: int) -> torch.Tensor:
        """How far ``step`` goes along the velocity; negative, for sigma falls."""
        return self.sigmas[step + 1] - self.sigmas[step]


def schedule_of(scheduler: Any, steps: int, image_tokens: int) -> Schedule:
    """The schedule that ``ZImagePipeline.__call__`` would follow.

    Changes the state of ``scheduler``, which no sample relies on: it makes new tensors each time.
    """
    config = scheduler.config
    mu = calculate_shift(
        image_tokens,
        config.get("base_image_seq_len", 256),
        config.get("max_image_seq_len", 4096),
        config.get("base_shift", 0.5),
        config.get("max_shift", 1.15),
    )
    timesteps, _ = retrieve_timesteps(
        scheduler, steps, "cpu", sigmas=get_default_z_image_sigmas(steps), mu=mu
    )
    return Schedule(scheduler.sigmas, (1000 - timesteps) / 1000)
