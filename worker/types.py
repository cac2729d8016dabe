"""What everybody speaks of: what is to be drawn, and what comes out."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Pixels = npt.NDArray[np.uint8]
"""One picture: height × width × 3, RGB."""


@dataclass(frozen=True)
class DrawSpec:
    """One picture to draw. Sides in pixels; ``seed`` 0 … 2³²−1."""

    prompt: str
    width: int
    height: int
    steps: int
    seed: int
    guidance_scale: float = 0.0
    negative_prompt: str = ""
    reproducible: bool = False
