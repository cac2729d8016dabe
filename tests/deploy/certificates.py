"""A cluster's certificates, as ``zimage cluster init`` and ``join`` leave them."""

import time
from pathlib import Path

from cryptography import x509

from deploy.cluster import authority, certificates
from deploy.cluster.authority import Role
from deploy.layout import Layout

SECRET = b"what all hosts here sign with.  "


class Authority:
    def __init__(self) -> None:
        self._own = authority.Authority.make("cluster")
        self._revoked: dict[int, float] = {}

    def equip(self, layout: Layout, *roles: Role) -> None:
        """Write what a machine of ``roles`` has, which is named so."""
        layout.cluster_dir.mkdir(parents=True, exist_ok=True)
        layout.authority_certificate.write_bytes(self._own.pem)
        layout.revocation_list.write_bytes(self._own.revocation_list(self._revoked))
        if "host" in roles:
            layout.cluster_secret.write_bytes(SECRET)
        for role in roles:
            request = certificates.pending(layout, role, role)
            signed = self._own.sign(request.csr, role, role)
            certificates.install(layout, role, certificates.pem(signed))

    def revoke(self, certificate: Path) -> None:
        found = x509.load_pem_x509_certificate(certificate.read_bytes())
        self._revoked[found.serial_number] = time.time()
