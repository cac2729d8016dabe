"""A machine's certificates and keys stay pairs, whatever ends the process that changes them."""

from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from deploy.cluster import certificates
from deploy.cluster.authority import Authority
from deploy.host import whole_file
from deploy.layout import Layout
from tests.deploy.cluster.machines import equip, layout_in


@pytest.fixture
def authority() -> Authority:
    return Authority.make("studio")


@pytest.fixture
def layout(tmp_path: Path, authority: Authority) -> Layout:
    made = layout_in(tmp_path)
    equip(made, authority, "gpu1")
    return made


def is_pair(layout: Layout) -> bool:
    found, key = certificates.installed(layout, "host"), layout.cluster_key("host")
    assert found is not None
    return certificates.load_key(key).public_key() == found.public_key()


def test_keys_are_this_users_alone(layout: Layout) -> None:
    assert is_pair(layout)
    modes = {path.stat().st_mode & 0o777 for path in layout.cluster_dir.glob("*.key*")}
    assert modes == {0o600}
    assert layout.cluster_dir.stat().st_mode & 0o777 == 0o700


def test_request_under_way_keeps_its_key(layout: Layout, authority: Authority) -> None:
    """A certificate that arrives after a crash still fits."""
    first = certificates.pending(layout, "host", "gpu1")
    assert certificates.pending(layout, "host", "gpu1").key == first.key
    signed = authority.sign(first.csr, "gpu1", "host")
    certificates.install(layout, "host", certificates.pem(signed))
    assert certificates.installed(layout, "host") == signed
    assert is_pair(layout)
    assert certificates.pending(layout, "host", "gpu1").key != first.key


def test_crash_between_certificate_and_key_is_mended(layout: Layout, authority: Authority) -> None:
    request = certificates.pending(layout, "host", "gpu1")
    signed = authority.sign(request.csr, "gpu1", "host")
    whole_file.write(layout.cluster_certificate("host"), certificates.pem(signed), 0o644)
    assert not is_pair(layout)
    certificates.settle(layout, "host")
    assert is_pair(layout)


def test_certificate_of_another_key_is_not_installed(layout: Layout, authority: Authority) -> None:
    before = certificates.installed(layout, "host")
    other = authority.sign(certificates.new_request("gpu1").csr, "gpu1", "host")
    with pytest.raises(ValueError, match="no key of this machine"):
        certificates.install(layout, "host", certificates.pem(other))
    assert certificates.installed(layout, "host") == before
    assert is_pair(layout)


def test_is_due_after_two_thirds(layout: Layout) -> None:
    found = certificates.installed(layout, "host")
    assert found is not None
    now = datetime.now(UTC)
    assert not certificates.is_due(found, now + timedelta(days=59))
    assert certificates.is_due(found, now + timedelta(days=61))
