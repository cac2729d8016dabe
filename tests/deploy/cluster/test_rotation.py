"""Secrets and authority change while machines go on: at no moment is one's proof unknown to
another."""

import itertools
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509

from deploy import store
from deploy.cell import CellError
from deploy.cluster import authority, certificates, revocation, rotation, trust
from deploy.cluster.renewal import Member
from tests.deploy.cluster.machines import layout_in
from tests.deploy.cluster.test_renewal import Cluster
from worker.storage import certificates as rows
from worker.storage import hosts
from worker.storage.hosts import HostReport
from worker.storage.secret import cluster_secrets

TIMEOUT_S = 120.0


@pytest.fixture
def cluster(tmp_path: Path, url: str, monkeypatch: pytest.MonkeyPatch) -> Cluster:
    monkeypatch.setattr(rotation, "_LOOK_S", 0.05)
    monkeypatch.setattr(rotation, "_READ_S", 0.05)
    made = Cluster(tmp_path, url)
    made.beat(made.first)
    made.beat(made.other)
    return made


@contextmanager
def going_on(cluster: Cluster, check: Callable[[Member, Member], None]) -> Iterator[None]:
    """Both machines live, and ``check`` holds of each pair at every moment."""
    members, over = (cluster.first, cluster.other), threading.Event()
    failures: list[Any] = []

    def live(member: Member) -> None:
        while not over.wait(0.01):
            cluster.beat(member)

    def watch() -> None:
        while not over.wait(0.001) and not failures:
            for pair in itertools.permutations(members, 2):
                try:
                    check(*pair)
                except Exception as error:
                    failures.append(error)

    work = [lambda: live(members[0]), lambda: live(members[1]), watch]
    threads = [threading.Thread(target=each) for each in work]
    for thread in threads:
        thread.start()
    try:
        yield
    finally:
        over.set()
        for thread in threads:
            thread.join()
    assert failures == []


def knows_secret(signer: Member, reader: Member) -> None:
    signing = cluster_secrets(signer.layout.cluster_secret)[0]
    assert signing in cluster_secrets(reader.layout.cluster_secret)


def trusts_certificate(shower: Member, reader: Member) -> None:
    shown = certificates.installed(shower.layout, "host")
    assert shown is not None
    before = lists_of(reader)
    known = trust.trusted_here(reader.layout)
    assert any(authority.has_signed(each, shown) for each in known)
    assert max(before, lists_of(reader)) >= len(known)


def lists_of(member: Member) -> int:
    return member.layout.revocation_list.read_text(encoding="ascii").count("BEGIN X509 CRL")


def quiet(text: str) -> None: ...


def signing(member: Member) -> tuple[bytes, ...]:
    return trust.secrets_here(member.layout).signing


def test_secret_changes_under_load_and_keys_stay_good(cluster: Cluster) -> None:
    (old,) = signing(cluster.first)
    key_secret = cluster.first.layout.key_secret.read_bytes()
    with going_on(cluster, knows_secret):
        rotation.rotate_secret(cluster.cell, quiet, TIMEOUT_S)
    new, verifies = signing(cluster.first)
    assert verifies == old
    assert new != old
    assert signing(cluster.other) == (new, old)
    assert cluster.other.layout.key_secret.read_bytes() == key_secret


