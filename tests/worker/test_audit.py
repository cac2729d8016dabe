"""Who drew what, in lines that nobody can forge and files that end."""

import json
import os
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from tests.worker.conftest import ready, serving, settings_in
from worker import audit
from worker import log as worker_log
from worker.audit import Audit, Entry
from worker.pipelines.base import DrawSpec

DAY_S = 86_400.0


def entry(prompt: str = "a fox", at: float | None = None, **changes: Any) -> Entry:
    at = time.time() if at is None else at
    spec = DrawSpec(prompt, 256, 512, 8, 7, 0.0, "blurry")
    who = {"owner": "key_1", "name": "design", "client": "10.0.0.7", "model": "tiny"}
    return Entry(at=at, image="ab-0", spec=spec, **{**who, **changes})


def opened(folder: Path, **changes: Any) -> Audit:
    values: dict[str, Any] = {"prompts": True, "keep_days": 10, "max_bytes": 1 << 20}
    log = Audit(folder, "w1", **{**values, **changes})
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
        "\ud800",
        "狐狸" * 2000,
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
    assert [line["prompt"] for line in lines(tmp_path / "audit")] == [prompt, "after"]


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


def test_oldest_files_go_beyond_the_size(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "audit"
    folder.mkdir()
    for n in range(5):
        (folder / f"2026-01-0{n + 1}T000000-w2-1.jsonl").write_text("x" * 1000)
    log = opened(folder, max_bytes=2500)
    log.drew(entry())
    log.close()
    kept = sorted(path.name for path in folder.iterdir() if "-w2-" in path.name)
    assert [name[:10] for name in kept] == ["2026-01-04", "2026-01-05"]


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


def test_full_queue_drops_and_never_waits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stalled = threading.Event()
    monkeypatch.setattr(Audit, "_current", lambda *_: stalled.wait(30) and None)
    monkeypatch.setattr(audit, "MAX_QUEUED_LINES", 3)
    log = opened(tmp_path / "audit")
    for _ in range(50):
        log.drew(entry())
    assert log._lost >= 46
    monkeypatch.undo()
    stalled.set()


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
    async with serving(settings_in(home, audit_log=False)) as (service, client):
        await ready(service)
        body = {"prompt": "a fox", "size": "256x256"}
        assert (await client.post("/v1/images/generations", json=body)).status_code == 200
    assert not (home / "audit").exists()
