"""Who drew what, in lines that nobody can forge and files that end."""

import asyncio
import hashlib
import itertools
import json
import os
import threading
import time
from pathlib import Path
from typing import Any

import orjson
import pytest

from tests.worker.conftest import ready, serving, settings_in
from tests.worker.later import Later
from worker import log as worker_log
from worker.observability import audit
from worker.observability.audit import Audit, Entry, Note, Rules
from worker.storage.keys import EVERYONE
from worker.types import DrawSpec, Parameters

DAY_S = 86_400.0


def entry(prompt: str = "a fox", at: float | None = None, **changes: Any) -> Entry:
    at = time.time() if at is None else at
    spec = DrawSpec(prompt, 7, Parameters(256, 512, 8, 0.0, "blurry"))
    who: dict[str, Any] = {
        "spec": spec,
        "owner": "key_1",
        "name": "design",
        "client": "10.0.0.7",
        "model": "tiny",
    }
    return Entry(at=at, image="ab-0", **{**who, **changes})


def opened(folder: Path, worker: str = "w1", **changes: Any) -> Audit:
    rules = Rules(**{"keep_s": 10 * DAY_S, "max_bytes": 1 << 20, **changes})
    log = Audit(folder, worker, rules)
    threading.Thread(target=log.run, daemon=True).start()
    return log


def lines(folder: Path) -> list[dict[str, Any]]:
    texts = [path.read_text() for path in sorted(folder.iterdir())]
    return [json.loads(line) for text in texts for line in text.splitlines()]


def test_line_says_who_drew_what(tmp_path: Path) -> None:
    log = opened(tmp_path / "audit")
    log.drew(entry())
    log.close()
    [line] = lines(tmp_path / "audit")
    assert line.pop("at").endswith("Z")
    assert line == {
        "event": "drew",
        "image": "ab-0",
        "owner": "key_1",
        "name": "design",
        "client": "10.0.0.7",
        "model": "tiny",
        "prompt": "a fox",
        "negative_prompt": "blurry",
        "width": 256,
        "height": 512,
        "steps": 8,
        "seed": 7,
        "guidance_scale": 0.0,
        "reproducible": False,
    }


def test_prompts_can_be_left_out(tmp_path: Path) -> None:
    log = opened(tmp_path / "audit", prompts=False)
    log.drew(entry("a secret"))
    log.close()
    text = "".join(path.read_text() for path in (tmp_path / "audit").iterdir())
    assert "secret" not in text
    assert "blurry" not in text
    assert json.loads(text)["seed"] == 7


@pytest.mark.parametrize(
    "prompt",
    [
        'x"}\n{"at":"forged","owner":"somebody else"}',
        "x\r\n\u2028\u2029\x85{}",
        "\x1b]0;owned\x07\x9b31m",
        "\u202egnol txet\u2066",
        "half \ud800 of a pair, \U0001f98a",
        "狐狸" * 500,
    ],
)
def test_no_prompt_makes_a_line_of_its_own(tmp_path: Path, prompt: str) -> None:
    log = opened(tmp_path / "audit")
    log.drew(entry(prompt))
    log.drew(entry("after"))
    log.close()
    [path] = (tmp_path / "audit").iterdir()
    raw = path.read_bytes()
    assert raw.count(b"\n") == 2
    assert all(byte == 0x0A or 0x20 <= byte < 0x7F for byte in raw)
    whole = prompt.replace("\ud800", "\ufffd")
    assert [orjson.loads(line)["prompt"] for line in raw.splitlines()] == [whole, "after"]


def test_files_are_this_users_alone(tmp_path: Path) -> None:
    log = opened(tmp_path / "audit")
    log.drew(entry())
    log.close()
    [path] = (tmp_path / "audit").iterdir()
    assert (path.stat().st_mode & 0o777, path.parent.stat().st_mode & 0o777) == (0o600, 0o700)


def test_each_day_begins_a_file_and_old_ones_go(tmp_path: Path) -> None:
    folder = tmp_path / "audit"
    folder.mkdir()
    old, young, copy = (
        folder / name
        for name in (
            "2020-01-01T000000-w2-1.jsonl",
            "2020-01-09T000000-w2-1.jsonl",
            "copy-of-somebody.jsonl",
        )
    )
    now = time.time()
    for path, age_days in ((old, 11), (young, 9), (copy, 99)):
        path.write_text("{}\n")
        os.utime(path, (now - age_days * DAY_S,) * 2)
    log = opened(folder)
    log.drew(entry(at=now))
    log.drew(entry(at=now + DAY_S))
    log.close()
    assert not old.exists()
    assert young.exists()
    assert copy.exists()


