"""Two hosts and a front on this machine, with a primary, its standby and a real store: one host is
killed, the other one, which is a front as well, falls silent, the primary is lost and its standby
promoted, while clients draw. ``loadtest/hosts`` is the long version."""

import asyncio
import contextlib
import json
import os
import re
import signal
import ssl
import subprocess
import tempfile
import time
from collections.abc import AsyncIterator, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest

from deploy.cluster import certificates
from deploy.config import load
from deploy.host import processes
from deploy.rendering.plan import SPARE_LINKS
from deploy.supervision.supervise import ProgramState, Supervisor
from loadtest.faults import process_ids
from loadtest.traffic import Traffic, pixels_of
from loadtest.waiting import until as blocking_until
from loadtest.waiting import until_async as until
from tests.cluster.conftest import RunningCell, edit, ended
from tests.cluster.test_replay import draw, events
from tests.deploy.certificates import Authority
from tests.deploy.processes import ask
from tests.object_store import ObjectStore
from tests.ports import free_port
from tests.postgres import Pair, Server, running_pair

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(300), pytest.mark.long]
UNSAFE = ("fsync=off", "full_page_writes=off", "autovacuum=off")
"""No machine loses its power here; what is acknowledged is with the standby."""
QUICK = "synthetic:step_ms=40"


@dataclass
class Platform:
    database: Pair
    front: RunningCell
    hosts: dict[str, RunningCell]

    def host(self, name: str) -> dict[str, Any]:
        """As the front's guard sees it."""
        found = (host for host in self.front.state().get("hosts", ()) if host["name"] == name)
        return next(found, {"state": "", "open": False})

    def all_in(self) -> bool:
        return all(self.host(name)["open"] for name in self.hosts)

    def drawn_by(self, request_id: str) -> str:
        """Which host answered, by the front's log, where a line stands once the answer is sent."""
        log = self.front.layout.access_log
        blocking_until(lambda: request_id in log.read_text(), 10, "logged")
        line = next(line for line in log.read_text().splitlines() if request_id in line)
        link = re.findall(r"/(h\d+)(?:-read)?\.sock", line)[-1]
        hosts = self.front.state()["hosts"]
        return str(next(host["name"] for host in hosts if host["link"] == link))

    def events(self, name: str, since: float) -> list[str]:
        told = self.front.state()["events"]
        return [e["what"] for e in told if e["worker"] == name and e["at"] >= since]


@pytest.fixture(scope="module")
def platform(object_store: ObjectStore) -> Iterator[Platform]:
    authority = Authority()
    with running_pair(*UNSAFE) as database, contextlib.ExitStack() as running:

        def machine(name: str, role: str) -> RunningCell:
            objects = object_store.objects("hosts/front").model_dump()
            lines = [f'[database]\nurl = "{database.url}"', "[objects]"]
            lines += [f"{key} = {value!r}" for key, value in objects.items()]
            lines += [f'[cluster]\nname = "studio"\nhost = "{name}"\nrole = "{role}"']
            lines += [f'address = "127.0.0.1:{free_port()}"'] if role != "front" else []
            folder = Path(tempfile.mkdtemp(prefix="zc-", dir="/tmp"))
            cell = RunningCell(folder, name=name, workers=1, model=QUICK, more="\n".join(lines))
            running.enter_context(ended(cell, folder))
            authority.equip(cell.layout, *certificates.roles_of(role))
            return cell

        front, hosts = machine("front", "front"), {"a": machine("a", "both")}
        hosts["b"] = machine("b", "host")
        with ThreadPoolExecutor() as pool:  # as machines start, and not one after the other
            for done in pool.map(up, (front, *hosts.values())):
                assert done.returncode == 0, done.stdout + done.stderr
        yield Platform(database, front, hosts)


def up(cell: RunningCell) -> subprocess.CompletedProcess[str]:
    return cell.zimage("up", "--no-draw", timeout_s=240)


async def wait_all_in(platform: Platform) -> None:
    await until(platform.all_in, 60, "both hosts in")


