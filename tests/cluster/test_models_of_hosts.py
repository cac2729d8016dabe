"""A front and two hosts with other models: a has turbo and third, b has photo and third. Each
request is drawn with its model, whoever reads it first and whoever dies meanwhile. Pictures say who
drew them: each model has steps of its own."""

import asyncio
import contextlib
import io
import os
import re
import signal
import tempfile
from collections.abc import AsyncIterator, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from PIL import Image

from deploy.cluster import certificates
from loadtest.traffic import pixels_of
from loadtest.waiting import until_async as until
from tests.cluster.conftest import RunningCell, edit, ended
from tests.cluster.test_hosts import UNSAFE, up
from tests.deploy.certificates import Authority
from tests.object_store import ObjectStore
from tests.ports import free_port
from tests.postgres import Server, short_folder
from worker.coordination.served_models import pool_of
from worker.models.synthetic import text_of

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(300), pytest.mark.long]

SOURCE = "synthetic:step_ms=20"
STEPS = {"turbo": 8, "photo": 3, "third": 5}
LATE = {"late": 6}
"""A model that comes while clients draw, and goes."""
HAS = {"a": ("turbo", "third"), "b": ("photo", "third")}
WORKERS = {"a": ("turbo", "third"), "b": ("photo", "photo", "third")}
DRAW, EDIT = "/v1/images/generations", "/v1/images/edits"


@dataclass
class Platform:
    front: RunningCell
    hosts: dict[str, RunningCell]

    @property
    def url(self) -> str:
        return self.front.url

    def all_in(self) -> bool:
        found = {host["name"]: host for host in self.front.state().get("hosts", ())}
        return all(
            name in found and found[name]["ready"] == len(WORKERS[name]) for name in self.hosts
        )

    def pools(self) -> set[str]:
        """Of models, in nginx of the front."""
        text = (self.front.layout.render_dir / "conf.d/locations.conf").read_text()
        return set(re.findall(r"location @pool_(\w+) ", text)) - {"any"}


@pytest.fixture(scope="module")
def platform(object_store: ObjectStore) -> Iterator[Platform]:
    authority = Authority()
    with short_folder() as folder, contextlib.ExitStack() as running:
        database = Server(folder, *UNSAFE).create().start()
        running.callback(database.stop)

        def machine(name: str, role: str) -> RunningCell:
            objects = object_store.objects("models-of-hosts").model_dump()
            lines = [f'[database]\nurl = "{database.url("postgres")}"', "[objects]"]
            lines += [f"{key} = {value!r}" for key, value in objects.items()]
            lines += [f'[cluster]\nname = "studio"\nhost = "{name}"\nrole = "{role}"']
            lines += [f'address = "127.0.0.1:{free_port()}"'] if role != "front" else []
            home = Path(tempfile.mkdtemp(prefix="zc-", dir="/tmp"))
            more = "\n".join(lines)
            cell = RunningCell(home, name=name, workers=1, model=SOURCE, more=more)
            if role != "front":
                serve(cell, name)
            running.enter_context(ended(cell, home))
            authority.equip(cell.layout, *certificates.roles_of(role))
            return cell

        front = machine("front", "front")
        hosts = {name: machine(name, "host") for name in HAS}
        with ThreadPoolExecutor() as pool:
            for done in pool.map(up, (*hosts.values(), front)):
                assert done.returncode == 0, done.stdout + done.stderr
        yield Platform(front, hosts)


def serve(cell: RunningCell, name: str) -> None:
    """Its models, with a worker each or more."""
    models = "".join(
        f'[[models]]\nname = "{model}"\nsource = "{SOURCE}"\nsteps = {STEPS[model]}\n'
        + ('aliases = ["camera"]\n' if model == "photo" else "aliases = []\n")
        for model in HAS[name]
    )
    workers = "".join(
        f'[[workers]]\ndevice = "cpu"\nmodel = "{model}"\nthreads = 1\n' for model in WORKERS[name]
    )
    edit(cell, f'[model]\nsource = "{SOURCE}"', models)
    edit(cell, '[[workers]]\ndevice = "cpu"\ncount = 1\nthreads = 1', workers)