def test_oldest_files_go_beyond_the_size_and_that_is_counted(tmp_path: Path) -> None:
    folder = tmp_path / "audit"
    folder.mkdir()
    for n in range(5):
        (folder / f"2026-01-0{n + 1}T000000-w2-1.jsonl").write_text("x" * 1000)
    (folder / "2026-01-06T000000-w2-1-beyond.jsonl").write_text("x" * 1000)
    log = opened(folder, max_bytes=2500)
    log.drew(entry())
    log.close()
    kept = sorted(path.name for path in folder.iterdir() if "-w2-" in path.name)
    assert [name[:10] for name in kept] == ["2026-01-04", "2026-01-05"]
    assert (log.deleted_early, log.bytes) == (4000, 2000)


def test_files_that_are_old_enough_end_without_an_alarm(tmp_path: Path) -> None:
    folder = tmp_path / "audit"
    folder.mkdir()
    old = folder / "2020-01-01T000000-w2-1.jsonl"
    old.write_text("x" * 1000)
    os.utime(old, (1e9, 1e9))
    log = opened(folder, max_bytes=100)
    log.drew(entry())
    log.close()
    assert not old.exists()
    assert log.deleted_early == 0


def test_file_that_is_full_is_followed_by_one_and_not_by_one_a_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(audit, "MAX_FILE_BYTES", 1000)
    seconds = itertools.count(1.8e9)
    monkeypatch.setattr(time, "gmtime", lambda *_: REAL_GMTIME(next(seconds)))
    log = opened(tmp_path / "audit")
    for _ in range(40):
        log.drew(entry(at=1.8e9))
    log.close()
    per_file = [len(path.read_text().splitlines()) for path in (tmp_path / "audit").iterdir()]
    assert sum(per_file) == 40
    assert min(sorted(per_file)[1:]) >= 3


REAL_GMTIME = time.gmtime


@pytest.mark.parametrize("who", ["owner", "client"])
def test_nobody_erases_what_others_did(tmp_path: Path, who: str) -> None:
    """400 pictures with long prompts used to end everybody's lines."""
    folder = tmp_path / "audit"
    loud: dict[str, Any] = (
        {"owner": "key_loud"} if who == "owner" else {"owner": EVERYONE, "client": "10.6.6.6"}
    )
    calm: dict[str, Any] = (
        {"owner": "key_calm"} if who == "owner" else {"owner": EVERYONE, "client": "10.0.0.7"}
    )
    for k in range(4):
        log = opened(folder, f"w{k}", max_bytes=200_000, owner_bytes=20_000, prompt_chars=4000)
        log.drew(entry("calm", **calm))
        for n in range(100):
            log.drew(entry(f"{n} " + "狐" * 3000, **loud))
        log.drew(entry("calm", **calm))
        log.close()
    assert [x["prompt"] for x in lines(folder)].count("calm") == 8
    assert sum(path.stat().st_size for path in folder.iterdir()) < 300_000
    assert log.deleted_early > 0


def test_long_prompt_is_cut_and_can_still_be_recognised(tmp_path: Path) -> None:
    log = opened(tmp_path / "audit", prompt_chars=10)
    log.drew(entry("a fox in the snow"))
    log.close()
    [line] = lines(tmp_path / "audit")
    assert (line["prompt"], line["prompt_chars"]) == ("a fox in t", 17)
    assert line["prompt_sha256"] == hashlib.sha256(b"a fox in the snow").hexdigest()
    assert line["negative_prompt"] == "blurry"


def test_command_writes_its_line_at_once(tmp_path: Path) -> None:
    for event in ("key_created", "key_deleted"):
        note = Note(1.8e9, event, "key_1", "design", "eve on this host", {"role": "ops"})
        audit.append(tmp_path / "audit", "zimage", note)
    [path] = (tmp_path / "audit").iterdir()
    assert audit._NAME.fullmatch(path.name)
    assert [line["event"] for line in lines(tmp_path / "audit")] == ["key_created", "key_deleted"]


def test_disk_that_refuses_holds_up_nobody_and_is_told_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[str] = []
    monkeypatch.setattr(worker_log, "failure", lambda name, error, **_: told.append(name))
    (tmp_path / "audit").write_text("a file where the folder should be")
    log = opened(tmp_path / "audit")
    for _ in range(100):
        log.drew(entry())
    log.close()
    assert told == ["audit lines are lost"]
    assert log.lost == 100


