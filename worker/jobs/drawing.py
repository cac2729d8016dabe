"""One leased item on its way through engine, encoder and disk."""

import asyncio
import hashlib
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace

from worker import log
from worker.coordination import quota
from worker.coordination.poison_requests import CLEAN, PoisonRequests, Record, asked_text
from worker.coordination.progress import ProgressWriter
from worker.coordination.quota import Hold, Quotas
from worker.engine import Engine, Ticket
from worker.engine.request import Drawn, DrawRequest, Priority, Stepped
from worker.errors import DrawingFailed, LimitReached, Refused, Unavailable
from worker.generation.imaging import Encoders, parameters_text
from worker.observability import audit
from worker.observability.audit import Audit
from worker.observability.metrics import Metrics
from worker.storage import usage
from worker.storage.gallery import StoredImage
from worker.storage.images import ImageStore
from worker.storage.keys import Key
from worker.storage.leases import Leased, Offer
from worker.types import DrawSpec

STRIKES_TIMEOUT_S = 5.0


@dataclass(frozen=True)
class Tools:
    """What drawing an item takes, beside the engine."""

    encoders: Encoders
    images: ImageStore
    strikes: PoisonRequests
    metrics: Metrics
    steps: ProgressWriter
    quotas: Quotas
    key_of: Callable[[str], Key | None]
    """The key that an owner is, if any."""
    audit: Audit


@dataclass(eq=False)
class Held:
    """An item in this worker's hands. ``begun``: it has been in a step; ``revoked``: its lease has
    ended, and whatever becomes of it counts for nothing."""

    item: Leased
    begun: bool = False
    revoked: bool = False
    used: tuple[usage.Entry, ...] = ()
    ticket: Ticket | None = field(default=None, repr=False)

    def revoke(self) -> None:
        """Stop the drawing, within a step."""
        self.revoked = True
        if self.ticket is not None:
            self.ticket.cancel()


async def draw(held: Held, engine: Engine, model: str, tools: Tools) -> StoredImage:
    """Draw and store the picture of ``held``; its file is safe on the disk on return.

    Raises ``ZimageError``: ``Refused`` where the item itself is at fault.
    """
    item = held.item
    key = tools.key_of(item.owner)
    require_allowed(key, item)
    spec = _spec(item)
    record = await _clear(item, tools)
    if held.revoked:
        raise Unavailable("the lease has ended")
    hold = await _part_of_the_day(item, key, tools)
    try:
        request = _request(item, spec, priority_of(key, item.priority), record)
        held.ticket = engine.submit(request)
        try:
            drawn = await _followed(held, held.ticket, tools.steps)
        finally:
            held.ticket.cancel()
        image = await _stored(item, drawn, model, tools)
        hold.drawn = 1
    finally:
        await hold.release()
    held.used = _used(item, drawn, model)
    return image


def require_allowed(key: Key | None, item: Leased | Offer) -> None:
    """Raise ``Refused`` where the key of an item's owner, as it is now, may not draw it at all."""
    try:
        quota.require_size(key, item.width, item.height, item.steps)
    except LimitReached as error:
        raise Refused(error.message, param=error.param, code=error.code) from None


def priority_of(key: Key | None, asked: int) -> Priority:
    """``asked``, or that of the key where it goes later."""
    return Priority(asked) if key is None else max(Priority(asked), Priority[key.priority.upper()])


async def _part_of_the_day(item: Leased, key: Key | None, tools: Tools) -> Hold:
    """One picture of what the owner's key may draw today; jobs do not take its slots."""
    day = None if key is None else replace(key, concurrency=None)
    return await tools.quotas.hold(day, _name(item), time.time(), 1)


def _used(item: Leased, drawn: Drawn, model: str) -> tuple[usage.Entry, ...]:
    """What the ledger shall say, once the item is done; once, however often it was drawn."""
    entry = usage.Entry(
        _name(item),
        usage.REQUEST,
        "done",
        time.time(),
        item.owner,
        model,
        item.width,
        item.height,
        queue_seconds=drawn.queue_ms / 1000,
    )
    picture = replace(
        entry,
        image_index=0,
        outcome="image",
        megapixel_steps=item.width * item.height * item.steps / 1e6,
        gpu_seconds=round(drawn.device_s, 6),
        queue_seconds=0.0,
    )
    return picture, entry


