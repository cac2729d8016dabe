"""A cell whose alarms go the whole way: real Alertmanager, relay, the robot of a chat."""

import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest

from tests.cluster.conftest import RunningCell, started
from tests.deploy.alarms.test_relay import Robot, listening
from tests.deploy.processes import wait_until
from tests.ports import free_port

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(300)]
ALERTMANAGER = "prometheus-alertmanager"


@contextmanager
def alertmanager(config: Path, port: int, folder: Path) -> Iterator[None]:
    command = [
        ALERTMANAGER,
        f"--config.file={config}",
        f"--storage.path={folder}",
        f"--web.listen-address=127.0.0.1:{port}",
        "--cluster.listen-address=",
    ]
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log)
    url = f"http://127.0.0.1:{port}/-/ready"
    try:
        wait_until(lambda: _answers(url), (folder / "log").read_text() or "Alertmanager ready")
        yield
    finally:
        process.terminate()
        process.wait(10)


def _answers(url: str) -> bool:
    try:
        return httpx.get(url, timeout=1.0).status_code == 200
    except httpx.HTTPError:
        return False


@pytest.fixture(scope="module")
def robot() -> Iterator[Robot]:
    with listening() as made:
        yield made


@pytest.fixture(scope="module")
def cell(robot: Robot, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningCell]:
    if shutil.which(ALERTMANAGER) is None:
        pytest.skip("no Alertmanager is installed here; scripts/env --test does it")
    folder = tmp_path_factory.mktemp("alarms")
    to_file, port = folder / "to", free_port()
    to_file.write_text(f"{robot.url}\n")
    to_file.chmod(0o600)
    told = f'[alarms]\nto_file = "{to_file}"\nalertmanager = "http://127.0.0.1:{port}"\n'
    with (
        started(model="synthetic:step_ms=1", workers=1, more=told) as cell,
        alertmanager(cell.layout.monitoring_dir / "alertmanager.yml", port, folder),
    ):
        yield cell


def test_an_alarm_that_means_nothing_arrives(cell: RunningCell, robot: Robot) -> None:
    done = cell.zimage("alarm", "test")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "✓ line 1: json://127.0.0.1" in done.stdout
    assert robot.heard[-1]["title"] == "info: A test of test: alarms arrive here"
    assert "secret-of-a-robot" not in done.stdout + cell.layout.log("alarms").read_text()
    assert "Alertmanager answers" in cell.zimage("doctor").stdout


def test_whoever_cannot_be_told_is_named(cell: RunningCell, robot: Robot) -> None:
    robot.status = 500
    try:
        done = cell.zimage("alarm", "test", "--timeout", "6")
        assert "could not be told of the last alarm" in cell.zimage("doctor").stdout
    finally:
        robot.status = 200
    assert done.returncode == 1
    assert "✗ line 1: json://127.0.0.1" in done.stdout
    assert "1 of 1 were not told in 6 s; see zimage logs alarms" in done.stderr
    wait_until(lambda: "Alertmanager answers" in cell.zimage("doctor").stdout, "told in the end")
