import time
from dataclasses import replace

import pytest

from tests.worker.conftest import ready, serving
from worker.coordination.suspect import Suspect
from worker.engine.request import Priority
from worker.errors import Unavailable
from worker.generation.caller import Caller
from worker.generation.drawing import Drawing
from worker.generation.request import Generation, Output
from worker.lifecycle import Lifecycle
from worker.settings import Settings
from worker.storage.keys import EVERYONE
from worker.types import DrawSpec, Parameters

pytestmark = pytest.mark.anyio

GENERATION = Generation(
    id="a" * 32,
    arrived_at=time.time(),
    caller=Caller(EVERYONE, "local", EVERYONE),
    client="local",
    specs=tuple(DrawSpec(prompt, seed, Parameters(64, 64, 1)) for seed, prompt in enumerate("ab")),
    fingerprint="f",
    output=Output("png", None, inline=True, gallery=False),
    priority=Priority.INTERACTIVE,
)


def drawing(service: Lifecycle, generation: Generation = GENERATION) -> Drawing:
    generation = generation._replace(arrived_at=time.time())
    return Drawing(
        generation, Suspect(generation.id, service.components.in_flight), service.model.drawing
    )


async def test_pictures_come_in_order_and_inline_ones_are_not_stored(settings: Settings) -> None:
    async with serving(settings) as (service, _):
        await ready(service)
        drawn = await drawing(service).draw()
    assert [(one.spec.prompt, stored) for one, stored in drawn] == [("a", None), ("b", None)]
    assert all(one.picture.data.startswith(b"\x89PNG") and one.picture.b64 for one, _ in drawn)


async def test_others_are_on_the_disk_before_anybody_hears_of_them(settings: Settings) -> None:
    output = replace(GENERATION.output, inline=False)
    async with serving(settings) as (service, _):
        await ready(service)
        drawn = await drawing(service, GENERATION._replace(output=output)).draw()
        for one, stored in drawn:
            assert stored is not None
            assert service.components.images.read(stored.name) == one.picture.data


async def test_what_ended_before_it_was_admitted_is_not_drawn(settings: Settings) -> None:
    async with serving(settings) as (service, _):
        await ready(service)
        ended = drawing(service)
        ended.end()
        before = service.model.engine.state().totals["pictures_drawn"]
        with pytest.raises(Unavailable):
            await ended.draw()
        await drawing(service).draw()
        assert service.model.engine.state().totals["pictures_drawn"] == before + 2
