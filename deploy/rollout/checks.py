"""What could go wrong on this machine, each finding with its remedy.

``before_up`` are the findings that ``up`` refuses to start with; ``doctor`` shows them all.
"""

import os
import resource
import shutil
import sys
import time
from collections.abc import Iterator
from importlib import util
from pathlib import Path
from typing import Literal

from deploy import store
from deploy.cell import Cell, CellError
from deploy.config import ROOT, is_plain_path
from deploy.finding import Finding
from deploy.host import machine, private_file, processes
from deploy.layout import under_root
from deploy.rendering.certificate import WARN_BEFORE, CertificateError
from deploy.rendering.render import sidecars
from deploy.rollout import (
    address_checks,
    alarm_checks,
    bucket_checks,
    cluster_checks,
    code,
    database_checks,
    device_checks,
    front_checks,
    lora_checks,
    model_checks,
)
from deploy.rollout.proxy_checks import proxies
from deploy.supervision.livez import livez
from worker.bounds import GIB

MIN_NGINX = (1, 22, 0)
MIN_POSTGRES = 13
CONNECTIONS = 7
"""Of one worker."""


def before_up(cell: Cell) -> list[Finding]:
    """Everything that must hold before a cell is touched."""
    addresses = (address_checks.sockets, address_checks.ports)
    devices = (device_checks.memory, device_checks.gpus)
    machine_has = (nginx, paths, *addresses, open_files, https, *devices)
    draws = (model_checks.model,) if cell.config.cluster.draws else ()
    outside = (bucket_checks.before_up, alarm_checks.before_up, front_checks.before_up)
    checks = (*machine_has, *draws, database, keys, traces, *outside)
    return [finding for check in checks for finding in check(cell)]


def doctor(cell: Cell) -> list[Finding]:
    """``before_up`` and the health of what runs."""
    loads = code.loads(str(Path.home()), sidecars=sidecars(cell.config))
    stores = (disk, database_checks.doctor, bucket_checks.doctor, lora_checks.doctor)
    cluster = (cluster_checks.doctor, cluster_checks.certificates)
    ours = (who_may_draw, proxies, *stores, alarm_checks.doctor, health, *cluster, optimisations)
    return [*before_up(cell), loads, *(found for check in ours for found in check(cell))]


def nginx(cell: Cell) -> Iterator[Finding]:
    found = machine.find_nginx(cell.config.nginx.binary)
    if found is None:
        remedy = "apt-get install nginx, or set nginx.binary"
        yield Finding("fail", "nginx", f'no "{cell.config.nginx.binary}" here', remedy)
    elif found.version < MIN_NGINX:
        remedy = "install nginx 1.22 or newer, or set nginx.binary to one"
        yield Finding("fail", "nginx", f"{found.path} is {found.version_text}", remedy)
    else:
        yield Finding("ok", "nginx", f"{found.version_text} at {found.path}")


def traces(cell: Cell) -> Iterator[Finding]:
    endpoint = cell.config.traces.endpoint
    if not endpoint:
        return
    if not _is_installed("opentelemetry.sdk"):
        remedy = "pip install -c constraints.txt '.[otel]', or empty traces.endpoint"
        yield Finding("fail", "traces", "OpenTelemetry is not installed", remedy)
    else:
        yield Finding("ok", "traces", f"go to {endpoint}")


def paths(cell: Cell) -> Iterator[Finding]:
    """Whether nginx and supervisord can be told the paths that no configuration chooses."""
    found = {"checkout": str(ROOT), "Python": sys.executable, "home": str(Path.home())}
    for what, path in found.items():
        if not is_plain_path(path):
            yield Finding(
                "fail",
                "paths",
                f"the {what} is at {path!r}",
                "move it to a path without quotes, backslashes, control characters "
                "and any of $ ; # { } * ? [ ] : %",
            )