def test_old_secret_ends_with_the_life_of_a_link(
    cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    with going_on(cluster, knows_secret):
        ends_at = rotation.rotate_secret(cluster.cell, quiet, TIMEOUT_S)
    monkeypatch.setattr("deploy.cluster.renewal.time.time", lambda: ends_at - 1)
    cluster.beat(cluster.first)
    assert len(signing(cluster.first)) == 2
    monkeypatch.setattr("deploy.cluster.renewal.time.time", lambda: ends_at + 1)
    cluster.beat(cluster.first)
    cluster.beat(cluster.other)
    assert signing(cluster.first) == signing(cluster.other)
    assert len(signing(cluster.other)) == 1


def test_machine_that_is_away_holds_a_rotation_up_and_it_goes_on_later(cluster: Cluster) -> None:
    (old,) = signing(cluster.first)
    told: list[str] = []
    with pytest.raises(CellError, match=r"not taken over by gpu1, gpu2 within"):
        rotation.rotate_secret(cluster.cell, told.append, 0.2)
    assert "wait for gpu1, gpu2" in told
    for member in (cluster.first, cluster.other):
        cluster.beat(member)
        assert signing(member)[0] == old  # nobody signs with what another may not know
    with going_on(cluster, knows_secret):
        rotation.rotate_secret(cluster.cell, quiet, TIMEOUT_S)
    new, verifies = signing(cluster.other)
    assert verifies == old
    assert signing(cluster.first) == (new, old)


def test_authority_changes_under_load(cluster: Cluster) -> None:
    [old] = authority.load(cluster.cell.layout)
    with going_on(cluster, trusts_certificate):
        rotation.rotate_authority(cluster.cell, quiet, TIMEOUT_S)
    [new] = authority.load(cluster.cell.layout)
    assert new.certificate != old.certificate
    for member in (cluster.first, cluster.other):
        assert trust.trusted_here(member.layout) == [new.certificate]
        shown = certificates.installed(member.layout, "host")
        assert shown is not None
        assert authority.has_signed(new.certificate, shown)


def test_authority_that_stopped_half_way_goes_on(cluster: Cluster) -> None:
    for member in (cluster.other, cluster.first):
        with pytest.raises(CellError, match="not taken over by"):
            rotation.rotate_authority(cluster.cell, quiet, 0.2)
        assert len(authority.load(cluster.cell.layout)) == 2
        cluster.beat(member)
    with going_on(cluster, trusts_certificate):
        rotation.rotate_authority(cluster.cell, quiet, TIMEOUT_S)
    assert len(authority.load(cluster.cell.layout)) == 1


def test_removed_machine_holds_nothing_up_and_is_believed_nothing(cluster: Cluster) -> None:
    shown = certificates.installed(cluster.other.layout, "host")
    assert shown is not None
    revoked = revocation.revoke(cluster.cell, "gpu2")
    assert (revoked.certificates, revoked.published) == (1, True)
    assert revocation.revoke(cluster.cell, "gpu2").certificates == 0
    cluster.beat(cluster.first)
    listed = x509.load_pem_x509_crl(cluster.first.layout.revocation_list.read_bytes())
    assert listed.get_revoked_certificate_by_serial_number(shown.serial_number) is not None
    before = signing(cluster.other)
    with going_on(cluster, lambda *_: None):
        rotation.rotate_secret(cluster.cell, quiet, TIMEOUT_S)
    assert signing(cluster.other) == before
    assert signing(cluster.first)[0] not in before


def test_open_invite_of_a_removed_machine_ends(cluster: Cluster) -> None:
    store.run(cluster.cell, lambda c: rows.invite(c, "i", "gpu2", "host", b"h" * 32))
    revocation.revoke(cluster.cell, "gpu2")
    assert store.run(cluster.cell, lambda c: rows.use(c, "i", b"h" * 32)) is None


def test_machine_with_the_authority_is_not_removed(cluster: Cluster) -> None:
    with pytest.raises(CellError, match=r"init --new-authority on another machine first"):
        revocation.require_removable(cluster.cell, "gpu1")
    revocation.require_removable(cluster.cell, "gpu2")


def test_hosts_remove_shuts_the_machine_out_and_says_what_is_left_to_do(cluster: Cluster) -> None:
    told = HostReport("gpu2", "a:1", "host", "1", (), 1, 1, 0, 0, 0.0, 0.0, "ready", {})
    store.run(cluster.cell, lambda connection: hosts.write(connection, told, 1.0))
    (old,) = signing(cluster.first)
    with going_on(cluster, lambda *_: None):
        done = cluster.machine.run("hosts", "remove", "gpu2", "--force")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "revoked 1 certificates of gpu2" in done.stdout
    assert "credentials of the bucket" in done.stderr
    assert signing(cluster.first)[1:] == (old,)
    assert signing(cluster.other) == (old,)


def test_who_reads_while_two_secrets_change_places_finds_both(tmp_path: Path) -> None:
    layout, both, over = layout_in(tmp_path), (b"a" * 32, b"b" * 32), threading.Event()
    trust.write_secrets(layout, trust.Secrets(b"k", both))

    def change() -> None:
        for turn in range(150):
            signing = both if turn % 2 else both[::-1]
            trust.write_secrets(layout, trust.Secrets(b"k", signing))
        over.set()

    writer = threading.Thread(target=change)
    writer.start()
    found: set[frozenset[bytes]] = set()
    while not over.is_set():
        found.add(frozenset(cluster_secrets(layout.cluster_secret)))
    writer.join()
    assert found == {frozenset(both)}
