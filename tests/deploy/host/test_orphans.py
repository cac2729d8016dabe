"""Who is who among the processes that outlived their supervisord."""

import signal
import subprocess
from pathlib import Path

from deploy.config import ROOT
from deploy.host import orphans, processes
from deploy.layout import Layout
from tests.deploy.processes import wait_until

TITLES = {
    "guards": "/venv/bin/python -m deploy.guard /srv/var/render/guard.json",
    "nginxes": "nginx: master process /usr/sbin/nginx",
    "attendants": "/venv/bin/python -P -m deploy.supervision.nginx_program /usr/sbin/nginx",
    "others": "some-helper",
}


def named(found: orphans.Orphans) -> dict[str, list[str]]:
    return {kind: [p.command for p in getattr(found, kind)] for kind in TITLES}


def commands(layout: Layout) -> set[str]:
    return {process.command for process in processes.members(layout.processes)}


def test_each_is_known_by_what_it_runs(tmp_path: Path) -> None:
    layout = Layout(tmp_path, tmp_path / "run")
    layout.create()
    children = "".join(f'(exec -a "{title}" sleep 60) & ' for title in TITLES.values())
    command = ["/bin/bash", "-c", children + "wait"]
    with subprocess.Popen(command, cwd=ROOT, start_new_session=True) as leader:
        try:
            processes.record(layout.processes, leader.pid)
            wanted = {kind: [f"{title} 60"] for kind, title in TITLES.items()}
            wait_until(lambda: commands(layout) >= {f"{t} 60" for t in TITLES.values()}, "there")
            leader.kill()
            leader.wait(10)
            assert named(orphans.find(layout)) == wanted
        finally:
            for process in orphans.find(layout).all:
                process.send(signal.SIGKILL)
