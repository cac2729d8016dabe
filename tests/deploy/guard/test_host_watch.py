"""What a front's guard makes of a host's answers, and of none."""

import asyncio
import ssl

import pytest

from deploy.guard.host_watch import HostRow, HostWatch
from deploy.guard.probe import Answer, NoAnswer
from deploy.layout import Layout

TLS = ssl.create_default_context()


class Host:
    """In place of the connection to it."""

    def __init__(self, *answers: bool) -> None:
        self._answers = iter(answers)

    async def ask(self, address: str, url: str, tls: ssl.SSLContext, timeout_s: float) -> Answer:
        if next(self._answers):
            return Answer(200)
        raise NoAnswer


@pytest.mark.parametrize(
    ("misses", "silent_s", "abandoned"),
    [(6, 11.0, True), (6, 9.0, False), (1, 59.0, False)],
    ids=["it may have booted", "too soon for a boot", "the guard stood still"],
)
def test_what_was_on_its_way_to_a_host_that_was_away_is_sent_again(
    layout: Layout, misses: int, silent_s: float, abandoned: bool
) -> None:
    watch = HostWatch("h1", HostRow("a", "127.0.0.1:1", 2), layout, 0.2)
    watch._connection = Host(True, *[False] * misses, True, True)  # type: ignore[assignment]

    async def ask(times: int) -> None:
        for _ in range(times):
            await watch._ask(TLS)

    asyncio.run(ask(1 + misses))
    watch.forgive(-silent_s)
    asyncio.run(ask(1))
    assert bool(watch.abandoned) == abandoned
    watch.abandoned = ""
    asyncio.run(ask(1))
    assert not watch.abandoned
