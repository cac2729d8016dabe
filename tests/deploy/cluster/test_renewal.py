"""Certificates renew themselves through the database, and nobody else's do."""

import asyncio
import json
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
import sqlalchemy as sa
from cryptography import x509

from deploy import store
from deploy.cell import Cell
from deploy.cluster import authority, certificates, founding, renewal, trust
from deploy.cluster.authority import Authority, Role
from deploy.cluster.renewal import Member
from deploy.host import whole_file
from deploy.rollout import cluster_checks
from tests.deploy.cluster.machines import Machine, layout_in
from worker.storage import certificates as rows
from worker.storage.database import Database

DUE = timedelta(days=-65)


class Cluster:
    """The first machine, with the authority, and another one; both as folders."""

    def __init__(self, folder: Path, url: str) -> None:
        self.url = url
        self.machine = Machine(folder / "first", url)
        self.cell = self.machine.cell
        self.cell.layout.create()
        founding.found(self.cell)
        self.first = Member(self.cell.layout, "gpu1", "both")
        self.other = self.joined(folder / "other", "gpu2")

    @property
    def own(self) -> Authority:
        return authority.load(self.cell.layout)[0]

    def joined(self, folder: Path, host: str, role: Role = "host") -> Member:
        layout = layout_in(folder)
        for name in ("ca.crt", "crl.pem", "secret", "secret.others"):
            data = (self.first.layout.cluster_dir / name).read_bytes()
            whole_file.write(layout.cluster_dir / name, data, 0o600)
        whole_file.write(layout.key_secret, self.first.layout.key_secret.read_bytes(), 0o600)
        member = Member(layout, host, role)
        self.sign(member, role)
        return member

    def sign(self, member: Member, role: Role, ago: timedelta = timedelta(0)) -> None:
        """Give ``member`` a certificate as it would have got one so long ago."""
        csr = certificates.pending(member.layout, role, member.host).csr
        signed = self.own.sign(csr, member.host, role, datetime.now(UTC) + ago)
        pem, serial = certificates.pem(signed), certificates.serial(signed)
        ends_at = signed.not_valid_after_utc.timestamp()
        row = rows.Certificate(serial, member.host, role, pem.decode(), ends_at)
        store.run(self.cell, lambda connection: rows.record(connection, row))
        certificates.install(member.layout, role, pem)

    def beat(self, member: Member) -> None:
        async def once() -> None:
            database = Database(self.url, 5.0)
            await renewal.beat(member, database)
            database.close()

        asyncio.run(once())

    def requests(self) -> list[rows.Document]:
        return store.run(self.cell, lambda c: rows.documents(c, renewal.REQUEST))


@pytest.fixture
def cluster(tmp_path: Path, url: str) -> Cluster:
    return Cluster(tmp_path, url)


def present(member: Member, role: Role = "host") -> x509.Certificate:
    found = certificates.installed(member.layout, role)
    assert found is not None
    return found


def is_pair(member: Member) -> bool:
    key = certificates.load_key(member.layout.cluster_key("host"))
    return key.public_key() == present(member).public_key()


def test_certificate_renews_itself_with_another_key(cluster: Cluster) -> None:
    other = cluster.other
    cluster.sign(other, "host", DUE)
    before = present(other)
    cluster.beat(other)  # asks
    assert present(other) == before
    cluster.beat(cluster.first)  # signs
    assert cluster.requests() == []
    cluster.beat(other)  # takes it on
    after = present(other)
    assert is_pair(other)
    assert after.public_key() != before.public_key()
    assert authority.has_signed(cluster.own.certificate, after)
    assert not certificates.is_due(after)
    assert after.subject == before.subject


def test_machine_with_the_authority_renews_its_own(cluster: Cluster) -> None:
    cluster.sign(cluster.first, "front", DUE)
    before = present(cluster.first, "front")
    for _ in range(2):
        cluster.beat(cluster.first)
    assert present(cluster.first, "front") != before


def test_certificate_that_is_not_due_is_left(cluster: Cluster) -> None:
    before = present(cluster.other)
    for member in (cluster.other, cluster.first, cluster.other):
        cluster.beat(member)
    assert present(cluster.other) == before
    assert cluster.requests() == []


def revoke(cluster: Cluster, told: dict[str, str]) -> None:
    store.run(cluster.cell, lambda connection: rows.revoke(connection, "gpu2"))


def other_csr(cluster: Cluster, told: dict[str, str]) -> None:
    told["csr"] = certificates.new_request("gpu2").csr.decode()


def stranger(cluster: Cluster, told: dict[str, str]) -> None:
    signed = Authority.make("studio").sign(told["csr"].encode(), "gpu2", "host")
    told["certificate"] = certificates.pem(signed).decode()


def no_proof(cluster: Cluster, told: dict[str, str]) -> None:
    del told["proof"]


@pytest.mark.parametrize("spoil", [revoke, other_csr, stranger, no_proof])
def test_forged_request_is_not_signed(
    cluster: Cluster, spoil: Callable[[Cluster, dict[str, str]], None]
) -> None:
    cluster.sign(cluster.other, "host", DUE)
    cluster.beat(cluster.other)
    [request] = cluster.requests()
    told = json.loads(request.content)
    spoil(cluster, told)
    content = json.dumps(told).encode()
    store.run(cluster.cell, lambda c: rows.put(c, request.name, content, 2))
    before = store.run(cluster.cell, rows.all_good)
    cluster.beat(cluster.first)
    assert store.run(cluster.cell, rows.all_good) == before
    assert cluster.requests() == []


