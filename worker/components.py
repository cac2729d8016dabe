"""What one worker is built of, once, and handed down."""

import asyncio
import threading
from collections.abc import Callable, Coroutine, Mapping
from dataclasses import dataclass
from functools import partial
from importlib import metadata
from typing import Any, Protocol

from worker import log
from worker.accounts.keyring import KeyRing
from worker.bounds import GIB
from worker.calibration import tables as calibration
from worker.coordination.auth_throttle import AuthThrottle
from worker.coordination.cell_models import CellModels
from worker.coordination.heartbeat import HeartbeatFile
from worker.coordination.host_clocks import cluster_models
from worker.coordination.inflight import InFlight
from worker.coordination.lease_holder import Others, nobody, this_process
from worker.coordination.live_workers import live_workers
from worker.coordination.poison_requests import PoisonRequests
from worker.coordination.progress import ProgressReader, ProgressWriter
from worker.coordination.quota import Quotas
from worker.coordination.resume_tokens import ResumeTokens
from worker.coordination.shares import Shares
from worker.engine import Costs, Engine, Limits
from worker.generation import components as generation
from worker.generation.imaging import Encoders
from worker.generation.labels import Labels
from worker.generation.quarantine import Quarantine
from worker.jobs import model_costs
from worker.jobs.drawing import Tools
from worker.jobs.job_eta import JobEta
from worker.jobs.runner import Runner
from worker.models.base import ModelInfo, Pipeline
from worker.models.memory import Memory, memory_of
from worker.observability import audit
from worker.observability.audit import Audit
from worker.observability.metrics import Metrics, Reading
from worker.observability.traces import Traces, traces_to
from worker.settings import Settings
from worker.storage.bucket_images import BucketImages, SpoolDrain
from worker.storage.database import Database, sqlite_url
from worker.storage.gallery_writer import GalleryWriter
from worker.storage.images import Images, ImageStore, Signer
from worker.storage.ledger import Ledger
from worker.storage.replies import ReplyStore
from worker.storage.retention import Retention, Sweeper
from worker.storage.secret import Signing, only, shared_secret
from worker.storage.thumbnails import Thumbnails
from worker.storage.undelivered import Undelivered
from worker.threads import ThreadPool
from worker.uploads.named import NamedPictures
from worker.uploads.sources import Sources

_SEARCHES = 8  # at a time: the last of them waits for some seconds at most
_SEARCHES_OF_ONE = 4
_IMAGE_THREADS = 4

Loop = Callable[[], Coroutine[Any, Any, None]]


class Life(Protocol):
    """What components ask of the worker's life."""

    def require_ready(self) -> object:
        """Raise where this worker takes no work now."""

    def drawing(self) -> generation.Components | None:
        """What to draw with, where this worker takes work now."""

    def loaded_engine(self) -> Engine | None:
        """The engine, as soon as there is one."""

    def reading(self) -> Reading:
        """For the metrics."""


@dataclass(frozen=True)
class Components:
    """All that is there before a model is loaded."""

    settings: Settings
    models: CellModels
    metrics: Metrics
    audit: Audit
    traces: Traces
    encoders: Encoders
    sources: Sources
    """What becomes of pictures that are sent."""
    named: NamedPictures
    """Those that are there already."""
    heartbeat: HeartbeatFile
    in_flight: InFlight
    """What is being handled outside the engine."""
    poison_requests: PoisonRequests
    quarantine: Quarantine
    auth_throttle: AuthThrottle
    keys: KeyRing
    quotas: Quotas
    ledger: Ledger
    signer: Signer
    resume_tokens: ResumeTokens
    database: Database
    images: Images
    image_threads: ThreadPool
    """What blocks on ``images`` blocks nothing else."""
    spool_drain: SpoolDrain | None
    """Where pictures go into a bucket."""
    thumbnails: Thumbnails
    gallery_writer: GalleryWriter
    replies: ReplyStore
    undelivered: Undelivered
    sweeper: Sweeper
    jobs: Runner
    job_eta: JobEta
    steps: ProgressReader
    job_streams: Shares
    reading_job: asyncio.Lock
    searches: Shares
    sharing: Mapping[str, Loop]
    """What runs for ever for what other workers must know, by name."""

    @property
    def shares_pictures(self) -> bool:
        """Whether other hosts have the same store, which may lack what one has just drawn."""
        return _shares_pictures(self.settings)


def _shares_pictures(settings: Settings) -> bool:
    return bool(settings.host and settings.objects.on)


@dataclass(frozen=True)
class Model:
    """All that is there once a model is loaded. ``drawing`` is what a drawing takes."""

    engine: Engine
    info: ModelInfo
    memory: Memory
    drawing: generation.Components


