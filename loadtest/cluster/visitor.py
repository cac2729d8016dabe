"""Somebody with the page open: signed in, and looking at a picture by its link."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import httpx

from loadtest.waiting import beside

_EVERY_S = 0.5
_TIMEOUT_S = 10.0


@dataclass
class Visitor:
    """What was got before is used again and again: the cookie, the link, and the key itself."""

    url: str
    key: str
    looks: int = 0
    failures: list[str] = field(default_factory=list)

    @contextmanager
    def looking(self) -> Iterator[None]:
        bearer = {"Authorization": f"Bearer {self.key}"}
        over = threading.Event()
        with httpx.Client(base_url=self.url, timeout=_TIMEOUT_S) as page:
            page.post("/v1/session", json={"key": self.key}).raise_for_status()
            body = {"prompt": "a link", "size": "64x64", "response_format": "url"}
            drawn = page.post("/v1/images/generations", json=body, headers=bearer)
            link = drawn.raise_for_status().json()["data"][0]["url"]

            def look() -> None:
                while not over.wait(_EVERY_S):
                    self._look(page, "/v1/images?limit=1", {})
                    self._look(page, "/v1/models", bearer)
                    self._look(page, link, {})

            with beside(look, over):
                yield

    def _look(self, page: httpx.Client, path: str, headers: dict[str, str]) -> None:
        self.looks += 1
        try:
            answer = page.get(path, headers=headers)
        except httpx.HTTPError as error:
            self.failures.append(f"{path}: {error!r}")
            return
        if answer.status_code != 200:
            self.failures.append(f"{path}: {answer.status_code} {answer.text[:200]}")
