"""What every server in the comparison does: the cell's own pipeline, PNG writer and answer."""

import base64
import json
import os

from worker.generation.imaging import encode, parameters_text
from worker.models.synthetic import SyntheticPipeline
from worker.types import DrawSpec, Parameters

SIDES = (80, 64)


class Painter:
    """Draws in one step that takes no time."""

    def __init__(self) -> None:
        self._pipeline = SyntheticPipeline("synthetic:step_ms=0,noise=1")

    def draw(self, prompts: list[str], width: int, height: int) -> list[dict[str, object]]:
        """A batch; for each prompt an answer in OpenAI's shape."""
        how = Parameters(width, height, 1)
        specs = [DrawSpec(prompt, _seed(), how) for prompt in prompts]
        samples = self._pipeline.start(specs)
        self._pipeline.step(samples, lambda _: True)
        pictures = zip(specs, self._pipeline.finish(samples), strict=True)
        return [
            _answer(spec, encode(pixels, "png", None, parameters_text(spec, "synthetic")))
            for spec, pixels in pictures
        ]


def json_answer(painter: Painter, prompt: str) -> str:
    return json.dumps(painter.draw([prompt], *SIDES)[0])


def _seed() -> int:
    return int.from_bytes(os.urandom(4), "big")


def _answer(spec: DrawSpec, png: bytes) -> dict[str, object]:
    return {"created": 0, "data": [{"seed": spec.seed, "b64_json": base64.b64encode(png).decode()}]}
