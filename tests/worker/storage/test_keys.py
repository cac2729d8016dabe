from collections.abc import Iterator
from pathlib import Path

import pytest
import sqlalchemy as sa
from sqlalchemy.exc import IntegrityError

from worker.storage import keys
from worker.storage.database import create_engine

SECRET = b"s" * 32


@pytest.fixture
def connection(url: str) -> Iterator[sa.Connection]:
    engine = create_engine(url, 1.0)
    with engine.connect() as connection, connection.begin():
        yield connection
    engine.dispose()


def made(connection: sa.Connection, name: str = "ada", secret: bytes = SECRET) -> keys.Key:
    key, _ = keys.new_key(secret, name)
    keys.insert(connection, key, secret)
    return key


def test_what_was_stored_is_read(connection: sa.Connection) -> None:
    key, _ = keys.new_key(SECRET, "ada", images_per_day=5, role="ops")
    keys.insert(connection, key, SECRET)
    assert keys.snapshot(connection).keys == (key,)
    assert keys.find(connection, "ada") == keys.find(connection, key.id) == key


@pytest.mark.sqlite
def test_no_key_is_among_what_is_stored(url: str, home: Path) -> None:
    engine = create_engine(url, 1.0)
    with engine.connect() as connection, connection.begin():
        key, token = keys.new_key(SECRET, "ada", images_per_day=5, role="ops")
        keys.insert(connection, key, SECRET)
    engine.dispose()
    stored = b"".join(file.read_bytes() for file in home.iterdir())
    assert token.encode() not in stored
    assert SECRET not in stored
    assert key.hash in stored


def test_keys_have_256_bits_and_tell_what_they_are() -> None:
    tokens = {keys.new_token() for _ in range(100)}
    assert len(tokens) == 100
    assert all(t.startswith("zimage_") and len(t) == len("zimage_") + 43 for t in tokens)


def test_no_sign_out_is_lost_between_reading_a_key_and_changing_it(
    connection: sa.Connection,
) -> None:
    key = made(connection)
    keys.end_sessions(connection, key.id)
    keys.change(connection, key.id, signs_out=True, disabled=True)
    (found,) = keys.snapshot(connection).keys
    assert (found.version, found.disabled) == (key.version + 2, True)


def test_every_change_gives_another_version(connection: sa.Connection) -> None:
    versions = {keys.version(connection)}
    key = made(connection)
    versions.add(keys.version(connection))
    keys.change(connection, key.id, disabled=True)
    versions.add(keys.version(connection))
    keys.delete(connection, key.id)
    versions.add(keys.version(connection))
    assert len(versions) == 4
    assert keys.snapshot(connection).keys == ()


def ended(connection: sa.Connection) -> set[str]:
    return set(keys.snapshot(connection).ended_sessions)


def test_an_ended_session_is_known_until_it_would_be_over(connection: sa.Connection) -> None:
    key = made(connection)
    before = keys.version(connection)
    keys.end_session(connection, "a", key.id, ends_at=10.0, now=1.0)
    keys.end_session(connection, "a", key.id, ends_at=10.0, now=2.0)
    assert ended(connection) == {"a"}
    assert keys.version(connection) != before
    keys.end_session(connection, "b", key.id, ends_at=20.0, now=10.0)
    assert ended(connection) == {"b"}


def test_whoever_ends_sessions_without_end_ends_all_of_the_key(
    connection: sa.Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(keys, "MAX_ENDED_SESSIONS", 3)
    ada, bob = made(connection), made(connection, "bob")
    keys.end_session(connection, "of bob", bob.id, ends_at=10.0, now=1.0)
    for k in range(4):
        keys.end_session(connection, f"{k}", ada.id, ends_at=10.0, now=1.0)
    assert ended(connection) == {"of bob"}
    versions = {key.name: key.version for key in keys.snapshot(connection).keys}
    assert versions == {"ada": 2, "bob": 1}


def test_a_name_is_taken_once(connection: sa.Connection) -> None:
    made(connection)
    with pytest.raises(IntegrityError):
        made(connection)


def test_a_lost_secret_is_noticed_until_no_key_needs_it(connection: sa.Connection) -> None:
    key = made(connection)
    for secret in (None, b"another"):
        with pytest.raises(keys.SecretLost):
            keys.require_secret(connection, secret)
    with pytest.raises(keys.SecretLost):
        made(connection, "bob", b"another")
    keys.delete(connection, key.id)
    keys.require_secret(connection, None)
    made(connection, "bob", b"another")
    keys.require_secret(connection, b"another")


def test_expiry_and_switch_decide_whether_a_key_is_good() -> None:
    key, _ = keys.new_key(SECRET, "ada", expires_at=100.0)
    assert (key.why_not(99.0), key.why_not(100.0)) == (None, "expired")
    assert keys.new_key(SECRET, "ada", disabled=True)[0].why_not(0) == "disabled"
