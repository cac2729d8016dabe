"""Machines of a cluster as folders, with the certificates that they would have got by joining."""

from datetime import datetime
from pathlib import Path

from deploy.cluster import certificates
from deploy.cluster.authority import Authority, Role
from deploy.cluster.certificates import ROLES
from deploy.host import whole_file
from deploy.layout import Layout


def layout_in(folder: Path) -> Layout:
    return Layout(folder, folder / "run")


def equip(
    layout: Layout,
    authority: Authority,
    host: str,
    roles: tuple[Role, ...] = ROLES,
    now: datetime | None = None,
) -> None:
    """Give the machine of ``layout`` the authority, an empty list of revocations, and a certificate
    and key for each of ``roles``."""
    whole_file.write(layout.authority_certificate, authority.pem, 0o644)
    whole_file.write(layout.revocation_list, authority.revocation_list({}), 0o644)
    for role in roles:
        request = certificates.pending(layout, role, host)
        signed = authority.sign(request.csr, host, role, now)
        certificates.install(layout, role, certificates.pem(signed))
