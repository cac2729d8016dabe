"""Who may come in with a token, and what he gets."""

import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import sqlalchemy as sa
from cryptography import x509

from deploy import installation, store
from deploy.cell import Cell
from deploy.cluster import authority, certificates, founding, host_role, invites, trust, welcome
from deploy.cluster.authority import Authority
from deploy.cluster.welcome import Asked, Refused, Welcome
from tests.deploy.cluster.machines import Machine
from tests.postgres import Server
from worker.storage import certificates as rows
from worker.storage import hosts
from worker.storage.database import create_engine
from worker.storage.hosts import HostReport

SECRET = b"s" * 32


@pytest.fixture
def cell(tmp_path: Path, url: str) -> Cell:
    """The one that invites."""
    made = Machine(tmp_path / "first", url).cell
    made.layout.create()
    founding.found(made)
    return made


def invited(cell: Cell, host: str = "gpu2", role: str = "host") -> str:
    hashed = invites.hash_of(SECRET)
    store.run(cell, lambda c: rows.invite(c, f"to-{host}", host, role, hashed))
    return f"to-{host}"


def asking(invite: str, *roles: str, **other: object) -> Asked:
    csrs = {role: certificates.new_request("x").csr.decode() for role in roles or ("host",)}
    asked = Asked(invite, SECRET, installation.version(), time.time(), csrs)
    return replace(asked, **other)  # type: ignore[arg-type]


def come(cell: Cell, asked: Asked) -> Welcome:
    return welcome.welcome(cell, authority.load(cell.layout), asked)


def good(cell: Cell, host: str = "gpu2") -> list[str]:
    return [row.pem for row in store.run(cell, lambda c: rows.of_host(c, host))]


def test_token_is_for_one_machine(cell: Cell) -> None:
    came = come(cell, asking(invited(cell)))
    with pytest.raises(Refused, match="another machine has joined with this token as gpu2"):
        come(cell, asking("to-gpu2"))
    assert good(cell) == [came.certificates["host"]]


def test_lost_answer_is_given_again_to_the_same_keys(cell: Cell) -> None:
    asked = asking(invited(cell))
    first, second = come(cell, asked), come(cell, asked)
    assert second.certificates == first.certificates


def test_wrong_version_and_clock_leave_the_token_as_good_as_it_was(cell: Cell) -> None:
    invite = invited(cell)
    for _ in range(rows.MAX_TRIES):
        with pytest.raises(Refused, match=r"has version 0\.0\.1 and the cluster"):
            come(cell, asking(invite, version="0.0.1"))
        with pytest.raises(Refused, match="clock is 60 s behind: set it"):
            come(cell, asking(invite, now=time.time() - 60))
        with pytest.raises(Refused, match="clock is 60 s ahead: set it"):
            welcome.look(cell, asking(invite, now=time.time() + 60))
    come(cell, asking(invite))


def test_wrong_secret_costs_a_try_and_says_nothing_of_the_invite(cell: Cell) -> None:
    wrong = asking(invited(cell), secret=b"w" * 32, version="0.0.1")
    for ask in (come, welcome.look, come, welcome.look, come):
        with pytest.raises(Refused, match="token is not good, or no more"):
            ask(cell, wrong)
    with pytest.raises(Refused, match="token is not good, or no more"):
        come(cell, asking("to-gpu2"))


def test_looking_uses_nothing_up(cell: Cell) -> None:
    invite = invited(cell)
    for _ in range(9):
        seen = welcome.look(cell, asking(invite))
    came = come(cell, asking(invite))
    assert seen["settings"]["cluster"] == {"name": "studio", "host": "gpu2", "role": "host"}
    assert seen["settings"] == {**came.settings, "database": seen["settings"]["database"]}
    assert set(seen["files"]) <= set(came.files)


def test_machine_gets_certificates_of_its_role_alone(cell: Cell) -> None:
    came = come(cell, asking(invited(cell, role="host"), "host", "front"))
    assert list(came.certificates) == ["host"]
    with pytest.raises(Refused, match="invite is for a machine as front"):
        come(cell, asking(invited(cell, "edge", "front"), "host"))


def test_request_that_is_none_uses_nothing_up(cell: Cell) -> None:
    bad = asking(invited(cell), requests={"host": "no request"})
    with pytest.raises(authority.AuthorityError, match="request for a certificate"):
        come(cell, bad)
    come(cell, asking("to-gpu2"))


def test_machine_that_takes_a_name_over_shuts_out_the_one_before(cell: Cell) -> None:
    before = come(cell, asking(invited(cell))).certificates["host"]
    came = come(cell, asking(invited(cell)))
    assert good(cell) == [came.certificates["host"]]
    serial = x509.load_pem_x509_certificate(before.encode()).serial_number
    listed = x509.load_pem_x509_crl(came.revocations.encode())
    assert listed.get_revoked_certificate_by_serial_number(serial) is not None


def test_removed_host_that_joins_again_is_wanted_again(cell: Cell) -> None:
    told = HostReport("gpu2", "a:1", "host", "1", (), 1, 1, 0, 0, 0.0, 0.0, "ready", {})

    def remove(connection: sa.Connection) -> None:
        hosts.write(connection, told, 1.0)
        hosts.want(connection, "gpu2", "removed", "sold", 2.0)

    store.run(cell, remove)
    come(cell, asking(invited(cell)))
    [host] = store.run(cell, hosts.read_all)
    assert (host.wanted, host.wanted_reason) == ("in", "")


