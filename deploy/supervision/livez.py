"""What a worker says of itself, asked at its socket."""

import http.client
import json
from contextlib import closing
from pathlib import Path
from typing import Any

from deploy.supervision.rpc import UnixConnection

_TIMEOUT_S = 2.0


def livez(socket: Path) -> dict[str, Any]:
    """The worker's own account; empty where it does not answer."""
    if not socket.exists():
        return {}
    with closing(UnixConnection(socket, _TIMEOUT_S)) as connection:
        try:
            connection.request("GET", "/livez")
            found: dict[str, Any] = json.load(connection.getresponse())
        except (OSError, http.client.HTTPException, json.JSONDecodeError):
            return {}
    return found
