"""Configuration and plan in, the text of every file out. Pure: it neither reads nor writes state.

The templates in ``deploy/nginx`` and ``deploy/supervisor`` get ``config``, ``plan``, ``layout``,
``nginx_version`` and, from ``Host``, what else of this machine they must name.
"""

import functools
import getpass
import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from deploy import installation
from deploy.config import ClusterConfig
from deploy.layout import Layout, loras_of, objects_of, under_root
from deploy.links import ALIVE, HOST_NAME, SOONEST
from deploy.rendering.dashboard import dashboard
from deploy.rendering.membership import MEMBERSHIP_CODE, membership_document
from deploy.rendering.placement import model_base, model_source
from deploy.rendering.plan import Plan, WorkerPlan
from deploy.rendering.store_address import nameservers_of, store_address
from worker import code_digest
from worker.bounds import DRAWINGS, MAX_EDIT_BODY_BYTES, MAX_JOB_BODY_BYTES
from worker.coordination.served_models import ServedModel, dump, pool_of
from worker.tables import Acceleration, Allowances, ModelNames

_HERE = Path(__file__).resolve().parents[1]
_RESOLV_CONF = Path("/etc/resolv.conf")


NGINX_DIGEST = "conf.d/configuration.conf"
"""What nginx answers when it is asked for its configuration: the digest of its other files."""

SETTINGS = "workers"
"""Folder of the documents that workers read."""

CLUSTER_KEY_CACHE_S = 300.0
"""``auth.key_cache_s`` of a cluster whose file says nothing: its database has a standby, and a key
that is revoked meanwhile stays good for so long."""

GUARD_CODE = (
    "deploy/guard",
    *("deploy/config", "deploy/installation.py", "deploy/layout.py", "deploy/links.py"),
    *("deploy/supervision/rpc.py", "deploy/drains.py", "deploy/rollout_record.py"),
    *("deploy/host/processes.py", "deploy/host/nginx_process.py"),
    *("worker/coordination/heartbeat.py", "worker/exits.py", "worker/coordination/processes.py"),
    *("worker/bounds.py", "worker/tables.py", "worker/coordination/host_drain.py"),
    *("worker/coordination/host_clocks.py", "worker/file_lock.py", "worker/whole_file.py"),
)
"""All that the guard loads of ours: a change of it restarts the guard."""

ALARMS_CODE = (
    *("deploy/alarms", "deploy/host/private_file.py", "deploy/host/whole_file.py"),
    *("worker/log.py", "worker/outbox.py", "worker/errors.py"),
)


@dataclass(frozen=True)
class Host:
    """What the files name beyond the configuration. ``*_code`` are digests of our own sources:
    they stand in the programs' environment, so that new code counts as a changed program."""

    nginx_path: str
    nginx_version: tuple[int, int, int]
    cores: int
    python: str
    user: str
    home: str
    worker_code: str
    guard_code: str
    lasting_python: str
    """``python`` of no version: a changed command of nginx's is a restart of it."""
    packages: str
    nameservers: tuple[str, ...] = ()
    membership_code: str = ""
    config_path: str = ""
    alarms_code: str = ""

    @classmethod
    def current(
        cls,
        nginx_path: Path,
        version: tuple[int, int, int],
        cores: int,
    ) -> "Host":
        return cls(
            nginx_path=str(nginx_path),
            nginx_version=version,
            cores=cores,
            python=installation.PYTHON,
            user=getpass.getuser(),
            home=str(Path.home()),
            worker_code=code_digest.of(*code_digest.WORKER),
            guard_code=code_digest.of(*GUARD_CODE),
            lasting_python=installation.lasting_python(),
            packages=installation.packages_digest(),
            nameservers=nameservers_of(_text(_RESOLV_CONF)),
            membership_code=code_digest.of(*MEMBERSHIP_CODE),
            alarms_code=code_digest.of(*ALARMS_CODE),
        )


