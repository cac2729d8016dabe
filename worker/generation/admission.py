"""Whether a generation is drawn here, and what it holds while it is."""

import asyncio

from worker import log
from worker.coordination import quota
from worker.coordination.quota import Hold
from worker.coordination.resume_tokens import ResumeToken
from worker.coordination.strikes import Record
from worker.coordination.suspect import Suspect
from worker.engine import Ticket
from worker.engine.request import DrawRequest
from worker.engine.ticket import Finish
from worker.errors import Unavailable
from worker.generation.components import Components
from worker.generation.request import Generation, priority_of


class Admission:
    """A part of what the key has left, and a place in the queue. ``notes`` are for the log line."""

    def __init__(
        self,
        generation: Generation,
        suspect: Suspect,
        components: Components,
        notes: dict[str, log.Value],
    ) -> None:
        self._generation = generation
        self._suspect = suspect
        self._components = components
        self._notes = notes
        self._since = generation.arrived_at  # to the queue
        self.resume_token = ""
        """This stream's place, which its client sends with the request if the stream is cut."""
        self._token: ResumeToken | None = None
        self._hold: Hold | None = None
        self._given_back = False

    async def take(self, finish: Finish) -> Ticket:
        """The ticket, with ``finish`` as in ``Engine.submit``; raises why there is none."""
        try:
            return await self._take(finish)
        except BaseException:
            await self.release()
            raise

    async def _take(self, finish: Finish) -> Ticket:
        generation, components = self._generation, self._components
        key, specs = generation.caller.key, generation.specs
        quota.require_size(key, specs[0].parameters)
        quota.require_loras(key, specs[0].parameters)
        if generation.resume:
            self._resume(generation.resume)
        self._hold = await components.quotas.hold(key, generation.id, self._since, len(specs))
        components.encoders.require_room()
        if not generation.output.inline:
            await components.image_threads.do(components.images.require_room)
        quarantine = components.quarantine
        clear = quarantine.clear if generation.item is None else quarantine.clear_at_once
        record = await clear(self._suspect, generation.fingerprint, specs[0])
        if self._given_back:
            raise Unavailable("nobody waits for this any more")
        return self._submit(record, finish)

    def _resume(self, text: str) -> None:
        """Go on in the place of the stream that was cut. A place that is no good is left: the
        request is drawn all the same, as one that came now."""
        now, turn = self._generation.arrived_at, self._generation.caller.turn
        self._token = self._components.resume_tokens.take(text, turn, self._generation.specs, now)
        if self._token is None:
            self._notes["resume"] = "ignored"
        else:
            # That of the first stream.
            self._since = self._token.arrived_at
            self._notes["resumed_after_s"] = round(now - self._since, 3)

    def _submit(self, record: Record, finish: Finish) -> Ticket:
        generation = self._generation
        timeout_s = generation.timeout_s
        request = DrawRequest(
            id=generation.id,
            specs=generation.drawn_specs,
            arrived_at=self._since,
            key=generation.caller.turn,
            fingerprint=generation.fingerprint,
            priority=priority_of(generation.caller.key, generation.priority),
            deadline=None if timeout_s is None else self._since + timeout_s,
            partial_images=generation.partial_images,
            exclusive=record.strikes > 0,
            patience=record.patience,
            watched=generation.stream,
            followed=generation.item is not None,
        )
        ticket = self._components.engine.submit(request, finish)
        # From here on the header is as good as sent: another worker can no longer have it.
        ticket.keep = generation.stream
        self._suspect.rest()  # until its first picture is drawn
        if generation.stream:
            turn, tokens = generation.caller.turn, self._components.resume_tokens
            self.resume_token = tokens.text(self._since, turn, generation.specs)
        return ticket

    def drew(self, pictures: int) -> None:
        """So many more stay counted in the key's day."""
        assert self._hold is not None, "take comes first"
        self._hold.drawn += pictures

    def give_back(self) -> "asyncio.Future[None] | None":
        """Let others have the slot now, and what was not drawn of the day soon: the future."""
        self._given_back = True
        token, self._token = self._token, None
        self._components.resume_tokens.free(token)
        return None if self._hold is None else self._hold.give_back()

    async def release(self) -> None:
        """``give_back``, and wait for it."""
        settled = self.give_back()
        if settled is not None:
            await asyncio.shield(settled)
