"""One worker's life: boot, load, warm up, serve, drain, end. The handlers' one shared object."""

import asyncio
import contextlib
import gc
import random
import threading
import time
from collections.abc import Callable
from importlib import metadata

from worker import exits, log
from worker.accounts.keyring import KeyRing
from worker.calibration import tables as calibration
from worker.coordination import gpu_lock
from worker.coordination.auth_throttle import AuthThrottle
from worker.coordination.heartbeat import Heartbeat, HeartbeatFile, Phase, read_heartbeat
from worker.coordination.inflight import InFlight
from worker.coordination.poison_requests import PoisonRequests
from worker.coordination.progress import ProgressReader, ProgressWriter
from worker.coordination.quota import Quotas
from worker.coordination.resume_tokens import ResumeTokens
from worker.coordination.shares import Shares
from worker.engine import Costs, Engine, EngineState, Limits
from worker.engine.request import DrawRequest
from worker.errors import HandedBack, NotReady, StoreAway
from worker.generation.components import Components
from worker.generation.imaging import Encoders
from worker.generation.labels import Labels
from worker.generation.quarantine import Quarantine
from worker.jobs.drawing import Tools
from worker.jobs.job_eta import JobEta
from worker.jobs.runner import Runner
from worker.models.base import ModelInfo, Pipeline
from worker.models.memory import Memory, NoMemory, memory_of
from worker.observability import audit
from worker.observability.audit import Audit
from worker.observability.metrics import AuditReading, Metrics, Reading
from worker.settings import Settings
from worker.storage.database import Database, sqlite_url
from worker.storage.gallery_writer import GalleryWriter
from worker.storage.images import ImageStore, Signer
from worker.storage.ledger import Ledger
from worker.storage.replies import ReplyStore
from worker.storage.retention import Retention, Sweeper
from worker.storage.secret import shared_secret
from worker.storage.thumbnails import Thumbnails
from worker.tasks import BackgroundTasks
from worker.threads import in_daemon_thread
from worker.types import DrawSpec

Load = Callable[[Settings], Pipeline]
"""Loads the model that the settings name. Blocks, and may import for seconds."""

_SWEEP_EVERY_S = 60.0
_RETRY_AFTER_S = (3.0, 8.0)  # spread, so that clients do not come back together
_LAST_ANSWERS_S = 2.0  # of the time to drain, kept for sending
_SETTLE_S = 5.0
_WARM_STEPS = 2
_COLLECT_EVERY = 10_000  # objects made and not deleted; Python's 700 are two requests
_SEARCHES = 8  # at a time: the last of them waits for some seconds at most
_SEARCHES_OF_ONE = 4
_CLOSE_S = 1.0  # a call into the pipeline that runs longer ends with the process


