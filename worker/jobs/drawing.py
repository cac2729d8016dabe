"""One leased item, drawn as requests are."""

import hashlib
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace

from worker.coordination import quota
from worker.coordination.progress import ProgressWriter
from worker.coordination.quota import Quotas
from worker.coordination.suspect import Suspect
from worker.engine.request import Priority, Stepped
from worker.errors import DrawingFailed, LimitReached, Refused, Unavailable, UnknownLora
from worker.generation.caller import Caller
from worker.generation.components import Components
from worker.generation.drawing import Drawing
from worker.generation.encoding import Finished
from worker.generation.request import Generation, Item, Output
from worker.observability.metrics import Metrics
from worker.storage import usage
from worker.storage.gallery import StoredImage
from worker.storage.keys import Key
from worker.storage.leases import Leased, Offer
from worker.types import DrawSpec, SourceImage
from worker.uploads.named import NamedPictures
from worker.uploads.sources import Placing, Sent, Sources


@dataclass(frozen=True)
class Tools:
    """What jobs take beside the components of a drawing, which are there once a model is."""

    metrics: Metrics
    steps: ProgressWriter
    quotas: Quotas
    key_of: Callable[[str], Key | None]
    """The key that an owner is, if any."""
    sources: Sources
    named: NamedPictures


@dataclass(eq=False)
class Held:
    """An item in this worker's hands. ``admitted``: what its key may draw today has it; ``begun``:
    it has been in a step; ``revoked``: its lease has ended, and whatever becomes of it counts for
    nothing."""

    item: Leased
    admitted: bool = False
    begun: bool = False
    revoked: bool = False
    used: tuple[usage.Entry, ...] = ()
    drawing: Drawing | None = field(default=None, repr=False)

    def revoke(self) -> None:
        """Stop the drawing, within a step."""
        self.revoked = True
        if self.drawing is not None:
            self.drawing.end()


async def draw(held: Held, components: Components, tools: Tools) -> StoredImage:
    """Draw and store the picture of ``held``; its file is safe on the disk on return.

    Raises ``ZimageError``: ``Refused`` where the item itself is at fault.
    """
    item = held.item
    key = tools.key_of(item.owner)
    require_allowed(key, item)
    source = await _source(item, tools)
    if held.revoked:
        raise Unavailable("the lease has ended")
    suspect = Suspect(_name(item), components.in_flight)
    generation = _generation(item, key, source)
    trace = components.traces.begin("item", generation.arrived_at, "", item.traceparent)
    drawing = held.drawing = Drawing(generation, suspect, components, trace=trace)
    try:
        await drawing.admit()
        held.admitted = True
        image, used = await drawing.save(await _followed(held, drawing, tools.steps))
    finally:
        suspect.close()
        await drawing.close()
        trace.end({"job": item.job_id, "number": item.number, "tries": item.tries})
    held.used = tuple(used)
    return image


def require_allowed(key: Key | None, item: Leased | Offer) -> None:
    """Raise ``Refused`` where the key of an item's owner, as it is now, may not draw it at all."""
    try:
        quota.require_size(key, item.parameters)
        quota.require_loras(key, item.parameters)
    except (LimitReached, UnknownLora) as error:
        raise Refused(error.message, param=error.param, code=error.code) from None


async def _source(item: Leased, tools: Tools) -> SourceImage | None:
    """What it goes on from, read anew for each item: their owner may have deleted it. Raises
    ``NotFound``."""
    if item.image is None:
        return None
    placing = Placing.of_row(item.fit, item.position, item.parameters.size)
    async with tools.sources.reading():
        image = await _sent(item.owner, item.image, "image", tools.named)
        mask = await _sent(item.owner, item.mask, "mask", tools.named) if item.mask else None
        return await tools.sources.prepare(image, mask, placing)


async def _sent(owner: str, id: str, field: str, named: NamedPictures) -> Sent:
    return await named.read(await named.find(owner, id, field))


def _generation(item: Leased, key: Key | None, source: SourceImage | None) -> Generation:
    # Jobs do not take its slots, and rows know an owner and whose turn it was.
    day = None if key is None else replace(key, concurrency=None)
    return Generation(
        id=_name(item),
        # Since its lease: one that came when its job was made would pass for a replay.
        arrived_at=time.time(),
        caller=Caller(item.owner, item.turn, item.owner, key=day),
        client=item.turn,
        specs=(DrawSpec(item.prompt, item.seed, item.parameters, source),),
        fingerprint=_fingerprint(item),
        output=Output(item.output_format, item.quality, inline=False, gallery=False),
        priority=Priority(item.priority),
        # After the lease: who has lost it can never overwrite the picture of who has it.
        item=Item(item.job_id, item.number, f"img_{item.lease}"),
    )


async def _followed(held: Held, drawing: Drawing, steps: ProgressWriter) -> Finished:
    async for event in drawing.events():
        match event:
            case Stepped():
                held.begun = True
                steps.set(held.item.lease, event.step, event.steps)
            case Finished():
                return event
    raise DrawingFailed("the engine ended without a picture")


def _name(item: Leased) -> str:
    """Of the item, the same for each attempt."""
    return f"{item.job_id}-{item.number}"


def _fingerprint(item: Leased) -> str:
    return hashlib.blake2b(f"item\n{_name(item)}".encode(), digest_size=16).hexdigest()