def test_host_does_not_become_a_front_by_renewal(cluster: Cluster) -> None:
    cluster.sign(cluster.other, "host", DUE)
    cluster.beat(cluster.other)
    [request] = cluster.requests()
    as_front = request.name.replace(":host", ":front")
    store.run(cluster.cell, lambda c: rows.put(c, as_front, request.content, 1))
    cluster.beat(cluster.first)
    roles = {row.role for row in store.run(cluster.cell, lambda c: rows.of_host(c, "gpu2"))}
    assert roles == {"host"}


def test_lost_answer_is_taken_on_later(cluster: Cluster) -> None:
    """As where the machine fell between its question and the answer, for a long time."""
    cluster.sign(cluster.other, "host", DUE)
    cluster.beat(cluster.other)
    cluster.beat(cluster.first)
    cluster.beat(cluster.first)
    cluster.beat(cluster.other)
    assert not certificates.is_due(present(cluster.other))
    assert is_pair(cluster.other)
    assert cluster.requests() == []


def test_revocation_reaches_every_machine_and_stays(cluster: Cluster) -> None:
    serial = present(cluster.other).serial_number
    store.run(cluster.cell, lambda connection: rows.revoke(connection, "gpu2"))
    third = cluster.joined(cluster.other.layout.var_dir.parent / "third", "gpu3")
    for member in (cluster.first, third):
        cluster.beat(member)
    for member in (cluster.first, third):
        listed = x509.load_pem_x509_crl(member.layout.revocation_list.read_bytes())
        assert listed.get_revoked_certificate_by_serial_number(serial) is not None
    forgiven = rows.certificates.update().values(revoked_at=None)  # by who can write there
    store.run(cluster.cell, lambda c: c.execute(forgiven))
    store.run(cluster.cell, lambda c: rows.forget(c, trust.TRUST))
    for member in (cluster.first, third):
        cluster.beat(member)
    listed = x509.load_pem_x509_crl(third.layout.revocation_list.read_bytes())
    assert listed.get_revoked_certificate_by_serial_number(serial) is not None


def test_revoked_machine_reads_no_new_secret(cluster: Cluster) -> None:
    store.run(cluster.cell, lambda connection: rows.revoke(connection, "gpu2"))
    secrets = trust.secrets_here(cluster.first.layout)
    fresh = replace(secrets, signing=(b"n" * 32, *secrets.signing))
    trust.write_secrets(cluster.first.layout, fresh)
    third = cluster.joined(cluster.other.layout.var_dir.parent / "third", "gpu3")
    cluster.beat(cluster.first)
    cluster.beat(third)
    assert trust.secrets_here(third.layout) == fresh
    cluster.beat(cluster.other)
    assert trust.secrets_here(cluster.other.layout) == secrets


def test_older_documents_are_not_taken_over(cluster: Cluster) -> None:
    cluster.beat(cluster.first)
    cluster.beat(cluster.other)
    old = store.run(cluster.cell, trust.read_documents)
    store.run(cluster.cell, lambda connection: rows.revoke(connection, "gpu9"))
    secrets = trust.secrets_here(cluster.first.layout)
    fresh = replace(secrets, signing=(b"n" * 32, *secrets.signing))
    trust.write_secrets(cluster.first.layout, fresh)
    cluster.beat(cluster.first)
    cluster.beat(cluster.other)

    def put_back(connection: sa.Connection) -> None:
        for document in old:
            rows.put(connection, document.name, document.content, document.version)

    store.run(cluster.cell, put_back)
    cluster.beat(cluster.other)
    assert trust.secrets_here(cluster.other.layout) == fresh


def test_machine_says_what_it_has(cluster: Cluster) -> None:
    cluster.beat(cluster.first)
    cluster.beat(cluster.other)
    told = store.run(cluster.cell, lambda c: rows.document(c, f"{renewal.HAS}gpu2"))
    assert told is not None
    has = json.loads(told.content)
    assert set(has["versions"]) == {"trust", "secrets"}
    assert has["certificates"] == {"host": certificates.serial(present(cluster.other))}
    cluster.beat(cluster.other)
    assert store.run(cluster.cell, lambda c: rows.document(c, f"{renewal.HAS}gpu2")) == told


def test_guard_learns_when_the_first_certificate_ends(cluster: Cluster) -> None:
    cluster.sign(cluster.first, "front", timedelta(days=-80))
    store.run(cluster.cell, lambda c: rows.put(c, f"{renewal.REQUEST}gpu1:front", b"{}", 1))
    cluster.beat(cluster.first)
    ends = present(cluster.first, "front").not_valid_after_utc.timestamp()
    told = json.loads(cluster.first.layout.cluster_certificates_json.read_bytes())
    assert told == {"ends_at": ends}


def test_machine_of_no_authority_says_so(tmp_path: Path, url: str) -> None:
    cell: Cell = Machine(tmp_path / "lone", url).cell
    with pytest.raises(FileNotFoundError, match=r"ca\.crt"):
        trust.trusted_here(cell.layout)


def test_doctor_names_a_certificate_that_ends_or_is_missing(cluster: Cluster) -> None:
    def told() -> dict[str, str]:
        return {f.subject: f.level for f in cluster_checks.certificates(cluster.cell)}

    assert told() == {"certificate as host": "ok", "certificate as front": "ok"}
    cluster.sign(cluster.first, "front", timedelta(days=-80))
    cluster.first.layout.cluster_certificate("host").unlink()
    assert told() == {"certificate as host": "fail", "certificate as front": "warn"}
    cluster.sign(cluster.first, "front", timedelta(days=-92))
    assert told()["certificate as front"] == "fail"
