"""POST /v1/images/generations: admit, draw, encode, answer."""

import asyncio
import hashlib
import time
from collections.abc import AsyncGenerator, AsyncIterator, Iterator, Sequence
from contextlib import aclosing, asynccontextmanager, contextmanager, nullcontext
from dataclasses import dataclass
from functools import cached_property
from typing import Any, cast

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response

from worker import log
from worker.api import answers, sse
from worker.api.caller import Caller, caller_of
from worker.api.client import ClientGone, read_json_body, while_connected
from worker.api.middleware.request_context import CLIENT_GONE, RequestContext, context_of
from worker.api.routes import files
from worker.api.schemas import wire
from worker.api.schemas.openapi import Part, operation, ref
from worker.coordination import quota
from worker.coordination.poison_requests import asked_text
from worker.coordination.quota import Hold
from worker.coordination.resume_tokens import ResumeToken
from worker.engine import Ticket
from worker.engine.request import (
    NO_PIXELS,
    Drawn,
    DrawRequest,
    Event,
    Partial,
    Priority,
    Queued,
    Stepped,
)
from worker.errors import (
    DeadlinePassed,
    DrawingFailed,
    LimitReached,
    Overloaded,
    Refused,
    StorageFailed,
    ZimageError,
)
from worker.generation.imaging import Picture, parameters_text
from worker.observability import audit
from worker.service import Service
from worker.storage import usage
from worker.storage.gallery import StoredImage
from worker.storage.usage import Outcome

REPLIES_LOCATION = "/internal/replies/"
"""Where nginx finds the files of ``ReplyStore``."""

# The client's library requires a usage; nothing here is counted in tokens.
_NO_USAGE = {
    "input_tokens": 0,
    "input_tokens_details": {"image_tokens": 0, "text_tokens": 0},
    "output_tokens": 0,
    "total_tokens": 0,
}


async def generate(request: Request) -> Response:
    """Draw the pictures of one request; a stream's header is sent only once it is admitted."""
    service: Service = request.app.state.service
    service.require_ready()
    try:
        body = await read_json_body(request, service.settings.max_body_bytes)
        generation = wire.parse(body, service.settings, service.info)
        drawing = Drawing(service, generation, context_of(request), caller_of(request))
        with drawing.counted():
            if generation.stream:
                await while_connected(request.receive, drawing.admit())
                return sse.EventStream(drawing.events(), drawing.end, drawing.context.id)
            return await while_connected(request.receive, drawing.answer(request))
    except ClientGone:
        return Response(status_code=CLIENT_GONE)  # for the log: nobody reads it


@dataclass(frozen=True, kw_only=True)
class Finished(Drawn):
    """A drawn picture and its file, which took ``encode_s``, waiting included."""

    picture: Picture
    encode_s: float