async def drawn(http: httpx.AsyncClient, model: str | None, **more: Any) -> str:
    """Which model drew what was asked of ``model``, or what came instead."""
    prompt = os.urandom(4).hex()
    body = {"prompt": prompt, "size": "64x64", **({"model": model} if model else {}), **more}
    reply = await http.post(DRAW, json=body)
    return drawn_by(reply, prompt)


def drawn_by(reply: httpx.Response, prompt: str) -> str:
    if reply.status_code != 200:
        return f"{reply.status_code} {reply.text}"
    (item,) = reply.json()["data"]
    said = text_of(pixels_of(item["b64_json"]))
    known = {f"{prompt}|{item['seed']}|{steps}": name for name, steps in (STEPS | LATE).items()}
    return known.get(said, said)


def client(platform: Platform) -> httpx.AsyncClient:
    # nginx before 1.27.4 closes kept connections when it is reloaded, as for new pools.
    limits = httpx.Limits(max_keepalive_connections=0)
    return httpx.AsyncClient(base_url=platform.url, timeout=120, limits=limits)


@contextlib.asynccontextmanager
async def drawing(platform: Platform, clients: int = 2) -> AsyncIterator[dict[str, list[str]]]:
    """Clients that ask for each model all the time: what was answered, by the model."""
    said: dict[str, list[str]] = {model: [] for model in STEPS}
    stop = asyncio.Event()

    async def ask(model: str) -> None:
        async with client(platform) as http:
            while not stop.is_set():
                said[model].append(await drawn(http, model))

    def more(count: int) -> bool:
        return all(len(answers) >= count for answers in said.values())

    tasks = [asyncio.create_task(ask(model)) for model in STEPS for _ in range(clients)]
    try:
        await until(lambda: more(5), 60, "answers of each model")
        yield said
        count = max(map(len, said.values())) + 5
        await until(lambda: more(min(count, 60)), 60, "more answers of each model")
    finally:
        stop.set()
        await asyncio.gather(*tasks)
    assert {model: set(answers) for model, answers in said.items()} == {
        model: {model} for model in STEPS
    }, platform.front.story()


def test_pools_come_by_themselves_and_nothing_is_lost_meanwhile(platform: Platform) -> None:
    async def scenario() -> None:
        await until(platform.all_in, 90, "both hosts in")
        async with drawing(platform):
            wanted = {pool_of(model) for model in STEPS}
            await until(lambda: platform.pools() == wanted, 120, "pools of all models")
        await until(platform.all_in, 60, "both hosts in")

    asyncio.run(scenario())


def test_each_request_is_drawn_with_its_model(platform: Platform) -> None:
    async def scenario() -> None:
        async with client(platform) as http:
            asked = [*STEPS, "Camera", *STEPS] * 3
            found = await asyncio.gather(*(drawn(http, model) for model in asked))
            assert found == ["photo" if model == "Camera" else model for model in asked]
            unnamed = await asyncio.gather(*(drawn(http, None) for _ in range(4)))
            assert len(set(unnamed)) == 1  # whichever host joined first
            assert unnamed[0] in STEPS
            for _ in range(4):
                told = (await http.get("/v1/models")).json()["data"]
                own = {each["id"] for each in told if each["alias_of"] is None}
                assert own == set(STEPS)
            path = "/openai/deployments/photo/images/generations?api-version=1"
            body = {"prompt": "azure", "size": "64x64"}
            replies = [await http.post(path, json=body) for _ in range(4)]
            assert {drawn_by(reply, "azure") for reply in replies} == {"photo"}
            lost = await http.post(DRAW, json={"prompt": "a", "model": "none"})
            assert (lost.status_code, "'photo'" in lost.text) == (404, True)

    asyncio.run(scenario())


def test_nothing_is_lost_when_workers_are_killed(platform: Platform) -> None:
    async def scenario() -> None:
        await until(platform.all_in, 60, "both hosts in")
        async with drawing(platform):
            for host, worker in (("b", "w1"), ("a", "w2")):
                cell = platform.hosts[host]
                os.kill(cell.pid(worker), signal.SIGKILL)
                await cell.all_open()

    asyncio.run(scenario())


