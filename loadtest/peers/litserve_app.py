"""LitServe with two workers and its batching: ``python -m loadtest.peers.litserve_app PORT``."""

import sys
from typing import Any

import litserve  # type: ignore[import-not-found, unused-ignore]

from loadtest.peers.model import Painter


class Api(litserve.LitAPI):  # type: ignore[misc, unused-ignore]
    def setup(self, device: str) -> None:
        self._painter = Painter()

    def decode_request(self, request: dict[str, Any]) -> tuple[str, str]:
        return str(request["prompt"]), str(request["size"])

    def batch(self, requests: list[tuple[str, str]]) -> list[tuple[str, str]]:
        return requests

    def predict(self, requests: list[tuple[str, str]]) -> list[dict[str, object]]:
        width, height = map(int, requests[0][1].split("x"))
        return self._painter.draw([prompt for prompt, _ in requests], width, height)

    def unbatch(self, answers: list[dict[str, object]]) -> list[dict[str, object]]:
        return answers

    def encode_response(self, answer: dict[str, object]) -> dict[str, object]:
        return answer


if __name__ == "__main__":
    api = Api(max_batch_size=4, batch_timeout=0.0, api_path="/v1/images/generations")
    server = litserve.LitServer(api, accelerator="cpu", workers_per_device=2)
    server.run(
        port=int(sys.argv[1]), host="127.0.0.1", generate_client_file=False, log_level="error"
    )
