"""Real processes: how a worker starts, hands over, drains and ends."""

import json
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.worker.processes import wait_until, worker
from worker import exits
from worker.coordination.heartbeat import Phase, read_heartbeat

FREE_BAD: list[tuple[dict[str, str], str]] = [
    ({"steps": "0"}, "worker: steps: Input should be greater than or equal to 1 (is '0')"),
    ({"device": "tpu", "threads": "x"}, "worker: threads: Input should be a valid integer"),
    ({"run_dir": "/tmp/" + "x" * 120}, "choose a shorter run_dir"),
]


@pytest.mark.parametrize(("env", "line"), FREE_BAD)
def test_bad_settings_are_told_line_by_line(home: Path, env: dict[str, str], line: str) -> None:
    with worker(home, **env) as bad:
        assert bad.wait() == exits.BAD_SETTINGS
        assert line in bad.tell()
        assert "Traceback" not in bad.tell()


def test_model_that_does_not_load_has_its_own_exit_code(home: Path) -> None:
    with worker(home, model="synthetic:nonsense=1") as bad:
        assert bad.wait() == exits.MODEL_FAILED
        assert "unknown option 'nonsense'" in bad.tell()


def test_poisoned_device_answers_and_ends_with_its_own_exit_code(home: Path) -> None:
    with worker(home) as poisoned:
        poisoned.wait_ready()
        poisoned.client.headers["X-Again"] = "1"  # by nginx
        failed = poisoned.draw("fault:poisoned")
        assert failed.status_code == 503
        assert failed.headers["X-Accel-Redirect"] == "@again1"  # who was away may be back by now
        assert poisoned.wait() == exits.DEVICE_POISONED


def test_socket_is_for_this_user_alone(home: Path) -> None:
    with worker(home) as started:
        started.wait_ready()
        assert started.socket.stat().st_mode & 0o777 == 0o600


def test_socket_answers_while_the_model_loads(home: Path) -> None:
    with worker(home, model="synthetic:load_ms=20000") as loading:
        wait_until(lambda: loading.readiness() != {}, loading.tell)
        assert loading.readiness()["reason"] == "loading"
        assert loading.draw().json()["error"]["code"] == "not_ready"
        loading.signal(signal.SIGTERM)
        assert loading.wait() == 0


def test_socket_file_of_a_killed_worker_is_taken_over(home: Path) -> None:
    with worker(home) as first:
        first.wait_ready()
        first.signal(signal.SIGKILL)
        first.wait()
        assert first.socket.exists()
        with worker(home) as second:
            second.wait_ready()
            assert second.draw().status_code == 200


def test_second_worker_of_a_name_gives_up_and_harms_nobody(home: Path) -> None:
    with worker(home) as first:
        first.wait_ready()
        with worker(home, lock_wait_s="0.1") as second:
            assert second.wait() == exits.SOCKET_FAILED
            assert f"pid {first.process.pid}" in second.tell()
        assert first.draw().status_code == 200


def test_successor_waits_for_its_predecessor(home: Path) -> None:
    with worker(home) as first:
        first.wait_ready()
        with worker(home, lock_wait_s="30") as second:
            first.signal(signal.SIGKILL)
            first.wait()
            second.wait_ready()
            assert json.loads(second.client.get("/livez").text)["pid"] == second.process.pid


class InThread(threading.Thread):
    """One request in a thread of its own."""

    def __init__(self, send: Any) -> None:
        super().__init__(daemon=True)
        self._send = send
        self.answer: httpx.Response | None = None
        self.start()

    def run(self) -> None:
        self.answer = self._send()

    def result(self) -> httpx.Response:
        self.join(30)
        assert self.answer is not None
        return self.answer


def test_sigterm_finishes_what_runs_and_hands_back_the_rest(home: Path) -> None:
    with worker(home, model="synthetic:step_ms=200", max_batch="1") as draining:
        draining.wait_ready()
        running = InThread(lambda: draining.draw("first"))
        wait_until(lambda: draining.readiness()["running"] == 1)
        queued = InThread(lambda: draining.draw("second"))
        wait_until(lambda: draining.readiness()["queued"] == 1)
        draining.signal(signal.SIGTERM)
        assert queued.result().json()["error"]["code"] == "draining"
        assert draining.draw("third").status_code == 503
        draining.signal(signal.SIGTERM)
        assert running.result().status_code == 200
        assert draining.wait() == 0
        heartbeat = read_heartbeat(home / "run" / "w1.beat")
        assert heartbeat is not None
        assert heartbeat.phase is Phase.ENDED


