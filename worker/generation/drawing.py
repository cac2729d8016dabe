"""One generation's way: admit, draw, encode, record. For a request and for a job's item alike."""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing, asynccontextmanager
from typing import cast

from worker import log
from worker.coordination.suspect import Suspect
from worker.engine import Ticket
from worker.engine.request import Drawn, Event, Partial, Queued, Stepped
from worker.generation.admission import Admission
from worker.generation.components import Components
from worker.generation.encoding import Encoding, Finished, Preview
from worker.generation.recording import Recording, Timings
from worker.generation.request import Generation
from worker.observability.traces import OFF, Trace
from worker.storage.gallery import StoredImage
from worker.storage.usage import Entry

Told = Queued | Stepped | Preview | Finished


class Drawing:
    """``draw`` it; or ``admit`` it, read its ``events`` and ``end`` or ``close`` it.

    ``timings`` are there once all is drawn. ``notes`` are for the log line of the request. After
    ``draw`` comes ``publish``, which no answer needs to wait for.
    """

    timings: Timings
    resume_token = ""
    """What a client sends to go on in the place of this stream, should it be cut."""

    def __init__(
        self,
        generation: Generation,
        suspect: Suspect,
        components: Components,
        notes: dict[str, log.Value] | None = None,
        trace: Trace = OFF,
    ) -> None:
        notes = {} if notes is None else notes
        self.generation = generation
        self._images, self._image_threads = components.images, components.image_threads
        self._admission = Admission(generation, suspect, components, notes)
        self._encoding = Encoding(generation, suspect, components)
        self._recording = Recording(generation, components, notes)
        self._trace = trace
        self._ticket: Ticket | None = None

    async def draw(self) -> list[tuple[Finished, StoredImage | None]]:
        """All pictures in order, and those that are not for the answer itself as they are stored.

        Raises ``ZimageError``.
        """
        try:
            ticket = await self._admitted()
            try:
                if len(self.generation.specs) == 1:  # most have, and need not look at each event
                    finished = _whole(await ticket.result())
                    self._written(*finished)
                else:
                    finished = await self._all(ticket)
                drawn: list[tuple[Finished, StoredImage | None]]
                if self.generation.output.inline:
                    drawn = [(one, None) for one in finished]
                else:
                    drawn = [(one, await self._kept(one)) for one in finished]
                self._admission.drew(len(finished))
                with self._trace.timed("record"):
                    self.timings = self._recording.done(*finished)
            except asyncio.CancelledError:
                ticket.cancel()
                self._recording.left()
                raise
            finally:
                await self._admission.release()
        except Exception as error:
            self._recording.ended(error)
            raise
        return drawn

    def publish(self) -> None:
        """Put what is drawn into metrics, audit log and gallery, unless it is there."""
        self._recording.publish()

    async def admit(self) -> None:
        """Take what the key has left and a place in the queue, or raise why not."""
        try:
            self._ticket = await self._admitted()
        except Exception as error:
            self._recording.ended(error)
            raise
        self.resume_token = self._admission.resume_token

    async def _admitted(self) -> Ticket:
        with self._trace.timed("admit"):
            return await self._admission.take(self._encoding.begin)

    async def events(self) -> AsyncGenerator[Told, None]:
        """Everything that happens until all is drawn. Whoever stops listening stops the drawing."""
        assert self._ticket is not None, "admit comes first"
        try:
            async with _events(self._ticket) as events:
                async for event in events:
                    match event:
                        case Queued():
                            told: Told = event
                        case Stepped():
                            tiling = self.generation.tiling
                            told = event if tiling is None else tiling.followed(event)
                        case Finished():
                            told = self._finished(event)
                        case Partial():
                            told = await self._encoding.preview(event)
                            self._recording.previewed(event.image_index)
                        case Drawn() if self.generation.tiling is not None:
                            continue  # a tile
                        case _:
                            raise AssertionError("every picture is encoded first")
                    del event  # a preview's pixels must not wait for the next one
                    yield told
                    del told
        except Exception as error:
            self._recording.ended(error)
            raise

    def _finished(self, one: Finished) -> Finished:
        self._written(one)
        self.publish()
        if self.generation.item is None:
            self._admission.drew(1)
            with self._trace.timed("record"):
                if self._recording.complete:
                    self.timings = self._recording.done(one)
                else:
                    self._recording.count(one)
        return one

    def _written(self, *pictures: Finished) -> None:
        for one in pictures:
            self._trace.drew(one, one.encode_s)
        self._recording.finished(*pictures)

    def end(self) -> None:
        """Stop drawing, if there is anything left to draw, and give back what the key holds."""
        self._stop()
        self._admission.give_back()

    async def close(self) -> None:
        """``end``, and wait until what the key holds is given back."""
        self._stop()
        await self._admission.release()

    def _stop(self) -> None:
        if self._ticket is not None and not self._recording.complete:
            self._ticket.cancel()
            self._recording.left()

    # Pictures

    async def _all(self, ticket: Ticket) -> list[Finished]:
        """Every picture in order. Each is written down when it is there, not with the last."""
        finished: dict[int, Finished] = {}
        async with _events(ticket) as events:
            async for event in events:
                if isinstance(event, Finished):
                    self._written(event)
                    self.publish()
                    finished[event.image_index] = event
        return [finished[k] for k in range(len(finished))]

    async def _kept(self, one: Finished) -> StoredImage:
        image = await self._saved(one)
        self._recording.keep(image)
        return image

    async def _saved(self, one: Finished) -> StoredImage:
        image = self._recording.stored(one)
        with self._trace.timed("record"):
            await self._image_threads.do(lambda: self._images.save(image.name, one.picture.data))
        return image

    # Items: what else is written down comes with the end of their lease

    async def save(self, one: Finished) -> tuple[StoredImage, list[Entry]]:
        """An item's picture, safe on the disk, and its usage."""
        image = await self._saved(one)
        self._admission.drew(1)
        return image, self._recording.entries(one, done_after_s=one.queue_ms / 1000)

    def note(self, image: StoredImage) -> None:
        """Put an item's picture into the audit log."""
        self._recording.note(0, at=image.created_at)


def _whole(drawn: list[Drawn]) -> list[Finished]:
    """Without the tiles, where there are such."""
    if len(drawn) > 1:
        return [one for one in drawn if isinstance(one, Finished)]
    return cast(list[Finished], drawn)


@asynccontextmanager
async def _events(ticket: Ticket) -> AsyncIterator[AsyncIterator[Event]]:
    """Those of ``ticket``, which is cancelled where nobody reads them to their end."""
    try:
        async with aclosing(ticket.events()) as events:
            yield events
    except BaseException:
        ticket.cancel()
        raise
