"""A machine that belongs to the cluster no more: nobody believes it anything from now on."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

from deploy import store
from deploy.cell import Cell, CellError
from deploy.cluster import authority, host_role, renewal
from worker.storage import certificates as rows

if TYPE_CHECKING:
    from sqlalchemy import Connection


@dataclass(frozen=True)
class Revoked:
    """``certificates``: how many were good until now. ``role_ended``: it had a role of the database
    of its own, which is gone. ``published``: every machine learns of it within a minute; else the
    one with the authority tells them, within two."""

    certificates: int
    role_ended: bool
    published: bool


def require_removable(cell: Cell, host: str) -> None:
    """``CellError`` where the cluster could let nobody in any more without ``host``."""
    if host == cell.config.cluster.host_id and cell.layout.authority_key.exists():
        raise CellError(
            f"{host} has the cluster's authority, without which nobody joins and no certificate is "
            "renewed: run zimage cluster init --new-authority on another machine first, then "
            f"move {cell.layout.authority_key} away"
        )


def revoke(cell: Cell, host: str) -> Revoked:
    """Revoke certificates, open invites and the database's role of ``host``. Again, it does what is
    left to do."""
    has_authority = cell.layout.authority_key.exists()
    authorities = authority.load(cell.layout) if has_authority else []

    def work(connection: "Connection") -> Revoked:
        rows.lock_cluster(connection)
        rows.withdraw_of(connection, host)
        ended = rows.revoke(connection, host)
        rows.forget(connection, f"{renewal.HAS}{host}")
        if authorities:
            renewal.serve(connection, cell.layout, authorities)
        had_role = host_role.remove(connection, host_role.name_of(cell, host))
        return Revoked(ended, had_role, bool(authorities))

    return store.run(cell, work)