def open_files(cell: Cell) -> Iterator[Finding]:
    """Whether nginx may open what it is promised: at less, it drops clients, and no alert tells."""
    need = cell.config.nginx.worker_connections + 1024  # as rendered into nginx.conf
    limit = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    unlimited = limit == resource.RLIM_INFINITY or os.geteuid() == 0  # root's nginx raises its own
    if unlimited or limit >= need:
        yield Finding("ok", "open files", "unlimited" if unlimited else f"{limit}; {need} needed")
    else:
        remedy = (
            f"raise the limit (LimitNOFILE of the unit, nofile in limits.conf, --ulimit of a "
            f"container), or set nginx.worker_connections = {max(64, limit - 1024)}"
        )
        yield Finding("fail", "open files", f"{limit} at most; nginx needs {need}", remedy)


def https(cell: Cell) -> Iterator[Finding]:
    """Whether the certificate is one that browsers will take, and for how long."""
    try:
        shown = cell.certificate
        if shown is None:
            return
        shown.require_valid()
    except CertificateError as error:
        yield Finding("fail", "certificate", error.text, error.remedy)
        return
    names = ", ".join(shown.names[:3]) + (" …" if len(shown.names) > 3 else "")
    text = f"for {names}; ends on {shown.ends:%Y-%m-%d}, in {shown.days_left} days"
    if shown.days_left < WARN_BEFORE.days:
        remedy = "renew it (certbot renew), then: zimage reload"
        yield Finding("warn", "certificate", text, remedy)
    elif processes.members(cell.layout.processes) and not _is_shown(cell, shown.pem):
        yield Finding("warn", "certificate", f"{text}; not shown yet", "zimage reload")
    else:
        yield Finding("ok", "certificate", text)


def _is_installed(module: str) -> bool:
    try:
        return util.find_spec(module) is not None
    except ModuleNotFoundError:  # nor what it stands in
        return False


def _is_shown(cell: Cell, pem: bytes) -> bool:
    try:
        return cell.layout.pair.read_bytes() == pem
    except OSError:
        return False


def database(cell: Cell) -> Iterator[Finding]:
    if cell.layout.postgres_url:
        yield from _postgres(cell)
        return
    path = cell.layout.database
    kind = machine.file_system(path)
    if kind in machine.NETWORK_FILE_SYSTEMS:
        remedy = "set database.url to a file on a local disk, or cell.var_dir to a local folder"
        yield Finding("fail", "database", f"{path} is on {kind}, where locks do not hold", remedy)
    else:
        yield Finding("ok", "database", f"{path} on {kind}")


def _postgres(cell: Cell) -> Iterator[Finding]:
    if not _is_installed("psycopg"):
        remedy = "pip install -c constraints.txt '.[postgres]', or empty database.url"
        yield Finding("fail", "database", "psycopg is not installed", remedy)
        return
    if wrong := _password_file(cell):
        yield Finding("fail", "database", *wrong)
        return
    try:
        server = store.run(cell, store.postgres.server)
    except CellError as error:
        remedy = "start it, or mend database.url and database.password_file"
        yield Finding("fail", "database", str(error), remedy)
        return
    name = cell.layout.database_name
    if server.version < MIN_POSTGRES or server.encoding != "UTF8":
        text = f"{name} is PostgreSQL {server.version} with {server.encoding}"
        remedy = f"take PostgreSQL {MIN_POSTGRES} or newer and a database with ENCODING 'UTF8'"
        yield Finding("fail", "database", text, remedy)
        return
    yield Finding("ok", "database", f"{name}, PostgreSQL {server.version}")
    wanted = CONNECTIONS * len(cell.plan.workers)
    if server.connections < wanted:
        text = f"workers here may need {wanted} connections, and all may have {server.connections}"
        yield Finding("warn", "database", text, "raise max_connections in postgresql.conf")
    if not server.is_searched_by_index:
        remedy = "CREATE EXTENSION pg_trgm in it, as a role that may, then zimage up"
        yield Finding("warn", "database", "searches must look at every prompt", remedy)