def build(settings: Settings, life: Life) -> Components:
    """Inside the event loop. Quick: what takes long is begun by the life cycle."""
    run_dir, var_dir, name = settings.run_dir, settings.var_dir, settings.name
    run_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
    signing = _cluster_signing(settings)
    links = signing or only(shared_secret(run_dir / "link-secret"))
    models = CellModels(
        settings.models,
        settings.names.name,
        settings.names.aliases,
        cluster_models(var_dir) if settings.host else None,
    )
    metrics = Metrics(life.reading)
    database = Database(settings.database_url or sqlite_url(var_dir / "zimage.db"))
    coordination = _coordination(settings, database, models)
    poison_requests, quotas = coordination.poison_requests, coordination.quotas
    _inherit_strikes(poison_requests, metrics)  # before the heartbeat is overwritten
    heartbeat = HeartbeatFile(settings.heartbeat)
    images: Images = ImageStore(var_dir / "images")
    spool_drain = None
    if settings.objects.on:
        images = bucket = BucketImages.of(settings.objects, var_dir)
        spool_drain = SpoolDrain(bucket)
    threads = ThreadPool(_IMAGE_THREADS, "images")
    keys = KeyRing(database, var_dir / "key-secret", settings.key_cache_s, signing)
    sources = Sources()
    named = NamedPictures(database, images, threads, shared=_shares_pictures(settings))
    tools = Tools(metrics, coordination.steps, quotas, keys.known, sources, named)
    keep_s = settings.job_keep_days * 86_400
    workers = partial(live_workers, run_dir, models.own if models.several else "")
    lock = run_dir / "images-sweep.lock"
    return Components(
        settings=settings,
        models=models,
        metrics=metrics,
        audit=_audit(settings),
        encoders=Encoders(settings.threads, _labels(settings)),
        sources=sources,
        named=named,
        traces=traces_to(
            settings.traces.endpoint,
            settings.traces.share,
            name,
            metadata.version("zimage-cluster"),
        ),
        heartbeat=heartbeat,
        in_flight=InFlight(heartbeat.mapped),
        poison_requests=poison_requests,
        quarantine=Quarantine(poison_requests, metrics, threading.Lock(), life.require_ready),
        auth_throttle=AuthThrottle(run_dir / "auth-throttle", settings.wrong_keys_per_minute),
        keys=keys,
        quotas=quotas,
        ledger=Ledger(
            database, var_dir / "usage", name, settings.usage.keep_days, metrics.usage_lost.inc
        ),
        signer=Signer(links),
        resume_tokens=ResumeTokens(links),
        database=database,
        images=images,
        image_threads=threads,
        spool_drain=spool_drain,
        thumbnails=Thumbnails(images),
        gallery_writer=GalleryWriter(images, database, metrics.pictures_lost.inc),
        replies=ReplyStore(settings.reply_dir, name),
        undelivered=Undelivered(var_dir / "undelivered"),
        sweeper=Sweeper(
            images, database, _retention(settings), lock, settings.gallery.enabled, settings.host
        ),
        jobs=Runner(
            database,
            tools,
            life.drawing,
            name,
            run_dir,
            keep_s,
            settings.host,
            coordination.others,
            models.drawn_here,
            workers,
        ),
        job_eta=JobEta(database, life.loaded_engine, coordination.others, models, run_dir),
        steps=coordination.all_steps,
        job_streams=Shares(
            "streams of jobs", settings.max_job_streams, settings.max_job_streams_per_key
        ),
        reading_job=asyncio.Lock(),
        searches=Shares("searches", _SEARCHES, _SEARCHES_OF_ONE),
        sharing={**coordination.loops, **_costs_told(settings, models, life)},
    )


def _costs_told(settings: Settings, models: CellModels, life: Life) -> dict[str, Loop]:
    """Only workers with other models need to be told."""
    if not models.several:
        return {}
    about = settings.run_dir, settings.name, models.own
    return {"costs": partial(model_costs.tell, *about, life.drawing)}


def _cluster_signing(settings: Settings) -> Signing | None:
    if settings.cluster_secret is None:
        return None
    from worker.coordination.shared_secrets import ClusterSecrets

    return ClusterSecrets(settings.cluster_secret)


@dataclass(frozen=True)
class _Coordination:
    """What workers share: those of this host, or of all that share its database."""

    quotas: Quotas
    poison_requests: PoisonRequests
    steps: ProgressWriter
    all_steps: ProgressReader
    others: Others
    loops: Mapping[str, Loop]


