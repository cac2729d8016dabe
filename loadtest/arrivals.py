"""Users for measuring, for Locust: no think time, one kind of request.

locust -f loadtest/arrivals.py --host http://127.0.0.1:7860 Single
locust -f loadtest/arrivals.py --host http://127.0.0.1:7860 -u 1 --arrivals-per-s 5 Crowd
"""

import sys
import time
from pathlib import Path

import gevent
from gevent.pool import Group
from locust import constant, task

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from loadtest.locustfile import Chosen, Painter, options_of

__all__ = ["Chosen", "Crowd", "Single"]


class Single(Painter):
    """One small picture after another: the same load for every cell and server."""

    wait_time = constant(0)

    @task
    def draw(self) -> None:
        done = self.client.draw(self.wish())
        self.note(done)
        self.rest(done)


class Crowd(Painter):
    """Arrivals that wait for nobody (an open loop); one such user is enough."""

    wait_time = constant(0)

    def on_start(self) -> None:
        super().on_start()
        self.open = Group()
        self.next_at = time.monotonic()

    @task
    def arrive(self) -> None:
        rate = options_of(self.environment).arrivals_per_s
        self.next_at += self.rng.expovariate(rate)
        gevent.sleep(max(0.0, self.next_at - time.monotonic()))
        self.open.spawn(lambda: self.note(self.new_client().draw(self.wish())))

    def on_stop(self) -> None:
        self.open.join()