def test_line_that_cannot_be_made_is_counted_and_only_then(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A count that went up and down would be an alarm."""
    seen: list[int] = []
    log = Audit(tmp_path / "audit", "w1", Rules())
    write = audit._Outlet.write

    def watched(outlet: audit._Outlet, line: str) -> None:
        seen.append(log.lost)
        write(outlet, line)

    monkeypatch.setattr(audit._Outlet, "write", watched)
    log.drew(entry())
    log.note("odd", "key_1", "design", "10.0.0.7", what=object())
    log.drew(entry())
    log.close(timeout_s=0)
    with pytest.raises(TypeError):
        log.run()
    log.run()  # as the worker does
    assert (seen, log.lost, len(lines(tmp_path / "audit"))) == ([0, 1], 1, 2)


def test_full_queue_drops_and_never_waits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stalled = threading.Event()
    monkeypatch.setattr(Audit, "_open", lambda *_: stalled.wait(30) and None)
    monkeypatch.setattr(audit, "MAX_QUEUED_LINES", 3)
    log = opened(tmp_path / "audit")
    for _ in range(50):
        log.drew(entry())
    assert log.lost >= 46
    monkeypatch.undo()
    stalled.set()


@pytest.mark.parametrize(("style", "told"), [("", {}), ("ink", {"style": "ink"})])
def test_a_later_field_is_noted_where_it_was_used(style: str, told: dict[str, str]) -> None:
    spec = DrawSpec("a fox", 7, Later(64, 64, 8, style=style))
    line = audit.line_of(entry(spec=spec), Rules())
    assert {k: v for k, v in json.loads(line).items() if k == "style"} == told
    hidden = audit.line_of(entry(spec=spec), Rules(prompts=False))
    assert "ink" not in hidden


@pytest.mark.anyio
async def test_worker_notes_each_picture_of_a_request_and_of_a_stream(home: Path) -> None:
    async with serving(settings_in(home)) as (service, client):
        await ready(service)
        body = {"prompt": "a fox", "n": 2, "seed": 5, "size": "256x256"}
        asked: dict[str, Any] = {
            "json": body,
            "headers": {"X-Real-IP": "10.0.0.7", "X-Request-ID": "a" * 32},
        }
        assert (await client.post("/v1/images/generations", **asked)).status_code == 200
        asked["json"] = {"prompt": "streamed", "stream": True, "size": "256x256"}
        assert (await client.post("/v1/images/generations", **asked)).status_code == 200
        assert (await client.post("/v1/images/generations", json={})).status_code == 400
    noted = lines(home / "audit")
    assert [(x["image"], x["prompt"]) for x in noted] == [
        (f"{'a' * 32}-0", "a fox"),
        (f"{'a' * 32}-1", "a fox"),
        (f"{'a' * 32}-0", "streamed"),
    ]
    assert {x["client"] for x in noted} == {"10.0.0.7"}
    assert sorted(x["seed"] for x in noted[:2]) == [5, 6]


@pytest.mark.anyio
async def test_nothing_is_noted_where_it_is_switched_off(home: Path) -> None:
    async with serving(settings_in(home, audit={"log": False})) as (service, client):
        await ready(service)
        body = {"prompt": "a fox", "size": "256x256"}
        assert (await client.post("/v1/images/generations", json=body)).status_code == 200
    assert not (home / "audit").exists()


@pytest.mark.anyio
async def test_what_was_left_and_what_was_seen_of_it_is_noted(home: Path) -> None:
    settings = settings_in(home, model="synthetic:step_ms=20", max_batch=1)
    body = {"prompt": "a fox", "size": "64x64", "steps": 50, "seed": 5}
    async with serving(settings) as (service, client):
        await ready(service)
        app = client._transport.app  # type: ignore[attr-defined]
        left = await _until(app, {**body, "stream": True, "partial_images": 1}, b"partial_image")
        assert left
        await _until(app, body, None)
    noted = lines(home / "audit")
    assert [(x["event"], x["previews"]) for x in noted] == [("left", 1), ("left", 0)]
    assert {x["prompt"] for x in noted} == {"a fox"}


async def _until(app: Any, body: dict[str, Any], seen: bytes | None) -> bool:
    """Ask, and leave when the answer has ``seen``; None: before there is any."""
    asked = [{"type": "http.request", "body": json.dumps(body).encode(), "more_body": False}]
    leave, found = asyncio.Event(), False

    async def receive() -> dict[str, Any]:
        if asked:
            return asked.pop()
        if seen is not None:
            await leave.wait()
        return {"type": "http.disconnect"}

    async def send(message: dict[str, Any]) -> None:
        nonlocal found
        if seen is not None and seen in message.get("body", b""):
            found = True
            leave.set()

    scope = {
        "type": "http",
        "method": "POST",
        "path": "/v1/images/generations",
        "query_string": b"",
        "headers": [(b"content-type", b"application/json"), (b"x-request-id", b"b" * 32)],
    }
    async with asyncio.timeout(20):
        await app(scope, receive, send)
    return found
