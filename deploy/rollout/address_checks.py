"""Where a cell would listen, each finding with its remedy."""

import errno
import os
import socket
from collections.abc import Iterator

import psutil

from deploy.cell import Cell
from deploy.finding import Finding
from deploy.host import processes
from deploy.layout import too_long_by
from worker.bounds import MAX_SOCKET_PATH_BYTES


def sockets(cell: Cell) -> Iterator[Finding]:
    layout = cell.layout
    if over := too_long_by(layout):
        yield Finding(
            "fail",
            "sockets",
            f"paths in {layout.run_dir} are {over} bytes longer than {MAX_SOCKET_PATH_BYTES}",
            'set cell.run_dir to something short, such as "/run/zimage"',
        )
    elif other := _other_cell(cell):
        yield Finding(
            "fail",
            "sockets",
            f"{layout.run_dir} belongs to a running cell, {other}",
            "give this cell its own cell.var_dir (and cell.run_dir, if set), or stop that one",
        )
    else:
        yield Finding("ok", "sockets", str(layout.run_dir))


def ports(cell: Cell) -> Iterator[Finding]:
    config = cell.config
    ours = {p.pid for p in processes.members(cell.layout.processes)}
    for key, address, port in (
        ("listen", config.listen.address, config.listen.port),
        ("ops", config.ops.address, config.ops.port),
        ("tls.http_port", config.listen.address, config.tls.http_port),
        ("cluster.address", *config.cluster.listen),
    ):
        if not port:
            continue
        subject = f"{key} {address}:{port}"
        problem = _bind_error(address, port)
        if problem == 0:
            yield Finding("ok", subject, "free")
        elif problem == errno.EADDRINUSE:
            yield _port_in_use(key, subject, _listeners(port), ours)
        elif problem == errno.EACCES:
            remedy = (
                "use a port above 1023, or let users listen there: "
                f"sysctl net.ipv4.ip_unprivileged_port_start={port}"
            )
            yield Finding("fail", subject, "only root may listen there", remedy)
        else:
            setting = key if "." in key else f"{key}.address"
            remedy = f"set {setting} to an address of this machine"
            yield Finding("fail", subject, os.strerror(problem), remedy)


def _other_cell(cell: Cell) -> str:
    """What runs on our sockets and is not this cell, or ""."""
    records = (cell.layout.run_record, cell.layout.processes)
    record = next((path for path in records if processes.leader(path)), None)
    if record is None:
        return ""
    owner = processes.note(record)
    name, var_dir = owner.get("cell", cell.config.cell.name), owner.get("var_dir", "")
    if (name, var_dir) == (cell.config.cell.name, str(cell.layout.var_dir)):
        return ""
    return f'"{name}" with its state in {var_dir}'


def _bind_error(address: str, port: int) -> int:
    """errno of listening there, 0 when it works."""
    host = address.strip("[]")
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        # As nginx does: connections that are still closing do not count.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
            probe.listen(1)
        except OSError as error:
            return error.errno or errno.EINVAL
    return 0


def _port_in_use(key: str, subject: str, holders: set[int], ours: set[int]) -> Finding:
    if holders & ours:
        return Finding("ok", subject, "held by this cell")
    names = ", ".join(f"{pid} ({_command(pid)})" for pid in sorted(holders)) or "another user"
    remedy = f"stop that process, or set {key if '.' in key else f'{key}.port'} to a free port"
    return Finding("fail", subject, f"in use by process {names}", remedy)


def _command(pid: int) -> str:
    process = processes.read(pid)
    return process.command[:60] if process else "gone"


def _listeners(port: int) -> set[int]:
    """Processes that listen on TCP ``port``, as far as this user may see."""
    sockets = psutil.net_connections("tcp")
    listening = [s for s in sockets if s.status == psutil.CONN_LISTEN and s.laddr.port == port]
    return {socket.pid for socket in listening if socket.pid}
