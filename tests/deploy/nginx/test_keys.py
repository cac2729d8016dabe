"""Whose key is asked for before the body is taken: a stranger's megabytes never reach the disk."""

import socket
from collections.abc import Iterator
from typing import Any

import pytest

from tests.deploy.nginx.site import Site, site
from tests.deploy.nginx.test_bodies import bytes_on_disk
from tests.deploy.processes import ask
from tests.ports import free_port

DRAW, EDITS = "/v1/images/generations", "/v1/images/edits"
PICTURES = (EDITS, "/v1/images/variations", "/v1/images/upscale", "/v1/uploads")
JSON = {"Content-Type": "application/json"}
GOOD = {"Authorization": "Bearer good"}
KIB_64 = 64 << 10


@pytest.fixture(scope="module")
def keyed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    with site(tmp_path_factory.mktemp("keyed"), listen={"port": free_port(), "auth": "keys"}) as at:
        yield at


@pytest.fixture(autouse=True)
def nothing_asked(keyed: Site) -> None:
    with keyed.worker("w1"):
        asked(keyed)


def begun(site: Site, path: str, *more: str) -> str:
    """What is answered to the head of a request, of whose body nothing was sent."""
    address = ("127.0.0.1", site.config.listen.port)
    head = "\r\n".join((f"POST {path} HTTP/1.1", "Host: localhost", *more))
    with socket.create_connection(address, timeout=10) as connection:
        connection.sendall(f"{head}\r\n\r\n".encode())
        return connection.recv(4096).decode("latin-1")


def asked(site: Site) -> list[dict[str, Any]]:
    """Questions for keys that the worker has got since the last time."""
    return list(ask(site.layout, "w1", "GET", "/fake/asked").json())


@pytest.mark.parametrize("path", [*PICTURES, "/v1/jobs"])
@pytest.mark.parametrize(
    "length", ["Content-Length: 8388608", "Transfer-Encoding: chunked", "Content-Length: 70000"]
)
def test_without_a_key_no_byte_of_a_body_is_waited_for(keyed: Site, path: str, length: str) -> None:
    with keyed.worker("w1"):
        told = begun(keyed, path, length)
        assert told.startswith("HTTP/1.1 401 ")
        assert '"invalid_api_key"' in told
        assert asked(keyed) == [{"method": "GET", "bytes": 0}]


def test_a_keyless_body_of_8_mib_is_refused_before_it_is_taken(keyed: Site) -> None:
    with (
        keyed.worker("w1"),
        socket.create_connection(("127.0.0.1", keyed.config.listen.port), timeout=10) as connection,
    ):
        head = f"POST {EDITS} HTTP/1.1\r\nHost: localhost\r\nContent-Length: 8388608\r\n\r\n"
        connection.sendall(head.encode() + b"x" * 300_000)
        assert connection.recv(4096).startswith(b"HTTP/1.1 401 ")
        assert bytes_on_disk(keyed) == 0


@pytest.mark.parametrize("path", [*PICTURES, "/v1/jobs"])
def test_a_good_keys_body_arrives_whole(keyed: Site, path: str) -> None:
    with keyed.worker("w1"):
        reply = keyed.client.post(path, content=b"x" * 8_000_000, headers=GOOD)
        assert (reply.status_code, reply.json()["asked"]["body"]) == (200, 8_000_000)
        assert asked(keyed) == [{"method": "GET", "bytes": 0}]


def test_of_small_bodies_the_worker_alone_asks(keyed: Site) -> None:
    with keyed.worker("w1"):
        for path, size in ((DRAW, KIB_64), ("/v1/jobs", KIB_64), (DRAW, 2)):
            content = b"{}".ljust(size)
            assert keyed.client.post(path, content=content, headers=JSON).status_code == 200
        assert keyed.client.get("/v1/models").status_code == 200
        at_the_worker = keyed.client.post("/v1/session", content=iter([b"{}"]))
        assert at_the_worker.status_code == 404  # which has no such route
        assert asked(keyed) == []
        assert keyed.client.post(EDITS, content=b"{}", headers=JSON).status_code == 401
        large = b"{}".ljust(KIB_64 + 1)
        assert keyed.client.post(DRAW, content=large, headers=JSON).status_code == 401
        assert keyed.client.post("/v1/session", content=large, headers=JSON).status_code == 401
        assert len(asked(keyed)) == 3


def test_a_cookie_is_a_key_as_well(keyed: Site) -> None:
    with keyed.worker("w1"):
        headers = {"Cookie": "zimage=x", **GOOD}
        reply = keyed.client.post(EDITS, content=b"x", headers=headers)
        assert reply.json()["headers"]["cookie"] == "zimage=x"


def test_a_request_that_is_handed_back_is_asked_for_again(keyed: Site) -> None:
    """The question is one request more of nginx, and takes no turn from this one."""
    with keyed.worker("w1"):
        fault = {"prompt": "hand back", "direct": True}
        reply = keyed.client.post(EDITS, json=fault, headers=GOOD)
        assert reply.status_code == 200  # the last turn: a worker may ask for no more
        assert "x-again" not in reply.json()["headers"]
        direct = keyed.client.post(EDITS, json={"direct": True}, headers=GOOD).json()
        assert direct["headers"]["x-again"] == "1"
        jobs = keyed.client.post("/v1/jobs", json={"direct": True}, headers=GOOD).json()
        assert "x-again" not in jobs["headers"]


@pytest.mark.parametrize(
    ("key", "status", "code"),
    [("wrong", 401, "invalid_api_key"), ("many", 429, "rate_limit_exceeded")],
)
def test_a_key_that_is_not_good_is_refused_as_a_worker_does(
    keyed: Site, key: str, status: int, code: str
) -> None:
    with keyed.worker("w1"):
        told = begun(keyed, EDITS, "Content-Length: 8388608", f"Authorization: Bearer {key}")
    assert told.startswith(f"HTTP/1.1 {status} ")
    assert f'"{code}"' in told
    assert ("Retry-After" in told) == (status == 429)


def test_where_nobody_can_be_asked_nothing_is_taken(keyed: Site) -> None:
    told = begun(keyed, EDITS, "Content-Length: 8388608", "Authorization: Bearer good")
    assert told.startswith("HTTP/1.1 503 ")
    assert "Retry-After" in told
    assert '"unavailable"' in told


def test_the_question_is_no_address_of_clients(keyed: Site) -> None:
    with keyed.worker("w1"):
        for path in ("/internal/key", "/admin/key"):
            assert keyed.client.get(path, headers=GOOD).status_code == 404


def test_without_keys_nobody_is_asked(front: Site) -> None:
    with front.worker("w1"):
        assert front.client.post(EDITS, content=b"x" * 200_000).status_code == 200
        assert asked(front) == []