def test_secrets_are_sealed_for_the_newcomer(cell: Cell) -> None:
    came = come(cell, asking(invited(cell)))
    assert trust.Secrets.of_json(came.secrets.encode()) == trust.secrets_here(cell.layout)
    document = store.run(cell, lambda c: rows.document(c, trust.SECRETS))
    assert document is not None
    serial = x509.load_pem_x509_certificate(came.certificates["host"].encode()).serial_number
    assert f"{serial:x}".encode() in document.content
    assert came.versions[trust.SECRETS] == document.version


# The database


@pytest.fixture
def plain(postgres: Server, tmp_path: Path) -> Iterator[Cell]:
    """In a database whose role may make no others."""
    with postgres.guarded("plain", "p") as url:
        password = tmp_path / "password"
        password.write_text("p\n", encoding="utf-8")
        machine = Machine(tmp_path / "first", url)
        text = machine.config_path.read_text(encoding="utf-8")
        with_file = text.replace("[objects]", f'password_file = "{password}"\n[objects]')
        machine.config_path.write_text(with_file, encoding="utf-8")
        made = machine.cell
        made.layout.create()
        store.migrate(made)
        founding.found(made)
        yield made


def test_role_that_may_make_none_is_shared(plain: Cell) -> None:
    came = come(plain, asking(invited(plain)))
    assert not came.own_role
    assert came.settings["database"]["url"] == plain.config.database.url
    assert came.files["database.password_file"] == "p\n"


def test_role_that_the_server_does_not_let_in_is_not_handed_out(
    plain: Cell, postgres: Server
) -> None:
    """pg_hba.conf has a line for the cluster's own role alone."""
    with postgres.connect() as admin:
        admin.execute("ALTER ROLE plain CREATEROLE SUPERUSER")
        rules = "local all plain scram-sha-256\nlocal all zimage trust\nlocal all all reject\n"
        before = (postgres.data / "pg_hba.conf").read_text(encoding="utf-8")
        (postgres.data / "pg_hba.conf").write_text(rules, encoding="utf-8")
        admin.execute("SELECT pg_reload_conf()")
        came = come(plain, asking(invited(plain)))
        (postgres.data / "pg_hba.conf").write_text(before, encoding="utf-8")
        admin.execute("SELECT pg_reload_conf()")
        found = admin.execute("SELECT 1 FROM pg_roles WHERE rolname = 'plain_gpu2'").fetchall()
    assert not came.own_role
    assert found == []


def test_role_of_a_host_ends_with_its_sessions(cell: Cell) -> None:
    came = come(cell, asking(invited(cell)))
    assert came.own_role
    name = host_role.name_of(cell, "gpu2")
    engine = create_engine(came.settings["database"]["url"], 5.0)
    with engine.connect() as session:
        session.exec_driver_sql("SELECT 1")
        assert store.run(cell, lambda c: host_role.remove(c, name))
        with pytest.raises(sa.exc.OperationalError):
            session.exec_driver_sql("SELECT 1")
    engine.dispose()
    assert not store.run(cell, lambda c: host_role.exists(c, name))
    assert not store.run(cell, lambda c: host_role.remove(c, name))


@pytest.fixture
def owned(postgres: Server, plain: Cell) -> Iterator[Cell]:
    """In a database of a role that logs nobody in, and as which the cluster's own begins; none of
    them is a superuser."""
    with postgres.connect("plain") as admin:
        admin.execute("ALTER ROLE plain CREATEROLE")
        admin.execute("CREATE ROLE owner")
        admin.execute("GRANT owner TO plain WITH ADMIN OPTION")
        admin.execute("ALTER DATABASE plain OWNER TO owner")
        admin.execute("REASSIGN OWNED BY plain TO owner")
        admin.execute("GRANT ALL ON SCHEMA public TO owner")
        admin.execute("ALTER ROLE plain SET role = owner")
    yield plain
    with postgres.connect("plain") as admin:
        admin.execute("DROP OWNED BY owner")
        admin.execute("ALTER DATABASE plain OWNER TO plain")
        admin.execute("REASSIGN OWNED BY owner TO plain")
        admin.execute("DROP ROLE owner")


def test_roles_are_made_and_ended_without_a_superuser(owned: Cell) -> None:
    came = come(owned, asking(invited(owned)))
    assert came.own_role
    again = come(owned, asking(invited(owned)))  # a machine that takes the name over
    assert again.own_role
    url = sa.make_url(again.settings["database"]["url"])
    with_password = url.set(password=again.files["database.password_file"])
    engine = create_engine(with_password.render_as_string(hide_password=False), 5.0)
    name = host_role.name_of(owned, "gpu2")
    with engine.connect() as session:
        assert session.exec_driver_sql("SELECT current_user").scalar() == "owner"
        session.commit()
        assert store.run(owned, lambda c: host_role.remove(c, name))
        with pytest.raises(sa.exc.OperationalError):
            session.exec_driver_sql("SELECT 1")
    engine.dispose()
    assert not store.run(owned, lambda c: host_role.exists(c, name))


def test_authority_signs_no_more_than_it_says(cell: Cell) -> None:
    [own] = authority.load(cell.layout)
    assert isinstance(own, Authority)
    came = come(cell, asking(invited(cell)))
    made = x509.load_pem_x509_certificate(came.certificates["host"].encode())
    assert authority.has_signed(own.certificate, made)
    assert made.subject.rfc4514_string() == "CN=gpu2"
