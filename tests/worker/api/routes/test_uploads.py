"""Pictures that are sent once, kept for a day, and drawn from by their id."""

import hashlib
import io
import time
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
import sqlalchemy as sa
from PIL import Image

from tests.object_store import ObjectStore
from tests.worker.api.middleware.test_access import Keyed, keyed  # noqa: F401 — a fixture
from tests.worker.api.routes.test_edits import (
    EDITS,
    VARIATIONS,
    mask,
    pixels_in,
    png,
    refusal,
    sent,
)
from tests.worker.api.routes.test_gallery import file_of, listed
from tests.worker.conftest import migrated, ready, serving, settings_in
from worker.lifecycle import Lifecycle
from worker.storage import uploads
from worker.storage.keys import Role
from worker.storage.uploads import KEEP_S, MAX_UPLOADS

pytestmark = [pytest.mark.anyio, pytest.mark.timeout(60)]
UPLOADS = "/v1/uploads"


async def uploaded(client: httpx.AsyncClient, data: bytes, **headers: str) -> dict[str, Any]:
    answer = await client.post(UPLOADS, files={"file": data}, headers=headers)
    assert answer.status_code == 201, answer.text
    return dict(answer.json())


def kept_files(home: Path) -> list[Path]:
    return sorted((home / "images").glob("*/upload_*"))


async def expire(service: Lifecycle, id: str) -> None:
    """Its day is over, and old pictures are looked for."""
    over = uploads.uploads.update().where(uploads.uploads.c.id == id).values(expires_at=1.0)
    await service.components.database.run(lambda c: c.execute(over) and None)
    await service.components.sweeper.sweep()


async def test_an_upload_is_kept_for_a_day(client: httpx.AsyncClient, home: Path) -> None:
    made = await uploaded(client, png())
    (file,) = kept_files(home)
    assert (
        made.items()
        >= {
            "object": "upload",
            "bytes": file.stat().st_size,
            "width": 128,
            "height": 96,
            "sha256": hashlib.sha256(png()).hexdigest(),
        }.items()
    )
    assert made["id"].startswith("upload_")
    assert made["expires_at"] - made["created"] == KEEP_S
    assert abs(made["created"] - time.time()) < 60
    assert (await client.get(f"{UPLOADS}/{made['id']}")).json() == made
    assert (await client.get(UPLOADS)).json()["data"] == [made]
    content = await client.get(made["url"])
    assert content.headers["content-type"] == "image/png"
    seen = Image.open(io.BytesIO(file_of(home, content)))
    assert np.array_equal(np.asarray(seen), np.asarray(Image.open(io.BytesIO(png()))))


async def test_the_body_may_be_the_file_itself(client: httpx.AsyncClient) -> None:
    for kind in ("image/png", "application/octet-stream"):
        answer = await client.post(UPLOADS, content=png(), headers={"Content-Type": kind})
        assert (answer.status_code, answer.json()["width"]) == (201, 128), answer.text


async def test_what_stands_beside_the_pixels_is_dropped(
    client: httpx.AsyncClient, home: Path
) -> None:
    """It is turned as its EXIF says first."""
    photo, file = Image.new("RGB", (64, 32), (0, 0, 255)), io.BytesIO()
    exif = photo.getexif()
    exif[0x0112], exif[0x010F] = 6, "a camera with a secret"
    photo.save(file, "jpeg", exif=exif)
    made = await uploaded(client, file.getvalue())
    assert (made["width"], made["height"]) == (32, 64)
    (kept,) = kept_files(home)
    assert b"secret" not in kept.read_bytes()
    assert not Image.open(io.BytesIO(kept.read_bytes())).info


async def test_it_draws_what_the_file_itself_draws(client: httpx.AsyncClient, home: Path) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (96, 128, 4), np.uint8)
    noise[..., 3] = 255
    noise[:, 64:, 3] = 0
    file = io.BytesIO()
    Image.fromarray(noise).save(file, "webp", lossless=True, exact=True)
    fields = {"prompt": "a", "seed": 7}
    sent = await client.post(EDITS, data=fields, files={"image": file.getvalue()})
    made = await uploaded(client, file.getvalue())
    named = await client.post(EDITS, json={**fields, "image": made["id"]})
    assert np.array_equal(pixels_in(named), pixels_in(sent))
    assert named.json()["data"] == sent.json()["data"]  # what its file says, too


