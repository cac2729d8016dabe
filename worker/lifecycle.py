"""One worker's life: boot, load, warm up, serve, drain, end."""

import asyncio
import contextlib
import gc
import random
import time
from collections.abc import Callable
from importlib import metadata

from worker import components, exits, log
from worker.components import Components, Model
from worker.coordination import gpu_lock
from worker.coordination.heartbeat import Heartbeat, Phase, read_heartbeat
from worker.engine import Engine, EngineState
from worker.engine.request import DrawRequest
from worker.engine.state import Backlog
from worker.errors import HandedBack, NotReady, StoreAway
from worker.generation import components as generation
from worker.models.base import Pipeline
from worker.observability.audit import Audit
from worker.observability.metrics import AuditReading, Reading
from worker.settings import Settings
from worker.tasks import BackgroundTasks
from worker.threads import in_daemon_thread
from worker.types import DrawSpec, Parameters

Load = Callable[[Settings], Pipeline]
"""Loads the model that the settings name. Blocks, and may import for seconds."""

_SWEEP_EVERY_S = 60.0
_RETRY_AFTER_S = (3.0, 8.0)  # spread, so that clients do not come back together
_LAST_ANSWERS_S = 2.0  # of the time to drain, kept for sending
_SETTLE_S = 5.0
_WARM_STEPS = 2
_COLLECT_EVERY = 10_000  # objects made and not deleted; Python's 700 are two requests
_CLOSE_S = 1.0  # a call into the pipeline that runs longer ends with the process


