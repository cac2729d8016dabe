"""The user ``Single`` of a Gradio server instead of a cell, for Locust. See ``scenarios``."""

import base64
import json
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import requests
from locust import constant, events, task
from locust.argument_parser import LocustArgumentParser

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from loadtest.checks import Checker
from loadtest.client import TIMEOUT_S
from loadtest.locustfile import Chosen, Painter, checkers, options_of
from loadtest.record import Record

__all__ = ["Chosen", "GradioSingle"]


@events.init_command_line_parser.add_listener
def add_gradio(parser: LocustArgumentParser) -> None:
    parser.add_argument("--gradio", default="http://127.0.0.1:7861", help="the Gradio server")


@dataclass
class GradioClient:
    """Gradio's HTTP API: join the queue, follow the events, fetch the picture."""

    url: str
    checker: Checker
    user: str
    session: requests.Session = field(default_factory=requests.Session)

    def draw(self, body: dict[str, Any]) -> Record:
        record = Record(time.time(), self.user, "draw")
        try:
            item = {"b64_json": self._picture(body), "seed": body["seed"]}
            record.error = self.checker.pictures([item], body)
            record.pictures, record.status = 1, 200
            record.result = "failed" if record.error else "ok"
        except (requests.RequestException, ValueError, KeyError) as error:
            record.error = repr(error)
        record.seconds = time.time() - record.at
        return record

    def _picture(self, body: dict[str, Any]) -> str:
        path = f"{self.url}/gradio_api/call/draw"
        data = {"data": [body["prompt"], body["size"], body["seed"]]}
        joined = self.session.post(path, json=data, timeout=TIMEOUT_S)
        joined.raise_for_status()
        with self.session.get(
            f"{path}/{joined.json()['event_id']}", stream=True, timeout=TIMEOUT_S
        ) as follow:
            result = _complete(follow)
        fetched = self.session.get(result["url"], timeout=TIMEOUT_S)
        fetched.raise_for_status()
        return base64.b64encode(fetched.content).decode()


class GradioSingle(Painter):
    """One small picture after another."""

    wait_time = constant(0)

    def on_start(self) -> None:
        super().on_start()
        url = options_of(self.environment).gradio
        self.gradio = GradioClient(url, checkers[self.environment], "GradioSingle")

    @task
    def draw(self) -> None:
        self.note(self.gradio.draw(self.wish()))


def _complete(response: requests.Response) -> dict[str, Any]:
    event = ""
    for line in response.iter_lines():
        if line.startswith(b"event: "):
            event = line[7:].decode()
        elif line.startswith(b"data: ") and event == "complete":
            data: list[dict[str, Any]] = json.loads(line[6:])
            return data[0]
        elif event == "error" and line.startswith(b"data: "):
            raise ValueError(f"Gradio: {line[6:200].decode()}")
    raise ValueError("Gradio ended the stream without a picture")
