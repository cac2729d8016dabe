"""Two workers of one cell, each with a model of its own, without an nginx between them: the tests
ask as nginx would, and see what it is told to do."""

import asyncio
import base64
import io
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from PIL import Image

from tests.worker.conftest import migrated, ready, serving, settings_in
from worker.coordination.served_models import ServedModel, dump, pool_of
from worker.lifecycle import Lifecycle
from worker.models.synthetic import text_of
from worker.tables import ModelNames

pytestmark = [pytest.mark.anyio, pytest.mark.timeout(60)]
DRAW, EDIT = "/v1/images/generations", "/v1/images/edits"
TURBO, PHOTO = pool_of("turbo"), pool_of("photo")
SOURCE = "synthetic:step_ms=1"
SLOWER = "synthetic:step_ms=5,max_tokens=3"
MODELS = [
    ServedModel("turbo", ("dall-e-3",), SOURCE),
    ServedModel("photo", ("camera",), SLOWER),
]
BODY = {"prompt": "a", "size": "64x64", "steps": 2, "seed": 1}


@dataclass
class Cell:
    """``turbo`` and ``photo`` are clients of w1 and w2."""

    home: Path
    turbo: httpx.AsyncClient
    photo: httpx.AsyncClient
    lives: tuple[Lifecycle, Lifecycle]

    def serve(self, *models: ServedModel) -> None:
        """As `zimage up` does with another list."""
        fresh = self.home / "fresh.json"
        fresh.write_text(dump(models))
        fresh.replace(self.home / "models.json")


@pytest.fixture
async def cell(home: Path) -> AsyncIterator[Cell]:
    path = home / "models.json"
    path.write_text(dump(MODELS))
    async with AsyncExitStack() as stack:
        clients, lives = [], []
        for name, model in zip(("w1", "w2"), MODELS, strict=True):
            names = ModelNames(name=model.name, aliases=list(model.aliases))
            settings = settings_in(home, name=name, models=path, model=model.source, names=names)
            life, client = await stack.enter_async_context(serving(migrated(settings)))
            await ready(life)
            clients.append(client)
            lives.append(life)
        yield Cell(home, clients[0], clients[1], (lives[0], lives[1]))


def asked_in(pool: str = "", pools: str = f"{TURBO},{PHOTO}") -> dict[str, str]:
    """What nginx says to whom it asks: first, or in a pool."""
    return {"X-Pools": pools, **({"X-Pool": pool} if pool else {})}


@pytest.mark.parametrize(
    ("model", "pool"),
    [
        *((None, TURBO), ("turbo", TURBO), ("DALL-E-3", TURBO)),
        *(("photo", PHOTO), ("Camera", PHOTO), (SLOWER, PHOTO)),
    ],
)
@pytest.mark.parametrize("path", [DRAW, "/v1/jobs", "/v1/jobs/preview"])
async def test_first_asked_hands_a_request_to_the_pool_of_its_model(
    cell: Cell, path: str, model: str | None, pool: str
) -> None:
    body = {"model": model, "prompt": "a"} if path == DRAW else {"model": model, "prompts": ["a"]}
    for client in (cell.turbo, cell.photo):
        reply = await client.post(path, json=body, headers=asked_in())
        assert reply.status_code == 421
        assert reply.headers["X-Accel-Redirect"] == f"@pool_{pool}"


async def test_pool_of_the_model_draws(cell: Cell) -> None:
    drawn = await cell.photo.post(DRAW, json={**BODY, "model": "photo"}, headers=asked_in(PHOTO))
    pixels = _pixels(drawn.json())
    assert (drawn.status_code, text_of(pixels)) == (200, "a|1|2")


@pytest.mark.parametrize("json", [True, False])
async def test_edit_is_handed_on_by_what_its_form_says(cell: Cell, json: bool) -> None:
    said: dict[str, Any] = {"model": "photo", "prompt": "a"}
    if json:
        reply = await cell.turbo.post(EDIT, json={**said, "image": "img_x"}, headers=asked_in())
    else:
        files = {"image": ("a.png", _png(), "image/png")}
        reply = await cell.turbo.post(EDIT, data=said, files=files, headers=asked_in())
    assert (reply.status_code, reply.headers["X-Accel-Redirect"]) == (421, f"@pool_{PHOTO}")


async def test_unknown_model_is_a_404_that_names_those_that_are_served(cell: Cell) -> None:
    reply = await cell.turbo.post(DRAW, json={**BODY, "model": "other"}, headers=asked_in())
    error = reply.json()["error"]
    assert (reply.status_code, error["code"], error["param"]) == (404, "model_not_found", "model")
    assert "'turbo', 'photo'" in error["message"]


