"""Machines take their place by the authority's own key, as pods do."""

import asyncio
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography import x509

from deploy import store
from deploy.cluster import authority, certificates, renewal, trust, wishes
from deploy.cluster.renewal import Member
from tests.deploy.cluster.machines import Machine
from worker.storage import certificates as rows
from worker.storage import hosts
from worker.storage.database import Database


@pytest.fixture
def folder(tmp_path: Path, url: str) -> Path:
    """What a Secret has."""
    Machine(tmp_path / "any", url).zimage("cluster", "authority", str(tmp_path / "secret"))
    return tmp_path / "secret"


def test_files_of_a_secret_are_made_once_and_are_their_owners_alone(
    folder: Path, tmp_path: Path, url: str
) -> None:
    assert sorted(path.name for path in folder.iterdir()) == ["ca.key", "key-secret", "secret"]
    assert {path.stat().st_mode & 0o777 for path in folder.iterdir()} == {0o600}
    before = (folder / "ca.key").read_bytes()
    assert "there already" in Machine(tmp_path / "any", url).refused(
        "cluster", "authority", str(folder)
    )
    assert (folder / "ca.key").read_bytes() == before


def test_machines_that_enrol_believe_the_same(folder: Path, tmp_path: Path, url: str) -> None:
    [own] = authority.parse((folder / "ca.key").read_bytes(), folder / "ca.key")
    machines = [
        Machine(tmp_path / "a", url, host="cell-0", role="host"),
        Machine(tmp_path / "b", url, host="cell-1", role="host"),
        Machine(tmp_path / "f", url, host="front-x", role="front"),
    ]
    for machine in machines:
        machine.zimage("cluster", "enrol", str(folder))
    for machine, role in zip(machines, ("host", "host", "front"), strict=True):
        layout = machine.layout
        found = certificates.installed(layout, role)  # type: ignore[arg-type]
        assert found is not None
        assert authority.has_signed(own.certificate, found)
        assert trust.trusted_here(layout) == [own.certificate]
        assert not layout.authority_key.exists()
        secret = (folder / "secret").read_bytes()
        assert trust.secrets_here(layout) == trust.Secrets(
            (folder / "key-secret").read_bytes(), (secret,)
        )
    machines[0].zimage("keys", "create", "ada")  # hashed with a secret that the others know
    machines[1].zimage("keys", "create", "grace")
    assert "nothing to change" in machines[2].zimage("cluster", "enrol", str(folder))


def test_who_enrols_later_brings_another_secret_to_all(
    folder: Path, tmp_path: Path, url: str
) -> None:
    """As a Secret is changed: the new one signs, the one before still verifies."""
    first = Machine(tmp_path / "a", url, host="cell-0", role="host")
    first.zimage("cluster", "enrol", str(folder))
    old = (folder / "secret").read_bytes()
    (folder / "secret").write_bytes(b"n" * 32)
    (folder / "secret.others").write_text(old.hex())
    Machine(tmp_path / "b", url, host="cell-1", role="host").zimage("cluster", "enrol", str(folder))
    trust.take_over(first.layout, store.run(first.cell, trust.read_documents))
    assert trust.secrets_here(first.layout).signing == (b"n" * 32, old)


def test_certificates_that_are_due_are_signed_though_no_machine_has_the_key(
    folder: Path, tmp_path: Path, url: str
) -> None:
    machine = Machine(tmp_path / "a", url, host="cell-0", role="host")
    machine.zimage("cluster", "enrol", str(folder))
    layout = machine.layout
    [own] = authority.parse((folder / "ca.key").read_bytes(), folder / "ca.key")
    csr = certificates.pending(layout, "host", "cell-0").csr
    old = own.sign(csr, "cell-0", "host", datetime.now(UTC) - timedelta(days=65))
    row = rows.Certificate(
        certificates.serial(old), "cell-0", "host", certificates.pem(old).decode(),
        old.not_valid_after_utc.timestamp(),
    )  # fmt: skip
    store.run(machine.cell, lambda connection: rows.record(connection, row))
    certificates.install(layout, "host", certificates.pem(old))
    member, database = Member(layout, "cell-0", "host"), Database(url, 2.0)

    asyncio.run(renewal.beat(member, database))  # asks
    renewing = Machine(tmp_path / "f", url, host="front-x", role="front")
    assert "certificates signed: 1" in renewing.zimage("cluster", "sign", str(folder))
    assert certificates.installed(renewing.layout, "front") is None
    asyncio.run(renewal.beat(member, database))  # takes it on
    database.close()
    found = certificates.installed(layout, "host")
    assert found is not None
    assert not certificates.is_due(found)


def test_what_is_missing_or_of_another_cluster_is_refused_by_name(
    folder: Path, tmp_path: Path, url: str
) -> None:
    machine = Machine(tmp_path / "a", url, host="cell-0", role="host")
    assert str(tmp_path / "none" / "ca.key") in machine.refused(
        "cluster", "enrol", str(tmp_path / "none")
    )
    machine.zimage("cluster", "enrol", str(folder))
    machine.zimage("cluster", "authority", str(tmp_path / "other"))
    told = Machine(tmp_path / "b", url, host="cell-1", role="host").refused(
        "cluster", "enrol", str(tmp_path / "other")
    )
    assert "another authority" in told