def _password_file(cell: Cell) -> tuple[str, str] | None:
    """What is wrong with it, and what to do."""
    name = cell.config.database.password_file
    if not name:
        return None
    path = under_root(name)
    try:
        mode = path.stat().st_mode
        path.read_bytes()
    except OSError as error:
        return f"{path} cannot be read ({error.strerror})", "mend database.password_file"
    if private_file.is_exposed(path, mode, 0o077):
        return f"{path} may be read by others", f"chmod 600 {path}"
    return None


def keys(cell: Cell) -> Iterator[Finding]:
    if cell.config.listen.auth != "keys":
        return
    try:
        found = store.run(cell, store.keys.snapshot).keys
    except CellError:
        found = ()  # made by the first `up`
    good = sum(key.why_not(time.time()) is None for key in found)
    if good:
        yield Finding("ok", "keys", f"{good} of {len(found)} are good")
    else:
        yield Finding("warn", "keys", "nobody can draw: no key is good", "zimage keys create NAME")


def who_may_draw(cell: Cell) -> Iterator[Finding]:
    """Who needs no key, in so many words."""
    listen = cell.config.listen
    remedy = 'set listen.auth = "keys", then: zimage keys create NAME'
    if listen.auth == "loopback" and listen.trusted_proxies:
        text = f"whoever {', '.join(listen.trusted_proxies)} lets in draws without a key"
        yield Finding("warn", "listen.auth", text, remedy)
    elif listen.auth == "loopback":
        text = (
            "this machine draws without a key; a proxy on it is refused where nginx can tell it, "
            f"which is not always: behind any, {remedy}"
        )
        yield Finding("ok", "listen.auth", text)
    elif listen.auth == "none":
        yield Finding("warn", "listen.auth", "whoever can connect draws without a key", remedy)


def disk(cell: Cell) -> Iterator[Finding]:
    place = next(p for p in (cell.layout.var_dir, *cell.layout.var_dir.parents) if p.exists())
    free_gib = shutil.disk_usage(place).free / GIB
    text = f"{free_gib:.1f} GiB free at {place}"
    remedy = "make room, or lower gallery.keep_gib and logs.max_mib"
    level: Literal["ok", "warn", "fail"] = (
        "fail" if free_gib < 0.2 else "warn" if free_gib < 2 else "ok"
    )
    yield Finding(level, "disk", text, "" if level == "ok" else remedy)


def health(cell: Cell) -> Iterator[Finding]:
    state = cell.state()
    if not processes.members(cell.layout.processes):
        yield Finding("warn", "cell", "is not running", "zimage up")
    elif not cell.supervisor.answers():
        remedy = "zimage up takes the workers over while they go on drawing"
        yield Finding("fail", "cell", "runs without an answering supervisord", remedy)
    elif state is None or state["stale"]:
        yield Finding("fail", "cell", "the guard writes no state", "see zimage logs guard")
    else:
        yield from _pool_health(state["pool"]["open"], state["pool"]["of"])
        for alarm in state.get("alarms", ()):
            where = alarm.get("worker") or "cell"
            yield Finding("warn", where, alarm["text"], f"see zimage logs {where}")


def optimisations(cell: Cell) -> Iterator[Finding]:
    """What makes each worker's model fast, and why it is on or off."""
    for name in cell.plan.names:
        found = livez(cell.layout.socket(name)).get("levers")
        if found:
            yield Finding("ok", name, "; ".join(f"{lever} {why}" for lever, why in found.items()))


def _pool_health(open_: int, of: int) -> Iterator[Finding]:
    text = f"{open_} of {of} workers take requests"
    if open_ == of and of:
        yield Finding("ok", "cell", text)
    else:
        yield Finding("warn" if open_ else "fail", "cell", text, "see zimage status")
