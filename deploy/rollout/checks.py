"""What could go wrong on this machine, each finding with its remedy.

``before_up`` are the findings that ``up`` refuses to start with; ``doctor`` shows them all.
"""

import errno
import os
import re
import resource
import shutil
import socket
import sys
import time
from collections.abc import Iterator
from importlib import metadata, util
from pathlib import Path
from typing import Literal

import psutil

from deploy import store
from deploy.cell import Cell, CellError
from deploy.config import ROOT, is_plain_path
from deploy.finding import Finding
from deploy.host import machine, processes
from deploy.layout import too_long_by, under_root
from deploy.rendering.certificate import WARN_BEFORE, CertificateError
from deploy.rendering.plan import model_source
from deploy.rendering.render import sidecars
from deploy.rollout import (
    alarm_checks,
    bucket_checks,
    cluster_checks,
    code,
    database_checks,
    front_checks,
)
from deploy.rollout.proxy_checks import proxies
from deploy.supervision.livez import livez
from worker.bounds import GIB, MAX_SOCKET_PATH_BYTES
from worker.models.loading import hub
from worker.models.loading.files import Flaw, flaws
from worker.models.loading.folder import ModelLoadError
from worker.models.loading.sources import is_hub_id, local_folder

MIN_NGINX = (1, 22, 0)
MIN_POSTGRES = 13
CONNECTIONS = 7
"""Of one worker."""
_Z_IMAGE_GIB = {"off": 21.5, "transformer": 16.0, "all": 13.0}
"""By ``model.fp8``: 19.3 are resident in bf16, and activations come on top."""
_SMALL_GIB = 0.8  # Python, torch and the shipped model
_HOST_GIB_OF_GPU_WORKER = 4.0
_MAX_FLAWS = 5  # of a model's files: a copy that failed can have hundreds


def before_up(cell: Cell) -> list[Finding]:
    """Everything that must hold before a cell is touched."""
    machine_has = (nginx, paths, sockets, ports, open_files, https, memory, gpus)
    draws = (model,) if cell.config.cluster.draws else ()
    outside = (bucket_checks.before_up, alarm_checks.before_up, front_checks.before_up)
    checks = (*machine_has, *draws, database, keys, traces, *outside)
    return [finding for check in checks for finding in check(cell)]


def doctor(cell: Cell) -> list[Finding]:
    """``before_up`` and the health of what runs."""
    loads = code.loads(str(Path.home()), sidecars=sidecars(cell.config))
    stores = (disk, database_checks.doctor, bucket_checks.doctor, alarm_checks.doctor)
    cluster = (cluster_checks.doctor, cluster_checks.certificates)
    ours = (who_may_draw, proxies, *stores, health, *cluster, optimisations)
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


def memory(cell: Cell) -> Iterator[Finding]:
    workers = cell.plan.workers
    need_gib = sum(_host_gib(cell, device) for worker in workers for device in worker.devices)
    has = cell.machine
    text = f"{has.memory_gib:.0f} GiB, {has.available_gib:.0f} free; workers need {need_gib:.0f}"
    running = bool(processes.members(cell.layout.processes))
    remedy = "plan fewer workers, choose a smaller model, or add memory"
    if need_gib > has.memory_gib:
        yield Finding("fail", "memory", text, remedy)
    elif need_gib > has.available_gib and not running:
        yield Finding("warn", "memory", text, remedy)
    else:
        yield Finding("ok", "memory", text)


def gpus(cell: Cell) -> Iterator[Finding]:
    planned = [w for w in cell.plan.workers if w.devices[0] != "cpu"]
    if not cell.plan.workers:
        return
    for worker in planned:
        for device in worker.devices:
            yield from _vram(cell, device, worker.vram_limit_gib, worker.name)
    if planned:
        yield _torch_build()
    else:
        names = ", ".join(g.name for g in cell.machine.gpus) or "none"
        yield Finding("ok", "gpu", f"{names}; all workers are on the CPU")


def model(cell: Cell) -> Iterator[Finding]:
    """Whether its files can be loaded, as far as names, sizes and heads of files show."""
    source = model_source(cell.config)
    if "/" in source and under_root(source).exists():
        source = str(under_root(source))  # workers start there
    try:
        folder = local_folder(source)
    except ModelLoadError as error:
        yield Finding("fail", "model", error.what, error.remedy)
        return
    if folder is not None:
        yield from _model_files(folder, flaws(folder))
    elif is_hub_id(source):
        yield from _hub_model(cell, source)
    else:
        yield Finding("ok", "model", source)


