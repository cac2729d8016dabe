"""A cell whose pictures move from its folder into a real bucket, whose store dies and returns."""

import io
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from PIL import Image

from tests.cluster.conftest import RunningCell, edit, started
from tests.deploy.processes import wait_until
from tests.object_store import ObjectStore, running
from worker.storage.bucket import Bucket

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(300)]


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ObjectStore]:
    """One of our own: it is killed."""
    with running(tmp_path_factory.mktemp("cell-store")) as store:
        yield store


@pytest.fixture(scope="module")
def cell() -> Iterator[RunningCell]:
    with started(model="synthetic:step_ms=1", workers=2, more="\n[gallery]\n") as cell:
        yield cell


def draw(cell: RunningCell, prompt: str, **more: Any) -> httpx.Response:
    body = {"prompt": prompt, "size": "256x256", "response_format": "url", **more}
    return httpx.post(f"{cell.url}/v1/images/generations", json=body, timeout=60)


def link(cell: RunningCell, prompt: str) -> str:
    answer = draw(cell, prompt)
    assert answer.status_code == 200, answer.text
    return str(answer.json()["data"][0]["url"])


def pictures(cell: RunningCell) -> dict[str, dict[str, Any]]:
    """Those of the gallery, by their prompts."""
    found = httpx.get(f"{cell.url}/v1/images?limit=200").json()["data"]
    return {picture["prompt"]: picture for picture in found}


def kept(cell: RunningCell, prompt: str) -> dict[str, Any]:
    wait_until(lambda: prompt in pictures(cell), f"{prompt} kept")
    return pictures(cell)[prompt]


def is_png(answer: httpx.Response) -> bool:
    return answer.status_code == 200 and answer.content.startswith(b"\x89PNG")


def test_a_folder_becomes_a_bucket_while_the_cell_runs(
    cell: RunningCell, store: ObjectStore
) -> None:
    early = link(cell, "early")
    kept(cell, "early")
    objects = store.objects("cell/one", spool_gib=0.017).model_dump()
    lines = "".join(f"{key} = {value!r}\n" for key, value in objects.items())
    edit(cell, "[gallery]", f"[objects]\n{lines}[gallery]")
    cell.up()
    link(cell, "late")
    bucket = Bucket(store.objects("cell/one"))
    name = f"{pictures(cell)['early']['id']}.png"
    assert not any(file.name.endswith(name) for file in bucket.files())
    assert is_png(httpx.get(early))
    done = cell.zimage("images", "move")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "every copy has the SHA-256" in done.stdout
    assert not list(cell.layout.images_dir.rglob("*.png"))
    assert any(file.name.endswith(name) for file in bucket.files())
    assert is_png(httpx.get(early))
    assert is_png(httpx.get(cell.url + pictures(cell)["early"]["url"]))
    doctor = cell.zimage("doctor")
    assert f"s3://pictures/cell/one at {store.endpoint} can be used" in doctor.stdout


def test_a_picture_is_looked_at_in_parts_and_small_and_deleted(cell: RunningCell) -> None:
    url = link(cell, "a fox")
    whole = httpx.get(url)
    assert is_png(whole)
    assert whole.headers["content-disposition"].startswith('inline; filename="')
    part = httpx.get(url, headers={"Range": "bytes=1-3"})
    assert (part.status_code, part.content) == (206, b"PNG")
    picture = kept(cell, "a fox")
    small = httpx.get(cell.url + picture["thumbnail_url"])
    assert small.headers["content-type"] == "image/webp"
    assert max(Image.open(io.BytesIO(small.content)).size) == 256
    saved = httpx.get(cell.url + picture["url"] + "?download=1")
    assert saved.headers["content-disposition"].startswith("attachment; filename*=UTF-8''a-fox-")
    assert httpx.delete(cell.url + picture["url"]).status_code == 204
    assert httpx.get(url).status_code == 404


def test_a_store_that_dies_stops_no_drawing_and_loses_no_picture(
    cell: RunningCell, store: ObjectStore, tmp_path: Path
) -> None:
    before = kept(cell, "late")
    deleted = link(cell, "to be deleted")
    doomed = kept(cell, "to be deleted")
    store.kill()
    try:
        inline = draw(cell, "inline", response_format="b64_json", stream=True)
        assert b"image_generation.completed" in inline.content
        spooled = link(cell, "spooled")
        assert is_png(httpx.get(spooled))
        assert is_png(httpx.get(cell.url + kept(cell, "spooled")["url"]))
        away = httpx.get(cell.url + before["url"])
        # Both workers were asked, so both know of it by now.
        assert (away.status_code, away.json()["error"]["code"]) == (503, "pictures_unavailable")
        assert httpx.delete(cell.url + doomed["url"]).status_code == 204
        assert httpx.get(deleted).status_code == 404
        job = httpx.post(
            f"{cell.url}/v1/jobs", json={"prompts": ["one", "two"], "size": "256x256"}
        ).json()
        fill = cell.layout.var_dir / "spool/pictures/2026-01-01/img_fill.png"
        fill.parent.mkdir()
        fill.write_bytes(bytes(20 << 20))
        full = draw(cell, "full")
        assert (full.status_code, full.json()["error"]["code"]) == (507, "storage_failed")
        fill.unlink()
        restarted = cell.zimage("restart")
        assert restarted.returncode == 0, restarted.stderr
        assert is_png(httpx.get(spooled))
        waiting = httpx.get(f"{cell.url}/v1/jobs/{job['id']}").json()
        assert waiting["counts"]["done"] == 0
    finally:
        store.start()
    spool = cell.layout.var_dir / "spool"
    wait_until(lambda: not [p for p in spool.glob("*/*/*") if p.is_file()], "drained")
    bucket = Bucket(store.objects("cell/one"))
    assert not any(doomed["id"] in file.name for file in bucket.files())
    assert any(kept(cell, "spooled")["id"] in file.name for file in bucket.files())
    assert is_png(httpx.get(spooled))
    job_url = f"{cell.url}/v1/jobs/{job['id']}"
    wait_until(lambda: httpx.get(job_url).json()["state"] == "completed", "job completed")
    # A store that has just come back fails a read: no archive is cut for it.
    answer = httpx.get(f"{job_url}/results.zip", timeout=60)
    results = zipfile.ZipFile(io.BytesIO(answer.content))
    assert sorted(results.namelist()) == ["0001-one.png", "0002-two.png"]
    kept(cell, "inline")
    assert list(cell.layout.images_dir.rglob("*.png")) == []
