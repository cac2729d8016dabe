"""A cluster's certificates, as ``zimage cluster init`` and ``join`` would have left them."""

from datetime import UTC, datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from deploy.layout import Layout
from deploy.links import HOST_NAME

_USES = {"host": ExtendedKeyUsageOID.SERVER_AUTH, "front": ExtendedKeyUsageOID.CLIENT_AUTH}
SECRET = b"what all hosts here sign with.  "


class Authority:
    def __init__(self) -> None:
        self._key = ec.generate_private_key(ec.SECP256R1())
        self._name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "cluster")])
        usage = x509.KeyUsage(True, *(False,) * 4, True, True, False, False)
        self._own = self._signed(self._name, self._key, [x509.BasicConstraints(True, None), usage])
        self._revoked: list[int] = []

    def equip(self, layout: Layout, *roles: str, name: str = HOST_NAME) -> None:
        """Write what a machine of ``roles`` has."""
        layout.cluster_dir.mkdir(parents=True, exist_ok=True)
        layout.authority_certificate.write_bytes(_pem(self._own))
        self.write_revocations(layout)
        if "host" in roles:
            layout.cluster_secret.write_bytes(SECRET)
        for role in roles:
            key = ec.generate_private_key(ec.SECP256R1())
            names = x509.SubjectAlternativeName([x509.DNSName(name)])
            own: list[x509.ExtensionType] = [names, x509.ExtendedKeyUsage([_USES[role]])]
            subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, role)])
            _write(layout.cluster_key(role), key)
            layout.cluster_certificate(role).write_bytes(_pem(self._signed(subject, key, own)))

    def revoke(self, certificate: Path) -> None:
        found = x509.load_pem_x509_certificate(certificate.read_bytes())
        self._revoked.append(found.serial_number)

    def write_revocations(self, layout: Layout) -> None:
        now = datetime.now(UTC)
        builder = x509.CertificateRevocationListBuilder().issuer_name(self._name)
        builder = builder.last_update(now - timedelta(minutes=5))
        builder = builder.next_update(now + timedelta(days=30))
        for serial in self._revoked:
            one = x509.RevokedCertificateBuilder().serial_number(serial).revocation_date(now)
            builder = builder.add_revoked_certificate(one.build())
        crl = builder.sign(self._key, hashes.SHA256())
        layout.revocation_list.write_bytes(crl.public_bytes(serialization.Encoding.PEM))

    def _signed(
        self,
        subject: x509.Name,
        key: ec.EllipticCurvePrivateKey,
        extensions: list[x509.ExtensionType],
    ) -> x509.Certificate:
        now = datetime.now(UTC)
        builder = (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(self._name)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - timedelta(minutes=5))
            .not_valid_after(now + timedelta(days=30))
        )
        for extension in extensions:
            builder = builder.add_extension(extension, isinstance(extension, x509.KeyUsage))
        return builder.sign(self._key, hashes.SHA256())


def _pem(certificate: x509.Certificate) -> bytes:
    return certificate.public_bytes(serialization.Encoding.PEM)


def _write(path: Path, key: ec.EllipticCurvePrivateKey) -> None:
    plain = serialization.NoEncryption()
    form = serialization.PrivateFormat.PKCS8
    path.touch(0o600)
    path.write_bytes(key.private_bytes(serialization.Encoding.PEM, form, plain))
