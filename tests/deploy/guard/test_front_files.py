"""What a front's guard makes of its files where they are not as they should be; nothing runs."""

import asyncio
import contextlib
import json
import time

import pytest

from deploy import links
from deploy.guard.front import Front
from deploy.guard.gate import make_closed_socket
from deploy.guard.journal import Journal
from deploy.guard.left_behind import LeftBehind
from deploy.guard.programs import Programs
from deploy.guard.settings import FrontSettings, GuardSettings
from deploy.guard.supervisor import Exit, Program
from deploy.guard.troubles import Troubles
from deploy.layout import Layout
from deploy.links import Link
from tests.deploy.processes import PATIENCE_S


def front_of(layout: Layout) -> Front:
    rules = FrontSettings(links=("h1", "h2", "h3"))
    paths = {"var_dir": layout.var_dir, "run_dir": layout.run_dir}
    settings = GuardSettings(**paths, workers=(), front=rules)
    journal = Journal()
    troubles = Troubles(journal)
    left_behind = LeftBehind(layout, journal, troubles)
    programs = Programs((), settings, layout, journal, left_behind)
    make_closed_socket(layout.closed_socket)
    return Front(settings, rules, layout, journal, troubles, programs)


def test_a_link_that_cannot_be_taken_up_keeps_no_other_from_it(layout: Layout) -> None:
    held = {"h1": Link("a", "no address", 1), "h2": Link("b", "10.0.0.8:7862", 4)}
    links.write(layout, held)
    front = front_of(layout)
    front.prepare()
    assert [(watch.link, watch.row.id) for watch in front.watches] == [("h2", "b")]
    assert front.wanted_programs == {"link-h2"}
    assert layout.gate("h1").readlink() == layout.closed_socket


class Told:
    """A supervisor that notes what it is told."""

    def __init__(self, **states: str) -> None:
        self._states = states
        self.words: list[tuple[str, str]] = []

    def programs(self) -> dict[str, Program]:
        names = {f"link-{link}": state for link, state in self._states.items()}
        return {name: Program(name, state, 1, 0.0, "") for name, state in names.items()}

    def exits(self) -> list[Exit]:
        return []

    def start(self, program: Program) -> None:
        self.words.append(("start", program.name))

    def stop(self, program: Program) -> None:
        # As supervisor: whoever stops already is no program to be stopped.
        assert program.state != "STOPPING"
        self.words.append(("stop", program.name))


def test_links_of_hosts_run_and_all_others_do_not(
    layout: Layout, monkeypatch: pytest.MonkeyPatch
) -> None:
    told = Told(h1="STOPPED", h2="RUNNING", h3="STOPPING")
    monkeypatch.setattr("deploy.guard.programs.Supervisor", lambda socket: told)
    links.write(layout, {"h1": Link("a", "10.0.0.7:7862", 1)})
    front = front_of(layout)
    front.prepare()

    async def follow() -> None:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(1.0):
                await front.programs.follow()

    asyncio.run(follow())
    assert set(told.words) == {("start", "link-h1"), ("stop", "link-h2")}


def test_a_host_whose_link_could_not_be_written_is_tried_again(layout: Layout) -> None:
    row = {"id": "a", "address": "10.0.0.7:7862", "role": "host", "workers": 1, "wanted": "in"}
    now = time.time()
    hosts = {"at": now, "cluster": "studio", "hosts": [{**row, "at": now}]}
    layout.hosts_json.write_text(json.dumps(hosts))
    front = front_of(layout)
    front.prepare()
    in_the_way = layout.link_conf("h1")
    in_the_way.mkdir()

    async def follow() -> None:
        following = asyncio.create_task(front.loops["following the hosts"]())
        await asyncio.sleep(0)  # it has tried once
        assert front.watches == []
        in_the_way.rmdir()
        async with asyncio.timeout(PATIENCE_S):
            while not front.watches:  # noqa: ASYNC110 — nothing tells it
                await asyncio.sleep(0.05)
        following.cancel()

    asyncio.run(follow())
    assert layout.link_conf("h1").exists()
