"""What is written down of a generation: metrics, gallery, audit log and the ledger of usage."""

import time
from typing import NamedTuple

from worker import log
from worker.engine.request import Drawn
from worker.errors import (
    DeadlinePassed,
    DrawingFailed,
    LimitReached,
    Overloaded,
    Refused,
    StorageFailed,
    ZimageError,
)
from worker.generation.components import Components
from worker.generation.encoding import Finished
from worker.generation.request import Generation
from worker.observability import audit
from worker.storage import usage
from worker.storage.gallery import StoredImage
from worker.storage.usage import Outcome


class Timings(NamedTuple):
    """Of a whole generation, in milliseconds. ``batch_size``: most pictures that shared a step."""

    queue_ms: int
    inference_ms: int
    batch_size: int


class Recording:
    """Of one generation. Of a job's item only metrics are written here: see ``Item``."""

    def __init__(
        self, generation: Generation, components: Components, notes: dict[str, log.Value]
    ) -> None:
        self._generation = generation
        self._components = components
        self._notes = notes
        self._unfinished = dict.fromkeys(range(len(generation.specs)), 0)  # and previews of them
        self._unpublished: list[Finished] = []
        self._queue_ms: list[float] = []
        self._done_ms: list[float] = []
        self._batch_size = 0

    def previewed(self, index: int) -> None:
        """A preview of picture ``index`` goes out."""
        self._unfinished[index] += 1

    @property
    def complete(self) -> bool:
        """Whether every picture is finished."""
        return not self._unfinished

    def finished(self, *ones: Finished) -> None:
        """``ones`` are files, and how long they took is known: ``publish`` them soon."""
        for one in ones:
            self._queue_ms.append(one.queue_ms)
            self._done_ms.append(one.queue_ms + one.inference_ms)
            self._batch_size = max(self._batch_size, one.batch_size)
            self._unfinished.pop(one.image_index, None)
        self._unpublished += ones

    def publish(self) -> None:
        """Count what is finished, write it down and put it into the gallery, each once."""
        finished, self._unpublished = self._unpublished, []
        for one in finished:
            self._publish(one)

    def _publish(self, one: Finished) -> None:
        generation, metrics = self._generation, self._components.metrics
        pixels, seconds = one.spec.parameters.pixels, one.inference_ms / 1000
        metrics.drew(pixels, seconds, generation.output.format, one.encode_s)
        if generation.item is None:
            self.note(one.image_index)
            if generation.output.inline and generation.output.gallery:
                self._components.gallery_writer.keep(self.stored(one), one.picture.data)

    def keep(self, image: StoredImage) -> None:
        """Put a picture whose file is stored into the gallery, if it is to be there."""
        if self._generation.output.gallery:
            self._components.gallery_writer.keep(image, None)

    def left(self) -> None:
        """Write down what was asked for and seen, though nobody waited for all of it."""
        unfinished, self._unfinished = self._unfinished, {}
        for index, previews in unfinished.items() if self._generation.item is None else ():
            self.note(index, event="left", previews=previews)

    def note(
        self, index: int, *, event: str = "drew", previews: int = 0, at: float | None = None
    ) -> None:
        """Put picture ``index`` into the audit log."""
        generation, item = self._generation, self._generation.item
        entry = audit.Entry(
            at=time.time() if at is None else at,
            image=generation.image_id(index),
            owner=generation.caller.owner,
            name=generation.caller.name,
            client=generation.client,
            model=self._components.model,
            spec=generation.specs[index],
            job=None if item is None else item.job_id,
            event=event,
            previews=previews,
        )
        self._components.audit.drew(entry)

    def stored(self, one: Finished) -> StoredImage:
        """The gallery's row of ``one``; that of an item tells when it was drawn."""
        generation, item = self._generation, self._generation.item
        return StoredImage.of(
            one.spec,
            id=generation.image_id(one.image_index),
            owner=generation.caller.owner,
            created_at=generation.arrived_at if item is None else time.time(),
            model=self._components.model,
            format=generation.output.format,
            bytes=len(one.picture.data),
            job_id=None if item is None else item.job_id,
            job_number=None if item is None else item.number,
        )

    def done(self, *handed_out: Finished) -> Timings:
        """Count the request, and of its pictures those that are ``handed_out`` with its end."""
        timings = self.account()
        self._notes |= timings._asdict()
        queue_s = timings.queue_ms / 1000
        self.count(*handed_out, done_after_s=queue_s)
        self._components.metrics.queued(queue_s)
        return timings

    def account(self) -> Timings:
        """How long it took until now."""
        queue_ms, done_ms = min(self._queue_ms), max(self._done_ms)
        return Timings(round(queue_ms), round(done_ms - queue_ms), self._batch_size)

    def count(self, *handed_out: Drawn, done_after_s: float | None = None) -> None:
        """Count pictures that are handed out now, and with the last of them the request, which
        waited ``done_after_s``."""
        self._components.ledger.record(*self.entries(*handed_out, done_after_s=done_after_s))

    def entries(self, *handed_out: Drawn, done_after_s: float | None) -> list[usage.Entry]:
        """What the ledger shall say: see ``count``."""
        entries = [self._entry(one.image_index, "image", drawn=one) for one in handed_out]
        if done_after_s is not None:
            entries.append(self._entry(usage.REQUEST, "done", queue_s=done_after_s))
        return entries

    def ended(self, error: Exception) -> None:
        """``error`` ended it: count it as a refusal or a failure."""
        outcome = None if self._generation.item else outcome_of(error)
        if outcome is not None:
            self._components.ledger.record(self._entry(usage.REQUEST, outcome))

    def _entry(
        self, index: int, outcome: Outcome, *, drawn: Drawn | None = None, queue_s: float = 0.0
    ) -> usage.Entry:
        generation, how = self._generation, self._generation.specs[0].parameters
        megapixels = 0.0 if drawn is None else how.pixels / 1e6
        return usage.Entry(
            generation.id,
            index,
            outcome,
            generation.arrived_at if generation.item is None else time.time(),
            generation.caller.owner,
            self._components.model,
            how.width,
            how.height,
            megapixels * how.drawn_steps,
            0.0 if drawn is None else round(drawn.device_s, 6),
            queue_s,
        )


def outcome_of(error: Exception) -> Outcome | None:
    """What the ledger calls it; None: not the end of the request, or its sender's own mistake."""
    match error:
        case LimitReached() | Refused() | Overloaded():
            return "refused"
        case DrawingFailed() | DeadlinePassed() | StorageFailed():
            return "failed"
        case ZimageError():
            return None
    return "failed"
