"""Jobs over HTTP, as any other client asks for them, with a deadline and through short cuts."""

import json
import os
import re
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import httpx

from deploy import store
from deploy.cell import Cell, CellError
from deploy.cli.options import open_cell
from deploy.rendering import certificate

_ANSWER_S = 60.0
_TRIES = 10
_PATIENCE_S = 1.0
_ID = re.compile(r"job_[0-9a-f]{24}")
_PAGE = 100
_MAX_PAGES = 100
_OVER = ("completed", "failed", "cancelled")


@contextmanager
def connected(config: Path | None) -> Iterator[httpx.Client]:
    cell = open_cell(config)
    verify = certificate.trusting(cell.layout) if cell.config.tls.on else True
    # trust_env: a proxy of the environment has no business between us and this machine.
    with httpx.Client(
        base_url=f"{cell.url}v1/",
        headers=_headers(cell),
        timeout=_ANSWER_S,
        trust_env=False,
        verify=verify,
    ) as client:
        yield client


def _headers(cell: Cell) -> dict[str, str]:
    own = os.environ.get("ZIMAGE_API_KEY")
    return {"Authorization": f"Bearer {own}"} if own else store.operator_headers(cell)


def call(client: httpx.Client, method: str, path: str, **options: Any) -> Any:
    """The JSON of an answer. All that is asked for here may be repeated, so it is while the cell
    is away for a moment."""
    for attempt in range(_TRIES):
        last = attempt == _TRIES - 1
        try:
            answer = client.request(method, path, **options)
        except httpx.HTTPError as error:
            if last:
                raise CellError(f"no answer from {client.base_url}: {error!r}") from None
        else:
            if answer.status_code < 400:
                return answer.json() if answer.content else None
            if answer.status_code != 503 or last:
                raise CellError(_message(answer))
        time.sleep(_PATIENCE_S)
    raise AssertionError("the last attempt returns or raises")


def whole_id(client: httpx.Client, given: str) -> str:
    """The id of the one job that ``given`` is the beginning of, with or without ``job_``."""
    if _ID.fullmatch(given):
        return given
    begin = f"job_{given.removeprefix('job_')}"
    found: list[str] = []
    for ids in _pages(client) if begin != "job_" else ():
        found += [job_id for job_id in ids if job_id.startswith(begin)]
        if len(found) > 1:
            alike = ", ".join(found[:3])
            raise CellError(f"several jobs begin with {given} ({alike} …): write more of it")
    if not found:
        raise CellError(f"no job {given}; see zimage jobs list")
    return found[0]


def _pages(client: httpx.Client) -> Iterator[list[str]]:
    """Ids of all jobs, newest first."""
    after: dict[str, str] = {}
    for _ in range(_MAX_PAGES):
        found = call(client, "GET", "jobs", params={"limit": _PAGE, **after})
        ids = [job["id"] for job in found["data"]]
        yield ids
        if not found["has_more"]:
            return
        after = {"after": ids[-1]}


def _message(answer: httpx.Response) -> str:
    try:
        return str(answer.json()["error"]["message"])
    except (ValueError, KeyError, TypeError):
        return f"HTTP {answer.status_code}: {answer.text[:200]}"


def fetch_zip(client: httpx.Client, job: str, file: Path) -> None:
    """``file`` is there whole or not at all."""
    part = file.with_name(f".{file.name}.part")
    for attempt in range(_TRIES):
        try:
            with client.stream("GET", f"jobs/{job}/results.zip") as answer, part.open("wb") as out:
                if answer.status_code != 200:
                    answer.read()
                    raise CellError(_message(answer))
                for chunk in answer.iter_raw():
                    out.write(chunk)
            part.replace(file)
            return
        except httpx.HTTPError as error:  # cut, for instance because its worker died
            if attempt == _TRIES - 1:
                raise CellError(f"the download was cut {_TRIES} times: {error!r}") from None
            time.sleep(_PATIENCE_S)
        finally:
            part.unlink(missing_ok=True)


def as_they_change(client: httpx.Client, job: str) -> Iterator[dict[str, Any]]:
    """The job now and after each change, until it is over, through cuts and restarts."""
    found: dict[str, Any] = call(client, "GET", f"jobs/{job}")
    yield found
    while found["state"] not in _OVER:
        with suppress(httpx.HTTPError):
            path, after = f"jobs/{job}/events", {"after": found["revision"]}
            with client.stream("GET", path, params=after) as answer:
                for line in answer.iter_lines() if answer.status_code == 200 else ():
                    if line.startswith("data: ") and '"type":"job.updated"' in line:
                        found = json.loads(line.removeprefix("data: "))["job"]
                        yield found
        if found["state"] not in _OVER:
            time.sleep(_PATIENCE_S)
            found = call(client, "GET", f"jobs/{job}")
            yield found
