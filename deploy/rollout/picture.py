"""The first picture: proof that a request gets through nginx to a worker and back."""

import base64
import time
from dataclasses import dataclass
from pathlib import Path

import httpx

from deploy import store
from deploy.cell import Cell, CellError
from deploy.rendering import certificate

PROMPT = "a large red circle on a white background"


@dataclass(frozen=True)
class Drawn:
    path: Path
    worker: str
    seconds: float


def draw(cell: Cell) -> Drawn:
    """Draw one picture through nginx and save it; ``CellError`` with the answer where it fails."""
    limits, timeouts = cell.config.limits.worker, cell.config.timeouts
    timeout_s = limits.max_queue_wait_s + timeouts.longest_draw_s
    started = time.monotonic()
    try:
        # Without TLS no authority has a say, and httpx would read a hundred of them.
        verify = certificate.trusting(cell.layout) if cell.config.tls.on else False
        # trust_env: a proxy of the environment has no business between us and this machine.
        with httpx.Client(timeout=timeout_s, trust_env=False, verify=verify) as client:
            answer = client.post(
                f"{cell.url}v1/images/generations",
                json={"prompt": PROMPT, "store": False},
                headers=store.operator_headers(cell),
            )
    except httpx.HTTPError as error:
        raise CellError(f"no picture from {cell.url}: {error!r}; see zimage logs nginx") from None
    if answer.status_code != 200:
        raise CellError(f"no picture: HTTP {answer.status_code}: {_message(answer)}")
    cell.layout.first_picture.write_bytes(base64.b64decode(answer.json()["data"][0]["b64_json"]))
    worker = answer.headers.get("X-Worker", "?")
    return Drawn(cell.layout.first_picture, worker, time.monotonic() - started)


def _message(answer: httpx.Response) -> str:
    try:
        return str(answer.json()["error"]["message"])
    except (ValueError, KeyError, TypeError):
        return answer.text[:200]
