"""A user's HTTP: draw, stream, resume, leave. Blocking, so that gevent can run many of them."""

import json
import ssl
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import requests
import urllib3
from requests.adapters import HTTPAdapter

from loadtest import checks
from loadtest.auth import Entry
from loadtest.checks import Checker
from loadtest.record import Record

TIMEOUT_S = 720.0
"""Longer than any draw: whoever hangs must show up as slow, not as a client that gave up."""
MAX_RESUMES = 5
GENERATIONS, EDITS, UPLOADS = "/v1/images/generations", "/v1/images/edits", "/v1/uploads"


def session_of(entry: Entry) -> requests.Session:
    """What ``entry`` shows and whom it trusts, for every request."""
    made = requests.Session()
    made.headers.update(entry.headers)
    if entry.ca or entry.insecure:
        made.trust_env = False  # REQUESTS_CA_BUNDLE would win over what is set here
        made.verify = False if entry.insecure else entry.ca
    if entry.insecure:
        urllib3.disable_warnings(urllib3.exceptions.InsecureRequestWarning)
    elif entry.ca:
        made.mount("https://", _ByAnyAddress(entry.ca))
    return made


class _ByAnyAddress(HTTPAdapter):
    """A cell is asked by its address; its certificate has its name."""

    def __init__(self, ca: str) -> None:
        self._ca = ca
        super().__init__()

    def init_poolmanager(self, *args: Any, **kwargs: Any) -> None:
        context = ssl.create_default_context(cafile=self._ca)
        context.check_hostname = False
        context.verify_flags |= (
            ssl.VERIFY_X509_PARTIAL_CHAIN
        )  # the file may have the server's alone
        super().init_poolmanager(*args, **kwargs, ssl_context=context, assert_hostname=False)


@dataclass(frozen=True)
class Way:
    """Where a body goes, with which PNGs (then it is a form), and who looks at the answer; None:
    the client's own checker."""

    path: str = GENERATIONS
    files: Mapping[str, bytes] = field(default_factory=dict)
    checker: Checker | None = None


_PLAIN = Way()


class Cut(Exception):
    """A stream ended without its final event."""


