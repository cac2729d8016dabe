"""Every key of ``cluster.toml``, with its default, and what the file alone can show to be wrong.

What depends on the machine is refused by ``plan`` and ``checks``. What reaches workers as it is
stands in ``worker/tables.py``.
"""

import ipaddress
import re
import socket
from typing import Annotated, Any, Literal, Self
from urllib.parse import parse_qs, urlsplit

from pydantic import BeforeValidator, Discriminator, Field, Tag, model_validator
from pydantic_core import PydanticCustomError

from deploy.config import patterns
from deploy.config.public_url import TAKEN, PublicUrl
from worker import tables
from worker.tables import (
    Acceleration,
    Allowances,
    Audit,
    Auth,
    Labels,
    Loras,
    ModelFiles,
    ModelNames,
    OwnerLimits,
    Table,
    Traces,
    Usage,
    WorkerLimits,
)

MAX_MODELS = 16
"""Of one cell."""


def is_loopback(address: str) -> bool:
    """Whether only this machine can connect to ``address``."""
    try:
        return ipaddress.ip_address(address.strip("[]")).is_loopback
    except ValueError:
        return address == "localhost"


def _is_network(text: str) -> bool:
    try:
        ipaddress.ip_network(text, strict=False)
    except ValueError:
        return False
    return True


def _problem(key: str, what: str, remedy: str) -> PydanticCustomError:
    return PydanticCustomError(
        "problem", "{what}; {remedy}", {"key": key, "what": what, "remedy": remedy}
    )


class Cell(Table):
    name: str = Field("zimage", pattern=patterns.NAME)
    var_dir: str = Field("var", pattern=patterns.PLACE)
    run_dir: str = Field("", pattern=patterns.PLACE)
    user: str = Field("", pattern=patterns.USER)


class Listen(Table):
    address: str = Field("127.0.0.1", pattern=patterns.ADDRESS)
    port: int = Field(7860, ge=1, le=65535)
    auth: Literal["loopback", "keys", "none"] = "loopback"
    trusted_proxies: list[Annotated[str, Field(pattern=patterns.NETWORK)]] = Field([])
    public_url: str = Field("", pattern=patterns.PUBLIC_URL)
    allowed_origins: list[Annotated[str, Field(pattern=patterns.ORIGIN)]] = Field([])

    @property
    def public(self) -> PublicUrl | None:
        return PublicUrl.of(self.public_url) if self.public_url else None

    @model_validator(mode="after")
    def _public(self) -> Self:
        try:
            public = self.public
        except ValueError:  # a port that is none
            raise _problem("public_url", "its port is over 65535", "write another") from None
        if public and public.path and public.path.split("/")[1] in TAKEN:
            what = f'the cell has a "{public.path}" of its own'
            raise _problem("public_url", what, "choose another path, such as /draw")
        return self

    @model_validator(mode="after")
    def _safe(self) -> Self:
        for network in self.trusted_proxies:
            if not _is_network(network):
                remedy = 'write it as "10.1.0.5" or "10.1.0.0/16"'
                raise _problem("trusted_proxies", f'"{network}" is no network', remedy)
        if self.allowed_origins and self.auth != "keys":
            raise _problem(
                "allowed_origins",
                f"without keys, pages of {', '.join(self.allowed_origins)} would draw as whoever "
                "looks at them",
                'set listen.auth = "keys", or delete it',
            )
        if self.auth == "loopback" and not is_loopback(self.address):
            raise _problem(
                "address",
                f'other machines could draw without a key on "{self.address}"',
                'use "127.0.0.1"; or set listen.auth = "keys" and make keys with zimage keys '
                'create; or "none" if everybody who can connect may',
            )
        return self


