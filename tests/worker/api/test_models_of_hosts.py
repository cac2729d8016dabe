"""Workers of two hosts that have other models, as a front's requests reach them. Host a has turbo
and both, host b has photo and both; the list of all is as ``membership`` writes it."""

import json
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest

from tests.worker.conftest import migrated, ready, serving, settings_in
from worker.coordination.host_clocks import cluster_models
from worker.coordination.live_workers import DIGEST, published
from worker.coordination.served_models import ServedModel, dump, pool_of
from worker.lifecycle import Lifecycle
from worker.settings import Settings
from worker.tables import ModelNames

pytestmark = [pytest.mark.anyio, pytest.mark.timeout(60)]
DRAW = "/v1/images/generations"
TURBO, PHOTO, BOTH = pool_of("turbo"), pool_of("photo"), pool_of("both")
SOURCE = "synthetic:step_ms=1"
ABOUT = {"id": "photo", "object": "model", "max_prompt_tokens": 3, "alias_of": None}
CLUSTER = [
    ServedModel("turbo", ("dall-e-3",), f"{SOURCE},max_tokens=1"),
    ServedModel("both", (), f"{SOURCE},max_tokens=2"),
    ServedModel("photo", ("camera",), f"{SOURCE},max_tokens=3", about=ABOUT),
]
BODY = {"prompt": "a", "size": "64x64", "steps": 2, "seed": 1}


@dataclass
class Host:
    """One of its workers, which draws with ``own``."""

    home: Path
    client: httpx.AsyncClient
    life: Lifecycle

    def knows(self, *models: ServedModel) -> None:
        """As ``membership`` tells."""
        path = cluster_models(self.home)
        path.parent.mkdir(exist_ok=True)
        fresh = path.with_suffix(".new")
        fresh.write_text(dump(models))
        fresh.replace(path)


async def host(stack: AsyncExitStack, home: Path, own: ServedModel, *models: ServedModel) -> Host:
    """``models``: all that it has, where it has several."""
    settings = settings_of(home, own, models)
    life, client = await stack.enter_async_context(serving(migrated(settings)))
    await ready(life)
    made = Host(home, client, life)
    made.knows(*CLUSTER)
    return made


def settings_of(home: Path, own: ServedModel, models: tuple[ServedModel, ...]) -> Settings:
    home.mkdir()
    path = home / "models.json"
    path.write_text(dump(models))
    names = ModelNames(name=own.name, aliases=list(own.aliases))
    listed = {"models": path} if models else {}
    return settings_in(home, host="h", model=own.source, names=names, **listed)


@pytest.fixture
async def a(home: Path) -> AsyncIterator[Host]:
    """A worker with turbo of a host that has both as well."""
    async with AsyncExitStack() as stack:
        yield await host(stack, home / "a", CLUSTER[0], *CLUSTER[:2])


@pytest.fixture
async def alone(home: Path) -> AsyncIterator[Host]:
    """A worker of a host with photo alone."""
    async with AsyncExitStack() as stack:
        yield await host(stack, home / "alone", CLUSTER[2])


def by_front(pools: str = f"{TURBO},{PHOTO},{BOTH}", pool: str = "") -> dict[str, str]:
    """What nginx says of a front's request, to a host whose own pools are turbo and both."""
    told = {"X-Front": "f", "X-Front-Pools": pools, "X-Pools": f"{TURBO},{BOTH}"}
    return told | ({"X-Front-Pool": pool} if pool else {})


@pytest.mark.parametrize("path", [DRAW, "/v1/jobs", "/v1/jobs/preview"])
@pytest.mark.parametrize("model", ["photo", "Camera", f"{SOURCE},max_tokens=3"])
async def test_a_model_of_another_host_is_handed_back_to_the_front(
    a: Host, path: str, model: str
) -> None:
    body = {"model": model, "prompt" if path == DRAW else "prompts": "a" if path == DRAW else ["a"]}
    reply = await a.client.post(path, json=body, headers=by_front())
    assert (reply.status_code, reply.headers["X-Hand-Over"]) == (421, PHOTO)
    assert "X-Accel-Redirect" not in reply.headers  # nginx of this host has nothing to do with it


@pytest.mark.parametrize(("model", "pool"), [("both", BOTH), ("turbo", TURBO), (None, TURBO)])
async def test_what_a_host_has_it_draws_in_its_own_pool(
    a: Host, model: str | None, pool: str
) -> None:
    reply = await a.client.post(DRAW, json={**BODY, "model": model}, headers=by_front())
    assert (reply.status_code, reply.headers["X-Accel-Redirect"]) == (421, f"@pool_{pool}")


async def test_without_a_model_the_first_of_the_cluster_draws(alone: Host) -> None:
    reply = await alone.client.post(DRAW, json=BODY, headers=by_front())
    assert (reply.status_code, reply.headers["X-Hand-Over"]) == (421, TURBO)


