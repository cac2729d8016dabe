"""One ``cluster.toml`` in, one frozen object out, or every problem at once.

A problem is one line, ``key.path: what is wrong; remedy``. What the file alone can show to be
wrong is refused here; what depends on the machine is refused by ``plan`` and ``checks``.
"""

import difflib
import ipaddress
import itertools
import re
import tomllib
from pathlib import Path
from typing import Annotated, Any, Literal, Self, get_args

from pydantic import (
    BaseModel,
    ConfigDict,
    Discriminator,
    Field,
    Tag,
    ValidationError,
    model_validator,
)
from pydantic_core import ErrorDetails, PydanticCustomError

ROOT = Path(__file__).resolve().parent.parent
"""The checkout. Relative paths in ``cluster.toml`` start here."""

DEFAULT_PATH = ROOT / "deploy" / "cluster.toml"


class ConfigError(Exception):
    """``problems`` has one ``key.path: what is wrong; remedy`` line each."""

    def __init__(self, path: Path, problems: list[str]) -> None:
        super().__init__("\n".join(problems))
        self.path = path
        self.problems = problems


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


_NAME = r"^[a-z][a-z0-9-]{0,31}$"
_DEVICE = r"^(cpu|\d+|GPU-[0-9A-Za-z-]+|MIG-[0-9A-Za-z/-]+|)$"
_DEVICES = r"^(cpu(, *cpu)+|(\d+|GPU-[0-9A-Za-z-]+)(, *(\d+|GPU-[0-9A-Za-z-]+))+|)$"
_SQLITE = r"^(sqlite:////[^\"'\\$;#{}?%\x00-\x1f\x7f]+)?$"
_HOST = r"^(\*\.)?[A-Za-z0-9:][A-Za-z0-9.:-]{0,250}$"
_HANZI = "人工智能生成合内容图像片画由大模型绘制标识辅助作品"  # of fonts/mark.otf
_MARK = rf"^[A-Za-z0-9{_HANZI}][A-Za-z0-9 .·{_HANZI}-]{{0,15}}$"
_PRODUCER = r"^[^\"\\;#\x00-\x1f\x7f]{0,200}$"
_NETWORK = r"^[0-9a-fA-F.:]+(/\d{1,3})?$"
_VARIABLE = r"^[A-Za-z_][A-Za-z0-9_]*$"
_ADDRESS = r"^\[?[0-9A-Za-z.:-]{1,253}\]?$"
_USER = r"^([A-Za-z_][A-Za-z0-9_.-]{0,31})?$"
_PATH = r"^[^\"'\\$;#{}\x00-\x1f\x7f]*$"  # nginx and supervisor read these as more than a path
# nginx looks for patterns and for the end of a socket's path; supervisor expands % twice
_PLACE = r"^[^\"'\\$;#{}*?\[\]:%\x00-\x1f\x7f]*$"
_PATTERNS = {
    _ADDRESS: 'must be an IP address such as "127.0.0.1" or "::"',
    _USER: "must be the name of a user: letters, digits, _ . and - (32 at most)",
    _PATH: "must be a path without quotes, backslashes, control characters and any of $ ; # { }",
    _PLACE: "must be a path without quotes, backslashes, control characters "
    "and any of $ ; # { } * ? [ ] : %",
    _NAME: "must be small letters, digits and dashes (32 at most)",
    _DEVICE: 'must be "cpu", a GPU\'s number such as "0", or a UUID from nvidia-smi -L',
    _DEVICES: 'must be two or more GPUs\' numbers or UUIDs, such as "0,1"; slices cannot be joined',
    _SQLITE: 'must be "sqlite:////absolute/path/of/a/file.db"',
    _HOST: "must be a host's name or an IP address",
    _MARK: f"must be up to 16 letters, digits, spaces, and characters of {_HANZI}",
    _PRODUCER: 'must be one line without " \\ ; and #',
    _NETWORK: 'must be an IP address or a network such as "10.1.0.0/16"',
    _VARIABLE: "must be the name of an environment variable",
}


