"""The audit log has who signed in, and what operators saw of others."""

import json
from pathlib import Path
from typing import Any

import anyio
import pytest

from tests.worker.api.middleware.test_access import Keyed, keyed  # noqa: F401 — a fixture
from tests.worker.storage.conftest import picture
from worker.storage import gallery

pytestmark = pytest.mark.anyio


async def noted(home: Path, count: int, event: str = "") -> list[dict[str, Any]]:
    """The lines of the audit log, of one kind or all, once there are so many."""
    with anyio.fail_after(10):
        while True:
            texts = [path.read_text() for path in (home / "audit").glob("*")]
            found = [json.loads(line) for text in texts for line in text.splitlines()]
            found = [line for line in found if event in line["event"]]
            if len(found) >= count:
                return found
            await anyio.sleep(0.02)


async def test_good_and_bad_sign_ins_are_noted(keyed: Keyed, home: Path) -> None:  # noqa: F811
    key, token = await keyed.make("ada")
    assert (await keyed.sign_in(token, **{"X-Real-IP": "10.0.0.7"})).status_code == 204
    assert (await keyed.sign_in("zimage_wrong", **{"X-Real-IP": "10.6.6.6"})).status_code == 401
    await keyed.change(key, disabled=True)
    assert (await keyed.sign_in(token, **{"X-Real-IP": "10.0.0.7"})).status_code == 401
    lines = await noted(home, 3)
    assert [(x["event"], x["client"], x.get("why")) for x in lines] == [
        ("signed_in", "10.0.0.7", None),
        ("sign_in_refused", "10.6.6.6", "wrong key"),
        ("sign_in_refused", "10.0.0.7", "disabled"),
    ]
    assert (lines[0]["owner"], lines[0]["name"]) == (key.id, "ada")
    assert token not in json.dumps(lines)
    assert "zimage_wrong" not in json.dumps(lines)


async def test_what_operators_do_with_pictures_of_others_is_noted(
    keyed: Keyed,  # noqa: F811
    home: Path,
) -> None:
    ada, as_ada = await keyed.make("ada")
    eve, as_eve = await keyed.make("eve", role="ops")
    theirs = [picture("a", owner=ada.id), picture("own", owner=eve.id)]
    await keyed.service.components.database.run(lambda c: gallery.insert(c, *theirs))
    for token, method, path in (
        (as_ada, "GET", "/v1/images"),
        (as_ada, "GET", "/v1/images/img_a/details"),
        (as_eve, "GET", "/v1/images"),
        (as_eve, "GET", "/v1/images/img_own/details"),
        (as_eve, "GET", "/v1/images/img_a/details"),
        (as_eve, "DELETE", "/v1/images/img_a"),
    ):
        headers = {"Authorization": f"Bearer {token}", "X-Real-IP": "10.0.0.9"}
        assert (await keyed.client.request(method, path, headers=headers)).is_success
    lines = await noted(home, 3)
    assert {(x["event"], x["name"], x["client"], *x["of"]) for x in lines} == {
        ("as_operator", "eve", "10.0.0.9", ada.id)
    }
    assert [(x["request"], x["images"]) for x in lines] == [
        ("GET /v1/images", ["img_a"]),
        ("GET /v1/images/img_a/details", ["img_a"]),
        ("DELETE /v1/images/img_a", ["img_a"]),
    ]


async def test_an_operator_who_looks_into_a_job_of_others_is_noted(
    keyed: Keyed,  # noqa: F811
    home: Path,
) -> None:
    ada, as_ada = await keyed.make("ada")
    _, as_eve = await keyed.make("eve", role="ops")
    job = {"prompts": ["a"], "size": "64x64", "steps": 1}
    headers = {"Authorization": f"Bearer {as_ada}"}
    made = (await keyed.client.post("/v1/jobs", json=job, headers=headers)).json()
    headers = {"Authorization": f"Bearer {as_eve}"}
    path = f"/v1/jobs/{made['id']}/items"
    assert (await keyed.client.get(path, headers=headers)).is_success
    [line] = await noted(home, 1, "as_operator")
    assert (line["request"], line["job"], line["of"]) == (f"GET {path}", made["id"], [ada.id])
