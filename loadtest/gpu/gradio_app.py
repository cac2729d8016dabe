"""What a team writes first: diffusers as it comes, eager, behind a Gradio queue.

``python -m loadtest.gpu.gradio_app FOLDER PORT``. One picture at a time, which is the queue's
default; ``/webp`` answers with Gradio's default format, ``/png`` with PNG.
"""

import sys

import diffusers
import gradio
import torch


def main() -> None:
    folder, port = sys.argv[1:]
    cuda = torch.cuda.is_available()
    pipeline = diffusers.ZImagePipeline.from_pretrained(
        folder,
        dtype=torch.bfloat16 if cuda else torch.float32,
        device_map="cuda" if cuda else None,
    )
    pipeline.set_progress_bar_config(disable=True)

    def draw(prompt: str, side: float) -> object:
        return pipeline(
            prompt, height=int(side), width=int(side), num_inference_steps=8, guidance_scale=0.0
        ).images[0]

    with gradio.Blocks() as page:
        inputs = [gradio.Textbox(), gradio.Number(1024)]
        for name in ("png", "webp"):
            button = gradio.Button(name)
            button.click(
                draw, inputs, gradio.Image(format=name), api_name=name, concurrency_id="gpu"
            )
    page.queue(default_concurrency_limit=1, max_size=None)
    page.launch(server_name="127.0.0.1", server_port=int(port), quiet=True)


if __name__ == "__main__":
    main()
