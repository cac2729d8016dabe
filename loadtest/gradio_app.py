"""One Gradio process with its queue over the cell's model: what most people start with.

Run by ``.venv-gradio``'s Python: ``python -m loadtest.gradio_app MODEL DEVICE DTYPE PORT``. The
pipeline is the cell's own, so that only the serving differs; it is called for one picture at a
time, as Gradio's queue does by default.
"""

import sys
import threading

import gradio
from PIL import Image

from worker.models.loading.sources import load
from worker.settings import Settings
from worker.types import DrawSpec, Parameters


def main() -> None:
    model, device, dtype, port = sys.argv[1:]
    settings = Settings(model=model, device=device, dtype=dtype)
    pipeline = load(settings)
    info, one_at_a_time = pipeline.info, threading.Lock()

    def draw(prompt: str, size: str, seed: float) -> Image.Image:
        width, height = map(int, size.split("x"))
        how = Parameters(width, height, info.default_steps, info.default_guidance_scale)
        spec = DrawSpec(prompt, int(seed), how)
        with one_at_a_time:
            samples = pipeline.start([spec])
            while not samples[0].drawn:
                pipeline.step(samples, lambda _: True)
            return Image.fromarray(pipeline.finish(samples)[0])

    page = gradio.Interface(
        draw,
        ["text", gradio.Textbox("256x256"), gradio.Number(0)],
        gradio.Image(format="png"),
        api_name="draw",
    )
    page.queue(default_concurrency_limit=1)
    page.launch(server_name="127.0.0.1", server_port=int(port), quiet=True)


if __name__ == "__main__":
    main()
