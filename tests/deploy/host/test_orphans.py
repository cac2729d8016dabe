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


def nginxes(layout: Layout) -> list[str]:
    found = (process.command for process in processes.members(layout.processes))
    return [command for command in found if command.startswith("nginx:")]


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


GROUPS = """
set -m
for title in "$1" "$2"; do
    bash -c '(exec -a "nginx: worker process" sleep 60) & exec -a "$0" sleep 60' "$title" &
done
exec sleep 60
"""


def test_the_nginx_of_a_link_is_none_of_clients(tmp_path: Path) -> None:
    """Each has a worker process, whose name does not tell whose it is."""
    layout = Layout(tmp_path, tmp_path / "run")
    layout.create()
    master = "nginx: master process /usr/sbin/nginx -c"
    titles = f"{master} {layout.nginx_conf}", f"{master} {layout.link_conf('h1')}"
    command = ["/bin/bash", "-c", GROUPS, "groups", *titles]
    with subprocess.Popen(command, cwd=ROOT, start_new_session=True) as leader:
        try:
            processes.record(layout.processes, leader.pid)
            wait_until(lambda: len(nginxes(layout)) == 4, "there")
            leader.kill()
            leader.wait(10)
            found = orphans.find(layout)
            for nginx, title in ((found.nginxes, titles[0]), (found.links, titles[1])):
                told = sorted(process.command for process in nginx)
                assert told == [f"{title} 60", "nginx: worker process 60"]
        finally:
            for process in orphans.find(layout).all:
                process.send(signal.SIGKILL)