def _spec(item: Leased) -> DrawSpec:
    return DrawSpec(
        item.prompt,
        item.width,
        item.height,
        item.steps,
        item.seed,
        item.guidance_scale,
        item.negative_prompt,
    )


def _request(item: Leased, spec: DrawSpec, priority: Priority, record: Record) -> DrawRequest:
    return DrawRequest(
        id=_name(item),
        specs=(spec,),
        # Since its lease: one that came when its job was made would pass for a replay.
        arrived_at=time.time(),
        key=item.turn,
        fingerprint=_fingerprint(item),
        priority=priority,
        exclusive=record.strikes > 0,
        patience=record.patience,
        watched=False,
        followed=True,
    )


async def _followed(held: Held, ticket: Ticket, steps: ProgressWriter) -> Drawn:
    async for event in ticket.events():
        match event:
            case Stepped():
                held.begun = True
                steps.set(held.item.lease, event.step, event.steps)
            case Drawn():
                return event
    raise DrawingFailed("the engine ended without a picture")


async def _stored(item: Leased, drawn: Drawn, model: str, tools: Tools) -> StoredImage:
    began = time.monotonic()
    text = parameters_text(drawn.spec, model)
    picture = await tools.encoders.encode(
        drawn.pixels,
        item.output_format,
        item.quality,
        text,
        produce_id=_image_id(item),
        b64=False,
    )
    tools.metrics.drew(
        item.width * item.height,
        drawn.inference_ms / 1000,
        item.output_format,
        time.monotonic() - began,
    )
    image = _image(item, len(picture.data), model)
    await asyncio.to_thread(tools.images.save, image.name, picture.data)
    return image


def note(item: Leased, image: StoredImage, tools: Tools) -> None:
    """Write down who drew what; rows know a job's owner and whose turn it was."""
    tools.audit.drew(
        audit.Entry(
            at=image.created_at,
            image=image.id,
            owner=item.owner,
            name=item.owner,
            client=item.turn,
            model=image.model,
            spec=_spec(item),
            job=item.job_id,
        )
    )


def _image_id(item: Leased) -> str:
    # After the lease: who has lost it can never overwrite the picture of who has it.
    return f"img_{item.lease}"


def _image(item: Leased, size: int, model: str) -> StoredImage:
    return StoredImage.of(
        _spec(item),
        id=_image_id(item),
        owner=item.owner,
        created_at=time.time(),
        model=model,
        format=item.output_format,
        bytes=size,
        job_id=item.job_id,
        job_number=item.number,
    )


async def _clear(item: Leased, tools: Tools) -> Record:
    """What is known of deaths with this item in the step; raises ``Refused`` where it is to
    blame."""
    record = await _record(item, tools.strikes)
    if record.refused:
        tools.metrics.strikes.labels("too_slow" if record.too_slow else "refused").inc()
        raise record.refusal(asked_text(_spec(item)))
    if record.strikes:
        tools.metrics.strikes.labels("alone").inc()
    if record.alone and not await asyncio.to_thread(tools.strikes.another_is_open):
        raise Unavailable("It ended a worker before and waits until a second one is back.")
    return record


async def _record(item: Leased, strikes: PoisonRequests) -> Record:
    try:
        async with asyncio.timeout(STRIKES_TIMEOUT_S):
            return await asyncio.to_thread(strikes.arrive, _name(item), _fingerprint(item))
    except (OSError, TimeoutError) as error:
        # A full or stalled disk must not stop the drawing.
        log.failure("strikes cannot be read", error, request_id=_name(item))
        return CLEAN


def _name(item: Leased) -> str:
    """Of the item, the same for each attempt."""
    return f"{item.job_id}-{item.number}"


def _fingerprint(item: Leased) -> str:
    return hashlib.blake2b(f"item\n{_name(item)}".encode(), digest_size=16).hexdigest()