def test_job_is_drawn_where_its_model_is(platform: Platform) -> None:
    async def scenario() -> None:
        async with client(platform) as http:
            for model in STEPS:
                body = {"prompts": ["a", "b", "c"], "size": "64x64", "model": model}
                made = [await http.post("/v1/jobs", json=body) for _ in range(3)]
                assert [reply.status_code for reply in made] == [202] * 3, made[0].text
                for job in (reply.json() for reply in made):
                    assert (job["model"], job["held"]) == (model, None)
                    await over(http, job["id"])
                    items = (await http.get(f"/v1/jobs/{job['id']}/items")).json()["data"]
                    assert {item["image"]["model"] for item in items} == {model}
                    picture = await http.get(items[0]["image"]["url"])
                    name = f"a|{items[0]['seed']}|{STEPS[model]}"
                    assert text_of(_pixels(picture.content)) == name

    asyncio.run(scenario())


async def over(http: httpx.AsyncClient, id: str) -> None:
    async with asyncio.timeout(60):
        while True:
            job = (await http.get(f"/v1/jobs/{id}")).json()
            if job["finished_at"]:
                assert job["counts"]["done"] == job["total"], job
                return
            await asyncio.sleep(0.1)


def test_files_go_to_the_model_that_the_form_names(platform: Platform) -> None:
    async def scenario() -> None:
        file = _png()
        async with client(platform) as http:
            sent = await http.post("/v1/uploads", files={"file": ("a.png", file, "image/png")})
            assert sent.status_code in (200, 201), sent.text
            for model in STEPS:
                said = {"model": model, "prompt": "an edit", "size": "512x512", "strength": 1}
                for _ in range(3):
                    form = await http.post(
                        EDIT, data=said, files={"image": ("a.png", file, "image/png")}
                    )
                    named = await http.post(EDIT, json={**said, "image": sent.json()["id"]})
                    assert {_steps_of(form), _steps_of(named)} == {STEPS[model]}

    asyncio.run(scenario())


def test_models_come_and_go_on_a_host_and_nothing_is_lost(platform: Platform) -> None:
    b = platform.hosts["b"]
    before, third = b.config_path.read_text(), '[[models]]\nname = "third"'
    [(name, steps)] = LATE.items()
    model = f'[[models]]\nname = "{name}"\nsource = "{SOURCE}"\nsteps = {steps}\naliases = []\n'
    worker = f'\n[[workers]]\ndevice = "cpu"\nmodel = "{name}"\nthreads = 1\n'
    after = before.replace(third, model + third) + worker

    async def serve_on_b(text: str, models: dict[str, int]) -> None:
        b.config_path.write_text(text)
        done = await b.run("up", "--no-draw")
        assert done.returncode == 0, done.stdout + done.stderr
        os.utime(platform.front.layout.links_begun, (1, 1))  # the last ones were made long ago
        pools = {pool_of(model) for model in models}
        await until(lambda: platform.pools() == pools, 90, f"pools of {sorted(models)}")

    async def scenario() -> None:
        await until(platform.all_in, 60, "both hosts in")
        async with drawing(platform), client(platform) as http:
            await serve_on_b(after, STEPS | LATE)
            found = await asyncio.gather(*(drawn(http, name) for _ in range(6)))
            assert set(found) == {name}
            await serve_on_b(before, STEPS)
            gone = await http.post(DRAW, json={"prompt": "a", "model": name})
            assert (gone.status_code, gone.json()["error"]["code"]) == (404, "model_not_found")
        told = await platform.hosts["a"].run("hosts")
        assert (told.returncode, "another one" in told.stdout) == (0, False), told.stdout

    asyncio.run(scenario())


def _steps_of(reply: httpx.Response) -> int:
    assert reply.status_code == 200, reply.text
    (item,) = reply.json()["data"]
    return int(text_of(pixels_of(item["b64_json"])).split("|")[2])


def _pixels(data: bytes) -> Any:
    return np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))


def _png() -> bytes:
    """Large enough for a file of nginx's."""
    file = io.BytesIO()
    noise = os.urandom(512 * 512 * 3)
    Image.frombytes("RGB", (512, 512), noise).save(file, "png")
    return file.getvalue()
