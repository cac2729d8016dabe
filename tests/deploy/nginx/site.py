"""A real nginx, rendered as in a cell, in front of fake workers; the test plays the guard."""

import contextlib
import dataclasses
import json
import ssl
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import httpx

from deploy.config import ClusterConfig, parse
from deploy.guard.gate import Gate, make_closed_socket
from deploy.host.machine import Machine, find_nginx
from deploy.layout import Layout
from deploy.rendering import certificate
from deploy.rendering.plan import plan
from deploy.rendering.render import Host, render
from tests.deploy.certificates import Authority
from tests.deploy.processes import ask, fake_worker, listens, running, wait_until
from tests.ports import free_port

WORKERS = ("w1", "w2", "w3")


@dataclasses.dataclass(frozen=True)
class SiteLayout(Layout):
    @property
    def web_dir(self) -> Path:
        return self.var_dir / "web"


@dataclasses.dataclass
class Site:
    layout: Layout
    config: ClusterConfig
    client: httpx.Client
    ops: httpx.Client
    _workers: dict[str, tuple[subprocess.Popen[bytes], contextlib.ExitStack]] = dataclasses.field(
        default_factory=dict
    )

    def gate(self, name: str) -> Gate:
        paths = self.layout
        return Gate(paths.gate(name), paths.socket(name), paths.closed_socket)

    @contextlib.contextmanager
    def worker(self, name: str) -> Iterator[subprocess.Popen[bytes]]:
        """A fake worker that is in the pool: the one of the test before, where that spared it."""
        if name not in self._workers:
            until_its_end = contextlib.ExitStack()
            self._workers[name] = (
                until_its_end.enter_context(fake_worker(self.layout, name)),
                until_its_end,
            )
            wait_until(lambda: listens(self.layout.socket(name)), "listening")
        self.gate(name).open()
        try:
            yield self._workers[name][0]
        finally:
            self.gate(name).close()
            if not self._is_as_new(name):
                self.end_workers(name)

    def _is_as_new(self, name: str) -> bool:
        if self._workers[name][0].poll() is not None:
            return False
        with contextlib.suppress(httpx.TransportError):  # a test stopped it, or its event loop
            return ask(self.layout, name, "POST", "/fake/anew", timeout_s=1).status_code == 200
        return False

    def end_workers(self, *names: str) -> None:
        """All, or those with ``names``: nobody listens at their sockets."""
        for name in names or tuple(self._workers):
            _, until_its_end = self._workers.pop(name)
            until_its_end.close()

    def draw(self, **asked: Any) -> httpx.Response:
        return self.client.post("/v1/images/generations", json=asked)

    def log_of(self, request_id: str) -> dict[str, Any]:
        """The access log's line of one request."""
        return dict(wait_until(lambda: self._find(request_id), "logged"))

    def _find(self, request_id: str) -> dict[str, Any] | None:
        lines = self.layout.access_log.read_text().splitlines()
        return next(
            (line for line in map(json.loads, lines) if line["request_id"] == request_id), None
        )


def configuration(var_dir: Path, **sections: dict[str, Any]) -> ClusterConfig:
    return parse(
        {
            "cell": {"var_dir": str(var_dir)},
            "listen": {"port": free_port()},
            "ops": {"port": free_port()},
            # Fake workers answer faster than any address may ask.
            "nginx": {"max_requests_per_s_per_address": 0, "max_connections_per_address": 0},
            **sections,
        }
    )


def files(
    config: ClusterConfig,
    layout: Layout,
    version: tuple[int, int, int] = (1, 22, 0),
    user: str = "",
    nameservers: tuple[str, ...] = (),
    links: Mapping[str, int] | None = None,
    serves: Mapping[str, tuple[str, ...]] | None = None,
) -> dict[str, str]:
    """``links``: that a front has in use, with the workers of each host; ``serves``: the pools of
    what each host has."""
    machine = Machine(cores=2, memory_gib=8.0, available_gib=8.0, gpus=())
    nginx = str(nginx_path())
    host = Host(
        nginx,
        version,
        2,
        sys.executable,
        user or _user(),
        "/nowhere",
        "code",
        "code",
        "python",
        "packages",
        nameservers,
    )
    return render(config, plan(config, machine, links, serves=serves), layout, host)


def write(layout: Layout, texts: dict[str, str]) -> None:
    layout.create()
    for name, text in texts.items():
        path = layout.render_dir / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)


def nginx_command(layout: Layout, *options: str) -> list[str]:
    where = ["-p", f"{layout.var_dir}/", "-c", str(layout.nginx_conf), "-e", "stderr"]
    return [str(nginx_path()), *where, *options]


@contextlib.contextmanager
def site(
    var_dir: Path,
    slot: str = "",
    authority: Authority | None = None,
    links: Mapping[str, int] | None = None,
    serves: Mapping[str, tuple[str, ...]] | None = None,
    **sections: dict[str, Any],
) -> Iterator[Site]:
    """``slot`` stands in the public server, beside its locations. ``authority``: of a cluster."""
    config = configuration(var_dir, **sections)
    layout = SiteLayout(var_dir, var_dir / "run")
    texts = files(config, layout, links=links, serves=serves)
    texts["conf.d/locations.conf"] += slot
    write(layout, texts)
    if authority is not None:
        authority.equip(layout, "host", "front")
    make_closed_socket(layout.closed_socket)
    verify: ssl.SSLContext | bool = True
    scheme = "http"
    if config.tls.on:
        certificate.install(certificate.self_signed(config, layout), layout)
        verify, scheme = certificate.trusting(layout), "https"
    url = f"{scheme}://127.0.0.1:{config.listen.port}"
    with (
        running(nginx_command(layout), layout.log("nginx")),
        httpx.Client(base_url=url, timeout=60, verify=verify) as client,
        httpx.Client(base_url=f"http://127.0.0.1:{config.ops.port}", timeout=60) as ops,
    ):
        here = Site(layout, config, client, ops)
        for name in WORKERS:
            here.gate(name).prepare()
        wait_until(lambda: _serves(client), "serving")
        try:
            yield here
        finally:
            here.end_workers()


def _serves(client: httpx.Client) -> bool:
    with contextlib.suppress(httpx.ConnectError):
        return client.get("/healthz").status_code == 200
    return False


def nginx_path() -> Path:
    binary = find_nginx("nginx")
    assert binary is not None
    return binary.path


def _user() -> str:
    return "root" if Path("/proc/self").owner() == "root" else "somebody"