def render(config: ClusterConfig, plan: Plan, layout: Layout, host: Host) -> dict[str, str]:
    """Text by path relative to ``layout.render_dir``."""
    context = {
        "config": config,
        "plan": plan,
        "layout": layout,
        "host": host,
        "nginx_version": host.nginx_version,
        "ops": endpoint(config.ops.address, config.ops.port),
        "root": installation.BASE,
        "drawings": "|".join(DRAWINGS),
        "job_body_bytes": MAX_JOB_BODY_BYTES,
        "edit_body_bytes": MAX_EDIT_BODY_BYTES,
        "store": store_address(config.objects, host.nameservers),
        "host_name": HOST_NAME,
        "soonest": SOONEST,
        "link_alive": ALIVE,
        "request_id": "$told_request_id" if _serves_fronts(config) else "$request_id",
        "cluster_listen": endpoint(*config.cluster.listen),
        "pools": (pools := pools_of(config, plan)),
        "host_pools": plan.host_pools,
        "deployments": bool(pools) or config.cluster.on,
    }
    settings = guard_settings(config, plan, layout, host)
    files = {"guard.json": json.dumps(settings, indent=2) + "\n"}
    if config.several and plan.workers:
        files[layout.models_json.name] = dump(served_models(config))
    if config.cluster.on:
        told = membership_document(config, plan, layout, host.python, host.config_path)
        files[layout.membership_json.name] = told
        context["membership_digest"] = _digest({"": told})[:10]
    if config.alarms.on:
        told = alarms_document(config, layout)
        files[layout.alarms_json.name] = told
        context["alarms_digest"] = _digest({"": told})[:10]
    files |= _rendered("supervisor", context)
    files |= dict(settings_document(config, worker, layout) for worker in plan.workers)
    nginx = _rendered("nginx", context)
    nginx = {name: text for name, text in nginx.items() if _is_wanted(name, config)}
    files |= nginx | {NGINX_DIGEST: f"return 200 {_digest(nginx)};\n"}
    if config.cluster.fronts and config.front.virtual_address:
        keepalived = _rendered("keepalived", context)
        files |= {f"keepalived/{name}": text for name, text in keepalived.items()}
    return files | {f"monitoring/{name}": text for name, text in _monitoring(context)}


def pools_of(config: ClusterConfig, plan: Plan) -> dict[str, list[str]]:
    """Workers by the pool of their model, where there are several models."""
    if not (config.several and plan.workers):
        return {}
    pools: dict[str, list[str]] = {pool_of(model.name): [] for model in config.served}
    for worker in plan.workers:
        pools[pool_of(worker.model)].append(worker.name)
    return pools


def served_models(config: ClusterConfig) -> list[ServedModel]:
    """What workers are told of all models."""
    return [
        ServedModel(model.name, tuple(model.aliases), model_source(model))
        for model in config.served
    ]


def _serves_fronts(config: ClusterConfig) -> bool:
    """Whether fronts hand requests to this machine."""
    return config.cluster.on and config.cluster.draws


def _is_wanted(name: str, config: ClusterConfig) -> bool:
    """Of the files of nginx, what is for hosts and fronts is rendered there alone."""
    if name in ("cluster.d/hosts.conf", "cluster.d/link.conf"):
        return config.cluster.fronts
    return not name.startswith("cluster.d/") or _serves_fronts(config)


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except OSError:
        return ""


def _rendered(piece: str, context: Mapping[str, Any]) -> dict[str, str]:
    environment = _environment(_HERE / piece)
    names = sorted(environment.list_templates(extensions=["j2"]))
    return {n.removesuffix(".j2"): environment.get_template(n).render(context) for n in names}


def _digest(files: Mapping[str, str]) -> str:
    joined = "\0".join(f"{name}\0{files[name]}" for name in sorted(files))
    return hashlib.sha256(joined.encode()).hexdigest()


