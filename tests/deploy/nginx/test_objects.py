"""Pictures of a bucket through nginx: a real nginx before a real store."""

import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from deploy.rendering.store_address import nameservers_of, store_address
from tests.deploy.nginx.site import (
    Site,
    SiteLayout,
    configuration,
    files,
    nginx_command,
    site,
    write,
)
from tests.object_store import ObjectStore
from tests.worker.storage.conftest import DAY
from worker.storage.bucket import LINK_S, Bucket
from worker.storage.bucket_images import LOCATION
from worker.tables import Objects

pytestmark = pytest.mark.xdist_group("s3")

NAME = f"{DAY}/img_fox.png"
DATA = bytes(range(256)) * 1000


@pytest.fixture(scope="module")
def bucket(object_store: ObjectStore) -> Bucket:
    bucket = Bucket(object_store.objects("nginx"))
    bucket.put(NAME, DATA)
    bucket.put(f"{DAY}/img_page.png", b"<script>alert(1)</script>")
    bucket.put("another/secret.png", b"secret")
    return bucket


@pytest.fixture(scope="module")
def front(
    object_store: ObjectStore, bucket: Bucket, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Site]:
    objects = object_store.objects("nginx").model_dump()
    with site(tmp_path_factory.mktemp("bucket"), objects=objects) as front, front.worker("w1"):
        yield front


def ask(front: Site, at: str, method: str = "GET", **headers: str) -> httpx.Response:
    """As whoever looks at a picture that a worker says is ``at``."""
    return front.client.request(method, "/v1/images/files/pic.png", headers={"X-At": at, **headers})


def signed(bucket: Bucket, name: str = NAME) -> str:
    return f"{LOCATION}{name}?{bucket.signed(name)}"


def test_a_picture_of_the_bucket_has_our_headers_and_none_of_the_stores(
    front: Site, bucket: Bucket
) -> None:
    reply = ask(front, signed(bucket))
    assert (reply.status_code, reply.content) == (200, DATA)
    told = {name: value for name, value in reply.headers.items() if name != "date"}
    assert re.fullmatch("[0-9a-f]{32}", told.pop("x-request-id"))
    assert told == {
        "server": "nginx",
        "connection": "keep-alive",
        "content-length": str(len(DATA)),
        "content-type": "image/png",
        "content-disposition": "inline",
        "cache-control": "private, max-age=60",
        "accept-ranges": "bytes",
        "x-content-type-options": "nosniff",
        "content-security-policy": "default-src 'none'; sandbox",
        "referrer-policy": "no-referrer",
    }


def test_a_range_of_it_can_be_asked_for(front: Site, bucket: Bucket) -> None:
    reply = ask(front, signed(bucket), Range="bytes=10-19")
    assert (reply.status_code, reply.content) == (206, DATA[10:20])
    assert reply.headers["content-range"] == f"bytes 10-19/{len(DATA)}"
    beyond = ask(front, signed(bucket), Range="bytes=9999999-")
    assert (beyond.status_code, beyond.json()["error"]["code"]) == (416, "range_not_satisfiable")


def test_its_head_can_be_asked_for(front: Site, bucket: Bucket) -> None:
    reply = ask(front, signed(bucket), "HEAD")
    assert (reply.status_code, reply.content) == (200, b"")
    assert reply.headers["content-length"] == str(len(DATA))


def test_what_a_client_sends_besides_reaches_no_store(front: Site, bucket: Bucket) -> None:
    reply = ask(
        front,
        signed(bucket),
        Authorization="Bearer sk-of-the-client",  # with this the store would refuse the signature
        Cookie="zimage_session=secret",
        **{"If-None-Match": "*", "X-Amz-Security-Token": "forged"},
    )
    assert (reply.status_code, reply.content) == (200, DATA)


def test_an_address_that_was_tampered_with_is_refused_by_the_store(
    front: Site, bucket: Bucket
) -> None:
    other = signed(bucket).replace("img_fox", "img_page")
    longer = signed(bucket).replace(f"Expires={LINK_S}", f"Expires={10 * LINK_S}")
    for at in (other, longer, LOCATION + NAME):
        reply = ask(front, at)
        assert reply.status_code == 503
        assert reply.json()["error"]["code"] == "pictures_unavailable"
        assert "no-store" in reply.headers["cache-control"]
        assert "xml" not in reply.text


