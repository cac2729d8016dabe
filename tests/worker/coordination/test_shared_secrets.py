"""What one host of a cluster signs is good on another, also while the secret changes."""

import json
import shutil
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.worker.conftest import ready, serving, settings_in
from tests.worker.storage.test_jobs import Store
from worker.accounts.tokens import operator_token
from worker.api.schemas import wire
from worker.coordination import shared_secrets
from worker.coordination.shared_secrets import ClusterSecrets
from worker.lifecycle import Lifecycle
from worker.storage import keys
from worker.storage.images import Signer
from worker.storage.secret import only, other_secrets, shared_secret

pytestmark = pytest.mark.anyio
OLD, NEW = b"o" * 32, b"n" * 32
DRAW = "/v1/images/generations"
BODY: dict[str, Any] = {"prompt": "a", "size": "64x64", "seed": 7}


@pytest.fixture
def secret(home: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The file of the cluster's, which all hosts here read at once."""
    monkeypatch.setattr(shared_secrets, "_LOOK_S", 0.0)
    (home / "secret").write_bytes(OLD)
    return home / "secret"


def rotate(secret: Path, first: bytes, *others: bytes) -> None:
    """As whoever keeps the certificates does: whole files, the others first."""
    for path, data in (
        (other_secrets(secret), "".join(f"{o.hex()}\n" for o in others).encode()),
        (secret, first),
    ):
        fresh = path.with_suffix(".new")
        fresh.write_bytes(data)
        fresh.replace(path)


@pytest.fixture
def token(shared_url: str, home: Path) -> str:
    """Of a key, whose hash's secret each host has."""
    store = Store(shared_url)
    key_secret = shared_secret(home / "key-secret")
    key, token = keys.new_key(key_secret, "ada")
    store(keys.insert, key, key_secret)
    store.engine.dispose()
    return token


@asynccontextmanager
async def host(home: Path, name: str) -> AsyncIterator[tuple[Lifecycle, httpx.AsyncClient]]:
    folder = home / name
    folder.mkdir()
    shutil.copy(home / "key-secret", folder)
    settings = settings_in(
        home, run_dir=folder / "run", var_dir=folder, auth="keys", host=name,
        cluster_secret=home / "secret",
    )  # fmt: skip
    async with serving(settings) as (service, client):
        await ready(service)
        yield service, client


async def statuses(client: httpx.AsyncClient, cookie: str, link: str) -> tuple[int, int]:
    """What is answered to a cookie and to a link. A link that is good leads to no file here."""
    client.cookies.clear()
    shown = await client.get("/v1/models", headers={"Cookie": cookie})
    return shown.status_code, (await client.get(link)).status_code


async def test_links_cookies_keys_and_places_are_good_on_every_host(
    shared_url: str, home: Path, secret: Path, token: str
) -> None:
    proof = {"Authorization": f"Bearer {token}"}
    async with host(home, "a") as (_, a), host(home, "b") as (b_life, b):
        signed_in = await a.post("/v1/session", json={"key": token})
        cookie = signed_in.headers["Set-Cookie"].partition(";")[0]
        drawn = await a.post(DRAW, json=BODY | {"response_format": "url"}, headers=proof)
        link = drawn.json()["data"][0]["url"]
        streamed = await a.post(DRAW, json=BODY | {"stream": True}, headers=proof)
        place = streamed.text.partition('"resume":"')[2].partition('"')[0]

        assert (await b.post(DRAW, json=BODY, headers=proof)).status_code == 200
        assert await statuses(b, cookie, link) == (200, 404)
        taken = b_life.components.resume_tokens._read
        spec_turn = signed_specs(b_life, token)
        assert taken(place, *spec_turn) is not None

        rotate(secret, NEW, OLD)
        assert await statuses(b, cookie, link) == (200, 404), "either is good for a time"
        assert taken(place, *spec_turn) is not None
        assert Signer(only(NEW)).valid(*of_link(await new_link(b, proof)))
        rotate(secret, NEW)
        assert await statuses(b, cookie, link) == (401, 403)
        assert taken(place, *spec_turn) is None
        assert (await b.post(DRAW, json=BODY, headers=proof)).status_code == 200, "keys stay good"


def signed_specs(life: Lifecycle, token: str) -> tuple[str, list[Any]]:
    key = life.components.keys.holder(token)
    assert key is not None
    asked = wire.parse(json.dumps(BODY).encode(), life.settings, life.model.info)
    return key.id, list(asked.specs(0))


async def new_link(client: httpx.AsyncClient, proof: dict[str, str]) -> str:
    drawn = await client.post(DRAW, json=BODY | {"response_format": "url"}, headers=proof)
    return str(drawn.json()["data"][0]["url"])


def of_link(link: str) -> tuple[str, str, str]:
    url = httpx.URL(link)
    name = url.path.removeprefix("/v1/images/files/")
    return name, url.params["expires"], url.params["signature"]


async def test_who_knows_the_keys_secret_alone_operates_nothing(
    shared_url: str, home: Path, secret: Path, token: str
) -> None:
    async with host(home, "a") as (_, a):
        known = (home / "key-secret").read_bytes()
        for key, status in ((known, 401), (OLD, 200)):
            proof = {"Authorization": f"Bearer {operator_token(key)}"}
            assert (await a.get("/v1/models", headers=proof)).status_code == status


def test_secrets_that_cannot_be_read_go_on(secret: Path) -> None:
    signing = ClusterSecrets(secret)
    rotate(secret, NEW, OLD)
    assert signing() == (NEW, OLD)
    other_secrets(secret).write_text("no secret")
    assert signing() == (NEW, OLD)
    secret.unlink()
    assert signing() == (NEW, OLD)
    with pytest.raises(FileNotFoundError):
        ClusterSecrets(secret)
