"""The bucket as pictures need it, against a real store."""

import re
import socket
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.object_store import BUCKET, ObjectStore
from tests.ports import free_port
from tests.worker.storage.conftest import DAY
from worker.errors import ObjectsAway
from worker.storage import bucket as module
from worker.storage import outage
from worker.storage.bucket import LINK_S, Bucket, Credentials

pytestmark = pytest.mark.xdist_group("s3")

NAME = f"{DAY}/img_fox.png"


@pytest.fixture
def bucket(object_store: ObjectStore, request: pytest.FixtureRequest) -> Bucket:
    return Bucket(object_store.objects(f"cell/{request.node.name}"))


def test_what_is_put_can_be_read_and_deleted(bucket: Bucket) -> None:
    assert bucket.put(NAME, b"fox")
    assert bucket.has(NAME)
    assert bucket.get(NAME) == b"fox"
    assert [(file.name, file.bytes) for file in bucket.files()] == [(NAME, 3)]
    bucket.delete([NAME, f"{DAY}/img_none.png"])
    assert not bucket.has(NAME)
    with pytest.raises(FileNotFoundError):
        bucket.get(NAME)


def test_an_object_is_never_written_over(bucket: Bucket) -> None:
    bucket.put(NAME, b"fox")
    assert not bucket.put(NAME, b"hare")
    assert bucket.get(NAME) == b"fox"


def test_other_objects_are_none_of_ours(bucket: Bucket) -> None:
    bucket.put("taxes/2026.pdf", b"x")
    bucket.put(f"{DAY}/img_fox.thumb.webp", b"x")
    assert [file.name for file in bucket.files()] == [f"{DAY}/img_fox.thumb.webp"]


def _status(url: str) -> int:
    try:
        with urllib.request.urlopen(url, timeout=5.0) as answer:
            return int(answer.status)
    except urllib.error.HTTPError as error:
        return error.code


def test_the_store_refuses_a_signed_address_that_was_changed(
    bucket: Bucket, object_store: ObjectStore, request: pytest.FixtureRequest
) -> None:
    bucket.put(NAME, b"fox")
    bucket.put(f"{DAY}/img_hare.png", b"hare")
    folder = f"{object_store.endpoint}/{BUCKET}/cell/{request.node.name}"
    signed = bucket.signed(NAME)
    assert _status(f"{folder}/{NAME}?{signed}") == 200
    assert _status(f"{folder}/{DAY}/img_hare.png?{signed}") == 403
    assert f"X-Amz-Expires={LINK_S}" in signed
    assert _status(f"{folder}/{NAME}?{signed.replace('Expires=', 'Expires=9')}") == 403
    assert _status(f"{folder}/{NAME}") == 403


def test_a_store_that_is_gone_is_away_and_others_fail_at_once(object_store: ObjectStore) -> None:
    objects = object_store.objects("gone", endpoint=f"http://127.0.0.1:{free_port()}")
    bucket = Bucket(objects)
    assert bucket.away == ""
    with pytest.raises(ObjectsAway):
        bucket.put(NAME, b"fox")
    assert "error sending request" in bucket.away
    with pytest.raises(ObjectsAway):
        bucket.has(NAME)


def test_a_store_without_the_bucket_is_away_and_stays_so(
    object_store: ObjectStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(outage, "REST_S", 0.0)
    bucket = Bucket(object_store.objects("x", url="s3://no-such-bucket/x"))
    with pytest.raises(ObjectsAway):
        bucket.put(NAME, b"fox")
    with pytest.raises(ObjectsAway):
        bucket.try_again()
    assert "NoSuchBucket" in bucket.away


def test_a_store_that_can_be_read_is_not_back_for_writing(
    object_store: ObjectStore, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(outage, "REST_S", 0.0)
    bucket = Bucket(object_store.objects("readonly"))
    bucket.put(NAME, b"fox")
    bucket._writes.failed("507 the disk of the store is full")
    assert bucket.get(NAME) == b"fox"
    assert bucket.away == "507 the disk of the store is full"
    bucket.try_again()
    assert bucket.away == ""
    assert [file.name for file in bucket.files()] == [NAME]


@pytest.fixture
def silent() -> Iterator[int]:
    """The port of a store that accepts and never answers."""
    with socket.create_server(("127.0.0.1", free_port())) as server:
        yield server.getsockname()[1]


@pytest.mark.timeout(30)
def test_a_silent_store_holds_nobody_for_long(
    silent: int, object_store: ObjectStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_QUICK_S", 0.2)
    monkeypatch.setattr(module, "_TRANSFER_S", 0.2)
    objects = object_store.objects("s", endpoint=f"http://127.0.0.1:{silent}")
    with pytest.raises(ObjectsAway):
        Bucket(objects).put(NAME, b"x")
    with pytest.raises(ObjectsAway):
        Bucket(objects).get(NAME)
    with pytest.raises(ObjectsAway):
        Bucket(objects).has(NAME)


def test_a_bucket_that_was_away_is_back_once_it_answers(
    bucket: Bucket, object_store: ObjectStore, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(outage, "REST_S", 0.0)
    moved = tmp_path / "moved"
    object_store.credentials.rename(moved)
    try:
        with pytest.raises(ObjectsAway, match="cannot be reached"):
            bucket.put(NAME, b"fox")
        assert str(object_store.credentials) in bucket.away
    finally:
        moved.rename(object_store.credentials)
    bucket.try_again()
    assert bucket.away == ""
    assert bucket.put(NAME, b"fox")


def test_credentials_that_are_lost_while_it_runs_make_it_away_and_nothing_missing(
    object_store: ObjectStore, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(module, "_REREAD_S", 0.0)
    own = tmp_path / "credentials"
    own.write_bytes(object_store.credentials.read_bytes())
    bucket = Bucket(object_store.objects("lost", credentials_file=str(own)))
    bucket.put(NAME, b"fox")
    own.unlink()
    with pytest.raises(ObjectsAway):
        bucket.has(NAME)
    with pytest.raises(ObjectsAway):
        bucket.signed(NAME)


def test_wrong_credentials_are_told_as_refused(object_store: ObjectStore, tmp_path: Path) -> None:
    wrong = tmp_path / "wrong"
    wrong.write_text(object_store.credentials.read_text().replace("secret-of", "guess-of"))
    bucket = Bucket(object_store.objects("wrong", credentials_file=str(wrong)))
    with pytest.raises(ObjectsAway):
        bucket.put(NAME, b"fox")
    assert "403" in bucket.away


@pytest.mark.parametrize("text", ["", "no section", "[default]\naws_access_key_id = a\n"])
def test_a_credentials_file_says_what_it_lacks(text: str, tmp_path: Path) -> None:
    path = tmp_path / "credentials"
    path.write_text(text)
    with pytest.raises(ValueError, match=str(path)):
        Credentials.read(path)


def test_a_reason_is_one_short_line(object_store: ObjectStore) -> None:
    port = free_port()
    bucket = Bucket(object_store.objects("gone", endpoint=f"http://127.0.0.1:{port}"))
    with pytest.raises(ObjectsAway):
        bucket.put(NAME, b"fox")
    where = rf"PUT http://127\.0\.0\.1:{port}/pictures/gone/{NAME}"
    assert re.fullmatch(where + r" in [\d.]+m?s - HTTP error: error sending request", bucket.away)