def _coordination(settings: Settings, database: Database, models: CellModels) -> _Coordination:
    var_dir, run_dir = settings.var_dir, settings.run_dir
    pool = settings.pool_dir or var_dir / "pool"
    struck = var_dir, run_dir, pool, settings.name, settings.strike_ttl_s
    steps = run_dir / f"{settings.name}.steps"
    of_host = PoisonRequests(*struck), ProgressWriter(steps), ProgressReader(run_dir), nobody
    if not database.is_shared:
        return _Coordination(Quotas(run_dir, var_dir), *of_host, {})
    # Here, so that a host of its own imports nothing of it.
    from worker.coordination.shared_quota import SharedQuotas

    holder = this_process(settings.name, settings.host)
    quotas = SharedQuotas(run_dir, var_dir, database, holder)
    if not settings.host:  # in no cluster yet
        return _Coordination(quotas, *of_host, {"quotas": quotas.run})
    from worker.coordination.shared_poison import SharedPoison
    from worker.coordination.shared_progress import SharedProgressReader, SharedProgressWriter
    from worker.storage.lost_hosts import others

    poison = SharedPoison(*struck, host=settings.host, database=database)
    writer = SharedProgressWriter(steps, database, holder)
    reader = SharedProgressReader(run_dir, database, holder)
    loops = {"quotas": quotas.run, "strikes": poison.run, "steps": writer.run}
    elsewhere = others(settings.host, models.pool_elsewhere)
    return _Coordination(quotas, poison, writer, reader, elsewhere, loops)


def build_model(
    pipeline: Pipeline, components: Components, on_fatal: Callable[[BaseException], None]
) -> Model:
    """Blocks: where nobody knows what drawing costs, it is measured."""
    settings, memory = (
        components.settings,
        memory_of(pipeline.info, components.settings.vram_limit_gib),
    )
    components.models.id = pipeline.info.id
    costs, lent = _costs(settings, pipeline, memory)
    engine = Engine(
        pipeline,
        components.heartbeat,
        _limits(settings),
        costs,
        on_fatal,
        components.quarantine.apart,
    )
    # A neighbour on the card may draw while this worker is idle.
    if lent and settings.vram_limit_gib is None:
        engine.when_idle(calibration.renewed(settings, pipeline, memory, engine.learn))
    drawing = generation.Components(
        engine=engine,
        model=components.models.label(pipeline.info.id),
        encoders=components.encoders,
        images=components.images,
        image_threads=components.image_threads,
        gallery_writer=components.gallery_writer,
        quarantine=components.quarantine,
        in_flight=components.in_flight,
        quotas=components.quotas,
        resume_tokens=components.resume_tokens,
        ledger=components.ledger,
        audit=components.audit,
        metrics=components.metrics,
        traces=components.traces,
    )
    return Model(engine, pipeline.info, memory, drawing)


def _costs(settings: Settings, pipeline: Pipeline, memory: Memory) -> tuple[Costs, bool]:
    """What calibration found for this device, or a short measurement where that is quick; and
    whether it was found on another device of its kind."""
    about = settings, pipeline, memory
    table = calibration.load(*about)
    shipped = calibration.shipped(*about) if table is None else None
    outdated = calibration.outdated(*about) if table is None else []
    log.event(
        "costs",
        calibrated=table is not None,
        shipped=shipped is not None,
        memory_limit=memory.limit_bytes,
        # A table of this model and device that does not count any more, since these changed.
        **({"outdated": ", ".join(outdated)} if outdated else {}),
    )
    if table is not None:
        if pipeline.info.device != "cpu":
            calibration.complete(*about, table)
        return table, False
    if shipped is not None:
        return shipped, True
    if pipeline.info.device == "cpu":
        # Slow, and shared: the warm-up picture and what is drawn measure.
        return Costs(settings.max_batch), False
    return calibration.short(*about), False


def _inherit_strikes(poison_requests: PoisonRequests, metrics: Metrics) -> None:
    try:
        struck = poison_requests.inherit()
    except OSError as error:
        log.failure("strikes cannot be written", error)
        return
    if struck:
        log.event("predecessor died of one of these", requests=struck)
        metrics.strikes.labels("inherited").inc(struck)


def _audit(settings: Settings) -> Audit:
    told = settings.audit
    rules = audit.Rules(
        told.prompts,
        told.prompt_chars,
        told.keep_days * 86_400.0,
        told.max_mib << 20,
        int(told.key_mib_per_day * 2**20),
    )
    folder = settings.var_dir / "audit" if told.log else None
    return Audit(folder, settings.name, rules)


def _labels(settings: Settings) -> Labels:
    told = settings.labels
    return Labels(told.mark_text if told.mark else "", told.producer)


def _retention(settings: Settings) -> Retention:
    return Retention(
        keep_s=settings.gallery.keep_days * 86_400,
        keep_bytes=int(settings.gallery.keep_gib * GIB),
        favourites_bytes=int(settings.gallery.favourites_gib * GIB),
        link_s=settings.url_ttl_s,
    )


def _limits(settings: Settings) -> Limits:
    return Limits(
        max_queued_requests=settings.max_queued_requests,
        max_queue_wait_s=settings.max_queue_wait_s,
        max_batch=settings.max_batch,
        step_allowance_s=settings.step_allowance_s,
        compile_allowance_s=settings.compile_allowance_s,
    )