class _Section(BaseModel):
    # strict: TOML has types, so "7860" where a number belongs is a mistake worth naming.
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)


class Cell(_Section):
    name: str = Field("zimage", pattern=_NAME)
    var_dir: str = Field("var", pattern=_PLACE)
    run_dir: str = Field("", pattern=_PLACE)
    user: str = Field("", pattern=_USER)


class Listen(_Section):
    address: str = Field("127.0.0.1", pattern=_ADDRESS)
    port: int = Field(7860, ge=1, le=65535)
    auth: Literal["loopback", "keys", "none"] = "loopback"
    trusted_proxies: list[Annotated[str, Field(pattern=_NETWORK)]] = []

    @model_validator(mode="after")
    def _safe(self) -> Self:
        for network in self.trusted_proxies:
            if not _is_network(network):
                remedy = 'write it as "10.1.0.5" or "10.1.0.0/16"'
                raise _problem("trusted_proxies", f'"{network}" is no network', remedy)
        if self.auth == "loopback" and not is_loopback(self.address):
            raise _problem(
                "address",
                f'other machines could draw without a key on "{self.address}"',
                'use "127.0.0.1"; or set listen.auth = "keys" and make keys with zimage keys '
                'create; or "none" if everybody who can connect may',
            )
        return self


class Auth(_Section):
    """Of ``listen.auth = "keys"``."""

    key_cache_s: float = Field(3600.0, ge=0)
    session_ttl_s: float = Field(604_800.0, gt=0)
    session_max_s: float = Field(2_592_000.0, gt=0)
    wrong_keys_per_minute: int = Field(20, ge=1)


class Tls(_Section):
    certificate: str = Field("", pattern=_PATH)
    key: str = Field("", pattern=_PATH)
    self_signed: bool = False
    names: list[Annotated[str, Field(pattern=_HOST)]] = []
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


class Ops(_Section):
    address: str = Field("127.0.0.1", pattern=_ADDRESS)
    port: int = Field(7861, ge=1, le=65535)

    @model_validator(mode="after")
    def _private(self) -> Self:
        if not is_loopback(self.address):
            raise _problem(
                "address", f'"{self.address}" is not a loopback address', 'use "127.0.0.1"'
            )
        return self


class Model(_Section):
    source: str = Field("tiny", min_length=1)
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    steps: Annotated[int, Field(ge=1)] | Literal["auto"] = "auto"
    guidance_scale: Annotated[float, Field(ge=0)] | Literal["auto"] = "auto"
    kernels: Literal["auto", "off"] = "auto"
    attention: Literal["auto", "native", "cudnn", "flash", "efficient", "flash4"] = "auto"
    products: Literal["auto", "native", "quack"] = "auto"
    graphs: Literal["auto", "off"] = "auto"
    fp8: Literal["off", "transformer", "all"] = "off"


class WorkerGroup(_Section):
    """One entry of ``[[workers]]``: ``count`` equal workers on one device, or one on several."""

    device: str = Field(default_factory=str, pattern=_DEVICE)
    devices: str = Field(default_factory=str, pattern=_DEVICES)
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


class Limits(_Section):
    """Of one request, one queue and one worker; see the worker's settings of the same names."""

    max_pixels: int = Field(1024 * 1024, ge=256, le=4096 * 4096)
    max_steps: int = Field(50, ge=1)
    max_images: int = Field(10, ge=1)
    max_prompt_chars: int = Field(4000, ge=1)
    max_body_bytes: int = Field(1 << 20, ge=1024)
    max_batch: int = Field(4, ge=1)
    max_queued_requests: int = Field(64, ge=1)
    max_job_streams: int = Field(200, ge=1)
    max_job_streams_per_key: int = Field(50, ge=1)
    max_queue_wait_s: float = Field(120.0, gt=0)
    url_ttl_s: float = Field(3600.0, gt=0)
    job_keep_days: float = Field(30.0, gt=0)
    max_open_jobs: int = Field(1000, ge=1)
    max_open_job_images: int = Field(100_000, ge=1)
    max_job_mib: int = Field(256, ge=1)


