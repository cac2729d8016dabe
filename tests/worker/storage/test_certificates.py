"""Invites are good once, for a while, for a few tries; certificates and documents are kept."""

import itertools
import multiprocessing
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from functools import partial

import pytest
import sqlalchemy as sa

from tests.worker.storage.test_races import PATIENCE_S
from worker.storage import certificates
from worker.storage.certificates import MAX_TRIES, Certificate
from worker.storage.database import clock, create_engine

RIGHT, WRONG = b"r" * 32, b"w" * 32
RIVALS = 20


@pytest.fixture
def engine(url: str) -> Iterator[sa.Engine]:
    made = create_engine(url, PATIENCE_S)
    yield made
    made.dispose()


@pytest.fixture
def connection(engine: sa.Engine) -> Iterator[sa.Connection]:
    with engine.begin() as made:
        yield made


def invited(connection: sa.Connection, id: str = "i1", host: str = "gpu2") -> str:
    certificates.invite(connection, id, host, "host", RIGHT)
    return id


def row(serial: int, host: str = "gpu2", ends_in_s: float = 100.0) -> Certificate:
    return Certificate(f"{serial:x}", host, "host", f"pem {serial}", 4e9 + ends_in_s)


def test_invite_says_who_joins_as_what(connection: sa.Connection) -> None:
    used = certificates.use(connection, invited(connection), RIGHT)
    assert used is not None
    assert (used.host, used.role, used.was_used) == ("gpu2", "host", False)
    again = certificates.use(connection, "i1", RIGHT)
    assert again is not None
    assert again.was_used


def test_wrong_secret_and_unknown_invite_are_refused(connection: sa.Connection) -> None:
    assert certificates.use(connection, invited(connection), WRONG) is None
    assert certificates.use(connection, "other", RIGHT) is None
    assert not certificates.is_used(connection, "i1")


def test_invite_ends_with_its_tries(connection: sa.Connection) -> None:
    invited(connection)
    for _ in range(MAX_TRIES):
        assert certificates.use(connection, "i1", WRONG) is None
    assert certificates.use(connection, "i1", RIGHT) is None


def test_right_secret_costs_no_try(connection: sa.Connection) -> None:
    """So that a machine which is told to correct its clock may come back."""
    invited(connection)
    for _ in range(MAX_TRIES - 1):
        certificates.use(connection, "i1", WRONG)
    for _ in range(3):
        assert certificates.use(connection, "i1", RIGHT) is not None


def test_invite_ends_with_its_time(connection: sa.Connection) -> None:
    ends_at = certificates.invite(connection, "i1", "gpu2", "host", RIGHT)
    assert ends_at == pytest.approx(clock(connection) + 600, abs=5)
    over = certificates.invites.update().values(ends_at=clock(connection) - 1)
    connection.execute(over)
    assert certificates.use(connection, "i1", RIGHT) is None


def test_second_invite_of_a_host_ends_the_first(connection: sa.Connection) -> None:
    invited(connection, "i1")
    invited(connection, "i2")
    invited(connection, "i3", host="gpu3")
    good = [id for id in ("i1", "i2", "i3") if certificates.use(connection, id, RIGHT)]
    assert good == ["i2", "i3"]


def test_withdrawn_invite_is_good_no_more(connection: sa.Connection) -> None:
    certificates.withdraw(connection, invited(connection))
    assert certificates.use(connection, "i1", RIGHT) is None


def rival(url: str, hash: bytes, number: int) -> str:
    """Come with a token at the same moment as all others, and write down who came."""
    engine = create_engine(url, PATIENCE_S)
    with engine.begin() as connection:
        used = certificates.use(connection, "i1", hash)
        if used is not None and not used.was_used:
            certificates.record(connection, row(number))
    engine.dispose()
    return "refused" if used is None else "late" if used.was_used else "won"


def outcomes(url: str, hash: bytes) -> list[str]:
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__])
    with ProcessPoolExecutor(RIVALS, context) as pool:
        return sorted(pool.map(partial(rival, url, hash), range(1, RIVALS + 1)))


def test_of_twenty_processes_with_one_token_one_wins(url: str, engine: sa.Engine) -> None:
    with engine.begin() as connection:
        invited(connection)
    assert outcomes(url, RIGHT) == ["late"] * (RIVALS - 1) + ["won"]
    with engine.begin() as connection:
        assert len(certificates.of_host(connection, "gpu2")) == 1


def test_twenty_who_guess_at_once_have_five_tries(url: str, engine: sa.Engine) -> None:
    with engine.begin() as connection:
        invited(connection)
    assert outcomes(url, WRONG) == ["refused"] * RIVALS
    with engine.begin() as connection:
        assert connection.scalar(sa.select(certificates.invites.c.tries)) == 0


def test_revoked_certificates_are_listed_and_good_ones_found(connection: sa.Connection) -> None:
    for certificate in (row(1), row(255), row(3, host="gpu3")):
        certificates.record(connection, certificate)
    assert certificates.revoke(connection, "gpu2") == 2
    assert certificates.revoke(connection, "gpu2") == 0
    assert set(certificates.revoked(connection)) == {1, 255}
    assert certificates.of_host(connection, "gpu2") == []
    assert [c.host for c in certificates.all_good(connection)] == ["gpu3"]


def test_certificates_that_ended_long_ago_are_forgotten(connection: sa.Connection) -> None:
    old = Certificate("a", "gpu2", "host", "pem", clock(connection) - 40 * 86_400)
    certificates.record(connection, old)
    certificates.record(connection, row(1))
    kept = connection.scalars(sa.select(certificates.certificates.c.serial)).all()
    assert kept == ["1"]


def test_documents_are_replaced_and_found_by_their_beginning(connection: sa.Connection) -> None:
    for version, content in itertools.product((1, 2), (b"a", b"b")):
        certificates.put(connection, f"secret:{content.decode()}", content * version, version)
    certificates.put(connection, "secret_x", b"other", 1)
    found = certificates.documents(connection, "secret:")
    assert [(d.name, d.content, d.version) for d in found] == [
        ("secret:a", b"aa", 2),
        ("secret:b", b"bb", 2),
    ]
    certificates.forget(connection, "secret:a")
    assert certificates.document(connection, "secret:a") is None