class Tls(Table):
    certificate: str = Field("", pattern=patterns.PATH)
    key: str = Field("", pattern=patterns.PATH)
    self_signed: bool = False
    names: list[Annotated[str, Field(pattern=patterns.HOST)]] = Field([])
    http_port: int = Field(0, ge=0, le=65535)
    hsts_s: int = Field(0, ge=0)

    @property
    def on(self) -> bool:
        return self.self_signed or bool(self.certificate)

    @model_validator(mode="after")
    def _one_certificate(self) -> Self:
        if bool(self.certificate) != bool(self.key):
            key, other = ("key", "certificate") if self.certificate else ("certificate", "key")
            raise _problem(key, f"missing beside tls.{other}", "name both files, or neither")
        if self.self_signed and self.certificate:
            raise _problem(
                "self_signed", "there is a certificate as well", "delete one of the two settings"
            )
        for key in ("http_port", "hsts_s"):
            if getattr(self, key) and not self.on:
                raise _problem(
                    key,
                    "has no meaning without HTTPS",
                    "set tls.certificate and tls.key, or tls.self_signed = true",
                )
        return self


class Ops(Table):
    address: str = Field("127.0.0.1", pattern=patterns.ADDRESS)
    port: int = Field(7861, ge=1, le=65535)

    @model_validator(mode="after")
    def _private(self) -> Self:
        if not is_loopback(self.address):
            raise _problem(
                "address", f'"{self.address}" is not a loopback address', 'use "127.0.0.1"'
            )
        return self


class Model(Acceleration, ModelFiles, ModelNames):
    source: str = Field("tiny", min_length=1, pattern=tables.LINE)
    download: bool = True
    mirror: str = Field("", pattern=patterns.MIRROR)
    steps: Annotated[int, Field(ge=1)] | Literal["auto"] = "auto"
    guidance_scale: Annotated[float, Field(ge=0)] | Literal["auto"] = "auto"

    @model_validator(mode="after")
    def _whole(self) -> Self:
        is_file = self.source.endswith(".safetensors")
        if is_file and not self.base:
            raise _problem(
                "base",
                "missing: one file holds the transformer alone",
                'name the model that it was made from, such as "Tongyi-MAI/Z-Image-Turbo"',
            )
        if self.base and not is_file:
            what = "has no meaning unless model.source is a .safetensors file"
            raise _problem("base", what, "delete it")
        return self


class NamedModel(Model):
    """One entry of ``[[models]]``."""

    name: str = Field(default_factory=str, pattern=tables.LINE, max_length=100)

    @model_validator(mode="after")
    def _named(self) -> Self:
        if not self.name.strip():
            remedy = "give it one, by which requests and [[workers]] ask for it"
            raise _problem("name", "missing: each of several models has its own", remedy)
        return self


class WorkerGroup(Table):
    """One entry of ``[[workers]]``: ``count`` equal workers on one device, or one on several."""

    model: str = Field(default_factory=str, pattern=tables.LINE)
    device: str = Field(default_factory=str, pattern=patterns.DEVICE)
    devices: str = Field(default_factory=str, pattern=patterns.DEVICES)
    count: int = Field(1, ge=1, le=64)
    vram_limit_gib: Annotated[float, Field(gt=1)] | Literal["auto"] = "auto"
    threads: Annotated[int, Field(ge=1)] | Literal["auto"] = "auto"

    @property
    def places(self) -> tuple[str, ...]:
        """Every device of a worker."""
        return tuple(re.split(", *", self.devices)) if self.devices else (self.device,)

    @model_validator(mode="after")
    def _one_or_several(self) -> Self:
        if bool(self.device) == bool(self.devices):
            what = "there is devices as well" if self.device else "missing"
            raise _problem("device", what, 'name one, or name several as devices = "0,1"')
        if self.devices and self.count > 1:
            raise _problem(
                "count",
                f"{self.count} workers share the same GPUs",
                "one uses all of them: delete it",
            )
        if self.places[0] != "cpu" and len(set(self.places)) < len(self.places):
            raise _problem("devices", f'a GPU is named twice in "{self.devices}"', "name each once")
        return self

    @model_validator(mode="after")
    def _fits_device(self) -> Self:
        if self.places[0] == "cpu" and self.vram_limit_gib != "auto":
            raise _problem("vram_limit_gib", "a CPU worker has no video memory", "remove the key")
        if self.places[0] != "cpu" and self.count > 1 and self.vram_limit_gib == "auto":
            raise _problem(
                "vram_limit_gib",
                f"{self.count} workers share one GPU without limits",
                "set how many GiB each may use, CUDA context (1 GiB) included",
            )
        return self


