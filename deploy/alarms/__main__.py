"""``python -m deploy.alarms alarms.json``: the relay on its socket, until SIGTERM."""

import sys
from functools import partial
from pathlib import Path

import uvicorn
from pydantic import BaseModel

from deploy.alarms import destinations
from deploy.alarms.relay import Relay
from worker import log


class Settings(BaseModel):
    socket: Path
    to_file: Path
    outcomes: Path


def main() -> None:
    settings = Settings.model_validate_json(Path(sys.argv[1]).read_bytes())
    lines = log.LogWriter("alarms")
    settings.socket.unlink(missing_ok=True)  # of one that was killed
    relay = Relay(partial(destinations.read, settings.to_file), settings.outcomes)
    uvicorn.run(
        relay.app(),
        uds=str(settings.socket),
        log_config=None,
        access_log=False,
        limit_concurrency=16,
        timeout_graceful_shutdown=5,
    )
    lines.close()


if __name__ == "__main__":
    main()