def test_keys_of_the_cell_before_are_kept_beside_the_clusters(
    folder: Path, tmp_path: Path, url: str
) -> None:
    machine = Machine(tmp_path / "a", url, host="cell-0", role="host")
    machine.layout.create()
    machine.layout.key_secret.write_bytes(b"own")
    machine.zimage("cluster", "enrol", str(folder))
    kept = machine.layout.key_secret.with_name("key-secret.before-joining")
    assert kept.read_bytes() == b"own"


def wanted(machine: Machine) -> tuple[str, str]:
    host = store.run(machine.cell, lambda connection: hosts.find(connection, "cell-0"))
    assert host is not None
    return host.wanted, host.wanted_reason


def reported(machine: Machine) -> None:
    """It has written its row once."""
    report = hosts.HostReport(
        id="cell-0", address="10.0.0.7:7862", role="host", version="1", models=("m",), workers=1,
        ready=1, queued=0, running=0, wait_s=0.0, skew_s=0.0, state="ready", facts={},
    )  # fmt: skip
    store.run(machine.cell, lambda connection: hosts.write(connection, report, 1.0))


def test_a_machine_that_leaves_is_out_until_it_comes_back(
    folder: Path, tmp_path: Path, url: str
) -> None:
    machine = Machine(tmp_path / "a", url, host="cell-0", role="host")
    machine.zimage("cluster", "enrol", str(folder))
    reported(machine)
    assert "no front sends requests to cell-0" in machine.zimage("hosts", "leave")
    assert wanted(machine) == ("out", wishes.LEAVING)
    machine.zimage("cluster", "enrol", str(folder))
    assert wanted(machine) == ("in", "")


def test_what_an_operator_wants_outlasts_a_restart(folder: Path, tmp_path: Path, url: str) -> None:
    machine = Machine(tmp_path / "a", url, host="cell-0", role="host")
    machine.zimage("cluster", "enrol", str(folder))
    reported(machine)
    store.run(machine.cell, lambda c: wishes.drain(c, "cell-0", "new card", force=True))
    machine.zimage("hosts", "leave")
    assert not store.run(machine.cell, lambda c: hosts.forget(c, "cell-0", wishes.LEAVING))
    machine.zimage("cluster", "enrol", str(folder))
    assert wanted(machine) == ("out", "new card")


def test_a_machine_that_was_removed_or_lost_its_disk_joins_anew(
    folder: Path, tmp_path: Path, url: str
) -> None:
    machine = Machine(tmp_path / "a", url, host="cell-0", role="host")
    machine.zimage("cluster", "enrol", str(folder))
    reported(machine)
    first = certificates.installed(machine.layout, "host")
    assert first is not None

    store.run(machine.cell, lambda c: wishes.remove(c, "cell-0", "broken into", force=True))
    store.run(machine.cell, lambda c: rows.revoke(c, "cell-0"))
    assert "signed the certificate" in machine.zimage("cluster", "enrol", str(folder))
    assert wanted(machine) == ("in", "")
    second = certificates.installed(machine.layout, "host")
    assert second is not None

    anew = Machine(tmp_path / "b", url, host="cell-0", role="host")
    anew.zimage("cluster", "enrol", str(folder))
    third = certificates.installed(anew.layout, "host")
    assert third is not None
    known = store.run(anew.cell, lambda c: rows.of_host(c, "cell-0"))
    assert [row.serial for row in known] == [certificates.serial(third)]
    revoked = store.run(anew.cell, rows.revoked)
    assert {first.serial_number, second.serial_number} == set(revoked)
    lists = anew.layout.revocation_list.read_bytes()
    assert x509.load_pem_x509_crl(lists).get_revoked_certificate_by_serial_number(
        second.serial_number
    )


def test_another_authority_takes_the_place_of_the_first(
    folder: Path, tmp_path: Path, url: str
) -> None:
    """Both in one file, the new one first, until all have its certificates; then it alone."""
    machine = Machine(tmp_path / "a", url, host="cell-0", role="host")
    machine.zimage("cluster", "enrol", str(folder))
    job = Machine(tmp_path / "f", url, host="job", role="front")
    job.zimage("cluster", "authority", str(tmp_path / "fresh"))
    old, new = ((each / "ca.key").read_bytes() for each in (folder, tmp_path / "fresh"))
    [fresh] = authority.parse(new, tmp_path)
    member, database = Member(machine.layout, "cell-0", "host"), Database(url, 2.0)

    (folder / "ca.key").write_bytes(new + old)
    job.zimage("cluster", "sign", str(folder))
    asyncio.run(renewal.beat(member, database))  # trusts both
    asyncio.run(renewal.beat(member, database))  # asks the new one
    assert "certificates signed: 1" in job.zimage("cluster", "sign", str(folder))
    asyncio.run(renewal.beat(member, database))
    found = certificates.installed(machine.layout, "host")
    assert found is not None
    assert authority.has_signed(fresh.certificate, found)

    (folder / "ca.key").write_bytes(new)
    job.zimage("cluster", "sign", str(folder))
    asyncio.run(renewal.beat(member, database))
    database.close()
    assert trust.trusted_here(machine.layout) == [fresh.certificate]
    assert "nothing to change" in machine.zimage("cluster", "enrol", str(folder))
