"""The nginx of one link: it hands requests to one host over connections that it keeps.

A process group for each host, because ending it is how to end its connections: whoever waits for
a host that is lost is answered by another one at once, and no privilege is needed for it.
"""

import os
import re
from collections.abc import Iterator, Set
from pathlib import Path

from deploy.config import patterns
from deploy.guard.process import Process
from deploy.layout import Layout
from worker.coordination.processes import GROUP, START_TIME, stat

_CONNECTIONS = 8192  # of both sides
_KEPT = 256


def configuration(layout: Layout, link: str, address: str) -> str:
    """The text of its configuration; ValueError where ``address`` is none."""
    # It comes from the database, where other hosts write.
    if not address or not re.fullmatch(patterns.HOST_AND_PORT, address):
        raise ValueError(f"{address!r} is no address of a host")
    # Otherwise root's nginx would give its worker process to "nobody".
    user = "user root;\n" if os.geteuid() == 0 else ""
    return f"""daemon off;
{user}worker_processes 1;
pid "{layout.link_pid(link)}";
# A host that is away would write a line for each request.
error_log stderr crit;
worker_rlimit_nofile {_CONNECTIONS + 64};

events {{
    worker_connections {_CONNECTIONS};
}}

http {{
    access_log off;
    # The one thing that a host may ask of the front: that other hosts do what they alone have the
    # model for.
    map $upstream_http_x_hand_over $hand_over {{
        "~^(?<pool>any|[0-9a-f]{{10}})$" @pool_$pool;
        default "";
    }}
    upstream host {{
        server {address} max_fails=0;
        # Idle ones. For less long than the host keeps them (fronts.conf), so that it seldom closes
        # one under a request.
        keepalive {_KEPT};
        keepalive_timeout 30s;
        keepalive_requests 10000;
    }}
    server {{
        listen "unix:{layout.link_socket(link)}" backlog=4096;
        add_header X-Accel-Redirect $hand_over always;
        include "{layout.render_dir}/cluster.d/link.conf";
    }}
}}
"""


def end(layout: Layout, link: str, pid: int) -> bool:
    """End the process of ``link``, and all of its connections; whether there was one. ``pid``:
    supervisor's, which starts another. Another one may have been left by a dead supervisor."""
    return sum(master.kill() for master in _masters(layout, link, pid)) > 0


def end_requests(layout: Layout, link: str, pid: int) -> bool:
    """End what is on its way over ``link`` alone; whether there was anybody to end. Its master
    goes on listening and starts another worker process, so that nobody is refused meanwhile."""
    masters = {master.pid for master in _masters(layout, link, pid)}
    return sum(worker.kill() for worker in _workers(masters)) > 0


def end_left(layout: Layout, link: str, master: int) -> None:
    """End the worker process of ``link`` where its master has died without it: it goes on with what
    it has, and nobody could end that."""
    if _process(layout, link, master) is None:
        for worker in _workers({master}):
            worker.kill()


def _masters(layout: Layout, link: str, pid: int) -> list[Process]:
    found = (_process(layout, link, each) for each in {pid, _written(layout, link)})
    return [process for process in found if process is not None]


def _workers(masters: Set[int]) -> Iterator[Process]:
    """nginx's worker processes in the groups of ``masters``."""
    for folder in Path("/proc").glob("[0-9]*"):
        fields = stat(int(folder.name))
        if fields is not None and int(fields[GROUP]) in masters and _is_worker(folder):
            yield Process(int(folder.name), int(fields[START_TIME]))


def _is_worker(folder: Path) -> bool:
    try:
        return (folder / "cmdline").read_bytes().startswith(b"nginx: worker")
    except OSError:
        return False


def _written(layout: Layout, link: str) -> int:
    try:
        return int(layout.link_pid(link).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return 0


def _process(layout: Layout, link: str, pid: int) -> Process | None:
    """The number alone proves nothing: it is used again."""
    try:
        command = Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return None
    fields = stat(pid)
    if fields is None or os.fsencode(layout.link_conf(link)) not in command:
        return None
    return Process(pid, int(fields[START_TIME]))
