"""What a worker says of itself, asked at its socket."""

import json
from pathlib import Path
from typing import Any

import httpx

_TIMEOUT_S = 2.0


def livez(socket: Path) -> dict[str, Any]:
    """The worker's own account; empty where it does not answer."""
    if not socket.exists():
        return {}
    transport = httpx.HTTPTransport(uds=str(socket))
    try:
        with httpx.Client(transport=transport, timeout=_TIMEOUT_S) as client:
            found: dict[str, Any] = client.get("http://worker/livez").json()
            return found
    except (httpx.HTTPError, json.JSONDecodeError):
        return {}