def _model_files(folder: Path, found: list[Flaw]) -> Iterator[Finding]:
    if not found:
        yield Finding("ok", "model", str(folder))
    for flaw in found[:_MAX_FLAWS]:
        yield Finding("fail", "model", flaw.what, flaw.remedy)


def _hub_model(cell: Cell, hub_id: str) -> Iterator[Finding]:
    """A copy in the cache that is whole needs no hub. Without it, the hub is asked."""
    environment = {"HF_HOME": str(cell.layout.cache_dir / "hub"), **cell.config.environment}
    folder = hub.cached(hub_id, hub.cache_of(environment))
    wrong = flaws(folder) if folder else []
    if folder and not wrong:
        yield Finding("ok", "model", f"{hub_id} in {folder}")
    elif folder and (damage := hub.damaged(folder, wrong)):
        yield Finding("fail", "model", damage.what, damage.remedy)
    else:
        have = f"is not whole here ({wrong[0].what})" if wrong else "is not here yet"
        yield _hub_answer(cell, f"{hub_id} {have}", hub.ask(hub_id, environment))


def _hub_answer(cell: Cell, text: str, answer: hub.Answer) -> Finding:
    if answer.has_it:
        return Finding("ok", "model", f"{text}; the first start downloads it from {answer.url}")
    # A cell that stands still may wait for its network; one that draws is not touched for it.
    final = answer.says_no or processes.members(cell.layout.processes)
    return Finding(
        "fail" if final else "warn",
        "model",
        f"{text}, and {answer.url} {answer.text}",
        "check model.source, the network, HF_ENDPOINT and HF_TOKEN (in [environment]), "
        "or copy the model here and name its folder",
    )


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
    if mode & 0o077:
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


def _is_z_image(source: str) -> bool:
    return source == "random:z-image-turbo" or source.lower().endswith("z-image-turbo")


def _host_gib(cell: Cell, device: str) -> float:
    source = model_source(cell.config)
    if device != "cpu":
        return _HOST_GIB_OF_GPU_WORKER
    if not _is_z_image(source):
        return _SMALL_GIB
    return _Z_IMAGE_GIB["off"] * (1 if "16" in cell.config.model.dtype else 2)


def _vram(cell: Cell, device: str, limit_gib: float | None, name: str) -> Iterator[Finding]:
    gpu = next(g for g in cell.machine.gpus if g.uuid == device)
    has_gib = limit_gib or gpu.memory_gib
    text = f"{name} on {gpu.name} ({gpu.index}): {has_gib:g} GiB, driver {gpu.driver}"
    needs_gib = _Z_IMAGE_GIB[cell.config.model.fp8]
    if has_gib and _is_z_image(model_source(cell.config)) and has_gib < needs_gib:
        yield Finding("fail", "gpu", text, _more_room(cell.config.model.fp8, has_gib))
    else:
        yield Finding("ok", "gpu", text)


def _more_room(fp8: str, has_gib: float) -> str:
    smaller = next((part for part, gib in _Z_IMAGE_GIB.items() if gib <= has_gib), None)
    room = f"Z-Image-Turbo needs {_Z_IMAGE_GIB[fp8]:g} GiB: raise vram_limit_gib, lower count"
    if smaller is None:
        return f"{room} or choose a smaller model"
    return f'{room} or set model.fp8 = "{smaller}", with which it needs {_Z_IMAGE_GIB[smaller]:g}'


def _torch_build() -> Finding:
    """Whether the installed torch can use the driver; read from files, torch is not imported."""
    version, cuda = _torch_versions()
    if not cuda:
        remedy = "install a CUDA build of torch in .venv, or plan CPU workers"
        return Finding("fail", "torch", f"{version or 'none'} cannot use a GPU", remedy)
    driver = _driver_cuda()
    text = f"{version} for CUDA {cuda}, driver up to {driver or 'unknown'}"
    if driver and int(driver.split(".")[0]) < int(cuda.split(".")[0]):
        return Finding("fail", "torch", text, "update the NVIDIA driver, or use an older torch")
    return Finding("ok", "torch", text)


def _torch_versions() -> tuple[str, str]:
    spec = util.find_spec("torch")
    if spec is None or spec.origin is None:
        return "", ""
    text = (Path(spec.origin).parent / "version.py").read_text()
    cuda = re.search(r"^cuda[^=]*= '([\d.]+)'", text, re.M)
    return metadata.version("torch"), cuda[1] if cuda else ""


def _driver_cuda() -> str:
    found = re.search(r"CUDA Version:\s*([\d.]+)", machine.output_of("nvidia-smi"))
    return found[1] if found else ""