async def test_deployment_names_the_model_of_a_body_that_names_none(cell: Cell) -> None:
    said = {**asked_in(), "X-Deployment": "cam%65ra"}
    reply = await cell.turbo.post(DRAW, json=BODY, headers=said)
    assert reply.headers["X-Accel-Redirect"] == f"@pool_{PHOTO}"
    reply = await cell.turbo.post(DRAW, json={**BODY, "model": "turbo"}, headers=said)
    assert reply.headers["X-Accel-Redirect"] == f"@pool_{TURBO}"
    reply = await cell.turbo.post(DRAW, json=BODY, headers={**said, "X-Deployment": "mine"})
    assert reply.status_code == 404


async def test_worker_that_is_asked_in_the_wrong_pool_lets_nginx_ask_another(cell: Cell) -> None:
    """Its model was changed a moment ago."""
    said = {**asked_in(TURBO), "X-Again": "2"}
    reply = await cell.photo.post(DRAW, json={**BODY, "model": "turbo"}, headers=said)
    assert (reply.status_code, reply.headers["X-Accel-Redirect"]) == (503, "@again2")
    assert int(reply.headers["Retry-After"]) >= 1


async def test_pool_that_nginx_does_not_know_yet_is_not_asked_for(cell: Cell) -> None:
    """Its own, a worker draws all the same; another's may come again in a moment."""
    old = asked_in(pools="")
    own = await cell.turbo.post(DRAW, json=BODY, headers=old)
    others = await cell.turbo.post(DRAW, json={**BODY, "model": "photo"}, headers=old)
    assert (own.status_code, others.status_code) == (200, 503)
    assert "X-Accel-Redirect" not in others.headers


async def test_nothing_is_counted_or_held_before_it_is_handed_on(cell: Cell) -> None:
    await cell.turbo.post(DRAW, json={**BODY, "model": "photo"}, headers=asked_in())
    state = cell.lives[0].model.engine.state()
    assert (state.queued, state.running) == (0, 0)
    assert not list((cell.home / "usage").glob("*"))


async def test_list_of_models_is_the_same_whoever_is_asked(cell: Cell) -> None:
    lists = [(await c.get("/v1/models")).json() for c in (cell.turbo, cell.photo)]
    for told in lists:
        for each in told["data"]:
            del each["created"]
    assert lists[0] == lists[1]
    shown = [(each["id"], each["alias_of"]) for each in lists[0]["data"]]
    assert shown == [
        ("turbo", None),
        ("photo", None),
        ("dall-e-3", "turbo"),
        ("camera", "photo"),
    ]
    limits = {each["id"]: each["max_prompt_tokens"] for each in lists[0]["data"]}
    assert (limits["turbo"], limits["photo"], limits["camera"]) == (None, 3, 3)
    one = (await cell.turbo.get("/v1/models/CAMERA")).json()
    assert (one["id"], one["alias_of"], one["max_prompt_tokens"]) == ("camera", "photo", 3)
    assert (await cell.turbo.get("/v1/models/other")).status_code == 404


async def test_document_says_whose_sizes_it_gives(cell: Cell) -> None:
    for client, name in ((cell.turbo, "turbo"), (cell.photo, "photo")):
        about = (await client.get("/openapi.json")).json()["info"]["description"]
        assert f"features are those of '{name}'; /v1/models has" in about


async def test_model_whose_workers_load_is_told_of_once_it_was_known(cell: Cell) -> None:
    never = ServedModel("never")
    cell.serve(*MODELS, never)
    told = (await cell.turbo.get("/v1/models")).json()["data"]
    assert [each["id"] for each in told][:2] == ["turbo", "photo"]
    assert "never" not in [each["id"] for each in told]
    assert (await cell.turbo.get("/v1/models/never")).status_code == 503


async def test_model_that_was_added_or_taken_away_needs_no_restart_of_others(cell: Cell) -> None:
    third = ServedModel("third")
    cell.serve(*MODELS, third)
    pools = f"{TURBO},{PHOTO},{third.pool}"
    asked = {**BODY, "model": "third"}
    reply = await cell.turbo.post(DRAW, json=asked, headers=asked_in(pools=pools))
    assert reply.headers["X-Accel-Redirect"] == f"@pool_{third.pool}"
    cell.serve(*MODELS)
    assert (await cell.turbo.post(DRAW, json=asked, headers=asked_in())).status_code == 404


async def test_job_is_drawn_by_a_worker_with_its_model_alone(cell: Cell) -> None:
    made = await _job(cell, cell.photo, PHOTO, "photo", prompts=["a", "b", "c", "d"])
    assert made["model"] == "photo"
    other = await _job(cell, cell.turbo, TURBO, "turbo", prompts=["e", "f"])
    for job in (made, other):
        await _over(cell, job)
    drawn = {
        name: life.components.metrics.job_items for name, life in zip("ab", cell.lives, strict=True)
    }
    done = [each.labels("done")._value.get() for each in drawn.values()]
    assert done == [2, 4]
    pictures = (await cell.turbo.get("/v1/images")).json()["data"]
    assert {p["model"] for p in pictures if p["prompt"] in "abcd"} == {"photo"}
    assert {p["model"] for p in pictures if p["prompt"] in "ef"} == {"turbo"}