class Lifecycle:
    """Create it inside an event loop, ``start`` it, ``close`` it.

    ``over`` is done when the process should end, with its exit code. ``components`` are there from
    the beginning, the model when it is loaded.
    """

    def __init__(self, settings: Settings, load: Load) -> None:
        self.settings = settings
        self.started_at = time.time()
        self.over: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        self.tasks = BackgroundTasks()
        self.ending = asyncio.Event()
        """What would go on for as long as anybody listens ends here."""
        self._load = load
        self._model: Model | None = None
        self._booting: str | None = "loading"
        self._draining = False
        self._stopping = False
        self.when_loaded: list[Callable[[], None]] = []
        """Called before the first request, which the loaded model then draws."""
        self.components: Components = components.build(settings, self)

    # Boot, load, warm up

    async def start(self) -> None:
        """Everything that is quick; loading goes on behind it."""
        built = self.components
        if self.settings.auth == "keys":
            await built.keys.refresh()
            self.tasks.keep("keys", built.keys.follow)
        self.tasks.keep("ledger", built.ledger.follow)
        built.heartbeat.enter(Phase.LOAD, self.settings.load_allowance_s)
        self.tasks.once("boot", self._boot(), lambda: self.end(exits.MODEL_FAILED))
        self.tasks.keep("gallery", built.gallery_writer.run)
        self.tasks.keep("retention", self._sweep)
        if built.spool_drain is not None:
            self.tasks.keep("spool", built.spool_drain.run)
        self.tasks.keep("jobs", built.jobs.run)
        for name, loop in built.sharing.items():
            self.tasks.keep(name, loop)
        if self.settings.audit.log:
            self.tasks.keep_thread("audit", built.audit.run)

    async def _boot(self) -> None:
        began = time.monotonic()
        with contextlib.ExitStack() as held:
            try:
                model = await in_daemon_thread(lambda: self._load_on_card(held))
                self._model, self._booting = model, "warming"
                await self._warm_up(model)
            except Exception as error:
                log.failure("model failed to load", error, why=str(error))
                self.end(exits.MODEL_FAILED)
                return
        _settle_memory()
        for tell in self.when_loaded:
            tell()
        self._booting = None
        if self._draining:
            model.engine.drain()
        log.event("ready", seconds=round(time.monotonic() - began, 2), model=model.info.id)

    def _load_on_card(self, held: contextlib.ExitStack) -> Model:
        gpu_lock.pin(self.settings.device)
        held.enter_context(gpu_lock.card(self.settings))
        pipeline = self._load(self.settings)
        began = time.monotonic()
        model = components.build_model(pipeline, self.components, self._on_fatal)
        log.event("costs known", seconds=round(time.monotonic() - began, 2))
        return model

    async def _warm_up(self, model: Model) -> None:
        """Draw before anybody waits; where a first call takes long, a few steps are enough."""
        engine, info = model.engine, model.info
        engine.start()
        width, height = info.default_size
        steps = self.settings.steps or info.default_steps
        if info.compiles:
            steps = min(steps, _WARM_STEPS)
        how = Parameters(width, height, steps, info.default_guidance_scale)
        spec = DrawSpec("warm-up", 0, how)
        began = time.monotonic()
        ticket = engine.submit(DrawRequest("warm-up", (spec,), time.time()))
        async with asyncio.timeout(self.settings.load_allowance_s):
            (drawn,) = await ticket.result()
        if drawn.pixels.shape != (height, width, 3):
            raise RuntimeError(f"the warm-up drew {drawn.pixels.shape}, not {height} × {width}")
        log.event("warmed up", seconds=round(time.monotonic() - began, 2))

    # Serve

    @property
    def model(self) -> Model:
        assert self._model is not None, "require_ready comes first"
        return self._model

    def not_ready(self) -> str | None:
        """Why this worker takes no work now: loading, warming, draining, stuck, broken; or None."""
        if self.over.done() and self.over.result() != 0:
            return "broken"
        if self._booting is not None:
            return self._booting
        return self.model.engine.trouble() or ("draining" if self._draining else None)

    def require_ready(self) -> Model:
        """The model; raise ``NotReady`` or ``HandedBack`` unless this worker takes work now."""
        reason = self.not_ready()
        if reason == "draining":
            raise HandedBack("This worker is draining: another one takes the request.")
        if reason is not None:
            retry_after_s = random.uniform(*_RETRY_AFTER_S)
            raise NotReady(f"This worker is {reason}: try again.", retry_after_s=retry_after_s)
        return self.model

    def drawing(self) -> generation.Components | None:
        """What to draw with, where this worker takes work now."""
        return self.model.drawing if self.not_ready() is None else None

    def loaded_engine(self) -> Engine | None:
        """The engine, as soon as there is one."""
        return None if self._model is None else self._model.engine

    async def _sweep(self) -> None:
        while True:
            await asyncio.sleep(_SWEEP_EVERY_S)
            try:
                deleted = await self.components.sweeper.sweep()
            except StoreAway:
                continue  # what the database knows must not be taken for a stray
            except OSError as error:
                log.failure("old pictures cannot be deleted", error)
                continue
            if deleted:
                log.event("old pictures deleted", deleted=deleted)

    # Drain

    def drain(self, *, finish: bool = False) -> None:
        """Take no more work; what is queued and has no header sent goes to other workers, unless
        this one must ``finish`` it."""
        self._draining = True
        if self._booting is None:
            self.model.engine.drain(finish=finish)

    def undrain(self) -> None:
        """Take work again, unless the process is about to end."""
        if self._stopping:
            return
        self._draining = False
        if self._booting is None:
            self.model.engine.undrain()

    def stop(self) -> None:
        """Hand back what waits, finish what runs, then end. Calling it again changes nothing."""
        if not self._stopping:
            self._stopping = True
            self.ending.set()
            self.tasks.once("drain", self._finish(), lambda: self.end(0))

    async def _finish(self) -> None:
        log.event("draining", timeout_s=self.settings.drain_timeout_s)
        self.drain()
        if self._booting is None:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(self.settings.drain_timeout_s - _LAST_ANSWERS_S):
                    await self.model.engine.drained()
                # What the database does not take meanwhile is drawn again, the same.
                async with asyncio.timeout(_SETTLE_S):
                    await self.components.jobs.settled()
        self.end(0)

    # End

    def end(self, code: int) -> None:
        """Ask the process to end with ``code``; the first one asked for wins."""
        if not self.over.done():
            self.over.set_result(code)
        self.ending.set()

    def _on_fatal(self, error: BaseException) -> None:
        """From the engine, after every waiter was answered."""
        log.failure("the engine can draw no more", error)
        self.end(exits.DEVICE_POISONED)

    async def close(self) -> None:
        """After the last answer: end the engine, and the heartbeat if all went in order."""
        built = self.components
        await built.gallery_writer.close(timeout_s=_CLOSE_S)
        await self.tasks.close()
        await built.jobs.close(timeout_s=_CLOSE_S)
        if self._model is not None:
            await self._model.engine.close(timeout_s=_CLOSE_S)
        await built.sources.close()
        built.encoders.close()
        built.thumbnails.close()
        built.image_threads.close()
        if built.spool_drain is not None:
            built.spool_drain.close()
        await asyncio.to_thread(built.audit.close)
        await asyncio.to_thread(built.traces.close, _CLOSE_S)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_CLOSE_S):
                await built.ledger.flush()
        built.ledger.close()
        built.database.close()
        if not self.over.done() or self.over.result() == 0:
            built.heartbeat.end()

    # What is seen of it

    def heartbeat(self) -> Heartbeat | None:
        return read_heartbeat(self.settings.heartbeat)

    def optimisations(self) -> dict[str, str]:
        """What makes the loaded model faster, and why it is on or off."""
        return {} if self._model is None else dict(self._model.info.optimisations)

    def backlog(self) -> Backlog:
        """What waits here, cheap enough to ask for all the time."""
        return Backlog() if self._model is None else self._model.engine.backlog()

    def full(self, backlog: Backlog) -> bool:
        """Whether a request that came now would be refused for those ahead of it."""
        limits = self.settings
        return (
            backlog.queued >= limits.max_queued_requests
            or backlog.predicted_wait_s > limits.max_queue_wait_s
        )

    def engine_state(self) -> EngineState | None:
        return None if self._model is None else self._model.engine.state()

    def reading(self) -> Reading:
        """For the metrics."""
        built, model = self.components, self._model
        return Reading(
            ready=self.not_ready() is None,
            encoding=built.encoders.waiting,
            job_items=built.jobs.held,
            database_failures=built.database.failures,
            build=self._build(),
            heartbeat=self.heartbeat(),
            engine=self.engine_state(),
            device_memory={} if model is None else model.memory.usage(),
            usage_waiting_bytes=built.ledger.waiting_bytes,
            keys_age_s=built.keys.age_s if self.settings.auth == "keys" else None,
            task_restarts=self.tasks.restarts,
            log_lines_lost=log.lost(),
            audit=_audit_reading(built.audit) if self.settings.audit.log else None,
        )

    def _build(self) -> dict[str, str]:
        info, settings = self._model and self._model.info, self.settings
        return {
            "version": metadata.version("zimage-cluster"),
            "worker": settings.name,
            "model": self.components.models.label(info.id if info else settings.model),
            "device": info.device if info else settings.device,
            "dtype": info.dtype if info else settings.dtype,
        }


def _audit_reading(of: Audit) -> AuditReading:
    return AuditReading(of.bytes, of.lost, of.deleted_early)


def _settle_memory() -> None:
    """Modules and the model stay for life: the collector need not look at them again and again,
    which stops all threads, and need not look at what is new for every second request."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(_COLLECT_EVERY)
