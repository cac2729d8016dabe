import asyncio
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest

from tests.worker.engine.fakes import request, spec
from worker.engine.request import Drawn, Event, Partial, Queued, Stepped
from worker.engine.ticket import Ticket
from worker.errors import DrawingFailed, Refused

pytestmark = pytest.mark.anyio
PIXELS = np.zeros((1, 1, 3), np.uint8)


def ticket_of(*prompts: str, cancel: Callable[[], None] = lambda: None) -> Ticket:
    return Ticket(request(*prompts), cancel)


def drawn(image_index: int) -> Drawn:
    return Drawn(image_index, spec(), PIXELS, 0.0, 0.0, 1)


async def collect(ticket: Ticket) -> list[Event]:
    return [event async for event in ticket.events()]


async def test_a_slow_reader_finds_the_latest_only() -> None:
    ticket = ticket_of("a")
    for step in range(1, 100):
        ticket.post(Queued(step, 1.0))
        ticket.post(Stepped(0, step, 99, 1.0))
    ticket.post(drawn(0))
    assert [type(event) for event in await collect(ticket)] == [Queued, Stepped, Drawn]


async def test_what_comes_while_the_reader_is_busy_is_found() -> None:
    ticket, read = ticket_of("a"), []
    ticket.post(Queued(1, 1.0))
    async with asyncio.timeout(5):
        async for event in ticket.events():
            read.append(type(event))
            if isinstance(event, Queued):
                ticket.post(drawn(0))
                await asyncio.sleep(0.05)  # the wake-up comes now
    assert read == [Queued, Drawn]


async def test_coalesced_steps_keep_their_place_after_previews() -> None:
    ticket = ticket_of("a")
    for event in (Stepped(0, 1, 4, 1.0), Partial(0, 0, PIXELS), Stepped(0, 3, 4, 1.0), drawn(0)):
        ticket.post(event)
    assert [type(event) for event in await collect(ticket)] == [Partial, Stepped, Drawn]


async def test_previews_and_pictures_are_not_coalesced() -> None:
    ticket = ticket_of("a", "b")
    for event in (Partial(0, 0, PIXELS), Partial(0, 1, PIXELS), drawn(1), drawn(0)):
        ticket.post(event)
    assert len(await collect(ticket)) == 4


async def test_steps_of_each_picture_are_told_apart() -> None:
    ticket = ticket_of("a", "b")
    for event in (Stepped(0, 1, 4, 1.0), Stepped(1, 1, 4, 1.0), drawn(0), drawn(1)):
        ticket.post(event)
    assert len(await collect(ticket)) == 4


async def test_result_is_ordered_by_image_index() -> None:
    ticket = ticket_of("a", "b")
    ticket.post(drawn(1))
    ticket.post(drawn(0))
    assert [each.image_index for each in await ticket.result()] == [0, 1]


async def test_first_end_wins_and_nothing_follows_it() -> None:
    ticket = ticket_of("a")
    ticket.fail(Refused("first"))
    ticket.fail(DrawingFailed("second"))
    ticket.post(drawn(0))
    with pytest.raises(Refused, match="first"):
        await ticket.result()
    with pytest.raises(Refused, match="first"):
        await collect(ticket)


async def test_nothing_is_read_that_was_posted_after_the_end() -> None:
    ticket = ticket_of("a")
    ticket.post(drawn(0))
    ticket.post(Stepped(0, 4, 4, 0.0))
    assert await collect(ticket) == [drawn(0)]


async def test_events_before_a_failure_are_still_read() -> None:
    ticket = ticket_of("a", "b")
    ticket.post(drawn(0))
    ticket.fail(Refused("no"))
    events = ticket.events()
    assert await anext(events) == drawn(0)
    with pytest.raises(Refused):
        await anext(events)


async def test_posting_from_a_thread_wakes_the_reader() -> None:
    ticket = ticket_of("a")
    reader = asyncio.create_task(collect(ticket))
    await asyncio.sleep(0)
    await asyncio.to_thread(ticket.post, drawn(0))
    assert await asyncio.wait_for(reader, 30) == [drawn(0)]


def test_posting_after_the_loop_is_closed_is_harmless() -> None:
    async def make() -> Ticket:
        return ticket_of("a")

    ticket = asyncio.run(make())
    ticket.fail(Refused("nobody hears this"))


async def test_pictures_are_finished_elsewhere_before_the_reader_hears_of_them() -> None:
    waiting: list[Drawn] = []
    ticket = Ticket(request("a", "b"), lambda: None, lambda event, _: waiting.append(event))
    for k in (0, 1):
        ticket.post(drawn(k))
    result = asyncio.create_task(ticket.result())
    await asyncio.sleep(0.01)
    assert not result.done()
    for event in reversed(waiting):
        ticket.deliver(replace(event, batch_size=9))
    assert [(each.image_index, each.batch_size) for each in await result] == [(0, 9), (1, 9)]


async def test_picture_that_cannot_be_finished_fails_its_request() -> None:
    gone = DrawingFailed("no")
    ticket = Ticket(request("a", "b"), lambda: None, lambda _, ticket: ticket.fail(gone))
    ticket.post(drawn(0))
    with pytest.raises(DrawingFailed):
        await ticket.result()
    ticket.deliver(drawn(1))
    with pytest.raises(DrawingFailed):
        await ticket.result()
