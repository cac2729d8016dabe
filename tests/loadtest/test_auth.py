"""Whom a load test trusts, and what it shows."""

import ssl
from collections.abc import Iterator
from pathlib import Path

import pytest
import requests

from loadtest.auth import Entry
from loadtest.client import session_of
from tests.deploy.rendering.test_certificate import write_pair
from tests.http_server import QuietHandler, serving


class Echo(QuietHandler):
    def do_GET(self) -> None:
        self.send_response(200)
        self.end_headers()
        self.wfile.write(self.headers.get("Authorization", "").encode())


@pytest.fixture
def pair(tmp_path: Path) -> dict[str, str]:
    return write_pair(tmp_path / "a")


@pytest.fixture
def url(pair: dict[str, str]) -> Iterator[str]:
    """A server whose certificate is for zimage.test, asked by its address."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(pair["certificate"], pair["key"])
    with serving(Echo, context) as address:
        yield f"{address}/"


def test_the_named_certificate_is_trusted_and_the_key_shown(
    url: str, pair: dict[str, str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", write_pair(tmp_path / "b")["certificate"])
    answer = session_of(Entry("zimage_x", ca=pair["certificate"])).get(url, timeout=10)
    assert answer.text == "Bearer zimage_x"


def test_another_certificate_is_not_trusted(url: str, tmp_path: Path) -> None:
    other = write_pair(tmp_path / "b")["certificate"]
    for entry in (Entry(ca=other), Entry()):
        with pytest.raises(requests.exceptions.SSLError):
            session_of(entry).get(url, timeout=10)


def test_every_certificate_is_trusted_on_demand(url: str) -> None:
    assert session_of(Entry(insecure=True)).get(url, timeout=10).text == ""


def test_key_is_in_no_message() -> None:
    assert "zimage_x" not in repr(Entry("zimage_x"))
