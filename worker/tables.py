"""Tables of ``cluster.toml`` that reach a worker as they stand there.

Each key is declared here once: the file is checked by it, and ``Settings`` has it.
"""

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

_HANZI = "人工智能生成合内容图像片画由大模型绘制标识辅助作品"
MARK_CHARACTERS = f"letters, digits, spaces, and characters of {_HANZI}"  # those of fonts/mark.otf
MARK = rf"^[A-Za-z0-9{_HANZI}][A-Za-z0-9 .·{_HANZI}-]{{0,15}}$"
TRACES_ENDPOINT = r"^(https?://[^\s/]+/\S*)?$"
BUCKET_URL = r"^(s3://[a-z0-9][a-z0-9.-]{1,61}[a-z0-9](/[A-Za-z0-9_-][A-Za-z0-9._-]*)*)?$"
ENDPOINT = r"^(https?://([A-Za-z0-9][A-Za-z0-9.-]*|\[[0-9a-fA-F:]+\])(:[0-9]{1,5})?)?$"
LINE = r"^[^\x00-\x1f\x7f]*$"
OPENAI_MODELS = (
    *("dall-e-2", "dall-e-3"),
    *("gpt-image-1", "gpt-image-1-mini", "gpt-image-1.5", "gpt-image-2"),
    *("gpt-image-2.5-flare", "gpt-image-2.5-sunburst", "gpt-image-2.6-flare"),
    *("gpt-image-2.6-sunburst", "chatgpt-image-latest"),
)
"""What clients of OpenAI's images ask for by default; many cannot be told another name."""


class Table(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)


class Auth(Table):
    """Of ``listen.auth = "keys"``."""

    key_cache_s: float = Field(3600.0, ge=0)
    """How long keys that were read go on being good while the database is away."""
    session_ttl_s: float = Field(604_800.0, gt=0)
    """How long somebody stays signed in who does not come back."""
    session_max_s: float = Field(2_592_000.0, gt=0)
    """How long somebody stays signed in at all, however often they come back."""
    wrong_keys_per_minute: int = Field(20, ge=1)
    """Of one address, over all workers; from then on the answer is 429 instead of 401."""


class Acceleration(Table):
    """Of ``[model]``: in which numbers and with which kernels it is drawn."""

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


class ModelFiles(Table):
    """Of ``[model]``: where the parts of a model come from."""

    base: str = Field("", pattern=LINE)
    """Of a source that is one .safetensors file: the model, as a source names it, that it was made
    from. What the file does not hold comes from there."""


class ModelNames(Table):
    """Of ``[model]``: under which names clients ask for it."""

    name: str = Field("", pattern=LINE, max_length=100)
    """Its id in the API. Empty: its own. Metrics, ledger and files keep its own."""
    aliases: list[Annotated[str, Field(pattern=LINE, min_length=1, max_length=100)]] = Field(
        [*OPENAI_MODELS], max_length=50
    )
    """Other names that mean it, too."""


class RequestLimits(Table):
    """``[limits.request]``"""

    max_steps: int = Field(50, ge=1)
    max_images: int = Field(10, ge=1)
    """Most pictures of one request: n × prompts."""
    max_prompt_chars: int = Field(4000, ge=1)
    max_body_bytes: int = Field(1 << 20, ge=1024)
    unknown_fields: Literal["refuse", "ignore"] = "refuse"
    """What becomes of a drawing request with a field that nobody knows here. ignore: it is drawn,
    and the answer names the field in ``X-Ignored-Fields``."""


class WorkerLimits(Table):
    """``[limits.worker]``"""

    max_batch: int = Field(4, ge=1)
    """Most rows that advance in one step; a guided picture is two rows."""
    max_queued_requests: int = Field(64, ge=1)
    max_queue_wait_s: float = Field(120.0, gt=0)
    """A request whose predicted wait is longer is refused with 503 and ``Retry-After``."""
    max_job_streams: int = Field(200, ge=1)
    """Most streams of jobs at a time."""
    max_job_streams_per_key: int = Field(50, ge=1)
    """Of one key or, without keys, one address."""
    url_ttl_s: float = Field(3600.0, gt=0)
    """How long the link of ``response_format=url`` works; without a gallery, its file's life."""