def test_sigterm_lets_a_stream_end_in_full(home: Path) -> None:
    with worker(home, model="synthetic:step_ms=100", max_batch="1") as draining:
        draining.wait_ready()
        first = InThread(lambda: draining.draw("first", stream=True))
        second = InThread(lambda: draining.draw("second", stream=True))
        wait_until(lambda: draining.has() == 2)
        draining.signal(signal.SIGTERM)
        for stream in (first, second):
            assert "event: image_generation.done" in stream.result().text
        assert draining.wait() == 0


def test_hung_drawing_does_not_hold_up_the_end(home: Path) -> None:
    with worker(home, drain_timeout_s="3") as hung:
        hung.wait_ready()
        request = threading.Thread(target=_ignore_cut, args=(hung,), daemon=True)
        request.start()
        wait_until(lambda: hung.readiness()["running"] == 1)
        hung.signal(signal.SIGTERM)
        assert hung.wait() == 0


def _ignore_cut(hung: Any) -> None:
    try:
        hung.draw("fault:hang")
    except httpx.TransportError:
        return


def test_client_that_leaves_stops_its_drawing(home: Path) -> None:
    with worker(home, model="synthetic:step_ms=200") as started:
        started.wait_ready()
        with pytest.raises(httpx.ReadTimeout):
            started.client.post(
                "/v1/images/generations", json={"prompt": "a", "steps": 50}, timeout=0.5
            )
        wait_until(lambda: started.readiness()["running"] == 0)
        assert started.totals()["requests_cancelled"] == 1
        assert started.totals()["steps"] < 8 + 50
        wait_until(lambda: '"status": 499' in started.tell())


def test_client_that_leaves_a_stream_stops_its_drawing(home: Path) -> None:
    with worker(home, model="synthetic:step_ms=200") as started:
        started.wait_ready()
        body = {"prompt": "a", "steps": 50, "stream": True}
        with started.client.stream("POST", "/v1/images/generations", json=body) as answer:
            next(answer.iter_lines())
        wait_until(lambda: started.totals()["requests_cancelled"] == 1)
        wait_until(lambda: started.readiness()["running"] == 0)


def test_event_loop_answers_while_large_pictures_are_encoded(home: Path) -> None:
    with worker(home, model="synthetic:step_ms=1,noise=1") as busy:
        busy.wait_ready()
        request = InThread(lambda: busy.draw("a", n=4, size="1024x1024", steps=1))
        while request.is_alive():
            assert busy.client.get("/readyz", timeout=5).status_code == 200
        assert len(request.result().content) > 4 * 3_000_000


def test_log_that_nobody_reads_holds_up_nothing(home: Path) -> None:
    reader, writer = os.pipe()
    with worker(home, stdout=writer) as started:
        os.close(writer)
        started.wait_ready()
        for _ in range(400):
            assert started.client.get("/v1/models/" + "x" * 150).status_code == 404
        started.signal(signal.SIGTERM)
        assert started.wait() == 0
    assert os.read(reader, 1 << 20).count(b"\n") < 400, "the pipe was never full"
    os.close(reader)


def test_every_line_of_the_log_is_json_and_names_the_request(home: Path) -> None:
    with worker(home) as started:
        started.wait_ready()
        request_id = os.urandom(16).hex()
        started.draw("a secret prompt", request_id)
        started.signal(signal.SIGTERM)
        assert started.wait() == 0
        lines = [json.loads(line) for line in started.log.read_text().splitlines()]
    line = next(line for line in lines if line.get("request_id") == request_id)
    assert (line["status"], line["path"]) == (200, "/v1/images/generations")
    assert "secret" not in json.dumps(lines)
    assert lines[-1]["event"] == "ended"


ALONE = """
import asyncio, sys
from pathlib import Path
from worker.app import create_app
from worker.settings import Settings
async def main():
    home = Path(sys.argv[1])
    settings = Settings(run_dir=home, var_dir=home)
    create_app(settings, lambda settings: None)
asyncio.run(main())
shared = ("worker.coordination.shared_", "psycopg", "obstore")
print(sorted(name for name in sys.modules if name.startswith(shared)))
tables = ("hosts", "lost_hosts", "key_limits", "strikes", "job_steps", "certificates")
print([name for name in tables if f"worker.storage.{name}" in sys.modules])
"""


def test_a_host_of_its_own_imports_nothing_of_what_hosts_share(home: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", ALONE, str(home)], capture_output=True, text=True, check=True
    )
    assert done.stdout.split("\n")[:2] == ["[]", "[]"]