class Service:
    """Create it inside an event loop, ``start`` it, ``close`` it.

    ``over`` is done when the process should end, with its exit code.
    """

    def __init__(self, settings: Settings, load: Load) -> None:
        self.settings = settings
        self.started_at = time.time()
        self.over: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        self.tasks = BackgroundTasks()
        self.encoders = Encoders(
            settings.threads, Labels(settings.label_mark, settings.label_producer)
        )
        self.audit = Audit(
            settings.var_dir / "audit" if settings.audit_log else None,
            settings.name,
            audit.Rules(
                settings.audit_prompts,
                settings.audit_prompt_chars,
                settings.audit_keep_days * 86_400.0,
                settings.audit_max_mib << 20,
                int(settings.audit_key_mib_per_day * 2**20),
            ),
        )
        self.metrics = Metrics(self._reading)
        self.poison_requests = PoisonRequests(
            settings.var_dir,
            settings.run_dir,
            settings.pool_dir or settings.var_dir / "pool",
            settings.name,
            settings.strike_ttl_s,
        )
        self.apart = threading.Lock()
        """Held for whoever is suspect and being handled or drawn: one at a time."""
        self.quarantine = Quarantine(
            self.poison_requests, self.metrics, self.apart, self.require_ready
        )
        self.database = Database(
            settings.database_url or sqlite_url(settings.var_dir / "zimage.db")
        )
        self.images = ImageStore(settings.var_dir / "images")
        self.thumbnails = Thumbnails(self.images)
        self.gallery_writer = GalleryWriter(
            self.images, self.database, self.metrics.pictures_lost.inc
        )
        self.replies = ReplyStore(settings.reply_dir, settings.name)
        self.signer = Signer(b"")
        self.resume_tokens = ResumeTokens(b"")
        self._load = load
        self._booting: str | None = "loading"
        self._draining = False
        self._stopping = False
        self.ending = asyncio.Event()
        """What would go on for as long as anybody listens ends here."""
        self.keys = KeyRing(self.database, settings.var_dir / "key-secret", settings.key_cache_s)
        self.ledger = Ledger(
            self.database,
            settings.var_dir / "usage",
            settings.name,
            settings.usage_keep_days,
            self.metrics.usage_lost.inc,
        )
        self.quotas = Quotas(settings.run_dir, settings.var_dir)
        self.jobs = Runner(
            self.database,
            Tools(
                self.metrics,
                ProgressWriter(settings.run_dir / f"{settings.name}.steps"),
                self.quotas,
                self.keys.known,
            ),
            self._ready,
            settings.name,
            settings.run_dir,
            settings.job_keep_days * 86_400,
        )
        self.job_eta = JobEta(self.database, lambda: self._engine, settings.run_dir)
        self.steps = ProgressReader(settings.run_dir)
        self.job_streams = Shares(
            "streams of jobs", settings.max_job_streams, settings.max_job_streams_per_key
        )
        self.reading_job = asyncio.Lock()
        self.searches = Shares("searches", _SEARCHES, _SEARCHES_OF_ONE)
        self._engine: Engine | None = None
        self._info: ModelInfo | None = None
        self._components: Components | None = None
        self._memory: Memory = NoMemory()
        self._heartbeat: HeartbeatFile | None = None
        self._in_flight: InFlight | None = None

    # Life

    async def start(self) -> None:
        """Everything that is quick; loading goes on behind it."""
        self.settings.run_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
        secret = shared_secret(self.settings.run_dir / "link-secret")
        self.signer, self.resume_tokens = Signer(secret), ResumeTokens(secret)
        self.auth_throttle = AuthThrottle(
            self.settings.run_dir / "auth-throttle", self.settings.wrong_keys_per_minute
        )
        if self.settings.auth == "keys":
            await self.keys.refresh()
            self.tasks.keep("keys", self.keys.follow)
        self.tasks.keep("ledger", self.ledger.follow)
        await asyncio.to_thread(self._inherit_strikes)
        self._heartbeat = HeartbeatFile(self.settings.heartbeat)
        self._in_flight = InFlight(self._heartbeat.mapped)
        self._heartbeat.enter(Phase.LOAD, self.settings.load_allowance_s)
        self.tasks.once("boot", self._boot(self._heartbeat), lambda: self.end(exits.MODEL_FAILED))
        self.tasks.keep("gallery", self.gallery_writer.run)
        self.tasks.keep("retention", self._sweep)
        self.tasks.keep("jobs", self.jobs.run)
        if self.settings.audit_log:
            self.tasks.keep_thread("audit", self.audit.run)

    def _inherit_strikes(self) -> None:
        try:
            struck = self.poison_requests.inherit()
        except OSError as error:
            log.failure("strikes cannot be written", error)
            return
        if struck:
            log.event("predecessor died of one of these", requests=struck)
            self.metrics.strikes.labels("inherited").inc(struck)

    async def _boot(self, heartbeat: HeartbeatFile) -> None:
        began = time.monotonic()
        with contextlib.ExitStack() as held:
            try:
                await in_daemon_thread(lambda: self._load_on_card(held, heartbeat))
                self._booting = "warming"
                await self._warm_up()
            except Exception as error:
                log.failure("model failed to load", error, why=str(error))
                self.end(exits.MODEL_FAILED)
                return
        _settle_memory()
        self._booting = None
        if self._draining:
            self.engine.drain()
        log.event("ready", seconds=round(time.monotonic() - began, 2), model=self.info.id)

    def _load_on_card(self, held: contextlib.ExitStack, heartbeat: HeartbeatFile) -> None:
        gpu_lock.pin(self.settings.device)
        held.enter_context(gpu_lock.card(self.settings))
        pipeline = self._load(self.settings)
        self._info = pipeline.info
        began = time.monotonic()
        costs, lent = self._costs(pipeline)
        log.event("costs known", seconds=round(time.monotonic() - began, 2))
        limits = _limits(self.settings)
        engine = Engine(pipeline, heartbeat, limits, costs, self._on_fatal, self.apart)
        # A neighbour on the card may draw while this worker is idle.
        if lent and self.settings.vram_limit_gib is None:
            own = calibration.renewed(self.settings, pipeline, self._memory, engine.learn)
            engine.when_idle(own)
        self._engine = engine
        self._components = self._built(engine, pipeline.info)

    def _built(self, engine: Engine, info: ModelInfo) -> Components:
        return Components(
            engine=engine,
            model=info.id,
            encoders=self.encoders,
            images=self.images,
            gallery_writer=self.gallery_writer,
            quarantine=self.quarantine,
            in_flight=self.in_flight,
            quotas=self.quotas,
            resume_tokens=self.resume_tokens,
            ledger=self.ledger,
            audit=self.audit,
            metrics=self.metrics,
        )

    def _costs(self, pipeline: Pipeline) -> tuple[Costs, bool]:
        """What calibration found for this device, or a short measurement where that is quick; and
        whether it was found on another device of its kind."""
        device = pipeline.info.device
        memory = self._memory = memory_of(pipeline.info, self.settings.vram_limit_gib)
        about = self.settings, pipeline, memory
        table = calibration.load(*about)
        shipped = calibration.shipped(*about) if table is None else None
        log.event(
            "costs",
            calibrated=table is not None,
            shipped=shipped is not None,
            memory_limit=memory.limit_bytes,
        )
        if table is not None:
            return table, False
        if shipped is not None:
            return shipped, True
        if device == "cpu":  # slow, and shared: the warm-up picture and what is drawn measure
            return Costs(self.settings.max_batch), False
        return calibration.short(*about), False

    async def _warm_up(self) -> None:
        """Draw before anybody waits; where a first call takes long, a few steps are enough."""
        engine, info = self.engine, self.info
        engine.start()
        width, height = info.default_size
        steps = self.settings.steps or info.default_steps
        if info.compiles:
            steps = min(steps, _WARM_STEPS)
        spec = DrawSpec("warm-up", width, height, steps, 0, info.default_guidance_scale)
        began = time.monotonic()
        ticket = engine.submit(DrawRequest("warm-up", (spec,), time.time()))
        async with asyncio.timeout(self.settings.load_allowance_s):
            (drawn,) = await ticket.result()
        if drawn.pixels.shape != (height, width, 3):
            raise RuntimeError(f"the warm-up drew {drawn.pixels.shape}, not {height} × {width}")
        log.event("warmed up", seconds=round(time.monotonic() - began, 2))

    def end(self, code: int) -> None:
        """Ask the process to end with ``code``; the first one asked for wins."""
        if not self.over.done():
            self.over.set_result(code)
        self.ending.set()

    def stop(self) -> None:
        """Hand back what waits, finish what runs, then end. Calling it again changes nothing."""
        if not self._stopping:
            self._stopping = True
            self.ending.set()
            self.tasks.once("drain", self._finish(), lambda: self.end(0))

    async def _finish(self) -> None:
        log.event("draining", timeout_s=self.settings.drain_timeout_s)
        self.drain()
        if self._engine is not None and self._booting is None:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(self.settings.drain_timeout_s - _LAST_ANSWERS_S):
                    await self._engine.drained()
                # What the database does not take meanwhile is drawn again, the same.
                async with asyncio.timeout(_SETTLE_S):
                    await self.jobs.settled()
        self.end(0)

    def _on_fatal(self, error: BaseException) -> None:
        """From the engine, after every waiter was answered."""
        log.failure("the engine can draw no more", error)
        self.end(exits.DEVICE_POISONED)

    async def close(self) -> None:
        """After the last answer: end the engine, and the heartbeat if all went in order."""
        await self.gallery_writer.close(timeout_s=_CLOSE_S)
        await self.tasks.close()
        await self.jobs.close(timeout_s=_CLOSE_S)
        if self._engine is not None:
            await self._engine.close(timeout_s=_CLOSE_S)
        self.encoders.close()
        self.thumbnails.close()
        await asyncio.to_thread(self.audit.close)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_CLOSE_S):
                await self.ledger.flush()
        self.ledger.close()
        self.database.close()
        in_order = not self.over.done() or self.over.result() == 0
        if self._heartbeat is not None and in_order:
            self._heartbeat.end()

    def drain(self, *, finish: bool = False) -> None:
        """Take no more work; what is queued and has no header sent goes to other workers, unless
        this one must ``finish`` it."""
        self._draining = True
        if self._engine is not None and self._booting is None:
            self._engine.drain(finish=finish)

    def undrain(self) -> None:
        """Take work again, unless the process is about to end."""
        if self._stopping:
            return
        self._draining = False
        if self._engine is not None and self._booting is None:
            self._engine.undrain()

    # State

    @property
    def engine(self) -> Engine:
        assert self._engine is not None, "require_ready comes first"
        return self._engine

    @property
    def components(self) -> Components:
        """What drawing takes."""
        assert self._components is not None, "require_ready comes first"
        return self._components

    @property
    def info(self) -> ModelInfo:
        assert self._info is not None, "require_ready comes first"
        return self._info

    @property
    def in_flight(self) -> InFlight:
        """What is being handled outside the engine."""
        assert self._in_flight is not None, "start comes first"
        return self._in_flight

    def heartbeat(self) -> Heartbeat | None:
        return read_heartbeat(self.settings.heartbeat)

    def not_ready(self) -> str | None:
        """Why this worker takes no work now: loading, warming, draining, stuck, broken; or None."""
        if self.over.done() and self.over.result() != 0:
            return "broken"
        if self._booting is not None:
            return self._booting
        return self.engine.trouble() or ("draining" if self._draining else None)

    def require_ready(self) -> None:
        """Raise ``NotReady`` or ``HandedBack`` unless this worker takes work now."""
        reason = self.not_ready()
        if reason == "draining":
            raise HandedBack("This worker is draining: another one takes the request.")
        if reason is not None:
            retry_after_s = random.uniform(*_RETRY_AFTER_S)
            raise NotReady(f"This worker is {reason}: try again.", retry_after_s=retry_after_s)

    def _ready(self) -> Components | None:
        return self.components if self.not_ready() is None else None

    def optimisations(self) -> dict[str, str]:
        """What makes the loaded model faster, and why it is on or off."""
        return {} if self._info is None else dict(self._info.optimisations)

    def engine_state(self) -> EngineState | None:
        return None if self._engine is None else self._engine.state()

    def _reading(self) -> Reading:
        return Reading(
            ready=self.not_ready() is None,
            encoding=self.encoders.waiting,
            job_items=self.jobs.held,
            database_failures=self.database.failures,
            build=self._build(),
            heartbeat=self.heartbeat(),
            engine=self.engine_state(),
            device_memory=self._memory.usage(),
            usage_waiting_bytes=self.ledger.waiting_bytes,
            keys_age_s=self.keys.age_s if self.settings.auth == "keys" else None,
            task_restarts=self.tasks.restarts,
            audit=_audit_reading(self.audit) if self.settings.audit_log else None,
        )

    def _build(self) -> dict[str, str]:
        info, settings = self._info, self.settings
        return {
            "version": metadata.version("zimage-cluster"),
            "worker": settings.name,
            "model": info.id if info else settings.model,
            "device": info.device if info else settings.device,
            "dtype": info.dtype if info else settings.dtype,
        }

    # Behind the scenes

    async def _sweep(self) -> None:
        lock = self.settings.run_dir / "images-sweep.lock"
        retention = _retention(self.settings)
        sweeper = Sweeper(self.images, self.database, retention, lock, self.settings.gallery)
        while True:
            await asyncio.sleep(_SWEEP_EVERY_S)
            try:
                deleted = await sweeper.sweep()
            except StoreAway:
                continue  # what the database knows must not be taken for a stray
            except OSError as error:
                log.failure("old pictures cannot be deleted", error)
                continue
            if deleted:
                log.event("old pictures deleted", deleted=deleted)


def _audit_reading(of: Audit) -> AuditReading:
    return AuditReading(of.bytes, of.lost, of.deleted_early)


def _settle_memory() -> None:
    """Modules and the model stay for life: the collector need not look at them again and again,
    which stops all threads, and need not look at what is new for every second request."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(_COLLECT_EVERY)


def _retention(settings: Settings) -> Retention:
    return Retention(
        keep_s=settings.keep_days * 86_400,
        keep_bytes=int(settings.keep_gib * gpu_lock.GIB),
        favourites_bytes=int(settings.favourites_gib * gpu_lock.GIB),
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