@dataclass
class Client:
    """One user's connection. Nothing is retried but a stream that was cut."""

    url: str
    checker: Checker
    user: str = ""
    session: requests.Session = field(default_factory=requests.Session)

    def draw(self, body: dict[str, Any], way: Way = _PLAIN) -> Record:
        """Post, wait and check every picture."""
        record = Record(time.time(), self.user, "draw")
        try:
            self._draw(body, way, record)
        except requests.RequestException as error:
            record.error = repr(error)
        record.seconds = time.time() - record.at
        return record

    def stream(self, body: dict[str, Any], leave_after: int = 0, way: Way = _PLAIN) -> Record:
        """Follow the events. ``leave_after`` steps the tab is closed. A stream that is cut is
        asked for again with the seed and the place of its last ``queued`` event."""
        record = Record(time.time(), self.user, "stream")
        body = {**body, "stream": True}
        try:
            while not self._follow(body, way, record, leave_after):
                record.resumed += 1
                if record.resumed > MAX_RESUMES:
                    raise Cut(f"cut {record.resumed} times")
        except (requests.RequestException, ValueError, Cut) as error:
            record.error = repr(error)
        record.seconds = time.time() - record.at
        return record

    def upload(self, png: bytes) -> tuple[Record, str]:
        """Send a picture to draw from later; its id, empty where it was not taken."""
        record, id = Record(time.time(), self.user, "upload"), ""
        try:
            response = self.session.post(
                self.url + UPLOADS, png, headers={"Content-Type": "image/png"}, timeout=TIMEOUT_S
            )
            _note(record, response)
            if response.status_code == 201:
                id, record.result = response.json()["id"], "ok"
            else:
                _not_drawn(record, response.status_code, response)
        except (requests.RequestException, ValueError, KeyError) as error:
            record.error = repr(error)
        record.seconds = time.time() - record.at
        return record, id

    def _post(self, body: dict[str, Any], way: Way, *, stream: bool = False) -> requests.Response:
        url = self.url + way.path
        if not way.files:
            return self.session.post(url, json=body, timeout=TIMEOUT_S, stream=stream)
        texts = {k: json.dumps(v) if isinstance(v, bool) else v for k, v in body.items()}
        files = {name: (f"{name}.png", png, "image/png") for name, png in way.files.items()}
        return self.session.post(url, texts, files=files, timeout=TIMEOUT_S, stream=stream)

    def _draw(self, body: dict[str, Any], way: Way, record: Record) -> None:
        response = self._post(body, way)
        _note(record, response)
        if response.status_code != 200:
            _not_drawn(record, response.status_code, response)
            return
        record.queue_s = _seconds(response, "X-Queue-Ms")
        record.draw_s = _seconds(response, "X-Inference-Ms")
        record.error = (way.checker or self.checker).answer(response.content, body)
        record.pictures = _count(body)
        record.result = "failed" if record.error else "ok"

    def _follow(self, body: dict[str, Any], way: Way, record: Record, leave_after: int) -> bool:
        """Whether the stream came to an end; False where it was cut."""
        with self._post(body, way, stream=True) as response:
            _note(record, response)
            if response.status_code != 200:
                _not_drawn(record, response.status_code, response)
                return True
            try:
                return self._take(events(response), body, way, record, leave_after)
            except requests.RequestException:
                return False  # the chunked body ended in the middle

    def _take(
        self,
        stream: Iterator[dict[str, Any]],
        body: dict[str, Any],
        way: Way,
        record: Record,
        leave: int,
    ) -> bool:
        pictures: list[dict[str, Any]] = []
        for event in stream:
            kind = event["type"].rpartition(".")[2]  # image_generation.queued, image_edit.queued
            if kind == "queued":
                body.setdefault("seed", event["seeds"][0])
                if "resume" in event:  # not in answers of older cells
                    body["resume"] = event["resume"]
            elif kind == "completed":
                pictures.append(event)
            elif kind == "step" and leave and event["step"] >= leave:
                record.result = "left"
                return True
            elif kind == "error":
                record.error = str(event["error"])
                # What would be a 500 before the header: the worker is at fault, not the request.
                return bool(event["error"].get("type") != "server_error")
            elif kind == "done":
                record.error = ""
                record.queue_s = event["queue_ms"] / 1000
                record.draw_s = event["inference_ms"] / 1000
                pictures.sort(key=lambda picture: int(picture["image_index"]))
                record.error = (way.checker or self.checker).pictures(pictures, body)
                record.pictures = len(pictures)
                record.result = "failed" if record.error else "ok"
                return True
        return False


def events(response: requests.Response) -> Iterator[dict[str, Any]]:
    """The JSON of each server-sent event."""
    for line in response.iter_lines(chunk_size=8192):
        if line.startswith(b"data: "):
            yield json.loads(line[6:])


def _note(record: Record, response: requests.Response) -> None:
    record.status = response.status_code
    record.worker = response.headers.get("X-Worker", "")
    record.request_id = response.headers.get("X-Request-ID", "")


def _not_drawn(record: Record, status: int, response: requests.Response) -> None:
    if status == 503:
        headers = {name.lower(): value for name, value in response.headers.items()}
        record.error = checks.refusal(status, headers, response.content)
        record.result = "failed" if record.error else "refused"
        if not record.error:
            record.retry_after_s = float(headers["retry-after"])
            record.error = f"refused: come again in {headers['retry-after']} s"
    else:
        record.error = f"HTTP {status}: {response.text[:300]}"


def _seconds(response: requests.Response, header: str) -> float:
    return float(response.headers.get(header, "nan")) / 1000


def _count(body: dict[str, Any]) -> int:
    prompts = body["prompt"] if isinstance(body["prompt"], list) else [body["prompt"]]
    return len(prompts) * int(body.get("n", 1))
