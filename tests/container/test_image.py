"""The images, built and run for real; no registry of images is needed: `scripts/prove container`.

As root, and as the ordinary user that PROVE_USER names (one with a line in /etc/subuid). What is
built stays in /tmp/zimage-images-…, so that the next run is quick.
"""

import contextlib
import os
import re
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest

from loadtest.traffic import check_picture
from tests.container import engine
from tests.container.engine import Engine, EngineError
from tests.object_store import running as running_store
from tests.ports import free_port, free_ports
from tests.postgres import Server

pytestmark = [
    pytest.mark.skipif(not os.environ.get("PROVE"), reason="minutes: scripts/prove container"),
    pytest.mark.cluster,
    pytest.mark.timeout(3600),
]

START_S = 600.0
GRACE_S = 330
DRAWING = {"prompt": "a large red circle on a white background", "size": "256x256"}
CONFIG = """
[cell]
name = "{name}"
var_dir = "/var/lib/zimage"
[listen]
address = "0.0.0.0"
port = {port}
auth = "keys"
[ops]
port = {ops_port}
{more}
"""


@dataclass(frozen=True)
class Site:
    """A container of an image, and where its cell or front is found."""

    engine: Engine
    image: str
    name: str
    port: int
    config: Path

    def start(self, *options: str) -> str:
        """Its log, once it is ready."""
        mount = f"{self.config}:/etc/zimage/cluster.toml:ro"
        self.engine.start(self.name, self.image, "-v", mount, *options)
        return self.engine.wait_for_log(self.name, "ready: http", START_S)

    def draw(self, token: str, timeout_s: float = 200.0) -> httpx.Response:
        return httpx.post(
            f"http://127.0.0.1:{self.port}/v1/images/generations",
            json=DRAWING,
            headers={"Authorization": f"Bearer {token}"},
            timeout=timeout_s,
        )

    def exec(self, *command: str) -> str:
        return self.engine.podman("exec", self.name, *command)


def until(true: Callable[[], bool], what: str) -> None:
    end = time.monotonic() + START_S
    while not true():
        assert time.monotonic() < end, f"not: {what}"
        time.sleep(0.5)


def keys_in(log: str) -> list[str]:
    return re.findall(r"\bzimage_[\w-]{43}\b", log)


@pytest.fixture(scope="module")
def rootful() -> Engine:
    if lacks := engine.missing():
        pytest.skip(f"without {lacks}; scripts/prove container installs it")
    return Engine(Path(f"/tmp/zimage-images-{os.getuid()}"))


@pytest.fixture(scope="module", params=["us", "rootless"])
def built(request: pytest.FixtureRequest, rootful: Engine) -> tuple[Engine, str]:
    """An engine with the image of a cell."""
    user = os.environ.get("PROVE_USER", "")
    if request.param == "rootless" and (os.getuid() != 0 or not user):
        pytest.skip("not root, who runs containers as PROVE_USER, or that is not set")
    image = rootful.build("cell")
    if request.param == "us":
        return rootful, image
    other = Engine(Path(f"/tmp/zimage-images-{user}"), user)
    rootful.give(image, other)
    return other, image


@contextlib.contextmanager
def site(engine: Engine, image: str, name: str, more: str = "") -> Iterator[Site]:
    port, ops_port = free_ports(2)
    with tempfile.TemporaryDirectory(prefix="zc-", dir="/tmp") as folder:
        Path(folder).chmod(0o755)
        config = Path(folder, "cluster.toml")
        config.write_text(
            CONFIG.format(name=name, port=port, ops_port=ops_port, more=more), encoding="utf-8"
        )
        config.chmod(0o644)
        engine.remove(name)
        try:
            yield Site(engine, image, name, port, config)
        finally:
            with contextlib.suppress(EngineError):
                print(engine.logs(name))
            engine.remove(name)


class Load:
    """Clients that draw until they are told to stop. What became of each request is in ``told``."""

    def __init__(self, site: Site, token: str, clients: int) -> None:
        self._site, self._token = site, token
        self._over = threading.Event()
        self.told: list[tuple[float, str]] = []
        self._pool = ThreadPoolExecutor(clients)
        self._clients = [self._pool.submit(self._draw) for _ in range(clients)]

    def _draw(self) -> None:
        while not self._over.is_set():
            try:
                answer = self._site.draw(self._token)
                outcome = str(answer.status_code)
                if answer.status_code == 200:
                    wrong = check_picture(answer.json()["data"][0], DRAWING, synthetic=False)
                    outcome = wrong or "drawn"
            except httpx.ConnectError:
                outcome = "not accepted"  # nobody listens any more: nothing was promised
                self._over.set()
            except httpx.HTTPError as error:
                outcome = repr(error)
            self.told.append((time.monotonic(), outcome))

    def end(self) -> None:
        self._over.set()
        for client in self._clients:
            client.result(300.0)
        self._pool.shutdown()


