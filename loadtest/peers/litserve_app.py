"""LitServe with two workers and its batching: ``python -m loadtest.peers.litserve_app PORT``."""

import sys
from typing import Any

import litserve  # type: ignore[import-not-found, unused-ignore]

from loadtest.peers.model import answer


class Api(litserve.LitAPI):  # type: ignore[misc, unused-ignore]
    def setup(self, device: str) -> None:
        pass

    def decode_request(self, request: dict[str, Any]) -> str:
        return str(request["prompt"])

    def predict(self, prompts: list[str]) -> list[str]:
        return prompts

    def encode_response(self, output: str) -> dict[str, object]:
        return answer(output)


if __name__ == "__main__":
    api = Api(max_batch_size=4, batch_timeout=0.0, api_path="/v1/images/generations")
    server = litserve.LitServer(api, accelerator="cpu", workers_per_device=2)
    server.run(
        port=int(sys.argv[1]), host="127.0.0.1", generate_client_file=False, log_level="error"
    )