class RequestLimits(tables.RequestLimits):
    max_pixels: Annotated[int, Field(ge=256, le=4096 * 4096)] | Literal["auto"] = "auto"


class Limits(Table):
    request: RequestLimits = RequestLimits()
    worker: WorkerLimits = WorkerLimits()
    owner: OwnerLimits = OwnerLimits()


class Gallery(tables.Gallery):
    @model_validator(mode="after")
    def _room(self) -> Self:
        if self.favourites_gib > self.keep_gib:
            raise _problem(
                "favourites_gib",
                f"{self.favourites_gib:g} GiB of favourites do not fit {self.keep_gib:g} GiB",
                "lower it, or raise gallery.keep_gib",
            )
        return self


class Objects(tables.Objects):
    @model_validator(mode="after")
    def _whole(self) -> Self:
        remedies = {
            "endpoint": 'name the store, such as "https://s3.example.com"',
            "credentials_file": "name a file with a key of the store, as the AWS command line "
            "reads it",
        }
        for key, remedy in remedies.items():
            if self.url and not getattr(self, key):
                raise _problem(key, "missing beside objects.url", remedy)
            if getattr(self, key) and not self.url:
                raise _problem(key, "has no meaning without objects.url", "set that one, too")
        return self


class Timeouts(Allowances):
    idle_allowance_s: float = Field(3.0, gt=0)
    longest_draw_s: float = Field(600.0, gt=0)
    up_timeout_s: float = Field(1200.0, gt=0)


class Guard(Table):
    probe_interval_s: float = Field(0.2, ge=0.05)
    silence_s: float = Field(0.5, gt=0)
    """No answer for so long: out of the pool, and in again with the next good answer."""
    mass_silence_hold_s: float = Field(30.0, ge=0)
    """No kills for so long after half or more (two at least) fell silent together."""
    max_kills_per_minute: int = Field(20, ge=1)
    strike_ttl_s: float = Field(600.0, gt=0)

    @model_validator(mode="after")
    def _patient(self) -> Self:
        if self.silence_s < 2 * self.probe_interval_s:
            raise _problem(
                "silence_s",
                f"{self.silence_s:g} s is less than two probes ({self.probe_interval_s:g} s each)",
                "one lost probe would close a healthy worker: raise it to "
                f"{2 * self.probe_interval_s:g} or more, or lower guard.probe_interval_s",
            )
        return self


class Nginx(Table):
    binary: str = Field("nginx", min_length=1, pattern=patterns.PATH)
    worker_processes: Annotated[int, Field(ge=1, le=64)] | Literal["auto"] = "auto"
    worker_connections: int = Field(16384, ge=64)
    worker_shutdown_timeout_s: float = Field(600.0, gt=0)
    keepalive_timeout_s: float = Field(75.0, gt=0)
    client_timeout_s: float = Field(60.0, gt=0)
    max_connections_per_address: int = Field(256, ge=0)
    max_requests_per_s_per_address: int = Field(50, ge=0)
    max_reply_mib: int = Field(64, ge=1)
    max_large_bodies_per_address: int = Field(16, ge=0)


class Database(Table):
    url: str = Field("", pattern=patterns.DATABASE)
    password_file: str = Field("", pattern=patterns.PLACE)

    @model_validator(mode="after")
    def _no_password(self) -> Self:
        if _has_password(self.url):  # which no message repeats
            remedy = "put it into a file of your own and name that in database.password_file"
            raise _problem("url", "there is a password in it, for all to read", remedy)
        if self.password_file and not self.is_postgres:
            raise _problem("password_file", "database.url names no PostgreSQL", "delete it")
        return self

    @property
    def is_postgres(self) -> bool:
        """Whether the database is a server that several hosts may share."""
        return self.url.startswith("postgresql")


