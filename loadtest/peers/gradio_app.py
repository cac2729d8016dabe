"""A Gradio queue, asked as its page asks: ``python -m loadtest.peers.gradio_app PORT``."""

import functools
import sys

import gradio  # type: ignore[import-not-found, unused-ignore]

from loadtest.peers.model import Painter, json_answer

if __name__ == "__main__":
    draw = functools.partial(json_answer, Painter())
    page = gradio.Interface(draw, "text", "text", api_name="draw")
    page.queue(default_concurrency_limit=4, max_size=None)
    page.launch(server_name="127.0.0.1", server_port=int(sys.argv[1]), quiet=True)
