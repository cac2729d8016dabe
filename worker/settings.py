"""One frozen settings object, built once at start and passed down.

Precedence: command-line flag, then ``ZIMAGE_…`` environment variable, then the JSON document that
``ZIMAGE_SETTINGS`` names, then the default here. Nothing else in the worker reads the environment.
In a cell, ``cluster.toml`` is the one source: `zimage up` writes the document of each worker.
"""

import json
import os
from pathlib import Path
from typing import Any, Literal, Self

from pydantic import Field, ValidationError, model_validator
from pydantic_settings import (
    BaseSettings,
    InitSettingsSource,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
    SettingsError,
)

from worker.bounds import MAX_SOCKET_PATH_BYTES
from worker.tables import (
    Acceleration,
    Allowances,
    Audit,
    Auth,
    Gallery,
    Labels,
    Loras,
    ModelFiles,
    ModelNames,
    Objects,
    OwnerLimits,
    RequestLimits,
    Traces,
    Usage,
    WorkerLimits,
)

DOCUMENT = "ZIMAGE_SETTINGS"
"""Names a JSON file: an object with any of the settings."""


class Settings(
    Auth,
    ModelFiles,
    Acceleration,
    RequestLimits,
    WorkerLimits,
    OwnerLimits,
    Allowances,
    BaseSettings,
):
    # Most settings stand in the tables: cluster.toml is checked by them, too.
    model_config = SettingsConfigDict(
        env_prefix="ZIMAGE_",
        frozen=True,
        extra="forbid",
        cli_kebab_case=True,
        cli_prog_name="python -m worker",
        use_attribute_docstrings=True,
        # ZIMAGE_AUDIT_MAX_MIB is max_mib of audit.
        env_nested_delimiter="_",
        env_nested_max_split=1,
    )

    name: str = Field("w1", pattern=r"^[a-z][a-z0-9-]{0,15}$")
    """Unique in the cell; names the socket, the heartbeat file and the ``X-Worker`` header."""
    cell: str = Field("zimage", pattern=r"^[a-z][a-z0-9-]{0,31}$")
    """Whose worker it is: names the cookie where several cells share a host."""
    host: str = Field("", pattern=r"^([a-z][a-z0-9-]{0,31})?$")
    """This machine's name in its cluster. Empty: it is in none."""
    cluster_secret: Path | None = None
    """The file of what all hosts sign links and sign-ins with. None: this one has its own."""
    run_dir: Path = Path("var/run")
    """Holds ``<name>.sock``, ``<name>.beat``, ``<name>.lock``; shared by all workers of a cell."""
    var_dir: Path = Path("var")
    """Strikes, images and caches."""
    pool_dir: Path | None = None
    """Where the guard keeps a link for each worker that takes work. None: ``<var_dir>/pool``."""
    reply_dir: Path | None = None
    """Where large answers are put for nginx to send. None: they go over the socket."""

    database_url: str = ""
    """Keys, usage, pictures, jobs. Empty: ``<var_dir>/zimage.db``. Must have been migrated."""

    auth: Literal["loopback", "none", "keys"] = "loopback"
    """keys: whoever asks must show an API key or be signed in. Else nobody needs one."""

    model: str = "tiny"
    """``tiny``, a local diffusers folder, a .safetensors file with ``base``, a hub id,
    ``random:z-image-turbo`` or ``synthetic:…``."""
    names: ModelNames = ModelNames()
    models: Path | None = None
    """The list of all models, where the cell has several: see ``coordination/served_models``."""
    device: str = "cpu"
    """``cpu``, ``cuda:0`` or, better, a UUID from ``nvidia-smi -L`` (``GPU-…``, ``MIG-…``). Several
    with commas between them draw each picture together."""
    threads: int = Field(1, ge=1)
    """CPU threads of torch and of the image encoders, each."""
    vram_limit_gib: float | None = Field(None, gt=0)
    """Memory of the card that this worker may use, CUDA context included. None: all of it."""
    steps: int | None = Field(None, ge=1)
    """Default steps of a request. None: the model's own."""
    guidance_scale: float | None = Field(None, ge=0)
    """Default guidance of a request. None: the model's own."""

    max_pixels: int = Field(1024 * 1024, ge=256, le=4096 * 4096)
    """Largest width × height of one picture."""

    gallery: Gallery = Gallery()
    objects: Objects = Objects()
    labels: Labels = Labels()
    loras: Loras = Loras()
    audit: Audit = Audit()
    traces: Traces = Traces()
    usage: Usage = Usage()

    lock_wait_s: float = Field(15.0, ge=0)
    """How long to wait for a predecessor that still holds ``<name>.lock``."""
    strike_ttl_s: float = Field(600.0, gt=0)
    """How long it is remembered that a request was in the step of a worker that died."""

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        return init_settings, env_settings, InitSettingsSource(settings_cls, _document())

    @model_validator(mode="after")
    def _socket_path_fits(self) -> Self:
        length = len(os.fsencode(self.socket))
        if length > MAX_SOCKET_PATH_BYTES:
            raise ValueError(
                f"run_dir: {self.socket} is {length} bytes long and a unix socket's path may have "
                f"{MAX_SOCKET_PATH_BYTES}: choose a shorter run_dir"
            )
        return self

    @property
    def devices(self) -> tuple[str, ...]:
        """Each of ``device``."""
        return tuple(self.device.split(","))

    @property
    def socket(self) -> Path:
        return self.run_dir / f"{self.name}.sock"

    @property
    def heartbeat(self) -> Path:
        return self.run_dir / f"{self.name}.beat"

    @property
    def lora_dir(self) -> Path:
        """Where adapters lie."""
        return Path(self.loras.folder) if self.loras.folder else self.var_dir / "loras"

    @property
    def lock(self) -> Path:
        return self.run_dir / f"{self.name}.lock"


def _document() -> dict[str, Any]:
    path = os.environ.get(DOCUMENT, "")
    if not path:
        return {}
    try:
        return dict(json.loads(Path(path).read_bytes()))
    except (OSError, ValueError, TypeError) as error:
        raise SettingsError(
            f"{DOCUMENT}: {path} is no settings document ({error}); zimage up writes it anew"
        ) from None


def problems(error: ValidationError) -> list[str]:
    """One line a problem: the setting, what is wrong, and what it was."""
    lines = []
    for problem in error.errors():
        name = ".".join(str(part) for part in problem["loc"])
        message = problem["msg"].removeprefix("Value error, ")
        lines.append(f"{name}: {message} (is {problem['input']!r})" if name else message)
    return lines