def _has_password(url: str) -> bool:
    try:
        parts = urlsplit(url)
        return parts.password is not None or any(
            name.startswith("pass") for name in parse_qs(parts.query)
        )
    except ValueError:  # no URL at all: told elsewhere
        return False


class Alarms(Table):
    to_file: str = Field("", pattern=patterns.PLACE)
    alertmanager: str = Field("http://127.0.0.1:9093", pattern=tables.ENDPOINT)
    repeat_h: float = Field(4.0, gt=0)

    @property
    def on(self) -> bool:
        return bool(self.to_file)


class Cluster(Table):
    """This machine's part in a cluster of hosts; without ``name`` it is a host of its own."""

    name: str = Field("", pattern=patterns.NAME_OR_NONE)
    host: str = Field("", pattern=patterns.NAME_OR_NONE)
    address: str = Field("", pattern=patterns.HOST_AND_PORT)
    role: Literal["host", "front", "both"] = "both"

    @property
    def on(self) -> bool:
        return bool(self.name)

    @property
    def host_id(self) -> str:
        """This machine's name within the cluster."""
        return self.host or _host_name()

    @property
    def draws(self) -> bool:
        """Whether workers run here."""
        return not self.on or self.role != "front"

    @property
    def fronts(self) -> bool:
        """Whether clients' requests are handed to hosts here."""
        return self.on and self.role != "host"

    @property
    def listen(self) -> tuple[str, int]:
        """Where nginx listens for fronts: on all addresses, for what the others call this host may
        be none of its own (NAT). Port 0: nowhere."""
        if not (self.on and self.draws):
            return "", 0
        host, _, port = self.address.rpartition(":")
        return "::" if host.startswith("[") else "0.0.0.0", int(port)

    @model_validator(mode="after")
    def _whole(self) -> Self:
        if not self.on:
            if self.host or self.address:
                key = "host" if self.host else "address"
                raise _problem(key, "has no meaning without cluster.name", "set that one, too")
            return self
        if self.role != "front" and not self.address:
            remedy = 'name where fronts find this host, such as "10.0.0.7:7862"'
            raise _problem("address", "missing beside cluster.name", remedy)
        return self


def _host_name() -> str:
    """The machine's own, as far as ``patterns.NAME`` takes it."""
    first = socket.gethostname().split(".")[0].lower()
    plain = re.sub(r"[^a-z0-9-]", "-", first).lstrip("-") or "host"
    return (plain if plain[0].isalpha() else f"h{plain}")[:32]


class Front(Table):
    silence_s: float = Field(0.5, gt=0)
    """No answer of a host for so long: out of the pool."""
    lost_s: float = Field(1.5, gt=0)
    """And for so long: what is on its way to it goes to another host."""
    virtual_address: str = Field("", pattern=patterns.INTERFACE_ADDRESS)
    interface: str = Field("", pattern=patterns.INTERFACE)
    virtual_router_id: int = Field(77, ge=1, le=255)

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        if self.lost_s < self.silence_s:
            what = f"{self.lost_s:g} s is less than front.silence_s ({self.silence_s:g} s)"
            raise _problem("lost_s", what, "raise it, or lower front.silence_s")
        if self.virtual_address and not self.interface:
            remedy = 'name the network interface that it belongs to, such as "eth0"'
            raise _problem("interface", "missing beside front.virtual_address", remedy)
        return self


class Logs(Table):
    max_mib: int = Field(20, ge=1)
    keep: int = Field(4, ge=1)


def _workers_kind(value: object) -> str:
    return "auto" if isinstance(value, str) else "groups"


def _tuple(value: object) -> object:
    return tuple(value) if isinstance(value, list) else value