class Drawing:
    """One admitted request on its way through engine and encoders."""

    def __init__(
        self, service: Service, generation: wire.Generation, context: RequestContext, caller: Caller
    ) -> None:
        self.context = context
        self._service = service
        self._generation = generation
        self._caller = caller
        assert context.suspect is not None, "the middleware comes first"
        self._suspect = context.suspect
        self._specs = generation.specs(default_seed(context.id))
        self._place: ResumeToken | None = None
        self._ticket: Ticket | None = None
        self._hold: Hold | None = None
        self._unfinished = dict.fromkeys(range(len(self._specs)), 0)  # and previews of them
        context.notes |= {
            "images": len(self._specs),
            "size": generation.size,
            "steps": generation.steps,
            "stream": generation.stream,
        }

    async def admit(self) -> None:
        """Take what the key has left and a place in the queue, or raise why not."""
        key, spec = self._caller.key, self._specs[0]
        quota.require_size(key, spec.width, spec.height, spec.steps)
        self._take_place()
        try:
            self._hold = await self._service.quotas.hold(
                key, self.context.id, self._since, len(self._specs)
            )
            await self._admit()
        except BaseException:
            await self._release()
            raise

    def _take_place(self) -> None:
        """Go on in the place of the stream that was cut. A place that is no good is left: the
        request is drawn all the same, as one that came now."""
        text, now = self._generation.resume, self.context.arrived_at
        if not text:
            return
        self._place = self._service.resume_tokens.take(text, self._caller.turn, self._specs, now)
        if self._place is None:
            self.context.notes["resume"] = "ignored"
        else:
            self.context.notes["resumed_after_s"] = round(now - self._since, 3)

    @property
    def _since(self) -> float:
        """Its arrival to the queue: that of the first stream, if this one goes on in its place."""
        return self._place.arrived_at if self._place else self.context.arrived_at

    async def _release(self) -> None:
        self._service.resume_tokens.free(self._place)
        if self._hold is not None:
            await self._hold.release()

    async def _admit(self) -> None:
        service, generation = self._service, self._generation
        service.engine.check(self._specs)
        service.encoders.require_room()
        if generation.response_format == "url":
            await asyncio.to_thread(service.images.require_room)
        fingerprint = fingerprint_of(self._caller.turn, generation)
        record = await service.quarantine.clear(
            self._suspect, fingerprint, asked_text(self._specs[0])
        )
        request = DrawRequest(
            id=self.context.id,
            specs=self._specs,
            arrived_at=self._since,
            key=self._caller.turn,
            fingerprint=fingerprint,
            priority=self._priority(),
            deadline=self._deadline(),
            partial_images=generation.partial_images,
            exclusive=record.strikes > 0,
            patience=record.patience,
            watched=generation.stream,
        )
        self._ticket = service.engine.submit(request, self._encode)
        # From here on the header is as good as sent: another worker can no longer have it.
        self._ticket.keep = generation.stream
        self.context.rest()  # until its first picture is drawn

    def _priority(self) -> Priority:
        key = self._caller.key
        of_key = wire.PRIORITIES["interactive" if key is None else key.priority]
        return max(self._generation.priority, of_key)

    def _deadline(self) -> float | None:
        timeout_s = self._generation.timeout_s
        return None if timeout_s is None else self._since + timeout_s

    def end(self) -> None:
        """Stop drawing, if there is anything left to draw, and give back what the key holds."""
        if self._ticket is not None:
            self._ticket.cancel()
        self._note_left()
        self._service.resume_tokens.free(self._place)
        if self._hold is not None:
            self._hold.give_back()

    async def answer(self, request: Request) -> Response:
        """All pictures in one JSON answer."""
        await self.admit()
        try:
            return await self._answer(request)
        except asyncio.CancelledError:
            self._note_left()
            raise
        finally:
            await self._release()

    async def _answer(self, request: Request) -> Response:
        finished = await self._all()
        items = [await self._item(request, one) for one in finished]
        timings = self._account(finished)
        content = {
            "created": int(time.time()),
            "background": "opaque",
            "output_format": self._generation.output_format,
            "size": self._generation.size,
        }
        body = b'%b,"data":[%b]}' % (answers.dumps(content)[:-1], b",".join(items))
        headers = {f"X-{name}": str(value) for name, value in timings.items()}
        replies, name = self._service.replies, None
        if replies.takes(body):
            name = await asyncio.to_thread(replies.save, self.context.id, body)
        if name is not None:
            headers["X-Accel-Redirect"] = REPLIES_LOCATION + name
        content_sent = body if name is None else b""
        self._count(finished, done_after_s=timings["Queue-Ms"] / 1000)
        return Response(content_sent, media_type="application/json", headers=headers)

    async def _all(self) -> list[Finished]:
        """Every picture in order. Encoding one overlaps the drawing of the next."""
        if len(self._specs) == 1:
            return [await self._only()]
        finished: dict[int, Finished] = {}
        async with self._drawing() as events:
            async for event in events:
                if isinstance(event, Finished):
                    finished[event.image_index] = self._noted(event)
        return [finished[k] for k in range(len(self._specs))]

    async def _only(self) -> Finished:
        """The one picture of most requests, without looking at each event."""
        assert self._ticket is not None, "admit comes first"
        try:
            return self._noted(cast(Finished, (await self._ticket.result())[0]))
        finally:
            self._ticket.cancel()

    @asynccontextmanager
    async def _drawing(self) -> AsyncIterator[AsyncIterator[Event]]:
        """The engine's events. Whoever stops listening stops the drawing."""
        assert self._ticket is not None, "admit comes first"
        try:
            async with aclosing(self._ticket.events()) as events:
                yield events
        finally:
            self._ticket.cancel()

    def _encode(self, drawn: Drawn, ticket: Ticket) -> None:
        """From the thread that draws straight to an encoder's: the event loop hears of a picture
        when its file is there."""
        began = time.monotonic()
        self._service.encoders.begin(lambda: self._deliver(drawn, ticket, began))

    def _deliver(self, drawn: Drawn, ticket: Ticket, began: float) -> None:
        handling = self._suspect.handling
        with self._service.apart if handling.struck else nullcontext():
            handling.resume()
            try:
                self._encoded(drawn, ticket, began)
            finally:
                handling.pause()

    def _encoded(self, drawn: Drawn, ticket: Ticket, began: float) -> None:
        try:
            picture = self._service.encoders.encoded(
                drawn.pixels,
                self._generation.output_format,
                self._generation.quality,
                parameters_text(drawn.spec, self._service.info.id),
                self._image_id(drawn),
                self._generation.response_format == "b64_json",
            )
        except Exception as error:
            log.failure("a picture cannot be encoded", error, request_id=self.context.id)
            ticket.fail(DrawingFailed("The picture was drawn and could not be encoded."))
            return
        encode_s = time.monotonic() - began
        told = {**vars(drawn), "pixels": NO_PIXELS}
        ticket.deliver(Finished(**told, picture=picture, encode_s=encode_s))

    def _image_id(self, drawn: Drawn) -> str:
        return f"{self.context.id}-{drawn.image_index}"

    def _noted(self, one: Finished) -> Finished:
        """``one``, once it is counted, written down and on its way into the gallery."""
        if self._generation.response_format == "b64_json":
            self._keep(one, one.picture, one.picture.data)
        pixels, seconds = one.spec.width * one.spec.height, one.inference_ms / 1000
        self._service.metrics.drew(pixels, seconds, self._generation.output_format, one.encode_s)
        self._unfinished.pop(one.image_index, None)
        self._note(one.image_index, "drew")
        return one

    def _note_left(self) -> None:
        """Write down what was asked for and seen, though nobody waited for all of it."""
        unfinished, self._unfinished = self._unfinished, {}
        for index, previews in unfinished.items() if self._ticket is not None else ():
            self._note(index, "left", previews)

    def _note(self, index: int, event: str, previews: int = 0) -> None:
        entry = audit.Entry(
            at=time.time(),
            image=f"{self.context.id}-{index}",
            owner=self._caller.owner,
            name=self._caller.name,
            client=self.context.key,
            model=self._service.info.id,
            spec=self._specs[index],
            event=event,
            previews=previews,
        )
        self._service.audit.drew(entry)

    async def _item(self, request: Request, one: Finished) -> bytes:
        fields = {"seed": one.spec.seed}
        if self._generation.response_format == "b64_json":
            return answers.with_b64(fields, one.picture.b64)
        name = self._stored(one, one.picture).name
        await asyncio.to_thread(self._service.images.save, name, one.picture.data)
        self._keep(one, one.picture, None)
        return answers.dumps({**fields, "url": files.link(request, self._service, name)})

    def _keep(self, drawn: Drawn, picture: Picture, data: bytes | None) -> None:
        if self._generation.store and self._service.settings.gallery:
            self._service.gallery_writer.keep(self._stored(drawn, picture), data)

    def _stored(self, drawn: Drawn, picture: Picture) -> StoredImage:
        return StoredImage.of(
            drawn.spec,
            id=f"{self.context.id}-{drawn.image_index}",
            owner=self._caller.owner,
            created_at=self.context.arrived_at,
            model=self._service.info.id,
            format=self._generation.output_format,
            bytes=len(picture.data),
        )

    def _account(self, drawn: Sequence[Drawn]) -> dict[str, int]:
        """Times of the whole request, for headers, log and metrics."""
        queue_ms = min(one.queue_ms for one in drawn)
        done_ms = max(one.queue_ms + one.inference_ms for one in drawn)
        timings = {
            "Queue-Ms": round(queue_ms),
            "Inference-Ms": round(done_ms - queue_ms),
            "Batch-Size": max(one.batch_size for one in drawn),
        }
        self._service.metrics.queued(queue_ms / 1000)
        for name, value in timings.items():
            self.context.notes[name.lower().replace("-", "_")] = value
        return timings

    @contextmanager
    def counted(self) -> Iterator[None]:
        """Whatever ends what is inside with an error is counted as a refusal or a failure."""
        try:
            yield
        except Exception as error:
            outcome = outcome_of(error)
            if outcome is not None:
                self._service.ledger.record(self._entry(usage.REQUEST, outcome))
            raise

    def _count(self, drawn: Sequence[Drawn], *, done_after_s: float | None = None) -> None:
        """Count pictures that are handed out now, and with the last of them the request, which
        waited ``done_after_s``."""
        assert self._hold is not None, "admit comes first"
        self._hold.drawn += len(drawn)
        entries = [self._entry(one.image_index, "image", drawn=one) for one in drawn]
        if done_after_s is not None:
            entries.append(self._entry(usage.REQUEST, "done", queue_s=done_after_s))
        self._service.ledger.record(*entries)

    def _entry(
        self, index: int, outcome: Outcome, *, drawn: Drawn | None = None, queue_s: float = 0.0
    ) -> usage.Entry:
        spec = self._specs[0]
        megapixels = 0.0 if drawn is None else spec.width * spec.height / 1e6
        return usage.Entry(
            self.context.id,
            index,
            outcome,
            self.context.arrived_at,
            self._caller.owner,
            self._service.info.id,
            spec.width,
            spec.height,
            megapixels * spec.steps,
            0.0 if drawn is None else round(drawn.device_s, 6),
            queue_s,
        )

    async def events(self) -> AsyncGenerator[bytes, None]:
        """The events of a stream, each as bytes on the wire."""
        with self.counted():
            async for data in self._events():
                yield data

    async def _events(self) -> AsyncGenerator[bytes, None]:
        drawn: list[Drawn] = []
        announced = False
        async with self._drawing() as events:
            async for event in events:
                if not announced and not isinstance(event, Queued):
                    yield self._queued(Queued(0, 0.0))
                announced = True
                data = await self._wire_event(event)
                if isinstance(event, Drawn):
                    drawn.append(event)
                    self._count([event])
                del event  # a preview's pixels must not wait for the next one
                yield data
        timings = self._account(drawn)
        self._count([], done_after_s=timings["Queue-Ms"] / 1000)
        yield sse.event(
            "image_generation.done",
            created=int(time.time()),
            images=len(drawn),
            seeds=[spec.seed for spec in self._specs],
            queue_ms=timings["Queue-Ms"],
            inference_ms=timings["Inference-Ms"],
        )

    async def _wire_event(self, event: Event) -> bytes:
        match event:
            case Queued():
                return self._queued(event)
            case Stepped():
                return sse.event(
                    "image_generation.step",
                    image_index=event.image_index,
                    step=event.step,
                    steps=event.steps,
                    remaining_s=round(event.remaining_s, 3),
                )
            case Partial():
                return await self._partial(event)
            case Finished():
                return self._completed(self._noted(event))
            case Drawn():
                raise AssertionError("every picture is encoded first")

    def _queued(self, event: Queued) -> bytes:
        return sse.event(
            "image_generation.queued",
            request_id=self.context.id,
            seeds=[spec.seed for spec in self._specs],
            position=event.position,
            wait_s=round(event.wait_s, 3),
            resume=self._resume,
        )

    @cached_property
    def _resume(self) -> str:
        """This stream's place, which its client sends with the request if the stream is cut."""
        return self._service.resume_tokens.text(self._since, self._caller.turn, self._specs)

    async def _partial(self, event: Partial) -> bytes:
        picture = await self._service.encoders.encode(
            event.pixels,
            self._generation.output_format,
            self._generation.quality,
            "",
            produce_id="",
        )
        self._unfinished[event.image_index] += 1
        fields = {
            "partial_image_index": event.partial_index,
            "image_index": event.image_index,
        }
        return self._with_picture("image_generation.partial_image", picture, fields)

    def _completed(self, one: Finished) -> bytes:
        fields = {
            "image_index": one.image_index,
            "seed": one.spec.seed,
            "usage": _NO_USAGE,
        }
        return self._with_picture("image_generation.completed", one.picture, fields)

    def _with_picture(self, kind: str, picture: Picture, fields: dict[str, Any]) -> bytes:
        content = {
            "type": kind,
            "created_at": int(time.time()),
            "background": "opaque",
            "output_format": self._generation.output_format,
            "quality": "auto",
            "size": self._generation.size,
            **fields,
        }
        return sse.frame(kind, answers.with_b64(content, picture.b64))