class OwnerLimits(Table):
    """``[limits.owner]``: of one key's jobs and uploads or, without keys, of everybody's."""

    job_keep_days: float = Field(30.0, gt=0)
    """Jobs are forgotten so long after they were finished; their pictures stay."""
    max_open_jobs: int = Field(1000, ge=1)
    """Jobs that are not over."""
    max_open_job_images: int = Field(100_000, ge=1)
    """Pictures of jobs that wait or are drawn."""
    max_job_mib: int = Field(256, ge=1)
    """What all jobs may take in the database, those that are over included."""
    max_upload_mib: int = Field(512, ge=1)
    """What uploads may take on the disk or in the bucket; each is kept for a day."""


class Gallery(Table):
    enabled: bool = True
    """Whether every picture is kept, to be found again."""
    keep_days: float = Field(365.0, gt=0)
    """Older pictures are deleted, favourites excepted."""
    keep_gib: float = Field(20.0, gt=0)
    """Pictures under ``var/images`` beyond this are deleted, favourites excepted: the oldest of
    those owners who have most."""
    favourites_gib: float = Field(10.0, ge=0)
    """Favourites beyond this, the oldest of those owners who have most, are deleted like others."""


class Objects(Table):
    url: str = Field("", pattern=BUCKET_URL)
    """The bucket that keeps pictures, as ``s3://bucket/prefix``. Empty: the folder ``var/images``.
    Takes the extra ``s3``."""
    endpoint: str = Field("", pattern=ENDPOINT)
    """Scheme, host and port of the store."""
    credentials_file: str = Field("", pattern=LINE)
    """As the AWS command line reads it: section ``[default]`` with ``aws_access_key_id``,
    ``aws_secret_access_key`` and, where the store has regions, ``region``."""
    spool_gib: float = Field(10.0, gt=0)
    """Of pictures that wait on this host's disk while the store cannot be reached."""

    @property
    def on(self) -> bool:
        """Whether pictures go into a bucket."""
        return bool(self.url)

    @property
    def bucket(self) -> str:
        return self.url.removeprefix("s3://").partition("/")[0]

    @property
    def prefix(self) -> str:
        """What the names of all objects begin with, without slashes at its ends. May be empty."""
        return self.url.removeprefix("s3://").partition("/")[2]


class Labels(Table):
    mark: bool = False
    """Whether ``mark_text`` stands in the corner of every picture."""
    mark_text: str = Field("AI生成", pattern=MARK)
    producer: str = Field("", pattern=LINE, max_length=200)
    """Who offers the service, for the ``AIGC`` record in every file. Empty: no record."""


class Loras(Table):
    folder: str = Field("", pattern=LINE)
    """Where adapters lie that requests may name. Empty: ``<var_dir>/loras``."""
    device_gib: float = Field(1.0, gt=0)
    """Most of a worker's memory that adapters may take, those of one request together; the least
    recently used go first."""


class Audit(Table):
    log: bool = True
    """Write who drew what to ``var_dir/audit``."""
    prompts: bool = True
    prompt_chars: int = Field(1000, ge=1)
    """Of a longer prompt the beginning is written, with its length and SHA-256."""
    keep_days: int = Field(180, ge=1)
    max_mib: int = Field(1024, ge=1)
    """Of all workers' files together; beyond it the oldest go, before their time and with an alarm:
    first of lines beyond ``key_mib_per_day``."""
    key_mib_per_day: float = Field(2.0, gt=0)
    """Share of one key or, without keys, one address, in one worker's files of a day."""


class Traces(Table):
    endpoint: str = Field("", pattern=TRACES_ENDPOINT)
    """Where traces go by OTLP over HTTP, such as ``http://127.0.0.1:4318/v1/traces``. Empty:
    nowhere. Takes the extra ``otel``."""
    share: float = Field(1.0, ge=0, le=1)
    """Of the requests whose sender has not decided whether they are traced."""


class Usage(Table):
    keep_days: float = Field(800.0, gt=0)
    """Of the ledger's sums by day."""


class Allowances(Table):
    """Of ``[timeouts]``: how long a worker's phases may last."""

    step_allowance_s: float = Field(5.0, gt=0)
    """A step (text, decode) is stuck after this or ten times its measured time, if longer."""
    load_allowance_s: float = Field(900.0, gt=0)
    compile_allowance_s: float = Field(600.0, gt=0)
    drain_timeout_s: float = Field(120.0, gt=0)
    """On SIGTERM: how long drawings that run may take to finish."""