async def test_any_worker_tells_when_a_job_of_another_model_ends(cell: Cell) -> None:
    made = await _job(cell, cell.photo, PHOTO, "photo", prompts=["a"] * 200, steps=50)

    async def left_s(client: httpx.AsyncClient) -> float:
        told = (await client.get(f"/v1/jobs/{made['id']}")).json()
        return float((told["predicted_finish_at"] or 0) - time.time())

    there_s = here_s = -1.0
    async with asyncio.timeout(30):
        # Who draws learns from every step, and tells it now and then.
        while there_s < 1 or here_s != pytest.approx(there_s, rel=0.3):
            await asyncio.sleep(0.1)
            there_s, here_s = await left_s(cell.photo), await left_s(cell.turbo)
    await cell.turbo.post(f"/v1/jobs/{made['id']}/cancel")


async def test_job_of_a_model_that_nobody_has_loaded_has_no_predicted_end(cell: Cell) -> None:
    made = await _job(cell, cell.photo, PHOTO, "photo", prompts=["a"], paused=True)
    never = ServedModel("never", ("photo",))
    cell.serve(MODELS[0], never)
    assert (await cell.turbo.post(f"/v1/jobs/{made['id']}/resume")).status_code == 200
    told = (await cell.turbo.get(f"/v1/jobs/{made['id']}")).json()
    assert (told["held"], told["predicted_finish_at"]) == (None, None)


async def test_job_of_a_model_that_has_gone_waits_and_is_drawn_when_it_returns(cell: Cell) -> None:
    cell.serve(MODELS[0])  # w2 draws with no model of the cell now
    cell.lives[1].drain()
    made = await _job(cell, cell.turbo, TURBO, "turbo", prompts=["a"])
    await _over(cell, made)
    cell.serve(*MODELS)
    waiting = await _job_of_gone(cell)
    told = (await cell.turbo.get(f"/v1/jobs/{waiting['id']}")).json()
    assert (told["state"], told["held"], told["predicted_finish_at"]) == (
        "running",
        "model_missing",
        None,
    )
    cancelled = (await cell.turbo.post(f"/v1/jobs/{waiting['id']}/cancel")).json()
    assert (cancelled["state"], cancelled["held"]) == ("cancelled", None)
    again = await _job_of_gone(cell)
    cell.serve(*MODELS)
    cell.lives[1].undrain()
    assert (await _over(cell, again))["counts"]["done"] == 1


async def _job_of_gone(cell: Cell) -> dict[str, Any]:
    """A job of photo, which then leaves the list, as its worker leaves the pool."""
    cell.lives[1].undrain()
    cell.serve(*MODELS)
    made = await _job(cell, cell.photo, PHOTO, "photo", prompts=["x"], paused=True)
    cell.lives[1].drain()
    cell.serve(MODELS[0])
    resumed = await cell.turbo.post(f"/v1/jobs/{made['id']}/resume")
    assert resumed.status_code == 200
    later = await _job(cell, cell.turbo, TURBO, "turbo", prompts=["after it"])
    await _over(cell, later)  # who would have taken the other one first
    return made


async def _job(
    cell: Cell,
    client: httpx.AsyncClient,
    pool: str,
    model: str,
    *,
    paused: bool = False,
    **more: Any,
) -> dict[str, Any]:
    body = {"size": "64x64", "steps": 2, "model": model, **more}
    reply = await client.post("/v1/jobs", json=body, headers=asked_in(pool))
    assert reply.status_code == 202, reply.text
    made: dict[str, Any] = reply.json()
    if paused:
        await client.post(f"/v1/jobs/{made['id']}/pause")
    return made


async def _over(cell: Cell, job: dict[str, Any]) -> dict[str, Any]:
    async with asyncio.timeout(30):
        while True:
            found: dict[str, Any] = (await cell.turbo.get(f"/v1/jobs/{job['id']}")).json()
            if found["finished_at"]:
                return found
            await asyncio.sleep(0.02)


async def test_answer_of_one_model_is_never_given_for_another(cell: Cell) -> None:
    """Of a client that comes again: what was drawn for nobody is known by its model, too."""
    turns = {"Idempotency-Key": "k"}
    names = []
    for client, pool, model in ((cell.turbo, TURBO, "turbo"), (cell.photo, PHOTO, "photo")):
        seen: list[str] = []
        life = cell.lives[0 if model == "turbo" else 1]
        undelivered = life.components.undelivered
        take, undelivered.take = undelivered.take, lambda name, seen=seen: seen.append(name)  # type: ignore[method-assign, misc]
        body = {**BODY, "model": model}
        await client.post(DRAW, json=body, headers={**asked_in(pool), **turns})
        undelivered.take = take  # type: ignore[method-assign]
        names += seen
    assert len(set(names)) == 2


def _png() -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (64, 64)).save(file, "png")
    return file.getvalue()


def _pixels(answer: dict[str, Any]) -> Any:
    data = base64.b64decode(answer["data"][0]["b64_json"])
    return np.asarray(Image.open(io.BytesIO(data)))