def _monitoring(context: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    config: ClusterConfig = context["config"]
    # Prometheus has {{ }} of its own.
    environment = _environment(_HERE / "monitoring", ("<<", ">>"))
    for name in environment.list_templates(extensions=["j2"]):
        if name.startswith("alertmanager") and not context["config"].alarms.on:
            continue
        yield name.removesuffix(".j2"), environment.get_template(name).render(context)
    yield "dashboard.json", dashboard(cluster=config.cluster.on)


def guard_settings(config: ClusterConfig, plan: Plan, layout: Layout, host: Host) -> dict[str, Any]:
    """What ``python -m deploy.guard`` reads: no more than it needs, all paths absolute."""
    idle_allowance_s = config.timeouts.idle_allowance_s
    front = {"front": _front_settings(config, plan, host)} if config.cluster.fronts else {}
    return {
        "cell": config.cell.name,
        "var_dir": str(layout.var_dir),
        "run_dir": str(layout.run_dir),
        "short_link": layout.short_link and str(layout.short_link),
        "log_max_bytes": config.logs.max_mib << 20,
        "log_keep": config.logs.keep,
        "guard": {**config.guard.model_dump(), "idle_allowance_s": idle_allowance_s},
        "workers": [
            {
                "name": w.name,
                "device": w.device,
                "device_name": w.device_name,
                **({"model": w.model} if w.model else {}),
            }
            for w in plan.workers
        ],
        **({"programs": ["nginx", *beside]} if (beside := sidecars(config)) else {}),
        **front,
    }


def _front_settings(config: ClusterConfig, plan: Plan, host: Host) -> dict[str, Any]:
    return {
        **config.front.model_dump(),
        "links": [link.name for link in plan.links],
        "weights": {link.name: link.weight for link in plan.links if not link.spare},
        **({"serves": plan.serves} if plan.serves else {}),
        "relink_command": relink_command(host),
    }


def relink_command(host: Host) -> list[str]:
    """By which a front's guard has links made."""
    zimage = [host.python, "-P", "-m", "deploy.cli.app"]
    return [*zimage, "reload", "--links", "--config", host.config_path]


def sidecars(config: ClusterConfig) -> tuple[str, ...]:
    """Programs that some cells have beside guard, workers and nginx."""
    wanted = {"membership": config.cluster.on, "alarms": config.alarms.on}
    return tuple(name for name, on in wanted.items() if on)


def alarms_document(config: ClusterConfig, layout: Layout) -> str:
    """What ``python -m deploy.alarms`` reads."""
    told = {
        "socket": str(layout.alarms_socket),
        "to_file": str(under_root(config.alarms.to_file)),
        "outcomes": str(layout.told_json),
    }
    return json.dumps(told, indent=2) + "\n"


def worker_environment(
    config: ClusterConfig, worker: WorkerPlan, layout: Layout, host: Host
) -> dict[str, str]:
    """What libraries and supervision read of a worker's; its settings are a document."""
    cache = layout.cache_dir
    return {
        "HOME": host.home,
        **layout.model_caches,
        "HF_HUB_OFFLINE": "1",  # zimage models pull downloads; a start asks no hub
        "OMP_NUM_THREADS": str(worker.threads),
        "PYTHONSAFEPATH": "1",  # its own version's code, not what lies in the working directory
        "PYTHONUNBUFFERED": "1",
        "PYTHONUTF8": "1",  # whatever LC_ALL the file gives for libraries' messages
        # Images often forbid it; then every start compiles four thousand modules again.
        "PYTHONDONTWRITEBYTECODE": "",
        "CODE": host.worker_code,
        "PACKAGES": host.packages,
        **({} if worker.devices[0] == "cpu" else _cuda_environment(worker, cache)),
        # By these two the guard knows a process again, and whoever takes over.
        "ZIMAGE_NAME": worker.name,
        "ZIMAGE_RUN_DIR": str(layout.run_dir),
        "ZIMAGE_SETTINGS": str(layout.render_dir / settings_document(config, worker, layout)[0]),
        **config.environment,
    }


def settings_document(config: ClusterConfig, worker: WorkerPlan, layout: Layout) -> tuple[str, str]:
    """What ``worker`` reads: path relative to ``layout.render_dir``, and text.

    Named by its content and never changed: a worker that must start again before its turn finds
    what it ran with. Another name is another variable in its environment, so supervisor sees who
    must restart, and that nobody else must.
    """
    text = json.dumps(_settings(config, worker, layout), indent=2, ensure_ascii=False) + "\n"
    digest = hashlib.sha256(text.encode()).hexdigest()[:10]
    return f"{SETTINGS}/{worker.name}-{digest}.json", text


def _settings(config: ClusterConfig, worker: WorkerPlan, layout: Layout) -> dict[str, Any]:
    model = config.model_of(worker.model)
    values: dict[str, Any] = {
        "name": worker.name,
        "cell": config.cell.name,
        "run_dir": str(layout.run_dir),
        "var_dir": str(layout.var_dir),
        "pool_dir": str(layout.pool_dir),
        "reply_dir": str(layout.replies_dir),
        "database_url": layout.database_url,
        "device": worker.device,
        "threads": worker.threads,
        "vram_limit_gib": worker.vram_limit_gib,
        "model": model_source(model),
        "base": model_base(model),
        "names": model.model_dump(include=set(ModelNames.model_fields)),
        "steps": None if model.steps == "auto" else model.steps,
        "guidance_scale": None if model.guidance_scale == "auto" else model.guidance_scale,
        **model.model_dump(include=set(Acceleration.model_fields)),
        "auth": config.listen.auth,
        **_auth(config),
        **config.limits.request.model_dump(),
        "max_pixels": worker.max_pixels,
        **config.limits.worker.model_dump(),
        **config.limits.owner.model_dump(),
        "gallery": config.gallery.model_dump(),
        "labels": config.labels.model_dump(),
        "loras": loras_of(config).model_dump(),
        **({"objects": objects_of(config).model_dump()} if config.objects.on else {}),
        "audit": config.audit.model_dump(),
        "usage": config.usage.model_dump(),
        "traces": config.traces.model_dump(),
        **config.timeouts.model_dump(include=set(Allowances.model_fields)),
        "strike_ttl_s": config.guard.strike_ttl_s,
        "models": str(layout.models_json) if config.several else None,
        **(_of_cluster(config, layout) if config.cluster.on else {}),
    }
    return {key: value for key, value in values.items() if value is not None}


def _of_cluster(config: ClusterConfig, layout: Layout) -> dict[str, Any]:
    return {"host": config.cluster.host_id, "cluster_secret": str(layout.cluster_secret)}


def _auth(config: ClusterConfig) -> dict[str, Any]:
    told = config.auth.model_dump()
    if config.cluster.on and "key_cache_s" not in config.auth.model_fields_set:
        told["key_cache_s"] = CLUSTER_KEY_CACHE_S
    return told


def _cuda_environment(worker: WorkerPlan, cache: Path) -> dict[str, str]:
    return {
        "CUDA_DEVICE_ORDER": "PCI_BUS_ID",
        "CUDA_VISIBLE_DEVICES": worker.device,
        "PYTORCH_CUDA_ALLOC_CONF": "expandable_segments:True",
        # One cache for all: the second worker finds what the first one compiled.
        "TRITON_CACHE_DIR": str(cache / "triton"),
        "QUACK_CACHE_DIR": str(cache / "quack"),
        "FLASH_ATTENTION_CUTE_DSL_CACHE_ENABLED": "1",
        "FLASH_ATTENTION_CUTE_DSL_CACHE_DIR": str(cache / "flash4"),
    }


def endpoint(address: str, port: int) -> str:
    """As it stands in a URL."""
    bare = address.strip("[]")
    return f"[{bare}]:{port}" if ":" in bare else f"{bare}:{port}"


@functools.cache  # it keeps what it has compiled, and looks whether a file has changed
def _environment(directory: Path, variable: tuple[str, str] = ("{{", "}}")) -> Environment:
    environment = Environment(
        loader=FileSystemLoader(directory),
        variable_start_string=variable[0],
        variable_end_string=variable[1],
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        autoescape=False,  # configuration files, not HTML
    )
    environment.globals["worker_environment"] = worker_environment
    environment.filters["percent"] = lambda value: str(value).replace("%", "%%")
    environment.filters["fields"] = lambda value: asdict(value)
    return environment
