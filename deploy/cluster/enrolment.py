"""A machine takes its place in a cluster by itself, as pods do: with the authority's key, which it
sees for a moment, instead of a token and a person.

Of pods nobody knows when they come, and a token is good once and for ten minutes. A certificate
that somebody else has made (such as cert-manager) would not do: all of a StatefulSet have the same
Secrets, each host needs a name of its own, and what the authority tells all machines (whom to
trust, who is revoked, the secrets) is signed by the same key and sealed for each certificate.

The folder has three files, which ``make`` writes and which are those of a first machine:
``ca.key``, ``key-secret`` and ``secret``; and, while one secret takes the place of another,
``secret.others``.
"""

from pathlib import Path
from typing import TYPE_CHECKING

from deploy import store
from deploy.cell import Cell, CellError
from deploy.cluster import authority, certificates, founding, joining, renewal, trust, wishes
from deploy.cluster.authority import Authority, Role
from deploy.cluster.trust import TRUST, Secrets, Trust
from deploy.host import whole_file
from worker.storage.secret import cluster_secrets, shared_secret

if TYPE_CHECKING:
    from sqlalchemy import Connection

_AUTHORITY, _KEY_SECRET, _SECRET = "ca.key", "key-secret", "secret"
_OTHERS = (
    "the cluster has another authority than the one in {path}: give the folder of its own; or, to "
    "put this one in its place, write both into that file, this one first, until all machines have "
    "certificates of it"
)


def make(folder: Path, cluster: str) -> list[Path]:
    """An authority and secrets for a new cluster; the files. ``CellError`` where some are there."""
    paths = [folder / name for name in (_AUTHORITY, _KEY_SECRET, _SECRET)]
    if there := [str(path) for path in paths if path.exists()]:
        raise CellError(f"{', '.join(there)}: there already; name another folder, or use that one")
    whole_file.write(paths[0], authority.text([Authority.make(cluster)]), 0o600)
    for path in paths[1:]:
        shared_secret(path)
    return paths


def enrol(cell: Cell, folder: Path) -> tuple[Role, ...]:
    """Sign this machine's certificates and take over the secrets; the roles whose certificates are
    new. A repetition changes nothing. A machine that was removed, or whose disk was lost, is in
    again, and what its name had before is revoked. ``CellError``."""
    layout, host = cell.layout, cell.config.cluster.host_id
    authorities = _authorities(folder)
    _take_secrets(cell, folder)
    roles = certificates.roles_of(cell.config.cluster.role)
    lacks = any(founding.is_missing(cell, role, authorities) for role in roles)
    present = {role: certificates.installed(layout, role) for role in roles}
    serials = {certificates.serial(each) for each in present.values() if each}

    def work(connection: "Connection") -> tuple[dict[Role, bytes], Trust]:
        from worker.storage import certificates as rows

        _require_own(connection, authorities, folder)
        signed: dict[Role, bytes] = {}
        if lacks or not serials <= {row.serial for row in rows.of_host(connection, host)}:
            rows.revoke(connection, host)
            signed = founding.sign_own(cell, connection, authorities[0], roles)
        wishes.come_back(connection, host)
        renewal.serve(connection, layout, authorities)
        return signed, trust.publish_trust(connection, layout, authorities)

    signed, trusted = store.run(cell, work)
    founding.settle(cell, signed, trusted)
    return tuple(signed)


def sign(cell: Cell, folder: Path) -> int:
    """Sign what other machines ask for, and tell all of them what they should know; how many
    certificates were signed. ``CellError``."""
    from worker.storage import certificates as rows

    authorities = _authorities(folder)
    _take_secrets(cell, folder)

    def work(connection: "Connection") -> int:
        _require_own(connection, authorities, folder)
        before = len(rows.all_good(connection))
        renewal.serve(connection, cell.layout, authorities)
        return len(rows.all_good(connection)) - before

    return store.run(cell, work)


def _authorities(folder: Path) -> list[Authority]:
    path = folder / _AUTHORITY
    return authority.parse(_read(path), path)


def _require_own(connection: "Connection", authorities: list[Authority], folder: Path) -> None:
    """And nobody else signs or publishes meanwhile."""
    from worker.storage import certificates as rows

    rows.lock_cluster(connection)
    known = rows.document(connection, TRUST)
    if known is not None and not trust.is_of(authorities, known):
        raise CellError(_OTHERS.format(path=folder / _AUTHORITY))


def _take_secrets(cell: Cell, folder: Path) -> None:
    """Those of the folder are the cluster's, whatever this machine had."""
    from worker.storage import keys

    key_secret = _read(folder / _KEY_SECRET)
    _read(folder / _SECRET)
    store.run(cell, lambda connection: keys.require_secret(connection, key_secret))
    joining.keep_own(cell.layout.key_secret, key_secret)
    signing = cluster_secrets(folder / _SECRET)
    trust.write_secrets(cell.layout, Secrets(key_secret, signing))


def _read(path: Path) -> bytes:
    try:
        found = path.read_bytes()
    except OSError as error:
        raise CellError(
            f"{path}: {error.strerror}; the folder has what zimage cluster authority writes"
        ) from None
    if not found:
        raise CellError(f"{path} is empty; the folder has what zimage cluster authority writes")
    return found