class Gallery(_Section):
    enabled: bool = True
    keep_days: float = Field(365.0, gt=0)
    keep_gib: float = Field(20.0, gt=0)
    favourites_gib: float = Field(10.0, ge=0)

    @model_validator(mode="after")
    def _room(self) -> Self:
        if self.favourites_gib > self.keep_gib:
            raise _problem(
                "favourites_gib",
                f"{self.favourites_gib:g} GiB of favourites do not fit {self.keep_gib:g} GiB",
                "lower it, or raise gallery.keep_gib",
            )
        return self


class Labels(_Section):
    mark: bool = False
    mark_text: str = Field("AI生成", pattern=_MARK)
    producer: str = Field("", pattern=_PRODUCER)


class Audit(_Section):
    log: bool = True
    prompts: bool = True
    prompt_chars: int = Field(1000, ge=1)
    keep_days: int = Field(180, ge=1)
    max_mib: int = Field(1024, ge=1)
    key_mib_per_day: float = Field(2.0, gt=0)


class Timeouts(_Section):
    step_allowance_s: float = Field(5.0, gt=0)
    idle_allowance_s: float = Field(3.0, gt=0)
    load_allowance_s: float = Field(900.0, gt=0)
    compile_allowance_s: float = Field(600.0, gt=0)
    longest_draw_s: float = Field(600.0, gt=0)
    drain_timeout_s: float = Field(120.0, gt=0)
    up_timeout_s: float = Field(1200.0, gt=0)


class Guard(_Section):
    probe_interval_s: float = Field(0.2, ge=0.05)
    silence_s: float = Field(0.5, gt=0)
    mass_silence_hold_s: float = Field(30.0, ge=0)
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


class Nginx(_Section):
    binary: str = Field("nginx", min_length=1, pattern=_PATH)
    worker_processes: Annotated[int, Field(ge=1, le=64)] | Literal["auto"] = "auto"
    worker_connections: int = Field(16384, ge=64)
    worker_shutdown_timeout_s: float = Field(600.0, gt=0)
    keepalive_timeout_s: float = Field(75.0, gt=0)
    client_timeout_s: float = Field(60.0, gt=0)
    max_connections_per_address: int = Field(256, ge=0)
    max_requests_per_s_per_address: int = Field(50, ge=0)
    max_reply_mib: int = Field(64, ge=1)
    max_large_bodies_per_address: int = Field(16, ge=0)


class Database(_Section):
    url: str = Field("", pattern=_SQLITE)


class Usage(_Section):
    keep_days: float = Field(800.0, gt=0)


class Logs(_Section):
    max_mib: int = Field(20, ge=1)
    keep: int = Field(4, ge=1)


def _workers_kind(value: object) -> str:
    return "auto" if isinstance(value, str) else "groups"


class ClusterConfig(_Section):
    """The whole file; every key has the default that ``deploy/cluster.toml`` shows."""

    workers: Annotated[
        Annotated[Literal["auto"], Tag("auto")]
        | Annotated[tuple[WorkerGroup, ...], Field(strict=False), Tag("groups")],
        Discriminator(_workers_kind),
    ] = "auto"
    cell: Cell = Cell()
    listen: Listen = Listen()
    auth: Auth = Auth()
    tls: Tls = Tls()
    ops: Ops = Ops()
    model: Model = Model()
    limits: Limits = Limits()
    labels: Labels = Labels()
    gallery: Gallery = Gallery()
    audit: Audit = Audit()
    timeouts: Timeouts = Timeouts()
    guard: Guard = Guard()
    nginx: Nginx = Nginx()
    database: Database = Database()
    usage: Usage = Usage()
    logs: Logs = Logs()
    environment: dict[Annotated[str, Field(pattern=_VARIABLE)], str] = {}

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        problems = [*_port_problems(self), *_model_problems(self), *_worker_problems(self)]
        problems += _environment_problems(self)
        if problems:
            raise PydanticCustomError("problems", "{lines}", {"lines": "\n".join(problems)})
        return self


