"""Real nginxes of two hosts and a front before them, with real links; the test plays the guards."""

import contextlib
import dataclasses
import subprocess
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from deploy.guard import link_program
from deploy.guard.gate import Gate
from deploy.rendering.plan import SPARE_LINKS, LinkPlan
from tests.deploy.certificates import Authority
from tests.deploy.nginx.site import Site, nginx_path, site
from tests.deploy.processes import listens, running, wait_until
from tests.ports import free_port

SHARED = {
    "database": {"url": "postgresql://zimage@/zimage"},
    "objects": {
        "url": "s3://pictures/cluster",
        "endpoint": "http://127.0.0.1:9",
        "credentials_file": "nowhere",
    },
}
USED = ("h1", "h2")


@dataclasses.dataclass
class Front:
    """``soonest`` is the gate of the host that will have room first."""

    site: Site

    @property
    def soonest(self) -> Path:
        return self.site.layout.gate("soonest")

    @contextlib.contextmanager
    def link(self, name: str, host: Site) -> Iterator[subprocess.Popen[bytes]]:
        """A link to ``host``, with both its gates open."""
        layout, address = self.site.layout, host.config.cluster.address
        layout.links_dir.mkdir(exist_ok=True)
        layout.link_socket(name).unlink(missing_ok=True)
        conf = layout.link_conf(name)
        conf.write_text(link_program.configuration(layout, name, address))
        command = [str(nginx_path()), "-p", f"{layout.var_dir}/", "-c", str(conf), "-e", "stderr"]
        with running(command, layout.log(f"link-{name}")) as process:
            wait_until(lambda: listens(layout.link_socket(name)), "listening")
            for gate in self.gates(name):
                gate.open()
            try:
                yield process
            finally:
                for gate in self.gates(name):
                    gate.close()

    def gates(self, name: str) -> list[Gate]:
        layout = self.site.layout
        names = (name, LinkPlan(name, 1).reading)
        return [Gate(layout.gate(n), layout.link_socket(name), layout.closed_socket) for n in names]

    def end_link(self, name: str) -> None:
        """As the guard does of a host that is lost."""
        assert link_program.end(self.site.layout, name, 0)

    def lead_soonest_to(self, name: str) -> None:
        self.soonest.unlink(missing_ok=True)
        self.soonest.symlink_to(self.site.layout.link_socket(name))


@contextlib.contextmanager
def host(var_dir: Path, authority: Authority, **sections: Any) -> Iterator[Site]:
    told = {"name": "studio", "address": f"127.0.0.1:{free_port()}", "role": "host"}
    with site(var_dir, authority=authority, **{**SHARED, "cluster": told, **sections}) as here:
        yield here


@contextlib.contextmanager
def front(
    var_dir: Path,
    authority: Authority,
    serves: Mapping[str, tuple[str, ...]] | None = None,
    **sections: Any,
) -> Iterator[Front]:
    """``h1`` and ``h2`` have had hosts when it was rendered, ``h3`` and all others are spare.
    ``serves``: what they have, where that differs."""
    told = {**SHARED, "cluster": {"name": "studio", "role": "front"}, **sections}
    used = dict.fromkeys(USED, 3)
    with site(var_dir, authority=authority, links=used, serves=serves, **told) as here:
        made = Front(here)
        for number in range(1, len(USED) + SPARE_LINKS + 1):
            for gate in made.gates(f"h{number}"):
                gate.prepare()
        made.soonest.symlink_to(here.layout.closed_socket)
        yield made
