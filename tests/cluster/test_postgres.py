"""A cell whose database is a server: all of it works, and drawing does without."""

import json
from collections.abc import Iterator

import httpx
import pytest

from tests.cluster.conftest import RunningCell, started
from tests.cluster.test_keys import bearer, known_after_s, make
from tests.deploy.processes import wait_until
from tests.postgres import Server, short_folder

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(300)]
PASSWORD = "correct horse 7"


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    """One that no other test needs."""
    with short_folder() as folder:
        made = Server(folder).create().start()
        yield made
        made.stop()


@pytest.fixture(scope="module")
def cell(server: Server) -> Iterator[RunningCell]:
    file = server.folder / "password"
    file.write_text(f"{PASSWORD}\n")
    file.chmod(0o600)
    with server.guarded("cell", PASSWORD) as url:
        database = f'[database]\nurl = "{url}"\npassword_file = "{file}"'
        with started(auth="keys", workers=2, more=database) as running:
            yield running


@pytest.fixture(scope="module")
def client(cell: RunningCell) -> Iterator[httpx.Client]:
    token = make(cell, "ada", "--role", "ops")
    with httpx.Client(base_url=cell.url, headers=bearer(token), timeout=60) as made:
        known_after_s(cell, token, 200)
        yield made


def drawn(client: httpx.Client, prompt: str) -> None:
    answer = client.post("/v1/images/generations", json={"prompt": prompt, "size": "64x64"})
    assert answer.status_code == 200, answer.text


def listed(client: httpx.Client) -> list[str]:
    answer = client.get("/v1/images")
    assert answer.status_code == 200, answer.text
    return [picture["prompt"] for picture in answer.json()["data"]]


def test_keys_pictures_jobs_and_usage_are_there(cell: RunningCell, client: httpx.Client) -> None:
    drawn(client, "a fox")
    wait_until(lambda: "a fox" in listed(client), "in the gallery")
    job = client.post("/v1/jobs", json={"prompts": ["b", "c"], "size": "64x64"}).json()
    wait_until(lambda: client.get(f"/v1/jobs/{job['id']}").json()["state"] == "completed", "drawn")
    assert {"a fox", "b", "c"} <= set(listed(client))

    def images() -> int:
        return sum(row["images"] for row in client.get("/v1/usage").json()["data"])

    wait_until(lambda: images() >= 3, "counted")
    assert not cell.layout.database.exists()


def test_the_password_stands_in_its_file_alone(cell: RunningCell, client: httpx.Client) -> None:
    files = [path for path in cell.layout.var_dir.rglob("*") if path.is_file()]
    assert [path for path in files if PASSWORD.encode() in path.read_bytes()] == []
    told = cell.zimage("doctor", "--json")
    assert PASSWORD not in told.stdout + told.stderr
    assert any("PostgreSQL" in found["text"] for found in json.loads(told.stdout))


def test_a_running_cell_is_saved_and_the_backup_tried(
    cell: RunningCell, client: httpx.Client, server: Server
) -> None:
    file = cell.config_path.with_name("b.tar")
    saved = cell.zimage("backup", "--images", str(file))
    assert saved.returncode == 0, saved.stderr
    assert PASSWORD.encode() not in file.read_bytes()
    refused = cell.zimage("restore", "--drill", str(file))
    assert refused.returncode == 1
    assert "ALTER ROLE cell CREATEDB, or name an empty one with --scratch" in refused.stderr
    with server.connect() as admin:
        admin.execute("ALTER ROLE cell CREATEDB")
    tried = cell.zimage("restore", "--drill", str(file))
    assert tried.returncode == 0, tried.stderr
    assert "can be restored: its rows came back" in tried.stdout
    assert "end it first with zimage down" in cell.zimage("restore", str(file)).stderr


def test_drawing_does_without_the_server_and_nothing_must_be_restarted(
    cell: RunningCell, client: httpx.Client, server: Server
) -> None:
    server.stop()
    for k in range(4):
        drawn(client, f"without {k}")
    for refused in (client.get("/v1/images"), client.post("/v1/jobs", json={"prompts": ["d"]})):
        assert (refused.status_code, refused.json()["error"]["code"]) == (
            503,
            "store_unavailable",
        )
    assert cell.is_whole()
    server.start()
    wait_until(lambda: client.get("/v1/images").status_code == 200, "back")
    kept = {f"without {k}" for k in range(4)}
    wait_until(lambda: kept <= set(listed(client)), "in the gallery")
