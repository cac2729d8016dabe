"""One frozen settings object, built once at start and passed down.

Precedence: command-line flag, then ``ZIMAGE_…`` environment variable, then the default here.
Nothing else in the worker reads the environment. In a cell, ``cluster.toml`` is the one source:
it renders these variables into supervisor's configuration.
"""

import os
from pathlib import Path
from typing import Literal, Self

from pydantic import Field, ValidationError, model_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

_SOCKET_PATH_BYTES = 107


class Settings(BaseSettings):
    model_config = SettingsConfigDict(
        env_prefix="ZIMAGE_",
        frozen=True,
        extra="forbid",
        cli_kebab_case=True,
        cli_prog_name="python -m worker",
        use_attribute_docstrings=True,
    )

    name: str = Field("w1", pattern=r"^[a-z][a-z0-9-]{0,15}$")
    """Unique in the cell; names the socket, the heartbeat file and the ``X-Worker`` header."""
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
    key_cache_s: float = Field(3600.0, ge=0)
    """How long keys that were read go on being good while the database is away."""
    session_ttl_s: float = Field(604_800.0, gt=0)
    """How long somebody stays signed in who does not come back."""
    session_max_s: float = Field(2_592_000.0, gt=0)
    """How long somebody stays signed in at all, however often they come back."""
    usage_keep_days: float = Field(800.0, gt=0)
    """Of the ledger's sums by day."""
    wrong_keys_per_minute: int = Field(20, ge=1)
    """Of one address, over all workers; from then on the answer is 429 instead of 401."""

    model: str = "tiny"
    """``tiny``, a local diffusers folder, a hub id, ``random:z-image-turbo`` or ``synthetic:…``."""
    device: str = "cpu"
    """``cpu``, ``cuda:0`` or, better, a UUID from ``nvidia-smi -L`` (``GPU-…``, ``MIG-…``). Several
    with commas between them draw each picture together."""
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """auto: float32 on the CPU, bfloat16 on a GPU."""
    kernels: Literal["auto", "off"] = "auto"
    """auto: on a GPU, kernels of ours in Z-Image's transformer, decoder and text encoder."""
    attention: Literal["auto", "native", "cudnn", "flash", "efficient", "flash4"] = "auto"
    """Which attention kernels. auto: flash-attn-4's on Hopper where it is installed, else native.
    native: torch chooses."""
    products: Literal["auto", "native", "quack"] = "auto"
    """Whose matrix products. auto: on Hopper, quack-kernels' where they are installed."""
    graphs: Literal["auto", "off"] = "auto"
    """auto: on a GPU, small pictures are drawn through CUDA graphs."""
    fp8: Literal["off", "transformer", "all"] = "off"
    """Which weights of Z-Image are in 8 bits; ``all``: the text encoder's too."""
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
    max_steps: int = Field(50, ge=1)
    max_images: int = Field(10, ge=1)
    """Most pictures of one request: n × prompts."""
    max_prompt_chars: int = Field(4000, ge=1)
    max_body_bytes: int = Field(1 << 20, ge=1024)
    max_batch: int = Field(4, ge=1)
    """Most rows that advance in one step; a guided picture is two rows."""
    max_queued_requests: int = Field(64, ge=1)
    max_job_streams: int = Field(200, ge=1)
    """Most streams of jobs at a time."""
    max_job_streams_per_key: int = Field(50, ge=1)
    """Of one key or, without keys, one address."""
    max_queue_wait_s: float = Field(120.0, gt=0)
    """A request whose predicted wait is longer is refused with 503 and ``Retry-After``."""
    url_ttl_s: float = Field(3600.0, gt=0)
    """How long the link of ``response_format=url`` works; without a gallery, its file's life."""

    gallery: bool = True
    """Whether every picture is kept, to be found again."""
    keep_days: float = Field(365.0, gt=0)
    """Older pictures are deleted, favourites excepted."""
    keep_gib: float = Field(20.0, gt=0)
    """Pictures under ``var/images`` beyond this are deleted, favourites excepted: the oldest of
    those owners who have most."""
    favourites_gib: float = Field(10.0, ge=0)
    """Favourites beyond this, the oldest of those owners who have most, are deleted like others."""

    label_mark: str = ""
    """Text in the corner of every picture. Empty: none."""
    label_producer: str = ""
    """Who offers the service, for the ``AIGC`` record in every file. Empty: no record."""
    job_keep_days: float = Field(30.0, gt=0)
    """Jobs are forgotten so long after they were finished; their pictures stay."""
    max_open_jobs: int = Field(1000, ge=1)
    """Jobs of one owner that are not over. Without keys all clients are one owner."""
    max_open_job_images: int = Field(100_000, ge=1)
    """Pictures of one owner's jobs that wait or are drawn."""
    max_job_mib: int = Field(256, ge=1)
    """What all jobs of one owner may take in the database, those that are over included."""

    audit_log: bool = True
    """Write who drew what to ``var_dir/audit``."""
    audit_prompts: bool = True
    audit_prompt_chars: int = Field(1000, ge=1)
    """Of a longer prompt the beginning is written, with its length and SHA-256."""
    audit_keep_days: int = Field(180, ge=1)
    audit_max_mib: int = Field(1024, ge=1)
    """Of all workers' files together; beyond it the oldest go, before their time and with an alarm:
    first of lines beyond ``audit_key_mib_per_day``."""
    audit_key_mib_per_day: float = Field(2.0, gt=0)
    """Share of one key or, without keys, one address, in one worker's files of a day."""

    step_allowance_s: float = Field(5.0, gt=0)
    """A step (text, decode) is stuck after this or ten times its measured time, if longer."""
    load_allowance_s: float = Field(900.0, gt=0)
    lock_wait_s: float = Field(15.0, ge=0)
    """How long to wait for a predecessor that still holds ``<name>.lock``."""
    compile_allowance_s: float = Field(600.0, gt=0)
    drain_timeout_s: float = Field(120.0, gt=0)
    """On SIGTERM: how long drawings that run may take to finish."""
    strike_ttl_s: float = Field(600.0, gt=0)
    """How long it is remembered that a request was in the step of a worker that died."""

    @model_validator(mode="after")
    def _socket_path_fits(self) -> Self:
        length = len(os.fsencode(self.socket))
        if length > _SOCKET_PATH_BYTES:
            raise ValueError(
                f"run_dir: {self.socket} is {length} bytes long and a unix socket's path may have "
                f"{_SOCKET_PATH_BYTES}: choose a shorter run_dir"
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
    def lock(self) -> Path:
        return self.run_dir / f"{self.name}.lock"


def problems(error: ValidationError) -> list[str]:
    """One line a problem: the setting, what is wrong, and what it was."""
    lines = []
    for problem in error.errors():
        name = ".".join(str(part) for part in problem["loc"])
        message = problem["msg"].removeprefix("Value error, ")
        lines.append(f"{name}: {message} (is {problem['input']!r})" if name else message)
    return lines