def test_requests_are_drawn_by_hosts_and_keep_what_they_are(platform: Platform) -> None:
    async def scenario() -> None:
        await wait_all_in(platform)
        body = {"prompt": "a fox", "size": "64x64", "response_format": "url"}
        async with httpx.AsyncClient(base_url=platform.front.url, timeout=60) as client:
            answers = [await client.post("/v1/images/generations", json=body) for _ in range(4)]
            assert [answer.status_code for answer in answers] == [200] * 4
            ids = [answer.headers["X-Request-ID"] for answer in answers]
            assert {platform.drawn_by(id) for id in ids} == {"a", "b"}
            for host in platform.hosts.values():  # one id in all logs
                both = host.layout.host_access_log
                log = (both if both.exists() else host.layout.access_log).read_text()
                assert any(id in log for id in ids)
            for answer in answers:  # signed by one host, and looked at by another
                for _ in platform.hosts:
                    picture = await client.get(answer.json()["data"][0]["url"])
                    assert picture.headers["content-type"] == "image/png"
            assert (await client.get("/readyz")).status_code == 200
            assert (await client.get("/v1/models")).status_code == 200

    asyncio.run(scenario())


def test_a_host_can_be_used_directly_or_as_the_front_that_it_is(platform: Platform) -> None:
    for host in platform.hosts.values():
        body = {"prompt": "a fox", "size": "64x64"}
        answer = httpx.post(f"{host.url}/v1/images/generations", json=body, timeout=60)
        assert answer.status_code == 200, answer.text


@contextlib.asynccontextmanager
async def drawing(platform: Platform, prompts: list[str] | None = None) -> AsyncIterator[Traffic]:
    """``prompts``: is filled with all that is asked for."""

    def asked(client: int, turn: int) -> dict[str, Any]:
        prompt = f"client {client} turn {turn} {os.urandom(4).hex()}"
        if prompts is not None:
            prompts.append(prompt)
        return {"size": "256x256", "prompt": prompt}

    async with Traffic(platform.front.url, clients=8, body=asked) as traffic:
        await traffic.until_served(16)
        yield traffic
        await traffic.until_served(16)
    assert traffic.failures == [], platform.front.story()


def test_nothing_is_lost_when_a_host_is_killed(platform: Platform) -> None:
    async def scenario() -> None:
        await wait_all_in(platform)
        b = platform.hosts["b"]
        async with drawing(platform):
            for process in processes.members(b.layout.processes):
                process.send(signal.SIGKILL)
            await until(lambda: not platform.host("b")["open"], 10, "b out")
        b.up()
        await wait_all_in(platform)

    asyncio.run(scenario())


def test_nothing_is_lost_when_a_host_falls_silent(platform: Platform) -> None:
    async def scenario() -> None:
        await wait_all_in(platform)
        a = platform.hosts["a"]
        nginxes = nginx_processes(a)
        since = platform.front.state()["at"]
        try:
            async with drawing(platform) as traffic:
                for pid in nginxes:
                    os.kill(pid, signal.SIGSTOP)
                await until(lambda: platform.host("a")["state"] == "lost", 20, "a lost")
                await traffic.until_served(16)
        finally:
            for pid in nginxes:
                os.kill(pid, signal.SIGCONT)
        [out] = [what for what in platform.events("a", since) if what.startswith("out: ")]
        assert float(re.findall(r"silent for ([\d.]+) s", out)[0]) <= 1.0
        assert any(what.startswith("link ended: ") for what in platform.events("a", since))
        await wait_all_in(platform)

    asyncio.run(scenario())


def test_nothing_is_lost_when_the_primary_is_and_its_standby_takes_over(
    platform: Platform,
) -> None:
    async def scenario() -> None:
        await wait_all_in(platform)
        prompts: list[str] = []
        async with drawing(platform, prompts) as traffic:
            platform.database.lose_the_primary()
            await traffic.until_served(16)
            platform.database.promote()
        standby = platform.database.standby
        await until(lambda: missing(standby, prompts) == set(), 30, "all in the gallery")
        host = platform.hosts["b"]
        await until(lambda: host.zimage("hosts").returncode == 0, 30, "hosts listed")

    asyncio.run(scenario())


