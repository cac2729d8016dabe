"""The first machine of a cluster: it has the authority, and what all others get by joining."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from cryptography import x509

from deploy import store
from deploy.cell import Cell, CellError
from deploy.cluster import authority, certificates, trust
from deploy.cluster.authority import Authority, Role
from deploy.cluster.trust import TRUST, Secrets, Trust

if TYPE_CHECKING:
    from sqlalchemy import Connection

_OTHERS = (
    "the cluster has an authority, and its key is not on this machine: join with a token of the "
    "machine that has it (zimage hosts invite NAME there); or restore {path} from a backup; or, "
    "where it is lost for good, zimage cluster init --new-authority, and every machine joins again"
)


@dataclass(frozen=True)
class Founded:
    """``signed``: roles whose certificates are new."""

    made_authority: bool
    signed: tuple[Role, ...]
    keep: tuple[Path, ...]


def found(cell: Cell, *, new_authority: bool = False) -> Founded:
    """Give this machine the authority of its cluster, and make it the first that trusts it. Again,
    it adds what is missing. ``CellError`` where another machine has it."""
    layout = cell.layout
    _take_secrets(cell)
    made = _make_authority(cell, anew=new_authority)
    authorities = authority.load(layout)
    roles = certificates.roles_of(cell.config.cluster.role)
    due = tuple(role for role in roles if is_missing(cell, role, authorities))

    def work(connection: "Connection") -> tuple[dict[Role, bytes], Trust]:
        from worker.storage import certificates as rows

        rows.lock_cluster(connection)
        known = rows.document(connection, TRUST)
        if known is not None and not new_authority and not trust.is_of(authorities, known):
            raise CellError(_OTHERS.format(path=layout.authority_key))
        signed = sign_own(cell, connection, authorities[0], due)
        trusted = trust.publish_trust(connection, layout, authorities)
        trust.publish_secrets(connection, layout, authorities)
        return signed, trusted

    settle(cell, *store.run(cell, work))
    keep = (layout.authority_key, layout.key_secret, layout.cluster_secret)
    return Founded(made, due, keep)


def sign_own(
    cell: Cell, connection: "Connection", signer: Authority, roles: Iterable[Role]
) -> dict[Role, bytes]:
    """A certificate of this machine for each of ``roles`` (PEM), by ``signer``."""
    layout, host = cell.layout, cell.config.cluster.host_id
    signed = {}
    for role in roles:
        csr = certificates.pending(layout, role, host).csr
        signed[role] = trust.issue(connection, signer, csr, host, role)
    return signed


def settle(cell: Cell, signed: Mapping[Role, bytes], trusted: Trust) -> None:
    """Put what was ``signed`` and whom to trust on this machine's disk, as the database has it."""
    trust.write_trust(cell.layout, trusted)
    for role, pem in signed.items():
        certificates.install(cell.layout, role, pem)
    for document in store.run(cell, trust.read_documents):
        trust.note(cell.layout, document)


def _take_secrets(cell: Cell) -> None:
    """The cluster's; those of the cell that was here before, so that its keys stay good."""
    layout = cell.layout
    key_secret = store.secret_for(cell)
    if not layout.cluster_secret.exists():
        trust.write_secrets(layout, Secrets(key_secret, (key_secret,)))


def _make_authority(cell: Cell, *, anew: bool) -> bool:
    layout = cell.layout
    if layout.authority_key.exists() and not anew:
        return False

    def known(connection: "Connection") -> bool:
        from worker.storage import certificates as rows

        return rows.document(connection, TRUST) is not None

    if not anew and store.run(cell, known):
        raise CellError(_OTHERS.format(path=layout.authority_key))
    authority.save(layout, [Authority.make(cell.config.cluster.name)])
    return True


def is_missing(cell: Cell, role: Role, authorities: list[Authority]) -> bool:
    """Whether this machine needs a certificate as ``role``."""
    certificates.settle(cell.layout, role)
    present = certificates.installed(cell.layout, role)
    return present is None or (
        certificates.is_due(present)
        or not authority.has_signed(authorities[0].certificate, present)
        or _name(present) != cell.config.cluster.host_id
        or not cell.layout.cluster_key(role).exists()
    )


def _name(certificate: x509.Certificate) -> str:
    return certificate.subject.rfc4514_string().removeprefix("CN=")
