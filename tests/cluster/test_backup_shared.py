"""A cell that draws is saved; database and bucket are lost; what was there before comes back."""

import itertools
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import httpx
import pytest

from tests.cluster.conftest import RunningCell, started
from tests.cluster.test_keys import bearer, known_after_s, make
from tests.deploy.processes import wait_until
from tests.object_store import ObjectStore
from tests.postgres import Server
from worker.storage.bucket import Bucket

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(300), pytest.mark.long]
NAME = "zimage_lost"


@pytest.fixture
def cell(postgres: Server, object_store: ObjectStore) -> Iterator[RunningCell]:
    objects = object_store.objects("lost/cell").model_dump()
    lines = "".join(f"{key} = {value!r}\n" for key, value in objects.items())
    more = f'[database]\nurl = "{postgres.url(NAME)}"\n[objects]\n{lines}'
    with (
        postgres.database(NAME),
        started(auth="keys", model="synthetic:step_ms=30", workers=1, more=more) as running,
    ):
        yield running
        running.down()  # before its database goes


def drawn(client: httpx.Client, prompt: str) -> None:
    body = {"prompt": prompt, "size": "64x64"}
    assert client.post("/v1/images/generations", json=body).status_code == 200


def pictures(client: httpx.Client) -> dict[str, bytes]:
    """Those of the gallery, by their prompts; each is there to be looked at."""
    answer = client.get("/v1/images?limit=200")
    assert answer.status_code == 200, answer.text
    found = {picture["prompt"]: client.get(picture["url"]) for picture in answer.json()["data"]}
    assert all(each.status_code == 200 for each in found.values())
    return {prompt: each.content for prompt, each in found.items()}


@contextmanager
def drawing(client: httpx.Client) -> Iterator[list[str]]:
    """Two clients draw all the time; what they drew."""
    over, done = threading.Event(), list[str]()

    def draw(name: str) -> None:
        for k in itertools.count():
            if over.is_set():
                return
            drawn(client, f"{name} {k}")
            done.append(f"{name} {k}")

    with ThreadPoolExecutor(2) as threads:
        clients = [threads.submit(draw, name) for name in ("one", "two")]
        try:
            yield done
        finally:
            over.set()
    for ended in clients:
        ended.result()


def test_a_cell_that_draws_comes_back_with_all_it_had(
    cell: RunningCell, postgres: Server, object_store: ObjectStore
) -> None:
    bucket = Bucket(object_store.objects("lost/cell"))
    file = str(cell.config_path.with_name("cell.tar"))
    token = make(cell, "ada")
    known_after_s(cell, token, 200)
    with httpx.Client(base_url=cell.url, headers=bearer(token), timeout=60) as ada:
        for k in range(5):
            drawn(ada, f"before {k}")
        names = {f"before {k}" for k in range(5)}
        wait_until(lambda: names <= pictures(ada).keys(), "kept")
        before = {prompt: data for prompt, data in pictures(ada).items() if prompt in names}
        with drawing(ada) as done:
            wait_until(lambda: len(done) > 3, "drawing")
            saved = cell.zimage("backup", "--images", file)
            assert saved.returncode == 0, saved.stderr
        drawn(ada, "after")
        cell.down()
        with postgres.connect() as admin:
            admin.execute(f"DROP DATABASE {NAME} WITH (FORCE)")
            admin.execute(f"CREATE DATABASE {NAME} TEMPLATE template0")
        bucket.delete([file.name for file in bucket.files()])
        tried = cell.zimage("restore", "--drill", file)
        assert tried.returncode == 0, tried.stderr
        back = cell.zimage("restore", file)
        assert back.returncode == 0, back.stderr
        cell.up()
        known_after_s(cell, token, 200)
        found = pictures(ada)  # no row names a picture that is missing
        assert {prompt: found[prompt] for prompt in names} == before
        assert "after" not in found
        drawn(ada, "again")
