"""Users who draw from text, from pictures, within masks and with adapters, for Locust.

locust -f loadtest/mixed_users.py --host http://127.0.0.1:7860 Mixed

On a cell with the shipped model and ``loadtest.mixture.ADAPTERS``; half of them follow the stream,
and some send the picture that they go on from just before.
"""

import sys
from pathlib import Path
from typing import Any

from locust import constant, events, task
from locust.env import Environment

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from loadtest.checks import TINY
from loadtest.client import Client, session_of
from loadtest.locustfile import Chosen, Painter, checkers, entry_of
from loadtest.mixture import KINDS, Mixture, NotPrepared

__all__ = ["Chosen", "Mixed"]

_STREAMS = 0.5
_UPLOADS = 0.2

mixtures: dict[Environment, Mixture] = {}


@events.test_start.add_listener
def prepare(environment: Environment, **_: Any) -> None:
    """Behind ``locustfile.ask_for_model``, which was added before."""
    checker = checkers[environment]
    if checker.model != TINY:
        raise SystemExit(f"the model is {checker.model}: these users judge pictures of {TINY}")
    client = Client(environment.host or "", checker, "Mixed", session_of(entry_of(environment)))
    try:
        mixtures[environment] = Mixture(client)
    except NotPrepared as error:
        raise SystemExit(str(error)) from error


class Mixed(Painter):
    wait_time = constant(0)

    @task
    def draw(self) -> None:
        asked = mixtures[self.environment].asked(self.rng.choice(KINDS), self.rng)
        image = asked.way.files.get("image")
        if asked.kind == "image" and image and self.rng.random() < _UPLOADS:
            sent, id = self.client.upload(image)
            self.note(sent)
            if not id:
                self.rest(sent)
                return
            asked = asked.of_upload(id)
        stream = self.rng.random() < _STREAMS
        send = self.client.stream if stream else self.client.draw
        done = send(asked.body, way=asked.way)
        done.kind = asked.kind
        self.note(done)
        self.rest(done)