@pytest.mark.parametrize(
    "name", ["another/secret.png", f"{DAY}/../another/secret.png", f"{DAY}/img_fox.html", ""]
)
def test_nothing_but_pictures_can_be_asked_for(front: Site, bucket: Bucket, name: str) -> None:
    reply = ask(front, f"{LOCATION}{name}?{bucket.signed('another/secret.png')}")
    assert reply.status_code == 404


def test_nobody_asks_the_store_but_through_a_worker(front: Site, bucket: Bucket) -> None:
    assert front.client.get(signed(bucket)).status_code == 404


def test_a_picture_that_is_gone_is_missing(front: Site, bucket: Bucket) -> None:
    reply = ask(front, signed(bucket, f"{DAY}/img_none.png"))
    assert (reply.status_code, reply.json()["error"]["code"]) == (404, "not_found")


def test_what_waits_on_this_host_is_sent_from_there(front: Site, bucket: Bucket) -> None:
    for folder, name in (("spool/pictures", "img_waits.png"), ("images", "img_old.png")):
        path = front.layout.var_dir / folder / DAY / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"here")
        reply = ask(front, f"{LOCATION}{DAY}/{name}?X-Amz-Signature=none")
        assert (reply.status_code, reply.content) == (200, b"here")
        assert reply.headers["content-type"] == "image/png"
        assert reply.headers["content-security-policy"] == "default-src 'none'; sandbox"


def logged(front: Site) -> str:
    return "".join(path.read_text() for path in sorted(front.layout.logs_dir.iterdir()))


def with_signatures(logs: str) -> int:
    return sum("X-Amz" in line for line in logs.splitlines())


def test_signatures_are_in_no_log(front: Site, bucket: Bucket, object_store: ObjectStore) -> None:
    before = with_signatures(logged(front))  # nginx tells an unsafe address as a worker gave it
    ask(front, signed(bucket))
    object_store.kill()
    try:
        reply = ask(front, signed(bucket))
    finally:
        object_store.start()
    assert (reply.status_code, reply.json()["error"]["code"]) == (503, "pictures_unavailable")
    front.log_of(reply.headers["x-request-id"])
    assert "/v1/images/files/pic.png" in logged(front)
    assert with_signatures(logged(front)) == before
    assert ask(front, signed(bucket)).content == DATA


def address(endpoint: str, *nameservers: str) -> tuple[str, str, tuple[str, ...]]:
    objects = Objects(url="s3://bkt/a/c", endpoint=endpoint, credentials_file="x")
    found = store_address(objects, nameservers)
    assert found is not None
    return found.folder, found.host, found.resolvers


def test_the_address_of_the_store_is_as_signatures_have_it() -> None:
    assert address("https://S3.example.com", "10.0.0.2", "fd00::2") == (
        "https://s3.example.com:443/bkt/a/c/",
        "s3.example.com",
        ("10.0.0.2", "[fd00::2]"),
    )
    assert address("http://10.0.0.9:9000", "10.0.0.2") == (
        "http://10.0.0.9:9000/bkt/a/c/",
        "10.0.0.9:9000",
        (),
    )
    assert address("http://localhost:80")[:2] == ("http://127.0.0.1:80/bkt/a/c/", "localhost")
    assert address("https://[fd00::9]:443") == ("https://[fd00::9]:443/bkt/a/c/", "[fd00::9]", ())


def test_nameservers_are_those_of_the_machine() -> None:
    text = "# made by hand\nsearch lan\nnameserver 10.0.0.2\nnameserver fe80::1%eth0\nnameserver\n"
    assert nameservers_of(text) == ("10.0.0.2",)


def test_a_store_with_a_name_and_https_makes_a_configuration_that_passes(tmp_path: Path) -> None:
    objects = {"url": "s3://bkt/a", "endpoint": "https://s3.example.com", "credentials_file": "x"}
    layout = SiteLayout(tmp_path, tmp_path / "run")
    texts = files(configuration(tmp_path, objects=objects), layout, nameservers=("127.0.0.53",))
    write(layout, texts)
    done = subprocess.run(nginx_command(layout, "-t"), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    text = texts["conf.d/objects.conf"]
    assert "resolver 127.0.0.53 valid=30s;" in text
    assert "proxy_pass https://s3.example.com:443/bkt/a/$object?$args;" in text
    assert "proxy_ssl_verify on;" in text


def test_without_a_bucket_nginx_knows_of_none(tmp_path: Path) -> None:
    layout = SiteLayout(tmp_path, tmp_path / "run")
    assert not files(configuration(tmp_path), layout)["conf.d/objects.conf"].strip()