async def test_masks_may_be_uploads(client: httpx.AsyncClient) -> None:
    image, hidden = await uploaded(client, png()), await uploaded(client, mask())
    body = {"prompt": "a", "image": image["id"], "mask": hidden["id"]}
    pixels = pixels_in(await client.post(EDITS, json=body))
    whole = np.asarray(Image.open(io.BytesIO(png())))
    assert np.array_equal(pixels[:, :64], whole[:, :64])
    assert (pixels[1:, 64:] != whole[1:, 64:]).any()
    told = refusal(await client.post(VARIATIONS, json=body | {"image": image["id"]}))
    assert told == ("mask", "mask: variations have none: use /v1/images/edits.")


ADDRESSES = (
    "http://169.254.169.254/latest/meta-data",
    "HTTPS://cell/a.png",
    "file:///etc/passwd",
    "data:image/png;base64,AAAA",
    "gopher://127.0.0.1:6379/_",
    "//cell/a.png",
)


@pytest.mark.parametrize("field", ["image", "mask"])
async def test_no_address_is_fetched(client: httpx.AsyncClient, field: str) -> None:
    for address in ADDRESSES:
        asked = {"prompt": "a", "image": f"upload_{'0' * 32}", field: address}
        param, message = refusal(await client.post(EDITS, json=asked))
        assert (param, "nothing is fetched here" in message) == (field, True)
        form = {name: (None, value) for name, value in asked.items()}
        assert refusal(await client.post(EDITS, files=form)) == (param, message)


REFUSED: dict[str, tuple[dict[str, Any], int, str]] = {
    "nothing": ({"files": {"image": png()}}, 400, "a file called file"),
    "two": ({"files": [("file", png()), ("file", png())]}, 400, "2 of them: send one"),
    "empty": ({"content": b"", "headers": {"Content-Type": "image/png"}}, 400, "not a PNG"),
    "no picture": ({"files": {"file": b"GIF89a"}}, 400, "not a PNG, JPEG or WebP"),
    "json": ({"json": {"file": "http://cell/a.png"}}, 415, "multipart/form-data"),
    "large": (
        {"content": b"x", "headers": {"Content-Type": "image/png", "Content-Length": "99999999"}},
        413,
        "send a smaller one",
    ),
}


async def test_what_is_no_picture_is_refused_and_not_kept(
    client: httpx.AsyncClient, home: Path
) -> None:
    for name, (how, status, why) in REFUSED.items():
        answer = await client.post(UPLOADS, **how)
        assert (answer.status_code, why in answer.text) == (status, True), (name, answer.text)
    assert not kept_files(home)


async def test_a_replay_keeps_one(client: httpx.AsyncClient, home: Path) -> None:
    made = [await uploaded(client, png(), **{"X-Request-ID": "0" * 32}) for _ in range(2)]
    assert made[0] == made[1]
    assert len(kept_files(home)) == 1


async def test_deleted_and_expired_ones_are_gone_with_their_files(
    cell: tuple[Lifecycle, httpx.AsyncClient], home: Path
) -> None:
    life, client = cell
    deleted, old, young = [await uploaded(client, png()) for _ in range(3)]
    assert (await client.delete(f"{UPLOADS}/{deleted['id']}")).status_code == 204
    await expire(life, old["id"])
    assert [file.stem for file in kept_files(home)] == [young["id"]]
    for gone in (deleted, old):
        for path in (f"{UPLOADS}/{gone['id']}", gone["url"]):
            assert (await client.get(path)).status_code == 404
        answer = await client.post(EDITS, json={"prompt": "a", "image": gone["id"]})
        assert answer.status_code == 404
        assert "send it again" in answer.json()["error"]["message"]


async def test_files_of_no_gallery_are_looked_through_and_uploads_stay(home: Path) -> None:
    settings = settings_in(home, gallery={"enabled": False}, url_ttl_s=0.001)
    async with serving(migrated(settings)) as (service, client):
        await ready(service)
        made = await uploaded(client, png())
        await service.components.sweeper.sweep()
        assert (await client.get(f"{UPLOADS}/{made['id']}")).json() == made
    assert kept_files(home)


async def test_over_the_owners_share_nothing_is_read(
    cell: tuple[Lifecycle, httpx.AsyncClient], monkeypatch: pytest.MonkeyPatch
) -> None:
    life, client = cell
    made = await uploaded(client, png())
    await filled(life, made["id"], bytes=512 << 20)
    decode = life.components.sources.pixels
    monkeypatch.setattr(life.components.sources, "pixels", None)  # whoever decodes fails
    answer = await client.post(UPLOADS, files={"file": png()})
    assert (answer.status_code, answer.json()["error"]["code"]) == (429, "rate_limit_exceeded")
    assert "DELETE /v1/uploads/ID" in answer.json()["error"]["message"]
    monkeypatch.setattr(life.components.sources, "pixels", decode)
    await client.delete(f"{UPLOADS}/{made['id']}")
    assert await uploaded(client, png())


