"""A drawing as server-sent events."""

import time
from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Any

from worker.api import answers, sse
from worker.api.schemas.wire import Generation
from worker.engine.request import Queued, Stepped
from worker.generation.drawing import Drawing, Told
from worker.generation.encoding import Finished, Preview
from worker.generation.imaging import Picture


async def events(drawing: Drawing, asked: Generation) -> AsyncGenerator[bytes, None]:
    """What happens to an admitted ``drawing``, each event as bytes on the wire."""
    seeds = [spec.seed for spec in drawing.generation.specs]
    images, announced = 0, False
    async with aclosing(drawing.events()) as told:
        async for event in told:
            if not announced and not isinstance(event, Queued):
                yield _queued(Queued(0, 0.0), drawing, asked, seeds)
            announced = True
            images += isinstance(event, Finished)
            data = _wire_event(event, drawing, asked, seeds)
            del event  # its file must not wait for the next one
            yield data
    yield sse.event(
        f"{asked.events}.done",
        created=int(time.time()),
        images=images,
        seeds=seeds,
        queue_ms=drawing.timings.queue_ms,
        inference_ms=drawing.timings.inference_ms,
    )


def _wire_event(event: Told, drawing: Drawing, asked: Generation, seeds: list[int]) -> bytes:
    match event:
        case Queued():
            return _queued(event, drawing, asked, seeds)
        case Stepped():
            return sse.event(
                f"{asked.events}.step",
                image_index=event.image_index,
                step=event.step,
                steps=event.steps,
                remaining_s=round(event.remaining_s, 3),
            )
        case Preview():
            kind = f"{asked.events}.partial_image"
            fields = {
                "partial_image_index": event.partial_index,
                "image_index": event.image_index,
            }
            return _with_picture(kind, event.picture, asked, fields)
        case Finished():
            kind = f"{asked.events}.completed"
            done = {
                "image_index": event.image_index,
                "seed": event.spec.seed,
                "usage": answers.NO_USAGE,
            }
            return _with_picture(kind, event.picture, asked, done)


def _queued(event: Queued, drawing: Drawing, asked: Generation, seeds: list[int]) -> bytes:
    return sse.event(
        f"{asked.events}.queued",
        request_id=drawing.generation.id,
        seeds=seeds,
        position=event.position,
        wait_s=round(event.wait_s, 3),
        picture_s=event.picture_s,
        resume=drawing.resume_token,
    )


def _with_picture(kind: str, picture: Picture, asked: Generation, fields: dict[str, Any]) -> bytes:
    content = {
        "type": kind,
        "created_at": int(time.time()),
        "background": "opaque",
        "output_format": asked.output_format,
        "quality": "auto",
        "size": asked.parameters.size_text,
        **fields,
    }
    return sse.frame(kind, *answers.with_b64(content, picture.b64))
