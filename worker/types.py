"""What everybody speaks of: what is to be drawn, and what comes out."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Pixels = npt.NDArray[np.uint8]
"""One picture: height × width × 3, RGB."""


@dataclass(frozen=True)
class Parameters:
    """How a picture is drawn, beside its prompt and its seed: the same for all pictures of a
    request and for all items of a job. Sides in pixels."""

    width: int
    height: int
    steps: int
    guidance_scale: float = 0.0
    negative_prompt: str = ""
    reproducible: bool = False

    @property
    def size(self) -> tuple[int, int]:
        return self.width, self.height

    @property
    def pixels(self) -> int:
        return self.width * self.height

    @property
    def size_text(self) -> str:
        """As requests say it: ``512x768``."""
        return f"{self.width}x{self.height}"


@dataclass(frozen=True)
class DrawSpec:
    """One picture to draw. ``seed`` 0 … 2³²−1."""

    prompt: str
    seed: int
    parameters: Parameters