class ClusterConfig(Table):
    """The whole file; every key has the default that ``deploy/cluster.toml`` shows."""

    workers: Annotated[
        Annotated[Literal["auto"], Tag("auto")]
        | Annotated[tuple[WorkerGroup, ...], BeforeValidator(_tuple), Tag("groups")],
        Discriminator(_workers_kind),
    ] = "auto"
    cell: Cell = Cell()
    listen: Listen = Listen()
    auth: Auth = Auth()
    tls: Tls = Tls()
    ops: Ops = Ops()
    model: Model = Model()
    models: list[NamedModel] = Field([], max_length=MAX_MODELS)
    limits: Limits = Limits()
    labels: Labels = Labels()
    loras: Loras = Loras()
    gallery: Gallery = Gallery()
    audit: Audit = Audit()
    traces: Traces = Traces()
    timeouts: Timeouts = Timeouts()
    guard: Guard = Guard()
    nginx: Nginx = Nginx()
    database: Database = Database()
    objects: Objects = Objects()
    cluster: Cluster = Cluster()
    front: Front = Front()
    alarms: Alarms = Alarms()
    usage: Usage = Usage()
    logs: Logs = Logs()
    environment: dict[Annotated[str, Field(pattern=patterns.VARIABLE)], str] = Field({})

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        problems = _name_problems(self)
        settled = self
        if self.models and not problems:
            settled = self.model_copy(update=_settled(self.models))
        problems += [*_port_problems(self), *_model_problems(settled), *_worker_problems(settled)]
        problems += [*_environment_problems(self), *_cluster_problems(self)]
        if problems:
            raise PydanticCustomError("problems", "{lines}", {"lines": "\n".join(problems)})
        return settled

    @property
    def served(self) -> tuple[Model, ...]:
        """Every model of the cell; the first draws what names none."""
        return tuple(self.models) or (self.model,)

    @property
    def several(self) -> bool:
        """Whether a request's ``model`` decides who draws it."""
        return bool(self.models)

    def model_of(self, name: str) -> Model:
        """The model with this name or alias, in capitals or not; the first for an empty one."""
        known = {each.lower(): model for model in self.served for each in names_of(model)}
        return known[name.lower()] if name else self.served[0]


def names_of(model: Model) -> tuple[str, ...]:
    """By which ``model`` is asked for."""
    return (model.name, *model.aliases)


def _settled(models: list[NamedModel]) -> dict[str, Any]:
    """One entry is ``[model]``. Of several, the first alone has the default aliases: those that no
    other one claims."""
    if len(models) == 1:
        return {"model": models[0], "models": []}
    claimed = _claimed(models)
    free = [alias for alias in models[0].aliases if alias.lower() not in claimed]
    aliases = [free, *([] for _ in models[1:])]
    return {
        "models": [
            model
            if "aliases" in model.model_fields_set
            else model.model_copy(update={"aliases": default})
            for model, default in zip(models, aliases, strict=True)
        ]
    }


def _claimed(models: list[NamedModel]) -> dict[str, str]:
    """The key of each name that the file itself gives a model, in small letters."""
    told: dict[str, str] = {}
    for k, model in enumerate(models):
        told.setdefault(model.name.lower(), f"models[{k}].name")
    for k, model in enumerate(models):
        for alias in model.aliases if "aliases" in model.model_fields_set else ():
            told.setdefault(alias.lower(), f"models[{k}].aliases")
    return told


def _port_problems(config: ClusterConfig) -> list[str]:
    problems, taken = [], {config.listen.port: "listen.port"}
    for key, port in (
        ("ops.port", config.ops.port),
        ("tls.http_port", config.tls.http_port),
        ("cluster.address", config.cluster.listen[1]),
    ):
        if port in taken:
            remedy = f"choose another, such as {port + 1}"
            problems.append(f"{key}: {port} is also {taken[port]}; {remedy}")
        elif port:
            taken[port] = key
    return problems


