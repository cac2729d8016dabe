"""Users as they are, for Locust: with its web UI, or headless as the scenarios start it.

    locust -f loadtest/locustfile.py --host http://127.0.0.1:7860 [Designer Program Batch]

A cell with keys wants one in ZIMAGE_API_KEY, one with HTTPS its certificate (--ca FILE) or blind
trust (--insecure).

Designers think, draw in mixed sizes, follow the stream and sometimes close the tab. Programs post
the next request as soon as the last is answered. Batch senders post lists of prompts.
Every answer is checked: whatever is not the picture that was asked for is a failure.
"""

import logging
import random
import sys
from argparse import Namespace
from pathlib import Path
from typing import Any

import gevent
from locust import LoadTestShape, User, between, constant, events, task
from locust.argument_parser import LocustArgumentParser
from locust.env import Environment
from locust.runners import Runner

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from loadtest import prompts, record, shapes
from loadtest.auth import KEY_VARIABLE, Entry
from loadtest.checks import Album, Checker
from loadtest.client import Client, session_of
from loadtest.record import Record

_LEAVES = 0.1
"""Share of streams whose tab is closed."""
_MAX_REST_S = 20.0

checkers: dict[Environment, Checker] = {}


@events.init_command_line_parser.add_listener
def add_options(parser: LocustArgumentParser) -> None:
    add = parser.add_argument  # of the parser itself: its web UI shows no groups
    add("--shape", choices=shapes.NAMES, default="constant")
    add("--step-s", type=float, default=30.0, help="of the shape steps")
    add("--max-latency-s", type=float, default=30.0, help="p95 at which the shape steps ends")
    add("--arrivals-per-s", type=float, default=1.0, help="of a crowd", include_in_web_ui=False)
    add("--sizes", default="", help="of all users, such as 256x256,512x512")
    add("--steps", type=int, default=0, help="of all users; 0: the model's own")
    add("--loose", action="store_true", help="compare pictures as bf16 draws them")
    add("--stop-file", default="", help="end when this file appears", include_in_web_ui=False)
    record_help = "write a line of JSON for each request here"
    add("--records", default="", help=record_help, include_in_web_ui=False)
    add("--ca", default="", help="trust its certificates alone, by any address")
    add("--insecure", action="store_true", help="trust every certificate")
    key_help = "where the cell has keys"
    add("--key", default="", env_var=KEY_VARIABLE, is_secret=True, help=key_help)


@events.test_start.add_listener
def ask_for_model(environment: Environment, **_: Any) -> None:
    answer = session_of(entry_of(environment)).get(f"{environment.host}/v1/models", timeout=30)
    if answer.status_code != 200:
        raise SystemExit(f"{answer.url}: HTTP {answer.status_code}: {answer.text[:300]}")
    model = answer.json()["data"][0]["id"]
    checkers[environment] = Checker(model, Album(options_of(environment).loose))


def options_of(environment: Environment) -> Namespace:
    assert environment.parsed_options is not None
    options: Namespace = environment.parsed_options
    return options


def entry_of(environment: Environment) -> Entry:
    options = options_of(environment)
    return Entry(options.key, options.ca, options.insecure)


class Painter(User):
    """Whoever draws. ``rng`` differs from user to user."""

    abstract = True

    def on_start(self) -> None:
        options = options_of(self.environment)
        self.rng = random.Random()
        self.sizes = tuple(filter(None, options.sizes.split(",")))
        self.client = self.new_client()

    def new_client(self) -> Client:
        kind, session = type(self).__name__, session_of(entry_of(self.environment))
        return Client(self.environment.host, checkers[self.environment], kind, session)

    def wish(self, sizes: tuple[str, ...] = prompts.SMALL) -> dict[str, Any]:
        steps = options_of(self.environment).steps
        return prompts.wish(self.rng, self.sizes or sizes, steps)

    def note(self, done: Record) -> None:
        """Tell Locust and the record file."""
        options = options_of(self.environment)
        if options.records:
            record.write(Path(options.records), done)
        failed = done.result == "failed"
        if failed:
            logging.warning("%s %s failed: %s", done.user, done.request_id, done.error)
        name = done.user if done.result in {"ok", "failed"} else f"{done.user}, {done.result}"
        self.environment.events.request.fire(
            request_type=done.kind,
            name=name,
            response_time=done.seconds * 1000,
            response_length=0,
            response=None,
            context={},
            exception=RuntimeError(done.error[:200]) if failed else None,
        )

    def rest(self, done: Record) -> None:
        """Come again when a refusal says so, as SDKs do; but not later than users would."""
        if done.retry_after_s is not None:
            gevent.sleep(min(done.retry_after_s, _MAX_REST_S))


class Designer(Painter):
    weight = 5
    wait_time = between(1.0, 4.0)

    @task
    def draw(self) -> None:
        leave_after = 2 if self.rng.random() < _LEAVES else 0
        done = self.client.stream(self.wish(prompts.MIXED), leave_after)
        self.note(done)
        self.rest(done)


class Program(Painter):
    weight = 4
    wait_time = constant(0)

    @task
    def draw(self) -> None:
        done = self.client.draw({**self.wish(), "n": self.rng.choice((1, 1, 1, 2, 3))})
        self.note(done)
        self.rest(done)


class Batch(Painter):
    weight = 1
    wait_time = between(5.0, 15.0)

    @task
    def draw(self) -> None:
        asked = [prompts.prompt(self.rng) for _ in range(4)]
        done = self.client.draw({**self.wish(), "prompt": asked})
        self.note(done)
        self.rest(done)


class Chosen(LoadTestShape):
    """The shape that ``--shape`` names."""

    use_common_options = True

    def tick(self) -> tuple[int, float] | None:
        assert isinstance(self.runner, Runner)
        environment = self.runner.environment
        options = options_of(environment)
        if options.stop_file and Path(options.stop_file).exists():
            return None
        run_s = float(options.run_time or 365 * 86400)
        shape = shapes.Shape(options.shape, int(options.num_users or 20), run_s, options.step_s)
        total = self.runner.stats.total
        p95_s = (total.get_current_response_time_percentile(0.95) or 0.0) / 1000
        broken = p95_s > options.max_latency_s or total.num_failures > 0
        users = shape.users_at(self.get_run_time(), broken=broken)
        return None if users is None else (users, float(options.spawn_rate or users))
