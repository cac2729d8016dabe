import pytest

from loadtest.bench.waits import watch
from loadtest.drawing import drawing, request, spec

FAST = "synthetic:step_ms=1"


@pytest.mark.anyio
async def test_what_a_request_was_told_is_kept_until_it_begins() -> None:
    async with drawing(FAST, max_batch=1) as engine:
        ahead = engine.submit(request("a key", spec(steps=20)))
        told = await watch(engine, request("another key", spec(steps=2)))
        await ahead.result()
    assert told.began is not None
    assert told.waits, "it waited"
    assert len(told.errors()) == len(told.waits)
