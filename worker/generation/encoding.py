"""Pixels become files, in the encoders' threads."""

import time
from contextlib import nullcontext
from dataclasses import dataclass

from worker import log
from worker.coordination.suspect import Suspect
from worker.engine import Ticket
from worker.engine.request import NO_PIXELS, Drawn, Partial
from worker.errors import DrawingFailed
from worker.generation.components import Components
from worker.generation.imaging import Picture, parameters_text
from worker.generation.request import Generation


@dataclass(frozen=True, kw_only=True)
class Finished(Drawn):
    """A drawn picture and its file, which took ``encode_s``, waiting included."""

    picture: Picture
    encode_s: float


@dataclass(frozen=True)
class Preview:
    """Preview number ``partial_index`` of picture ``image_index``, as a file."""

    image_index: int
    partial_index: int
    picture: Picture


class Encoding:
    """Of the pictures of one generation, which stands in the table of what is being handled
    meanwhile."""

    def __init__(self, generation: Generation, suspect: Suspect, components: Components) -> None:
        self._generation = generation
        self._suspect = suspect
        self._encoders = components.encoders
        self._apart = components.quarantine.apart
        self._model = components.model

    def begin(self, drawn: Drawn, ticket: Ticket) -> None:
        """From the thread that draws straight to an encoder's: the event loop hears of a picture
        when its file is there."""
        began = time.monotonic()
        self._encoders.begin(lambda: self._deliver(drawn, ticket, began))

    def _deliver(self, drawn: Drawn, ticket: Ticket, began: float) -> None:
        handling = self._suspect.handling
        with self._apart if handling.struck else nullcontext():
            handling.resume()
            try:
                self._finish(drawn, ticket, began)
            finally:
                handling.pause()

    def _finish(self, drawn: Drawn, ticket: Ticket, began: float) -> None:
        output = self._generation.output
        tiling = self._generation.tiling
        try:
            drawn = drawn if tiling is None else tiling.take(drawn)
            if drawn.pixels is NO_PIXELS:
                ticket.deliver(drawn)  # a tile
                return
            source = drawn.spec.source
            picture = self._encoders.encoded(
                drawn.pixels if source is None else source.pasted(drawn.pixels),
                output.format,
                output.quality,
                parameters_text(drawn.spec, self._model),
                self._generation.image_id(drawn.image_index),
                output.inline,
            )
        except Exception as error:
            log.failure("a picture cannot be encoded", error, request_id=self._generation.id)
            ticket.fail(DrawingFailed("The picture was drawn and could not be encoded."))
            return
        encode_s = time.monotonic() - began
        told = {**vars(drawn), "pixels": NO_PIXELS}
        ticket.deliver(Finished(**told, picture=picture, encode_s=encode_s))

    async def preview(self, partial: Partial) -> Preview:
        """``partial`` as a file."""
        output = self._generation.output
        picture = await self._encoders.encode(
            partial.pixels, output.format, output.quality, "", produce_id=""
        )
        return Preview(partial.image_index, partial.partial_index, picture)