def test_a_cell_draws_drains_and_comes_back(built: tuple[Engine, str]) -> None:
    with site(*built, "zimage-proof") as cell:
        [token] = keys_in(cell.start())  # printed once
        assert check_picture(cell.draw(token).json()["data"][0], DRAWING, synthetic=False) == ""
        assert cell.draw("wrong").status_code == 401
        cell.engine.podman("healthcheck", "run", cell.name)
        assert_locked(cell)

        load = Load(cell, token, clients=8)
        try:
            until(lambda: len(load.told) >= 4, "requests are drawn")
            asked = time.monotonic()
            cell.engine.podman("stop", "-t", str(GRACE_S), cell.name, timeout_s=GRACE_S + 60.0)
            took_s = time.monotonic() - asked
        finally:
            load.end()
        assert {outcome for _, outcome in load.told} <= {"drawn", "not accepted"}
        assert any(at > asked for at, outcome in load.told if outcome == "drawn")
        assert took_s < GRACE_S
        assert exit_code(cell) == 0

        # A newer image is another container with the same volume.
        cell.engine.podman("rm", cell.name)
        assert keys_in(cell.start()) == []
        assert cell.draw(token).status_code == 200
        listed = httpx.get(
            f"http://127.0.0.1:{cell.port}/v1/images",
            headers={"Authorization": f"Bearer {token}"},
            timeout=30.0,
        )
        assert len(listed.json()["data"]) >= 5  # those of the container before


def assert_locked(cell: Site) -> None:
    """Neither root nor a file system that can be written to, and tini as process 1."""
    assert cell.exec("id", "-u").strip() == "7860"
    for path in ("/x", "/tmp/x", "/etc/zimage/x", "/opt/zimage/x"):
        with pytest.raises(EngineError, match="Read-only file system"):
            cell.exec("touch", path)
    assert cell.exec("cat", "/proc/1/comm").strip() == "tini"
    assert cell.exec("df", "--output=size", "/dev/shm").split()[-1] == "1024"


def exit_code(site: Site) -> int:
    return int(site.engine.podman("inspect", "-f", "{{.State.ExitCode}}", site.name))


def test_a_cell_that_is_told_to_end_while_it_starts_ends(built: tuple[Engine, str]) -> None:
    with site(*built, "zimage-proof-start") as cell:
        mount = f"{cell.config}:/etc/zimage/cluster.toml:ro"
        cell.engine.start(cell.name, cell.image, "-v", mount)
        cell.engine.wait_for_log(cell.name, "start supervisord", START_S)
        cell.engine.podman("stop", "-t", str(GRACE_S), cell.name, timeout_s=GRACE_S + 60.0)
        assert exit_code(cell) == 0


def test_a_front_hands_requests_to_a_cell(rootful: Engine, postgres: Server) -> None:
    """The key is that of a secret file; the front joins by a token in another."""
    cell_image, front_image = rootful.build("cell"), rootful.build("front")
    token = "k" * 40
    with (
        tempfile.TemporaryDirectory(prefix="zc-", dir="/tmp") as folder,
        running_store(Path(folder)) as store,
        postgres.database("images") as url,
    ):
        Path(folder).chmod(0o755)
        key, join, s3 = (Path(folder, name) for name in ("key", "join", "s3"))
        key.write_text(f"{token}\n")
        s3.write_text(store.credentials.read_text())
        for file in (key, s3):
            file.chmod(0o644)
        objects = {**store.objects("images").model_dump(), "credentials_file": "/run/secrets/s3"}
        told = "\n".join(f"{name} = {value!r}" for name, value in objects.items())
        more = (
            f'[database]\nurl = "{url}"\n[objects]\n{told}\n'
            '[cluster]\nname = "studio"\nhost = "gpu1"\nrole = "host"\n'
            f'address = "127.0.0.1:{free_port()}"\n[[workers]]\ndevice = "cpu"\n'
        )
        shared = ("-v", f"{postgres.folder}:{postgres.folder}", "-v", f"{s3}:/run/secrets/s3:ro")
        with (
            site(rootful, cell_image, "zimage-proof-host", more) as cell,
            site(rootful, front_image, "zimage-proof-front") as front,
        ):
            mount = f"{cell.config}:/etc/zimage/cluster.toml:ro"
            volume = f"{cell.name}:/var/lib/zimage"
            rootful.podman(
                "run", "--rm", *engine.LOCKED, "-v", volume, "-v", mount, *shared,
                cell_image, "cluster", "init",
            )  # fmt: skip
            log = cell.start(*shared, "-v", f"{key}:/run/secrets/zimage-key:ro")
            assert keys_in(log) == []
            with inviting(cell) as invite:
                join.write_text(invite)
                join.chmod(0o644)
                front.start(*shared, "-v", f"{join}:/run/secrets/zimage-join:ro")
            until(lambda: front.draw(token).status_code == 200, "the front draws")
            assert front.draw("wrong" * 8).status_code == 401
            front.engine.podman("healthcheck", "run", front.name)
            assert "torch" not in front.exec("ls", "/opt/zimage/.venv/lib/python3.11/site-packages")


@contextlib.contextmanager
def inviting(cell: Site) -> Iterator[str]:
    """The token of a front, for which a door is open."""
    words = ["hosts", "invite", "front1", "--role", "front", "--door", f"127.0.0.1:{free_port()}"]
    command = cell.engine.command("exec", cell.name, "zimage", *words)
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            yield process.stdout.readline()
        finally:
            process.kill()