def test_membership_that_dies_comes_back_and_nothing_closes(platform: Platform) -> None:
    async def scenario() -> None:
        await wait_all_in(platform)
        front, b = platform.front, platform.hosts["b"]
        since, dead = front.state()["at"], membership(b)
        async with drawing(platform):
            os.kill(dead, signal.SIGKILL)
            await until(lambda: membership(b) not in (0, dead), 20, "another membership")
            began = written_at(front, "b")
            await until(lambda: written_at(front, "b") > began, 30, "the next row of b")
        assert not [what for what in platform.events("b", since) if what.startswith("out")]
        assert platform.host("b")["open"]

    asyncio.run(scenario())


def membership(cell: RunningCell) -> int:
    return Supervisor(cell.layout).states()["membership"].pid


def written_at(front: RunningCell, name: str) -> float:
    """When host ``name`` wrote its row, as the front has last learned."""
    known = json.loads(front.layout.hosts_json.read_bytes())["hosts"]
    return next(float(host["at"]) for host in known if host["id"] == name)


def missing(server: Server, prompts: list[str]) -> set[str]:
    """Those of which no picture is in the gallery."""
    with server.connect() as admin:
        asked = "SELECT prompt FROM images WHERE prompt = ANY(%s)"
        found = admin.execute(asked, (prompts,)).fetchall()
    return set(prompts) - {prompt for (prompt,) in found}


def nginx_processes(cell: RunningCell) -> list[int]:
    """But those of its links."""
    members = processes.members(cell.layout.processes)
    of_links = {p.group for p in members if f"{cell.layout.links_dir}/" in p.command}
    nginxes = (p for p in members if p.command.startswith("nginx: "))
    return [p.pid for p in nginxes if p.group not in of_links]


def test_a_request_is_the_same_picture_on_any_host(platform: Platform) -> None:
    """As a front repeats it: with its id, and without a seed."""
    layout = platform.front.layout
    tls = ssl.create_default_context(cafile=str(layout.authority_certificate))
    tls.check_hostname = False
    tls.load_cert_chain(layout.cluster_certificate("front"), layout.cluster_key("front"))
    headers = {"X-Request-ID": "ab" * 16, "X-Request-Start": f"{time.time() - 5:.3f}"}
    drawn = []
    for host in platform.hosts.values():
        address = load(host.config_path).cluster.address
        with httpx.Client(base_url=f"https://{address}", verify=tls, timeout=60) as client:
            body = {"prompt": "again", "size": "64x64"}
            answer = client.post("/v1/images/generations", json=body, headers=headers)
        assert answer.headers["X-Request-ID"] == "ab" * 16
        drawn.append(answer.json()["data"][0])
    assert drawn[0]["seed"] == drawn[1]["seed"]
    first, second = (pixels_of(picture["b64_json"]) for picture in drawn)
    assert (first == second).all()


def test_stream_of_a_lost_host_goes_on_as_the_same_picture_on_another(platform: Platform) -> None:
    body = {"prompt": "stream", "size": "64x64", "steps": 50}
    seeds: list[int] = []

    async def watch_until_cut(http: httpx.AsyncClient) -> None:
        async for event in events(http, platform.front, **body):
            seeds.extend(event.json().get("seeds", []))
            if event.event == "image_generation.step" and event.json()["step"] == 2:
                await asyncio.to_thread(end_link_that_is_used, platform)

    async def scenario() -> None:
        await wait_all_in(platform)
        async with httpx.AsyncClient(timeout=60) as http:
            with pytest.raises(httpx.RemoteProtocolError):
                await watch_until_cut(http)
            again = [e async for e in events(http, platform.front, **body, seed=seeds[0])]
            plain = await draw(http, platform.front, **body, seed=seeds[0])
        assert again[-1].event == "image_generation.done"
        [done] = [e.json() for e in again if e.event == "image_generation.completed"]
        picture = plain.json()["data"][0]["b64_json"]
        assert (pixels_of(done["b64_json"]) == pixels_of(picture)).all()

    asyncio.run(scenario())


def end_link_that_is_used(platform: Platform) -> None:
    """To the host that draws."""
    [busy] = [name for name, host in platform.hosts.items() if is_drawing(host)]
    link = platform.host(busy)["link"]
    os.killpg(links_of(platform.front)[f"link-{link}"].pid, signal.SIGKILL)


def is_drawing(host: RunningCell) -> bool:
    return bool(ask(host.layout, "w1", "GET", "/readyz").json()["running"])