def load(path: Path) -> ClusterConfig:
    """Read and check ``path``; ``ConfigError`` lists every problem."""
    try:
        data = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        remedy = f"give its path with --config, or copy {DEFAULT_PATH}"
        raise ConfigError(path, [f"{path}: {error.strerror}; {remedy}"]) from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(path, [f"{path}: not TOML: {error}; mend that line"]) from None
    return parse(data, path)


def parse(data: dict[str, Any], path: Path = DEFAULT_PATH) -> ClusterConfig:
    """Check ``data`` as if it had been read from ``path``."""
    try:
        return ClusterConfig.model_validate(data)
    except ValidationError as error:
        raise ConfigError(path, _all_lines(error.errors())) from None


def _port_problems(config: ClusterConfig) -> list[str]:
    problems, taken = [], {config.listen.port: "listen.port"}
    for key, port in (("ops.port", config.ops.port), ("tls.http_port", config.tls.http_port)):
        if port in taken:
            remedy = f"choose another, such as {port + 1}"
            problems.append(f"{key}: {port} is also {taken[port]}; {remedy}")
        elif port:
            taken[port] = key
    return problems


def _model_problems(config: ClusterConfig) -> list[str]:
    steps, most = config.model.steps, config.limits.max_steps
    if steps == "auto" or steps <= most:
        return []
    return [f"model.steps: {steps} is over limits.max_steps ({most}); lower it or raise the limit"]


def _environment_problems(config: ClusterConfig) -> list[str]:
    own = [
        f"environment.{key}: the cell sets this itself; use the key of its own section"
        for key in config.environment
        if key.startswith("ZIMAGE_")
    ]
    passed = {f"environment.{key}": value for key, value in config.environment.items()}
    passed |= {"model.source": config.model.source, "labels.producer": config.labels.producer}
    return [
        *own,
        *(f"{key}: {_CANNOT_PASS}; {_OTHER_WAY}" for key, v in passed.items() if not is_passed(v)),
    ]


_CANNOT_PASS = (
    "supervisor cannot pass on double quotes, control characters, "
    "; or # after a blank, and ' at the ends"
)
_OTHER_WAY = "name a file or a link without them"


def is_plain_path(path: str) -> bool:
    """Whether nginx and supervisor read ``path`` as a path and nothing more."""
    return re.fullmatch(_PLACE, path) is not None


def is_passed(value: str) -> bool:
    """Whether a program of supervisord's gets ``value`` as it is, as a variable in its environment.

    In its files a blank and ; or # begin a comment, wherever they stand; quotes cannot be escaped,
    and those at the ends are taken off.
    """
    return not re.search(r"""["\x00-\x08\x0a-\x1f\x7f]|\s[;#]|^'|'$""", value)


def _worker_problems(config: ClusterConfig) -> list[str]:
    if config.workers == ():
        return ['workers: a cell needs one worker at least; write workers = "auto"']
    problems = []
    groups = () if config.workers == "auto" else config.workers
    devices = [device for group in groups for device in group.places]
    for i, group in enumerate(groups):
        shared = [d for d in group.places if d != "cpu" and devices.count(d) > 1]
        if shared and group.count == 1 and group.vram_limit_gib == "auto":
            problems.append(
                f"workers[{i}].vram_limit_gib: GPU {shared[0]} is shared without limits; "
                "set how many GiB each worker may use, CUDA context (1 GiB) included"
            )
    return problems


def _all_lines(details: list[ErrorDetails]) -> list[str]:
    lines: list[str] = []
    # A number-or-"auto" key that is wrong fails once as a number and once as "auto": one line.
    for path, group in itertools.groupby(details, key=lambda d: _path(d["loc"])):
        alike = list(group)
        lines += _lines(path, alike[0], or_auto=_fails_as_auto(alike[-1]) and len(alike) > 1)
    return lines


def _fails_as_auto(detail: ErrorDetails) -> bool:
    return detail["type"] == "literal_error" and detail["ctx"]["expected"] == "'auto'"