async def test_the_file_that_would_be_too_much_is_not_kept(
    cell: tuple[Lifecycle, httpx.AsyncClient], home: Path
) -> None:
    life, client = cell
    made = await uploaded(client, png())
    await filled(life, made["id"], bytes=(512 << 20) - made["bytes"] + 1)
    assert (await client.post(UPLOADS, files={"file": png()})).status_code == 429
    assert [file.stem for file in kept_files(home)] == [made["id"]]


async def test_there_are_only_so_many(
    cell: tuple[Lifecycle, httpx.AsyncClient], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert MAX_UPLOADS == 1000
    monkeypatch.setattr(uploads, "MAX_UPLOADS", 1)
    await uploaded(cell[1], png())
    assert (await cell[1].post(UPLOADS, files={"file": png()})).status_code == 429


async def filled(service: Lifecycle, id: str, bytes: int) -> None:
    table = uploads.uploads
    change = sa.update(table).where(table.c.id == id).values(bytes=bytes)
    await service.components.database.run(lambda c: c.execute(change) and None)


@pytest.mark.parametrize("role", ["user", "ops"])
async def test_uploads_are_their_owners_only(
    keyed: Keyed,  # noqa: F811
    role: Role,
) -> None:
    """Whoever may see everybody's pictures, too, sees none of them."""
    _, ada = await keyed.make("ada")
    _, eve = await keyed.make("eve", role=role)
    as_ada, as_eve = ({"Authorization": f"Bearer {token}"} for token in (ada, eve))
    made = await uploaded(keyed.client, png(), **as_ada)
    path, asked = f"{UPLOADS}/{made['id']}", {"prompt": "a", "image": made["id"]}
    for headers, found in ((as_eve, False), (as_ada, True)):
        client, told = keyed.client, {"headers": headers}
        answers = [
            await client.get(path, **told),  # type: ignore[arg-type]
            await client.get(made["url"], **told),  # type: ignore[arg-type]
            await client.post(EDITS, json=asked, **told),  # type: ignore[arg-type]
            await client.delete(path, **told),  # type: ignore[arg-type]
        ]
        assert [answer.status_code for answer in answers] == (
            [200, 200, 200, 204] if found else [404] * 4
        )
        listed = (await client.get(UPLOADS, headers=headers)).json()["data"]
        assert listed == []


async def test_where_there_is_no_room_it_is_said(
    cell: tuple[Lifecycle, httpx.AsyncClient], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("worker.storage.images.MIN_FREE_BYTES", 1 << 60)
    answer = await cell[1].post(UPLOADS, files={"file": png()})
    assert (answer.status_code, answer.json()["error"]["param"]) == (507, "file")
    assert "POST /v1/images/edits" in answer.json()["error"]["message"]


@pytest.mark.xdist_group("s3")
async def test_where_hosts_share_a_store_any_of_them_draws_from_it(
    home: Path, shared_url: str, object_store: ObjectStore
) -> None:
    objects = object_store.objects("uploads").model_dump()
    about = {"database_url": shared_url, "objects": objects}
    async with (
        serving(settings_in(home / "a", host="a", **about)) as (service, client),
        serving(settings_in(home / "b", host="b", **about)) as (other_service, other),
    ):
        await ready(service)
        await ready(other_service)
        made = await uploaded(client, png())
        assert not kept_files(home / "a")
        body = {"prompt": "a", "image": made["id"], "store": False}
        answer = await other.post(EDITS, json=body)
        assert pixels_in(answer).shape == (96, 128, 3)
        (kept,) = other_service.components.images.files()
        assert kept.id == made["id"]
        await expire(other_service, made["id"])
        assert not service.components.images.files()


async def test_the_gallery_names_what_a_picture_was_drawn_from(client: httpx.AsyncClient) -> None:
    """Of what was sent along there is no name."""
    image, hidden = await uploaded(client, png()), await uploaded(client, mask())
    placed = {"size": "256x96", "fit": "extend", "position": "80,0"}
    named = {"prompt": "a", "image": image["id"], "mask": hidden["id"], **placed}
    await client.post(EDITS, json=named)
    (row,) = await listed(client, 1)
    ids = {"image": image["id"], "mask": hidden["id"]}
    assert row["drawn_from"] == {**ids, "fit": "extend", "position": "80,0"}
    await sent(client, {"prompt": "b", "image": image["id"]}, mask=mask())
    rows = await listed(client, 2)
    told = [each["drawn_from"] for each in rows if each["prompt"] == "b"]
    assert told == [{"image": image["id"], "mask": None, "fit": "cover", "position": None}]
    await sent(client, {"prompt": "c"}, image=png())
    rows = await listed(client, 3)
    assert [each["drawn_from"] for each in rows if each["prompt"] == "c"] == [None]