def test_verbs_of_a_cell_work_on_a_front(platform: Platform) -> None:
    async def scenario() -> None:
        await wait_all_in(platform)
        front = platform.front
        await front.run("up")  # hosts have taken spare links, so there are new ones
        again = await front.run("up")
        assert "nothing to change" in again.stdout, again.stdout + again.stderr
        asked = (front.run("status"), front.run("drain", "w1"), front.run("doctor"))
        status, refused, doctor = await asyncio.gather(*asked)
        assert status.returncode == 0, status.stdout + status.stderr
        assert re.search(r"\ba +ready\b.*1 of 1", status.stdout)
        assert (refused.returncode, "front" in refused.stderr) == (2, True)
        assert "certificate of a front" in doctor.stdout

    asyncio.run(scenario())


def test_nothing_is_lost_when_the_supervisord_of_a_front_is_followed_by_another(
    platform: Platform,
) -> None:
    async def scenario() -> None:
        await wait_all_in(platform)
        front = platform.front
        leader = processes.leader(front.layout.processes)
        assert leader is not None
        async with drawing(platform) as traffic:
            leader.send(signal.SIGKILL)
            await traffic.until_served(16)
            done = await front.run("up")
            assert done.returncode == 0, done.stdout + done.stderr
            await traffic.until_served(16)
        pids = {link: program.pid for link, program in links_of(front).items()}
        await wait_all_in(platform)
        assert pids == {link: program.pid for link, program in links_of(front).items()}

    asyncio.run(scenario())


def links_of(front: RunningCell) -> dict[str, ProgramState]:
    states = Supervisor(front.layout).states()
    return {name: state for name, state in states.items() if state.pid and "link-" in name}


def test_a_front_makes_links_for_hosts_that_join_beyond_its_spare_ones(
    platform: Platform,
) -> None:
    front = platform.front
    joining = [f"late{number}" for number in range(SPARE_LINKS)]

    def links() -> list[str]:
        found = json.loads(front.layout.guard_json.read_bytes())["front"]["links"]
        return [str(link) for link in found]

    async def scenario() -> None:
        await wait_all_in(platform)
        before, reload = links(), nginx_configuration(front)
        async with drawing(platform):
            with listed(platform.database, joining):
                await until(lambda: nginx_configuration(front) != reload, 60, "nginx reloaded")
                await until(lambda: len(known(front)) == len(joining) + 2, 30, "a link for each")
                assert len(links()) == len(joining) + 2 + SPARE_LINKS > len(before)
                assert platform.all_in()
        assert "few_links" not in {alarm["name"] for alarm in front.state()["alarms"]}

    asyncio.run(scenario())


def test_a_change_that_nobody_has_taken_on_is_left_to_zimage_up(platform: Platform) -> None:
    front = platform.front
    undo = edit(front, "[nginx]", "[nginx]\nworker_connections = 4096")
    try:
        refused = front.zimage("reload", "--links")
    finally:
        undo()
    assert refused.returncode == 1
    assert "waits for: zimage up" in refused.stderr
    assert "worker_connections 4096" not in front.layout.nginx_conf.read_text()


@contextlib.contextmanager
def listed(database: Pair, names: list[str]) -> Iterator[None]:
    """Hosts that say what b does, at an address where nobody is."""
    with database.writable.connect() as admin:
        for name in names:
            told = json.dumps({"id": name, "address": "127.0.0.1:9"})
            row = "(jsonb_populate_record(h, %s::jsonb)).*"
            admin.execute(f"INSERT INTO hosts SELECT {row} FROM hosts h WHERE id = 'b'", (told,))
    try:
        yield
    finally:
        with database.writable.connect() as admin:
            admin.execute("DELETE FROM hosts WHERE id = ANY(%s)", (names,))


def known(front: RunningCell) -> list[str]:
    return [str(host["name"]) for host in front.state()["hosts"]]


def nginx_configuration(front: RunningCell) -> str:
    return httpx.get(f"http://127.0.0.1:{front.ops_port}/nginx/configuration").text


def test_a_front_ends_with_its_links(platform: Platform) -> None:
    front = platform.front
    front.down()
    assert process_ids(front.layout.var_dir.parent) == set()