def _model_problems(config: ClusterConfig) -> list[str]:
    keyed: dict[str, Model] = {f"models[{k}]": model for k, model in enumerate(config.models)}
    most = config.limits.request.max_steps
    return [
        f"{key}.steps: {model.steps} is over limits.request.max_steps ({most}); "
        "lower it or raise the limit"
        for key, model in (keyed or {"model": config.model}).items()
        if model.steps != "auto" and model.steps > most
    ]


def _name_problems(config: ClusterConfig) -> list[str]:
    models = config.models
    if models and "model" in config.model_fields_set:
        return [
            "models: there is a [model] as well; make it the first of [[models]], with a name, "
            "and delete [model]"
        ]
    problems, claimed = [], _claimed(models)
    for k, model in enumerate(models):
        told = model.aliases if "aliases" in model.model_fields_set else []
        named = [("name", model.name), *(("aliases", alias) for alias in told)]
        for key, name in named:
            here, first = f"models[{k}].{key}", claimed[name.lower()]
            if here != first:
                problems.append(
                    f'{here}: "{name}" is also in {first}; a name means one model: change one'
                )
    return problems


def _cluster_problems(config: ClusterConfig) -> list[str]:
    if not config.cluster.on:
        return []
    problems = []
    if not config.database.is_postgres:
        problems.append(
            "database.url: the hosts of a cluster share one PostgreSQL; name it, such as "
            '"postgresql://zimage@db1/zimage" (docs/postgres.md)'
        )
    if not config.objects.on:
        problems.append(
            "objects.url: the hosts of a cluster share one store of pictures; name a bucket, "
            'such as "s3://bucket/prefix"'
        )
    return problems


def _environment_problems(config: ClusterConfig) -> list[str]:
    own = [
        f"environment.{key}: the cell sets this itself; use the key of its own section"
        for key in config.environment
        if key.startswith("ZIMAGE_")
    ]
    passed = {f"environment.{key}": value for key, value in config.environment.items()}
    return [
        *own,
        *(
            f"{key}: {patterns.CANNOT_PASS}; {patterns.OTHER_WAY}"
            for key, v in passed.items()
            if not patterns.is_passed(v)
        ),
    ]


def _worker_problems(config: ClusterConfig) -> list[str]:
    if config.workers == ():
        return ['workers: a cell needs one worker at least; write workers = "auto"']
    groups = () if config.workers == "auto" else config.workers
    return [*_share_problems(groups), *_whose_problems(config, groups)]


def _whose_problems(config: ClusterConfig, groups: tuple[WorkerGroup, ...]) -> list[str]:
    """Whether every group has a model, and every model a group."""
    known = {name.lower() for model in config.served for name in names_of(model) if name}
    shown = ", ".join(f'"{model.name}"' for model in config.served if model.name)
    remedy = f"the file has {shown}" if shown else "name it in [[models]], or delete the key"
    wrong = [
        f'workers[{i}].model: there is no model "{group.model}"; {remedy}'
        for i, group in enumerate(groups)
        if group.model and group.model.lower() not in known
    ]
    if wrong or not groups:
        return wrong
    drawn = [config.model_of(group.model) for group in groups]
    return [
        f'models[{k}]: no worker draws with "{model.name}"; add [[workers]] with '
        f'model = "{model.name}", or write workers = "auto"'
        for k, model in enumerate(config.models)
        if model not in drawn
    ]


def _share_problems(groups: tuple[WorkerGroup, ...]) -> list[str]:
    problems = []
    devices = [device for group in groups for device in group.places]
    for i, group in enumerate(groups):
        shared = [d for d in group.places if d != "cpu" and devices.count(d) > 1]
        if shared and group.count == 1 and group.vram_limit_gib == "auto":
            problems.append(
                f"workers[{i}].vram_limit_gib: GPU {shared[0]} is shared without limits; "
                "set how many GiB each worker may use, CUDA context (1 GiB) included"
            )
    return problems