def _lines(path: str, detail: ErrorDetails, *, or_auto: bool) -> list[str]:
    context = detail.get("ctx", {})
    if detail["type"] == "problems":
        return str(context["lines"]).split("\n")
    if detail["type"] == "problem":
        return [f"{path}.{context['key']}: {context['what']}; {context['remedy']}"]
    what = _what(detail)
    if "input" in detail and what.startswith("must"):
        what += ' or "auto"' if or_auto else ""
        what += f", not {_toml(detail['input'])}"
    return [f"{path}: {what}; {_remedy(detail)}"]


def _keys(loc: tuple[int | str, ...]) -> list[int | str]:
    # Without the names of union branches, which pydantic adds and the file does not have.
    branches = {"auto", "groups", "[key]"}
    return [k for k in loc if isinstance(k, int) or not (k in branches or _is_branch(k))]


def _is_branch(key: str) -> bool:
    return key in {"int", "float"} or key.startswith(("constrained-", "literal["))


def _path(loc: tuple[int | str, ...]) -> str:
    path = ""
    for key in _keys(loc):
        path += f"[{key}]" if isinstance(key, int) else f".{key}" if path else key
    return path or "cluster.toml"


def _what(detail: ErrorDetails) -> str:
    kind, context = detail["type"], detail.get("ctx", {})
    if kind == "extra_forbidden":
        return "unknown key"
    if kind == "missing":
        return "missing"
    words = {
        "int_type": "must be a whole number",
        "float_type": "must be a number",
        "bool_type": "must be true or false",
        "list_type": "must be a list in [ ]",
        "string_type": "must be text in quotes",
        "dict_type": "must be a table",
        "model_type": "must be a table",
        "tuple_type": 'must be "auto" or [[workers]] tables',
        "literal_error": f"must be {str(context.get('expected')).replace(chr(39), chr(34))}",
        "greater_than_equal": f"must be at least {context.get('ge')}",
        "greater_than": f"must be more than {context.get('gt')}",
        "less_than_equal": f"must be at most {context.get('le')}",
        "string_too_short": "must not be empty",
        "too_short": "must not be empty",
        "string_pattern_mismatch": _PATTERNS.get(str(context.get("pattern")), "must match"),
    }
    return words.get(kind, detail["msg"])


def _remedy(detail: ErrorDetails) -> str:
    keys = _keys(detail["loc"])
    parent = _model_at(keys[:-1])
    name = str(keys[-1]) if keys else ""
    if parent is None or not keys:
        return f"see [{keys[0]}] in deploy/cluster.toml" if keys else "see deploy/cluster.toml"
    if detail["type"] == "extra_forbidden":
        return _did_you_mean(name, list(parent.model_fields))
    field = parent.model_fields.get(name)
    if field is None or field.is_required() or field.default_factory:
        return f"see [{keys[0]}] in deploy/cluster.toml"
    if isinstance(field.default, BaseModel):
        return f"write [{name}] on a line of its own"
    return f"the default is {_toml(field.default)}"


def _toml(value: object) -> str:
    return (
        f'"{value}"'
        if isinstance(value, str)
        else str(value).lower()
        if isinstance(value, bool)
        else f"{value:g}"
        if isinstance(value, float)
        else str(value)
    )


def _did_you_mean(name: str, known: list[str]) -> str:
    near = difflib.get_close_matches(name, known, n=1, cutoff=0.6)
    return f'did you mean "{near[0]}"?' if near else f"this table has {', '.join(known)}"


def _model_at(keys: list[int | str]) -> type[BaseModel] | None:
    """The section that ``keys`` lead to, or None where they lead to no section."""
    model: type[BaseModel] = ClusterConfig
    for key in keys:
        if isinstance(key, int) or key == "workers":
            model = WorkerGroup
        elif key in model.model_fields:
            kinds = [
                model.model_fields[key].annotation,
                *get_args(model.model_fields[key].annotation),
            ]
            inner = next(
                (k for k in kinds if isinstance(k, type) and issubclass(k, BaseModel)), None
            )
            if inner is None:
                return None
            model = inner
    return model
