"""The first machine of a cluster: it keeps what its cell had, and there is one authority."""

from pathlib import Path

from deploy import store
from deploy.cluster import authority, certificates, trust
from tests.deploy.cluster.machines import Machine
from worker.storage import certificates as rows


def state(machine: Machine) -> dict[str, bytes]:
    folder = machine.layout.cluster_dir
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_init_makes_all_that_a_machine_needs_and_says_what_to_back_up(
    tmp_path: Path, url: str
) -> None:
    machine = Machine(tmp_path, url)
    told = machine.zimage("cluster", "init")
    assert "made the certificate authority of studio" in told
    assert "signed the certificate of gpu1 as host and as front" in told
    layout = machine.layout
    for path in (layout.authority_key, layout.key_secret, layout.cluster_secret):
        assert str(path) in told
        assert path.stat().st_mode & 0o777 == 0o600
    [own] = authority.load(layout)
    for role in certificates.ROLES:
        found = certificates.installed(layout, role)
        assert found is not None
        assert authority.has_signed(own.certificate, found)
    assert trust.trusted_here(layout) == [own.certificate]
    assert layout.revocation_list.exists()
    assert set(trust.versions(layout)) == {"trust", "secrets"}


def test_repetition_changes_nothing(tmp_path: Path, url: str) -> None:
    machine = Machine(tmp_path, url)
    machine.zimage("cluster", "init")
    before, documents = state(machine), store.run(machine.cell, trust.read_documents)
    assert "nothing to change" in machine.zimage("cluster", "init")
    assert state(machine) == before
    assert store.run(machine.cell, trust.read_documents) == documents


def test_what_is_missing_is_made_again(tmp_path: Path, url: str) -> None:
    machine = Machine(tmp_path, url)
    machine.zimage("cluster", "init")
    layout = machine.layout
    for path in (layout.cluster_certificate("front"), layout.authority_certificate):
        path.unlink()
    assert "certificate of gpu1 as front" in machine.zimage("cluster", "init")
    found = certificates.installed(layout, "front")
    assert found is not None
    key = certificates.load_key(layout.cluster_key("front"))
    assert key.public_key() == found.public_key()
    assert trust.trusted_here(layout)


def test_keys_and_secret_of_the_cell_before_stay_good(tmp_path: Path, url: str) -> None:
    machine = Machine(tmp_path, url)
    machine.zimage("keys", "create", "ada")
    before = machine.layout.key_secret.read_bytes()
    machine.zimage("cluster", "init")
    assert trust.secrets_here(machine.layout) == trust.Secrets(before, (before,))
    machine.zimage("keys", "create", "grace")


def test_second_authority_of_a_cluster_is_refused(tmp_path: Path, url: str) -> None:
    Machine(tmp_path / "a", url).zimage("cluster", "init")
    other = Machine(tmp_path / "b", url, host="gpu2")
    told = other.refused("cluster", "init")
    assert "zimage hosts invite" in told
    assert not other.layout.authority_key.exists()


def test_lost_authority_is_replaced_where_somebody_says_so(tmp_path: Path, url: str) -> None:
    machine = Machine(tmp_path, url)
    machine.zimage("cluster", "init")
    machine.layout.authority_key.unlink()
    assert "--new-authority" in machine.refused("cluster", "init")
    machine.zimage("cluster", "init", "--new-authority")
    [own] = authority.load(machine.layout)
    assert trust.trusted_here(machine.layout) == [own.certificate]
    assert "nothing to change" in machine.zimage("cluster", "init")


def test_machine_of_no_cluster_is_told_what_to_write(tmp_path: Path, url: str) -> None:
    machine = Machine(tmp_path, url)
    text = machine.config_path.read_text()
    machine.config_path.write_text(text[: text.index("[cluster]")])
    assert "write [cluster] with its name" in machine.refused("cluster", "init")
    assert not machine.layout.cluster_dir.exists()


def test_database_has_no_secret(tmp_path: Path, url: str) -> None:
    machine = Machine(tmp_path, url)
    machine.zimage("cluster", "init")
    secret = machine.layout.cluster_secret.read_bytes()
    for document in store.run(machine.cell, lambda c: rows.documents(c, "")):
        assert secret not in document.content
        assert secret.hex().encode() not in document.content