def outcome_of(error: Exception) -> Outcome | None:
    """What the ledger calls it; None: not the end of the request, or its sender's own mistake."""
    match error:
        case LimitReached() | Refused() | Overloaded():
            return "refused"
        case DrawingFailed() | DeadlinePassed() | StorageFailed():
            return "failed"
        case ZimageError() | HTTPException() | ClientGone():
            return None
    return "failed"


def default_seed(request_id: str) -> int:
    """The seed of a request that names none: a replay, with the same id, draws the same."""
    return int(request_id[:8], 16)


def fingerprint_of(key: str, generation: wire.Generation) -> str:
    """Stands for who asks and for what: the same for a resubmission under another id."""
    text = b"%b\n%b" % (key.encode(), generation.normalised())
    return hashlib.blake2b(text, digest_size=16).hexdigest()


def openapi(service: Service) -> Part:
    item = {
        "type": "object",
        "required": ["seed"],
        "properties": {
            "seed": {"type": "integer"},
            "b64_json": {"type": "string"},
            "url": {"type": "string", "description": "Works for a while, without a key."},
        },
    }
    drawn = {
        "type": "object",
        "required": ["created", "data", "output_format", "size"],
        "properties": {
            "created": {"type": "integer"},
            "background": {"type": "string"},
            "output_format": {"enum": list(wire.FORMATS)},
            "size": {"type": "string"},
            "data": {"type": "array", "items": item},
        },
    }
    post = operation(
        "Draw pictures; with `stream` as server-sent events.",
        {200: {"application/json": ref("Drawn"), "text/event-stream": ref("Event")}},
        errors=(404, 422, 507),
        body=ref("Generation"),
    )
    schemas = {"Drawn": drawn, "Generation": wire.schema(service.settings, service.info)}
    return Part({"/v1/images/generations": {"post": post}}, schemas)