async def test_a_host_with_one_model_draws_it_by_all_of_its_names(alone: Host) -> None:
    alone.knows(*CLUSTER[:2], ServedModel("photo", ("camera", "of-another"), ""))
    for name in ("photo", "camera", "of-another"):
        reply = await alone.client.post(DRAW, json={**BODY, "model": name}, headers=by_front())
        assert reply.status_code == 200, reply.text


async def test_a_request_is_handed_over_once_at_most(a: Host) -> None:
    said = by_front(pool=PHOTO)
    reply = await a.client.post(DRAW, json={**BODY, "model": "photo"}, headers=said)
    assert reply.status_code == 503
    assert "X-Hand-Over" not in reply.headers


async def test_a_front_that_has_no_pool_of_it_yet_asks_one_host_after_the_other(a: Host) -> None:
    asked = {**BODY, "model": "photo"}
    reply = await a.client.post(DRAW, json=asked, headers=by_front(pools=f"any,{TURBO}"))
    assert (reply.status_code, reply.headers["X-Hand-Over"]) == (421, "any")
    said = by_front(pools=f"any,{TURBO}", pool="any")
    assert (await a.client.post(DRAW, json=asked, headers=said)).status_code == 403
    own = await a.client.post(DRAW, json=BODY, headers=said)
    assert own.headers["X-Accel-Redirect"] == f"@pool_{TURBO}"


async def test_a_front_that_knows_of_no_pools_hears_when_to_come_again(a: Host) -> None:
    """One of an older version."""
    said = {"X-Front": "f"}
    reply = await a.client.post(DRAW, json={**BODY, "model": "photo"}, headers=said)
    assert reply.status_code == 503
    assert int(reply.headers["Retry-After"]) >= 1


async def test_a_host_that_is_asked_directly_knows_its_own_models_alone(a: Host) -> None:
    said = {"X-Front-Pools": PHOTO, "X-Pools": f"{TURBO},{BOTH}"}
    reply = await a.client.post(DRAW, json={**BODY, "model": "photo"}, headers=said)
    error = reply.json()["error"]
    assert (reply.status_code, error["code"]) == (404, "model_not_found")
    assert "ask a front" in error["message"]
    ids = [each["id"] for each in (await a.client.get("/v1/models")).json()["data"]]
    assert "photo" not in ids


async def test_unknown_model_is_a_404_that_names_those_of_all_hosts(a: Host, alone: Host) -> None:
    for each in (a, alone):
        body = {**BODY, "model": "other"}
        error = (await each.client.post(DRAW, json=body, headers=by_front())).json()["error"]
        assert "'turbo', 'both', 'photo'" in error["message"]


async def test_list_of_models_tells_of_those_of_other_hosts(a: Host) -> None:
    told = (await a.client.get("/v1/models", headers=by_front())).json()["data"]
    shown = [(each["id"], each["alias_of"]) for each in told]
    # No worker of this host has loaded `both` yet, nor said any other host what it is like.
    assert shown == [
        *(("turbo", None), ("photo", None)),
        *(("dall-e-3", "turbo"), ("camera", "photo")),
    ]
    one = (await a.client.get("/v1/models/CAMERA", headers=by_front())).json()
    assert (one["id"], one["alias_of"], one["max_prompt_tokens"]) == ("camera", "photo", 3)


async def test_job_is_held_for_its_model_only_where_no_host_has_it(alone: Host) -> None:
    models = alone.life.components.models
    assert models.is_served("turbo")
    alone.knows(CLUSTER[2])
    assert not models.is_served("turbo")


async def test_job_of_a_host_with_one_model_says_which_where_others_have_others(
    alone: Host,
) -> None:
    models = alone.life.components.models
    assert (models.of_job(), models.drawn_here().unnamed) == ("photo", False)
    assert models.pool_elsewhere() == PHOTO
    alone.knows(CLUSTER[2])
    assert (models.of_job(), models.drawn_here().unnamed) == (None, True)
    assert models.pool_elsewhere() is None


async def test_job_of_a_name_that_is_an_alias_here_is_left_to_the_model_of_that_name(
    a: Host,
) -> None:
    models = a.life.components.models
    assert "dall-e-3" in models.drawn_here().names
    a.knows(*CLUSTER, ServedModel("dall-e-3"))
    assert "dall-e-3" not in models.drawn_here().names


async def test_worker_of_a_cluster_leaves_what_its_files_are_and_shows_it_to_no_client(
    alone: Host,
) -> None:
    told = published(alone.life.settings.run_dir)
    assert len(told["w1"][DIGEST]) == 16
    shown = (await alone.client.get("/v1/models", headers=by_front())).json()["data"]
    assert all(DIGEST not in each for each in shown)


async def test_half_a_list_changes_nothing(a: Host) -> None:
    path = cluster_models(a.home)
    path.write_text(json.dumps([{"name": "photo"}])[:-4])
    reply = await a.client.post(DRAW, json={**BODY, "model": "turbo"}, headers=by_front())
    assert reply.headers["X-Accel-Redirect"] == f"@pool_{TURBO}"
